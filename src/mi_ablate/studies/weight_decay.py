"""E2: weight decay against the number of directions that can be removed.

One run a weight decay showed a sweet spot of resistance at 0.1. Here every weight decay has several seeds, every removal is
done in three ways (zero, mean, resample), at the last residual and at every site, and stands beside covariance-drawn subspaces
and the top principal components. Zero-ablation misleads where the activations have a large mean: it then removes a constant.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Findings, Study, Table, Verdict

LAST, EVERY = "last_residual.directions.live", "every_site.live"
ABLATIONS = ("zero", "mean", "resample")
QUESTION = (
    "Addition mod 97, two layers, d 128, 30 % of the pairs for training, seven weight decays. How many contrastive directions "
    "can be removed before held-out accuracy first falls under 95 % of its clean value (k@95%)? Checkpoints are stable steps "
    "only; a seed's number is the mean over its stable checkpoints, a table's the median over seeds and their range."
)


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the table beside the log's, curves, and the verdicts on C2 and C3."""
    mine = cells.where(grid="weight-decay")
    decays = sorted({cell.config.weight_decay for cell in mine})
    groups = {decay: mine.where(weight_decay=decay) for decay in decays}
    return Findings(
        tables=[Table("Weight decay, grokking and rank", [_row(decay, group) for decay, group in groups.items()])],
        verdicts=[_rank(groups)],
    )


def _row(decay: float, group: Cells) -> dict[str, Any]:
    log = next((row for row in the_log.E2 if row["weight decay"] == decay), {})
    k = {a: Spread.of(cell.mean_k("add", LAST, a) for cell in group.done) for a in ABLATIONS}
    return {
        "weight decay": f"{decay:g}",
        "run": f"{len(group.done)} of {len(group)}",
        "held out": Spread.of(cell.held_out for cell in group.done).text(".3f", count=False),
        "grok step": Spread.of(cell.grok_step for cell in group.done).text(",.0f", count=False),
        "log's": log.get("grok step") or "-",
        **{f"k@95% {a}": spread.text(count=False) for a, spread in k.items()},
        "log's k": log.get("k@95%") or "-",
    }


def _rank99(cell: Cell) -> float | None:
    found = cell.last.get("class_means", "add", "all.rank99")
    return None if found is None or not cell.stable else float(found)


def _rank(groups: Mapping[float, Cells]) -> Verdict:
    spreads = {decay: Spread.of(group.values(_rank99)) for decay, group in groups.items()}
    known = [(decay, spread) for decay, spread in spreads.items() if spread.n > 1]
    ours = ", ".join(f"{decay:g}: {spread.text(count=False)}" for decay, spread in known)
    rule = "reproduced where the medians fall from each weight decay to the next; not where the largest has the highest"
    if len(known) < 3:
        return Verdict("C3", "not run", "69, 69, 43, 27", ours or "-", rule)
    medians = [spread.median for _, spread in known]
    falls = all(a > b for a, b in pairwise(medians))
    return Verdict("C3", "reproduced" if falls else "not reproduced", "69, 69, 43, 27", ours, rule)


STUDY = Study(
    name="weight-decay",
    log="E2",
    title="Weight decay and resistance to removal",
    question=QUESTION,
    grids=("weight-decay", "norms", "matched-decay"),
    find=find,
    decides=("C3",),
)
