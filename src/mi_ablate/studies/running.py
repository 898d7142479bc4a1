"""Run a study: its grids on an engine, then its own measurements; everything can be stopped and gone on with."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mi_ablate.studies.cells import Cells
from mi_ablate.studies.own import take_own
from mi_ablate.studies.study import Study
from mi_ablate.sweep import RESULTS, RUNS, Outcome, plan, run_grid


def run_study(
    study: Study,
    *,
    results: Path | str = RESULTS,
    runs: Path | str = RUNS,
    quick: bool = False,
    train: bool = True,
    device: str = "cpu",
    budget: int | float | None = None,
    command: str = "mi_ablate.studies.run_study",
    report: Callable[[str], None] = lambda line: None,
    **engine: Any,
) -> Outcome:
    """Train and measure what the study lacks, then take its own measurements of what is there.

    Args:
        study: one of `STUDIES`.
        results: the folder of the records.
        runs: the folder where cells train.
        quick: small models that grok in about a minute, to check the machinery and not the claims.
        train: False trains no cell, and only takes the study's own measurements of those that are recorded.
        device: "cpu" or "cuda".
        budget: minutes in all; what is left is done by the same call made again.
        command: for the records.
        report: called with a line for each cell and each measurement.
        engine: ``engine``, ``workers``, ``stack``, ``gpu_share``, ``progress`` of `sweep.run_grid`.

    Raises:
        ValueError: options that cannot be meant.
        RuntimeError: another process writes these records.
        ArtefactError: records or weights that cannot be read.
        OSError: a full disk; nothing is lost.

    """
    total, deadline = Outcome(), None if budget is None else time.monotonic() + 60 * budget
    for grid in study.declared(quick) if train else ():
        minutes = None if deadline is None else max(0.0, (deadline - time.monotonic()) / 60)
        todo = plan(grid, results=results, runs=runs, device=device, command=command)
        done = run_grid(todo, budget=minutes, report=report, **engine)
        total.recorded, total.left = total.recorded + done.recorded, total.left + done.left
        total.failed |= done.failed
    if study.items is not None:
        cells = Cells.load(study.declared(quick), results, quick=quick, runs=runs)
        total.left += take_own(
            study, study.items(cells), results, quick=quick, command=command, report=report, deadline=deadline
        )
    return total
