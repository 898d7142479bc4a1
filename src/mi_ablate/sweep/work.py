"""A task performed: train the cell where that is still to be done, measure it, leave its record in its folder.

`perform` may be killed at any moment and called again: the trainer goes on from its checkpoint, steps that were measured
stay measured, and the record appears whole or not at all. As a program (``python -m mi_ablate.sweep.work``) it takes tasks
from its standard input and ends when that is closed, that is, when whoever started it is gone.
"""

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mi_ablate import _files
from mi_ablate.measures import VERSION, Subject, measure
from mi_ablate.sweep.records import Record
from mi_ablate.sweep.tasks import ERROR, LOG, RECORD, Task
from mi_ablate.sweep.weights import pack, unpack
from mi_ablate.toys.kept import file_of
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import MODEL, train

LOCK_SECONDS = 60
"""How long a task waits for a worker of an earlier run to notice that it is alone."""
FROM_TRAINING = ("steps", "grok_step", "grok_rule", "stable", "checkpoint_step", "stable_rule", "accuracy", "loss",
                 "per_operation", "history")  # fmt: skip
Entry = dict[str, Any]


def perform(task: Task) -> Record:
    """Bring the cell up to date and return its record, which is also in ``record.json`` in its folder."""
    with _alone([task]):
        return _perform(task)


def perform_all(tasks: Sequence[Task]) -> None:
    """Perform several tasks of one shape, trained together.

    What goes wrong with one is written to ``error.json`` in its folder, and the others go on.
    """
    try:
        with _alone(tasks):
            if len(tasks) > 1:
                with contextlib.suppress(FloatingPointError):  # the cell that it belongs to meets it again below
                    _train_together(tasks)
            for task in tasks:
                try:
                    _perform(task)
                except Exception as error:
                    _tell(task, error)
    except Exception as error:
        for task in tasks:
            _tell(task, error)


def _tell(task: Task, error: Exception) -> None:
    traceback.print_exc()
    told = {"error": f"{type(error).__name__}: {error}", "errno": getattr(error, "errno", None)}
    with contextlib.suppress(OSError):
        _files.replace(Path(task.folder) / ERROR, json.dumps(told).encode())


@contextlib.contextmanager
def _alone(tasks: Sequence[Task]) -> Iterator[None]:
    """Hold the locks of the tasks' folders, and clear away what a killed process left half-written."""
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        for folder in sorted({Path(task.folder) for task in tasks}):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(folder / ".lock", timeout=LOCK_SECONDS))
            except Timeout:
                raise RuntimeError(
                    f"Another process works in {folder}. Wait for it or stop it, then start again."
                ) from None
            for leftover in folder.glob(".*.*.*"):
                leftover.unlink()
        yield


def _perform(task: Task) -> Record:
    folder, started = Path(task.folder), round(time.time())
    record = _measured_again(task, folder) if task.known else _trained(task, folder)
    here = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "finished": round(time.time())}
    record["run"] |= here
    _files.replace(folder / RECORD, json.dumps(record, allow_nan=False).encode())
    for cache in folder.glob("measured-*.json"):
        cache.unlink()
    return record


def _train_together(tasks: Sequence[Task]) -> None:
    from mi_ablate.toys.stacked import train_stacked

    todo = [task for task in tasks if not task.known]
    if len(todo) > 1:
        train_stacked(
            [task.cell for task in todo], outs=[task.folder for task in todo], device=todo[0].device, progress=False,
            checkpoint_every=min(_every(task.cell) for task in todo), command=todo[0].command,
        )  # fmt: skip


def _every(cell: TrainConfig) -> int:
    """Steps between checkpoints."""
    return max(cell.evaluate_every, min(500, cell.steps // 20))


def _trained(task: Task, folder: Path) -> Record:
    cell = task.cell
    result = train(
        cell, out=folder, device=task.device, progress=False, checkpoint_every=_every(cell), command=task.command
    )
    sources = _sources(cell, folder)
    kept = sources[:-1] if task.keep_weights == "kept" and len(sources) > 1 else sources[-1:]
    measured = list(_measured(task, folder, {}).values())
    packed = [pack(path, Path(task.weights), task.key, target) for target, path in kept]
    return {
        **task.identity(),
        "status": "done",
        "metrics": {
            "training": {name: result.card[name] for name in FROM_TRAINING if name in result.card},
            "checkpoints": measured,
        },
        "measures": list(task.measures),
        "measures_version": VERSION,
        "weights": packed,
        "run": {"cpu_seconds": result.card["cpu_seconds"]},
    }


def _sources(cell: TrainConfig, folder: Path) -> list[tuple[int | None, Path]]:
    """The weights in a cell's folder: near each kept step that was reached, then the model itself (target None)."""
    files: list[tuple[int | None, Path]] = [(target, file_of(folder, target)) for target in cell.keep_steps]
    return [(target, path) for target, path in [*files, (None, folder / MODEL)] if path.is_file()]


def _measured(task: Task, folder: Path, known: Mapping[int, Entry]) -> dict[int, Entry]:
    """Entries of the distinct steps in the folder, in order; ``known`` ones are completed."""
    found: dict[int, Entry] = {}
    for target, path in _sources(task.cell, folder):
        state, card = _files.read(path)
        if TrainConfig.from_dict(card["training"]) != task.cell:
            raise _files.ArtefactError(f"{path} has other settings than the cell {task.key}: move it away.")
        step = card["step"] if "step" in card else card["checkpoint_step"]
        if step not in found:
            entry = known.get(step, {"target": target, "step": step, "stable": card["stable"], "weights": "float32"})
            found[step] = _completed(task, folder, entry, state)
    return dict(sorted(found.items()))


def _completed(task: Task, folder: Path, entry: Entry, state: dict[str, Any]) -> Entry:
    """The entry with the measures that the task asks for; what was measured before a kill is not measured again."""
    have = dict(entry.get("measures", {}))
    path = folder / f"measured-{entry['step']}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        cached = json.loads(path.read_text())
        if (cached["version"], cached["weights"]) == (VERSION, entry["weights"]):
            have |= cached["measures"]
    subject = Subject(task.cell, state, entry["step"], entry["stable"])
    for name in task.measures:
        if name not in have:
            have |= measure(subject, [name])
            body = {"version": VERSION, "weights": entry["weights"], "measures": have}
            _files.replace(path, json.dumps(body, allow_nan=False).encode())
    return {**entry, "measures": have}


def _measured_again(task: Task, folder: Path) -> Record:
    """The known record with the measures that it lacks, from the cell's folder or the weights beside the records."""
    record: Record = json.loads(json.dumps(task.known))
    current = record["measures_version"] == VERSION
    old = {e["step"]: e if current else {**e, "measures": {}} for e in record["metrics"]["checkpoints"]}
    found = _measured(task, folder, old)
    for entry in record["weights"]:
        if entry["step"] not in found:
            state = unpack(Path(task.weights), entry, record)
            found[entry["step"]] = _completed(task, folder, {**old[entry["step"]], "weights": "float16"}, state)
    record["metrics"]["checkpoints"] = [found.get(step, entry) for step, entry in sorted(old.items())]
    names = [*record["measures"], *task.measures] if current else task.measures
    return record | {"measures": list(dict.fromkeys(names)), "measures_version": VERSION, "command": task.command}


def main() -> None:
    """Perform the tasks of each line of standard input, with one torch thread, until it is closed."""
    torch.set_num_threads(1)
    orders: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    while True:
        tasks = [Task.from_json(text) for text in json.loads(orders.get())]
        with (Path(tasks[0].folder) / LOG).open("a") as log, contextlib.redirect_stderr(log):
            perform_all(tasks)


def _read(orders: "queue.Queue[bytes]") -> None:
    """Pass lines on, and end the process at the end of the input, whatever it is doing."""
    for line in sys.stdin.buffer:
        orders.put(line)
    os._exit(75)


if __name__ == "__main__":
    main()
