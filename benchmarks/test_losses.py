"""Quick comparisons: ``pytest benchmarks --benchmark-compare`` (plugin pytest-benchmark)."""

from __future__ import annotations

import pytest

from fastloss.bench.cases import LARGE, SMALL, cases, shapes

CASES = {case.label: case for case in cases()}
RUNS = [
    pytest.param(label, shape, id=f"{label}-{'x'.join(map(str, shape))}")
    for label, case in CASES.items()
    for shape in (shapes(case, (SMALL, LARGE))[0] or shapes(case, ())[0])
]


@pytest.mark.parametrize(("label", "shape"), RUNS)
def test_value_and_grad(benchmark, label, shape):
    y, p = CASES[label].inputs(shape, "float32")
    loss = CASES[label].loss()
    benchmark.group = f"value and gradient, {shape}"
    benchmark(loss.value_and_grad, y, p, n_threads=1)
