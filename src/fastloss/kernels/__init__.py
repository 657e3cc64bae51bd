"""The mathematics: one module a family, each loss defined exactly once, no batch loops."""

from __future__ import annotations

from fastloss.kernels.boxes import giou, giou_gradient, iou, iou_gradient
from fastloss.kernels.crossentropy import (
    binary_crossentropy,
    binary_crossentropy_logits,
    categorical_crossentropy,
    categorical_crossentropy_logits,
    generalized_crossentropy,
    sparsemax,
)
from fastloss.kernels.definition import (
    Kernel,
    RowFunctions,
    itemwise,
    pointwise,
    rowwise,
)
from fastloss.kernels.divergence import (
    kl_divergence,
    poisson,
)
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
from fastloss.kernels.focal import (
    binary_focal,
    binary_focal_logits,
    binary_focal_logits_squared,
    binary_focal_squared,
    categorical_focal,
    categorical_focal_logits,
    categorical_focal_logits_squared,
    categorical_focal_squared,
)
from fastloss.kernels.hinge import (
    categorical_hinge,
    hinge,
    squared_hinge,
)
from fastloss.kernels.overlap import (
    dice,
    tversky,
)
from fastloss.kernels.regression import (
    contrastive,
    cosine_similarity,
    huber,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    pinball,
)
from fastloss.kernels.sequence import ctc
from fastloss.kernels.weights import (
    absolute,
    absolute_square,
    clip,
    half_square,
)

__all__ = [
    "Kernel",
    "RowFunctions",
    "absolute",
    "absolute_square",
    "binary_crossentropy",
    "binary_crossentropy_logits",
    "binary_focal",
    "binary_focal_logits",
    "binary_focal_logits_squared",
    "binary_focal_squared",
    "categorical_crossentropy",
    "categorical_crossentropy_logits",
    "categorical_focal",
    "categorical_focal_logits",
    "categorical_focal_logits_squared",
    "categorical_focal_squared",
    "categorical_hinge",
    "circle",
    "clip",
    "contrastive",
    "cosine_similarity",
    "ctc",
    "dice",
    "euclidean",
    "flow_cosine",
    "flow_euclidean",
    "generalized_crossentropy",
    "giou",
    "giou_gradient",
    "half_square",
    "hinge",
    "huber",
    "iou",
    "iou_gradient",
    "itemwise",
    "kl_divergence",
    "lifted_negatives",
    "lifted_pairs",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "npairs",
    "npairs_multilabel",
    "pinball",
    "pointwise",
    "poisson",
    "rowwise",
    "sparsemax",
    "squared_hinge",
    "triplet_hard",
    "triplet_semihard",
    "tversky",
]
