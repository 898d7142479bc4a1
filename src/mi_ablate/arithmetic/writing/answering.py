"""What the last logits say about the answers of pairs: the four measures of a causal test, from one pass.

right    logit of the clean answer; the log-sum-exp over all right ones where several are
wrong    logit of the corrupted prompt's answer; the log-sum-exp over all other numbers where several are right
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import FwdHooks
from mi_ablate.arithmetic.problem_sets.asking import of_numbers
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.replay import Replay

MEASURES = ("gain", "logit_diff", "accuracy", "probability")


class Answered(NamedTuple):
    """Of every pair, in one run; float64."""

    right: Float[Tensor, " n"]
    wrong: Float[Tensor, " n"]
    correct: Float[Tensor, " n"]
    probability: Float[Tensor, " n"]

    def measures(self, before: "Answered") -> dict[str, Float[Tensor, " n"]]:
        """Return the measures by name; the gain is over the run ``before``."""
        found = (self.right - before.right, self.right - self.wrong, self.correct, self.probability)
        return dict(zip(MEASURES, found))


def answered(runs: Replay, hooks: FwdHooks, pairs: Pairs) -> Answered:
    """Run the prompts under the hooks and read the answers of the clean prompts.

    Raises:
        ValueError: logits that are NaN or infinite.

    """
    parts = []
    for rows, logits in runs.logits(hooks):
        at = logits[:, -1].detach().to("cpu", torch.float64)
        broken = int((at.isnan() | (at == torch.inf)).any(-1).sum())
        if broken:
            raise ValueError(
                f"The logits are NaN or infinite in {broken} of {len(at)} pairs of a batch: what was written is too large for "
                "the model's dtype, or the weights are broken."
            )
        parts.append(torch.stack(_read(at, pairs, rows)))
    return Answered(*torch.cat(parts, dim=1))


def _read(at: Float[Tensor, "b v"], pairs: Pairs, rows: Tensor) -> Answered:
    clean, ids = pairs.clean, pairs.clean.numerals.ids.cpu()
    at = of_numbers(at, clean)  # a published model of modular addition may have a logit that is no number's
    total, best = at.logsumexp(-1), at.argmax(-1)
    if clean.accepted is None:
        answers, others = clean.answers.cpu()[rows], pairs.corrupted.answers.cpu()[rows]
        right, wrong = (at.gather(1, x[:, None])[:, 0] for x in (answers, others))
        correct = best == answers
    else:
        numbers, accepted = at[:, ids], clean.accepted.cpu()[rows]
        right, wrong = (numbers.masked_fill(~x, -torch.inf).logsumexp(-1) for x in (accepted, ~accepted))
        correct = ((best[:, None] == ids) & accepted).any(1)
    return Answered(right, wrong, correct.double(), (right - total).exp())
