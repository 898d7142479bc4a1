"""Per-example metrics on logits, computed in float32 or better.

A metric is a function ``metric(logits [b p v], clean [b p v], rows [b]) -> [b]``: the edited logits, the clean ones of
the same examples, and which examples of the whole set they are. Factories bind the answers for all n examples once.
`effect` and `removal_curve` look at the attribute ``pos`` to know which position a metric reads.

KL of rounded logits has a floor: logits in bf16 alone make about 2e-4 (Gaussian logits), so `kl` reports
nothing smaller than its inputs allow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PositionMetric:
    """A metric that reads the logits at one position (default: the last)."""

    name: str
    pos: int
    score: Callable[[Tensor, Tensor, Tensor], Tensor]
    needs_clean: bool = False
    n: int | None = None
    """How many examples it has answers for; None where it needs none."""
    ceiling: float | None = None
    """The largest value that it can take; a run that is there hides what pushes it further or not quite below."""

    def __call__(
        self,
        logits: Float[Tensor, "b p v"],
        clean: Float[Tensor, "b p v"] | None,
        rows: Int[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        """Return one number an example. ``clean`` may be None unless ``needs_clean``."""
        if self.needs_clean and clean is None:
            raise ValueError(f"{self.name} compares with the clean logits, and none were given.")
        at = _wide(logits[:, self.pos])
        return self.score(at, at if clean is None else _wide(clean[:, self.pos]), rows.to(logits.device))

    def __repr__(self) -> str:
        return f"{self.name}(pos={self.pos})"


def accuracy(answers: Int[Tensor, " n"], pos: int = -1) -> PositionMetric:
    """Return 1.0 where the largest logit is the answer's, else 0.0."""
    answers = _answers(answers)

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        return (x.argmax(-1) == _take(answers, rows)).to(x.dtype)

    return PositionMetric("accuracy", pos, score, n=len(answers), ceiling=1.0)


def logit_diff(right: Int[Tensor, " n"], wrong: Int[Tensor, " n"], pos: int = -1) -> PositionMetric:
    """Return logit(right) - logit(wrong), two tokens of one run."""
    right, wrong = _answers(right), _answers(wrong)

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        pick = torch.stack([_take(right, rows), _take(wrong, rows)], dim=1)
        chosen = x.gather(1, pick)
        return chosen[:, 0] - chosen[:, 1]

    return PositionMetric("logit_diff", pos, score, n=len(right))


def cross_entropy(answers: Int[Tensor, " n"], pos: int = -1) -> PositionMetric:
    """Return -log p(answer) in nats."""
    answers = _answers(answers)
    return PositionMetric(
        "cross_entropy",
        pos,
        lambda x, _, rows: torch.nn.functional.cross_entropy(x, _take(answers, rows), reduction="none"),
        n=len(answers),
    )


def kl(pos: int = -1) -> PositionMetric:
    """Return KL(clean || edited) of the distributions over tokens, in nats."""

    def score(x: Tensor, clean: Tensor, rows: Tensor) -> Tensor:
        p, q = clean.log_softmax(-1), x.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).clamp(min=0)

    return PositionMetric("kl", pos, score, needs_clean=True)


def refusal_score(tokens: Int[Tensor, " t"], pos: int = -1) -> PositionMetric:
    """Return log p(T) - log(1 - p(T)) for a set of tokens T (Arditi et al. 2024), exact by two logsumexps."""
    chosen = torch.as_tensor(tokens).flatten().unique()

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        inside = torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
        inside[chosen.to(x.device)] = True
        return x[:, inside].logsumexp(-1) - x[:, ~inside].logsumexp(-1)

    return PositionMetric("refusal_score", pos, score)


def _wide(x: Num[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _answers(answers: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    answers = torch.as_tensor(answers)
    if answers.ndim != 1 or answers.is_floating_point():
        raise ValueError(
            f"answers have shape {list(answers.shape)} and {answers.dtype}: one token an example is needed."
        )
    return answers.to(torch.int64)


def _take(answers: Tensor, rows: Tensor) -> Tensor:
    return answers.to(rows.device)[rows]
