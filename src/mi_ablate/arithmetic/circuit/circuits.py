"""Circuits: the smallest set of components whose joint patch reaches a share of what all of them do together.

The clean run's outputs of a set are written into the corrupted run at once; the share is the mean gain of the clean answer's
logit over that of patching every component of the kind (Kantamneni and Tegmark 2025, arXiv 2502.00873, section 5: 20 of
GPT-J's 448 heads, 11 of its 28 MLPs). The outputs of both runs are read once, for all sets.

A smallest set is only as small as the search: "rank" takes the first k components in the order of their own total effects,
"contiguous" every run of consecutive components, "greedy" adds whichever one raises the joint effect most, "pruned" drops
from the sets found so far whatever they can spare, "exhaustive" runs all subsets, in the order of their sizes, while there
are few enough. The result says which of them ran and which found each set. Sets of different shares need not be nested, and
joint effects need not grow with the set.

When it misleads. Any k components reach some share: random sets of the same size stand beside each one. The pairs choose
the set as well as judge it, so measure a final set on pairs of its own (`joint_effect`).
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._shares import check_gap, share_intervals, within_noise
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.circuit.parts import Component, PairRuns, What, pair_runs
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.effects import name_of
from mi_ablate.metrics import PositionMetric

SEARCHES = ("rank", "contiguous", "greedy", "pruned", "exhaustive")
_SHARES = (0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, eq=False, repr=False)
class SmallestSets:
    """The smallest set found for each share, and the joint effect of the first k by rank."""

    components: tuple[Component, ...]
    """By their own total effects, the largest first."""
    alone: Float[Tensor, "c n"]
    """Total effects one at a time, in the same order."""
    whole: Float[Tensor, " n"]
    """The effect of patching all of them."""
    curve: Float[Tensor, "k n"]
    """Joint effects of the first 1, 2, ... components; as far as "rank" went."""
    shares: tuple[float, ...]
    sets: tuple[tuple[Component, ...] | None, ...]
    """One a share, in the model's order; None where no set that was tried reaches it."""
    found: tuple[Float[Tensor, " n"] | None, ...]
    """The joint effect of each set."""
    by: tuple[str | None, ...]
    """The search that found each set."""
    random: tuple[Float[Tensor, " draws"] | None, ...]
    """Mean effects of random sets of the same size."""
    searches: tuple[str, ...]
    """Those that ran."""
    tried: int
    """Sets that were run."""
    metric: str

    def __getitem__(self, share: int | float) -> tuple[Component, ...] | None:
        """Return the set that reaches a share."""
        if share not in self.shares:
            raise KeyError(f"No set was asked for the share {share}; there are {self.shares}.")
        return self.sets[self.shares.index(share)]

    def table(self) -> list[dict[str, Any]]:
        """Return one row a share: the set, its share with an interval over the pairs, random sets of its size."""
        rows, size = [], float(self.whole.mean())
        for share, chosen, effect, by, draws in zip(self.shares, self.sets, self.found, self.by, self.random):
            row: dict[str, Any] = {"share asked": share, "size": None, "of": len(self.components)}
            if chosen is not None and effect is not None and draws is not None:
                low, high = share_intervals(effect[None], self.whole, 0.95, 0)
                row |= {
                    "size": len(chosen),
                    "share": float(effect.mean()) / size,
                    "low": float(low),
                    "high": float(high),
                }
                random = (draws / size).tolist() or [float("nan")]
                row |= {"random": sum(random) / len(random), "random high": max(random)}
                row |= {"search": by, "set": ", ".join(c.name for c in chosen)}
            rows.append(row)
        return rows

    def shares_of_curve(self) -> Float[Tensor, " k"]:
        """Return the share of the whole effect that the first k components by rank reach."""
        return self.curve.mean(1) / self.whole.mean()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{s:.0%}: {'-' if c is None else len(c)}" for s, c in zip(self.shares, self.sets))
        how = " + ".join(self.searches)
        return f"SmallestSets({len(self.components)} components, {len(self.whole)} pairs, {how}: {sizes})"


@dataclass
class _Search:
    """The best set so far of each size and share, and what it cost."""

    runs: PairRuns
    whole: float
    shares: tuple[float, ...]
    progress: Callable[[int, int], None] | None
    total: int = 0
    known: dict[frozenset[Component], Tensor] = field(default_factory=dict)
    best: dict[float, tuple[Sequence[Component], str]] = field(default_factory=dict)

    def effect(self, chosen: Sequence[Component], search: str) -> Float[Tensor, " n"]:
        """Measure a set once, and remember it where it is smaller than the smallest, or as small and better."""
        key = frozenset(chosen)
        if key not in self.known:
            self.known[key] = self.runs.effect(self.runs.hooks(self.sorted(chosen)))
            if self.progress is not None:
                self.progress(len(self.known), max(self.total, len(self.known)))
        reached = float(self.known[key].mean()) / self.whole
        for share in self.shares:
            if reached >= share and self._better(share, chosen, reached):
                self.best[share] = (self.sorted(chosen), search)
        return self.known[key]

    def sorted(self, chosen: Sequence[Component]) -> list[Component]:
        return [c for c in self.runs.components if c in set(chosen)]

    def smallest(self) -> int:
        """Return the size of the largest of the smallest sets; all components while a share is missing."""
        sizes = [len(self.best[s][0]) if s in self.best else len(self.runs.components) for s in self.shares]
        return max(sizes)

    def _better(self, share: float, chosen: Sequence[Component], reached: float) -> bool:
        if share not in self.best:
            return True
        held = self.best[share][0]
        return (len(chosen), -reached) < (len(held), -float(self.known[frozenset(held)].mean()) / self.whole)


def smallest_sets(
    model: HookedModel,
    pairs: Pairs,
    what: What = "heads",
    shares: Sequence[int | float] = _SHARES,
    *,
    search: str | Sequence[str] | None = None,
    limit: int = 1024,
    draws: int = 5,
    metric: PositionMetric | None = None,
    pos: int = -1,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SmallestSets:
    """Return the smallest sets of components that reach shares of the effect of all of them.

    Args:
        model: the model.
        pairs: clean and corrupted problems.
        what: the components, as in `component_effects`.
        shares: of the effect of patching all, between 0 and 1.
        search: "rank", "contiguous", "greedy", "pruned", "exhaustive", or several. By default "rank" for more than 64
            components, and all of them for fewer ("exhaustive" where it fits the limit).
        limit: "exhaustive" runs at most this many sets; with more subsets than that, asking for it is refused.
        draws: random sets of the size of each set found.
        metric: read at the last position; by default the gain of the clean answer's logit.
        pos: the position that is patched.
        batch_size: rows a pass.
        progress: called with (sets done, sets expected).

    Raises:
        ValueError: an unknown search, shares outside 0 to 1, an exhaustive search above the limit, components that together do
            nothing.

    """
    runs = pair_runs(model, pairs, what, metric=metric, pos=pos, batch_size=batch_size)
    many, asked = len(runs.components), tuple(float(s) for s in shares)
    searches = _searches(search, many, limit)
    if not asked or not all(0 < s <= 1 for s in asked):
        raise ValueError(f"shares {asked} lie above 0 and up to 1, such as (0.8, 0.95).")
    whole = _whole(runs)
    alone = torch.stack([runs.alone(c) for c in runs.components])
    order = alone.mean(1).argsort(descending=True, stable=True)
    ranked, state = [runs.components[i] for i in order.tolist()], _Search(runs, float(whole.mean()), asked, progress)
    state.total = _expected(searches, many)
    curve = [state.effect(ranked[: k + 1], "rank") for k in range(many)]
    _run(state, searches)
    sets = [tuple(state.best[s][0]) if s in state.best else None for s in asked]
    found = [None if chosen is None else state.known[frozenset(chosen)] for chosen in sets]
    by = [state.best[s][1] if s in state.best else None for s in asked]
    random = [None if chosen is None else _random(runs, len(chosen), draws) for chosen in sets]
    results = tuple(ranked), alone[order], whole, torch.stack(curve), asked, tuple(sets), tuple(found), tuple(by)
    return SmallestSets(*results, tuple(random), searches, len(state.known), name_of(runs.metric))


def _whole(runs: PairRuns) -> Float[Tensor, " n"]:
    """The effect of all components, which every share is of."""
    found, many, metric = runs.effect(runs.hooks(runs.components)), len(runs.components), name_of(runs.metric)
    check_gap(float(found.mean()), 0.0, f"The effect of all {many} components on {metric}")
    if within_noise(found):
        warnings.warn(
            f"All {many} components together move {metric} by {float(found.mean()):.3g}, less than two standard errors of "
            f"{len(found)} pairs: shares of it are mostly noise. Give more pairs, of problems that the model solves.",
            UserWarning,
            stacklevel=3,
        )
    return found


def _run(state: _Search, searches: tuple[str, ...]) -> None:
    """Make every search but the ranks'."""
    components = state.runs.components
    if "contiguous" in searches:
        for length, start in itertools.product(range(1, len(components) + 1), range(len(components))):
            if start + length <= len(components):
                state.effect(components[start : start + length], "contiguous")
    if "greedy" in searches:
        _greedy(state)
    if "pruned" in searches:
        _prune(state)
    if "exhaustive" in searches:
        for chosen in _subsets(components):
            if len(chosen) > state.smallest():
                break
            state.effect(chosen, "exhaustive")


def _searches(search: str | Sequence[str] | None, many: int, limit: int) -> tuple[str, ...]:
    """Which searches run; ranks always do, for the curve."""
    if search is None:
        if many > 64:
            return ("rank",)
        return SEARCHES if 2**many <= limit else SEARCHES[:4]
    asked = (search,) if isinstance(search, str) else tuple(search)
    wrong = [s for s in asked if s not in SEARCHES]
    if wrong:
        raise ValueError(f"search={wrong[0]!r} is one of {', '.join(SEARCHES)}.")
    if "exhaustive" in asked and 2**many > limit:
        raise ValueError(
            f"{many} components have {2.0**many:.3g} subsets, above the limit of {limit}: search 'greedy' and 'contiguous', or "
            "raise limit=."
        )
    return tuple(s for s in SEARCHES if s in asked or s == "rank")


def _expected(searches: tuple[str, ...], many: int) -> int:
    sums = many * (many + 1) // 2
    if "exhaustive" in searches:
        return 2**many - 1
    return many + sum(sums for s in searches if s != "rank")


def _greedy(state: _Search) -> None:
    """Add whichever component raises the joint effect most, until every share is reached."""
    chosen: list[Component] = []
    rest = list(state.runs.components)
    while rest and len(chosen) < state.smallest():
        gains = [float(state.effect([*chosen, c], "greedy").mean()) for c in rest]
        chosen.append(rest.pop(max(range(len(rest)), key=gains.__getitem__)))


def _prune(state: _Search) -> None:
    """Take from each set, again and again, the component whose loss costs least, as long as the share is reached."""
    for share in state.shares:
        chosen = list(state.best[share][0]) if share in state.best else []
        while len(chosen) > 1:
            rest = [[x for x in chosen if x != c] for c in chosen]
            left = [float(state.effect(x, "pruned").mean()) / state.whole for x in rest]
            if max(left) < share:
                break
            chosen = rest[left.index(max(left))]


def _subsets(components: Sequence[Component]) -> Iterator[tuple[Component, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(components, k) for k in range(1, len(components) + 1))


def _random(runs: PairRuns, size: int, draws: int) -> Float[Tensor, " draws"]:
    """Mean joint effects of random sets of a size, one a seed."""
    found = []
    for seed in range(draws):
        order = torch.randperm(len(runs.components), generator=torch.Generator().manual_seed(seed))[:size]
        found.append(runs.effect(runs.hooks([runs.components[i] for i in sorted(order.tolist())])).mean())
    return torch.stack(found) if found else torch.empty(0, dtype=torch.float64)
