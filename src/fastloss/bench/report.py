"""What ``fastloss bench`` does: measure, and show it on the terminal, in a file, in a plot, in the documentation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fastloss.bench import machine, measure
from fastloss.bench.cases import BATCH_CASES, LARGE, QUICK, SHAPES, SMALL, Case, Shape, cases, shapes
from fastloss.bench.peers import PEERS, missing
from fastloss.registry import BATCH_LOSSES, LOSSES, BatchRow, Row

SCHEMA = 1
"""Of the JSON; raised when a key changes its meaning."""

Report = dict[str, Any]

README, PAGE, PICTURE = Path("README.md"), Path("docs/benchmarks.md"), Path("docs/benchmarks.png")
"""Where `write_docs` writes, in a copy of the repository."""

TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500, 1000)
COLUMNS = ("time", "10-90 %", "ns an element", "fastest peer", "its time", "speed-up", "time over limit", "limit")
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def known() -> set[str]:
    """The identifiers of all losses that can be measured."""
    return set(LOSSES) | (set(BATCH_LOSSES) & set(BATCH_CASES))


def run(
    console: Console,
    names: tuple[str, ...],
    wanted: tuple[Shape, ...],
    dtype: str,
    threads: int,
    rounds: int,
    peers: tuple[str, ...],
    brief: bool = False,
) -> Report:
    """Measure, and say on the terminal how far it is, where that is one.

    Parameters
    ----------
    console : rich.console.Console
        The terminal.
    names, wanted : tuple
        Losses and shapes; empty for all.
    dtype : str
        Of predictions and dense targets.
    threads, rounds : int
        As for `fastloss.bench.measure.measure`.
    peers : tuple of str
        Keys of `PEERS`.
    brief : bool
        Of most losses, leave out all shapes but those of summaries: half an hour less.

    Returns
    -------
    dict
        What ``--json`` writes.
    """
    absent = {name: module for name in peers if (module := missing(name))}
    present = {name: PEERS[name] for name in peers if name not in absent}
    results, skipped = [], []
    todo: list[tuple[Case, Shape]] = []
    for case in cases(names):
        chosen, left_out = shapes(case, wanted)
        if brief and case.row.name not in QUICK:
            chosen = [shape for shape in chosen if shape in (SMALL, LARGE) or shape not in SHAPES]
        todo += [(case, shape) for shape in chosen]
        skipped += [{"loss": case.label, "shape": list(shape), "reason": why} for shape, why in left_out.items()]
    for name in sorted((set(names) or set(BATCH_LOSSES)) & (set(BATCH_LOSSES) - set(BATCH_CASES))):
        skipped.append({"loss": name, "shape": [], "reason": "nothing says what to measure it with"})
    live = console.file.isatty()
    for i, (case, shape) in enumerate(todo):
        if live:
            console.print(f"[{i + 1}/{len(todo)}] {case.label} {shape}", end="\r", markup=False, soft_wrap=True)
        results.append(measure.measure(case, shape, dtype, threads, rounds, present))
        if live:
            console.file.write("\x1b[2K")
    return {
        "schema": SCHEMA,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "settings": {"dtype": dtype, "threads": threads, "rounds": rounds, "peers": list(present)},
        "missing": {PEERS[name].title: module for name, module in absent.items()},
        "results": results,
        "skipped": skipped,
    }


# --------------------------------------------------------------------------------------------------------------
# Terminal
# --------------------------------------------------------------------------------------------------------------


def show(console: Console, report: Report, details: bool) -> None:
    """Print the tables.

    Parameters
    ----------
    console : rich.console.Console
        The terminal.
    report : dict
        From `run`.
    details : bool
        Whether every contestant is shown, too.
    """
    console.print(heading(report), markup=False)
    for shape, found in by_shape(report).items():
        table = Table(title=f"{shape}, {SHAPES.get(shape, 'a shape of its own')}")
        table.add_column("value and gradient")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in ("fastest peer", "limit") else "right")
        for result in found:
            table.add_row(result["loss"], *_cells(result))
        means = (geometric_mean(result[key] for result in found) for key in ("speedup", "over_limit"))
        speedup, over = map(_ratio, means)
        table.add_section()
        table.add_row("geometric mean", "", "", "", "", "", speedup, over, "")
        console.print(table)
        if details:
            for result in found:
                console.print(_contestants(result))
    for result in report["results"]:
        for title, reason in result["rejected"].items():
            console.print(f"Not timed: {title}, {result['loss']} {tuple(result['shape'])}: {reason}", markup=False)
    if "properties" in report:
        table = Table(title="properties")
        for column in ("what", "figure", "of"):
            table.add_column(column, justify="right" if column == "figure" else "left")
        for found in report["properties"]:
            table.add_row(found["what"], _figure(found), found["detail"])
        console.print(table)
    if report["missing"]:
        absent = ", ".join(f"{title} ({module} is not installed)" for title, module in report["missing"].items())
        console.print(f"Not compared: {absent}", markup=False)
    for reason, items in _grouped(report["skipped"]).items():
        console.print(f"Skipped, as {reason}: {', '.join(items)}", markup=False)


def _cells(result: Mapping[str, Any]) -> list[str]:
    ours = best(result)
    peer = result["peers"].get(result["fastest_peer"])
    bound = result["limit"]
    return [
        _time(ours["median"]) if ours else "-",
        f"{_time(ours['p10'])} - {_time(ours['p90'])}" if ours else "-",
        f"{1e9 * ours['median'] / math.prod(result['shape']):.3f}" if ours else "-",
        result["fastest_peer"] or "none",
        _time(peer["median"]) if peer else "-",
        _ratio(result["speedup"]),
        _ratio(result["over_limit"]),
        f"{bound['of']}: {_time(bound['seconds'])}" if bound else "-",
    ]


def _contestants(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"{result['loss']} {tuple(result['shape'])}")
    table.add_column("computed by")
    for column in ("median", "10-90 %", "× fastloss"):
        table.add_column(column, justify="right")
    ours = best(result)
    everybody = {**result["timings"], **result["peers"]}
    for title, timing in sorted(everybody.items(), key=lambda item: float(item[1]["median"])):
        ratio = _ratio(timing["median"] / ours["median"] if ours else None)
        table.add_row(title, _time(timing["median"]), f"{_time(timing['p10'])} - {_time(timing['p90'])}", ratio)
    return table


def heading(report: Report) -> str:
    """The machine, the versions and the settings, in a sentence or two."""
    about, settings, versions = report["machine"], report["settings"], dict(report["versions"])
    caches = ", ".join(f"{name} {size}" for name, size in about["caches"].items())
    threads = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    names = {"python": "Python", "numpy": "NumPy", "numba": "Numba", "torch": "PyTorch", "jax": "JAX", "optax": "Optax"}
    names |= {"keras": "Keras"}
    libraries = ", ".join(f"{names.get(name, name)} {version}" for name, version in versions.items())
    return (
        f"{about['cpu']} ({about['architecture']}), {about['cores']} cores{', ' if caches else ''}{caches}, "
        f"{about['system']}. {libraries}. {settings['dtype']}, {threads} each, medians of up to {settings['rounds']} "
        "interleaved rounds."
    )


def best(result: Mapping[str, Any]) -> dict[str, float] | None:
    """The faster of our two ways, with a gradient of its own or into a buffer; of peers the fastest counts as well."""
    ours = [result["timings"][name] for name in measure.OURS if name in result["timings"]]
    return min(ours, key=lambda timing: float(timing["median"]), default=None)


def by_shape(report: Report) -> dict[Shape, list[dict[str, Any]]]:
    """Results by shape, in the order in which those first come."""
    found: dict[Shape, list[dict[str, Any]]] = {}
    for result in report["results"]:
        found.setdefault(tuple(result["shape"]), []).append(result)
    return found


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    known_ratios = [ratio for ratio in ratios if ratio is not None]
    return math.exp(sum(map(math.log, known_ratios)) / len(known_ratios)) if known_ratios else None


def _grouped(skipped: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in skipped:
        shape = f" {tuple(item['shape'])}" if item["shape"] else ""
        found.setdefault(item["reason"], []).append(f"{item['loss']}{shape}")
    return found


def _time(seconds: float) -> str:
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _figure(found: Mapping[str, Any]) -> str:
    return f"{found['figure']:.3g}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


# --------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------


def write_json(report: Report, path: Path) -> None:
    """Write everything that was measured."""
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def plot(report: Report, path: Path) -> None:
    """Draw the speed-up over the fastest peer, and the time over the limit, by loss.

    Parameters
    ----------
    report : dict
        From `run`.
    path : pathlib.Path
        Of the PNG.
    """
    labels = list(dict.fromkeys(result["loss"] for result in report["results"]))[::-1]
    figure = Figure(figsize=(11, 1.8 + 0.27 * len(labels)), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, report, labels, "speedup")
    left.set(title="Speed-up over the fastest peer", xlabel="its time / ours", ylim=(-0.6, len(labels) - 0.4))
    left.set_yticks(range(len(labels)), labels)
    _draw(right, report, labels, "over_limit")
    right.set(title="One thread, over the limit of the machine", xlabel="our time / the limit's")
    handles, names = left.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, format="png")


def _draw(axes: Axes, report: Report, labels: list[str], key: str) -> None:
    places = {label: i for i, label in enumerate(labels)}
    for number, (shape, results) in enumerate(by_shape(report).items()):
        points = [(result[key], places[result["loss"]]) for result in results if result[key] is not None]
        own = shape not in SHAPES and not any(result["loss"] in LOSSES for result in results)
        if points:
            x, y = zip(*points, strict=True)
            colour = "black" if own else COLOURS[number % len(COLOURS)]
            name = None if own else str(shape)
            axes.scatter(x, y, s=22, color=colour, marker="x" if own else "o", linewidths=1, label=name)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [tick for tick in TICKS if _within(axes, tick)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _within(axes: Axes, tick: float) -> bool:
    low, high = axes.get_xlim()
    return bool(low <= tick <= high)


# --------------------------------------------------------------------------------------------------------------
# Documentation
# --------------------------------------------------------------------------------------------------------------


def check_docs(folder: Path) -> None:
    """Make sure that `write_docs` will find the places where it writes.

    Parameters
    ----------
    folder : pathlib.Path
        A copy of the repository.

    Raises
    ------
    ValueError
        If a file is missing, or a marker in it.
    """
    for path, marks in ((README, ("losses", "speed")), (PAGE, ("figures",))):
        if not (folder / path).is_file():
            raise ValueError(f"there is no {path} in {folder}: run this in a copy of the repository")
        text = (folder / path).read_text(encoding="utf-8")
        for mark in marks:
            replace(text, mark, "")


def write_docs(report: Report, folder: Path) -> None:
    """Write the README's tables, the page of figures and its plot.

    Parameters
    ----------
    report : dict
        From `run`, with ``processes``, ``bare_call`` and perhaps ``properties`` besides.
    folder : pathlib.Path
        A copy of the repository.
    """
    readme = replace((folder / README).read_text(encoding="utf-8"), "losses", losses_table())
    (folder / README).write_text(replace(readme, "speed", speed_table(report)), encoding="utf-8")
    page = replace((folder / PAGE).read_text(encoding="utf-8"), "figures", figures(report))
    (folder / PAGE).write_text(page, encoding="utf-8")
    plot(report, folder / PICTURE)


def replace(text: str, mark: str, new: str) -> str:
    """Replace what is between ``<!-- mark -->`` and ``<!-- /mark -->``.

    Parameters
    ----------
    text, mark, new : str
        Where, which, and by what.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the two markers are not there once each, in this order.
    """
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    found, count = pattern.subn(lambda match: f"{match[1]}{new}\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"the text must have one <!-- {mark} --> and, after it, <!-- /{mark} -->; {count} were found")
    return found


def losses_table() -> str:
    """All losses with their formulas, in Markdown."""
    registered: dict[str, Row | BatchRow] = {**LOSSES, **BATCH_LOSSES}
    rows = [
        f"| {f'`{name}`' if row.function else '–'} | `{row.cls.__name__}` | {row.formula} |"
        for name, row in registered.items()
    ]
    return "\n".join(["| identifier | class | loss of a sample |", "|---|---|---|", *rows])


def speed_table(report: Report) -> str:
    """The README's section: how far from the limit, how far from peers, and what a call costs."""
    found = {shape: {result["loss"]: result for result in rows} for shape, rows in by_shape(report).items()}
    large, small = found.get(LARGE, {}), found.get(SMALL, {})
    lines = [
        heading(report),
        "",
        f"| value and gradient | {LARGE}, one thread: ns an element | limit | time over limit | "
        f"{LARGE}: speed-up over the fastest peer | {SMALL}: a whole call | bound | "
        f"{SMALL}: the call's speed-up over the fastest peer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label in dict.fromkeys([*large, *small]):
        lines.append(f"| {label} | {_readme_large(large.get(label))} | {_readme_small(small.get(label))} |")
    means = [
        _ratio(geometric_mean(result[key] for result in rows.values()))
        for rows, key in ((large, "over_limit"), (large, "speedup"), (small, "speedup"))
    ]
    lines.append(f"| *geometric mean* | | | {means[0]} | {means[1]} | | | {means[2]} |")
    process, bare = report["processes"], report["bare_call"]
    lines += [
        "",
        f"A bare `njit` call on four arrays of {SMALL} takes {_time(bare)}. `import fastloss` takes "
        f"{process['import fastloss'] / process['import numpy']:.2f} times as long as `import numpy` (a process each), "
        f"and a process that computes its first gradient from a warm cache "
        f"{process['first result'] / process['import numba']:.2f} times as long as one that only imports Numba.",
    ]
    return "\n".join(lines)


def _readme_large(result: Mapping[str, Any] | None) -> str:
    timing = result["timings"].get(measure.ONE_THREAD) if result else None
    if not result or not timing or not result["limit"]:
        return "- | - | - | -"
    scale = 1e9 / math.prod(result["shape"])
    bound = result["limit"]
    return (
        f"{timing['median'] * scale:.2f} | {bound['of']}: {bound['seconds'] * scale:.2f} | "
        f"{_ratio(result['over_limit'])} | {_beside(result)}"
    )


def _readme_small(result: Mapping[str, Any] | None) -> str:
    if not result:
        return "- | - | -"
    found = (result["timings"].get(name) for name in (measure.OURS[0], measure.BOUND))
    times = [_time(timing["median"]) if timing else "-" for timing in found]
    return f"{' | '.join(times)} | {_beside(result)}"


def _beside(result: Mapping[str, Any]) -> str:
    return f"{result['speedup']:.1f} ({result['fastest_peer']})" if result["speedup"] else "-"


def figures(report: Report) -> str:
    """The page's tables: every shape, every contestant."""
    lines = [heading(report), "", f"![Speed-up and time over limit]({PICTURE.name})"]
    for shape, results in by_shape(report).items():
        titles = [peer.title for peer in PEERS.values() if any(peer.title in result["peers"] for result in results)]
        lines += ["", f"## {shape}: {SHAPES.get(shape, 'a shape of its own')}", ""]
        ways = "".join(f" {title} |" for title in titles)
        lines.append(f"| value and gradient | fastloss | bound | one thread | over limit |{ways} speed-up |")
        lines.append("|---|" + "---|" * (len(titles) + 5))
        for result in results:
            found = (best(result), *(result["timings"].get(name) for name in (measure.BOUND, measure.ONE_THREAD)))
            times = [_time(timing["median"]) if timing else "-" for timing in found]
            times.append(_ratio(result["over_limit"]))
            times += [_time(peer["median"]) if (peer := result["peers"].get(title)) else "" for title in titles]
            lines.append(f"| {result['loss']} | {' | '.join(times)} | {_ratio(result['speedup'])} |")
    if "properties" in report:
        lines += ["", "## Properties", "", "| what | figure | of |", "|---|---|---|"]
        lines += [f"| {found['what']} | {_figure(found)} | {found['detail']} |" for found in report["properties"]]
    rejected = [
        f"* {title}, {result['loss']} {tuple(result['shape'])}: {reason}"
        for result in report["results"]
        for title, reason in result["rejected"].items()
    ]
    if rejected:
        lines += ["", "## Not timed", "", *rejected]
    return "\n".join(lines)
