"""Losses as scorers of scikit-learn, against its own."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

import reference

pytest.importorskip("sklearn")

import sklearn
from sklearn import datasets, linear_model, metrics, pipeline, preprocessing, svm
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate

from fastloss import losses
from fastloss.registry import LOSSES
from fastloss.sklearn import scorer

CLASSIFIER = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())


def diabetes():
    X, y = datasets.load_diabetes(return_X_y=True)
    return X, y, np.random.default_rng(0).random(len(y))


def cancer():
    X, y = datasets.load_breast_cancer(return_X_y=True)
    return X, np.array(["benign", "malignant"])[y]


def iris():
    X, y = datasets.load_iris(return_X_y=True)
    return X, np.array(["a", "b", "c"])[y]


@pytest.mark.parametrize(("name", "own"), [("mse", "neg_mean_squared_error"), ("mae", "neg_mean_absolute_error")])
def test_regression(name, own):
    X, y, _ = diabetes()
    got, want = (cross_val_score(linear_model.Ridge(), X, y, scoring=s) for s in (scorer(name), own))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_regression_of_several_targets():
    X, y, weight = diabetes()
    both = np.column_stack([y, 2 * y])
    model = linear_model.Ridge().fit(X, both)
    want = -metrics.mean_squared_error(both, model.predict(X), sample_weight=weight)
    assert scorer("mse")(model, X, both, weight) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize(
    ("load", "name"),
    [
        (cancer, "binary_crossentropy"),
        (cancer, "sparse_categorical_crossentropy"),
        (cancer, "categorical_crossentropy"),
        (iris, "sparse_categorical_crossentropy"),
        (iris, "categorical_crossentropy"),
    ],
)
def test_log_loss(load, name, from_logits):
    X, y = load()
    got = cross_val_score(CLASSIFIER, X, y, scoring=scorer(name, from_logits=from_logits))
    want = cross_val_score(CLASSIFIER, X, y, scoring="neg_log_loss")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)


def test_brier_score_and_hinge():
    X, y = cancer()
    model = CLASSIFIER.fit(X, y)
    want = metrics.brier_score_loss(y, model.predict_proba(X)[:, 1], pos_label="malignant")
    assert scorer("mse")(model, X, y) == pytest.approx(-want)
    machine = pipeline.make_pipeline(preprocessing.StandardScaler(), svm.LinearSVC()).fit(X, y)
    want = metrics.hinge_loss(y, machine.decision_function(X))
    assert scorer("hinge")(machine, X, y) == pytest.approx(-want)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in LOSSES.values()])
def test_every_loss_scores_some_estimator(row):
    if row.domain in ("real", "positive"):
        X, y, weight = diabetes()
        model, targets = linear_model.LinearRegression().fit(X, y), y
        response = model.predict(X)[:, None]
        targets = y[:, None]
    else:
        X, y = iris() if row.domain in ("index", "distribution", "scores", "unit") else cancer()
        model = CLASSIFIER.fit(X, y)
        weight = np.random.default_rng(0).random(len(y))
        logits = row.domain in ("sign", "scores")
        response = model.decision_function(X) if logits else model.predict_proba(X)
        codes = np.unique(y, return_inverse=True)[1]
        if row.domain in ("distribution", "scores", "unit"):
            targets = np.eye(3)[codes]
        elif row.domain == "index":
            targets = codes
        else:
            targets = codes[:, None]
            response = response[:, None] if response.ndim == 1 else response[:, 1:]
    if row.name in ("dice", "tversky"):
        weight = None
    found = scorer(row.name)(model, X, y, weight)
    if row.cls is losses.ContrastiveLoss:
        weight = weight[:, None]
    if row.domain == "sign":
        targets = 2 * targets - 1
    per_sample, _ = reference.per_sample(row.name, targets, response)
    assert type(found) is float
    assert found == pytest.approx(-np.average(per_sample, weights=weight), rel=1e-9)


def test_grid_search():
    X, y, _ = diabetes()
    grid = {"alpha": [0.01, 1.0, 100.0]}
    search = GridSearchCV(linear_model.Ridge(), grid, scoring=scorer("huber", delta=20.0)).fit(X, y)
    assert search.best_params_ == {"alpha": 0.01}
    assert np.diff(search.cv_results_["mean_test_score"]).max() < 0
    both = cross_validate(linear_model.Ridge(), X, y, scoring={"huber": scorer("huber"), "r2": "r2"})
    assert (both["test_huber"] < 0).all()


def test_sample_weights_by_metadata_routing():
    X, y, weight = diabetes()
    own = metrics.get_scorer("neg_mean_squared_error")
    with sklearn.config_context(enable_metadata_routing=True):
        model = linear_model.Ridge().set_fit_request(sample_weight=True)
        asked = [scorer("mse").set_score_request(sample_weight=True), own.set_score_request(sample_weight=True)]
        got, want = (cross_val_score(model, X, y, scoring=s, params={"sample_weight": weight}) for s in asked)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        grid = {"alpha": [0.01, 1.0]}
        got, want = (GridSearchCV(model, grid, scoring=s).fit(X, y, sample_weight=weight).cv_results_ for s in asked)
        np.testing.assert_allclose(got["mean_test_score"], want["mean_test_score"], rtol=1e-12)
        unasked = scorer("mse").set_score_request(sample_weight=False)
        plain = cross_val_score(model, X, y, scoring=unasked, params={"sample_weight": weight})
        assert not np.allclose(plain, cross_val_score(model, X, y, scoring=asked[0], params={"sample_weight": weight}))
        with pytest.raises(UnsetMetadataPassedError):
            cross_val_score(model, X, y, scoring=scorer("mse"), params={"sample_weight": weight})
        renamed = scorer("mse").set_score_request(sample_weight="importance")
        params = {"sample_weight": weight, "importance": weight}
        np.testing.assert_allclose(
            cross_val_score(model, X, y, scoring=renamed, params=params),
            cross_val_score(model, X, y, scoring=asked[0], params={"sample_weight": weight}),
        )


def test_it_is_pickled_and_shown():
    twin = pickle.loads(pickle.dumps(scorer("huber", delta=2.0).set_score_request(sample_weight=True)))
    X, y, _ = diabetes()
    model = linear_model.Ridge().fit(X, y)
    assert twin(model, X, y) == scorer("huber", delta=2.0)(model, X, y)
    assert "delta=2.0" in repr(twin)
    assert "True" in repr(twin.get_metadata_routing())


def test_the_loss_itself_is_left_as_it_is():
    loss = losses.MeanSquaredError(reduction="sum")
    assert scorer(loss).loss.reduction == "mean_with_sample_weight"
    assert loss.reduction == "sum"


def test_errors_name_what_is_wrong(monkeypatch):
    X, y = cancer()
    model = CLASSIFIER.fit(X, y)
    with pytest.raises(ValueError, match=r"`y` has the label .*'odd'"):
        scorer("binary_crossentropy")(model, X[:2], np.array(["benign", "odd"]))
    machine = svm.LinearSVC().fit(X[:50], y[:50])
    with pytest.raises(AttributeError, match=r"LinearSVC has no 'predict_proba'.*`response_method`"):
        scorer("binary_crossentropy")(machine, X, y)
    with pytest.raises(ValueError, match="`response_method` must be one of"):
        scorer("mse", response_method="transform")
    with pytest.raises(ValueError, match="did you mean 'huber'"):
        scorer("hubber")
    with pytest.raises(TypeError, match="unexpected keyword argument 'gamma'"):
        scorer("huber", gamma=1)
    monkeypatch.setattr(sklearn, "__version__", "0.1")
    with pytest.warns(UserWarning, match=r"sklearn.* this is 0\.1"):
        scorer("mse")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"fastloss\[sklearn\]"):
        scorer("mse")
