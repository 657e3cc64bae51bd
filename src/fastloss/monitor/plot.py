"""`History.plot`: curves of training and validation, one panel a name."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastloss.losses.arrays import Array
from fastloss.monitor.rows import Series
from fastloss.monitor.sinks import checked_path

if TYPE_CHECKING:
    from fastloss.monitor.history import History

POINTS = 1000
"""How many points a curve of steps has at most: of more values, neighbours are taken together."""

UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))

VALIDATION = "val_"
TRAINING_COLOUR, VALIDATION_COLOUR, BAD_COLOUR = "#4477aa", "#cc6677", "#aa3377"
WIDTH, HEIGHT = 4.8, 3.4


def draw(
    history: History,
    names: tuple[str, ...],
    path: str | os.PathLike[str] | None,
    x: str | None,
    log: bool | Collection[str],
    smooth: int | None,
) -> Figure:
    """Draw: `History.plot` says what the arguments are.

    Parameters
    ----------
    history : History
        Of which curves are drawn.
    names, path, x, log, smooth
        As there.

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = _panels(history, names)
    scales = _scales(log, panels)
    if smooth is not None and (isinstance(smooth, bool) or not isinstance(smooth, int) or smooth < 1):
        raise ValueError(f"`smooth` must be a positive integer, or None, got {smooth!r}")
    if x is None:
        x = "step" if history.steps.size else "epoch"
    label, abscissa = _abscissa(history, x)
    target = None if path is None else checked_path("path", path)

    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    # A figure of its own, without pyplot: no window system is asked for and no global state is touched.
    figure = Figure(figsize=(max(columns, 1.4) * WIDTH, rows * HEIGHT), dpi=120, layout="constrained")
    first = None
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1, sharex=first)
        first = first or axes
        _draw_panel(axes, history, panel, abscissa, scales[panel], smooth)
        axes.set_xlabel(label)
        if x != "time":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if target is not None:
        figure.savefig(target)
    return figure


def _panels(history: History, names: tuple[str, ...]) -> list[str]:
    """What panels there are: ``val_loss`` belongs into that of ``loss``, if there is one."""
    known = history.keys()
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"names must be strings, got {name!r}")
        if name not in known and VALIDATION + name not in known:
            raise KeyError(f"nothing was logged under {name!r}; there is {', '.join(known) or 'nothing yet'}")
    if not known:
        raise ValueError("nothing was logged yet: there is nothing to draw")
    # Without a name `loss` on its own, `val_loss` still makes a panel `loss`.
    return list(dict.fromkeys(names or (name.removeprefix(VALIDATION) or name for name in known)))


def _scales(log: Any, panels: list[str]) -> dict[str, bool]:
    if isinstance(log, bool):
        return dict.fromkeys(panels, log)
    if isinstance(log, str) or not isinstance(log, Collection):
        raise TypeError(f"`log` must be True, False or a collection of names, got {log!r}")
    unknown = [name for name in log if name not in panels]
    if unknown:
        raise ValueError(f"`log` names {unknown[0]!r}, which is no panel; there is {', '.join(panels)}")
    return {panel: panel in log for panel in panels}


def _abscissa(history: History, x: Any) -> tuple[str, Callable[[Series, str], Array]]:
    """The axis' label, and what gives the places of values, of steps or of epochs."""
    if x == "step":
        return x, lambda series, per: series.step
    if x == "time":
        times = np.concatenate([history.table(per)["time"] for per in ("step", "epoch")])
        start, end = times.min(), times.max()
        unit, label = next((u, name) for u, name in UNITS if end - start >= 2 * u or u == 1)
        return f"time ({label})", lambda series, per: (series.time - start) / unit
    if x != "epoch":
        raise ValueError(f"`x` must be 'step', 'epoch' or 'time', got {x!r}")
    # Where the first step of each epoch is, and how many it has: the one that goes on is taken to be like the last.
    steps = history.table("step")
    numbers, firsts = np.unique(steps["epoch"], return_index=True)
    begin = steps["step"][firsts].astype(float)
    length = np.diff([*begin, history.step])
    if length.size > 1 and history.epoch == numbers[-1]:
        length[-1] = max(length[-1], length[-2])

    def places(series: Series, per: str) -> Array:
        if per == "epoch":
            return series.epoch + 1.0
        i = np.searchsorted(numbers, series.epoch)
        result: Array = series.epoch + (series.step - begin[i] + 1) / length[i]
        return result

    return x, places


def _draw_panel(
    axes: Axes,
    history: History,
    panel: str,
    abscissa: Callable[[Series, str], Array],
    log: bool,
    smooth: int | None,
) -> None:
    training, validation = panel, VALIDATION + panel
    both = training in history and validation in history
    for name, colour in ((training, TRAINING_COLOUR), (validation, VALIDATION_COLOUR)):
        if name not in history:
            continue
        per = "step" if name in history.keys("step") else "epoch"
        series = history.series(name, per)
        if log and not (series.value > 0).any():
            raise ValueError(f"`{name}` has no positive value: it cannot be drawn with `log`")
        label = {training: "training", validation: "validation"}[name] if both else name
        places = abscissa(series, per)
        _draw_curve(axes, places, series.value, colour, label, smooth if per == "step" else 1)
        _mark_bad(axes, places[~np.isfinite(series.value)], label)
    axes.set_title(panel)
    if log:
        axes.set_yscale("log", nonpositive="mask")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1] != [panel]:  # the title says that
        axes.legend(frameon=False)


def _draw_curve(axes: Axes, x: Array, y: Array, colour: str, label: str, smooth: int | None) -> None:
    good = np.isfinite(y)
    each = math.ceil(len(y) / POINTS)
    starts = np.arange(0, len(y), each)
    count = np.add.reduceat(good, starts, dtype=np.float64)
    total = np.add.reduceat(np.where(good, y, 0.0), starts)
    width = max(1, len(y) // 30) if smooth is None else smooth
    middle = x[np.minimum(starts + each // 2, len(y) - 1)]
    marker = "o" if len(starts) < 15 else None  # few points make no visible line
    if width <= 1 and each == 1:
        axes.plot(x, np.where(good, y, np.nan), color=colour, marker=marker, markersize=4, linewidth=1.6, label=label)
        return
    if each == 1:
        axes.plot(x, np.where(good, y, np.nan), color=colour, alpha=0.3, linewidth=0.8)
    else:
        low = np.minimum.reduceat(np.where(good, y, np.inf), starts)
        high = np.maximum.reduceat(np.where(good, y, -np.inf), starts)
        axes.fill_between(middle, low, high, where=count > 0, color=colour, alpha=0.25, linewidth=0)
    curve = _smoothed(total, count, width / each)
    suffix = f" (mean over {width} steps)" if width > 1 else ""
    axes.plot(middle, curve, color=colour, marker=marker, markersize=4, linewidth=1.6, label=label + suffix)


def _mark_bad(axes: Axes, x: Array, label: str) -> None:
    """Crosses at the bottom edge, where values are that have no height of their own."""
    if x.size:
        x = x[:: math.ceil(x.size / POINTS)]
        edge, note = axes.get_xaxis_transform(), f"{label}: NaN or infinite"
        axes.plot(x, np.zeros(x.size), "x", color=BAD_COLOUR, transform=edge, clip_on=False, label=note)


def _smoothed(total: Array, count: Array, width: float) -> Array:
    """Means over neighbours, weighted by a bell that is about `width` wide; NaN where there is nothing.

    Sums and counts are smoothed alike, so that gaps and the ends, where there are fewer neighbours, bend nothing. All
    terms have the sign of the values: nothing cancels, over however many decades they fall.
    """
    sigma = max(width / 2.5, 1e-3)
    reach = min(math.ceil(3 * sigma), len(total) - 1)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    sums, weights = (np.convolve(values, bell)[reach : reach + len(total)] for values in (total, count))
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, sums / weights, np.nan)
