"""Losses of bounding boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss import kernels
from fastloss.engine import items
from fastloss.kernels.boxes import BLOCK
from fastloss.losses import arrays, options
from fastloss.losses.arrays import Array
from fastloss.losses.base import Loss, Option, Pullback, per_sample

_NANOSECONDS = 6.0
"""About what a box costs, value and gradient, on one thread."""


class GIoULoss(Loss):
    """Generalised intersection over union of boxes ``[y_min, x_min, y_max, x_max]``.

    With the areas I of the intersection of the two boxes, U of their union and E of the smallest box around both, the
    loss of a box is ``1 - I / U`` in mode ``"iou"``; mode ``"giou"`` adds ``(E - U) / E``, which has a gradient for
    disjoint boxes too. A height or width below 0 (swapped corners) counts as 0, and so does a quotient with divisor 0:
    two equal boxes without area have loss 1.

    The gradient follows autodiff of this formula. At its kinks: a coordinate that both boxes share is taken to be the
    predicted one wherever a minimum or maximum chooses, and an extent of exactly 0 has slope 0. So boxes that just
    touch have the gradient of disjoint ones, and for equal boxes in mode ``"iou"`` it is that of shrinking.

    Parameters
    ----------
    mode : {"giou", "iou"}
        Whether the box around both counts.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sample losses become the value; ``"auto"`` is ``"sum_over_batch_size"``.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.

    Raises
    ------
    ValueError
        If `mode` is neither; at a call, if the last axis of targets or predictions does not have size 4.

    Notes
    -----
    ``y_pred`` has shape (..., 4), ``y_true`` that shape too or one that broadcasts to it, the losses have shape (...).
    Range [0, 2], [0, 1] in mode ``"iou"``. Differences of areas are computed without cancellation: equal boxes have
    loss 0 exactly.

    References
    ----------
    H. Rezatofighi et al., "Generalized Intersection over Union: A Metric and a Loss for Bounding Box Regression", CVPR
    2019; ``tensorflow_addons.losses.GIoULoss``.

    Examples
    --------
    >>> import fastloss
    >>> loss = fastloss.losses.GIoULoss()
    >>> value, grad = loss.value_and_grad([[4.0, 3.0, 7.0, 5.0]], [[3.0, 4.0, 6.0, 8.0]])
    >>> print(f"{value:.6f} {grad[0, 0]:.4f}")
    1.075000 -0.0313
    """

    accepts_auto = True

    device_form = "giou"

    mode = Option(options.choice("giou", "iou"))

    def __init__(
        self,
        mode: str = "giou",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "giou_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.mode = mode

    def _inputs(self, y: Array, p: Array, compute: np.dtype[Any]) -> tuple[Array, Array]:
        y = self._aligned(y, p)
        # The kernel reads integers and either float as they are.
        readable = y.dtype.kind in "biu" or y.dtype in (np.float32, np.float64)
        y = y if readable else y.astype(compute)
        return arrays.contiguous(y), arrays.contiguous(p.astype(compute, copy=False))

    @staticmethod
    def _aligned(y: Any, p: Any) -> Any:
        """The targets, broadcast to the predictions; arrays of a device are none the less."""
        for name, boxes in (("y_true", y), ("y_pred", p)):
            if boxes.shape[-1:] != (4,):
                raise ValueError(
                    f"`{name}` must hold boxes [y_min, x_min, y_max, x_max] on its last axis, of size 4, got shape "
                    f"{boxes.shape}"
                )
        if y.shape != p.shape:
            try:
                y = np.broadcast_to(y, p.shape)
            except ValueError:
                raise ValueError(
                    "Arguments `y_true` and `y_pred` must have the same shape (`y_true` may broadcast to `y_pred`). "
                    f"Received: y_true.shape={y.shape}, y_pred.shape={p.shape}"
                ) from None
        return y

    def _compute(
        self, y: Array, p: Array, valid: Array | None, outputs: int, n_threads: int | None
    ) -> tuple[Array, Array | Pullback | None, Array | None]:
        losses = np.empty(p.shape[:-1], p.dtype)
        gradient = np.empty(p.shape if outputs else (0,), p.dtype)
        if self.mode == "giou":
            kernel = kernels.giou_gradient if outputs else kernels.giou
        else:
            kernel = kernels.iou_gradient if outputs else kernels.iou
        arguments = (BLOCK, y.reshape(-1), p.reshape(-1), losses.reshape(-1), gradient.reshape(-1))
        work = _NANOSECONDS * losses.size
        items.run(kernel, p.dtype, -(-losses.size // BLOCK), arguments, work, n_threads)
        return losses, gradient if outputs else None, None


def giou_loss(y_true: Any, y_pred: Any, mode: str = "giou") -> Any:
    """Per-sample losses of `GIoULoss`.

    Parameters
    ----------
    y_true, y_pred : array_like
        Boxes, shape (..., 4).
    mode : {"giou", "iou"}
        As for `GIoULoss`.

    Returns
    -------
    numpy.ndarray
        One loss a box, shape (...).

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.giou_loss([[5.0, 6.0, 10.0, 7.0]], [[14.0, 14.0, 15.0, 15.0]]).round(6).tolist()
    [1.933333...]
    """
    return per_sample(GIoULoss, mode=mode)(y_true, y_pred)
