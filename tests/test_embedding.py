"""Losses of embeddings: against loops written from the definitions, autodiff, Keras, differences; ties, kinks, memory.

The oracles are plain loops over anchors, positives and negatives, in float64. Autodiff differentiates another naive
form of the same formulas, whole B × B × B arrays in JAX.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse

os.environ.setdefault("KERAS_BACKEND", "jax")

jax = pytest.importorskip("jax", reason="JAX is not installed: no autodiff to compare with")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

import fastloss  # noqa: E402
from fastloss import kernels, losses  # noqa: E402
from fastloss.engine.toolbox import Toolbox  # noqa: E402
from fastloss.registry import BATCH_LOSSES  # noqa: E402
from reference import assert_close, assert_same_bits, difference  # noqa: E402

METRICS = ("L2", "squared-L2", "angular")
SCALARS = (
    "triplet_semihard_loss",
    "triplet_hard_loss",
    "lifted_struct_loss",
    "npairs_loss",
    "npairs_multilabel_loss",
)
NAMES = (*SCALARS, "circle")
EMBEDDINGS = ("triplet_semihard_loss", "triplet_hard_loss", "lifted_struct_loss", "circle")
CASES = [
    pytest.param(name, params, id=f"{name}-{','.join(f'{k}={v}' for k, v in params.items())}")
    for name in NAMES
    for params in BATCH_LOSSES[name].variants
]
every_case = pytest.mark.parametrize(("name", "params"), CASES)
every_float = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def make(name, /, **params):
    return BATCH_LOSSES[name].cls(**params)


def example(name, size=12, width=5, classes=4, seed=0, dtype=np.float64):
    """Labels and predictions: labels in no order, every class at least twice where there is room."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size) % classes)
    if name.startswith("npairs"):
        p = rng.normal(size=(size, size)) * 2
        if "multilabel" in name:
            labels = (rng.random((size, classes)) < 0.4).astype(np.int64)
            labels[np.arange(size), rng.integers(0, classes, size)] = 1
    else:
        p = rng.normal(size=(size, width)) * 0.7
    if name == "circle":
        p /= np.linalg.norm(p, axis=1, keepdims=True)
    return labels, p.astype(dtype)


# --------------------------------------------------------------------------------------------------------------
# Oracles
# --------------------------------------------------------------------------------------------------------------


def distance(x, y, metric):
    if metric == "angular":
        norms = [math.sqrt(max(float(v @ v), 1e-12)) for v in (x, y)]
        return max(1 - float(x @ y) / (norms[0] * norms[1]), 0.0)
    square = float((x - y) @ (x - y))
    return square if metric == "squared-L2" else math.sqrt(square)


def distances(p, metric="L2"):
    return [[distance(x, y, metric) for y in p] for x in p]


def log_sum_exp(values):
    if not values:
        return -math.inf
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def triplet_semihard_loss(y, p, margin=1.0, distance_metric="L2"):
    d = distances(p, distance_metric)
    terms = []
    for i, j in itertools.permutations(range(len(p)), 2):
        if y[i] == y[j]:
            negatives = [d[i][k] for k in range(len(p)) if y[k] != y[i]]
            beyond = [n for n in negatives if n > d[i][j]]
            negative = min(beyond) if beyond else max(negatives) if negatives else min(d[i])
            terms.append(max(margin + d[i][j] - negative, 0.0))
    return sum(terms) / len(terms) if terms else 0.0


def triplet_hard_loss(y, p, margin=1.0, soft=False, distance_metric="L2"):
    d = distances(p, distance_metric)
    terms = []
    for i in range(len(p)):
        positive = max((d[i][j] for j in range(len(p)) if y[j] == y[i] and j != i), default=0.0)
        negative = min((d[i][k] for k in range(len(p)) if y[k] != y[i]), default=max(d[i]))
        e = positive - negative
        terms.append(math.log1p(math.exp(e)) if soft else max(e + margin, 0.0))
    return sum(terms) / len(terms)


def lifted_struct_loss(y, p, margin=1.0):
    d = distances(p)
    n = len(p)
    pairs = [(i, j) for i, j in itertools.combinations(range(n), 2) if y[i] == y[j]]
    if not pairs or len(set(y)) == 1:
        return 0.0
    total = 0.0
    for i, j in pairs:
        inner = [margin - d[i][k] for k in range(n) if y[k] != y[i]] + [
            margin - d[j][k] for k in range(n) if y[k] != y[j]
        ]
        total += max(log_sum_exp(inner) + d[i][j], 0.0) ** 2
    return total / (2 * len(pairs))


def cross_entropies(targets, scores):
    return np.mean([-sum(t * (z - log_sum_exp(list(row))) for t, z in zip(ts, row, strict=True) if t)
                    for ts, row in zip(targets, scores, strict=True)])  # fmt: skip


def npairs_loss(y, p):
    same = np.array([[float(a == b) for b in y] for a in y])
    return cross_entropies(same / same.sum(axis=1, keepdims=True), p)


def npairs_multilabel_loss(y, p):
    shared = np.array([[float(sum(u * v for u, v in zip(a, b, strict=True))) for b in y] for a in y])
    return cross_entropies(shared / shared.sum(axis=1, keepdims=True), p)


def circle_rows(y, p, ref_y=None, ref_p=None, remove_diagonal=True, gamma=80.0, margin=0.4):
    ref_y, ref_p = y if ref_y is None else ref_y, p if ref_p is None else ref_p
    rows = []
    for i, x in enumerate(p):
        d = [max(1 - float(x @ q), 0.0) for q in ref_p]
        same = [ref_y[j] == y[i] for j in range(len(ref_p))]
        positives = [
            gamma * (d[j] ** 2 - margin**2) for j in range(len(d)) if same[j] and not (remove_diagonal and i == j)
        ]
        negatives = [gamma * max(1 + margin - d[j], 0) * (1 - margin - d[j]) for j in range(len(d)) if not same[j]]
        z = log_sum_exp(positives) + log_sum_exp(negatives)
        rows.append(float(np.logaddexp(0, z)))
    return np.array(rows)


def circle(y, p, **params):
    rows = circle_rows(y, p, **params)
    return rows.sum() / max(np.count_nonzero(rows), 1)


ORACLES = {f.__name__: f for f in (triplet_semihard_loss, triplet_hard_loss, lifted_struct_loss)}
ORACLES |= {f.__name__: f for f in (npairs_loss, npairs_multilabel_loss, circle)}


# Naive forms for autodiff. Every selection is a mask over whole arrays.


def jax_distances(p, metric):
    if metric == "angular":
        unit = p / jnp.sqrt(jnp.maximum((p * p).sum(axis=1, keepdims=True), 1e-12))
        return jnp.maximum(1 - unit @ unit.T, 0)
    square = ((p[:, None] - p[None]) ** 2).sum(axis=2)
    if metric == "squared-L2":
        return square
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def jax_loss(name, y, params):
    y = jnp.asarray(y)
    n = len(y)
    same = (y[:, None] == y[None]) if y.ndim == 1 else None
    others = None if same is None else same & ~jnp.eye(n, dtype=bool)

    def semihard(p):
        d = jax_distances(p, params.get("distance_metric", "L2"))
        beyond = ~same[:, None, :] & (d[:, None, :] > d[:, :, None])
        outside = jnp.min(jnp.where(beyond, d[:, None, :], jnp.inf), axis=2)
        inside = jnp.max(jnp.where(same, -jnp.inf, d), axis=1, keepdims=True)
        terms = jnp.maximum(params.get("margin", 1.0) + d - jnp.where(beyond.any(axis=2), outside, inside), 0)
        return jnp.where(others, terms, 0).sum() / others.sum()

    def hard(p):
        d = jax_distances(p, params.get("distance_metric", "L2"))
        e = jnp.max(jnp.where(others, d, 0), axis=1) - jnp.min(jnp.where(same, jnp.inf, d), axis=1)
        return jnp.mean(jnp.log1p(jnp.exp(e)) if params.get("soft") else jnp.maximum(e + params.get("margin", 1.0), 0))

    def lifted(p):
        d = jax_distances(p, "L2")
        sums = jnp.where(same, 0, jnp.exp(params.get("margin", 1.0) - d)).sum(axis=1)
        j = jnp.log(sums[:, None] + sums[None]) + d
        return jnp.where(others, jnp.maximum(j, 0) ** 2, 0).sum() / 2 / others.sum()

    def pairs(p):
        t = (y @ y.T if same is None else same).astype(p.dtype)
        return -jnp.mean(jnp.sum(t / t.sum(axis=1, keepdims=True) * jax.nn.log_softmax(p), axis=1))

    def circles(p):
        gamma, margin = params.get("gamma", 80.0), params.get("margin", 0.4)
        d = jnp.maximum(1 - p @ p.T, 0)
        positive = others if params.get("remove_diagonal", True) else same
        s_p = jnp.where(positive, gamma * (d**2 - margin**2), -jnp.inf)
        s_n = jnp.where(same, -jnp.inf, gamma * jnp.maximum(1 + margin - d, 0) * (1 - margin - d))
        rows = jax.nn.softplus(jax.nn.logsumexp(s_p, axis=1) + jax.nn.logsumexp(s_n, axis=1))
        return rows.sum() / (rows > 0).sum()

    return {
        "triplet_semihard_loss": semihard,
        "triplet_hard_loss": hard,
        "lifted_struct_loss": lifted,
        "npairs_loss": pairs,
        "npairs_multilabel_loss": pairs,
        "circle": circles,
    }[name]


# --------------------------------------------------------------------------------------------------------------
# Values and gradients
# --------------------------------------------------------------------------------------------------------------


@every_case
@every_float
def test_value_is_the_oracles(name, params, dtype):
    for size, classes, seed in ((12, 4, 0), (9, 8, 1), (7, 2, 2), (2, 1, 4), (1, 1, 5), (40, 3, 6)):
        y, p = example(name, size, classes=classes, seed=seed, dtype=dtype)
        value = make(name, **params)(y, p)
        assert value.dtype == dtype
        assert value.shape == ()
        # Circle's exponents multiply the roundings of float32 similarities by gamma.
        rtol = 2e-4 if dtype == np.float32 and name == "circle" else None
        want = ORACLES[name](list(y), p.astype(np.float64), **params)
        atol = 1e-7 if dtype == np.float32 else 1e-12
        assert_close(value, want, f"{size} samples, {classes} classes", rtol=rtol, atol=atol)
        got, _ = make(name, **params).value_and_grad(y, p)
        assert_close(got, value, rtol=1e-6 if dtype == np.float32 else 1e-14)


@every_case
@every_float
def test_gradient_is_autodiffs(name, params, dtype):
    for size, classes, seed in ((33, 3, 11), (70, 20, 12), (9, 3, 13))[: 3 if dtype == np.float64 else 1]:
        y, p = example(name, size, classes=classes, seed=seed, dtype=dtype)
        want_value, want = jax.value_and_grad(jax_loss(name, y, params))(jnp.asarray(p, jnp.float64))
        value, gradient = make(name, **params).value_and_grad(y, p)
        assert gradient.dtype == dtype
        tolerance = 1e-12 if dtype == np.float64 else 2e-3 if name == "circle" else 1e-5
        assert_close(value, want_value, rtol=tolerance)
        scale = float(np.abs(want).max())
        assert scale > 0
        assert_close(gradient, want, f"{size}, {classes}", rtol=tolerance, atol=tolerance * scale)


@every_case
def test_gradient_is_the_difference_of_the_oracle(name, params):
    y, p = example(name, 8, width=3, classes=3, seed=20)
    gradient = make(name, **params).value_and_grad(y, p)[1]
    step = 1e-4
    want = difference(lambda at: ORACLES[name](list(y), at, **params), p, step)
    assert_close(gradient, want, rtol=1e-7, atol=1e-8 * np.abs(want).max())


@pytest.mark.parametrize("name", ["triplet_semihard_loss", "triplet_hard_loss", "lifted_struct_loss"])
@pytest.mark.parametrize("sizes", [[1] * 6, [6], [5, 1], [1, 1, 4], [3, 3]], ids=str)
@every_float
def test_classes_of_all_sizes(name, sizes, dtype):
    y = np.repeat(np.arange(len(sizes)), sizes)
    _, p = example(name, 6, seed=30, dtype=dtype)
    metrics = [{"distance_metric": m} for m in METRICS] if "triplet" in name else [{}]
    for params in metrics:
        value, gradient = make(name, **params).value_and_grad(y, p)
        assert_close(value, ORACLES[name](list(y), p.astype(np.float64), **params), atol=1e-6)
        if len(sizes) > 1 or dtype == np.float32 or name == "lifted_struct_loss":
            assert np.isfinite(gradient).all()
        want = difference(lambda at, params=params: ORACLES[name](list(y), at, **params), p.astype(np.float64), 1e-4)
        loose = 1e-7 if dtype == np.float64 else 1e-4
        assert_close(gradient, want, rtol=loose, atol=loose)


def test_one_class_and_lonely_samples():
    p = np.array([[0.0], [1.0], [3.0]])
    semihard, hard, lifted = make("triplet_semihard_loss"), make("triplet_hard_loss"), make("lifted_struct_loss")
    # One class: the negative distance is the row's smallest, its own 0; and the row's largest for hard mining.
    value, gradient = semihard.value_and_grad([7, 7, 7], p)
    assert_close(value, 1 + 2 * (1 + 3 + 2) / 6)
    assert_close(gradient, np.array([[-4], [0], [4]]) / 6)
    value, gradient = hard.value_and_grad([7, 7, 7], p)
    assert_close(value, 1.0)
    np.testing.assert_array_equal(gradient, 0)
    # All alone: no positive pairs. Hard mining has a positive distance of 0.
    for labels in ([1, 2, 3], [[1], [2], [3]]):
        value, gradient = semihard.value_and_grad(labels, p)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
        value, gradient = hard.value_and_grad(labels, p - 0.25 * p)
        assert_close(value, (0.25 + 0.25 + 0.0) / 3)
    for labels in ([7, 7, 7], [1, 2, 3]):
        value, gradient = lifted.value_and_grad(labels, p)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
        assert np.isnan(lifted(labels, p * np.nan))
    # Without a positive or without a negative a row of the circle loss is 0 and does not count.
    _, unit = example("circle", 3)
    for labels in ([7, 7, 7], [1, 2, 3]):
        value, gradient = make("circle").value_and_grad(labels, unit)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_ties_go_to_the_first():
    # Sample 0 has two equally near negatives, 2 and 3, of two classes, and two equally far positives, 1 and 4.
    p = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, -2.0], [-1.0, 0.0], [9.0, 9.0], [9.0, -9.0]])
    y = np.array([0, 0, 2, 1, 0, 1, 2])
    seen = {}

    def metric(e):
        d = np.sqrt(((e[:, None] - e[None]) ** 2).sum(axis=2))
        return d, lambda w: (seen.update(w=w), np.zeros_like(e))[1]

    make("triplet_hard_loss", margin=9.0, distance_metric=metric).value_and_grad(y, p)
    np.testing.assert_allclose(seen["w"][0], np.array([0, 1, -1, 0, 0, 0, 0]) / 7)
    make("triplet_semihard_loss", margin=9.0, distance_metric=metric).value_and_grad(y, p)
    pairs = 3 * 2 + 2 + 2
    np.testing.assert_allclose(seen["w"][0], np.array([0, 1, -2, 0, 1, 0, 0]) / pairs)
    # A negative exactly as far as the positive is not farther; here the farthest is taken, of two the first.
    q = np.array([[0.0], [1.0], [1.0], [-1.0]])
    value, _ = make("triplet_semihard_loss", distance_metric=metric).value_and_grad([0, 0, 1, 1], q)
    np.testing.assert_allclose(seen["w"][0], np.array([0, 1, -1, 0]) / 4)
    assert_close(value, triplet_semihard_loss([0, 0, 1, 1], q))


def test_the_first_of_equally_far_negatives_is_found_on_every_way():
    rng = np.random.default_rng(41)
    seen = {}

    def metric(e):
        d = np.abs(e[:, 0][:, None] - e[:, 0][None])
        return d, lambda w: (seen.update(w=w), np.zeros_like(e))[1]

    for size, values in ((24, 4), (90, 4), (90, 60)):  # looking, sorted (few values crowd), in cells
        y, p = rng.integers(0, 2, size), rng.integers(0, values, (size, 1)).astype(float)
        make("triplet_semihard_loss", margin=500.0, distance_metric=metric).value_and_grad(y, p)
        d, want = metric(p)[0], np.zeros((size, size))
        for i, j in itertools.permutations(range(size), 2):
            if y[i] == y[j]:
                others = [k for k in range(size) if y[k] != y[i]]
                beyond = [k for k in others if d[i, k] > d[i, j]]
                want[i, j] += 1
                want[i, min(beyond, key=lambda k: d[i, k]) if beyond else max(others, key=lambda k: d[i, k])] -= 1
        pairs = sum(int(a == b) for a in y for b in y) - size
        np.testing.assert_allclose(seen["w"] * pairs, want, atol=1e-9)


@every_float
def test_ties_everywhere(dtype):
    """Embeddings on a grid: many equal distances, and equal embeddings of one class and of two."""
    rng = np.random.default_rng(40)
    for trial in range(20):
        p = rng.integers(0, 3, (15, 2)).astype(dtype)
        y = rng.integers(0, 3, 15)
        for name in ("triplet_semihard_loss", "triplet_hard_loss", "lifted_struct_loss"):
            value, gradient = make(name).value_and_grad(y, p)
            assert_close(value, ORACLES[name](list(y), p.astype(np.float64)), f"{name} {trial}")
            assert np.isfinite(gradient).all()


def test_a_hinge_at_zero_has_no_gradient():
    p = np.array([[0.0], [1.0], [2.0]])
    for name in ("triplet_semihard_loss", "triplet_hard_loss"):
        value, gradient = make(name, margin=-1.0).value_and_grad([0, 1, 2], p)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
    # Row 0: 1 + 1 - 2 = 0; row 1: the only negative is at 1, not farther than the positive.
    value, gradient = make("triplet_semihard_loss").value_and_grad([0, 0, 1], p)
    assert_close(value, (0 + 1) / 2)
    assert_close(gradient, np.array([[-1], [2], [-1]]) / 2)
    value, gradient = make("triplet_hard_loss", margin=0.0).value_and_grad([0, 0, 1], p - [[0.0], [0.0], [1.0]])
    assert_close(value, 1 / 3)  # rows: 1 - 1, 1 - 0, 0 - 0


def test_identical_embeddings():
    y = np.array([0, 0, 1, 1])
    for dtype, p in itertools.product((np.float32, np.float64), ([[0.3, 0.7, 0.11]] * 4, [[0.0, 0.0, 0.0]] * 4)):
        p = np.array(p, dtype)
        for metric in METRICS:
            zero = metric == "angular" and not p.any()
            for name in ("triplet_semihard_loss", "triplet_hard_loss"):
                value, gradient = make(name, distance_metric=metric).value_and_grad(y, p)
                assert_close(value, 1.0, f"{metric} {name} {dtype}")
                assert np.isfinite(gradient).all()
                if not zero:
                    np.testing.assert_allclose(gradient, 0, atol=1e-6)
        value, gradient = make("lifted_struct_loss").value_and_grad(y, p)
        assert_close(value, (1 + math.log(4)) ** 2 / 2)
        np.testing.assert_array_equal(gradient, 0)


@every_float
def test_near_embeddings_keep_their_digits(dtype):
    """Far from the origin and close together, where a Gram matrix has no digits left."""
    rng = np.random.default_rng(50)
    step = 2.0**-20  # so that float32 holds the sums exactly
    p = (8 + rng.integers(0, 20_000, (20, 6)) * step).astype(dtype)
    y = np.arange(20) % 4
    exact = p.astype(np.float64)
    for metric in ("L2", "squared-L2"):
        for name in ("triplet_semihard_loss", "triplet_hard_loss"):
            params = {"margin": 0.005, "distance_metric": metric}
            value, gradient = make(name, **params).value_and_grad(y, p)
            want_value, want = jax.value_and_grad(jax_loss(name, y, params))(jnp.asarray(exact))
            scale = float(np.abs(want).max())
            tolerance = 1e-5 if dtype == np.float32 else 1e-12
            assert_close(value, want_value, rtol=tolerance, atol=0)
            assert_close(gradient, want, rtol=tolerance, atol=tolerance * scale)


@every_case
def test_order_of_the_batch_does_not_matter(name, params):
    y, p = example(name, 30, classes=5, seed=60)
    order = np.random.default_rng(61).permutation(30)
    value, gradient = make(name, **params).value_and_grad(y, p)
    columns = order if name.startswith("npairs") else slice(None)
    moved_value, moved = make(name, **params).value_and_grad(y[order], p[order][:, columns])
    assert_close(moved_value, value, rtol=1e-12)
    assert_close(moved, gradient[order][:, columns], rtol=1e-11, atol=1e-13)


@every_case
@every_float
def test_threads_give_the_same_bits(name, params, dtype):
    y, p = example(name, 150, width=7, classes=6, seed=70, dtype=dtype)
    loss = make(name, **params)
    assert_same_bits(loss(y, p, n_threads=2), loss(y, p, n_threads=1))
    for one, two in zip(loss.value_and_grad(y, p, n_threads=1), loss.value_and_grad(y, p, n_threads=2), strict=True):
        assert_same_bits(two, one)


# --------------------------------------------------------------------------------------------------------------
# Calls: weights, masks, upstream, out, dtypes, layouts
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALARS)
def test_scalars_under_reductions_and_weights(name):
    y, p = example(name, seed=80)
    plain, slope = make(name).value_and_grad(y, p)
    assert make(name).reduction == "none"
    for reduction in ("none", None, "sum", "mean", "sum_over_batch_size", "mean_with_sample_weight", "auto"):
        loss = make(name, reduction=reduction)
        for weight in (None, 2.5, [2.5], np.float32(-1.5), 0.0, True):
            factor = 1.0 if weight is None else float(np.ravel(weight)[0])
            value, gradient = loss.value_and_grad(y, p, weight, upstream=-3.0)
            assert_close(value, plain * factor)
            assert_close(gradient, slope * factor * -3.0)
        for wrong in (np.ones(len(p)), [1.0, 2.0], np.ones((len(p), 1))):
            with pytest.raises(ValueError, match=r"(?s)sample_weight.*\(\)"):
                loss(y, p, wrong)
        out = np.empty_like(p)
        value, gradient = loss.value_and_grad(y, p, out=out)
        assert gradient is out
        assert_close(out, slope)
        value, gradient = loss.value_and_grad(y, p, mask=False)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
        assert_close(loss(y, p, mask=True), plain)
        with pytest.raises(ValueError, match="class_weight"):
            loss(y, p, class_weight={0: 2.0})
    assert make(name, reduction="auto").reduction == "sum_over_batch_size"
    copy = p.copy()
    value, gradient = make(name).value_and_grad(y, copy, out=copy)
    assert gradient is copy
    assert_close(copy, slope)


def test_auto_is_for_addons_alone():
    with pytest.raises(ValueError, match="Invalid value for argument `reduction`"):
        losses.Circle(reduction="auto")
    with pytest.raises(ValueError, match="Invalid value for argument `reduction`"):
        losses.NpairsLoss(reduction="average")


def test_circle_under_reductions_weights_and_masks():
    y, p = example("circle", 12, seed=90)
    y[y == y[0]] = np.arange(len(y))[y == y[0]] + 50  # lonely rows, whose loss is 0
    rows = circle_rows(list(y), p, gamma=4.0)
    assert 0 < np.count_nonzero(rows) < len(rows)
    rng = np.random.default_rng(91)
    weight, valid = rng.random(12), rng.random(12) < 0.7
    counted = rows != 0

    def reduced(how, w, m, at):
        values = circle_rows(list(y), at, gamma=4.0)
        kept = counted & (np.ones(12, bool) if m is None else m)
        factors = np.where(kept, np.ones(12) if w is None else w, 0)
        if how == "none":
            return values * factors
        total = (values * factors).sum()
        return total if how == "sum" else total / (factors.sum() if how == "mean_with_sample_weight" else kept.sum())

    upstream = rng.normal(size=12)
    for how in ("sum_over_batch_size", "mean_with_sample_weight", "sum", "none"):
        loss = make("circle", gamma=4.0, reduction=how)
        for w, m in itertools.product((None, weight), (None, valid)):
            flow = upstream if how == "none" else 1.5
            value, gradient = loss.value_and_grad(y, p, w, mask=m, upstream=flow)
            assert_close(value, reduced(how, w, m, p), f"{how}")
            want = difference(lambda at, a=(how, w, m), f=flow: np.sum(reduced(*a, at) * f), p, 1e-4)
            assert_close(gradient, want, rtol=1e-7, atol=1e-8)
    by_class = losses.Circle(gamma=4.0, reduction="none")(y, p, class_weight={int(y[1]): 3.0})
    assert_close(by_class, rows * np.where(y == y[1], 3.0, 1.0))


def test_circle_against_references():
    rng = np.random.default_rng(92)
    y, p = example("circle", 6, seed=92)
    ref_y, ref_p = example("circle", 9, seed=93)
    for remove, dtype in itertools.product((True, False), (np.float32, np.float64)):
        rtol = 2e-4 if dtype == np.float32 else 1e-12
        got = losses.circle(y, p.astype(dtype), ref_y[:, None], ref_p.astype(dtype), remove_diagonal=remove)
        assert got.dtype == dtype
        assert_close(got, circle_rows(y, p, ref_y, ref_p, remove_diagonal=remove), rtol=rtol)
    other = rng.permutation(y)
    assert_close(losses.circle(y, p, ref_labels=other), circle_rows(y, p, other), rtol=1e-12)
    with pytest.raises(ValueError, match=r"(?s)ref_labels.shape=\(9,\).*ref_embeddings.shape=\(6, 5\)"):
        losses.circle(y, p, ref_y)
    with pytest.raises(ValueError, match=r"(?s)\(6, 5\).*\(9, 3\)"):
        losses.circle(y, p, ref_y, ref_p[:, :3])


def test_circle_far_out_still_counts():
    """A row whose loss is tiny, but not 0, is a row."""
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    value, gradient = losses.Circle(gamma=1000.0).value_and_grad([0, 0, 1], p)
    rows = circle_rows([0, 0, 1], p, gamma=1000.0)
    assert 0 < rows[0] < 1e-60
    assert_close(value, rows[0], rtol=1e-10, atol=0)
    assert np.isfinite(gradient).all()
    single = losses.circle([0, 0, 1], p.astype(np.float32), gamma=300.0)
    assert 0 < single[0] < np.finfo(np.float32).tiny


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_layouts(name):
    y, p = example(name, 10, seed=100)
    half = p.astype(np.float16)
    loss = make(name)
    for labels in (y.astype(np.int8), y.astype(np.uint64), y.astype(np.float32), y.astype(np.float16), y * 1.0):
        assert_close(loss(labels, p), loss(y, p))
    value, gradient = loss.value_and_grad(y, half)
    assert (value.dtype, gradient.dtype) == (np.float32, np.float16)
    wide_value, wide = loss.value_and_grad(y, half.astype(np.float32))
    assert_same_bits(value, wide_value)
    assert_same_bits(gradient, wide.astype(np.float16))
    wanted = loss.value_and_grad(y, p)
    for layout in (np.asfortranarray(p), np.repeat(p, 2, axis=1)[:, ::2], p[::-1][::-1]):
        for got, want in zip(loss.value_and_grad(y, layout), wanted, strict=True):
            assert_close(got, want)
    value, gradient = loss.value_and_grad(y.tolist(), p.tolist())
    assert (value.dtype, gradient.dtype) == (np.float32, np.float32)
    assert_close(value, wanted[0], rtol=2e-4)
    frozen = p.copy()
    frozen.flags.writeable = False
    assert_close(loss.value_and_grad(y, frozen)[1], wanted[1])
    assert_close(make(name, dtype="float32")(y, p), wanted[0], rtol=2e-4)
    assert make(name, dtype="float32")(y, p).dtype == np.float32


def test_labels_are_compared_as_they_are():
    _, p = example("triplet_hard_loss", 4)
    large = np.array([2**62, 2**62 + 1, 2**62, 2**62 + 1])  # one number in float32 and in float64
    for name in ("triplet_semihard_loss", "triplet_hard_loss", "lifted_struct_loss", "circle"):
        want = make(name)([0, 1, 0, 1], p)
        assert_close(make(name)(large, p), want)
        assert_close(make(name)([0.25, 0.5, 0.25, 0.5], p), want)
        assert_close(make(name)([False, True, False, True], p), want)
        assert_close(make(name)(large[:, None], p), want)
    # A NaN equals nothing.
    assert_close(make("triplet_hard_loss")([np.nan, np.nan, 1.0, 1.0], p), make("triplet_hard_loss")([0, 2, 1, 1], p))


@pytest.mark.parametrize("name", NAMES)
@every_float
def test_empty_and_single_batches(name, dtype):
    loss = make(name)
    width = 0 if name.startswith("npairs") else 3
    labels = np.zeros((0, 2) if "multilabel" in name else 0, int)
    value, gradient = loss.value_and_grad(labels, np.zeros((0, width), dtype))
    assert (value, value.shape, value.dtype) == (0, (), dtype)
    assert (gradient.shape, gradient.dtype) == ((0, width), dtype)
    assert loss(labels, np.zeros((0, width), dtype)) == 0
    if name == "circle":
        assert make(name, reduction="none")(labels, np.zeros((0, 3))).shape == (0,)
        assert losses.circle([], np.zeros((0, 3))).shape == (0,)
    y, p = example(name, 1, dtype=dtype)
    value, gradient = loss.value_and_grad(y, p)
    want = {"triplet_hard_loss": 1.0}.get(name, 0.0)
    assert_close(value, want, atol=1e-7)
    np.testing.assert_array_equal(gradient, 0)


@every_case
def test_nan_comes_out(name, params):
    y, p = example(name, 40, classes=5, seed=110)
    p[3, 0] = np.nan
    for n_threads in (1, 2):
        value, gradient = make(name, **params).value_and_grad(y, p, n_threads=n_threads)
        assert np.isnan(value)
        if name.startswith("npairs"):
            assert np.isnan(gradient[3]).all()
            assert np.isfinite(np.delete(gradient, 3, axis=0)).all()
        else:
            assert np.isnan(gradient).all()
        assert np.isnan(make(name, **params)(y, p))


@every_case
def test_infinity_does_not_crash(name, params):
    y, p = example(name, 20, classes=5, seed=111)
    p[3, 0] = np.inf
    value, gradient = make(name, **params).value_and_grad(y, p)
    assert not np.isfinite(value)
    assert gradient.shape == p.shape


def test_similarity_of_minus_infinity():
    y, p = example("npairs_loss", 8, classes=4, seed=112)
    other = np.argmax(y != y[0])
    p[0, other] = -np.inf
    value, gradient = losses.NpairsLoss().value_and_grad(y, p)
    finite = np.where(np.isinf(p), -1e9, p)
    want = losses.NpairsLoss().value_and_grad(y, finite)
    assert_close(value, want[0])
    assert_close(gradient, want[1])
    assert gradient[0, other] == 0


def test_sample_without_labels():
    y, p = example("npairs_multilabel_loss", 6, seed=113)
    y[2] = 0
    value, gradient = losses.NpairsMultilabelLoss().value_and_grad(y, p)
    assert np.isnan(value)
    assert np.isnan(gradient[2]).all()
    assert np.isfinite(np.delete(gradient, 2, axis=0)).all()


# --------------------------------------------------------------------------------------------------------------
# Callable distances, configs, errors
# --------------------------------------------------------------------------------------------------------------


def manhattan(e):
    """Distances and their pullback; not symmetric, so that a transposed matrix would be seen."""
    sign = np.sign(e[:, None] - e[None])
    tilt = 1 + 0.01 * np.arange(len(e))
    d = np.abs(e[:, None] - e[None]).sum(axis=2) * tilt

    def pullback(w):
        each = (w * tilt)[:, :, None] * sign
        return each.sum(axis=1) - each.sum(axis=0)

    return d, pullback


@pytest.mark.parametrize("name", ["triplet_semihard_loss", "triplet_hard_loss"])
def test_callable_metric(name, monkeypatch):
    y, p = example(name, 10, seed=120)
    monkeypatch.setitem(globals(), "distances", lambda e, metric: manhattan(e)[0].tolist())
    loss = make(name, distance_metric=manhattan)
    value, gradient = loss.value_and_grad(y, p, upstream=2.0)
    assert_close(value, ORACLES[name](list(y), p))
    want = difference(lambda at: 2 * ORACLES[name](list(y), at), p, 1e-5)
    assert_close(gradient, want, rtol=1e-7, atol=1e-8)
    values_only = make(name, distance_metric=lambda e: manhattan(e)[0])
    assert_close(values_only(y, p), value)
    assert_close(BATCH_LOSSES[name].function(y, p, distance_metric=manhattan), value)
    with pytest.raises(NotImplementedError, match=r"(?s)distance_metric.*\(distances, pullback\)"):
        values_only.value_and_grad(y, p)
    with pytest.raises(ValueError, match=r"(?s)distance_metric.*\(10, 10\).*\(10, 5\).*\(10,\)"):
        make(name, distance_metric=lambda e: e[:, 0])(y, p)
    with pytest.raises(ValueError, match=r"(?s)pullback.*\(10, 5\).*\(3,\)"):
        make(name, distance_metric=lambda e: (manhattan(e)[0], lambda w: np.ones(3))).value_and_grad(y, p)
    again = type(loss).from_config(loss.get_config())
    assert again.distance_metric is manhattan
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(losses.serialize(loss))
    assert "manhattan" in repr(loss)


@every_case
def test_configs_round_trip(name, params):
    loss = make(name, reduction="sum", name="mine", dtype="float64", **params)
    y, p = example(name)
    config = json.loads(json.dumps(losses.serialize(loss)))
    for again in (losses.deserialize(config), pickle.loads(pickle.dumps(loss))):
        assert type(again) is type(loss)
        assert again.get_config() == loss.get_config()
        assert_same_bits(again(y, p), loss(y, p))
    assert "dtype" not in make(name).get_config()
    function = BATCH_LOSSES[name].function
    assert losses.get(name) is function
    assert losses.deserialize(losses.serialize(function)) is function
    assert type(losses.get(type(loss).__name__)) is type(loss)


def test_constructors():
    semihard, hard = losses.TripletSemiHardLoss(0.5, "angular"), losses.TripletHardLoss(0.5, True, "squared-L2")
    assert (semihard.margin, semihard.distance_metric, semihard.reduction) == (0.5, "angular", "none")
    assert (hard.margin, hard.soft, hard.distance_metric) == (0.5, True, "squared-L2")
    assert losses.LiftedStructLoss(2.0).margin == 2.0
    circle = losses.Circle(8, 0.25, False)
    assert (circle.gamma, circle.margin, circle.remove_diagonal) == (8.0, 0.25, False)
    assert circle.reduction == "sum_over_batch_size"
    assert [make(name).name for name in NAMES] == [
        "triplet_semi_hard_loss",
        "triplet_hard_loss",
        "lifted_struct_loss",
        "npairs_loss",
        "npairs_multilabel_loss",
        "circle",
    ]
    for cls in (losses.TripletSemiHardLoss, losses.TripletHardLoss):
        for wrong in ("L_2", "l2", "", 3, None):
            with pytest.raises(ValueError, match=r"(?s)distance_metric.*L2.*squared-L2.*angular.*" + str(wrong)):
                cls(distance_metric=wrong)
        with pytest.raises(TypeError, match="margin"):
            cls(margin="1")
    with pytest.raises(TypeError, match="soft"):
        losses.TripletHardLoss(soft=1)
    with pytest.raises(ValueError, match=r"gamma.*-1"):
        losses.Circle(gamma=-1)
    with pytest.raises(TypeError, match="remove_diagonal"):
        losses.Circle(remove_diagonal="no")
    with pytest.raises(AttributeError, match="margin"):
        circle.margin = 1.0


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("shapes", [((4,), (5, 3)), ((5, 2), (5, 3)), ((1, 5), (5, 3)), ((5,), (5,)), ((), (5, 3)),
                                    ((5, 3), (5, 3)), ((5,), (5, 3, 1))], ids=str)  # fmt: skip
def test_shapes_that_do_not_match(name, shapes):
    y, p = np.zeros(shapes[0], int), np.zeros(shapes[1])
    words = rf"(?s)(?=.*y_true)(?=.*y_pred)(?=.*{str(shapes[0])[:-1].replace('(', '[(]')})(?=.*{str(shapes[1])[1:-1]})"
    for call in (make(name), make(name).value_and_grad, BATCH_LOSSES[name].function):
        with pytest.raises(ValueError, match=words):
            call(y, p)


@pytest.mark.parametrize("name", ["npairs_loss", "npairs_multilabel_loss"])
def test_shapes_of_similarities(name):
    y, _ = example(name, 5)
    for p in (np.zeros((5, 4)), np.zeros(5), np.zeros((5, 5, 1)), np.zeros((4, 4))):
        with pytest.raises(ValueError, match=rf"(?s)(?=.*y_pred.*{p.shape[0]})(?=.*y_true.*5)"):
            make(name)(y, p)
    with pytest.raises(ValueError, match="y_true"):
        make("npairs_multilabel_loss")(np.zeros(5), np.zeros((5, 5)))


def test_sparse_labels_are_refused():
    y, p = example("npairs_multilabel_loss", 5)
    with pytest.raises(TypeError, match=r"(?s)y_true.*sparse.*toarray"):
        losses.NpairsMultilabelLoss()(scipy.sparse.csr_array(y), p)


# --------------------------------------------------------------------------------------------------------------
# Keras, memory, kernels in plain Python
# --------------------------------------------------------------------------------------------------------------


def test_circle_is_kerass():
    keras = pytest.importorskip("keras", reason="Keras is not installed: nothing to compare with")
    if keras.backend.backend() != "jax":
        pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX")
    rng = np.random.default_rng(130)
    for remove, how, seed in itertools.product((True, False), ("sum_over_batch_size", "sum", "none"), (131, 132)):
        y, p = example("circle", 14, classes=6, seed=seed, dtype=np.float32)
        y[0] = 99  # alone
        weight = rng.random(14).astype(np.float32)
        params = {"gamma": 12.0, "margin": 0.3, "remove_diagonal": remove, "reduction": how}
        peer = keras.losses.Circle(**params)
        for w in (None, weight):
            want = np.asarray(peer(y, p, w))
            assert_close(losses.Circle(**params)(y, p, w), want, f"{params}", rtol=1e-4, atol=1e-6)
        want = jax.grad(lambda at, peer=peer, y=y, w=weight: jnp.sum(peer(y, at, w)))(jnp.asarray(p))
        got = losses.Circle(**params).value_and_grad(y, p, weight)[1]
        assert_close(got, want, f"{params}", rtol=1e-3, atol=1e-4 * float(np.abs(want).max()))
    ref_y, ref_p = example("circle", 9, seed=133, dtype=np.float32)
    want = np.asarray(keras.losses.circle(y, p, ref_y, ref_p))
    assert_close(losses.circle(y, p, ref_y, ref_p), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_a_few_squares(name):
    y, p = example(name, 1024, width=32, classes=16, seed=140, dtype=np.float32)
    square = 1024 * 1024 * 4
    for call, squares in ((make(name), 2.3), (make(name).value_and_grad, 3.2)):
        call(y, p)
        tracemalloc.start()
        call(y, p)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < squares * square, f"{peak / square:.2f} squares"


@pytest.mark.parametrize("name", ["triplet_semihard_loss", "triplet_hard_loss", "lifted_struct_loss", "circle"])
@every_float
def test_large_batches_against_the_vectorised_definition(name, dtype):
    """More rows than a band, more columns than a chunk, classes longer than a run of the sort."""
    for classes in (2, 40, 1500):
        rng = np.random.default_rng(150 + classes)
        size = 1500
        y, p = rng.integers(0, classes, size), rng.normal(size=(size, 6))
        if name == "circle":
            p /= np.linalg.norm(p, axis=1, keepdims=True)
        p = p.astype(dtype)
        params = {"gamma": 8.0} if name == "circle" else {}
        value, gradient = make(name, **params).value_and_grad(y, p)
        want = large_value(name, y, p.astype(np.float64))
        assert_close(value, want, rtol=1e-4 if dtype == np.float32 else 1e-11)
        if dtype == np.float64 and name == "triplet_semihard_loss":  # which jumps where distances change their order
            want = semihard_gradient(y, p)
            assert_close(gradient, want, rtol=1e-10, atol=1e-12 * np.abs(want).max())
        elif dtype == np.float64:
            direction = rng.normal(size=p.shape)
            step = 1e-6
            slope = (large_value(name, y, p + step * direction) - large_value(name, y, p - step * direction)) / step / 2
            assert_close(np.sum(gradient * direction), slope, rtol=2e-4, atol=1e-6)


@every_float
@pytest.mark.parametrize("kind", ["crowded", "ties", "outlier", "one negative", "no negatives"])
def test_semihard_negatives_of_any_distribution(kind, dtype):
    """Large classes, whose negatives lie evenly, in one heap, on few values, or are hardly there."""
    rng = np.random.default_rng(180)
    size = 120
    y = rng.integers(0, 2, size)
    p = rng.normal(size=(size, 1))
    if kind == "crowded":
        p = np.where(rng.random((size, 1)) < 0.8, 1e-3 * p, p)
    elif kind == "ties":
        p = rng.integers(0, 5, (size, 1)) * 0.5
    elif kind == "outlier":
        p[7] = 1e4
    elif kind == "one negative":
        y[:], y[5] = 0, 1
    else:
        y[:] = 3
    p = p.astype(dtype)
    value, gradient = make("triplet_semihard_loss").value_and_grad(y, p)
    assert_close(value, triplet_semihard_loss(list(y), p.astype(np.float64)))
    assert np.isfinite(gradient).all()
    if kind in ("crowded", "outlier") and dtype == np.float64:
        want = semihard_gradient(y, p)
        assert_close(gradient, want, rtol=1e-9, atol=1e-12)


def semihard_gradient(y, p):
    """By the definition, one array operation an anchor."""
    d = np.sqrt(((p[:, None] - p[None]) ** 2).sum(axis=2))
    same = y[:, None] == y[None]
    pairs = same.sum() - len(y)
    slopes = np.zeros_like(d)
    for i in range(len(y)):
        negatives = np.flatnonzero(~same[i])
        negatives = negatives[np.argsort(d[i, negatives])]
        positives = np.flatnonzero(same[i] & (np.arange(len(y)) != i))
        at = np.searchsorted(d[i, negatives], d[i, positives], side="right")
        chosen = negatives[np.minimum(at, len(negatives) - 1)]
        active = 1 + d[i, positives] - d[i, chosen] > 0
        np.add.at(slopes[i], positives[active], 1 / pairs)
        np.add.at(slopes[i], chosen[active], -1 / pairs)
    flow = (slopes + slopes.T) / np.where(d > 0, d, np.inf)
    return flow.sum(axis=1, keepdims=True) * p - flow @ p


def large_value(name, y, p):
    """The definition with one array operation an anchor, in float64."""
    square = (p * p).sum(axis=1)
    product = p @ p.T
    d = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * product, 0))
    np.fill_diagonal(d, 0)
    same = y[:, None] == y[None]
    others = same & ~np.eye(len(y), dtype=bool)
    if name == "triplet_hard_loss":
        return np.mean(np.maximum(np.where(others, d, 0).max(axis=1) - np.where(same, np.inf, d).min(axis=1) + 1, 0))
    if name == "triplet_semihard_loss":
        total = 0.0
        for i in range(len(y)):
            negatives, positives = np.sort(d[i][~same[i]]), d[i][others[i]]
            at = np.searchsorted(negatives, positives, side="right")
            total += np.maximum(1 + positives - negatives[np.minimum(at, len(negatives) - 1)], 0).sum()
        return total / others.sum()
    if name == "lifted_struct_loss":
        sums = np.where(same, 0, np.exp(1 - d)).sum(axis=1)
        return (np.maximum(np.log(sums[:, None] + sums[None]) + d, 0)[others] ** 2).sum() / 2 / others.sum()
    d = np.maximum(1 - product, 0)
    s_p = np.where(others, np.exp(8 * (d**2 - 0.16)), 0).sum(axis=1)
    s_n = np.where(same, 0, np.exp(8 * np.maximum(1.4 - d, 0) * (0.6 - d))).sum(axis=1)
    rows = np.log1p(s_p * s_n)
    return rows.sum() / np.count_nonzero(rows)


def test_kernels_run_in_plain_python():
    """As a debugger would step through them: the same slopes as compiled."""
    xp = Toolbox(np.dtype(np.float64), compiled=False)
    y, p = example("triplet_semihard_loss", 9, classes=3, seed=160)
    n = len(p)
    gram = p @ p.T
    norms = gram.diagonal().copy()
    item = kernels.euclidean.factory(xp)
    for i in range(n):
        item(i, gram, norms, p, False)
    assert_close(gram, np.array(distances(p)), rtol=1e-12)
    members = np.argsort(y, kind="stable")
    starts = np.searchsorted(y[members], np.arange(4))
    lists, keys, places = np.empty((1, n)), np.empty((1, 2, n + 1)), np.empty((1, 3, n + 3), np.int32)
    rows, slopes = np.empty(n), np.empty((n, n))
    item = kernels.triplet_semihard.factory(xp)
    item(0, n, gram, y, members, starts, 1.0, 1.0, lists, keys, places, rows, slopes, True)
    pairs = sum(int(a == b) for a in y for b in y) - n
    assert_close(rows.sum() / pairs, triplet_semihard_loss(list(y), p))
    np.testing.assert_array_equal(slopes.sum(axis=1), 0)
    hard = kernels.triplet_hard.factory(xp)
    for i in range(n):
        hard(i, gram, y, 1.0, False, 1.0, rows, slopes, True)
    assert_close(rows.mean(), triplet_hard_loss(list(y), p))


def test_handles_are_the_values():
    for name in SCALARS:
        y, p = example(name, seed=170)
        assert_same_bits(BATCH_LOSSES[name].function(y, p), make(name)(y, p))
    y, p = example("circle", seed=170)
    assert_same_bits(losses.circle(y, p), losses.Circle(reduction="none")(y, p))
    assert fastloss.losses.triplet_hard_loss([0, 0], [[0.0, 1.0], [1.0, 0.0]]) == 1.0  # Addons' own examples
    assert_close(losses.triplet_semihard_loss([0, 0], [[0.0, 1.0], [1.0, 0.0]]), np.float32(2.4142135))
