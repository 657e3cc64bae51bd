"""Losses on a CUDA device against the oracle: in Numba's simulator, or on hardware where there is some.

``NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda`` runs them without a GPU. The shapes are small: in the simulator each thread
of a block is a thread of Python's.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("numba.cuda.core", reason="needs the extra fastloss[cuda]")
from numba import cuda

import data
import fastloss
import reference
from fastloss import losses
from fastloss.engine.cuda import labels, launch
from fastloss.engine.cuda.target import SIMULATED
from fastloss.registry import BATCH_LOSSES, LOSSES

pytestmark = [
    pytest.mark.skipif(
        not (SIMULATED or cuda.is_available()),
        reason="no CUDA device here; NUMBA_ENABLE_CUDASIM=1 runs these tests in the simulator",
    ),
    # Compiled code is silent where NumPy's scalars, of which the simulator's kernels are made, warn.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    # Small grids are what small tests have.
    pytest.mark.filterwarnings("ignore:.*Grid size"),
]

TOLERANCE = {"float64": {"rtol": 1e-9, "atol": 1e-11}, "float32": {"rtol": 2e-5, "atol": 2e-6}}
CASES = [
    pytest.param(row, params, id="-".join([row.name, *(f"{k}={v}" for k, v in params.items())]))
    for row in LOSSES.values()
    for params in data.variants(row)
]
SOME = ("mean_squared_error", "categorical_crossentropy", "sparse_categorical_crossentropy", "cosine_similarity")
DISTINCT = ("sum_over_batch_size", "mean_with_sample_weight", "sum", "none")


@pytest.fixture(autouse=True)
def _quick_threads():
    """Let the simulator's threads take turns 500 times as often as Python's do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _no_labels_left():
    """Wrong labels of one test are none of the next."""
    yield
    labels.checking = False
    fastloss.cuda.synchronize()
    labels.checking = True


def on_device(array):
    return None if array is None else cuda.to_device(np.ascontiguousarray(array))


def on_host(array):
    assert type(array) is type(cuda.to_device(np.zeros(1))), "the result is an array of the same library"
    return array.copy_to_host()


def shapes(row, params):
    """A usual shape, one with rows longer than a block's threads, and one with more axes where the loss allows that."""
    if reference.axis_of(row.name, params) not in (-1, ()):
        return data.shapes(row, params)[:1]
    return ((5, 3), (2, 37), (2, 3, 4)) if row.name in SOME else ((5, 3), (1, 37))


def check(got, want, dtype, label):
    value = on_host(got)
    assert value.dtype == dtype, label
    assert value.shape == np.shape(want), label
    np.testing.assert_allclose(value, want, **TOLERANCE[np.dtype(dtype).name], err_msg=label)


def check_call(row, params, shape, reduction, dtype, **call):
    """Value and gradient against the oracle in float64."""
    y, p = data.inputs(row, params, shape, seed=1, dtype=np.float32)
    loss = row.cls(**params, reduction=reduction)
    moved = {k: on_device(v) if isinstance(v, np.ndarray) else v for k, v in call.items()}
    t = y if row.labels == "index" else y.astype(dtype)
    value, gradient = loss.value_and_grad(on_device(t), on_device(p.astype(dtype)), **moved)
    upstream = call.pop("upstream", None)
    want = reference.loss(row.name, y, p, **call, reduction=reduction, dtype=dtype, **params)
    slope = reference.gradient(row.name, y, p, **call, reduction=reduction, upstream=upstream, **params)
    label = f"{shape}, {reduction}, {np.dtype(dtype)}, {sorted(call)}"
    check(value, want, dtype, label)
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if dtype == np.float64 else TOLERANCE["float32"]
    found = on_host(gradient)
    assert (found.dtype, found.shape) == (dtype, shape), label
    np.testing.assert_allclose(found, slope, **tolerance, err_msg=label)


@pytest.mark.parametrize(("row", "params"), CASES)
def test_every_loss_agrees_with_the_oracle(row, params):
    """Plain in float64, and with weights and a mask in float32: the two halves of what a driver can do."""
    for shape in shapes(row, params):
        values = reference.values_shape(row.name, params, shape)
        weight = {"sample_weight": data.rng(2).uniform(0.5, 2.0, size=values)} if values else {}
        mask = {"mask": np.arange(np.prod(values, dtype=int)).reshape(values) % 3 != 1} if values else {}
        check_call(row, params, shape, "sum_over_batch_size", np.float64)
        check_call(row, params, shape, "none", np.float32, **weight, **mask)


@pytest.mark.parametrize("name", SOME)
def test_reductions_weights_masks(name):
    row = LOSSES[name]
    shape = (5, 3)
    for label, reduction, call in data.crossings(row, {}, shape, DISTINCT, np.float64):
        if np.shape(call["sample_weight"]) == (5, 1) and reduction == "none" and call["mask"] is None:
            continue  # test_what_has_no_form_says_so has weights that make more values
        assert label
        check_call(row, {}, shape, reduction, np.float64, **call)
    for reduction in DISTINCT:
        check_call(row, {}, shape, reduction, np.float64, upstream=np.linspace(1, 2, 5) if reduction == "none" else 2.5)
    flow = cuda.to_device(np.full(1, 2.5)).reshape(())
    y, p = data.inputs(row, {}, shape, seed=1)
    mask = on_device(np.array([True, False, True, True, False]))
    once = row.cls().value_and_grad(on_device(y), on_device(p), mask=mask)
    more = row.cls().value_and_grad(on_device(y), on_device(p), mask=mask, upstream=flow)
    assert on_host(once[0]) == on_host(more[0]), "upstream does not change the value"
    np.testing.assert_allclose(on_host(more[1]), 2.5 * on_host(once[1]), rtol=1e-12)


@pytest.mark.parametrize("name", ["mean_squared_error", "log_cosh", "hinge", "binary_focal_crossentropy"])
def test_hessian(name):
    row = LOSSES[name]
    y, p = data.inputs(row, {}, (5, 3), seed=2)
    for reduction in ("sum", "none"):
        loss = row.cls(reduction=reduction)
        _, gradient, hessian = loss.value_grad_hess(on_device(y), on_device(p))
        want = reference.hessian(row.name, y, p, reduction=reduction)
        np.testing.assert_allclose(on_host(hessian), want, rtol=1e-6, atol=1e-7)
        same = loss.value_and_grad(on_device(y), on_device(p))[1]
        np.testing.assert_array_equal(on_host(gradient), on_host(same))


def test_value_alone_is_that_of_value_and_gradient():
    for row in LOSSES.values():
        y, p = data.inputs(row, {}, (5, 3), seed=3)
        alone = row.cls()(on_device(y), on_device(p))
        np.testing.assert_array_equal(on_host(alone), on_host(row.cls().value_and_grad(on_device(y), on_device(p))[0]))


@pytest.mark.parametrize("name", SOME)
def test_halves_are_computed_in_float32(name):
    row = LOSSES[name]
    y, p = data.inputs(row, {}, (5, 3), seed=4, dtype=np.float32)
    half = p.astype(np.float16)
    value, gradient = row.cls().value_and_grad(on_device(y), on_device(half))
    wide_value, wide = row.cls().value_and_grad(on_device(y), on_device(half.astype(np.float32)))
    np.testing.assert_array_equal(on_host(value), on_host(wide_value))
    assert on_host(value).dtype == np.float32
    np.testing.assert_array_equal(on_host(gradient), on_host(wide).astype(np.float16))
    result = row.cls(dtype="float16")(on_device(y), on_device(half))
    np.testing.assert_array_equal(on_host(result), on_host(wide_value).astype(np.float16))


def test_bfloat16_is_read_and_rounded_as_ml_dtypes_does():
    """No library but PyTorch hands bfloat16 over, so the loads and stores by themselves."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    from fastloss.engine.cuda.drivers import copy

    numbers = np.array([0.0, -0.0, 1.0, 1.00390625, 1.01171875, -3.14159, 3e38, 1e-40, np.inf, -np.inf, np.nan], "f4")
    n = numbers.size
    bits = on_device(np.zeros(n, np.uint16))
    cuda.jit(copy("f4", "bf2", 1))[1, 8](on_device(numbers), bits, (n,), (1,), (1,), n)
    want = numbers.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(bits.copy_to_host().view(ml_dtypes.bfloat16).astype("f4"), want.astype("f4"))
    back = on_device(np.zeros(n, np.float32))
    cuda.jit(copy("bf2", "f4", 1))[1, 8](bits, back, (n,), (1,), (1,), n)
    np.testing.assert_array_equal(back.copy_to_host(), want.astype("f4"))


# ---- forms ----------------------------------------------------------------------------------------------------------


def form(row, shape, dtype="f8"):
    """How the kernel of a row's loss goes over data of that shape."""
    from fastloss.losses.plan import variant_of

    loss = row.cls()
    index = row.labels == "index"
    variant = variant_of(
        loss._kernel(), 1, ("i8" if index else dtype, dtype, dtype), dtype, loss._params(shape[1]), index=index,
        weighted=False, masked=False, values=False,
    )  # fmt: skip
    found = launch.choose(variant, *shape, False, dtype)
    return found.form, found.staged, found.lanes == found.threads


@pytest.mark.skipif(not SIMULATED, reason="the shapes are those at which the simulator's small blocks change form")
@pytest.mark.parametrize("name", ["categorical_crossentropy", "sparse_categorical_crossentropy", "dice"])
def test_every_form_of_rows(name):
    """Several teams a block, a block a row, rows that shared memory does not hold, and rows in pieces."""
    row = LOSSES[name]
    options = {"axis": -1} if name == "dice" else {}
    seen = set()
    for shape in ((19, 2), (3, 20), (2, 300), (1, 1300)):
        seen.add(form(row, shape))
        check_call(row, options, shape, "sum_over_batch_size", np.float64)
        check_call(row, options, shape, "none", np.float32, sample_weight=np.linspace(1, 2, shape[0]))
    staged = {("rows", True, False), ("rows", False, True)}
    assert staged <= seen
    assert (("slopes", False, True) in seen) == row.kernel.divisible


def test_a_batch_is_its_rows_whoever_has_them():
    row = LOSSES["sparse_categorical_crossentropy"]
    y, p = data.inputs(row, {}, (23, 9), seed=5)
    loss = row.cls(reduction="none")
    value, gradient = loss.value_and_grad(on_device(y), on_device(p))
    for i in (0, 7, 22):
        alone = loss.value_and_grad(on_device(y[i : i + 1]), on_device(p[i : i + 1]))
        np.testing.assert_array_equal(on_host(value)[i : i + 1], on_host(alone[0]))
        np.testing.assert_array_equal(on_host(gradient)[i : i + 1], on_host(alone[1]))


def test_sums_lose_no_digits_to_float32():
    """A sum of many float32 numbers is right to float32, one block's and many blocks'."""
    n = 20_000 if SIMULATED else 1 << 26
    y = np.zeros(n, np.float32)
    p = np.full(n, 0.1, np.float32)
    value = losses.MeanSquaredError(reduction="sum_over_batch_size")(on_device(y), on_device(p))
    np.testing.assert_allclose(on_host(value), np.float64(np.float32(0.1)) ** 2, rtol=1e-7)
    # An infinite loss is infinite, though what rounding lost beside it is NaN.
    p[n // 3] = np.inf
    assert on_host(losses.MeanSquaredError()(on_device(y), on_device(p))) == np.inf


def test_results_have_the_same_bits_each_time():
    row = LOSSES["categorical_crossentropy"]
    y, p = data.inputs(row, {}, (23, 9), seed=6, dtype=np.float32)
    first = row.cls().value_and_grad(on_device(y), on_device(p))
    again = row.cls().value_and_grad(on_device(y), on_device(p))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(on_host(a), on_host(b))


# ---- inputs ---------------------------------------------------------------------------------------------------------


def test_strides_axes_and_broadcasting():
    y, p = data.inputs(LOSSES["mean_squared_error"], {}, (4, 6), seed=7)
    want = losses.MeanSquaredError(reduction="none")
    for view in (lambda a: a[::2, 1:], lambda a: a.T, lambda a: a[:, ::-1][:, ::-1]):
        got = want.value_and_grad(view(on_device(y)), view(on_device(p)))
        oracle = reference.per_sample("mean_squared_error", view(y), view(p))[0]
        np.testing.assert_allclose(on_host(got[0]), oracle, rtol=1e-12)
        np.testing.assert_allclose(on_host(got[1]), 2 * (view(p) - view(y)) / view(p).shape[-1], rtol=1e-12)
    value = losses.MeanSquaredError()(on_device(y[:1]), on_device(p))
    np.testing.assert_allclose(on_host(value), np.mean((p - y[:1]) ** 2), rtol=1e-12)


def test_out_takes_the_gradient():
    for name in ("mean_squared_error", "categorical_crossentropy", "sparse_categorical_crossentropy"):
        row = LOSSES[name]
        y, p = data.inputs(row, {}, (5, 3), seed=8)
        want = on_host(row.cls().value_and_grad(on_device(y), on_device(p))[1])
        place = on_device(np.zeros((5, 3)))
        assert row.cls().value_and_grad(on_device(y), on_device(p), out=place)[1] is place
        np.testing.assert_array_equal(on_host(place), want)
        itself = on_device(p)
        assert row.cls().value_and_grad(on_device(y), itself, out=itself)[1] is itself
        np.testing.assert_array_equal(on_host(itself), want)
        strided = on_device(np.zeros((5, 6)))
        row.cls().value_and_grad(on_device(y), on_device(p), out=strided[:, ::2])
        np.testing.assert_array_equal(on_host(strided)[:, ::2], want)
        assert not on_host(strided)[:, 1::2].any()
    moved = losses.CategoricalCrossentropy(axis=0)
    y, p = data.inputs(LOSSES["categorical_crossentropy"], {}, (5, 3), seed=8)
    turned = on_host(moved.value_and_grad(on_device(y.T), on_device(p.T))[1])
    want = on_host(losses.CategoricalCrossentropy().value_and_grad(on_device(y), on_device(p))[1])
    np.testing.assert_array_equal(turned, want.T)
    place = on_device(np.zeros((3, 5)))
    moved.value_and_grad(on_device(y.T), on_device(p.T), out=place)
    np.testing.assert_array_equal(on_host(place), want.T)


def test_out_that_does_not_fit_is_refused():
    y, p = on_device(np.zeros((2, 3))), on_device(np.ones((2, 3)))
    loss = losses.MeanSquaredError()
    for out, error, words in (
        (np.zeros((2, 3)), TypeError, "on the device"),
        (on_device(np.zeros((3, 2))), ValueError, r"shape of `y_pred`, \(2, 3\)"),
        (on_device(np.zeros((2, 3), np.float32)), ValueError, "float64, got float32"),
        (y, ValueError, "overlap `y_true`"),
    ):
        with pytest.raises(error, match=words):
            loss.value_and_grad(y, p, out=out)
    both = on_device(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="unless it is `y_pred` itself"):
        loss.value_and_grad(y, both[:2], out=both[1:])


def test_labels_of_every_type():
    row = LOSSES["sparse_categorical_crossentropy"]
    y, p = data.inputs(row, {}, (5, 3), seed=9)
    want = on_host(row.cls()(on_device(y), on_device(p)))
    for kind in ("i1", "i2", "i4", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        np.testing.assert_array_equal(on_host(row.cls()(on_device(y.astype(kind)), on_device(p))), want, err_msg=kind)
    np.testing.assert_array_equal(on_host(row.cls()(on_device(y[:, None]), on_device(p))), want)


@pytest.mark.parametrize("kind", ["i8", "f4", "u1"])
def test_wrong_labels_are_told_by_the_next_call(kind):
    loss = losses.SparseCategoricalCrossentropy(reduction="none")
    y = np.array([0, 200 if kind == "u1" else -7, 2], kind)
    p = np.full((3, 3), 1 / 3)
    value, gradient = loss.value_and_grad(on_device(y), on_device(p))
    found, slope = on_host(value), on_host(gradient)
    assert np.isnan(found).tolist() == [False, True, False]
    assert np.isnan(slope).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(slope).any(axis=1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"from 0 to 2, but y_true\[1\] did not"):
        loss(on_device(np.zeros(3, np.int64)), on_device(p))
    loss(on_device(np.zeros(3, np.int64)), on_device(p))  # told once
    loss(on_device(y), on_device(p))
    with pytest.raises(ValueError, match="SparseCategoricalCrossentropy"):
        fastloss.cuda.synchronize()
    loss(on_device(y), on_device(p), mask=on_device(np.array([True, False, True])))
    fastloss.cuda.synchronize()  # behind a mask there is no label
    fastloss.cuda.set_check_labels(False)
    try:
        assert np.isnan(on_host(loss(on_device(y), on_device(p)))[1])
        fastloss.cuda.synchronize()
    finally:
        fastloss.cuda.set_check_labels(True)
    if kind == "f4":
        for odd in (1.5, np.nan, np.inf):
            loss(on_device(np.array([0, odd, 2], kind)), on_device(p))
            with pytest.raises(ValueError, match=r"y_true\[1\]"):
                fastloss.cuda.synchronize()


def test_class_weights():
    row = LOSSES["sparse_categorical_crossentropy"]
    y, p = data.inputs(row, {}, (5, 3), seed=10)
    for weights in ({0: 2.0, 2: 0.5}, [1.0, 3.0, 0.25]):
        for call in ({}, {"sample_weight": np.linspace(1, 2, 5)}):
            got = row.cls()(
                on_device(y), on_device(p), **{k: on_device(v) for k, v in call.items()}, class_weight=weights
            )
            want = reference.class_weights(row.name, y, p, weights) * call.get("sample_weight", 1.0)
            np.testing.assert_allclose(on_host(got), reference.loss(row.name, y, p, sample_weight=want), rtol=1e-9)


def test_class_weights_of_one_hot_targets():
    row = LOSSES["categorical_crossentropy"]
    for classes in (3, 70):  # a thread a row, and a block
        y, p = data.inputs(row, {}, (5, classes), seed=10)
        y = np.eye(classes)[[0, 2, 1, 2, 0]]
        weights = {0: 2.0, 2: 0.5}
        got = row.cls()(on_device(y), on_device(p), class_weight=weights)
        np.testing.assert_allclose(on_host(got), row.cls()(y, p, class_weight=weights), rtol=1e-9)
        y[3, 1] = 0.5
        value = row.cls(reduction="none")(on_device(y), on_device(p), class_weight=weights)
        assert np.isnan(on_host(value)).tolist() == [False, False, False, True, False]
        with pytest.raises(ValueError, match=r"must hold one-hot rows, .*, but y_true\[3\] did not"):
            fastloss.cuda.synchronize()


def test_infinities_and_nan_stay_in_their_rows():
    y = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    p = np.array([[1.0, 2.0], [np.nan, 2.0], [-np.inf, 2.0]])
    value, gradient = losses.CategoricalCrossentropy(from_logits=True, reduction="none").value_and_grad(
        on_device(y), on_device(p)
    )
    assert np.isnan(on_host(value)).tolist() == [False, True, False]
    assert np.isnan(on_host(gradient)).any(axis=1).tolist() == [False, True, False]
    assert on_host(value)[2] == 0


def test_garbage_behind_a_mask_changes_nothing():
    for name in ("mean_squared_error", "categorical_crossentropy"):
        row = LOSSES[name]
        y, p = data.inputs(row, {}, (4, 3), seed=11)
        mask = np.array([True, False, True, False])
        want = row.cls().value_and_grad(on_device(y), on_device(p), mask=on_device(mask))
        weight = np.where(mask, 1.0, np.nan)
        p[~mask] = np.nan
        got = row.cls().value_and_grad(on_device(y), on_device(p), on_device(weight), mask=on_device(mask))
        np.testing.assert_array_equal(on_host(got[0]), on_host(want[0]))
        np.testing.assert_array_equal(on_host(got[1]), on_host(want[1]))


def test_empty_batches():
    for shape in ((0, 3), (0,)):
        for reduction in ("sum_over_batch_size", "none"):
            loss = losses.MeanSquaredError(reduction=reduction)
            value, gradient = loss.value_and_grad(on_device(np.zeros(shape)), on_device(np.zeros(shape)))
            want = losses.MeanSquaredError(reduction=reduction).value_and_grad(np.zeros(shape), np.zeros(shape))
            np.testing.assert_array_equal(on_host(value), want[0])
            assert gradient.shape == shape


def test_own_losses_run_on_the_device():
    scaled = losses.from_kernel(_scaled_square, scale=3.0)
    y, p = np.zeros((2, 3)), np.arange(6.0).reshape(2, 3)
    value, gradient = scaled.value_and_grad(on_device(y), on_device(p))
    np.testing.assert_allclose(on_host(value), 3 * np.mean(p**2), rtol=1e-12)
    np.testing.assert_allclose(on_host(gradient), p, rtol=1e-12)


@fastloss.pointwise(params=("scale",))
def _scaled_square(xp):
    two = xp.const(2.0)

    def terms(y, p, scale):
        e = p - y
        return scale * (e * e), two * scale * e, two * scale

    return terms


# ---- losses of boxes, sequences and whole batches -------------------------------------------------------------------


def check_batch(loss, y, p, label="", out=None, **call):
    """Value and gradient, in the dtype of the predictions, against those of the CPU in float64."""
    want = loss.value_and_grad(y.astype(np.float64) if y.dtype.kind == "f" else y, p.astype(np.float64), **call)
    moved = {k: on_device(v) if isinstance(v, np.ndarray) else v for k, v in call.items()}
    if out is not None:
        moved["out"] = out
    value, gradient = loss.value_and_grad(on_device(y), on_device(p), **moved)
    check(value, want[0], np.float32 if p.dtype == np.float16 else p.dtype, label)
    found = on_host(gradient)
    assert (found.dtype, found.shape) == (p.dtype, p.shape), label
    scale = max(1.0, float(np.nanmax(np.abs(want[1]), initial=0.0)))
    tolerance = {"float64": 1e-11, "float32": 2e-5, "float16": 1e-3}[found.dtype.name]
    np.testing.assert_allclose(found, want[1], rtol=tolerance, atol=tolerance * scale, err_msg=label)
    return found


BATCH_CASES = [
    pytest.param(row, params, "float32" if k else "float64", id="-".join([row.name, *map(str, params.values())]))
    for row in BATCH_LOSSES.values()
    for k, params in enumerate(row.variants)
    if row.name != "triplet_semihard_loss" or "distance_metric" not in params  # triplet_hard_loss has them
]


@pytest.mark.parametrize(("row", "params", "dtype"), BATCH_CASES)
def test_every_batch_loss_agrees_with_the_cpu(row, params, dtype):
    """The defaults in float64, other options in float32."""
    y, p = data.batch_inputs(row, params, 4, seed=1, dtype=np.dtype(dtype))
    check_batch(row.cls(**params), y, p, sample_weight=np.full(1, 0.5), upstream=2.5)


def test_batch_losses_take_weights_and_masks():
    """Reductions, weights and masks are those of all losses; where rows are coupled, one case is enough."""
    row = BATCH_LOSSES["giou_loss"]
    y, p = data.batch_inputs(row, {}, 5)
    for reduction in DISTINCT:
        loss = row.cls(reduction=reduction)
        for name, weight in data.weight_families((5,)).items():
            for other, mask in data.mask_families((5,)).items():
                if name == "one more axis" and reduction == "none" and mask is None:
                    continue  # which makes more values
                check_batch(loss, y, p, f"{reduction}, {name}, {other}", sample_weight=weight, mask=mask)
    p[1] = np.nan
    gradient = check_batch(row.cls(), y, p, mask=np.array([True, False, True, False, True]))
    assert not gradient[[1, 3]].any()
    row = BATCH_LOSSES["circle"]
    y, p = data.batch_inputs(row, {}, 5)
    weight, mask = np.linspace(1, 2, 5), np.arange(5) != 3
    loss = row.cls(reduction="mean_with_sample_weight")
    check_batch(loss, y, p, sample_weight=weight, mask=mask, class_weight={0: 2.0, 2: 0.25})
    row = BATCH_LOSSES["npairs_loss"]
    y, p = data.batch_inputs(row, {}, 4)
    p[0, 0] = np.nan
    assert not check_batch(row.cls(), y, p, mask=np.array(False)).any()


def test_batch_losses_of_halves_and_into_out():
    row = BATCH_LOSSES["giou_loss"]
    y, p = data.batch_inputs(row, {}, 5)
    check_batch(row.cls(), y, p.astype(np.float16))
    strided = on_device(np.zeros((5, 8)))
    check_batch(row.cls(), y, p, out=strided[:, ::2])
    assert not on_host(strided)[:, 1::2].any()
    row = BATCH_LOSSES["ctc"]
    y, p = data.batch_inputs(row, {}, 2)
    check_batch(row.cls(), y, p.astype(np.float16))
    itself = on_device(p)
    want = row.cls().value_and_grad(y, p)[1]
    assert row.cls().value_and_grad(on_device(y), itself, out=itself)[1] is itself
    np.testing.assert_allclose(on_host(itself), want, rtol=1e-11, atol=1e-14)


def test_sequences_of_any_length(monkeypatch):
    """With a table of all frames; in other tests, in the simulator, tables are too small for that."""
    monkeypatch.setattr("fastloss.losses.device_batch.TABLE_BYTES", 1 << 20)
    row = BATCH_LOSSES["ctc"]
    y, p = data.batch_inputs(row, {}, 5, seed=3)
    loss = row.cls(reduction="none")
    lengths = {"input_lengths": [7, 4, 1, 0, 6], "label_lengths": np.array([0, 3, 2, 0, 3.0])}
    y[2, 2] = 99  # behind the labels
    y[4], p[4] = -1, np.nan
    check_batch(loss, y, p, **lengths, sample_weight=np.linspace(1, 2, 5), mask=np.arange(5) != 4)


def test_wrong_labels_and_lengths_of_sequences_are_told():
    loss = losses.CTC(reduction="none")
    y, p = np.array([[1, 2], [1, 9], [2, 0]]), np.zeros((3, 4, 3))
    value, gradient = loss.value_and_grad(on_device(y), on_device(p))
    assert np.isnan(on_host(value)).tolist() == [False, True, False]
    assert np.isnan(on_host(gradient)).all(axis=(1, 2)).tolist() == [False, True, False]
    assert np.isnan(on_host(gradient)).any(axis=(1, 2)).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"`y_true` of an earlier call of CTC .* from 0 to 2, but y_true\[1, 1\]"):
        fastloss.cuda.synchronize()
    y[1, 1] = 2
    for name, bad, most in (("input_lengths", 5, 4), ("label_lengths", 1.5, 2)):
        assert np.isnan(on_host(loss(on_device(y), on_device(p), **{name: [1, 1, bad]}))[2])
        with pytest.raises(ValueError, match=rf"`{name}` of .* integers from 0 to {most}, .* but {name}\[2\] did not"):
            fastloss.cuda.synchronize()
    with pytest.raises(ValueError, match="one length a sequence"):
        loss(on_device(y), on_device(p), input_lengths=[1])


@pytest.mark.parametrize("name", ["lifted_struct_loss", "triplet_semihard_loss"])
def test_embeddings_that_are_close_and_labels_that_are_not_there(name):
    loss = BATCH_LOSSES[name].cls()
    p = np.array([[1.0, 2.0], [1.0, 2.0 + 1e-9], [3.0, -1.0], [1.0, 2.0]])
    check_batch(loss, np.array([0.0, 0.0, 1.0, np.nan]), p, "close")
    check_batch(loss, np.zeros(4), p[[0, 2, 2, 1]], "one class")


def test_empty_batches_of_batch_losses():
    for name in ("triplet_hard_loss", "circle", "npairs_loss", "ctc", "giou_loss"):
        row = BATCH_LOSSES[name]
        y, p = data.batch_inputs(row, {}, 2)
        check_batch(row.cls(), y[:0], p[:0, :0] if name == "npairs_loss" else p[:0], name)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_what_has_no_form_says_so():
    class Own(losses.Loss):
        def call(self, y_true, y_pred):
            return np.zeros(len(y_true))

    with pytest.raises(NotImplementedError, match="Own has no CUDA form yet"):
        Own()(on_device(np.zeros((4, 1))), on_device(np.zeros((4, 1))))
    with pytest.raises(NotImplementedError, match="callable `distance_metric`"):
        losses.TripletHardLoss(distance_metric=lambda x: x @ x.T)(on_device(np.zeros(4)), on_device(np.eye(4)))
    y, p = on_device(np.zeros((4, 1))), on_device(np.zeros((4, 1)))
    with pytest.raises(NotImplementedError, match="more values"):
        losses.MeanSquaredError(reduction="none")(
            on_device(np.zeros((4, 1, 2))), on_device(np.zeros((4, 1, 2))), on_device(np.zeros((4, 5)))
        )
    checked = losses.MeanSquaredError()
    checked.check_numerics = "raise"
    with pytest.raises(NotImplementedError, match="check_numerics"):
        checked(y, p)


def test_wrong_arguments_are_named():
    loss = losses.MeanSquaredError()
    array = on_device(np.zeros((4, 3)))
    for call, error, words in (
        (lambda: loss(np.zeros((4, 3)), array), TypeError, "`y_true` must be on a CUDA device"),
        (lambda: loss(array, np.zeros((4, 3))), TypeError, "`y_pred` must be on a CUDA device"),
        (lambda: loss(array, on_device(np.zeros((3, 4)))), ValueError, "must have the same shape"),
        (lambda: loss(array, on_device(np.zeros((4, 3), complex))), TypeError, "`y_pred` must hold real numbers"),
        (lambda: loss(array, array, on_device(np.zeros(3))), ValueError, "`sample_weight` must broadcast"),
        (lambda: loss(array, array, mask=on_device(np.zeros(4))), TypeError, "`mask` must be boolean"),
        (lambda: loss.value_and_grad(array, array, upstream=[1.0, 2.0]), ValueError, "`upstream` must have the shape"),
        (lambda: losses.MeanSquaredError()([0.0], [1.0], array), TypeError, "`sample_weight` is on a CUDA device"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_handles_and_composed_losses_take_device_arrays():
    y, p = np.zeros((4, 3)), np.ones((4, 3))
    np.testing.assert_array_equal(on_host(losses.mean_squared_error(on_device(y), on_device(p))), np.ones(4))


def test_nothing_of_the_host_is_read(monkeypatch):
    """No copy to the host on the way: results come back as they are written."""
    kind = type(on_device(np.zeros(1)))

    def refuse(*arguments, **keywords):
        raise AssertionError("copied to the host")

    y, p, w = (on_device(a) for a in (np.zeros((4, 3)), np.ones((4, 3)), np.ones(4)))
    mask = on_device(np.array([True, False, True, True]))
    monkeypatch.setattr(kind, "copy_to_host", refuse)
    for reduction in DISTINCT:
        losses.MeanSquaredError(reduction=reduction).value_and_grad(y, p, w, mask=mask)
