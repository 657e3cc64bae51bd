"""Losses and their gradients, fused and compiled.

``import fastloss`` imports nothing but this file: names are loaded when they are first used (PEP 562), and Numba when
the first loss is computed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastloss import evaluation as evaluation
    from fastloss import losses as losses
    from fastloss import monitor as monitor
    from fastloss import regularizers as regularizers
    from fastloss import symbols as symbols
    from fastloss.balance import class_weight as class_weight
    from fastloss.clipping import clip_by_global_norm as clip_by_global_norm
    from fastloss.clipping import clip_by_norm as clip_by_norm
    from fastloss.clipping import clip_by_value as clip_by_value
    from fastloss.diagnosis import Diagnosis as Diagnosis
    from fastloss.diagnosis import Finding as Finding
    from fastloss.diagnosis import diagnose as diagnose
    from fastloss.engine.threads import get_num_threads as get_num_threads
    from fastloss.engine.threads import set_num_threads as set_num_threads
    from fastloss.evaluation.evaluate import evaluate as evaluate
    from fastloss.evaluation.result import Evaluation as Evaluation
    from fastloss.gradients import check_gradient as check_gradient
    from fastloss.kernels.definition import Kernel as Kernel
    from fastloss.kernels.definition import RowFunctions as RowFunctions
    from fastloss.kernels.definition import pointwise as pointwise
    from fastloss.kernels.definition import rowwise as rowwise
    from fastloss.nopython import kernel as kernel
    from fastloss.numerics import NumericsError as NumericsError
    from fastloss.numerics import NumericsWarning as NumericsWarning
    from fastloss.settings import floatx as floatx
    from fastloss.settings import get_check_numerics as get_check_numerics
    from fastloss.settings import set_check_numerics as set_check_numerics
    from fastloss.settings import set_floatx as set_floatx
    from fastloss.warmup import warmup as warmup

__version__ = "0.1.0"

_MODULES = ("cuda", "evaluation", "losses", "monitor", "regularizers", "symbols")

# Not in `__all__`: `from fastloss import *` must not import every framework.
_ADAPTERS = ("boosting", "jax", "keras", "sklearn", "torch")

_HOME = {
    "Diagnosis": "fastloss.diagnosis",
    "Finding": "fastloss.diagnosis",
    "NumericsError": "fastloss.numerics",
    "NumericsWarning": "fastloss.numerics",
    "class_weight": "fastloss.balance",
    "clip_by_global_norm": "fastloss.clipping",
    "clip_by_norm": "fastloss.clipping",
    "clip_by_value": "fastloss.clipping",
    "diagnose": "fastloss.diagnosis",
    "Evaluation": "fastloss.evaluation.result",
    "Kernel": "fastloss.kernels.definition",
    "RowFunctions": "fastloss.kernels.definition",
    "check_gradient": "fastloss.gradients",
    "kernel": "fastloss.nopython",
    "pointwise": "fastloss.kernels.definition",
    "rowwise": "fastloss.kernels.definition",
    "evaluate": "fastloss.evaluation.evaluate",
    "floatx": "fastloss.settings",
    "get_check_numerics": "fastloss.settings",
    "set_check_numerics": "fastloss.settings",
    "set_floatx": "fastloss.settings",
    "get_num_threads": "fastloss.engine.threads",
    "set_num_threads": "fastloss.engine.threads",
    "warmup": "fastloss.warmup",
}

__all__ = [
    "Diagnosis",
    "Evaluation",
    "Finding",
    "Kernel",
    "NumericsError",
    "NumericsWarning",
    "RowFunctions",
    "__version__",
    "check_gradient",
    "class_weight",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "cuda",
    "diagnose",
    "evaluate",
    "evaluation",
    "floatx",
    "get_check_numerics",
    "get_num_threads",
    "kernel",
    "losses",
    "monitor",
    "pointwise",
    "regularizers",
    "rowwise",
    "set_check_numerics",
    "set_floatx",
    "set_num_threads",
    "symbols",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES or name in _ADAPTERS:
        return importlib.import_module(f"fastloss.{name}")
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'fastloss' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
