"""Logistic regression whose whole epoch is compiled, beside the same in PyTorch and scikit-learn.

    python examples/logistic_regression.py

Each trains on the same samples, in float32, on one thread, with the same rate and number of epochs; the first two in
the same batches, scikit-learn's `SGDClassifier` sample by sample, as it does. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numba
import numpy as np

import fastloss

loss = fastloss.kernel("binary_crossentropy", dtype="float32", from_logits=True)


@numba.njit(fastmath=True)
def epoch(x, y, order, weights, rate, batch):
    """Visit all samples once, in batches; the last weight is the bias. Returns the mean loss."""
    samples, features = x.shape
    logits, targets = np.empty(batch, np.float32), np.empty(batch, np.float32)
    grad = np.empty(batch, np.float32)
    total = 0.0
    for start in range(0, samples, batch):
        size = min(batch, samples - start)
        for i in range(size):
            row = x[order[start + i]]
            logit = weights[features]
            for j in range(features):
                logit += row[j] * weights[j]
            logits[i], targets[i] = logit, y[order[start + i]]
        total += size * loss(targets[:size], logits[:size], None, grad[:size])
        for i in range(size):
            row = x[order[start + i]]
            step = np.float32(rate) * grad[i]
            for j in range(features):
                weights[j] -= step * row[j]
            weights[features] -= step
    return total / samples


Trainer = Callable[[np.ndarray, np.ndarray, int, float, int], tuple[Callable[[np.ndarray], np.ndarray], float]]


def with_fastloss(x, y, epochs, rate, batch):
    """A function from samples to logits, and the seconds an epoch took."""
    weights = np.zeros(x.shape[1] + 1, np.float32)
    epoch(x, y, np.arange(len(x)), weights.copy(), rate, batch)  # compiles
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(epochs):
        epoch(x, y, rng.permutation(len(x)), weights, rate, batch)
    seconds = time.perf_counter() - start
    return (lambda samples: samples @ weights[:-1] + weights[-1]), seconds / epochs


def with_torch(x, y, epochs, rate, batch):
    """The same loop, with PyTorch's loss and gradient."""
    import torch

    torch.set_num_threads(1)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    weights = torch.zeros(x.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    criterion = torch.nn.BCEWithLogitsLoss()
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(epochs):
        for chosen in torch.from_numpy(rng.permutation(len(x))).split(batch):
            value = criterion(x[chosen] @ weights + bias, y[chosen])
            gradients = torch.autograd.grad(value, (weights, bias))
            with torch.no_grad():
                weights -= rate * gradients[0]
                bias -= rate * gradients[1]
    seconds = time.perf_counter() - start
    w, b = weights.detach().numpy(), float(bias.detach())
    return (lambda samples: samples @ w + b), seconds / epochs


def with_sklearn(x, y, epochs, rate, batch):
    """scikit-learn's own loop: single samples, so that a step of the same size is a batch's share of the rate."""
    from sklearn.linear_model import SGDClassifier

    model = SGDClassifier(
        loss="log_loss", penalty=None, learning_rate="constant", eta0=rate / batch, max_iter=epochs, tol=None,
        random_state=0,
    )  # fmt: skip
    start = time.perf_counter()
    model.fit(x, y)
    seconds = time.perf_counter() - start
    return model.decision_function, seconds / epochs


TRAINERS: dict[str, Trainer] = {"fastloss": with_fastloss, "PyTorch": with_torch, "scikit-learn": with_sklearn}


def data(samples: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal samples whose class is drawn with the probability that a hidden weight vector gives them."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(samples, features)).astype(np.float32)
    logits = x @ rng.normal(size=features).astype(np.float32) * 3 / np.sqrt(features) + 0.5
    return x, (rng.random(samples) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def main(arguments: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Train with each library, print a table, and return accuracy and seconds an epoch by library."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=40_000, help="half of them are for testing")
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--only", choices=sorted(TRAINERS), nargs="+", default=list(TRAINERS))
    chosen = parser.parse_args(arguments)
    x, y = data(chosen.samples, chosen.features)
    half = chosen.samples // 2
    results = {}
    print(f"{half} samples of {chosen.features} features, {chosen.epochs} epochs in batches of {chosen.batch}")
    for name in chosen.only:
        try:
            decide, seconds = TRAINERS[name](x[:half], y[:half], chosen.epochs, chosen.rate, chosen.batch)
        except ModuleNotFoundError as error:
            print(f"{name:14} left out: {error}")
            continue
        accuracy = float(np.mean((decide(x[half:]) > 0) == (y[half:] > 0.5)))
        results[name] = accuracy, seconds
        print(f"{name:14} test accuracy {accuracy:.4f}   {1e3 * seconds:8.2f} ms an epoch")
    return results


if __name__ == "__main__":
    main()
