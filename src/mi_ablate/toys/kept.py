"""Weights kept on the way: for each of ``keep_steps`` the nearest stable step, at most half way to its neighbours.

Where no stable step is near, the weights at the step itself are kept and their card says ``stable: false``. Each is one
file ``kept-STEP.safetensors`` in the run's folder. The rule looks only at the step and at the latest stable step, so an
interrupted run ends with the same files.
"""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .. import _files
from .recipes import TrainConfig

KEPT_FORMAT = "mi_ablate kept 1"


def file_of(out: Path, target: int) -> Path:
    """Return the file of the weights near the step ``target``."""
    return out / f"kept-{target}.safetensors"


def reach(targets: tuple[int, ...], target: int) -> float:
    """Return how far from ``target`` its stable step may lie: half way to the nearest other target."""
    gaps = [abs(other - target) / 2 for other in targets if other != target]
    return min(gaps) if gaps else float("inf")


def keep(
    config: TrainConfig,
    out: Path,
    step: int,
    state: dict[str, Float[Tensor, "..."]],
    stable_step: int | None,
    stable_state: dict[str, Float[Tensor, "..."]],
) -> None:
    """Write what the evaluation at ``step`` decides: at a target, and at the first stable step after one."""
    for target in config.keep_steps:
        near = reach(config.keep_steps, target)
        if step == target:
            if stable_step is not None and target - stable_step <= near:
                _write(config, out, target, stable_step, True, stable_state)
            else:
                _write(config, out, target, step, False, state)
        elif step == stable_step and 0 < step - target <= near:
            _, card = _files.read(file_of(out, target))
            if not card["stable"] or abs(card["step"] - target) > step - target:
                _write(config, out, target, step, True, state)


def _write(
    config: TrainConfig, out: Path, target: int, step: int, stable: bool, state: dict[str, Float[Tensor, "..."]]
) -> None:
    card: dict[str, Any] = {"format": KEPT_FORMAT, "target": target, "step": step, "stable": stable}
    _files.write(file_of(out, target), state, card | {"training": config.to_dict()})
