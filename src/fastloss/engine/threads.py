"""When a call may use several threads, and how many.

Numba's threading layers have three dangers, and one rule each answers them:

* With the workqueue layer, two Python threads inside parallel regions abort the process. At most one parallel region
  of this package runs at a time, whatever the layer: a call that finds another one running goes on alone, which is
  also the faster way when all cores are busy.
* With GNU OpenMP, a forked child whose parent had threads is killed when it enters a parallel region. Such a child
  runs serially.
* A parallel region costs 5-70 µs. Below `PARALLEL_WORK` a call runs serially unless told otherwise.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PARALLEL_WORK = 27_000.0
"""The work, in nanoseconds of one thread, from which a second thread pays.

Measured with OpenMP on two quiet cores, value and gradient in float32: two threads overtook one at 95,000 elements of
MSE, 33,000 of log-cosh and of binary cross-entropy from logits, 25,000 of softmax cross-entropy with 100 classes; this
figure and the costs of `fastloss.engine.launch` put the change at 108,000, 28,000 and 28,000.
"""

PRODUCT_WORK = 30e6
"""As `PARALLEL_WORK`, right after a matrix product, whose library's threads go on spinning for a while.

Two threads took 8 ms instead of 0.6 for the circle loss of 256 embeddings of 128 numbers, and 16 instead of 10 for
1024; of 4096 they took 187 ms instead of 207, where the loops without the products are 50 ms of one thread's work.
"""

_PATIENCE, _FIRST_PAUSE, _LONGEST_PAUSE = 3, 8, 1024
"""Of a `Pace`, in calls."""

_limit: int | None = None
_region = threading.Lock()
_inherited_threads = False


def _after_fork_in_child() -> None:
    global _region, _inherited_threads
    _region = threading.Lock()  # a thread that is not here any more may have held the old one
    parallel = sys.modules.get("numba.np.ufunc.parallel")
    _inherited_threads = _inherited_threads or (parallel is not None and getattr(parallel, "_is_initialized", True))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def available() -> int:
    """How many threads Numba may use in this process (``NUMBA_NUM_THREADS``, by default the cores it may run on)."""
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def check(n_threads: Any) -> int:
    """`n_threads` as a positive int, at most what is available."""
    wanted: Any = None if isinstance(n_threads, bool) else n_threads
    try:
        n = operator.index(wanted)
    except TypeError:
        raise TypeError(f"`n_threads` must be a positive integer or None, got {n_threads!r}") from None
    if n < 1:
        raise ValueError(f"`n_threads` must be at least 1, got {n}")
    return min(n, available())


def set_num_threads(n_threads: int | None) -> None:
    """Set how many threads every later call uses, where it does not say ``n_threads=`` itself.

    Parameters
    ----------
    n_threads : int or None
        1 runs everything serially; a larger number is capped at what Numba has (``NUMBA_NUM_THREADS``). None, the
        default, lets each call choose by its amount of work. Results have the same bits either way.

    Raises
    ------
    ValueError
        If `n_threads` is less than 1.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.set_num_threads(1)
    >>> fastloss.get_num_threads()
    1
    >>> fastloss.set_num_threads(None)
    """
    global _limit
    _limit = None if n_threads is None else check(n_threads)


def get_num_threads() -> int | None:
    """The number set by `set_num_threads`, or None while each call chooses by its amount of work."""
    return _limit


def choose(work: float, units: int, n_threads: int | None, least: float = PARALLEL_WORK) -> int:
    """How many threads to use for `work` nanoseconds in `units` pieces; `n_threads` is the caller's wish, checked.

    Without a wish, several only from `least` nanoseconds on.
    """
    wish = _limit if n_threads is None else n_threads
    if wish == 1 or units == 1 or _inherited_threads:
        return 1
    if wish is None:
        if work < least:
            return 1
        wish = available()
    return min(wish, units)


def run(
    parallel: Callable[[], Callable[..., T]], serial: Callable[[], Callable[..., T]], threads: int, *args: Any
) -> T:
    """Call the parallel function on `threads` threads, or the serial one if a parallel region is running already."""
    if threads > 1 and _region.acquire(blocking=False):
        try:
            function = parallel()
            import numba

            before = numba.get_num_threads()
            numba.set_num_threads(threads)
            try:
                return function(*args)
            finally:
                numba.set_num_threads(before)
        finally:
            _region.release()
    return serial()(*args)


class Pace:
    """Whether several threads help the calls of one kind; where they turn out not to, one does for a while.

    Where a matrix product's threads go on spinning, or a thread was woken on its caller's core, a parallel region waits
    for milliseconds: value and gradient of log-cosh, (128, 1000) after a product of NumPy's, took 7 ms on two threads
    and 0.13 on one. Three such calls in a row are followed by one on a single thread. If that is faster, the next 8 use
    one, too, and twice as many each time that the threads are found waiting again. One such call alone has no
    consequence: after a sleep the first of many waits, and all others gain.

    Parameters
    ----------
    work : float
        About how many nanoseconds a call takes on one thread.
    """

    __slots__ = ("_begun", "_limit", "_pause", "_pauses", "_slow", "_suspect")

    def __init__(self, work: float) -> None:
        self._limit = 1e-3 + 2e-9 * work
        self._pause, self._pauses = 0, _FIRST_PAUSE
        self._slow, self._suspect = 0, 0.0
        self._begun = False  # a first call may compile, and starts the threads

    def run(
        self, parallel: Callable[[], Callable[..., T]], serial: Callable[[], Callable[..., T]], threads: int, *args: Any
    ) -> T:
        """As the function `run`."""
        if self._pause:
            self._pause -= 1
            function = serial()
            start = time.perf_counter()
            result = function(*args)
            if self._suspect:
                self._judge(time.perf_counter() - start)
            return result
        start = time.perf_counter()
        result = run(parallel, serial, threads, *args)
        seconds = time.perf_counter() - start
        if seconds < self._limit:
            self._slow, self._pauses = 0, _FIRST_PAUSE
        elif self._begun:
            self._slow += 1
            if self._slow >= _PATIENCE:
                self._suspect, self._pause = seconds, 1
        self._begun = True
        return result

    def _judge(self, alone: float) -> None:
        """Compare the call on one thread with the one before."""
        if 1.5 * alone < self._suspect:
            self._pause, self._pauses = self._pauses, min(2 * self._pauses, _LONGEST_PAUSE)
        else:  # it is the data that take so long, by pages that are new to the process for one
            self._slow, self._limit = 0, 1.5 * self._suspect
        self._suspect = 0.0
