"""Weighted kappa: a scalar a batch, coupled through both sums."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fastloss import losses
from reference import assert_close, assert_same_bits, difference

jax = pytest.importorskip("jax", reason="JAX is not installed: no autodiff to compare with")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

OPTIONS = [
    {"num_classes": 2},
    {"num_classes": 4},
    {"num_classes": 5, "weightage": "linear"},
    {"num_classes": 3, "weightage": "quadratic", "epsilon": 0.25},
    {"num_classes": 4, "weightage": "linear", "epsilon": 0.0},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(f"{v}" for v in o.values()))


def batch(seed, samples, options, soft=False):
    rng = np.random.default_rng(seed)
    classes = options["num_classes"]
    true = np.eye(classes)[rng.integers(classes, size=samples)]
    if soft:
        true = rng.dirichlet(np.ones(classes), samples)
    return true, rng.dirichlet(np.ones(classes), samples)


def oracle(true, pred, num_classes, weightage="quadratic", epsilon=1e-6, xp=np):
    """As Addons writes it: weights in [0, 1], the classes of soft targets by their mean."""
    places = xp.arange(num_classes, dtype=float)
    power = {"linear": 1, "quadratic": 2}[weightage]

    def weights(labels):
        return abs(labels[:, None] - places) ** power / (num_classes - 1) ** power

    seen = (weights(true @ places) * pred).sum()
    chance = (true.sum(axis=0) @ weights(places) @ pred.sum(axis=0)) / len(true)
    return xp.log(xp.where(chance == 0, 0.0, seen / xp.where(chance == 0, 1.0, chance)) + epsilon)


@every_option
@pytest.mark.parametrize("soft", [False, True])
def test_value_and_gradient(options, soft):
    # The last one takes several blocks.
    for samples in (2, 9, 64, 9_001):
        true, pred = batch(samples, samples, options, soft)
        loss = losses.WeightedKappaLoss(**options)
        value, gradient = loss.value_and_grad(true, pred)
        assert value.shape == ()
        assert value.dtype == np.float64
        assert_close(value, oracle(true, pred, **options), f"{samples}", rtol=1e-12)
        assert_same_bits(loss(true, pred), value)
        want = jax.grad(lambda p, t=true: oracle(jnp.asarray(t), p, **options, xp=jnp))(jnp.asarray(pred))
        assert_close(gradient, want, f"{samples}", rtol=1e-11, atol=1e-13 * np.abs(want).max())
        for n_threads in (1, 2):
            again = loss.value_and_grad(true, pred, n_threads=n_threads)
            assert_same_bits(again[0], value)
            assert_same_bits(again[1], gradient)
        single = loss.value_and_grad(true.astype(np.float32), pred.astype(np.float32))
        assert single[0].dtype == single[1].dtype == np.float32
        assert_close(single[0], value.astype(np.float32), rtol=1e-5, atol=1e-6)
        assert_close(single[1], gradient.astype(np.float32), rtol=1e-4, atol=1e-5 * np.abs(want).max())


@every_option
def test_gradient_is_the_difference(options):
    true, pred = batch(3, 6, options)
    loss = losses.WeightedKappaLoss(**options)
    want = difference(lambda p: float(loss(true, p)), pred, 1e-4)
    assert_close(loss.value_and_grad(true, pred)[1], want, rtol=1e-8, atol=1e-9)


def test_value_of_addons_documentation():
    true = [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    pred = [[0.1, 0.2, 0.6, 0.1], [0.1, 0.5, 0.3, 0.1], [0.8, 0.05, 0.05, 0.1], [0.01, 0.09, 0.1, 0.8]]
    assert_close(losses.WeightedKappaLoss(4)(true, pred), np.float32(-1.1611923), rtol=1e-6)


def test_large_float32_batches_are_right_to_float32():
    """Sums over 2²⁰ samples in float32 alone would be off in the fourth digit."""
    true, pred = batch(4, 1 << 20, {"num_classes": 3})
    true, pred = true.astype(np.int8), pred.astype(np.float32)
    got = losses.WeightedKappaLoss(3)(true, pred)
    assert_close(got, np.float32(oracle(true.astype(float), pred.astype(float), 3)), rtol=1e-6, atol=1e-7)


@every_option
def test_perfect_and_worst_predictions(options):
    classes, epsilon = options["num_classes"], options.get("epsilon", 1e-6)
    true = np.eye(classes)[[0, classes - 1, 0, classes - 1]]
    loss = losses.WeightedKappaLoss(**options)
    perfect, gradient = loss.value_and_grad(true, true.copy())
    assert_close(perfect, np.log(np.float64(epsilon)) if epsilon else -np.inf)
    if epsilon:
        assert np.isfinite(gradient).all()
        assert (gradient >= 0).all()  # nothing can be better
    assert_close(loss(true, true[::-1].copy()), np.log(2 + epsilon))  # as far as can be
    assert_close(loss(true, np.full(true.shape, 1 / classes)), np.log(1 + epsilon))  # chance


def test_without_expected_disagreement_the_quotient_is_zero():
    """All targets and all predictions in one class: 0 / 0."""
    true = np.eye(3)[[1, 1]]
    value, gradient = losses.WeightedKappaLoss(3).value_and_grad(true, true.copy())
    assert_close(value, np.log(1e-6))
    assert_same_bits(gradient, np.zeros((2, 3)))


@pytest.mark.parametrize("reduction", ["none", None, "sum", "mean", "sum_over_batch_size", "mean_with_sample_weight"])
def test_a_scalar_weight_multiplies_and_a_vector_is_an_error(reduction):
    options = {"num_classes": 4}
    true, pred = batch(5, 7, options)
    value, gradient = losses.WeightedKappaLoss(**options).value_and_grad(true, pred)
    loss = losses.WeightedKappaLoss(**options, reduction=reduction)
    for weight, upstream in ((1.0, 1.0), (2.5, 1.0), (-1.5, 3.0), (0.0, 1.0)):
        got = loss.value_and_grad(true, pred, weight, upstream=upstream)
        assert_close(got[0], weight * value)
        assert_close(got[1], weight * upstream * gradient)
        assert_close(loss(true, pred, weight), weight * value)
    for weight in (np.ones(7), np.ones((7, 1)), [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"`sample_weight` must broadcast to the shape .* \(\)"):
            loss.value_and_grad(true, pred, weight)
    with pytest.raises(ValueError, match=r"`mask` must broadcast to the shape .* \(\)"):
        loss(true, pred, mask=np.ones(7, bool))
    with pytest.raises(ValueError, match="`class_weight` needs a loss a sample"):
        loss(true, pred, class_weight={0: 2.0})


def test_a_mask_of_the_whole_batch():
    true, pred = batch(6, 7, {"num_classes": 4})
    loss = losses.WeightedKappaLoss(4)
    value, gradient = loss.value_and_grad(true, np.full_like(pred, np.nan), mask=False)
    assert value == 0
    assert not gradient.any()
    assert_same_bits(loss(true, pred, mask=True), loss(true, pred))


@pytest.mark.parametrize("dtype", ["int8", "uint64", "bool", "float16", "float32"])
def test_dtypes_of_targets(dtype):
    true, pred = batch(7, 50, {"num_classes": 4})
    want = losses.WeightedKappaLoss(4).value_and_grad(true, pred)
    got = losses.WeightedKappaLoss(4).value_and_grad(true.astype(dtype), pred)
    assert_same_bits(got[0], want[0])
    assert_same_bits(got[1], want[1])


def test_one_nan_is_the_whole_batch():
    true, pred = batch(8, 9, {"num_classes": 4})
    for array in (true, pred):
        kept = array[3, 1]
        array[3, 1] = np.nan
        value, gradient = losses.WeightedKappaLoss(4).value_and_grad(true, pred)
        assert np.isnan(value)
        assert np.isnan(gradient).all()
        array[3, 1] = kept


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_empty_batch(dtype):
    empty = np.zeros((0, 4), dtype)
    for reduction in ("none", "sum", "mean"):
        value, gradient = losses.WeightedKappaLoss(4, reduction=reduction).value_and_grad(empty, empty)
        assert_same_bits(value, dtype(0))
        assert_same_bits(gradient, empty)


@pytest.mark.parametrize(
    "shapes", [((5, 3), (5, 3)), ((5, 4), (5, 3)), ((5,), (5, 4)), ((5, 2, 4), (5, 2, 4)), ((), ())]
)
def test_shapes(shapes):
    bad = next(shape for shape in shapes if shape != (5, 4))
    with pytest.raises(ValueError, match=rf"num_classes=4.*{re.escape(str(bad))}"):
        losses.WeightedKappaLoss(4)(*(np.zeros(shape) for shape in shapes))


def test_batches_of_two_sizes():
    with pytest.raises(ValueError, match=r"must have the same shape.*\(5, 4\).*\(1, 4\)"):
        losses.WeightedKappaLoss(4)(np.zeros((5, 4)), np.zeros((1, 4)))


@pytest.mark.parametrize("weightage", ["cubic", "", None, 2])
def test_unknown_weightage(weightage):
    with pytest.raises(ValueError, match=rf"^`weightage` must be one of 'linear', 'quadratic', got {weightage!r}"):
        losses.WeightedKappaLoss(4, weightage)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("num_classes", 1, ValueError),
        ("num_classes", -3, ValueError),
        ("num_classes", 2.0, TypeError),
        ("num_classes", True, TypeError),
        ("epsilon", -1e-9, ValueError),
        ("epsilon", np.nan, ValueError),
        ("epsilon", "small", TypeError),
        ("reduction", "average", ValueError),
    ],
)
def test_bad_options(option, value, error):
    with pytest.raises(error, match=rf"`{option}`.*{re.escape(str(value))}"):
        losses.WeightedKappaLoss(**{"num_classes": 4, option: value})


def test_arguments_are_those_of_addons():
    loss = losses.WeightedKappaLoss(3, "linear", "mine", 0.5, "sum", "float64")
    want = {"num_classes": 3, "weightage": "linear", "name": "mine", "epsilon": 0.5}
    assert loss.get_config() == {**want, "reduction": "sum", "dtype": "float64"}
    default = losses.WeightedKappaLoss(3)
    assert (default.name, default.reduction, default.epsilon) == ("cohen_kappa_loss", "none", 1e-6)
    assert losses.WeightedKappaLoss(3, reduction="auto").reduction == "sum_over_batch_size"
