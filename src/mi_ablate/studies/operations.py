"""Q8: does an operation lose directions with every operation that is learnt beside it?

Addition alone, beside multiplication, and beside multiplication and subtraction, at weight decay 1. The runs of one operation
take 6,000 steps and those of several 40,000, so each is also read at the stable checkpoint nearest to 4,000 steps after it
grokked. Subtraction is no third circuit of its own kind: it may use addition's frequencies, which would make three operations
cost no more than two; a number that does not fall beside it says little of unrelated tasks.
"""

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Any

from mi_ablate.studies.cells import Cells
from mi_ablate.studies.course import WORDS
from mi_ablate.studies.groups import counted, hours, told
from mi_ablate.studies.last_checkpoint import also_late
from mi_ablate.studies.orderings import lower
from mi_ablate.studies.overlaps import overlap_at, reading, reference_at
from mi_ablate.studies.selective import LAST, alone, kills_selectively, over_seeds, rank99
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Findings, Study, Table, Verdict
from mi_ablate.studies.two_tasks_tables import ABLATIONS, AFTER, EVERY, matched

RUNS = {"edited": "", "covariance": ", covariance-drawn", "pca": ", top PCA"}
QUESTION = (
    "One, two and three operations mod 97 in one model of two layers, d 128, weight decay 1. How many contrastive "
    "directions of an operation can be removed before its held-out accuracy first falls under 95 % of its clean "
    "value, and does the number fall with the number of operations?"
)


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return k by operation and number of operations, the pairs' overlaps, and the verdict on Q8."""
    groups = by_count(cells)
    learnt = {count: group.cells[0].config.config.operations for count, group in groups.items()}
    rows = [(count, groups[count], one) for count, names in learnt.items() for one in names]
    pairs = [(count, groups[count], *pair) for count, names in learnt.items() for pair in combinations(names, 2)]
    return Findings(
        tables=[
            Table("k@95% by the number of operations, last residual", [_row(*row) for row in rows]),
            Table(
                "k@95% of addition at every site, and at the last residual at one time after grokking",
                [_matched(count, group) for count, group in groups.items()],
                f"Then: the stable checkpoint nearest to {AFTER:,} steps after the model grokked (mean of its operations).",
            ),
            Table(
                "Rank99 and selective kills",
                [_kill(*row) for row in rows],
                "A kill leaves the operation under 50 % and every other at 99 % of its clean accuracy (mean ablation).",
            ),
            Table("Overlap of each pair, leading 10 directions", [_pair(*pair) for pair in pairs]),
        ],
        verdicts=[also_late(lambda some: _falls(by_count(some)), cells)],
    )


def by_count(cells: Cells) -> dict[int, Cells]:
    """Return the cells by how many operations they learn, one setting otherwise."""
    found = {1: alone(cells), 2: cells.where(grid="two-tasks"), 3: cells.where(grid="three-tasks")}
    return {count: group for count, group in found.items() if len(group)}


def _row(count: int, group: Cells, one: str) -> dict[str, Any]:
    ks = {
        f"{ablation}{name}": told(group, lambda at, a=ablation, r=run: at.k(one, LAST, a, run=r))  # type: ignore[misc]
        for ablation in ABLATIONS for run, name in RUNS.items() if ablation != "resample" or run == "edited"
    }  # fmt: skip
    return {"operations": count, "operation": WORDS[one], "stable seeds": _counted(group), **ks}


def _counted(group: Cells) -> str:
    return counted(group) if group.done else hours(group)


def _matched(count: int, group: Cells) -> dict[str, Any]:
    def then(ablation: str) -> str:
        found = Spread.of(
            group.values(lambda cell: None if (at := matched(cell)) is None else at.k("add", LAST, ablation))
        )
        return found.text(count=False) if found.n else "-" if group.done else "not run"

    every = {f"every site, {a}": told(group, lambda at, a=a: at.k("add", EVERY, a)) for a in ABLATIONS}  # type: ignore[misc]
    return {"operations": count, **every, **{f"last residual, {a}, then": then(a) for a in ABLATIONS}}


def _kill(count: int, group: Cells, one: str) -> dict[str, Any]:
    texts = {
        f"kill{name}": over_seeds(group, lambda cell, r=run: kills_selectively(cell, one, run=r)) if count > 1 else "-"  # type: ignore[misc]
        for run, name in RUNS.items()
    }
    return {"operations": count, "operation": WORDS[one], "Rank99": told(group, lambda at: rank99(at, one)), **texts}


def _pair(count: int, group: Cells, one: str, other: str) -> dict[str, Any]:
    pair = (one, other)
    references = {
        name: told(group, reading(reference_at, 10, name, "squared", pair), ".2f")
        for name in ("isotropic", "covariance-drawn", "split half")
    }
    found = told(group, reading(overlap_at, 10, "squared", pair), ".2f")
    return {"operations": count, "pair": f"{WORDS[one]}, {WORDS[other]}", "overlap": found, **references}


def _falls(groups: Mapping[int, Cells]) -> Verdict:
    """Q8: does addition's k fall from one operation to two to three?"""
    rule = (
        "k@95% of addition at the last residual, one -> two -> three operations, zero and mean ablation, at least two "
        "seeds for each: yes where under both ablations it is lower at each further operation in at least 90 "
        "% of the pairs of seeds, no where under both it is lower at three than at one in at most 10 % of the "
        "pairs; undecided between, or where three are not run; not run where one and two are not"
    )
    told_of, steps, ends = [], [], []
    for ablation in ("zero", "mean"):
        found = {
            count: Spread.of(cell.mean_k("add", LAST, ablation) for cell in group.done)
            for count, group in groups.items()
        }
        known = {count: ks for count, ks in found.items() if ks.n > 1}
        if not {1, 2} <= set(known):
            return Verdict("Q8", "not run", "11 alone -> 2 of two", "-", rule)
        told_of.append(f"{ablation} " + " -> ".join(ks.text(".2g", False) for ks in found.values() if ks.n))
        steps += [lower(b, a) for a, b in pairwise(known.values())]
        ends.append(lower(known[max(known)], known[1]))
    three = 3 in groups and sum(bool(cell.stable) for cell in groups[3].done) > 1
    verdict = "undecided"
    if three and all(steps):
        verdict = "yes"
    elif three and all(end is False for end in ends):
        verdict = "no"
    return Verdict("Q8", verdict, "11 alone -> 2 of two", ", ".join(told_of), rule)


STUDY = Study(
    name="operations",
    log="Q8",
    title="One, two and three operations",
    question=QUESTION,
    grids=("weight-decay", "two-tasks", "three-tasks"),
    find=find,
    decides=("Q8",),
)
