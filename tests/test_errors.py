"""Every error of the specification: its type, and a message that names the argument, what it must be and what came.

A message is checked for the words and numbers a reader needs, never for its sentence. Where Keras has words that
people search for, the message begins with them.
"""

from __future__ import annotations

import functools
import re
import warnings

import numpy as np
import pytest

import data
import fastloss
import reference
from fastloss import losses
from fastloss.registry import LOSSES

ROWS = [pytest.param(row, id=row.name) for row in LOSSES.values()]
DENSE = [pytest.param(row, id=row.name) for row in LOSSES.values() if row.labels == "dense"]
EQUAL = [pytest.param(row, id=row.name) for row in LOSSES.values() if row.domain in ("probability", "distribution")]
INDEX = [pytest.param(row, id=row.name) for row in LOSSES.values() if row.labels == "index"]
CLASSES = [pytest.param(row, id=row.name) for row in LOSSES.values() if row.domain in ("probability", "distribution")]
BY_ROW = [pytest.param(row, id=row.name) for row in LOSSES.values() if reference.axis_of(row.name, {}) == -1]
every_loss = pytest.mark.parametrize("row", ROWS)
every_loss_of_rows = pytest.mark.parametrize("row", BY_ROW)

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none")


def raises(error, *words, begins=None):
    """A context in which ``error`` comes with every one of ``words`` (regular expressions, any case, any order)."""
    pattern = "".join(f"(?=.*{word})" for word in words)
    start = "" if begins is None else re.escape(begins)
    return pytest.raises(error, match=f"(?is)^{pattern}{start}")


def shape_of(*sizes):
    """A shape as Python writes it, with or without its spaces."""
    inside = r",\s*".join(str(n) for n in sizes) + ("," if len(sizes) == 1 else "")
    return rf"\({inside}\)"


def example(row, shape=(5, 3), **params):
    return data.inputs(row, params, shape, seed=80)


def both(row, **params):
    """The value alone and the value with its gradient: errors come from either."""
    loss = row.cls(**params)
    return (loss, loss.value_and_grad)


def handle(row):
    """The function handle, with what it requires."""
    return functools.partial(getattr(losses, row.name), **data.required(row))


# --------------------------------------------------------------------------------------------------------------
# Constructors
# --------------------------------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", ["average", "auto", "SUM", "", 3])
def test_unknown_reduction(row, reduction):
    if reduction == "auto" and row.cls.accepts_auto:
        assert row.cls(reduction="auto").reduction == "sum_over_batch_size"
        return
    with raises(ValueError, *REDUCTIONS, re.escape(str(reduction)), begins="Invalid value for argument `reduction`"):
        row.cls(reduction=reduction)


@every_loss
@pytest.mark.parametrize("dtype", ["complex64", "int32", "object", "bool", "S4", np.int64, np.complex128])
def test_unsupported_compute_dtype(row, dtype):
    with raises(TypeError, "dtype", "float32", np.dtype(dtype).name if np.dtype(dtype).kind != "S" else ""):
        row.cls(dtype=dtype)


@every_loss
@pytest.mark.parametrize("dtype", [None, "float32", "float64", "float16"])
def test_dtype_is_read_only(row, dtype):
    loss = row.cls(dtype=dtype)
    before = loss.dtype
    with pytest.raises(AttributeError):
        loss.dtype = "float64"
    assert loss.dtype == before


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, np.nan, np.inf])
@pytest.mark.parametrize("name", ["BinaryCrossentropy", "CategoricalCrossentropy", "SparseCategoricalCrossentropy"])
def test_label_smoothing_outside_zero_and_one(name, smoothing):
    bounds = ("0", "1") if np.isfinite(smoothing) else ()  # "must be finite" says enough
    with raises(ValueError, "label_smoothing", *bounds, re.escape(str(smoothing))):
        getattr(losses, name)(label_smoothing=smoothing)


@pytest.mark.parametrize("handle", [losses.binary_crossentropy, losses.categorical_crossentropy])
def test_label_smoothing_of_handles(handle):
    with raises(ValueError, "label_smoothing", "1.5"):
        handle(np.ones((2, 2)), np.full((2, 2), 0.5), label_smoothing=1.5)


@pytest.mark.parametrize("delta", [-1.0, -1e-9])
def test_negative_delta(delta):
    with raises(ValueError, "delta", re.escape(str(delta))):
        losses.Huber(delta=delta)
    with raises(ValueError, "delta", re.escape(str(delta))):
        losses.huber(np.ones((2, 2)), np.ones((2, 2)), delta=delta)


def test_abstract_call():
    y = np.ones((2, 2))
    with raises(NotImplementedError, "call"):
        losses.Loss()(y, y)

    class Forgotten(losses.Loss):
        pass

    with raises(NotImplementedError, "call"):
        Forgotten()(y, y)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "object"])
def test_floatx_of_no_float(dtype):
    before = fastloss.floatx()
    try:
        with raises(TypeError, dtype):
            fastloss.set_floatx(dtype)
        assert fastloss.floatx() == before
    finally:
        fastloss.set_floatx(before)


# --------------------------------------------------------------------------------------------------------------
# Identifiers
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier", "near"),
    [
        ("mean_squared_eror", "mean_squared_error"),
        ("MeanSquaredEror", "MeanSquaredError"),
        ("hubr", "huber"),
        ("SparseCategoricalCrossEntropy", "SparseCategoricalCrossentropy"),
        ("binary_cross_entropy", "binary_crossentropy"),
    ],
)
def test_unknown_identifier_with_near_matches(identifier, near):
    with raises(ValueError, identifier, rf"\b{near}\b", begins="Could not interpret loss identifier"):
        losses.get(identifier)
    with raises(ValueError, near, begins="Could not interpret loss identifier"):
        losses.get({"class_name": identifier, "config": {}})


@pytest.mark.parametrize("identifier", ["", "zzz", 17, ["mse"]])
def test_identifier_of_nothing(identifier):
    with raises(ValueError, re.escape(str(identifier)), begins="Could not interpret loss identifier"):
        losses.get(identifier)


# --------------------------------------------------------------------------------------------------------------
# Shapes
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", DENSE)
def test_shapes_that_do_not_match(row):
    for true, pred in (((5, 4), (5, 3)), ((4, 3), (5, 3)), ((2, 5, 3), (5, 3)), ((7,), (6,))):
        if row.kind == "rowwise" and len(pred) == 1:
            continue
        for call in both(row):
            with raises(ValueError, shape_of(*true), shape_of(*pred)):
                call(np.full(true, 0.5), np.full(pred, 0.5))


@pytest.mark.parametrize("row", DENSE)
def test_handles_check_shapes_too(row):
    with raises(ValueError, shape_of(5, 4), shape_of(5, 3)):
        handle(row)(np.full((5, 4), 0.5), np.full((5, 3), 0.5))


@pytest.mark.parametrize("row", EQUAL)
def test_cross_entropies_do_not_broadcast(row):
    for true in ((3,), (1, 3), (5, 1), ()):
        for call in both(row):
            with raises(ValueError, "must have the same shape", shape_of(*true) if true else r"\(\)", shape_of(5, 3)):
                call(np.full(true, 0.5), np.full((5, 3), 0.5))


@pytest.mark.parametrize("row", DENSE)
def test_y_pred_does_not_broadcast_up(row):
    for true, pred in (((5, 3), (1, 3)), ((5, 3), (3,)), ((5, 3), (5, 1)), ((2, 5, 3), (5, 3))):
        for call in both(row):
            with raises(ValueError, shape_of(*true), shape_of(*pred)):
                call(np.full(true, 0.5), np.full(pred, 0.5))


@pytest.mark.parametrize("row", INDEX)
def test_class_numbers_that_do_not_fit(row):
    for true in ((4,), (5, 3), (5, 2), (2, 5), (1, 5)):
        for call in both(row):
            with raises(ValueError, shape_of(*true), shape_of(5, 3)):
                call(np.zeros(true, int), np.full((5, 3), 0.5))


@pytest.mark.parametrize("name", ["BinaryCrossentropy", "CategoricalCrossentropy", "SparseCategoricalCrossentropy"])
@pytest.mark.parametrize("axis", [2, -3, 7])
def test_axis_out_of_bounds(name, axis):
    cls = getattr(losses, name)
    row = next(row for row in LOSSES.values() if row.cls is cls)
    y_true, y_pred = example(row)
    for call in both(row, axis=axis):
        with raises(ValueError, "axis", str(axis)):
            call(y_true, y_pred)


@pytest.mark.parametrize("axis", [(0, 2), (-3,), (0, 1, 5)])
def test_axes_out_of_bounds(axis):
    for call in both(LOSSES["binary_crossentropy"], axis=axis):
        with raises(ValueError, "axis"):
            call(np.ones((5, 3)), np.full((5, 3), 0.5))


@pytest.mark.parametrize("logits", [False, True])
def test_one_class_is_a_warning(logits):
    """With classes and with handles, counted on `axis`. (⁺ Keras 3.15 counts on the last.)"""
    words = re.escape("expected y_pred.shape to be (batch_size, num_classes)")
    loss = losses.CategoricalCrossentropy(from_logits=logits)
    with pytest.warns(SyntaxWarning, match=words):
        loss(np.ones((4, 1)), np.full((4, 1), 0.5))
    with pytest.warns(SyntaxWarning, match=words):
        loss.value_and_grad(np.ones((4, 1)), np.full((4, 1), 0.5))
    with pytest.warns(SyntaxWarning, match=words):
        losses.categorical_crossentropy(np.ones((4, 1)), np.full((4, 1), 0.5), from_logits=logits)
    with pytest.warns(SyntaxWarning, match=words):
        losses.categorical_crossentropy(np.ones((4, 1, 3)), np.full((4, 1, 3), 0.5), from_logits=logits, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.categorical_crossentropy(np.ones((4, 3, 1)), np.full((4, 3, 1), 0.5), from_logits=logits, axis=1)


# --------------------------------------------------------------------------------------------------------------
# Labels
# --------------------------------------------------------------------------------------------------------------


def labels_with(value, dtype=None):
    """Ten labels of three classes; the seventh is bad, and so is the ninth: the first is to be named."""
    labels = [0, 1, 2, 0, 1, 2, 0, value, 1, value]
    return np.array(labels) if dtype is None else np.array(labels, dtype)


BAD = [
    (3, "int64", r"\b3\b"),
    (-1, "int64", "-1"),
    (42, "uint8", r"\b42\b"),
    (-100, "int8", "-100"),
    (2**32, "int64", str(2**32)),  # 0 once it is cut to 32 bits
    (2**32 + 1, "uint64", str(2**32 + 1)),
    (2**63 + 1, "uint64", str(2**63 + 1)),
    (1.5, "float64", r"1\.5"),
    (0.25, "float32", r"0\.25"),
    (3.0, "float64", r"\b3\b"),
    (-1.0, "float16", "-1"),
    (np.nan, "float64", "nan"),
    (np.inf, "float64", "inf"),
    (1e300, "float64", r"1e\+?300"),
]


@pytest.mark.parametrize("row", INDEX)
@pytest.mark.parametrize(("value", "dtype", "written"), BAD)
def test_labels_out_of_range_or_not_integral(row, value, dtype, written):
    y_pred = np.random.default_rng(81).uniform(0.2, 1.0, size=(10, 3))
    y_true = labels_with(value, dtype)
    before = y_pred.tobytes()
    # The gradient would overwrite y_pred, and must not have begun to.
    with raises(ValueError, written, r"\b7\b"):
        row.cls().value_and_grad(y_true, y_pred, out=y_pred)
    assert y_pred.tobytes() == before, "y_pred was written to before the labels were checked"
    if dtype in ("int64", "float64"):
        logits = [row.cls(from_logits=True)] if "from_logits" in row.cls().get_config() else []
        for call in (row.cls(), *logits, handle(row)):
            with raises(ValueError, written, r"\b7\b"):
                call(y_true, y_pred)


@pytest.mark.parametrize("row", INDEX)
@pytest.mark.parametrize("shape", [(200_003, 3), (301, 1003)])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_last_label_of_many_is_checked_before_anything_is_written(row, shape, n_threads):
    y_pred = np.random.default_rng(82).uniform(0.2, 1.0, size=shape).astype(np.float32)
    y_true = np.zeros(shape[0], int)
    y_true[-1] = shape[1]
    before = y_pred.tobytes()
    with raises(ValueError, str(shape[0] - 1), str(shape[1])):
        row.cls().value_and_grad(y_true, y_pred, out=y_pred, n_threads=n_threads)
    assert y_pred.tobytes() == before


@pytest.mark.parametrize("row", INDEX)
def test_a_weight_of_zero_hides_no_label_and_ignore_class_only_its_own(row):
    y_pred = np.full((3, 2), 0.5)
    with raises(ValueError, r"\b9\b"):
        row.cls()([0, 9, 1], y_pred, [1.0, 0.0, 1.0])
    if "ignore_class" in row.cls().get_config():
        with raises(ValueError, r"\b9\b"):
            row.cls(ignore_class=-1)([-1, 9, 1], y_pred)
    with raises(ValueError, r"\b9\b"):
        row.cls()([0, 9, 1], y_pred, mask=[False, True, True])
    with raises(ValueError, r"\b9\b"):
        handle(row)(np.array([0, 9, 1]), y_pred)


# --------------------------------------------------------------------------------------------------------------
# Weights, masks, classes
# --------------------------------------------------------------------------------------------------------------


@every_loss_of_rows
def test_weights_that_do_not_broadcast(row):
    for shape, weight in (((5, 3), (4,)), ((5, 3), (6, 1)), ((2, 4, 3), (3, 4)), ((2, 4, 3), (2, 3))):
        y_true, y_pred = example(row, shape)
        for call in both(row):
            with raises(ValueError, "sample_weight", shape_of(*weight)):
                call(y_true, y_pred, np.ones(weight))


@every_loss_of_rows
def test_weights_of_a_higher_rank_than_the_values(row):
    """(B,T,D) weights of (B,T) values, and anything else that still has an axis too many."""
    for shape, weight in (
        ((2, 4, 3), (2, 4, 3)),
        ((5, 3), (5, 3)),
        ((5, 3), (2, 5)),
        ((5, 3), (1, 5)),
        ((5, 3), (5, 1, 1)),
    ):
        y_true, y_pred = example(row, shape)
        for call in both(row):
            with raises(ValueError, "sample_weight", shape_of(*weight)):
                call(y_true, y_pred, np.ones(weight))


@every_loss_of_rows
@pytest.mark.parametrize("steps", [4, 5])
def test_a_weight_a_sample_of_values_in_time(row, steps):
    """(B,) on (B,T): an error that says to pass (B, 1), above all when B = T, where Keras silently weighs T."""
    y_true, y_pred = example(row, (4, steps, 3))
    for call in both(row):
        with raises(ValueError, "sample_weight", shape_of(4), shape_of(4, 1)):
            call(y_true, y_pred, np.ones(4))


@every_loss_of_rows
@pytest.mark.parametrize("n", [5, 7])
def test_masks_of_another_shape(row, n):
    y_true, y_pred = example(row, (6, 3))
    for mask in (np.ones(n, bool), np.ones((6, 3), bool), np.ones((2, 6), bool)):
        for call in both(row):
            with raises(ValueError, "mask", shape_of(*mask.shape)):
                call(y_true, y_pred, mask=mask)


@pytest.mark.parametrize("row", CLASSES)
def test_class_weight_of_rows_with_several_classes(row):
    y_true = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]], float)
    for call in both(row):
        with raises(ValueError, "class_weight"):
            call(y_true, np.full((3, 3), 0.3), class_weight={0: 2.0})
    row.cls()(y_true[[0, 2]], np.full((2, 3), 0.3), class_weight={0: 2.0})


# --------------------------------------------------------------------------------------------------------------
# dtypes and containers
# --------------------------------------------------------------------------------------------------------------


def of_kind(array, kind):
    if kind == "complex":
        return array.astype(np.complex128)
    if kind == "object":
        return array.astype(object)
    return array.astype(str)


@every_loss
@pytest.mark.parametrize("kind", ["complex", "object", "string"])
def test_unsupported_dtypes(row, kind):
    y_true, y_pred = example(row)
    word = {"complex": "complex128", "object": "object", "string": "(str|<U)"}[kind]
    for call in both(row):
        with raises(TypeError, "y_true", word):
            call(of_kind(y_true, kind), y_pred)
        with raises(TypeError, "y_pred", word):
            call(y_true, of_kind(y_pred, kind))
        with raises(TypeError, "sample_weight", word):
            call(y_true, y_pred, of_kind(np.ones(5), kind))
    with raises(TypeError, "y_pred"):
        handle(row)(y_true, of_kind(y_pred, kind))


@every_loss
def test_masked_arrays_say_what_to_pass(row):
    y_true, y_pred = example(row)
    for call in both(row):
        with raises((TypeError, ValueError), "y_true", "mask"):
            call(np.ma.masked_array(y_true), y_pred)
        with raises((TypeError, ValueError), "y_pred", "mask"):
            call(y_true, np.ma.masked_array(y_pred))
        with raises((TypeError, ValueError), "sample_weight", "mask"):
            call(y_true, y_pred, np.ma.masked_array(np.ones(5)))


@every_loss
@pytest.mark.parametrize("make", ["csr_matrix", "coo_array"])
def test_sparse_matrices_say_what_to_pass(row, make):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed: there are no sparse matrices")
    y_true, y_pred = example(row)
    for call in both(row):
        with raises((TypeError, ValueError), "y_pred", "(toarray|dense)"):
            call(y_true, getattr(sparse, make)(y_pred))
        if row.labels == "dense":
            with raises((TypeError, ValueError), "y_true", "(toarray|dense)"):
                call(getattr(sparse, make)(y_true), y_pred)


# --------------------------------------------------------------------------------------------------------------
# out=, upstream=, n_threads=
# --------------------------------------------------------------------------------------------------------------


@every_loss
def test_out_of_another_shape_dtype_or_kind(row):
    y_true, y_pred = example(row)
    call = row.cls().value_and_grad
    with raises(ValueError, "out", shape_of(5, 4), shape_of(5, 3)):
        call(y_true, y_pred, out=np.empty((5, 4)))
    with raises(ValueError, "out", shape_of(15), shape_of(5, 3)):
        call(y_true, y_pred, out=np.empty(15))
    for dtype in (np.float32, np.float16, np.int64):
        with raises(ValueError, "out", np.dtype(dtype).name, "float64"):
            call(y_true, y_pred, out=np.empty((5, 3), dtype))
    frozen = np.zeros((5, 3))
    frozen.flags.writeable = False
    with raises(ValueError, "out", "(writ|read-only)"):
        call(y_true, y_pred, out=frozen)
    assert not frozen.any()


@every_loss
def test_out_is_y_pred_but_read_only(row):
    y_true, y_pred = example(row)
    y_pred.flags.writeable = False
    with raises(ValueError, "out", "(writ|read-only)"):
        row.cls().value_and_grad(y_true, y_pred, out=y_pred)


@every_loss_of_rows
def test_out_that_overlaps_an_input(row):
    y_true, y_pred = example(row, (6, 3))
    buffer = np.empty((7, 3))
    buffer[:6] = y_pred
    weight = np.linspace(0.5, 1.0, 18)
    before = buffer.tobytes()
    with raises(ValueError, "out", "y_pred"):
        row.cls().value_and_grad(y_true, buffer[:6], out=buffer[1:])
    assert buffer.tobytes() == before
    with raises(ValueError, "out", "y_pred"):
        row.cls().value_and_grad(y_true, y_pred, out=y_pred[::-1])
    with raises(ValueError, "out", "sample_weight"):
        row.cls().value_and_grad(y_true, y_pred, weight[:6], out=weight.reshape(6, 3))
    if row.labels == "dense":
        before = y_true.tobytes()
        with raises(ValueError, "out", "y_true"):
            row.cls().value_and_grad(y_true, y_pred, out=y_true)
        assert y_true.tobytes() == before


@pytest.mark.parametrize("row", [param for param in ROWS if param.values[0].hessian])
def test_out_is_checked_beside_a_hessian(row):
    y_true, y_pred = example(row)
    with raises(ValueError, "out", shape_of(5, 4)):
        row.cls().value_grad_hess(y_true, y_pred, out=np.empty((5, 4)))


@every_loss
def test_upstream_of_another_shape(row):
    y_true, y_pred = example(row)
    with raises(ValueError, "upstream", shape_of(4)):
        row.cls(reduction="none").value_and_grad(y_true, y_pred, upstream=np.ones(4))
    with raises(ValueError, "upstream", shape_of(5)):
        row.cls(reduction="sum").value_and_grad(y_true, y_pred, upstream=np.ones(5))


@every_loss
@pytest.mark.parametrize("n", [0, -1, -8])
def test_too_few_threads(row, n):
    y_true, y_pred = example(row)
    for call in both(row):
        with raises(ValueError, "n_threads", "1", str(n)):
            call(y_true, y_pred, n_threads=n)


@pytest.mark.parametrize("n", [0, -1])
def test_too_few_threads_for_all(n):
    before = fastloss.get_num_threads()
    with raises(ValueError, "threads", str(n)):
        fastloss.set_num_threads(n)
    assert fastloss.get_num_threads() == before


def test_what_is_no_number_is_named():
    loss, labels, p = losses.SparseCategoricalCrossentropy(True), np.zeros(2, int), np.zeros((2, 3))
    for weights in ({np.nan: 1.0}, {np.inf: 1.0}, {0: None}):
        with pytest.raises(TypeError, match="`class_weight` must have"):
            loss(labels, p, class_weight=weights)
    with pytest.raises(ValueError, match="`y_pred` cannot be read"):
        loss(labels, [[0.0, 0.0, 10**400]] * 2)
    with pytest.raises(TypeError, match="`name` must be text"):
        losses.Huber(name=3)
    out = np.lib.stride_tricks.as_strided(np.zeros(3), (2, 3), (0, 8))
    with pytest.raises(ValueError, match="`out` must not overlap itself"):
        loss.value_and_grad(labels, p, out=out)


@pytest.mark.parametrize(
    ("loss", "y_pred"),
    [(losses.Circle(), np.eye(3)), (losses.SparseCategoricalCrossentropy(True, ignore_class=-1), np.eye(3))],
)
def test_masks_beside_a_rule_of_the_loss(loss, y_pred):
    for shape in ((2,), (2, 1), (2, 4)):
        with pytest.raises(ValueError, match=r"`mask` must have the shape of the per-sample losses, \(3,\)"):
            loss(np.arange(3), y_pred, mask=np.ones(shape, bool))
