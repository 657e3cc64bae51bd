"""What a kernel's machine code depends on, as text: the part of its disk cache's key that tells two kernels apart.

The package's own kernels are told apart by name, and their sources are part of the cache's environment. A kernel that
was generated brings its source. Of one that a user wrote, the factory is read as compilation will see it: bytecode,
constants, defaults, closure, the globals it names, and the same of every function reached that way. Where something is
reached whose content cannot be read, there is no fingerprint, and the kernel is not kept on disk.
"""

from __future__ import annotations

import builtins
import dis
import hashlib
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from fastloss.kernels import definition
from fastloss.kernels.definition import Kernel, RowFunctions

_SCALARS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_MODULES = (math, np)
_OWN_KERNELS = definition.__name__.rpartition(".")[0]


class _UnreadableError(Exception):
    """Something that compiled code may depend on has no content that can be read."""


def of(kernel: Kernel) -> str | None:
    """The fingerprint of a kernel, or None if its content cannot be read as a whole."""
    content = kernel.source
    if content is None and kernel.factory.__module__.rpartition(".")[0] == _OWN_KERNELS:
        content = ""
    if content is None:
        try:
            content = hashlib.sha256("\n".join(_read(kernel.factory, {})).encode()).hexdigest()
        except _UnreadableError:
            return None
    told = [getattr(kernel, field.name) for field in fields(kernel) if field.name not in ("factory", "source")]
    return repr((*told, content))


def _read(item: Any, seen: dict[int, int]) -> Iterable[str]:
    """Everything in `item`, depth first; `seen` numbers what may be reached twice, or from itself."""
    if isinstance(item, _SCALARS):
        yield f"{type(item).__name__} {item!r}"
    elif isinstance(item, np.dtype) or (
        isinstance(item, type) and (item.__module__ == "builtins" or issubclass(item, np.generic))
    ):
        yield f"type {item!r}"
    elif isinstance(item, np.generic) or (isinstance(item, np.ndarray) and not item.dtype.hasobject):
        yield f"array {item.dtype.str} {item.shape} {hashlib.sha256(item.tobytes()).hexdigest()}"
    elif isinstance(item, (tuple, frozenset)):
        yield f"{type(item).__name__} {len(item)}"
        for member in item if isinstance(item, tuple) else sorted(item, key=repr):
            yield from _read(member, seen)
    elif any(item is module for module in _MODULES) or (
        isinstance(item, types.ModuleType) and item.__name__.partition(".")[0] == __name__.partition(".")[0]
    ):
        yield f"module {item.__name__}"
    elif isinstance(item, (types.BuiltinFunctionType, np.ufunc)) or item is RowFunctions:
        yield f"{getattr(item, '__module__', '')} {item.__name__}"
    elif id(item) in seen:
        yield f"again {seen[id(item)]}"
    elif isinstance(item, types.FunctionType):
        seen[id(item)] = len(seen)
        yield from _read_function(item, seen)
    elif isinstance(getattr(item, "py_func", None), types.FunctionType) and isinstance(
        getattr(item, "targetoptions", None), Mapping
    ):  # a function that Numba compiles
        seen[id(item)] = len(seen)
        yield f"compiled {sorted(item.targetoptions.items(), key=str)!r}"
        yield from _read_function(item.py_func, seen)
    else:
        raise _UnreadableError(item)


def _read_function(function: types.FunctionType, seen: dict[int, int]) -> Iterable[str]:
    code = function.__code__
    yield from _read_code(code, seen)
    yield from _read(function.__defaults__, seen)
    yield from _read(tuple(sorted((function.__kwdefaults__ or {}).items())), seen)
    for name in sorted(set(_globals(code))):
        scope = function.__globals__ if name in function.__globals__ else vars(builtins)
        if name not in scope:
            raise _UnreadableError(name)
        yield f"global {name}"
        yield from _read(scope[name], seen)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield f"closure {name}"
        try:
            content = cell.cell_contents
        except ValueError:
            raise _UnreadableError(name) from None
        yield from _read(content, seen)


def _read_code(code: types.CodeType, seen: dict[int, int]) -> Iterable[str]:
    yield f"code {code.co_code.hex()} {code.co_argcount} {code.co_kwonlyargcount} {code.co_flags}"
    yield f"names {code.co_names} {code.co_varnames} {code.co_freevars} {code.co_cellvars}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _read_code(constant, seen)
        else:
            yield from _read(constant, seen)


def _globals(code: types.CodeType) -> Iterable[str]:
    """The names that `code`, and functions defined in it, look up outside themselves."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "IMPORT_NAME"):
            if instruction.opname != "LOAD_GLOBAL":
                raise _UnreadableError(instruction.opname)
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)
