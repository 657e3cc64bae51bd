"""Losses as functions of JAX: ``fastloss.jax.wrap("huber", delta=2.0)``. Importing this imports JAX.

There are two ways into a loss. Most calls of pointwise and rowwise losses are compiled as a whole into a handler that
XLA calls with its own buffers, on one thread (`fastloss.engine.foreign`). For everything else XLA calls back into
Python, which takes 0.1 ms, and a copy of the gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fastloss import adapters, nopython, settings
from fastloss.engine.variant import Form
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Loss

jax: Any = adapters.framework("jax")

__all__ = ["FusedLoss", "wrap"]


def wrap(loss: Any, **options: Any) -> FusedLoss:
    """Make a function of a loss that JAX differentiates, compiles and maps.

    Parameters
    ----------
    loss : str, dict, type, callable or Loss
        A loss, or what `fastloss.losses.get` finds one by.
    **options
        Its constructor's arguments, where `loss` is a name or a class.

    Returns
    -------
    FusedLoss
        ``function(predictions, targets, weights=None)``.

    Raises
    ------
    TypeError
        If `loss` is none, or an option is none of its own.
    ValueError
        If there is no such loss, or an option has a value that it cannot have.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import fastloss.jax
    >>> criterion = fastloss.jax.wrap("sparse_categorical_crossentropy", from_logits=True)
    >>> value, grad = jax.jit(jax.value_and_grad(criterion))(jnp.zeros((2, 4)), jnp.array([0, 3]))
    >>> print(f"{value:.4f} {grad[0].tolist()}")
    1.3863 [-0.375, 0.125, 0.125, 0.125]
    """
    return FusedLoss(adapters.find_loss(loss, options))


class FusedLoss:
    """A loss as a function of JAX arrays; `wrap` makes one.

    Under ``grad`` value and gradient are computed in one pass; without, the value alone. An unreduced loss
    (``reduction="none"``) computes its gradient in the backward pass, a second pass over the data, since it depends on
    what comes in for each sample.

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
        self.loss = loss

    def __call__(self, predictions: Any, targets: Any, weights: Any = None, **further: Any) -> Any:
        """Compute the loss.

        Parameters
        ----------
        predictions : jax.Array
            In the shape that the loss has for ``y_pred``: classes on the last axis, unless it has another. The one
            argument with a gradient; that of the others is zero.
        targets : jax.Array
            The loss's ``y_true``.
        weights : jax.Array, optional
            Weights that broadcast to the per-sample losses: the loss's ``sample_weight``.
        **further : jax.Array
            What else a call of the loss takes: ``mask``, ``class_weight``, and for CTC the lengths.

        Returns
        -------
        jax.Array
            The value; of shape () unless the reduction is ``"none"``. float32 for predictions in half precision.

        Raises
        ------
        jax.errors.JaxRuntimeError
            If the loss refuses what it is given; its own error is in the message.
        NotImplementedError
            If the gradient itself is differentiated.
        """
        given = {"y_true": targets, "sample_weight": weights, **further}
        return compute(self.loss, predictions, {name: array for name, array in given.items() if array is not None})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.loss!r})"


def compute(loss: Loss, predictions: Any, given: dict[str, Any]) -> Any:
    """Compute a loss.

    Parameters
    ----------
    loss : Loss
        The loss.
    predictions : jax.Array
        Predictions.
    given : dict of jax.Array
        The other arguments of the loss's call by their names, ``y_true`` among them.

    Returns
    -------
    jax.Array
        The value.
    """
    arrays = tuple(jax.numpy.asarray(array) for array in given.values())
    return _fused(loss, tuple(given), jax.numpy.asarray(predictions), arrays)


def _call(loss: Loss, names: tuple[str, ...], outputs: int, p: Any, given: tuple[Any, ...]) -> Any:
    """Value, value and gradient, or the gradient alone."""
    arguments = dict(zip(names, given, strict=True))
    target = None if outputs == _GRADIENT else _target(loss, outputs == _BOTH, p, arguments)
    if target is not None:
        likes = (jax.ShapeDtypeStruct((), p.dtype), jax.ShapeDtypeStruct(p.shape, p.dtype))
        return jax.ffi.ffi_call(target, likes[: outputs + 1], vmap_method="sequential")(given[0], p, *given[1:])
    others = {name: (array.shape, array.dtype) for name, array in arguments.items() if name != "upstream"}
    shape, dtype = adapters.value_like(loss, (p.shape, p.dtype), others)
    value = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))
    gradient = jax.ShapeDtypeStruct(p.shape, p.dtype)
    results = ((value,), (value, gradient), (gradient,))[outputs]
    ranks = [p.ndim, *(array.ndim for array in given)]

    def host(*arrays: Any) -> tuple[Array, ...]:
        found = [np.asarray(array) for array in arrays]
        batch = np.broadcast_shapes(*(a.shape[: a.ndim - rank] for a, rank in zip(found, ranks, strict=True)))
        if not batch:
            return _one(loss, names, results, outputs, *found)
        outs = tuple(np.empty(batch + result.shape, result.dtype) for result in results)
        for place in np.ndindex(*batch):
            picked = [
                a[tuple(i if n > 1 else 0 for i, n in zip(place, a.shape[: a.ndim - rank], strict=True))]
                for a, rank in zip(found, ranks, strict=True)
            ]
            for out, result in zip(outs, _one(loss, names, results, outputs, *picked), strict=True):
                out[place] = result
        return outs

    return jax.pure_callback(host, results, p, *given, vmap_method="expand_dims")


def _target(loss: Loss, gradient: bool, p: Any, arguments: dict[str, Any]) -> str | None:
    """The name under which XLA knows the compiled handler of such a call, or None where there is none."""
    y, weight = arguments["y_true"], arguments.get("sample_weight")
    if (
        not isinstance(loss, KernelLoss)
        or set(arguments) - {"y_true", "sample_weight"}
        or p.ndim != 2
        or not p.size
        or p.dtype.name not in ("float32", "float64")
        or loss.dtype not in (None, p.dtype.name)
        or y.shape != (p.shape[:1] if loss.class_indices else p.shape)
        or y.dtype.kind not in ("iu" if loss.class_indices else "iuf")
        or not (weight is None or (weight.shape == p.shape[:1] and weight.dtype.name in ("float32", "float64")))
        or (y.dtype.kind == "f" and y.dtype.itemsize < 4)
        or (loss.check_numerics or settings.get_check_numerics() or "ignore") != "ignore"
        or jax.default_backend() != "cpu"
        or not _knows_interface()
    ):
        return None
    try:
        form = nopython._form(loss, p.dtype)
    except TypeError:  # unreduced, of another axis, of parameters that are vectors
        return None
    if form.samples != "rows" and (form.samples != "whole" or weight is not None):
        return None
    return _registered(form, y.dtype.name, p.dtype.name, None if weight is None else weight.dtype.name, gradient)


@functools.cache
def _knows_interface() -> bool:
    """Whether jaxlib has the version of XLA's interface that handlers are written for."""
    from fastloss.engine import foreign

    try:
        header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    except OSError:
        return False
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)\s", header) for part in ("MAJOR", "MINOR")]
    return sys.maxsize > 2**32 and tuple(int(match[1]) for match in found if match) == foreign.API


@functools.cache
def _registered(form: Form, y: str, p: str, weight: str | None, gradient: bool) -> str | None:
    from fastloss.engine import fingerprint, foreign

    known = fingerprint.of(form.kernel)
    if known is None:
        return None
    # Compiled programs are cached on disk with the name in them: it must not mean another loss in another process.
    values = [getattr(form, field.name) for field in dataclasses.fields(form) if field.name != "kernel"]
    name = (
        "fastloss_"
        + hashlib.sha256(repr((form.kernel.name, known, values, y, p, weight, gradient)).encode()).hexdigest()[:32]
    )
    jax.ffi.register_ffi_target(name, foreign.handler(form, y, p, weight, gradient)[0], platform="cpu")
    return name


def _one(
    loss: Loss, names: tuple[str, ...], results: tuple[Any, ...], outputs: int, p: Array, *given: Array
) -> tuple[Array, ...]:
    arguments: dict[str, Any] = dict(zip(names, given, strict=True))
    if not outputs:
        return (np.asarray(loss(y_pred=p, **arguments), results[0].dtype),)
    value, gradient = loss.value_and_grad(y_pred=p, **arguments)
    return (gradient,) if outputs == 2 else (np.asarray(value, results[0].dtype), gradient)


_VALUE, _BOTH, _GRADIENT = 0, 1, 2


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _once(loss: Loss, names: tuple[str, ...], outputs: int, p: Any, given: tuple[Any, ...]) -> Any:
    """What has a gradient in it, and none itself."""
    return _call(loss, names, outputs, p, given)


def _refuse(*arguments: Any) -> Any:
    raise NotImplementedError(adapters.SECOND.format(framework="JAX"))


_once.defjvp(_refuse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(loss: Loss, names: tuple[str, ...], p: Any, given: tuple[Any, ...]) -> Any:
    return _call(loss, names, _VALUE, p, given)[0]


def _forward(loss: Loss, names: tuple[str, ...], p: Any, given: tuple[Any, ...]) -> Any:
    if adapters.is_reduced(loss):
        return _once(loss, names, _BOTH, p, given)
    return _once(loss, names, _VALUE, p, given)[0], (p, given)


def _backward(loss: Loss, names: tuple[str, ...], kept: Any, flow: Any) -> tuple[Any, None]:
    if adapters.is_reduced(loss):
        return (flow * kept).astype(kept.dtype), None
    p, given = kept
    return _once(loss, (*names, "upstream"), _GRADIENT, p, (*given, flow))[0], None


_fused.defvjp(_forward, _backward)
