"""Records as `mi_ablate.sweep` writes them, made without training."""

import json
from pathlib import Path
from typing import Any

from mi_ablate.sweep.grids import config_hash, config_of, key_of
from mi_ablate.sweep.records import FORMAT, RecordFile
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig


def record(
    seed: int = 0, grid: str = "width", d_model: int = 16, grok: int | None = 200, **settings: Any
) -> dict[str, Any]:
    """A finished cell whose held-out accuracy is 0 before its grok step and 1 from there on; steps of 100."""
    cell = TrainConfig(ToyConfig(7, d_model=d_model), seed, **{"steps": 400, **settings})
    steps = range(0, cell.steps + 1, 100)
    late = [float(grok is not None and step >= grok) for step in steps]
    history = [[s, 1 / (s + 1), min(1.0, s / 100), 3.0 - 2.5 * y + seed / 10, y] for s, y in zip(steps, late)]
    training = {
        "steps": cell.steps, "grok_step": grok, "stable": grok is not None, "checkpoint_step": cell.steps, "history": history,
        "accuracy": {"train": 1.0, "held_out": late[-1], "all": 0.5}, "loss": {"train": 0.1, "held_out": 0.25, "all": 0.2},
    }  # fmt: skip
    entry = {"target": None, "step": cell.steps, "stable": True, "weights": "float32"}
    measured = {**entry, "measures": {"accuracy": {"add": {"held_out": late[-1]}}}}
    return _identity(cell, grid) | {
        "status": "done",
        "metrics": {"training": training, "checkpoints": [measured]},
        "measures": ["accuracy"],
        "measures_version": 1,
        "weights": [],
        "run": {"cpu_seconds": 90.0, "host": "here", "attempts": 1},
    }


def failed(
    seed: int = 0, grid: str = "width", error: str = "ValueError: no room\nsecond line", **settings: Any
) -> dict[str, Any]:
    """A cell that failed."""
    cell = TrainConfig(ToyConfig(7, d_model=16), seed, **{"steps": 400, **settings})
    return _identity(cell, grid) | {"status": "failed", "error": error, "run": {"host": "here", "attempts": 3}}


def write(folder: Path, *records: dict[str, Any]) -> Path:
    """Append the records to their grids' files and return the folder."""
    for one in records:
        with RecordFile(folder / f"{one['grid']}.jsonl") as file:
            file.append(one)
    return folder


def _identity(cell: TrainConfig, grid: str) -> dict[str, Any]:
    config = json.loads(json.dumps(config_of(cell)))
    return {
        "format": FORMAT, "grid": grid, "key": key_of(cell), "config": config, "config_hash": config_hash(cell),
        "seed": cell.seed, "versions": {"torch": "2.13.0"}, "device": "cpu", "command": "mi-ablate train width",
    }  # fmt: skip
