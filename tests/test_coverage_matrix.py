"""``--coverage-matrix`` on a suite of three tests, in processes of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastloss.registry import BATCH_LOSSES, LOSSES

SUITE = """
import numpy as np
import pytest
from fastloss import losses

Y, P = np.eye(3), np.full((3, 3), 1 / 3)


def test_value():
    assert losses.WeightedKappaLoss(3, reduction="auto")(Y, P.astype(np.float32), 2.0) < 1


def test_gradient():
    loss = losses.WeightedKappaLoss(3, reduction="mean")
    loss.value_and_grad(Y, P, upstream=2.0, out=np.empty_like(P), n_threads=1)
    mine = P.copy()
    loss.value_and_grad(Y, mine, out=mine)


def test_errors_do_not_count():
    with pytest.raises(ValueError, match="sample_weight"):
        losses.WeightedKappaLoss(3, reduction="sum").value_and_grad(Y, P, np.ones(3), n_threads=2)


def test_losses_of_ones_own_do_not_count():
    class Mine(losses.WeightedKappaLoss):
        pass

    Mine(3)(Y, P.astype(np.float16))
"""

SEEN = {"value", "gradient", "sum_over_batch_size", "mean", "sample_weight", "upstream", "out=", "out=y_pred"}
SEEN |= {"float32", "float64", "n_threads=1"}


def run(folder, *arguments):
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_suite.py").write_text(SUITE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_cells_are_what_was_called(tmp_path, workers):
    if workers:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    done = run(tmp_path, "--coverage-matrix=matrix.md", *workers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "coverage matrix: " in done.stdout
    table = [line for line in (tmp_path / "matrix.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows] == [*LOSSES, *BATCH_LOSSES]
    marks = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    kappa = marks.pop("weighted_kappa_loss")
    assert {column for column, mark in kappa.items() if mark == "✓"} == SEEN
    assert {column for column, mark in kappa.items() if mark == "–"} == {"Hessian", "axis"}
    assert not any(mark == "✓" for row in marks.values() for mark in row.values())
    assert marks["huber"]["Hessian"] == marks["categorical_crossentropy"]["axis"] == ""


def test_a_folder_that_is_not_there_is_said_before_the_run(tmp_path):
    done = run(tmp_path, "--coverage-matrix=nowhere/matrix.md")
    assert done.returncode == 4
    assert "--coverage-matrix: there is no folder" in done.stderr


def test_nothing_is_written_unasked(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "coverage matrix" not in done.stdout
    assert {path.suffix for path in tmp_path.iterdir()} <= {".py", ""}
