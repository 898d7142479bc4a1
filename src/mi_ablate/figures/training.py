"""Training curves: accuracy and loss of many runs against the step, one colour a configuration.

A history row is: step, train loss, train accuracy, held-out loss, held-out accuracy (`toys.evaluation`). Nothing is computed
but medians over seeds, at the steps that all of them have. Histories hold losses to six decimals, so that smaller ones are 0
and leave the logarithmic axis at its lower edge.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mi_ablate._types import nearest
from mi_ablate.figures._style import INK, PALETTE, faint, finish, menu, ordered, wrap
from mi_ablate.toys.settings import differing, flat, shown

_PANELS = (("accuracy", ("held-out", 4), ("train", 2)), ("loss", ("held-out", 3), ("train", 1)))
_DASH = {"held-out": "solid", "train": "dot"}
_READ = "solid: held-out pairs; dotted: training pairs; "
_READ_RUNS = ("triangle: grok step", "thin: one run; thick: median over seeds; triangle: a run's grok step")
_GROK_HEIGHT = 1.045


class _Group(NamedTuple):
    """The runs of one colour."""

    name: str
    colour: str
    runs: list[Mapping[str, Any]]


def training_curves(records: Sequence[Mapping[str, Any]], by: str = "config", title: str | None = None) -> Any:
    """Return the plotly figure of the training histories of these records.

    Above, accuracy, held-out (solid) and on the training pairs (dotted); below, loss on a logarithmic axis. Thin lines
    are runs, thick ones the median over the seeds of a configuration, at the steps that all of them have. Triangles
    mark grok steps.
    The buttons make the axis of steps linear or logarithmic; a click on the legend hides a colour.

    Args:
        records: as `mi_ablate.sweep` writes them. Cells that failed have no history and are left out.
        by: what has a colour of its own: "config", every configuration, or each value of one setting, such as
            "weight_decay", "config.n_layers" or "seed".
        title: one sentence above the figure.

    Raises:
        ValueError: no record with a history, or a setting that the records do not have.

    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    groups = _groups(records, by)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.56, 0.44])
    for rank, group in enumerate(groups, 1):
        for panel, row in enumerate(_PANELS, 1):
            for trace in _lines(group, row, rank):
                figure.add_trace(go.Scatter(**trace), row=panel, col=1)
    for group in groups:
        figure.add_trace(go.Scatter(**_groks(group)), row=1, col=1)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    figure.update_yaxes(title="accuracy", range=[-0.03, 1.09], tickvals=ticks, zeroline=False, row=1, col=1)
    figure.update_yaxes(title="loss", type="log", exponentformat="e", zeroline=False, row=2, col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_xaxes(title="training step", row=2, col=1)
    figure.update_layout(hovermode="closest", updatemenus=[_buttons()])
    figure.update_layout(legend={"xanchor": "left", "yanchor": "top", "tracegroupgap": 0})
    figure.update_layout(legend={"title": {"font": {"size": 12}, "side": "top"}, "font": {"color": INK}})
    wide, narrow = _legends(groups)
    return finish(figure, title, height=560, margin={"l": 65, "r": 15, "t": 45, "b": 55}, wide=wide, narrow=narrow)


def _groups(records: Sequence[Mapping[str, Any]], by: str) -> list[_Group]:
    runs = [record for record in records if record.get("metrics", {}).get("training", {}).get("history")]
    if not runs:
        raise ValueError(f"None of the {len(records)} records has a training history; failed cells have none.")
    settings = [{"seed": run["seed"], **flat(run["config"])} for run in runs]
    if by == "config":
        names = differing([flat(run["config"]) for run in runs])
    elif any(by in one for one in settings):
        names = [by]
    else:
        raise ValueError(f"{by!r} is no setting of these records. {nearest(by, ['config', *settings[0]])}")
    members: dict[tuple[Any, ...], list[int]] = {}
    for number, one in enumerate(settings):
        members.setdefault(tuple(_sortable(one.get(name)) for name in names), []).append(number)
    keys = sorted(members)
    groups = []
    for key, colour in zip(keys, _colours(len(keys))):
        own = [runs[number] for number in members[key]]
        groups.append(_Group(_label(names, settings[members[key][0]], own), colour, own))
    return groups


def _sortable(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then texts; equal for equal settings."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (not number, float(value) if number else 0.0, "" if number else shown(value))


def _label(names: Sequence[str], settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    told = ", ".join(f"{name.removeprefix('config.')} {shown(settings.get(name))}" for name in names)
    grokked = sum(_training(run).get("grok_step") is not None for run in runs)
    counts = f"{len(runs)} run{'s' * (len(runs) > 1)}, {grokked} grokked"
    return f"{wrap(told, 34)}<br>{counts}" if told else counts


def _colours(count: int) -> Sequence[str]:
    """The palette, or where it has too few colours a scale from dark to light."""
    return PALETTE[:count] if count <= len(PALETTE) else ordered(count)


def _training(run: Mapping[str, Any]) -> Mapping[str, Any]:
    training: Mapping[str, Any] = run["metrics"]["training"]
    return training


def _lines(group: _Group, panel: tuple[Any, ...], rank: int) -> Iterator[dict[str, Any]]:
    """The runs of one panel, then the medians, so that these lie above; the first held-out median is in the legend."""
    quantity, *sets = panel
    shared = {"mode": "lines", "legendgroup": group.name, "legendrank": rank}
    same = _configurations(group.runs)
    for where, column in reversed(sets):
        for run in (run for runs in same if len(runs) > 1 for run in runs):
            history = _training(run)["history"]
            yield shared | {
                "x": [row[0] for row in history],
                "y": [row[column] for row in history],
                "name": f"{group.name}, seed {run['seed']}, {where} {quantity}",
                "line": {"color": faint(group.colour, 0.35), "width": 1, "dash": _DASH[where]},
                "showlegend": False,
                "hovertemplate": _hover(run, f"seed {run['seed']}", group.name, where, quantity),
            }
    for where, column in reversed(sets):
        for number, runs in enumerate(same):
            steps, values = _median(runs, column)
            first = quantity == "accuracy" and where == "held-out" and number == 0
            what = f"median of {len(runs)} runs" if len(runs) > 1 else f"seed {runs[0]['seed']}"
            yield shared | {
                "x": steps,
                "y": values,
                "name": group.name if first else f"{group.name}, {where} {quantity}",
                "line": {"color": group.colour, "width": 2.5 if where == "held-out" else 1.6, "dash": _DASH[where]},
                "showlegend": first,
                "hovertemplate": _hover(runs[0], what, group.name, where, quantity),
            }


def _configurations(runs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The runs in groups that differ in the seed alone."""
    same: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        same.setdefault(run["config_hash"], []).append(run)
    return list(same.values())


def _hover(run: Mapping[str, Any], what: str, name: str, where: str, quantity: str) -> str:
    value = "%{y:.4f}" if quantity == "accuracy" else "%{y:.3g}"
    head = f"<b>{name}</b><br>configuration {run['config_hash']}, {what}"
    return f"{head}<br>step %{{x:,}}<br>{where} {quantity} {value}<extra></extra>"


def _median(runs: Sequence[Mapping[str, Any]], column: int) -> tuple[list[int], list[float]]:
    """The median over runs at the steps that all of them have."""
    curves = [{row[0]: row[column] for row in _training(run)["history"]} for run in runs]
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return steps, [statistics.median(curve[step] for curve in curves) for step in steps]


def _groks(group: _Group) -> dict[str, Any]:
    runs = [run for run in group.runs if _training(run).get("grok_step") is not None]
    return {
        "x": [_training(run)["grok_step"] for run in runs],
        "y": [_GROK_HEIGHT] * len(runs),
        "customdata": [run["seed"] for run in runs],
        "name": f"{group.name}, grok steps",
        "legendgroup": group.name,
        "showlegend": False,
        "mode": "markers",
        "marker": {"symbol": "triangle-down", "size": 9, "color": group.colour},
        "cliponaxis": False,
        "hovertemplate": f"<b>{group.name}</b><br>seed %{{customdata}}<br>grok step %{{x:,}}<extra></extra>",
    }


def _buttons() -> dict[str, Any]:
    buttons = []
    for kind in ("linear", "log"):
        change: dict[str, Any] = {f"{axis}.type": kind for axis in ("xaxis", "xaxis2")}
        change |= {f"{axis}.autorange": True for axis in ("xaxis", "xaxis2")}
        buttons.append({"label": f"steps: {kind}", "method": "relayout", "args": [change]})
    return menu(buttons)


def _legends(groups: Sequence[_Group]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The legend, with what the lines mean as its title: right of the plot, or below it."""
    beside = {"orientation": "v", "x": 1.02, "y": 1}
    below = {"orientation": "h", "x": 0, "y": -0.14}
    wide, narrow = ({f"legend.{key}": value for key, value in place.items()} for place in (beside, below))
    text = _READ + _READ_RUNS[any(len(runs) > 1 for group in groups for runs in _configurations(group.runs))]
    wide |= {"legend.title.text": wrap(text, 36)}
    narrow |= {"legend.title.text": wrap(text, 52), "height": 560 + 40 + 24 * len(groups)}
    return wide, {**narrow, "margin": {"l": 50, "r": 10, "t": 45, "b": 55}}
