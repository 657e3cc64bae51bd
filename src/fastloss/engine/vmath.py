"""Scalar mathematics that LLVM turns into packed code: no calls, no branches, no tables, nothing wider than the dtype.

`build` gives every function for one dtype. The same source is compiled for the CPU, runs as plain Python on NumPy
scalars, and uses nothing that a GPU lacks: arithmetic, comparisons, selections and views of bits.

How it is done
--------------
* ``exp`` and its family reduce x = n log(2) + r with abs(r) <= log(2)/2. n comes from adding and subtracting
  1.5 * 2^digits, which rounds to an integer *and* leaves it in the lowest bits of the sum, where a shift makes 2^n of
  it: AVX2 converts no float64 to int64. log(2) is held in two parts, the leading one with so few bits that its product
  with n is exact, with fused multiply-add or without.
* ``log`` and ``log1p`` take x = 2^k m with sqrt(1/2) <= m < sqrt(2), and log1p(m - 1) is a polynomial. A quotient
  (m-1)/(m+1) would halve its degree, but a division costs as much as the terms it saves. Special values are put in
  place of -k, beside the critical path, and no selection is left at the end (0.7 instead of 0.9 ns in float32).
* ``tanh``, ``sigmoid`` and ``softplus`` are made of the same cores.
* ``pow`` is 2^(y log2 x), the logarithm carried in two numbers whose leading part is short, so that no product needs a
  fused multiply-add to be exact. float32 stays float32: through float64 it would be 2.8 instead of 3.2 ns before any
  special value is looked after, for a second set of polynomials.

Accuracy, cost and policies
---------------------------
Largest error in units in the last place, float32 over all 2^32 inputs, float64 over 76,000 points against mpmath;
nanoseconds an element in a loop in cache, on a 3.3 GHz Zen 3. `pow`'s errors are those of 36,000 points.

=================== ======= ======= ======= =======
function            float32 float64 float32 float64
                    ULP     ULP     ns      ns
=================== ======= ======= ======= =======
exp                    0.93    0.87    0.32    0.99
exp_nonpositive        0.92    0.87    0.24    0.83
expm1                  1.24    1.27    0.41    1.41
expm1_nonpositive      1.22    1.31    0.27    0.91
log                    0.89    0.80    0.69    1.63
log_positive           0.89    0.80    0.35    1.27
log1p                  1.47    1.29    0.70    1.56
log1p_unit             1.28    1.32    0.19    0.86
tanh                   1.75    1.53    0.56    1.60
sigmoid                2.00    1.98    0.37    1.12
softplus               1.93    1.84    0.64    2.50
pow                    0.87    1.00    3.2     7.6
=================== ======= ======= ======= =======

* Zero keeps its sign where the function does; infinities, NaN and poles are exact, subnormal inputs are honoured.
* Results below the smallest normal number: `exp`, `expm1`, `log1p`, `tanh` and `pow` underflow gradually.
  `exp_nonpositive`, `sigmoid` and `softplus` may give zero instead.
* `exp_nonpositive` and `expm1_nonpositive` take x <= 0, `log1p_unit` takes [0, 1], `log_positive` takes positive normal
  numbers and infinity. All of them pass a NaN through. What they leave out is a third to two thirds of the time.
* `exp_parts`, `parts` and `power_of_two` serve numbers m 2^n that no dtype holds, n an integer in the dtype of m.
  ``exp_parts(x)`` is such a pair for e^x with m in [0.7, 1.42), of any size (-inf gives n = -inf, and m = 1).
  ``parts(x)`` is one for a positive normal x with m in [1, 2). ``power_of_two(n)`` takes n < 128 (1024 in float64);
  from -127 (-1023) downwards it is 0, and 0 for NaN, the difference of two n that are -inf.
* `pow` treats -0 as 0 and gives NaN for every other negative base, except that ``pow(x, 0)`` is 1 for any x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastloss.engine import coefficients
from fastloss.engine.jit import keep

Scalar = Any
Function = Callable[..., Any]
Jit = Callable[[Function], Function]


def polynomial(dtype: type[np.floating[Any]], jit: Jit, name: str, hold: Function | None = keep) -> Function:
    """Give the polynomial whose coefficients are the table `name` of `fastloss.engine.coefficients`."""
    return horner(dtype, jit, getattr(coefficients, name)[np.dtype(dtype).name], hold)


def horner(dtype: type[np.floating[Any]], jit: Jit, coefs: tuple[float, ...], hold: Function | None = keep) -> Function:
    """Give the polynomial with these coefficients, lowest order first, as a function of one argument.

    `hold` is what keeps them in registers; None where instructions take constants as they are, as on a GPU.

    Horner's scheme is one long chain, and a processor overlaps only as many elements as fit its window. From 8
    coefficients on neighbours are paired first, which halves the chain; from 16 on three times over. Against plain
    Horner that is 1.6 instead of 2.5 ns for `log` in float64 and 1.0 instead of 1.2 for `exp`; with 5 coefficients it
    gains nothing. Two chains of even and odd orders would be as fast, but cancel (3.1 ULP in `log1p_unit`).

    The source is generated, because only a flat expression over constants is one expression for LLVM, for Numba and in
    plain Python alike.
    """
    terms, power, lines = [f"hold(c{i})" if hold else f"c{i}" for i in range(len(coefs))], "x", []
    for level in range(0 if len(terms) < 8 else 1 if len(terms) < 16 else 3):
        pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
        terms = [f"({pair[0]} + {power} * {pair[1]})" if len(pair) == 2 else pair[0] for pair in pairs]
        square = f"x{2 << level}"
        lines.append(f"{square} = {power} * {power}")
        power = square
    expression = terms.pop()
    while terms:
        expression = f"{terms.pop()} + {power} * ({expression})"
    source = "\n    ".join(["def polynomial(x):", *lines, f"return {expression}"])
    namespace: dict[str, Any] = {"hold": hold, **{f"c{i}": dtype(c) for i, c in enumerate(coefs)}}
    exec(source, namespace)
    return jit(namespace["polynomial"])


def build(dtype: type[np.floating[Any]], jit: Jit, hold: Function | None = keep) -> dict[str, Function]:
    """Give every function by its name.

    Parameters
    ----------
    dtype : numpy.float32 or numpy.float64
        Of the arguments, of the results, and of everything in between.
    jit : callable
        The decorator that compiles a scalar function: `fastloss.engine.jit.scalar`, or the identity for plain Python.
    hold : callable or None
        As for `horner`.
    """
    real = np.dtype(dtype).type
    word = np.uint32 if real is np.float32 else np.uint64
    name = np.dtype(dtype).name
    info = np.finfo(dtype)
    digits, bias = info.nmant, info.maxexp - 1

    zero, half, one, two, three = real(0), real(0.5), real(1), real(2), real(3)
    infinity, nan = real(np.inf), real(np.nan)
    log2e, ln2 = real(1 / np.log(2)), real(np.log(2))
    ln2_high, ln2_low = (real(c) for c in coefficients.LN2[name])
    expm1_rest = polynomial(dtype, jit, "EXPM1", hold)
    log1p_rest = polynomial(dtype, jit, "LOG1P", hold)
    log1p_unit_rest = polynomial(dtype, jit, "LOG1P_UNIT", hold)
    atanh_rest = polynomial(dtype, jit, "ATANH", hold)

    # ---- bits, selections -------------------------------------------------------------------------------------------

    mantissa_bits, one_bit = word(digits), word(1)
    one_word, infinity_word, sign_mask = one.view(word), infinity.view(word), (-zero).view(word)

    @jit
    def bits(x: Scalar) -> Scalar:
        # Numba only takes the view of a value that is visibly converted to a NumPy type.
        return real(x).view(word)

    @jit
    def value(i: Scalar) -> Scalar:
        return word(i).view(real)

    # A function, so that both sides are values by the time of the choice: then LLVM makes a blend of it.
    @jit
    def where(condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
        return a if condition else b

    # These keep a NaN in x, and are one instruction.
    @jit
    def at_least(x: Scalar, low: Scalar) -> Scalar:
        return low if x < low else x

    @jit
    def at_most(x: Scalar, high: Scalar) -> Scalar:
        return high if x > high else x

    # ---- the exponential family -------------------------------------------------------------------------------------

    # Adding one of these to x rounds it to an integer n and leaves n + bias, n + bias - 1 or n + 2 bias in the sum's
    # lowest bits: the exponent fields of 2^n, of 2^n/2, and of the product of two factors of 2^n.
    round_to_power = real(1.5 * 2**digits + bias)
    round_to_half_power = real(1.5 * 2**digits + bias - 1)
    round_to_two_powers = real(1.5 * 2**digits + 2 * bias)

    @jit
    def reduced(x: Scalar, magic: Scalar) -> Scalar:
        """Give n + magic, and x - n log(2) as a high part minus a low part; the high part is exact for small n."""
        t = x * log2e + magic
        n = t - magic
        return t, x - n * ln2_high, n * ln2_low

    @jit
    def power(t: Scalar) -> Scalar:
        """2^n: zero where the exponent field is 0, infinity where it is full."""
        return value(bits(t) << mantissa_bits)

    @jit
    def exp_slope(r: Scalar) -> Scalar:
        """Give (e^r - 1) / r where abs(r) <= log(2)/2."""
        return one + r * expm1_rest(r)

    @jit
    def scaled(p: Scalar, t: Scalar) -> Scalar:
        """2^n p by two factors, of which neither leaves the range: overflow is exact and underflow gradual."""
        first = word(bits(t) >> one_bit)
        second = word(bits(t) - first)
        return p * value(first << mantissa_bits) * value(second << mantissa_bits)

    exp_low, exp_high = real((info.minexp - digits - 2) * ln2), real((info.maxexp + 1) * ln2)

    @jit
    def exp(x: Scalar) -> Scalar:
        t, high, low = reduced(at_most(at_least(x, exp_low), exp_high), round_to_two_powers)
        r = high - low
        return scaled(one + r * exp_slope(r), t)

    # Here 2^n is zero. One step above -zero_below it overflows.
    zero_below = real(-bias * ln2)

    @jit
    def exp_nonpositive(x: Scalar) -> Scalar:
        t, high, low = reduced(at_least(x, zero_below), round_to_power)
        r = high - low
        return (one + r * exp_slope(r)) * power(t)

    @jit
    def sigmoid(x: Scalar) -> Scalar:
        # 1 + e^-x is 2^n + (1 + 2^n (e^r - 1)), where only small numbers are rounded before the sum: 2.5 ULP without.
        t, high, low = reduced(at_least(-x, zero_below), round_to_power)
        r, s = high - low, power(t)
        return where(x < zero_below, zero, one / (s + (one + s * r * exp_slope(r))))

    @jit
    def expm1_core(x: Scalar, unit: Scalar, magic: Scalar) -> Scalar:
        """Give unit (e^x - 1), where the magic number belongs to unit 2^n.

        2^n high + 2^n - 1 is nearly exact and the rest is small, so that next to n = 0 the rounding of e^r - 1 does not
        count twice. Written with differences only, so that -0 stays -0.
        """
        t, high, low = reduced(x, magic)
        r = high - low
        s = power(t)
        return (s * high - (unit - s)) - s * (low - r * r * expm1_rest(r))

    @jit
    def expm1_nonpositive(x: Scalar) -> Scalar:
        return expm1_core(at_least(x, zero_below), one, round_to_power)

    expm1_low, expm1_high = real(-(bias - 1) * ln2), real((bias + 1.4) * ln2)
    linear_below = real(2.0**-60)

    @jit
    def expm1(x: Scalar) -> Scalar:
        # By halves, because 2^n overflows before e^x does; but half of a subnormal number would lose its last bit.
        halved = expm1_core(at_most(at_least(x, expm1_low), expm1_high), half, round_to_half_power)
        return where(abs(x) < linear_below, x, two * halved)

    tanh_is_one_from = real(20)

    @jit
    def tanh(x: Scalar) -> Scalar:
        """Give q = e / (e + 2) where e = expm1(2 abs(x)), with the sign of x.

        For small x the three roundings of q add up to 2.5 ULP. There, with y = e/2, y - y q is the same, and q's errors
        count little. With e = expm1(2x) < 0 instead, 1 + e would cancel: 3 ULP.
        """
        e = expm1_core(two * at_most(abs(x), tanh_is_one_from), one, round_to_power)
        q, y = e / (e + two), half * e
        magnitude = where(e < one, y - y * q, q)
        return value(bits(magnitude) | word(bits(x) & sign_mask))

    # ---- logarithms -------------------------------------------------------------------------------------------------

    # An exponent field put into the mantissa of 2^digits is a number, 2^digits + field, without a conversion.
    field_origin = real(2.0**digits)
    exponent_origin = real(2.0**digits + bias)
    field_origin_word = field_origin.view(word)
    mantissa_mask = word((1 << digits) - 1)
    sqrt_half_word = real(np.sqrt(0.5)).view(word)
    to_sqrt_half = word(int(one_word) - int(sqrt_half_word))  # moves the step of the exponent from 1 to sqrt(1/2)
    two_ones_word = word(2 * int(one_word))
    smallest_normal = info.smallest_normal
    lifting, lifted_origin = real(2.0 ** (digits + 1)), real(2.0**digits + bias + digits + 1)
    sign_to_quiet = word(info.nexp + 1)

    @jit
    def split(x: Scalar) -> Scalar:
        """Take x = 2^k m: give m, and k + `exponent_origin`, or k + `lifted_origin` where x was lifted."""
        shifted = word(bits(x) + to_sqrt_half)
        m = value(word(shifted & mantissa_mask) + sqrt_half_word)
        return m, value(word(shifted >> mantissa_bits) | field_origin_word)

    @jit
    def lift(x: Scalar) -> Scalar:
        """Make subnormal numbers normal ones."""
        return where(x < smallest_normal, x * lifting, x)

    @jit
    def log_core(f: Scalar, minus_k: Scalar) -> Scalar:
        """log1p(f) + k log(2). Differences again: k = 0 keeps the sign of f = -0."""
        square = f * f
        rest = square * (f * log1p_rest(f) - half) - minus_k * ln2_low
        return (f + rest) - minus_k * ln2_high

    @jit
    def at_positive(origin: Scalar, x: Scalar) -> Scalar:
        """Give the origin, or -inf where x is inf and NaN where it is NaN.

        ``origin - x * 2^-149`` is one instruction less, but Intel's processors take 120 cycles for a subnormal operand.
        """
        return where(x < infinity, origin, -x)

    @jit
    def at_nonpositive(x: Scalar) -> Scalar:
        """Inf where x is 0 or -0 and NaN below: the sign becomes the first bit of an infinity's significand."""
        return value(infinity_word | word(bits(x + zero) >> sign_to_quiet))

    @jit
    def log_positive(x: Scalar) -> Scalar:
        m, exponent = split(x)
        return log_core(m - one, at_positive(exponent_origin, x) - exponent)

    @jit
    def log(x: Scalar) -> Scalar:
        m, exponent = split(lift(x))
        unusual = where(x > zero, lifted_origin, at_nonpositive(x))
        origin = where(x < smallest_normal, unusual, at_positive(exponent_origin, x))
        return log_core(m - one, origin - exponent)

    @jit
    def log1p(x: Scalar) -> Scalar:
        # k is that of 1 + x rounded, but m - 1 = 2^-k x - (1 - 2^-k) is rounded once, from x itself.
        u = one + x
        field = word(word(bits(u) + to_sqrt_half) >> mantissa_bits)
        origin = where(u <= zero, at_nonpositive(u), at_positive(exponent_origin, u))
        shift = word(field << mantissa_bits)
        step = at_least(value(two_ones_word - shift), zero)  # 2^-k; its field would wrap at the largest k
        f = value(word(bits(x) + one_word) - shift) - (one - step)
        return log_core(f, origin - value(field | field_origin_word))

    @jit
    def log1p_unit(x: Scalar) -> Scalar:
        return x + x * x * log1p_unit_rest(x)

    @jit
    def softplus(x: Scalar) -> Scalar:
        return at_least(x, zero) + log1p_unit(exp_nonpositive(-abs(x)))

    # ---- numbers beyond the dtype's range: m 2^n, n a float too ---------------------------------------------------

    to_integer, integers_from = real(1.5 * 2**digits), real(2.0 ** (digits - 1))
    lowest_power = real(-bias)

    @jit
    def exp_parts(x: Scalar) -> Scalar:
        # From 2^(digits - 1) on x no longer says where between two powers e^x is: all of it goes into n.
        t = x * log2e
        n = where(abs(t) < integers_from, (t + to_integer) - to_integer, t)
        r = (x - n * ln2_high) - n * ln2_low
        r = where(abs(r) < one, r, zero)
        return one + r * exp_slope(r), n

    @jit
    def parts(x: Scalar) -> Scalar:
        field = word(bits(x) >> mantissa_bits)
        return value(word(bits(x) & mantissa_mask) | one_word), value(field | field_origin_word) - exponent_origin

    @jit
    def power_of_two(n: Scalar) -> Scalar:
        return power(where(n > lowest_power, n, lowest_power) + round_to_power)

    # ---- powers -----------------------------------------------------------------------------------------------------

    to_log2_high, to_log2_low = (real(c) for c in coefficients.ATANH_TO_LOG2[name])
    to_log2 = real(to_log2_high + to_log2_low)
    short_mask = word((1 << info.bits) - (1 << (digits // 2 + 1)))
    largest_exponent = real(2.0 ** (digits + 14))  # decides for every x but 1
    far_out = real(info.maxexp + digits + 20)  # 2^far_out overflows, 2^-far_out is zero

    @jit
    def short(x: Scalar) -> Scalar:
        """X with half of its significand: the product of two such numbers is exact."""
        return value(bits(x) & short_mask)

    @jit
    def log2_in_two(x: Scalar) -> Scalar:
        """log2(x) as a short number and the rest, from 3 atanh(s)/s = 3 + s^2 + ... with s = (m - 1)/(m + 1)."""
        m, exponent = split(lift(x))
        k = exponent - where(x < smallest_normal, lifted_origin, exponent_origin)
        f, d = m - one, m + one
        inverse = one / d
        s = f * inverse
        s_high, d_high = short(s), short(d)
        s_low = ((f - s_high * d_high) - s_high * (m - (d_high - one))) * inverse
        square, square_high = s * s, s_high * s_high
        rest = s_low * (s_high + s) + square * square * atanh_rest(square)
        series_high = short(three + square_high + rest)
        series_low = rest - ((series_high - three) - square_high)
        product, correction = s_high * series_high, s_low * series_high + series_low * s
        atanh_high = short(product + correction)
        atanh_low = correction - (atanh_high - product)
        fraction_high, fraction_low = to_log2_high * atanh_high, to_log2_low * atanh_high + to_log2 * atanh_low
        high = short(fraction_high + fraction_low + k)
        return high, fraction_low - ((high - k) - fraction_high)

    @jit
    def pow(x: Scalar, y: Scalar) -> Scalar:
        log_high, log_low = log2_in_two(x)
        e = at_most(at_least(y, -largest_exponent), largest_exponent)
        e_high = short(e)
        high = at_most(at_least(e_high * log_high, -far_out), far_out)
        low = at_most(at_least((e - e_high) * log_high + e * log_low, -one), one)
        t = (high + low) + round_to_two_powers
        r = (high - (t - round_to_two_powers)) + low
        r = r * ln2
        result = scaled(one + r * exp_slope(r), t)
        at_edge = where(y > zero, abs(x), where(x < infinity, infinity, zero))
        result = where((x == zero) | (x == infinity), at_edge, result)
        result = where((x >= zero) & (y == y), result, nan)
        return where((y == zero) | (x == one), one, result)

    public = (exp, exp_nonpositive, expm1, expm1_nonpositive, log, log_positive, log1p, log1p_unit)
    scaled_numbers = (exp_parts, parts, power_of_two)
    return {f.__name__: f for f in (*public, tanh, sigmoid, softplus, pow, *scaled_numbers)}
