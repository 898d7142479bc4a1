"""The command line: one library call a command.

Results go to stdout, progress to stderr. What a user can get wrong is one sentence and exit status 2; a traceback is ours.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mi_ablate.sweep import Plan
    from mi_ablate.sweep.records import Record

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
    _threads(threads)
    from mi_ablate import toys
    from mi_ablate.demo import page as as_page
    from mi_ablate.demo import take_apart

    options: dict[str, Any] = {"frequencies": frequencies, "operation": operation, "full": full, "draws": draws}
    found = take_apart(toys.load(model), **options, report=_progress)
    page = as_page.write(found, out / "demo.html", command=_command())
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
    _threads(threads)
    from mi_ablate import toys
    from mi_ablate.fourier_analysis import analyse
    from mi_ablate.fourier_analysis import page as as_page

    folder = None if model in toys.names() else Path(model).parent
    found = analyse(toys.load(model), operation, count=frequencies, folder=folder, full=full, report=_progress)
    page = as_page.write(found, out / "fourier.html", command=_command())
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "page": str(page)}))
    else:
        as_page.print_summary(found)
        typer.echo(f"\nPage: {page}")


@app.command()
def train(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_GRID", help="A recipe (add97), a grid (weight-decay), or a file of one.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Recipe: folder for the model, runs/NAME by default. Grid: folder of runs, runs."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int | None, typer.Option(help="Recipe: another seed than its own.")] = None,
    steps: Annotated[int | None, typer.Option(help="Recipe: another number of steps than its own.")] = None,
    resume: Annotated[bool, typer.Option(help="Recipe: continue from the folder's checkpoint.")] = True,
    engine: Annotated[str | None, typer.Option(help="Grid: local processes (default), or ray (an extra).")] = None,
    workers: Annotated[int | None, typer.Option(help="Grid: tasks at once; as many as cores by default.")] = None,
    stack: Annotated[int | None, typer.Option(help="Grid: cells of one shape trained together; for GPUs.")] = None,
    gpu_share: Annotated[
        float | None, typer.Option(help="Grid on ray with cuda: part of a GPU that a task reserves; 0.25.")
    ] = None,
    budget: Annotated[float | None, typer.Option(metavar="MINUTES", help="Grid: stop then; resume later.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Grid: list cells, steps and an estimate, and train nothing.")] = False,
    measure: Annotated[
        list[str] | None, typer.Option(help="Grid: only this measure; may be repeated. All by default.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Grid: small models that grok in about a minute.")] = False,
    results: Annotated[
        Path | None, typer.Option(help="Grid: folder of the records, benchmarks/results/studies by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Recipe: torch threads, 1 by default.")] = None,
) -> None:
    """Train a toy, or every cell of a grid; interrupt it at any time and run the same command to go on."""
    _threads(threads or 1)
    from dataclasses import replace

    from mi_ablate import sweep
    from mi_ablate.toys.recipes import load_recipe
    from mi_ablate.toys.train import train as run

    options = {"engine": engine, "workers": workers, "stack": stack, "gpu_share": gpu_share, "budget": budget}
    if sweep.is_grid(what):
        _refuse(f"{what!r} is a grid", "a recipe", seed=seed, steps=steps, no_resume=not resume, threads=threads)
        chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        sweep.check_options(**chosen)
        places: dict[str, Any] = {"results": results or sweep.RESULTS, "runs": out or sweep.RUNS}
        grid = sweep.load_grid(what, quick)
        todo = sweep.plan(grid, **places, measures=measure, device=device, command=_command())
        return _say_plan(todo, workers) if dry_run else _run_plan(todo, **chosen)
    _known(what)
    _refuse(
        f"{what!r} is a recipe", "a grid", **options, dry_run=dry_run, measure=measure, quick=quick, results=results
    )
    settings = load_recipe(what)
    settings = settings if seed is None else replace(settings, seed=seed)
    settings = settings if steps is None else replace(settings, steps=steps)
    folder = out or Path("runs") / Path(what).stem
    result = run(settings, out=folder, device=device, resume=resume, command=_command())
    typer.echo(result)


def _refuse(this: str, other: str, **options: Any) -> None:
    """Raise a ValueError for options on the command line that would do nothing."""
    for name, value in options.items():
        if value not in (None, False):
            raise ValueError(f"{this}; --{name.replace('_', '-')} is for {other}.")


def _known(what: str) -> None:
    """Raise a ValueError for a name that is neither a recipe's nor a grid's."""
    from mi_ablate._types import nearest
    from mi_ablate.sweep import GRIDS
    from mi_ablate.toys.recipes import RECIPES

    if not Path(what).suffix and what not in RECIPES:
        raise ValueError(f"There is no recipe or grid {what!r}. {nearest(what, [*RECIPES, *GRIDS])}")


def _say_plan(todo: "Plan", workers: int | None) -> None:
    import os

    for row in todo.table():
        typer.echo("{key}  seed {seed}  {done:>6,} of {steps:>6,} steps  {state:<13} {cell}".format(**row))
    left, at_once = sum(p.steps_left for p in todo.cells), workers or os.cpu_count() or 1
    minutes = todo.seconds() / 60
    typer.echo(
        f"{todo!r}: {left:,} steps left, about {minutes:.0f} minutes of one core, {minutes / at_once:.0f} with {at_once} "
        f"workers, and the measures. Records: {todo.records}"
    )


def _run_plan(todo: "Plan", **options: Any) -> None:
    from mi_ablate import sweep

    try:
        outcome = sweep.run_grid(todo, report=lambda line: typer.echo(line, err=True), **options)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from the last checkpoints.", err=True)
        raise SystemExit(130) from None
    typer.echo(f"{outcome!r}: {todo.records}")
    if outcome.left:
        typer.echo("The same command goes on where this one stopped.", err=True)
    if outcome.failed:
        raise SystemExit(1)


@app.command()
def runs(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Grids whose records to list; all by default.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="weight_decay=0.1, 'grok_step<3000'; = != < <= > >=, several must all hold."
        ),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only cells that failed.")] = False,
    sort: Annotated[str | None, typer.Option(metavar="NAME", help="A column or setting; -NAME: largest first.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("benchmarks/results/studies"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as one JSON list.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the training curves as a page.")] = None,
    by: Annotated[str, typer.Option(help="What has its own colour: config, seed, or a setting.")] = "config",
) -> None:
    """List the recorded cells of grids: what they are, how they ended, and their training curves."""
    from mi_ablate.sweep import listing, table

    conditions = [*(where or []), *(["status=failed"] if failed else [])]
    there = listing.load_records(names or (), results)
    chosen = listing.select(there, conditions)
    chosen = listing.sort(chosen, sort) if sort else chosen
    rows = listing.rows(chosen)
    if plot is not None and chosen:
        _plot_runs(chosen, rows, plot, by)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        table.print_table(chosen)
    typer.echo(f"{len(chosen)} of {len(there)} cells." if chosen else listing.why_none(there, conditions), err=True)


def _plot_runs(records: "list[Record]", rows: list[dict[str, Any]], path: Path, by: str) -> None:
    from mi_ablate.figures import training_curves
    from mi_ablate.report import Section, page

    grids = ", ".join(dict.fromkeys(record["grid"] for record in records))
    sections = [Section("Training curves", content=[training_curves(records, by)]), Section("Cells", content=[rows])]
    typer.echo(f"Page: {page(path, f'{grids}: training', sections, footer={'command': _command()})}", err=True)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A published .pth pickle of a modular-addition transformer.")],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
) -> None:
    """Convert a published pickle to safetensors, executing nothing (torch.load with weights_only=True)."""
    from mi_ablate.toys.published import convert_pickle

    typer.echo(f"Wrote {convert_pickle(source, out)}. Try: mi-ablate demo --model {out}")


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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    threads: Threads = 1,
) -> None:
    """Print a saved intervention's card and explain its directions: tokens, inputs, cosines to others."""
    _threads(threads)
    from mi_ablate.shown import show as run

    shown = run(file, model, against=against or (), prompts=prompts, top=top, directions=directions)
    typer.echo(json.dumps(shown.to_json()) if as_json else str(shown))


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


def _progress(line: str) -> None:
    typer.echo(f"  {line}", err=True)


def _command() -> str:
    return " ".join(["mi-ablate", *sys.argv[1:]])


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


if __name__ == "__main__":
    main()
