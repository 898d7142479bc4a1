"""The typer application, its shared options, and how errors leave the program."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

app = typer.Typer(
    name="mi-ablate",
    help="Find, remove, move and measure what a transformer represents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Threads = Annotated[int, typer.Option(help="Torch threads; more than one is often slower on a shared machine.")]
Operation = Annotated[str | None, typer.Option(help="Which operation of a model with several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the summary.")]


def main() -> None:
    """Run the command line; the entry point of ``mi-ablate``."""
    try:
        app()
    except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        typer.echo(f"error: {text}", err=True)
        raise SystemExit(2) from None


def say_progress(line: str) -> None:
    """Write a line of progress to stderr."""
    typer.echo(f"  {line}", err=True)


def command_line() -> str:
    """Return what the user typed, for cards and pages."""
    return shlex.join(["mi-ablate", *sys.argv[1:]])


def use_threads(count: int) -> None:
    """Set torch's threads."""
    import torch

    torch.set_num_threads(count)


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on stderr over prompts through the model, with the time left; yields (stage, done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<10}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("prompts", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)
