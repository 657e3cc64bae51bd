"""Losses of the error e = p - y."""

from __future__ import annotations

from typing import Any

from fastloss.kernels.definition import RowFunctions, pointwise, rowwise


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


@pointwise(calls=("div",))
def mean_absolute_percentage_error(xp: Any) -> Any:
    """100·|e| / max(|y|, ε), slope 100·sign e / max(|y|, ε): 0 at e = 0, NaN where e is."""
    zero, hundred = xp.consts(0.0, 100.0)

    def terms(y, p):
        e = p - y
        w = hundred / xp.maximum(abs(y), xp.epsilon)
        return abs(e) * w, xp.where(e > zero, w, xp.where(e < zero, -w, e)), zero

    return terms


@pointwise(calls=("log", "div", "div"))
def mean_squared_logarithmic_error(xp: Any) -> Any:
    """d² with d = log(1 + p₊) - log(1 + y₊) and x₊ = max(x, ε); slope 2d/(1 + p₊), 0 below the clip.

    d = log1p((p₊ - y₊) / (1 + y₊)) takes one logarithm, and loses no digits where p is near y.
    """
    zero, one, two = xp.consts(0.0, 1.0, 2.0)

    def terms(y, p):
        p_clipped, y_clipped = xp.maximum(p, xp.epsilon), xp.maximum(y, xp.epsilon)
        d = xp.log1p((p_clipped - y_clipped) / (one + y_clipped))
        inverse = one / (one + p_clipped)
        dead = p < xp.epsilon
        slope = two * d * inverse
        return d * d, xp.where(dead, zero, slope), xp.where(dead, zero, two * (one - d) * inverse * inverse)

    return terms


@pointwise(params=("tau",))
def pinball(xp: Any) -> Any:
    """τ·e where e = y - p is positive, (τ - 1)·e where it is negative; slope -τ, 1 - τ, and 0 at e = 0."""
    zero, one = xp.consts(0.0, 1.0)

    def terms(y, p, tau):
        e = y - p
        slope = xp.where(e > zero, -tau, xp.where(e < zero, one - tau, -e))
        return -slope * e, slope, zero

    return terms


@pointwise(params=("margin",))
def contrastive(xp: Any) -> Any:
    """y·d² + (1 - y)·max(m - d, 0)² of a distance d; slope 2(y·d - (1 - y)·max(m - d, 0))."""
    zero, one, two = xp.consts(0.0, 1.0, 2.0)

    def terms(y, d, margin):
        n = one - y
        gap = xp.maximum(margin - d, zero)
        loss = y * (d * d) + n * (gap * gap)
        return loss, two * (y * d - n * gap), two * (y + xp.where(gap > zero, n, zero))

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


@rowwise(divisible=True)
def cosine_similarity(xp: Any) -> Any:
    """-Σ ŷ·p̂ with x̂ = x / sqrt(max(Σx², ε²)).

    With r_x that factor of x and c = Σ y·p, the gradient is -r_y·r_p·y + c·r_y·r_p³·p; the second term is absent where
    the clip is active, which keeps a zero vector's gradient finite.
    """
    zero, one = xp.consts(0.0, 1.0)
    smallest = xp.epsilon * xp.epsilon

    def gather(y, p, m):
        return zero, y * y, p * p, y * p

    def finish(m, yy, pp, yp):
        r = one / (xp.sqrt(xp.maximum(yy, smallest)) * xp.sqrt(xp.maximum(pp, smallest)))
        return -yp * r, -r, xp.where(pp < smallest, zero, -yp / pp)

    def slope(y, p, u, v):
        # Not as the sum of two products: either may be contracted, not the same in each loop, and bits would differ.
        return u * (y + v * p)

    return RowFunctions("none", gather, finish, slope, keeps="prediction")
