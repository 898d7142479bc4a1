"""What a helix fit is compared with, under one interface (Kantamneni & Tegmark 2025, §4.4 and Fig. 4, and two nulls).

    helix        a line and a circle a period                          rank 8 for (2, 5, 10, 100)
    circle       the circles alone                                     one less
    polynomial   a, a², ..., a^(2k+1) for k periods                    as many as the helix has columns
    pca          the leading principal components, as many as the helix's rank: the most that so many dimensions hold
    shuffled     the helix of permuted numbers: R² about rank / (numbers - 1), whatever the activations
    random       an isotropic subspace of the helix's rank: about rank / d of the variance, and nothing is fitted

R² is over the per-number means, weighted by their counts. ``loo`` predicts each number without it; PCA and random subspaces
see the number that they describe, so they have none (NaN).

When it misleads: a helix that beats the shuffled one says that there is *some* order in the numbers. That the order is
periodic needs the polynomial beside it, and that these periods matter needs free ones (`free_periods`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.arithmetic.representation.helices import PERIODS, HelixFits, design_fits
from mi_ablate.arithmetic.representation.products import basis_of, check_draws, explained, left_out, products
from mi_ablate.arithmetic.representation.solving import principal
from mi_ablate.arithmetic.representation.states import NumberMeans
from mi_ablate.design import Design, helix, polynomial
from mi_ablate.subspace import Subspace

METHODS = ("helix", "circle", "polynomial", "shuffled")
SUBSPACES = ("pca", "random")


@dataclass(frozen=True, eq=False, repr=False)
class Baselines:
    """R² of the means and leave-one-number-out R² of each method at each site.

    Attributes:
        r2: ``[sites]`` a method; of shuffled and random the mean over the draws.
        loo: likewise; NaN of pca and random.
        shuffled: ``[draws sites]``, R² of each shuffle.
        random: ``[draws sites]``.
        rank: of the helix.
        expected: rank / (numbers - 1), what shuffling gives on average.

    """

    sites: tuple[str, ...]
    periods: tuple[int | float, ...]
    r2: dict[str, Float[Tensor, " sites"]]
    loo: dict[str, Float[Tensor, " sites"]]
    shuffled: Float[Tensor, "draws sites"]
    random: Float[Tensor, "draws sites"]
    rank: int
    expected: float

    def table(self) -> list[dict[str, object]]:
        """Return a row a site and method."""
        return [
            {"site": site, "method": method, "r2": float(self.r2[method][i]), "loo": float(self.loo[method][i])}
            for i, site in enumerate(self.sites)
            for method in self.r2
        ]

    def __repr__(self) -> str:
        means = ", ".join(f"{method} {float(r2.mean()):.2f}" for method, r2 in self.r2.items())
        return f"Baselines(mean R²: {means})"


def method_design(means: NumberMeans, method: str, periods: Sequence[int | float] = PERIODS, seed: int = 0) -> Design:
    """Return the design of "helix", "circle", "polynomial" or "shuffled", a row a number of ``means``.

    Raises:
        KeyError: another method.

    """
    values, name = means.values, means.of
    if method == "polynomial":
        return polynomial(values, 2 * len(periods) + 1, name=name)
    if method == "shuffled":
        values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    elif method not in METHODS:
        raise KeyError(f"No design {method!r}: {', '.join(METHODS)}. Subspaces ({', '.join(SUBSPACES)}) have none.")
    design = helix(values, periods, name)
    return Design(design.matrix[:, 1:], design.labels[1:]) if method == "circle" else design


def method_fits(
    means: NumberMeans,
    method: str,
    periods: Sequence[int | float] = PERIODS,
    *,
    components: int | None = None,
    seed: int = 0,
) -> HelixFits:
    """Fit the helix or one of its baselines at all sites: what their `fit(site)` writes can be put in the model's place."""
    kept = () if method == "polynomial" else periods
    return design_fits(means, method_design(means, method, periods, seed), method, kept, components)


def method_subspaces(means: NumberMeans, method: str, rank: int, seed: int = 0) -> dict[str, Subspace]:
    """Return the "pca" subspace of the means, or an isotropic "random" one, at each site."""
    if method not in SUBSPACES:
        raise KeyError(f"No subspace {method!r}: {', '.join(SUBSPACES)}.")
    found = {}
    for i, site in enumerate(means.sites):
        source = {"method": method, "site": site, "of": means.of, "numbers": len(means.values)}
        if method == "pca":
            basis = principal(means.centred(i), means.counts.to(torch.float64), rank)
        else:
            basis = Subspace.random(means.means.shape[2], rank, seed + i).basis
            source["seed"] = seed + i
        found[site] = Subspace(basis, f"{method} {rank}", source)
    return found


def baselines(
    means: NumberMeans, periods: Sequence[int | float] = PERIODS, *, draws: int = 5, seed: int = 0
) -> Baselines:
    """Return the helix and all its baselines at every site.

    Args:
        means: per-number means.
        periods: of the helix.
        draws: shuffles, and random subspaces.
        seed: of the first draw.

    Raises:
        ValueError: too few numbers (see `helix_fits`).

    """
    check_draws(draws)
    fits = {method: method_fits(means, method, periods) for method in METHODS[:3]}
    weights, rank = means.counts.to(torch.float64), fits["helix"].rank
    seeds = range(seed, seed + draws)
    shuffles = [basis_of(method_design(means, "shuffled", periods, s).matrix, weights) for s in seeds]
    shuffled, chance, drawn, pca = [], [], [], []
    for i in range(len(means.sites)):
        p, y = products(means, i), means.centred(i)
        shuffled.append([explained(p, q) for q in shuffles])
        chance.append([left_out(p, q, weights) for q in shuffles])
        eigenvalues = torch.linalg.eigvalsh(p).clamp(min=0)
        pca.append(eigenvalues[-rank:].sum() / eigenvalues.sum().clamp(min=1e-300))
        bases = [Subspace.random(y.shape[1], min(rank, y.shape[1]), s + i).basis for s in seeds]
        drawn.append([float(weights @ (y @ q).square().sum(1) / p.trace().clamp(min=1e-300)) for q in bases])
    null, isotropic = torch.tensor(shuffled, dtype=torch.float64).T, torch.tensor(drawn, dtype=torch.float64).T
    unknown = torch.full((len(means.sites),), torch.nan, dtype=torch.float64)
    r2 = {method: fit.r2_means for method, fit in fits.items()}
    loo = {method: fit.loo for method, fit in fits.items()}
    r2 |= {"pca": torch.stack(pca), "shuffled": null.mean(0), "random": isotropic.mean(0)}
    loo |= {"pca": unknown, "shuffled": torch.tensor(chance, dtype=torch.float64).mean(1), "random": unknown}
    expected = rank / (len(means.values) - 1)
    return Baselines(means.sites, tuple(periods), r2, loo, null, isotropic, rank, expected)
