"""The cells of a study's grids: which are run, which are not, and what their records say at each measured step.

>>> cells = Cells.load([GRIDS["weight-decay"]], "benchmarks/results/studies")           # doctest: +SKIP
>>> [run.mean("add", "last_residual.directions.live", "mean") for run in cells.where(weight_decay=0.1).done]  # doctest: +SKIP
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mi_ablate._files import ArtefactError
from mi_ablate._types import nearest
from mi_ablate.measures import VERSION, Subject
from mi_ablate.studies.spread import Value
from mi_ablate.sweep import RUNS, Grid, RecordFile
from mi_ablate.sweep.grids import key_of, label
from mi_ablate.sweep.records import Record
from mi_ablate.sweep.weights import FOLDER, unpack
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.settings import flat
from mi_ablate.toys.tasks import n_prompts

SECONDS_A_STEP = 0.042
"""A training step of two layers, d 128, batch 512 on one core, as recorded by the weight-decay grid (0.034 to 0.048)."""


@dataclass(frozen=True)
class Checkpoint:
    """A measured step of a run."""

    entry: dict[str, Any]

    @property
    def step(self) -> int:
        """The step."""
        return int(self.entry["step"])

    @property
    def target(self) -> int | None:
        """The step of ``keep_steps`` that it is nearest to; None for the last stable one."""
        return self.entry["target"]

    @property
    def stable(self) -> bool:
        """Whether it is a stable step (`toys.evaluation.stable_rule`)."""
        return bool(self.entry["stable"])

    def get(self, measure: str, operation: str, path: str = "") -> Any:
        """Return what lies at a dotted path below a measure of an operation; None where there is nothing."""
        found = self.entry["measures"].get(measure, {}).get(operation)
        for key in path.split(".") if path else ():
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def k(
        self, operation: str, where: str, ablation: str, *, run: str = "edited", tau: float = 0.95, rule: str = "first",
        scale: str = "relative",
    ) -> Value | None:  # fmt: skip
        """Return the largest k survived: ``where`` is such as "last_residual.directions.live" or "every_site.live".

        None where the clean accuracy was under the threshold, or the curve does not exist.
        """
        measure, _, path = where.partition(".")
        curve = self.get(measure, operation, f"{path}.{ablation}".lstrip("."))
        read = None if curve is None else curve["k"][run][str(tau)][rule][scale]
        return None if read is None else Value(float(read["k"]), read["censored"])

    def __repr__(self) -> str:
        return f"Checkpoint(step {self.step}{'' if self.stable else ', not stable'})"


@dataclass(frozen=True)
class Cell:
    """One training run of a grid: its settings, and its record where it is run."""

    config: TrainConfig
    grid: str
    record: Record | None
    results: Path
    error: str | None = None
    """Why its last run failed, where no run of it ended well."""

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name the cell."""
        return key_of(self.config)

    @property
    def label(self) -> str:
        """What tells it from the defaults, with its seed."""
        return f"{label(self.config)} seed={self.config.seed}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its flat name (`toys.settings`), and ``grid``."""
        return {name: _listed(value) for name, value in flat(self.config.to_dict()).items()} | {"grid": self.grid}

    @property
    def estimate(self) -> float:
        """About how many core-minutes it takes; see `minutes`."""
        return minutes(self.config)

    @property
    def _done(self) -> Record:
        """The record of a cell that is run."""
        if self.record is None:
            raise ValueError(f"{self!r}: take numbers from cells that are run, `Cells.done`.")
        return self.record

    @property
    def training(self) -> dict[str, Any]:
        """The record's ``metrics.training``."""
        return self._done["metrics"]["training"]

    @property
    def grok_step(self) -> int | None:
        """First evaluation with held-out accuracy of 0.95 or more; None where there was none."""
        return self.training["grok_step"]

    @property
    def held_out(self) -> float:
        """Held-out accuracy of the weights that were kept."""
        return float(self.training["accuracy"]["held_out"])

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Every measured step, in order."""
        return tuple(map(Checkpoint, self._done["metrics"]["checkpoints"]))

    @property
    def stable(self) -> tuple[Checkpoint, ...]:
        """The measured steps that are stable."""
        return tuple(at for at in self.checkpoints if at.stable)

    @property
    def last(self) -> Checkpoint:
        """The last measured step: a stable one where there is one."""
        return (self.stable or self.checkpoints)[-1]

    def mean(self, of: Callable[[Checkpoint], Value | float | None]) -> Value | None:
        """Return the mean of a number over the stable checkpoints; None where none has it.

        A mean over censored values is censored: at least this much.
        """
        found = [Value.of(value) for value in map(of, self.stable) if value is not None]
        return Value.mean(found) if found else None

    def mean_k(self, operation: str, where: str, ablation: str, **reading: Any) -> Value | None:
        """Return the mean over the stable checkpoints of `Checkpoint.k`."""
        return self.mean(lambda at: at.k(operation, where, ablation, **reading))

    def subject(self, step: int | None = None) -> Subject:
        """Return the model of the weights beside the record, ready to be measured (half precision, rounded).

        Args:
            step: a step whose weights were kept; the last of them by default.

        Raises:
            ValueError: no weights of that step.
            ArtefactError: the weights are gone or changed.

        """
        record = self._done
        entries = {entry["step"]: entry for entry in record["weights"]}
        if step is None:
            step = max(entries)
        if step not in entries:
            raise ValueError(
                f"{self!r} keeps the weights of step {', '.join(map(str, sorted(entries)))}, not of {step}."
            )
        entry = entries[step]
        state = unpack(self.results / FOLDER / self.grid, entry, record)
        return Subject(self.config, state, entry["step"], entry["stable"])

    def __repr__(self) -> str:
        return f"Cell({self.label}: {'run' if self.record else 'not run'})"


@dataclass(frozen=True)
class Cells:
    """Cells of one or several grids, in order."""

    cells: tuple[Cell, ...]
    quick: bool = False
    """Whether they are a study's small models, which check the machinery."""
    runs: Path = RUNS
    """The folder where a study trains models of its own."""

    @classmethod
    def load(
        cls, grids: Sequence[Grid], results: Path | str, *, quick: bool = False, runs: Path | str = RUNS
    ) -> "Cells":
        """Return the cells of these grids, each with its record where its grid's file in a folder has one.

        Raises:
            ArtefactError: a record file that cannot be read, or records whose measures are of another version.

        """
        folder, found = Path(results), []
        for grid in grids:
            latest = _latest(folder / f"{grid.name}.jsonl")
            name = grid.name.removesuffix("-quick")
            for cell in grid.cells:
                record = latest.get(key_of(cell), {})
                if record.get("status") == "done" and record["measures_version"] != VERSION:
                    again = f"mi-ablate train {name}{' --quick' if name != grid.name else ''}"
                    raise ArtefactError(
                        f"{folder / grid.name}.jsonl holds measures of version {record['measures_version']}, and this is "
                        f"version {VERSION}: the two are not mixed. `{again}` measures them again."
                    )
                done = record if record.get("status") == "done" else None
                found.append(Cell(cell, name, done, folder, record.get("error")))
        return cls(tuple(found), quick, Path(runs))

    def where(self, **settings: Any) -> "Cells":
        """Return the cells with these settings; ``config.NAME`` as ``config__NAME``, ``grid`` by its name.

        Raises:
            ValueError: a setting that no cell has.

        """
        wanted = {name.replace("__", "."): _listed(value) for name, value in settings.items()}
        known = {name for cell in self.cells for name in cell.settings}
        for name in wanted:
            if self.cells and name not in known:
                raise ValueError(f"No cell has a setting {name!r}. {nearest(name, sorted(known))}")
        kept = (c for c in self.cells if all(n in c.settings and c.settings[n] == v for n, v in wanted.items()))
        return replace(self, cells=tuple(kept))

    @property
    def done(self) -> tuple[Cell, ...]:
        """Those that are run."""
        return tuple(cell for cell in self.cells if cell.record is not None)

    @property
    def missing(self) -> tuple[Cell, ...]:
        """Those that are not."""
        return tuple(cell for cell in self.cells if cell.record is None)

    def values(self, of: Callable[[Cell], Value | float | None]) -> list[Value]:
        """Return a number of each run cell that has it."""
        return [Value.of(value) for value in map(of, self.done) if value is not None]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        return f"Cells({len(self.done)} of {len(self.cells)} run)"


def chosen(cells: Iterable[Cell]) -> Cells:
    """Return these cells as `Cells`."""
    return Cells(tuple(cells))


def minutes(cell: TrainConfig) -> float:
    """Return about how many core-minutes a cell takes, by its steps and the size of its weights and batch; rough."""
    shape = cell.config
    size = shape.n_layers / 2 * (shape.d_model / 128) ** 1.5
    batch = (cell.batch_size or cell.train_fraction * n_prompts(shape)) / 512
    return cell.steps * SECONDS_A_STEP * max(0.25, size) * max(0.4, 0.3 + 0.7 * batch) / 60


def _listed(value: Any) -> Any:
    """A setting of several values as a list, whichever way it was written."""
    return list(value) if isinstance(value, tuple) else value


def _latest(path: Path) -> dict[str, Record]:
    """The latest record of each cell; a file is read again only where it has changed."""
    if not path.is_file():
        return {}
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _read(path: Path, changed: int, size: int) -> dict[str, Record]:
    return RecordFile(path).latest()
