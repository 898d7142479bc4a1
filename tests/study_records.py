"""Records of a study's small grids, made from one measured tiny model a set of operations instead of by training."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import mi_ablate.sweep.plans
import mi_ablate.sweep.run
from mi_ablate.measures import MEASURES, VERSION, Subject, measure
from mi_ablate.studies import Study
from mi_ablate.sweep import GRIDS, Grid
from mi_ablate.sweep.grids import config_hash, config_of, key_of
from mi_ablate.sweep.records import FORMAT, RecordFile
from mi_ablate.sweep.work import perform
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import initial_state

BASE: dict[str, Any] = {
    "steps": 60, "evaluate_every": 20, "batch_size": 16, "train_fraction": 0.5, "split_seed": None, "keep_steps": [40, 60],
    "config": {"modulus": 7, "n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 16},
}  # fmt: skip
TINY = Grid.product("tiny", BASE, axes={"weight_decay": [1.0, 0.1]}, seeds=2)


def use_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a grid of four small cells under the name "tiny", with one measure; tasks run in this process."""

    def here(groups: Any, workers: int) -> Any:
        for group in groups:
            yield None
            for task in group:
                task.clear()
            perform(group)
            yield from [task.ended() for task in group]

    monkeypatch.setitem(GRIDS, "tiny", TINY)
    monkeypatch.setattr(mi_ablate.sweep.plans, "MEASURES", {"accuracy": MEASURES["accuracy"]})
    monkeypatch.setattr(mi_ablate.sweep.run, "local", here)


@cache
def measured(operations: tuple[str, ...]) -> dict[str, Any]:
    """Every measure of an untrained model of these operations, p = 7."""
    shape = ToyConfig(7, operations=operations, n_layers=1, d_model=16, n_heads=2, d_mlp=16)
    cell = TrainConfig(shape, 0, train_fraction=0.7)
    return measure(Subject(cell, initial_state(shape, cell.init, 0), 100, True), tuple(MEASURES))


def record_of(cell: TrainConfig, grid: str, grok: int | None = 200, full: bool = False) -> dict[str, Any]:
    """A record of this cell that grokked at a step, or never; where ``full``, with the tiny model's measures at kept steps."""
    names = cell.config.operations
    found = measured(names) if full else {}
    stable, steps = grok is not None, cell.keep_steps or (cell.steps,)
    history = [[s, 0.1, 1.0, 0.2, float(stable and s >= (grok or 0))] for s in range(0, cell.steps + 1, 100)]
    per = {"train": 1.0, "held_out": float(stable), "all": 0.9}
    training = {
        "steps": cell.steps, "grok_step": grok, "stable": stable, "checkpoint_step": cell.steps, "history": history,
        "accuracy": per, "loss": per,
    }  # fmt: skip
    if len(names) > 1:
        training["per_operation"] = {name: {"grok_step": grok, "accuracy": per, "loss": per} for name in names}
    entries = [{"target": s, "step": s, "stable": stable, "sha256": "", "measures": found} for s in steps]
    return {
        "format": FORMAT, "grid": grid, "key": key_of(cell), "config": config_of(cell), "config_hash": config_hash(cell),
        "seed": cell.seed, "versions": {}, "device": "cpu", "command": "a test", "status": "done",
        "metrics": {"training": training, "checkpoints": entries}, "measures": list(MEASURES), "measures_version": VERSION,
        "weights": [{"file": f"{grid}/{key_of(cell)}.safetensors", "step": cell.steps, "stable": stable, "sha256": ""}],
        "run": {"cpu_seconds": 60.0, "host": "here", "attempts": 1},
    }  # fmt: skip


def write_quick(study: Study, folder: Path, grok: int | None = 200, leave_out: int | None = None) -> Path:
    """Write records of every cell of a study's small grids, except those of one seed, and return the folder."""
    for grid in study.declared(quick=True):
        with RecordFile(folder / f"{grid.name}.jsonl") as file:
            for cell in grid.cells:
                if cell.seed != leave_out:
                    file.append(record_of(cell, grid.name, grok, full=True))
    return folder
