"""The heat map: a number for every place, such as the effect of patching each site at each position."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mi_ablate.figures._style import PALETTE, finish, menu

_SCALE = [[0.0, PALETTE[0]], [0.5, "#FFFFFF"], [1.0, PALETTE[1]]]
_WRITTEN = 10
"""Columns up to which every cell has its number written into it."""
_ROW_OF_BUTTONS = 4


def heat(
    values: Float[Tensor, "rows columns panels"],
    rows: Sequence[str],
    columns: Sequence[str],
    panels: Sequence[str] | None = None,
    *,
    tokens: Sequence[str] | None = None,
    axes: tuple[str, str] = ("site", "position"),
    label: str = "normalised effect",
    controls: Mapping[str, Float[Tensor, "rows columns panels"]] | None = None,
    title: str | None = None,
) -> Any:
    """Return the plotly heat map of effects; white is 0 (none), full colour is 1 or more (all), blue is below 0.

    Args:
        values: ``[rows columns panels]``; the scale runs from -1 to 1, and what lies beyond has the colour of its end
            (the number shows when the mouse is over the cell, and in the cell where there are few).
        rows: what each row is, the first on top.
        columns: what each column is.
        panels: of several panels, such as heads, what a button calls each.
        tokens: the text at each column, written below its name.
        axes: titles of the rows and the columns.
        label: what the numbers are.
        controls: by name, numbers to show beside each value, such as its control; the first stands below it, small, where
            there are few cells.
        title: one sentence above the figure.

    Raises:
        ValueError: names that do not match the shape of the values, or values that are not finite.

    """
    import plotly.graph_objects as go

    names = [""] if panels is None else list(panels)
    _check(values, rows, columns, names, tokens)
    drawn = [
        _panel(values[..., i], i, name, rows, columns, tokens, label, controls or {}) for i, name in enumerate(names)
    ]
    figure = go.Figure(go.Heatmap(**drawn[0], hoverinfo="text", xgap=1, ygap=1, coloraxis="coloraxis"))
    figure.update_layout(
        xaxis={"title": {"text": axes[1]}, "showgrid": False, "automargin": True, "zeroline": False},
        yaxis={"tickvals": list(range(len(rows))), "ticktext": [_safe(r) for r in rows], "autorange": "reversed"},
        coloraxis={"colorscale": _SCALE, "cmin": -1, "cmax": 1, "colorbar": {"thickness": 14, "tickvals": [-1, 0, 1]}},
        plot_bgcolor="#F2F2F2",
    )
    figure.layout.coloraxis.colorbar.title = {
        "text": label.replace(" ", "<br>") + "<br> ",
        "side": "top",
        "font": {"size": 12},
    }
    figure.update_yaxes(title={"text": axes[0], "font": {"size": 13}}, showgrid=False, automargin=True, zeroline=False)
    if len(names) > 1:
        buttons = [{"label": n, "method": "restyle", "args": [_restyle(d)]} for n, d in zip(names, drawn)]
        row = menu(buttons)
        figure.update_layout(updatemenus=[row if len(names) <= _ROW_OF_BUTTONS else {**row, "type": "dropdown"}])
    below = f"<br><i>below each: {_safe(next(iter(controls)))}</i>" if controls and len(columns) <= _WRITTEN else ""
    wide, narrow = _layouts(len(rows), columns, tokens, axes[1] + below, label)
    margin = {"l": 60, "r": 15, "t": 60 if len(names) > 1 else 35, "b": 75}
    return finish(figure, title, height=wide["height"], margin=margin, wide=wide, narrow=narrow)


def _panel(
    values: Tensor,
    index: int,
    name: str,
    rows: Sequence[str],
    columns: Sequence[str],
    tokens: Sequence[str] | None,
    label: str,
    controls: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The numbers of one panel, with the text of each cell and that of the mouse over it."""
    z = values.detach().double().cpu().tolist()
    beside = {key: other[..., index].detach().double().cpu().tolist() for key, other in controls.items()}
    hover, first = [], next(iter(beside.values()), None)
    for i, row in enumerate(rows):
        line = []
        for j, column in enumerate(columns):
            said = [_safe(column), "" if tokens is None else f"“{_safe(tokens[j])}”", _safe(name)]
            where = ", ".join(part for part in said if part)
            extra = "".join(f"<br>{_safe(key)} {other[i][j]:.3f}" for key, other in beside.items())
            line.append(f"<b>{_safe(row)}</b><br>{where}<br>{label} {z[i][j]:.3f}{extra}")
        hover.append(line)
    few = len(columns) <= _WRITTEN
    under = [
        ["" if first is None else f"<br><i>{round(first[i][j], 2) + 0.0:.2f}</i>" for j in range(len(columns))]
        for i in range(len(rows))
    ]
    template = "%{z:.2f}%{text}" if few else ""
    return {"z": z, "hovertext": hover, "text": under, "texttemplate": template, "textfont": {"size": 11}}


def _restyle(panel: dict[str, Any]) -> dict[str, Any]:
    return {"z": [panel["z"]], "hovertext": [panel["hovertext"]], "text": [panel["text"]]}


def _layouts(
    rows: int, columns: Sequence[str], tokens: Sequence[str] | None, axis: str, label: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The colour bar right of the map; on a narrow screen words below it, fewer labels, and smaller ones."""
    height = min(900, 140 + max(34 * rows, 130) + (20 if "<br>" in axis else 0))
    wide = {"height": height, "xaxis.title.text": axis, "xaxis.tickfont.size": 12, "yaxis.tickfont.size": 12}
    wide |= {"coloraxis.showscale": True, **_ticks(columns, tokens, most=60, short=_WRITTEN)}
    words = f"{axis}<br>blue -1, white 0, orange 1"
    narrow = {"height": height + 40, "xaxis.title.text": words, "xaxis.tickfont.size": 10, "yaxis.tickfont.size": 10}
    narrow |= {"coloraxis.showscale": False, **_ticks(columns, tokens, most=24, short=4)}
    return wide, {**narrow, "margin": {"l": 45, "r": 10, "t": 60, "b": 95}}


def _ticks(columns: Sequence[str], tokens: Sequence[str] | None, most: int, short: int) -> dict[str, Any]:
    """At most so many labels; up to ``short`` stand upright, with the token below, and more of them lie."""
    n = len(columns)
    chosen = list(range(0, n, -(-n // most)))
    upright = n <= short or (tokens is None and n <= 2 * _WRITTEN and max(map(len, columns)) < 4)
    text = [_safe(columns[i], 16) for i in chosen]
    if tokens is not None:
        text = [f"{name}{'<br>' if upright else ' '}{_safe(tokens[i], 10)}" for name, i in zip(text, chosen)]
    return {"xaxis.tickvals": chosen, "xaxis.ticktext": text, "xaxis.tickangle": 0 if upright else -90}


def _safe(text: object, most: int = 40) -> str:
    """The text of a token as plotly shows it as it is: no tags, no line breaks, a leading space visible, not too long."""
    shown = str(text).replace("\n", "\\n").replace("\t", "\\t")
    shown = "␣" + shown[1:] if shown.startswith(" ") else shown
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _check(
    values: Tensor, rows: Sequence[str], columns: Sequence[str], names: Sequence[str], tokens: Sequence[str] | None
) -> None:
    shape, asked = list(values.shape), [len(rows), len(columns), len(names)]
    if shape != asked:
        raise ValueError(
            f"values have shape {shape}; the names are of {asked} (rows, columns, panels): one name for each."
        )
    if 0 in shape:
        raise ValueError(f"values have shape {shape}: there is nothing to draw.")
    if tokens is not None and (isinstance(tokens, str) or len(tokens) != len(columns)):
        raise ValueError(
            f"tokens are the text of each of the {len(columns)} columns, as a list: model.to_str_tokens(prompt)."
        )
    if not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise ValueError(f"{bad} of the values are NaN or infinite; a heat map has no colour for them.")
