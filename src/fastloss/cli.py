"""The command line, ``fastloss COMMAND``.

A command is a function of this module, named in `COMMANDS`. What it needs beyond NumPy and Numba it imports when it
runs, within `_extra`, so that ``fastloss --help`` is quick and a missing library is one line instead of a traceback.
"""

from __future__ import annotations

import io
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


COMMANDS: tuple[Callable[..., None], ...] = (demo,)


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
