"""What the last token holds of a, of b and of the answer, layer by layer: fits, and what writing them there does.

The clean run's fitted vector replaces the corrupted run's at the last token (Kantamneni & Tegmark 2025, section 5.1, figure 5).
The basis helix(a,b) keeps its constant. Beside the fits stand as many principal components, a polynomial of the answer with as
many columns as its helix, a fit to shuffled problems, and the clean vector itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate import arithmetic
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic import Problems, Swaps, Written
from mi_ablate.arithmetic.representation.last_token import BASES, PairFits, pair_fits
from mi_ablate.clock_analysis.bench import Bench
from mi_ablate.design import Design, polynomial
from mi_ablate.model import collect
from mi_ablate.regression import fit
from mi_ablate.subspace import Subspace

SAMPLE = 512
"""Problems whose last residual streams are held, for principal components, polynomial and shuffled fits."""
FULL, POLYNOMIAL, SHUFFLED = "full", "polynomial(answer)", "shuffled"
CONTROLS = (POLYNOMIAL, SHUFFLED, "random")


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


def without_effects(
    model: HookedModel, problems: Problems, periods: Sequence[int | float], batch_size: int | None, seed: int
) -> LastToken:
    """Return the fits alone, of a model whose answers cannot be asked."""
    written = arithmetic.pair_reconstructions(
        model, problems, sites_of(model), BASES[-1:], periods, rows=SAMPLE, seed=seed, batch_size=batch_size
    )
    fits = pair_fits(model, problems, sites_of(model), BASES, periods, batch_size=batch_size)
    return LastToken(fits, _shuffled(written, fits.sites), None)


def last_token(bench: Bench) -> LastToken:
    """Return fits and what writing them at the last token does."""
    model, periods = bench.model, bench.periods
    given: dict[str, Any] = {"batch_size": bench.batch_size}
    sites = sites_of(model)
    fits = pair_fits(model, bench.fitted, sites, BASES, periods, **given)
    made = arithmetic.pair_reconstructions(
        model, bench.fitted, sites, BASES, periods, rows=SAMPLE, seed=bench.seed, **given
    )
    rank = fits.ranks[BASES.index("answer")]
    made[f"pca {rank}"] = replace(made["pca"], name=f"pca {rank}", subspaces=_first(made["pca"].subspaces, rank))
    made |= _polynomial(bench, sites)
    swaps = arithmetic.swap(model, bench.pairs, made, sites, at="answer", progress=bench.tell("last token"), **given)
    return LastToken(fits, _shuffled(made, fits.sites), swaps)


def sites_of(model: HookedModel) -> list[str]:
    """Return the residual stream behind every layer."""
    return [f"blocks.{i}.hook_resid_post" for i in range(model.cfg.n_layers)]


def _polynomial(bench: Bench, sites: Sequence[str]) -> dict[str, Written]:
    """Powers of the answer, as many as its helix has columns."""
    some = bench.fitted[:SAMPLE]
    answers = torch.cat([x.inputs["answer"].cpu() for x in (some, bench.pairs.clean)])
    domain, degree = (int(answers.min()), int(answers.max())), 2 * len(bench.periods) + 1

    def powers(inputs: Mapping[str, Tensor]) -> Design:
        return polynomial(inputs["answer"].cpu(), degree, domain, "answer")

    acts = collect(bench.model, some.tokens, sites, batch_size=bench.batch_size)
    fits = {site: fit(x.cpu(), powers(some.inputs)) for site, x in acts.items()}
    return arithmetic.written_by_fits(fits, powers, POLYNOMIAL)


def _first(spaces: Mapping[str, Subspace], rank: int) -> dict[str, Subspace]:
    return {site: space[:rank] for site, space in spaces.items()}


def _shuffled(written: Mapping[str, Written], sites: Sequence[str]) -> Float[Tensor, " sites"]:
    return torch.tensor([written[SHUFFLED].fits[site].r2 for site in sites], dtype=torch.float64)
