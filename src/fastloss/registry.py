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
    domain : {"real", "probability", "distribution", "index"}
        What targets and predictions may hold: real numbers; targets in [0, 1] and predictions that are probabilities
        (or logits, under ``from_logits=True``); rows of such that are distributions; class indices and such rows.
    variants : tuple of dict
        Constructor arguments worth testing, the defaults first.
    formula : str
        Of a sample's loss, for tables.
    """

    name: str
    cls: type[KernelLoss]
    function: Callable[..., Any]
    labels: Literal["dense", "index"]
    domain: Literal["real", "probability", "distribution", "index"]
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


@dataclass(frozen=True)
class BatchRow:
    """A registered loss that is neither pointwise nor rowwise: of sequences, boxes or whole batches.

    Attributes
    ----------
    name : str
        Identifier, and the name of the function handle.
    cls : type
        The class.
    function : callable
        The function handle.
    variants : tuple of dict
        Constructor arguments worth testing, the defaults first.
    formula : str
        For tables.
    """

    name: str
    cls: type[Loss]
    function: Callable[..., Any]
    variants: tuple[dict[str, Any], ...]
    formula: str


_FROM_LOGITS: tuple[dict[str, Any], ...] = (
    {},
    {"label_smoothing": 0.1},
    {"from_logits": True},
    {"from_logits": True, "label_smoothing": 0.1},
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
    )
}
"""All pointwise and rowwise losses, by identifier."""

_BATCH: tuple[BatchRow, ...] = (
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
