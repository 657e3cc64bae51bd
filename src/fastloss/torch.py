"""Losses as modules of PyTorch: ``fastloss.torch.wrap("huber", delta=2.0)``. Importing this imports PyTorch.

There are two ways into a loss. Eager code takes an ``autograd.Function``: of (32, 10) predictions, forward and backward
take 29 µs with it and 54 µs through a custom operator, where PyTorch's own cross-entropy takes 32 µs. ``torch.compile``
and ``torch.export`` trace the operator, into which they need not look. Its arguments are tensors, numbers and texts, so
it names its loss by the loss's config.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from fastloss import adapters, losses
from fastloss.losses.base import Loss

torch: Any = adapters.framework("torch")

__all__ = ["FusedLoss", "wrap"]


def wrap(loss: Any, **options: Any) -> FusedLoss:
    """Make a module of a loss.

    Parameters
    ----------
    loss : str, dict, type, callable or Loss
        A loss, or what `fastloss.losses.get` finds one by.
    **options
        Its constructor's arguments, where `loss` is a name or a class.

    Returns
    -------
    FusedLoss
        ``module(input, target, weight=None)``.

    Raises
    ------
    TypeError
        If `loss` is none, or an option is none of its own.
    ValueError
        If there is no such loss, or an option has a value that it cannot have.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> criterion = fastloss.torch.wrap("sparse_categorical_crossentropy", from_logits=True)
    >>> logits = torch.zeros(2, 4, requires_grad=True)
    >>> loss = criterion(logits, torch.tensor([0, 3]))
    >>> loss.backward()
    >>> print(f"{loss.item():.4f} {logits.grad[0].tolist()}")
    1.3863 [-0.375, 0.125, 0.125, 0.125]
    """
    return FusedLoss(adapters.find_loss(loss, options))


class FusedLoss(torch.nn.Module):  # type: ignore[misc]
    """A loss as a module; `wrap` makes one.

    Calling it computes value and gradient in one pass where `input` needs a gradient, and the value alone where not.
    The backward pass multiplies by the gradient that comes in, unless that is 1. Two kinds of losses compute their
    gradient in the backward pass, which is a second pass over the data: unreduced ones (``reduction="none"``), whose
    gradient depends on what comes in for each sample; and those of float16 predictions where what comes in is not 1, so
    that a scaled loss keeps the small gradients that it is scaled for.

    Parameters
    ----------
    loss : Loss
        What is computed.

    Attributes
    ----------
    loss : Loss
        The same.
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss
        self._handle = _register(loss)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._handle = _register(self.loss)

    def forward(self, input: Any, target: Any, weight: Any = None, **further: Any) -> Any:
        """Compute the loss.

        Parameters
        ----------
        input : torch.Tensor
            Predictions, in the shape that the loss has for ``y_pred``: classes on the last axis, unless it has another.
        target : torch.Tensor
            Targets, as the loss's ``y_true``.
        weight : torch.Tensor, optional
            Weights that broadcast to the per-sample losses: the loss's ``sample_weight``.
        **further : torch.Tensor
            What else a call of the loss takes: ``mask``, ``class_weight``, and for CTC the lengths.

        Returns
        -------
        torch.Tensor
            The value; of shape () unless the reduction is ``"none"``. float32 for predictions in half precision.

        Raises
        ------
        TypeError, ValueError
            As the loss does, and if a tensor other than `input` needs a gradient.
        NotImplementedError
            If a tensor is not on the CPU; in the backward pass, if the gradient itself is to be differentiated.
        """
        given = {"y_true": target, "sample_weight": weight, **further}
        return compute(self.loss, input, {name: x for name, x in given.items() if x is not None}, self._handle)

    def extra_repr(self) -> str:
        """The loss, within the module's representation."""
        return repr(self.loss)


def compute(loss: Loss, input: Any, given: dict[str, Any], handle: str | None = None) -> Any:
    """Compute a loss.

    Parameters
    ----------
    loss : Loss
        The loss.
    input : torch.Tensor
        Predictions.
    given : dict of torch.Tensor
        The other arguments of the loss's call by their names, ``y_true`` among them.
    handle : str, optional
        What operators know the loss by.

    Returns
    -------
    torch.Tensor
        The value.
    """
    if torch.compiler.is_compiling():
        return _traced(loss, input, given, handle or _register(loss))
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"`input` must be a torch.Tensor, got {type(input).__name__}")
    if not input.is_cpu:
        return _on_device(loss, input, given)
    inputs = {name: _array(name, value) for name, value in given.items()}
    if input.requires_grad and torch.is_grad_enabled():
        return _Fused.apply(input, loss, given, inputs)
    return _tensor(loss(y_pred=_array("input", input), **inputs))


def _traced(loss: Loss, input: Any, given: dict[str, Any], handle: str) -> Any:
    """The same for what is being compiled, in terms of operators."""
    for name, tensor in given.items():
        _refuse_gradient(name, tensor)
    arguments = (list(given.values()), ",".join(given), handle)
    if not (input.requires_grad and torch.is_grad_enabled()):
        return _value(input, *arguments)
    if _waits(loss, input):
        return _waiting(input, *arguments)
    return _value_and_grad(input, *arguments)[0]


_NAMES = {"y_true": "target", "sample_weight": "weight"}

_SECOND = adapters.SECOND.format(framework="PyTorch")


def _on_device(loss: Loss, input: Any, given: dict[str, Any]) -> Any:
    """The way of tensors that are not in the CPU's memory."""
    raise NotImplementedError(f"`input` is on {input.device}, and losses are computed on the CPU: pass input.cpu()")


def _refuse_gradient(name: str, tensor: Any) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        name = _NAMES.get(name, name)
        raise ValueError(f"`{name}` needs a gradient, but only that of `input` is computed: pass {name}.detach()")


def _array(name: str, tensor: Any) -> Any:
    """The memory of a tensor as an array."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    if tensor.requires_grad:
        if name != "input":
            _refuse_gradient(name, tensor)
        tensor = tensor.detach()
    if not tensor.is_cpu:
        raise NotImplementedError(f"`{_NAMES.get(name, name)}` is on {tensor.device}, but `input` is on the CPU")
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_bfloat16())
    return tensor.numpy()


def _tensor(value: Any) -> Any:
    """A tensor of an array's or scalar's memory."""
    array = np.asarray(value)
    if array.dtype.kind == "V":  # bfloat16, which is none of NumPy's own
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        message = "bfloat16 tensors need ml_dtypes: pip install 'fastloss[torch]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


# --------------------------------------------------------------------------------------------------------------
# Eager code
# --------------------------------------------------------------------------------------------------------------


class _Fused(torch.autograd.Function):  # type: ignore[misc]
    """Value and gradient in one pass, or the value alone where the gradient has to wait for what comes in."""

    @staticmethod
    def forward(ctx: Any, input: Any, loss: Loss, given: dict[str, Any], inputs: dict[str, Any]) -> Any:
        y_pred = _array("input", input)
        ctx.loss, ctx.inputs = loss, None
        if not _waits(loss, input):
            value, gradient = loss.value_and_grad(y_pred=y_pred, **inputs)
            ctx.save_for_backward(_tensor(gradient))
            return _tensor(value)
        ctx.inputs = inputs  # the memory of tensors, which are kept so that PyTorch sees whether it was changed
        kept = [input, *(tensor for tensor in given.values() if isinstance(tensor, torch.Tensor))]
        if not adapters.is_reduced(loss):
            ctx.save_for_backward(None, *kept)
            return _tensor(loss(y_pred=y_pred, **inputs))
        value, gradient = loss.value_and_grad(y_pred=y_pred, **inputs)
        ctx.save_for_backward(_tensor(gradient), *kept)
        return _tensor(value)

    @staticmethod
    def backward(ctx: Any, flow: Any) -> tuple[Any, None, None, None]:
        gradient, *kept = ctx.saved_tensors
        if gradient is None or flow.item() != 1:
            gradient = _pulled(ctx.loss, kept[0], ctx.inputs, flow) if kept else gradient * flow
        if torch.is_grad_enabled():
            gradient = _Once.apply(gradient.detach().requires_grad_())
        return gradient, None, None, None


def _waits(loss: Loss, input: Any) -> bool:
    """Whether the gradient has to wait for what comes in: a number a sample, or a scale that float16 needs."""
    return not adapters.is_reduced(loss) or input.dtype is torch.float16


def _pulled(loss: Loss, input: Any, inputs: dict[str, Any], flow: Any) -> Any:
    """The gradient for what comes in."""
    return _tensor(loss.value_and_grad(y_pred=_array("input", input), upstream=_array("flow", flow), **inputs)[1])


class _Once(torch.autograd.Function):  # type: ignore[misc]
    """A gradient that says why it has none itself."""

    @staticmethod
    def forward(ctx: Any, gradient: Any) -> Any:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, flow: Any) -> Any:
        raise NotImplementedError(_SECOND)


# --------------------------------------------------------------------------------------------------------------
# What is compiled
# --------------------------------------------------------------------------------------------------------------

_losses: dict[str, Loss] = {}
"""The losses that operators know, by their handles."""


def _register(loss: Loss) -> str:
    """The handle of a loss: its config as a text, which any process can read, or a text that only this one knows.

    Compiled graphs are cached on disk with the handles in them. So one that means a loss in this process must not mean
    another loss in the next.
    """
    try:
        handle = json.dumps(losses.serialize(loss), sort_keys=True)
        read = losses.deserialize(json.loads(handle))
        if type(read) is type(loss) and read.get_config() == loss.get_config():
            _losses.setdefault(handle, read)
            return handle
    except (TypeError, ValueError):
        pass  # a class or a function of the user's own
    handle = str(uuid.uuid4())
    _losses[handle] = loss
    return handle


def _find(handle: str) -> Loss:
    if handle not in _losses:
        if not handle.startswith("{"):
            raise RuntimeError(
                "this compiled graph has a loss of another process, which cannot be made of a config: compile it again"
            )
        _losses[handle] = losses.deserialize(json.loads(handle))
    return _losses[handle]


def _call(function: Callable[[Loss], Any], input: Any, others: list[Any], names: str, handle: str, **more: Any) -> Any:
    given = dict(zip(names.split(","), others, strict=True))
    loss = _find(handle)
    if not input.is_cpu:
        return _on_device(loss, input, given)
    inputs = {name: _array(name, tensor) for name, tensor in {**given, **more}.items()}
    return function(loss)(y_pred=_array("input", input), **inputs)


_ARGUMENTS = "Tensor input, Tensor[] others, str names, str loss"


def _value_op(input: Any, others: list[Any], names: str, loss: str) -> Any:
    return _tensor(_call(lambda found: found, input, others, names, loss))


def _value_and_grad_op(input: Any, others: list[Any], names: str, loss: str) -> tuple[Any, Any]:
    value, gradient = _call(lambda found: found.value_and_grad, input, others, names, loss)
    return _tensor(value), _tensor(gradient)


def _pull_op(input: Any, flow: Any, others: list[Any], names: str, loss: str) -> Any:
    return _tensor(_call(lambda found: found.value_and_grad, input, others, names, loss, upstream=flow)[1])


def _value_like(input: Any, others: list[Any], names: str, loss: str) -> Any:
    """A value with neither memory nor contents."""
    found = _find(loss)
    given = {name: _like(tensor) for name, tensor in zip(names.split(","), others, strict=True)}
    shape, dtype = adapters.value_like(found, _like(input), given)
    return torch.empty(shape, dtype=getattr(torch, dtype.name), device=input.device)


def _like(tensor: Any) -> adapters.Like:
    """Shape, as far as it is asked for, and NumPy's dtype of a tensor that need have no memory."""
    dtype = _bfloat16() if tensor.dtype is torch.bfloat16 else np.dtype(str(tensor.dtype).rpartition(".")[2])
    return tensor.shape, dtype


def _gradient_like(input: Any, *arguments: Any) -> Any:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _operator(name: str, function: Any, schema: str, fake: Any) -> Any:
    made = torch.library.custom_op(f"fastloss::{name}", function, mutates_args=(), schema=schema)
    made.register_fake(fake)
    return made


_value = _operator("value", _value_op, f"({_ARGUMENTS}) -> Tensor", _value_like)
_waiting = _operator("waiting_value", _value_op, f"({_ARGUMENTS}) -> Tensor", _value_like)
_value_and_grad = _operator(
    "value_and_grad",
    _value_and_grad_op,
    f"({_ARGUMENTS}) -> (Tensor, Tensor)",
    lambda *arguments: (_value_like(*arguments), _gradient_like(*arguments)),
)
_pull = _operator(
    "pull", _pull_op, "(Tensor input, Tensor flow, Tensor[] others, str names, str loss) -> Tensor", _gradient_like
)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
    ctx.set_materialize_grads(False)
    ctx.others = len(inputs[1])
    ctx.save_for_backward(output[1])


def _scale(ctx: Any, flow: Any, second: Any) -> tuple[Any, ...]:
    if second is not None:
        raise NotImplementedError(_SECOND)
    (gradient,) = ctx.saved_tensors
    return None if flow is None else gradient * flow, [None] * ctx.others, None, None


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, others, ctx.names, ctx.loss = inputs
    ctx.save_for_backward(input, *others)


def _pull_back(ctx: Any, flow: Any) -> tuple[Any, ...]:
    input, *others = ctx.saved_tensors
    return _pull(input, flow, others, ctx.names, ctx.loss), [None] * len(others), None, None


_value_and_grad.register_autograd(_scale, setup_context=_keep_gradient)
_waiting.register_autograd(_pull_back, setup_context=_keep_inputs)
