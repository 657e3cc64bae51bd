"""Losses for ``model.compile``: ``fastloss.keras.wrap("huber", delta=2.0)``. Importing this imports Keras.

A loss takes the way of Keras's backend: that of `fastloss.torch` or `fastloss.jax`, or here, for TensorFlow, a call of
NumPy code from its graph.
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastloss import adapters, losses
from fastloss.losses.base import Loss

keras: Any = adapters.framework("keras")
_masking: Any = importlib.import_module("keras.src.backend.common.masking")

__all__ = ["FusedLoss", "wrap"]


def wrap(loss: Any, **options: Any) -> FusedLoss:
    """Make a ``keras.losses.Loss`` of a loss.

    Parameters
    ----------
    loss : str, dict, type, callable or Loss
        A loss, or what `fastloss.losses.get` finds one by.
    **options
        Its constructor's arguments, where `loss` is a name or a class.

    Returns
    -------
    FusedLoss
        For ``model.compile(loss=...)``, or to be called: ``loss(y_true, y_pred, sample_weight=None)``.

    Raises
    ------
    TypeError
        If `loss` is none, or an option is none of its own.
    ValueError
        If there is no such loss, or an option has a value that it cannot have.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> import fastloss.keras
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    >>> model.compile("sgd", loss=fastloss.keras.wrap("sparse_categorical_crossentropy", from_logits=True))
    >>> history = model.fit(np.eye(3, dtype="float32"), np.arange(3), epochs=2, verbose=0).history
    >>> history["loss"][1] < history["loss"][0]
    True
    """
    return FusedLoss(adapters.find_loss(loss, options))


@keras.saving.register_keras_serializable(package="fastloss")
class FusedLoss(keras.losses.Loss):  # type: ignore[misc]
    """A loss as one of Keras's; `wrap` makes one.

    Value and gradient are computed in one pass, with weights, mask and reduction in it. A mask that ``y_pred`` brings
    along counts as it does for Keras's own losses.

    Parameters
    ----------
    loss : Loss or dict
        What is computed, or its config. Its name and reduction are those of the whole.

    Attributes
    ----------
    loss : Loss
        The same.
    """

    def __init__(self, loss: Any) -> None:
        self.loss: Loss = adapters.find_loss(loss, {})
        super().__init__(name=self.loss.name, reduction=self.loss.reduction, dtype=self.loss.dtype)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Compute the loss.

        Parameters
        ----------
        y_true, y_pred : array_like or tensor
            Targets and predictions; the gradient is with respect to the predictions alone.
        sample_weight : array_like or tensor, optional
            Weights that broadcast to the per-sample losses.

        Returns
        -------
        tensor
            The value; of shape () unless the reduction is ``"none"``.
        """
        return self._compute(self.loss, y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Per-sample losses, unreduced."""
        each = copy.copy(self.loss)
        each._reduction = "none"
        return self._compute(each, y_true, y_pred, None)

    def _compute(self, loss: Loss, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        mask = _masking.get_keras_mask(y_pred)
        given = {"y_true": y_true, "sample_weight": sample_weight, "mask": mask}
        tensors = {name: keras.ops.convert_to_tensor(x) for name, x in given.items() if x is not None}
        with keras.name_scope(self.name):
            return _way()(loss, keras.ops.convert_to_tensor(y_pred), tensors)

    def get_config(self) -> dict[str, Any]:
        """The config of the loss, so that a saved model can be loaded where `fastloss.keras` has been imported."""
        return {"loss": losses.serialize(self.loss)}


@functools.cache
def _way() -> Callable[..., Any]:
    """The function ``(loss, y_pred, others) -> value`` of Keras's backend."""
    backend = keras.config.backend()
    if backend not in _WAYS:
        raise NotImplementedError(
            f"fastloss.keras works with the backends {', '.join(_WAYS)}, and Keras runs on {backend}"
        )
    return _WAYS[backend]()


def _adapter(name: str) -> Any:
    return importlib.import_module(f"fastloss.{name}").compute


def _tensorflow() -> Any:
    tf: Any = adapters.framework("tensorflow", extra="keras")

    def on_host(function: Any, names: list[str], likes: list[Any], p: Any, *tensors: Any) -> Any:
        """Tensors that `function` computes of these as arrays, of shapes and dtypes like these."""

        def run(y_pred: Any, *arrays: Any) -> Any:
            found = function(y_pred=y_pred, **dict(zip(names, arrays, strict=True)))
            return [np.asarray(x, dtype) for x, (_, dtype) in zip(found, likes, strict=True)]

        results = tf.numpy_function(run, [p, *tensors], [dtype for _, dtype in likes], stateful=False)
        results = tf.nest.flatten(results)  # outside of a graph one result comes by itself
        for result, (shape, _) in zip(results, likes, strict=True):
            result.set_shape(shape)
        return results

    def compute(loss: Loss, p: Any, given: dict[str, Any]) -> Any:
        names, tensors = list(given), list(given.values())
        dtype = adapters.value_dtype(loss, p.dtype.as_numpy_dtype)
        gradient = (p.shape, p.dtype.as_numpy_dtype)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def reduced(p: Any) -> Any:
            value, found = on_host(loss.value_and_grad, names, [((), dtype), gradient], p, *tensors)
            return value, lambda flow: found * tf.cast(flow, found.dtype)

        def each(**arrays: Any) -> Any:
            return [loss(**arrays)]

        def slope(**arrays: Any) -> Any:
            return loss.value_and_grad(**arrays)[1:]

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def unreduced(p: Any) -> Any:
            (value,) = on_host(each, names, [(None, dtype)], p, *tensors)

            def backward(flow: Any) -> Any:
                return on_host(slope, [*names, "upstream"], [gradient], p, *tensors, flow)[0]

            return value, backward

        return (reduced if adapters.is_reduced(loss) else unreduced)(p)

    return compute


_WAYS: dict[str, Callable[[], Callable[..., Any]]] = {
    "torch": functools.partial(_adapter, "torch"),
    "jax": functools.partial(_adapter, "jax"),
    "tensorflow": _tensorflow,
}
