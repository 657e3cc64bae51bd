"""Losses of several outputs, regularisers, clipping and class weights."""

from __future__ import annotations

import copy
import json
import os
import pickle

import numpy as np
import pytest

import fastloss
from fastloss import losses, regularizers

RNG = np.random.default_rng(0)


@pytest.fixture
def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras", reason="Keras is not installed: nothing to compare with")


class Cubic(losses.Loss):
    """A loss of one's own."""

    def call_with_grad(self, y_true, y_pred):
        e = np.abs(y_pred - y_true)
        return np.mean(e**3, axis=-1), 3 * e**2 * np.sign(y_pred - y_true) / e.shape[-1]


# --------------------------------------------------------------------------------------------------------------
# Weighted
# --------------------------------------------------------------------------------------------------------------


def batch():
    """Targets and predictions of three outputs; the last has no loss."""
    y_true = {"a": RNG.normal(size=(6, 3)), "b": RNG.integers(0, 4, 6), "c": None}
    y_pred = {"a": RNG.normal(size=(6, 3)), "b": RNG.normal(size=(6, 4)), "c": RNG.normal(size=(6, 2))}
    return y_true, y_pred


def own():
    return {"a": losses.MeanSquaredError(), "b": losses.SparseCategoricalCrossentropy(from_logits=True), "c": None}


@pytest.mark.parametrize("form", [dict, list, tuple])
def test_total_terms_and_gradients_are_those_of_the_losses(form):
    y_true, y_pred = batch()
    parts, weights, weight = own(), {"a": 2.0, "b": 0.25, "c": None}, RNG.random(6)
    mask = np.array([1, 1, 0, 1, 1, 1], bool)
    made = (lambda d: d) if form is dict else (lambda d: form(d.values()))
    loss = losses.Weighted(made(parts), made(weights))
    masks = {"a": None, "b": mask, "c": None}
    total, terms, gradients = loss.value_and_grad(
        made(y_true), made(y_pred), weight, mask=made(masks), add_loss=[0.5, np.float32(0.25)], upstream=3.0
    )
    assert type(terms) is type(gradients) is form
    assert total == loss(made(y_true), made(y_pred), weight, mask=made(masks), add_loss=0.75)
    expected = 0.75
    for k, key in enumerate("ab"):
        place = key if form is dict else k
        value, grad = parts[key].value_and_grad(y_true[key], y_pred[key], weight, mask=masks[key])
        expected += weights[key] * value
        assert terms[place] == value
        np.testing.assert_allclose(gradients[place], 3 * weights[key] * grad, rtol=1e-14)
    np.testing.assert_allclose(total, expected, rtol=1e-14)
    assert terms["c" if form is dict else 2] is gradients["c" if form is dict else 2] is None


def test_gradients_of_a_total_are_its_differences():
    y_true, y_pred = batch()
    loss = losses.Weighted(own(), {"a": 0.3, "b": 2.0})
    gradients = loss.value_and_grad(y_true, y_pred).gradients
    for key, (i, j) in (("a", (2, 1)), ("b", (4, 3))):
        ends = []
        for step in (-1e-5, 1e-5):
            moved = copy.deepcopy(y_pred)
            moved[key][i, j] += step
            ends.append(loss(y_true, moved))
        np.testing.assert_allclose(gradients[key][i, j], (ends[1] - ends[0]) / 2e-5, rtol=1e-6)


def test_gradients_are_written_where_out_says():
    y_true, y_pred = batch()
    loss = losses.Weighted(own(), {"a": 2.0})
    expected = loss.value_and_grad(y_true, y_pred).gradients
    out = {"a": np.empty((6, 3)), "c": None}
    before = copy.deepcopy(y_pred)
    gradients = loss.value_and_grad(y_true, y_pred, out=out).gradients
    assert gradients["a"] is out["a"]
    for key in "ab":
        np.testing.assert_array_equal(gradients[key], expected[key])
    for key in "abc":
        np.testing.assert_array_equal(y_pred[key], before[key])


def test_losses_without_reduction_need_one_value():
    pairs = losses.Weighted([losses.NpairsLoss()], [3.0])  # of the whole batch, with the reduction "none"
    labels, scores = np.array([0, 1, 0]), RNG.normal(size=(3, 3))
    total, terms, (gradient,) = pairs.value_and_grad([labels], [scores])
    value, single = losses.NpairsLoss().value_and_grad(labels, scores)
    np.testing.assert_allclose([total, terms[0]], [3 * value, value])
    np.testing.assert_allclose(gradient, 3 * single)
    loss = losses.Weighted({"a": losses.MeanSquaredError(reduction="none")}, {"a": 2.0})
    for call in (loss, loss.value_and_grad):
        with pytest.raises(ValueError, match=r"`losses\['a'\]` must reduce to one number.*'none'.*\(2,\)"):
            call({"a": np.zeros((2, 1))}, {"a": np.zeros((2, 1))})


def test_configs_copies_and_pickles_of_weighted():
    y_true, y_pred = batch()
    y_true["c"] = np.zeros((6, 2))
    loss = losses.Weighted({**own(), "c": Cubic()}, {"a": 2.0, "b": 0.5}, name="both")
    expected = loss(y_true, y_pred)
    config = json.loads(json.dumps(losses.serialize(loss)))
    assert config["class_name"] == "Weighted"
    again = losses.deserialize(config, custom_objects={"Cubic": Cubic})
    assert again.get_config() == loss.get_config()
    with pytest.raises(ValueError, match="'Cubic'"):
        losses.deserialize(config)
    for other in (again, pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), losses.get(loss)):
        assert other(y_true, y_pred) == expected
        assert other.name == "both"
    listed = losses.Weighted(["mse", None, "Huber"])
    assert losses.deserialize(losses.serialize(listed)).get_config() == listed.get_config()
    assert "loss_weights" not in listed.get_config()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: losses.Weighted("mse"), TypeError, "`losses` must be a list, tuple or dict"),
        (lambda: losses.Weighted([None]), ValueError, "at least one loss"),
        (lambda: losses.Weighted(["nothing"]), ValueError, r"`losses\[0\]`: Could not interpret"),
        (lambda: losses.Weighted({"a": len}), TypeError, r"`losses\['a'\]`: must be a Loss or the name of one"),
        (lambda: losses.Weighted(["mse"], 2.0), TypeError, "`loss_weights` must be a list or tuple, as `losses` is"),
        (lambda: losses.Weighted(["mse"], [1.0, 2.0]), ValueError, "`loss_weights` must have an entry for each"),
        (lambda: losses.Weighted({"a": "mse"}, {"b": 1.0}), ValueError, r"`loss_weights` must have the keys.*\['b'\]"),
        (lambda: losses.Weighted({"a": "mse"}, [1.0]), TypeError, "`loss_weights` must be a dict"),
        (lambda: losses.Weighted(["mse"], [np.nan]), ValueError, r"`loss_weights\[0\]` must be finite"),
        (lambda: losses.Weighted(["mse"], ["1"]), TypeError, r"`loss_weights\[0\]` must be a number"),
    ],
)
def test_what_is_no_weighted_loss(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_errors_of_a_loss_name_its_output():
    loss = losses.Weighted({"a": "mse", "b": losses.SparseCategoricalCrossentropy()})
    y_pred = {"a": np.ones((2, 1)), "b": np.ones((2, 3))}
    for call in (loss, loss.value_and_grad):
        with pytest.raises(ValueError, match="class indices") as caught:
            call({"a": np.ones((2, 1)), "b": np.array([0, 3])}, y_pred)
        assert caught.value.__notes__ == ["raised by the loss of output 'b'"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([1.0], {"a": [1.0]}), {}, TypeError, "`y_true` must be a dict"),
        (({"a": [1.0]}, {"b": [1.0]}), {}, ValueError, r"`y_pred` must have the keys of `losses`, \['a'\]"),
        (({}, {"a": [1.0]}), {}, ValueError, "`y_true` must have an array.*'a'"),
        (({"a": [1.0]}, {"a": None}), {}, ValueError, "`y_pred` must have an array.*'a'"),
        (({"a": [1.0]}, {"a": [1.0]}, {"x": 1.0}), {}, ValueError, "`sample_weight` must have the keys"),
        (({"a": [1.0]}, {"a": [1.0]}), {"mask": {"x": 1.0}}, ValueError, "`mask` must have the keys"),
        (({"a": [1.0]}, {"a": [1.0]}), {"add_loss": [[1.0, 2.0]]}, ValueError, "`add_loss` must be numbers"),
        (({"a": [1.0]}, {"a": [1.0]}), {"upstream": "x"}, TypeError, "`upstream` must be a number"),
        (({"a": [1.0]}, {"a": [1.0]}), {"out": [None]}, TypeError, "`out` must be a dict"),
    ],
)
def test_what_weighted_refuses(arguments, options, error, words):
    with pytest.raises(error, match=words):
        losses.Weighted({"a": "mse"}).value_and_grad(*arguments, **options)


def test_total_of_a_keras_model(keras):
    """Two outputs, weighted samples, a penalty: ``evaluate`` reports the total and each term."""
    inputs = keras.Input((3,))
    layer = keras.layers.Dense(2, name="a", kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02))
    model = keras.Model(inputs, {"a": layer(inputs), "b": keras.layers.Dense(4, name="b")(inputs)})
    theirs = {"a": "mse", "b": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    model.compile(loss=theirs, loss_weights={"a": 0.3, "b": 2.0})
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    y = {"a": RNG.normal(size=(8, 2)).astype(np.float32), "b": RNG.integers(0, 4, 8)}
    weight = {"a": RNG.random(8).astype(np.float32), "b": RNG.random(8).astype(np.float32)}
    expected = model.evaluate(x, y, sample_weight=weight, batch_size=8, verbose=0, return_dict=True)
    predicted = {key: np.asarray(value) for key, value in model(x).items()}
    penalty = regularizers.get(keras.regularizers.serialize(layer.kernel_regularizer))
    loss = losses.Weighted(
        {"a": "mse", "b": losses.SparseCategoricalCrossentropy(from_logits=True)}, {"a": 0.3, "b": 2.0}
    )
    total, terms, _ = loss.value_and_grad(y, predicted, weight, add_loss=[penalty(np.asarray(layer.kernel))])
    np.testing.assert_allclose(total, expected["loss"], rtol=1e-6)
    for key in "ab":
        np.testing.assert_allclose(terms[key], expected[f"{key}_loss"], rtol=1e-6)


# --------------------------------------------------------------------------------------------------------------
# Regularisers
# --------------------------------------------------------------------------------------------------------------

PENALTIES = [regularizers.L1(0.3), regularizers.L2(0.2), regularizers.L1L2(0.3, 0.2), regularizers.L1L2(l2=0.2)]


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_penalties_and_their_gradients(penalty, dtype, keras):
    w = RNG.normal(size=(5, 7)).astype(dtype)
    w[0, 0] = 0
    value, grad = penalty.value_and_grad(w)
    x = w.astype(np.float64)
    eps = np.finfo(dtype).eps
    expected = penalty.l1 * np.abs(x).sum() + penalty.l2 * (x**2).sum()
    np.testing.assert_allclose(value, expected, rtol=2 * eps)
    np.testing.assert_allclose(grad, penalty.l1 * np.sign(x) + 2 * penalty.l2 * x, rtol=4 * eps)
    assert value.dtype == grad.dtype == dtype
    theirs = keras.regularizers.deserialize(regularizers.serialize(penalty))
    np.testing.assert_allclose(value, np.asarray(theirs(keras.ops.convert_to_tensor(w))), rtol=1e-6)
    assert regularizers.get(keras.regularizers.serialize(theirs)).get_config() == pytest.approx(penalty.get_config())


@pytest.mark.parametrize("penalty", PENALTIES[:3], ids=repr)
def test_penalties_have_the_same_bits_on_every_number_of_threads(penalty):
    w = RNG.normal(size=200_003).astype(np.float32)
    (one, first), (two, second) = (penalty.value_and_grad(w, n_threads=n) for n in (1, 2))
    assert one == two
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(
        one, penalty.l1 * np.abs(w).sum(dtype=float) + penalty.l2 * np.square(w, dtype=float).sum(), rtol=1e-6
    )


def test_penalties_of_activities_strides_integers_and_halves():
    penalty = regularizers.L2(0.5)
    x = RNG.normal(size=(4, 6))
    value, grad = penalty.value_and_grad(x, activity=True, upstream=2.0)
    np.testing.assert_allclose(value, 0.5 * (x**2).sum() / 4)
    np.testing.assert_allclose(grad, 2 * x / 4)
    out = np.empty((6, 4)).T
    assert penalty.value_and_grad(x, out=out)[1] is out
    np.testing.assert_allclose(out, x)
    np.testing.assert_allclose(penalty.value_and_grad(x.T[:, ::2])[1], x.T[:, ::2])
    value, grad = penalty.value_and_grad(np.array([1, -2]))
    assert (value, value.dtype, grad.dtype) == (2.5, np.float32, np.float32)
    value, grad = penalty.value_and_grad(np.array([1, -2], np.float16))
    assert (value, value.dtype, grad.dtype, grad.tolist()) == (2.5, np.float32, np.float16, [1, -2])
    value, grad = penalty.value_and_grad(np.empty((0, 3)))
    assert (value, grad.shape) == (0, (0, 3))


def test_penalties_of_what_is_not_finite():
    """A factor of 0 leaves its sum out; NaN and infinity come through."""
    for penalty in PENALTIES:
        assert penalty([np.inf, 1.0]) == np.inf
        value, grad = penalty.value_and_grad(np.array([np.nan, 1.0]))
        np.testing.assert_array_equal(np.isnan([value, *grad]), [True, True, False])
    value, grad = regularizers.L1L2().value_and_grad(np.array([np.inf, 1.0]))
    assert (value, grad.tolist()) == (0, [0, 0])
    assert regularizers.L1(1.0).value_and_grad(np.array([-np.inf]))[1].tolist() == [-1]


def test_identifiers_and_configs_of_regularizers():
    for name, cls in (("l1", regularizers.L1), ("L2", regularizers.L2), ("l1_l2", regularizers.L1L2)):
        assert type(regularizers.get(name)) is cls
    assert regularizers.l1_l2 is regularizers.L1L2
    for penalty in PENALTIES:
        for again in (
            regularizers.deserialize(json.loads(json.dumps(regularizers.serialize(penalty)))),
            type(penalty).from_config(penalty.get_config()),
            pickle.loads(pickle.dumps(penalty)),
            regularizers.get(penalty),
        ):
            assert type(again) is type(penalty)
            assert again.get_config() == penalty.get_config()
    assert regularizers.get(None) is None
    assert regularizers.L1(None).l1 == 0.01
    configs = ({"l1": 0.5}, {"l2": "a"}, {"l2": -1.0}, {3: 0.5}, 3)
    for identifier in ("l3", {}, 17, {"class_name": ["L2"]}, *({"class_name": "L2", "config": c} for c in configs)):
        with pytest.raises(ValueError, match="Could not interpret regularizer identifier"):
            regularizers.get(identifier)
    with pytest.raises(ValueError, match="Could not interpret regularizer identifier"):
        regularizers.serialize(len)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: regularizers.L2(-1.0), ValueError, "`l2` must not be negative"),
        (lambda: regularizers.L1("a"), TypeError, "`l1` must be a number"),
        (lambda: regularizers.L1L2(l1=np.inf), ValueError, "`l1` must be finite"),
        (lambda: regularizers.L2()(["a"]), (TypeError, ValueError), "`x`"),
        (lambda: regularizers.L2()(1.0, activity=True), ValueError, "`x` must be a batch"),
        (lambda: regularizers.L2()(1.0, activity=1), TypeError, "`activity` must be True or False"),
        (lambda: regularizers.L2()(1.0, n_threads=0), ValueError, "`n_threads`"),
        (lambda: regularizers.L2().value_and_grad([1.0], upstream=[1.0]), TypeError, "`upstream` must be a number"),
        (lambda: regularizers.L2().value_and_grad(np.ones(2), out=np.ones(3)), ValueError, "the shape of `x`"),
        (lambda: regularizers.L2().value_and_grad(np.ones(2), out=np.ones(2, "f4")), ValueError, "`out` must have"),
    ],
)
def test_what_regularizers_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_penalty_never_overwrites_the_weights():
    w = np.ones(3)
    with pytest.raises(ValueError, match="`out` must not overlap `x`"):
        regularizers.L2().value_and_grad(w, out=w)
    assert w.tolist() == [1, 1, 1]


# --------------------------------------------------------------------------------------------------------------
# Clipping
# --------------------------------------------------------------------------------------------------------------

CLIPS = {
    "clipvalue": fastloss.clip_by_value,
    "clipnorm": fastloss.clip_by_norm,
    "global_clipnorm": lambda *args, **kwargs: fastloss.clip_by_global_norm(*args, **kwargs)[0],
}


def gradients(dtype):
    return [RNG.normal(size=(40, 30)).astype(dtype), None, (RNG.normal(size=7) * 0.1).astype(dtype)]


@pytest.mark.parametrize("limit", [0.5, 1e3])
@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_is_that_of_keras_optimizers(clip, limit, keras):
    given = gradients(np.float32)
    before = copy.deepcopy(given)
    found = CLIPS[clip](given, limit)
    optimizer = keras.optimizers.SGD(**{clip: limit})
    theirs = optimizer._clip_gradients([None if g is None else keras.ops.convert_to_tensor(g) for g in given])
    for ours, their, old, kept in zip(found, theirs, given, before, strict=True):
        assert (ours is None) == (their is None)
        if ours is not None:
            np.testing.assert_allclose(ours, np.asarray(their), rtol=2e-6)
            np.testing.assert_array_equal(old, kept)
            assert not np.shares_memory(ours, old)
            assert ours.dtype == old.dtype


@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_in_place_and_on_threads_has_the_same_bits(clip):
    given = [RNG.normal(size=200_003).astype(np.float32), RNG.normal(size=(3, 5)).astype(np.float32)]
    one, two = (CLIPS[clip](given, 0.25, n_threads=n) for n in (1, 2))
    out = [np.empty_like(g) for g in given]
    written = CLIPS[clip](given, 0.25, out=out)
    place = copy.deepcopy(given)
    assert CLIPS[clip](place, 0.25, out=place) is place
    assert written is out
    for k in range(2):
        assert not np.array_equal(one[k], given[k])
        for other in (two, out, place):
            np.testing.assert_array_equal(one[k], other[k])


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_clipping_of_other_forms_layouts_and_dtypes(clip, dtype):
    g = RNG.normal(size=(6, 8)).astype(dtype)
    for limit in (0.5, 100.0):
        expected = CLIPS[clip](g, limit)
        assert expected.dtype == dtype
        kept = {"a": g[::2].T, "b": g[1::2]}
        found = CLIPS[clip]({key: np.ascontiguousarray(part) for key, part in kept.items()}, limit)
        strided = CLIPS[clip](kept, limit)
        assert list(strided) == ["a", "b"]
        whole = g.copy()
        place = (whole[::2].T, whole[1::2])
        assert CLIPS[clip](place, limit, out=place) is place
        for key, part in zip("ab", place, strict=True):
            np.testing.assert_array_equal(strided[key], found[key])
            np.testing.assert_array_equal(part, found[key])
    norm = np.linalg.norm(g.astype(float))
    np.testing.assert_allclose(fastloss.clip_by_global_norm(g, 1.0)[1], norm, rtol=1e-12)


def test_what_is_within_bounds_is_left_alone():
    g = np.array([3.0, 4.0])
    for clip in CLIPS.values():
        place = g.copy()
        place.flags.writeable = False
        np.testing.assert_array_equal(clip(place, 5.0), g)
    assert fastloss.clip_by_global_norm([g, np.zeros((0, 2))], 5.0)[1] == 5.0
    assert fastloss.clip_by_norm(np.zeros(3), 1.0).tolist() == [0, 0, 0]
    assert fastloss.clip_by_global_norm([None], 1.0) == ([None], 0.0)


def test_norms_of_huge_and_tiny_gradients():
    """Squares in float64: what a float32 norm would make infinite or 0 is neither."""
    for size in (1e30, 1e-30):
        g = np.full(4, size, np.float32)
        np.testing.assert_allclose(fastloss.clip_by_norm(g, size), g / 2, rtol=1e-6)
    for size in (1e300, 1e-300):
        g = size * np.array([3.0, 4.0])
        np.testing.assert_allclose(fastloss.clip_by_norm(g, size), g / 5, rtol=1e-14)
        (clipped, _), norm = fastloss.clip_by_global_norm([g, np.zeros(2, np.float32)], size)
        np.testing.assert_allclose([*clipped, norm], [*g / 5, 5 * size], rtol=1e-14)
    clipped, norm = fastloss.clip_by_global_norm(np.full(100, 1e308), 1.0)
    np.testing.assert_allclose(clipped, 0.1)
    assert norm == np.inf
    # A factor that float32 would round to a few bits.
    np.testing.assert_allclose(fastloss.clip_by_norm(np.full(1, 1e38, np.float32), 1e-5), 1e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_limit_that_the_dtype_does_not_hold(dtype):
    g = np.array([1.0, np.inf, -np.inf], dtype)
    most = np.finfo(dtype).max
    np.testing.assert_array_equal(fastloss.clip_by_value(g, 1e300), np.array([1, most, -most], dtype))


def test_clipping_what_is_not_finite():
    bad = np.array([np.nan, np.inf, -np.inf, 1.0])
    np.testing.assert_array_equal(fastloss.clip_by_value(bad, 2.0), [np.nan, 2.0, -2.0, 1.0])
    infinite, fine = np.array([np.inf, 1.0]), np.array([0.5])
    by_norm = fastloss.clip_by_norm([bad, infinite, fine], 2.0)
    assert np.isnan(by_norm[0]).all()
    np.testing.assert_array_equal(by_norm[1], [np.nan, 0.0])
    np.testing.assert_array_equal(by_norm[2], fine)
    for unusual in (bad, infinite):
        found, norm = fastloss.clip_by_global_norm([unusual, fine], 2.0)
        assert not np.isfinite(norm)
        assert all(np.isnan(g).all() for g in found)


@pytest.mark.parametrize("clip", CLIPS)
def test_what_clipping_refuses(clip):
    g = np.ones(4)
    name = "clipvalue" if clip == "clipvalue" else "clipnorm"
    for limit, error in ((0.0, ValueError), (-1.0, ValueError), (np.inf, ValueError), ("1", TypeError)):
        with pytest.raises(error, match=f"`{name}` must be"):
            CLIPS[clip](g, limit)
    with pytest.raises(TypeError, match="`gradients` must be arrays or None, got float"):
        CLIPS[clip]([1.0, 2.0], 1.0)
    with pytest.raises(TypeError, match="`gradients` must be floating arrays, got int64"):
        CLIPS[clip](np.ones(3, np.int64), 1.0)
    for out, words in (
        (np.ones(3), "the shape of `gradients`"),
        (np.ones(4, np.float32), "the gradient's dtype"),
        (g[::-1], "must not overlap"),
    ):
        with pytest.raises(ValueError, match=words):
            CLIPS[clip](g, 1.0, out=out)
    with pytest.raises(TypeError, match="`out` must be a list or tuple"):
        CLIPS[clip]([g], 1.0, out=np.ones(4))
    buffer = np.ones(4)
    with pytest.raises(ValueError, match="must not overlap other gradients"):
        CLIPS[clip]([g, g.copy()], 1.0, out=[buffer, buffer])
    for twice in ([g, g], [g, g[:]], [g[:2], g[1:]]):
        with pytest.raises(ValueError, match="must not overlap other gradients"):
            CLIPS[clip](twice, 1.0, out=twice)
    assert g.tolist() == [1, 1, 1, 1]


# --------------------------------------------------------------------------------------------------------------
# Class weights
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["balanced", None, {0: 2.0, 5: 0.5}])
def test_class_weights_are_those_of_scikit_learn(kind, weighted):
    utils = pytest.importorskip("sklearn.utils.class_weight")
    y = RNG.choice([0, 2, 5], 50, p=[0.7, 0.2, 0.1])
    weight = RNG.random(50) if weighted else None
    classes = np.unique(y)
    expected = utils.compute_class_weight(kind, classes=classes, y=y, sample_weight=weight)
    found = fastloss.class_weight(y, kind, sample_weight=weight)
    assert list(found) == classes.tolist()
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-14)
    assert fastloss.class_weight(y.reshape(5, 10).astype(np.float32), kind) == fastloss.class_weight(y.tolist(), kind)


def test_balanced_classes_weigh_the_same():
    y = np.repeat([0, 1, 2], [70, 20, 10])
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    weights = fastloss.class_weight(y)
    parts = [loss(y[y == c], np.zeros((int((y == c).sum()), 3)), class_weight=weights) for c in range(3)]
    np.testing.assert_allclose(parts, 100 / 3 * np.log(3))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([],), {}, ValueError, "`y` must have at least one label"),
        (([0.5, 1.0],), {}, ValueError, "`y` must hold integers, but has 0.5"),
        (([np.nan],), {}, ValueError, "`y` must hold integers, but has nan"),
        ((["a"],), {}, (TypeError, ValueError), "`y`"),
        (([0, 1], "even"), {}, ValueError, "must be 'balanced', a dict or None, got 'even'"),
        (([0, 1], {0: 1.0, 7: 2.0}), {}, ValueError, r"weights of \[7\].*none of \[1\]"),
        (([0, 1], {0: "x"}), {}, TypeError, r"`class_weight\[0\]` must be a number"),
        (([0, 1],), {"sample_weight": [1.0]}, ValueError, "must have the shape of `y`"),
        (([0, 1],), {"sample_weight": [1.0, 0.0]}, ValueError, "of class 1 must add up to a finite number above 0"),
    ],
)
def test_what_class_weight_refuses(arguments, options, error, words):
    with pytest.raises(error, match=words):
        fastloss.class_weight(*arguments, **options)
