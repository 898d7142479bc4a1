"""Training a toy transformer to grokking: one function, one resumable checkpoint, one model file with a card.

AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization") on the cross-entropy at the last
position, with weight decay on every trained parameter and a linear warm-up whose first step has rate 0 (Nanda
et al. 2023, "Progress measures for grokking via mechanistic interpretability"). Accuracy dips for short
spells after grokking, so the model that is kept is that of the latest stable step (`evaluation.stable_rule`), and its
card says so.

Runs on one CPU repeat bit for bit, interrupted or not; other thread counts, devices and torch versions round
differently and may grok at another step.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ._bar import Bar
from .base import Base
from .evaluation import train_mask
from .forward import Params
from .job import CHECKPOINT, MODEL, Flushed, Job, Result, check_device
from .recipes import RECIPES, TrainConfig, load_recipe
from .stepper import Stepper, initial_state

__all__ = ["CHECKPOINT", "MODEL", "Result", "Stepper", "TrainConfig", "initial_state", "main", "train"]


def train(
    config: TrainConfig,
    *,
    out: Path | str,
    device: str = "cpu",
    resume: bool = True,
    progress: bool = True,
    checkpoint_every: int = 1000,
    command: str = "mi_ablate.toys.train.train",
    watch: Callable[[int, Params], None] | None = None,
) -> Result:
    """Train a toy and write ``out/model.safetensors``.

    A run continues from ``out/checkpoint.safetensors`` where there is one and ``resume`` is True. Every
    ``config.evaluate_every`` steps loss and accuracy are taken on all prompts; nothing else waits for the
    device. Checkpoints are written at the first evaluation after every ``checkpoint_every`` steps.
    ``command`` is recorded in the card. ``watch`` is called with the step and the weights at every evaluation, such as a
    `watch.Watch`, which measures Fourier progress live.

    A ``config.base`` that is a recipe is trained first, with the same seed, in the folder ``out/base``; each of the two
    continues from its own checkpoint.

    Raises:
        ValueError: a device that is not there, a checkpoint of another configuration, or a base that does not fit.
        FloatingPointError: the loss stopped being finite; the last checkpoint is kept.
        OSError: a file could not be written (a full disk); the last checkpoint is kept.

    """
    check_device(device)
    options: dict[str, Any] = {"device": device, "resume": resume, "progress": progress, "command": command}
    base = None if config.base is None else _base(config, Path(out), {**options, "checkpoint_every": checkpoint_every})
    job = Job(config, Path(out), device, resume, checkpoint_every, base)
    clock = time.process_time()
    with Flushed(device), Bar([job], progress) as bar:
        while not job.done:
            job.begin()
            if watch is not None and job.run.step == 0:
                watch(0, job.run.stepper.params)
            job.advance(_block(job))
            row = job.data.row(job.run.step, job.run.stepper.params)
            now = time.process_time()
            job.record(row, now - clock)
            if watch is not None:
                watch(job.run.step, job.run.stepper.params)
            clock = now
            bar.update()
    return job.result(command)


def _base(config: TrainConfig, out: Path, options: dict[str, Any]) -> Base:
    """The weights that are fine-tuned: of a toy's file, or of a recipe, trained now where it is not yet."""
    name = str(config.base)
    if name not in RECIPES:
        return Base.read(name)
    first = replace(RECIPES[name], seed=config.seed)
    found = train(first, out=out / "base", **options)
    return Base(name, first.config, found.state, train_mask(first), found.card)


def _block(job: Job) -> Float[Tensor, " count"]:
    """Take the steps up to the next evaluation and return their losses; nothing waits for the device."""
    data, step, batches = job.data, job.run.stepper.step, job.draw()
    if batches is None:
        return torch.stack([step(data.train_tokens, data.train_answers) for _ in range(job.count)])
    return torch.stack([step(data.train_tokens[chosen], data.train_answers[chosen]) for chosen in batches])


def main(argv: list[str] | None = None) -> None:
    """Train the recipe or file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m mi_ablate.toys.train", description="Train a toy transformer.")
    parser.add_argument("name", help="a recipe, or a JSON or TOML file of one")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--restart", action="store_true", help="ignore a checkpoint in the folder")
    args = parser.parse_args(argv)
    settings = load_recipe(args.name)
    result = train(
        settings,
        out=args.out,
        device=args.device,
        resume=not args.restart,
        command=f"mi-ablate train {args.name}",
    )
    print(f"{result.path}: held-out accuracy {result.card['accuracy']['held_out']:.4f}")


if __name__ == "__main__":
    main()
