"""Per-example metrics on logits, computed in float32 or better (KL in float64).

A metric is a function ``metric(logits [b p v], clean [b p v], rows [b]) -> [b]``: the edited logits, the clean ones of
the same examples, and which examples of the whole set they are. Factories bind the answers for all n examples once.
`effect` and `removal_curve` look at the attribute ``pos`` to know which position a metric reads.

``better`` says which way is up: an accuracy or a logit difference falls when an edit does damage, a cross-entropy or a KL
rises. A share of the clean value ("95 % of it is left") means something for the first kind alone.

KL of rounded logits has a floor: logits in bf16 alone make about 2e-4 (Gaussian logits), and a KL below it says nothing.
`noise_floor` computes it, and `effect` shows it beside the value.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Num
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
    better: str = "higher"
    """"higher" or "lower": which way the metric goes when the model does better (or the behaviour is there)."""
    kind: str = "difference"
    """"rate" (0 to 1), "difference" (0: no preference), "log-odds" (0 is 50 %, so a share of it means nothing), "loss"."""

    def __post_init__(self) -> None:
        if not isinstance(self.pos, int) or isinstance(self.pos, bool):
            raise ValueError(f"{self.name} reads one position: pos={self.pos!r} must be an int, such as -1.")

    def __call__(
        self,
        logits: Float[Tensor, "b p v"],
        clean: Float[Tensor, "b q v"] | None,
        rows: Int[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        """Return one number an example; ``clean`` may be None unless ``needs_clean``, and hold this position alone."""
        if self.needs_clean and clean is None:
            raise ValueError(f"{self.name} compares with the clean logits, and none were given.")
        n = logits.shape[1]
        if not -n <= self.pos < n:
            raise IndexError(f"{self!r}: the logits have {n} positions, so {-n} to {n - 1}.")
        at = _wide(logits[:, self.pos])
        broken = int((at.isnan() | (at == torch.inf)).any(-1).sum())
        if broken:
            raise ValueError(
                f"The logits that {self!r} reads are NaN or infinite in {broken} of {len(at)} examples of a batch: the edit "
                "is too large for the model's dtype, or the weights are broken."
            )
        before = at if clean is None else _wide(clean[:, self.pos if clean.shape[1] == n else -1])
        return self.score(at, before, rows.to(logits.device))

    def __repr__(self) -> str:
        return f"{self.name}(pos={self.pos})"


def accuracy(answers: Int[Tensor, " n"], pos: int = -1) -> PositionMetric:
    """Return 1.0 where the largest logit is the answer's, else 0.0."""
    answers = _answers(answers)

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        return (x.argmax(-1) == _take(answers, rows, x)).to(x.dtype)

    return PositionMetric("accuracy", pos, score, n=len(answers), ceiling=1.0, kind="rate")


def logit_diff(right: Int[Tensor, " n"], wrong: Int[Tensor, " n"], pos: int = -1) -> PositionMetric:
    """Return logit(right) - logit(wrong), two tokens of one run."""
    right, wrong = _answers(right), _answers(wrong)
    if len(right) != len(wrong):
        raise ValueError(f"logit_diff got {len(right)} right and {len(wrong)} wrong answers: one of each an example.")

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        pick = torch.stack([_take(right, rows, x), _take(wrong, rows, x)], dim=1)
        chosen = x.gather(1, pick)
        return chosen[:, 0] - chosen[:, 1]

    return PositionMetric("logit_diff", pos, score, n=len(right))


def logit_gain(answers: Int[Tensor, " n"], pos: int = -1) -> PositionMetric:
    """Return logit(answer) - clean logit(answer): one token, two runs, 0 where nothing was edited.

    With the corrupted prompts as the run that is edited and the answers of the clean ones, it is the logit difference of
    Kantamneni & Tegmark 2025: positive where the clean answer came back. A constant added to all logits of one run moves
    it, so it differs between raw weights and ``center_unembed``; `logit_diff`, two tokens of one run, does not.
    """
    answers = _answers(answers)

    def score(x: Tensor, clean: Tensor, rows: Tensor) -> Tensor:
        pick = _take(answers, rows, x)[:, None]
        return (x.gather(1, pick) - clean.to(x.device).gather(1, pick))[:, 0]

    return PositionMetric("logit_gain", pos, score, needs_clean=True, n=len(answers))


def cross_entropy(answers: Int[Tensor, " n"], pos: int = -1) -> PositionMetric:
    """Return -log p(answer) in nats."""
    answers = _answers(answers)
    return PositionMetric(
        "cross_entropy",
        pos,
        lambda x, _, rows: torch.nn.functional.cross_entropy(x, _take(answers, rows, x), reduction="none"),
        n=len(answers),
        better="lower",
        kind="loss",
    )


def kl(pos: int = -1) -> PositionMetric:
    """Return KL(clean || edited) of the distributions over tokens, in nats."""

    def score(x: Tensor, clean: Tensor, rows: Tensor) -> Tensor:
        p, q = _widest(clean).log_softmax(-1), _widest(x).log_softmax(-1)  # in float32 its own error is 5e-8
        return (p.exp() * (p - q)).sum(-1).clamp(min=0)

    return PositionMetric("kl", pos, score, needs_clean=True, better="lower", kind="loss")


def refusal_score(tokens: Int[Tensor, " t"], pos: int = -1, against: Int[Tensor, " u"] | None = None) -> PositionMetric:
    """Return log p(T) - log(1 - p(T)) for a set of tokens T (Arditi et al. 2024), exact by two logsumexps.

    With ``against``, a second set U: log p(T) - log p(U), which words of one kind the model prefers to those of another.
    """
    chosen = _set(tokens)
    other = None if against is None else _set(against)
    if other is not None and bool(torch.isin(chosen, other).any()):
        both = chosen[torch.isin(chosen, other)].tolist()[:5]
        raise ValueError(f"Tokens {both} are in both sets, tokens and against; each belongs to one.")

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        inside = _inside(chosen, x)
        outside = ~inside if other is None else _inside(other, x)
        return x[:, inside].logsumexp(-1) - x[:, outside].logsumexp(-1)

    return PositionMetric("refusal_score" if other is None else "preference", pos, score, kind="log-odds")


def refusal_rate(tokens: Int[Tensor, " t"], pos: int = -1) -> PositionMetric:
    """Return p(T), the probability that the next token is one of a set T: a rate, which `Curve.k_kill` follows."""
    chosen = _set(tokens)

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        return x.softmax(-1)[:, _inside(chosen, x)].sum(-1)

    return PositionMetric("refusal_rate", pos, score, ceiling=1.0, kind="rate")


@dataclass(frozen=True, eq=False)
class NextTokenLoss:
    """-log p of each real next token, averaged over a prompt's tokens after the first; see `next_token_loss`."""

    tokens: Int[Tensor, "n p"]
    real: Bool[Tensor, "n p"]
    name: str = "next_token_loss"
    needs_clean: bool = False
    better: str = "lower"
    ceiling: float | None = None

    @property
    def n(self) -> int:
        """How many prompts it knows."""
        return len(self.tokens)

    def __call__(
        self,
        logits: Float[Tensor, "b p v"],
        clean: Float[Tensor, "b q v"] | None,
        rows: Int[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        """Return the mean loss of each prompt, in nats a token."""
        tokens, real = (x.to(logits.device)[rows.to(logits.device)] for x in (self.tokens, self.real))
        if logits.shape[1] != tokens.shape[1]:
            raise ValueError(f"{self.name} knows {tokens.shape[1]} tokens a prompt; the logits have {logits.shape[1]}.")
        scores = _wide(logits[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
        counted = real[:, 1:] & real[:, :-1]
        return -torch.where(counted, scores, 0).sum(1) / counted.sum(1)

    def __repr__(self) -> str:
        return f"{self.name}()"


def next_token_loss(
    tokens: Int[Tensor, "n p"], attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None
) -> NextTokenLoss:
    """Return the cross-entropy over whole prompts: the loss of a language model on text, in nats a token.

    Args:
        tokens: the prompts that will be run, ``[n p]``.
        attention_mask: 1 for real tokens; padding is neither predicted nor predicted from.

    Raises:
        ValueError: a prompt of fewer than two real tokens, which has no next one.

    """
    real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    short = torch.nonzero((real[:, 1:] & real[:, :-1]).sum(1) == 0).flatten().tolist()
    if short:
        raise ValueError(f"Prompts {short[:5]} have fewer than two real tokens: there is no next token to predict.")
    return NextTokenLoss(tokens, real)


def noise_floor(
    logits: Float[Tensor, "b p v"], pos: int = -1, dtype: torch.dtype | None = None, seed: int = 0
) -> float:
    """Return the KL, in nats, that rounding the logits alone makes: KL(p || p') with each logit moved within its rounding.

    Every logit moves by a uniform draw of at most half a unit in the last place of ``dtype`` (its own by default), which is
    what rounding can have done to it. The mean over examples, in float64, the same for the same seed. A lower bound: the
    layers before round too, and a model computed in bf16 may return float32 logits (say ``dtype=torch.bfloat16`` then).
    """
    info = torch.finfo(logits.dtype if dtype is None else dtype)
    x = logits[:, pos].detach().to("cpu", torch.float64)
    half_unit = torch.ldexp(torch.full_like(x, info.eps / 2), torch.frexp(x).exponent - 1) * (x != 0)
    draws = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    p, q = x.log_softmax(-1), (x + draws * half_unit).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).clamp(min=0).mean())


def _wide(x: Num[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _widest(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


def _set(tokens: Int[Tensor, " t"]) -> Int[Tensor, " u"]:
    chosen = torch.as_tensor(tokens).flatten().unique()
    if not len(chosen) or chosen.is_floating_point():
        raise ValueError(f"tokens {chosen.tolist()[:5]}: the ids of one or more tokens are needed.")
    return chosen


def _inside(chosen: Int[Tensor, " u"], x: Float[Tensor, "b v"]) -> Bool[Tensor, " v"]:
    v = x.shape[-1]
    if int(chosen.min()) < 0 or int(chosen.max()) >= v or len(chosen) == v:
        raise ValueError(f"tokens {chosen.tolist()[:5]} must be some, not all, of the {v} tokens 0 to {v - 1}.")
    inside = torch.zeros(v, dtype=torch.bool, device=x.device)
    inside[chosen.to(x.device)] = True
    return inside


def _answers(answers: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    answers = torch.as_tensor(answers)
    if answers.ndim != 1 or answers.is_floating_point():
        raise ValueError(
            f"answers have shape {list(answers.shape)} and {answers.dtype}: one token an example is needed."
        )
    return answers.to(torch.int64)


def _take(answers: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
    """The answers of these rows, which must be among the tokens that the logits are of."""
    chosen, v = answers.to(rows.device)[rows], logits.shape[-1]
    if len(chosen) and (int(chosen.min()) < 0 or int(chosen.max()) >= v):
        wrong = next(a for a in chosen.tolist() if not 0 <= a < v)
        raise ValueError(f"An answer is token {wrong}, but the logits are of {v} tokens, 0 to {v - 1}.")
    return chosen
