"""The command line: one library call a command.

Results go to stdout, progress to stderr. What a user can get wrong is one sentence and exit status 2; a traceback is ours.
"""

import json
import sys
from pathlib import Path
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


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="A zoo id, a toy checkpoint or a published toy file.")] = "add97",
    out: Annotated[Path, typer.Option(help="Folder for demo.html.")] = Path("out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the tables.")] = False,
    frequencies: Annotated[int, typer.Option(help="Frequencies of the answer circle, by energy of W_E.")] = 10,
    operation: Annotated[str | None, typer.Option(help="Which operation of a model with several.")] = None,
    full: Annotated[
        bool, typer.Option(help="Every site on all inputs, every k and ablation. Prints an estimate.")
    ] = False,
    draws: Annotated[int | None, typer.Option(help="Seeds of each random control.")] = None,
    threads: Threads = 1,
) -> None:
    """Take a grokked transformer apart: frequencies, removal curves with controls, the answer circle, attention."""
    _threads(threads)
    from mi_ablate import toys
    from mi_ablate.demo import page as as_page
    from mi_ablate.demo import take_apart

    toy = toys.load(model)
    found = take_apart(
        toy,
        frequencies=frequencies,
        operation=operation,
        full=full,
        draws=draws,
        report=lambda line: typer.echo(f"  {line}", err=True),
    )
    page = as_page.write(found, out / "demo.html", command=_command())
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "page": str(page)}))
    else:
        as_page.print_tables(found)
        typer.echo(f"\nPage: {page}")


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(metavar="NAME_OR_CONFIG", help="A recipe such as add97, or a JSON or TOML file.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the model; runs/NAME by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Another number of steps than the recipe's.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the folder's checkpoint.")] = True,
    threads: Threads = 1,
) -> None:
    """Train a toy; interrupt it at any time and run the same command to go on."""
    _threads(threads)
    from dataclasses import replace

    from mi_ablate.toys.recipes import load_recipe
    from mi_ablate.toys.train import train as run

    settings = load_recipe(config)
    settings = settings if seed is None else replace(settings, seed=seed)
    settings = settings if steps is None else replace(settings, steps=steps)
    folder = out or Path("runs") / Path(config).stem
    result = run(settings, out=folder, device=device, resume=resume, command=_command())
    typer.echo(result)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A published .pth pickle of a modular-addition transformer.")],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
) -> None:
    """Convert a published pickle to safetensors, executing nothing (torch.load with weights_only=True)."""
    from mi_ablate.toys.published import convert_pickle

    typer.echo(f"Wrote {convert_pickle(source, out)}. Try: mi-ablate demo --model {out}")


@app.command()
def models() -> None:
    """List the shipped toys."""
    from mi_ablate import toys

    for name in toys.names():
        typer.echo(repr(toys.load(name)))


def main() -> None:
    """Run the command line; the entry point of ``mi-ablate``."""
    try:
        app()
    except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        typer.echo(f"error: {text}", err=True)
        raise SystemExit(2) from None


def _command() -> str:
    return " ".join(["mi-ablate", *sys.argv[1:]])


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


if __name__ == "__main__":
    main()
