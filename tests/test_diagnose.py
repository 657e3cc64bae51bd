"""What is not finite: found by ``check_numerics`` while computing, and explained by ``diagnose``."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import fastloss
from fastloss import losses
from fastloss.registry import BATCH_LOSSES, LOSSES

RNG = np.random.default_rng(0)


@pytest.fixture
def checked():
    """All losses raise."""
    fastloss.set_check_numerics("raise")
    yield
    fastloss.set_check_numerics(None)


def checking(loss, action="raise"):
    loss.check_numerics = action
    return loss


# --------------------------------------------------------------------------------------------------------------
# check_numerics
# --------------------------------------------------------------------------------------------------------------

NUMBERS = np.array([0, -1, 1, 0.5, -1e-7, 1e-20, 1e-45, 30, -1e4, 1e19, 3e38, np.inf, -np.inf, np.nan], np.float32)


class Root(losses.Loss):
    """A loss of one's own with an infinite slope where it is 0."""

    def call_with_grad(self, y_true, y_pred):
        e = np.abs(y_pred - y_true)
        with np.errstate(all="ignore"):
            return np.sqrt(e).mean(-1), np.sign(y_pred - y_true) / (2 * np.sqrt(e))


@pytest.mark.parametrize(
    "loss",
    [
        losses.MeanSquaredError(),
        losses.SquaredHinge(),
        losses.Poisson(reduction="sum"),
        losses.CategoricalGeneralizedCrossEntropy(),
        losses.SparseCategoricalCrossentropy(from_logits=True),
        Root(),
    ],
    ids=lambda loss: loss.name,
)
def test_what_is_returned_is_finite(loss):
    """An error if and only if value or gradient are not finite, naming a sample whose loss or gradient is not."""
    strict = checking(copy.copy(loss))
    raised = 0
    for _ in range(150):
        p = RNG.choice(NUMBERS, (3, 2), p=np.array([2] * 11 + [1] * 3) / 25)
        y = RNG.integers(0, 2, 3) if getattr(loss, "class_indices", False) else RNG.choice(NUMBERS[:4], (3, 2))
        with np.errstate(all="ignore"):
            value, gradient = loss.value_and_grad(y, p)
        fine = np.isfinite(value), np.isfinite(gradient).all()
        if all(fine):
            np.testing.assert_array_equal(strict.value_and_grad(y, p)[1], gradient)
            continue
        raised += 1
        with np.errstate(all="ignore"), pytest.raises(fastloss.NumericsError) as caught:
            strict.value_and_grad(y, p)
        message = str(caught.value)
        assert ("value" in message.partition(" of ")[0]) == (not fine[0])
        assert ("gradient" in message.partition(" of ")[0]) == (not fine[1])
        if caught.value.samples and fine[0]:
            assert not np.isfinite(gradient[caught.value.samples[0]]).all()
    assert 10 < raised < 150


def test_the_first_samples_are_named():
    y = np.zeros((8, 3), np.float32)
    p = y.copy()
    p[2, 1], p[5, 0], p[5, 2] = np.nan, np.inf, np.nan
    words = (
        r"^value and gradient of mean_squared_error not finite: 2 of 8 samples, first 2, 5; `y_pred` has 2 NaN of 24, "
        r"first at \(2, 1\), \(5, 2\); `y_pred` has 1 infinity of 24, first at \(5, 0\) \(fastloss"
    )
    loss = checking(losses.MeanSquaredError())
    for call in (loss.value_and_grad, loss.bind((8, 3))):
        with pytest.raises(fastloss.NumericsError, match=words) as caught:
            call(y, p)
        assert caught.value.samples == [(2,), (5,)]
        assert pickle.loads(pickle.dumps(caught.value)).samples == [(2,), (5,)]
    mask = np.ones(8, bool)
    mask[[2, 5]] = False
    assert loss.value_and_grad(y, p, mask=mask)[0] == 0
    with pytest.raises(fastloss.NumericsError, match="`sample_weight` has 1 NaN of 8, first at 7"):
        loss(y, y + 1, np.array([1] * 7 + [np.nan], np.float32))
    with pytest.raises(fastloss.NumericsError, match="`out` has overwritten `y_pred`") as caught:
        loss.value_and_grad(y, p, out=p)
    assert caught.value.samples == [(2, 1), (5, 0), (5, 2)]


def test_arguments_of_one_loss_alone_reach_the_search():
    logits = np.zeros((2, 3, 2))
    logits[1, 2, 0] = np.nan
    loss = checking(losses.CTC())
    lengths = {"input_lengths": [3, 2], "label_lengths": [1, 1]}
    assert np.isfinite(loss(np.ones((2, 1), np.int64), logits, **lengths))
    with pytest.raises(
        fastloss.NumericsError, match=r"^value of ctc not finite: 1 of 2 samples, first 0; `y_pred` has 1"
    ):
        loss(np.ones((2, 1), np.int64), logits[::-1], **lengths)


def test_a_mask_that_predictions_bring_along():
    class Masked(np.ndarray):
        pass

    p = np.array([[np.nan], [np.inf], [1.0]]).view(Masked)
    p._keras_mask = np.array([False, True, True])
    with pytest.raises(fastloss.NumericsError, match="1 of 3 samples, first 1;"):
        checking(losses.MeanSquaredError())(np.zeros((3, 1)), p)


def test_a_warning_leaves_the_result():
    loss = checking(losses.MeanSquaredError(), "warn")
    y, p = np.zeros(3), np.array([0.0, np.inf, 0.0])
    with pytest.warns(fastloss.NumericsWarning, match="no sample alone is to blame") as seen:
        value = loss(y, p)
    assert value == np.inf
    assert Path(seen[0].filename) == Path(__file__)
    strided, step = np.full((3, 2), np.inf)[:, 0], loss.bind(3, "float64")
    total = losses.Weighted([loss])
    for call in (lambda: step(y, p), lambda: step(y, strided), lambda: total([y], [p])):
        with pytest.warns(fastloss.NumericsWarning) as seen:
            call()
        assert Path(seen[0].filename) == Path(__file__)
    checking(loss, "ignore")
    assert loss(y, p) == np.inf


def test_a_setting_for_all_losses(checked):
    y, p = np.zeros((2, 2)), np.array([[0.0, np.nan], [1.0, 1.0]])
    loss = losses.MeanSquaredError()
    step = loss.bind((2, 2), "float64")
    assert fastloss.get_check_numerics() == "raise"
    for call in (loss, loss.value_and_grad, loss.value_grad_hess, step, losses.mean_squared_error):
        with pytest.raises(fastloss.NumericsError):
            call(y, p)
    with pytest.raises(fastloss.NumericsError):
        losses.Weighted([loss])([y], [p])
    checking(loss, "ignore")
    assert np.isnan(loss(y, p))
    assert np.isnan(step(y, p)[0])
    fastloss.set_check_numerics(None)
    assert np.isnan(losses.mean_squared_error(y, p)[0])


def test_gradients_that_overflow_where_the_loss_does_not():
    loss = checking(losses.MeanSquaredError(reduction="sum"))
    y, p = np.full((3, 1), 1e5, np.float32), np.zeros((3, 1), np.float16)
    assert np.isfinite(loss(y, p))
    with pytest.raises(fastloss.NumericsError, match=r"^gradient of mean_squared_error not finite: 3 of 3 samples"):
        loss.value_and_grad(y, p)
    narrow = checking(losses.MeanSquaredError(dtype="float16"))
    step = narrow.bind((3, 1))
    p = np.zeros((3, 1), np.float32)
    for call in (narrow.value_and_grad, step):
        with np.errstate(over="ignore"), pytest.raises(fastloss.NumericsError, match=r"^value of .*1 of 3 samples"):
            call(np.float32([[1e3], [0], [0]]), p)
    with pytest.raises(fastloss.NumericsError, match=r"^gradient of"):
        loss.value_and_grad(y, p, upstream=np.inf)
    for _ in range(2):  # the second call finds a plan
        assert np.isfinite(loss.value_and_grad(y, p, upstream=2.0)[0])
        with pytest.raises(fastloss.NumericsError, match=r"^gradient of"):
            loss.value_and_grad(y, p, upstream=1e38)


@pytest.mark.parametrize("row", [*LOSSES.values(), *BATCH_LOSSES.values()], ids=lambda row: row.name)
def test_every_loss_keeps_its_action_in_configs_and_pickles(row):
    loss = row.cls(**row.variants[0])
    assert "check_numerics" not in loss.get_config()
    checking(loss)
    assert loss.get_config()["check_numerics"] == "raise"
    config = losses.serialize(loss)
    for again in (losses.deserialize(config), pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert again.check_numerics == "raise"
    assert config["config"]["check_numerics"] == "raise"


def test_what_is_no_action():
    loss = losses.MeanSquaredError()
    for action in ("stop", True, 3):
        with pytest.raises(ValueError, match="`check_numerics` must be one of 'raise', 'warn', 'ignore', or None"):
            loss.check_numerics = action
        with pytest.raises(ValueError, match="`action` must be one of"):
            fastloss.set_check_numerics(action)
    assert loss.check_numerics is fastloss.get_check_numerics() is None


# --------------------------------------------------------------------------------------------------------------
# diagnose
# --------------------------------------------------------------------------------------------------------------

BCE = losses.BinaryCrossentropy()
CCE = losses.CategoricalCrossentropy()
SPARSE = losses.SparseCategoricalCrossentropy()
LOGITS = losses.SparseCategoricalCrossentropy(from_logits=True)
COLUMN = np.linspace(0.1, 0.9, 10)[:, None]
HOT = np.eye(3)
EVEN = np.full((3, 3), 1 / 3)

FINE = [
    (COLUMN > 0.5, COLUMN, "bce"),
    (COLUMN > 0.5, 10 * COLUMN - 5, losses.BinaryCrossentropy(from_logits=True)),
    (HOT, EVEN, CCE),
    ([0, 1, 2], EVEN, SPARSE),
    ([0, 1, 2], 5 * HOT, LOGITS),
    ([0, 1, -1], 5 * HOT, losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)),
    (COLUMN, COLUMN + 1, "mse"),
    (COLUMN, COLUMN + 1, "mape"),
    (COLUMN, COLUMN + 1, "msle"),
    (COLUMN, COLUMN + 1, "poisson"),
    (HOT, HOT, "hinge"),
    (2 * HOT - 1, HOT, "squared_hinge"),
    ([0, 1, 0], np.arange(6.0).reshape(3, 2), "TripletHardLoss"),
    (COLUMN, COLUMN, None),
]


@pytest.mark.parametrize(("y_true", "y_pred", "loss"), FINE, ids=[str(i) for i in range(len(FINE))])
def test_nothing_is_found_where_nothing_is_wrong(y_true, y_pred, loss):
    found = fastloss.diagnose(y_true, y_pred, loss)
    assert not found
    assert len(found) == 0
    assert str(found) == "nothing wrong was found"
    assert found.to_dict() == {"findings": []}


def changed(array, **changes):
    """A copy with other numbers in some flat places."""
    array = np.array(array, np.float64)
    for place, value in changes.items():
        array.flat[int(place[1:])] = value
    return array


# Targets, predictions, loss; code, severity, argument, count and first index of what must be found first of its code.
WRONG = [
    (changed(COLUMN, _3=np.nan), COLUMN, "mse", "nan-in-y_true", "error", "y_true", 1, (3, 0)),
    (COLUMN, changed(COLUMN, _2=np.inf, _4=-np.inf), "mse", "infinity-in-y_pred", "error", "y_pred", 2, (2, 0)),
    (COLUMN, changed(COLUMN, _2=np.inf), "mse", "value-not-finite", "error", "loss", 1, (2,)),
    (COLUMN, changed(COLUMN, _2=np.inf), "mse", "gradient-not-finite", "error", "loss", 1, (2, 0)),
    (COLUMN > 0.5, 10 * COLUMN - 5, BCE, "logits-as-probabilities", "warning", "y_pred", 9, (0, 0)),
    ([0, 1, 2], 5 * HOT, SPARSE, "logits-as-probabilities", "warning", "y_pred", 3, (0, 0)),
    (np.ones((50, 1)), changed(np.full((50, 1), 0.5), _7=1.25), BCE, "probability-out-of-range", "warning", "y_pred",
     1, (7, 0)),
    (HOT, changed(EVEN, _4=0.9), CCE, "rows-not-normalised", "warning", "y_pred", 1, (1,)),
    (COLUMN > 0.5, COLUMN, losses.BinaryCrossentropy(from_logits=True), "probabilities-as-logits", "warning", "y_pred",
     10, (0, 0)),
    ([0, 1, 2], EVEN + 0.1 * (HOT - EVEN), LOGITS, "probabilities-as-logits", "warning", "y_pred", 9, (0, 0)),
    ([1], [[0.2, 0.8]], LOGITS, "probabilities-as-logits", "warning", "y_pred", 2, (0, 0)),
    (COLUMN > 0.5, changed(COLUMN, _0=1.0, _9=1.0), BCE, "dead-gradient", "warning", "y_pred", 1, (0, 0)),
    ([0, 1, 1], HOT, SPARSE, "dead-gradient", "warning", "y_pred", 2, (2, 1)),
    ([0, 3, -1], 5 * HOT, LOGITS, "label-out-of-range", "error", "y_true", 2, (1,)),
    ([0, 0.5, 1], 5 * HOT, LOGITS, "label-out-of-range", "error", "y_true", 1, (1,)),
    (255 * COLUMN, COLUMN, BCE, "target-out-of-range", "warning", "y_true", 10, (0, 0)),
    (changed(HOT, _1=1), EVEN, CCE, "target-rows-not-normalised", "warning", "y_true", 1, (0,)),
    (changed(2 * HOT - 1, _0=0.0), HOT, "hinge", "target-not-a-sign", "warning", "y_true", 1, (0, 0)),
    ([0.0, 2.0], [0.5, 0.5], "contrastive_loss", "target-not-binary", "warning", "y_true", 1, (1,)),
    (changed(COLUMN, _6=0.0), COLUMN, "mape", "zero-target", "warning", "y_true", 1, (6, 0)),
    (COLUMN, changed(COLUMN, _6=-0.5), "msle", "negative-value", "warning", "y_pred", 1, (6, 0)),
    (COLUMN, changed(COLUMN, _6=-0.5), "poisson", "negative-prediction", "error", "y_pred", 1, (6, 0)),
    (changed(COLUMN, _6=-1), COLUMN, "poisson", "negative-target", "warning", "y_true", 1, (6, 0)),
    (changed(COLUMN, _6=-1), COLUMN, "kl_divergence", "target-out-of-range", "warning", "y_true", 1, (6, 0)),
    (1e5 * COLUMN, COLUMN, "mse", "unscaled-data", "warning", "y_true", 10, (0, 0)),
    (np.hstack([COLUMN, 1e4 * COLUMN])[:1], [[0.0, 0.0]], "mse", "unscaled-data", "warning", "y_true", 1, (1,)),
    (HOT * [1, 1, 500], HOT, "mae", "unscaled-data", "warning", "y_true", 0, None),
    (np.full((2, 1), 1e30), np.zeros((2, 1)), losses.MeanSquaredError(dtype="float32"), "value-not-finite", "error",
     "loss", 2, (0,)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("y_true", "y_pred", "loss", "code", "severity", "argument", "count", "first"),
    WRONG,
    ids=[f"{i}-{case[3]}" for i, case in enumerate(WRONG)],
)
def test_what_is_wrong_is_found(y_true, y_pred, loss, code, severity, argument, count, first):
    y_pred = np.asarray(y_pred)
    found = fastloss.diagnose(y_true, y_pred, loss)
    if not count:
        assert code not in found.codes
        return
    assert found
    (finding,) = [f for f in found if f.code == code and f.argument == argument]
    assert (finding.severity, finding.count, finding.first[0]) == (severity, count, first)
    assert finding.count <= finding.total
    assert len(finding.first) == min(finding.count, 5)
    assert finding.advice
    for text in (code, severity, argument, finding.message, finding.advice):
        assert text in str(found)
    assert {**finding.to_dict(), "first": [list(f) for f in finding.first]} in found.to_dict()["findings"]
    json.dumps(found.to_dict())
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=["error", "warning"].index)


def test_masks_leave_findings_out():
    y, p = changed(COLUMN, _3=np.nan), changed(COLUMN, _5=np.inf)
    mask = np.ones(10, bool)
    mask[[3, 5]] = False
    assert not fastloss.diagnose(y, p, "mse", mask=mask)
    assert not fastloss.diagnose(y, p, "mse", mask=mask[:, None])
    assert fastloss.diagnose(y, p, "mse", mask=~mask).codes[:2] == ["nan-in-y_true", "infinity-in-y_pred"]
    assert not fastloss.diagnose(np.zeros((1, 1)), p, "mse", mask=mask)
    assert not fastloss.diagnose(np.zeros(1), p, "mse", mask=mask)
    images = np.random.default_rng(0).normal(size=(2, 3, 2, 2))
    images[1, :, 0, 1] = np.nan
    shown = np.isfinite(images[:, 0])
    entropy = checking(losses.SparseCategoricalCrossentropy(True, axis=1))
    for some in (shown, shown[..., None]):
        assert not fastloss.diagnose(np.zeros((2, 2, 2), int), images, entropy, mask=some)
    images[0, 0, 0, 0] = np.nan
    with pytest.raises(fastloss.NumericsError, match=r"`y_pred` has 1 NaN of 24, first at \(0, 0, 0, 0\)"):
        entropy(np.zeros((2, 2, 2), int), images, mask=shown)
    labels = np.array([0, 7, 1])
    assert not fastloss.diagnose(labels, 5 * HOT, LOGITS, mask=[True, False, True])
    found = fastloss.diagnose(COLUMN, COLUMN, sample_weight=changed(COLUMN[:, 0], _1=np.nan))
    assert found.codes == ["nan-in-sample_weight"]
    assert found[0].first == [(1,)]


def test_exploding_gradients():
    norms = [1.0, 2.0, 1.5, 1.0, 250.0, 1.0, np.nan, 1e9]
    found = fastloss.diagnose(history=norms)
    assert [(f.code, f.count, f.first) for f in found] == [
        ("norm-not-finite", 1, [(6,)]),
        ("exploding-gradients", 2, [(4,), (7,)]),
    ]
    assert not fastloss.diagnose(history=[1.0, 1000.0, 1.0])
    assert not fastloss.diagnose(history=[])
    assert fastloss.diagnose([0.0], [np.nan], history=norms).codes[0] == "nan-in-y_pred"


def test_own_and_batch_losses_are_computed():
    p = np.array([[1.0, 1.0], [1.0, np.nan]])
    assert fastloss.diagnose(np.ones((2, 2)), p, Root()).codes == [
        "nan-in-y_pred",
        "value-not-finite",
        "gradient-not-finite",
    ]

    class ValueOnly(losses.Loss):
        def call(self, y_true, y_pred):
            return np.log(y_pred - y_true).mean(-1)

    assert fastloss.diagnose(np.ones((2, 2)), np.zeros((2, 2)), ValueOnly()).codes == ["value-not-finite"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((), {}, ValueError, "`y_true` and `y_pred`, or `history`, must be given"),
        (([1.0],), {}, ValueError, "`y_pred` must be given too"),
        ((None, [1.0]), {}, ValueError, "`y_true` must be given too"),
        (([1.0], [1.0], "nothing"), {}, ValueError, "Could not interpret loss identifier"),
        (([1.0], [1.0], len), {}, TypeError, "`loss` must be a Loss or the name of one"),
        ((["a"], [1.0]), {}, (TypeError, ValueError), "`y_true`"),
        (([[1.0, 2.0]], [[1.0, 2.0, 3.0]], "mse"), {}, ValueError, "must have the same shape"),
        (([1.0], [1.0]), {"mask": [True, False]}, ValueError, "`mask` must have the shape"),
        ((), {"history": 3.0}, ValueError, "`history` must be a sequence"),
        ((), {"history": [-1.0]}, ValueError, "`history` must hold norms"),
    ],
)
def test_what_diagnose_refuses(arguments, options, error, words):
    with pytest.raises(error, match=words):
        fastloss.diagnose(*arguments, **options)


def test_more_of_soft_targets_columns_and_long_histories():
    assert "dead-gradient" in fastloss.diagnose([[0.4]], [[0.0]], "binary_crossentropy").codes
    assert "dead-gradient" not in fastloss.diagnose([[0.0, 1.0]], [[0.0, 1.0]], "binary_crossentropy").codes
    assert "unscaled-data" not in fastloss.diagnose([[np.nan, 1.0]], [[0.0, 1.0]], "mean_squared_error").codes
    history = np.ones(20_000)
    history[15_000] = 1e3
    (found,) = fastloss.diagnose(history=history)
    assert (found.code, found.count) == ("exploding-gradients", 1)


def test_weighted_passes_check_numerics_on():
    total = fastloss.losses.Weighted(["mse", "mae"])
    assert total.check_numerics is None
    total.check_numerics = "raise"
    assert total.check_numerics == "raise"
    with pytest.raises(fastloss.NumericsError):
        total([np.zeros((2, 1))] * 2, [np.zeros((2, 1)), np.full((2, 1), np.nan)])


def test_class_weights_of_infinite_samples():
    with pytest.raises(ValueError, match="must add up to a finite number"):
        fastloss.class_weight([0, 1, 1], sample_weight=[1.0, np.inf, 3.0])
