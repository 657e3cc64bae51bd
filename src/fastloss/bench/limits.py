"""What the machine allows: loops that do nothing but move a loss's arrays, or call the functions that it must call.

The limit of a loss is the larger of two times on one thread:

*memory*
    a loop that reads and writes the loss's own arrays, which matters: how they lie to each other makes 15 % of it;
*arithmetic*
    loops over the vector functions that value and gradient need for each element (`Kernel.calls`), in cache, added up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastloss.bench.cases import Case
from fastloss.bench.timing import Timing
from fastloss.engine.jit import LOOP_FLAGS, njit
from fastloss.engine.toolbox import toolbox
from fastloss.losses.arrays import Array
from fastloss.registry import Row

BLOCK = 4096
"""Elements that the loops of arithmetic go over again and again: in float64 and with the result they fill 64 kB."""

SMALLEST = 16 * BLOCK
"""The smallest array whose limit says something: below, a call costs more than the loop in it."""


@cache
def loops(dtype: str) -> dict[str, Callable[..., Any]]:
    """Compiled loops over flat arrays, in one dtype.

    Parameters
    ----------
    dtype : str
        ``"float32"`` or ``"float64"``.

    Returns
    -------
    dict of callable
        ``copy(a, out)``, ``add(a, b, out)``, and one an arithmetic function, ``exp(a, out)`` and so on, that does as
        many elements as ``a`` has but goes over the first `BLOCK` only.
    """
    xp = toolbox(np.dtype(dtype))
    one = xp.const(1.0)

    @njit(**LOOP_FLAGS)
    def copy(a, out):
        for i in range(a.size):
            out[i] = a[i]

    @njit(**LOOP_FLAGS)
    def add(a, b, out):
        for i in range(a.size):
            out[i] = a[i] + b[i]

    def in_cache(function):
        @njit(**LOOP_FLAGS)
        def block(a, out):
            for i in range(a.size):
                out[i] = function(a[i])

        @njit(**LOOP_FLAGS)
        def loop(a, out):
            part, result = a[:BLOCK], out[:BLOCK]
            for _ in range(a.size // BLOCK):
                block(part, result)

        return loop

    functions = {"exp": xp.exp, "log": xp.log, "div": xp.jit(lambda x: one / x), "pow": xp.jit(lambda x: xp.pow(x, x))}
    return {"copy": copy, "add": add, **{name: in_cache(function) for name, function in functions.items()}}


@cache
def _in_cache(name: str, dtype: str, size: int) -> Callable[[], Any]:
    """A loop of arithmetic over so many elements, given numbers that every function takes."""
    numbers = np.random.default_rng(1).uniform(0.1, 2.0, BLOCK).astype(dtype)
    # As long as the loss's arrays, for the count, without their memory: only the first block is ever touched.
    a, out = np.empty(size, dtype), np.empty(size, dtype)
    a[:BLOCK] = numbers
    loop = loops(dtype)[name]
    return lambda: loop(a, out)


class Limit(NamedTuple):
    """The loops that bound a loss from below, and how to read their times.

    Attributes
    ----------
    memory : str
        ``"copy"`` (predictions to gradient) or ``"add"`` (targets and predictions to gradient).
    arithmetic : tuple of str
        The functions needed for each element, as often as they are.
    contestants : dict of callable
        What is to be timed beside the loss, named ``"limit: ..."``.
    size : int
        Elements of an array.
    """

    memory: str
    arithmetic: tuple[str, ...]
    contestants: dict[str, Callable[[], Any]]
    size: int

    def read(self, timings: Mapping[str, Timing]) -> dict[str, Any]:
        """Seconds of memory, of arithmetic, and of the larger one, which is named."""
        memory = timings[f"limit: {self.memory}"].median
        whole_blocks = self.size // BLOCK * BLOCK
        arithmetic = {
            name: timings[f"limit: {name}"].median * (1 if name == "sort" else self.size / whole_blocks)
            for name in self.arithmetic
        }
        total = sum(arithmetic[name] for name in self.arithmetic)
        return {
            "memory": memory,
            "arithmetic": total,
            "seconds": max(memory, total),
            "of": self.memory if memory >= total else " + ".join(self.arithmetic),
        }


def limit(case: Case, y: Array, p: Array, out: Array) -> Limit | None:
    """The limit of a loss on these arrays.

    Parameters
    ----------
    case : Case
        Which loss.
    y, p, out : numpy.ndarray
        Targets, predictions, and where the gradient goes; the loops write there.

    Returns
    -------
    Limit or None
        None where there is none: small arrays, and losses of boxes, sequences or whole batches, whose arithmetic no
        loop over elements stands for.
    """
    if not isinstance(case.row, Row) or p.size < SMALLEST:
        return None
    dtype = str(p.dtype)
    kernel = case.loss()._kernel()  # type: ignore[attr-defined]
    arithmetic = kernel.calls
    run = loops(dtype)
    if case.row.labels == "index":
        # Of logarithms and divisions a row needs one each, of exponentials every element one.
        arithmetic = tuple(name for name in arithmetic if name == "exp")
        memory = "copy"
        contestants = {"limit: copy": lambda: run["copy"](p.reshape(-1), out.reshape(-1))}
    else:
        memory = "add"
        contestants = {"limit: add": lambda: run["add"](y.reshape(-1), p.reshape(-1), out.reshape(-1))}
    contestants.update({f"limit: {name}": _in_cache(name, dtype, p.size) for name in arithmetic})
    if kernel.shape == "rowwise" and kernel.factory(toolbox(np.dtype(dtype))).pivot == "simplex":
        arithmetic = (*arithmetic, "sort")
        contestants["limit: sort"] = lambda: np.sort(p, axis=-1)
    return Limit(memory, arithmetic, contestants, p.size)
