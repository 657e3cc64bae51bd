"""A loss bound to one shape: nothing is looked up, allocated or decided any more."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import numerics, settings
from fastloss.engine import threads
from fastloss.losses import arrays
from fastloss.losses.arrays import Array
from fastloss.losses.plan import GRADIENT

if TYPE_CHECKING:
    from fastloss.losses.base import KernelLoss, Loss

_WALKABLE = 0x101  # NumPy's flags for C-contiguous and aligned memory


class BoundLoss:
    """What `Loss.bind` returns: ``step(y_true, y_pred) -> (value, gradient)`` for arrays of one shape and dtype.

    The gradient is written to a buffer of its own, `gradient`, which the next call overwrites. One thread at a time may
    call it; a second one gets a RuntimeError, not a mixture of two results.

    Parameters
    ----------
    loss : Loss
        Whose value and gradient are computed.
    y_true, y_pred : numpy.ndarray
        Arrays like those to come; their contents do not matter.
    sample_weight : numpy.ndarray or None
        Likewise.
    n_threads : int or None
        Threads to use.

    Attributes
    ----------
    loss : Loss
        The loss.
    gradient : numpy.ndarray
        Where every call writes.
    """

    __slots__ = (
        "_arguments",
        "_busy",
        "_expected",
        "_kernel",
        "_n_threads",
        "_shapes",
        "_telling",
        "_type",
        "gradient",
        "loss",
    )

    def __init__(
        self, loss: Loss, y_true: Array, y_pred: Array, sample_weight: Array | None, n_threads: int | None
    ) -> None:
        self.loss = loss
        self._busy = threading.Lock()
        self._n_threads = None if n_threads is None else threads.check(n_threads)
        self._expected = (y_true.shape, y_true.dtype, y_pred.shape, y_pred.dtype, sample_weight is not None)
        self._kernel: Any = None
        self._arguments: tuple[Any, ...] = ()
        self._shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._type: Any = None
        self._telling = False
        result = arrays.compute_dtypes(loss.dtype, y_pred)[1]
        self.gradient = np.zeros(y_pred.shape, arrays.gradient_dtype(y_pred, y_pred, result))

    def prepare(self, loss: KernelLoss, y_true: Array, y_pred: Array) -> None:
        """Take the short way to the kernel, if arrays like these may go to one thread's kernel as they are."""
        call = loss._resolve(GRADIENT, y_true, y_pred)
        plan = call.plan
        if plan.serves(call.layout, call.y, call.p, None, call.reduction):
            direct = plan.direct(self.gradient, self._n_threads)
            if direct is not None:
                self._kernel, y_shape, p_shape, self._arguments, self._type = direct
                self._shapes = None if (y_true.shape, y_pred.shape) == (y_shape, p_shape) else (y_shape, p_shape)
                self._telling = plan.telling

    def __call__(self, y_true: Array, y_pred: Array, sample_weight: Array | None = None) -> tuple[Any, Array]:
        """Value and gradient.

        Parameters
        ----------
        y_true, y_pred : numpy.ndarray
            Of the bound shapes and dtypes.
        sample_weight : numpy.ndarray, optional
            If the loss was bound with one.

        Returns
        -------
        value : numpy scalar or numpy.ndarray
            As from `Loss.value_and_grad`.
        gradient : numpy.ndarray
            The buffer `gradient`.

        Raises
        ------
        ValueError
            If an array is not as it was bound, or a label no class.
        RuntimeError
            If another thread is inside.
        """
        if not self._busy.acquire(False):
            raise RuntimeError("this bound loss is being used by another thread; bind one for each thread")
        try:
            gradient = self.gradient
            y_shape, y_dtype, shape, dtype, _ = self._expected
            if (
                self._kernel is not None
                and type(y_true) is type(y_pred) is np.ndarray
                and y_pred.shape == shape
                and y_true.shape == y_shape
                and y_pred.dtype is dtype
                and y_true.dtype is y_dtype
                and y_true.flags.num & y_pred.flags.num & _WALKABLE == _WALKABLE
                and sample_weight is None
                # The buffer owns its memory, so it is the base of every view of it.
                and not (y_pred is gradient or y_pred.base is gradient)
                and not (y_true is gradient or y_true.base is gradient)
            ):
                if self._shapes is None:
                    total, bad = self._kernel(y_true, y_pred, *self._arguments)
                else:
                    y, p = y_true.reshape(self._shapes[0]), y_pred.reshape(self._shapes[1])
                    total, bad = self._kernel(y, p, *self._arguments)
                if bad < 0:
                    value, loss = self._type(total), self.loss
                    if loss._check_numerics or settings._check_numerics:
                        if not (self._telling and math.isfinite(value)):
                            numerics.check(loss, (value, gradient, None), y_true, y_pred)
                    return value, gradient
            self._check(y_true, y_pred, sample_weight)
            return self.loss.value_and_grad(y_true, y_pred, sample_weight, out=gradient, n_threads=self._n_threads)
        finally:
            self._busy.release()

    def _check(self, y_true: Any, y_pred: Any, sample_weight: Any) -> None:
        """Refuse what was not bound."""
        y_shape, y_dtype, shape, dtype, weighted = self._expected
        for name, array, expected, kind in (("y_true", y_true, y_shape, y_dtype), ("y_pred", y_pred, shape, dtype)):
            if not isinstance(array, np.ndarray):
                raise TypeError(f"`{name}` must be a numpy.ndarray, as it was bound, got {type(array).__name__}")
            if array.shape != expected or array.dtype != kind:
                raise ValueError(
                    f"`{name}` must be of shape {expected} and dtype {kind}, as it was bound, "
                    f"got shape {array.shape} and dtype {array.dtype}"
                )
        if (sample_weight is not None) != weighted:
            raise ValueError(
                "`sample_weight` must be given, as it was bound" if weighted else "`sample_weight` was not bound"
            )
