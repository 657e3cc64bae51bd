"""What the kernels compile to, without a GPU: PTX for compute capabilities 8.0 and 9.0.

Every kernel in float32, some in float64; ``-m exhaustive`` crosses kernels, dtypes, forms and capabilities.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba.cuda.core", reason="needs the extra fastloss[cuda]")
pytest.importorskip("cuda.pathfinder", reason="needs the extra fastloss[cuda]")
import data
from cuda import pathfinder
from fastloss import kernels
from fastloss.engine.cuda import drivers, launch
from fastloss.engine.cuda.arrays import DeviceArray, Library, c_strides
from fastloss.engine.cuda.target import SIMULATED, cuda, element_type, types
from fastloss.engine.variant import Variant
from fastloss.kernels import batch
from fastloss.losses import device_batch
from fastloss.losses.device import DeviceCall
from fastloss.registry import BATCH_LOSSES

KERNELS = {
    name: kernel
    for name in kernels.__all__
    if isinstance(kernel := getattr(kernels, name), kernels.Kernel)
    and kernel.shape in ("pointwise", "rowwise")
    and kernel.factory.__module__ != "fastloss.kernels.weights"  # of the CPU alone
}
POINTWISE = [name for name, kernel in KERNELS.items() if kernel.shape == "pointwise"]
ROWWISE = [name for name, kernel in KERNELS.items() if kernel.shape == "rowwise"]
STORAGE = (("f4", "f4"), ("f8", "f8"), ("f4", "f2"), ("f4", "bf2"))
CAPABILITIES = ((8, 0), (9, 0))
WIDE = r"[a-z][\w.]*\.f64[\w.]*"
SHORT, MIDDLE, LONG = (1 << 20, 10), (1 << 16, 1000), (8192, 128_256)


def compilable():
    """Whether NVVM, which makes PTX, is installed."""
    try:
        pathfinder.load_nvidia_dynamic_lib("nvvm")
    except Exception:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.skipif(not SIMULATED and not compilable(), reason="NVVM is not installed"),
]


@pytest.fixture(autouse=True)
def _no_device(monkeypatch):
    without_device(monkeypatch)


def without_device(monkeypatch):
    """Numba asks device and NVRTC for a capability even where the caller names one; here is neither."""
    import numba.cuda.cuda_paths
    import numba.cuda.cudadrv.nvrtc
    import numba.cuda.dispatcher

    class Device:
        compute_capability = (8, 0)

    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: Device)
    monkeypatch.setattr(numba.cuda.cudadrv.nvrtc, "get_arch_option", lambda major, minor: f"compute_{major}{minor}")
    monkeypatch.setattr(numba.cuda.cuda_paths, "_get_nvrtc_path", lambda: None)


def compiled(name, shape, *, dtype="f4", storage="f4", capability=(9, 0), factored=False, **options):
    """The PTX of a kernel with its gradient, for data of that shape."""
    variant = Variant(KERNELS[name], dtype, options.pop("y", storage), storage, storage, **{"outputs": 1, **options})
    target = launch.choose(variant, *shape, factored, dtype)
    text, _ = cuda.compile_ptx(drivers.build(target), launch.signature(target), cc=capability)
    assert f"sm_{capability[0]}{capability[1]}" in text
    return target, Code(text)


class Code:
    """PTX, as lists of its instructions."""

    def __init__(self, text):
        self.lines = [line.strip() for line in text.splitlines()]
        self.instructions = [line for line in self.lines if re.match(r"(@!?%p\d+ )?[a-z][\w.]* .*;|ret;", line)]
        assert len(self.instructions) > 20
        self.local = [line for line in self.lines if re.search(r"\b(ld|st)\.local|\.local \.", line)]
        self.calls = [line for line in self.instructions if re.match(r"(@!?%p\d+ )?call", line)]

    def of(self, pattern, inside=None):
        """Instructions whose name matches."""
        return [line for line in inside or self.instructions if re.match(rf"(@!?%p\d+ )?{pattern}\b", line)]

    def loops(self, needed=True, innermost=False):
        """The instructions that may follow themselves: those of loops, or of loops without loops in them."""
        blocks, following = self.blocks()
        inside = cycles(set(range(len(blocks))), following)
        if innermost:
            inside = [least for loop in inside for least in leaves(loop, following)]
        assert inside or not needed, "no loop found"
        return [line for block in sorted(set().union(*inside)) for line in blocks[block]]

    def blocks(self):
        """Runs of instructions that are entered at their beginning alone, and what may follow each."""
        known, blocks, names = set(self.instructions), [[]], {}
        for line in self.lines:
            if re.fullmatch(r"\$L__BB\w+:", line):
                names[line[:-1]] = len(blocks)
                blocks.append([])
            elif line in known:
                blocks[-1].append(line)
                if re.search(r"\bbra\b|\bret;", line):
                    blocks.append([])
        following = []
        for i, block in enumerate(blocks):
            last = block[-1] if block else ""
            jump = re.search(r"\bbra(?:\.uni)?\s+(\$L__BB\w+);", last)
            ends = last == "ret;" or (jump and not last.startswith("@"))
            after = [] if ends or i + 1 == len(blocks) else [i + 1]
            following.append({*after, *([names[jump[1]]] if jump else [])})
        return blocks, following


def cycles(blocks, following):
    """The largest sets of blocks of which each leads to each."""
    leads = {}
    for block in blocks:
        seen, new = set(), {block}
        while new:
            new = set().union(*(following[b] for b in new)) & blocks - seen
            seen |= new
        leads[block] = seen
    found = [frozenset(b for b in leads[block] if block in leads[b]) for block in blocks if block in leads[block]]
    return list(dict.fromkeys(found))


def leaves(loop, following):
    """The loops within a loop that have none within: what turns when its entry is left out, or itself."""
    outside = set(range(len(following))) - loop
    entries = {b for a in outside for b in following[a]} & loop
    within = cycles(set(loop) - entries, following) if entries else []
    return [least for inner in within for least in leaves(inner, following)] or [loop]


def check_arithmetic(target, code, dtype, label):
    """Nothing spills or calls; a float32 kernel has float64 in its last sum alone, which is no loop."""
    assert not code.local, f"{label}: local memory: {code.local[:3]}"
    assert not code.calls, f"{label}: {code.calls[:3]}"
    if dtype == "f4":
        assert not code.of(WIDE, code.loops()), f"{label}: float64 in a loop"
    assert code.of(WIDE), f"{label}: the last sum is not in float64"
    if target.form == "flat":
        # All loads of a thread's elements of a tile before its first store.
        loads = code.of(r"ld\.global\S*")
        assert len(loads) >= 2 * target.items, label


def crossed(names):
    """All in float32, alternating capabilities; every third in float64."""
    single = [(name, "f4", CAPABILITIES[i % 2]) for i, name in enumerate(names)]
    return single + [(name, "f8", CAPABILITIES[(i + 1) % 2]) for i, name in enumerate(names) if i % 3 == 0]


@pytest.mark.parametrize(("name", "dtype", "capability"), crossed(POINTWISE))
def test_pointwise(name, dtype, capability):
    target, code = compiled(name, MIDDLE, dtype=dtype, storage=dtype, capability=capability)
    assert target.form == "flat"
    check_arithmetic(target, code, dtype, name)


@pytest.mark.parametrize(("name", "dtype", "capability"), crossed(ROWWISE))
def test_rowwise(name, dtype, capability):
    target, code = compiled(name, MIDDLE, dtype=dtype, storage=dtype, capability=capability)
    assert target.staged
    check_arithmetic(target, code, dtype, name)


@pytest.mark.parametrize("storage", ["f2", "bf2"])
@pytest.mark.parametrize("name", ["mean_squared_error", "categorical_crossentropy_logits"])
def test_halves_are_read_and_written_as_they_are(name, storage):
    target, code = compiled(name, MIDDLE, storage=storage)
    check_arithmetic(target, code, "f4", f"{name}, {storage}")
    halves = r"(ld|st)\.global\.(u16|b16|f16)"
    assert len(code.of(halves)) >= 3
    assert not code.of(r"(ld|st)\.global\.f32", code.loops()), "an element is read or written in float32"
    assert code.of(r"fma\.rn\.f32") or code.of(r"mul\.f32")


@pytest.mark.parametrize(("shape", "smooth"), [(SHORT, False), (MIDDLE, True), (LONG, False)], ids=str)
def test_class_indices(shape, smooth):
    target, code = compiled(
        "categorical_crossentropy_logits", shape, y="i8", index=True, smooth=smooth, weighted=True, masked=True
    )
    check_arithmetic(target, code, "f4", f"{shape}, {smooth}")
    assert (target.lanes == target.threads) == (shape == LONG)
    assert target.staged == (shape != LONG)
    assert code.of(r"shfl\.sync\.bfly\S*"), "lanes meet without shared memory"
    assert code.of(r"ld\.shared\.f32"), "rows wait in shared memory"


def test_a_tile_is_loaded_before_it_is_computed():
    """Of MSE the loop over whole tiles has all its loads before the first store: 2 · 4 on their way at once."""
    _, code = compiled("mean_squared_error", MIDDLE)
    names = [line.split()[0] for line in code.instructions if re.match(r"(ld|st)\.global\.f32", line)]
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(name[:2] for name in names)]
    assert ("ld", 8) in runs
    following, count = runs[runs.index(("ld", 8)) + 1]
    assert following == "st"
    assert count >= 4


def test_loads_are_coalesced():
    """A thread's loads of one tile are a block's threads apart, so a warp's are neighbours."""
    target, code = compiled("mean_squared_error", MIDDLE)
    apart = target.threads * np.dtype("f4").itemsize
    offsets = {int(o) for line in code.of(r"ld\.global\.f32") for o in re.findall(r"\+(\d+)\]", line)}
    assert {apart, 2 * apart, 3 * apart} <= offsets


def test_hessian_and_unreduced_and_factored():
    for options in ({"outputs": 2}, {"values": True}, {"factored": True}, {"outputs": 0}):
        target, code = compiled("log_cosh", MIDDLE, **options)
        assert code.of(r"st\.global\.f32"), options
        assert not code.local, options
        assert not code.of(WIDE, code.loops()), options
        stores = len(code.of(r"st\.global\.f32"))
        if target.form == "flat":
            assert (stores > 2 * target.items) == (options.get("outputs", 1) > 0), options


def test_rows_in_pieces():
    for name in ("dice", "cosine_similarity"):
        variant = Variant(KERNELS[name], "f4", "f4", "f4", "f4", 1)
        target = launch.choose(variant, 1, 1 << 24, False, "f4")
        assert target.form == "slopes"
        for form in ("sums", "slopes"):
            part = replace(target, form=form)
            text, _ = cuda.compile_ptx(drivers.build(part), launch.signature(part), cc=(9, 0))
            code = Code(text)
            assert not code.local
            assert not code.calls
            inside = code.of(WIDE, code.loops())
            if form == "sums":
                assert not inside, name
            else:  # the sums of pieces, a handful for each thread
                assert all(line.startswith(("ld.global.f64", "add.f64", "mov.f64")) for line in inside), (name, inside)


def arrays(*codes):
    return tuple(launch._array(element_type(code)) for code in codes)


@pytest.mark.parametrize(
    ("kernel", "signature"),
    [
        (drivers.combine("f4", "f4", True), (*arrays("f8"), types.int64, types.float32, *arrays("f4", "f4"))),
        (
            drivers.factors("f4", True, True, True),
            (*arrays("f4", "u1", "f4"), types.int64, types.float64, *arrays("f4")),
        ),
        (
            drivers.factors("f8", False, True, False),
            (*arrays("f8", "u1", "f8"), types.int64, types.float64, *arrays("f8")),
        ),
        (drivers.odd_labels("f2"), (*arrays("f2"), types.int64, *arrays("u1"))),
        (drivers.fill(), (*arrays("u1"), types.int64, types.int64)),
        (drivers.fill_floats("bf2"), (*arrays("bf2"), types.int64, types.float64)),
        (
            drivers.copy("f4", "f2", 3),
            (*arrays("f4", "f2"), *[types.UniTuple(types.int64, 3)] * 3, types.int64),
        ),
        (
            drivers.copy("b1", "f4", 1),
            (*arrays("b1", "f4"), *[types.UniTuple(types.int64, 1)] * 3, types.int64),
        ),
        (
            drivers.copy("i8", "i8", 2),
            (*arrays("i8", "i8"), *[types.UniTuple(types.int64, 2)] * 3, types.int64),
        ),
        (drivers.times("f4"), (*arrays("f4", "f4", "f4"), types.int64)),
        (drivers.product("f4", True), (*arrays("f4", "f4", "f4"), *[types.int64] * 3)),
        (drivers.product("f4", False), (*arrays("f4", "f4", "f4"), *[types.int64] * 3)),
        (drivers.pull("f4", "bf2", True), (*arrays("f4", "f4", "u1", "bf2"), types.int64, types.int64)),
        (
            drivers.samples_that_count("i8", False, False),
            (*arrays("i8", "u1", "u1"), types.int64, *arrays("u1"), types.int64),
        ),
        (
            drivers.samples_that_count(None, True, True),
            (*arrays("u1", "b1", "u1"), types.int64, *arrays("u1"), types.int64),
        ),
        (
            drivers.class_weights("i8", "f4"),
            (*arrays("i8", "f8", "f4"), types.int64, *arrays("f4"), types.int64),
        ),
    ]
    if not SIMULATED
    else [],
)
def test_what_comes_before_and_after(kernel, signature):
    text, _ = cuda.compile_ptx(kernel, signature, cc=(8, 0))
    code = Code(text)
    assert code.of(r"st\.global\S*")
    assert not code.calls


# ---- losses of boxes, sequences and whole batches -------------------------------------------------------------------


class Nowhere(Library):
    """Arrays that are nowhere, for calls whose launches are only looked at."""

    def empty(self, shape, code):
        return DeviceArray(self, None, 0, tuple(shape), c_strides(tuple(shape)), code)

    def upload(self, array, code):
        return self.empty(array.shape, code)

    def flat(self, array, count):
        return np.zeros(count, np.uint8)

    def stream(self):
        return 0


class Launch:
    """A kernel that does nothing."""

    def __getitem__(self, configuration):
        return lambda *arguments: None


def launched(monkeypatch, row, params, dtype, storage, gradient=True):
    """The kernels of items that a call of the loss launches: ``(kernel, dtype, kinds, alone)`` each."""
    found = []

    def items(*key):
        found.append(key)
        return Launch()

    monkeypatch.setattr(launch, "_items", items)
    for name in ("_kernel", "_helper"):
        monkeypatch.setattr(launch, name, lambda *arguments: Launch())
    monkeypatch.setattr(launch, "_multiprocessors", lambda number: 132)
    monkeypatch.setattr(device_batch.labels, "slot", lambda *arguments: (np.empty(0, np.int64), 0))
    y, p = data.batch_inputs(row, params, 6)
    nowhere, compute = Nowhere(0), np.dtype(dtype)
    targets = nowhere.empty(y.shape, "i8" if y.dtype.kind == "i" else storage)
    call = DeviceCall(
        nowhere, targets, nowhere.empty(p.shape, storage), compute, dtype, storage, None, None, None, None, None, None
    )
    device_batch.evaluate(row.cls(**params), int(gradient), call, {})
    return found


def check_items(key, capability):
    """No local memory, no calls, float64 where the sums end alone."""
    kernel, dtype, kinds, alone = key
    text, _ = cuda.compile_ptx(launch.items_source(*key), launch.items_signature(kinds), cc=capability)
    code, label = Code(text), f"{kernel.name}, {dtype}, {capability}"
    assert not code.local, f"{label}: local memory: {code.local[:3]}"
    assert not code.calls, f"{label}: {code.calls[:3]}"
    if dtype == np.float32 and kernel.name != "kappa":  # which adds up what all others have found
        # The frames of a sequence, in whose innermost loops are its labels and classes, have their product in float64.
        wide = code.of(WIDE, code.loops(needed=not alone, innermost=kernel.name == "ctc"))
        assert not wide, f"{label}: {wide}"


@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_batch_losses(name, monkeypatch):
    """Every kernel that a call launches, in float32; each once."""
    row, seen = BATCH_LOSSES[name], set()
    for params in row.variants:
        seen.update(launched(monkeypatch, row, params, "f4", "f4"))
    monkeypatch.undo()
    assert seen
    for i, key in enumerate(sorted(seen - _COMPILED, key=repr)):
        without_device(monkeypatch)
        check_items(key, CAPABILITIES[i % 2])
        _COMPILED.add(key)


def test_classes_of_one_hot_targets():
    kinds = (("f4", 1), ("f8", 1), ("int64", 0), ("i8", 1), ("int64", 0))
    check_items((batch.hot_class, np.dtype("f4"), kinds, False), (8, 0))


_COMPILED = set()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("dtype", "storage"), STORAGE)
@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_every_batch_loss(name, dtype, storage, monkeypatch):
    row, seen = BATCH_LOSSES[name], set()
    for params, gradient in itertools.product(row.variants, (False, True)):
        seen.update(launched(monkeypatch, row, params, dtype, storage, gradient))
    monkeypatch.undo()
    without_device(monkeypatch)
    for key, capability in itertools.product(seen, CAPABILITIES):
        check_items(key, capability)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("dtype", "storage"), STORAGE)
@pytest.mark.parametrize("name", KERNELS)
def test_everything(name, dtype, storage):
    for capability, shape, options in itertools.product(
        CAPABILITIES, (SHORT, MIDDLE, LONG), ({}, {"weighted": True, "masked": True}, {"values": True}, {"outputs": 0})
    ):
        target, code = compiled(name, shape, dtype=dtype, storage=storage, capability=capability, **options)
        if options.get("outputs") != 0 and not options.get("values"):
            check_arithmetic(target, code, dtype, f"{shape}, {capability}, {options}")
        assert not code.local, f"{shape}, {capability}, {options}"
