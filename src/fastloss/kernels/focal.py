"""Focal losses: cross-entropies scaled down where the prediction is right already.

A power costs 3 ns an element, ten times an exponential, and the usual exponent is 2; so each kernel comes twice, the
second form (``..._squared``) with the power written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastloss.kernels.definition import Kernel, RowFunctions

_BINARY = ("kept", "shift", "positive", "negative", "gamma", "offset")
_CATEGORICAL = ("alpha", "gamma")


def _powers(xp: Any, squared: bool) -> Callable[..., Any]:
    """``f(q, γ)`` = q^(γ - 1), but 0 at q = 0 if γ < 1, as what it multiplies there vanishes faster; and q^γ."""
    zero, one = xp.consts(0.0, 1.0)

    def powers(q, gamma):
        lowered = xp.where((q == zero) & (gamma < one), zero, xp.pow(q, gamma - one))
        return lowered, xp.where(gamma == zero, one, q * lowered)

    return xp.jit((lambda q, gamma: (q, q * q)) if squared else powers)  # type: ignore[no-any-return]


def _binary(squared: bool) -> Callable[[Any], Any]:
    def factory(xp: Any) -> Any:
        """w·q^γ·b with b the cross-entropy and q = t(1 - p) + (1 - t)p, 1 less the probability of the target.

        t = kept·y + shift; w = positive·t + negative·(1 - t). Addons adds ``offset`` in the logarithms, after the clip.
        """
        zero, one, two = xp.consts(0.0, 1.0, 2.0)
        low = xp.epsilon
        high = one - low
        powers = _powers(xp, squared)

        def terms(y, p, kept, shift, positive, negative, gamma, offset):
            t = y * kept + shift
            n = one - t
            c = xp.clip(p, low, high)
            d = one - c
            alive = c == p
            near, far = c + offset, d + offset
            b = -(t * xp.log_positive(near) + n * xp.log_positive(far))
            b_slope = xp.where(alive, (n * near - t * far) / (near * far), xp.where(p != p, p, zero))
            b_curve = xp.where(alive, t / (near * near) + n / (far * far), zero)
            w = positive * t + negative * n
            q = t * (one - p) + n * p
            q_slope = n - t
            g, f = powers(q, gamma)
            f_slope = gamma * g * q_slope
            f_curve = xp.where(q == zero, xp.where(gamma == two, two, zero), gamma * (gamma - one) * g / q)
            curve = f_curve * q_slope * q_slope * b + two * f_slope * b_slope + f * b_curve
            return w * f * b, w * (f_slope * b + f * b_slope), w * curve

        return terms

    return factory


def _binary_logits(squared: bool) -> Callable[[Any], Any]:
    def factory(xp: Any) -> Any:
        """As from probabilities, with p = σ(z) and b in its stable form."""
        zero, one, two = xp.consts(0.0, 1.0, 2.0)
        powers = _powers(xp, squared)

        def terms(y, z, kept, shift, positive, negative, gamma, offset):
            t = y * kept + shift
            n = one - t
            e = xp.exp_nonpositive(-abs(z))
            r = one / (one + e)
            small = e * r
            p = xp.where(z < zero, small, r)
            complement = xp.where(z < zero, r, small)
            u = xp.where(z > zero, n, t)
            b = xp.where(u == zero, zero, abs(z) * u) + xp.log1p_unit(e)
            b_slope = p - t
            v = p * complement
            w = positive * t + negative * n
            q = t * complement + n * p
            q_slope = (n - t) * v
            g, f = powers(q, gamma)
            f_slope = gamma * g * q_slope
            # In terms of q'/q, which stays finite where q vanishes.
            k = xp.where(q == zero, zero, q_slope / q)
            f_curve = gamma * f * k * ((gamma - one) * k + (complement - p))
            curve = f_curve * b + two * f_slope * b_slope + f * v
            return w * f * b, w * (f_slope * b + f * b_slope), w * curve

        return terms

    return factory


def _categorical(squared: bool) -> Callable[[Any], Any]:
    def factory(xp: Any) -> Any:
        """Σ α·(1 - c)^γ·(-t·log c) with c = clip(q, ε, 1 - ε) and q = p/Σp.

        With D the derivative in q, 0 beyond the clip, that in p is (D - ΣD·q) / Σp.
        """
        zero, one = xp.consts(0.0, 1.0)
        derive = _focal_element(xp, squared, finite=False)

        def gather(t, p, total, alpha, gamma):
            q = p / total
            loss, d = derive(t, q, alpha, gamma)
            return d, loss, d * q, zero

        def finish(total, loss, dot, unused, alpha, gamma):
            inverse = one / total
            # NaN for a row that sums to 0 or holds a NaN, whatever its targets.
            return loss + zero * inverse, dot, inverse

        def slope(t, d, dot, inverse, alpha, gamma):
            return (d - dot) * inverse

        return RowFunctions("sum", gather, finish, slope)

    return factory


def _categorical_logits(squared: bool) -> Callable[[Any], Any]:
    def factory(xp: Any) -> Any:
        """As from probabilities, with q = softmax(z); the derivative in z is q·D - q·Σq·D."""
        zero, one = xp.consts(0.0, 1.0)
        derive = _focal_element(xp, squared, finite=True)

        def gather(t, z, m, alpha, gamma):
            e = xp.exp_nonpositive(z - m)
            return e, e, zero, zero

        def finish(m, total, unused, unused_too, alpha, gamma):
            return zero, one / total, zero

        def regather(t, e, inverse, unused, alpha, gamma):
            q = e * inverse
            loss, d = derive(t, q, alpha, gamma)
            return d * q, loss, d * q, zero

        def refinish(inverse, unused, loss, dot, unused_too, alpha, gamma):
            return loss + zero * inverse, inverse, dot

        def slope(t, e, inverse, dot, dq, alpha, gamma):
            return dq - e * inverse * dot

        return RowFunctions("max", gather, finish, slope, regather=regather, refinish=refinish)

    return factory


def _focal_element(xp: Any, squared: bool, finite: bool) -> Callable[..., Any]:
    """``f(t, q, α, γ)``: the loss of one class and its derivative in q; both 0 where the target is.

    With `finite`, a q that is NaN need not be kept in, nor out where the target is 0: all of its row are.
    """
    zero, one = xp.consts(0.0, 1.0)
    FINITE = finite
    low = xp.epsilon
    high = one - low
    powers = _powers(xp, squared)

    def derive(t, q, alpha, gamma):
        c = xp.clip(q, low, high)
        n = one - c
        logarithm = xp.log_positive(c)
        g, f = powers(n, gamma)
        at = alpha * t
        loss = -at * f * logarithm
        slope = xp.where(c == q, at * (gamma * g * logarithm - f / c), zero)
        if FINITE:
            return loss, slope
        return xp.where(t == zero, zero, loss), xp.where(t == zero, zero, xp.where(q != q, q, slope))

    return xp.jit(derive)  # type: ignore[no-any-return]


def _kernel(name: str, factory: Callable[[bool], Callable[[Any], Any]], squared: bool) -> Kernel:
    binary = factory in (_binary, _binary_logits)
    logits = factory in (_binary_logits, _categorical_logits)
    calls = ("exp", "log", "div") if logits else ("log", "log", "div") if binary else ("log", "div", "div")
    return Kernel(
        name + ("_squared" if squared else ""),
        "pointwise" if binary else "rowwise",
        factory(squared),
        _BINARY if binary else _CATEGORICAL,
        calls if squared else (*calls, "pow"),
    )


binary_focal, binary_focal_squared = (_kernel("binary_focal", _binary, squared) for squared in (False, True))
binary_focal_logits, binary_focal_logits_squared = (
    _kernel("binary_focal_logits", _binary_logits, squared) for squared in (False, True)
)
categorical_focal, categorical_focal_squared = (
    _kernel("categorical_focal", _categorical, squared) for squared in (False, True)
)
categorical_focal_logits, categorical_focal_logits_squared = (
    _kernel("categorical_focal_logits", _categorical_logits, squared) for squared in (False, True)
)
