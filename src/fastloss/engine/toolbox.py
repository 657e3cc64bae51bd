"""The toolbox ``xp``: everything a kernel may call, in one dtype and for one target.

Python's float literals are float64 and would silently promote a float32 kernel (half the lanes, plus conversions), so
constants come from here too: ``xp.const(0.5)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from fastloss.engine import access, jit, vmath

EPSILON = 1e-7
"""Keras's fuzz factor. It is rounded to the compute dtype: in float32 the upper clip border is 0.9999999."""

CHUNK = 1024
"""Elements that an item sums in the compute dtype, before they go to a sum in a wider one."""


class Toolbox(ModuleType):
    """Scalar functions and constants of one dtype.

    A module, because that is the one kind of object whose attributes Numba resolves while it compiles a closure over
    it: so kernels may write ``xp.exp``.

    Parameters
    ----------
    dtype : numpy.dtype
        float32 or float64: the dtype all arithmetic is done in.
    compiled : bool
        False gives the same functions as plain Python on NumPy scalars, to step through a kernel in a debugger.
    decorate : callable, optional
        What compiles scalar functions, for another target than the CPU.
    """

    def __init__(
        self, dtype: np.dtype[Any], *, compiled: bool = True, decorate: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(f"fastloss.toolbox.{dtype}")
        self.dtype = dtype
        self.type = dtype.type
        self.epsilon = self.const(EPSILON)
        here = jit.scalar if compiled else lambda function: function
        self.jit: Callable[[Any], Any] = decorate or here
        self._hold = jit.keep if decorate is None else None
        # As `maximum`, of two numbers in this dtype: the one form of it that a loop's maximum is vectorised with.
        self.greatest: Callable[[Any, Any], Any] = jit.maximum if compiled else np.maximum
        # The dtype of an item's sums, how many elements are one of its parts, and whether threads share an item.
        self.wide: Any = np.float64
        self.shared = False
        self.stride = CHUNK
        for functions in (vmath.build(self.type, self.jit, self._hold), _elementary(self.jit), _alone(self.jit)):
            for name, function in functions.items():
                setattr(self, name, function)
        if decorate is not None:
            self.greatest = self.maximum

    def const(self, value: float) -> Any:
        """`value` in the toolbox's dtype."""
        return self.type(value)

    def consts(self, *values: float) -> tuple[Any, ...]:
        """All `values` in the toolbox's dtype."""
        return tuple(self.type(value) for value in values)

    def polynomial(self, name: str) -> Callable[[Any], Any]:
        """The polynomial of that name in `fastloss.engine.coefficients`, as a function of one argument."""
        return vmath.polynomial(self.type, self.jit, name, self._hold)

    def load(self, code: str) -> Callable[[Any, int], Any]:
        """``load(array, i)`` reads an element stored as `code` in the toolbox's dtype."""
        return access.load(self.dtype, code, self.jit)

    def store(self, code: str) -> Callable[[Any, int, Any], None]:
        """``store(array, i, value)`` writes an element stored as `code`."""
        return access.store(code, self.jit)


def _elementary(decorate: Callable[[Any], Any]) -> dict[str, Callable[..., Any]]:
    """Square roots, signs, and selections that keep a NaN in either operand, as the processor's min and max do not."""

    def where(condition, a, b):
        return a if condition else b

    def maximum(a, b):
        return a if (a > b) | (a != a) else b

    def minimum(a, b):
        return a if (a < b) | (a != a) else b

    def clip(x, low, high):
        x = low if x < low else x
        return high if x > high else x

    def sqrt(x):
        return np.sqrt(x)

    def copysign(x, y):
        return np.copysign(x, y)

    return {f.__name__: decorate(f) for f in (where, maximum, minimum, clip, sqrt, copysign)}


def _alone(decorate: Callable[[Any], Any]) -> dict[str, Callable[..., Any]]:
    """What an item's loops are made of, where one thread has an item: nothing but `range`.

    On a GPU a team of threads has it, and each takes a part of every such loop (`fastloss.engine.cuda.drivers.team`):
    always the same one of an index. So what an index writes, a later loop may read under the same index; before
    anything else is read that others have written, they must `meet`. What lies outside these loops is done by all.
    """

    def span(n):
        return range(n)

    def between(start, stop):
        return range(start, stop)

    def mine(index):
        """Whether this thread has that index."""
        return True

    def meet():
        """Wait for the others."""

    def total(x):
        """The sum of what all threads have."""
        return x

    def largest(x):
        return x

    def least(x):
        return x

    def count(x):
        """As `total`, of 32-bit integers."""
        return x

    def any_of(flag):
        """Whether it is true for some thread."""
        return flag

    def scratch(memory, start, size):
        """So many numbers to write to: new ones, or of the team's own memory those from `start` on."""
        return np.empty(size, memory.dtype)

    functions = (span, between, mine, meet, total, largest, least, count, any_of, scratch)
    return {f.__name__: decorate(f) for f in functions}


@cache
def toolbox(dtype: np.dtype[Any]) -> Toolbox:
    """The compiled toolbox of `dtype`, made once."""
    return Toolbox(dtype)
