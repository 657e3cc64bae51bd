"""Running a kernel on arrays that are laid out for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from fastloss.engine import threads
from fastloss.engine.compile import compiled
from fastloss.engine.variant import (
    FEW_ROWS,
    FLAT_COLUMNS,
    LONG_ROW,
    MANY_ROWS,
    SHORT_ROW,
    UNIT_ELEMENTS,
    Loops,
    Variant,
)

NANOSECONDS = {"exp": 0.3, "log": 0.3, "div": 0.1, "pow": 3.0, "memory": 0.25}
"""About what an element costs on one thread: enough to tell when a second one pays."""

PASSES = {"rows": 0.2, "columns": 1.5, "long": 0.2}
"""What an element of a rowwise loss costs besides, by the form of the loops, as they go over it several times."""

ROW_NANOSECONDS = 25.0
"""What a row of a rowwise loss costs besides its elements, where they are treated row by row."""


def _work(variant: Variant, rows: int, columns: int) -> float:
    """About how many nanoseconds one thread takes.

    With six rowwise losses at 10, 100 and 1000 columns, 2¹³ to 2¹⁷ elements in float32 and two quiet cores, the choice
    by this figure took up to 15 % more than the better way, and in 86 of 90 cases at most 6 %.
    """
    kernel = variant.kernel
    # Of class indices a row needs one logarithm, of exponentials every element one.
    calls = [call for call in kernel.calls if call == "exp"] if variant.index else kernel.calls
    element = NANOSECONDS["memory"] + sum(NANOSECONDS[call] for call in calls)
    if kernel.shape == "pointwise":
        return rows * columns * element
    if variant.form == "columns" or not variant.index:
        element += PASSES[variant.form]
    return rows * columns * element + (rows * ROW_NANOSECONDS if variant.form == "rows" else 0.0)


def _form(variant: Variant, rows: int, columns: int) -> Loops:
    """How the loops of `variant` are to go over data of this shape."""
    if variant.kernel.shape == "rowwise":
        if variant.kernel.divisible and not variant.index and rows < FEW_ROWS and columns >= LONG_ROW:
            return "long"
        if variant.turned:
            return "columns"
        # Of fewer rows the simpler form is as fast, and compiles in half the time. Of (32, 10), softmax cross-entropy
        # of labels takes 1.2 µs row by row, beside the call, and 0.8 so; at (16, 10) both take the same.
        return "columns" if columns <= SHORT_ROW and rows >= MANY_ROWS else "rows"
    if not (variant.weighted or variant.masked or variant.values) or variant.vector or columns > SHORT_ROW:
        return "rows"
    return "elements" if columns == 1 else "cells"


class Launch:
    """A kernel bound to the shape of its data.

    Parameters
    ----------
    variant : Variant
        Without ``form`` and ``parallel``, which are chosen here.
    rows, columns : int
        The shape of the data.
    params : iterable of float
        The kernel's parameters.
    """

    __slots__ = ("_pace", "_parallel", "_serial", "columns", "params", "rows_per_unit", "units", "variant", "work")

    def __init__(self, variant: Variant, rows: int, columns: int, params: Iterable[float]) -> None:
        pointwise = variant.kernel.shape == "pointwise"
        elements = rows * columns
        form = _form(variant, rows, columns)
        self.variant = replace(variant, form=form)
        self.work = _work(self.variant, rows, columns)
        if pointwise and not (variant.weighted or variant.masked or variant.values or variant.vector):
            columns = FLAT_COLUMNS
        self.columns = columns
        self.rows_per_unit = max(1, UNIT_ELEMENTS // max(1, columns))
        self.units = (
            columns // UNIT_ELEMENTS if form == "long" else -(-elements // max(1, columns * self.rows_per_unit))
        )
        # Never empty: a kernel without parameters has the same argument types as one with.
        self.params = np.array([*params, 0.0], variant.dtype)
        self._serial: Callable[..., tuple[float, int]] | None = None
        self._parallel: Callable[..., tuple[float, int]] | None = None
        self._pace = threads.Pace(self.work)

    def serial(self) -> Callable[..., tuple[float, int]]:
        """The kernel for one thread."""
        if self._serial is None:
            self._serial = compiled(self.variant).entry
        return self._serial

    def parallel(self) -> Callable[..., tuple[float, int]]:
        """The kernel for several threads."""
        if self._parallel is None:
            self._parallel = compiled(replace(self.variant, parallel=True)).entry
        return self._parallel

    def threads(self, n_threads: int | None) -> int:
        """How many threads a call would use."""
        return threads.choose(self.work, self.units, n_threads)

    def __call__(
        self,
        y: Any,
        p: Any,
        weights: Any,
        grad_weights: Any,
        mask: Any,
        g: Any,
        h: Any,
        values: Any,
        value_scale: float,
        grad_scale: float,
        n_threads: int | None,
    ) -> tuple[float, int]:
        """Run it: ``(scaled total, row of the first bad label or -1)``."""
        count = threads.choose(self.work, self.units, n_threads)
        if count == 1:
            return (self._serial or self.serial())(
                y,
                p,
                weights,
                grad_weights,
                mask,
                g,
                h,
                values,
                self.params,
                self.columns,
                self.rows_per_unit,
                value_scale,
                grad_scale,
            )
        run = self._pace.run if n_threads is None and threads.get_num_threads() is None else threads.run
        return run(
            self.parallel,
            self.serial,
            count,
            y,
            p,
            weights,
            grad_weights,
            mask,
            g,
            h,
            values,
            self.params,
            self.columns,
            self.rows_per_unit,
            value_scale,
            grad_scale,
        )
