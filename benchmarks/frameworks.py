"""The figures of the documentation's pages about frameworks: what crossing over costs, beside each one's own losses.

``python benchmarks/frameworks.py [PAGE ...]`` prints them, and with ``--write-docs`` writes them into the pages; run
nothing beside it. Each page is measured in a process of its own, where everything to be compared takes turns. A first
run compiles kernels, and takes minutes longer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fastloss.bench import machine, report
from fastloss.bench.timing import interleave

DOCS = Path(__file__).parent.parent / "docs"
ROWS = 1_000_000
SHAPES = ((32, 10), (256, 1000), (4096, 1000))
FUNCTIONS = {
    "sparse cross-entropy from logits": ("sparse_categorical_crossentropy", {"from_logits": True}),
    "mean squared error": ("mean_squared_error", {}),
    "mean absolute error": ("mean_absolute_error", {}),
    "Huber": ("huber", {}),
    "binary cross-entropy from logits": ("binary_crossentropy", {"from_logits": True}),
}


def seconds(*calls, rounds=15):
    """Medians."""
    return [timing.median for timing in interleave(dict(enumerate(calls)), rounds=rounds, budget=6.0).values()]


def table(head, rows):
    """In Markdown."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def where(*distributions):
    """The machine and the versions, in a line."""
    about = machine.describe()
    names = {"torch": "PyTorch", "jax": "JAX", "optax": "Optax", "xgboost-cpu": "XGBoost", "xgboost": "XGBoost"}
    names |= {"lightgbm": "LightGBM", "scikit-learn": "scikit-learn", "numpy": "NumPy"}
    versions = ", ".join(f"{names[name]} {version(name).partition('+')[0]}" for name in distributions)
    return f"{about['architecture']}, {machine.cores()} cores, {versions}, float32"


def inputs(name, shape, random):
    """Predictions and targets."""
    p = random.normal(size=shape).astype(np.float32)
    if name == "sparse_categorical_crossentropy":
        return p, random.integers(shape[1], size=shape[0])
    return p, (p + random.normal(size=shape) > 0).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------
# PyTorch
# --------------------------------------------------------------------------------------------------------------


def pytorch(random):
    """Forward and backward of the loss alone, and steps of a small network."""
    import torch

    import fastloss.torch

    own = (
        torch.nn.CrossEntropyLoss(),
        torch.nn.MSELoss(),
        torch.nn.L1Loss(),
        torch.nn.HuberLoss(),
        torch.nn.BCEWithLogitsLoss(),
    )

    def alone(criterion, p, t):
        def run():
            criterion(p, t).backward()
            p.grad = None

        return run

    def step(criterion, t):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1000))
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        x = torch.randn(256, 64)

        def run():
            optimizer.zero_grad()
            criterion(net(x), t).backward()
            optimizer.step()

        return run

    rows, steps = [], []
    for (label, (name, options)), theirs in zip(FUNCTIONS.items(), own, strict=True):
        ours, row = fastloss.torch.wrap(name, **options), [label]
        for shape in SHAPES:
            p, t = map(torch.from_numpy, inputs(name, shape, random))
            p.requires_grad_()
            mine, their = seconds(alone(ours, p, t), alone(theirs, p, t))
            row.append(f"{1e6 * mine:.0f}, {1e6 * their:.0f} ({their / mine:.2f})")
        rows.append(row)
        if name in ("sparse_categorical_crossentropy", "mean_squared_error"):
            t = torch.from_numpy(inputs(name, (256, 1000), random)[1])
            mine, their = seconds(step(ours, t), step(theirs, t))
            steps.append(f"{1e3 * mine:.2f} ms instead of {1e3 * their:.2f} with {label}")
    head = ["loss", "(32, 10): here, PyTorch's (ratio)", "(256, 1000)", "(4096, 1000)"]
    return (
        f"Forward and backward of the loss alone, beside PyTorch's own module, in µs ({where('torch')}):\n\n"
        f"{table(head, rows)}\n\n"
        f"A whole step of a small network (64 → 128 → 1000, batch 256, SGD) took {', and '.join(steps)}."
    )


# --------------------------------------------------------------------------------------------------------------
# JAX
# --------------------------------------------------------------------------------------------------------------


def jax(random):
    """``jit(value_and_grad(...))``, by handler, by Optax and by callback."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import optax

    import fastloss.jax

    peers = {
        "sparse cross-entropy from logits": optax.softmax_cross_entropy_with_integer_labels,
        "Huber": optax.huber_loss,
        "binary cross-entropy from logits": optax.sigmoid_binary_cross_entropy,
    }
    rows = []
    handler = fastloss.jax._target
    for label, peer in peers.items():
        name, options = FUNCTIONS[label]
        ours = fastloss.jax.wrap(name, **options)
        for shape in SHAPES:
            p, t = map(jax.numpy.asarray, inputs(name, shape, random))
            calls = []
            for function, target in ((ours, handler), (peer, None), (ours, lambda *arguments: None)):
                if target is not None:
                    fastloss.jax._target = target
                compiled = jax.jit(jax.value_and_grad(lambda p, t, f=function: f(p, t).mean())).lower(p, t).compile()
                calls.append(lambda f=compiled, p=p, t=t: jax.block_until_ready(f(p, t)))
            rows.append([label, shape, *(f"{1e6 * found:.0f}" for found in seconds(*calls))])
            label = ""
    return (
        f"`jax.jit(jax.value_and_grad(...))`, in µs ({where('jax', 'optax')}):\n\n"
        f"{table(['loss', 'shape', 'handler', 'Optax', 'callback'], rows)}"
    )


# --------------------------------------------------------------------------------------------------------------
# XGBoost and LightGBM
# --------------------------------------------------------------------------------------------------------------


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


def boosting(random):
    """Gradient and Hessian of a million rows, and whole rounds."""
    from fastloss.boosting import lightgbm_objective, xgboost_objective

    weight = random.uniform(0.5, 2.0, ROWS).astype(np.float32)
    cases = [("mean_squared_error", squared, 1), ("huber", huber, 1), ("binary_crossentropy", logistic, 1)]
    cases += [("sparse_categorical_crossentropy", softmax, classes) for classes in (2, 5, 10)]
    rows = []
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

            found = seconds(
                *(partial(hand_over, f) for f in (reference, make(name, n_threads=1), make(name))), rounds=9
            )
            figures = [f"{1e3 * t:.2f} ms" for t in found]
            rows.append([library, name, outputs, *figures, f"{found[0] / found[2]:.1f}"])
    head = ["library", "loss", "outputs", "NumPy", "fastloss, one thread", "fastloss", "ratio"]
    return (
        "Gradient and Hessian of a million rows with weights, beside the same in NumPy (which has one thread), as the "
        f"library takes them ({where('numpy')} but for LightGBM's predictions):\n\n"
        f"{table(head, rows)}\n\n{rounds(random)}"
    )


def rounds(random):
    """Whole rounds of boosting, with the objective of the library and with ours."""
    import lightgbm
    import xgboost

    from fastloss.boosting import lightgbm_objective, xgboost_objective

    X = random.normal(size=(200_000, 10)).astype(np.float32)
    y = (X[:, 0] + random.normal(size=len(X)) > 0).astype(np.float32)
    matrix = xgboost.DMatrix(X, y)
    own = xgboost.Booster({"objective": "binary:logistic", "max_depth": 6}, [matrix])
    ours = xgboost.Booster({"max_depth": 6}, [matrix])
    objective = xgboost_objective("binary_crossentropy")
    calls = [lambda: own.update(matrix, 0), lambda: ours.update(matrix, 0, fobj=objective)]
    calls.append(lambda: objective(ours.predict(matrix, output_margin=True, training=True), matrix))
    first = [1e3 * t for t in seconds(*calls)]
    params = {"num_leaves": 31, "verbosity": -1, "objective": "binary"}
    own_lgb = lightgbm.Booster(params, lightgbm.Dataset(X, y, params={"verbosity": -1}).construct())
    data = lightgbm.Dataset(X, y, params={"verbosity": -1}).construct()
    ours_lgb = lightgbm.Booster({**params, "objective": "none"}, data)
    objective_lgb = lightgbm_objective("binary_crossentropy")
    margins = random.normal(size=len(X))
    calls = [own_lgb.update, lambda: ours_lgb.update(fobj=objective_lgb), lambda: objective_lgb(margins, data)]
    second = [1e3 * t for t in seconds(*calls)]
    return (
        f"Of 200,000 rows, ten features and logistic loss, a round of XGBoost takes {first[0]:.1f} ms with its own "
        f"objective and {first[1]:.1f} ms with this one, of which predictions, labels and objective take "
        f"{first[2]:.2f} ms; one of LightGBM {second[0]:.1f} and {second[1]:.1f} ms, with {second[2]:.2f} ms for "
        "labels and objective."
    )


# --------------------------------------------------------------------------------------------------------------
# scikit-learn
# --------------------------------------------------------------------------------------------------------------


def scikit_learn(random):
    """A scorer beside scikit-learn's own, estimator included."""
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import get_scorer

    from fastloss.sklearn import scorer

    rows = []
    for samples in (100, 100_000):
        X = random.normal(size=(samples, 5))
        y = X[:, 0].copy()
        model = LinearRegression().fit(X, y)
        calls = [partial(s, model, X, y) for s in (scorer("mse"), get_scorer("neg_mean_squared_error"))]
        calls.append(partial(model.predict, X))
        rows.append([f"{samples:,}", *(f"{1e6 * t:.0f}" for t in seconds(*calls, rounds=31))])
    head = ["samples", '`scorer("mse")`', "`neg_mean_squared_error`", "of either, `predict`"]
    return f"A linear model and the squared error, in µs ({where('scikit-learn')[:-9]}):\n\n{table(head, rows)}"


PAGES = {"pytorch": pytorch, "jax": jax, "boosting": boosting, "scikit-learn": scikit_learn}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", choices=[[], *PAGES], metavar="PAGE", help=f"of {', '.join(PAGES)}; or all")
    parser.add_argument("--write-docs", action="store_true", help="write them into the pages")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(PAGES[options.pages[0]](np.random.default_rng(0)))
        sys.exit()
    for page in options.pages or PAGES:
        command = [sys.executable, __file__, page, "--here"]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        print(f"{page}\n\n{found}\n", flush=True)
        if options.write_docs:
            path = DOCS / f"{page}.md"
            path.write_text(report.replace(path.read_text(encoding="utf-8"), "measured", found), encoding="utf-8")
