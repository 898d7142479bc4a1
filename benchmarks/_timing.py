"""Shared by the benchmarks: interleaved CPU times, and one JSON line a claim."""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def interleaved(runs: dict[str, Callable[[], object]], rounds: int, base: str) -> dict[str, dict[str, float]]:
    """Run everything once a round in shuffled order; return CPU seconds and the per-round ratio to ``base``."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(list(runs), len(runs)):
            start = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - start)
    table = {}
    for name, seconds in times.items():
        ratios = sorted(s / b for s, b in zip(seconds, times[base]))
        low, high = (ratios[int(q * (len(ratios) - 1))] for q in (0.25, 0.75))
        table[name] = {
            "median_s": statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "ratio_low": low,
            "ratio_high": high,
        }
    return table


def versions() -> dict[str, str]:
    """Versions that a timing depends on, and the processor."""
    found = {name: version(name) for name in ("torch", "transformer-lens", "mi_ablate")}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def record(name: str, result: dict[str, object], write: bool) -> None:
    """Print the result and, with ``--write``, append it to ``results/NAME.jsonl``."""
    line = json.dumps({"benchmark": name, "command": f"python benchmarks/{name}.py --write", **result, **versions()})
    print(line)
    if write:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a") as file:
            file.write(line + "\n")


def arguments() -> argparse.Namespace:
    """Return --write and --rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="append to benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of the interleaved timing (0: the default)")
    return parser.parse_args()
