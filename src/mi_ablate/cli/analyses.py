"""Commands that analyse a toy on modular arithmetic, or read what it comes in."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mi_ablate.cli.application import AsJson, Operation, Threads, app, command_line, say_progress, use_threads


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="A zoo id, a toy checkpoint or a published toy file.")] = "add97",
    out: Annotated[Path, typer.Option(help="Folder for demo.html.")] = Path("out"),
    as_json: AsJson = False,
    frequencies: Annotated[int, typer.Option(help="Frequencies of the answer circle, by energy of W_E.")] = 10,
    operation: Operation = None,
    full: Annotated[bool, typer.Option(help="Every site on all inputs, every k; prints an estimate.")] = False,
    draws: Annotated[int | None, typer.Option(help="Seeds of each random control.")] = None,
    threads: Threads = 1,
) -> None:
    """Take a grokked transformer apart: frequencies, removal curves with controls, the answer circle, attention."""
    use_threads(threads)
    from mi_ablate import toys
    from mi_ablate.demo import page as as_page
    from mi_ablate.demo import take_apart

    options: dict[str, Any] = {"frequencies": frequencies, "operation": operation, "full": full, "draws": draws}
    found = take_apart(toys.load(model), **options, report=say_progress)
    page = as_page.write(found, out / "demo.html", command=command_line())
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "page": str(page)}))
    else:
        as_page.print_tables(found)
        typer.echo(f"\nPage: {page}")


@app.command()
def fourier(
    model: Annotated[str, typer.Argument(help="A zoo id, a toy checkpoint or a published toy file.")] = "nanda113",
    out: Annotated[Path, typer.Option(help="Folder for fourier.html.")] = Path("out"),
    as_json: AsJson = False,
    frequencies: Annotated[int, typer.Option(help="Key frequencies to take by energy of W_E.")] = 5,
    operation: Operation = None,
    full: Annotated[bool, typer.Option(help="Symmetricity of all triples too: minutes at p = 113.")] = False,
    threads: Threads = 1,
) -> None:
    """Analyse modular arithmetic in frequencies: spectra, key frequencies, losses, Clock or Pizza, necessity, progress."""
    use_threads(threads)
    from mi_ablate import toys
    from mi_ablate.fourier_analysis import analyse
    from mi_ablate.fourier_analysis import page as as_page

    folder = None if model in toys.names() else Path(model).parent
    found = analyse(toys.load(model), operation, count=frequencies, folder=folder, full=full, report=say_progress)
    page = as_page.write(found, out / "fourier.html", command=command_line())
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "page": str(page)}))
    else:
        as_page.print_summary(found)
        typer.echo(f"\nPage: {page}")


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
    """List the shipped toys, and the shipped language models."""
    from mi_ablate import adders, diaries, toys

    for name in toys.names():
        typer.echo(repr(toys.load(name)))
    typer.echo(adders.description())
    typer.echo(diaries.description())
