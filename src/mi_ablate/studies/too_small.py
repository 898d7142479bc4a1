"""E9: one layer of width 64, 48 and 32, which the log could not teach two operations in 115,000 steps."""

from collections.abc import Mapping
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cells
from mi_ablate.studies.groups import grok_step, hours
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Findings, Study, Table

QUESTION = (
    "Addition and multiplication mod 97 in one layer of width 64, 48 and 32, 115,000 steps at weight decay 1. The "
    "log reports an accuracy of about 4 % for all three, and that one layer of width 64 learns addition alone "
    "faster than anything else. Do they fail here, and is the failure one of memorising (training accuracy) or of "
    "generalising?"
)


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return one row a width."""
    widths = sorted({cell.config.config.d_model for cell in cells}, reverse=True)
    rows = [_row(width, cells.where(config__d_model=width)) for width in widths]
    return Findings(tables=[Table("Two operations in one small layer", rows)])


def _row(width: int, group: Cells) -> dict[str, Any]:
    def accuracy(part: str) -> str:
        return Spread.of(cell.training["accuracy"][part] for cell in group.done).text(".3f", count=False)

    each = [
        Spread.of(cell.training["per_operation"][one]["accuracy"]["held_out"] for cell in group.done)
        for one in group.cells[0].config.config.operations
    ]
    return {
        "model": f"1 layer, d {width}",
        "run": f"{len(group.done)} of {len(group)}" if group.done else hours(group),
        "steps": f"{group.cells[0].config.steps:,}",
        "training accuracy": accuracy("train"),
        "held out, the worse operation": accuracy("held_out"),
        "held out, add / mul": " / ".join(one.text(".3f", count=False) for one in each) if group.done else "not run",
        "grok step": Spread.of(map(grok_step, group.done)).text(",.0f", count=False),
        "log, accuracy": the_log.E9["accuracy"],
    }


STUDY = Study(
    name="too-small",
    log="E9",
    title="Models too small for two operations",
    question=QUESTION,
    grids=("too-small",),
    find=find,
)
