"""Labels that are no class, and lengths that are none: found on the device, told on the host, without waiting.

A kernel writes the number of a row with such a label into a slot of memory that the host maps. The next call that
looks, or `fastloss.cuda.synchronize`, finds it and raises.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fastloss.engine.cuda.target import SIMULATED, cuda, simulated_array

SLOTS = 1024
"""Calls that may be under way at once, each with a slot; a later one takes the slot of the earliest."""

checking = True
"""Whether wrong labels raise an error."""

_lock = threading.Lock()
_memory: Any = None
_view: Any = None
_notes: list[tuple[str, tuple[int, ...], str, str]] = [("", (), "", "")] * SLOTS
_next = 0


def classes(number: int) -> str:
    """What labels of so many classes are."""
    return f"class indices, integers from 0 to {number - 1}"


def slot(loss: str, shape: tuple[int, ...], wanted: str, argument: str = "y_true") -> tuple[Any, int]:
    """The memory for the call of a loss, and its place there.

    `shape` is that of what is numbered there, `wanted` says what the argument must hold.
    """
    global _memory, _view, _next
    with _lock:
        if _memory is None:
            _memory, _view = _allocate()
        place, _next = _next, (_next + 1) % SLOTS
        _view[place] = -1
        _notes[place] = (loss, shape, wanted, argument)
    return _memory, place


def _allocate() -> tuple[Any, Any]:
    if SIMULATED:
        view = np.full(SLOTS, -1)
        return simulated_array(view), view
    memory = cuda.mapped_array(SLOTS, np.int64, portable=True)
    memory[:] = -1
    return memory, memory.view(np.ndarray)


def check() -> None:
    """Raise ValueError for a label that an earlier call has found to be no class."""
    if _view is None or _view.max() < 0:
        return
    with _lock:
        found = np.flatnonzero(_view >= 0)
        place = int(min(found, key=lambda k: (k - _next) % SLOTS, default=-1))
        if place < 0:
            return
        row, (loss, shape, wanted, argument) = int(_view[place]), _notes[place]
        _view[found] = -1
    if checking:
        where = ", ".join(str(int(i)) for i in np.unravel_index(row, shape))
        raise ValueError(
            f"`{argument}` of an earlier call of {loss} must hold {wanted}, but {argument}[{where}] did not; loss and "
            "gradient of such a sample are NaN"
        )
