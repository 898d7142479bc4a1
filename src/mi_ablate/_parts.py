"""What an edit's directions are: read and written subspaces, where they lie, and what they write to the stream."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Ablate, Add, Erase, Intervention, Placed, Rotate
from mi_ablate.model import last_residual, layer_of, sites
from mi_ablate.subspace import Subspace

_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True, eq=False)
class Part:
    """One subspace of an edit, and the sites that share it."""

    sites: tuple[str, ...]
    space: Subspace
    """What is read: its coordinates are those of the inputs."""
    written: Subspace
    """What is written, which is what the logits see; another basis only for oblique erasure."""
    pos: Any = -1
    head: int | None = None
    unit: list[int] | None = None

    def same(self, other: "Part") -> bool:
        """Whether two edits differ in their site alone."""
        return (
            self.head == other.head
            and self.unit == other.unit
            and _equal(self.pos, other.pos)
            and _equal(self.space.basis, other.space.basis)
            and _equal(self.written.basis, other.written.basis)
        )


def parts_of(edit: FwdHooks | Subspace, model: HookedModel, site: str | None) -> tuple[list[Part], tuple[str, ...]]:
    """Return the parts of an edit, and the sites of hooks that have none."""
    if isinstance(edit, Subspace):
        where = site or edit.source.get("site")
        if where is None:
            raise ValueError("The subspace does not say where it lies: give site=, such as 'blocks.0.hook_resid_post'.")
        head = edit.source.get("head")
        return [Part((_one(model, where),), edit, edit, edit.source.get("pos", -1), head)], ()
    if isinstance(edit, Intervention):
        raise ValueError(f"{edit!r} does not say where it acts: explain(edit.at('blocks.0.hook_resid_post'), model).")
    if site is not None:
        raise ValueError("site= is for a Subspace; hooks name their own sites.")
    parts: list[Part] = []
    without = []
    for name, hook in edit:
        _one(model, name)
        part = _part(name, hook)
        if part is None:
            without.append(name)
            continue
        for i, other in enumerate(parts):
            if part.same(other):
                parts[i] = replace(other, sites=(*other.sites, name))
                break
        else:
            parts.append(part)
    if not parts:
        raise ValueError("No hook here has a subspace to describe: whole-vector edits and plain functions have none.")
    return parts, tuple(without)


def spaces_of(edit: FwdHooks | Subspace) -> list[Subspace]:
    """Return what an edit writes, each subspace once; cosines need no site."""
    if isinstance(edit, Subspace):
        return [edit]
    found: list[Subspace] = []
    for name, hook in edit:
        part = _part(name, hook)
        if part is not None and not any(_equal(part.written.basis, s.basis) for s in found):
            found.append(part.written)
    if not found:
        raise ValueError(
            "No hook here has a subspace to compare with: whole-vector edits and plain functions have none."
        )
    return found


def read_at(part: Part, model: HookedModel) -> str:
    """Return the site whose activations are read: of several sites of the stream, the last residual."""
    if len(part.sites) == 1:
        return part.sites[0]
    return last_residual(model) if all(_in_stream(site) for site in part.sites) else part.sites[-1]


def to_stream(model: Any, part: Part, directions: int) -> Float[Tensor, "k d_model"] | None:
    """Return the rows that the leading directions write to the residual stream; None where no weight says it."""
    site, rows = part.sites[0], part.written.basis[:, :directions].T.cpu()
    layer = layer_of(site)
    if _in_stream(site):
        return _placed(rows, part, model.cfg.d_model, site)
    if site.endswith("hook_z") and part.head is not None:
        weight = model.blocks[layer].attn.W_O[part.head]
    elif site.endswith("mlp.hook_post"):
        weight = model.blocks[layer].mlp.W_out
    else:
        return None
    return _placed(rows, part, weight.shape[0], site) @ weight.detach().to("cpu", torch.float64)


def _placed(rows: Float[Tensor, "k m"], part: Part, width: int, site: str) -> Float[Tensor, "k d"]:
    """The rows over all coordinates of a site, where an edit sees some units alone."""
    if part.unit is None:
        if rows.shape[1] != width:
            raise ValueError(f"The direction has width {rows.shape[1]}; the model's vectors at {site} have {width}.")
        return rows
    out = rows.new_zeros(len(rows), width)
    out[:, part.unit] = rows
    return out


def _part(name: str, hook: Any) -> Part | None:
    if not isinstance(hook, Placed):
        return None
    pair = _read_and_written(hook.intervention)
    if pair is None or isinstance(hook.head, list):
        return None
    unit = [hook.unit] if isinstance(hook.unit, int) else hook.unit
    return Part((name,), *pair, -1 if hook.pos is None else hook.pos, hook.head, unit)


def _read_and_written(edit: Intervention) -> tuple[Subspace, Subspace] | None:
    if isinstance(edit, (Ablate, Rotate)) and edit.subspace is not None:
        return edit.subspace, edit.subspace
    if isinstance(edit, Erase):
        return Subspace.span(edit.reader.T, "reader"), Subspace.span(edit.writer.T, "writer")
    if isinstance(edit, Add) and edit.vector.ndim == 1 and edit.vector.any():
        strength = edit.strength if isinstance(edit.strength, (int, float)) else 1
        if strength == 0:
            return None
        added = Subspace.span(edit.vector * (1 if strength > 0 else -1), "added")
        return added, added
    return None


def _in_stream(site: str) -> bool:
    return site.endswith(_STREAM) or site in ("hook_embed", "hook_pos_embed")


def _one(model: HookedModel, site: str) -> str:
    """The hook name, or an error that lists the nearest."""
    found = sites(model, site)
    if len(found) != 1 or found[0] != site:
        raise KeyError(f"{site!r} is a pattern, not the name of one hook point: {', '.join(found[:3])} ...")
    return site


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
