"""Studies as one HTML page that works offline, with figures that can be zoomed and read off."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mi_ablate import report
from mi_ablate.report import Section
from mi_ablate.studies.standing import Standing
from mi_ablate.studies.study import Findings, Verdict
from mi_ablate.studies.the_log import text_of


def write_page(path: Path | str, standings: Sequence[Standing], found: Mapping[str, Findings], command: str) -> Path:
    """Write a page on these studies and return its path.

    Args:
        path: where to; ends in .html.
        standings: how each study stands.
        found: what each found, by name.
        command: what was typed, for the foot of the page.

    Raises:
        ValueError: a path that does not end in .html.

    """
    sections = [section for one in standings for section in _sections(one, found[one.study.name])]
    only = len(standings) == 1
    title = f"{standings[0].study.log}. {standings[0].study.title}" if only else "The research log, study by study"
    return report.page(path, title, sections, footer={"command": command})


def _sections(standing: Standing, found: Findings) -> list[Section]:
    study = standing.study
    content: list[Any] = []
    for caption, draw in found.figures.items():
        content += [draw(), caption]
    for table in found.tables:
        content += [table.title + ".", table.rows or "Nothing is run yet.", *([table.note] if table.note else [])]
    sections = [Section(f"{study.log}. {study.title}", f"{study.question}\n\n`mi-ablate study {study.name}`", content)]
    told = [*(_told(verdict) for verdict in found.verdicts), *found.notes]
    if told:
        sections.append(Section(f"{study.log}: verdicts", "\n\n".join(told)))
    missing = standing.missing()
    if missing:
        sections.append(Section(f"{study.log}: not run", content=[missing]))
    return sections


def _told(verdict: Verdict) -> str:
    return (
        f"{verdict.of}, {verdict.verdict}: {text_of(verdict.of)} The log: {verdict.log}. Here: {verdict.ours}. "
        f"The rule: {verdict.rule}."
    )
