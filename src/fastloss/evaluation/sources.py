"""Where the data of an evaluation come from: each argument as a `Column`, which is read once from front to back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fastloss.evaluation.partial import ALL, check_groups
from fastloss.losses import arrays
from fastloss.losses.arrays import Array

SEPARATOR = "::"
"""Between a file's path and the name of an array or a column in it."""

READ_BYTES = 8 << 20
"""About how much is read at once where nothing else decides."""


class Column:
    """One argument's data: samples along the first axis.

    Attributes
    ----------
    place : str
        Where they are, for error messages: the argument, and the file where there is one.
    length : int or None
        Number of samples, if that is known before reading.
    shape : tuple of int or None
        Of one sample, if known.
    step : int
        Samples that are best read at once, such as a chunk's or row group's; 1 if it does not matter.
    at_hand : bool
        The data are in memory, so that there is nothing to read.
    """

    place: str
    length: int | None = None
    shape: tuple[int, ...] | None = None
    step: int = 1
    at_hand: bool = False

    def identity(self) -> Any:
        """What a checkpoint compares, as JSON takes it, to tell these data from others."""
        return [self.length, None if self.shape is None else list(self.shape)]

    def batches(self, start: int, samples: int) -> Iterator[Array]:
        """The data from sample `start` on, `samples` at a time; the last may be fewer."""
        raise NotImplementedError

    def groups(self, encoder: Encoder, start: int, samples: int) -> Iterator[Array]:
        """The same as rows of the encoder's labels."""
        for batch in self.batches(start, samples):
            yield encoder.encode(batch)

    def _failure(self, error: Exception, where: str) -> Exception:
        return ValueError(f"cannot read {self.place}, {where}: {type(error).__name__}: {error}")


class Sliced(Column):
    """Of anything that has a shape and gives arrays for slices: arrays, memory maps, HDF5 and Zarr datasets."""

    def __init__(self, place: str, array: Any, file: str | None = None) -> None:
        self.place, self.array, self.file = place, array, file
        shape = tuple(array.shape)
        if not shape:
            raise ValueError(f"{place} must have samples along its first axis, got a single number")
        self.length, self.shape = int(shape[0]), tuple(map(int, shape[1:]))
        chunks = getattr(array, "chunks", None)
        self.step = int(chunks[0]) if chunks and not callable(chunks) else 1
        self.at_hand = type(array) is np.ndarray

    def identity(self) -> Any:
        """What tells these data from others."""
        return [*super().identity(), str(self.array.dtype), None if self.file is None else file_identity(self.file)]

    def read(self, start: int, stop: int) -> Array:
        """Some of the samples."""
        try:
            return np.asarray(self.array[start:stop])
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise self._failure(error, f"samples {start} to {stop - 1}") from error

    def batches(self, start: int, samples: int) -> Iterator[Array]:
        """The data from a sample on."""
        assert self.length is not None
        for first in range(start, self.length, samples):
            advise(self.array, first + samples, first + 3 * samples)
            found = self.read(first, min(first + samples, self.length))
            if len(found) != min(samples, self.length - first):
                raise ValueError(f"{self.place} ends at sample {first + len(found)}, but says it has {self.length}")
            yield found


class Streamed(Column):
    """Of anything that gives one batch after the other.

    Parameters
    ----------
    place : str
        See `Column`.
    source : iterable
        Batches as arrays, of any sizes.
    """

    def __init__(self, place: str, source: Iterable[Any]) -> None:
        self.place, self.source = place, source

    def pieces(self, start: int) -> Iterator[Array]:
        """Batches as they come, from sample `start` on."""
        for piece in self.source:
            found = as_array(self.place, piece)
            if found.ndim == 0:
                raise ValueError(f"{self.place} must give batches of samples, got a single number")
            if start:
                skipped = min(start, len(found))
                start, found = start - skipped, found[skipped:]
            if len(found):
                yield found

    def batches(self, start: int, samples: int) -> Iterator[Array]:
        """The data from a sample on."""
        return recut(self.place, self.pieces(start), samples)


class Shared:
    """Batches of several arrays each: tuples, mappings or Arrow record batches, of which columns take their parts."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source, self._taken = source, 0
        self._branches: list[Iterator[Any]] | None = None

    def column(self, place: str, key: Any) -> Streamed:
        """The part under this name or at this position."""
        number = self._taken
        self._taken += 1
        return Streamed(f"{place} ({key!r} of each batch)", _Part(self, key, number, place))

    def branch(self, number: int) -> Iterator[Any]:
        """The batches, once for each column; what all have seen is forgotten."""
        if self._branches is None:
            self._branches = list(itertools.tee(self._source, self._taken))
        return self._branches[number]


class _Part:
    def __init__(self, shared: Shared, key: Any, number: int, place: str) -> None:
        self._shared, self._key, self._number, self._place = shared, key, number, place

    def __iter__(self) -> Iterator[Any]:
        for count, batch in enumerate(self._shared.branch(self._number)):
            try:
                part = batch.column(self._key) if hasattr(batch, "to_pydict") else batch[self._key]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{self._place}: batch {count} has no {self._key!r}") from error
            yield part


class Encoder:
    """Numbers for the labels of groups, in the order in which they come.

    Attributes
    ----------
    labels : list
        The groups, after the whole, which has row 0.
    """

    def __init__(self, labels: Iterable[Hashable] = (ALL,)) -> None:
        self.labels = list(labels)
        self._rows = {label: row for row, label in enumerate(self.labels[1:], 1)}

    def row(self, label: Hashable) -> int:
        """The number of one label."""
        found = self._rows.get(label)
        if found is None:
            found = self._rows[label] = len(self.labels)
            self.labels.append(label)
            check_groups(found)
        return found

    def rows(self, labels: Iterable[Any]) -> Array:
        """The numbers of several."""
        return np.fromiter((self.row(_plain(label)) for label in labels), np.int64)

    def encode(self, values: Array) -> Array:
        """One number a sample."""
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise ValueError(f"`group_by` must have one label a sample, got shape {values.shape} for a batch")
        if values.dtype.kind == "O":
            return self.rows(values.tolist())
        if values.dtype.kind in "iu" and values.size:
            least, largest = int(values.min()), int(values.max())
            if largest - least < 4 * values.size:
                shifted = (values - values.dtype.type(least)).astype(np.int64)
                return self._look_up(shifted, np.arange(least, largest + 1))
        if values.dtype.kind == "b":
            return self._look_up(values.astype(np.int64), np.array([False, True]))
        unique, first, inverse = np.unique(values, return_index=True, return_inverse=True)
        return self._scatter(unique, first, inverse)

    def _look_up(self, shifted: Array, labels: Array) -> Array:
        present = np.flatnonzero(np.bincount(shifted, minlength=len(labels)))
        table = np.zeros(len(labels), np.int64)
        table[present] = self.rows(labels[present].tolist())
        return np.asarray(table[shifted])

    def _scatter(self, unique: Array, first: Array, inverse: Array) -> Array:
        table = np.empty(len(unique), np.int64)
        order = np.argsort(first)
        table[order] = self.rows(unique[order].tolist())
        return np.asarray(table[inverse])


def _plain(label: Any) -> Hashable:
    """A label that compares equal to itself and can be written down: missing ones are None."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, float) and label != label:
        return None
    if label is None or isinstance(label, (bool, int, float, str)):
        return label
    if isinstance(label, bytes):
        return label.decode(errors="replace")
    return None if str(label) in ("<NA>", "NaT") else str(label)


def resolve(place: str, value: Any, data: Any, default: np.dtype[Any], shared: dict[int, Shared]) -> Column:
    """The column that an argument means.

    Parameters
    ----------
    place : str
        The argument, in backticks.
    value : object
        What was given for it: data, a path, or the name of a column of `data`.
    data : object or None
        The table or file whose columns are named.
    default : numpy.dtype
        Of lists and numbers.
    shared : dict
        Streams of several columns, by the id of `data`.
    """
    if isinstance(value, Column):
        return value
    if data is not None and isinstance(value, (str, int)) and not isinstance(value, bool):
        return _of_table(place, value, data, default, shared)
    if isinstance(value, (str, os.PathLike)):
        from fastloss.evaluation import files

        return files.column(place, os.fspath(value), None)
    return _of_value(place, value, default)


def _of_table(place: str, key: Any, data: Any, default: np.dtype[Any], shared: dict[int, Shared]) -> Column:
    if isinstance(data, (str, os.PathLike)):
        from fastloss.evaluation import files

        return files.column(place, os.fspath(data), str(key))
    module = type(data).__module__.partition(".")[0]
    if module == "pyarrow" and (hasattr(data, "column_names") or hasattr(data, "get_fragments")):
        from fastloss.evaluation import tables

        return tables.of_table(place, data, str(key))
    if isinstance(data, Mapping) or hasattr(data, "keys") or hasattr(data, "columns"):
        try:
            return _of_value(f"{place} (column {key!r})", data[key], default)
        except KeyError:
            raise missing(place, key, list(data.keys() if hasattr(data, "keys") else data.columns), "data") from None
    if isinstance(data, Iterable):
        return shared.setdefault(id(data), Shared(data)).column(place, key)
    raise TypeError(f"`data` must be a table, a path or an iterable of batches, got {type(data).__name__}")


def _of_value(place: str, value: Any, default: np.dtype[Any]) -> Column:
    if type(value).__module__.partition(".")[0] == "pyarrow":
        from fastloss.evaluation import tables

        return tables.of_values(place, value)
    if isinstance(value, (np.ndarray, list, tuple)) or (hasattr(value, "__array__") and not hasattr(value, "chunks")):
        file = getattr(value, "filename", None) if isinstance(value, np.memmap) else None
        return Sliced(place, as_array(place, value, default), None if file is None else os.fspath(file))
    if hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__"):
        return Sliced(place, value)
    if hasattr(value, "__dlpack__"):
        return Sliced(place, as_array(place, value, default))
    if isinstance(value, Iterable):
        return Streamed(place, value)
    raise TypeError(
        f"{place} must be an array, a path, a dataset, a column's name with `data=`, or an iterable of batches, got "
        f"{type(value).__name__}"
    )


def as_array(place: str, value: Any, default: np.dtype[Any] | None = None) -> Array:
    """An array of numbers; of labels of groups, an array of whatever they are."""
    if type(value).__module__.partition(".")[0] == "pyarrow":
        from fastloss.evaluation import tables

        return tables.to_numpy(place, value)
    if place.startswith("`group_by`"):
        return np.asarray(value)
    return arrays.to_array(place.replace("`", ""), value, default)


def recut(place: str, pieces: Iterator[Array], samples: int) -> Iterator[Array]:
    """Arrays of exactly so many samples each, but for the last."""
    held: list[Array] = []
    count = 0
    for piece in pieces:
        if held and (piece.shape[1:] != held[0].shape[1:]):
            raise ValueError(f"{place} must have samples of one shape, got {held[0].shape[1:]} and {piece.shape[1:]}")
        held.append(piece)
        count += len(piece)
        while count >= samples:
            whole = held[0] if len(held) == 1 else np.concatenate(held)
            yield whole[:samples]
            held, count = [whole[samples:]], count - samples
    if count:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def advise(array: Any, start: int, stop: int) -> None:
    """Tell the system that a part of a memory map will be read next."""
    import mmap

    if not (isinstance(array, np.memmap) and hasattr(mmap, "MADV_WILLNEED")) or start >= len(array):
        return
    memory: Any = array._mmap  # type: ignore[attr-defined]
    row = array.strides[0]
    first = array.offset % mmap.ALLOCATIONGRANULARITY + start * row
    first -= first % mmap.PAGESIZE
    length = min((stop - start) * row, len(memory) - first)
    if row > 0 and length > 0:
        memory.madvise(mmap.MADV_WILLNEED, first, length)


def file_identity(path: str) -> list[Any]:
    """A file's path, size and time of change."""
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def missing(place: str, key: Any, known: list[Any], where: str) -> ValueError:
    """The error of a name that is not there."""
    shown = ", ".join(map(str, known[:20])) + (" ..." if len(known) > 20 else "")
    return ValueError(f"{place}: {where} has no {key!r}; there is {shown or 'nothing'}")


def chosen(place: str, path: str, name: str | None, known: list[str], kind: str) -> str:
    """The one that is named of the arrays or columns, `kind`, of a file, or the only one."""
    if name is None and len(known) == 1:
        return known[0]
    if name is None:
        raise ValueError(f"{place}: say which {kind} is meant, as {path}{SEPARATOR}NAME; there is {', '.join(known)}")
    if name not in known:
        raise missing(place, name, known, path)
    return name
