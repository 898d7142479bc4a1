"""What a verdict would be from each seed's last stable checkpoint alone, beside the one from means over all of them.

A mean over a run's stable checkpoints is steadier than any one of them, but where a run changes abruptly it is the number of a
model that never was. The log measured its runs once, at their end, so both readings stand in every verdict on two operations.
"""

from collections.abc import Callable
from dataclasses import replace

from mi_ablate.studies.cells import Cell, Cells, chosen
from mi_ablate.studies.study import Verdict


def last_only(cells: Cells) -> Cells:
    """Return the cells that have a stable checkpoint, with the last of them alone."""

    def shortened(cell: Cell) -> Cell:
        record = dict(cell.record or {})
        return replace(cell, record=record | {"metrics": record["metrics"] | {"checkpoints": [cell.last.entry]}})

    return chosen(shortened(cell) for cell in cells.done if cell.stable)


def also_late(claim: Callable[..., Verdict], *groups: Cells) -> Verdict:
    """Return a verdict from the means over stable checkpoints, with what the last stable one alone would say beside it."""
    found, late = claim(*groups), claim(*map(last_only, groups))
    if found.verdict == "not run":
        return found
    rule = f"{found.rule}. A seed's number is its mean over stable checkpoints; the last one alone is told beside it"
    return replace(found, ours=f"{found.ours}. Last checkpoint ({late.verdict}): {late.ours}", rule=rule)
