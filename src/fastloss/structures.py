"""Several arrays as one argument: a list, a tuple or a dict, as a model with several outputs has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def is_structure(value: Any) -> bool:
    """Whether this is several things: a list, tuple or dict."""
    return isinstance(value, (list, tuple, dict))


def keys(structure: Any) -> list[Any]:
    """The keys of a dict, the positions of a list or tuple."""
    return list(structure) if isinstance(structure, dict) else list(range(len(structure)))


def leaves(structure: Any) -> list[Any]:
    """The entries, in order."""
    return [structure[key] for key in keys(structure)]


def entry(structure: Any, key: Any) -> Any:
    """The entry of a key or position; None where there is no structure, or a dict has none."""
    if structure is None:
        return None
    return structure.get(key) if isinstance(structure, dict) else structure[key]


def rebuild(structure: Any, make: Callable[[Any], Any]) -> Any:
    """A structure like this one with ``make(key)`` in each place."""
    values = [make(key) for key in keys(structure)]
    if isinstance(structure, dict):
        return dict(zip(structure, values, strict=True))
    if isinstance(structure, tuple):
        return structure._make(values) if hasattr(structure, "_make") else tuple(values)
    return values


def check_alike(argument: str, value: Any, structure: Any, like: str, *, partial: bool = False) -> None:
    """Refuse a `value` that has not an entry for each of `structure`, the argument `like`.

    With `partial`, a dict may leave keys out.

    Raises
    ------
    TypeError
        If one is a dict and the other is not, or it is no structure.
    ValueError
        If keys or lengths differ.
    """
    if isinstance(structure, dict):
        if not isinstance(value, dict):
            raise TypeError(f"`{argument}` must be a dict, as `{like}` is, got {type(value).__name__}")
        unknown = [key for key in value if key not in structure]
        missing = [] if partial else [key for key in structure if key not in value]
        if unknown or missing:
            raise ValueError(
                f"`{argument}` must have the keys of `{like}`, {list(structure)}, got {list(value)}"
                + (f"; missing: {missing}" if missing else "")
            )
        return
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"`{argument}` must be a list or tuple, as `{like}` is, got {type(value).__name__}")
    if len(value) != len(structure):
        raise ValueError(f"`{argument}` must have an entry for each of `{like}`, {len(structure)}, got {len(value)}")
