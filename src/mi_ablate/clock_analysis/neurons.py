"""The neurons that matter most: which ones, what their pre-activations are functions of, and what those functions are worth.

Neurons are ranked by attribution over all MLPs (Kantamneni & Tegmark 2025, section 5.4, keep the first hundredth). The fewest
are kept with which, all others at their means, the model has `KEPT` of its accuracy. Each one's pre-activation is fitted by
circles of a, b and the answer, and the kept ones' true or fitted values are written on problems that were not fitted.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from mi_ablate.arithmetic.neuron_level.kept_neurons import KeptNeurons, fitted_accuracy
from mi_ablate.arithmetic.neuron_level.neuron_effects import NeuronEffects, neuron_attribution
from mi_ablate.arithmetic.neuron_level.neurons import NeuronFits, neuron_fits
from mi_ablate.clock_analysis.bench import Bench

KEPT = 0.8
SPAN, NEAR = 100, 0.05
"""Other periods are those of so many numbers, none nearer than this share to one that was asked for."""
IDLE = 1e-6
"""Of the largest effect: neurons below it are not fitted."""
MOST = 5000
"""Neurons that are fitted and kept, at most."""
_POINTS = 9


@dataclass(frozen=True, eq=False, repr=False)
class Neurons:
    """Effects of all neurons, and the fits of the kept ones."""

    effects: NeuronEffects
    fits: NeuronFits
    """Of the kept ones, the largest effect first."""
    kept: KeptNeurons
    other_periods: tuple[float, ...]
    """As many as were asked for, drawn at random from those that were not."""
    other: float
    """The accuracy with fits of these periods, as many neurons kept."""

    @property
    def enough(self) -> int:
        """The index in ``kept.ks`` of the fewest neurons that reach `KEPT` of the accuracy; the last where none does."""
        wanted = KEPT * float(self.kept.intact["accuracy"].mean())
        reached = torch.nonzero(self.kept.accuracy["live"].mean(1) >= wanted).flatten()
        return int(reached[0]) if len(reached) else len(self.kept.ks) - 1

    @property
    def count(self) -> int:
        """How many those are."""
        return self.kept.ks[self.enough]

    def by_layer(self) -> list[dict[str, Any]]:
        """Return one row a layer: how many are kept, medians of their fits, and their commonest periods."""
        table, found = self.fits.table()[: self.count], []
        for layer in sorted({row["layer"] for row in table}):
            rows = [row for row in table if row["layer"] == layer]
            made: dict[str, Any] = {"layer": layer, "kept": len(rows)}
            for name in ("r2", "shuffled r2", "nrmse", "answer_fraction"):
                made[f"median {name.replace('_', ' ')}"] = median([row[name] for row in rows])
            found.append(made | ({"commonest periods": commonest(rows)} if "period" in rows[0] else {}))
        return found

    def worth(self, method: str = "fitted") -> float:
        """Return which share of the true values' accuracy, above that of none kept, another way's values reach.

        Args:
            method: "fitted", "shuffled", or "other periods".

        """
        empty = float(self.kept.empty["accuracy"].mean())
        whole = float(self.kept.accuracy["true"][self.enough].mean()) - empty
        here = self.other if method == "other periods" else float(self.kept.accuracy[method][self.enough].mean())
        return (here - empty) / whole if whole > 0 else float("nan")


def median(values: list[float]) -> float:
    """Return the median of what is finite; NaN of nothing."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x[x.isfinite()].median()) if bool(x.isfinite().any()) else float("nan")


def commonest(rows: list[dict[str, Any]]) -> str:
    """Return the three commonest dominant periods and their counts; neurons without a period (NaN) are left out."""
    counts: dict[str, int] = {}
    for row in (row for row in rows if row["period"] == row["period"]):
        name = f"{row['period']:.4g}"
        counts[name] = counts.get(name, 0) + 1
    most = sorted(counts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} ({count})" for name, count in most)


def neurons(bench: Bench) -> Neurons:
    """Return the neurons of the largest effects, their fits, and accuracies with only some kept."""
    given: dict[str, Any] = {"batch_size": bench.batch_size}
    effects = neuron_attribution(bench.model, bench.pairs, progress=bench.tell("attribution"), **given)
    count = min(MOST, max(1, int((effects.mean.abs() > IDLE * effects.mean.abs().max()).sum())))
    fits = neuron_fits(
        bench.model, bench.neurons, effects.top(count), periods=bench.periods, seed=bench.seed,
        progress=bench.tell("neuron fits"), **given,
    )  # fmt: skip
    ks = sorted({round(count ** (i / (_POINTS - 1))) for i in range(_POINTS)})
    kept = fitted_accuracy(
        bench.model, bench.judged, fits, ks, seed=bench.seed, progress=bench.tell("kept neurons"), **given
    )
    found = Neurons(effects, fits, kept, _others(bench), float("nan"))
    return replace(found, other=_fitted_otherwise(bench, found))


def _others(bench: Bench) -> tuple[float, ...]:
    """Periods of the same grid as the numbers' spectrum, none near one that was asked for."""
    size = bench.fitted.modulus or SPAN
    grid = [size / k for k in range(1, (size + 1) // 2)]
    left = [T for T in grid if all(abs(T / asked - 1) > NEAR for asked in bench.periods)]
    order = torch.randperm(len(left), generator=torch.Generator().manual_seed(bench.seed)).tolist()
    return tuple(left[i] for i in order[: len(bench.periods)])


def _fitted_otherwise(bench: Bench, found: Neurons) -> float:
    """The accuracy with the kept neurons' fits of other periods."""
    if not found.other_periods:
        return float("nan")
    chosen = found.fits.neurons[: found.count]
    given: dict[str, Any] = {"batch_size": bench.batch_size}
    fits = neuron_fits(bench.model, bench.fitted, chosen, periods=found.other_periods, seed=bench.seed, **given)
    kept = fitted_accuracy(bench.model, bench.judged, fits, [found.count], methods=["fitted"], **given)
    return float(kept.accuracy["fitted"].mean())
