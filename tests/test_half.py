"""Half-precision predictions: read and written as they are, computed in float32."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import data
import fastloss
import reference
from fastloss.registry import LOSSES

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for i, name in enumerate(sorted(LOSSES))
        for dtype in (HALVES if name in data.representatives().values() else [HALVES[i % 2]])
    ],
    ids=str,
)
def test_halves_agree_with_float32_of_the_same_numbers(name, dtype):
    """The value is that of the widened predictions, and the gradient is that one rounded once.

    But for a last digit: the compiler may fuse another of two products with their sum.
    """
    step = float(ml_dtypes.finfo(dtype).eps)
    row = LOSSES[name]
    thorough = name in data.representatives().values()
    for options in row.variants if thorough else row.variants[-1:]:
        for shape in ((40, 5), (7, 100)):
            y, p = data.inputs(row, options, shape, seed=3)
            half = np.asarray(p).astype(dtype)
            wide = half.astype(np.float32)
            values = reference.values_shape(name, options, shape)
            both = {
                "sample_weight": np.linspace(0.5, 2, int(np.prod(values))).astype(np.float32).reshape(values),
                "mask": (np.arange(int(np.prod(values))) % 3 != 1).reshape(values),
            }
            for call in ({}, both) if thorough else (both,):
                loss = row.cls(**options, reduction="none")
                value, grad = loss.value_and_grad(y, half, **call)
                wide_value, wide_grad = loss.value_and_grad(y, wide, **call)
                where = str((options, shape, list(call)))
                assert value.dtype == np.float32, where
                assert grad.dtype == dtype, where
                np.testing.assert_allclose(value, wide_value, rtol=5e-7, err_msg=where)
                rounded = wide_grad.astype(dtype).astype(np.float32)
                np.testing.assert_allclose(grad.astype(np.float32), rounded, rtol=step, err_msg=where)
                assert np.mean(grad.astype(np.float32) == rounded) > 0.99, where
                if thorough:
                    overwritten = half.copy()
                    value, grad = loss.value_and_grad(y, overwritten, out=overwritten, **call)
                    assert grad is overwritten, where
                    np.testing.assert_array_equal(grad, wide_grad.astype(dtype), err_msg=where)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_results_where_they_are_asked_for(dtype):
    y, p = np.zeros((3, 4)), np.full((3, 4), 1.5)
    loss = fastloss.losses.MeanSquaredError(dtype=dtype.name)
    value, grad = loss.value_and_grad(y, p)
    assert value == 2.25
    assert value.dtype == dtype
    assert grad.dtype == np.float64  # the predictions' own
    assert fastloss.losses.MeanSquaredError(dtype=dtype.name, reduction="none")(y, p).dtype == dtype
    assert loss.value_and_grad(y.tolist(), p.tolist())[1].dtype == dtype


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_special_values_of_every_kind_come_through(dtype):
    p = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 6e-8, 65504.0, -1.5]]).astype(dtype)
    grad = fastloss.losses.MeanSquaredError(reduction="sum").value_and_grad(np.zeros((1, 8)), p)[1]
    expected = (p.astype(np.float32) * np.float32(2 / 8)).astype(dtype)
    np.testing.assert_array_equal(grad.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_bit_pattern_is_read_and_written_exactly(dtype):
    """With a gradient that equals the prediction: p - 0 under a sum over rows of two, times one half of 2p."""
    bits = np.arange(65536, dtype=np.uint16)
    p = bits.view(dtype).reshape(-1, 1)
    with np.errstate(all="ignore"):
        grad = fastloss.losses.MeanSquaredError(reduction="none").value_and_grad(
            np.zeros(p.shape, np.float32), p, np.full(65536, 0.5, np.float32)
        )[1]
    nan = np.isnan(p.astype(np.float32))
    assert np.isnan(grad.astype(np.float32))[nan].all()
    with np.errstate(all="ignore"):
        exact = ~nan & (np.isinf(p) | np.isfinite(2 * p.astype(np.float32)))
    np.testing.assert_array_equal(grad[exact].view(np.uint16), p[exact].view(np.uint16))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_no_full_size_float32_copy(dtype):
    p = np.ones((4096, 1000)).astype(dtype)
    y = np.zeros(4096, np.int64)
    loss = fastloss.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss.value_and_grad(y, p)
    tracemalloc.start()
    try:
        loss.value_and_grad(y, p)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < p.nbytes + 200_000
