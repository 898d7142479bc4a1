"""The page of ``mi-ablate attention`` and its summary in the terminal; nothing is measured here."""

import importlib.metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from mi_ablate.attention_view.run import View
from mi_ablate.figures import attention, tokens
from mi_ablate.figures.coloured import visible
from mi_ablate.report import Section, page

LISTED = 12
"""Heads in the table of the page."""
FAR = 5
"""A first token this many times beyond all others does not set the colours."""
SAYS = {
    "heads": (
        "How much of each head's attention the edit moves: the total variation ½ Σ |edited - clean| over keys, from 0 (the "
        "same) to 1 (nothing is read that was read before), mean over queries and over {over}. Most at one query: the "
        "largest. {listed}\n\n"
        "Control: the same edit along directions drawn from the activations ({control}): mean, lowest and highest of its "
        "draws. A head that moves no more than it does under the control says little about this direction."
    ),
    "still": "The edit moves no head's attention: it acts after the layers shown, or where nothing reads it.",
    "attention": (
        "Rows are destinations (queries), columns sources (keys). A head that is pointed at on one side is shown on both. "
        "Attention says where a head reads, not what it does with what it reads."
    ),
    "tokens": (
        "The residual stream after each layer, its coordinate along {direction}, in units of the stream. The colours of both "
        "runs have one scale. A coordinate is a projection of the whole stream; later layers need not read it."
    ),
    "next": "Probability of what follows the prompt: the likeliest of each run.",
}


def write(found: View, path: str | Path, command: str = "mi-ablate attention") -> Path:
    """Write the self-contained page and return its path."""
    sections = []
    if found.changed is not None:
        table = found.changed.table()
        listed = f"The {LISTED} of {len(table)} heads that move most." if len(table) > LISTED else "All heads."
        said = SAYS["heads"].format(over=found.asked.over, listed=listed, control=found.control)
        still = [] if found.changed.top(1) else [SAYS["still"]]
        sections.append(Section("Which heads change most", said, [*still, table[:LISTED]]))
    strings = found.asked.strings
    picture = attention(found.patterns, strings, found.names, against=found.edited_patterns)
    sections.append(Section("Attention", SAYS["attention"], [picture]))
    if found.coordinates is not None:
        runs = {"clean": found.coordinates, "edited": found.edited_coordinates}
        limit = _limit([x for x in runs.values() if x is not None])
        rows = [f"layer {layer}" for layer in found.layers]
        pictures = [
            tokens(x, strings, rows, label="coordinate (units of the residual stream)", title=name, limit=limit)
            for name, x in runs.items()
            if x is not None
        ]
        text = SAYS["tokens"].format(direction=visible(str(found.direction), spaces=False))
        sections.append(Section("Tokens along the direction", text, pictures))
    sections.append(Section("Next token", SAYS["next"], [_following(found)]))
    footer: dict[str, Any] = {"command": command, "model": found.asked.name}
    footer |= {f"edit {i}": edit for i, edit in enumerate(found.edits, 1)}
    footer |= {name: importlib.metadata.version(name) for name in ("mi_ablate", "torch", "transformer-lens")}
    return page(path, title(found), sections, footer={k: visible(v, spaces=False) for k, v in footer.items()})


def title(found: View) -> str:
    """Return the heading: model and prompt."""
    whole = visible(found.asked.prompt.strip(), spaces=False)
    return f"{Path(found.asked.name).name} reads “{whole if len(whole) <= 80 else whole[:79] + '…'}”"


def summary(found: View) -> str:
    """Return what the page says in a few lines."""
    lines = [title(found), *(f"edit: {edit}" for edit in found.edits)]
    if found.changed is not None:
        lines.append(f"attention moved (of 1), over {found.asked.over}; control: {found.control}")
        for row in found.changed.table()[:5]:
            control = row.get("control")
            beside = (
                ""
                if control is None
                else f"   control {control['mean']:.4f} [{control['low']:.4f}, {control['high']:.4f}]"
            )
            lines.append(f"  head {row['head']:<6} {row['moved']:.4f}{beside}")
        lines += [] if found.changed.top(1) else [SAYS["still"]]
    lines.append("next token:")
    for row in _following(found):
        parts = [f"{name} {row[name]:.4f}" for name in ("clean", "edited", "control") if name in row]
        lines.append(f"  {row['token']:<16} {'   '.join(parts)}")
    return "\n".join(visible(line, spaces=False) for line in lines)


def _following(found: View) -> list[dict[str, Any]]:
    return [{**row, "token": visible(row["token"])} for row in found.following]


def _limit(runs: list[Tensor]) -> float | None:
    """The scale of both runs: the largest coordinate, the first token aside where it dwarfs all others."""
    whole = max(float(x.abs().max()) for x in runs)
    rest = max(float(x[:, 1:].abs().max()) for x in runs) if runs[0].shape[1] > 1 else 0.0
    return (rest if 0 < rest * FAR < whole else whole) or None
