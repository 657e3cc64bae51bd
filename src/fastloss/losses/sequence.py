"""Losses of label sequences whose alignment with the frames of the predictions is not known."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss import kernels
from fastloss.engine import items
from fastloss.kernels.sequence import TABLE_BYTES
from fastloss.losses import arrays, options
from fastloss.losses.arrays import Array
from fastloss.losses.base import Goal, Loss, Option, per_sample
from fastloss.losses.plan import GRADIENT, VALUE
from fastloss.losses.reductions import Reduction

# What the kernel takes for a frame on one thread, in nanoseconds; float32, value and gradient.
_FRAME, _CLASS, _LABEL = 80.0, 0.6, 2.6


class CTC(Loss):
    """Connectionist temporal classification: minus the log-probability of a label sequence, whatever its alignment.

    An alignment says one class for each frame; dropping repetitions, then blanks, leaves the labels. With
    ``q = softmax(y_pred)`` over the classes, an alignment has the probability ``prod_t q[t, class at t]`` and the loss
    of a sequence is ``-log(sum over its alignments)``.

    Predictions are logits, and **the gradient is with respect to these logits**, the softmax differentiated through:
    ``q[t, c]`` minus the probability that the labels are at class c in frame t. It sums to 0 over the classes.

    Parameters
    ----------
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"} or None
        How the per-sequence losses become the value.
    name : str
        Name of the loss.
    dtype : str, numpy.dtype or policy, optional
        Compute dtype; by default that of `fastloss.floatx`, else that of a floating ``y_pred``.
    blank : int
        The class that stands for no label.
    zero_infinity : bool
        Whether sequences that have no alignment count as 0 instead of infinity. Their gradient is 0 either way.

    Raises
    ------
    ValueError
        If `blank` is negative; at a call, if it is no class, if a label is none (not integral or out of range: the
        first one is named, and nothing has been written then), or if a length is out of range.

    Notes
    -----
    ``y_true`` has shape (batch, labels), ``y_pred`` (batch, frames, classes), and the losses are (batch,); range
    [0, ∞].

    Without ``label_lengths``, a sequence's length is the number of its entries other than `blank`, and as many
    *leading* entries are its labels, verbatim: an entry equal to `blank` among them is an ordinary label that happens
    to share the blank's class. What follows the labels may hold anything. All frames count without ``input_lengths``;
    frames beyond have a gradient of 0 and may hold anything too.

    A sequence has no alignment if it has more labels, and pairs of equal neighbours between which there must be a
    blank, than frames; or if logits of -∞ rule every alignment out. Without labels the only alignment is all blanks,
    without frames it is empty, with probability 1. A NaN makes loss and gradient of its sequence NaN.

    References
    ----------
    Graves, Fernández, Gomez and Schmidhuber, "Connectionist temporal classification", ICML 2006. ``keras.losses.CTC``,
    which always counts all frames.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> loss = fastloss.losses.CTC()
    >>> value, grad = loss.value_and_grad([[1]], np.zeros((1, 2, 2)))  # "11", "1-" and "-1" of four
    >>> print(f"{value:.6f} {grad.round(4).tolist()}")
    0.287682 [[[0.1667, -0.1667], [0.1667, -0.1667]]]
    >>> loss(np.array([[1]]), np.zeros((1, 2, 2)), input_lengths=[1]).round(6)
    np.float64(0.693147)
    """

    device_form = "ctc"

    blank = Option(options.index)
    zero_infinity = Option(options.flag)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "ctc",
        dtype: Any = None,
        *,
        blank: int = 0,
        zero_infinity: bool = False,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.blank = blank
        self.zero_infinity = zero_infinity

    def __call__(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        input_lengths: Any = None,
        label_lengths: Any = None,
        mask: Any = None,
        class_weight: Any = None,
        n_threads: int | None = None,
    ) -> Any:
        """Compute the value; no gradient is computed.

        Parameters
        ----------
        y_true : array_like
            Labels, (batch, labels).
        y_pred : array_like
            Logits, (batch, frames, classes).
        sample_weight : array_like, optional
            Weights that broadcast to the per-sequence losses.
        input_lengths : array_like of int, optional
            How many frames of each sequence count; by default all.
        label_lengths : array_like of int, optional
            How many labels each sequence has; by default as many as it has entries other than `blank`.
        mask : array_like of bool, optional
            The sequences that count; the others are not computed, nor their labels and lengths checked.
        class_weight : None
            Sequences have no class.
        n_threads : int, optional
            Threads to use; by default as `fastloss.set_num_threads` says, else by the amount of work.

        Returns
        -------
        numpy scalar or numpy.ndarray
            The reduced loss, or the per-sequence losses where the reduction is ``"none"``.
        """
        return self._evaluate(
            VALUE,
            y_true,
            y_pred,
            sample_weight,
            mask,
            class_weight,
            None,
            None,
            n_threads,
            input_lengths=input_lengths,
            label_lengths=label_lengths,
        )[0]

    def value_and_grad(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        input_lengths: Any = None,
        label_lengths: Any = None,
        mask: Any = None,
        class_weight: Any = None,
        upstream: Any = None,
        out: Array | None = None,
        n_threads: int | None = None,
    ) -> tuple[Any, Array]:
        """Compute the value and its gradient with respect to the logits, in one pass.

        Parameters
        ----------
        y_true, y_pred, sample_weight, input_lengths, label_lengths, mask, class_weight, n_threads
            As for calling the loss.
        upstream : array_like, optional
            The gradient flowing into the value: of its shape if the reduction is ``"none"`` (by default ones: the
            gradient is that of the sum), else a scalar factor. It does not change the value.
        out : numpy.ndarray, optional
            Where the gradient is written: `y_pred`'s shape and the gradient's dtype. ``out=y_pred`` saves memory by
            overwriting the predictions; any other overlap with an input is an error.

        Returns
        -------
        value : numpy scalar or numpy.ndarray
            As from calling the loss.
        gradient : numpy.ndarray
            Of `y_pred`'s shape, and of its dtype where that is floating, else of the value's. `out` if that was given.
        """
        return self._evaluate(
            GRADIENT,
            y_true,
            y_pred,
            sample_weight,
            mask,
            class_weight,
            upstream,
            out,
            n_threads,
            input_lengths=input_lengths,
            label_lengths=label_lengths,
        )[:2]

    def _inputs(self, y: Array, p: Array, compute: np.dtype[Any]) -> tuple[Array, Array]:
        """Labels stay what they are: a compute dtype need not hold them exactly."""
        self._check_shapes(y, p)
        return y, arrays.contiguous(p if arrays.is_float(p) else p.astype(compute))

    def _check_shapes(self, y: Any, p: Any) -> None:
        if y.ndim != 2 or p.ndim != 3 or y.shape[0] != p.shape[0]:
            raise ValueError(
                "`y_true` must have the shape (batch, labels) and `y_pred` the shape (batch, frames, classes). "
                f"Received: y_true.shape={y.shape}, y_pred.shape={p.shape}"
            )
        if self.blank >= p.shape[2]:
            raise ValueError(
                f"`blank` must be a class, less than the {p.shape[2]} classes of `y_pred` of shape {p.shape}, "
                f"got {self.blank}"
            )

    def _labels(self, y: Array, shape: tuple[int, ...]) -> Array:
        raise ValueError(f"`class_weight` needs one class a sample, but {type(self).__name__} has sequences of them")

    def _run(
        self,
        y: Array,
        p: Array,
        valid: Array | None,
        outputs: int,
        n_threads: int | None,
        goal: Goal,
        *,
        input_lengths: Any = None,
        label_lengths: Any = None,
    ) -> tuple[Array, Reduction, Array | None]:
        """The kernel writes the gradient once, in its own dtype, so it is given the flow into the losses."""
        batch, frames, classes = p.shape
        computed = _sequences(valid, batch)
        steps = _lengths("input_lengths", input_lengths, computed, frames, "frames of `y_pred`")
        if label_lengths is None:
            counts = np.count_nonzero(y != self.blank, axis=1)
        else:
            counts = _lengths("label_lengths", label_lengths, computed, y.shape[1], "columns of `y_true`")
        labels = _leading_labels(y, counts, computed, classes)
        reduction = goal.resolve((batch,))
        losses = np.empty(batch, goal.compute)
        gradient = goal.out
        if not outputs:
            gradient = np.empty((0, 0, 0), goal.gradient)
        elif gradient is None or arrays.contiguous(gradient) is not gradient:
            gradient = np.empty(p.shape, goal.gradient)
        work = float(np.sum(steps * (_FRAME + _CLASS * classes + _LABEL * counts), where=computed))
        items.run(
            kernels.ctc,
            goal.compute,
            batch,
            (
                p.reshape(-1),
                gradient.reshape(-1),
                frames,
                classes,
                labels,
                steps,
                counts,
                computed,
                losses,
                reduction.flow((batch,), goal.compute),
                outputs > 0,
                outputs > 0 and gradient.dtype == goal.compute and not arrays.same_memory(gradient, p),
                self.blank,
                self.zero_infinity,
                TABLE_BYTES // goal.compute.itemsize,
                np.empty((1, 0), goal.compute),
            ),
            work,
            n_threads,
        )
        return losses, reduction, gradient if outputs else None


def _sequences(valid: Array | None, batch: int) -> Array:
    """The sequences to compute: of the shape (batch,), which the mask need not have."""
    if valid is None:
        return np.ones(batch, bool)
    if valid.size != 1 and valid.shape not in ((batch,), (batch, 1)):
        raise ValueError(f"`mask` must have the shape of the per-sample losses, {(batch,)}, got shape {valid.shape}")
    return np.array(np.broadcast_to(valid.reshape(-1), batch))


def _lengths(name: str, lengths: Any, computed: Array, most: int, of: str) -> Array:
    """Lengths as int64, checked for the sequences that are computed."""
    batch = len(computed)
    if lengths is None:
        return np.full(batch, most)
    found = arrays.to_array(name, lengths)
    if found.shape not in ((batch,), (batch, 1)):
        raise ValueError(f"`{name}` must have one length a sequence, shape {(batch,)}, got shape {found.shape}")
    found = _exact(found).reshape(-1)
    bad = computed & ~_are_integers_below(found, most + 1)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"`{name}` must hold integers from 0 to {most}, the number of {of}, but {name}[{first}] is {found[first]}"
        )
    return np.where(computed, found, 0).astype(np.int64)


def _leading_labels(y: Array, counts: Array, computed: Array, classes: int) -> Array:
    """Labels as int64, 0 beyond each sequence's length."""
    y = _exact(y)
    leading = (np.arange(y.shape[1]) < counts[:, None]) & computed[:, None]
    bad = leading & ~_are_integers_below(y, classes)
    if bad.any():
        i, k = np.unravel_index(int(np.argmax(bad)), y.shape)
        raise ValueError(
            f"`y_true` must hold class indices, integers from 0 to {classes - 1}, but y_true[{i}, {k}] is {y[i, k]}"
        )
    return np.where(leading, y, 0).astype(np.int64)


def _exact(numbers: Array) -> Array:
    """Integers as they are, and any float as float64."""
    return numbers if numbers.dtype.kind in "biu" else numbers.astype(np.float64)


def _are_integers_below(numbers: Array, limit: int) -> Array:
    inside = (numbers >= 0) & (numbers < limit)
    return inside if numbers.dtype.kind in "biu" else inside & (np.floor(numbers) == numbers)


def ctc(
    y_true: Any,
    y_pred: Any,
    input_lengths: Any = None,
    label_lengths: Any = None,
    blank: int = 0,
    zero_infinity: bool = False,
) -> Any:
    """Per-sequence losses of `CTC`.

    Parameters
    ----------
    y_true : array_like
        Labels, (batch, labels).
    y_pred : array_like
        Logits, (batch, frames, classes).
    input_lengths, label_lengths : array_like of int, optional
        How many frames and labels each sequence has; by default all frames, and as many labels as it has entries other
        than `blank`.
    blank, zero_infinity
        As for `CTC`.

    Returns
    -------
    numpy.ndarray
        Of shape (batch,).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> fastloss.losses.ctc([[1, 0], [1, 2]], np.zeros((2, 2, 3))).round(6).tolist()
    [1.098612, 2.197225]
    """
    return per_sample(CTC, blank=blank, zero_infinity=zero_infinity)(
        y_true, y_pred, input_lengths=input_lengths, label_lengths=label_lengths
    )
