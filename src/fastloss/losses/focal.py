"""Focal cross-entropies."""

from __future__ import annotations

from typing import Any

from fastloss import kernels
from fastloss.kernels.definition import Kernel
from fastloss.losses import layout, options
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Option, per_sample
from fastloss.losses.crossentropy import ClassLoss

EPSILON = 1e-7
"""What Addons adds in its logarithms."""


def _variant(name: str, from_logits: bool, gamma: float) -> Kernel:
    """The kernel for these options."""
    found: Kernel = getattr(kernels, name + "_logits" * from_logits + "_squared" * (gamma == 2.0))
    return found


class BinaryFocalCrossentropy(KernelLoss):
    """Focal cross-entropy of independent yes-or-no targets, averaged over `axis`.

    With t the smoothed target and p the probability, the loss of an element is ``w * (1 - p_t)**gamma * b``: ``p_t`` is
    ``t * p + (1 - t) * (1 - p)``, b the binary cross-entropy (of the clipped probability, or of the logit in its stable
    form), and w, with class balancing, ``t * alpha + (1 - t) * (1 - alpha)``, else 1. The gradient goes through both
    factors; where gamma < 1 and p_t = 1 it is its limit, 0.

    Parameters
    ----------
    apply_class_balancing : bool
        Whether `alpha` weighs the classes; it is not used otherwise.
    alpha : float
        The factor of the loss; with class balancing, that of class 1, against ``1 - alpha`` of class 0.
    gamma : float
        How strongly right predictions are scaled down; 0 or more.
    from_logits : bool
        Whether predictions are logits rather than probabilities.
    label_smoothing : float
        In [0, 1]: how far targets are drawn towards 1/2.
    axis : int, tuple of int or None
        The axes that a sample's loss averages over; None for all.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `gamma` is negative, or `label_smoothing` outside [0, 1].

    Notes
    -----
    ``y_true`` (in [0, 1]) and ``y_pred`` have one shape, the losses that shape without `axis`; range [0, ∞). From
    logits Keras computes the probability first, and so saturates at 16.118 in float32; here it goes on.

    References
    ----------
    ``keras.losses.BinaryFocalCrossentropy``; Lin et al., *Focal Loss for Dense Object Detection*, 2017.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.BinaryFocalCrossentropy(from_logits=True)
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[0.0, 0.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.173287 [[ 0.149143 -0.149143]]
    """

    apply_class_balancing = Option(options.flag)
    alpha = Option(options.number)
    gamma = Option(options.non_negative)
    from_logits = Option(options.flag)
    label_smoothing = Option(options.fraction)
    axis = Option(options.axes)

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int | tuple[int, ...] | None = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.apply_class_balancing = apply_class_balancing
        self.alpha = alpha
        self.gamma = gamma
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis

    def _kernel(self) -> Kernel:
        return _variant("binary_focal", self.from_logits, self.gamma)

    def _params(self, elements: int) -> tuple[float, ...]:
        weights = (self.alpha, 1 - self.alpha) if self.apply_class_balancing else (1.0, 1.0)
        return 1 - self.label_smoothing, self.label_smoothing / 2, *weights, self.gamma, 0.0

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, self.axis, broadcast=False, samples=samples, flat=flat)


class SigmoidFocalCrossEntropy(KernelLoss):
    """Focal cross-entropy of independent yes-or-no targets as in TensorFlow Addons, summed over the last axis.

    ``(t * alpha + (1 - t) * (1 - alpha)) * (1 - p_t)**gamma * b`` with t, p_t and b as for `BinaryFocalCrossentropy`.
    From probabilities both logarithms add ε again after the clip: ``-t * log(c + ε) - (1 - t) * log(1 - c + ε)``. An
    `alpha` or `gamma` of 0 (or an `alpha` of None) drops its factor.

    Parameters
    ----------
    from_logits : bool
        Whether predictions are logits rather than probabilities.
    alpha : float or None
        Weight of class 1, against ``1 - alpha`` of class 0.
    gamma : float
        How strongly right predictions are scaled down; 0 or more.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `gamma` is negative.

    Notes
    -----
    ``y_true`` (in [0, 1]) and ``y_pred`` have one shape (..., d), the losses shape (...); range [0, ∞).

    References
    ----------
    ``tensorflow_addons.losses.SigmoidFocalCrossEntropy``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.SigmoidFocalCrossEntropy(from_logits=True, reduction="sum")
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[0.0, 0.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.173287 [[ 0.223715 -0.074572]]
    """

    finite_slopes = False

    accepts_auto = True

    per_sample = "sum"

    from_logits = Option(options.flag)
    alpha = Option(options.optional_number)
    gamma = Option(options.non_negative)

    def __init__(
        self,
        from_logits: bool = False,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        reduction: str | None = "none",
        name: str | None = "sigmoid_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits = from_logits
        self.alpha = alpha
        self.gamma = gamma

    def _kernel(self) -> Kernel:
        return _variant("binary_focal", self.from_logits, self.gamma)

    def _params(self, elements: int) -> tuple[float, ...]:
        weights = (self.alpha, 1 - self.alpha) if self.alpha else (1.0, 1.0)
        return 1.0, 0.0, *weights, self.gamma, EPSILON

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, -1, broadcast=False, samples=samples, flat=flat)


class CategoricalFocalCrossentropy(ClassLoss):
    """Focal cross-entropy between a distribution over classes and predicted scores, summed over `axis`.

    With t the smoothed targets, ``y_true * (1 - label_smoothing) + label_smoothing / C``, and q the predictions divided
    by their sum (or the softmax of logits), clipped to [ε, 1 - ε], a sample's loss is ``sum(alpha * (1 - q)**gamma * -t
    * log(q))``. The gradient goes through normalisation and clip: 0 beyond it, full on its border.

    Parameters
    ----------
    alpha : float
        The factor of the loss.
    gamma : float
        How strongly right predictions are scaled down; 0 or more.
    from_logits : bool
        Whether predictions are logits rather than probabilities.
    label_smoothing : float
        In [0, 1]: how far targets are drawn towards the uniform distribution.
    axis : int
        The axis of the classes.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `gamma` is negative, or `label_smoothing` outside [0, 1].

    Warns
    -----
    SyntaxWarning
        If there is only one class.

    Notes
    -----
    ``y_true`` and ``y_pred`` have one shape, the losses that shape without `axis`; range [0, ∞). A row of probabilities
    that sums to 0 gives NaN, as in Keras.

    References
    ----------
    ``keras.losses.CategoricalFocalCrossentropy``; Lin et al., *Focal Loss for Dense Object Detection*, 2017.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.CategoricalFocalCrossentropy(from_logits=True)
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[0.0, 0.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.043322 [[ 0.074572 -0.074572]]
    """

    finite_slopes = False

    alpha = Option(options.number)
    gamma = Option(options.non_negative)
    from_logits = Option(options.flag)
    axis = Option(options.integer)

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.alpha = alpha
        self.gamma = gamma
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis

    def _kernel(self) -> Kernel:
        return _variant("categorical_focal", self.from_logits, self.gamma)

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.dense_classes(y, p, self.axis, "categorical_focal_crossentropy")


def binary_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = -1,
) -> Any:
    """Per-sample losses of `BinaryFocalCrossentropy`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Targets and predictions of one shape.
    apply_class_balancing, alpha, gamma, from_logits, label_smoothing, axis
        As for `BinaryFocalCrossentropy`.

    Returns
    -------
    numpy.ndarray
        Of that shape without `axis`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.binary_focal_crossentropy([[0.0, 1.0]], [[0.5, 0.5]]).round(6))
    [0.173287]
    """
    return per_sample(
        BinaryFocalCrossentropy,
        apply_class_balancing=apply_class_balancing,
        alpha=alpha,
        gamma=gamma,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
    )(y_true, y_pred)


def sigmoid_focal_crossentropy(
    y_true: Any, y_pred: Any, alpha: float | None = 0.25, gamma: float = 2.0, from_logits: bool = False
) -> Any:
    """Per-sample losses of `SigmoidFocalCrossEntropy`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Targets and predictions of one shape, (..., d).
    alpha, gamma, from_logits
        As for `SigmoidFocalCrossEntropy`.

    Returns
    -------
    numpy.ndarray
        Of shape (...).

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.sigmoid_focal_crossentropy([[0.0, 1.0]], [[0.5, 0.5]]).round(6))
    [0.173287]
    """
    return per_sample(SigmoidFocalCrossEntropy, alpha=alpha, gamma=gamma, from_logits=from_logits)(y_true, y_pred)


def categorical_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Any:
    """Per-sample losses of `CategoricalFocalCrossentropy`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Targets and predictions of one shape.
    alpha, gamma, from_logits, label_smoothing, axis
        As for `CategoricalFocalCrossentropy`.

    Returns
    -------
    numpy.ndarray
        Of that shape without `axis`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.categorical_focal_crossentropy([[0.0, 1.0]], [[0.5, 0.5]]).round(6))
    [0.043322]
    """
    return per_sample(
        CategoricalFocalCrossentropy,
        alpha=alpha,
        gamma=gamma,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
    )(y_true, y_pred)
