"""Columns of Arrow tables, Arrow files and Parquet files, through PyArrow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fastloss.evaluation.sources import (
    READ_BYTES,
    Column,
    Encoder,
    Sliced,
    Streamed,
    chosen,
    file_identity,
    missing,
    recut,
)
from fastloss.losses.arrays import Array

BATCH_ROWS = 1 << 16
"""Rows that are decoded at once at most."""


def to_numpy(place: str, values: Any) -> Array:
    """An Arrow array as numbers, or as labels of groups.

    Lists become further axes if all have the same length.

    Raises
    ------
    ValueError
        If values are missing, other than labels, or lists differ in length.
    TypeError
        If they are no numbers.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
        if isinstance(values, pa.ChunkedArray):  # as some versions leave extension types
            values = pa.concat_arrays(values.chunks)
    if place.startswith("`group_by`"):
        return np.array(values.to_pylist(), object)
    kind = values.type
    if values.null_count:
        first = next(i for i, valid in enumerate(values.is_valid()) if not valid.as_py())
        raise ValueError(f"{place} has {values.null_count} missing values in a batch, the first at its row {first}")
    if isinstance(kind, pa.FixedShapeTensorType):
        return np.asarray(values.to_numpy_ndarray())
    if isinstance(kind, pa.BaseExtensionType):
        return to_numpy(place, values.storage)
    if pa.types.is_fixed_size_list(kind):
        inner = to_numpy(place, values.flatten())
        return inner.reshape(len(values), kind.list_size, *inner.shape[1:])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.diff(values.offsets.to_numpy())
        if len(lengths) and (lengths != lengths[0]).any():
            raise ValueError(f"{place} must hold lists of one length, got {lengths.min()} to {lengths.max()}")
        inner = to_numpy(place, values.flatten())
        return inner.reshape(len(values), int(lengths[0]) if len(lengths) else 0, *inner.shape[1:])
    if pa.types.is_dictionary(kind):
        return to_numpy(place, values.dictionary_decode())
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise TypeError(f"{place} must hold numbers, got the type {kind}")
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _sample_shape(kind: Any) -> tuple[int, ...]:
    """The shape of a value, as far as its type says it."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape)
    if pa.types.is_fixed_size_list(kind):
        return (kind.list_size, *_sample_shape(kind.value_type))
    return ()


def _encoded(encoder: Encoder, values: Any) -> Array:
    """Rows of groups; only what differs becomes Python objects."""
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode(null_encoding="encode")
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    parts = [np.empty(0, np.int64)]
    for chunk in chunks:
        indices = chunk.indices.fill_null(len(chunk.dictionary)).to_numpy(zero_copy_only=False).astype(np.int64)
        used = np.unique(indices)
        table = np.zeros(len(chunk.dictionary) + 1, np.int64)
        labels = chunk.dictionary.take(pa.array(used[used < len(chunk.dictionary)])).to_pylist()
        table[used] = encoder.rows(labels + [None] * (len(used) - len(labels)))
        parts.append(table[indices])
    return np.concatenate(parts)


class TableColumn(Sliced):
    """A column in memory."""

    def __init__(self, place: str, values: Any, file: str | None = None) -> None:
        self.place, self.array, self.file = place, values, file
        self.length = len(values)
        self.shape = None if pa.types.is_nested(values.type) else ()
        if self.length and self.shape is None:
            self.shape = to_numpy(place, values.slice(0, 1)).shape[1:]

    def identity(self) -> Any:
        """What tells these data from others."""
        return [*Column.identity(self), str(self.array.type), None if self.file is None else file_identity(self.file)]

    def read(self, start: int, stop: int) -> Array:
        """Some of the samples."""
        try:
            return to_numpy(self.place, self.array.slice(start, stop - start))
        except pa.ArrowException as error:
            raise self._failure(error, f"samples {start} to {stop - 1}") from error

    def groups(self, encoder: Encoder, start: int, samples: int) -> Iterator[Array]:
        """Rows of groups."""
        for first in range(start, len(self.array), samples):
            yield _encoded(encoder, self.array.slice(first, samples))


def of_values(place: str, values: Any) -> Column:
    """Of an Arrow array, chunked or not."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return TableColumn(place, values)
    raise TypeError(f"{place} must be an Arrow array; of a {type(values).__name__}, name the column with `data=`")


def of_table(place: str, table: Any, name: str) -> Column:
    """A column of a table, a record batch, a reader of record batches or a dataset."""
    if hasattr(table, "get_fragments"):
        return _of_dataset(place, table, name)
    if name not in table.schema.names:
        raise missing(place, name, table.schema.names, "the table")
    return TableColumn(f"{place} (column {name!r})", table.column(name))


def of_ipc(place: str, path: str, name: str | None) -> Column:
    """A column of an Arrow or Feather file."""
    try:
        table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    except pa.ArrowException as error:
        raise ValueError(f"cannot read {place}: {error}") from error
    return TableColumn(place, table.column(chosen(place, path, name, table.schema.names, "column")), path)


@dataclass(frozen=True)
class _File:
    """A Parquet file of a column.

    Attributes
    ----------
    path : str
        Where it is.
    groups : tuple of int
        Rows of each row group.
    constant : object
        The column's value, where that is in the folder's name instead of the file.
    stored : bool
        Whether it is in the file.
    """

    path: str
    groups: tuple[int, ...]
    constant: Any
    stored: bool


class ParquetColumn(Streamed):
    """A column of Parquet files, decoded a part of a row group at a time."""

    def __init__(self, place: str, files: list[_File], name: str, kind: Any) -> None:
        self.place, self.files, self.name, self.kind = place, files, name, kind
        self.length = sum(sum(file.groups) for file in files)
        shape = _sample_shape(kind)
        self.shape = None if not shape and pa.types.is_nested(kind) else shape

    def identity(self) -> Any:
        """What tells these data from others."""
        return [self.length, self.name, str(self.kind), [file_identity(file.path) for file in self.files]]

    def arrow(self, start: int) -> Iterator[Any]:
        """Arrow arrays from row `start` on, and where each comes from."""
        import pyarrow.parquet as pq

        for file in self.files:
            if start >= sum(file.groups):
                start -= sum(file.groups)
                continue
            try:
                opened = pq.ParquetFile(file.path, memory_map=True, page_checksum_verification=True)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"cannot read {self.place}: {file.path}: {error}") from error
            with opened:
                for number, rows in enumerate(file.groups):
                    if start >= rows:
                        start -= rows
                        continue
                    where = f"row group {number} of {file.path}, column {self.name!r}"
                    for values in self._row_group(opened, file, number, rows, where):
                        if start < len(values):
                            yield values.slice(start), where
                        start = max(0, start - len(values))

    def _row_group(self, opened: Any, file: _File, number: int, rows: int, where: str) -> Iterator[Any]:
        if not file.stored:
            for first in range(0, rows, BATCH_ROWS):
                yield pa.array([file.constant] * min(BATCH_ROWS, rows - first), self.kind)
            return
        found = 0
        size = max(1, min(BATCH_ROWS, READ_BYTES // (8 * int(np.prod(self.shape or (1,))))))
        batches = opened.iter_batches(size, [number], [self.name], use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"cannot read {self.place}, {where}: {error}") from error
            if batch is None:
                break
            found += batch.num_rows
            yield batch.column(0)
        if found != rows:
            raise ValueError(f"cannot read {self.place}, {where}: it has {found} rows instead of {rows}")

    def pieces(self, start: int) -> Iterator[Array]:
        """The data, a part at a time."""
        for values, where in self.arrow(start):
            yield to_numpy(f"{self.place}, {where}:", values)

    def groups(self, encoder: Encoder, start: int, samples: int) -> Iterator[Array]:
        """Rows of groups."""
        parts = (_encoded(encoder, values) for values, _ in self.arrow(start))
        return recut(self.place, parts, samples)


def of_parquet(place: str, path: str, name: str | None) -> Column:
    """A column of a Parquet file, or of the files of a folder in the order of their names."""
    import pyarrow.dataset as ds

    try:
        dataset = ds.dataset(path, format="parquet", partitioning="hive" if os.path.isdir(path) else None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {place}: {error}") from error
    return _of_dataset(place, dataset, chosen(place, path, name, dataset.schema.names, "column"))


def _of_dataset(place: str, dataset: Any, name: str) -> Column:
    import pyarrow.dataset as ds

    if name not in dataset.schema.names:
        raise missing(place, name, dataset.schema.names, "the dataset")
    files = []
    for fragment in dataset.get_fragments():
        if not isinstance(fragment, ds.ParquetFileFragment):
            raise TypeError(f"{place}: the dataset must be of Parquet files, got {type(fragment).__name__}")
        try:
            rows = tuple(group.num_rows for group in fragment.row_groups)
            stored = name in fragment.physical_schema.names
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"cannot read {place}: {fragment.path}: {error}") from error
        keys = ds.get_partition_keys(fragment.partition_expression)
        if not stored and name not in keys:
            raise missing(place, name, fragment.physical_schema.names, fragment.path)
        files.append(_File(fragment.path, rows, keys.get(name), stored))
    return ParquetColumn(place, files, name, dataset.schema.field(name).type)
