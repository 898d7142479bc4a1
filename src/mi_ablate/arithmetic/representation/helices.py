"""The generalized helix of Kantamneni & Tegmark (2025, arXiv 2502.00873, eq. 2) at every site in one solve.

    h_a  ~  C B(a) + constant,      B(a) = [a, cos(2πa/T), sin(2πa/T) for each period T]

From per-number means (`NumberMeans`) the fit over all prompts is one weighted least squares, whose pseudo-inverse is
the same for all sites, widths and sets of periods: every subset of the columns is fitted from the same products.

The rank is not the number of columns. On integers sin(2πa/T) is zero wherever 2/T is whole (T = 2), so the default nine
columns have rank 8; a solver that keeps what rounding leaves of that column (4e-14) returns coefficients of 1e13, and every
norm, phase and ablation basis made of them is noise. The column is exactly zero here and the solve reveals its rank.

What is reported: R² over prompts and over means, adjusted for the rank, and ``loo``, from the error at each number of the
fit that never saw it, in closed form from the leverages (Allen's PRESS). Numbers are held out, not prompts, since the other
prompts of a number leak it. ``delta`` is how much R² falls when a period's columns are left out.

When it misleads: any smooth curve is well fitted by a line and slow sines, so a high R² says little without the baselines
(`baselines`), a polynomial of as many columns above all; and fit is not use (see the causal tests).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.arithmetic.representation.phases import polar
from mi_ablate.arithmetic.representation.solving import Solved, solved
from mi_ablate.arithmetic.representation.states import NumberMeans
from mi_ablate.design import Design, helix
from mi_ablate.regression import Fit

_FLAT = 1e-6
"""A column shorter than this share of its partner's is no direction."""
PERIODS = (2, 5, 10, 100)
"""The periods that Kantamneni & Tegmark chose for numbers in base 10."""


@dataclass(frozen=True, eq=False, repr=False)
class HelixFits:
    """Fits of one design at all sites of `NumberMeans`.

    Attributes:
        method: "helix", or the baseline: "circle", "polynomial", "shuffled".
        r2: ``[sites]``, share of the variance over prompts.
        r2_means: the same over the per-number means (weighted by their counts).
        adjusted: r2_means corrected for the rank and the number of numbers.
        loo: ``[sites]``, 1 - PRESS / variance of the means, each number predicted without it; NaN where a number
            alone determines a column. Below 0: worse than the mean. With ``components`` the principal
            subspace has seen the held-out number.
        rank: independent columns, the constant not counted.
        parts: what ``delta`` is about: "linear", and the periods.
        delta: ``[sites parts]``, fall of r2_means when these columns are left out.
        norms: ``[sites k]``, norm of each coefficient, in activation units a unit of the column.
        coef: ``[sites k d]``.

    """

    method: str
    means: NumberMeans
    periods: tuple[int | float, ...]
    components: int | None
    r2: Float[Tensor, " sites"]
    r2_means: Float[Tensor, " sites"]
    adjusted: Float[Tensor, " sites"]
    loo: Float[Tensor, " sites"]
    rank: int
    parts: tuple[str, ...]
    delta: Float[Tensor, "sites parts"]
    coef: Float[Tensor, "sites k d"]
    _solved: Solved

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of the means."""
        return self.means.sites

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns: "a:linear", "a:cos 2", ..."""
        return self._solved.labels

    @property
    def norms(self) -> Float[Tensor, "sites k"]:
        """Norm of each column's coefficient."""
        return self.coef.norm(dim=2)

    def design(self, values: Iterable[int] | Tensor) -> Design:
        """Return the design of any numbers, for `Fit.predict`; of helix and circle only."""
        if self.method not in ("helix", "circle"):
            raise ValueError(f"The design of {self.method!r} is defined on the fitted numbers only.")
        return _columns(helix(torch.as_tensor(list(values)), self.periods, self.means.of), self.labels)

    def fit(self, site: str | int) -> Fit:
        """Return the fit of one site: what `mi.fit` returns on all prompts with the same columns."""
        i = self.means.index(site)
        s = self._solved
        mean = s.mean[i]
        n = self.means.n
        total = float(s.total[i])
        return Fit(
            coef=self.coef[i],
            intercept=mean - s.column_means @ self.coef[i],
            r2=float(self.r2[i]),
            labels=self.labels,
            n=n,
            mean=mean,
            _gram=s.gram / n,
            _cross=s.cross[i] / n,
            _norm=float((total / n + mean.square().sum()).sqrt()),
        )

    def predicted(self, site: str | int) -> Float[Tensor, "v d"]:
        """Return what the fit writes for each of its numbers."""
        i = self.means.index(site)
        return self._solved.mean[i] + self._solved.columns @ self.coef[i]

    def polar(self) -> tuple[Float[Tensor, "sites periods d"], Float[Tensor, "sites periods d"]]:
        """Return amplitude and phase of each dimension: cos and sin coefficients as A cos(2πa/T - φ), φ in (-π, π]."""
        return polar(self.coef[:, _circles(self.labels)])

    def planes(self) -> dict[int | float, list[int]]:
        """Return the columns of cosine and sine of each period that has both: on integers period 2 has no sine."""
        found = {}
        for T in self.periods:
            pair = [self.labels.index(f"{self.means.of}:{word} {T:g}") for word in ("cos", "sin")]
            lengths = self.norms[:, pair]
            if bool((lengths > _FLAT * lengths.amax(1, keepdim=True)).all()):
                found[T] = pair
        return found

    def plot(self, site: str | int = 0, means: NumberMeans | None = None, title: str | None = None) -> Any:
        """Return the numbers of ``means`` on the helix of a site, to turn, a button a period; those not fitted are diamonds."""
        from mi_ablate.figures import helix

        means = self.means if means is None else means
        name = self.sites[self.means.index(site)]
        at, line = projected(means, self.fit(name), name), f"{self.means.of}:linear"
        falls = dict(zip(self.parts, self.delta[self.means.index(name)].tolist()))
        planes = self.planes()
        circles = {T: at[:, planes[T]] for T in sorted(planes, key=lambda T: -falls[f"{T:g}"])}
        height = at[:, self.labels.index(line)] if line in self.labels else torch.zeros(len(at))
        unseen = sorted({*means.values.tolist()} - {*self.means.values.tolist()})
        return helix(means.values, circles, height, title or f"Numbers on the helix of {name}", held_out=unseen)

    def table(self) -> list[dict[str, object]]:
        """Return a row a site."""
        return [
            {
                "site": site,
                "method": self.method,
                "rank": self.rank,
                "numbers": len(self.means.values),
                "r2": float(self.r2[i]),
                "r2_means": float(self.r2_means[i]),
                "adjusted": float(self.adjusted[i]),
                "loo": float(self.loo[i]),
                **{f"delta {part}": float(self.delta[i, j]) for j, part in enumerate(self.parts)},
            }
            for i, site in enumerate(self.sites)
        ]

    def __repr__(self) -> str:
        best = int(self.r2_means.argmax())
        return f"HelixFits({self.method}, rank {self.rank}, best R² {self.r2_means[best]:.3f} at {self.sites[best]})"


def helix_fits(
    means: NumberMeans, periods: Sequence[int | float] = PERIODS, *, components: int | None = None
) -> HelixFits:
    """Fit the generalized helix at all sites of ``means``.

    Args:
        means: per-number means (`number_means`, `means_of`, `embedding_means`).
        periods: of the circles, beside the line.
        components: project the coefficients on so many leading principal components of the means, as Kantamneni & Tegmark
            fit in the space of 100; None for the whole space.

    Raises:
        ValueError: fewer than three numbers, too few numbers for the rank, more components than there are.

    """
    return design_fits(means, helix(means.values, periods, means.of), "helix", periods, components)


def design_fits(
    means: NumberMeans,
    design: Design,
    method: str,
    periods: Sequence[int | float] = (),
    components: int | None = None,
) -> HelixFits:
    """Fit any design over the numbers (a row a number) at all sites; `helix_fits` and the baselines are this."""
    s = solved(means, design, components)
    every = s.score()
    parts = {"linear": [i for i, label in enumerate(s.labels) if label.endswith(":linear")]}
    parts |= {
        f"{T:g}": [i for i, label in enumerate(s.labels) if label.endswith((f":cos {T:g}", f":sin {T:g}"))]
        for T in periods
    }
    parts = {part: columns for part, columns in parts.items() if columns}
    without = [s.score([i for i in range(len(s.labels)) if i not in columns]).r2 for columns in parts.values()]
    v, sites = len(means.values), len(means.sites)
    return HelixFits(
        method=method,
        means=means,
        periods=tuple(periods),
        components=components,
        r2=every.r2 * s.between / s.total.clamp(min=1e-300),
        r2_means=every.r2,
        adjusted=1 - (1 - every.r2) * (v - 1) / (v - 1 - every.rank),
        loo=every.loo,
        rank=every.rank,
        parts=tuple(parts),
        delta=torch.stack([every.r2 - r for r in without], 1) if without else torch.zeros(sites, 0),
        coef=s.coef(),
        _solved=s,
    )


@dataclass(frozen=True, eq=False, repr=False)
class PeriodSubsets:
    """R² and leave-one-number-out R² of the helix for every non-empty set of periods, ``[subsets sites]``."""

    sites: tuple[str, ...]
    periods: tuple[tuple[int | float, ...], ...]
    r2: Float[Tensor, "subsets sites"]
    loo: Float[Tensor, "subsets sites"]

    def best(self, count: int) -> tuple[int | float, ...]:
        """Return the set of ``count`` periods whose loo is highest on average over the sites that have one.

        Raises:
            ValueError: no set of that size.

        """
        rows = [i for i, chosen in enumerate(self.periods) if len(chosen) == count]
        if not rows:
            raise ValueError(f"No set of {count} periods: 1 to {max(len(p) for p in self.periods)}.")
        return self.periods[max(rows, key=lambda i: float(self.loo[i].nanmean().nan_to_num(-torch.inf)))]

    def table(self) -> list[dict[str, object]]:
        """Return a row a set of periods: means over the sites."""
        rows = zip(self.periods, self.r2.mean(1).tolist(), self.loo.nanmean(1).tolist())
        return [{"periods": ", ".join(f"{T:g}" for T in chosen), "r2": r2, "loo": loo} for chosen, r2, loo in rows]

    def __repr__(self) -> str:
        return f"PeriodSubsets({len(self.periods)} sets of periods, {len(self.sites)} sites)"


def subsets(means: NumberMeans, periods: Sequence[int | float] = PERIODS) -> PeriodSubsets:
    """Fit the helix with every non-empty subset of ``periods``; all come from the products of the widest fit."""
    s = solved(means, helix(means.values, periods, means.of))
    chosen = [tuple(T for i, T in enumerate(periods) if bits >> i & 1) for bits in range(1, 2 ** len(periods))]
    chosen.sort(key=len)
    scores = []
    for some in chosen:
        endings = (":linear", *(f":{word} {T:g}" for T in some for word in ("cos", "sin")))
        scores.append(s.score([i for i, label in enumerate(s.labels) if label.endswith(endings)]))
    return PeriodSubsets(
        means.sites, tuple(chosen), torch.stack([x.r2 for x in scores]), torch.stack([x.loo for x in scores])
    )


def projected(means: NumberMeans, fit: Fit, site: str | int) -> Float[Tensor, "v k"]:
    """Return the helix coordinates C⁺(h - intercept) of each number, a column a label of the fit (eq. 4 of §4.3).

    A column that the fit could not use (the sine of period 2) has the coordinate 0.
    """
    return (means.at(site) - fit.intercept) @ torch.linalg.pinv(fit.coef, rtol=1e-8)


def _circles(labels: tuple[str, ...]) -> list[int]:
    return [i for i, label in enumerate(labels) if ":cos " in label or ":sin " in label]


def _columns(design: Design, labels: tuple[str, ...]) -> Design:
    chosen = [design.labels.index(label) for label in labels]
    return Design(design.matrix[:, chosen], labels)
