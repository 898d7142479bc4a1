"""Claim: steps per second of a grid on each engine, against a plain HookedTransformer loop.

The grid has two cells of the recipe ``add97`` (two layers, d_model 128, batch 512, p = 97), 300 steps each, one evaluation at
the end, no measures. Wall-clock seconds from the call of ``run_grid`` to its return, the start of the workers included (Ray
starts its own once, in its first round): the local engine with one worker and with two, with the two cells in one stack, and
Ray with two workers. The loop is ``F.cross_entropy(model(tokens)[:, -1], answers)``, backward and fused AdamW in this
process, over 60 steps and without an evaluation. Before anything is said, the records of all engines must agree (the
stack's to rounding). One torch thread each; the machine must be idle. Stacks are for GPUs, whose speed this does not measure.

    python benchmarks/engines.py [--rounds 3] [--write]
"""

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from _timing import arguments, record
from train_step import CONFIG, baseline, batches

from mi_ablate.sweep import Grid, RecordFile, plan, run_grid
from mi_ablate.sweep.records import comparable
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.stepper import initial_state

STEPS, LOOP_STEPS, ROUNDS = 300, 60, 3
BASE = {"config": CONFIG.to_dict(), "steps": STEPS, "evaluate_every": STEPS}
GRID = Grid.product("engines", BASE, seeds=2)
ENGINES = {
    "local, 1 worker": {"engine": "local", "workers": 1},
    "local, 2 workers": {"engine": "local", "workers": 2},
    "local, 1 worker, stack of 2": {"engine": "local", "workers": 1, "stack": 2},
    "ray, 2 workers": {"engine": "ray", "workers": 2},
}


def run(name: str) -> tuple[float, dict[str, dict]]:
    """Steps per second of an engine, and its records."""
    with tempfile.TemporaryDirectory() as folder:
        todo = plan(GRID, results=folder, runs=Path(folder) / "runs", measures=())
        start = time.perf_counter()
        outcome = run_grid(todo, progress=False, **ENGINES[name])
        seconds = time.perf_counter() - start
        if outcome.recorded != len(GRID.cells):
            sys.exit(f"{name}: {outcome!r} {outcome.failed}")
        found = RecordFile(todo.records).latest()
    return STEPS * len(GRID.cells) / seconds, {key: comparable(r) for key, r in found.items()}


def loop() -> float:
    """Steps per second of the plain loop."""
    settings = TrainConfig(CONFIG)
    step = baseline(CONFIG, initial_state(CONFIG, "log", 0), settings)
    data = batches(CONFIG, LOOP_STEPS + 3, seed=1)
    for batch in data[:3]:
        step(*batch)
    start = time.perf_counter()
    for batch in data[3:]:
        step(*batch)
    return LOOP_STEPS / (time.perf_counter() - start)


def agree(one: dict[str, dict], other: dict[str, dict], exact: bool) -> bool:
    if exact:
        return one == other
    histories = [torch.tensor([r["metrics"]["training"]["history"] for r in each.values()]) for each in (one, other)]
    return bool((histories[0] - histories[1]).abs().max() < 5e-3)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {name: [] for name in (*ENGINES, "HookedTransformer loop")}
    reference, shuffle = None, random.Random(0)
    for _ in range(args.rounds or ROUNDS):
        for name in shuffle.sample(list(rates), len(rates)):
            if name not in ENGINES:
                rates[name].append(loop())
                continue
            rate, found = run(name)
            reference = reference or run("local, 1 worker")[1]
            if not agree(reference, found, exact="stack" not in name):
                sys.exit(f"The records of {name!r} differ, so nothing is reported.")
            rates[name].append(rate)
    table = {
        name: {"steps_per_second": round(statistics.median(v), 2), "low": round(min(v), 2), "high": round(max(v), 2)}
        for name, v in rates.items()
    }
    record(
        "engines",
        {"steps": STEPS, "rounds": args.rounds or ROUNDS, "cores": os.cpu_count(), "engines": table},
        args.write,
    )


if __name__ == "__main__":
    main()
