"""R1: can every removal curve be predicted, and does weight decay matter once it is?

Predictions are recorded for the last stable checkpoint of every run of addition whose weights are kept, and for published
models. The constants and the conditions of success were registered before the test sets were measured
(`mi_ablate.studies.registration`, docs/prediction_registered.md) by ``python -m mi_ablate.studies.registering``.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mi_ablate.figures import panels
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.foretelling import ACTIVATIONS, Foretelling, take_third_party, third_party
from mi_ablate.studies.foretold import (
    ABLATIONS,
    EVERY,
    LAST,
    Points,
    Run,
    fitted_line,
    measured_of,
    slope_with_interval,
)
from mi_ablate.studies.registration import (
    BASELINES,
    FEWEST,
    KEY,
    PREDICTORS,
    PRIMARY,
    errors,
    foretell,
    gap_of,
    passes,
)
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Findings, Item, Study, Table, Verdict

FIT, TEST, PUBLISHED = "weight-decay", "other-moduli", "third-party"
MODULI = (59, 113)
KNOWN, ALL = "fitted on (p = 97)", "test: all"
QUESTION = (
    "How many directions can be removed before a model fails, and what does that number measure? From a model's class means "
    "at the last residual stream, the covariance within classes and its final norm and unembedding (no prompt is run with "
    "anything removed) every removal curve there is predicted without a fitted number; the curve at every site is predicted "
    "by one line a kind of ablation, fitted on addition mod 97. Constants and conditions were registered before the test "
    "sets (mod 59 and 113, and three published models) were measured: docs/prediction_registered.md. One checkpoint a run: "
    "the last stable one, at half precision. `unseen` uses held-out pairs that are not scored."
)


def items(cells: Cells) -> list[Item]:
    """Return the predictions to record: a run each, then the published models that are here."""
    found: dict[str, Item] = {}
    for cell in cells.done:
        key = f"{cell.key}@{cell.last.step}"
        kept = {entry["step"] for entry in cell.record["weights"]} if cell.record else set()
        if cell.stable and cell.last.step in kept and key not in found:
            about = {"grid": cell.grid, "cell": cell.key, "seed": cell.config.seed, "step": cell.last.step}
            found[key] = Item(key, about, partial(_of_cell, cell), seconds=3.0)
    for name, path in third_party().items():
        found[name] = Item(name, {"published": name}, partial(take_third_party, name, path), seconds=15.0)
    return list(found.values())


def _of_cell(cell: Cell) -> dict[str, Any]:
    task = cell.subject(cell.last.step).operations[cell.config.config.operations[0]].task
    return Foretelling(task).predictions(cell.config.weight_decay)


def runs_of(cells: Cells, own: Mapping[str, Any]) -> list[Run]:
    """Return every run that is measured and has its predictions recorded, each once, in the order of the grids."""
    found: dict[str, Run] = {}
    for cell in cells.done:
        key = f"{cell.key}@{cell.last.step}"
        measured = measured_of(cell, cell.config.config.operations[0])
        if key in own and key not in found and measured is not None and cell.stable:
            label = f"p = {cell.config.config.modulus}, weight decay {cell.config.weight_decay:g}"
            found[key] = Run(key, cell.grid, label, own[key]["result"], measured)
    for key, line in own.items():
        if line["about"].get("published"):
            found[key] = Run(key, PUBLISHED, key, line["result"], line["result"]["measured"])
    return list(found.values())


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return predicted beside measured, errors against the registered conditions, what weight decay adds, and R1."""
    runs = runs_of(cells, own)
    registered = own[KEY]["result"] if KEY in own else None
    tables = [Table("k@95% at the last residual, predicted and measured", list(_sizes(runs)), _SIZES)]
    if registered is None:
        told = "Nothing is registered here yet, so nothing is tested: `python -m mi_ablate.studies.registering`."
        return Findings(tables=tables, verdicts=[_given("not run", "-")], notes=[told])
    known = [run for run in runs if run.key in registered["runs"]]
    sets = {KNOWN: known} | {name: group for name, group in _sets(runs).items() if group}
    tables += [_errors(registered, sets, LAST, (*PREDICTORS, *BASELINES, "participation", "Rank99")),
               _errors(registered, sets, EVERY, (PRIMARY, *BASELINES))]  # fmt: skip
    tables.append(_weight_decay(registered, sets, known))
    return Findings(
        tables=tables,
        figures=_figures(known, _tested(runs)),
        verdicts=[_verdict(registered, _tested(runs))],
        notes=[*_in_short(registered, known), _check(runs)],
    )


_SIZES = (
    "Median [lowest, highest] over runs, the last stable checkpoint of each. `covariance` and `PCA` are the measured k of "
    "covariance-drawn subspaces and of the top principal components under mean-ablation."
)


def _in_short(registered: Mapping[str, Any], known: Sequence[Run]) -> list[str]:
    """How the registered prediction describes the runs that it was chosen on, and what weight decay adds to it there."""
    if len(known) < 3:
        return []
    told = ", ".join(f"{a} {errors(registered, known, LAST, a, PRIMARY).text()}" for a in ABLATIONS)
    some = [run for run in known if run.weight_decay]
    x, y = [math.log(run.weight_decay or 1) for run in some], [run.reading(LAST, "mean") for run in some]
    rest = [at - foretell(registered, run, LAST, "mean", PRIMARY) for run, at in zip(some, y)]
    return [
        "Class means and their pooled covariance, drawn as Gaussians and read by the model's own norm and W_U, give k@95% at "
        f"the last residual with no fitted number. On the {len(known)} known runs (mod 97), which it was chosen on, the median "
        f"factor of 1 + k and the rank correlation are: {told}. Under mean-ablation the slope of ln(1 + k) on ln(weight decay) "
        f"is {_slope(x, y)}, and {_slope(x, rest)} once the prediction is taken off. The registered test is the verdict below."
    ]


def _check(runs: Sequence[Run]) -> str:
    same = [sum(run.predicted(ACTIVATIONS, a) == run.reading(LAST, a) for run in runs) for a in ABLATIONS]
    told = ", ".join(f"{count} under {ablation}" for count, ablation in zip(same, ABLATIONS))
    return (
        "A check of the machinery: the scored pairs' own activations, from the weights at half precision, give the recorded "
        f"k@95% exactly in so many of {len(runs)} runs: {told}."
    )


def _tested(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.group in (TEST, PUBLISHED)]


def _sets(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The test sets, and other grids of addition that were recorded later."""
    found = {f"test: p = {p}": [r for r in runs if r.group == TEST and r.modulus == p] for p in MODULI}
    found["test: published"] = [run for run in runs if run.group == PUBLISHED]
    found[ALL] = _tested(runs)
    groups = dict.fromkeys(run.group for run in runs)
    return found | {f"later: {name}": [run for run in runs if run.group == name]
                    for name in groups if name not in (FIT, TEST, PUBLISHED)}  # fmt: skip


def _sizes(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.group, run.label), []).append(run)
    for (_, label), group in groups.items():
        row: dict[str, Any] = {"runs": f"{label} ({len(group)})"}
        for ablation in ABLATIONS:
            told = Spread.of(Value(math.expm1(run.predicted(PRIMARY, ablation))) for run in group)
            row[f"{ablation}, predicted"] = told.text(count=False)
            row[f"{ablation}, measured"] = Spread.of(run.k(ablation) for run in group).text(count=False)
        for name, control in {"covariance": "covariance", "PCA": "pca"}.items():
            row[name] = Spread.of(run.k("mean", control) for run in group).text(count=False)
        yield row


def _errors(registered: Mapping[str, Any], sets: Mapping[str, list[Run]], place: str, names: Sequence[str]) -> Table:
    """Every predictor on the runs that were fitted and on the whole test, the registered one alone on its parts."""
    rows = []
    for label, runs in sets.items():
        for by in names if label in (KNOWN, ALL) else (PRIMARY,):
            of = [run for run in runs if by not in PREDICTORS or by in run.result["predicted"]]
            row: dict[str, Any] = {"set": f"{label} ({len(of)})", "predicted by": by}
            for ablation in ABLATIONS:
                gaps = [gap for run in of if (gap := gap_of(registered, run, place, ablation, by)) is not None]
                row[ablation] = errors(registered, of, place, ablation, by).text() if of else "-"
                row[f"gap, {ablation}"] = f"{np.median(gaps):.3f}" if gaps else "-"
            rows.append(row)
    what = "1 + k@95%" if place == LAST else "the number of directions that halves accuracy"
    return Table(
        f"Errors of predictions, {place}",
        rows,
        f"Median over runs of the factor between predicted and measured {what}; in brackets Spearman's correlation over runs "
        "and its 95 % bootstrap interval over runs. gap: median root mean square difference of the curves. "
        f"`{PRIMARY}` is the prediction that was registered; the others are variants, or what it has to beat.",
    )


def _weight_decay(registered: Mapping[str, Any], sets: Mapping[str, list[Run]], known: Sequence[Run]) -> Table:
    """Slopes on ln(weight decay) before and after the prediction is taken off, and the fit without one weight decay."""
    rows = []
    for label, runs in sets.items():
        runs = [run for run in runs if run.weight_decay]
        x = [math.log(run.weight_decay or 1) for run in runs]
        for place in (LAST, EVERY):
            row: dict[str, Any] = {"set": f"{label} ({len(runs)})", "where": place}
            for ablation in ABLATIONS:
                y = [run.reading(place, ablation) for run in runs]
                rest = [at - foretell(registered, run, place, ablation, PRIMARY) for run, at in zip(runs, y)]
                row[f"{ablation}, measured"] = _slope(x, y)
                row[f"{ablation}, left over"] = _slope(x, rest)
            rows.append(row)
    without = ", ".join(f"{ablation} {_left_out(known, ablation):.2f}" for ablation in ABLATIONS) if known else "-"
    return Table(
        "What weight decay adds to the prediction",
        rows,
        "Slope on ln(weight decay) [95 % bootstrap over runs] of the logarithm that was measured, and of measured minus "
        "predicted: weight decay matters beyond class means and spread where the second interval leaves out 0. The line for "
        f"every site, fitted without one weight decay and tested on it, is off by a factor of (median over runs) {without}.",
    )


def _slope(x: Sequence[float], y: Sequence[float]) -> str:
    found = slope_with_interval(x, y)
    return "-" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def _left_out(runs: Sequence[Run], ablation: str) -> float:
    """The median factor of the every-site line on runs whose weight decay it was not fitted on."""
    found = []
    for value in {run.weight_decay for run in runs}:
        kept = [run for run in runs if run.weight_decay != value]
        if len(kept) > 2:
            x = [run.predicted(PRIMARY, ablation, EVERY) for run in kept]
            a, b = fitted_line(x, [run.reading(EVERY, ablation) for run in kept])
            found += [
                abs(run.reading(EVERY, ablation) - a - b * run.predicted(PRIMARY, ablation, EVERY))
                for run in runs
                if run.weight_decay == value
            ]
    return math.exp(float(np.median(found))) if found else math.nan


def _figures(known: Sequence[Run], tested: Sequence[Run]) -> dict[str, Callable[[], Any]]:
    end = "measured (solid) and predicted from class means, their spread and the readout (dotted)"
    drawn = {
        f"Addition mod 97, by weight decay: removal curves at the last residual, {end}; means over seeds.": known,
        f"The runs of the test: removal curves at the last residual, {end}; means over seeds.": tested,
    }
    return {caption: partial(_drawn, runs) for caption, runs in drawn.items() if runs}


def _drawn(runs: Sequence[Run]) -> Any:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    ks = max((run.curve(LAST, "mean")[0] for run in runs), key=len)

    def curves(of: Callable[[Run, str], Points], ablation: str) -> dict[str, list[float]]:
        found = {name: [of(run, ablation)[1] for run in group] for name, group in groups.items()}
        return {name: [float(np.mean(at)) for at in zip(*values)] for name, values in found.items()}

    measured = {a: curves(lambda run, a: run.curve(LAST, a), a) for a in ABLATIONS}
    told = {a: curves(lambda run, a: run.foretold(PRIMARY, a), a) for a in ABLATIONS}
    axes = "directions removed", "accuracy"
    return panels(ks, measured, controls=told, control="predicted", names="runs", axes=axes)


RULE = (
    "yes where, on the registered test runs, the prediction of the last residual and that of every site meet all registered "
    "conditions under all three ablations; no where one of them fails; undecided with fewer than "
    f"{FEWEST} test runs or without one of the two other moduli"
)


def _given(verdict: str, ours: str) -> Verdict:
    return Verdict("R1", verdict, "-", ours, RULE)


def _verdict(registered: Mapping[str, Any], runs: Sequence[Run]) -> Verdict:
    if not runs:
        return _given("not run", "-")
    few = len(runs) < FEWEST or not {run.modulus for run in runs if run.group == TEST} >= set(MODULI)
    told, good = [], True
    for place in (LAST, EVERY):
        for ablation in ABLATIONS:
            missed = [name for name, met in passes(registered, runs, place, ablation).items() if not met]
            good = good and not missed
            fails = f", fails: {', '.join(missed)}" if missed and not few else ""
            told.append(f"{place}, {ablation}: {errors(registered, runs, place, ablation, PRIMARY).text()}{fails}")
    verdict = "undecided" if few else "yes" if good else "no"
    return _given(verdict, f"{len(runs)} test runs, factor (rank correlation): " + "; ".join(told))


STUDY = Study(
    name="prediction",
    log="R1",
    title="What resistance to removal measures",
    question=QUESTION,
    grids=(FIT, TEST, "norms", "matched-decay", "grokking"),
    find=find,
    decides=("R1",),
    items=items,
)
