"""Losses as modules of PyTorch: ``fastloss.torch.wrap("huber", delta=2.0)``. Importing this imports PyTorch.

There are three ways into a loss. Eager code takes an ``autograd.Function``, which costs half of what a custom operator
does. ``torch.compile`` and ``torch.export`` trace the operator, into which they need not look; its arguments are
tensors, numbers and texts, so it names its loss by the loss's config. Under ``torch.func``'s transformations a
``Function`` of another kind, and slower, says how it is mapped and differentiated.
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

    Tensors on a CUDA device go to the CUDA kernels (the extra ``cuda``), on the current stream. Nothing waits for the
    device, so what comes in is not looked at: the backward pass always multiplies, or, of float16, computes.

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
            What else a call of the loss takes: ``mask``, ``class_weight``, and for CTC the lengths. All are on the
            device of `input`; class weights may be on the CPU, where they are read.

        Returns
        -------
        torch.Tensor
            The value; of shape () unless the reduction is ``"none"``. float32 for predictions in half precision.

        Raises
        ------
        TypeError, ValueError
            As the loss does, and if a tensor other than `input` needs a gradient or is on another device.
        NotImplementedError
            If `input` is neither on the CPU nor on a CUDA device, or is on one for which the loss has no kernel; in the
            backward pass, if the gradient itself is to be differentiated.
        ModuleNotFoundError
            If `input` is on a CUDA device and the extra ``cuda`` is missing.
        """
        given = {"y_true": target}
        if weight is not None:
            given["sample_weight"] = weight
        for name, tensor in further.items():
            if tensor is not None:
                given[name] = tensor
        return compute(self.loss, input, given, self._handle)

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
    if _is_transforming():
        return _transformed(loss, input, given)
    inputs = _read(input, given)
    if not (input.requires_grad and torch.is_grad_enabled()):
        return _tensor(loss(**inputs))
    if _waits(loss, input):
        return _Waiting.apply(input, loss, given, inputs)
    value, gradient = loss.value_and_grad(**inputs)
    return _apply_fused(input, (_tensor(value), _tensor(gradient)))


_is_transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transformation of ``torch.func`` is under way, in which tensors have no memory to read."""


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


def _refuse_gradient(name: str, tensor: Any) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        name = _NAMES.get(name, name)
        raise ValueError(f"`{name}` needs a gradient, but only that of `input` is computed: pass {name}.detach()")


def _read(input: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What the loss is called with: the tensors' memory as arrays, or the tensors themselves if on a CUDA device."""
    if input.is_cpu:
        inputs = {"y_pred": _array(input)}
        for name, value in given.items():
            inputs[name] = _on_cpu(name, value)
        return inputs
    if not input.is_cuda:
        raise NotImplementedError(
            f"`input` is on {input.device}, and losses are computed on the CPU and on CUDA devices: pass input.cpu()"
        )
    return {"y_pred": input.detach(), **{name: _on_cuda(name, value, input) for name, value in given.items()}}


def _on_cpu(name: str, tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor):
        return tensor
    if tensor.requires_grad:
        _refuse_gradient(name, tensor)
    if not tensor.is_cpu:
        raise ValueError(f"`{_NAMES.get(name, name)}` is on {tensor.device}, but `input` is on the CPU")
    return _array(tensor)


def _on_cuda(name: str, tensor: Any, input: Any) -> Any:
    if not isinstance(tensor, torch.Tensor):
        return tensor
    _refuse_gradient(name, tensor)
    if name == "class_weight":
        return _array(tensor.cpu())
    if tensor.device != input.device:
        raise ValueError(f"`{_NAMES.get(name, name)}` is on {tensor.device}, but `input` is on {input.device}")
    return tensor.detach()


def _array(tensor: Any) -> Any:
    """The memory of a tensor as an array."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_bfloat16())
    return tensor.numpy()


def _tensor(value: Any) -> Any:
    """A tensor of an array's or scalar's memory; on a CUDA device it is one already."""
    if isinstance(value, torch.Tensor):
        return value
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
    """A value whose gradient is known: computed before, since the less is done within a Function the less it costs."""

    @staticmethod
    def forward(ctx: Any, input: Any, found: tuple[Any, Any]) -> Any:
        value, gradient = found
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, flow: Any) -> tuple[Any, None]:
        (gradient,) = ctx.saved_tensors
        if flow.is_cuda or flow.item() != 1:
            gradient = gradient * flow
        return _once(gradient), None


# That of the base class of `Function`, whose own looks for transformations of torch.func first, which takes 1 µs.
_apply_fused = super(torch.autograd.Function, _Fused).apply


class _Waiting(torch.autograd.Function):  # type: ignore[misc]
    """A value whose gradient waits for what comes in; where that may be 1, the gradient for 1 is computed along."""

    @staticmethod
    def forward(ctx: Any, input: Any, loss: Loss, given: dict[str, Any], inputs: dict[str, Any]) -> Any:
        # The memory of tensors, which are kept so that PyTorch sees whether it was changed.
        ctx.loss, ctx.inputs = loss, inputs
        kept = [input, *(tensor for tensor in given.values() if isinstance(tensor, torch.Tensor))]
        gradient = None
        if adapters.is_reduced(loss) and input.is_cpu:
            value, gradient = loss.value_and_grad(**inputs)
            gradient = _tensor(gradient)
        else:
            value = loss(**inputs)
        ctx.save_for_backward(gradient, *kept)
        return _tensor(value)

    @staticmethod
    def backward(ctx: Any, flow: Any) -> tuple[Any, None, None, None]:
        gradient, input, *_ = ctx.saved_tensors
        if gradient is None or flow.item() != 1:
            upstream = _array(flow) if input.is_cpu else flow.detach()
            gradient = _tensor(ctx.loss.value_and_grad(**ctx.inputs, upstream=upstream)[1])
        return _once(gradient), None, None, None


def _waits(loss: Loss, input: Any) -> bool:
    """Whether the gradient has to wait for what comes in: a number a sample, or a scale that float16 needs."""
    return not adapters.is_reduced(loss) or input.dtype is torch.float16


def _once(gradient: Any) -> Any:
    """A gradient that is not to be differentiated."""
    return _Once.apply(gradient.detach().requires_grad_()) if torch.is_grad_enabled() else gradient


class _Once(torch.autograd.Function):  # type: ignore[misc]
    """A gradient that says why it has none itself."""

    @staticmethod
    def forward(ctx: Any, gradient: Any) -> Any:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, flow: Any) -> Any:
        raise NotImplementedError(_SECOND)


# --------------------------------------------------------------------------------------------------------------
# torch.func
# --------------------------------------------------------------------------------------------------------------


def _transformed(loss: Loss, input: Any, given: dict[str, Any]) -> Any:
    """A value that may be mapped and differentiated in any order."""
    for name, tensor in given.items():
        _refuse_gradient(name, tensor)
    arguments = (loss, ",".join(given), input, *given.values())
    if _waits(loss, input) or not (input.requires_grad and torch.is_grad_enabled()):
        return _Transformed.apply("value", *arguments)
    return _Transformed.apply("both", *arguments)[0]


class _Transformed(torch.autograd.Function):  # type: ignore[misc]
    """Value, both value and gradient, or gradient for what comes in."""

    @staticmethod
    def forward(kind: str, loss: Loss, names: str, input: Any, *others: Any) -> Any:
        inputs = _read(input, dict(zip(names.split(","), others, strict=True)))
        if kind == "value":
            return _tensor(loss(**inputs))
        value, gradient = map(_tensor, loss.value_and_grad(**inputs))
        return gradient if kind == "gradient" else (value, gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.kind, ctx.loss, ctx.names, *tensors = inputs
        ctx.arguments = len(inputs)
        ctx.save_for_backward(*(output[1:] if ctx.kind == "both" else tensors))

    @staticmethod
    def backward(ctx: Any, flow: Any, second: Any = None) -> tuple[Any, ...]:
        if ctx.kind == "gradient" or second is not None:
            raise NotImplementedError(_SECOND)
        if ctx.kind == "both":
            (gradient,) = ctx.saved_tensors
            gradient = gradient * flow
        else:
            gradient = _Transformed.apply("gradient", ctx.loss, f"{ctx.names},upstream", *ctx.saved_tensors, flow)
        return None, None, None, gradient, *[None] * (ctx.arguments - 4)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError("fastloss has no forward-mode derivatives; use torch.func.grad, vjp or jacrev")

    @staticmethod
    def vmap(info: Any, axes: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        found = [
            _Transformed.apply(
                *(x if axis is None else x.select(axis, i) for x, axis in zip(arguments, axes, strict=True))
            )
            for i in range(info.batch_size)
        ]
        if isinstance(found[0], tuple):
            return tuple(torch.stack(results) for results in zip(*found, strict=True)), (0, 0)
        return torch.stack(found), 0


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
    return function(_find(handle))(**_read(input, {**given, **more}))


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
