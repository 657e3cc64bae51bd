"""Losses of counts and of distributions."""

from __future__ import annotations

from typing import Any

from fastloss import kernels
from fastloss.kernels.definition import Kernel
from fastloss.losses.base import per_sample
from fastloss.losses.regression import RegressionLoss


class Poisson(RegressionLoss):
    """Poisson loss, ``mean(y_pred - y_true * log(y_pred + ε), axis=-1)``.

    The negative log likelihood of counts y_true of mean y_pred, less its constant. The gradient of an element is
    ``1 - y_true / (y_pred + ε)``. Nothing is clipped: it is NaN for y_pred below -ε.

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
    broadcast to ``y_pred``. Range (-∞, ∞).

    References
    ----------
    ``keras.losses.Poisson``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.Poisson()
    >>> value, grad = loss.value_and_grad([[0.0, 2.0]], [[1.0, 1.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    1.000000 [[ 0.5 -0.5]]
    """

    finite_slopes = False

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "poisson",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.poisson


class KLDivergence(RegressionLoss):
    """Kullback-Leibler divergence, ``sum(y_true * log(y_true / y_pred), axis=-1)``.

    Both are clipped to [ε, 1] first, ε = 1e-7 in the compute dtype. The gradient of an element is ``-y_true / y_pred``,
    0 beyond the clip and full on its border.

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
    broadcast to ``y_pred``. Range [0, ∞) for distributions.

    References
    ----------
    ``keras.losses.KLDivergence``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.KLDivergence()
    >>> value, grad = loss.value_and_grad([[0.5, 0.5]], [[0.25, 0.75]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.143841 [[-2.       -0.666667]]
    """

    per_sample = "sum"

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "kl_divergence",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.kl_divergence


def poisson(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `Poisson`.

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
    >>> print(fastloss.losses.poisson([[0.0, 2.0]], [[1.0, 1.0]]).round(6))
    [1.]
    """
    return per_sample(Poisson)(y_true, y_pred)


def kl_divergence(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `KLDivergence`.

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
    >>> print(fastloss.losses.kl_divergence([[0.5, 0.5]], [[0.25, 0.75]]).round(6))
    [0.143841]
    """
    return per_sample(KLDivergence)(y_true, y_pred)
