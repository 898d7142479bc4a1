"""The picture of resistance: accuracy against directions removed, a line a group of runs with its band over seeds."""

from collections.abc import Mapping
from typing import Any

from mi_ablate.figures import panels
from mi_ablate.studies.groups import Band

Curves = Mapping[str, Mapping[str, tuple[Band, Band]]]
"""By panel and group: the curve along contrastive directions, and that of covariance-drawn subspaces."""


def picture(curves: Curves, names: str) -> Any:
    """Return the plotly figure of the curves; ``names`` says what the groups differ in."""
    return panels(
        max((pair[0].x for lines in curves.values() for pair in lines.values()), key=len),
        {title: {name: pair[0].median for name, pair in lines.items()} for title, lines in curves.items()},
        bands={title: {name: pair[0].ends for name, pair in lines.items()} for title, lines in curves.items()},
        controls={title: {name: pair[1].median for name, pair in lines.items()} for title, lines in curves.items()},
        control="covariance-drawn subspaces",
        names=names,
        axes=("directions removed", "held-out accuracy"),
        level=0.95,
    )
