"""Losses of one's own: traced, written as kernels, written in NumPy; and losses in the user's nopython code."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest

import fastloss
from fastloss import kernels, losses
from fastloss.engine import compile as compiling
from fastloss.engine import fingerprint
from fastloss.engine.toolbox import Toolbox
from fastloss.engine.variant import Variant
from fastloss.losses import identifiers
from fastloss.registry import LOSSES
from fastloss.symbols import (
    TraceError,
    clip,
    exp,
    log,
    log1p,
    maximum,
    minimum,
    sigmoid,
    softplus,
    sqrt,
    tanh,
    where,
)

ROOT = Path(__file__).parent.parent


def lopsided(y, p, alpha=0.5):
    return where(p > y, (p - y) ** 2, alpha * (y - p))


def terms(function, dtype=np.float64, **params):
    """Loss, slope and curvature of one element, in plain Python."""
    loss = losses.from_function(function, **params)
    kernel = loss._kernel()
    found = kernel.factory(Toolbox(np.dtype(dtype), compiled=False))
    values = [dtype(loss.params[name]) for name in kernel.params]

    def run(y, p):
        with np.errstate(all="ignore"):
            return found(dtype(y), dtype(p), *values)

    return run


# --------------------------------------------------------------------------------------------------------------
# Expressions: values and derivatives
# --------------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "powers": lambda y, p: (p - y) ** 3 + (3 + p) ** -2 + 2 * (p * p) ** 1.5 - (1 + p * p) ** -0.5 + 3 ** (p / 4),
    "real power": lambda y, p, gamma: (1 + p * p) ** gamma + (2 + p * p) ** (y * p),
    "quotients": lambda y, p: (y - 3 * p) / (4 + p * p) + 1 / (5 + p),
    "exponentials": lambda y, p: exp(-p * y) + log(3 + p * p) * log1p(p * p) + sqrt(2 + p),
    "stable": lambda y, p: tanh(p - y) * sigmoid(2 * p) + softplus(-p) + softplus(p) * tanh(-p) - sigmoid(-2 * p) ** 2,
    "choices": lambda y, p: maximum(p * p, y) * minimum(p, 3 * y) + abs(p - 0.3) * clip(p, -0.5, 0.75) ** 2,
    "clip that moves": lambda y, p: clip(p, -p * p, 1 + p) ** 2 + clip(0.5, p, 2.0) ** 2,
    "conditions": lambda y, p: where(((p > y) & ~(p >= 1)) | (p < -1), p**2 * y, where(p == 0.0, y, p**3)),
    "nested": lambda y, p: where(p > 0, where(p < 1, exp(p), p * p), log1p(p * p)) * where(y != 0, 2.0, p),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_derivatives_are_those_of_the_function(name):
    """The function itself runs on numbers, and its differences are the derivatives."""
    function = FUNCTIONS[name]
    params = {"gamma": 1.7} if "gamma" in function.__code__.co_varnames else {}
    found = terms(function, **params)
    step = 1e-3
    for y, p in ((0.4, 0.21), (-0.7, 0.9), (0.4, -1.3), (1.2, 1.6), (-0.25, -0.6)):
        value, slope, curvature = found(y, p)
        around = [found(y, p + k * step) for k in (-2, -1, 1, 2)]
        np.testing.assert_allclose(value, float(function(y, p, **params)), rtol=1e-13, err_msg=name)
        for derivative, column in ((slope, 0), (curvature, 1)):
            a, b, c, d = (point[column] for point in around)
            np.testing.assert_allclose(derivative, (a - 8 * b + 8 * c - d) / (12 * step), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_stays_float32(name):
    params = {"gamma": 1.7} if "gamma" in FUNCTIONS[name].__code__.co_varnames else {}
    assert {type(term) for term in terms(FUNCTIONS[name], np.float32, **params)(0.4, 0.2)} == {np.float32}


def test_kinks():
    assert terms(lambda y, p: abs(p - y))(1.0, 1.0)[1] == 0
    assert terms(lambda y, p: maximum(3 * p, p))(0.0, 0.0)[1] == 3
    assert terms(lambda y, p: minimum(3 * p, p))(0.0, 0.0)[1] == 3
    clipped = terms(lambda y, p: clip(p, -1.0, 1.0))
    assert [clipped(0.0, p)[1] for p in (-1.1, -1.0, 0.0, 1.0, 1.1)] == [0, 1, 1, 1, 0]
    assert terms(lambda y, p: sqrt(p))(0.0, 0.0)[1] == math.inf


def test_the_branch_not_taken_does_not_leak():
    found = terms(lambda y, p: where(p > 0, log(p) ** 2, 0.0) + where(p < 1, sqrt(1 - p), p * 0.5))
    assert found(0.0, -2.0) == (math.sqrt(3.0), pytest.approx(-0.5 / math.sqrt(3.0)), pytest.approx(-0.25 / 3**1.5))
    assert np.isfinite(found(0.0, 1.0)).all()


def test_missing_numbers_come_through():
    for function in (lopsided, *(FUNCTIONS[name] for name in ("stable", "choices", "exponentials"))):
        assert np.isnan(terms(function)(1.0, math.nan)[0])
    for function in (lambda y, p: abs(p - y), lambda y, p: maximum(1 - y * p, 0), lambda y, p: minimum(p, 0)):
        assert np.isnan(terms(function)(1.0, math.nan)[:2]).all()


def test_large_arguments_overflow_nowhere():
    for p in (-1e4, 1e4, -np.inf, np.inf):
        found = terms(lambda y, p: softplus(p))(0.0, p)
        assert found == (max(p, 0), float(p > 0), 0)
        assert terms(lambda y, p: tanh(p))(0.0, p) == (np.sign(p), 0, 0)
        assert terms(lambda y, p: sigmoid(p))(0.0, p) == (float(p > 0), 0, 0)


def test_a_difference_is_not_multiplied_out():
    """c·p - c·y would lose the digits of p - y: here all but a few."""
    y, p = 1e8, 1e8 + 2**-20
    assert terms(lambda y, p: 0.3 * (p - y) ** 2)(y, p)[1] == pytest.approx(0.6 * 2**-20, rel=1e-15)
    assert terms(lambda y, p: p - y + 0.25 - 0.25)(y, p)[0] == 2**-20


def test_cheap_functions_where_ranges_allow_them():
    def source(function):
        return losses.from_function(function)._kernel().source

    assert "xp.exp_nonpositive" in source(lambda y, p: exp(-abs(p)))
    assert "xp.exp(" in source(lambda y, p: exp(abs(p)))
    assert "xp.log1p_unit" in source(lambda y, p: log1p(exp(-2 * abs(p))))
    assert "xp.log1p(" in source(lambda y, p: log1p(2 * exp(-abs(p))))
    assert "xp.log_positive" in source(lambda y, p: log(1 - clip(p, 1e-7, 1 - 1e-7)))
    # 1 - 1e-9 is 1 in float32, so that 1 - p may be 0 there.
    assert "xp.log(" in source(lambda y, p: log(1 - clip(p, 1e-9, 1 - 1e-9)))
    assert "xp.log(" in source(lambda y, p: log(p))


# --------------------------------------------------------------------------------------------------------------
# Expressions: what cannot be traced
# --------------------------------------------------------------------------------------------------------------


def branches(y, p):
    if p > y:
        return p
    return y


REFUSED = {
    r"`if`.*`if p > y:`: .*where\(condition": branches,
    "built-in min and max.*maximum": lambda y, p: max(y, p),
    "chain a < b < c": lambda y, p: where(0 < p < 1, p, y),
    "as a condition.*where": lambda y, p: p if p else y,
    "functions of `math`.*fastloss.symbols": lambda y, p: math.exp(p),
    "numpy.sin.*fastloss.symbols": lambda y, p: np.sin(p),
    "numpy.mean": lambda y, p: np.mean(p),
    "attribute .sum.*single numbers": lambda y, p: p.sum(),
    "indexing": lambda y, p: p[0],
    "loop over elements": lambda y, p: sum(x for x in p),
    "arithmetic with a condition": lambda y, p: (p > y) * p,
    "condition where a number": lambda y, p: exp(p > y),
    "True as a condition": lambda y, p: where(True, p, y),
    "//": lambda y, p: p // 2,
    "%": lambda y, p: p % 2,
    "rounding": lambda y, p: round(p),
    "& and . of a number": lambda y, p: where(p & y, p, y),
    "'a' of type str": lambda y, p: p * "a",
    "inf: it must be finite": lambda y, p: p * math.inf,
    "division by 0": lambda y, p: p / 0,
    "array": lambda y, p: p + np.ones(3),
    "does not depend on the prediction": lambda y, p: y * y,
    "must return one number": lambda y, p: (p, y),
    "got a condition": lambda y, p: p > y,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_traced_is_named(message):
    with pytest.raises(TraceError, match=message):
        losses.from_function(REFUSED[message])


def test_a_symbol_does_not_leave_its_function():
    kept = []
    losses.from_function(lambda y, p: kept.append(p) or p)
    with pytest.raises(TraceError, match="another function"):
        losses.from_function(lambda y, p: p * kept[0])


def test_arguments_of_from_function():
    with pytest.raises(TypeError, match="no parameter 'beta'; it has alpha"):
        losses.from_function(lopsided, beta=1.0)
    with pytest.raises(TypeError, match="needs a value of its parameter 'delta'"):
        losses.from_function(lambda y, p, delta: delta * p)
    with pytest.raises(TypeError, match="`alpha` must be a number"):
        losses.from_function(lopsided, alpha="a")
    with pytest.raises(TypeError, match="first two arguments"):
        losses.from_function(lambda p: p)
    with pytest.raises(TypeError, match="by name"):
        losses.from_function(lambda y, p, *more: p)
    with pytest.raises(ValueError, match="cannot be the name of a parameter"):
        losses.from_function(lambda y, p, exp: p * exp, exp=1.0)
    with pytest.raises(TypeError, match="must be a function"):
        losses.from_function("p")
    with pytest.raises(AttributeError, match="no attribute 'beta'"):
        losses.from_function(lopsided).beta  # noqa: B018


def test_numpy_scalars_and_functions_are_taken_for_what_they_mean():
    scale = np.float32(0.5)
    ours = losses.from_function(lambda y, p: where(p >= y, exp(scale * p), maximum(p, -y)))
    assert losses.from_function(lambda y, p: np.where(p >= y, np.exp(scale * p), np.maximum(p, -y))).expression == (
        ours.expression
    )


def test_symbols_take_numbers():
    x = np.array([-800.0, -1.0, 0.0, 2.0, 800.0])
    np.testing.assert_allclose(sigmoid(x), [0, 1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2)), 1])
    np.testing.assert_allclose(softplus(x), np.logaddexp(0, x))
    assert where(2 > 1, minimum(1, 2), 5) == 1


# --------------------------------------------------------------------------------------------------------------
# Expressions as losses
# --------------------------------------------------------------------------------------------------------------


def test_expressions_agree_with_the_built_in_losses():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(2, 33, 70))
    binary = np.stack([real[0] > 0, 1 / (1 + np.exp(-real[1]))])

    def huber(y, p, delta):
        e = abs(p - y)
        return where(e <= delta, e**2 / 2, delta * (e - delta / 2))

    def log_cosh(y, p):
        e = abs(p - y)
        return e + log1p(exp(-2 * e)) - math.log(2)

    def focal(y, p, gamma=2.0):
        c = clip(p, 1e-7, 1 - 1e-7)
        return (y * (1 - p) + (1 - y) * p) ** gamma * -(y * log(c) + (1 - y) * log(1 - c))

    for function, params, built_in, (y, p) in (
        (huber, {"delta": 0.75}, losses.Huber(delta=0.75), real),
        (log_cosh, {}, losses.LogCosh(), real),
        (focal, {}, losses.BinaryFocalCrossentropy(), binary),
    ):
        found = losses.from_function(function, **params).value_grad_hess(y, p)
        for ours, theirs in zip(found, built_in.value_grad_hess(y, p), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14 * np.max(np.abs(theirs)))


def test_an_expression_has_weights_masks_reductions_and_threads():
    rng = np.random.default_rng(1)
    y, p, weight = rng.normal(size=(300, 40)), rng.normal(size=(300, 40)), rng.random(300)
    mask = weight > 0.3
    each = np.where(p > y, (p - y) ** 2, 0.25 * (y - p))
    slope = np.where(p > y, 2 * (p - y), -0.25)
    loss = losses.from_function(lopsided, alpha=0.25, per_sample="sum", reduction="mean_with_sample_weight")
    share = (weight * mask / (weight * mask).sum())[:, None]
    for n_threads in (1, 2):
        value, grad = loss.value_and_grad(y, p, weight, mask=mask, n_threads=n_threads)
        np.testing.assert_allclose(value, (share * each).sum(), rtol=1e-12)
        np.testing.assert_allclose(grad, share * slope, rtol=1e-12)


def test_other_parameters_compile_nothing(monkeypatch):
    y, p = np.zeros((3, 50)), np.full((3, 50), -2.0)
    losses.from_function(lopsided, alpha=0.5)(y, p)
    monkeypatch.setattr(compiling, "_compile", lambda variant: pytest.fail(f"compiled {variant}"))
    assert losses.from_function(lopsided, alpha=0.75)(y, p) == 1.5
    assert losses.ExpressionLoss(losses.from_function(lopsided).expression, {"alpha": 3})(y, p) == 6


def test_whole_exponents_are_multiplied_out():
    def power(y, p, gamma):
        return abs(p - y) ** gamma

    assert "xp.pow" not in losses.from_function(power, gamma=3)._kernel().source
    assert "xp.pow" in losses.from_function(power, gamma=2.5)._kernel().source
    assert terms(power, gamma=3)(1.0, 3.0) == (8, 12, 12)

    def powers(y, p, gamma):
        return p * abs(gamma) * maximum(p**gamma, 0.5) + where((p**gamma > 0) | (gamma < 0), tanh(p**gamma), 2.0) * p

    assert terms(powers, gamma=0)(1.0, 3.0) == pytest.approx((3 * math.tanh(1), math.tanh(1), 0))
    assert terms(powers, gamma=2)(1.0, 3.0)[0] == pytest.approx(54 + 3 * math.tanh(9))


def test_an_expression_survives_configs_pickles_and_copies():
    loss = losses.from_function(lopsided, alpha=0.25, name="mine", reduction="sum", per_sample="sum", dtype="float64")
    assert loss.get_config() == {
        "name": "mine",
        "reduction": "sum",
        "dtype": "float64",
        "expression": loss.expression,
        "params": {"alpha": 0.25},
        "per_sample": "sum",
    }
    assert (loss.alpha, losses.from_function(lopsided).name) == (0.25, "lopsided")
    value = loss([[0.0, 0.0]], [[1.0, -1.0]])
    for other in (
        losses.ExpressionLoss.from_config(loss.get_config()),
        losses.deserialize(losses.serialize(loss)),
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
    ):
        assert other.get_config() == loss.get_config()
        assert other([[0.0, 0.0]], [[1.0, -1.0]]) == value == 1.25
    with pytest.raises(AttributeError, match="cannot be changed"):
        loss.expression = "p"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_text_is_read_as_it_was_written(name):
    function = FUNCTIONS[name]
    params = {"gamma": 1.7} if "gamma" in function.__code__.co_varnames else {}
    loss = losses.from_function(function, **params)
    again = losses.ExpressionLoss(loss.expression, params)
    for y, p in ((0.4, 0.21), (-0.7, 0.9), (0.4, -1.3)):
        ours, theirs = (
            each._kernel().factory(Toolbox(np.dtype(np.float64), compiled=False))(y, p, *params.values())
            for each in (loss, again)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-15)


def test_a_long_function_is_no_trouble():
    def series(y, p):
        total = p - y
        for k in range(1, 700):
            total = 0.999 * total + p / (k * k)
        return total

    found = terms(series)
    assert found(0.5, 1.0)[0] == pytest.approx(series(0.5, 1.0), rel=1e-13)
    assert found(0.5, 1.0)[1] == pytest.approx(series(0.0, 1.0), rel=1e-13)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "p.__class__",
        "(lambda: p)()",
        "[p for p in (1,)]",
        "open('x')",
        "exp(p, y)",
        "exp(x=p)",
        "q + p",
        "p if p > y else y",
        "0 < p < 1",
        "'p'",
        "p = q = y; p",
        "p; import os",
        "import os",
        "a = p",
        "",
        "p +",
        "9.0**9.0**9.0**9.0 * p",
        "p * 1e999",
        "(" * 500 + "p" + ")" * 500,
        "-" * 90_000 + "p",
        "p" + " + p" * 40_000,
        "y",
        "p > y",
        "True * p",
        "p @ y",
    ],
)
def test_text_that_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="`expression`"):
        losses.ExpressionLoss(text)


def test_without_sympy_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "fastloss.expressions", raising=False)
    monkeypatch.delattr(fastloss, "expressions", raising=False)
    monkeypatch.setitem(sys.modules, "sympy", None)
    with pytest.raises(ModuleNotFoundError, match=r"fastloss\[expressions\]"):
        losses.from_function(lopsided)


# --------------------------------------------------------------------------------------------------------------
# Kernels
# --------------------------------------------------------------------------------------------------------------


@fastloss.pointwise(params=("scale",), calls=("log", "div"))
def cauchy(xp):
    one, two = xp.consts(1.0, 2.0)

    def terms(y, p, scale):
        e = (p - y) / scale
        q = one / (one + e * e)
        return xp.log1p(e * e), two * e * q / scale, two * (one - e * e) * q * q / (scale * scale)

    return terms


@fastloss.rowwise()
def brier(xp):
    """Σ(q - t)² with q = softmax(z)."""
    one, two, zero = xp.consts(1.0, 2.0, 0.0)

    def gather(t, z, m):
        e = xp.exp_nonpositive(z - m)
        return e, e, zero, zero

    def finish(m, total, unused, unused_too):
        return zero, one / total, zero

    def regather(t, e, inverse, unused):
        q = e * inverse
        d = two * (q - t)
        return d * q, (q - t) * (q - t), d * q, zero

    def refinish(inverse, unused, loss, dot, unused_too):
        return loss, inverse, dot

    def slope(t, e, inverse, dot, dq):
        return dq - e * inverse * dot

    return fastloss.RowFunctions("max", gather, finish, slope, regather=regather, refinish=refinish)


def test_a_pointwise_kernel_is_a_loss():
    loss = losses.from_kernel(cauchy, scale=2.0)
    y, p = np.zeros((2, 2)), np.array([[2.0, 0.0], [-2.0, 2.0]])
    value, grad = loss.value_and_grad(y, p)
    np.testing.assert_allclose(value, 0.75 * math.log(2))
    np.testing.assert_allclose(grad, [[0.125, 0.0], [-0.125, 0.125]])
    assert (loss.name, loss.scale) == ("cauchy", 2.0)
    for other in (losses.deserialize(losses.serialize(loss)), pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert other.get_config() == loss.get_config()
        assert other.kernel is cauchy


def test_a_rowwise_kernel_is_a_loss_of_dense_labels_and_of_class_indices():
    z = np.random.default_rng(2).normal(size=(6, 5))
    labels = np.arange(6) % 5
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = ((q - np.eye(5)[labels]) ** 2).sum(1)
    np.testing.assert_allclose(losses.from_kernel(brier, reduction="none")(np.eye(5)[labels], z), expected)
    assert fastloss.check_gradient(losses.from_kernel(brier)).gradient_error < 1e-8
    with pytest.raises(TypeError, match="`labels` must be 'dense' for a kernel with `regather`"):
        losses.from_kernel(brier, labels="index")(labels, z)
    index = losses.from_kernel(kernels.categorical_crossentropy_logits, labels="index")
    value, grad = index.value_and_grad(labels, z)
    np.testing.assert_allclose(value, -np.log(q[np.arange(6), labels]).mean())
    np.testing.assert_allclose(grad, (q - np.eye(5)[labels]) / 6, atol=1e-16)
    np.testing.assert_allclose(index.value_grad_hess(labels, z)[2], q * (1 - q) / 6, atol=1e-16)
    with pytest.raises(NotImplementedError):
        losses.from_kernel(brier).value_grad_hess(np.eye(5)[labels], z)


def test_arguments_of_from_kernel():
    with pytest.raises(TypeError, match="must give a value of the kernel's parameter 'scale'"):
        losses.from_kernel(cauchy)
    with pytest.raises(TypeError, match="has 'beta', but the kernel's parameters are: scale"):
        losses.from_kernel(cauchy, scale=1.0, beta=2.0)
    with pytest.raises(TypeError, match=r"must be made by fastloss\.pointwise"):
        losses.from_kernel(lopsided)
    with pytest.raises(ValueError, match="`labels` must be 'dense'"):
        losses.from_kernel(cauchy, scale=1.0, labels="index")
    with pytest.raises(ValueError, match="`per_sample` must be 'sum'"):
        losses.from_kernel(brier, per_sample="mean")
    with pytest.raises(ValueError, match="No kernel is found at 'nowhere:at_all'"):
        losses.OwnKernelLoss("nowhere:at_all")
    with pytest.raises(pickle.PicklingError, match="at the top of a module"):
        pickle.dumps(losses.from_kernel(_scaled(2.0)))


# --------------------------------------------------------------------------------------------------------------
# The cache on disk
# --------------------------------------------------------------------------------------------------------------

_FACTOR = 2.0


def _scaled(factor):
    @fastloss.pointwise()
    def scaled(xp):
        k, zero = xp.const(factor), xp.const(0.0)

        def terms(y, p):
            return k * p, k, zero

        return terms

    return scaled


def _of_a_global():
    @fastloss.pointwise()
    def scaled(xp):
        def terms(y, p):
            return _FACTOR * p, p, p

        return terms

    return scaled


def test_kernels_of_one_name_have_keys_of_their_own(monkeypatch):
    def key(kernel):
        return compiling.key(Variant(kernel, "f4", "f4", "f4", "f4", 1))

    assert key(_scaled(2.0)) == key(_scaled(2.0)) != key(_scaled(3.0))
    before = key(_of_a_global())
    assert before == key(_of_a_global())
    assert before != key(_scaled(2.0))
    monkeypatch.setitem(globals(), "_FACTOR", 3.0)
    assert before != key(_of_a_global())
    first, second = (losses.from_function(f, name="same")._kernel() for f in (lambda y, p: p - y, lambda y, p: y - p))
    assert first.name == second.name
    assert key(first) != key(second)
    assert key(replace(kernels.huber, source="x")) != key(kernels.huber)
    assert key(replace(_scaled(2.0), binary_labels=True)) != key(_scaled(2.0))


def test_what_a_kernel_reaches_is_part_of_its_key():
    def base(x):
        return x + 1

    @numba.njit
    def compiled(x):
        return base(x)

    table = np.arange(3.0)
    things = (1, 1.0, (1, 2), "a", None, table, table + 1, base, compiled, np)
    seen = {fingerprint.of(_scaled(thing)) for thing in things}
    assert None not in seen
    assert len(seen) == len(things)
    for unreadable in ([1.0], {}, object(), pytest, lambda x: pytest):
        assert fingerprint.of(_scaled(unreadable)) is None


def test_a_kernel_that_cannot_be_read_is_not_kept_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTLOSS_CACHE_DIR", str(tmp_path))
    unreadable = [1.0]

    @fastloss.pointwise()
    def hidden(xp):
        one = xp.const(unreadable[0])

        def terms(y, p):
            return p - y, one, one

        return terms

    assert losses.from_kernel(hidden)([[0.0]], [[2.0]]) == 2
    assert not list(tmp_path.iterdir())
    assert losses.from_kernel(_scaled(2.0))([[0.0]], [[2.0]]) == 4
    assert [file.name.partition("-")[0] for file in tmp_path.iterdir()] == ["scaled"]


# --------------------------------------------------------------------------------------------------------------
# check_gradient
# --------------------------------------------------------------------------------------------------------------


class Written(losses.Loss):
    """In NumPy; `wrong` is added to the gradient of one element."""

    def __init__(self, wrong=0.0):
        super().__init__()
        self.wrong = wrong

    def call_with_grad(self, y_true, y_pred):
        e = y_pred - y_true
        gradient = 4 * e**3 / e.shape[-1]
        gradient[1, 2] += self.wrong
        return np.mean(e**4, axis=-1), gradient


def test_right_gradients_pass_and_wrong_ones_are_named():
    report = fastloss.check_gradient(Written())
    assert report.checked == 20
    assert report.gradient_error < 1e-9
    assert report.hessian_error is None
    with pytest.raises(AssertionError, match=r"gradient is wrong in 1 of 20 .*\n  at \(1, 2\), .* by differences"):
        fastloss.check_gradient(Written(1e-4))
    with pytest.raises(AssertionError, match=r"at \(1, 2\).*nan"):
        fastloss.check_gradient(Written(math.nan))


def test_a_wrong_hessian_is_named_as_one():
    right = losses.from_kernel(cauchy, scale=2.0, dtype="float32")
    report = fastloss.check_gradient(right)
    assert report.hessian_error < 1e-8

    @fastloss.pointwise()
    def wrong(xp):
        two = xp.const(2.0)

        def terms(y, p):
            e = p - y
            return e * e, two * e, e

        return terms

    with pytest.raises(AssertionError, match="the Hessian is wrong in 20 of 20"):
        fastloss.check_gradient(losses.from_kernel(wrong))


def test_arguments_of_check_gradient():
    with pytest.raises(TypeError, match="`loss` must be a loss"):
        fastloss.check_gradient(lopsided)
    with pytest.raises(ValueError, match="both, or neither"):
        fastloss.check_gradient(Written(), y_true=[[1.0]])
    with pytest.raises(ValueError, match="in the domain of the loss"):
        fastloss.check_gradient(Written(), [[0.0] * 3] * 2, [[math.inf] * 3] * 2)

    class Valueless(losses.Loss):
        def call(self, y_true, y_pred):
            return np.mean((y_pred - y_true) ** 2, axis=-1)

    with pytest.raises(NotImplementedError, match=r"Valueless defines no gradient; .* override `call_with_grad"):
        fastloss.check_gradient(Valueless())
    near_a_kink = np.array([[1.0005, 2.0]])
    assert fastloss.check_gradient(losses.from_function(lopsided), np.ones((1, 2)), near_a_kink).gradient_error < 1e-6


# --------------------------------------------------------------------------------------------------------------
# In nopython code
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_every_pointwise_and_rowwise_loss_has_a_function(name):
    """None is compiled here: they differ in kernel and parameters alone, and the shapes are compiled below."""
    for options in LOSSES[name].variants:
        for reduction in ("sum_over_batch_size", "sum", "mean_with_sample_weight"):
            function = fastloss.kernel(name, "float64", **options, reduction=reduction)
            assert fastloss.kernel(LOSSES[name].cls.__name__, "float64", **options, reduction=reduction) is function


def _both(name, y, p, weight, **options):
    """Value and gradient of the function in nopython code, and of the loss."""
    function = fastloss.kernel(name, p.dtype, **options)

    @numba.njit
    def caller(y, p, weight, grad):
        return function(y, p, weight, grad)

    grad = np.empty_like(p)
    value = caller(y, p, weight, grad)
    found = identifiers.find(name)
    return (value, grad), found(**options).value_and_grad(y, p, weight)


_RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("name", "options", "labels", "shape", "weighted"),
    [
        ("Huber", {"delta": 0.5}, "dense", (70,), False),
        ("Huber", {"delta": 0.5, "reduction": "mean_with_sample_weight"}, "dense", (9, 40), True),
        ("Hinge", {"reduction": "sum"}, "binary", (40, 3), True),
        ("SparseCategoricalCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, "index", (50, 7), True),
        ("SparseCategoricalCrossentropy", {"ignore_class": 2}, "index", (50, 4), False),
        ("Dice", {}, "dense", (5, 6), False),
    ],
)
def test_functions_agree_with_their_losses(name, options, labels, shape, weighted):
    p = _RNG.random(shape)
    y = {
        "dense": _RNG.random(shape),
        "binary": np.round(_RNG.random(shape)),
        "index": np.arange(shape[0]) % shape[-1],
    }[labels]
    weight = _RNG.random(shape[0]) if weighted else None
    (value, grad), (expected, gradient) = _both(name, y, p, weight, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(grad, gradient, rtol=1e-12, atol=1e-16)


def test_a_function_of_ones_own_loss_and_its_errors():
    function = fastloss.kernel(losses.from_function(lopsided, alpha=0.5), dtype="float64")
    y, p, grad = np.zeros((4, 3)), np.full((4, 3), -2.0), np.empty((4, 3))
    assert function(y, p, None, None) == 1
    assert function(y, p, None, grad) == 1
    np.testing.assert_array_equal(grad, -0.5 / 12)
    assert function(y[:0], p[:0], None, grad[:0]) == 0
    grad.fill(7)
    for arguments, message in (
        ((y[:3], p, None, grad), "`y_true` must have the shape of `y_pred`"),
        ((y, p, None, grad[:3]), "`grad` must have the shape of `y_pred`"),
        ((y, p, None, p), "`grad` must not overlap"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    for arguments, message in (
        ((y, p, None, np.empty((3, 4)).T), "`grad` must be C-contiguous"),
        ((y, p.astype(int), None, grad), "`y_pred` must hold floats"),
        ((None, p, None, grad), "`y_true` must be an array of 2 dimensions"),
        ((y, p, 1.0, grad), "`weight` must be an array of 1 dimensions"),
    ):
        with pytest.raises(numba.TypingError, match=message):
            function(*arguments)
    assert (grad == 7).all()


def test_a_bad_label_writes_nothing():
    function = fastloss.kernel("SparseCategoricalCrossentropy", dtype="float64", ignore_class=2)
    p, grad = np.full((2, 4), 0.25), np.full((2, 4), 7.0)
    with pytest.raises(ValueError, match="class indices"):
        function(np.array([0, 4]), p, None, grad)
    assert (grad == 7).all()
    assert function(np.array([2, 2]), p, None, grad) == 0
    assert (grad == 0).all()


def test_arguments_of_kernel():
    for arguments, options, error, message in (
        (("huber", "float16"), {}, TypeError, "`dtype` must be float32 or float64"),
        (("huber", None), {}, TypeError, "`dtype` must be float32 or float64"),
        (("huber", "no dtype"), {}, TypeError, "`dtype` must be float32 or float64"),
        (("ctc",), {}, TypeError, "must be a pointwise or rowwise loss, which CTC is not; these are: mean_squared"),
        ((None,), {}, TypeError, "`loss` must be a loss"),
        (("CTC",), {}, TypeError, "must be a pointwise or rowwise loss"),
        (("hubre",), {}, ValueError, "did you mean"),
        ((losses.Huber(),), {"delta": 2.0}, TypeError, "options are for losses given by name"),
        (("huber",), {"reduction": "none"}, TypeError, "must not be 'none'"),
        (("pinball_loss",), {"tau": [0.1, 0.2]}, TypeError, "not vectors"),
        (("categorical_crossentropy",), {"axis": 0}, TypeError, "`axis` must be the last one"),
    ):
        with pytest.raises(error, match=message):
            fastloss.kernel(*arguments, **options)


def test_the_example_trains():
    spec = importlib.util.spec_from_file_location("logistic_regression", ROOT / "examples" / "logistic_regression.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    results = example.main(["--samples", "2000", "--features", "5", "--only", "fastloss", "scikit-learn"])
    assert results["fastloss"][0] > 0.75
    assert abs(results["fastloss"][0] - results["scikit-learn"][0]) < 0.02


def categorical_hinge(keeps):
    """As the built-in one, but it may keep what it does not need."""

    @fastloss.rowwise()
    def hinge(xp):
        zero, one = xp.consts(0.0, 1.0)

        def score(t, p):
            return (one - t) * p

        def gather(t, p, m):
            return p, t * p, zero, zero

        def finish(m, right, b, c):
            loss = xp.maximum(m - right + one, zero)
            return loss, xp.where(loss > zero, one, zero), zero

        def slope(t, kept, u, v):
            return (kept - t) * u if keeps == "prediction" else -t * u

        def peak(t, u, v):
            return (one - t) * u

        return fastloss.RowFunctions("score", gather, finish, slope, keeps=keeps, score=score, peak=peak)

    return losses.from_kernel(hinge)


@pytest.mark.parametrize("keeps", ["gathered", "prediction", "nothing"])
def test_rows_with_a_peak_keep_what_they_say(keeps):
    """Whether a row stands alone, among many short ones or is long; in place or not."""
    rng = np.random.default_rng(0)
    loss = categorical_hinge(keeps)
    for shape in ((50, 10), (300, 10), (20, 40)):
        p = rng.uniform(-2, 2, shape)
        y = np.eye(shape[1])[rng.integers(0, shape[1], shape[0])]
        value, gradient = loss.value_and_grad(y, p)
        rows = np.arange(len(p))
        scores = (1 - y) * p
        alive = (scores.max(axis=1) - (y * p).sum(axis=1) + 1 > 0)[:, None]
        want = (p - y if keeps == "prediction" else -y) * alive
        want[rows, scores.argmax(axis=1)] += ((1 - y)[rows, scores.argmax(axis=1)]) * alive[:, 0]
        np.testing.assert_allclose(gradient, want / len(p), rtol=1e-12, atol=1e-15)
        place = p.copy()
        again = loss.value_and_grad(y, place, out=place)
        assert again[0] == value
        np.testing.assert_array_equal(place, gradient)


def squares(divisible):
    @fastloss.rowwise(divisible=divisible)
    def distance(xp):
        zero, two = xp.consts(0.0, 2.0)

        def gather(t, p, m):
            return zero, (p - t) * (p - t), zero, zero

        def finish(m, total, b, c):
            return total, zero, zero

        def slope(t, p, u, v):
            return two * (p - t)

        return fastloss.RowFunctions("none", gather, finish, slope, keeps="prediction")

    return losses.from_kernel(distance, labels="index")


@pytest.mark.parametrize(("shape", "divisible"), [((50, 10), False), ((300, 10), False), ((2, 40_000), True)])
def test_class_indices_with_kept_predictions(shape, divisible):
    rng = np.random.default_rng(0)
    p = rng.uniform(-1, 1, shape)
    labels = rng.integers(0, shape[1], shape[0])
    loss = squares(divisible)
    value, gradient = loss.value_and_grad(labels, p)
    error = p - (np.arange(shape[1]) == labels[:, None])
    assert value == pytest.approx((error**2).sum(axis=1).mean(), rel=1e-12)
    np.testing.assert_allclose(gradient, 2 * error / len(p), rtol=1e-12)
    with pytest.raises(ValueError, match="must hold class indices"):
        loss(np.full(len(p), shape[1]), p)


def test_a_row_that_needs_more_than_sums_is_not_divisible():
    @fastloss.rowwise(divisible=True)
    def largest(xp):
        zero = xp.const(0.0)
        return fastloss.RowFunctions(
            "max", lambda t, p, m: (zero,) * 4, lambda m, a, b, c: (m, zero, zero), lambda t, kept, u, v: zero
        )

    with pytest.raises(TypeError, match="`divisible` must be False"):
        losses.from_kernel(largest)(np.zeros((2, 3)), np.zeros((2, 3)))


def test_a_kernel_that_names_the_package_has_a_fingerprint():
    assert fingerprint.of(squares(False).kernel) is not None
    assert fingerprint.of(squares(False).kernel) != fingerprint.of(squares(True).kernel)


def test_one_row_of_a_whole_array_for_nopython_code():
    @fastloss.pointwise()
    def half_square(xp):
        half, one = xp.consts(0.5, 1.0)

        def terms(y, p):
            return half * (p - y) * (p - y), p - y, one

        return terms

    function = fastloss.kernel(losses.from_kernel(half_square, axis=None), dtype="float64")
    p, grad = np.arange(1.0, 11), np.full(10, 7.0)
    assert function(np.zeros(10), p, np.ones(1), grad) == pytest.approx(19.25)
    np.testing.assert_allclose(grad, p / 10)


def test_a_base_that_is_its_own_exponent():
    value, gradient, hessian = losses.from_function(lambda y, p: p**p).value_grad_hess([[0.0]], [[0.5]])
    power, slope = 0.5**0.5, math.log(0.5) + 1
    assert value == pytest.approx(power)
    assert gradient[0, 0] == pytest.approx(power * slope)
    assert hessian[0, 0] == pytest.approx(power * (slope**2 + 2))


@pytest.mark.parametrize("power", [9, 10, -10, 63])
def test_large_whole_powers_of_negative_numbers(power):
    value, gradient = losses.from_function(lambda y, p: p**power).value_and_grad([[0.0]], [[-1.5]])
    assert value == pytest.approx((-1.5) ** power)
    assert gradient[0, 0] == pytest.approx(power * (-1.5) ** (power - 1))


def test_parameters_of_own_losses_cannot_be_changed():
    loss = losses.from_function(lambda y, p, a: a * (p - y) ** 2, a=2.0)
    with pytest.raises(AttributeError, match="`a` of a loss cannot be changed"):
        loss.a = 5.0
    with pytest.raises(TypeError, match="item assignment"):
        loss.params["a"] = 5.0
    assert loss([[0.0]], [[1.0]]) == 2
    assert (loss.a, loss.params, pickle.loads(pickle.dumps(loss)).params) == (2.0, {"a": 2.0}, {"a": 2.0})


@pytest.mark.parametrize("name", ["name", "dtype", "reduction", "per_sample", "function", "bind", "params"])
def test_parameters_that_would_hide_behind_the_loss(name):
    said = f"'{name}' cannot be the name of a parameter"
    space = {}
    exec(f"def function(y, p, {name}): return {name} * p", space)
    for given in ({}, {name: 2.0} if name != "function" else {}):
        with pytest.raises(ValueError, match=said):
            losses.from_function(space["function"], **given)
    with pytest.raises(ValueError, match=said):
        losses.ExpressionLoss(f"{name} * p", {name: 2.0})
    with pytest.raises(ValueError, match=said):
        losses.from_kernel(fastloss.pointwise(params=(name,))(lambda xp: None))


@pytest.mark.parametrize(
    "function",
    [lambda y, p: p / p + p, lambda y, p: (p - y) / (p - y) * p, lambda y, p: 0 * y + p, lambda y, p: p + (y - y)],
)
def test_terms_that_cancel_are_refused(function):
    """SymPy takes x / x for 1 and x - x for 0, also where x is NaN."""
    with pytest.raises(TraceError, match=r"a term that cancels.*in line \d+"):
        losses.from_function(function)


def test_arrays_beside_symbols():
    assert losses.from_function(lambda y, p: np.array(2.0) * p)([[0.0]], [[3.0]]) == 6
    with pytest.raises(TraceError, match="an array of shape"):
        losses.from_function(lambda y, p: np.array([1.0, 2.0]) * p)


@pytest.mark.parametrize(
    ("loss", "y_true", "y_pred"),
    [
        (losses.BinaryCrossentropy(), [[1.0]], [[1e-4]]),
        (losses.KLDivergence(), [[0.3, 0.7]], [[1e-5, 0.9]]),
    ],
)
def test_right_gradients_of_small_probabilities(loss, y_true, y_pred):
    assert fastloss.check_gradient(loss, y_true, y_pred).checked == np.size(y_pred)


@pytest.mark.parametrize("options", [{"calls": ("tan",)}, {"params": "scale"}, {"calls": "exp"}])
def test_decorators_check_their_arguments(options):
    with pytest.raises((TypeError, ValueError), match=r"`params`|`calls`"):
        fastloss.pointwise(**options)(lambda xp: None)
