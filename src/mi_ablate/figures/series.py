"""Several methods over the same places: a line each, with a band for its interval, such as an effect at every layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mi_ablate.figures._style import GREY, PALETTE, faint, finish, numbers

_DASHES = ("solid", "dash", "dashdot", "longdash")


def lines(
    x: Sequence[str] | Sequence[int | float],
    series: Mapping[str, Float[Tensor, " _"] | Sequence[int | float]],
    *,
    bands: Mapping[str, Float[Tensor, "2 _"]] | None = None,
    controls: Sequence[str] = (),
    axes: tuple[str, str] = ("layer", ""),
    log: bool = False,
    marks: Sequence[int | float] = (),
    title: str | None = None,
) -> Any:
    """Return the plotly figure of one line a method.

    Args:
        x: the places: names, or numbers.
        series: by method, one value a place; values that are not finite leave a gap.
        bands: by method, the lower and upper ends of its intervals.
        controls: which of the methods are controls: grey and dotted.
        axes: titles of the two axes.
        log: a logarithmic axis of places.
        marks: places to point out, for places that are numbers: the axis is labelled there and nowhere else.
        title: one sentence above the figure.

    Raises:
        ValueError: nothing to draw, values that are not one a place, a band or a control of no method.

    """
    import plotly.graph_objects as go

    places, bands = list(x), dict(bands or {})
    _check(places, series, bands, controls)
    figure = go.Figure()
    coloured = [name for name in series if name not in controls]
    for name, given in series.items():
        if name in controls:
            dash = ("dot", "dash", "dashdot")[list(controls).index(name) % 3]
            line = {"color": GREY, "dash": dash, "width": 1.5}
        else:
            turn, i = divmod(coloured.index(name), len(PALETTE))
            line = {"color": PALETTE[i], "dash": _DASHES[turn % len(_DASHES)], "width": 2}
        for trace in _traces(name, places, numbers(given), bands.get(name), line, axes):
            figure.add_trace(go.Scatter(**trace))
    for mark in marks:
        figure.add_vline(mark, line={"color": "#BBBBBB", "width": 1})
    words = any(isinstance(place, str) for place in places)
    kind: dict[str, Any] = {"type": "category"} if words else {"type": "log"} if log else {}
    if marks:
        kind |= {"tickvals": list(marks), "ticktext": [f"{mark:g}" for mark in marks], "showgrid": False}
    figure.update_layout(
        xaxis={"title": {"text": axes[0]}, "automargin": True, **kind},
        yaxis={"title": {"text": axes[1]}, "zeroline": True, "zerolinecolor": "#DDDDDD"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    )
    margin = {"l": 60, "r": 15, "t": 60, "b": 60}
    long = words and max(map(len, map(str, places))) > 4
    narrow = {"xaxis.tickfont.size": 9, "xaxis.tickangle": -90 if long else 0, "height": 480}
    wide = {"xaxis.tickfont.size": 12, "xaxis.tickangle": -45 if long and len(places) > 4 else 0}
    return finish(figure, title, height=420, margin=margin, wide={**wide, "height": 420}, narrow=narrow)


def _traces(
    name: str, x: list[Any], given: list[Any], band: Any, line: dict[str, Any], axes: tuple[str, str]
) -> list[dict[str, Any]]:
    """The band of a method, where it has one, and its line."""
    y = [None if v != v or v in (float("inf"), float("-inf")) else v for v in given]
    common = {"x": x, "legendgroup": name}
    found: list[dict[str, Any]] = []
    spread = [""] * len(x)
    if band is not None:
        low, high = (numbers(end) for end in band)
        hidden = {**common, "mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
        shape = {"fill": "tonexty", "fillcolor": faint(line["color"], 0.15)}
        found += [{**hidden, "y": high}, {**hidden, **shape, "y": low}]
        spread = [f"<br>{a:.4g} to {b:.4g}" for a, b in zip(low, high)]
    hover = f"<b>{name}</b><br>{axes[0]} %{{x}}<br>{axes[1]} %{{y:.4g}}%{{customdata}}<extra></extra>"
    look = {"mode": "lines+markers", "marker": {"size": 4}, "line": line}
    return [*found, {**common, **look, "y": y, "name": name, "customdata": spread, "hovertemplate": hover}]


def _check(places: list[Any], series: Mapping[str, Any], bands: Mapping[str, Any], controls: Sequence[str]) -> None:
    if not series or not places:
        raise ValueError("There is no line to draw: lines(layers, {'helix': values}).")
    for name, values in series.items():
        if len(values) != len(places):
            raise ValueError(f"{name!r} has {len(values)} values for {len(places)} places: one for each is needed.")
    for name in [*bands, *controls]:
        if name not in series:
            raise ValueError(f"{name!r} has no line; there are {', '.join(series)}.")
