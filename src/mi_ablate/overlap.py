"""How much two subspaces overlap, beside what the number must be compared with.

The overlap is the mean squared cosine of the principal angles, m = ||Uᵀ V||²_F / min(k1, k2) (`Subspace.overlap`), and beside
it the mean cosine. Neither means anything alone:

    isotropic    two random subspaces of R^d share E = max(k1, k2) / d on average; lift = (m - E) / (1 - E), 0 at chance and
                 1 where the smaller one lies inside the larger
    covariance   subspaces drawn from the activations' own covariance, the fairer null: activations live in few directions,
                 so that any two concepts measured in them overlap far above the isotropic value
    split half   the same concept found again in two random halves of its examples: no method can agree with another one
                 better than with itself, so an overlap of 0.6 is full agreement where the halves reach 0.6

Each half has half the examples, so whole sets would agree more: the ceiling is a little low. When it misleads: the leading
directions of a basis may be large and idle; overlap says nothing of what the model reads.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.controls import covariance
from mi_ablate.subspace import Subspace

Finder = Callable[[Tensor, Tensor], Subspace]


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Two subspaces' overlap with its three references; ``table()`` has them beside each other."""

    ranks: tuple[int, int]
    d: int
    squared: float
    cosine: float
    expected: float
    """The mean squared cosine of isotropic random subspaces of these ranks, max(k1, k2) / d."""
    covariance: Mapping[str, Mapping[str, float]] | None
    """"squared" and "cosine" of covariance-drawn subspaces: mean, low, high over the draws. None: no activations."""
    halves: tuple[Mapping[str, float], ...]
    """"squared" and "cosine" between two halves of the examples, of each side; empty: no labels."""
    draws: int

    @property
    def lift(self) -> float:
        """(m - E) / (1 - E): 0 where the overlap is that of random subspaces, 1 where it is complete."""
        return (self.squared - self.expected) / (1 - self.expected)

    def table(self) -> list[dict[str, Any]]:
        """Return one row for the overlap and one for each reference."""
        rows: list[dict[str, Any]] = [
            {"": "overlap", "squared": self.squared, "cosine": self.cosine, "lift": self.lift}
        ]
        rows.append({"": "isotropic expectation", "squared": self.expected, "lift": 0.0})
        if self.covariance is not None:
            row: dict[str, Any] = {"": f"covariance-drawn, {self.draws} draws"}
            for key, found in self.covariance.items():
                row |= {key: found["mean"], f"{key} low": found["low"], f"{key} high": found["high"]}
            rows.append(row)
        return rows + [
            {"": f"split halves of {side}", **found} for side, found in zip(("one", "the other"), self.halves)
        ]

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table())

    def __repr__(self) -> str:
        beside = [f"isotropic {self.expected:.3f}"]
        if self.covariance is not None:
            drawn = self.covariance["squared"]
            beside.append(f"covariance-drawn {drawn['mean']:.3f} [{drawn['low']:.3f}, {drawn['high']:.3f}]")
        if self.halves:
            beside.append("split half " + ", ".join(f"{half['squared']:.3f}" for half in self.halves))
        ranks = f"ranks {self.ranks[0]} and {self.ranks[1]} of {self.d}"
        return f"Overlaps({ranks}: {self.squared:.3f}, lift {self.lift:.2f}; {'; '.join(beside)})"


def overlaps(
    one: Subspace,
    other: Subspace,
    acts: Float[Tensor, "n d"] | tuple[Tensor, Tensor] | None = None,
    *,
    labels: Int[Tensor, " n"] | tuple[Tensor, Tensor] | None = None,
    finder: Finder | tuple[Finder, Finder] | None = None,
    draws: int = 20,
    seed: int = 0,
) -> Overlaps:
    """Return the overlap of two subspaces with its isotropic, covariance-drawn and split-half references.

    Args:
        one: a subspace of rank k1.
        other: another of the same space, of rank k2.
        acts: the activations ``[n d]`` that both were found in, or a pair, for the covariance-drawn null; None: without.
        labels: what the finder separates, ``[n]``, or a pair, for the split-half ceiling; needs ``acts`` and ``finder``.
        finder: how the subspaces were found, ``finder(acts, labels) -> Subspace``, or a pair; such as `find.class_means`.
        draws: pairs of covariance-drawn subspaces, of the ranks k1 and k2; no draw is used twice.
        seed: of the first draw and of the split.

    Raises:
        ValueError: subspaces of different spaces, or one that is the whole space; labels without acts or finder; a half in
            which the finder finds fewer directions than the whole has.

    """
    if max(one.rank, other.rank) == one.d == other.d:
        raise ValueError(
            f"A subspace of rank {one.d} is the whole space: its overlap with any other is 1, and says nothing."
        )
    if draws < 1:
        raise ValueError(f"draws={draws}: at least one pair of covariance-drawn subspaces.")
    if (labels is None) != (finder is None) or (labels is not None and acts is None):
        raise ValueError(
            "The split-half ceiling needs acts, labels and a finder: overlaps(a, b, acts, labels=..., finder=...)."
        )
    cosines = mean_cosines(one, other)
    sides = (one, other)
    null, halves = None, []
    if acts is not None:
        kinds = [covariance(x) for x in _pair(acts)]
        pairs = [
            [kind.draw("", side.rank, seed + i + draws * n) for n, (kind, side) in enumerate(zip(kinds, sides))]
            for i in range(draws)
        ]
        null = over_draws(mean_cosines(*pair) for pair in pairs)
    if labels is not None and acts is not None:
        alike = all(not isinstance(x, tuple) for x in (acts, labels, finder)) and one.rank == other.rank
        for side, x, y, f in zip(sides[:1] if alike else sides, _pair(acts), _pair(labels), _pair(finder)):
            halves.append(split_half(f, x, y, side.rank, seed))
    expected = max(one.rank, other.rank) / one.d
    ranks = (one.rank, other.rank)
    return Overlaps(ranks, one.d, cosines["squared"], cosines["cosine"], expected, null, tuple(halves), draws)


def split_half(
    finder: Finder, acts: Float[Tensor, "n d"], labels: Int[Tensor, " m"], k: int, seed: int = 0
) -> dict[str, float]:
    """Return the overlap of the k leading directions that a finder finds in two random halves of the examples."""
    if len(acts) != len(labels):
        raise ValueError(f"{len(acts)} activations and {len(labels)} labels: one label an example is needed.")
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(seed))
    mine, theirs = (finder(acts[part], labels[part]) for part in order.chunk(2))
    if k > min(mine.rank, theirs.rank):
        raise ValueError(
            f"The finder finds {mine.rank} and {theirs.rank} directions in the halves, fewer than the {k} compared: "
            "compare the leading ones, subspace[:k]."
        )
    return mean_cosines(mine[:k], theirs[:k])


def mean_cosines(one: Subspace, other: Subspace) -> dict[str, float]:
    """Return the mean squared cosine and the mean cosine of the principal angles."""
    cosines = one.cosines(other)
    return {"squared": float((cosines**2).mean()), "cosine": float(cosines.mean())}


def over_draws(draws: Iterable[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean, low and high of each number over the draws."""
    rows = list(draws)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {key: {"mean": sum(x) / len(x), "low": min(x), "high": max(x)} for key, x in columns.items()}


def _pair(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, value)
