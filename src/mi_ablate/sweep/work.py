"""A task performed: train the cell where that is still to be done, measure it, leave its record in its folder.

`perform` may be killed at any moment and called again: the trainer goes on from its checkpoint, steps that were measured
stay measured, and the record appears whole or not at all. As a program (``python -m mi_ablate.sweep.work``) it takes tasks
from its standard input and ends when that is closed, that is, when whoever started it is gone.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mi_ablate import _files
from mi_ablate.measures import MEASURES, VERSION, Subject, measure
from mi_ablate.sweep.records import Record
from mi_ablate.sweep.tasks import ERROR, FULL, FULL_DISK, LOG, RECORD, Task
from mi_ablate.sweep.weights import digest, pack, unpack
from mi_ablate.toys.kept import file_of
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import MODEL, train

LOCK_SECONDS = 60
"""How long a task waits for a worker of an earlier run to notice that it is alone."""
FROM_TRAINING = ("steps", "grok_step", "grok_rule", "stable", "checkpoint_step", "stable_rule", "accuracy", "loss",
                 "per_operation", "history")  # fmt: skip
Entry = dict[str, Any]


def perform(tasks: Sequence[Task]) -> None:
    """Perform tasks of one shape, trained together, and leave the record of each in ``record.json`` in its folder.

    What goes wrong with one is written to ``error.json`` in its folder, and the others go on.

    Raises:
        RuntimeError: another process works in one of the folders.
        OSError: not even the error could be written.

    """
    with _alone(tasks):
        if len(tasks) > 1:
            with contextlib.suppress(FloatingPointError, ValueError):  # the cell that it belongs to meets it again
                _train_together(tasks)
        for task in tasks:
            try:
                _perform(task)
            except Exception as error:
                traceback.print_exc()
                told = {"error": f"{type(error).__name__}: {error}", "errno": getattr(error, "errno", None)}
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
        for task in tasks:
            for leftover in Path(task.weights).glob(f".{task.key}*.safetensors.*"):
                leftover.unlink()
        yield


def _perform(task: Task) -> None:
    folder, started = Path(task.folder), round(time.time())
    record = _measured_again(task, folder) if task.known else _trained(task, folder)
    here = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "finished": round(time.time())}
    record["run"] |= here
    _files.replace(folder / RECORD, json.dumps(record, allow_nan=False).encode())
    for cache in folder.glob("measured-*.json"):
        cache.unlink()


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
    """Entries of the distinct steps in the folder, in order; ``known`` ones are completed from the same weights only."""
    found: dict[int, Entry] = {}
    for target, path in _sources(task.cell, folder):
        state, card = _files.read(path)
        if TrainConfig.from_dict(card["training"]) != task.cell:
            raise _files.ArtefactError(f"{path} has other settings than the cell {task.key}: move it away.")
        step = card["step"] if "step" in card else card["checkpoint_step"]
        fresh = {"target": target, "step": step, "stable": card["stable"], "sha256": digest(state)}
        if known and known.get(step, {}).get("sha256") != fresh["sha256"]:
            continue  # another training of the same cell, on another machine say
        if step not in found:
            found[step] = _completed(task, folder, known.get(step, fresh), state, half=False)
    return dict(sorted(found.items()))


def _completed(task: Task, folder: Path, entry: Entry, state: dict[str, Any], half: bool) -> Entry:
    """The entry with the measures that the task asks for; what was measured before a kill is not measured again."""
    have = dict(entry.get("measures", {}))
    rounded = [name for name in entry.get("half_precision", []) if name in have]
    path = folder / f"measured-{entry['step']}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        cached = json.loads(path.read_text())
        if (cached["version"], cached["sha256"], cached["half"]) == (VERSION, entry["sha256"], half):
            have |= cached["measures"]
            rounded += [name for name in cached["measures"] if half and name not in rounded]
    subject = Subject(task.cell, state, entry["step"], entry["stable"])
    own: dict[str, Any] = {}
    for name in task.measures:
        if name not in have:
            own |= measure(subject, [name])
            body = {"version": VERSION, "sha256": entry["sha256"], "half": half, "measures": own}
            _files.replace(path, json.dumps(body, allow_nan=False).encode())
    told = {"half_precision": rounded + (list(own) if half else [])}
    return {**entry, **(told if told["half_precision"] else {}), "measures": {**have, **own}}


def _measured_again(task: Task, folder: Path) -> Record:
    """The known record with the measures that it lacks, from the cell's folder or the weights beside the records.

    Measures of another version are all taken again. A step whose weights are gone keeps the measures that it has, if they
    are of this version.
    """
    record: Record = json.loads(json.dumps(task.known))
    current = record["measures_version"] == VERSION
    names = tuple(dict.fromkeys([*record["measures"], *task.measures]))
    task = replace(task, measures=tuple(name for name in names if name in MEASURES))
    old = {e["step"]: e if current else {**e, "measures": {}} for e in record["metrics"]["checkpoints"]}
    found = _measured(task, folder, old)
    for entry in record["weights"]:
        if entry["step"] not in found:
            state = unpack(Path(task.weights), entry, record)
            found[entry["step"]] = _completed(task, folder, old[entry["step"]], state, half=True)
    record["metrics"]["checkpoints"] = [found.get(step, entry) for step, entry in sorted(old.items())]
    return record | {"measures": list(task.measures), "measures_version": VERSION, "command": task.command}


def main() -> None:
    """Perform the tasks of each line of standard input, with one torch thread, until it is closed.

    An interrupt of the terminal is for whoever started this. What cannot be told in a folder is told by the exit status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    orders: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    try:
        while True:
            tasks = [Task.from_json(text) for text in json.loads(orders.get())]
            with (Path(tasks[0].folder) / LOG).open("a") as log, contextlib.redirect_stderr(log):
                perform(tasks)
    except BaseException as error:
        traceback.print_exc()
        os._exit(FULL_DISK if getattr(error, "errno", None) in FULL else 1)


def _read(orders: "queue.Queue[bytes]") -> None:
    """Pass lines on, and end the process at the end of the input, whatever it is doing."""
    with open(0, "rb", buffering=0, closefd=False) as lines:  # a buffer's lock would hang the interpreter's end
        for line in lines:
            orders.put(line)
    os._exit(75)


if __name__ == "__main__":
    main()
