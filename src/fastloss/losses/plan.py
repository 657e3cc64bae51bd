"""What a loss remembers of a call: everything but the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastloss.engine import storage
from fastloss.engine.launch import Launch
from fastloss.engine.variant import Variant
from fastloss.kernels.definition import Kernel
from fastloss.losses.arrays import Array
from fastloss.losses.layout import Layout
from fastloss.losses.reductions import Reduction

if TYPE_CHECKING:
    from fastloss.losses.base import KernelLoss

VALUE, GRADIENT, HESSIAN = 0, 1, 2

_WALKABLE = 0x101  # NumPy's flags for C-contiguous and aligned memory, in one look
_WRITABLE = 0x501


def variant_of(
    kernel: Kernel,
    outputs: int,
    codes: tuple[str, str, str],
    compute: str,
    params: tuple[float, ...],
    *,
    index: bool,
    weighted: bool,
    masked: bool,
    values: bool,
) -> Variant:
    """The variant of a loss's kernel that a call needs; `codes` are those of targets, predictions and gradient."""
    return Variant(
        kernel,
        compute,
        *codes,
        outputs,
        weighted=weighted,
        masked=masked,
        values=values,
        index=index,
        smooth=kernel.shape == "rowwise" and params[0] > 0,
        vector=kernel.shape == "pointwise" and len(params) > len(kernel.params),
    )


class Direct(NamedTuple):
    """A kernel, the shapes that it takes targets and predictions in, its other arguments, and the value's type."""

    kernel: Callable[..., tuple[float, int]]
    y_shape: tuple[int, ...]
    p_shape: tuple[int, ...]
    arguments: tuple[Any, ...]
    type: Any


class Sweep(NamedTuple):
    """A kernel, what it multiplies losses with, and data that it takes so many rows of at a time.

    Attributes
    ----------
    launch, scale, y, p, rows
        As `fastloss.engine.sketch.Counts.sweep` takes them.
    inner : tuple of int
        The shape of the losses of each sample.
    dtype : numpy.dtype
        Of the losses.
    """

    launch: Launch
    scale: float
    y: Array
    p: Array
    rows: int
    inner: tuple[int, ...]
    dtype: np.dtype[Any]


class Plan:
    """A kernel bound to shapes, dtypes and a reduction.

    Parameters
    ----------
    loss : KernelLoss
        Whose kernel is run.
    outputs : int
        `VALUE`, `GRADIENT` or `HESSIAN`.
    layout, reduction : Layout, Reduction
        Of the first call.
    dtypes : tuple of numpy.dtype
        Of targets, predictions and gradient in memory.
    compute, result : numpy.dtype
        Of the arithmetic, and of the value.

    Attributes
    ----------
    launch : Launch
        The kernel, for a gradient in memory of its own.
    gradient : numpy.dtype
        Of gradient and Hessian.
    telling : bool
        The value is one number, and finite only if gradient and Hessian are (`fastloss.numerics`).
    """

    __slots__ = (
        "_codes",
        "_compute",
        "_empty",
        "_grad_scale",
        "_in_place",
        "_mean",
        "_outputs",
        "_p_shape",
        "_result",
        "_samples_shape",
        "_type",
        "_value_scale",
        "_values_shape",
        "_y_shape",
        "gradient",
        "launch",
        "telling",
    )

    def __init__(
        self,
        loss: KernelLoss,
        outputs: int,
        layout: Layout,
        reduction: Reduction,
        dtypes: tuple[np.dtype[Any], np.dtype[Any], np.dtype[Any]],
        compute: np.dtype[Any],
        result: np.dtype[Any],
    ) -> None:
        samples, elements = layout.p.shape
        codes = [storage.code(dtype) or "" for dtype in dtypes]
        kernel = loss._kernel()
        params = loss._params(elements)
        variant = variant_of(
            kernel,
            outputs,
            (codes[0], codes[1], codes[2] if outputs else compute.str[1:]),
            compute.str[1:],
            params,
            index=layout.index,
            weighted=reduction.weights is not None,
            masked=reduction.mask is not None,
            values=reduction.shape is not None,
        )
        self.launch = Launch(variant, samples, elements, params)
        self._in_place: Launch | None = None
        self._mean = loss.per_sample == "mean"
        share = 1.0 / elements if self._mean and elements else 1.0
        self._value_scale = share * reduction.value_factor
        self._grad_scale = share * reduction.grad_factor
        self._outputs, self._empty = outputs, loss._empty
        self._compute, self._result, self._type, self.gradient = compute, result, result.type, dtypes[2]
        self._samples_shape = layout.shape
        self._values_shape = reduction.shape if reduction.spread is None else layout.shape
        self._y_shape, self._p_shape = layout.y.shape, (samples, elements)
        sure = loss.finite_slopes and dtypes[2].itemsize > 2 and reduction.grad_factor == reduction.value_factor
        self.telling = reduction.shape is None and (not outputs or sure)
        self._codes = codes if any(storage.is_viewed(c) for c in codes) else None

    def serves(self, layout: Layout, y: Array, p: Array, weight: Array | None, reduction: Reduction) -> bool:
        """Whether arrays of the same shapes and dtypes may skip all checks but those of `takes`.

        They may if nothing in the call depended on their values, and they reached the kernel without a copy.
        """
        weights_pass = weight is None or (
            reduction.weights is not None
            and reduction.weights is reduction.grad_weights
            and np.may_share_memory(reduction.weights, weight)
        )
        return (
            layout.order is None
            and layout.valid is None
            and not layout.warned
            and p.size > 0
            and layout.y.size == y.size
            and not reduction.data_dependent
            and weights_pass
        )

    def takes(self, y: Array, p: Array, weight: Array | None, out: Any) -> bool:
        """Whether these arrays lie in memory as the kernel needs them; their shapes and dtypes are known to fit."""
        flags = y.flags.num & p.flags.num
        if weight is not None:
            flags &= weight.flags.num
        if flags & _WALKABLE != _WALKABLE:
            return False
        return out is None or (
            type(out) is np.ndarray
            and out.shape == p.shape
            and out.dtype == self.gradient
            and out.flags.num & _WRITABLE == _WRITABLE
            and (out is p or not np.may_share_memory(out, p))
            and not np.may_share_memory(out, y)
            and (weight is None or not np.may_share_memory(out, weight))
        )

    def run(
        self, y: Array, p: Array, weight: Array | None, out: Array | None, n_threads: int | None
    ) -> tuple[Any, Array | None, Array | None]:
        """Value, gradient and Hessian of arrays that the plan `takes`."""
        g = h = None
        if self._outputs:
            g = self._empty(p.shape, self.gradient) if out is None else out
            if self._outputs == HESSIAN:
                h = self._empty(p.shape, self.gradient)
        if weight is not None:
            weight = weight.reshape(-1)
        return self.execute(y, p, weight, weight, None, g, h, n_threads, out is p), g, h

    def execute(
        self,
        y: Array,
        p: Array,
        weights: Array | None,
        grad_weights: Array | None,
        mask: Array | None,
        g: Array | None,
        h: Array | None,
        n_threads: int | None,
        in_place: bool,
    ) -> Any:
        """Run the kernel on contiguous arrays of the right sizes, whatever their ranks, and return the value.

        With `in_place` the gradient overwrites `p`, and `g` is not used.
        """
        if not p.size:
            return self._nothing()
        launch = self.launch
        if in_place:
            launch = self._launch_in_place()
            g = None
        if y.shape != self._y_shape:
            y = y.reshape(self._y_shape)
        if p.shape != self._p_shape:
            p = p.reshape(self._p_shape)
            g = None if g is None else g.reshape(self._p_shape)
            h = None if h is None else h.reshape(self._p_shape)
        labels = y
        if self._codes is not None:
            y_code, p_code, g_code = self._codes
            y, p = storage.view(y, y_code), storage.view(p, p_code)
            g = None if g is None else storage.view(g, g_code)
            h = None if h is None else storage.view(h, g_code)
        values = None if self._values_shape is None else np.empty(self._p_shape[0], self._compute)
        total, bad = launch(
            y, p, weights, grad_weights, mask, g, h, values, self._value_scale, self._grad_scale, n_threads
        )
        if bad >= 0:
            raise self._bad_label(labels, bad)
        if values is None:
            return self._type(total)
        return values.astype(self._result, copy=False).reshape(self._values_shape)[()]

    def sweep(self, y: Array, p: Array) -> Sweep | None:
        """The losses of more samples, as many at a time as the plan has; None where they are not the kernel's alone."""
        if self._values_shape is None or self._result != self._compute or self.launch.variant.form == "long":
            return None
        y, p = y.reshape(-1, *self._y_shape[1:]), p.reshape(-1, *self._p_shape[1:])
        if self._codes is not None:
            y, p = storage.view(y, self._codes[0]), storage.view(p, self._codes[1])
        return Sweep(self.launch, self._value_scale, y, p, self._p_shape[0], self._values_shape[1:], self._compute)

    def direct(self, g: Array, n_threads: int | None) -> Direct | None:
        """The serial kernel, for this gradient; None where a call has more to do: several threads, values, views."""
        launch = self.launch
        if self._values_shape is not None or self._codes is not None or launch.threads(n_threads) > 1:
            return None
        g = g.reshape(self._p_shape)
        arguments = (None, None, None, g, None, None, launch.params, launch.columns, launch.rows_per_unit)
        scales = (self._value_scale, self._grad_scale)
        return Direct(launch.serial(), self._y_shape, self._p_shape, (*arguments, *scales), self._type)

    def _launch_in_place(self) -> Launch:
        if self._in_place is None:
            launch = self.launch
            rows, columns = self._p_shape
            self._in_place = Launch(replace(launch.variant, in_place=True), rows, columns, launch.params.tolist())
        return self._in_place

    def _nothing(self) -> Any:
        """The value where there is no element: of no sample 0, of samples without elements their mean, NaN."""
        value = self._type(np.nan if self._p_shape[0] and self._mean else 0)
        return value if self._values_shape is None else np.full(self._values_shape, value)

    def _bad_label(self, labels: Array, first: int) -> ValueError:
        place = ", ".join(str(int(i)) for i in np.unravel_index(first, self._samples_shape))
        return ValueError(
            f"`y_true` must hold class indices, integers from 0 to {self._p_shape[1] - 1}, "
            f"but y_true[{place}] is {labels[first]}"
        )
