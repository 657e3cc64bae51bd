"""Losses of the error y_pred - y_true."""

from __future__ import annotations

from typing import Any

from fastloss import kernels
from fastloss.kernels.definition import Kernel
from fastloss.losses import layout, options
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Option, per_sample


class RegressionLoss(KernelLoss):
    """A pointwise loss, averaged over the last axis, whose targets broadcast to the predictions."""

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, -1, broadcast=True, samples=samples, flat=flat)


class MeanSquaredError(RegressionLoss):
    """Mean squared error, ``mean((y_pred - y_true)**2, axis=-1)``.

    The gradient of a sample's loss is ``2 (y_pred - y_true) / d``, the Hessian ``2 / d``, for samples of d elements.

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
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...), their range is [0, ∞). ``y_true`` may
    broadcast to ``y_pred``.

    References
    ----------
    ``keras.losses.MeanSquaredError``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.MeanSquaredError()
    >>> value, grad = loss.value_and_grad([[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]])
    >>> print(value, grad.tolist())
    0.5 [[0.5, 0.0], [0.5, 0.0]]
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "mean_squared_error", dtype: Any = None
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.mean_squared_error


class MeanAbsoluteError(RegressionLoss):
    """Mean absolute error, ``mean(abs(y_pred - y_true), axis=-1)``.

    The gradient of a sample's loss is ``sign(y_pred - y_true) / d``, 0 where the error is exactly 0; the Hessian is 0.

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
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...), their range is [0, ∞). ``y_true`` may
    broadcast to ``y_pred``.

    References
    ----------
    ``keras.losses.MeanAbsoluteError``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.MeanAbsoluteError()
    >>> value, grad = loss.value_and_grad([[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, -2.0]])
    >>> print(value, grad.tolist())
    1.0 [[0.25, 0.0], [0.25, -0.25]]
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "mean_absolute_error", dtype: Any = None
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.mean_absolute_error


class Huber(RegressionLoss):
    """Huber loss: quadratic for errors up to `delta`, linear beyond.

    With ``e = y_pred - y_true``, an element's loss is ``e**2 / 2`` where ``abs(e) <= delta`` and
    ``delta * abs(e) - delta**2 / 2`` elsewhere; a sample's loss is their mean over the last axis. The gradient of an
    element is ``clip(e, -delta, delta)``, its second derivative 1 where ``abs(e) <= delta`` and 0 elsewhere.

    Parameters
    ----------
    delta : float
        The error at which the loss turns linear, not negative.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `delta` is negative.

    Notes
    -----
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...), their range is [0, ∞). ``y_true`` may
    broadcast to ``y_pred``.

    References
    ----------
    P. J. Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35 (1964);
    ``keras.losses.Huber``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.Huber(delta=1.0)
    >>> value, grad = loss.value_and_grad([[0.0, 0.0]], [[0.5, 3.0]])
    >>> print(value, grad.tolist())
    1.3125 [[0.25, 0.5]]
    """

    delta = Option(options.non_negative)

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "huber_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.delta = delta

    def _kernel(self) -> Kernel:
        return kernels.huber


class LogCosh(RegressionLoss):
    """Logarithm of the hyperbolic cosine of the error, ``mean(log(cosh(y_pred - y_true)), axis=-1)``.

    About ``e**2 / 2`` for small errors and ``abs(e) - log(2)`` for large ones. The gradient of an element is
    ``tanh(e)``, its second derivative ``1 - tanh(e)**2``. Small errors keep all their digits, and infinite ones give an
    infinite loss with gradient ±1.

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
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...), their range is [0, ∞). ``y_true`` may
    broadcast to ``y_pred``.

    References
    ----------
    ``keras.losses.LogCosh``.

    Examples
    --------
    >>> import fastloss
    >>> value, grad = fastloss.losses.LogCosh().value_and_grad([[0.0, 0.0]], [[1.0, 0.0]])
    >>> print(f"{value:.6f} {grad[0, 0]:.6f}")
    0.216890 0.380797
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "log_cosh", dtype: Any = None
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.log_cosh


def mean_squared_error(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `MeanSquaredError`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.

    Returns
    -------
    numpy.ndarray, shape (...)

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.mean_squared_error([[0.0, 0.0]], [[1.0, 2.0]]).tolist()
    [2.5]
    """
    return per_sample(MeanSquaredError)(y_true, y_pred)


def mean_absolute_error(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `MeanAbsoluteError`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.

    Returns
    -------
    numpy.ndarray, shape (...)

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.mean_absolute_error([[0.0, 0.0]], [[1.0, 2.0]]).tolist()
    [1.5]
    """
    return per_sample(MeanAbsoluteError)(y_true, y_pred)


def huber(y_true: Any, y_pred: Any, delta: float = 1.0) -> Any:
    """Per-sample losses of `Huber`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.
    delta : float
        The error at which the loss turns linear.

    Returns
    -------
    numpy.ndarray, shape (...)

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.huber([[0.0, 0.0]], [[0.5, 3.0]]).tolist()
    [1.3125]
    """
    return per_sample(Huber, delta=delta)(y_true, y_pred)


def log_cosh(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `LogCosh`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.

    Returns
    -------
    numpy.ndarray, shape (...)

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.log_cosh([[0.0]], [[0.0]]).tolist()
    [0.0]
    """
    return per_sample(LogCosh)(y_true, y_pred)
