"""Commands about saved interventions."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mi_ablate.cli.application import AsJson, Threads, app, say_progress, use_threads


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
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts: .txt, one a line, or .jsonl.")] = None,
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


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="A saved intervention (.safetensors).")],
    model: Annotated[str, typer.Option(help="The model to edit: a zoo id, a folder, a hub name.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; numbers for a model without a tokenizer.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts: .txt, one a line, or .jsonl.")] = None,
    new: Annotated[int | None, typer.Option(help="Tokens to generate; 20, or what the context holds.")] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the edited model as a Hugging Face folder.")
    ] = None,
    loose: Annotated[bool, typer.Option("--loose", help="Also on other weights than the file was made on.")] = False,
    chat: Annotated[bool | None, typer.Option(help="Fill prompts into the tokenizer's chat template.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 by default; bfloat16, float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    as_json: AsJson = False,
    threads: Threads = 1,
) -> None:
    """Apply a saved intervention: what the model writes before and after, how far its logits move; export it."""
    use_threads(threads)
    from mi_ablate.applied import apply as run

    if prompt and prompts is not None:
        raise ValueError("Give --prompt TEXT or --prompts FILE, not both.")
    found = run(
        file, model, prompts or prompt, new=new, export=export, strict=not loose, chat=chat, dtype=dtype, device=device,
        report=say_progress,
    )  # fmt: skip
    typer.echo(json.dumps(found.to_json()) if as_json else str(found))
