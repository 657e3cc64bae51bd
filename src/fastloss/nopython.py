"""Losses as functions that code compiled by Numba calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss.adapters import find_loss
from fastloss.engine.variant import Form
from fastloss.losses.base import KernelLoss


def kernel(loss: Any, dtype: Any = "float32", **options: Any) -> Any:
    """Make a function of a loss that code compiled by Numba can call: value and gradient, with no Python in between.

    Parameters
    ----------
    loss : str, dict, type, callable or Loss
        The identifier of a pointwise or rowwise loss (``"huber"``, ``"binary_crossentropy"``, ...), its class or the
        name of that, its function handle, a config, or a loss: also one of `fastloss.losses.from_function` and
        `fastloss.losses.from_kernel`.
    dtype : {"float32", "float64"}
        The dtype that is computed in.
    **options
        The loss's own, such as ``delta=2.0`` or ``from_logits=True``, and ``reduction``. Only where `loss` has none of
        its own.

    Returns
    -------
    callable
        An ``@njit`` function ``(y_true, y_pred, weight, grad) -> value``:

        * ``y_pred``: floats of shape (samples, elements). Of shape (samples,) for a pointwise loss, samples of one
          element each; so it must be for `ContrastiveLoss`. With ``axis=None`` all elements are one sample.
        * ``y_true``: real numbers of the same shape, or integers of shape (samples,) where targets are class indices.
        * ``weight``: real numbers of shape (samples,), or None.
        * ``grad``: where the gradient is written, C-contiguous and of ``y_pred``'s shape; it must not overlap the other
          arrays. None computes the value alone.
        * ``value``: float64. The weighted sum of the samples' losses, divided by the number of samples unless the
          reduction is ``"sum"``, or by the sum of the weights if it is ``"mean_with_sample_weight"``. The gradient is
          that of this value. Of no samples the value is 0.

    Raises
    ------
    TypeError
        If `loss` is neither pointwise nor rowwise, an option is none of the loss's, or `dtype` is neither of the two.
    ValueError
        If there is no such loss, or an option has a value that it cannot have. When the function runs, if shapes do not
        fit or a label is no class; nothing has been written then.

    Notes
    -----
    Arguments are not broadcast, and their types decide what is compiled: one kernel for each combination of dtypes, and
    of what is None. ``y_true``, ``y_pred`` and ``weight`` that are not C-contiguous are copied in every call. It runs
    on the thread that calls it, and may be called from several.

    Kernels come from the cache on disk, or are compiled and put there. The function that calls them is compiled by
    Numba as usual; with ``@njit(cache=True)`` it holds a copy of the kernel, which an update of the package does not
    replace.

    Examples
    --------
    >>> import numba
    >>> import numpy as np
    >>> import fastloss
    >>> huber = fastloss.kernel("huber", dtype="float64", delta=2.0)
    >>> @numba.njit
    ... def fit_line(x, y, rate, steps):
    ...     a = b = 0.0
    ...     grad = np.empty_like(y)
    ...     for _ in range(steps):
    ...         value = huber(y, a * x + b, None, grad)
    ...         a -= rate * (grad * x).sum()
    ...         b -= rate * grad.sum()
    ...     return a, b, value
    >>> x = np.linspace(-1.0, 1.0, 50)
    >>> a, b, value = fit_line(x, 3.0 * x - 1.0, 0.5, 200)
    >>> print(f"{a:.4f} {b:.4f} {value:.4f}")
    3.0000 -1.0000 0.0000
    """
    from fastloss.engine import nopython

    try:
        name = None if dtype is None else np.dtype(dtype).name
    except TypeError:
        name = None
    if name not in ("float32", "float64"):
        raise TypeError(f"`dtype` must be float32 or float64, got {dtype!r}")
    return nopython.function(_form(_loss(loss, options), np.dtype(name)))


def _loss(loss: Any, options: dict[str, Any]) -> KernelLoss:
    found = find_loss(loss, options)
    if not isinstance(found, KernelLoss):
        from fastloss.registry import LOSSES

        raise TypeError(
            f"`loss` must be a pointwise or rowwise loss, which {type(found).__name__} is not; these are: "
            f"{', '.join(LOSSES)}, and those of from_function and from_kernel"
        )
    return found


def _form(loss: KernelLoss, dtype: np.dtype[Any]) -> Form:
    y = np.zeros(2, np.int64) if loss.class_indices else np.zeros((2, 3))
    layout = loss._layout(y, np.zeros((2, 3)), samples=False, flat=False)
    if layout.order is not None:
        raise TypeError("`axis` must be the last one, or None for all: samples are rows")
    if loss.reduction in ("none", None):
        raise TypeError("`reduction` must not be 'none': the function returns one number")
    kernel = loss._kernel()
    try:
        params = loss._params(1)
    except ValueError as error:
        raise TypeError(f"parameters must be numbers here, not vectors: {error}") from None
    return Form(
        kernel,
        dtype.name,
        (*params, 0.0),
        samples={2: "rows", 1: "whole"}.get(layout.p.shape[0], "elements"),
        index=loss.class_indices,
        smooth=kernel.shape == "rowwise" and params[0] > 0,
        mean=loss.per_sample == "mean",
        divisor={"sum": "one", "mean_with_sample_weight": "weights"}.get(loss.reduction, "samples"),
        ignored=loss.get_config().get("ignore_class"),
    )
