"""Cross-entropies."""

from __future__ import annotations

from typing import Any

from fastloss import kernels
from fastloss.kernels.definition import Kernel
from fastloss.losses import layout, options
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Option, RowLoss, per_sample


class BinaryCrossentropy(KernelLoss):
    """Cross-entropy of independent yes-or-no targets, averaged over `axis`.

    With ``t = y_true * (1 - label_smoothing) + label_smoothing / 2``, the loss of an element is
    ``-t * log(p) - (1 - t) * log(1 - p)``. Probabilities are clipped to [ε, 1 - ε] first, ε = 1e-7 in the compute
    dtype; of a logit z, ``p = sigmoid(z)`` and the loss is computed in its stable form, ``log(1 + exp(z)) - t * z``.

    The gradient of an element is ``sigmoid(z) - t`` for logits and ``(p - t) / (p * (1 - p))`` for probabilities: full
    on the border of the clip, 0 beyond it. So a probability of exactly 0 or 1 has a dead gradient, as in Keras; prefer
    logits.

    Parameters
    ----------
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
        If `label_smoothing` is outside [0, 1].

    Notes
    -----
    ``y_true`` (in [0, 1]) and ``y_pred`` have one shape, the losses that shape without `axis`; range [0, ∞), from
    probabilities at most 15.943 in float32 for targets 0 or 1. A target 0 with logit -∞ (or 1 with +∞) contributes 0.

    References
    ----------
    ``keras.losses.BinaryCrossentropy``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.BinaryCrossentropy(from_logits=True)
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[0.0, 0.0]])
    >>> print(f"{value:.6f} {grad.tolist()}")
    0.693147 [[0.25, -0.25]]
    """

    from_logits = Option(options.flag)
    label_smoothing = Option(options.fraction)
    axis = Option(options.axes)

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int | tuple[int, ...] | None = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis

    def _kernel(self) -> Kernel:
        return kernels.binary_crossentropy_logits if self.from_logits else kernels.binary_crossentropy

    def _params(self, elements: int) -> tuple[float, ...]:
        return 1 - self.label_smoothing, self.label_smoothing / 2

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, self.axis, broadcast=False, samples=samples, flat=flat)


class ClassLoss(RowLoss):
    """A loss of a row of class scores whose targets may be smoothed."""

    label_smoothing = Option(options.fraction)

    def _params(self, elements: int) -> tuple[float, ...]:
        return self.label_smoothing / elements, self.label_smoothing, *super()._params(elements)[2:]


class CategoricalCrossentropy(ClassLoss):
    """Cross-entropy between a distribution over classes and predicted scores, summed over `axis`.

    With ``t = y_true * (1 - label_smoothing) + label_smoothing / C`` for C classes, a sample's loss is
    ``-sum(t * log(q))``. From logits, ``q = softmax(y_pred)`` and the gradient is ``q * sum(t) - t``. Probabilities are
    divided by their sum, *then* clipped to [ε, 1 - ε], ε = 1e-7 in the compute dtype; the gradient goes through both: 0
    beyond the clip, full on its border.

    Parameters
    ----------
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
        If `label_smoothing` is outside [0, 1].

    Warns
    -----
    SyntaxWarning
        If there is only one class.

    Notes
    -----
    ``y_true`` and ``y_pred`` have one shape, the losses that shape without `axis`; range [0, ∞). A class with target 0
    contributes 0 even at logit -∞. A row of probabilities that sums to 0 gives NaN, as in Keras.

    References
    ----------
    ``keras.losses.CategoricalCrossentropy``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.CategoricalCrossentropy(from_logits=True)
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[0.0, 0.0]])
    >>> print(f"{value:.6f} {grad.tolist()}")
    0.693147 [[0.5, -0.5]]
    """

    from_logits = Option(options.flag)
    axis = Option(options.integer)

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis

    def _kernel(self) -> Kernel:
        return kernels.categorical_crossentropy_logits if self.from_logits else kernels.categorical_crossentropy

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.dense_classes(y, p, self.axis, "categorical_crossentropy")


class SparseCategoricalCrossentropy(ClassLoss):
    """Cross-entropy between the index of a class and predicted scores.

    As `CategoricalCrossentropy` with one-hot targets, which are never made: ``-log(q[y_true])`` without smoothing.

    Parameters
    ----------
    from_logits : bool
        Whether predictions are logits rather than probabilities.
    ignore_class : int, optional
        A label, inside or outside the range of classes, whose samples do not count, as if masked.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    axis : int
        The axis of the classes.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.
    label_smoothing : float
        In [0, 1]: how far targets are drawn towards the uniform distribution.

    Raises
    ------
    ValueError
        If `label_smoothing` is outside [0, 1]; at a call, if a label is no class: not integral or out of range. The
        first one is named, and nothing has been written then.

    Notes
    -----
    ``y_pred`` has shape (..., C), ``y_true`` and the losses shape (...), for another `axis` likewise; ``y_true`` of
    shape (..., 1) is squeezed. Range [0, ∞).

    References
    ----------
    ``keras.losses.SparseCategoricalCrossentropy``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> value, grad = loss.value_and_grad([1], [[0.0, 0.0]])
    >>> print(f"{value:.6f} {grad.tolist()}")
    0.693147 [[0.5, -0.5]]
    """

    class_indices = True

    from_logits = Option(options.flag)
    ignore_class = Option(options.optional_integer)
    axis = Option(options.integer)

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str | None = "sparse_categorical_crossentropy",
        dtype: Any = None,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits = from_logits
        self.ignore_class = ignore_class
        self.axis = axis
        self.label_smoothing = label_smoothing

    def _kernel(self) -> Kernel:
        return kernels.categorical_crossentropy_logits if self.from_logits else kernels.categorical_crossentropy

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.class_indices(y, p, self.axis, self.ignore_class)


class CategoricalGeneralizedCrossEntropy(RowLoss):
    """Generalized cross-entropy of the label's probability p, ``(1 - p**q) / q``.

    Between the mean absolute error (q near 1) and the cross-entropy (q near 0): robust against wrong labels. The
    gradient is ``-p**(q - 1)`` for the label's class and 0 for the others. Nothing is normalised or clipped.

    Parameters
    ----------
    q : float
        In (0, 1).
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `q` is outside (0, 1); at a call, if a label is no class.

    Notes
    -----
    ``y_pred`` has shape (..., C), ``y_true`` holds class indices of shape (...) or (..., 1), the losses have shape
    (...). Range [0, 1/q].

    References
    ----------
    ``keras.losses.CategoricalGeneralizedCrossEntropy``; Zhang and Sabuncu, *Generalized Cross Entropy Loss for Training
    Deep Neural Networks with Noisy Labels*, 2018.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.CategoricalGeneralizedCrossEntropy()
    >>> value, grad = loss.value_and_grad([1], [[0.75, 0.25]])
    >>> print(f"{value:.6f}", grad.round(6))
    1.000000 [[ 0. -2.]]
    """

    finite_slopes = False

    class_indices = True

    q = Option(options.interior)

    def __init__(
        self,
        q: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "categorical_generalized_cross_entropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.q = q

    def _kernel(self) -> Kernel:
        return kernels.generalized_crossentropy

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.class_indices(y, p, -1, None)


class SparsemaxLoss(RowLoss):
    """Loss of the sparsemax of logits, a projection on the probability simplex that gives exact zeros.

    With ``s = max(z - τ, 0)``, τ such that s sums to 1, a sample's loss is
    ``sum(s * (z - s / 2)) + sum(t * (t / 2 - z))`` over the last axis, and its gradient ``s - t``.

    Parameters
    ----------
    from_logits : bool
        Must be True: the loss is not defined by the probabilities alone.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `from_logits` is False.

    Notes
    -----
    ``y_true`` and ``y_pred`` have one shape (..., C), the losses shape (...); range [0, ∞) for targets that are
    distributions. A class without support or target contributes 0 even at logit -∞; a logit +∞ gives NaN.

    References
    ----------
    ``tensorflow_addons.losses.SparsemaxLoss``; Martins and Astudillo, *From Softmax to Sparsemax*, 2016.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.SparsemaxLoss()
    >>> value, grad = loss.value_and_grad([[0.0, 1.0]], [[0.5, 0.0]])
    >>> print(f"{value:.6f}", grad.round(6))
    0.562500 [[ 0.75 -0.75]]
    """

    accepts_auto = True

    from_logits = Option(options.true)

    def __init__(
        self,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "sparsemax_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits = from_logits

    def _kernel(self) -> Kernel:
        return kernels.sparsemax

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.dense_classes(y, p, -1, None)


def binary_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int | tuple[int, ...] | None = -1,
) -> Any:
    """Per-sample losses of `BinaryCrossentropy`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Targets and predictions of one shape.
    from_logits, label_smoothing, axis
        As for `BinaryCrossentropy`.

    Returns
    -------
    numpy.ndarray
        Of that shape without `axis`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.binary_crossentropy([[0.0, 1.0]], [[0.5, 0.5]]).round(6))
    [0.693147]
    """
    return per_sample(BinaryCrossentropy, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis)(
        y_true, y_pred
    )


def categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Any:
    """Per-sample losses of `CategoricalCrossentropy`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Targets and predictions of one shape.
    from_logits, label_smoothing, axis
        As for `CategoricalCrossentropy`.

    Returns
    -------
    numpy.ndarray
        Of that shape without `axis`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.categorical_crossentropy([[0.0, 1.0]], [[0.5, 0.5]]).round(6))
    [0.693147]
    """
    return per_sample(CategoricalCrossentropy, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis)(
        y_true, y_pred
    )


def sparse_categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, ignore_class: int | None = None, axis: int = -1
) -> Any:
    """Per-sample losses of `SparseCategoricalCrossentropy`.

    Parameters
    ----------
    y_true : array_like
        Class indices.
    y_pred : array_like
        Predictions, with one more axis.
    from_logits, ignore_class, axis
        As for `SparseCategoricalCrossentropy`.

    Returns
    -------
    numpy.ndarray
        Of `y_true`'s shape.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.sparse_categorical_crossentropy([1], [[0.5, 0.5]]).round(6))
    [0.693147]
    """
    return per_sample(SparseCategoricalCrossentropy, from_logits=from_logits, ignore_class=ignore_class, axis=axis)(
        y_true, y_pred
    )


def categorical_generalized_cross_entropy(y_true: Any, y_pred: Any, q: float) -> Any:
    """Per-sample losses of `CategoricalGeneralizedCrossEntropy`.

    Parameters
    ----------
    y_true : array_like
        Class indices.
    y_pred : array_like
        Probabilities, with one more axis.
    q
        As for `CategoricalGeneralizedCrossEntropy`.

    Returns
    -------
    numpy.ndarray
        Of `y_true`'s shape.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.categorical_generalized_cross_entropy([1], [[0.75, 0.25]], 0.5).round(6))
    [1.]
    """
    return per_sample(CategoricalGeneralizedCrossEntropy, q=q)(y_true, y_pred)


def sparsemax_loss(y_true: Any, y_pred: Any) -> Any:
    """Per-sample losses of `SparsemaxLoss`.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (..., C)
        Targets and logits.

    Returns
    -------
    numpy.ndarray
        Of shape (...).

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.losses.sparsemax_loss([[0.0, 1.0]], [[0.5, 0.0]]).round(6))
    [0.5625]
    """
    return per_sample(SparsemaxLoss)(y_true, y_pred)
