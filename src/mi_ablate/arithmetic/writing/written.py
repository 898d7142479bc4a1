"""What each method makes of a number: the vectors that a causal test writes, each beside its baselines.

    full         the other run's own vector                                               (the most that can be hoped for)
    pca          its projection on the first principal components of the number means, mean kept
    helix        C B(a) + constant, the fit's prediction for the number
    circle       the helix without its line
    polynomial   powers of the number, as many columns as the helix
    shuffled     a helix fitted to numbers that were dealt out at random
    random       like pca, on a subspace drawn from the covariance of the means

Those of Kantamneni & Tegmark 2025 (arXiv 2502.00873, §4.4), with the controls. With the default periods the helix has
nine columns, of which eight are independent; pca, random and polynomial get nine.

Held-out numbers. A fit that has seen a number writes it better than it deserves, a shuffled one too, and other prompts of the
same number leak it just as well (in the published notebooks the split is of prompts, redrawn at every call, so what is
evaluated overlaps what was fitted). With ``folds`` the *numbers* are dealt into so many parts, and each is written by a fit
that never saw it: on a toy that adds modulo 97, a shuffled helix gains a part of the whole effect where it has seen the
numbers, and next to nothing where it has not (`tests/test_arithmetic_swaps.py`). Subspaces, which `swap` takes for its other
manners, are always those of all numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import nearest
from mi_ablate.arithmetic.representation.helices import PERIODS, design_fits
from mi_ablate.arithmetic.representation.states import NumberMeans
from mi_ablate.design import Design, helix, polynomial
from mi_ablate.regression import Fit
from mi_ablate.subspace import Subspace

METHODS = ("full", "pca", "helix", "circle", "polynomial", "shuffled", "random")
Inputs = Mapping[str, Tensor]
"""The numbers of each prompt, as in `Problems.inputs`."""


@dataclass(frozen=True, eq=False, repr=False)
class Written:
    """One method: what it writes for prompts at a site, the subspace that it does so in, and the mean it is about.

    Of its three kinds, a `fits` one writes predictions, a `subspaces` one projections, and one with neither the run's own
    vector. ``parts`` are the same for numbers that were held out, by the part that each number is in.
    """

    name: str
    fits: Mapping[str, Fit] = field(default_factory=dict)
    design: Callable[[Inputs], Design] | None = None
    subspaces: Mapping[str, Subspace] = field(default_factory=dict)
    means: Mapping[str, Float[Tensor, " d"]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    """Labels or patterns of the fit's columns whose subspace is meant; none for all."""
    of: str = ""
    """The number whose token it was made for: "a", "b" or "answer"; empty where that is not known."""
    parts: tuple["Written", ...] = ()
    fold: Mapping[int, int] = field(default_factory=dict)
    """The part in which each number was held out. Numbers that no fit has seen are written by the fit of all."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Where it was made for."""
        return tuple(self.fits or self.means)

    def write(self, site: str, inputs: Inputs, acts: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return what is written for prompts with these numbers, whose own vectors are ``acts``; float64."""
        x = acts.detach().to("cpu", torch.float64)
        if self.parts:
            part = torch.tensor([self.fold.get(v, -1) for v in inputs[self.of].tolist()])
            out, writers = torch.empty_like(x), (*self.parts, replace(self, parts=()))
            for i in part.unique().tolist():
                rows = torch.nonzero(part == i)[:, 0]
                out[rows] = writers[i].write(site, {k: v.cpu()[rows] for k, v in inputs.items()}, x[rows])
            return out
        if self.fits and self.design is not None:
            fit, design = self._of(self.fits, site), self.design(inputs)
            chosen = [design.labels.index(label) for label in fit.labels]
            return fit.predict(Design(design.matrix[:, chosen], fit.labels))
        if self.subspaces:
            mean = self._of(self.means, site)
            return mean + self._of(self.subspaces, site).project(x - mean)
        return x

    def subspace(self, site: str) -> Subspace | None:
        """Return the subspace of a site; None is the whole space."""
        if self.fits:
            return self._of(self.fits, site).subspace(*self.columns, name=self.name)
        return self._of(self.subspaces, site) if self.subspaces else None

    def mean(self, site: str) -> Float[Tensor, " d"]:
        """Return the mean of a site, over the prompts that were fitted."""
        return self._of(self.fits, site).mean if self.fits else self._of(self.means, site)

    def only(self, *columns: str) -> "Written":
        """Return the method with the subspace of some columns: ``only("*:cos 10", "*:sin 10")`` is one circle.

        What is written stays the whole prediction, so this matters for the manners with a subspace.
        """
        if not self.fits:
            raise ValueError(f"The method {self.name!r} is no fit, so it has no columns to choose from.")
        next(iter(self.fits.values()))._choose(columns)
        return replace(self, columns=columns)

    def _of(self, there: Mapping[str, object], site: str) -> Any:
        if site not in there:
            raise KeyError(f"{self.name!r} was not made for {site!r}. {nearest(site, there)}")
        return there[site]

    def __repr__(self) -> str:
        kind = "fits" if self.fits else "projections" if self.subspaces else "the run's own vectors"
        held = f", numbers held out in {len(self.parts)} parts" if self.parts else ""
        return f"Written({self.name}: {kind} at {len(self.sites)} sites{held})"


def written_by_fits(
    fits: Mapping[str, Fit], design: Callable[[Inputs], Design], name: str = "helix"
) -> dict[str, Written]:
    """Return fits of one's own as one method for `swap`: by site, and the design of any prompts' numbers.

    At the last token, for example: ``design=lambda inputs: pair_design(inputs, "a,b")``.
    """
    return {name: Written(name, fits, design)}


def reconstructions(
    means: NumberMeans,
    periods: Sequence[int | float] = PERIODS,
    *,
    methods: Sequence[str] = METHODS,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Written]:
    """Return what each method writes at all sites of ``means``.

    Args:
        means: per-number means at the token of an operand (``number_means(model, problems, of="a")``).
        periods: of the helix and the circle.
        methods: names (see the module), in the order of the tables.
        folds: parts in which numbers are held out; 0 fits all of them, as the published work does.
        seed: of the shuffle, the random subspace and the folds.

    Raises:
        ValueError: an unknown method, a single fold or more folds than numbers, too few numbers for a fit.

    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods={list(methods)}: choose among {', '.join(METHODS)}.")
    if folds == 1 or not 0 <= folds <= len(means.values):
        raise ValueError(f"folds={folds}: 0 holds nothing out, 2 to {len(means.values)} parts of the numbers do.")
    found = {name: _method(name, means, periods, seed) for name in methods}
    if not folds:
        return found
    part = torch.randperm(len(means.values), generator=_seeded(seed)) % folds
    fold = dict(zip(means.values.tolist(), part.tolist()))
    kept = [means.kept(part != i) for i in range(folds)]
    for name in methods:
        if name != "full":
            parts = tuple(_method(name, some, periods, seed, means) for some in kept)
            found[name] = replace(found[name], parts=parts, fold=fold)
    return found


def _method(
    name: str, means: NumberMeans, periods: Sequence[int | float], seed: int, whole: NumberMeans | None = None
) -> Written:
    """One method from these means; ``whole`` has all numbers, where some are held out here."""
    of, every = means.of, (whole or means).values
    columns = 2 * len(periods) + 1
    if name in ("full", "pca", "random"):
        grand = dict(zip(means.sites, means.grand))
        if name == "full":
            return Written(name, means=grand, of=of)
        weights = means.counts.double().sqrt()[:, None]
        made = {
            site: covariance_subspace(name, means.centred(i) * weights, columns, seed, site)
            for i, site in enumerate(means.sites)
        }
        return Written(name, subspaces=made, means=grand, of=of)
    domain, order = (int(every.min()), int(every.max())), torch.randperm(len(every), generator=_seeded(seed))
    dealt = dict(zip(every.tolist(), every[order].tolist()))

    def design(inputs: Inputs) -> Design:
        values = inputs[of].cpu()
        if name == "polynomial":
            return polynomial(values, columns, domain, of)
        if name == "shuffled":  # numbers that were not dealt stay what they are
            values = torch.tensor([dealt.get(v, v) for v in values.tolist()])
        full = helix(values, periods, of)
        return Design(full.matrix[:, 1:], full.labels[1:]) if name == "circle" else full

    fits = design_fits(means, design({of: means.values}), name, periods)
    return Written(name, {site: fits.fit(site) for site in means.sites}, design, of=of)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance_subspace(name: str, x: Float[Tensor, "n d"], rank: int, seed: int, site: str) -> Subspace:
    """Return the leading components of centred vectors ("pca"), or directions drawn from their covariance ("random").

    At most as many as there are; a ValueError where all vectors are the same.
    """
    if name == "random":
        x = torch.randn(rank, len(x), dtype=torch.float64, generator=_seeded(seed)) @ x
    wide = len(x) <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    rank = min(rank, int((values > 1e-12 * values[-1]).sum()))
    if rank == 0:
        raise ValueError(f"All vectors at {site} are the same: there is nothing to reconstruct there.")
    leading = vectors[:, -rank:].flip(1)
    basis = torch.linalg.qr(x.T @ leading if wide else leading).Q
    return Subspace(basis, name, {"method": name, "site": site})
