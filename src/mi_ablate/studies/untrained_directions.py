"""Q4: does a model that was trained against its contrastive directions resist directions that it was not trained on?

The last weights of each run are attacked at the last residual stream with directions of seven kinds
(`subspace_attacks`): those that training removed, top principal components, what LEACE takes out, a probe's, and two
searches on training pairs; then scored on held-out pairs. When it misleads: top principal components and contrastive
directions nearly agree in these models, so an attack of another name need not be another attack; and a search that
fails proves nothing.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from mi_ablate.studies.attack_tables import SHOWN, Taken, curve_of, key_of, middle, step_of, survived, tables
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.penalties import BASELINE, DRAWN, OPERATIONS, OWN, Arms, arms, differences
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Findings, Item, Study, Table, Verdict
from mi_ablate.studies.subspace_attacks import FIXED, SEARCHED, attacked

TRAINED, OTHERS = FIXED[0], (*FIXED[1:], *SEARCHED)
KEPT = 0.5
"""Share of its advantage that a model must keep under the strongest attack to be said to survive it."""
QUESTION = (
    "Models of addition and multiplication, trained with and without a penalty on the removal of ten of their own "
    "contrastive directions (zero-ablation), are attacked at the last residual stream with directions that the "
    "training never removed: top principal components, LEACE's, a logistic probe's (the first round of INLP), "
    "subspaces of each rank found by gradient ascent of the loss, and the worst of 64 covariance-drawn ones. All are "
    "found on training pairs and scored on held-out pairs. How many directions of each kind can be removed before "
    "accuracy first falls under 95 % of its clean value, and how many halve it?"
)
CAPTION = (
    "Held-out accuracy (mean of both operations) against the number of directions removed by zero-ablation at the "
    "last residual: the kind that the penalty removes in training, and those found by gradient. Lines are medians "
    "over seeds, bands their range, dotted lines covariance-drawn subspaces."
)


def items(cells: Cells) -> list[Item]:
    """Return the attacks on each operation of every run."""
    found = []
    for cell in cells.done:
        for one in cell.config.config.operations:
            about = {
                "grid": cell.grid,
                "cell": cell.key,
                "seed": cell.config.seed,
                "step": step_of(cell),
                "operation": one,
            }
            found.append(Item(key_of(cell, one), about, partial(_take, cell, one), seconds=40.0))
    return found


def _take(cell: Cell, one: str) -> Any:
    return attacked(cell.subject().operations[one])


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the attacks' tables, their curves, and the verdict on Q4."""
    taken = Taken(own)
    found = {arm: group for arm, group in arms(cells).items() if arm in SHOWN}
    measured = any(middle(taken, group, "zero", TRAINED) is not None for group in found.values())
    return Findings(
        tables=tables(taken, found) if measured else [Table("Attacks at the last residual", [])],
        figures={CAPTION: partial(picture, taken, found)} if measured else {},
        verdicts=[survives(taken, found)],
    )


def picture(taken: Taken, found: Arms) -> Any:
    """Return the plotly figure of two attacks, a panel each, a line an arm."""
    from mi_ablate.figures import panels

    attacks = {"contrastive, as in training": TRAINED, "found by gradient": SEARCHED[0]}
    bands = {
        title: {arm: band for arm, group in found.items() if (band := middle(taken, group, "zero", attack)) is not None}
        for title, attack in attacks.items()
    }
    drawn = {arm: middle(taken, group, "zero", "covariance-drawn") for arm, group in found.items()}
    return panels(
        max((band.x for row in bands.values() for band in row.values()), key=lambda x: x[-1]),
        {title: {arm: band.median for arm, band in row.items()} for title, row in bands.items()},
        bands={title: {arm: band.ends for arm, band in row.items()} for title, row in bands.items()},
        controls={
            title: {arm: drawn[arm].median for arm in row if drawn[arm] is not None}  # type: ignore[union-attr]
            for title, row in bands.items()
        },
        control="covariance-drawn subspaces",
        names="trained against",
        axes=("directions removed", "held-out accuracy"),
        level=0.95,
    )


def strongest(taken: Taken, cell: Cell, ablation: str, attacks: tuple[str, ...]) -> tuple[Value, list[str]] | None:
    """Return the mean over operations of the smallest k@95% under these attacks, and the attack that has it for "
    "each."""
    least: list[tuple[Value, str]] = []
    for one in OPERATIONS:
        known = [
            (k, name) for name in attacks if (k := survived(curve_of(taken, cell, one, ablation, name))) is not None
        ]
        if not known:
            return None
        least.append(min(known, key=lambda pair: (pair[0].number, pair[0].censored)))
    return Value.mean([k for k, _ in least]), [name for _, name in least]


def survives(taken: Taken, found: Arms) -> Verdict:
    """Q4: does the advantage over the model without a penalty hold under the strongest attack?"""
    rule = (
        "k@95% by zero-ablation at the last residual, mean of both operations, each seed against the model without a "
        "penalty of the same seed: its advantage under the directions of the kind trained against, and under the "
        "strongest attack of the others on each model. Yes where the first is above 0 and the second at least half "
        "of it in every seed, no where the second is less than half in every seed; undecided where seeds disagree, "
        "or a model does not resist what it was trained against; not run for fewer than two pairs of seeds"
    )
    kinds = {"trained": (TRAINED,), "others": OTHERS}
    ks = {
        (arm, kind): {
            cell.config.seed: strong[0]
            for cell in group.done if (strong := strongest(taken, cell, "zero", attacks)) is not None
        }
        for arm, group in found.items() for kind, attacks in kinds.items()
    }  # fmt: skip
    gains = {kind: differences(ks[OWN, kind], ks[BASELINE, kind]) for kind in kinds}
    shared = [seed for seed in ks[OWN, "others"] if seed in ks[BASELINE, "others"]]
    if len(shared) < 2 or min(gain.n for gain in gains.values()) < 2:
        return Verdict("Q4", "not run", "-", "-", rule)
    pairs = [tuple(ks[OWN, k][s].number - ks[BASELINE, k][s].number for k in kinds) for s in shared]
    answers = {other >= KEPT * trained for trained, other in pairs}
    resists = all(trained > 0 for trained, _ in pairs)
    verdict = "undecided" if len(answers) > 1 or not resists else "yes" if answers == {True} else "no"
    texts = [
        f"{words}: {_text(ks[BASELINE, kind])} -> {_text(ks[OWN, kind])}, "
        f"covariance-drawn penalty {_text(ks[DRAWN, kind])}"
        for kind, words in (
            ("trained", "k under contrastive directions"),
            ("others", "under the strongest of the others"),
        )
    ]
    names = Counter(
        name
        for cell in found[OWN].done
        if (strong := strongest(taken, cell, "zero", OTHERS)) is not None
        for name in strong[1]
    )
    most = ", ".join(f"{name} {count}" for name, count in names.most_common())
    return Verdict("Q4", verdict, "-", f"{'; '.join(texts)}; strongest, by seed and operation: {most}", rule)


def _text(values: Mapping[int, Value]) -> str:
    return Spread.of(values.values()).text()


STUDY = Study(
    name="untrained-directions",
    log="Q4",
    title="Attacks with directions that were not trained against",
    question=QUESTION,
    grids=("two-tasks", "adversarial"),
    find=find,
    decides=("Q4",),
    items=items,
)
