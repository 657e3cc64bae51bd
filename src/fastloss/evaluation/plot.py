"""`Evaluation.plot`: the distribution of the losses, and the groups beside the whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from fastloss.monitor.sinks import checked_path

if TYPE_CHECKING:
    from fastloss.evaluation.result import Evaluation

SHARE, VALUE = "#4477aa", "#cc6677"
GROUPS = 30
"""More groups than this are not drawn: the largest are."""

BINS = 60
LONG_TAIL = 20.0
"""Where the 99th percentile is this many times the median, the axis of losses is logarithmic."""


def draw(evaluation: Evaluation, path: str | os.PathLike[str] | None) -> Figure:
    """Draw: `Evaluation.plot` says what the arguments are."""
    target = None if path is None else checked_path("path", path)
    groups = evaluation.groups
    figure = Figure(figsize=(10.5 if groups else 6.0, 4.0), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2 if groups else 1, squeeze=False)[0]
    _distribution(panels[0], evaluation)
    if groups:
        _groups(panels[1], evaluation)
    figure.suptitle(f"{evaluation.loss}: {evaluation.value:.5g} ± {evaluation.standard_error:.2g}")
    if target is not None:
        figure.savefig(target)
    return figure


def _distribution(axes: Any, evaluation: Evaluation) -> None:
    """A histogram, with the median and what the loss was reduced to."""
    values, numbers = evaluation._centres(), evaluation._numbers
    axes.set_xlabel("loss of a sample")
    axes.set_ylabel("share of samples")
    if not values.size:
        axes.text(0.5, 0.5, "no finite loss", ha="center", transform=axes.transAxes)
        return
    middle, high = evaluation.quantile([0.5, 0.99])
    edges: Any = BINS
    if evaluation.minimum > 0 and high > LONG_TAIL * middle:
        edges = np.geomspace(evaluation.minimum, max(evaluation.maximum, evaluation.minimum * (1 + 1e-9)), BINS + 1)
        axes.set_xscale("log")
    values = np.clip(values, evaluation.minimum, evaluation.maximum)
    axes.hist(values, edges, weights=numbers / numbers.sum(), color=SHARE)
    axes.axvline(middle, color="black", linestyle=":", label=f"median {middle:.4g}")
    if evaluation.reduction != "sum":
        axes.axvline(evaluation.value, color=VALUE, label=f"value {evaluation.value:.4g}")
    axes.legend(frameon=False)


def _groups(axes: Any, evaluation: Evaluation) -> None:
    """The value of each group, with its standard error."""
    chosen = list(evaluation.groups.items())
    if len(chosen) > GROUPS:
        biggest = sorted(chosen, key=lambda pair: -pair[1].count)[:GROUPS]
        chosen = [pair for pair in chosen if pair in biggest]
        axes.set_title(f"the {GROUPS} largest of {len(evaluation.groups)} groups", fontsize="medium")
    places = np.arange(len(chosen))
    errors = np.nan_to_num([group.standard_error for _, group in chosen])
    axes.errorbar([group.value for _, group in chosen], places, xerr=errors, fmt="o", color=SHARE, capsize=3)
    axes.axvline(evaluation.value, color=VALUE, label="all samples")
    axes.set_yticks(places, [str(label) for label, _ in chosen])
    axes.invert_yaxis()
    axes.set_xlabel(f"{evaluation.loss} ± standard error")
    axes.legend(frameon=False)
