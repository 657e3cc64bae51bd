"""Objectives for XGBoost and LightGBM: their numbers against the oracle, the trees grown against the built-in ones."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys

import numpy as np
import pytest

import data
import fastloss
import reference
from fastloss import losses
from fastloss.boosting import Objective, lightgbm_objective, xgboost_objective
from fastloss.engine.toolbox import Toolbox
from fastloss.registry import BATCH_LOSSES, LOSSES
from reference import assert_close

xgboost = pytest.importorskip("xgboost")
lightgbm = pytest.importorskip("lightgbm")
datasets = pytest.importorskip("sklearn.datasets")

MAKERS = (xgboost_objective, lightgbm_objective)
DATA = {"diabetes": datasets.load_diabetes, "cancer": datasets.load_breast_cancer, "iris": datasets.load_iris}
ROUNDS = 15


def real_data(name):
    X, y = DATA[name](return_X_y=True)
    return X, y.astype(np.float32), np.random.default_rng(0).uniform(0.5, 2.0, len(y)).astype(np.float32)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def pseudo_huber(delta):
    return losses.from_function(
        lambda y, p, d: d * d * (fastloss.symbols.sqrt(1 + ((p - y) / d) ** 2) - 1), d=delta, per_sample="sum"
    )


# --------------------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------------------


def curvatures(loss, y, p):
    """Second derivatives of a pointwise loss, by its kernel in plain Python."""
    terms = loss._kernel().factory(Toolbox(np.dtype(np.float64), compiled=False))
    params = list(loss._params(p.shape[-1]))
    if loss._kernel().binary_labels and np.isin(y, (0, 1)).all():
        params[:2] = 2.0, -1.0
    y = np.broadcast_to(y, p.shape)
    return np.array([terms(t, z, *map(np.float64, params))[2] for t, z in zip(y.flat, p.flat, strict=True)]).reshape(
        p.shape
    )


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in LOSSES.values()])
def test_every_loss_of_elements_and_rows(row):
    params = {"from_logits": True} if {"from_logits": True} in row.variants else {}
    y, p = data.inputs(row, params, (6, 3), dtype=np.float32)
    weight = data.rng(1).uniform(0.5, 2.0, 6).astype(np.float32)
    loss = row.cls(**params)
    whole = reference.values_shape(row.name, params, p.shape) == ()
    per_row = None if whole else weight
    if row.cls is losses.ContrastiveLoss:
        per_row = weight[:, None]
    want = reference.gradient(row.name, y, p, per_row, reduction="sum", **params)
    if loss.per_sample == "mean" and row.cls is not losses.ContrastiveLoss:
        want *= 3  # each element has a tree of its own
    objective = xgboost_objective(loss, scale=1.0, flat_hessian=0.5)
    given = y.copy(), p.copy()
    gradient, hessian = objective(y, p, None if whole else weight)
    assert gradient.dtype == hessian.dtype == np.float32
    assert_close(gradient, want, rtol=2e-4, atol=2e-5)
    if row.kind == "pointwise":
        bend = curvatures(loss, y.astype(np.float64), p.astype(np.float64))
        bend = np.maximum(np.where((bend <= 0) & (np.abs(want) > 1e-6), 0.5, bend), 1e-16)
    elif params:
        bend = 2 * softmax(p.astype(np.float64)) * (1 - softmax(p.astype(np.float64)))
        if row.name == "categorical_focal_crossentropy":
            bend = np.full(p.shape, 0.5)
    else:
        bend = np.full(p.shape, 0.5)
    assert_close(hessian, bend if whole else bend * weight[:, None], rtol=1e-4, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(given, (y, p), strict=True))


@pytest.mark.parametrize("name", [name for name in BATCH_LOSSES if name != "ctc"])
def test_losses_of_boxes_and_batches(name):
    row = BATCH_LOSSES[name]
    y, p = data.BATCH_INPUTS[name](data.rng(), row.variants[0], 6)
    value, want = row.cls(**row.variants[0], reduction="sum").value_and_grad(y, p)
    assert np.isfinite(value)
    gradient, hessian = xgboost_objective(row.cls(**row.variants[0]), flat_hessian=3.0)(y, p)
    assert_close(gradient, want.astype(np.float32))
    assert (hessian == 3).all()


def test_hessian_is_filled_up_and_floored_before_weights():
    y, p = np.zeros(4, np.float32), np.array([0.5, 3.0, -3.0, 0.0], np.float32)
    weight = np.array([1, 2, 0, 4], np.float32)
    for flat, floor, want in ((1.0, 1e-16, [1, 2, 0, 4]), (0.25, 1e-16, [1, 0.5, 0, 4]), (0.25, 0.5, [1, 1, 0, 4])):
        objective = xgboost_objective("huber", flat_hessian=flat, hessian_floor=floor)
        assert objective(y, p, weight)[1].tolist() == want
    # Without slope there is nothing to step for: absolute error at its minimum.
    assert xgboost_objective("mean_absolute_error")(y, p)[1].tolist() == pytest.approx([1, 1, 1, 1e-16])


def test_focal_loss_bends_downwards_somewhere():
    z = np.linspace(-8, 8, 101).astype(np.float32)
    objective = xgboost_objective("binary_focal_crossentropy")
    _, hessian = objective(np.ones_like(z), z)
    bend = curvatures(objective.loss, np.ones(101)[:, None], z.astype(np.float64)[:, None])[:, 0]
    assert (bend < -1e-3).any()
    assert (hessian[bend < -1e-6] == 1).all()
    assert_close(hessian[bend > 1e-6], bend[bend > 1e-6], rtol=1e-3, atol=1e-6)


def test_one_thread_and_two_give_the_same_bits():
    random = data.rng()
    y, p = random.integers(0, 5, 20_000), np.asfortranarray(random.normal(size=(20_000, 5)))
    one = lightgbm_objective("sparse_categorical_crossentropy", n_threads=1)(y, p)
    two = lightgbm_objective("sparse_categorical_crossentropy", n_threads=2)(y, p)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_is_used_again_once_nobody_holds_it(order):
    objective = lightgbm_objective("sparse_categorical_crossentropy", n_threads=1)
    y = data.rng().integers(3, size=150_000).astype(np.float32)
    p = data.rng(1).normal(size=(150_000, 3)).copy(order)
    weight = data.rng(2).random(150_000, np.float32)

    def addresses():
        return {array.ctypes.data for array in objective(y, p, weight)}

    first = addresses()
    assert addresses() == first
    gradient, hessian = objective(y, p, weight)
    kept, seen = gradient.copy(), gradient[1:, 1:]
    expected = np.array(hessian[:5])
    del gradient, hessian
    other = objective(y, -p, weight)  # while a view of the last gradient lives
    np.testing.assert_array_equal(seen, kept[1:, 1:])
    assert not any(np.may_share_memory(seen, array) for array in other)
    del other, seen
    again = objective(y, p, weight)
    np.testing.assert_array_equal(again[0], kept)
    np.testing.assert_array_equal(again[1][:5], expected)
    pickle.loads(pickle.dumps(objective))


@pytest.mark.parametrize(("samples", "classes"), [(5, 3), (3001, 7), (20, 100)])
def test_softmax_in_either_memory_order(samples, classes):
    random = data.rng()
    y, weight = random.integers(classes, size=samples), random.random(samples)
    p = random.normal(size=(samples, classes))
    s = softmax(p)
    gradient = (s - np.eye(classes)[y]) * weight[:, None]
    objective = lightgbm_objective("sparse_categorical_crossentropy")
    for z in (p, np.asfortranarray(p)):
        got = objective(y.astype(np.float32), z, weight)
        assert_close(got[0], gradient, rtol=1e-5, atol=1e-7)
        assert_close(got[1], classes / (classes - 1) * s * (1 - s) * weight[:, None], rtol=1e-5, atol=1e-7)
        assert all(a.flags.c_contiguous == z.flags.c_contiguous for a in got)


def test_smoothed_and_dense_softmax_column_by_column():
    y, p = np.array([0, 2, 1, 1]), np.asfortranarray(data.rng().normal(size=(4, 3)))
    s = softmax(p)
    for name in ("sparse_categorical_crossentropy", "categorical_crossentropy"):
        gradient, hessian = lightgbm_objective(name, label_smoothing=0.3)(y, p)
        assert_close(gradient, s - (0.7 * np.eye(3)[y] + 0.1), rtol=1e-5, atol=1e-6)
        assert_close(hessian, 1.5 * s * (1 - s), rtol=1e-5)


def test_ignored_class_and_bad_labels():
    ignoring = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    p = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    gradient, hessian = lightgbm_objective(ignoring)(np.array([0, 1, -1, 2.0]), p)
    assert not gradient[2].any()
    assert not hessian[2].any()
    assert gradient[[0, 1, 3]].any(axis=1).all()
    for labels in ([0, 1, 3, 2], [0, 1, 0.5, 2]):
        for name in ("sparse_categorical_crossentropy", "categorical_crossentropy"):
            with pytest.raises(ValueError, match=r"y_true\[2\]"):
                lightgbm_objective(name)(np.array(labels), p)


def test_one_label_beside_several_predictions():
    y = np.array([0, 2, 1], np.float32)
    p = data.rng().normal(size=(3, 3)).astype(np.float32)
    gradient, _ = xgboost_objective("binary_crossentropy")(y, p)  # one class against the others
    assert_close(gradient, 1 / (1 + np.exp(-p)) - np.eye(3)[[0, 2, 1]], rtol=1e-5)
    gradient, hessian = xgboost_objective("pinball_loss", tau=[0.1, 0.5, 0.9])(y, p)  # the target of each quantile
    assert_close(gradient, np.where(p > y[:, None], 1.0, 0.0) - np.array([0.1, 0.5, 0.9]), rtol=1e-6)
    assert (hessian == 1).all()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_odd_arrays(make, dtype):
    objective = make("binary_crossentropy")
    y, p, weight = data.rng().integers(2, size=20), data.rng(1).normal(size=20).astype(dtype), data.rng(2).random(20)
    want = objective(y, p, weight)
    apart = np.repeat(p, 3)[::3]
    frozen = p.copy()
    frozen.flags.writeable = False
    for got in (objective(y.tolist(), apart, weight), objective(y.astype(bool), frozen, weight.astype(np.float32))):
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, rtol=1e-6)
    nothing = objective(y[:0], p[:0], weight[:0])
    assert [a.shape for a in nothing] == [(0,), (0,)]
    assert [a.dtype for a in nothing] == [np.float32, np.float32]
    gradient, hessian = objective(np.ones(3), np.array([np.nan, np.inf, -np.inf], dtype))
    assert_close(gradient, np.array([np.nan, 0, -1]))
    assert np.isnan(hessian[0])
    assert hessian[1] == np.float32(1e-16)
    assert hessian[2] == 1  # still sloping


# --------------------------------------------------------------------------------------------------------------
# Trees
# --------------------------------------------------------------------------------------------------------------

XGB = {"max_depth": 4, "eta": 0.3, "nthread": 1, "seed": 0}
LGB = {"num_leaves": 9, "min_data_in_leaf": 5, "min_gain_to_split": 1e-3, "num_threads": 1, "seed": 0, "verbosity": -1}


def splits(booster):
    """Feature and threshold of every split, in order."""
    if isinstance(booster, xgboost.Booster):
        return [re.findall(r"\d+:\[\S+\]", tree) for tree in booster.get_dump()]

    def walk(node):
        if "split_feature" not in node:
            return []
        here = (node["split_feature"], node["threshold"])
        return [here, *walk(node["left_child"]), *walk(node["right_child"])]

    return [walk(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]]


def as_vector(score):
    return score if np.ndim(score) == 0 else list(map(float, score))


@pytest.mark.parametrize(
    ("name", "params", "objective", "base"),
    [
        ("diabetes", {"objective": "reg:squarederror"}, xgboost_objective("mean_squared_error"), None),
        (
            "diabetes",
            {"objective": "reg:pseudohubererror", "huber_slope": 30.0},
            xgboost_objective(pseudo_huber(30.0)),
            150.0,
        ),
        ("cancer", {"objective": "binary:logistic"}, xgboost_objective("binary_crossentropy"), None),
        (
            "iris",
            {"objective": "multi:softprob", "num_class": 3},
            xgboost_objective("sparse_categorical_crossentropy"),
            None,
        ),
    ],
    ids=["squared", "pseudo-huber", "logistic", "softmax"],
)
def test_xgboost_grows_the_trees_of_the_built_in_objective(name, params, objective, base):
    X, y, weight = real_data(name)
    matrix = xgboost.DMatrix(X, y, weight=weight)
    start = {} if base is None else {"base_score": base}
    built_in = xgboost.train({**XGB, **params, **start}, matrix, ROUNDS)
    own = {key: value for key, value in params.items() if key == "num_class"}
    start = objective.base_score(y, weight) if base is None else base
    ours = xgboost.train({**XGB, **own, "base_score": as_vector(start)}, matrix, ROUNDS, obj=objective)
    assert splits(ours) == splits(built_in)
    assert sum(map(len, splits(ours))) > 3 * ROUNDS
    want = built_in.predict(matrix, output_margin=True)
    assert_close(ours.predict(matrix, output_margin=True), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("name", "params", "objective"),
    [
        ("diabetes", {"objective": "regression"}, lightgbm_objective("mean_squared_error")),
        ("diabetes", {"objective": "huber", "alpha": 30.0}, lightgbm_objective("huber", delta=30.0)),
        ("cancer", {"objective": "binary"}, lightgbm_objective("binary_crossentropy")),
        (
            "iris",
            {"objective": "multiclass", "num_class": 3},
            lightgbm_objective("sparse_categorical_crossentropy"),
        ),
    ],
    ids=["squared", "huber", "logistic", "softmax"],
)
def test_lightgbm_grows_the_trees_of_the_built_in_objective(name, params, objective):
    X, y, weight = real_data(name)
    start = objective.base_score(y, weight)
    if params["objective"] == "huber":
        start = float(np.average(y, weights=weight))  # where LightGBM begins, though it is not the least loss
    built_in = lightgbm.train({**LGB, **params}, lightgbm.Dataset(X, y, weight=weight), ROUNDS)
    own = {**LGB, **params, "objective": objective}
    begin = np.broadcast_to(start, (len(y), *np.shape(start))).copy()
    ours = lightgbm.train(own, lightgbm.Dataset(X, y, weight=weight, init_score=begin), ROUNDS)
    assert splits(ours) == splits(built_in)
    assert sum(map(len, splits(ours))) > 3 * ROUNDS
    want = built_in.predict(X, raw_score=True)
    assert_close(ours.predict(X, raw_score=True) + start, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_scikit_learn_interfaces():
    X, y, weight = real_data("cancer")
    objective = xgboost_objective("binary_crossentropy")
    params = {"max_depth": 3, "n_jobs": 1, "base_score": objective.base_score(y, weight)}
    model = xgboost.XGBRegressor(objective=objective, n_estimators=ROUNDS, **params).fit(X, y, sample_weight=weight)
    native = {"max_depth": 3, "nthread": 1, "base_score": params["base_score"]}
    booster = xgboost.train(native, xgboost.DMatrix(X, y, weight=weight), ROUNDS, obj=objective)
    np.testing.assert_array_equal(model.predict(X), booster.predict(xgboost.DMatrix(X)))
    X, y, weight = real_data("iris")
    objective = lightgbm_objective("sparse_categorical_crossentropy")
    model = lightgbm.LGBMClassifier(objective=objective, n_estimators=ROUNDS, n_jobs=1, num_leaves=7, verbosity=-1)
    model.fit(X, y, sample_weight=weight)
    native = {"objective": objective, "num_class": 3, "num_leaves": 7, "num_threads": 1, "verbosity": -1}
    booster = lightgbm.train(native, lightgbm.Dataset(X, y), ROUNDS)
    assert (model.predict(X, raw_score=True).argmax(axis=1) == y).mean() > 0.97
    assert not np.array_equal(model.predict(X, raw_score=True), booster.predict(X, raw_score=True)), "weights count"
    booster = lightgbm.train(native, lightgbm.Dataset(X, y, weight=weight), ROUNDS)
    np.testing.assert_array_equal(model.predict(X, raw_score=True), booster.predict(X, raw_score=True))


def test_several_targets():
    X, y, weight = real_data("diabetes")
    both = np.column_stack([y, -2 * y])
    matrix = xgboost.DMatrix(X, both, weight=weight)
    objective = xgboost_objective("mean_squared_error")
    start = objective.base_score(both, weight)
    assert_close(start, np.average(both.astype(np.float64), axis=0, weights=weight), rtol=1e-6)
    built_in = xgboost.train({**XGB, "base_score": as_vector(start)}, matrix, 5)
    ours = xgboost.train({**XGB, "base_score": as_vector(start)}, matrix, 5, obj=objective)
    np.testing.assert_allclose(ours.predict(matrix), built_in.predict(matrix), rtol=1e-5)


def test_a_loss_without_curvature_learns():
    X, y, _ = real_data("diabetes")
    objective = lightgbm_objective("mean_absolute_error")
    start = objective.base_score(y)
    data_set = lightgbm.Dataset(X, y, init_score=np.full(len(y), start))
    booster = lightgbm.train({**LGB, "objective": objective, "learning_rate": 20.0}, data_set, 50)
    before, after = np.abs(y - start).mean(), np.abs(y - start - booster.predict(X, raw_score=True)).mean()
    assert after < 0.6 * before


def test_objectives_are_copied_and_pickled():
    y, p = np.array([0, 1]), np.array([0.5, -0.5])
    objective = lightgbm_objective("binary_crossentropy", label_smoothing=0.1, flat_hessian=2.0)
    want = objective(y, p)
    for twin in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert repr(twin) == repr(objective)
        for a, b in zip(twin(y, p), want, strict=True):
            np.testing.assert_array_equal(a, b)


# --------------------------------------------------------------------------------------------------------------
# Base score
# --------------------------------------------------------------------------------------------------------------


def base_of(booster):
    return json.loads(json.loads(booster.save_config())["learner"]["learner_model_param"]["base_score"])


def test_base_scores_are_the_libraries():
    X, y, weight = real_data("diabetes")
    matrix = xgboost.DMatrix(X, y, weight=weight)
    booster = xgboost.train({"objective": "reg:squarederror"}, matrix, 1)
    assert np.ravel(base_of(booster)) == pytest.approx(xgboost_objective("mse").base_score(y, weight), rel=1e-6)
    X, y, weight = real_data("cancer")
    mean = np.average(y, weights=weight)
    for make in MAKERS:
        assert make("binary_crossentropy").base_score(y, weight) == pytest.approx(np.log(mean / (1 - mean)), abs=1e-6)
    X, y, weight = real_data("iris")
    share = np.bincount(y.astype(int), weight) / weight.sum()
    for name in ("sparse_categorical_crossentropy", "categorical_crossentropy"):
        outputs = None if name.startswith("sparse") else 3
        assert_close(lightgbm_objective(name).base_score(y, weight, outputs=outputs), np.log(share), rtol=1e-6)
        found = xgboost_objective(name).base_score(y, weight, outputs=outputs)
        assert_close(found, np.log(share) - np.log(share).mean(), rtol=1e-6, atol=1e-6)


def test_base_score_of_quantiles_and_of_one_class():
    y = np.arange(101.0)
    quantiles = lightgbm_objective("pinball_loss", tau=[0.1, 0.5, 0.9]).base_score(y, outputs=3)
    assert_close(quantiles, [10.0, 50.0, 90.0], atol=1.0, rtol=0)
    assert lightgbm_objective("mae").base_score(y) == pytest.approx(50)
    assert lightgbm_objective("poisson").base_score(y[1:]) == pytest.approx(50.5, rel=1e-5)
    for label in (0, 1):
        score = lightgbm_objective("binary_crossentropy").base_score(np.full(7, label))
        assert 20 < (2 * label - 1) * score < 100
    score = lightgbm_objective("sparse_categorical_crossentropy").base_score([2, 2], outputs=3)
    assert_close(score, np.log([1e-15, 1e-15, 1.0]), rtol=1e-3, atol=1e-12)


def test_base_score_of_bad_input():
    with pytest.raises(ValueError, match="`y_true` must have at least one sample"):
        lightgbm_objective("mse").base_score([])
    with pytest.raises(ValueError, match="`sample_weight` must have shape"):
        lightgbm_objective("mse").base_score([1.0, 2.0], [1.0])
    with pytest.raises(NotImplementedError, match="CategoricalHinge has no base score"):
        lightgbm_objective("categorical_hinge").base_score([0, 1], outputs=2)


# --------------------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_bad_arguments(make):
    with pytest.raises(TypeError, match="unexpected keyword argument 'delta'"):
        make("mean_squared_error", delta=2.0)
    with pytest.raises(TypeError, match="options are for losses given by name"):
        make(losses.Huber(), delta=2.0)
    with pytest.raises(ValueError, match="did you mean 'huber'"):
        make("hubber")
    for name in ("hessian_floor", "flat_hessian", "scale"):
        with pytest.raises(ValueError, match=f"`{name}` must be positive"):
            make("huber", **{name: 0.0})
    assert make("binary_crossentropy").loss.from_logits
    assert not make("binary_crossentropy", from_logits=False).loss.from_logits
    assert not make(losses.BinaryCrossentropy()).loss.from_logits


def test_bad_shapes():
    objective = xgboost_objective("sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="needs a prediction for each class"):
        objective(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"`sample_weight` must have shape \(3,\)"):
        objective(np.zeros(3), np.zeros((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match="`y_pred` must have shape"):
        objective(np.zeros(3), np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match="must have the same shape"):
        xgboost_objective("huber")(np.zeros(5), np.zeros(3))


@pytest.mark.parametrize(("make", "library"), list(zip(MAKERS, ("xgboost", "lightgbm"), strict=True)))
def test_missing_and_untested_libraries(make, library, monkeypatch):
    monkeypatch.setattr(sys.modules[library], "__version__", "0.1")
    with pytest.warns(UserWarning, match=f"{library}.* this is 0.1"):
        assert isinstance(make("huber"), Objective)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"fastloss\[boosting\]"):
        make("huber")
