"""The class API: losses of one's own, identifiers, configs, copies, dtype policies."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import os
import pickle

import ml_dtypes
import numpy as np
import pytest

import data
import fastloss
import reference
from fastloss import losses
from fastloss.losses import identifiers
from fastloss.registry import BATCH_LOSSES, LOSSES
from reference import assert_close, assert_same_bits

ALL = {**LOSSES, **BATCH_LOSSES}
# Losses of one's own have no row in the registry; tests/test_own.py has their tests.
UNREGISTERED = {"ExpressionLoss", "OwnKernelLoss", "from_function", "from_kernel"}
CLASSES = [pytest.param(cls, id=name) for name, cls in sorted(identifiers._classes.items()) if name not in UNREGISTERED]
every_class = pytest.mark.parametrize("cls", CLASSES)


@pytest.fixture
def floatx():
    before = fastloss.floatx()
    yield fastloss.set_floatx
    fastloss.set_floatx(before)


# --------------------------------------------------------------------------------------------------------------
# Losses of one's own
# --------------------------------------------------------------------------------------------------------------


class Quartic(losses.Loss):
    """A value and nothing else."""

    def call(self, y_true, y_pred):
        return np.mean((y_pred - y_true) ** 4, axis=-1)


class QuarticWithGradient(losses.Loss):
    """The gradient of each loss in its own sample."""

    def __init__(self, scale=1.0, name=None, reduction="sum_over_batch_size", dtype=None):
        super().__init__(name, reduction, dtype)
        self.scale = scale

    def call_with_grad(self, y_true, y_pred):
        e = y_pred - y_true
        return self.scale * np.mean(e**4, axis=-1), self.scale * 4 * e**3 / e.shape[-1]

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


class Spread(losses.Loss):
    """Each sample against the batch's mean: the gradient is a pullback."""

    def call_with_grad(self, y_true, y_pred):
        centred = y_pred - y_pred.mean(axis=0)

        def pullback(flow):
            own = 2 * centred * flow[:, None]
            return own - own.mean(axis=0)

        return np.sum(centred**2, axis=-1), pullback


class Total(losses.Loss):
    """One loss for all."""

    def call_with_grad(self, y_true, y_pred):
        e = y_pred - y_true
        return np.sum(e**2), lambda flow: 2 * e * flow


OWN = (QuarticWithGradient, Spread, Total)


def test_call_alone_gives_values_and_says_what_a_gradient_needs():
    y, p = data.rng(0).normal(size=(2, 5, 3))
    assert_close(Quartic()(y, p), np.mean((p - y) ** 4), rtol=1e-13)
    assert_close(Quartic(reduction="none")(y, p), np.mean((p - y) ** 4, axis=-1), rtol=1e-13)
    with pytest.raises(NotImplementedError, match=r"^Quartic defines no gradient.*`call_with_grad\("):
        Quartic().value_and_grad(y, p)
    assert not Quartic().has_hessian
    with pytest.raises(NotImplementedError, match=r"^Quartic has no diagonal Hessian"):
        Quartic().value_grad_hess(y, p)


@pytest.mark.parametrize("cls", OWN)
def test_own_gradients_under_reductions_weights_masks_and_upstream(cls):
    y, p = data.rng(1).normal(size=(2, 5, 3))
    values = cls(reduction="none")(y, p)
    random = data.rng(2)
    for (w, weight), (m, mask), reduction in itertools.product(
        data.weight_families(values.shape).items(), data.mask_families(values.shape).items(), reference.REDUCTIONS
    ):
        loss = cls(reduction=reduction)
        where = f"{reduction}, {w}, {m}"
        want = reference.reduce(values, weight, mask, reduction)
        upstream = random.uniform(0.5, 2, np.shape(want))

        def scalar(q, loss=loss, weight=weight, mask=mask, upstream=upstream):
            return float(np.sum(upstream * loss(y, q, weight, mask=mask)))

        value, gradient = loss.value_and_grad(y, p, weight, mask=mask, upstream=upstream)
        assert_close(value, want, where)
        assert_close(loss(y, p, weight, mask=mask), want, where)
        assert_close(gradient, reference.difference(scalar, p, 1e-3), where, rtol=1e-8, atol=1e-9)
        out = np.full_like(p, np.nan)
        assert loss.value_and_grad(y, p, weight, mask=mask, upstream=upstream, out=out)[1] is out
        assert_same_bits(out, gradient, where)
        written = p.copy()
        loss.value_and_grad(y, written, weight, mask=mask, upstream=upstream, out=written)
        assert_same_bits(written, gradient, where)


def test_a_value_asks_for_no_gradient():
    class Both(Quartic):
        def call_with_grad(self, y_true, y_pred):
            return np.full(len(y_pred), 7.0), np.zeros_like(y_pred)

    y, p = np.zeros((2, 5, 3))
    assert Both()(y, p) == 0
    assert Both().value_and_grad(y, p)[0] == 7


@pytest.mark.parametrize(
    ("dtype", "of_pred", "compute"),
    [
        (None, "float32", "float32"),
        (None, "float64", "float64"),
        (None, "float16", "float32"),
        (None, "int64", "float32"),
        ("float64", "float32", "float64"),
        ("float32", "float64", "float32"),
        ("bfloat16", "float64", "float32"),
    ],
)
def test_call_gets_arrays_in_the_compute_dtype_with_their_ranks_matched(dtype, of_pred, compute):
    seen = []

    class Looking(losses.Loss):
        def call_with_grad(self, y_true, y_pred):
            seen.append((type(y_true), y_true.dtype, y_true.shape, type(y_pred), y_pred.dtype, y_pred.shape))
            return y_pred[:, 0].astype(np.float64), np.ones(y_pred.shape, np.float64)

    p = np.ones((4, 1), of_pred)
    value, gradient = Looking(dtype=dtype).value_and_grad([True, False, True, True], p)
    assert seen == [(np.ndarray, np.dtype(compute), (4, 1)) * 2]
    assert value.dtype == (dtype or compute)
    assert gradient.dtype == (of_pred if of_pred.startswith("float") else dtype or compute)
    assert gradient.tolist() == [[0.25]] * 4


def test_arrays_of_ones_own_gradient_are_left_alone():
    """They may be the loss's own memory, or an input."""
    kept = np.full((4, 2), 3.0)

    class Keeping(losses.Loss):
        def call_with_grad(self, y_true, y_pred):
            return y_pred.sum(axis=-1), kept

    class Half(losses.Loss):
        def call_with_grad(self, y_true, y_pred):
            return 0.5 * (y_pred**2).sum(axis=-1), y_pred

    p = np.arange(8.0).reshape(4, 2)
    weight = np.array([1.0, 2.0, 0.0, 4.0])
    _, gradient = Keeping(reduction="sum").value_and_grad(p, p, weight)
    assert_same_bits(gradient, kept * weight[:, None])
    assert (kept == 3).all()
    before = p.copy()
    _, gradient = Half(reduction="sum").value_and_grad(p, p, weight)
    assert_same_bits(gradient, before * weight[:, None])
    assert_same_bits(p, before)


def test_masked_nans_of_ones_own_loss():
    y, p = data.rng(3).normal(size=(2, 6, 3))
    want = QuarticWithGradient().value_and_grad(y[::2], p[::2])
    p[1::2] = np.nan
    value, gradient = QuarticWithGradient().value_and_grad(y, p, mask=np.arange(6) % 2 == 0)
    assert_close(value, want[0])
    assert_close(gradient[::2], want[1])
    assert not gradient[1::2].any()


def test_what_call_may_not_return():
    class Counting(losses.Loss):
        def call(self, y_true, y_pred):
            return (y_pred > y_true).sum(axis=-1)

    class Narrow(losses.Loss):
        def call_with_grad(self, y_true, y_pred):
            return y_pred.sum(axis=-1), np.ones(len(y_pred))

    p = np.ones((4, 3))
    with pytest.raises(TypeError, match=r"^Counting must return floating losses, got int64"):
        Counting()(p, p)
    with pytest.raises(ValueError, match=r"^Narrow\.call_with_grad must return .* \(4, 3\).* got shape \(4,\)"):
        Narrow().value_and_grad(p, p)


def test_class_weights_of_ones_own_loss():
    p = data.rng(4).normal(size=(4, 3))
    one_hot = np.eye(3)[[0, 2, 2, 1]]
    values = np.mean((p - one_hot) ** 4, axis=-1)
    got = Quartic(reduction="sum")(one_hot, p, class_weight={2: 3.0})
    assert_close(got, values[0] + 3 * values[1] + 3 * values[2] + values[3])
    with pytest.raises(ValueError, match=r"^`class_weight` needs a loss a sample, but Total gave one for all"):
        Total()(one_hot, p, class_weight={2: 3.0})


def test_keras_mask_of_predictions():
    class Masked(np.ndarray):
        _keras_mask = np.array([True, False, True])

    y, p = data.rng(5).normal(size=(2, 3, 2))
    want = Quartic()(y[::2], p[::2])
    assert_close(Quartic()(y, p.view(Masked)), want)


def test_an_own_loss_is_serialised_copied_and_pickled():
    loss = QuarticWithGradient(2.5, reduction="sum", dtype="float64")
    config = loss.get_config()
    assert config == {"name": "quartic_with_gradient", "reduction": "sum", "dtype": "float64", "scale": 2.5}
    form = losses.serialize(loss)
    assert form == {"class_name": "QuarticWithGradient", "config": config}
    custom = {"QuarticWithGradient": QuarticWithGradient, "Mine": QuarticWithGradient, "mine": Quartic}
    y, p = data.rng(6).normal(size=(2, 5, 3))
    for other in (
        losses.deserialize(form, custom),
        losses.deserialize({**form, "class_name": "Mine"}, custom_objects=custom),
        QuarticWithGradient.from_config(config),
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
        copy.copy(loss),
    ):
        assert type(other) is QuarticWithGradient
        assert other.get_config() == config
        assert_same_bits(other.value_and_grad(y, p)[1], loss.value_and_grad(y, p)[1])
    assert type(losses.deserialize("mine", custom)) is Quartic
    with pytest.raises(ValueError, match=r"^Could not interpret loss identifier: 'QuarticWithGradient'"):
        losses.deserialize(form)


# --------------------------------------------------------------------------------------------------------------
# Names and identifiers
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        ("MeanSquaredError", "mean_squared_error"),
        ("KLDivergence", "kl_divergence"),
        ("CTC", "ctc"),
        ("L2Loss", "l2_loss"),
        ("MyLSTMLoss", "my_lstm_loss"),
        ("Sigmoid2CrossEntropy", "sigmoid2_cross_entropy"),
        ("lower", "lower"),
    ],
)
def test_default_name_is_the_classs_in_snake_case(cls, name):
    own = type(cls, (Quartic,), {})
    assert own().name == own(name=None).name == name
    assert own(name="mine").name == "mine"
    assert own("mine").name == "mine"


def test_every_class_and_function_is_known_and_registered():
    """Whatever is public can be got by its name, and is in the registry."""
    public = {name: getattr(losses, name) for name in losses.__all__}
    tools = {"deserialize", "get", "serialize", "squeeze_or_expand_to_same_rank", "Loss", "Weighted", *UNREGISTERED}
    classes = {name: x for name, x in public.items() if inspect.isclass(x) and name not in tools}
    functions = {name: x for name, x in public.items() if not inspect.isclass(x) and name not in tools}
    assert classes == {name: cls for name, cls in identifiers._classes.items() if name not in UNREGISTERED}
    assert functions == {name: x for name, x in identifiers._functions.items() if name not in UNREGISTERED}
    assert {row.cls for row in ALL.values()} == set(classes.values())
    assert {row.function for row in ALL.values()} - {None} == set(functions.values())
    for name, function in functions.items():
        assert losses.get(name) is function
        assert losses.serialize(function) == name
        assert losses.deserialize(name) is function
        assert losses.get(function) is function
    for name, cls in classes.items():
        options = non_default(cls)
        made = losses.get({"class_name": name, "config": options})
        assert type(made) is cls
        assert losses.get(made) is made
        if not required(cls):
            for default in (losses.get(name), losses.deserialize(name), losses.get(cls)):
                assert type(default) is cls
                assert default.get_config() == cls().get_config()


ALIASES = {
    "mean_squared_error": ("mse", "MSE"),
    "mean_absolute_error": ("mae", "MAE"),
    "binary_crossentropy": ("bce", "BCE"),
    "log_cosh": ("logcosh",),
}


@pytest.mark.parametrize("target", ALIASES)
def test_aliases(target):
    for alias in ALIASES[target]:
        assert losses.get(alias) is getattr(losses, target)
        assert losses.deserialize(alias) is getattr(losses, target)
        assert losses.get({"class_name": alias, "config": {}}) is getattr(losses, target)


def test_an_alias_of_nothing_is_an_error_and_not_suggested(monkeypatch):
    monkeypatch.setitem(identifiers.ALIASES, "meen_squared_error", "not_there")
    with pytest.raises(ValueError, match=r"^Could not interpret .*'meen_squared_error'; did you mean 'mean_squared"):
        losses.get("meen_squared_error")


def test_anything_callable_is_a_loss_and_none_is_none():
    def mine(y_true, y_pred):
        return y_pred

    assert losses.get(None) is None
    assert losses.get(mine) is mine
    assert type(losses.get(Quartic)) is Quartic
    own = Quartic()
    assert losses.get(own) is own


@pytest.mark.parametrize(
    "identifier",
    [
        17,
        ["mse"],
        "",
        "no such loss",
        {},
        {"class_name": None},
        {"class_name": 3, "config": {}},
        {"config": {}},
        {"class_name": "Huber", "config": [1]},
        {"class_name": "Huber", "config": "huber"},
        {"class_name": "function", "config": "no_such_function"},
        {"class_name": "huber", "config": {"delta": 2.0}},
        {"class_name": "Addons>Nothing", "config": {}},
    ],
    ids=repr,
)
def test_what_is_no_identifier(identifier):
    with pytest.raises(ValueError, match=r"^Could not interpret loss identifier"):
        losses.get(identifier)
    with pytest.raises(ValueError, match=r"^Could not interpret loss identifier"):
        losses.deserialize(identifier)


@pytest.mark.parametrize(
    "loss", [None, "mse", 3, len, Quartic, losses.get], ids=lambda loss: getattr(loss, "__name__", repr(loss))
)
def test_what_cannot_be_serialised(loss):
    with pytest.raises(ValueError, match=r"^Could not interpret loss identifier.*expected a Loss or a function"):
        losses.serialize(loss)


def test_a_config_of_another_loss_names_its_argument():
    with pytest.raises(TypeError, match="delta"):
        losses.get({"class_name": "MeanSquaredError", "config": {"delta": 1.0}})


# --------------------------------------------------------------------------------------------------------------
# Configs
# --------------------------------------------------------------------------------------------------------------

# A value that is no class's default, by the argument's name, or by class and name where that one is special.
NON_DEFAULT = {
    "name": "mine",
    "reduction": "mean_with_sample_weight",
    "dtype": "float64",
    "alpha": 0.375,
    "apply_class_balancing": True,
    "axis": 1,
    "beta": 0.75,
    "blank": 1,
    "delta": 2.5,
    "distance_metric": "squared-L2",
    "epsilon": 0.125,
    "from_logits": True,
    "gamma": 1.5,
    "ignore_class": 1,
    "label_smoothing": 0.125,
    "margin": 0.625,
    "mode": "iou",
    "num_classes": 3,
    "q": 0.25,
    "remove_diagonal": False,
    "soft": True,
    "tau": 0.25,
    "weightage": "linear",
    "zero_infinity": True,
    ("Dice", "axis"): (1,),
    ("Tversky", "axis"): (1,),
    ("SigmoidFocalCrossEntropy", "gamma"): 1.5,
    ("SparsemaxLoss", "from_logits"): True,  # the only one there is
}


def non_default(cls):
    names = list(inspect.signature(cls).parameters)
    missing = [name for name in names if name not in NON_DEFAULT and (cls.__name__, name) not in NON_DEFAULT]
    assert not missing, f"{cls.__name__}: NON_DEFAULT has no value for {missing}"
    return {name: NON_DEFAULT.get((cls.__name__, name), NON_DEFAULT.get(name)) for name in names}


def required(cls):
    return [n for n, p in inspect.signature(cls).parameters.items() if p.default is inspect.Parameter.empty]


@every_class
def test_configs_hold_every_argument(cls):
    arguments = non_default(cls)
    loss = cls(**arguments)
    config = loss.get_config()
    assert config == arguments
    for name, parameter in inspect.signature(cls).parameters.items():
        if (cls.__name__, name) != ("SparsemaxLoss", "from_logits"):
            assert config[name] != parameter.default, f"{name}: tests nothing"
        assert getattr(loss, name) == arguments[name]
        assert f"{name}={arguments[name]!r}" in repr(loss)
    assert eval(repr(loss), vars(losses)).get_config() == config
    through_json = json.loads(json.dumps(losses.serialize(loss)))
    for other in (cls.from_config(config), losses.deserialize(through_json), losses.get(losses.serialize(loss))):
        assert type(other) is cls
        assert other.get_config() == config


@every_class
def test_an_unset_dtype_is_left_out_and_the_rest_is_there(cls, floatx):
    arguments = {name: non_default(cls)[name] for name in required(cls)}
    names = set(inspect.signature(cls).parameters)
    assert set(cls(**arguments).get_config()) == names - {"dtype"}
    floatx("float64")
    loss = cls(**arguments)
    assert set(loss.get_config()) == names - {"dtype"}, "a default of the package is no argument of the loss"
    assert loss.dtype == "float64"
    floatx(None)
    assert loss.dtype is None


@every_class
def test_options_may_be_numpy_numbers_and_come_back_as_python_ones(cls):
    arguments = {
        name: np.float64(value) if type(value) is float else np.int64(value) if type(value) is int else value
        for name, value in non_default(cls).items()
    }
    for name, value in cls(**arguments).get_config().items():
        assert not isinstance(value, np.generic), name


def inputs_of(row, options):
    if row.name in BATCH_LOSSES:
        return data.batch_inputs(row, options, 6, seed=7)
    return data.inputs(row, options, data.shapes(row, options)[0], seed=7)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ALL.values()])
def test_configs_copies_and_pickles_compute_the_same(row):
    """New and used: what a call leaves behind is neither copied nor pickled."""
    for options in row.variants:
        loss = row.cls(**{**options, "reduction": "mean_with_sample_weight", "name": "mine"})
        y, p = inputs_of(row, options)
        fresh = pickle.dumps(loss)
        want = loss.value_and_grad(y, p)
        loss(y, p)
        assert pickle.dumps(loss) == fresh
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(loss, protocol)).get_config() == loss.get_config()
        copies = {
            "from_config": row.cls.from_config(loss.get_config()),
            "serialize": losses.deserialize(losses.serialize(loss)),
            "json": losses.get(json.loads(json.dumps(losses.serialize(loss)))),
            "pickle": pickle.loads(fresh),
            "deepcopy": copy.deepcopy(loss),
            "copy": copy.copy(loss),
            "deepcopy of pickle": copy.deepcopy(pickle.loads(pickle.dumps(loss))),
        }
        for how, other in copies.items():
            assert other is not loss
            assert other.get_config() == loss.get_config(), how
            got = other.value_and_grad(y, p)
            assert_same_bits(got[0], want[0], how)
            assert_same_bits(got[1], want[1], how)


# --------------------------------------------------------------------------------------------------------------
# What Keras and TensorFlow Addons write
# --------------------------------------------------------------------------------------------------------------


def test_forms_of_keras_and_addons():
    """Observed with Keras 3.15 and Addons 0.23; the keys beside name and config say nothing to us."""
    loss = losses.get(
        {
            "module": "keras.losses",
            "class_name": "MeanSquaredError",
            "config": {"name": "mine", "reduction": "sum"},
            "registered_name": None,
        }
    )
    assert type(loss) is losses.MeanSquaredError
    assert loss.get_config() == {"name": "mine", "reduction": "sum"}
    function = {
        "module": "builtins",
        "class_name": "function",
        "config": "mean_squared_error",
        "registered_name": "function",
    }
    assert losses.get(function) is losses.mean_squared_error
    assert losses.deserialize({"class_name": "huber", "config": {}}) is losses.huber
    loss = losses.get({"class_name": "Addons>GIoULoss", "config": {"reduction": "auto", "mode": "iou"}})
    assert type(loss) is losses.GIoULoss
    assert (loss.mode, loss.reduction) == ("iou", "sum_over_batch_size")


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras", reason="Keras is not installed: nothing writes its configs")


@every_class
def test_what_keras_serialises(cls, keras):
    theirs = getattr(keras.losses, cls.__name__, None)
    if theirs is None:
        assert not hasattr(keras.losses, cls.__name__)
        return
    names = set(inspect.signature(theirs).parameters)
    arguments = {name: value for name, value in non_default(cls).items() if name in names}
    their = theirs(**arguments)
    form = keras.losses.serialize(their)
    for ours in (losses.get(form), losses.deserialize(form), losses.deserialize(json.loads(json.dumps(form)))):
        assert type(ours) is cls
        config = ours.get_config()
        assert {name: config[name] for name in their.get_config()} == their.get_config()
    handle = next(row.function for row in ALL.values() if row.cls is cls)
    if handle is not None and hasattr(keras.losses, handle.__name__):
        form = keras.losses.serialize(getattr(keras.losses, handle.__name__))
        assert losses.deserialize(form) is handle


def test_rank_rule_is_that_of_keras(keras):
    from keras.src.losses.loss import squeeze_or_expand_to_same_rank

    shapes = [(), (1,), (4,), (4, 1), (4, 3), (4, 3, 1), (4, 3, 2), (2, 4, 3, 1)]
    for one, two, expand in itertools.product(shapes, shapes, (True, False)):
        got = losses.squeeze_or_expand_to_same_rank(np.zeros(one), np.zeros(two), expand_rank_1=expand)
        want = squeeze_or_expand_to_same_rank(np.zeros(one), np.zeros(two), expand_rank_1=expand)
        assert [x.shape for x in got] == [tuple(x.shape) for x in want], f"{one}, {two}, expand_rank_1={expand}"


def test_rank_rule_gives_views():
    x, y = np.zeros((4, 3, 1)), np.zeros((4, 3))
    a, b = losses.squeeze_or_expand_to_same_rank(x, y)
    assert a.shape == b.shape == (4, 3)
    assert np.shares_memory(a, x)
    assert b is y
    a, b = losses.squeeze_or_expand_to_same_rank([1.0, 2.0], [[1.0], [2.0]])
    assert a.tolist() == b.tolist() == [[1.0], [2.0]]


# --------------------------------------------------------------------------------------------------------------
# dtypes
# --------------------------------------------------------------------------------------------------------------


class Policy:
    """As Keras's DTypePolicy."""

    def __init__(self, compute_dtype):
        self.compute_dtype = compute_dtype


DTYPES = [
    ("float32", "float32"),
    (np.float32, "float32"),
    (np.dtype("float64"), "float64"),
    (np.dtype(">f4"), "float32"),
    (np.float16, "float16"),
    ("bfloat16", "bfloat16"),
    (ml_dtypes.bfloat16, "bfloat16"),
    (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
    (Policy("float64"), "float64"),
    (Policy(np.dtype("float32")), "float32"),
    (Policy("float16"), "float16"),
    ("mixed_float16", "float16"),
    ("mixed_bfloat16", "bfloat16"),
]


@pytest.mark.parametrize(("dtype", "name"), DTYPES, ids=lambda x: x if isinstance(x, str) else repr(x)[:30])
def test_dtype_policies(dtype, name, floatx):
    y, p = np.zeros((3, 2), np.float32), np.full((3, 2), 1.5, np.float32)
    for cls in (Quartic, losses.MeanSquaredError):
        loss = cls(dtype=dtype)
        assert loss.dtype == loss.get_config()["dtype"] == name
        assert loss(y, p).dtype == name
        assert cls.from_config(loss.get_config()).dtype == name
    floatx(dtype)
    assert fastloss.floatx() == name
    assert Quartic().dtype == name
    assert losses.MeanSquaredError()(y, p).dtype == name
    assert losses.mean_squared_error(y, p).dtype == name


def test_policies_of_keras(keras):
    for given, name in (("float64", "float64"), ("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")):
        policy = keras.DTypePolicy(given)
        assert losses.Huber(dtype=policy).dtype == name == keras.losses.Huber(dtype=policy).dtype


@pytest.mark.parametrize("dtype", ["int32", "mixed_float64", "complex64", np.int8, Policy("int8"), Policy(None), 3])
def test_no_policy(dtype):
    with pytest.raises(TypeError, match=r"`dtype` must be one of float16, bfloat16, float32, float64"):
        Quartic(dtype=dtype)
    with pytest.raises(TypeError, match=r"`dtype` must be one of"):
        fastloss.set_floatx(dtype)


def test_a_dtype_of_its_own_wins_over_floatx(floatx):
    loss = losses.MeanSquaredError(dtype="float64")
    unset = losses.MeanSquaredError()
    p = np.ones((3, 2), np.float32)
    assert unset(p, p).dtype == np.float32
    floatx("float16")
    assert loss(p, p).dtype == np.float64
    assert unset(p, p).dtype == np.float16
    assert loss.value_and_grad(p, p)[1].dtype == np.float32
    floatx(None)
    assert unset(p, p).dtype == np.float32


@every_class
def test_arguments_are_read_only(cls):
    arguments = non_default(cls)
    loss = cls(**arguments)
    for name in set(arguments) - {"name"}:
        with pytest.raises(AttributeError):
            setattr(loss, name, arguments[name])
        assert getattr(loss, name) == arguments[name]
