"""The spectrum: how much of the energy each frequency holds, and which frequencies were chosen."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.figures._style import PALETTE, finish, numbers

_REST = "#B8B8B8"


def spectrum(
    frequencies: Int[Tensor, " f"] | Sequence[int],
    shares: Float[Tensor, " f"] | Sequence[float],
    chosen: Iterable[int] = (),
    title: str | None = None,
) -> Any:
    """Return a plotly bar chart of the energy share of each frequency, the chosen ones coloured and labelled.

    Args:
        frequencies: the frequencies, such as 1 .. (p - 1) / 2.
        shares: the share of each; they are drawn as given.
        chosen: the frequencies to point out.
        title: one sentence above the figure.

    """
    import plotly.graph_objects as go

    ks, heights, picked = numbers(frequencies), numbers(shares), {int(k) for k in chosen}
    if len(ks) != len(heights):
        raise ValueError(f"There are {len(ks)} frequencies but {len(heights)} shares: one share for each frequency.")
    absent = sorted(picked - set(ks))
    if absent:
        raise ValueError(
            f"chosen has {absent}, which are not among the frequencies {min(ks)} .. {max(ks)}."
            if ks
            else "No frequencies."
        )
    rest = [k for k in ks if k not in picked]
    figure = go.Figure()
    hover = "frequency %{x}<br>share %{y:.4f}<extra></extra>"
    for name, group, colour in (("chosen", sorted(picked), PALETTE[0]), ("other frequencies", rest, _REST)):
        if group:
            y = [heights[ks.index(k)] for k in group]
            label = (
                {
                    "text": [str(k) for k in group],
                    "textposition": "outside",
                    "cliponaxis": False,
                    "constraintext": "none",
                }
                if name == "chosen"
                else {}
            )
            figure.add_trace(
                go.Bar(x=group, y=y, width=0.8, name=name, marker={"color": colour}, hovertemplate=hover, **label)
            )
    figure.update_layout(
        barmode="overlay",
        showlegend=bool(picked),
        xaxis={"title": {"text": "frequency"}, "showgrid": False},
        yaxis={"title": {"text": "share of the energy"}, "tickformat": ".0%", "rangemode": "tozero"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom"},
    )
    return finish(figure, title, height=330, margin={"l": 65, "r": 15, "t": 40, "b": 55}, wide={}, narrow={})
