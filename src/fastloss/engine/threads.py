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
