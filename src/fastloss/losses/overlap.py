"""Losses of the overlap of two sets."""

from __future__ import annotations

from typing import Any

from fastloss import kernels
from fastloss.kernels.definition import Kernel
from fastloss.losses import layout, options
from fastloss.losses.arrays import Array
from fastloss.losses.base import Option, RowLoss, per_sample


class OverlapLoss(RowLoss):
    """One minus a measure of overlap, summed over `axis`."""

    weights_spread = True

    axis = Option(options.axes)

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, self.axis, broadcast=False, samples=False, flat=False)


class Dice(OverlapLoss):
    """Dice loss, ``1 - 2 * sum(y_true * y_pred) / (sum(y_true) + sum(y_pred) + ε)`` over `axis`.

    With D the denominator and I the sum of products, the gradient is ``-2 * y_true / D + 2 * I / D**2``.

    Parameters
    ----------
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    axis : int, tuple of int or None
        The axes of a set; None for all, one loss for the whole batch.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Notes
    -----
    ``y_true`` and ``y_pred`` have one shape, the losses that shape without `axis`. Range [0, 1] for memberships in [0,
    1]. A loss of the whole batch is multiplied by a scalar weight under every reduction; several weights multiply it
    each, and are then reduced.

    References
    ----------
    ``keras.losses.Dice``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.Dice()
    >>> value, grad = loss.value_and_grad([[1.0, 0.0]], [[0.5, 0.5]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.500000 [[-0.75  0.25]]
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "dice",
        axis: int | tuple[int, ...] | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.axis = axis

    def _kernel(self) -> Kernel:
        return kernels.dice


class Tversky(OverlapLoss):
    """Tversky loss, ``1 - I / (I + alpha * FP + beta * FN + ε)`` over `axis`.

    I, FP and FN are the sums of ``y_true * y_pred``, ``(1 - y_true) * y_pred`` and ``y_true * (1 - y_pred)``: `alpha`
    weighs false positives. With D the denominator, the gradient is ``-y_true / D + I / D**2 * (y_true * (1 - alpha -
    beta) + alpha)``.

    Parameters
    ----------
    alpha : float
        Weight of false positives.
    beta : float
        Weight of false negatives.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    axis : int, tuple of int or None
        The axes of a set; None for all, one loss for the whole batch.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Notes
    -----
    ``y_true`` and ``y_pred`` have one shape, the losses that shape without `axis`. Range [0, 1] for memberships in [0,
    1]. A loss of the whole batch is multiplied by a scalar weight under every reduction; several weights multiply it
    each, and are then reduced.

    References
    ----------
    ``keras.losses.Tversky`` (from 3.16, where alpha weighs false positives).

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.Tversky()
    >>> value, grad = loss.value_and_grad([[1.0, 0.0]], [[0.5, 0.5]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.500000 [[-0.75  0.25]]
    """

    alpha = Option(options.number)
    beta = Option(options.number)

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "tversky",
        axis: int | tuple[int, ...] | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.alpha = alpha
        self.beta = beta
        self.axis = axis

    def _kernel(self) -> Kernel:
        return kernels.tversky


def dice(y_true: Any, y_pred: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """Per-sample losses of `Dice`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Memberships, of one shape.
    axis
        As for `Dice`.

    Returns
    -------
    numpy.ndarray
        Of that shape without `axis`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.dice([[1.0, 0.0]], [[0.5, 0.5]]).round(6))
    0.5
    """
    return per_sample(Dice, axis=axis)(y_true, y_pred)


def tversky(
    y_true: Any, y_pred: Any, alpha: float = 0.5, beta: float = 0.5, axis: int | tuple[int, ...] | None = None
) -> Any:
    """Per-sample losses of `Tversky`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Memberships, of one shape.
    alpha, beta, axis
        As for `Tversky`.

    Returns
    -------
    numpy.ndarray
        Of that shape without `axis`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.tversky([[1.0, 0.0]], [[0.5, 0.5]]).round(6))
    0.5
    """
    return per_sample(Tversky, alpha=alpha, beta=beta, axis=axis)(y_true, y_pred)
