"""What the adapters to other libraries have in common: how a library is asked for."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType


def require(framework: str, extra: str, tested: tuple[str, str]) -> ModuleType:
    """Import a library that an adapter is for.

    Parameters
    ----------
    framework : str
        The module.
    extra : str
        The extra of fastloss that installs it.
    tested : tuple of str
        The oldest version that the adapter is tested with, and the first that it is not.

    Raises
    ------
    ImportError
        If it is not installed; the message names the extra.

    Warns
    -----
    UserWarning
        If its version is outside the tested range.
    """
    try:
        module = importlib.import_module(framework)
    except ModuleNotFoundError as error:
        if error.name != framework.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"this adapter needs {framework}: pip install 'fastloss[{extra}]'", name=framework
        ) from None
    version = getattr(module, "__version__", "0")
    if not _numbers(tested[0]) <= _numbers(version) < _numbers(tested[1]):
        warnings.warn(
            f"fastloss is tested with {framework} from {tested[0]} to below {tested[1]}, not with {version}",
            stacklevel=3,
        )
    return module


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
