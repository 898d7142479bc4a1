"""What a model answers: one pass, the last position's logits alone, before anything else is concluded.

Which problems a model solves decides what can be asked of it. Effects on answers (patching, circuits) are about problems
that it solves; what it represents can be read whether it calculates or not. A model that solves none (GPT-2, the smaller
Pythias: near 0 %) is therefore no error here, but a warning, and everything goes on with all problems.

The first token alone decides, greedily, over the whole vocabulary. A share correct says little without what guessing would
give: `Asked.chance` is that of the best constant answer.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.effects import interval
from mi_ablate.interventions import Ablate
from mi_ablate.metrics import PositionMetric, accuracy
from mi_ablate.model import last_residual
from mi_ablate.replay import replay

_AT_ONCE = 2048
"""Prompts whose last residual vectors are held at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class Asked:
    """The answers of a model to problems."""

    problems: Problems
    given: Int[Tensor, " n"]
    """The token that it gives; `Problems.numerals` says which number that is (``numbers``)."""
    correct: Bool[Tensor, " n"]
    probability: Float[Tensor, " n"]
    """Of the right answer, or of all right ones."""
    difference: Float[Tensor, " n"]
    """That less the probability of all other numbers: of years, the metric of Hanna et al."""

    @property
    def n_correct(self) -> int:
        """How many are right."""
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self.n_correct / len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy (Clopper & Pearson), for a sample of problems; the whole range for one."""
        return interval(self.correct.double()) if len(self.correct) > 1 else (0.0, 1.0)

    @cached_property
    def chance(self) -> float:
        """The accuracy of the best answer that is the same for all problems."""
        if self.problems.accepted is not None:
            return float(self.problems.accepted.double().mean(0).max())
        return int(self.problems.answers.unique(return_counts=True)[1].max()) / len(self.problems)

    @property
    def numbers(self) -> Int[Tensor, " n"]:
        """The number that each answer is, -1 where it is none."""
        return self.problems.numerals.values_of(self.given)

    @property
    def representation_only(self) -> bool:
        """Whether none is right: what the model represents can be studied, its calculation cannot."""
        return self.n_correct == 0

    @property
    def right(self) -> Problems:
        """The problems that it solves; all of them where it solves none (see ``representation_only``)."""
        return self.problems if self.representation_only else self.problems[self.correct]

    def by_operand(self) -> dict[str, Tensor]:
        """Return the accuracy of each pair of operands: "a" ``[x]``, "b" ``[y]``, "accuracy" ``[x y]``.

        NaN where nothing was asked. With one operand, "a" and "accuracy" ``[x]``.
        """
        axes = {name: self.problems.inputs[name].unique() for name in self.problems.operands}
        at = [torch.searchsorted(axis, self.problems.inputs[name]) for name, axis in axes.items()]
        shape = [len(axis) for axis in axes.values()]
        sums, counts = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        sums.index_put_(tuple(at), self.correct.double(), accumulate=True)
        counts.index_put_(tuple(at), torch.ones(len(self.correct), dtype=torch.float64), accumulate=True)
        return {**axes, "accuracy": sums / counts}

    def table(self) -> list[dict[str, Any]]:
        """Return one row: the accuracy with its interval and chance, and the mean probability of the right answer."""
        low, high = self.interval
        row = {"task": self.problems.task, "template": self.problems.template, "n": len(self.correct)}
        row |= {"n_correct": self.n_correct, "accuracy": self.accuracy, "low": low, "high": high, "chance": self.chance}
        means = {name: float(getattr(self, name).mean()) for name in ("probability", "difference")}
        return [{**row, **means}]

    def __repr__(self) -> str:
        low, high = self.interval
        only = "; representation only" if self.representation_only else ""
        share = f"{self.n_correct} of {len(self.correct)} right, {self.accuracy:.3f} [{low:.3f}, {high:.3f}]"
        return f"Asked({self.problems.task}: {share}, chance {self.chance:.3f}{only})"


def asked(
    model: HookedModel,
    problems: Problems,
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Asked:
    """Return what the model answers, in one pass.

    Of modular problems the answer is the largest of the logits of the numbers (published models have one more logit); of
    others, of all tokens.

    Args:
        model: the model.
        problems: from `problems` or `problems_of`.
        batch_size: rows a pass; chosen by memory by default.
        progress: called with (problems done, problems in all).

    Raises:
        ValueError: logits that are NaN or infinite.

    """
    site = Ablate(None).at(last_residual(model), pos=-1)
    given, odds, n = [], [], len(problems)
    for start in range(0, n, _AT_ONCE):
        part = problems[start : start + _AT_ONCE]
        runs = replay(model, part.tokens, site, accuracy(part.answers), batch_size=batch_size)
        for rows, logits in runs.logits([]):
            at = logits[:, -1].detach().to("cpu").float()
            if bool((at.isnan() | (at == torch.inf)).any()):
                raise ValueError(
                    "The model's logits are NaN or infinite, so it gives no answer: its weights are broken, or too large for "
                    f"{logits.dtype}. Load it in float32."
                )
            at = of_numbers(at, part)
            given.append(at.argmax(-1))
            odds.append(_odds(at, part, rows))
            if progress is not None:
                progress(start + int(rows[-1]) + 1, n)
    tokens, (right, others) = torch.cat(given), torch.cat(odds, dim=1)
    correct = _is_right(tokens, problems)
    if not correct.any():
        warnings.warn(
            f"The model gets none of the {n} problems right ({problems.task}, {problems.template!r}). What it represents can "
            "be read from all of them; effects on its answers are effects on wrong ones. Asked.right has all problems.",
            UserWarning,
            stacklevel=2,
        )
    return Asked(problems, tokens, correct, right, right - others)


def probability_difference(problems: Problems, pos: int = -1) -> PositionMetric:
    """Return p(right numbers) - p(all other numbers), -1 to 1: of years, later less earlier (Hanna et al. 2305.00586).

    A metric for `effect`, `patch` and the rest, of these problems in this order.
    """

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        right, others = _odds(of_numbers(x.cpu(), problems), problems, rows.cpu())
        return (right - others).to(x)

    return PositionMetric("probability_difference", pos, score, n=len(problems), ceiling=1.0)


def of_numbers(at: Float[Tensor, "b v"], problems: Problems) -> Float[Tensor, "b v"]:
    """Return logits with all but the numbers' at -inf, for modular problems; of others, the same."""
    if problems.modulus is None:
        return at
    ids = problems.numerals.ids.cpu()
    return torch.full_like(at, -torch.inf).index_copy(1, ids, at[:, ids])


def _odds(at: Float[Tensor, "b v"], problems: Problems, rows: Int[Tensor, " b"]) -> Float[Tensor, "2 b"]:
    """The probabilities of what is right, and of all other numbers."""
    numbers = at.softmax(-1)[:, problems.numerals.ids.cpu()].double()
    if problems.accepted is None:
        right = problems.numerals.ids.cpu() == problems.answers.cpu()[rows, None]
    else:
        right = problems.accepted.cpu()[rows]
    return torch.stack([(numbers * right).sum(-1), (numbers * ~right).sum(-1)])


def _is_right(given: Int[Tensor, " n"], problems: Problems) -> Bool[Tensor, " n"]:
    if problems.accepted is None:
        return given == problems.answers.cpu()
    ids, accepted = problems.numerals.ids.cpu(), problems.accepted.cpu()
    return ((given[:, None] == ids[None]) & accepted).any(1)
