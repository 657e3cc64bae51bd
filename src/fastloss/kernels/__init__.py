"""The mathematics: one module a family, each loss defined exactly once, no batch loops."""

from __future__ import annotations

from fastloss.kernels.crossentropy import (
    binary_crossentropy,
    binary_crossentropy_logits,
    categorical_crossentropy,
    categorical_crossentropy_logits,
)
from fastloss.kernels.definition import Kernel, RowFunctions, pointwise, rowwise
from fastloss.kernels.embedding import (
    circle,
    euclidean,
    flow_cosine,
    flow_euclidean,
    lifted_negatives,
    lifted_pairs,
    npairs,
    npairs_multilabel,
    triplet_hard,
    triplet_semihard,
)
from fastloss.kernels.regression import huber, log_cosh, mean_absolute_error, mean_squared_error

__all__ = [
    "Kernel",
    "RowFunctions",
    "binary_crossentropy",
    "binary_crossentropy_logits",
    "categorical_crossentropy",
    "categorical_crossentropy_logits",
    "circle",
    "euclidean",
    "flow_cosine",
    "flow_euclidean",
    "huber",
    "lifted_negatives",
    "lifted_pairs",
    "log_cosh",
    "mean_absolute_error",
    "mean_squared_error",
    "npairs",
    "npairs_multilabel",
    "pointwise",
    "rowwise",
    "triplet_hard",
    "triplet_semihard",
]
