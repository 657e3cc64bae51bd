"""Losses of the error e = p - y."""

from __future__ import annotations

from typing import Any

from fastloss.kernels.definition import pointwise


@pointwise()
def mean_squared_error(xp: Any) -> Any:
    """e², slope 2e."""
    two = xp.const(2.0)

    def terms(y, p):
        e = p - y
        return e * e, two * e, two

    return terms


@pointwise()
def mean_absolute_error(xp: Any) -> Any:
    """|e|, slope sign e: 0 at e = 0, and e itself where it is NaN."""
    zero, one = xp.consts(0.0, 1.0)

    def terms(y, p):
        e = p - y
        return abs(e), xp.where(e > zero, one, xp.where(e < zero, -one, e)), zero

    return terms


@pointwise(params=("delta",))
def huber(xp: Any) -> Any:
    """e²/2 where |e| ≤ δ, δ|e| - δ²/2 beyond. With s = clip(e, -δ, δ) both are s·(e - s/2), and s is the slope."""
    zero, half, one = xp.consts(0.0, 0.5, 1.0)

    def terms(y, p, delta):
        e = p - y
        s = xp.clip(e, -delta, delta)
        return s * (e - half * s), s, xp.where(abs(e) <= delta, one, zero)

    return terms


@pointwise(calls=("exp", "log", "div"))
def log_cosh(xp: Any) -> Any:
    """Log cosh e = |e| - log 2 + log(1 + E) with E = exp(-2|e|); slope tanh e, curvature 1 - tanh² e.

    That form cancels where e is small (in float32 it gives 0 or -6e-8 for |e| < 3e-4), so below 1 the value is
    e²·P(e²), and E - 1 comes from expm1, which keeps every digit of tanh e = (1 - E) / (1 + E). Above 1, E is at most
    0.14, and a short polynomial gives log(1 + E).
    """
    zero, one, two, four, log2 = xp.consts(0.0, 1.0, 2.0, 4.0, 0.6931471805599453094)
    series, tail_series = xp.polynomial("LOG_COSH"), xp.polynomial("LOG_COSH_TAIL")

    def terms(y, p):
        e = p - y
        a = abs(e)
        z = e * e
        m = xp.expm1_nonpositive(-(a + a))
        d = two + m
        u = m + one
        value = xp.where(a < one, z * series(z), (a - log2) + (u + u * u * tail_series(u)))
        slope = m / d
        return value, xp.where(e < zero, slope, -slope), four * u / (d * d)

    return terms
