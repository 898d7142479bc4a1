"""Numbers on a helix that a person can turn: a circle of one period in two axes, the number line in the third.

One button a period. Points are the numbers, where the activations are in the fit's own coordinates; the curve is where
the fit puts every value in between. Coordinates are those of the design (cos, sin, number), so a perfect fit lies on the
unit circle and on the diagonal of the line. What it cannot show: how much of the activation lies outside the helix.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.figures._style import INK, finish, menu, numbers

_STEPS = 24
"""Points of the curve a turn."""
_LABELS = 12


def helix(
    values: Int[Tensor, " v"] | Sequence[int],
    circles: Mapping[int | float, Float[Tensor, "_ 2"]],
    line: Float[Tensor, " v"],
    title: str | None = None,
    *,
    held_out: Sequence[int] = (),
) -> Any:
    """Return the plotly figure of numbers on helices, one button a period.

    Args:
        values: the numbers.
        circles: by period T, the coordinates of each number along the fit's cos and sin of 2πa/T.
        line: the coordinate of each number along the fit's line, in numbers; all zeros where there is none.
        title: one sentence above the figure.
        held_out: numbers that the fit has not seen; they are drawn as diamonds.

    Raises:
        ValueError: no period, or coordinates that are not one row a number.

    """
    import plotly.graph_objects as go

    shown, z = numbers(values), numbers(line)
    if not circles:
        raise ValueError("There is no period to draw: circles={10: coordinates [v 2]}.")
    for period, xy in circles.items():
        if list(xy.shape) != [len(shown), 2] or len(z) != len(shown):
            raise ValueError(
                f"Period {period:g} has coordinates of shape {list(xy.shape)} and the line {len(z)}; "
                f"{len(shown)} numbers need [{len(shown)}, 2] and {len(shown)}."
            )
    drawn = [_panel(shown, period, numbers(xy), z, set(held_out)) for period, xy in circles.items()]
    figure = go.Figure([go.Scatter3d(**trace) for trace in drawn[0]])
    axis = {"zeroline": False, "showbackground": False, "gridcolor": "#DDDDDD"}
    figure.update_layout(
        scene={
            "xaxis": {**axis, "title": {"text": "cos"}},
            "yaxis": {**axis, "title": {"text": "sin"}},
            "zaxis": {**axis, "title": {"text": "number line"}},
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 1.3},
            "camera": {"eye": {"x": 1.75, "y": 1.5, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.12}},
        }
    )
    if len(circles) > 1:
        buttons = [
            {"label": f"period {period:g}", "method": "restyle", "args": [_restyle(traces)]}
            for period, traces in zip(circles, drawn)
        ]
        figure.update_layout(updatemenus=[menu(buttons)])
    legend = {"legend.orientation": "h", "legend.x": 0, "legend.y": -0.02, "legend.yanchor": "top"}
    room = {"l": 0, "r": 0, "t": 50, "b": 40}
    return finish(figure, title, height=520, margin=room, wide=legend, narrow={**legend, "height": 430})


def _panel(
    shown: list[int], period: int | float, xy: list[list[float]], z: list[float], held: set[int]
) -> tuple[dict[str, Any], ...]:
    """The fitted curve, the numbers of the fit and the held-out ones, for one period."""
    import math

    start, end = min(shown), max(shown)
    steps = min(4000, max(2, math.ceil((end - start) / period * _STEPS)))
    at = [start + (end - start) * i / steps for i in range(steps + 1)]
    turn = [2 * math.pi * a / period for a in at]
    flat = not any(z)
    curve = {
        "x": [math.cos(t) for t in turn],
        "y": [math.sin(t) for t in turn],
        "z": [0.0] * len(at) if flat else at,
        "mode": "lines",
        "line": {"color": "#BBBBBB", "width": 2},
        "name": "the fit",
        "hoverinfo": "skip",
    }
    every = max(1, len(shown) // _LABELS)
    traces = [curve]
    for name, symbol, chosen in (
        ("numbers", "circle", [i for i, a in enumerate(shown) if a not in held]),
        ("held-out numbers", "diamond", [i for i, a in enumerate(shown) if a in held]),
    ):
        if not chosen and name != "numbers":
            continue
        colour = [shown[i] % period for i in chosen]
        marker = {"size": 4, "symbol": symbol, "color": colour, "colorscale": "Phase", "cmin": 0, "cmax": period}
        where = [f"{shown[i]} (mod {period:g}: {shown[i] % period:g})" for i in chosen]
        traces.append(
            {
                "x": [xy[i][0] for i in chosen],
                "y": [xy[i][1] for i in chosen],
                "z": [z[i] for i in chosen],
                "mode": "markers+text",
                "marker": marker,
                "text": [str(shown[i]) if i % every == 0 else "" for i in chosen],
                "textfont": {"size": 10, "color": INK},
                "hovertext": where,
                "hovertemplate": "%{hovertext}<br>cos %{x:.3f}, sin %{y:.3f}<br>line %{z:.2f}<extra></extra>",
                "name": name,
            }
        )
    return tuple(traces)


def _restyle(traces: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """What a button changes: every list, one entry a trace."""
    keys = ("x", "y", "z", "hovertext", "marker")
    return {key: [trace.get(key) for trace in traces] for key in keys}
