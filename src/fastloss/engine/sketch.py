"""The cells of a quantile sketch: the one loop over single losses that NumPy has no fast form for.

A DDSketch counts values in cells whose borders grow geometrically. The cell of a value is that of the library's
``LinearlyInterpolatedMapping``: the exponent plus the fraction is a logarithm to the base 2 that is linear between the
powers of two, and both are there in a float's bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastloss.engine import cache as disk

OFFSET = 1 << 18
"""Added to the key of a positive value, so that all cells but that of 0 have the sign of their values."""

_EXPONENT = 1023
_FRACTION = 52
_lock = threading.Lock()
_alive: list[Any] = []


def cells(values: np.ndarray[Any, Any], multiplier: float) -> np.ndarray[Any, Any]:
    """The cell of each value: 0 for zero and what is subnormal, `OFFSET` plus the key for a positive one.

    Parameters
    ----------
    values : numpy.ndarray
        Contiguous, of float64, finite.
    multiplier : float
        Cells for each power of two.
    """
    found = np.empty(values.shape, np.int64)
    _compiled()(values.view(np.int64), multiplier, found)
    return found


@cache
def _compiled() -> Callable[..., None]:
    with _lock:
        result = disk.obtain("sketch_cells", "sketch_cells", _compile)
        _alive.append(result)
        entry: Callable[..., None] = result.entry_point
        return entry


def _compile() -> Any:
    import numba
    from numba import types

    from fastloss.engine import jit

    integers = types.Array(types.int64, 1, "C")
    arguments = (integers, types.float64, integers)
    dispatcher = numba.njit(**jit.DRIVER_FLAGS)(_fill)
    dispatcher.compile(arguments)
    return dispatcher.overloads[arguments]


def _fill(bits: Any, multiplier: Any, out: Any) -> None:
    scale = 2.0**-_FRACTION
    lowest = np.int64(1) << _FRACTION
    for i in range(bits.size):
        size = bits[i] & np.int64(0x7FFFFFFFFFFFFFFF)
        exponent = (size >> _FRACTION) - _EXPONENT
        # The fraction's bits lie below 2**52, and are exact as a float.
        logarithm = exponent + (size & (lowest - 1)) * scale
        cell = np.int64(np.ceil(logarithm * multiplier)) + OFFSET
        if size < lowest:
            cell = np.int64(0)
        out[i] = -cell if bits[i] < 0 else cell
