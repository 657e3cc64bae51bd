"""Where derivatives jump, formulas overflow and borders decide digits: what the specification fixes, number by number.

Differences mean nothing here, so these are tables. One sample at a time, without reduction, unless a test says other.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastloss import losses
from reference import assert_close, borders

FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
INF, NAN = math.inf, math.nan


def one(loss, y_true, y_pred, dtype):
    """(value, gradient) of one sample: a scalar and a vector."""
    y_true = np.asarray(y_true, dtype) if isinstance(y_true, list) else np.asarray([y_true])
    value, gradient = loss.value_and_grad(y_true[None] if y_true.ndim == 1 else y_true, np.asarray([y_pred], dtype))
    return value[0], gradient[0]


def each(cls, **params):
    """Without reduction: one compiled kernel a loss serves every table here."""
    return cls(**params, reduction="none")


# --------------------------------------------------------------------------------------------------------------
# Regression
# --------------------------------------------------------------------------------------------------------------


@FLOATS
def test_absolute_error_has_slope_zero_where_it_is_zero(dtype):
    value, gradient = one(each(losses.MeanAbsoluteError), [1.0, 2.0, 3.0, -4.0], [1.0, 2.5, 1.0, -4.0], dtype)
    assert value == np.float32(2.5 / 4)
    np.testing.assert_array_equal(gradient, [0.0, 0.25, -0.25, 0.0])


@FLOATS
@pytest.mark.parametrize("cls", [losses.MeanSquaredError, losses.MeanAbsoluteError, losses.Huber, losses.LogCosh])
def test_no_error_is_no_loss_and_no_slope(cls, dtype):
    value, gradient = one(each(cls), [0.0, -1.5, 3.0], [0.0, -1.5, 3.0], dtype)
    assert value == 0
    assert not np.signbit(value)
    np.testing.assert_array_equal(gradient, [0.0, 0.0, 0.0])


@FLOATS
@pytest.mark.parametrize("delta", [0.5, 1.0, 4.0])
def test_huber_at_delta(delta, dtype):
    """Both branches meet in value and slope; one step inside and outside they are what they are."""
    loss = each(losses.Huber, delta=delta)
    table = [
        (0.0, 0.0, 0.0),
        (delta, delta**2 / 2, delta),
        (-delta, delta**2 / 2, -delta),
        (2 * delta, 1.5 * delta**2, delta),
        (-8 * delta, 7.5 * delta**2, -delta),
        (delta / 2, delta**2 / 8, delta / 2),
    ]
    for error, value, slope in table:
        got = one(loss, [0.0], [error], dtype)
        assert_close(got[0], value, f"error {error}")
        assert_close(got[1], [slope], f"error {error}")


@FLOATS
def test_huber_of_delta_zero_is_nothing(dtype):
    value, gradient = one(each(losses.Huber, delta=0.0), [0.0, 1.0], [3.0, 1.0], dtype)
    assert value == 0
    np.testing.assert_array_equal(gradient, [0.0, 0.0])


@FLOATS
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_log_cosh_is_even_and_does_not_cancel(dtype, sign):
    """e²/2 while e is small, |e| - log 2 far out. Keras's form gives 0 or -6e-8 for small float32 errors."""
    loss = each(losses.LogCosh)
    for size in (1e-15, 1e-8, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0, 20.0, 88.0, 100.0, 800.0, 1e4, 1e30):
        error = float(dtype(size))
        if error < 1e-3:
            want = error**2 / 2 - error**4 / 12
        elif error < 20:
            want = math.log1p(2 * math.sinh(error / 2) ** 2)
        else:
            want = error - math.log(2.0)
        got = one(loss, [0.0], [sign * error], dtype)
        rtol = 1e-6 if dtype == np.float32 else 1e-14
        assert_close(got[0], want, f"{sign * error}", rtol=rtol, atol=0.0)
        assert_close(got[1], [sign * math.tanh(error)], f"{sign * error}", rtol=rtol, atol=0.0)


@FLOATS
def test_infinite_errors(dtype):
    for cls, slope in ((losses.LogCosh, 1.0), (losses.Huber, 1.0), (losses.MeanAbsoluteError, 1.0)):
        for sign in (1.0, -1.0):
            value, gradient = one(each(cls), [0.0], [sign * INF], dtype)
            assert value == INF, cls.__name__
            assert gradient[0] == sign * slope, cls.__name__
    value, gradient = one(each(losses.MeanSquaredError), [0.0], [-INF], dtype)
    assert value == INF
    assert gradient[0] == -INF


# --------------------------------------------------------------------------------------------------------------
# Binary cross-entropy
# --------------------------------------------------------------------------------------------------------------


def test_certain_and_wrong_in_float32_is_keras_number():
    """1 - 1e-7 rounds to 0.9999999 in float32: 15.942, not the 16.118 of a clip done in float64."""
    loss = losses.BinaryCrossentropy(reduction="none")
    got = loss(np.float32([[0], [1], [1], [0]]), np.float32([[1], [0], [1], [0]]))
    assert_close(got[:2], [15.942385, 16.118095], rtol=1e-6)
    # Certain and right is one rounding of 1: 1.19e-7 by 1 - q, 1e-7 by log1p. Both are this small.
    assert_close(got[2], 1.1920930e-7, rtol=1e-5, atol=0.0)
    assert 0.9e-7 < got[3] < 1.2e-7


def test_certain_and_wrong_in_float64():
    loss = losses.BinaryCrossentropy(reduction="none")
    got = loss(np.array([[0.0], [1.0], [1.0], [0.0]]), np.array([[1.0], [0.0], [1.0], [0.0]]))
    right = -math.log(1 - 1e-7)
    assert_close(got, [-math.log(1 - (1 - 1e-7)), -math.log(1e-7), right, right], rtol=1e-9)


def test_float32_borders_follow_the_compute_dtype_not_the_input():
    wrong = np.array([[1.0]])
    assert_close(losses.BinaryCrossentropy(dtype="float32")(np.zeros((1, 1)), wrong), 15.942385, rtol=1e-6)
    got = losses.BinaryCrossentropy(dtype="float64")(np.zeros((1, 1)), wrong.astype(np.float32))
    assert_close(got, 16.11809565, rtol=1e-8)
    half = losses.BinaryCrossentropy()(np.zeros((1, 1)), wrong.astype(np.float16))
    assert half.dtype == np.float32
    assert_close(half, 15.942385, rtol=1e-6)


@FLOATS
@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
def test_gradient_on_and_beyond_the_clip_of_probabilities(dtype, label):
    """Full on the border, dead beyond it, 0 and 1 included."""
    low, high = (dtype(border) for border in borders(dtype))
    loss = each(losses.BinaryCrossentropy)
    for p in (low, high, np.nextafter(low, dtype(1)), np.nextafter(high, dtype(0))):
        want = -label / float(p) + (1 - label) / (1 - float(p))
        assert_close(one(loss, [label], [p], dtype)[1], [want], f"p = {p!r}", rtol=1e-6)
    beyond = (0.0, 1.0, -0.5, 1.5, INF, -INF, np.nextafter(low, dtype(0)), np.nextafter(high, dtype(2)))
    for p in beyond:
        value, gradient = one(loss, [label], [p], dtype)
        assert np.isfinite(value), f"p = {p!r}"
        np.testing.assert_array_equal(gradient, [0.0], err_msg=f"p = {p!r}")
    value, _, hessian = loss.value_grad_hess(np.array([[label]], dtype), np.array([[0.0]], dtype))
    assert hessian[0, 0] == 0, "what is clipped does not curve"


@FLOATS
def test_extreme_logits(dtype):
    loss = each(losses.BinaryCrossentropy, from_logits=True)
    table = [  # label, logit, value, slope
        (0.0, 0.0, math.log(2), 0.5),
        (1.0, 0.0, math.log(2), -0.5),
        (0.0, 1e4, 1e4, 1.0),
        (1.0, 1e4, 0.0, 0.0),
        (0.0, -1e4, 0.0, 0.0),
        (1.0, -1e4, 1e4, -1.0),
        (0.5, 1e4, 5e3, 0.5),
        (0.25, -1e4, 2.5e3, -0.25),
        (0.0, 1e30, 1e30, 1.0),
        (1.0, 1e30, 0.0, 0.0),
        (0.0, -INF, 0.0, 0.0),  # nothing of an infinity
        (0.0, INF, INF, 1.0),
        (1.0, -INF, INF, -1.0),
        (0.5, INF, INF, 0.5),
        (0.5, -INF, INF, -0.5),
    ]
    for label, logit, value, slope in table:
        got = one(loss, [label], [logit], dtype)
        what = f"label {label}, logit {logit}"
        assert_close(got[0], value, what, atol=0.0)
        assert_close(got[1], [slope], what, atol=0.0)
        assert_close(loss(np.array([[label]], dtype), np.array([[logit]], dtype))[0], value, what, atol=0.0)


@FLOATS
def test_logit_of_plus_infinity_and_label_one(dtype):
    """The mirror image of label 0 and -infinity: by symmetry nothing, too."""
    value, gradient = one(each(losses.BinaryCrossentropy, from_logits=True), [1.0], [INF], dtype)
    assert value == 0
    assert gradient[0] == 0


@FLOATS
def test_small_losses_of_confident_logits_keep_their_digits(dtype):
    """log1p(exp(-z)) = exp(-z) far out: not 0, not an epsilon."""
    loss = each(losses.BinaryCrossentropy, from_logits=True)
    for logit in (10.0, 20.0, 30.0, 60.0):
        value, gradient = one(loss, [1.0], [logit], dtype)
        assert_close(value, math.log1p(math.exp(-logit)), f"{logit}", atol=0.0)
        value, gradient = one(loss, [0.0], [-logit], dtype)
        assert_close(value, math.log1p(math.exp(-logit)), f"{-logit}", atol=0.0)
        assert_close(gradient, [math.exp(-logit) / (1 + math.exp(-logit))], f"{-logit}", atol=0.0)


@FLOATS
def test_smoothing_of_binary_labels(dtype):
    """t(1 - s) + s/2, all the way to s = 1, where the label does not matter."""
    for smoothing in (0.0, 0.2, 1.0):
        for label in (0.0, 1.0):
            t = label * (1 - smoothing) + smoothing / 2
            value, gradient = one(each(losses.BinaryCrossentropy, label_smoothing=smoothing), [label], [0.25], dtype)
            want = -t * math.log(0.25) - (1 - t) * math.log(0.75)
            assert_close(value, want, f"{label}, {smoothing}")
            assert_close(gradient, [-t / 0.25 + (1 - t) / 0.75], f"{label}, {smoothing}")


# --------------------------------------------------------------------------------------------------------------
# Categorical cross-entropies
# --------------------------------------------------------------------------------------------------------------

CATEGORICAL = pytest.mark.parametrize("sparse", [False, True], ids=["categorical", "sparse"])


def rowwise(sparse, y_pred, label, dtype, **params):
    """One row, its label as a class number or one-hot."""
    cls = losses.SparseCategoricalCrossentropy if sparse else losses.CategoricalCrossentropy
    y_true = np.array([label]) if sparse else np.eye(len(y_pred), dtype=dtype)[[label]]
    value, gradient = each(cls, **params).value_and_grad(y_true, np.array([y_pred], dtype))
    return value[0], gradient[0]


@FLOATS
@CATEGORICAL
def test_probabilities_are_divided_by_their_sum_and_then_clipped(dtype, sparse):
    # 1e-7 of a sum of 1e-6 is a tenth: clipping first would say otherwise.
    value, _ = rowwise(sparse, [1e-7, 9e-7], 0, dtype)
    assert_close(value, -math.log(0.1), rtol=1e-6)
    value, gradient = rowwise(sparse, [2.0, 2.0, 4.0], 2, dtype)
    assert_close(value, math.log(2.0))
    assert_close(gradient, [1 / 8, 1 / 8, 1 / 8 - 1 / 4])


@FLOATS
@CATEGORICAL
def test_clipped_probabilities_have_no_gradient(dtype, sparse):
    """[1, 0, 0]: all are beyond a border. [0.5, 0.5, 0] with the third: the only one that counts is clipped."""
    low, high = borders(dtype)
    for y_pred, label, want in (
        ([1.0, 0.0, 0.0], 0, -math.log(high)),
        ([1.0, 0.0, 0.0], 1, -math.log(low)),
        ([0.5, 0.5, 0.0], 2, -math.log(low)),
    ):
        value, gradient = rowwise(sparse, y_pred, label, dtype)
        assert_close(value, want, f"{y_pred}, {label}", rtol=1e-6, atol=0.0)
        np.testing.assert_array_equal(gradient, np.zeros(3), err_msg=f"{y_pred}, {label}")


@FLOATS
@CATEGORICAL
def test_the_sum_carries_gradient_to_a_clipped_class(dtype, sparse):
    """The third class is clipped and not the label, and yet raises the sum that the first is divided by."""
    value, gradient = rowwise(sparse, [0.5, 0.5, 0.0], 0, dtype)
    assert_close(value, math.log(2.0))
    assert_close(gradient, [-1.0, 1.0, 1.0])


@FLOATS
@CATEGORICAL
def test_a_row_of_zeros_is_nan_as_in_keras(dtype, sparse):
    cls = losses.SparseCategoricalCrossentropy if sparse else losses.CategoricalCrossentropy
    y_true = np.array([1, 0]) if sparse else np.array([[0, 1, 0], [1, 0, 0]], dtype)
    y_pred = np.array([[0, 0, 0], [0.25, 0.25, 0.5]], dtype)
    value, gradient = cls(reduction="none").value_and_grad(y_true, y_pred)
    assert np.isnan(value[0])
    assert np.isnan(gradient[0]).all()
    assert_close(value[1], math.log(4.0))
    assert_close(gradient[1], [1 - 4.0, 1.0, 1.0])


@CATEGORICAL
def test_certain_rows_in_float32(sparse):
    wrong, _ = rowwise(sparse, [1.0, 0.0], 1, np.float32)
    right, _ = rowwise(sparse, [1.0, 0.0], 0, np.float32)
    assert_close(wrong, 16.118095, rtol=1e-6)
    assert_close(right, 1.1920930e-7, rtol=1e-5, atol=0.0)


@FLOATS
@CATEGORICAL
def test_extreme_logits_of_rows(dtype, sparse):
    for y_pred, label, want, slopes in (
        ([0.0, 0.0], 0, math.log(2), [-0.5, 0.5]),
        ([1e4, 0.0], 0, 0.0, [0.0, 0.0]),
        ([1e4, 0.0], 1, 1e4, [1.0, -1.0]),
        ([-1e4, 0.0, 0.0], 0, 1e4 + math.log(2), [-1.0, 0.5, 0.5]),
        ([1e30, 1e30], 1, math.log(2), [0.5, -0.5]),
        ([-1e30, -1e30, -1e30], 1, math.log(3), [1 / 3, 1 / 3 - 1, 1 / 3]),
        ([700.0, 800.0, 900.0], 2, math.exp(-100), [math.exp(-200), math.exp(-100), -math.exp(-100)]),
    ):
        value, gradient = rowwise(sparse, y_pred, label, dtype, from_logits=True)
        assert_close(value, want, f"{y_pred}, {label}", atol=1e-30)
        assert_close(gradient, slopes, f"{y_pred}, {label}", atol=1e-7 if dtype == np.float32 else 1e-15)


@FLOATS
def test_rows_that_are_no_distributions_keep_their_weight(dtype):
    """y_true need not sum to one: from logits the slope is softmax·Σt - t."""
    loss = each(losses.CategoricalCrossentropy, from_logits=True)
    value, gradient = one(loss, [2.0, 1.0], [0.0, 0.0], dtype)
    assert_close(value, 3 * math.log(2.0))
    assert_close(gradient, [-0.5, 0.5])
    value, gradient = one(loss, [0.0, 0.0], [0.3, -0.7], dtype)
    assert value == 0
    np.testing.assert_array_equal(gradient, [0.0, 0.0])


@FLOATS
@CATEGORICAL
def test_smoothing_of_rows(dtype, sparse):
    p = np.array([0.2, 0.3, 0.5])
    for smoothing in (0.3, 1.0):
        t = np.array([0.0, 1.0, 0.0]) * (1 - smoothing) + smoothing / 3
        value, gradient = rowwise(sparse, list(p), 1, dtype, label_smoothing=smoothing)
        assert_close(value, -np.sum(t * np.log(p)), f"{smoothing}")
        assert_close(gradient, 1 - t / p, f"{smoothing}", atol=1e-6 if dtype == np.float32 else 1e-14)


@FLOATS
def test_ignored_classes_are_masks(dtype):
    y_true = np.array([0, 2, 1, 2])
    y_pred = np.array([[0.5, 0.25, 0.25], [NAN, 1, 1], [0.5, 0.25, 0.25], [0.1, INF, 0.1]], dtype)
    row = math.log(2), math.log(4)
    for reduction, want in (
        ("none", [row[0], 0.0, row[1], 0.0]),
        ("sum", sum(row)),
        ("sum_over_batch_size", sum(row) / 2),
        ("mean_with_sample_weight", sum(row) / 2),
    ):
        loss = losses.SparseCategoricalCrossentropy(ignore_class=2, reduction=reduction)
        value, gradient = loss.value_and_grad(y_true, y_pred)
        assert_close(value, want, reduction)
        assert not gradient[[1, 3]].any(), reduction
        assert gradient[[0, 2]].all(), reduction
    for ignored in (-1, 255, 7):  # a number of no class is fine as the one to ignore
        labels = np.where(y_true == 2, ignored, y_true)
        value = losses.SparseCategoricalCrossentropy(ignore_class=ignored)(labels, y_pred)
        assert_close(value, sum(row) / 2, f"{ignored}")
    everything = losses.SparseCategoricalCrossentropy(ignore_class=2).value_and_grad(np.full(4, 2), y_pred)
    assert everything[0] == 0
    assert not everything[1].any()


# --------------------------------------------------------------------------------------------------------------
# Reductions
# --------------------------------------------------------------------------------------------------------------


def test_the_quirks_of_reductions():
    """Errors 1, 2, 3 squared: values 1, 4, 9."""
    y_true, y_pred = np.zeros((3, 1)), np.array([[1.0], [2.0], [3.0]])

    def mse(reduction, weight=None, mask=None):
        return losses.MeanSquaredError(reduction=reduction)(y_true, y_pred, weight, mask=mask)

    assert mse("mean_with_sample_weight", 5.0) == 14.0  # the weights are summed before they broadcast
    assert mse("mean_with_sample_weight", [5.0, 5.0, 5.0]) == pytest.approx(14 / 3, rel=1e-15)
    assert mse("mean_with_sample_weight", 5.0, [True, True, False]) == 2.5  # scalar × mask is a weight a sample
    assert mse("mean_with_sample_weight") == pytest.approx(14 / 3, rel=1e-15)
    assert mse("sum_over_batch_size", [0.0, 0.0, 6.0]) == 18.0  # by the count, not by the weights
    assert mse("mean", [0.0, 0.0, 6.0], [True, False, True]) == 27.0  # by the valid count
    assert mse("sum", 2.0) == 28.0
    assert mse("none", [[1.0], [2.0], [3.0]]).tolist() == [[1.0], [8.0], [27.0]]  # (B, 1) weights: (B, 1) values
    assert mse("mean_with_sample_weight", [1.0, -1.0, 0.0]) == 0  # divided by zero


def test_only_masks_skip_an_infinity():
    y_true, y_pred = np.zeros((2, 1)), np.array([[1.0], [INF]])
    loss = losses.MeanSquaredError(reduction="sum")
    assert np.isnan(loss(y_true, y_pred, [1.0, 0.0])), "zero weight × infinity is NaN"
    assert loss(y_true, y_pred, mask=[True, False]) == 1.0
