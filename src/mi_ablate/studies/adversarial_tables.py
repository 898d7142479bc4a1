"""The tables of adversarial training: an arm a row, the log's numbers beside the two arms that it has."""

from collections.abc import Callable
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cell, Cells, Checkpoint
from mi_ablate.studies.groups import counted, grok_step, hours, told
from mi_ablate.studies.overlaps import overlap_at, reading, reference_at
from mi_ablate.studies.penalties import (
    BASELINE,
    DRAWN,
    OPERATIONS,
    OWN,
    WORDS,
    Arms,
    by_seed,
    differences,
    dims_of,
    dims_of_all,
    k_of,
    k_of_all,
)
from mi_ablate.studies.selective import KILLED, LAST, curve_of, kills_selectively, mean_kill, mean_least, over_seeds
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Table

EVERY = "every_site.live"
ABLATIONS = ("zero", "mean", "resample")
RUNS = {"contrastive": "edited", "covariance-drawn": "covariance", "top PCA": "pca"}
MANY = 30
Row = dict[str, Any]


def tables(found: Arms) -> list[Table]:
    """Return the tables; every arm is in the first, those that are run are in the others."""
    run = {name: group for name, group in found.items() if group.done}
    each = [(name, group, one) for name, group in run.items() for one in OPERATIONS]
    return [
        Table(
            "Arms: grokking, and the overlap of the two operations",
            [_overlap(name, group) for name, group in found.items()],
            "Mean squared cosine of the leading 5 and 10 directions; isotropic subspaces have 0.04 and 0.08 at d = "
            "128.",
        ),
        Table(
            "k@95%: how many contrastive directions can be removed",
            [_removal(*one, ablation) for one in each for ablation in ABLATIONS],
            "Beside each k that of covariance-drawn subspaces (5 draws) and of top principal components of the same "
            "activations.",
        ),
        Table(
            f"How the answer is spread, and what {MANY} directions leave",
            [_spread(*one) for one in each],
            "Dimensions of the answers' mean activations (all inputs) for 95 % and 99 % of their variance. Accuracy "
            "after "
            f"{MANY} contrastive directions are removed at the last residual, and after as many covariance-drawn ones.",
        ),
        Table(
            "Killing one operation: what happens to the other",
            [_kill(*one, ablation) for one in each for ablation in ("zero", "mean")],
            f"A kill: under {KILLED:.0%} while the other keeps 99 % of its clean accuracy, at more than half of a "
            "seed's stable "
            "checkpoints. The other's accuracy is taken at the smallest k that kills, whatever that does to the other.",
        ),
        Table(
            "Do its own directions do it? Differences seed by seed",
            _differences(found),
            "Means of both operations. A penalty of the same size and schedule that removes covariance-drawn subspaces "
            "instead is the control: what it gains is not owed to the contrastive directions.",
        ),
    ]


def _log(arm: str) -> dict[str, Any]:
    return {BASELINE: the_log.E6_TO_E8["baseline"], OWN: the_log.E6_TO_E8["adversarial"]}.get(arm, {})


def _overlap(arm: str, group: Cells) -> Row:
    log = _log(arm)
    found: Row = {
        "penalty": arm,
        "seeds with a stable step": counted(group) if group.done else hours(group),
        "grok step": Spread.of(grok_step(cell) for cell in group.done).text(",.0f", count=False),
        "held out": Spread.of(cell.held_out for cell in group.done).text(".3f", count=False),
    }
    for k in (5, 10):
        found[f"top-{k} overlap"] = told(group, reading(overlap_at, k), ".2f")
        found[f"covariance-drawn, {k}"] = told(group, reading(reference_at, k, "covariance-drawn"), ".2f")
    found["split half, 10"] = told(group, reading(reference_at, 10, "split half"), ".2f")
    return found | {"log, 5 / 10": f"{log['overlap 5']} / {log['overlap 10']}" if log else "-"}


def _removal(arm: str, group: Cells, one: str, ablation: str) -> Row:
    log, here = _log(arm), ablation == "zero"
    places = {"last residual": LAST, "every site": EVERY}
    ours = {
        f"{place}{'' if run == 'edited' else ', ' + name}": told(group, k_of(one, ablation, where, run))
        for place, where in places.items() for name, run in RUNS.items()
    }  # fmt: skip
    row = {"penalty": arm, "operation": WORDS[one], "ablation": ablation}
    return {**row, **ours, "log": log[one] if log and here else "-"}


def after(one: str, k: int, ablation: str, run: str = "edited") -> Callable[[Checkpoint], float | None]:
    """Return the function that reads an operation's accuracy after k of its directions are removed at the last "
    "residual."""

    def read(at: Checkpoint) -> float | None:
        curve = curve_of(at, one, one, ablation, run)
        return curve[k] if curve is not None and len(curve) > k else None

    return read


def _spread(arm: str, group: Cells, one: str) -> Row:
    log = _log(arm)
    left = {
        f"{ablation}{'' if run == 'edited' else ', ' + name}": told(group, after(one, MANY, ablation, run), ".2f")
        for ablation in ("zero", "mean") for name, run in RUNS.items() if run != "pca"
    }  # fmt: skip
    return {
        "penalty": arm,
        "operation": WORDS[one],
        "95 % dims": told(group, dims_of(one)),
        "log's dims": log[f"dims {one}"] if log else "-",
        "Rank99": told(group, dims_of(one, "rank99")),
        **left,
        "log's accuracy": the_log.E7["add left after 30"] if arm == OWN and one == "add" else "-",
    }


def dragged(cell: Cell, one: str, ablation: str) -> tuple[float | None, float | None]:
    """Return the smallest k that leaves an operation under 50 %, and the other's accuracy there; means over stable "
    "checkpoints."""
    other = OPERATIONS[1 - OPERATIONS.index(one)]

    def k(at: Checkpoint) -> int | None:
        own = curve_of(at, one, one, ablation)
        return None if own is None else next((k for k, accuracy in enumerate(own) if accuracy < KILLED), None)

    def there(at: Checkpoint) -> float | None:
        where, curve = k(at), curve_of(at, one, other, ablation)
        return None if where is None or curve is None else curve[where]

    mean, left = cell.mean(k), cell.mean(there)
    return None if mean is None else mean.number, None if left is None else left.number


def _kill(arm: str, group: Cells, one: str, ablation: str) -> Row:
    ks, left = zip(*(dragged(cell, one, ablation) for cell in group.done))
    alone = Spread.of(mean_kill(cell, one, ablation) for cell in group.done)
    least = Spread.of(mean_least(cell, one, ablation) for cell in group.done)
    killed, kept = Spread.of(ks), Spread.of(left)
    log = the_log.E7 if arm == OWN and one == "mul" and ablation == "zero" else {}
    return {
        "penalty": arm,
        "killed": WORDS[one],
        "ablation": ablation,
        "k that kills": killed.text(count=False) if killed.n else "none",
        "the other there": kept.text(".2f", count=False) if kept.n else "-",
        "seeds with a selective kill": over_seeds(group, lambda cell: kills_selectively(cell, one, ablation)),
        "its smallest k": alone.text(count=False) if alone.n else "-",
        "lowest while the other stays": least.text(".2f", count=False) if least.n else "-",
        "covariance-drawn kills": over_seeds(
            group, lambda cell: kills_selectively(cell, one, ablation, run="covariance")
        ),
        "log": f"k {log['k that kills mul']}, the other {log['add then']}" if log else "-",
    }


def _differences(found: Arms) -> list[Row]:
    measures: dict[str, Any] = {
        f"k@95% {place}, {ablation}": k_of_all(ablation, where)
        for place, where in (("last residual", LAST), ("every site", EVERY)) for ablation in ABLATIONS
    }  # fmt: skip
    measures |= {"95 % dims": dims_of_all, "top-10 overlap": reading(overlap_at, 10)}
    pairs = {
        "own directions - no penalty": (OWN, BASELINE),
        "covariance-drawn - no penalty": (DRAWN, BASELINE),
        "own - covariance-drawn": (OWN, DRAWN),
    }
    rows = []
    for measure, of in measures.items():
        seeds = {arm: by_seed(found[arm], of) for arm in (BASELINE, OWN, DRAWN)}
        texts = {name: differences(seeds[a], seeds[b]).text("+.3g") for name, (a, b) in pairs.items()}
        rows.append({"": measure, **texts})
    return rows
