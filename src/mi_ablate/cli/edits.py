"""Commands about saved interventions."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mi_ablate.cli.application import AsJson, Threads, app, use_threads


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A saved intervention (.safetensors).")],
    model: Annotated[
        str | None,
        typer.Option(help="The model that it belongs to: a zoo id, a folder, a hub name. A zoo model is recognised."),
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Another saved intervention; cosines with it.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Text, one prompt a line.")] = None,
    top: Annotated[int, typer.Option(help="Tokens and inputs to name.")] = 6,
    directions: Annotated[int, typer.Option(help="Leading directions to describe.")] = 3,
    as_json: AsJson = False,
    threads: Threads = 1,
) -> None:
    """Print a saved intervention's card and explain its directions: tokens, inputs, cosines to others."""
    use_threads(threads)
    from mi_ablate.shown import show as run

    shown = run(file, model, against=against or (), prompts=prompts, top=top, directions=directions)
    typer.echo(json.dumps(shown.to_json()) if as_json else str(shown))
