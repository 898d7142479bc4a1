"""The arms of adversarial training in the records, and what their seeds say beside the model without a penalty.

An arm is the penalty that a model was trained with: what was removed, how many directions, from which step on. Arms and
the baseline share their seeds (initial weights, training pairs, batches), so differences are taken seed by seed. They
are no twins: after the penalty starts two runs of a seed drift apart, so a difference holds the noise of two runs.
"""

from collections.abc import Callable, Mapping

from mi_ablate.studies.cells import Cell, Cells, Checkpoint, chosen
from mi_ablate.studies.selective import LAST
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.toys.penalty import Penalty

BASELINE, OWN, DRAWN = "no penalty", "contrastive, 10", "covariance-drawn, 10"
KINDS = {
    "contrastive": "contrastive",
    "covariance": "covariance-drawn",
    "pca": "top PCA",
    "shuffled": "shuffled answers",
    "dropout": "dropout",
}
OPERATIONS = ("add", "mul")
WORDS = {"add": "addition", "mul": "multiplication"}
Arms = Mapping[str, Cells]
Number = Value | float | None


def name_of(penalty: Penalty | None) -> str:
    """Return an arm's name, its start left out: "no penalty", "contrastive, 10", "contrastive, 10, through"."""
    if penalty is None:
        return BASELINE
    return f"{KINDS[penalty.kind]}, {penalty.directions}{', through' if penalty.through else ''}"


def arms(cells: Cells) -> dict[str, Cells]:
    """Return the cells of two tasks by arm, the baseline first; later starts (grid late-penalty) are left out."""
    found: dict[str, list[Cell]] = {BASELINE: [], OWN: [], DRAWN: []}
    for cell in cells:
        if cell.grid in ("two-tasks", "adversarial", "adversarial-arms"):
            found.setdefault(name_of(cell.config.penalty), []).append(cell)
    return {name: chosen(group) for name, group in found.items()}


def starts(cells: Cells) -> dict[int | None, Cells]:
    """Return the cells of two tasks by the step at which the contrastive penalty starts; None, never, comes first."""
    found: dict[int | None, list[Cell]] = {None: []}
    for cell in cells:
        penalty = cell.config.penalty
        if cell.grid == "two-tasks" or (penalty is not None and name_of(penalty) == OWN):
            found.setdefault(None if penalty is None else penalty.start, []).append(cell)
    return {start: chosen(found[start]) for start in sorted(found, key=lambda s: -1 if s is None else s)}


def by_seed(group: Cells, of: Callable[[Checkpoint], Number]) -> dict[int, Value]:
    """Return a number of each seed, the mean over its stable checkpoints."""
    found = {cell.config.seed: cell.mean(of) for cell in group.done}
    return {seed: value for seed, value in found.items() if value is not None}


def differences(more: Mapping[int, Value], less: Mapping[int, Value]) -> Spread:
    """Return the differences of the seeds that both have; one from a value that is only a lower bound is left out."""
    shared = [(more[seed], less[seed]) for seed in more if seed in less and not less[seed].censored]
    return Spread.of(Value(a.number - b.number, a.censored) for a, b in shared)


def ratios(more: Mapping[int, Value], less: Mapping[int, Value]) -> Spread:
    """Return the ratios of the seeds that both have; one to a value of 0, or that is only a lower bound, is left "
    "out."""
    shared = [(more[s], less[s]) for s in more if s in less and less[s].number > 0 and not less[s].censored]
    return Spread.of(Value(a.number / b.number, a.censored) for a, b in shared)


def k_of(operation: str, ablation: str, where: str = LAST, run: str = "edited") -> Callable[[Checkpoint], Value | None]:
    """Return the function that reads a k@95% off a checkpoint."""
    return lambda at: at.k(operation, where, ablation, run=run)


def k_of_all(ablation: str, where: str = LAST, run: str = "edited") -> Callable[[Checkpoint], Value | None]:
    """Return the function that reads the mean k@95% of both operations off a checkpoint; None where one has none."""

    def read(at: Checkpoint) -> Value | None:
        found = [at.k(one, where, ablation, run=run) for one in OPERATIONS]
        known = [k for k in found if k is not None]
        return Value.mean(known) if len(known) == len(found) else None

    return read


def dims_of(operation: str, key: str = "dims95") -> Callable[[Checkpoint], float | None]:
    """Return the function that reads dimensions of the class means over all inputs off a checkpoint."""
    return lambda at: at.get("class_means", operation, f"all.{key}")


def dims_of_all(at: Checkpoint) -> float | None:
    """Return the mean 95 %-variance dimensions of both operations; None where one has none."""
    found = [dims_of(one)(at) for one in OPERATIONS]
    known = [dims for dims in found if dims is not None]
    return sum(known) / len(known) if len(known) == len(found) else None
