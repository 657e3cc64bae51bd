"""N-pairs losses: softmax cross-entropy of a batch's similarity matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastloss import kernels
from fastloss.engine import items
from fastloss.kernels.definition import Kernel
from fastloss.losses import arrays, pairwise
from fastloss.losses.arrays import Array
from fastloss.losses.base import Pullback
from fastloss.losses.embedding import BatchLoss, mean, square


class NpairsLoss(BatchLoss):
    """N-pairs loss of a similarity matrix: one number a batch.

    Row i of ``y_pred`` holds the similarities of anchor i with all B samples, as logits: the loss is the mean over the
    rows of ``-sum(t * log(softmax(y_pred)))``, where t is 1/n for the n samples with i's label and 0 for the others.

    The gradient, with respect to the similarities, is ``(softmax(y_pred) - t) / B``.

    Parameters
    ----------
    reduction : {"none", "sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "auto"} or None
        Of one number, all but a scalar weight is the same.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        At a call, if ``y_pred`` is not square or labels are not one a row, for weights other than a scalar, and for
        `class_weight`.

    Notes
    -----
    ``y_true`` holds labels of any integer or floating dtype, shape (B,) or (B, 1), ``y_pred`` has shape (B, B), as from
    ``a @ b.T``; range [0, ∞). A sample of another class contributes 0 even at similarity -∞. A NaN makes the value NaN,
    and its own row of the gradient.

    References
    ----------
    ``tensorflow_addons.losses.NpairsLoss``; Sohn: Improved Deep Metric Learning with Multi-class N-pair Loss Objective,
    2016.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.NpairsLoss()
    >>> value, grad = loss.value_and_grad([0, 1], [[0.0, 0.0], [0.0, 0.0]])
    >>> print(f"{value:.6f} {grad.tolist()}")
    0.693147 [[-0.25, 0.25], [0.25, -0.25]]
    """

    device_form = "npairs"

    def __init__(self, reduction: str | None = "none", name: str | None = "npairs_loss", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def _inputs(self, y: Array, p: Array, compute: np.dtype[Any]) -> tuple[Array, Array]:
        self._check_shapes(y, p)
        return super()._inputs(y, p, compute)

    def _check_shapes(self, y: Any, p: Any) -> None:
        _check_square(y, p)
        super()._check_shapes(y, p)

    def _batch(self, y: Array, p: Array, gradient: bool, n_threads: int | None) -> tuple[float, Pullback | None]:
        (classes,) = pairwise.classes(y)
        sums = classes.counts[classes.codes].astype(p.dtype)
        return _rows(items.run, kernels.npairs, classes.codes, sums, p, gradient, n_threads)


class NpairsMultilabelLoss(BatchLoss):
    """N-pairs loss of a similarity matrix for samples with any number of labels: one number a batch.

    As `NpairsLoss`, where t is proportional to the number of labels that two samples share: the rows of
    ``y_true @ y_true.T``, divided by their sums.

    Parameters
    ----------
    reduction : {"none", "sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "auto"} or None
        Of one number, all but a scalar weight is the same.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        At a call, if ``y_pred`` is not square or ``y_true`` has not one row for each of its rows, for weights other
        than a scalar, and for `class_weight`.
    TypeError
        At a call, if ``y_true`` is a sparse matrix.

    Notes
    -----
    ``y_true`` holds 1 where a sample has a label, else 0, shape (B, classes), ``y_pred`` has shape (B, B); range
    [0, ∞). A sample without any label makes the value NaN, as in Addons.

    References
    ----------
    ``tensorflow_addons.losses.NpairsMultilabelLoss``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.NpairsMultilabelLoss()
    >>> value, grad = loss.value_and_grad([[1, 0], [1, 1]], [[0.0, 0.0], [0.0, 0.0]])
    >>> print(f"{value:.6f} {grad[1].tolist()}")
    0.693147 [0.083..., -0.083...]
    """

    device_form = "npairs_multilabel"

    def __init__(
        self, reduction: str | None = "none", name: str | None = "npairs_multilabel_loss", dtype: Any = None
    ) -> None:
        super().__init__(name, reduction, dtype)

    def _inputs(self, y: Array, p: Array, compute: np.dtype[Any]) -> tuple[Array, Array]:
        self._check_shapes(y, p)
        return y.astype(compute, copy=False), arrays.contiguous(p.astype(compute, copy=False))

    def _check_shapes(self, y: Any, p: Any) -> None:
        _check_square(y, p)
        if y.ndim != 2 or y.shape[0] != p.shape[0]:
            raise ValueError(
                "`y_true` must have shape (batch, classes), with a row for each row of `y_pred`; "
                f"got y_true.shape={y.shape} and y_pred.shape={p.shape}"
            )

    def _batch(self, y: Array, p: Array, gradient: bool, n_threads: int | None) -> tuple[float, Pullback | None]:
        shared = pairwise.product(y, y.T)
        return _rows(pairwise.scan, kernels.npairs_multilabel, shared, shared.sum(axis=1), p, gradient, n_threads)


def _check_square(y: Any, p: Any) -> None:
    if p.ndim != 2 or p.shape[0] != p.shape[1]:
        raise ValueError(
            "`y_pred` must be a square matrix of similarities, shape (batch, batch); "
            f"got y_true.shape={y.shape} and y_pred.shape={p.shape}"
        )


def _rows(
    run: Callable[..., None],
    kernel: Kernel,
    targets: Array,
    sums: Array,
    p: Array,
    gradient: bool,
    n_threads: int | None,
) -> tuple[float, Pullback | None]:
    """Value and pullback of the mean cross-entropy of the rows."""
    size = len(p)
    losses, slopes = np.empty(size, p.dtype), square(p, gradient)
    arguments = (p, targets, sums, 1.0 / size, losses, slopes, gradient)
    run(kernel, p.dtype, size, arguments, 2.0 * p.size, n_threads)

    def back(flow: Array) -> Array:
        if flow != 1:
            np.multiply(slopes, flow, out=slopes)
        return slopes

    return mean(losses, size), back if gradient else None


def npairs_loss(y_true: Any, y_pred: Any) -> Any:
    """The value of `NpairsLoss`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Labels, (B,) or (B, 1), and similarities, (B, B).

    Returns
    -------
    numpy scalar

    Examples
    --------
    >>> import fastloss
    >>> print(f"{fastloss.losses.npairs_loss([0, 1], [[0.0, 0.0], [0.0, 0.0]]):.6f}")
    0.693147
    """
    return NpairsLoss()(y_true, y_pred)


def npairs_multilabel_loss(y_true: Any, y_pred: Any) -> Any:
    """The value of `NpairsMultilabelLoss`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Indicators of labels, (B, classes), and similarities, (B, B).

    Returns
    -------
    numpy scalar

    Examples
    --------
    >>> import fastloss
    >>> print(f"{fastloss.losses.npairs_multilabel_loss([[1, 0], [1, 1]], [[0.0, 0.0], [0.0, 0.0]]):.6f}")
    0.693147
    """
    return NpairsMultilabelLoss()(y_true, y_pred)
