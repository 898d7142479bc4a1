"""The rows of `listing` in the terminal: what fits on a screen, or plain lines for a pipe."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mi_ablate.sweep.listing import RESULTS, is_number, rows
from mi_ablate.sweep.records import Record
from mi_ablate.toys.settings import shown

PLAIN_WIDTH = 10_000
"""Columns of output that is not for a terminal: lines are never broken."""
_FORMS = {"held_out": ".4f", "cpu_minutes": ".1f", "trained": ",", "grok_step": ",", "stable_step": ","}


def print_table(records: Sequence[Record]) -> None:
    """Print `rows` as one table a grid, errors below it; plain, one line a cell, where the output is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    seen = console.is_terminal
    if not seen:
        console = Console(highlight=False, markup=False, emoji=False, width=PLAIN_WIDTH)
    grids = list(dict.fromkeys(record["grid"] for record in records))
    for grid in grids:
        told = rows([record for record in records if record["grid"] == grid])
        if len(grids) > 1:
            console.print(grid, style="bold")
        console.print(_table(told, console.width if seen else None))
        for row in told:
            if row.get("error") is not None:
                console.print(f"{row['key']} failed: {row['error']}", soft_wrap=True)


def _table(told: Sequence[Mapping[str, Any]], width: int | None) -> Any:
    """A rich table for a terminal of this width, or a plain one. Settings that do not fit side by side share a column."""
    from rich import box
    from rich.table import Table

    columns = {name: [_cell(name, row[name]) for row in told] for name in told[0] if name != "error"}
    heads = {name: _folded(name, max(map(len, cells))) if width else name for name, cells in columns.items()}
    needed = sum(2 + max(map(len, [*heads[name].split("\n"), *cells])) for name, cells in columns.items())
    right = {name for name in columns if all(is_number(row[name]) or row[name] is None for row in told)}
    settings = [name for name in columns if name not in RESULTS]
    if width and needed > width:
        short = {name: name.removeprefix("config.") for name in settings}
        together = ["  ".join(f"{short[name]}={columns[name][i]}" for name in settings) for i in range(len(told))]
        columns = {name: cells for name, cells in columns.items() if name in RESULTS} | {"settings": together}
    table = Table(box=box.SIMPLE_HEAD if width else None, padding=(0, 2, 0, 0), pad_edge=False)
    lines = 1 + max(heads.get(name, name).count("\n") for name in columns)
    for name in columns:
        head = heads.get(name, name)
        head = "\n" * (lines - 1 - head.count("\n")) + head
        justify: Any = "right" if name in right else "left"
        table.add_column(head, justify=justify, no_wrap=name != "settings", overflow="fold")
    for row, *cells in zip(told, *columns.values()):
        table.add_row(*cells, style="red" if row["status"] == "failed" else None)
    return table


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-" if name in RESULTS else "none"
    form = _FORMS.get(name)
    return format(value, form) if form else shown(value)


def _folded(name: str, width: int) -> str:
    """A column's name in lines, broken after _ and . where it is wider than what stands below it."""
    lines = [""]
    for part in re.findall(r"[^_.]+[_.]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > max(width, 8):
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
