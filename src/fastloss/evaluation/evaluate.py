"""`fastloss.evaluate`: a loss over data of any size, in one pass and constant memory.

A reader thread brings the data, batch by batch, if they are not in memory. Each batch goes to a pool of threads, one of
which computes and summarises its blocks with serial kernels, which release the GIL; the summaries are added in the
order of the data.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import numpy as np

from fastloss.engine import threads
from fastloss.evaluation import checkpoint as checkpoints
from fastloss.evaluation import sources
from fastloss.evaluation.blocks import Noting, Scheme, block_samples, pieces
from fastloss.evaluation.files import needs
from fastloss.evaluation.partial import ALL, Partial, State
from fastloss.evaluation.progress import Progress, reporter
from fastloss.evaluation.result import Evaluation
from fastloss.losses import arrays
from fastloss.losses.arrays import Array
from fastloss.settings import floatx

BATCH_BYTES = 8 << 20
"""About how much a batch has, of targets and predictions together, if nothing else is asked for."""

STEP_BYTES = 32 << 20
"""A batch is enlarged to whole chunks of a file up to this size."""


def evaluate(
    loss: Any,
    y_true: Any,
    y_pred: Any,
    sample_weight: Any = None,
    *,
    mask: Any = None,
    group_by: Any = None,
    data: Any = None,
    top_k: int = 0,
    batch_size: int | str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[int, int | None], None] | None = None,
    n_threads: int | None = None,
    scheduler: str | None = None,
) -> Evaluation:
    """Evaluate a loss over data of any size, in one pass and constant memory.

    Parameters
    ----------
    loss : Loss, str, dict or callable
        Whatever `fastloss.losses.get` finds a loss by. A loss whose reduction is ``"none"`` is reduced by mean.
    y_true, y_pred : array_like, path, dataset, iterable of batches, Dask collection, or name
        Targets and predictions, samples along the first axis: arrays and memory maps; datasets of HDF5 and Zarr; Arrow
        arrays; paths of ``.npy``, ``.npz``, ``.h5``, ``.zarr``, ``.safetensors``, ``.parquet`` and ``.arrow`` files and
        of folders of Parquet files, with ``::name`` after the path where a file has several; iterables that give one
        array after the other; Dask arrays and series; or names of columns of `data`. They need not be of one kind.
        Predictions of shape (N,) are N samples of one value each.
    sample_weight, mask : optional
        Weights of the losses, and which of them count, as for calling the loss; of the same kinds. A weight may be one
        number.
    group_by : optional
        A label for each sample; the results are given for each label too. Of the same kinds; at most 100 000 labels.
    data : table, path or iterable of batches, optional
        Of what strings name columns: a path, an Arrow table or dataset, a data frame of pandas, Polars or Dask, a
        mapping, or an iterable of batches that are tuples, mappings or record batches (columns then are positions or
        names).
    top_k : int
        How many of the largest losses to keep, with their places.
    batch_size : int or "auto"
        Samples read at once. It changes memory and speed, not the result.
    checkpoint : path, optional
        Where the state is kept, so that a call with the same arguments goes on where an earlier one was killed; a
        finished one returns its result. Delete the file to start anew.
    progress : bool or callable, optional
        True draws a bar on standard error; a function is called with the samples done and their number, None if it is
        not known.
    n_threads : int, optional
        Threads that compute; by default as `fastloss.set_num_threads` says, else all cores. It does not change the
        result.
    scheduler : str, optional
        Compute with Dask: the address of a ``distributed`` scheduler, whose workers read the files themselves, or
        ``"threads"``, ``"processes"`` or ``"synchronous"``. Dask collections are computed with Dask in any case, by
        default on whatever scheduler is current.

    Returns
    -------
    Evaluation
        Value, standard error, quantiles, groups, worst samples.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of these kinds; lengths differ; there is no sample; a file is damaged; the loss takes the
        samples of a batch together, so that batches do not add up.
    FileNotFoundError
        If there is no such file.
    ImportError
        If a library is missing; the message names the extra that brings it.

    Notes
    -----
    Losses are computed in the loss's dtype and added up in float64 and better: blocks are cut by the shape of a sample
    alone, and added in the order of the data. So neither `batch_size` nor `n_threads` changes a bit. Quantiles come
    from a DDSketch and have a relative error of at most 0.4 %.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> y_true = np.array([0.0, 1.0, 1.0, 0.0])
    >>> y_pred = np.array([0.5, 0.5, 1.0, 3.0])
    >>> found = fastloss.evaluate("MeanSquaredError", y_true, y_pred, group_by=["a", "a", "b", "b"], top_k=1)
    >>> found.value, found.groups["a"].value
    (2.375, 0.25)
    >>> found.worst
    (Worst(index=3, loss=9.0, group='b'),)
    """
    with needs("ddsketch"):
        import ddsketch  # noqa: F401

    top_k, samples = _whole("top_k", top_k, 0), _batch_size(batch_size)
    if n_threads is not None:
        n_threads = threads.check(n_threads)
    given = {"y_true": y_true, "y_pred": y_pred, "sample_weight": sample_weight, "mask": mask, "group_by": group_by}
    for name in ("y_true", "y_pred"):
        if given[name] is None:
            raise TypeError(f"`{name}` must be given, got None")
    constant = None
    position = data is not None and isinstance(sample_weight, int)
    if isinstance(sample_weight, (int, float, np.generic)) and not position:
        constant, given["sample_weight"] = float(sample_weight), None
    scheme = Scheme.of(loss, top_k, constant, mask is not None)
    inputs = {name: value for name, value in given.items() if value is not None}

    from fastloss.evaluation import cluster

    if scheduler is not None or cluster.concerns([*inputs.values(), data]):
        return Evaluation.of(scheme, cluster.evaluate(scheme, inputs, data, scheduler, progress, checkpoint).result)

    shared: dict[int, sources.Shared] = {}
    default = arrays.compute_dtypes(scheme.loss._dtype or floatx(), y_pred)[0]
    columns = {name: sources.resolve(f"`{name}`", value, data, default, shared) for name, value in inputs.items()}
    run = Run(scheme, columns, samples, n_threads)
    kept = None
    if checkpoint is not None:
        kept = checkpoints.Checkpoint(
            checkpoint, scheme.task({name: column.identity() for name, column in columns.items()})
        )
    with reporter(progress, run.length) as report:
        return Evaluation.of(scheme, run(kept, report))


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if value.__index__() < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")
    return int(value.__index__())


def _batch_size(value: Any) -> int | None:
    if isinstance(value, str) and value == "auto":
        return None
    if isinstance(value, str):
        raise ValueError(f"`batch_size` must be a positive integer or 'auto', got {value!r}")
    return _whole("batch_size", value, 1)


class Batch(NamedTuple):
    """What the reader gives: arrays by argument, the first sample's number, and the labels of groups known by then."""

    parts: dict[str, Array]
    start: int
    labels: list[Hashable]


class Run:
    """One pass over columns.

    Parameters
    ----------
    scheme : Scheme
        What is computed.
    columns : dict
        A column for each argument.
    samples : int or None
        Samples read at once; None to choose.
    n_threads : int or None
        Threads that compute, checked.
    """

    def __init__(
        self, scheme: Scheme, columns: dict[str, sources.Column], samples: int | None, n_threads: int | None
    ) -> None:
        self._scheme, self._columns, self._wanted = scheme, columns, samples
        wish = n_threads or threads.get_num_threads() or threads.available()
        self._workers = max(1, wish)
        self.length = check_lengths({name: (column.length, column.place) for name, column in columns.items()})
        if self.length == 0:
            raise ValueError(f"there is no sample to evaluate: {columns['y_pred'].place} is empty")
        shape = columns["y_pred"].shape
        if shape is not None:
            scheme.check_shape(shape)

    def __call__(self, checkpoint: checkpoints.Checkpoint | None, report: Progress) -> Partial:
        """Compute."""
        state, encoder, finished = None, sources.Encoder(), False
        if checkpoint is not None:
            found = checkpoint.load()
            if found is not None:
                (state,), encoder, finished = found
        if state is not None:
            report(state.samples)
        if not finished:
            state = self._compute(state, encoder, checkpoint, report)
            if checkpoint is not None:
                checkpoint.save([state], encoder, True)
        assert state is not None
        return state.result

    def _compute(
        self,
        state: State | None,
        encoder: sources.Encoder,
        checkpoint: checkpoints.Checkpoint | None,
        report: Progress,
    ) -> State:
        saved = time.monotonic()
        with ExitStack() as stack:
            batches: Iterable[Batch] = self._batches(state.samples if state else 0, encoder)
            if "group_by" in self._columns or not all(column.at_hand for column in self._columns.values()):
                batches = stack.enter_context(closing(_Reader(batches)))
            for found in stack.enter_context(closing(self._states(batches))):
                for part in found:
                    if state is None:
                        state = State([None if reading is None else Partial.empty() for reading in part.readings])
                    state.add(part, self._scheme.top_k)
                assert state is not None
                report(state.samples)
                if checkpoint is not None and time.monotonic() - saved >= checkpoints.EVERY:
                    checkpoint.save([state], encoder, False)
                    saved = time.monotonic()
        if state is None:
            raise ValueError(f"there is no sample to evaluate: {self._columns['y_pred'].place} is empty")
        return state

    def _states(self, batches: Iterable[Batch]) -> Generator[list[State], None, None]:
        """The summaries of all blocks in the order of the data, a batch at a time."""
        if self._workers == 1:
            for batch in batches:
                yield states(self._scheme, batch)
            return
        waiting: deque[Future[list[State]]] = deque()
        with ThreadPoolExecutor(self._workers, "fastloss-evaluate") as pool:
            try:
                for batch in batches:
                    waiting.append(pool.submit(states, self._scheme, batch))
                    if len(waiting) > self._workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _batches(self, start: int, encoder: sources.Encoder) -> Iterator[Batch]:
        """Batches of whole blocks, with all columns in step."""
        shape = self._columns["y_pred"].shape
        columns = dict(self._columns)
        if shape is None:
            # The shape of a sample, by which blocks are cut, is that of the first batch.
            first, columns["y_pred"] = _peeked(columns["y_pred"])
            shape = first.shape[1:]
            self._scheme.check_shape(shape)
            size = first.itemsize
        else:
            dtype = getattr(getattr(columns["y_pred"], "array", None), "dtype", None)
            size = dtype.itemsize if isinstance(dtype, np.dtype) else 8
        samples = self._samples(shape, size)
        streams = {
            name: column.groups(encoder, start, samples) if name == "group_by" else column.batches(start, samples)
            for name, column in columns.items()
        }
        while True:
            parts = {name: next(stream, None) for name, stream in streams.items()}
            found = {name: part for name, part in parts.items() if part is not None}
            sizes = {name: len(found[name]) if name in found else 0 for name in parts}
            if len(set(sizes.values())) > 1:
                ends = {name: (start + size, columns[name].place) for name, size in sizes.items()}
                check_lengths(ends, more={name for name, size in sizes.items() if size == samples})
            if not found:
                return
            yield Batch(found, start, list(encoder.labels))
            start += len(found["y_pred"])

    def _samples(self, shape: tuple[int, ...], size: int) -> int:
        """Samples of a batch: whole blocks, and whole chunks where those are not too large."""
        block = block_samples(shape)
        row = max(1, size * math.prod(shape))
        wanted = self._wanted
        if wanted is None:
            wanted = max(1, BATCH_BYTES // row)
            step = max(column.step for column in self._columns.values())
            if step > wanted and step * row <= STEP_BYTES:
                wanted = step
        return max(1, round(wanted / block)) * block


def states(scheme: Scheme, batch: Batch) -> list[State]:
    """The summaries of the blocks of a batch, which starts with a whole block."""
    y, p = batch.parts["y_true"], batch.parts["y_pred"]
    step = block_samples(p.shape[1:])
    mask = batch.parts.get("mask")
    if mask is not None:
        if mask.dtype.kind not in "bui":
            raise TypeError(f"`mask` must be boolean, got {mask.dtype}; pass weights as `sample_weight`")
        mask = mask.astype(bool, copy=False)
    weight, groups = batch.parts.get("sample_weight"), batch.parts.get("group_by")
    found = []
    for begin in range(0, len(p), step):
        end = min(begin + step, len(p))
        whole = None
        if weight is mask is groups is None:
            whole = scheme.plain(y[begin:end], p[begin:end], batch.start + begin)
        if whole is not None:
            found.append(whole)
            continue
        for part in pieces(begin, end):
            with Noting(batch.start + part.start, batch.start + part.stop):
                piece = scheme.summarise(
                    y[part],
                    p[part],
                    None if weight is None else weight[part],
                    None if mask is None else mask[part],
                    None if groups is None else groups[part],
                    batch.labels if groups is not None else [ALL],
                )
            found.append(piece)
    return found


def check_lengths(lengths: Mapping[str, tuple[int | None, str]], more: Collection[str] = ()) -> int | None:
    """The number of samples that all agree on; None if nobody knows."""
    known = {name: length for name, (length, _) in lengths.items() if length is not None}
    if len(set(known.values())) > 1:
        said = ", ".join(
            f"{lengths[name][1]} has {'at least ' if name in more else ''}{length}" for name, length in known.items()
        )
        raise ValueError(f"all arguments must have one entry a sample, but their lengths differ: {said}")
    return next(iter(known.values()), None)


def _peeked(column: sources.Column) -> tuple[Array, sources.Column]:
    """The first piece of a stream, and a stream that still has it."""
    if not isinstance(column, sources.Streamed):
        return next(column.batches(0, 1)), column
    pieces = column.pieces(0)
    first = next(pieces, None)
    if first is None:
        raise ValueError(f"there is no sample to evaluate: {column.place} is empty")

    def again() -> Iterator[Array]:
        yield first
        yield from pieces

    return first, sources.Streamed(column.place, again())


class _Reader:
    """A thread that reads ahead: two batches wait while others are computed."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(2)
        self._batches, self._stopped = batches, threading.Event()
        self._thread = threading.Thread(target=self._read, name="fastloss-reader", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        last: BaseException | None = None
        try:
            for batch in self._batches:
                if not self._put(batch):
                    return
        except BaseException as error:  # it is raised where the batch is awaited
            last = error
        self._put(last)

    def _put(self, item: Batch | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Batch]:
        while (found := self._queue.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def close(self) -> None:
        """Stop reading."""
        self._stopped.set()
        self._thread.join()
