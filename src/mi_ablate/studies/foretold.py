"""Predictions of removal curves beside what was measured: one run's numbers, and the errors over many runs.

Two readings of a curve are compared, each on a logarithmic scale, since a factor in k means the same at 3 and at 30:

- at the last residual ln(1 + k), k the largest number of directions with 95 % of the clean accuracy left (first failure);
- at every site ln(h), h the number of directions at which the curve crosses half of its clean accuracy, between the measured
  ones on a straight line: k@95% is 0 or 1 there in nearly all runs, so it tells runs no further apart.

Intervals are bootstraps over runs (seeded): runs are what a prediction is made for. They say nothing of kinds of models that
are not among the runs. A curve that ends before it falls counts with its end, predicted and measured alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mi_ablate.studies.cells import Cell
from mi_ablate.studies.spread import Value

ABLATIONS = ("zero", "mean", "resample")
LAST, EVERY = "last residual", "every site"
DRAWS, FEW = 1000, 5
"""Of a bootstrap, and the fewest runs that it is drawn from."""
Points = tuple[Sequence[int | float], Sequence[float]]
"""A curve: the k, and the accuracy at each."""


@dataclass(frozen=True)
class Run:
    """One trained model with its predicted and measured curves."""

    key: str
    group: str
    """The grid it belongs to, or "third-party"."""
    label: str
    result: Mapping[str, Any]
    """What `mi_ablate.studies.prediction` recorded of it."""
    measured: Mapping[str, Mapping[str, Any]]
    """Curves as `mi_ablate.measures` writes them, norms live: by place."""

    @property
    def weight_decay(self) -> float | None:
        """Its weight decay, where it is known."""
        return self.result["weight_decay"]

    @property
    def modulus(self) -> int:
        """The p of addition mod p."""
        return int(self.result["modulus"])

    def curve(self, place: str, ablation: str) -> Points:
        """Return the measured curve: the k, and the accuracy at each."""
        found = self.measured[place]
        return found["ks"], found[ablation]["edited"]

    def k(self, ablation: str, run: str = "edited") -> Value | None:
        """Return the measured k@95% at the last residual; ``run`` may be a control."""
        read = self.measured[LAST][ablation]["k"][run]["0.95"]["first"]["relative"]
        return None if read is None else Value(read["k"], read["censored"])

    def foretold(self, predictor: str, ablation: str) -> Points:
        """Return the predicted curve at the last residual."""
        return self.result["ks"], self.result["predicted"][predictor][ablation]

    def reading(self, place: str, ablation: str) -> float:
        """Return the measured ln(1 + k) or ln(h)."""
        return read_curve(place, *self.curve(place, ablation))

    def predicted(self, predictor: str, ablation: str, place: str = LAST) -> float:
        """Return ln(1 + k), or ln(h) of the curve at the *last residual*, as a predictor has it."""
        return read_curve(place, *self.foretold(predictor, ablation))

    def gap(self, predictor: str, ablation: str) -> float:
        """Return the root mean square of predicted minus measured accuracy over the measured k, at the last residual."""
        return curve_gap(self.foretold(predictor, ablation), self.curve(LAST, ablation))


def measured_of(cell: Cell, operation: str) -> dict[str, Mapping[str, Any]] | None:
    """Return the recorded curves of a cell's last stable checkpoint; None where one is missing."""
    last = cell.last.get("last_residual", operation, "directions.live")
    every = cell.last.get("every_site", operation, "live")
    return None if last is None or every is None else {LAST: last, EVERY: every}


def read_curve(place: str, ks: Sequence[int | float], values: Sequence[float]) -> float:
    """Return ln(1 + k@95%) of a curve for the last residual, ln(h) for every site."""
    if place == LAST:
        failed = next((i for i, y in enumerate(values) if y < 0.95 * values[0]), len(values))
        return math.log1p(ks[max(failed - 1, 0)])
    for (low, before), (high, after) in zip(zip(ks, values), zip(ks[1:], values[1:])):
        if after < values[0] / 2:
            return math.log(low + (before - values[0] / 2) / (before - after) * (high - low))
    return math.log(ks[-1])


def curve_gap(one: Points, other: Points) -> float:
    """Return the root mean square difference of two curves at the k of the second, the first on straight lines between."""
    at = np.asarray(other[0], dtype=float)
    return float(np.sqrt(np.mean((np.interp(at, *one) - np.asarray(other[1])) ** 2)))


def stretched(curve: Points, half: float) -> Points:
    """Return a curve with its k rescaled so that it crosses half of its clean accuracy at ``half``."""
    factor = half / math.exp(read_curve(EVERY, *curve))
    return [k * factor for k in curve[0]], curve[1]


def fitted_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return intercept and slope of the least-squares line; slope 0 where x does not vary."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    spread = a - a.mean()
    slope = float(spread @ b / (spread @ spread)) if float(spread @ spread) > 0 else 0.0
    return float(b.mean() - slope * a.mean()), slope


@dataclass(frozen=True)
class Errors:
    """Predicted against measured logarithms over runs."""

    n: int
    ratio: float
    """The median over runs of the factor between predicted and measured, 1 or more."""
    rank: float | None
    """Spearman's rank correlation; None where either has one value only."""
    low: float | None
    high: float | None
    """Its 2.5 and 97.5 % bootstrap quantiles over runs."""

    @classmethod
    def of(cls, predicted: Sequence[float], measured: Sequence[float]) -> "Errors":
        """Return the errors over runs, one at least."""
        x, y = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
        rows = np.random.default_rng(0).integers(0, len(x), (DRAWS, len(x)))
        drawn = _ranked(x[rows], y[rows])
        drawn = drawn[np.isfinite(drawn)]
        whole = float(_ranked(x[None], y[None])[0])
        ends = (float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))) if len(drawn) else (None, None)
        ratio = math.exp(float(np.median(np.abs(x - y))))
        return cls(len(x), ratio, whole if math.isfinite(whole) else None, *ends)

    def text(self) -> str:
        """Return "1.1 (0.95 [0.9, 0.99])": factor, and rank correlation with its interval."""
        return f"{self.ratio:.2f} ({self.rank_text()})"

    def rank_text(self) -> str:
        """Return "0.95 [0.9, 0.99]"; "-" where there is none, or from fewer runs than a bootstrap can be drawn from."""
        return "-" if self.rank is None or self.n < FEW else f"{self.rank:.2f} [{self.low:.2f}, {self.high:.2f}]"


def slope_with_interval(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the slope of y on x with its 2.5 and 97.5 % bootstrap quantiles over runs; None of too few runs."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) < FEW or len(set(a.tolist())) < 2:
        return None
    rows = np.random.default_rng(0).integers(0, len(a), (DRAWS, len(a)))
    spread = a[rows] - a[rows].mean(1, keepdims=True)
    squares = (spread**2).sum(1)
    kept = squares > 0
    slopes = ((spread * b[rows]).sum(1)[kept]) / squares[kept]
    return fitted_line(x, y)[1], float(np.quantile(slopes, 0.025)), float(np.quantile(slopes, 0.975))


def _ranked(x: Any, y: Any) -> Any:
    """Spearman's correlation of each row; nan where a row is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(v, axis=1) for v in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
