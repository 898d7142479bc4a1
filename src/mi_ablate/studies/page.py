"""``docs/research_log.md`` from the records: verdicts, what differs, each study's tables, and what is not run.

The page is a function of the record files, so a test can make it again. It is written to be read without the log.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cells
from mi_ablate.studies.registry import STUDIES
from mi_ablate.studies.study import Findings, Study, Table, Verdict

INTRODUCTION = """\
# The research log, reproduced and extended

`mi_ablate` began with a research log on removing directions from grokked transformers. The log is not public; what it claims is
quoted here in short, and every table and open question of it is measured again with several seeds, controls and intervals.

Numbers are **median [lowest, highest] over training seeds** (n seeds). With n seeds that range holds the median over all seeds
with probability 1 - 2^(1 - n): 75 % for three, 94 % for five. `40+` was not yet reached at the end of the curve. This page is
written by `python -m mi_ablate.studies` from the records in `benchmarks/results/studies/`; `mi-ablate study NAME` trains,
measures and prints one part of it.
"""


def found_by(results: Path | str) -> dict[str, Findings]:
    """Return what every study finds in the records of a folder."""
    return {name: study.findings(results) for name, study in STUDIES.items()}


def page(results: Path | str) -> str:
    """Return the page as markdown."""
    found = found_by(results)
    verdicts = [verdict for one in found.values() for verdict in one.verdicts]
    parts = [
        INTRODUCTION,
        "## Verdicts\n\n" + markdown(_verdict_rows(verdicts)),
        _different(verdicts),
        *(section(STUDIES[name], one) for name, one in found.items()),
        _not_run(results),
        "## Where the log contradicts itself\n\n" + "\n".join(f"- {line}" for line in the_log.FOOTNOTES) + "\n",
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def section(study: Study, found: Findings) -> str:
    """Return one study's part of the page."""
    parts = [f"## {study.log}. {study.title}\n\n{study.question}\n\n`mi-ablate study {study.name}`\n"]
    parts += [f"![{caption}](research_log/{picture(study, i)})\n" for i, caption in enumerate(found.figures)]
    parts += [_table(table) for table in found.tables]
    parts += [f"- {note}" for note in found.notes]
    return "\n".join(parts) + "\n"


def picture(study: Study, index: int) -> str:
    """Return the file name of a study's figure."""
    return f"{study.name}-{index + 1}.png"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a markdown table; the columns are those of the first."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows]) + "\n"


def _table(table: Table) -> str:
    note = f"\n{table.note}\n" if table.note else ""
    return f"**{table.title}**\n\n{markdown(table.rows) if table.rows else 'Nothing is run yet.'}{note}"


def _verdict_rows(verdicts: Iterable[Verdict]) -> list[dict[str, str]]:
    given = {verdict.of: verdict for verdict in verdicts}
    rows = []
    for name, text in {**the_log.CLAIMS, **the_log.QUESTIONS, **the_log.BEYOND}.items():
        one = given.get(name)
        told = (one.verdict, one.log, one.ours) if one else ("not run", "-", "-")
        rows.append({"": name, "claim or question": text, "verdict": f"**{told[0]}**", "log": told[1], "here": told[2]})
    return rows


def _different(verdicts: Iterable[Verdict]) -> str:
    lines = [
        f"- **{one.of}** ({one.verdict}). {the_log.text_of(one.of)} Here: {one.ours}. The rule: {one.rule}."
        for one in verdicts
        if one.verdict in ("different size", "not reproduced", "undecided", "no")
    ]
    return "## What we find different\n\n" + "\n".join(lines) + "\n" if lines else ""


def _not_run(results: Path | str) -> str:
    rows: list[dict[str, str]] = []
    for study in STUDIES.values():
        for grid in study.declared():
            cells = Cells.load([grid], results)
            minutes = sum(cell.estimate for cell in cells.missing)
            if cells.missing and not any(row["grid"] == grid.name for row in rows):
                command = f"`mi-ablate train {grid.name}`"
                rows.append(
                    {"grid": grid.name, "cells not run": f"{len(cells.missing)} of {len(cells)}",
                     "estimate, core-hours": f"{minutes / 60:.1f}", "command": command}
                )  # fmt: skip
    return "## Not run\n\n" + markdown(rows) if rows else ""
