"""One weighted least squares for many sites and many subsets of columns, from per-number means.

With X the design less its mean, W the counts, Y the means of a site less theirs, and c a subset of the columns:

    G = XᵀWX,   K = XᵀWY,   Z = K Yᵀ        C_c = G_cc⁺ K_c,    |fitted|² = tr(G_cc⁺ K_c K_cᵀ)

so that G, K, Z and the norms of the rows of Y give R² and the leave-one-number-out error of *every* subset without looking
at the activations again: the squared residual of number v is |y_v|² - 2 x_v G⁺ z_v + x_v G⁺ K Kᵀ G⁺ x_v, and its error when
left out is the residual over 1 - h_v, with leverage h_v = w_v (1/n + x_v G⁺ x_v).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.arithmetic.representation.states import NumberMeans, is_rounding
from mi_ablate.design import Design
from mi_ablate.regression import _solve

_DETERMINED = 1e-9
"""A number whose leverage is within this of 1 is fitted by a column of its own."""


@dataclass(frozen=True)
class Score:
    """R² of the means, leave-one-number-out R² (both 0 where all means are the same), and the rank of the columns."""

    r2: Float[Tensor, " sites"]
    loo: Float[Tensor, " sites"]
    rank: int


@dataclass(frozen=True, eq=False)
class Solved:
    """The products that all subsets of the columns are fitted from: G, K, Z and the squared norms of the rows."""

    labels: tuple[str, ...]
    columns: Float[Tensor, "v k"]
    column_means: Float[Tensor, " k"]
    weights: Float[Tensor, " v"]
    gram: Float[Tensor, "k k"]
    cross: Float[Tensor, "sites k d"]
    inner: Float[Tensor, "sites k v"]
    squares: Float[Tensor, "sites v"]
    mean: Float[Tensor, "sites d"]
    total: Float[Tensor, " sites"]

    @property
    def between(self) -> Float[Tensor, " sites"]:
        """Weighted squared distance of the means from the grand mean."""
        return self.squares @ self.weights

    def coef(self) -> Float[Tensor, "sites k d"]:
        """The coefficients of all columns."""
        return _inverse(self.gram) @ self.cross

    def score(self, chosen: Sequence[int] | None = None) -> Score:
        """Return the fit of a subset of the columns (None: all)."""
        c = list(range(len(self.labels))) if chosen is None else list(chosen)
        if not c:
            nothing = torch.zeros_like(self.total)
            return Score(nothing, nothing, 0)
        x, gram, cross, inner = self.columns[:, c], self.gram[c][:, c], self.cross[:, c], self.inner[:, c]
        inverse = _inverse(gram)
        lifted = x @ inverse
        outer = cross @ cross.mT
        between = self.between.clamp(min=1e-300)
        explained = (inverse * outer.mT).sum((1, 2))
        leverage = self.weights * (1 / self.weights.sum() + (lifted * x).sum(1))
        residual = self.squares - 2 * (inner * lifted.T).sum(1) + ((lifted @ outer) * lifted).sum(2)
        left = 1 - leverage
        left = torch.where(left < _DETERMINED, torch.nan, left)
        press = (self.weights * residual.clamp(min=0) / left.square()).sum(1)
        rank = round(float((inverse * gram.T).sum()))
        none = self.between <= 0  # no fit is better than their mean, and none worse
        return Score(explained / between, torch.where(none, 0, 1 - press / between), rank)


def solved(means: NumberMeans, design: Design, components: int | None = None) -> Solved:
    """Return the products of a design (a row a number) with the means of every site."""
    v = len(means.values)
    if v < 3:
        raise ValueError(f"{v} numbers: a fit over numbers needs at least three different ones.")
    if len(design) != v:
        raise ValueError(f"The design has {len(design)} rows, the means {v} numbers: one row a number is needed.")
    w = means.counts.to(torch.float64)
    x = design.matrix.to("cpu")
    column_means = w @ x / w.sum()
    x = x - column_means
    gram = x.T @ (w[:, None] * x)
    rank = round(float((_inverse(gram) * gram.T).sum()))
    if rank >= v - 1:
        raise ValueError(
            f"{v} numbers leave nothing over for {len(design.labels)} columns of rank {rank} and a constant: any "
            f"activations would be fitted exactly. Use at least {rank + 2} numbers or fewer periods."
        )
    sites, _, d = means.means.shape
    cross, inner = x.new_empty(sites, x.shape[1], d), x.new_empty(sites, x.shape[1], v)
    squares, grand, weighted = x.new_empty(sites, v), x.new_empty(sites, d), (w[:, None] * x).T.contiguous()
    y = x.new_empty(v, d)
    for i in range(sites):
        grand[i] = torch.mv(y.copy_(means.means[i]).T, w) / w.sum()
        y.sub_(grand[i])
        squares[i] = torch.linalg.vector_norm(y, dim=1).square()
        if is_rounding(squares[i], grand[i], means.means.dtype):
            y.zero_()
            squares[i] = 0
        torch.matmul(weighted, y, out=cross[i])
        if components is not None:
            basis = principal(y, w, components)
            cross[i] = (cross[i] @ basis) @ basis.T
        torch.matmul(cross[i], y.T, out=inner[i])
    total = means.within.sum(1) + squares @ w
    return Solved(design.labels, x, column_means, w, gram, cross, inner, squares, grand, total)


def principal(y: Float[Tensor, "v d"], weights: Float[Tensor, " v"], rank: int) -> Float[Tensor, "d rank"]:
    """Return the leading principal directions of centred means, weighted by their counts, from the v x v products."""
    rows = weights.sqrt()[:, None] * y
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    full = min(int((values > 1e-12 * values[-1].clamp(min=1e-300)).sum()), len(y) - 1)
    if not 1 <= rank <= full:
        raise ValueError(f"{rank} principal components were asked for; means of {len(y)} numbers have 1 to {full}.")
    leading = vectors[:, -rank:].flip(1)
    return torch.linalg.qr(rows.T @ leading).Q


def _inverse(gram: Tensor) -> Tensor:
    """The pseudo-inverse of the products of the columns, rank judged after scaling them."""
    return _solve(gram, torch.eye(len(gram), dtype=gram.dtype))
