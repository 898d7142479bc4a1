"""The re-fit protocol of removal curves: find a direction, remove it, run the model again, find the next.

A *fixed* basis is found once and removed in its order. *Refitted*, the k-th direction at each site is found in
activations of the model with the first k - 1 already removed at every site, so it also meets what the model rebuilds
downstream of an edit. The bases are nested, and go to `removal_curve` as they are; source["protocol"] is "refitted".

It costs one pass over the prompts a direction. Found and scored on the same prompts, later directions are fitted to
noise sooner than they look: score on others.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.find._inputs import Labels
from mi_ablate.interventions import Ablate
from mi_ablate.model import collect
from mi_ablate.subspace import Subspace

Finder = Callable[..., Subspace]


def refitted(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    labels: Labels,
    names: str | Sequence[str],
    finder: Finder,
    rank: int,
    *,
    pos: int | Int[Tensor, " n"] = -1,
    ablation: str = "zero",
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Subspace]:
    """Return nested bases of ``rank`` directions at each site, each found with the earlier ones removed everywhere.

    Args:
        model: a hooked model.
        tokens: prompts to find the directions on.
        labels: as the finder takes them, one a prompt.
        names: sites without a head axis.
        finder: ``finder(acts, labels) -> Subspace``, of which the first direction is taken; it is called with rank=1
            where it has that argument. Of two classes, a difference of means is gone once removed: use `inlp` or
            `logistic` for more than one direction, or several classes.
        rank: how many directions a site.
        pos: one position a prompt, for finding and for removing.
        ablation: "zero", or "mean" of the unedited activations.
        attention_mask: 1 for real tokens.
        batch_size: prompts a forward pass.
        progress: called with (directions done, directions in all).

    Raises:
        ValueError: sites with heads; nothing left to find before ``rank`` directions.

    """
    if ablation not in ("zero", "mean"):
        raise ValueError(f"ablation={ablation!r} is 'zero' or 'mean' while directions are found.")
    if rank < 1:
        raise ValueError(f"rank={rank}: at least one direction a site.")
    options: dict[str, Any] = {"rank": 1} if "rank" in inspect.signature(finder).parameters else {}
    found: dict[str, Subspace] = {}
    means: dict[str, Tensor] = {}
    for k in range(rank):
        hooks: FwdHooks = []
        for site, s in found.items():
            hooks += Ablate(s, means[site] if ablation == "mean" else None).at(site, pos=pos)
        acts = collect(model, tokens, names, pos=pos, attention_mask=attention_mask, batch_size=batch_size, hooks=hooks)
        for site, x in acts.items():
            if x.ndim != 2:
                raise ValueError(f"{site} gives {list(x.shape)}: one vector a prompt is needed, so no heads.")
            if k == 0:
                means[site] = x.to(torch.float64).mean(0)
            found[site] = _extended(found.get(site), _next(finder, x, labels, options, site, k), site, x)
        if progress is not None:
            progress(k + 1, rank)
    protocol = {"protocol": "refitted", "ablation": ablation, "sites": list(found)}
    return {site: Subspace(s.basis, s.name, {**s.source, **protocol, "site": site}) for site, s in found.items()}


def _next(finder: Finder, x: Tensor, labels: Labels, options: dict[str, Any], site: str, k: int) -> Subspace:
    try:
        return finder(x, labels, **options)[:1]
    except ValueError as error:
        if k == 0:
            raise
        raise ValueError(f"After {k} directions at {site} the finder finds no more: {error} {_ADVICE}") from error


def _extended(so_far: Subspace | None, new: Subspace, site: str, x: Float[Tensor, "n d"]) -> Subspace:
    """The basis with one direction more; what is no larger than the rounding of the activations is refused."""
    if so_far is None:
        return new
    k, noise = so_far.rank, 4 * torch.finfo(x.dtype).eps * float(x.double().pow(2).sum(1).mean().sqrt())
    both = so_far | new
    if both.rank == k or new.source.get("sizes", [float("inf")])[0] <= noise:
        raise ValueError(f"After {k} directions at {site} only rounding is left to find. {_ADVICE}")
    return Subspace(both.basis, new.name, {key: v for key, v in new.source.items() if key in _KEPT})


_KEPT = ("method", "n", "C", "form", "ridge", "shrinkage", "centred", "paired", "standardised", "robust")
_ADVICE = "Ask for that rank, or use a finder that goes on, such as inlp."
