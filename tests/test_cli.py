"""The command line: what it prints, what it writes, and how it says no."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

import fastloss
from fastloss import cli, demo

ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "COLUMNS")}

# `sys.modules[name] = None` would do, but SciPy asks sys.modules for torch and takes what it finds.
PROGRAM = """
import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name in {without!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
from fastloss.cli import main
main()
"""


def run_in_process(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of a command that does not get far enough to be slow."""
    monkeypatch.setattr(sys, "argv", ["fastloss", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, *capsys.readouterr()


def run(*arguments, without=()):
    """A command in a process of its own, in which some modules cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(without=tuple(without)), *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**ENVIRONMENT, "PYTHONUTF8": "1"},
        timeout=300,
        check=False,
    )


def assert_one_line(text, *parts):
    assert text.startswith("fastloss: error: ")
    assert text.count("\n") == 1
    for part in parts:
        assert part in text


def test_demo_trains_compares_and_plots(tmp_path):
    done = run("demo", "--output", str(tmp_path / "deep" / "er"), "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "Held-out accuracy: 9" in done.stdout
    for name in ("fastloss", "NumPy", "JAX", *(["PyTorch"] if importlib.util.find_spec("torch") else [])):
        assert f"│ {name} " in done.stdout
    assert not {"\x1b", "\r"} & set(done.stdout)  # what moves on a terminal would be rubbish in a pipe
    path = tmp_path / "deep" / "er" / "learning-curve.png"
    assert f"Learning curve: {path}\n" in done.stdout
    pixels = imread(path)
    assert min(pixels.shape[:2]) >= 400
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


def test_demo_without_peers(tmp_path):
    done = run("demo", "--output", str(tmp_path), "--epochs", "1", without=["torch", "optax"])
    assert done.returncode == 0, done.stderr
    assert "Not compared: PyTorch (not installed)\n" in done.stdout
    assert "jit of optax" not in done.stdout
    assert ", jit " in done.stdout  # optax only writes the formula: JAX does without it


@pytest.mark.parametrize("seed", range(5))
def test_demo_classifies_97_percent_of_what_it_has_not_seen(seed):
    defaults = {name: p.default for name, p in inspect.signature(cli.demo).parameters.items()}
    training = demo.train(demo.load(seed), defaults["epochs"], seed, defaults["batch_size"])
    assert training.history["val_accuracy"][-1] >= 0.97
    assert training.history["loss"][-1] < training.history["loss"][0]
    assert 0 < len(training.batches) <= demo.RECORDED


def test_demo_is_reproducible():
    first, again, other = (demo.train(demo.load(seed), 2, seed, 64).history["loss"].tolist() for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize(("value", "gradient"), [(1.001, 1.0), (1.0, 1.001)])
def test_what_computes_something_else_is_not_timed(value, gradient):
    def run_wrong(labels, logits):
        right_value, right_gradient = demo.LOSS.value_and_grad(labels, logits)
        return right_value * value, right_gradient * np.float32(gradient)

    rng = np.random.default_rng(0)
    batch = demo.Batch(rng.integers(10, size=8), rng.standard_normal((8, 10), dtype=np.float32))
    present = [demo._with_fastloss((8, 10)), demo._with_numpy((8, 10))]
    demo.check_agreement(present, [batch])
    wrong = present[0]._replace(name="Wrong", run=run_wrong)
    with pytest.raises(AssertionError, match="Wrong disagrees with fastloss"):
        demo.check_agreement([*present, wrong], [batch])


def test_version(monkeypatch, capsys):
    assert run_in_process(monkeypatch, capsys, "--version") == (0, f"fastloss {fastloss.__version__}\n", "")


def test_help_names_every_command(monkeypatch, capsys):
    code, out, _ = run_in_process(monkeypatch, capsys, "--help")
    assert code == 0
    for command in cli.COMMANDS:
        assert f"  {command.__name__} " in out


def test_console_script():
    (script,) = importlib.metadata.distribution("fastloss").entry_points.select(name="fastloss")
    assert script.load() is cli.main


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["demo", "--epochs", "0"], ["--epochs"]),
        (["demo", "--epochs", "many"], ["--epochs"]),
        (["demo", "--batch-size", "-1"], ["--batch-size"]),
        (["demo", "--batch-size", "5000", "--output", "{tmp}"], ["--batch-size", "5000", "1347 training images"]),
        (["demo", "--seed", str(2**32)], ["--seed"]),
        (["demo", "--nonsense"], ["--nonsense"]),
        (["nonsense"], ["nonsense"]),
    ],
)
def test_bad_arguments(monkeypatch, capsys, tmp_path, arguments, parts):
    code, out, err = run_in_process(monkeypatch, capsys, *(a.format(tmp=tmp_path) for a in arguments))
    assert (code, out) == (2, "")
    for part in parts:
        assert part in err


def test_output_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        code, out, err = run_in_process(monkeypatch, capsys, "demo", "--output", str(output))
        assert (code, out) == (1, "")
        assert_one_line(err, f"cannot write to {output}: ")


@pytest.mark.parametrize("missing", ["typer", "sklearn", "matplotlib", "rich.console"])
def test_missing_extra(missing):
    done = run("demo", without=[missing])
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, missing, "pip install 'fastloss[demo]'")


def test_a_missing_module_of_its_own_is_a_bug_and_no_missing_extra():
    with pytest.raises(ModuleNotFoundError), cli._extra("demo"):
        import fastloss.nonsense  # noqa: F401


def test_the_command_line_loads_no_more_than_it_needs():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, fastloss.cli; print({'numba', 'numpy', 'matplotlib'} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
