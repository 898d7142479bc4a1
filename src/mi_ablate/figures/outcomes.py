"""An effect beside its controls: clean, edited and every draw of each control, with the variance that each removes."""

from typing import Any

from mi_ablate.effects import Effect, interval
from mi_ablate.figures._style import GREY, PALETTE, finish


def outcome(effect: Effect, title: str | None = None) -> Any:
    """Return the plotly figure of one `mi_ablate.Effect`: a row for each run.

    Bars of the clean and the edited run are 95 % intervals over examples (`mi_ablate.interval`); a control's points are its
    draws, each the mean over the same examples, since draws and examples vary for different reasons.

    Args:
        effect: what `mi_ablate.effect` returned.
        title: one sentence above the figure.

    """
    import plotly.graph_objects as go

    figure = go.Figure()
    names: list[str] = []
    for name, values, colour in (("clean", effect.clean, GREY), ("edited", effect.edited, PALETTE[0])):
        mean = float(values.mean())
        low, high = interval(values.tolist()) if len(values) > 1 else (mean, mean)
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [high - mean],
            "arrayminus": [mean - low],
            "thickness": 1.5,
        }
        names.append(_label(name, effect))
        figure.add_trace(
            go.Scatter(
                x=[mean],
                y=names[-1:],
                name=name,
                mode="markers",
                marker={"size": 11, "color": colour},
                error_x=bars,
                hovertemplate=f"{name} %{{x:.4f}} [{low:.4f}, {high:.4f}]<extra></extra>",
            )
        )
    for i, (name, draws) in enumerate(effect.controls.items()):
        means = draws.mean(1).tolist()
        names.append(_label(name, effect))
        figure.add_trace(
            go.Scatter(
                x=means,
                y=names[-1:] * len(means),
                name=name,
                mode="markers",
                marker={"size": 9, "color": PALETTE[(i + 1) % len(PALETTE)], "symbol": "line-ns-open"},
                hovertemplate=f"{name} %{{x:.4f}}<extra></extra>",
            )
        )
    figure.update_layout(
        showlegend=False,
        xaxis={"title": {"text": effect.metric}, "zeroline": False},
        yaxis={"categoryorder": "array", "categoryarray": names[::-1], "showgrid": True, "automargin": True},
    )
    height = 107 + 42 * len(names)
    return finish(figure, title, height=height, margin={"l": 20, "r": 20, "t": 32, "b": 55}, wide={}, narrow={})


def _label(name: str, effect: Effect) -> str:
    share = effect.variance_removed.get(name)
    return name if share is None or share != share else f"{name}<br><i>{share:.0%} of variance</i>"
