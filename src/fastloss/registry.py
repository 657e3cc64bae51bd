"""One row a loss: what the tests, the benchmarks and the documentation know of it.

Adding a loss is one kernel, one class with its function handle, one reference function in ``tests/reference.py`` and
one row here; every test and benchmark picks it up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fastloss import losses
from fastloss.kernels.definition import Kernel
from fastloss.losses.base import KernelLoss, Loss


@dataclass(frozen=True)
class Row:
    """A registered loss.

    Attributes
    ----------
    name : str
        Identifier, and the name of the function handle.
    cls : type
        The class.
    function : callable
        The function handle.
    labels : {"dense", "index"}
        Whether targets have the predictions' shape or are class indices.
    domain : str
        What targets and predictions may hold: ``"real"`` numbers; ``"positive"`` ones; ``"unit"``, numbers in [0, 1];
        ``"sign"``, targets -1 or 1; ``"pairs"``, targets 0 or 1 and distances; ``"probability"``, targets in [0, 1] and
        probabilities (or logits, under ``from_logits=True``); ``"distribution"``, rows of such that are distributions;
        ``"scores"``, rows of distributions and of real numbers; ``"index"``, class indices and rows of probabilities
        or logits.
    variants : tuple of dict
        Constructor arguments worth testing, the defaults first.
    formula : str
        Of a sample's loss, for tables.
    """

    name: str
    cls: type[KernelLoss]
    function: Callable[..., Any]
    labels: Literal["dense", "index"]
    domain: Literal["real", "positive", "unit", "sign", "pairs", "probability", "distribution", "scores", "index"]
    variants: tuple[dict[str, Any], ...]
    formula: str

    @property
    def kernel(self) -> Kernel:
        """The kernel of the first variant."""
        return self.cls()._kernel()

    @property
    def kind(self) -> str:
        """The shape of the kernel: ``"pointwise"`` or ``"rowwise"``."""
        return self.kernel.shape

    @property
    def hessian(self) -> bool:
        """Whether the diagonal Hessian is there."""
        return self.cls().has_hessian


OF_ROWS = ("index", "distribution", "scores")
"""The domains of losses of a row of class scores: each sample has a prediction for each class."""


def domain(loss: Loss) -> str:
    """The domain of a loss; ``"real"`` of one that is not registered with one."""
    if isinstance(loss, KernelLoss) and loss.class_indices:
        return "index"
    return next((row.domain for row in LOSSES.values() if row.cls is type(loss)), "real")


@dataclass(frozen=True)
class BatchRow:
    """A registered loss that is neither pointwise nor rowwise: of sequences, boxes or whole batches.

    Attributes
    ----------
    name : str
        Identifier, and the name of the function handle.
    cls : type
        The class.
    function : callable or None
        The function handle, where there is one.
    variants : tuple of dict
        Constructor arguments worth testing, the defaults first.
    formula : str
        For tables.
    """

    name: str
    cls: type[Loss]
    function: Callable[..., Any] | None
    variants: tuple[dict[str, Any], ...]
    formula: str


_FROM_LOGITS: tuple[dict[str, Any], ...] = (
    {},
    {"label_smoothing": 0.1},
    {"from_logits": True},
    {"from_logits": True, "label_smoothing": 0.1},
)

_BINARY_FOCAL: tuple[dict[str, Any], ...] = (
    {},
    {"apply_class_balancing": True, "label_smoothing": 0.1, "gamma": 1.5},
    {"from_logits": True},
    {"from_logits": True, "apply_class_balancing": True, "label_smoothing": 0.1, "gamma": 0.5},
)

_CATEGORICAL_FOCAL: tuple[dict[str, Any], ...] = (
    {},
    {"alpha": 0.5, "gamma": 1.5, "label_smoothing": 0.1},
    {"from_logits": True},
    {"from_logits": True, "gamma": 0.5, "label_smoothing": 0.1},
)

_METRICS: tuple[dict[str, Any], ...] = (
    {},
    {"margin": 0.25, "distance_metric": "squared-L2"},
    {"distance_metric": "angular"},
)

LOSSES: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "mean_squared_error",
            losses.MeanSquaredError,
            losses.mean_squared_error,
            "dense",
            "real",
            ({},),
            "mean((p - y)²)",
        ),
        Row(
            "mean_absolute_error",
            losses.MeanAbsoluteError,
            losses.mean_absolute_error,
            "dense",
            "real",
            ({},),
            "mean(abs(p - y))",
        ),
        Row(
            "huber",
            losses.Huber,
            losses.huber,
            "dense",
            "real",
            ({}, {"delta": 0.5}),
            "mean(s·(e - s/2)), s = clip(e, -δ, δ)",
        ),
        Row("log_cosh", losses.LogCosh, losses.log_cosh, "dense", "real", ({},), "mean(log cosh(p - y))"),
        Row(
            "binary_crossentropy",
            losses.BinaryCrossentropy,
            losses.binary_crossentropy,
            "dense",
            "probability",
            _FROM_LOGITS,
            "mean(-y·log p - (1 - y)·log(1 - p))",
        ),
        Row(
            "categorical_crossentropy",
            losses.CategoricalCrossentropy,
            losses.categorical_crossentropy,
            "dense",
            "distribution",
            _FROM_LOGITS,
            "-Σ y·log q, q = softmax(p) or p/Σp",
        ),
        Row(
            "sparse_categorical_crossentropy",
            losses.SparseCategoricalCrossentropy,
            losses.sparse_categorical_crossentropy,
            "index",
            "index",
            _FROM_LOGITS,
            "-log q[y], q = softmax(p) or p/Σp",
        ),
        Row(
            "mean_absolute_percentage_error",
            losses.MeanAbsolutePercentageError,
            losses.mean_absolute_percentage_error,
            "dense",
            "positive",
            ({},),
            "100·mean(abs(p - y) / max(abs(y), ε))",
        ),
        Row(
            "mean_squared_logarithmic_error",
            losses.MeanSquaredLogarithmicError,
            losses.mean_squared_logarithmic_error,
            "dense",
            "positive",
            ({},),
            "mean((log(1 + p) - log(1 + y))²)",
        ),
        Row(
            "cosine_similarity",
            losses.CosineSimilarity,
            losses.cosine_similarity,
            "dense",
            "real",
            ({},),
            "-Σ y·p / (norm(y)·norm(p))",
        ),
        Row(
            "pinball_loss",
            losses.PinballLoss,
            losses.pinball_loss,
            "dense",
            "real",
            ({}, {"tau": 0.1}),
            "mean(max(τ·(y - p), (τ - 1)·(y - p)))",
        ),
        Row(
            "contrastive_loss",
            losses.ContrastiveLoss,
            losses.contrastive_loss,
            "dense",
            "pairs",
            ({}, {"margin": 2.0}),
            "y·p² + (1 - y)·max(m - p, 0)²",
        ),
        Row("hinge", losses.Hinge, losses.hinge, "dense", "sign", ({},), "mean(max(1 - y·p, 0))"),
        Row(
            "squared_hinge", losses.SquaredHinge, losses.squared_hinge, "dense", "sign", ({},), "mean(max(1 - y·p, 0)²)"
        ),
        Row(
            "categorical_hinge",
            losses.CategoricalHinge,
            losses.categorical_hinge,
            "dense",
            "scores",
            ({},),
            "max(max((1 - y)·p) - Σ y·p + 1, 0)",
        ),
        Row("poisson", losses.Poisson, losses.poisson, "dense", "positive", ({},), "mean(p - y·log(p + ε))"),
        Row("kl_divergence", losses.KLDivergence, losses.kl_divergence, "dense", "unit", ({},), "Σ y·log(y / p)"),
        Row(
            "binary_focal_crossentropy",
            losses.BinaryFocalCrossentropy,
            losses.binary_focal_crossentropy,
            "dense",
            "probability",
            _BINARY_FOCAL,
            "mean((1 - p_t)^γ · binary cross-entropy)",
        ),
        Row(
            "sigmoid_focal_crossentropy",
            losses.SigmoidFocalCrossEntropy,
            losses.sigmoid_focal_crossentropy,
            "dense",
            "probability",
            ({}, {"from_logits": True}, {"from_logits": True, "alpha": 0.0, "gamma": 0.0}, {"gamma": 1.5}),
            "Σ α_t·(1 - p_t)^γ · binary cross-entropy",
        ),
        Row(
            "categorical_focal_crossentropy",
            losses.CategoricalFocalCrossentropy,
            losses.categorical_focal_crossentropy,
            "dense",
            "distribution",
            _CATEGORICAL_FOCAL,
            "-Σ α·(1 - q)^γ·y·log q",
        ),
        Row(
            "categorical_generalized_cross_entropy",
            losses.CategoricalGeneralizedCrossEntropy,
            losses.categorical_generalized_cross_entropy,
            "index",
            "index",
            ({}, {"q": 0.7}),
            "(1 - p[y]^q) / q",
        ),
        Row(
            "sparsemax_loss",
            losses.SparsemaxLoss,
            losses.sparsemax_loss,
            "dense",
            "scores",
            ({},),
            "Σ s·(p - s/2) + Σ y·(y/2 - p), s = sparsemax(p)",
        ),
        Row("dice", losses.Dice, losses.dice, "dense", "unit", ({}, {"axis": -1}), "1 - 2·Σ y·p / (Σ y + Σ p + ε)"),
        Row(
            "tversky",
            losses.Tversky,
            losses.tversky,
            "dense",
            "unit",
            ({}, {"alpha": 0.3, "beta": 0.8, "axis": -1}),
            "1 - Σ y·p / (Σ y·p + α·Σ (1 - y)·p + β·Σ y·(1 - p) + ε)",
        ),
    )
}
"""All pointwise and rowwise losses, by identifier."""

_BATCH: tuple[BatchRow, ...] = (
    BatchRow(
        "giou_loss",
        losses.GIoULoss,
        losses.giou_loss,
        ({}, {"mode": "iou"}),
        "1 - I/U + (E - U)/E, of intersection, union and enclosing box",
    ),
    BatchRow(
        "weighted_kappa_loss",
        losses.WeightedKappaLoss,
        None,
        ({"num_classes": 4}, {"num_classes": 3, "weightage": "linear", "epsilon": 0.01}),
        "log(Σ w·p / (Σy ᵀW Σp / B) + ε)",
    ),
    BatchRow(
        "ctc",
        losses.CTC,
        losses.ctc,
        ({}, {"blank": 2}, {"zero_infinity": True}),
        "-log Σ over alignments Π softmax(p)",
    ),
    BatchRow(
        "circle",
        losses.Circle,
        losses.circle,
        ({}, {"gamma": 8.0, "margin": 0.25}, {"remove_diagonal": False}),
        "softplus(logsumexp s_p + logsumexp s_n)",
    ),
    BatchRow(
        "lifted_struct_loss",
        losses.LiftedStructLoss,
        losses.lifted_struct_loss,
        ({}, {"margin": 0.5}),
        "Σ max(J, 0)² / (2·pairs), J_ij = log(Σ exp(m - D_ik) + Σ exp(m - D_jl)) + D_ij",
    ),
    BatchRow(
        "npairs_loss",
        losses.NpairsLoss,
        losses.npairs_loss,
        ({},),
        "mean(-Σ t·log softmax(p)), t = same label / how many",
    ),
    BatchRow(
        "npairs_multilabel_loss",
        losses.NpairsMultilabelLoss,
        losses.npairs_multilabel_loss,
        ({},),
        "mean(-Σ t·log softmax(p)), t ~ labels in common",
    ),
    BatchRow(
        "triplet_hard_loss",
        losses.TripletHardLoss,
        losses.triplet_hard_loss,
        (*_METRICS, {"soft": True}),
        "mean(max(m + farthest positive - nearest negative, 0))",
    ),
    BatchRow(
        "triplet_semihard_loss",
        losses.TripletSemiHardLoss,
        losses.triplet_semihard_loss,
        _METRICS,
        "mean over pairs of max(m + D_ij - next negative, 0)",
    ),
)

BATCH_LOSSES: dict[str, BatchRow] = {row.name: row for row in _BATCH}
"""All others."""
