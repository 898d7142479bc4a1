"""Per-number means of activations: all that a fit on one number alone needs.

    mean_v = average of h over the prompts whose number is v,        v = v_1 .. v_m

A design B(a) is constant over the prompts of one number, so least squares on all n prompts equals least squares on the m
means, weighted by their counts: the normal equations are the same sums. A pass over 10,000 prompts therefore holds m x d
numbers a site (28 x 100 x 4096 in float32: 46 MB) in place of n x d, and every set of periods, every baseline and every
leave-one-number-out error comes from them exactly. Kept beside them is the squared deviation of each number's prompts from
their mean, which makes the R² over prompts exact too.

Means and deviations are updated as in Welford (1962) and Chan, Golub & LeVeque (1983), in float64, batch by batch.

When it misleads: the means hide what varies within a number. An R² over means can be near 1 where most of the
activations' variance is about the other operand; both are reported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mi_ablate._types import HookedModel, nearest
from mi_ablate.model import default_batch_size, split, stream

if TYPE_CHECKING:
    from mi_ablate.arithmetic.problem_sets.prompting import Problems
    from mi_ablate.arithmetic.problem_sets.single_tokens import Numerals


@dataclass(frozen=True, eq=False, repr=False)
class NumberMeans:
    """Mean activations of each number at each site, with counts and the deviations around the means.

    Attributes:
        of: which number of the prompts: "a", "b" or "answer"; designs made of it use it as their name.
        sites: hook names; a site with heads is one site a head, "blocks.0.attn.hook_z[3]".
        values: the numbers, ascending.
        counts: prompts of each number.
        means: ``[sites v d]`` in float64 or float32.
        within: ``[sites v]``, summed squared distance of a number's prompts from its mean.

    """

    of: str
    sites: tuple[str, ...]
    values: Int[Tensor, " v"]
    counts: Int[Tensor, " v"]
    means: Float[Tensor, "sites v d"]
    within: Float[Tensor, "sites v"]

    @property
    def n(self) -> int:
        """Number of prompts."""
        return int(self.counts.sum())

    @property
    def grand(self) -> Float[Tensor, "sites d"]:
        """Mean over all prompts, at each site."""
        weights = self.counts.to(torch.float64) / self.n
        return torch.stack([weights @ self.at(i) for i in range(len(self.sites))])

    @property
    def total(self) -> Float[Tensor, " sites"]:
        """Summed squared distance of all prompts from the grand mean."""
        between = [(self.counts * self.centred(i).square().sum(1)).sum() for i in range(len(self.sites))]
        return self.within.sum(1) + torch.stack(between)

    def index(self, site: str | int) -> int:
        """Return the place of a site.

        Raises:
            KeyError: no such site; the nearest are named.

        """
        if isinstance(site, int):
            site = self.sites[range(len(self.sites))[site]]
        if site not in self.sites:
            raise KeyError(f"No means were taken at {site!r}. {nearest(site, self.sites)}")
        return self.sites.index(site)

    def at(self, site: str | int) -> Float[Tensor, "v d"]:
        """Return the means of one site in float64."""
        return self.means[self.index(site)].to(torch.float64)

    def centred(self, site: str | int, counted: bool = True) -> Float[Tensor, "v d"]:
        """Return the means of one site less the mean over all prompts (``counted=False``: over the numbers), in float64.

        Exactly 0 where they are all the same up to rounding, as before the first block at a token that never changes.
        """
        means = self.at(site)
        weights = self.counts.to(torch.float64) / self.n if counted else torch.full_like(means[:, 0], 1 / len(means))
        mean = weights @ means
        centred = means - mean
        return centred * (not is_rounding(centred.square().sum(1), mean, self.means.dtype))

    def kept(self, which: Bool[Tensor, " v"]) -> "NumberMeans":
        """Return the chosen numbers only, as if the prompts of the others had not been run."""
        if which.dtype != torch.bool or which.shape != self.values.shape or not which.any():
            raise ValueError(
                f"kept takes a condition on the {len(self.values)} numbers that holds for at least one of them, such as "
                "means.values < 50."
            )
        return NumberMeans(
            self.of, self.sites, self.values[which], self.counts[which], self.means[:, which], self.within[:, which]
        )

    def merged(self, other: "NumberMeans") -> "NumberMeans":
        """Return the means of both sets of prompts together; the numbers may differ."""
        if self.sites != other.sites or self.of != other.of or self.means.shape[2] != other.means.shape[2]:
            raise ValueError("Means merge only with the same sites, the same width and of the same number.")
        sums = NumberSums(torch.cat([self.values, other.values]), self.of, self.means.dtype)
        return sums.merge(self).merge(other).result()

    def __repr__(self) -> str:
        sites, v, d = self.means.shape
        return f"NumberMeans(of {self.of!r}, {sites} sites, {v} numbers, d {d}, {self.n} prompts)"


class NumberSums:
    """Streaming `NumberMeans`: feed batches, merge parts, ask for the result at any time.

    Args:
        values: the numbers that may come (repeated ones count once).
        of: what they are called.
        dtype: of the stored means; float32 halves the memory, and each update is still computed in float64.

    """

    def __init__(self, values: Int[Tensor, " n"], of: str = "a", dtype: torch.dtype = torch.float64) -> None:
        self.values = values.to("cpu", torch.int64).unique()
        self.of, self.dtype = of, dtype
        self.sites: tuple[str, ...] = ()
        self.counts = torch.zeros(len(self.values), dtype=torch.int64)
        self.means = self.within = torch.empty(0)

    def update(self, acts: Mapping[str, Tensor], values: Int[Tensor, " n"]) -> "NumberSums":
        """Add the activations ``[n d]`` (``[n head d]``: one site a head) of prompts with these numbers; return self.

        Raises:
            ValueError: sites of several widths, other sites than before, NaN, a number that is not among the values.

        """
        flat = by_head(acts)
        values = values.to("cpu", torch.int64)
        rows = self._rows(values)
        found, inverse, counts = rows.unique(return_inverse=True, return_counts=True)
        means = torch.empty(len(flat), len(found), next(iter(flat.values())).shape[1], dtype=torch.float64)
        within = torch.zeros(len(flat), len(found), dtype=torch.float64)
        for i, (site, value) in enumerate(flat.items()):
            x = value.detach().cpu().to(torch.float64)
            if len(x) != len(values):
                raise ValueError(f"{len(x)} activations at {site} and {len(values)} numbers: one an example is needed.")
            if not torch.isfinite(x).all():
                bad = torch.nonzero(~torch.isfinite(x).all(1)).flatten().tolist()
                raise ValueError(f"NaN or infinite activations at {site} in {len(bad)} examples (first: {bad[:5]}).")
            means[i] = torch.zeros_like(means[i]).index_add_(0, inverse, x) / counts[:, None]
            within[i].index_add_(0, inverse, (x - means[i, inverse]).square().sum(1))
        return self.merge(NumberMeans(self.of, tuple(flat), self.values[found], counts, means, within))

    def merge(self, other: NumberMeans) -> "NumberSums":
        """Add means of other prompts and return self."""
        if not self.sites:
            self.sites = other.sites
            self.means = torch.zeros(len(other.sites), len(self.values), other.means.shape[2], dtype=self.dtype)
            self.within = torch.zeros(len(other.sites), len(self.values), dtype=torch.float64)
        if self.sites != other.sites:
            raise ValueError(f"These batches are of other sites than the first: {list(other.sites)[:3]}.")
        rows = self._rows(other.values)
        before, new = self.counts[rows].to(torch.float64), other.counts.to(torch.float64)
        share = new / (before + new)
        for i in range(len(self.sites)):
            old = self.means[i, rows].to(torch.float64)
            delta = other.means[i].to(torch.float64) - old
            self.means[i, rows] = (old + share[:, None] * delta).to(self.dtype)
            self.within[i, rows] += other.within[i] + before * share * delta.square().sum(1)
        self.counts[rows] += other.counts
        return self

    def _rows(self, values: Tensor) -> Int[Tensor, " n"]:
        rows = torch.searchsorted(self.values, values).clamp(max=len(self.values) - 1)
        if not torch.equal(self.values[rows], values):
            raise ValueError("The prompts hold numbers that were not announced: give NumberSums all values first.")
        return rows

    def result(self) -> NumberMeans:
        """Return the means of the numbers seen so far."""
        seen = self.counts > 0
        if not seen.any():
            raise ValueError("No prompt was given: there are no means yet.")
        return NumberMeans(
            self.of, self.sites, self.values[seen], self.counts[seen], self.means[:, seen], self.within[:, seen]
        )


def is_rounding(deviations: Float[Tensor, " v"], mean: Float[Tensor, " d"], dtype: torch.dtype) -> bool:
    """Return whether squared distances from a mean are no more than the rounding of vectors kept in ``dtype``."""
    level = 64 * torch.finfo(torch.float64).eps if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    spread = float(deviations.sum())
    return spread <= level**2 * (spread + len(deviations) * float(mean.square().sum()))


def number_means(
    model: HookedModel,
    problems: "Problems",
    names: str | Sequence[str] = "resid_pre",
    *,
    of: str = "a",
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float64,
    progress: Callable[[int, int], None] | None = None,
) -> NumberMeans:
    """Run the prompts once and return the mean activations of each number at all sites.

    Args:
        model: a HookedTransformer or TransformerBridge.
        problems: the prompts; their position of ``of`` is read.
        names: sites or patterns; all of one width.
        of: "a", "b" or "answer" (read where the answer is predicted).
        batch_size: prompts a pass; by memory where None.
        dtype: of the stored means.
        progress: called with (prompts done, prompts) after each pass.

    Raises:
        KeyError: an unknown site, or a number that the prompts do not have. ValueError: sites of several widths, NaN.

    """
    if of not in problems.inputs or of not in problems.positions:
        raise KeyError(f"The prompts {problems.task!r} have no number {of!r}, only {sorted(problems.inputs)}.")
    values, n = problems.inputs[of], len(problems.tokens)
    size = batch_size or min(n, default_batch_size(model, problems.tokens.shape[1]))
    sums = NumberSums(values, of, dtype)
    for rows, acts in stream(model, split(model, problems.tokens, None, size), names, pos=problems.positions[of]):
        sums.update(acts, values[rows.to(values.device)])
        if progress is not None:
            progress(int(rows[-1]) + 1, n)
    return sums.result()


def means_of(
    acts: Float[Tensor, "n d"] | Mapping[str, Tensor],
    values: Shaped[Tensor, " n"] | Sequence[int | float],
    of: str = "a",
) -> NumberMeans:
    """Return the means of activations from anywhere, ``[n d]`` or by site, whose rows belong to the numbers ``values``."""
    index = torch.as_tensor(values)
    if index.ndim != 1 or len(index) == 0 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"values have shape {list(index.shape)} and {index.dtype}: one whole number a row is needed.")
    sites: Mapping[str, Any] = acts if isinstance(acts, Mapping) else {"activations": acts}
    return NumberSums(index, of).update(sites, index).result()


def embedding_means(model: HookedModel, numerals: "Numerals", of: str = "a") -> NumberMeans:
    """Return the rows of W_E of the numerals as means of one prompt each, site "W_E"."""
    return means_of({"W_E": model.W_E[numerals.ids.to(model.W_E.device)]}, numerals.values, of)  # type: ignore[attr-defined]


def by_head(acts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return activations ``[n d]`` by site, heads of a site ``[n head d]`` as sites of their own, "site[head]"."""
    flat: dict[str, Tensor] = {}
    for name, value in acts.items():
        if value.ndim == 3:
            flat |= {f"{name}[{head}]": value[:, head] for head in range(value.shape[1])}
        elif value.ndim == 2:
            flat[name] = value
        else:
            raise ValueError(f"Activations at {name} of shape {list(value.shape)}: means take [n d] or [n head d].")
    widths = {value.shape[1] for value in flat.values()}
    if len(widths) > 1:
        raise ValueError(f"Sites of several widths {sorted(widths)}: take means at sites of one width a call.")
    return flat
