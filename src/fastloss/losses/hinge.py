"""Hinge losses."""

from __future__ import annotations

from typing import Any

from fastloss import kernels
from fastloss.kernels.definition import Kernel
from fastloss.losses import layout
from fastloss.losses.arrays import Array
from fastloss.losses.base import RowLoss, per_sample
from fastloss.losses.regression import RegressionLoss


class SignLoss(RegressionLoss):
    """A loss of labels -1 and 1."""

    def _params(self, elements: int) -> tuple[float, ...]:
        return 1.0, 0.0  # labels as they are; the driver sees whether they are all 0 or 1


class Hinge(SignLoss):
    """Hinge loss, ``mean(max(1 - y_true * y_pred, 0), axis=-1)``.

    Targets are -1 or 1. If *every* element of ``y_true`` is 0 or 1, each t is read as ``2 * t - 1``; masked ones take
    part in that rule. The gradient of an element is ``-y_true`` where its loss is positive, else 0.

    Parameters
    ----------
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Notes
    -----
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...). ``y_true`` may
    broadcast to ``y_pred``. Range [0, ∞).

    References
    ----------
    ``keras.losses.Hinge``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.Hinge()
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[0.5, 2.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.750000 [[0.5 0. ]]
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "hinge",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.hinge


class SquaredHinge(SignLoss):
    """Squared hinge loss, ``mean(max(1 - y_true * y_pred, 0)**2, axis=-1)``.

    Targets are -1 or 1. If *every* element of ``y_true`` is 0 or 1, each t is read as ``2 * t - 1``; masked ones take
    part in that rule. The gradient of an element is ``-2 * y_true * max(1 - y_true * y_pred, 0)``.

    Parameters
    ----------
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Notes
    -----
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...). ``y_true`` may
    broadcast to ``y_pred``. Range [0, ∞).

    References
    ----------
    ``keras.losses.SquaredHinge``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.SquaredHinge()
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[0.5, 2.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    1.125000 [[ 1.5 -0. ]]
    """

    finite_slopes = False

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "squared_hinge",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.squared_hinge


class CategoricalHinge(RowLoss):
    """Categorical hinge loss, ``max(0, max((1 - y_true) * y_pred) - sum(y_true * y_pred) + 1)`` over the last axis.

    Where the loss is positive the gradient is ``-y_true``, with ``1 - y_true`` added at the maximum: the first one, if
    several are equal.

    Parameters
    ----------
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Notes
    -----
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...). ``y_true`` may
    broadcast to ``y_pred``. Range [0, ∞).

    References
    ----------
    ``keras.losses.CategoricalHinge``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.CategoricalHinge()
    >>> value, grad = loss.value_and_grad([[0.0, 1.0, 0.0]], [[0.5, 0.2, 0.1]])
    >>> print(f"{value:.6f}", grad.round(6))
    1.300000 [[ 1. -1. -0.]]
    """

    finite_slopes = False

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "categorical_hinge",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.categorical_hinge

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, -1, broadcast=True, samples=False, flat=False)


def hinge(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `Hinge`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.

    Returns
    -------
    numpy.ndarray
        Of shape (...).

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.hinge([[0.0, 1.0]], [[0.5, 2.0]]).round(6))
    [0.75]
    """
    return per_sample(Hinge)(y_true, y_pred)


def squared_hinge(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `SquaredHinge`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.

    Returns
    -------
    numpy.ndarray
        Of shape (...).

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.squared_hinge([[0.0, 1.0]], [[0.5, 2.0]]).round(6))
    [1.125]
    """
    return per_sample(SquaredHinge)(y_true, y_pred)


def categorical_hinge(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `CategoricalHinge`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.

    Returns
    -------
    numpy.ndarray
        Of shape (...).

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.categorical_hinge([[0.0, 1.0]], [[0.5, 0.25]]).round(6))
    [1.25]
    """
    return per_sample(CategoricalHinge)(y_true, y_pred)
