"""`fastloss.evaluate` beside what is usual for it: CPU time on one thread.

``OMP_NUM_THREADS=1 python benchmarks/evaluation.py`` prints a table; run nothing beside it. What is compared is called
in turn, in one process, on data in memory; figures are medians. All others give the value alone; fastloss gives its
standard error, extremes and quantiles too. What reading costs is that of the largest of all numbers.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import numpy as np
import torch
from sklearn import metrics
from torchmetrics.aggregation import MeanMetric
from torchmetrics.regression import MeanSquaredError

import fastloss

ELEMENTS = 10_000_000
SHAPES = ((), (10,), (100,))
CHUNK = 1 << 16
"""Elements that NumPy treats at once: so many stay in the second-level cache."""


def interleaved(functions, clock=time.process_time, rounds=7):
    """Median seconds of each, called in turn."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def chunked(loss, y, p):
    """The usual loop, with sums in float64."""
    step = max(1, CHUNK // max(1, p[0].size))
    total = sum(loss(y[i : i + step], p[i : i + step]) for i in range(0, len(p), step))
    return total / len(p)


def squares(y, p):
    return np.square(p - y).sum(dtype=np.float64) / max(1, p[0].size)


def cross_entropy(y, p):
    if p.ndim == 1:
        p = np.clip(p, np.float32(1e-7), np.float32(1 - 1e-7))
        return -(y * np.log(p) + (1 - y) * np.log1p(-p)).sum(dtype=np.float64)
    chosen = p[np.arange(len(y)), y] / p.sum(axis=1)
    return -np.log(np.clip(chosen, 1e-7, None)).sum(dtype=np.float64)


def batched(metric, loss, y, p):
    """A metric of torchmetrics, fed as from a data loader."""
    metric.reset()
    for i in range(0, len(y), 1 << 18):
        part = slice(i, i + (1 << 18))
        metric.update(*loss(torch.from_numpy(y[part]), torch.from_numpy(p[part])))
    return float(metric.compute())


def torch_cross_entropy(y, p):
    functions = torch.nn.functional
    if p.ndim == 1:
        return functions.binary_cross_entropy(p, y), len(y)
    return functions.nll_loss(torch.log(p), y), len(y)


def squared_error(random, shape):
    """Targets, predictions, and what computes them."""
    y = random.normal(size=(ELEMENTS // max(1, int(np.prod(shape))), *shape)).astype(np.float32)
    p = (y + random.normal(size=y.shape)).astype(np.float32)
    return (y, p), {
        "fastloss": partial(fastloss.evaluate, "mse", y, p, n_threads=1),
        "scikit-learn": partial(metrics.mean_squared_error, y, p),
        "torchmetrics": partial(batched, MeanSquaredError(), lambda y, p: (p, y), y.ravel(), p.ravel()),
        "NumPy": partial(chunked, squares, y, p),
    }


def log_loss(random, shape):
    """The same of probabilities and labels."""
    samples = ELEMENTS // max(1, int(np.prod(shape)))
    if shape:
        p = random.dirichlet(np.ones(shape[0]), samples).astype(np.float32)
        p = np.clip(p, 1e-6, None)
        p /= p.sum(axis=1, keepdims=True)
        y, loss = random.integers(shape[0], size=samples), "sparse_categorical_crossentropy"
    else:
        p = random.uniform(0.01, 0.99, samples).astype(np.float32)
        y, loss = (random.random(samples) < p).astype(np.float32), "binary_crossentropy"
    labels = np.arange(shape[0]) if shape else [0, 1]
    return (y, p), {
        "fastloss": partial(fastloss.evaluate, loss, y, p, n_threads=1),
        "scikit-learn": partial(metrics.log_loss, y, p, labels=labels),
        "torchmetrics": partial(batched, MeanMetric(), torch_cross_entropy, y, p),
        "NumPy": partial(chunked, cross_entropy, y, p),
    }


def cpu_time(random):
    """CPU time an element, how many times as much the others take, and that without what reading takes."""
    print("| loss | shape | reading | fastloss | scikit-learn | torchmetrics | NumPy in chunks |")
    print("|---|---|---|---|---|---|---|")
    for make in (squared_error, log_loss):
        for shape in SHAPES:
            (y, p), functions = make(random, shape)
            found = {name: function() for name, function in functions.items()}
            values = {name: float(getattr(value, "value", value)) for name, value in found.items()}
            # Some of the others lose digits to sums in float32.
            assert np.allclose(list(values.values()), values["fastloss"], rtol=1e-3), values
            times = interleaved({**functions, "reading": lambda y=y, p=p: (y.max(), p.max())})
            reading, ours = times.pop("reading"), times.pop("fastloss")
            others = " | ".join(
                f"{1e9 * taken / p.size:.2f} ns, {taken / ours:.1f} ({(taken - reading) / (ours - reading):.1f}) x"
                for taken in times.values()
            )
            figures = f"{1e9 * reading / p.size:.2f} ns | {1e9 * ours / p.size:.2f} ns"
            print(f"| {make.__name__} | {p.shape} | {figures} | {others} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cpu_time(np.random.default_rng(0))
