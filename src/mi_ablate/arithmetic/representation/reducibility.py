"""Is a plane one two-dimensional feature, or two features in one picture? (Engels et al. 2024, arXiv 2405.14860, App. B.)

    separability   S = min over rotations of the mutual information of the two coordinates, in bits
    ε-mixture      M = max over v, c of P(|v·x + c| < ε √E[(v·x + c)²]),  ε = 0.1

A feature is reducible where, rotated, its coordinates are independent (S about 0), or where it is a mixture of points on a
line and others (M high). A circle has high S and low M. Score: (1 - M) · S, over the principal planes 1-2 .. 4-5.

S: centre, divide by the root mean square *norm* and multiply by √2; clip to [-3, 3]²; 40 x 40 histogram; 1,000 angles. Of
fewer than 6,400 points the histogram has √n / 2 bins a side here, about four points a cell if they were spread evenly.
The published demonstration divides by the mean square instead, so that S depends on the unit of the activations (see the
regression test); and adds 1e-4 inside the logarithm, which is not done here.

M: for centred data and a unit v, |p_i + c| < ε√(s² + c²) holds for c in one interval for each point, so the best c is where
most intervals overlap: exact by sorting, for each of 1,000 angles, in place of 10,000 steps of gradient ascent.

When it misleads: a histogram of few points has a large S whatever they are. The same points with one principal coordinate
permuted are independent up to that bias: ``independent`` is their S, and the difference is what counts.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.arithmetic.representation.solving import principal
from mi_ablate.arithmetic.representation.states import NumberMeans


@dataclass(frozen=True)
class Irreducibility:
    """Indices of one plane; ``independent`` is the separability index with one coordinate permuted."""

    name: str
    separability: float
    mixture: float
    independent: float
    n: int
    bins: int

    @property
    def score(self) -> float:
        """(1 - M) · S, as Engels et al. rank."""
        return (1 - self.mixture) * self.separability

    @property
    def excess(self) -> float:
        """S less that of the permuted coordinates: free of the bias of few points."""
        return self.separability - self.independent

    def row(self) -> dict[str, object]:
        """Return the indices as a row of a table."""
        return {
            "plane": self.name,
            "separability": self.separability,
            "independent": self.independent,
            "excess": self.excess,
            "mixture": self.mixture,
            "score": self.score,
            "points": self.n,
            "bins": self.bins,
        }


def irreducibility(
    points: Float[Tensor, "n two"],
    name: str = "plane",
    *,
    epsilon: int | float = 0.1,
    bins: int | None = None,
    seed: int = 0,
) -> Irreducibility:
    """Return both indices of points in a plane.

    Args:
        points: at least 10, not all equal.
        name: of the plane.
        epsilon: width of the mixture index, as a share of the root mean square.
        bins: of the histogram, a side; by the number of points where None, at most the paper's 40.
        seed: of the permuted control.

    Raises:
        ValueError: not points in a plane, too few, all equal, not finite.

    """
    points = _checked(points)
    bins = _bins(len(points)) if bins is None else bins
    turned = torch.linalg.eigh(points.T @ points).eigenvectors
    own = points @ turned
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
    null = separability_index(torch.stack([own[:, 0], own[order, 1]], 1), bins=bins)
    return Irreducibility(
        name, separability_index(points, bins=bins), mixture_index(points, epsilon), null, len(points), bins
    )


def plane_irreducibility(
    means: NumberMeans, site: str | int = 0, planes: int = 4, *, bins: int | None = None, seed: int = 0
) -> list[Irreducibility]:
    """Return the indices of the principal planes 1-2, 2-3, ... of the per-number means at one site.

    Raises:
        ValueError: fewer components than planes + 1.

    """
    y = means.centred(site)
    coordinates = y @ principal(y, means.counts.to(torch.float64), planes + 1)
    return [
        irreducibility(coordinates[:, [i, i + 1]], f"PC {i + 1}-{i + 2}", bins=bins, seed=seed) for i in range(planes)
    ]


def separability_index(points: Float[Tensor, "n two"], *, angles: int = 1000, bins: int | None = None) -> float:
    """Return the least mutual information, in bits, of the coordinates over ``angles`` rotations."""
    x = _checked(points)
    bins = _bins(len(x)) if bins is None else bins
    x = x * math.sqrt(2) / x.square().sum(1).mean().sqrt()
    theta = torch.arange(angles, dtype=torch.float64) * math.pi / 2 / angles  # a quarter turn swaps the coordinates
    least = math.inf
    for part in theta.split(max(1, 2_000_000 // max(len(x), bins * bins))):
        u = part.cos()[:, None] * x[:, 0] + part.sin()[:, None] * x[:, 1]
        v = -part.sin()[:, None] * x[:, 0] + part.cos()[:, None] * x[:, 1]
        i, j = (((t.clamp(-3, 3) + 3) / 6 * bins).long().clamp(max=bins - 1) for t in (u, v))
        cell = (torch.arange(len(part))[:, None] * bins + i) * bins + j
        counts = torch.bincount(cell.flatten(), minlength=len(part) * bins * bins)
        joint = counts.reshape(len(part), bins, bins).double() / len(x)
        information = _entropy(joint.sum(1)) + _entropy(joint.sum(2)) - _entropy(joint.flatten(1))
        least = min(least, float(information.min()))
    return max(least, 0.0)


def mixture_index(points: Float[Tensor, "n two"], epsilon: int | float = 0.1, *, angles: int = 1000) -> float:
    """Return the largest share of points within ε root mean squares of a line, over ``angles`` directions and all offsets."""
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon={epsilon}: a share between 0 and 1 (0.1 in the paper).")
    x = _checked(points)
    n, best = len(x), 0
    for theta in (torch.arange(angles, dtype=torch.float64) * math.pi / angles).split(max(1, 1_000_000 // n)):
        p = theta.cos()[:, None] * x[:, 0] + theta.sin()[:, None] * x[:, 1]
        variance = p.square().mean(1, keepdim=True)
        half = epsilon * (p.square() + (1 - epsilon**2) * variance).sqrt()
        ends = torch.cat([-p - half, -p + half], 1) / (1 - epsilon**2)
        order = ends.argsort(dim=1)
        overlap = torch.where(order < n, 1, -1).cumsum(1)
        best = max(best, int(overlap.max()))
    return best / n


def _bins(n: int) -> int:
    return min(40, max(2, round(math.sqrt(n) / 2)))


def _entropy(p: Tensor) -> Tensor:
    return -(torch.special.xlogy(p, p)).sum(-1) / math.log(2)


def _checked(points: Tensor) -> Tensor:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 10 or not torch.isfinite(points).all():
        raise ValueError(
            f"Points of shape {list(points.shape)}: at least 10 finite ones in a plane, [n 2], are needed."
        )
    x = points.detach().cpu().to(torch.float64)
    x = x - x.mean(0)
    if float(x.square().sum()) == 0:
        raise ValueError("All points of the plane are the same: there is no feature to judge.")
    return x
