"""Class weights from the frequencies of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastloss.losses import arrays, options


def class_weight(y: Any, class_weight: Any = "balanced", *, sample_weight: Any = None) -> dict[int, float]:
    """Weights by class, as ``sklearn.utils.compute_class_weight`` computes them, for a loss's ``class_weight``.

    With N labels, K different classes among them and n_c labels of class c, the balanced weight of c is
    ``N / (K * n_c)``: each class then weighs the same in the sum over the batch, and the weights of all labels add up
    to N.

    Parameters
    ----------
    y : array_like of int
        Labels, of any shape; floats that are integers are fine. Of one-hot rows pass ``y.argmax(axis=-1)``.
    class_weight : {"balanced"}, dict or None
        A dict gives some classes a weight and leaves the others 1; None gives all of them 1.
    sample_weight : array_like, optional
        With ``"balanced"``, what each label counts: of `y`'s shape.

    Returns
    -------
    dict
        Class → weight, for each class in `y`, in ascending order.

    Raises
    ------
    TypeError
        If `y` does not hold numbers.
    ValueError
        If `y` is empty or holds a number that is no integer, `class_weight` is none of these or has a class that `y`
        has not while leaving out one that it has, `sample_weight` does not have `y`'s shape, or the labels of a class
        have no weight.

    References
    ----------
    ``sklearn.utils.class_weight.compute_class_weight``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> y = [0, 0, 0, 1]
    >>> weights = fastloss.class_weight(y, "balanced")
    >>> weights
    {0: 0.6666666666666666, 1: 2.0}
    >>> loss = fastloss.losses.BinaryCrossentropy()
    >>> print(loss(np.reshape(y, (4, 1)), np.full((4, 1), 0.5), class_weight=weights).round(6))
    0.693147
    """
    labels = arrays.to_array("y", y)
    if not labels.size:
        raise ValueError("`y` must have at least one label, got none")
    wrong = ~np.isfinite(labels) | (labels != np.floor(labels)) if arrays.is_float(labels) else np.zeros((), bool)
    if wrong.any():
        raise ValueError(f"`y` must hold integers, but has {labels[wrong].ravel()[0]}")
    classes, index = np.unique(labels, return_inverse=True)
    names = [int(c) for c in classes]
    if isinstance(class_weight, Mapping):
        given = {key: options.number(f"class_weight[{key!r}]", weight) for key, weight in class_weight.items()}
        absent, unnamed = [key for key in given if key not in names], [name for name in names if name not in given]
        if absent and unnamed:
            raise ValueError(
                f"`class_weight` has weights of {absent}, which are not in `y`, and none of {unnamed}, which are"
            )
        return {name: given.get(name, 1.0) for name in names}
    if class_weight is None:
        return dict.fromkeys(names, 1.0)
    if not isinstance(class_weight, str) or class_weight != "balanced":
        raise ValueError(f"`class_weight` must be 'balanced', a dict or None, got {class_weight!r}")
    counted = None
    if sample_weight is not None:
        counted = arrays.to_array("sample_weight", sample_weight).astype(np.float64)
        if counted.shape != labels.shape:
            raise ValueError(f"`sample_weight` must have the shape of `y`, {labels.shape}, got shape {counted.shape}")
        counted = counted.ravel()
    sums = np.bincount(index.ravel(), weights=counted, minlength=len(names)).astype(np.float64)
    usable = (sums > 0) & np.isfinite(sums)
    if not usable.all():
        raise ValueError(
            f"the `sample_weight` of class {names[int(np.argmin(usable))]} must add up to a finite number above 0"
        )
    return dict(zip(names, (sums.sum() / (len(names) * sums)).tolist(), strict=True))
