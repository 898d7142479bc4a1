"""The Ray engine: the same tasks as Ray tasks, on this machine or on the cluster that ``RAY_ADDRESS`` names.

Ray itself starts a task again when its worker dies. On a cluster the folders of runs and weights must be shared between the
machines, since a task goes on from the checkpoint that it finds there.
"""

import os
import sys
from collections.abc import Generator, Sequence
from typing import Any

import torch

from mi_ablate.sweep.local import ATTEMPTS
from mi_ablate.sweep.records import Record
from mi_ablate.sweep.tasks import Ended, Task


def on_ray(
    groups: Sequence[Sequence[Task]], workers: int, gpu_share: int | float = 0.25
) -> Generator[Ended | None, None, None]:
    """Yield each task's end as it comes, and None between looks; closing the iterator cancels what is running."""
    ray = connect(workers)
    gpus = gpu_share if any(task.device.startswith("cuda") for group in groups for task in group) else 0
    there = ray.cluster_resources().get("GPU", 0)
    if gpus > there:
        raise ValueError(f"A task asks for {gpus:g} of a GPU, and the Ray cluster has {there:g}; use device='cpu'.")
    start = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS - 1)(_performed)
    waiting = {}
    for group in groups:
        for task in group:
            task.clear()
        waiting[start.remote([task.to_json() for task in group])] = group
    try:
        while waiting:
            yield None
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for reference in ready:
                yield from _ends(ray, reference, waiting.pop(reference))
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def connect(workers: int) -> Any:
    """Return the ray module, connected to the cluster of ``RAY_ADDRESS`` or to one of this machine.

    Raises:
        ValueError: Ray is not installed.

    """
    try:
        import ray
    except ImportError:
        raise ValueError(
            "The engine 'ray' needs Ray, which is not installed: pip install 'mi_ablate[ray]'. "
            "The engine 'local' needs nothing."
        ) from None
    if not ray.is_initialized():
        path = os.pathsep.join(place for place in sys.path if place)  # workers here import what this process can
        here = {"num_cpus": workers, "include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
        own: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else here
        ray.init(log_to_driver=False, configure_logging=False, **own)
    return ray


def _performed(texts: list[str]) -> list[tuple[Record | None, str | None, int | None]]:
    """In a Ray worker: how each task ended."""
    from mi_ablate.sweep.work import perform

    torch.set_num_threads(1)
    tasks = [Task.from_json(text) for text in texts]
    perform(tasks)
    ends = [task.ended() or Ended(task, None, "it left neither a record nor an error") for task in tasks]
    return [(end.record, end.error, end.errno) for end in ends]


def _ends(ray: Any, reference: Any, group: Sequence[Task]) -> list[Ended]:
    try:
        outcomes = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        number = getattr(error.cause, "errno", None)
        return [task.ended() or Ended(task, None, str(error.cause), number) for task in group]
    except ray.exceptions.RayError as error:
        text = f"its worker died, {ATTEMPTS} times in all: {str(error).splitlines()[0]}"
        return [task.ended() or Ended(task, None, text, attempts=ATTEMPTS) for task in group]
    return [Ended(task, *outcome) for task, outcome in zip(group, outcomes)]
