"""Rank correlation within groups: do two numbers go together over seeds, apart from what the groups do to both?

Two ways of training that differ in both numbers make them correlate over all runs although neither has to do with the other
(pooled correlations are confounded so). Here ranks are taken within a group, and the mean of the groups' correlations is
compared with that of orders at random within the groups: a permutation test, `DRAWS` seeded draws, the observed order counted
as one of them.

Two unrelated numbers of five seeds have a correlation of 0.9 or more, on one side, in one case of 24; the mean over four such
groups lies within about 0.49 of zero in 95 %. So finding none is weak evidence against one below 0.5.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

DRAWS = 20_000
Pairs = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Within:
    """Spearman's correlation of each group that has one, their mean, and how often orders at random reach it on either side."""

    groups: dict[str, float]
    mean: float
    p: float

    def text(self) -> str:
        """Return "0.35 (p = 0.12)"."""
        return f"{self.mean:.2f} (p = {self.p:.2g})"


def within(groups: Mapping[str, Pairs], draws: int = DRAWS) -> Within | None:
    """Return the correlation within groups; groups of fewer than three, or with one value throughout, are left out.

    None where no group is left.
    """
    ranks = {name: _standard(pairs) for name, pairs in groups.items()}
    known = {name: both for name, both in ranks.items() if both is not None}
    if not known:
        return None
    found = {name: float(x @ y) for name, (x, y) in known.items()}
    mean = sum(found.values()) / len(found)
    generator, total = torch.Generator().manual_seed(0), torch.zeros(draws, dtype=torch.float64)
    for x, y in known.values():
        total += y[torch.rand(draws, len(y), generator=generator).argsort(-1)] @ x
    beyond = int((total.abs() / len(known) >= abs(mean) - 1e-12).sum())
    return Within(found, mean, (beyond + 1) / (draws + 1))


def pooled(groups: Mapping[str, Pairs]) -> float | None:
    """Return Spearman's correlation over all runs, whatever their group: what the groups do to both numbers is in it."""
    both = _standard([pair for some in groups.values() for pair in some])
    return None if both is None else float(both[0] @ both[1])


def _standard(pairs: Pairs) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]] | None:
    """Ranks of both numbers with mean 0 and norm 1; None where there are too few or no differences."""
    from scipy.stats import rankdata

    if len(pairs) < 3:
        return None
    found = []
    for values in zip(*pairs):
        ranks = torch.from_numpy(rankdata(values))
        ranks -= ranks.mean()
        if math.isclose(float(ranks.norm()), 0.0):
            return None
        found.append(ranks / ranks.norm())
    return found[0], found[1]
