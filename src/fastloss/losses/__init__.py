"""Losses as classes, function handles and string identifiers, with the semantics of ``keras.losses``."""

from __future__ import annotations

from fastloss.losses.arrays import squeeze_or_expand_to_same_rank
from fastloss.losses.base import Loss
from fastloss.losses.boxes import GIoULoss, giou_loss
from fastloss.losses.crossentropy import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
    binary_crossentropy,
    categorical_crossentropy,
    sparse_categorical_crossentropy,
)
from fastloss.losses.identifiers import deserialize, get, register, serialize
from fastloss.losses.kappa import WeightedKappaLoss
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
    GIoULoss,
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalCrossentropy,
    WeightedKappaLoss,
    binary_crossentropy,
    categorical_crossentropy,
    giou_loss,
    huber,
    log_cosh,
    mean_absolute_error,
    mean_squared_error,
    sparse_categorical_crossentropy,
)

__all__ = [
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "GIoULoss",
    "Huber",
    "LogCosh",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "SparseCategoricalCrossentropy",
    "WeightedKappaLoss",
    "binary_crossentropy",
    "categorical_crossentropy",
    "deserialize",
    "get",
    "giou_loss",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_squared_error",
    "serialize",
    "sparse_categorical_crossentropy",
    "squeeze_or_expand_to_same_rank",
]
