"""What is measured: every registered loss, the shapes of its uses, and numbers that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fastloss.losses.arrays import Array
from fastloss.losses.base import Loss
from fastloss.registry import BATCH_LOSSES, LOSSES, BatchRow, Row

Shape = tuple[int, ...]

SHAPES: dict[Shape, str] = {
    (32, 10): "training step",
    (256, 100): "training step",
    (4096, 1000): "classifier batch",
    (512, 32000): "language-model rows",
    (1048576, 1): "long and thin",
    (1048576, 2): "long and thin",
    (1048576, 10): "long and thin",
}
"""Shapes of predictions, and whose they are."""

SMALL, LARGE = (32, 10), (4096, 1000)
"""The two shapes of summaries: one in which the call counts, one in which the loop does."""

QUICK = ("mean_squared_error", "log_cosh", "categorical_crossentropy", "sparse_categorical_crossentropy")
"""The losses of a quick look: bound by memory, by arithmetic, and by both."""

REDUCTION = "sum_over_batch_size"

CLASSES = ("distribution", "scores", "index")
"""Domains whose rows are classes."""


class Case(NamedTuple):
    """A loss as it is measured.

    Attributes
    ----------
    label : str
        The identifier, with ``", from logits"`` where that is the option.
    row : Row or BatchRow
        Of the registry.
    options : dict
        Constructor arguments.
    """

    label: str
    row: Row | BatchRow
    options: dict[str, Any]

    def loss(self) -> Loss:
        """The loss itself; everybody computes a mean, which is not the default of all."""
        return self.row.cls(**{"reduction": REDUCTION, **self.options})

    def inputs(self, shape: Shape, dtype: str) -> tuple[Array, Array]:
        """Targets and predictions; seeded."""
        rng = np.random.default_rng(0)
        if isinstance(self.row, BatchRow):
            y, p = BATCH_CASES[self.row.name].inputs(rng, shape)
            return (y.astype(dtype) if y.dtype.kind == "f" else y), p.astype(dtype)
        return _inputs(self.row, self.options.get("from_logits", False), rng, shape, dtype)


def cases(names: tuple[str, ...] = ()) -> list[Case]:
    """Registered losses with their defaults, and from logits where they have that.

    Parameters
    ----------
    names : tuple of str
        Identifiers; empty for all losses. A loss of whole batches must be in `BATCH_CASES`.

    Returns
    -------
    list of Case
    """
    found = []
    for name, row in LOSSES.items():
        if names and name not in names:
            continue
        found.append(Case(name, row, {}))
        if {"from_logits": True} in row.variants:
            found.append(Case(f"{name}, from logits", row, {"from_logits": True}))
    for name, batch_row in BATCH_LOSSES.items():
        if name in BATCH_CASES and (not names or name in names):
            found.append(Case(name, batch_row, dict(BATCH_CASES[name].options)))
    return found


def shapes(case: Case, wanted: tuple[Shape, ...]) -> tuple[list[Shape], dict[Shape, str]]:
    """The shapes in which a case is measured, and those in which it is not, with the reason.

    Parameters
    ----------
    case : Case
        Which.
    wanted : tuple of tuple of int
        Shapes asked for; empty for those of `SHAPES`.

    Returns
    -------
    chosen : list of tuple of int
        Shapes that make sense.
    skipped : dict
        Shape → reason.
    """
    if isinstance(case.row, BatchRow):
        own = BATCH_CASES[case.row.name].shape
        if not wanted or own in wanted:
            return [own], {}
        return [], dict.fromkeys(wanted, f"it has a shape of its own, {own}")
    chosen, skipped = [], {}
    for shape in wanted or SHAPES:
        if case.row.kind == "rowwise" and case.row.domain != "unit" and shape[-1] < 2:
            skipped[shape] = "a row of one element has a constant loss"
        elif not wanted and SHAPES[shape] == "language-model rows" and case.row.domain not in CLASSES:
            skipped[shape] = "rows of a vocabulary are for losses of classes"
        else:
            chosen.append(shape)
    return chosen, skipped


def _inputs(row: Row, logits: bool, rng: np.random.Generator, shape: Shape, dtype: str) -> tuple[Array, Array]:
    """Targets and predictions in the domain of a loss, away from the borders where it clips them."""
    p = rng.standard_normal(shape, np.float32).astype(dtype)
    if row.domain == "real":
        return rng.standard_normal(shape, np.float32).astype(dtype), p
    if row.domain == "positive":
        return rng.uniform(0.5, 3, shape).astype(dtype), np.exp(p)
    if row.domain == "sign":
        return rng.choice(np.array([-1, 1], dtype), shape), p
    if row.domain in ("probability", "unit", "pairs"):
        y = (rng.random(shape, np.float32) < 0.5).astype(dtype)
        return y, p if logits else 1 / (1 + np.exp(-p))
    if not logits and row.domain != "scores":
        p = rng.uniform(0.2, 1.2, shape).astype(dtype)
        p /= p.sum(axis=1, keepdims=True)
    labels = rng.integers(0, shape[1], shape[0])
    if row.labels == "index":
        return labels, p
    y = np.zeros(shape, dtype)
    y[np.arange(shape[0]), labels] = 1
    return y, p


class BatchCase(NamedTuple):
    """How a loss of boxes, sequences or whole batches is measured: it has a shape of its own."""

    shape: Shape
    inputs: Callable[[np.random.Generator, Shape], tuple[Array, Array]]
    options: Mapping[str, Any] = MappingProxyType({})
    error: float = 0.0
    """What a float32 gradient may be off, beside its largest entry: more than roundings where exponents are large."""


def _boxes(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    low = rng.uniform(-1, 1, (shape[0], 2))
    y = np.concatenate([low, low + rng.uniform(1, 2, low.shape)], axis=1)
    return y, y + rng.uniform(0.1, 0.4, shape) * rng.choice([-1, 1], shape)


def _ordered_classes(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    p = rng.uniform(0.1, 1, shape)
    return np.eye(shape[1])[rng.integers(0, shape[1], shape[0])], p / p.sum(axis=1, keepdims=True)


def _sequences(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    batch, frames, classes = shape
    return rng.integers(1, classes, (batch, frames // 4)), rng.standard_normal(shape)


def _embeddings(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    p = rng.standard_normal(shape)
    return rng.integers(0, max(2, shape[0] // 8), shape[0]), p / np.linalg.norm(p, axis=1, keepdims=True)


def _similarities(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    return rng.integers(0, max(2, shape[0] // 8), shape[0]), rng.standard_normal(shape)


def _tagged_similarities(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    tags = rng.random((shape[0], 16)) < 0.2
    tags[np.arange(shape[0]), rng.integers(0, 16, shape[0])] = True  # everybody has one
    return tags.astype(np.float64), rng.standard_normal(shape)


BATCH_CASES: dict[str, BatchCase] = {
    "giou_loss": BatchCase((65536, 4), _boxes),
    "weighted_kappa_loss": BatchCase((4096, 10), _ordered_classes, {"num_classes": 10}),
    "ctc": BatchCase((32, 128, 64), _sequences, error=1e-3),
    "triplet_semihard_loss": BatchCase((256, 128), _embeddings),
    "triplet_hard_loss": BatchCase((256, 128), _embeddings),
    "lifted_struct_loss": BatchCase((256, 128), _embeddings),
    "npairs_loss": BatchCase((256, 256), _similarities),
    "npairs_multilabel_loss": BatchCase((256, 256), _tagged_similarities),
    "circle": BatchCase((256, 128), _embeddings, error=1e-3),
}
"""Identifier → its case."""
