"""The pages of the losses, written from the registry: a new row there is all that a new page needs.

`pages` needs nothing but the package; `figure` needs Matplotlib, and the docstrings are rendered by Sphinx. ``conf.py``
calls `write` before Sphinx looks for its sources.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastloss.losses import identifiers
from fastloss.losses.base import KernelLoss, Loss
from fastloss.registry import BATCH_LOSSES, LOSSES, BatchRow, Row

FOLDER = "losses"
"""Where the pages go, within the documentation's sources."""

POINTS = 401
"""How many predictions a curve has: odd, so that the middle of a range, where kinks are, is one of them."""

TARGETS = {
    "real": (0.0,),
    "positive": (1.0, 2.0),
    "unit": (0.3, 0.8),
    "sign": (-1.0, 1.0),
    "pairs": (0.0, 1.0),
    "probability": (0.0, 1.0),
}
"""Domain of a pointwise loss → the targets that its curves are drawn for."""

RANGES = {
    "real": (-3.0, 3.0),
    "positive": (0.05, 4.0),
    "unit": (0.05, 1.0),
    "sign": (-2.5, 2.5),
    "pairs": (0.0, 2.0),
    "probability": (0.05, 0.95),
}
"""Domain of a pointwise loss → the predictions that they are drawn over."""

LOGITS = (-6.0, 6.0)


class Curve(NamedTuple):
    """One line of a plot: a loss, and the samples that it is computed for."""

    label: str
    loss: Loss
    y_true: np.ndarray
    y_pred: np.ndarray


# --------------------------------------------------------------------------------------------------------------
# Pages
# --------------------------------------------------------------------------------------------------------------


def rows() -> dict[str, Row | BatchRow]:
    """All registered losses, by name."""
    return {**LOSSES, **BATCH_LOSSES}


def families() -> dict[str, list[Row | BatchRow]]:
    """Losses by family, which is a module; its docstring's first line is the title."""
    found: dict[str, list[Row | BatchRow]] = {}
    for row in rows().values():
        title = (inspect.getdoc(sys.modules[row.cls.__module__]) or row.cls.__module__).splitlines()[0].rstrip(".")
        found.setdefault(title, []).append(row)
    return found


def names(row: Row | BatchRow) -> list[str]:
    """The identifiers that `fastloss.losses.get` takes for this loss, its aliases not among them."""
    return [row.cls.__name__, *([row.function.__name__] if row.function else [])]


def aliases(row: Row | BatchRow) -> list[str]:
    """Its other identifiers."""
    return [alias for alias, target in identifiers.ALIASES.items() if target in names(row)]


def has_gradient(cls: type[Loss]) -> bool:
    """Whether `value_and_grad` is defined: by a kernel, by what a class overrides."""
    overridden = any(getattr(cls, name) is not getattr(Loss, name) for name in ("call_with_grad", "_compute", "_run"))
    return issubclass(cls, KernelLoss) or overridden


def has_hessian(row: Row | BatchRow) -> bool:
    """Whether `value_grad_hess` is."""
    return row.cls(**row.variants[0]).has_hessian


def has_cuda(row: Row | BatchRow) -> bool:
    """Whether it takes arrays of a CUDA device."""
    return issubclass(row.cls, KernelLoss) or row.cls.device_form is not None


def kind(row: Row | BatchRow) -> str:
    """How the loss sees its data, in words."""
    if isinstance(row, BatchRow):
        return "boxes, sequences or whole batches"
    return {"pointwise": "each element by itself", "rowwise": "each row as a whole"}[row.kind]


def code(*texts: str) -> str:
    """Texts as code, safe in the cell of a table."""
    return ", ".join(f"`{text}`" for text in texts).replace("|", r"\|")


def yes(fact: bool) -> str:
    """A fact, in a table."""
    return "yes" if fact else "no"


def page(row: Row | BatchRow) -> str:
    """The page of a loss."""
    facts = {"formula": code(row.formula), "computed from": kind(row), "identifiers": code(*names(row))}
    if aliases(row):
        facts["aliases"] = code(*aliases(row))
    facts["gradient"] = yes(has_gradient(row.cls))
    facts["diagonal Hessian"] = yes(has_hessian(row))
    facts["CUDA"] = yes(has_cuda(row))
    lines = [f"# {row.cls.__name__}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    if curves(row):
        lines += ["", f"```{{figure}} {row.name}.png", f":alt: {row.cls.__name__} and its gradient", "", caption(row)]
        lines += ["```"]
    lines += ["", "## Class", "", "```{eval-rst}", f".. autoclass:: fastloss.losses.{row.cls.__name__}"]
    # Methods are those of `Loss`, but for arguments that this loss adds.
    own = [name for name in ("__call__", "value_and_grad", "value_grad_hess") if name in vars(row.cls)]
    if own:
        lines += ["   :special-members: __call__"] if "__call__" in own else []
        lines += [f"   :members: {', '.join(own)}"]
    lines += ["```"]
    if row.function is not None:
        lines += ["", "## Function handle", "", "```{eval-rst}"]
        lines += [f".. autofunction:: fastloss.losses.{row.function.__name__}", "```"]
    return "\n".join(lines) + "\n"


def overview() -> str:
    """The page with the table of all losses."""
    lines = [
        "# Losses",
        "",
        "In the formulas y are targets and p predictions, sums and means go over the elements of a sample, and ε is",
        "1e-7 where nothing else is said. Each page has the exact definition.",
    ]
    for title, members in families().items():
        lines += [
            "",
            f"## {title}",
            "",
            "| identifier | class | formula | gradient | diagonal Hessian | CUDA |",
            "|---|---|---|---|---|---|",
        ]
        for row in members:
            identifier = code(row.function.__name__) if row.function else "–"
            cells = [identifier, f"[{code(row.cls.__name__)}]({row.name}.md)", code(row.formula)]
            cells += [yes(has_gradient(row.cls)), yes(has_hessian(row)), yes(has_cuda(row))]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "```{toctree}", ":hidden:", ""]
    lines += [row.name for members in families().values() for row in members]
    return "\n".join([*lines, "```"]) + "\n"


def pages() -> dict[str, str]:
    """Name of a file → its text, for every page."""
    return {"index.md": overview(), **{f"{row.name}.md": page(row) for row in rows().values()}}


# --------------------------------------------------------------------------------------------------------------
# Plots
# --------------------------------------------------------------------------------------------------------------


def curves(row: Row | BatchRow) -> list[Curve]:
    """What a plot of this loss would show; nothing, where one prediction alone says little about the loss."""
    if isinstance(row, BatchRow):
        return []
    if row.kind == "pointwise":
        return list(_of_elements(row))
    return list(_of_two_classes(row)) if row.domain in ("distribution", "scores", "index") else []


def _defaults(row: Row) -> tuple[dict[str, Any], bool]:
    """The first variant's options, from logits where there are logits, and whether there are."""
    logits = "from_logits" in row.cls(**row.variants[0]).get_config()
    return {**row.variants[0], **({"from_logits": True} if logits else {}), "reduction": "none"}, logits


def _settings(row: Row) -> Iterator[tuple[str, Loss]]:
    """The loss with each of its variants' options, and what they are."""
    changing = sorted({key for variant in row.variants for key in variant})
    for variant in row.variants:
        loss = row.cls(**variant, reduction="none")
        yield ", ".join(f"{key} = {getattr(loss, key)}" for key in changing), loss


def _of_elements(row: Row) -> Iterator[Curve]:
    """Samples of one element: a curve a target, or a curve a variant where there is one target."""
    options, logits = _defaults(row)
    p = np.linspace(*(LOGITS if logits else RANGES[row.domain]), POINTS)[:, None]
    if len(TARGETS[row.domain]) == 1:
        for label, loss in _settings(row):
            yield Curve(label, loss, np.full_like(p, *TARGETS[row.domain]), p)
    else:
        for target in TARGETS[row.domain]:
            yield Curve(f"target {target:g}", row.cls(**options), np.full_like(p, target), p)


def _of_two_classes(row: Row) -> Iterator[Curve]:
    """Samples of two classes, of which the first has the score or the probability that changes."""
    options, logits = _defaults(row)
    if logits or row.domain == "scores":
        p = np.linspace(*LOGITS, POINTS)
        p = np.stack([p, np.zeros_like(p)], axis=-1)
        for target in (0, 1):
            y = np.full(POINTS, target) if row.labels == "index" else np.tile(np.eye(2)[target], (POINTS, 1))
            yield Curve(f"label {target}", row.cls(**options), y, p)
    else:
        p = np.linspace(*RANGES["probability"], POINTS)
        p = np.stack([p, 1 - p], axis=-1)
        for label, loss in _settings(row):
            yield Curve(label, loss, np.zeros(POINTS, np.int64), p)


def abscissa(row: Row) -> str:
    """What the plot is drawn over."""
    logits = _defaults(row)[1]
    if row.kind == "pointwise":
        return "predicted logit" if logits else "prediction"
    if logits:
        return "logit of class 0; that of class 1 is 0"
    return "score of class 0; that of class 1 is 0" if row.domain == "scores" else "probability of class 0, the label"


def caption(row: Row) -> str:
    """What the plot shows."""
    if row.kind == "pointwise":
        target = ", for the target 0" if row.domain == "real" else ""
        return f"The loss of one element and its gradient, against the {abscissa(row)}{target}."
    return f"The loss of a sample of two classes and its gradient, against the {abscissa(row)}."


def figure(row: Row) -> Any:
    """The plot: loss and gradient side by side."""
    from matplotlib.figure import Figure

    result = Figure(figsize=(7.2, 2.7), layout="constrained")
    left, right = result.subplots(1, 2)
    for label, loss, y, p in curves(row):
        value, gradient = loss.value_and_grad(y, p)
        left.plot(p[:, 0], value, label=label)
        right.plot(p[:, 0], _with_gaps(gradient[:, 0]))
    for axes, title in ((left, "loss"), (right, "gradient")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(abscissa(row), fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.axhline(0, color="black", linewidth=0.6, zorder=1)
    if any(left.get_legend_handles_labels()[1]):
        left.legend(fontsize=8)
    return result


def _with_gaps(gradient: np.ndarray) -> np.ndarray:
    """The gradient, interrupted where it jumps: a vertical line would be values that it does not take.

    A jump is a step that is much larger than one of those beside it; where a curve is only steep, all of them are.
    """
    steps = np.abs(np.diff(gradient))
    beside = np.minimum(np.concatenate([steps[1:2], steps[:-1]]), np.concatenate([steps[1:], steps[-2:-1]]))
    jumps = (steps > 0.02 * np.ptp(gradient)) & (steps > 4 * beside)
    result = gradient.copy()
    result[1:][jumps] = np.nan
    return result


# --------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------


def write(sources: Path) -> None:
    """Write pages and plots below the documentation's sources; what has not changed keeps its time."""
    folder = sources / FOLDER
    folder.mkdir(exist_ok=True)
    files = {name: text.encode() for name, text in pages().items()}
    for row in rows().values():
        if curves(row):
            buffer = io.BytesIO()
            figure(row).savefig(buffer, format="png", dpi=120)
            files[f"{row.name}.png"] = buffer.getvalue()
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
