"""The same evaluation as a Dask graph: a task for each partition, and their summaries added in a tree.

Which tasks add which summaries is settled by the number of partitions alone, so that the number of workers and the
order in which they finish change no bit. What a worker loses its scheduler computes again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from fastloss.engine import threads
from fastloss.evaluation import sources
from fastloss.evaluation.blocks import Scheme, block_samples
from fastloss.evaluation.checkpoint import Checkpoint
from fastloss.evaluation.evaluate import Batch, check_lengths, states
from fastloss.evaluation.files import needs
from fastloss.evaluation.partial import Partial, State
from fastloss.evaluation.progress import Progress, reporter
from fastloss.losses.arrays import Array

BRANCHES = 8
"""How many summaries a task adds."""

LOCAL = ("threads", "processes", "synchronous")
"""Dask's own schedulers."""

PART_BYTES = 64 << 20
"""About how much of the predictions a task reads, where they are no Dask collection."""


def concerns(values: list[Any]) -> bool:
    """Whether a Dask collection is among the data; Dask is not imported to find out."""
    return any(type(value).__module__.partition(".")[0].startswith("dask") for value in values)


def evaluate(
    scheme: Scheme, inputs: dict[str, Any], data: Any, scheduler: str | None, progress: Any, checkpoint: Any
) -> State:
    """Compute with Dask.

    Parameters
    ----------
    scheme : Scheme
        What is computed of each block.
    inputs : dict
        Targets, predictions and so on.
    data : object or None
        What names in `inputs` are columns of.
    scheduler : str or None
        An address or the name of one of Dask's own schedulers; None for the current one.
    progress : bool, callable or None
        As `fastloss.evaluate` takes it.
    checkpoint : path or None
        Where the state is kept.
    """
    with needs("dask", "cluster"):
        import dask
        from dask.delayed import delayed

    with ExitStack() as stack:
        if scheduler is not None and "://" in scheduler:
            with needs("distributed", "cluster"):
                from distributed import Client
            stack.enter_context(Client(scheduler))  # type: ignore[no-untyped-call]
        elif scheduler is not None:
            if scheduler not in LOCAL:
                raise ValueError(
                    f"`scheduler` must be an address like tcp://host:8786 or one of {LOCAL}, got {scheduler!r}"
                )
            stack.enter_context(dask.config.set(scheduler=scheduler))
        leaves, task = _graph(scheme, inputs, data)
        report: Progress | None = None
        if progress:
            sizes = task["partitions"]
            report = stack.enter_context(reporter(progress, None if sizes is None else sum(sizes)))
        if checkpoint is None:
            leaves = leaves if report is None else _watched(leaves, report, 0, stack)
            state = _tree(leaves, delayed(_add, pure=False), scheme.top_k).compute() if leaves else None
        else:
            state = _kept(leaves, scheme, Checkpoint(checkpoint, scheme.task(task)), report)
    if state is None:
        raise ValueError("there is no sample to evaluate: `y_pred` is empty")
    assert isinstance(state, State)
    return state


def _kept(leaves: list[Any], scheme: Scheme, checkpoint: Checkpoint, report: Progress | None) -> State | None:
    """The same as of the tree, a branch of which is written down as soon as it and those before it are finished.

    Some branches are computed at once, so that all workers have work, and have results when they are done: what a kill
    costs is those branches. How many they are does not change which summaries are added.
    """
    from dask.base import compute
    from dask.delayed import delayed

    found = checkpoint.load()
    done, finished = (found[0], found[2]) if found is not None else ([], False)
    if not finished:
        add = delayed(_add, pure=False)
        count = -(-len(leaves) // BRANCHES)
        step = -(-2 * _workers() // BRANCHES)
        while len(done) < count:
            with ExitStack() as stack:
                some = leaves[len(done) * BRANCHES : (len(done) + step) * BRANCHES]
                if report is not None:
                    before = sum(state.samples for state in done if state is not None)
                    some = _watched(some, report, before, stack)
                branches = [add(some[i : i + BRANCHES], scheme.top_k) for i in range(0, len(some), BRANCHES)]
                done += compute(*branches)  # type: ignore[no-untyped-call]
            checkpoint.save(done, sources.Encoder(), False)
        while len(done) > 1:
            done = [_add(done[i : i + BRANCHES], scheme.top_k) for i in range(0, len(done), BRANCHES)]
        checkpoint.save(done, sources.Encoder(), True)
    return done[0] if done else None


def _workers() -> int:
    """How many tasks the current scheduler runs at once."""
    client = _client()
    if client is not None:
        return max(1, int(sum(client.nthreads().values())))
    return threads.available()


def _tree(level: list[Any], add: Any, top_k: int) -> Any:
    """The task that adds all summaries."""
    while len(level) > 1:
        level = [add(level[i : i + BRANCHES], top_k) for i in range(0, len(level), BRANCHES)]
    return level[0]


def _watched(leaves: list[Any], report: Progress, done: int, stack: ExitStack) -> list[Any]:
    """The same tasks, of which `report` is told as they are finished, `done` samples being finished already."""

    def finished(state: Any) -> None:
        nonlocal done
        if isinstance(state, State):
            done += state.samples
            report(done)

    client = _client()
    if client is None:
        from dask.callbacks import Callback

        keys = {leaf.key for leaf in leaves}

        def after(key: Any, result: Any, *_: Any) -> None:
            if key in keys:
                finished(result)

        stack.enter_context(Callback(posttask=after))  # type: ignore[no-untyped-call]
        return leaves
    from distributed import as_completed

    futures = client.compute(leaves)
    for _, state in as_completed(futures, with_results=True):  # type: ignore[no-untyped-call]
        finished(state)
    return list(futures)


def _client() -> Any:
    """The client of a ``distributed`` cluster that is current; None if there is none."""
    from dask import config

    if "distributed" in sys.modules and config.get("scheduler", None) not in LOCAL:
        from distributed import get_client

        with suppress(ValueError):
            return get_client()
    return None


def _graph(scheme: Scheme, inputs: dict[str, Any], data: Any) -> tuple[list[Any], dict[str, Any]]:
    """The tasks whose results are the summaries of partitions, and what a checkpoint compares."""
    from dask.delayed import delayed

    collections: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in inputs.items():
        if data is not None and isinstance(value, (str, int)) and concerns([data]):
            if value not in data.columns:
                raise sources.missing(f"`{name}`", value, list(data.columns), "data")
            value = data[value]
        (collections if concerns([value]) else others)[name] = value
    pieces: dict[str, list[Any]] = {}
    sizes: list[int] | None = None
    for name in sorted(collections, key="y_pred".__ne__):
        found, pieces[name] = _partitions(name, collections[name], sizes)
        sizes = sizes or found
    counts = {name: len(found) for name, found in pieces.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"`{name}` has {count}" for name, count in counts.items())
        raise ValueError(f"Dask collections must have the same partitions, but {said}")
    if others:
        pieces |= _columns(others, data, sizes if collections else None, bool(collections))
    shape = getattr(collections.get("y_pred"), "shape", None)
    if shape is not None:
        scheme.check_shape(tuple(shape[1:]))
    summarise = delayed(_summarise, pure=False)
    numbers = range(len(pieces["y_pred"]))
    leaves = [summarise(scheme, number, {name: found[number] for name, found in pieces.items()}) for number in numbers]
    task: dict[str, Any] = {
        name: [str(getattr(value, "dtype", None)), getattr(value, "npartitions", None)]
        for name, value in collections.items()
    }
    return leaves, {**task, **{name: repr(type(value)) for name, value in others.items()}, "partitions": sizes}


def _partitions(name: str, value: Any, sizes: list[int] | None) -> tuple[list[int] | None, list[Any]]:
    """The lengths of the partitions, if they are known, and the partitions."""
    if hasattr(value, "chunks"):
        if value.ndim == 0:
            raise ValueError(f"`{name}` must have samples along its first axis, got a single number")
        whole: dict[int, Any] = dict.fromkeys(range(1, value.ndim), -1)
        known = not any(math.isnan(size) for size in value.chunks[0])
        if known and sizes is not None:
            check_lengths({name: (sum(value.chunks[0]), f"`{name}`"), "others": (sum(sizes), "the predictions")})
            whole[0] = tuple(sizes)
        value = value.rechunk(whole)
        found = [int(size) for size in value.chunks[0]] if known else None
        return found, list(value.to_delayed().ravel())
    if hasattr(value, "to_delayed"):
        return None, list(value.to_delayed())
    raise TypeError(f"`{name}` must be a Dask array, series or column of a data frame, got {type(value).__name__}")


def _columns(others: dict[str, Any], data: Any, sizes: list[int] | None, beside: bool) -> dict[str, list[Any]]:
    """Parts of what is no Dask collection: a file is opened where the part is needed."""
    if beside and sizes is None:
        raise ValueError(
            f"`{next(iter(others))}` is no Dask collection, so the partitions beside it must have known lengths: call "
            "`compute_chunk_sizes()` of an array, or `to_dask_array(lengths=True)` of a series"
        )
    default = np.dtype(np.float32)
    columns = {name: sources.resolve(f"`{name}`", value, data, default, {}) for name, value in others.items()}
    for name, column in columns.items():
        if column.length is None:
            raise TypeError(f"`{name}` must have a length to be cut for Dask, got an iterable of batches")
    if sizes is None:
        sizes = _cut(columns["y_pred"])
    lengths = {name: (column.length, column.place) for name, column in columns.items()}
    check_lengths({**lengths, "others": (sum(sizes), "what is beside it")})
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    pairs = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    # An array's part travels with its task; a file's column travels as its path.
    return {
        name: [column.read(*pair) for pair in pairs]
        if isinstance(column, sources.Sliced) and column.file is None
        else [_Part(column, *pair) for pair in pairs]
        for name, column in columns.items()
    }


def _cut(column: sources.Column) -> list[int]:
    """Lengths of parts of about `PART_BYTES`, of whole row groups where there are some."""
    row = 8 * math.prod(column.shape or ())
    most = max(1, PART_BYTES // row)
    if isinstance(getattr(column, "files", None), list):
        rows = [group for file in column.files for group in file.groups]  # type: ignore[attr-defined]
    else:
        block = block_samples(column.shape or ())
        most = max(1, most // block) * block
        length = column.length or 0
        rows = [min(most, length - start) for start in range(0, length, most)]
    sizes: list[int] = []
    for size in rows:
        if sizes and sizes[-1] + size <= most:
            sizes[-1] += size
        else:
            sizes.append(size)
    return sizes


class _Part:
    """Some samples of a column, read where they are needed."""

    def __init__(self, column: sources.Column, start: int, stop: int) -> None:
        self._column, self._start, self._stop = column, start, stop

    def read(self) -> Array:
        if isinstance(self._column, sources.Sliced):
            return self._column.read(self._start, self._stop)
        batches = self._column.batches(self._start, max(1, self._stop - self._start))
        return next(batches)


def _summarise(scheme: Scheme, number: int, parts: dict[str, Any]) -> State | None:
    """A partition's summary; None of an empty one."""
    encoder = sources.Encoder()
    arrays = {}
    for name, part in parts.items():
        if isinstance(part, _Part):
            part = part.read()
        found = sources.as_array(f"`{name}`", part if isinstance(part, np.ndarray) else part.to_numpy())
        arrays[name] = encoder.encode(found) if name == "group_by" else found
    check_lengths({name: (len(found), f"partition {number} of `{name}`") for name, found in arrays.items()})
    if not len(arrays["y_pred"]):
        return None
    scheme.check_shape(arrays["y_pred"].shape[1:])
    try:
        return _add(states(scheme, Batch(arrays, 0, encoder.labels)), scheme.top_k)
    except (TypeError, ValueError) as error:
        error.add_note(f"in partition {number}")
        raise


def _add(parts: Sequence[State | None], top_k: int) -> State | None:
    """Neighbouring summaries as one."""
    total: State | None = None
    for part in parts:
        if part is not None:
            if total is None:
                total = State([None if reading is None else Partial.empty() for reading in part.readings])
            total.add(part, top_k)
    return total
