"""What an evaluation asks of single losses: their sum and extremes, then their scatter and a sketch of quantiles.

Two passes without temporary arrays, for which NumPy allocates so much that it takes twice as long.

A DDSketch counts values in cells whose borders grow geometrically. The cell of a value is that of the library's
``LinearlyInterpolatedMapping``: the exponent plus the fraction is a logarithm to the base 2 that is linear between the
powers of two, and both are there in a float's bits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastloss.engine import cache as disk
from fastloss.engine.variant import CHUNK

Array = np.ndarray[Any, np.dtype[Any]]

OFFSET = 1 << 18
"""Added to the key of a positive value, so that all cells but that of 0 have the sign of their values."""

_EXPONENT = 1023
_FRACTION = 52
_lock = threading.Lock()
_alive: list[Any] = []


def extent(values: Array) -> tuple[float, float, float]:
    """Sum, minimum and maximum; not finite if a value is not.

    Parameters
    ----------
    values : numpy.ndarray
        Contiguous, of float32 or float64, not empty.
    """
    found = np.empty(3)
    _compiled("extent", values.dtype.name)(values, found)
    total, least, largest = found.tolist()
    return total, least, largest


def scatter(
    values: Array, least: float, largest: float, x: Array, mean: float, multiplier: float
) -> tuple[float, Array, Array]:
    """The sum of squares of ``x - mean``, the cells that `values` occupy, ascending, and how many are in each.

    Parameters
    ----------
    values, x : numpy.ndarray
        Contiguous, of float32 or float64 both, finite, not empty.
    least, largest : float
        The extremes of `values`.
    mean : float
        Of `x`.
    multiplier : float
        Cells for each power of two.
    """
    first, last = cell(least, multiplier), cell(largest, multiplier)
    numbers = np.zeros(last - first + 1, np.int64)
    squares = np.empty(1)
    _compiled("scatter", values.dtype.name)(values, x, mean, multiplier, first, numbers, squares)
    occupied = np.flatnonzero(numbers)
    return float(squares[0]), occupied + first, numbers[occupied]


def cells(values: Array, multiplier: float) -> Array:
    """The cell of each value.

    Parameters
    ----------
    values : numpy.ndarray
        Contiguous, of float64, finite.
    multiplier : float
        Cells for each power of two.
    """
    found = np.empty(values.shape, np.int64)
    _compiled("cells", "float64")(values, multiplier, found)
    return found


def cell(value: float, multiplier: float) -> int:
    """The cell of one value: 0 for zero and what is subnormal, `OFFSET` plus the key for a positive one."""
    if abs(value) < np.finfo(np.float64).tiny:
        return 0
    fraction, exponent = math.frexp(abs(value))
    key = math.ceil((2 * fraction - 1 + (exponent - 1)) * multiplier) + OFFSET
    return key if value > 0 else -key


@cache
def _compiled(name: str, dtype: str) -> Callable[..., None]:
    with _lock:
        key = repr(("sketch", name, dtype))
        result = disk.obtain(f"sketch_{name}", key, lambda: _compile(name, dtype))
        _alive.append(result)  # it owns the machine code
        entry: Callable[..., None] = result.entry_point
        return entry


def _compile(name: str, dtype: str) -> Any:
    from numba import types

    from fastloss.engine import jit

    values, floats = types.Array(getattr(types, dtype), 1, "C"), types.Array(types.float64, 1, "C")
    integers, number = types.Array(types.int64, 1, "C"), types.float64

    @jit.scalar
    def cell_of(value: Any, multiplier: Any) -> Any:
        bits = np.float64(value).view(np.int64)
        size = bits & np.int64(0x7FFFFFFFFFFFFFFF)
        exponent = (size >> _FRACTION) - _EXPONENT
        # The fraction's bits lie below 2**52, and are exact as a float.
        logarithm = exponent + (size & ((np.int64(1) << _FRACTION) - 1)) * 2.0**-_FRACTION
        found = np.int64(np.ceil(logarithm * multiplier)) + OFFSET
        if size < np.int64(1) << _FRACTION:
            found = np.int64(0)
        return -found if bits < 0 else found

    def extent(values: Any, out: Any) -> None:
        total, least, largest = 0.0, -values[0], values[0]
        for start in range(0, values.size, CHUNK):
            part = 0.0
            for i in range(start, min(start + CHUNK, values.size)):
                value = values[i]
                part += np.float64(value)
                least = jit.maximum(least, -value)
                largest = jit.maximum(largest, value)
            total += part
        out[0], out[1], out[2] = total, -least, largest

    def scatter(values: Any, x: Any, mean: Any, multiplier: Any, first: Any, numbers: Any, squares: Any) -> None:
        total = 0.0
        places = np.empty(CHUNK, np.int64)
        for start in range(0, values.size, CHUNK):
            stop = min(start + CHUNK, values.size)
            part = 0.0
            for i in range(start, stop):
                apart = np.float64(x[i]) - mean
                part += apart * apart
            total += part
            for i in range(start, stop):
                places[i - start] = cell_of(values[i], multiplier) - first
            for i in range(stop - start):
                numbers[places[i]] += 1
        squares[0] = total

    def cells(values: Any, multiplier: Any, out: Any) -> None:
        for i in range(values.size):
            out[i] = cell_of(values[i], multiplier)

    function, arguments = {
        "extent": (extent, (values, floats)),
        "scatter": (scatter, (values, values, number, number, types.int64, integers, floats)),
        "cells": (cells, (values, number, integers)),
    }[name]
    dispatcher = jit.njit(**jit.LOOP_FLAGS, nogil=True)(function)
    dispatcher.compile(arguments)
    return dispatcher.overloads[arguments]
