"""Losses of the overlap of two sets, given by the membership of each element."""

from __future__ import annotations

from typing import Any

from fastloss.kernels.definition import RowFunctions, rowwise


@rowwise(params=("alpha", "beta"), divisible=True)
def tversky(xp: Any) -> Any:
    """1 - I/D with I = Σt·p and D = I + α·Σ(1 - t)·p + β·Σt·(1 - p) + ε.

    D = (1 - α - β)·I + α·Σp + β·Σt + ε, so its slope is (1 - α - β)·t + α, and the loss's -t/D + I/D² times that.
    """
    zero, one = xp.consts(0.0, 1.0)

    def gather(t, p, m, alpha, beta):
        return zero, t * p, t, p

    def finish(m, both, true, predicted, alpha, beta):
        rest = one - alpha - beta
        inverse = one / (rest * both + alpha * predicted + beta * true + xp.epsilon)
        share = both * inverse
        return one - share, (share * rest - one) * inverse, share * alpha * inverse

    def slope(t, kept, u, v, alpha, beta):
        return u * t + v

    return RowFunctions("none", gather, finish, slope, keeps="nothing")


@rowwise(divisible=True)
def dice(xp: Any) -> Any:
    """1 - 2I/D with I = Σt·p and D = Σt + Σp + ε; slope -2t/D + 2I/D²."""
    zero, one, two = xp.consts(0.0, 1.0, 2.0)

    def gather(t, p, m):
        return zero, t * p, t, p

    def finish(m, both, true, predicted):
        inverse = one / (true + predicted + xp.epsilon)
        share = two * both * inverse
        return one - share, -two * inverse, share * inverse

    def slope(t, kept, u, v):
        return u * t + v

    return RowFunctions("none", gather, finish, slope, keeps="nothing")
