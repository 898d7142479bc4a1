"""An edit at one site after another: the metric at each, beside the clean run and the controls of each site."""

from collections.abc import Mapping
from typing import Any

from mi_ablate._places import short_names
from mi_ablate.effects import Effect
from mi_ablate.figures._style import GREY, PALETTE, faint, finish


def by_site(effects: Mapping[str, Effect], title: str | None = None) -> Any:
    """Return the plotly figure of the same edit at one site at a time.

    A solid line is the edit, a dotted grey one the clean run; each control is a line (the mean of its draws) in a band (its
    lowest to its highest draw).

    Args:
        effects: by site, such as `mi_ablate.effect_by_site` returns.
        title: one sentence above the figure.

    Raises:
        ValueError: nothing to draw, or sites with different metrics or controls.

    """
    import plotly.graph_objects as go

    found = list(effects.values())
    kinds = {(e.metric, tuple(e.controls)) for e in found}
    if len(kinds) != 1:
        raise ValueError(f"by_site draws one metric with the same controls at each site; there are {len(kinds)} kinds.")
    metric, controls = kinds.pop()
    x, axis = short_names(list(effects))
    figure = go.Figure()
    for i, name in enumerate(controls):
        means = [e.controls[name].mean(1) for e in found]
        colour = PALETTE[(i + 1) % len(PALETTE)]
        low, high = [float(m.min()) for m in means], [float(m.max()) for m in means]
        mean, draws = [float(m.mean()) for m in means], len(means[0])
        hidden: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=x, y=high, name=f"{name}, highest", legendgroup=name, **hidden))
        shape = {"fill": "tonexty", "fillcolor": faint(colour, 0.15)}
        figure.add_trace(go.Scatter(x=x, y=low, name=f"{name}, lowest", legendgroup=name, **hidden, **shape))
        spread = [f"<br>{draws} draws, {a:.4f} to {b:.4f}" if draws > 1 else "" for a, b in zip(low, high)]
        options: dict[str, Any] = {
            "line": {"color": colour, "dash": "dot"},
            "mode": "lines+markers",
            "marker": {"size": 4},
        }
        hover = f"<b>{name}</b><br>%{{x}}<br>{metric} %{{y:.4f}}%{{customdata}}<extra></extra>"
        figure.add_trace(
            go.Scatter(x=x, y=mean, name=name, legendgroup=name, customdata=spread, hovertemplate=hover, **options)
        )
    for name, values, line in (
        ("clean", [float(e.clean.mean()) for e in found], {"color": GREY, "dash": "dot", "width": 1.5}),
        ("edited", [float(e.edited.mean()) for e in found], {"color": PALETTE[0], "width": 2.5}),
    ):
        hover = f"<b>{name}</b><br>%{{x}}<br>{metric} %{{y:.4f}}<extra></extra>"
        figure.add_trace(go.Scatter(x=x, y=values, name=name, mode="lines+markers", line=line, hovertemplate=hover))
    figure.update_layout(
        yaxis={"title": {"text": metric}, "zeroline": False},
        xaxis={"type": "category", "automargin": True, "title": {"text": axis}},
    )
    figure.update_layout(legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"})
    margin = {"l": 60, "r": 15, "t": 40, "b": 60}
    long = max(map(len, x)) > 4
    narrow = {"xaxis.tickfont.size": 9, "xaxis.tickangle": -90 if long else 0}
    wide = {"xaxis.tickfont.size": 12, "xaxis.tickangle": -45 if long and len(x) > 4 else 0}
    return finish(figure, title, height=400, margin=margin, wide=wide, narrow=narrow)
