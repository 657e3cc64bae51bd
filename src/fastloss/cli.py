"""The command line, ``fastloss COMMAND``.

A command is a function of this module, named in `COMMANDS`. What it needs beyond NumPy and Numba it imports when it
runs, within `_extra`, so that ``fastloss --help`` is quick and a missing library is one line instead of a traceback.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
        bool,
        typer.Option(
            "--write-docs",
            help="Write README.md and docs/benchmarks.md, in a copy of the repository; most losses at two shapes.",
        ),
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
    brief = write_docs and not names and not sizes
    found = report.run(console, names, sizes, dtype, threads, turns, others, brief)
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


def eval(
    data: Annotated[
        str | None, typer.Argument(help="A table or folder whose columns the options name.", metavar="DATA")
    ] = None,
    loss: Annotated[str, typer.Option(help="Identifier of a loss; `fastloss losses` lists them.")] = "",
    y_true: Annotated[str, typer.Option(help="A column of DATA, or a file; FILE::NAME in a file of several.")] = "",
    y_pred: Annotated[str, typer.Option(help="Likewise.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An argument of the loss; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    sample_weight: Annotated[str | None, typer.Option(help="Likewise, or a number.")] = None,
    mask: Annotated[str | None, typer.Option(help="Which samples count; likewise.")] = None,
    group_by: Annotated[str | None, typer.Option(help="A result for each label of this; likewise.")] = None,
    top: Annotated[int, typer.Option(min=0, help="How many of the worst samples to show.")] = 0,
    json: Annotated[str | None, typer.Option(help="Where the result goes as JSON; - for standard output.")] = None,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Where a plot goes.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Keeps the state, to go on after a kill.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, like tcp://host:8786; or threads, processes.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples read at once.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute. [default: all cores]")] = None,
) -> None:
    """Evaluate a loss over files of any size."""
    for option, value in (("--loss", loss), ("--y-true", y_true), ("--y-pred", y_pred)):
        if not value:
            raise typer.BadParameter("must be given.", param_hint=f"'{option}'")
    arguments = dict(_setting(text) for text in settings or ())
    for path in (plot, checkpoint, None if json in (None, "-") else Path(json or "")):
        # Asked before anything is computed: nobody waits for a result that has no place.
        if path is not None and not path.parent.is_dir():
            _fail(f"cannot write to {path}: there is no folder {path.parent}", code=1)
    try:
        found = _loss(loss, arguments)
        evaluation = fastloss.evaluate(
            found,
            y_true,
            y_pred,
            _number(sample_weight),
            mask=mask,
            group_by=group_by,
            data=data,
            top_k=top,
            checkpoint=checkpoint,
            scheduler=scheduler,
            batch_size=batch_size or "auto",
            progress=sys.stderr.isatty(),
            n_threads=threads,
        )
        if plot is not None:
            evaluation.plot(plot)
        text = evaluation.to_json(None if json in (None, "-") else json)
    except ImportError as error:
        _fail(str(error), code=2)
    except (OSError, TypeError, ValueError) as error:
        _fail("; ".join([str(error), *getattr(error, "__notes__", ())]), code=1)
    print(text if json == "-" else evaluation)


def losses(
    name: Annotated[str | None, typer.Argument(help="Show this one's documentation.")] = None,
) -> None:
    """List the losses, with their options and defaults."""
    from fastloss.losses import identifiers
    from fastloss.registry import BATCH_LOSSES, LOSSES

    rows: dict[str, Any] = {**LOSSES, **BATCH_LOSSES}
    if name is not None:
        try:
            found = rows[name].cls if name in rows else identifiers.class_of(identifiers.find(name))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="'NAME'") from None
        typer.echo(inspect.getdoc(found))
        return
    # One without a function is known by its class alone.
    rows = {key if row.function else row.cls.__name__: row for key, row in rows.items()}
    width = max(map(len, rows))
    for key in sorted(rows):
        options = inspect.signature(rows[key].cls).parameters.values()
        shown = (
            option.name if option.default is option.empty else f"{option.name}={option.default!r}"
            for option in options
            if option.name not in ("name", "dtype", "reduction")
        )
        typer.echo(f"{key:<{width}}  {', '.join(shown)}".rstrip())
    typer.echo("\nAll take reduction= too: sum_over_batch_size, mean, mean_with_sample_weight, sum or none.")


def doctor() -> None:
    """Report versions, processor, threads, cache and CUDA."""
    from fastloss.doctor import examine

    found = examine()
    width = max(map(len, found))
    for name, value in found.items():
        typer.echo(f"{name:<{width}}  {value}")
    if any("FAILED" in value for value in found.values()):
        raise SystemExit(1)


def _setting(text: str) -> tuple[str, Any]:
    """``name=value``, the value as Python or JSON writes it, else as text."""
    name, sign, value = text.partition("=")
    if not (sign and name.isidentifier()):
        raise typer.BadParameter(f"must be like delta=2, got {text!r}", param_hint="'--set'")
    words = {"true": True, "false": False, "null": None}
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _number(text: str | None) -> Any:
    """A weight of all samples, if it is a number."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _loss(name: str, arguments: dict[str, Any]) -> Any:
    """The loss of that name with these arguments."""
    from fastloss.losses import identifiers

    try:
        loss = identifiers.instance(name)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="'--loss'") from None
    known = list(inspect.signature(type(loss)).parameters)
    for key in arguments:
        if key not in known:
            message = f"{type(loss).__name__} has no {key!r}; there is {', '.join(known)}."
            raise typer.BadParameter(message, param_hint="'--set'")
    try:
        return type(loss)(**arguments)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="'--set'") from None


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


COMMANDS: tuple[Callable[..., None], ...] = (demo, bench, watch, eval, losses, doctor)


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
