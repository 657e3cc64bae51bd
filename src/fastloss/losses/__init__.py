"""Losses as classes, function handles and string identifiers, with the semantics of ``keras.losses``."""

from __future__ import annotations

from fastloss.losses.arrays import squeeze_or_expand_to_same_rank
from fastloss.losses.base import Loss
from fastloss.losses.crossentropy import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
    binary_crossentropy,
    categorical_crossentropy,
    sparse_categorical_crossentropy,
)
from fastloss.losses.embedding import (
    Circle,
    LiftedStructLoss,
    TripletHardLoss,
    TripletSemiHardLoss,
    circle,
    lifted_struct_loss,
    triplet_hard_loss,
    triplet_semihard_loss,
)
from fastloss.losses.identifiers import deserialize, get, register, serialize
from fastloss.losses.npairs import NpairsLoss, NpairsMultilabelLoss, npairs_loss, npairs_multilabel_loss
from fastloss.losses.regression import (
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanSquaredError,
    huber,
    log_cosh,
    mean_absolute_error,
    mean_squared_error,
)

register(
    BinaryCrossentropy,
    CategoricalCrossentropy,
    Circle,
    Huber,
    LiftedStructLoss,
    LogCosh,
    MeanAbsoluteError,
    MeanSquaredError,
    NpairsLoss,
    NpairsMultilabelLoss,
    SparseCategoricalCrossentropy,
    TripletHardLoss,
    TripletSemiHardLoss,
    binary_crossentropy,
    categorical_crossentropy,
    circle,
    huber,
    lifted_struct_loss,
    log_cosh,
    mean_absolute_error,
    mean_squared_error,
    npairs_loss,
    npairs_multilabel_loss,
    sparse_categorical_crossentropy,
    triplet_hard_loss,
    triplet_semihard_loss,
)

__all__ = [
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "Circle",
    "Huber",
    "LiftedStructLoss",
    "LogCosh",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "NpairsLoss",
    "NpairsMultilabelLoss",
    "SparseCategoricalCrossentropy",
    "TripletHardLoss",
    "TripletSemiHardLoss",
    "binary_crossentropy",
    "categorical_crossentropy",
    "circle",
    "deserialize",
    "get",
    "huber",
    "lifted_struct_loss",
    "log_cosh",
    "mean_absolute_error",
    "mean_squared_error",
    "npairs_loss",
    "npairs_multilabel_loss",
    "serialize",
    "sparse_categorical_crossentropy",
    "squeeze_or_expand_to_same_rank",
    "triplet_hard_loss",
    "triplet_semihard_loss",
]
