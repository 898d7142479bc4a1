"""The directions of a subspace: how large each is, and over how many coordinates it is spread."""

from typing import Any

from mi_ablate.figures._style import PALETTE, finish
from mi_ablate.subspace import Subspace

_SIZES = {"sizes": "length", "rms": "rms of the fitted values", "explained": "share of the squares"}


def directions(subspace: Subspace, title: str | None = None) -> Any:
    """Return the plotly figure of a `mi_ablate.Subspace`: one bar a direction, in the order of its basis.

    The bars are what the subspace's source says of sizes ("sizes", "rms" or "explained"); where it says nothing, the
    participation ratio 1 / Σ q⁴ of each direction, the number of coordinates over which it is spread: 1 for a single
    neuron, about d / 3 for a random direction.

    Args:
        subspace: the subspace.
        title: one sentence above the figure.

    """
    import plotly.graph_objects as go

    key = next((key for key in _SIZES if len(subspace.source.get(key) or ()) == subspace.rank), None)
    spread = (1 / (subspace.basis**4).sum(0)).tolist()
    heights = spread if key is None else list(subspace.source[key])
    axis = f"coordinates it is spread over (of {subspace.d})" if key is None else _SIZES[key]
    hover = "direction %{x}<br>%{y:.4g}<br>spread over %{customdata:.1f} coordinates<extra></extra>"
    ks = list(range(1, subspace.rank + 1))
    bars = go.Bar(x=ks, y=heights, customdata=spread, marker={"color": PALETTE[0]}, hovertemplate=hover)
    figure = go.Figure(bars)
    figure.update_layout(
        xaxis={"title": {"text": "direction"}, "showgrid": False, "tickformat": "d"},
        yaxis={"title": {"text": axis}, "rangemode": "tozero"},
        showlegend=False,
    )
    return finish(figure, title, height=330, margin={"l": 65, "r": 15, "t": 15, "b": 55}, wide={}, narrow={})
