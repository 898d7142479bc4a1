"""Run what is left of a grid: an engine does the tasks, one process writes the records."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mi_ablate._types import nearest
from mi_ablate.sweep.grids import label
from mi_ablate.sweep.local import cores, local
from mi_ablate.sweep.plans import Plan, Planned
from mi_ablate.sweep.progress import Progress
from mi_ablate.sweep.records import RecordFile
from mi_ablate.sweep.tasks import FULL, Ended, Task

ENGINES = ("local", "ray")
Ends = Generator[Ended | None, None, None]


@dataclass
class Outcome:
    """What a run of a grid achieved."""

    recorded: int = 0
    """Cells recorded now."""
    failed: dict[str, str] = field(default_factory=dict)
    """Errors of cells that failed, by key."""
    left: int = 0
    """Cells that the budget left undone; the same command goes on with them."""

    def __repr__(self) -> str:
        return f"Outcome({self.recorded} recorded, {len(self.failed)} failed, {self.left} left)"


def run_grid(
    plan: Plan,
    *,
    engine: str = "local",
    workers: int | None = None,
    stack: int = 1,
    gpu_share: int | float = 0.25,
    budget: int | float | None = None,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train and measure the cells that ``plan`` lists as undone, and append each record as it comes.

    It may be killed at any moment; the same plan made again goes on, and no finished cell is lost or done twice.

    Args:
        plan: see `plans.plan`.
        engine: "local", processes on this machine; "ray", Ray tasks (the extra ``ray``).
        workers: tasks at once; as many as cores by default.
        stack: cells of one shape trained together in a worker (see `toys.stacked`); worth it on a GPU.
        gpu_share: the part of a GPU that a Ray task reserves, on the device "cuda".
        budget: minutes after which nothing new starts and what runs is stopped, each at its last checkpoint.
        progress: a progress bar on stderr.
        report: called with a line for each cell that ends.

    Raises:
        ValueError: an engine that does not exist or is not installed.
        RuntimeError: another process writes these records.
        OSError: the disk is full; nothing is lost.

    """
    check_options(engine=engine, workers=workers, stack=stack, gpu_share=gpu_share, budget=budget)
    outcome, deadline = Outcome(), None if budget is None else time.monotonic() + 60 * budget
    workers = workers or cores()
    with RecordFile(plan.records) as records, _runs(plan):
        plan = plan.refreshed(records.latest())
        for planned in plan.cells:
            record = planned.task.finished() if planned.state == "to record" else None
            if record is not None:
                _record(records, Ended(planned.task, record), outcome, report)
        groups = [[p.task for p in group] for group in _stacks(plan.todo, stack)]
        left = {task.key for group in groups for task in group}
        if not groups:
            return outcome
        ends = _engine(engine, groups, workers, gpu_share)
        try:
            with Progress(plan.todo, workers, shown=progress) as bar:
                for ended in ends:
                    if ended is not None:
                        left.discard(ended.task.key)
                        _record(records, ended, outcome, report)
                        bar.ended(ended.task.key)
                    bar.update()
                    if deadline is not None and time.monotonic() > deadline:
                        break
        finally:
            ends.close()
    outcome.left = len(left)
    return outcome


def check_options(
    *,
    engine: str = "local",
    workers: int | None = None,
    stack: int = 1,
    gpu_share: int | float = 0.25,
    budget: int | float | None = None,
) -> None:
    """Raise a ValueError for an option of `run_grid` that cannot be meant."""
    if engine not in ENGINES:
        raise ValueError(f"There is no engine {engine!r}. {nearest(engine, ENGINES)}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: at least 1; leave it out for as many as cores ({cores()}).")
    if stack < 1:
        raise ValueError(f"stack={stack}: at least 1, cells trained one by one.")
    if not 0 < gpu_share <= 1:
        raise ValueError(f"gpu_share={gpu_share}: above 0 and at most 1, the part of a GPU that a task reserves.")
    if budget is not None and not budget >= 0:
        raise ValueError(f"budget={budget}: minutes, at least 0.")


@contextlib.contextmanager
def _runs(plan: Plan) -> Iterator[None]:
    """Hold the folder where the cells train, which grids recorded elsewhere may share."""
    from filelock import FileLock, Timeout

    folder = Path(plan.cells[0].task.folder).parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another process trains in {folder}. Wait for it or stop it, or train in another folder (--out)."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _engine(name: str, groups: Sequence[Sequence[Task]], workers: int, gpu_share: int | float) -> Ends:
    if name == "local":
        return local(groups, workers)
    from mi_ablate.sweep.on_ray import on_ray

    return on_ray(groups, workers, gpu_share)


def _record(records: RecordFile, ended: Ended, outcome: Outcome, report: Callable[[str], None]) -> None:
    task, cell = ended.task, ended.task.cell
    name = f"{task.key} {label(cell)} seed={cell.seed}"
    if ended.record is not None:
        run = {**ended.record["run"], "attempts": ended.attempts}
        records.append({**ended.record, "run": run})
        outcome.recorded += 1
        training = ended.record["metrics"]["training"]
        report(f"recorded {name}: held-out {training['accuracy']['held_out']:.4f}, grok step {training['grok_step']}")
        return
    if ended.errno in FULL:
        raise OSError(
            ended.errno, f"the disk is full in {task.folder}. Nothing is lost: free some space and start again"
        )
    error = ended.error or "no error was told"
    outcome.failed[task.key] = error
    if task.known is None:  # a record that could not be completed stays as it is
        records.append(task.failed(error, ended.attempts))
    report(f"failed {name}: {error}")


def _stacks(todo: Sequence[Planned], stack: int) -> list[list[Planned]]:
    """Cells in order, in groups of at most ``stack`` of the same shape."""
    groups: dict[object, list[list[Planned]]] = {}
    order: list[list[Planned]] = []
    for planned in todo:
        cell = planned.task.cell
        fraction = cell.train_fraction if cell.batch_size is None else None
        alone = None if cell.penalty is None else planned.task.key
        shape = (cell.config, cell.batch_size, fraction, cell.evaluate_every, planned.task.known is None, alone)
        own = groups.setdefault(shape, [])
        if not own or len(own[-1]) == stack:
            own.append([])
            order.append(own[-1])
        own[-1].append(planned)
    return order
