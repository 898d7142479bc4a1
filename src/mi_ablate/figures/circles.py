"""The answer circle: where the model puts each answer, where the fit puts it, and what writing on it does.

Left, one panel a frequency k: the class means of the activations in the plane of k, coloured by k times the
answer mod p (the hour on that frequency's clock), and the fitted circle. Right, bars: how often the model
gives the written answer, beside its controls. It shows what the model writes, not which algorithm wrote it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from mi_ablate.figures._style import GREY, INK, PALETTE, finish, numbers

_BARS = (PALETTE[0], PALETTE[5], "#8A8A8A", PALETTE[3], PALETTE[2])
_GROUP = {"legendgroup": "circle", "legendgrouptitle": {"text": "class means"}}


def answer_circle(
    planes: Mapping[int, Float[Tensor, "p 2"]],
    predicted: Mapping[int, Float[Tensor, "p 2"]],
    fitted: Bool[Tensor, " p"],
    writes: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
    *,
    metric: str = "accuracy",
) -> Any:
    """Return the plotly figure of the answer circle, with bars for what writing on it does.

    Args:
        planes: by frequency k, the mean activation of each answer 0 .. p-1 in the plane of k; any
            coordinates. In those of the fit's own cos and sin (``means @ pinv(coef)``) the fitted circle is
            round.
        predicted: by the same frequencies, what the fit says of each answer in that plane.
        fitted: which answers the fit has seen; the others are held out and get their own marks.
        writes: one row a bar group: ``{"write": "+5", "accuracy": 0.99, "controls": {"shuffled labels":
            {"mean": 0.03, "low": 0.0, "high": 0.1}}}``. A row may have "low" and "high" as well.
        title: one sentence above the figure.
        metric: the key of the treatment in ``writes`` and the label of the bars' axis.

    """
    from plotly.subplots import make_subplots

    _check(planes, predicted, fitted, writes, metric)
    columns = len(planes) + bool(writes)
    p = len(fitted)
    titles = [f"frequency {k}" for k in planes] + ["writing another answer"] * bool(writes)
    widths = [1.0] * len(planes) + [1.25] * bool(writes)
    figure = make_subplots(
        rows=1, cols=columns, column_widths=widths, subplot_titles=titles, horizontal_spacing=0.26 / columns
    )
    for column, (k, means) in enumerate(planes.items(), 1):
        for trace in _circle(k, means, predicted[k], fitted, first=column == 1):
            figure.add_trace(trace, row=1, col=column)
        text = f"numbers: answers<br>colour: {k} × answer mod {p}"
        figure.update_xaxes(title={"text": text, "font": {"size": 12}}, row=1, col=column)
        figure.update_yaxes(scaleanchor=f"x{column if column > 1 else ''}", row=1, col=column)
    figure.update_xaxes(zeroline=False, showgrid=False, showticklabels=False)
    figure.update_yaxes(zeroline=False, showgrid=False, showticklabels=False)
    if writes:
        for trace in _bars(writes, metric):
            figure.add_trace(trace, row=1, col=columns)
        shares = all(0 <= row[metric] <= 1 for row in writes)
        scale = {"range": [0, 1.1], "tickvals": [0, 0.25, 0.5, 0.75, 1]} if shares else {}
        room = [-0.75, len(writes) - 0.4]
        figure.update_xaxes(type="category", range=room, showticklabels=True, row=1, col=columns)
        figure.update_yaxes(title=metric, showgrid=True, showticklabels=True, **scale, row=1, col=columns)
    figure.update_layout(barmode="group", bargap=0.25, legend={"tracegroupgap": 4})
    wide, narrow = _layouts(figure, columns, bool(writes))
    margin = {"l": 20, "r": 10, "t": 45, "b": 60}
    return finish(figure, title, height=450, margin=margin, wide=wide, narrow=narrow)


def _check(planes: Any, predicted: Any, fitted: Tensor, writes: Any, metric: str) -> None:
    if not planes:
        raise ValueError("There is no plane to draw: planes={k: class means [p 2]}.")
    if set(planes) != set(predicted):
        there = f"planes has the frequencies {sorted(planes)}, but predicted {sorted(predicted)}"
        raise ValueError(f"{there}: give both the same.")
    for what, pairs in (("planes", planes), ("predicted", predicted)):
        for k, xy in pairs.items():
            if list(xy.shape) != [len(fitted), 2]:
                there = f"{what}[{k}] has shape {list(xy.shape)}"
                raise ValueError(f"{there}; with {len(fitted)} answers it is [{len(fitted)}, 2].")
    for i, row in enumerate(writes):
        missing = [key for key in ("write", metric) if key not in row]
        if missing:
            full = f"{{'write': '+5', {metric!r}: 0.99, 'controls': {{...}}}}"
            raise ValueError(f"writes[{i}] has {sorted(row)}, without {missing}: {full}.")


def _circle(k: int, means: Tensor, predicted: Tensor, fitted: Tensor, first: bool) -> list[Any]:
    """The fitted circle, the fitted answers, and the held-out answers joined to their predictions."""
    import plotly.graph_objects as go

    p = len(fitted)
    hours = [k * a % p for a in range(p)]
    seen, held = ([a for a in range(p) if bool(fitted[a]) is known] for known in (True, False))
    xy, fit = numbers(means), numbers(predicted)
    around = sorted(range(p), key=hours.__getitem__)
    loop = [fit[a] for a in [*around, around[0]]]
    quiet = {"hoverinfo": "skip", "showlegend": False}
    ring = {"mode": "lines", "line": {"color": GREY, "width": 1}, "name": "fitted circle", **_GROUP}
    grey = {"size": 11, "color": "#555555"}
    traces = [
        go.Scatter(x=[q[0] for q in loop], y=[q[1] for q in loop], **ring, hoverinfo="skip", showlegend=first),
        go.Scatter(**_labels(xy, fit, around), mode="text", textfont=grey, **quiet),
    ]
    if held:
        ends = [[end for a in held for end in (xy[a][axis], fit[a][axis], None)] for axis in (0, 1)]
        thin = {"mode": "lines", "line": {"color": INK, "width": 0.8}}
        traces.append(go.Scatter(x=ends[0], y=ends[1], **thin, **quiet, **_GROUP))

    colours = {"colorscale": "Phase", "cmin": 0, "cmax": p, "showscale": False}
    dots = {"symbol": "circle", "size": 7, "color": [hours[a] for a in seen], **colours}
    diamonds = {"symbol": "diamond", "size": 9, "line": {"width": 1.2, "color": INK}, **colours}
    diamonds["color"] = [hours[a] for a in held]
    crosses = {"symbol": "x-thin", "size": 7, "line": {"width": 1.6, "color": INK}}
    kinds = (
        ("fitted answers", seen, xy, dots),
        ("held-out answers", held, xy, diamonds),
        ("prediction, held out", held, fit, crosses),
    )
    for name, answers, of, marker in kinds:
        if answers:
            said = [f"answer {a}<br>{k} × answer mod {p} = {hours[a]}" for a in answers]
            traces.append(_points([of[a] for a in answers], said, name, marker))
            if first:
                key = {**marker, "color": GREY, "size": 9}
                traces.append(go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=key, **_GROUP))
    return traces


def _points(xy: list[list[float]], said: list[str], name: str, marker: dict[str, Any]) -> Any:
    """Points whose colours vary; their legend entry is a grey point of its own."""
    import plotly.graph_objects as go

    x, y = [q[0] for q in xy], [q[1] for q in xy]
    shown = {"hovertext": said, "hovertemplate": "%{hovertext}<extra>%{fullData.name}</extra>"}
    return go.Scatter(x=x, y=y, mode="markers", marker=marker, name=name, showlegend=False, **shown, **_GROUP)


def _labels(xy: list[list[float]], fit: list[list[float]], around: list[int], n: int = 12) -> dict[str, Any]:
    """The numbers of n answers evenly around the circle, outside all points."""
    shown = [around[len(around) * i // n] for i in range(n)] if len(around) > n else around
    centre = [sum(q[axis] for q in fit) / len(fit) for axis in (0, 1)]
    radius = [math.dist(q, centre) for q in fit]
    reach = [math.dist(q, centre) / r for q, r in zip([*xy, *fit], [*radius, *radius]) if r]
    out = 0.18 + max(reach, default=1.0)
    x, y = ([centre[axis] + out * (fit[a][axis] - centre[axis]) for a in shown] for axis in (0, 1))
    return {"x": x, "y": y, "text": [str(a) for a in shown]}


def _bars(writes: Sequence[Mapping[str, Any]], metric: str) -> list[Any]:
    import plotly.graph_objects as go

    names = list(dict.fromkeys(name for row in writes for name in row.get("controls", {})))
    ends = ("low", "high")
    treatment = [{"mean": row[metric], **{end: row[end] for end in ends if end in row}} for row in writes]
    series = {"fitted circle": treatment}
    series |= {name: [row.get("controls", {}).get(name, {}) for row in writes] for name in names}
    label = {"textposition": "outside", "textangle": 0, "constraintext": "none", "textfont": {"size": 11}}
    group = {"legendgroup": "bars", "legendgrouptitle": {"text": "written with"}}
    traces = []
    for i, (name, cells) in enumerate(series.items()):
        up = [cell["high"] - cell["mean"] if "high" in cell else 0 for cell in cells]
        down = [cell["mean"] - cell["low"] if "low" in cell else 0 for cell in cells]
        error = {"type": "data", "array": up, "arrayminus": down, "symmetric": False, "color": INK}
        both = [{"low", "high"} <= cell.keys() for cell in cells]
        spread = [f"<br>range {c['low']:.3f} to {c['high']:.3f}" if b else "" for c, b in zip(cells, both)]
        said = f"<b>{name}</b><br>%{{x}}<br>{metric} %{{y:.3f}}%{{customdata}}<extra></extra>"
        bar = go.Bar(
            x=[str(row["write"]) for row in writes],
            y=[cell.get("mean") for cell in cells],
            name=name,
            customdata=spread,
            hovertemplate=said,
            marker={"color": _BARS[i % len(_BARS)]},
            error_y={**error, "thickness": 1.4, "width": 4} if any(up) or any(down) else None,
            text=None if i else [f"{row[metric]:.3f}" for row in writes],
            cliponaxis=False,
            **label,
            **group,
        )
        traces.append(bar)
    return traces


def _layouts(figure: Any, columns: int, bars: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Panels side by side, or below each other where the screen is narrow."""
    wide: dict[str, Any] = {}
    narrow: dict[str, Any] = {"margin": {"l": 45, "r": 10, "t": 45, "b": 55}, "height": 420 * columns + 190}
    for i in range(columns):
        end = str(i + 1) if i else ""
        x, y = list(figure.layout[f"xaxis{end}"].domain), list(figure.layout[f"yaxis{end}"].domain)
        wide |= {f"xaxis{end}.domain": x, f"yaxis{end}.domain": y}
        low = 1 - (i + 1) / columns + (0.17 / columns if i + 1 < columns or not bars else 0.05 / columns)
        high = 1 - i / columns - 0.06 / columns
        narrow |= {f"xaxis{end}.domain": [0, 1], f"yaxis{end}.domain": [low, high]}
        wide |= {f"annotations[{i}].x": sum(x) / 2, f"annotations[{i}].y": 1.0}
        narrow |= {f"annotations[{i}].x": 0.5, f"annotations[{i}].y": high}
    legend = {"legend.xanchor": "left", "legend.yanchor": "top"}
    if columns > 2:
        wide |= {**legend, "legend.orientation": "h", "legend.x": 0.0, "legend.y": -0.18, "height": 520}
    else:
        wide |= {**legend, "legend.orientation": "v", "legend.x": 1.01, "legend.y": 1.0, "height": 450}
    narrow |= {**legend, "legend.orientation": "h", "legend.x": 0.0, "legend.y": -0.04}
    return wide, narrow
