"""Valid inputs for every loss, by the domain that its registry row names. Seeded: the same call, the same numbers.

The numbers stay away from kinks and from the borders of clips unless a test asks otherwise, so that differences
of the oracle are derivatives there: errors keep a distance from 0 and from ``delta``, probabilities from 0 and 1.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import reference

# Shapes of y_pred: what the batch looks like, small enough for differences.
SHAPES = {
    "pointwise": ((5, 3), (4,), (1, 7), (6, 1), (2, 3, 4), (2, 2, 3, 2)),
    "rowwise": ((5, 3), (1, 7), (4, 2), (2, 3, 4), (2, 2, 3, 2)),
}
# Enough work to be divided: many short rows, few long ones, and one row longer than a block.
LARGE_SHAPES = {
    "pointwise": ((30_011, 7), (301, 1003), (2, 150_001), (200_003, 1)),
    "rowwise": ((30_011, 7), (20_011, 10), (301, 1003), (3, 100_003)),
}


# Variants worth testing beyond the registry's: what changes shapes, axes and masks rather than a kernel.
MORE_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "binary_crossentropy": ({"axis": None}, {"from_logits": True, "axis": (1, 2)}, {"axis": 1}),
    "categorical_crossentropy": ({"axis": 1}, {"from_logits": True, "label_smoothing": 0.2, "axis": 1}),
    "sparse_categorical_crossentropy": (
        {"ignore_class": -1},
        {"from_logits": True, "ignore_class": 1},
        {"from_logits": True, "axis": 1},
    ),
    "cosine_similarity": ({"axis": 1},),
    "binary_focal_crossentropy": ({"axis": None},),
    "categorical_focal_crossentropy": ({"axis": 1},),
    "dice": ({"axis": (1, 2)},),
}


def variants(row) -> tuple[dict[str, Any], ...]:
    """The constructor arguments to test a loss with: the registry's, then those above."""
    more = [params for params in MORE_VARIANTS.get(row.name, ()) if params not in row.variants]
    return (*row.variants, *more)


def has_smooth_rows(row) -> bool:
    """Whether a sample is a row of the last axis, and random rows keep away from ties."""
    return reference.axis_of(row.name, {}) == -1 and row.domain != "scores"


def required(row) -> dict[str, Any]:
    """What a function handle cannot do without."""
    return {"q": 0.5} if "q" in row.cls().get_config() else {}


def is_thorough(row, params: dict[str, Any], dtype: Any = np.float64) -> bool:
    """Whether to cross this one with everything: one loss of each kind of driver, with its defaults, in float64.

    Weights, mask, reduction, outputs, dtypes and threads each make another kernel to compile, a second and more of it
    on the first run, and all but the mathematics is the drivers', shared by all losses of a kind.
    """
    return row.name in representatives().values() and not params and np.dtype(dtype) == np.float64


@functools.cache
def representatives() -> dict[str, str]:
    """kind → name: the first loss with class indices (which adds to the driver), else the first."""
    from fastloss.registry import LOSSES  # the oracle's helpers above need no package

    rows = sorted(LOSSES.values(), key=lambda row: row.labels != "index")
    return {row.kind: row.name for row in reversed(rows)}


def crossings(
    row,
    params: dict[str, Any],
    shape: tuple[int, ...],
    reductions: tuple[str | None, ...] = reference.REDUCTIONS,
    dtype: Any = np.float64,
) -> list[tuple[str, str | None, dict[str, Any]]]:
    """(label, reduction, keywords of the call): reductions × weights × masks.

    All of them where ``is_thorough``; elsewhere every value (`none`) without weights, and every other reduction with
    weights and a mask: two kernels, which together hold the code of them all.
    """
    values = reference.values_shape(row.name, params, shape)
    result = []
    for reduction, (w, weight), (m, mask) in itertools.product(
        reductions, weight_families(values).items(), mask_families(values).items()
    ):
        plain = (weight is None, mask is None) == ((True, True) if reduction in (None, "none") else (False, False))
        if plain or is_thorough(row, params, dtype) or not values:
            label = f"y_pred {shape}, reduction={reduction}, weight: {w}, mask: {m}"
            result.append((label, reduction, {"sample_weight": weight, "mask": mask}))
    return result


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def shapes(row, params: dict[str, Any], large: bool = False) -> tuple[tuple[int, ...], ...]:
    """The shapes that these parameters allow: an axis has to exist, and classes to be at least two."""
    table = LARGE_SHAPES if large else SHAPES
    axis = reference.axis_of(row.name, params)
    if axis in (-1, ()):
        return table[row.kind]
    if axis is None:
        return ((300_007,), (301, 1003)) if large else ((5, 3), (2, 3, 4))
    return ((3, 5, 53, 101), (5, 7, 61, 53)) if large else ((2, 3, 4, 2), (3, 2, 2, 3))


def inputs(
    row, params: dict[str, Any], shape: tuple[int, ...], *, seed: int = 0, dtype: Any = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """y_true and y_pred in ``dtype`` (labels of class-index losses: int64) for predictions of ``shape``."""
    random = rng(seed)
    make = DOMAINS[row.domain]
    y_true, y_pred = make(random, row, params, shape)
    return y_true if row.labels == "index" else y_true.astype(dtype), y_pred.astype(dtype)


def real(random, row, params, shape):
    """Any numbers, with errors of either sign that keep away from 0 and from the parameters where slopes change."""
    y_true = random.normal(size=shape)
    size = random.uniform(0.1, 2.5, size=shape)
    for kink in kinks(params):
        near = np.abs(size - kink) < 0.05
        size = np.where(near, size + 0.15, size)
    sign = np.where(random.random(shape) < 0.5, -1.0, 1.0)
    return y_true, y_true + sign * size


def kinks(params):
    """Absolute errors at which some derivative jumps."""
    return tuple(params[name] for name in ("delta",) if name in params) or (1.0,)


def probability(random, row, params, shape):
    """Targets 0, 1 and between; probabilities away from the clip, or logits."""
    y_true = np.where(random.random(shape) < 0.7, np.round(random.random(shape)), random.random(shape))
    if params.get("from_logits"):
        return y_true, random.uniform(-4, 4, size=shape)
    return y_true, random.uniform(0.2, 0.8, size=shape)


def distribution(random, row, params, shape):
    """Rows of y_true are distributions (a third of them one-hot); rows of y_pred positive, *not* summing to one."""
    (axis,) = reference.axes_of(row.name, params, len(shape))
    y_true = random.uniform(0.05, 1.0, size=shape)
    y_true /= y_true.sum(axis=axis, keepdims=True)
    hard = np.expand_dims(random.integers(shape[axis], size=drop(shape, axis)), axis)
    one_hot = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))]) == hard
    chosen = np.expand_dims(random.random(drop(shape, axis)) < 0.34, axis)
    return np.where(chosen, one_hot.astype(float), y_true), scores(random, params, shape)


def index(random, row, params, shape):
    """Class numbers, about a fifth of them the ignored class where there is one."""
    (axis,) = reference.axes_of(row.name, params, len(shape))
    y_true = random.integers(shape[axis], size=drop(shape, axis))
    ignored = params.get("ignore_class")
    if ignored is not None:
        y_true = np.where(random.random(y_true.shape) < 0.2, ignored, y_true)
    return y_true, scores(random, params, shape)


def scores(random, params, shape):
    if params.get("from_logits"):
        return random.uniform(-3, 3, size=shape)
    return random.uniform(0.2, 1.2, size=shape)  # not normalised, and 0.2 of a long row is far above the clip


def drop(shape, axis):
    return tuple(n for a, n in enumerate(shape) if a != axis)


def positive(random, row, params, shape):
    """Positive numbers away from 0, a factor of 1.1 to 2 apart."""
    y_true = random.uniform(0.5, 3.0, size=shape)
    return y_true, y_true * random.uniform(1.1, 2.0, size=shape) ** random.choice([-1, 1], size=shape)


def unit(random, row, params, shape):
    """Numbers in [0, 1]: targets with both ends, predictions away from them."""
    y_true = np.where(random.random(shape) < 0.5, np.round(random.random(shape)), random.random(shape))
    return y_true, random.uniform(0.2, 0.8, size=shape)


def sign(random, row, params, shape):
    """Labels -1 and 1, and predictions on either side of the margin but not at it."""
    y_true = random.choice([-1.0, 1.0], size=shape)
    distance = random.uniform(0.1, 2.0, size=shape) * random.choice([-1, 1], size=shape)
    return y_true, y_true * (1 - distance)


def pairs(random, row, params, shape):
    """Similar or not, and distances that are not the margin."""
    margin = params.get("margin", 1.0)
    distance = margin * np.where(random.random(shape) < 0.5, random.uniform(0.1, 0.9, shape), 1 + random.random(shape))
    return np.round(random.random(shape)), np.where(np.abs(distance - margin) < 0.05, margin + 0.1, distance)


def row_scores(random, row, params, shape):
    """One-hot targets, and scores whose order is clear."""
    y_true = (np.arange(shape[-1]) == random.integers(shape[-1], size=shape[:-1])[..., None]).astype(float)
    step = 0.37 / max(1.0, shape[-1] / 8)
    ranks = np.argsort(np.argsort(random.random(shape), axis=-1), axis=-1)
    return y_true, step * (1 + ranks + random.uniform(0.0, 0.05, size=shape))


DOMAINS = {
    "real": real,
    "positive": positive,
    "unit": unit,
    "sign": sign,
    "pairs": pairs,
    "probability": probability,
    "distribution": distribution,
    "scores": row_scores,
    "index": index,
}


def weight_families(shape: tuple[int, ...], *, seed: int = 7) -> dict[str, Any]:
    """Every legal shape of sample_weight for per-sample values of ``shape``, by a name for messages."""
    random = rng(seed)
    families: dict[str, Any] = {"none": None, "scalar": 1.75}
    if not shape:
        return families
    families["full"] = random.uniform(0.25, 2.0, size=shape)
    families["one more axis"] = random.uniform(0.25, 2.0, size=(*shape, 1))
    if len(shape) > 1:
        families["a row"] = random.uniform(0.25, 2.0, size=(shape[0],) + (1,) * (len(shape) - 1))
    if len(shape) == 1:
        families["integers"] = random.integers(0, 4, size=shape)
    return families


def mask_families(shape: tuple[int, ...], *, seed: int = 11) -> dict[str, Any]:
    """No mask, some entries, one more axis, and nothing left."""
    families: dict[str, Any] = {"no mask": None}
    if not shape:
        return families
    some = rng(seed).random(shape) < 0.6
    some.reshape(-1)[:1] = True  # never all masked by chance: that is a case of its own
    families["mask"] = some
    families["mask, one more axis"] = some[..., None]
    families["all masked"] = np.zeros(shape, bool)
    return families


# --------------------------------------------------------------------------------------------------------------
# Losses of boxes, sequences and whole batches
# --------------------------------------------------------------------------------------------------------------


def box_pairs(random, options, size):
    """Boxes that overlap, with a third of the predictions far off; no two sides closer than a tenth."""
    low = random.uniform(-1, 1, (size, 2))
    y_true = np.concatenate([low, low + random.uniform(1, 2, (size, 2))], axis=1)
    shift = random.uniform(0.1, 0.45, (size, 4)) * random.choice([-1.0, 1.0], (size, 4))
    return y_true, y_true + shift + 5 * (np.arange(size) % 3 == 2)[:, None]


def label_sequences(random, options, size):
    """Sequences of up to three labels in seven frames, repetitions among them, and one without labels."""
    blank = options.get("blank", 0)
    y_true = np.where(random.random((size, 3)) < 0.5, 1, 3)
    y_true[0] = blank
    y_true[1:, 2] = np.where(random.random(size - 1) < 0.5, blank, 4) if size > 1 else blank
    return y_true, random.normal(size=(size, 7, 5))


def one_hot_and_probabilities(random, options, size):
    """Each class at least once, and nothing certain."""
    classes = options["num_classes"]
    y_true = np.eye(classes)[random.permutation(np.arange(size) % classes)]
    y_pred = random.uniform(0.1, 1.0, (size, classes))
    return y_true, y_pred / y_pred.sum(axis=1, keepdims=True)


def embeddings(random, options, size):
    """Three classes or fewer, each with several members, far enough apart that no hinge is near its kink."""
    y_true = np.arange(size) % 3
    return y_true, random.normal(size=(size, 6)) + 0.5 * y_true[:, None]


def unit_embeddings(random, options, size):
    """The same of length one."""
    y_true, y_pred = embeddings(random, options, size)
    return y_true, y_pred / np.linalg.norm(y_pred, axis=1, keepdims=True)


def similarities(random, options, size):
    """Labels and the similarity of every two samples."""
    return np.arange(size) % 3, random.normal(size=(size, size))


def multilabel_similarities(random, options, size):
    """Several labels a sample, one at least, and the similarity of every two."""
    y_true = (random.random((size, 4)) < 0.4).astype(float)
    y_true[np.arange(size), np.arange(size) % 4] = 1
    return y_true, random.normal(size=(size, size))


BATCH_INPUTS: dict[str, Callable[[np.random.Generator, dict[str, Any], int], tuple[np.ndarray, np.ndarray]]] = {
    "circle": unit_embeddings,
    "ctc": label_sequences,
    "giou_loss": box_pairs,
    "lifted_struct_loss": embeddings,
    "npairs_loss": similarities,
    "npairs_multilabel_loss": multilabel_similarities,
    "triplet_hard_loss": embeddings,
    "triplet_semihard_loss": embeddings,
    "weighted_kappa_loss": one_hot_and_probabilities,
}
"""Name of a `BatchRow` → ``make(random, options, size)``: targets (float64, or integers for labels) and float64
predictions for so many samples and these constructor arguments, away from kinks by more than a difference's step.
"""

BATCH_COUNTED: dict[str, Callable[[np.ndarray], np.ndarray]] = {"circle": lambda values: values != 0}
"""Name → which of the unreduced losses count, for losses with a rule of their own."""


def batch_inputs(row, options, size, *, seed=0, dtype=np.float64):
    """Targets and predictions whose numbers any float32 holds, in `dtype`; integer targets stay what they are."""
    y_true, y_pred = BATCH_INPUTS[row.name](rng(seed), options, size)
    assert y_pred.dtype == np.float64, f"{row.name}: BATCH_INPUTS gives float64 predictions, which tests cast"
    if y_true.dtype.kind == "f":
        y_true = y_true.astype(np.float32).astype(dtype)
    return y_true, y_pred.astype(np.float32).astype(dtype)
