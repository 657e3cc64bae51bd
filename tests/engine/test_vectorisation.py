"""Reads the machine code of every registered kernel: packed arithmetic at full width, and no call to libm."""

from __future__ import annotations

import re

import llvmlite.binding as llvm
import numpy as np
import pytest

from fastloss.engine import cache
from fastloss.engine.compile import _compile, key
from fastloss.engine.variant import Variant
from fastloss.registry import LOSSES

pytestmark = pytest.mark.skipif(
    not llvm.get_host_cpu_features().get("avx2", False), reason="the expectations are those of AVX2 machine code"
)

ARITHMETIC = re.compile(r"v?(?:add|sub|mul|div|max|min|fn?m(?:add|sub)\d+)(ps|pd|ss|sd)$")
# Single elements put together to vectors, or taken apart: a loop that does this is vectorised in name only.
ELEMENTWISE = re.compile(r"v?(insertps|pinsr[bwdq]|extractps|pextr[bwdq]|p?gather\w+)$")
LIBM = re.compile(r"\$(f?(?:exp|log|pow|tanh|sinh|cosh|expm1|log1p)(?:1p|m1|2|10)?f?|__svml\w+|_ZGV\w+)\b")


def innermost_loops(assembly: str) -> list[list[str]]:
    """The instructions of each loop that holds no other loop."""
    lines = [line.strip() for line in assembly.splitlines()]
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if re.match(r"\.?\w+:", line)}
    spans = set()
    for i, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\.\w+)", line)
        if jump and labels.get(jump.group(1), i) < i:
            spans.add((labels[jump.group(1)], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [lines[start + 1 : stop + 1] for start, stop in sorted(inner)]


def packed_loops(assembly: str, suffix: str) -> list[list[str]]:
    """The loops that compute or store whole vectors of this type, without a scalar operation among them."""
    found = []
    for loop in innermost_loops(assembly):
        wide = [line for line in loop if re.search(r"%[yz]mm", line)]
        kinds = {m.group(1) for line in loop if (m := ARITHMETIC.match(line.split()[0]))}
        packed_store = any(re.match(r"vmov(u|a|nt)p[sd]\s+%[yz]mm\d+, .*\(", line) for line in wide)
        if wide and kinds <= {suffix} and (kinds or packed_store):
            found.append(loop)
    return found


def variants():
    for row in LOSSES.values():
        seen = set()
        for options in row.variants:
            loss = row.cls(**options)
            smooth = row.kind == "rowwise" and options.get("label_smoothing", 0.0) > 0
            kernel = loss._kernel()
            if (kernel.name, smooth) in seen:
                continue
            seen.add((kernel.name, smooth))
            for dtype in ("f4", "f8"):
                for outputs in range(3 if row.hessian else 2) if dtype == "f4" else (1,):
                    y = "i8" if row.labels == "index" else dtype
                    variant = Variant(
                        kernel, dtype, y, dtype, dtype, outputs, index=row.labels == "index", smooth=smooth
                    )
                    yield pytest.param(variant, id=f"{row.name}-{kernel.name}-{dtype}-{outputs}{'-smooth' * smooth}")


def picks_labels(variant: Variant) -> bool:
    """Whether only the label's element of a row is gathered."""
    from fastloss.engine.toolbox import toolbox

    functions = variant.kernel.factory(toolbox(np.dtype(variant.dtype)))
    return variant.index and not variant.smooth and functions.targets_only


def stages(variant: Variant) -> int:
    """How many vector loops the variant must have at least."""
    if variant.kernel.shape == "pointwise":
        return 1
    from fastloss.engine.toolbox import toolbox

    functions = variant.kernel.factory(toolbox(np.dtype(variant.dtype)))
    gathers = not picks_labels(variant)
    # A gradient without a gathered part (generalized cross-entropy) is filled with zeros, by memset.
    slopes = variant.outputs > 0 and (gathers or functions.pivot != "none")
    return (functions.pivot != "none") + gathers + (functions.regather is not None) + slopes


@pytest.mark.parametrize("variant", list(variants()))
def test_main_loops_are_packed_and_call_nothing(variant):
    compiled = _compile(variant)  # not from the cache, which keeps no assembly
    cache.save(variant.kernel.name, key(variant), compiled)  # other tests run it
    assembly = compiled.library.get_asm_str()
    assert not LIBM.findall(assembly)
    loops = packed_loops(assembly, {"f4": "ps", "f8": "pd"}[variant.dtype])
    assert len(loops) >= stages(variant), f"{len(loops)} packed loops, expected {stages(variant)}"
    if picks_labels(variant) and not stages(variant):
        return  # what is left picks the label's element out of each row
    for loop in loops:
        apart = [line for line in loop if ELEMENTWISE.match(line.split()[0])]
        assert not apart, f"elements are handled one by one: {apart[:3]}"


def test_the_check_notices_scalar_loops_and_libm():
    """The same check on a loop that does not vectorise, so that it is known to be able to fail."""
    import math

    import numba

    @numba.njit(error_model="numpy")
    def scalar(a, b):
        total = np.float32(0)
        for i in range(a.size):
            b[i] = math.exp(a[i])
            total += b[i]
        return total

    array = numba.types.Array(numba.types.float32, 1, "C")
    scalar.compile((array, array))
    assembly = scalar.inspect_asm(scalar.signatures[0])
    assert LIBM.findall(assembly)
    assert not packed_loops(assembly, "ps")
