"""Losses as scorers of scikit-learn (the extra ``sklearn``)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fastloss import adapters
from fastloss.losses.arrays import Array
from fastloss.losses.base import KernelLoss, Loss
from fastloss.registry import OF_ROWS, domain

__all__ = ["LossScorer", "scorer"]

_METHODS = ("predict", "predict_proba", "decision_function")


class LossScorer:
    """A scorer, ``score(estimator, X, y, sample_weight=None)``; `scorer` makes it.

    Attributes
    ----------
    loss : Loss
        The loss, with the reduction ``"mean_with_sample_weight"``.
    response_method : str or None
        As given.
    """

    def __init__(self, loss: Loss, response_method: str | None) -> None:
        from sklearn.utils.metadata_routing import MetadataRequest

        if response_method not in (None, *_METHODS):
            raise ValueError(f"`response_method` must be one of {', '.join(_METHODS)} or None, got {response_method!r}")
        self.loss = copy.copy(loss)
        self.loss._reduction = "mean_with_sample_weight"
        self.response_method = response_method
        self._request = MetadataRequest(owner=self)
        self._request.score.add_request(param="sample_weight", alias=None)

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Score an estimator.

        Parameters
        ----------
        estimator : object
            A fitted classifier or regressor.
        X : array_like
            Samples.
        y : array_like
            Their targets; of a classifier the labels it was fitted with.
        sample_weight : array_like, shape (samples,), optional
            Weights.

        Returns
        -------
        float
            The weighted mean of the samples' losses, with a minus: greater is better.

        Raises
        ------
        AttributeError
            If the estimator does not have the response method.
        ValueError
            If the classifier does not know a label, or shapes do not fit.
        """
        from sklearn.base import is_classifier

        classifies = is_classifier(estimator)
        method = self.response_method or (self._of_classifiers() if classifies else "predict")
        respond = getattr(estimator, method, None)
        if respond is None:
            raise AttributeError(
                f"{type(estimator).__name__} has no {method!r}, which {type(self.loss).__name__} needs; "
                "pass another `response_method`"
            )
        p, targets = np.asarray(respond(X)), np.asarray(y)
        if classifies and method != "predict" and targets.ndim == 1:
            targets, p = self._classes(estimator.classes_, targets, p)
        if p.ndim == 1 and isinstance(self.loss, KernelLoss):  # samples of one element, not one sample
            p = p[:, None]
            targets = targets.reshape(p.shape) if targets.size == p.size else targets
        weight = None if sample_weight is None else np.asarray(sample_weight)
        return -float(self.loss(targets, p, weight))

    def _of_classifiers(self) -> str:
        """What a classifier is asked for, if nobody says."""
        if self.loss.get_config().get("from_logits") or domain(self.loss) in ("sign", "scores"):
            return "decision_function"
        return "predict_proba"

    def _classes(self, classes: Array, labels: Array, p: Array) -> tuple[Array, Array]:
        """Labels and response as the loss takes them: class numbers, or one-hot rows, or 0 and 1 beside one column."""
        place = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
        unknown = classes[place] != labels
        if unknown.any():
            raise ValueError(f"`y` has the label {labels[np.argmax(unknown)]!r}, which the classifier does not know")
        of_rows = domain(self.loss) in OF_ROWS
        if of_rows and p.ndim == 1:  # one score of the second class: the softmax of 0 and it is the sigmoid
            p = np.column_stack([np.zeros_like(p), p])
        elif not of_rows and p.ndim == 2 and len(classes) == 2:
            p = p[:, 1]
        if p.ndim == 1 or domain(self.loss) == "index":
            return place, p
        return (place[:, None] == np.arange(len(classes))).astype(p.dtype), p

    def set_score_request(self, *, sample_weight: bool | str | None) -> LossScorer:
        """Say whether metadata routing is to pass sample weights to this scorer.

        Parameters
        ----------
        sample_weight : bool, str or None
            True for yes, False for no, a name to take what is passed under it, None for an error where it is passed.

        Returns
        -------
        LossScorer
            Itself.
        """
        self._request.score.add_request(param="sample_weight", alias=sample_weight)
        return self

    def get_metadata_routing(self) -> Any:
        """What metadata this scorer asks for; scikit-learn calls it."""
        return self._request

    def __repr__(self) -> str:
        return f"scorer({self.loss!r}, response_method={self.response_method!r})"


def scorer(loss: str | Loss, *, response_method: str | None = None, **options: Any) -> LossScorer:
    """Make a scorer of a loss, for ``cross_val_score``, ``GridSearchCV`` and whatever else takes ``scoring=``.

    Parameters
    ----------
    loss : str or Loss
        The identifier of a loss, the name of its class, or a loss. Its reduction does not matter: the score is the
        weighted mean.
    response_method : {"predict", "predict_proba", "decision_function"}, optional
        What the estimator is asked for. By default ``"predict"``, but of classifiers ``"decision_function"`` where the
        loss is one of logits or margins, else ``"predict_proba"``.
    **options
        The loss's own, such as ``delta=2.0``. Only where `loss` is a name.

    Returns
    -------
    LossScorer
        Greater is better: it returns the loss with a minus. With metadata routing enabled, sample weights reach it
        after ``set_score_request(sample_weight=True)``.

    Raises
    ------
    ImportError
        If scikit-learn is missing: ``pip install 'fastloss[sklearn]'``.
    TypeError, ValueError
        If there is no such loss, or an argument is none of it.

    Warns
    -----
    UserWarning
        If scikit-learn's version is not one that was tested.

    Notes
    -----
    Labels of a classifier may be anything, strings too: they become what the loss takes, class numbers or rows of 0
    and 1. Of two classes a loss of single elements sees the second's probability or score, with 0 and 1 as its targets.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import cross_val_score
    >>> import fastloss.sklearn
    >>> X, y = load_diabetes(return_X_y=True)
    >>> scores = cross_val_score(Ridge(), X, y, scoring=fastloss.sklearn.scorer("huber", delta=20.0), cv=3)
    >>> print(scores.round(1))
    [-794.7 -865.9 -763.9]
    """
    adapters.framework("sklearn")
    return LossScorer(adapters.find_loss(loss, options), response_method)
