"""What the adapters of other frameworks share: importing a framework, which may be missing, and finding the loss."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import warnings
from typing import Any

from fastloss.losses.base import Loss

TESTED = {
    "jax": ("0.6", "0.11"),
    "keras": ("3.12", "3.16"),
    "torch": ("2.6", "2.14"),
}
"""Name of a distribution → the versions that its adapter is tested with: from the first on, and before the second."""


class UntestedVersionWarning(UserWarning):
    """A framework is older or newer than the versions that its adapter has been tested with."""


def framework(name: str, *, extra: str | None = None, module: str | None = None) -> Any:
    """Import a framework for its adapter.

    Parameters
    ----------
    name : str
        Name of its distribution, a row of `TESTED`.
    extra : str, optional
        The extra of this package that brings it; by default `name`.
    module : str, optional
        The module to import; by default `name`.

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
        found = importlib.import_module(module or name)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install 'fastloss[{extra or name}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    version = importlib.metadata.version(name)
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
    from fastloss.registry import BATCH_LOSSES, LOSSES

    found = identifiers.find(identifier) if isinstance(identifier, str) else identifier
    row: Any
    for row in (*LOSSES.values(), *BATCH_LOSSES.values()):
        if found is not None and found is row.function:
            found = row.cls
    if isinstance(found, type) and issubclass(found, Loss):
        return found(**options)
    if options:
        raise TypeError(f"options are for losses given by name or class, got {', '.join(options)} for {identifier!r}")
    if isinstance(found, dict):
        found = identifiers.deserialize(found)
    if not isinstance(found, Loss):
        raise TypeError(f"`loss` must be a loss of one output, its name, class or config, got {identifier!r}")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2.13.0+cpu as (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]
