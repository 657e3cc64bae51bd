"""The same evaluation as a Dask graph: a task for each partition, and their summaries added in a tree.

Which tasks add which summaries is settled by the number of partitions alone, so that the number of workers and the
order in which they finish change no bit. What a worker loses its scheduler computes again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastloss.evaluation import sources
from fastloss.evaluation.blocks import Scheme
from fastloss.evaluation.evaluate import Batch, check_lengths, states
from fastloss.evaluation.partial import Partial, State
from fastloss.losses.arrays import Array

BRANCHES = 8
"""How many summaries a task adds."""


def concerns(values: list[Any]) -> bool:
    """Whether a Dask collection is among the data; Dask is not imported to find out."""
    return any(type(value).__module__.partition(".")[0].startswith("dask") for value in values)


def evaluate(scheme: Scheme, inputs: dict[str, Any], data: Any) -> State:
    """Compute on whatever scheduler is current.

    Parameters
    ----------
    scheme : Scheme
        What is computed of each block.
    inputs : dict
        Targets, predictions and so on, of which one at least is a Dask collection.
    data : object or None
        What names in `inputs` are columns of.
    """
    from dask.delayed import delayed

    collections: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in inputs.items():
        if data is not None and isinstance(value, (str, int)) and concerns([data]):
            if value not in data.columns:
                raise sources.missing(f"`{name}`", value, list(data.columns), "data")
            value = data[value]
        (collections if concerns([value]) else others)[name] = value
    lead = "y_pred" if "y_pred" in collections else next(iter(collections))
    sizes, parts = _partitions(lead, collections[lead], None)
    pieces = {lead: parts}
    for name, value in collections.items():
        if name != lead:
            pieces[name] = _partitions(name, value, sizes)[1]
    counts = {name: (len(found), f"`{name}`") for name, found in pieces.items()}
    if len({count for count, _ in counts.values()}) > 1:
        said = ", ".join(f"{place} has {count}" for count, place in counts.values())
        raise ValueError(f"Dask collections must have the same partitions: {said}")
    if others:
        pieces |= _columns(others, data, sizes, lead)
    shape = getattr(collections.get("y_pred"), "shape", None)
    if shape is not None:
        scheme.check_shape(tuple(shape[1:]))
    summarise = delayed(_summarise, pure=False)
    level = [
        summarise(scheme, number, {name: found[number] for name, found in pieces.items()})
        for number in range(len(parts))
    ]
    add = delayed(_add, pure=False)
    while len(level) > 1:
        level = [add(level[i : i + BRANCHES], scheme.top_k) for i in range(0, len(level), BRANCHES)]
    state = level[0].compute() if level else None
    if state is None:
        raise ValueError(f"there is no sample to evaluate: `{lead}` is empty")
    assert isinstance(state, State)
    return state


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


def _columns(others: dict[str, Any], data: Any, sizes: list[int] | None, lead: str) -> dict[str, list[Any]]:
    """Parts of what is no Dask collection: a file is opened where the part is needed."""
    if sizes is None:
        raise ValueError(
            f"`{next(iter(others))}` is no Dask collection, so the partitions of `{lead}` must have known lengths: "
            "call `compute_chunk_sizes()` of the array, or `to_dask_array(lengths=True)` of the series"
        )
    ends = np.cumsum(sizes).tolist()
    found: dict[str, list[Any]] = {}
    for name, value in others.items():
        column = sources.resolve(f"`{name}`", value, data, np.dtype(np.float32), {})
        if column.length is None:
            raise TypeError(f"`{name}` must have a length beside Dask collections, got an iterable of batches")
        check_lengths({name: (column.length, column.place), lead: (ends[-1] if ends else 0, f"`{lead}`")})
        # An array's part travels with its task; a file's column travels as its path.
        pairs = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        if isinstance(column, sources.Sliced) and column.file is None:
            found[name] = [column.read(*pair) for pair in pairs]
        else:
            found[name] = [_Part(column, *pair) for pair in pairs]
    return found


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
