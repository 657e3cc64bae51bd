"""The ruler: what it measures is right, what it writes is whole, and how it says no. No test looks at a time."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import reference
from fastloss import cli
from fastloss.bench import cases, limits, machine, measure, peers, properties, report
from fastloss.bench.formulas import FORMULAS
from fastloss.bench.timing import Timing, interleave
from fastloss.registry import BATCH_LOSSES, LOSSES
from test_cli import assert_one_line, run, run_in_process

ROOT = Path(__file__).parent.parent
CASES = {case.label: case for case in cases.cases()}
OF_ELEMENTS = [label for label, case in CASES.items() if case.row.name in LOSSES]
MSE = CASES["mean_squared_error"]

# --------------------------------------------------------------------------------------------------------------
# What is measured
# --------------------------------------------------------------------------------------------------------------


def test_every_loss_is_measured():
    assert {case.row.name for case in CASES.values()} == {*LOSSES, *BATCH_LOSSES}, "bench/cases.py lacks BATCH_CASES"
    assert set(FORMULAS) == set(OF_ELEMENTS), "bench/formulas.py has one formula a case"
    assert report.known() == {*LOSSES, *BATCH_LOSSES}


def test_every_loss_has_another_library_to_compare_with():
    assert {label for label in OF_ELEMENTS if label not in peers.TABLE} == set()
    assert set(peers.TABLE) - set(CASES) == set()


@pytest.mark.parametrize("label", OF_ELEMENTS)
def test_formulas_are_those_of_the_oracle(label):
    """The value is the oracle's, and the gradient is the value's."""
    case = CASES[label]
    y, p = case.inputs((7, 5), "float64")
    value, gradient = FORMULAS[label](y, p)
    values, _ = reference.per_sample(case.row.name, y, p, **case.options)
    np.testing.assert_allclose(value, values.mean(), rtol=1e-12)
    for i in np.ndindex(p.shape):
        step = np.zeros_like(p)
        step[i] = 1e-6
        slope = (FORMULAS[label](y, p + step)[0] - FORMULAS[label](y, p - step)[0]) / 2e-6
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("label", list(CASES))
def test_inputs_have_the_shape_and_dtype_asked_for(label):
    case = CASES[label]
    shape = cases.BATCH_CASES[label].shape if label in BATCH_LOSSES else (9, 4)
    for dtype in ("float32", "float64"):
        (y, p), again = case.inputs(shape, dtype), case.inputs(shape, dtype)
        assert p.shape == shape
        assert p.dtype == dtype
        assert y.dtype == (np.int64 if y.dtype.kind == "i" else dtype)
        assert np.isfinite(p).all()
        np.testing.assert_array_equal(y, again[0])
        np.testing.assert_array_equal(p, again[1])


def test_shapes_that_make_no_sense_are_skipped_with_a_reason():
    assert cases.shapes(MSE, ((5, 1), (5, 3))) == ([(5, 1), (5, 3)], {})
    softmax = CASES["sparse_categorical_crossentropy"]
    chosen, skipped = cases.shapes(softmax, ((5, 1), (5, 3)))
    assert chosen == [(5, 3)]
    assert list(skipped) == [(5, 1)]
    assert (512, 32000) in cases.shapes(softmax, ())[0]
    assert "vocabulary" in cases.shapes(MSE, ())[1][512, 32000]
    assert cases.shapes(MSE, ((512, 32000),))[0] == [(512, 32000)]
    name = next(iter(BATCH_LOSSES))
    own = cases.BATCH_CASES[name].shape
    assert cases.shapes(CASES[name], ()) == ([own], {})
    assert cases.shapes(CASES[name], (own, (3, 3)))[0] == [own]
    chosen, skipped = cases.shapes(CASES[name], ((3, 3),))
    assert chosen == []
    assert str(own) in skipped[3, 3]


# --------------------------------------------------------------------------------------------------------------
# How
# --------------------------------------------------------------------------------------------------------------


def test_contestants_take_turns():
    calls = []
    contestants = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = interleave(contestants, rounds=6, turn=0.0)
    assert list(timings) == ["a", "b", "c"]
    assert {timing.rounds for timing in timings.values()} == {6}
    assert all(0 < timing.p10 <= timing.median <= timing.p90 for timing in timings.values())
    turns = [name for name, _ in itertools.groupby(calls)]
    assert calls[6:].count("a") == 6 * 2, "a call that is not timed, and one that is"
    assert len(turns) > 12, "nobody has all turns in a row"
    assert {"".join(turns[i : i + 3]) for i in range(3, len(turns) - 2)} > {"abc"}, "the order changes"


def test_rounds_are_as_many_as_the_budget_allows_and_never_under_five():
    assert interleave({"a": lambda: sum(range(10_000))}, rounds=50, turn=0.0, budget=0.0)["a"].rounds == 5
    assert interleave({"a": lambda: None}, rounds=3, turn=0.0, budget=0.0)["a"].rounds == 3


def peer(title, value=1.0, gradient=1.0, fail=None, convert=lambda gradient: gradient):
    """A peer that computes something near to the mean squared error, and counts its calls."""
    calls = []

    def make(task):
        right, slope = FORMULAS["mean_squared_error"](task.y, task.p)

        def run():
            calls.append(title)
            if fail:
                raise fail
            return right * np.float32(value), convert(slope * np.float32(gradient))

        return peers.Contestant(run, lambda found: found)

    return peers.Peer(title, (), make), calls


def test_what_is_wrong_or_fails_is_reported_and_not_timed():
    def refuse(task):
        raise ImportError("broken\nin some way")

    wrong = {
        "value": peer("value", value=1.001),
        "slope": peer("slope", gradient=1.001),
        "nan": peer("nan", gradient=np.nan),
        "one": peer("one", convert=lambda g: np.where(np.arange(g.size).reshape(g.shape) == 7, 2 * g, g)),
        "double": peer("double", convert=lambda g: g.astype(np.float64)),
        "flat": peer("flat", convert=np.ravel),
        "fails": peer("fails", fail=ValueError("no such thing")),
        "absent": (peers.Peer("absent", (), lambda task: None), []),
        "broken": (peers.Peer("broken", (), refuse), []),
    }
    right, calls = peer("right")
    everybody = {name: made for name, (made, _) in wrong.items()} | {"right": right}
    result = measure.measure(MSE, (40, 3), "float32", 1, 2, everybody, turn=0.0)
    assert list(result["peers"]) == ["right"]
    assert result["fastest_peer"] == "right"
    assert len(calls) > 2
    assert set(result["rejected"]) == set(wrong) - {"absent"}
    for name, (_, calls) in wrong.items():
        assert len(calls) == (0 if name in ("absent", "broken") else 1), "called once, to look at what it gives"
    assert result["rejected"]["fails"] == "fails: ValueError: no such thing"
    assert result["rejected"]["broken"] == "fails: ImportError: broken"
    assert "(2, 1)" in result["rejected"]["one"]
    assert "value" in result["rejected"]["value"]
    for name, part in {"double": "float64 (40, 3)", "flat": "(120,)", "nan": "nan"}.items():
        assert part in result["rejected"][name]
    assert set(result["timings"]) == {*measure.OURS, measure.ONE_THREAD, measure.BOUND}
    assert result["limit"] is None


def test_nobody_to_compare_with():
    result = measure.measure(MSE, (40, 3), "float32", 1, 2, {}, turn=0.0)
    assert (result["peers"], result["fastest_peer"], result["speedup"]) == ({}, None, None)


def test_the_limit_is_the_larger_of_memory_and_arithmetic():
    case = CASES["log_cosh"]
    y, p = case.inputs((5 * limits.BLOCK // 2, 8), "float32")
    bound = limits.limit(case, y, p, np.empty_like(p))
    assert bound.arithmetic == ("exp", "log", "div")
    assert set(bound.contestants) == {"limit: add", "limit: exp", "limit: log", "limit: div"}
    times = {"add": 5.0, "exp": 1.0, "log": 2.0, "div": 1.5}
    timings = {f"limit: {name}": Timing(seconds, 0, 0, 1) for name, seconds in times.items()}
    assert bound.read(timings) == {"memory": 5.0, "arithmetic": 4.5, "seconds": 5.0, "of": "add"}
    timings["limit: log"] = Timing(4.0, 0, 0, 1)
    assert bound.read(timings)["of"] == "exp + log + div"
    assert bound.read(timings)["seconds"] == 6.5
    uneven = bound._replace(size=limits.BLOCK + limits.BLOCK // 2)  # the loops of arithmetic do whole blocks only
    assert uneven.read(timings)["arithmetic"] == 6.5 * 1.5


def test_limits_of_other_kinds():
    def loops_of(label, shape=(8, 8192)):
        y, p = CASES[label].inputs(shape, "float32")
        found = limits.limit(CASES[label], y, p, np.empty_like(p))
        return found and (found.memory, found.arithmetic)

    assert loops_of("mean_squared_error") == ("add", ())
    assert loops_of("mean_squared_error", (8, 8191)) is None
    assert loops_of("sparse_categorical_crossentropy") == ("copy", ())
    assert loops_of("sparse_categorical_crossentropy, from logits") == ("copy", ("exp",))
    assert loops_of("sparsemax_loss") == ("add", ("sort",))
    assert limits.limit(CASES["giou_loss"], *CASES["giou_loss"].inputs((limits.SMALLEST, 4), "float32"), None) is None


def test_the_loops_of_the_limit_compute_what_they_are_named_for():
    run = limits.loops("float32")
    a = np.random.default_rng(0).uniform(0.5, 2, 2 * limits.BLOCK).astype(np.float32)
    out = np.zeros_like(a)
    run["copy"](a, out)
    np.testing.assert_array_equal(out, a)
    run["add"](a, a, out)
    np.testing.assert_array_equal(out, 2 * a)
    out[:] = 0
    run["exp"](a, out)
    np.testing.assert_allclose(out[: limits.BLOCK], np.exp(a[: limits.BLOCK]), rtol=1e-6)
    assert not out[limits.BLOCK :].any(), "it stays in cache"


RESTARTED = """
import os, sys
from fastloss.bench import machine
print("started", flush=True)
machine.prepare(1, "float64")
print(sys.argv[1:], machine.cores(), *(os.environ[name] for name in ("OMP_NUM_THREADS", "NPROC", "JAX_ENABLE_X64")))
"""


def test_the_process_starts_again_where_libraries_have_read_another_environment():
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    done = subprocess.run(
        [sys.executable, "-c", RESTARTED, "an argument"], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "started\nstarted\n['an argument'] 1 1 1 1\n"
    environment |= machine.environment(1, "float64")
    done = subprocess.run(
        [sys.executable, "-c", RESTARTED], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "started\n[] 1 1 1 1\n"


# --------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------

LIBRARIES = ("numpy", "sklearn", "torch", "jax-optax", "jax-keras")


def bench(*arguments, losses=("mean_squared_error",), others=("numpy",), without=()):
    """The command, quick and on one thread."""
    options = [part for name in losses for part in ("--loss", name)]
    options += [part for name in others for part in ("--peer", name)]
    return run("bench", *options, "--threads", "1", "--rounds", "2", *arguments, without=without)


def test_bench_compares_with_what_is_installed(tmp_path):
    names = ("mean_squared_error", "sparse_categorical_crossentropy")
    files = ["--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "figures.png")]
    done = bench("--shape", "64,5", "--shape", "20x1", *files, losses=names, others=LIBRARIES)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(found) == {"schema", "machine", "versions", "settings", "missing", "results", "skipped"}
    assert found["schema"] == report.SCHEMA
    assert set(found["machine"]) == {"cpu", "architecture", "cores", "caches", "system"}
    assert set(found["versions"]) >= {"python", "fastloss", "numpy", "numba"}
    installed = [name for name in LIBRARIES if peers.missing(name) is None]
    assert found["settings"] == {"dtype": "float32", "threads": 1, "rounds": 2, "peers": installed}
    assert set(found["missing"]) == {peers.PEERS[name].title for name in set(LIBRARIES) - set(installed)}
    runs = [("mean_squared_error", [64, 5]), ("mean_squared_error", [20, 1])]
    runs += [(f"sparse_categorical_crossentropy{of}", [64, 5]) for of in ("", ", from logits")]
    assert [(result["loss"], result["shape"]) for result in found["results"]] == runs
    assert [(left["loss"], left["shape"]) for left in found["skipped"]] == [
        (runs[2][0], [20, 1]),
        (runs[3][0], [20, 1]),
    ]
    for result in found["results"]:
        assert result["rejected"] == {}
        assert set(result["timings"]) == {*measure.OURS, measure.ONE_THREAD, measure.BOUND}
        for timing in (*result["timings"].values(), *result["peers"].values()):
            assert 0 < timing["p10"] <= timing["median"] <= timing["p90"]
            assert timing["rounds"] == 2
        fastest = min(result["peers"], key=lambda title: result["peers"][title]["median"])
        ours = min(result["timings"][name]["median"] for name in measure.OURS)
        assert result["fastest_peer"] == fastest
        assert math.isclose(result["speedup"], result["peers"][fastest]["median"] / ours)
        assert result["over_limit"] is None
    expected = {peers.PEERS[name].title for name in installed}
    assert set(found["results"][0]["peers"]) == expected
    assert set(found["results"][-1]["peers"]) == expected
    pixels = imread(tmp_path / "figures.png")
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    for part in (*expected, *names, "(64, 5)", "fastloss, one thread", "geometric mean", "a constant loss"):
        assert part in done.stdout
    assert not {"\x1b", "\r"} & set(done.stdout)


def test_bench_in_float64_without_a_library(tmp_path):
    done = bench(
        *("--dtype", "float64", "--shape", "300,300", "--json", str(tmp_path / "figures.json")),
        losses=["log_cosh"],
        others=("numpy", "sklearn", "jax-optax"),
        without=["sklearn"],
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["results"]
    assert result["rejected"] == {}
    assert set(result["peers"]) == {
        peers.PEERS[name].title for name in ("numpy", "jax-optax") if not peers.missing(name)
    }
    assert set(result["limit"]) == {"memory", "arithmetic", "seconds", "of"}
    assert result["limit"]["seconds"] == max(result["limit"]["memory"], result["limit"]["arithmetic"]) > 0
    alone = result["timings"][measure.ONE_THREAD]["median"]
    assert math.isclose(result["over_limit"], alone / result["limit"]["seconds"])
    assert "scikit-learn (sklearn is not installed)" in done.stdout


def test_write_docs(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for path in (report.README, report.PAGE):
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    before = {path: (tmp_path / path).read_text(encoding="utf-8") for path in (report.README, report.PAGE)}
    monkeypatch.chdir(tmp_path)
    done = bench("--shape", "32,10", "--shape", "4096,1000", "--write-docs")
    assert done.returncode == 0, done.stderr
    readme, page = ((tmp_path / path).read_text(encoding="utf-8") for path in (report.README, report.PAGE))
    for name, row in {**LOSSES, **BATCH_LOSSES}.items():
        identifier = f"`{name}`" if row.function else "–"
        assert f"| {identifier} | `{row.cls.__name__}` | {row.formula} |\n" in readme
    speed = readme.split("<!-- speed -->")[1].split("<!-- /speed -->")[0]
    (row,) = [line for line in speed.splitlines() if line.startswith("| mean_squared_error |")]
    assert row.count("|") == speed.count("---|") + 1 == 9
    assert "| add: " in row
    assert row.count("(NumPy)") == 2
    for part in ("1 thread each", "`import fastloss` takes", "bare `njit` call", "geometric mean"):
        assert part in speed
    assert "## (4096, 1000): classifier batch\n" in page
    assert f"]({report.PICTURE.name})" in page
    assert imread(tmp_path / report.PICTURE).size
    for path, marks in {report.README: ("losses", "speed"), report.PAGE: ("figures",)}.items():
        now, then = (tmp_path / path).read_text(encoding="utf-8"), before[path]
        for mark in marks:
            now, then = report.replace(now, mark, ""), report.replace(then, mark, "")
        assert now == then, "nothing else is written"


@pytest.mark.parametrize("part", ["short_rows", "weights", "threads", "choice", "halves"])
def test_properties(part, monkeypatch):
    monkeypatch.setattr(properties, "MANY", 32)
    monkeypatch.setattr(properties, "SWEEP", (128,))
    monkeypatch.setattr(properties, "LARGE", (64, 40))
    monkeypatch.setattr(properties, "HALVES", (64, 40))
    arguments = (1, 1) if part in ("threads", "choice") else (1,)
    found = list(getattr(properties, f"_{part}")(*arguments))
    assert len({figure.what for figure in found}) == len(found) > 1
    assert all(0 < figure.figure < 1e6 and figure.detail for figure in found)


def test_the_tables_of_the_repository_have_their_places():
    report.check_docs(ROOT)


@pytest.mark.parametrize("text", ["", "<!-- a -->\n", "<!-- /a -->\n<!-- a -->\n", "<!-- a -->\n<!-- /a -->\n" * 2])
def test_markers_that_are_not_there_once(text):
    with pytest.raises(ValueError, match="<!-- a -->"):
        report.replace(text, "a", "new")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--loss", "huberr"], ["--loss", "'huberr'", "huber"]),
        (["--loss", "mean_squared_error", "--loss", "zzzz"], ["--loss", "'zzzz'", "mean_squared_error"]),
        (["--peer", "torhc"], ["--peer", "'torhc'", "torch"]),
        (["--shape", "32"], ["--shape", "'32'", "4096,1000"]),
        (["--shape", "32,0"], ["--shape", "'32,0'"]),
        (["--shape", "32,10,3"], ["--shape", "'32,10,3'"]),
        (["--shape", "a,b"], ["--shape", "'a,b'"]),
        (["--dtype", "float16"], ["--dtype", "'float16'", "float32 or float64"]),
        (["--threads", "0"], ["--threads"]),
        (["--threads", "100000"], ["--threads", "100000", "cores"]),
        (["--rounds", "0"], ["--rounds"]),
    ],
)
def test_bad_arguments(monkeypatch, capsys, arguments, parts):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run_in_process(monkeypatch, capsys, "bench", *arguments)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in err


def test_files_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for option in ("--json", "--plot"):
        code, out, err = run_in_process(monkeypatch, capsys, "bench", option, "nowhere/file")
        assert (code, out) == (1, "")
        assert_one_line(err, "cannot write to", "nowhere")
    code, out, err = run_in_process(monkeypatch, capsys, "bench", "--write-docs")
    assert (code, out) == (1, "")
    assert_one_line(err, "--write-docs: there is no README.md")
    (tmp_path / "README.md").write_text("nothing to replace\n")
    code, out, err = run_in_process(monkeypatch, capsys, "bench", "--write-docs")
    assert_one_line(err, "<!-- losses -->")


@pytest.mark.parametrize("missing", ["matplotlib", "rich.table"])
def test_missing_extra(missing):
    done = run("bench", without=[missing])
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, missing, "pip install 'fastloss[bench]'")


def test_a_quick_look_has_losses_that_there_are():
    assert set(cases.QUICK) <= set(LOSSES)
    assert cli.bench in cli.COMMANDS


# --------------------------------------------------------------------------------------------------------------
# asv
# --------------------------------------------------------------------------------------------------------------

# What asv does: a fresh object, `setup`, the measured method, `teardown`; here with the first value of each parameter.
SUITE = """
import importlib.util, inspect, sys
spec = importlib.util.spec_from_file_location("suite", sys.argv[1])
suite = importlib.util.module_from_spec(spec)
spec.loader.exec_module(suite)
for name, cls in inspect.getmembers(suite, inspect.isclass):
    methods = [method for method in dir(cls) if method.startswith(("time_", "track_"))]
    if cls.__module__ != "suite" or not methods:
        continue
    params = cls.params if isinstance(cls.params, tuple) else (cls.params,)
    assert len(params) == len(cls.param_names), name
    assert all(values for values in params), name
    first = [values[0] for values in params]
    for method in methods:
        benchmark = cls()
        if hasattr(benchmark, "setup"):
            benchmark.setup(*first)
        result = getattr(benchmark, method)(*first)
        assert method.startswith("time_") or float(result) >= 0, (method, result)
        if hasattr(benchmark, "teardown"):
            benchmark.teardown(*first)
        print(name, method)
"""


@pytest.mark.parametrize(
    ("file", "ran"),
    [
        (
            "losses.py",
            {
                "Throughput track_fraction_of_limit",
                "Throughput track_gigabytes_a_second",
                "Whole time_value_and_grad",
                "Overhead time_value",
                "Memory track_extra_bytes",
                "Compilation time_cold",
                "Compilation time_warm",
            },
        ),
        ("peers.py", {"Peers time_value_and_grad"}),
    ],
)
def test_suites_run(file, ran):
    path = ROOT / "benchmarks" / "suites" / file
    done = subprocess.run([sys.executable, "-c", SUITE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ran <= set(done.stdout.splitlines())


def test_the_quick_comparison_covers_every_case():
    spec = importlib.util.spec_from_file_location("quick", ROOT / "benchmarks" / "test_losses.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {param.values[0] for param in module.RUNS} == set(CASES)
