"""What wrong answers look like: how far they are from the right one, and whether they lie evenly around it.

Of GPT-J's wrong numbers 45.7 % are 10 too small and 27.9 % 10 too large (Kantamneni & Tegmark 2025, arXiv 2502.00873, App.
F): the unit is right and the ten is not, as when the clocks of periods 2, 5 and 10 work and the slower one is read
wrongly. Errors that forget a carry would be -10 alone, so it is asked whether +d and -d are equally frequent:

    chi² = sum over d of (n(+d) - n(-d))² / (n(+d) + n(-d))

with one degree of freedom for each distance d; distances with fewer than 10 errors are put together, by sign. Answers that are
no number at all are counted apart. The test takes prompts as independent, and an answer near 0 or the largest single-token
number cannot err equally far to both sides: `errors` near the ends of the range lean for that reason alone.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mi_ablate.arithmetic.problem_sets.asking import Asked
from mi_ablate.effects import interval

_FEW = 10


@dataclass(frozen=True, eq=False, repr=False)
class AnswerErrors:
    """The wrong answers of a model to problems."""

    n: int
    n_right: int
    n_not_numbers: int
    differences: Int[Tensor, " w"]
    """Given minus right, of the wrong answers that are numbers: the shorter way round of a modulus, to the nearest right one
    where several are."""
    rows: Int[Tensor, " w"]
    """The problems that they are of."""

    def share(self, difference: int) -> float:
        """Return the share of one difference among the wrong numbers; NaN where there are none."""
        return float((self.differences == difference).double().mean())

    @property
    def multiples_of_ten(self) -> float:
        """The share of differences that are multiples of 10: the unit is right."""
        return float((self.differences % 10 == 0).double().mean())

    @property
    def too_small(self) -> float:
        """The share of wrong numbers below the right one."""
        return float((self.differences < 0).double().mean())

    def symmetry(self) -> dict[str, float]:
        """Return chi², its degrees of freedom and p of equally many errors on both sides at every distance.

        Raises:
            ValueError: fewer than 10 wrong numbers, which say nothing about it.

        """
        from scipy import stats

        if len(self.differences) < _FEW:
            raise ValueError(f"{len(self.differences)} wrong numbers: their symmetry needs {_FEW} or more.")
        found = Counter(self.differences.tolist())
        distances = {abs(d) for d in found}
        common = [d for d in distances if found[d] + found[-d] >= _FEW]
        cells = [(found[d], found[-d]) for d in common]
        rest = [d for d in distances if d not in common]
        sides = (sum(found[d] for d in rest), sum(found[-d] for d in rest))
        cells += [sides] if sum(sides) else []
        value = float(sum((up - down) ** 2 / (up + down) for up, down in cells))
        return {"chi2": value, "degrees": len(cells), "p": float(stats.chi2.sf(value, len(cells)))}

    def table(self, k: int = 10) -> list[dict[str, Any]]:
        """Return the k most frequent differences with their shares of the wrong numbers, and 95 % intervals."""
        total, rows = len(self.differences), []
        for difference, count in Counter(self.differences.tolist()).most_common(k):
            low, high = interval([1.0] * count + [0.0] * (total - count)) if total > 1 else (0.0, 1.0)
            rows.append({"difference": difference, "count": count, "share": count / total, "low": low, "high": high})
        return rows

    def __repr__(self) -> str:
        wrong = f"{self.n - self.n_right} of {self.n} wrong, {self.n_not_numbers} of them no numbers"
        if not len(self.differences):
            return f"AnswerErrors({wrong})"
        tens = (
            f"-10 in {self.share(-10):.3f}, +10 in {self.share(10):.3f}, multiples of 10 in {self.multiples_of_ten:.3f}"
        )
        return f"AnswerErrors({wrong}; of the numbers {tens}, too small {self.too_small:.3f})"


def answer_errors(asked: Asked) -> AnswerErrors:
    """Return what is wrong with the wrong answers of `asked`."""
    wrong = ~asked.correct.cpu()
    numbers, right = asked.numbers.cpu(), asked.problems.inputs["answer"].cpu()
    counted = wrong & (numbers >= 0)
    difference, p, accepted = numbers - right, asked.problems.modulus, asked.problems.accepted
    if p is not None:
        difference = (difference + p // 2) % p - p // 2
    if accepted is not None:
        away = (numbers[:, None] - asked.problems.numerals.values.cpu()).masked_fill(~accepted.cpu(), 10**9)
        difference = away.gather(1, away.abs().argmin(1, keepdim=True))[:, 0]
    rows = torch.nonzero(counted).flatten()
    return AnswerErrors(
        n=len(wrong),
        n_right=int((~wrong).sum()),
        n_not_numbers=int((wrong & (numbers < 0)).sum()),
        differences=difference[counted],
        rows=rows,
    )
