"""Is the mood one direction? What a probe reads, what removing or adding the direction does, and what chance directions do.

Found on 128 matched pairs of prompts, measured on 128 others: the direction is the difference of means at the last position,
at the residual site where the classes differ most. It is removed at everything that writes to the residual stream, at all
positions. Zero along the direction is no point between the moods, so this makes all days alike, but alike good or bad;
"centred" moves them to the half-way point of the two means instead. That, and "added" and "subtracted", which move by the
difference of the means, are at the site and the last position alone: elsewhere those values mean other things. The
controls are directions drawn from the covariance of the activations of whole entries at the site, removed as the direction
is, each with its cosine to the direction.

A perfect model has log-odds of ±2.197 (`entries`); one that knows nothing of the mood has 0, and loses
log 2 - H(0.9) = 0.368 nats on every mood word, and nothing on other words.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.controls import covariance
from mi_ablate.diaries.entries import FIDELITY
from mi_ablate.diaries.text import NUMBER, held_out, padded, prompts, tokens
from mi_ablate.diaries.training import compare
from mi_ablate.diaries.words import BAD_WORDS, GOOD_WORDS
from mi_ablate.find import candidates, logistic
from mi_ablate.interventions import Ablate, Add
from mi_ablate.model import attached, collect, run, writers
from mi_ablate.subspace import Subspace

LOG_ODDS = math.log(FIDELITY / (1 - FIDELITY))
"""The log-odds of good against bad words that a perfect model has at a mood slot of a good day; minus that on a bad one."""
UNINFORMED = math.log(2) + FIDELITY * math.log(FIDELITY) + (1 - FIDELITY) * math.log(1 - FIDELITY)
"""What a model that knows nothing of the mood loses on each mood word, in nats."""
_PAIRS = 128
_WHOLE = 30
"""So many tokens every entry has, the end-of-text token before it included."""


def planted(model: HookedModel, draws: int = 5) -> dict[str, Any]:
    """Return the measurements, as plain numbers.

    Keys: "site"; "probe" and "shuffled", the accuracy of a logistic probe at the site on prompts that it was not fitted to,
    and of one fitted to shuffled labels (mean of five); "rows", one a run: the mean log-odds of good against bad words on
    good and bad days ("good", "bad"), the losses by kind of word as `compare` names them ("loss", where the edit is at all
    positions), and the cosine of what was removed with the direction ("cosine").

    Args:
        model: the diary model, hooked, of any seed.
        draws: covariance-drawn controls.

    """
    labels = torch.arange(2 * _PAIRS) < _PAIRS
    fitted, seen = padded([text for side in prompts(_PAIRS) for text in side])
    tested, mask = padded([text for side in prompts(_PAIRS, start=_PAIRS) for text in side])
    site, direction = mood_direction(model, fitted, seen, labels)
    spread = collect(model, tokens(held_out(_PAIRS))[:, :_WHOLE], site, pos=slice(_WHOLE))[site]
    acts = collect(model, fitted, site, attention_mask=seen)[site]
    apart = collect(model, tested, site, attention_mask=mask)[site]
    orders = [torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    shuffled = [_accuracy(acts, labels[order], apart, labels) for order in orders]

    everywhere = writers(model)
    half_way = (acts[labels].double().mean(0) + acts[~labels].double().mean(0)) / 2
    runs: list[tuple[str, Subspace | None, FwdHooks]] = [
        ("clean", None, []),
        ("ablated", direction, Ablate(direction).at(*everywhere)),
        ("centred", direction, Ablate(direction, to=half_way).at(site, pos=-1)),
        ("added", None, Add(direction.vector).at(site, pos=-1)),
        ("subtracted", None, Add(-direction.vector).at(site, pos=-1)),
    ]
    for seed in range(draws):
        drawn = covariance(spread).draw(site, 1, seed)
        runs.append((f"covariance-drawn {seed}", drawn, Ablate(drawn).at(*everywhere)))
    rows = []
    for name, removed, hooks in runs:
        odds = log_odds(model, tested, mask, hooks)
        row: dict[str, Any] = {"run": name, "good": float(odds[labels].mean()), "bad": float(odds[~labels].mean())}
        if name not in ("centred", "added", "subtracted"):  # at every position of the text
            with attached(model, hooks):
                row["loss"] = {kind: loss for kind, (loss, _) in compare(model, held_out(_PAIRS // 2)).items()}
        if removed is not None:
            row["cosine"] = float(removed.cosines(direction)[0])
        rows.append(row)
    probe = _accuracy(acts, labels, apart, labels)
    return {"site": site, "probe": probe, "shuffled": sum(shuffled) / len(shuffled), "rows": rows}


def mood_direction(
    model: HookedModel, tokens: Int[Tensor, "n p"], mask: Int[Tensor, "n p"], labels: Bool[Tensor, " n"]
) -> tuple[str, Subspace]:
    """Return the residual site where the classes differ most at the last position, and the difference of means there."""
    found = candidates(model, tokens, labels, "resid_post", attention_mask=mask)
    site = found.table()[0]["site"]
    return site, found.subspace(site)


@torch.no_grad()
def log_odds(
    model: HookedModel, tokens: Int[Tensor, "n p"], mask: Int[Tensor, "n p"], hooks: FwdHooks
) -> Float[Tensor, " n"]:
    """Return log p(good words) - log p(bad words) of the next token of each prompt, with the hooks attached."""
    good, bad = (torch.tensor([NUMBER[word] for word in words]) for words in (GOOD_WORDS, BAD_WORDS))
    with attached(model, hooks):
        logits = run(model, tokens, mask)[:, -1].double().cpu()
    return logits[:, good].logsumexp(-1) - logits[:, bad].logsumexp(-1)


def _accuracy(
    acts: Float[Tensor, "n d"], labels: Bool[Tensor, " n"], others: Float[Tensor, "m d"], truth: Bool[Tensor, " m"]
) -> float:
    """Fit a logistic direction and the threshold half-way between its class means; return its accuracy on the others."""
    weights = logistic(acts, labels)
    here, there = weights.coords(acts.double())[:, 0], weights.coords(others.double())[:, 0]
    high, low = here[labels].mean(), here[~labels].mean()
    return float((((there - (high + low) / 2) * (high - low) > 0) == truth.to(there.device)).double().mean())
