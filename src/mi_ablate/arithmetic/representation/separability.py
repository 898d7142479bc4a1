"""Can the residue mod T be read off, or is there only a spike at period T? (Fu et al. 2026, arXiv 2604.20817.)

    F_ν = N^(-1/2) Σ_n e(n) e^(-2πiνn),    Φ_T = Σ_{l=1}^{T-1} |F_{l/T}|²,    Tr(S_B) = Φ_T / N    (N a multiple of T)

S_B is the scatter of the T residue means, S_W that of the numbers around them. The power at period T and its harmonics *is* the
distance between the residue means; it says nothing of the scatter around them. With a period in one dimension and noise
1.5 times its amplitude, 100 numbers give a line 10 times the noise's, and a residue nobody can read. So spikes are
necessary and not sufficient: a residue cannot be separated without them, and may not be with them.

    Fisher ratio   λ_max((S_W + ρ tr(S_W)/d I)^(-1) S_B), ρ the ridge
    κ              Cohen's kappa of a linear (ridge) classifier of the residue, on numbers it was not fitted to; folds leave out
                   whole runs of T numbers, so that no residue becomes rarer than the others

both beside the same for permuted residues. With more dimensions than numbers the Fisher ratio of *any* labels is large,
which is why the shuffled one must be looked at; κ is about 0 there.

When it misleads: κ is about linear readers. It is below 0 rather than about 0 where the activations are waves orthogonal to
the residue's: what little they agree with it on the fitted numbers they disagree with it on the others. And what can be
read need not be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.arithmetic.representation.products import check_draws
from mi_ablate.arithmetic.representation.spectra import line_power
from mi_ablate.arithmetic.representation.states import NumberMeans


@dataclass(frozen=True, eq=False, repr=False)
class Separability:
    """Spike and separability of each residue at each site.

    Attributes:
        moduli: T. phi: ``[sites moduli]``, Φ_T. between: Tr(S_B). share: Tr(S_B) of the whole scatter.
        spike: Φ_T / (T - 1) over the mean power of all other lines.
        fisher: and ``fisher_shuffled`` ``[sites moduli]``, mean over permuted residues.
        kappa: and ``kappa_shuffled`` ``[draws sites moduli]``.
        numbers: how many were used of each modulus: the largest multiple of T.

    """

    sites: tuple[str, ...]
    moduli: tuple[int, ...]
    phi: Float[Tensor, "sites moduli"]
    between: Float[Tensor, "sites moduli"]
    share: Float[Tensor, "sites moduli"]
    spike: Float[Tensor, "sites moduli"]
    fisher: Float[Tensor, "sites moduli"]
    fisher_shuffled: Float[Tensor, "sites moduli"]
    kappa: Float[Tensor, "sites moduli"]
    kappa_shuffled: Float[Tensor, "draws sites moduli"]
    numbers: tuple[int, ...]
    ridge: float

    def table(self) -> list[dict[str, object]]:
        """Return a row a site and modulus."""
        most = self.kappa_shuffled.max(0).values
        return [
            {
                "site": site,
                "modulus": T,
                "numbers": self.numbers[j],
                "spike": float(self.spike[i, j]),
                "between": float(self.share[i, j]),
                "fisher": float(self.fisher[i, j]),
                "fisher (shuffled)": float(self.fisher_shuffled[i, j]),
                "kappa": float(self.kappa[i, j]),
                "kappa (shuffled, most)": float(most[i, j]),
            }
            for i, site in enumerate(self.sites)
            for j, T in enumerate(self.moduli)
        ]

    def __repr__(self) -> str:
        best = ", ".join(f"mod {T} {float(k):.2f}" for T, k in zip(self.moduli, self.kappa.max(0).values))
        return f"Separability(best kappa: {best})"


def residue_separability(
    means: NumberMeans,
    moduli: Sequence[int] = (2, 5, 10),
    *,
    ridge: int | float = 1e-2,
    folds: int = 5,
    draws: int = 10,
    seed: int = 0,
) -> Separability:
    """Return spike, Fisher ratio and held-out κ of the residues at all sites; counts play no part.

    Args:
        means: per-number means of consecutive numbers; of each T the last ``N mod T`` are left out.
        moduli: T, from 2.
        ridge: ρ, and the classifier's penalty, as shares of the mean variance a dimension and a number.
        folds: parts that the numbers are held out in.
        draws: permutations of the residues. seed: of folds and permutations.

    Raises:
        ValueError: numbers that are not consecutive, a modulus with fewer than two runs of numbers.

    """
    _check(means, moduli, ridge, folds)
    check_draws(draws)
    columns: list[list[list[float]]] = []
    shuffled: list[list[list[float]]] = []
    used = []
    for T in moduli:
        n = len(means.values) // T * T
        if T < 2 or n < 2 * T:
            raise ValueError(f"The modulus {T} needs to be at least 2, and at least {2 * max(T, 2)} numbers.")
        used.append(n)
        labels, parts = means.values[:n] % T, _folds(n, T, folds, seed)
        orders = [torch.randperm(n, generator=torch.Generator().manual_seed(seed + s)) for s in range(draws)]
        each = [
            _measures(means.centred(i, counted=False)[:n], labels, T, parts, orders, ridge)
            for i in range(len(means.sites))
        ]
        columns.append([row for row, _ in each])
        shuffled.append([null for _, null in each])
    phi, between, share, spike, fisher, chance, kappa = torch.tensor(columns, dtype=torch.float64).permute(2, 1, 0)
    null = torch.tensor(shuffled, dtype=torch.float64).reshape(len(moduli), len(means.sites), draws).permute(2, 1, 0)
    return Separability(
        sites=means.sites,
        moduli=tuple(moduli),
        phi=phi,
        between=between,
        share=share,
        spike=spike,
        fisher=fisher,
        fisher_shuffled=chance,
        kappa=kappa,
        kappa_shuffled=null,
        numbers=tuple(used),
        ridge=float(ridge),
    )


def _check(means: NumberMeans, moduli: Sequence[int], ridge: int | float, folds: int) -> None:
    if ridge <= 0:
        raise ValueError(
            f"ridge={ridge}: a positive share is needed; with more dimensions than numbers S_W is singular."
        )
    if not bool((means.values.diff() == 1).all()):
        raise ValueError("Residues need consecutive numbers: keep a run of them, means.kept(means.values < 100).")
    if folds < 2 or not moduli:
        raise ValueError(
            f"folds={folds}, moduli={list(moduli)}: at least two parts to hold out, and at least one modulus."
        )


def _measures(
    x: Tensor, labels: Tensor, T: int, parts: Tensor, orders: list[Tensor], ridge: int | float
) -> tuple[list[float], list[float]]:
    """A site's measures in the order of the attributes, and the kappas of permuted residues; all from one product."""
    x = x - x.mean(0)
    products, n = x @ x.T, len(x)
    every = [labels, *(labels[o] for o in orders)]
    phi, spike = _spike(products, T)
    averages = _averages(labels, T)
    between = float((averages @ products @ averages.T).trace() / T)
    share = between / max(float(products.trace()) / n, 1e-300)
    fisher, *chance = (_fisher(products, some, T, ridge / x.shape[1]) for some in every)
    kappa, *null = _kappas(products, every, T, parts, ridge)
    return [phi, between, share, spike, fisher, sum(chance) / max(len(orders), 1), kappa], null


def _spike(products: Tensor, T: int) -> tuple[float, float]:
    """Φ_T, and its mean line over the mean of all other lines."""
    n = len(products)
    half, k = line_power(products) / n, torch.arange(1, n)
    power = half[torch.minimum(k, n - k) - 1]
    at = k % (n // T) == 0
    return float(power[at].sum()), float(power[at].mean() / power[~at].mean().clamp(min=1e-300))


def _averages(labels: Tensor, T: int) -> Tensor:
    """``[T n]``: averages over the numbers of each residue."""
    one_hot = torch.nn.functional.one_hot(labels, T).to(torch.float64)
    return (one_hot / one_hot.sum(0)).T


def _fisher(products: Tensor, labels: Tensor, T: int, ridge: int | float) -> float:
    """The largest eigenvalue of (S_W + ρ tr(S_W)/d I)^(-1) S_B, from products between numbers (Woodbury)."""
    n, averages = len(products), _averages(labels, T)
    left = torch.eye(n, dtype=products.dtype) - averages[labels]
    within = left @ products @ left.T / n
    centres = averages @ products
    between = centres @ averages.T / T
    level = ridge * float(within.trace())
    if float(within.trace()) <= 1e-12 * float(products.trace()) / n:
        return float("inf") if float(between.trace()) > 0 else 0.0
    cross = left @ centres.T / (n * T) ** 0.5
    inner = within + level * torch.eye(n, dtype=products.dtype)
    product = (between - cross.T @ torch.linalg.solve(inner, cross)) / level
    return float(torch.linalg.eigvalsh((product + product.T) / 2)[-1])


def _folds(n: int, T: int, folds: int, seed: int) -> Int[Tensor, " n"]:
    """Which fold each number is held out in: whole runs of T, so that residues stay balanced."""
    runs = n // T
    order = torch.randperm(runs, generator=torch.Generator().manual_seed(seed))
    return (order % min(folds, runs)).repeat_interleave(T)


def _kappas(products: Tensor, labels: list[Tensor], T: int, parts: Tensor, ridge: int | float) -> list[float]:
    """Cohen's kappa of a ridge classifier on held-out numbers, for each labelling; one solve a fold."""
    targets = torch.cat([torch.nn.functional.one_hot(some, T) for some in labels], 1).to(products.dtype)
    guesses = torch.empty(len(products), len(labels), dtype=torch.int64)
    for part in parts.unique().tolist():
        out = parts == part
        fitted, held = products[~out][:, ~out], products[out][:, ~out]
        held = held - held.mean(1, keepdim=True) - fitted.mean(0) + fitted.mean()
        fitted = fitted - fitted.mean(0) - fitted.mean(1, keepdim=True) + fitted.mean()
        level = ridge * float(fitted.trace()) / len(fitted)
        inner = fitted + max(level, 1e-300) * torch.eye(len(fitted), dtype=fitted.dtype)
        scores = held @ torch.linalg.solve(inner, targets[~out])
        guesses[out] = scores.unflatten(1, (len(labels), T)).argmax(2)
    return [cohen_kappa(some, guesses[:, i]) for i, some in enumerate(labels)]


def cohen_kappa(right: Int[Tensor, " n"], guessed: Int[Tensor, " n"]) -> float:
    """Return Cohen's kappa, (agreement - chance) / (1 - chance), chance being that of the two label frequencies."""
    size = int(torch.cat([right, guessed]).max()) + 1
    chance = float(torch.bincount(right, minlength=size).double() @ torch.bincount(guessed, minlength=size).double())
    chance /= len(right) ** 2
    agreement = float((right == guessed).double().mean())
    return (agreement - chance) / (1 - chance) if chance < 1 else 0.0
