"""The figures and tables of the page, from what was measured."""

from collections.abc import Sequence
from typing import Any

from mi_ablate import figures
from mi_ablate.helix_analysis.representation import Operand


def short(sites: Sequence[str]) -> list[str]:
    """Return sites as labels of an axis: the layer entered, and "out" for what leaves the last."""
    return ["out" if site.endswith("resid_post") else site.split(".")[1] for site in sites]


def fit_items(x: Operand) -> list[Any]:
    """Return R² by layer and the table of the fits."""
    layers = short(x.fits.sites)
    series = {"helix": x.fits.r2_means, "helix, left out": x.fits.loo}
    return [figures.lines(layers, series, axes=("layer", "R²"), title="R² of the number means, by layer"), x.fits]


def held_out_items(x: Operand) -> list[Any]:
    """Return the helix at the best layer, with the numbers that the fit has not seen."""
    if x.held is None or x.coordinates is None:
        return []
    labels, circles = x.held.fits.labels, {}
    for T in x.fits.periods:
        pair = [labels.index(f"{x.of}:{word} {T:g}") for word in ("cos", "sin")]
        if not (x.held.fits.coef[:, pair].norm(dim=2) == 0).any():
            circles[T] = x.coordinates[:, pair]
    line = x.coordinates[:, labels.index(f"{x.of}:linear")]
    title = f"Numbers on the helix at {x.best}; those that end in 3 were held out"
    return [figures.helix(x.means.values, circles, line, title, held_out=x.held.held.values.tolist())]
