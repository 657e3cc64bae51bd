"""Where a `History` writes: what every sink is, the console, and TensorBoard's event files. `files` has the others."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from fastloss.monitor.rows import Row


class Sink:
    """Where rows go: a base class, to be subclassed for a sink of one's own.

    A `History` calls `open` once, `write` at most once a second, each time with all rows since, and `close` at its end.
    An `OSError` of `write` is no end: the rows are kept and come again with the next ones.

    Examples
    --------
    >>> import fastloss
    >>> class Worst(fastloss.monitor.Sink):
    ...     loss = 0.0
    ...     def write(self, rows):
    ...         self.loss = max([self.loss, *(value for row in rows for value in row.values)])
    >>> worst = Worst()
    >>> with fastloss.monitor.History(worst) as history:
    ...     for loss in (0.7, 0.9, 0.4):
    ...         history.log(loss=loss)
    >>> worst.loss
    0.9
    """

    def open(self, resume: bool) -> Iterable[Row]:
        """Get ready.

        Parameters
        ----------
        resume : bool
            Whether to go on where an earlier run ended; else what is there already must be refused.

        Returns
        -------
        iterable of Row
            What an earlier run left, where that can be read.
        """
        return ()

    def write(self, rows: Sequence[Row]) -> None:
        """Take rows, in the order in which they were logged.

        Parameters
        ----------
        rows : sequence of Row
            At least one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `write`")

    def close(self) -> None:
        """Let go of files."""


def line(row: Row) -> str:
    """A row as a line for people.

    Parameters
    ----------
    row : Row
        Which.

    Returns
    -------
    str

    Examples
    --------
    >>> line(Row("step", 120, 3, 0.0, ("loss", "lr"), (0.123456, 1e-4)))
    'epoch 3  step 120  loss 0.1235  lr 0.0001'
    >>> line(Row("epoch", 160, 3, 0.0, ("val_loss",), (0.2,)))
    'epoch 3 done after 160 steps  val_loss 0.2'
    """
    place = f"step {row.step}" if row.per == "step" else f"done after {row.step} steps"
    values = "".join(f"  {name} {value:.4g}" for name, value in zip(row.names, row.values, strict=True))
    return f"epoch {row.epoch}{'  ' if row.per == 'step' else ' '}{place}{values}"


class Console(Sink):
    """A line for each epoch and, from time to time, one for the latest step.

    Parameters
    ----------
    every : float, optional
        How many seconds at least are between two lines about steps; 0 for one each time that rows are written.
    file : file, optional
        Where lines go; by default standard output, as it is when they are written.

    Raises
    ------
    TypeError, ValueError
        If `every` is no number, or negative.

    Examples
    --------
    >>> import fastloss
    >>> with fastloss.monitor.History(fastloss.monitor.Console()) as history:
    ...     for loss in (0.7, 0.5):
    ...         history.log(loss=loss)
    ...     history.end_epoch(val_loss=0.6)
    epoch 0  step 0  loss 0.7
    epoch 0 done after 2 steps  val_loss 0.6
    """

    def __init__(self, every: float = 10.0, file: TextIO | None = None) -> None:
        self._every = seconds("every", every)
        self._file = file
        self._next = 0.0

    def write(self, rows: Sequence[Row]) -> None:
        """Print lines.

        Parameters
        ----------
        rows : sequence of Row
            Of which the last of a step is shown, if it is time, and all of epochs.
        """
        now = time.monotonic()
        latest = max((i for i, row in enumerate(rows) if row.per == "step"), default=None)
        if latest is not None and now < self._next:
            latest = None
        elif latest is not None:
            self._next = now + self._every
        for i, row in enumerate(rows):
            if row.per == "epoch" or i == latest:
                print(line(row), file=self._file or sys.stdout, flush=True)


class TensorBoard(Sink):
    """Event files that ``tensorboard --logdir DIRECTORY`` shows; needs the extra ``tensorboard``.

    Values of steps keep their name and have the step as abscissa; those of epochs are called ``epoch_NAME``, as Keras
    calls them, and have the epoch as abscissa. A run that resumes writes a new file, which tells TensorBoard to forget
    what comes after the step at which it resumes. Event files are written, never read: to resume, a `History` needs
    another sink that is a file.

    Parameters
    ----------
    directory : str or os.PathLike
        Where the files go; made where there is none.

    Raises
    ------
    TypeError
        If `directory` is no path.

    Examples
    --------
    >>> import fastloss
    >>> history = fastloss.monitor.History("run.jsonl", fastloss.monitor.TensorBoard("runs/1"))  # doctest: +SKIP
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = checked_path("directory", directory)
        self._writer: Any = None
        self._next_step = 0

    def open(self, resume: bool) -> Iterable[Row]:
        """Make the directory, and make sure that it can be written to.

        Parameters
        ----------
        resume : bool
            Whether there may be event files in it already.

        Returns
        -------
        iterable of Row
            Always empty.

        Raises
        ------
        ModuleNotFoundError
            If tensorboardX is not installed.
        FileExistsError
            If there are event files, and `resume` is false.
        OSError
            If the directory cannot be written to.
        """
        try:
            importlib.import_module("tensorboardX")
        except ModuleNotFoundError as error:
            message = f"TensorBoard needs {error.name}: pip install 'fastloss[tensorboard]'"
            raise ModuleNotFoundError(message, name=error.name) from error
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.directory):
            pass
        if not resume and any(self.directory.glob("*tfevents*")):
            raise FileExistsError(f"there are event files in {self.directory} already, and `resume` is False")
        return ()

    def write(self, rows: Sequence[Row]) -> None:
        """Write an event for each row.

        Parameters
        ----------
        rows : sequence of Row
            Which.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._writer is None or rows[0].step < self._next_step:
            self._start(rows[0])
        try:
            for row in rows:
                prefix, place = ("", row.step) if row.per == "step" else ("epoch_", row.epoch)
                values = [
                    Summary.Value(tag=prefix + name, simple_value=value)
                    for name, value in zip(row.names, row.values, strict=True)
                ]
                self._writer.write_event(Event(wall_time=row.time, step=place, summary=Summary(value=values)))
            self._writer.flush()
        except OSError:
            # Half an event would hide those after it from TensorBoard: what comes again goes into a new file.
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None
            raise
        self._next_step = rows[-1].step

    def _start(self, row: Row) -> None:
        """Begin a file of which `row` is the first."""
        # Not SummaryWriter: that hands events to a thread of its own, whose queue no flush waits for.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.close()
        # The writer's own names have whole seconds: a run that resumes at once would overwrite its beginning.
        self._writer = EventsWriter(str(self.directory / "events"), f".{time.time_ns()}.{os.getpid()}")
        if row.step:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=row.time, step=row.step, session_log=start))

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def seconds(argument: str, value: float) -> float:
    """A duration that a user passed.

    Parameters
    ----------
    argument : str
        Its name in error messages.
    value : float
        What was passed.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or negative or NaN.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"`{argument}` must be a number of seconds, got {value!r}")
    if not value >= 0:
        raise ValueError(f"`{argument}` must be a number of seconds, at least 0, got {value!r}")
    return float(value)


def checked_path(argument: str, value: Any) -> Path:
    """A path that a user passed.

    Parameters
    ----------
    argument : str
        Its name in error messages.
    value : str or os.PathLike
        What was passed.

    Raises
    ------
    TypeError
        If it is no path.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"`{argument}` must be a path, got {value!r}")
    return Path(value)
