"""Fair timing: everybody in turn, in an order drawn afresh every time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Timing(NamedTuple):
    """Seconds a call: the median of the rounds, and where 10 % and 90 % of them lie."""

    median: float
    p10: float
    p90: float
    rounds: int


def interleave(
    contestants: Mapping[str, Callable[[], Any]], rounds: int = 20, turn: float = 0.005, budget: float = 10.0
) -> dict[str, Timing]:
    """Time calls that take turns: a moment in which the machine is slow meets all alike.

    A turn begins with a call that is not timed: in it the threads of whoever came before fall asleep, and caches and
    branch predictors become one's own. The garbage collector waits.

    Parameters
    ----------
    contestants : dict of callable
        What is timed.
    rounds : int
        How many turns each gets; fewer, but not under 5, where they would not fit into `budget`.
    turn : float
        Seconds that a turn lasts at least: fast calls are repeated.
    budget : float
        Seconds for all together, if that leaves everybody 5 turns.

    Returns
    -------
    dict of Timing
        In the order of `contestants`.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        calls, cycle = {}, 0.0
        for name, call in contestants.items():
            call()
            start = time.perf_counter()
            call()
            seconds = max(time.perf_counter() - start, 1e-7)
            calls[name] = max(1, int(turn / seconds))
            cycle += (1 + calls[name]) * seconds
        rounds = min(rounds, max(5, int(budget / max(cycle, 1e-7))))
        rng = np.random.default_rng(0)
        names = list(contestants)
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for i in rng.permutation(len(names)).tolist():
                call, count = contestants[names[i]], calls[names[i]]
                call()
                start = time.perf_counter()
                for _ in range(count):
                    call()
                times[names[i]].append((time.perf_counter() - start) / count)
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(found) for name, found in times.items()}


def _timing(found: list[float]) -> Timing:
    low, median, high = (float(quantile) for quantile in np.quantile(found, [0.1, 0.5, 0.9]))
    return Timing(median, low, high, len(found))
