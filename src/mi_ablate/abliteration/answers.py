"""The tokens by which a model's behaviour is seen: those that it gives more often after prompts of one kind.

The behaviour's score is their preference, log p(T+) - log p(T-) at the last token. Found tokens are those with the largest
difference of the mean probability between the two kinds of prompts. Where a model treats both kinds alike, they are noise,
and the score does not tell the kinds apart on other prompts: `Abliteration.shown` says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.metrics import PositionMetric, refusal_score
from mi_ablate.model import run, split
from mi_ablate.prompts import Prompts


@dataclass(frozen=True)
class Answers:
    """Two sets of tokens, with the mean probability of each after positive and negative prompts where they were found."""

    more: tuple[int, ...]
    """T+: given more often after positive prompts."""
    less: tuple[int, ...]
    text: dict[int, str]
    shares: dict[int, tuple[float, float]] | None = None
    """By token: mean probability after positive and after negative prompts; None for given answers."""

    @property
    def metric(self) -> PositionMetric:
        """log p(T+) - log p(T-) at the last token; log p(T+) - log(1 - p(T+)) where there is no T-."""
        return refusal_score(torch.tensor(self.more), against=torch.tensor(self.less) if self.less else None)

    @property
    def formula(self) -> str:
        """The preference in symbols."""
        return f"log p(T+) - log {'p(T-)' if self.less else '(1 - p(T+))'}"

    def table(self) -> list[dict[str, Any]]:
        """Return one row a token."""
        rows = []
        for kind, tokens in (("T+", self.more), ("T-", self.less)):
            for token in tokens:
                row: dict[str, Any] = {"set": kind, "token": self.text[token], "id": token}
                if self.shares is not None:
                    row["after positive"], row["after negative"] = self.shares[token]
                rows.append(row)
        return rows

    def __repr__(self) -> str:
        words = ["/".join(repr(self.text[t]) for t in tokens[:4]) for tokens in (self.more, self.less)]
        return f"Answers({'found' if self.shares is not None else 'given'}: {words[0]} over {words[1] or 'all others'})"


def given_answers(model: HookedModel, more: Sequence[str | int], less: Sequence[str | int] = ()) -> Answers:
    """Return the answers that a user names: words, with and without a space before them, or token ids.

    Raises:
        ValueError: a word that is no single token, a word without a tokenizer, an id outside the vocabulary.

    """
    plus, minus = (tuple(t for word in words for t in _tokens(model, word)) for words in (more, less))
    if not plus:
        raise ValueError("Give at least one answer that the behaviour makes more likely, such as ' yes'.")
    both = sorted(set(plus) & set(minus))
    if both:
        raise ValueError(f"{_text(model, both[0])!r} is among the answers of both kinds; each belongs to one.")
    plus, minus = tuple(dict.fromkeys(plus)), tuple(dict.fromkeys(minus))
    return Answers(plus, minus, {t: _text(model, t) for t in plus + minus})


def find_answers(
    model: HookedModel,
    prompts: Prompts,
    labels: Tensor,
    *,
    count: int = 8,
    batch_size: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> Answers:
    """Return the ``count`` tokens a kind whose mean probability at the last token differs most between the kinds.

    Args:
        model: a hooked model.
        prompts: of both kinds.
        labels: True for positive ones.
        count: at most so many tokens a kind; fewer where a difference is not above a hundredth of the largest.
        batch_size: prompts a pass.
        tick: called with the prompts that went through the model.

    """
    sums = torch.zeros(2, 0, dtype=torch.float64)
    done = 0
    for tokens, mask in split(model, prompts.tokens, prompts.attention_mask, batch_size):
        with torch.no_grad():
            p = last_logits(run(model, tokens, mask), mask).to("cpu", torch.float64).softmax(-1)
        if not bool(torch.isfinite(p).all()):
            raise ValueError("The model's logits are NaN or infinite on these prompts; try another dtype.")
        if not sums.numel():
            sums = torch.zeros(2, p.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels[done : done + len(p)].long(), p)
        done += len(p)
        if tick is not None:
            tick(len(p))
    negative, positive = sums / torch.bincount(labels.long(), minlength=2)[:, None]
    more, less = _largest(positive - negative, count), _largest(negative - positive, count)
    if not more or not less:
        raise ValueError("The model's next-token probabilities are the same after all prompts: there is no behaviour.")
    shares = {t: (float(positive[t]), float(negative[t])) for t in more + less}
    return Answers(more, less, {t: _text(model, t) for t in shares}, shares)


def last_logits(logits: Float[Tensor, "b p v"], mask: Tensor | None) -> Float[Tensor, "b v"]:
    """The logits at each prompt's last real token, under either padding."""
    if mask is None:
        return logits[:, -1]
    positions = torch.arange(mask.shape[1], device=logits.device)
    last: Int[Tensor, " b"] = torch.where(mask.bool().to(logits.device), positions, -1).amax(1)
    return logits[torch.arange(len(logits), device=logits.device), last]


def _largest(difference: Float[Tensor, " v"], count: int) -> tuple[int, ...]:
    values, tokens = difference.topk(min(count, len(difference)))
    return tuple(int(t) for v, t in zip(values, tokens) if v > 0 and v >= values[0] / 100)


def _tokens(model: Any, word: str | int) -> list[int]:
    if isinstance(word, int):
        if not 0 <= word < model.cfg.d_vocab:
            raise ValueError(f"Answer {word} is no token: the vocabulary is 0 to {model.cfg.d_vocab - 1}.")
        return [word]
    if word.isdigit() and model.tokenizer is None:
        return _tokens(model, int(word))
    if model.tokenizer is None:
        raise ValueError(f"{word!r} is a word, and the model has no tokenizer; give token ids.")
    spellings = dict.fromkeys([word, f" {word.strip()}", word.strip()])
    coded = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings if text]
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    known = [ids[0] for ids in coded if len(ids) == 1 and (ids[0] != unknown or unknown is None)]
    if not known:
        raise ValueError(f"{word!r} is no single token of this model; give words that are, or the first part of it.")
    return list(dict.fromkeys(known))


def _text(model: Any, token: int) -> str:
    return str(token) if getattr(model, "tokenizer", None) is None else str(model.tokenizer.decode([token]))
