"""Weights kept on the way: for each of ``keep_steps`` the nearest stable step, at most half way to its neighbours.

Where no stable step is so near, the weights at the step itself are kept and their card says ``stable: false``; of two
that are equally near, the earlier is. Each is one file ``kept-STEP.safetensors`` in the run's folder, written at the step
and, where a nearer stable step comes after it, once more. The rule looks only at this evaluation and at the latest stable
step before it, so an interrupted run ends with the same files.

Misleads where: a run that stops early (``stop_when_stable_for``) has no file for the steps that it never reached, and
where it stopped between a step and the stable step that would have been nearest, it has the weights from before. Files
that an earlier run left for other ``keep_steps`` stay; the card names the configuration that each is of.
"""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .. import _files
from .recipes import TrainConfig
from .stepper import Run

KEPT_FORMAT = "mi_ablate kept 1"


def file_of(out: Path, target: int) -> Path:
    """Return the file of the weights near the step ``target``."""
    return out / f"kept-{target}.safetensors"


def reach(targets: tuple[int, ...], target: int) -> float:
    """Return how far from ``target`` its stable step may lie: half way to the nearest other target."""
    gaps = [abs(other - target) / 2 for other in targets if other != target]
    return min(gaps) if gaps else float("inf")


def keep(config: TrainConfig, out: Path, run: Run, is_stable: bool) -> None:
    """Write what the evaluation at ``run.step`` decides; ``run.stable_step`` is still the latest before it."""
    step, before = run.step, run.stable_step
    for target in config.keep_steps:
        near = reach(config.keep_steps, target)
        gap = float("inf") if before is None else float(target - before)
        if step == target and not is_stable and before is not None and gap <= near:
            _write(config, out, target, before, True, run.stable_state)
        elif step == target:
            _write(config, out, target, step, is_stable, run.stepper.state())
        elif is_stable and 0 < step - target <= near and step - target < gap:
            _write(config, out, target, step, True, run.stepper.state())


def _write(
    config: TrainConfig, out: Path, target: int, step: int, stable: bool, state: dict[str, Float[Tensor, "..."]]
) -> None:
    card: dict[str, Any] = {"format": KEPT_FORMAT, "target": target, "step": step, "stable": stable}
    _files.write(file_of(out, target), state, card | {"training": config.to_dict()})
