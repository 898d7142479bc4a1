"""The command that runs and shows the studies of the research log."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mi_ablate.cli.application import AsJson, app, command_line, use_threads
from mi_ablate.cli.training import say_plan

if TYPE_CHECKING:
    from mi_ablate.studies import Findings, Study
    from mi_ablate.studies.standing import Standing


@app.command()
def study(
    name: Annotated[str | None, typer.Argument(help="A study (weight-decay); all are listed without it.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Only read the records: train and measure nothing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what is left with an estimate, and train nothing.")
    ] = False,
    train: Annotated[
        bool, typer.Option(help="Train cells that are missing, before measuring; --no-train only measures.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Small models, to check the machinery: minutes.")] = False,
    page: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with figures.")] = None,
    as_json: AsJson = False,
    budget: Annotated[float | None, typer.Option(metavar="MINUTES", help="Stop then; resume later.")] = None,
    engine: Annotated[str | None, typer.Option(help="local processes (default), or ray (an extra).")] = None,
    workers: Annotated[int | None, typer.Option(help="Cells at once; as many as cores by default.")] = None,
    stack: Annotated[int | None, typer.Option(help="Cells of one shape trained together; for GPUs.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    results: Annotated[
        Path | None, typer.Option(help="Folder of the records, benchmarks/results/studies by default.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder where cells train, runs by default.")] = None,
) -> None:
    """Run a study of the research log and print its tables and verdicts; interrupt it and repeat it to go on."""
    use_threads(1)
    from mi_ablate import sweep
    from mi_ablate.studies import STUDIES, load_study
    from mi_ablate.studies.standing import Standing

    given = {"engine": engine, "workers": workers, "stack": stack, "budget": budget}
    options: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
    sweep.check_options(**options)
    results, runs = results or sweep.RESULTS, runs or sweep.RUNS
    chosen = list(STUDIES.values()) if name is None else [load_study(name)]
    if dry_run:
        return _say_left(chosen, quick, results, runs, device, workers)
    ended = 0
    if name is not None and not show:
        ended = _run(chosen[0], train=train, quick=quick, results=results, runs=runs, device=device, **options)
    elif options:
        raise ValueError(
            f"--{next(iter(options))} is for a run; this one only reads records. Name a study, without --show."
        )
    standings = [Standing.of(one, results, quick) for one in chosen]
    found = {one.name: one.findings(results, quick) for one in chosen}
    _print(standings, found, name is None, as_json)
    if page is not None:
        from mi_ablate.studies.interactive import write_page

        typer.echo(f"Page: {write_page(page, standings, found, command_line())}", err=True)
    if ended:
        raise SystemExit(ended)


def _run(study: "Study", **options: Any) -> int:
    """Run what is missing, and return the exit status."""
    from mi_ablate.studies import run_study

    typer.echo(_announced(study, options), err=True)
    try:
        outcome = run_study(study, command=command_line(), report=lambda line: typer.echo(line, err=True), **options)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from the last checkpoints.", err=True)
        raise SystemExit(130) from None
    if outcome.left:
        typer.echo(f"{outcome!r}: the same command goes on where this one stopped.", err=True)
    return 1 if outcome.failed else 0


def _announced(study: "Study", options: dict[str, Any]) -> str:
    """What a run will take, said before it begins."""
    from mi_ablate import sweep
    from mi_ablate.studies.cells import minutes
    from mi_ablate.sweep.local import cores

    places = {key: options[key] for key in ("results", "runs", "device")}
    plans = [sweep.plan(grid, **places) for grid in study.declared(options["quick"])]
    todo = [planned for plan in plans for planned in plan.todo if planned.steps_left]
    if not options["train"]:
        return f"{study.name}: its own measurements; {len(todo)} of its cells stay untrained."
    left = sum(minutes(p.task.cell) * p.steps_left / p.task.cell.steps for p in todo) / 60
    at_once = options.get("workers") or cores()
    return (
        f"{study.name}: {len(todo)} of {sum(len(plan.cells) for plan in plans)} cells to train, about {left:.1f} core-hours "
        f"({left / at_once:.1f} hours with {at_once} workers), then its measurements."
    )


def _say_left(chosen: "list[Study]", quick: bool, results: Path, runs: Path, device: str, workers: int | None) -> None:
    from mi_ablate import sweep
    from mi_ablate.studies.standing import Standing

    grids = {grid.name: grid for one in chosen for grid in one.declared(quick)}
    for grid in grids.values():
        say_plan(sweep.plan(grid, results=results, runs=runs, device=device, command=command_line()), workers)
    for one in chosen:
        standing = Standing.of(one, results, quick)
        for item in standing.untaken:
            about = "" if item.seconds is None else f"about {item.seconds:g} seconds of one core"
            typer.echo(f"{one.name}: measurement {item.key}  {about}".rstrip())
        typer.echo(repr(standing))


def _print(standings: "list[Standing]", found: "dict[str, Findings]", listed: bool, as_json: bool) -> None:
    from mi_ablate.studies.printed import print_findings, print_studies

    if as_json:
        told = [_json(one, found[one.study.name]) for one in standings]
        typer.echo(json.dumps(told if listed else told[0]))
    elif listed:
        print_studies(standings, found)
        typer.echo(
            "`mi-ablate study NAME` runs one; --show only prints what is there; --dry-run says what is left.", err=True
        )
    else:
        print_findings(standings[0], found[standings[0].study.name])


def _json(standing: "Standing", found: "Findings") -> dict[str, Any]:
    study = standing.study
    return {
        "study": study.name, "log": study.log, "title": study.title, "question": study.question,
        "cells": len(standing.cells), "cells_run": len(standing.cells.done),
        "measurements": standing.items, "measurements_taken": standing.items - len(standing.untaken),
        "tables": [asdict(table) for table in found.tables], "figures": list(found.figures), "notes": list(found.notes),
        "verdicts": [asdict(verdict) for verdict in found.verdicts], "missing": standing.missing(),
    }  # fmt: skip
