"""The command that shows attention and tokens before and after an edit."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mi_ablate.cli.application import AsJson, Threads, app, command_line, say_progress, use_threads


@app.command()
def attention(
    model: Annotated[str, typer.Argument(help="A hub name (gpt2), a Hugging Face folder, a toy.")],
    prompt: Annotated[
        str, typer.Argument(help="Text; '5 + 9 =' for a toy; token ids with commas without a tokenizer.")
    ],
    edit: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A saved intervention; several act at once.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Such as 0,3-5; all by default.")] = None,
    heads: Annotated[
        str | None, typer.Option(help="Heads to draw, such as 0.1,2.3; by default those that change most.")
    ] = None,
    direction: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Colour tokens by this saved intervention's first direction.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts to measure the heads and their control over.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for attention.html.")] = Path("out"),
    as_json: AsJson = False,
    draws: Annotated[int, typer.Option(help="Seeds of the covariance-drawn control.")] = 5,
    dtype: Annotated[str | None, typer.Option(help="float32 by default; bfloat16, float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    threads: Threads = 1,
) -> None:
    """Show attention, tokens along a direction and the next token, before and after an edit, side by side."""
    use_threads(threads)
    from mi_ablate.attention_view import page as as_page
    from mi_ablate.attention_view import view

    found = view(
        model, prompt, edit or (), layers=layers, heads=heads, direction=direction, prompts=prompts, draws=draws,
        dtype=dtype, device=device, report=say_progress,
    )  # fmt: skip
    page = as_page.write(found, out / "attention.html", command=command_line())
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "page": str(page)}))
    else:
        typer.echo(f"{as_page.summary(found)}\n\nPage: {page}")
