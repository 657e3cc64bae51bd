"""Derive the polynomials of `fastloss.engine.vmath` and write them to ``src/fastloss/engine/coefficients.py``.

Each table is a weighted minimax fit (Remez exchange on a dense Chebyshev grid, in mpmath at 70 digits). The weight
turns an error of the polynomial into a relative error of the function that uses it. The coefficients are then rounded
to the target dtype one after another, leading ones first, refitting those that are still free: the later ones absorb
most of what rounding the earlier ones cost.

Run it as ``python scripts/derive_coefficients.py``: it takes 15 seconds. ``--check`` compares instead of writing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpmath import fdot, log, lu_solve, matrix, mp, mpf, sqrt
from mpmath import log1p as mp_log1p

mp.dps = 70

TARGET = Path(__file__).resolve().parent.parent / "src" / "fastloss" / "engine" / "coefficients.py"
DTYPES: dict[str, type[np.floating]] = {"float32": np.float32, "float64": np.float64}
POINTS_PER_COEFFICIENT = 24
LN2 = log(2)


@dataclass(frozen=True)
class Table:
    """What to fit: ``function`` on ``interval``; ``weight * (function - polynomial)`` is the error that counts."""

    formula: str
    relative_to: str
    function: Callable[[mpf], mpf]
    weight: Callable[[mpf], mpf]
    interval: tuple[mpf, mpf]
    sizes: dict[str, int]


def _atanh_rest(z: mpf) -> mpf:
    s = sqrt(z)
    return (mpf(3) / 2 * log((1 + s) / (1 - s)) / s - 3 - z) / z**2


# Intervals are a little wider than the reduction asks for, because the reduction rounds.
MARGIN = mpf("1.0005")
TABLES = {
    "EXPM1": Table(
        "(exp(r) - 1 - r) / r^2",
        "expm1(r)",
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: abs(r**2 / mp.expm1(r)),
        (-LN2 / 2 * MARGIN, LN2 / 2 * MARGIN),
        {"float32": 5, "float64": 10},
    ),
    "LOG1P": Table(
        "(log1p(f) - f + f^2/2) / f^3",
        "log1p(f)",
        lambda f: (mp_log1p(f) - f + f**2 / 2) / f**3,
        lambda f: abs(f**3 / mp_log1p(f)),
        ((sqrt(mpf(1) / 2) - 1) * MARGIN, (sqrt(mpf(2)) - 1) * MARGIN),
        {"float32": 8, "float64": 19},
    ),
    "LOG1P_UNIT": Table(
        "(log1p(u) - u) / u^2",
        "log1p(u)",
        lambda u: (mp_log1p(u) - u) / u**2,
        lambda u: u**2 / mp_log1p(u),
        (mpf(0), mpf(1)),
        {"float32": 9, "float64": 20},
    ),
    "ATANH": Table(
        "(3 atanh(s)/s - 3 - z) / z^2 with s^2 = z",
        "atanh(s)/s",
        _atanh_rest,
        lambda z: z**2 / 3,
        (mpf(0), (3 - 2 * sqrt(mpf(2))) ** 2 * MARGIN),
        {"float32": 3, "float64": 7},
    ),
    "LOG_COSH": Table(
        "log(cosh(x)) / z with x^2 = z",
        "log(cosh(x))",
        lambda z: log(mp.cosh(sqrt(z))) / z,
        lambda z: z / log(mp.cosh(sqrt(z))),
        (mpf(0), mpf(1)),
        {"float32": 7, "float64": 15},
    ),
    "LOG_COSH_TAIL": Table(
        "(log1p(u) - u) / u^2",
        "log(cosh(x)) = x - log(2) + log1p(u) with u = exp(-2x)",
        lambda u: (mp_log1p(u) - u) / u**2,
        lambda u: u**2 / log((sqrt(u) + 1 / sqrt(u)) / 2),
        (mpf("1e-30"), mp.exp(-2) * MARGIN),
        {"float32": 3, "float64": 9},
    ),
}


def rounded(value: mpf, dtype: str) -> mpf:
    """Round ``value`` to the nearest number of ``dtype``."""
    with mp.workprec(np.finfo(DTYPES[dtype]).nmant + 1):
        return +value


class Fit:
    """A table's function and weight, sampled once, and the minimax fits of what rounding leaves free."""

    def __init__(self, table: Table, size: int) -> None:
        low, high = table.interval
        count = POINTS_PER_COEFFICIENT * (size + 2)
        nodes = [mp.cospi(mpf(2 * i + 1) / (2 * count)) for i in range(count)]
        self.size = size
        self.x = [(low + high) / 2 - (high - low) / 2 * node for node in nodes]
        self.function = [table.function(x) for x in self.x]
        self.weight = [table.weight(x) for x in self.x]
        self.powers = [[x**j for j in range(size)] for x in self.x]

    def errors(self, coefficients: list[mpf]) -> list[mpf]:
        """Give the weighted error at every point of the grid."""
        rows = zip(self.weight, self.function, self.powers, strict=True)
        return [w * (g - fdot(zip(coefficients, p, strict=True))) for w, g, p in rows]

    def minimax(self, fixed: list[mpf]) -> list[mpf]:
        """Find the coefficients with the smallest largest weighted error among those that start with ``fixed``.

        The free part is ``x^j`` times a polynomial; the error alternates once its sign is taken relative to ``x^j``.
        """
        first, count = len(fixed), self.size - len(fixed)
        signs = [1 if first % 2 == 0 or x > 0 else -1 for x in self.x]
        steps = len(self.x) - 1
        reference = sorted({round(steps * (i + 0.5) / (count + 1)) for i in range(count + 1)})
        for _ in range(40):
            system, right = matrix(count + 1, count + 1), matrix(count + 1, 1)
            for row, i in enumerate(reference):
                for column in range(count):
                    system[row, column] = self.weight[i] * self.powers[i][first + column]
                system[row, count] = signs[i] * (-1) ** row
                known = fdot(zip(fixed, self.powers[i][:first], strict=True))
                right[row] = self.weight[i] * (self.function[i] - known)
            solution = lu_solve(system, right)
            coefficients = fixed + [solution[j] for j in range(count)]
            errors = [s * e for s, e in zip(signs, self.errors(coefficients), strict=True)]
            level = abs(solution[count])
            if max(abs(e) for e in errors) <= level * (1 + mpf("1e-4")):
                return coefficients
            reference = alternating_extrema(errors, level * (1 - mpf("1e-20")), count + 1)
        raise ArithmeticError("the exchange did not converge")

    def rounded_minimax(self, dtype: str) -> list[mpf]:
        """Fit with every coefficient a number of ``dtype``."""
        fixed: list[mpf] = []
        while len(fixed) < self.size:
            fixed.append(rounded(self.minimax(fixed)[len(fixed)], dtype))
        return fixed


def alternating_extrema(errors: list[mpf], level: mpf, count: int) -> list[int]:
    """Find ``count`` extrema of alternating sign, the largest among them.

    Points below ``level``, the error on the present reference, are passed over: the reference itself is then a run of
    enough points, and the level of the next one can only rise, which is what makes the exchange converge.
    """
    extrema: list[int] = []
    for i, error in enumerate(errors):
        if abs(error) < level:
            continue
        if extrema and (error > 0) == (errors[extrema[-1]] > 0):
            if abs(error) > abs(errors[extrema[-1]]):
                extrema[-1] = i
        else:
            extrema.append(i)
    while len(extrema) > count:
        extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
    return extrema


def split(value: mpf, bits: int, dtype: str) -> list[mpf]:
    """Split ``value`` into a leading part of ``bits`` bits and the rest, rounded."""
    with mp.workprec(bits):
        high = +value
    return [high, rounded(value - high, dtype)]


def derive(name: str, dtype: str) -> tuple[list[mpf], mpf]:
    """Give one table's coefficients, lowest order first, and their largest weighted error."""
    table = TABLES[name]
    fit = Fit(table, table.sizes[dtype])
    coefficients = fit.rounded_minimax(dtype)
    return coefficients, max(abs(e) for e in fit.errors(coefficients))


def literal(value: mpf, dtype: str) -> str:
    """Write the shortest decimal that reads back as ``value`` once converted to ``dtype``."""
    number = DTYPES[dtype](float(value))
    text = str(number)
    if mpf(float(number)) != value or DTYPES[dtype](float(text)) != number:
        raise ArithmeticError(f"{text} does not read back as {value}")
    return text


def entry(dtype: str, values: list[mpf]) -> list[str]:
    """Write one dtype's row of a table."""
    return [f'    "{dtype}": (', *(f"        {literal(value, dtype)}," for value in values), "    ),"]


def module() -> str:
    """Write the generated module."""
    lines = [
        '"""Coefficients of `fastloss.engine.vmath`, lowest order first. Generated by scripts/derive_coefficients.py.',
        "",
        "Each is a weighted minimax fit whose coefficients were rounded to the dtype one after another. Constants in",
        "two parts have a short leading part, so that its product with an exponent or a short number is exact.",
        '"""',
    ]
    for name, table in TABLES.items():
        low, high = (mp.nstr(end, 5) for end in table.interval)
        lines += ["", f"# {table.formula} on [{low}, {high}], error relative to {table.relative_to}:"]
        body, notes = [], []
        for dtype, size in table.sizes.items():
            coefficients, error = derive(name, dtype)
            ulps = error * mpf(2) ** np.finfo(DTYPES[dtype]).nmant
            notes.append(f"{mp.nstr(error, 2)} ({mp.nstr(ulps, 2)} epsilon) with {size} coefficients in {dtype}")
            body += entry(dtype, coefficients)
        lines += [f"# {'; '.join(notes)}.", f"{name}: dict[str, tuple[float, ...]] = {{", *body, "}"]
    # An exponent has 8 bits in float32 and 11 in float64; a truncated significand has 12 and 26.
    for name, comment, value, bits in (
        ("LN2", "log(2), the leading part short enough to be multiplied exactly by an exponent.", LN2, (16, 42)),
        ("ATANH_TO_LOG2", "2/(3 log 2), which turns 3 atanh(s) into log2.", 2 / (3 * LN2), (12, 26)),
    ):
        lines += ["", f"# {comment}", f"{name}: dict[str, tuple[float, ...]] = {{"]
        for dtype, leading in zip(DTYPES, bits, strict=True):
            lines += entry(dtype, split(value, leading, dtype))
        lines.append("}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the module, or compare it with the committed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    text = module()
    if parser.parse_args().check:
        return int(TARGET.read_text() != text)
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
