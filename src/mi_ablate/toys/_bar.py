"""The progress bar of a training: steps of all its models, their mean held-out accuracy and loss, the time left."""

from collections.abc import Sequence

from .job import Job


class Bar:
    """A rich progress bar; silent where ``shown`` is False."""

    def __init__(self, jobs: Sequence[Job], shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.jobs = jobs
        self.progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(),
            TextColumn("held-out accuracy {task.fields[accuracy]:.3f}, loss {task.fields[loss]:.2e}"),
            console=Console(stderr=True), disable=not shown,
        )  # fmt: skip
        self.task = self.progress.add_task("", total=sum(j.config.steps for j in jobs), loss=0.0, accuracy=0.0)
        self.update()

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def update(self) -> None:
        """Show where the jobs are now."""
        last = [job.run.history[-1] if job.run.history else [0, 0, 0, 0.0, 0.0] for job in self.jobs]
        loss, accuracy = (sum(row[column] for row in last) / max(1, len(last)) for column in (3, 4))
        self.progress.update(self.task, completed=sum(job.run.step for job in self.jobs), loss=loss, accuracy=accuracy)

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
