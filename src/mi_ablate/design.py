"""Design matrices: labelled functions of the inputs, to be regressed on activations.

Every method of the package starts with one. Abliteration's is a 0/1 column; contrastive SVD's a one-hot of the answer;
Fourier analysis on Z_p has cos and sin of 2πka/p; the generalized helix (Kantamneni & Tegmark 2025, arXiv 2502.00873)
a line and cos, sin of 2πa/T; the Clock the Fourier columns of (a + b) mod p. Columns are never centred here: `fit`
does that, so a constant column is never needed.

A column that vanishes on the given inputs (the sine of period 2 on integers, about 4e-14 in floating point) is set to
exactly zero, so that no solver mistakes it for a direction.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Design:
    """A matrix ``[n, k]`` in float64, one row an example, with a label for each column."""

    matrix: Float[Tensor, "n k"]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        matrix = torch.as_tensor(self.matrix).detach().to(torch.float64)
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "labels", tuple(self.labels))
        if matrix.ndim != 2 or matrix.shape[1] != len(self.labels):
            raise ValueError(
                f"A design of shape {list(matrix.shape)} has {len(self.labels)} labels: one a column is needed."
            )
        if len(set(self.labels)) < len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ValueError(f"Columns of the same name: {twice[:5]}. Give one of the designs another name=.")
        if not torch.isfinite(matrix).all():
            raise ValueError("The design holds NaN or infinite values.")

    def __or__(self, other: "Design") -> "Design":
        """Return both sets of columns side by side."""
        if len(self) != len(other):
            raise ValueError(f"Designs of {len(self)} and {len(other)} examples cannot be put side by side.")
        return Design(torch.cat([self.matrix, other.matrix.to(self.matrix.device)], dim=1), self.labels + other.labels)

    def __getitem__(self, rows: slice | Shaped[Tensor, " m"]) -> "Design":
        """Return the chosen examples (a slice, indices or a Boolean mask) with all columns."""
        return Design(self.matrix[rows], self.labels)

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.matrix.shape[0]

    def __repr__(self) -> str:
        shown = ", ".join(self.labels[:4]) + (", ..." if len(self.labels) > 4 else "")
        return f"Design({len(self)} examples, {len(self.labels)} columns: {shown})"


def contrast(is_positive: Bool[Tensor, " n"] | Sequence[bool], name: str = "concept") -> Design:
    """Return one 0/1 column: the slope of its fit is the difference of the two class means, exactly."""
    column = torch.as_tensor(is_positive)
    if column.dtype != torch.bool:
        raise ValueError(f"is_positive holds {column.dtype}; write a condition, such as labels == 1.")
    count = int(column.sum())
    if count in (0, len(column)):
        raise ValueError(
            f"A contrast needs both classes; of {len(column)} examples {count} are positive. An empty class has no mean."
        )
    return Design(column.to(torch.float64)[:, None], (name,))


def classes(labels: Int[Tensor, " n"] | Sequence[int], of: int | None = None, name: str = "class") -> Design:
    """Return a one-hot of ``labels``, one column a class 0 .. of-1 (default: up to the largest label).

    The coefficients of its fit are the class means minus the mean of the class means.
    """
    index = _whole(labels, "labels")
    of = int(index.max()) + 1 if of is None else of
    if int(index.min()) < 0 or int(index.max()) >= of:
        raise ValueError(
            f"labels run from {int(index.min())} to {int(index.max())}, outside the {of} classes 0..{of - 1}."
        )
    counts = torch.bincount(index, minlength=of)
    if (counts == 0).any():
        empty = torch.nonzero(counts == 0).flatten().tolist()
        raise ValueError(
            f"Empty classes {empty[:8]} (of {of}): a class without examples has no mean. Renumber the labels."
        )
    one_hot = torch.nn.functional.one_hot(index, of).to(torch.float64)
    return Design(one_hot, tuple(f"{name}={c}" for c in range(of)))


def linear(values: Shaped[Tensor, " n"] | Sequence[int | float], name: str = "a") -> Design:
    """Return one column with the values themselves."""
    return Design(_reals(values)[:, None], (f"{name}:linear",))


def polynomial(
    values: Shaped[Tensor, " n"] | Sequence[int | float],
    degree: int,
    domain: tuple[int | float, int | float] | None = None,
    name: str = "a",
) -> Design:
    """Return Legendre polynomials of degree 1 to ``degree``, with ``domain`` (default: the range) mapped to [-1, 1]."""
    x = _reals(values)
    if degree < 1:
        raise ValueError(f"degree {degree}: at least 1 (the constant is always part of a fit).")
    low, high = (float(x.min()), float(x.max())) if domain is None else domain
    if not high > low:
        raise ValueError(f"The domain {low} .. {high} is empty: a polynomial needs at least two different values.")
    x = (2 * x - low - high) / (high - low)
    columns = [torch.ones_like(x), x]
    for n in range(1, degree):
        columns.append(((2 * n + 1) * x * columns[n] - n * columns[n - 1]) / (n + 1))
    return Design(torch.stack(columns[1 : degree + 1], dim=1), tuple(f"{name}:P{n}" for n in range(1, degree + 1)))


def fourier(
    values: Shaped[Tensor, " n"] | Sequence[int | float], period: int | float, freqs: Iterable[int], name: str = "a"
) -> Design:
    """Return cos and sin of 2πka/period for each frequency k, labelled ``a:cos k`` and ``a:sin k``.

    On integers, k and period - k are the same pair; frequencies from 1 to period // 2 name each once.
    """
    x, asked = _reals(values), list(freqs)
    freqs = [int(k) for k in asked]
    if not freqs:
        raise ValueError("fourier needs at least one frequency.")
    wrong = [a for a, k in zip(asked, freqs) if a != k or not 1 <= k <= period / 2]
    if wrong:
        raise ValueError(
            f"Frequencies {wrong[:5]} are not whole numbers from 1 to {int(period // 2)} (period {period})."
        )
    return _circles([(f"{k}", x * k, period) for k in freqs], name)


def helix(
    values: Shaped[Tensor, " n"] | Sequence[int | float],
    periods: Iterable[int | float] = (2, 5, 10, 100),
    name: str = "a",
) -> Design:
    """Return the generalized helix: a line, and cos and sin of 2πa/T, labelled ``a:cos T`` and ``a:sin T``."""
    x, periods = _reals(values), list(periods)
    if not periods or min(periods) <= 0:
        raise ValueError(f"periods {periods}: give at least one, all of them positive.")
    return linear(x, name) | _circles([(f"{T:g}", x, T) for T in periods], name)


def _circles(terms: list[tuple[str, Tensor, int | float]], name: str) -> Design:
    columns, labels = [], []
    for label, x, period in terms:
        angle = 2 * math.pi * torch.remainder(x, period) / period
        for function, word in ((torch.cos, "cos"), (torch.sin, "sin")):
            column = function(angle)
            columns.append(torch.where(column.abs().max() < 1e-9, torch.zeros_like(column), column))
            labels.append(f"{name}:{word} {label}")
    return Design(torch.stack(columns, dim=1), tuple(labels))


def _reals(values: Tensor | Sequence[int | float]) -> Tensor:
    x = torch.as_tensor(values).to(torch.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"values have shape {list(x.shape)}; one number an example is needed.")
    return x


def _whole(labels: Tensor | Sequence[int], what: str) -> Tensor:
    index = torch.as_tensor(labels)
    if index.ndim != 1 or len(index) == 0 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"{what} of shape {list(index.shape)} and {index.dtype}: one integer an example is needed.")
    return index.to(torch.int64)
