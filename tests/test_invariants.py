"""Every loss of the registry, every variant, through what must hold for all of them.

Nothing here names a loss: a registry row and a function in ``reference.py`` are all that a new loss needs. Crossings
(shapes × reductions × weights × masks) run inside one test over small arrays, and a failure names its combination.

Each combination of weights, mask, outputs, dtypes and threads is a kernel to compile, a second and more on the first
run. So the whole crossing is done for one loss of each kind of driver (``data.is_thorough``), which shares all that
code with the others; each other loss, variant and dtype takes two ways through it (``data.crossings``): every value
without weights, and a reduced value with weights and a mask. Tests of what is the engine's business take the same
two ways, or the thorough losses alone.

How equal is equal:

* value and gradient against the oracle: 1e-12 in float64 (gradients 1e-8: differences know no more), 1e-5 in float32;
* across thread counts: bit for bit;
* value-only, value+gradient and value+gradient+Hessian: four units in the last place. They are three loops, and the
  compiler may contract or order their additions in three ways;
* other memory layouts of the same numbers: four units in the last place, for the same reason.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
import fastloss
import reference
from fastloss import losses
from fastloss.registry import LOSSES
from reference import assert_close, assert_last_digits, assert_same_bits

FLOATS = (np.float32, np.float64)
DISTINCT = ("sum_over_batch_size", "mean_with_sample_weight", "sum", "none")  # the others are aliases


def describe(params):
    return ",".join(f"{k}={v}" for k, v in params.items()) or "default"


def cases(rows):
    return [
        pytest.param(row, params, id=f"{row.name}-{describe(params)}") for row in rows for params in data.variants(row)
    ]


CASES = cases(LOSSES.values())
WITH_HESSIAN = cases(row for row in LOSSES.values() if row.hessian)
WITHOUT_HESSIAN = [pytest.param(row, id=row.name) for row in LOSSES.values() if not row.hessian]
WITH_CLASSES = cases(row for row in LOSSES.values() if row.domain in ("probability", "distribution", "index"))
POINTWISE = cases(row for row in LOSSES.values() if row.kind == "pointwise")
ROWS = [pytest.param(row, id=row.name) for row in LOSSES.values()]

THOROUGH = [pytest.param(row, id=row.name) for row in LOSSES.values() if data.is_thorough(row, {})]


def crossed(*lean):
    """(row, params, dtype): all variants and both dtypes of the representatives, else the defaults in these dtypes.

    A kernel takes a second to compile, and what it does with memory, masks and threads is the driver's.
    """
    return pytest.mark.parametrize(
        ("row", "params", "dtype"),
        [
            pytest.param(row, params, dtype, id=f"{row.name}-{describe(params)}-{np.dtype(dtype).name}")
            for row in LOSSES.values()
            for params in (data.variants(row) if data.is_thorough(row, {}) else row.variants[:1])
            for dtype in (FLOATS if data.is_thorough(row, {}) else lean)
        ],
    )


every_case = pytest.mark.parametrize(("row", "params"), CASES)
every_loss = pytest.mark.parametrize("row", ROWS)
every_thorough = pytest.mark.parametrize("row", THOROUGH)
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])


def is_numpy(x):
    return isinstance(x, np.generic | np.ndarray)


def one_shape(row, params):
    return data.shapes(row, params)[0]


# --------------------------------------------------------------------------------------------------------------
# The table itself
# --------------------------------------------------------------------------------------------------------------


def test_every_registry_row_has_a_reference_that_agrees_with_it():
    assert LOSSES, "the registry is empty"
    for name, row in LOSSES.items():
        assert name == row.name
        assert name in reference.REFERENCES, f"{name}: write its function in tests/reference.py"
        assert row.kind == reference.REFERENCES[name].kind, name
        assert row.labels == reference.REFERENCES[name].labels, name
        assert row.domain in data.DOMAINS, name
        assert {} in row.variants, f"{name}: the default variant is missing"
        assert getattr(losses, row.cls.__name__) is row.cls


# --------------------------------------------------------------------------------------------------------------
# Values and derivatives
# --------------------------------------------------------------------------------------------------------------


@every_case
@every_float
def test_value_is_the_oracles(row, params, dtype):
    # In float32 the first shape: it has the same source, and another kernel to compile for each form of the loops.
    for shape in data.shapes(row, params)[: 1 if dtype == np.float32 else None]:
        y_true, y_pred = data.inputs(row, params, shape, dtype=dtype)
        for label, reduction, call in data.crossings(row, params, shape, dtype=dtype):
            loss = row.cls(**params, reduction=reduction)
            want = reference.loss(row.name, y_true, y_pred, **call, reduction=reduction, dtype=dtype, **params)
            got = loss(y_true, y_pred, **call)
            assert is_numpy(got), f"{label}: {type(got)}"
            assert got.dtype == dtype, f"{label}: {got.dtype}"
            assert_close(got, want, label)
            if dtype == np.float64:  # the gradients' test divides float32 among threads
                assert_same_bits(loss(y_true, y_pred, **call, n_threads=2), got, f"{label}, n_threads=2")


@every_case
def test_gradient_is_the_difference_of_the_oracle(row, params):
    shapes = data.shapes(row, params)
    for position, shape in enumerate(shapes):
        # Numbers that float32 holds exactly, so that one oracle serves both dtypes. All crossings on the first shape;
        # of the others every eleventh, each starting elsewhere.
        y_true, y_pred = data.inputs(row, params, shape, seed=1, dtype=np.float32)
        crossed = data.crossings(row, params, shape, DISTINCT)
        for_float32 = {label for label, _, _ in data.crossings(row, params, shape, DISTINCT, np.float32)}
        for label, reduction, call in crossed if position == 0 else crossed[position::11]:
            loss = row.cls(**params, reduction=reduction)
            want = reference.gradient(row.name, y_true, y_pred, **call, reduction=reduction, **params)
            for dtype, rtol, atol in ((np.float64, 1e-8, 1e-10), (np.float32, 1e-5, 1e-6)):
                if dtype == np.float32 and label not in for_float32:
                    continue
                t = y_true if row.labels == "index" else y_true.astype(dtype)
                p = y_pred.astype(dtype)
                value, gradient = loss.value_and_grad(t, p, **call)
                label_here = f"{label}, {np.dtype(dtype)}"
                assert type(gradient) is np.ndarray, label_here
                assert gradient.dtype == dtype, label_here
                assert_close(gradient, want, label_here, rtol=rtol, atol=atol)
                assert is_numpy(value), label_here
                assert value.dtype == dtype, label_here
                assert_last_digits(value, loss(t, p, **call), f"{label_here}: fused and plain value")
                if dtype == np.float64 and not data.is_thorough(row, params):
                    continue
                again = loss.value_and_grad(t, p, **call, n_threads=2)
                assert_same_bits(again[0], value, f"{label_here}, n_threads=2")
                assert_same_bits(again[1], gradient, f"{label_here}, n_threads=2")


@pytest.mark.parametrize(("row", "params"), WITH_HESSIAN)
def test_hessian_is_the_second_difference_of_the_oracle(row, params):
    shape = one_shape(row, params)
    y_true, y_pred = data.inputs(row, params, shape, seed=2, dtype=np.float32)
    random = data.rng(3)
    crossed = data.crossings(row, params, shape, DISTINCT)
    for label, reduction, call in crossed[::3] if data.is_thorough(row, params) else crossed[:2]:
        loss = row.cls(**params, reduction=reduction)
        value_shape = np.shape(loss(y_true, y_pred, **call))
        for upstream in (None, random.uniform(0.5, 2.0, size=value_shape)):
            want = reference.hessian(row.name, y_true, y_pred, upstream=upstream, **call, reduction=reduction, **params)
            for dtype, rtol, atol in ((np.float64, 1e-6, 1e-7), (np.float32, 1e-4, 1e-5)):
                t, p = y_true.astype(dtype), y_pred.astype(dtype)
                value, gradient, hessian = loss.value_grad_hess(t, p, **call, upstream=upstream)
                label_here = f"{label}, {np.dtype(dtype)}, upstream {upstream is not None}"
                assert hessian.dtype == dtype, label_here
                assert_close(hessian, want, label_here, rtol=rtol, atol=atol)
                fused = loss.value_and_grad(t, p, **call, upstream=upstream)
                assert_last_digits(value, fused[0], label_here)
                assert_last_digits(gradient, fused[1], label_here)


@pytest.mark.parametrize("row", WITHOUT_HESSIAN)
def test_no_hessian_is_an_error_that_says_so(row):
    y_true, y_pred = data.inputs(row, {}, one_shape(row, {}))
    with pytest.raises(NotImplementedError, match=r"(?i)hess"):
        row.cls().value_grad_hess(y_true, y_pred)


@every_case
def test_aliases_of_reductions(row, params):
    shape = one_shape(row, params)
    y_true, y_pred = data.inputs(row, params, shape)
    for alias, reduction in (("mean", "sum_over_batch_size"), (None, "none")):
        for label, _, call in data.crossings(row, params, shape, (alias,)):
            got = row.cls(**params, reduction=alias).value_and_grad(y_true, y_pred, **call)
            want = row.cls(**params, reduction=reduction).value_and_grad(y_true, y_pred, **call)
            assert_same_bits(got[0], want[0], label)
            assert_same_bits(got[1], want[1], label)


@every_case
def test_handle_is_the_class_without_reduction(row, params):
    handle = functools.partial(getattr(losses, row.name), **data.required(row))
    missing = set(params) - set(inspect.signature(handle).parameters)
    if row.labels == "index" and missing == {"label_smoothing"}:
        pytest.skip("beyond Keras: the class alone smooths class numbers")
    assert not missing, f"{row.name}() does not take {sorted(missing)}"
    for dtype, shape in itertools.product(FLOATS, data.shapes(row, params)):
        y_true, y_pred = data.inputs(row, params, shape, dtype=dtype)
        got = handle(y_true, y_pred, **params)
        assert is_numpy(got)
        assert got.dtype == dtype
        assert_close(got, reference.per_sample(row.name, y_true, y_pred, dtype=dtype, **params)[0], f"{shape} {dtype}")
        assert_same_bits(got, row.cls(**params, reduction=None)(y_true, y_pred))


# --------------------------------------------------------------------------------------------------------------
# Large batches and threads
# --------------------------------------------------------------------------------------------------------------


@crossed(np.float32)
def test_large_batches_are_right_and_the_same_on_any_number_of_threads(row, params, dtype):
    thorough = data.is_thorough(row, params)
    random = data.rng(4)
    for shape in data.shapes(row, params, large=True):
        y_true, y_pred = data.inputs(row, params, shape, seed=5, dtype=dtype)
        values = reference.values_shape(row.name, params, shape)
        weighted = {} if not values else {"sample_weight": random.uniform(0.5, 2.0, size=values)}
        masked = {} if not values else {**weighted, "mask": random.random(values) < 0.7}
        calls = [("sum_over_batch_size", {}), ("sum", weighted), ("none", masked), ("mean", masked)]
        for reduction, call in calls if thorough and dtype == np.float64 else calls[-1:]:
            loss = row.cls(**params, reduction=reduction)
            label = f"y_pred {shape}, reduction={reduction}, {sorted(call)}"
            value, gradient = loss.value_and_grad(y_true, y_pred, **call, n_threads=1)
            want = reference.loss(row.name, y_true, y_pred, **call, reduction=reduction, dtype=dtype, **params)
            assert_close(value, want, label)
            alone = loss(y_true, y_pred, **call, n_threads=1) if thorough else None
            if thorough:
                assert_last_digits(alone, value, label)
            for n in (2, 3):
                if thorough:
                    assert_same_bits(loss(y_true, y_pred, **call, n_threads=n), alone, f"{label}, n_threads={n}")
                again = loss.value_and_grad(y_true, y_pred, **call, n_threads=n)
                assert_same_bits(again[0], value, f"{label}, n_threads={n}")
                assert_same_bits(again[1], gradient, f"{label}, n_threads={n}: gradient")
        if row.domain == "scores":
            continue  # among so many rows some are next to a tie
        # One derivative, along one direction, of the last of these calls.
        direction = random.uniform(-1, 1, size=shape)
        want = reference.slope(row.name, y_true, y_pred, direction, **call, reduction=reduction, **params)
        got = np.sum(gradient.astype(np.float64) * direction)
        scale = np.sum(np.abs(gradient.astype(np.float64) * direction))
        assert abs(got - want) <= scale * (1e-8 if dtype == np.float64 else 1e-5), f"{shape}: {got}, expected {want}"


@pytest.mark.parametrize("row", [param for param in THOROUGH if param.values[0].hessian])
def test_hessian_is_the_same_on_any_number_of_threads(row):
    params = {}
    shape = data.shapes(row, params, large=True)[0]
    y_true, y_pred = data.inputs(row, params, shape, seed=6, dtype=np.float32)
    one = row.cls(**params).value_grad_hess(y_true, y_pred, n_threads=1)
    for n in (2, 3):
        for got, want in zip(row.cls(**params).value_grad_hess(y_true, y_pred, n_threads=n), one, strict=True):
            assert_same_bits(got, want, f"n_threads={n}")


@crossed(np.float32)
def test_a_batch_is_its_rows(row, params, dtype):
    """Whatever tile, lane or remainder a row lands in, it gives what it gives alone."""
    if reference.axis_of(row.name, params) != -1:
        pytest.skip("its rows are not those of the array")
    thorough = data.is_thorough(row, params, dtype)
    loss = row.cls(**params, reduction="none")
    for rows, columns in itertools.product((1, 31, 64, 67), (2, 3, 4, 8, 9, 16, 17, 32, 33)):
        if (columns > 32 or rows * columns >= 1024) and not thorough:
            continue  # other loops, which `test_large_batches...` takes with every loss
        y_true, y_pred = data.inputs(row, params, (rows, columns), seed=columns, dtype=dtype)
        value, gradient = loss.value_and_grad(y_true, y_pred)
        for i in {0, rows // 2, rows - 1}:
            label = f"row {i} of ({rows}, {columns})"
            alone = loss.value_and_grad(y_true[i : i + 1], y_pred[i : i + 1])
            assert_close(value[i : i + 1], alone[0], label, rtol=40 * float(np.finfo(dtype).eps))
            assert_close(gradient[i : i + 1], alone[1], label, rtol=40 * float(np.finfo(dtype).eps))


# Of the ways in which stages of rows are put together, one each.
STAGES = ("categorical_crossentropy", "sparse_categorical_crossentropy", "categorical_hinge", "sparsemax_loss")


@pytest.mark.parametrize("name", [*STAGES, "cosine_similarity"])
def test_many_short_rows_in_other_memory(name):
    """Side by side in a tile, rows come from and go to the formats and places that single rows do."""
    row = LOSSES[name]
    y_true, y_pred = data.inputs(row, {}, (150, 9), seed=7, dtype=np.float32)
    loss = row.cls()
    half = y_pred.astype(np.float16)
    for p, wide in ((y_pred, y_pred), (half, half.astype(np.float32))):
        want = loss.value_and_grad(y_true, wide)
        value, gradient = loss.value_and_grad(y_true, p)
        assert_same_bits(value, want[0], str(p.dtype))
        assert_same_bits(gradient, want[1].astype(p.dtype), str(p.dtype))
        place = p.copy()
        value, gradient = loss.value_and_grad(y_true, place, out=place)
        assert_same_bits(value, want[0], f"{p.dtype}, in place")
        assert_same_bits(gradient, want[1].astype(p.dtype), f"{p.dtype}, in place")
    if row.labels != "index":
        for kind in (np.float64, np.float16):
            targets = y_true.astype(kind)
            want = loss.value_and_grad(targets.astype(np.float32), y_pred)
            assert_close(loss.value_and_grad(targets, y_pred)[1], want[1], f"targets in {kind.__name__}")


def test_number_of_threads_is_remembered_and_changes_no_bit():
    row = next(iter(LOSSES.values()))
    y_true, y_pred = data.inputs(row, {}, data.LARGE_SHAPES[row.kind][0])
    before = fastloss.get_num_threads()
    assert before is None or before >= 1
    want = row.cls()(y_true, y_pred)
    try:
        fastloss.set_num_threads(1)
        assert fastloss.get_num_threads() == 1
        assert_same_bits(row.cls()(y_true, y_pred), want)
    finally:
        fastloss.set_num_threads(before)
    assert fastloss.get_num_threads() == before


# --------------------------------------------------------------------------------------------------------------
# Weights, masks, classes
# --------------------------------------------------------------------------------------------------------------


@every_thorough
@every_float
def test_weights_multiply(row, dtype):
    params = {}
    for shape in data.shapes(row, params):
        y_true, y_pred = data.inputs(row, params, shape, seed=8, dtype=dtype)
        none = row.cls(**params, reduction="none")
        total = row.cls(**params, reduction="sum")
        values, gradient = none.value_and_grad(y_true, y_pred)
        for power in (0.5, -4.0):  # powers of two: not even the last digit may move
            got = none.value_and_grad(y_true, y_pred, power)
            label = f"{shape}, weight {power}"
            assert_last_digits(np.reshape(got[0], values.shape), values * values.dtype.type(power), label)
            assert_last_digits(got[1], gradient * gradient.dtype.type(power), label)
        if values.shape:
            weight = data.rng(9).uniform(-2, 2, size=values.shape).astype(dtype)
            assert_close(none(y_true, y_pred, weight), values * weight, f"{shape}, negative weights")
            want = np.sum(values.astype(np.float64) * weight)
            slack = 1e-5 if dtype == np.float32 else 1e-12
            atol = slack * np.sum(np.abs(values * weight))
            assert_close(total(y_true, y_pred, weight), want, f"{shape}, negative weights, sum", atol=float(atol))
            zero = np.zeros(values.shape)
            for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum"):
                value, gradient0 = row.cls(**params, reduction=reduction).value_and_grad(y_true, y_pred, zero)
                assert value == 0, f"{shape}, all weights zero, {reduction}"
                assert not gradient0.any(), f"{shape}, all weights zero, {reduction}"


@every_thorough
@every_float
def test_weights_that_cancel_divide_by_zero_and_give_zero(row, dtype):
    y_true, y_pred = data.inputs(row, {}, (4, 3), dtype=dtype)
    loss = row.cls(reduction="mean_with_sample_weight")
    for weight in ([1.0, -1.0, 0.0, 0.0], [0.5, 0.5, -2.0, 1.0], 0.0):
        value, gradient = loss.value_and_grad(y_true, y_pred, weight)
        assert value == 0, weight
        assert gradient.shape == (4, 3), weight
        assert not gradient.any(), weight


@crossed(np.float64)
def test_masked_entries_do_not_exist(row, params, dtype):
    """Garbage behind a mask (NaN, infinity, labels of no class) changes nothing and has no gradient.

    Not to the bit: a few numbers may lie too close to where their gradient goes for a vector loop, and add up in
    another order.
    """
    for shape in data.shapes(row, params):
        values = reference.values_shape(row.name, params, shape)
        if not values:
            continue
        y_true, y_pred = data.inputs(row, params, shape, seed=10, dtype=dtype)
        mask = data.mask_families(values)["mask"]
        weight = data.rng(12).uniform(0.5, 2.0, size=values)
        axes = reference.axes_of(row.name, params, len(shape))
        wide = np.broadcast_to(np.expand_dims(mask, axes), shape)
        for garbage, number in ((np.nan, -(10**6)), (np.inf, 2**40)):
            bad_pred = np.where(wide, y_pred, garbage).astype(dtype)
            if row.labels == "index":
                bad_true = np.where(mask, y_true, number)
            else:
                bad_true = np.where(wide, y_true, garbage).astype(dtype)
            for reduction, weights in itertools.product(DISTINCT, (None, weight)):
                if not data.is_thorough(row, params) and (weights is None or reduction == "none"):
                    continue
                label = f"{shape}, {garbage}, reduction={reduction}, weighted: {weights is not None}"
                loss = row.cls(**params, reduction=reduction)
                want = loss.value_and_grad(y_true, y_pred, weights, mask=mask)
                got = loss.value_and_grad(bad_true, bad_pred, weights, mask=mask)
                assert_last_digits(got[0], want[0], label)
                assert_last_digits(got[1], want[1], label, ulps=16)
                assert not got[1][~wide].any(), f"{label}: a masked entry has a gradient"
                assert np.isfinite(got[0]).all(), label
                assert np.isfinite(got[1]).all(), label
                assert_last_digits(loss(bad_true, bad_pred, weights, mask=mask), got[0], label)
                if reduction == "none":
                    assert not got[0][~mask].any(), label
        nothing = np.zeros(values, bool)
        for reduction in DISTINCT if data.is_thorough(row, params) else DISTINCT[:3]:
            value, gradient = row.cls(**params, reduction=reduction).value_and_grad(
                np.full_like(y_true, -77), np.full_like(y_pred, np.nan), weight, mask=nothing
            )
            assert not np.any(value), f"{shape}, all masked, {reduction}"  # any() of NaN is True
            assert gradient.shape == shape, f"{shape}, all masked, {reduction}"
            assert not gradient.any(), f"{shape}, all masked, {reduction}"


@every_thorough
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
@pytest.mark.parametrize("reduction", DISTINCT)
def test_weights_behind_a_mask_do_not_exist_either(row, garbage, reduction):
    """Only masks skip, and what is skipped is skipped with its weight: in the numerator and in the denominator."""
    y_true, y_pred = data.inputs(row, {}, (6, 3), seed=10)
    mask = np.array([True, False, True, True, False, True])
    weight = np.linspace(0.5, 2.0, 6)
    loss = row.cls(reduction=reduction)
    want = loss.value_and_grad(y_true, y_pred, weight, mask=mask)
    got = loss.value_and_grad(y_true, y_pred, np.where(mask, weight, garbage), mask=mask)
    assert_close(got[0], want[0])
    assert_close(got[1], want[1])


@pytest.mark.parametrize(("name", "columns"), [("mean_squared_error", 1), ("sparse_categorical_crossentropy", 5)])
def test_weights_behind_a_mask_do_not_exist_among_many_rows(name, columns):
    row = LOSSES[name]
    y_true, y_pred = data.inputs(row, {}, (2000, columns), seed=3, dtype=np.float64)
    mask, weights = np.ones(2000, bool), data.rng(5).uniform(0.5, 2.0, 2000)
    mask[5] = False
    garbage = np.where(mask, weights, np.nan)
    for reduction in DISTINCT:
        loss = row.cls(reduction=reduction)
        want = loss.value_and_grad(y_true, y_pred, weights, mask=mask)
        got = loss.value_and_grad(y_true, y_pred, garbage, mask=mask)
        assert_same_bits(got[0], want[0], reduction)
        assert_same_bits(got[1], want[1], reduction)
        assert np.isfinite(got[0]).all()


@every_thorough
@every_float
def test_a_mask_is_the_batch_without_those_rows(row, dtype):
    for params in data.variants(row):
        if reference.axis_of(row.name, params) != -1:
            continue
        y_true, y_pred = data.inputs(row, params, (9, 4), seed=13, dtype=dtype)
        mask = np.array([True, False, True, True, False, False, True, True, True])
        weight = data.rng(14).uniform(0.5, 2.0, size=9)
        for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum"):
            loss = row.cls(**params, reduction=reduction)
            label = f"{params}, {reduction}"
            got = loss.value_and_grad(y_true, y_pred, weight, mask=mask)
            want = loss.value_and_grad(y_true[mask], y_pred[mask], weight[mask])
            assert_close(got[0], want[0], label)
            assert_close(got[1][mask], want[1], label)


@every_thorough
def test_mask_from_keras_mask_attribute(row):
    class Masked(np.ndarray):
        _keras_mask = None

    y_true, y_pred = data.inputs(row, {}, (6, 4), seed=15)
    mask = np.array([True, True, False, True, False, True])
    carrying = y_pred.view(Masked)
    carrying._keras_mask = mask
    weight = np.linspace(0.5, 2.0, 6)
    want = row.cls().value_and_grad(y_true, y_pred, weight, mask=mask)
    got = row.cls().value_and_grad(y_true, carrying, weight)
    assert_same_bits(got[0], want[0])
    assert_same_bits(np.asarray(got[1]), want[1])
    assert_last_digits(row.cls()(y_true, carrying, weight), want[0])
    assert not got[1][~mask].any()
    assert got[1][mask].any()


@pytest.mark.parametrize(("row", "params"), WITH_CLASSES)
@every_float
def test_class_weight_multiplies_the_weights_of_its_classes(row, params, dtype):
    if reference.axis_of(row.name, params) != -1:
        pytest.skip("labels along another axis: classes are told on the last one")
    random = data.rng(16)
    tables = ({0: 0.5, 1: 3.0, 2: 0.25}, {1: 2.0}, {}, [0.5, 3.0, 0.25], np.array([2.0, 0.5, 1.5]))
    for shape in ((7, 1), (7, 3)) if row.domain == "probability" else ((7, 3), (2, 3, 3)):
        y_true, y_pred = data.inputs(row, params, shape, seed=17, dtype=dtype)
        if row.labels != "index":
            one_hot = np.eye(shape[-1])[random.integers(shape[-1], size=shape[:-1])]
            y_true = (one_hot if shape[-1] > 1 else np.round(random.random(shape))).astype(dtype)
        values = shape[:-1]
        weights = (None, 2.0, random.uniform(0.5, 2.0, size=values), random.uniform(0.5, 2.0, size=(*values, 1)))
        masks = (None, data.mask_families(values)["mask"])
        reductions = DISTINCT
        if not data.is_thorough(row, params, dtype):
            tables, masks, reductions = tables[:1], masks[1:], DISTINCT[:3]
        for table, weight, mask, reduction in itertools.product(tables, weights, masks, reductions):
            label = f"{shape}, {table}, weight {np.shape(weight)}, mask {mask is not None}, {reduction}"
            loss = row.cls(**params, reduction=reduction)
            call = {"sample_weight": weight, "mask": mask, "class_weight": table}
            want = reference.loss(row.name, y_true, y_pred, **call, reduction=reduction, dtype=dtype, **params)
            got, gradient = loss.value_and_grad(y_true, y_pred, **call)
            assert_close(got, want, label)
            assert_last_digits(loss(y_true, y_pred, **call), got, label)
            # The gradient is that of the same weights given by hand.
            by_hand = reference.class_weights(row.name, y_true, y_pred, table, **strip(params))
            if weight is not None:
                by_hand, weight = reference.squeeze_or_expand_to_same_rank(by_hand, weight)
                by_hand = by_hand * weight
            assert_close(gradient, loss.value_and_grad(y_true, y_pred, by_hand, mask=mask)[1], label)


def strip(params):
    return {k: v for k, v in params.items() if k != "ignore_class"}


@pytest.mark.parametrize(("row", "params"), WITH_CLASSES)
def test_class_weight_reads_no_masked_label(row, params):
    if reference.axis_of(row.name, params) != -1 or row.labels != "index":
        pytest.skip("only labels that are class numbers can be out of range")
    y_true, y_pred = data.inputs(row, params, (5, 3), seed=18)
    mask = np.array([True, False, True, True, True])
    bad = np.where(mask, y_true, 10**6)
    table = {0: 2.0, 1: 0.5}
    want = row.cls(**params).value_and_grad(y_true, y_pred, mask=mask, class_weight=table)
    got = row.cls(**params).value_and_grad(bad, y_pred, mask=mask, class_weight=table)
    assert_same_bits(got[0], want[0])
    assert_same_bits(got[1], want[1])


# --------------------------------------------------------------------------------------------------------------
# upstream, order, out=
# --------------------------------------------------------------------------------------------------------------


@every_thorough
@every_float
def test_upstream_of_none_is_the_weight_of_a_sum(row, dtype):
    params = {}
    for shape in data.shapes(row, params):
        y_true, y_pred = data.inputs(row, params, shape, seed=19, dtype=dtype)
        none = row.cls(**params, reduction="none")
        values = np.shape(none(y_true, y_pred))
        upstream = data.rng(20).uniform(-2, 2, size=values).astype(dtype)
        value, gradient = none.value_and_grad(y_true, y_pred, upstream=upstream)
        assert_last_digits(value, none(y_true, y_pred), f"{shape}: upstream is no weight of the value")
        want = row.cls(**params, reduction="sum").value_and_grad(y_true, y_pred, upstream)[1]
        assert_close(gradient, want, f"{shape}", atol=1e-2 * float(np.finfo(dtype).eps) + 1e-16)
        ones = none.value_and_grad(y_true, y_pred, upstream=np.ones(values, dtype))
        assert_last_digits(none.value_and_grad(y_true, y_pred)[1], ones[1], f"{shape}: upstream defaults to ones")


@every_loss
def test_upstream_scales_a_gradient(row):
    y_true, y_pred = data.inputs(row, {}, data.SHAPES[row.kind][0], seed=12)
    loss = row.cls(reduction="sum_over_batch_size")
    value, gradient = loss.value_and_grad(y_true, y_pred)
    scaled = loss.value_and_grad(y_true, y_pred, upstream=-4.0)  # a power of two: no digit changes
    assert_same_bits(scaled[0], value)
    assert_same_bits(scaled[1], -4 * gradient)


@every_thorough
def test_upstream_scales_every_weighted_and_masked_gradient(row):
    params = {}
    shape = one_shape(row, params)
    y_true, y_pred = data.inputs(row, params, shape, seed=21)
    random = data.rng(22)
    for label, reduction, call in data.crossings(row, params, shape, DISTINCT):
        loss = row.cls(**params, reduction=reduction)
        value, gradient = loss.value_and_grad(y_true, y_pred, **call)
        factor = loss.value_and_grad(y_true, y_pred, **call, upstream=np.full(value.shape, -2.5)[()])
        assert_same_bits(factor[0], value, label)
        assert_last_digits(factor[1], -2.5 * gradient, label)
        if reduction == "none" and value.shape:
            upstream = random.uniform(-2, 2, size=value.shape)
            got = loss.value_and_grad(y_true, y_pred, **call, upstream=upstream)[1]
            want = reference.gradient(row.name, y_true, y_pred, upstream=upstream, **call, reduction="none", **params)
            assert_close(got, want, label, rtol=1e-8, atol=1e-9)


@crossed(np.float64)
def test_order_of_the_batch_does_not_matter(row, params, dtype):
    for shape in data.shapes(row, params):
        axes = reference.axes_of(row.name, params, len(shape))
        if 0 in axes or shape[0] == 1:
            continue
        y_true, y_pred = data.inputs(row, params, shape, seed=23, dtype=dtype)
        order = data.rng(24).permutation(shape[0])
        loss = row.cls(**params, reduction="none")
        value, gradient = loss.value_and_grad(y_true, y_pred)
        got = loss.value_and_grad(y_true[order], y_pred[order])
        assert_close(got[0], value[order], f"{shape}")
        assert_close(got[1], gradient[order], f"{shape}")


@crossed(np.float32)
def test_out_receives_the_gradient(row, params, dtype):
    thorough = data.is_thorough(row, params)
    if not thorough and (params or dtype != np.float32):
        pytest.skip("storage does not depend on parameters, nor much on the loss: the thorough ones cover it")
    large = data.shapes(row, params, large=True)[1]
    for shape in (*data.shapes(row, params), large):
        if shape == large and dtype == np.float16:
            continue  # half of a long row of small probabilities is below what half can hold
        y_true, y_pred = data.inputs(row, params, shape, seed=25, dtype=dtype)
        values = reference.values_shape(row.name, params, shape)
        weight = data.weight_families(values).get("full")
        mask = data.mask_families(values).get("mask")
        calls = (("none", {}), ("mean", {"sample_weight": weight, "mask": mask}))
        for reduction, call in calls if thorough else calls[1:]:
            loss = row.cls(**params, reduction=reduction)
            label = f"{shape}, {reduction}"
            value, gradient = loss.value_and_grad(y_true, y_pred, **call)
            assert gradient.dtype == dtype, label
            assert not np.shares_memory(gradient, y_pred), label

            out = np.full(shape, np.nan, dtype)
            got = loss.value_and_grad(y_true, y_pred, **call, out=out)
            assert got[1] is out, label
            assert_same_bits(out, gradient, label)
            assert_same_bits(got[0], value, label)

            spread = np.full((*shape[:-1], 2 * shape[-1]), np.nan, dtype)
            got = loss.value_and_grad(y_true, y_pred, **call, out=spread[..., ::2])
            assert np.shares_memory(got[1], spread), label
            assert_same_bits(np.ascontiguousarray(spread[..., ::2]), gradient, f"{label}, strided out")
            assert np.isnan(spread[..., 1::2]).all(), f"{label}: written between the strides"

            own = y_pred.copy()
            got = loss.value_and_grad(y_true, own, **call, out=own)
            assert got[1] is own, label
            assert_same_bits(own, gradient, f"{label}, out=y_pred")
            assert_same_bits(got[0], value, f"{label}, out=y_pred")

            turned = np.ascontiguousarray(y_pred.T).T
            got = loss.value_and_grad(y_true, turned, **call, out=turned)
            assert got[1] is turned, label
            assert_last_digits(np.ascontiguousarray(turned), gradient, f"{label}, out=y_pred, not contiguous")


@pytest.mark.parametrize(("row", "params"), WITH_HESSIAN)
def test_out_receives_the_gradient_beside_a_hessian(row, params):
    y_true, y_pred = data.inputs(row, params, one_shape(row, params), seed=26)
    want = row.cls(**params).value_grad_hess(y_true, y_pred)
    own = y_pred.copy()
    for out, p in ((np.empty_like(y_pred), y_pred), (own, own)):
        value, gradient, hessian = row.cls(**params).value_grad_hess(y_true, p, out=out)
        assert gradient is out
        assert_same_bits(value, want[0])
        assert_same_bits(gradient, want[1])
        assert_same_bits(hessian, want[2])
        assert not np.shares_memory(hessian, out)


# --------------------------------------------------------------------------------------------------------------
# What may come in
# --------------------------------------------------------------------------------------------------------------


@crossed(np.float64)
def test_inputs_are_left_alone_and_may_be_read_only(row, params, dtype):
    shape = one_shape(row, params)
    y_true, y_pred = data.inputs(row, params, shape, seed=27, dtype=dtype)
    values = reference.values_shape(row.name, params, shape)
    weight = data.weight_families(values).get("full")
    mask = data.mask_families(values).get("mask")
    given = [x for x in (y_true, y_pred, weight, mask) if x is not None]
    before = [x.tobytes() for x in given]
    loss = row.cls(**params)
    want = loss.value_and_grad(y_true, y_pred, weight, mask=mask)
    assert [x.tobytes() for x in given] == before, "an input was changed"
    for x in given:
        x.flags.writeable = False
    got = loss.value_and_grad(y_true, y_pred, weight, mask=mask)
    assert_same_bits(got[0], want[0])
    assert_same_bits(got[1], want[1])
    assert got[1].flags.writeable


def unaligned(x):
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    moved = buffer[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


def every_other(x):
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype) if x.ndim else x
    if x.ndim:
        wide[..., ::2] = x
        return wide[..., ::2]
    return wide


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "every other": every_other,
    "reversed": lambda x: np.flip(np.ascontiguousarray(np.flip(x))),
    "unaligned": unaligned,
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


@crossed(np.float64)
def test_layouts_of_memory(row, params, dtype, tmp_path):
    def mapped(x):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
        path.write_bytes(x.tobytes())
        return np.memmap(path, dtype=x.dtype, mode="r", shape=x.shape)

    for shape in data.shapes(row, params)[:1] + data.shapes(row, params)[-1:]:
        y_true, y_pred = data.inputs(row, params, shape, seed=28, dtype=dtype)
        values = reference.values_shape(row.name, params, shape)
        weight = data.weight_families(values).get("full")
        mask = data.mask_families(values).get("mask")
        loss = row.cls(**params)
        want = loss.value_and_grad(y_true, y_pred, weight, mask=mask)
        for name, lay in {**LAYOUTS, "memory map": mapped}.items():
            t, p, w, m = (None if x is None else lay(x) for x in (y_true, y_pred, weight, mask))
            np.testing.assert_array_equal(p, y_pred)
            got = loss.value_and_grad(t, p, w, mask=m)
            assert_last_digits(got[0], want[0], f"{shape}, {name}")
            assert_last_digits(np.ascontiguousarray(got[1]), want[1], f"{shape}, {name}")
            assert type(got[1]) is np.ndarray, f"{shape}, {name}: the gradient is a {type(got[1])}"
            assert_last_digits(loss(t, p, w, mask=m), want[0], f"{shape}, {name}")
        loss = row.cls(**params, reduction="none")
        repeated = np.broadcast_to(y_pred[:1], y_pred.shape)
        got = loss.value_and_grad(y_true, repeated)
        want = loss.value_and_grad(y_true, repeated.copy())
        assert_last_digits(got[0], want[0], f"{shape}, zero strides")
        assert_last_digits(got[1], want[1], f"{shape}, zero strides")


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


def targets(row, shape, random):
    """y_true that every dtype can hold: 0 and 1, one-hot rows, or the labels 0 and 1."""
    if row.labels == "index":
        return random.integers(2, size=shape[:-1])
    if row.domain == "distribution":
        return np.eye(shape[-1], dtype=int)[random.integers(shape[-1], size=shape[:-1])]
    return random.integers(2, size=shape)


@every_thorough
@every_float
def test_dtypes_of_y_true(row, dtype):
    for params in data.variants(row):
        if reference.axis_of(row.name, params) != -1 or "ignore_class" in params:
            continue
        y_true = targets(row, (5, 3), data.rng(29))
        y_pred = data.inputs(row, params, (5, 3), seed=30, dtype=dtype)[1] + dtype(0.0625)
        loss = row.cls(**params, reduction="none")
        want = loss.value_and_grad(y_true.astype(np.int64 if row.labels == "index" else dtype), y_pred)
        assert_close(want[0], reference.per_sample(row.name, y_true, y_pred, dtype=dtype, **params)[0])
        kinds = (*INTEGERS, "float16", "float32", "float64", ">i4", ">f8")
        if not (data.is_thorough(row, params) and dtype == np.float32):
            kinds = ("float64",)
        for kind in kinds:
            got = loss.value_and_grad(y_true.astype(kind), y_pred)
            assert_same_bits(got[0], want[0], f"{params}, y_true {kind}")
            assert_same_bits(got[1], want[1], f"{params}, y_true {kind}")
        got = loss.value_and_grad(y_true.tolist(), y_pred)
        assert_same_bits(got[0], want[0], f"{params}, y_true as a list")
        assert_same_bits(got[1], want[1], f"{params}, y_true as a list")


@every_thorough
def test_large_y_true_of_another_dtype(row):
    """Converted block by block, on threads too, and rounded to the compute dtype like any float64."""
    shape = data.LARGE_SHAPES[row.kind][1]
    y_true, y_pred = data.inputs(row, {}, shape, seed=31)
    y_pred = y_pred.astype(np.float32)
    want = row.cls().value_and_grad(y_true if row.labels == "index" else y_true.astype(np.float32), y_pred)
    for kind in ("int32",) if row.labels == "index" else ("float64",):
        for n in (1, 2):
            got = row.cls().value_and_grad(y_true.astype(kind), y_pred, n_threads=n)
            assert_same_bits(got[0], want[0], f"{kind}, n_threads={n}")
            assert_same_bits(got[1], want[1], f"{kind}, n_threads={n}")


@every_thorough
@every_float
def test_dtypes_of_weights_and_masks(row, dtype):
    y_true, y_pred = data.inputs(row, {}, (6, 3), seed=32, dtype=dtype)
    weight = np.array([1, 0, 1, 1, 0, 1])
    for reduction in DISTINCT:
        loss = row.cls(reduction=reduction)
        want = reference.loss(row.name, y_true, y_pred, weight, reduction=reduction, dtype=dtype)
        first = loss.value_and_grad(y_true, y_pred, weight)
        kinds = {kind: weight.astype(kind) for kind in (*INTEGERS, "float16", "float32", "float64", ">f8")}
        kinds |= {"list": weight.tolist(), "tuple": tuple(weight.tolist()), "bools": [bool(w) for w in weight]}
        for name, weights in kinds.items():
            got = loss.value_and_grad(y_true, y_pred, weights)
            assert_close(got[0], want, f"{reduction}, weights: {name}")
            assert_same_bits(got[1], first[1], f"{reduction}, weights: {name}")
        for scalar in (2, 2.0, np.float32(2), np.int8(2), np.array(2.0)):
            want = reference.loss(row.name, y_true, y_pred, 2.0, reduction=reduction, dtype=dtype)
            assert_close(loss(y_true, y_pred, scalar), want, f"{reduction}, {scalar!r}")
        assert_close(loss(y_true, y_pred, True), reference.loss(row.name, y_true, y_pred, 1.0, reduction=reduction))
        masked = loss.value_and_grad(y_true, y_pred, mask=weight.astype(bool))
        listed = loss.value_and_grad(y_true, y_pred, mask=[bool(w) for w in weight])
        assert_same_bits(listed[0], masked[0], f"{reduction}, mask as a list")
        assert_same_bits(listed[1], masked[1], f"{reduction}, mask as a list")


class OnlyArray:
    """What a pandas column is to NumPy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype=dtype)


class OnlyDLPack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@every_thorough
def test_anything_with_array_or_dlpack_and_lists(row):
    y_true, y_pred = data.inputs(row, {}, (5, 3), seed=33)
    weight, mask = np.linspace(0.5, 2.0, 5), np.array([True, True, False, True, True])
    loss = row.cls()
    want = loss.value_and_grad(y_true, y_pred, weight, mask=mask)
    for wrap in (OnlyArray, OnlyDLPack):
        got = loss.value_and_grad(wrap(y_true), wrap(y_pred), wrap(weight), mask=wrap(mask))
        assert_same_bits(got[0], want[0], wrap.__name__)
        assert_same_bits(got[1], want[1], wrap.__name__)
    value, gradient = loss.value_and_grad(y_true.tolist(), y_pred.tolist(), weight.tolist(), mask=mask.tolist())
    assert value.dtype == gradient.dtype == np.float32, "lists compute in float32"
    assert_close(value, want[0], "lists", rtol=1e-5)
    assert_close(gradient, want[1], "lists", rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------
# dtypes of results
# --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def floatx():
    before = fastloss.floatx()
    yield fastloss.set_floatx
    fastloss.set_floatx(before)


def test_floatx_is_the_dtype_of_y_pred_unless_set(floatx):
    assert fastloss.floatx() is None
    floatx("float32")
    assert fastloss.floatx() == "float32"
    floatx(None)
    assert fastloss.floatx() is None


@every_thorough
def test_dtypes_of_value_and_gradient(row, floatx):
    """(floatx, dtype=, y_pred) → (value, gradient). The gradient has a floating y_pred's dtype, always."""
    f16, f32, f64 = "float16", "float32", "float64"
    table = [
        (None, None, f32, f32, f32),
        (None, None, f64, f64, f64),
        (None, None, f16, f32, f16),  # half input: float32 value, half gradient
        (None, None, "int64", f32, f32),
        (None, f32, f64, f32, f64),
        (None, f64, f32, f64, f32),
        (None, f64, "int64", f64, f64),
        (None, f16, f32, f16, f32),  # a half-precision dtype= gives results in it
        (f32, None, f64, f32, f64),  # what Keras does
        (f64, None, f32, f64, f32),
        (f64, None, "int64", f64, f64),
        (f32, f64, f32, f64, f32),  # dtype= wins over floatx
    ]
    y_true, y_pred = data.inputs(row, {}, (5, 3), seed=34)
    whole = np.array([[1, 2, 4], [3, 1, 1], [2, 2, 5], [1, 1, 6], [5, 1, 2]])
    for default, dtype, storage, value_dtype, gradient_dtype in table:
        floatx(default)
        p = (whole if storage == "int64" else y_pred).astype(storage)
        t = y_true if row.labels == "index" else y_true.astype(f64)
        thorough = data.is_thorough(row, {})
        if not thorough and (default, dtype) != (None, None):
            continue
        for reduction in ("sum_over_batch_size", "none") if thorough else ("none",):
            label = f"floatx {default}, dtype={dtype}, y_pred {storage}, {reduction}"
            loss = row.cls(reduction=reduction, dtype=dtype)
            value, gradient = loss.value_and_grad(t, p)
            assert value.dtype == value_dtype, f"{label}: value {value.dtype}"
            assert gradient.dtype == gradient_dtype, f"{label}: gradient {gradient.dtype}"
            plain = loss(t, p)
            assert is_numpy(plain), label
            assert plain.dtype == value_dtype, label
            compute = np.float64 if value_dtype == f64 else np.float32
            want = reference.loss(row.name, t, p, reduction=reduction, dtype=compute)
            assert_close(value, want, label)
            if storage != "int64":
                slack = 2e-3 if f16 in (storage, dtype) else 1e-4 if f32 in (value_dtype, storage) else 1e-8
                want = reference.gradient(row.name, t, reference.in_dtype(p, compute), reduction=reduction)
                assert_close(gradient, want, label, rtol=slack, atol=slack * 1e-1)


# --------------------------------------------------------------------------------------------------------------
# Shapes: the rank rule, broadcasting, (N,) predictions, nothing at all
# --------------------------------------------------------------------------------------------------------------


@every_loss
def test_rank_rule(row):
    for params in data.variants(row):
        if reference.axis_of(row.name, params) != -1:
            continue
        if row.labels == "index":
            pairs = [((5, 1), (5, 3)), ((2, 3, 1), (2, 3, 4)), ((1,), (3,)), ((1, 1), (1, 3))]
        elif row.kind == "rowwise":
            pairs = [((4, 3, 1), (4, 3)), ((4, 3), (4, 3, 1))]
        else:
            pairs = [((5,), (5, 1)), ((5, 1), (5,)), ((4, 3, 1), (4, 3)), ((4, 3), (4, 3, 1)), ((1, 1), (1,))]
        for true, pred in pairs:
            base = pred if row.labels == "index" else tuple(n for n in pred if n != 1) or (1,)
            t, p = data.inputs(row, params, base, seed=35)
            t, p = t.reshape(true), p.reshape(pred)
            for reduction in DISTINCT if data.is_thorough(row, params) else ("none",):
                label = f"{params}, y_true {true}, y_pred {pred}, {reduction}"
                loss = row.cls(**params, reduction=reduction)
                want = reference.loss(row.name, t, p, reduction=reduction, **params)
                assert_close(loss(t, p), want, label)
                value, gradient = loss.value_and_grad(t, p)
                assert_last_digits(value, loss(t, p), label)
                want = reference.gradient(row.name, t, p, reduction=reduction, **params)
                assert_close(gradient, want, label, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("axis", [1, 2, -3])
def test_class_index_labels_lose_the_class_axis_wherever_it_is(axis):
    for row in LOSSES.values():
        if row.labels != "index" or "axis" not in row.cls().get_config():
            continue
        shape = [2, 3, 4, 5]
        y_true, y_pred = data.inputs(row, {"axis": axis}, tuple(shape), seed=36)
        loss = row.cls(axis=axis, reduction="none")
        want = loss.value_and_grad(y_true, y_pred)
        got = loss.value_and_grad(np.expand_dims(y_true, axis), y_pred)
        assert_same_bits(got[0], want[0])
        assert_same_bits(got[1], want[1])
        moved = row.cls(reduction="none").value_and_grad(y_true, np.ascontiguousarray(np.moveaxis(y_pred, axis, -1)))
        assert_close(want[0], moved[0])
        assert_close(want[1], np.moveaxis(moved[1], -1, axis))


@every_loss
def test_regression_broadcasts_y_true_and_only_y_true(row):
    if row.domain != "real":
        pytest.skip("only regression broadcasts: test_errors.py has the others")
    for params, dtype in itertools.product(data.variants(row), FLOATS):
        _, y_pred = data.inputs(row, params, (4, 3), seed=37, dtype=dtype)
        low = y_pred.min() - 4  # far from every kink
        for true in ((), (1,), (3,), (1, 3), (4, 1)):
            t = (low + np.arange(np.prod(true, dtype=int)) / 8).reshape(true).astype(dtype)
            loss = row.cls(**params, reduction="none")
            label = f"{params}, y_true {true}, {np.dtype(dtype)}"
            want = reference.per_sample(row.name, t, y_pred, dtype=dtype, **params)[0]
            assert_close(loss(t, y_pred), want, label)
            value, gradient = loss.value_and_grad(t, y_pred)
            want = loss.value_and_grad(np.broadcast_to(t, (4, 3)).copy(), y_pred)
            assert_last_digits(value, want[0], label)
            assert_last_digits(gradient, want[1], label)


@pytest.mark.parametrize(("row", "params"), POINTWISE)
@every_float
def test_predictions_of_rank_one_are_samples_when_something_weighs_them(row, params, dtype):
    if reference.axis_of(row.name, params) != -1:
        pytest.skip("the rule is about the last axis")
    y_true, y_pred = data.inputs(row, params, (6,), seed=38, dtype=dtype)
    weight, mask = np.array([2.0, 0.5, 1.0, 0.0, 3.0, 1.5]), np.array([True, False, True, True, True, False])
    calls = ({"sample_weight": weight}, {"mask": mask}, {"sample_weight": weight, "mask": mask})
    thorough = data.is_thorough(row, params, dtype)
    for reduction in reference.REDUCTIONS if thorough else DISTINCT[:3]:
        loss = row.cls(**params, reduction=reduction)
        for call in calls if thorough else calls[2:]:
            label = f"{reduction}, {sorted(call)}"
            got = loss.value_and_grad(y_true, y_pred, **call)
            want = loss.value_and_grad(y_true[:, None], y_pred[:, None], **call)
            assert_last_digits(got[0], want[0], label)
            assert_last_digits(got[1], want[1][:, 0], label)
            want = reference.loss(row.name, y_true, y_pred, **call, reduction=reduction, dtype=dtype, **params)
            assert_close(loss(y_true, y_pred, **call), want, label)
        # Without: one sample, one value, under every reduction; a scalar weight multiplies it.
        single = reference.per_sample(row.name, y_true, y_pred, dtype=dtype, **params)[0]
        assert single.shape == ()
        assert_close(loss(y_true, y_pred), single, f"{reduction}, alone")
        assert_close(loss(y_true, y_pred, 3.0), 3.0 * single, f"{reduction}, scalar weight")


def test_class_weight_makes_samples_of_rank_one_predictions():
    labels, y_pred = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.25, 0.75, 0.5, 0.625])
    table = {0: 0.5, 1: 4.0}
    for row in LOSSES.values():
        if row.domain != "probability":
            continue
        for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum"):
            loss = row.cls(reduction=reduction)
            want = loss(labels[:, None], y_pred[:, None], class_weight=table)
            assert_last_digits(loss(labels, y_pred, class_weight=table), want, f"{row.name}, {reduction}")


@every_loss
@every_float
def test_an_empty_batch(row, dtype):
    for params in data.variants(row):
        if reference.axis_of(row.name, params) != -1:
            continue
        for shape in ((0, 3), (0, 4, 3), (2, 0, 3)):
            y_true, y_pred = data.inputs(row, params, shape, dtype=dtype)
            for reduction in reference.REDUCTIONS:
                loss = row.cls(**params, reduction=reduction)
                label = f"{params}, {shape}, {reduction}"
                for weight in (None, 2.0, np.ones(shape[:-1])) if data.is_thorough(row, params) else (None,):
                    value, gradient = loss.value_and_grad(y_true, y_pred, weight)
                    assert gradient.shape == shape, label
                    assert gradient.dtype == dtype, label
                    assert value.dtype == dtype, label
                    assert value.shape == (shape[:-1] if reduction in (None, "none") else ()), label
                    assert np.all(value == 0), label
                    assert_same_bits(loss(y_true, y_pred, weight), value, label)


@pytest.mark.parametrize(
    "row", [param for param in ROWS if data.has_smooth_rows(param.values[0])], ids=lambda row: row.name
)
def test_any_shape(row):
    """Random ranks, sizes, variants and calls against the oracle, the gradient along a random direction."""
    thorough = data.is_thorough(row, {})
    variants = [params for params in data.variants(row) if reference.axis_of(row.name, params) == -1]
    variants = variants if thorough else variants[:1]

    @settings(
        max_examples=60 if thorough else 20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(draw=st.data())
    def check(draw):
        params = draw.draw(st.sampled_from(variants), "params")
        rank = draw.draw(st.integers(1, 4), "rank")
        sizes = st.integers(0, 5) if rank > 2 else st.one_of(st.integers(0, 5), st.integers(60, 140))
        batch = tuple(draw.draw(sizes, "size") for _ in range(rank - 1))
        smallest = 2 if row.kind == "rowwise" else 1
        last = draw.draw(st.one_of(st.integers(smallest, 40), st.integers(250, 300)), "columns")
        shape = (*batch, last)
        dtype = draw.draw(st.sampled_from(FLOATS if thorough else FLOATS[1:]), "dtype")
        y_true, y_pred = data.inputs(row, params, shape, seed=draw.draw(st.integers(0, 999), "seed"), dtype=dtype)
        _, reduction, call = draw.draw(st.sampled_from(data.crossings(row, params, shape, DISTINCT, dtype)), "call")
        loss = row.cls(**params, reduction=reduction)
        value, gradient = loss.value_and_grad(y_true, y_pred, **call)
        want = reference.loss(row.name, y_true, y_pred, **call, reduction=reduction, dtype=dtype, **params)
        assert_close(value, want)
        assert_last_digits(loss(y_true, y_pred, **call), value)
        assert gradient.shape == shape
        assert gradient.dtype == dtype
        direction = data.rng(39).uniform(-1, 1, size=shape)
        along = np.sum(gradient.astype(np.float64) * direction)
        want = reference.slope(row.name, y_true, y_pred, direction, **call, reduction=reduction, **params)
        scale = np.sum(np.abs(gradient.astype(np.float64) * direction))
        assert abs(along - want) <= scale * (1e-8 if dtype == np.float64 else 1e-5) + 1e-10 * (1 + np.abs(value).sum())

    check()


# --------------------------------------------------------------------------------------------------------------
# NaN
# --------------------------------------------------------------------------------------------------------------


@crossed(np.float32)
def test_nan_stays_in_its_sample(row, params, dtype):
    for shape in (*data.shapes(row, params), (67, 9)):
        axes = (
            reference.axes_of(row.name, params, len(shape))
            if reference.axis_of(row.name, params) == -1 or len(shape) > 2
            else ()
        )
        if not axes or len(axes) == len(shape):
            continue
        y_true, y_pred = data.inputs(row, params, shape, seed=40, dtype=dtype)
        if row.labels == "index":
            y_true.reshape(-1)[0] = 0  # not the ignored class
        loss = row.cls(**params, reduction="none")
        value, gradient = loss.value_and_grad(y_true, y_pred)
        first = (0,) * value.ndim
        of_sample = np.zeros(value.shape, bool)
        of_sample[first] = True
        wide = np.broadcast_to(np.expand_dims(of_sample, axes), shape)
        corner = (0,) * len(shape)
        for where in ("y_pred",) if row.labels == "index" else ("y_pred", "y_true"):
            t, p = y_true.copy(), y_pred.copy()
            (p if where == "y_pred" else t)[corner] = np.nan
            bad_value, bad_gradient = loss.value_and_grad(t, p)
            label = f"{shape}, NaN in {where}"
            assert np.isnan(bad_value[first]), label
            assert np.isnan(loss(t, p)[first]), label
            assert np.isnan(bad_gradient[corner]), f"{label}: its gradient is {bad_gradient[corner]}"
            assert_same_bits(bad_value[~of_sample], value[~of_sample], label)
            assert_same_bits(bad_gradient[~wide], gradient[~wide], label)
            if data.is_thorough(row, params, dtype):
                assert np.isnan(row.cls(**params)(t, p)), f"{label}: the mean hides it"


# --------------------------------------------------------------------------------------------------------------
# Objects
# --------------------------------------------------------------------------------------------------------------


@every_case
def test_configs_pickles_and_copies_are_the_same_loss(row, params):
    y_true, y_pred = data.inputs(row, params, one_shape(row, params), seed=41)
    for more in ({}, {"reduction": "sum", "name": "mine", "dtype": "float64"}, {"reduction": None}):
        loss = row.cls(**params, **more)
        config = loss.get_config()
        assert ("dtype" in config) == ("dtype" in more), "an unset dtype is left out of a config"
        for key, value in {**params, **more}.items():
            assert config[key] == value, key
        copies = {
            "from_config": row.cls.from_config(config),
            "serialize": losses.deserialize(losses.serialize(loss)),
            "get": losses.get({"class_name": row.cls.__name__, "config": config}),
            "pickle": pickle.loads(pickle.dumps(loss)),
            "deepcopy": copy.deepcopy(loss),
            "get itself": losses.get(loss),
        }
        want = loss.value_and_grad(y_true, y_pred) if loss.reduction is None else None
        for how, other in copies.items():
            assert type(other) is row.cls, how
            assert other.get_config() == config, how
            assert (other.name, other.reduction) == (loss.name, loss.reduction), how
            if want is None:
                continue
            got = other.value_and_grad(y_true, y_pred)
            assert_same_bits(got[0], want[0], how)
            assert_same_bits(got[1], want[1], how)


@every_loss
def test_identifiers(row):
    name = row.cls.__name__
    assert type(losses.get(name)) is row.cls
    assert type(losses.get(row.cls)) is row.cls
    handle = getattr(losses, row.name)
    assert losses.get(row.name) is handle
    assert losses.get(handle) is handle
    assert losses.deserialize(losses.serialize(handle)) is handle
    assert losses.serialize(row.cls())["class_name"] == name
    assert type(losses.get({"class_name": name, "config": {}})) is row.cls


def test_none_is_no_loss_and_a_callable_is_itself():
    def mine(y_true, y_pred):
        return y_pred

    assert losses.get(None) is None
    assert losses.get(mine) is mine


ALIASES = {
    "mse": "mean_squared_error",
    "MSE": "mean_squared_error",
    "mae": "mean_absolute_error",
    "MAE": "mean_absolute_error",
    "bce": "binary_crossentropy",
    "BCE": "binary_crossentropy",
    "logcosh": "log_cosh",
    "mape": "mean_absolute_percentage_error",
    "MAPE": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error",
    "MSLE": "mean_squared_logarithmic_error",
    "kld": "kl_divergence",
    "KLD": "kl_divergence",
    "kullback_leibler_divergence": "kl_divergence",
}


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases(alias):
    if not hasattr(losses, ALIASES[alias]):
        pytest.skip(f"{ALIASES[alias]} is not written yet")
    assert losses.get(alias) is getattr(losses, ALIASES[alias])


def test_a_loss_of_ones_own():
    """Overriding ``call`` is enough: ranks are the author's, weights, masks and reductions the base class's."""

    class Fourth(losses.Loss):
        def call(self, y_true, y_pred):
            return np.mean((np.asarray(y_true) - np.asarray(y_pred)) ** 4, axis=-1)

    random = data.rng(42)
    y_true, y_pred = random.normal(size=(5, 3)), random.normal(size=(5, 3))
    values = np.mean((y_true - y_pred) ** 4, axis=-1)
    for reduction, (w, weight), (m, mask) in itertools.product(
        reference.REDUCTIONS, data.weight_families((5,)).items(), data.mask_families((5,)).items()
    ):
        got = Fourth(reduction=reduction)(y_true, y_pred, weight, mask=mask)
        assert_close(got, reference.reduce(values, weight, mask, reduction), f"{reduction}, {w}, {m}")
    assert Fourth().get_config()["reduction"] == "sum_over_batch_size"


def test_squeeze_or_expand_to_same_rank_is_public():
    shapes = [(), (1,), (4,), (4, 1), (4, 3), (4, 3, 1), (4, 3, 2)]
    for one, two in itertools.product(shapes, shapes):
        x, y = np.zeros(one), np.zeros(two)
        got = losses.squeeze_or_expand_to_same_rank(x, y)
        want = reference.squeeze_or_expand_to_same_rank(x, y)
        assert [np.shape(a) for a in got] == [a.shape for a in want], f"{one} and {two}"
