"""Watching a training: losses and whatever else is a number, logged at each step, kept, written, drawn.

`History` is what a training loop talks to; `CSV`, `JSONLines`, `TensorBoard` and `Console` are where it writes;
``fastloss.monitor.keras.History`` is the callback for ``model.fit``; ``fastloss watch FILE`` shows a run that goes on.
"""

from fastloss.monitor.files import CSV as CSV
from fastloss.monitor.files import JSONLines as JSONLines
from fastloss.monitor.history import History as History
from fastloss.monitor.history import NaNError as NaNError
from fastloss.monitor.rows import Row as Row
from fastloss.monitor.rows import Series as Series
from fastloss.monitor.sinks import Console as Console
from fastloss.monitor.sinks import Sink as Sink
from fastloss.monitor.sinks import TensorBoard as TensorBoard

__all__ = ["CSV", "Console", "History", "JSONLines", "NaNError", "Row", "Series", "Sink", "TensorBoard"]
