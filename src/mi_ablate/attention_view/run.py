"""One prompt before and after an edit: which heads attend elsewhere, where tokens lie along its direction, what comes next.

Nothing is computed here that `mi_ablate.looking` does not compute; this chooses heads, layers and the direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._parts import spaces_of
from mi_ablate._types import FwdHooks
from mi_ablate.attention_view.asked import Asked, asked, heads_of, layers_of
from mi_ablate.controls import Control
from mi_ablate.looking import HeadsChanged, NotDrawn, along, covariance_drawn, heads_changed, next_token
from mi_ablate.model import collect
from mi_ablate.store import load, read_card
from mi_ablate.subspace import Subspace

CHANGED, UNEDITED = 4, 16
"""How many heads are drawn where none are asked for: those that an edit changes most, or the first ones."""
ROWS = 12
"""At most so many layers of coloured tokens where none are asked for."""
TOP = 5
"""Next tokens of each run."""
CELLS = 1_500_000
"""Entries of patterns on one page; of two runs of one random head over 866 tokens they make 8 megabytes with the scripts."""


@dataclass(frozen=True, eq=False)
class View:
    """What the page shows."""

    asked: Asked
    edits: tuple[str, ...]
    changed: HeadsChanged | None
    control: str
    """What its control was drawn from, or why there is none."""
    heads: tuple[tuple[int, int], ...]
    patterns: Float[Tensor, "head q k"]
    edited_patterns: Float[Tensor, "head q k"] | None
    direction: str | None
    layers: tuple[int, ...]
    """Of the coordinates."""
    coordinates: Float[Tensor, "layer p"] | None
    edited_coordinates: Float[Tensor, "layer p"] | None
    following: list[dict[str, Any]]
    """Probabilities of the next tokens: clean, edited, and under the control."""

    @property
    def names(self) -> list[str]:
        """Return the heads as "layer.head"."""
        return [f"{layer}.{head}" for layer, head in self.heads]

    def to_json(self) -> dict[str, Any]:
        """Return plain values: tables and coordinates, patterns left out."""
        pairs = {"clean": self.coordinates, "edited": self.edited_coordinates}
        return {
            "model": self.asked.name,
            "prompt": self.asked.prompt,
            "tokens": self.asked.strings,
            "ids": self.asked.tokens.tolist(),
            "edits": list(self.edits),
            "heads_changed": None if self.changed is None else self.changed.table(),
            "measured_over": self.asked.over,
            "control": self.control,
            "shown": self.names,
            "next_token": self.following,
            "direction": self.direction,
            "layers": list(self.layers),
            "coordinates": {name: x.tolist() for name, x in pairs.items() if x is not None},
        }


def view(
    model: str,
    prompt: str,
    edits: Sequence[str | Path] = (),
    *,
    layers: str | None = None,
    heads: str | None = None,
    direction: str | Path | None = None,
    prompts: str | Path | None = None,
    draws: int = 5,
    dtype: str | None = None,
    device: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> View:
    """Run one prompt without and with saved edits.

    Args:
        model: a toy, or what `mi_ablate.load_model` takes.
        prompt: see `asked.asked`.
        edits: saved interventions, all of them at once.
        layers: whose heads and residual streams, such as "0,3-5"; all by default.
        heads: drawn, such as "0.1,2.3"; by default the four that change most, without an edit the first sixteen.
        direction: a saved intervention whose first direction colours the tokens; that of the edits by default.
        prompts: a file of prompts that heads and their control are measured over; this one by default, 512 of a toy's.
        draws: of the control.
        dtype: of the weights; device: where they are.
        report: called with lines of progress.

    Raises:
        ValueError: what cannot be read or drawn. ArtefactError: a file of another model. IndexError: no such layer or head.

    """
    found = asked(model, prompt, prompts, dtype=dtype, device=device)
    cfg: Any = found.model.cfg
    wanted = layers_of(layers, cfg.n_layers)
    given = heads_of(heads, cfg.n_layers, cfg.n_heads) if heads is not None else None
    _refuse_many(given or [(0, 0)], found, bool(edits))
    hooks = [hook for path in edits for hook in load(path, found.model, tokens=found.tokens[None])]
    space, said = _direction(direction, hooks, cfg.d_model, edits)
    changed, control, runs = _changed(found, hooks, wanted, draws, report)
    drawn = given or _default(found, wanted, changed)
    rows = wanted if layers else _spread(wanted)
    report(f"Attention of {len(drawn)} heads over {len(found.tokens)} tokens, and the residual stream")
    both: list[FwdHooks] = [[], hooks] if hooks else [[]]
    seen, coords = [_patterns(found, drawn, h) for h in both], [_along(found, space, rows, h) for h in both]
    return View(
        asked=found,
        edits=tuple(_words(path) for path in edits),
        changed=changed,
        control=control,
        heads=tuple(drawn),
        patterns=seen[0],
        edited_patterns=seen[1] if hooks else None,
        direction=said,
        layers=tuple(rows),
        coordinates=coords[0],
        edited_coordinates=coords[1] if hooks else None,
        following=_following(found, hooks, runs),
    )


def _changed(
    found: Asked, hooks: FwdHooks, layers: list[int], draws: int, report: Callable[[str], None]
) -> tuple[HeadsChanged | None, str, list[FwdHooks]]:
    """The change of heads beside its control, and the control's edits; nothing without an edit."""
    if not hooks:
        return None, "", []
    report(f"Heads: {len(layers)} layers over {found.over}")
    controls: dict[str, Control] = {}
    quarters: set[int] = set()
    try:
        control = covariance_drawn(found.model, found.prompts, hooks, attention_mask=found.mask, draws=draws)
        controls, said = {"control": control}, control.name
    except NotDrawn as reason:
        said = f"none: {reason}"

    def progress(done: int, total: int) -> None:
        if 4 * done // total not in quarters:
            quarters.add(4 * done // total)
            report(f"Heads: {done} of {total} passes")

    changed = heads_changed(
        found.model, found.prompts, hooks, layers=layers, controls=controls, attention_mask=found.mask, draws=draws,
        progress=progress,
    )  # fmt: skip
    return changed, said, [control(hooks, seed) for control in controls.values() for seed in range(draws)]


def _direction(
    file: str | Path | None, hooks: FwdHooks, width: int, edits: Sequence[str | Path]
) -> tuple[Subspace | None, str | None]:
    """The first direction of the residual stream's width, and where it is from."""
    if file is None and not hooks:
        return None, None
    try:
        spaces = spaces_of(load(file) if file is not None else hooks)
    except ValueError as error:
        if file is not None:
            raise ValueError(f"{file} has no direction to colour tokens by: {error}") from None
        return None, None
    space = next((s for s in spaces if s.d == width), None)
    if space is None and file is not None:
        raise ValueError(
            f"The direction of {file} has width {spaces[0].d}; the residual stream of this model has {width}."
        )
    source = file if file is not None else " and ".join(Path(path).stem for path in edits)
    return space, None if space is None else f"direction 1 of {space.rank} of {Path(source).stem}"


def _default(found: Asked, layers: list[int], changed: HeadsChanged | None) -> list[tuple[int, int]]:
    """The heads to draw where none were asked for, as many as a page holds."""
    n_heads = int(found.model.cfg.n_heads)
    room = max(1, CELLS // (len(found.tokens) ** 2 * (1 if changed is None else 2)))
    if changed is not None and changed.top(1):
        return list(changed.top(min(CHANGED, room)))
    first = [(layer, head) for layer in layers for head in range(n_heads)]
    return first[: min(UNEDITED if changed is None else CHANGED, room)]


def _refuse_many(heads: list[tuple[int, int]], found: Asked, twice: bool) -> None:
    cells = len(heads) * len(found.tokens) ** 2 * (1 + twice)
    if cells > CELLS:
        most = int((CELLS / (1 + twice) / len(heads)) ** 0.5)
        raise ValueError(
            f"{len(heads)} heads over {len(found.tokens)} tokens are {cells:,} numbers, too many for one page. "
            f"Choose fewer --heads, or a prompt of at most {most} tokens."
        )


def _spread(layers: list[int]) -> list[int]:
    """At most `ROWS` of the layers, evenly, the first and the last among them."""
    if len(layers) <= ROWS:
        return layers
    return [layers[round(i * (len(layers) - 1) / (ROWS - 1))] for i in range(ROWS)]


def _along(found: Asked, space: Subspace | None, layers: list[int], hooks: FwdHooks) -> Float[Tensor, "layer p"] | None:
    names = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    return None if space is None else along(found.model, found.tokens, space, names, hooks=hooks)


def _patterns(found: Asked, heads: list[tuple[int, int]], hooks: FwdHooks) -> Float[Tensor, "head q k"]:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in sorted({layer for layer, _ in heads})]
    acts = collect(found.model, found.tokens[None], names, pos=None, hooks=hooks)
    return torch.stack([acts[f"blocks.{layer}.attn.hook_pattern"][0, :, head] for layer, head in heads]).cpu()


def _following(found: Asked, hooks: FwdHooks, controls: list[FwdHooks]) -> list[dict[str, Any]]:
    """The likeliest next tokens of either run, with their probabilities in both and the mean under the control."""
    runs = {"clean": next_token(found.model, found.tokens)}
    if hooks:
        runs["edited"] = next_token(found.model, found.tokens, hooks)
    if controls:
        runs["control"] = torch.stack([next_token(found.model, found.tokens, edit) for edit in controls]).mean(0)
    leading = [
        runs[name].topk(min(TOP, len(runs[name]))).indices.tolist() for name in ("clean", "edited") if name in runs
    ]
    ids = dict.fromkeys(i for row in leading for i in row)
    return [{"token": found.answer(i), **{name: float(p[i]) for name, p in runs.items()}} for i in ids]


def _words(path: str | Path) -> str:
    """A saved edit in one line: its title and its sites."""
    card = read_card(path)
    sites = [str(entry.get("site")) for entry in card["hooks"]]
    more = f" and {len(sites) - 2} more" if len(sites) > 2 else ""
    return (
        f"{card.get('title') or Path(path).name} ({card['hooks'][0].get('operation')} at {', '.join(sites[:2])}{more})"
    )
