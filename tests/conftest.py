"""``--coverage-matrix=FILE``: which options the suite used with each loss, as a table in Markdown.

What a cell says was seen, not declared: every way into a loss leads through ``_evaluate``, which is wrapped while the
tests run, and a call counts when it returns. With pytest-xdist each worker sends what it saw to the first process.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path

import numpy as np
import pytest

OUTPUTS = ("value", "gradient", "Hessian")
REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none")
ARGUMENTS = ("sample_weight", "mask", "class_weight", "upstream", "out=", "out=y_pred")
FLOATS = ("float16", "bfloat16", "float32", "float64")
COLUMNS = (*OUTPUTS, *REDUCTIONS, *ARGUMENTS, *FLOATS, "n_threads=1", "n_threads=2", "axis")

LEGEND = """\
✓: at least one call like this returned during the run. Empty: none did, as where it is an error (class weights of
boxes). –: the loss has no such option.

The dtypes are those of `y_pred`; `mask` includes a mask that the predictions bring along; `axis` is one that is not the
default; `mean` and `sum_over_batch_size` are two names of one reduction.
"""


def pytest_addoption(parser):
    parser.addoption(
        "--coverage-matrix",
        metavar="FILE",
        help="write a table (Markdown) of the options that this run used with each loss",
    )


def pytest_configure(config):
    if config.getoption("--coverage-matrix"):
        config.pluginmanager.register(Matrix(config), "coverage-matrix")


class Matrix:
    """Sees the calls of a session, and writes the table at its end."""

    def __init__(self, config):
        self.path = Path(config.getoption("--coverage-matrix"))
        if not self.path.is_absolute():
            self.path = config.invocation_params.dir / self.path
        self.worker = hasattr(config, "workerinput")
        if not self.worker and not self.path.parent.is_dir():
            raise pytest.UsageError(f"--coverage-matrix: there is no folder {self.path.parent}")
        self.seen: set[tuple[str, str]] = set()

    def pytest_sessionstart(self):
        from fastloss.losses.base import Loss
        from fastloss.registry import BATCH_LOSSES, LOSSES

        self.rows = {**LOSSES, **BATCH_LOSSES}
        self.names = {row.cls: name for name, row in self.rows.items()}
        classes = {base for cls in self.names for base in cls.__mro__ if issubclass(base, Loss)}
        self.originals = {cls: vars(cls)["_evaluate"] for cls in classes if "_evaluate" in vars(cls)}
        for cls, original in self.originals.items():
            cls._evaluate = self.watched(original)

    def watched(self, original):
        signature = inspect.signature(original)

        @functools.wraps(original)
        def evaluate(loss, *args, **kwargs):
            result = original(loss, *args, **kwargs)
            name = self.names.get(type(loss))
            if name is not None:
                arguments = signature.bind(loss, *args, **kwargs).arguments
                self.seen.update((name, column) for column in columns_of(loss, arguments))
            return result

        return evaluate

    def pytest_sessionfinish(self, session):
        for cls, original in self.originals.items():
            cls._evaluate = original
        if self.worker:
            session.config.workeroutput["coverage_matrix"] = sorted(self.seen)
        else:
            self.path.write_text(self.table(), encoding="utf-8")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """A worker of pytest-xdist is done; all of them are before the first process finishes."""
        self.seen.update(map(tuple, getattr(node, "workeroutput", {}).get("coverage_matrix", ())))

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(f"coverage matrix: {self.path}")

    def table(self):
        lines = ["# What the tests use with each loss", "", LEGEND]
        lines += ["| loss | " + " | ".join(COLUMNS) + " |", "|---|" + ":-:|" * len(COLUMNS)]
        for name, row in self.rows.items():
            missing = missing_columns(row)
            marks = ["✓" if (name, c) in self.seen else "–" if c in missing else "" for c in COLUMNS]
            lines.append(f"| {name} | " + " | ".join(marks) + " |")
        return "\n".join(lines) + "\n"


def columns_of(loss, arguments):
    """The columns that one call belongs to."""
    yield OUTPUTS[arguments["outputs"]]
    yield {None: "none", "auto": "sum_over_batch_size"}.get(loss.reduction, loss.reduction)
    y_pred, out = arguments["y_pred"], arguments["out"]
    given = [name for name in ("sample_weight", "class_weight", "upstream") if arguments[name] is not None]
    yield from given
    if arguments["mask"] is not None or getattr(y_pred, "_keras_mask", None) is not None:
        yield "mask"
    if out is not None:
        same = isinstance(y_pred, np.ndarray) and out.ctypes.data == y_pred.ctypes.data
        yield "out=y_pred" if same else "out="
    dtype = str(getattr(y_pred, "dtype", ""))
    if dtype in FLOATS:
        yield dtype
    if arguments["n_threads"] in (1, 2):
        yield f"n_threads={arguments['n_threads']}"
    axis = parameter_axis(type(loss))
    if axis is not None and loss.axis != axis.default:
        yield "axis"


@functools.cache
def parameter_axis(cls):
    """The constructor's parameter of that name, or None."""
    return inspect.signature(cls).parameters.get("axis")


def missing_columns(row):
    """The columns that a loss has nothing for."""
    missing = set()
    if not row.cls(**row.variants[0]).has_hessian:
        missing.add("Hessian")
    if parameter_axis(row.cls) is None:
        missing.add("axis")
    return missing
