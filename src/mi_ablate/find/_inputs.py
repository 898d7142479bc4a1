"""What every finder checks first (labels, ranks, rounding, padding), and the order and signs of what it returns."""

import operator
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mi_ablate._attach import left_padding
from mi_ablate._types import HookedModel
from mi_ablate.subspace import Subspace

Labels = Shaped[Tensor, "*labels"] | Sequence[bool] | Sequence[int]
"""Bool (True: the concept is present) or whole numbers (classes), one an example."""

_RANK = 1e-10
"""Directions below this share of the largest (in squares) count as dependent, as in a `Fit`."""


def whole(labels: Labels) -> Tensor:
    """Return labels as a tensor of Booleans or whole numbers."""
    try:
        given = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        first = labels[0] if hasattr(labels, "__len__") and len(labels) else labels
        raise ValueError(
            f"labels such as {first!r} are neither Booleans nor whole numbers. Write a condition for each example, such "
            'as [word == "yes" for word in words].'
        ) from error
    if given.is_floating_point() or given.is_complex():
        raise ValueError(
            f"labels hold {given.dtype}: Booleans (True where the concept is present) or whole numbers are needed. "
            "Write a condition, such as scores > 0."
        )
    return given


def numbered(labels: Labels, n: int) -> tuple[Int[Tensor, " n"], list[int]]:
    """Return the class of each example as a number from 0, and the labels of the classes in rising order."""
    given = whole(labels)
    if given.shape != (n,):
        raise ValueError(f"labels of shape {list(given.shape)} for {n} activations: one label an example is needed.")
    values, index = torch.unique(given.to(torch.int64), return_inverse=True)
    if len(values) < 2:
        raise ValueError(
            f"All {n} labels are {_shown(given, values.tolist())}: a direction needs examples with the concept and without."
        )
    return index, values.tolist()


def two_classes(labels: Labels, n: int, who: str) -> tuple[Bool[Tensor, " n"], list[int]]:
    """Return which examples are of the positive class, the one with the larger label, and both labels."""
    index, values = numbered(labels, n)
    if len(values) != 2:
        raise ValueError(
            f"{who} takes two classes; the labels hold {len(values)} ({values[:6]}). Keep two of them, or use "
            "class_means, lda or logistic, which take any number."
        )
    return index == 1, values


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


def rounding(acts: Float[Tensor, "n d"]) -> float:
    """Return what computing may leave between two means of activations: 8 eps of their root mean square norm.

    Edits and means are computed in float32 or better, so eps is that of float32 for half precision too; what storing
    in half precision adds is another matter (`mi_ablate.find.refitted`).
    """
    dtype = acts.dtype if acts.dtype == torch.float64 else torch.float32
    return 8 * torch.finfo(dtype).eps * float(acts.detach().to(torch.float64).pow(2).sum(1).mean().sqrt())


def ordered(
    rows: Float[Tensor, "m d"], rank: int | None, what: str, noise: float = 0.0
) -> tuple[Float[Tensor, "d r"], Float[Tensor, " all"]]:
    """Return the leading right singular vectors and all singular values above rounding.

    Raises:
        ValueError: rows that are all zero (a root mean square of ``noise`` or less), or a rank that they do not have.

    """
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    full = int((s**2 > _RANK * s[0] ** 2).sum()) if len(s) and s[0] > noise * len(rows) ** 0.5 else 0
    if full == 0:
        raise ValueError(f"The {what} are all zero: there is no direction to find.")
    return vh[: checked_rank(rank, full, f"{len(rows)} {what} span {full} directions")].T, s[:full]


def checked_rank(rank: int | None, full: int, there: str) -> int:
    """Return the rank as an int, ``full`` where none was asked for; refuse one that is not there."""
    if rank is None:
        return full
    try:
        whole_rank = operator.index(rank)
    except TypeError as error:
        raise ValueError(f"rank={rank!r} is a whole number of directions; the {there}.") from error
    if not 1 <= whole_rank <= full:
        raise ValueError(f"rank {rank} was asked for; the {there}, so a rank from 1 to {full}.")
    return whole_rank


def oriented(basis: Float[Tensor, "d r"], towards: Float[Tensor, " d"] | None = None) -> Float[Tensor, "d r"]:
    """Return the columns with v . towards >= 0; where that is zero, or not given, with a positive largest entry."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))[0]
    sign = largest.sign()
    if towards is not None:
        along = towards @ basis
        clear = along.abs() > 1e-12 * towards.norm()
        sign = torch.where(clear, along.sign(), sign)
    return (basis * sign).contiguous()


def to_the_furthest(basis: Float[Tensor, "d r"], rows: Float[Tensor, "k d"]) -> Float[Tensor, "d r"]:
    """Return the columns, each pointing to the row furthest along it from their mean; of two rows, to the last."""
    if len(rows) == 2:
        return oriented(basis, rows[1] - rows[0])
    along = (rows - rows.mean(0)) @ basis
    furthest = along.gather(0, along.abs().argmax(0, keepdim=True))[0]
    return (basis * torch.where(furthest < 0, -1.0, 1.0)).contiguous()


def in_order(columns: Float[Tensor, "d r"]) -> Float[Tensor, "d r"]:
    """Return the columns made orthonormal in their order; the direction of the first stays, signs may not."""
    return Subspace.span(columns.T).basis


def counts(index: Int[Tensor, " n"], values: Sequence[int]) -> dict[str, int]:
    """Return how many examples each label has, for `Subspace.source`."""
    each = torch.bincount(index.cpu(), minlength=len(values)).tolist()
    return {str(value): count for value, count in zip(values, each, strict=True)}


def warn_of_padding(model: HookedModel, tokens: Tensor, pos: Int[Tensor, " #n m"]) -> None:
    """Warn where the tokenizer's padding stands at the positions that are read, and no attention mask says so."""
    tokenizer = getattr(model, "tokenizer", None)
    pad, n = getattr(tokenizer, "pad_token_id", None), tokens.shape[1]
    pos = torch.where(pos < 0, pos + n, pos).to(tokens.device)
    if pad is None or bool((pos < 0).any() or (pos >= n).any()) or left_padding(model, tokens, False) is not None:
        return
    padded = tokens.gather(1, pos.expand(len(tokens), -1)) == pad
    if pad == getattr(tokenizer, "bos_token_id", None):
        padded &= pos != 0
    if padded.any():
        warnings.warn(
            f"{int(padded.any(1).sum())} of {len(tokens)} prompts have the tokenizer's padding (token {pad}) at a position "
            "that is read: give their attention_mask, with which positions count real tokens.",
            stacklevel=3,
        )


def _shown(given: Tensor, values: list[int]) -> str:
    return str([bool(v) if given.dtype == torch.bool else v for v in values])
