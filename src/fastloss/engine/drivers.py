"""The loops. The only place with ``range`` and ``prange`` over data.

Every kernel is run by the one function that `build` returns, compiled twice from the same source: with ``prange`` as
``range`` for one thread, and as a parallel loop. Its anatomy, from the outside in:

``drive``
    Cuts the data into *units* of rows, runs them, adds their totals in order. A unit never depends on the thread that
    runs it, nor their number on how many threads there are, so serial and parallel results have the same bits.
``unit``
    Some rows: applies mask and weights, writes the per-sample values. Its form is that of the variant: `_rows` goes row
    by row, its vector loop along the row. Where rows are short, one vector loop goes over many of them: `_cells` (or
    `_elements`, if a row has one element) for pointwise losses, `_columns` for rowwise ones.
``row``
    One row to its sum, writing gradient and Hessian on the way: `_pointwise_row` or `_rowwise_row`.

A few long rows (Dice over a whole batch is one) leave nothing to divide that way; where nothing but sums precedes the
slope, `_long_rows` divides the rows themselves.

Sums are taken in the compute dtype over at most `CHUNK` elements, spread over the vector lanes, and in float64 from
there, so a float32 loss over 10⁸ elements is right to float32.

A pointwise loss reduced to a scalar without weights needs no rows: the data is then one flat run, cut every
`FLAT_COLUMNS` elements as if those were rows.

A loop that writes an array it also reads must name it once: `jit.vector_loop` promises LLVM that arguments do not
overlap.

`Variant` says which parts exist. Its flags are constants of the closure, so Numba prunes what is not needed before it
infers types, and arguments that no remaining code uses are passed as None (which costs nothing to unbox).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from fastloss.engine import access, jit, storage
from fastloss.engine.toolbox import toolbox
from fastloss.engine.transpose import turner
from fastloss.engine.variant import CELLS, CHUNK, LANES, SHORT_ROW, TILE, UNIT_ELEMENTS, Variant


def build(variant: Variant) -> Callable[..., Any]:
    """The Python source of `variant`'s driver, closed over its compiled parts; not yet compiled itself.

    It takes ``(y, p, weights, grad_weights, mask, g, h, values, params, columns, rows_per_unit, value_scale,
    grad_scale)`` and returns ``(total · value_scale, bad)``, where ``bad`` is the row of the first label that is no
    class, or -1. If there is one, nothing has been written.
    """
    xp = toolbox(np.dtype(variant.dtype))
    if variant.form == "long":
        return _long_rows(variant, xp)
    unit = {"rows": _rows, "elements": _elements, "cells": _cells, "columns": _columns}[variant.form](variant, xp)
    first_bad, odd = _first_bad(variant), _odd_labels(variant, xp)
    GRADIENT, HESSIAN = variant.outputs >= 1, variant.outputs >= 2
    INDEX, IN_PLACE, BINARY = variant.index, variant.in_place, variant.kernel.binary_labels

    def drive(y, p, weights, grad_weights, mask, g, h, values, params, columns, rows_per_unit, value_scale, grad_scale):
        p_flat = p.ravel()
        n = p_flat.size
        if INDEX:
            y_flat = y
            bad = first_bad(y, mask, columns)
            if bad >= 0:
                return 0.0, bad
        else:
            y_flat = y.ravel()
        g_flat = p_flat
        if GRADIENT:
            if not IN_PLACE:
                g_flat = g.ravel()
        h_flat = g_flat
        if HESSIAN:
            h_flat = h.ravel()
        rows = (n + columns - 1) // columns
        units = (rows + rows_per_unit - 1) // rows_per_unit
        if BINARY:
            size = columns * rows_per_unit
            others = np.empty(units, np.int64)
            for u in prange(units):
                others[u] = odd(y_flat, u * size, min(n, (u + 1) * size))
            params = params.copy()
            if others.sum() == 0:
                params[0], params[1] = 2, -1
        totals = np.empty(units, np.float64)
        for u in prange(units):
            totals[u] = unit(
                u * rows_per_unit,
                min(rows, (u + 1) * rows_per_unit),
                columns,
                n,
                y_flat,
                p_flat,
                weights,
                grad_weights,
                mask,
                g_flat,
                h_flat,
                values,
                params,
                value_scale,
                grad_scale,
            )
        total = 0.0
        for u in range(units):
            total += totals[u]
        return total * value_scale, -1

    return drive


def _long_rows(variant: Variant, xp: Any) -> Callable[..., Any]:
    """The driver for a few long rows of losses without a pivot: each row's sums and its slope are cut into pieces."""
    compute = xp.type
    GRADIENT, IN_PLACE = variant.outputs >= 1, variant.in_place
    WEIGHTED, MASKED, VALUES = variant.weighted, variant.masked, variant.values
    zero = xp.const(0.0)
    _, collect, finish, spread, own = _rowwise_row(variant, xp)
    clear, settle = _clear(variant), _settle(variant)

    def drive(y, p, weights, grad_weights, mask, g, h, values, params, columns, rows_per_unit, value_scale, grad_scale):
        p_flat = p.ravel()
        y_flat = y.ravel()
        g_flat = p_flat
        if GRADIENT:
            if not IN_PLACE:
                g_flat = g.ravel()
        pieces = (columns + UNIT_ELEMENTS - 1) // UNIT_ELEMENTS
        sums = np.empty((pieces, 3), np.float64)
        total = 0.0
        for r in range(p_flat.size // columns):
            start = r * columns
            stop = start + columns
            if MASKED:
                if mask[r] == 0:
                    clear(g_flat, g_flat, start, stop)
                    if VALUES:
                        values[r] = 0
                    continue
            for k in prange(pieces):
                low = start + k * UNIT_ELEMENTS
                high = min(low + UNIT_ELEMENTS, stop)
                sums[k, 0], sums[k, 1], sums[k, 2] = collect(
                    y_flat, p_flat, g_flat, g_flat, g_flat, start, low, high, zero, params
                )
            a, b, c = 0.0, 0.0, 0.0
            for k in range(pieces):
                a += sums[k, 0]
                b += sums[k, 1]
                c += sums[k, 2]
            loss, u, v = finish(zero, compute(a), compute(b), compute(c), *own(params, 0))
            if GRADIENT:
                scale = grad_scale
                if WEIGHTED:
                    scale = scale * grad_weights[r]
                for k in prange(pieces):
                    low = start + k * UNIT_ELEMENTS
                    high = min(low + UNIT_ELEMENTS, stop)
                    spread(y_flat, p_flat, g_flat, g_flat, g_flat, g_flat, low, high, u, v, compute(scale), params)
            total += settle(np.float64(loss), r, weights, values, value_scale)
        return total * value_scale, -1

    return drive


def _rows(variant: Variant, xp: Any) -> Callable[..., Any]:
    """A unit's rows one after the other."""
    compute = xp.type
    row = _pointwise_row(variant, xp) if variant.kernel.shape == "pointwise" else _rowwise_row(variant, xp)[0]
    WEIGHTED, MASKED, VALUES = variant.weighted, variant.masked, variant.values
    clear, settle = _clear(variant), _settle(variant)
    rowwise = variant.kernel.shape == "rowwise"
    functions = variant.kernel.factory(xp) if rowwise else None
    AGAIN = functions is not None and functions.regather is not None
    SCRATCH = functions is not None and (
        (functions.keeps == "gathered" and not _in_gradient(variant) and (variant.outputs >= 1 or AGAIN))
        or functions.pivot == "simplex"
    )
    MORE = AGAIN and variant.outputs >= 1

    @jit.inner_loop
    def unit(first, last, columns, n, y, p, weights, grad_weights, mask, g, h, values, params, value_scale, grad_scale):
        total = 0.0
        kept = g
        if SCRATCH:
            kept = np.empty(columns, compute)
        more = kept
        if MORE:
            more = np.empty(columns, compute)
        for r in range(first, last):
            start = r * columns
            stop = min(start + columns, n)
            if MASKED:
                if mask[r] == 0:
                    clear(g, h, start, stop)
                    if VALUES:
                        values[r] = 0
                    continue
            scale = grad_scale
            if WEIGHTED:
                scale = scale * grad_weights[r]
            loss = row(y, p, g, h, kept, more, r, start, stop, compute(scale), params)
            total += settle(loss, r, weights, values, value_scale)
        return total

    return unit


def _in_gradient(variant: Variant) -> bool:
    """Whether what is gathered waits in the gradient's memory; if that has another dtype, in a row of scratch."""
    return variant.outputs >= 1 and variant.g == variant.dtype


def _clear(variant: Variant) -> Callable[..., Any]:
    """Zero gradients for a masked row."""
    GRADIENT, HESSIAN = variant.outputs >= 1, variant.outputs >= 2

    @jit.vector_loop
    def clear(g, h, start, stop):
        if GRADIENT:
            for i in range(start, stop):
                g[i] = 0
        if HESSIAN:
            for i in range(start, stop):
                h[i] = 0

    return clear


def _settle(variant: Variant) -> Callable[..., Any]:
    """``settle(loss, r, weights, values, value_scale)``: weigh the loss of row r; write it if values are asked for."""
    WEIGHTED, VALUES = variant.weighted, variant.values

    @jit.scalar
    def settle(loss, r, weights, values, value_scale):
        if WEIGHTED:
            loss = loss * weights[np.uintp(r)]
        if VALUES:
            values[np.uintp(r)] = loss * value_scale
        return loss

    return settle


def _pointwise_row(variant: Variant, xp: Any) -> Callable[..., Any]:
    """A row of a pointwise loss: the sum of its elements' losses.

    The gradient goes through the caches. Non-temporal stores by way of a chunk in the first-level cache were measured
    at gradients of 12 to 260 MB: squared error gains 6-20 %, other losses without function calls -12 to 10 %, those
    with any lose 8-19 %; with an optimiser that reads the gradient afterwards, squared error gains 2-13 %.
    """
    GRADIENT, HESSIAN, IN_PLACE = variant.outputs >= 1, variant.outputs >= 2, variant.in_place
    zero = xp.const(0.0)
    terms, own = xp.jit(variant.kernel.factory(xp)), _own(variant, xp)
    load_y, load_p, store = xp.load(variant.y), xp.load(variant.p), xp.store(variant.g)
    touch = _touch(variant)

    @jit.vector_loop
    def chunk(y, p, g, h, first, start, stop, scale, params):
        total = zero
        for i in range(start, stop):
            loss, slope, curvature = terms(load_y(y, i), load_p(p, i), *own(params, i - first))
            total += loss
            if GRADIENT:
                if IN_PLACE:
                    store(p, i, slope * scale)
                else:
                    store(g, i, slope * scale)
            if HESSIAN:
                store(h, i, curvature * scale)
        return total

    @jit.inner_loop
    def row(y, p, g, h, kept, more, r, start, stop, scale, params):
        total = 0.0
        for i in range(start, stop, CHUNK):
            end = min(i + CHUNK, stop)
            touch(y, p, g, h, i, end)
            total += chunk(y, p, g, h, start, i, end, scale, params)
        return total

    return row


def _touch(variant: Variant) -> Callable[..., Any]:
    """Help the processor over the page borders of every array of elements."""
    GRADIENT = variant.outputs >= 1 and not variant.in_place
    HESSIAN = variant.outputs >= 2
    DENSE = not variant.index

    @jit.inner_loop
    def touch(y, p, g, h, start, stop):
        access.touch_ahead(p, start, stop)
        if DENSE:
            access.touch_ahead(y, start, stop)
        if GRADIENT:
            access.touch_ahead(g, start, stop)
        if HESSIAN:
            access.touch_ahead(h, start, stop)

    return touch


def _own(variant: Variant, xp: Any) -> Callable[..., Any]:
    """``own(params, column)``: the kernel's parameters as a tuple; reading them from an array hoists out of a loop."""
    kernel = variant.kernel
    first = 0 if kernel.shape == "pointwise" else 2
    count = len(kernel.params)
    names = "".join(f"params[{first + k}], " for k in range(count))
    if variant.vector:  # the first is a vector; the others follow it, and one number more
        last = "".join(f"params[params.size - {count + 1 - k}], " for k in range(1, count))
        names = f"params[np.uintp(column)], {last}"
    return xp.jit(eval(f"lambda params, column: ({names})", {"np": np}))  # type: ignore[no-any-return]


def _elements(variant: Variant, xp: Any) -> Callable[..., Any]:
    """A unit of rows of one element of a pointwise loss: mask, weights and values are part of the vector loop.

    As `_cells`, which does something for each row besides, MSE of (2²⁰, 1) with weights takes 2.8 ns an element; here
    it takes 0.58, and 0.44 without weights.
    """
    compute = xp.type
    GRADIENT, HESSIAN, IN_PLACE = variant.outputs >= 1, variant.outputs >= 2, variant.in_place
    MASKED, WEIGHTED = variant.masked, variant.weighted
    zero = xp.const(0.0)
    terms, own = xp.jit(variant.kernel.factory(xp)), _own(variant, xp)
    load_y, load_p, store = xp.load(variant.y), xp.load(variant.p), xp.store(variant.g)
    get, settle, touch = xp.load(variant.dtype), _settle(variant), _touch(variant)

    @jit.vector_loop
    def chunk(y, p, weights, grad_weights, mask, g, h, values, start, stop, value_scale, grad_scale, params):
        total = zero
        for i in range(start, stop):
            loss, slope, curvature = terms(load_y(y, i), load_p(p, i), *own(params, 0))
            scale = grad_scale
            if WEIGHTED:
                scale = scale * get(grad_weights, i)
            slope, curvature = slope * scale, curvature * scale
            if MASKED:
                valid = mask[np.uintp(i)] != 0
                loss, slope = loss if valid else zero, slope if valid else zero
                curvature = curvature if valid else zero
            loss = settle(loss, i, weights, values, value_scale)
            total += loss
            if GRADIENT:
                if IN_PLACE:
                    store(p, i, slope)
                else:
                    store(g, i, slope)
            if HESSIAN:
                store(h, i, curvature)
        return total

    @jit.inner_loop
    def unit(first, last, columns, n, y, p, weights, grad_weights, mask, g, h, values, params, value_scale, grad_scale):
        total = 0.0
        share, scale = compute(value_scale), compute(grad_scale)
        for i in range(first, last, CHUNK):
            end = min(i + CHUNK, last)
            touch(y, p, g, h, i, end)
            total += chunk(y, p, weights, grad_weights, mask, g, h, values, i, end, share, scale, params)
        return total

    return unit


def _cells(variant: Variant, xp: Any) -> Callable[..., Any]:
    """A unit of short rows of a pointwise loss: one vector loop over the elements of many rows.

    Along a row of 2 the vector loop would never start (5-7 ns an element at 10 columns). So the rows' weights are
    spread over a tile of their elements first, and the elements' losses are summed by row afterwards.
    """
    compute = xp.type
    GRADIENT, HESSIAN, IN_PLACE = variant.outputs >= 1, variant.outputs >= 2, variant.in_place
    MASKED, WEIGHTED = variant.masked, variant.weighted
    VALUES = variant.values
    terms, own = xp.jit(variant.kernel.factory(xp)), _own(variant, xp)
    load_y, load_p, store = xp.load(variant.y), xp.load(variant.p), xp.store(variant.g)
    get, put = xp.load(variant.dtype), xp.store(variant.dtype)
    clear, settle, touch = _clear(variant), _settle(variant), _touch(variant)

    @jit.vector_loop
    def tile(y, p, g, h, start, stop, scales, losses, params):
        for i in range(start, stop):
            loss, slope, curvature = terms(load_y(y, i), load_p(p, i), *own(params, 0))
            put(losses, i - start, loss)
            if GRADIENT:
                if IN_PLACE:
                    store(p, i, slope * get(scales, i - start))
                else:
                    store(g, i, slope * get(scales, i - start))
            if HESSIAN:
                store(h, i, curvature * get(scales, i - start))

    @jit.inner_loop
    def unit(first, last, columns, n, y, p, weights, grad_weights, mask, g, h, values, params, value_scale, grad_scale):
        total = 0.0
        step = max(1, CELLS // columns)
        scales = np.empty(step * columns, compute)
        losses = np.empty(step * columns, compute)
        if not WEIGHTED:
            for i in range(scales.size):
                scales[i] = compute(grad_scale)
        for low in range(first, last, step):
            high = min(low + step, last)
            if WEIGHTED:
                for r in range(low, high):
                    scale = compute(grad_scale * grad_weights[r])
                    for c in range(columns):
                        put(scales, (r - low) * columns + c, scale)
            touch(y, p, g, h, low * columns, high * columns)
            tile(y, p, g, h, low * columns, high * columns, scales, losses, params)
            for r in range(low, high):
                if MASKED:
                    if mask[r] == 0:
                        clear(g, h, r * columns, (r + 1) * columns)
                        if VALUES:
                            values[r] = 0
                        continue
                loss = 0.0
                for c in range(columns):
                    loss += get(losses, (r - low) * columns + c)
                total += settle(loss, r, weights, values, value_scale)
        return total

    return unit


def _rowwise_row(variant: Variant, xp: Any) -> tuple[Callable[..., Any], ...]:
    """A row of a rowwise loss in its stages, and the stages `collect`, `finish` and `spread` by themselves.

    The row comes from memory once and from cache after that.
    """
    GRADIENT, HESSIAN = variant.outputs >= 1, variant.outputs >= 2
    INDEX, SMOOTH, IN_PLACE = variant.index, variant.smooth, variant.in_place
    functions = variant.kernel.factory(xp)
    LABEL_ONLY = functions.targets_only and INDEX and not SMOOTH
    KEEPS = functions.keeps == "gathered"
    PREDICTION = functions.keeps == "prediction"
    PEAK, AGAIN = functions.peak is not None, functions.regather is not None
    SHARED = _in_gradient(variant)
    gather, finish, slope = xp.jit(functions.gather), xp.jit(functions.finish), xp.jit(functions.slope)
    optional = (functions.score, functions.peak, functions.regather, functions.refinish, functions.curvature)
    score, peak, regather, refinish, curvature = (xp.jit(function) if function else function for function in optional)
    compute = xp.type
    zero, one = xp.consts(0.0, 1.0)
    load_y, load_p, store = xp.load(variant.y), xp.load(variant.p), xp.store(variant.g)
    get, put = xp.load(variant.dtype), xp.store(variant.dtype)
    index, own = _index(variant), _own(variant, xp)
    touch = _touch(variant)
    reduce = _pivot(variant, xp, functions.pivot, score)

    @jit.scalar
    def target(y, i, params):
        """The (smoothed) target of element i; for class indices, that of the wrong classes."""
        if INDEX:
            return params[0] if SMOOTH else zero
        return load_y(y, i) * (one - params[1]) + params[0] if SMOOTH else load_y(y, i)

    @jit.scalar
    def held(p, g, kept, i, start):
        """What is kept of element i. Where the gradient overwrites the predictions, they are named as it is."""
        if PREDICTION:
            return load_p(g, i) if IN_PLACE else load_p(p, i)
        if KEEPS and not LABEL_ONLY:
            return get(g, i) if SHARED else get(kept, i - start)
        return zero

    @jit.scalar
    def slope_of(y, p, g, kept, more, i, start, u, v, params):
        t, keep = target(y, i, params), held(p, g, kept, i, start)
        if AGAIN:
            return slope(t, keep, u, v, get(more, i - start), *own(params, 0))
        return slope(t, keep, u, v, *own(params, 0))

    @jit.vector_loop
    def spread(y, p, g, h, kept, more, start, stop, u, v, scale, params):
        for i in range(start, stop):
            if HESSIAN:  # first: what is kept may lie where the slope goes
                t, keep = target(y, i, params), held(p, g, kept, i, start)
                store(h, i, curvature(t, keep, u, v, *own(params, 0)) * scale)
            store(g, i, slope_of(y, p, g, kept, more, i, start, u, v, params) * scale)

    @jit.vector_loop
    def collect(y, p, g, h, kept, origin, start, stop, m, params):
        """The sums over [start, stop) of what is gathered, in the row that begins at `origin`."""
        rest = own(params, 0)
        a, b, c = 0.0, 0.0, 0.0
        for low in range(start, stop, CHUNK):
            end = min(low + CHUNK, stop)
            access.fetch(p, low + (stop - start), end + (stop - start))
            touch(y, p, g, h, low, end)
            a_part, b_part, c_part = zero, zero, zero
            for i in range(low, end):
                keep, a_i, b_i, c_i = gather(target(y, i, params), load_p(p, i), m, *rest)
                a_part += a_i
                b_part += b_i
                c_part += c_i
                if KEEPS and (GRADIENT or AGAIN):
                    if not SHARED:
                        put(kept, i - origin, keep)
                    elif IN_PLACE:
                        put(p, i, keep)
                    else:
                        put(g, i, keep)
            a += a_part
            b += b_part
            c += c_part
        return a, b, c

    @jit.vector_loop
    def first_peak(y, p, m, start, stop, params):
        """The first element whose score is the pivot, or `stop`."""
        found = stop
        for i in range(start, stop):
            here = i if score(load_y(y, i), load_p(p, i), *own(params, 0)) == m else stop
            found = min(found, here)
        return found

    @jit.inner_loop
    def row(y, p, g, h, kept, more, r, start, stop, scale, params):
        rest = own(params, 0)
        m = reduce(y, p, kept, start, stop, params)
        # Before the gradient may overwrite what the scores are made of.
        top = stop
        if PEAK and GRADIENT:
            top = first_peak(y, p, m, start, stop, params)
        label = start
        right = one
        wrong = zero
        picked = zero
        if INDEX:
            label = start + index(y[r], stop - start)
            picked = load_p(p, label)
            if SMOOTH:
                wrong = params[0]
                right = (one - params[1]) + params[0]
        a, b, c = 0.0, 0.0, 0.0
        label_kept = zero
        if INDEX:
            label_kept, a, b, c = gather(right, picked, m, *rest)
            if not KEEPS:
                label_kept = picked if PREDICTION else zero
        if INDEX and SMOOTH:
            # Around the label's entry: what it adds with the target of the wrong classes might be infinite.
            for first, end in ((start, label), (label + 1, stop)):
                a_part, b_part, c_part = collect(y, p, g, h, kept, start, first, end, m, params)
                a, b, c = a + a_part, b + b_part, c + c_part
        elif not LABEL_ONLY:
            a_part, b_part, c_part = collect(y, p, g, h, kept, start, start, stop, m, params)
            a, b, c = a + a_part, b + b_part, c + c_part
            if INDEX:
                # Over all entries the loop is faster, and what the label's added with a target of 0 is finite.
                _, a_part, b_part, c_part = gather(wrong, picked, m, *rest)
                a, b, c = a - a_part, b - b_part, c - c_part
        loss, u, v = finish(m, compute(a), compute(b), compute(c), *rest)
        if AGAIN:
            a, b, c = 0.0, 0.0, 0.0
            for low in range(start, stop, CHUNK):
                a_part, b_part, c_part = zero, zero, zero
                for i in range(low, min(low + CHUNK, stop)):
                    extra, a_i, b_i, c_i = regather(target(y, i, params), held(p, g, kept, i, start), u, v, *rest)
                    a_part += a_i
                    b_part += b_i
                    c_part += c_i
                    if GRADIENT:
                        put(more, i - start, extra)
                a += a_part
                b += b_part
                c += c_part
            loss, u, v = refinish(u, v, compute(a), compute(b), compute(c), *rest)
        if GRADIENT:
            top_slope = zero
            if PEAK:
                if top < stop:
                    top_slope = slope_of(y, p, g, kept, more, top, start, u, v, params)
                    top_slope += peak(target(y, top, params), u, v, *rest)
            spread(y, p, g, h, kept, more, start, stop, u, v, scale, params)
            if INDEX:
                store(g, label, slope(right, label_kept, u, v, *rest) * scale)
                if HESSIAN:
                    store(h, label, curvature(right, label_kept, u, v, *rest) * scale)
            if PEAK:
                if top < stop:
                    store(g, top, top_slope * scale)
        return np.float64(loss)

    return row, collect, finish, spread, own


def _columns(variant: Variant, xp: Any) -> Callable[..., Any]:
    """A unit of short rows of a rowwise loss, many rows side by side.

    Along a row of 10 a vector loop hardly starts, and each row waits for its own logarithm. So tiles of rows are
    turned, and each loop goes over the rows of one column. Softmax cross-entropy of labels, a million rows in float32,
    takes 1.4 instead of 12 ns an element at 2 columns, 1.2 instead of 3.5 at 10, 1.1 instead of 1.3 at 32, where 1000
    columns take 0.70. The stages are those of `_rowwise_row`.
    """
    compute = xp.type
    GRADIENT, HESSIAN, IN_PLACE = variant.outputs >= 1, variant.outputs >= 2, variant.in_place
    INDEX, SMOOTH, MASKED, WEIGHTED = variant.index, variant.smooth, variant.masked, variant.weighted
    functions = variant.kernel.factory(xp)
    SUM, SCORE, SIMPLEX = (functions.pivot == kind for kind in ("sum", "score", "simplex"))
    LARGEST = SCORE or functions.pivot == "max"
    PEAK, AGAIN = functions.peak is not None, functions.regather is not None
    LABEL_ONLY = functions.targets_only and INDEX and not SMOOTH
    GATHERED, PREDICTION = functions.keeps == "gathered", functions.keeps == "prediction"
    gather, finish, slope = xp.jit(functions.gather), xp.jit(functions.finish), xp.jit(functions.slope)
    optional = (functions.score, functions.peak, functions.regather, functions.refinish, functions.curvature)
    score, peak, regather, refinish, curvature = (xp.jit(function) if function else function for function in optional)
    zero, one = xp.consts(0.0, 1.0)
    load_y, load_p, store = xp.load(variant.y), xp.load(variant.p), xp.store(variant.g)
    get, put = xp.load(variant.dtype), xp.store(variant.dtype)
    index, own, settle, touch = _index(variant), _own(variant, xp), _settle(variant), _touch(variant)
    turn, turn_back = turner(xp.dtype, spread=False), turner(xp.dtype, spread=True)
    TURNED = variant.turned
    P_AS_IS, G_AS_IS = variant.p == variant.dtype, variant.g == variant.dtype
    Y_AS_IS = variant.y == variant.dtype and not SMOOTH
    threshold = _pivot(variant, xp, functions.pivot, score)

    @jit.scalar
    def target(t, labels, r, k, c, params):
        """The (smoothed) target of row r and column c, place k of the tile."""
        if INDEX:
            right, wrong = one, zero
            if SMOOTH:
                right, wrong = (one - params[1]) + params[0], params[0]
            return right if get(labels, r) == compute(c) else wrong
        return get(t, k)

    @jit.scalar
    def pivot(m, excess, r):
        """The pivot of row r, as the kernel takes it."""
        if SIMPLEX:
            return get(m, r), get(excess, r)
        return get(m, r)

    @jit.scalar
    def held(s, labels, picked, r, k, c):
        """What is kept there."""
        if LABEL_ONLY and GATHERED:
            return get(picked, r) if get(labels, r) == compute(c) else zero
        return get(s, k) if GATHERED or PREDICTION else zero

    @jit.vector_loop
    def load_predictions(p, flat, start, count):
        for i in range(count):
            put(flat, i, load_p(p, start + i))

    @jit.vector_loop
    def load_targets(y, flat, start, count, params):
        for i in range(count):
            t = load_y(y, start + i)
            put(flat, i, t * (one - params[1]) + params[0] if SMOOTH else t)

    @jit.vector_loop
    def load_columns(p, s, low, rows, columns, stride):
        for c in range(columns):
            for r in range(rows):
                put(s, c * rows + r, load_p(p, c * stride + low + r))

    @jit.vector_loop
    def write_columns(s, g, low, rows, columns, stride):
        for c in range(columns):
            for r in range(rows):
                store(g, c * stride + low + r, get(s, c * rows + r))

    @jit.vector_loop
    def load_labels(y, p, labels, picked, low, rows, start, columns, stride):
        for r in range(rows):
            label = index(y[np.uintp(low + r)], columns)
            put(labels, r, compute(label))
            if LABEL_ONLY:
                place = max(label, 0)
                put(picked, r, load_p(p, place * stride + low + r if TURNED else start + r * columns + place))

    @jit.vector_loop
    def reduce(t, s, m, rows, columns, params):
        for r in range(rows):
            if LARGEST or SUM:
                z = get(s, r)
                put(m, r, score(get(t, r), z, *own(params, 0)) if SCORE else z)
            else:
                put(m, r, zero)
        for c in range(1, columns if LARGEST or SUM else 1):
            for r in range(rows):
                z = get(s, c * rows + r)
                if SCORE:
                    z = score(get(t, c * rows + r), z, *own(params, 0))
                put(m, r, get(m, r) + z if SUM else jit.maximum(get(m, r), z))

    @jit.vector_loop
    def find_peak(t, s, m, peaks, rows, columns, params):
        for r in range(rows):
            put(peaks, r, -one)
        for c in range(columns - 1, -1, -1):
            for r in range(rows):
                here = score(get(t, c * rows + r), get(s, c * rows + r), *own(params, 0)) == get(m, r)
                put(peaks, r, compute(c) if here else get(peaks, r))

    @jit.vector_loop
    def collect(y, p, g, start, t, s, labels, picked, m, excess, a, b, d, rows, columns, params):
        """The sums over each row of what is gathered."""
        cells = rows * columns
        for r in range(rows):
            keep, a_r, b_r, d_r = zero, zero, zero, zero
            if LABEL_ONLY:
                keep, a_r, b_r, d_r = gather(one, get(picked, r), pivot(m, excess, r), *own(params, 0))
                put(picked, r, keep)
            put(a, r, a_r)
            put(b, r, b_r)
            put(d, r, d_r)
        for c in range(0 if LABEL_ONLY else columns):
            # A part of the next tile, and of where this one's gradient goes, while there is arithmetic to wait with.
            k = c * rows
            if not TURNED:
                access.fetch(p, start + cells + k, start + cells + k + rows)
            if not INDEX:
                access.fetch(y, start + cells + k, start + cells + k + rows)
            if GRADIENT and not IN_PLACE and not TURNED:
                access.fetch(g, start + k, start + k + rows)
            for r in range(rows):
                k = c * rows + r
                keep, a_k, b_k, d_k = gather(
                    target(t, labels, r, k, c, params), get(s, k), pivot(m, excess, r), *own(params, 0)
                )
                put(a, r, get(a, r) + a_k)
                put(b, r, get(b, r) + b_k)
                put(d, r, get(d, r) + d_k)
                if GATHERED:
                    put(s, k, keep)

    @jit.vector_loop
    def collect_again(t, s, labels, picked, u, v, a, b, d, more, rows, columns, params):
        for r in range(rows):
            put(a, r, zero)
            put(b, r, zero)
            put(d, r, zero)
        for c in range(columns):
            for r in range(rows):
                k = c * rows + r
                t_k, keep = target(t, labels, r, k, c, params), held(s, labels, picked, r, k, c)
                extra, a_k, b_k, d_k = regather(t_k, keep, get(u, r), get(v, r), *own(params, 0))
                put(a, r, get(a, r) + a_k)
                put(b, r, get(b, r) + b_k)
                put(d, r, get(d, r) + d_k)
                if GRADIENT:
                    put(more, k, extra)

    @jit.vector_loop
    def conclude(m, excess, a, b, d, u, v, rows, params):
        """The rows' losses, which replace the first sum, and what their slopes need."""
        for r in range(rows):
            loss, u_r, v_r = finish(pivot(m, excess, r), get(a, r), get(b, r), get(d, r), *own(params, 0))
            put(a, r, loss)
            put(u, r, u_r)
            put(v, r, v_r)

    @jit.vector_loop
    def conclude_again(a, b, d, u, v, rows, params):
        for r in range(rows):
            loss, u_r, v_r = refinish(get(u, r), get(v, r), get(a, r), get(b, r), get(d, r), *own(params, 0))
            put(a, r, loss)
            put(u, r, u_r)
            put(v, r, v_r)

    @jit.vector_loop
    def add(losses, weights, mask, values, low, rows, value_scale):
        total = zero
        for r in range(rows):
            loss = get(losses, r)
            if MASKED:
                loss = loss if mask[np.uintp(low + r)] != 0 else zero
            total += settle(loss, low + r, weights, values, value_scale)
        return total

    @jit.vector_loop
    def spread(
        t,
        s,
        labels,
        picked,
        u,
        v,
        more,
        bends,
        peaks,
        scales,
        grad_weights,
        mask,
        low,
        rows,
        columns,
        grad_scale,
        params,
    ):
        if WEIGHTED:
            for r in range(rows):
                put(scales, r, grad_scale * get(grad_weights, low + r))
        for c in range(columns):
            for r in range(rows):
                k = c * rows + r
                scale = get(scales, r) if WEIGHTED else grad_scale
                t_k, keep = target(t, labels, r, k, c, params), held(s, labels, picked, r, k, c)
                if HESSIAN:
                    bend = curvature(t_k, keep, get(u, r), get(v, r), *own(params, 0)) * scale
                    if MASKED:
                        bend = bend if mask[np.uintp(low + r)] != 0 else zero
                    put(bends, k, bend)
                if AGAIN:
                    found = slope(t_k, keep, get(u, r), get(v, r), get(more, k), *own(params, 0))
                else:
                    found = slope(t_k, keep, get(u, r), get(v, r), *own(params, 0))
                if PEAK:
                    top = peak(t_k, get(u, r), get(v, r), *own(params, 0))
                    found += top if get(peaks, r) == compute(c) else zero
                found *= scale
                if MASKED:
                    found = found if mask[np.uintp(low + r)] != 0 else zero
                put(s, k, found)

    @jit.vector_loop
    def write(flat, p, g, start, count):
        for i in range(count):
            if IN_PLACE:
                store(p, start + i, get(flat, i))
            else:
                store(g, start + i, get(flat, i))

    @jit.vector_loop
    def write_curvature(flat, h, start, count):
        for i in range(count):
            store(h, start + i, get(flat, i))

    @jit.inner_loop
    def unit(first, last, columns, n, y, p, weights, grad_weights, mask, g, h, values, params, value_scale, grad_scale):
        total = 0.0
        share, scale = compute(value_scale), compute(grad_scale)
        size = min(max(LANES, TILE // (3 * columns + 10) // LANES * LANES), last - first)
        cells = columns * size
        numbers = np.empty(10 * size + (4 if HESSIAN else 3) * cells, compute)
        m, a, b, d, u = numbers, numbers[size:], numbers[2 * size :], numbers[3 * size :], numbers[4 * size :]
        v, labels, picked, scales = u[size:], u[2 * size :], u[3 * size :], u[4 * size :]
        excess, tiles = u[5 * size :], u[6 * size :]
        s, t, more = tiles, tiles[cells:], tiles[2 * cells :]
        flat = more
        stride = n // columns
        bends = more
        if HESSIAN:
            bends = tiles[3 * cells :]
        for low in range(first, last, size):
            rows, start = min(size, last - low), low * columns
            count = rows * columns
            touch(y, p, g, h, start, start + count)
            if TURNED:
                load_columns(p, s, low, rows, columns, stride)
            elif P_AS_IS:
                turn(p, start, rows, columns, s, 0)
            else:
                load_predictions(p, flat, start, count)
                turn(flat, 0, rows, columns, s, 0)
            if not INDEX:
                if Y_AS_IS:
                    turn(y, start, rows, columns, t, 0)
                else:
                    load_targets(y, flat, start, count, params)
                    turn(flat, 0, rows, columns, t, 0)
            if INDEX:
                load_labels(y, p, labels, picked, low, rows, start, columns, stride)
            reduce(t, s, m, rows, columns, params)
            if SIMPLEX:
                for r in range(rows):
                    m[r], excess[r] = threshold(y, p, more, start + r * columns, start + (r + 1) * columns, params)
            if PEAK:
                find_peak(t, s, m, picked, rows, columns, params)
            collect(y, p, g, start, t, s, labels, picked, m, excess, a, b, d, rows, columns, params)
            conclude(m, excess, a, b, d, u, v, rows, params)
            if AGAIN:
                collect_again(t, s, labels, picked, u, v, a, b, d, more, rows, columns, params)
                conclude_again(a, b, d, u, v, rows, params)
            total += add(a, weights, mask, values, low, rows, share)
            if GRADIENT:
                spread(
                    t,
                    s,
                    labels,
                    picked,
                    u,
                    v,
                    more,
                    bends,
                    picked,
                    scales,
                    grad_weights,
                    mask,
                    low,
                    rows,
                    columns,
                    scale,
                    params,
                )
                if TURNED:
                    write_columns(s, g, low, rows, columns, stride)
                    if HESSIAN:
                        write_columns(bends, h, low, rows, columns, stride)
                    continue
                if not G_AS_IS:
                    turn_back(s, 0, rows, columns, flat, 0)
                    write(flat, p, g, start, count)
                elif IN_PLACE:
                    turn_back(s, start, rows, columns, p, 0)
                else:
                    turn_back(s, start, rows, columns, g, 0)
                if HESSIAN:
                    if G_AS_IS:
                        turn_back(bends, start, rows, columns, h, 0)
                    else:
                        turn_back(bends, 0, rows, columns, flat, 0)
                        write_curvature(flat, h, start, count)
        return total

    return unit


def _pivot(variant: Variant, xp: Any, pivot: str, score: Any) -> Callable[..., Any]:
    """``reduce(y, p, scratch, start, stop, params)``: the number that a row is related to."""
    zero, one = xp.consts(0.0, 1.0)
    compute = xp.type
    load_y, load_p = xp.load(variant.y), xp.load(variant.p)
    own = _own(variant, xp)
    infinity, nan = compute(np.inf), compute(np.nan)

    def none(y, p, scratch, start, stop, params):
        return zero

    def largest(y, p, scratch, start, stop, params):
        m = load_p(p, start)
        for i in range(start, stop):
            m = jit.maximum(m, load_p(p, i))
        return m

    def largest_score(y, p, scratch, start, stop, params):
        m = -infinity
        for i in range(start, stop):
            m = jit.maximum(m, score(load_y(y, i), load_p(p, i), *own(params, 0)))
        return m

    def total(y, p, scratch, start, stop, params):
        total = 0.0
        for low in range(start, stop, CHUNK):
            part = zero
            for i in range(low, min(low + CHUNK, stop)):
                part += load_p(p, i)
            total += part
        return compute(total)

    inner_largest = jit.vector_loop(largest)

    def simplex(y, p, scratch, start, stop, params):
        """The largest prediction, and the threshold of the projection on the simplex less that: their sum loses digits.

        The threshold is at least the largest prediction less one, so the few above that are all that must be sorted.
        """
        m = inner_largest(y, p, scratch, start, stop, params)
        if not abs(m) < infinity:
            return nan, nan
        count = 0
        for i in range(start, stop):
            z = load_p(p, i) - m
            if z > -one:
                scratch[count] = z
                count += 1
        # Numba's sort takes 0.25 µs for a few numbers too: with it, (4096, 10) takes 1.14 ms instead of 0.41.
        if count <= SHORT_ROW:
            for i in range(1, count):
                z = scratch[i]
                k = i
                while k > 0 and scratch[k - 1] > z:
                    scratch[k] = scratch[k - 1]
                    k -= 1
                scratch[k] = z
        else:
            scratch[:count].sort()
        total = 0.0
        threshold = 0.0
        for k in range(1, count + 1):
            z = np.float64(scratch[count - k])
            if one + k * z <= total + z:
                break
            total += z
            threshold = (total - 1.0) / k
        return m, compute(threshold)

    return jit.inner_loop(
        {"none": none, "max": largest, "score": largest_score, "sum": total, "simplex": simplex}[pivot]
    )


def _index(variant: Variant) -> Callable[..., Any]:
    """``index(label, classes)``: the class as an index, or -1 for a label that is none."""
    kind = np.dtype(storage.element_type(variant.y)).kind
    HALF = variant.y in storage.HALVES.values()
    load = access.load(np.dtype(np.float32), variant.y)

    def signed(label, classes):
        return np.int64(label) if (label >= 0) & (label < classes) else np.int64(-1)

    def unsigned(label, classes):
        return np.int64(label) if np.uint64(label) < np.uint64(classes) else np.int64(-1)

    def floating(label, classes):
        integral = (label >= 0) & (label < classes) & (np.floor(label) == label)
        return np.int64(label) if integral else np.int64(-1)

    if HALF:
        real = jit.scalar(floating)

        def half(label, classes):
            return real(load((label,), 0), classes)

        return jit.scalar(half)
    return jit.scalar({"i": signed, "u": unsigned, "f": floating}[kind])


def _odd_labels(variant: Variant, xp: Any) -> Callable[..., Any]:
    """``odd(y, start, stop)``: whether some target is neither 0 nor 1; it stops looking soon after the first."""
    load_y = xp.load(variant.y)
    zero, one = xp.consts(0.0, 1.0)

    @jit.vector_loop
    def odd(y, start, stop):
        for low in range(start, stop, CHUNK):
            others = 0
            for i in range(low, min(low + CHUNK, stop)):
                t = load_y(y, i)
                others += (t != zero) & (t != one)
            if others:
                return 1
        return 0

    return odd


def _first_bad(variant: Variant) -> Callable[..., Any]:
    """The first row whose label is no class, or -1. One pass over the labels alone, before anything is written."""
    MASKED = variant.masked
    if not variant.index:
        return jit.scalar(lambda labels, mask, classes: -1)
    index = _index(variant)

    @jit.scalar
    def is_bad(labels, mask, r, classes):
        bad = index(labels[np.uintp(r)], classes) < 0
        return bad & (mask[np.uintp(r)] != 0) if MASKED else bad

    @jit.vector_loop
    def count_bad(labels, mask, classes, start, stop):
        bad = 0
        for r in range(start, stop):
            bad += is_bad(labels, mask, r, classes)
        return bad

    @jit.inner_loop
    def first_bad(labels, mask, classes):
        for low in range(0, labels.size, CHUNK):
            high = min(low + CHUNK, labels.size)
            if count_bad(labels, mask, classes, low, high):
                for r in range(low, high):
                    if is_bad(labels, mask, r, classes):
                        return r
        return -1

    return first_bad
