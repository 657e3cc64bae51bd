"""A naive NumPy float64 oracle: one function a loss, and everything between a call and its number.

Written from the specification alone, for reading: no kernel is imported, nothing is fused, nothing is fast. To add
a loss, write a function ``(y_true, y_pred, dtype, **params)`` over *rows*, and give it a line in ``REFERENCES``:

* rows are 2-D arrays (samples, entries) of float64, or for class-index losses a vector of labels and 2-D rows;
* it returns one value a sample;
* ``dtype`` is the compute dtype: arithmetic is float64 throughout, but a clip border such as ``1 - 1e-7`` is a
  number *of that dtype* (0.99999988 in float32), and it decides digits that anybody can see.

Gradients are fourth-order central differences of this very oracle, so that no derivative is ever written twice; at
kinks, where differences mean nothing, ``test_kinks.py`` has tables instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

EPSILON = 1e-7
REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None)


def borders(dtype: Any) -> tuple[float, float]:
    """ε and 1 - ε as the compute dtype has them, widened. Half precision computes in float32."""
    kind = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    low = kind(EPSILON)
    return float(low), float(kind(1) - low)


# --------------------------------------------------------------------------------------------------------------
# The losses, a row at a time
# --------------------------------------------------------------------------------------------------------------


def mean_squared_error(y_true, y_pred, dtype):
    return np.mean((y_pred - y_true) ** 2, axis=-1)


def mean_absolute_error(y_true, y_pred, dtype):
    return np.mean(np.abs(y_pred - y_true), axis=-1)


def huber(y_true, y_pred, dtype, delta=1.0):
    error = np.abs(y_pred - y_true)
    return np.mean(np.where(error <= delta, error**2 / 2, delta * error - delta**2 / 2), axis=-1)


def log_cosh(y_true, y_pred, dtype):
    error = np.abs(y_pred - y_true)
    near = np.minimum(error, 1.0)  # cosh e = 1 + 2 sinh²(e/2): nothing cancels, however small the error
    far = np.maximum(error, 1.0)
    small = np.log1p(2 * np.sinh(near / 2) ** 2)
    large = far + np.log1p(np.exp(-2 * far)) - np.log(2.0)
    return np.mean(np.where(error < 1.0, small, large), axis=-1)


def binary_crossentropy(y_true, y_pred, dtype, from_logits=False, label_smoothing=0.0):
    t = y_true * (1 - label_smoothing) + label_smoothing / 2
    if from_logits:
        log_p, log_not_p = -np.logaddexp(0, -y_pred), -np.logaddexp(0, y_pred)
    else:
        q = clip(y_pred, *borders(dtype))
        log_p, log_not_p = np.log(q), np.log(1 - q)
    return np.mean(-times(t, log_p) - times(1 - t, log_not_p), axis=-1)


def categorical_crossentropy(y_true, y_pred, dtype, from_logits=False, label_smoothing=0.0):
    classes = y_pred.shape[-1]
    t = y_true * (1 - label_smoothing) + label_smoothing / classes
    return -np.sum(t * log_probabilities(y_pred, dtype, from_logits), axis=-1)


def sparse_categorical_crossentropy(labels, y_pred, dtype, from_logits=False, label_smoothing=0.0):
    classes = y_pred.shape[-1]
    check_labels(labels, classes)
    one_hot = np.zeros(y_pred.shape)
    for row, label in enumerate(labels):
        one_hot[row, int(label)] = 1.0
    return categorical_crossentropy(one_hot, y_pred, dtype, from_logits, label_smoothing)


def mean_absolute_percentage_error(y_true, y_pred, dtype):
    return 100 * np.mean(np.abs(y_pred - y_true) / np.maximum(np.abs(y_true), borders(dtype)[0]), axis=-1)


def mean_squared_logarithmic_error(y_true, y_pred, dtype):
    low = borders(dtype)[0]
    return np.mean((np.log(np.maximum(y_pred, low) + 1) - np.log(np.maximum(y_true, low) + 1)) ** 2, axis=-1)


def cosine_similarity(y_true, y_pred, dtype):
    def unit(x):
        return x / np.sqrt(np.maximum(np.sum(x**2, axis=-1, keepdims=True), borders(dtype)[0] ** 2))

    return -np.sum(unit(y_true) * unit(y_pred), axis=-1)


def pinball_loss(y_true, y_pred, dtype, tau=0.5):
    error = y_true - y_pred
    return np.mean(np.maximum(tau * error, (tau - 1) * error), axis=-1)


def contrastive_loss(y_true, y_pred, dtype, margin=1.0):
    return np.sum(y_true * y_pred**2 + (1 - y_true) * np.maximum(margin - y_pred, 0) ** 2, axis=-1)


def hinge(y_true, y_pred, dtype):
    return np.mean(np.maximum(1 - y_true * y_pred, 0), axis=-1)


def squared_hinge(y_true, y_pred, dtype):
    return np.mean(np.maximum(1 - y_true * y_pred, 0) ** 2, axis=-1)


def categorical_hinge(y_true, y_pred, dtype):
    negative = np.max((1 - y_true) * y_pred, axis=-1, initial=-np.inf)
    return np.maximum(negative - np.sum(y_true * y_pred, axis=-1) + 1, 0)


def poisson(y_true, y_pred, dtype):
    return np.mean(y_pred - y_true * np.log(y_pred + borders(dtype)[0]), axis=-1)


def kl_divergence(y_true, y_pred, dtype):
    low = borders(dtype)[0]
    t, q = clip(y_true, low, 1.0), clip(y_pred, low, 1.0)
    return np.sum(t * np.log(t / q), axis=-1)


def binary_focal_crossentropy(
    y_true, y_pred, dtype, apply_class_balancing=False, alpha=0.25, gamma=2.0, from_logits=False, label_smoothing=0.0
):
    t = y_true * (1 - label_smoothing) + label_smoothing / 2
    weight = t * alpha + (1 - t) * (1 - alpha) if apply_class_balancing else 1.0
    return np.mean(weight * binary_focal(t, y_pred, dtype, gamma, from_logits, 0.0), axis=-1)


def sigmoid_focal_crossentropy(y_true, y_pred, dtype, from_logits=False, alpha=0.25, gamma=2.0):
    weight = y_true * alpha + (1 - y_true) * (1 - alpha) if alpha else 1.0
    return np.sum(weight * binary_focal(y_true, y_pred, dtype, gamma, from_logits, EPSILON), axis=-1)


def binary_focal(t, y_pred, dtype, gamma, from_logits, offset):
    if from_logits:
        p, complement = 1 / (1 + np.exp(-y_pred)), 1 / (1 + np.exp(y_pred))
        log_p, log_not_p = -np.logaddexp(0, -y_pred), -np.logaddexp(0, y_pred)
    else:
        p, complement = y_pred, 1 - y_pred
        q = clip(y_pred, *borders(dtype))
        log_p, log_not_p = np.log(q + offset), np.log(1 - q + offset)
    wrong = t * complement + (1 - t) * p
    return wrong**gamma * (-times(t, log_p) - times(1 - t, log_not_p))


def categorical_focal_crossentropy(
    y_true, y_pred, dtype, alpha=0.25, gamma=2.0, from_logits=False, label_smoothing=0.0
):
    t = y_true * (1 - label_smoothing) + label_smoothing / y_pred.shape[-1]
    if from_logits:
        y_pred = np.exp(y_pred - np.max(y_pred, axis=-1, keepdims=True))
    q = clip(y_pred / np.sum(y_pred, axis=-1, keepdims=True), *borders(dtype))
    return np.sum(alpha * (1 - q) ** gamma * -t * np.log(q), axis=-1)


def categorical_generalized_cross_entropy(labels, y_pred, dtype, q=0.5):
    check_labels(labels, y_pred.shape[-1])
    chosen = np.asarray([row[int(label)] for row, label in zip(y_pred, labels, strict=True)], float)
    return (1 - chosen**q) / q


def sparsemax_loss(y_true, y_pred, dtype):
    ordered = -np.sort(-y_pred, axis=-1)
    sums = np.cumsum(ordered, axis=-1)
    count = np.arange(1, y_pred.shape[-1] + 1)
    support = np.sum(1 + count * ordered > sums, axis=-1, keepdims=True)
    threshold = (np.take_along_axis(sums, np.maximum(support - 1, 0), axis=-1) - 1) / np.maximum(support, 1)
    s = np.maximum(y_pred - threshold, 0)
    return np.sum(s * (y_pred - s / 2) + y_true * (y_true / 2 - y_pred), axis=-1)


def dice(y_true, y_pred, dtype):
    both = np.sum(y_true * y_pred, axis=-1)
    return 1 - 2 * both / (np.sum(y_true, axis=-1) + np.sum(y_pred, axis=-1) + borders(dtype)[0])


def tversky(y_true, y_pred, dtype, alpha=0.5, beta=0.5):
    both = np.sum(y_true * y_pred, axis=-1)
    wrong, missed = np.sum((1 - y_true) * y_pred, axis=-1), np.sum(y_true * (1 - y_pred), axis=-1)
    return 1 - both / (both + alpha * wrong + beta * missed + borders(dtype)[0])


class Reference(NamedTuple):
    function: Callable
    kind: str  # "pointwise" or "rowwise"
    labels: str = "dense"  # or "index"
    has_axis: bool = False  # False: always the last
    broadcasts: bool = False  # regression: y_true broadcasts up to y_pred
    default_axis: int | tuple[()] | None = -1  # (): each element is a sample


REFERENCES: dict[str, Reference] = {
    "mean_squared_error": Reference(mean_squared_error, "pointwise", broadcasts=True),
    "mean_absolute_error": Reference(mean_absolute_error, "pointwise", broadcasts=True),
    "huber": Reference(huber, "pointwise", broadcasts=True),
    "log_cosh": Reference(log_cosh, "pointwise", broadcasts=True),
    "binary_crossentropy": Reference(binary_crossentropy, "pointwise", has_axis=True),
    "categorical_crossentropy": Reference(categorical_crossentropy, "rowwise", has_axis=True),
    "sparse_categorical_crossentropy": Reference(
        sparse_categorical_crossentropy, "rowwise", labels="index", has_axis=True
    ),
    "mean_absolute_percentage_error": Reference(mean_absolute_percentage_error, "pointwise", broadcasts=True),
    "mean_squared_logarithmic_error": Reference(mean_squared_logarithmic_error, "pointwise", broadcasts=True),
    "cosine_similarity": Reference(cosine_similarity, "rowwise", has_axis=True, broadcasts=True),
    "pinball_loss": Reference(pinball_loss, "pointwise", broadcasts=True),
    "contrastive_loss": Reference(contrastive_loss, "pointwise", broadcasts=True, default_axis=()),
    "hinge": Reference(hinge, "pointwise", broadcasts=True),
    "squared_hinge": Reference(squared_hinge, "pointwise", broadcasts=True),
    "categorical_hinge": Reference(categorical_hinge, "rowwise", broadcasts=True),
    "poisson": Reference(poisson, "pointwise", broadcasts=True),
    "kl_divergence": Reference(kl_divergence, "pointwise", broadcasts=True),
    "binary_focal_crossentropy": Reference(binary_focal_crossentropy, "pointwise", has_axis=True),
    "sigmoid_focal_crossentropy": Reference(sigmoid_focal_crossentropy, "pointwise"),
    "categorical_focal_crossentropy": Reference(categorical_focal_crossentropy, "rowwise", has_axis=True),
    "categorical_generalized_cross_entropy": Reference(
        categorical_generalized_cross_entropy, "rowwise", labels="index"
    ),
    "sparsemax_loss": Reference(sparsemax_loss, "rowwise"),
    "dice": Reference(dice, "rowwise", has_axis=True, default_axis=None),
    "tversky": Reference(tversky, "rowwise", has_axis=True, default_axis=None),
}


# --------------------------------------------------------------------------------------------------------------
# What the losses share
# --------------------------------------------------------------------------------------------------------------


def clip(x, low, high):
    return np.where(x < low, low, np.where(x > high, high, x))  # a NaN fails both comparisons and stays


def times(t, log):
    """t·log, where nothing (t = 0) of an infinity is nothing."""
    return np.where(t == 0, np.where(np.isnan(log), log, 0.0), t * log)


def log_probabilities(y_pred, dtype, from_logits):
    """log-softmax of logits; of probabilities: divided by their sum, *then* clipped."""
    if from_logits:
        top = np.max(y_pred, axis=-1, keepdims=True)
        return y_pred - top - np.log(np.sum(np.exp(y_pred - top), axis=-1, keepdims=True))
    q = y_pred / np.sum(y_pred, axis=-1, keepdims=True)
    return np.log(clip(q, *borders(dtype)))


def check_labels(labels, classes):
    for index, label in enumerate(labels):
        if not (float(label).is_integer() and 0 <= label < classes):
            raise ValueError(f"labels must be integers from 0 to {classes - 1}; y_true[{index}] is {label}")


# --------------------------------------------------------------------------------------------------------------
# Shapes
# --------------------------------------------------------------------------------------------------------------


def squeeze_or_expand_to_same_rank(x1, x2):
    """Ranks that differ by one meet where the larger array ends in 1."""
    x1, x2 = np.asarray(x1), np.asarray(x2)
    if x1.ndim == x2.ndim + 1 and x1.shape[-1] == 1:
        return (x1, x2[:, None]) if x2.ndim == 1 else (x1[..., 0], x2)
    if x2.ndim == x1.ndim + 1 and x2.shape[-1] == 1:
        return (x1[:, None], x2) if x1.ndim == 1 else (x1, x2[..., 0])
    return x1, x2


def squeeze_labels(labels, y_pred, axis):
    """The rule of class indices: labels of size 1 along the class axis lose it."""
    if labels.ndim == y_pred.ndim and labels.shape[axis] == 1:
        return np.squeeze(labels, axis=axis)
    return labels


def axis_of(name, params):
    """The axis argument, or what stands for it where there is none."""
    return params.get("axis", REFERENCES[name].default_axis)


def axes_of(name, params, rank) -> tuple[int, ...]:
    """The axes that make up a sample, as non-negative numbers."""
    axis = axis_of(name, params)
    if axis is None:
        return tuple(range(rank))
    axes = axis if isinstance(axis, tuple) else (axis,)
    for a in axes:
        if not -rank <= a < rank:
            raise ValueError(f"axis {a} is out of bounds for rank {rank}")
    return tuple(a % rank for a in axes)


def values_shape(name, params, shape) -> tuple[int, ...]:
    """The shape of the per-sample values of predictions of that shape."""
    axes = axes_of(name, params, len(shape))
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def as_rows(array, axes):
    """(samples, entries): the axes of a sample moved last and flattened."""
    kept = [a for a in range(array.ndim) if a not in axes]
    moved = np.transpose(array, kept + sorted(axes))
    entries = int(np.prod([array.shape[a] for a in axes], dtype=int))
    samples = int(np.prod([array.shape[a] for a in kept], dtype=int))
    return moved.reshape(samples, entries)


def align(name, y_true, y_pred, params):
    """y_true and y_pred after the rank rule and broadcasting, or the error of shapes that do not match."""
    reference = REFERENCES[name]
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if reference.labels == "index":
        (axis,) = axes_of(name, params, y_pred.ndim)
        y_true = squeeze_labels(y_true, y_pred, axis)
        if y_true.shape != values_shape(name, params, y_pred.shape):
            raise ValueError(f"y_true {y_true.shape} does not fit y_pred {y_pred.shape}")
        return y_true, y_pred
    y_true, y_pred = squeeze_or_expand_to_same_rank(y_true, y_pred)
    if reference.broadcasts:
        y_true = np.broadcast_to(y_true, y_pred.shape)  # a ValueError where y_pred would have to grow
    if y_true.shape != y_pred.shape:
        raise ValueError(f"y_true {y_true.shape} and y_pred {y_pred.shape} must have the same shape")
    return y_true, y_pred


# --------------------------------------------------------------------------------------------------------------
# From rows to values to a number
# --------------------------------------------------------------------------------------------------------------


def per_sample(name, y_true, y_pred, mask=None, dtype=np.float64, **params):
    """(values, valid): a value a sample, 0 where it is masked, and which are valid (None: no mask at all).

    A masked sample is not computed and its label is not looked at. ``ignore_class`` masks too.
    """
    reference = REFERENCES[name]
    params = dict(params)
    ignore_class = params.pop("ignore_class", None)
    y_true, y_pred = align(name, y_true, y_pred, params)
    axes = axes_of(name, params, y_pred.ndim)
    shape = values_shape(name, params, y_pred.shape)
    params.pop("axis", None)

    rows = as_rows(in_dtype(y_pred, dtype), axes)
    targets = y_true.reshape(-1) if reference.labels == "index" else as_rows(in_dtype(y_true, dtype), axes)

    valid = None
    if mask is not None:
        valid = np.asarray(mask, bool).reshape(-1)
    if ignore_class is not None:
        kept = np.asarray([label != ignore_class for label in targets], bool)
        valid = kept if valid is None else valid & kept

    computed = np.ones(len(rows), bool) if valid is None else valid
    values = np.zeros(len(rows))
    with np.errstate(all="ignore"):  # infinities and NaN go through, as they do through a kernel
        values[computed] = reference.function(targets[computed], rows[computed], dtype, **params)
    return values.reshape(shape), None if valid is None else valid.reshape(shape)


def in_dtype(x, dtype):
    """Rounded to the compute dtype, then widened: the oracle sees the numbers that a kernel sees."""
    compute = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(compute).astype(np.float64)


def reduce(values, sample_weight=None, mask=None, reduction="sum_over_batch_size"):
    """Weights, mask and reduction, as the specification has them."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"Invalid value for argument `reduction`: {reduction!r}")
    values = np.asarray(values, np.float64)
    if mask is not None:
        values, mask = squeeze_or_expand_to_same_rank(values, np.asarray(mask, bool))
        if mask.shape != values.shape:
            raise ValueError(f"mask {mask.shape} does not fit values {values.shape}")
        values = np.where(mask, values, 0.0)

    weight = None
    if sample_weight is not None:
        weight = np.asarray(sample_weight, np.float64)
        values, weight = squeeze_or_expand_to_same_rank(values, weight)
        check_weight(values, weight)
        if mask is not None:
            mask = mask.reshape(values.shape)
            weight = np.where(mask, weight, 0.0)  # what is masked is skipped, its weight too
    elif mask is not None:
        weight = mask.astype(np.float64)

    with np.errstate(invalid="ignore"):  # zero weight × infinity is NaN, and meant
        weighted = values if weight is None else values * weight
    if reduction in (None, "none") or weighted.shape == ():
        return weighted
    if weighted.size == 0:
        return np.float64(0.0)
    if reduction == "sum":
        return np.sum(weighted)
    if reduction == "mean_with_sample_weight" and weight is not None:
        divisor = np.sum(weight)  # of the weights as they came: a scalar weight counts once
    elif mask is not None:
        divisor = weighted.size * np.sum(mask) / mask.size
    else:
        divisor = weighted.size
    return np.float64(0.0) if divisor == 0 else np.sum(weighted) / divisor


def check_weight(values, weight):
    if values.ndim == 0:
        return  # a vector broadcasts a single value
    if weight.ndim > values.ndim:
        raise ValueError(f"sample_weight {weight.shape} has a higher rank than the values {values.shape}")
    if weight.ndim == 1 and values.ndim > 1 and weight.shape[0] == values.shape[0] > 1:
        raise ValueError(f"sample_weight {weight.shape}: pass {(weight.shape[0], 1)} for values {values.shape}")
    np.broadcast_shapes(values.shape, weight.shape)


def class_weights(name, y_true, y_pred, class_weight, mask=None, **params):
    """A weight a sample: that of its class, 1 where its class has none. Masked samples count 1, unread."""
    reference = REFERENCES[name]
    y_true, y_pred = align(name, y_true, y_pred, params)
    axes = axes_of(name, params, y_pred.ndim)
    shape = values_shape(name, params, y_pred.shape)
    rows = y_true.reshape(-1, 1) if reference.labels == "index" else as_rows(y_true, axes)
    valid = np.ones(len(rows), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    known = class_weight if isinstance(class_weight, Mapping) else dict(enumerate(class_weight))
    weights = np.ones(len(rows))
    for index, row in enumerate(rows):
        if not valid[index]:
            continue
        if len(row) > 1 and np.sum(row == 1) > 1:
            raise ValueError(f"class_weight needs one class a row; row {index} of y_true is {row}")
        label = int(row[0]) if len(row) == 1 else int(np.argmax(row))
        weights[index] = known.get(label, 1.0)
    return weights.reshape(shape)


def loss(
    name,
    y_true,
    y_pred,
    sample_weight=None,
    *,
    mask=None,
    class_weight=None,
    reduction="sum_over_batch_size",
    dtype=np.float64,
    **params,
):
    """The whole call: what ``Loss(**params, reduction=...)(y_true, y_pred, sample_weight)`` answers."""
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)

    # Predictions (N,) are one sample of N entries, unless something comes that is there for each of the N.
    if REFERENCES[name].kind == "pointwise" and y_pred.ndim == 1:
        n = y_pred.shape
        if class_weight is not None or any(x is not None and np.shape(x) == n for x in (sample_weight, mask)):
            y_true, y_pred = align(name, y_true, y_pred, params)
            y_true, y_pred = y_true.reshape(-1, 1), y_pred.reshape(-1, 1)

    if mask is not None:
        mask = np.asarray(mask, bool)
        shape = values_shape(name, params, align(name, y_true, y_pred, params)[1].shape)
        squeezed, rows = squeeze_or_expand_to_same_rank(np.zeros(shape), mask)
        if squeezed.shape != rows.shape:
            raise ValueError(f"mask {mask.shape} does not fit values {shape}")
    values, valid = per_sample(name, y_true, y_pred, mask, dtype, **params)
    if valid is not None and mask is not None:
        valid = valid.reshape(mask.shape) if mask.size else mask  # (B,1) masks make (B,1) results
    if class_weight is not None:
        by_class = class_weights(name, y_true, y_pred, class_weight, valid, **params)
        if sample_weight is not None:
            weight = np.asarray(sample_weight, np.float64)
            check_weight(*squeeze_or_expand_to_same_rank(by_class, weight))
            by_class, weight = squeeze_or_expand_to_same_rank(by_class, weight)
            by_class = by_class * weight
        sample_weight = by_class
    return reduce(values, sample_weight, valid, reduction)


# --------------------------------------------------------------------------------------------------------------
# Derivatives
# --------------------------------------------------------------------------------------------------------------


def difference(function, x, step):
    """Fourth-order central differences of a scalar function, an entry at a time: errors of step⁴ f⁽⁵⁾ / 30."""
    x = np.array(x, np.float64)
    result = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        at = []
        for shift in (-2, -1, 1, 2):
            moved = x.copy()
            moved[index] += shift * step
            at.append(function(moved))
        result[index] = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step)
    return result


def second_difference(function, x, step):
    """The same for the second derivative with respect to each entry: the diagonal of the Hessian."""
    x = np.array(x, np.float64)
    middle = function(x)
    result = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        at = []
        for shift in (-2, -1, 1, 2):
            moved = x.copy()
            moved[index] += shift * step
            at.append(function(moved))
        result[index] = (-at[0] + 16 * at[1] - 30 * middle + 16 * at[2] - at[3]) / (12 * step**2)
    return result


def objective(name, y_true, upstream=None, **call):
    """The scalar that a gradient is the gradient of: Σ upstream · what the call answers."""

    def scalar(y_pred):
        value = loss(name, y_true, y_pred, **call)
        return float(np.sum(value if upstream is None else upstream * value))

    return scalar


def gradient(name, y_true, y_pred, sample_weight=None, *, upstream=None, step=3e-4, **call):
    return difference(objective(name, y_true, upstream, sample_weight=sample_weight, **call), y_pred, step)


def hessian(name, y_true, y_pred, sample_weight=None, *, upstream=None, step=2e-3, **call):
    return second_difference(objective(name, y_true, upstream, sample_weight=sample_weight, **call), y_pred, step)


def slope(name, y_true, y_pred, direction, sample_weight=None, *, upstream=None, step=3e-4, **call):
    """The derivative along a direction: four evaluations, whatever the size."""
    scalar = objective(name, y_true, upstream, sample_weight=sample_weight, **call)
    y_pred = np.asarray(y_pred, np.float64)
    at = [scalar(y_pred + shift * step * direction) for shift in (-2, -1, 1, 2)]
    return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step)


# --------------------------------------------------------------------------------------------------------------
# Comparing
# --------------------------------------------------------------------------------------------------------------

# A float32 kernel against the float64 oracle is right to its own rounding, times a few steps.
RTOL = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2e-3}


def assert_close(got, want, what="", *, rtol=None, atol=None):
    """Equal to ``rtol`` (by default what got's dtype can do), NaN where NaN; ``what`` names the combination."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    rtol = RTOL[got.dtype] if rtol is None else rtol
    atol = rtol * 1e-2 if atol is None else atol
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol, err_msg=what)


def assert_same_bits(got, want, what=""):
    got, want = np.asarray(got), np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{what}: {got.dtype}{got.shape}"
    assert got.tobytes() == want.tobytes(), f"{what}: bits differ, {got} and {want}"


def assert_last_digits(got, want, what="", ulps=4):
    """Equal but for the rounding of another order of additions."""
    got, want = np.asarray(got), np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{what}: {got.dtype}{got.shape}"
    eps = float(np.finfo(got.dtype).eps)
    np.testing.assert_allclose(got, want, rtol=ulps * eps, atol=ulps * eps * 1e-3, err_msg=what)
