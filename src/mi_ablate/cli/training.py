"""Commands that train toys and grids of them, and list the records."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mi_ablate.cli.application import app, command_line, use_threads

if TYPE_CHECKING:
    from mi_ablate.sweep import Plan
    from mi_ablate.sweep.records import Record


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
    use_threads(threads or 1)
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
        todo = sweep.plan(grid, **places, measures=measure, device=device, command=command_line())
        return say_plan(todo, workers) if dry_run else _run_plan(todo, **chosen)
    _known(what)
    _refuse(
        f"{what!r} is a recipe", "a grid", **options, dry_run=dry_run, measure=measure, quick=quick, results=results
    )
    settings = load_recipe(what)
    settings = settings if seed is None else replace(settings, seed=seed)
    settings = settings if steps is None else replace(settings, steps=steps)
    folder = out or Path("runs") / Path(what).stem
    result = run(settings, out=folder, device=device, resume=resume, command=command_line())
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


def say_plan(todo: "Plan", workers: int | None) -> None:
    """Print the cells of a plan, what is left of them, and about how long it takes here."""
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
    typer.echo(f"Page: {page(path, f'{grids}: training', sections, footer={'command': command_line()})}", err=True)
