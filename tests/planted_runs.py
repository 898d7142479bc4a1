"""Runs of one or several operations whose curves, overlaps and ranks are told, as cells of the declared grids."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.sweep import GRIDS
from mi_ablate.toys.recipes import TrainConfig

MOST = 41


@dataclass(frozen=True)
class Plan:
    """What one checkpoint holds, of all its operations alike."""

    k: int = 2
    """k@95%: from the next direction on the operation keeps 0.9 of its accuracy, until it is killed."""
    dies: int = 12
    """The first k at which its accuracy is nothing."""
    spares: int = MOST
    """How many of its directions the other operations survive."""
    control_dies: int = 40
    """The first k of both controls at which its accuracy is nothing; their k@95% is half of that."""
    overlap: float = 0.2
    null: float = 0.4
    rank: int = 20
    stable: bool = True
    loss: float = 0.01
    dip: float = 1.0
    """The held-out accuracy 100 steps before."""


@dataclass(frozen=True)
class Same:
    """The same plan at every kept step."""

    plan: Plan

    def __call__(self, step: int) -> Plan:
        return self.plan


Course = Callable[[int], Plan]


def planted(grids: dict[str, Callable[[TrainConfig], Course | None]]) -> Cells:
    """Return the cells of declared grids; a cell of which no course is told is not run."""
    cells = []
    for grid, told in grids.items():
        for config in GRIDS[grid].cells:
            course = told(config)
            record = None if course is None else _record(config, course)
            cells.append(Cell(config, grid, record, Path("nowhere")))
    return Cells(tuple(cells))


def by_seed(*plans: Plan | None) -> Callable[[TrainConfig], Course | None]:
    """Return the course of each seed; of further seeds none is told."""
    return lambda config: Same(found) if (found := dict(enumerate(plans)).get(config.seed)) is not None else None


def _record(config: TrainConfig, course: Course) -> dict[str, Any]:
    names = config.config.operations
    entries = [
        {"target": step, "step": step, "stable": course(step).stable, "measures": _measures(names, course(step))}
        for step in config.keep_steps
    ]
    scores = {"train": 1.0, "held_out": 0.99}
    per = {name: {"grok_step": 500, "accuracy": scores} for name in names}
    dips = [[step - 100, 0.1, 1.0, 0.2, course(step).dip] for step in config.keep_steps]
    training = {"steps": config.steps, "grok_step": 500, "accuracy": scores, "per_operation": per, "history": dips}
    return {"metrics": {"training": training, "checkpoints": entries}}


@cache
def _measures(names: tuple[str, ...], plan: Plan) -> dict[str, Any]:
    own = {"directions": {"live": _curves(plan.k, plan.dies, plan.control_dies)}}
    beside = _curves(plan.spares, plan.spares + 1, 3 * MOST)
    drawn = {"mean": plan.null}
    overlap = {
        "squared": plan.overlap,
        "cosine": plan.overlap**0.5,
        "isotropic": {"squared": {"mean": 0.08}, "cosine": {"mean": 0.2}},
        "covariance": {"squared": drawn, "cosine": drawn},
        "split_half": {name: {"squared": 0.9, "cosine": 0.95} for name in names},
    }
    means = {"rank99": plan.rank, "dims95": plan.rank - 2, "participation": plan.rank / 2}
    others = {one: [other for other in names if other != one] for one in names}
    return {
        "last_residual": dict.fromkeys(names, own),
        "every_site": {name: {"live": _curves(1, 2, 3)} for name in names},
        "collateral": {one: {other: beside for other in rest} or None for one, rest in others.items()},
        "overlap": {
            one: {other: dict.fromkeys(("5", "10", "20", "30"), overlap) for other in rest} or None
            for one, rest in others.items()
        },
        "class_means": {name: {"all": means} for name in names},
        "accuracy": {name: {"held_out": {"loss": plan.loss}} for name in names},
    }


def _curves(k: int, dies: int, control_dies: int) -> dict[str, Any]:
    def curve(keeps: int, end: int) -> list[float]:
        return [1.0 if i <= keeps else 0.9 if i < end else 0.01 for i in range(MOST + 1)]

    def read(at: int) -> dict[str, Any]:
        one = {"k": min(at, MOST), "censored": at >= MOST, "upper": at}
        return {
            tau: {rule: {"relative": one, "absolute": one} for rule in ("first", "hull")} for tau in ("0.95", "0.5")
        }

    drawn = curve(control_dies // 2, control_dies)
    one = {
        "edited": curve(k, dies), "controls": {"covariance": {"mean": drawn}, "pca": {"mean": drawn}},
        "k": {"edited": read(k), "covariance": read(control_dies // 2), "pca": read(control_dies // 2)},
    }  # fmt: skip
    return {"ks": list(range(MOST + 1)), **dict.fromkeys(("zero", "mean", "resample"), one)}
