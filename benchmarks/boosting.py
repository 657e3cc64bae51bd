"""Objectives for boosting beside the same ones in NumPy, and beside the boosters' own.

``python benchmarks/boosting.py`` prints them; run nothing beside it. What is compared is timed in turn, in one process,
with weights; the figures are medians.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import lightgbm
import numpy as np
import xgboost
from sklearn.linear_model import LinearRegression
from sklearn.metrics import get_scorer

from fastloss.boosting import lightgbm_objective, xgboost_objective
from fastloss.sklearn import scorer

ROWS = 1_000_000


def interleaved(*functions, rounds=9):
    """Median seconds of each, called in turn."""
    times = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in times]


def squared(y, p, w):
    return (p - y) * w, np.ones_like(p) * w


def huber(y, p, w):
    return np.clip(p - y, -1, 1) * w, np.ones_like(p) * w


def logistic(y, p, w):
    s = 1 / (1 + np.exp(-p))
    return (s - y) * w, np.maximum(s * (1 - s), 1e-16) * w


def softmax(y, p, w):
    s = np.exp(p - p.max(axis=1, keepdims=True))
    s /= s.sum(axis=1, keepdims=True)
    gradient = s.copy()
    gradient[np.arange(len(y)), y.astype(np.intp)] -= 1
    return gradient * w[:, None], np.maximum(2 * s * (1 - s), 1e-16) * w[:, None]


def objectives(random):
    """Gradient and Hessian of a million rows."""
    weight = random.uniform(0.5, 2.0, ROWS).astype(np.float32)
    print(
        "| library | loss | outputs | NumPy | fastloss, one thread | fastloss | ratio |\n|---|---|---|---|---|---|---|"
    )
    cases = [("mean_squared_error", squared, 1), ("huber", huber, 1), ("binary_crossentropy", logistic, 1)]
    cases += [("sparse_categorical_crossentropy", softmax, classes) for classes in (2, 5, 10)]
    for make, library, dtype in ((xgboost_objective, "XGBoost", "f4"), (lightgbm_objective, "LightGBM", "f8")):
        for name, reference, outputs in cases:
            y = random.integers(max(2, outputs), size=ROWS).astype(np.float32)
            p = random.normal(size=ROWS if outputs == 1 else (ROWS, outputs)).astype(dtype)
            if library == "LightGBM":
                p = np.asfortranarray(p)

            def hand_over(function, y=y, p=p, library=library):
                """As the library takes them: LightGBM asks for float32, and column after column."""
                found = function(y, p, weight)
                if library == "LightGBM":
                    found = [np.asarray(array.ravel(order="F"), np.float32) for array in found]
                return found

            several, one = make(name), make(name, n_threads=1)
            calls = [lambda f=f: hand_over(f) for f in (reference, one, several)]
            numpy_time, one_time, time_taken = interleaved(*calls)
            figures = " | ".join(f"{1e3 * t:.2f} ms" for t in (numpy_time, one_time, time_taken))
            print(f"| {library} | {name} | {outputs} | {figures} | {numpy_time / time_taken:.1f} |", flush=True)


def rounds(random):
    """Whole rounds of boosting, with the objective of the library and with ours."""
    X = random.normal(size=(200_000, 10)).astype(np.float32)
    y = (X[:, 0] + random.normal(size=len(X)) > 0).astype(np.float32)
    matrix = xgboost.DMatrix(X, y)
    own = xgboost.Booster({"objective": "binary:logistic", "max_depth": 6}, [matrix])
    ours = xgboost.Booster({"max_depth": 6}, [matrix])
    objective = xgboost_objective("binary_crossentropy")
    calls = [lambda: own.update(matrix, 0), lambda: ours.update(matrix, 0, fobj=objective)]
    calls.append(lambda: objective(ours.predict(matrix, output_margin=True, training=True), matrix))
    built_in, custom, alone = interleaved(*calls)
    print(
        f"XGBoost, 200,000 rows: {1e3 * built_in:.1f} ms a round, with fastloss {1e3 * custom:.1f} ms, of which", end=""
    )
    print(f" {1e3 * alone:.2f} ms predictions, labels and objective")
    params = {"num_leaves": 31, "verbosity": -1, "objective": "binary"}
    own = lightgbm.Booster(params, lightgbm.Dataset(X, y, params={"verbosity": -1}).construct())
    data = lightgbm.Dataset(X, y, params={"verbosity": -1}).construct()
    ours = lightgbm.Booster({**params, "objective": "none"}, data)
    objective = lightgbm_objective("binary_crossentropy")
    margins = random.normal(size=len(X))
    calls = [own.update, lambda: ours.update(fobj=objective), lambda: objective(margins, data)]
    built_in, custom, alone = interleaved(*calls)
    print(
        f"LightGBM, 200,000 rows: {1e3 * built_in:.1f} ms a round, with fastloss {1e3 * custom:.1f} ms, of which",
        end="",
    )
    print(f" {1e3 * alone:.2f} ms labels and objective")


def scores(random):
    """A scorer beside scikit-learn's own, estimator included."""
    for rows in (100, 100_000):
        X = random.normal(size=(rows, 5))
        y = X[:, 0].copy()
        model = LinearRegression().fit(X, y)
        calls = [partial(s, model, X, y) for s in (get_scorer("neg_mean_squared_error"), scorer("mse"))]
        calls.append(partial(model.predict, X))
        own, ours, predict = interleaved(*calls, rounds=31)
        print(f"scorer, {rows} samples: scikit-learn {1e6 * own:.0f} µs, fastloss {1e6 * ours:.0f} µs,", end="")
        print(f" of which the estimator {1e6 * predict:.0f} µs")


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    objectives(generator)
    rounds(generator)
    scores(generator)
