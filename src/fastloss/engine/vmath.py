"""Scalar mathematics that LLVM vectorises: no calls, no branches, no tables, nothing wider than the dtype.

TODO docstring
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastloss.engine import coefficients

Function = Callable[..., Any]
Jit = Callable[[Function], Function]


def polynomial(dtype: Any, jit: Jit, name: str) -> Function:
    """The polynomial whose coefficients are the table ``name``."""
    return horner(dtype, jit, getattr(coefficients, name)[np.dtype(dtype).name])


import os
def horner(dtype: Any, jit: Jit, coefs: tuple[float, ...]) -> Function:
    constants = {f"c{i}": dtype(c) for i, c in enumerate(coefs)}
    names = list(constants)
    scheme = os.environ.get("SCHEME", "horner")
    lines = []
    def chain(ns, v):
        e = ns[-1]
        for c in reversed(ns[:-1]):
            e = f"{c} + {v} * ({e})"
        return e
    if scheme == "horner" or len(names) < 4:
        expression = chain(names, "x")
    elif scheme == "evenodd":
        lines.append("x2 = x * x")
        expression = f"({chain(names[::2], 'x2')}) + x * ({chain(names[1::2], 'x2')})"
    elif scheme.startswith("pairs"):  # horner in x2 of pairs
        lines.append("x2 = x * x")
        expression = chain([f"({chain(names[i:i+2],'x')})" for i in range(0, len(names), 2)], "x2")
    elif scheme.startswith("quads"):
        lines.append("x2 = x * x"); lines.append("x4 = x2 * x2")
        q = []
        for i in range(0, len(names), 4):
            q.append("(" + chain([f"({chain(names[j:j+2],'x')})" for j in range(i, min(i+4, len(names)), 2)], "x2") + ")")
        expression = chain(q, "x4")
    elif scheme == "estrin":
        terms = names; v = "x"; k = 1
        while len(terms) > 1:
            terms = [f"({a} + {v} * {b})" if b else a for a, b in zip(terms[::2], list(terms[1::2]) + [None])]
            if len(terms) > 1:
                lines.append(f"x{2*k} = {v} * {v}"); v = f"x{2*k}"; k *= 2
        expression = terms[0]
    body = "".join(f"    {l}\n" for l in lines)
    exec(f"def polynomial(x):\n{body}    return {expression}", constants)
    return jit(constants["polynomial"])


def build(dtype: Any, jit: Jit) -> dict[str, Function]:
    """Every function by its name, for one dtype."""
    dt = np.dtype(dtype)
    F = dt.type
    U = np.uint32 if F is np.float32 else np.uint64
    info = np.finfo(F)
    digits, bias = info.nmant, info.maxexp - 1

    zero, half, one, two, three = F(0), F(0.5), F(1), F(2), F(3)
    infinity, nan, smallest = F(np.inf), F(np.nan), info.tiny
    ln2_high, ln2_low = (F(c) for c in coefficients.LN2[dt.name])
    log2e = F(1.4426950408889634)
    sign_bit = U(1 << (digits + info.nexp)) if False else F(-0.0).view(U)
    mantissa_shift, shift_one = U(digits), U(1)
    one_bits = one.view(U)
    mantissa_mask = U((1 << digits) - 1)
    two_one_bits = U(2 * int(one_bits))

    magic = F(1.5 * 2**digits)
    magic_flush = F(1.5 * 2**digits + bias)
    magic_scale = F(1.5 * 2**digits + 2 * bias)
    magic_half = F(1.5 * 2**digits + bias - 1)

    ln2 = float(np.log(2))
    flush_low = F(-bias * ln2)
    sigmoid_high = F((bias + 1) * ln2)
    exp_low, exp_high = F((info.minexp - digits - 2) * ln2), F((info.maxexp + 1) * ln2)
    expm1_low, expm1_high = F(-(bias - 1) * ln2), F((bias + 1.4) * ln2)
    tanh_high = F(40)
    identity_below = F(2.0**-60)

    # where(m < sqrt(2)) by adding to bits
    sqrt_half_bits = F(np.sqrt(0.5)).view(U)
    to_field = U(int(one_bits) - int(sqrt_half_bits))
    two_digits_bits = F(2.0**digits).view(U)
    two_digits_bias = F(2.0**digits + bias)
    subnormal_scale = F(2.0 ** (digits + 1))
    subnormal_shift = F(digits + 1)
    minus_infinity_bits = (-infinity).view(U)
    sign_to_mantissa = U(info.nexp + 1)
    two_digits_bias_sub = F(2.0**digits + bias + digits + 1)

    expm1_rest = polynomial(F, jit, "EXPM1")
    log1p_rest = polynomial(F, jit, "LOG1P")
    log1p_unit_rest = polynomial(F, jit, "LOG1P_UNIT")
    atanh_rest = polynomial(F, jit, "ATANH")
    to_log2_high, to_log2_low = (F(c) for c in coefficients.ATANH_TO_LOG2[dt.name])
    to_log2 = F(to_log2_high + to_log2_low)

    @jit
    def bits(x):
        return F(x).view(U)

    @jit
    def value(i):
        return U(i).view(F)

    @jit
    def where(condition, a, b):
        return a if condition else b

    @jit
    def at_least(x, low):
        return low if x < low else x

    @jit
    def at_most(x, high):
        return high if x > high else x

    @jit
    def power_of_two(t):
        """2^k from the rounding sum t = k + magic, whose lowest bits are k plus the bias in the magic number."""
        return value(bits(t) << mantissa_shift)

    @jit
    def scale(p, t):
        """p 2^k in two steps, each within range: overflows to infinity and underflows gradually."""
        exponents = bits(t)
        lower = U(exponents >> shift_one)
        upper = U(exponents - lower)
        return p * value(lower << mantissa_shift) * value(upper << mantissa_shift)

    @jit
    def exp_kernel(r):
        """e^r for abs(r) <= log(2)/2."""
        return one + r * (one + r * expm1_rest(r))

    @jit
    def exp_bounded(x):
        """e^x where it neither overflows ..."""
        t = x * log2e + magic_flush
        n = t - magic_flush
        r = x - n * ln2_high - n * ln2_low
        return exp_kernel(r) * power_of_two(t)

    @jit
    def exp(x):
        x = at_most(at_least(x, exp_low), exp_high)
        t = x * log2e + magic_scale
        n = t - magic_scale
        r = x - n * ln2_high - n * ln2_low
        return scale(exp_kernel(r), t)

    @jit
    def exp_nonpositive(x):
        return exp_bounded(at_least(x, flush_low))

    @jit
    def expm1_kernel(x, unit, magic):
        """unit (e^x - 1), where unit is 1 or 1/2"""
        t = x * log2e + magic
        n = t - magic
        high = x - n * ln2_high
        low = n * ln2_low
        r = high - low
        s = power_of_two(t)
        return (s * high - (unit - s)) - s * (low - r * r * expm1_rest(r))

    @jit
    def expm1_nonpositive(x):
        return expm1_kernel(at_least(x, flush_low), one, magic_flush)

    @jit
    def expm1(x):
        clamped = at_most(at_least(x, expm1_low), expm1_high)
        return where(abs(x) < identity_below, x, two * expm1_kernel(clamped, half, magic_half))

    @jit
    def tanh(x):
        e = expm1_kernel(at_most(at_least(two * x, flush_low), tanh_high), one, magic_flush)
        return e / (e + two)

    @jit
    def sigmoid(x):
        return one / (one + exp_bounded(at_most(at_least(-x, flush_low), sigmoid_high)))

    @jit
    def log_kernel(f, minus_k):
        """log1p(f) + k log(2)"""
        f2 = f * f
        y = f2 * (f * log1p_rest(f) - half) - minus_k * ln2_low
        return (f + y) - minus_k * ln2_high

    @jit
    def log_edges(x, result):
        special = value(minus_infinity_bits | U(bits(x + zero) >> sign_to_mantissa))
        return where(x <= zero, special, where(x < infinity, result, x))

    @jit
    def log_split(x):
        """m - 1, -k"""
        small = x < smallest
        shifted = U(bits(where(small, x * subnormal_scale, x)) + to_field)
        minus_k = (two_digits_bias - value(U(shifted >> mantissa_shift) | two_digits_bits)) + where(small, subnormal_shift, zero)
        return value(U(shifted & mantissa_mask) + sqrt_half_bits) - one, minus_k

    @jit
    def log(x):
        f, minus_k = log_split(x)
        return log_edges(x, log_kernel(f, minus_k))

    @jit
    def log1p(x):
        u = one + x
        field = U(U(bits(u) + to_field) >> mantissa_shift)
        minus_k = two_digits_bias - value(field | two_digits_bits)
        shift = U(field << mantissa_shift)
        scale = at_least(value(two_one_bits - shift), zero)
        scaled = value(U(bits(x) + one_bits) - shift)
        return log_edges(u, log_kernel(scaled + (scale - one), minus_k))

    @jit
    def log1p_unit(x):
        return x + x * x * log1p_unit_rest(x)

    @jit
    def softplus(x):
        return at_least(x, zero) + log1p_unit(exp_nonpositive(-abs(x)))

    return {
        "exp": exp,
        "exp_nonpositive": exp_nonpositive,
        "expm1": expm1,
        "expm1_nonpositive": expm1_nonpositive,
        "log": log,
        "log1p": log1p,
        "log1p_unit": log1p_unit,
        "tanh": tanh,
        "sigmoid": sigmoid,
        "softplus": softplus,
    }
