"""Terms of a single array, weights or gradients, which have no targets: penalties and clips."""

from __future__ import annotations

from typing import Any

from fastloss.kernels.definition import pointwise


@pointwise()
def absolute(xp: Any) -> Any:
    """|w|, slope sign w: 0 at w = 0, and w itself where it is NaN."""
    zero, one = xp.consts(0.0, 1.0)

    def terms(y, w):
        return abs(w), xp.where(w > zero, one, xp.where(w < zero, -one, w)), zero

    return terms


@pointwise()
def half_square(xp: Any) -> Any:
    """w²/2, slope w: so the slope times a factor is the array scaled."""
    half, one = xp.consts(0.5, 1.0)

    def terms(y, w):
        return half * (w * w), w, one

    return terms


@pointwise()
def itself(xp: Any) -> Any:
    """w, slope 1: the value of losses that are there already, and what flows into each."""
    zero, one = xp.consts(0.0, 1.0)

    def terms(y, w):
        return w, one, zero

    return terms


@pointwise(params=("l1", "l2"))
def absolute_square(xp: Any) -> Any:
    """λ₁·|w| + λ₂·w², slope λ₁·sign w + 2·λ₂·w."""
    zero, two = xp.consts(0.0, 2.0)

    def terms(y, w, l1, l2):
        sign = xp.where(w > zero, l1, xp.where(w < zero, -l1, zero))
        return abs(w) * (l1 + l2 * abs(w)), sign + two * l2 * w, two * l2

    return terms


@pointwise(params=("limit",))
def clip(xp: Any) -> Any:
    """Nothing, slope clip(w, -c, c): NaN stays NaN, infinity becomes the limit."""
    zero = xp.const(0.0)

    def terms(y, w, limit):
        return zero, xp.clip(w, -limit, limit), zero

    return terms
