"""What the table of losses does not show: short rows, weights, dtypes, threads, memory and compilation."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numba
import numpy as np

from fastloss.bench.cases import LARGE
from fastloss.bench.limits import loops
from fastloss.bench.timing import interleave
from fastloss.engine.jit import LOOP_FLAGS, njit
from fastloss.losses import (
    BinaryCrossentropy,
    CategoricalHinge,
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalCrossentropy,
)
from fastloss.losses.arrays import Array
from fastloss.losses.base import Loss

MANY = 1 << 20
"""Rows or elements."""

HALVES = (16384, 1000)
"""More than the last cache holds."""

SWEEP = (1 << 10, 1 << 12, 1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 20)


class Property(NamedTuple):
    """A figure, mostly a ratio of two things timed in turn, and what it was made of."""

    what: str
    figure: float
    detail: str


def measure(threads: int, rounds: int) -> list[Property]:
    """All properties; several minutes.

    Parameters
    ----------
    threads : int
        That "several threads" are.
    rounds : int
        As for `fastloss.bench.timing.interleave`.

    Returns
    -------
    list of Property
    """
    parts = (
        _short_rows(rounds),
        _weights(rounds),
        _threads(threads, rounds),
        _choice(threads, rounds),
        _halves(rounds),
    )
    return [found for part in parts for found in part] + list(_memory()) + list(_compilation(max(3, rounds // 4)))


def _call(loss: Loss, y: Array, p: Array, **options: Any) -> Callable[[], Any]:
    """Value and gradient, into a buffer."""
    out = np.empty_like(p)
    return lambda: loss.value_and_grad(y, p, out=out, **options)


def _medians(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    return {name: timing.median for name, timing in interleave(contestants, rounds).items()}


def _short_rows(rounds: int) -> Iterator[Property]:
    rng = np.random.default_rng(0)
    loss = SparseCategoricalCrossentropy(from_logits=True)
    contestants, elements = {}, {}
    for rows, columns in ((MANY, 2), (MANY, 10), (MANY, 32), (MANY // 32, 1000)):
        p = rng.standard_normal((rows, columns), np.float32)
        contestants[str(columns)] = _call(loss, rng.integers(0, columns, rows), p, n_threads=1)
        elements[str(columns)] = p.size
    found = {name: seconds / elements[name] for name, seconds in _medians(contestants, rounds).items()}
    for name in ("2", "10", "32"):
        detail = f"{1e9 * found[name]:.2f} and {1e9 * found['1000']:.2f} ns"
        yield Property(
            f"softmax cross-entropy of labels: an element at {name} classes over 1000",
            found[name] / found["1000"],
            detail,
        )


def _weights(rounds: int) -> Iterator[Property]:
    rng = np.random.default_rng(0)
    y, w = rng.random((2, MANY), np.float32)
    p = rng.uniform(0.1, 0.9, MANY).astype(np.float32)
    for loss in (MeanSquaredError(), LogCosh(), BinaryCrossentropy()):
        contestants = {
            "flat": _call(loss, y, p, n_threads=1),
            "column": _call(loss, y[:, None], p[:, None], sample_weight=w, n_threads=1),
        }
        found = _medians(contestants, rounds)
        detail = f"{1e9 * found['column'] / MANY:.2f} and {1e9 * found['flat'] / MANY:.2f} ns an element"
        yield Property(
            f"{loss.name}: ({MANY}, 1) with weights over flat without", found["column"] / found["flat"], detail
        )


def _threads(threads: int, rounds: int) -> Iterator[Property]:
    rng = np.random.default_rng(0)
    y, p = rng.random((2, *LARGE), np.float32)
    labels = rng.integers(0, LARGE[1], LARGE[0])
    source, target = p.reshape(-1), np.empty(p.size, np.float32)
    copy = loops("float32")["copy"]

    @njit(**LOOP_FLAGS, parallel=True)  # type: ignore[untyped-decorator]
    def copy_in_parts(a: Any, out: Any, parts: int) -> None:
        size = a.size // parts
        for part in numba.prange(parts):
            copy(a[part * size : (part + 1) * size], out[part * size : (part + 1) * size])

    losses: dict[str, tuple[Loss, Array]] = {
        "mean_squared_error": (MeanSquaredError(), y),
        "log_cosh": (LogCosh(), y),
        "binary_crossentropy, from logits": (BinaryCrossentropy(from_logits=True), y),
        "sparse_categorical_crossentropy, from logits": (SparseCategoricalCrossentropy(from_logits=True), labels),
    }
    contestants: dict[str, Callable[[], Any]] = {
        "a copy 1": lambda: copy(source, target),
        f"a copy {threads}": lambda: copy_in_parts(source, target, 8 * threads),
    }
    for name, (loss, targets) in losses.items():
        contestants[f"{name} 1"] = _call(loss, targets, p, n_threads=1)
        contestants[f"{name} {threads}"] = _call(loss, targets, p, n_threads=threads)
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        found = _medians(contestants, rounds)
    finally:
        numba.set_num_threads(before)
    for name in ("a copy", *losses):
        one, several = found[f"{name} 1"], found[f"{name} {threads}"]
        yield Property(
            f"{name}, {LARGE}: one thread over {threads}", one / several, f"{1e3 * one:.2f} and {1e3 * several:.2f} ms"
        )


def _choice(threads: int, rounds: int) -> Iterator[Property]:
    """The automatic choice beside the better of both ways, where it is worst."""
    rng = np.random.default_rng(0)
    softmax = SparseCategoricalCrossentropy(from_logits=True)
    losses = (MeanSquaredError(), 64), (LogCosh(), 64), (CategoricalHinge(), 64), (softmax, 64), (softmax, 10)
    for loss, columns in losses:
        worst = Property("", 0.0, "")
        for size in SWEEP:
            p = rng.standard_normal((size // columns, columns), np.float32)
            y = rng.integers(0, columns, len(p)) if loss.class_indices else rng.standard_normal(p.shape, np.float32)
            ways = {"auto": None, "serial": 1, "parallel": threads}
            found = _medians({name: _call(loss, y, p, n_threads=n) for name, n in ways.items()}, rounds)
            better = min(found["serial"], found["parallel"])
            detail = f"at {size} elements, {1e6 * found['auto']:.1f} and {1e6 * better:.1f} µs"
            what = f"{loss.name}, {columns} columns: chosen threads over the better of 1 and {threads}, worst of sizes"
            worst = max(worst, Property(what, found["auto"] / better, detail), key=lambda found: found.figure)
        yield worst


def _halves(rounds: int) -> Iterator[Property]:
    import ml_dtypes

    rng = np.random.default_rng(0)
    y, p = rng.standard_normal((2, *HALVES), np.float32)
    for loss in (MeanSquaredError(), MeanAbsoluteError(), Huber()):
        contestants = {
            np.dtype(dtype).name: _call(loss, y.astype(dtype), p.astype(dtype), n_threads=1)
            for dtype in (np.float32, np.float16, ml_dtypes.bfloat16)
        }
        found = _medians(contestants, rounds)
        for name in ("float16", "bfloat16"):
            ratio = found["float32"] / found[name]
            detail = f"{1e3 * found['float32']:.1f} and {1e3 * found[name]:.1f} ms"
            yield Property(f"{loss.name}, {p.shape}: float32 over {name}", ratio, detail)


_PEAK = """
import resource, numpy as np, fastloss
p = np.ones({shape}, np.float32)
loss = fastloss.losses.{loss}
y = {targets}
out = np.empty_like(p); out[:] = 0
for n_threads in (1, 2):  # the kernels are loaded before
    loss.value_and_grad(y[:2048], p[:2048], out=out[:2048], n_threads=n_threads)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loss.value_and_grad(y, p, out=out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / p.nbytes, p.nbytes)
"""


def _memory() -> Iterator[Property]:
    """How far a call into a buffer raises the peak of resident memory, in processes of their own."""
    for loss, shape, targets in (
        ("MeanSquaredError()", (65536, 1000), "np.zeros_like(p)"),
        ("SparseCategoricalCrossentropy(from_logits=True)", (65536, 1000), "np.zeros(len(p), int)"),
        ("SparseCategoricalCrossentropy(from_logits=True)", (6553600, 10), "np.zeros(len(p), int)"),
        ("CategoricalFocalCrossentropy()", (65536, 1000), "np.ones_like(p)"),
    ):
        script = _PEAK.format(shape=shape, loss=loss, targets=targets)
        run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        ratio, size = map(float, run.stdout.split())
        detail = f"{ratio * size / 1e6:.2f} MB beside {size / 1e6:.0f} MB"
        yield Property(f"{loss}, {shape}, into a buffer: further memory over that of the predictions", ratio, detail)


_FIRST = """
import sys, time, numpy as np, fastloss
p = np.full((8, 100), 0.01, np.float32)
def first(loss, y):
    start = time.perf_counter()
    loss.value_and_grad(y, p, n_threads=1)
    return time.perf_counter() - start
import numba
print(first(fastloss.losses.MeanSquaredError(), p), first(fastloss.losses.LogCosh(), p),
      first(fastloss.losses.SparseCategoricalCrossentropy(from_logits=True), np.zeros(8, int)))
"""


def _compilation(rounds: int) -> Iterator[Property]:
    """The first calls of three losses, one after the other: seconds, with an empty cache and with a full one."""
    times: dict[str, list[list[float]]] = {"an empty": [], "a full": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "FASTLOSS_CACHE_DIR": folder}
            for cache in times:
                run = subprocess.run(
                    [sys.executable, "-c", _FIRST], check=True, capture_output=True, text=True, env=environment
                )
                times[cache].append([float(word) for word in run.stdout.split()])
    for cache, found in times.items():
        for place, name in enumerate(
            ("mean_squared_error", "log_cosh", "sparse_categorical_crossentropy, from logits")
        ):
            seconds = statistics.median(run[place] for run in found)
            order = ("first", "second", "third")[place]
            yield Property(
                f"{name}, the process's {order} loss, with {cache} cache: seconds", seconds, "Numba is imported already"
            )
