"""Accuracy, special values and vectorisation of the scalar mathematics.

Errors are counted in ULP: the distance to the true value in units of the spacing of the dtype there. The float32
reference is NumPy in float64, whose own error is invisible at this scale; the float64 reference is mpmath.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import mpmath
import numba
import numpy as np
import pytest

from fastloss.engine import coefficients, jit, vmath

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
CHUNK = 1 << 18


@dataclass(frozen=True)
class Case:
    """One function of one argument.

    `flushes` says that results below the smallest normal number may be anything from zero to it.
    """

    reference: Callable[[Any], Any]
    exact: Callable[[Any], Any]
    limits: dict[np.dtype, float]
    domain: tuple[float, float] = (-np.inf, np.inf)
    flushes: bool = False


def limits(single: float, double: float = 2.0) -> dict[np.dtype, float]:
    return {FLOAT32: single, FLOAT64: double}


NORMAL = (float(np.finfo(np.float32).smallest_normal), np.inf)
CASES = {
    "exp": Case(np.exp, mpmath.exp, limits(1.5)),
    "exp_nonpositive": Case(np.exp, mpmath.exp, limits(1.5), (-np.inf, 0.0), flushes=True),
    "expm1": Case(np.expm1, mpmath.expm1, limits(2.0)),
    "expm1_nonpositive": Case(np.expm1, mpmath.expm1, limits(2.0), (-np.inf, 0.0)),
    "log": Case(np.log, mpmath.log, limits(1.5)),
    "log_positive": Case(np.log, mpmath.log, limits(1.5), NORMAL),
    "log1p": Case(np.log1p, mpmath.log1p, limits(2.0)),
    "log1p_unit": Case(np.log1p, mpmath.log1p, limits(2.0), (0.0, 1.0)),
    "tanh": Case(np.tanh, mpmath.tanh, limits(2.0)),
    "sigmoid": Case(
        lambda x: 1 / (1 + np.exp(-x)),
        lambda x: 1 / (1 + mpmath.exp(-x)),
        limits(2.0),
        flushes=True,
    ),
    "softplus": Case(
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        lambda x: mpmath.log1p(mpmath.exp(x)),
        limits(2.0),
        flushes=True,
    ),
}
ALL = pytest.mark.parametrize("name", CASES)


@cache
def functions(dtype: np.dtype, compiled: bool = True) -> dict[str, Callable[..., Any]]:
    return vmath.build(dtype.type, jit.scalar if compiled else lambda function: function)


@cache
def loop(name: str, dtype: np.dtype) -> Callable[..., None]:
    """The function over an array, as a driver would call it."""
    function = functions(dtype)[name]

    def unary(x, out):
        for i in range(x.shape[0]):
            out[i] = function(x[i])

    def binary(x, y, out):
        for i in range(x.shape[0]):
            out[i] = function(x[i], y[i])

    return numba.njit(nogil=True, **jit.LOOP_FLAGS)(binary if name == "pow" else unary)


def apply(name: str, *arguments: np.ndarray) -> np.ndarray:
    out = np.empty_like(arguments[0])
    loop(name, out.dtype)(*arguments, out)
    return out


def apply_plain(name: str, *arguments: np.ndarray) -> np.ndarray:
    function = functions(arguments[0].dtype, compiled=False)[name]
    with np.errstate(all="ignore"):
        return np.array([function(*scalars) for scalars in zip(*arguments, strict=True)])


# ---- errors ---------------------------------------------------------------------------------------------------------


@numba.njit(nogil=True)
def worst_of(got, true, flushes):
    """The largest ULP between float32 results and float64 references, and its place.

    Infinite where one is NaN and the other is not, at a wrong sign of zero, and at a finite result for infinity. An
    infinite result for a finite value counts as 2^128.
    """
    tiny, top = 2.0**-126, 2.0**128
    worst, at = -1.0, 0
    for i in range(got.size):
        g, t = np.float64(got[i]), true[i]
        if np.isnan(t) or np.isnan(g):
            error = 0.0 if np.isnan(t) and np.isnan(g) else np.inf
        elif t == 0 or np.isinf(t):
            error = 0.0 if g == t and np.signbit(g) == np.signbit(t) else np.inf
        elif flushes and 0 < t < tiny and 0 <= g <= tiny:
            error = 0.0
        else:
            g, t = max(-top, min(g, top)), max(-top, min(t, top))
            exponent = (np.float64(t).view(np.int64) >> np.int64(52) & np.int64(2047)) - 1023
            exponent = max(-126, min(exponent, 127))
            error = abs(g - t) * 2.0 ** (23 - exponent)
        if error > worst:
            worst, at = error, i
    return worst, at


def errors_mpmath(got: np.ndarray, true: list[mpmath.mpf], flushes: bool) -> np.ndarray:
    """ULP between results and finite mpmath references."""
    info = np.finfo(got.dtype)
    errors = np.zeros(len(got))
    for i, (g, t) in enumerate(zip(got.tolist(), true, strict=True)):
        if flushes and 0 <= t < float(info.smallest_normal) and 0 <= g <= float(info.smallest_normal):
            continue
        exponent = max(mpmath.frexp(t)[1], info.minexp + 1)
        if exponent > info.maxexp:
            errors[i] = 0.0 if g == np.copysign(np.inf, float(mpmath.sign(t))) else np.inf
        elif np.isinf(g) and exponent == info.maxexp:
            errors[i] = float((mpmath.ldexp(1, info.maxexp) - abs(t)) / mpmath.ldexp(1, exponent - info.nmant - 1))
        else:
            errors[i] = float(abs(g - t) / mpmath.ldexp(1, exponent - info.nmant - 1)) if np.isfinite(g) else np.inf
    return errors


def check(errors: np.ndarray, limit: float, arguments: tuple[np.ndarray, ...], got: np.ndarray) -> None:
    worst = int(np.argmax(errors))
    at = ", ".join(repr(argument[worst]) for argument in arguments)
    assert errors[worst] <= limit, f"{errors[worst]:.3f} ULP, {limit} allowed: f({at}) = {got[worst]!r}"


# ---- arguments ------------------------------------------------------------------------------------------------------


def within(x: np.ndarray, domain: tuple[float, float]) -> np.ndarray:
    low, high = domain
    if low == NORMAL[0]:
        low = float(np.finfo(x.dtype).smallest_normal)
    return x[((x >= low) & (x <= high)) | np.isnan(x)]


def special(dtype: np.dtype) -> np.ndarray:
    info = np.finfo(dtype)
    positive = [0, 1, 0.5, 2, info.smallest_subnormal, info.smallest_normal, info.max, info.eps, np.inf, np.nan]
    return np.array([sign * value for value in positive for sign in (1, -1)], dtype)


def critical(dtype: np.dtype, width: int = 8) -> np.ndarray:
    """Neighbourhoods of every place where one of the functions changes what it does."""
    info = np.finfo(dtype)
    points = [info.smallest_normal, info.eps, info.epsneg, 2.0**-60, 1.0, 2.0, np.sqrt(0.5), np.sqrt(2), 20.0]
    points += [k * np.log(2) / 2 for k in (*range(1, 12), *range(2 * info.nmant, 2 * info.nmant + 4))]
    points += [2.0**k for k in range(-info.nmant - 3, info.nmant + 4)]
    points += [2.0**k * np.sqrt(2) for k in (-5, -2, 1, 2, 5)]
    points += [1 - np.sqrt(0.5), np.sqrt(2) - 1, 1 - np.sqrt(0.5) / 2]
    # Where the exponential overflows, turns subnormal, is flushed, vanishes.
    ends = (info.maxexp, info.maxexp - 0.5, info.minexp, info.minexp - 0.5, info.minexp - 1, info.minexp - info.nmant)
    points += [k * np.log(2) for k in ends] + [(info.minexp - info.nmant - 1) * np.log(2), info.max]
    words = np.abs(np.array(points)).astype(dtype).view(f"int{info.bits}")
    x = (words[:, None] + np.arange(-width, width + 1, dtype=words.dtype)).view(dtype).ravel()
    return np.concatenate([x, -x])


def sample(dtype: np.dtype, count: int, seed: int) -> np.ndarray:
    """All magnitudes, and the ranges in which the functions do most of their work."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    top = info.maxexp * np.log(2)
    words = rng.integers(0, 1 << info.bits, count, dtype=f"uint{info.bits}").view(dtype)
    parts = [rng.uniform(-limit, limit, count) for limit in (0.4, 1, 2, 20, top)]
    parts += [rng.choice([-1, 1], count) * np.exp(rng.uniform(-20, 3, count)), 1 - np.exp(rng.uniform(-30, 0, count))]
    return np.concatenate([*parts, words[np.isfinite(words)]]).astype(dtype)


def every_float32(start: int, step: int = 1) -> np.ndarray:
    """`CHUNK` float32 numbers, `step` bit patterns apart, from the one with number `start`."""
    stop = min(start + CHUNK * step, 1 << 32)
    return np.arange(start, stop, step, dtype=np.int64).astype(np.uint32).view(np.float32)


def worst_float32(name: str, x: np.ndarray) -> tuple[float, float]:
    """The largest error over `x`, and where it is."""
    case = CASES[name]
    x = within(x, case.domain)
    if x.size == 0:
        return 0.0, 0.0
    with np.errstate(all="ignore"):
        true = case.reference(x.astype(np.float64))
    error, at = worst_of(apply(name, x), true, case.flushes)
    return error, float(x[at])


# ---- accuracy -------------------------------------------------------------------------------------------------------


@ALL
def test_float32_is_accurate_on_a_dense_sample(name):
    starts = range(0, 1 << 32, 4099 * CHUNK)
    pieces = [*(every_float32(start, 4099) for start in starts), critical(FLOAT32, 300), special(FLOAT32)]
    error, at = max(worst_float32(name, piece) for piece in pieces)
    assert error <= CASES[name].limits[FLOAT32], f"{error:.3f} ULP at {at!r}"


@pytest.mark.exhaustive
@ALL
def test_float32_is_accurate_everywhere(name):
    """A few minutes a function. The largest error is printed: run with -s to see it."""
    apply(name, np.ones(1, np.float32))  # compiles, before the threads ask for it
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        error, at = max(pool.map(lambda start: worst_float32(name, every_float32(start)), range(0, 1 << 32, CHUNK)))
    print(f"\n{name}: {error:.3f} ULP at {at!r}")
    assert error <= CASES[name].limits[FLOAT32], f"{error:.3f} ULP at {at!r}"


@ALL
def test_float64_is_accurate(name):
    case = CASES[name]
    x = within(np.concatenate([critical(FLOAT64), sample(FLOAT64, 300, seed=0)]), case.domain)
    x = x[np.isfinite(x) & (x != 0)]
    if name.startswith("log"):
        x = x[x > (-1 if name.startswith("log1p") else 0)]
    got = apply(name, x)
    with mpmath.workprec(140):
        errors = errors_mpmath(got, [case.exact(mpmath.mpf(v)) for v in x.tolist()], case.flushes)
    check(errors, case.limits[FLOAT64], (x,), got)


@DTYPES
@ALL
def test_special_values_are_exact(name, dtype):
    """Against NumPy, at zeros, infinities, NaN and poles; the dense tests cover the rest."""
    case = CASES[name]
    x = within(special(dtype), case.domain)
    with np.errstate(all="ignore"):
        true = case.reference(x)
    exact = np.isnan(true) | np.isinf(true) | (true == 0) | (x == 0)
    if case.flushes:
        exact &= (true != 0) | np.isinf(x)
    for got in (apply(name, x), apply_plain(name, x)):
        np.testing.assert_array_equal(got[exact], true[exact])
        signed = exact & ~np.isnan(true)
        np.testing.assert_array_equal(np.signbit(got[signed]), np.signbit(true[signed]))


@DTYPES
@pytest.mark.parametrize("name", ["expm1", "expm1_nonpositive", "log1p", "log1p_unit", "tanh"])
def test_subnormal_arguments_come_back(name, dtype):
    info = np.finfo(dtype)
    x = np.array([1, 2, 3, 12345, (1 << info.nmant) - 1], f"uint{info.bits}").view(dtype)
    x = within(np.concatenate([x, -x]), CASES[name].domain)
    np.testing.assert_array_equal(apply(name, x), x)


@DTYPES
def test_exp_underflows_gradually(dtype):
    info = np.finfo(dtype)
    x = np.linspace((info.minexp - info.nmant) * np.log(2), info.minexp * np.log(2), 50).astype(dtype)
    got = apply("exp", x)
    assert (got > 0).all()
    np.testing.assert_allclose(got / info.smallest_subnormal, np.exp(x) / info.smallest_subnormal, atol=1, rtol=1e-6)


# ---- pow ------------------------------------------------------------------------------------------------------------


def pow_arguments(dtype: np.dtype, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Bases of all magnitudes and close to 1, with exponents that make results of all magnitudes; and usual ones."""
    rng = np.random.default_rng(1)
    info = np.finfo(dtype)
    wide = np.exp2(rng.uniform(info.minexp - info.nmant, info.maxexp, count))
    near = 1 + rng.choice([-1, 1], count) * np.exp2(rng.uniform(-info.nmant, -1, count))
    x = np.concatenate([wide, near, rng.random(count)]).astype(dtype)
    x[x == 0] = info.smallest_subnormal
    x[x == np.inf] = info.max
    with np.errstate(divide="ignore"):
        to_edge = (info.maxexp + 1) / np.abs(np.log2(x.astype(np.float64)))
    y = np.minimum(to_edge, info.max / 4) * rng.uniform(-1, 1, 3 * count)
    y[2 * count :] = rng.choice([0.25, 0.5, 1, 1.5, 2, 2.5, 3, 5, -1, -2], count)
    return x, y.astype(dtype)


@DTYPES
def test_pow_is_accurate(dtype):
    x, y = pow_arguments(dtype, 1500)
    got = apply("pow", x, y)
    with mpmath.workprec(160):
        true = [mpmath.power(mpmath.mpf(a), mpmath.mpf(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        check(errors_mpmath(got, true, flushes=False), 4.0, (x, y), got)


@DTYPES
def test_pow_at_special_values(dtype):
    x, y = np.array([*product(special(dtype), special(dtype))], dtype).T.copy()
    with np.errstate(all="ignore"):
        true = np.power(np.where(x == 0, abs(x), x), y)
    true = np.where((x < 0) & (y != 0), dtype.type(np.nan), true)
    for got in (apply("pow", x, y), apply_plain("pow", x, y)):
        exact = np.isnan(true) | np.isinf(true) | (true == 0) | (true == 1)
        np.testing.assert_array_equal(got[exact], true[exact])
        np.testing.assert_allclose(got[~exact], true[~exact], rtol=4 * np.finfo(dtype).eps, atol=0)


# ---- one source, several targets ------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("name", [*CASES, "pow"])
def test_plain_python_agrees_with_compiled_code(name, dtype):
    """To 2 ULP, not to the bit: plain Python rounds every product that the compiled code fuses into an addition."""
    if name == "pow":
        arguments = pow_arguments(dtype, 200)
    else:
        arguments = (within(np.concatenate([critical(dtype, 1), sample(dtype, 60, seed=2)]), CASES[name].domain),)
    compiled, plain = apply(name, *arguments), apply_plain(name, *arguments)
    assert plain.dtype == dtype
    finite = np.isfinite(compiled) & np.isfinite(plain)
    np.testing.assert_array_equal(compiled[~finite], plain[~finite])
    info = np.finfo(dtype)
    spacing = np.spacing(np.clip(abs(compiled[finite]), info.smallest_normal, info.max / 2))
    difference = abs(compiled[finite].astype(np.longdouble) - plain[finite]) / spacing
    check(difference, 2.0, tuple(argument[finite] for argument in arguments), plain[finite])


@DTYPES
@pytest.mark.parametrize("name", [*CASES, "pow"])
@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2", False), reason="the processor has no AVX2")
def test_loops_are_packed(name, dtype):
    """The loop holds packed arithmetic of full width, no scalar arithmetic, and nothing calls a library."""
    arguments = [np.ones(1, dtype)] * (3 if name == "pow" else 2)
    loop(name, dtype)(*(a.copy() for a in arguments))
    (assembly,) = loop(name, dtype).inspect_asm().values()
    suffix = "ps" if dtype == FLOAT32 else "pd"
    packed = re.compile(rf"\tv(?:add|sub|mul|fn?m(?:add|sub)\d+){suffix}\s.*%[yz]mm")
    scalar = re.compile(r"\tv(?:add|sub|mul|div|fn?m(?:add|sub)\d+)s[sd]\s")
    blocks = re.split(r"\n(?=\.L\w+:)", assembly)
    body = max(blocks, key=lambda block: len(packed.findall(block)))
    assert len(packed.findall(body)) >= 8
    assert not scalar.findall(body)
    called = re.findall(r"(?:call\w*\s+|movabsq\s+\$)(\w+)", assembly)
    library = re.compile(r"_*(?:numba_)?(?:exp|exp2|expm1|log|log2|log1p|tanh|pow|fma|rint|floor|fabs|copysign)f?")
    assert not [symbol for symbol in called if library.fullmatch(symbol)]


# ---- polynomials ----------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 16, 19, 23])
def test_horner_evaluates_any_length(count, dtype):
    coefs = tuple(1.0 / (i + 1) for i in range(count))
    polynomial = vmath.horner(dtype.type, lambda function: function, coefs)
    x = dtype.type(-0.375)
    assert polynomial(x) == pytest.approx(sum(c * (-0.375) ** i for i, c in enumerate(coefs)), rel=1e-6)


@DTYPES
def test_log_cosh_polynomial_is_accurate(dtype):
    """x^2 P(x^2): the polynomial itself to half an ULP, so with its rounding to one and a half."""
    polynomial = vmath.polynomial(dtype.type, lambda function: function, "LOG_COSH")
    x = np.linspace(1e-3, 1, 400).astype(dtype)
    with mpmath.workprec(140):
        exact = [mpmath.log(mpmath.cosh(mpmath.mpf(v))) / mpmath.mpf(v) ** 2 for v in x.tolist()]
        coefs = [mpmath.mpf(float(dtype.type(c))) for c in coefficients.LOG_COSH[dtype.name]]
        unrounded = [mpmath.polyval(coefs[::-1], mpmath.mpf(v) ** 2) for v in x.tolist()]
        distance = max(abs(u / e - 1) for u, e in zip(unrounded, exact, strict=True))
    assert distance < np.finfo(dtype).eps / 4
    got = np.array([polynomial(v) for v in x * x])
    np.testing.assert_allclose(got, [float(e) for e in exact], rtol=1.5 * np.finfo(dtype).eps)


def test_coefficients_are_what_the_script_derives():
    """One cheap table, literally as it stands in the generated module."""
    path = Path(__file__).parents[2] / "scripts" / "derive_coefficients.py"
    spec = importlib.util.spec_from_file_location("derive_coefficients", path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    derived, error = script.derive("EXPM1", "float32")
    assert tuple(np.float32(float(c)) for c in derived) == tuple(np.float32(c) for c in coefficients.EXPM1["float32"])
    assert error < np.finfo(np.float32).eps / 4
