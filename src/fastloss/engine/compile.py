"""From a `Variant` to a function that runs, through the cache on disk."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np

from fastloss.engine import cache as disk
from fastloss.engine import fingerprint as fingerprints
from fastloss.engine import storage
from fastloss.engine.variant import Variant

_lock = threading.Lock()


@dataclass(frozen=True)
class Compiled:
    """A compiled variant.

    Attributes
    ----------
    entry : callable
        Numba's C wrapper of the kernel. It skips the dispatcher's look at the arguments' types (0.3 µs a call), so the
        caller answers for dtypes, ranks, contiguity and alignment.
    result : object
        Numba's compile result: owns the machine code, and shows its assembly.
    """

    entry: Callable[..., tuple[float, int]]
    result: Any


def key(variant: Variant) -> str | None:
    """The variant as text: everything about it but the sources in the cache's environment.

    None if that cannot be told, as the kernel is a user's and refers to something that cannot be read.
    """
    kernel = fingerprints.of(variant.kernel)
    if kernel is None:
        return None
    return repr([(f.name, kernel if f.name == "kernel" else getattr(variant, f.name)) for f in fields(variant)])


@cache
def compiled(variant: Variant) -> Compiled:
    """The machine code of `variant`: from memory, else from disk, else compiled now and stored."""
    with _lock:
        result = disk.obtain(variant.kernel.name, key(variant), lambda: _compile(variant))
        return Compiled(result.entry_point, result)


def _compile(variant: Variant) -> Any:
    import numba

    from fastloss.engine import jit
    from fastloss.engine.drivers import build

    function = build(variant)
    # Numba numbers functions by process, so two from the cache on disk may have the same number. If they had the same
    # name, too, the address of one would be that of the other.
    mark = hashlib.sha256((key(variant) or "").encode()).hexdigest()[:12]
    function.__name__ = function.__qualname__ = re.sub(r"\W", "_", f"{variant.kernel.name}_{variant.dtype}_{mark}")
    dispatcher = numba.njit(**jit.DRIVER_FLAGS, parallel=variant.parallel)(function)
    arguments = signature(variant)
    dispatcher.compile(arguments)
    return dispatcher.overloads[arguments]


def signature(variant: Variant) -> tuple[Any, ...]:
    """Numba's types of the driver's arguments; None where the variant has no use for one."""
    from numba import types

    def array(dtype: Any, rank: int, present: bool = True) -> Any:
        return types.Array(numba_type(dtype), rank, "C") if present else types.none

    def numba_type(dtype: Any) -> Any:
        return getattr(types, np.dtype(dtype).name)

    compute = np.dtype(variant.dtype)
    gradient = storage.element_type(variant.g)
    return (
        array(storage.element_type(variant.y), 1 if variant.index else 2),
        array(storage.element_type(variant.p), 2),
        array(compute, 1, variant.weighted),
        array(compute, 1, variant.weighted),
        array(np.uint8, 1, variant.masked),
        array(gradient, 2, variant.outputs >= 1 and not variant.in_place),
        array(gradient, 2, variant.outputs >= 2),
        array(compute, 1, variant.values),
        array(compute, 1),
        types.intp,
        types.intp,
        types.float64,
        types.float64,
    )
