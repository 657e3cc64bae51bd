"""Why a loss is, or will be, NaN or infinite: what is wrong with its data, in words and as data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fastloss import numerics, registry
from fastloss.engine.toolbox import EPSILON
from fastloss.losses import arrays, identifiers
from fastloss.losses.arrays import Array
from fastloss.losses.base import Loss, weight_and_mask
from fastloss.losses.layout import axes

SCALE = 1e3
"""From this root mean square on, targets are called unscaled; so are two columns that differ by this factor."""

GROWTH = 100.0
RECENT = 100
"""A gradient norm `GROWTH` times the median of the `RECENT` ones before it is an explosion."""

WRONG = 1e-2
"""A probability beyond the clip that is farther from its target has a gradient that should not be 0."""

CLEARLY = 0.05
"""The share of elements outside [0, 1] from which on predictions are taken for logits."""

ENOUGH = 8
"""So many logits of single elements do not all lie in [0, 1] by chance."""

_ORDER = {"error": 0, "warning": 1}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    code : str
        What kind of thing, such as ``"nan-in-y_pred"``; stable, to be compared with.
    severity : {"error", "warning"}
        An error makes a value or gradient NaN or infinite, or stops the loss; a warning spoils the training.
    argument : str
        Where: ``"y_true"``, ``"y_pred"``, ``"sample_weight"``, ``"loss"`` or ``"history"``.
    message : str
        What was found.
    count, total : int
        In how many elements, rows, samples or steps, and of how many.
    first : list of tuple of int
        The indices of the first of them, at most 5.
    advice : str
        What to do.
    """

    code: str
    severity: Literal["error", "warning"]
    argument: str
    message: str
    count: int
    total: int
    first: list[tuple[int, ...]]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.severity} {self.code}: {self.message} ({self.count} of {self.total}, first at "
            f"{numerics.shown(self.first)})\n    {self.advice}"
        )


class Diagnosis:
    """What `diagnose` found: true if there is anything, a sequence of `Finding`, and a text when printed.

    Attributes
    ----------
    findings : tuple of Finding
        Errors first.
    """

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity]))

    @property
    def codes(self) -> list[str]:
        """The codes of the findings."""
        return [finding.code for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """``{"findings": [...]}``, of plain numbers, strings and lists, as JSON takes it."""
        return {"findings": [{**f.to_dict(), "first": [list(place) for place in f.first]} for f in self.findings]}

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, index: int) -> Finding:
        return self.findings[index]

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings)) or "nothing wrong was found"

    __repr__ = __str__


def diagnose(
    y_true: Any = None,
    y_pred: Any = None,
    loss: Any = None,
    *,
    sample_weight: Any = None,
    mask: Any = None,
    history: Any = None,
) -> Diagnosis:
    """Explain why a loss is, or will be, NaN or infinite, or will not train, and what to do about it.

    Parameters
    ----------
    y_true, y_pred : array_like, optional
        Targets and predictions, as the loss takes them; they may be left out if there is a `history`.
    loss : Loss, str, dict or callable, optional
        Whatever `fastloss.losses.get` finds a loss by. Without, only NaN and infinity are looked for.
    sample_weight, mask : array_like, optional
        As the loss takes them. What the mask excludes is not looked at.
    history : sequence of float, optional
        Norms of the gradients of past steps, as `fastloss.clip_by_global_norm` returns them.

    Returns
    -------
    Diagnosis
        The findings, empty (and false) if nothing is wrong.

    Raises
    ------
    TypeError, ValueError
        If arguments are no arrays of numbers, do not fit one another or the loss, or no loss is meant; or if there is
        nothing to look at.

    Notes
    -----
    These are the codes, with the losses they are found for:

    * all: ``nan-in-y_true``, ``infinity-in-y_true``, the same of ``y_pred`` and ``sample_weight``; computing the loss
      shows ``value-not-finite`` and ``gradient-not-finite``.
    * of probabilities: ``logits-as-probabilities``, ``probability-out-of-range``, ``rows-not-normalised``,
      ``dead-gradient`` (on or beyond a clip's border, where nothing is learnt);
      from logits ``probabilities-as-logits`` (rows that sum to 1, or 8 elements and more in [0, 1]).
    * of classes: ``label-out-of-range``, ``target-out-of-range``, ``target-rows-not-normalised``; of hinges
      ``target-not-a-sign``; of pairs ``target-not-binary``.
    * mean absolute percentage error: ``zero-target``; mean squared logarithmic error: ``negative-value``; Poisson:
      ``negative-prediction``, ``negative-target``.
    * of errors: ``unscaled-data``, of targets; what goes into the model is not seen here.
    * with `history`: ``norm-not-finite``, ``exploding-gradients``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.array([[2.0, -1.0, 0.5], [-3.0, 4.0, 0.0]])
    >>> found = fastloss.diagnose(np.array([0, 3]), logits, "SparseCategoricalCrossentropy")
    >>> print(found)
    error label-out-of-range: `y_true` has labels that are no class, integers from 0 to 2, such as 3 (1 of 2, first at
    1)
        number the classes from 0, give the model as many outputs as there are classes, and name a padding label as
        `ignore_class`
    warning logits-as-probabilities: `y_pred` has values outside [0, 1], which look like logits (4 of 6, first at
    (0, 0), (0, 1), (1, 0), (1, 1))
        pass `from_logits=True`, or apply sigmoid or softmax first
    >>> found.codes
    ['label-out-of-range', 'logits-as-probabilities']
    >>> bool(fastloss.diagnose(np.array([0, 1]), logits, fastloss.losses.SparseCategoricalCrossentropy(True)))
    False
    """
    findings: list[Finding] = []
    if y_true is None and y_pred is None:
        if history is None:
            raise ValueError("`y_true` and `y_pred`, or `history`, must be given")
    elif y_true is None or y_pred is None:
        raise ValueError(f"`{'y_true' if y_true is None else 'y_pred'}` must be given too")
    else:
        findings += _Examination(y_true, y_pred, loss, sample_weight, mask).findings
    if history is not None:
        findings += _of_history(history)
    return Diagnosis(findings)


class _Findings:
    """What was found so far."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(
        self, code: str, severity: Literal["error", "warning"], argument: str, bad: Array, message: str, advice: str
    ) -> None:
        """Add a finding about the places of the argument where `bad` is true, if there is one."""
        count = int(np.count_nonzero(bad))
        if count:
            first = numerics.first(bad)
            self.findings.append(
                Finding(code, severity, argument, f"`{argument}` has {message}", count, bad.size, first, advice)
            )


class _Examination(_Findings):
    """The findings about one batch.

    Infinite and missing numbers are reported once, as such: every other look is at finite ones only.
    """

    def __init__(self, y_true: Any, y_pred: Any, loss: Any, sample_weight: Any, mask: Any) -> None:
        super().__init__()
        self.rows = False
        self.loss: Loss | None = None
        if loss is not None:
            try:
                self.loss = identifiers.instance(loss)
            except TypeError as error:
                raise TypeError(f"`loss` {error}") from None
        compute = arrays.compute_dtypes(None if self.loss is None else self.loss.dtype, y_pred)[0]
        self.y = arrays.to_array("y_true", y_true, compute)
        self.p = arrays.to_array("y_pred", y_pred, compute)
        self.weight, self.mask = weight_and_mask(sample_weight, mask, y_pred, compute)
        self.epsilon = float(compute.type(EPSILON))
        self._not_finite()
        with np.errstate(all="ignore"):
            if self.loss is not None:
                self._of_domain()
                if "label-out-of-range" not in [finding.code for finding in self.findings]:
                    self._computed()

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the loss, if it has that."""
        return default if self.loss is None else self.loss._options.get(name, default)

    def counted(self, shape: tuple[int, ...]) -> Array:
        """Which elements of an array with this shape the mask leaves in."""
        found = numerics.counted(self.mask, shape, self.option("axis", -1))
        if found is not None:
            return found
        if self.mask is None or shape != self.p.shape:  # targets that broadcast
            return np.ones(shape, bool)
        raise ValueError(
            f"`mask` must have the shape of the per-sample losses, got shape {self.mask.shape} for an array of shape "
            f"{shape}"
        )

    def usable(self, array: Array) -> Array:
        """Which elements are finite and left in."""
        return np.isfinite(array) & self.counted(array.shape)

    def _not_finite(self) -> None:
        advice = {
            "y_true": "clean the data: leave such samples out with `mask`, or fill them in",
            "y_pred": "look at the layer, weights or learning rate that it came from; clip gradients by their norm",
            "sample_weight": "leave samples out with `mask` or a weight of 0",
        }
        for name, array in (("y_true", self.y), ("y_pred", self.p), ("sample_weight", self.weight)):
            if array is not None:
                counted = True if name == "sample_weight" else self.counted(array.shape)
                for kind, bad in numerics.not_finite(array):
                    self.add(f"{kind.lower()}-in-{name}", "error", name, bad & counted, kind, advice[name])

    def _of_domain(self) -> None:
        row = next((row for row in registry.LOSSES.values() if row.cls is type(self.loss)), None)
        if row is None:
            return
        self.rows = row.domain in ("distribution", "index")
        if row.labels == "index":
            self._labels()
        looks: dict[str, Callable[[], None]] = {
            "probability": self._probabilities,
            "distribution": self._probabilities,
            "index": self._probabilities,
            "unit": self._units,
            "sign": self._signs,
            "pairs": self._pairs,
        }
        looks.get(row.domain, lambda: None)()
        if row.domain in ("probability", "distribution"):
            self._targets()
        if row.name == "mean_absolute_percentage_error":
            self.add(
                "zero-target",
                "warning",
                "y_true",
                self.usable(self.y) & (np.abs(self.y) <= self.epsilon),
                "zeros, which the error is divided by: ε = 1e-7 stands in, and each weighs 10⁹ times its error",
                "leave these samples out with `mask`, or take the mean absolute or mean squared logarithmic error",
            )
        elif row.name == "mean_squared_logarithmic_error":
            for name, array in (("y_true", self.y), ("y_pred", self.p)):
                self.add(
                    "negative-value",
                    "warning",
                    name,
                    self.usable(array) & (array < 0),
                    "negative values, which count as 0; predictions learn nothing there",
                    "end the model with softplus or relu, and take another loss for targets below 0",
                )
        elif row.name == "poisson":
            self.add(
                "negative-prediction",
                "error",
                "y_pred",
                self.usable(self.p) & (self.p <= -self.epsilon),
                "rates at or below 0, whose logarithm is NaN or infinite",
                "end the model with exp or softplus",
            )
            message, advice = "negative counts", "Poisson's targets are counts: 0 or more"
            self.add("negative-target", "warning", "y_true", self.usable(self.y) & (self.y < 0), message, advice)
        if row.domain in ("real", "positive") and row.name != "cosine_similarity":
            self._scale()

    def _labels(self) -> None:
        axis, ignored = self.option("axis", -1), self.option("ignore_class")
        classes = self.p.shape[axes(axis, self.p.ndim)[0]]
        y = self.y
        bad = ~((y >= 0) & (y < classes) & (y == np.floor(y))) & self.counted(y.shape)
        if ignored is not None:
            bad &= y != ignored
        example = f"{y[bad].ravel()[0]:g}" if bad.any() else ""
        self.add(
            "label-out-of-range",
            "error",
            "y_true",
            bad,
            f"labels that are no class, integers from 0 to {classes - 1}, such as {example}",
            "number the classes from 0, give the model as many outputs as there are classes, and name a padding label "
            "as `ignore_class`",
        )

    def _rows(self, array: Array) -> tuple[Array, Array] | None:
        """Sums along the class axis, and which rows count, for losses of distributions."""
        if not self.rows or not array.ndim:
            return None
        (axis,) = axes(self.option("axis", -1), array.ndim)
        if array.shape[axis] < 2:
            return None
        return np.asarray(array.sum(axis=axis, dtype=np.float64)), np.asarray(self.usable(array).all(axis=axis))

    def _probabilities(self) -> None:
        usable, p = self.usable(self.p), self.p
        logits = "" if self.option("from_logits") is None else "pass logits with `from_logits=True`, or "
        slack = 8 * float(np.finfo(p.dtype).eps) if p.dtype.kind == "f" else 1e-2
        outside = usable & ((p < -slack) | (p > 1 + slack))
        rows = self._rows(p)
        if self.option("from_logits", False):
            inside = usable.any() and not outside.any() and np.ptp(p[usable]) > 0
            chance = np.count_nonzero(usable) < ENOUGH if rows is None else (np.abs(rows[0][rows[1]] - 1) > 1e-2).any()
            if inside and not chance:
                self.add(
                    "probabilities-as-logits",
                    "warning",
                    "y_pred",
                    usable,
                    "nothing but values in [0, 1]" + ("" if rows is None else ", in rows that sum to 1"),
                    "if these are probabilities, pass `from_logits=False`, or leave out the last sigmoid or softmax",
                )
            return
        if np.count_nonzero(outside) > CLEARLY * np.count_nonzero(usable):
            self.add(
                "logits-as-probabilities",
                "warning",
                "y_pred",
                outside,
                "values outside [0, 1], which look like logits",
                logits.replace("logits with ", "") + "apply sigmoid or softmax first",
            )
            return
        self.add(
            "probability-out-of-range",
            "warning",
            "y_pred",
            outside,
            "probabilities outside [0, 1]",
            logits + "end the model with sigmoid or softmax",
        )
        if rows is not None:
            self.add(
                "rows-not-normalised",
                "warning",
                "y_pred",
                rows[1] & (np.abs(rows[0] - 1) > 1e-2),
                "rows that do not sum to 1; they are divided by their sum, NaN for rows of zeros",
                logits + "end the model with softmax over the class axis",
            )
        self.add(
            "dead-gradient",
            "warning",
            "y_pred",
            usable & ((p < self.epsilon) | (p > 1 - self.epsilon)) & self._wrong(),
            "certain and wrong probabilities, beyond the clip at ε = 1e-7: their gradient is 0, or infinite where "
            "nothing is clipped",
            logits + "keep probabilities away from 0 and 1; logits have a gradient wherever a prediction is wrong",
        )

    def _wrong(self) -> Array:
        """Where a probability is not its target."""
        p, y = self.p, self.y
        if type(self.loss).class_indices:  # type: ignore[union-attr]
            (axis,) = axes(self.option("axis", -1), p.ndim)
            labels = y.squeeze(axis) if y.ndim == p.ndim and y.shape[axis] == 1 else y
            if labels.shape != p.shape[:axis] + p.shape[axis + 1 :]:
                return np.zeros(p.shape, bool)
            y = np.expand_dims(labels, axis) == np.arange(p.shape[axis]).reshape((-1,) + (1,) * (p.ndim - axis - 1))
        else:
            y, p = arrays.match_ranks(y, p)
        if y.shape != p.shape:
            return np.zeros(self.p.shape, bool)
        return np.reshape(np.abs(np.subtract(p, y, dtype=np.float64)) > WRONG, self.p.shape)

    def _targets(self) -> None:
        usable = self.usable(self.y)
        outside = usable & ((self.y < 0) | (self.y > 1))
        self.add(
            "target-out-of-range",
            "warning",
            "y_true",
            outside,
            "targets outside [0, 1]: the loss may be negative without bound",
            "scale them, or pass class indices to a sparse loss",
        )
        sums = self._rows(self.y) if self.y.ndim == self.p.ndim else None
        if sums is not None and not outside.any():
            self.add(
                "target-rows-not-normalised",
                "warning",
                "y_true",
                sums[1] & (np.abs(sums[0] - 1) > 1e-2),
                "rows that do not sum to 1: they are no distributions over the classes",
                "for several labels a sample take BinaryCrossentropy",
            )

    def _units(self) -> None:
        for name, array in (("y_true", self.y), ("y_pred", self.p)):
            self.add(
                "target-out-of-range" if name == "y_true" else "probability-out-of-range",
                "warning",
                name,
                self.usable(array) & ((array < 0) | (array > 1)),
                "values outside [0, 1]",
                "end the model with sigmoid or softmax, and scale the targets",
            )

    def _signs(self) -> None:
        y, usable = self.y, self.usable(self.y)
        ones = (y == 0) | (y == 1)
        if not ones[usable].all():
            self.add(
                "target-not-a-sign",
                "warning",
                "y_true",
                usable & (np.abs(y) != 1),
                "targets other than -1 and 1: only if all are 0 or 1 they are read as -1 and 1",
                "pass targets -1 and 1",
            )

    def _pairs(self) -> None:
        usable = self.usable(self.y)
        self.add(
            "target-not-binary",
            "warning",
            "y_true",
            usable & (self.y != 0) & (self.y != 1),
            "targets other than 0 and 1",
            "pass 1 for similar pairs and 0 for dissimilar ones",
        )

    def _scale(self) -> None:
        usable = self.usable(self.y)
        if not usable.any():
            return
        size = math.sqrt(float(np.mean(np.square(self.y[usable], dtype=np.float64))))
        if size >= SCALE:
            self.add(
                "unscaled-data",
                "warning",
                "y_true",
                usable & (np.abs(self.y) >= SCALE),
                f"a root mean square of {size:.3g}: errors and gradients are as large",
                "standardise the targets (subtract the mean, divide by the standard deviation)",
            )
        elif self.y.ndim > 1 and self.y.shape[-1] > 1:
            rows = tuple(range(self.y.ndim - 1))
            squares = np.sum(np.square(self.y, dtype=np.float64), axis=rows, where=usable)
            columns = np.sqrt(squares / np.maximum(np.count_nonzero(usable, axis=rows), 1))
            large = columns >= SCALE * np.min(columns[columns > 0], initial=np.inf)
            self.add(
                "unscaled-data",
                "warning",
                "y_true",
                large,
                f"columns {SCALE:g} times as large as others, which the loss will not notice",
                "standardise each column of the targets",
            )

    def _computed(self) -> None:
        """What the loss itself gives: the last word, whatever the reason."""
        loss = copy.copy(self.loss)
        assert loss is not None
        loss._reduction, loss._check_numerics = "none", "ignore"
        gradient = None
        try:
            values, gradient = loss.value_and_grad(self.y, self.p, self.weight, mask=self.mask)
        except NotImplementedError:
            values = loss(self.y, self.p, self.weight, mask=self.mask)
        for name, result in (("value", values), ("gradient", gradient)):
            if result is not None:
                bad = np.atleast_1d(~np.isfinite(result))
                advice = "see the other findings; if there is none, the numbers are too large for their dtype"
                self.add(f"{name}-not-finite", "error", "loss", bad, f"a {name} that is NaN or infinite", advice)


def _of_history(history: Any) -> list[Finding]:
    """Findings about the norms of past gradients."""
    norms = arrays.to_array("history", history, np.dtype(np.float64)).astype(np.float64)
    if norms.ndim != 1:
        raise ValueError(f"`history` must be a sequence of numbers, got shape {norms.shape}")
    finite = np.isfinite(norms)
    if (norms[finite] < 0).any():
        raise ValueError("`history` must hold norms, which are not negative")
    usual, before = norms[finite], np.cumsum(finite) - finite
    jumps = [
        _exploded(usual[max(0, end - RECENT) : end], norm) for end, norm in zip(before.tolist(), norms, strict=True)
    ]
    found = _Findings()
    found.add(
        "norm-not-finite",
        "error",
        "history",
        ~finite,
        "gradient norms that are NaN or infinite",
        "diagnose the batch of the first such step; skip steps whose norm is not finite",
    )
    found.add(
        "exploding-gradients",
        "warning",
        "history",
        np.array(jumps, bool),
        f"gradient norms above {GROWTH:g} times the median of those before",
        "clip gradients (fastloss.clip_by_global_norm), or lower the learning rate",
    )
    return found.findings


def _exploded(before: Array, norm: float) -> bool:
    """Whether a norm is far above what was usual, which takes three norms to know."""
    return before.size >= 3 and bool(norm > GROWTH * max(float(np.median(before)), np.finfo(np.float64).tiny))
