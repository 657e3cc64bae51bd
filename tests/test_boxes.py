"""GIoU and IoU of boxes: the formula, every degenerate box, and the choices at kinks."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fastloss import kernels, losses
from fastloss.engine import items
from fastloss.engine.toolbox import Toolbox
from reference import assert_close, assert_same_bits

jax = pytest.importorskip("jax", reason="JAX is not installed: no autodiff to compare with")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

MODES = ("giou", "iou")
every_mode = pytest.mark.parametrize("mode", MODES)
UNIT = [0.0, 0.0, 1.0, 1.0]


def quotient(a, b):
    return a / b if b != 0 else 0.0


def oracle(true, pred, mode):
    """One box's loss, step by step."""

    def area(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    inner = [max(true[0], pred[0]), max(true[1], pred[1]), min(true[2], pred[2]), min(true[3], pred[3])]
    outer = [min(true[0], pred[0]), min(true[1], pred[1]), max(true[2], pred[2]), max(true[3], pred[3])]
    union = area(true) + area(pred) - area(inner)
    score = quotient(area(inner), union)
    if mode == "giou":
        score -= quotient(area(outer) - union, area(outer))
    return 1.0 - score


def in_jax(true, pred, mode):
    """The same for JAX; at ties it halves gradients, so only for boxes away from them."""

    def area(box):
        return jnp.maximum(0.0, box[..., 2] - box[..., 0]) * jnp.maximum(0.0, box[..., 3] - box[..., 1])

    def divide(a, b):
        return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))

    def join(lower, upper):
        low, high = lower(true[..., :2], pred[..., :2]), upper(true[..., 2:], pred[..., 2:])
        return area(jnp.concatenate([low, high], -1))

    inner = join(jnp.maximum, jnp.minimum)
    union = area(true) + area(pred) - inner
    score = divide(inner, union)
    if mode == "giou":
        outer = join(jnp.minimum, jnp.maximum)
        score = score - divide(outer - union, outer)
    return 1.0 - score


def boxes(rng, *shape, swapped=0.0):
    low = rng.uniform(-2, 2, (*shape, 2))
    high = low + rng.uniform(0.1, 3, low.shape)
    swap = rng.random(low.shape) < swapped
    return np.concatenate([np.where(swap, high, low), np.where(swap, low, high)], -1)


@every_mode
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_is_the_formula(mode, dtype):
    rng = np.random.default_rng(0)
    for shape in ((1,), (7,), (3, 5), (2, 1, 4), (1500,)):
        true, pred = boxes(rng, *shape, swapped=0.1).astype(dtype), boxes(rng, *shape, swapped=0.1).astype(dtype)
        want = [
            oracle(t, p, mode) for t, p in zip(true.reshape(-1, 4).tolist(), pred.reshape(-1, 4).tolist(), strict=True)
        ]
        got = losses.giou_loss(true, pred, mode)
        assert got.dtype == dtype
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
        assert_close(got, np.reshape(want, shape), f"{shape}", **tolerance)
        value, _ = losses.GIoULoss(mode, reduction="none").value_and_grad(true, pred)
        assert_close(value, got, "value with its gradient", rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)


@every_mode
def test_gradient_is_that_of_autodiff(mode):
    rng = np.random.default_rng(1)
    true, pred = boxes(rng, 2000, swapped=0.05), boxes(rng, 2000, swapped=0.05)
    want = jax.grad(lambda p: in_jax(jnp.asarray(true), p, mode).sum())(jnp.asarray(pred))
    loss = losses.GIoULoss(mode, reduction="sum")
    value, gradient = loss.value_and_grad(true, pred)
    assert_close(gradient, want, rtol=1e-12, atol=1e-13)
    assert_close(value, in_jax(jnp.asarray(true), jnp.asarray(pred), mode).sum(), rtol=1e-13)
    assert (np.abs(gradient).sum(axis=1) > 0).mean() > (
        0.8 if mode == "giou" else 0.2
    )  # the data have something to say
    single = loss.value_and_grad(true.astype(np.float32), pred.astype(np.float32))[1]
    assert_close(single, gradient.astype(np.float32), rtol=2e-3, atol=2e-4)


def test_value_of_addons_documentation():
    true, pred = [[4.0, 3.0, 7.0, 5.0], [5.0, 6.0, 10.0, 7.0]], [[3.0, 4.0, 6.0, 8.0], [14.0, 14.0, 15.0, 15.0]]
    assert_close(losses.giou_loss(true, pred), np.float32([1.075, 1.9333333]), rtol=1e-6)
    assert_close(losses.giou_loss(true, pred, "iou"), np.float32([0.875, 1.0]), rtol=1e-6)


# Name, targets, predictions, IoU loss, GIoU loss.
DEGENERATE = [
    ("identical", UNIT, UNIT, 0.0, 0.0),
    ("target without area", [0, 0, 0, 0], UNIT, 1.0, 1.0),
    ("prediction without area", UNIT, [0.5, 0.5, 0.5, 0.5], 1.0, 1.0),
    ("a point outside", UNIT, [2, 2, 2, 2], 1.0, 1.75),
    ("a line inside", UNIT, [0.5, 0, 0.5, 1], 1.0, 1.0),
    ("a line outside", UNIT, [2, 0, 2, 1], 1.0, 1.5),
    ("the same point", [1, 1, 1, 1], [1, 1, 1, 1], 1.0, 1.0),
    ("two points", [0, 0, 0, 0], [1, 2, 1, 2], 1.0, 2.0),
    ("two points on a line", [0, 0, 0, 0], [0, 2, 0, 2], 1.0, 1.0),
    ("crossed lines", [0, 1, 2, 1], [1, 0, 1, 2], 1.0, 2.0),
    ("nested in the target", [0, 0, 4, 4], [1, 1, 3, 3], 0.75, 0.75),
    ("nested around the target", [1, 1, 3, 3], [0, 0, 4, 4], 0.75, 0.75),
    ("nested in a corner", [0, 0, 4, 4], [0, 0, 2, 2], 0.75, 0.75),
    ("touching along a side", UNIT, [0, 1, 1, 2], 1.0, 1.0),
    ("touching at a corner", UNIT, [1, 1, 2, 2], 1.0, 1.5),
    ("disjoint", UNIT, [0, 3, 1, 4], 1.0, 1.5),
    ("far away", UNIT, [1e6, 1e6, 1e6 + 1, 1e6 + 1], 1.0, 2.0),
    ("swapped corners", UNIT, [1, 1, 0, 0], 1.0, 1.0),
    ("one pair swapped", UNIT, [1, 0, 0, 1], 1.0, 1.0),
    ("swapped outside", UNIT, [3, 3, 2, 2], 1.0, 1.75),
    ("swapped target", [1, 1, 0, 0], UNIT, 1.0, 1.0),
    ("both swapped", [1, 1, 0, 0], [1, 1, 0, 0], 1.0, 1.0),
    ("both swapped apart", [1, 1, 0, 0], [3, 3, 2, 2], 1.0, 2.0),
]


@pytest.mark.parametrize(("true", "pred", "iou", "giou"), [c[1:] for c in DEGENERATE], ids=[c[0] for c in DEGENERATE])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degenerate_boxes(true, pred, iou, giou, dtype):
    for mode, want in (("iou", iou), ("giou", giou)):
        assert oracle(true, pred, mode) == pytest.approx(want, abs=1e-9)
        loss = losses.GIoULoss(mode, reduction="none")
        y, p = np.array([true], dtype), np.array([pred], dtype)
        value, gradient = loss.value_and_grad(y, p)
        assert value[0] == pytest.approx(want, abs=1e-9), mode
        assert 0 <= value[0] <= 2
        assert_same_bits(loss(y, p), value)
        assert np.isfinite(gradient).all(), mode


def test_equal_boxes_have_no_loss_at_all():
    """Not -6e-8 either, as differences of rounded areas would give."""
    rng = np.random.default_rng(2)
    for dtype, mode in ((np.float32, "giou"), (np.float32, "iou"), (np.float64, "giou"), (np.float64, "iou")):
        same = boxes(rng, 3000).astype(dtype)
        loss = losses.GIoULoss(mode, reduction="none")
        assert not loss(same, same).any()
        assert not loss.value_and_grad(same, same)[0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_range(dtype):
    """Nothing below 0 or above 2, where boxes nearly coincide or share sides too."""
    rng = np.random.default_rng(3)
    true = boxes(rng, 4000, swapped=0.1).astype(dtype)
    near = true * (1 + rng.choice([0, 1e-7, 1e-4, 10], true.shape)).astype(dtype)
    shared = np.where(rng.random(true.shape) < 0.5, true, boxes(rng, 4000).astype(dtype)).astype(dtype)
    for pred in (near, shared):
        for mode, top in (("giou", 2), ("iou", 1)):
            value = losses.giou_loss(true, pred, mode)
            assert value.min() >= 0
            assert value.max() <= top


# What the first operand of a tied minimum or maximum gets is the predicted box's; an extent of 0 has slope 0.
KINKS = [
    ("iou", "identical", UNIT, UNIT, [1, 1, -1, -1]),
    ("giou", "identical", UNIT, UNIT, [0, 0, 0, 0]),
    ("iou", "touching along a side", UNIT, [0, 1, 1, 2], [0, 0, 0, 0]),
    ("giou", "touching along a side", UNIT, [0, 1, 1, 2], [-0.5, 0.5, 0.5, 0]),
    ("iou", "the same point", [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]),
    ("giou", "the same point", [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]),
    ("iou", "disjoint", UNIT, [0, 3, 1, 4], [0, 0, 0, 0]),
    ("giou", "swapped outside", UNIT, [3, 3, 2, 2], [0, 0, 0.125, 0.125]),
    ("giou", "a point outside", UNIT, [2, 2, 2, 2], [0, 0, 0.125, 0.125]),
    ("iou", "swapped corners", UNIT, [1, 1, 0, 0], [0, 0, 0, 0]),
]


@pytest.mark.parametrize(
    ("mode", "true", "pred", "want"), [(c[0], *c[2:]) for c in KINKS], ids=[f"{c[0]} {c[1]}" for c in KINKS]
)
def test_choices_at_kinks(mode, true, pred, want):
    _, gradient = losses.GIoULoss(mode, reduction="sum").value_and_grad([true], [pred])
    assert_close(gradient, np.array([want], np.float32), rtol=1e-6, atol=1e-7)


def tied_chain(true, pred):
    """GIoU's gradient by the chain rule, one derivative a step, ties to the predicted box: slow and literal."""
    slope = np.zeros(4)

    def pull(axis, low, high, low_is_pred, high_is_pred, flow):
        if high - low > 0:
            slope[axis] -= flow * low_is_pred
            slope[axis + 2] += flow * high_is_pred

    def sizes(box):
        return max(0.0, box[2] - box[0]), max(0.0, box[3] - box[1])

    inner = [max(pred[0], true[0]), max(pred[1], true[1]), min(pred[2], true[2]), min(pred[3], true[3])]
    outer = [min(pred[0], true[0]), min(pred[1], true[1]), max(pred[2], true[2]), max(pred[3], true[3])]
    areas = {name: np.prod(sizes(box)) for name, box in (("p", pred), ("t", true), ("i", inner), ("o", outer))}
    union = areas["p"] + areas["t"] - areas["i"]
    by_union = (areas["i"] / union**2 if union else 0.0) - (1 / areas["o"] if areas["o"] else 0.0)
    flows = {
        "p": by_union,
        "i": (-1 / union if union else 0.0) - by_union,
        "o": union / areas["o"] ** 2 if areas["o"] else 0.0,
    }
    chosen = {
        "p": (True,) * 4,
        "i": (pred[0] >= true[0], pred[1] >= true[1], pred[2] <= true[2], pred[3] <= true[3]),
        "o": (pred[0] <= true[0], pred[1] <= true[1], pred[2] >= true[2], pred[3] >= true[3]),
    }
    for name, box in (("p", pred), ("i", inner), ("o", outer)):
        other = sizes(box)[::-1]
        for axis in (0, 1):
            low, high = chosen[name][axis], chosen[name][axis + 2]
            pull(axis, box[axis], box[axis + 2], low, high, flows[name] * other[axis])
    return slope


def test_boxes_on_a_grid_have_every_kind_of_tie():
    """All boxes on a grid of four by four numbers against each other: each tie there is."""
    numbers = np.random.default_rng(4).integers(0, 4, (6000, 8)).astype(np.float64)
    true, pred = numbers[:, :4], numbers[:, 4:]
    value, gradient = losses.GIoULoss(reduction="none").value_and_grad(true, pred)
    assert_close(
        gradient, np.array([tied_chain(t, p) for t, p in zip(true, pred, strict=True)]), rtol=1e-12, atol=1e-14
    )
    assert_close(
        value, np.array([oracle(t, p, "giou") for t, p in zip(true, pred, strict=True)]), rtol=1e-13, atol=1e-14
    )


@every_mode
@pytest.mark.parametrize("where", ["y_true", "y_pred"])
def test_nan_stays_in_its_box(mode, where):
    rng = np.random.default_rng(5)
    true, pred = boxes(rng, 40, swapped=0.2), boxes(rng, 40, swapped=0.2)
    loss = losses.GIoULoss(mode, reduction="none")
    want = loss.value_and_grad(true, pred)
    for place in range(4):
        t, p = true.copy(), pred.copy()
        (t if where == "y_true" else p)[10:20, place] = np.nan
        value, gradient = loss.value_and_grad(t, p)
        bad = np.arange(40) // 10 == 1
        assert np.isnan(value[bad]).all()
        assert np.isnan(loss(t, p)[bad]).all()
        assert np.isnan(gradient[bad]).all()
        assert_same_bits(value[~bad], want[0][~bad])
        assert_same_bits(gradient[~bad], want[1][~bad])
        kept, cut = losses.GIoULoss(mode).value_and_grad(t, p, mask=~bad)
        assert_close(kept, want[0][~bad].mean(), rtol=1e-14)
        assert_close(cut, np.where(bad[:, None], 0, want[1] / 30), rtol=1e-14)


@every_mode
def test_any_number_of_threads_gives_the_same_bits(mode):
    rng = np.random.default_rng(6)
    for n in (1, 511, 512, 513, 20_011):
        true, pred = boxes(rng, n).astype(np.float32), boxes(rng, n).astype(np.float32)
        loss = losses.GIoULoss(mode, reduction="none")
        value, gradient = loss.value_and_grad(true, pred, n_threads=1)
        again = loss.value_and_grad(true, pred, n_threads=2)
        assert_same_bits(again[0], value)
        assert_same_bits(again[1], gradient)
        assert_same_bits(loss(true, pred, n_threads=2), loss(true, pred, n_threads=1))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "bool", "float16", "float32", "float64"])
def test_dtypes_of_targets(dtype):
    rng = np.random.default_rng(7)
    true = rng.integers(0, 2, (50, 4)).astype(dtype)
    pred = boxes(rng, 50)
    loss = losses.GIoULoss()
    value, gradient = loss.value_and_grad(true, pred)
    want = loss.value_and_grad(true.astype(np.float64), pred)
    assert_same_bits(value, want[0])
    assert_same_bits(gradient, want[1])


def test_targets_broadcast_to_predictions_and_only_they():
    rng = np.random.default_rng(8)
    one, many = boxes(rng), boxes(rng, 3, 5)
    wide = np.broadcast_to(one, many.shape)
    for got, want in zip(
        losses.GIoULoss(reduction="none").value_and_grad(one, many),
        losses.GIoULoss(reduction="none").value_and_grad(wide.copy(), many),
        strict=True,
    ):
        assert_same_bits(got, want)
    with pytest.raises(ValueError, match=r"must have the same shape.*\(3, 5, 4\).*\(4,\)"):
        losses.giou_loss(many, one)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_an_empty_batch(shape):
    empty = np.zeros(shape)
    value, gradient = losses.GIoULoss().value_and_grad(empty, empty)
    assert value == 0
    assert gradient.shape == shape
    assert losses.giou_loss(empty, empty).shape == shape[:-1]


def test_a_single_box_is_a_single_loss():
    for reduction in ("none", "sum", "mean"):
        value, gradient = losses.GIoULoss(reduction=reduction).value_and_grad([0, 0, 4, 4], [1.0, 1.0, 3.0, 3.0])
        assert value == np.float32(0.75)
        assert value.shape == ()
        assert_close(gradient, np.float32([0.125, 0.125, -0.125, -0.125]))


@pytest.mark.parametrize("name", ["y_true", "y_pred"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (4, 3), (2, 4, 1), (3, 0)])
def test_boxes_have_four_numbers(name, shape):
    good, bad = np.zeros((*shape[:-1], 4)), np.zeros(shape)
    arguments = (bad, good) if name == "y_true" else (good, bad)
    with pytest.raises(ValueError, match=rf"^`{name}` must hold boxes .*size 4.*{re.escape(str(shape))}"):
        losses.GIoULoss()(*arguments)
    with pytest.raises(ValueError, match=rf"^`{name}`"):
        losses.giou_loss(*arguments)


@pytest.mark.parametrize("mode", ["diou", "", None, 3])
def test_unknown_mode(mode):
    for make in (lambda: losses.GIoULoss(mode), lambda: losses.giou_loss([UNIT], [UNIT], mode=mode)):
        with pytest.raises(ValueError, match=rf"^`mode` must be one of 'giou', 'iou', got {mode!r}"):
            make()


def test_class_weights_have_no_meaning():
    with pytest.raises(ValueError, match="class_weight"):
        losses.GIoULoss()([UNIT, UNIT], [UNIT, UNIT], class_weight={0: 2.0})


def test_auto_is_a_reduction_of_addons_losses_only():
    auto = losses.GIoULoss(reduction="auto")
    assert auto.reduction == losses.GIoULoss().reduction == "sum_over_batch_size"
    assert auto.get_config() == losses.GIoULoss().get_config()
    with pytest.raises(ValueError, match=r"^Invalid value for argument `reduction`.*'auto'.*'average'"):
        losses.GIoULoss(reduction="average")
    with pytest.raises(ValueError, match=r"^Invalid value for argument `reduction`"):
        losses.MeanSquaredError(reduction="auto")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["iou", "iou_gradient", "giou", "giou_gradient"])
def test_the_loop_is_vectorised(name, dtype):
    import llvmlite.binding as llvm

    if not llvm.get_host_cpu_features().get("avx2", False):
        pytest.skip("the expectation is that of AVX2 machine code")
    types = (("int64", 0), *((dtype, 1),) * 4)
    assembly = items._compile(getattr(kernels, name), np.dtype(dtype), types, False).library.get_asm_str()
    suffix = "ps" if dtype == "float32" else "pd"
    divisions = re.findall(rf"vdiv{suffix}\s.*%[yz]mm", assembly)
    assert len(divisions) >= {"iou": 1, "iou_gradient": 2, "giou": 2, "giou_gradient": 4}[name]
    assert not re.search(r"gather|vpinsr|vinsertps", assembly)


@every_mode
def test_the_kernel_runs_as_plain_python(mode):
    """What a debugger steps through is what is compiled."""
    rng = np.random.default_rng(9)
    true, pred = boxes(rng, 6, swapped=0.2), boxes(rng, 6, swapped=0.2)
    values, slopes = np.empty(6), np.empty(24)
    with np.errstate(all="ignore"):
        item = getattr(kernels, f"{mode}_gradient").factory(Toolbox(np.dtype("float64"), compiled=False))
        item(0, 6, true.reshape(-1), pred.reshape(-1), values, slopes)
    value, gradient = losses.GIoULoss(mode, reduction="none").value_and_grad(true, pred)
    assert_close(values, value, rtol=1e-14)
    assert_close(slopes.reshape(6, 4), gradient, rtol=1e-13, atol=1e-15)
