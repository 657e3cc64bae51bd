"""Value and gradient against PyTorch's functional losses and its autograd, where it has the loss.

A line of ``PEERS`` says how a call of ours is spelled there: per-element (or per-row) losses without reduction, which
the tests then weigh and reduce with torch operations, so that autograd differentiates all of it. What PyTorch cannot
say (probabilities of cross-entropy, another axis for smoothing) is compared with Keras instead.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

from torch.nn import functional  # noqa: E402

import data  # noqa: E402
import reference  # noqa: E402
from fastloss import losses  # noqa: E402
from fastloss.registry import LOSSES  # noqa: E402
from reference import assert_close  # noqa: E402

RTOL = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def classes_second(x):
    """PyTorch keeps the classes on axis 1."""
    return torch.movedim(x, -1, 1)


def mean_squared_error(t, p):
    return functional.mse_loss(p, t, reduction="none").mean(-1)


def mean_absolute_error(t, p):
    return functional.l1_loss(p, t, reduction="none").mean(-1)


def huber(t, p, delta=1.0):
    return functional.huber_loss(p, t, reduction="none", delta=delta).mean(-1)


def binary_crossentropy(t, p, from_logits=False, label_smoothing=0.0, axis=-1):
    t = t * (1 - label_smoothing) + label_smoothing / 2
    # Its clamp of the logarithm at -100 is far from the probabilities compared here.
    function = functional.binary_cross_entropy_with_logits if from_logits else functional.binary_cross_entropy
    each = function(p, t, reduction="none")
    return each.mean() if axis is None else each.mean(axis)


def categorical_crossentropy(t, p, label_smoothing=0.0):
    return functional.cross_entropy(
        classes_second(p), classes_second(t), reduction="none", label_smoothing=label_smoothing
    )


def sparse_categorical_crossentropy(t, p, ignore_class=None, label_smoothing=0.0):
    ignored = -100 if ignore_class is None else ignore_class
    return functional.cross_entropy(
        classes_second(p), t, reduction="none", ignore_index=ignored, label_smoothing=label_smoothing
    )


# name → (function there, the variants to compare)
PEERS = {
    "mean_squared_error": (mean_squared_error, ({},)),
    "mean_absolute_error": (mean_absolute_error, ({},)),
    "huber": (huber, ({}, {"delta": 0.5}, {"delta": 2.0})),
    "binary_crossentropy": (
        binary_crossentropy,
        tuple(
            {"from_logits": logits, "label_smoothing": smoothing, "axis": axis}
            for logits, smoothing, axis in itertools.product((False, True), (0.0, 0.1), (-1, 1, None))
        ),
    ),
    "categorical_crossentropy": (categorical_crossentropy, ({}, {"label_smoothing": 0.1})),  # from logits, all of it
    "sparse_categorical_crossentropy": (
        sparse_categorical_crossentropy,
        ({}, {"label_smoothing": 0.1}, {"ignore_class": -1}, {"ignore_class": 1}),
    ),
}
LOGITS_ONLY = ("categorical_crossentropy", "sparse_categorical_crossentropy")
CASES = [
    pytest.param(LOSSES[name], function, params, id=f"{name}-{','.join(f'{k}={v}' for k, v in params.items())}")
    for name, (function, variants) in PEERS.items()
    if name in LOSSES
    for params in variants
]


def torch_value_and_grad(function, params, y_true, y_pred, weight, mask, reduction, upstream):
    p = torch.tensor(y_pred, requires_grad=True)
    values = function(torch.tensor(y_true), p, **params)
    valid = torch.ones(values.shape, dtype=torch.bool) if mask is None else torch.tensor(mask)
    ignored = params.get("ignore_class")
    if ignored is not None:
        valid = valid & (torch.tensor(y_true) != ignored)
    w = torch.ones(values.shape, dtype=values.dtype) if weight is None else torch.tensor(weight, dtype=values.dtype)
    w = w * valid
    weighted = values * w
    if reduction == "none":
        value = weighted
    elif reduction == "sum":
        value = weighted.sum()
    else:
        count = w.sum() if reduction == "mean_with_sample_weight" else valid.sum()
        value = weighted.sum() / count if count else weighted.sum()  # nothing valid: nothing to add, either
    (value * torch.tensor(upstream)).sum().backward()
    return value.detach().numpy(), p.grad.numpy()


@pytest.mark.parametrize(("row", "function", "params"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_value_and_gradient(row, function, params, dtype):
    ours = {**params, "from_logits": True} if row.name in LOGITS_ONLY else params
    for shape in ((7, 3), (2, 3, 5), (1, 2), (40, 10)):
        y_true, y_pred = data.inputs(row, ours, shape, seed=70, dtype=dtype)
        values = reference.values_shape(row.name, ours, shape)
        full = data.weight_families(values).get("full")
        some = data.mask_families(values).get("mask")
        reductions = ("sum_over_batch_size", "mean_with_sample_weight", "sum", "none")
        for reduction in reductions:
            # The same two ways as `data.crossings`: plain values, and reductions of weighted and masked ones.
            weight, mask = (None, None) if reduction == "none" else (full, some)
            label = f"{shape}, {reduction}, weighted: {weight is not None}, masked: {mask is not None}"
            loss = row.cls(**ours, reduction=reduction)
            plain = loss(y_true, y_pred, weight, mask=mask)
            upstream = np.ones(plain.shape, dtype) if plain.ndim else dtype(-1.5)
            value, gradient = loss.value_and_grad(y_true, y_pred, weight, mask=mask, upstream=upstream)
            want = torch_value_and_grad(function, params, y_true, y_pred, weight, mask, reduction, upstream)
            assert_close(plain, want[0], label, rtol=RTOL[y_pred.dtype])
            assert_close(value, want[0], label, rtol=RTOL[y_pred.dtype])
            scale = np.abs(want[1]).max(initial=0.0)
            assert_close(gradient, want[1], label, rtol=RTOL[y_pred.dtype], atol=float(RTOL[y_pred.dtype] * scale))


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
def test_class_weight_is_the_weight_of_cross_entropy(mean):
    """PyTorch's weighted mean divides by the weights, as ``mean_with_sample_weight`` does."""
    row = LOSSES["sparse_categorical_crossentropy"]
    y_true, y_pred = data.inputs(row, {"from_logits": True}, (9, 4), seed=72)
    weights = np.array([0.5, 2.0, 1.0, 3.0])
    p = torch.tensor(y_pred, requires_grad=True)
    how = "mean" if mean else "sum"
    want = functional.cross_entropy(p, torch.tensor(y_true), weight=torch.tensor(weights), reduction=how)
    want.backward()
    loss = row.cls(from_logits=True, reduction="mean_with_sample_weight" if mean else "sum")
    value, gradient = loss.value_and_grad(y_true, y_pred, class_weight=weights)
    assert_close(value, want.item())
    assert_close(gradient, p.grad.numpy())


def test_one_hot_rows_and_class_numbers_are_the_same_loss():
    y_true, y_pred = data.inputs(LOSSES["sparse_categorical_crossentropy"], {"from_logits": True}, (9, 4), seed=73)
    want = functional.cross_entropy(torch.tensor(y_pred), torch.tensor(y_true)).item()
    assert_close(losses.SparseCategoricalCrossentropy(from_logits=True)(y_true, y_pred), want)
    assert_close(losses.CategoricalCrossentropy(from_logits=True)(np.eye(4)[y_true], y_pred), want)


@pytest.mark.parametrize("row", [LOSSES[name] for name in PEERS if name in LOSSES], ids=lambda row: row.name)
def test_tensors_are_arrays(row):
    """A tensor comes in as it is: it has ``__array__``."""
    y_true, y_pred = data.inputs(row, {}, (5, 3), seed=74)
    want = row.cls().value_and_grad(y_true, y_pred)
    got = row.cls().value_and_grad(torch.tensor(y_true), torch.tensor(y_pred))
    assert isinstance(got[1], np.ndarray)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
