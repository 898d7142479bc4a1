"""A saved file in words: what its card claims, what its hooks do, and its directions explained.

The card is what the author of the file wrote; the explanation is computed from its tensors and the model. Where they
disagree, believe the second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mi_ablate.explained import Explanation, explain
from mi_ablate.prompts import tokenized
from mi_ablate.store import fingerprint, load, read_card


@dataclass(frozen=True)
class Shown:
    """A card, and the directions explained where the model is known."""

    path: Path
    card: dict[str, Any]
    edits: tuple[str, ...]
    model: str | None
    explanation: Explanation | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        rows = None if self.explanation is None else self.explanation.to_json()
        return {
            "path": str(self.path),
            "card": self.card,
            "edits": list(self.edits),
            "model": self.model,
            "directions": rows,
        }

    def __str__(self) -> str:
        card = self.card
        lines = [card.get("title") or str(self.path)]
        lines += [card["description"]] if card.get("description") else []
        shape = (card.get("model") or {}).get("architecture") or {}
        if shape:
            lines.append(
                f"made on: {shape.get('n_layers')} layers, d_model {shape.get('d_model')}, vocabulary {shape.get('d_vocab')}"
            )
        lines += [f"edit: {edit}" for edit in self.edits]
        claim = card.get("claim") or {}
        if claim:
            lines.append(f"claims, of {claim.get('metric', 'a metric')}:")
            lines += [f"  {_claimed(row)}" for row in claim.get("rows", [])]
        lines += [f"{key}: {_plain(card[key])}" for key in ("fit", "seeds", "versions", "command") if card.get(key)]
        if self.explanation is None:
            lines.append("Give --model to see tokens, inputs and cosines: no shipped model has these weights.")
        else:
            lines += [f"on {self.model}:", str(self.explanation)]
        return "\n".join(lines)


def show(
    path: str | Path,
    model: str | None = None,
    *,
    against: Sequence[str | Path] = (),
    prompts: str | Path | None = None,
    top: int = 6,
    directions: int = 3,
) -> Shown:
    """Read a saved intervention and explain it.

    Args:
        path: the file.
        model: what `mi_ablate.load_model` takes; the shipped model with the file's weights by default, if there is one.
        against: other saved files, for cosines.
        prompts: a file for `mi_ablate.read_prompts`; a shipped toy uses all of its own.
        top: tokens and inputs to name.
        directions: leading directions of each subspace to describe.

    Raises:
        ArtefactError: not such a file, or one of another architecture or other weights.
        ValueError: prompts that the model cannot read.

    """
    card = read_card(path)
    edits = tuple(f"{entry.get('operation')} at {entry.get('site')}{_where(entry)}" for entry in card["hooks"])
    name = model or _shipped(card)
    if name is None:
        if against or prompts:
            raise ValueError("Cosines and inputs need the model that the file was made on: give --model.")
        return Shown(Path(path), card, edits, None, None)
    loaded, tokens, mask, text = _model(name, prompts)
    hooks = load(path, loaded, tokens=tokens)
    others = {Path(other).stem: load(other) for other in against}
    found = explain(
        hooks, loaded, tokens=tokens, attention_mask=mask, text=text, against=others, top=top, directions=directions
    )
    return Shown(Path(path), card, edits, name, found)


def _shipped(card: dict[str, Any]) -> str | None:
    """The zoo model with the card's weights."""
    from mi_ablate import toys

    weights = (card.get("model") or {}).get("weights")
    return next((name for name in toys.names() if fingerprint(toys.load(name).model)["weights"] == weights), None)


def _model(
    name: str, prompts: str | Path | None
) -> tuple[Any, Tensor | None, Tensor | None, Callable[[list[int]], str] | None]:
    """The model, prompts with their mask, and how to write tokens."""
    from mi_ablate import toys
    from mi_ablate.loading import load_model
    from mi_ablate.toys.tasks import labels

    if name in toys.names():
        if prompts is not None:
            raise ValueError(f"{name} is a toy, and all of its own prompts are used: leave out --prompts.")
        toy = toys.load(name)
        return toy.model, toy.tokens, None, lambda ids: " ".join(labels(toy.config, ids))
    loaded = load_model(name)
    if prompts is None:
        return loaded, None, None, None
    found = tokenized(loaded, prompts)
    return loaded, found.tokens, found.attention_mask, found.decode.joined


def _where(entry: dict[str, Any]) -> str:
    """Positions, heads, strength and the like, where they are plain."""
    values = {key: entry.get(key) for key in ("pos", "head", "unit", "when")} | (entry.get("values") or {})
    usual = {"when": "all", "strength": 1.0, "keep": False}
    plain = {k: v for k, v in values.items() if isinstance(v, (int, float, str, list)) and v != usual.get(k)}
    return "".join(f", {key} {value}" for key, value in plain.items())


def _claimed(row: dict[str, Any]) -> str:
    spread = f" [{row['low']:.3f}, {row['high']:.3f}]" if row.get("draws", 1) > 1 else ""
    removed = row.get("variance_removed")
    share = "" if removed is None else f", {removed:.0%} of the variance removed"
    return f"{row.get('run')}: {row.get('mean', float('nan')):.3f}{spread}{share}"


def _plain(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
