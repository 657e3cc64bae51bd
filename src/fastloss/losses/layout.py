"""Targets and predictions as the matrices a kernel walks: a row a sample, a column an element or class of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastloss import settings
from fastloss.losses.arrays import Array, match_ranks


@dataclass(frozen=True)
class Layout:
    """Where the data of a call lie.

    Attributes
    ----------
    y, p : numpy.ndarray
        Targets and predictions as (samples, elements); class indices as (samples,). Views where that is possible.
    shape : tuple of int
        The shape of the per-sample losses.
    order : tuple of int or None
        The permutation that brought the predictions' axes into this order; None if they were.
    matched : tuple of int
        The predictions' shape before that, after the rank rule.
    valid : numpy.ndarray or None
        Samples that count, by the loss's own rule (``ignore_class``), in `shape`.
    warned : bool
        A warning was given, as it must be for the next call too.
    """

    y: Array
    p: Array
    shape: tuple[int, ...]
    order: tuple[int, ...] | None
    matched: tuple[int, ...]
    valid: Array | None = None
    warned: bool = False

    @property
    def index(self) -> bool:
        """Whether the targets are class indices."""
        return self.y.ndim == 1

    def deliver(self, array: Array, shape: tuple[int, ...], out: Array | None) -> Array:
        """An array laid out as `p`, in the predictions' own `shape` and order: in `out`, if that is given."""
        if self.order is not None:
            array = array.reshape([self.matched[i] for i in self.order]).transpose(np.argsort(self.order))
        array = array.reshape(shape)
        if out is None:
            return np.ascontiguousarray(array)
        if not np.may_share_memory(out, array):
            out[...] = array
        return out

    def labels(self) -> Array:
        """The class of each sample, for class weights."""
        labels: Array = np.reshape(self.y if self.index else class_labels(self.y), self.shape)
        return labels


def class_labels(y: Array) -> Array:
    """The class of each row of targets, for class weights.

    Raises
    ------
    ValueError
        If a row has several targets and they are not one-hot.
    """
    if y.shape[1] == 1:
        return y[:, 0]
    hot = y != 0
    bad = (np.count_nonzero(hot, axis=1) != 1) | (y.sum(axis=1) != 1)
    if bad.any():
        raise ValueError(
            f"`class_weight` needs one class a sample, but row {int(np.argmax(bad))} of `y_true` is not one-hot"
        )
    return np.asarray(np.argmax(hot, axis=1))


def pointwise(y: Array, p: Array, axis: Any, *, broadcast: bool, samples: bool, flat: bool) -> Layout:
    """Lay out a loss of single elements.

    Parameters
    ----------
    y, p : numpy.ndarray
        Targets and predictions.
    axis : int, tuple of int or None
        The axes of an element's sample; None for all.
    broadcast : bool
        Targets may broadcast up to the predictions; if not, the shapes must be equal.
    samples : bool
        Predictions of shape (N,) are N samples.
    flat : bool
        Nothing distinguishes one sample from another, so their order does not matter.
    """
    y, p = match_ranks(y, p)
    if broadcast and y.shape != p.shape:
        try:
            y = np.broadcast_to(y, p.shape)
        except ValueError:
            raise _shapes_differ(y, p, " (`y_true` may broadcast to `y_pred`)") from None
    if y.shape != p.shape:
        raise _shapes_differ(y, p)
    if p.ndim == 0:
        raise ValueError("`y_pred` must have at least one dimension, got a scalar")
    if samples and p.ndim == 1:
        y, p = y[:, None], p[:, None]
    inner = tuple(range(p.ndim)) if axis is None else axes(axis, p.ndim)
    outer = tuple(i for i in range(p.ndim) if i not in inner)
    order = None if flat or outer + inner == tuple(range(p.ndim)) else outer + inner
    shape = tuple(p.shape[i] for i in outer)
    size = (math.prod(shape), math.prod(p.shape[i] for i in inner))
    matched = p.shape
    if order is not None:
        y, p = y.transpose(order), p.transpose(order)
    return Layout(y.reshape(size), p.reshape(size), shape, order, matched)


def dense_classes(y: Array, p: Array, axis: int, loss: str | None) -> Layout:
    """Lay out a loss of class scores against a distribution over the classes.

    `loss` is the name in the warning about a single class; None for no warning.
    """
    y, p = match_ranks(y, p)
    if y.shape != p.shape:
        raise _shapes_differ(y, p)
    order, shape, size = _class_axis(p, axis)
    lonely = size[1] == 1 and loss is not None
    if lonely:
        warnings.warn(
            f"In loss {loss}, expected y_pred.shape to be (batch_size, num_classes) with "
            f"num_classes > 1. Received: y_pred.shape={p.shape}. Consider using 'binary_crossentropy' if you only have "
            "2 classes.",
            SyntaxWarning,
            stacklevel=settings.outside(),
        )
    matched = p.shape
    if order is not None:
        y, p = y.transpose(order), p.transpose(order)
    return Layout(y.reshape(size), p.reshape(size), shape, order, matched, warned=lonely)


def class_indices(y: Array, p: Array, axis: int, ignore_class: int | None) -> Layout:
    """Lay out a loss of class scores against the index of the class."""
    order, shape, size = _class_axis(p, axis)
    (place,) = axes(axis, p.ndim)
    if y.ndim == p.ndim and y.shape[place] == 1:
        y = y.squeeze(place)
    if y.shape != shape:
        raise ValueError(
            "Arguments `y_true` and `y_pred` must have the same shape apart from the class axis. "
            f"Received: y_true.shape={y.shape}, y_pred.shape={p.shape}, axis={axis}"
        )
    valid = None if ignore_class is None else y != ignore_class
    matched = p.shape
    if order is not None:
        p = p.transpose(order)
    return Layout(y.reshape(-1), p.reshape(size), shape, order, matched, valid)


def axes(axis: Any, rank: int) -> tuple[int, ...]:
    """Axes as non-negative integers, in ascending order."""
    wanted = axis if isinstance(axis, tuple) else (axis,)
    for i in wanted:
        if not -rank <= i < rank:
            raise ValueError(f"`axis` {i} is out of bounds for `y_pred` of {rank} dimensions")
    result = tuple(sorted({i % rank for i in wanted}))
    if len(result) != len(wanted):
        raise ValueError(f"`axis` names a dimension twice: {axis}")
    return result


def _class_axis(p: Array, axis: int) -> tuple[tuple[int, ...] | None, tuple[int, ...], tuple[int, int]]:
    """Permutation, per-sample shape and (samples, classes) of scores with their classes on `axis`."""
    if p.ndim == 0:
        raise ValueError("`y_pred` must have at least one dimension, got a scalar")
    (place,) = axes(axis, p.ndim)
    outer = tuple(i for i in range(p.ndim) if i != place)
    shape = tuple(p.shape[i] for i in outer)
    if p.shape[place] == 0:
        raise ValueError(f"`y_pred` must have at least one class on axis {axis}, got shape {p.shape}")
    return None if place == p.ndim - 1 else (*outer, place), shape, (math.prod(shape), p.shape[place])


def _shapes_differ(y: Array, p: Array, hint: str = "") -> ValueError:
    return ValueError(
        f"Arguments `y_true` and `y_pred` must have the same shape{hint}. "
        f"Received: y_true.shape={y.shape}, y_pred.shape={p.shape}"
    )
