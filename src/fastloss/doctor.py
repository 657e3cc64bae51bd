"""What an installation consists of, for bug reports: versions, processor, threads, cache, CUDA."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform

import numpy as np

import fastloss
from fastloss.engine import cache, threads

_CORE = ("numpy", "numba", "llvmlite")
_EXTRAS = ("ddsketch", "pyarrow", "h5py", "zarr", "safetensors", "dask", "distributed", "matplotlib", "rich", "typer")
_BESIDE = ("numba-cuda", "ml_dtypes", "pandas", "polars", "scikit-learn", "keras", "torch", "jax")

LIBRARIES = _CORE + _EXTRAS + _BESIDE
"""Distributions that the package can use or stands beside."""

FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bf16", "neon", "sve")
"""Features of processors that decide how fast kernels are."""


def examine() -> dict[str, str]:
    """Everything, by name, in the order in which it is shown.

    Returns
    -------
    dict of str
        What could not be found out says so, and why.
    """
    import llvmlite.binding as llvm

    has = llvm.get_host_cpu_features()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "fastloss": fastloss.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **{name: found for name in LIBRARIES if (found := _version(name))},
        "not installed": ", ".join(name for name in LIBRARIES if not _version(name)) or "nothing",
        "processor": llvm.get_host_cpu_name(),
        "features": ", ".join(name for name in FEATURES if has.get(name)) or "none of " + ", ".join(FEATURES),
        "cores": f"{os.cpu_count()}, of which this process may use {allowed}",
        "threads": f"at most {threads.available()} (NUMBA_NUM_THREADS), {threads.get_num_threads() or 'by work'}",
        "threading layer": _layer(),
        "kernel": _kernel(),
        "cache": _cache(),
        "cuda": _cuda(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _layer() -> str:
    """Which layer runs parallel code: known once some has run."""
    import numba

    rows = np.zeros((1 << 16, 4), np.float32)
    if threads.available() == 1:
        return "none: one thread"
    try:
        fastloss.losses.MeanSquaredError()(rows, rows, n_threads=2)
        return str(numba.threading_layer())  # type: ignore[attr-defined]
    except Exception as error:  # a broken layer is what is looked for
        return f"FAILED: {type(error).__name__}: {error}"


def _kernel() -> str:
    """Whether a loss gives what it must."""
    value, gradient = fastloss.losses.Huber().value_and_grad(np.zeros((2, 2)), np.array([[0.5, 1.0], [2.0, -2.0]]))
    right = value == 0.90625 and gradient.tolist() == [[0.125, 0.25], [0.25, -0.25]]
    return "works" if right else f"FAILED: the Huber loss is {value}, its gradient {gradient.tolist()}"


def _cache() -> str:
    place = cache.folder()
    if place is None:
        return "off (FASTLOSS_CACHE_DIR is empty)"
    files = list(place.glob("*.kernel")) if place.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    near = next(parent for parent in (place, *place.parents) if parent.exists())
    state = "" if os.access(near, os.W_OK) else ", NOT writable"
    return f"{place}: {len(files)} kernels, {size / 1e6:.1f} MB{state}"


def _cuda() -> str:
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is not installed"
    try:
        from numba import cuda

        if not cuda.is_available():  # type: ignore[no-untyped-call]
            return "numba-cuda is installed, but there is no usable GPU or driver"
        return ", ".join(device.name.decode() for device in cuda.gpus)
    except Exception as error:  # whatever a half-installed driver does
        return f"FAILED: {type(error).__name__}: {error}"
