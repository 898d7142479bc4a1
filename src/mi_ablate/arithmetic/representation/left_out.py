"""Does a helix go on where it was not fitted? Some numbers are left out, and the fit to the others says where they lie.

The continuity test of Kantamneni & Tegmark (2025, arXiv 2502.00873, App. C.1): fit the numbers that do not end in 3,
project those that do. Numbers that a smooth curve interpolates pass it too, so compare other designs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_ablate.arithmetic.representation.helices import PERIODS, HelixFits, helix_fits
from mi_ablate.arithmetic.representation.states import NumberMeans


@dataclass(frozen=True, eq=False, repr=False)
class HeldOut:
    """A helix fitted without some numbers, and where those numbers lie (the continuity test of App. C.1)."""

    fits: HelixFits
    held: NumberMeans
    means: NumberMeans
    """Of all numbers."""
    r2: Float[Tensor, " sites"]
    """Of the held-out numbers, against the mean of the fitted ones; below 0: worse than it."""

    def table(self) -> list[dict[str, object]]:
        """Return a row a site: R² of the fitted and of the held-out numbers."""
        rows = zip(self.fits.sites, self.fits.r2_means.tolist(), self.r2.tolist())
        return [{"site": site, "r2 fitted": fitted, "r2 held out": held} for site, fitted, held in rows]

    def plot(self, site: str | int = 0, title: str | None = None) -> Any:
        """Return all numbers on the helix as a figure to turn, the held-out ones as diamonds."""
        return self.fits.plot(site, self.means, title)

    def __repr__(self) -> str:
        return f"HeldOut({len(self.held.values)} numbers held out, R² at most {float(self.r2.max()):.3f})"


def held_out_fit(means: NumberMeans, hold: Bool[Tensor, " v"], periods: Sequence[int | float] = PERIODS) -> HeldOut:
    """Fit on the numbers outside ``hold`` (such as ``means.values % 10 == 3``) and score the numbers in it.

    Raises:
        ValueError: all numbers held out, or none.

    """
    held, fits = means.kept(hold), helix_fits(means.kept(~hold), periods)
    shares = []
    for site in means.sites:
        fit, y = fits.fit(site), held.at(site)
        error = (y - fit.predict(fits.design(held.values))).square().sum(1)
        shares.append(1 - (held.counts * error).sum() / (held.counts * (y - fit.mean).square().sum(1)).sum())
    return HeldOut(fits, held, means, torch.stack(shares))
