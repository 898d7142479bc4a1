"""Commands about numbers in a language model, or in a toy on modular arithmetic."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mi_ablate.cli.application import AsJson, Threads, app, command_line, progress_bar, use_threads

if TYPE_CHECKING:
    from mi_ablate._types import HookedModel
    from mi_ablate.arithmetic import Problems

Task = Annotated[str, typer.Option(help="add, sub, times, floordiv, mod, equation or greater.")]
Template = Annotated[
    str | None, typer.Option(help="A name (kt, 'kt space', question, bare, spaced) or a text with {a} and {b}.")
]
Upto = Annotated[int | None, typer.Option(help="Operands from 0 to this, exclusive; the task's own (100) by default.")]
Limit = Annotated[int | None, typer.Option(help="A random sample of so many problems.")]


@app.command()
def helix(
    model: Annotated[str, typer.Argument(help="A hub name (gpt2, pythia-70m), a folder, adder, a toy (nanda113).")],
    task: Task = "add",
    template: Template = None,
    upto: Upto = None,
    periods: Annotated[list[float] | None, typer.Option(metavar="T", help="Repeatable; 2, 5, 10, 100.")] = None,
    layers: Annotated[str | None, typer.Option(help="Such as 0,3-5; all by default.")] = None,
    at: Annotated[list[str] | None, typer.Option(metavar="OPERAND", help="a, b or both (repeatable); a.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for helix.html.")] = Path("out"),
    as_json: AsJson = False,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of samples and controls.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Prompts a pass; chosen by memory.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 by default; bfloat16, float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit on the hub.")] = None,
    threads: Threads = 1,
) -> None:
    """Show how a model represents numbers: spectra, helix fits beside baselines, and what writing them back does."""
    use_threads(threads)
    from mi_ablate.attention_view.asked import layers_of
    from mi_ablate.helix_analysis import analyse_helix
    from mi_ablate.helix_analysis.page import print_summary, write

    loaded, asked, own = problems_for(model, task, template, upto, limit, seed, dtype, device, revision)
    where = None if layers is None else layers_of(layers, loaded.cfg.n_layers)
    with progress_bar(shown=not as_json) as progress:
        found = analyse_helix(
            loaded, asked, name=model, periods=periods or own, at=at or ("a",), layers=where, seed=seed,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
    page = write(found, out / "helix.html", command=command_line())
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "page": str(page)}))
    else:
        print_summary(found)
        typer.echo(f"\nPage: {page}")


def problems_for(
    name: str,
    task: str,
    template: str | None,
    upto: int | None,
    limit: int | None,
    seed: int,
    dtype: str | None,
    device: str | None,
    revision: str | None,
) -> "tuple[HookedModel, Problems, tuple[float, ...] | None]":
    """The model, its problems, and the periods of a toy (p / k of its key frequencies; None for a language model)."""
    from mi_ablate import modular, toys
    from mi_ablate.arithmetic import problems, problems_of
    from mi_ablate.arithmetic.tasks import task_of
    from mi_ablate.loading import load_model, precision_of

    if name in toys.names() or Path(name).is_file():
        toy = toys.load(name, device=device or "cpu", dtype=precision_of(dtype))
        asked = problems_of(toy, None if task == "add" and len(toy.config.operations) == 1 else task)
        keys = modular.key_frequencies(modular.grid(toy, toy.config.operations[0]))["energy"]
        return toy.model, asked, tuple(toy.modulus / k for k in sorted(keys.frequencies)) or None
    kind = task_of(task)  # what is wrong with the words is said before the model is loaded
    kind.template(template)
    loaded = load_model(name, dtype=dtype, device=device, revision=revision)
    a = None if upto is None else range(kind.a.start, upto)
    b = None if upto is None or kind.b != range(100) else range(upto)
    asked = problems(loaded, kind, a, b, template=template, outside="drop", limit=limit, seed=seed)
    return loaded, asked, None
