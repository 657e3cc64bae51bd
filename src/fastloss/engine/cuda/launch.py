"""From a variant and its arrays to launches on the stream of the arrays' library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastloss.engine.cuda import drivers, labels
from fastloss.engine.cuda.arrays import DeviceArray, Library
from fastloss.engine.cuda.drivers import Target
from fastloss.engine.cuda.target import (
    MOST_THREADS,
    SHARED_BYTES,
    SIMULATED,
    THREADS,
    WARP,
    cuda,
    element_type,
    types,
)
from fastloss.engine.variant import Variant
from fastloss.kernels.definition import Kernel

LANE_ELEMENTS = 8
"""Elements of a short row that one lane takes: fewer lanes mean fewer exchanges and fewer logarithms a row."""

WARP_ROW = 32 * WARP
"""From this length on a row has a block."""

PIECE = 4 * THREADS * drivers.RUN
"""About how many elements of a divided row a block takes."""

FEW_ROWS = 3 if SIMULATED else 128
"""So few rows leave multiprocessors idle if they are not divided."""


class Job(NamedTuple):
    """A kernel's work: what is computed, of which arrays, into which.

    Attributes
    ----------
    variant : Variant
        What is computed.
    rows, columns : int
        The shape of the data.
    params : tuple of float
        The kernel's parameters.
    y, p, g, h : DeviceArray or None
        Contiguous targets, predictions, gradient and Hessian.
    weights, grad_weights, mask : DeviceArray or None
        Contiguous, one number a row; in the compute dtype, and uint8.
    factor : DeviceArray or None
        Two numbers in the compute dtype, by which value and gradient are multiplied; nothing is computed if the first
        is 0.
    value : DeviceArray
        A number, or one a row.
    value_scale, grad_scale : float
        Factors of value and gradient.
    name : str
        Of the loss.
    shape : tuple of int
        That of the samples.
    """

    variant: Variant
    rows: int
    columns: int
    params: tuple[float, ...]
    y: DeviceArray
    p: DeviceArray
    g: DeviceArray | None
    h: DeviceArray | None
    weights: DeviceArray | None
    grad_weights: DeviceArray | None
    mask: DeviceArray | None
    factor: DeviceArray | None
    value: DeviceArray
    value_scale: float
    grad_scale: float
    name: str
    shape: tuple[int, ...]


def choose(variant: Variant, rows: int, columns: int, factored: bool, result: str) -> Target:
    """The form of a variant's kernel for data of this shape."""
    pointwise = variant.kernel.shape == "pointwise"
    base = Target(variant, "rows", THREADS, WARP, factored=factored, result=result)
    if pointwise and not (variant.weighted or variant.masked or variant.values):
        size = min(np.dtype(element_type(code)).itemsize for code in (variant.y, variant.p))
        return replace(base, form="flat", items=2 if SIMULATED else max(4, 16 // size))
    if pointwise:
        return replace(base, lanes=min(WARP, _power_of_two(columns)) if columns <= WARP_ROW else THREADS)
    if variant.kernel.divisible and not variant.index and rows < FEW_ROWS and columns >= 2 * PIECE:
        return replace(base, form="slopes", lanes=THREADS)
    row_bytes = columns * np.dtype(variant.dtype).itemsize * (1 if variant.index else 2)
    if row_bytes > SHARED_BYTES:
        return replace(base, threads=MOST_THREADS, lanes=MOST_THREADS)
    lanes = min(WARP, _power_of_two(-(-columns // LANE_ELEMENTS)))
    while lanes < WARP and THREADS // lanes * row_bytes > SHARED_BYTES:
        lanes *= 2
    threads = THREADS
    while threads > lanes and threads // lanes * row_bytes > SHARED_BYTES:
        threads //= 2
    if columns > WARP_ROW:
        threads = lanes = THREADS
    return replace(base, threads=threads, lanes=lanes, staged=True)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(0, n - 1).bit_length()


def signature(target: Target) -> tuple[Any, ...]:
    """Numba's types of the arguments of the target's kernel; what it does not use is a float64 array."""
    variant = target.variant
    compute = _array(variant.dtype)
    nothing = _array("f8")
    scalar = compute.dtype
    y, p, g = (_array(element_type(code)) for code in (variant.y, variant.p, variant.g))
    weights = compute if variant.weighted else nothing
    mask = _array(np.uint8) if variant.masked else nothing
    gradient, hessian = (g if variant.outputs >= k else nothing for k in (1, 2))
    values = _array(element_type(target.result)) if variant.values else nothing
    factor = compute if target.factored else nothing
    odd = _array(np.uint8) if variant.kernel.binary_labels else nothing
    result = nothing if variant.values else _array(element_type(target.result))
    word = types.int64
    count = len(variant.kernel.params) + (variant.kernel.shape != "pointwise") * 2 + 1
    params = compute if variant.vector else types.UniTuple(scalar, count)
    if target.form == "sums":
        return (y, p, mask, odd, params, word, word, word, nothing)
    if target.form == "slopes":
        return (
            y, p, weights, weights, mask, gradient, values, factor, odd, params, word, word, word, nothing, scalar,
            scalar, nothing, result,
        )  # fmt: skip
    return (
        y, p, weights, weights, mask, gradient, hessian, values, factor, odd, params, word, word, scalar, scalar,
        nothing, result, _array(np.int64) if variant.index else nothing, word, word,
    )  # fmt: skip


def _array(dtype: Any) -> Any:
    return types.Array(getattr(types, np.dtype(dtype).name), 1, "C")


@cache
def _kernel(target: Target) -> Any:
    """The compiled kernel of a target: once a process."""
    return cuda.jit(signature(target))(drivers.build(target))


@cache
def _allowed(target: Target) -> int:
    """The bytes of shared memory that a block of this kernel may have: all of a multiprocessor's, if it may ask."""
    if SIMULATED:
        return SHARED_BYTES
    import numba.cuda.cudadrv.driver

    driver: Any = numba.cuda.cudadrv.driver
    device = cuda.get_current_device()
    most = int(device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) - 1024  # less what reductions have
    attribute = driver.binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    try:
        function = _kernel(target).overloads[signature(target)]._codelibrary.get_cufunc()
        driver.driver.cuKernelSetAttribute(attribute, most, function.handle, device.id)
    except (AttributeError, driver.CudaAPIError):  # numba-cuda has no public way to ask
        return SHARED_BYTES
    return most


@cache
def _helper(build: Callable[..., Any], *arguments: Any) -> Any:
    """A compiled kernel that serves the others; Numba sees its types when it is called."""
    return cuda.jit(build(*arguments))


@cache
def _multiprocessors(number: int) -> int:
    return 2 if SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)


def _blocks(number: int, wanted: int, threads: int) -> int:
    """As many blocks as there is work for, and no more than the device runs at once."""
    resident = 1 if SIMULATED else 2048 // threads
    return max(1, min(wanted, _multiprocessors(number) * resident))


def run(job: Job) -> None:
    """Launch what the job needs."""
    variant, library = job.variant, job.p.library
    stream = library.stream()
    compute = np.dtype(variant.dtype)
    target = choose(variant, job.rows, job.columns, job.factor is not None, job.value.code)
    number = library.number
    sums = None
    if target.form == "slopes":
        most = max(1, _blocks(number, 1 << 30, THREADS) // job.rows)
        pieces = min(-(-job.columns // PIECE), most)
        piece = -(-job.columns // pieces)
        blocks = pieces * job.rows
        sums = library.empty((3 * blocks,), "f8").flat()
    elif target.form == "flat":
        blocks = _blocks(number, -(-job.rows * job.columns // (target.items * target.threads)), target.threads)
    else:
        blocks = _blocks(number, -(-job.rows * target.lanes // target.threads), target.threads)
    partials = library.empty((blocks,), "f8").flat()

    def flat(array: DeviceArray | None) -> Any:
        return partials if array is None else array.flat()

    odd = partials
    if variant.kernel.binary_labels:
        odd = library.empty((1,), "u1").flat()
        _helper(drivers.fill)[1, THREADS, stream](odd, 1, 0)
        count = job.rows * job.columns
        _helper(drivers.odd_labels, variant.y)[_blocks(number, -(-count // THREADS), THREADS), THREADS, stream](
            flat(job.y), count, odd
        )
    scale, grad_scale = compute.type(job.value_scale), compute.type(job.grad_scale)
    if variant.vector:
        params: Any = library.upload(np.asarray(job.params, compute), variant.dtype).flat()
    else:
        params = tuple(compute.type(x) for x in (*job.params, 0.0))
    values, result = (job.value, None) if variant.values else (None, job.value)
    kernel = _kernel(target)
    if sums is not None:
        adding = _kernel(replace(target, form="sums"))
        shape = (job.columns, pieces, piece, sums)
        adding[blocks, THREADS, stream](flat(job.y), flat(job.p), flat(job.mask), odd, params, *shape)
        kernel[blocks, THREADS, stream](
            flat(job.y), flat(job.p), flat(job.weights), flat(job.grad_weights), flat(job.mask), flat(job.g),
            flat(values), flat(job.factor), odd, params, *shape, scale, grad_scale, partials, flat(result),
        )  # fmt: skip
    else:
        shared = cached = 0
        if target.staged:
            teams = target.threads // target.lanes
            shared = teams * job.columns * compute.itemsize * (1 if variant.index else 2)
        elif variant.kernel.shape == "rowwise":
            cached = min(job.columns, _allowed(target) // job.p.itemsize)
            shared = cached * job.p.itemsize
        memory, slot = partials, 0
        if variant.index:
            memory, slot = labels.slot(job.name, job.shape, labels.classes(job.columns))
        kernel[blocks, target.threads, stream, shared](
            flat(job.y), flat(job.p), flat(job.weights), flat(job.grad_weights), flat(job.mask), flat(job.g),
            flat(job.h), flat(values), flat(job.factor), odd, params, job.rows, job.columns, scale, grad_scale,
            partials, flat(result), memory, slot, cached,
        )  # fmt: skip
    if blocks > 1 and not variant.values:
        _helper(drivers.combine, variant.dtype, job.value.code, target.factored)[1, THREADS, stream](
            partials, blocks, scale, flat(job.factor), flat(result)
        )


def items(kernel: Kernel, dtype: np.dtype[Any], count: int, arguments: tuple[Any, ...], *, alone: bool = False) -> None:
    """Call ``item(i, *arguments)`` of an itemwise kernel for every i below `count`.

    Parameters
    ----------
    kernel : Kernel
        Its toolbox is that of a team, `fastloss.engine.cuda.drivers.team`.
    dtype : numpy.dtype
        Compute dtype.
    count : int
        Number of items.
    arguments : tuple
        Contiguous arrays (`DeviceArray`; those without axes as vectors of one element), memory of
        `fastloss.engine.cuda.labels`, Python ints, bools and floats.
    alone : bool
        A thread has an item, not a block.
    """
    if not count:
        return
    library = next(a.library for a in arguments if isinstance(a, DeviceArray))
    values, kinds = zip(*(_item_argument(argument, dtype) for argument in arguments), strict=True)
    blocks = -(-count // THREADS) if alone else count
    _items(kernel, dtype, kinds, alone)[blocks, THREADS, library.stream()](count, *values)


def _item_argument(value: Any, dtype: np.dtype[Any]) -> tuple[Any, tuple[str, int]]:
    """What a kernel gets for an argument, and of what kind that is: storage code and rank, or a scalar's type and 0."""
    if isinstance(value, DeviceArray):
        flat = value.flat()
        return (flat if value.ndim < 2 else flat.reshape(value.shape)), (value.code, max(1, value.ndim))
    if isinstance(value, (bool, int)):
        return value, ("boolean" if isinstance(value, bool) else "int64", 0)
    if isinstance(value, float):
        return dtype.type(value), (dtype.name, 0)
    return value, ("i8", 1)


@cache
def _items(kernel: Kernel, dtype: np.dtype[Any], kinds: tuple[tuple[str, int], ...], alone: bool) -> Any:
    return cuda.jit(items_signature(kinds))(items_source(kernel, dtype, kinds, alone))


def items_source(kernel: Kernel, dtype: np.dtype[Any], kinds: tuple[tuple[str, int], ...], alone: bool) -> Any:
    """The Python source of the kernel that calls items with arguments of these kinds."""
    codes = tuple(code for code, rank in kinds if rank)
    return drivers.items(kernel, dtype, codes, len(kinds), 1 if alone else THREADS)


def items_signature(kinds: tuple[tuple[str, int], ...]) -> tuple[Any, ...]:
    """Numba's types of the arguments of a kernel of items."""
    return types.int64, *(
        types.Array(getattr(types, np.dtype(element_type(name)).name), rank, "C") if rank else getattr(types, name)
        for name, rank in kinds
    )


def product(a: DeviceArray, b: DeviceArray, transposed: bool) -> DeviceArray:
    """The product of two contiguous matrices in a compute dtype, or of the first and the second's transpose."""
    (rows, inner), columns = a.shape, b.shape[0 if transposed else 1]
    made = a.library.empty((rows, columns), a.code)
    if made.size:
        side = drivers.TILE
        blocks, threads = -(-rows // side) * -(-columns // side), side * side
        _helper(drivers.product, a.code, transposed)[
            blocks, threads, a.library.stream(), side * (2 * side + 1) * a.itemsize
        ](a.flat(), b.flat(), made.flat(), rows, inner, columns)  # fmt: skip
    return made


def pull(slopes: DeviceArray, flow: DeviceArray, mask: DeviceArray | None, g: DeviceArray) -> None:
    """Slopes of samples' losses times what flows into each loss, into the gradient; of contiguous arrays."""
    if g.size:
        kernel = _helper(drivers.pull, slopes.code, g.code, mask is not None)
        blocks = _blocks(g.library.number, -(-g.size // THREADS), THREADS)
        kernel[blocks, THREADS, g.library.stream()](
            slopes.flat(), flow.flat(), (flow if mask is None else mask).flat(), g.flat(), g.size // flow.size, g.size
        )


def fill(array: DeviceArray, value: float) -> None:
    """One value for all of a contiguous array."""
    if array.size:
        blocks = _blocks(array.library.number, -(-array.size // THREADS), THREADS)
        kernel = _helper(drivers.fill_floats, array.code)
        kernel[blocks, THREADS, array.library.stream()](array.flat(), array.size, value)


def copy(source: DeviceArray, destination: DeviceArray) -> None:
    """Copy elements between arrays of one shape and any strides, converting them."""
    if not source.size:
        return
    shape = source.shape or (1,)
    strides, others = source.strides or (1,), destination.strides or (1,)
    kernel = _helper(drivers.copy, source.code, destination.code, len(shape))
    blocks = _blocks(source.library.number, -(-source.size // THREADS), THREADS)
    kernel[blocks, THREADS, destination.library.stream()](
        source.flat(), destination.flat(), shape, strides, others, source.size
    )


def times(a: DeviceArray, b: DeviceArray) -> DeviceArray:
    """Elementwise, of contiguous arrays in the compute dtype."""
    made = a.library.empty(a.shape, a.code)
    blocks = _blocks(a.library.number, -(-a.size // THREADS), THREADS)
    _helper(drivers.times, a.code)[blocks, THREADS, a.library.stream()](a.flat(), b.flat(), made.flat(), a.size)
    return made


def factors(
    library: Library,
    dtype: np.dtype[Any],
    weights: DeviceArray | None,
    mask: DeviceArray | None,
    upstream: DeviceArray | None,
    rows: int,
    share: float,
) -> DeviceArray:
    """The two factors of a `Job`: 1 / (the sum of rows' weights · `share`), and that times `upstream`."""
    made = library.empty((2,), dtype.str[1:])
    kernel = _helper(drivers.factors, dtype.str[1:], weights is not None, mask is not None, upstream is not None)

    def flat(array: DeviceArray | None) -> Any:
        return made.flat() if array is None else array.flat()

    kernel[1, THREADS, library.stream()](flat(weights), flat(mask), flat(upstream), rows, share, made.flat())
    return made


def samples_that_count(
    labels: DeviceArray | None, ignored: int | None, mask: DeviceArray | None, other: DeviceArray | None = None
) -> DeviceArray:
    """A mask of the samples whose label is not the ignored one and whom no mask leaves out; of contiguous arrays."""
    given = [array for array in (labels, mask, other) if array is not None]
    some = given[0]
    made = some.library.empty(some.shape, "u1")
    code = None if labels is None else labels.code
    kernel = _helper(drivers.samples_that_count, code, mask is not None, other is not None)
    nothing = made.flat()
    blocks = _blocks(some.library.number, -(-some.size // THREADS), THREADS)
    kernel[blocks, THREADS, some.library.stream()](
        *(nothing if array is None else array.flat() for array in (labels, mask, other)),
        0 if ignored is None else ignored,
        made.flat(),
        some.size,
    )
    return made


def class_weights(labels: DeviceArray, keys: DeviceArray, numbers: DeviceArray) -> DeviceArray:
    """The number whose key a label is, or 1."""
    made = labels.library.empty(labels.shape, numbers.code)
    blocks = _blocks(labels.library.number, -(-labels.size // THREADS), THREADS)
    _helper(drivers.class_weights, labels.code, numbers.code)[blocks, THREADS, labels.library.stream()](
        labels.flat(), keys.flat(), numbers.flat(), keys.size, made.flat(), labels.size
    )
    return made
