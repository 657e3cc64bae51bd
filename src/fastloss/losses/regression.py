"""Losses of the error y_pred - y_true."""

from __future__ import annotations

from typing import Any

from fastloss import kernels
from fastloss.kernels.definition import Kernel
from fastloss.losses import layout, options
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Option, RowLoss, per_sample


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


class MeanAbsolutePercentageError(RegressionLoss):
    """Mean absolute percentage error, ``100 * mean(abs(y_pred - y_true) / max(abs(y_true), ε), axis=-1)``.

    The gradient of a sample's loss is ``100 * sign(y_pred - y_true) / max(abs(y_true), ε) / d``, 0 where the error is
    exactly 0, with ε = 1e-7 in the compute dtype; the Hessian is 0.

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
    ``keras.losses.MeanAbsolutePercentageError``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.MeanAbsolutePercentageError()
    >>> value, grad = loss.value_and_grad([[2.0, 4.0]], [[1.0, 5.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    37.500000 [[-25.   12.5]]
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "mean_absolute_percentage_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.mean_absolute_percentage_error


class MeanSquaredLogarithmicError(RegressionLoss):
    """Mean squared logarithmic error, ``mean((log1p(y_pred) - log1p(y_true))**2, axis=-1)``.

    Targets and predictions below ε = 1e-7 count as ε. The gradient of an element is ``2 * d / (1 + y_pred)`` with d the
    difference of the logarithms, 0 below the clip and full on its border.

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
    ``keras.losses.MeanSquaredLogarithmicError``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.MeanSquaredLogarithmicError()
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[1.0, 1.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.240226 [[0.346574 0.      ]]
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "mean_squared_logarithmic_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _kernel(self) -> Kernel:
        return kernels.mean_squared_logarithmic_error


class CosineSimilarity(RowLoss):
    """Negative cosine similarity, ``-sum(normalize(y_true) * normalize(y_pred), axis)``.

    A vector x is divided by ``sqrt(max(sum(x**2), ε**2))``, so that a zero vector gives 0. With r that factor of each
    and c the inner product, the gradient is ``-y_true / (r_true * r_pred) + c * y_pred / (r_true * r_pred**3)``,
    without the second term where the prediction's clip is active.

    Parameters
    ----------
    axis : int
        The axis of the vectors.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Notes
    -----
    ``y_true`` may broadcast to ``y_pred``; the losses have its shape without `axis`. Range [-1, 1], -1 for vectors of
    one direction.

    References
    ----------
    ``keras.losses.CosineSimilarity``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.CosineSimilarity()
    >>> value, grad = loss.value_and_grad([[0.0, 2.0]], [[3.0, 4.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    -0.800000 [[ 0.096 -0.072]]
    """

    axis = Option(options.integer)

    def __init__(
        self,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "cosine_similarity",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.axis = axis

    def _kernel(self) -> Kernel:
        return kernels.cosine_similarity

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, self.axis, broadcast=True, samples=False, flat=False)


class PinballLoss(RegressionLoss):
    """Pinball (quantile) loss, ``mean(max(tau * e, (tau - 1) * e), axis=-1)`` with ``e = y_true - y_pred``.

    The gradient of an element is ``-tau`` for positive e, ``1 - tau`` for negative, 0 where e is exactly 0; the Hessian
    is 0. Its minimum is the quantile `tau` of the targets.

    Parameters
    ----------
    tau : float or vector of float
        The quantile, in [0, 1]; a vector gives each element of the last axis its own.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `tau` is outside [0, 1], or a vector of another length than the last axis.

    Notes
    -----
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...). ``y_true`` may
    broadcast to ``y_pred``. Range [0, ∞).

    References
    ----------
    ``tensorflow_addons.losses.PinballLoss``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.PinballLoss(tau=0.1)
    >>> value, grad = loss.value_and_grad([[0.0, 0.0]], [[1.0, -1.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.500000 [[ 0.45 -0.05]]
    """

    accepts_auto = True

    tau = Option(options.fractions)

    def __init__(
        self,
        tau: Any = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "pinball_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.tau = tau

    def _kernel(self) -> Kernel:
        return kernels.pinball

    def _params(self, elements: int) -> tuple[float, ...]:
        if not isinstance(self.tau, tuple):
            return (self.tau,)
        if len(self.tau) not in (1, elements):
            raise ValueError(
                f"`tau` must be a number or have one for each element of the last axis, {elements}, got {len(self.tau)}"
            )
        return self.tau


class ContrastiveLoss(RegressionLoss):
    """Contrastive loss of distances d between pairs, ``y * d**2 + (1 - y) * max(margin - d, 0)**2``, elementwise.

    ``y_true`` is 1 for similar pairs and 0 for dissimilar ones, ``y_pred`` their distance. The gradient is
    ``2 * (y * d - (1 - y) * max(margin - d, 0))``.

    Parameters
    ----------
    margin : float
        The distance from which dissimilar pairs cost nothing.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Notes
    -----
    ``y_true`` may broadcast to ``y_pred``; the losses have its shape, one a pair. Range [0, ∞).

    References
    ----------
    ``tensorflow_addons.losses.ContrastiveLoss``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.ContrastiveLoss()
    >>> value, grad = loss.value_and_grad([1.0, 0.0], [0.5, 0.5])
    >>> print(f"{value:.6f}", grad.round(6))
    0.250000 [ 0.5 -0.5]
    """

    accepts_auto = True

    margin = Option(options.number)

    def __init__(
        self,
        margin: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "contrastive_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.margin = margin

    def _kernel(self) -> Kernel:
        return kernels.contrastive

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, (), broadcast=True, samples=False, flat=flat)


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


def mean_absolute_percentage_error(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `MeanAbsolutePercentageError`.

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
    >>> print(fastloss.losses.mean_absolute_percentage_error([[2.0, 4.0]], [[1.0, 5.0]]).round(6))
    [37.5]
    """
    return per_sample(MeanAbsolutePercentageError)(y_true, y_pred)


def mean_squared_logarithmic_error(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `MeanSquaredLogarithmicError`.

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
    >>> print(fastloss.losses.mean_squared_logarithmic_error([[0.0, 1.0]], [[1.0, 1.0]]).round(6))
    [0.240226]
    """
    return per_sample(MeanSquaredLogarithmicError)(y_true, y_pred)


def cosine_similarity(y_true: Any, y_pred: Any, axis: int = -1) -> Any:
    """Per-sample losses of `CosineSimilarity`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.
    axis
        As for `CosineSimilarity`.

    Returns
    -------
    numpy.ndarray
        Of that shape without `axis`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.cosine_similarity([[0.0, 2.0]], [[3.0, 4.0]]).round(6))
    [-0.8]
    """
    return per_sample(CosineSimilarity, axis=axis)(y_true, y_pred)


def pinball_loss(y_true: Any, y_pred: Any, tau: Any = 0.5) -> Any:
    """Per-sample losses of `PinballLoss`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., d)
        Targets and predictions.
    tau
        As for `PinballLoss`.

    Returns
    -------
    numpy.ndarray
        Of shape (...).

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.pinball_loss([[0.0, 0.0]], [[1.0, -1.0]], tau=0.25).round(6))
    [0.5]
    """
    return per_sample(PinballLoss, tau=tau)(y_true, y_pred)


def contrastive_loss(y_true: Any, y_pred: Any, margin: float = 1.0) -> Any:
    """Per-sample losses of `ContrastiveLoss`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Similarity, 0 or 1, and distance of pairs.
    margin
        As for `ContrastiveLoss`.

    Returns
    -------
    numpy.ndarray
        Of `y_pred`'s shape.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.contrastive_loss([1.0, 0.0], [0.5, 0.5]).round(6))
    [0.25 0.25]
    """
    return per_sample(ContrastiveLoss, margin=margin)(y_true, y_pred)
