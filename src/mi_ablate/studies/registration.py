"""What was predicted, and what would count as success, written down before the test sets were measured.

`register` fits the constants on the runs that were known (the grid weight-decay, p = 97); they are recorded as one line of
the study's own measurements under the key "registered" and never fitted again. ``docs/prediction_registered.md`` is written
from that line. Thresholds are constants of this file, fixed with the same commit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mi_ablate.studies.foretold import ABLATIONS, EVERY, LAST, Errors, Run, curve_gap, fitted_line, stretched

KEY = "registered"
PRIMARY = "gaussian"
PREDICTORS = {
    "means": "class means of the training pairs alone",
    PRIMARY: "class means and pooled covariance within classes, of the training pairs",
    "unseen": "the same of held-out pairs that are not scored",
}
"""Predictors of the last residual that have no fitted number."""
SCALARS: dict[str, Callable[[Run], float | None]] = {
    "weight decay": lambda run: run.weight_decay,
    "margin": lambda run: run.result["margin"],
    "participation": lambda run: run.result["participation"],
    "Rank99": lambda run: run.result["rank99"],
}
"""Single numbers of a run; a prediction from one is a straight line in its logarithm."""
BASELINES = ("mean of the grid", "weight decay", "margin")
"""What a prediction must beat."""
RULES = {LAST: {"ratio": 1.25, "rank": 0.8, "low": 0.5, "gap": 0.1},
         EVERY: {"ratio": 1.25, "rank": 0.6, "low": 0.0, "gap": 0.1}}  # fmt: skip
"""Most the median factor between predicted and measured may be; least the rank correlation and the lower end of its interval
may be; most the median root mean square gap between curves may be."""
FEWEST = 8
"""Test runs that a verdict needs; both other moduli must be among them."""


def register(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the constants, fitted on these runs, as plain JSON.

    Raises:
        ValueError: fewer than three runs.

    """
    if len(runs) < 3:
        raise ValueError(f"{len(runs)} measured runs are too few to fit a prediction on: at least three are needed.")
    found: dict[str, Any] = {"runs": [run.key for run in runs], LAST: {}, EVERY: {}}
    for ablation in ABLATIONS:
        for place in (LAST, EVERY):
            y = [run.reading(place, ablation) for run in runs]
            lines = {"mean of the grid": (float(np.mean(y)), 0.0)}
            lines |= {name: fitted_line(*_known(of, runs, y)) for name, of in SCALARS.items()}
            if place == EVERY:
                x = [run.predicted(PRIMARY, ablation, EVERY) for run in runs]
                lines[PRIMARY] = fitted_line(x, y)
            ks = runs[0].curve(place, ablation)[0]
            curve = np.mean([np.interp(ks, *run.curve(place, ablation)) for run in runs], axis=0)
            found[place][ablation] = {"lines": {k: list(v) for k, v in lines.items()},
                                      "mean curve": {"ks": ks, "values": curve.tolist()}}  # fmt: skip
    return found


def foretell(registered: Mapping[str, Any], run: Run, place: str, ablation: str, by: str) -> float:
    """Return the predicted ln(1 + k) or ln(h) by a predictor, a scalar or a baseline.

    A scalar that is not known of a run, or is not positive, gives the mean of the grid.
    """
    if place == LAST and by in PREDICTORS:
        return run.predicted(by, ablation)
    lines = registered[place][ablation]["lines"]
    if place == EVERY and by == PRIMARY:
        return float(lines[by][0] + lines[by][1] * run.predicted(by, ablation, EVERY))
    value = SCALARS[by](run) if by in SCALARS else None
    if value is None or not value > 0:
        return float(lines["mean of the grid"][0])
    return float(lines[by][0] + lines[by][1] * np.log(value))


def gap_of(registered: Mapping[str, Any], run: Run, place: str, ablation: str, by: str) -> float | None:
    """Return the root mean square gap between predicted and measured curve; None where only a number is predicted.

    The predicted curve at every site is the mean curve of the fitted runs, stretched to the predicted h.
    """
    measured, mean = run.curve(place, ablation), registered[place][ablation]["mean curve"]
    if place == LAST and by in PREDICTORS:
        return run.gap(by, ablation)
    if by == "mean of the grid":
        return curve_gap((mean["ks"], mean["values"]), measured)
    if place == LAST or by != PRIMARY:
        return None
    half = float(np.exp(foretell(registered, run, place, ablation, by)))
    return curve_gap(stretched((mean["ks"], mean["values"]), half), measured)


def errors(registered: Mapping[str, Any], runs: Sequence[Run], place: str, ablation: str, by: str) -> Errors:
    """Return the errors of a predictor over runs, one at least."""
    predicted = [foretell(registered, run, place, ablation, by) for run in runs]
    return Errors.of(predicted, [run.reading(place, ablation) for run in runs])


def passes(registered: Mapping[str, Any], runs: Sequence[Run], place: str, ablation: str) -> dict[str, bool]:
    """Return which of the registered conditions the primary prediction meets on these runs."""
    rule, mine = RULES[place], errors(registered, runs, place, ablation, PRIMARY)
    gaps = [gap_of(registered, run, place, ablation, PRIMARY) for run in runs]
    others = [errors(registered, runs, place, ablation, by) for by in BASELINES]
    return {
        "factor": mine.ratio <= rule["ratio"],
        "rank": mine.rank is not None and mine.rank >= rule["rank"],
        "interval": mine.low is not None and mine.low > rule["low"],
        "curves": float(np.median([gap for gap in gaps if gap is not None])) <= rule["gap"],
        "baselines": all(mine.ratio < other.ratio for other in others),
    }


def _known(
    of: Callable[[Run], float | None], runs: Sequence[Run], y: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Logarithms of a scalar where it is positive, and what belongs to them."""
    pairs = [(float(np.log(value)), at) for run, at in zip(runs, y) if (value := of(run)) is not None and value > 0]
    return [x for x, _ in pairs], [at for _, at in pairs]
