"""What an evaluation knows of a part of the data, and how two neighbouring parts become one.

A part is summarised in two steps. A block of fixed size, cut by the shape of a sample alone, gives sums, moments and
cells of the sketch as a pure function of its data. Blocks are then added in the order of the data, in double-double
arithmetic. So threads, batch sizes and workers, which only decide who computes a block and when, change no bit.

Infinite and missing losses are counted by kind and left out of the sums; the value is put together from both.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fastloss.engine import sketch
from fastloss.losses.arrays import Array
from fastloss.losses.plan import Sweep

ACCURACY = math.tanh(0.5 / sketch.CELLS)
"""The relative error of quantiles at most, 0.4 %: with it ``ddsketch.mapping.LinearlyInterpolatedMapping`` has as many
cells for each power of two as `fastloss.engine.sketch`, to the rounding of their number."""

MAX_GROUPS = 100_000
"""More groups than this are taken for a column of identifiers: a table of them would not be constant memory."""

SUM, WEIGHT, SCALE, MOMENT, SQUARES, LOST, LEAST, LARGEST = range(8)
"""Columns of `Partial.floats`: Σ w·v; the divisor Σ w; for the standard error, Σ u, Σ u·x and Σ u·(x - mean)²; the
weights of what is not finite; the extreme losses. The first four are the upper halves of double-double numbers."""

EXACT: Final = 4

COUNT, MASKED, NAN, POSITIVE, NEGATIVE = range(5)
"""Columns of `Partial.counts`: losses that count; masked ones; contributions that are NaN, ∞ or -∞."""

_SPAN = 20
"""Bits of a cell in a key of `Partial.cells`, below the group's."""

_MIDDLE = 1 << (_SPAN - 1)
"""Added to a cell, which may be negative."""

ALL = "all samples"


@dataclass
class Partial:
    """A part of the data, summarised. Row 0 of each table is the whole part, each further row a group.

    Attributes
    ----------
    samples : int
        How many were seen.
    inner : tuple of int
        The shape of the losses of each; () where there is one.
    labels : list
        The group of each row.
    floats, low, counts : numpy.ndarray
        See the names of their columns; `low` has the lower halves of the first four of `floats`.
    cells, numbers : list of numpy.ndarray
        Keys of occupied cells and how many losses each holds; as several arrays, which `compact` makes one.
    worst : numpy.ndarray
        The largest losses, descending, NaN first.
    where, whose : numpy.ndarray
        Their places among all losses of the part, and their rows.
    """

    samples: int
    inner: tuple[int, ...]
    labels: list[Hashable]
    floats: Array
    low: Array
    counts: Array
    cells: list[Array] = field(default_factory=list)
    numbers: list[Array] = field(default_factory=list)
    worst: Array = field(default_factory=lambda: np.empty(0))
    where: Array = field(default_factory=lambda: np.empty(0, np.int64))
    whose: Array = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def empty(cls, labels: Iterable[Hashable] = (ALL,), inner: tuple[int, ...] = ()) -> Partial:
        """Of no samples."""
        rows = list(labels)
        floats = np.zeros((len(rows), 8))
        floats[:, LEAST], floats[:, LARGEST] = np.inf, -np.inf
        return cls(0, inner, rows, floats, np.zeros((len(rows), EXACT)), np.zeros((len(rows), 5), np.int64))

    def add(self, other: Partial, top_k: int) -> None:
        """Add the part that follows this one."""
        places = self._rows(other.labels)
        mine, low = self.floats[places], self.low[places]
        theirs = other.floats
        # The scatter of the mean between the parts: Chan, Golub, LeVeque.
        scale = mine[:, SCALE] + theirs[:, SCALE]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            apart = theirs[:, MOMENT] / theirs[:, SCALE] - mine[:, MOMENT] / mine[:, SCALE]
            between = apart * apart * (mine[:, SCALE] / scale) * theirs[:, SCALE]
        both = (mine[:, SCALE] != 0) & (theirs[:, SCALE] != 0)
        squares = mine[:, SQUARES] + theirs[:, SQUARES] + np.where(both, between, 0.0)
        high, low = _double_sum(mine[:, :EXACT], low, theirs[:, :EXACT], other.low)
        self.floats[places, :EXACT], self.low[places] = high, low
        self.floats[places, SQUARES] = squares
        self.floats[places, LOST] = mine[:, LOST] + theirs[:, LOST]
        self.floats[places, LEAST] = np.minimum(mine[:, LEAST], theirs[:, LEAST])
        self.floats[places, LARGEST] = np.maximum(mine[:, LARGEST], theirs[:, LARGEST])
        self.counts[places] += other.counts
        for keys, numbers in zip(other.cells, other.numbers, strict=True):
            self.cells.append((places[keys >> _SPAN] << _SPAN) + (keys & ((1 << _SPAN) - 1)))
            self.numbers.append(numbers)
        if len(self.cells) > 1 and sum(map(len, self.cells[1:])) > max(1 << 16, len(self.cells[0])):
            self.compact()
        if top_k and other.worst.size:
            self.worst, self.where, self.whose = largest(
                np.concatenate([self.worst, other.worst]),
                np.concatenate([self.where, other.where + self.samples * math.prod(other.inner)]),
                np.concatenate([self.whose, places[other.whose]]),
                top_k,
            )
        self.samples += other.samples
        self.inner = other.inner

    def _rows(self, labels: list[Hashable]) -> Array:
        """The rows of these groups, which are added where they are new."""
        if self.labels[: len(labels)] == labels:
            return np.arange(len(labels))
        known = {label: row for row, label in enumerate(self.labels[1:], 1)}
        places = [0]
        for label in labels[1:]:
            row = known.setdefault(label, len(self.labels))
            if row == len(self.labels):
                self.labels.append(label)
            places.append(row)
        check_groups(len(self.labels) - 1)
        new = Partial.empty(self.labels[len(self.floats) :])
        self.floats = np.concatenate([self.floats, new.floats])
        self.low = np.concatenate([self.low, new.low])
        self.counts = np.concatenate([self.counts, new.counts])
        return np.array(places)

    def compact(self) -> None:
        """Make one array each of `cells` and `numbers`."""
        if not self.cells:
            return
        keys, numbers = _tallied(np.concatenate(self.cells), np.concatenate(self.numbers))
        self.cells, self.numbers = [keys], [numbers]

    def histogram(self, row: int) -> tuple[Array, Array]:
        """The cells of a row, ascending, and how many losses each holds."""
        self.compact()
        if not self.cells:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        keys, numbers = self.cells[0], self.numbers[0]
        first, last = np.searchsorted(keys, [row << _SPAN, (row + 1) << _SPAN])
        return (keys[first:last] & ((1 << _SPAN) - 1)) - _MIDDLE, numbers[first:last]


def plain_summary(pieces: Iterable[Array], most: int, top_k: int) -> Partial | None:
    """Summarise one block of losses that all count alike; None if there is none, or one that is not finite.

    Parameters
    ----------
    pieces : iterable of numpy.ndarray
        The losses, samples along the first axis, as many at a time as stay in cache.
    most : int
        How many pieces there are at most.
    top_k : int
        How many of the largest losses to keep.
    """
    part, figures = Partial.empty(), np.empty((most, 4))
    sizes: list[int] = []
    counts: sketch.Counts | None = None
    for number, losses in enumerate(pieces):
        values = _floats(losses.ravel())
        if not values.size:
            return None
        if counts is None:
            counts = sketch.Counts(values.dtype)
            part.inner = () if losses.size == len(losses) else losses.shape[1:]
        counts.add(values, figures[number])
        if not math.isfinite(figures[number, 0]):
            return None
        if top_k:
            # Of equal losses the first is kept, so only larger ones are of interest once there are enough.
            enough = part.worst.size == top_k
            places = np.flatnonzero(values > part.worst[-1]) if enough else np.arange(values.size)
            worst, where, whose = _worst(values[places], places, None, top_k)
            part.worst, part.where, part.whose = largest(
                np.concatenate([part.worst, worst]),
                np.concatenate([part.where, where + sum(sizes)]),
                np.concatenate([part.whose, whose]),
                top_k,
            )
        sizes.append(values.size)
        part.samples += len(losses)
        del losses, values  # so that the next ones take their memory, which is in cache
    assert counts is not None
    return _combined(part, figures[: len(sizes)].tolist(), sizes, counts)


def swept_summary(sweep: Sweep, samples: int) -> Partial | None:
    """The same of the losses of a kernel; None if there is a bad label, too."""
    count = len(sweep.p)
    sizes = [min(sweep.rows, count - start) for start in range(0, count, sweep.rows)]
    counts, figures = sketch.Counts(sweep.dtype), np.empty((len(sizes), 4))
    if counts.sweep(*sweep[:5], figures) < len(sizes):
        return None
    part = Partial.empty(inner=() if count == samples else sweep.inner)
    part.samples = samples
    return _combined(part, figures.tolist(), sizes, counts)


def _combined(part: Partial, rows: list[list[float]], sizes: list[int], counts: sketch.Counts) -> Partial:
    """Fill in what was found in each piece."""
    count, total = sum(sizes), sum(row[0] for row in rows)
    scatter = 0.0
    for size, (of_piece, squares, *_) in zip(sizes, rows, strict=True):
        apart = of_piece / size - total / count
        scatter += squares + size * apart * apart
    least, greatest = min(row[2] for row in rows), max(row[3] for row in rows)
    part.floats[0] = total, count, count, total, scatter, 0.0, least, greatest
    part.counts[0, COUNT] = count
    cells, numbers = counts.take(least, greatest)
    part.cells, part.numbers = [cells + _MIDDLE], [numbers]
    return part


def summary(
    losses: Array,
    weights: Array | None,
    divisor: Array | None,
    mask: Array | None,
    rows: Array | None,
    labels: list[Hashable],
    *,
    samples: int,
    inner: tuple[int, ...],
    by_weight: bool,
    top_k: int,
) -> Partial:
    """Summarise one block.

    Parameters
    ----------
    losses : numpy.ndarray
        Of the block, flat.
    weights, mask, rows : numpy.ndarray or None
        A weight, whether it counts and the row of its group, for each of them; flat.
    divisor : numpy.ndarray or None
        What each adds to the sum of weights, if that is not its weight.
    labels : list
        The group of each row, the whole being the first.
    samples : int
        How many samples the block has.
    inner : tuple of int
        The shape of the losses of each.
    by_weight : bool
        The value is Σ w·v / Σ w, not Σ w·v / n: its standard error is another one.
    top_k : int
        How many of the largest losses to keep.
    """
    part = Partial.empty(labels, inner)
    part.samples = samples
    places: Array | None = None
    values = _floats(losses) if weights is None and rows is None else losses.astype(np.float64)
    if mask is not None:
        if rows is not None:
            _tally(part, MASKED, rows[~mask])
        places = np.flatnonzero(mask)
        part.counts[0, MASKED] = losses.size - len(places)
        values = values[places]
        weights = None if weights is None else weights[places]
        divisor = None if divisor is None else divisor[places]
        rows = None if rows is None else rows[places]
    part.counts[0, COUNT] = values.size
    if rows is not None:
        _tally(part, COUNT, rows)
    spread = weights if divisor is None else divisor
    with np.errstate(invalid="ignore", over="ignore"):
        shares = values if weights is None else values * weights
    if top_k:
        part.worst, part.where, part.whose = _worst(values, places, rows, top_k)
    found = _figures(shares)
    if not math.isfinite(found[0]):
        for column, found in (
            (NAN, np.isnan(shares)),
            (POSITIVE, shares == np.inf),
            (NEGATIVE, shares == -np.inf),
        ):
            part.counts[0, column] = np.count_nonzero(found)
            if rows is not None:
                _tally(part, column, rows[found])
        finite = np.isfinite(shares)
        lost = None if rows is None else rows[~finite]
        _add(part, LOST, 1.0 if spread is None else spread[~finite], lost, int(np.count_nonzero(~finite)))
        spread = None if spread is None else spread[finite]
        values, shares = values[finite], shares[finite]
        weights = None if weights is None else weights[finite]
        rows = None if rows is None else rows[finite]
        found = _figures(shares)
    if values.size:
        with np.errstate(over="ignore", invalid="ignore"):
            _add(part, WEIGHT, 1.0 if spread is None else spread, rows, values.size)
            _add(part, SUM, shares, rows, values.size, found[0])
            own = _count(part, values, rows)
            x, moments = (values, own) if by_weight else (shares, found)
            _moments(part, x, moments, weights if by_weight else None, rows)
    return part


def _moments(part: Partial, x: Array, known: tuple[float, ...], weights: Array | None, rows: Array | None) -> None:
    """Scale, mean and scatter of `x`; `known` are its sum and the squares around its mean, `weights` are squared."""
    table, size = part.floats, x.size
    weighing = None if weights is None else weights * weights
    _add(part, SCALE, 1.0 if weighing is None else weighing, rows, size)
    _add(part, MOMENT, x if weighing is None else weighing * x, rows, size, known[0] if weighing is None else None)
    with np.errstate(divide="ignore"):
        means = np.where(table[:, SCALE] != 0, table[:, MOMENT] / table[:, SCALE], 0.0)
    table[0, SQUARES] = known[1] if weighing is None else np.sum(weighing * (x - means[0]) ** 2)
    if rows is not None:
        squares = (x - means[rows]) ** 2
        squares = squares if weighing is None else weighing * squares
        table[1:, SQUARES] = np.bincount(rows, squares, len(table))[1:]


def _count(part: Partial, values: Array, rows: Array | None) -> tuple[float, ...]:
    """Cells and extremes of finite losses; returns what `_figures` does."""
    counts, figures = sketch.Counts(values.dtype), np.empty(4)
    counts.add(values, figures)
    part.floats[0, LEAST:] = figures[2:]
    cells, numbers = counts.take(*figures[2:].tolist())
    part.cells, part.numbers = [cells + _MIDDLE], [numbers]
    if rows is not None:
        np.minimum.at(part.floats[:, LEAST], rows, values)
        np.maximum.at(part.floats[:, LARGEST], rows, values)
        keys, numbers = _tallied((rows << _SPAN) + sketch.cells(values) + _MIDDLE)
        part.cells.append(keys)
        part.numbers.append(numbers)
    return tuple(figures.tolist())


def _tallied(keys: Array, numbers: Array | None = None) -> tuple[Array, Array]:
    """The different keys of cells, ascending, and the sum of their numbers, or how many there are."""
    if not keys.size:
        return keys, keys
    rows, cells = keys >> _SPAN, keys & ((1 << _SPAN) - 1)
    first, top = int(cells.min()), int(rows.max())
    width = int(cells.max()) - first + 1
    if width * (top + 1) < 8 * keys.size:  # sorting takes ten times as long
        cells += rows * width - first
        # Float sums of whole numbers: exact up to 2**53 losses.
        table = np.bincount(cells, numbers)
        cells = np.flatnonzero(table)
        rows = cells // width
        return (rows << _SPAN) + cells - rows * width + first, table[cells].astype(np.int64)
    keys, places = np.unique(keys, return_inverse=True)
    return keys, np.bincount(places, numbers).astype(np.int64)


def _figures(values: Array) -> tuple[float, ...]:
    """Sum, squares around the mean, minimum and maximum."""
    found = np.zeros(4)
    if values.size:
        sketch.moments(values, found)
    return tuple(found.tolist())


def _floats(losses: Array) -> Array:
    """Losses in float32 or float64."""
    return losses if losses.dtype.char in "fd" else losses.astype(np.float64)


def _add(
    part: Partial, column: int, values: Array | float, rows: Array | None, size: int, total: float | None = None
) -> None:
    """Sum over all, if that is not known, and over each group; a number stands for `size` of them."""
    if total is None:
        total = values * size if isinstance(values, float) else float(np.sum(values, dtype=np.float64))
    part.floats[0, column] = total
    if rows is not None:
        part.floats[1:, column] = np.bincount(rows, np.broadcast_to(values, size), len(part.floats))[1:]


def _tally(part: Partial, column: int, rows: Array) -> None:
    """Count these losses in their groups."""
    part.counts[1:, column] = np.bincount(rows, minlength=len(part.labels))[1:]


def _worst(values: Array, places: Array | None, rows: Array | None, top_k: int) -> tuple[Array, Array, Array]:
    """The largest losses, their places in the block and their rows."""
    order = np.where(np.isnan(values), np.inf, values)
    if values.size > top_k:
        border = np.partition(order, values.size - top_k)[values.size - top_k]
        chosen = np.flatnonzero(order >= border)
        if len(chosen) > 4 * top_k:  # many are equal: all above the border, and the first of those on it
            above, equal = chosen[order[chosen] > border], chosen[order[chosen] == border]
            missing = equal[np.isnan(values[equal])]  # those come before infinite ones
            chosen = np.unique(np.concatenate([above, equal[:top_k], missing[:top_k]]))
    else:
        chosen = np.arange(values.size)
    where = chosen if places is None else places[chosen]
    whose = np.zeros(len(chosen), np.int64) if rows is None else rows[chosen]
    return largest(values[chosen], where, whose, top_k)


def largest(losses: Array, where: Array, whose: Array, top_k: int) -> tuple[Array, Array, Array]:
    """The `top_k` largest, descending: NaN first, and of equal ones the first."""
    order = np.lexsort((where, -np.where(np.isnan(losses), np.inf, losses), ~np.isnan(losses)))[:top_k]
    return losses[order], where[order], whose[order]


def check_groups(count: int) -> None:
    """Refuse more groups than there may be."""
    if count > MAX_GROUPS:
        raise ValueError(
            f"`group_by` must have at most {MAX_GROUPS} different groups, got more; is it a column of identifiers?"
        )


def _double_sum(a: Array, a_low: Array, b: Array, b_low: Array) -> tuple[Array, Array]:
    """Sum of two double-double numbers: Knuth's two-sum, then the lower halves."""
    with np.errstate(invalid="ignore", over="ignore"):
        high = a + b
        part = high - a
        low = (a - (high - part)) + (b - part) + a_low + b_low
        total = high + low
        rest = low - (total - high)
    # A sum that overflows has no lower half.
    return total, np.where(np.isfinite(total), rest, 0.0)


@dataclass
class State:
    """One `Partial` for each reading of the labels.

    Hinge losses read labels that are all 0 or 1 as -1 and 1, and whether they are all so is known at the end: until
    one is seen that is not, there are two readings.

    Attributes
    ----------
    readings : list
        Labels as they are; and mapped, None where a label forbids it.
    """

    readings: list[Partial | None]

    def add(self, other: State, top_k: int) -> None:
        """Add the part that follows this one."""
        for i, (mine, theirs) in enumerate(zip(self.readings, other.readings, strict=True)):
            if mine is None or theirs is None:
                self.readings[i] = None
            else:
                mine.add(theirs, top_k)

    @property
    def result(self) -> Partial:
        """The reading that holds."""
        return next(reading for reading in reversed(self.readings) if reading is not None)

    @property
    def samples(self) -> int:
        """How many were seen."""
        return self.result.samples
