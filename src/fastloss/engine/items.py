"""Running an itemwise kernel: one function call an item, over as many threads as the work is worth."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastloss.engine import cache as disk
from fastloss.engine import storage, threads
from fastloss.kernels.definition import Kernel

_lock = threading.Lock()


def run(
    kernel: Kernel,
    dtype: np.dtype[Any],
    count: int,
    arguments: tuple[Any, ...],
    work: float,
    n_threads: int | None,
    least: float = threads.PARALLEL_WORK,
) -> None:
    """Call ``item(i, *arguments)`` for every i below `count`.

    Items must not write to the same place. What each does must not depend on the order, so that results have the same
    bits for any number of threads.

    Parameters
    ----------
    kernel : Kernel
        An itemwise one.
    dtype : numpy.dtype
        Compute dtype: the toolbox its factory gets.
    count : int
        Number of items.
    arguments : tuple
        C-contiguous, aligned arrays of bool (seen as uint8), integers or floats; Python ints, bools and floats. A float
        arrives in `dtype`. Only arrays whose storage codes the kernel's factory takes may be of half precision.
    work : float
        About how many nanoseconds all items take on one thread.
    n_threads : int or None
        The caller's wish, checked.
    least : float
        The work from which several threads are used without such a wish.
    """
    if not count:
        return
    values = tuple(_argument(argument, dtype) for argument in arguments)
    types = tuple(_kind(argument, dtype) for argument in arguments)
    many = threads.choose(work, count, n_threads, least)
    threads.run(
        lambda: _compiled(kernel, dtype, types, True),
        lambda: _compiled(kernel, dtype, types, False),
        many,
        count,
        *values,
    )


def _argument(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, np.ndarray):
        return storage.view(value, storage.code(value.dtype) or "")
    return dtype.type(value) if isinstance(value, float) else value


def _kind(value: Any, dtype: np.dtype[Any]) -> tuple[str, int]:
    """Storage code and rank of an array; a scalar's type, and 0."""
    if isinstance(value, np.ndarray):
        return storage.code(value.dtype) or "", value.ndim
    return ("bool_" if isinstance(value, bool) else "int64" if isinstance(value, int) else dtype.name), 0


@cache
def _compiled(
    kernel: Kernel, dtype: np.dtype[Any], types: tuple[tuple[str, int], ...], parallel: bool
) -> Callable[..., None]:
    with _lock:
        key = repr(("items", kernel.name, dtype.name, types, parallel))
        result = disk.obtain(kernel.name, key, lambda: _compile(kernel, dtype, types, parallel))
        entry: Callable[..., None] = result.entry_point
        _alive.append(result)
        return entry


_alive: list[Any] = []
"""Compile results own the machine code of their entry points."""


def _compile(kernel: Kernel, dtype: np.dtype[Any], types: tuple[tuple[str, int], ...], parallel: bool) -> Any:
    import numba

    from fastloss.engine import jit
    from fastloss.engine.toolbox import toolbox

    codes = [code for code, rank in types if rank]
    stored = len(inspect.signature(kernel.factory).parameters) - 1
    if any(code in storage.HALVES.values() for code in codes[stored:]):
        raise TypeError(f"kernel {kernel.name} cannot read half precision: storage codes {codes}")
    # Generated, because Numba's signatures know no star arguments.
    name, names = f"{kernel.name}_{dtype.name}", ", ".join(f"a{k}" for k in range(len(types)))
    # The index of a parallel loop is unsigned, that of a serial one is not; an item's is signed in both.
    source = f"def {name}(count, {names}):\n    for i in prange(count):\n        item(intp(i), {names})"
    item = jit.item(kernel.factory(toolbox(dtype), *codes[:stored]))
    # With a module's name; what belongs to none is pickled with all its globals, which fails, and is not stored.
    namespace = {"__name__": __name__, "item": item, "prange": numba.prange, "intp": np.intp}
    exec(source, namespace)
    dispatcher = numba.njit(**jit.DRIVER_FLAGS, parallel=parallel)(namespace[name])
    signature = (numba.types.intp, *(_numba_type(name, rank) for name, rank in types))
    dispatcher.compile(signature)
    return next(iter(dispatcher.overloads.values()))


def _numba_type(name: str, rank: int) -> Any:
    from numba import types

    if not rank:
        return getattr(types, name)
    return types.Array(getattr(types, np.dtype(storage.element_type(name)).name), rank, "C")
