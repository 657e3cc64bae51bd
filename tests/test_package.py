"""The package as a whole: imports, memory, laziness."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastloss
from fastloss.registry import LOSSES


def test_import_is_lazy():
    script = """
import sys
import fastloss
heavy = {"numba", "llvmlite", "numpy", "jax", "torch", "keras", "sklearn", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
import fastloss.losses
import fastloss.monitor.keras
heavy = {"numba", "llvmlite", "jax", "torch", "keras", "sklearn", "matplotlib", "tensorboardX"} & set(sys.modules)
assert not heavy, heavy
fastloss.losses.MeanSquaredError()
assert "numba" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_public_names():
    assert set(fastloss.__all__) <= set(dir(fastloss))
    for name in fastloss.__all__:
        assert getattr(fastloss, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastloss.nothing  # noqa: B018


def test_kernels_folder_is_the_package_s():
    root = Path(__file__).parent.parent
    assert (root / "kernels").resolve() == (root / "src" / "fastloss" / "kernels").resolve()


@pytest.mark.parametrize(
    "name", ["mean_squared_error", "hinge", "sparse_categorical_crossentropy", "cosine_similarity"]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_call_allocates_the_gradient_and_little_more(name, weighted):
    """NumPy reports what it allocates; per sample there may be a few numbers, per element only the gradient."""
    row = LOSSES[name]
    samples, elements = 4096, 1000
    rng = np.random.default_rng(0)
    for options in row.variants:
        loss = row.cls(**options)
        p = rng.random((samples, elements), dtype=np.float32)
        y = rng.integers(0, elements, samples) if row.labels == "index" else rng.random(p.shape, dtype=np.float32)
        weight = rng.random(samples, dtype=np.float32) if weighted else None
        for call, outputs in ((loss, 0), (loss.value_and_grad, 1)):
            call(y, p, weight)  # compiles
            tracemalloc.start()
            try:
                result = call(y, p, weight)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak <= outputs * p.nbytes + 64 * samples + 65_536, (options, outputs, peak - outputs * p.nbytes)
            del result


def test_out_allocates_nothing_of_the_batch():
    p = np.ones((4096, 1000), np.float32)
    y, out = np.zeros_like(p), np.empty_like(p)
    loss = fastloss.losses.MeanSquaredError()
    loss.value_and_grad(y, p, out=out)
    tracemalloc.start()
    try:
        loss.value_and_grad(y, p, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 65_536


def test_targets_of_another_dtype_are_not_copied():
    p = np.ones((4096, 1000), np.float32)
    loss = fastloss.losses.MeanSquaredError()
    for dtype in (np.int8, np.int64, np.float64, bool):
        y = np.zeros(p.shape, dtype)
        loss(y, p)
        tracemalloc.start()
        try:
            loss(y, p)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 65_536, dtype


def test_a_value_costs_no_gradient():
    """The value-only kernel divides nothing, as only the slope of these losses has a division, and takes no buffer."""
    from fastloss import kernels
    from fastloss.engine.compile import _compile
    from fastloss.engine.variant import Variant

    for kernel in (kernels.log_cosh, kernels.binary_crossentropy_logits):
        buffers, divisions = [], []
        for outputs in (0, 1):
            result = _compile(Variant(kernel, "f4", "f4", "f4", "f4", outputs))
            buffers.append(str(result.signature.args[5]))
            divisions.append(result.library.get_asm_str().count("vdivps"))
        assert divisions[0] == 0 < divisions[1]
        assert buffers[0] == "none" != buffers[1]


def test_warmup_compiles_ahead(monkeypatch):
    from fastloss.engine import compile as compiling

    loss = fastloss.losses.Huber(delta=1.5)
    assert fastloss.warmup(loss, dtypes=["float32", "float64"], hessian=True) == 12
    monkeypatch.setattr(compiling, "_compile", lambda variant: pytest.fail(f"compiled {variant}"))
    for dtype in (np.float32, np.float64):
        y, p = np.zeros((3000, 50), dtype), np.ones((3000, 50), dtype)
        for n_threads in (1, 2):
            loss(y, p, n_threads=n_threads)
            loss.value_and_grad(y, p, n_threads=n_threads)
            loss.value_grad_hess(y, p, n_threads=n_threads)
    with pytest.raises(TypeError, match="must be compiled losses"):
        fastloss.warmup("mean_squared_error")
    with pytest.raises(ValueError, match="Could not interpret loss identifier"):
        fastloss.warmup("no_such_loss")


def test_every_registered_loss_is_known_by_its_names():
    for name, row in LOSSES.items():
        assert fastloss.losses.get(name) is row.function
        assert type(fastloss.losses.get(row.cls.__name__)) is row.cls
        assert row.cls().name == {"huber": "huber_loss"}.get(name, name)
