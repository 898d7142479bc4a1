"""E2: weight decay against the number of directions that can be removed.

One run a weight decay showed a sweet spot of resistance at 0.1. Here every weight decay has several seeds, every removal is
done in three ways (zero, mean, resample), at the last residual and at every site, and stands beside covariance-drawn subspaces
and the top principal components. Zero-ablation misleads where the activations have a large mean: it then removes a constant.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mi_ablate.studies import weight_decay_arms as arms
from mi_ablate.studies import weight_decay_claims as claims
from mi_ablate.studies import weight_decay_tables as tables
from mi_ablate.studies.cells import Cells, Checkpoint
from mi_ablate.studies.groups import Band, band
from mi_ablate.studies.isotropic import isotropic_items
from mi_ablate.studies.resistance import Curves, picture
from mi_ablate.studies.study import Findings, Study

QUESTION = (
    "Addition mod 97, two layers, d 128, 30 % of the pairs for training, seven weight decays. How many contrastive directions "
    "(singular vectors of the answers' mean activations over training pairs) can be removed before accuracy on held-out pairs "
    "first falls under 95 % of its clean value (k@95%)? Zero-ablation sets their coordinates to zero, mean-ablation to their "
    "mean, resample-ablation to another prompt's. Checkpoints are stable steps only (held-out accuracy of 0.99 or more for 300 "
    "steps); a seed's number is the mean over its stable checkpoints, a table's the median over seeds and their range."
)
PANELS = {"zero-ablation": "zero", "mean-ablation": "mean"}
CAPTION = (
    "Held-out accuracy against the contrastive directions removed at the last residual, a colour a weight decay: lines are "
    "medians over seeds, bands their range, dotted lines the medians of covariance-drawn subspaces of the same rank."
)


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the tables beside the log's, the resistance curves, and the verdicts on C2 and C3."""
    mine = cells.where(grid="weight-decay")
    decays = sorted({cell.config.weight_decay for cell in mine})
    groups = {decay: mine.where(weight_decay=decay) for decay in decays}
    curves = _curves(groups)
    return Findings(
        tables=[
            claims.by_reading(groups),
            claims.settled(groups, own),
            tables.grokking(groups),
            tables.spectra(groups),
            tables.removal(groups),
            tables.removal(groups, tables.EVERY),
            tables.readings(groups),
            tables.variances(groups),
            tables.sufficiency(groups),
            arms.matched_decay(groups, cells),
            arms.matched_after(groups),
            arms.norms(cells),
        ],
        figures={CAPTION: partial(picture, curves, "weight decay")} if curves else {},
        verdicts=[claims.resistance(groups), claims.rank(groups)],
        notes=claims.in_short(groups),
    )


def _curves(groups: tables.Groups) -> Curves:
    """By panel and weight decay: the curve of the contrastive directions and that of covariance-drawn subspaces."""
    found: dict[str, dict[str, tuple[Band, Band]]] = {}
    for title, ablation in PANELS.items():
        for decay, group in groups.items():
            pair = [
                band(group, _ks, partial(_curve, path=f"{ablation}.{run}"))
                for run in ("edited", "controls.covariance.mean")
            ]
            if pair[0] is not None and pair[1] is not None:
                found.setdefault(title, {})[f"{decay:g}"] = (pair[0], pair[1])
    return found


def _ks(at: Checkpoint) -> list[int] | None:
    found: list[int] | None = at.get("last_residual", "add", "directions.live.ks")
    return found


def _curve(at: Checkpoint, path: str) -> list[float] | None:
    found: list[float] | None = at.get("last_residual", "add", f"directions.live.{path}")
    return found


STUDY = Study(
    name="weight-decay",
    log="E2",
    title="Weight decay and resistance to removal",
    question=QUESTION,
    grids=("weight-decay", "norms", "matched-decay"),
    find=find,
    decides=("C2", "C3"),
    items=isotropic_items,
)
