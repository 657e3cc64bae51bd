"""Losses as functions that nopython code calls: a driver, and what Python's side of a call does otherwise."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import extending, types
from numba.core.errors import TypingError

from fastloss.engine import cache as disk
from fastloss.engine import fingerprint as fingerprints
from fastloss.engine import jit, storage
from fastloss.engine.compile import compiled
from fastloss.engine.variant import FLAT_COLUMNS, SHORT_ROW, UNIT_ELEMENTS, Form, Loops, Variant


@cache
def function(form: Form) -> Any:
    """The function ``(y_true, y_pred, weight, grad) -> value`` of a loss, for Python and for nopython code."""

    def loss(y_true, y_pred, weight, grad):
        """Stands for what `choose` gives."""

    @extending.overload(loss)
    def choose(y_true, y_pred, weight, grad):
        check(form, y_true, y_pred, weight, grad)
        run = _compiled(form, (y_true, y_pred, weight, grad))
        return lambda y_true, y_pred, weight, grad: run(y_true, y_pred, weight, grad)

    @jit.njit(nogil=True)
    def call(y_true, y_pred, weight, grad):
        return loss(y_true, y_pred, weight, grad)

    call.__name__ = form.kernel.name
    call.__doc__ = "Value of the loss; its gradient is written to `grad`. See `fastloss.kernel`."
    return call


def _compiled(form: Form, arguments: tuple[Any, ...]) -> Any:
    """The function for arguments of these types, from the cache on disk or compiled now."""
    fingerprint = fingerprints.of(form.kernel)
    values = [getattr(form, field.name) for field in fields(form) if field.name != "kernel"]
    key = None if fingerprint is None else repr(("nopython", fingerprint, values, arguments))
    result = disk.obtain(form.kernel.name, key, lambda: _compile(form, arguments))
    return _linkable(result, "y_true, y_pred, weight, grad")


def _compile(form: Form, arguments: tuple[Any, ...]) -> Any:
    dispatcher = numba.njit(**jit.DRIVER_FLAGS)(_implementation(form, *arguments))
    dispatcher.compile(arguments)
    return dispatcher.overloads[arguments]


def _linkable(result: Any, names: str) -> Any:
    """A function for nopython code that is this compile result and no other."""
    dispatcher = numba.njit(eval(f"lambda {names}: None"))
    # What Numba does itself with a result that it finds in its own cache.
    dispatcher.targetctx.insert_user_function(result.entry_point, result.fndesc, [result.library])
    dispatcher.add_overload(result)
    dispatcher.disable_compile()
    return dispatcher


_DRIVER = "y, p, weights, grad_weights, mask, g, h, values, params, columns, rows_per_unit, value_scale, grad_scale"


def check(form: Form, y_true: Any, y_pred: Any, weight: Any, grad: Any) -> None:
    """Refuse arguments of types that cannot be taken."""
    pointwise = form.kernel.shape == "pointwise"
    ranks = (1, 2) if pointwise or form.samples == "whole" else (2,)
    _check_array("y_pred", y_pred, (1,) if form.samples == "elements" else ranks, "f")
    _check_array("y_true", y_true, (1,) if form.index else (y_pred.ndim,))
    if not isinstance(weight, types.NoneType):
        _check_array("weight", weight, (1,))
    if not isinstance(grad, types.NoneType):
        _check_array("grad", grad, (y_pred.ndim,), "f")
        if grad.layout != "C" or not grad.mutable:
            raise TypingError(f"`grad` must be C-contiguous and writable, got {grad}")


def _check_array(name: str, kind: Any, ranks: tuple[int, ...], wanted: str = "fiub") -> None:
    if not isinstance(kind, types.Array) or kind.ndim not in ranks:
        raise TypingError(f"`{name}` must be an array of {' or '.join(map(str, ranks))} dimensions, got {kind}")
    if _name(kind) not in storage.CODES or np.dtype(_name(kind)).kind not in wanted or not kind.aligned:
        raise TypingError(f"`{name}` must hold {'floats' if wanted == 'f' else 'real numbers'}, got {kind}")


def _name(array: types.Array) -> str:
    """The name of the NumPy dtype, of those that Numba computes with."""
    name = str(array.dtype)
    return {"bool": "bool", "boolean": "bool", "float16": "no float16"}.get(name, name)


@jit.njit
def overlap(a, b):
    """Whether two C-contiguous arrays share memory."""
    return a.ctypes.data < b.ctypes.data + b.nbytes and b.ctypes.data < a.ctypes.data + a.nbytes


def _implementation(form: Form, y_true: Any, y_pred: Any, weight: Any, grad: Any) -> Any:
    """The function in Python, for arguments of these types of Numba's."""
    WEIGHTED, GRADIENT = isinstance(weight, types.Array), isinstance(grad, types.Array)
    MASKED, INDEX, WHOLE, MEAN = form.ignored is not None, form.index, form.samples == "whole", form.mean
    POINTWISE = form.kernel.shape == "pointwise"
    FLAT = POINTWISE and not WEIGHTED and not MASKED
    SHORT = POINTWISE and not FLAT
    BY_WEIGHT, SUM = form.divisor == "weights" and WEIGHTED, form.divisor == "one"
    dtype = np.dtype(form.dtype)
    y_code = storage.CODES[_name(y_true)]
    VIEWED = storage.is_viewed(y_code)

    def driver(loops: Loops) -> Any:
        variant = Variant(
            form.kernel,
            dtype.str[1:],
            y_code,
            storage.CODES[_name(y_pred)],
            storage.CODES[_name(grad)] if GRADIENT else dtype.str[1:],
            1 if GRADIENT else 0,
            weighted=WEIGHTED,
            masked=MASKED,
            index=INDEX,
            smooth=form.smooth,
            form=loops,
        )
        return _linkable(compiled(variant).result, _DRIVER)

    rows_driver = driver("rows")
    short_driver = driver("elements" if y_pred.ndim == 1 and not WHOLE else "cells") if SHORT else rows_driver
    compute, ignored, constants = dtype.type, form.ignored, tuple(dtype.type(x) for x in form.params)

    def run(y_true, y_pred, weight, grad) -> Any:
        p = np.ascontiguousarray(y_pred)
        y = np.ascontiguousarray(y_true)
        if VIEWED:
            y = y.view(np.uint8)
        rows = 1 if WHOLE else y_pred.shape[0]
        columns = p.size // rows if rows > 0 else 1
        if INDEX:
            if y.size != rows:
                raise ValueError("`y_true` must have one class index a sample")
            labels = y
        else:
            if y_true.shape != y_pred.shape:
                raise ValueError("`y_true` must have the shape of `y_pred`")
            labels = y.reshape((rows, columns))
        g: Any = None
        if GRADIENT:
            if grad.shape != y_pred.shape:
                raise ValueError("`grad` must have the shape of `y_pred`")
            if overlap(grad, p) or overlap(grad, y):
                raise ValueError("`grad` must not overlap `y_pred` or `y_true`")
            g = grad.reshape((rows, columns))
        w: Any = None
        if WEIGHTED:
            if weight.size != rows:
                raise ValueError("`weight` must have one number a sample")
            w = np.ascontiguousarray(weight).astype(compute)
        if p.size == 0:
            return np.nan if MEAN and rows > 0 else 0.0
        counted = float(rows)
        mask: Any = None
        if MASKED:
            mask = (y != ignored).view(np.uint8)
            counted = float(mask.sum())
        if BY_WEIGHT:
            counted = 0.0
            for i in range(rows):
                if MASKED:
                    if mask[i] == 0:
                        continue
                counted += w[i]
        if SUM:
            counted = 1.0
        if counted == 0.0:
            if GRADIENT:
                g[:] = 0
            return 0.0
        scale = 1.0 / counted
        if MEAN:
            scale /= columns
        params = np.array(constants)
        if not POINTWISE:
            params[0] /= compute(columns)  # label smoothing is shared out among the classes
        length = FLAT_COLUMNS if FLAT else columns
        per_unit = max(1, UNIT_ELEMENTS // length)
        matrix = p.reshape((rows, columns))
        if SHORT and columns <= SHORT_ROW:
            value, bad = short_driver(labels, matrix, w, w, mask, g, None, None, params, length, per_unit, scale, scale)
        else:
            value, bad = rows_driver(labels, matrix, w, w, mask, g, None, None, params, length, per_unit, scale, scale)
        if bad >= 0:
            raise ValueError("`y_true` must hold class indices, integers from 0 to the number of classes less 1")
        return value

    return run
