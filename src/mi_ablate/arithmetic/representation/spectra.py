"""Spectrum over the integers, and how linear the numbers lie (Kantamneni & Tegmark 2025, §4.1; Zhou et al. 2024, §4.1).

    F_k = Σ_n h(n) e^(-2πikn/N),   power_k = mean over dimensions of |F_k|²,   period = N / k,   k = 1 .. N // 2

of the means of N equally spaced numbers, their mean removed. `rfft` keeps the last line of an even count, the Nyquist
line of period 2; masking ``fftfreq > 0`` drops it, since numpy files it under -1/2: with 360 numbers a pure period 2 then
has no power at all, with 361 half of it ("visible for 360 but not for 361", or the reverse). Periods that do not divide the
count fall between lines and leak: 100 numbers hold 2, 2.5, 5, 10 and 100, 360 numbers all but 100, 361 none.

``shares`` are of the variance (Parseval: a line counts twice, Nyquist once) and sum to 1. Beside each line stands its
power for permuted numbers, which is flat; ``peaks`` are local maxima above every line of every permutation.

When it misleads: a slope alone has power at all long periods (like 1/k²), as a line removed or a Hamming window shows; and a
spike says neither that the residue can be read off (`residue_separability`) nor that the model uses it.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import nearest
from mi_ablate.arithmetic.representation._periods import off_bin
from mi_ablate.arithmetic.representation.products import check_draws
from mi_ablate.arithmetic.representation.states import NumberMeans, means_of

OF_INTEREST = (2, 2.5, 5, 10, 100)
MARKS = (2, 5, 10, 100)
"""Periods that a figure labels."""


@dataclass(frozen=True, eq=False, repr=False)
class NumberSpectra:
    """Power by period at each site.

    Attributes:
        periods: ``[k]`` in units of the numbers, longest first.
        power: ``[sites k]``, |F|² averaged over dimensions.
        shares: ``[sites k]`` of the variance, sums to 1.
        null: ``[sites k]``, mean power of permuted numbers. ceiling: ``[sites]``, the largest line of any permutation.
        off_bin: periods of interest that are no line: they do not divide the count, so their power is spread over
            neighbouring lines, or numbers so far apart cannot show them.

    """

    sites: tuple[str, ...]
    periods: Float[Tensor, " k"]
    power: Float[Tensor, "sites k"]
    shares: Float[Tensor, "sites k"]
    null: Float[Tensor, "sites k"]
    ceiling: Float[Tensor, " sites"]
    off_bin: tuple[int | float, ...]

    def line(self, period: int | float) -> int:
        """Return the index of the line nearest to a period (in frequency)."""
        return int((1 / self.periods - 1 / period).abs().argmin())

    def peaks(self, site: str | int = 0) -> list[float]:
        """Return the periods of local maxima above every line of every permutation, strongest first."""
        if isinstance(site, str) and site not in self.sites:
            raise KeyError(f"There is no spectrum of {site!r}. {nearest(site, self.sites)}")
        i = site if isinstance(site, int) else self.sites.index(site)
        power = self.power[i]
        padded = torch.cat([power.new_zeros(1), power, power.new_zeros(1)])
        top = (power >= padded[:-2]) & (power > padded[2:]) & (power > self.ceiling[i])
        found = torch.nonzero(top).flatten()
        return self.periods[found[power[found].argsort(descending=True)]].tolist()

    @property
    def null_shares(self) -> Float[Tensor, "sites k"]:
        """The mean power of the permutations as shares of the variance, lines counted as in ``shares``."""
        ratio = self.shares / self.power.clamp(min=1e-300)
        null = self.null * torch.where(self.power > 0, ratio, ratio.amax(1, keepdim=True))
        return null / null.sum(1, keepdim=True).clamp(min=1e-300)

    def plot(
        self, sites: Mapping[str, str] | None = None, title: str | None = None, marks: Sequence[int | float] = MARKS
    ) -> Any:
        """Return the share of the variance against the period, a line a site, shuffled numbers (of the first) in grey.

        ``sites``: by site, what to call it; all under their own names for None. ``marks``: periods to point out.
        """
        from mi_ablate.figures import lines

        names = dict(zip(self.sites, self.sites)) if sites is None else dict(sites)
        rows = [self.sites.index(site) for site in names]
        series = {name: self.shares[i] for i, name in zip(rows, names.values())}
        series["shuffled numbers"] = self.null_shares[rows[0]]
        periods = self.periods.tolist()
        inside = [T for T in marks if periods[-1] <= T <= periods[0]] or [periods[0], periods[-1]]
        return lines(
            [round(T, 6) for T in periods], series, controls=["shuffled numbers"], log=True, marks=inside, title=title,
            axes=("period (logarithmic)", "share of the variance"),
        )  # fmt: skip

    def table(self, count: int = 10) -> list[dict[str, object]]:
        """Return the ``count`` strongest lines of each site."""
        rows: list[dict[str, object]] = []
        for i, site in enumerate(self.sites):
            peaks = set(self.peaks(i))
            for k in self.power[i].argsort(descending=True)[:count].tolist():
                over = float(self.power[i, k] / self.null[i, k].clamp(min=1e-300))
                period, share = float(self.periods[k]), float(self.shares[i, k])
                rows.append(
                    {"site": site, "period": period, "share": share, "over shuffled": over, "peak": period in peaks}
                )
        return rows

    def __repr__(self) -> str:
        peaks = ", ".join(f"{T:.4g}" for T in self.peaks(0)[:5]) or "none"
        return f"NumberSpectra({len(self.sites)} sites, {len(self.periods)} lines, peaks at {self.sites[0]}: {peaks})"


def number_spectra(
    means: NumberMeans,
    *,
    standardise: bool = False,
    window: bool = False,
    of_interest: Sequence[int | float] = OF_INTEREST,
    draws: int = 20,
    seed: int = 0,
) -> NumberSpectra:
    """Return the power by period at all sites.

    Args:
        means: per-number means of equally spaced numbers; counts play no part.
        standardise: divide each dimension by its standard deviation, so that a few large ones do not decide.
        window: multiply by a Hamming window: less leakage of the slope into short periods, lines twice as wide.
        of_interest: periods that are warned of where they do not divide the count.
        draws: permutations. seed: of the first.

    Raises:
        ValueError: fewer than four numbers, or numbers that are not equally spaced.

    """
    n, step = _equally_spaced(means)
    check_draws(draws)
    k = torch.arange(1, n // 2 + 1)
    off = tuple(T for T in of_interest if off_bin(n, [T / step]))
    if off:
        warnings.warn(
            f"Of {n} numbers {step} apart the periods {', '.join(f'{T:g}' for T in off)} fall between two lines and leak "
            "into both, or are shorter than two steps: choose a count that they divide (100 has 2, 2.5, 5, 10 and 100).",
            stacklevel=2,
        )
    orders = [torch.randperm(n, generator=torch.Generator().manual_seed(seed + s)) for s in range(draws)]
    taper = (
        torch.hamming_window(n, periodic=False, dtype=torch.float64) if window else torch.ones(n, dtype=torch.float64)
    )
    found, null, ceiling = [], [], []
    for i in range(len(means.sites)):
        x = _columns(means.centred(i, counted=False), standardise)
        found.append(torch.fft.rfft(x * taper[:, None], dim=0).abs().square().mean(1)[1:])
        products = x @ x.T / x.shape[1]
        drawn = torch.stack([line_power(products[o][:, o] * taper * taper[:, None]) for o in orders])
        null.append(drawn.mean(0))
        ceiling.append(drawn.max())
    power = torch.stack(found)
    doubled = torch.where(2 * k == n, 1.0, 2.0).to(torch.float64) * power
    shares = doubled / doubled.sum(1, keepdim=True).clamp(min=1e-300)
    return NumberSpectra(means.sites, n * step / k, power, shares, torch.stack(null), torch.stack(ceiling), off)


def number_spectrum(
    acts: Float[Tensor, "v d"], values: Int[Tensor, " v"] | Sequence[int], **options: bool | int | Sequence[int | float]
) -> NumberSpectra:
    """Return `number_spectra` of one matrix, a row a number (an embedding, say); the options are the same."""
    return number_spectra(means_of(acts, values), **options)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False, repr=False)
class Linearity:
    """R² of a line through PC1 of the standardised means against the number, at each site.

    Attributes:
        r2: ``[sites]``, 0 where all means are the same.
        shuffled: ``[draws sites]``, of permuted numbers (1 / (numbers - 1) on average).
        share: ``[sites]``, variance that PC1 holds.

    """

    sites: tuple[str, ...]
    r2: Float[Tensor, " sites"]
    shuffled: Float[Tensor, "draws sites"]
    share: Float[Tensor, " sites"]

    def table(self) -> list[dict[str, object]]:
        """Return a row a site."""
        most = self.shuffled.max(0).values.tolist()
        rows = zip(self.sites, self.r2.tolist(), most, self.share.tolist())
        return [{"site": site, "r2": r2, "shuffled (most)": null, "PC1 share": s} for site, r2, null, s in rows]

    def __repr__(self) -> str:
        best = int(self.r2.argmax())
        return f"Linearity(PC1 against the number: best R² {float(self.r2[best]):.3f} at {self.sites[best]})"


def linearity(means: NumberMeans, *, draws: int = 20, seed: int = 0) -> Linearity:
    """Return how linear the first principal component of the standardised means is in the number (KT Fig. 2).

    Any spacing will do. The first component follows whatever varies most: three-digit numbers may lie elsewhere than
    two-digit ones.

    Raises:
        ValueError: fewer than three numbers.

    """
    v = len(means.values)
    check_draws(draws)
    if v < 3:
        raise ValueError(f"{v} numbers: a line through two is no finding; give at least three.")
    a = means.values.to(torch.float64)
    orders = [torch.arange(v)]
    orders += [torch.randperm(v, generator=torch.Generator().manual_seed(seed + s)) for s in range(draws)]
    lines = torch.stack([a[o] - a.mean() for o in orders])
    lines = lines / lines.norm(dim=1, keepdim=True)
    r2, share = [], []
    for i in range(len(means.sites)):
        x = _columns(means.centred(i, counted=False), True)
        values, vectors = torch.linalg.eigh(x @ x.T)
        r2.append((lines @ vectors[:, -1]).square() * (values[-1] > 0))
        share.append(values[-1] / values.sum().clamp(min=1e-300))
    every = torch.stack(r2, 1)
    return Linearity(means.sites, every[0], every[1:], torch.stack(share))


def _columns(x: Tensor, standardise: bool) -> Tensor:
    """Centred columns, or those divided by their standard deviations."""
    if not standardise:
        return x
    scale = x.square().mean(0).sqrt()
    return x / torch.where(scale > 1e-12 * scale.max(), scale, torch.inf)


def line_power(products: Float[Tensor, "n n"]) -> Float[Tensor, " k"]:
    """Return |F_k|² summed over dimensions, for k = 1 .. N // 2, of rows with these products.

    It is the discrete Fourier transform of the sums of the products along cyclic diagonals.
    """
    n = len(products)
    lag = (torch.arange(n)[:, None] - torch.arange(n)) % n
    sums = torch.zeros(n, dtype=products.dtype).index_add_(0, lag.flatten(), products.flatten())
    return torch.fft.rfft(sums).real[1:].clamp(min=0)


def _equally_spaced(means: NumberMeans) -> tuple[int, int]:
    values, n = means.values, len(means.values)
    if n < 4:
        raise ValueError(f"{n} numbers: a spectrum needs at least four equally spaced ones.")
    gaps = values.diff()
    step = math.gcd(*gaps.tolist())
    if not bool((gaps == gaps[0]).all()):
        here = int((gaps != gaps[0]).nonzero()[0])
        raise ValueError(
            f"The numbers are not equally spaced: {int(values[here])} is followed by {int(values[here + 1])}. Keep a run of "
            "them, means.kept(means.values < 100), or fit periods instead (helix_fits, free_periods)."
        )
    return n, step
