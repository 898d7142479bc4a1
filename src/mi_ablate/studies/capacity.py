"""E6 and Q7: two operations in models of other depths and widths.

Less capacity was expected to force the two circuits to share; the log found none of it in one layer of the *same* width
(C7), so width is varied here too. And a wider model may be both separable and robust (Q7), the third corner of the trilemma:
what it gives up is capacity. The three corners have a metric each (`selective.Corners`).

When this misleads: k / d, the isotropic overlap, falls with the width by itself, and so does the covariance-drawn one;
overlaps of two widths are compared as multiples of the latter.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cells, chosen
from mi_ablate.studies.groups import counted, hours, spread, told
from mi_ablate.studies.last_checkpoint import also_late
from mi_ablate.studies.overlaps import overlap_at, reading, reference_at, relative_at
from mi_ablate.studies.selective import (
    FILLED,
    LAST,
    MEAN,
    Corners,
    alone,
    corners,
    k_alone,
    kills_selectively,
    mean_kill,
    over_seeds,
)
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Findings, Study, Table, Verdict

BASELINE = (2, 128)
QUESTION = (
    "Addition and multiplication mod 97 in one model: one layer instead of two, and widths from 48 to 256, 40,000 "
    "steps at weight decay 1. Do smaller models share directions between the operations, so that one cannot be "
    "killed alone? Is a wider one both separable and robust? Separable: for each operation some k (mean ablation of "
    "its contrastive directions at the last residual) leaves it under 50 % and the other at 99 % of its clean "
    "accuracy, at more than half of the stable checkpoints. Robust: the lower of the two k@95% is at least the "
    "median of addition trained alone. Capacity-efficient: the Rank99 of the two operations' class means add up to "
    f"at least {FILLED:g} of the width."
)
Shape = tuple[int, int]


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the shapes' tables beside the log's, and the verdicts on C7 and Q7."""
    shapes, lone = by_shape(cells), k_alone(cells)
    reference = f"{lone:.3g} (n={len(alone(cells).done)})" if lone is not None else "not run"
    return Findings(
        tables=[
            Table("Depth and width: grokking and overlap", [_overlap(shape, group) for shape, group in shapes.items()]),
            Table(
                "Depth and width: directions and kills",
                [_removal(shape, group) for shape, group in shapes.items()],
                "Mean ablation at the last residual. A kill: seeds in which one exists, and its smallest k.",
            ),
            Table(
                "Separable, robust, capacity-efficient: which corners a shape has, by seed",
                [_corners(shape, group, lone) for shape, group in shapes.items()],
                f"k@95% of addition alone, which robust is measured by: {reference}. The log's claim is that no "
                "model has all three; one shape with three in most of its seeds would refute it.",
            ),
        ],
        verdicts=[
            also_late(lambda some: _forces(by_shape(some)), cells),
            also_late(lambda some: _wider(by_shape(some), k_alone(some)), cells),
        ],
    )


def by_shape(cells: Cells) -> dict[Shape, Cells]:
    """Return the cells with two operations by layers and width, the baseline first."""
    found: dict[Shape, list[Any]] = {}
    for cell in cells:
        if cell.grid in ("two-tasks", "capacity"):
            found.setdefault((cell.config.config.n_layers, cell.config.config.d_model), []).append(cell)
    return {shape: chosen(group) for shape, group in found.items()}


def _name(shape: Shape) -> str:
    return f"{shape[0]} layer{'s' * (shape[0] > 1)}, d {shape[1]}"


def _log(shape: Shape) -> dict[str, Any]:
    return the_log.E6_TO_E8["baseline" if shape == BASELINE else "capacity"] if shape in (BASELINE, (1, 128)) else {}


def _operations(group: Cells) -> tuple[str, ...]:
    return group.cells[0].config.config.operations


def _overlap(shape: Shape, group: Cells) -> dict[str, Any]:
    log = _log(shape)
    return {
        "model": _name(shape),
        "stable seeds": counted(group) if group.done else hours(group),
        "grok step": Spread.of(cell.grok_step for cell in group.done).text(",.0f", count=False),
        "top-5 overlap": told(group, reading(overlap_at, 5), ".2f"),
        "top-10 overlap": told(group, reading(overlap_at, 10), ".2f"),
        "covariance-drawn, 10": told(group, reading(reference_at, 10, "covariance-drawn"), ".2f"),
        "split half, 10": told(group, reading(reference_at, 10, "split half"), ".2f"),
        "log, 5 / 10": f"{log['overlap 5']} / {log['overlap 10']}" if log else "-",
    }


def _removal(shape: Shape, group: Cells) -> dict[str, Any]:
    log, names = _log(shape), _operations(group)

    def both(texts: list[str]) -> str:
        return " / ".join(texts) if group.done else "not run"

    def k(run: str) -> str:
        return both([told(group, lambda at, one=one: at.k(one, LAST, MEAN, run=run)) for one in names])  # type: ignore[misc]

    def dims(key: str) -> str:
        return both([told(group, lambda at, one=one: at.get("class_means", one, f"all.{key}")) for one in names])  # type: ignore[misc]

    def kill(run: str) -> str:
        texts = []
        for one in names:
            ks = Spread.of(mean_kill(cell, one, run=run) for cell in group.done)
            seeds = over_seeds(group, lambda cell: kills_selectively(cell, one, run=run))  # noqa: B023 - used at once
            texts.append(f"{seeds}{f', k {ks.text(count=False)}' if ks.n else ''}")
        return both(texts)

    return {
        "model": _name(shape),
        "k@95%, add / mul": k("edited"),
        "covariance-drawn": k("covariance"),
        "top PCA": k("pca"),
        "95 % dims, add / mul": dims("dims95"),
        "Rank99, add / mul": dims("rank99"),
        "kill, add / mul": kill("edited"),
        "covariance-drawn kill": kill("covariance"),
        "log, k; dims": f"{log['add']} / {log['mul']}; {log['dims add']} / {log['dims mul']}" if log else "-",
    }


def known_corners(group: Cells, lone: float | None) -> list[Corners]:
    """Return the corners of the seeds that have a stable step."""
    return [found for cell in group.done if (found := corners(cell, lone)) is not None]


def _corners(shape: Shape, group: Cells, lone: float | None) -> dict[str, Any]:
    known = {id(cell): corners(cell, lone) for cell in group.done}
    found = [one for one in known.values() if one is not None]

    def seeds(of: Callable[[Corners], bool | None]) -> str:
        return over_seeds(group, lambda cell: None if (one := known[id(cell)]) is None else of(one))

    texts = {
        "separable": seeds(lambda one: one.separable),
        "robust": seeds(lambda one: one.robust),
        "efficient": seeds(lambda one: one.efficient),
        "all three": seeds(lambda one: one.held == 3),
        "lowest accuracy of the hardest to kill": Spread.of(one.least for one in found).text(".2f", count=False),
        "lower k@95%": Spread.of(one.k for one in found).text(count=False),
        "summed Rank99 / d": Spread.of(one.filled for one in found).text(".2f", count=False),
    }
    if group.done and not found:
        texts = dict.fromkeys(texts, "no stable step")
    return {"model": _name(shape), **texts}


def _forces(shapes: Mapping[Shape, Cells]) -> Verdict:
    """C7: is one operation still killed alone where there is less capacity?"""
    rule = (
        "a shape counts where at least two seeds have a stable step, and does not share where each operation that "
        "has a selective kill in more than half of the baseline's seeds has one in more than half of these, and the "
        "overlap at k = 10 as a multiple of the covariance-drawn one is in the median no higher than the baseline's "
        "highest seed. Reproduced where neither "
        "one layer of width 128 nor any narrower width shares (at least one narrower width run), different size "
        "where the one layer does not and a narrower width does, not reproduced where the one layer does; not run "
        "without the baseline, the one layer and a narrower width"
    )
    smaller = [s for s in shapes if s != BASELINE and (s[0] < BASELINE[0] or s[1] < BASELINE[1])]
    shares = {shape: _shares(shapes[shape], shapes.get(BASELINE)) for shape in smaller}
    known = {shape: answer for shape, answer in shares.items() if answer is not None}
    log = "one layer, d 128: overlap 0.27 (baseline 0.28), kills at k = 9 to 10 with 100 %"
    ours = "; ".join(
        f"{_name(s)}: {'shares' if answer else 'does not share'}, overlap "
        f"{told(shapes[s], reading(overlap_at, 10), '.2f')}, {told(shapes[s], reading(relative_at, 10), '.2f')} x "
        "covariance-drawn"
        for s, answer in known.items()
    )
    narrower = [answer for shape, answer in known.items() if shape[1] < BASELINE[1]]
    if (1, 128) not in known or not narrower:
        return Verdict("C7", "not run", log, ours or "-", rule)
    verdict = "not reproduced" if known[1, 128] else "different size" if any(narrower) else "reproduced"
    return Verdict("C7", verdict, log, ours, rule)


def _shares(group: Cells, baseline: Cells | None) -> bool | None:
    """Whether an operation that the baseline has a kill for has none, or the two overlap more; None: too few seeds."""
    if baseline is None:
        return None
    mine, other = spread(group, reading(relative_at, 10)), spread(baseline, reading(relative_at, 10))
    here, there = _killed(group), _killed(baseline)
    if here is None or there is None or min(mine.n, other.n) < 2:
        return None
    return any(was and not still for was, still in zip(there, here)) or mine.median > other.high


def _killed(group: Cells) -> list[bool] | None:
    """Which operations have a selective kill in more than half of the seeds; None: fewer than two seeds."""
    kills = [[kills_selectively(cell, one) for one in _operations(group)] for cell in group.done]
    known = [found for found in kills if None not in found]
    return [2 * sum(map(bool, found)) > len(known) for found in zip(*known)] if len(known) > 1 else None


def _wider(shapes: Mapping[Shape, Cells], lone: float | None) -> Verdict:
    """Q7: is a wider model separable and robust?"""
    rule = (
        "yes where at some width above 128, in more than half of at least two seeds with a stable step, both "
        "operations can be killed alone and the lower k@95% (mean ablation) is at least the median of addition "
        "alone; no where every wider width of the grid has two such seeds and none of them is; not run where none "
        "has, undecided where only some have"
    )
    wider = {shape: known_corners(group, lone) for shape, group in shapes.items() if shape[1] > BASELINE[1]}
    known = {shape: found for shape, found in wider.items() if len(found) > 1}
    base = known_corners(shapes[BASELINE], lone) if BASELINE in shapes else []
    told_of = {**({BASELINE: base} if base else {}), **known}
    ours = "; ".join(
        f"{_name(s)}: both in {sum(bool(one.separable and one.robust) for one in found)} of {len(found)} seeds, "
        f"lower k@95% {Spread.of(one.k for one in found).text(count=False)}"
        for s, found in told_of.items()
    )
    if lone is None or not known:
        return Verdict("Q7", "not run", "asserted, not run", ours or "-", rule)
    both = [2 * sum(bool(one.separable and one.robust) for one in found) > len(found) for found in known.values()]
    verdict = "yes" if any(both) else "no" if len(known) == len(wider) else "undecided"
    return Verdict("Q7", verdict, "asserted, not run", ours, rule)


STUDY = Study(
    name="capacity",
    log="E6, Q7",
    title="Depth and width",
    question=QUESTION,
    grids=("two-tasks", "capacity", "weight-decay"),
    find=find,
    decides=("C7", "Q7"),
)
