"""The progress bar of a grid: training steps done, cells done, time left. It reads the cells' checkpoints, nothing else."""

import time
from collections.abc import Sequence
from types import TracebackType

from mi_ablate.sweep.plans import Planned, step_of

LOOK = 2.0
"""Seconds between looks at the checkpoints."""


class Progress:
    """Steps of all cells that are to be trained, on stderr; silent where not shown."""

    def __init__(self, todo: Sequence[Planned], workers: int, shown: bool) -> None:
        from rich import progress
        from rich.console import Console

        self.left = {p.task.key: p for p in todo}
        self.cells, self.total = len(todo), sum(p.steps_left for p in todo)
        self.done, self.looked = 0, 0.0
        columns = (
            progress.TextColumn("steps"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[cells]}"),
        )
        console = Console(stderr=True)
        self.bar = progress.Progress(*columns, console=console, disable=not shown, speed_estimate_period=600)
        self.task = self.bar.add_task("", total=self.total, cells=self._cells())
        self.shown, self.workers = shown, workers

    def _cells(self) -> str:
        return f"{self.cells - len(self.left)} of {self.cells} cells"

    def ended(self, key: str) -> None:
        """Count a cell as done, whatever its checkpoint says."""
        self.done += self.left.pop(key).steps_left
        self.looked = 0.0

    def update(self) -> None:
        """Look at the checkpoints of the cells that are not done."""
        if self.shown and time.monotonic() - self.looked > LOOK:
            under_way = sum(max(0, step_of(p.task) - p.step) for p in self.left.values() if p.steps_left)
            self.bar.update(self.task, completed=self.done + under_way, cells=self._cells())
            self.looked = time.monotonic()

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
