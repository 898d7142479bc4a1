"""Findings in the terminal: tables as wide as it is, or plain lines for a pipe; verdicts with the rule that gave them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mi_ablate.studies.standing import Standing
from mi_ablate.studies.study import Findings, Verdict
from mi_ablate.studies.the_log import text_of

PLAIN_WIDTH = 10_000
"""Columns of output that is not for a terminal: lines are never broken."""


def print_studies(standings: Sequence[Standing], found: Mapping[str, Findings]) -> None:
    """Print one row a study: what is run of it, the estimate left and its verdicts."""
    rows = [
        {"study": one.study.name, "log": one.study.log, "run": one.done(), "core-hours left": f"{one.minutes / 60:.1f}",
         "verdicts": ", ".join(f"{v.of} {v.verdict}" for v in found[one.study.name].verdicts) or "-"}
        for one in standings
    ]  # fmt: skip
    _table(_console(), rows)


def print_findings(standing: Standing, found: Findings) -> None:
    """Print a study's tables, notes and verdicts, and which cells and measurements it lacks."""
    console = _console()
    console.print(f"{standing.study.log}. {standing.study.title}", style="bold")
    console.print(standing.study.question)
    for table in found.tables:
        console.print(f"\n{table.title}", style="bold")
        _table(console, table.rows)
        if table.note:
            console.print(table.note, style="dim")
    for note in found.notes:
        console.print(f"- {note}")
    for verdict in found.verdicts:
        _verdict(console, verdict)
    missing = standing.missing()
    if missing:
        console.print(f"\nNot run: {len(standing.cells.missing)} of {len(standing.cells)} cells", style="bold")
        _table(console, missing)
    if standing.untaken:
        console.print(f"{len(standing.untaken)} of {standing.items} measurements are not taken yet.")
    if missing or standing.untaken:
        quick = " --quick" if standing.quick else ""
        console.print(f"`mi-ablate study {standing.study.name}{quick}` does all of it, or goes on with it.")


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=PLAIN_WIDTH)
    return console


def _verdict(console: Any, verdict: Verdict) -> None:
    console.print(f"\n{verdict.of} {verdict.verdict}: {text_of(verdict.of)}", style="bold")
    for name, text in (("log", verdict.log), ("here", verdict.ours), ("rule", verdict.rule)):
        console.print(f"  {name}: {text}")


def _table(console: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    if not rows:
        console.print("Nothing is run yet.")
        return
    seen = console.is_terminal
    table = Table(box=box.SIMPLE_HEAD if seen else None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold", no_wrap=not seen)
    for row in rows:
        table.add_row(*("-" if row[name] is None else str(row[name]) for name in rows[0]))
    console.print(table)
