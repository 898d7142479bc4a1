"""Runs at several batch sizes, told apart by what changes with the batch, and how grokking goes with its size.

``plain``: nothing else changes. ``decay``: weight decay in proportion to the batch, so that learning rate x weight decay x
steps is the same after the same samples. ``rate``: the learning rate by its square root (the rule for Adam of Malladi et al.
2022, arXiv 2205.10287). The run at the usual batch belongs to all three.

An exponent e says that the grok step goes as batch^e: 0 where steps alone count, -1 where samples do. It is the slope of a
line through log grok step, of one seed (the same initial weights and training pairs at every batch size); runs that never
grokked enter as their steps. It misleads where two causes cross within the range: a line is not a law.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from mi_ablate.studies.cells import Cell, Cells, chosen
from mi_ablate.studies.groups import grok_step
from mi_ablate.studies.spread import Value
from mi_ablate.toys.recipes import TrainConfig

PLAIN, DECAY, RATE = "plain", "decay", "rate"


def batch_of(config: TrainConfig) -> int:
    """Return the training pairs of a step; all of them where the run is of the full batch."""
    return pairs(config) if config.batch_size is None else config.batch_size


def pairs(config: TrainConfig) -> int:
    """Return how many pairs a run trains on."""
    return int(config.train_fraction * config.config.modulus**2) * len(config.config.operations)


def arm_of(config: TrainConfig, usual: TrainConfig) -> str:
    """Return what a run changes besides the batch size."""
    if config.learning_rate != usual.learning_rate:
        return RATE
    return PLAIN if config.weight_decay == usual.weight_decay else DECAY


def grok_samples(cell: Cell) -> Value:
    """Return the training pairs seen by the grok step, repeats counted."""
    step = grok_step(cell)
    return Value(step.number * batch_of(cell.config), step.censored)


def held_out_at(cell: Cell, step: int) -> float | None:
    """Return held-out accuracy at the last recorded evaluation up to a step; None where the run ended before it."""
    rows = [row for row in cell.training["history"] if row[0] <= step]
    return float(rows[-1][4]) if rows and cell.training["steps"] >= step else None


@dataclass(frozen=True)
class Arms:
    """The cells of each arm by batch size, and the usual run that they are compared with."""

    usual: TrainConfig
    groups: Mapping[str, Mapping[int, Cells]]

    @classmethod
    def of(cls, cells: Cells) -> "Arms":
        """Return the arms among the cells of ``batch-size``; the usual runs are those of ``weight-decay`` at 1.0."""
        base, others = cells.where(grid="weight-decay", weight_decay=1.0), cells.where(grid="batch-size")
        usual, groups = base.cells[0].config, {}
        for arm in (PLAIN, DECAY, RATE):
            mine = [*base, *(cell for cell in others if arm_of(cell.config, usual) == arm)]
            sizes = sorted({batch_of(cell.config) for cell in mine})
            groups[arm] = {size: chosen(cell for cell in mine if batch_of(cell.config) == size) for size in sizes}
        return cls(usual, groups)

    @property
    def samples(self) -> int:
        """Training pairs that the usual run sees, repeats counted."""
        return self.usual.steps * batch_of(self.usual)

    @property
    def largest(self) -> int:
        """The largest batch."""
        return max(self.groups[PLAIN])

    def exponents(self, arm: str) -> dict[int, Value]:
        """Return e of grok step ~ batch^e by seed, over batches no larger than the training set."""
        found: dict[int, dict[int, Value]] = {}
        for size, group in self.groups[arm].items():
            for cell in group.done if size <= pairs(self.usual) else ():
                found.setdefault(cell.config.seed, {})[size] = grok_step(cell)
        slopes = {seed: exponent(points) for seed, points in found.items()}
        return {seed: slope for seed, slope in sorted(slopes.items()) if slope is not None}


def exponent(points: Mapping[int, Value]) -> Value | None:
    """Return the slope of log value over log batch; at least that where a large batch's value is only a lower bound.

    None for fewer than three batches, and where a small batch's value is only a lower bound: the slope may then be any smaller
    one.
    """
    if len(points) < 3:
        return None
    logs = {size: math.log(size) for size in points}
    centre = statistics.fmean(logs.values())
    if any(value.censored and logs[size] < centre for size, value in points.items()):
        return None
    over = {size: x - centre for size, x in logs.items()}
    slope = sum(over[size] * math.log(value.number) for size, value in points.items()) / sum(
        x**2 for x in over.values()
    )
    return Value(slope, any(value.censored and over[size] > 0 for size, value in points.items()))


def shifted(exponents: Mapping[int, Value]) -> dict[int, Value]:
    """Return exponents of the samples at the grok step: steps x batch."""
    return {seed: Value(e.number + 1, e.censored) for seed, e in exponents.items()}
