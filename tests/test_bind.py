"""Losses bound to one shape: the same results, into one buffer, for one thread at a time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import data
from fastloss import losses
from fastloss.registry import LOSSES

every_loss = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in LOSSES.values()])


@every_loss
def test_a_bound_loss_answers_as_the_loss_does(row):
    loss = row.cls(reduction="sum")
    for shape in ((5, 3), (2, 3, 4)):
        y_true, y_pred = data.inputs(row, {}, shape, dtype=np.float32)
        step = loss.bind(shape)
        for _ in range(2):
            want = loss.value_and_grad(y_true, y_pred)
            value, gradient = step(y_true, y_pred)
            assert value == want[0]
            assert value.dtype == want[0].dtype
            assert gradient is step.gradient
            np.testing.assert_array_equal(gradient, want[1])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "none"])
@pytest.mark.parametrize("n_threads", [None, 1, 2])
def test_with_every_option(weighted, dtype, reduction, n_threads):
    row = LOSSES["sparse_categorical_crossentropy"]
    loss = row.cls(from_logits=True, ignore_class=2, reduction=reduction)
    y_true, y_pred = data.inputs(row, {"from_logits": True, "ignore_class": 2}, (301, 70), dtype=dtype)
    call = (np.linspace(0, 1, 301),) if weighted else ()
    step = loss.bind((301, 70), dtype, weighted=weighted, n_threads=n_threads)
    want = loss.value_and_grad(y_true, y_pred, *call)
    got = step(y_true, y_pred, *call)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_layouts_that_need_a_copy_and_targets_that_broadcast():
    loss = losses.MeanSquaredError()
    random = np.random.default_rng(0)
    y_true, y_pred = random.random((1, 4)), random.random((4, 3)).T
    step = loss.bind((3, 4), "float64", y_true_shape=(1, 4))
    value, gradient = step(y_true, y_pred)
    want = loss.value_and_grad(y_true, y_pred)
    assert value == want[0]
    np.testing.assert_array_equal(gradient, want[1])


def test_a_loss_without_a_kernel():
    class Quartic(losses.Loss):
        def call_with_grad(self, y_true, y_pred):
            e = y_pred - y_true
            return np.mean(e**4, axis=-1), 4 * e**3 / e.shape[-1]

    value, gradient = Quartic().bind((1, 2), "float64")(np.zeros((1, 2)), np.array([[1.0, 2.0]]))
    assert value == 8.5
    assert gradient.tolist() == [[2, 16]]


def test_what_was_not_bound_is_refused():
    y, p = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    step = losses.MeanSquaredError().bind((3, 2))
    for bad in (p[:2], p.astype(np.float64), p.reshape(2, 3)):
        with pytest.raises(ValueError, match=r"`y_pred` must be of shape \(3, 2\) and dtype float32"):
            step(y, bad)
        with pytest.raises(ValueError, match=r"`y_true` must be of shape \(3, 2\) and dtype float32"):
            step(bad, p)
    with pytest.raises(TypeError, match=r"`y_pred` must be a numpy.ndarray"):
        step(y, p.tolist())
    with pytest.raises(ValueError, match="`sample_weight` was not bound"):
        step(y, p, np.ones(3))
    with pytest.raises(ValueError, match="`sample_weight` must be given"):
        losses.MeanSquaredError().bind((3, 2), weighted=True)(y, p)
    with pytest.raises(ValueError, match="n_threads"):
        losses.MeanSquaredError().bind((3, 2), n_threads=0)
    assert step(y, p)[0] == 1, "none of that left it locked"
    for arguments, named in (
        ({"shape": None}, "shape"),
        ({"shape": (-1, 2)}, "shape"),
        ({"shape": 3, "dtype": None}, "dtype"),
        ({"shape": 3, "dtype": "U8"}, "dtype"),
        ({"shape": 3, "y_true_shape": ("a",)}, "y_true_shape"),
        ({"shape": 3, "y_true_dtype": complex}, "y_true_dtype"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"`{named}` must be"):
            losses.MeanSquaredError().bind(**arguments)


def test_its_own_buffer_is_no_input():
    step = losses.MeanSquaredError().bind((3, 2))
    y, p = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    gradient = step(y, p)[1]
    for view in (gradient, gradient[:], gradient.T.T):
        with pytest.raises(ValueError, match="`out` must not overlap `y_true`"):
            step(view, p)
    # Predictions in the buffer are overwritten by their gradient, as out=y_pred does.
    gradient[...] = 2
    value, slope = step(y, gradient)
    assert value == 4
    np.testing.assert_array_equal(slope, np.full((3, 2), 4 / 6, np.float32))


def test_a_bad_label_is_named_and_nothing_is_written():
    step = losses.SparseCategoricalCrossentropy(from_logits=True).bind((3, 2))
    before = step.gradient.copy()
    with pytest.raises(ValueError, match=r"y_true\[1\] is 5"):
        step(np.array([0, 5, 1]), np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(step.gradient, before)


def test_a_second_thread_is_refused():
    entered, leave = threading.Event(), threading.Event()

    class Slow(losses.Loss):
        def call_with_grad(self, y_true, y_pred):
            entered.set()
            assert leave.wait(60)
            return np.zeros(len(y_pred)), np.zeros_like(y_pred)

    step = Slow().bind((2, 1))
    y = np.zeros((2, 1), np.float32)
    worker = threading.Thread(target=step, args=(y, y))
    worker.start()
    assert entered.wait(60)
    with pytest.raises(RuntimeError, match="used by another thread"):
        step(y, y)
    leave.set()
    worker.join()
    step(y, y)
