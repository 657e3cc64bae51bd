"""Compiling ahead of use."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastloss.losses.base import KernelLoss
from fastloss.losses.identifiers import get
from fastloss.losses.plan import GRADIENT, HESSIAN, VALUE


def warmup(
    *losses: Any,
    shape: tuple[int, int] = (256, 100),
    dtypes: Iterable[Any] = ("float32",),
    weighted: Iterable[bool] = (False,),
    parallel: Iterable[bool] = (False, True),
    hessian: bool = False,
) -> int:
    """Compile the kernels of some losses now, so that no later call waits for it (0.3-1 s a kernel, once a machine).

    A kernel is compiled when it is first needed, and kept on disk from then on. This asks for the value and for value
    and gradient of each loss in each combination of the other arguments.

    Parameters
    ----------
    *losses : Loss or str
        Losses, or names of their classes; without any, all registered ones from probabilities and from logits.
    shape : tuple of int
        Samples and elements of predictions to expect. What matters is whether rows have one element, up to 32, or more,
        and whether a batch of short rows has at least 1024 elements.
    dtypes : iterable of str or numpy.dtype
        Dtypes of predictions and dense targets; class indices are taken as int64.
    weighted : iterable of bool
        Without and with per-sample weights.
    parallel : iterable of bool
        For one thread and for several.
    hessian : bool
        Also compile the diagonal Hessian, where there is one.

    Returns
    -------
    int
        How many kernels are ready.

    Raises
    ------
    ValueError
        If an identifier is unknown.
    TypeError
        If a loss is not a compiled one.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.warmup("MeanSquaredError", fastloss.losses.Huber(2.0), parallel=[False])
    4
    """
    chosen = [get(loss) for loss in losses] if losses else _all()
    for loss in chosen:
        if not isinstance(loss, KernelLoss):
            raise TypeError(f"`losses` must be compiled losses or names of their classes, got {loss!r}")
    ready = 0
    for loss, dtype, has_weights in itertools.product(chosen, dtypes, weighted):
        p = np.full(shape, 1 / shape[1], dtype)
        y = np.zeros(shape[0], np.int64) if loss.class_indices else np.zeros(shape, dtype)
        weight = np.ones(shape[0], dtype) if has_weights else None
        for outputs in (VALUE, GRADIENT, HESSIAN)[: 3 if hessian and loss.has_hessian else 2]:
            launch = loss._resolve(outputs, y, p, weight).plan.launch
            for several in parallel:
                launch.parallel() if several else launch.serial()
                ready += 1
    return ready


def _all() -> list[KernelLoss]:
    from fastloss.registry import LOSSES

    return [
        row.cls(**options) for row in LOSSES.values() for options in row.variants if "label_smoothing" not in options
    ]
