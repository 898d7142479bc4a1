"""The removal curve: a metric against the number of directions removed, each curve beside its controls."""

from collections.abc import Mapping
from typing import Any

from mi_ablate.curves import Curve
from mi_ablate.figures._style import GREY, PALETTE, faint, finish, menu, numbers, wrap

_RULES = {"first": "last k before the first fall below", "hull": "largest k still at"}
_DASHES = ("dash", "dashdot", "longdash")


def removal(curves: Mapping[str, Curve], title: str | None = None, *, tau: float = 0.95, rule: str = "first") -> Any:
    """Return the plotly figure of one or several removal curves, each with its controls.

    A curve is a solid line; a control with several draws is a dotted line (the mean) in a band (lowest to
    highest draw); a control with one draw, such as the top principal components, is dashed. Rings mark k at
    ``tau``. The buttons switch the x axis between directions and the share of the variance removed; a click
    on the legend hides a line.

    Args:
        curves: by the name in the legend, such as ``{"zero": curve, "mean": another}``; one metric for all.
        title: one sentence above the figure.
        tau: the threshold of the rings, relative to the clean value; losses and log-odds have none.
        rule: "first" or "hull", see `mi_ablate.Curve.k_at`.

    """
    import plotly.graph_objects as go

    metric = _metric(curves)
    figure = go.Figure()
    by_k: list[list[int]] = []
    by_share: list[list[float]] = []

    def add(ks: list[int], share: list[float], **options: Any) -> None:
        by_k.append(ks)
        by_share.append(share)
        figure.add_trace(go.Scatter(x=ks, **options))

    colours = dict(zip(curves, PALETTE * (1 + len(curves) // len(PALETTE))))
    for name, curve in curves.items():
        first, colour = len(by_k) + 1, colours[name]
        for draw in _controls(name, curve, metric, colour):
            add(**draw, legendrank=len(by_k) + 2)
        add(**_treatment(name, curve, metric, colour, tau, rule), legendrank=first)
    for name, curve in curves.items():
        ring = _ring(name, curve, colours[name], tau, rule)
        if ring is not None:
            add(**ring)
    falls = [curve for curve in curves.values() if curve.has_share]
    for threshold in sorted({tau * curve.clean for curve in falls}):
        figure.add_hline(y=threshold, line={"color": GREY, "width": 1, "dash": "dot"})
    axis = {"title": {"text": metric}, "rangemode": "tozero", "zeroline": False}
    figure.update_layout(yaxis=axis, xaxis={"title": {"text": "directions removed"}, "zeroline": False})
    figure.update_layout(
        hovermode="closest",
        legend={
            "xanchor": "left",
            "yanchor": "top",
            "tracegroupgap": 0,
            "title": {"font": {"size": 12}, "side": "top"},
        },
    )
    figure.update_layout(updatemenus=[_buttons(by_k, by_share)])
    lines = sum(trace.showlegend is not False for trace in figure.data)
    rings = f"ring, k@{tau:.0%}: {_RULES[rule]} {tau:.0%} of clean; " if falls else ""
    wide, narrow = _legends(rings, lines)
    return finish(figure, title, height=420, margin={"l": 60, "r": 15, "t": 45, "b": 55}, wide=wide, narrow=narrow)


def _metric(curves: Mapping[str, Curve]) -> str:
    if not isinstance(curves, Mapping):
        raise TypeError(f"removal takes curves by name, not a {type(curves).__name__}: removal({{'zero': curve}}).")
    if not curves:
        raise ValueError("There is no curve to draw: removal({'zero': removal_curve(...)}).")
    metrics = {curve.metric for curve in curves.values()}
    if len(metrics) > 1:
        raise ValueError(f"The curves measure {', '.join(sorted(metrics))}; draw one figure for each metric.")
    return metrics.pop()


def _hover(metric: str, name: str) -> str:
    value = f"{metric} %{{y:.3f}}"
    removed = "variance removed %{customdata[1]:.3f}%{customdata[2]}"
    return f"<b>{name}</b><br>k %{{customdata[0]}}<br>{value}<br>{removed}<extra></extra>"


def _treatment(name: str, curve: Curve, metric: str, colour: str, tau: float, rule: str) -> dict[str, Any]:
    share = numbers(curve.variance_removed["edited"])
    k = curve.k_at(tau, rule) if curve.has_share else None
    reading = "" if not curve.has_share else f": k@{tau:.0%} = {'none' if k is None else k}"
    return {
        "ks": list(curve.ks),
        "share": share,
        "y": numbers(curve.values),
        "name": f"{name}{reading}",
        "legendgroup": name,
        "mode": "lines+markers",
        "line": {"color": colour, "width": 2.5},
        "marker": {"size": 5},
        "customdata": [[k, s, ""] for k, s in zip(curve.ks, share)],
        "hovertemplate": _hover(metric, name),
    }


def _controls(name: str, curve: Curve, metric: str, colour: str) -> list[dict[str, Any]]:
    """The band and the line of each control, in that order, so that the lines lie on the bands."""
    found: list[dict[str, Any]] = []
    single = drawn = 0
    for control, draws in curve.controls.items():
        share = (
            numbers(curve.variance_removed[control])
            if control in curve.variance_removed
            else [float("nan")] * len(curve.ks)
        )
        low, high, group = numbers(draws.amin(0)), numbers(draws.amax(0)), f"{name}, {control}"
        several = len(draws) > 1
        spread = [f"<br>range of {len(draws)} draws {a:.3f} to {b:.3f}" if several else "" for a, b in zip(low, high)]
        line = {"color": colour, "width": 1.6, "dash": _dash(several, drawn if several else single)}
        single, drawn = single + (not several), drawn + several
        if several:
            band = {
                "ks": [*curve.ks, *reversed(curve.ks)],
                "share": [*share, *reversed(share)],
                "y": [*high, *reversed(low)],
            }
            shape = {
                "mode": "lines",
                "line": {"width": 0},
                "fill": "toself",
                "fillcolor": faint(colour, 0.13),
            }
            found.append(
                {
                    **band,
                    **shape,
                    "legendgroup": group,
                    "showlegend": False,
                    "hoverinfo": "skip",
                    "name": f"{group} range",
                }
            )
        found.append(
            {
                "ks": list(curve.ks),
                "share": share,
                "y": numbers(draws.mean(0)),
                "name": f"{group} ({len(draws)} draws)" if several else group,
                "legendgroup": group,
                "mode": "lines",
                "line": line,
                "customdata": [list(row) for row in zip(curve.ks, share, spread)],
                "hovertemplate": _hover(metric, f"{group} control"),
            }
        )
    return found


def _dash(several: bool, number: int) -> str:
    """Drawn controls are dotted, so that they are told from single ones; a second one has longer dots."""
    among = ("dot", "longdashdot") if several else _DASHES
    return among[number % len(among)]


def _ring(name: str, curve: Curve, colour: str, tau: float, rule: str) -> dict[str, Any] | None:
    k = curve.k_at(tau, rule) if curve.has_share else None
    if k is None:
        return None
    at = curve.ks.index(int(k))
    meaning = f"{_RULES[rule]} {tau:.0%} of the clean value"
    return {
        "ks": [int(k)],
        "share": numbers(curve.variance_removed["edited"][at : at + 1]),
        "y": [float(curve.values[at])],
        "name": f"{name}, k@{tau:.0%}",
        "legendgroup": name,
        "showlegend": False,
        "mode": "markers",
        "marker": {"symbol": "circle-open", "size": 14, "color": colour, "line": {"width": 2.5}},
        "cliponaxis": False,
        "hovertemplate": f"<b>{name}</b><br>k@{tau:.0%} = {k}: {meaning}<extra></extra>",
    }


def _buttons(by_k: list[Any], by_share: list[Any]) -> dict[str, Any]:
    choices = (
        ("directions removed", "directions", by_k, ""),
        ("share of the variance removed", "variance", by_share, ".0%"),
    )
    buttons = []
    for label, short, xs, form in choices:
        axis = {"xaxis.title.text": label, "xaxis.tickformat": form, "xaxis.autorange": True}
        buttons.append({"label": f"x: {short}", "method": "update", "args": [{"x": xs}, axis]})
    return menu(buttons)


def _legends(rings: str, lines: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The legend with the rule as its title: right of the plot, or below it in two columns."""
    text = f"{rings}band: lowest to highest draw"
    beside = {"orientation": "v", "x": 1.02, "y": 1, "entrywidth": 0, "entrywidthmode": "pixels"}
    below = {"orientation": "h", "x": 0, "y": -0.2, "entrywidth": 0.5, "entrywidthmode": "fraction"}
    wide, narrow = ({f"legend.{key}": value for key, value in place.items()} for place in (beside, below))
    wide |= {"legend.title.text": wrap(text, 36)}
    narrow |= {"legend.title.text": wrap(text, 56), "height": 470 + 11 * lines}
    return wide, {**narrow, "margin": {"l": 50, "r": 10, "t": 45, "b": 55}}
