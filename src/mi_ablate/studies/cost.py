"""What the records cost: CPU time of the recorded runs by grid, and of the studies' own measurements.

``run.cpu_seconds`` of a record is its training on the CPU, evaluations included; the measures taken afterwards are not in it,
and neither are runs that were superseded or failed. Time on a GPU is not measured, so runs from one are counted apart.
"""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mi_ablate.studies.own import FOLDER
from mi_ablate.sweep.declared import GRIDS
from mi_ablate.sweep.records import Record, RecordFile


def cost_rows(results: Path | str) -> list[dict[str, Any]]:
    """Return a row for each grid and each study's own measurements that have records, and their sum; none for no records.

    Raises:
        ArtefactError: a record file that cannot be read.

    """
    folder = Path(results)
    rows, seconds = [], 0.0
    for name, grid in GRIDS.items():
        done = _done(folder / f"{name}.jsonl")
        mine = [record for record in done if record["device"] == "cpu"]
        spent = [float(record["run"]["cpu_seconds"]) for record in mine]
        steps = [int(record["metrics"]["training"]["steps"]) for record in mine]
        if done:
            apart = f", {len(done) - len(mine)} on a GPU, time not measured" if len(done) > len(mine) else ""
            each = f"{1000 * statistics.median(s / n for s, n in zip(spent, steps)):.0f}" if mine else "-"
            rows.append(
                _row(f"`{name}`", f"{len(done)} of {len(grid.cells)} runs{apart}", f"{sum(steps):,}", each, sum(spent))
            )
            seconds += sum(spent)
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        taken = _done(path) if not path.stem.endswith("-quick") else []
        spent = [float(line["run"]["cpu_seconds"]) for line in taken]
        if taken:
            rows.append(_row(f"measurements of `{path.stem}`", f"{len(taken)} taken", "-", "-", sum(spent)))
            seconds += sum(spent)
    return [*rows, _row("together", "", "", "", seconds)] if rows else []


def _row(what: str, count: str, steps: str, each: str, seconds: float) -> dict[str, Any]:
    return {
        "": what,
        "recorded": count,
        "training steps": steps,
        "ms a step": each,
        "CPU hours": f"{seconds / 3600:.2f}",
    }


def _done(path: Path) -> list[Record]:
    """The latest record of every cell or measurement that is done."""
    lines: Iterable[Record] = RecordFile(path).latest().values()
    return [line for line in lines if line["status"] == "done"]
