"""How many dimensions a matrix has, by five measures that disagree, beside those of random matrices.

Of the singular values s:

    rank99_energy   smallest r with s_1² + ... + s_r² >= 0.99 Σ s²
    rank99_nuclear  the same with s instead of s²
    participation   (Σ s²)² / Σ s⁴
    effective       exp of the entropy of s / Σ s (Roy & Vetterli 2007)
    stable          Σ s² / s_1²

A number means something only with its matrix, its centring and the value of a random matrix of the same shape: a 97 x 128
Gaussian has a rank99_energy of 83 or 84 (83 where its mean row is removed), a nuclear one of 93 and a participation ratio
of 55 (`random_baseline`). A collapsed matrix has a low rank too, so the norm stands beside them.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

MEASURES = ("rank99_energy", "rank99_nuclear", "participation", "effective", "stable")
_QUANTILE = 0.99


def rank_measures(matrix: Float[Tensor, "n d"], centre: bool = False) -> dict[str, float]:
    """Return every rank measure of a matrix, and its Frobenius norm under "norm".

    Args:
        matrix: ``[n, d]``, such as ``grid.embedding``.
        centre: remove the mean row first, as principal components do.

    Raises:
        ValueError: no matrix, or one without anything in it (zero, or constant rows with ``centre``).

    """
    if matrix.ndim != 2:
        raise ValueError(f"A rank is of a matrix [n, d]; this has shape {list(matrix.shape)}.")
    x = matrix.detach().to("cpu", torch.float64)
    s = torch.linalg.svdvals(x - x.mean(0) if centre else x)
    if not float(s.max()) > 1e-12 * max(1.0, float(x.abs().max())):
        raise ValueError(
            f"The {list(matrix.shape)} matrix{' less its mean row' * centre} is zero: it has no rank measures."
        )
    return _measures(s)


def random_baseline(
    shape: tuple[int, int], draws: int = 10, seed: int = 0, centre: bool = False
) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of every measure over Gaussian matrices of a shape [n, d], unit variance.

    Args:
        shape: rows and columns.
        draws: how many matrices; at least 2.
        seed: of the first; one generator draws all.
        centre: as in `rank_measures`.

    Raises:
        ValueError: fewer than 2 draws.

    """
    if draws < 2:
        raise ValueError(f"draws={draws}: a spread needs at least 2.")
    generator = torch.Generator().manual_seed(seed)
    found = [rank_measures(torch.randn(shape, dtype=torch.float64, generator=generator), centre) for _ in range(draws)]
    table = {name: torch.tensor([one[name] for one in found], dtype=torch.float64) for name in found[0]}
    return {name: (float(x.mean()), float(x.std())) for name, x in table.items()}


def _measures(s: Float[Tensor, " r"]) -> dict[str, float]:
    energy, share = s**2, s / s.sum()
    positive = share[share > 0]
    return {
        "rank99_energy": float(_rank(energy)),
        "rank99_nuclear": float(_rank(s)),
        "participation": float(energy.sum() ** 2 / (energy**2).sum()),
        "effective": math.exp(float(-(positive * positive.log()).sum())),
        "stable": float(energy.sum() / energy[0]),
        "norm": float(energy.sum() ** 0.5),
    }


def _rank(weights: Float[Tensor, " r"]) -> int:
    return int((weights.cumsum(0) / weights.sum() < _QUANTILE - 1e-12).sum()) + 1
