"""A network in plain NumPy learns handwritten digits; its loss and gradient come from one call of fastloss.

What ``fastloss demo`` runs: `load` the digits, `train`, `compare` the loss with other libraries on batches of that very
training, `plot` the learning curve. It needs the extra ``demo``.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

import fastloss
from fastloss.losses.arrays import Array
from fastloss.monitor import History

PIXELS, HIDDEN, CLASSES = 64, 128, 10
LEARNING_RATE, MOMENTUM = 0.2, 0.9

NOISE = 0.25
"""Standard deviation of the noise on training images whose pixels lie in [0, 1].

Without it the network learns its 1347 images by heart: over 40 seeds 98.1 % of held-out images right, at worst 96.9 %;
with it 98.9 % and 98.0 %.
"""

RECORDED = 300
"""How many batches of a training are kept for `compare`, spread evenly over it."""

ROUNDS = 3
"""How often `measure` goes through them."""

TURN = 20
"""How many calls in a row somebody has there.

In turns of one call everybody meets the caches and the branch predictor as the others left them, and all look two to
three times as slow.
"""

LOSS = fastloss.losses.SparseCategoricalCrossentropy(from_logits=True)


class Digits(NamedTuple):
    """Images as rows of float32, centred, and their labels."""

    train_images: Array
    train_labels: Array
    held_out_images: Array
    held_out_labels: Array


class Batch(NamedTuple):
    """What a loss is called with."""

    labels: Array
    logits: Array


@dataclass
class Training:
    """What a training leaves behind: the loss of each step, the accuracies and the held-out loss of each epoch."""

    record_every: int
    history: History = field(default_factory=History)
    batches: list[Batch] = field(default_factory=list)
    seconds: float = 0.0

    def record(self, batch: Batch, loss: Any) -> None:
        """Log a step, and keep some of them for `compare`."""
        if self.history.step % self.record_every == 0:
            self.batches.append(batch)
        self.history.log(loss=loss)


class Network:
    """A perceptron with one hidden layer of ReLU units, trained by stochastic gradient descent with momentum.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the initial weights (He's initialisation).
    """

    def __init__(self, rng: np.random.Generator) -> None:
        def weights(inputs: int, outputs: int) -> Array:
            return rng.standard_normal((inputs, outputs), dtype=np.float32) * np.float32(np.sqrt(2 / inputs))

        def biases(outputs: int) -> Array:
            return np.zeros(outputs, np.float32)

        self._parameters = [weights(PIXELS, HIDDEN), biases(HIDDEN), weights(HIDDEN, CLASSES), biases(CLASSES)]
        self._velocities = [np.zeros_like(parameter) for parameter in self._parameters]

    def forward(self, images: Array) -> tuple[Array, Array]:
        """Activations of the hidden layer, and logits."""
        w1, b1, w2, b2 = self._parameters
        hidden = np.maximum(images @ w1 + b1, 0)
        return hidden, hidden @ w2 + b2

    def backward(self, images: Array, hidden: Array, d_logits: Array) -> list[Array]:
        """Gradients of the parameters, given that of the logits."""
        d_hidden = d_logits @ self._parameters[2].T
        d_hidden *= hidden > 0
        return [images.T @ d_hidden, d_hidden.sum(axis=0), hidden.T @ d_logits, d_logits.sum(axis=0)]

    def descend(self, gradients: list[Array], rate: float) -> None:
        """Take a step."""
        for parameter, velocity, gradient in zip(self._parameters, self._velocities, gradients, strict=True):
            velocity *= MOMENTUM
            velocity -= rate * gradient
            parameter += velocity


def load(seed: int) -> Digits:
    """Scikit-learn's handwritten digits: three quarters to learn from, a quarter held out, all classes alike in both.

    Parameters
    ----------
    seed : int
        Of the split.

    Returns
    -------
    Digits
    """
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    mean = train.mean(axis=0)
    return Digits(train - mean, train_labels, held_out - mean, held_out_labels)


def train(
    digits: Digits, epochs: int, seed: int, batch_size: int, after_epoch: Callable[[], None] = lambda: None
) -> Training:
    """Train a network.

    The held-out images are looked at after each epoch but steer nothing: there is no early stopping.

    Parameters
    ----------
    digits : Digits
        To learn from, and to be tried on.
    epochs, batch_size : int
        How often and in what portions. A last, smaller batch is left out: the next epoch draws other batches.
    seed : int
        Of the weights, the order of the images and the noise.
    after_epoch : callable
        Called after every epoch.

    Returns
    -------
    Training
    """
    rng = np.random.default_rng(seed)
    network = Network(rng)
    steps = len(digits.train_labels) // batch_size
    training = Training(record_every=math.ceil(epochs * steps / RECORDED))
    # Products of matrices so small gain nothing from several threads, and on a busy machine they wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        for epoch in range(epochs):
            # Small batches point less reliably, and ever smaller steps let the weights settle.
            rate = LEARNING_RATE * min(1.0, batch_size / 32) * (1 + math.cos(math.pi * epoch / epochs)) / 2
            order = rng.permutation(len(digits.train_labels))[: steps * batch_size].reshape(steps, batch_size)
            accuracy = _learn(network, digits, order, rate, rng, training)
            _try(network, digits, training, accuracy)
            after_epoch()
    return training


def _learn(
    network: Network, digits: Digits, order: Array, rate: float, rng: np.random.Generator, training: Training
) -> float:
    """Go through the training images once, a row of `order` a step; return the share that was right."""
    d_logits = np.empty((order.shape[1], CLASSES), np.float32)  # one buffer serves every step
    correct = 0
    start = time.perf_counter()
    for chosen in order:
        noise = rng.standard_normal((len(chosen), PIXELS), dtype=np.float32)
        images, labels = digits.train_images[chosen] + NOISE * noise, digits.train_labels[chosen]
        hidden, logits = network.forward(images)
        value, _ = LOSS.value_and_grad(labels, logits, out=d_logits)
        network.descend(network.backward(images, hidden, d_logits), rate)
        correct += _correct(labels, logits)
        training.record(Batch(labels, logits), value)
    training.seconds += time.perf_counter() - start
    return correct / order.size


def _try(network: Network, digits: Digits, training: Training, accuracy: float) -> None:
    """See how the network does on the held-out images, and log that beside its accuracy in training."""
    _, logits = network.forward(digits.held_out_images)
    training.history.end_epoch(
        accuracy=accuracy,
        val_loss=LOSS(digits.held_out_labels, logits),
        val_accuracy=_correct(digits.held_out_labels, logits) / len(logits),
    )


def _correct(labels: Array, logits: Array) -> int:
    return int(np.count_nonzero(logits.argmax(axis=1) == labels))


class Contender(NamedTuple):
    """A way to the mean cross-entropy of a batch and its gradient with respect to the logits.

    Each library is set up as it is fastest for batches of this size.
    """

    name: str
    prepare: Callable[[Batch], tuple[Any, Any]]
    """Labels and logits as the library's own arrays. Not timed: to nobody's disadvantage but ours."""
    run: Callable[[Any, Any], tuple[Any, Any]]
    """From those to value and gradient, computed to the end."""


def _as_they_are(batch: Batch) -> tuple[Array, Array]:
    return batch


def _with_fastloss(shape: tuple[int, int]) -> Contender:
    gradient = np.empty(shape, np.float32)

    def run(labels: Array, logits: Array) -> tuple[Any, Array]:
        return LOSS.value_and_grad(labels, logits, out=gradient)

    return Contender(f"fastloss {fastloss.__version__}", _as_they_are, run)


def _with_numpy(shape: tuple[int, int]) -> Contender:
    samples = shape[0]
    rows = np.arange(samples)
    gradient = np.empty(shape, np.float32)

    def run(labels: Array, logits: Array) -> tuple[Any, Array]:
        # One exponential an element and no temporary of the batch's size; `sum` is far quicker than `mean`.
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=gradient)
        at_labels = gradient[rows, labels].sum()
        np.exp(gradient, out=gradient)
        sums = gradient.sum(axis=1, keepdims=True)
        value = (np.log(sums).sum() - at_labels) / samples
        sums *= samples
        np.divide(gradient, sums, out=gradient)
        gradient[rows, labels] -= 1 / samples
        return value, gradient

    return Contender(f"NumPy {np.__version__}", _as_they_are, run)


def _with_torch(shape: tuple[int, int]) -> Contender:
    torch = importlib.import_module("torch")
    # On several threads it takes 10 µs longer, and on a busy machine now and then some milliseconds.
    torch.set_num_threads(1)
    cross_entropy = torch.nn.functional.cross_entropy

    def prepare(batch: Batch) -> tuple[Any, Any]:
        return torch.from_numpy(batch.labels), torch.from_numpy(batch.logits).requires_grad_()

    def run(labels: Any, logits: Any) -> tuple[Any, Any]:
        logits.grad = None  # else backward adds to the last one
        value = cross_entropy(logits, labels)
        value.backward()
        return value, logits.grad

    return Contender(f"PyTorch {torch.__version__}, eager", prepare, run)


def _with_jax(shape: tuple[int, int]) -> Contender:
    os.environ["JAX_PLATFORMS"] = "cpu"  # everybody works on the CPU, and JAX need not look for anything else
    jax = importlib.import_module("jax")
    # Handing so little work to another thread and waiting for it takes three times as long as doing it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        cross_entropy = importlib.import_module("optax").softmax_cross_entropy_with_integer_labels
        name = f"JAX {jax.__version__}, jit of optax's loss"
    except ModuleNotFoundError:
        name = f"JAX {jax.__version__}, jit"

        def cross_entropy(logits: Any, labels: Any) -> Any:
            return -jax.numpy.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)

    value_and_grad = jax.jit(jax.value_and_grad(lambda logits, labels: cross_entropy(logits, labels).mean()))

    def prepare(batch: Batch) -> tuple[Any, Any]:
        return jax.numpy.asarray(batch.labels.astype(np.int32)), jax.numpy.asarray(batch.logits)

    def run(labels: Any, logits: Any) -> tuple[Any, Any]:
        result: tuple[Any, Any] = jax.block_until_ready(value_and_grad(logits, labels))
        return result

    return Contender(name, prepare, run)


PEERS: dict[str, Callable[[tuple[int, int]], Contender]] = {"PyTorch": _with_torch, "JAX": _with_jax}


def contenders(shape: tuple[int, int]) -> tuple[list[Contender], list[str]]:
    """Everybody who is there to compute the loss.

    Parameters
    ----------
    shape : tuple of int
        Of the logits of every batch.

    Returns
    -------
    present : list of Contender
        fastloss first, then NumPy.
    absent : list of str
        Who is not there, and why.
    """
    present, absent = [_with_fastloss(shape), _with_numpy(shape)], []
    for name, make in PEERS.items():
        try:
            present.append(make(shape))
        except Exception as error:  # a library that is missing or broken in its own way should not end the demo
            missing = isinstance(error, ModuleNotFoundError)
            absent.append(f"{name} ({'not installed' if missing else f'{type(error).__name__}: {error}'})")
    return present, absent


def check_agreement(present: list[Contender], batches: list[Batch]) -> None:
    """Refuse to time what does not compute the same; warms everybody up on the way.

    Parameters
    ----------
    present : list of Contender
        The first is who the others are held against.
    batches : list of Batch
        What they are tried on.

    Raises
    ------
    AssertionError
        If a value or a gradient differs by more than 1e-4 relative, beyond float32's rounding where terms cancel.
    """
    for batch in batches:
        # The label's entry is (q - 1) / n and the value a difference of numbers near 1: both may cancel to rounding.
        rounding = 1e-6
        ours = present[0].run(*present[0].prepare(batch))
        for other in present[1:]:
            value, gradient = other.run(*other.prepare(batch))
            message = f"{other.name} disagrees with {present[0].name}"
            np.testing.assert_allclose(value.item(), ours[0].item(), rtol=1e-4, atol=rounding, err_msg=message)
            atol = rounding / len(batch.labels)
            np.testing.assert_allclose(np.asarray(gradient), ours[1], rtol=1e-4, atol=atol, err_msg=message)


def measure(present: list[Contender], batches: list[Batch]) -> list[float]:
    """Time everybody on every batch.

    They take turns, in an order drawn afresh every time: a moment in which the machine is slow meets all alike. The
    garbage collector waits.

    Parameters
    ----------
    present : list of Contender
        Warmed up.
    batches : list of Batch
        What they are given.

    Returns
    -------
    list of float
        The median of a call in seconds, one each.
    """
    rng = np.random.default_rng(0)
    times: list[list[float]] = [[] for _ in present]
    prepared = [[contender.prepare(batch) for batch in batches] * ROUNDS for contender in present]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for first in range(0, ROUNDS * len(batches), TURN):
            for i in rng.permutation(len(present)).tolist():
                run = present[i].run
                for labels, logits in prepared[i][first : first + TURN]:
                    start = time.perf_counter()
                    run(labels, logits)
                    times[i].append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return [float(np.median(samples)) for samples in times]


def compare(training: Training) -> tuple[Table, list[str]]:
    """Time the loss in every library that is installed, on batches of a training.

    Parameters
    ----------
    training : Training
        Whose batches.

    Returns
    -------
    table : rich.table.Table
        Microseconds a step.
    absent : list of str
        Who is not in it, and why.
    """
    batches = training.batches
    samples, classes = batches[0].logits.shape
    present, absent = contenders((samples, classes))
    check_agreement(present, batches)
    medians = measure(present, batches)
    table = Table(title=f"Loss and gradient of {samples} × {classes} logits")
    table.add_column("computed by")
    table.add_column("µs a step", justify="right")
    table.add_column("× fastloss", justify="right")
    for contender, seconds in zip(present, medians, strict=True):
        table.add_row(contender.name, f"{1e6 * seconds:.1f}", f"{seconds / medians[0]:.1f}")
    return table, absent


def plot(training: Training, path: Path) -> None:
    """Draw the learning curve.

    Parameters
    ----------
    training : Training
        Whose losses and accuracies.
    path : pathlib.Path
        Of the PNG.
    """
    figure = training.history.plot("loss", "accuracy", x="epoch", log=["loss"])
    for axes, label in zip(figure.axes, ("cross-entropy", "images classified correctly"), strict=True):
        axes.set_ylabel(label)
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.suptitle("Handwritten digits; noise is added to the training images", fontsize="medium")
    figure.savefig(path)


def writable_directory(path: Path) -> Path:
    """Make a directory where there is none, and make sure that files can be written to it.

    Parameters
    ----------
    path : pathlib.Path
        Which.

    Returns
    -------
    pathlib.Path
        It, absolute.

    Raises
    ------
    OSError
        If that is not possible.
    """
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        return path.resolve()


def run(digits: Digits, directory: Path, epochs: int, seed: int, batch_size: int) -> None:
    """Train, compare, plot, and tell the terminal about it.

    Parameters
    ----------
    digits : Digits
        From `load`.
    directory : pathlib.Path
        Where the learning curve goes.
    epochs, seed, batch_size : int
        As for `train`.
    """
    console = Console(highlight=False)
    console.print(
        f"A {PIXELS}-{HIDDEN}-{CLASSES} network in plain NumPy learns {len(digits.train_labels)} handwritten digits."
    )
    live = console.file.isatty()  # not `console.is_terminal`: FORCE_COLOR makes that true in a pipe, too
    with _status(console, live, "Compiling the loss, once a machine"):
        _compile(digits, batch_size)
    with Progress(console=console, disable=not live) as progress:
        task = progress.add_task("Training", total=epochs)
        training = train(digits, epochs, seed, batch_size, lambda: progress.advance(task))
    accuracy, images = training.history["val_accuracy"][-1], len(digits.held_out_labels)
    console.print(
        f"Held-out accuracy: {accuracy:.2%} ({round(accuracy * images)} of {images} images) after {epochs} "
        f"epoch{'s' if epochs > 1 else ''}, {training.seconds:.1f} s.",
        style="bold",
    )
    with _status(console, live, f"Timing the loss beside NumPy, {', '.join(PEERS)}"):
        table, absent = compare(training)
    console.print(table)
    console.print(
        f"Medians over {len(training.batches)} batches of this training, of which a whole step takes "
        f"{1e6 * training.seconds / training.history.step:.0f} µs."
    )
    if absent:
        console.print("Not compared:", "; ".join(absent), markup=False)
    path = directory / "learning-curve.png"
    plot(training, path)
    console.print(f"Learning curve: {path}", soft_wrap=True, markup=False)  # a wrapped path could not be copied


def _compile(digits: Digits, batch_size: int) -> None:
    """Have the kernels compiled that a training uses, so that its first step is like the others."""
    labels = digits.train_labels[:batch_size]
    logits = np.zeros((batch_size, CLASSES), np.float32)
    LOSS.value_and_grad(labels, logits, out=np.empty_like(logits))
    LOSS(labels, logits)


def _status(console: Console, live: bool, text: str) -> AbstractContextManager[Any]:
    return console.status(text) if live else nullcontext()
