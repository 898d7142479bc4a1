"""R3: the curves of modular addition, for a toy that has learnt to decline; and C12, that refusal is one direction.

In modular addition covariance-drawn subspaces remove nearly as much as the contrastive directions, so that a curve there says
how the variance is spread. Here the same question is asked of declining: its own directions, removed at the last residual, at
every site with a basis of each site's own, and at every writer (one subspace, out of everything that is written), with zero,
mean and resample ablation, beside covariance-drawn subspaces, others drawn within the two kinds, and the top principal
components. And of the sums that the same toys still give: the answers' contrastive directions at the last residual, on open
prompts.

It misleads where fewer declines are read as sums: a broken model declines no more either, so sums recovered and open prompts
kept stand beside it. Weight decay is not varied: the 200 to 300 steps of fine-tuning at learning rate 0.001 and weight decay
0.1 shrink a weight by 3 %, so a sweet spot of weight decay cannot be asked of it.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mi_ablate import controls
from mi_ablate.curves import removal_curve
from mi_ablate.measures.bases import SPARSE, contrastive
from mi_ablate.measures.plain import curves_json
from mi_ablate.metrics import accuracy
from mi_ablate.model import last_residual
from mi_ablate.studies.cells import Cells
from mi_ablate.studies.declining_tables import ABLATIONS, PLACES, declines, figure, in_short, of_c12, of_r3, sums
from mi_ablate.studies.gated_toys import PLAIN, SEEDS, SPREAD, Taught, about, taught
from mi_ablate.studies.removals import (
    DRAWS,
    MOST,
    Found,
    brief,
    curves,
    found_in,
    runner,
    spaces_of,
    targets_of,
    variances,
)
from mi_ablate.studies.study import Findings, Item, Study
from mi_ablate.subspace import Subspace
from mi_ablate.toys.defences import residual_sites
from mi_ablate.weights import writers

QUESTION = (
    "A model that adds mod 97 is fine-tuned to answer a DECLINE token where both operands are in a secret set: plain, "
    "and spread (16 DECLINE tokens with finer reasons). How many of its declining directions must go before at most 5 "
    "% of held-out declined prompts are declined (k_kill), and how many random ones? Directions: the difference of the"
    " means of declined and open prompts, then the contrasts of the DECLINE tokens, from half of the training prompts."
)
SCORES = ("declines", "recovered", "kept")


def items(cells: Cells) -> list[Item]:
    """Return one measurement a seed and method, each training what it needs."""
    runs = cells.runs / ("gated-quick" if cells.quick else "gated")

    def take(method: str, seed: int) -> Any:
        return lambda: _measured(taught(method, seed, runs, cells.quick))

    return [
        Item(f"{method}/{seed}", {"method": method, "seed": seed}, take(method, seed), 10.0 if cells.quick else 60.0)
        for seed in (SEEDS[:2] if cells.quick else SEEDS)
        for method in (PLAIN, SPREAD)
    ]


def _measured(toy: Taught) -> dict[str, Any]:
    found = found_in(toy.model, toy.prompts)
    at = dict(zip(PLACES, (writers(toy.model), residual_sites(toy.settings.config), [last_residual(toy.model)])))
    curves_at = {place: _curves(toy, found, list(names), place) for place, names in at.items()}
    return {"held_out": about(toy), "choice": brief(found), "declines": curves_at, "sums": _sums(toy, found)}


def _curves(toy: Taught, found: Found, at: list[str], place: str) -> dict[str, Any]:
    """Scores along k by ablation and run, random runs as means over their draws, and the share of the variance removed."""
    rows, ks = toy.prompts.held_out, range(MOST + 1)
    if place == PLACES[0]:
        one = spaces_of(found, toy.prompts, found.site)
        spaces = {run: dict.fromkeys(at, space) for run, space in one.items()}
        shares = [variances(found.acts[found.site], one, ks)]
    else:
        each = {site: spaces_of(found, toy.prompts, site) for site in at}
        spaces = {run: {site: each[site][run] for site in at} for run in each[at[0]]}
        shares = [variances(found.acts[site], each[site], ks) for site in at]
    run = runner(toy.model, toy.prompts, rows, at)
    told: dict[str, Any] = {"variance": _over_draws({n: [fmean(s[n][k] for s in shares) for k in ks] for n in spaces})}
    for ablation in ABLATIONS:
        got = curves(run, spaces, targets_of(ablation, toy.model, toy.prompts, found, rows, at), ks)
        by = {
            score: _over_draws({n: [point[score] for point in curve] for n, curve in got.items()}) for score in SCORES
        }
        told[ablation] = {name: {score: by[score][name] for score in SCORES} for name in by[SCORES[0]]}
    return told


def _over_draws(values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Means over "covariance 0", "covariance 1", ... and so on; the others as they are."""
    groups: dict[str, list[Sequence[float]]] = {}
    for name, row in values.items():
        groups.setdefault(name.split(" ")[0], []).append(row)
    return {name: [fmean(column) for column in zip(*rows)] for name, rows in groups.items()}


def _sums(toy: Taught, found: Found) -> dict[str, Any]:
    """Accuracy on open held-out prompts along the answers' contrastive directions at the last residual, by ablation."""
    prompts, last = toy.prompts, last_residual(toy.model)
    half = ~prompts.gated[prompts.a]
    acts, rows = found.acts[last][half], prompts.held_out[~prompts.gated[prompts.held_out]]
    basis: dict[str, Subspace] = {last: contrastive(acts, prompts.sums[prompts.a][half], last)}
    against = {"covariance": controls.covariance({last: acts}), "pca": controls.pca({last: acts})}
    return curves_json({
        ablation: removal_curve(
            toy.model, prompts.tokens[rows], basis, accuracy(prompts.sums[rows]), ks=[k for k in SPARSE if k <=
            basis[last].rank], ablation=ablation, controls=against, draws=DRAWS, ) for ablation in ABLATIONS })  # fmt: skip


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the tables of both behaviours, the curves of declining, and the verdicts on R3 and C12."""
    by: dict[str, list[Any]] = {PLAIN: [], SPREAD: []}
    for line in own.values():
        by[line["about"]["method"]].append(line["result"])
    caption = (
        "Share of held-out declined prompts that are declined against the directions zeroed at every writer: lines are"
        " medians over seeds, bands their range, grey lines the medians of covariance-drawn subspaces of the same "
        "rank."
    )
    return Findings(
        tables=[declines(by), sums(by)],
        figures={caption: lambda: figure(by)} if any(by.values()) else {},
        verdicts=[of_r3(by), of_c12(by)],
        notes=(
            *in_short(by),
            "A sweet spot of weight decay is not asked for here: fine-tuning takes 200 to 300 steps, and learning rate x "
            "weight decay x steps is 0.03.",
        ),
    )


STUDY = Study(
    name="declining",
    log="R3",
    title="The curves of a toy that declines",
    question=QUESTION,
    grids=(),
    find=find,
    decides=("R3", "C12"),
    items=items,
)
