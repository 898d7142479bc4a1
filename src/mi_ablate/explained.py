"""A direction explained: the tokens that it promotes, the inputs that hold most of it, and what it is close to.

Tokens: a direction v of the residual stream is read by the unembedding after the final norm, so its effect on the logits
is (γ ⊙ v) W_U, with the norm's gain γ, v minus its mean over coordinates where the norm is a LayerNorm, and minus the mean
over tokens (a softmax does not see it). The norm's scale, one number a prompt, is left out: values are relative to each
other. This is the direct path alone (nostalgebraist 2020, "the logit lens"); a direction of an early layer mostly acts
through later ones. Directions of a head or of neurons are mapped through W_O or W_out first.

When it misleads: the largest of 50,000 Gaussian numbers is 4.2 standard deviations, so a random direction has "top tokens"
too. Each value therefore comes in standard deviations over the vocabulary; near 4, the tokens mean nothing. A cosine of
0.1 with a subspace of rank 8 of 768 dimensions is chance: sqrt(rank / d) stands beside each.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Ablate, Add, Erase, Intervention, Placed, Rotate
from mi_ablate.model import collect, layer_of
from mi_ablate.subspace import Subspace

Named = tuple[str, float]


@dataclass(frozen=True)
class Direction:
    """One direction of an edit, in words and numbers."""

    sites: tuple[str, ...]
    number: int
    """Its place in the basis, from 0."""
    rank: int
    name: str
    promotes: tuple[Named, ...] = ()
    """Tokens that it pushes up most, in standard deviations over the vocabulary; empty where no path to W_U is known."""
    suppresses: tuple[Named, ...] = ()
    invisible: float | None = None
    """The share of its squared length on the mean over coordinates, which a LayerNorm removes; None for other norms."""
    highest: tuple[Named, ...] = ()
    """Inputs with the largest coordinates."""
    lowest: tuple[Named, ...] = ()
    cosines: Mapping[str, tuple[float, float]] | None = None
    """By the other's name: the cosine with its subspace (signed for a single direction), and what chance gives."""

    def lines(self) -> list[str]:
        """Return the description, one fact a line."""
        where = self.sites[0] if len(self.sites) == 1 else f"{self.sites[0]} and {len(self.sites) - 1} more sites"
        out = [f"direction {self.number + 1} of {self.rank}{f' ({self.name})' if self.name else ''} at {where}"]
        for label, pairs, unit in (
            ("promotes", self.promotes, " sd"),
            ("suppresses", self.suppresses, " sd"),
            ("largest in", self.highest, ""),
            ("smallest in", self.lowest, ""),
        ):
            if pairs:
                out.append(f"  {label}: " + ", ".join(f"{text!r} {value:+.2f}{unit}" for text, value in pairs))
        if self.invisible is not None and self.invisible > 0.01:
            out.append(f"  {self.invisible:.0%} of it lies on the mean over coordinates, which LayerNorm removes")
        for other, (cosine, chance) in (self.cosines or {}).items():
            out.append(f"  cosine {cosine:+.3f} with {other} (chance {chance:.3f})")
        return out


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: one `Direction` a row."""

    directions: tuple[Direction, ...]
    left_out: int
    """Directions that were not described."""

    def table(self) -> list[dict[str, Any]]:
        """Return one row a direction, its lists as text."""
        rows = []
        for one in self.directions:
            row: dict[str, Any] = {"site": one.sites[0], "sites": len(one.sites), "direction": one.number + 1}
            for key in ("promotes", "suppresses", "highest", "lowest"):
                row[key] = ", ".join(f"{text!r} {value:+.2f}" for text, value in getattr(one, key))
            row["invisible"] = one.invisible
            rows.append({**row, **{f"cosine with {k}": v[0] for k, v in (one.cosines or {}).items()}})
        return rows

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain values, one object a direction."""
        return [asdict(one) for one in self.directions]

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table())

    def __str__(self) -> str:
        lines = [line for one in self.directions for line in one.lines()]
        more = [f"({self.left_out} more directions; ask for them with directions=)"] if self.left_out else []
        return "\n".join([*lines, *more])


def explain(
    edit: FwdHooks | Subspace,
    model: HookedModel,
    *,
    site: str | None = None,
    tokens: Int[Tensor, "n p"] | None = None,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    text: Callable[[list[int]], str] | None = None,
    against: Mapping[str, FwdHooks | Subspace] | None = None,
    top: int = 6,
    directions: int = 3,
) -> Explanation:
    """Describe the leading directions of an edit, or of a subspace at a site.

    Args:
        edit: ``edit.at(...)``, what `mi_ablate.load` returns, or a `Subspace`.
        model: the model that it belongs to.
        site: of a `Subspace`: where it lies; its source's "site" by default.
        tokens: prompts whose coordinates are compared, at the edit's own position (the last where it has none, or many).
        attention_mask: 1 for real tokens.
        text: token ids to text, for tokens (one id) and prompts; the model's tokenizer, or the ids, by default.
        against: other edits or subspaces by name; those of another width are an error.
        top: how many tokens and inputs to name.
        directions: how many leading directions of each subspace to describe.

    Raises:
        ValueError: nothing to describe, a width that the model has not, or no site.

    """
    if top < 1 or directions < 1:
        raise ValueError(f"top={top} and directions={directions}: at least 1 of each.")
    others = {
        name: _bases(other, site if isinstance(other, Subspace) else None) for name, other in (against or {}).items()
    }
    write = text or _writer(model)
    found, left_out = [], 0
    for part in _bases(edit, site):
        logits, invisible = _logits(model, part, part.space.basis[:, :directions])
        coords = None if tokens is None else _coordinates(model, tokens, attention_mask, part, directions)
        for i in range(min(directions, part.space.rank)):
            tops = ((), ()) if logits is None else _ends(logits[i], top, lambda t: write([t]))
            ends = ((), ()) if coords is None else _ends(coords[:, i], top, lambda n: write(tokens[n].tolist()))  # type: ignore[index]
            q = part.space.basis[:, i]
            found.append(
                Direction(
                    part.sites, i, part.space.rank, part.space.name, *tops, invisible[i], *ends, _cosines(q, others)
                )
            )
        left_out += max(0, part.space.rank - directions)
    return Explanation(tuple(found), left_out)


@dataclass(frozen=True)
class _Part:
    sites: tuple[str, ...]
    space: Subspace
    """What is read: its coordinates are those of the inputs."""
    written: Subspace
    """What is written, which is what the logits see; another basis only for oblique erasure."""
    pos: Any = -1
    head: int | None = None


def _bases(edit: FwdHooks | Subspace, site: str | None) -> list[_Part]:
    if isinstance(edit, Subspace):
        where = site or edit.source.get("site")
        if where is None:
            raise ValueError("The subspace does not say where it lies: give site=, such as 'blocks.0.hook_resid_post'.")
        return [_Part((where,), edit, edit, edit.source.get("pos", -1), edit.source.get("head"))]
    if site is not None:
        raise ValueError("site= is for a Subspace; hooks name their own sites.")
    parts: list[_Part] = []
    for name, hook in edit:
        pair = _read_and_written(hook.intervention) if isinstance(hook, Placed) else None
        if pair is None:
            continue
        head = hook.head if isinstance(hook.head, int) else None  # type: ignore[attr-defined]
        pos = hook.pos if isinstance(hook.pos, (int, Tensor)) else -1  # type: ignore[attr-defined]
        for i, part in enumerate(parts):
            if part.head == head and torch.equal(part.space.basis, pair[0].basis):
                parts[i] = _Part((*part.sites, name), part.space, part.written, part.pos, head)
                break
        else:
            parts.append(_Part((name,), *pair, pos, head))
    if not parts:
        raise ValueError("No hook here has a subspace to describe: whole-vector edits and plain functions have none.")
    return parts


def _read_and_written(edit: Intervention) -> tuple[Subspace, Subspace] | None:
    if isinstance(edit, (Ablate, Rotate)) and edit.subspace is not None:
        return edit.subspace, edit.subspace
    if isinstance(edit, Erase):
        return Subspace.span(edit.reader.T, "reader"), Subspace.span(edit.writer.T, "writer")
    if isinstance(edit, Add) and edit.vector.ndim == 1 and edit.vector.any():
        return (Subspace.span(edit.vector, "added"),) * 2
    return None


def _logits(
    model: Any, part: _Part, basis: Float[Tensor, "d k"]
) -> tuple[Float[Tensor, "k v"] | None, list[float | None]]:
    """Effect on the logits, in standard deviations over tokens, and the share that a LayerNorm does not see."""
    k = basis.shape[1]
    rows = _to_stream(model, part, part.written.basis[:, :k])
    if rows is None:
        return None, [None] * k
    weight = model.unembed.W_U.detach().to("cpu", torch.float64)
    kind = str(getattr(model.cfg, "normalization_type", None) or "")
    invisible: list[float | None] = [None] * k
    if kind.startswith("LN"):
        mean = rows.mean(1, keepdim=True)
        lost = (mean**2 * rows.shape[1]).flatten() / (rows**2).sum(1).clamp(min=1e-300)
        invisible = [float(share) for share in lost]
        rows = rows - mean
    gain = getattr(getattr(model, "ln_final", None), "w", None)
    gain = getattr(getattr(model, "ln_final", None), "weight", None) if gain is None else gain
    if isinstance(gain, Tensor):
        rows = rows * gain.detach().to("cpu", torch.float64)
    logits = rows @ weight
    logits = logits - logits.mean(1, keepdim=True)
    return logits / logits.std(1, keepdim=True).clamp(min=1e-300), invisible


def _to_stream(model: Any, part: _Part, basis: Float[Tensor, "d k"]) -> Float[Tensor, "k d_model"] | None:
    """The rows that a direction writes to the residual stream; None where no weight says it."""
    site = part.sites[0]
    layer, d = layer_of(site), basis.shape[0]
    last = site.rpartition(".")[2]
    if last in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out") or (
        layer is None and last in ("hook_embed", "hook_pos_embed")
    ):
        if d != model.cfg.d_model:
            raise ValueError(f"The direction has width {d}; the model's vectors at {site} have {model.cfg.d_model}.")
        return basis.T
    if last == "hook_z" and part.head is not None:
        weight = model.blocks[layer].attn.W_O[part.head]
    elif site.endswith("mlp.hook_post"):
        weight = model.blocks[layer].mlp.W_out
    else:
        return None
    if d != weight.shape[0]:
        raise ValueError(f"The direction has width {d}; the model's vectors at {site} have {weight.shape[0]}.")
    return basis.T @ weight.detach().to("cpu", torch.float64)


def _coordinates(
    model: HookedModel, tokens: Tensor, mask: Tensor | None, part: _Part, directions: int
) -> Float[Tensor, "n k"] | None:
    site = part.sites[-1]
    pos = part.pos if not isinstance(part.pos, Tensor) or len(part.pos) == len(tokens) else -1
    acts = collect(model, tokens, site, pos=pos, attention_mask=mask)[site].double().cpu()
    if acts.ndim == 3:
        if part.head is None:
            return None
        acts = acts[:, part.head]
    return part.space[: min(directions, part.space.rank)].coords(acts)


def _ends(
    values: Float[Tensor, " n"], top: int, name: Callable[[int], str]
) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    order = values.argsort(descending=True, stable=True).tolist()
    up, down = order[: min(top, len(order))], order[::-1][: min(top, len(order))]
    return tuple((name(i), float(values[i])) for i in up), tuple((name(i), float(values[i])) for i in down)


def _cosines(q: Float[Tensor, " d"], others: Mapping[str, list[_Part]]) -> dict[str, tuple[float, float]]:
    found = {}
    for name, parts in others.items():
        fitting = [part.written for part in parts if part.written.d == len(q)]
        if not fitting:
            raise ValueError(f"{name} has directions of width {parts[0].written.d}; this one has width {len(q)}.")
        for number, space in enumerate(fitting):
            inside = space.basis.T @ q
            cosine = float(inside[0]) if space.rank == 1 else float(inside.norm())
            label = name if len(fitting) == 1 else f"{name} ({number + 1})"
            found[label] = (cosine, math.sqrt(space.rank / space.d))
    return found


def _writer(model: Any) -> Callable[[list[int]], str]:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: str(tokenizer.decode(ids))
