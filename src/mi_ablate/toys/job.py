"""One model's training apart from its arithmetic: batches, history, stable weights, checkpoints, the card.

`train` and `train_stacked` share it, so that either can go on from the other's checkpoint: both take the steps up to the
next evaluation, hand their losses to `Job.advance` and the evaluation to `Job.record`.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import _files
from . import tasks
from .base import Base
from .evaluation import MODEL_FORMAT, Data, finished, measured, stable, stable_rule, versions
from .forward import trained_names
from .kept import keep
from .recipes import TrainConfig
from .stepper import start, write_checkpoint

CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"


@dataclass(frozen=True, repr=False)
class Result:
    """A finished training: the model file, its tensors in HookedTransformer's names, and its card."""

    path: Path
    state: dict[str, Float[Tensor, "..."]]
    card: dict[str, Any]

    def __repr__(self) -> str:
        accuracy, step = self.card["accuracy"]["held_out"], self.card["checkpoint_step"]
        return f"Result({self.path}: step {step:,}, held-out accuracy {accuracy:.4f})"


class Job:
    """A configuration, its data and folder, and the run that is under way (or resumed) in it.

    Raises a ValueError for a checkpoint of another configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        device: str,
        resume: bool,
        checkpoint_every: int,
        base: Base | None = None,
    ) -> None:
        if config.base is not None and base is None:
            raise ValueError(
                f"Its base {config.base!r} comes first: mi_ablate.toys.train.train trains one after the other."
            )
        self.config, self.out, self.device, self.checkpoint_every = config, out, device, checkpoint_every
        self.data, self.base = Data(config, device), base
        self.run = start(config, out / CHECKPOINT, device, resume, None if base is None else base.weights(config))

    @property
    def done(self) -> bool:
        """Whether all steps are taken, or the run may stop early."""
        return self.run.step >= self.config.steps or finished(self.config, self.run.history)

    @property
    def count(self) -> int:
        """Steps up to the next evaluation."""
        return min(self.config.evaluate_every, self.config.steps - self.run.step)

    def begin(self) -> None:
        """Evaluate the initial weights, unless the run is past them."""
        if not self.run.history:
            self.run.history.append(self.data.row(0, self.run.stepper.params))

    def draw(self) -> Int[Tensor, "count batch"] | None:
        """Return which training pairs the next ``count`` steps see, drawn at once; None where every step sees all."""
        if self.config.batch_size is None:
            return None
        shape, n = (self.count, self.config.batch_size), len(self.data.train_answers)
        return torch.randint(n, shape, generator=self.run.generator, device=self.data.tokens.device)

    def advance(self, losses: Float[Tensor, " count"]) -> None:
        """Count the steps that these losses are of; a FloatingPointError where one is not finite."""
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            raise self._not_finite(self.run.step + int(bad[0, 0]))
        self.run.step += len(losses)

    def record(self, row: list[int | float], seconds: float) -> None:
        """Take note of an evaluation: keep what is stable and write the files that are due.

        Raises:
            FloatingPointError: the loss is not finite.
            OSError: a file could not be written; the checkpoint before is still there.

        """
        run, config = self.run, self.config
        before = run.history[-1][0]
        run.history.append(row)
        if not math.isfinite(row[1]):
            raise self._not_finite(run.step)
        is_stable = stable(run.history, config.stable_steps)
        with self._writing():
            keep(config, self.out, run, is_stable)
        if is_stable:
            run.stable_step, run.stable_state = run.step, run.stepper.state()
        run.cpu_seconds += seconds
        if self.done or run.step // self.checkpoint_every > before // self.checkpoint_every:
            with self._writing():
                write_checkpoint(self.out / CHECKPOINT, config, run)

    def result(self, command: str) -> Result:
        """Write the model file: the latest stable weights, or else the last ones."""
        state = self.run.stable_state if self.run.stable_step is not None else self.run.stepper.state()
        card = self._card(state, command)
        return Result(_files.write(self.out / MODEL, state, card), state, card)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Let an OSError say what it costs and what to do."""
        try:
            yield
        except OSError as error:
            before = _files.read(self.out / CHECKPOINT)[1]["step"] if (self.out / CHECKPOINT).is_file() else None
            again = "none is there yet" if before is None else f"that of step {before} is still there"
            text = f"Step {self.run.step} could not be written ({error.strerror or error}); of checkpoints, {again}. Make room"
            raise OSError(error.errno, f"{text} and run again", str(self.out)) from error

    def _not_finite(self, step: int) -> FloatingPointError:
        checkpoint = self.out / CHECKPOINT
        kept = f" {checkpoint} is from before it." if checkpoint.is_file() else ""
        return FloatingPointError(
            f"The loss was not finite at step {step}: lower learning_rate ({self.config.learning_rate}) or take more "
            f"warmup_steps ({self.config.warmup_steps}).{kept}"
        )

    def _card(self, state: dict[str, Float[Tensor, "..."]], command: str) -> dict[str, Any]:
        """The model file's card: `evaluation.measured` of the weights in it, and where they came from."""
        config, run = self.config, self.run
        params = {name: state[name].to(self.device) for name in trained_names(config.config)}
        card = measured(self.data, params, run.history)
        if self.base is not None:
            card["base"] = self.base.brief()
        return card | {
            "format": MODEL_FORMAT,
            "config": config.config.to_dict(),
            "training": config.to_dict(),
            "train_mask": tasks.pack_mask(self.data.mask),
            "seed": config.seed,
            "steps": run.step,
            "stable": run.stable_step is not None,
            "checkpoint_step": run.step if run.stable_step is None else run.stable_step,
            "stable_rule": stable_rule(config),
            "versions": versions(),
            "device": torch.device(self.device).type,
            "command": command,
            "cpu_seconds": round(run.cpu_seconds, 1),
        }


def check_device(device: str) -> None:
    """Raise a ValueError where ``device`` is a GPU that is not there."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} was asked for, but torch {torch.__version__} finds no CUDA device; use "
            f"device='cpu' (--device cpu), or install a CUDA build of torch on a machine with a GPU."
        )


class Flushed:
    """Denormal numbers count as zero on the CPU: moments of dead units would otherwise slow AdamW down."""

    def __init__(self, device: str) -> None:
        self.wanted = torch.device(device).type == "cpu"

    def __enter__(self) -> None:
        tiny = torch.tensor(1e-40)
        self.changed = self.wanted and bool(tiny * 1.0 != 0) and torch.set_flush_denormal(True)

    def __exit__(self, *error: object) -> None:
        if self.changed:
            torch.set_flush_denormal(False)
