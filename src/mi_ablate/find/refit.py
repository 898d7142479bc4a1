"""The re-fit protocol of removal curves: find a direction, remove it, run the model again, find the next.

A *fixed* basis is found once and removed in its order. *Refitted*, the k-th direction at each site is found in
activations of the model with the first k - 1 already removed at every site, so it also meets what the model rebuilds
downstream of an edit. The bases are nested, and go to `removal_curve` as they are; source["protocol"] is "refitted".

What is left of the class means once they are made equal is rounding, and a finder would take it for a direction. So from the
second direction on, a coordinate's means must differ by more than a few eps of the activations' norm (eps of float32 for
half precision, in which edits are computed in float32), plus, for half precision, what storing the activations may leave:
eps times the coordinate's root mean square, times sqrt(2 / examples of the smallest class), equal ones counted once.

It costs one pass over the prompts a direction. Found and scored on the same prompts, later directions are fitted to
noise sooner than they look: score on others.
"""

import inspect
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.find._inputs import Labels, numbered, rounding, warn_of_padding
from mi_ablate.find._named import FINDERS
from mi_ablate.find.classwise import ClassMoments
from mi_ablate.interventions import Ablate
from mi_ablate.model import collect
from mi_ablate.subspace import Subspace

Finder = Callable[..., Subspace]


def refitted(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    labels: Labels,
    names: str | Sequence[str],
    finder: Finder | str,
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
            where it has that argument; or a name of `FINDERS`. Of two classes, a difference of means is gone once removed:
            use `logistic` for more, or several classes. One of your own is taken to read the class means, unless its
            source states "rms", the root mean square along each direction.
        rank: how many directions a site.
        pos: one position a prompt, for finding and for removing.
        ablation: "zero", or "mean" of the unedited activations.
        attention_mask: 1 for real tokens.
        batch_size: prompts a forward pass.
        progress: called with (directions done, directions in all).

    Raises:
        ValueError: sites with heads; no finder; nothing left to find before ``rank`` directions.

    """
    if ablation not in ("zero", "mean"):
        raise ValueError(f"ablation={ablation!r} is 'zero' or 'mean' while directions are found.")
    if rank < 1:
        raise ValueError(f"rank={rank}: at least one direction a site.")
    finder = _finder(finder)
    attention_mask = _checked_mask(model, tokens, pos, attention_mask)
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
            means.setdefault(site, x.to(torch.float64).mean(0))
            found[site] = _extended(found.get(site), _next(finder, x, labels, options, site, k), site, x, labels)
        if progress is not None:
            progress(k + 1, rank)
    protocol = {"protocol": "refitted", "ablation": ablation, "sites": list(found)}
    return {site: Subspace(s.basis, s.name, {**s.source, **protocol, "site": site}) for site, s in found.items()}


def _finder(finder: Finder | str) -> Finder:
    if isinstance(finder, str) and finder in FINDERS:
        return FINDERS[finder]
    if not callable(finder):
        raise ValueError(f"finder={finder!r} is a function finder(acts, labels) or one of the names {list(FINDERS)}.")
    return finder


def _checked_mask(model: HookedModel, tokens: Tensor, pos: object, mask: Tensor | None) -> Tensor | None:
    """Return the mask as a tensor; refuse positions that are not one a prompt, and warn where padding would be read."""
    if not isinstance(pos, Integral) and not (isinstance(pos, Tensor) and pos.ndim == 1):
        raise ValueError(f"pos={pos!r}: one position a prompt is needed, an int or a tensor of one for each prompt.")
    if mask is None:
        warn_of_padding(model, tokens, pos[:, None] if isinstance(pos, Tensor) else torch.tensor([[int(pos)]]))
        return None
    return torch.as_tensor(mask)


def _next(finder: Finder, x: Tensor, labels: Labels, options: dict[str, Any], site: str, k: int) -> Subspace:
    try:
        found = finder(x, labels, **options)
    except ValueError as error:
        if k == 0:
            raise
        raise ValueError(
            f"After {k} directions at {site} the finder finds no more: {error} {_advice(finder)}"
        ) from error
    if not isinstance(found, Subspace):
        raise ValueError(
            f"The finder returned a {type(found).__name__}, and a Subspace is needed: of find.leace, that is "
            "find.leace_subspace."
        )
    return found[:1]


def _extended(so_far: Subspace | None, new: Subspace, site: str, x: Float[Tensor, "n d"], labels: Labels) -> Subspace:
    """The basis with one direction more; what is no larger than the rounding of the activations is refused."""
    if so_far is None:
        return new
    both = so_far | new
    if both.rank == so_far.rank or _only_rounding(new, x, labels):
        advice = _advice(FINDERS["inlp"] if new.source.get("method") == "INLP" else None)
        raise ValueError(f"After {so_far.rank} directions at {site} only rounding is left to find. {advice}")
    return Subspace(both.basis, new.name, {key: v for key, v in new.source.items() if key in _KEPT})


def _only_rounding(new: Subspace, x: Float[Tensor, "n d"], labels: Labels) -> bool:
    """Whether what the finder goes by is no larger than the rounding of these activations."""
    noise, eps, wide = rounding(x), torch.finfo(x.dtype).eps, x.to(torch.float64)
    rms = new.source.get("rms")
    if rms and new.source.get("method") != "class means":
        return float(rms[0]) <= noise + eps * float(wide.pow(2).sum(1).mean().sqrt())
    index, values = numbered(labels, len(x))
    index = index.to(x.device)
    means = ClassMoments(len(values)).update(wide, index).mean
    stored = 0.0
    if x.dtype in (torch.float16, torch.bfloat16):
        key = wide @ torch.randn(wide.shape[1], 1, generator=torch.Generator().manual_seed(0)).to(wide)
        distinct = torch.unique(torch.cat([index[:, None].to(wide), key], dim=1), dim=0)[:, 0].long()
        smallest = int(torch.bincount(distinct).min())
        stored = 1.5 * eps * wide.pow(2).mean(0).sqrt() * (2 / smallest) ** 0.5
    return bool((means.amax(0) - means.amin(0) <= noise + stored).all())


def _advice(finder: Finder | None) -> str:
    going_on = (
        "" if getattr(finder, "func", finder) is FINDERS["inlp"] else ", or use a finder that goes on, such as inlp"
    )
    return f"Ask for that rank{going_on}."


_KEPT = ("method", "n", "C", "form", "ridge", "shrinkage", "centred", "paired", "standardised", "robust")
