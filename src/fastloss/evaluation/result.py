"""What an evaluation found."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss.engine.sketch import OFFSET
from fastloss.evaluation import partial
from fastloss.evaluation.blocks import Scheme
from fastloss.evaluation.files import needs
from fastloss.evaluation.partial import Partial
from fastloss.losses.arrays import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Those that tables and dicts have."""

SHOWN = 20
"""Groups and worst samples that are printed."""


@dataclass(frozen=True)
class Worst:
    """One of the largest losses.

    Attributes
    ----------
    index : int or tuple of int
        Its sample, counted from 0; with the place in the sample where a sample has several losses.
    loss : float
        Unweighted.
    group : object
        The sample's label; None without groups.
    """

    index: int | tuple[int, ...]
    loss: float
    group: Hashable = None


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A loss over data, or over one group of them.

    Attributes
    ----------
    loss, reduction : str
        The loss's class and how it was reduced.
    value : float
        The reduced loss; NaN or infinite if a loss is.
    standard_error : float
        Of the value, the samples taken as independent; NaN if fewer than two count or one is not finite.
    finite_value : float
        The value without the losses that are NaN or infinite.
    sum : float
        Of the weighted losses.
    weight_sum : float
        Of the weights; without weights the count.
    count, masked, nonfinite : int
        Losses that count; that were masked; that count but are NaN or infinite, their weight included.
    minimum, maximum : float
        Of the finite losses; NaN if there is none.
    samples : int
        Entries along the first axis, 0 for a group.
    groups : dict
        An `Evaluation` by label, in the order of the labels.
    worst : tuple of Worst
        The largest losses, NaN first.
    """

    loss: str
    reduction: str
    value: float
    standard_error: float
    finite_value: float
    sum: float
    weight_sum: float
    count: int
    masked: int
    nonfinite: int
    minimum: float
    maximum: float
    samples: int
    groups: dict[Hashable, Evaluation]
    worst: tuple[Worst, ...]
    _cells: Array = field(compare=False)
    _numbers: Array = field(compare=False)

    @classmethod
    def of(cls, scheme: Scheme, part: Partial) -> Evaluation:
        """Of a summary of all data."""
        rows = range(1, len(part.labels))
        groups = {part.labels[row]: cls._row(scheme, part, row) for row in sorted(rows, key=_order(part.labels))}
        groups = {label: group for label, group in groups.items() if group.count or group.masked}
        return cls._row(scheme, part, 0, groups)

    @classmethod
    def _row(
        cls, scheme: Scheme, part: Partial, row: int, groups: dict[Hashable, Evaluation] | None = None
    ) -> Evaluation:
        numbers = part.counts[row]
        count, masked, nan, positive, negative = map(int, numbers)
        sums = part.floats[row]
        total, weight = float(sums[partial.SUM]), float(sums[partial.WEIGHT] + sums[partial.LOST])
        divisor: float = count
        if scheme.reduction == "mean_with_sample_weight":
            # One weight for all is counted once, as it is where a loss is called.
            divisor = weight if scheme.constant is None or scheme.masked else scheme.constant
        elif scheme.reduction == "sum":
            divisor = 1.0
        nonfinite = nan + positive + negative
        finite = count - nonfinite
        finite_divisor = divisor
        if nonfinite and scheme.reduction != "sum":
            finite_divisor = finite
            if scheme.reduction == "mean_with_sample_weight":
                finite_divisor = float(sums[partial.WEIGHT]) if scheme.constant is None or scheme.masked else divisor
        unusual = math.nan if nan or (positive and negative) else math.inf if positive else -math.inf
        all_of_it = unusual if nonfinite else total
        cells, counts = part.histogram(row)
        group = row > 0
        return cls(
            loss=scheme.name,
            reduction=scheme.reduction,
            value=_quotient(all_of_it, divisor),
            standard_error=math.nan if nonfinite else _standard_error(scheme, sums, finite, divisor),
            finite_value=_quotient(total, finite_divisor),
            sum=all_of_it,
            weight_sum=weight,
            count=count,
            masked=masked,
            nonfinite=nonfinite,
            minimum=float(sums[partial.LEAST]) if finite else math.nan,
            maximum=float(sums[partial.LARGEST]) if finite else math.nan,
            samples=0 if group else part.samples,
            groups=groups or {},
            worst=_worst(part, row),
            _cells=cells,
            _numbers=counts,
        )

    @property
    def sketch(self) -> Any:
        """The finite losses as a ``ddsketch.BaseDDSketch``, which merges with others of the same mapping."""
        with needs("ddsketch"):
            from ddsketch.ddsketch import BaseDDSketch
            from ddsketch.mapping import LinearlyInterpolatedMapping
            from ddsketch.store import DenseStore
        positive, negative, zeros = DenseStore(), DenseStore(), 0.0
        for cell, number in zip(self._cells.tolist(), self._numbers.tolist(), strict=True):
            if cell == 0:
                zeros = float(number)
            else:
                (positive if cell > 0 else negative).add(abs(cell) - OFFSET, float(number))
        return BaseDDSketch(LinearlyInterpolatedMapping(partial.ACCURACY), positive, negative, zeros)

    def quantile(self, q: float | Sequence[float]) -> Any:
        """Quantiles of the finite, unweighted losses, to 0.4 % of their size.

        Parameters
        ----------
        q : float or sequence of float
            From 0, the smallest, to 1, the largest.

        Returns
        -------
        float or list of float
            NaN if there is no finite loss.

        Examples
        --------
        >>> import numpy as np
        >>> import fastloss
        >>> found = fastloss.evaluate("MeanAbsoluteError", np.zeros(1001), np.arange(1001.0))
        >>> abs(found.quantile(0.9) / 900 - 1) <= 0.005
        True
        """
        wanted = [q] if isinstance(q, (int, float)) else list(q)
        for value in wanted:
            if not 0 <= value <= 1:
                raise ValueError(f"`q` must be in [0, 1], got {value!r}")
        sketch = self.sketch
        found = []
        for value in wanted:
            near = sketch.get_quantile_value(value)
            # A cell's middle may lie beyond the extremes, which are known exactly.
            found.append(math.nan if near is None else min(max(float(near), self.minimum), self.maximum))
        return found[0] if isinstance(q, (int, float)) else found

    def histogram(self, bins: int = 50) -> tuple[Array, Array]:
        """How many finite losses fall between equally wide edges.

        Parameters
        ----------
        bins : int
            Number of bins.

        Returns
        -------
        counts, edges : numpy.ndarray
            As from `numpy.histogram`; a loss lies up to 0.4 % of its size from where it is counted.
        """
        values = np.clip(self._centres(), self.minimum, self.maximum) if self._cells.size else np.empty(0)
        limits = (self.minimum, self.maximum) if values.size else (0.0, 1.0)
        counts, edges = np.histogram(values, bins, limits, weights=self._numbers)
        return counts.astype(np.int64), edges

    def _centres(self) -> Array:
        """The loss that each cell stands for."""
        with needs("ddsketch"):
            from ddsketch.mapping import LinearlyInterpolatedMapping
        value = LinearlyInterpolatedMapping(partial.ACCURACY).value
        return np.array([math.copysign(value(abs(c) - OFFSET), c) if c else 0.0 for c in self._cells.tolist()])

    def to_dict(self) -> dict[str, Any]:
        """All of it, of plain numbers, strings, lists and dicts; labels of groups stay as they are."""
        return {**self._figures(), "groups": {k: v.to_dict() for k, v in self.groups.items()}, "worst": self._worsts()}

    def _figures(self) -> dict[str, Any]:
        names = ("loss", "reduction", "value", "standard_error", "finite_value", "sum", "weight_sum", "count", "masked")
        more = ("nonfinite", "minimum", "maximum", "samples")
        quantiles = dict(zip(map(str, QUANTILES), self.quantile(QUANTILES), strict=True))
        return {**{name: getattr(self, name) for name in names + more}, "quantiles": quantiles}

    def _worsts(self) -> list[dict[str, Any]]:
        return [{**asdict(w), "index": list(w.index) if isinstance(w.index, tuple) else w.index} for w in self.worst]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """As strict JSON: numbers that are not finite become ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.

        Parameters
        ----------
        path : path, optional
            Where to write it, too.
        """
        found = self.to_dict()
        found["groups"] = [{"group": label, **group.to_dict()} for label, group in self.groups.items()]
        text = json.dumps(_strict(found), indent=2, ensure_ascii=False, allow_nan=False)
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text + "\n")
        return text

    def rows(self) -> list[dict[str, Any]]:
        """A flat dict for the whole, whose ``group`` is None, and one for each group: the rows of a table."""
        found = []
        for label, one in [(None, self), *self.groups.items()]:
            figures = one._figures()
            quantiles = {f"q{100 * float(q):g}": value for q, value in figures.pop("quantiles").items()}
            found.append({"group": label, **figures, **quantiles})
        return found

    def to_pandas(self) -> Any:
        """`rows` as a pandas data frame."""
        with needs("pandas"):
            import pandas
        frame = pandas.DataFrame(self.rows())
        # Whole numbers stay whole beside the None of the first row.
        frame["group"] = pandas.Series([None, *self.groups], dtype=object)
        return frame

    def to_polars(self) -> Any:
        """`rows` as a Polars data frame; labels become text."""
        with needs("polars"):
            import polars
        rows = [{**row, "group": None if row["group"] is None else str(row["group"])} for row in self.rows()]
        return polars.DataFrame(rows, infer_schema_length=None)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the distribution of the losses, and the groups' values with their standard errors.

        Parameters
        ----------
        path : path, optional
            Where to save it; the end of the name says as what.

        Returns
        -------
        matplotlib.figure.Figure
        """
        with needs("matplotlib"):
            from fastloss.evaluation import plot
        return plot.draw(self, path)

    def __str__(self) -> str:
        lines = [
            f"{self.loss} ({self.reduction}): {self.value:.6g} ± {self.standard_error:.2g}",
            f"  samples {self.samples:,}, losses {self.count:,}, masked {self.masked:,}, not finite {self.nonfinite:,}",
            f"  sum {self.sum:.6g}, sum of weights {self.weight_sum:.6g}",
        ]
        if self.nonfinite:
            lines.append(f"  without those not finite: {self.finite_value:.6g}")
        quantiles = ", ".join(
            f"{100 * q:g} % {v:.4g}" for q, v in zip(QUANTILES, self.quantile(QUANTILES), strict=True)
        )
        lines.append(f"  quantiles: min {self.minimum:.4g}, {quantiles}, max {self.maximum:.4g}")
        if self.groups:
            width = max(5, *(len(str(label)) for label in list(self.groups)[:SHOWN]))
            lines += ["", f"  {'group':<{width}}  {'value':>12}  {'± error':>10}  {'losses':>14}  {'median':>12}"]
            for label, one in list(self.groups.items())[:SHOWN]:
                figures = (
                    f"{one.value:>12.6g}  {one.standard_error:>10.2g}  {one.count:>14,}  {one.quantile(0.5):>12.4g}"
                )
                lines.append(f"  {label!s:<{width}}  {figures}")
            if len(self.groups) > SHOWN:
                lines.append(f"  ... and {len(self.groups) - SHOWN:,} more groups")
        if self.worst:
            lines += ["", "  worst samples"]
            for worst in self.worst[:SHOWN]:
                group = "" if worst.group is None else f"  ({worst.group})"
                lines.append(f"  {worst.index!s:>14}  {worst.loss:.6g}{group}")
            if len(self.worst) > SHOWN:
                lines.append(f"  ... and {len(self.worst) - SHOWN:,} more")
        return "\n".join(lines)

    __repr__ = __str__


def _order(labels: list[Hashable]) -> Any:
    """Numbers by size, then text, then what is missing."""

    def key(row: int) -> Any:
        label = labels[row]
        if label is None:
            return 2, 0, ""
        if isinstance(label, (bool, int, float)):
            return 0, label, ""
        return 1, 0, str(label)

    return key


def _quotient(total: float, divisor: float) -> float:
    """As reductions do it: 0 where there is nothing to divide by."""
    return total / divisor if divisor else 0.0


def _standard_error(scheme: Scheme, sums: Array, count: int, divisor: float) -> float:
    """Of a mean of independent losses, of a ratio of sums, or of a sum."""
    if count < 2 or not divisor:
        return math.nan
    squares = float(sums[partial.SQUARES])
    if scheme.reduction == "mean_with_sample_weight" and scheme.constant is None:
        # A ratio of two sums, to first order: Σ w²·(v - value)², around the value instead of their own mean.
        scale = float(sums[partial.SCALE])
        if scale:
            apart = float(sums[partial.MOMENT]) / scale - float(sums[partial.SUM]) / divisor
            squares += scale * apart * apart
    # The variance of the sum of n terms is n times that of one.
    return math.sqrt(max(0.0, squares) * count / (count - 1)) / abs(divisor)


def _worst(part: Partial, row: int) -> tuple[Worst, ...]:
    """The largest losses of a row, their places as indices."""
    found = []
    for loss, place, whose in zip(part.worst.tolist(), part.where.tolist(), part.whose.tolist(), strict=True):
        if row in (0, whose):
            index = _index(place, part.inner)
            found.append(Worst(index, loss, part.labels[whose] if whose else None))
    return tuple(found)


def _index(place: int, inner: tuple[int, ...]) -> int | tuple[int, ...]:
    """The place of a loss among all of them as an index."""
    if not inner:
        return place
    sample, rest = divmod(place, math.prod(inner))
    return sample, *map(int, np.unravel_index(rest, inner))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
