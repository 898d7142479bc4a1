"""E8, Q9 and R2: do two circuits separate as training goes on, and is the course monotone?

The research log compares two runs: 65,000 steps, not fully grokked, with an overlap of 0.38 at k = 10, and a longer one with
0.28. Here the runs of two operations are measured at six steps each, and a seed's trend is Spearman's correlation with the step
over its stable checkpoints. Rank along training stands beside it: Schiffman (arXiv 2602.22600) reports that the core of a
grokked model *grows* under continued weight decay (15 to 60 dimensions, mod 53), which is the opposite of concentration.

Learning rate and weight decay are the same in all of these runs (0.001 and 1), so learning rate x weight decay x steps is the
step divided by 1,000: the two cannot be told apart here. A few checkpoints of one run are no independent samples either;
intervals are over seeds.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mi_ablate.studies.cells import Cell, Cells, Checkpoint
from mi_ablate.studies.course import OPERATIONS, WORDS, K, changes, course_rows, with_loss
from mi_ablate.studies.groups import told
from mi_ablate.studies.orderings import signs, trend
from mi_ablate.studies.overlaps import REFERENCES, overlap_at, reading, reference_at, relative_at
from mi_ablate.studies.selective import LAST, MEAN, rank99, selective_kill
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Findings, Study, Table, Verdict

SMALL = 0.01
"""A rise of the overlap that does not count against a monotone fall."""
LOG = "0.38 at 65,000 steps, 0.28 later"
QUESTION = (
    "The runs of addition and multiplication in one model, measured near 15,000, 20,000, ... 40,000 steps; a "
    "checkpoint counts where it is stable (held-out accuracy of both operations at least 0.99 for 300 steps). How "
    "do the overlap of the two operations' leading 10 directions, the number of directions that can be removed, and "
    "the rank of the class means go along? Learning rate x weight decay x steps is the step divided by 1,000 in all "
    "of them."
)
Number = Callable[[Checkpoint], Value | float | None]


def measured() -> dict[str, Number]:
    """Return what is followed along training, by name."""
    found: dict[str, Number] = {
        "overlap": reading(overlap_at, K),
        "overlap / covariance-drawn": reading(relative_at, K),
        "overlap / split half": _of_ceiling,
    }
    for one in OPERATIONS:
        found |= {
            f"k@95% of {WORDS[one]}": _k(one),
            f"k that kills {WORDS[one]} alone": _kill(one),
            f"Rank99 of {WORDS[one]}": _rank(one),
            f"participation ratio of {WORDS[one]}": _participation(one),
        }
    return found


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the course along the steps, each seed's trend, and the verdicts on C9, Q9 and R2."""
    overlap = (
        f"Overlap of the leading {K} directions of addition and multiplication along training, a line a seed, at "
        "steps where it is stable, beside the medians of its references."
    )
    ks = (
        "Directions that can be removed along training (k@95%, mean ablation at the last residual), a line a seed, "
        "at steps where it is stable; dotted, covariance-drawn directions."
    )
    known = any(cell.stable for cell in cells.done)
    return Findings(
        tables=[
            Table(
                "Each run by itself: its stable checkpoints",
                course_rows(cells),
                "Mean ablation at the last residual. Lowest accuracy before: of the recorded evaluations (held-out pairs, mean "
                "of the two operations) since the checkpoint above, or since grokking. Accuracy breaks down for short spells "
                "after grokking, and what is learnt again need not be what was there.",
            ),
            Table(
                "Along training, median over seeds",
                [_row(cells, target) for target in _targets(cells)],
                "k@95% and kills under mean ablation at the last residual; a kill leaves its operation under 50 % "
                "and the other at 99 % of its clean accuracy; - where no seed has one.",
            ),
            Table(
                "Trend of each seed: Spearman's correlation with the step over its stable checkpoints",
                [_trend_row(cells, name, of) for name, of in measured().items()],
                "Seeds with at least three stable checkpoints; first and last are the values at a seed's first and "
                "last one. By chance two seeds agree in sign half of the time, three a quarter.",
            ),
        ],
        figures={overlap: lambda: _overlap_figure(cells), ks: lambda: _k_figure(cells)} if known else {},
        verdicts=[_separates(cells), _monotone(cells), _relative(cells)],
        notes=[changes(cells), with_loss(cells), _inflation(cells)] if known else (),
    )


def at_target(cell: Cell, target: int) -> Checkpoint | None:
    """Return the checkpoint kept near a step, where it is a stable one."""
    return next((at for at in cell.stable if at.target == target), None)


def _targets(cells: Cells) -> list[int]:
    return sorted({step for cell in cells for step in cell.config.keep_steps})


def _near(cells: Cells, target: int, of: Number) -> Spread:
    found = (at_target(cell, target) for cell in cells.done)
    return Spread.of(of(at) for at in found if at is not None)


def _row(cells: Cells, target: int) -> dict[str, Any]:
    config = cells.cells[0].config
    stable = sum(at_target(cell, target) is not None for cell in cells.done)
    found: dict[str, Any] = {
        "step": f"{target:,}",
        "lr x wd x t": f"{config.learning_rate * config.weight_decay * target:g}",
        "stable": f"{stable} of {len(cells.done)}" if cells.done else "not run",
    }

    def near(of: Number) -> str:
        if not cells.done:
            return "not run"
        spread = _near(cells, target, of)
        return spread.text(".2g", count=False) if spread.n else "-"

    rest = (at for cell in cells.done for at in cell.checkpoints if at.target == target and not at.stable)
    before = Spread.of(overlap_at(at, K) for at in rest)
    found |= {"overlap": near(reading(overlap_at, K))}
    found |= {"overlap, not stable": before.text(".2g", count=False) if before.n else "-"}
    names = {name: reading(reference_at, K, name) for name in REFERENCES[1:]}
    pairs = {"k@95%": _k, "k of a kill": _kill, "Rank99": _rank}
    return (
        found
        | {name: near(of) for name, of in names.items()}
        | {f"{name}, add / mul": " / ".join(near(make(one)) for one in OPERATIONS) for name, make in pairs.items()}
    )


def _trend_row(cells: Cells, name: str, of: Number) -> dict[str, Any]:
    rho = [trend(cell, of) for cell in cells.done]
    ends = [[value for at in cell.stable if (value := of(at)) is not None] for cell in cells.done]

    def text(values: list[Any], form: str = ".3g") -> str:
        found = Spread.of(values)
        return found.text(form, count=False) if found.n else ("-" if cells.done else "not run")

    return {
        "number": name,
        "first": text([end[0] for end in ends if end]),
        "last": text([end[-1] for end in ends if end]),
        "rho with the step": text(rho, "+.2f"),
        "by seed": ", ".join("-" if r is None else f"{r:+.2f}" for r in rho) or "-",
    }


def _separates(cells: Cells) -> Verdict:
    """C9: does the overlap fall with the step?"""
    rule = (
        f"Spearman's correlation of the overlap at k = {K} (mean squared cosine) with the step, over each seed's "
        "stable checkpoints: reproduced where it is negative in every seed and the overlap falls by at least 0.05 "
        "in the median, half of the log's fall; different size where it falls by less; not reproduced where it is "
        "positive in every seed; undecided where seeds disagree"
    )
    return _by_sign(cells, "C9", ("reproduced", "not reproduced"), reading(overlap_at, K), rule, size=0.05)


def _relative(cells: Cells) -> Verdict:
    """R2: do the two operations separate, by what chance would give?"""
    rule = (
        f"overlap at k = {K} as a multiple of the covariance-drawn overlap, against learning rate x weight decay x "
        "steps over each seed's stable checkpoints: yes (separation rises) where Spearman's correlation is negative "
        "in every seed, no (it falls) where it is positive in every seed, undecided where seeds disagree"
    )
    return _by_sign(cells, "R2", ("yes", "no"), reading(relative_at, K), rule, log="-")


def _by_sign(
    cells: Cells, name: str, answers: tuple[str, str], of: Number, rule: str, *, log: str = LOG, size: float = 0.0
) -> Verdict:
    rho = [trend(cell, of) for cell in cells.done]
    ends = [[Value.of(value).number for at in cell.stable if (value := of(at)) is not None] for cell in cells.done]
    sign = signs(rho)
    if sign is None:
        return Verdict(name, "not run", log, "-", rule)
    known = [end for end, r in zip(ends, rho) if r is not None]
    fall = Spread.of(end[0] - end[-1] for end in known).median
    small = sign < 0 and fall < size
    verdict = "undecided" if sign == 0 else "different size" if small else answers[0] if sign < 0 else answers[1]
    ours = "; ".join(
        f"seed {cell.config.seed} {end[0]:.2f} -> {end[-1]:.2f} (rho {r:+.2f})"
        for cell, end, r in zip(cells.done, ends, rho) if r is not None
    )  # fmt: skip
    return Verdict(name, verdict, log, ours, rule)


def _monotone(cells: Cells) -> Verdict:
    """Q9: does the overlap fall from each stable checkpoint to the next?"""
    rule = (
        f"overlap at k = {K} over each seed's stable checkpoints (at least three): yes where in every seed none is "
        f"more than {SMALL} above an earlier one, no where every seed has such a rise, undecided where seeds disagree"
    )
    courses = [[value for at in cell.stable if (value := overlap_at(at, K)) is not None] for cell in cells.done]
    courses = [course for course in courses if len(course) >= 3]
    if len(courses) < 2:
        return Verdict("Q9", "not run", LOG, "-", rule)
    rises = [max(b - min(course[:i]) for i, b in enumerate(course) if i) for course in courses]
    falls = {rise <= SMALL for rise in rises}
    verdict = "undecided" if len(falls) > 1 else "yes" if falls.pop() else "no"
    ours = f"largest rise over an earlier checkpoint {Spread.of(rises).text('+.2f')}"
    return Verdict("Q9", verdict, LOG, ours, rule)


def _inflation(cells: Cells) -> str:
    """Where rank stands: the head-to-head with the reported growth of the core."""
    parts = []
    for one in OPERATIONS:
        rho = Spread.of(trend(cell, _rank(one)) for cell in cells.done)
        if rho.n:
            parts.append(f"{WORDS[one]} {told(cells, _rank(one))}, rho with the step {rho.text('+.2f')}")
    return (
        "Schiffman (2602.22600) reports that the core of a grokked model grows from 15 to 60 dimensions under "
        f"continued weight decay. Rank99 of the class means here: {'; '.join(parts) or 'too few stable checkpoints'}."
    )


def _overlap_figure(cells: Cells) -> Any:
    from mi_ablate.figures import lines

    targets = _targets(cells)
    references = {
        name: [_near(cells, target, reading(reference_at, K, name)).median for target in targets] for name in REFERENCES
    }
    seeds = _by_seed(cells, reading(overlap_at, K))
    title = f"mean squared cosine, k = {K}"
    return lines(targets, {**seeds, **references}, controls=REFERENCES, axes=("step", title))


def _k_figure(cells: Cells) -> Any:
    from mi_ablate.figures import panels

    return panels(
        _targets(cells),
        {WORDS[one]: _by_seed(cells, _k(one)) for one in OPERATIONS},
        controls={WORDS[one]: _by_seed(cells, _k(one, "covariance")) for one in OPERATIONS},
        control="covariance-drawn directions",
        axes=("step", "k@95%"),
    )


def _by_seed(cells: Cells, of: Number) -> dict[str, list[float]]:
    """A number near each kept step, a list a seed; nan where it is not stable there."""
    found = {}
    for cell in cells.done:
        values = [None if (at := at_target(cell, target)) is None else of(at) for target in _targets(cells)]
        found[f"seed {cell.config.seed}"] = [math.nan if v is None else Value.of(v).number for v in values]
    return found


def _k(one: str, run: str = "edited") -> Number:
    return lambda at: at.k(one, LAST, MEAN, run=run)


def _kill(one: str) -> Number:
    return lambda at: None if (kill := selective_kill(at, one)) is None else kill.k


def _rank(one: str) -> Number:
    return lambda at: rank99(at, one)


def _participation(one: str) -> Number:
    return lambda at: at.get("class_means", one, "all.participation")


def _of_ceiling(at: Checkpoint) -> float | None:
    found, ceiling = overlap_at(at, K), reference_at(at, K, "split half")
    return None if found is None or not ceiling else found / ceiling


STUDY = Study(
    name="along-training",
    log="E8, Q9",
    title="Separation along training",
    question=QUESTION,
    grids=("two-tasks",),
    find=find,
    decides=("C9", "Q9", "R2"),
)
