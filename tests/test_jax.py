"""`fastloss.jax` against JAX: its transformations, and Optax's losses."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

jax = pytest.importorskip("jax", reason="JAX is not installed: nothing to adapt to")
optax = pytest.importorskip("optax", reason="Optax is not installed: nothing to compare with")

import jax.numpy as jnp  # noqa: E402

import data  # noqa: E402
import fastloss.jax  # noqa: E402
from fastloss import losses  # noqa: E402
from fastloss.registry import BATCH_LOSSES, LOSSES  # noqa: E402

ROWS = [pytest.param(row, id=name) for name, row in {**LOSSES, **BATCH_LOSSES}.items()]
CROSSENTROPY = fastloss.jax.wrap("sparse_categorical_crossentropy", from_logits=True)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def logits(dtype, *shape):
    return data.rng(1).normal(size=shape).astype(dtype), data.rng(2).integers(0, shape[-1], shape[:-1])


def theirs(p, t):
    return optax.losses.softmax_cross_entropy_with_integer_labels(p, t).mean()


@pytest.fixture
def called_back(monkeypatch):
    """Without handlers, which take seconds to compile, each of them."""
    monkeypatch.setattr(fastloss.jax, "_target", lambda *arguments: None)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.usefixtures("float64", "called_back")
def test_every_loss_has_its_value_and_gradient(row):
    options = row.variants[0]
    if row.name in BATCH_LOSSES:
        y, p = data.batch_inputs(row, options, 4)
    else:
        y, p = data.inputs(row, options, (4, 3))
    loss = row.cls(**{**options, "reduction": "sum_over_batch_size"})
    value, grad = jax.value_and_grad(fastloss.jax.wrap(loss))(p, y)
    expected = loss.value_and_grad(y, p)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-14)


def compare(ours, other, p, t, rtol):
    for transform in (jax.value_and_grad, lambda f: jax.jit(jax.value_and_grad(f))):
        found = transform(lambda p: 3 * ours(p, t) ** 2)(p)
        expected = transform(lambda p: 3 * other(p, t) ** 2)(p)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == p.dtype
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-8)


def test_value_and_gradient_are_those_of_optax_in_float32():
    compare(CROSSENTROPY, theirs, *logits(np.float32, 8, 5), 2e-5)


@pytest.mark.usefixtures("float64", "called_back")
def test_value_and_gradient_are_those_of_optax_in_float64():
    p, _ = logits(np.float64, 8, 5)
    compare(fastloss.jax.wrap("huber"), lambda p, t: optax.losses.huber_loss(p, t).mean(), p, 0 * p, 1e-12)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_vmap(transform):
    p, t = logits(np.float32, 3, 2, 4, 5)
    ours, reference = jax.value_and_grad(CROSSENTROPY), jax.value_and_grad(theirs)
    for mapped, *args in (
        (lambda f: jax.vmap(jax.vmap(f)), p, t),
        (lambda f: jax.vmap(jax.vmap(f, (0, None)), (0, None)), p, t[0, 0]),
        (lambda f: jax.vmap(jax.vmap(f, (None, 0)), (0, None)), p[:, 0], t[0]),
    ):
        for a, b in zip(transform(mapped(ours))(*args), mapped(reference)(*args), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("float64")
def test_unreduced_losses():
    p, y = data.rng(1).normal(size=(2, 4, 5))
    weight, flow = np.array([0.5, 2.0, 1.0, 0.0]), jnp.arange(4.0)
    each = fastloss.jax.wrap("mse", reduction="none")
    found = jax.jit(jax.grad(lambda p: (flow * each(p, y, weight)).sum()))(p)
    np.testing.assert_allclose(found, (flow * weight)[:, None] * 2 * (p - y) / 5, rtol=1e-12)
    assert each(p, y).shape == jax.eval_shape(each, p, y).shape == (4,)


def test_half_precision():
    p, t = logits(np.float32, 4, 5)
    half = jnp.asarray(p, jnp.bfloat16)
    value, grad = jax.value_and_grad(CROSSENTROPY)(half, t)
    assert (value.dtype, grad.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(grad.astype(np.float32), jax.grad(theirs)(half.astype(np.float32), t), atol=2e-3)


@pytest.mark.usefixtures("float64")
def test_a_handler_agrees_with_python():
    loss = losses.MeanSquaredError(reduction="mean_with_sample_weight")
    y, p = data.inputs(LOSSES["mean_squared_error"], {}, (4, 3))
    weight = np.array([0.5, 1.0, 0.0, 2.0])
    assert fastloss.jax._target(loss, True, p, {"y_true": y, "sample_weight": weight}) is not None
    value, grad = jax.jit(jax.value_and_grad(fastloss.jax.wrap(loss)))(p, y, weight)
    expected = loss.value_and_grad(y, p, weight)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-14)


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in LOSSES.items()])
def test_every_handler_agrees_with_python(row):
    for dtype, options in itertools.product((np.float32, np.float64), row.variants):
        loss = row.cls(**options, reduction="sum")
        y, p = data.inputs(row, options, (40, 7), dtype=dtype)
        weight = np.linspace(0, 2, 40, dtype=dtype)
        with jax.enable_x64(True):
            for given in ((y,), (y, weight)):
                arguments = dict(zip(("y_true", "sample_weight"), given, strict=False))
                handled = fastloss.jax._target(loss, True, p, arguments) is not None
                assert handled or row.name == "contrastive_loss" or getattr(loss, "axis", -1) != -1
                if handled:
                    value, grad = jax.jit(jax.value_and_grad(fastloss.jax.wrap(loss)))(p, *given)
                    expected = loss.value_and_grad(y, p, *given[1:])
                    tolerance = 1e-5 if dtype == np.float32 else 1e-13
                    np.testing.assert_allclose(value, expected[0], rtol=tolerance)
                    np.testing.assert_allclose(grad, expected[1], rtol=tolerance, atol=1e-6 * tolerance)


def test_what_has_no_handler():
    p, y = jnp.ones((4, 3), jnp.float32), jnp.zeros((4, 3), jnp.float32)
    mse = losses.MeanSquaredError()
    checked = losses.MeanSquaredError()
    checked.check_numerics = "raise"
    for loss, p_, further in (
        (checked, p, {}),
        (losses.MeanSquaredError(reduction="none"), p, {}),
        (losses.MeanSquaredError(dtype="float64"), p, {}),
        (losses.CTC(), p, {}),
        (mse, p[:, 0], {}),
        (mse, p[:0], {}),
        (mse, p.astype(jnp.bfloat16), {}),
        (mse, p, {"mask": y}),
        (mse, p, {"sample_weight": y[:1, 0]}),
    ):
        assert fastloss.jax._target(loss, True, p_, {"y_true": y, **further}) is None
    with pytest.raises(jax.errors.JaxRuntimeError, match="not finite"):
        jax.block_until_ready(fastloss.jax.wrap(checked)(p * jnp.inf, y))


def test_training_is_that_of_optax():
    x, (_, t) = data.rng(3).normal(size=(32, 6)).astype(np.float32), logits(np.float32, 32, 4)

    def train(loss):
        w, optimizer = jnp.zeros((6, 4), jnp.float32), optax.adam(0.1)

        @jax.jit
        def step(w, state):
            value, grad = jax.value_and_grad(lambda w: loss(x @ w, t))(w)
            change, state = optimizer.update(grad, state)
            return w + change, state, value

        state, history = optimizer.init(w), []
        for _ in range(10):
            w, state, value = step(w, state)
            history.append(float(value))
        return history

    found = train(CROSSENTROPY)
    np.testing.assert_allclose(found, train(theirs), rtol=1e-4)
    assert found[-1] < found[0]


@pytest.mark.usefixtures("called_back")
def test_no_gradient_is_computed_where_none_is_needed(monkeypatch):
    monkeypatch.setattr(losses.MeanSquaredError, "value_and_grad", None)
    p = np.ones((4, 3), np.float32)
    assert jax.jit(fastloss.jax.wrap("mse"))(p, 0 * p) == 1


def test_a_second_derivative_is_refused():
    p, t = logits(np.float32, 4, 5)
    each = fastloss.jax.wrap("mse", reduction="none")
    for function in (lambda p: CROSSENTROPY(p, t), lambda p: each(p, 0 * p).sum()):
        with pytest.raises(NotImplementedError, match="cannot be differentiated again; use a loss of JAX's own"):
            jax.hessian(function)(p)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda p: CROSSENTROPY(p, t), (p,), (p,))


def test_what_the_loss_refuses():
    p, t = logits(np.float32, 4, 5)
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="`y_true` must hold class indices"):
        jax.block_until_ready(jax.jit(jax.value_and_grad(CROSSENTROPY))(p, t + 5))
    with pytest.raises(TypeError, match="options are for losses given by name"):
        fastloss.jax.wrap(losses.Huber(), delta=2.0)
    assert repr(fastloss.jax.wrap("mse")).startswith("FusedLoss(MeanSquaredError(")
