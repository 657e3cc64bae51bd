"""Losses of boxes [y_min, x_min, y_max, x_max]."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss.kernels.definition import itemwise

BLOCK = 512
"""Boxes an item of the CPU: enough to make its call free, few enough to share a batch out."""


@itemwise
def iou(xp: Any) -> Any:
    """The loss 1 - I/U of each box."""
    return _block(xp, enclosing=False, gradient=False)


@itemwise
def iou_gradient(xp: Any) -> Any:
    """The loss 1 - I/U of each box and its gradient in the predicted box."""
    return _block(xp, enclosing=False, gradient=True)


@itemwise
def giou(xp: Any) -> Any:
    """The loss 1 - I/U + (E - U)/E of each box."""
    return _block(xp, enclosing=True, gradient=False)


@itemwise
def giou_gradient(xp: Any) -> Any:
    """The loss 1 - I/U + (E - U)/E of each box and its gradient in the predicted box."""
    return _block(xp, enclosing=True, gradient=True)


def _block(xp: Any, *, enclosing: bool, gradient: bool) -> Any:
    """``item(i, size, y, p, losses, slopes)``: block i of so many boxes, four numbers each in `y`, `p` and `slopes`.

    Areas: A of the predicted box and B of the target, I of their intersection, E of the smallest box around both, and
    the union U = A + B - I.
    """
    compute = xp.type
    area = _area(xp, enclosing)

    def item(i, size, y, p, losses, slopes):
        first = np.uintp(i * size)
        last = min(np.uintp(losses.size), first + np.uintp(size))
        for j in range(first, last):
            k = np.uintp(4) * j
            k1, k2, k3 = k + np.uintp(1), k + np.uintp(2), k + np.uintp(3)
            t0, t1, t2, t3 = compute(y[k]), compute(y[k1]), compute(y[k2]), compute(y[k3])
            loss, g0, g1, g2, g3 = area(t0, t1, t2, t3, p[k], p[k1], p[k2], p[k3])
            losses[j] = loss
            if gradient:
                slopes[k] = g0
                slopes[k1] = g1
                slopes[k2] = g2
                slopes[k3] = g3

    return item


def _area(xp: Any, enclosing: bool) -> Any:
    """Loss and slopes of one predicted box; the compiler deletes the slopes that nobody stores.

    The differences of areas are sums of products none of which is negative, where those that make up U - I = (A - I) +
    (B - I) would cancel: equal boxes have the loss 0, not a rounding error that may be negative.
    """
    zero, one = xp.consts(0.0, 1.0)

    @xp.jit
    def extent(low, high):
        # A NaN stays.
        size = high - low
        return zero if size <= zero else size

    @xp.jit
    def excess(h, w, h_inner, w_inner):
        # h·w - h_inner·w_inner
        return (h - h_inner) * w + h_inner * (w - w_inner)

    @xp.jit
    def safe_inverse(x):
        return xp.where(x == zero, zero, one / x)

    @xp.jit
    def area(t0, t1, t2, t3, p0, p1, p2, p3):
        h, w = extent(p0, p2), extent(p1, p3)
        h_true, w_true = extent(t0, t2), extent(t1, t3)
        h_both = extent(xp.maximum(p0, t0), xp.minimum(p2, t2))
        w_both = extent(xp.maximum(p1, t1), xp.minimum(p3, t3))
        both = h_both * w_both
        alone = excess(h, w, h_both, w_both)
        missed = excess(h_true, w_true, h_both, w_both)
        union = both + (alone + missed)
        inverse = safe_inverse(union)
        loss = xp.where(union == zero, one, (alone + missed) / union)
        # Slopes in A and in I, whose growth also takes from U.
        by_area = both * inverse * inverse
        by_both = -inverse - by_area
        h_around, w_around, by_around = zero, zero, zero
        if enclosing:
            h_around = extent(xp.minimum(p0, t0), xp.maximum(p2, t2))
            w_around = extent(xp.minimum(p1, t1), xp.maximum(p3, t3))
            around = h_around * w_around
            gap = excess(h_around, w_around, h, w) - missed
            gap = xp.where(gap < zero, zero, gap)
            inverse_around = safe_inverse(around)
            loss = loss + xp.where(around == zero, zero, gap / around)
            by_area = by_area - inverse_around
            by_both = by_both + inverse_around
            by_around = union * inverse_around * inverse_around
        # A NaN anywhere is one in all four slopes.
        spread = zero * loss
        # An extent of 0 stays 0 for small changes, but not for large ones: the slope chosen there is 0.
        h_slope = xp.where(h == zero, zero, by_area * w) + spread
        w_slope = xp.where(w == zero, zero, by_area * h) + spread
        h_both_slope = xp.where(h_both == zero, zero, by_both * w_both)
        w_both_slope = xp.where(w_both == zero, zero, by_both * h_both)
        h_around_slope = xp.where(h_around == zero, zero, by_around * w_around)
        w_around_slope = xp.where(w_around == zero, zero, by_around * h_around)
        # A coordinate that both boxes share is the predicted box's.
        g0 = -h_slope - xp.where(p0 >= t0, h_both_slope, zero) - xp.where(p0 <= t0, h_around_slope, zero)
        g1 = -w_slope - xp.where(p1 >= t1, w_both_slope, zero) - xp.where(p1 <= t1, w_around_slope, zero)
        g2 = h_slope + xp.where(p2 <= t2, h_both_slope, zero) + xp.where(p2 >= t2, h_around_slope, zero)
        g3 = w_slope + xp.where(p3 <= t3, w_both_slope, zero) + xp.where(p3 >= t3, w_around_slope, zero)
        return loss, g0, g1, g2, g3

    return area
