"""The loops on a CUDA device, one kernel a variant.

``flat``
    A pointwise loss whose samples make no difference. Blocks walk the data in tiles; each thread loads several elements
    of a tile, `THREADS` apart so that a warp's loads are coalesced, before it computes any, so that many loads are on
    their way at once.
``rows``
    Everything else. A *team* of lanes has a row: a part of a warp, a warp, or a whole block. Where the rows of a
    block's teams fit shared memory (``staged``), the block loads them as one run, coalesced whatever the length of a
    row, what is gathered replaces the predictions there, and gradients leave the same way: a row is read once.
    Of a longer row as much waits there as a block may have (``cached``); the rest is
    read once a stage, from the second-level cache with luck, and what was gathered is computed again.
``pieces``
    A few long rows of losses without a pivot (Dice of a whole batch is one): one launch sums pieces of rows, a second
    adds those sums and writes the slopes.

``items``
    Itemwise kernels. A block has an item, whose loops its threads share; or a thread has it, where items are many.

All lanes of a block go through the same number of rounds, whether or not they have a row: they meet in reductions.

Sums
----
Nothing depends on which thread comes first. A lane adds at most `RUN` elements in the compute dtype and collects such
sums in two numbers, sum and rounding error, which is float64's accuracy without float64's instructions. Lanes meet in a
butterfly, warps in order; blocks write partial sums in float64, and `combine` adds those in order. A grid of one block
needs no second launch.

Labels
------
A label that is no class makes its row's loss and gradient NaN, and its row number goes to memory of the host's, where
`fastloss.engine.cuda.labels` finds it without waiting for the device.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fastloss.engine import storage
from fastloss.engine.cuda.target import (
    SIMULATED,
    THREADS,
    WARP,
    cuda,
    device,
    element_type,
    load,
    make_toolbox,
    store,
    toolbox,
    types,
)
from fastloss.engine.toolbox import Toolbox
from fastloss.engine.variant import Variant
from fastloss.kernels.definition import Kernel

RUN = 16
"""Elements that a lane adds before their sum joins the compensated one."""

TILE = 2 if SIMULATED else 16
"""Side of a tile of a product of matrices."""


@dataclass(frozen=True)
class Target:
    """One compiled form of a kernel for the device.

    Attributes
    ----------
    variant : Variant
        What is computed; ``form`` and ``parallel`` mean nothing here.
    form : {"flat", "rows", "sums", "slopes"}
        Which of the drivers; the last two are those of ``pieces``.
    threads, lanes : int
        Of a block, and of a team.
    items : int
        Elements of a thread in a tile of ``flat``.
    staged : bool
        Rows wait in shared memory.
    factored : bool
        Value and gradient are multiplied by numbers in device memory.
    result : str
        Storage code of the value.
    """

    variant: Variant
    form: str
    threads: int
    lanes: int
    items: int = 1
    staged: bool = False
    factored: bool = False
    result: str = "f4"


def build(target: Target) -> Callable[..., Any]:
    """The Python source of the target's kernel, closed over its compiled parts; not yet compiled itself."""
    return {"flat": _flat, "rows": _rows, "sums": _sums, "slopes": _slopes}[target.form](target)


# ---- what the drivers share -----------------------------------------------------------------------------------------

if SIMULATED:
    _lock = threading.Lock()

    def exchange(x, distance):
        """The number that the lane at this distance has."""
        with _lock:  # of two threads that ask first, each would get an array of its own
            swap = cuda.shared.array(1024, np.float64)
        lane = cuda.threadIdx.x
        swap[lane] = x
        cuda.syncthreads()
        other = swap[lane ^ distance]
        cuda.syncthreads()
        return type(x)(other)

    def like(x, value):
        """A number from shared memory, which the simulator keeps in float64, in the type of `x`."""
        return type(x)(value)

    def with_parts(function, slots, dtype):
        """``function(x, parts)`` as one of x, with an array in shared memory: the same for all, one call at a time."""

        def call(x):
            with _lock:
                parts = cuda.shared.array(64, np.float64)
            return function(x, parts)

        return call

else:

    @device
    def exchange(x, distance):
        """The number that the lane at this distance has."""
        return cuda.shfl_xor_sync(0xFFFFFFFF, x, distance)

    @device
    def like(x, value):
        """A number from shared memory."""
        return value

    def with_parts(function, slots, dtype):
        """``function(x, parts)`` as one of x, with an array in shared memory."""
        kind = _numba(dtype)

        @device
        def call(x):
            return function(x, cuda.shared.array(slots, kind))

        return call


def _numba(dtype: Any) -> Any:
    return getattr(types, np.dtype(dtype).name)


def _together(combine: Any, lanes: int, dtype: Any) -> Callable[[Any], Any]:
    """``together(x)``: all x of a team of so many lanes combined, in an order that is always the same."""
    WIDTH, WARPS = min(lanes, WARP), lanes // WARP

    @device
    def across(x, parts):
        lane = cuda.threadIdx.x
        if lane % WARP == 0:
            parts[lane // WARP] = x
        cuda.syncthreads()
        x = like(x, parts[0])
        for k in range(1, WARPS):
            x = combine(x, like(x, parts[k]))
        cuda.syncthreads()
        return x

    across_warps = with_parts(across, max(1, WARPS), dtype)

    @device
    def together(x):
        distance = WIDTH // 2
        while distance > 0:
            x = combine(x, exchange(x, distance))
            distance //= 2
        if WARPS > 1:
            x = across_warps(x)
        return x

    return together


@device
def _sum(a, b):
    return a + b


@device
def _smaller(a, b):
    return min(a, b)


@device
def _add(total, lost, x):
    """The sum of `total` and `x` with what rounding took from it, exactly, added to `lost`."""
    new = total + x
    part = new - total
    return new, lost + ((total - (new - part)) + (x - part))


def _whole(compute: Any) -> Callable[[Any, Any], Any]:
    """``whole(total, lost)`` in that dtype. Where the total is infinite, what was lost is NaN and means nothing."""
    zero = compute(0.0)

    @device
    def whole(total, lost):
        return compute(total) + (compute(lost) if lost == lost else zero)

    return whole


def _own(variant: Variant, xp: Any) -> Callable[..., Any]:
    """``own(params, odd, column)``: the kernel's parameters as a tuple."""
    kernel = variant.kernel
    if variant.vector:
        return device(lambda params, odd, column: (params[column],))
    first = 0 if kernel.shape == "pointwise" else 2
    names = [f"params[{first + k}]" for k in range(len(kernel.params))]
    if kernel.binary_labels:
        names[:2] = ["(two if odd[0] == 0 else one)", "(-one if odd[0] == 0 else zero)"]
    zero, one, two = xp.consts(0.0, 1.0, 2.0)
    source = f"lambda params, odd, column: ({''.join(name + ', ' for name in names)})"
    return device(eval(source, {"zero": zero, "one": one, "two": two}))


def _index(variant: Variant) -> Callable[..., Any]:
    """``index(labels, r, classes)``: the class of row r, or -1 for a label that is none."""
    kind = "f" if variant.y in storage.HALVES.values() else np.dtype(storage.element_type(variant.y)).kind
    real = load(np.dtype(np.float64 if variant.y == "f8" else np.float32), variant.y)

    def signed(labels, r, classes):
        label = labels[r]
        return np.int64(label) if label >= 0 and label < classes else np.int64(-1)

    def unsigned(labels, r, classes):
        label = np.uint64(labels[r])
        return np.int64(label) if label < np.uint64(classes) else np.int64(-1)

    def floating(labels, r, classes):
        label = real(labels, r)
        # Not through a conversion of whatever it is: that of a NaN is anything.
        near = np.int64(label) if label >= 0 and label < classes else np.int64(-1)
        return near if near == label else np.int64(-1)

    return device({"i": signed, "u": unsigned, "f": floating}[kind])


def _conclude(target: Target, xp: Any) -> Callable[..., Any]:
    """``conclude(total, lost, value_scale, factor, partials, result)``: a block's sum to its partial, or the value."""
    FACTORED = target.factored
    compute = xp.type
    whole, block = _whole(np.float64), _together(_sum, target.threads, np.float64)
    write = store(target.result)

    @device
    def conclude(total, lost, value_scale, factor, partials, result):
        all_of_it = block(whole(total, lost))
        if cuda.threadIdx.x == 0:
            if cuda.gridDim.x == 1:
                value = compute(all_of_it * np.float64(value_scale))
                if FACTORED:
                    value = value * factor[0] if factor[0] != 0 else compute(0.0)
                write(result, 0, value)
            else:
                partials[cuda.blockIdx.x] = all_of_it

    return conclude


# ---- pointwise losses without samples -------------------------------------------------------------------------------


def _flat(target: Target) -> Callable[..., Any]:
    variant = target.variant
    xp = toolbox(np.dtype(variant.dtype))
    GRADIENT, HESSIAN, FACTORED = variant.outputs >= 1, variant.outputs >= 2, target.factored
    ITEMS, BLOCK = target.items, target.threads
    TILE = ITEMS * BLOCK
    kind = xp.type if SIMULATED else _numba(xp.dtype)
    zero = xp.const(0.0)
    terms, own = device(variant.kernel.factory(xp)), _own(variant, xp)
    load_y, load_p, write = load(xp.dtype, variant.y), load(xp.dtype, variant.p), store(variant.g)
    conclude = _conclude(target, xp)

    @device
    def element(t, z, i, g, h, scale, columns, params, odd):
        loss, slope, curvature = terms(t, z, *own(params, odd, i % columns))
        if GRADIENT:
            write(g, i, slope * scale)
        if HESSIAN:
            write(h, i, curvature * scale)
        return loss

    def kernel(
        y, p, weights, grad_weights, mask, g, h, values, factor, odd, params, rows, columns, value_scale, grad_scale,
        partials, result, bad, slot, cached,
    ):  # fmt: skip
        n = rows * columns
        scale = grad_scale
        alive = True
        if FACTORED:
            scale = scale * factor[1]
            alive = factor[0] != zero
        targets, predictions = cuda.local.array(ITEMS, kind), cuda.local.array(ITEMS, kind)
        total, lost = zero, zero
        thread = cuda.threadIdx.x
        low = cuda.blockIdx.x * TILE
        while low < n:
            part = zero
            if low + TILE <= n and alive:
                for k in range(ITEMS):
                    targets[k] = load_y(y, low + thread + k * BLOCK)
                    predictions[k] = load_p(p, low + thread + k * BLOCK)
                for k in range(ITEMS):
                    i = low + thread + k * BLOCK
                    part += element(targets[k], predictions[k], i, g, h, scale, columns, params, odd)
            else:
                for k in range(ITEMS):
                    i = low + thread + k * BLOCK
                    if i < n:
                        if alive:
                            part += element(load_y(y, i), load_p(p, i), i, g, h, scale, columns, params, odd)
                        else:
                            if GRADIENT:
                                write(g, i, zero)
                            if HESSIAN:
                                write(h, i, zero)
            total, lost = _add(total, lost, part)
            low += cuda.gridDim.x * TILE
        conclude(total, lost, value_scale, factor, partials, result)

    return kernel


# ---- rows -----------------------------------------------------------------------------------------------------------


def _rows(target: Target) -> Callable[..., Any]:
    variant = target.variant
    xp = toolbox(np.dtype(variant.dtype))
    row = (_pointwise_row if variant.kernel.shape == "pointwise" else _rowwise_row)(target, xp)
    MASKED, WEIGHTED, VALUES = variant.masked, variant.weighted, variant.values
    INDEX, GRADIENT, FACTORED, STAGED = variant.index, variant.outputs >= 1, target.factored, target.staged
    DENSE = not INDEX
    BLOCK, LANES, TEAMS = target.threads, target.lanes, target.threads // target.lanes
    held = xp.dtype if target.staged else np.dtype(element_type(variant.p))
    kind = held if SIMULATED else _numba(held)
    ROWWISE = variant.kernel.shape == "rowwise"
    zero, nan = xp.consts(0.0, float("nan"))
    load_y, load_p, write = load(xp.dtype, variant.y), load(xp.dtype, variant.p), store(variant.g)
    conclude, write_value = _conclude(target, xp), store(target.result)
    index: Any = _index(variant) if INDEX else None

    def kernel(
        y, p, weights, grad_weights, mask, g, h, values, factor, odd, params, rows, columns, value_scale, grad_scale,
        partials, result, bad, slot, cached,
    ):  # fmt: skip
        total, lost = zero, zero
        thread = cuda.threadIdx.x
        lane, team = thread % LANES, thread // LANES
        tile = cuda.shared.array(0, kind)
        first = cuda.blockIdx.x * TEAMS
        while first < rows:
            r = first + team
            exists = r < rows
            inside, origin = min(TEAMS, rows - first) * columns, first * columns
            if STAGED:
                for i in range(thread, inside, BLOCK):
                    tile[i] = load_p(p, origin + i)
                    if DENSE:
                        tile[TEAMS * columns + i] = load_y(y, origin + i)
                cuda.syncthreads()
            live = exists
            if MASKED:
                if exists:
                    live = mask[r] != 0
            if FACTORED:
                live = live and factor[0] != zero
            scale, weight = grad_scale, grad_scale
            if FACTORED:
                scale = scale * factor[1]
            if WEIGHTED:
                if live:
                    scale = scale * grad_weights[r]
                    weight = weights[r]
            label, broken = np.int64(-1), False
            if INDEX:
                if live:
                    label = index(y, r, columns)
                    broken = label < 0
                    if broken and lane == 0:
                        bad[slot] = r
            live = live and not broken
            if ROWWISE and not STAGED:
                # Each lane reads only what it wrote, so nobody waits.
                for i in range(lane, cached if live else 0, LANES):
                    tile[i] = p[r * columns + i]
            loss = row(y, p, g, h, tile, cached, r, team, lane, label, live, exists, columns, scale, params, odd)
            if broken:
                loss = nan
                if GRADIENT:
                    for i in range(lane, columns, LANES):
                        if STAGED:
                            tile[team * columns + i] = nan
                        else:
                            write(g, r * columns + i, nan)
            if exists and lane == 0:
                if not live and not broken:
                    loss = zero
                elif WEIGHTED:
                    loss = loss * weight
                if VALUES:
                    value = loss * value_scale
                    if FACTORED:
                        value = value * factor[0]
                    write_value(values, r, value)
                total, lost = _add(total, lost, loss)
            if STAGED:
                cuda.syncthreads()
                if GRADIENT:
                    for i in range(thread, inside, BLOCK):
                        write(g, origin + i, tile[i])
                    cuda.syncthreads()
            first += cuda.gridDim.x * TEAMS
        if not VALUES:
            conclude(total, lost, value_scale, factor, partials, result)

    return kernel


def _pointwise_row(target: Target, xp: Any) -> Callable[..., Any]:
    """A row of a pointwise loss: the sum of its elements' losses."""
    variant = target.variant
    GRADIENT, HESSIAN, LANES = variant.outputs >= 1, variant.outputs >= 2, target.lanes
    zero = xp.const(0.0)
    terms, own = device(variant.kernel.factory(xp)), _own(variant, xp)
    load_y, load_p, write = load(xp.dtype, variant.y), load(xp.dtype, variant.p), store(variant.g)
    team_sum, whole = _together(_sum, LANES, xp.dtype), _whole(xp.type)

    @device
    def row(y, p, g, h, tile, cached, r, team, lane, label, live, exists, columns, scale, params, odd):
        start = r * columns
        total, lost = zero, zero
        for low in range(lane, columns if exists else 0, LANES * RUN):
            part = zero
            for i in range(low, min(low + LANES * RUN, columns), LANES):
                loss, slope, curvature = zero, zero, zero
                if live:
                    loss, slope, curvature = terms(load_y(y, start + i), load_p(p, start + i), *own(params, odd, i))
                    slope, curvature = slope * scale, curvature * scale
                part += loss
                if GRADIENT:
                    write(g, start + i, slope)
                if HESSIAN:
                    write(h, start + i, curvature)
            total, lost = _add(total, lost, part)
        return team_sum(whole(total, lost))

    return row


def _rowwise_row(target: Target, xp: Any) -> Callable[..., Any]:
    """A row of a rowwise loss in its stages."""
    variant = target.variant
    GRADIENT, INDEX, SMOOTH = variant.outputs >= 1, variant.index, variant.smooth
    LANES, TEAMS, STAGED = target.lanes, target.threads // target.lanes, target.staged
    functions = variant.kernel.factory(xp)
    LABEL_ONLY = functions.targets_only and INDEX and not SMOOTH
    KEEPS, PREDICTION = functions.keeps == "gathered", functions.keeps == "prediction"
    PEAK, AGAIN = functions.peak is not None, functions.regather is not None
    gather, finish, slope = device(functions.gather), device(functions.finish), device(functions.slope)
    optional = (functions.score, functions.peak, functions.regather, functions.refinish)
    score, peak, regather, refinish = (device(function) if function else function for function in optional)
    zero, one = xp.consts(0.0, 1.0)
    load_y, load_p, write = load(xp.dtype, variant.y), load(xp.dtype, variant.p), store(variant.g)
    own, whole = _own(variant, xp), _whole(xp.type)
    team_sum, team_first = _together(_sum, LANES, xp.dtype), _together(_smaller, LANES, np.int64)

    @device
    def target_of(y, tile, r, place, label, i, columns, params):
        """The (smoothed) target of element i."""
        if INDEX:
            right, wrong = one, zero
            if SMOOTH:
                right, wrong = (one - params[1]) + params[0], params[0]
            return right if i == label else wrong
        t = tile[TEAMS * columns + place + i] if STAGED else load_y(y, r * columns + i)
        return t * (one - params[1]) + params[0] if SMOOTH else t

    @device
    def prediction(p, tile, cached, r, place, i, columns):
        if STAGED:
            return tile[place + i]
        return load_p(tile, i) if i < cached else load_p(p, r * columns + i)

    pivot_of = _pivot(target, xp, functions.pivot, score, target_of, prediction)

    @device
    def gathered(t, z, m, label, i, params, odd):
        if LABEL_ONLY:
            if i != label:
                return zero, zero, zero, zero
        return gather(t, z, m, *own(params, odd, 0))

    @device
    def held(t, z, m, label, i, params, odd):
        """What is kept of element i: in its place in shared memory, else the prediction there is gathered again."""
        if KEEPS:
            return z if STAGED else gathered(t, z, m, label, i, params, odd)[0]
        return z if PREDICTION else zero

    @device
    def row(y, p, g, h, tile, cached, r, team, lane, label, live, exists, columns, scale, params, odd):
        place = team * columns
        count = columns if live else 0
        rest = own(params, odd, 0)
        m = pivot_of(y, p, tile, cached, r, place, lane, label, count, columns, params, odd)
        top = np.int64(columns)
        if PEAK and GRADIENT:
            for i in range(lane, count, LANES):
                t = target_of(y, tile, r, place, label, i, columns, params)
                if score(t, prediction(p, tile, cached, r, place, i, columns), *rest) == m:
                    top = min(top, np.int64(i))
            top = team_first(top)
        a, a_lost, b, b_lost, c, c_lost = zero, zero, zero, zero, zero, zero
        for low in range(lane, count, LANES * RUN):
            a_part, b_part, c_part = zero, zero, zero
            for i in range(low, min(low + LANES * RUN, columns), LANES):
                t = target_of(y, tile, r, place, label, i, columns, params)
                z = prediction(p, tile, cached, r, place, i, columns)
                keep, a_i, b_i, c_i = gathered(t, z, m, label, i, params, odd)
                a_part += a_i
                b_part += b_i
                c_part += c_i
                if STAGED and KEEPS:
                    tile[place + i] = keep
            a, a_lost = _add(a, a_lost, a_part)
            b, b_lost = _add(b, b_lost, b_part)
            c, c_lost = _add(c, c_lost, c_part)
        a, b, c = team_sum(whole(a, a_lost)), team_sum(whole(b, b_lost)), team_sum(whole(c, c_lost))
        loss, u, v = finish(m, a, b, c, *rest)
        u_first, v_first = u, v
        if AGAIN:
            a, a_lost, b, b_lost, c, c_lost = zero, zero, zero, zero, zero, zero
            for low in range(lane, count, LANES * RUN):
                a_part, b_part, c_part = zero, zero, zero
                for i in range(low, min(low + LANES * RUN, columns), LANES):
                    t = target_of(y, tile, r, place, label, i, columns, params)
                    z = prediction(p, tile, cached, r, place, i, columns)
                    _, a_i, b_i, c_i = regather(t, held(t, z, m, label, i, params, odd), u, v, *rest)
                    a_part += a_i
                    b_part += b_i
                    c_part += c_i
                a, a_lost = _add(a, a_lost, a_part)
                b, b_lost = _add(b, b_lost, b_part)
                c, c_lost = _add(c, c_lost, c_part)
            a, b, c = team_sum(whole(a, a_lost)), team_sum(whole(b, b_lost)), team_sum(whole(c, c_lost))
            loss, u, v = refinish(u, v, a, b, c, *rest)
        if GRADIENT:
            for i in range(lane, columns if exists else 0, LANES):
                found = zero
                if live:
                    t = target_of(y, tile, r, place, label, i, columns, params)
                    keep = held(t, prediction(p, tile, cached, r, place, i, columns), m, label, i, params, odd)
                    if AGAIN:
                        found = slope(t, keep, u, v, regather(t, keep, u_first, v_first, *rest)[0], *rest)
                    else:
                        found = slope(t, keep, u, v, *rest)
                    if PEAK:
                        if i == top:
                            found += peak(t, u, v, *rest)
                    found *= scale
                if STAGED:
                    tile[place + i] = found
                else:
                    write(g, r * columns + i, found)
        return loss

    return row


def _pivot(target: Target, xp: Any, pivot: str, score: Any, target_of: Any, prediction: Any) -> Callable[..., Any]:
    """``reduce(...)``: the number that a row is related to, known to all of its lanes."""
    LANES = target.lanes
    zero, one = xp.consts(0.0, 1.0)
    lowest, nan, infinity = xp.consts(-np.inf, np.nan, np.inf)
    own, whole, maximum = _own(target.variant, xp), _whole(xp.type), xp.maximum
    team_sum, team_max = _together(_sum, LANES, xp.dtype), _together(maximum, LANES, xp.dtype)

    def none(y, p, tile, cached, r, place, lane, label, count, columns, params, odd):
        return zero

    def largest(y, p, tile, cached, r, place, lane, label, count, columns, params, odd):
        m = lowest
        for i in range(lane, count, LANES):
            m = maximum(m, prediction(p, tile, cached, r, place, i, columns))
        return team_max(m)

    def largest_score(y, p, tile, cached, r, place, lane, label, count, columns, params, odd):
        m = lowest
        for i in range(lane, count, LANES):
            t = target_of(y, tile, r, place, label, i, columns, params)
            m = maximum(m, score(t, prediction(p, tile, cached, r, place, i, columns), *own(params, odd, 0)))
        return team_max(m)

    def total(y, p, tile, cached, r, place, lane, label, count, columns, params, odd):
        total, lost = zero, zero
        for low in range(lane, count, LANES * RUN):
            part = zero
            for i in range(low, min(low + LANES * RUN, columns), LANES):
                part += prediction(p, tile, cached, r, place, i, columns)
            total, lost = _add(total, lost, part)
        return team_sum(whole(total, lost))

    top_of = device(largest)

    def simplex(y, p, tile, cached, r, place, lane, label, count, columns, params, odd):
        """The largest prediction, and the threshold of the projection on the simplex less that.

        The threshold is that of its own support. Beginning with all within 1 of the largest prediction, of whom the
        support is a part, each round leaves out those below the threshold so far, until none is (Michelot 1986).
        """
        m = top_of(y, p, tile, cached, r, place, lane, label, count, columns, params, odd)
        threshold, size, busy = -one, -one, 1
        while cuda.syncthreads_or(busy):
            total, lost, within = zero, zero, zero
            for low in range(lane, count, LANES * RUN):
                part = zero
                for i in range(low, min(low + LANES * RUN, columns), LANES):
                    z = prediction(p, tile, cached, r, place, i, columns) - m
                    if z > threshold:
                        part += z
                        within += one
                total, lost = _add(total, lost, part)
            mass, kept = team_sum(whole(total, lost)), team_sum(within)
            busy = 0
            if kept != size and kept > zero:
                threshold, size, busy = (mass - one) / kept, kept, 1
        finite = abs(m) < infinity
        return m if finite else nan, threshold if finite else nan

    return device({"none": none, "max": largest, "score": largest_score, "sum": total, "simplex": simplex}[pivot])


# ---- a few long rows ------------------------------------------------------------------------------------------------


def _stage_functions(target: Target, xp: Any) -> tuple[Any, ...]:
    """A divisible kernel's functions, and how its targets and predictions are read."""
    variant = target.variant
    functions = variant.kernel.factory(xp)
    one, zero = xp.const(1.0), xp.const(0.0)
    SMOOTH, PREDICTION = variant.smooth, functions.keeps == "prediction"
    load_y, load_p = load(xp.dtype, variant.y), load(xp.dtype, variant.p)

    @device
    def target_at(y, i, params):
        return load_y(y, i) * (one - params[1]) + params[0] if SMOOTH else load_y(y, i)

    @device
    def kept_at(p, i):
        return load_p(p, i) if PREDICTION else zero

    return device(functions.gather), device(functions.finish), device(functions.slope), target_at, kept_at, load_p


def _sums(target: Target) -> Callable[..., Any]:
    """The sums over one piece of one row, a block each."""
    variant = target.variant
    xp = toolbox(np.dtype(variant.dtype))
    BLOCK, MASKED = target.threads, variant.masked
    zero = xp.const(0.0)
    gather, _, _, target_at, _, load_p = _stage_functions(target, xp)
    own, whole, block = _own(variant, xp), _whole(np.float64), _together(_sum, target.threads, np.float64)

    def kernel(y, p, mask, odd, params, columns, pieces, piece, sums):
        thread = cuda.threadIdx.x
        r, k = cuda.blockIdx.x // pieces, cuda.blockIdx.x % pieces
        low, high = k * piece, min(columns, (k + 1) * piece)
        if MASKED:
            if mask[r] == 0:
                high = low
        rest = own(params, odd, 0)
        a, a_lost, b, b_lost, c, c_lost = zero, zero, zero, zero, zero, zero
        for first in range(low + thread, high, BLOCK * RUN):
            a_part, b_part, c_part = zero, zero, zero
            for i in range(first, min(first + BLOCK * RUN, high), BLOCK):
                place = r * columns + i
                _, a_i, b_i, c_i = gather(target_at(y, place, params), load_p(p, place), zero, *rest)
                a_part += a_i
                b_part += b_i
                c_part += c_i
            a, a_lost = _add(a, a_lost, a_part)
            b, b_lost = _add(b, b_lost, b_part)
            c, c_lost = _add(c, c_lost, c_part)
        a_all, b_all, c_all = block(whole(a, a_lost)), block(whole(b, b_lost)), block(whole(c, c_lost))
        if thread == 0:
            place = 3 * (r * pieces + k)
            sums[place], sums[place + 1], sums[place + 2] = a_all, b_all, c_all

    return kernel


def _slopes(target: Target) -> Callable[..., Any]:
    """The slopes of one piece of one row, a block each; the block of a row's first piece has its loss too."""
    variant = target.variant
    xp = toolbox(np.dtype(variant.dtype))
    compute = xp.type
    BLOCK, MASKED, WEIGHTED = target.threads, variant.masked, variant.weighted
    GRADIENT, VALUES, FACTORED = variant.outputs >= 1, variant.values, target.factored
    zero = xp.const(0.0)
    _, finish, slope, target_at, kept_at, _ = _stage_functions(target, xp)
    own, block = _own(variant, xp), _together(_sum, target.threads, np.float64)
    write, write_value, conclude = store(variant.g), store(target.result), _conclude(target, xp)

    def kernel(
        y, p, weights, grad_weights, mask, g, values, factor, odd, params, columns, pieces, piece, sums, value_scale,
        grad_scale, partials, result,
    ):  # fmt: skip
        thread = cuda.threadIdx.x
        r, k = cuda.blockIdx.x // pieces, cuda.blockIdx.x % pieces
        live = True
        if MASKED:
            live = mask[r] != 0
        if FACTORED:
            live = live and factor[0] != zero
        a, b, c = 0.0, 0.0, 0.0
        for piece_before in range(thread, pieces, BLOCK):
            place = 3 * (r * pieces + piece_before)
            a += sums[place]
            b += sums[place + 1]
            c += sums[place + 2]
        a, b, c = block(a), block(b), block(c)
        rest = own(params, odd, 0)
        loss, u, v = finish(zero, compute(a), compute(b), compute(c), *rest)
        if GRADIENT:
            scale = grad_scale
            if FACTORED:
                scale = scale * factor[1]
            if WEIGHTED:
                scale = scale * grad_weights[r]
            for i in range(k * piece + thread, min(columns, (k + 1) * piece), BLOCK):
                place = r * columns + i
                found = zero
                if live:
                    found = slope(target_at(y, place, params), kept_at(p, place), u, v, *rest) * scale
                write(g, place, found)
        if not live:
            loss = zero
        elif WEIGHTED:
            loss = loss * weights[r]
        if thread != 0 or k != 0:
            loss = zero
        elif VALUES:
            value = loss * value_scale
            if FACTORED:
                value = value * factor[0]
            write_value(values, r, value)
        if not VALUES:
            conclude(loss, zero, value_scale, factor, partials, result)

    return kernel


# ---- items ----------------------------------------------------------------------------------------------------------


@cache
def team(dtype: np.dtype[Any], lanes: int) -> Toolbox:
    """The toolbox of an item that so many threads share, or that a thread has: as `engine.toolbox` promises.

    `total` and its kin are called by the item itself, or by one function that it calls: what is reached in two ways has
    its shared memory twice when Numba links, and NVVM refuses that.

    Besides, `number` reads an integer as it is, `accumulate` and `whole` sum with little error, and `final` is a
    team's sum in float64.
    """
    found = make_toolbox(dtype)
    xp: Any = found
    xp.wide = dtype.type
    xp.number, xp.accumulate, xp.whole = _number, _add, _whole(np.float64)
    if lanes == 1:
        xp.final = device(lambda x: x)
        return found
    LANES, LAST, TURN = lanes, lanes - 1, lanes * RUN

    @device
    def span(n):
        return range(cuda.threadIdx.x, n, LANES)

    @device
    def between(start, stop):
        return range(start + ((cuda.threadIdx.x - start) & LAST), stop, LANES)

    @device
    def mine(index):
        return (index & LAST) == cuda.threadIdx.x

    @device
    def meet():
        cuda.syncthreads()

    @device
    def any_of(flag):
        return cuda.syncthreads_or(flag) != 0

    def scratch(memory, start, size):
        return memory[start : start + size]

    for function in (span, between, mine, meet, any_of):
        setattr(xp, function.__name__ if SIMULATED else function.py_func.__name__, function)
    # Only what is inlined may return a part of an array.
    xp.scratch = scratch if SIMULATED else cuda.jit(device=True, inline="always")(scratch)
    xp.shared, xp.stride = True, TURN
    xp.total, xp.largest = _together(_sum, lanes, dtype), _together(xp.maximum, lanes, dtype)
    xp.count, xp.least = _together(_sum, lanes, np.int32), _together(_smaller, lanes, np.int32)
    xp.final = _together(_sum, lanes, np.float64)
    return found


def items(kernel: Kernel, dtype: np.dtype[Any], codes: tuple[str, ...], arguments: int, lanes: int) -> Any:
    """One function call an item, of so many arguments, the first of them arrays that are stored so."""
    stored = len(inspect.signature(kernel.factory).parameters) - 1
    item = device(kernel.factory(team(dtype, lanes), *codes[:stored]))
    # Generated, because kernels know no star arguments; in this module, where the simulator finds `cuda`.
    names = ", ".join(f"a{k}" for k in range(arguments))
    place = "cuda.blockIdx.x" if lanes > 1 else "cuda.blockIdx.x * THREADS + cuda.threadIdx.x"
    lines = (
        "def make(item):",
        f"    def kernel(count, {names}):",
        f"        i = np.int64({place})",
        "        if i < count:",
        f"            item(i, {names})",
        "    return kernel",
    )
    made: dict[str, Any] = {}
    exec("\n".join(lines), globals(), made)
    return made["make"](item)


def product(dtype: str, transposed: bool) -> Callable[..., Any]:
    """The product of two matrices, or of one and another's transpose: a tile of it a block, by tiles of both."""
    real = np.dtype(dtype).type
    kind = np.dtype(dtype) if SIMULATED else _numba(dtype)
    zero, whole = real(0), _whole(real)
    WIDE = TILE + 1  # so that a column is in all banks

    def kernel(a, b, c, rows, inner, columns):
        tile = cuda.shared.array(0, kind)
        other = tile[TILE * TILE :]
        across = (columns + TILE - 1) // TILE
        x, y = cuda.threadIdx.x % TILE, cuda.threadIdx.x // TILE
        first, low = cuda.blockIdx.x // across * TILE, cuda.blockIdx.x % across * TILE
        i, j = first + y, low + x
        total, lost = zero, zero
        for start in range(0, inner, TILE):
            k = start + x
            tile[y * TILE + x] = a[i * inner + k] if i < rows and k < inner else zero
            # Neighbours read neighbours of either matrix, and leave them so that they do again below.
            if transposed:
                inside = low + y < columns and k < inner
                other[x * WIDE + y] = b[(low + y) * inner + k] if inside else zero
            else:
                inside = start + y < inner and j < columns
                other[y * WIDE + x] = b[(start + y) * columns + j] if inside else zero
            cuda.syncthreads()
            part = zero
            for m in range(TILE):
                part += tile[y * TILE + m] * other[m * WIDE + x]
            total, lost = _add(total, lost, part)
            cuda.syncthreads()
        if i < rows and j < columns:
            c[i * columns + j] = whole(total, lost)

    return kernel


# ---- what comes before and after ------------------------------------------------------------------------------------


def combine(dtype: str, result_code: str, factored: bool) -> Callable[..., Any]:
    """The value from the blocks' partial sums, by one block."""
    compute, write = np.dtype(dtype).type, store(result_code)
    block = _together(_sum, THREADS, np.float64)

    def kernel(partials, count, value_scale, factor, result):
        total = 0.0
        for i in range(cuda.threadIdx.x, count, THREADS):
            total += partials[i]
        total = block(total)
        if cuda.threadIdx.x == 0:
            value = compute(total * np.float64(value_scale))
            if factored:
                value = value * factor[0] if factor[0] != 0 else compute(0.0)
            write(result, 0, value)

    return kernel


def factors(dtype: str, weighted: bool, masked: bool, flowing: bool) -> Callable[..., Any]:
    """What value and gradient are multiplied with, where that depends on data: by one block.

    The first number is 1 / (the sum of the rows' weights · `share`), of rows that are not masked, or 0 where that sum
    is; the second that times the gradient flowing into the value.
    """
    compute = np.dtype(dtype).type
    block = _together(_sum, THREADS, np.float64)

    def kernel(weights, mask, upstream, rows, share, factor):
        total = 0.0
        if weighted or masked:
            for r in range(cuda.threadIdx.x, rows, THREADS):
                weight = 1.0
                if weighted:
                    weight = np.float64(weights[r])
                if masked:
                    if mask[r] == 0:
                        weight = 0.0
                total += weight
            total = block(total) * share
        else:
            total = 1.0
        if cuda.threadIdx.x == 0:
            value = compute(1.0 / total if total != 0.0 else 0.0)
            factor[0] = value
            if flowing:
                value = value * compute(upstream[0])
            factor[1] = value

    return kernel


def odd_labels(code: str) -> Callable[..., Any]:
    """Whether some target is neither 0 nor 1; the flag is 0 before."""
    read = load(np.dtype(np.float64 if code == "f8" else np.float32), code)

    def kernel(y, n, flag):
        for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, THREADS * cuda.gridDim.x):
            t = read(y, i)
            if t != 0 and t != 1:
                flag[0] = 1  # whoever writes, writes the same

    return kernel


def fill() -> Callable[..., Any]:
    """One integer everywhere."""

    def kernel(flags, n, value):
        for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, THREADS * cuda.gridDim.x):
            flags[i] = value

    return kernel


def fill_floats(code: str) -> Callable[..., Any]:
    """One number everywhere."""
    write = store(code)

    def kernel(numbers, n, value):
        for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, THREADS * cuda.gridDim.x):
            write(numbers, i, value)

    return kernel


def copy(source_code: str, code: str, rank: int) -> Callable[..., Any]:
    """An array of any strides into another, from one storage format to the next."""
    same = source_code == code
    wide = "f8" in (source_code, code) or source_code[0] in "iu"
    read = load(np.dtype(np.float64 if wide else np.float32), source_code)
    write = store(code)

    def kernel(source, destination, shape, source_strides, strides, n):
        for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, THREADS * cuda.gridDim.x):
            rest, here, there = i, 0, 0
            for k in range(rank):
                axis = rank - 1 - k
                place = rest % shape[axis]
                rest //= shape[axis]
                here += place * source_strides[axis]
                there += place * strides[axis]
            if same:
                destination[there] = source[here]
            else:
                write(destination, there, read(source, here))

    return kernel


def times(dtype: str) -> Callable[..., Any]:
    """Elementwise, of two arrays in the compute dtype."""

    def kernel(a, b, destination, n):
        for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, THREADS * cuda.gridDim.x):
            destination[i] = a[i] * b[i]

    return kernel


def pull(dtype: str, code: str, masked: bool) -> Callable[..., Any]:
    """Slopes of samples' losses, so many numbers a sample, times what flows into the losses; 0 behind a mask."""
    write, zero = store(code), np.dtype(dtype).type(0)

    def kernel(slopes, flow, mask, g, columns, n):
        for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, THREADS * cuda.gridDim.x):
            r = i // columns
            found = slopes[i] * flow[r]
            if masked:
                found = zero if mask[r] == 0 else found
            write(g, i, found)

    return kernel


def samples_that_count(code: str | None, masked: bool, again: bool) -> Callable[..., Any]:
    """The samples whose label is not the ignored one, and whom no mask leaves out."""
    read = None if code is None else _number(code)

    def kernel(labels, mask, other, ignored, destination, n):
        for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, THREADS * cuda.gridDim.x):
            valid = True
            if read is not None:
                valid = read(labels, i) != ignored
            if masked:
                valid = valid and mask[i] != 0
            if again:
                valid = valid and other[i] != 0
            destination[i] = 1 if valid else 0

    return kernel


def class_weights(code: str, dtype: str) -> Callable[..., Any]:
    """The number whose key a label is, or 1; NaN for NaN."""
    read, one, nan = _number(code), np.dtype(dtype).type(1), np.dtype(dtype).type(np.nan)

    def kernel(labels, keys, numbers, count, destination, n):
        for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, THREADS * cuda.gridDim.x):
            label, weight = read(labels, i), one
            if label != label:  # a row of targets that is not one-hot
                weight = nan
            for k in range(count):
                if label == keys[k]:
                    weight = numbers[k]
            destination[i] = weight

    return kernel


def _number(code: str) -> Callable[[Any, int], Any]:
    """How a label is read: an integer as it is."""
    if code in ("f4", "f8", "f2", "bf2"):
        return load(np.dtype(np.float64 if code == "f8" else np.float32), code)
    return device(lambda labels, i: labels[i])
