"""Killing one operation of a model and keeping the others, and the three corners of the trilemma.

All is read from the curves of a record: the leading k directions of one operation are removed at the last residual, k = 0 ...
64, and every operation is scored on its held-out pairs. A **selective kill** is a k at which the operation's own accuracy is
under a threshold while every other operation keeps 99 % of its clean accuracy. Where some k does it the circuits are called
*additive*, where none does *constitutive* (the research log's words). `Kill.least` needs no threshold: the lowest accuracy
that the operation is brought to while the others keep theirs.

When this misleads: covariance-drawn subspaces and top principal components of one operation's activations may kill just as
selectively, for the activations of two operations lie in different places before any circuit is looked for. So every kill
stands beside those of its controls. A random control is one curve, its mean over five draws.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mi_ablate.studies.cells import Cell, Cells, Checkpoint
from mi_ablate.studies.spread import Spread, Value

KILLED, CHANCE = 0.5, 0.05
"""Accuracy under which an operation counts as killed; and as left with next to nothing (chance is 0.01)."""
KEPT = 0.99
"""Share of its clean accuracy that every other operation keeps."""
LEARNT = 0.95
"""Clean accuracy that every operation must have for a kill to mean anything."""
FILLED = 0.2
"""Least share of the width that the operations' Rank99 add up to in a model that is called capacity-efficient."""
LAST, MEAN = "last_residual.directions.live", "mean"


@dataclass(frozen=True)
class Kill:
    """What removing an operation's directions does to it while the others keep their accuracy."""

    k: int | None
    """The smallest k that kills it; None: no k does."""
    least: float
    """Its lowest accuracy among the k at which all others keep theirs."""
    at: int
    """The smallest k with that accuracy."""


def curve_of(
    at: Checkpoint, removed: str, scored: str, ablation: str = MEAN, run: str = "edited"
) -> list[float] | None:
    """Return the accuracy of one operation while the directions of one (itself, or another) are removed, by k.

    For a control it is the mean over draws. None where there is no such curve.
    """
    if removed == scored:
        found = at.get("last_residual", removed, f"directions.live.{ablation}")
    else:
        found = at.get("collateral", removed, f"{scored}.{ablation}")
    if found is None:
        return None
    curve: list[float] = found["edited"] if run == "edited" else found["controls"][run]["mean"]
    return curve


def selective_kill(
    at: Checkpoint, operation: str, ablation: str = MEAN, *, run: str = "edited", killed: float = KILLED
) -> Kill | None:
    """Return whether some k kills an operation alone; None where a curve is missing or an operation has not been learnt.

    Args:
        at: a measured step of a model with several operations.
        operation: whose directions are removed.
        ablation: "mean" or "zero".
        run: "edited" for its contrastive directions, or a control: "covariance", "pca".
        killed: the accuracy under which it counts as killed.

    """
    own = curve_of(at, operation, operation, ablation, run)
    others = [curve_of(at, operation, other, ablation, run) for other in at.get("collateral", operation) or {}]
    known = [curve for curve in others if curve is not None]
    if own is None or not known or len(known) < len(others) or min(curve[0] for curve in [own, *known]) < LEARNT:
        return None
    beside = zip(*([accuracy >= KEPT * curve[0] for accuracy in curve] for curve in known), strict=True)
    survivors = [(accuracy, k) for k, (accuracy, kept) in enumerate(zip(own, beside, strict=True)) if all(kept)]
    least, where = min(survivors)
    return Kill(next((k for accuracy, k in survivors if accuracy < killed), None), least, where)


def kills(cell: Cell, operation: str, ablation: str = MEAN, **reading: Any) -> list[Kill]:
    """Return `selective_kill` at every stable checkpoint that has one."""
    found = (selective_kill(at, operation, ablation, **reading) for at in cell.stable)
    return [kill for kill in found if kill is not None]


def kills_selectively(cell: Cell, operation: str, ablation: str = MEAN, **reading: Any) -> bool | None:
    """Return whether a selective kill exists at more than half of the stable checkpoints; None where none is measured."""
    found = kills(cell, operation, ablation, **reading)
    return 2 * sum(kill.k is not None for kill in found) > len(found) if found else None


def mean_kill(cell: Cell, operation: str, ablation: str = MEAN, **reading: Any) -> float | None:
    """Return the mean of the smallest k that kills selectively, over the stable checkpoints that have one.

    None where `kills_selectively` is not true: at most half of them have one.
    """
    found = kills(cell, operation, ablation, **reading)
    ks = [kill.k for kill in found if kill.k is not None]
    return statistics.fmean(ks) if 2 * len(ks) > len(found) else None


def mean_least(cell: Cell, operation: str, ablation: str = MEAN, **reading: Any) -> float | None:
    """Return the mean over stable checkpoints of the lowest accuracy that leaves the others theirs."""
    found = kills(cell, operation, ablation, **reading)
    return statistics.fmean(kill.least for kill in found) if found else None


def rank99(at: Checkpoint, operation: str) -> float | None:
    """Return how many singular values of the class means (all inputs, last residual) hold 99 % of the energy."""
    found = at.get("class_means", operation, "all.rank99")
    return None if found is None else float(found)


@dataclass(frozen=True)
class Corners:
    """Where one run stands in the trilemma "separable, robust, capacity-efficient: pick two"."""

    separable: bool
    """Every operation has a selective kill (under 50 % while the others keep 99 %, mean ablation of its contrastive
    directions) at more than half of the stable checkpoints."""
    robust: bool | None
    """The least k@95% over the operations (mean ablation at the last residual, first failure, mean over stable checkpoints)
    is at least that of addition trained alone. None where addition alone is not recorded."""
    efficient: bool
    """Rank99 of the class means, summed over operations, is at least `FILLED` of the width: the model is no wider than five
    times what its operations span."""
    least: float
    """The lowest accuracy that the operation hardest to kill is brought to while the others keep theirs."""
    k: Value
    """The least k@95% over the operations."""
    filled: float
    """Summed Rank99 / d; the operations' spans may overlap, so it can exceed 1."""

    @property
    def held(self) -> int:
        """How many of the three corners it has; three of them refute the trilemma."""
        return sum(bool(corner) for corner in (self.separable, self.robust, self.efficient))


def corners(cell: Cell, alone: float | None) -> Corners | None:
    """Return the corners of a run with several operations; None where no stable step has them all.

    Args:
        cell: a cell that is run.
        alone: k@95% of one operation trained alone, `k_alone`.

    """
    operations = cell.config.config.operations
    found = [kills_selectively(cell, one) for one in operations]
    least = [value for one in operations if (value := mean_least(cell, one)) is not None]
    ks = [k for one in operations if (k := cell.mean_k(one, LAST, MEAN)) is not None]
    ranks = [rank for one in operations if (rank := cell.mean(partial(rank99, operation=one))) is not None]
    if None in found or not len(ks) == len(ranks) == len(operations):
        return None
    filled = sum(rank.number for rank in ranks) / cell.config.config.d_model
    weakest = min(ks, key=lambda k: k.number)
    robust = None if alone is None else weakest.number >= alone
    return Corners(all(found), robust, filled >= FILLED, max(least), weakest, filled)


def alone(cells: Cells) -> Cells:
    """Return the cells of addition alone in the two-task baseline's shape and weight decay, from the grid weight-decay."""
    return cells.where(grid="weight-decay", weight_decay=1.0)


def k_alone(cells: Cells) -> float | None:
    """Return the median over seeds of k@95% of addition alone (mean ablation); None for fewer than two seeds."""
    found = Spread.of(cell.mean_k("add", LAST, MEAN) for cell in alone(cells).done)
    return found.median if found.n > 1 else None


def over_seeds(group: Cells, of: Callable[[Cell], bool | None]) -> str:
    """Return how many seeds say yes, of those that say anything: "2 of 3"; "not run", or "no stable step"."""
    if not group.done:
        return "not run"
    said = [one for one in map(of, group.done) if one is not None]
    return f"{sum(said)} of {len(said)}" if said else "no stable step"
