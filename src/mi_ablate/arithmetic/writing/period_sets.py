"""Which periods a helix needs to move the model: every set of them, by what writing it does.

Kantamneni & Tegmark 2025 (arXiv 2502.00873, §4.4) fit the helix with each of the 15 non-empty sets of {2, 5, 10, 100} and
call best, of each size, the one with the largest logit difference on average over the layers. (The loop of the published
notebook never updates its best, so that it returns the last set of each size; the sets that the paper names are others.)

The largest of several means is too large a mean: choose a set on some pairs, and report it on others.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.arithmetic.representation.helices import PERIODS
from mi_ablate.arithmetic.representation.states import NumberMeans
from mi_ablate.arithmetic.writing.swaps import Swaps, swap
from mi_ablate.arithmetic.writing.written import reconstructions


@dataclass(frozen=True, eq=False, repr=False)
class PeriodEffects:
    """What helices of every set of periods do."""

    periods: tuple[tuple[int | float, ...], ...]
    """The sets, small ones first."""
    swaps: Swaps
    """Its methods are the sets, in the same order."""

    @property
    def gain(self) -> Float[Tensor, " sets"]:
        """The mean gain of each set, over sites and pairs."""
        return self.swaps.mean().mean(1)

    def best(self, count: int) -> tuple[int | float, ...]:
        """Return the set of ``count`` periods with the largest mean gain.

        Raises:
            ValueError: no set of that size.

        """
        rows = [i for i, chosen in enumerate(self.periods) if len(chosen) == count]
        if not rows:
            raise ValueError(f"No set has {count} periods; they have 1 to {max(map(len, self.periods))}.")
        return self.periods[max(rows, key=lambda i: float(self.gain[i]))]

    def table(self) -> list[dict[str, Any]]:
        """Return one row a set: the mean gain, and whether it is the best of its size."""
        best = {self.best(count) for count in {len(chosen) for chosen in self.periods}}
        rows = zip(self.periods, self.gain.tolist())
        return [{"periods": _text(chosen), "gain": gain, "best": chosen in best} for chosen, gain in rows]

    def __repr__(self) -> str:
        best = ", ".join(_text(self.best(count)) for count in sorted({len(chosen) for chosen in self.periods}))
        return f"PeriodEffects({len(self.periods)} sets of periods; best of each size: {best})"


def period_effects(
    model: HookedModel,
    pairs: Pairs,
    means: NumberMeans,
    periods: Sequence[int | float] = PERIODS,
    *,
    at: str = "a",
    manner: str = "whole",
    folds: int = 5,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PeriodEffects:
    """Return what helices of every non-empty set of periods do at the sites of ``means``; see `swap`."""
    sets = [some for count in range(1, len(periods) + 1) for some in itertools.combinations(periods, count)]
    written = {_text(some): reconstructions(means, some, methods=("helix",), folds=folds)["helix"] for some in sets}
    found = swap(model, pairs, written, means.sites, at=at, manner=manner, batch_size=batch_size, progress=progress)
    return PeriodEffects(tuple(sets), found)


def _text(periods: Sequence[int | float]) -> str:
    return "{" + ", ".join(f"{T:g}" for T in periods) + "}"
