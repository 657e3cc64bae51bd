"""Losses as functions that nopython code calls: the compiled drivers, without Python's side of a call."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss.engine import storage
from fastloss.engine.compile import inner
from fastloss.engine.variant import FLAT_COLUMNS, SHORT_ROW, UNIT_ELEMENTS, Variant
from fastloss.losses.base import KernelLoss
from fastloss.losses.identifiers import find


def kernel(loss: Any, dtype: Any = "float32", **options: Any) -> Any:
    """Make a function of a loss that code compiled by Numba can call: value and gradient, with no Python in between.

    Parameters
    ----------
    loss : str or Loss
        The identifier of a pointwise or rowwise loss (``"huber"``, ``"binary_crossentropy"``, ...), the name of its
        class, or a loss: also one of `fastloss.losses.from_function` and `fastloss.losses.from_kernel`.
    dtype : {"float32", "float64"}
        The dtype that is computed in.
    **options
        The loss's own, such as ``delta=2.0`` or ``from_logits=True``, and ``reduction``. Only where `loss` is a name.

    Returns
    -------
    callable
        An ``@njit`` function ``(y_true, y_pred, weight, grad) -> value``:

        * ``y_pred``: floats of shape (samples, elements). Of shape (samples,) for a pointwise loss, samples of one
          element each.
        * ``y_true``: real numbers of the same shape, or integers of shape (samples,) where targets are class indices.
        * ``weight``: one number a sample, in `dtype`, or None.
        * ``grad``: where the gradient is written, C-contiguous and of ``y_pred``'s shape; it must not overlap the other
          arrays. None computes the value alone.
        * ``value``: float64. The weighted sum of the samples' losses, divided by the number of samples unless the
          reduction is ``"sum"``, or by the sum of the weights if it is ``"mean_with_sample_weight"``. The gradient is
          that of this value. Of no samples the value is 0.

    Raises
    ------
    TypeError
        If `loss` is neither pointwise nor rowwise, an option is none of the loss's, or `dtype` is neither of the two.
    ValueError
        If there is no such loss, or an option has a value that it cannot have. When the function runs, if shapes do not
        fit or a label is no class; nothing has been written then.

    Notes
    -----
    Arguments are not broadcast, and their types decide what is compiled: one kernel for each combination of dtypes, and
    of what is None. ``y_true``, ``y_pred`` and ``weight`` that are not C-contiguous are copied in every call. It runs on
    the thread that calls it, and may be called from several.

    Kernels come from the cache on disk, or are compiled and put there. The function that calls them is compiled by Numba
    as usual; with ``@njit(cache=True)`` it holds a copy of the kernel, which an update of the package does not replace.

    Examples
    --------
    >>> import numba
    >>> import numpy as np
    >>> import fastloss
    >>> huber = fastloss.kernel("huber", dtype="float64", delta=2.0)
    >>> @numba.njit
    ... def fit_line(x, y, rate, steps):
    ...     a = b = 0.0
    ...     grad = np.empty_like(y)
    ...     for _ in range(steps):
    ...         value = huber(y, a * x + b, None, grad)
    ...         a -= rate * (grad * x).sum()
    ...         b -= rate * grad.sum()
    ...     return a, b, value
    >>> x = np.linspace(-1.0, 1.0, 50)
    >>> a, b, value = fit_line(x, 3.0 * x - 1.0, 0.5, 200)
    >>> print(f"{a:.4f} {b:.4f} {value:.4f}")
    3.0000 -1.0000 0.0000
    """
    name = np.dtype(dtype).name
    if name not in ("float32", "float64"):
        raise TypeError(f"`dtype` must be float32 or float64, got {dtype!r}")
    return _function(_Form(_loss(loss, options), np.dtype(name)))


def _loss(loss: Any, options: dict[str, Any]) -> KernelLoss:
    if isinstance(loss, str):
        from fastloss.registry import LOSSES

        found = find(loss)
        cls = next((row.cls for row in LOSSES.values() if row.function is found), found)
        loss = cls(**options) if isinstance(cls, type) else cls
    elif options:
        raise TypeError(f"options are for losses given by name, got {', '.join(options)}")
    if not isinstance(loss, KernelLoss):
        raise TypeError(f"`loss` must be a pointwise or rowwise loss or the name of one, got {loss!r}")
    return loss


class _Form:
    """What the function of a loss needs to know of it.

    Parameters
    ----------
    loss : KernelLoss
        The loss.
    dtype : numpy.dtype
        Compute dtype.
    """

    def __init__(self, loss: KernelLoss, dtype: np.dtype[Any]) -> None:
        options = loss.get_config()
        axis = options.get("axis", -1)
        if axis not in (-1, 1, (-1,), (1,), None):
            raise TypeError(f"`axis` must be the last one, or None for all: samples are rows; got {axis!r}")
        if loss.reduction in ("none", None):
            raise TypeError("`reduction` must not be 'none': the function returns one number")
        self.dtype = dtype
        self.kernel = loss._kernel()
        self.pointwise = self.kernel.shape == "pointwise"
        try:
            params = loss._params(1)
        except ValueError as error:
            raise TypeError(f"parameters must be numbers here, not vectors: {error}") from None
        self.smooth = not self.pointwise and params[0] > 0
        self.params = (*params, 0.0)
        self.whole = axis is None
        self.index = loss.class_indices
        self.mean = loss.per_sample == "mean"
        self.reduction = loss.reduction
        self.ignored = options.get("ignore_class")

    def variant(self, y: str, p: str, g: str | None, *, weighted: bool, short: bool) -> Variant:
        """The compiled form for arrays of these storage codes."""
        compute = self.dtype.str[1:]
        return Variant(
            self.kernel,
            compute,
            y,
            p,
            g or compute,
            0 if g is None else 1,
            weighted=weighted,
            masked=self.ignored is not None,
            index=self.index,
            smooth=self.smooth,
            short=short,
        )


def _function(form: _Form) -> Any:
    """The function that `kernel` returns."""
    import numba
    from numba import extending

    def kernel(y_true, y_pred, weight, grad):
        """Stands for what `choose` gives."""

    @extending.overload(kernel)
    def choose(y_true, y_pred, weight, grad):
        return _implementation(form, y_true, y_pred, weight, grad)

    @numba.njit(nogil=True)
    def call(y_true, y_pred, weight, grad):
        return kernel(y_true, y_pred, weight, grad)

    call.__name__ = form.kernel.name
    call.__doc__ = "Value of the loss; its gradient is written to `grad`. See `fastloss.kernel`."
    return call


def _implementation(form: _Form, y_true: Any, y_pred: Any, weight: Any, grad: Any) -> Any:
    """What is compiled for arguments of these types of Numba's."""
    WEIGHTED = _is_array("weight", weight, (1,), None)
    GRADIENT = _is_array("grad", grad, (y_pred.ndim,) if hasattr(y_pred, "ndim") else (1, 2), None)
    ranks = (1, 2) if form.pointwise or form.whole else (2,)
    if not _is_array("y_pred", y_pred, ranks, "f") or not _is_array(
        "y_true", y_true, (1,) if form.index else (y_pred.ndim,), None
    ):
        raise _type_error("`y_true` and `y_pred` must be arrays, got None")
    if GRADIENT and (grad.layout != "C" or not grad.mutable or _kind(grad) != "f"):
        raise _type_error(f"`grad` must be a writable C-contiguous array of floats, got {grad}")
    y_code, p_code = storage.CODES[_name(y_true)], storage.CODES[_name(y_pred)]
    g_code = storage.CODES[_name(grad)] if GRADIENT else None

    MASKED, INDEX, WHOLE = form.ignored is not None, form.index, form.whole
    FLAT = form.pointwise and not WEIGHTED and not MASKED
    rows_driver = inner(form.variant(y_code, p_code, g_code, weighted=WEIGHTED, short=False))
    short_driver = rows_driver
    if form.pointwise and not FLAT:
        short_driver = inner(form.variant(y_code, p_code, g_code, weighted=WEIGHTED, short=True))
    MEAN, BY_WEIGHT, SUM = form.mean, form.reduction == "mean_with_sample_weight", form.reduction == "sum"
    ROWWISE, VIEWED = not form.pointwise, storage.is_viewed(y_code)
    compute, ignored, constants = form.dtype.type, form.ignored, tuple(form.dtype.type(x) for x in form.params)

    def run(y_true, y_pred, weight, grad):
        p = np.ascontiguousarray(y_pred)
        y = np.ascontiguousarray(y_true)
        if VIEWED:
            y = y.view(np.uint8)
        rows = 1 if WHOLE else y_pred.shape[0]
        columns = p.size // rows if rows > 0 else 1
        if INDEX:
            if y.size != rows:
                raise ValueError("`y_true` must have one class index a sample")
            labels = y
        else:
            if y_true.shape != y_pred.shape:
                raise ValueError("`y_true` must have the shape of `y_pred`")
            labels = y.reshape((rows, columns))
        g = None
        if GRADIENT:
            if grad.shape != y_pred.shape:
                raise ValueError("`grad` must have the shape of `y_pred`")
            if grad.ctypes.data == y_pred.ctypes.data and p.size > 0:
                raise ValueError("`grad` must not be `y_pred`")
            g = grad.reshape((rows, columns))
        w = None
        if WEIGHTED:
            if weight.size != rows:
                raise ValueError("`weight` must have one number a sample")
            w = np.ascontiguousarray(weight).astype(compute)
        if p.size == 0:
            return np.nan if MEAN and rows > 0 else 0.0
        counted = float(rows)
        mask = None
        if MASKED:
            mask = (y != ignored).view(np.uint8)
            counted = float(mask.sum())
        if BY_WEIGHT:
            if WEIGHTED:
                counted = 0.0
                for i in range(rows):
                    if MASKED:
                        if mask[i] == 0:
                            continue
                    counted += w[i]
        if SUM:
            counted = 1.0
        if counted == 0.0:
            if GRADIENT:
                g[:] = 0
            return 0.0
        scale = 1.0 / counted
        if MEAN:
            scale /= columns
        params = np.array(constants)
        if ROWWISE:
            params[0] /= compute(columns)
        length = FLAT_COLUMNS if FLAT else columns
        per_unit = max(1, UNIT_ELEMENTS // length)
        matrix = p.reshape((rows, columns))
        if columns <= SHORT_ROW:
            value, bad = short_driver(
                labels, matrix, w, w, mask, g, None, None, params, length, per_unit, scale, scale
            )
        else:
            value, bad = rows_driver(labels, matrix, w, w, mask, g, None, None, params, length, per_unit, scale, scale)
        if bad >= 0:
            raise ValueError("`y_true` must hold class indices, integers from 0 to the number of classes less 1")
        return value

    return run


def _is_array(name: str, kind: Any, ranks: tuple[int, ...], wanted: str | None) -> bool:
    """Whether an argument is an array rather than None; an error if it is another thing, or an array that is no use."""
    from numba import types

    if isinstance(kind, (types.NoneType, types.Omitted)):
        return False
    if not isinstance(kind, types.Array) or kind.ndim not in ranks:
        raise _type_error(f"`{name}` must be an array of rank {' or '.join(map(str, ranks))}, got {kind}")
    if _name(kind) not in storage.CODES or (wanted and _kind(kind) != wanted) or not kind.aligned:
        raise _type_error(f"`{name}` must hold {'floats' if wanted else 'real numbers'}, got {kind}")
    return True


def _name(array: Any) -> str:
    """The name of the NumPy dtype of Numba's type of an array."""
    name = str(array.dtype)
    return {"float16": "float16 of Numba", "boolean": "bool"}.get(name, name)


def _kind(array: Any) -> str:
    return np.dtype(_name(array)).kind


def _type_error(message: str) -> Exception:
    from numba.core.errors import TypingError

    error: Exception = TypingError(message)
    return error
