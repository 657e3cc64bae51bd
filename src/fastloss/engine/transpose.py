"""Turning small matrices: rows side by side become columns, and back.

Element by element that is a load and a store each, 0.25-0.35 ns in float32; by shuffles between vector registers it is
0.06-0.15 ns. LLVM makes those of a loop only where the stride is a constant, so blocks are turned by hand: squares of
a vector's length, and strips of the few widths that are narrower and frequent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fastloss.engine import jit

_NARROW = (2, 3, 4)
_VECTOR_BYTES = 32
_INDEX = ir.IntType(32)


def _shuffle(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    """Of the lanes of `a`, followed by those of `b`, the ones that are named."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INDEX, len(lanes)), list(lanes)))


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors: each perfect shuffle of its rows turns one bit of the place into the lane."""
    n = len(rows)
    half = n // 2
    low = [lane for j in range(half) for lane in (j, n + j)]
    high = [lane for j in range(half, n) for lane in (j, n + j)]
    for _ in range(n.bit_length() - 1):
        rows = [_shuffle(builder, rows[i // 2], rows[i // 2 + half], low if i % 2 == 0 else high) for i in range(n)]
    return rows


def _picked(builder: Any, sources: list[Any], picks: Sequence[tuple[int, int]]) -> Any:
    """A vector whose lanes are the given (source, lane)."""
    n = len(picks)
    found = _shuffle(
        builder, sources[0], sources[1], [lane + n * source if source < 2 else 0 for source, lane in picks]
    )
    for other in range(2, len(sources)):
        lanes = [n + lane if source == other else j for j, (source, lane) in enumerate(picks)]
        found = _shuffle(builder, found, sources[other], lanes)
    return found


def _vectors(context: Any, builder: Any, array_type: Any, array: Any, start: Any, step: Any, count: int) -> list[Any]:
    """Pointers to vectors in an array, `step` elements apart."""
    element = ir.FloatType() if array_type.dtype == types.float32 else ir.DoubleType()
    kind = ir.VectorType(element, _VECTOR_BYTES // (array_type.dtype.bitwidth // 8)).as_pointer()
    data, place, found = context.make_array(array_type)(context, builder, array).data, start, []
    for _ in range(count):
        found.append(builder.bitcast(builder.gep(data, [place]), kind))
        place = builder.add(place, step)
    return found


def _load(builder: Any, pointers: list[Any], align: int) -> list[Any]:
    return [builder.load(pointer, align=align) for pointer in pointers]


def _store(builder: Any, vectors: list[Any], pointers: list[Any], align: int) -> None:
    for vector, pointer in zip(vectors, pointers, strict=True):
        builder.store(vector, pointer, align=align)


@jit.intrinsic
def _square(typing_context: Any, source: Any, i: Any, step: Any, target: Any, k: Any, stride: Any) -> Any:
    """Turn the square whose rows begin at ``source[i + r·step]`` into one at ``target[k + c·stride]``."""
    align = source.dtype.bitwidth // 8
    size = _VECTOR_BYTES // align

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = _vectors(context, builder, signature.args[0], args[0], args[1], args[2], size)
        targets = _vectors(context, builder, signature.args[3], args[3], args[4], args[5], size)
        _store(builder, _turned(builder, _load(builder, pointers, align)), targets, align)
        return context.get_dummy_value()

    return types.void(source, types.uintp, types.uintp, target, types.uintp, types.uintp), generate


@cache
def _strip(width: int, spread: bool) -> Any:
    """Turn as many rows of `width` elements as a vector is long into columns a stride apart, or (`spread`) back."""

    @jit.intrinsic
    def strip(typing_context: Any, source: Any, i: Any, target: Any, k: Any, stride: Any) -> Any:
        align = source.dtype.bitwidth // 8
        size = _VECTOR_BYTES // align

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = ir.Constant(args[1].type, size)
            steps = (args[4], lanes) if spread else (lanes, args[4])
            pointers = _vectors(context, builder, signature.args[0], args[0], args[1], steps[0], width)
            targets = _vectors(context, builder, signature.args[2], args[2], args[3], steps[1], width)
            vectors = _load(builder, pointers, align)
            found = []
            for v in range(width):
                places = [v * size + lane if spread else lane * width + v for lane in range(size)]
                picks = [divmod(place, width)[::-1] if spread else divmod(place, size) for place in places]
                found.append(_picked(builder, vectors, picks))
            _store(builder, found, targets, align)
            return context.get_dummy_value()

        return types.void(source, types.uintp, target, types.uintp, types.uintp), generate

    return strip


@cache
def turner(dtype: np.dtype[Any], spread: bool) -> Callable[..., None]:
    """``turn(source, start, rows, columns, target, place)`` between rows from `start` and columns from `place`.

    Rows follow each other without gaps, and so do columns. With `spread`, the columns are the source.
    """
    size = _VECTOR_BYTES // dtype.itemsize
    two, three, four = (_strip(width, spread) for width in _NARROW)

    @jit.vector_loop
    def turn(source, start, rows, columns, target, place):
        whole, done = rows // size * size, columns // size * size
        height, width = np.uintp(rows), np.uintp(columns)
        if 2 <= columns <= 4:
            done = columns
            for r in range(0, whole, size):
                i, k = np.uintp(start + r * columns), np.uintp(place + r)
                if spread:
                    i, k = k, i
                if columns == 2:
                    two(source, i, target, k, height)
                elif columns == 3:
                    three(source, i, target, k, height)
                else:
                    four(source, i, target, k, height)
        elif columns >= size:
            # Of the last columns, a block that overlaps the one before is faster than more than half as many cells.
            overlapped = columns - done > size // 2
            for r in range(0, whole, size):
                for c in range(0, columns if overlapped else done, size):
                    first = min(c, columns - size)
                    i, k = np.uintp(start + r * columns + first), np.uintp(place + first * rows + r)
                    if spread:
                        _square(source, k, height, target, i, width)
                    else:
                        _square(source, i, width, target, k, height)
            if overlapped:
                done = columns
        for c in range(columns):
            for r in range(whole if c < done else 0, rows):
                i, k = np.uintp(start + r * columns + c), np.uintp(place + c * rows + r)
                if spread:
                    target[i] = source[k]
                else:
                    target[k] = source[i]

    return turn
