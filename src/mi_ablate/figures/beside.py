"""The same lines in several panels side by side, such as resistance curves under two ways of removal."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mi_ablate.figures._style import GREY, faint, finish, numbers, ordered

Values = Float[Tensor, " _"] | Sequence[int | float]
_GAP = 0.06


def panels(
    x: Sequence[int | float],
    series: Mapping[str, Mapping[str, Values]],
    *,
    bands: Mapping[str, Mapping[str, Float[Tensor, "2 _"]]] | None = None,
    controls: Mapping[str, Mapping[str, Values]] | None = None,
    control: str = "control",
    names: str = "",
    axes: tuple[str, str] = ("", ""),
    level: int | float | None = None,
    title: str | None = None,
) -> Any:
    """Return the plotly figure of one panel a mapping, with one legend: a name has one colour, dark to light in their order.

    Args:
        x: the places, shared by all panels; a line may be shorter.
        series: by panel and by name, one value a place.
        bands: by panel and by name, the lower and upper ends of its intervals.
        controls: by panel and by name, the values of that line's control: dotted, in the line's colour.
        control: what the dotted lines are, for the legend.
        names: what the names are, for the legend: "weight decay".
        axes: titles of the two axes.
        level: a height to point out.
        title: one sentence above the figure.

    Raises:
        ValueError: nothing to draw, more values than places, a band or a control of no line.

    """
    import plotly.graph_objects as go

    places, bands, controls = list(x), dict(bands or {}), dict(controls or {})
    _check(places, series, bands, controls)
    order = list(dict.fromkeys(name for lines in series.values() for name in lines))
    colours = dict(zip(order, ordered(len(order))))
    figure, seen = go.Figure(), set()
    for number, (panel, lines) in enumerate(series.items(), 1):
        axis = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        for name, given in lines.items():
            common = {"legendgroup": name, "legendrank": order.index(name), **axis}
            for trace in _band(places, bands.get(panel, {}).get(name), colours[name]):
                figure.add_trace(go.Scatter(**common, **trace))
            beside = controls.get(panel, {}).get(name)
            if beside is not None:
                look = {"line": {"color": colours[name], "dash": "dot", "width": 1.6}, "showlegend": False}
                figure.add_trace(
                    go.Scatter(**common, **look, **_line(places, beside, f"{name}, {control}", panel, axes))
                )
            look = {"line": {"color": colours[name], "width": 2.4}, "showlegend": name not in seen}
            figure.add_trace(go.Scatter(**common, **look, **_line(places, given, name, panel, axes)))
            seen.add(name)
    if any(controls.values()):
        key = {"x": [None], "y": [None], "mode": "lines", "line": {"color": GREY, "dash": "dot", "width": 1.6}}
        figure.add_trace(go.Scatter(**key, name=control, legendrank=len(order)))
    figure.update_layout(legend_title_text=names)
    return _placed(figure, list(series), axes, level, title)


def _band(places: list[Any], ends: Any, colour: str) -> list[dict[str, Any]]:
    """The two hidden lines of a band, where there is one."""
    if ends is None:
        return []
    low, high = (numbers(end) for end in ends)
    hidden = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    shape = {"fill": "tonexty", "fillcolor": faint(colour, 0.14)}
    return [{**hidden, "x": places[: len(high)], "y": high}, {**hidden, **shape, "x": places[: len(low)], "y": low}]


def _line(places: list[Any], values: Any, name: str, panel: str, axes: tuple[str, str]) -> dict[str, Any]:
    y = numbers(values)
    hover = f"<b>{name}</b><br>{panel}<br>{axes[0]} %{{x}}<br>{axes[1]} %{{y:.4g}}<extra></extra>"
    return {"x": places[: len(y)], "y": y, "name": name, "mode": "lines", "hovertemplate": hover}


def _placed(figure: Any, titles: list[str], axes: tuple[str, str], level: int | float | None, title: str | None) -> Any:
    """Panels in a row, or on a narrow screen in a column; their titles hang on their axes and so move with them."""
    count = len(titles)
    wide: dict[str, Any] = {"legend.y": 1.08, "height": 430}
    narrow: dict[str, Any] = {"legend.y": 1.05, "height": 150 + 300 * count}
    part = (1 - _GAP * (count - 1)) / count
    tall = (1 - 0.2 * (count - 1)) / count
    for i, panel in enumerate(titles):
        end = "" if i == 0 else str(i + 1)
        start, top = i * (part + _GAP), 1 - i * (tall + 0.2)
        wide |= {f"xaxis{end}.domain": [start, min(1.0, start + part)], f"yaxis{end}.domain": [0, 1]}
        narrow |= {f"xaxis{end}.domain": [0, 1], f"yaxis{end}.domain": [max(0.0, top - tall), top]}
        figure.update_layout({
            f"xaxis{end}": {"title": {"text": axes[0]}, "anchor": f"y{i + 1}", "zeroline": False},
            f"yaxis{end}": {"title": {"text": axes[1] if i == 0 else ""}, "anchor": f"x{i + 1}", "zeroline": False}
            | ({"matches": "y"} if i else {}),
        })  # fmt: skip
        figure.add_annotation(
            text=f"<b>{panel}</b>", xref=f"x{end} domain", yref=f"y{end} domain", x=0, y=1.01, xanchor="left",
            yanchor="bottom", showarrow=False,
        )  # fmt: skip
        if level is not None:
            line = {"color": GREY, "width": 1, "dash": "dash"}
            ends = {"x0": 0, "x1": 1, "y0": level, "y1": level}
            figure.add_shape(type="line", xref=f"x{end} domain", yref=f"y{end}", line=line, **ends)
    figure.update_layout(legend={"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "bottom"})
    return finish(figure, title, height=430, margin={"l": 60, "r": 15, "t": 75, "b": 55}, wide=wide, narrow=narrow)


def _check(places: list[Any], series: Mapping[str, Any], bands: Mapping[str, Any], controls: Mapping[str, Any]) -> None:
    if not places or not any(series.values()):
        raise ValueError("There is no line to draw: panels(ks, {'zero': {'0.1': values}}).")
    for panel, lines in series.items():
        for name, values in lines.items():
            if len(values) > len(places):
                raise ValueError(f"{name!r} in {panel!r} has {len(values)} values for {len(places)} places.")
    for panel, name in ((panel, name) for of in (bands, controls) for panel, given in of.items() for name in given):
        if name not in series.get(panel, {}):
            raise ValueError(f"{name!r} in {panel!r} has no line for its band or control.")
