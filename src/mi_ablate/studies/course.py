"""Runs of two operations one by one: what each stable checkpoint says, and where a run changed the most.

Medians over seeds, and means over a run's checkpoints, hide an abrupt change. So each run's checkpoints stand here by
themselves, with the lowest held-out accuracy since the one before: accuracy keeps breaking down for short spells after
grokking, and what is learnt again afterwards need not be what was there. A run's **steepest change** is that between the two
neighbouring stable checkpoints at which addition's dimensions for 95 % of the variance (class means, last residual) differ by
the largest factor. Every run has one, so it is no finding before its size and its end are looked at.

When it misleads: checkpoints lie 5,000 steps apart, so what looks like a lasting change may be two dips; the lowest accuracy is
that of the recorded evaluations, every 300 steps in runs of 40,000, and shorter spells go unseen.
"""

import math
from itertools import pairwise
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cell, Cells, Checkpoint
from mi_ablate.studies.orderings import Number, correlation
from mi_ablate.studies.overlaps import overlap_at, reference_at
from mi_ablate.studies.selective import LAST, MEAN, selective_kill
from mi_ablate.studies.spread import Value

K = 10
OPERATIONS = ("add", "mul")
WORDS = {"add": "addition", "mul": "multiplication", "sub": "subtraction"}
COMPARED = ("dims add", "dims mul", "overlap 10")


def course_rows(cells: Cells) -> list[dict[str, Any]]:
    """Return a row for each stable checkpoint of each run."""
    return [
        _row(cell, before, at) for cell in cells.done for before, at in pairwise([None, *cell.stable]) if at is not None
    ]


def _row(cell: Cell, before: Checkpoint | None, at: Checkpoint) -> dict[str, Any]:
    start = (cell.grok_step or 0) if before is None else before.step
    lowest = lowest_accuracy(cell, start, at.step)
    kills = [selective_kill(at, one) for one in OPERATIONS]
    return {
        "seed": cell.config.seed,
        "step": f"{at.step:,}",
        "lowest accuracy before": number(lowest, ".2f"),
        "held-out loss, add / mul": _each(at.get("accuracy", one, "held_out.loss") for one in OPERATIONS),
        "k@95%, add / mul": _each(at.k(one, LAST, MEAN) for one in OPERATIONS),
        "k@95%, covariance-drawn": _each(at.k(one, LAST, MEAN, run="covariance") for one in OPERATIONS),
        "95 % dims, add / mul": _each(dimensions(at, one) for one in OPERATIONS),
        "overlap": number(overlap_at(at, K), ".2f"),
        "covariance-drawn overlap": number(reference_at(at, K, "covariance-drawn"), ".2f"),
        "k of a kill, add / mul": _each(None if kill is None else kill.k for kill in kills),
    }


def _each(values: Any) -> str:
    return " / ".join(number(value) for value in values)


def number(value: Value | float | int | None, form: str = ".3g") -> str:
    """Return a number as text; "-" where there is none."""
    return "-" if value is None else Value.of(value).text(form)


def dimensions(at: Checkpoint, one: str) -> float | None:
    """Return how many dimensions hold 95 % of the variance of an operation's class means."""
    found = at.get("class_means", one, "all.dims95")
    return None if found is None else float(found)


def lowest_accuracy(cell: Cell, start: int, end: int) -> float | None:
    """Return the lowest recorded held-out accuracy (mean of the operations) after one step and before another."""
    found = [row[4] for row in cell.training.get("history", ()) if start < row[0] < end]
    return min(found, default=None)


def steepest(cell: Cell) -> tuple[Checkpoint, Checkpoint] | None:
    """Return the neighbouring stable checkpoints between which addition's 95 % dimensions change by the largest factor."""
    pairs = [(a, b) for a, b in pairwise(cell.stable) if dimensions(a, "add") and dimensions(b, "add")]
    return max(pairs, key=lambda pair: abs(_ratio(*pair)), default=None)


def _ratio(a: Checkpoint, b: Checkpoint) -> float:
    return math.log((dimensions(b, "add") or 1) / (dimensions(a, "add") or 1))


def changes(cells: Cells) -> str:
    """Return each run's steepest change and its end in numbers."""
    parts = [_change(cell, *pair) for cell in cells.done if (pair := steepest(cell)) is not None]
    return (
        "Each seed's steepest change between neighbouring stable checkpoints, of addition: "
        f"{'; '.join(parts) or 'no seed has two of them'}."
    )


def _change(cell: Cell, before: Checkpoint, after: Checkpoint) -> str:
    lowest, last = lowest_accuracy(cell, before.step, after.step), cell.last
    more = last is not after and dimensions(last, "add") is not None
    seen = [before, after, last] if more else [before, after]

    def arrows(of: Number, form: str) -> str:
        return " -> ".join(number(of(at), form) for at in seen)

    between = "" if lowest is None else f" after held-out accuracy broke down to {lowest:.2f}"
    stays = abs(_ratio(after, last)) < abs(_ratio(before, last))
    return (
        f"seed {cell.config.seed}, step {arrows(lambda at: at.step, ',.0f')}{between}: k@95% "
        f"{arrows(lambda at: at.k('add', LAST, MEAN), '.3g')}, 95 % dimensions "
        f"{arrows(lambda at: dimensions(at, 'add'), '.3g')}, overlap of the leading {K} "
        f"{arrows(lambda at: overlap_at(at, K), '.2f')} (covariance-drawn "
        f"{arrows(lambda at: reference_at(at, K, 'covariance-drawn'), '.2f')}), held-out loss "
        f"{arrows(lambda at: at.get('accuracy', 'add', 'held_out.loss'), '.2g')}"
        f"{(', which stays' if stays else ', which goes back') if more else ''}"
    )


def with_loss(cells: Cells) -> str:
    """Return how k goes with the held-out loss over each run's stable checkpoints."""
    parts = [
        f"{WORDS[one]} {', '.join(f'{rho:+.2f}' for rho in found)}"
        for one in OPERATIONS if (found := [rho for cell in cells.done if (rho := _rho(cell, one)) is not None])
    ]  # fmt: skip
    return (
        "Spearman's correlation of k@95% (mean ablation, last residual) with the held-out loss over each run's stable "
        f"checkpoints, by seed: {'; '.join(parts) or '-'}."
    )


def _rho(cell: Cell, one: str) -> float | None:
    return correlation(cell, lambda at: at.get("accuracy", one, "held_out.loss"), lambda at: at.k(one, LAST, MEAN))


def nearest_the_log(cells: Cells) -> str:
    """Return which stable checkpoint is nearest to the log's dimensions and overlap, and what that does not show."""
    log = the_log.E6_TO_E8["baseline"]
    known = [(far, cell, at) for cell in cells.done for at in cell.stable if (far := _distance(at)) is not None]
    if not known:
        return "No stable checkpoint has the numbers that the log gives."
    _, near, at = min(known, key=lambda one: one[0])
    falls = [fallen for cell in cells.done if (fallen := halved(cell)) is not None]
    return (
        f"The log measured one run at its end (75,000 steps): 95 % dimensions {log['dims add']} / {log['dims mul']}, k@95% "
        f"{the_log.E4['add']['k@95%']} / {the_log.E4['mul']['k@95%']}, overlap {log['overlap 10']}. The nearest checkpoint "
        f"here (dimensions and overlap) is seed {near.config.seed} at step {at.step:,}: "
        f"{_each(dimensions(at, one) for one in OPERATIONS)}, {_each(at.k(one, LAST, MEAN) for one in OPERATIONS)}, "
        f"{number(overlap_at(at, K), '.2f')}. Addition's dimensions end at half of their first number or less in {sum(falls)} "
        f"of {len(falls)} seeds. That the log's run had been through such a change is a hypothesis: these runs end at 40,000."
    )


def halved(cell: Cell) -> bool | None:
    """Return whether addition's 95 % dimensions end at half of their first number or less; None for one checkpoint."""
    found = [value for at in cell.stable if (value := dimensions(at, "add"))]
    return found[-1] <= found[0] / 2 if len(found) > 1 else None


def _distance(at: Checkpoint) -> float | None:
    """Summed absolute log ratios of addition's and multiplication's dimensions and the overlap to the log's."""
    log = the_log.E6_TO_E8["baseline"]
    found = dict(zip(COMPARED, (dimensions(at, "add"), dimensions(at, "mul"), overlap_at(at, K))))
    if not all(found.values()):
        return None
    return sum(abs(math.log((value or 1) / log[name])) for name, value in found.items())
