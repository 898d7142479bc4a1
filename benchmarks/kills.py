"""Claim: a grid that is killed at random moments ends with the records of one that was never interrupted.

A grid of quick cells (one layer, d 64, p = 29, full batch, 2,400 steps, three seeds) is run twice with ``mi-ablate train``.
The first is left alone. The second is killed (SIGKILL) after random seconds and started again until the wanted number of
kills is reached; about a third of the kills hit a worker first and then the command itself. Records must be equal in
everything but ``command`` and ``run`` (host, process, times), and each cell must have been recorded once.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--write]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from mi_ablate.sweep import RecordFile
from mi_ablate.sweep.records import comparable

RESULTS = Path(__file__).parent / "results" / "kills.jsonl"
QUICK: dict[str, Any] = {
    "name": "kills", "seeds": [0, 1, 2],
    "base": {
        "train_fraction": 0.7, "batch_size": None, "steps": 2400, "keep_steps": [1200, 2400], "split_seed": "seed",
        "config": {"modulus": 29, "n_layers": 1, "d_model": 64, "d_mlp": 256},
    },
}  # fmt: skip


def command(folder: Path, measures: Sequence[str]) -> list[str]:
    chosen = [word for name in measures for word in ("--measure", name)]
    places = ["--results", str(folder / "results"), "--out", str(folder / "runs"), "--workers", "2"]
    return [sys.executable, "-m", "mi_ablate.cli", "train", str(folder.parent / "grid.json"), *places, *chosen]


def run(folder: Path, measures: Sequence[str]) -> None:
    """Run the grid to its end."""
    done = subprocess.run(command(folder, measures), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The grid failed: {done.stdout}{done.stderr}")


def kill_often(
    folder: Path, measures: Sequence[str], kills: int, chance: random.Random, wait: tuple[float, float]
) -> dict[str, int]:
    """Start the grid and kill it until ``kills`` are reached or it is done; return how many hit what."""
    hit = {"command": 0, "worker": 0}
    while sum(hit.values()) < kills:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command(folder, measures), stdout=quiet, stderr=quiet)
        time.sleep(chance.uniform(*wait))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        if children and chance.random() < 0.5 and sum(hit.values()) < kills - 1:
            with_luck = chance.choice(children)
            if with_luck.is_running():
                with_luck.kill()
                hit["worker"] += 1
            time.sleep(chance.uniform(0, wait[0]))
        if process.poll() is not None:
            if process.returncode:
                sys.exit(f"The grid failed by itself with status {process.returncode}.")
            break
        process.kill()
        process.wait()
        hit["command"] += 1
    return hit


def compare(
    folder: Path, grid: dict[str, Any], measures: Sequence[str], kills: int, seed: int, wait: tuple[float, float]
) -> dict[str, Any]:
    """Run ``grid`` in ``folder`` undisturbed and killed; return what happened and whether the records agree."""
    (folder / "grid.json").write_text(json.dumps(grid))
    run(folder / "whole", measures)
    hit = kill_often(folder / "killed", measures, kills, random.Random(seed), wait)
    run(folder / "killed", measures)
    whole, killed = (RecordFile(folder / name / "results" / f"{grid['name']}.jsonl") for name in ("whole", "killed"))
    mine, theirs = ({key: comparable(r) for key, r in file.latest().items()} for file in (whole, killed))
    return {
        "cells": len(mine), "kills": sum(hit.values()), "hit": hit, "equal": mine == theirs,
        "recorded_once": len(killed.lines()) == len(mine),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"append the line to {RESULTS.name}")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), QUICK, (), args.kills, args.seed, wait=(3, 8))
    words = f"python benchmarks/kills.py --kills {args.kills} --seed {args.seed} --write"
    line = json.dumps({"benchmark": "kills", "command": words, "seed": args.seed, **found})
    print(line)
    if args.write:
        with RESULTS.open("a") as file:
            file.write(line + "\n")
    if not (found["equal"] and found["recorded_once"]):
        sys.exit("The records differ.")
    if found["kills"] < args.kills:
        sys.exit(f"The grid was done after {found['kills']} kills; give it longer cells.")


if __name__ == "__main__":
    main()
