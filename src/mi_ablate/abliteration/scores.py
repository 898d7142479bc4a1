"""Several metrics under several edits in one walk over the prompts: the clean logits are kept for one batch only."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.model import attached, run, split
from mi_ablate.prompts import Prompts

CLEAN = "clean"
Scores = dict[str, dict[str, Tensor]]
"""By metric, then by run: ``[n]`` in float64."""


def scored(
    model: HookedModel,
    prompts: Prompts,
    runs: Mapping[str, FwdHooks],
    metrics: Mapping[str, Callable[..., Tensor]],
    *,
    batch_size: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> Scores:
    """Return every metric of the clean model ("clean") and of every run, prompt by prompt.

    ``prompts`` are padded on the left, so that the last position is every prompt's last token.
    """
    found: dict[str, dict[str, list[Tensor]]] = {m: {r: [] for r in (CLEAN, *runs)} for m in metrics}
    done = 0
    for tokens, mask in split(model, prompts.tokens, prompts.attention_mask, batch_size):
        rows = torch.arange(done, done + len(tokens))
        clean = None
        for name, hooks in {CLEAN: [], **runs}.items():
            with torch.no_grad(), attached(model, hooks):
                logits = run(model, tokens, mask)
            clean = logits if clean is None else clean
            for metric, of in metrics.items():
                found[metric][name].append(of(logits, clean, rows).detach().to("cpu", torch.float64))
            if tick is not None:
                tick(len(tokens))
        done += len(tokens)
    return {m: {r: torch.cat(parts) for r, parts in by_run.items()} for m, by_run in found.items()}
