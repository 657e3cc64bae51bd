"""Losses and their gradients, fused and compiled.

``import fastloss`` imports nothing but this file: names are loaded when they are first used (PEP 562), and Numba when
the first loss is computed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastloss import losses as losses
    from fastloss import symbols as symbols
    from fastloss.engine.threads import get_num_threads as get_num_threads
    from fastloss.engine.threads import set_num_threads as set_num_threads
    from fastloss.gradients import check_gradient as check_gradient
    from fastloss.kernels.definition import Kernel as Kernel
    from fastloss.kernels.definition import RowFunctions as RowFunctions
    from fastloss.kernels.definition import pointwise as pointwise
    from fastloss.kernels.definition import rowwise as rowwise
    from fastloss.nopython import kernel as kernel
    from fastloss.settings import floatx as floatx
    from fastloss.settings import set_floatx as set_floatx
    from fastloss.warmup import warmup as warmup

__version__ = "0.1.0"

_HOME = {
    "Kernel": "fastloss.kernels.definition",
    "RowFunctions": "fastloss.kernels.definition",
    "check_gradient": "fastloss.gradients",
    "kernel": "fastloss.nopython",
    "pointwise": "fastloss.kernels.definition",
    "rowwise": "fastloss.kernels.definition",
    "floatx": "fastloss.settings",
    "set_floatx": "fastloss.settings",
    "get_num_threads": "fastloss.engine.threads",
    "set_num_threads": "fastloss.engine.threads",
    "warmup": "fastloss.warmup",
}

_MODULES = ("losses", "symbols")

__all__ = [
    "Kernel",
    "RowFunctions",
    "__version__",
    "check_gradient",
    "floatx",
    "get_num_threads",
    "kernel",
    "losses",
    "pointwise",
    "rowwise",
    "set_floatx",
    "set_num_threads",
    "symbols",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastloss.{name}")
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'fastloss' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
