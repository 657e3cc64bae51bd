"""What the adapters of other frameworks share: importing a framework, which may be missing, and finding the loss."""

from __future__ import annotations

import importlib
import re
import warnings
from typing import Any

import numpy as np

from fastloss.losses import arrays
from fastloss.losses.base import Loss

Like = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and dtype of an array that is not there."""

SECOND = (
    "fastloss gives first derivatives: this gradient cannot be differentiated again; use a loss of {framework}'s own "
    "where second derivatives are needed, as for gradient penalties"
)
"""What an attempt to differentiate twice is told."""

TESTED = {
    "jax": ("0.10", "0.11"),
    "keras": ("3.15", "3.16"),
    "lightgbm": ("4.7", "4.8"),
    "sklearn": ("1.9", "1.10"),
    "tensorflow": ("2.21", "2.22"),
    "torch": ("2.13", "2.14"),
    "xgboost": ("3.2", "3.3"),
}
"""Name of a module → the versions that its adapter is tested with: from the first on, and before the second."""


class UntestedVersionWarning(UserWarning):
    """A framework is older or newer than the versions that its adapter has been tested with."""


def framework(name: str, *, extra: str | None = None) -> Any:
    """Import a framework for its adapter.

    Parameters
    ----------
    name : str
        The module to import, a row of `TESTED`.
    extra : str, optional
        The extra of this package that brings it; by default `name`.

    Returns
    -------
    module

    Raises
    ------
    ModuleNotFoundError
        If it is missing, or something that it needs; the message names the extra.

    Warns
    -----
    UntestedVersionWarning
        If its version is outside of the tested range.

    Examples
    --------
    >>> framework("nothing", extra="torch")
    Traceback (most recent call last):
        ...
    ModuleNotFoundError: nothing is not installed: pip install 'fastloss[torch]'
    """
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install 'fastloss[{extra or name}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    version = str(found.__version__)
    low, high = TESTED[name]
    if not _numbers(low) <= _numbers(version) < _numbers(high):
        warnings.warn(
            f"fastloss is tested with {name} from {low} to before {high}, and this is {version}",
            UntestedVersionWarning,
            stacklevel=3,
        )
    return found


def find_loss(identifier: Any, options: dict[str, Any]) -> Loss:
    """The loss that an adapter is given.

    Parameters
    ----------
    identifier : str, dict, type, callable or Loss
        The name of a loss or of its class, a config, a class, a function handle, or a loss.
    options : dict
        The constructor's arguments, for a name, a class or a function handle.

    Returns
    -------
    Loss

    Raises
    ------
    TypeError
        If it is none of these, or options are given for what has its own.
    ValueError
        If there is no such loss, or an option has a value that it cannot have.

    Examples
    --------
    >>> find_loss("huber", {"delta": 2.0}).delta
    2.0
    """
    from fastloss.losses import identifiers

    found = identifiers.class_of(identifiers.find(identifier) if isinstance(identifier, str) else identifier)
    if isinstance(found, type) and issubclass(found, Loss):
        return found(**options)
    if options:
        raise TypeError(f"options are for losses given by name or class, got {', '.join(options)} for {identifier!r}")
    if isinstance(found, dict):
        found = identifiers.deserialize(found)
    if not isinstance(found, Loss):
        raise TypeError(f"`loss` must be a loss of one output, its name, class or config, got {identifier!r}")
    return found


def is_reduced(loss: Loss) -> bool:
    """Whether the value is one number, so that its gradient can be computed before it is known what comes in."""
    return loss.reduction not in ("none", None)


def value_dtype(loss: Loss, y_pred: Any) -> np.dtype[Any]:
    """The dtype of a loss's value, of the predictions' dtype."""
    return arrays.compute_dtypes(loss.dtype, np.empty(0, y_pred))[1]


def value_like(loss: Loss, y_pred: Like, given: dict[str, Like]) -> Like:
    """Shape and dtype of a loss's value, of the predictions' and of those of the other arguments by name."""
    dtype = value_dtype(loss, y_pred[1])
    if is_reduced(loss):
        return (), dtype
    # Each loss has rules of its own for this shape, and takes zeros as targets, predictions and weights.
    zeros: dict[str, Any] = {name: np.zeros(*like) for name, like in given.items()}
    return np.shape(loss(y_pred=np.zeros(*y_pred), **zeros)), dtype


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2.13.0+cpu as (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]
