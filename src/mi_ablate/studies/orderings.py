"""Whether one group of seeds lies below another, and whether a number falls along a run: rules with an answer "unclear".

Groups of three seeds overlap by chance, so a lower median alone decides nothing here: one group is *lower* where at least 90 %
of the pairs of seeds, one of each group, say so (strictly; the probability of superiority), and *not lower* where at most
10 % do. Between, seeds disagree. Seeds of the two groups are not paired. Numbers that are only lower bounds enter as they are.
"""

import math
from collections.abc import Callable, Sequence

from mi_ablate.studies.cells import Cell, Checkpoint
from mi_ablate.studies.spread import Spread, Value

Number = Callable[[Checkpoint], Value | float | int | None]
LEAST_PAIRS, MOST_PAIRS, LEAST = 0.1, 0.9, 3
"""Shares of the pairs between which seeds disagree; stable checkpoints that a run must have for a trend."""


def share_lower(below: Spread, above: Spread) -> float | None:
    """Return the share of pairs of seeds in which ``below`` is lower; None for fewer than two seeds in either."""
    if below.n < 2 or above.n < 2:
        return None
    pairs = [(a.number, b.number) for a in below.values for b in above.values]
    return sum(a < b for a, b in pairs) / len(pairs)


def lower(below: Spread, above: Spread) -> bool | None:
    """Return whether ``below`` is lower; None where that is unclear, or there are fewer than two seeds."""
    share = share_lower(below, above)
    return None if share is None or LEAST_PAIRS < share < MOST_PAIRS else share >= MOST_PAIRS


def trend(cell: Cell, of: Number) -> float | None:
    """Return Spearman's correlation of a number with the step, over a run's stable checkpoints; see `correlation`."""
    return correlation(cell, lambda at: at.step, of)


def correlation(cell: Cell, one: Number, other: Number) -> float | None:
    """Return Spearman's correlation of two numbers over a run's stable checkpoints.

    None for fewer than `LEAST` that have both, and where one is the same at all of them.
    """
    from scipy.stats import spearmanr

    both = ((a, b) for at in cell.stable if (a := one(at)) is not None and (b := other(at)) is not None)
    found = [(Value.of(a).number, Value.of(b).number) for a, b in both]
    if len(found) < LEAST or any(len(set(values)) == 1 for values in zip(*found)):
        return None
    rho = float(spearmanr(*zip(*found)).statistic)
    return rho if math.isfinite(rho) else None


def signs(found: Sequence[float | None]) -> int | None:
    """Return the sign that all seeds share: -1, or 1; 0 where they disagree, None for fewer than two seeds."""
    known = [value for value in found if value is not None]
    if len(known) < 2:
        return None
    return -1 if max(known) < 0 else 1 if min(known) > 0 else 0
