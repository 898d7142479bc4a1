"""Shares of a difference between two means: is there one, is it more than noise, does the metric hide parts of it?

A share s = mean(a) / mean(g) is a ratio, so resampling it divides by whatever the resample makes of the denominator, near
0 or below it included. Its bootstrap is taken of the linearised ratio instead (the delta method's influence values),

    s* = s + mean*(a - s g) / mean(g)            mean*: over resampled examples, mean: over all

which is finite, keeps the pairing of a and g, and is s in every resample where a = s g in each example.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

NO_GAP = 1e-6
"""Means of the two runs that differ by less than this share of their size (or of 1) leave nothing to explain."""
NEARLY = 0.99
ERRORS = 2
"""A difference of means below this many standard errors is not told apart from none."""
RESAMPLES = 2000
_AT_ONCE, _NUMBERS = 512, 2**22


def check_gap(clean: float, corrupted: float, metric: str) -> None:
    """Refuse two runs whose mean metrics are the same."""
    if abs(clean - corrupted) <= NO_GAP * max(1.0, abs(clean), abs(corrupted)):
        raise ValueError(
            f"{metric} is {clean:.6g} on the clean prompts and {corrupted:.6g} on the corrupted ones: there is no difference "
            "for a patch to explain. Give the answers of the clean prompts, and corrupted prompts that change them."
        )


def error_of(differences: Float[Tensor, " n"]) -> float:
    """Return the standard error of a mean; NaN of fewer than two values."""
    return float(differences.double().std()) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")


def within_noise(differences: Float[Tensor, " n"]) -> bool:
    """Return whether the mean of paired differences is below two of its standard errors; False of one pair."""
    return abs(float(differences.double().mean())) < ERRORS * error_of(differences)


def ceiling_of(metric: Callable[..., Tensor], scores: tuple[Tensor, Tensor]) -> float | None:
    """Return the metric's own ceiling; of a function that does not say, 1 where both runs lie in [0, 1]."""
    if hasattr(metric, "ceiling"):
        return metric.ceiling
    both = torch.cat(scores)
    return 1.0 if bool((both >= 0).all() and (both <= 1).all()) else None


def ends(runs: dict[str, Float[Tensor, " n"]], ceiling: int | float | None) -> dict[str, str]:
    """Return the runs that lie at an end of a bounded metric, [0, ceiling], and which: "ceiling" or "floor"."""
    if ceiling is None:
        return {}
    means = {name: float(x.mean()) / ceiling for name, x in runs.items()}
    return {name: "ceiling" if x >= NEARLY else "floor" for name, x in means.items() if not 1 - NEARLY < x < NEARLY}


def doubts(metric: str, runs: dict[str, Float[Tensor, " n"]], ceiling: int | float | None) -> dict[str, str]:
    """Return what is wrong with two runs, whatever is patched: a few words for a repr, and the whole warning."""
    found, at = {}, ends(runs, ceiling)
    if at:
        where = " and ".join(
            f"at its {end} on the {run} prompts ({float(runs[run].mean()):.3f})" for run, end in at.items()
        )
        found[f"the metric is at its {' and '.join(sorted(set(at.values())))}"] = (
            f"{metric} is {where}: places that move the logits by a part of the difference may show nothing. "
            "logit_diff does not saturate."
        )
    gap = runs["clean"] - runs["corrupted"]
    if within_noise(gap):
        found["the difference is within its noise"] = (
            f"{metric} differs by {float(gap.mean()):.3g} between the runs, less than two standard errors of {len(gap)} pairs "
            f"({error_of(gap):.3g} each): shares of that difference are mostly noise. Give more pairs, or corrupted prompts "
            "that change the answer."
        )
    return found


def resampled_means(x: Float[Tensor, "k n"], generator: torch.Generator) -> Float[Tensor, "resamples k"]:
    """Return the means of 2000 resamples of n examples, drawn with replacement, the same examples for all k rows."""
    n, found = x.shape[1], []
    for start in range(0, RESAMPLES, step := max(1, _NUMBERS // n)):
        drawn = torch.randint(n, (min(step, RESAMPLES - start), n), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(1).double().expand_as(drawn)
        )
        found.append(counts @ x.double().T / n)
    return torch.cat(found)


def percentiles(level: int | float) -> Float[Tensor, " 2"]:
    """Return the two ends of an interval of a level between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} of an interval lies between 0 and 1.")
    return torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)


def share_intervals(
    changes: Float[Tensor, "*grid n"], gap: Float[Tensor, " n"], level: int | float, seed: int
) -> Float[Tensor, "2 *grid"]:
    """Return percentile bootstrap intervals of mean(changes) / mean(gap) over the pairs (see the module); NaN of one pair."""
    quantiles, n = percentiles(level), len(gap)
    if n < 2:
        return torch.full((2, *changes.shape[:-1]), float("nan"), dtype=torch.float64)
    flat, size = changes.reshape(-1, n).double(), gap.double().mean()
    found: list[Any] = []
    for part in flat.split(_AT_ONCE):
        share = part.mean(1, keepdim=True) / size
        moved = resampled_means(part - share * gap, torch.Generator().manual_seed(seed)) / size
        found.append(torch.quantile(share.T + moved, quantiles, dim=0))
    return torch.cat(found, dim=1).reshape(2, *changes.shape[:-1])
