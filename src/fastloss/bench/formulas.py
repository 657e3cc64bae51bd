"""Every loss of elements and rows in plain NumPy, value and gradient, as one would write it without a library.

Each is a contestant, in the dtype that is measured, and in float64 what all contestants are held against: so none is
computed in float64 by accident. ``f(y, p)`` takes targets and predictions in two dimensions and returns the mean of the
samples' losses and its gradient in `p`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastloss.losses.arrays import Array

EPSILON = 1e-7
Result = tuple[Any, Array]


def of_elements(loss: Array, slope: Array) -> Result:
    """The mean over everything."""
    return loss.mean(), slope / loss.size


def of_rows(loss: Array, slope: Array) -> Result:
    """The mean over rows, of a loss a row or of elements to be summed in each."""
    return loss.sum() / len(loss), slope / len(loss)


def _clip(p: Array) -> Array:
    return np.clip(p, EPSILON, 1 - p.dtype.type(EPSILON))


def mean_squared_error(y: Array, p: Array) -> Result:
    e = p - y
    return of_elements(e * e, 2 * e)


def mean_absolute_error(y: Array, p: Array) -> Result:
    e = p - y
    return of_elements(np.abs(e), np.sign(e))


def huber(y: Array, p: Array) -> Result:
    e = p - y
    s = np.clip(e, -1, 1)
    return of_elements(s * (e - s / 2), s)


def log_cosh(y: Array, p: Array) -> Result:
    e = p - y
    a = np.abs(e)
    return of_elements(a + np.log1p(np.exp(-2 * a)) - math.log(2), np.tanh(e))


def mean_absolute_percentage_error(y: Array, p: Array) -> Result:
    r = 100 / np.maximum(np.abs(y), EPSILON)
    e = p - y
    return of_elements(r * np.abs(e), r * np.sign(e))


def mean_squared_logarithmic_error(y: Array, p: Array) -> Result:
    p = np.maximum(p, EPSILON)
    d = np.log1p(p) - np.log1p(np.maximum(y, EPSILON))
    return of_elements(d * d, 2 * d / (1 + p))


def pinball_loss(y: Array, p: Array) -> Result:
    e = p - y
    return of_elements(np.abs(e) / 2, np.sign(e) / 2)


def contrastive_loss(y: Array, p: Array) -> Result:
    m = np.maximum(1 - p, 0)
    return of_elements(y * p * p + (1 - y) * m * m, 2 * (y * p - (1 - y) * m))


def hinge(y: Array, p: Array) -> Result:
    m = 1 - y * p
    return of_elements(np.maximum(m, 0), np.where(m > 0, -y, 0))


def squared_hinge(y: Array, p: Array) -> Result:
    m = np.maximum(1 - y * p, 0)
    return of_elements(m * m, -2 * y * m)


def poisson(y: Array, p: Array) -> Result:
    q = p + EPSILON
    return of_elements(p - y * np.log(q), 1 - y / q)


def kl_divergence(y: Array, p: Array) -> Result:
    t, q = np.clip(y, EPSILON, 1), np.clip(p, EPSILON, 1)
    return of_rows(t * np.log(t / q), -t / q)


def _binary(y: Array, p: Array, logits: bool, offset: float = 0.0) -> tuple[Array, Array, Array]:
    """Cross-entropies, their slopes in `p`, and probabilities."""
    if logits:
        e = np.exp(-np.abs(p))
        q = np.where(p >= 0, 1, e) / (1 + e)
        return np.maximum(p, 0) - y * p + np.log1p(e), q - y, q
    q = _clip(p)
    yes, no = q + offset, 1 - q + offset
    return -y * np.log(yes) - (1 - y) * np.log(no), (1 - y) / no - y / yes, p


def binary_crossentropy(y: Array, p: Array, logits: bool = False) -> Result:
    return of_elements(*_binary(y, p, logits)[:2])


def _binary_focal(y: Array, p: Array, logits: bool, alpha: Any, offset: float) -> tuple[Array, Array]:
    loss, slope, q = _binary(y, p, logits, offset)
    wrong = y * (1 - q) + (1 - y) * q
    inner = (1 - 2 * y) * (q * (1 - q) if logits else 1)
    return alpha * wrong * wrong * loss, alpha * wrong * (wrong * slope + 2 * inner * loss)


def binary_focal_crossentropy(y: Array, p: Array, logits: bool = False) -> Result:
    return of_elements(*_binary_focal(y, p, logits, 1, 0.0))


def sigmoid_focal_crossentropy(y: Array, p: Array, logits: bool = False) -> Result:
    return of_rows(*_binary_focal(y, p, logits, 0.75 - y / 2, EPSILON))


def _softmax(p: Array) -> tuple[Array, Array]:
    """Its logarithm, and it."""
    z = p - p.max(axis=1, keepdims=True)
    e = np.exp(z)
    s = e.sum(axis=1, keepdims=True)
    return z - np.log(s), e / s


def categorical_crossentropy(y: Array, p: Array, logits: bool = False) -> Result:
    if logits:
        log_q, q = _softmax(p)
        return of_rows(-y * log_q, q * y.sum(axis=1, keepdims=True) - y)
    s = p.sum(axis=1, keepdims=True)
    return of_rows(-y * np.log(_clip(p / s)), y.sum(axis=1, keepdims=True) / s - y / p)


def sparse_categorical_crossentropy(y: Array, p: Array, logits: bool = False) -> Result:
    rows = np.arange(len(p))
    if logits:
        log_q, gradient = _softmax(p)
        loss, at_labels = -log_q[rows, y], np.ones(len(p), p.dtype)
    else:
        s = p.sum(axis=1, keepdims=True)
        loss, at_labels = -np.log(_clip(p[rows, y] / s[:, 0])), 1 / p[rows, y]
        gradient = np.repeat(1 / s, p.shape[1], axis=1)
    gradient[rows, y] -= at_labels
    return of_rows(loss, gradient)


def categorical_focal_crossentropy(y: Array, p: Array, logits: bool = False) -> Result:
    s = p.sum(axis=1, keepdims=True)
    q = _clip(_softmax(p)[1] if logits else p / s)
    log_q, wrong = np.log(q), 1 - q
    slope = y * wrong * (2 * log_q - wrong / q) / 4
    slope -= (slope * q).sum(axis=1, keepdims=True)
    return of_rows(-y * wrong * wrong * log_q / 4, slope * q if logits else slope / s)


def categorical_generalized_cross_entropy(y: Array, p: Array) -> Result:
    rows = np.arange(len(p))
    root = np.sqrt(p[rows, y])
    gradient = np.zeros_like(p)
    gradient[rows, y] = -1 / root
    return of_rows(2 * (1 - root), gradient)


def cosine_similarity(y: Array, p: Array) -> Result:
    length = np.maximum(np.linalg.norm(p, axis=1, keepdims=True), EPSILON)
    a = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), EPSILON)
    b = p / length
    c = (a * b).sum(axis=1, keepdims=True)
    return of_rows(-c, (c * b - a) / length)


def categorical_hinge(y: Array, p: Array) -> Result:
    rows = np.arange(len(p))
    wrong = (1 - y) * p
    first = wrong.argmax(axis=1)
    loss = np.maximum(wrong[rows, first] - (y * p).sum(axis=1) + 1, 0)
    gradient = -y
    gradient[rows, first] += 1 - y[rows, first]
    gradient[loss == 0] = 0
    return of_rows(loss, gradient)


def sparsemax_loss(y: Array, p: Array) -> Result:
    ordered = -np.sort(-p, axis=1)
    excess = ordered.cumsum(axis=1, dtype=np.float64) - 1
    count = np.arange(1, p.shape[1] + 1)
    support = (count * ordered > excess).sum(axis=1, keepdims=True)
    threshold = (np.take_along_axis(excess, support - 1, axis=1) / support).astype(p.dtype)
    s = np.maximum(p - threshold, 0)
    return of_rows(s * (p - s / 2) + y * (y / 2 - p), s - y)


def dice(y: Array, p: Array) -> Result:
    both, all_of_it = (y * p).sum(), y.sum() + p.sum() + EPSILON
    ratio = 2 * both / all_of_it
    return 1 - ratio, (ratio - 2 * y) / all_of_it


def tversky(y: Array, p: Array) -> Result:
    both = (y * p).sum()
    all_of_it = both + ((1 - y) * p).sum() / 2 + (y * (1 - p)).sum() / 2 + EPSILON
    ratio = both / all_of_it
    return 1 - ratio, (ratio / 2 - y) / all_of_it


FORMULAS: dict[str, Callable[[Array, Array], Result]] = {
    function.__name__: function
    for function in (
        mean_squared_error,
        mean_absolute_error,
        huber,
        log_cosh,
        binary_crossentropy,
        categorical_crossentropy,
        sparse_categorical_crossentropy,
        mean_absolute_percentage_error,
        mean_squared_logarithmic_error,
        cosine_similarity,
        pinball_loss,
        contrastive_loss,
        hinge,
        squared_hinge,
        categorical_hinge,
        poisson,
        kl_divergence,
        binary_focal_crossentropy,
        sigmoid_focal_crossentropy,
        categorical_focal_crossentropy,
        categorical_generalized_cross_entropy,
        sparsemax_loss,
        dice,
        tversky,
    )
}
FORMULAS |= {
    f"{function.__name__}, from logits": partial(function, logits=True)
    for function in (
        binary_crossentropy,
        categorical_crossentropy,
        sparse_categorical_crossentropy,
        binary_focal_crossentropy,
        sigmoid_focal_crossentropy,
        categorical_focal_crossentropy,
    )
}
"""Label of a case → its formula, with the defaults of the loss."""
