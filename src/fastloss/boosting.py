"""Losses as objectives of gradient boosting, for XGBoost and LightGBM (the extra ``boosting``)."""

from __future__ import annotations

import copy
import inspect
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastloss import adapters, kernels
from fastloss.engine.launch import Launch
from fastloss.kernels.definition import Kernel
from fastloss.kernels.newton import newton
from fastloss.losses import arrays, identifiers, layout, regression
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Loss, RowLoss
from fastloss.losses.options import positive
from fastloss.losses.plan import HESSIAN
from fastloss.registry import OF_ROWS, domain

__all__ = ["Objective", "lightgbm_objective", "xgboost_objective"]

_HALVED = (regression.MeanSquaredError, regression.MeanSquaredLogarithmicError)
"""Of these the libraries' own objectives are one half."""

_OF_CLASSES = ("sign", "pairs", "probability", "distribution", "scores", "unit")
"""Domains of the registry in which one label a sample, beside several predictions, is the number of a class."""

_SOFTMAX = newton(kernels.categorical_crossentropy_logits)

_RARE = 1e-15
"""The least share of a class that a base score goes by, as in LightGBM."""


class _Memory:
    """Makes large arrays of the memory of earlier ones that nobody holds any more.

    A round's gradient and Hessian are gone when the next round asks for them. Memory that is new to the process has to
    be mapped, page by page: of 20 MB that takes longer than the objective.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lent: list[tuple[Array, Callable[[], Array | None]]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """As NumPy's."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _LARGE:
            return np.empty(shape, dtype)
        with self._lock:
            free = [memory for memory, lent in self._lent if lent() is None]
            memory = next((m for m in free if m.nbytes == size), None)
            if memory is None:
                memory = np.empty(size, np.uint8)
            # The base of every view of an array that was made of a buffer, not of an array, is that array: it lives for
            # as long as any of them does.
            array: Array = np.frombuffer(memory.data, dtype)
            others = [entry for entry in self._lent if entry[0] is not memory]
            self._lent = [*others[1 - _KEPT :], (memory, weakref.ref(array))]
        return array.reshape(shape)

    def __reduce__(self) -> tuple[type[_Memory], tuple[()]]:
        return _Memory, ()


_LARGE = 1 << 20
_KEPT = 3
"""Gradient, Hessian, and weights in the dtype of the arithmetic."""


class _Newton(RowLoss):
    """Slope and curvature of a loss's elements as trees need them; it has no value."""

    finite_slopes = False  # the value, always 0, tells nothing

    def __init__(self, loss: KernelLoss, scales: tuple[float, float, float, float], memory: _Memory) -> None:
        super().__init__("newton", "sum", loss.dtype)
        self._empty = memory.empty
        self._loss, self._scales = loss, scales
        self.check_numerics = loss.check_numerics

    @property
    def class_indices(self) -> bool:  # type: ignore[override]
        return self._loss.class_indices

    def _kernel(self) -> Kernel:
        return newton(self._loss._kernel())

    def _params(self, elements: int) -> tuple[float, ...]:
        return *self._loss._params(elements), *self._scales

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return self._loss._layout(y, p, samples=samples, flat=flat)

    def column_major(
        self, y: Array, p: Array, weight: Array | None, n_threads: int | None
    ) -> tuple[Array, Array] | None:
        """Gradient and Hessian of predictions that lie column by column, laid out as they are; None if that cannot be.

        LightGBM has them so. To turn them, and what is found back, would take longer than all the rest.
        """
        call = self._resolve(HESSIAN, y, p, weight)
        plan = call.plan
        moved = call.layout.order is not None or plan._codes is not None  # another class axis, or half precision
        if plan.launch.variant.kernel is not _SOFTMAX or moved or not p.size:
            return None
        rows, columns = p.shape
        launch = Launch(replace(plan.launch.variant, turned=True), rows, columns, plan.launch.params[:-1])
        g, h = (self._empty(p.shape[::-1], plan.gradient) for _ in range(2))
        weights, mask = call.reduction.weights, call.reduction.mask
        y = arrays.contiguous(call.layout.y)
        _, bad = launch(y, p.T, weights, weights, mask, g, h, None, 0.0, plan._grad_scale, n_threads)
        if bad >= 0:
            raise plan._bad_label(y, bad)
        return g.T, h.T

    def _gradient_dtype(self, y_pred: Any, p: Array, result: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.float32)


class Objective:
    """A loss as the objective of a booster; `xgboost_objective` and `lightgbm_objective` make it.

    Called as the native interfaces do, with predictions and a ``DMatrix`` or ``Dataset``, or as those of scikit-learn
    do, with targets, predictions and weights, it returns gradient and diagonal Hessian, float32 and of the predictions'
    shape. It can be pickled and copied if its loss can.

    Attributes
    ----------
    loss : Loss
        The loss.
    hessian_floor, flat_hessian, scale : float
        As given, or as chosen.
    n_threads : int or None
        As given.
    """

    def __init__(
        self,
        library: str,
        loss: Loss,
        hessian_floor: float,
        flat_hessian: float,
        scale: float | None,
        n_threads: int | None,
    ) -> None:
        self.loss = loss
        self.hessian_floor = positive("hessian_floor", hessian_floor)
        self.flat_hessian = positive("flat_hessian", flat_hessian)
        self.scale = (0.5 if isinstance(loss, _HALVED) else 1.0) if scale is None else positive("scale", scale)
        self.n_threads = n_threads
        self._library = library
        self._by_outputs: dict[int, _Newton] = {}
        self._memory = _Memory()
        self._sum = copy.copy(loss)
        self._sum._reduction = "sum"

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        """Compute gradient and Hessian.

        Parameters
        ----------
        y_true, y_pred : array_like
            Targets and predictions; or predictions and a ``DMatrix`` or ``Dataset``.
        sample_weight : array_like, shape (samples,), optional
            Weights; those of a ``DMatrix`` or ``Dataset`` are found there.

        Returns
        -------
        gradient, hessian : numpy.ndarray
            Of the sum of the weighted losses, float32 and in the shape of the predictions.

        Raises
        ------
        ValueError
            If shapes do not fit, or a label is no class.
        """
        if hasattr(y_pred, "get_label"):
            y_true, y_pred, sample_weight = y_pred.get_label(), y_true, y_pred.get_weight()
        p = arrays.to_array("y_pred", y_pred)
        if p.ndim not in (1, 2):
            raise ValueError(f"`y_pred` must have shape (samples,) or (samples, outputs), got shape {p.shape}")
        matrix = p[:, None] if p.ndim == 1 else p
        y = self._targets(arrays.to_array("y_true", y_true), *matrix.shape)
        weight = None
        if sample_weight is not None and np.size(sample_weight):
            weight = arrays.to_array("sample_weight", sample_weight)
            if weight.shape != p.shape[:1]:
                raise ValueError(f"`sample_weight` must have shape {p.shape[:1]}, one a sample, got {weight.shape}")
            weight = weight[:, None]
        if isinstance(self.loss, KernelLoss) and self.loss.has_hessian:
            loss = self._newton(matrix.shape[1])
            compute = arrays.compute_dtypes(loss.dtype, matrix)[0]
            if weight is not None and weight.dtype != compute:
                converted = self._memory.empty(weight.shape, compute)
                np.copyto(converted, weight)
                weight = converted
            found = None
            if matrix.flags.f_contiguous and not matrix.flags.c_contiguous:
                found = loss.column_major(y, matrix, weight, self.n_threads)
            gradient, hessian = found or loss.value_grad_hess(y, matrix, weight, n_threads=self.n_threads)[1:]
        else:
            upstream = None if self.scale == 1 else self.scale
            _, slope = self._sum.value_and_grad(y, matrix, weight, upstream=upstream, n_threads=self.n_threads)
            gradient = np.asarray(slope, np.float32)
            hessian = np.full(matrix.shape, max(self.flat_hessian, self.hessian_floor), np.float32)
            if weight is not None:
                hessian *= weight
        return gradient.reshape(p.shape), hessian.reshape(p.shape)

    def base_score(self, y_true: Any, sample_weight: Any = None, *, outputs: int | None = None) -> float | Array:
        """The constant prediction with the least loss, where boosting had best begin.

        Parameters
        ----------
        y_true : array_like
            Targets, as for training.
        sample_weight : array_like, shape (samples,), optional
            Weights.
        outputs : int, optional
            How many predictions a sample has, if `y_true` does not tell: by default its second dimension, or one more
            than the largest class, or 1.

        Returns
        -------
        float or numpy.ndarray of shape (outputs,)
            In the unit of the raw predictions. Where the loss only nears its least value (all labels are of one class)
            it is finite all the same: a class counts with a share of 1e-15 at least.

        Raises
        ------
        NotImplementedError
            If the loss is neither one of single elements nor a softmax cross-entropy of logits.
        ValueError
            If there are no targets.
        """
        y = arrays.to_array("y_true", y_true)
        if y.size == 0:
            raise ValueError("`y_true` must have at least one sample, got none")
        weight = np.ones(y.shape[0]) if sample_weight is None else arrays.to_array("sample_weight", sample_weight)
        if weight.shape != y.shape[:1]:
            raise ValueError(f"`sample_weight` must have shape {y.shape[:1]}, one a sample, got {weight.shape}")
        if outputs is None:
            classes = isinstance(self.loss, KernelLoss) and self.loss.class_indices
            outputs = y.shape[1] if y.ndim == 2 else int(y.max()) + 1 if classes else 1
        if y.ndim == 1:  # of each target that occurs, once
            y, place = np.unique(y, return_inverse=True)
            weight = np.bincount(place, weight, minlength=y.size)
        targets = self._targets(y, y.shape[0], outputs)
        kernel = self.loss._kernel() if isinstance(self.loss, KernelLoss) else None
        if kernel is not None and kernel.shape == "pointwise":
            found = self._bisect(targets, weight, outputs)
        elif kernel is kernels.categorical_crossentropy_logits:
            # The gradient of the sum, at logits that are all equal, is classes' equal share less their own.
            _, slope = self._sum.value_and_grad(targets, np.zeros((y.shape[0], outputs)), weight[:, None])
            found = np.log(np.maximum(1 / outputs - slope.sum(axis=0) / weight.sum(), _RARE))
            if self._library == "xgboost":  # any constant may be added; it has them sum to 0
                found -= found.mean()
        else:
            raise NotImplementedError(f"{type(self.loss).__name__} has no base score; pass one of your own")
        return found if outputs > 1 else float(found[0])

    def _bisect(self, y: Array, weight: Array, outputs: int) -> Array:
        """Where the slope of each output's loss changes sign."""
        least = _RARE * float(weight.sum())

        def slope(at: Array) -> Array:
            p = np.broadcast_to(at, (y.shape[0], outputs)).copy()
            gradient = self._sum.value_and_grad(y, p, weight[:, None])[1].sum(axis=0)
            return np.where(np.abs(gradient) > least, gradient, 0.0)

        low, high = np.full(outputs, float(y.min())), np.full(outputs, float(y.max()))
        step = np.maximum(high - low, 1.0)
        for _ in range(60):
            too_high, too_low = slope(low) > 0, slope(high) < 0
            if not (too_high | too_low).any():
                break
            low, high = np.where(too_high, low - step, low), np.where(too_low, high + step, high)
            step *= 2
        for _ in range(100):
            middle = (low + high) / 2
            if ((middle == low) | (middle == high)).all():
                break
            falls = slope(middle) < 0
            low, high = np.where(falls, middle, low), np.where(falls, high, middle)
        return high

    def _newton(self, outputs: int) -> _Newton:
        """The kernel's loss for so many outputs: LightGBM's factor of the Hessian depends on their number."""
        found = self._by_outputs.get(outputs)
        if found is None:
            assert isinstance(self.loss, KernelLoss)
            factor = 1.0
            if self.loss._kernel() is kernels.categorical_crossentropy_logits:
                factor = 2.0 if self._library == "xgboost" else outputs / max(1, outputs - 1)
            scales = (self.scale, self.scale * factor, self.flat_hessian, self.hessian_floor)
            found = self._by_outputs[outputs] = _Newton(self.loss, scales, self._memory)
        return found

    def _targets(self, y: Array, samples: int, outputs: int) -> Array:
        """The targets in the shape that the loss takes with predictions of shape (samples, outputs)."""
        kind = domain(self.loss)
        if outputs == 1 and kind in OF_ROWS:
            raise ValueError(
                f"{type(self.loss).__name__} needs a prediction for each class, but there is one: set `num_class`"
            )
        if y.size == samples * outputs and kind != "index":  # XGBoost hands a matrix of labels over as a vector
            return y.reshape(samples, outputs)
        if y.size != samples or not isinstance(self.loss, KernelLoss):
            return y
        y = y.reshape(samples, 1)
        if kind not in _OF_CLASSES:
            return y
        hot: Array = y == np.arange(outputs)
        if not hot.any(axis=1).all():
            bad = int(np.argmin(hot.any(axis=1)))
            raise ValueError(f"`y_true` must hold classes from 0 to {outputs - 1}, but y_true[{bad}] is {y[bad, 0]}")
        return hot

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_by_outputs": {}}

    def __repr__(self) -> str:
        return (
            f"{self._library}_objective({self.loss!r}, hessian_floor={self.hessian_floor}, "
            f"flat_hessian={self.flat_hessian}, scale={self.scale})"
        )


def xgboost_objective(
    loss: str | Loss,
    *,
    hessian_floor: float = 1e-16,
    flat_hessian: float = 1.0,
    scale: float | None = None,
    n_threads: int | None = None,
    **options: Any,
) -> Objective:
    """Make an objective for XGBoost of a loss.

    Parameters
    ----------
    loss : str or Loss
        The identifier of a loss, the name of its class, or a loss. Its reduction does not matter. A booster's
        predictions are logits, so where a loss given by name has the option ``from_logits``, that is True by default.
    hessian_floor : float, default=1e-16
        No element's Hessian is less, before weights.
    flat_hessian : float, default=1
        Stands for the Hessian where that is 0 or negative while the gradient is not 0 (absolute errors, Huber's beyond
        δ, hinges), and everywhere in a loss that has none. A leaf of such samples alone then moves by the mean of their
        gradients, times the learning rate.
    scale : float, optional
        Multiplies gradient and Hessian. By default one half for mean squared (logarithmic) error, of which XGBoost
        itself takes one half, else 1: so ``lambda``, ``min_child_weight`` and ``gamma`` mean the same.
    n_threads : int, optional
        Threads to use; by default the amount of work decides.
    **options
        The loss's own, such as ``delta=2.0``. Only where `loss` is a name.

    Returns
    -------
    Objective
        For ``xgboost.train(..., obj=...)`` and ``xgboost.XGBRegressor(objective=...)``.

    Raises
    ------
    ImportError
        If XGBoost is missing: ``pip install 'fastloss[boosting]'``.
    TypeError, ValueError
        If there is no such loss, or an argument is none of it.

    Warns
    -----
    UserWarning
        If XGBoost's version is not one that was tested.

    Notes
    -----
    Elements of a sample are outputs with trees of their own: where Keras's losses take their mean, this is their sum.
    The Hessian of softmax cross-entropies is ``2 p (1 - p)``, as XGBoost's own. Several predictions a sample and one
    label: where the loss is one of classes the label is the number of a class, else the target of each prediction.

    Examples
    --------
    >>> import numpy as np
    >>> from fastloss.boosting import xgboost_objective
    >>> objective = xgboost_objective("huber", delta=2.0)
    >>> gradient, hessian = objective(np.zeros(3), np.array([1.0, -3.0, 0.0]), np.array([1.0, 1.0, 2.0]))
    >>> print(gradient, hessian)
    [ 1. -2.  0.] [1. 1. 2.]
    """
    adapters.framework("xgboost", extra="boosting")
    return Objective("xgboost", _loss(loss, options), hessian_floor, flat_hessian, scale, n_threads)


def lightgbm_objective(
    loss: str | Loss,
    *,
    hessian_floor: float = 1e-16,
    flat_hessian: float = 1.0,
    scale: float | None = None,
    n_threads: int | None = None,
    **options: Any,
) -> Objective:
    """Make an objective for LightGBM of a loss.

    Parameters
    ----------
    loss, hessian_floor, flat_hessian, scale, n_threads, **options
        As for `xgboost_objective`. LightGBM, too, takes one half of the squared error.

    Returns
    -------
    Objective
        For ``lightgbm.train({"objective": ...}, ...)`` and ``lightgbm.LGBMRegressor(objective=...)``.

    Raises
    ------
    ImportError
        If LightGBM is missing: ``pip install 'fastloss[boosting]'``.
    TypeError, ValueError
        If there is no such loss, or an argument is none of it.

    Warns
    -----
    UserWarning
        If LightGBM's version is not one that was tested.

    Notes
    -----
    As of `xgboost_objective`, but the Hessian of softmax cross-entropies of K classes is ``K / (K - 1) p (1 - p)``.
    Predictions are float64 here, and so is the arithmetic, unless
    the loss has ``dtype="float32"``. LightGBM begins a custom objective at 0: pass `Objective.base_score` as
    ``init_score``, and add it to raw predictions.

    Examples
    --------
    >>> import numpy as np
    >>> from fastloss.boosting import lightgbm_objective
    >>> objective = lightgbm_objective("binary_crossentropy")
    >>> gradient, hessian = objective(np.array([0, 1, 1, 1]), np.zeros(4))
    >>> print(gradient, hessian)
    [ 0.5 -0.5 -0.5 -0.5] [0.25 0.25 0.25 0.25]
    >>> print(f"{objective.base_score([0, 1, 1, 1]):.6f}")  # the logarithm of 3
    1.098612
    """
    adapters.framework("lightgbm", extra="boosting")
    return Objective("lightgbm", _loss(loss, options), hessian_floor, flat_hessian, scale, n_threads)


def _loss(loss: Any, options: dict[str, Any]) -> Loss:
    if isinstance(loss, str):
        cls = identifiers.class_of(identifiers.find(loss))
        if "from_logits" in inspect.signature(cls).parameters:
            options = {"from_logits": True, **options}
    return adapters.find_loss(loss, options)
