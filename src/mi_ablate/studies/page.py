"""``docs/research_log.md`` from the records: what came out in short, verdicts, each study's tables, and what is not run.

The page is a function of the record files, so a test can make it again. It is written to be read without the log.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cost import cost_rows
from mi_ablate.studies.registry import STUDIES
from mi_ablate.studies.standing import Standing
from mi_ablate.studies.study import VERDICTS, Findings, Study, Table, Verdict

INTRODUCTION = """\
# The research log, reproduced and extended

`mi_ablate` began with a research log on removing directions from grokked transformers. The log is not public; what it claims is
quoted here in short, and every table and open question of it is measured again with several seeds, controls and intervals.
"""
READING = """\
**How to read the numbers.** A seed's number is the mean over its stable checkpoints. A table has the median [lowest, highest]
over training seeds, and (n=seeds): that range holds the median over all seeds with probability 1 - 2^(1 - n), 75 % for three
and 94 % for five. `40+` was not yet reached at the end of the curve. k@95% is the largest number of directions that can be
removed before accuracy first falls under 95 % of its clean value; controls are subspaces drawn from the activations' covariance
and the top principal components. A verdict follows from the numbers by the rule that stands beside it; it takes two seeds.

This page is written by `python -m mi_ablate.studies` from the records in `benchmarks/results/studies/`; `mi-ablate study NAME`
trains, measures and prints one part of it.
"""
_KINDS = {
    "claims of the log": the_log.CLAIMS,
    "open questions of the log": the_log.QUESTIONS,
    "questions of our own": the_log.BEYOND,
}
_ANSWERED = ("yes", "no", "undecided")
LONGEST = 160
"""Characters of numbers in the table of verdicts; longer ones stand in the study's own section."""


def found_by(results: Path | str) -> dict[str, Findings]:
    """Return what every study finds in the records of a folder."""
    return {name: study.findings(results) for name, study in STUDIES.items()}


def page(results: Path | str) -> str:
    """Return the page as markdown."""
    found = found_by(results)
    standings = [Standing.of(study, results) for study in STUDIES.values()]
    given = {verdict.of: verdict for one in found.values() for verdict in one.verdicts}
    parts = [
        INTRODUCTION,
        _in_short(found, given, standings),
        READING,
        "## Verdicts\n\n" + markdown(_verdict_rows(found, given)),
        _told("What we find different", given, the_log.CLAIMS, ("different size", "not reproduced", "undecided")),
        _told("Questions", given, {**the_log.QUESTIONS, **the_log.BEYOND}, _ANSWERED),
        *(section(STUDIES[name], one) for name, one in found.items()),
        _not_run(standings),
        _cost(results),
        "## Where the log contradicts itself\n\n" + "\n".join(f"- {line}" for line in the_log.FOOTNOTES) + "\n",
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def section(study: Study, found: Findings) -> str:
    """Return one study's part of the page."""
    parts = [f"## {heading(study)}\n\n{study.question}\n\n`mi-ablate study {study.name}`\n"]
    for i, caption in enumerate(found.figures):
        parts.append(f"![{study.log}, figure {i + 1}](research_log/{picture(study, i)})\n\n*{caption}*\n")
    lines = [*found.notes, *(_verdict(one, rule=True) for one in found.verdicts)]
    parts += ["\n".join(f"- {line}" for line in lines) + "\n"] if lines else []
    parts += [_table(table) for table in found.tables]
    return "\n".join(parts) + "\n"


def heading(study: Study) -> str:
    """Return the heading of a study's section."""
    return f"{study.log}. {study.title}"


def picture(study: Study, index: int) -> str:
    """Return the file name of a study's figure."""
    return f"{study.name}-{index + 1}.png"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a markdown table; the columns are those of the first."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in rows]) + "\n"


def _cell(value: Any) -> str:
    """A value on one line, without the sign that parts columns."""
    return "-" if value is None else re.sub(r"\s*\n\s*", " ", str(value)).replace("|", "\\|")


def _table(table: Table) -> str:
    note = f"\n{table.note}\n" if table.note else ""
    return (
        f"**{table.title}**\n\n{markdown(table.rows) if table.rows else 'Nothing is run yet.'}{note}\n".rstrip() + "\n"
    )


def _in_short(found: Mapping[str, Findings], given: Mapping[str, Verdict], standings: Sequence[Standing]) -> str:
    """Which verdicts there are, and the first note of every study that decides something."""
    lines = []
    for kind, names in _KINDS.items():
        groups = {verdict: [name for name in names if _verdict_of(name, given) == verdict] for verdict in VERDICTS}
        told = [
            f"{len(of)} {verdict}" + (f" ({', '.join(of)})" if verdict != "not run" else "")
            for verdict, of in groups.items()
            if of
        ]
        lines.append(f"- Of {len(names)} {kind}: {'; '.join(told)}.")
    cells = {(cell.grid, cell.key): cell for one in standings for cell in one.cells}.values()
    done = [cell for cell in cells if cell.record is not None]
    lines.append(f"- {len(done)} of {len(cells)} declared training runs are recorded; what is not run is listed below.")
    decided = {name: one for name, one in found.items() if any(v.verdict != "not run" for v in one.verdicts)}
    for name, one in decided.items():
        lines += [f"- [{STUDIES[name].log}](#{_slug(STUDIES[name])}): {note}" for note in one.notes[:1]]
    return "## In short\n\n" + "\n".join(lines) + "\n"


def _verdict_of(name: str, given: Mapping[str, Verdict]) -> str:
    return given[name].verdict if name in given else "not run"


def _verdict_rows(found: Mapping[str, Findings], given: Mapping[str, Verdict]) -> list[dict[str, str]]:
    where = {verdict.of: STUDIES[name] for name, one in found.items() for verdict in one.verdicts}
    rows = []
    for name, text in {**the_log.CLAIMS, **the_log.QUESTIONS, **the_log.BEYOND}.items():
        one = given.get(name)
        verdict, log, ours = (one.verdict, one.log, one.ours) if one else ("not run", "-", "-")
        link = f"[{name}](#{_slug(where[name])})" if one else name
        ours = ours if len(ours) <= LONGEST else "numbers below"
        rows.append({"": link, "claim or question": text, "verdict": f"**{verdict}**", "log": log, "here": ours})
    return rows


def _told(title: str, given: Mapping[str, Verdict], names: Mapping[str, str], verdicts: Sequence[str]) -> str:
    """A list of those with these verdicts, in the order of the verdicts."""
    chosen = [given[name] for verdict in verdicts for name in names if name in given and given[name].verdict == verdict]
    return f"## {title}\n\n" + "\n".join(f"- {_verdict(one)}" for one in chosen) + "\n" if chosen else ""


def _verdict(one: Verdict, rule: bool = False) -> str:
    log = f" The log: {_sentence(one.log)}" if one.log not in ("", "-") else ""
    told = f"**{one.of}, {one.verdict}.** {the_log.text_of(one.of)}{log} Here: {_sentence(one.ours)}"
    return f"{told} The rule: {_sentence(one.rule)}" if rule else told


def _sentence(text: str) -> str:
    """The text with a full stop at its end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _slug(study: Study) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading(study).lower()).replace(" ", "-")


def _not_run(standings: Sequence[Standing]) -> str:
    rows: dict[str, dict[str, str]] = {}
    for row in (row for one in standings for row in one.by_grid()):
        rows.setdefault(row["what"], {**row, "command": f"`{row['command']}`"})
    intro = "Estimates are from the recorded runs' time on one core, by steps and size.\n\n"
    return "## Not run\n\n" + intro + markdown(list(rows.values())) if rows else ""


def _cost(results: Path | str) -> str:
    rows = cost_rows(results)
    intro = f"Training on one core; the log's 17 runs took {the_log.E1['cost']}. Time on a GPU was not measured.\n\n"
    return "## What it cost\n\n" + intro + markdown(rows) if rows else ""
