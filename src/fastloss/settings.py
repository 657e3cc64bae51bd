"""Package-wide settings: the default compute dtype."""

from __future__ import annotations

from typing import Any

_FLOATS = ("float16", "bfloat16", "float32", "float64")

_POLICIES = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}
"""Compute dtypes of Keras's policies that are no dtypes themselves."""

_floatx: str | None = None


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
