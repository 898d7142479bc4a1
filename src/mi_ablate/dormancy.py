"""Does a subspace patch work through directions that the model itself uses? (Makelov, Lange & Nanda 2023, arXiv 2311.17030)

A direction v can change the output when it is patched and yet play no part in the model's computation. It is then the sum of
two parts: one that follows the feature but that nothing downstream reads, and a dormant one that downstream weights read but
that hardly varies over the model's own inputs. Patching along v reads the feature off the first part and writes it into the
second one, a path that no run of the model takes.

The test splits each direction in two and patches the part that a real pathway would need by itself:

    mlp.hook_post, attn.hook_z of a head    v = (part in the row space of the reading weight, W_out or that head's W_O) + (part
                                            in its null space). The second one reaches nothing, so what it adds is spurious.
    any other site                          v = (part in the span of the principal directions that hold 99 % of the variance of
                                            both runs' activations at that place) + (the rest, where they hardly vary). There is
                                            no single weight to ask, so this split is by what the activations do.

`Dormant` warns where the whole patch has an effect of at least 0.1 and the active part alone less than half of it, or one of
the other sign. A weight that is zero reads nothing, and then everything is dormant. When it
misleads: outside the MLP, where little but the feature varies, the active part of any direction that follows the feature is
the feature itself, and no illusion shows; an honest direction estimated with noise has a dormant part too, but its active
part keeps its effect; W_O of a head is usually of full rank, so that its null space is empty; and a subspace of full rank
has no other part to be tested against.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._names import checked, layer_of
from mi_ablate._places import head_numbers
from mi_ablate._types import HookedModel
from mi_ablate.model import collect
from mi_ablate.moments import Moments
from mi_ablate.patching import patch
from mi_ablate.subspace import Subspace

HAS_EFFECT, KEPT = 0.1, 0.5
"""The warning: |whole| at least the first, and the active part, in the direction of the whole, below the second times it."""
HELD = 0.99
"""The share of the variance that the principal directions of a residual site hold."""
_NOTHING, _SAME = 1e-6, 1e-20


@dataclass(frozen=True, eq=False)
class Dormant:
    """The normalised effect of a subspace patch at one place, and of its active and dormant parts alone."""

    site: str
    pos: int
    head: int | None
    mode: str
    split: str
    """What the directions were split by: "W_out", "W_O", or "99 % of the variance"."""
    whole: float
    active: float
    """Of the part that the model can use; 0 where there is none."""
    dormant: float
    share: float
    """The share of the directions' squared length in the dormant part, over all directions."""
    ranks: tuple[int, int, int]
    """Of the whole, the active and the dormant part."""

    @property
    def illusion(self) -> bool:
        """Whether the patch has an effect and its active part alone has less than half of it, or the opposite one."""
        sign = 1 if self.whole > 0 else -1
        return abs(self.whole) >= HAS_EFFECT and sign * self.active < KEPT * abs(self.whole)

    def table(self) -> list[dict[str, Any]]:
        """Return one row for the whole and one for each part."""
        parts = (
            ("whole", self.whole, 1.0),
            ("active", self.active, 1 - self.share),
            ("dormant", self.dormant, self.share),
        )
        rows = zip(parts, self.ranks)
        return [{"part": n, "normalised effect": e, "share of length": s, "rank": r} for (n, e, s), r in rows]

    def __repr__(self) -> str:
        where = f"{self.site} pos {self.pos}" + ("" if self.head is None else f" head {self.head}")
        effects = f"whole {self.whole:.2f}, active part {self.active:.2f}, dormant part {self.dormant:.2f}"
        verdict = "; works through a dormant pathway" if self.illusion else ""
        return f"Dormant({self.mode} at {where}, by {self.split}: {effects}, {self.share:.0%} of it dormant{verdict})"


def dormant(
    model: HookedModel,
    clean: Int[Tensor, "n p"],
    corrupted: Int[Tensor, "m q"],
    metric: Callable[..., Tensor],
    name: str,
    subspace: Subspace,
    *,
    mode: str = "denoise",
    pos: int = -1,
    head: int | None = None,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
) -> Dormant:
    """Return how much of a subspace patch's effect is left when only the part that the model can use is patched.

    Args:
        model: the model.
        clean: prompts ``[n p]``.
        corrupted: their counterparts, row by row.
        metric: as for `patch`.
        name: the hook point.
        subspace: what is patched there.
        mode: "denoise" or "noise".
        pos: the position.
        head: the head, at hook_z.
        attention_mask: 1 for real tokens.
        batch_size: rows a pass.

    Raises:
        ValueError: hook_z without a head, and what `patch` refuses. IndexError: a head out of range.

    """
    given: dict[str, Any] = {"attention_mask": attention_mask, "batch_size": batch_size}
    checked(model, name, model.hook_dict)

    def effect(part: Subspace | None) -> float:
        if part is None:
            return 0.0
        found = patch(
            model, clean, corrupted, metric, name, mode=mode, pos=pos, head=head, subspace=part, controls={}, **given
        )
        return round(float(found.normalised), 12) + 0.0  # never -0.00

    used, split = _used(model, name, head)
    whole = effect(subspace)
    if used is None:
        used = _varying([_at(model, tokens, name, pos, head, given) for tokens in (clean, corrupted)])
    active, rest, share = _parts(subspace, used)
    ranks = (subspace.rank, active.rank if active else 0, rest.rank if rest else 0)
    found = Dormant(name, pos, head, mode, split, whole, effect(active), effect(rest), share, ranks)
    if found.illusion:
        warnings.warn(
            f"The patch of {subspace!r} at {name} has an effect of {whole:.2f}, its active part alone {found.active:.2f}: "
            f"it works through a dormant pathway (split by {split}; Makelov et al. 2023).",
            UserWarning,
            stacklevel=2,
        )
    return found


def _at(
    model: HookedModel, tokens: Tensor, name: str, pos: int, head: int | None, given: dict[str, Any]
) -> Float[Tensor, "n d"]:
    x = collect(model, tokens, name, pos=pos, **given)[name]
    x = x if head is None else x[:, head]
    return x.flatten(0, -2)


def _used(model: Any, name: str, head: int | None) -> tuple[Float[Tensor, "d used"] | None, str]:
    """The directions at a site that the weight that reads it can see, or None where no single weight reads it."""
    layer = layer_of(name)
    if layer is not None and name.endswith("mlp.hook_post"):
        weight, what = model.blocks[layer].mlp.W_out, "W_out"
    elif layer is not None and name.endswith("attn.hook_z"):
        if head is None:
            raise ValueError(f"dormant at {name} needs head=: each head is read by a W_O of its own.")
        heads = model.blocks[layer].attn.W_O
        weight, what = heads[head_numbers(head, len(heads))[0]], "W_O"
    else:
        return None, f"{HELD:.0%} of the variance"
    u, s, _ = torch.linalg.svd(weight.detach().to("cpu", torch.float64), full_matrices=False)
    eps = torch.finfo(
        torch.promote_types(weight.dtype, torch.float32)
    ).eps  # a half-precision weight is what it is, exactly
    return u[:, s > s[0] * eps * max(weight.shape)], what


def _varying(runs: list[Float[Tensor, "n d"]]) -> Float[Tensor, "d held"]:
    """The principal directions that hold 99 % of the variance of both runs together."""
    moments = Moments().update(torch.cat(runs))
    values, vectors = torch.linalg.eigh(moments.covariance.cpu())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    size = float(moments.mean.square().sum()) + float(values.sum())  # type: ignore[union-attr]
    if float(values.sum()) <= _SAME * size:
        raise ValueError("The activations of both runs are the same at that place: there is nothing to patch.")
    rank = int((values.cumsum(0) / values.sum() < HELD).sum()) + 1
    return vectors[:, :rank]


def _parts(subspace: Subspace, used: Float[Tensor, "d used"]) -> tuple[Subspace | None, Subspace | None, float]:
    """The spans of the directions' parts inside and outside ``used``, and the share of squared length outside."""
    rows = subspace.basis.T.cpu()
    inside = rows @ used @ used.T
    outside = rows - inside
    return _span(inside), _span(outside), float(outside.square().sum() / subspace.rank)


def _span(rows: Float[Tensor, "k d"]) -> Subspace | None:
    rows = rows[rows.norm(dim=1) > _NOTHING]
    return Subspace.span(rows) if len(rows) else None
