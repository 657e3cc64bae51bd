"""Losses as functions of JAX: ``fastloss.jax.wrap("huber", delta=2.0)``. Importing this imports JAX.

XLA calls back into Python, where the kernel runs on the arrays' memory. `vmap` is a loop within one such call.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastloss import adapters
from fastloss.losses.arrays import Array
from fastloss.losses.base import Loss

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
    """Value, value and gradient, or the gradient alone, computed on the host."""
    arguments = dict(zip(names, given, strict=True))
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
