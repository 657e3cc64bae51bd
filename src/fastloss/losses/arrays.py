"""From whatever a user passes to arrays a kernel can take."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from fastloss.engine import storage
from fastloss.settings import floatx

Array = np.ndarray[Any, np.dtype[Any]]


def is_array(value: Any) -> bool:
    """Whether `value` brings a dtype of its own, as lists and Python numbers do not."""
    return hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def on_cuda(value: Any) -> bool:
    """Whether `value` is an array on a CUDA device; asks the array alone, and imports nothing."""
    kind = type(value)
    if kind is np.ndarray or kind in (list, tuple, float, int):
        return False
    if getattr(kind, "__cuda_ndarray__", False):  # Numba's, and those of its simulator
        return True
    if hasattr(kind, "__dlpack_device__"):
        # Before the other question, which PyTorch answers with an error for tensors that want a gradient.
        return int(value.__dlpack_device__()[0]) in _CUDA_DEVICES
    return hasattr(value, "__cuda_array_interface__")


_CUDA_DEVICES = (2, 13)
"""DLPack's numbers for memory of a CUDA device, and for managed memory."""


def to_array(argument: str, value: Any, default: np.dtype[Any] | None = None) -> Array:
    """`value` as an array whose dtype a kernel can read, without a copy where that is possible.

    Parameters
    ----------
    argument : str
        Its name in error messages.
    value : array_like
        An array of any library that speaks ``__array__`` or DLPack, a list, a number.
    default : numpy.dtype, optional
        The dtype of what brings none of its own; by default NumPy's choice.

    Raises
    ------
    TypeError
        If it is a masked array or a sparse matrix, or its elements are not real numbers.
    """
    if value is None:
        raise TypeError(f"`{argument}` must be an array or what becomes one, got None")
    if isinstance(value, np.ma.MaskedArray):
        further = ", and the valid samples as `mask=`" if argument in ("y_true", "y_pred", "sample_weight") else ""
        raise TypeError(
            f"`{argument}` is a numpy.ma.MaskedArray, whose mask would be lost: pass `{argument}.data`{further}"
        )
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(f"`{argument}` is a sparse matrix; pass a dense array: `{argument}.toarray()`")
    if on_cuda(value):
        raise TypeError(f"`{argument}` is on a CUDA device; so must be `y_pred` and `y_true`, or copy it to the host")
    if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
        dtype = None if is_array(value) else default
        try:
            array = np.asarray(value, dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"`{argument}` cannot be read as an array of numbers: {error}") from error
    else:
        array = np.from_dlpack(value)
    array = array.view(np.ndarray)
    if storage.code(array.dtype) is None and not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if storage.code(array.dtype) is None:
        raise TypeError(
            f"`{argument}` must hold real numbers (booleans, integers or floats of at most 64 bits), got {array.dtype}"
        )
    return array


def mask_of(mask: Any, y_pred: Any) -> Array | None:
    """A mask as an array of booleans; it may come as an attribute of the predictions, as Keras passes it on."""
    if mask is None:
        mask = getattr(y_pred, "_keras_mask", None)
    if mask is None:
        return None
    valid = to_array("mask", mask)
    if valid.dtype.kind not in "bui":
        raise TypeError(f"`mask` must be boolean, got {valid.dtype}; pass weights as `sample_weight`")
    return valid.astype(bool, copy=False)


def compute_dtypes(own: str | None, y_pred: Any) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Compute dtype and result dtype of a call.

    Parameters
    ----------
    own : str or None
        The loss's ``dtype``.
    y_pred : array_like
        Decides where neither the loss nor `fastloss.set_floatx` does.

    Returns
    -------
    compute : numpy.dtype
        float32 or float64: half precision is computed in float32.
    result : numpy.dtype
        The dtype of the loss's value.
    """
    name = own or floatx()
    if name is None:
        dtype = None
        if is_array(y_pred):
            dtype = y_pred.dtype if hasattr(y_pred, "dtype") else to_array("y_pred", y_pred).dtype
        kind = np.dtype(dtype).name if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]
        name = "float64" if kind == "float64" else "float32"
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
    return np.dtype(np.float64 if name == "float64" else np.float32), np.dtype(name)


def is_float(array: Array) -> bool:
    """Whether an array holds floats, NumPy's own or bfloat16."""
    return array.dtype.kind == "f" or storage.code(array.dtype) in storage.HALVES.values()


def gradient_dtype(y_pred: Any, p: Array, result: np.dtype[Any]) -> np.dtype[Any]:
    """The gradient's dtype: the predictions' own if they are an array of floats, else that of the value."""
    return p.dtype if is_array(y_pred) and is_float(p) else result


def zeros(shape_argument: str, shape: Any, dtype_argument: str, dtype: Any) -> Array:
    """An array of zeros of a user's shape and dtype, with errors that name these arguments."""
    try:
        kind = np.dtype(dtype) if dtype is not None else None
    except TypeError:
        kind = None
    if kind is None or storage.code(kind.newbyteorder("=")) is None:
        raise TypeError(f"`{dtype_argument}` must be a dtype of real numbers, got {dtype!r}")
    try:
        sizes = tuple(operator.index(n) for n in (shape if isinstance(shape, (tuple, list)) else (shape,)))
        return np.zeros(sizes, kind)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{shape_argument}` must be an integer or a tuple of them, got {shape!r}") from None


def contiguous(array: Array) -> Array:
    """The array itself if a kernel can walk it (C order, aligned), else a copy."""
    return array if array.flags.c_contiguous and array.flags.aligned else array.copy(order="C")


def same_memory(a: Array, b: Array) -> bool:
    """Whether two contiguous arrays are the same memory, read as the same dtype."""
    return a.dtype == b.dtype and a.size == b.size and a.flags.c_contiguous and a.ctypes.data == b.ctypes.data


def check_out(
    out: Any, p: Array, dtype: np.dtype[Any], others: dict[str, Array | None], argument: str = "y_pred"
) -> None:
    """Refuse an `out` that cannot take the gradient of `p`, the `argument`, or would destroy an input on the way."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"`out` must be a numpy.ndarray, got {type(out).__name__}")
    if out.shape != p.shape:
        raise ValueError(f"`out` must have the shape of `{argument}`, {p.shape}, got shape {out.shape}")
    if out.dtype != dtype:
        raise ValueError(f"`out` must have the gradient's dtype, {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("`out` must be writable, got a read-only array")
    if any(stride == 0 and n > 1 for stride, n in zip(out.strides, out.shape, strict=True)) and out.size:
        raise ValueError(f"`out` must not overlap itself, got strides {out.strides}")
    itself = out.strides == p.strides and out.ctypes.data == p.ctypes.data
    if not itself and np.may_share_memory(out, p):
        raise ValueError(f"`out` must not overlap `{argument}`, unless it is `{argument}` itself")
    for name, other in others.items():
        if other is not None and np.may_share_memory(out, other):
            raise ValueError(f"`out` must not overlap `{name}`")


def match_ranks(x: Array, y: Array) -> tuple[Array, Array]:
    """Bring two arrays whose ranks differ by one to the same rank, as Keras does.

    If the last dimension of the larger is 1, the smaller gets one too where it has rank 1, else the larger loses it.
    """
    x_shape, y_shape = match_shapes(x.shape, y.shape)
    return x if x.shape == x_shape else x.reshape(x_shape), y if y.shape == y_shape else y.reshape(y_shape)


def match_shapes(x: tuple[int, ...], y: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes that `match_ranks` gives arrays of these shapes."""
    if len(x) == len(y) + 1 and x[-1] == 1:
        return (x, (*y, 1)) if len(y) == 1 else (x[:-1], y)
    if len(y) == len(x) + 1 and y[-1] == 1:
        return ((*x, 1), y) if len(x) == 1 else (x, y[:-1])
    return x, y


def squeeze_or_expand_to_same_rank(x1: Any, x2: Any, expand_rank_1: bool = True) -> tuple[Array, Array]:
    """Squeeze or expand the last dimension of one array where the ranks differ by exactly one.

    Parameters
    ----------
    x1, x2 : array_like
        Any shapes. Where the larger one's last dimension is 1, the smaller is expanded if it has rank 1, else the
        larger is squeezed.
    expand_rank_1 : bool, default=True
        Whether arrays of rank 1 may be expanded; if not, the larger is squeezed then too.

    Returns
    -------
    x1, x2 : numpy.ndarray
        Views of the inputs; unchanged where the rule does not apply.

    References
    ----------
    ``keras.src.losses.loss.squeeze_or_expand_to_same_rank``.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = squeeze_or_expand_to_same_rank(np.zeros(3), np.zeros((3, 1)))
    >>> a.shape, b.shape
    ((3, 1), (3, 1))
    """
    a, b = np.asarray(x1), np.asarray(x2)
    if expand_rank_1:
        return match_ranks(a, b)
    if a.ndim == b.ndim + 1 and a.shape[-1] == 1:
        return a[..., 0], b
    if b.ndim == a.ndim + 1 and b.shape[-1] == 1:
        return a, b[..., 0]
    return a, b
