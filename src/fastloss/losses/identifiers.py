"""Losses by name, and as configs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from fastloss.losses.base import Loss

ALIASES = {
    "bce": "binary_crossentropy",
    "BCE": "binary_crossentropy",
    "mse": "mean_squared_error",
    "MSE": "mean_squared_error",
    "mae": "mean_absolute_error",
    "MAE": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "MAPE": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error",
    "MSLE": "mean_squared_logarithmic_error",
    "kld": "kl_divergence",
    "KLD": "kl_divergence",
    "kullback_leibler_divergence": "kl_divergence",
    "logcosh": "log_cosh",
}
"""Other names of functions, as in Keras."""

_classes: dict[str, type[Loss]] = {}
_composed: dict[str, type[Any]] = {}
_functions: dict[str, Callable[..., Any]] = {}


def register(*objects: type[Any] | Callable[..., Any]) -> None:
    """Make classes, also such as are composed of losses, and function handles known by their names."""
    for item in objects:
        if isinstance(item, type):
            known: dict[str, type[Any]] = _classes if issubclass(item, Loss) else _composed
            known[item.__name__] = item
        else:
            _functions[item.__name__] = item


def get(identifier: Any) -> Any:
    """Find a loss by its identifier.

    Parameters
    ----------
    identifier : str, dict, callable or None
        The name of a class (gives an instance with default arguments) or of a function (gives the function); a dict
        ``{"class_name": ..., "config": {...}}``; a loss or another callable, which is returned as it is; None.

    Returns
    -------
    Loss, callable or None

    Raises
    ------
    ValueError
        If there is no such loss; the message names similar ones.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.get("mse") is fastloss.losses.mean_squared_error
    True
    >>> fastloss.losses.get({"class_name": "Huber", "config": {"delta": 2.0}}).delta
    2.0
    """
    if identifier is None:
        return None
    if isinstance(identifier, (dict, str)):
        return deserialize(identifier)
    found = identifier() if inspect.isclass(identifier) else identifier
    if callable(found):
        return found
    raise ValueError(f"Could not interpret loss identifier: {identifier!r}")


def serialize(loss: Any) -> Any:
    """Turn a loss into what `deserialize` takes.

    Parameters
    ----------
    loss : Loss or callable
        A loss, a `Weighted`, or one of the function handles.

    Returns
    -------
    dict or str
        ``{"class_name": ..., "config": ...}`` of a loss, the name of a function.

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.serialize(fastloss.losses.Huber(delta=2.0))["config"]["delta"]
    2.0
    """
    if isinstance(loss, Loss) or type(loss) in _composed.values():
        return {"class_name": type(loss).__name__, "config": loss.get_config()}
    name = getattr(loss, "__name__", None)
    if name in _functions and _functions[name] is loss:
        return name
    raise ValueError(f"Could not interpret loss identifier: {loss!r}; expected a Loss or a function of fastloss.losses")


def deserialize(config: Any, custom_objects: dict[str, Any] | None = None) -> Any:
    """Make a loss from what `serialize` gave.

    Parameters
    ----------
    config : dict or str
        A class's name and config, or a name. What ``keras.losses.serialize`` gives is taken too, of functions as well,
        where the names agree.
    custom_objects : dict, optional
        More classes and functions by name.

    Returns
    -------
    Loss or callable

    Raises
    ------
    ValueError
        If there is no such loss, or `config` is not of this form.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.losses.deserialize({"class_name": "Huber", "config": {"delta": 2.0}}).delta
    2.0
    """
    custom = custom_objects or {}
    found: Any
    if isinstance(config, str):
        found = custom[config] if config in custom else find(config)
        return found() if inspect.isclass(found) else found
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ValueError(
            f"Could not interpret loss identifier: {config!r}; expected a dict with `class_name` and `config`"
        )
    name, arguments = config["class_name"], config.get("config", {})
    if name == "function" and isinstance(arguments, str):  # Keras's form of a function
        name, arguments = arguments, {}
    # TensorFlow Addons writes the name with its package: Addons>GIoULoss.
    found = custom[name] if name in custom else find(name.rpartition(">")[2])
    if not isinstance(arguments, dict):
        raise ValueError(
            f"Could not interpret loss identifier: the `config` of {name!r} must be a dict, got {arguments!r}"
        )
    if inspect.isclass(found):
        make = getattr(found, "from_config", None)
        if make is None:
            return found(**arguments)
        nested = "custom_objects" in inspect.signature(make).parameters  # a loss of losses
        return make(arguments, custom_objects=custom) if nested else make(arguments)
    if arguments:
        raise ValueError(
            f"Could not interpret loss identifier: {name!r} is a function, and takes no config, got {arguments!r}"
        )
    return found


def instance(identifier: Any) -> Loss:
    """A loss that reduces, of whatever `get` takes: of a function handle, an instance of its class.

    Raises
    ------
    TypeError
        If it is something else that can be called.
    ValueError
        If there is no such loss.
    """
    found = class_of(find(identifier) if isinstance(identifier, str) else get(identifier))
    if inspect.isclass(found):
        found = found()
    if not isinstance(found, Loss):
        raise TypeError(f"must be a Loss or the name of one, got {identifier!r}")
    return found


def class_of(found: Any) -> Any:
    """The class of a function handle; anything else as it is."""
    from fastloss.registry import BATCH_LOSSES, LOSSES

    rows: list[Any] = [*LOSSES.values(), *BATCH_LOSSES.values()]
    return next((row.cls for row in rows if found is row.function and found is not None), found)


def find(name: str) -> Any:
    """The class or function handle of that name."""
    known = {**_functions, **_classes, **_composed}
    found = known.get(ALIASES.get(name, name))
    if found is None:
        aliases = [alias for alias, target in ALIASES.items() if target in known]
        near = difflib.get_close_matches(name, [*known, *aliases], n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; known are {', '.join(sorted(known))}"
        raise ValueError(f"Could not interpret loss identifier: {name!r}{hint}")
    return found
