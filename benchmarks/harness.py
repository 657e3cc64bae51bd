"""What all benchmarks share: data for each registered loss, the machine's limit loops, and fair timing.

A figure is a ratio of two things timed in turn in one process. `interleave` does the timing; the loops of `limits` are
what a loss is compared with: a plain copy or add over the same memory, and loops over the vector functions it must
call, in cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastloss.registry import LOSSES, Row


def data(row: Row, shape: tuple[int, int], dtype: str, logits: bool, seed: int = 0) -> tuple[Any, Any]:
    """Targets and predictions in the domain of a loss."""
    rng = np.random.default_rng(seed)
    p = rng.normal(size=shape).astype(dtype)
    if row.domain == "real":
        return rng.normal(size=shape).astype(dtype), p
    if row.domain == "positive":
        return rng.uniform(0.5, 3, shape).astype(dtype), np.exp(p)
    if row.domain == "sign":
        return rng.choice([-1, 1], shape).astype(dtype), p
    sigmoid = (1 / (1 + np.exp(-p))).astype(dtype)
    if row.domain in ("probability", "unit", "pairs"):
        return (rng.random(shape) < 0.5).astype(dtype), p if logits else sigmoid
    if not logits and row.domain != "scores":
        p = np.exp(p)
        p /= p.sum(axis=1, keepdims=True)
    labels = rng.integers(0, shape[1], shape[0])
    if row.labels == "index":
        return labels, p
    y = np.zeros(shape, dtype)
    y[np.arange(shape[0]), labels] = 1
    return y, p


def cases() -> list[tuple[str, Row, dict[str, Any]]]:
    """Every registered loss with its defaults, and from logits where it has them: (label, row, options)."""
    found = []
    for name, row in LOSSES.items():
        found.append((name, row, {}))
        if {"from_logits": True} in row.variants:
            found.append((f"{name}, from logits", row, {"from_logits": True}))
    return found


def interleave(contestants: dict[str, Callable[[], Any]], rounds: int = 30, seconds: float = 0.02) -> dict[str, float]:
    """Median seconds a call, each contestant timed once a round, in turn.

    Parameters
    ----------
    contestants : dict of callable
        What is timed; each is called twice beforehand.
    rounds : int
        How often.
    seconds : float
        Calls faster than this are repeated within a round until they take about this long.
    """
    repeats = {}
    for name, call in contestants.items():
        call()
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            count = repeats[name]
            start = time.perf_counter()
            for _ in range(count):
                call()
            times[name].append((time.perf_counter() - start) / count)
    return {name: statistics.median(found) for name, found in times.items()}


def limits(dtype: str) -> dict[str, Callable[..., None]]:
    """Compiled loops over flat arrays: ``copy(a, o)``, ``add(a, b, o)``, and one an arithmetic function, in cache.

    The arithmetic ones go over the first 4096 elements again and again until they have done as many as the array has.
    """
    import numba

    from fastloss.engine.jit import LOOP_FLAGS
    from fastloss.engine.toolbox import toolbox

    xp = toolbox(np.dtype(dtype))
    one = xp.const(1.0)

    @numba.njit(**LOOP_FLAGS)
    def copy(a, o):
        for i in range(a.size):
            o[i] = a[i]

    @numba.njit(**LOOP_FLAGS)
    def add(a, b, o):
        for i in range(a.size):
            o[i] = a[i] + b[i]

    def in_cache(function):
        @numba.njit(**LOOP_FLAGS)
        def block(a, o):
            for i in range(a.size):
                o[i] = function(a[i])

        @numba.njit(**LOOP_FLAGS)
        def loop(a, o):
            part, result = a[:4096], o[:4096]
            for _ in range(a.size // 4096):
                block(part, result)

        return loop

    functions = {"exp": xp.exp, "log": xp.log, "div": xp.jit(lambda x: one / x), "pow": xp.jit(lambda x: xp.pow(x, x))}
    return {"copy": copy, "add": add, **{name: in_cache(function) for name, function in functions.items()}}


def positive(shape: tuple[int, ...], dtype: str) -> Any:
    """Flat numbers that every limit loop may be given."""
    return np.random.default_rng(1).uniform(0.1, 2.0, int(np.prod(shape))).astype(dtype)
