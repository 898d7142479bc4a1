"""Train the diary model on entries that are drawn as it trains, so that it never sees one twice but by chance.

Its loss is compared with what the generator itself gives the same words (`entries`): cross-entropy of the model = entropy
of the entries + KL(entries || model), so the difference of the two is the KL in nats a word, and 0 is perfect.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.diaries.entries import Entry, entry
from mi_ablate.diaries.text import CONTEXT, END, NUMBER, PAD, held_out, tokens
from mi_ablate.diaries.words import MOOD


@dataclass(frozen=True)
class Settings:
    """What a training is: the same settings on the same machine give the same weights."""

    seed: int = 0
    steps: int = 2000
    batch: int = 32
    layers: int = 2
    width: int = 96
    heads: int = 4
    lr: float = 5e-3
    weight_decay: float = 0.1
    init: float = 0.08
    """Standard deviation of the initial weights. From 0.05 one seed of three did not learn the mood in these steps; from
    GPT-2's 0.02, larger models than this one learnt names and places much later."""


@dataclass(frozen=True)
class Trained:
    """A trained model of `transformers`, and what the training gave."""

    model: Any
    settings: Settings
    losses: dict[str, tuple[float, float]]
    """What `compare` gives on 512 held-out entries."""
    seconds: float


def train(settings: Settings | None = None, progress: Callable[[int, int, float], None] | None = None) -> Trained:
    """Train a model in float32: AdamW, a tenth of the steps to warm up, then a cosine to 0, gradients clipped at 1.

    Args:
        settings: seed, size and schedule; those of the shipped model by default.
        progress: called with (steps done, steps in all, loss of the last batch in nats a word).

    """
    s = settings or Settings()
    started = time.perf_counter()
    torch.manual_seed(s.seed)
    model = _fresh(s).train()
    optimiser, schedule = _schedule(model, s)
    rng = random.Random(s.seed)
    for step in range(s.steps):
        losses = word_losses(model, tokens([entry(rng) for _ in range(s.batch)]))
        loss = losses[~losses.isnan()].mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, s.steps, float(loss.detach()))
    model.eval()
    return Trained(model, s, compare(model, held_out(512)), time.perf_counter() - started)


def word_losses(model: Any, rows: Int[Tensor, "n pos"]) -> Float[Tensor, "n next"]:
    """Return -log p of each next token, NaN where that is padding. ``model``: of transformers, or hooked."""
    rows = rows.to(next(model.parameters()).device)
    after = rows[:, 1:]
    found = model(rows.masked_fill(rows == NUMBER[PAD], NUMBER[END]))  # what follows an entry reaches none of its words
    logits = getattr(found, "logits", found)[:, :-1]
    losses = -logits.log_softmax(-1).gather(2, after[..., None])[..., 0]
    return losses.masked_fill(after == NUMBER[PAD], float("nan"))


@torch.no_grad()
def compare(model: Any, entries: Sequence[Entry]) -> dict[str, tuple[float, float]]:
    """Return the mean loss of the model and that of the generator, nats a word, by kind of word and over "all" words.

    The kinds are those of `Entry.kinds`, with "mood" for all its slots.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for e, row in zip(entries, word_losses(model, tokens(entries)).double().tolist(), strict=True):
        for kind, own, loss in zip(e.kinds, e.logp, row, strict=False):  # the row goes on with the end of the text
            for name in ("all", "mood" if kind in MOOD else kind):
                found.setdefault(name, []).append((loss, -own))
    means = {name: torch.tensor(pairs, dtype=torch.float64).mean(0).tolist() for name, pairs in sorted(found.items())}
    return {name: (model_loss, own) for name, (model_loss, own) in means.items()}


def _fresh(s: Settings) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    options: dict[str, Any] = {"vocab_size": len(NUMBER), "n_positions": CONTEXT, "initializer_range": s.init}
    options |= {"n_embd": s.width, "n_layer": s.layers, "n_head": s.heads}
    options |= {"bos_token_id": NUMBER[END], "eos_token_id": NUMBER[END], "pad_token_id": NUMBER[PAD]}
    options |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**options))


def _schedule(model: Any, s: Settings) -> tuple[Any, Any]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=s.lr, betas=(0.9, 0.98))
    warm = max(1, s.steps // 10)
    rise = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / warm, 1.0, warm)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, s.steps - warm))
    return optimiser, torch.optim.lr_scheduler.SequentialLR(optimiser, [rise, fall], [warm])
