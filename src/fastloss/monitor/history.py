"""`History`: what a training loop logs to.

The hot call is `History.log`. It looks the names up, which finds the table of rows that have just these, and appends
one row of doubles to it: no validation of its own, no lock, no text. ``array.fromlist`` converts all values in C,
refuses what is no number, and takes nothing if it refuses one. Text is made and written once a second, within the call
that comes after it; the clock is read anyway, for the row's time.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import heapq
import itertools
import operator
import os
import reprlib
import time
import warnings
import weakref
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, SupportsFloat

import numpy as np

from fastloss import settings
from fastloss.losses.arrays import Array
from fastloss.monitor.files import FIRST, PER, LogFile, Reader, format_of
from fastloss.monitor.rows import HEAD, Row, Series, Table, columns
from fastloss.monitor.sinks import Sink, checked_path, seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 4096
"""How many rows sinks are given at once, so that those of a fast second need no memory to speak of."""

LARGEST = 2**53
"""The last of the whole numbers that a row, of doubles, can hold."""

_OPEN: weakref.WeakSet[History] = weakref.WeakSet()
"""Those that have sinks and are not closed: what is left to do when the interpreter ends, or forks."""


class NaNError(FloatingPointError):
    """A `History` with ``stop_on_nan`` was given a NaN, and has kept it.

    Attributes
    ----------
    row : Row
        What was logged.
    """

    def __init__(self, row: Row) -> None:
        names = [name for name, value in zip(row.names, row.values, strict=True) if value != value]
        what = f"`{'`, `'.join(names)}` {'is' if len(names) == 1 else 'are'} NaN"
        place = f"at step {row.step}" if row.per == "step" else f"after {row.step} steps"
        super().__init__(f"{what} {place}, in epoch {row.epoch}: stopped, and everything logged was kept")
        self.row = row


class History:
    """Keeps what a training logs at each step and after each epoch, and writes it to files while the training goes on.

    `log` takes what one step has, `end_epoch` what an epoch has; both take any names, and not the same each time.
    Reading is like reading a dict: ``history["loss"]`` is an array.

    Parameters
    ----------
    *sinks : str, os.PathLike or Sink
        Where it is written: a path that ends in ``.jsonl``, ``.ndjson`` or ``.csv``, or `JSONLines`, `CSV`,
        `TensorBoard`, `Console`, or a `Sink` of your own. None at all keeps it in memory alone.
    resume : bool, optional
        Whether files that exist are continued: their rows are read, and steps and epochs are numbered on from there. If
        several files exist, the first counts. False refuses files that exist.
    stop_on_nan : bool, optional
        Whether a NaN that is logged raises `NaNError`, after everything was written. An infinity does not: steps with
        an infinite gradient norm are daily bread where losses are scaled.
    flush_seconds : float, optional
        How often sinks are written to. A process that is killed loses at most what it logged in such a time.

    Attributes
    ----------
    step : int
        The number of the next step, which is also how many were done.
    epoch : int
        The number of the epoch that goes on, from 0; may be set to a later one.
    skipped : int
        How many lines of files could not be read; half a line, at which a process was killed, is one.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or a file that exists is no log.
    OSError
        If a file cannot be written to, or another `History` writes to it, in this process or another.

    Warns
    -----
    RuntimeWarning
        If writing fails later, as on a full disk. The training goes on; what was not written is kept and tried again
        each time, and `flush` and `close` raise the error. It is a warning for each failure that follows a success.

    Notes
    -----
    A value must be a number or an array without axes, of any library: it is converted to a Python float at once, so
    that nothing is kept alive by it (a PyTorch loss would keep its whole graph) and nothing is changed later. That
    waits for results that are still being computed. To keep a GPU or JAX busy, log the previous step's loss.

    Use it from one thread. A child that is forked has a closed copy, and so does who copies or pickles a history that
    has sinks: what was logged can be read. One in memory alone is copied as it is. With several processes, let one log,
    or give each a file of its own.

    Examples
    --------
    >>> import fastloss
    >>> history = fastloss.monitor.History()
    >>> for epoch in range(2):
    ...     for step in range(3):
    ...         history.log(loss=1 / (1 + history.step), lr=0.1)
    ...     history.end_epoch(val_loss=0.5)
    >>> history["loss"]
    array([1.        , 0.5       , 0.33333333, 0.25      , 0.2       , 0.16666667])
    >>> history.steps
    array([0, 1, 2, 3, 4, 5])
    >>> history["val_loss"], history.epochs
    (array([0.5, 0.5]), array([0, 1]))
    >>> history
    <History: 6 steps, 2 epochs; loss, lr; per epoch: val_loss>
    """

    def __init__(
        self,
        *sinks: str | os.PathLike[str] | Sink,
        resume: bool = True,
        stop_on_nan: bool = False,
        flush_seconds: float = 1.0,
    ) -> None:
        for argument, value in (("resume", resume), ("stop_on_nan", stop_on_nan)):
            if not isinstance(value, bool):
                raise TypeError(f"`{argument}` must be True or False, got {value!r}")
        self._interval = seconds("flush_seconds", flush_seconds)
        self._stop_on_nan = stop_on_nan
        self._tables: dict[str, dict[tuple[str, ...], Table]] = {per: {} for per in PER}
        self._steps = self._tables["step"]  # of `log` alone: empty once nothing can be logged any more
        self._closed = ""
        self._step = self._epoch = self.skipped = 0
        self._sinks: list[Sink] = []  # those of another are not to be closed, should one be refused
        self._sinks = _sinks(sinks)
        self._written: list[Counter[tuple[str, tuple[str, ...]]]] = []
        self._failing = False
        self._reader: Reader | None = None
        # Between these two moments nothing is written; without sinks that is always.
        self._flushed, self._due = -np.inf, np.inf
        if self._sinks:
            self._open(resume)

    def _open(self, resume: bool) -> None:
        for i, sink in enumerate(self._sinks):
            try:
                empty = not any(self._tables.values())
                for row in sink.open(resume):
                    if empty:
                        self._restore(row)
                if isinstance(sink, LogFile):
                    self.skipped += sink.skipped
            except BaseException:
                for opened in self._sinks[: i + 1]:
                    opened.close()
                self._sinks = []
                raise
        done = {(per, names): len(table) for per, tables in self._tables.items() for names, table in tables.items()}
        self._written = [Counter(done) for _ in self._sinks]
        self._flushed, self._due = 0.0, 0.0
        _OPEN.add(self)

    # ----------------------------------------------------------------------------------------------------------
    # Logging
    # ----------------------------------------------------------------------------------------------------------

    def log(self, step: int | None = None, **values: SupportsFloat) -> None:
        """Log what a step has.

        Parameters
        ----------
        step : int, optional
            Its number; by default one more than the last. None may come twice, nor before one that was logged:
            `resume_at` goes back.
        **values : float
            Numbers, or arrays without axes, at least one.

        Raises
        ------
        TypeError
            If a value is no scalar, or `step` no integer.
        ValueError
            If there is no value, a name cannot be one, or `step` is not beyond the last.
        RuntimeError
            If the history is closed.
        NaNError
            If a value is NaN, and `stop_on_nan` was asked for.

        Examples
        --------
        >>> import fastloss
        >>> history = fastloss.monitor.History()
        >>> history.log(loss=0.5, grad_norm=2.0)
        >>> history.log(step=10, loss=0.25)
        >>> history.steps, history["grad_norm"]
        (array([ 0, 10]), array([ 2., nan]))
        """
        now = time.time()
        table = self._steps.get(tuple(values))
        if table is None:
            table = self._table("step", values)
        step = self._step if step is None else self._checked("step", step, self._step)
        try:
            table.data.fromlist([step, self._epoch, now, *values.values()])  # type: ignore[list-item]  # it converts
        except (TypeError, ValueError, OverflowError) as error:
            raise _refused(values, error) from error
        self._step = step + 1
        if self._stop_on_nan:
            self._stop_if_nan(table)
        # The second condition is for clocks that were put back.
        if now >= self._due or now < self._flushed:
            self._flush_or_warn()

    def end_epoch(self, epoch: int | None = None, **values: SupportsFloat) -> None:
        """End an epoch, and log what it has.

        Parameters
        ----------
        epoch : int, optional
            Its number; by default the current one's.
        **values : float
            Numbers, or arrays without axes; there may be none.

        Raises
        ------
        TypeError
            If a value is no scalar, or `epoch` no integer.
        ValueError
            If a name cannot be one, or `epoch` was ended already.
        RuntimeError
            If the history is closed.
        NaNError
            If a value is NaN, and `stop_on_nan` was asked for.
        """
        now = time.time()
        table = self._tables["epoch"].get(tuple(values))
        if table is None or self._closed:
            table = self._table("epoch", values)
        epoch = self._epoch if epoch is None else self._checked("epoch", epoch, self._epoch)
        try:
            table.data.fromlist([self._step, epoch, now, *values.values()])  # type: ignore[list-item]
        except (TypeError, ValueError, OverflowError) as error:
            raise _refused(values, error) from error
        self._epoch = epoch + 1
        if self._stop_on_nan:
            self._stop_if_nan(table)
        if now >= self._due or now < self._flushed:
            self._flush_or_warn()

    def resume_at(self, step: int, epoch: int | None = None) -> None:
        """Go on from a step, as from a checkpoint that is older than the last row; what comes after it is dropped.

        Files keep what is dropped, and who reads them drops it again, from the next step that is logged on: a row
        replaces those of the same and of later steps before it.

        Parameters
        ----------
        step : int
            The number of the next step, which is how many were done at the checkpoint.
        epoch : int, optional
            The number of the epoch that goes on; by default the one after the last that had ended by then.

        Raises
        ------
        TypeError
            If an argument is no integer.
        ValueError
            If it is negative.
        OSError
            If what was logged so far could not be written.
        RuntimeError
            If the history is closed.

        Examples
        --------
        >>> import fastloss
        >>> history = fastloss.monitor.History()
        >>> for loss in (3.0, 2.0, float("nan")):
        ...     history.log(loss=loss)
        >>> history.resume_at(2)
        >>> history.log(loss=1.0)
        >>> history["loss"]
        array([3., 2., 1.])
        """
        if self._closed:
            raise RuntimeError(self._closed)
        step = self._checked("step", step, 0)
        if epoch is None:
            ended, begun = (columns(self._tables[per].values(), HEAD) for per in ("epoch", "step"))
            past = ended["epoch"][ended["step"] <= step]
            epoch = int(past[-1]) + 1 if past.size else int(min(begun["epoch"], default=self._epoch))
        else:
            epoch = self._checked("epoch", epoch, 0)
        self.flush()
        self._cut(step, epoch)
        self._step, self._epoch = step, epoch

    def _table(self, per: str, values: Mapping[str, Any]) -> Table:
        """A new table for rows with such names, or an error."""
        if self._closed:
            raise RuntimeError(self._closed)
        if per == "step" and not values:
            raise ValueError("nothing to log: pass values by name, as in log(loss=0.5)")
        for name in values:
            if name in FIRST:
                raise ValueError(f"`{name}` cannot be the name of a value: each row has that of its own")
            if not name or not name.isprintable():
                raise ValueError(f"the name of a value must be printable, got {name!r}")
        with warnings.catch_warnings():
            # PyTorch warns once a process when a loss that has a graph becomes a float: here it is meant to.
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")
            for value in values.values():
                with contextlib.suppress(Exception):  # who appends it will say what is wrong
                    float(value)
        return self._tables[per].setdefault(tuple(values), Table(per, tuple(values)))

    def _checked(self, argument: str, value: Any, least: int) -> int:
        """A number of a step or epoch that a user passed."""
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"`{argument}` must be an integer, got {value!r}") from None
        if number < 0:
            raise ValueError(f"`{argument}` must not be negative, got {number}")
        if number > LARGEST:
            raise ValueError(f"`{argument}` must be at most {LARGEST}, got {number}")
        if number < least:
            raise ValueError(
                f"`{argument}` must be at least {least}, as {least - 1} was logged already, got {number}; `resume_at` "
                "goes back"
            )
        return number

    def _stop_if_nan(self, table: Table) -> None:
        for value in table.data[len(table.data) - len(table.names) :]:
            if value != value:
                self._flush_or_warn()
                (row,) = table.rows(len(table) - 1)
                raise NaNError(row)

    def _restore(self, row: Row) -> None:
        """Take a row that was read from a file."""
        if row.step < self._step or row.epoch < self._epoch:
            self._cut(row.step, row.epoch)
        tables = self._tables[row.per]
        table = tables.get(row.names)
        if table is None:
            table = tables[row.names] = Table(row.per, row.names)
        table.data.fromlist([row.step, row.epoch, row.time, *row.values])
        ended = row.per == "epoch"
        self._step, self._epoch = row.step + (not ended), row.epoch + ended

    def _cut(self, step: int, epoch: int) -> None:
        """Drop what comes after the beginning of a step of an epoch."""
        for table in self._tables["step"].values():
            table.keep(table.column("step") < step)
        for table in self._tables["epoch"].values():
            table.keep((table.column("step") <= step) & (table.column("epoch") < epoch))
        for written in self._written:
            for key in written:
                written[key] = min(written[key], len(self._tables[key[0]][key[1]]))

    # ----------------------------------------------------------------------------------------------------------
    # Writing
    # ----------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what was not written yet.

        Raises
        ------
        OSError
            If that fails; of several sinks that fail, the first one's. What was not written is kept.
        """
        if not self._sinks:
            return
        failures = []
        for sink, written in zip(self._sinks, self._written, strict=True):
            try:
                self._write(sink, written)
            except OSError as error:
                failures.append(error)
        self._flushed = time.time()
        self._due = self._flushed + self._interval
        if failures:
            raise failures[0]
        self._failing = False

    def _write(self, sink: Sink, written: Counter[tuple[str, tuple[str, ...]]]) -> None:
        tables = [table for tables in self._tables.values() for table in tables.values()]
        pending = [table.rows(written[table.per, table.names]) for table in tables]
        rows = heapq.merge(*pending, key=_order)
        while block := list(itertools.islice(rows, BLOCK)):
            sink.write(block)
            written.update((row.per, row.names) for row in block)

    def _flush_or_warn(self) -> None:
        """Write, without ending a training because of its log."""
        try:
            self.flush()
        except OSError as error:
            if not self._failing:
                self._failing = True
                message = f"{error}; the training goes on, what was logged is kept and tried again"
                warnings.warn(message, RuntimeWarning, stacklevel=settings.outside())

    def close(self) -> None:
        """Write what was not written yet, and close the files; reading goes on working.

        It is called at the end of a ``with``, when the last reference goes, and when the interpreter ends.

        Raises
        ------
        OSError
            If writing fails: then what the history holds is more than its files do. They are closed nevertheless.
        """
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self._end("the History is closed: nothing can be logged any more")

    def _end(self, reason: str) -> None:
        self._closed, self._steps = reason, {}
        _OPEN.discard(self)
        sinks, self._sinks, self._written = self._sinks, [], []
        with contextlib.ExitStack() as stack:  # that one cannot be closed keeps no other open
            for sink in sinks:
                stack.callback(sink.close)

    def _close_or_warn(self) -> None:
        try:
            self.close()
        except OSError as error:
            warnings.warn(f"{error}; what was logged last is lost", RuntimeWarning, stacklevel=2)

    def __del__(self) -> None:
        if getattr(self, "_sinks", None):
            self._close_or_warn()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_sinks": [], "_written": [], "_due": np.inf}
        if self._sinks:
            state |= {"_steps": {}, "_closed": "this History is a copy, and what it was copied from writes the files"}
        return state

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # else both would have the same rows, and a number of steps each

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------------
    # Reading
    # ----------------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> History:
        """Read a log that a `History` has written, or is writing.

        Parameters
        ----------
        path : str or os.PathLike
            Of JSON lines or CSV: its first bytes tell which.

        Returns
        -------
        History
            Closed. Its ``skipped`` is how many lines could not be read.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is no log.

        Examples
        --------
        >>> import fastloss, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with fastloss.monitor.History(f"{folder.name}/run.jsonl") as history:
        ...     history.log(loss=0.5)
        >>> fastloss.monitor.History.read(f"{folder.name}/run.jsonl")["loss"]
        array([0.5])
        >>> folder.cleanup()
        """
        history = cls()
        history._reader = Reader(checked_path("path", path))
        history.update()
        history._end(f"this History was read: History({str(path)!r}) goes on with the file")
        return history

    def update(self) -> int:
        """Read what was added to the file since it was read.

        Returns
        -------
        int
            How many rows have come.

        Raises
        ------
        RuntimeError
            If the history is not one that was read.
        OSError
            If the file cannot be read.
        ValueError
            If it is no log.

        Examples
        --------
        >>> import fastloss, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with fastloss.monitor.History(f"{folder.name}/run.jsonl") as history:
        ...     history.log(loss=0.5)
        ...     seen = fastloss.monitor.History.read(f"{folder.name}/run.jsonl")
        ...     history.log(loss=0.25)
        >>> seen.update()
        1
        >>> seen["loss"]
        array([0.5 , 0.25])
        >>> folder.cleanup()
        """
        reader = self._reader
        if reader is None:
            raise RuntimeError("only a History from `History.read` has a file to update itself from")
        if reader.replaced():
            self._tables = {per: {} for per in PER}
            self._step = self._epoch = 0
        before = reader.rows
        for row in reader.poll():
            self._restore(row)
        reader.check()
        self.skipped = reader.skipped + reader.partial
        return reader.rows - before

    @property
    def step(self) -> int:
        """The number of the next step."""
        return self._step

    @property
    def epoch(self) -> int:
        """The number of the epoch that goes on; a later one may be assigned."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = self._checked("epoch", epoch, self._epoch)

    @property
    def steps(self) -> Array:
        """The numbers of the steps that were logged, int64."""
        return columns(self._tables["step"].values(), ("step",))["step"]

    @property
    def epochs(self) -> Array:
        """The numbers of the epochs that have ended, int64."""
        return columns(self._tables["epoch"].values(), ("epoch",))["epoch"]

    def keys(self, per: str | None = None) -> list[str]:
        """Under which names something was logged.

        Parameters
        ----------
        per : str, optional
            ``"step"`` or ``"epoch"``; by default both.

        Returns
        -------
        list of str
            In the order in which they first came.

        Raises
        ------
        ValueError
            If `per` is neither.
        """
        kinds = PER if per is None else (_per(per),)
        tables = [table for kind in kinds for table in self._tables[kind].values() if len(table)]
        return list(dict.fromkeys(name for table in tables for name in table.names))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, name: str) -> Array:
        """The values logged under a name, one for each of `steps`, or, where no step has it, each of `epochs`.

        Where others were logged but this was not, there is NaN; `series` leaves that out.
        """
        return columns(self._tables[self._kind(name, None)].values(), (name,))[name]

    def series(self, name: str, per: str | None = None) -> Series:
        """The values logged under a name, and when they were.

        Parameters
        ----------
        name : str
            Which.
        per : str, optional
            ``"step"`` or ``"epoch"``; by default those of steps, and of epochs where no step has the name.

        Returns
        -------
        Series
            Arrays of one length, without gaps where only others were logged.

        Raises
        ------
        KeyError
            If nothing was logged under it.
        ValueError
            If `per` is neither.

        Examples
        --------
        >>> import fastloss
        >>> history = fastloss.monitor.History()
        >>> history.log(loss=0.5, lr=0.1)
        >>> history.log(loss=0.25)
        >>> history.series("lr").step, history.series("lr").value
        (array([0]), array([0.1]))
        """
        tables = [table for names, table in self._tables[self._kind(name, per)].items() if name in names]
        return Series(**columns(tables, HEAD), value=columns(tables, (name,))[name])

    def table(self, per: str = "step") -> dict[str, Array]:
        """All columns, as ``pandas.DataFrame`` and ``polars.DataFrame`` take them.

        Parameters
        ----------
        per : str, optional
            ``"step"`` or ``"epoch"``.

        Returns
        -------
        dict
            ``step``, ``epoch``, ``time`` and each name; NaN where something was not logged.

        Raises
        ------
        ValueError
            If `per` is neither.

        Examples
        --------
        >>> import fastloss
        >>> history = fastloss.monitor.History()
        >>> history.log(loss=0.5)
        >>> history.table()
        {'step': array([0]), 'epoch': array([0]), 'time': array([...]), 'loss': array([0.5])}
        """
        return columns(self._tables[_per(per)].values(), (*HEAD, *self.keys(per)))

    def _kind(self, name: Any, per: str | None) -> str:
        """Whether a name is to be looked for in steps or in epochs."""
        for kind in PER if per is None else (_per(per),):
            if name in self.keys(kind):
                return kind
        known = ", ".join(self.keys(per)) or "nothing yet"
        raise KeyError(f"nothing was logged under {name!r}{f' per {per}' if per else ''}; there is {known}")

    def __repr__(self) -> str:
        steps, epochs = (sum(map(len, self._tables[per].values())) for per in PER)
        parts = [", ".join(self.keys("step")), f"per epoch: {', '.join(self.keys('epoch'))}"]
        shown = "; ".join(part for part, per in zip(parts, PER, strict=True) if self.keys(per))
        return f"<History: {steps} steps, {epochs} epochs{'; ' if shown else ''}{shown}>"

    def plot(
        self,
        *names: str,
        path: str | os.PathLike[str] | None = None,
        x: str | None = None,
        log: bool | Collection[str] = False,
        smooth: int | None = None,
    ) -> Figure:
        """Draw curves; needs the extra ``monitor``.

        Parameters
        ----------
        *names : str
            Of panels: ``loss`` has the curves of ``loss`` and ``val_loss``. By default there is one for each.
        path : str or os.PathLike, optional
            Where the picture goes: its suffix tells the format, ``.png``, ``.svg`` or ``.pdf``.
        x : str, optional
            ``"step"``, ``"epoch"`` or ``"time"`` (since the first row). By default steps, and epochs where no step was
            logged.
        log : bool or collection of str, optional
            Which panels have a logarithmic ordinate: all, none, or those of these names.
        smooth : int, optional
            Over how many neighbours a curve of steps is averaged, with weights that fall off like a bell; 1 for not at
            all. By default a thirtieth of all. What was logged is drawn too, in a lighter line; of very many values,
            the range.

        Returns
        -------
        matplotlib.figure.Figure
            A notebook shows it; its ``axes`` are the panels.

        Raises
        ------
        KeyError
            If nothing was logged under a name.
        TypeError, ValueError
            If another argument is wrong, nothing was logged at all, or a panel with a logarithmic ordinate has no
            positive value.
        OSError
            If `path` cannot be written to.
        ModuleNotFoundError
            If Matplotlib is not installed.

        Examples
        --------
        >>> import fastloss
        >>> history = fastloss.monitor.History()
        >>> for step in range(100):
        ...     history.log(loss=0.9**step, lr=0.1)
        >>> figure = history.plot("loss", log=True)
        >>> figure.axes[0].get_title(), figure.axes[0].get_yscale()
        ('loss', 'log')
        """
        try:
            from fastloss.monitor import plot
        except ModuleNotFoundError as error:
            message = f"History.plot needs {(error.name or '').partition('.')[0]}: pip install 'fastloss[monitor]'"
            raise ModuleNotFoundError(message, name=error.name) from error
        return plot.draw(self, names, path, x, log, smooth)


def _sinks(values: Iterable[Any]) -> list[Sink]:
    """Sinks that no `History` has yet."""
    taken = {id(sink) for history in _OPEN for sink in history._sinks}
    found = []
    for value in values:
        sink = _sink(value)
        if id(sink) in taken:
            raise ValueError(f"a sink belongs to one History, and this one has one already: {sink!r}")
        taken.add(id(sink))
        found.append(sink)
    return found


def _sink(value: Any) -> Sink:
    if isinstance(value, Sink):
        return value
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"a sink must be a path or a fastloss.monitor.Sink, got {value!r}")
    path = checked_path("sink", value)
    return format_of(path)(path)


def _per(value: Any) -> str:
    if value not in PER:
        raise ValueError(f"`per` must be 'step' or 'epoch', got {value!r}")
    return str(value)


def _order(row: Row) -> tuple[int, bool, int]:
    """An epoch that ended after n steps comes before step n."""
    return row.step, row.per == "step", row.epoch


def _refused(values: Mapping[str, Any], error: Exception) -> Exception:
    """An error that names the value which is to blame."""
    for name, value in values.items():
        try:
            array("d").fromlist([value])
        except Exception:
            shape = getattr(value, "shape", None)
            what = f"{type(value).__name__} of shape {tuple(shape)}" if shape else reprlib.repr(value)
            return TypeError(f"`{name}` must be a number, or an array without axes, got {what}")
    return error


@atexit.register
def _close_all() -> None:
    for history in list(_OPEN):
        history._close_or_warn()


def _disown() -> None:
    """In a child that was forked: files and what is not written yet are the parent's."""
    for history in list(_OPEN):
        for sink in history._sinks:
            if isinstance(sink, LogFile):
                sink.close()  # else the lock would outlive the parent
        history._sinks = []
        history._end("this History belongs to the parent process: let that log, or give each process a file of its own")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
