"""The command line, ``fastloss COMMAND``.

A command is a function of this module, named in `COMMANDS`. What it needs beyond NumPy and Numba it imports when it
runs, within `_extra`, so that ``fastloss --help`` is quick and a missing library is one line instead of a traceback.
"""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import fastloss

try:
    import typer
except ModuleNotFoundError:  # the core needs NumPy and Numba alone: `main` says what to install
    typer = None  # type: ignore[assignment]


def demo(
    output: Annotated[Path, typer.Option(help="Where the learning curve goes.")] = Path("demo-output"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the split, the weights and the batches.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a training step.")] = 32,
) -> None:
    """Train a small network; time its loss beside other libraries."""
    with _extra("demo"):
        from fastloss import demo as digits_demo

    # Asked before anything is computed: nobody waits for a training to learn that its result has no place.
    try:
        directory = digits_demo.writable_directory(output)
    except OSError as error:
        _fail(f"cannot write to {output}: {error.strerror or error}", code=1)
    digits = digits_demo.load(seed)
    if batch_size > (available := len(digits.train_labels)):
        message = f"{batch_size} is more than the {available} training images."
        raise typer.BadParameter(message, param_hint="'--batch-size'")
    digits_demo.run(digits, directory, epochs, seed, batch_size)


def bench(
    loss: Annotated[
        list[str] | None, typer.Option(help="Identifier of a loss; may be repeated. By default all.", metavar="NAME")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Of predictions, like 4096,1000; may be repeated.", metavar="ROWS,COLUMNS")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Who is compared; may be repeated. By default all.", metavar="NAME")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="For everybody. [default: 2]")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns that each gets at most. [default: 20]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few losses, shapes and rounds; no torch.compile.")] = False,
    properties: Annotated[
        bool, typer.Option("--properties", help="Short rows, weights, dtypes, threads, memory and compilation too.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda: on a GPU, beside PyTorch.")] = "cpu",
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Where all figures go.")] = None,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Where a plot goes, as PNG.")] = None,
    write_docs: Annotated[
        bool, typer.Option("--write-docs", help="Write README.md and docs/benchmarks.md, in a copy of the repository.")
    ] = False,
) -> None:
    """Time losses beside other libraries and the machine's limit."""
    with _extra("bench"):
        from rich.console import Console

        from fastloss.bench import cases, machine, measure, peers, report

    # All that can be wrong is asked before anything is measured.
    known, everybody = report.known(), set(peers.PEERS)
    names = _chosen("--loss", loss, known) or (cases.QUICK if quick else ())
    if device == "cuda":
        _bench_gpu(names, rounds or (5 if quick else 20), json)
        return
    if device != "cpu":
        raise typer.BadParameter(f"must be cpu or cuda, got {device!r}", param_hint="'--device'")
    if dtype not in ("float32", "float64"):
        raise typer.BadParameter(f"must be float32 or float64, got {dtype!r}", param_hint="'--dtype'")
    threads = threads or min(2, machine.cores())
    if threads > machine.cores():
        message = f"{threads} is more than the {machine.cores()} cores that this process may use."
        raise typer.BadParameter(message, param_hint="'--threads'")
    sizes = tuple(_shape(text) for text in shape or ()) or ((cases.SMALL, cases.LARGE) if quick else ())
    others = _chosen("--peer", peer, everybody) or tuple(
        name for name in peers.PEERS if not (quick and name == "torch-compile")
    )
    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            _fail(f"cannot write to {path}: there is no folder {path.parent}", code=1)
    if write_docs:
        try:
            report.check_docs(Path())
        except ValueError as error:
            _fail(f"--write-docs: {error}", code=1)

    machine.prepare(threads, dtype)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    turns = rounds or (5 if quick else 20)
    found = report.run(console, names, sizes, dtype, threads, turns, others)
    if write_docs:
        found["processes"], found["bare_call"] = measure.processes(max(3, turns // 2)), measure.bare_call(turns)
    if properties:
        from fastloss.bench.properties import measure as measure_properties

        found["properties"] = [figure._asdict() for figure in measure_properties(threads, turns)]
    report.show(console, found, details=bool(loss))
    if json is not None:
        report.write_json(found, json)
    if plot is not None:
        report.plot(found, plot)
    if write_docs:
        report.write_docs(found, Path())


def _bench_gpu(names: tuple[str, ...], rounds: int, json: Path | None) -> None:
    from rich.console import Console

    from fastloss.bench import gpu

    problem = gpu.available()
    if problem is not None:
        _fail(f"--device cuda: {problem}", code=1)
    found = gpu.run(names, rounds)
    gpu.show(Console(highlight=False, width=None if sys.stdout.isatty() else 200), found)
    if json is not None:
        gpu.write_json(found, json)


def watch(
    file: Annotated[Path, typer.Argument(help="What a History writes: JSON lines or CSV.", dir_okay=False)],
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Follow a training's log, until Ctrl-C."""
    with _extra("monitor"):
        from rich.console import Console

        from fastloss.monitor import History
        from fastloss.monitor import watch as watching

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    try:
        if once:
            console.print(watching.view(file, History.read(file)))
        else:
            watching.follow(file, every, console)
    except OSError as error:
        _fail(f"cannot read {file}: {error.strerror or error}", code=1)
    except ValueError as error:
        _fail(str(error), code=1)


def _chosen(option: str, given: list[str] | None, known: set[str]) -> tuple[str, ...]:
    """What was asked for, if there is such a thing."""
    for name in given or ():
        if name not in known:
            close = difflib.get_close_matches(name, known, 3) or sorted(known)
            raise typer.BadParameter(f"{name!r} is unknown; there is {', '.join(close)}.", param_hint=f"'{option}'")
    return tuple(dict.fromkeys(given or ()))


def _shape(text: str) -> tuple[int, int]:
    """Rows and columns."""
    found = re.fullmatch(r"([1-9]\d*)[,x]([1-9]\d*)", text.replace(" ", ""))
    if found is None:
        raise typer.BadParameter(f"must be two positive numbers like 4096,1000, got {text!r}", param_hint="'--shape'")
    return int(found[1]), int(found[2])


COMMANDS: tuple[Callable[..., None], ...] = (demo, bench, watch)


def main() -> None:
    """Run the command line: the entry point of the console script."""
    if typer is None:
        _fail("the command line needs typer: pip install 'fastloss[demo]'", code=2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal or a pipe that has no µ gets a question mark
    _app()(prog_name="fastloss")


def _app() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        # Plain text reads the same in a terminal, a pipe and a log; and a bug shows Python's own traceback.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for command in COMMANDS:
        app.command()(command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastloss {fastloss.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Losses and their gradients in one fused, compiled pass."""


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Turn a missing library into an error that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fastloss"):
            raise  # no extra brings this one: it is a bug
        _fail(f"this command needs {error.name}: pip install 'fastloss[{name}]'", code=2)


def _fail(message: str, code: int) -> NoReturn:
    print(f"fastloss: error: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
