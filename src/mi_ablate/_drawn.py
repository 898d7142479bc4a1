"""Directions drawn from the covariance of an edit's activations while these stream: a control without a d x d matrix.

The columns of Σ_i g_i (x_i - mean), with g_i standard normal numbers of a seed, are normal with n - 1 times the covariance
of the x_i, which is what `mi_ablate.controls.covariance` draws from a covariance it is given. Here one pass over the
prompts does it, with memory of the width times rank times draws: cheap for an edit at every layer of a wide model. Fewer
than rank + 1 vectors span too little to draw from, and vectors that are all the same nothing.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.controls import Control
from mi_ablate.interventions import Ablate, Add, Erase, Intervention, Placed, Rotate
from mi_ablate.moments import addressed, keyed
from mi_ablate.subspace import Subspace

_VARIES = 1e-9
"""Relative to their size: activations that vary less are one vector, and no direction is drawn from them."""


class NotDrawn(ValueError):
    """No direction can be drawn for an edit; the text says why."""


def covariance_drawn(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    hooks: FwdHooks,
    *,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    draws: int = 5,
) -> Control:
    """Return the covariance control of an edit, drawn in one pass over the prompts with O(d rank draws) memory.

    The vectors are those that each hook addresses; where these are too few, or all the same, those of all real
    positions. The control's name says which and how many.

    Raises:
        NotDrawn: an edit without a subspace, or no more vectors than its rank. ValueError: fewer than one draw.

    """
    if draws < 1:
        raise ValueError(f"draws={draws}: the control of an edit is drawn at least once.")
    plain = [name for name, hook in hooks if not isinstance(hook, Placed) or _rank(hook.intervention) is None]
    if plain:
        raise NotDrawn(f"the edit at {plain[0]} has no subspace to replace.")
    given: dict[str, Any] = {"mask": attention_mask, "batch_size": batch_size}
    placed = keyed(hooks)
    try:
        found, n = _drawn(model, tokens, placed, draws, **given)
        where = "where the edit acts"
    except NotDrawn:
        found, n = _drawn(model, tokens, [(key, replace(hook, pos=None)) for key, hook in placed], draws, **given)
        where = "at all positions"
    name = f"covariance of {n} vectors {where}, {len(tokens)} prompt{'s' if len(tokens) > 1 else ''}"
    return Control(name, lambda site, k, seed: found[site][seed][:k])


def _rank(edit: Intervention) -> int | None:
    """How many directions a control has to draw for an edit; None where it has no subspace."""
    if isinstance(edit, (Ablate, Rotate)):
        return None if edit.subspace is None else edit.subspace.rank
    if isinstance(edit, Erase):
        return edit.writer.shape[1]
    return 1 if isinstance(edit, Add) else None


def _drawn(
    model: HookedModel,
    tokens: Tensor,
    placed: FwdHooks | list[tuple[str, Placed]],
    draws: int,
    mask: Tensor | None,
    batch_size: int | None,
) -> tuple[dict[str, list[Subspace]], int]:
    """Subspaces by hook and seed, and the fewest vectors that one was drawn from."""
    import numpy as np

    hooks: dict[str, Placed] = dict(placed)  # type: ignore[arg-type]
    ranks = {key: int(_rank(hook.intervention) or 0) for key, hook in hooks.items()}
    noise = {key: [np.random.default_rng(seed) for seed in range(draws)] for key in hooks}
    sums: dict[str, Tensor] = {}
    weights = {key: torch.zeros(draws, rank, dtype=torch.float64) for key, rank in ranks.items()}
    count, mean, size = dict.fromkeys(hooks, 0), dict.fromkeys(hooks, torch.zeros(())), dict.fromkeys(hooks, 0.0)
    for key, x in addressed(model, tokens, list(hooks.items()), mask, batch_size):
        x = x.to("cpu", torch.float64)
        g = torch.from_numpy(np.stack([rng.standard_normal((len(x), ranks[key])) for rng in noise[key]]))
        sums[key] = sums.get(key, torch.zeros(())) + torch.einsum("smr,md->srd", g, x)
        weights[key] += g.sum(1)
        mean[key] = mean[key] + x.sum(0)
        count[key], size[key] = count[key] + len(x), size[key] + float(x.square().sum())
    found = {}
    for key, rank in ranks.items():
        rows = sums[key] - weights[key][..., None] * mean[key] / count[key]
        small = _VARIES * size[key] ** 0.5
        if count[key] <= rank or bool((rows.norm(dim=-1) <= small).any()):
            which = "the same" if count[key] > rank else f"{count[key]}, for an edit of rank {rank}"
            raise NotDrawn(f"the vectors at {hooks[key].name} are {which}; give more prompts.")
        q = torch.linalg.qr(rows.mT).Q
        found[key] = [Subspace(q[seed], f"covariance-drawn, seed {seed}") for seed in range(draws)]
    return found, min(count.values())
