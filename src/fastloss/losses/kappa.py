"""Cohen's weighted kappa."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastloss.losses import options
from fastloss.losses.arrays import Array
from fastloss.losses.base import Loss, Option, Pullback

_BLOCK = 16_384
"""Numbers handled at a time: what they need in between stays in the processor's cache."""


def _classes(name: str, value: Any) -> int:
    """A number of classes between which there is a distance."""
    result = options.integer(name, value)
    if result < 2:
        raise ValueError(f"`{name}` must be at least 2, got {value}")
    return result


class WeightedKappaLoss(Loss):
    """Logarithm of 1 - κ, Cohen's weighted kappa between ordered classes, over a whole batch.

    With the weight ``w[b, j] = abs(k - j) ** n`` of predicting class j for a sample of class k (n is 1 for ``"linear"``
    and 2 for ``"quadratic"``), the loss is ``log(num / denom + epsilon)``: ``num = sum(w * y_pred)`` is the
    disagreement seen, and ``denom`` the same sum for every prediction with every target, divided by the number of
    samples: the disagreement that chance would give. A quotient with ``denom`` 0 is 0.

    The gradient is ``(w / denom - num / denom**2 * d) / (num / denom + epsilon)``, where ``d[j]`` is the mean weight of
    predicting class j over the batch's targets; 0 where ``denom`` is 0.

    Parameters
    ----------
    num_classes : int
        Number of classes, at least 2.
    weightage : {"quadratic", "linear"}
        How the weight grows with the distance of the classes.
    name : str
        Name of the loss.
    epsilon : float
        Keeps the logarithm finite; not negative.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        Without effect, since there is one loss a batch; ``"auto"`` is accepted too.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If an argument is not one of these; at a call, if targets or predictions are not of shape (B, num_classes), or
        `sample_weight` is no scalar.

    Notes
    -----
    ``y_true`` (one-hot) and ``y_pred`` (probabilities) have shape (B, num_classes), the loss shape (). Range
    [log ε, ∞); log(1 + ε) is chance. Between one-hot targets, k is the mean class, ``y_true @ arange(num_classes)``, as
    in TensorFlow Addons. Weights that are scaled alike change nothing, so the customary division by
    ``(num_classes - 1) ** n`` is left out. An empty batch has the loss 0.

    References
    ----------
    J. de la Torre, D. Puig, A. Valls, "Weighted kappa loss function for multi-class classification of ordinal data in
    deep learning", Pattern Recognition Letters 105 (2018); ``tensorflow_addons.losses.WeightedKappaLoss``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.WeightedKappaLoss(num_classes=3)
    >>> value, grad = loss.value_and_grad([[1, 0, 0], [0, 0, 1]], [[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
    >>> print(f"{value:.6f} {grad[0, 0]:.4f}")
    -1.213019 -0.5405
    """

    accepts_auto = True

    coupled = True

    device_form = "weighted_kappa"

    num_classes = Option(_classes)
    weightage = Option(options.choice("linear", "quadratic"))
    epsilon = Option(options.non_negative)

    def __init__(
        self,
        num_classes: int,
        weightage: str = "quadratic",
        name: str | None = "cohen_kappa_loss",
        epsilon: float = 1e-6,
        reduction: str | None = "none",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.num_classes = num_classes
        self.weightage = weightage
        self.epsilon = epsilon

    def _inputs(self, y: Array, p: Array, compute: np.dtype[Any]) -> tuple[Array, Array]:
        self._check_shapes(y, p)
        return y, p.astype(compute, copy=False)

    def _check_shapes(self, y: Any, p: Any) -> None:
        for name, array in (("y_true", y), ("y_pred", p)):
            if array.ndim != 2 or array.shape[1] != self.num_classes:
                raise ValueError(
                    f"`{name}` must have shape (batch_size, num_classes) with num_classes={self.num_classes}, got "
                    f"shape {array.shape}"
                )
        if y.shape != p.shape:
            raise ValueError(
                "Arguments `y_true` and `y_pred` must have the same shape. "
                f"Received: y_true.shape={y.shape}, y_pred.shape={p.shape}"
            )

    def _compute(
        self, y: Array, p: Array, valid: Array | None, outputs: int, n_threads: int | None
    ) -> tuple[Array, Array | Pullback | None, Array | None]:
        samples, dtype = len(p), p.dtype
        if not samples:
            return np.zeros((), dtype), (lambda flow: np.zeros(p.shape, dtype)) if outputs else None, None
        classes = np.arange(self.num_classes, dtype=dtype)
        labels = np.empty((samples, 1), dtype)
        targets, predictions = np.zeros(self.num_classes), np.zeros(self.num_classes)
        seen = 0.0
        with np.errstate(all="ignore"):
            for rows in self._blocks(samples):
                block = y[rows].astype(dtype, copy=False)
                np.matmul(block, classes[:, None], out=labels[rows])
                targets += block.sum(axis=0, dtype=np.float64)
                predictions += p[rows].sum(axis=0, dtype=np.float64)
                weights = self._weights(labels[rows], classes)
                weights *= p[rows]
                seen += weights.sum(dtype=np.float64)
            exact = np.arange(self.num_classes, dtype=np.float64)
            expected = targets @ self._weights(exact[:, None], exact) / samples
            chance = expected @ predictions
            ratio = seen / chance if chance != 0 else 0.0
            loss = np.log(np.float64(ratio + self.epsilon))
        if not outputs:
            return loss.astype(dtype), None, None

        def pullback(flow: Array) -> Array:
            gradient = np.zeros(p.shape, dtype)
            if chance == 0:
                return gradient
            with np.errstate(all="ignore"):
                factor = float(flow) / (np.float64(ratio + self.epsilon) * chance)
                slope, offset = dtype.type(factor), (factor * ratio * expected).astype(dtype)
                for rows in self._blocks(samples):
                    block = self._weights(labels[rows], classes, gradient[rows])
                    block *= slope
                    block -= offset
            return gradient

        return loss.astype(dtype), pullback, None

    def _blocks(self, samples: int) -> Iterator[slice]:
        """The batch in parts."""
        step = math.ceil(_BLOCK / self.num_classes)
        return (slice(start, start + step) for start in range(0, samples, step))

    def _weights(self, labels: Array, classes: Array, out: Array | None = None) -> Array:
        """The weight of predicting each of these classes for each of these labels."""
        distance = np.subtract(labels, classes, out=out)
        if self.weightage == "linear":
            return np.asarray(np.abs(distance, out=distance))
        return np.asarray(np.multiply(distance, distance, out=distance))
