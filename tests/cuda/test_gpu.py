"""What only a GPU shows: streams, other libraries' arrays, sizes, races. ``make test-gpu``."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba.cuda.core", reason="needs the extra fastloss[cuda]")

import data
import fastloss
from fastloss import losses
from fastloss.engine.cuda.target import SIMULATED, cuda
from fastloss.registry import BATCH_LOSSES, LOSSES

pytestmark = pytest.mark.skipif(SIMULATED or not cuda.is_available(), reason="no CUDA device here")

SOME = (
    "mean_squared_error",
    "binary_crossentropy",
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "dice",
)


@pytest.fixture
def torch():
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    return module


@pytest.mark.parametrize("name", LOSSES)
def test_float64_agrees_with_the_cpu(name):
    row = LOSSES[name]
    shapes = ((1000, 37), (33, 5003), (3, 150_001)) if data.has_smooth_rows(row) else ((200, 37),)
    for params in row.variants:
        for shape in shapes:
            y, p = data.inputs(row, params, shape, seed=1)
            loss = row.cls(**params)
            want, slope = loss.value_and_grad(y, p)
            value, gradient = loss.value_and_grad(cuda.to_device(y), cuda.to_device(p))
            np.testing.assert_allclose(value.copy_to_host(), want, rtol=1e-11, err_msg=f"{params}, {shape}")
            np.testing.assert_allclose(
                gradient.copy_to_host(), slope, rtol=1e-9, atol=1e-13, err_msg=f"{params}, {shape}"
            )


@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_float64_of_batch_losses_agrees_with_the_cpu(name):
    row = BATCH_LOSSES[name]
    for params in row.variants:
        for size in (7, 300):
            y, p = data.batch_inputs(row, params, size, seed=1)
            want, slope = row.cls(**params).value_and_grad(y, p)
            value, gradient = row.cls(**params).value_and_grad(cuda.to_device(y), cuda.to_device(p))
            np.testing.assert_allclose(value.copy_to_host(), want, rtol=1e-11, err_msg=f"{params}, {size}")
            scale = np.abs(slope).max()
            np.testing.assert_allclose(gradient.copy_to_host() / scale, slope / scale, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["ctc", "circle", "triplet_semihard_loss", "npairs_multilabel_loss"])
def test_products_and_sequences_of_torch(name, torch):
    """Matrix products are PyTorch's own here; float32 against float64 of the CPU, the same bits each time."""
    row = BATCH_LOSSES[name]
    y, p = data.batch_inputs(row, {}, 130, seed=2)
    want, slope = row.cls().value_and_grad(y, p)
    t, z = torch.tensor(y).cuda(), torch.tensor(p).cuda().float().requires_grad_()
    value, gradient = row.cls().value_and_grad(t, z)
    again = row.cls().value_and_grad(t, z)
    assert bool((gradient == again[1]).all())
    assert value.item() == again[0].item()
    np.testing.assert_allclose(value.item(), want, rtol=1e-4)
    np.testing.assert_allclose(gradient.double().cpu().numpy(), slope, atol=1e-3 * np.abs(slope).max())


def test_long_sequences_are_computed_in_segments(monkeypatch):
    monkeypatch.setattr("fastloss.losses.device_batch.TABLE_BYTES", 1 << 16)
    random = np.random.default_rng(4)
    y, p = random.integers(1, 6, (3, 70)), random.normal(size=(3, 400, 6))
    want, slope = losses.CTC().value_and_grad(y, p)
    value, gradient = losses.CTC().value_and_grad(cuda.to_device(y), cuda.to_device(p))
    np.testing.assert_allclose(value.copy_to_host(), want, rtol=1e-12)
    np.testing.assert_allclose(gradient.copy_to_host(), slope, atol=1e-12)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_of_torch(name, dtype, torch):
    row = LOSSES[name]
    y, p = data.inputs(row, {}, (67, 33), seed=2)
    t, z = torch.tensor(y).cuda(), torch.tensor(p).cuda().to(getattr(torch, dtype)).requires_grad_()
    value, gradient = row.cls().value_and_grad(t, z)
    assert isinstance(value, torch.Tensor)
    assert value.device == gradient.device == z.device
    assert (gradient.dtype, gradient.shape, value.shape) == (z.dtype, z.shape, ())
    wide = z.detach().double().cpu().numpy()
    want, slope = row.cls().value_and_grad(y, wide)
    step = torch.finfo(torch.float32 if dtype in ("float16", "bfloat16") else z.dtype).eps
    np.testing.assert_allclose(value.item(), want, rtol=100 * step)
    np.testing.assert_allclose(
        gradient.double().cpu().numpy(), slope, rtol=max(float(torch.finfo(z.dtype).eps), 1e4 * step), atol=1e-6
    )


def test_arrays_of_cupy():
    cupy = pytest.importorskip("cupy")
    y, p = data.inputs(LOSSES["huber"], {}, (67, 33), seed=3)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        value, gradient = losses.Huber().value_and_grad(cupy.asarray(y), cupy.asarray(p))
        assert isinstance(value, cupy.ndarray)
        assert isinstance(gradient, cupy.ndarray)
        stream.synchronize()
    np.testing.assert_allclose(cupy.asnumpy(gradient), losses.Huber().value_and_grad(y, p)[1], rtol=1e-11)


def test_a_call_is_on_the_current_stream_and_waits_for_nothing(torch):
    y, p = torch.zeros(1 << 24, device="cuda"), torch.zeros(1 << 24, device="cuda")
    losses.MeanSquaredError().value_and_grad(y, p)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)  # a good part of a second
        p.fill_(2.0)
        value, gradient = losses.MeanSquaredError().value_and_grad(y, p)
        assert not stream.query(), "the call has waited for its stream"
        assert torch.cuda.default_stream().query(), "something is on another stream"
        stream.synchronize()
    assert value.item() == 4.0, "the call did not wait on its stream for what came before"
    assert bool((gradient == gradient[0]).all())


def test_more_than_two_to_the_31_elements(torch):
    n = (1 << 31) + 12_345
    if torch.cuda.mem_get_info()[0] < 3 * 2 * n:
        pytest.skip("not enough device memory")
    y = torch.zeros(n, device="cuda", dtype=torch.float16)
    p = torch.ones(n, device="cuda", dtype=torch.float16)
    p[-1] = 100.0
    value, gradient = losses.MeanSquaredError(reduction="sum").value_and_grad(y, p, out=p)
    assert abs(value.item() - (n - 1 + 100.0**2)) <= 1e-7 * n
    assert gradient[-1].item() == 200.0
    assert bool((gradient[: 1 << 20] == 2).all())
    columns = 1 << 16
    rows = n // columns
    p = p[: rows * columns].view(rows, columns)
    p.fill_(0.0)
    labels = torch.zeros(rows, device="cuda", dtype=torch.int64)
    value = losses.SparseCategoricalCrossentropy(from_logits=True)(labels, p)
    assert abs(value.item() - np.log(columns)) < 1e-5


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    program = """
import numpy as np
from numba import cuda
from fastloss import losses
y = np.arange(70) % 10
r = np.random.default_rng(1)
for loss in (losses.TripletSemiHardLoss(), losses.LiftedStructLoss(), losses.Circle(), losses.TripletHardLoss()):
    loss.value_and_grad(cuda.to_device(y), cuda.to_device(r.random((70, 9), np.float32)))[0].copy_to_host()
labels, logits = r.integers(1, 5, (3, 40)), r.random((3, 90, 5), np.float32)
losses.CTC().value_and_grad(cuda.to_device(labels), cuda.to_device(logits))[0].copy_to_host()
for loss in (losses.SparseCategoricalCrossentropy(from_logits=True), losses.SparsemaxLoss(), losses.Dice()):
    for shape in ((70, 10), (70, 1000), (70, 20_000)):
        p = np.random.default_rng(0).random(shape, np.float32)
        t = y if loss.class_indices else p[::-1].copy()
        loss.value_and_grad(cuda.to_device(t), cuda.to_device(p))[0].copy_to_host()
"""
    run = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]


def test_wrong_labels_are_told(torch):
    p = torch.full((3, 3), 1 / 3, device="cuda")
    losses.SparseCategoricalCrossentropy()(torch.tensor([0, 7, 1], device="cuda"), p)
    with pytest.raises(ValueError, match=r"y_true\[1\]"):
        fastloss.cuda.synchronize()


@pytest.mark.parametrize("name", ["mean_squared_error", "sparse_categorical_crossentropy"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "none"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_modules_of_torch(name, reduction, dtype, compiled, torch):
    import fastloss.torch

    y, p = data.inputs(LOSSES[name], {}, (67, 33), seed=4)
    criterion = fastloss.torch.wrap(name, reduction=reduction)
    call = torch.compile(criterion, fullgraph=True) if compiled else criterion
    host = torch.tensor(p).to(getattr(torch, dtype)).requires_grad_()
    leaf = host.detach().cuda().requires_grad_()
    target, weight = torch.tensor(y), torch.linspace(0, 2, 67)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        value = call(leaf, target.cuda(), weight.cuda())
        (3 * value).sum().backward()
    stream.synchronize()
    expected = criterion(host, target, weight)
    (3 * expected).sum().backward()
    assert value.device == leaf.device
    torch.testing.assert_close(value.cpu(), expected)
    torch.testing.assert_close(leaf.grad.cpu(), host.grad)


def test_a_step_of_torch_waits_for_nothing(torch):
    import fastloss.torch

    criterion = fastloss.torch.wrap("mse")
    y, p = torch.zeros(1 << 20, device="cuda"), torch.ones(1 << 20, device="cuda", requires_grad=True)
    criterion(p, y).backward()
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    criterion(p, y).backward()
    assert not torch.cuda.current_stream().query(), "the step has waited for the device"
    torch.cuda.synchronize()
