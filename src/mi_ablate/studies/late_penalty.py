"""Q10: does the adversarial penalty work when it is switched on late?

The penalty of `adversarial` (ten contrastive directions) from the first step, from step 10,000 as in the log, half-way,
and after the models have grokked. All are compared at checkpoints after the latest start, so that every model has had
as many steps; those that started later have had fewer with the penalty, and that is part of the question.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mi_ablate.studies.cells import Cells, Checkpoint
from mi_ablate.studies.groups import counted, grok_step, hours, told
from mi_ablate.studies.overlaps import overlap_at
from mi_ablate.studies.penalties import Number, by_seed, differences, dims_of_all, k_of_all, starts
from mi_ablate.studies.selective import LAST
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Findings, Study, Table, Verdict

EVERY = "every_site.live"
KEPT = 0.5
"""Share of the gain of the usual start that a late one must have to be said to work."""
QUESTION = (
    "Addition and multiplication in one model, trained against the removal of its own ten contrastive directions (as "
    "in the study of adversarial training) from the first step, from step 10,000, from 20,000, and from 30,000 on, "
    "when both operations have been learnt. Numbers are means over the stable checkpoints after step 30,000, and of "
    "both operations. Is the penalty too late once the circuits exist?"
)
Starts = Mapping[int | None, Cells]
Reading = Callable[[Checkpoint], Number]


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the table of starts, and the verdict on Q10."""
    found = starts(cells)
    latest = max((start for start in found if start is not None), default=0)
    return Findings(
        tables=[
            Table(
                "When the penalty starts",
                [_row(start, group, latest) for start, group in found.items()],
                f"Stable checkpoints after step {latest:,}. k@95% (mean of both operations) under zero-ablation and "
                "mean-ablation beside its covariance-drawn control.",
            )
        ],
        verdicts=[_works(found, latest)],
    )


def late(of: Reading, latest: int) -> Reading:
    """Return a reading that is None before a step."""
    return lambda at: of(at) if at.step > latest else None


def _row(start: int | None, group: Cells, latest: int) -> dict[str, Any]:
    def text(of: Reading, form: str = ".3g") -> str:
        return told(group, late(of, latest), form)

    return {
        "penalty from step": "never" if start is None else f"{start:,}",
        "seeds with a stable step": counted(group) if group.done else hours(group),
        "grok step": Spread.of(grok_step(cell) for cell in group.done).text(",.0f", count=False),
        "k@95%, zero": text(k_of_all("zero")),
        "covariance-drawn": text(k_of_all("zero", run="covariance")),
        "k@95%, mean": text(k_of_all("mean")),
        "covariance-drawn, mean": text(k_of_all("mean", run="covariance")),
        "every site, zero": text(k_of_all("zero", EVERY)),
        "95 % dims": text(dims_of_all),
        "top-10 overlap": text(lambda at: overlap_at(at, 10), ".2f"),
    }


def _works(found: Starts, latest: int) -> Verdict:
    """Q10: does the latest start gain at least half of what the usual one gains?"""
    rule = (
        f"k@95% (zero-ablation, {LAST.split('.')[0].replace('_', ' ')}, mean of both operations) minus that of the "
        "same seed "
        "without a penalty, for the latest start: yes where it is above 0 in every seed and its median at least half "
        "of the gain of the start at 10,000; no where it is above 0 in no seed, or in every seed but less than half; "
        "undecided where seeds disagree, or where the usual start gains nothing that could be compared; not run for "
        "fewer than two pairs of seeds"
    )
    given = [start for start in found if start is not None]
    usual = next((start for start in given if start and start < latest), None)
    of = late(k_of_all("zero"), latest)
    seeds = {start: by_seed(group, of) for start, group in found.items()}
    gains = {start: differences(seeds[start], seeds[None]) for start in given}
    ours = ", ".join(f"from {start:,}: {gain.text('+.3g')}" for start, gain in gains.items() if gain.n)
    if usual is None or gains[usual].n < 2 or gains[latest].n < 2:
        return Verdict("Q10", "not run", "-", ours or "-", rule)
    gain, standard = gains[latest], gains[usual]
    signs = {value.number > 0 for value in gain.values}
    if len(signs) > 1 or standard.low <= 0:
        verdict = "undecided"
    else:
        verdict = "yes" if signs == {True} and gain.median >= KEPT * standard.median else "no"
    return Verdict("Q10", verdict, "-", ours, rule)


STUDY = Study(
    name="late-penalty",
    log="Q10",
    title="The penalty switched on late",
    question=QUESTION,
    grids=("two-tasks", "adversarial", "late-penalty"),
    find=find,
    decides=("Q10",),
)
