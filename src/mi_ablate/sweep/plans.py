"""What is left to do of a grid, cell by cell, and about how long it takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mi_ablate import _files
from mi_ablate._types import nearest
from mi_ablate.measures import MEASURES
from mi_ablate.sweep.grids import Grid, key_of, label
from mi_ablate.sweep.records import Record, RecordFile
from mi_ablate.sweep.tasks import Task, covers
from mi_ablate.sweep.weights import FOLDER, intact
from mi_ablate.toys import tasks
from mi_ablate.toys.job import check_device
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.stepper import Stepper, initial_state
from mi_ablate.toys.train import CHECKPOINT

RESULTS, RUNS = Path("benchmarks/results/studies"), Path("runs")
STATES = ("recorded", "to record", "to measure", "to resume", "to train", "failed before")


@dataclass(frozen=True)
class Planned:
    """One cell: its task and where it stands."""

    task: Task
    state: str
    """One of `STATES`."""
    step: int = 0
    """Steps that need not be trained again."""

    @property
    def steps_left(self) -> int:
        """Training steps still to take, at most."""
        return 0 if self.state in STATES[:3] else self.task.cell.steps - self.step


@dataclass(frozen=True)
class Plan:
    """The cells of a grid in order, and the file of their records."""

    grid: Grid
    cells: tuple[Planned, ...]
    records: Path

    @property
    def todo(self) -> list[Planned]:
        """Cells that an engine must work on."""
        return [cell for cell in self.cells if cell.state not in ("recorded", "to record")]

    def seconds(self) -> float:
        """Return an estimate of the training left in seconds of one core, from a few timed steps of each shape here."""
        rates: dict[TrainConfig, float] = {}
        total = 0.0
        for planned in self.todo:
            cell = planned.task.cell
            shape = TrainConfig(cell.config, train_fraction=cell.train_fraction, batch_size=cell.batch_size)
            if planned.steps_left and shape not in rates:
                rates[shape] = _seconds_a_step(shape, planned.task.device)
            total += planned.steps_left * rates.get(shape, 0.0)
        return total

    def refreshed(self, latest: dict[str, Record]) -> "Plan":
        """Return the plan with every cell looked at again, given the latest records."""
        tasks_now = [replace(cell.task, known=None) for cell in self.cells]
        return replace(self, cells=tuple(planned(task, latest.get(task.key)) for task in tasks_now))

    def table(self) -> list[dict[str, object]]:
        """Return one row a cell: key, what it is, seed, state, steps done and in all."""
        return [
            {"key": p.task.key, "cell": label(p.task.cell), "seed": p.task.cell.seed, "state": p.state,
             "done": p.task.cell.steps - p.steps_left, "steps": p.task.cell.steps}
            for p in self.cells
        ]  # fmt: skip

    def __repr__(self) -> str:
        counts = {state: sum(p.state == state for p in self.cells) for state in STATES}
        return f"Plan({self.grid.name}: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n) + ")"


def plan(
    grid: Grid,
    *,
    results: Path | str = RESULTS,
    runs: Path | str = RUNS,
    measures: Sequence[str] | None = None,
    device: str = "cpu",
    command: str = "mi_ablate.sweep.run_grid",
) -> Plan:
    """Return what is left to do of ``grid``.

    Args:
        grid: the cells.
        results: the folder of ``NAME.jsonl`` and of the weights that stay beside it.
        runs: the folder where cells train and leave their checkpoints.
        measures: names of `measures.MEASURES`; all of them by default. Recorded cells that lack some are measured again.
        device: "cpu" or "cuda".
        command: what a reader would type, for the records.

    Raises:
        ValueError: a measure or a device that does not exist.
        ArtefactError: a record file that cannot be read.

    """
    _check(device)
    names = tuple(MEASURES if measures is None else measures)
    for name in names:
        if name not in MEASURES:
            raise ValueError(f"There is no measure {name!r}. {nearest(name, MEASURES)}")
    results, runs = Path(results), Path(runs)
    records = RecordFile(results / f"{grid.name}.jsonl")
    latest = records.latest()
    cells = []
    for cell in grid.cells:
        key = key_of(cell)
        task = Task(
            grid.name, cell.to_dict(), str((runs / grid.name / key).resolve()),
            str((results / FOLDER / grid.name).resolve()), grid.keep_weights, names, device, command,
        )  # fmt: skip
        cells.append(planned(task, latest.get(key)))
    return Plan(grid, tuple(cells), records.path)


def planned(task: Task, record: Record | None) -> Planned:
    """Return where a cell stands, from its latest record and what lies in its folder."""
    if record is not None and covers(record, task.measures):
        return Planned(task, "recorded")
    finished = task.finished()
    known = record is not None and record["status"] == "done"
    same = finished is not None and (not known or finished["weights"] == record["weights"])  # type: ignore[index]
    if finished is not None and same and intact(Path(task.weights), finished):
        return Planned(task, "to record")
    if known:
        return Planned(replace(task, known=record), "to measure")
    step = step_of(task)
    if record is not None:
        return Planned(task, "failed before", step)
    return Planned(task, "to resume", step) if step else Planned(task, "to train")


def step_of(task: Task) -> int:
    """Return the step of the task's checkpoint, 0 where there is none that can be read."""
    try:
        return int(_files.read_card(Path(task.folder) / CHECKPOINT)["step"])
    except (_files.ArtefactError, KeyError, TypeError, ValueError):
        return 0


def _check(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"There is no device {device!r}; use 'cpu' or 'cuda'.")
    check_device(device)


def _seconds_a_step(cell: TrainConfig, device: str, count: int = 5) -> float:
    """Median seconds of a training step here, after two that warm up."""
    stepper = Stepper(cell, initial_state(cell.config, cell.init, 0), device)
    n = cell.batch_size or int(cell.train_fraction * tasks.n_prompts(cell.config))
    chosen = torch.randint(tasks.n_prompts(cell.config), (n,), generator=torch.Generator().manual_seed(0))
    tokens, answers = tasks.all_tokens(cell.config)[chosen].to(device), tasks.answers(cell.config)[chosen].to(device)
    times, clock = [], time.process_time if device == "cpu" else time.perf_counter
    for _ in range(count + 2):
        start = clock()
        float(stepper.step(tokens, answers))
        times.append(clock() - start)
    return sorted(times[2:])[count // 2]
