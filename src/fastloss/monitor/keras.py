"""`History` as a callback for Keras: ``from fastloss.monitor.keras import History``.

Keras is imported when that name is first asked for.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Mapping
from typing import Any

from fastloss.monitor import history as monitor
from fastloss.monitor.sinks import Sink


class _Methods:
    """A Keras callback that logs to a `fastloss.monitor.History`.

    Each batch logs what Keras has then, which are means over the epoch so far; each epoch logs what Keras has at its
    end, validation among it, and the optimizer's learning rate. After ``fit`` everything is written, and a second
    ``fit`` numbers on; to let go of files before the callback ends, close ``callback.history``.

    Parameters
    ----------
    *sinks : str, os.PathLike or Sink
        As for `fastloss.monitor.History`. After a restart, pass ``fit`` the ``initial_epoch`` as usual: what was logged
        of that epoch and of later ones is dropped, as by `fastloss.monitor.History.resume_at`.
    resume : bool, optional
        As there.
    stop_on_nan : bool, optional
        Whether a NaN ends ``fit``, with a warning, after it was logged.
    flush_seconds : float, optional
        As there.

    Attributes
    ----------
    history : fastloss.monitor.History
        What was logged.

    Raises
    ------
    TypeError, ValueError, OSError
        As there.
    """

    model: Any

    def __init__(
        self,
        *sinks: str | os.PathLike[str] | Sink,
        resume: bool = True,
        stop_on_nan: bool = False,
        flush_seconds: float = 1.0,
    ) -> None:
        super().__init__()
        self.history = monitor.History(*sinks, resume=resume, stop_on_nan=stop_on_nan, flush_seconds=flush_seconds)
        self._first_step = 0
        self._first_epoch: int | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Number on from what was logged before."""
        self._first_epoch = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note where the epoch begins."""
        if self._first_epoch is None:
            if 0 < epoch <= self.history.epoch:
                ended = self.history.table("epoch")
                before = ended["step"][ended["epoch"] < epoch]
                self.history.resume_at(int(before.max(initial=0)), epoch)
            # A fit without `initial_epoch` counts from 0 again; the history does not.
            self._first_epoch = max(0, self.history.epoch - epoch)
        self._first_step = self.history.step
        self.history.epoch = self._first_epoch + epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Log a step; `batch` is the last of several where Keras executes several at once."""
        if logs:
            self._logged(self.history.log, self._first_step + batch, logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Log an epoch."""
        found = dict(logs or {})
        rate = getattr(getattr(self.model, "optimizer", None), "learning_rate", None)
        if rate is not None:
            found.setdefault("learning_rate", rate)
        self._logged(self.history.end_epoch, None, found)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Write everything."""
        self.history.flush()

    def _logged(self, log: Any, number: int | None, logs: Mapping[str, Any]) -> None:
        try:
            log(number, **logs)
        except monitor.NaNError as error:
            if not self.model.stop_training:  # the end of the epoch has the same NaN
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
            self.model.stop_training = True


@functools.cache
def _callback() -> type:
    try:
        keras = importlib.import_module("keras")
    except ModuleNotFoundError as error:
        message = f"the callback needs {error.name}: pip install keras, and a backend for it"
        raise ModuleNotFoundError(message, name=error.name) from error
    namespace = {"__module__": __name__, "__doc__": _Methods.__doc__, "__qualname__": "History"}
    return type("History", (_Methods, keras.callbacks.Callback), namespace)


def __getattr__(name: str) -> Any:
    if name == "History":
        return _callback()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
