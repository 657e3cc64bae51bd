"""Checking derivatives against differences."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np

from fastloss.losses import arrays
from fastloss.losses.base import Loss

Array = arrays.Array

_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Tried in turn for each element, since a kink may lie within a step; what no step agrees with is wrong."""

_SHOWN = 5


class GradientReport(NamedTuple):
    """What `check_gradient` found to agree.

    Attributes
    ----------
    gradient_error, hessian_error : float
        The largest difference of a derivative from its estimate, relative to the larger of the two or, where both are
        small, to the largest derivative of all. None of a Hessian that the loss does not have.
    checked : int
        How many elements were compared.
    """

    gradient_error: float
    hessian_error: float | None
    checked: int


def check_gradient(
    loss: Loss,
    y_true: Any = None,
    y_pred: Any = None,
    sample_weight: Any = None,
    *,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> GradientReport:
    """Compare a loss's gradient, and its diagonal Hessian where it has one, with differences, in float64.

    The gradient is compared with the fourth-order central difference of the value in each element of ``y_pred``, the
    Hessian with that of the gradient.

    Parameters
    ----------
    loss : Loss
        Of any kind. It is computed in float64, whatever its own dtype.
    y_true, y_pred : array_like, optional
        Targets and predictions in the loss's domain, a few dozen elements; by default random normal numbers of shape
        (4, 5), or, where targets are class indices, random classes. Both or neither.
    sample_weight : array_like, optional
        Weights, as for calling the loss.
    tolerance : float
        The relative error from which on a derivative counts as wrong.
    seed : int
        Of the random numbers.

    Returns
    -------
    GradientReport
        The largest errors, if nothing is wrong.

    Raises
    ------
    AssertionError
        If a derivative is wrong: how many are, and of the first ones the index, the derivative and its estimate.
    NotImplementedError
        If the loss defines no gradient.
    TypeError
        If `loss` is no loss.
    ValueError
        If the value is not finite, so that there is nothing to compare with, or only one of the arrays is given.

    Notes
    -----
    Where the loss has a kink exactly at an element, a difference is neither of the slopes, and the element is reported.

    Examples
    --------
    >>> import fastloss
    >>> report = fastloss.check_gradient(fastloss.losses.Huber(delta=0.5))
    >>> report.checked, report.gradient_error < 1e-8
    (20, True)
    """
    if not isinstance(loss, Loss):
        raise TypeError(f"`loss` must be a loss, got {loss!r}")
    if (y_true is None) != (y_pred is None):
        raise ValueError("`y_true` and `y_pred` must be given both, or neither")
    double = copy.deepcopy(loss)
    double._dtype = "float64"
    if y_pred is None:
        rng = np.random.default_rng(seed)
        y_pred = rng.normal(size=(4, 5))
        shape, kind = double._targets_like(y_pred)
        y_true = rng.normal(size=shape) if np.dtype(kind).kind == "f" else rng.integers(0, y_pred.shape[-1], shape)
    y = arrays.to_array("y_true", y_true)
    p = arrays.to_array("y_pred", y_pred).astype(np.float64)

    def value(at: Array) -> float:
        return float(np.sum(double(y, at, sample_weight)))

    def gradient(at: Array) -> Array:
        return np.asarray(double.value_and_grad(y, at, sample_weight)[1])

    if not np.isfinite(value(p)):
        raise ValueError(
            f"the loss is {value(p)} at these arrays: pass `y_true` and `y_pred` in the domain of the loss"
        )
    found = gradient(p)
    gradient_error = _compare("gradient", found, p, tolerance, lambda at, index: value(at))
    hessian_error = None
    if double.has_hessian:
        curvature = double.value_grad_hess(y, p, sample_weight)[2]
        hessian_error = _compare("Hessian", curvature, p, tolerance, lambda at, index: float(gradient(at)[index]))
    return GradientReport(gradient_error, hessian_error, p.size)


def _compare(what: str, found: Array, p: Array, tolerance: float, function: Any) -> float:
    """The largest relative error of derivatives; an `AssertionError` if one is above `tolerance`."""
    scale = float(np.max(np.abs(found[np.isfinite(found)]), initial=0.0))
    estimates, errors = np.empty(p.shape), np.empty(p.shape)
    errors.fill(np.inf)
    for index in np.ndindex(p.shape):
        for step in _STEPS:
            estimate = _difference(function, p, index, step)
            error = _error(float(found[index]), estimate, scale)
            if not error >= errors[index]:
                errors[index], estimates[index] = error, estimate
            if errors[index] <= tolerance:
                break
    wrong = np.argwhere(~(errors <= tolerance))
    if len(wrong):
        lines = [
            f"  at {tuple(index.tolist())}, prediction {p[tuple(index)]:.6g}: {what} {found[tuple(index)]:.10g}, "
            f"by differences {estimates[tuple(index)]:.8g}"
            for index in wrong[:_SHOWN]
        ]
        more = [f"  and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise AssertionError("\n".join([f"the {what} is wrong in {len(wrong)} of {p.size} elements:", *lines, *more]))
    return float(errors.max(initial=0.0))


def _difference(function: Any, p: Array, index: tuple[int, ...], step: float) -> float:
    """The fourth-order central difference in one element."""
    values = []
    for offset in (-2, -1, 1, 2):
        at = p.copy()
        at[index] += offset * step
        values.append(function(at, index))
    a, b, c, d = values
    return float((a - 8 * b + 8 * c - d) / (12 * step))


def _error(found: float, estimate: float, scale: float) -> float:
    """Relative to the larger of the two, or to `scale` where both are far smaller; NaN where one of them is."""
    size = max(abs(found), abs(estimate), 1e-3 * scale)
    return abs(found - estimate) / size if size else 0.0
