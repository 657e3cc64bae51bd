"""Where figures come from: the processor, the versions, and the number of threads, the same for everybody."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("numpy", "numba", "llvmlite", "scikit-learn", "torch", "jax", "optax", "keras")


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int, dtype: str) -> dict[str, str]:
    """The variables that libraries read once, when they are imported.

    Parameters
    ----------
    threads : int
        For every library.
    dtype : str
        What is measured: JAX has no float64 unless told.

    Returns
    -------
    dict of str
    """
    pools = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    return {
        **{f"{name}_NUM_THREADS": str(threads) for name in pools},
        "NPROC": str(threads),  # the size of XLA's pool
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1" if dtype == "float64" else "0",
        "KERAS_BACKEND": "jax",
        "CUDA_VISIBLE_DEVICES": "",
    }


def prepare(threads: int, dtype: str) -> None:
    """Start this process again where its environment is another: what is imported has read it already.

    It is also bound to as many cores as there are threads: some libraries ask for those and nothing else.

    Parameters
    ----------
    threads, dtype
        As for `environment`.
    """
    wanted = environment(threads, dtype)
    if hasattr(os, "sched_setaffinity") and cores() > threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def describe() -> dict[str, Any]:
    """Processor, caches and system."""
    import llvmlite.binding

    return {
        "cpu": _cpu(),
        "architecture": llvmlite.binding.get_host_cpu_name(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of Python and of every library that takes part and is installed."""
    import fastloss

    found = {"python": platform.python_version(), "fastloss": fastloss.__version__}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Name → size, as the first core sees them; empty where the system does not tell."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        found[f"L{level}{suffix}"] = size
    return found
