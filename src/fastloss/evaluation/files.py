"""Columns of files, by the ends of their names."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastloss.evaluation.sources import READ_BYTES, SEPARATOR, Column, Sliced, Streamed, chosen, file_identity
from fastloss.losses.arrays import Array

"""Between a path and the name of an array in it."""


def column(place: str, path: str, name: str | None) -> Column:
    """The column that a path means; ``PATH::NAME`` is an array in a file that has several."""
    if name is None and SEPARATOR in path:
        path, _, name = path.rpartition(SEPARATOR)
    place = f"{place} ({path}{f', {name}' if name else ''})"
    if not os.path.exists(path):
        raise FileNotFoundError(f"{place}: there is no file {path}")
    kind = _kind(path)
    if kind is None:
        known = ", ".join(sorted(OPENERS))
        raise ValueError(f"{place}: unknown kind of file; known are {known}, and folders of Parquet files or of Zarr")
    try:
        return OPENERS[kind](place, path, name)
    except (ImportError, FileNotFoundError):
        raise
    except (OSError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise ValueError(f"cannot read {place}: {error}") from error


def _kind(path: str) -> str | None:
    end = os.path.splitext(path.rstrip(os.sep))[1].lower()
    if end in OPENERS:
        return end
    if os.path.isdir(path):
        markers = ("zarr.json", ".zarray", ".zgroup")
        return ".zarr" if any(os.path.exists(os.path.join(path, marker)) for marker in markers) else ".parquet"
    return None


def _npy(place: str, path: str, name: str | None) -> Column:
    if name:
        raise ValueError(f"{place}: a .npy file has one array, without a name")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"cannot read {place}: {error}") from error
    return Sliced(place, array, path)


class _Entry(Streamed):
    """An array in an .npz file, which is read as it is unpacked."""

    def __init__(self, place: str, path: str, name: str) -> None:
        self.place, self._path, self._name = place, path, f"{name}.npy"
        with zipfile.ZipFile(path) as archive, archive.open(self._name) as stream:
            shape, fortran, self._dtype = _header(stream)
        if fortran and len(shape) > 1:
            raise ValueError(f"{place}: the array is in Fortran order, so its samples do not follow one another")
        if not shape:
            raise ValueError(f"{place} must have samples along its first axis, got a single number")
        self.length, self.shape = shape[0], shape[1:]

    def identity(self) -> Any:
        return [*super().identity(), str(self._dtype), file_identity(self._path)]

    def pieces(self, start: int) -> Iterator[Array]:
        assert self.length is not None
        assert self.shape is not None
        row = int(np.prod(self.shape, dtype=np.int64)) * self._dtype.itemsize
        step = max(1, READ_BYTES // max(1, row))
        with zipfile.ZipFile(self._path) as archive, archive.open(self._name) as stream:
            _header(stream)
            for first in range(0, self.length, step):
                count = min(step, self.length - first)
                try:
                    raw = stream.read(count * row)
                    if len(raw) != count * row:
                        raise EOFError("the file ends too early")
                    if first + count == self.length:
                        stream.read(1)  # the end, where the checksum is compared
                except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    raise self._failure(error, f"samples {first} to {first + count - 1}") from error
                if first + count > start:
                    found = np.frombuffer(raw, self._dtype).reshape(count, *(self.shape or ()))
                    yield found[max(0, start - first) :]


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("the array holds Python objects")
    return shape, fortran, dtype


def _npz(place: str, path: str, name: str | None) -> Column:
    with zipfile.ZipFile(path) as archive:
        known = [entry.removesuffix(".npy") for entry in archive.namelist()]
    return _Entry(place, path, chosen(place, path, name, known, "array"))


class _Reopened(Sliced):
    """A dataset of a file, which a worker opens anew."""

    def __init__(self, place: str, path: str, name: str | None, opener: Callable[..., Any]) -> None:
        self._arguments = (place, path, name, opener)
        super().__init__(place, opener(place, path, name), path)

    def __reduce__(self) -> Any:
        return _Reopened, self._arguments


def _hdf5(place: str, path: str, name: str | None) -> Column:
    return _Reopened(place, path, name, _hdf5_dataset)


def _hdf5_dataset(place: str, path: str, name: str | None) -> Any:
    with needs("h5py"):
        import h5py
    file = h5py.File(path, "r")
    found: list[str] = []
    if name is None or name not in file:
        file.visititems(lambda key, item: found.append(key) if isinstance(item, h5py.Dataset) else None)
        name = chosen(place, path, name, found, "array")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{place}: {name!r} of {path} is a group, not a dataset")
    return dataset


def _zarr(place: str, path: str, name: str | None) -> Column:
    return _Reopened(place, path, name, _zarr_array)


def _zarr_array(place: str, path: str, name: str | None) -> Any:
    with needs("zarr"):
        import zarr
    found = zarr.open(path, mode="r")
    if isinstance(found, zarr.Array):
        if name:
            raise ValueError(f"{place}: {path} is one array, without names")
        return found
    if name is not None and name in found and isinstance(found[name], zarr.Array):
        return found[name]
    return found[chosen(place, path, name, list(found.array_keys()), "array")]


def _safetensors(place: str, path: str, name: str | None) -> Column:
    return _Reopened(place, path, name, _Tensor)


class _Tensor:
    """A tensor of a safetensors file, in slices."""

    def __init__(self, place: str, path: str, name: str | None) -> None:
        with needs("safetensors"):
            import safetensors
        try:
            file: Any = safetensors.safe_open(path, "numpy")
        except safetensors.SafetensorError as error:
            raise ValueError(f"cannot read {place}: {error}") from error
        self._slice = file.get_slice(chosen(place, path, name, list(file.keys()), "array"))
        self.shape = tuple(self._slice.get_shape())
        self.dtype = self._slice.get_dtype()
        if self.dtype == "BF16":
            with needs("ml_dtypes", "half"):
                import ml_dtypes  # noqa: F401

    def __getitem__(self, part: slice) -> Any:
        return self._slice[part]


def _parquet(place: str, path: str, name: str | None) -> Column:
    with needs("pyarrow"):
        from fastloss.evaluation import tables
    return tables.of_parquet(place, path, name)


def _arrow(place: str, path: str, name: str | None) -> Column:
    with needs("pyarrow"):
        from fastloss.evaluation import tables
    return tables.of_ipc(place, path, name)


class needs:  # noqa: N801
    """Turn a missing library into an error that names the extra which brings it."""

    def __init__(self, library: str, extra: str = "evaluation") -> None:
        self._library, self._extra = library, extra

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == self._library:
            raise ImportError(f"this needs {self._library}: pip install 'fastloss[{self._extra}]'") from None


OPENERS: dict[str, Callable[[str, str, str | None], Column]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".zarr": _zarr,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".pq": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}
"""What opens a file, by the end of its name."""
