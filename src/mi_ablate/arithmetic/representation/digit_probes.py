"""Which digits can be read off a number, in which base? Circular and sinusoidal probes in closed form.

Circular (Levy & Geva 2024, arXiv 2410.11781): for each digit position, a linear map from h to

    [cos(2πt/b), sin(2πt/b)],  t the digit in base b,     read as  round(b · atan2(sin, cos) / 2π) mod b

where atan2 is in (-π, π], so without the mod the digits above b/2 would be read as negative ones. A number counts as read
only when all its digits are. Bases other than 10 are the control, and permuted numbers.

Sinusoidal (Kadlčík et al. 2025, arXiv 2506.08966): a linear map M from h to the columns of a fixed matrix S of cosines and
sines of the numbers, and the number whose column fits best: argmax_n S_nᵀ M h. The column of a number is known even where
the probe was never fitted to it, which a softmax over free rows cannot do. Here M is a regression, not trained by
cross-entropy, and the periods of S are geometric (theirs were not looked up); both can change accuracies.

Both are ridge regressions on per-number means, solved once a site; each number is predicted by the probe fitted without it,
through the hat matrix: t̂_(-i) = (t̂_i - H_ii t_i) / (1 - H_ii), with the constant in H. (The published circular probes take
10,000 epochs and a random tenth.) Counts play no part.

When it misleads: a probe shows what can be read linearly, not what is. Means average over contexts; a single prompt is
noisier. A short run of numbers (0-99) has few digits to confuse: compare bases of about the same size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.arithmetic.representation.states import NumberMeans


@dataclass(frozen=True, eq=False, repr=False)
class CircularProbes:
    """Held-out accuracy of digit-wise circular probes.

    Attributes:
        bases: b. accuracy: ``[sites bases]``, all digits right.
        digits: for each base ``[sites positions]``, each digit right, least significant first.
        shuffled: ``[sites bases]``, all digits right where the numbers were permuted.

    """

    sites: tuple[str, ...]
    bases: tuple[int, ...]
    accuracy: Float[Tensor, "sites bases"]
    digits: dict[int, Float[Tensor, "sites positions"]]
    shuffled: Float[Tensor, "sites bases"]

    def table(self) -> list[dict[str, object]]:
        """Return a row a site and base."""
        rows: list[dict[str, object]] = []
        for i, site in enumerate(self.sites):
            for j, base in enumerate(self.bases):
                each = ", ".join(f"{float(x):.2f}" for x in self.digits[base][i])
                all_, null = float(self.accuracy[i, j]), float(self.shuffled[i, j])
                rows.append({"site": site, "base": base, "all digits": all_, "digits": each, "shuffled": null})
        return rows

    def __repr__(self) -> str:
        best = ", ".join(f"base {b} {float(x):.2f}" for b, x in zip(self.bases, self.accuracy.max(0).values))
        return f"CircularProbes(best accuracy: {best})"


def circular_probes(
    means: NumberMeans, bases: Sequence[int] = (10, 7, 9, 11, 13), *, ridge: int | float = 1e-3, seed: int = 0
) -> CircularProbes:
    """Fit digit-wise circular probes at all sites; every number is read by the probe fitted to the others.

    Args:
        means: per-number means of non-negative numbers.
        bases: b, from 2 (2 has a sine of zero and is read from its cosine).
        ridge: penalty, as a share of the mean variance a number.
        seed: of the permutation.

    Raises:
        ValueError: negative numbers, fewer than three, a base below 2, no penalty.

    """
    values = means.values
    if len(values) < 3 or int(values[0]) < 0:
        raise ValueError(f"Digits are read of at least three numbers from 0 up; these are {values[:3].tolist()} ...")
    if min(bases, default=0) < 2:
        raise ValueError(f"Bases {list(bases)}: at least 2.")
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    written = {base: _digits(values, base) for base in bases}
    digits: dict[int, list[Tensor]] = {base: [] for base in bases}
    accuracy, shuffled = [], []
    for i in range(len(means.sites)):
        hat = hat_matrix(means.centred(i, counted=False), ridge)
        rows, null = [], []
        for base, right in written.items():
            read = [decoded(left_out_predictions(hat, circle(t, base)), base) == t for t in (right, right[order])]
            digits[base].append(read[0].double().mean(0))
            rows.append(read[0].all(1).double().mean())
            null.append(read[1].all(1).double().mean())
        accuracy.append(torch.stack(rows))
        shuffled.append(torch.stack(null))
    each = {base: torch.stack(rows) for base, rows in digits.items()}
    return CircularProbes(means.sites, tuple(bases), torch.stack(accuracy), each, torch.stack(shuffled))


@dataclass(frozen=True, eq=False, repr=False)
class SinusoidalProbes:
    """Held-out accuracy of sinusoidal probes.

    Attributes:
        accuracy: ``[sites]``, the very number. error: ``[sites]``, mean absolute distance to it.
        shuffled: and ``shuffled_error`` where the numbers were permuted.
        periods: of the columns of S.

    """

    sites: tuple[str, ...]
    accuracy: Float[Tensor, " sites"]
    error: Float[Tensor, " sites"]
    shuffled: Float[Tensor, " sites"]
    shuffled_error: Float[Tensor, " sites"]
    periods: tuple[float, ...]

    def table(self) -> list[dict[str, object]]:
        """Return a row a site."""
        rows = zip(self.sites, *(x.tolist() for x in (self.accuracy, self.error, self.shuffled, self.shuffled_error)))
        return [{"site": s, "accuracy": a, "error": e, "shuffled": n, "shuffled error": m} for s, a, e, n, m in rows]

    def __repr__(self) -> str:
        best = int(self.accuracy.argmax())
        return f"SinusoidalProbes(best accuracy {float(self.accuracy[best]):.2f} at {self.sites[best]})"


def sinusoidal_probes(
    means: NumberMeans,
    periods: Sequence[int | float] | None = None,
    *,
    ridge: int | float = 1e-3,
    seed: int = 0,
) -> SinusoidalProbes:
    """Fit a sinusoidal probe at all sites; every number is read by the probe fitted to the others.

    Args:
        means: per-number means.
        periods: of the columns of S; by default 50 in geometric steps from 2 to twice the range (100 columns).
        ridge: penalty, as a share of the mean variance a number.
        seed: of the permutation.

    Raises:
        ValueError: fewer than three numbers, no penalty.

    """
    values = means.values
    if len(values) < 3:
        raise ValueError(f"{len(values)} numbers: a probe for numbers needs at least three.")
    span = float(values[-1] - values[0])
    chosen = [2 * span ** (i / 49) for i in range(50)] if periods is None else [float(T) for T in periods]
    angle = 2 * math.pi * values.double()[:, None] / torch.tensor(chosen, dtype=torch.float64)
    columns = torch.cat([angle.cos(), angle.sin()], 1)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    found: list[list[float]] = []
    for i in range(len(means.sites)):
        hat, row = hat_matrix(means.centred(i, counted=False), ridge), []
        for target in (torch.arange(len(values)), order):
            guess = (left_out_predictions(hat, columns[target]) @ columns.T).argmax(1)
            row += [
                float((guess == target).double().mean()),
                float((values[guess] - values[target]).double().abs().mean()),
            ]
        found.append(row)
    accuracy, error, shuffled, wrong = torch.tensor(found, dtype=torch.float64).T
    return SinusoidalProbes(means.sites, accuracy, error, shuffled, wrong, tuple(chosen))


def circle(digits: Int[Tensor, "n k"], base: int) -> Float[Tensor, "n two_k"]:
    """Return [cos(2πt/b), sin(2πt/b)] of each digit, side by side."""
    angle = 2 * math.pi * digits.double() / base
    return torch.stack([angle.cos(), angle.sin()], -1).flatten(1)


def decoded(points: Float[Tensor, "n two_k"], base: int) -> Int[Tensor, "n k"]:
    """Return the digits that points [cos, sin, cos, sin, ...] are nearest to: round(b · atan2 / 2π) mod b."""
    cos, sin = points[:, 0::2], points[:, 1::2]
    return torch.round(base * torch.atan2(sin, cos) / (2 * math.pi)).long() % base


def hat_matrix(x: Float[Tensor, "v d"], ridge: int | float) -> Float[Tensor, "v v"]:
    """Return H of a ridge regression with a free constant: fitted values are H t."""
    if ridge <= 0:
        raise ValueError(f"ridge={ridge}: a positive share is needed, or as many dimensions as numbers fit anything.")
    v = len(x)
    x = x - x.mean(0)
    products = x @ x.T
    values, vectors = torch.linalg.eigh(products)
    level = ridge * values.clamp(min=0).sum() / v
    shrunk = values.clamp(min=0) / (values.clamp(min=0) + level.clamp(min=1e-300))
    return (vectors * shrunk) @ vectors.T + 1 / v


def left_out_predictions(hat: Float[Tensor, "v v"], targets: Float[Tensor, "v k"]) -> Float[Tensor, "v k"]:
    """Return each row's prediction by the regression on the other rows (penalty unchanged)."""
    own = hat.diagonal()[:, None]
    return (hat @ targets - own * targets) / (1 - own)


def _digits(values: Tensor, base: int) -> Tensor:
    """Digits ``[v positions]``, least significant first; as many as the largest number has."""
    count = 1
    while base**count <= int(values.max()):
        count += 1
    return torch.stack([values // base**i % base for i in range(count)], 1)
