"""Distances between all embeddings of a batch, and the way back from them: two matrix products, and scans between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastloss import kernels
from fastloss.engine import items, threads
from fastloss.kernels.embedding import BAND
from fastloss.losses.arrays import Array

Metric = str | Callable[[Array], Any]
Back = Callable[[Array, Array | float], Array]

scan = partial(items.run, least=threads.PRODUCT_WORK)
"""Run a kernel between matrix products."""

METRICS = ("L2", "squared-L2", "angular")

_SMALLEST_SQUARE = 1e-12
"""TensorFlow's ``l2_normalize``: a squared norm below this counts as this."""


class Classes(NamedTuple):
    """A batch's labels as numbers from 0, and who belongs to each.

    Attributes
    ----------
    codes : numpy.ndarray
        The class of each sample.
    members, starts : numpy.ndarray
        The members of class c are ``members[starts[c]:starts[c + 1]]``.
    counts : numpy.ndarray
        How many they are.
    """

    codes: Array
    members: Array
    starts: Array
    counts: Array

    @property
    def pairs(self) -> int:
        """How many ordered pairs of two samples of one class there are."""
        return int(np.sum(self.counts * (self.counts - 1)))


def classes(*labels: Array) -> tuple[Classes, ...]:
    """The classes of one batch, or of several with the same numbers for all; a NaN is a class of its own."""
    sizes = [len(some) for some in labels]
    together = np.unique(np.concatenate(labels), return_inverse=True, equal_nan=False)[1].astype(np.int32)
    result = []
    for codes in np.split(together, np.cumsum(sizes)[:-1]):
        counts = np.bincount(codes, minlength=1)
        starts = np.concatenate(([0], np.cumsum(counts)))
        result.append(Classes(codes, np.argsort(codes, kind="stable").astype(np.int32), starts, counts))
    return tuple(result)


class Distances(NamedTuple):
    """Distances between embeddings, and their pullback.

    Attributes
    ----------
    matrix : numpy.ndarray
        B × B.
    back : callable
        ``back(slopes, factors)`` turns the slopes of row losses in the distances of their row, B × B, and the gradient
        flowing into each row's loss, into the gradient of the embeddings. It uses up `matrix`.
    """

    matrix: Array
    back: Back


def product(a: Array, b: Array) -> Array:
    """A matrix product; what comes of infinities is no reason for a warning."""
    with np.errstate(all="ignore"):
        return np.asarray(a @ b)


def distances(p: Array, metric: Metric, gradient: bool, n_threads: int | None) -> Distances:
    """All distances between the rows of `p`."""
    if metric == "angular":
        return angular(p, n_threads)
    if callable(metric):
        return own(p, metric, gradient)
    return euclidean(p, metric == "squared-L2", n_threads)


def euclidean(p: Array, squared: bool, n_threads: int | None) -> Distances:
    """Norms of the differences, or their squares."""
    size = len(p)
    matrix = product(p, p.T)
    norms = matrix.diagonal().copy()
    scan(kernels.euclidean, p.dtype, size, (matrix, norms, p, squared), 0.7 * size * size, n_threads)

    def back(slopes: Array, factors: Array | float) -> Array:
        flows, scratch = _flows(p, factors), _scratch(p)
        gradient = np.zeros_like(p)
        arguments = (matrix, slopes, flows, norms, p, scratch, gradient, squared)
        scan(kernels.flow_euclidean, p.dtype, len(scratch), arguments, 2.0 * size * size, n_threads)
        with np.errstate(all="ignore"):
            gradient += matrix @ p
        return gradient

    return Distances(matrix, back)


def cosine(x: Array, n_threads: int | None) -> Distances:
    """``max(1 - x_i·x_j, 0)``."""
    matrix = product(x, x.T)
    with np.errstate(all="ignore"):
        np.subtract(1, matrix, out=matrix)
        np.maximum(matrix, 0, out=matrix)

    def back(slopes: Array, factors: Array | float) -> Array:
        flows, scratch = _flows(x, factors), _scratch(x)
        arguments = (matrix, slopes, flows, scratch)
        scan(kernels.flow_cosine, x.dtype, len(scratch), arguments, 1.5 * len(x) ** 2, n_threads)
        return product(matrix, x)

    return Distances(matrix, back)


def angular(p: Array, n_threads: int | None) -> Distances:
    """`cosine` of the embeddings divided by their norms."""
    with np.errstate(all="ignore"):
        squares = np.einsum("ij,ij->i", p, p)[:, None]
        inverse = 1 / np.sqrt(np.maximum(squares, p.dtype.type(_SMALLEST_SQUARE)))
        unit = p * inverse
    found = cosine(unit, n_threads)

    def back(slopes: Array, factors: Array | float) -> Array:
        gradient = found.back(slopes, factors)
        with np.errstate(all="ignore"):
            along = np.einsum("ij,ij->i", unit, gradient)[:, None]
            # A norm that was too small to divide by does not depend on the embedding.
            along[squares < p.dtype.type(_SMALLEST_SQUARE)] = 0
            gradient -= along * unit
            gradient *= inverse
        return gradient

    return Distances(found.matrix, back)


def own(p: Array, metric: Callable[[Array], Any], gradient: bool) -> Distances:
    """The distances that a user's function gives."""
    answer = metric(p)
    given, pullback = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    matrix = np.array(given, dtype=p.dtype, order="C")
    if matrix.shape != (len(p), len(p)):
        raise ValueError(
            f"`distance_metric` must return distances of shape {(len(p), len(p))} for `y_pred` of shape {p.shape}, "
            f"got shape {matrix.shape}"
        )
    if gradient and not callable(pullback):
        raise NotImplementedError(
            "for a gradient a callable `distance_metric` must return `(distances, pullback)`, where `pullback(slopes)` "
            "is the gradient of `sum(slopes * distances)` in the embeddings; it returned "
            + ("distances only" if pullback is None else f"a tuple with {pullback!r}")
        )

    def back(slopes: Array, factors: Array | float) -> Array:
        assert pullback is not None
        result = np.asarray(pullback(slopes * np.reshape(np.asarray(factors, p.dtype), (-1, 1))), p.dtype)
        if result.shape != p.shape:
            raise ValueError(
                f"the pullback of `distance_metric` must return an array of `y_pred`'s shape, {p.shape}, "
                f"got shape {result.shape}"
            )
        return result

    return Distances(matrix, back)


def _flows(p: Array, factors: Array | float) -> Array:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(factors, p.dtype).reshape(-1), len(p)))


def _scratch(p: Array) -> Array:
    return np.empty((-(-len(p) // BAND), BAND * BAND), p.dtype)
