"""E2's arms beside the main grid: weight decays matched on total decay or on steps after grokking, and other norms.

At the same number of steps a larger weight decay has decayed more and has grokked longer ago. These tables take each weight
decay at the checkpoint where one of the two is equal.
"""

from collections.abc import Callable
from typing import Any

from mi_ablate.studies.cells import Cell, Cells, Checkpoint, chosen
from mi_ablate.studies.groups import counted, grok_step, hours, told
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Table
from mi_ablate.studies.weight_decay_tables import ABLATIONS, LAST, Groups, Row, entry, k_of

PRODUCT = 2.0
"""Learning rate x weight decay x steps: 0.1 has it after 20,000 steps."""
AFTER = (2_000, 4_000)
"""Steps after grokking that most runs have a stable checkpoint near."""
WITHIN = 1_500
"""How far from it that checkpoint may be."""
NORMS = {"LayerNorm": "LN", "RMSNorm": "RMS", "none": None}


def nearest(cell: Cell, step: int | float, within: int | float) -> Checkpoint | None:
    """Return the stable checkpoint nearest to a step, None where none is within so many steps."""
    near = min(cell.stable, key=lambda at: abs(at.step - step), default=None)
    return near if near is not None and abs(near.step - step) <= within else None


def matched_decay(groups: Groups, cells: Cells) -> Table:
    """Return each weight decay where learning rate x weight decay x steps is two; the grid matched-decay has the longest."""
    longer, rows = cells.where(grid="matched-decay"), []
    for decay, group in sorted(groups.items(), reverse=True):
        if not 0 < decay <= 1:
            continue
        more = longer.where(weight_decay=decay)
        every = chosen({cell.key: cell for cell in (*group, *more)}.values())
        step = PRODUCT / (decay * 1e-3)
        found = {cell.key: nearest(cell, step, 0.1 * step) for cell in every.done}
        row: Row = {"weight decay": f"{decay:g}", "steps": f"{step:,.0f}"}
        row |= _numbers(every, found, hours(more) if more.missing else "no stable step near")
        rows.append(row)
    return Table(
        "Matched on learning rate x weight decay x steps (2.0)", rows,
        "The stable checkpoint nearest to the step, at most 10 % away: one a seed. 0.03 and 0.01 need longer runs: the grid "
        "`matched-decay`.",
    )  # fmt: skip


def matched_after(groups: Groups) -> Table:
    """Return each weight decay at about as many steps after its grok step."""
    rows = []
    for after in AFTER:
        for decay, group in sorted(groups.items(), reverse=True):
            if not 0 < decay <= 1:
                continue
            found = {cell.key: _later(cell, after) for cell in group.done}
            late = Spread.of(_since(cell, found[cell.key]) for cell in group.done)
            row: Row = {"wanted": f"{after:,}", "weight decay": f"{decay:g}"}
            row["steps after grokking"] = late.text(",.0f", count=False) if late.n else "-"
            rows.append(row | _numbers(group, found, "no stable step near" if group.done else "not run"))
    return Table(
        "Matched on steps after grokking", rows,
        f"The stable checkpoint nearest to the grok step plus 2,000 or 4,000, at most {WITHIN:,} steps away: one a seed, "
        "and the same one in both where no other is near.",
    )  # fmt: skip


def _later(cell: Cell, after: int) -> Checkpoint | None:
    return None if cell.grok_step is None else nearest(cell, cell.grok_step + after, WITHIN)


def _since(cell: Cell, at: Checkpoint | None) -> float | None:
    return None if at is None or cell.grok_step is None else float(at.step - cell.grok_step)


def norms(cells: Cells) -> Table:
    """Return weight decay x norm, with estimates where it is not run."""
    rows = []
    for name, norm in NORMS.items():
        group = cells.where(grid="weight-decay" if norm == "LN" else "norms", config__normalization=norm)
        for decay in (1.0, 0.3, 0.1, 0.01):
            one = group.where(weight_decay=decay)
            row: Row = {"norm": name, "weight decay": f"{decay:g}", "seeds": counted(one)}
            row["grok step"] = Spread.of(grok_step(cell) for cell in one.done).text(",.0f", count=False)
            row |= {f"k@95% {a}": told(one, k_of(LAST, a)) for a in ABLATIONS}
            row |= {"Rank99": told(one, entry("class_means", "all.rank99"))}
            rows.append(row | {"left": hours(one) if one.missing else "-"})
    note = (
        "k@95% at the last residual, contrastive directions. Seeds: with a stable step, of those that are run; k and Rank99 "
        "are of these, the grok step is of all."
    )
    return Table("Other norms", rows, note)


def _numbers(group: Cells, at: dict[str, Checkpoint | None], otherwise: str) -> Row:
    """The numbers of one checkpoint a seed."""

    def text(read: Callable[[Checkpoint], Any]) -> str:
        found = Spread.of(read(one) for one in at.values() if one is not None)
        return found.text(count=False) if found.n else "-"

    seeds = {cell.config.seed for cell in group}
    found = {cell.config.seed for cell in group if at.get(cell.key) is not None}
    row: Row = {"seeds": f"{len(found)} of {len(seeds)}" if found else otherwise}
    row |= {f"k@95% {a}": text(k_of(LAST, a)) for a in ABLATIONS}
    row["k@95% mean, covariance-drawn"] = text(k_of(LAST, "mean", run="covariance"))
    return row | {"Rank99": text(entry("class_means", "all.rank99"))}
