"""One loss in one shape: make the contestants, check them, time them in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fastloss.bench.cases import BATCH_CASES, SMALL, Case, Shape
from fastloss.bench.formulas import FORMULAS
from fastloss.bench.limits import limit
from fastloss.bench.peers import PEERS, Contestant, Peer, Task
from fastloss.bench.timing import Timing, interleave
from fastloss.losses.arrays import Array

OURS = ("fastloss", "fastloss, into a buffer")
ONE_THREAD = "fastloss, one thread"
BOUND = "fastloss, bound"


def measure(
    case: Case,
    shape: Shape,
    dtype: str,
    threads: int,
    rounds: int,
    peers: Mapping[str, Peer] = PEERS,
    turn: float = 0.005,
    budget: float = 10.0,
) -> dict[str, Any]:
    """Time value and gradient of a loss, beside its peers and its limit.

    Parameters
    ----------
    case : Case
        Which loss.
    shape : tuple of int
        Of the predictions.
    dtype : str
        Of predictions and dense targets.
    threads : int
        That everybody may use; the environment must say so too (`fastloss.bench.machine.prepare`).
    rounds, turn, budget
        As for `fastloss.bench.timing.interleave`.
    peers : dict of Peer
        Who takes part, if it has the loss and gets it right.

    Returns
    -------
    dict
        ``timings`` of ours (`OURS` with so many threads, `ONE_THREAD` into a buffer, `BOUND` to the shape), ``peers``
        (timings) and ``rejected`` (reasons) by title, ``limit`` and the ratios: ``speedup`` of the faster of `OURS`
        over the ``fastest_peer``, ``over_limit`` of `ONE_THREAD`. What there is not is None.
    """
    y, p = case.inputs(shape, dtype)
    task = Task(case, shape, dtype, threads, y, p)
    expected = reference(task)
    error = BATCH_CASES[case.row.name].error if dtype == "float32" and case.row.name in BATCH_CASES else 0.0
    out = np.empty_like(p)
    rejected: dict[str, str] = {}

    def admitted(makers: Mapping[str, Callable[[Task], Contestant | None]]) -> dict[str, Callable[[], Any]]:
        """The calls of those that have the loss and get it right."""
        found = {}
        for title, make in makers.items():
            try:
                contestant = make(task)
                reason = None if contestant is None else verdict(contestant, expected, dtype, error)
            except Exception as failure:  # whatever is wrong with another library should not end the run
                contestant, reason = None, _named(failure)
            if reason is not None:
                rejected[title] = reason
            elif contestant is not None:
                found[title] = contestant.run
        return found

    present = admitted(_ours(out))
    others = admitted({peer.title: peer.make for peer in peers.values()})
    bound = limit(case, y, p, out)
    timings = interleave({**present, **others, **(bound.contestants if bound else {})}, rounds, turn, budget)
    return _result(case, shape, present, others, rejected, timings, bound.read(timings) if bound else None)


def _result(
    case: Case,
    shape: Shape,
    present: Iterable[str],
    others: Iterable[str],
    rejected: dict[str, str],
    timings: Mapping[str, Timing],
    bound: dict[str, Any] | None,
) -> dict[str, Any]:
    ours = min((timings[name].median for name in OURS if name in timings), default=None)
    fastest = min(others, key=lambda title: timings[title].median, default=None)
    alone = timings.get(ONE_THREAD)
    return {
        "loss": case.label,
        "shape": list(shape),
        "timings": {name: timings[name]._asdict() for name in present},
        "peers": {title: timings[title]._asdict() for title in others},
        "rejected": rejected,
        "fastest_peer": fastest,
        "speedup": timings[fastest].median / ours if fastest and ours else None,
        "limit": bound,
        "over_limit": alone.median / bound["seconds"] if alone and bound else None,
    }


def _ours(out: Array) -> dict[str, Callable[[Task], Contestant]]:
    def call(**options: Any) -> Callable[[Task], Contestant]:
        def make(task: Task) -> Contestant:
            compute = task.case.loss().value_and_grad
            return Contestant(lambda: compute(task.y, task.p, **options), lambda found: found)

        return make

    def bound(task: Task) -> Contestant:
        y, p = task.y, task.p
        step = task.case.loss().bind(p.shape, p.dtype, y_true_shape=y.shape, y_true_dtype=y.dtype)
        return Contestant(lambda: step(y, p), lambda found: found)

    ways = (call(), call(out=out), call(out=out, n_threads=1), bound)
    return dict(zip((*OURS, ONE_THREAD, BOUND), ways, strict=True))


def reference(task: Task) -> tuple[Array, Array]:
    """Value and gradient in float64, in plain NumPy; a loss of whole batches has no other formula than its own."""
    y = task.y.astype(np.float64) if task.y.dtype.kind == "f" else task.y
    p = task.p.astype(np.float64)
    formula: Callable[[Array, Array], Any] = FORMULAS.get(task.case.label, task.case.loss().value_and_grad)
    value, gradient = formula(y, p)
    return np.asarray(value), gradient


def verdict(contestant: Contestant, expected: tuple[Array, Array], dtype: str, error: float = 0.0) -> str | None:
    """What is wrong with a contestant: it fails or computes something else. None if it may be timed.

    Parameters
    ----------
    contestant : Contestant
        It runs once.
    expected : tuple of numpy.ndarray
        Value and gradient in float64.
    dtype : str
        That the gradient must have.
    error : float
        What the gradient may be off, beside its largest entry, where that is more than a few roundings.

    Returns
    -------
    str or None
    """
    try:
        value, gradient = map(np.asarray, contestant.read(contestant.run()))
    except Exception as failure:  # any library may fail in any way
        return _named(failure)
    right, slope = expected
    if gradient.shape != slope.shape or gradient.dtype != dtype:
        return f"wrong: its gradient is {gradient.dtype} {gradient.shape}, not {dtype} {slope.shape}"
    digits = 1e-4 if dtype == "float32" else 1e-9
    if value.shape != () or not np.allclose(value, right, rtol=digits, atol=digits * 1e-2):
        return f"wrong: its value is {value}, not {right}"
    # Beside the largest entries, as softmax minus target cancels; they are few, so it must be within a few roundings.
    distance = np.abs(gradient - slope)
    most = max(error, 8 * float(np.finfo(dtype).eps)) * np.abs(slope).max(initial=0.0)
    off = ~(distance <= digits * np.abs(slope) + most)
    if np.count_nonzero(off) > slope.size // 1_000_000:  # one in a million may lie on a kink
        i = np.unravel_index(int(np.argmax(np.where(off, distance, -1.0))), slope.shape)
        return f"wrong: its gradient at {tuple(map(int, i))} is {gradient[i]:.7g}, not {slope[i]:.7g}"
    return None


def _named(error: Exception) -> str:
    message = str(error).strip().splitlines()
    return f"fails: {type(error).__name__}: {message[0][:200]}" if message else f"fails: {type(error).__name__}"


def bare_call(rounds: int) -> float:
    """Seconds of a compiled function that is given four small arrays and does next to nothing."""
    from fastloss.engine.jit import njit

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def bare(a: Any, b: Any, c: Any, d: Any) -> Any:
        total = 0.0
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                e = a[i, j] - b[i, j]
                d[i, j] = e * c[i, j]
                total += e
        return total

    arrays = [np.ones(SMALL, np.float32) for _ in range(4)]
    return interleave({"bare": lambda: bare(*arrays)}, rounds)["bare"].median


def processes(rounds: int) -> dict[str, float]:
    """Seconds of imports and first results in fresh processes, in turn; the cache is warm.

    Parameters
    ----------
    rounds : int
        How often.

    Returns
    -------
    dict of float
        Medians.
    """
    first = (
        "import numpy as np, fastloss; a = np.ones((32, 10), 'float32'); "
        "fastloss.losses.MeanSquaredError().value_and_grad(a, a)"
    )
    scripts = {name: name for name in ("import numpy", "import fastloss", "import numba")}
    scripts |= {"first result": first, "python": "pass"}
    times: dict[str, list[float]] = {name: [] for name in scripts}
    subprocess.run([sys.executable, "-c", first], check=True)
    for _ in range(rounds):
        for name, script in scripts.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", script], check=True)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}
