"""Random directions of all of space, the null that the removal of directions is often compared with.

They hold about k / d of the variance, so many can be removed before a model notices. Measured from the recorded weights at the
last residual under mean-ablation, on the records' held-out pairs.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mi_ablate import controls
from mi_ablate.curves import removal_curve
from mi_ablate.measures.plain import curve_json
from mi_ablate.measures.subject import DRAWS
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.groups import certain, said, spread
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Item
from mi_ablate.studies.weight_decay_tables import LAST, Groups, Row, k_of

STEP = 4
"""Directions between two measured k, to the rank of the contrastive basis."""


def isotropic_items(cells: Cells) -> list[Item]:
    """Return one measurement a run that has recorded weights of a stable step: about 2 seconds on one core."""
    found = []
    for cell in cells.where(grid="weight-decay").done:
        kept = [entry for entry in cell.record["weights"] if entry["stable"]] if cell.record else []
        if kept:
            step = max(entry["step"] for entry in kept)
            about = {"weight_decay": cell.config.weight_decay, "seed": cell.config.seed, "step": step}
            found.append(Item(_key(cell, step), about, partial(take, cell, step), 2.0))
    return found


def take(cell: Cell, step: int) -> dict[str, Any] | None:
    """Return the curve of isotropic subspaces beside that of the contrastive directions; None in a collapsed model."""
    one = cell.subject(step).operations["add"]
    if one.bases is None or not one.measurable:
        return None
    basis, model = one.bases[one.last], one.task.toy.model
    drawn = {"isotropic": controls.isotropic(basis.d)}
    ks = range(0, basis.rank + 1, STEP)
    curve = removal_curve(
        model, one.held_tokens, {one.last: basis}, one.metric, ks=ks, ablation="mean", controls=drawn, draws=DRAWS
    )  # fmt: skip
    return {"ks": list(ks), "variance_removed": curve.variance_removed["isotropic"], **curve_json(curve)}


def isotropic_k(groups: Groups, own: Mapping[str, Any]) -> Row:
    """Return the row that sets the k of isotropic subspaces beside that of covariance-drawn ones."""
    numbers, outcome = [], {}
    for decay, group in groups.items():
        mine = [
            line["result"] for line in own.values() if line["about"].get("weight_decay") == decay and line["result"]
        ]
        drawn = spread(group, k_of(LAST, "mean", run="covariance"))
        blind = Spread.of(_read(one) for one in mine)
        share = Spread.of(one["variance_removed"][one["ks"].index(20)] for one in mine if 20 in one["ks"])
        if min(drawn.n, blind.n) > 1:
            texts = [drawn.centre.text(), blind.centre.text(), share.centre.text(".2f")]
            numbers.append(f"{decay:g}: {' / '.join(texts)}")
            outcome[decay] = certain(lambda mine, other: mine >= 2 * other, blind.centre, drawn.centre)
    return {
        "suggested": "Isotropic subspaces are too easy a null",
        "holds where": "their median k (mean-ablation) is at least twice that of covariance-drawn ones",
        "numbers": f"k drawn / isotropic / variance in 20 isotropic directions: {', '.join(numbers) or '-'}",
        "holds": said(outcome),
    }


def _read(result: Mapping[str, Any]) -> Value | None:
    k = result["k"]["isotropic"]["0.95"]["first"]["relative"]
    return None if k is None else Value(float(k["k"]), k["censored"])


def _key(cell: Cell, step: int) -> str:
    return f"isotropic {cell.key}@{step}"
