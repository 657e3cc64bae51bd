"""Finding values and gradients that are not finite: what ``check_numerics`` does after a call.

A kernel's value is a float64 sum over everything that was computed, so it is finite only if every loss in it was, and
one look at one number suffices. What a look at the value cannot see is a gradient that is not finite where the losses
are. That happens

* where the gradient is stored in half precision, and overflows there,
* where the caller's `upstream` is a factor of it,
* in losses whose slope has a pole or overflows where their value is finite: those that do not set `finite_slopes`,
  among them all that are not compiled,
* where targets that should be probabilities are beyond 1e9 in float32, or numbers that should be
  probabilities add up to less than 1e-30 in a row.

In all but the last, the gradient is looked at too, which costs a pass over it. Which samples are to blame is found out
only when there is one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import settings
from fastloss.losses import arrays

if TYPE_CHECKING:
    from fastloss.losses.arrays import Array
    from fastloss.losses.base import Loss

SHOWN = 5
"""How many places a message names."""


class NumericsError(FloatingPointError):
    """A loss or its gradient is not finite, and ``check_numerics`` is ``"raise"``.

    Attributes
    ----------
    samples : list of tuple of int
        Indices of the first samples whose loss or gradient is not finite, at most 5; empty where the loss is one of
        the whole batch.
    """

    def __init__(self, message: str, samples: list[tuple[int, ...]] | None = None) -> None:
        super().__init__(message)
        self.samples = samples or []


class NumericsWarning(RuntimeWarning):
    """A loss or its gradient is not finite, and ``check_numerics`` is ``"warn"``."""


def all_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(np.isfinite(array).all())


def check(
    loss: Loss,
    found: tuple[Any, Array | None, Array | None],
    y_true: Any,
    y_pred: Any,
    sample_weight: Any = None,
    mask: Any = None,
    class_weight: Any = None,
    upstream: Any = None,
    extras: dict[str, Any] | None = None,
) -> None:
    """Raise or warn if the results of a call are not finite, as far as the module's text says."""
    action = loss.check_numerics or settings.get_check_numerics()
    if action in (None, "ignore"):
        return
    gradient = found[1]
    sure = gradient is None or (loss.finite_slopes and upstream is None and gradient.itemsize > 2)
    if not all(result is None or all_finite(result) for result in (found[:1] if sure else found)):
        report(action, loss, found, y_true, y_pred, sample_weight, mask, class_weight, extras or {})


def report(
    action: str | None,
    loss: Loss,
    found: tuple[Any, Array | None, Array | None],
    y_true: Any,
    y_pred: Any,
    sample_weight: Any,
    mask: Any,
    class_weight: Any,
    extras: dict[str, Any],
) -> None:
    """Do what is to be done about results that are not finite, naming the first samples."""
    value, gradient, hessian = found
    results = {"value": value, "gradient": gradient, "Hessian": hessian}
    names = [name for name, result in results.items() if result is not None and not all_finite(np.asarray(result))]
    y, p = arrays.to_array("y_true", y_true), arrays.to_array("y_pred", y_pred)
    valid = None if loss.coupled else arrays.mask_of(mask, y_pred)
    axis = loss._options.get("axis", -1)
    if gradient is not None and np.may_share_memory(gradient, p):
        bad = ~np.isfinite(gradient)
        causes = ["`out` has overwritten `y_pred`"]
    else:
        bad = _bad_samples(loss, (y_true, y_pred, sample_weight), mask, class_weight, extras, gradient)
        causes = [f"`y_pred` has {text}" for text in describe(p, counted(valid, p.shape, axis))]
    causes += [f"`y_true` has {text}" for text in describe(y, counted(valid, y.shape, axis))]
    if sample_weight is not None:
        weight = arrays.to_array("sample_weight", sample_weight)
        causes += [f"`sample_weight` has {text}" for text in describe(weight)]
    samples = first(bad) if bad.shape else []
    if samples:
        causes.insert(0, f"{np.count_nonzero(bad)} of {bad.size} samples, first {shown(samples)}")
    else:
        causes.append("no sample alone is to blame")
    message = f"{' and '.join(names)} of {loss.name} not finite: {'; '.join(causes)} (fastloss.diagnose says more)"
    if action == "raise":
        raise NumericsError(message, samples)
    warnings.warn(message, NumericsWarning, stacklevel=settings.outside())


def _bad_samples(
    loss: Loss, inputs: tuple[Any, ...], mask: Any, class_weight: Any, extras: dict[str, Any], gradient: Array | None
) -> Array:
    """Which samples' losses are not finite, or, if all are, which samples' gradients."""
    unreduced = copy.copy(loss)
    unreduced._reduction, unreduced._check_numerics = "none", "ignore"
    losses = np.asarray(unreduced(*inputs, mask=mask, class_weight=class_weight, **extras))
    bad: Array = ~np.isfinite(losses)
    if gradient is None or bad.any() or not losses.shape or gradient.shape[: losses.ndim] != losses.shape:
        return bad
    return np.asarray((~np.isfinite(gradient)).any(axis=tuple(range(losses.ndim, gradient.ndim))))


def not_finite(array: Array) -> Iterator[tuple[str, Array]]:
    """Names and places of what is not finite in an array, as far as there is any."""
    for name, bad in (("NaN", np.isnan(array)), ("infinity", np.isinf(array))):
        if bad.any():
            yield name, bad


def describe(array: Array, among: Array | None = None) -> Iterator[str]:
    """The same in words, of those elements that are `among` those looked at."""
    for name, bad in not_finite(array):
        found = bad if among is None else bad & among
        if found.any():
            yield f"{np.count_nonzero(found)} {name} of {found.size}, first at {shown(first(found))}"


def counted(mask: Array | None, shape: tuple[int, ...], axis: Any) -> Array | None:
    """Which elements of an array a mask leaves in, whose samples have their elements on an axis, or several.

    None if the mask has not a shape that losses of such an array can have.
    """
    if mask is None:
        return np.ones(shape, bool)
    rank = len(shape)
    wanted = range(rank) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    inner = {i % rank for i in wanted} if rank else set()
    if mask.ndim and mask.shape == (*(n for i, n in enumerate(shape) if i not in inner), 1):
        mask = mask[..., 0]
    while mask.ndim > rank and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if len(inner) == rank - mask.ndim:
        mask = np.expand_dims(mask, tuple(inner))
    try:
        return np.broadcast_to(mask.reshape(mask.shape + (1,) * (rank - mask.ndim)), shape)
    except ValueError:
        return None


def first(bad: Array, count: int = SHOWN) -> list[tuple[int, ...]]:
    """The indices of the first places where a boolean array is True."""
    return [tuple(int(i) for i in np.unravel_index(k, bad.shape)) for k in np.flatnonzero(bad)[:count]]


def shown(places: list[tuple[int, ...]]) -> str:
    """Indices as text, those of vectors as plain numbers."""
    return ", ".join(str(place[0]) if len(place) == 1 else str(place) for place in places)
