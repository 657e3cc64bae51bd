"""Losses of counts and of distributions."""

from __future__ import annotations

from typing import Any

from fastloss.kernels.definition import pointwise


@pointwise(calls=("log", "div"))
def poisson(xp: Any) -> Any:
    """P - y·log(p + ε), slope 1 - y/(p + ε); nothing is clipped, so below -ε it is NaN."""
    one = xp.const(1.0)

    def terms(y, p):
        shifted = p + xp.epsilon
        ratio = y / shifted
        return p - y * xp.log(shifted), one - ratio, ratio / shifted

    return terms


@pointwise(calls=("log", "div"))
def kl_divergence(xp: Any) -> Any:
    """t·log(t/c) with t and c the targets and predictions clipped to [ε, 1]; slope -t/c, 0 beyond the clip."""
    zero, one = xp.consts(0.0, 1.0)

    def terms(y, p):
        t, c = xp.clip(y, xp.epsilon, one), xp.clip(p, xp.epsilon, one)
        ratio = t / c
        alive = c == p
        dead = xp.where(p != p, p, zero)
        return t * xp.log_positive(ratio), xp.where(alive, -ratio, dead), xp.where(alive, ratio / c, dead)

    return terms
