"""What every part of the analysis runs on: the problems that are fitted, the pairs that are patched, and what was left out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from mi_ablate import arithmetic
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic import Asked, Pairs, Problems

FITTED = 1000
"""Solved problems that helices are fitted on, at most (Kantamneni & Tegmark 2025 draw as many)."""
JUDGED = 200
APART = 200
"""From so many solved problems on, fits and pairs are of different ones."""
Progress = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Bench:
    """One model, with the problems that it solves dealt into two parts."""

    model: HookedModel
    fitted: Problems
    """For helices at the last token, of heads and of MLPs."""
    neurons: Problems
    """For pre-activations: all problems, right or wrong, but for the judged ones."""
    judged: Problems
    """Solved problems that accuracies with some neurons kept are measured on."""
    pairs: Pairs
    apart: bool
    """Whether what is fitted is of other problems than the pairs and the judged ones."""
    periods: tuple[int | float, ...]
    norm: str
    seed: int
    batch_size: int | None
    progress: Progress

    def tell(self, stage: str) -> Callable[[int, int], None]:
        """Return what a measure reports its passes to."""
        return partial(self.progress, stage)


@dataclass
class Tries:
    """Runs measures that may not apply, and keeps the reason where one does not."""

    reasons: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str, measure: Callable[[], T]) -> T | None:
        """Return what ``measure`` returns, or None where it refuses, with what it says kept."""
        try:
            return measure()
        except (ValueError, KeyError, IndexError) as error:
            self.reasons[name] = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
            return None


def solved(asked: Asked) -> bool:
    """Whether the model calculates at all: its accuracy lies, with its interval, above that of the best constant answer."""
    return asked.interval[0] > asked.chance


def dealt(asked: Asked, count: int, seed: int) -> dict[str, Any]:
    """Return the parts of a bench: what is fitted, what is judged, the pairs to patch.

    Raises:
        ValueError: solved problems that all have one answer, of which there is no pair.

    """
    right = torch.nonzero(asked.correct).flatten()
    right = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))]
    apart, half = len(right) >= APART, len(right) // 2
    fitted, held = (right[:half], right[half:]) if apart else (right, right)
    judged, rest = held[:JUDGED], torch.ones(len(asked.correct), dtype=torch.bool)
    rest[judged] = not apart
    paired = asked.problems[held]
    return {
        "fitted": asked.problems[fitted[:FITTED]],
        "neurons": asked.problems[rest],
        "judged": asked.problems[judged],
        "pairs": arithmetic.pairs(paired, min(count, max(arithmetic.count_pairs(paired), 1)), seed=seed),
        "apart": apart,
    }
