"""The main job on the shipped models and, where MI_ABLATE_DATA is set, on published ones; the numbers of the README.

    python benchmarks/main_job.py --write [MODEL ...]

The last line of a model is the one that counts. Seconds are wall time on one thread of whatever else the machine was doing.
"""

import os
import sys
from pathlib import Path

import torch
from _timing import record

import mi_ablate as mi
from mi_ablate.demo import take_apart

PUBLISHED = ("nanda_mod113", "zhong_model_a", "zhong_model_b")


def models(asked: list[str]) -> dict[str, str]:
    """Return what to load, by the name in the table."""
    found = {name: name for name in mi.toys.names()}
    folder = os.environ.get("MI_ABLATE_DATA")
    if folder:
        found |= {name: str(Path(folder) / "third_party_models" / f"{name}.safetensors") for name in PUBLISHED}
    return {name: path for name, path in found.items() if not asked or name in asked}


def main() -> None:
    torch.set_num_threads(1)
    for name, path in models([a for a in sys.argv[1:] if not a.startswith("-")]).items():
        found = take_apart(mi.toys.load(path)).to_json()
        for row in found["removal"]:
            row["curve"] = [{"k": p["k"], "edited": round(p["edited"], 4)} for p in row["curve"]]
        record("main_job", {**found, "model": name}, "--write" in sys.argv)


if __name__ == "__main__":
    main()
