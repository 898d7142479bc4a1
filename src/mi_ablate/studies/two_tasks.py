"""E4 and E5: addition and multiplication in one model, removed one at a time.

Does an operation lose directions to its neighbour (C4), do the two lie apart (C5), and can one be killed and the other kept
(C6)? Every removal stands beside covariance-drawn subspaces and top principal components of the same operation's activations,
every overlap beside three references. When it misleads: a control that kills as selectively shows that the activations of the
two operations lie apart, not their circuits.
"""

from collections.abc import Mapping
from typing import Any

from mi_ablate.studies.cells import Cells
from mi_ablate.studies.course import OPERATIONS, WORDS, nearest_the_log, number
from mi_ablate.studies.groups import Band, band, spread, told
from mi_ablate.studies.last_checkpoint import also_late, last_only
from mi_ablate.studies.orderings import lower
from mi_ablate.studies.overlaps import overlap_at, overlap_figure, reading, reference_at
from mi_ablate.studies.selective import LAST, alone, curve_of, kills_selectively, mean_kill, over_seeds
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Findings, Study, Verdict
from mi_ablate.studies.two_tasks_tables import tables

QUESTION = (
    "Addition and multiplication mod 97 in one model of two layers, d 128, weight decay 1, 30 % of the pairs of "
    "each for training, 40,000 steps. How many contrastive directions of one operation can be removed, at the last "
    "residual stream before the final norm (and at every site), before its held-out accuracy first falls under 95 % "
    "of its clean value (k@95%), what happens to the other operation meanwhile, and how much do the two sets of "
    "directions overlap? A seed's number is the mean over its stable checkpoints (held-out accuracy of both "
    "operations at least 0.99 for 300 steps)."
)
HALF, NEAR = 0.5, 2.0
"""An overlap under which two subspaces are mostly orthogonal, and a fall to at most which is the log's; a factor within which
a number of directions is the log's."""


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the tables beside the log's, the curves, and the verdicts on C4, C5 and C6."""
    both, single = cells.where(grid="two-tasks"), alone(cells)
    measured = any(cell.stable for cell in both.done)
    collateral = (
        "Accuracy of both operations while the leading directions of one operation are mean-ablated at the last "
        "residual: does its own fall alone? Median over seeds with their range; dotted, as many covariance-drawn "
        "directions of the same operation's activations."
    )
    overlap = (
        "Overlap of the leading k directions of addition and multiplication, median over seeds with their range, "
        "beside isotropic and covariance-drawn subspaces and the overlap of one operation with itself (split half)."
    )
    return Findings(
        tables=tables(both, single),
        figures={collateral: lambda: collateral_figure(both), overlap: lambda: overlap_figure(both)}
        if measured
        else {},
        verdicts=[
            also_late(_concentrates, both, single),
            also_late(_orthogonal, both),
            also_late(_kills, both),
        ],
        notes=[_in_short(both, single), nearest_the_log(both), _words(both)] if measured else (),
    )


def collateral_figure(group: Cells) -> Any:
    """Return the plotly figure of both operations' accuracy against the directions removed, a panel for each removed one."""
    from mi_ablate.figures import panels

    found, drawn = (
        {removed: {scored: _band(group, removed, scored, run) for scored in OPERATIONS} for removed in OPERATIONS}
        for run in ("edited", "covariance")
    )
    titles = {removed: f"{WORDS[removed]}'s directions removed" for removed in OPERATIONS}
    known = {titles[r]: {WORDS[s]: b for s, b in row.items() if b is not None} for r, row in found.items()}
    beside = {titles[r]: {WORDS[s]: b.median for s, b in row.items() if b is not None} for r, row in drawn.items()}
    longest = max((b.x for row in known.values() for b in row.values()), key=len)
    return panels(
        longest,
        {title: {name: b.median for name, b in row.items()} for title, row in known.items()},
        bands={title: {name: b.ends for name, b in row.items()} for title, row in known.items()},
        controls=beside,
        control="covariance-drawn directions",
        axes=("directions removed", "held-out accuracy"),
    )


def _band(group: Cells, removed: str, scored: str, run: str) -> Band | None:
    def curve(at: Any) -> list[float] | None:
        return curve_of(at, removed, scored, run=run)

    return band(group, lambda at: None if (found := curve(at)) is None else list(range(len(found))), curve)


def _concentrates(both: Cells, single: Cells) -> Verdict:
    """C4: fewer directions beside another operation than alone?"""
    rule = (
        "k@95% of addition at the last residual, alone -> beside, under zero- and under mean-ablation: reproduced where "
        "it is lower beside multiplication than alone in at least 90 % of the pairs of seeds and its median at most half, "
        "different size where it is lower by less, not reproduced where it is lower in at most 10 % of the pairs; "
        "undecided between, or where the two ablations disagree"
    )
    parts, answers = [], []
    for ablation in ("zero", "mean"):
        one, two = (Spread.of(cell.mean_k("add", LAST, ablation) for cell in group.done) for group in (single, both))
        if one.n < 2 or two.n < 2:
            return Verdict("C4", "not run", "11 alone -> 2 beside", "-", rule)
        parts.append(f"{ablation} {one.text('.2g', False)} -> {two.text('.2g', False)}")
        answers.append((lower(two, one), two.median <= HALF * one.median))
    lowers = {answer for answer, _ in answers}
    if len(lowers) > 1 or None in lowers:
        verdict = "undecided"
    elif False in lowers:
        verdict = "not reproduced"
    else:
        verdict = "reproduced" if all(halved for _, halved in answers) else "different size"
    return Verdict("C4", verdict, "11 alone -> 2 beside", ", ".join(parts), rule)


def _orthogonal(both: Cells) -> Verdict:
    """C5: do the leading ten directions of the two operations lie apart?"""
    rule = (
        "mean squared cosine of the leading 10 directions, in every seed; the null that counts is the mean of 20 "
        "covariance-drawn pairs of 10, since the isotropic one (the log's) is exceeded by any two sets of vectors in "
        "the same few directions: reproduced where it is under 0.5 and no higher than that null, different size where "
        "it is under 0.5 but higher than the null, not reproduced where it is 0.5 or more; undecided where seeds disagree"
    )
    log = "0.28 at k = 10 (isotropic 0.078)"
    found = {"overlap": reading(overlap_at, 10), "covariance-drawn": reading(reference_at, 10, "covariance-drawn")}
    rows = [{name: cell.mean(of) for name, of in found.items()} for cell in both.done]
    pairs = [(m.number, null.number) for row in rows if (m := row["overlap"]) and (null := row["covariance-drawn"])]
    if len(pairs) < 2:
        return Verdict("C5", "not run", log, "-", rule)
    answers = {"not reproduced" if m >= HALF else "reproduced" if m <= null else "different size" for m, null in pairs}
    ours = ", ".join(f"{name} {spread(both, of).text('.2f', count=False)}" for name, of in found.items())
    return Verdict("C5", answers.pop() if len(answers) == 1 else "undecided", log, ours, rule)


def _kills(both: Cells) -> Verdict:
    """C6: is there a k that kills one operation and keeps the other?"""
    rule = (
        "a kill: some k (mean ablation, last residual) leaves an operation under 50 % and the other at 99 % of its "
        "clean accuracy, at more than half of a seed's stable checkpoints. Reproduced where every seed has one for "
        "each operation, the medians of the smallest k lie within a factor 2 of 9 to 14, and covariance-drawn "
        "directions of the same activations (the control) need more in every seed, or never kill; different size where "
        "every seed has them and one of the other two fails; not reproduced where an operation has one in no seed; undecided "
        "otherwise"
    )
    log = "k = 9 to 14, the other > 99 %"
    answers = {one: [kills_selectively(cell, one) for cell in both.done] for one in OPERATIONS}
    known = {one: [answer for answer in found if answer is not None] for one, found in answers.items()}
    if min(map(len, known.values())) < 2:
        return Verdict("C6", "not run", log, "-", rule)
    parts, sizes, fewer = [], [], []
    for one in OPERATIONS:
        ks = [mean_kill(cell, one) for cell in both.done]
        drawn = [mean_kill(cell, one, run="covariance") for cell in both.done]
        sizes.append(9 / NEAR <= Spread.of(ks).median <= 14 * NEAR)
        fewer += [k is None or other is None or k < other for k, other in zip(ks, drawn)]
        said = f"{sum(known[one])} of {len(known[one])}{_text(ks)}"
        parts.append(f"{one} {said} (control {sum(k is not None for k in drawn)}{_text(drawn)})")
    if not all(any(found) for found in known.values()):
        verdict = "not reproduced"
    elif not all(all(found) for found in known.values()):
        verdict = "undecided"
    else:
        verdict = "reproduced" if all(sizes) and all(fewer) else "different size"
    return Verdict("C6", verdict, log, ", ".join(parts), rule)


def _text(ks: list[float | None]) -> str:
    """The smallest k of the seeds that kill, where any does."""
    found = Spread.of(ks)
    return f" at k {found.text(count=False)}" if found.n else ""


def _in_short(both: Cells, single: Cells) -> str:
    """The study in two sentences of numbers: means over stable checkpoints, then the last one of each seed."""

    def kills(group: Cells) -> str:
        seeds = [over_seeds(group, lambda cell, one=one: kills_selectively(cell, one)) for one in OPERATIONS]  # type: ignore[misc]
        return f"addition can be killed alone in {seeds[0]} seeds, multiplication in {seeds[1]}"

    def k(group: Cells) -> str:
        return told(group, lambda at: at.k("add", LAST, "mean"))

    late = last_only(both)
    null = reading(reference_at, 10, "covariance-drawn")
    ends = [
        f"seed {cell.config.seed} k {number(cell.last.k('add', LAST, 'mean'))}, overlap "
        f"{number(overlap_at(cell.last, 10), '.2f')} ({number(null(cell.last), '.2f')})"
        for cell in late.done
    ]
    return (
        f"Means over each run's stable checkpoints: k@95% of addition (mean ablation, last residual) {k(both)} beside "
        f"multiplication, {k(single)} alone; overlap of the leading 10 directions {told(both, reading(overlap_at, 10), '.2f')} "
        f"(covariance-drawn {told(both, null, '.2f')}); {kills(both)}. These means hide that a run can change abruptly (see "
        f"E8): at the last stable checkpoint {'; '.join(ends)}, and {kills(late)}."
    )


def _words(both: Cells) -> str:
    """A sentence in the log's words."""
    seeds = {one: over_seeds(both, lambda cell, one=one: kills_selectively(cell, one)) for one in OPERATIONS}  # type: ignore[misc]
    parts = [f"{WORDS[one]} additive in {text}" for one, text in seeds.items()]
    return (
        "In the log's words (additive: some k kills one operation and the other keeps 99 %; constitutive: none "
        f"does), by seed: {', '.join(parts)}."
    )


STUDY = Study(
    name="two-tasks",
    log="E4, E5",
    title="Two operations in one model",
    question=QUESTION,
    grids=("two-tasks", "weight-decay"),
    find=find,
    decides=("C4", "C5", "C6"),
)
