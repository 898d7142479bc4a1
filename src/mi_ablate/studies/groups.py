"""Cells that differ in their seed alone: a number as text, a curve with its band, and how numbers go with a setting.

The rank correlation's interval is a bootstrap over seeds within each setting (2,000 draws, seeded). With two or three seeds
at a setting it is a rough one: the draws hold only what these seeds show, so it is narrower than the truth. Values that are
only lower bounds enter as they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.studies.cells import Cell, Cells, Checkpoint
from mi_ablate.studies.spread import Spread, Value

Number = Value | float | None
DRAWS = 2_000


def spread(group: Cells, of: Callable[[Checkpoint], Number]) -> Spread:
    """Return a number over the seeds: of each the mean over its stable checkpoints."""
    return Spread.of(group.values(lambda cell: cell.mean(of)))


def told(group: Cells, of: Callable[[Checkpoint], Number], form: str = ".3g") -> str:
    """Return `spread` as text; "not run", or "no stable step" where runs have none to measure at."""
    if not group.done:
        return "not run"
    if not any(cell.stable for cell in group.done):
        return "no stable step"
    found = spread(group, of)
    return found.text(form, count=False) if found.n else "-"


def told_anyway(group: Cells, of: Callable[[Checkpoint], Number], form: str = ".3g") -> str:
    """Return `told`, or where no seed has a stable step what stands at the last measured one, marked "(last step)"."""
    if not group.done or any(cell.stable for cell in group.done):
        return told(group, of, form)
    found = Spread.of(of(cell.checkpoints[-1]) for cell in group.done if cell.checkpoints)
    return f"{found.text(form, count=False)} (last step)" if found.n else "-"


def counted(group: Cells) -> str:
    """Return how many of the seeds that are run have a stable step: "5 of 5", "0 of 1, 2 not run"."""
    if not group.done:
        return f"not run (0 of {len(group)})"
    left = f", {len(group.missing)} not run" if group.missing else ""
    return f"{sum(bool(cell.stable) for cell in group.done)} of {len(group.done)}{left}"


def grok_step(cell: Cell) -> Value:
    """Return the grok step, or the steps of a run that never grokked, as a lower bound."""
    step = cell.grok_step
    return Value(float(cell.training["steps"]), censored=True) if step is None else Value(float(step))


def hours(cells: Cells) -> str:
    """Return the estimate of what is not run: "not run: 1.8 core-hours"."""
    return f"not run: {sum(cell.estimate for cell in cells.missing) / 60:.1f} core-hours"


def certain(holds: Callable[[float, float], bool], a: Value, b: Value) -> bool | None:
    """Return whether something holds of two numbers; None where it depends on how far a lower bound is exceeded.

    A lower bound is tried as it is, as the other number where that is larger, and as an infinite one.
    """
    both = max(a.number, b.number)
    first, second = ({v.number, both, math.inf} if v.censored else {v.number} for v in (a, b))
    found = {holds(x, y) for x in first for y in second}
    return found.pop() if len(found) == 1 else None


def said(outcome: Mapping[float, bool | None]) -> str:
    """Return at which weight decays something holds: "yes", "no", "yes at 0.1, 1; open at 0.01", "not run"."""
    answers = {"yes": True, "no": False, "open": None}
    places = {word: [f"{d:g}" for d, held in outcome.items() if held is value] for word, value in answers.items()}
    told = {word: among for word, among in places.items() if among}
    if len(told) < 2:
        return next(iter(told), "not run")
    return "; ".join(f"{word} at {', '.join(among)}" for word, among in told.items())


@dataclass(frozen=True)
class Band:
    """A curve over seeds: the median with the lowest and the highest."""

    x: list[int]
    median: Float[Tensor, " k"]
    ends: Float[Tensor, "2 k"]


def band(
    group: Cells, ks: Callable[[Checkpoint], list[int] | None], of: Callable[[Checkpoint], list[float] | None]
) -> Band | None:
    """Return the median curve of the seeds, each the mean over its stable checkpoints; None where none has one.

    Curves end where the shortest ends.
    """
    curves, places = [], []
    for cell in group.done:
        found = [(x, y) for x, y in ((ks(at), of(at)) for at in cell.stable) if x is not None and y is not None]
        if found:
            least = min((x for x, _ in found), key=len)
            curves.append(torch.tensor([y[: len(least)] for _, y in found], dtype=torch.float64).mean(0))
            places.append(least)
    if not curves:
        return None
    x = min(places, key=len)
    every = torch.stack([curve[: len(x)] for curve in curves])
    return Band(x, every.quantile(0.5, 0), torch.stack([every.amin(0), every.amax(0)]))


def rank_correlation(groups: Mapping[float, Sequence[Value]], draws: int = DRAWS) -> tuple[float, float, float] | None:
    """Return Spearman's rank correlation of the setting with the number over runs, and its 95 % bootstrap interval.

    None for fewer than two settings with two seeds each, or where all numbers are equal.
    """
    known = {setting: values for setting, values in groups.items() if len(values) > 1}
    if len(known) < 2:
        return None
    x = torch.tensor([s for s, values in known.items() for _ in values], dtype=torch.float64)
    y = torch.tensor([v.number for values in known.values() for v in values], dtype=torch.float64)
    found = _spearman(x[None], y[None])[0].item()
    if not math.isfinite(found):
        return None
    generator, index, start = torch.Generator().manual_seed(0), [], 0
    for values in known.values():
        index.append(start + torch.randint(len(values), (draws, len(values)), generator=generator))
        start += len(values)
    rows = torch.cat(index, 1)
    drawn = _spearman(x[rows], y[rows])
    low, high = drawn[drawn.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return found, low, high


def _spearman(x: Float[Tensor, "b n"], y: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Correlation of average ranks; nan where a row is constant."""
    a, b = (_ranks(v) - (v.shape[1] - 1) / 2 for v in (x, y))
    return (a * b).sum(1) / ((a**2).sum(1) * (b**2).sum(1)).sqrt()


def _ranks(x: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """How many values of the row are smaller, ties counted by half."""
    less: Int[Tensor, "b n"] = (x[:, :, None] > x[:, None, :]).sum(2)
    equal: Int[Tensor, "b n"] = (x[:, :, None] == x[:, None, :]).sum(2)
    return less.double() + (equal.double() - 1) / 2
