"""A direction explained: the tokens that it promotes, the inputs that hold most of it, and what it is close to.

Tokens: a direction v of the residual stream is read by the unembedding after the final norm, so its effect on the logits
is (γ ⊙ v) W_U, with the norm's gain γ, v minus its mean over coordinates where the norm is a LayerNorm, and minus the mean
over tokens (a softmax does not see it). The norm's scale, one number a prompt, is left out: values are relative to each
other. This is the direct path alone (nostalgebraist 2020, "the logit lens"); a direction of an early layer mostly acts
through later ones. Directions of a head or of neurons are mapped through W_O or W_out first.

When it misleads: the largest of 50,000 Gaussian numbers is 4.2 standard deviations, so a random direction has "top tokens"
too. Each value therefore comes in standard deviations over the vocabulary, beside the largest that chance gives for as many
tokens. A cosine of 0.1 with a subspace of rank 8 of 768 dimensions is chance: sqrt(rank / d) stands beside each.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate import _parts
from mi_ablate._parts import Part, parts_of
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.model import collect
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
    chance: float | None = None
    """The largest of as many Gaussian numbers as there are tokens, in standard deviations."""
    invisible: float | None = None
    """The share of its squared length on the mean over coordinates, which a LayerNorm removes; None for other norms."""
    read_at: str = ""
    """Where the coordinates of the inputs were read."""
    highest: tuple[Named, ...] = ()
    """Inputs with the largest coordinates."""
    lowest: tuple[Named, ...] = ()
    cosines: Mapping[str, tuple[float, float]] | None = None
    """By the other's name: the cosine with its subspace (signed for a single direction), and what chance gives."""

    def lines(self) -> list[str]:
        """Return the description, one fact a line."""
        where = self.sites[0] if len(self.sites) == 1 else f"{self.sites[0]} and {len(self.sites) - 1} more sites"
        out = [f"direction {self.number + 1} of {self.rank}{f' ({self.name})' if self.name else ''} at {where}"]
        by_chance = "" if self.chance is None else f" (sd over tokens; chance {self.chance:.1f})"
        at = "" if self.sites == (self.read_at,) else f", read at {self.read_at}"
        for label, pairs in (
            (f"promotes{by_chance}", self.promotes),
            (f"suppresses{by_chance}", self.suppresses),
            (f"largest in{at}", self.highest),
            (f"smallest in{at}", self.lowest),
        ):
            if pairs:
                out.append(f"  {label}: " + ", ".join(f"{text!r} {value:+.2f}" for text, value in pairs))
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
    without: tuple[str, ...] = ()
    """Sites of edits that have no direction: whole vectors, values one an example, plain functions."""

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
        if self.left_out:
            lines.append(f"({self.left_out} more directions; ask for them with directions=)")
        if self.without:
            lines.append(f"(no direction to describe at {', '.join(dict.fromkeys(self.without))})")
        return "\n".join(lines)


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
        site: of a `Subspace`: the hook point where it lies; its source's "site" by default.
        tokens: prompts whose coordinates are compared, at the edit's own position where it has one for each prompt, else
            at the last. Of an edit at several sites of the stream they are read at the last residual.
        attention_mask: 1 for real tokens.
        text: token ids to text, for tokens (one id) and prompts; the model's tokenizer, or the ids, by default.
        against: other edits or subspaces by name; those of another width are an error.
        top: how many tokens and inputs to name.
        directions: how many leading directions of each subspace to describe.

    Raises:
        ValueError: nothing to describe, a width that the model has not, no site, positions for other prompts.
        KeyError: a site that the model has not.

    """
    if top < 1 or directions < 1:
        raise ValueError(f"top={top} and directions={directions}: at least 1 of each.")
    others = {name: _parts.spaces_of(other) for name, other in (against or {}).items()}
    write = text or _writer(model)
    found, left_out = [], 0
    parts, without = parts_of(edit, model, site)
    for part in parts:
        logits, invisible = _logits(model, part, directions)
        coords = None if tokens is None else _coordinates(model, tokens, attention_mask, part, directions)
        for i in range(min(directions, part.space.rank)):
            q = part.space.basis[:, i].cpu()
            facts: dict[str, Any] = {"invisible": invisible[i], "cosines": _cosines(q, others)}
            if logits is not None:
                facts["promotes"], facts["suppresses"] = _ends(logits[i], top, lambda t: write([t]))
                facts["chance"] = float(torch.special.ndtri(torch.tensor(0.5264 ** (1 / logits.shape[1])).double()))
            if tokens is not None and coords is not None:
                ends = _ends(coords[:, i], top, lambda n: write(_real(tokens, attention_mask, n)))
                facts |= {"highest": ends[0], "lowest": ends[1], "read_at": _parts.read_at(part, model)}
            found.append(Direction(part.sites, i, part.space.rank, part.space.name, **facts))
        left_out += max(0, part.space.rank - directions)
    return Explanation(tuple(found), left_out, without)


def _logits(model: Any, part: Part, directions: int) -> tuple[Float[Tensor, "k v"] | None, list[float | None]]:
    """Effect on the logits, in standard deviations over tokens, and the share that a LayerNorm does not see."""
    rows = _parts.to_stream(model, part, directions)
    k = min(directions, part.space.rank)
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
    logits = (rows * _gain(model)) @ weight
    logits = logits - logits.mean(1, keepdim=True)
    return logits / logits.std(1, keepdim=True).clamp(min=1e-300), invisible


def _gain(model: Any) -> Float[Tensor, " d"]:
    """The final norm's gain up to a factor, measured: families store it as w, 1 + w, or folded away."""
    norm = getattr(model, "ln_final", None)
    d = model.cfg.d_model
    if norm is None or getattr(model.cfg, "normalization_type", None) is None:
        return torch.ones(d, dtype=torch.float64)
    x = torch.ones(d).index_fill(0, torch.arange(1, d, 2), -1.0)
    if d % 2:
        x[-3:] = torch.tensor([1.0, 1.0, -2.0])
    weight = model.unembed.W_U
    probe = x.to(weight.device, weight.dtype)[None, None]
    with torch.no_grad():
        odd = (norm(probe) - norm(-probe))[0, 0].to("cpu", torch.float64) / 2  # a bias cancels
    return odd / x.double()


def _coordinates(
    model: HookedModel, tokens: Tensor, mask: Tensor | None, part: Part, directions: int
) -> Float[Tensor, "n k"] | None:
    site = _parts.read_at(part, model)
    pos = part.pos if isinstance(part.pos, int) or (isinstance(part.pos, Tensor) and part.pos.ndim == 1) else -1
    if isinstance(pos, Tensor) and pos.dtype == torch.bool:
        pos = -1
    acts = collect(model, tokens, site, pos=pos, attention_mask=mask)[site].double().cpu()
    if acts.ndim == 3:
        if part.head is None:
            return None
        acts = acts[:, part.head]
    acts = acts if part.unit is None else acts[:, part.unit]
    k = min(directions, part.space.rank)
    return acts @ part.space.basis[:, :k].cpu()


def _real(tokens: Tensor, mask: Tensor | None, row: int) -> list[int]:
    """The tokens of a prompt without its padding."""
    return tokens[row].tolist() if mask is None else tokens[row][mask[row].bool()].tolist()


def _ends(
    values: Float[Tensor, " n"], top: int, name: Callable[[int], str]
) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    order = values.argsort(descending=True, stable=True).tolist()
    up, down = order[:top], order[::-1][:top]
    return tuple((name(i), float(values[i])) for i in up), tuple((name(i), float(values[i])) for i in down)


def _cosines(q: Float[Tensor, " d"], others: Mapping[str, list[Subspace]]) -> dict[str, tuple[float, float]]:
    found = {}
    for name, spaces in others.items():
        fitting = [space for space in spaces if space.d == len(q)]
        if not fitting:
            raise ValueError(f"{name} has directions of width {spaces[0].d}; this one has width {len(q)}.")
        for number, space in enumerate(fitting):
            inside = space.basis.cpu().T @ q
            cosine = float(inside[0]) if space.rank == 1 else float(inside.norm())
            label = name if len(fitting) == 1 else f"{name} ({number + 1})"
            found[label] = (cosine, math.sqrt(space.rank / space.d))
    return found


def _writer(model: Any) -> Callable[[list[int]], str]:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: str(tokenizer.decode(ids))
