"""The tables of the two-task study: grokking, k beside its controls, dimensions, collateral, kills and overlap."""

from collections.abc import Callable
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cell, Cells, Checkpoint
from mi_ablate.studies.course import OPERATIONS, WORDS, dimensions, number
from mi_ablate.studies.groups import counted, spread, told
from mi_ablate.studies.last_checkpoint import last_only
from mi_ablate.studies.orderings import share_lower
from mi_ablate.studies.overlaps import KS, overlap_row
from mi_ablate.studies.selective import (
    CHANCE,
    KILLED,
    LAST,
    MEAN,
    curve_of,
    kills_selectively,
    mean_kill,
    mean_least,
    over_seeds,
    selective_kill,
)
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Table

EVERY = "every_site.live"
ABLATIONS = ("zero", "mean", "resample")
RUNS = {"edited": "contrastive", "covariance": "covariance-drawn", "pca": "top PCA"}
AFTER = 4_000
"""Steps after grokking at which runs of one and of two operations are compared: what the runs of one reach."""


def tables(both: Cells, single: Cells) -> list[Table]:
    """Return the tables of two operations in one model, with addition alone beside them."""
    return [
        Table("Grokking", _grokking(both)),
        Table(
            "Directions that can be removed, by operation, place and ablation",
            [_removal(both, one, place, ablation) for one in OPERATIONS for place in (LAST, EVERY) for ablation in ABLATIONS],
            "Beside each k that of as many covariance-drawn directions (mean of 5 draws) and top principal "
            "components of the same operation's activations. The log does not say how it ablates; its numbers stand "
            "beside zero-ablation.",
        ),
        Table(
            "Addition alone and beside multiplication: k@95%",
            [_alone(both, single, place, ablation) for place in (LAST, EVERY) for ablation in ABLATIONS],
            f"All stable checkpoints, and the one whose step is nearest to {AFTER:,} after the model grokked (mean of its "
            "operations): runs of one operation end about then, and k may go on changing. Lower: the share of the pairs of "
            "seeds, one alone and one beside, in which k is lower beside.",
        ),
        Table("Dimensions of the class means at the last residual", [_dimensions(both, single, one) for one in OPERATIONS]),
        Table(
            "Accuracy after 10 directions of one operation are removed",
            [_collateral(both, one, ablation) for one in OPERATIONS for ablation in ("zero", "mean")],
        ),
        Table(
            "Selective kill: is there a k that kills this operation while the other keeps 99 % of its clean accuracy?",
            [_kill(both, one, ablation, run) for one in OPERATIONS for ablation in ("zero", "mean") for run in RUNS],
            "Seeds in which more than half of the stable checkpoints have such a k, the smallest k of these, and "
            "the lowest accuracy that the operation is brought to while the other keeps its own. k up to 64.",
        ),
        Table(
            "The same at each seed's last stable checkpoint",
            [_late(cell, one) for cell in last_only(both).done for one in OPERATIONS],
            "Mean ablation at the last residual but for the first k; k of a kill beside that of both controls; a row a "
            "seed, since runs differ in kind there (see E8). The log measured its run once, at its end (75,000 steps).",
        ),
        Table(
            "Overlap of the two operations' leading directions",
            [_overlap(both, k, of) for of in ("squared", "cosine") for k in KS],
            "The overlap of the log is not defined; its isotropic values are those of the mean squared cosine.",
        ),
    ]  # fmt: skip


def matched(cell: Cell, after: int = AFTER) -> Checkpoint | None:
    """Return the stable checkpoint whose step is nearest to ``after`` steps past the grok step; None where there is none."""
    grok = cell.grok_step
    if grok is None or not cell.stable:
        return None
    return min(cell.stable, key=lambda at: abs(at.step - grok - after))


def _grokking(both: Cells) -> list[dict[str, Any]]:
    def row(name: str, group: Cells) -> dict[str, Any]:
        each = {one: Spread.of(group.values(lambda c: _grok(c, one))) for one in OPERATIONS}  # noqa: B023 - used at once
        return {
            "": name,
            "seeds with a stable step": counted(group),
            **{f"grok step, {WORDS[one]}": found.text(",.0f", count=False) for one, found in each.items()},
            "both": Spread.of(group.values(_grok_of_both)).text(",.0f", count=False),
            "held out": Spread.of(group.values(lambda c: c.held_out)).text(".3f", count=False),
            "stable checkpoints": ", ".join(str(len(cell.stable)) for cell in group.done) or "-",
        }

    log = {
        "": "log, 75,000 steps",
        "seeds with a stable step": "one run",
        "both": "near 60,000",
        "held out": "1.000 / 0.9998",
    }
    ours = row("here, 40,000 steps", both)
    return [ours, {column: log.get(column, "-") for column in ours}]


def _grok(cell: Cell, operation: str) -> Value:
    """A grok step, or the steps of a run that never grokked, as a lower bound."""
    step = cell.training["per_operation"][operation]["grok_step"]
    return Value(float(cell.training["steps"]), censored=True) if step is None else Value(float(step))


def _grok_of_both(cell: Cell) -> Value:
    """The later grok step of the two (the run's own is of their mean accuracy, and may come before it)."""
    return max((_grok(cell, one) for one in OPERATIONS), key=lambda step: (step.number, step.censored))


def _k(
    one: str, place: str, ablation: str, run: str = "edited", tau: float = 0.95
) -> Callable[[Checkpoint], Value | None]:
    return lambda at: at.k(one, place, ablation, run=run, tau=tau)


def _removal(both: Cells, one: str, place: str, ablation: str) -> dict[str, Any]:
    log = the_log.E4[one]
    ours = {
        f"k@{tau:.0%}{'' if run == 'edited' else ', ' + RUNS[run]}": told(both, _k(one, place, ablation, run, tau))
        for tau in (0.95, 0.5) for run in RUNS
    }  # fmt: skip
    here = place == LAST and ablation == "zero"
    return {
        "operation": WORDS[one],
        "place": "last residual" if place == LAST else "every site",
        "ablation": ablation,
        **ours,
        "log, 95 / 50": f"{log['k@95%']} / {log['k@50%']}" if here else "-",
    }


def _alone(both: Cells, single: Cells, place: str, ablation: str) -> dict[str, Any]:
    of = _k("add", place, ablation)

    def then(group: Cells) -> Spread:
        return Spread.of(group.values(lambda cell: None if (at := matched(cell)) is None else of(at)))

    def lower(one: Spread, two: Spread) -> str:
        share = share_lower(two, one)
        return "-" if share is None else f"{share:.0%}"

    one, two = then(single), then(both)
    return {
        "place": "last residual" if place == LAST else "every site",
        "ablation": ablation,
        "alone": told(single, of),
        "beside": told(both, of),
        "lower": lower(spread(single, of), spread(both, of)),
        f"alone, {AFTER:,} after": one.text(count=False) if one.n else "-",
        f"beside, {AFTER:,} after": two.text(count=False) if two.n else "-",
        "lower then": lower(one, two),
        "log": "11 -> 2" if place == LAST and ablation == "zero" else "-",
    }


def _dimensions(both: Cells, single: Cells, one: str) -> dict[str, Any]:
    names = {"rank99": "Rank99", "dims95": "95 %-variance", "participation": "participation ratio"}
    found: dict[str, str] = {"operation": WORDS[one]}
    for key, name in names.items():
        found[name] = told(both, lambda at: at.get("class_means", one, f"all.{key}"))  # noqa: B023 - used at once
        found[f"{name}, alone"] = (
            told(single, lambda at: at.get("class_means", one, f"all.{key}")) if one == "add" else "not in a grid"  # noqa: B023
        )
    log = the_log.E6_TO_E8["baseline"][f"dims {one}"]
    return {**found, "log, significant": the_log.E4[one]["significant"], "log, 95 %-variance": log}


def _collateral(both: Cells, one: str, ablation: str) -> dict[str, Any]:
    other = OPERATIONS[1 - OPERATIONS.index(one)]

    def left(scored: str, run: str) -> str:
        return told(both, lambda at: _left(at, one, scored, ablation, run), ".3f")

    ours = {f"{name}: {word}": left(scored, run)
            for run, name in RUNS.items() for scored, word in ((one, "itself"), (other, "the other"))}  # fmt: skip
    return {
        "removed": WORDS[one],
        "ablation": ablation,
        **ours,
        "log, the other": the_log.E4[one]["collateral at 10"] if ablation == "zero" else "-",
    }


def _kill(both: Cells, one: str, ablation: str, run: str) -> dict[str, Any]:
    found: dict[str, str] = {"killed": WORDS[one], "ablation": ablation, "directions": RUNS[run]}
    for killed in (KILLED, CHANCE):
        seeds = over_seeds(both, lambda c: kills_selectively(c, one, ablation, run=run, killed=killed))  # noqa: B023
        ks = Spread.of(mean_kill(cell, one, ablation, run=run, killed=killed) for cell in both.done)
        found[f"seeds, under {killed:.0%}"] = seeds
        found[f"smallest k, under {killed:.0%}"] = ks.text(count=False) if ks.n else "-"
    least = Spread.of(mean_least(cell, one, ablation, run=run) for cell in both.done)
    here = run == "edited" and ablation == "zero"
    return {
        **found,
        "lowest accuracy": least.text(".2f", count=False) if least.n else "-",
        "log": "k = 9 to 14" if here else "-",
    }


def _left(at: Checkpoint, removed: str, scored: str, ablation: str = MEAN, run: str = "edited") -> float | None:
    """Accuracy of an operation after ten directions of one are removed."""
    curve = curve_of(at, removed, scored, ablation, run)
    return curve[10] if curve is not None and len(curve) > 10 else None


def _late(cell: Cell, one: str) -> dict[str, Any]:
    log, at = the_log.E4[one], cell.last
    other = OPERATIONS[1 - OPERATIONS.index(one)]
    kills = {run: selective_kill(at, one, run=run) for run in RUNS}
    ks = {run: None if kill is None else kill.k for run, kill in kills.items()}
    return {
        "operation": WORDS[one],
        "seed, step": f"{cell.config.seed}, {at.step:,}",
        "k@95%, zero": number(at.k(one, LAST, "zero")),
        "k@95%": number(at.k(one, LAST, MEAN)),
        "covariance-drawn": number(at.k(one, LAST, MEAN, run="covariance")),
        "95 %-variance": number(dimensions(at, one)),
        "other after 10": number(_left(at, one, other), ".3f"),
        "k of a kill": number(ks["edited"]),
        "covariance-drawn, top PCA": f"{number(ks['covariance'])}, {number(ks['pca'])}",
        "log: k, dims, other": f"{log['k@95%']}, {the_log.E6_TO_E8['baseline'][f'dims {one}']}, {log['collateral at 10']}",
    }


def _overlap(both: Cells, k: int, of: str) -> dict[str, Any]:
    log = {5: the_log.E6_TO_E8["baseline"]["overlap 5"]} | {int(at): m for at, m in the_log.E4["overlap"].items()}
    random = the_log.E4["random overlap"].get(str(k), "-")
    return {
        "k": k,
        "statistic": "mean squared cosine" if of == "squared" else "mean cosine",
        **overlap_row(both, k, of),
        "log (its random)": f"{log[k]} ({random})" if of == "squared" and k in log else "-",
    }
