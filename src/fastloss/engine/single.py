"""Running a pointwise kernel of one array: a penalty of weights, a norm, a scaled or clipped gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss.engine import storage
from fastloss.engine.launch import Launch
from fastloss.engine.variant import Variant
from fastloss.kernels.definition import Kernel

_REMEMBERED = 256

_launches: dict[Any, Launch] = {}
"""By the kernel's name, which says it in 1 µs less than the kernel, and by what else decides."""


def run(
    kernel: Kernel,
    array: np.ndarray[Any, Any],
    out: np.ndarray[Any, Any] | None,
    params: tuple[float, ...] = (),
    *,
    dtype: str,
    value_scale: float = 1.0,
    grad_scale: float = 1.0,
    n_threads: int | None = None,
) -> float:
    """The kernel's sum over `array` times `value_scale`; its slopes times `grad_scale` are written to `out`.

    Parameters
    ----------
    kernel : Kernel
        A pointwise one that has no use for targets.
    array : numpy.ndarray
        C-contiguous, aligned, of floats.
    out : numpy.ndarray or None
        Likewise, of the same dtype and size, and writable: `array` itself to overwrite it, other memory, or None if no
        slopes are needed.
    params : tuple of float
        The kernel's.
    dtype : str
        Compute dtype, ``"f4"`` or ``"f8"``.
    value_scale, grad_scale : float
        Factors of the sum and of the slopes.
    n_threads : int or None
        The caller's wish, checked.
    """
    if not array.size:
        return 0.0
    code = storage.code(array.dtype) or ""
    in_place = out is array
    key = (kernel.name, dtype, code, out is None, in_place, array.size, params)
    launch = _launches.get(key)
    if launch is None:
        slopes = code if out is not None else dtype
        variant = Variant(kernel, dtype, code, code, slopes, int(out is not None), in_place=in_place)
        if len(_launches) >= _REMEMBERED:
            _launches.clear()
        launch = _launches[key] = Launch(variant, 1, array.size, params)
    w = storage.view(array.reshape(1, -1), code)
    g = None if out is None or in_place else storage.view(out.reshape(1, -1), code)
    # The array is its own target, which the kernel ignores and the compiler therefore never reads.
    total, _ = launch(w, w, None, None, None, g, None, None, value_scale, grad_scale, n_threads)
    return total
