"""Studies as one HTML page that works offline, with figures that can be zoomed and read off."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mi_ablate import report
from mi_ablate.report import Section
from mi_ablate.studies.standing import Standing
from mi_ablate.studies.study import Findings, Verdict
from mi_ablate.studies.the_log import text_of

TITLE = "The research log, study by study"


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
    return report.page(path, TITLE, sections, footer={"command": command})


def _sections(standing: Standing, found: Findings) -> list[Section]:
    study = standing.study
    pictures: list[Any] = []
    for caption, draw in found.figures.items():
        pictures += [draw(), caption]
    text = f"{study.question}\n\n`mi-ablate study {study.name}`"
    sections = [Section(f"{study.log}. {study.title}", text, pictures)]
    told = [*found.notes, *map(_told, found.verdicts)]
    if told:
        sections.append(Section(f"{study.log}: what came out", "\n\n".join(told)))
    for table in found.tables:
        rows = table.rows or "Nothing is run yet."
        sections.append(Section(f"{study.log}: {table.title}", content=[rows, *([table.note] if table.note else [])]))
    missing = standing.missing()
    if missing:
        sections.append(Section(f"{study.log}: not run", content=[missing]))
    return sections


def _told(verdict: Verdict) -> str:
    return (
        f"{verdict.of}, {verdict.verdict}: {text_of(verdict.of)} The log: {verdict.log}. Here: {verdict.ours}. "
        f"The rule: {verdict.rule}."
    )
