"""What the GPU, or the simulator in its place, offers to a driver: decorators, sizes, dtypes.

In the simulator (``NUMBA_ENABLE_CUDASIM=1``) each thread of a block is a thread of Python's, and a warp knows no
shuffles. So its warps and blocks are small, and scalar functions are plain Python on NumPy scalars.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

try:
    import numba.cuda
    from numba.cuda.core import config  # absent from the target that Numba itself used to have
except ImportError as error:
    raise ImportError(
        "A CUDA array needs numba-cuda: install 'fastloss[cuda]' for CUDA 13 or 'fastloss[cuda12]' for CUDA 12"
    ) from error

from fastloss.engine import storage
from fastloss.engine.toolbox import Toolbox

# By the name that the simulator replaces in each module; Numba's annotations know neither its functions nor its types.
cuda: Any = numba.cuda
types: Any = numba.cuda.types

SIMULATED = bool(config.ENABLE_CUDASIM)

WARP = 4 if SIMULATED else 32
"""Threads that exchange numbers without shared memory."""

THREADS = 8 if SIMULATED else 256
"""Of a block."""

MOST_THREADS = 16 if SIMULATED else 1024
"""Of a block for a row that no shared memory holds."""

SHARED_BYTES = 1024 if SIMULATED else 48 * 1024
"""What a block may have of it without asking."""

device: Callable[[Any], Any] = (lambda function: function) if SIMULATED else cuda.jit(device=True)


@cache
def toolbox(dtype: np.dtype[Any]) -> Toolbox:
    """The toolbox of `dtype`, its functions compiled for the device."""
    return make_toolbox(dtype)


def make_toolbox(dtype: np.dtype[Any]) -> Toolbox:
    """Another toolbox like that, which a team may change."""
    found = Toolbox(dtype, decorate=device)
    if not SIMULATED:  # where NumPy's functions of scalars are not all known
        for name, function in (("sqrt", lambda x: math.sqrt(x)), ("copysign", lambda x, y: math.copysign(x, y))):
            setattr(found, name, device(function))
    found.load = lambda code: load(dtype, code)  # type: ignore[method-assign]
    found.store = store  # type: ignore[method-assign]
    return found


def element_type(code: str) -> Any:
    """The NumPy scalar type of the array that a kernel sees: float16 itself, the bits of bfloat16 and booleans."""
    return np.float16 if code == "f2" else storage.element_type(code)


@cache
def load(dtype: np.dtype[Any], code: str) -> Callable[[Any, int], Any]:
    """``load(array, i)``: an element stored as `code`, in `dtype`."""
    convert = dtype.type
    if code == "bf2":

        def read(array, i):
            return convert(np.uint32(np.uint32(array[i]) << np.uint32(16)).view(np.float32))

    else:

        def read(array, i):
            return convert(array[i])

    return device(read)


@cache
def store(code: str) -> Callable[[Any, int, Any], None]:
    """``store(array, i, value)``, rounding to nearest, ties to even."""
    if code == "bf2":

        def write(array, i, value):
            bits = np.float32(value).view(np.uint32)
            upper = np.uint32(bits >> np.uint32(16))
            rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16))
            array[i] = np.uint16(np.uint32(upper | np.uint32(0x40)) if value != value else rounded)

    else:
        kind = np.float16 if code == "f2" else None

        def write(array, i, value):
            array[i] = kind(value) if kind is not None else value

    return device(write)


def simulated_array(array: np.ndarray[Any, Any]) -> Any:
    """A device array of the simulator's that is this memory of the host's."""
    from numba.cuda.simulator.cudadrv import devicearray

    kind: Any = devicearray.FakeCUDAArray
    return kind(array)
