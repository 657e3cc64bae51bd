"""A compiled loss of arrays on a CUDA device: from what a user passes to a `fastloss.engine.cuda.launch.Job`.

The rules are those of the CPU, and mostly its code: shapes are laid out by `fastloss.losses.layout`, weights and masks
aligned by `fastloss.losses.reductions`, on arrays of which only shapes and strides are looked at. What the CPU works
out from values (how many samples a mask leaves) is worked out on the device: nothing waits for it, and nothing is
copied to the host. Imported when the first such array comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastloss import settings
from fastloss.engine import storage
from fastloss.engine.cuda import labels, launch
from fastloss.engine.cuda.arrays import DeviceArray, Library, library_of
from fastloss.engine.cuda.target import SIMULATED, cuda
from fastloss.kernels import batch
from fastloss.losses import arrays, reductions
from fastloss.losses.base import KernelLoss
from fastloss.losses.layout import Layout
from fastloss.losses.plan import HESSIAN, variant_of

if TYPE_CHECKING:
    from fastloss.losses.base import Loss


@dataclass(frozen=True)
class DeviceReduction:
    """As `fastloss.losses.reductions.Reduction`, with what depends on data in device memory.

    Attributes
    ----------
    weights, grad_weights, mask : DeviceArray or None
        One number a row.
    value_factor, grad_factor : float
        What is known on the host.
    factor : DeviceArray or None
        What is not: two numbers for value and gradient.
    shape : tuple of int or None
        The shape of an unreduced result.
    """

    weights: DeviceArray | None
    grad_weights: DeviceArray | None
    mask: DeviceArray | None
    value_factor: float
    grad_factor: float
    factor: DeviceArray | None
    shape: tuple[int, ...] | None


def no_form(loss: Loss) -> NotImplementedError:
    """The error of a loss that has no CUDA form."""
    return NotImplementedError(
        f"{type(loss).__name__} has no CUDA form yet; copy `y_true` and `y_pred` to the host for it. The table of "
        "losses in the documentation shows which have one"
    )


def evaluate(
    loss: Loss,
    outputs: int,
    y_true: Any,
    y_pred: Any,
    sample_weight: Any,
    mask: Any,
    class_weight: Any,
    upstream: Any,
    out: Any,
    **extras: Any,
) -> tuple[Any, Any, Any]:
    """Value, gradient and Hessian, as far as `outputs` asks, as arrays of the library of `y_pred`."""
    if not isinstance(loss, KernelLoss) and loss.device_form is None:
        raise no_form(loss)
    _require_device()
    for name, value in (("y_true", y_true), ("y_pred", y_pred)):
        if not arrays.on_cuda(value):
            other = "y_pred" if name == "y_true" else "y_true"
            raise TypeError(f"`{name}` must be on a CUDA device, as `{other}` is, got {type(value).__name__}")
    if loss.check_numerics not in (None, "ignore") or (
        loss.check_numerics is None and settings._check_numerics not in (None, "ignore")
    ):
        raise NotImplementedError(
            "`check_numerics` has no CUDA form: it would wait for the device. Set it to 'ignore' and look at the value"
        )
    labels.check()
    library, own = library_of(y_pred)
    with _context(library):
        call = _read_call(loss, library, y_true, own, sample_weight, mask, class_weight, upstream, out)
        if isinstance(loss, KernelLoss):
            return _evaluate(loss, outputs, call)
        from fastloss.losses import device_batch

        return device_batch.evaluate(loss, outputs, call, extras)


@cache
def _require_device() -> None:
    if not SIMULATED and not cuda.is_available():
        raise RuntimeError(
            "a CUDA array needs a CUDA driver and a device that numba-cuda finds: see `python -m numba -s`"
        )


def _context(library: Library) -> AbstractContextManager[Any]:
    if SIMULATED or cuda.get_current_device().id == library.number:
        return nullcontext()
    context: AbstractContextManager[Any] = cuda.gpus[library.number]
    return context


class DeviceCall(NamedTuple):
    """A call's arguments as they are on the device.

    Attributes
    ----------
    library : Library
        That of `y_pred`, which makes all arrays.
    y, p : DeviceArray
        Targets and predictions.
    compute : numpy.dtype
        Compute dtype.
    value_code, g_code : str
        How value and gradient are stored.
    weight : DeviceArray or float or None
        Samples' weights.
    valid : DeviceArray or None
        The mask.
    class_weight, upstream : object
        As the caller gave them.
    out : object
        Where the caller wants the gradient.
    destination : DeviceArray or None
        The same, checked.
    """

    library: Library
    y: DeviceArray
    p: DeviceArray
    compute: np.dtype[Any]
    value_code: str
    g_code: str
    weight: Any
    valid: DeviceArray | None
    class_weight: Any
    upstream: Any
    out: Any
    destination: DeviceArray | None


def _read_call(
    loss: Loss,
    library: Library,
    y_true: Any,
    y_pred: Any,
    sample_weight: Any,
    mask: Any,
    class_weight: Any,
    upstream: Any,
    out: Any,
) -> DeviceCall:
    p = library.read("y_pred", y_pred)
    y = library.read("y_true", library_of(y_true)[1])
    compute, result = arrays.compute_dtypes(loss._dtype, y_pred)
    value_code = storage.code(result) or ""
    g_code = p.code if p.is_float else value_code
    if mask is None:
        mask = getattr(y_pred, "_keras_mask", None)
    weight, valid = _read(library, "sample_weight", sample_weight, compute), _read_mask(library, mask)
    destination = None
    if out is not None:
        others = {"y_true": y, "sample_weight": weight, "mask": valid}
        destination = _check_out(library, out, p, g_code, others)
    return DeviceCall(
        library, y, p, compute, value_code, g_code, weight, valid, class_weight, upstream, out, destination
    )


def _evaluate(loss: KernelLoss, outputs: int, call: DeviceCall) -> tuple[Any, Any, Any]:
    library, y, p, compute, value_code, g_code, weight, valid, class_weight, upstream, out, destination = call
    compute_code = compute.str[1:]
    layout = loss._layout(
        y,  # type: ignore[arg-type]
        p,  # type: ignore[arg-type]
        samples=class_weight is not None or any(getattr(a, "shape", None) == p.shape for a in (weight, valid)),
        flat=loss.reduction not in ("none", None) and weight is valid is class_weight is None,
    )
    targets: Any = layout.y
    predictions: Any = layout.p
    targets, predictions = targets.contiguous(), predictions.contiguous()
    ignoring: Any = layout.valid
    if ignoring is not None:
        valid = ignoring if valid is None else both(ignoring, valid)
    if class_weight is not None:
        weight = times_class_weights(class_weight, targets, layout.shape, weight, compute, type(loss).__name__)
    reduction = resolve(library, layout.shape, loss.reduction, weight, valid, upstream, compute)
    rows, columns = predictions.shape
    usable = destination is not None and layout.order is None and destination.is_contiguous
    g = h = None
    if outputs:
        g = destination if destination is not None and usable else library.empty(_kept(layout, p), g_code)
    if outputs == HESSIAN:
        h = library.empty(_kept(layout, p), g_code)
    value = library.empty(() if reduction.shape is None else reduction.shape, value_code)
    params = loss._params(columns)
    codes = (targets.code, predictions.code, g_code if outputs else compute_code)
    variant = variant_of(
        loss._kernel(), outputs, codes, compute_code, params, index=layout.index,
        weighted=reduction.weights is not None, masked=reduction.mask is not None, values=reduction.shape is not None,
    )  # fmt: skip
    share = 1.0 / columns if loss.per_sample == "mean" and columns else 1.0
    if predictions.size:
        launch.run(
            launch.Job(
                variant, rows, columns, params, targets, predictions, g, h, reduction.weights, reduction.grad_weights,
                reduction.mask, reduction.factor, value, share * reduction.value_factor, share * reduction.grad_factor,
                type(loss).__name__, layout.shape,
            )
        )  # fmt: skip
    else:
        launch.fill(value, math.nan if rows and loss.per_sample == "mean" else 0.0)
    gradient = None if g is None else _deliver(library, layout, g, p, destination)
    hessian = None if h is None else _deliver(library, layout, h, p, None)
    if gradient is not None and destination is not None:
        return value.owner, out, hessian
    return value.owner, None if gradient is None else gradient.owner, None if hessian is None else hessian.owner


def _kept(layout: Layout, p: DeviceArray) -> tuple[int, ...]:
    """The shape of a gradient as the kernel writes it."""
    return p.shape if layout.order is None else tuple(layout.matched[i] for i in layout.order)


def _deliver(
    library: Library, layout: Layout, array: DeviceArray, p: DeviceArray, destination: DeviceArray | None
) -> DeviceArray:
    """An array as the kernel wrote it, in the predictions' own shape and order; in `destination`, if that is given."""
    if destination is array or (destination is None and layout.order is None):
        return array
    place = library.empty(p.shape, array.code) if destination is None else destination
    if layout.order is None:
        library.copy(array, place)
    else:
        library.copy(array, place.reshape(layout.matched).transpose(layout.order))
    return place


def _check_out(library: Library, out: Any, p: DeviceArray, code: str, others: dict[str, Any]) -> DeviceArray:
    """The array that is to take the gradient, if it can."""
    if not arrays.on_cuda(out):
        raise TypeError(f"`out` must be an array on the device of `y_pred`, got {type(out).__name__}")
    found = library.read("out", library_of(out)[1])
    if found.shape != p.shape:
        raise ValueError(f"`out` must have the shape of `y_pred`, {p.shape}, got shape {found.shape}")
    if found.code != code:
        raise ValueError(f"`out` must have the gradient's dtype, {_name(code)}, got {_name(found.code)}")
    if not found.writable:
        raise ValueError("`out` must be writable, got a read-only array")
    itself = found.extent() == p.extent() and found.strides == p.strides
    if not itself and found.overlaps(p):
        raise ValueError("`out` must not overlap `y_pred`, unless it is `y_pred` itself")
    for name, other in others.items():
        if isinstance(other, DeviceArray) and found.overlaps(other):
            raise ValueError(f"`out` must not overlap `{name}`")
    return found


def _name(code: str) -> str:
    return next(name for name, known in storage.CODES.items() if known == code)


def _read(library: Library, argument: str, value: Any, compute: np.dtype[Any]) -> Any:
    """Weights or an incoming gradient: a number stays one, an array of the host's is copied to the device."""
    if value is None:
        return None
    if arrays.on_cuda(value):
        return library.read(argument, library_of(value)[1])
    array = arrays.to_array(argument, value, compute)
    return float(array) if array.ndim == 0 else library.upload(array.astype(compute), compute.str[1:])


def _read_mask(library: Library, mask: Any) -> DeviceArray | None:
    if mask is None:
        return None
    if arrays.on_cuda(mask):
        found = library.read("mask", library_of(mask)[1])
        if found.is_float:
            raise TypeError(f"`mask` must be boolean, got {_name(found.code)}; pass weights as `sample_weight`")
        return found
    array = arrays.to_array("mask", mask)
    if array.dtype.kind not in "bui":
        raise TypeError(f"`mask` must be boolean, got {array.dtype}; pass weights as `sample_weight`")
    return library.upload(array.astype(np.uint8), "u1")


def both(ignoring: DeviceArray, mask: DeviceArray) -> DeviceArray:
    """The samples that count by the loss's own rule and by the caller's."""
    mask = mask.reshape(arrays.match_shapes(mask.shape, ignoring.shape)[0])
    ignoring = ignoring.reshape(arrays.match_shapes(mask.shape, ignoring.shape)[1])
    return launch.samples_that_count(None, None, rows(mask, ignoring.shape), ignoring).reshape(ignoring.shape)


def rows(array: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
    """One number a row of values of that shape, to which the array broadcasts."""
    like_numpys: Any = array
    wide: Any = np.broadcast_to(like_numpys, shape)
    found: DeviceArray = wide.reshape(-1).contiguous()
    return found


def times_class_weights(
    class_weight: Any, y: DeviceArray, shape: tuple[int, ...], weight: Any, compute: np.dtype[Any], loss: str
) -> DeviceArray:
    """Each sample's weight by its class, times its own; `y` has class indices, or rows of one-hot targets."""
    if y.ndim == 2 and y.shape[1] != 1:
        y = _hot_classes(y, shape, compute, loss)
    pairs = dict(class_weight if isinstance(class_weight, Mapping) else enumerate(np.asarray(class_weight)))
    # The CPU's checks of keys and values, on no labels.
    reductions.class_weights(class_weight, np.empty(0), compute)
    library, code = y.library, compute.str[1:]
    keys = library.upload(np.array([float(key) for key in pairs], np.float64), "f8")
    numbers = library.upload(np.array(list(pairs.values()), compute), code)
    found = launch.class_weights(y.reshape(-1), keys, numbers).reshape(shape)
    if weight is None:
        return found
    if isinstance(weight, float):
        weight = library.upload(np.full(1, weight, compute), code)
    weight = weight.reshape(arrays.match_shapes(weight.shape, found.shape)[0])
    found = found.reshape(arrays.match_shapes(weight.shape, found.shape)[1])
    return launch.times(found, rows(weight.astype(code), found.shape)).reshape(found.shape)


NARROW = 64
"""Up to so many classes a thread looks through a row of one-hot targets."""


def _hot_classes(y: DeviceArray, shape: tuple[int, ...], compute: np.dtype[Any], loss: str) -> DeviceArray:
    """The class of each row of one-hot targets; NaN where it is none, which the next call tells."""
    classes = y.library.empty((y.shape[0],), "f8")
    memory, slot = labels.slot(loss, shape, "one-hot rows, as `class_weight` needs them")
    arguments = (y.contiguous().reshape(-1), classes, y.shape[1], memory, slot)
    launch.items(batch.hot_class, compute, y.shape[0], arguments, alone=y.shape[1] <= NARROW)
    return classes


def resolve(
    library: Library,
    shape: tuple[int, ...],
    name: str | None,
    weight: Any,
    mask: DeviceArray | None,
    upstream: Any,
    compute: np.dtype[Any],
) -> DeviceReduction:
    """What `fastloss.losses.reductions.resolve` works out, without looking at data."""
    code = compute.str[1:]
    number = weight if isinstance(weight, float) else None
    if number is not None:
        # Of the mean with the sum of weights as its divisor a number cancels, unless it is 0: the device decides.
        weight = library.upload(np.full((1,) * len(shape), number, compute), code) if _divides(name, shape) else None
    scale = 1.0 if number is None or weight is not None else number
    unaligned: Any = mask
    aligned: Any = reductions.align(shape, weight, unaligned)
    weight, mask, shape, outer = aligned
    if outer != shape:
        raise NotImplementedError(
            f"`sample_weight` of shape {weight.shape}, which makes more values of those of shape {shape}, has no CUDA "
            "form"
        )
    scalar = name not in ("none", None) or shape == ()
    flow = _read(library, "upstream", upstream, compute)
    flow_shape = () if flow is None or isinstance(flow, float) else flow.shape
    if flow is not None and flow_shape != (() if scalar else shape):
        raise ValueError(
            f"`upstream` must have the shape of the value, {() if scalar else shape}, got shape {flow_shape}"
        )
    count = math.prod(shape)
    weights = None if weight is None else rows(weight, shape).astype(code)
    valid = None if mask is None else rows(mask, shape)
    if valid is not None and valid.code != "u1":
        valid = launch.samples_that_count(None, None, valid, None)
    if not scalar:
        grad_weights = weights
        if flow is not None:
            flow = flow.reshape(-1).contiguous().astype(code)
            grad_weights = flow if weights is None else launch.times(weights, flow)
            if weights is None:
                weights = library.empty((count,), code)
                launch.fill(weights, 1.0)
        return DeviceReduction(weights, grad_weights, valid, scale, scale, None, shape)
    value_factor, share = scale, None
    if shape != () and name != "sum":
        if _divides(name, shape) and weight is not None:
            both = weight.shape if mask is None else np.broadcast_shapes(weight.shape, mask.shape)
            share = math.prod(both) / count if count else 1.0
        elif mask is not None:
            share = (mask.size / count if count else 1.0) if _divides(name, shape) else 1.0
        else:
            value_factor = scale / count if count else 0.0
    grad_factor = value_factor * (flow if isinstance(flow, float) else 1.0)
    flowing = flow if isinstance(flow, DeviceArray) else None
    factor = None
    if share is not None:
        counted = weights if _divides(name, shape) else None
        factor = launch.factors(library, compute, counted, valid, flowing, count, share)
    elif flowing is not None:
        factor = launch.factors(library, compute, None, None, flowing, count, 1.0)
    return DeviceReduction(weights, weights, valid, value_factor, grad_factor, factor, None)


def _divides(name: str | None, shape: tuple[int, ...]) -> bool:
    """Whether the sum of the weights is what a reduction divides by."""
    return name == "mean_with_sample_weight" and shape != ()
