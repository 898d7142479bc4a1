"""What a study has and what it lacks: cells that are run, measurements that are taken, and about how long the rest takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.own import lacking
from mi_ablate.studies.study import Item, Study
from mi_ablate.sweep.grids import label


@dataclass(frozen=True)
class Standing:
    """The cells and own measurements of a study, done and not."""

    study: Study
    quick: bool
    cells: Cells
    items: int
    """Own measurements of the cells that are run, taken or not; more may follow when more cells are run."""
    untaken: tuple[Item, ...]

    @classmethod
    def of(cls, study: Study, results: Path | str, quick: bool = False) -> "Standing":
        """Return how a study stands in a folder of records.

        Raises:
            ArtefactError: records that cannot be read, or of another version.

        """
        cells = Cells.load(study.declared(quick), results, quick=quick)
        items = [] if study.items is None else study.items(cells)
        return cls(study, quick, cells, len(items), tuple(lacking(study, items, results, quick)))

    @property
    def minutes(self) -> float:
        """About how many core-minutes of training and measuring are left; measurements of unknown length not counted."""
        return sum(c.estimate for c in self.cells.missing) + sum(item.seconds or 0 for item in self.untaken) / 60

    def done(self) -> str:
        """Return "24 of 57 cells", and the measurements of its own where it takes some."""
        cells = f"{len(self.cells.done)} of {len(self.cells)} cells"
        own = f", {self.items - len(self.untaken)} of {self.items} measurements" if self.items else ""
        return cells + own

    def missing(self) -> list[dict[str, str]]:
        """Return one row for each configuration that is not run: grid, configuration, seeds, why, core-hours, command."""
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells.missing:
            groups.setdefault((cell.grid, label(cell.config)), []).append(cell)
        return [
            {"grid": grid, "configuration": name, "seeds": " ".join(str(cell.config.seed) for cell in cells),
             "state": _state(cells), "core-hours": hours(cells), "command": self._command(grid)}
            for (grid, name), cells in groups.items()
        ]  # fmt: skip

    def by_grid(self) -> list[dict[str, str]]:
        """Return one row for each grid with cells that are not run, and one for measurements that are not taken."""
        rows = []
        for grid in self.study.grids:
            cells = self.cells.where(grid=grid)
            if cells.missing:
                rows.append(
                    {"what": f"grid {grid}", "not run": f"{len(cells.missing)} of {len(cells)} cells",
                     "core-hours": hours(cells.missing), "command": self._command(grid)}
                )  # fmt: skip
        if self.untaken:
            seconds = sum(item.seconds or 0 for item in self.untaken)
            rows.append(
                {"what": f"study {self.study.name}", "not run": f"{len(self.untaken)} of {self.items} measurements",
                 "core-hours": _text(seconds / 3600), "command": self._command()}
            )  # fmt: skip
        return rows

    def _command(self, grid: str | None = None) -> str:
        """What runs a grid, or all of the study; a quick study takes fewer seeds than the quick grid."""
        if self.quick:
            return f"mi-ablate study {self.study.name} --quick"
        return f"mi-ablate train {grid}" if grid else f"mi-ablate study {self.study.name}"

    def __repr__(self) -> str:
        return f"Standing({self.study.name}: {self.done()}, about {self.minutes / 60:.1f} core-hours left)"


def hours(cells: Iterable[Cell]) -> str:
    """Return the estimate of these cells in core-hours, for people."""
    return _text(sum(cell.estimate for cell in cells) / 60)


def _text(hours: float) -> str:
    return "under 0.1" if hours < 0.05 else f"{hours:.1f}"


def _state(cells: Sequence[Cell]) -> str:
    """The first line of the first error, or "not run"."""
    errors = [cell.error.splitlines()[0] for cell in cells if cell.error]
    return f"failed: {errors[0]}" if errors else "not run"
