"""An evaluation's state in a file: what was computed so far, and of what."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastloss.evaluation.partial import Partial, State
from fastloss.evaluation.sources import Encoder

FORMAT = 3
EVERY = 5.0
"""Seconds between two writes."""

_ARRAYS = ("floats", "low", "counts", "worst", "where", "whose")


class Checkpoint:
    """A file that always holds a whole state: each is written beside it and then takes its place.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    task : dict
        What is evaluated, as JSON takes it; a file of another task is refused.
    """

    def __init__(self, path: str | os.PathLike[str], task: dict[str, Any]) -> None:
        self.path = Path(path)
        self._task = json.loads(json.dumps(task, default=str))
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"`checkpoint`: there is no folder {self.path.parent}")

    def load(self) -> tuple[list[State | None], Encoder, bool] | None:
        """States, groups and whether they are finished; None if there is nothing yet."""
        if not self.path.exists():
            return None
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                if about["format"] != FORMAT:
                    raise ValueError(f"it has format {about['format']}, expected {FORMAT}")
                self._compare(about["task"])
                states = [_state(readings, arrays, f"{n}-") for n, readings in enumerate(about["states"])]
        except _OtherTaskError as error:
            raise ValueError(str(error)) from None
        except (TypeError, ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"`checkpoint`: {self.path} is no checkpoint of an evaluation: {error}") from error
        return states, Encoder(about["labels"]), about["finished"]

    def _compare(self, task: dict[str, Any]) -> None:
        for key in sorted({*task, *self._task}):
            if task.get(key) != self._task.get(key):
                raise _OtherTaskError(
                    f"`checkpoint`: {self.path} is that of another evaluation: its {key} was {task.get(key)!r}, now it "
                    f"is {self._task.get(key)!r}; delete the file to start anew"
                )

    def save(self, states: Sequence[State | None], encoder: Encoder, finished: bool) -> None:
        """Write states of parts of the data; a kill leaves these or the ones before."""
        about: dict[str, Any] = {
            "format": FORMAT,
            "task": self._task,
            "finished": finished,
            "labels": list(encoder.labels),  # the reader may be adding some
            "states": [],
        }
        arrays: dict[str, Any] = {}
        for n, state in enumerate(states):
            about["states"].append(None if state is None else [])
            for i, reading in enumerate(state.readings if state is not None else []):
                if reading is None:
                    about["states"][n].append(None)
                    continue
                reading.compact()
                about["states"][n].append({"samples": reading.samples, "inner": reading.inner, "rows": reading.labels})
                arrays |= {f"{n}-{i}-{name}": getattr(reading, name) for name in _ARRAYS}
                arrays[f"{n}-{i}-cells"] = reading.cells[0] if reading.cells else np.empty(0, np.int64)
                arrays[f"{n}-{i}-numbers"] = reading.numbers[0] if reading.numbers else np.empty(0, np.int64)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(beside, "wb") as file:
                np.savez(file, about=np.array(json.dumps(about)), **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)


class _OtherTaskError(Exception):
    pass


def _state(readings: list[Any] | None, arrays: Any, prefix: str) -> State | None:
    if readings is None:
        return None
    found = [None if r is None else _partial(r, arrays, f"{prefix}{i}-") for i, r in enumerate(readings)]
    return State(found)


def _partial(about: dict[str, Any], arrays: Any, prefix: str) -> Partial:
    tables = {name: arrays[prefix + name] for name in _ARRAYS}
    return Partial(
        about["samples"],
        tuple(about["inner"]),
        about["rows"],
        cells=[arrays[f"{prefix}cells"]],
        numbers=[arrays[f"{prefix}numbers"]],
        **tables,
    )
