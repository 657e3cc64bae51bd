"""What was logged: a row a call, and tables of rows that have the same names."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fastloss.losses.arrays import Array

HEAD = ("step", "epoch", "time")
"""What each row has before its values."""


class Row(NamedTuple):
    """What one call of `History.log` or `History.end_epoch` logged: what a `Sink` is given.

    Attributes
    ----------
    per : str
        ``"step"`` or ``"epoch"``.
    step : int
        The step's number from 0; at the end of an epoch, how many steps were done.
    epoch : int
        The epoch's number from 0.
    time : float
        Seconds since 1970.
    names : tuple of str
        What was logged.
    values : tuple of float
        One for each name.
    """

    per: str
    step: int
    epoch: int
    time: float
    names: tuple[str, ...]
    values: tuple[float, ...]


class Series(NamedTuple):
    """The values that were logged under one name, and when.

    Attributes
    ----------
    step, epoch : numpy.ndarray
        Numbers as in `Row`, int64.
    time : numpy.ndarray
        Seconds since 1970, float64.
    value : numpy.ndarray
        float64.
    """

    step: Array
    epoch: Array
    time: Array
    value: Array


class Table:
    """Rows of one kind that have the same names, one behind the other in one array of doubles.

    Parameters
    ----------
    per : str
        ``"step"`` or ``"epoch"``.
    names : tuple of str
        Of the values.
    """

    def __init__(self, per: str, names: tuple[str, ...]) -> None:
        self.per, self.names = per, names
        self.width = len(HEAD) + len(names)
        self.data = array("d")

    def __len__(self) -> int:
        return len(self.data) // self.width

    def rows(self, first: int = 0) -> Iterator[Row]:
        """The rows from one on."""
        for i in range(first * self.width, len(self.data), self.width):
            step, epoch, time, *values = self.data[i : i + self.width]
            yield Row(self.per, int(step), int(epoch), time, self.names, tuple(values))

    def column(self, name: str) -> Array:
        """A copy of the numbers under a name, or under one of `HEAD`: while a view exists, nothing can be appended."""
        index = (*HEAD, *self.names).index(name)
        dtype = np.int64 if name in HEAD[:2] else np.float64
        return np.frombuffer(self.data).reshape(-1, self.width)[:, index].astype(dtype)

    def keep(self, rows: Array) -> None:
        """Drop all rows that are not chosen by an array of booleans."""
        kept = np.frombuffer(self.data).reshape(-1, self.width)[rows]
        self.data = array("d", kept.tobytes())


def columns(tables: Iterable[Table], names: Iterable[str]) -> dict[str, Array]:
    """Columns over the rows of several tables in the order of their steps, with NaN where a row has no such name.

    Parameters
    ----------
    tables : iterable of Table
        Of one kind.
    names : iterable of str
        Which, those of `HEAD` among them.

    Returns
    -------
    dict
        From names to arrays of one length.
    """
    tables = [table for table in tables if len(table)]

    def parts(name: str) -> list[Array]:
        if name not in HEAD:
            return [table.column(name) if name in table.names else np.full(len(table), np.nan) for table in tables]
        return [table.column(name) for table in tables] or [np.empty(0, np.float64 if name == "time" else np.int64)]

    if len(tables) < 2:
        return {name: parts(name)[0] for name in names}
    order = np.lexsort([np.concatenate(parts(name)) for name in ("epoch", "step")])
    return {name: np.concatenate(parts(name))[order] for name in names}
