"""What an evaluation asks of single losses: moments and extremes, and how many fall in each cell of a sketch.

Losses are taken from the first- or second-level cache, where the kernel has just left them, without temporary arrays.

A DDSketch counts values in cells whose borders grow geometrically. That of the library's
``LinearlyInterpolatedMapping`` is the exponent plus the fraction of a float, a logarithm to the base 2 that is linear
between the powers of two, times the number of cells for each of these. With 128 of them the cell is the upper bits of
the float, rounded up: an addition and a shift.

A loop of ``counts[cell] += 1`` waits for its own last store where neighbours are equal, as the losses of margins are
which are 0: 5.8 ns a loss. With four counts for each cell, taken in turn, it is 0.35, and 0.5 where all are equal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss.engine import cache as disk
from fastloss.engine.variant import CHUNK

if TYPE_CHECKING:
    from fastloss.engine.launch import Launch

Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 128
"""Cells for each power of two."""

OFFSET = 1023 * CELLS
"""The cell of 1; that of a negative value is minus that of its size, and 0 has those of no normal float64."""

_NO_TABLE = np.empty(0, np.uint32)
_LANES = 4
_CELL_BITS = 7
_BIAS = {"f": 127, "d": 1023}
_FRACTION = {"f": 23, "d": 52}
_lock = threading.Lock()
_alive: list[Any] = []
_tables: dict[str, list[Array]] = {"f": [], "d": []}


def moments(values: Array, out: Array) -> None:
    """Sum, sum of squares around the mean, minimum and maximum; the sum is not finite if a value is not.

    Parameters
    ----------
    values : numpy.ndarray
        Contiguous, of float32 or float64, not empty.
    out : numpy.ndarray
        Where the four are written: contiguous, of float64.
    """
    _compiled("tally", values.dtype.char)(values, _NO_TABLE, out)


class Counts:
    """How many values fall in each cell.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the values: float32 or float64.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype.char
        # An empty table that was used before has the pages that it needs, a few of many.
        with _lock:
            free = _tables[self._dtype]
            self._table = free.pop() if free else np.zeros(_LANES * (2 * _sign(self._dtype) + 1), np.uint32)
        self._tally, self._take = _compiled("tally", self._dtype), _compiled("take", "d")

    def add(self, values: Array, out: Array) -> None:
        """Count values, fewer than 2**32 until they are taken, and do as `moments`.

        If the sum shows that some are not finite, this object is of no more use.
        """
        self._tally(values, self._table, out)

    def sweep(self, launch: Launch, scale: float, y: Array, p: Array, rows: int, out: Array) -> int:
        """Compute losses of a kernel, `rows` at a time, and do with these as `add`.

        All in one call of compiled code: between calls several threads wait for each other's Python. With 70 µs of
        work in a call, two threads were no faster than one.

        Parameters
        ----------
        launch : Launch
            The kernel; it writes the losses.
        scale : float
            What losses are multiplied with.
        y, p : numpy.ndarray
            As the kernel takes them.
        rows : int
            How many rows of `p` at a time: as many losses as stay in cache.
        out : numpy.ndarray
            Of shape (calls, 4), where `moments` of each are written.

        Returns
        -------
        int
            The calls that were made until the end, or the first loss that is not finite or bad label.
        """
        from fastloss.engine.compile import compiled

        result = compiled(launch.variant).result
        entry = _compiled("sweep", self._dtype, result.signature)
        values = np.empty(min(rows, len(p)), self._dtype)
        done = np.zeros(1, np.int64)
        numbers = (launch.columns, launch.rows_per_unit, scale, rows)
        address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
        entry(address, y, p, launch.params, *numbers, values, self._table, out, done)
        return int(done[0])

    def take(self, least: float, largest: float) -> tuple[Array, Array]:
        """The occupied cells, ascending, and how many values are in each: the end of this object.

        Parameters
        ----------
        least, largest : float
            The extremes of what was counted.
        """
        keys, numbers = [], []
        if least <= 0:  # -0.0 is a negative value here
            found, counts = self._rows(_sign(self._dtype), max(-largest, 0.0), -least)
            keys.append(-found[::-1])
            numbers.append(counts[::-1])
        if largest >= 0:
            found, counts = self._rows(0, max(least, 0.0), largest)
            if len(keys) and keys[0].size and found.size and keys[0][-1] == found[0] == 0:
                counts[0] += numbers[0][-1]
                keys[0], numbers[0] = keys[0][:-1], numbers[0][:-1]
            keys.append(found)
            numbers.append(counts)
        with _lock:
            _tables[self._dtype].append(self._table)
        return np.concatenate(keys), np.concatenate(numbers)

    def _rows(self, begin: int, least: float, largest: float) -> tuple[Array, Array]:
        """The occupied cells of values of these sizes, and their counts; `begin` is the row of the first one."""
        first, last = self._place(least), self._place(largest)
        keys, numbers, occupied = (np.empty(size, np.int64) for size in (last - first + 1, last - first + 1, 1))
        lift = OFFSET - _BIAS[self._dtype] * CELLS
        self._take(self._table[_LANES * begin :], first, last, lift, keys, numbers, occupied)
        return keys[: int(occupied[0])], numbers[: int(occupied[0])]

    def _place(self, size: float) -> int:
        """The row of the table of a positive value."""
        bits = np.array(size, self._dtype).view("u4" if self._dtype == "f" else "u8")
        shift = _FRACTION[self._dtype] - _CELL_BITS
        return (int(bits) + (1 << shift) - 1) >> shift


def cells(values: Array) -> Array:
    """The cell of each value.

    Parameters
    ----------
    values : numpy.ndarray
        Contiguous, of float64, finite.
    """
    found = np.empty(values.shape, np.int64)
    _compiled("cells", "d")(values, found)
    return found


def _sign(dtype: str) -> int:
    """The row of the table where negative values begin."""
    return 2 * (_BIAS[dtype] + 1) * CELLS


@cache
def _compiled(name: str, dtype: str, kernel: Any = None) -> Callable[..., None]:
    """One of the functions below; for a sweep, the signature of the kernel is given."""
    with _lock:
        key = repr(("sketch", name, dtype, kernel))
        result = disk.obtain(f"sketch_{name}", key, lambda: _compile(name, dtype, kernel))
        _alive.append(result)  # it owns the machine code
        entry: Callable[..., None] = result.entry_point
        return entry


def _compile(name: str, dtype: str, kernel: Any) -> Any:
    from numba import types

    from fastloss.engine import jit

    values = types.Array(types.float32 if dtype == "f" else types.float64, 1, "C")
    floats = types.Array(types.float64, 1, "C")
    integers, counts = types.Array(types.int64, 1, "C"), types.Array(types.uint32, 1, "C")
    unsigned: Any = np.uint32 if dtype == "f" else np.uint64
    shift = unsigned(_FRACTION[dtype] - _CELL_BITS)
    below = unsigned((1 << int(shift)) - 1)
    lanes, one = unsigned(_LANES), np.uint32(1)

    @jit.vector_loop
    def count(values: Any, table: Any) -> None:
        bits = values.view(unsigned)
        rounds = bits.size // _LANES
        for i in range(rounds):
            for lane in range(_LANES):
                place = (bits[np.uint64(_LANES * i + lane)] + below) >> shift
                table[place * lanes + unsigned(lane)] += one
        for i in range(rounds * _LANES, bits.size):
            table[((bits[i] + below) >> shift) * lanes] += one

    @jit.vector_loop  # with the same bits in both callers
    def tallied(values: Any, table: Any, out: Any) -> None:
        total, squares, number, mean = 0.0, 0.0, 0.0, 0.0
        least, largest = -values[0], values[0]
        for start in range(0, values.size, CHUNK):
            # Of a slice LLVM knows that no index is negative; of indices from `start` on it makes a gather.
            chunk = values[start : start + CHUNK]
            part, around = 0.0, 0.0
            for i in range(chunk.size):
                part += np.float64(chunk[i])
            for i in range(chunk.size):
                least = jit.maximum(least, -chunk[i])
                largest = jit.maximum(largest, chunk[i])
            size = np.float64(chunk.size)
            centre = part / size
            for i in range(chunk.size):
                apart = np.float64(chunk[i]) - centre
                around += apart * apart
            # The scatter of the mean between the parts: Chan, Golub, LeVeque.
            between = centre - mean
            squares += around
            squares += between * between * (number * size / (number + size))
            number += size
            total += part
            mean = total / number
            if table.size:
                count(chunk, table)
        out[0], out[1], out[2], out[3] = total, squares, -least, largest

    def tally(values: Any, table: Any, out: Any) -> None:
        tallied(values, table, out)

    def sweep(
        address: Any,
        y: Any,
        p: Any,
        params: Any,
        columns: Any,
        rows_per_unit: Any,
        scale: Any,
        rows: Any,
        values: Any,
        table: Any,
        out: Any,
        done: Any,
    ) -> None:
        for start in range(0, p.shape[0], rows):
            stop = min(start + rows, p.shape[0])
            found = values[: stop - start]
            numbers = (columns, rows_per_unit, scale, 1.0)
            nothing = (None, None, None, None, None)
            _, bad = call(address, (y[start:stop], p[start:stop], *nothing, found, params, *numbers))
            if bad >= 0:
                return
            tallied(found, table, out[done[0]])
            if not np.isfinite(out[done[0], 0]):
                return
            done[0] += 1

    def take(table: Any, first: Any, last: Any, lift: Any, keys: Any, numbers: Any, occupied: Any) -> None:
        end, zeros = 0, 0
        for row in range(first, last + 1):
            place = np.uint64(_LANES * row)
            number: Any = np.int64(0)
            for lane in range(_LANES):
                number += np.int64(table[place + np.uint64(lane)])
            if number:
                for lane in range(_LANES):
                    table[place + np.uint64(lane)] = 0
                if row <= CELLS:  # what is subnormal counts as 0
                    zeros += number
                    keys[0], numbers[0] = 0, zeros
                    end = 1
                else:
                    keys[end], numbers[end] = row + lift, number
                    end += 1
        occupied[0] = end

    def cells(values: Any, out: Any) -> None:
        bits = values.view(np.int64)
        for i in range(values.size):
            found = ((bits[i] & np.int64(0x7FFFFFFFFFFFFFFF)) + np.int64(below)) >> np.int64(shift)
            if found <= CELLS:
                found = np.int64(0)
            out[i] = -found if bits[i] < 0 else found

    if name == "sweep":
        call = jit.pointer_call(kernel)
        y, p = kernel.args[:2]
        grid, size = types.Array(types.float64, 2, "C"), types.intp
        numbers = (size, size, types.float64, size)
        swept = (types.uintp, y, p, kernel.args[8], *numbers, values, counts, grid, integers)
        dispatcher = jit.njit(**jit.DRIVER_FLAGS)(sweep)
        dispatcher.compile(swept)
        return dispatcher.overloads[swept]
    function, arguments = {
        "tally": (tally, (values, counts, floats)),
        "take": (take, (counts, *[types.int64] * 3, integers, integers, integers)),
        "cells": (cells, (values, integers)),
    }[name]
    dispatcher = jit.njit(**jit.LOOP_FLAGS, nogil=True)(function)
    dispatcher.compile(arguments)
    return dispatcher.overloads[arguments]
