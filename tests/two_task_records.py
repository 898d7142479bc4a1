"""Records of models with two operations whose curves, dimensions and overlaps are told."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from mi_ablate.studies import Study
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.sweep.grids import key_of
from mi_ablate.toys.recipes import TrainConfig

MOST = 40


@dataclass(frozen=True)
class Told:
    """What a run's checkpoints hold: k@95% of its directions, dimensions, and what its removals do to the other "
    "operation."""

    k: int = 3
    control: int = 5
    dims: int = 12
    shared: bool = False
    """Whether the other operation falls where this one does."""
    overlap: float = 0.2
    learnt: bool = True
    before: "Told | None" = None
    """What the checkpoints up to half of the steps hold, where that is something else."""


def two_task_cells(study: Study, told: Callable[[Cell], Told | None], quick: bool = False) -> Cells:
    """Return the cells of a study's grids, run where something is told of them."""
    found = []
    for cell in _declared(study, quick):
        one = told(cell)
        found.append(cell if one is None else Cell(cell.config, cell.grid, record_of(cell.config, one), cell.results))
    return Cells(tuple(found))


@cache
def _declared(study: Study, quick: bool) -> Cells:
    return Cells.load(study.declared(quick), "nowhere", quick=quick)


def record_of(config: TrainConfig, told: Told) -> dict[str, Any]:
    """Return a record with one entry a kept step."""
    steps = config.keep_steps or (config.steps,)
    entries = [
        {"target": s, "step": s, "stable": told.learnt,
         "measures": _measures(config, told if told.before is None or 2 * s > config.steps else told.before)}
        for s in steps
    ]  # fmt: skip
    training = {
        "steps": config.steps,
        "checkpoint_step": config.steps,
        "grok_step": 100 if told.learnt else None,
        "accuracy": {"held_out": float(told.learnt)},
    }
    weights = [{"file": "none", "step": config.steps, "stable": told.learnt, "sha256": ""}]
    metrics = {"training": training, "checkpoints": entries}
    return {"key": key_of(config), "status": "done", "weights": weights, "metrics": metrics}


def curve(k: int, clean: float = 1.0) -> list[float]:
    """Accuracy that is clean up to k directions and 0.01 from there on."""
    return [clean if i <= k else 0.01 for i in range(MOST + 1)]


@cache
def _curves(k: int, control: int, clean: float) -> dict[str, Any]:
    def read(at: int) -> dict[str, Any] | None:
        return {"k": min(at, MOST), "censored": at >= MOST, "upper": at} if clean > 0.9 else None

    def reading(at: int) -> dict[str, Any]:
        return {tau: {rule: {scale: read(at) for scale in ("relative", "absolute")} for rule in ("first", "hull")}
                for tau in ("0.95", "0.5")}  # fmt: skip

    one = {
        "edited": curve(k, clean),
        "controls": {name: {"mean": curve(control, clean)} for name in ("covariance", "pca")},
        "k": {"edited": reading(k), "covariance": reading(control), "pca": reading(control)},
    }
    return {"ks": list(range(MOST + 1)), **{ablation: one for ablation in ("zero", "mean", "resample")}}


def _measures(config: TrainConfig, told: Told) -> dict[str, Any]:
    names, clean = config.config.operations, 1.0 if told.learnt else 0.03
    own, beside = (_curves(k, told.control, clean) for k in (told.k, told.k if told.shared else MOST))
    drawn = {"squared": told.overlap, "cosine": told.overlap}
    overlap = {**drawn, "isotropic": {"squared": {"mean": 0.04}, "cosine": {"mean": 0.1}},
               "covariance": {key: {"mean": 0.4} for key in drawn}, "split_half": {name: drawn for name in names}}  # fmt: skip
    means = {"all": {"rank99": told.dims + 5, "dims95": told.dims, "participation": float(told.dims)}}
    others = {one: [other for other in names if other != one] for one in names}
    return {
        "last_residual": {one: {"directions": {"live": own, "frozen": own}, "planes": None} for one in names},
        "every_site": {one: {"live": own, "frozen": own} for one in names},
        "collateral": {one: {other: beside for other in others[one]} or None for one in names},
        "class_means": dict.fromkeys(names, means),
        "overlap": {
            one: {o: dict.fromkeys(("5", "10", "20", "30"), overlap) for o in others[one]} or None for one in names
        },
    }
