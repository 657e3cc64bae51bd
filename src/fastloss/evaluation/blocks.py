"""From a block of samples to its summary: the loss of each, its weight, whether it counts, and its group."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastloss.evaluation.partial import ALL, Partial, State, plain_summary, summary, swept_summary
from fastloss.losses import identifiers, reductions
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Loss
from fastloss.losses.hinge import SignLoss
from fastloss.losses.layout import axes

BLOCK_ELEMENTS = 1 << 20
"""A block, which batches and partial results consist of, has about so many elements: 1 ms of work."""

PIECE_SAMPLES = 1 << 16
"""So many samples are computed at once at most: their losses stay in the second-level cache."""


def block_samples(shape: tuple[int, ...]) -> int:
    """How many samples of this shape make a block."""
    return max(1, BLOCK_ELEMENTS // max(1, math.prod(shape)))


def pieces(start: int, stop: int) -> Iterator[slice]:
    """The pieces of a block."""
    for first in range(start, stop, PIECE_SAMPLES):
        yield slice(first, min(first + PIECE_SAMPLES, stop))


class Noting:
    """A context that says of errors in which samples they are; no generator, which would take longer than a kernel."""

    def __init__(self, start: int, stop: int) -> None:
        self._start, self._stop = start, stop

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (TypeError, ValueError)):
            error.add_note(f"in samples {self._start} to {self._stop - 1}, which the message counts from 0")


@dataclass(frozen=True)
class Scheme:
    """What is to be computed of each block.

    Attributes
    ----------
    loss : Loss
        Unreduced.
    name : str
        Of the loss's class.
    reduction : str
        The one of the loss as it was given.
    top_k : int
        How many of the largest losses to keep.
    constant : float or None
        A weight that all samples share.
    masked : bool
        Some samples may not count.
    """

    loss: Loss
    name: str
    reduction: str
    top_k: int
    constant: float | None
    masked: bool

    @classmethod
    def of(cls, identifier: Any, top_k: int, constant: float | None, masked: bool) -> Scheme:
        """Check the loss."""
        try:
            loss = identifiers.instance(identifier)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`loss`: {error}") from error
        if loss.coupled:
            raise ValueError(
                f"{type(loss).__name__} cannot be evaluated in batches: the loss of a sample depends on the other "
                "samples of its batch, so the losses of batches do not add up; call the loss itself"
            )
        reduction = "mean" if loss.reduction in ("none", None) else str(loss.reduction)
        each = copy.copy(loss)
        each._reduction, each._check_numerics = "none", "ignore"
        if each._dtype in ("float16", "bfloat16"):
            each._dtype = "float32"  # rounded at the end, not each loss
        return cls(each, type(loss).__name__, reduction, top_k, constant, masked or cls.ignores(loss))

    @staticmethod
    def ignores(loss: Loss) -> bool:
        """Whether the loss itself says that some samples do not count."""
        return loss._options.get("ignore_class") is not None

    def task(self, data: dict[str, Any]) -> dict[str, Any]:
        """What tells one evaluation from another; `data` tells the arguments."""
        try:
            loss = identifiers.serialize(self.loss)
        except ValueError:
            loss = repr(self.loss)
        own = {"loss": loss, "reduction": self.reduction, "top_k": self.top_k, "weight": self.constant}
        return {**own, **data}

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse predictions, of this shape without the first axis, that the loss would not take sample by sample."""
        loss = self.loss
        if isinstance(loss, KernelLoss) and loss._kernel().shape == "rowwise" and not shape:
            raise ValueError(f"`y_pred` must have shape (samples, classes) for {self.name}, got one number a sample")
        if "axis" in loss._options:
            axis, rank = loss._options["axis"], 1 + max(1, len(shape))
            if axis is None or 0 in axes(axis, rank):
                raise ValueError(
                    f"{self.name} with axis={axis!r} cannot be evaluated in batches: it takes the samples together, so "
                    "the batches' losses do not add up; name the axes of one sample, as axis=-1"
                )

    def plain(self, y: Array, p: Array, start: int) -> State | None:
        """The summary of one block, from sample `start` on, if all its losses are finite and count alike."""
        if self.constant is not None or isinstance(self.loss, SignLoss) or self.ignores(self.loss):
            return None
        y, p = _columns(y, p)
        parts = list(pieces(0, len(p)))

        def losses() -> Iterator[Array]:
            for part in parts:
                with Noting(start + part.start, start + part.stop):
                    yield self._losses(y[part], p[part], None)

        part = self._swept(y, p) if not self.top_k else None
        if part is None:
            part = plain_summary(losses(), len(parts), self.top_k)
        return None if part is None else State([part])

    def _swept(self, y: Array, p: Array) -> Partial | None:
        """The summary of one block in one call of compiled code; None where that cannot be, or finds something odd."""
        if not isinstance(self.loss, KernelLoss) or not (p.flags.c_contiguous and y.flags.c_contiguous):
            return None
        first = y[:PIECE_SAMPLES], p[:PIECE_SAMPLES]
        plan = self.loss._ready(*first)
        if plan is None:
            with suppress(TypeError, ValueError):  # which come again, with the samples' numbers
                self._losses(*first, None)
            plan = self.loss._ready(*first)
        sweep = None if plan is None else plan.sweep(y, p)
        return None if sweep is None or not len(sweep.p) else swept_summary(sweep, len(p))

    def summarise(
        self,
        y: Array,
        p: Array,
        weight: Array | None = None,
        mask: Array | None = None,
        groups: Array | None = None,
        labels: list[Hashable] | None = None,
    ) -> State:
        """The summary of one piece.

        Parameters
        ----------
        y, p : numpy.ndarray
            Targets and predictions.
        weight, mask, groups : numpy.ndarray or None
            Weights, a boolean mask, and rows of `labels`, one for each sample at least.
        labels : list or None
            The groups' names, the whole being the first.
        """
        y, p = _columns(y, p)
        if not isinstance(self.loss, SignLoss):
            return State([self._summary(self._losses(y, p, mask), y, p, weight, mask, groups, labels)])
        plain, mapped = self._sign_losses(y, p, mask)
        return State(
            [
                None if losses is None else self._summary(losses, y, p, weight, mask, groups, labels)
                for losses in (plain, mapped)
            ]
        )

    def _losses(self, y: Array, p: Array, mask: Array | None) -> Array:
        losses = np.asarray(self.loss(y, p, mask=mask, n_threads=1))
        if losses.shape[:1] != p.shape[:1]:
            raise ValueError(
                f"{self.name} cannot be evaluated in batches: for {len(p)} samples it gave losses of shape "
                f"{losses.shape}"
            )
        return losses

    def _sign_losses(self, y: Array, p: Array, mask: Array | None) -> tuple[Array, Array | None]:
        """The losses with labels as they are, and with 0 and 1 read as -1 and 1 if all are that."""
        losses = self._losses(y, p, mask)
        if not ((y == 0) | (y == 1)).all():
            return losses, None
        # One more sample, whose label is neither, and no label is mapped.
        y, p = np.concatenate([y.astype(p.dtype), np.full_like(y[:1], -1, p.dtype)]), np.concatenate([p, p[:1]])
        mask = None if mask is None else np.concatenate([mask, mask[:1]])
        return self._losses(y, p, mask)[:-1], losses

    def _summary(
        self,
        losses: Array,
        y: Array,
        p: Array,
        weight: Array | None,
        mask: Array | None,
        groups: Array | None,
        labels: list[Hashable] | None,
    ) -> Partial:
        """Weights, mask and groups as one for each loss, under the rules of a call."""
        if self.ignores(self.loss):
            assert isinstance(self.loss, KernelLoss)
            valid = self.loss._layout(y, p, samples=False, flat=False).valid
            if valid is not None:
                mask = valid if mask is None else mask.reshape(mask.shape + (1,) * (valid.ndim - mask.ndim)) & valid
        weight = None if weight is None else weight.astype(np.float64)
        weight, mask, shape, outer = reductions.align(losses.shape, weight, mask)
        if outer != shape:
            raise ValueError(
                f"`sample_weight` must broadcast to the shape of the per-sample losses, {shape}, got {outer}"
            )
        divisor = None
        if weight is not None:
            divisor = _counted_once(weight, mask, shape)
            weight = np.broadcast_to(weight, shape).ravel()
        elif self.constant is not None:
            weight = np.full(losses.size, self.constant)
        if groups is not None:
            inner = losses.size // max(1, len(groups))
            groups = groups if inner == 1 else np.repeat(groups, inner)
        return summary(
            losses.ravel(),
            weight,
            divisor,
            None if mask is None else np.broadcast_to(mask, shape).ravel(),
            groups,
            labels or [ALL],
            samples=len(p),
            inner=() if losses.size == len(p) else losses.shape[1:],
            by_weight=self.reduction == "mean_with_sample_weight",
            top_k=self.top_k,
        )


def _columns(y: Array, p: Array) -> tuple[Array, Array]:
    """Predictions that are one number a sample as a column, and their targets with them."""
    if p.ndim > 1:
        return y, p
    return y[:, None] if y.ndim == 1 else y, p[:, None]


def _counted_once(weight: Array, mask: Array | None, shape: tuple[int, ...]) -> Array | None:
    """What each loss adds to the sum of weights, where a weight that several losses share is added once."""
    own = weight.shape if mask is None else np.broadcast_shapes(weight.shape, mask.shape)
    own = (1,) * (len(shape) - len(own)) + own
    if own == shape:
        return None
    once = np.zeros(shape)
    first = tuple(slice(None) if n == m else slice(0, 1) for n, m in zip(own, shape, strict=True))
    once[first] = np.broadcast_to(weight, own)
    return once.ravel()
