"""Compiling ahead of use."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastloss.losses.base import KernelLoss
from fastloss.losses.identifiers import get


def warmup(
    *losses: Any,
    dtypes: Iterable[Any] = ("float32",),
    weighted: Iterable[bool] = (False,),
    threads: Iterable[int | None] = (None,),
    hessian: bool = False,
) -> int:
    """Compile the kernels of some losses now, so that no later call waits for it (0.3-1 s a kernel, once a machine).

    A kernel is compiled when it is first needed and kept on disk; this asks for the value and the gradient of each
    loss in each combination of the other arguments, and so leaves them there too.

    Parameters
    ----------
    *losses : Loss or str
        Losses or identifiers; without any, all registered losses with default options, from probabilities and logits.
    dtypes : iterable of str or numpy.dtype
        Dtypes of the predictions (and of targets that are no class indices, which are taken as int64).
    weighted : iterable of bool
        Without and with per-sample weights.
    threads : iterable of int or None
        Numbers of threads; None stands for what a small and a large batch would choose.
    hessian : bool
        Whether to compile the diagonal Hessian too, where there is one.

    Returns
    -------
    int
        How many combinations were run.

    Raises
    ------
    ValueError
        If an identifier is unknown, or names a function rather than a class.
    TypeError
        If a loss is not a compiled one.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.warmup("MeanSquaredError", fastloss.losses.Huber(2.0))
    4
    """
    chosen = [get(loss) for loss in losses] if losses else _all()
    for loss in chosen:
        if not isinstance(loss, KernelLoss):
            raise TypeError(f"`losses` must be compiled losses or the names of their classes, got {loss!r}")
    counts = [n for wish in threads for n in ((1, 2) if wish is None else (wish,))]
    combinations = list(itertools.product(chosen, dtypes, weighted, counts))
    for loss, dtype, has_weights, count in combinations:
        _run(loss, np.dtype(dtype), has_weights, count, hessian)
    return len(combinations)


def _all() -> list[KernelLoss]:
    from fastloss.registry import LOSSES

    return [row.cls(**options) for row in LOSSES.values() for options in row.variants if "label_smoothing" not in options]


def _run(loss: KernelLoss, dtype: np.dtype[Any], weighted: bool, count: int, hessian: bool) -> None:
    from fastloss.engine.variant import UNIT_ELEMENTS

    # Rows too long for the short-row driver, and enough of them for two units of work.
    shape = (1 + 2 * UNIT_ELEMENTS // 64, 64)
    index = loss._is_index()
    y = np.zeros(shape[0], np.int64) if index else np.zeros(shape, dtype)
    p = np.full(shape, 1 / 64, dtype)
    weight = np.ones(shape[0], dtype) if weighted else None
    loss(y, p, weight, n_threads=count)
    loss.value_and_grad(y, p, weight, n_threads=count)
    if hessian and loss._kernel().shape == "pointwise":
        loss.value_grad_hess(y, p, weight, n_threads=count)
