"""Whether vectors of the elements of Z_n lie in the order of a circle: the cyclic-geometry score.

Features that are active near each other on a cycle (months, residues) are arranged on a circle by training with weight
decay (Prieto et al. 2026, arXiv 2603.09972). Four numbers say so for the rows of W ``[n, d]``, k the leading frequency of
the plane of the first two principal components:

    order         of the angles in that plane, the share of neighbours (by angle) that are neighbours on the cycle of k
                  (i and i + 1/k mod n), less what a random order gives, scaled: 1 is perfect, 0 is chance
    alignment     |Σ exp(i (angle_a ± 2πka/n))| / n: 1 for points on the circle, about √(ln n / n) for noise, since k is
                  the best of n/2. A noisy circle keeps it when neighbours are shuffled (113 points are 3 degrees apart)
    shares        the energy of each frequency (`spectrum`)
    coactivation  Pearson correlation, off the diagonal, of the rows' dot products with a given matrix of how often two
                  elements are active together

The plane is chosen by variance, not by frequency, so noise can fail; with several circles at once (a grokked W_E) the first
two components may mix two of them, and both numbers fall though the shares do not. k is read off the same plane, so a few
points are in order by luck: on fewer than seven places the order is NaN.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.model import last_residual
from mi_ablate.modular.grids import Grid
from mi_ablate.modular.spectra import Spectrum, spectrum

PLACES = 7


@dataclass(frozen=True, eq=False)
class CyclicGeometry:
    """How far the rows of a matrix over Z_n are a circle."""

    n: int
    frequency: int
    """The leading frequency of the first two principal components."""
    order: float
    """1: the rows follow each other on the circle; about 0: a random order; NaN on fewer than seven places."""
    alignment: float
    """How well the angles in that plane are those of the frequency, noise allowed."""
    shares: Spectrum
    planar: float
    """The share of the variance in that plane."""
    coactivation: float | None = None

    def __repr__(self) -> str:
        name = f"{self.shares.name}, " if self.shares.name else ""
        also = "" if self.coactivation is None else f", co-activation {self.coactivation:.2f}"
        share = self.shares.share(self.frequency)
        score = f"order {self.order:.2f}, alignment {self.alignment:.2f}"
        return f"CyclicGeometry({name}Z_{self.n}: k {self.frequency}, {score}, share {share:.3f}{also})"


def cyclic_geometry(
    w: Float[Tensor, "n d"], coactivation: Float[Tensor, "n n"] | None = None, name: str = ""
) -> CyclicGeometry:
    """Return the cyclic-geometry score of the rows of ``w``, row a for the element a of Z_n.

    Args:
        w: ``[n, d]`` with n > 3 and d > 1.
        coactivation: how often (or how strongly) two elements are active together, for the third number.
        name: what w is.

    Raises:
        ValueError: fewer rows or columns, rows that do not span a plane.

    """
    n, d = w.shape
    if n < 4 or d < 2:
        raise ValueError(f"w has shape {list(w.shape)}; a circle needs at least 4 rows of 2 numbers.")
    x = w.detach().to("cpu", torch.float64)
    x = x - x.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    if not float(s[1]) > 1e-10 * max(float(s[0]), 1e-300):
        raise ValueError(f"The {n} rows lie on one line (or in one point): there is no plane to look for a circle in.")
    plane = u[:, :2] * s[:2]
    frequency = spectrum(plane).top(1)[0]
    together = None
    if coactivation is not None:
        off = ~torch.eye(n, dtype=torch.bool)
        dots = (w.detach().to("cpu", torch.float64) @ w.detach().to("cpu", torch.float64).T)[off]
        given = coactivation.detach().to("cpu", torch.float64)[off]
        together = float(torch.corrcoef(torch.stack([dots, given]))[0, 1])
    planar = float((s[:2] ** 2).sum() / (s**2).sum())
    angles = torch.atan2(plane[:, 1], plane[:, 0])
    turns = 2 * math.pi / n * (frequency * torch.arange(n) % n)
    alignment = max(float(torch.polar(torch.ones_like(angles), angles + sign * turns).mean().abs()) for sign in (1, -1))
    order = _order(angles, frequency)
    return CyclicGeometry(n, frequency, order, alignment, spectrum(w, name), planar, together)


def cyclic_scores(grid: Grid) -> dict[str, CyclicGeometry]:
    """Return the score of W_E, of W_U and of the answers' mean activations at the last residual stream."""
    acts = grid.acts(last_residual(grid.model)).flatten(0, 1)
    sums = acts.new_zeros(grid.n, acts.shape[1]).index_add(0, grid.answers.flatten(), acts)
    matrices = {"W_E": grid.embedding, "W_U": grid.unembedding.T, "class means": sums / grid.n}
    return {name: cyclic_geometry(w, name=name) for name, w in matrices.items()}


def _order(angles: Float[Tensor, " n"], k: int) -> float:
    """The share of neighbours by angle that are neighbours on the cycle of frequency k, above chance."""
    n = len(angles)
    by_angle = angles.argsort()
    place = k * by_angle % n  # where on the circle of frequency k each stands; equal places where k divides n
    step = math.gcd(k, n)
    places = n // step
    if places < PLACES:
        return float("nan")
    apart = (place - place.roll(1)) % n
    near = (apart <= step) | (apart >= n - step)
    chance = (3 * step - 1) / (n - 1)
    return (float(near.double().mean()) - chance) / (1 - chance)
