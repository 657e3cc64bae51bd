"""Cross-entropies, from logits and from probabilities."""

from __future__ import annotations

from typing import Any

from fastloss.kernels.definition import RowFunctions, pointwise, rowwise


@pointwise(params=("kept", "shift"), calls=("exp", "log", "div"))
def binary_crossentropy_logits(xp: Any) -> Any:
    """log(1 + eᶻ) - t·z, slope σ(z) - t, with t = kept·y + shift.

    With E = exp(-|z|): log(1 + E) + |z|·u where u is 1 - t for positive z and t otherwise, so nothing overflows and
    a certain, right answer (u = 0) costs nothing even at an infinite logit.
    """
    zero, one = xp.consts(0.0, 1.0)

    def terms(y, z, kept, shift):
        t = y * kept + shift
        a = abs(z)
        e = xp.exp_nonpositive(-a)
        u = xp.where(z > zero, one - t, t)
        r = one / (one + e)
        loss = xp.where(u == zero, zero, a * u) + xp.log1p_unit(e)
        return loss, xp.where(z < zero, e * r, r) - t, e * r * r

    return terms


@pointwise(params=("kept", "shift"), calls=("log", "log", "div"))
def binary_crossentropy(xp: Any) -> Any:
    """-t·log c - (1 - t)·log(1 - c) with c = clip(p, ε, 1 - ε) and t = kept·y + shift.

    The clip is dead beyond its borders (slope 0) and alive on them, as automatic differentiation has it.
    """
    zero, one = xp.consts(0.0, 1.0)
    low = xp.epsilon
    high = one - low

    def terms(y, p, kept, shift):
        t = y * kept + shift
        c = xp.clip(p, low, high)
        d = one - c
        alive = c == p
        loss = -(t * xp.log_positive(c) + (one - t) * xp.log_positive(d))
        # NaN is not alive, and must not become a zero slope.
        slope = xp.where(alive, (c - t) / (c * d), xp.where(p != p, p, zero))
        return loss, slope, xp.where(alive, t / (c * c) + (one - t) / (d * d), zero)

    return terms


@rowwise(calls=("exp",), curved=True)
def categorical_crossentropy_logits(xp: Any) -> Any:
    """Σt·(log Σeᶻ - z), gradient s·Σt - t with s = softmax(z); a class with target 0 contributes 0 even at logit -∞.

    The Hessian is (diag s - s sᵀ)·Σt, its diagonal s·(1 - s)·Σt.
    """
    zero, one = xp.consts(0.0, 1.0)

    def gather(t, z, m):
        d = z - m
        e = xp.exp_nonpositive(d)
        return e, e, xp.where(t == zero, zero, t * d), t

    def finish(m, total, dot, mass):
        return mass * xp.log(total) - dot, mass / total, one / total

    def slope(t, e, u, v):
        return e * u - t

    def curvature(t, e, u, v):
        return e * u * (one - e * v)

    return RowFunctions("max", gather, finish, slope, curvature=curvature)


@rowwise(calls=("log", "div", "div"))
def categorical_crossentropy(xp: Any) -> Any:
    """-Σt·log c with c = clip(q, ε, 1 - ε) and q = p/Σp.

    With d = t/c inside the clip and 0 beyond, ∂/∂q = -d, and through the normalisation ∂/∂p = (Σd·q - d) / Σp.
    """
    zero, one = xp.consts(0.0, 1.0)
    low = xp.epsilon
    high = one - low

    def gather(t, p, total):
        q = p / total
        c = xp.clip(q, low, high)
        d = xp.where(t == zero, zero, xp.where(c == q, t / c, xp.where(q != q, q, zero)))
        return d, xp.where(t == zero, zero, t * xp.log_positive(c)), xp.where(t == zero, zero, d * q), zero

    def finish(total, log_likelihood, dot, unused):
        inverse = one / total
        # 0 · inverse is NaN for a row that sums to 0 or holds a NaN, whatever its targets.
        return zero * inverse - log_likelihood, dot, inverse

    def slope(t, d, u, v):
        return (u - d) * v

    return RowFunctions("sum", gather, finish, slope, targets_only=True)


@rowwise(params=("q",))
def generalized_crossentropy(xp: Any) -> Any:
    """(1 - pᵠ)/q of the label's probability p, slope -pᵠ⁻¹; nothing of the other classes."""
    zero, one = xp.consts(0.0, 1.0)

    def gather(t, p, m, q):
        right = t != zero
        return xp.where(right, -xp.pow(p, q - one), zero), xp.where(right, (one - xp.pow(p, q)) / q, zero), zero, zero

    def finish(m, loss, unused, unused_too, q):
        return loss, zero, zero

    def slope(t, kept, u, v, q):
        return kept

    return RowFunctions("none", gather, finish, slope, targets_only=True)


@rowwise()
def sparsemax(xp: Any) -> Any:
    """Σ s·(z - s/2) + Σ t·(t/2 - z) with s = max(z - τ, 0), where τ makes Σs = 1; gradient s - t.

    A class without support (s = 0) or target contributes 0 even at logit -∞. Taken from d = z - max z, which is exact
    where z is near, the loss lacks max z · (Σs - Σt).
    """
    zero, half, one = xp.consts(0.0, 0.5, 1.0)

    def gather(t, z, pivot):
        top, threshold = pivot
        d = z - top
        s = xp.maximum(d - threshold, zero)
        expected = xp.where(s == zero, zero, s * (d - half * s))
        return s, expected + xp.where(t == zero, zero, t * (half * t - d)), t, zero

    def finish(pivot, loss, mass, unused):
        return loss + pivot[0] * (one - mass), zero, zero

    def slope(t, s, u, v):
        return s - t

    return RowFunctions("simplex", gather, finish, slope)
