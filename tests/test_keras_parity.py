"""Value and gradient against Keras 3 on JAX, whose autodiff knows nothing of our derivatives.

Every place where this package means to differ is a line of ``DIFFERENCES``, with its reason and a test of what *we*
do. Keras off TensorFlow keeps float32 digits in its float64 results: ``ops.mean`` computes in "float32 or wider", and
its table of promotions turns every wider float64 back into float32; constants (log 2) come in its floatx. The
``precision`` fixture lifts both for the duration of a test, so that float64 can be compared to 1e-12.
"""

from __future__ import annotations

import inspect
import os
import warnings

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")

jax = pytest.importorskip("jax", reason="JAX is not installed: no autodiff to compare with")
keras = pytest.importorskip("keras", reason="Keras is not installed: nothing to compare with")
if keras.backend.backend() != "jax":
    pytest.skip(
        f"Keras runs on {keras.backend.backend()}, not on JAX: KERAS_BACKEND=jax enables these tests",
        allow_module_level=True,
    )
jax.config.update("jax_enable_x64", True)  # the variable comes too late when somebody imported JAX before us

from keras.src.backend import set_keras_mask  # noqa: E402
from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights  # noqa: E402

import data  # noqa: E402
import reference  # noqa: E402
from fastloss import losses  # noqa: E402
from fastloss.registry import LOSSES  # noqa: E402
from reference import assert_close  # noqa: E402

KERAS = tuple(int(part) for part in keras.__version__.split(".")[:2])
before_316 = pytest.mark.skipif(KERAS < (3, 16), reason="Keras corrected this in 3.16")
on_315 = pytest.mark.skipif(KERAS != (3, 15), reason="what Keras 3.15 does, observed there")

# What differs from Keras 3.15.1, and why. Each has a test below (or is named with the file that has it).
DIFFERENCES = {
    "smoothing counts classes on the last axis": "⁺ corrected in 3.16: C belongs to the class axis",
    "Tversky's alpha and beta": "⁺ corrected in 3.16: alpha weighs false positives",
    "one-class warning looks at the last axis": "⁺ the class axis is the one that has classes",
    "sparse losses on JAX know the last axis only": "any axis works here",
    "sparse losses have no label_smoothing": "beyond Keras, by keyword",
    "float64 is dropped": "floatx None computes in the dtype of y_pred",
    "float32 digits in float64": "means and constants lose digits in Keras off TensorFlow, none here",
    "log-cosh cancels for small errors": "an even form without cancellation",
    "rank-one predictions and weights": "(N,) predictions with N weights are N samples; Keras has mean(w) · loss",
    "a (B,) weight on (B, B) values": "silently weights time in Keras, an error here (test_errors.py)",
    "weights of a higher rank": "broadcast into a bigger result in Keras, an error here (test_errors.py)",
    "y_pred broadcasts up": "an error here (test_errors.py)",
    "cosine similarity of targets that broadcast along the axis": "broadcast, then normalised; Keras the other way",
    "Dice and Tversky of unequal shapes": "an error here; Keras broadcasts the product, but not the sums",
    "generalized cross-entropy with labels (B, 1)": "squeezed here; Keras pairs every label with every row",
    "an empty batch": "0 for a scalar reduction; Keras answers an empty array",
    "labels out of range": "an error here (test_errors.py); Keras on JAX gives 0",
    "garbage behind a mask": "not computed here; in Keras NaN · 0 is NaN",
    "a mask of shape (B, 1) with ignore_class": "the rank rule here; Keras pairs (B, 1) & (B,) into (B, B)",
    "zero times an infinite logarithm": "nothing of an infinity is nothing (test_kinks.py); NaN in Keras on JAX",
    "clip borders": "exactly on a border JAX halves the gradient; here it is the full inner one (test_kinks.py)",
    "configs that forget": "Keras leaves Huber's delta and the axis of the sparse loss out of get_config",
}


def keras_class(row):
    return getattr(keras.losses, row.cls.__name__, None)


ROWS = [pytest.param(row, id=row.name) for row in LOSSES.values() if keras_class(row) is not None]
THOROUGH = [param for param in ROWS if data.is_thorough(param.values[0], {})]
CASES = [
    pytest.param(row, params, id=f"{row.name}-{','.join(f'{k}={v}' for k, v in params.items()) or 'default'}")
    for row in LOSSES.values()
    if keras_class(row) is not None
    for params in data.variants(row)
]
every_float = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def difference(row, params):
    """The difference that keeps these parameters from being compared, or None."""
    last = reference.axis_of(row.name, params) == -1
    if row.labels == "index" and not last:
        return "sparse losses on JAX know the last axis only"
    if row.labels == "index" and params.get("label_smoothing"):
        return "sparse losses have no label_smoothing"
    if row.domain == "distribution" and params.get("label_smoothing") and not last and KERAS < (3, 16):
        return "smoothing counts classes on the last axis"
    if row.name == "tversky" and params.get("alpha", 0.5) != params.get("beta", 0.5) and KERAS < (3, 16):
        return "Tversky's alpha and beta"
    return None


try:
    from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE as NARROWING
except ImportError:  # another Keras: its float64 may hold float32 digits
    NARROWING = None
RTOL = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12 if NARROWING is not None else 1e-6}


@pytest.fixture
def precision(monkeypatch):
    """precision(dtype): Keras computes in that dtype, all of it, until the end of the test."""
    before = keras.config.floatx()

    def lift(dtype):
        keras.config.set_floatx(np.dtype(dtype).name)
        if NARROWING is not None and np.dtype(dtype) == np.float64:
            monkeypatch.setitem(NARROWING, "float64", "float64")

    yield lift
    keras.config.set_floatx(before)


def keras_value_and_grad(loss, y_true, y_pred, sample_weight=None, mask=None, upstream=None):
    def scalar(y_pred):
        if mask is not None:
            set_keras_mask(y_pred, jax.numpy.asarray(mask))
        value = loss(y_true, y_pred, sample_weight)
        return jax.numpy.sum(value if upstream is None else upstream * value), value

    (_, value), gradient = jax.value_and_grad(scalar, has_aux=True)(jax.numpy.asarray(y_pred))
    return np.asarray(value), np.asarray(gradient)


def compare(row, params, y_true, y_pred, label, reduction="sum_over_batch_size", sample_weight=None, mask=None):
    """Ours and Keras's, value and gradient; of thorough losses with an upstream where there are several values."""
    dtype = y_pred.dtype
    theirs = keras_class(row)(**params, reduction=reduction, dtype=dtype.name)
    ours = row.cls(**params, reduction=reduction)
    got = ours(y_true, y_pred, sample_weight, mask=mask)
    upstream = None
    if got.ndim and data.is_thorough(row, params, dtype):
        upstream = data.rng(50).uniform(-1.5, 1.5, size=got.shape).astype(dtype)
    want = keras_value_and_grad(theirs, y_true, y_pred, sample_weight, mask, upstream)
    value, gradient = ours.value_and_grad(y_true, y_pred, sample_weight, mask=mask, upstream=upstream)
    rtol = RTOL[dtype]
    assert_close(got, want[0], label, rtol=rtol)
    assert_close(value, want[0], label, rtol=rtol)
    # Relative to the largest entry: softmax minus target cancels, in Keras as here.
    scale = np.abs(want[1]).max(initial=0.0)
    assert_close(gradient, want[1], f"{label}: gradient", rtol=rtol, atol=float(rtol * scale))


# --------------------------------------------------------------------------------------------------------------
# Where they agree
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "params"), CASES)
@every_float
def test_value_and_gradient(row, params, dtype, precision):
    if difference(row, params):
        pytest.skip(f"a listed difference: {difference(row, params)}")
    precision(dtype)
    # Every seventh crossing on the first shape in float64, else every 17th, each shape starting at another: primes, so
    # that each reduction meets each weight and each mask. `test_invariants.py` crosses all of them, with the oracle.
    # float32 has the same formulas, and a kernel of its own to compile for each form: the first shape has to do.
    for position, shape in enumerate(data.shapes(row, params)[: 1 if dtype == np.float32 else None]):
        y_true, y_pred = data.inputs(row, params, shape, seed=51, dtype=dtype)
        crossed = data.crossings(row, params, shape, dtype=dtype)
        if "ignore_class" in params:  # DIFFERENCES: "a mask of shape (B, 1) with ignore_class"
            crossed = [each for each in crossed if "mask, one more axis" not in each[0]]
        step = 7 if position == 0 and dtype == np.float64 else 17
        for label, reduction, call in crossed[position % step :: step]:
            compare(row, params, y_true, y_pred, label, reduction, **call)
        compare(row, params, y_true, y_pred, f"y_pred {shape}, none", "none")


@pytest.mark.parametrize(("row", "params"), CASES)
def test_handles(row, params, precision):
    if difference(row, params):
        pytest.skip(f"a listed difference: {difference(row, params)}")
    precision(np.float64)
    handle, theirs = getattr(losses, row.name), getattr(keras.losses, row.name)
    params = {**data.required(row), **params}
    for shape in data.shapes(row, params):
        y_true, y_pred = data.inputs(row, params, shape, seed=52)
        want = theirs(jax.numpy.asarray(y_true), jax.numpy.asarray(y_pred), **params)
        assert_close(handle(y_true, y_pred, **params), want, f"{shape}", rtol=RTOL[y_pred.dtype])


PAIRS = {  # y_true and y_pred that the rank rule or broadcasting brings together
    "real": [
        ((5,), (5, 1)),
        ((5, 1), (5,)),
        ((2, 3, 1), (2, 3)),
        ((2, 3), (2, 3, 1)),
        ((3,), (4, 3)),
        ((4, 1), (4, 3)),
    ],
    "probability": [((5,), (5, 1)), ((5, 1), (5,)), ((2, 3, 1), (2, 3)), ((2, 3), (2, 3, 1))],
    "distribution": [((2, 3, 1), (2, 3)), ((2, 3), (2, 3, 1))],
    "index": [((5, 1), (5, 3)), ((5,), (5, 3)), ((2, 3, 1), (2, 3, 4)), ((1, 1), (1, 3))],
}


@pytest.mark.parametrize("row", ROWS)
def test_rank_rule_and_broadcasting(row, precision):
    dtype = np.float64
    precision(dtype)
    pairs = PAIRS.get(row.domain, PAIRS["real" if reference.REFERENCES[row.name].broadcasts else "distribution"])
    for true, pred in pairs:
        if row.name == "cosine_similarity" and (true[-1] < pred[-1] or pred[-1] == 1):
            continue  # DIFFERENCES: "cosine similarity of targets that broadcast along the axis"; or no angle at all
        if row.name == "categorical_generalized_cross_entropy" and len(true) == len(pred):
            continue  # DIFFERENCES: "generalized cross-entropy with labels (B, 1)"
        base = pred if row.labels == "index" else tuple(n for n in pred if n != 1)
        y_true, y_pred = data.inputs(row, {}, base, seed=53, dtype=dtype)
        y_true = y_true.reshape(-1)[: np.prod(true, dtype=int)].reshape(true)
        y_pred = y_pred.reshape(pred)
        if reference.REFERENCES[row.name].broadcasts and y_true.size < y_pred.size:
            y_true = y_true - dtype(9)  # paired anew: keep away from errors of 0
        for reduction in ("sum_over_batch_size", "none"):
            compare(row, {}, y_true, y_pred, f"y_true {true}, y_pred {pred}, {reduction}", reduction)


@pytest.mark.parametrize("row", THOROUGH)
def test_weights_broadcast_as_in_numpy(row, precision):
    """(1,) and scalars, one sample with a weight, rows of several axes, a weight that is longer than its values."""
    precision(np.float64)
    pairs = [((5, 3), (1,)), ((5, 3), ()), ((1, 3), ()), ((1, 3), (1,)), ((1, 3), (1, 1)), ((2, 4, 3), (2, 1))]
    pairs += [((2, 4, 3), (1, 4)), ((2, 4, 3), (1, 1)), ((2, 4, 3), (2, 4, 1)), ((5, 1, 3), (5,)), ((1, 3), (4,))]
    pairs += [((2, 4, 3), (4,))]  # one weight a step: (T,), no (B,), and no doubt as T is not B
    for shape, weight in pairs:
        y_true, y_pred = data.inputs(row, {}, shape, seed=54)
        given = data.rng(55).uniform(0.5, 2.0, size=weight)
        for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum", "none"):
            compare(row, {}, y_true, y_pred, f"y_pred {shape}, weight {weight}, {reduction}", reduction, given)


@pytest.mark.parametrize("row", [LOSSES[name] for name in LOSSES if name == "binary_crossentropy"])
def test_axes_of_binary_crossentropy(row, precision):
    precision(np.float64)
    for axis in (None, 0, 1, -2, (0, 2), (1, 2), (-1,), (0, 1, 2)):
        for logits in (False, True):
            params = {"axis": axis, "from_logits": logits}
            y_true, y_pred = data.inputs(row, params, (2, 3, 4), seed=56)
            values = reference.values_shape(row.name, params, (2, 3, 4))
            for w, weight in data.weight_families(values).items():
                for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "none"):
                    compare(row, params, y_true, y_pred, f"{params}, {reduction}, {w}", reduction, weight)


@pytest.mark.parametrize("row", [r for r in LOSSES.values() if r.name == "categorical_crossentropy"])
@pytest.mark.parametrize("axis", [0, 1, -3])
def test_axes_of_categorical_crossentropy(row, axis, precision):
    precision(np.float64)
    for logits in (False, True):
        params = {"axis": axis, "from_logits": logits}
        y_true, y_pred = data.inputs(row, params, (3, 4, 2, 5), seed=57)
        for reduction in ("sum_over_batch_size", "none"):
            compare(row, params, y_true, y_pred, f"{params}, {reduction}", reduction)


@pytest.mark.parametrize("row", [param for param in ROWS if param.values[0].domain != "real"])
def test_class_weight_is_that_of_fit(row, precision):
    if not reference.values_shape(row.name, {}, (6, 3)):
        pytest.skip("one loss for the whole batch: samples have no classes")
    precision(np.float64)
    random = data.rng(58)
    table = {0: 0.5, 1: 3.0}  # class 2 is missing: it weighs 1
    for shape in ((6, 1), (6, 3)) if row.domain == "probability" else ((6, 3),):
        y_true, y_pred = data.inputs(row, {}, shape, seed=59)
        if row.labels != "index":
            one_hot = np.eye(shape[-1])[random.integers(shape[-1], size=shape[0])]
            y_true = one_hot if shape[-1] > 1 else np.round(random.random(shape))
        weights = class_weight_to_sample_weights(y_true, table)
        for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum", "none"):
            theirs = keras_class(row)(reduction=reduction, dtype="float64")
            want = keras_value_and_grad(theirs, y_true, y_pred, weights)
            got = row.cls(reduction=reduction).value_and_grad(y_true, y_pred, class_weight=table)
            assert_close(got[0], want[0], f"{shape}, {reduction}", rtol=RTOL[y_pred.dtype])
            assert_close(got[1], want[1], f"{shape}, {reduction}", rtol=RTOL[y_pred.dtype])


@pytest.mark.parametrize("row", ROWS)
def test_rounding_of_extreme_float32(row, precision):
    """Far out, and close to the clip from either side, in float32: where a border in float64 shows."""
    if row.domain not in ("probability", "distribution", "index"):
        pytest.skip("no clip")
    precision(np.float32)
    eps = np.float32(1e-7)
    steps = np.array([0, 0.5, 1, 2, 100, 1e5], np.float32) * eps
    p = np.concatenate([steps, 1 - steps])
    wide = np.stack([p, 1 - p], axis=-1) if row.kind == "rowwise" else p[:, None]
    for label in (0, 1):
        if row.labels == "index":
            y_true = np.full(len(p), label)
        elif row.kind == "rowwise":
            y_true = np.broadcast_to(np.eye(2, dtype=np.float32)[label], wide.shape)
        else:
            y_true = np.full(wide.shape, label, np.float32)
        got = row.cls(reduction="none")(y_true, wide)
        want = keras_class(row)(reduction="none")(y_true, wide)
        assert_close(got, want, f"label {label}", rtol=1e-5, atol=1e-7)
        if row.domain != "probability" and "from_logits" in row.cls().get_config():
            logits = np.array([[0, 1e4], [80, -80], [1e30, 0], [-300, -200]], np.float32)
            y_true = y_true[: len(logits)]
            got = row.cls(from_logits=True, reduction="none")(y_true, logits)
            want = keras_class(row)(from_logits=True, reduction="none")(y_true, logits)
            assert_close(got, want, f"label {label}, logits", rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("row", ROWS)
def test_constructor_is_keras(row):
    """The same arguments in the same order with the same defaults; more only behind them."""
    ours = inspect.signature(row.cls).parameters.values()
    theirs = inspect.signature(keras_class(row)).parameters.values()
    names = [(p.name, p.default) for p in ours if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert names[: len(theirs)] == [(p.name, p.default) for p in theirs]
    assert all(p.default is not inspect.Parameter.empty for p in ours)
    assert row.cls().name == keras_class(row)().name
    assert row.cls().reduction == keras_class(row)().reduction


@pytest.mark.parametrize("row", ROWS)
def test_handle_is_keras(row):
    ours = inspect.signature(getattr(losses, row.name)).parameters.values()
    theirs = inspect.signature(getattr(keras.losses, row.name)).parameters.values()
    names = [(p.name, p.default) for p in ours if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert names[: len(theirs)] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("row", ROWS)
def test_config_of_keras_makes_our_loss(row):
    theirs = keras_class(row)(reduction="sum", name="mine")
    config = theirs.get_config()
    ours = row.cls.from_config(config).get_config()
    assert {key: ours[key] for key in config} == config
    assert type(losses.deserialize(keras.losses.serialize(theirs))) is row.cls


def test_unknown_reduction_has_the_words_of_keras():
    for cls in (keras.losses.MeanSquaredError, losses.MeanSquaredError):
        with pytest.raises(ValueError, match=r"^Invalid value for argument `reduction`"):
            cls(reduction="average")


# --------------------------------------------------------------------------------------------------------------
# Where they differ: what we do
# --------------------------------------------------------------------------------------------------------------


@before_316
@pytest.mark.parametrize("logits", [False, True])
def test_smoothing_on_another_axis_is_that_of_keras_316(logits, precision):
    precision(np.float64)
    row = LOSSES["categorical_crossentropy"]
    params = {"axis": 1, "label_smoothing": 0.2, "from_logits": logits}
    y_true, y_pred = data.inputs(row, params, (2, 3, 5), seed=60)
    compare(row, params, y_true, y_pred, "")


@pytest.mark.parametrize("logits", [False, True])
def test_smoothing_counts_the_classes_of_its_axis(logits):
    """Moving the classes last and back changes nothing."""
    row = LOSSES["categorical_crossentropy"]
    y_true, y_pred = data.inputs(row, {"axis": 1}, (2, 3, 5), seed=61)
    common = {"label_smoothing": 0.2, "from_logits": logits, "reduction": "none"}
    value, gradient = row.cls(**common, axis=1).value_and_grad(y_true, y_pred)
    moved = [np.ascontiguousarray(np.moveaxis(x, 1, -1)) for x in (y_true, y_pred)]
    last = keras_value_and_grad(keras.losses.CategoricalCrossentropy(**common, dtype="float64"), *moved)
    assert_close(value, last[0], rtol=1e-7)
    assert_close(gradient, np.moveaxis(last[1], -1, 1), rtol=1e-6)


@on_315
def test_keras_315_counts_them_on_the_last():
    y_true, y_pred = data.inputs(LOSSES["categorical_crossentropy"], {"axis": 1}, (2, 3, 5), seed=61)
    common = {"label_smoothing": 0.2, "axis": 1, "reduction": "none"}
    theirs = np.asarray(keras.losses.CategoricalCrossentropy(**common)(y_true, y_pred))
    assert np.abs(theirs - losses.CategoricalCrossentropy(**common)(y_true, y_pred)).max() > 1e-3


def test_one_class_is_counted_on_the_class_axis():
    y_true = np.ones((2, 1, 3))
    with pytest.warns(SyntaxWarning, match="expected y_pred.shape to be"):
        losses.CategoricalCrossentropy(axis=1)(y_true, y_true / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.CategoricalCrossentropy(axis=1)(np.ones((2, 3, 1)) / 3, np.ones((2, 3, 1)) / 3)


@pytest.mark.parametrize("logits", [False, True])
def test_sparse_loss_on_another_axis(logits, precision):
    precision(np.float64)
    row = LOSSES["sparse_categorical_crossentropy"]
    y_true, y_pred = data.inputs(row, {"axis": 1}, (2, 3, 5), seed=62)
    theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=logits, dtype="float64")
    want = keras_value_and_grad(theirs, y_true, np.moveaxis(y_pred, 1, -1))
    got = row.cls(from_logits=logits, axis=1).value_and_grad(y_true, y_pred)
    assert_close(got[0], want[0])
    assert_close(got[1], np.moveaxis(want[1], -1, 1))


@pytest.mark.parametrize("logits", [False, True])
def test_sparse_smoothing_is_that_of_one_hot_rows(logits, precision):
    precision(np.float64)
    row = LOSSES["sparse_categorical_crossentropy"]
    y_true, y_pred = data.inputs(row, {}, (6, 4), seed=63)
    common = {"label_smoothing": 0.3, "from_logits": logits}
    theirs = keras.losses.CategoricalCrossentropy(**common, dtype="float64")
    want = keras_value_and_grad(theirs, np.eye(4)[y_true], y_pred)
    got = row.cls(**common).value_and_grad(y_true, y_pred)
    assert_close(got[0], want[0])
    assert_close(got[1], want[1])


@pytest.mark.parametrize("row", ROWS)
def test_float64_is_kept(row):
    y_true, y_pred = data.inputs(row, {}, (5, 3), seed=64)
    assert row.cls()(y_true, y_pred).dtype == np.float64
    assert np.asarray(keras_class(row)()(y_true, y_pred)).dtype == np.float32


@pytest.mark.parametrize("row", ROWS)
def test_float64_of_keras_as_it_comes_is_right_to_float32(row):
    y_true, y_pred = data.inputs(row, {}, (5, 3), seed=65)
    theirs = np.asarray(keras_class(row)(dtype="float64")(y_true, y_pred))
    assert_close(row.cls()(y_true, y_pred), theirs, rtol=1e-6)
    assert_close(row.cls()(y_true, y_pred), reference.loss(row.name, y_true, y_pred))


def test_small_errors_of_log_cosh():
    """Keras gives 0 or -6e-8 for errors around 1e-4; e²/2 is right."""
    error = np.float32([[1e-4], [-1e-4], [3e-4], [1e-6]])
    ours = losses.LogCosh(reduction="none")(np.zeros_like(error), error)
    assert_close(ours, (error[:, 0].astype(float) ** 2) / 2, rtol=1e-5, atol=0.0)
    theirs = np.asarray(keras.losses.LogCosh(reduction="none")(np.zeros_like(error), error))
    assert np.abs(theirs - ours).max() > 1e-9, "Keras improved: the difference is no more"


def test_rank_one_predictions_with_weights_are_samples():
    y_true, y_pred = np.array([0.0, 0.0, 0.0]), np.array([1.0, 2.0, 3.0])
    weight = np.array([3.0, 0.0, 0.0])
    assert losses.MeanSquaredError()(y_true, y_pred, weight) == 1.0
    theirs = keras.losses.MeanSquaredError(dtype="float64")
    assert_close(np.asarray(theirs(y_true, y_pred, weight)), 14 / 3, rtol=1e-6)
    assert_close(losses.MeanSquaredError()(y_true, y_pred), 14 / 3)  # alone: one value, as in Keras


@pytest.mark.parametrize("row", ROWS)
def test_an_empty_batch_is_zero(row):
    y_true, y_pred = data.inputs(row, {}, (0, 3))
    value = row.cls()(y_true, y_pred)
    assert value.shape == ()
    if not reference.values_shape(row.name, {}, (0, 3)):
        return  # one loss of the whole batch, empty or not
    assert value == 0
    assert np.asarray(keras_class(row)()(y_true, y_pred)).shape == (0,)


@pytest.mark.parametrize("row", THOROUGH)
def test_garbage_behind_a_mask_is_not_computed(row):
    y_true, y_pred = data.inputs(row, {}, (4, 3), seed=66)
    mask = np.array([True, True, False, True])
    want = row.cls().value_and_grad(y_true[mask], y_pred[mask])
    y_pred[2] = np.nan
    got = row.cls().value_and_grad(y_true, y_pred, mask=mask)
    assert_close(got[0], want[0])
    assert_close(got[1][mask], want[1])
    assert not got[1][2].any()
    theirs = keras_value_and_grad(keras_class(row)(), y_true, y_pred, mask=mask)
    assert np.isnan(theirs[0])


def test_a_mask_of_one_more_axis_with_ignore_class():
    y_true, y_pred = data.inputs(LOSSES["sparse_categorical_crossentropy"], {"ignore_class": 1}, (6, 3), seed=67)
    mask = np.array([True, True, False, True, False, True])
    loss = losses.SparseCategoricalCrossentropy(ignore_class=1)
    want = loss.value_and_grad(y_true, y_pred, mask=mask)
    got = loss.value_and_grad(y_true, y_pred, mask=mask[:, None])
    assert_close(got[0], want[0])
    assert_close(got[1], want[1])


def test_configs_remember():
    assert losses.Huber(delta=0.25).get_config()["delta"] == 0.25
    assert losses.SparseCategoricalCrossentropy(axis=1).get_config()["axis"] == 1
    assert losses.SparseCategoricalCrossentropy(label_smoothing=0.5).get_config()["label_smoothing"] == 0.5


def test_every_difference_has_a_reason():
    assert all(reason.strip() for reason in DIFFERENCES.values())
    for row, params in (case.values for case in CASES):
        assert difference(row, params) in {None, *DIFFERENCES}
