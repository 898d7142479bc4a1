"""Rows of numbers as an HTML table, for pages and notebooks."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

LONG = 40
"""Characters of text that need not stand on one line."""


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an HTML table, numbers to three digits, everything escaped; nested rows get a column each.

    Columns of numbers are set to the right, and columns with long text may break their lines.
    """
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    if not columns:
        return "<p>The table has no rows.</p>"
    numeric = {c for c in columns if all(_is_number(row.get(c)) or row.get(c) is None for row in flat)}
    long = {c for c in columns if any(len(str(row.get(c, ""))) > LONG for row in flat)} - numeric
    kind = {c: ' class="number"' if c in numeric else ' class="text"' if c in long else "" for c in columns}
    head = "".join(f"<th{kind[c]}>{html.escape(re.sub('(?<=[a-z0-9])_', ' ', c))}</th>" for c in columns)
    lines = ("".join(f"<td{kind[c]}>{_cell(row.get(c))}</td>" for c in columns) for row in flat)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A nested row, such as those of `Curve.table`, with one column for each inner value."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        scalar = value.item() if getattr(value, "ndim", None) == 0 else value
        inner = _flat(scalar) if isinstance(scalar, Mapping) else {"": scalar}
        flat |= {f"{key} {name}".strip(): cell for name, cell in inner.items()}
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if value != value:
            return "–"
        small = 0 < abs(value) < 5e-4 or abs(value) >= 1e5
        return f"{value:.2e}" if small else f"{value:.3f}"
    return inline(str(value))


def inline(text: str) -> str:
    """Return text escaped, with `` `code` `` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
