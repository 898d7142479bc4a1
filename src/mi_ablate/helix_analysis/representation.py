"""What the activations at the token of one operand say about its number: spectra, fits, probes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate import arithmetic
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic import (
    Baselines,
    CircularProbes,
    FreePeriods,
    HelixFits,
    Irreducibility,
    Linearity,
    NumberMeans,
    NumberSpectra,
    Numerals,
    Problems,
    Separability,
)
from mi_ablate.arithmetic.representation.helices import PeriodSubsets
from mi_ablate.arithmetic.representation.left_out import HeldOut

HELD = 3
"""Numbers ending in this digit are held out for the picture (Kantamneni & Tegmark 2025, App. C.1)."""
DRAWS = 19
"""Searches over shuffled numbers: one step in twenty stands out by chance."""
_RUN = 100
"""Periods 2, 2.5, 5, 10 and 100 divide a multiple of this many numbers."""
DEAD = 1e-9
"""A coefficient below this share of its partner's is what rounding leaves of none."""
T = TypeVar("T")


class Tries:
    """Runs measures that may not apply, and keeps the reason where one does not."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def __call__(self, name: str, measure: Callable[[], T]) -> T | None:
        """Return what ``measure`` returns, or None where it raises a ValueError, whose text is kept."""
        try:
            return measure()
        except ValueError as error:
            self.reasons[name] = str(error)
            return None


@dataclass(frozen=True, eq=False, repr=False)
class Operand:
    """One operand's number in the activations at its token."""

    of: str
    means: NumberMeans
    embedding: NumberSpectra | None
    """Of the rows of W_E of a gapless run of numbers."""
    spectra: NumberSpectra | None
    linearity: Linearity
    separability: Separability | None
    """Of the residues of the whole periods."""
    fits: HelixFits
    baselines: Baselines
    subsets: PeriodSubsets
    best: str
    """The site whose leave-one-number-out R² is highest."""
    held: HeldOut | None
    """Fitted without the numbers that end in 3."""
    free: list[FreePeriods]
    """Searched without assuming any period: at the first site and at the best."""
    probes: CircularProbes
    circles: list[Irreducibility]
    """Of each period's plane at the best site, and of the same planes fitted to shuffled numbers."""


def operand(
    model: HookedModel,
    problems: Problems,
    of: str,
    sites: Sequence[str],
    periods: tuple[int | float, ...],
    free: int,
    seed: int,
    batch_size: int | None,
    progress: Callable[[str, int, int], None],
    tries: Tries,
) -> Operand:
    """Measure one operand, from one pass over the problems."""
    means = arithmetic.number_means(
        model, problems, list(sites), of=of, batch_size=batch_size, progress=partial(progress, f"numbers {of}")
    )
    fits = arithmetic.helix_fits(means, periods)
    score = torch.where(fits.loo.isnan(), fits.adjusted, fits.loo)
    best = means.sites[int(score.argmax())]
    held = tries(f"held out at {of}", lambda: arithmetic.held_out_fit(means, means.values % 10 == HELD, periods))
    chosen = list(dict.fromkeys((means.sites[0], best))) if free else []
    searched = [
        tries(
            f"free periods at {of}, {site}", partial(arithmetic.free_periods, means, site, free, draws=DRAWS, seed=seed)
        )
        for site in chosen
    ]
    moduli = [T for T in periods if isinstance(T, int) and 2 <= T <= len(means.values) // 2]
    return Operand(
        of=of,
        means=means,
        **_spectra(model, problems, means, periods, seed, tries),
        separability=tries(
            f"separability at {of}", lambda: arithmetic.residue_separability(means, _some(moduli), seed=seed)
        ),
        fits=fits,
        baselines=arithmetic.baselines(means, periods, seed=seed),
        subsets=arithmetic.subsets(means, periods),
        best=best,
        held=held,
        free=[x for x in searched if x is not None],
        probes=arithmetic.circular_probes(means, seed=seed),
        circles=tries(f"irreducibility at {of}", lambda: _circles(means, fits, best, seed)) or [],
    )


def _some(moduli: list[int]) -> list[int]:
    if not moduli:
        raise ValueError("No period is a whole number of which there are at least two turns, so there is no residue.")
    return moduli


def _spectra(
    model: HookedModel,
    problems: Problems,
    means: NumberMeans,
    periods: tuple[int | float, ...],
    seed: int,
    tries: Tries,
) -> dict[str, Any]:
    """The spectra of the embedding over the longest run of numbers, and of the stream over those of the prompts."""
    of = means.of
    given = {"of_interest": periods, "seed": seed}
    numerals = problems.numerals
    if problems.modulus is None:
        numerals = arithmetic.numerals(getattr(model, "tokenizer", None), problems.forms[of])
    return {
        "embedding": tries(
            f"spectrum of the embedding, {of}",
            lambda: arithmetic.number_spectra(embedding_run(model, numerals, of), **given),
        ),
        "spectra": tries(f"spectra at {of}", lambda: arithmetic.number_spectra(means, **given)),
        "linearity": arithmetic.linearity(means, seed=seed),
    }


def embedding_run(model: HookedModel, numerals: Numerals, of: str) -> NumberMeans:
    """Return the embedding of 0 to n - 1: all without a gap, n a multiple of 100 where there are so many."""
    means = arithmetic.embedding_means(model, numerals, of)
    n = numerals.contiguous + 1
    n = n // _RUN * _RUN if n >= _RUN and n != numerals.upto else n
    return means.kept(means.values < n)


def _circles(means: NumberMeans, fits: HelixFits, site: str, seed: int) -> list[Irreducibility]:
    """Indices of the plane of each period that has one, and the same of a helix of shuffled numbers."""
    found = []
    null = arithmetic.method_fits(means, "shuffled", fits.periods, seed=seed)
    for name, some in (("period", fits), ("shuffled, period", null)):
        fit = some.fit(site)
        coordinates = arithmetic.projected(means, fit, site)
        for T, pair in fits.planes().items():
            found.append(arithmetic.irreducibility(coordinates[:, pair], f"{name} {T:g}", seed=seed))
    return found


def by_site(sites: Sequence[str], values: Float[Tensor, "sites *k"]) -> dict[str, Any]:
    """Return plain numbers, or lists of them, under the names of their sites."""
    return dict(zip(sites, values.tolist()))
