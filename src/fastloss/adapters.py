"""What the adapters of other frameworks share: importing a framework that may be missing, or of another version."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import warnings
from typing import Any

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


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2.13.0+cpu as (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]
