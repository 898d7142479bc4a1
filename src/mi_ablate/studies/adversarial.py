"""E7: training against abliteration, and whether it is the model's own directions that make it resist.

Every tenth step, after a warm-up, the loss also asks for the right answer once the model's own contrastive directions
are projected out of its last residual stream (`mi_ablate.toys.penalty`). A model that is trained to do without 10 of
its 128 directions may resist because of *which* directions these were, or because losing any part as large makes it
spread what it knows: dropout in disguise. So the same penalty with covariance-drawn subspaces stands beside it, and
differences are taken seed by seed. When it misleads: resistance measured with the directions that were trained on is
the least that such training must show; `untrained_directions` attacks with others.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mi_ablate.studies.adversarial_claims import method_decides, resists, trilemma
from mi_ablate.studies.adversarial_tables import tables
from mi_ablate.studies.cells import Cells
from mi_ablate.studies.groups import Band, band
from mi_ablate.studies.penalties import BASELINE, DRAWN, OPERATIONS, OWN, WORDS, Arms, arms
from mi_ablate.studies.resistance import Curves, picture
from mi_ablate.studies.selective import curve_of
from mi_ablate.studies.study import Findings, Study

QUESTION = (
    "Addition and multiplication mod 97 in one model (two layers, d 128, weight decay 1, 40,000 steps). From step "
    "10,000 on, at every tenth step, 10 directions are projected out of the batch's last residual stream (before the "
    "final norm, each operation its own, zero-ablation) and the cross-entropy of what is left joins the loss with "
    "weight 0.1. The directions are the model's own contrastive ones of that moment, from 2,048 training prompts and "
    "without gradients through them; in the control arm, covariance-drawn subspaces. The research log does not say "
    "how many directions it removes, or where. Does the model then survive more removals, does its answer fill more "
    "dimensions, can an operation still be killed alone, and is it the directions that matter? Related work trains "
    "language models against the removal of a refusal direction (ReFAT, arXiv 2409.20089), against perturbed "
    "activations (latent adversarial training, arXiv 2403.05030), reroutes harmful representations (circuit "
    "breakers, arXiv 2406.04313), or spreads refusal by longer answers (extended refusal, arXiv 2505.19056)."
)
CAPTION = (
    "Held-out accuracy of each operation against the number of its contrastive directions removed at the last "
    "residual (zero-ablation), by what the model was trained against: lines are medians over seeds, bands their "
    "range, dotted lines the medians of covariance-drawn subspaces of the same rank."
)


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the arms' tables beside the log's, the curves, and the verdicts on C8, C10 and C11."""
    found = arms(cells)
    curves = _curves(found)
    return Findings(
        tables=tables(found),
        figures={CAPTION: partial(picture, curves, "trained against")} if curves else {},
        verdicts=[resists(found), method_decides(found, cells), trilemma(cells)],
    )


def _curves(found: Arms) -> Curves:
    """By operation and arm: the curve of the contrastive directions and that of covariance-drawn subspaces."""
    curves: dict[str, dict[str, tuple[Band, Band]]] = {}
    for one in OPERATIONS:
        for arm in (BASELINE, DRAWN, OWN):
            pair = [_band(found[arm], one, run) for run in ("edited", "covariance")]
            if pair[0] is not None and pair[1] is not None:
                curves.setdefault(WORDS[one], {})[arm] = (pair[0], pair[1])
    return curves


def _band(group: Cells, one: str, run: str) -> Band | None:
    def curve(at: Any) -> list[float] | None:
        return curve_of(at, one, one, "zero", run)

    return band(group, lambda at: None if (found := curve(at)) is None else list(range(len(found))), curve)


STUDY = Study(
    name="adversarial",
    log="E7",
    title="Training against removal",
    question=QUESTION,
    grids=("two-tasks", "adversarial", "adversarial-arms", "capacity", "weight-decay"),
    find=find,
    decides=("C8", "C10", "C11"),
)
