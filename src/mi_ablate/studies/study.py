"""What a study is: a question, the grids that it needs, measurements of its own, and what it finds in the records.

A study computes nothing that a record does not hold, except by its own measurements (`Item`), which are recorded too. So
`Study.findings` is a function of the records alone, and the page made of it can be made again by anyone.

Intervals over seeds are **ranges**: with n seeds the lowest and the highest value hold the median over all seeds between them
with probability 1 - 2^(1 - n), whatever the distribution: 75 % for three, 94 % for five (`spread.coverage`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mi_ablate.studies.cells import Cells
from mi_ablate.sweep import GRIDS, Grid

VERDICTS = ("reproduced", "different size", "not reproduced", "yes", "no", "undecided", "not run")
"""Of a claim: reproduced, different size (the direction holds, the size does not), not reproduced. Of a question: yes, no. Of
both: undecided (the seeds disagree, or the log does not say enough), not run."""


@dataclass(frozen=True)
class Verdict:
    """What became of a claim ("C2") or a question ("Q8") of the log."""

    of: str
    verdict: str
    log: str
    """The log's numbers, or "-"."""
    ours: str
    """Ours, with their spread over seeds."""
    rule: str
    """When it would have been another verdict: a rule that was fixed before the numbers."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"The verdict {self.verdict!r} of {self.of} must be one of {', '.join(VERDICTS)}.")


@dataclass(frozen=True)
class Table:
    """Rows under a heading; every row has the same columns, values are text or numbers ready to print."""

    title: str
    rows: list[dict[str, Any]]
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """What a study found: tables, figures (drawn when called), verdicts, and sentences made of numbers."""

    tables: Sequence[Table] = ()
    figures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """Caption -> function that gives a plotly figure."""
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()
    """The first says the most: it stands at the top of the page too."""


@dataclass(frozen=True)
class Item:
    """One measurement of a study's own: recorded once, under its key."""

    key: str
    about: Mapping[str, Any]
    """What it is of: cell, seed, step, ... as plain JSON."""
    take: Callable[[], Any]
    """Return the result as plain JSON."""
    seconds: float | None = None
    """About how long it takes on one core."""


@dataclass(frozen=True)
class Study:
    """One experiment or open question of the research log."""

    name: str
    """As typed: ``mi-ablate study NAME``."""
    log: str
    """Its place in the log: "E2", "Q3"."""
    title: str
    question: str
    """What is asked, the set-up and the protocol, in a few sentences a reader without the log understands."""
    grids: tuple[str, ...]
    """Names of the grids in `mi_ablate.sweep.GRIDS` whose records it reads."""
    find: Callable[[Cells, Mapping[str, Any]], Findings]
    """Cells and the results of its own items, by key -> findings. Copes with cells that are not run."""
    decides: tuple[str, ...] = ()
    """Claims and questions that get their verdict here."""
    items: Callable[[Cells], list[Item]] | None = None
    """Its own measurements, on the recorded weights or trained for it."""
    version: int = 1
    """Of the items: raised when a number's meaning changes, and then all are taken again."""

    def declared(self, quick: bool = False) -> list[Grid]:
        """Return its grids, or small versions of them with two seeds each."""
        return [_small(GRIDS[name]) if quick else GRIDS[name] for name in self.grids]

    def findings(self, results: Path | str, quick: bool = False) -> Findings:
        """Return what the records in the folder ``results`` say; a verdict for everything that it decides.

        Raises:
            ValueError: the study gave no verdict, or one of something else.
            ArtefactError: records that cannot be read, or of another version.

        """
        from mi_ablate.studies.own import load_own

        found = self.find(Cells.load(self.declared(quick), results, quick=quick), load_own(self, results, quick))
        given = [verdict.of for verdict in found.verdicts]
        if sorted(given) != sorted(self.decides):
            raise ValueError(f"The study {self.name} decides {', '.join(self.decides)}, and gave verdicts on {given}.")
        return found

    def __repr__(self) -> str:
        return f"Study({self.name}: {self.log}, {self.title})"


QUICK_SEEDS = 2
"""Seeds of a small grid: the least that a verdict takes."""


def _small(grid: Grid) -> Grid:
    small = grid.quick()
    seeds = sorted({cell.seed for cell in small.cells})[:QUICK_SEEDS]
    return replace(small, cells=tuple(cell for cell in small.cells if cell.seed in seeds))
