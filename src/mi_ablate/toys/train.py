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
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import _files
from . import tasks
from .evaluation import MODEL_FORMAT, Data, finished, measured, stable, stable_rule, versions
from .forward import trained_names
from .kept import keep
from .recipes import TrainConfig, load_recipe
from .stepper import Run, Stepper, initial_state, start, write_checkpoint

__all__ = ["Result", "Stepper", "TrainConfig", "initial_state", "main", "train"]

CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Result:
    """A finished training: the model file, its tensors in HookedTransformer's names, and its card."""

    path: Path
    state: dict[str, Float[Tensor, "..."]]
    card: dict[str, Any]


def train(
    config: TrainConfig,
    *,
    out: Path | str,
    device: str = "cpu",
    resume: bool = True,
    progress: bool = True,
    checkpoint_every: int = 1000,
    command: str = "mi_ablate.toys.train.train",
) -> Result:
    """Train a toy and write ``out/model.safetensors``.

    A run continues from ``out/checkpoint.safetensors`` where there is one and ``resume`` is True. Every
    ``config.evaluate_every`` steps loss and accuracy are taken on all prompts; nothing else waits for the
    device. Checkpoints are written at the first evaluation after every ``checkpoint_every`` steps.
    ``command`` is recorded in the card.

    Raises:
        ValueError: a device that is not there, or a checkpoint of another configuration.
        FloatingPointError: the loss stopped being finite; the last checkpoint is kept.

    """
    _check_device(device)
    out = Path(out)
    data = Data(config, device)
    run = start(config, out / CHECKPOINT, device, resume)
    clock = time.process_time() - run.cpu_seconds
    with _flushed(device), _Bar(config, run, progress) as bar:
        while run.step < config.steps and not finished(config, run.history):
            if not run.history:
                run.history.append(data.row(0, run.stepper.params))
            before = run.step
            _block(config, run, data, out)
            run.history.append(data.row(run.step, run.stepper.params))
            if not math.isfinite(run.history[-1][1]):
                raise _not_finite(config, run.step, out)
            if stable(run.history, config.stable_steps):
                run.stable_step, run.stable_state = run.step, run.stepper.state()
            if config.keep_steps:
                keep(config, out, run.step, run.stepper.state(), run.stable_step, run.stable_state)
            run.cpu_seconds = time.process_time() - clock
            done = run.step >= config.steps or finished(config, run.history)
            if done or run.step // checkpoint_every > before // checkpoint_every:
                write_checkpoint(out / CHECKPOINT, config, run)
            bar.update(run)
    state = run.stable_state if run.stable_step is not None else run.stepper.state()
    card = _card(config, run, data, state, device, command)
    return Result(_files.write(out / MODEL, state, card), state, card)


def _check_device(device: str) -> None:
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} was asked for, but torch {torch.__version__} finds no CUDA device; use "
            f"device='cpu' (--device cpu), or install a CUDA build of torch on a machine with a GPU."
        )


class _flushed:
    """Denormal numbers count as zero on the CPU: moments of dead units would otherwise slow AdamW down."""

    def __init__(self, device: str) -> None:
        self.wanted = torch.device(device).type == "cpu"

    def __enter__(self) -> None:
        tiny = torch.tensor(1e-40)
        self.changed = self.wanted and bool(tiny * 1.0 != 0) and torch.set_flush_denormal(True)

    def __exit__(self, *error: object) -> None:
        if self.changed:
            torch.set_flush_denormal(False)


def _block(config: TrainConfig, run: Run, data: Data, out: Path) -> None:
    """Take the steps up to the next evaluation, with the indices of all batches drawn at once."""
    count = min(config.evaluate_every, config.steps - run.step)
    n, device = len(data.train_answers), data.tokens.device
    losses = []
    if config.batch_size is not None:
        shape = (count, config.batch_size)
        batches = torch.randint(n, shape, generator=run.generator, device=device)
    for i in range(count):
        if config.batch_size is None:
            losses.append(run.stepper.step(data.train_tokens, data.train_answers))
        else:
            chosen = batches[i]
            losses.append(run.stepper.step(data.train_tokens[chosen], data.train_answers[chosen]))
    bad = (~torch.stack(losses).isfinite()).nonzero()
    if len(bad):
        raise _not_finite(config, run.step + int(bad[0, 0]), out)
    run.step += count


def _not_finite(config: TrainConfig, step: int, out: Path) -> FloatingPointError:
    kept = f" {out / CHECKPOINT} is from before it." if (out / CHECKPOINT).is_file() else ""
    return FloatingPointError(
        f"The loss was not finite at step {step}: lower learning_rate ({config.learning_rate}) or take more "
        f"warmup_steps ({config.warmup_steps}).{kept}"
    )


def _card(
    config: TrainConfig,
    run: Run,
    data: Data,
    state: dict[str, Float[Tensor, "..."]],
    device: str,
    command: str,
) -> dict[str, Any]:
    """The model file's card: `evaluation.measured` of the weights in it, and where they came from."""
    params = {name: state[name].to(device) for name in trained_names(config.config)}
    return measured(data, params, run.history) | {
        "format": MODEL_FORMAT,
        "config": config.config.to_dict(),
        "training": config.to_dict(),
        "train_mask": tasks.pack_mask(data.mask),
        "seed": config.seed,
        "steps": run.step,
        "stable": run.stable_step is not None,
        "checkpoint_step": run.step if run.stable_step is None else run.stable_step,
        "stable_rule": stable_rule(config),
        "versions": versions(),
        "device": torch.device(device).type,
        "command": command,
        "cpu_seconds": round(run.cpu_seconds, 1),
    }


class _Bar:
    """A rich progress bar with held-out accuracy and time left; silent where progress is False."""

    def __init__(self, config: TrainConfig, run: Run, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(),
            TextColumn("held-out accuracy {task.fields[accuracy]:.3f}, loss {task.fields[loss]:.2e}"),
            console=Console(stderr=True), disable=not shown,
        )  # fmt: skip
        last = run.history[-1] if run.history else [0, 0, 0, 0.0, 0.0]
        self.task = self.progress.add_task("", total=config.steps, completed=run.step, loss=last[3], accuracy=last[4])

    def __enter__(self) -> "_Bar":
        self.progress.start()
        return self

    def update(self, run: Run) -> None:
        last = run.history[-1]
        self.progress.update(self.task, completed=run.step, loss=last[3], accuracy=last[4])

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


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
