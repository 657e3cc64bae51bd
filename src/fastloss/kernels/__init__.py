"""The mathematics: one module a family, each loss defined exactly once, no batch loops."""

from __future__ import annotations

from fastloss.kernels.crossentropy import (
    binary_crossentropy,
    binary_crossentropy_logits,
    categorical_crossentropy,
    categorical_crossentropy_logits,
)
from fastloss.kernels.definition import Kernel, RowFunctions, pointwise, rowwise
from fastloss.kernels.regression import huber, log_cosh, mean_absolute_error, mean_squared_error
from fastloss.kernels.sequence import ctc

__all__ = [
    "Kernel",
    "RowFunctions",
    "binary_crossentropy",
    "binary_crossentropy_logits",
    "categorical_crossentropy",
    "categorical_crossentropy_logits",
    "ctc",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_squared_error",
    "pointwise",
    "rowwise",
]
