"""Losses of a batch of embeddings: triplets, lifted structure, circle."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss import kernels
from fastloss.losses import arrays, options, pairwise
from fastloss.losses.arrays import Array
from fastloss.losses.base import Loss, Option, Pullback
from fastloss.losses.plan import GRADIENT

_ROWS = 32
"""Anchors that share the scratch of semi-hard mining."""


class EmbeddingLoss(Loss):
    """A loss of embeddings (rows of `y_pred`) and one label for each."""

    coupled = True

    def _inputs(self, y: Array, p: Array, compute: np.dtype[Any]) -> tuple[Array, Array]:
        return labels_of(y, p), arrays.contiguous(p.astype(compute, copy=False))

    def _check_shapes(self, y: Any, p: Any) -> None:
        check_labels(y, p)

    def _labels(self, y: Array, shape: tuple[int, ...]) -> Array:
        return y


class BatchLoss(EmbeddingLoss):
    """A loss that is one number a batch."""

    accepts_auto = True

    def _compute(
        self, y: Array, p: Array, valid: Array | None, outputs: int, n_threads: int | None
    ) -> tuple[Array, Pullback | None, None]:
        if not len(p) or (valid is not None and not valid.any()):
            return np.zeros((), p.dtype), lambda flow: np.zeros_like(p), None
        value, back = self._batch(y, p, outputs >= GRADIENT, n_threads)
        return np.asarray(value, p.dtype), back, None

    def _batch(self, y: Array, p: Array, gradient: bool, n_threads: int | None) -> tuple[float, Pullback | None]:
        """The value, and the pullback if a gradient is wanted."""
        raise NotImplementedError


def check_labels(y: Any, p: Any, names: tuple[str, str] = ("y_true", "y_pred")) -> None:
    """Refuse labels that are not one a row; arrays of a device are looked at as well as any."""
    if p.ndim != 2 or y.shape not in (p.shape[:1], (*p.shape[:1], 1)):
        raise ValueError(
            f"`{names[1]}` must have shape (batch, size) and `{names[0]}` one label a row, (batch,) or (batch, 1); "
            f"got {names[0]}.shape={y.shape} and {names[1]}.shape={p.shape}"
        )


def labels_of(y: Array, p: Array, names: tuple[str, str] = ("y_true", "y_pred")) -> Array:
    """One label a row, in a dtype that NumPy sorts."""
    check_labels(y, p, names)
    return np.ascontiguousarray(y.reshape(-1) if y.dtype.kind in "biuf" else y.reshape(-1).astype(np.float32))


def square(p: Array, wanted: bool) -> Array:
    """Memory for the slopes of all distances, if they are wanted."""
    return np.empty((len(p), len(p)) if wanted else (1, 1), p.dtype)


def mean(losses: Array, divisor: float) -> float:
    """Their sum, in float64, by the divisor."""
    return float(np.sum(losses, dtype=np.float64)) / divisor


def metric(name: str, value: Any) -> pairwise.Metric:
    """A name of a distance, or a function."""
    if callable(value) or (isinstance(value, str) and value in pairwise.METRICS):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"`{name}` must be one of {pairwise.METRICS} or a callable, got {value!r}")


class TripletSemiHardLoss(BatchLoss):
    """Triplet loss with semi-hard negatives: one number a batch.

    For every ordered pair (i, j) of different samples of one class, with n the smallest distance from i to a sample of
    another class that is farther from i than j is, or the largest distance to another class if none is farther:
    ``max(margin + d(i, j) - n, 0)``. The loss is the mean over these pairs.

    The gradient goes through both distances; at a distance of 0 that of ``"L2"`` is 0, at a hinge of exactly 0 it is 0,
    and of equally distant negatives the first one gets it.

    Parameters
    ----------
    margin : float
        How much farther the negative is to be.
    distance_metric : {"L2", "squared-L2", "angular"} or callable
        ``"L2"`` is the norm of the difference, ``"angular"`` is ``max(1 - cos, 0)`` with squared norms taken as at
        least 1e-12. A callable gets the embeddings, (B, D), and returns their distances, (B, B); for a gradient it
        returns ``(distances, pullback)``, where ``pullback(slopes)`` is the gradient of ``sum(slopes * distances)``.
    reduction : {"none", "sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "auto"} or None
        Of one number, all but a scalar weight is the same.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `distance_metric` is unknown; at a call, for labels that are not one a row of `y_pred`, weights other than a
        scalar, and `class_weight`.
    NotImplementedError
        At `value_and_grad`, if a callable `distance_metric` returns no pullback.

    Notes
    -----
    ``y_true`` holds labels of any integer or floating dtype, shape (B,) or (B, 1), ``y_pred`` embeddings, (B, D); range
    [0, ∞). Without a positive pair the value is 0 (Addons gives NaN); in a row without negatives, n is the row's
    smallest distance, which is that of the sample to itself. A NaN in an embedding makes value and gradient NaN.

    Distances come from one Gram matrix, and where two embeddings are closer than an eighth of their length, from their
    difference: so a distance is right to about 100 rounding errors of its own size, and identical embeddings have
    distance 0. ``"angular"`` is right to rounding errors of 1. Memory: two B × B matrices, O(B² log B) time.

    A callable is itself in `get_config`, which `from_config` takes but JSON does not.

    References
    ----------
    ``tensorflow_addons.losses.TripletSemiHardLoss``; Schroff, Kalenichenko, Philbin: FaceNet, 2015, arXiv:1503.03832.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.TripletSemiHardLoss()
    >>> value, grad = loss.value_and_grad([0, 0, 1], [[0.0], [1.0], [1.5]])
    >>> print(value, grad.tolist())
    1.0 [[-0.5], [1.5], [-1.0]]
    """

    device_form = "triplet_semihard"

    margin = Option(options.number)
    distance_metric = Option(metric)

    def __init__(
        self,
        margin: float = 1.0,
        distance_metric: pairwise.Metric = "L2",
        reduction: str | None = "none",
        name: str | None = "triplet_semi_hard_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.margin = margin
        self.distance_metric = distance_metric

    def _batch(self, y: Array, p: Array, gradient: bool, n_threads: int | None) -> tuple[float, Pullback | None]:
        found = pairwise.distances(p, self.distance_metric, gradient, n_threads)
        (classes,) = pairwise.classes(y)
        size, pairs, matrix = len(p), classes.pairs, found.matrix
        losses, slopes = np.empty(size, p.dtype), square(p, gradient)
        parts = -(-size // _ROWS)
        lists, keys = np.empty((parts, size), p.dtype), np.empty((parts, 2, size + 1), p.dtype)
        places = np.empty((parts, 3, size + 3), np.int32)
        work = 8.0 * size * size
        scratch, scale = (lists, keys, places), 1.0 / max(pairs, 1)
        arguments = (_ROWS, matrix, *classes[:3], self.margin, scale, *scratch, losses, slopes, gradient)
        pairwise.scan(kernels.triplet_semihard, p.dtype, parts, arguments, work, n_threads)
        return mean(losses, max(pairs, 1)), (lambda flow: found.back(slopes, flow)) if gradient else None


class TripletHardLoss(BatchLoss):
    """Triplet loss with the hardest positive and negative of each sample: one number a batch.

    With p the distance from a sample to the farthest of its class and n that to the nearest of the others, the mean of
    ``max(p - n + margin, 0)``, or of ``log(1 + exp(p - n))`` if `soft`. p is 0 for a sample alone in its class; n is
    the largest distance of the row where there is no other class.

    The gradient goes through both distances; at a distance of 0 that of ``"L2"`` is 0, at a hinge of exactly 0 it is 0,
    and of equally distant samples the first one gets it.

    Parameters
    ----------
    margin : float
        How much farther the negative is to be; not used if `soft`.
    soft : bool
        Whether to use the soft margin.
    distance_metric : {"L2", "squared-L2", "angular"} or callable
        As for `TripletSemiHardLoss`.
    reduction : {"none", "sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "auto"} or None
        Of one number, all but a scalar weight is the same.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError, NotImplementedError
        As `TripletSemiHardLoss`.

    Notes
    -----
    Shapes, accuracy and configs as for `TripletSemiHardLoss`; range [0, ∞).

    References
    ----------
    ``tensorflow_addons.losses.TripletHardLoss``; Hermans, Beyer, Leibe: In Defense of the Triplet Loss, 2017,
    arXiv:1703.07737.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.TripletHardLoss()
    >>> value, grad = loss.value_and_grad([0, 0, 1], [[0.0], [1.0], [1.5]])
    >>> print(f"{value:.4f} {grad.tolist()}")
    0.8333 [[-0.333...], [1.333...], [-1.0]]
    """

    device_form = "triplet_hard"

    margin = Option(options.number)
    soft = Option(options.flag)
    distance_metric = Option(metric)

    def __init__(
        self,
        margin: float = 1.0,
        soft: bool = False,
        distance_metric: pairwise.Metric = "L2",
        reduction: str | None = "none",
        name: str | None = "triplet_hard_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.margin = margin
        self.soft = soft
        self.distance_metric = distance_metric

    def _batch(self, y: Array, p: Array, gradient: bool, n_threads: int | None) -> tuple[float, Pullback | None]:
        found = pairwise.distances(p, self.distance_metric, gradient, n_threads)
        (classes,) = pairwise.classes(y)
        size = len(p)
        losses, slopes = np.empty(size, p.dtype), square(p, gradient)
        arguments = (found.matrix, classes.codes, self.margin, self.soft, 1.0 / size, losses, slopes, gradient)
        pairwise.scan(kernels.triplet_hard, p.dtype, size, arguments, 1.0 * size * size, n_threads)
        return mean(losses, size), (lambda flow: found.back(slopes, flow)) if gradient else None


class LiftedStructLoss(BatchLoss):
    """Lifted structured loss: one number a batch.

    With D the distances between embeddings, ``L_i = log(sum(exp(margin - D_ik)))`` over the samples k of other classes
    and ``J_ij = log(exp(L_i) + exp(L_j)) + D_ij``, the loss is the sum of ``max(J_ij, 0)**2`` over the unordered pairs
    of different samples of one class, divided by twice their number.

    The gradient at a distance of 0 is 0. Embeddings should not be normalised.

    Parameters
    ----------
    margin : float
        How far other classes are to be.
    reduction : {"none", "sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "auto"} or None
        Of one number, all but a scalar weight is the same.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        At a call, for labels that are not one a row of `y_pred`, weights other than a scalar, and `class_weight`.

    Notes
    -----
    ``y_true`` holds labels of any integer or floating dtype, shape (B,) or (B, 1), ``y_pred`` embeddings, (B, D); range
    [0, ∞). Without a positive pair, or without a second class, the value is 0 (Addons gives NaN). A NaN in an embedding
    makes value and gradient NaN. Accuracy of the distances as for `TripletSemiHardLoss`; O(B²) time and two B × B
    matrices of memory, since the inner sums are one number a row.

    References
    ----------
    ``tensorflow_addons.losses.LiftedStructLoss``; Song, Xiang, Jegelka, Savarese: Deep Metric Learning via Lifted
    Structured Feature Embedding, 2015, arXiv:1511.06452.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.LiftedStructLoss()
    >>> value, grad = loss.value_and_grad([0, 0, 1], [[0.0], [1.0], [3.0]])
    >>> print(f"{value:.4f} {grad.tolist()}")
    0.0491 [[-0.229...], [0.542...], [-0.313...]]
    """

    device_form = "lifted_struct"

    margin = Option(options.number)

    def __init__(
        self,
        margin: float = 1.0,
        reduction: str | None = "none",
        name: str | None = "lifted_struct_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.margin = margin

    def _batch(self, y: Array, p: Array, gradient: bool, n_threads: int | None) -> tuple[float, Pullback | None]:
        (classes,) = pairwise.classes(y)
        size, pairs = len(p), classes.pairs
        if not pairs or len(classes.counts) < 2:
            # 0, or NaN if there is one.
            lost = np.nan if np.isnan(p).any() else 0.0
            return lost, lambda flow: np.full_like(p, lost)
        found = pairwise.euclidean(p, False, n_threads)
        matrix, codes = found.matrix, classes.codes
        losses, sums, slopes = np.empty(size, p.dtype), np.empty(size, p.dtype), square(p, gradient)
        arguments: tuple[Any, ...] = (matrix, codes, self.margin, sums, slopes, gradient)
        pairwise.scan(kernels.lifted_negatives, p.dtype, size, arguments, 1.5 * size * size, n_threads)
        arguments = (matrix, codes, sums, 1.0 / pairs, losses, slopes, gradient)
        pairwise.scan(kernels.lifted_pairs, p.dtype, size, arguments, 1.5 * size * size, n_threads)
        return mean(losses, 2.0 * pairs), (lambda flow: found.back(slopes, flow)) if gradient else None


class Circle(EmbeddingLoss):
    """Circle loss between labels and unit vectors: one loss a row.

    With ``d = max(1 - x_i·x_j, 0)``, ``s_p = gamma * max(d + margin, 0) * (d - margin)`` for the other samples of i's
    class and ``s_n = gamma * max(1 + margin - d, 0) * (1 - margin - d)`` for those of other classes, the loss of a row
    is ``log(1 + sum(exp(s_p)) * sum(exp(s_n)))``, and 0 where there is no positive or no negative.

    The gradient goes through the weights ``d + margin`` and ``1 + margin - d`` too. It is 0 where d is clamped, at 1
    exactly as beyond.

    Parameters
    ----------
    gamma : float
        Scale of the similarities.
    margin : float
        Below this distance negatives weigh more and positives less.
    remove_diagonal : bool
        Whether a sample is no positive of its own.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the losses of the rows become the value. Rows with loss 0 do not count, as if masked.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `gamma` is negative; at a call, for labels that are not one a row of `y_pred`.

    Notes
    -----
    ``y_true`` holds labels of any integer or floating dtype, shape (B,) or (B, 1), and they are compared as they are
    (Keras first cuts off fractions). ``y_pred`` has shape (B, D); its rows are taken as unit vectors, not normalised.
    A mask says which rows' losses count; the others are positives and negatives all the same. A NaN in an embedding
    makes value and gradient NaN. Memory: two B × B matrices.

    References
    ----------
    ``keras.losses.Circle``; Sun et al.: Circle Loss, 2020, arXiv:2002.10857.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.Circle(gamma=1.0)
    >>> value, grad = loss.value_and_grad([0, 0, 1], [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> print(f"{value:.4f} {grad.tolist()}")
    0.6484 [[-0.152..., -0.114...], [-0.190..., 0.311...], [0.249..., 0.187...]]
    """

    device_form = "circle"

    gamma = Option(options.non_negative)
    margin = Option(options.number)
    remove_diagonal = Option(options.flag)

    def __init__(
        self,
        gamma: float = 80.0,
        margin: float = 0.4,
        remove_diagonal: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "circle",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.gamma = gamma
        self.margin = margin
        self.remove_diagonal = remove_diagonal

    def _compute(
        self, y: Array, p: Array, valid: Array | None, outputs: int, n_threads: int | None
    ) -> tuple[Array, Pullback | None, Array]:
        (classes,) = pairwise.classes(y)
        found = pairwise.cosine(p, n_threads)
        gradient = outputs >= GRADIENT
        slopes = square(p, gradient)
        losses = self._rows(found.matrix, classes, classes, slopes, gradient, n_threads)
        back: Pullback | None = (lambda flow: found.back(slopes, flow)) if gradient else None
        return losses, back, losses != 0  # a NaN counts

    def _rows(
        self,
        matrix: Array,
        rows: pairwise.Classes,
        columns: pairwise.Classes,
        slopes: Array,
        gradient: bool,
        n_threads: int | None,
    ) -> Array:
        """The loss of each row of distances."""
        losses = np.empty(len(matrix), matrix.dtype)
        options = (self.remove_diagonal, self.gamma, self.margin)
        arguments = (matrix, rows.codes, columns.codes, *options, losses, slopes, gradient)
        pairwise.scan(kernels.circle, matrix.dtype, len(matrix), arguments, 3.0 * matrix.size, n_threads)
        return losses


def triplet_semihard_loss(
    y_true: Any, y_pred: Any, margin: float = 1.0, distance_metric: pairwise.Metric = "L2"
) -> Any:
    """The value of `TripletSemiHardLoss`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Labels, (B,) or (B, 1), and embeddings, (B, D).
    margin, distance_metric
        As for `TripletSemiHardLoss`.

    Returns
    -------
    numpy scalar

    Examples
    --------
    >>> import fastloss
    >>> float(fastloss.losses.triplet_semihard_loss([0, 0, 1], [[0.0], [1.0], [1.5]]))
    1.0
    """
    return TripletSemiHardLoss(margin, distance_metric)(y_true, y_pred)


def triplet_hard_loss(
    y_true: Any, y_pred: Any, margin: float = 1.0, soft: bool = False, distance_metric: pairwise.Metric = "L2"
) -> Any:
    """The value of `TripletHardLoss`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Labels, (B,) or (B, 1), and embeddings, (B, D).
    margin, soft, distance_metric
        As for `TripletHardLoss`.

    Returns
    -------
    numpy scalar

    Examples
    --------
    >>> import fastloss
    >>> float(fastloss.losses.triplet_hard_loss([0, 0, 1, 1], [[0.0], [1.0], [1.5], [2.5]]))
    1.0
    """
    return TripletHardLoss(margin, soft, distance_metric)(y_true, y_pred)


def lifted_struct_loss(y_true: Any, y_pred: Any, margin: float = 1.0) -> Any:
    """The value of `LiftedStructLoss`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Labels, (B,) or (B, 1), and embeddings, (B, D).
    margin
        As for `LiftedStructLoss`.

    Returns
    -------
    numpy scalar

    Examples
    --------
    >>> import fastloss
    >>> print(f"{fastloss.losses.lifted_struct_loss([0, 0, 1], [[0.0], [1.0], [3.0]]):.4f}")
    0.0491
    """
    return LiftedStructLoss(margin)(y_true, y_pred)


def circle(
    y_true: Any,
    y_pred: Any,
    ref_labels: Any = None,
    ref_embeddings: Any = None,
    remove_diagonal: bool = True,
    gamma: float = 80,
    margin: float = 0.4,
) -> Any:
    """Losses of the rows of `Circle`, also against other embeddings than their own.

    Parameters
    ----------
    y_true, y_pred : array_like
        Labels, (B,) or (B, 1), and unit vectors, (B, D).
    ref_labels, ref_embeddings : array_like, optional
        Labels, (R,) or (R, 1), and unit vectors, (R, D), that are the positives and negatives; by default `y_true` and
        `y_pred`.
    remove_diagonal : bool
        Whether reference i is no positive of row i; as in Keras also where references are given.
    gamma, margin
        As for `Circle`.

    Returns
    -------
    numpy.ndarray
        (B,)

    Raises
    ------
    ValueError
        If shapes do not match.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.circle([0, 0, 1], [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], gamma=1.0).tolist()
    [0.562..., 0.733..., 0.0]
    """
    loss = Circle(gamma, margin, remove_diagonal, reduction="none")
    if ref_labels is None and ref_embeddings is None:
        return loss(y_true, y_pred)
    compute, result = arrays.compute_dtypes(None, y_pred)
    y, p = loss._inputs(arrays.to_array("y_true", y_true, compute), arrays.to_array("y_pred", y_pred, compute), compute)
    q = p if ref_embeddings is None else arrays.to_array("ref_embeddings", ref_embeddings, compute)
    labels = y if ref_labels is None else arrays.to_array("ref_labels", ref_labels, compute)
    labels = labels_of(labels, q, ("ref_labels", "ref_embeddings"))
    if q.shape[1] != p.shape[1]:
        raise ValueError(
            f"`ref_embeddings` must have the size of `y_pred`, got y_pred.shape={p.shape} and "
            f"ref_embeddings.shape={q.shape}"
        )
    matrix = pairwise.product(p, q.astype(compute, copy=False).T)
    np.subtract(1, matrix, out=matrix)
    np.maximum(matrix, 0, out=matrix)
    rows, columns = pairwise.classes(y, labels)
    return loss._rows(matrix, rows, columns, square(p, False), False, None).astype(result, copy=False)
