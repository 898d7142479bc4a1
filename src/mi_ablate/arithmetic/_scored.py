"""Several metrics of one run (the logits of each batch are read once), and intervals of means."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._shares import percentiles, resampled_means
from mi_ablate._types import FwdHooks
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.metrics import PositionMetric
from mi_ablate.replay import Replay


def scored(runs: Replay, hooks: FwdHooks, metrics: Mapping[str, PositionMetric]) -> dict[str, Float[Tensor, " n"]]:
    """Return each metric of every example under ``hooks``, in float64 on the CPU, from one run."""
    found: dict[str, list[Tensor]] = {name: [] for name in metrics}
    for rows, logits in runs.logits(hooks):
        for name, metric in metrics.items():
            found[name].append(metric(logits, None, rows).detach().to("cpu", torch.float64))
    return {name: torch.cat(parts) for name, parts in found.items()}


def right(problems: Problems) -> PositionMetric:
    """Return 1.0 where the largest logit is a right answer's: the one token, or any number that is accepted.

    Of modular problems the largest logit is among those of numbers, as in `asked`.
    """
    answers, accepted, modular = problems.answers, problems.accepted, problems.modulus is not None
    if accepted is not None:
        width = int(problems.numerals.ids.max()) + 1
        allowed = torch.zeros(len(problems), width, dtype=torch.bool)
        allowed[:, problems.numerals.ids] = accepted.cpu()

    def score(x: Tensor, _: Tensor, rows: Int[Tensor, " b"]) -> Tensor:
        ids = problems.numerals.ids.to(x.device)
        given = ids[x[:, ids].argmax(-1)] if modular else x.argmax(-1)
        if accepted is None:
            return (given == answers.to(given.device)[rows]).to(x.dtype)
        known: Bool[Tensor, " b"] = given < width
        return (known & allowed.to(given.device)[rows, given.clamp(max=width - 1)]).to(x.dtype)

    return PositionMetric("accuracy", -1, score, n=len(answers), ceiling=1.0, kind="rate")


def answer_logit(problems: Problems) -> PositionMetric:
    """Return the logit of the right answer (of the first, where several are)."""
    answers = problems.answers

    def score(x: Tensor, _: Tensor, rows: Int[Tensor, " b"]) -> Tensor:
        return x.gather(1, answers.to(x.device)[rows][:, None])[:, 0]

    return PositionMetric("answer logit", -1, score, n=len(answers))


def mean_interval(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over prompts; NaN of fewer than two."""
    from mi_ablate.effects import interval

    return interval(values.tolist()) if len(values) > 1 else (float("nan"), float("nan"))


def mean_intervals(values: Float[Tensor, "c n"], level: int | float = 0.95, seed: int = 0) -> Float[Tensor, "2 c"]:
    """Return percentile bootstrap intervals of means over the pairs, the same resamples for all rows; NaN of one pair."""
    if values.shape[1] < 2:
        return torch.full((2, len(values)), float("nan"), dtype=torch.float64)
    found = [resampled_means(part, torch.Generator().manual_seed(seed)) for part in values.split(512)]
    return torch.quantile(torch.cat(found, dim=1), percentiles(level), dim=0)
