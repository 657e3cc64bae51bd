"""Losses as handlers of XLA's foreign-function interface, compiled: no Python runs when XLA calls one.

A handler gets the address of a call frame. Where things lie in it is fixed by version 0.3 of that interface (the header
``xla/ffi/api/c_api.h``, which jaxlib brings), on machines of 64 bits: here everything is read as 64-bit words.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastloss.engine import jit, nopython
from fastloss.engine.variant import Form

API = (0, 3)
"""The version of the interface."""

# Words of a call frame: its first extension, the interface's functions, and the addresses of arguments and results.
_EXTENSION, _API, _ARGS, _RETS = 1, 2, 9, 14
# Of an extension: its type, and the metadata that one of type `_METADATA` asks for, whose version is at a byte offset.
_TYPE, _ASKED, _METADATA, _VERSION = 1, 3, 1, 24
# Of a buffer: the address of its elements and of its dimensions. Of the functions: the one that makes an error.
_DATA, _DIMS, _ERROR = 3, 5, 6
_INVALID_ARGUMENT = 3

_REFUSED = np.frombuffer(
    b"`y_true` must hold class indices, integers from 0 to the number of classes less 1\0", np.uint8
)


@intrinsic
def _pointer(context, address):
    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


@intrinsic
def _call(context, function, argument):
    """Calls the function at an address with one word, and returns one."""

    def build(context, builder, signature, arguments):
        word = ir.IntType(64)
        target = builder.inttoptr(arguments[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(target, [arguments[1]])

    return types.int64(types.int64, types.int64), build


@jit.njit
def _words(address, count):
    return carray(_pointer(address), count, np.int64)


@jit.njit
def _describe(extension):
    """Answers what version this was written for."""
    version = carray(_pointer(_words(extension, 4)[_ASKED] + _VERSION), 2, np.int32)
    version[0], version[1] = API


@cache
def handler(form: Form, y: str, p: str, weight: str | None, gradient: bool) -> Any:
    """A capsule with the handler of a loss, and what must live as long as it.

    Its arguments are targets, predictions and, where they have a dtype, weights; its results the value and, if that is
    asked for, the gradient, all but the value in the predictions' dtype.
    """
    loss = nopython.function(form)
    y_type, p_type = np.dtype(y).type, np.dtype(p).type
    INDEX, GRADIENT, WEIGHTED = form.index, gradient, weight is not None
    w_type = np.dtype(weight or p).type
    message = _REFUSED.ctypes.data

    def run(frame):
        words = _words(frame, 16)
        extension = words[_EXTENSION]
        if extension != 0:
            if _words(extension, 2)[_TYPE] & 0xFFFFFFFF == _METADATA:
                _describe(extension)
                return 0
        args, rets = _words(words[_ARGS], 3), _words(words[_RETS], 2)
        targets, predictions = _words(args[0], 6), _words(args[1], 6)
        dims = _words(predictions[_DIMS], 2)
        rows, columns = dims[0], dims[1]
        p = carray(_pointer(predictions[_DATA]), (rows, columns), p_type)
        if INDEX:
            y = carray(_pointer(targets[_DATA]), (rows,), y_type)
        else:
            y = carray(_pointer(targets[_DATA]), (rows, columns), y_type)
        value = carray(_pointer(_words(rets[0], 6)[_DATA]), 1, p_type)
        weight = carray(_pointer(_words(args[2], 6)[_DATA]), (rows,), w_type) if WEIGHTED else None
        grad = carray(_pointer(_words(rets[1], 6)[_DATA]), (rows, columns), p_type) if GRADIENT else None
        refused = False
        try:
            value[0] = loss(y, p, weight, grad)
        except Exception:
            refused = True
        if refused:
            error = np.array([32, 0, message, _INVALID_ARGUMENT])
            return _call(_words(words[_API], 7)[_ERROR], error.ctypes.data)
        return 0

    compiled = numba.cfunc(types.int64(types.int64))(run)
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return capsule(compiled.address, b"xla._CUSTOM_CALL_TARGET", None), compiled
