"""Clipping gradients by value and by norm, with the semantics of the optimizers of Keras.

A norm takes one pass that reads. A second pass scales, only where a norm is too large; what is within bounds is copied,
or, in place, left alone. Squares are summed in float64, and the bits of a norm do not depend on the number of threads.
Where the squares of float64 gradients overflow or underflow, they are summed once more, scaled by a power of two.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np

from fastloss import kernels
from fastloss.engine import single, threads
from fastloss.losses import arrays, options
from fastloss.losses.arrays import Array
from fastloss.structures import check_alike, entry, is_structure, keys, leaves, rebuild

_WRITABLE = 0x501  # NumPy's flags for C-contiguous, aligned and writable memory


def clip_by_value(gradients: Any, clipvalue: float, *, out: Any = None, n_threads: int | None = None) -> Any:
    """Clip every element of gradients to [-clipvalue, clipvalue], as an optimizer's ``clipvalue`` does.

    Parameters
    ----------
    gradients : numpy.ndarray, or list, tuple or dict of them
        Floating arrays of any shapes; None entries stay None.
    clipvalue : float
        The largest absolute value, above 0.
    out : of the form of `gradients`, optional
        Where the results are written, of the same shapes and dtypes. ``out=gradients`` clips in place.
    n_threads : int, optional
        Threads to use; by default as `fastloss.set_num_threads` says, else by the amount of work.

    Returns
    -------
    numpy.ndarray, or list, tuple or dict of them
        New arrays, or `out`.

    Raises
    ------
    TypeError, ValueError
        If a gradient is no floating array, `clipvalue` no positive number, or `out` does not fit.

    Notes
    -----
    NaN stays NaN; infinity becomes ``clipvalue``, with its sign, or the largest number of its dtype if that is smaller.

    References
    ----------
    ``keras.optimizers.Optimizer(clipvalue=...)``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> fastloss.clip_by_value([np.array([0.5, -3.0]), None], 1.0)
    [array([ 0.5, -1. ]), None]
    """
    limit = options.positive("clipvalue", clipvalue)
    clip = _Clip(gradients, out, n_threads)
    for array, target in clip.pairs:
        bound = min(limit, _largest(array.dtype))
        single.run(kernels.clip, array, target, (bound,), dtype=_compute(array), n_threads=clip.n_threads)
    return clip.deliver()


def clip_by_norm(gradients: Any, clipnorm: float, *, out: Any = None, n_threads: int | None = None) -> Any:
    """Scale each gradient whose own Euclidean norm is above `clipnorm` down to it, as ``clipnorm`` does.

    Parameters
    ----------
    gradients : numpy.ndarray, or list, tuple or dict of them
        Floating arrays of any shapes; None entries stay None.
    clipnorm : float
        The largest norm, above 0.
    out, n_threads
        As for `clip_by_value`.

    Returns
    -------
    numpy.ndarray, or list, tuple or dict of them
        New arrays, or `out`.

    Raises
    ------
    TypeError, ValueError
        If a gradient is no floating array, `clipnorm` no positive number, or `out` does not fit.

    Notes
    -----
    A gradient with a NaN becomes NaN everywhere. In one with an infinity the finite elements become 0 and the infinite
    ones NaN. The others do not notice.

    References
    ----------
    ``keras.optimizers.Optimizer(clipnorm=...)``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> fastloss.clip_by_norm({"w": np.array([3.0, 4.0]), "b": np.array([0.5])}, 1.0)
    {'w': array([0.6, 0.8]), 'b': array([0.5])}
    """
    limit = options.positive("clipnorm", clipnorm)
    clip = _Clip(gradients, out, n_threads)
    for array, target in clip.pairs:
        _scale(array, target, _shrink(limit, *_norm([array], clip.n_threads)), clip.n_threads)
    return clip.deliver()


def clip_by_global_norm(
    gradients: Any, clipnorm: float, *, out: Any = None, n_threads: int | None = None
) -> tuple[Any, float]:
    """Scale all gradients alike if their common Euclidean norm is above `clipnorm`, as ``global_clipnorm`` does.

    Parameters
    ----------
    gradients : numpy.ndarray, or list, tuple or dict of them
        Floating arrays of any shapes; None entries stay None.
    clipnorm : float
        The largest norm of all of them together, above 0.
    out, n_threads
        As for `clip_by_value`.

    Returns
    -------
    gradients : numpy.ndarray, or list, tuple or dict of them
        New arrays, or `out`.
    norm : float
        The norm before clipping: the history that `fastloss.diagnose` reads. Beyond 1.8e308 it is infinite.

    Raises
    ------
    TypeError, ValueError
        If a gradient is no floating array, `clipnorm` no positive number, or `out` does not fit.

    Notes
    -----
    If any element is NaN or infinite, so is the norm, and all gradients become NaN, as in Keras: a step that would be
    wrong is not taken half. Gradients of finite elements are clipped to finite ones, whatever their norm.

    References
    ----------
    ``keras.optimizers.Optimizer(global_clipnorm=...)``, ``tf.clip_by_global_norm``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> fastloss.clip_by_global_norm([np.array([3.0]), np.array([4.0])], 1.0)
    ([array([0.6]), array([0.8])], 5.0)
    """
    limit = options.positive("clipnorm", clipnorm)
    clip = _Clip(gradients, out, n_threads)
    size, exponent = _norm([array for array, _ in clip.pairs], clip.n_threads)
    factor = _shrink(limit, size, exponent) if math.isfinite(size) else math.nan
    for array, target in clip.pairs:
        _scale(array, target, factor, clip.n_threads)
    return clip.deliver(), _power(size, exponent)


class _Clip:
    """The arguments of a call, checked, as pairs of contiguous arrays: what is read, and what is written."""

    def __init__(self, gradients: Any, out: Any, n_threads: int | None) -> None:
        self.n_threads = None if n_threads is None else threads.check(n_threads)
        self._gradients, self._out = gradients, out
        self._several = is_structure(gradients)
        if self._several and out is not None:
            check_alike("out", out, gradients, "gradients")
        given = leaves(gradients) if self._several else [gradients]
        outs = [entry(out, key) for key in keys(gradients)] if self._several else [out]
        self._results: list[tuple[Array | None, Array | None]] = []
        self.pairs: list[tuple[Array, Array]] = []
        for k, (gradient, place) in enumerate(zip(given, outs, strict=True)):
            if gradient is None:
                self._results.append((None, None))
                continue
            if not isinstance(gradient, np.ndarray):
                raise TypeError(f"`gradients` must be arrays or None, got {type(gradient).__name__}")
            array = arrays.to_array("gradients", gradient)
            if not arrays.is_float(array):
                raise TypeError(f"`gradients` must be floating arrays, got {array.dtype}")
            if place is gradient and gradient.flags.num & _WRITABLE == _WRITABLE:
                self.pairs.append((array, array))
                self._results.append((array, place))
                continue
            if place is not None:
                arrays.check_out(place, array, array.dtype, {}, "gradients")
                # Of gradients that are their own places, `_check_in_place` sees to it.
                others = [] if place is gradient else [*given[:k], *given[k + 1 :], *outs[:k]]
                if any(other is not None and np.may_share_memory(place, other) for other in others):
                    raise ValueError("`out` must not overlap other gradients, nor itself")
            self._add(array, place)
        if self._several and out is not None:
            _check_in_place([place for place, gradient in zip(outs, given, strict=True) if place is gradient])

    def _add(self, array: Array, place: Array | None) -> None:
        """Arrays that a kernel cannot walk are copied; the result then goes where it belongs in `deliver`."""
        read = arrays.contiguous(array)
        if place is not None and arrays.same_memory(place, read):
            written = read
        elif place is not None and arrays.contiguous(place) is place:
            written = place
        else:
            written = np.empty(read.shape, read.dtype) if read is array else read
        self.pairs.append((read, written))
        self._results.append((written, place))

    def deliver(self) -> Any:
        """The results, in the form of the gradients."""
        found = []
        for written, place in self._results:
            if written is not None and place is not None and not np.may_share_memory(written, place):
                place[...] = written
            found.append(written if place is None else place)
        if not self._several:
            return found[0]
        if self._out is not None:
            return self._out
        values = iter(found)
        return rebuild(self._gradients, lambda _: next(values))


def _check_in_place(places: list[Array | None]) -> None:
    """Refuse memory that would be scaled twice."""
    found = [place for place in places if place is not None]
    again = len({id(array) for array in found}) < len(found)
    if not again and any(array.base is not None for array in found):
        solid = (array for array in found if array.flags.c_contiguous and array.size)
        spans = sorted((array.__array_interface__["data"][0], array.nbytes) for array in solid)
        again = any(start + size > then for (start, size), (then, _) in itertools.pairwise(spans))
    if again:
        raise ValueError("`out` must not overlap other gradients, nor itself")


def _compute(array: Array) -> str:
    return "f8" if array.dtype == np.float64 else "f4"


@functools.cache
def _largest(dtype: Any) -> float:
    """The largest finite number of a dtype."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).max)
    import ml_dtypes  # who has bfloat16 arrays has it

    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def _norm(gradients: list[Array], n_threads: int | None) -> tuple[float, int]:
    """The Euclidean norm of several arrays together: a number, and the exponent of the power of two it is times."""
    total = sum(
        single.run(kernels.half_square, array, None, dtype="f8", value_scale=2.0, n_threads=n_threads)
        for array in gradients
    )
    doubles = any(array.dtype == np.float64 for array in gradients)
    # Squares that underflowed are lost in the rounding of a total from 1e-290 on.
    if not doubles or 1e-290 < total < math.inf:
        return math.sqrt(total), 0
    largest = max((float(np.max(np.abs(array))) for array in gradients if array.size), default=0.0)
    if not 0 < largest < math.inf:
        return math.sqrt(total), 0
    exponent = math.frexp(largest)[1]
    total = sum(float(np.sum(np.square(np.ldexp(array.astype(np.float64), -exponent)))) for array in gradients)
    return math.sqrt(total), exponent


def _power(number: float, exponent: int) -> float:
    """A number times a power of two, infinite where it is too large."""
    try:
        return math.ldexp(number, exponent)
    except OverflowError:
        return math.inf


def _shrink(limit: float, size: float, exponent: int) -> float:
    """What gradients of this norm are to be multiplied by, 1 if they are within the limit."""
    bound = _power(limit, -exponent)
    return 1.0 if size <= bound else _power(limit / size, -exponent)


def _scale(array: Array, target: Array, factor: float, n_threads: int | None) -> None:
    """Write `array` times `factor` to `target`; nothing, if that is where it is."""
    if factor != 1.0:
        # A factor that float32 does not hold to all its digits is one of float64 arithmetic.
        small = 0 < factor < float(np.finfo(np.float32).tiny)
        dtype = "f8" if small else _compute(array)
        single.run(kernels.half_square, array, target, dtype=dtype, grad_scale=factor, n_threads=n_threads)
    elif target is not array:
        target[...] = array
