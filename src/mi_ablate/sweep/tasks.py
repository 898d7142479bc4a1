"""What an engine is given: one cell's task, as paths and JSON types, and how its end looks."""

import errno
import functools
import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mi_ablate.measures import VERSION
from mi_ablate.sweep.grids import config_hash, config_of, key_of
from mi_ablate.sweep.records import FORMAT, Record
from mi_ablate.toys.evaluation import versions
from mi_ablate.toys.recipes import TrainConfig

RECORD, ERROR, LOG = "record.json", "error.json", "log.txt"
"""Files that a task leaves in its folder: its record, or what went wrong; and what it printed."""
FULL, FULL_DISK = (errno.ENOSPC, errno.EDQUOT), 74
"""Error numbers of a full disk, and the exit status of a worker that could not even write of it."""


@dataclass(frozen=True)
class Task:
    """Bring one cell up to date: train it, or measure more of it."""

    grid: str
    settings: dict[str, Any]
    """A `TrainConfig` as JSON."""
    folder: str
    """Where the cell trains and leaves its record."""
    weights: str
    """The folder of the weights that stay beside the records."""
    keep_weights: str
    measures: tuple[str, ...]
    device: str
    command: str
    known: Record | None = None
    """The cell's record, where only measures are missing."""

    @functools.cached_property
    def cell(self) -> TrainConfig:
        """The settings."""
        return TrainConfig.from_dict(self.settings)

    @functools.cached_property
    def key(self) -> str:
        """The cell's key."""
        return key_of(self.cell)

    def to_json(self) -> str:
        """Return the task as text; `from_json` gives it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """Return the task that `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "measures": tuple(data["measures"])})

    def identity(self) -> Record:
        """Return the part of a record that is known before anything runs."""
        cell = self.cell
        return {
            "format": FORMAT,
            "grid": self.grid,
            "key": self.key,
            "config": config_of(cell),
            "config_hash": config_hash(cell),
            "seed": cell.seed,
            "versions": versions(),
            "device": torch.device(self.device).type,
            "command": self.command,
        }

    def clear(self) -> None:
        """Remove what an earlier attempt left to say how it ended."""
        for name in (RECORD, ERROR):
            (Path(self.folder) / name).unlink(missing_ok=True)

    def finished(self) -> Record | None:
        """Return the record that the task left in its folder, if it is complete."""
        record = _json(Path(self.folder) / RECORD)
        same = record.get("format") == FORMAT and record.get("key") == self.key
        return record if same and covers(record, self.measures) else None

    def ended(self) -> "Ended | None":
        """Return how the task ended, or None where it left no sign: it was killed."""
        record = self.finished()
        if record is not None:
            return Ended(self, record)
        told = _json(Path(self.folder) / ERROR)
        if told:
            return Ended(self, None, told["error"], told["errno"])
        if (Path(self.folder) / RECORD).is_file():
            return Ended(self, None, "its worker runs another version of mi_ablate; start again")
        return None

    def failed(self, error: str, attempts: int) -> Record:
        """Return the record of a cell that could not be finished."""
        run = {"host": socket.gethostname(), "attempts": attempts, "finished": round(time.time())}
        return {**self.identity(), "status": "failed", "error": error, "run": run}


class Ended(NamedTuple):
    """How a task ended: with a record, or with an error in words."""

    task: Task
    record: Record | None
    error: str | None = None
    errno: int | None = None
    attempts: int = 1


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is absent or unreadable."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def covers(record: Record, measures: tuple[str, ...]) -> bool:
    """Whether a finished record has all these measures in their present meaning."""
    current = record["status"] == "done" and record["measures_version"] == VERSION
    return current and all(name in record["measures"] for name in measures)
