"""What ``fastloss watch`` does: follow a log in the terminal."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastloss.losses.arrays import Array
from fastloss.monitor.history import History
from fastloss.monitor.rows import Row
from fastloss.monitor.sinks import line

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 32
"""How wide a curve is, in characters."""

RECENT = 100
"""Over how many of the last values a mean and a speed are taken."""


def follow(path: Path, every: float, console: Console) -> None:
    """Show a run again and again, until the user interrupts.

    Parameters
    ----------
    path : pathlib.Path
        Of the log; it need not exist yet.
    every : float
        Seconds between two looks.
    console : rich.console.Console
        A terminal has one picture that changes; anything else gets a line each time that something has come.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or is no log.
    """
    live = console.file.isatty()
    try:
        if not path.exists():
            console.print(f"Waiting for {path}", markup=False, soft_wrap=True)
        while not path.exists():
            time.sleep(every)
        history = History.read(path)
        if not live:
            _lines(history, every, console)
        with Live(view(path, history), console=console, auto_refresh=False) as picture:
            while True:
                time.sleep(every)
                _update(history)
                picture.update(view(path, history), refresh=True)
    except KeyboardInterrupt:
        pass  # how this ends


def _lines(history: History, every: float, console: Console) -> None:
    new = bool(history.keys())
    while True:
        if new:
            console.print(latest(history), markup=False, soft_wrap=True)
        time.sleep(every)
        new = _update(history)


def _update(history: History) -> bool:
    try:
        return history.update() > 0
    except FileNotFoundError:
        return False  # another may take its place


def latest(history: History) -> str:
    """The last value of each name, in a line.

    Parameters
    ----------
    history : History
        With at least one row.

    Returns
    -------
    str
    """
    names = tuple(history)
    values = tuple(float(history.series(name).value[-1]) for name in names)
    per = "step" if history.steps.size else "epoch"
    place = (history.step - 1, history.epoch) if per == "step" else (history.step, history.epoch - 1)
    return line(Row(per, *place, 0.0, names, values))


def view(path: Path, history: History) -> Group:
    """A picture of a run.

    Parameters
    ----------
    path : pathlib.Path
        Of the log.
    history : History
        What was read from it.

    Returns
    -------
    rich.console.Group
    """
    table = Table()
    for title in ("", "last", f"mean of {RECENT}", "least", "most", "at all times"):
        table.add_column(title, justify="left" if title in ("", "at all times") else "right")
    for per in ("step", "epoch"):
        table.add_section()
        for name in history.keys(per):
            value = history.series(name, per).value
            good = value[np.isfinite(value)]
            numbers = (value[-1], *((good[-RECENT:].mean(), good.min(), good.max()) if good.size else (np.nan,) * 3))
            bad = f" {len(value) - len(good)} NaN or infinite" if len(good) < len(value) else ""
            table.add_row(
                Text(name if per == "step" else f"{name}, per epoch"),
                *(f"{n:.4g}" for n in numbers),
                spark(value) + bad,
            )
    return Group(Text(f"{path}: {_state(history)}"), table)


def _state(history: History) -> str:
    """How far the run is, how fast, and how long ago that was."""
    if not history.keys():
        return "nothing was logged yet"
    steps, ends = history.table("step"), history.table("epoch")
    times = np.concatenate([steps["time"], ends["time"]])
    parts = [f"epoch {history.epoch}", f"{history.step} steps"]
    recent, numbers = steps["time"][-RECENT:], steps["step"][-RECENT:]
    if recent.size > 1 and recent[-1] > recent[0]:
        parts.append(f"{(numbers[-1] - numbers[0]) / (recent[-1] - recent[0]):.3g} steps/s")
    parts.append(f"{_duration(times.max() - times.min())} long")
    parts.append(f"last row {_duration(max(0.0, time.time() - times.max()))} ago")
    if history.skipped:
        parts.append(f"{history.skipped} lines skipped")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def spark(value: Array) -> str:
    """A curve a line high: means over equal parts, from the least to the most of them.

    Parameters
    ----------
    value : numpy.ndarray
        What was logged, in its order.

    Returns
    -------
    str
        At most `SPARKS` characters; a blank where nothing is finite.

    Examples
    --------
    >>> import numpy as np
    >>> spark(np.array([0.0, 1.0, 2.0, np.nan, 7.0]))
    '▁▂▃ █'
    """
    parts = [part[np.isfinite(part)] for part in np.array_split(value, min(SPARKS, len(value)))]
    means = np.array([part.mean() if part.size else np.nan for part in parts])
    good = means[np.isfinite(means)]
    if not good.size:
        return " " * len(means)
    low, span = good.min(), (good.max() - good.min()) or 1.0
    return "".join(" " if np.isnan(m) else BLOCKS[round((m - low) / span * (len(BLOCKS) - 1))] for m in means)
