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
from mi_ablate.arithmetic import HelixFits, NumberMeans, Problems
from mi_ablate.arithmetic.helices import HeldOut, PeriodSubsets

HELD = 3
"""Numbers ending in this digit are held out for the picture (Kantamneni & Tegmark 2025, App. C.1)."""
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
    fits: HelixFits
    subsets: PeriodSubsets
    best: str
    """The site whose leave-one-number-out R² is highest."""
    held: HeldOut | None
    """Fitted without the numbers that end in 3."""
    coordinates: Float[Tensor, "v k"] | None
    """Of each number on that helix at the best site, a column a label of the fits."""


def operand(
    model: HookedModel,
    problems: Problems,
    of: str,
    sites: Sequence[str],
    periods: tuple[int | float, ...],
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
    return Operand(
        of=of,
        means=means,
        fits=fits,
        subsets=arithmetic.subsets(means, periods),
        best=best,
        held=held,
        coordinates=None if held is None else arithmetic.projected(means, held.fits.fit(best), best),
    )


def by_site(sites: Sequence[str], values: Any) -> dict[str, float]:
    """Return numbers under the names of their sites."""
    return dict(zip(sites, torch.as_tensor(values).tolist()))
