"""Hinge losses. Labels 0 and 1 become -1 and 1 by t = scale·y + shift, which the driver chooses by looking at them."""

from __future__ import annotations

from typing import Any

from fastloss.kernels.definition import RowFunctions, pointwise, rowwise


@pointwise(params=("scale", "shift"), binary_labels=True)
def hinge(xp: Any) -> Any:
    """max(0, 1 - t·p), slope -t where that is positive."""
    zero, one = xp.consts(0.0, 1.0)

    def terms(y, p, scale, shift):
        t = scale * y + shift
        m = xp.maximum(one - t * p, zero)
        return m, xp.where(m > zero, -t, m), zero

    return terms


@pointwise(params=("scale", "shift"), binary_labels=True)
def squared_hinge(xp: Any) -> Any:
    """m² with m = max(0, 1 - t·p), slope -2t·m."""
    zero, one, two = xp.consts(0.0, 1.0, 2.0)

    def terms(y, p, scale, shift):
        t = scale * y + shift
        m = xp.maximum(one - t * p, zero)
        return m * m, -two * t * m, xp.where(m > zero, two * t * t, zero)

    return terms


@rowwise()
def categorical_hinge(xp: Any) -> Any:
    """max(0, max((1 - t)·p) - Σt·p + 1); where it is positive, slope -t, and 1 - t more for the first maximum."""
    zero, one = xp.consts(0.0, 1.0)

    def score(t, p):
        return (one - t) * p

    def gather(t, p, m):
        return zero, t * p, zero, zero

    def finish(negative, positive, unused, unused_too):
        loss = xp.maximum(negative - positive + one, zero)
        return loss, xp.where(loss > zero, one, loss), zero

    def slope(t, kept, active, v):
        return -active * t

    def peak(t, active, v):
        return active * (one - t)

    return RowFunctions("score", gather, finish, slope, keeps="nothing", score=score, peak=peak)
