"""The tables of E2: what is removed, what it takes, and how much of a k is the reading of a curve.

Every number is the mean over a seed's stable checkpoints, then the median and range over seeds. A k stands beside the k of
covariance-drawn subspaces and of the top principal components; without these a k says how the variance is spread, not where
the answer is.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cells, Checkpoint
from mi_ablate.studies.groups import counted, grok_step, told, told_anyway
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Table

LAST, FROZEN = "last_residual.directions.live", "last_residual.directions.frozen"
PLANES, EVERY = "last_residual.planes", "every_site.live"
ABLATIONS = ("zero", "mean", "resample")
RUNS = {"contrastive": "edited", "covariance-drawn": "covariance", "top PCA": "pca"}
COUNTS = ("5", "10", "20", "all")
Groups = Mapping[float, Cells]
Row = dict[str, Any]


def k_of(where: str, ablation: str, **reading: Any) -> Callable[[Checkpoint], Value | None]:
    """Return the function that reads a k of addition off a checkpoint (`Checkpoint.k`)."""
    return lambda at: at.k("add", where, ablation, **reading)


def entry(measure: str, path: str) -> Callable[[Checkpoint], Any]:
    """Return the function that reads one number of addition off a checkpoint."""
    return lambda at: at.get(measure, "add", path)


def removed(ablation: str, run: str = "edited") -> Callable[[Checkpoint], Value | None]:
    """Return the function that gives the share of the variance removed at k@95%, last residual, live norms."""

    def read(at: Checkpoint) -> Value | None:
        k, curves = at.k("add", LAST, ablation, run=run), at.get("last_residual", "add", "directions.live")
        if k is None or run not in curves["variance_removed"]:
            return None
        return Value(curves["variance_removed"][run][curves["ks"].index(int(k.number))], k.censored)

    return read


def grokking(groups: Groups) -> Table:
    """Return held-out accuracy and grok step beside the log's."""
    rows = []
    for decay, group in groups.items():
        log = _log(decay)
        accuracy = Spread.of(cell.held_out for cell in group.done)
        rows.append({
            "weight decay": f"{decay:g}",
            "run": f"{len(group.done)} of {len(group)}",
            "held out": accuracy.text(".3f", count=False),
            "log's held out": f"{log['held out']:.3g}" if log else "-",
            "grok step": Spread.of(grok_step(cell) for cell in group.done).text(",.0f", count=False),
            "log's grok step": f"{log['grok step']:,}" if log.get("grok step") else "never" if log else "-",
        })  # fmt: skip
    note = (
        "Grok step: the first evaluation (every 100 steps) with held-out accuracy of 0.95; 5,000+ never grokked in 5,000. Held "
        "out: accuracy at the last stable step, or where there is none at the last step; the end of a run may be a dip."
    )
    return Table("Weight decay and grokking", rows, note)


def spectra(groups: Groups) -> Table:
    """Return Rank99 of the class means and the Fourier share of W_E in both definitions."""
    rows = []
    for decay, group in groups.items():
        log = _log(decay)
        rows.append({
            "weight decay": f"{decay:g}",
            "seeds": counted(group),
            "Rank99": told_anyway(group, entry("class_means", "all.rank99")),
            "log's Rank99": log.get("Rank99", "-"),
            "95 % dimensions": told_anyway(group, entry("class_means", "all.dims95")),
            "W_E in its top 5": told_anyway(group, entry("embedding", "W_E.top5.share"), ".2f"),
            "W_E in its top 10": told_anyway(group, entry("embedding", "W_E.top10.share"), ".2f"),
            "log's Fourier": log.get("Fourier", "-"),
        })  # fmt: skip
    blind = {
        f"top {most}": Spread.of(
            group.done[0].last.get("embedding", "add", f"W_E.top{most}.random")
            for group in groups.values() if group.done
        ).text(".2f", count=False)
        for most in (5, 10)
    }  # fmt: skip
    note = (
        "Rank99: singular values of the answers' mean activations at the last residual (all inputs) that hold 99 % of their "
        "energy. W_E: share of the energy of the number embeddings in the 5 or 10 strongest frequencies; of a random matrix "
        + ", ".join(f"{name}: {share}" for name, share in blind.items())
        + ". Seeds: with a stable step, of those that are run; every row is of these. Where none has one, the last "
        "measured step stands."
    )
    return Table("Weight decay, rank and frequencies", rows, note)


def removal(groups: Groups, where: str = LAST) -> Table:
    """Return k@95% under each ablation beside its controls', at the last residual or at every site."""
    rows = []
    for decay, group in groups.items():
        for ablation in ABLATIONS if _measured(group) else ("-",):
            row: Row = {"weight decay": f"{decay:g}", "seeds": counted(group), "ablation": ablation}
            for name, run in RUNS.items():
                row[f"k@95%, {name}"] = told(group, k_of(where, ablation, run=run))
            if where == EVERY:
                row["k@50%, contrastive"] = told(group, k_of(where, ablation, tau=0.5))
                row["k@50%, covariance-drawn"] = told(group, k_of(where, ablation, tau=0.5, run="covariance"))
            else:
                row["log's k@95%"] = _log(decay).get("k@95%") or "-"
            rows.append(row)
    if where == EVERY:
        return Table(
            "Removed at every site at once, each with a basis of its own", rows,
            "Residual stream after the first attention and after everything later, last position, live norms. Measured at "
            "k = 0, 1, 2, 3, 4, 6, 8, 12, ..., so a k of 4 is 4 to 5.",
        )  # fmt: skip
    return Table(
        "Removed at the last residual", rows,
        "The log does not say which ablation or site it used. Controls: mean accuracy of five covariance-drawn subspaces of "
        "the same rank, and the leading principal components. Live norms: the final LayerNorm sees the edit.",
    )  # fmt: skip


def readings(groups: Groups) -> Table:
    """Return how much k@95% at the last residual depends on how the curve is read."""
    rows = []
    for decay, group in groups.items():
        for ablation in ("zero", "mean") if _measured(group) else ("-",):
            rows.append({
                "weight decay": f"{decay:g}",
                "ablation": ablation,
                "as above": told(group, k_of(LAST, ablation)),
                "norms frozen": told(group, k_of(FROZEN, ablation)),
                "frequency planes": told(group, k_of(PLANES, ablation)),
                "last k still at 95 %": told(group, k_of(LAST, ablation, rule="hull")),
                "absolute 95 %": told(group, k_of(LAST, ablation, scale="absolute")),
                "k@50%": told(group, k_of(LAST, ablation, tau=0.5)),
            })  # fmt: skip
    note = (
        "As above: contrastive directions one by one, live norms, first fall under 95 % of the clean accuracy. Planes go two "
        "directions at a time, whole frequencies of the answer."
    )
    return Table("How much the number depends on its reading", rows, note)


def variances(groups: Groups) -> Table:
    """Return the mean's size and the variance that k@95% removes, under mean-ablation."""

    def offset(at: Checkpoint) -> float | None:
        found = at.get("variance", "add", "directions")
        return None if found is None else abs(found["mean"][0]) / max(found["variance"][0], 1e-30) ** 0.5

    def ratio(at: Checkpoint) -> float | None:
        found = at.get("variance", "add")
        return found["mean_norm"] / found["total"] ** 0.5 if found and found["total"] > 0 else None

    rows = [
        {
            "weight decay": f"{decay:g}",
            "norm of the mean": told(group, entry("variance", "mean_norm")),
            "over the spread": told(group, ratio),
            "mean along the first direction, in its sd": told(group, offset),
            "k@95% mean": told(group, k_of(LAST, "mean")),
            **{f"variance removed, {name}": told(group, removed("mean", run), ".2f") for name, run in RUNS.items()},
        }
        for decay, group in groups.items()
    ]  # fmt: skip
    note = (
        "Activations at the last residual over training pairs. Spread: root of the total variance. Where the mean is many "
        "standard deviations long along a direction, zero-ablation of that direction removes a constant before anything that "
        "depends on the input. Variance removed: share at each run's own k@95% under mean-ablation."
    )
    return Table("The mean, and k@95% in units of variance", rows, note)


def sufficiency(groups: Groups) -> Table:
    """Return what writing a + b + 5 into the answer circle does, beside removing the same subspace."""
    rows = []
    for decay, group in groups.items():
        for count in COUNTS if _measured(group) else ("-",):

            def of(path: str, count: str = count, group: Cells = group) -> str:
                return told(group, entry("writing", f"{count}.{path}"), ".3f")

            rows.append({
                "weight decay": f"{decay:g}",
                "frequencies": count,
                "written": of("edited"),
                "shuffled labels": of("controls.shuffled labels.mean"),
                "covariance-drawn": of("controls.covariance-drawn.mean"),
                "mean-ablated": of("ablated.edited"),
                "ablated, covariance-drawn": of("ablated.controls.covariance.mean"),
                "ablated, top PCA": of("ablated.controls.pca.mean"),
            })  # fmt: skip
    note = (
        "Written: share of held-out pairs that give a + b + 5 after its hand is written into the circle of these frequencies "
        "at the last residual; by a fit to shuffled labels, and by the right values in covariance-drawn subspaces of the same "
        "rank (a strict control: with many frequencies such a subspace holds most of the circle). Ablated: accuracy on the own "
        "answer with the same subspace set to its mean."
    )
    return Table("Writing beside removing: is the circle sufficient, is it necessary?", rows, note)


def _log(decay: float) -> Row:
    return next((dict(row) for row in the_log.E2 if row["weight decay"] == decay), {})


def _measured(group: Cells) -> bool:
    return any(cell.stable for cell in group.done)
