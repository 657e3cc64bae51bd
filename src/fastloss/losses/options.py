"""Checks of the losses' constructor arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np


def number(name: str, value: Any) -> float:
    """A finite real number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    try:
        result = float(value)
    except OverflowError:  # an integer
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"`{name}` must be finite, got {result}")
    return result


def non_negative(name: str, value: Any) -> float:
    """A number that is 0 or more."""
    result = number(name, value)
    if result < 0:
        raise ValueError(f"`{name}` must not be negative, got {value}")
    return result


def positive(name: str, value: Any) -> float:
    """A number above 0."""
    result = number(name, value)
    if result <= 0:
        raise ValueError(f"`{name}` must be positive, got {value}")
    return result


def optional_number(name: str, value: Any) -> float | None:
    """A finite real number or None."""
    return None if value is None else number(name, value)


def interior(name: str, value: Any) -> float:
    """A number in (0, 1)."""
    result = number(name, value)
    if not 0 < result < 1:
        raise ValueError(f"{name} must be in the interval (0, 1), got {value}")
    return result


def fractions(name: str, value: Any) -> float | tuple[float, ...]:
    """A number in [0, 1], or a vector of them."""
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        if np.ndim(value) != 1 or not len(value):
            raise ValueError(f"`{name}` must be a number or a vector, got shape {np.shape(value)}")
        return tuple(fraction(name, item) for item in value)
    return fraction(name, value)


def fraction(name: str, value: Any) -> float:
    """A number in [0, 1]."""
    result = number(name, value)
    if not 0 <= result <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value}")
    return result


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {value!r}")
    return bool(value)


def true(name: str, value: Any) -> bool:
    """True, for lack of an alternative."""
    if not flag(name, value):
        raise ValueError(f"`{name}` must be True, got False")
    return True


def choice(*known: str) -> Callable[[str, Any], str]:
    """One of these words."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}")
        return value

    return check


def integer(name: str, value: Any) -> int:
    """An integer."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, got {value!r}") from None


def index(name: str, value: Any) -> int:
    """An integer that is 0 or more."""
    result = integer(name, value)
    if result < 0:
        raise ValueError(f"`{name}` must not be negative, got {value}")
    return result


def optional_integer(name: str, value: Any) -> int | None:
    """An integer or None."""
    return None if value is None else integer(name, value)


def axes(name: str, value: Any) -> int | tuple[int, ...] | None:
    """An axis, several, or None for all."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        return tuple(integer(name, axis) for axis in value)
    return integer(name, value)
