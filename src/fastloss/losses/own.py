"""Losses of one's own: of an expression, and of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from fastloss.kernels.definition import Kernel, find
from fastloss.losses import layout, options
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Option

_collect = options.choice("mean", "sum")


def _expressions() -> ModuleType:
    try:
        from fastloss import expressions
    except ModuleNotFoundError as error:
        if error.name != "sympy":
            raise
        raise ModuleNotFoundError(
            "losses of expressions need SymPy: pip install 'fastloss[expressions]'", name="sympy"
        ) from None
    return expressions


def _parameters(name: str, values: Any) -> dict[str, float]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(f"`{name}` must be a dict of numbers by name, got {values!r}")
    _check_names(values)
    return {key: options.number(key, value) for key, value in values.items()}


def _check_names(names: Iterable[Any]) -> None:
    """Refuse names of parameters that are taken: each parameter is an attribute, and an argument of `from_function`."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"`params` must have names as its keys, got {name!r}")
        taken = name in ("name", "function") or any(hasattr(owner, name) for owner in (ExpressionLoss, OwnKernelLoss))
        if taken or name.startswith("_"):
            raise ValueError(
                f"{name!r} cannot be the name of a parameter: losses have arguments and attributes so named"
            )


class _Parameters(Option[dict[str, float]]):
    """Parameters that cannot be changed through what is read, either."""

    def __get__(self, loss: Any, owner: type) -> Any:
        found = super().__get__(loss, owner)
        return found if loss is None else MappingProxyType(found)


class _OwnLoss(KernelLoss):
    """What losses of expressions and of kernels have in common."""

    params = _Parameters(_parameters)

    def __getattr__(self, name: str) -> Any:
        # A parameter is an attribute, as `delta` is one of Huber's.
        params = self.__dict__.get("_options", {}).get("params", {})
        if name in params:
            return params[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_options", {}).get("params", {}):
            raise AttributeError(f"`{name}` of a loss cannot be changed; make a new {type(self).__name__}")
        super().__setattr__(name, value)

    def _params(self, elements: int) -> tuple[float, ...]:
        kernel = self._kernel()
        smoothing = () if kernel.shape == "pointwise" else (0.0, 0.0)
        return *smoothing, *(self.params[name] for name in kernel.params)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, so that ``from_config(get_config())`` makes an equal loss."""
        config = super().get_config()
        return {**config, "params": dict(config["params"])}


class ExpressionLoss(_OwnLoss):
    """A pointwise loss given as an expression, with first and second derivative.

    `fastloss.losses.from_function` makes one of a Python function; this class is what its config is read by.

    Parameters
    ----------
    expression : str
        The loss of one element, in terms of ``y`` (target), ``p`` (prediction) and the parameters: arithmetic,
        conditions and the functions of `fastloss.symbols`, in Python's notation. Statements ``name = ...;`` may come
        before it.
    params : dict, optional
        Value of each parameter by name. They are run-time arguments of the kernel: other values compile nothing, unless
        they are exponents that are small whole numbers. Each is an attribute of the loss.
    per_sample : {"mean", "sum"}
        How the elements of a sample become its loss.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If the expression holds anything else, or does not depend on ``p``, or a parameter has a name that is taken. It
        is parsed, never executed.
    ModuleNotFoundError
        If SymPy is missing: ``pip install 'fastloss[expressions]'``.

    Notes
    -----
    ``y_true`` and ``y_pred`` have shape (..., d), the losses shape (...). ``y_true`` may broadcast to ``y_pred``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.ExpressionLoss("where(p > y, (p - y)**2, alpha*(y - p))", {"alpha": 0.5})
    >>> value, grad = loss.value_and_grad([[0.0, 0.0]], [[1.0, -2.0]])
    >>> print(value, grad.tolist(), loss.alpha)
    1.0 [[1.0, -0.25]] 0.5
    """

    expression = Option(lambda name, value: value)
    per_sample = Option(_collect)  # type: ignore[assignment]

    def __init__(
        self,
        expression: str,
        params: Mapping[str, float] | None = None,
        per_sample: str = "mean",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "expression_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.expression = expression
        self.params = params
        self.per_sample = per_sample  # type: ignore[misc]
        _expressions().parse(self.expression, self.params)

    def _kernel(self) -> Kernel:
        expressions = _expressions()
        kernel: Kernel = expressions.kernel(
            self.expression, tuple(self.params), expressions.whole_exponents(self.expression, self.params)
        )
        return kernel

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        return layout.pointwise(y, p, -1, broadcast=True, samples=samples, flat=flat)


def from_function(
    function: Callable[..., Any],
    *,
    per_sample: str = "mean",
    reduction: str | None = "sum_over_batch_size",
    name: str | None = None,
    dtype: Any = None,
    **params: float,
) -> ExpressionLoss:
    """Make a compiled loss of a Python function of one target and one prediction.

    The function is called once, with symbols. What it does to them is differentiated twice with SymPy and compiled as
    the package's own kernels are: value, gradient and diagonal Hessian in one pass, on one thread or several, cached on
    disk.

    Parameters
    ----------
    function : callable
        ``function(y, p, ...)`` returns the loss of one element. It may use arithmetic, comparisons, ``abs``, and
        `fastloss.symbols` (``where``, ``exp``, ``log``, ...).
    per_sample : {"mean", "sum"}
        How the elements of a sample become its loss.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str, optional
        Name of the loss; by default that of the function.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.
    **params : float
        Values of the function's further arguments; those that have a default may be left out. Other values compile
        nothing, unless they are exponents that are small whole numbers.

    Returns
    -------
    ExpressionLoss

    Raises
    ------
    fastloss.symbols.TraceError
        If the function does what cannot be traced; the message has the construct, its line, and what to write instead.
    TypeError
        If its arguments do not fit.
    ValueError
        If a parameter has a name that is taken, such as ``name`` or ``dtype``.
    ModuleNotFoundError
        If SymPy is missing: ``pip install 'fastloss[expressions]'``.

    Examples
    --------
    >>> import fastloss
    >>> from fastloss.symbols import where
    >>> loss = fastloss.losses.from_function(
    ...     lambda y, p, alpha: where(p > y, (p - y) ** 2, alpha * (y - p)), alpha=0.5, name="lopsided"
    ... )
    >>> value, grad = loss.value_and_grad([[0.0, 0.0]], [[1.0, -2.0]])
    >>> print(value, grad.tolist())
    1.0 [[1.0, -0.25]]
    """
    expressions = _expressions()
    if not callable(function):
        raise TypeError(f"`function` must be a function of target, prediction and parameters, got {function!r}")
    found = expressions.parameter_names(function)
    _check_names(found)
    params = expressions.with_defaults(found, params)
    label = str(name or getattr(function, "__name__", ""))
    record, root = expressions.trace(function, params)
    return ExpressionLoss(
        expressions.text(record, root),
        params,
        per_sample,
        reduction,
        label if name or label.isidentifier() else "expression_loss",  # lambdas have a name that is none
        dtype,
    )


class OwnKernelLoss(_OwnLoss):
    """A loss of a kernel written with `fastloss.pointwise` or `fastloss.rowwise`.

    `fastloss.losses.from_kernel` makes one.

    Parameters
    ----------
    kernel : fastloss.Kernel or str
        The kernel, or where it is found: ``"module:name"``, of a module that is imported already.
    params : dict, optional
        Value of each of the kernel's parameters by name. They are run-time arguments: other values compile nothing.
        Each is an attribute of the loss.
    axis : int, tuple of int or None
        The axes of a sample's elements; one axis if targets are class indices.
    per_sample : {"mean", "sum"}, optional
        How the elements of a sample become its loss, of a pointwise kernel; by default their mean.
    labels : {"dense", "index"}
        Whether targets have the shape of the predictions, or are class indices, which a rowwise kernel takes if it has
        neither ``regather`` nor ``score``.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value.
    name : str, optional
        Name of the loss; by default the kernel's.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    TypeError
        If `kernel` is none, or `params` are not its parameters.
    ValueError
        If an option does not suit a kernel of this shape, or no kernel is found where the text says.

    Notes
    -----
    Targets of a pointwise kernel may broadcast to the predictions. The config names the kernel by module and name, so
    it is read back where that module has been imported.

    Examples
    --------
    See `fastloss.losses.from_kernel`.
    """

    kernel = Option(lambda name, value: _own_kernel(name, value))
    axis = Option(options.axes)
    per_sample = Option(_collect)  # type: ignore[assignment]
    labels = Option(options.choice("dense", "index"))

    def __init__(
        self,
        kernel: Kernel | str,
        params: Mapping[str, float] | None = None,
        axis: int | tuple[int, ...] | None = -1,
        per_sample: str | None = None,
        labels: str = "dense",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.kernel = kernel
        rowwise = self.kernel.shape == "rowwise"
        self.name = name or self.kernel.name
        self.params = params
        self.axis = axis
        self.per_sample = per_sample or ("sum" if rowwise else "mean")  # type: ignore[misc]
        self.labels = labels
        for parameter in self.kernel.params:
            if parameter not in self.params:
                raise TypeError(f"`params` must give a value of the kernel's parameter {parameter!r}")
        for parameter in self.params:
            if parameter not in self.kernel.params:
                known = ", ".join(self.kernel.params) or "none"
                raise TypeError(f"`params` has {parameter!r}, but the kernel's parameters are: {known}")
        if rowwise and self.per_sample != "sum":
            raise ValueError("`per_sample` must be 'sum' for a rowwise kernel, which gives a sample's loss itself")
        if self.labels == "index":
            if not rowwise:
                raise ValueError("`labels` must be 'dense' for a pointwise kernel")
            options.integer("axis", self.axis)

    @property
    def class_indices(self) -> bool:  # type: ignore[override]
        """Whether targets are indices of classes."""
        return self.labels == "index"

    def _kernel(self) -> Kernel:
        if self.kernel.shape == "rowwise":
            _check_stages(self.kernel, self.class_indices)
        return self.kernel

    def _layout(self, y: Array, p: Array, *, samples: bool, flat: bool) -> layout.Layout:
        if self.class_indices:
            assert isinstance(self.axis, int)
            return layout.class_indices(y, p, self.axis, None)
        pointwise = self.kernel.shape == "pointwise"
        return layout.pointwise(
            y, p, self.axis, broadcast=pointwise, samples=samples and pointwise, flat=flat and pointwise
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, so that ``from_config(get_config())`` makes an equal loss."""
        return {**super().get_config(), "kernel": self.kernel.reference}


@cache
def _check_stages(kernel: Kernel, class_indices: bool) -> None:
    from fastloss.engine.toolbox import toolbox

    functions = kernel.factory(toolbox(np.dtype(np.float64)))
    further = [stage for stage in ("regather", "score") if getattr(functions, stage) is not None]
    if class_indices and further:
        raise TypeError(
            f"`labels` must be 'dense' for a kernel with `{further[0]}`, which sees the target of each class"
        )
    if kernel.curved and (further or kernel.divisible or functions.curvature is None):
        raise TypeError(
            f"`curved` must be False for a kernel that is divisible, or has `score` or `regather`, or no `curvature`: "
            f"{kernel.name}"
        )
    if kernel.divisible and (further or functions.pivot != "none" or functions.keeps == "gathered"):
        raise TypeError(
            "`divisible` must be False for a kernel that needs more than sums: a pivot, what `gather` keeps, "
            f"`score` or `regather`; {kernel.name} has pivot={functions.pivot!r}, keeps={functions.keeps!r}"
        )


def _own_kernel(name: str, value: Any) -> Kernel:
    kernel = find(value) if isinstance(value, str) else value
    if not isinstance(kernel, Kernel) or kernel.shape == "itemwise":
        raise TypeError(f"`{name}` must be made by fastloss.pointwise or fastloss.rowwise, got {value!r}")
    _check_names(kernel.params)
    return kernel


def from_kernel(
    kernel: Kernel,
    *,
    axis: int | tuple[int, ...] | None = -1,
    per_sample: str | None = None,
    labels: str = "dense",
    reduction: str | None = "sum_over_batch_size",
    name: str | None = None,
    dtype: Any = None,
    **params: float,
) -> OwnKernelLoss:
    """Make a compiled loss of a kernel written with `fastloss.pointwise` or `fastloss.rowwise`.

    Parameters
    ----------
    kernel : fastloss.Kernel
        The kernel.
    axis, per_sample, labels, reduction, name, dtype
        As for `OwnKernelLoss`.
    **params : float
        A value for each of the kernel's parameters; other values compile nothing.

    Returns
    -------
    OwnKernelLoss

    Raises
    ------
    TypeError, ValueError
        As for `OwnKernelLoss`.

    See Also
    --------
    fastloss.check_gradient : Compare the kernel's derivatives with differences.

    Examples
    --------
    >>> import fastloss
    >>> @fastloss.pointwise(params=("scale",), calls=("div",))
    ... def cauchy(xp):
    ...     one, two = xp.consts(1.0, 2.0)
    ...
    ...     def terms(y, p, scale):
    ...         e = (p - y) / scale
    ...         q = one / (one + e * e)
    ...         return xp.log1p(e * e), two * e * q / scale, two * (one - e * e) * q * q / (scale * scale)
    ...
    ...     return terms
    >>> loss = fastloss.losses.from_kernel(cauchy, scale=2.0)
    >>> value, grad = loss.value_and_grad([[0.0]], [[2.0]])
    >>> print(f"{value:.6f} {grad[0, 0]:.6f}")
    0.693147 0.500000
    """
    kernel = _own_kernel("kernel", kernel)  # before `name` is taken for that of the loss
    return OwnKernelLoss(kernel, params, axis, per_sample, labels, reduction, name, dtype)
