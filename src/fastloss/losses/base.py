"""The base class of all losses, and that of the compiled ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, overload

import numpy as np

from fastloss import numerics, settings
from fastloss.engine import threads
from fastloss.kernels.definition import Kernel
from fastloss.losses import arrays, reductions
from fastloss.losses.arrays import Array
from fastloss.losses.bound import BoundLoss
from fastloss.losses.layout import Layout, axes, class_labels
from fastloss.losses.plan import GRADIENT, HESSIAN, VALUE, Plan
from fastloss.losses.reductions import Reduction
from fastloss.settings import float_name, floatx

T = TypeVar("T")
Pullback = Callable[[Array], Array]

_PLANS = 256
"""How many combinations of shapes and dtypes a loss remembers before it starts afresh."""


class Option(Generic[T]):
    """A constructor argument of a loss, read-only afterwards: compiled plans and configs rely on it.

    Parameters
    ----------
    check : callable
        ``check(name, value)`` returns the value to keep or raises.
    """

    def __init__(self, check: Callable[[str, Any], T]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, loss: None, owner: type) -> Option[T]: ...
    @overload
    def __get__(self, loss: Loss, owner: type) -> T: ...
    def __get__(self, loss: Loss | None, owner: type) -> Option[T] | T:
        if loss is None:
            return self
        return loss._options[self._name]  # type: ignore[no-any-return]

    def __set__(self, loss: Loss, value: Any) -> None:
        if self._name in loss._options:
            raise AttributeError(f"`{self._name}` of a loss cannot be changed; make a new {type(loss).__name__}")
        loss._options[self._name] = self._check(self._name, value)


class Loss:
    """Base class of losses; subclass it and override `call` to write one in NumPy.

    Parameters
    ----------
    name : str, optional
        Name of the loss; by default the class's name in snake case.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value. ``"sum_over_batch_size"`` and ``"mean"`` divide the weighted sum by
        the number of losses, ``"mean_with_sample_weight"`` by the sum of the weights; None is ``"none"``.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype: a name, a NumPy dtype, or anything with a ``compute_dtype``. By default that of
        `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `reduction` is none of these.
    TypeError
        If `dtype` is no floating dtype, or `name` no text.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> class Quartic(fastloss.losses.Loss):
    ...     def call(self, y_true, y_pred):
    ...         return np.mean((y_pred - y_true) ** 4, axis=-1)
    >>> float(Quartic()([[0.0, 0.0]], [[1.0, 2.0]]))
    8.5
    """

    accepts_auto: ClassVar[bool] = False
    """Whether the reduction may be ``"auto"``, TensorFlow Addons' name of ``"sum_over_batch_size"``."""

    finite_slopes: ClassVar[bool] = False
    """Whether the gradient is finite wherever the loss is, so that ``check_numerics`` need not look at it."""

    device_form: ClassVar[str | None] = None
    """The function of `fastloss.losses.device_batch` that computes the loss on a CUDA device, of one without kernel."""

    coupled: ClassVar[bool] = False
    """Whether a sample's loss depends on the other samples of its batch, so that batches cannot be added up."""

    def __init__(
        self, name: str | None = None, reduction: str | None = "sum_over_batch_size", dtype: Any = None
    ) -> None:
        self._options: dict[str, Any] = {}
        self._check_numerics: str | None = None
        if name is not None and not isinstance(name, str):
            raise TypeError(f"`name` must be text or None, got {name!r}")
        self.name = name or snake_case(type(self).__name__)
        self._reduction = reductions.check_reduction(reduction, self.accepts_auto)
        self._dtype = float_name("dtype", dtype)

    @property
    def reduction(self) -> str | None:
        """How the per-sample losses become the value."""
        return self._reduction

    @property
    def dtype(self) -> str | None:
        """Name of the compute dtype; None where each call's ``y_pred`` decides."""
        return self._dtype or floatx()

    @property
    def check_numerics(self) -> str | None:
        """What to do when value or gradient is NaN or infinite, ``"raise"``, ``"warn"`` or ``"ignore"``; may be set.

        None, the default, does as `fastloss.set_check_numerics` says, where the actions are described.
        """
        return self._check_numerics

    @check_numerics.setter
    def check_numerics(self, action: str | None) -> None:
        self._check_numerics = settings.check_action("check_numerics", action)

    def call(self, y_true: Array, y_pred: Array) -> Array:
        """Per-sample losses, unreduced; to be overridden, unless `call_with_grad` is.

        Parameters
        ----------
        y_true, y_pred : numpy.ndarray
            Targets and predictions in the compute dtype, their ranks matched.

        Returns
        -------
        numpy.ndarray
            One loss a sample.
        """
        if type(self).call_with_grad is Loss.call_with_grad:
            raise NotImplementedError(
                f"{type(self).__name__} must override `call(self, y_true, y_pred)`, which returns the per-sample losses"
            )
        return self.call_with_grad(y_true, y_pred)[0]

    def call_with_grad(self, y_true: Array, y_pred: Array) -> tuple[Array, Array | Pullback]:
        """Per-sample losses and their gradient; to be overridden for `value_and_grad` to work.

        Parameters
        ----------
        y_true, y_pred : numpy.ndarray
            As for `call`.

        Returns
        -------
        losses : numpy.ndarray
            One loss a sample.
        gradient : numpy.ndarray or callable
            Where each loss depends on its own sample alone: its gradient, of `y_pred`'s shape. Otherwise a function
            ``pullback(flow)`` that returns the gradient of ``sum(flow * losses)``, `flow` having the losses' shape.

        Examples
        --------
        >>> import numpy as np
        >>> import fastloss
        >>> class Quartic(fastloss.losses.Loss):
        ...     def call_with_grad(self, y_true, y_pred):
        ...         e = y_pred - y_true
        ...         return np.mean(e**4, axis=-1), 4 * e**3 / e.shape[-1]
        >>> value, grad = Quartic().value_and_grad([[0.0, 0.0]], [[1.0, 2.0]])
        >>> print(value, grad.tolist())
        8.5 [[2.0, 16.0]]
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines no gradient; for one, override `call_with_grad(self, y_true, y_pred)`"
        )

    def __call__(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        mask: Any = None,
        class_weight: Any = None,
        n_threads: int | None = None,
    ) -> Any:
        """Compute the value; no gradient is computed.

        Parameters
        ----------
        y_true, y_pred : array_like
            Targets and predictions.
        sample_weight : array_like, optional
            Weights that broadcast to the per-sample losses.
        mask : array_like of bool, optional
            The samples that count, in the shape of the per-sample losses; by default ``y_pred._keras_mask`` if there is
            one. The others are not computed.
        class_weight : dict or array_like, optional
            Weight by class, multiplied with `sample_weight`; a missing class weighs 1.
        n_threads : int, optional
            Threads to use; by default as `fastloss.set_num_threads` says, else by the amount of work.

        Returns
        -------
        numpy scalar or numpy.ndarray
            The reduced loss, or the per-sample losses where the reduction is ``"none"``.
        """
        return self._evaluate(VALUE, y_true, y_pred, sample_weight, mask, class_weight, None, None, n_threads)[0]

    def value_and_grad(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        mask: Any = None,
        class_weight: Any = None,
        upstream: Any = None,
        out: Array | None = None,
        n_threads: int | None = None,
    ) -> tuple[Any, Array]:
        """Compute the value and its gradient with respect to `y_pred`, in one pass.

        Parameters
        ----------
        y_true, y_pred, sample_weight, mask, class_weight, n_threads
            As for calling the loss.
        upstream : array_like, optional
            The gradient flowing into the value: of its shape if the reduction is ``"none"`` (by default ones: the
            gradient is that of the sum), else a scalar factor. It does not change the value.
        out : numpy.ndarray, optional
            Where the gradient is written: `y_pred`'s shape and the gradient's dtype. ``out=y_pred`` saves memory by
            overwriting the predictions; any other overlap with an input is an error.

        Returns
        -------
        value : numpy scalar or numpy.ndarray
            As from calling the loss.
        gradient : numpy.ndarray
            Of `y_pred`'s shape, and of its dtype where that is floating, else of the value's. `out` if that was given.

        Raises
        ------
        NotImplementedError
            If the loss defines no gradient.
        """
        return self._evaluate(GRADIENT, y_true, y_pred, sample_weight, mask, class_weight, upstream, out, n_threads)[:2]

    def value_grad_hess(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        mask: Any = None,
        class_weight: Any = None,
        upstream: Any = None,
        out: Array | None = None,
        n_threads: int | None = None,
    ) -> tuple[Any, Array, Array]:
        """Compute the value, its gradient and the diagonal of its Hessian, in one pass.

        For losses of single elements, and the cross-entropies of logits.

        Parameters
        ----------
        y_true, y_pred, sample_weight, mask, class_weight, upstream, out, n_threads
            As for `value_and_grad`.

        Returns
        -------
        value, gradient
            As from `value_and_grad`.
        hessian : numpy.ndarray
            The second derivative of the value in each element of `y_pred`, of the gradient's shape and dtype.

        Raises
        ------
        NotImplementedError
            If the loss has none.
        """
        if not self.has_hessian:
            raise NotImplementedError(
                f"{type(self).__name__} has no diagonal Hessian: only losses of single elements and softmax "
                "cross-entropies of logits have one"
            )
        return self._evaluate(HESSIAN, y_true, y_pred, sample_weight, mask, class_weight, upstream, out, n_threads)

    def bind(
        self,
        shape: int | tuple[int, ...],
        dtype: Any = "float32",
        *,
        y_true_shape: tuple[int, ...] | None = None,
        y_true_dtype: Any = None,
        weighted: bool = False,
        n_threads: int | None = None,
    ) -> BoundLoss:
        """Bind the loss to one shape, for a training loop in which a call's overhead counts.

        Parameters
        ----------
        shape : int or tuple of int
            Of ``y_pred``.
        dtype : str or numpy.dtype
            Of ``y_pred``.
        y_true_shape, y_true_dtype : tuple of int, str or numpy.dtype, optional
            Of ``y_true``: by default those of ``y_pred``, or int64 and its shape without the class axis where targets
            are class indices.
        weighted : bool
            Whether calls will pass a ``sample_weight``.
        n_threads : int, optional
            Threads to use; by default the amount of work decides.

        Returns
        -------
        BoundLoss
            ``step(y_true, y_pred) -> (value, gradient)``, whose gradient is written to a buffer of its own.

        Raises
        ------
        TypeError, ValueError
            If an argument is no shape or no dtype, or the loss does not take arrays like these.

        Examples
        --------
        >>> import numpy as np
        >>> import fastloss
        >>> step = fastloss.losses.MeanSquaredError().bind((2, 2), "float64")
        >>> value, grad = step(np.zeros((2, 2)), np.ones((2, 2)))
        >>> print(value, grad.tolist(), grad is step.gradient)
        1.0 [[0.5, 0.5], [0.5, 0.5]] True
        """
        y_pred = arrays.zeros("shape", shape, "dtype", dtype)
        like, kind = self._targets_like(y_pred)
        y_true = arrays.zeros(
            "y_true_shape",
            like if y_true_shape is None else y_true_shape,
            "y_true_dtype",
            kind if y_true_dtype is None else y_true_dtype,
        )
        return self._bind(y_true, y_pred, weighted, n_threads)

    def _bind(self, y_true: Array, y_pred: Array, weighted: bool, n_threads: int | None) -> BoundLoss:
        return BoundLoss(self, y_true, y_pred, np.ones(1) if weighted else None, n_threads)

    def _targets_like(self, y_pred: Array) -> tuple[tuple[int, ...], Any]:
        """The usual shape and dtype of targets for such predictions."""
        return y_pred.shape, y_pred.dtype

    @property
    def has_hessian(self) -> bool:
        """Whether `value_grad_hess` is defined."""
        return False

    def _compute(
        self, y: Array, p: Array, valid: Array | None, outputs: int, n_threads: int | None
    ) -> tuple[Array, Array | Pullback | None, Array | None]:
        """Per-sample losses, the gradient if `outputs` asks, and the losses that count by the loss's own rule.

        `valid` is the caller's mask: what it excludes need not be computed, and its targets need not be valid. An array
        of gradients is the caller's to overwrite, if this method is overridden.
        """
        if outputs:
            return *self.call_with_grad(y, p), None
        return self.call(y, p), None, None

    def _inputs(self, y: Array, p: Array, compute: np.dtype[Any]) -> tuple[Array, Array]:
        """Targets and predictions as `call` wants them."""
        return arrays.match_ranks(y.astype(compute, copy=False), p.astype(compute, copy=False))

    def _labels(self, y: Array, shape: tuple[int, ...]) -> Array:
        """The class of each sample, for class weights."""
        return class_labels(y.reshape(math.prod(shape), -1)).reshape(shape)

    def _evaluate(
        self,
        outputs: int,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any,
        mask: Any,
        class_weight: Any,
        upstream: Any,
        out: Array | None,
        n_threads: int | None,
        **extras: Any,
    ) -> tuple[Any, Any, Any]:
        """Value, gradient and Hessian, as far as `outputs` asks; `extras` are what else `_compute` takes."""
        if n_threads is not None:
            n_threads = threads.check(n_threads)
        if arrays.on_cuda(y_pred) or arrays.on_cuda(y_true):
            from fastloss.losses import device

            return device.evaluate(
                self, outputs, y_true, y_pred, sample_weight, mask, class_weight, upstream, out, **extras
            )
        compute, result = arrays.compute_dtypes(self._dtype, y_pred)
        targets = arrays.to_array("y_true", y_true, compute)
        predictions = arrays.to_array("y_pred", y_pred, compute)
        weight, valid = weight_and_mask(sample_weight, mask, y_pred, compute)
        gradient = arrays.gradient_dtype(y_pred, predictions, result)
        if out is not None:
            others = {"y_true": targets, "sample_weight": weight, "mask": valid}
            arrays.check_out(out, predictions, gradient, others)
        y, p = self._inputs(targets, predictions, compute)

        def resolve(shape: tuple[int, ...], counted: Array | None = None) -> Reduction:
            """What is to be done with losses of this shape."""
            weights, mask = weight, valid
            if class_weight is not None:
                if shape == ():
                    raise ValueError(
                        f"`class_weight` needs a loss a sample, but {type(self).__name__} gave one for all"
                    )
                labels = self._labels(y, shape)
                weights = times(reductions.class_weights(class_weight, labels, compute), weight)
            if counted is not None:
                mask = both(valid, counted)
            return reductions.resolve(shape, self._reduction, weights, mask, upstream, compute)

        goal = Goal(compute, gradient, out, resolve)
        losses, reduction, found = self._run(y, p, valid, outputs, n_threads, goal, **extras)
        with np.errstate(invalid="ignore", over="ignore"):  # infinite losses, as silently as in compiled code
            value = reductions.reduce(losses.astype(compute, copy=False), reduction).astype(result)
            if found is not None:
                found = found.reshape(predictions.shape).astype(gradient, copy=False)
        if found is not None and out is not None:
            if found is not out:
                out[...] = found
            found = out
        if self._check_numerics or settings._check_numerics:
            results = (value, found, None)
            numerics.check(self, results, y_true, y_pred, sample_weight, mask, class_weight, upstream, extras)
        return value, found, None

    def _run(
        self, y: Array, p: Array, valid: Array | None, outputs: int, n_threads: int | None, goal: Goal
    ) -> tuple[Array, Reduction, Array | None]:
        """Per-sample losses, what is done with them, and the gradient of the result, if `outputs` asks for it.

        To be overridden by a loss that writes that gradient itself, as the goal wants it.
        """
        losses, slope, counted = self._compute(y, p, valid, outputs, n_threads)
        losses = np.asarray(losses)
        if losses.dtype.kind != "f":
            raise TypeError(f"{type(self).__name__} must return floating losses, got {losses.dtype}")
        reduction = goal.resolve(losses.shape, counted)
        if not outputs or slope is None:
            return losses, reduction, None
        return losses, reduction, self._pull(slope, reduction, losses.shape, p)

    def _pull(self, slope: Array | Pullback, reduction: Reduction, shape: tuple[int, ...], p: Array) -> Array:
        """The gradient of the reduced losses, which have this shape."""
        flow = reduction.flow(shape, p.dtype)
        if reduction.mask is not None and not reduction.mask.any():
            return np.zeros(p.shape, p.dtype)  # also where 0 times the slope would be NaN
        if callable(slope):
            return np.asarray(slope(flow))
        if np.shape(slope) != p.shape:
            raise ValueError(
                f"{type(self).__name__}.call_with_grad must return a gradient of `y_pred`'s shape, {p.shape}, or a "
                f"function of the flow into the losses; got shape {np.shape(slope)}"
            )
        inner = (1,) * (p.ndim - len(shape))
        own = type(self)._compute is not Loss._compute  # what `call_with_grad` returns may be anybody's
        with np.errstate(invalid="ignore", over="ignore"):
            gradient: Array = np.multiply(slope, flow.reshape(shape + inner), out=slope if own else None)
        if reduction.mask is not None:
            gradient[np.broadcast_to(reduction.mask.reshape(shape + inner) == 0, p.shape)] = 0
        return gradient

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, so that ``from_config(get_config())`` makes an equal loss."""
        config: dict[str, Any] = {"name": self.name, "reduction": self._reduction}
        if self._dtype is not None:
            config["dtype"] = self._dtype
        if self._check_numerics is not None:
            config["check_numerics"] = self._check_numerics
        return {**config, **self._options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Loss:
        """Make a loss from what `get_config` gave."""
        arguments = dict(config)
        action = arguments.pop("check_numerics", None)
        loss = cls(**arguments)
        loss.check_numerics = action
        return loss

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({options})"


class Goal(NamedTuple):
    """What a call of a loss without plans is to come to.

    Attributes
    ----------
    compute, gradient : numpy.dtype
        Compute dtype, and that of the gradient.
    out : numpy.ndarray or None
        Where the caller wants the gradient; it may be the predictions.
    resolve : callable
        ``resolve(shape, counted=None)``: the `Reduction` of losses of this shape, of which some may not count by the
        loss's own rule.
    """

    compute: np.dtype[Any]
    gradient: np.dtype[Any]
    out: Array | None
    resolve: Callable[..., Reduction]


class KernelLoss(Loss):
    """A loss that a compiled kernel computes."""

    per_sample: ClassVar[Literal["mean", "sum"]] = "mean"
    """How the elements of a sample become its loss."""

    class_indices: ClassVar[bool] = False
    """Whether targets are indices of classes."""

    weights_spread: ClassVar[bool] = False
    """Whether a loss of the whole batch may be given several weights."""

    finite_slopes = True

    @property
    def has_hessian(self) -> bool:
        """Whether `value_grad_hess` is defined."""
        kernel = self._kernel()
        return kernel.shape == "pointwise" or kernel.curved

    def __init__(
        self, name: str | None = None, reduction: str | None = "sum_over_batch_size", dtype: Any = None
    ) -> None:
        super().__init__(name, reduction, dtype)
        self._plans: dict[Any, Plan] = {}

    def _kernel(self) -> Kernel:
        """The kernel, as the options choose it."""
        raise NotImplementedError

    def _params(self, elements: int) -> tuple[float, ...]:
        """The kernel's run-time parameters, for samples of so many elements.

        Those of a rowwise kernel come after two of the label smoothing: what each class gets, what targets keep less.
        """
        kernel = self._kernel()
        smoothing = () if kernel.shape == "pointwise" else (0.0, 0.0)
        return *smoothing, *(self._options[name] for name in kernel.params)

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> Layout:
        """Lay targets and predictions out; the flags are those of `fastloss.losses.layout.pointwise`."""
        raise NotImplementedError

    def _gradient_dtype(self, y_pred: Any, p: Array, result: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype that gradient and Hessian are written in; `p` is `y_pred` as an array, `result` the value's."""
        return arrays.gradient_dtype(y_pred, p, result)

    _empty: Callable[..., Array] = staticmethod(np.empty)
    """Makes the arrays of gradient and Hessian."""

    def _bind(self, y_true: Array, y_pred: Array, weighted: bool, n_threads: int | None) -> BoundLoss:
        bound = super()._bind(y_true, y_pred, weighted, n_threads)
        if not weighted:
            bound.prepare(self, y_true, y_pred)
        return bound

    def _targets_like(self, y_pred: Array) -> tuple[tuple[int, ...], Any]:
        if not self.class_indices:
            return super()._targets_like(y_pred)
        (place,) = axes(self._options.get("axis", -1), y_pred.ndim)
        return y_pred.shape[:place] + y_pred.shape[place + 1 :], np.int64

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # compiled code neither pickles nor deep-copies

    def _evaluate(
        self,
        outputs: int,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any,
        mask: Any,
        class_weight: Any,
        upstream: Any,
        out: Array | None,
        n_threads: int | None,
        **extras: Any,
    ) -> tuple[Any, Any, Any]:
        """Value, gradient and Hessian, as far as `outputs` asks; a compiled loss has no use for `extras`."""
        if n_threads is not None:
            n_threads = threads.check(n_threads)
        key = plan = found = None
        if (
            type(y_true) is np.ndarray
            and type(y_pred) is np.ndarray
            and (sample_weight is None or type(sample_weight) is np.ndarray)
            and mask is class_weight is None
            and (upstream is None or type(upstream) is float)
        ):
            # What the general way works out depends on these alone, so a second call like this finds its plan.
            weight_type = None if sample_weight is None else (sample_weight.shape, sample_weight.dtype)
            key = (outputs, y_pred.shape, y_true.shape, y_pred.dtype, y_true.dtype, weight_type, upstream, floatx())
            plan = self._plans.get(key)
            if plan is not None and plan.takes(y_true, y_pred, sample_weight, out):
                found = plan.run(y_true, y_pred, sample_weight, out, n_threads)
        elif arrays.on_cuda(y_pred) or arrays.on_cuda(y_true):
            from fastloss.losses import device

            return device.evaluate(self, outputs, y_true, y_pred, sample_weight, mask, class_weight, upstream, out)
        if found is None:
            found = self._general(
                outputs, y_true, y_pred, sample_weight, mask, class_weight, upstream, out, n_threads, key
            )
        if self._check_numerics or settings._check_numerics:
            if not (plan is not None and plan.telling and math.isfinite(found[0])):
                numerics.check(self, found, y_true, y_pred, sample_weight, mask, class_weight, upstream, extras)
        return found

    def _ready(self, y: Array, p: Array) -> Plan | None:
        """What is remembered of an earlier call for the value of arrays like these, without weights."""
        plan = self._plans.get((VALUE, p.shape, y.shape, p.dtype, y.dtype, None, None, floatx()))
        return plan if plan is not None and plan.takes(y, p, None, None) else None

    def _general(
        self,
        outputs: int,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any,
        mask: Any,
        class_weight: Any,
        upstream: Any,
        out: Array | None,
        n_threads: int | None,
        key: Any,
    ) -> tuple[Any, Any, Any]:
        """Any inputs, with all their rules; leaves a plan under `key` for inputs that need no rearranging."""
        call = self._resolve(outputs, y_true, y_pred, sample_weight, mask, class_weight, upstream)
        layout, reduction, plan = call.layout, call.reduction, call.plan
        if out is not None:
            arrays.check_out(
                out, call.p, plan.gradient, {"y_true": call.y, "sample_weight": call.weight, "mask": reduction.mask}
            )
        y, p = arrays.contiguous(layout.y), arrays.contiguous(layout.p)
        in_place = outputs > 0 and out is not None and arrays.same_memory(out, p)
        g = h = None
        if outputs:
            usable = out is not None and layout.order is None and arrays.contiguous(out) is out
            g = out.reshape(p.shape) if out is not None and usable else self._empty(p.shape, plan.gradient)
        if outputs == HESSIAN:
            h = self._empty(p.shape, plan.gradient)
        value = plan.execute(y, p, reduction.weights, reduction.grad_weights, reduction.mask, g, h, n_threads, in_place)
        if reduction.spread is not None:
            value = value.reshape(layout.shape) * reduction.spread
        if reduction.empty:
            value = type(value)(0)
            for array in (g, h):
                if array is not None:
                    array.fill(0)
        if key is not None and plan.serves(layout, call.y, call.p, call.weight, reduction):
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[key] = plan
        gradient = None if g is None else layout.deliver(g, call.p.shape, out)
        return value, gradient, None if h is None else layout.deliver(h, call.p.shape, None)

    def _resolve(
        self,
        outputs: int,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        mask: Any = None,
        class_weight: Any = None,
        upstream: Any = None,
    ) -> Call:
        """Check the arguments of a call and work out what it is to do; nothing is computed or allocated yet."""
        compute, result = arrays.compute_dtypes(self._dtype, y_pred)
        y = arrays.to_array("y_true", y_true, compute)
        p = arrays.to_array("y_pred", y_pred, compute)
        weight, valid = weight_and_mask(sample_weight, mask, y_pred, compute)
        layout = self._layout(
            y,
            p,
            samples=class_weight is not None or any(a is not None and a.shape == p.shape for a in (weight, valid)),
            flat=self._reduction not in ("none", None) and weight is valid is class_weight is None,
        )
        if layout.valid is not None:
            valid = both(valid, layout.valid)
        if class_weight is not None:
            weight = times(reductions.class_weights(class_weight, layout.labels(), compute), weight)
        shape = layout.shape
        if self.weights_spread and shape == () and weight is not None:
            shape = (1,) * weight.ndim
        reduction = reductions.resolve(shape, self._reduction, weight, valid, upstream, compute)
        gradient = self._gradient_dtype(y_pred, p, result)
        plan = Plan(self, outputs, layout, reduction, (y.dtype, p.dtype, gradient), compute, result)
        return Call(y, p, weight, layout, reduction, plan)


class RowLoss(KernelLoss):
    """A loss that sums over each row as its kernel says."""

    per_sample = "sum"


class Call(NamedTuple):
    """A call's targets, predictions and weights as arrays, and what is to be done with them."""

    y: Array
    p: Array
    weight: Array | None
    layout: Layout
    reduction: Reduction
    plan: Plan


def weight_and_mask(
    sample_weight: Any, mask: Any, y_pred: Any, dtype: np.dtype[Any]
) -> tuple[Array | None, Array | None]:
    """Weights and mask as arrays."""
    weight = None if sample_weight is None else arrays.to_array("sample_weight", sample_weight, dtype)
    return weight, arrays.mask_of(mask, y_pred)


def both(mask: Array | None, counted: Array) -> Array:
    """What a mask leaves in of the samples that count by the loss's own rule."""
    if mask is None:
        return counted
    a, b = arrays.match_ranks(mask, counted)
    try:
        return np.logical_and(a, b)
    except ValueError:
        raise ValueError(
            f"`mask` must have the shape of the per-sample losses, {counted.shape}, got shape {mask.shape}"
        ) from None


def times(a: Array, b: Array | None) -> Array:
    """The product of two weights under the rank rule."""
    if b is None:
        return a
    x, y = arrays.match_ranks(a, b)
    try:
        return np.asarray(x * y, a.dtype)
    except ValueError:
        raise ValueError(
            f"`sample_weight` must broadcast to the shape of the per-sample losses, {a.shape}, got shape {b.shape}"
        ) from None


def snake_case(name: str) -> str:
    """``CategoricalCrossentropy`` as ``categorical_crossentropy``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


_handles: dict[Any, Loss] = {}


def per_sample(loss: type[Loss], **options: Any) -> Callable[..., Any]:
    """A function handle's loss: unreduced, and remembered together with its plans."""
    # The types too, since True equals 1 but is no number an option takes.
    key = (loss, *options.values(), *map(type, options.values()))
    try:
        found = _handles.get(key)
    except TypeError:  # a list of axes
        return loss(reduction="none", **options)
    if found is None:
        if len(_handles) >= _PLANS:
            _handles.clear()
        found = _handles[key] = loss(reduction="none", **options)
    return found
