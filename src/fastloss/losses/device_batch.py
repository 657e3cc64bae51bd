"""Losses of boxes, sequences and whole batches on a CUDA device: the same kernels, launched one after the other.

A loss names its function here (`fastloss.losses.base.Loss.device_form`). What the CPU decides from data (how many pairs
there are, which labels are valid) is decided on the device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastloss import kernels
from fastloss.engine.cuda import labels, launch
from fastloss.engine.cuda.arrays import DeviceArray
from fastloss.engine.cuda.target import SIMULATED
from fastloss.kernels import batch, sequence
from fastloss.kernels.definition import Kernel
from fastloss.kernels.weights import itself
from fastloss.losses import arrays, device
from fastloss.losses.device import DeviceCall, DeviceReduction
from fastloss.losses.plan import variant_of

TABLE_BYTES = 1 << (10 if SIMULATED else 30)
"""What the tables of all sequences of a batch may take; beyond, frames are computed again."""

_SUMS = 1 << (5 if SIMULATED else 15)
"""About how many partial sums a whole batch is divided into."""


def evaluate(loss: Any, outputs: int, call: DeviceCall, extras: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Value and gradient, if `outputs` asks for it, as arrays of the call's library."""
    work = Work(loss, outputs > 0, call)
    globals()[loss.device_form](loss, work, **extras)
    if work.g is None:
        return work.value.owner, None, None
    if call.destination is None:
        return work.value.owner, work.g.owner, None
    if work.g is not call.destination:
        call.library.copy(work.g, call.destination)
    return work.value.owner, call.out, None


class Work:
    """What a call comes to, and what serves all losses on the way.

    Parameters
    ----------
    loss : Loss
        Whose reduction it is.
    gradient : bool
        Whether it is wanted.
    call : DeviceCall
        The arguments.

    Attributes
    ----------
    value, g : DeviceArray
        The results.
    """

    value: DeviceArray
    g: DeviceArray | None = None

    def __init__(self, loss: Any, gradient: bool, call: DeviceCall) -> None:
        self.loss, self.gradient, self.call = loss, gradient, call
        self.y, self.p = call.y, call.p
        self.compute, self.code = call.compute, call.compute.str[1:]

    def empty(self, *shape: int, code: str | None = None) -> DeviceArray:
        """A new array, by default in the compute dtype."""
        return self.call.library.empty(shape, code or self.code)

    def run(self, kernel: Kernel, count: int, *arguments: Any, alone: bool = False) -> None:
        """Call an itemwise kernel for so many items."""
        launch.items(kernel, self.compute, count, arguments, alone=alone)

    def computable(self, array: DeviceArray) -> DeviceArray:
        """An array contiguous in the compute dtype."""
        return array.astype(self.code).contiguous()

    def place(self) -> DeviceArray:
        """Where the gradient is written."""
        found = self.call.destination
        if found is None or not found.is_contiguous:
            found = self.empty(*self.p.shape, code=self.call.g_code)
        self.g = found
        return found

    def resolve(
        self, shape: tuple[int, ...], counted: DeviceArray | None = None, classes: DeviceArray | None = None
    ) -> DeviceReduction:
        """What is to be done with losses of this shape, of which some may not count, and whose samples have classes."""
        call, weight, mask = self.call, self.call.weight, self.call.valid
        name = type(self.loss).__name__
        if call.class_weight is not None:
            if shape == ():
                raise ValueError(f"`class_weight` needs a loss a sample, but {name} gave one for all")
            if classes is None:
                raise ValueError(f"`class_weight` needs one class a sample, but {name} has none")
            weight = device.times_class_weights(call.class_weight, classes, shape, weight, call.compute, name)
        if counted is not None:
            mask = counted if mask is None else device.both(counted, mask)
        return device.resolve(call.library, shape, self.loss.reduction, weight, mask, call.upstream, call.compute)

    def reduce(
        self, losses: DeviceArray, shape: tuple[int, ...], reduction: DeviceReduction, flowing: bool
    ) -> DeviceArray:
        """Make the value of the losses; the gradient flowing into each of them, if that is wanted."""
        flow = self.empty(losses.size if flowing else 1)
        values = reduction.shape is not None
        self.value = self.empty(*(reduction.shape or ()), code=self.call.value_code)
        if not losses.size:
            launch.fill(self.value, 0.0)
            return flow
        variant = variant_of(
            itself, int(flowing), (self.code,) * 3, self.code, (), index=False, weighted=reduction.weights is not None,
            masked=reduction.mask is not None, values=values,
        )  # fmt: skip
        launch.run(
            launch.Job(
                variant, losses.size, 1, (), losses, losses, flow if flowing else None, None, reduction.weights,
                reduction.grad_weights, reduction.mask, reduction.factor, self.value, reduction.value_factor,
                reduction.grad_factor, type(self.loss).__name__, shape,
            )
        )  # fmt: skip
        return flow

    def finish(self, losses: DeviceArray, slopes: DeviceArray | None, shape: tuple[int, ...], **options: Any) -> None:
        """Value and gradient from losses and the slopes of each in its own predictions."""
        reduction = self.resolve(shape, **options)
        flow = self.reduce(losses, shape, reduction, slopes is not None)
        if slopes is not None:
            launch.pull(slopes, flow, reduction.mask, self.place())

    def total(self, numbers: DeviceArray) -> DeviceArray:
        """Their sum."""
        made = self.empty(1)
        variant = variant_of(
            itself, 0, (self.code,) * 3, self.code, (), index=False, weighted=False, masked=False, values=False
        )
        nothing = (None, None, None, None, None, None)
        job = launch.Job(variant, numbers.size, 1, (), numbers, numbers, *nothing, made, 1.0, 1.0, "", ())
        launch.run(job)
        return made

    def mean(self, losses: DeviceArray, divisor: DeviceArray) -> DeviceArray:
        """Their sum by a divisor, or by 1 if that is less."""
        made = self.empty(1)
        self.run(batch.quotient, 1, self.total(losses), divisor, made, alone=True)
        return made

    def number(self, value: float) -> DeviceArray:
        """A number in device memory."""
        made = self.empty(1)
        launch.fill(made, value)
        return made

    def square(self) -> DeviceArray:
        """Memory for the slopes of all distances, if a gradient is wanted."""
        size = self.p.shape[0] if self.gradient else 1
        return self.empty(size, size)

    def nothing(self) -> None:
        """The value of an empty batch."""
        self.finish(self.number(0.0), self.empty(*self.p.shape) if self.gradient else None, ())


# ---- boxes ----------------------------------------------------------------------------------------------------------


def giou(loss: Any, work: Work) -> None:
    """Of `fastloss.losses.GIoULoss`: a thread a box."""
    aligned = loss._aligned(work.y, work.p)
    shape = work.p.shape[:-1]
    y, p = aligned.contiguous(), work.computable(work.p)
    if y.code in ("f2", "bf2", "b1"):
        y = y.astype(work.code)
    losses = work.empty(math.prod(shape))
    slopes = work.empty(*p.shape) if work.gradient else None
    if loss.mode == "giou":
        kernel = kernels.giou_gradient if work.gradient else kernels.giou
    else:
        kernel = kernels.iou_gradient if work.gradient else kernels.iou
    place = losses if slopes is None else slopes.reshape(-1)
    work.run(kernel, losses.size, 1, y.reshape(-1), p.reshape(-1), losses, place, alone=True)
    work.finish(losses, slopes, shape, classes=y.reshape(-1, 4))


# ---- whole batches --------------------------------------------------------------------------------------------------


class Distances:
    """Distances between embeddings, and their pullback, as `fastloss.losses.pairwise` has them."""

    def __init__(self, work: Work, p: DeviceArray, metric: Any) -> None:
        if callable(metric):
            raise NotImplementedError(
                "a callable `distance_metric` has no CUDA form; use 'L2', 'squared-L2' or 'angular', or copy `y_true` "
                "and `y_pred` to the host"
            )
        self.work, self.p, self.metric = work, p, metric
        size, library = p.shape[0], work.call.library
        if metric == "angular":
            self.units, self.squares = work.empty(*p.shape), work.empty(size)
            work.run(batch.unit, size, p, self.units, self.squares)
        else:
            self.units = p
        self.matrix = library.product(self.units, self.units, transposed=True)
        if metric in ("angular", "cosine"):
            work.run(batch.cosine, size, self.matrix)
        else:
            self.norms = self.matrix.view((size,), (size + 1,)).contiguous()
            work.run(kernels.euclidean, size, self.matrix, self.norms, p, metric == "squared-L2")

    def back(self, slopes: DeviceArray, factors: DeviceArray) -> DeviceArray:
        """The embeddings' gradient, from slopes of row losses in the distances and what flows into each row's loss.

        It uses up the distances.
        """
        work, size = self.work, self.p.shape[0]
        turned = work.empty(size, size)
        work.run(batch.turned, size, slopes, factors, turned)
        if self.metric in ("angular", "cosine"):
            work.run(kernels.flow_cosine, size, self.matrix, slopes, factors, turned)
            gradient = work.call.library.product(self.matrix, self.units)
            if self.metric == "angular":
                work.run(batch.across, size, self.units, self.squares, gradient)
            return gradient
        near = work.empty(*self.p.shape)
        launch.fill(near, 0.0)
        squared = self.metric == "squared-L2"
        arguments = (self.matrix, slopes, factors, self.norms, self.p, turned, near, squared)
        work.run(kernels.flow_euclidean, size, *arguments)
        gradient = work.call.library.product(self.matrix, self.p)
        work.run(batch.plus, size, near, gradient)
        return gradient


class Classes:
    """The classes of a batch's labels, numbered by their first members."""

    def __init__(self, work: Work, y: DeviceArray) -> None:
        size = y.size
        self.codes, self.ranks = work.empty(size, code="i4"), work.empty(size, code="i4")
        self.others = work.empty(size)
        work.run(batch.classes, size, y.contiguous().reshape(-1), self.codes, self.ranks, self.others)

    def lists(self, work: Work) -> tuple[DeviceArray, DeviceArray]:
        """The members of all classes, and where those of each begin."""
        size = self.codes.size
        members, starts = work.empty(size, code="i4"), work.empty(size + 1, code="i8")
        work.run(batch.members, size + 1, self.codes, self.ranks, members, starts)
        return members, starts


def _embeddings(loss: Any, work: Work) -> DeviceArray:
    """The embeddings as kernels take them, labels and shapes checked."""
    loss._check_shapes(work.y, work.p)
    return work.computable(work.p)


def _conclude(work: Work, losses: DeviceArray, divisor: DeviceArray, found: Distances, slopes: DeviceArray) -> None:
    """A value that is the losses' sum by a divisor, and its gradient."""
    value = work.mean(losses, divisor)
    reduction = work.resolve(())
    flow = work.reduce(value, (), reduction, work.gradient)
    if work.gradient:
        factors = work.empty(losses.size)
        work.run(batch.quotient, losses.size, flow, divisor, factors, alone=True)
        _deliver(work, found.back(slopes, factors), reduction)


def _deliver(work: Work, gradient: DeviceArray, reduction: DeviceReduction) -> None:
    """A gradient that is complete, unless the whole batch is masked."""
    mask = reduction.mask if reduction.shape is None or reduction.shape == () else None
    launch.pull(gradient, work.number(1.0), mask, work.place())


def triplet_semihard(loss: Any, work: Work) -> None:
    """Of `fastloss.losses.TripletSemiHardLoss`."""
    p = _embeddings(loss, work)
    size = p.shape[0]
    if not size:
        return work.nothing()
    found, classes = Distances(work, p, loss.distance_metric), Classes(work, work.y)
    losses, slopes, lists = work.empty(size), work.square(), work.empty(size, size)
    keys, places = work.empty(size, 2, 1), work.empty(size, 3, 1, code="i4")  # for a sort that no team does
    members, starts = classes.lists(work)
    work.run(
        kernels.triplet_semihard, size, 1, found.matrix, classes.codes, members, starts, loss.margin, 1.0, lists, keys,
        places, losses, slopes, work.gradient,
    )  # fmt: skip
    return _conclude(work, losses, work.total(classes.others), found, slopes)


def triplet_hard(loss: Any, work: Work) -> None:
    """Of `fastloss.losses.TripletHardLoss`."""
    p = _embeddings(loss, work)
    size = p.shape[0]
    if not size:
        return work.nothing()
    found, classes = Distances(work, p, loss.distance_metric), Classes(work, work.y)
    losses, slopes = work.empty(size), work.square()
    arguments = (found.matrix, classes.codes, loss.margin, loss.soft, 1.0, losses, slopes, work.gradient)
    work.run(kernels.triplet_hard, size, *arguments)
    return _conclude(work, losses, work.number(size), found, slopes)


def lifted_struct(loss: Any, work: Work) -> None:
    """Of `fastloss.losses.LiftedStructLoss`."""
    p = _embeddings(loss, work)
    size = p.shape[0]
    if not size:
        return work.nothing()
    found, classes = Distances(work, p, "L2"), Classes(work, work.y)
    losses, sums, slopes = work.empty(size), work.empty(size), work.square()
    work.run(kernels.lifted_negatives, size, found.matrix, classes.codes, loss.margin, sums, slopes, work.gradient)
    # The value is half of their sum; these slopes are the half's already.
    work.run(kernels.lifted_pairs, size, found.matrix, classes.codes, sums, 1.0, losses, slopes, work.gradient)
    pairs = work.total(classes.others)
    halved = work.empty(size)
    launch.pull(losses, work.number(0.5), None, halved)
    return _conclude(work, halved, pairs, found, slopes)


def circle(loss: Any, work: Work) -> None:
    """Of `fastloss.losses.Circle`."""
    p = _embeddings(loss, work)
    size = p.shape[0]
    losses, slopes = work.empty(size), work.square()
    if not size:
        return work.finish(losses, work.empty(*p.shape) if work.gradient else None, (0,))
    found, classes = Distances(work, p, "cosine"), Classes(work, work.y)
    work.run(
        kernels.circle, size, found.matrix, classes.codes, classes.codes, loss.remove_diagonal, loss.gamma, loss.margin,
        losses, slopes, work.gradient,
    )  # fmt: skip
    counted: Any = losses != 0  # a NaN counts
    reduction = work.resolve((size,), counted=counted, classes=work.y.reshape(-1))
    flow = work.reduce(losses, (size,), reduction, work.gradient)
    if work.gradient:
        _deliver(work, found.back(slopes, flow), reduction)
    return None


def npairs(loss: Any, work: Work) -> None:
    """Of `fastloss.losses.NpairsLoss`."""
    p = _embeddings(loss, work)
    if not p.size:
        return work.nothing()
    classes = Classes(work, work.y)
    # As many as there are others, and the sample itself.
    sums = work.empty(p.shape[0])
    launch.fill(sums, 1.0)
    work.run(batch.plus, 1, classes.others.reshape(1, -1), sums.reshape(1, -1))
    return _npairs(kernels.npairs, work, p, classes.codes, sums)


def npairs_multilabel(loss: Any, work: Work) -> None:
    """Of `fastloss.losses.NpairsMultilabelLoss`."""
    p = _embeddings(loss, work)
    if not p.size:
        return work.nothing()
    y = work.computable(work.y)
    shared, sums = work.call.library.product(y, y, transposed=True), work.empty(p.shape[0])
    work.run(batch.row_sums, p.shape[0], shared, sums)
    return _npairs(kernels.npairs_multilabel, work, p, shared, sums)


def _npairs(kernel: Kernel, work: Work, p: DeviceArray, targets: DeviceArray, sums: DeviceArray) -> None:
    size = p.shape[0]
    losses, slopes = work.empty(size), work.square()
    work.run(kernel, size, p, targets, sums, 1.0 / size, losses, slopes, work.gradient)
    work.finish(work.mean(losses, work.number(size)), slopes if work.gradient else None, ())


def weighted_kappa(loss: Any, work: Work) -> None:
    """Of `fastloss.losses.WeightedKappaLoss`."""
    loss._check_shapes(work.y, work.p)
    y, p = work.y.contiguous(), work.computable(work.p)
    samples, columns = p.shape
    if not samples:
        return work.nothing()
    linear = loss.weightage == "linear"
    step = columns * min(samples, max(1, _SUMS // columns))
    labels, slopes = work.empty(samples), work.empty(*p.shape) if work.gradient else None
    sums, known = work.empty(3, step, code="f8"), work.empty(2 * columns, code="f8")
    value, factors = work.empty(1), work.empty(columns + 1)
    flat, predictions = y.reshape(-1), p.reshape(-1)
    work.run(batch.mean_class, samples, flat, labels, columns, alone=columns <= device.NARROW)
    kernel = batch.kappa_sums_linear if linear else batch.kappa_sums_quadratic
    work.run(kernel, step, flat, predictions, labels, columns, sums, alone=True)
    kernel = batch.kappa_linear if linear else batch.kappa_quadratic
    work.run(kernel, 1, sums, columns, samples, loss.epsilon, value, known, factors)
    if slopes is not None:
        kernel = batch.kappa_slopes_linear if linear else batch.kappa_slopes_quadratic
        work.run(kernel, p.size, labels, columns, factors, slopes.reshape(-1), alone=True)
    return work.finish(value, slopes, ())


# ---- sequences ------------------------------------------------------------------------------------------------------


def ctc(loss: Any, work: Work, input_lengths: Any = None, label_lengths: Any = None) -> None:
    """Of `fastloss.losses.CTC`: a block a sequence."""
    loss._check_shapes(work.y, work.p)
    p = work.p.contiguous()
    p = p if p.is_float else work.computable(p)
    y = work.y.contiguous()
    samples, frames, classes = p.shape
    columns = y.shape[1]
    mask = work.call.valid
    if mask is not None:
        if mask.size != 1 and mask.shape not in ((samples,), (samples, 1)):
            raise loss._mask_error(mask.shape, samples)
        mask = device.rows(mask.reshape(-1), (samples,))
    if work.call.class_weight is not None:
        loss._labels(y, (samples,))
    given = [
        _lengths(work, name, lengths, samples)
        for name, lengths in (("input_lengths", input_lengths), ("label_lengths", label_lengths))
    ]
    reduction = work.resolve((samples,))
    losses = work.empty(samples)
    place = work.place() if work.gradient else work.empty(1, 1, 1, code=work.call.g_code)
    if not samples:
        work.reduce(losses, (samples,), reduction, False)
        return
    launch.fill(losses, 0.0)
    flow = work.reduce(losses, (samples,), reduction, work.gradient)
    known, steps, counts = work.empty(samples, columns, code="i8"), *(work.empty(samples, code="i8") for _ in "ab")
    status = work.empty(samples, code="u1")
    name = type(loss).__name__
    memory, label_slot = labels.slot(name, y.shape, labels.classes(classes))
    limits = (("input_lengths", frames, "frames of `y_pred`"), ("label_lengths", columns, "columns of `y_true`"))
    slots = [
        labels.slot(name, (samples,), f"integers from 0 to {most}, the number of {of}", argument)[1]
        for argument, most, of in limits
    ]
    nothing = steps
    work.run(
        batch.sequences, samples, y.reshape(-1) if y.size else nothing, *(nothing if a is None else a for a in given),
        status if mask is None else mask, *(a is not None for a in given), mask is not None, columns, frames, classes,
        loss.blank, known.reshape(-1) if known.size else nothing, steps, counts, status, memory, label_slot, *slots,
        alone=True,
    )  # fmt: skip
    most_numbers = TABLE_BYTES // (samples * work.compute.itemsize)
    room = sequence.room(frames, columns, classes, most_numbers, work.compute.itemsize)
    own = place.memory is not p.memory if SIMULATED else place.memory != p.memory
    work.run(
        kernels.ctc, samples, p.reshape(-1), place.reshape(-1), frames, classes, known, steps, counts, status, losses,
        flow, work.gradient, work.gradient and place.code == work.code and own, loss.blank, loss.zero_infinity,
        most_numbers, work.empty(samples, room),
    )  # fmt: skip
    work.reduce(losses, (samples,), reduction, False)


def _lengths(work: Work, name: str, lengths: Any, samples: int) -> DeviceArray | None:
    """Lengths on the device, of any dtype and not yet checked."""
    if lengths is None:
        return None
    if arrays.on_cuda(lengths):
        found = work.call.library.read(name, lengths)
    else:
        array = arrays.to_array(name, lengths)
        whole = array.dtype.kind in "biu"
        found = work.call.library.upload(array.astype(np.int64 if whole else np.float64), "i8" if whole else "f8")
    if found.shape not in ((samples,), (samples, 1)):
        raise ValueError(f"`{name}` must have one length a sequence, shape {(samples,)}, got shape {found.shape}")
    return found.contiguous().reshape(-1)
