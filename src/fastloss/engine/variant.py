"""Which compiled form of a kernel a call needs, and how its data are cut. Imports no Numba."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastloss.kernels.definition import Kernel

CHUNK = 1024
"""Elements summed in the compute dtype before the sum goes on in float64."""

FLAT_COLUMNS = 8 * CHUNK
"""The length of the pieces a flat run is cut into."""

UNIT_ELEMENTS = 8 * CHUNK
"""About how many elements a unit has: 1-10 µs of work, against 0.1 µs for its share of the parallel loop."""

CELLS = 1024
"""Elements of short rows of a pointwise loss that are treated at once; their tiles stay in the first-level cache."""

TILE = 4608
"""Numbers that short rows of a rowwise loss need at once, ten a row and three an element: 18 kB in float32."""

LANES = 16
"""Rows that are treated side by side come in multiples of this, where there are so many: a vector of AVX-512."""

SHORT_ROW = 32
"""Rows up to this length are treated many at once, where there are `MANY_ROWS`."""

MANY_ROWS = 2 * LANES
"""Of so many short rows, those of a rowwise loss are treated side by side."""

LONG_ROW = 4 * UNIT_ELEMENTS
"""Rows from this length on are divided, where there are fewer than `FEW_ROWS`."""

FEW_ROWS = 16

Loops = Literal["rows", "elements", "cells", "columns", "long"]
"""How the loops go over the data: see `fastloss.engine.drivers`."""


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel.

    Attributes
    ----------
    kernel : Kernel
        The definition.
    dtype : str
        Compute dtype, ``"f4"`` or ``"f8"``.
    y, p, g : str
        Storage codes of targets, predictions and gradient.
    outputs : int
        0 for the value alone, 1 with the gradient, 2 with the diagonal Hessian too.
    weighted, masked, values, in_place, index, smooth, vector, turned : bool
        Per-row weights; a per-row mask; per-row values are written; the gradient overwrites the predictions; the
        targets are class indices; they are smoothed; the first parameter differs by column; predictions, gradient and
        Hessian lie in memory column by column (of a rowwise kernel without the pivot "simplex", and not in place).
    form : {"rows", "elements", "cells", "columns", "long"}
        How the loops go over the data.
    parallel : bool
        Compiled for several threads.
    """

    kernel: Kernel
    dtype: str
    y: str
    p: str
    g: str
    outputs: int
    weighted: bool = False
    masked: bool = False
    values: bool = False
    in_place: bool = False
    index: bool = False
    smooth: bool = False
    vector: bool = False
    turned: bool = False
    form: Loops = "rows"
    parallel: bool = False


@dataclass(frozen=True)
class Form:
    """A loss as nopython code calls it; the types of the arguments settle the rest.

    Attributes
    ----------
    kernel : Kernel
        The definition.
    dtype : str
        Name of the compute dtype.
    params : tuple of float
        The kernel's parameters and one number more; those of label smoothing are for a single class.
    samples : {"rows", "whole", "elements"}
        What a sample is: a row, everything, or a single element.
    index, smooth, mean : bool
        The targets are class indices; they are smoothed; a sample's loss is the mean of its elements'.
    divisor : {"samples", "weights", "one"}
        What the sum of the samples' losses is divided by.
    ignored : int or None
        The label of samples that do not count.
    """

    kernel: Kernel
    dtype: str
    params: tuple[float, ...]
    samples: str
    index: bool
    smooth: bool
    mean: bool
    divisor: str
    ignored: int | None
