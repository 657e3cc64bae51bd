"""CTC: against all alignments, recursion in log space, differences, PyTorch, optax and Keras; and every rule of a call.

The oracle is `states_oracle`: log space, one frame after the other, as in the paper. It is itself held against the sum
over all alignments where these can be counted.
"""

from __future__ import annotations

import itertools
import os
import threading
import tracemalloc
import warnings

import llvmlite.binding as llvm
import ml_dtypes
import mpmath
import numpy as np
import pytest

import fastloss
from fastloss import kernels, losses
from fastloss.engine import items
from fastloss.engine.toolbox import Toolbox
from fastloss.kernels import sequence
from fastloss.losses import CTC, ctc
from fastloss.registry import BATCH_LOSSES
from reference import assert_same_bits

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None)


def log_softmax(z):
    z = np.asarray(z, float)
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def alignments_oracle(labels, z, blank=0):
    """Loss and gradient of one sequence, from all alignments; no label may be the blank."""
    frames, classes = z.shape
    logq = log_softmax(z)
    total, occupancy = 0.0, np.zeros(z.shape)
    for path in itertools.product(range(classes), repeat=frames):
        if [c for c, _ in itertools.groupby(path) if c != blank] == list(labels):
            p = np.exp(sum(logq[t, c] for t, c in enumerate(path)))
            total += p
            occupancy[np.arange(frames), list(path)] += p
    if total == 0:
        return np.inf, np.zeros(z.shape)
    return -np.log(total), np.exp(logq) - occupancy / total


def states_oracle(labels, z, blank=0):
    """Loss and gradient of one sequence by forward and backward recursion in log space."""
    frames, labels = len(z), np.asarray(labels, int)
    if not frames:
        return (np.inf if labels.size else 0.0), np.zeros(z.shape)
    states = np.full(2 * labels.size + 1, blank)
    states[1::2] = labels
    skip = np.full(states.size, -np.inf)
    skip[3::2] = np.where(labels[1:] != labels[:-1], 0, -np.inf)
    mirrored = np.full(states.size, -np.inf)
    mirrored[3::2] = skip[3::2][::-1]
    logq = log_softmax(z)

    def recursion(logq, states, skip):
        table = np.full((frames, states.size), -np.inf)
        table[0, :2] = logq[0, states[:2]]
        for t in range(1, frames):
            stay, step, leap = table[t - 1], np.roll(table[t - 1], 1), np.roll(table[t - 1], 2) + skip
            step[0] = -np.inf
            table[t] = np.logaddexp(np.logaddexp(stay, step), leap) + logq[t, states]
        return table

    forward = recursion(logq, states, skip)
    backward = recursion(logq[::-1], states[::-1], mirrored)[::-1, ::-1]
    total = np.logaddexp.reduce(forward[-1, -2:])
    if total == -np.inf:
        return np.inf, np.zeros(z.shape)
    gradient = np.exp(logq)
    for s, c in enumerate(states):
        gradient[:, c] -= np.exp(forward[:, s] + backward[:, s] - logq[:, c] - total)
    return -total, gradient


def oracle(y, z, steps=None, counts=None, blank=0, zero_infinity=False):
    """Losses and gradients of a batch."""
    y, z = np.asarray(y), np.asarray(z, float)
    values, gradient = np.zeros(len(z)), np.zeros(z.shape)
    for i in range(len(z)):
        frames = z.shape[1] if steps is None else steps[i]
        count = np.count_nonzero(y[i] != blank) if counts is None else counts[i]
        values[i], gradient[i, :frames] = states_oracle(y[i, :count], z[i, :frames], blank)
    return np.where(np.isinf(values) & zero_infinity, 0, values), gradient


def problem(seed=0, batch=5, frames=12, classes=4, columns=4, scale=2.0, dtype=np.float64):
    """Labels, logits and lengths; feasible with almost twice as many frames as columns."""
    random = np.random.default_rng(seed)
    z = (scale * random.normal(size=(batch, frames, classes))).astype(dtype)
    y = random.integers(1, classes, size=(batch, columns))
    steps = random.integers(min(2 * columns - 1, frames), frames + 1, size=batch)
    counts = random.integers(0, columns + 1, size=batch)
    counts[0] = columns
    return y, z, steps, counts


def value_and_grad(y, z, steps=None, counts=None, n_threads=None, **options):
    loss = CTC(reduction="none", **options)
    return loss.value_and_grad(y, z, input_lengths=steps, label_lengths=counts, n_threads=n_threads)


# ---- the mathematics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [0, 1, 2])
def test_all_alignments(blank):
    random = np.random.default_rng(1)
    others = [c for c in range(3) if c != blank]
    for frames in range(1, 6):
        z = random.normal(size=(1, frames, 3)) * 2
        for count in range(4):
            for labels in itertools.product(others, repeat=count):
                want = alignments_oracle(labels, z[0], blank)
                y = np.array(labels, int).reshape(1, count)
                for got in (value_and_grad(y, z, blank=blank), oracle(y, z, blank=blank)):
                    np.testing.assert_allclose(got[0][0], want[0], rtol=1e-13, atol=1e-14)
                    np.testing.assert_allclose(got[1][0], want[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0])
def test_recursion_in_log_space(blank, scale):
    """Widths around a block's, few frames to spare or many, labels equal to the blank, and to their neighbours."""
    random = np.random.default_rng(2)
    for columns, frames in ((1, 3), (6, 6), (7, 9), (8, 8), (9, 30), (15, 16), (16, 23), (17, 41)):
        y = random.integers(0, 5, size=(3, columns))
        z = scale * random.normal(size=(3, frames, 5))
        counts, steps = np.array([columns, columns, columns // 2]), np.array([frames, frames - 1, frames - 2])
        want = oracle(y, z, steps, counts, blank)
        got = value_and_grad(y, z, steps, counts, blank=blank)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-13)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-11, atol=1e-12)
        np.testing.assert_array_equal(ctc(y, z, steps, counts, blank=blank), got[0])


def test_gradient_by_differences():
    y, z, steps, counts = problem(3)
    gradient = value_and_grad(y, z, steps, counts)[1]
    h = 1e-3
    for place in itertools.product(range(2), range(z.shape[1]), range(z.shape[2])):
        step = np.zeros(z.shape)
        step[place] = h
        near, far = (
            ctc(y, z + k * step, steps, counts)[place[0]] - ctc(y, z - k * step, steps, counts)[place[0]]
            for k in (1, 2)
        )
        np.testing.assert_allclose(gradient[place], (8 * near - far) / (12 * h), rtol=1e-8, atol=1e-10)


def test_the_figure_of_keras():
    z = (np.arange(24, dtype="float32").reshape(2, 4, 3) - 12) / 100
    y = np.array([[1, 2, 1, 0], [1, 2, 0, 2]])
    assert CTC()(y, z) == pytest.approx(2.448645, abs=1e-6)


def test_length_is_the_number_of_entries_other_than_blank_and_labels_are_the_leading_ones():
    z = problem(4)[1][:2]
    y = np.array([[0, 3, 0, 2], [2, 0, 1, 0]])
    np.testing.assert_array_equal(ctc(y, z), ctc(y[:, :2], z, label_lengths=[2, 2]))
    y = np.array([[3, 1, 3, 2], [2, 3, 1, 3]])
    np.testing.assert_array_equal(ctc(y, z, blank=3), ctc(y[:, :2], z, label_lengths=[2, 2], blank=3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_sequences(dtype):
    """Thousands of labels, in float32 as good as in float64: neither underflow nor log space's rounding."""
    random = np.random.default_rng(5)
    for frames, columns in ((2000, 1000), (2000, 60), (1001, 1000)):
        for scale in (0.0, 1.0, 10.0):
            z = (scale * random.normal(size=(1, frames, 20))).astype(dtype)
            y = np.cumsum(random.integers(1, 18, size=(1, columns)), axis=1) % 19 + 1  # neighbours differ
            value, gradient = value_and_grad(y, z)
            want, slope = value_and_grad(y, z.astype(np.float64))
            np.testing.assert_allclose(value, want, rtol=2e-7)
            np.testing.assert_allclose(gradient, slope, atol=1e-5)
            np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-5 if dtype == np.float32 else 1e-11)
            assert np.isfinite(want)
            assert want > frames / 10
            np.testing.assert_array_equal(ctc(y, z), value)


def test_equal_logits_count_the_alignments():
    """All logits equal: Z is a number of paths, here known exactly: distinct labels, C(T + L, 2L) alignments."""
    for frames, columns in ((2000, 200), (4000, 200), (500, 500)):
        y = np.arange(columns)[None] + 1
        z = np.zeros((1, frames, columns + 1))
        want = frames * mpmath.log(columns + 1) - mpmath.log(mpmath.binomial(frames + columns, 2 * columns))
        for dtype, rtol in ((np.float32, 1e-6), (np.float64, 1e-13)):
            np.testing.assert_allclose(ctc(y, z.astype(dtype)), float(want), rtol=rtol)


def test_certain_sequences():
    """The loss of what is certain is 0 and never less, and its gradient is 0."""
    path = np.array([0, 1, 1, 0, 2, 0, 2, 3])
    for dtype in (np.float32, np.float64):
        value, gradient = value_and_grad([[1, 2, 2, 3]], 1000 * np.eye(4, dtype=dtype)[None, path])
        assert value[0] == 0
        assert not gradient.any()
    values = ctc([[1, 2, 2, 3]] * 50, (np.eye(4)[None, path] * np.linspace(5, 20, 50)[:, None, None]).astype("f4"))
    assert (values >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits(dtype):
    """Far below what the dtype's exponential can hold, and one class ruled out by -inf."""
    big = dtype(1e30)
    z = np.zeros((4, 3, 3), dtype)
    z[0, 1] = [big, -big, 0]
    z[1, :, 1] = -1e4
    z[2, 1] = [-np.inf, -np.inf, 0]
    z[3, :, 2] = -np.inf
    value, gradient = value_and_grad([[1, 2]] * 4, z)
    # 1: label 1 in one frame, the other classes being equally likely in the rest.
    np.testing.assert_allclose(value[[0, 3]], [np.log(9), np.inf], rtol=1e-6)
    np.testing.assert_allclose(value[1], 1e4 + 3 * np.log(2) - np.log(4), rtol=1e-6)
    np.testing.assert_allclose(value[2], states_oracle([1, 2], np.where(np.isinf(z[2]), -800, z[2]))[0], rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[3].any()
    # A loss of 1e30 is one, too.
    z = np.zeros((1, 2, 3), dtype)
    z[0, :, 1:] = [[-big, -2 * big], [-2 * big, -big]]
    np.testing.assert_allclose(ctc([[1, 2]], z), 2 * big, rtol=1e-6)


# ---- peers ----------------------------------------------------------------------------------------------------------


def test_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    random = np.random.default_rng(6)
    for batch, frames, classes, columns in ((4, 12, 5, 5), (3, 60, 7, 25), (6, 40, 3, 19), (2, 500, 9, 150)):
        for blank, scale in ((0, 1.0), (2, 5.0)):
            z = scale * random.normal(size=(batch, frames, classes))
            y = random.integers(0, classes - 1, size=(batch, columns))
            y += y >= blank
            steps = random.integers(frames // 2, frames + 1, size=batch)
            counts = random.integers(0, columns + 1, size=batch)
            counts[0] = 0
            for zero_infinity in (False, True):
                p = torch.tensor(z, requires_grad=True)
                logq = torch.log_softmax(p, -1).transpose(0, 1)
                lengths = torch.tensor(steps), torch.tensor(counts)
                want = torch.nn.functional.ctc_loss(
                    logq, torch.tensor(y), *lengths, blank=blank, reduction="none", zero_infinity=zero_infinity
                )
                want.sum().backward()
                value, gradient = value_and_grad(y, z, steps, counts, blank=blank, zero_infinity=zero_infinity)
                np.testing.assert_allclose(value, want.detach().numpy(), rtol=1e-12)
                # An infinite loss has a NaN gradient there, 0 here.
                finite = np.isfinite(value)
                np.testing.assert_allclose(gradient[finite], p.grad.numpy()[finite], rtol=1e-10, atol=1e-12)
                assert not gradient[~finite].any()


@pytest.fixture
def jax():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    module = pytest.importorskip("jax", reason="JAX is not installed: no autodiff to compare with")
    module.config.update("jax_enable_x64", True)
    return module


def test_optax(jax):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optax = pytest.importorskip("optax", reason="optax is not installed: nothing to compare with")
    y, z, steps, counts = problem(7, frames=20, columns=6)

    def peer(p):
        return optax.ctc_loss(
            p,
            jax.numpy.asarray(np.arange(z.shape[1]) >= steps[:, None], float),
            jax.numpy.asarray(y),
            jax.numpy.asarray(np.arange(y.shape[1]) >= counts[:, None], float),
            blank_id=0,
        )

    value, gradient = value_and_grad(y, z, steps, counts)
    np.testing.assert_allclose(value, peer(jax.numpy.asarray(z)), rtol=1e-12)
    want = jax.grad(lambda p: peer(p).sum())(jax.numpy.asarray(z))
    np.testing.assert_allclose(gradient, want, rtol=1e-10, atol=1e-12)


def test_keras(jax):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras is not installed: nothing to compare with")
    if keras.backend.backend() != "jax":
        pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX: KERAS_BACKEND=jax enables this test")
    y, z, _, _ = problem(8, columns=5, frames=13, dtype=np.float32)
    y[1, 3:] = 0
    y[2] = [2, 0, 0, 3, 1]  # three labels, two of them the blank's class
    y[3] = 0

    def peer(p):
        return keras.losses.CTC(reduction="sum")(jax.numpy.asarray(y), p)

    np.testing.assert_allclose(ctc(y, z), keras.losses.ctc(y, jax.numpy.asarray(z)), rtol=1e-5)
    value, gradient = CTC(reduction="sum").value_and_grad(y, z)
    np.testing.assert_allclose(value, peer(jax.numpy.asarray(z)), rtol=1e-5)
    np.testing.assert_allclose(gradient, jax.grad(peer)(jax.numpy.asarray(z)), atol=1e-5)


# ---- degenerate inputs ----------------------------------------------------------------------------------------------


def test_empty_batch():
    y, z = np.zeros((0, 3), int), np.zeros((0, 4, 5))
    for reduction in REDUCTIONS:
        value, gradient = CTC(reduction=reduction).value_and_grad(y, z)
        assert value.shape == (() if reduction not in ("none", None) else (0,))
        assert not np.any(value)
        assert gradient.shape == z.shape


def test_empty_targets_and_no_frames():
    z = problem(9)[1]
    value, gradient = value_and_grad(np.zeros((5, 0), int), z)
    np.testing.assert_allclose(value, -log_softmax(z)[:, :, 0].sum(1), rtol=1e-13)
    np.testing.assert_allclose(gradient, np.exp(log_softmax(z)) - np.eye(4)[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(ctc(np.zeros((5, 3), int), z), value)
    np.testing.assert_array_equal(ctc(np.ones((5, 3), int), z, label_lengths=[0] * 5), value)
    np.testing.assert_array_equal(ctc([[0, 0], [1, 0]], np.zeros((2, 0, 2))), [0, np.inf])
    value, gradient = value_and_grad([[0, 0], [1, 0]], np.ones((2, 3, 2)), steps=[0, 0])
    np.testing.assert_array_equal(value, [0, np.inf])
    assert not gradient.any()


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_no_alignment(zero_infinity):
    """Too few frames for labels, and for the blanks between equal ones; a zero weight does not hide infinity."""
    z = problem(10, batch=3, frames=4)[1]
    y = [[1, 2, 3, 1, 2], [1, 1, 2, 2, 0], [1, 1, 2, 0, 0]]
    value, gradient = value_and_grad(y, z, zero_infinity=zero_infinity)
    np.testing.assert_array_equal(value[:2], 0 if zero_infinity else np.inf)
    assert np.isfinite(value[2])
    assert not gradient[:2].any()
    assert gradient[2].all()
    total = CTC(zero_infinity=zero_infinity)(y, z, [0.0, 1.0, 1.0])
    assert np.isfinite(total) if zero_infinity else np.isnan(total)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_in_its_sequence(dtype, bad):
    y, z, steps, counts = problem(11, dtype=dtype)
    want = value_and_grad(y, z, steps, counts)
    for t, c in ((0, 0), (2, 3), (steps[1] - 1, 1)):
        broken = z.copy()
        broken[1, t, c] = bad
        value, gradient = value_and_grad(y, broken, steps, counts)
        assert np.isnan(value[1])
        assert np.isnan(gradient[1, : steps[1]]).all()
        assert not gradient[1, steps[1] :].any()
        for got, other in zip((value, gradient), want, strict=True):
            np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(other, 1, 0))
    broken = z.copy()
    broken[1, 2] = -np.inf
    assert np.isnan(ctc(y, broken, steps, counts)[1])


def test_what_lies_beyond_the_lengths_does_not_matter():
    y, z, steps, counts = problem(12)
    want = value_and_grad(y, z, steps, counts)
    y, z = y.astype(float), z.copy()
    for i in range(len(z)):
        z[i, steps[i] :] = np.nan
        y[i, counts[i] :] = [np.nan, -7, 1e300, 0.5][: y.shape[1] - counts[i]]
        assert not want[1][i, steps[i] :].any()
    for got, other in zip(value_and_grad(y, z, steps, counts), want, strict=True):
        np.testing.assert_array_equal(got, other)


# ---- the way of a call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reductions_weights_masks_upstream_out_and_threads(dtype):
    y, z, steps, counts = problem(13, dtype=dtype)
    values, slopes = oracle(y, z, steps, counts)
    weights = {"none": None, "scalar": 1.5, "full": np.array([0.5, 0.0, 2.0, 1.0, -1.0])}
    masks = {"none": None, "some": np.array([True, True, False, True, False]), "all": np.zeros(5, bool)}
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == np.float64 else {"rtol": 3e-5, "atol": 1e-5}
    lengths = {"input_lengths": steps, "label_lengths": counts}
    for reduction, weight, mask in itertools.product(REDUCTIONS, weights.values(), masks.values()):
        w = np.broadcast_to(1.0 if weight is None else weight, 5) * (1 if mask is None else mask)
        if reduction in ("sum", "none", None):
            divisor = 1.0
        elif reduction == "mean_with_sample_weight":
            kept = np.asarray(1.0 if weight is None else weight) * (1 if mask is None else mask)
            divisor = np.sum(kept) if weight is not None or mask is not None else 5.0
        else:
            divisor = 5.0 if mask is None else float(mask.sum())
        factor = w / divisor if divisor else 0 * w
        unreduced = reduction in ("none", None)
        upstream = np.arange(5, dtype=dtype) - 1.5 if unreduced else dtype(-2.5)
        want = factor * values if unreduced else np.sum(factor * values)
        slope = (factor * upstream)[:, None, None] * slopes
        loss = CTC(reduction=reduction)
        out = np.full(z.shape, np.nan, dtype)
        value, gradient = loss.value_and_grad(y, z, weight, mask=mask, upstream=upstream, out=out, **lengths)
        assert gradient is out
        assert value.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(value, want, **tolerance)
        np.testing.assert_allclose(gradient, slope, **tolerance)
        np.testing.assert_array_equal(loss(y, z, weight, mask=mask, **lengths), value)
        own = z.copy()
        for n_threads, target in ((1, None), (2, own)):
            again = loss.value_and_grad(
                y, z if target is None else own, weight, mask=mask, upstream=upstream, out=target,
                n_threads=n_threads, **lengths,
            )  # fmt: skip
            assert again[0].tobytes() == value.tobytes()
            assert again[1].tobytes() == gradient.tobytes()


def test_columns_as_weights_and_masks():
    y, z, _, _ = problem(14)
    values = ctc(y, z)
    mask = np.array([True, False, True, True, False])
    np.testing.assert_array_equal(CTC(reduction="none")(y, z, mask=mask[:, None]).ravel(), values * mask)
    np.testing.assert_array_equal(CTC(reduction="none")(y, z, mask[:, None] * 1.0).ravel(), values * mask)


def test_many_sequences_have_the_same_bits_for_any_number_of_threads():
    y, z, steps, counts = problem(15, batch=37, frames=70, columns=20, dtype=np.float32)
    one = value_and_grad(y, z, steps, counts, n_threads=1)
    two = value_and_grad(y, z, steps, counts, n_threads=2)
    for a, b in zip(one, two, strict=True):
        assert a.tobytes() == b.tobytes()


def test_threads_of_python_do_not_share_lengths():
    """One loss, called at once with different lengths from several threads."""
    y, z, _, _ = problem(16, batch=8, frames=40, columns=6)
    loss, wrong = CTC(reduction="none"), []

    def work(n):
        steps, counts = np.full(8, 40 - n), np.full(8, n)
        want = loss.value_and_grad(y, z, input_lengths=steps, label_lengths=counts)
        for _ in range(30):
            got = loss.value_and_grad(y, z, input_lengths=steps, label_lengths=counts)
            wrong.extend(n for a, b in zip(got, want, strict=True) if a.tobytes() != b.tobytes())
        if not np.allclose(want[0], oracle(y, z, steps, counts)[0], rtol=1e-12):
            wrong.append(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(1, 6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "float16", "float32", "float64"])
def test_dtypes_of_labels_and_lengths(dtype):
    y, z, steps, counts = problem(17)
    want = value_and_grad(y, z, steps, counts)
    got = value_and_grad(y.astype(dtype), z, steps.astype(dtype), counts.astype(dtype)[:, None])
    lists = value_and_grad(y.tolist(), z, steps.tolist(), counts.tolist())
    for a, b, c in zip(want, got, lists, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_boolean_labels():
    z = problem(18, classes=2)[1]
    y = np.array([[True, True, False]] * 5)
    np.testing.assert_array_equal(ctc(y, z), ctc(y.astype(int), z))


def test_layouts_and_dtypes_of_predictions():
    y, z, _, _ = problem(19)
    want = value_and_grad(y, z)
    frozen = z.copy()
    frozen.flags.writeable = False
    labels = np.asfortranarray(y)
    labels.flags.writeable = False
    for other in (np.asfortranarray(z), np.repeat(z, 2, 1)[:, ::2], frozen):
        for a, b in zip(want, value_and_grad(labels, other), strict=True):
            np.testing.assert_array_equal(a, b)
    half = z.astype(np.float16)
    value, gradient = value_and_grad(y, half)
    wide = value_and_grad(y, half.astype(np.float32))
    assert (value.dtype, gradient.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(value, wide[0])
    np.testing.assert_array_equal(gradient, wide[1].astype(np.float16))
    assert value_and_grad(y, z.tolist())[1].dtype == np.float32
    assert CTC(dtype="float16")(y, z).dtype == np.float16


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("table", ["table", "segments"])
def test_gradient_over_the_predictions(dtype, table):
    """The same bits as beside them: what a frame's gradient needs is read before it is written."""
    frames, columns, classes = {"table": (40, 9, 37), "segments": (900, 200, 6)}[table]
    y, z, steps, counts = problem(27, batch=4, frames=frames, columns=columns, classes=classes, dtype=dtype)
    z[2, 1, 1] = np.nan
    y[3], counts[3], steps[3] = 1, columns, columns  # no alignment
    mask, weight = np.array([True, False, True, True]), np.array([0.3, 1.0, -2.0, 1.7], np.float32)
    lengths = {"input_lengths": steps, "label_lengths": counts}
    value, gradient = CTC("none").value_and_grad(y, z, weight, mask=mask, **lengths)
    assert np.isnan(gradient[2, : steps[2]].astype(float)).all()
    assert not gradient[[1, 3]].any()
    assert gradient[0, : steps[0]].any()
    if z.itemsize == 2:
        wide_value, wide = CTC("none").value_and_grad(y, z.astype(np.float32), weight, mask=mask, **lengths)
        assert_same_bits(value, wide_value)
        assert_same_bits(gradient.astype(np.float32), wide.astype(dtype).astype(np.float32))
    for n_threads in (1,) if z.itemsize == 2 else (1, 2):
        own = z.copy()
        again, over = CTC("none").value_and_grad(y, own, weight, mask=mask, out=own, n_threads=n_threads, **lengths)
        assert over is own
        assert_same_bits(again, value)
        assert over.tobytes() == gradient.tobytes()


def test_compute_dtype_other_than_that_of_the_predictions():
    y, p, steps, counts = problem(28, dtype=np.float32)
    lengths = {"input_lengths": steps, "label_lengths": counts}
    value, gradient = CTC("sum", dtype="float64").value_and_grad(y, p, **lengths)
    want, slope = CTC("sum").value_and_grad(y, p.astype(np.float64), **lengths)
    assert_same_bits(value, want)
    assert_same_bits(gradient, slope.astype(np.float32))
    CTC("sum", dtype="float64").value_and_grad(y, p, out=p, **lengths)
    assert_same_bits(p, gradient)
    integers = np.rint(8 * p).astype(np.int32)
    for a, b in zip(value_and_grad(y, integers), value_and_grad(y, integers.astype(np.float32)), strict=True):
        assert_same_bits(a, b)


def test_no_copy_of_the_predictions():
    """A gradient beside half-precision logits takes its own memory, one over them none."""
    y, z, _, _ = problem(29, batch=50, frames=40, classes=500, dtype=np.float32)
    for dtype, over in ((np.float16, False), (np.float16, True), (ml_dtypes.bfloat16, True), (np.float32, True)):
        p = z.astype(dtype)
        out = p if over else None
        CTC().value_and_grad(y, p, out=out, n_threads=1)
        tracemalloc.start()
        try:
            CTC().value_and_grad(y, p, out=out, n_threads=1)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < (0 if over else p.nbytes) + 200_000, (dtype, over)


def test_kernels_that_read_no_half_precision_refuse_it():
    half = np.zeros(4, np.float16)
    with pytest.raises(TypeError, match=r"giou_gradient .* half precision"):
        items.run(kernels.giou_gradient, np.dtype(np.float32), 1, (half,) * 4, 0.0, 1)


def test_config_round_trip_and_identifiers():
    loss = CTC("sum", "mine", "float64", blank=2, zero_infinity=True)
    config = losses.serialize(loss)
    assert config["config"] == {
        "name": "mine", "reduction": "sum", "dtype": "float64", "blank": 2, "zero_infinity": True
    }  # fmt: skip
    again = losses.deserialize(config)
    assert isinstance(again, CTC)
    assert again.get_config() == loss.get_config()
    assert CTC().get_config() == {
        "name": "ctc", "reduction": "sum_over_batch_size", "blank": 0, "zero_infinity": False
    }  # fmt: skip
    assert losses.get("ctc") is losses.ctc is ctc
    assert isinstance(losses.get("CTC"), CTC)
    row = BATCH_LOSSES["ctc"]
    assert (row.cls, row.function) == (CTC, ctc)
    for options in row.variants:
        assert row.cls(**options).get_config().items() >= options.items()
    with pytest.raises(AttributeError, match="blank"):
        loss.blank = 1


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype", "written"),
    [
        (4, "int64", "4"),
        (-1, "int64", "-1"),
        (200, "uint8", "200"),
        (2**32 + 1, "int64", str(2**32 + 1)),
        (2**63 + 1, "uint64", str(2**63 + 1)),
        (1.5, "float64", r"1\.5"),
        (-1.0, "float16", "-1"),
        (np.nan, "float32", "nan"),
        (np.inf, "float64", "inf"),
    ],
)
def test_labels_that_are_no_class(value, dtype, written):
    y, z, _, _ = problem(20)
    y = y.astype(dtype)
    y[2, 1] = y[3, 0] = value
    before = z.tobytes()
    for call in (CTC(), ctc, lambda y, z: CTC().value_and_grad(y, z, out=z)):
        with pytest.raises(ValueError, match=rf"`y_true`.*0 to 3.*y_true\[2, 1\] is {written}"):
            call(y, z)
    assert z.tobytes() == before, "y_pred was written to before the labels were checked"


def test_masked_sequences_are_not_checked():
    y, z, steps, counts = problem(21)
    mask = np.array([True, False, True, True, True])
    want = CTC().value_and_grad(y, z, mask=mask, input_lengths=steps, label_lengths=counts)
    y[1], steps[1], counts[1], z[1] = -5, 99, -99, np.nan
    got = CTC().value_and_grad(y, z, mask=mask, input_lengths=steps, label_lengths=counts)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"input_lengths\[1\]"):
        CTC()(y, z, input_lengths=steps)
    with pytest.raises(ValueError, match=r"y_true\[1, 0\]"):
        CTC()(y, z, [1.0, 0.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("name", ["input_lengths", "label_lengths"])
def test_lengths_out_of_range(name):
    y, z, _, _ = problem(22)
    most = {"input_lengths": 12, "label_lengths": 4}[name]
    for bad, written in ((-1, "-1"), (most + 1, str(most + 1)), (2.5, "2.5"), (np.nan, "nan")):
        lengths = [1, most, bad, bad, 0]
        for call in (CTC(), CTC().value_and_grad, ctc):
            with pytest.raises(ValueError, match=rf"`{name}` must .*0 to {most}.*{name}\[2\] is {written}"):
                call(y, z, **{name: lengths})
    for bad in (3, [3], [[1, 2, 3, 4, 0]], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match=rf"`{name}` .*\(5,\), got shape"):
            ctc(y, z, **{name: bad})
    with pytest.raises(TypeError, match=name):
        ctc(y, z, **{name: np.array(["1"] * 5)})


def test_shapes_that_do_not_match():
    for true, pred in (((5,), (5, 4, 3)), ((5, 2), (5, 3)), ((4, 2), (5, 4, 3)), ((5, 2, 1), (5, 4, 3)), ((), ())):
        with pytest.raises(ValueError, match=r"`y_true` must have the shape .* y_true\.shape=.*y_pred\.shape="):
            ctc(np.zeros(true, int), np.zeros(pred))


def test_blank_that_is_no_class():
    y, z, _, _ = problem(23)
    with pytest.raises(ValueError, match="`blank` must not be negative, got -1"):
        CTC(blank=-1)
    with pytest.raises(TypeError, match=r"`blank` must be an integer, got 0\.5"):
        CTC(blank=0.5)
    with pytest.raises(TypeError, match="`zero_infinity` must be True or False, got 1"):
        CTC(zero_infinity=1)
    for call in (CTC(blank=4), CTC(blank=4).value_and_grad):
        with pytest.raises(ValueError, match=r"`blank` must be a class.* 4 classes.*got 4"):
            call(y, z)
    with pytest.raises(ValueError, match=r"`blank` must be a class.* 0 classes"):
        ctc(np.zeros((2, 0), int), np.zeros((2, 3, 0)))


def test_other_errors():
    y, z, _, _ = problem(24)
    for call in (CTC(), CTC().value_and_grad):
        with pytest.raises(ValueError, match="class_weight"):
            call(y, z, class_weight={1: 2.0})
        for mask in (np.ones(4, bool), np.ones((5, 12), bool), np.ones((1, 5), bool)):
            with pytest.raises(ValueError, match=r"`mask`.*\(5,\)"):
                call(y, z, mask=mask)
        for weight in (np.ones(4), np.ones((5, 12)), np.ones((5, 12, 4))):
            with pytest.raises(ValueError, match="sample_weight"):
                call(y, z, weight)
        with pytest.raises(ValueError, match="n_threads"):
            call(y, z, n_threads=0)
    with pytest.raises(ValueError, match="out"):
        CTC().value_and_grad(y, z, out=np.empty((5, 12, 3)))
    with pytest.raises(ValueError, match="upstream"):
        CTC().value_and_grad(y, z, upstream=np.ones(5))
    with pytest.raises(NotImplementedError, match="Hessian"):
        CTC().value_grad_hess(y, z)
    for reduction in ("auto", "average"):
        with pytest.raises(ValueError, match=r"^Invalid value for argument `reduction`"):
            CTC(reduction=reduction)


# ---- the machinery --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [sequence.TABLE_BYTES, 0], ids=["table", "segments"])
def test_plain_python_stays_within_its_arrays(table):
    """The kernel without compilation, where NumPy checks every index; with a table of all frames, and in segments."""
    item = kernels.ctc.factory(Toolbox(np.dtype(np.float64), compiled=False), "f8", "f8")
    for frames, columns in ((5, 3), (7, 7), (17, 8), (20, 9)):
        y, z, _, _ = problem(25, batch=2, frames=frames, columns=columns)
        y[:, 1:] = np.where(y[:, 1:] == y[:, :-1], y[:, 1:] % 3 + 1, y[:, 1:])
        y[1] = y[0]
        want = value_and_grad(y, z)
        value, gradient = np.empty(2), np.empty(z.shape)
        lengths = np.full(2, frames), np.full(2, columns)
        with np.errstate(all="ignore"):
            for i in range(2):
                arrays = z.reshape(-1), gradient.reshape(-1), *z.shape[1:], y, *lengths, np.ones(2, np.uint8), value
                item(i, *arrays, np.ones(2), True, True, 0, False, table // 8, np.empty((1, 0)))
        np.testing.assert_allclose(value, want[0], rtol=1e-13)
        np.testing.assert_allclose(gradient, want[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_segments(dtype):
    """Where the table of all frames is too large, frames are computed again: the same numbers, whatever the rest."""
    random = np.random.default_rng(26)
    for frames in (900, 901, 961, 1000):
        columns = 200
        y = random.integers(1, 6, size=(1, columns))
        z = random.normal(size=(1, frames, 6)).astype(dtype)
        value, gradient = value_and_grad(y, z)
        assert frames * columns * 5 * z.itemsize > sequence.TABLE_BYTES
        want = states_oracle(y[0], z[0])
        np.testing.assert_allclose(value, want[0], rtol=1e-6 if dtype == np.float32 else 1e-13)
        np.testing.assert_allclose(gradient[0], want[1], atol=1e-5 if dtype == np.float32 else 1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_beyond_the_range(dtype):
    xp = Toolbox(np.dtype(dtype), compiled=False)
    eps = np.finfo(dtype).eps
    with np.errstate(all="ignore"):
        for x in (0.0, -0.1, -0.3466, -0.34658, -1.0, -80.0, -750.0, -12345.6789, -1e6, 3.0, 100.0):
            x = dtype(x)
            m, n = xp.exp_parts(x)
            assert 0.7 <= m <= 1.4143
            assert n == np.rint(n)
            want = mpmath.exp(mpmath.mpf(float(x)))
            # The argument's own rounding is a relative error of |x| eps / 2.
            assert abs(mpmath.mpf(float(m)) * mpmath.mpf(2) ** int(n) / want - 1) <= eps * (2 + abs(float(x)) / 4)
        for x in (-1e30, -1e38):
            m, n = xp.exp_parts(dtype(x))
            assert 0.7 <= m <= 1.4143
            assert abs(float(n) * np.log(2) / x - 1) <= 2 * eps
        m, n = xp.exp_parts(dtype(-np.inf))
        assert (m, n) == (1, -np.inf)
        assert np.isnan(xp.exp_parts(dtype(np.nan))[1])
        for x in (1.0, 1.5, 0.75, 2.0, 8.49, 1e-30, 3e38):
            m, n = xp.parts(dtype(x))
            assert 1 <= m < 2
            assert float(m) * 2.0 ** float(n) == dtype(x)
        smallest = -126 if dtype == np.float32 else -1022
        for n in (5, 0, -1, -100, smallest):
            assert xp.power_of_two(dtype(n)) == 2.0**n
        for n in (smallest - 1, -1e30, -np.inf, np.nan):
            assert xp.power_of_two(dtype(n)) == 0


@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2", False), reason="the expectation is AVX2 machine code")
def test_recursions_are_packed():
    """Both recursions scale their terms by powers of two: shifts that the compiler has to have packed."""
    from fastloss.engine.items import _compile, _kind

    flat, plane, memory = np.empty(1, "f4"), np.empty((1, 1), np.int64), np.empty((1, 0), "f4")
    lengths, valid = np.empty(1, np.int64), np.empty(1, np.uint8)
    arguments = (flat, flat, 1, 1, plane, lengths, lengths, valid, flat, flat, True, True, 0, False, 1, memory)
    dtype = np.dtype(np.float32)
    types = tuple(_kind(argument, dtype) for argument in arguments)
    assembly = _compile(kernels.ctc, dtype, types, False).library.get_asm_str()
    packed = [line for line in assembly.splitlines() if "vpslld" in line and "%ymm" in line]
    assert len(packed) >= 12  # 5 terms and an exponential in each direction
    assert "expf" not in assembly


def test_package_exports():
    assert fastloss.losses.CTC is CTC
    assert {"CTC", "ctc"} <= set(losses.__all__)
