"""Logs that are text files: CSV and JSON lines, written so that a kill at any moment leaves a file that can be read.

A line belongs to one row and ends with a newline. What is written at once is one call of the operating system; if that
fails half-way, the file is cut back to what it was. A killed process can leave half a line at the end, nowhere else:
reading skips it, and who resumes cuts it off.

The columns, or keys, are ``per`` (``step`` or ``epoch``), ``step``, ``epoch``, ``time`` and the names of the values.
"""

from __future__ import annotations

import csv
import errno
import functools
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from fastloss.monitor.rows import HEAD, Row
from fastloss.monitor.sinks import Sink, checked_path

try:
    import fcntl
except ModuleNotFoundError:  # on Windows nobody is kept from writing to a file twice
    fcntl = None  # type: ignore[assignment]

PER = ("step", "epoch")
FIRST = ("per", *HEAD)
"""What each line begins with."""


class LogFile(Sink):
    """What `CSV` and `JSONLines` have in common.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file.

    Raises
    ------
    TypeError
        If it is no path.
    """

    suffixes: ClassVar[tuple[str, ...]]
    beginning: ClassVar[bytes]
    """What every such file begins with."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = checked_path("path", path)
        self._file: io.FileIO | None = None
        self.skipped = 0

    def open(self, resume: bool) -> Iterable[Row]:
        """Open the file, and keep other processes from writing to it.

        Parameters
        ----------
        resume : bool
            Whether it may hold rows already.

        Returns
        -------
        iterable of Row
            Those.

        Raises
        ------
        OSError
            If it cannot be written to, or is being written.
        FileExistsError
            If it holds something, and `resume` is false.
        ValueError
            If what it holds is no log.
        """
        if not self.path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {self.path.parent}", str(self.path))
        # A link stays one when `CSV` puts another file in the place of this.
        self._target = self.path.resolve()
        self._file = self._locked(self._target)
        if os.fstat(self._file.fileno()).st_size == 0:
            return ()
        if not resume:
            raise FileExistsError(errno.EEXIST, "holds something already, and `resume` is False", str(self.path))
        return self._earlier()

    def _earlier(self) -> Iterator[Row]:
        """What the file holds; then it is ready for more."""
        reader = Reader(self.path)
        yield from reader.poll()
        reader.check()
        if reader.format not in (type(self), None):
            raise ValueError(f"{self.path} holds {reader.format.__name__}, and {type(self).__name__} is to be written")
        self.skipped = reader.skipped + reader.partial
        self._resume(reader)

    def _resume(self, reader: Reader) -> None:
        """Go on behind the last whole line."""
        assert self._file is not None
        self._file.truncate(reader.end)

    def _locked(self, path: Path) -> io.FileIO:
        """Open for appending what nobody else writes. The lock ends with the process, however that ends."""
        file = io.FileIO(path, "a")
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                message = "is being written by a History, of this process or another: close that first, or let one log"
                raise BlockingIOError(errno.EWOULDBLOCK, message, str(self.path)) from None
            except OSError:
                pass  # a file system that has no locks
        return file

    def write(self, rows: Sequence[Row]) -> None:
        """Append lines.

        Parameters
        ----------
        rows : sequence of Row
            A line each.

        Raises
        ------
        OSError
            If the disk is full, or the file was deleted. Then none of the rows is in it.
        """
        self._append("".join(map(self._line, rows)).encode())

    def _line(self, row: Row) -> str:
        raise NotImplementedError

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        state = os.fstat(self._file.fileno())
        if state.st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "was deleted while it was written", str(self.path))
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(state.st_size)  # behind half a line the next one would be lost, too
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Close the file, which lets others write to it."""
        if self._file is not None:
            self._file.close()
            self._file = None


class JSONLines(LogFile):
    """A file with an object of JSON on each line: ``{"per": "step", "step": 0, "epoch": 0, "time": ..., "loss": 0.5}``.

    Strict JSON has no NaN and no infinity: they are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, as in
    JSON's mapping of protocol buffers, which ``float`` reads.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file. An existing log is resumed, if the `History` does not say otherwise.

    Raises
    ------
    TypeError
        If it is no path.

    Examples
    --------
    >>> import fastloss, pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/run.log"
    >>> with fastloss.monitor.History(fastloss.monitor.JSONLines(path)) as history:
    ...     history.log(loss=float("nan"))
    >>> print(pathlib.Path(path).read_text())
    {"per": "step", "step": 0, "epoch": 0, "time": ..., "loss": "NaN"}
    >>> folder.cleanup()
    """

    suffixes = (".jsonl", ".ndjson")
    beginning = b'{"per": "'

    def _line(self, row: Row) -> str:
        values = [repr(value) if math.isfinite(value) else _NOT_FINITE[repr(value)] for value in row.values]
        return _template(row.per, row.names) % (row.step, row.epoch, row.time, *values)


_NOT_FINITE = {"nan": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"'}


@functools.lru_cache
def _template(per: str, names: tuple[str, ...]) -> str:
    """A line of JSON with places for numbers: writing that is four times as fast as ``json.dumps``."""
    keys = "".join(f", {json.dumps(name, ensure_ascii=False).replace('%', '%%')}: %s" for name in names)
    return f'{{"per": "{per}", "step": %d, "epoch": %d, "time": %.6f{keys}}}\n'


def _json_row(line: bytes) -> Row:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    try:
        head = [found.pop(key) for key in FIRST]
    except KeyError as error:
        raise ValueError(f"no {error}") from None
    return _row(head, tuple(found), tuple(found.values()))


def _row(head: Sequence[Any], names: tuple[str, ...], values: tuple[Any, ...]) -> Row:
    """A row of what was read, or `ValueError`."""
    per, step, epoch, time = head
    try:
        row = Row(per, int(step), int(epoch), float(time), names, tuple(map(float, values)))
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if per not in PER or row.step < 0 or row.epoch < 0 or not math.isfinite(row.time):
        raise ValueError(f"no row: {head}")
    return row


class CSV(LogFile):
    """A file with a line of numbers for each row, below a header: ``per,step,epoch,time,loss``.

    What a row has no value for is empty; NaN and infinities are ``nan``, ``inf`` and ``-inf``. When a name comes that
    has no column yet, as ``val_loss`` does at the end of the first epoch, the file is written anew with one more column
    (which takes the time of copying it) and put into the place of the old one in one step: at each moment there is a
    whole file.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file. An existing log is resumed, if the `History` does not say otherwise.

    Raises
    ------
    TypeError
        If it is no path.

    Examples
    --------
    >>> import fastloss, pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/run.csv"
    >>> with fastloss.monitor.History(path) as history:
    ...     history.log(loss=0.5)
    ...     history.end_epoch(val_loss=0.75)
    >>> print(pathlib.Path(path).read_text())
    per,step,epoch,time,loss,val_loss
    step,0,0,...,0.5,
    epoch,1,0,...,,0.75
    >>> folder.cleanup()
    """

    suffixes = (".csv",)
    beginning = ",".join(FIRST).encode()

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._names: tuple[str, ...] = ()

    def _resume(self, reader: Reader) -> None:
        super()._resume(reader)
        if reader.header is not None:
            self._names = _csv_names(reader.header)

    def write(self, rows: Sequence[Row]) -> None:
        """Append lines, after columns if there are new ones.

        Parameters
        ----------
        rows : sequence of Row
            A line each.

        Raises
        ------
        OSError
            If the disk is full, or the file was deleted. Then none of the rows is in it.
        """
        assert self._file is not None
        empty = os.fstat(self._file.fileno()).st_size == 0
        if empty:
            self._names = ()
        new = tuple(dict.fromkeys(name for row in rows for name in row.names if name not in self._names))
        if empty:
            self._names = new
            data = _csv_header(new) + "".join(map(self._line, rows))
            return self._append(data.encode())
        if new:
            self._widen(new)
        return super().write(rows)

    def _line(self, row: Row) -> str:
        values = dict(zip(row.names, map(repr, row.values), strict=True))
        cells = ",".join([values.get(name, "") for name in self._names])
        return f"{row.per},{row.step},{row.epoch},{row.time:.6f}{',' if self._names else ''}{cells}\n"

    def _widen(self, new: tuple[str, ...]) -> None:
        """Add columns, in a copy that then takes the file's place."""
        assert self._file is not None
        other = self._target.with_name(self._target.name + ".new")
        other.unlink(missing_ok=True)  # what a killed process left
        file = self._locked(other)
        try:
            with self._target.open("rb") as old, io.FileIO(other, "a") as raw, io.BufferedWriter(raw) as copy:
                next(old)
                copy.write(_csv_header(self._names + new).encode())
                padding = b"," * len(new) + b"\n"
                copy.writelines(line[:-1] + padding for line in old)
            shutil.copymode(self._target, other)
            other.replace(self._target)
        except OSError as error:
            file.close()
            other.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._file.close()
        self._file = file
        self._names += new


def _csv_header(names: tuple[str, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow((*FIRST, *names))
    return text.getvalue()


def _csv_names(header: bytes) -> tuple[str, ...]:
    (columns,) = csv.reader([header.decode()])
    return tuple(columns[len(FIRST) :])


def _csv_parser(header: bytes) -> Callable[[bytes], Row]:
    """What makes a row of a line below such a header, or raises `ValueError`."""
    names = _csv_names(header)
    width, start = len(names) + len(FIRST), len(FIRST)

    def parse(line: bytes) -> Row:
        cells = line.decode().rstrip("\r\n").split(",")
        if len(cells) != width:
            raise ValueError(f"{len(cells)} cells below {width} columns")
        found = {name: cell for name, cell in zip(names, cells[start:], strict=True) if cell}
        return _row(cells[:start], tuple(found), tuple(found.values()))

    return parse


FORMATS: tuple[type[LogFile], ...] = (JSONLines, CSV)


def format_of(path: Path) -> type[LogFile]:
    """The class for files with such a suffix.

    Parameters
    ----------
    path : pathlib.Path
        Whose.

    Returns
    -------
    type

    Raises
    ------
    ValueError
        If there is none.
    """
    for cls in FORMATS:
        if path.suffix.lower() in cls.suffixes:
            return cls
    known = ", ".join(suffix for cls in FORMATS for suffix in cls.suffixes)
    raise ValueError(f"`{path}` must end in one of {known}, which tells its format; or name that: JSONLines(path)")


class Reader:
    """Reads the whole lines of a log that may still be growing.

    Parameters
    ----------
    path : pathlib.Path
        Of the log. Its first bytes tell its format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        self.end = 0
        self.rows = self.skipped = 0
        self.partial = False
        self.header: bytes | None = None
        self._beginning = b""
        self.format: type[LogFile] | None = None
        self._parse: Callable[[bytes], Row] | None = None

    def replaced(self) -> bool:
        """Whether another file has taken the place of what was read, or it was cut: then all is to be read again."""
        with self.path.open("rb") as file:
            if self._is_known(file) and os.fstat(file.fileno()).st_size >= self.end:
                return False
        self._forget()
        self._identity = None
        return True

    def _is_known(self, file: BinaryIO) -> bool:
        """Whether this is the file that was read.

        Its number alone does not tell: that of a file which was replaced may be given to the next but one in its place.
        That one has another header.
        """
        state = os.fstat(file.fileno())
        identity = (state.st_dev, state.st_ino)
        if self._identity not in (None, identity) or (self.header is not None and file.readline() != self.header):
            return False
        self._identity = identity
        return True

    def poll(self) -> Iterator[Row]:
        """What has come since the last time.

        Yields
        ------
        Row
            One for each line. ``skipped`` counts lines that are no rows; ``partial`` is whether half a line is at the
            end, which may be whole the next time.
        """
        with self.path.open("rb") as file:
            if not self._is_known(file):
                return  # replaced just now: the next look begins anew
            file.seek(self.end)
            self.partial = False
            for line in file:
                self._beginning = self._beginning or line[:64]
                if not line.endswith(b"\n"):
                    self.partial = True
                    break
                self.end += len(line)
                row = self._row(line)
                if row is not None:
                    self.rows += 1
                    yield row

    def _row(self, line: bytes) -> Row | None:
        if self._parse is None:
            if line.startswith(CSV.beginning):
                self.header, self.format = line, CSV
                self._parse = _csv_parser(line)
                return None
            self.format, self._parse = JSONLines, _json_row
        try:
            return self._parse(line)
        except ValueError:  # what json and float raise, and UnicodeDecodeError
            self.skipped += 1
            return None

    def check(self) -> None:
        """Raise `ValueError` if what was read is no log at all."""
        begun = any(self._beginning.startswith(cls.beginning[: len(self._beginning)]) for cls in FORMATS)
        if self.rows == 0 and not (begun and self.skipped == 0):
            raise ValueError(f"{self.path} is no log of a History: it begins with {self._beginning[:40]!r}")
