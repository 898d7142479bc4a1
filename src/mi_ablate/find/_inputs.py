"""What every finder checks first: labels that say which examples hold the concept, and ranks that exist."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mi_ablate.subspace import Subspace

Labels = Shaped[Tensor, "*labels"] | Sequence[bool] | Sequence[int]
"""Bool (True: the concept is present) or whole numbers (classes), one an example."""

_RANK = 1e-10
"""Directions below this share of the largest (in squares) count as dependent, as in a `Fit`."""


def numbered(labels: Labels, n: int) -> tuple[Int[Tensor, " n"], list[int]]:
    """Return the class of each example as a number from 0, and the labels of the classes in rising order."""
    given = torch.as_tensor(labels).detach().cpu()
    if given.is_floating_point() or given.is_complex():
        raise ValueError(
            f"labels hold {given.dtype}: Booleans (True where the concept is present) or whole numbers are needed. "
            "Write a condition, such as scores > 0."
        )
    if given.shape != (n,):
        raise ValueError(f"labels of shape {list(given.shape)} for {n} activations: one label an example is needed.")
    values, index = torch.unique(given.to(torch.int64), return_inverse=True)
    if len(values) < 2:
        raise ValueError(
            f"All {n} labels are {_shown(given, values.tolist())}: a direction needs examples with the concept and without."
        )
    return index, values.tolist()


def two_classes(labels: Labels, n: int, who: str) -> Bool[Tensor, " n"]:
    """Return which examples are of the positive class, the one with the larger label."""
    index, values = numbered(labels, n)
    if len(values) != 2:
        raise ValueError(
            f"{who} takes two classes; the labels hold {len(values)} ({values[:6]}). Keep two of them, or use "
            "class_means, lda or logistic, which take any number."
        )
    return index == 1


def in_pairs(
    x: Float[Tensor, "n d"], positive: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
    """Return the rows of the two classes; row i of one belongs to row i of the other."""
    ups, downs = x[positive.to(x.device)], x[~positive.to(x.device)]
    if len(ups) != len(downs):
        raise ValueError(
            f"{len(ups)} positive and {len(downs)} negative examples: pairs need as many of both, row i of the "
            "positives beside row i of the negatives. Unpaired examples go to difference_of_means."
        )
    return ups, downs


def ordered(
    rows: Float[Tensor, "m d"], rank: int | None, what: str
) -> tuple[Float[Tensor, "d r"], Float[Tensor, " all"]]:
    """Return the leading right singular vectors and all singular values above rounding.

    Raises:
        ValueError: rows that are all zero, or a rank that they do not have.

    """
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    full = int((s**2 > _RANK * s[0] ** 2).sum()) if len(s) and s[0] > 0 else 0
    if full == 0:
        raise ValueError(f"The {what} are all zero: there is no direction to find.")
    checked_rank(rank, full, f"{len(rows)} {what} span {full} directions")
    return vh[: rank or full].T, s[:full]


def checked_rank(rank: int | None, full: int, there: str) -> None:
    """Refuse a rank that is not there."""
    if rank is not None and not 1 <= rank <= full:
        raise ValueError(f"rank {rank} was asked for; the {there}, so a rank from 1 to {full}.")


def oriented(basis: Float[Tensor, "d r"], towards: Float[Tensor, " d"] | None = None) -> Float[Tensor, "d r"]:
    """Return the columns with v . towards >= 0; where that is zero, or not given, with a positive largest entry."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))[0]
    sign = largest.sign()
    if towards is not None:
        along = towards @ basis
        clear = along.abs() > 1e-12 * towards.norm()
        sign = torch.where(clear, along.sign(), sign)
    return (basis * sign).contiguous()


def in_order(columns: Float[Tensor, "d r"], name: str, source: dict[str, object]) -> Subspace:
    """Return the columns made orthonormal in their order; the direction of the first stays."""
    return Subspace(Subspace.span(columns.T).basis, name, source)


def counts(index: Int[Tensor, " n"], values: list[int]) -> dict[str, int]:
    """Return how many examples each label has, for `Subspace.source`."""
    return {str(value): int((index == i).sum()) for i, value in enumerate(values)}


def _shown(given: Tensor, values: list[int]) -> str:
    return str([bool(v) if given.dtype == torch.bool else v for v in values])
