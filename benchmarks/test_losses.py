"""Quick comparisons: ``pytest benchmarks --benchmark-compare`` (plugin pytest-benchmark)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import harness

CASES = {label: (row, options) for label, row, options in harness.cases()}


@pytest.mark.parametrize("shape", [(32, 10), (4096, 1000)], ids=["small", "large"])
@pytest.mark.parametrize("label", list(CASES))
def test_value_and_grad(benchmark, label, shape):
    row, options = CASES[label]
    y, p = harness.data(row, shape, "float32", options.get("from_logits", False))
    loss = row.cls(**options)
    benchmark.group = f"value and gradient, {shape}"
    benchmark(loss.value_and_grad, y, p, n_threads=1)
