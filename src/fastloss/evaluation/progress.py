"""Telling how far an evaluation has come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastloss.evaluation.files import needs

Progress = Callable[[int], None]


@contextmanager
def reporter(progress: Any, total: int | None) -> Iterator[Progress]:
    """What is told how many samples are done.

    Parameters
    ----------
    progress : bool, callable or None
        As `fastloss.evaluate` takes it.
    total : int or None
        Number of samples.
    """
    if progress is None or progress is False:
        yield lambda done: None
    elif progress is True:
        with _bar(total) as report:
            yield report
    elif callable(progress):
        yield lambda done: progress(done, total)
    else:
        raise TypeError(f"`progress` must be True, False, None or a function, got {progress!r}")


@contextmanager
def _bar(total: int | None) -> Iterator[Progress]:
    with needs("rich"):
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

    class Rate(ProgressColumn):
        """Samples a second."""

        def render(self, task: Any) -> Text:
            return Text("" if not task.speed else f"{task.speed:,.0f} samples/s")

    columns = (TextColumn("{task.completed:,.0f}"), BarColumn(), TaskProgressColumn(), Rate(), TimeRemainingColumn())
    with Bar(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
