"""Least squares of activations on a design: the one fit that every method of the package uses.

    X - mean(X)  ~  (D - mean(D)) C        X [n, d] activations, D [n, k] design, C [k, d] coefficients

C is the minimum-norm solution. With one 0/1 column it is the difference of class means; with a one-hot, the class means
minus their mean; with Fourier columns, the discrete Fourier transform. Everything is computed from sufficient
statistics (counts, means, centred products) in float64, which merge (Chan, Golub & LeVeque 1983): the result does not
depend on the batch size, memory is O(k d), and parts computed elsewhere add up.

A fit says what a concept *writes* (an encoder). What *reads* it is another question: see `mi_ablate.find`.
The share r2 is of the data that the fit was made from; with many columns it is high for noise too, so score held-out rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import nearest
from mi_ablate.design import Design
from mi_ablate.subspace import Subspace

_RANK = 1e-10
"""Columns, and directions of fitted values, below this share of the largest (in squares) count as dependent."""
_ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Differences of float64 means below this share of the activations' root mean square norm are rounding."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Coefficients ``[k, d]``, intercept ``[d]`` and the share of variance explained."""

    coef: Float[Tensor, "k d"]
    intercept: Float[Tensor, " d"]
    r2: float
    labels: tuple[str, ...]
    n: int
    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"] | None = None
    _gram: Float[Tensor, "k k"] = field(default=None, repr=False)  # type: ignore[assignment]
    _cross: Float[Tensor, "k d"] = field(default=None, repr=False)  # type: ignore[assignment]
    _norm: float = 0.0
    """Root mean square norm of the activations: what rounding is compared with."""

    def predict(self, design: Design) -> Float[Tensor, "n d"]:
        """Return intercept + D C for any examples, those of the fit or others. Columns must be those of the fit."""
        self._check(design)
        return self.intercept + design.matrix.to(self.coef.device) @ self.coef

    def score(self, acts: Float[Tensor, "n d"], design: Design) -> float:
        """Return R² on other data, against the mean of those data; negative when worse than that mean."""
        acts = _activations(acts)
        residual = ((acts - self.predict(design)) ** 2).sum()
        return float(1 - residual / ((acts - acts.mean(0)) ** 2).sum())

    def subspace(self, *labels: str, rank: int | None = None, marginal: bool = False, name: str = "") -> Subspace:
        """Return the span of what the chosen columns write, ordered by the variance of their fitted values.

        The order is that of the SVD of D_chosen C_chosen, so the units of the columns do not matter. Each direction
        points to where the column that weighs most in it rises; that of a single column is its slope, with its size.
        ``source["r2_of_the_fit"]`` is that of all columns together, whatever was chosen.

        Args:
            labels: labels or patterns (``"a:*"``); none for all columns.
            rank: how many leading directions to keep; all that the fit has by default.
            marginal: fit the chosen columns alone, ignoring the others. Mean-ablating the span of *all* columns leaves
                nothing linear for the design; the span of some columns' partial coefficients leaves much of them.
            name: what to call the result.

        Raises:
            KeyError: no such column. ValueError: columns that explain nothing beyond rounding, a rank that is not there.

        """
        chosen = self._choose(labels)
        gram = self._gram[chosen][:, chosen]
        coef = _solve(gram, self._cross[chosen]) if marginal else self.coef[chosen]
        _, s, vh = torch.linalg.svd(_root(gram) @ coef, full_matrices=False)
        full = int((s**2 > _RANK * s[0] ** 2).sum()) if s[0] > _ROUNDING * self._norm else 0
        if full == 0:
            raise ValueError(
                "The chosen columns explain nothing of these activations: there is no direction to return."
            )
        if rank is not None and not 1 <= rank <= full:
            raise ValueError(f"rank {rank} was asked for; these columns write {full} directions, so 1 to {full}.")
        basis = vh[: rank or full].T
        weights = _scale(gram)[:, None] * (coef @ basis)
        heaviest = weights.gather(0, weights.abs().argmax(0, keepdim=True))[0]
        names = [self.labels[i] for i in chosen]
        source: dict[str, Any] = {"method": "least squares", "columns": names, "n": self.n, "r2_of_the_fit": self.r2}
        source |= {"marginal": marginal, "rms": s[: basis.shape[1]].tolist()}
        if len(chosen) == 1:
            source["sizes"] = [float(coef.norm())]
        return Subspace((basis * heaviest.sign()).contiguous(), name or ", ".join(labels[:3]) or "fit", source)

    def singular_values(self, *labels: str) -> Float[Tensor, " r"]:
        """Return the root-mean-square of the fitted values along each direction of `subspace`, largest first."""
        chosen = self._choose(labels)
        return torch.linalg.svdvals(_root(self._gram[chosen][:, chosen]) @ self.coef[chosen])

    def to(self, device: torch.device | str) -> "Fit":
        """Return the same fit on ``device``."""
        moved = [self.coef, self.intercept, self.mean, self.covariance, self._gram, self._cross]
        coef, intercept, mean, covariance, gram, cross = (None if t is None else t.to(device) for t in moved)
        return Fit(coef, intercept, self.r2, self.labels, self.n, mean, covariance, gram, cross, self._norm)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Fit({len(self.labels)} columns, d {self.coef.shape[1]}, n {self.n}, r2 {self.r2:.4f})"

    def _check(self, design: Design) -> None:
        if design.labels != self.labels:
            raise ValueError(
                f"The fit has the columns {list(self.labels[:4])}... ({len(self.labels)}); the design has "
                f"{list(design.labels[:4])}... ({len(design.labels)}). Make it with the same call and name=."
            )

    def _choose(self, labels: Iterable[str]) -> list[int]:
        labels = tuple(labels)
        if not labels:
            return list(range(len(self.labels)))
        chosen = []
        for pattern in labels:
            found = [i for i, label in enumerate(self.labels) if label == pattern or fnmatchcase(label, pattern)]
            if not found:
                raise KeyError(f"The fit has no column {pattern!r}. {nearest(pattern, self.labels)}")
            chosen += [i for i in found if i not in chosen]
        return chosen


class Fitter:
    """Streaming `fit`: feed batches, merge parts, ask for the result at any time.

    Memory is O(k d); ``covariance=True`` adds d x d (for LEACE, whitening and covariance-drawn controls).
    """

    def __init__(self, covariance: bool = False) -> None:
        self.covariance = covariance
        self.labels: tuple[str, ...] | None = None
        self.n = 0
        nothing = torch.empty(0, dtype=torch.float64)
        self._mean_x = self._mean_d = self._gram = self._cross = self._square = nothing
        self._outer: Tensor | None = None

    def update(self, acts: Float[Tensor, "n d"], design: Design) -> "Fitter":
        """Add a batch and return self. Rows of ``acts`` and ``design`` are the same examples."""
        acts = _activations(acts)
        matrix = design.matrix.to(acts.device)
        if len(acts) != len(matrix):
            raise ValueError(
                f"{len(acts)} activations and {len(matrix)} rows of the design: one row an example is needed."
            )
        part = Fitter(self.covariance)
        part.labels, part.n = design.labels, len(acts)
        part._mean_x, part._mean_d = acts.mean(0), matrix.mean(0)
        x, d = acts - part._mean_x, matrix - part._mean_d
        part._gram, part._cross, part._square = d.T @ d, d.T @ x, (x**2).sum(0)
        part._outer = x.T @ x if self.covariance else None
        return self.merge(part)

    def merge(self, other: "Fitter") -> "Fitter":
        """Add what another fitter has seen and return self."""
        if other.n == 0:
            return self
        if self.covariance and other._outer is None:
            raise ValueError("The other fitter was made with covariance=False; it has no covariance to merge.")
        if self.n == 0:
            self.__dict__.update({**other.__dict__, "covariance": self.covariance})
            return self
        if self.labels != other.labels or self._mean_x.shape != other._mean_x.shape:
            raise ValueError("Two fitters merge only with the same design columns and the same width of activations.")
        n = self.n + other.n
        weight = self.n * other.n / n
        dx, dd = other._mean_x - self._mean_x, other._mean_d - self._mean_d
        self._gram = self._gram + other._gram + weight * torch.outer(dd, dd)
        self._cross = self._cross + other._cross + weight * torch.outer(dd, dx)
        self._square = self._square + other._square + weight * dx**2
        if self._outer is not None and other._outer is not None:
            self._outer = self._outer + other._outer + weight * torch.outer(dx, dx)
        self._mean_x, self._mean_d = self._mean_x + dx * (other.n / n), self._mean_d + dd * (other.n / n)
        self.n = n
        return self

    def result(self) -> Fit:
        """Return the fit of everything seen so far."""
        if self.n < 2 or self.labels is None:
            raise ValueError(f"A fit needs at least two examples; {self.n} were given.")
        coef = _solve(self._gram, self._cross)
        explained = (coef * self._cross).sum()
        total = self._square.sum()
        return Fit(
            coef=coef,
            intercept=self._mean_x - self._mean_d @ coef,
            r2=float(explained / total) if total > 0 else 0.0,
            labels=self.labels,
            n=self.n,
            mean=self._mean_x,
            covariance=self._outer / (self.n - 1) if self.covariance and self._outer is not None else None,
            _gram=self._gram / self.n,
            _cross=self._cross / self.n,
            _norm=float((total / self.n + (self._mean_x**2).sum()).sqrt()),
        )

    def __repr__(self) -> str:
        return f"Fitter({self.n} examples, {len(self.labels or ())} columns)"


def fit(acts: Float[Tensor, "n d"], design: Design) -> Fit:
    """Return the minimum-norm least-squares fit of the centred activations on the centred design.

    Raises:
        ValueError: NaN in the activations, different numbers of rows, fewer than two examples.

    """
    return Fitter().update(acts, design).result()


def _solve(gram: Tensor, cross: Tensor) -> Tensor:
    """Minimum-norm C with gram C = cross; rank is judged after scaling, so units of the columns do not matter."""
    scale = _scale(gram)
    values, vectors = torch.linalg.eigh(gram / scale[:, None] / scale[None, :])
    kept = values > _RANK * values.max().clamp(min=1e-300)
    inverse = vectors[:, kept] / values[kept]
    coef = (inverse @ (vectors[:, kept].T @ (cross / scale[:, None]))) / scale[:, None]
    if not kept.all():
        null = torch.linalg.qr(vectors[:, ~kept] / scale[:, None]).Q
        coef = coef - null @ (null.T @ coef)
    return coef


def _root(gram: Tensor) -> Tensor:
    """R with RᵀR = gram, exact whatever the units of the columns."""
    scale = _scale(gram)
    values, vectors = torch.linalg.eigh(gram / scale[:, None] / scale[None, :])
    return values.clamp(min=0).sqrt()[:, None] * vectors.T * scale


def _scale(gram: Tensor) -> Tensor:
    scale = gram.diagonal().clamp(min=0).sqrt()
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _activations(acts: Tensor) -> Tensor:
    try:
        acts = torch.as_tensor(acts).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Activations are a {type(acts).__name__} that is no table of numbers: a tensor or array [n, d] is needed. "
            "torch.stack(rows) makes one of a list of vectors."
        ) from error
    if acts.is_complex():
        raise ValueError(f"Activations hold {acts.dtype}: real numbers are needed, such as acts.real or acts.abs().")
    if acts.ndim != 2:
        raise ValueError(f"Activations of shape {list(acts.shape)}: a fit takes [n, d], one vector an example.")
    if not torch.isfinite(acts).all():
        rows = torch.nonzero(~torch.isfinite(acts).all(1)).flatten().tolist()
        raise ValueError(f"NaN or infinite activations in {len(rows)} examples (first: {rows[:5]}).")
    return acts.to(torch.float64)
