"""Who else computes value and gradient: other libraries, each with its own arrays and its own best way.

`TABLE` has one row a loss; `PEERS` has one maker a library, which turns a row into a call. A library that has the loss
is used as it has it; one that differentiates for itself (PyTorch, JAX) is given the formula otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastloss.bench.cases import REDUCTION, Case, Shape
from fastloss.bench.formulas import EPSILON, FORMULAS
from fastloss.losses.arrays import Array
from fastloss.registry import Row


class Task(NamedTuple):
    """What everybody is given."""

    case: Case
    shape: Shape
    dtype: str
    threads: int
    y: Array
    p: Array


class Contestant(NamedTuple):
    """A call that is timed, and how to read what it returns, which is not."""

    run: Callable[[], Any]
    read: Callable[[Any], tuple[Any, Any]]
    """To value and gradient, as what NumPy makes arrays of."""


class Ways(NamedTuple):
    """How other libraries write a loss; every function is given targets and predictions and returns the value.

    Attributes
    ----------
    torch : callable, optional
        ``torch(f, y, p)``, f being ``torch.nn.functional``.
    optax : callable, optional
        ``optax(o, y, p)``, o being ``optax.losses``.
    formula : callable, optional
        ``formula(xp, nn, y, p)``, for PyTorch without a function of its own, and for JAX where neither Optax nor
        Keras has one: ``(torch, torch.nn.functional)`` or ``(jax.numpy, jax.nn)``.
    sklearn : tuple, optional
        Class in ``sklearn._loss._loss``, its arguments, and how often its loss goes into ours.
    """

    torch: Callable[..., Any] | None = None
    optax: Callable[..., Any] | None = None
    formula: Callable[..., Any] | None = None
    sklearn: tuple[str, dict[str, float], float] | None = None


# --------------------------------------------------------------------------------------------------------------
# Formulas that need more than a line
# --------------------------------------------------------------------------------------------------------------


def _probabilities(xp: Any, p: Any) -> Any:
    return xp.clip(p / p.sum(-1)[..., None], EPSILON, 1 - EPSILON)


def _binary_focal(xp: Any, nn: Any, y: Any, p: Any, logits: bool, offset: float = 0.0) -> Any:
    if logits:
        q, loss = nn.sigmoid(p), nn.softplus(p) - y * p
    else:
        q, c = p, xp.clip(p, EPSILON, 1 - EPSILON)
        loss = -y * xp.log(c + offset) - (1 - y) * xp.log(1 - c + offset)
    return (y * (1 - q) + (1 - y) * q) ** 2 * loss


def _sigmoid_focal(xp: Any, nn: Any, y: Any, p: Any, logits: bool) -> Any:
    return ((0.75 - y / 2) * _binary_focal(xp, nn, y, p, logits, 0.0 if logits else EPSILON)).sum(-1).mean()


def _categorical_focal(xp: Any, nn: Any, y: Any, p: Any, logits: bool) -> Any:
    q = xp.clip(nn.softmax(p, -1), EPSILON, 1 - EPSILON) if logits else _probabilities(xp, p)
    return -((1 - q) ** 2 * y * xp.log(q)).sum(-1).mean() / 4


def _kl_divergence(xp: Any, nn: Any, y: Any, p: Any) -> Any:
    t = xp.clip(y, EPSILON, 1.0)
    return (t * xp.log(t / xp.clip(p, EPSILON, 1.0))).sum(-1).mean()


def _logarithmic(xp: Any, x: Any) -> Any:
    return xp.log1p(xp.clip(x, min=EPSILON))


def _torch_sparsemax(f: Any, y: Any, p: Any) -> Any:
    torch = importlib.import_module("torch")
    with torch.no_grad():  # the gradient of s·(p - s/2) is s, as if s were constant
        ordered = p.sort(dim=-1, descending=True).values
        excess = ordered.cumsum(-1) - 1
        support = (torch.arange(1, p.shape[-1] + 1) * ordered > excess).sum(-1, keepdim=True)
        s = f.relu(p - excess.gather(-1, support - 1) / support)
    return (s * (p - s / 2) + y * (y / 2 - p)).sum(-1).mean()


def _torch_ctc(f: Any, y: Any, p: Any) -> Any:
    batch, frames, _ = p.shape
    logs = f.log_softmax(p, -1).transpose(0, 1)
    return f.ctc_loss(logs, y, (frames,) * batch, (y.shape[1],) * batch, reduction="none").mean()


def _giou(xp: Any, nn: Any, y: Any, p: Any) -> Any:
    def area(low: Any, high: Any) -> Any:
        return (high[:, 0] - low[:, 0]) * (high[:, 1] - low[:, 1])

    a, b, c, d = y[:, :2], y[:, 2:], p[:, :2], p[:, 2:]
    both = area(xp.maximum(a, c), xp.maximum(xp.maximum(a, c), xp.minimum(b, d)))
    union = area(a, b) + area(c, d) - both
    box = area(xp.minimum(a, c), xp.maximum(b, d))
    return (1 - both / union + (box - union) / box).mean()


def _kappa(xp: Any, nn: Any, y: Any, p: Any) -> Any:
    classes = xp.arange(p.shape[1])
    weights = (1.0 * (classes[:, None] - classes)) ** 2 / (p.shape[1] - 1) ** 2
    weights = xp.asarray(weights, dtype=p.dtype)
    expected = y.sum(0) @ weights @ p.sum(0) / len(p)
    return xp.log((y @ weights * p).sum() / expected + 1e-6)


def _npairs(xp: Any, nn: Any, y: Any, p: Any) -> Any:
    same = y[:, None] == y[None, :]
    return -(same * nn.log_softmax(p, -1) / same.sum(-1)[:, None]).sum(-1).mean()


def _npairs_multilabel(xp: Any, nn: Any, y: Any, p: Any) -> Any:
    same = y @ y.T
    return -(same * nn.log_softmax(p, -1) / same.sum(-1)[:, None]).sum(-1).mean()


def _torch_triplet_hard(f: Any, y: Any, p: Any) -> Any:
    torch = importlib.import_module("torch")
    distances = torch.cdist(p, p)
    same = y[:, None] == y
    farthest = distances.masked_fill(~same, 0).amax(1)
    nearest = distances.masked_fill(same, math.inf).amin(1)
    return f.relu(farthest - nearest + 1).mean()


# --------------------------------------------------------------------------------------------------------------
# One row a loss
# --------------------------------------------------------------------------------------------------------------

TABLE: dict[str, Ways] = {
    "mean_squared_error": Ways(
        torch=lambda f, y, p: f.mse_loss(p, y),
        optax=lambda o, y, p: o.squared_error(p, y).mean(),
        sklearn=("CyHalfSquaredError", {}, 2.0),
    ),
    "mean_absolute_error": Ways(
        torch=lambda f, y, p: f.l1_loss(p, y),
        sklearn=("CyAbsoluteError", {}, 1.0),
    ),
    "huber": Ways(
        torch=lambda f, y, p: f.huber_loss(p, y),
        optax=lambda o, y, p: o.huber_loss(p, y).mean(),
        sklearn=("CyHuberLoss", {"delta": 1.0}, 1.0),
    ),
    "log_cosh": Ways(
        optax=lambda o, y, p: o.log_cosh(p, y).mean(),
        formula=lambda xp, nn, y, p: (p - y + nn.softplus(-2 * (p - y)) - math.log(2)).mean(),
    ),
    "binary_crossentropy": Ways(torch=lambda f, y, p: f.binary_cross_entropy(p, y)),
    "binary_crossentropy, from logits": Ways(
        torch=lambda f, y, p: f.binary_cross_entropy_with_logits(p, y),
        optax=lambda o, y, p: o.sigmoid_binary_cross_entropy(p, y).mean(),
        sklearn=("CyHalfBinomialLoss", {}, 1.0),
    ),
    "categorical_crossentropy": Ways(
        formula=lambda xp, nn, y, p: -(y * xp.log(_probabilities(xp, p))).sum(-1).mean(),
    ),
    "categorical_crossentropy, from logits": Ways(
        torch=lambda f, y, p: f.cross_entropy(p, y),
        optax=lambda o, y, p: o.softmax_cross_entropy(p, y).mean(),
    ),
    "sparse_categorical_crossentropy": Ways(
        torch=lambda f, y, p: -(p.gather(1, y[:, None])[:, 0] / p.sum(-1)).clip(EPSILON, 1 - EPSILON).log().mean(),
    ),
    "sparse_categorical_crossentropy, from logits": Ways(
        torch=lambda f, y, p: f.cross_entropy(p, y),
        optax=lambda o, y, p: o.softmax_cross_entropy_with_integer_labels(p, y).mean(),
        sklearn=("CyHalfMultinomialLoss", {}, 1.0),
    ),
    "mean_absolute_percentage_error": Ways(
        formula=lambda xp, nn, y, p: 100 * (abs(p - y) / xp.clip(abs(y), min=EPSILON)).mean(),
    ),
    "mean_squared_logarithmic_error": Ways(
        formula=lambda xp, nn, y, p: ((_logarithmic(xp, p) - _logarithmic(xp, y)) ** 2).mean(),
    ),
    "cosine_similarity": Ways(
        torch=lambda f, y, p: -f.cosine_similarity(y, p).mean(),
        optax=lambda o, y, p: -o.cosine_similarity(p, y).mean(),
    ),
    "pinball_loss": Ways(
        formula=lambda xp, nn, y, p: xp.maximum(0.5 * (y - p), -0.5 * (y - p)).mean(),
        sklearn=("CyPinballLoss", {"quantile": 0.5}, 1.0),
    ),
    "contrastive_loss": Ways(
        formula=lambda xp, nn, y, p: (y * p * p + (1 - y) * nn.relu(1 - p) ** 2).mean(),
    ),
    "hinge": Ways(
        optax=lambda o, y, p: o.hinge_loss(p, y).mean(),
        formula=lambda xp, nn, y, p: nn.relu(1 - y * p).mean(),
    ),
    "squared_hinge": Ways(formula=lambda xp, nn, y, p: (nn.relu(1 - y * p) ** 2).mean()),
    "categorical_hinge": Ways(
        formula=lambda xp, nn, y, p: nn.relu(xp.amax((1 - y) * p, -1) - (y * p).sum(-1) + 1).mean(),
    ),
    "poisson": Ways(
        torch=lambda f, y, p: f.poisson_nll_loss(p, y, log_input=False, eps=EPSILON),
        sklearn=("CyHalfPoissonLoss", {}, 1.0),
    ),
    "kl_divergence": Ways(formula=_kl_divergence),
    "binary_focal_crossentropy": Ways(
        formula=lambda xp, nn, y, p: _binary_focal(xp, nn, y, p, logits=False).mean(),
    ),
    "binary_focal_crossentropy, from logits": Ways(
        formula=lambda xp, nn, y, p: _binary_focal(xp, nn, y, p, logits=True).mean(),
    ),
    "sigmoid_focal_crossentropy": Ways(formula=lambda xp, nn, y, p: _sigmoid_focal(xp, nn, y, p, logits=False)),
    "sigmoid_focal_crossentropy, from logits": Ways(
        optax=lambda o, y, p: o.sigmoid_focal_loss(p, y, alpha=0.25).sum(-1).mean(),
        formula=lambda xp, nn, y, p: _sigmoid_focal(xp, nn, y, p, logits=True),
    ),
    "categorical_focal_crossentropy": Ways(
        formula=lambda xp, nn, y, p: _categorical_focal(xp, nn, y, p, logits=False),
    ),
    "categorical_focal_crossentropy, from logits": Ways(
        formula=lambda xp, nn, y, p: _categorical_focal(xp, nn, y, p, logits=True),
    ),
    "categorical_generalized_cross_entropy": Ways(
        torch=lambda f, y, p: 2 * (1 - p.gather(1, y[:, None]).sqrt()).mean(),
    ),
    "sparsemax_loss": Ways(
        torch=_torch_sparsemax,
        optax=lambda o, y, p: o.multiclass_sparsemax_loss(p, y.argmax(-1)).mean(),
    ),
    "dice": Ways(formula=lambda xp, nn, y, p: 1 - 2 * (y * p).sum() / (y.sum() + p.sum() + EPSILON)),
    "tversky": Ways(
        formula=lambda xp, nn, y, p: (
            1 - (y * p).sum() / ((y * p).sum() + ((1 - y) * p).sum() / 2 + (y * (1 - p)).sum() / 2 + EPSILON)
        ),
    ),
    "giou_loss": Ways(formula=_giou),
    "weighted_kappa_loss": Ways(formula=_kappa),
    "ctc": Ways(torch=_torch_ctc),
    "npairs_loss": Ways(formula=_npairs),
    "npairs_multilabel_loss": Ways(formula=_npairs_multilabel),
    "triplet_hard_loss": Ways(torch=_torch_triplet_hard),
}
"""Label of a case → how others write it. Keras is not here: its classes have our names and arguments."""


# --------------------------------------------------------------------------------------------------------------
# One maker a library
# --------------------------------------------------------------------------------------------------------------


def _numpy(task: Task) -> Contestant | None:
    formula = FORMULAS.get(task.case.label)
    if formula is None:
        return None
    return Contestant(lambda: formula(task.y, task.p), lambda found: found)


def torch_value(label: str) -> Callable[[Any, Any], Any] | None:
    """The value of the loss of that label in PyTorch, as a function of targets and predictions."""
    torch = importlib.import_module("torch")
    functional = torch.nn.functional
    ways = TABLE.get(label, Ways())
    torch_way, formula = ways.torch, ways.formula
    if torch_way is not None:
        return lambda y, p: torch_way(functional, y, p)
    if formula is not None:
        return lambda y, p: formula(torch, functional, y, p)
    return None


def _torch(task: Task, compiled: bool = False) -> Contestant | None:
    value = torch_value(task.case.label)
    if value is None:
        return None
    torch = importlib.import_module("torch")
    torch.set_num_threads(task.threads)
    if compiled:
        torch.compiler.reset()  # a shape is compiled for itself, and not as the eighth of its kind left to Python
        value = torch.compile(value, dynamic=False)
    y, p = torch.from_numpy(task.y), torch.from_numpy(task.p).requires_grad_()

    def run() -> Any:
        p.grad = None  # else backward adds to the last one
        result = value(y, p)
        result.backward()
        return result, p.grad

    return Contestant(run, lambda found: (found[0].detach().numpy(), found[1].numpy()))


def _torch_compiled(task: Task) -> Contestant | None:
    return _torch(task, compiled=True)


def _on_jax(task: Task, value: Callable[[Any, Any], Any], compiled: bool = True) -> Contestant:
    jax = importlib.import_module("jax")
    # Handing a small batch to another thread and waiting for it takes three times as long as doing it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    both = jax.value_and_grad(lambda p, y: value(y, p).sum())
    run = jax.jit(both) if compiled else both
    labels = task.y.astype(np.int32) if task.y.dtype.kind == "i" else task.y
    y, p = jax.numpy.asarray(labels), jax.numpy.asarray(task.p)
    return Contestant(lambda: jax.block_until_ready(run(p, y)), lambda found: found)


def _optax(task: Task) -> Contestant | None:
    way = TABLE.get(task.case.label, Ways()).optax
    if way is None:
        return None
    losses = importlib.import_module("optax.losses")
    return _on_jax(task, lambda y, p: way(losses, y, p))


def _jax(task: Task) -> Contestant | None:
    ways = TABLE.get(task.case.label, Ways())
    formula = ways.formula
    if formula is None or (ways.optax and _found("optax")) or (_found("keras") and _keras_loss(task)):
        return None
    jax = importlib.import_module("jax")
    return _on_jax(task, lambda y, p: formula(jax.numpy, jax.nn, y, p))


def _keras_loss(task: Task) -> Any:
    keras = importlib.import_module("keras")
    if keras.backend.backend() != "jax":
        raise RuntimeError(f"Keras runs on {keras.backend.backend()}, not on JAX")
    keras.config.set_floatx(task.dtype)
    cls = getattr(keras.losses, task.case.row.cls.__name__, None)
    return None if cls is None else cls(**{"reduction": REDUCTION, **task.case.options}, dtype=task.dtype)


def _keras_compiled(task: Task) -> Contestant | None:
    loss = _keras_loss(task)
    return None if loss is None else _on_jax(task, loss)


def _keras(task: Task) -> Contestant | None:
    loss = _keras_loss(task)
    return None if loss is None else _on_jax(task, loss, compiled=False)


def _sklearn(task: Task) -> Contestant | None:
    way = TABLE.get(task.case.label, Ways()).sklearn
    if way is None:
        return None
    name, arguments, factor = way
    loss = getattr(importlib.import_module("sklearn._loss._loss"), name)(**arguments)
    of_rates = name == "CyHalfPoissonLoss"  # its predictions are logarithms of ours: an exponential, not a logarithm
    classes = isinstance(task.case.row, Row) and task.case.row.labels == "index"
    p = np.log(task.p) if of_rates else task.p
    y = (task.y if classes else task.y.reshape(-1)).astype(task.dtype)
    losses, gradient = np.empty(y.size, task.dtype), np.empty(p.shape if classes else y.size, task.dtype)
    given = {
        "y_true": y,
        "raw_prediction": p if classes else p.reshape(-1),
        # The mean and its gradient without another pass: it has sums only.
        "sample_weight": np.full(y.size, factor / y.size, task.dtype),
        "loss_out": losses,
        "gradient_out": gradient,
        "n_threads": task.threads,
    }

    def run() -> Any:
        loss.loss_gradient(**given)
        return losses.sum(), gradient

    def read(found: Any) -> tuple[Any, Any]:
        shaped = found[1].reshape(task.p.shape)
        return found[0], shaped / task.p if of_rates else shaped

    return Contestant(run, read)


class Peer(NamedTuple):
    """A way to compute losses that may be installed."""

    title: str
    modules: tuple[str, ...]
    make: Callable[[Task], Contestant | None]
    """A contestant, or None where the library does not have the loss."""


PEERS: dict[str, Peer] = {
    "numpy": Peer("NumPy", ("numpy",), _numpy),
    "sklearn": Peer("scikit-learn", ("sklearn",), _sklearn),
    "torch": Peer("PyTorch", ("torch",), _torch),
    "torch-compile": Peer("torch.compile", ("torch",), _torch_compiled),
    "jax": Peer("jax.jit", ("jax",), _jax),
    "jax-optax": Peer("jax.jit of Optax", ("jax", "optax"), _optax),
    "jax-keras": Peer("jax.jit of Keras", ("jax", "keras"), _keras_compiled),
    "keras": Peer("Keras on JAX", ("jax", "keras"), _keras),
}
"""Name → peer. ``--peer`` takes these names."""


def missing(name: str) -> str | None:
    """The module that a peer lacks, or None."""
    return next((module for module in PEERS[name].modules if not _found(module)), None)


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
