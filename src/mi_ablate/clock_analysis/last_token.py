"""What the last token holds of a, of b and of the answer, layer by layer: fits, and what writing them there does.

The clean run's fitted vector replaces the corrupted run's at the last token (Kantamneni & Tegmark 2025, section 5.1, figure 5).
The basis helix(a,b) keeps its constant. Beside the fits stand as many principal components, a polynomial of the answer with as
many columns as its helix, a fit to shuffled problems, and the clean vector itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate import arithmetic
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic import Problems, Swaps, Written, pair_design
from mi_ablate.arithmetic.last_token import BASES, PairFits, pair_fits
from mi_ablate.clock_analysis.bench import Bench
from mi_ablate.design import Design, polynomial
from mi_ablate.model import collect
from mi_ablate.regression import Fit, fit
from mi_ablate.subspace import Subspace

SAMPLE = 512
"""Problems whose last residual streams are held, for principal components, polynomial and shuffled fits."""
FULL, POLYNOMIAL, SHUFFLED = "full", "polynomial(answer)", "shuffled"
CONTROLS = (POLYNOMIAL, SHUFFLED)


@dataclass(frozen=True, eq=False, repr=False)
class LastToken:
    """Fits at the residual stream behind every layer, and what they do to the answers where they were written."""

    fits: PairFits
    shuffled: Float[Tensor, " sites"]
    """R² of the widest basis fitted to shuffled problems."""
    swaps: Swaps | None
    """None of a model that solves nothing."""

    def share(self, method: str) -> float:
        """Return a method's largest mean gain over the layers, as a share of the clean vector's largest."""
        if self.swaps is None:
            return float("nan")
        row, full = (self.swaps.mean()[self.swaps.methods.index(name)] for name in (method, FULL))
        return float(row.max() / full.max())


def helix_of(basis: str) -> str:
    """Return what a basis is called: "helix(a,b)"."""
    return f"helix({basis})"


def represented(
    model: HookedModel,
    problems: Problems,
    periods: Sequence[int | float],
    batch_size: int | None,
    seed: int,
) -> tuple[PairFits, dict[str, Float[Tensor, "n d"]], dict[str, Fit]]:
    """Return the fits at all layers, the activations of a sample, and fits of that sample to shuffled problems."""
    sites = [f"blocks.{i}.hook_resid_post" for i in range(model.cfg.n_layers)]
    fits = pair_fits(model, problems, sites, BASES, periods, batch_size=batch_size)
    some = problems[:SAMPLE]
    acts = collect(model, some.tokens, sites, batch_size=batch_size)
    order = torch.randperm(len(some), generator=torch.Generator().manual_seed(seed))
    mixed = pair_design({name: x.cpu()[order] for name, x in some.inputs.items()}, BASES[-1], periods)
    return fits, acts, {site: fit(x.cpu(), mixed) for site, x in acts.items()}


def without_effects(
    model: HookedModel, problems: Problems, periods: Sequence[int | float], batch_size: int | None, seed: int
) -> LastToken:
    """Return the fits alone."""
    fits, _, shuffled = represented(model, problems, periods, batch_size, seed)
    return LastToken(fits, _r2(shuffled, fits.sites), None)


def last_token(bench: Bench) -> LastToken:
    """Return fits and what writing them at the last token does."""
    periods, some = bench.periods, bench.fitted[:SAMPLE]
    fits, acts, shuffled = represented(bench.model, bench.fitted, periods, bench.batch_size, bench.seed)
    answers = torch.cat([x.inputs["answer"].cpu() for x in (bench.fitted, bench.pairs.clean)])
    domain, degree = (int(answers.min()), int(answers.max())), 2 * len(periods) + 1

    def powers(inputs: Mapping[str, Tensor]) -> Design:
        return polynomial(inputs["answer"].cpu(), degree, domain, "answer")

    smooth = {site: fit(x.cpu(), powers(some.inputs)) for site, x in acts.items()}
    written: dict[str, Written] = {FULL: Written(FULL, means={site: x.mean(0) for site, x in acts.items()})}
    for basis in BASES:
        by_site = {site: fits.fit(site, basis) for site in fits.sites}
        written |= arithmetic.written_by_fits(by_site, _design(basis, periods), helix_of(basis))
    for basis, rank in zip(BASES, fits.ranks):
        if basis != "a,b":
            written[f"pca {rank}"] = _leading(f"pca {rank}", acts, rank)
    written |= arithmetic.written_by_fits(smooth, powers, POLYNOMIAL)
    written |= arithmetic.written_by_fits(shuffled, _design(BASES[-1], periods), SHUFFLED)
    swaps = arithmetic.swap(
        bench.model, bench.pairs, written, fits.sites, at="answer", batch_size=bench.batch_size,
        progress=bench.tell("last token"),
    )  # fmt: skip
    return LastToken(fits, _r2(shuffled, fits.sites), swaps)


def _design(basis: str, periods: Sequence[int | float]) -> Callable[[Mapping[str, Tensor]], Design]:
    return lambda inputs: pair_design(inputs, basis, periods)


def _r2(fits: Mapping[str, Fit], sites: Sequence[str]) -> Float[Tensor, " sites"]:
    return torch.tensor([fits[site].r2 for site in sites], dtype=torch.float64)


def _leading(name: str, acts: Mapping[str, Float[Tensor, "n d"]], rank: int) -> Written:
    """The projection on the leading principal components of each site."""
    spaces, means = {}, {}
    for site, x in acts.items():
        x = x.detach().to("cpu", torch.float64)
        means[site] = x.mean(0)
        _, s, vh = torch.linalg.svd(x - means[site], full_matrices=False)
        kept = min(rank, int((s > 1e-10 * s[0]).sum()))
        spaces[site] = Subspace(vh[:kept].T.contiguous(), name, {"method": name, "site": site})
    return Written(name, subspaces=spaces, means=means)
