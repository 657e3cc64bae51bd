"""Measures the ratios that the README quotes, and writes its table: ``python benchmarks/report.py [--write-readme]``.

Everything is float32, on one thread, medians of interleaved rounds in this one process. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import harness

import fastloss
from fastloss.registry import LOSSES

SHAPE = (4096, 1000)


def large(rounds: int) -> dict[str, Any]:
    """Value and gradient of (4096, 1000), over the loops that bound it from below."""
    loops = harness.limits("float32")
    a, o = (harness.positive(SHAPE, "float32") for _ in range(2))
    arithmetic = [name for name in loops if name not in ("copy", "add")]
    contestants = {name: (lambda f=loops[name]: f(a, o)) for name in arithmetic}
    out = np.empty(SHAPE, np.float32)
    bounds: dict[str, list[tuple[str, str]]] = {}
    for label, row, options in harness.cases():
        y, p = harness.data(row, SHAPE, "float32", options.get("from_logits", False))
        loss = row.cls(**options)
        calls = loss._kernel().calls
        memory = ""
        # A loop over the loss's own arrays: how they lie to each other in memory makes 15 % of its time.
        if row.labels == "index":
            # The row is read and the gradient written; of logarithms and divisions a row needs one.
            memory, calls = "copy", tuple(call for call in calls if call == "exp")
            contestants[f"copy, {label}"] = lambda p=p: loops["copy"](p.ravel(), out.ravel())
        elif row.kind == "rowwise" or not calls:
            memory = "add"
            contestants[f"add, {label}"] = lambda y=y, p=p: loops["add"](y.ravel(), p.ravel(), out.ravel())
        bounds[label] = [(memory, f"{memory}, {label}")] * bool(memory) + [(call, call) for call in calls]
        contestants[label] = lambda loss=loss, y=y, p=p: loss.value_and_grad(y, p, out=out, n_threads=1)
    times = harness.interleave(contestants, rounds)
    scale = 1e9 / (SHAPE[0] * SHAPE[1])
    rows = [
        {
            "loss": label,
            "ns": times[label] * scale,
            "bound": [shown for shown, _ in bound],
            "bound_ns": sum(times[name] for _, name in bound) * scale,
            "ratio": times[label] / sum(times[name] for _, name in bound),
        }
        for label, bound in bounds.items()
    ]
    return {"rows": rows, "loops_ns": {name: times[name] * scale for name in arithmetic}}


def small(rounds: int) -> dict[str, Any]:
    """A whole call on (32, 10), beside a bare njit call on four arrays."""
    import numba

    @numba.njit(nogil=True, error_model="numpy")
    def bare(a, b, c, d):
        total = 0.0
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                e = a[i, j] - b[i, j]
                d[i, j] = e * c[i, j]
                total += e
        return total

    arrays = [np.ones((32, 10), np.float32) for _ in range(4)]
    contestants = {"bare": lambda: bare(*arrays)}
    for label, row, options in harness.cases():
        y, p = harness.data(row, (32, 10), "float32", options.get("from_logits", False))
        loss = row.cls(**options)
        contestants[label] = lambda loss=loss, y=y, p=p: loss.value_and_grad(y, p)
    return {name: seconds * 1e6 for name, seconds in harness.interleave(contestants, rounds, 0.005).items()}


def processes(rounds: int) -> dict[str, float]:
    """Imports and first results in fresh processes, in turn; the cache is warm."""
    first = (
        "import numpy as np, fastloss; a = np.ones((32, 10), 'float32'); "
        "fastloss.losses.MeanSquaredError().value_and_grad(a, a)"
    )
    scripts = {"import numpy": "import numpy", "import fastloss": "import fastloss", "import numba": "import numba"}
    scripts["first result"] = first
    scripts["python"] = "pass"
    times: dict[str, list[float]] = {name: [] for name in scripts}
    subprocess.run([sys.executable, "-c", first], check=True)
    for _ in range(rounds):
        for name, script in scripts.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", script], check=True)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) * 1e3 for name, found in times.items()}


def table(result: dict[str, Any]) -> str:
    """The README's section, in Markdown."""
    lines = [
        f"Measured on {result['machine']}; one thread, float32, medians of interleaved rounds.",
        "",
        f"| value and gradient, {SHAPE} | ns an element | bound: loops over the same elements | times the bound | "
        "a whole call on (32, 10) |",
        "|---|---|---|---|---|",
    ]
    for row in result["large"]["rows"]:
        lines.append(
            f"| {row['loss']} | {row['ns']:.2f} | {' + '.join(row['bound'])}: {row['bound_ns']:.2f} | "
            f"{row['ratio']:.2f} | {result['small'][row['loss']]:.1f} µs |"
        )
    process = result["processes"]
    lines += [
        "",
        f"A bare `njit` call on four such arrays takes {result['small']['bare']:.2f} µs. `import fastloss` takes "
        f"{process['import fastloss'] / process['import numpy']:.2f} times as long as `import numpy` (a process each), "
        f"and a process that computes its first gradient from a warm cache "
        f"{process['first result'] / process['import numba']:.2f} times as long as one that only imports Numba.",
    ]
    return "\n".join(lines)


def machine() -> str:
    """Processor and versions."""
    import llvmlite.binding
    import numba

    return (
        f"{llvmlite.binding.get_host_cpu_name()} ({os.cpu_count()} cores), Python {platform.python_version()}, "
        f"NumPy {np.__version__}, Numba {numba.__version__}, fastloss {fastloss.__version__}"
    )


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--write-readme", action="store_true", help="replace the README's table")
    arguments = parser.parse_args()
    result = {
        "machine": machine(),
        "large": large(arguments.rounds),
        "small": small(arguments.rounds),
        "processes": processes(max(3, arguments.rounds // 3)),
    }
    text = table(result)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    if arguments.write_readme:
        readme = Path(__file__).parent.parent / "README.md"
        old = readme.read_text()
        new = re.sub(r"(<!-- speed -->\n).*?(<!-- /speed -->)", lambda m: m[1] + text + "\n" + m[2], old, flags=re.S)
        formulas = "\n".join(
            ["| identifier | class | loss of a sample |", "|---|---|---|"]
            + [f"| `{name}` | `{row.cls.__name__}` | {row.formula} |" for name, row in LOSSES.items()]
        )
        new = re.sub(
            r"(<!-- losses -->\n).*?(<!-- /losses -->)", lambda m: m[1] + formulas + "\n" + m[2], new, flags=re.S
        )
        readme.write_text(new)


if __name__ == "__main__":
    main()
