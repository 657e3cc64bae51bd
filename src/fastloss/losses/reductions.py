"""From per-sample losses to the value: weights, masks, class weights and reductions.

A kernel knows one weight and one mask bit a row. `resolve` turns everything a caller may say into those, together with
the factors of value and gradient, before any loss is computed; so a gradient is scaled as it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastloss.losses.arrays import Array, match_ranks, match_shapes, to_array

REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none", None)


def check_reduction(reduction: Any, accepts_auto: bool = False) -> str | None:
    """`reduction` if it is one; ``"auto"``, where a loss accepts that, as what it stands for."""
    known = (*REDUCTIONS, "auto") if accepts_auto else REDUCTIONS
    if (reduction is not None and not isinstance(reduction, str)) or reduction not in known:
        raise ValueError(
            f"Invalid value for argument `reduction`. Expected one of {known}. Received: reduction={reduction!r}"
        )
    return "sum_over_batch_size" if reduction == "auto" else reduction


@dataclass(frozen=True)
class Reduction:
    """What is to be done with the per-sample losses of one call.

    Attributes
    ----------
    weights, grad_weights : numpy.ndarray or None
        One number a row for the value and for the gradient, flat, in the compute dtype; None where a factor says all.
    mask : numpy.ndarray or None
        Flat, uint8: rows with 0 are not computed.
    value_factor, grad_factor : float
        Multiply the weighted sum of the losses (or each of them, unreduced), and the gradient.
    shape : tuple of int or None
        The shape of an unreduced result; None for a scalar.
    spread : numpy.ndarray or None
        Weights that give an unreduced result more values than there are samples: multiplied afterwards.
    empty : bool
        The divisor is 0: the value is 0, whatever the losses, and so is the gradient.
    data_dependent : bool
        The factors depend on the values of weights or mask, not on their shapes alone.
    """

    weights: Array | None
    grad_weights: Array | None
    mask: Array | None
    value_factor: float
    grad_factor: float
    shape: tuple[int, ...] | None
    spread: Array | None = None
    empty: bool = False
    data_dependent: bool = False

    def flow(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The gradient flowing into each of the losses, which have this shape."""
        flow = np.full(math.prod(shape), 0.0 if self.empty else self.grad_factor, dtype)
        if self.grad_weights is not None:
            flow *= self.grad_weights
        if self.mask is not None:
            flow[self.mask == 0] = 0
        return flow.reshape(shape)


def resolve(
    shape: tuple[int, ...],
    reduction: str | None,
    sample_weight: Array | None,
    mask: Array | None,
    upstream: Any,
    dtype: np.dtype[Any],
) -> Reduction:
    """Work out a call's `Reduction`.

    Parameters
    ----------
    shape : tuple of int
        Of the per-sample losses.
    reduction : str or None
        A checked name.
    sample_weight, mask : numpy.ndarray or None
        Weights and a boolean mask, of any shapes that the rank rule and broadcasting bring together with `shape`.
    upstream : array_like or None
        The gradient flowing into the value: a scalar for a scalar value, else of the value's shape.
    dtype : numpy.dtype
        Compute dtype.
    """
    weight = None if sample_weight is None else sample_weight.astype(dtype, copy=False)
    weight, mask, shape, outer = align(shape, weight, mask)
    factor, empty = _factor(reduction, weight, mask, outer)
    varies = mask is not None or (weight is not None and reduction == "mean_with_sample_weight")
    scalar = reduction not in ("none", None) or outer == ()
    incoming = _check_upstream(upstream, () if scalar else outer, dtype)
    row_mask = None if mask is None else np.broadcast_to(mask, shape).ravel().view(np.uint8)
    if mask is not None and weight is not None and weight.size > 1:
        weight = np.where(mask, weight, 0).astype(dtype, copy=False)  # a weight behind the mask may be NaN
    if weight is not None and weight.size == 1:
        factor, weight = factor * float(weight.reshape(-1)[0]), None
    if scalar:
        rows = None if weight is None else _collect(weight, outer, shape)
        grad_factor = factor if incoming is None else factor * float(incoming)
        return Reduction(rows, rows, row_mask, factor, grad_factor, None, None, empty, varies)
    grown = outer != shape
    rows = None if weight is None or grown else _collect(weight, outer, shape)
    spread = np.broadcast_to(np.ones((), dtype) if weight is None else weight, outer) if grown else None
    if incoming is None and not grown:
        grad_rows = rows
    else:
        flow = np.broadcast_to(np.ones((), dtype) if weight is None else weight, outer)
        grad_rows = _collect(flow if incoming is None else flow * incoming, outer, shape)
    if rows is None and grad_rows is not None:
        rows = np.ones(math.prod(shape), dtype)
    return Reduction(rows, grad_rows, row_mask, factor, factor, outer, spread, False, varies)


def align(
    shape: tuple[int, ...], weight: Array | None, mask: Array | None
) -> tuple[Array | None, Array | None, tuple[int, ...], tuple[int, ...]]:
    """Weights and mask of the values' rank, the values' shape as the rank rule leaves it, and the result's shape."""
    if weight is not None and mask is not None:
        mask, weight = match_ranks(mask, weight)
    larger = mask if weight is None or (mask is not None and mask.ndim > weight.ndim) else weight
    if larger is not None:
        shape, _ = match_shapes(shape, larger.shape)
    if mask is not None:
        mask = mask.reshape(match_shapes(shape, mask.shape)[1])
        _check_fits("mask", mask, shape)
        if any(n not in (1, m) for n, m in zip(mask.shape[::-1], shape[::-1], strict=False)):
            raise ValueError(f"`mask` must have the shape of the per-sample losses, {shape}, got shape {mask.shape}")
    if weight is not None:
        weight = weight.reshape(match_shapes(shape, weight.shape)[1])
    outer = shape
    if weight is not None:
        _check_fits("sample_weight", weight, shape)
        try:
            outer = np.broadcast_shapes(shape, weight.shape)
        except ValueError:
            raise ValueError(
                f"`sample_weight` must broadcast to the shape of the per-sample losses, {shape}, "
                f"got shape {weight.shape}"
            ) from None
    return weight, mask, shape, outer


def _check_fits(argument: str, array: Array, shape: tuple[int, ...]) -> None:
    """Refuse what broadcasting would take but nobody means."""
    if array.ndim > len(shape):
        raise ValueError(
            f"`{argument}` must broadcast to the shape of the per-sample losses, {shape}; "
            f"its shape {array.shape} has a higher rank"
        )
    if 0 < array.ndim < len(shape) and array.size > 1 and array.shape == shape[: array.ndim]:
        raise ValueError(
            f"`{argument}` of shape {array.shape} would be aligned with the last dimensions of the per-sample losses "
            f"of shape {shape}; to give each sample one, pass shape {array.shape + (1,) * (len(shape) - array.ndim)}"
        )


def _factor(
    reduction: str | None, weight: Array | None, mask: Array | None, outer: tuple[int, ...]
) -> tuple[float, bool]:
    """What the weighted sum is multiplied with, and whether the divisor behind it is 0."""
    if outer == () or reduction in ("sum", "none", None):
        return 1.0, False
    divisor: float = math.prod(outer)
    if reduction == "mean_with_sample_weight":
        if weight is not None:
            kept = weight if mask is None else np.where(mask, weight, 0)
            divisor = float(np.sum(kept, dtype=np.float64))
        elif mask is not None:
            divisor = float(np.count_nonzero(mask))
    elif mask is not None:
        # As many as remain of the values, also where the mask is broadcast over them.
        divisor = np.count_nonzero(mask) * (divisor / mask.size) if mask.size else 0.0
    return (1.0 / divisor, False) if divisor else (0.0, True)


def _collect(weight: Array, outer: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Weights of the result's shape, added up to one a sample where broadcasting had multiplied the samples."""
    full = np.broadcast_to(weight, outer)
    if outer != shape:
        extra = len(outer) - len(shape)
        axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1 and outer[i + extra] != 1)
        full = full.sum(axis=axes, keepdims=False).reshape(shape)
    return np.ascontiguousarray(full).reshape(-1)


def _check_upstream(upstream: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array | None:
    if upstream is None:
        return None
    incoming = to_array("upstream", upstream, dtype)
    if incoming.shape != shape:
        raise ValueError(f"`upstream` must have the shape of the value, {shape}, got shape {incoming.shape}")
    return incoming.astype(dtype, copy=False)


def reduce(losses: Array, reduction: Reduction) -> Any:
    """The value of per-sample losses that are computed already, in their dtype."""
    kind = losses.dtype.type
    if reduction.empty:
        return kind(0)
    flat = losses.reshape(-1)
    if reduction.mask is not None:
        flat = np.where(reduction.mask, flat, kind(0))
    # Infinite and missing losses are results, as they are in compiled code: no warning says so.
    with np.errstate(invalid="ignore", over="ignore"):
        if reduction.weights is not None:
            flat = flat * reduction.weights
        if reduction.shape is None:
            return kind(np.sum(flat, dtype=np.float64) * reduction.value_factor)
        result = flat.reshape(reduction.shape if reduction.spread is None else losses.shape) * kind(
            reduction.value_factor
        )
        return result if reduction.spread is None else result * reduction.spread


def class_weights(class_weight: Any, labels: Array, dtype: np.dtype[Any]) -> Array:
    """Each sample's weight by its class.

    Parameters
    ----------
    class_weight : dict or array_like
        Weight by class; a class that is missing weighs 1.
    labels : numpy.ndarray
        One class a sample.
    dtype : numpy.dtype
        Of the result.

    Raises
    ------
    TypeError, ValueError
        If `class_weight` is neither a mapping from integers to numbers nor a vector of numbers.
    """
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(class_weight, Mapping):
        pairs = class_weight.items()
    else:
        table = to_array("class_weight", class_weight, dtype)
        if table.ndim != 1:
            raise ValueError(
                f"`class_weight` must be a dict or a vector with one weight a class, got shape {table.shape}"
            )
        pairs = enumerate(table)
    result = np.ones(labels.shape, dtype)
    for key, weight in pairs:
        # A remainder of NaN and infinity is NaN.
        if not isinstance(key, (int, float, np.integer, np.floating)) or key % 1 != 0:
            raise TypeError(f"`class_weight` must have integer classes as its keys, got {key!r}")
        if weight is None or np.ndim(weight) != 0 or not np.isreal(weight):
            raise TypeError(f"`class_weight` must have numbers as its values, got {weight!r} for class {key}")
        result[labels == key] = weight
    return result
