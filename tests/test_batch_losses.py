"""Every loss of boxes, sequences and whole batches, through what must hold for all of them.

Nothing here names a loss: a registry row and an entry of ``data.BATCH_INPUTS`` are all that a new one needs. What each
computes is checked in a file of its own. A loss gives one value a sample, or one a batch; and samples may depend on one
another. The tests find out which, by looking at the values.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest

import data
import reference
from fastloss import losses
from fastloss.registry import BATCH_LOSSES, LOSSES
from reference import assert_close, assert_last_digits, assert_same_bits

SMALL, LARGE = 7, 301
FLOATS = [pytest.param(dtype, id=np.dtype(dtype).name) for dtype in (np.float32, np.float64)]
HALVES = [pytest.param(np.dtype(dtype), id=np.dtype(dtype).name) for dtype in (np.float16, ml_dtypes.bfloat16)]

CASES = [
    pytest.param(row, options, id=f"{row.name}-{','.join(f'{k}={v}' for k, v in options.items()) or 'default'}")
    for row in BATCH_LOSSES.values()
    for options in row.variants
]
every_case = pytest.mark.parametrize(("row", "options"), CASES)
every_loss = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in BATCH_LOSSES.values()])


def unreduced(row, options, **more):
    return row.cls(**{**options, "reduction": "none", **more})


def rows_of_gradients(loss, y_true, y_pred, values):
    """The gradient of each of the values: one flow of 1 at a time."""
    result = np.empty((values.size, *y_pred.shape))
    for i in range(values.size):
        upstream = np.zeros(values.shape)
        upstream.reshape(-1)[i] = 1
        result[i] = loss.value_and_grad(y_true, y_pred, upstream=upstream)[1]
    return result


def is_one_a_sample(row, options):
    """Whether each value is of one sample, and only of that one."""
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=1)
    loss = unreduced(row, options)
    values = loss(y_true, y_pred)
    if values.ndim == 0 or len(values) != len(y_pred):
        return False
    other = y_pred.copy()
    other[0] = y_pred[-1]
    return bool((loss(y_true, other)[1:] == values[1:]).all())


# --------------------------------------------------------------------------------------------------------------
# The table itself
# --------------------------------------------------------------------------------------------------------------


def test_every_row_has_inputs_and_a_class():
    assert BATCH_LOSSES, "the registry is empty"
    for name, row in BATCH_LOSSES.items():
        assert name == row.name
        assert name not in LOSSES
        assert name in data.BATCH_INPUTS, f"{name}: tests/data.py has no BATCH_INPUTS for it"
        assert getattr(losses, row.cls.__name__) is row.cls
        assert row.variants, f"{name}: no variant to test"
        if row.function is not None:
            assert getattr(losses, name) is row.function
            assert row.function.__name__ == name


@every_case
def test_inputs_are_seeded_and_of_the_size_that_was_asked_for(row, options):
    for size in (SMALL, LARGE):
        one, two = data.batch_inputs(row, options, size), data.batch_inputs(row, options, size)
        for a, b in zip(one, two, strict=True):
            assert_same_bits(a, b)
        assert len(one[1]) == size
        value, gradient = row.cls(**options).value_and_grad(*one)
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()
        assert gradient.any(), "a gradient of zeros tests nothing"


# --------------------------------------------------------------------------------------------------------------
# Values and gradients
# --------------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", FLOATS)
def test_fused_is_separate(row, options, dtype):
    for size in (SMALL, LARGE):
        y_true, y_pred = data.batch_inputs(row, options, size, seed=2, dtype=dtype)
        for reduction in ("none", "mean"):
            loss = row.cls(**{**options, "reduction": reduction})
            value, gradient = loss.value_and_grad(y_true, y_pred)
            assert isinstance(value, np.generic | np.ndarray)
            assert type(gradient) is np.ndarray
            assert value.dtype == gradient.dtype == dtype
            assert gradient.shape == y_pred.shape
            assert_last_digits(value, loss(y_true, y_pred), f"size {size}, {reduction}", ulps=8)


@every_case
def test_gradient_is_the_difference(row, options):
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=3)
    loss = unreduced(row, options)
    value = loss(y_true, y_pred)
    for upstream in (None, data.rng(4).uniform(0.5, 2.0, size=value.shape)):

        def scalar(p, upstream=upstream):
            return float(np.sum(loss(y_true, p) if upstream is None else upstream * loss(y_true, p)))

        want = reference.difference(scalar, y_pred, 3e-4)
        _, gradient = loss.value_and_grad(y_true, y_pred, upstream=upstream)
        assert_close(gradient, want, rtol=1e-8, atol=1e-8 * max(1.0, np.abs(want).max()))


@every_case
def test_reductions_weights_masks_and_upstream(row, options):
    """Value and gradient of every combination, from the unreduced values and the gradient of each of them."""
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=5)
    loss = unreduced(row, options)
    values = loss(y_true, y_pred).astype(np.float64)
    each = rows_of_gradients(loss, y_true, y_pred, values)
    counted = data.BATCH_COUNTED[row.name](values) if row.name in data.BATCH_COUNTED else None
    weights = {**data.weight_families(values.shape), "negative": -0.5}
    masks = data.mask_families(values.shape)
    if values.shape == ():
        masks.update({"kept": True, "dropped": False})
    random = data.rng(6)
    for (w, weight), (m, mask), reduction in itertools.product(weights.items(), masks.items(), reference.REDUCTIONS):
        kept = mask
        if counted is not None:
            kept = counted if mask is None else mask & counted.reshape(mask.shape)
        want = reference.reduce(values, weight, kept, reduction)
        changed = row.cls(**{**options, "reduction": reduction})
        where = f"reduction={reduction}, weight: {w}, mask: {m}"
        assert_close(changed(y_true, y_pred, weight, mask=mask), want, where)
        for upstream in (None, random.uniform(0.5, 2.0, np.shape(want))):
            value, gradient = changed.value_and_grad(y_true, y_pred, weight, mask=mask, upstream=upstream)
            assert_close(value, want, where)
            total = np.zeros(y_pred.shape)
            for i in range(values.size):
                unit = np.zeros(values.shape)
                unit.reshape(-1)[i] = 1  # reductions are linear in the values
                share = reference.reduce(unit, weight, kept, reduction)
                total += each[i] * np.sum(share if upstream is None else upstream * share)
            assert_close(gradient, total, where, rtol=1e-11, atol=1e-13 * max(1.0, np.abs(each).max()))


@every_case
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_number_of_threads_gives_the_same_bits(row, options, dtype):
    for size in (1, SMALL, LARGE) if is_one_a_sample(row, options) else (SMALL, LARGE):
        y_true, y_pred = data.batch_inputs(row, options, size, seed=7, dtype=dtype)
        for reduction in ("none", "sum_over_batch_size"):
            loss = row.cls(**{**options, "reduction": reduction})
            value, gradient = loss.value_and_grad(y_true, y_pred, n_threads=1)
            plain = loss(y_true, y_pred, n_threads=1)
            for n_threads in (2, None):
                where = f"size {size}, {reduction}, n_threads={n_threads}"
                again = loss.value_and_grad(y_true, y_pred, n_threads=n_threads)
                assert_same_bits(again[0], value, where)
                assert_same_bits(again[1], gradient, where)
                assert_same_bits(loss(y_true, y_pred, n_threads=n_threads), plain, where)


@every_case
def test_float32_is_close_to_float64(row, options):
    for size in (SMALL, LARGE):
        results = []
        for dtype in (np.float32, np.float64):
            y_true, y_pred = data.batch_inputs(row, options, size, seed=8, dtype=dtype)
            results.append(unreduced(row, options).value_and_grad(y_true, y_pred))
        (value, gradient), (want, want_gradient) = results
        assert_close(value, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
        assert_close(gradient, want_gradient, rtol=1e-3, atol=1e-4 * np.abs(want_gradient).max())


@every_case
@pytest.mark.parametrize("dtype", HALVES)
def test_half_predictions(row, options, dtype):
    """They are widened, exactly; the gradient is that of float32, rounded once."""
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=9, dtype=np.float32)
    half = y_pred.astype(dtype)
    wide = half.astype(np.float32)
    loss = row.cls(**options)
    value, gradient = loss.value_and_grad(y_true, half)
    want = loss.value_and_grad(y_true, wide)
    assert gradient.dtype == dtype
    assert_same_bits(value, want[0])
    assert_same_bits(gradient.view(np.uint16), want[1].astype(dtype).view(np.uint16))
    _, written = loss.value_and_grad(y_true, half, out=half)
    assert written is half
    assert_same_bits(half.view(np.uint16), gradient.view(np.uint16))
    in_half = row.cls(**{**options, "dtype": dtype.name})(y_true, wide)
    assert in_half.dtype == dtype
    assert float(in_half.reshape(-1)[0]) == float(np.reshape(want[0], -1)[0].astype(dtype))


# --------------------------------------------------------------------------------------------------------------
# Memory
# --------------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", FLOATS)
def test_out_takes_the_gradient(row, options, dtype):
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=10, dtype=dtype)
    loss = row.cls(**options)
    want = loss.value_and_grad(y_true, y_pred)
    buffers = {
        "an array": np.full(y_pred.shape, np.nan, dtype),
        "Fortran order": np.full(y_pred.shape, np.nan, dtype, order="F"),
        "every other": np.full((*y_pred.shape[:-1], 2 * y_pred.shape[-1]), np.nan, dtype)[..., ::2],
        "y_pred": y_pred.copy(),
    }
    for what, out in buffers.items():
        value, gradient = loss.value_and_grad(y_true, out if what == "y_pred" else y_pred, out=out)
        assert gradient is out, what
        assert_same_bits(value, want[0], what)
        assert_same_bits(np.ascontiguousarray(out), want[1], what)
    for bad in (np.empty(y_pred.shape, np.float16), np.empty((1, *y_pred.shape), dtype), frozen(y_pred)):
        with pytest.raises(ValueError, match=r"^`out` must "):
            loss.value_and_grad(y_true, y_pred, out=bad)


def frozen(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@every_case
@pytest.mark.parametrize("dtype", FLOATS)
def test_inputs_are_left_alone_whatever_their_memory(row, options, dtype):
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=11, dtype=dtype)
    loss = row.cls(**options)
    want = loss.value_and_grad(y_true, y_pred)
    layouts = {
        "as it is": lambda x: x.copy(),
        "read-only": frozen,
        "Fortran order": lambda x: np.asfortranarray(x.copy()),
        "negative strides": lambda x: np.flip(np.flip(x).copy()),
        "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    }
    for (one, left), (two, right) in itertools.product(layouts.items(), layouts.items()):
        y, p = left(y_true), right(y_pred)
        value, gradient = loss.value_and_grad(y, p)
        where = f"y_true {one}, y_pred {two}"
        # BLAS may add in another order where memory lies in another.
        assert_close(value, want[0], where, rtol=1e-12 if dtype == np.float64 else 1e-5)
        scale = np.abs(want[1]).max()
        rtol = 1e-11 if dtype == np.float64 else 1e-4
        assert_close(gradient, want[1], where, rtol=rtol, atol=rtol * scale)
        loss(y, p)
        assert_same_bits(np.ascontiguousarray(y), y_true.astype(y.dtype), where)
        assert_same_bits(np.ascontiguousarray(p), y_pred.astype(p.dtype), where)


@every_case
def test_lists_are_float32(row, options):
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=12, dtype=np.float32)
    loss = row.cls(**options)
    want = loss.value_and_grad(y_true, y_pred)
    value, gradient = loss.value_and_grad(y_true.tolist(), y_pred.tolist())
    assert value.dtype == gradient.dtype == np.float32
    assert_last_digits(value, want[0])
    assert_close(gradient, want[1], rtol=1e-6, atol=1e-6 * np.abs(want[1]).max())


# --------------------------------------------------------------------------------------------------------------
# Samples
# --------------------------------------------------------------------------------------------------------------


@every_case
def test_a_mask_drops_samples_that_are_not_numbers(row, options):
    if not is_one_a_sample(row, options):
        y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=13)
        y_pred[...] = np.nan
        shape = np.shape(unreduced(row, options)(y_true, y_pred))
        value, gradient = row.cls(**options).value_and_grad(y_true, y_pred, mask=np.zeros(shape, bool))
        assert not np.any(value), "nothing is left, but it has a loss"
        assert not gradient.any()
        return
    for size in (SMALL, LARGE):
        y_true, y_pred = data.batch_inputs(row, options, size, seed=13)
        kept = np.arange(size) % 3 > 0
        bad = y_pred.copy()
        bad[~kept] = np.nan
        for reduction in ("none", "mean", "sum", "mean_with_sample_weight"):
            loss = row.cls(**{**options, "reduction": reduction})
            want_value, want_gradient = loss.value_and_grad(y_true[kept], y_pred[kept])
            value, gradient = loss.value_and_grad(y_true, bad, mask=kept)
            where = f"size {size}, {reduction}"
            assert_close(loss(y_true, bad, mask=kept), value, where)
            if reduction == "none":
                assert not value[~kept].any(), where
                value = value[kept]
            assert_close(value, want_value, where)
            assert not gradient[~kept].any(), where
            assert_close(gradient[kept], want_gradient, where)
            assert not np.any(loss(y_true, bad, mask=np.zeros(size, bool))), where


@every_case
def test_nan_stays_in_its_sample(row, options):
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=14)
    loss = unreduced(row, options)
    want = loss.value_and_grad(y_true, y_pred)
    bad = y_pred.copy()
    bad[2] = np.nan
    value, gradient = loss.value_and_grad(y_true, bad)
    if not is_one_a_sample(row, options):
        assert np.isnan(value).any(), "a batch with NaN has a loss"
        return
    others = np.arange(SMALL) != 2
    assert np.isnan(value[2]).all()
    assert np.isnan(loss(y_true, bad)[2]).all()
    assert np.isnan(gradient[2]).any()
    assert_same_bits(value[others], want[0][others])
    assert_same_bits(gradient[others], want[1][others])


# --------------------------------------------------------------------------------------------------------------
# Objects
# --------------------------------------------------------------------------------------------------------------


@every_case
def test_configs_pickles_and_copies_are_the_same_loss(row, options):
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=15)
    for more in ({}, {"reduction": "sum", "name": "mine", "dtype": "float64"}, {"reduction": None}):
        loss = row.cls(**{**options, **more})
        for used in (False, True):
            config = loss.get_config()
            assert ("dtype" in config) == ("dtype" in more), "an unset dtype is left out of a config"
            for key, value in {**options, **more}.items():
                assert config[key] == value, key
            copies = {
                "from_config": row.cls.from_config(config),
                "serialize": losses.deserialize(losses.serialize(loss)),
                "get": losses.get({"class_name": row.cls.__name__, "config": config}),
                "pickle": pickle.loads(pickle.dumps(loss)),
                "deepcopy": copy.deepcopy(loss),
            }
            want = loss.value_and_grad(y_true, y_pred)
            for how, other in copies.items():
                assert type(other) is row.cls, how
                assert other.get_config() == config, how
                got = other.value_and_grad(y_true, y_pred)
                assert_same_bits(got[0], want[0], f"{how}, used: {used}")
                assert_same_bits(got[1], want[1], f"{how}, used: {used}")


@every_loss
def test_identifiers(row):
    options, name = row.variants[0], row.cls.__name__
    assert type(losses.get({"class_name": name, "config": options})) is row.cls
    assert losses.serialize(row.cls(**options))["class_name"] == name
    required = {
        parameter.name
        for parameter in inspect.signature(row.cls).parameters.values()
        if parameter.default is inspect.Parameter.empty
    }
    if required:
        with pytest.raises(TypeError, match="|".join(required)):
            losses.get(name)
    else:
        assert type(losses.get(name)) is row.cls
    if row.function is None:
        with pytest.raises(ValueError, match=r"^Could not interpret loss identifier"):
            losses.get(row.name)
    else:
        assert losses.get(row.name) is row.function
        assert losses.deserialize(losses.serialize(row.function)) is row.function


@every_case
def test_handle_is_the_class_without_reduction(row, options):
    if row.function is None:
        assert not hasattr(losses, row.name)
        return
    missing = set(options) - set(inspect.signature(row.function).parameters)
    assert not missing, f"{row.name}() does not take {sorted(missing)}"
    for dtype in (np.float32, np.float64):
        y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=16, dtype=dtype)
        got = row.function(y_true, y_pred, **options)
        assert got.dtype == dtype
        assert_same_bits(got, unreduced(row, options)(y_true, y_pred))


@every_loss
def test_options_are_read_only(row):
    loss = row.cls(**row.variants[0])
    for option in {"dtype", "reduction", *loss.get_config()} - {"name"}:
        with pytest.raises(AttributeError):
            setattr(loss, option, None)


@every_loss
def test_errors_of_every_loss(row):
    options = row.variants[0]
    y_true, y_pred = data.batch_inputs(row, options, SMALL, seed=17)
    with pytest.raises(ValueError, match=r"^Invalid value for argument `reduction`.*'average'"):
        row.cls(**{**options, "reduction": "average"})
    with pytest.raises(TypeError, match=r"`dtype`.*int32"):
        row.cls(**{**options, "dtype": "int32"})
    loss = unreduced(row, options)
    shape = np.shape(loss(y_true, y_pred))
    for call in (loss, loss.value_and_grad):
        with pytest.raises(ValueError, match=r"n_threads.*0"):
            call(y_true, y_pred, n_threads=0)
        with pytest.raises(TypeError, match=r"y_pred.*complex"):
            call(y_true, y_pred.astype(complex))
        with pytest.raises(TypeError, match=r"y_true.*mask"):
            call(np.ma.masked_array(y_true), y_pred)
        with pytest.raises(ValueError, match=r"sample_weight"):
            call(y_true, y_pred, np.ones((SMALL + 1, 1, 1, 1, 2)))
        with pytest.raises(TypeError, match=r"mask.*float"):
            call(y_true, y_pred, mask=np.ones(shape))
    with pytest.raises(ValueError, match=r"`upstream` must have the shape of the value"):
        loss.value_and_grad(y_true, y_pred, upstream=np.ones((*shape, 2)))
    with pytest.raises(NotImplementedError, match=f"{row.cls.__name__} has no diagonal Hessian"):
        loss.value_grad_hess(y_true, y_pred)
