"""Package-wide settings: the default compute dtype, and what becomes of results that are not finite."""

from __future__ import annotations

import os
import sys
from typing import Any

_FLOATS = ("float16", "bfloat16", "float32", "float64")

_POLICIES = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}
"""Compute dtypes of Keras's policies that are no dtypes themselves."""

_PACKAGE = os.path.dirname(__file__) + os.sep

_floatx: str | None = None

_CHECKS = ("raise", "warn", "ignore")

_check_numerics: str | None = None


def float_name(argument: str, dtype: Any) -> str | None:
    """The name of a floating dtype given as a name, a NumPy dtype or type, or a policy with a ``compute_dtype``."""
    if dtype is None:
        return None
    wanted = getattr(dtype, "compute_dtype", dtype)
    name = wanted if isinstance(wanted, str) else getattr(wanted, "name", None) or getattr(wanted, "__name__", None)
    name = _POLICIES.get(str(name), name)
    if name not in _FLOATS:
        raise TypeError(f"`{argument}` must be one of {', '.join(_FLOATS)}, or None, got {dtype!r}")
    return str(name)


def set_floatx(dtype: Any) -> None:
    """Set the dtype that losses without a ``dtype`` of their own compute in.

    Parameters
    ----------
    dtype : str, numpy.dtype or None
        ``"float32"`` behaves exactly as Keras does by default, ``"float64"``, ``"float16"`` and ``"bfloat16"`` as
        Keras after its own ``set_floatx`` (the halves compute in float32 and give results in half precision). None,
        the default, means the dtype of a floating ``y_pred`` array, and float32 for lists and integers.

    Raises
    ------
    TypeError
        If `dtype` is no floating dtype of these.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.set_floatx("float64")
    >>> fastloss.losses.mean_squared_error([0.0, 1.0], [0.0, 2.0]).dtype
    dtype('float64')
    >>> fastloss.set_floatx(None)
    """
    global _floatx
    _floatx = float_name("dtype", dtype)


def floatx() -> str | None:
    """The dtype set by `set_floatx`, or None."""
    return _floatx


def check_action(argument: str, action: Any) -> str | None:
    """What to do about results that are not finite, or None."""
    if action is not None and (not isinstance(action, str) or action not in _CHECKS):
        raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, _CHECKS))}, or None, got {action!r}")
    return action


def set_check_numerics(action: str | None) -> None:
    """Set what losses without a ``check_numerics`` of their own do when value or gradient is NaN or infinite.

    Parameters
    ----------
    action : {"raise", "warn", "ignore"} or None
        ``"raise"`` raises `NumericsError`, which names the first samples, ``"warn"`` gives a `NumericsWarning` that
        does. ``"ignore"`` or None, the default, returns what was computed.

    Raises
    ------
    ValueError
        If `action` is none of these.

    Notes
    -----
    The arrays of a call that raises have been written: ``out`` holds the gradient that is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> fastloss.set_check_numerics("raise")
    >>> try:
    ...     fastloss.losses.MeanSquaredError()(np.zeros((3, 2)), np.array([[0.0, 1.0], [0.0, np.nan], [1.0, 1.0]]))
    ... except fastloss.NumericsError as error:
    ...     print(error)
    value of mean_squared_error not finite: 1 of 3 samples, first 1; `y_pred` has 1 NaN of 6, first at (1, 1)
    (fastloss.diagnose says more)
    >>> fastloss.set_check_numerics(None)
    """
    global _check_numerics
    _check_numerics = check_action("action", action)


def outside() -> int:
    """The ``stacklevel`` with which a warning of the caller's names the line outside of this package that led to it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


def get_check_numerics() -> str | None:
    """The action set by `set_check_numerics`, or None."""
    return _check_numerics
