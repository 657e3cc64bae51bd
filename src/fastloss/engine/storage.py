"""How elements lie in memory, apart from the dtype they are computed in.

Each storage format has a code. Booleans and half-precision floats travel to the kernels as unsigned integers of their
size, because Numba's CPU target has no arithmetic for them; `fastloss.engine.access` converts inside the vector loop.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

HALVES = {"float16": "f2", "bfloat16": "bf2"}
_VIEWS: dict[str, type[np.generic]] = {"f2": np.uint16, "bf2": np.uint16, "b1": np.uint8}
CODES = {
    **{name: np.dtype(name).str[1:] for name in ("float32", "float64")},
    **{name: np.dtype(name).str[1:] for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name).str[1:] for name in ("uint8", "uint16", "uint32", "uint64")},
    **HALVES,
    "bool": "b1",
}
"""Storage code by the name of a NumPy dtype; a dtype whose name is missing cannot be stored."""


@cache
def code(dtype: np.dtype[Any]) -> str | None:
    """The storage code of a dtype, or None if a kernel cannot read it. Cached: a dtype's name takes 2 µs to make."""
    return CODES.get(dtype.name) if dtype.isnative else None


def element_type(code: str) -> Any:
    """The NumPy scalar type of the array that a kernel sees for this storage."""
    return _VIEWS.get(code) or np.dtype(code).type


def is_viewed(code: str) -> bool:
    """Whether a kernel sees the bits of such elements rather than the elements."""
    return code in _VIEWS


def view(array: np.ndarray[Any, Any], code: str) -> np.ndarray[Any, Any]:
    """The array as a kernel takes it: itself, or its bits."""
    kind = _VIEWS.get(code)
    return array if kind is None else array.view(kind)
