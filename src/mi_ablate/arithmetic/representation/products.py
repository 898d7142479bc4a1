"""What shuffled controls, principal components and searches for periods are computed from: products between numbers.

    P = √W (H - μ)(H - μ)ᵀ √W        [v v],  H the means of the v numbers at one site, W their counts

A fit of a design X over the numbers explains tr(Qᵀ P Q) of tr P, with Q an orthonormal basis of the centred √W X, so
hundreds of designs cost nothing beside the one product; permuting the numbers is permuting rows of X. The eigenvalues of P
are those of the principal components.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.arithmetic.representation.states import NumberMeans

_RANK = 1e-5
"""Columns whose singular value is below this share of the largest, after scaling, count as dependent (as in `mi.fit`)."""


def products(means: NumberMeans, site: str | int) -> Float[Tensor, "v v"]:
    """Return P of one site."""
    rows = means.counts.to(torch.float64).sqrt()[:, None] * means.centred(site)
    return rows @ rows.T


def basis_of(columns: Float[Tensor, "v k"], weights: Float[Tensor, " v"]) -> Float[Tensor, "v rank"]:
    """Return an orthonormal basis of the columns, centred and scaled by the roots of the weights."""
    centred = (columns - weights @ columns / weights.sum()) * weights.sqrt()[:, None]
    norms = centred.norm(dim=0)
    live = norms > 1e-9 * columns.norm(dim=0).clamp(min=1e-300)
    if not live.any():
        return columns[:, :0]
    u, s, _ = torch.linalg.svd(centred[:, live] / norms[live], full_matrices=False)
    return u[:, s > _RANK * s[0]]


def explained(p: Float[Tensor, "v v"], q: Float[Tensor, "v rank"]) -> float:
    """Return tr(Qᵀ P Q) / tr P."""
    return float((q * (p @ q)).sum() / p.trace().clamp(min=1e-300))


def left_out(p: Float[Tensor, "v v"], q: Float[Tensor, "v rank"], weights: Float[Tensor, " v"]) -> float:
    """Return the leave-one-number-out R²; NaN where a number alone determines a column, 0 where all means are the same."""
    leverage = weights / weights.sum() + q.square().sum(1)
    if bool((leverage > 1 - 1e-9).any()):
        return float("nan")
    if float(p.trace()) <= 0:
        return 0.0
    pq = p @ q
    residual = p.diagonal() - 2 * (pq * q).sum(1) + ((q @ (q.T @ pq)) * q).sum(1)
    return float(1 - (residual.clamp(min=0) / (1 - leverage).square()).sum() / p.trace().clamp(min=1e-300))


def check_draws(draws: int) -> None:
    """Refuse a control of no draws."""
    if draws < 1:
        raise ValueError(f"draws={draws}: at least 1 permutation, since what is found says nothing without a control.")
