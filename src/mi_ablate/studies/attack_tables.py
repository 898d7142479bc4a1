"""The recorded attacks on directions that were not trained against: how they are read, and their tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.groups import Band
from mi_ablate.studies.penalties import BASELINE, DRAWN, OPERATIONS, OWN, WORDS, Arms
from mi_ablate.studies.selective import LEARNT
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Table
from mi_ablate.studies.subspace_attacks import ABLATIONS, CHANCE, FIXED, SEARCHED

SHOWN = (BASELINE, OWN, DRAWN)
EVERY = ("contrastive", "pca", "LEACE")
Curve = Mapping[str, Any]


@dataclass(frozen=True)
class Taken:
    """The study's own measurements by key."""

    own: Mapping[str, Any]

    def get(self, key: str, *path: str) -> Any:
        """Return what lies below a measurement's result; None where there is nothing."""
        found = self.own[key]["result"] if key in self.own else None
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def step_of(cell: Cell) -> int:
    """Return the step of the weights beside a cell's record."""
    return int(cell.training["checkpoint_step"])


def key_of(cell: Cell, operation: str) -> str:
    """Return the key of the measurement of an operation of a run."""
    return f"{cell.key}@{step_of(cell)}:{operation}"


def curve_of(taken: Taken, cell: Cell, operation: str, ablation: str, attack: str, place: str = "last") -> Curve | None:
    """Return a curve, ``{"ks", "own", "other"}``; None where it is not measured or the operation was not learnt."""
    curve = taken.get(key_of(cell, operation), place, ablation, attack)
    return None if curve is None or curve["own"][0] < LEARNT else curve


def survived(curve: Curve | None, tau: float = 0.95) -> Value | None:
    """Return the last k before accuracy first falls under a share of its clean value; a lower bound where it never "
    "does."""
    at = None if curve is None else _first(curve, lambda share: share < tau)
    return None if curve is None else _value(curve, None if at is None else at - 1)


def halving(curve: Curve | None) -> Value | None:
    """Return the smallest k that leaves at most half of the clean accuracy; a lower bound where none does."""
    return None if curve is None else _value(curve, _first(curve, lambda share: share <= 0.5))


def other_there(curve: Curve | None) -> float | None:
    """Return the other operation's accuracy at the k that halves this one's; None where none does."""
    at = None if curve is None else _first(curve, lambda share: share <= 0.5)
    return None if curve is None or at is None or curve["other"] is None else curve["other"][at]


def _first(curve: Curve, fails: Callable[[float], bool]) -> int | None:
    return next((i for i, accuracy in enumerate(curve["own"]) if fails(accuracy / curve["own"][0])), None)


def _value(curve: Curve, at: int | None) -> Value:
    return Value(float(curve["ks"][-1]), censored=True) if at is None else Value(float(curve["ks"][at]))


def middle(taken: Taken, group: Cells, ablation: str, attack: str) -> Band | None:
    """Return the median over seeds, with the range, of the mean of both operations; None where nothing is measured."""
    curves = []
    for cell in group.done:
        both = [curve_of(taken, cell, one, ablation, attack) for one in OPERATIONS]
        known = [curve for curve in both if curve is not None]
        if len(known) == len(both):
            least = min((curve["ks"] for curve in known), key=len)
            curves.append((least, torch.tensor([curve["own"][: len(least)] for curve in known]).double().mean(0)))
    if not curves:
        return None
    x = min((ks for ks, _ in curves), key=len)
    every = torch.stack([values[: len(x)] for _, values in curves])
    return Band(x, every.quantile(0.5, 0), torch.stack([every.amin(0), every.amax(0)]))


def tables(taken: Taken, found: Arms) -> list[Table]:
    """Return the tables of the attacks: a kind of directions a row, an arm and an operation a column."""

    def rows(names: tuple[str, ...], ablation: str, text: Callable[[list[Curve | None]], str], place: str) -> list[Any]:
        return [
            {"directions": name, "ablation": ablation}
            | {
                f"{arm}: {one}": text([curve_of(taken, cell, one, ablation, name, place) for cell in group.done])
                for arm, group in found.items() for one in OPERATIONS
            }
            for name in names
        ]  # fmt: skip

    every = (*FIXED, *SEARCHED, *CHANCE)
    operations = ", ".join(f"{one} {WORDS[one]}" for one in OPERATIONS)
    return [
        *(
            Table(
                f"Attacks at the last residual, {ablation}-ablation: k@95%, and the smallest k that halves accuracy",
                rows(every, ablation, _ks, "last"),
                f"Columns: what the model was trained against, and the operation attacked ({operations}). The "
                "gradient search and "
                "the worst draw end at k = 32, the others at 40.",
            )
            for ablation in ABLATIONS
        ),
        Table(
            "The other operation's accuracy at the k that halves this one's",
            rows(every, "zero", _left, "last"),
        ),
        Table(
            "Directions of its own at every site: k@95%, and the smallest k that halves accuracy",
            [row for ablation in ABLATIONS for row in rows(EVERY, ablation, _ks, "every")],
        ),
    ]


def _ks(curves: list[Curve | None]) -> str:
    """Both k over the seeds: "3 [2, 4]; 7 [6, 9]"."""
    parts = [Spread.of(map(of, curves)) for of in (survived, halving)]
    return "; ".join(part.text(count=False) for part in parts) if parts[0].n else "-"


def _left(curves: list[Curve | None]) -> str:
    found = Spread.of(map(other_there, curves))
    return found.text(".2f", count=False) if found.n else "-"
