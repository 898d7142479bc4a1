"""The README of an exported model: what was edited, what that did beside which control, and what it cost.

What was edited is read from the hooks themselves. Effect, collateral and how the direction was found are quoted from
the card of the edit, which its author wrote: its text is cut, and stripped of everything that markdown or HTML would act on.
"""

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from mi_ablate._names import layer_of
from mi_ablate._types import FwdHooks
from mi_ablate.interventions import Intervention, Placed
from mi_ablate.store import Card
from mi_ablate.subspace import Subspace

_LONGEST = 500
_FIRST = ("run", "mean", "low", "high", "draws", "variance_removed")
"""Columns of an effect's table in their order; a file keeps its keys sorted."""
_SPECIAL = re.compile(r"([\\`*_\[\]|#~!])")


def model_card(
    base: str, hooks: FwdHooks, card: Card | Mapping[str, Any], checked: str, versions: dict[str, str]
) -> str:
    """Return the markdown text.

    Args:
        base: the model that was edited.
        hooks: the edit, as it was baked.
        card: what `mi_ablate.read_card` gives, or a `Card`.
        checked: the sentence about the comparison of logits.
        versions: of what wrote it.

    """
    said = asdict(card) if isinstance(card, Card) else dict(card)
    title = text(said.get("title") or "an edit without a title")
    lines = ["---", f"base_model: {json.dumps(base)}", "library_name: transformers", "tags:", "- mi_ablate", "---", ""]
    lines += [f"# {text(base)}, edited: {title}", ""]
    lines += [text(said["description"]), ""] if said.get("description") else []
    lines += [
        "The weights that write to the residual stream were changed by the linear edit below; all others are the base "
        "model's. It was made to measure how a behaviour is represented, not for use in its stead.",
        "",
        "## What was edited",
        "",
        *table(edits(hooks)),
        "",
    ]
    for name, heading in (("fit", "How the direction was found and chosen"), ("seeds", "Seeds")):
        given = said.get(name)
        if isinstance(given, Mapping) and given:
            lines += [
                f"{heading}:",
                "",
                *(f"- {text(k)}: {text(v)}" for k, v in list(given.items())[:40] if _says(v)),
                "",
            ]
    claim = said.get("claim")
    lines += _measured(claim if isinstance(claim, Mapping) else {})
    lines += [
        "## What to make of it",
        "",
        "- The numbers hold for the prompts and the protocol named above. A behaviour that resists or yields to linear "
        "removal there may do otherwise elsewhere, and fine-tuning may bring it back.",
        f"- {checked}",
        f"- Versions: {text(versions)}; of the edit: {text(said.get('versions'))}.",
    ]
    lines += [f"- Made by: {text(said['command'])}"] if said.get("command") else []
    return "\n".join(lines) + "\n"


def edits(hooks: FwdHooks) -> list[dict[str, Any]]:
    """Return one row for each kind of edit: what it is, where, how many different ones, where its subspace comes from."""
    groups: dict[tuple[str, str], list[tuple[str, Intervention]]] = {}
    for name, hook in hooks:
        if isinstance(hook, Placed):
            source = getattr(getattr(hook.intervention, "subspace", None), "source", {})
            groups.setdefault((repr(hook.intervention), text(source)), []).append((name, hook.intervention))
    rows = []
    for (edit, _), group in groups.items():
        layers = {layer_of(name) for name, _ in group}
        numbers = sorted(layer for layer in layers if layer is not None)
        different = len({_digest(intervention) for _, intervention in group})
        row = {
            "edit": edit,
            "sites": ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name, _ in group)),
            "layers": ", ".join(["embedding"] * (None in layers) + _spans(numbers)),
            "different ones": different if different > 1 else None,
            "found by": getattr(getattr(group[0][1], "subspace", None), "source", {}) or None,
        }
        rows.append(row)
    return rows


def _digest(edit: Intervention) -> str:
    """The same for two edits of the same numbers, however they were loaded."""
    digest = hashlib.sha256(repr(edit).encode())
    for field in fields(edit):
        value = getattr(edit, field.name)
        value = value.basis if isinstance(value, Subspace) else value
        if isinstance(value, Tensor):
            digest.update(value.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def text(value: Any, depth: int = 3) -> str:
    """Return plain values as one line of text that markdown and HTML leave alone."""
    if isinstance(value, (Mapping, list, tuple)) and not depth:
        return "..."
    if isinstance(value, Mapping):
        told = [(key, one) for key, one in value.items() if _says(one)]
        pairs = [f"{text(key)} {_inside(one, depth - 1)}" for key, one in told[:20]]
        return ", ".join(pairs + ["..."] * (len(told) > 20))
    if isinstance(value, (list, tuple)):
        return ", ".join([_inside(one, depth - 1) for one in value[:20]] + ["..."] * (len(value) > 20))
    if isinstance(value, float):
        return f"{value:.4g}"
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(value)[:_LONGEST]).split())
    return _SPECIAL.sub(r"\\\1", html.escape(plain, quote=False))


def _inside(value: Any, depth: int) -> str:
    """Text of a value in a list, in brackets where it is several itself."""
    several = isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and len(value) > 1)
    return f"({text(value, depth)})" if several else text(value, depth)


def _says(value: Any) -> bool:
    return value is not None and value not in ("", [], {})


def table(rows: Sequence[Any]) -> list[str]:
    """Return the lines of a markdown table of rows of plain values; a column that is empty throughout is left out."""
    rows = [row for row in rows if isinstance(row, Mapping)]
    columns = list(dict.fromkeys([*_FIRST, *(key for row in rows for key in row)]))
    columns = [key for key in columns if any(row.get(key) not in (None, "") for row in rows)]
    if not columns:
        return []
    lines = ["| " + " | ".join(text(str(key).replace("_", " ")) for key in columns) + " |"]
    lines.append("|" + " --- |" * len(columns))
    for row in rows:
        cells = ["" if row.get(key) is None else text(row[key]) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _measured(claim: Mapping[str, Any]) -> list[str]:
    """Effect and collateral, or that none was recorded."""
    rows = claim.get("rows") if isinstance(claim.get("rows"), list) else []
    lines = ["## Measured effect", ""]
    if not rows:
        return [*lines, "None was recorded with this edit: measure it before you rely on it.", ""]
    lines += [f"{text(claim.get('metric', 'a metric'))}:", "", *table(rows), ""]
    if len([row for row in rows if isinstance(row, Mapping) and row.get("run") not in ("clean", "edited")]) == 0:
        lines += ["No control was recorded, so it is not known what removing any other direction does.", ""]
    lines += ["## Collateral", ""]
    collateral = claim.get("collateral")
    if not isinstance(collateral, Mapping) or not collateral:
        return [*lines, "None was recorded: what else the edit changes is not known.", ""]
    for name, those in collateral.items():
        shown = table(those) if isinstance(those, Sequence) and not isinstance(those, str) else [text(those)]
        lines += [f"{text(name)}:", "", *shown, ""]
    return lines


def _spans(numbers: Sequence[int]) -> list[str]:
    """0, 1, 2, 5 as 0-2, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ["-".join(map(str, span)) for span in spans]
