"""Progress along training: losses of what is kept and removed, structure, and the phases between them.

Rows come from `mi_ablate.modular.progress_row` (live or `mi_ablate.toys.watch.along`); nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mi_ablate.figures._style import GREY, PALETTE, faint, finish, menu

_LOSSES = (
    ("train_loss", "training pairs", PALETTE[0], "dot"),
    ("test_loss", "held-out pairs", PALETTE[0], "solid"),
    ("restricted_nanda_colab", "restricted: key frequencies alone", PALETTE[2], "solid"),
    ("excluded_nanda_text", "excluded: without them, training pairs", PALETTE[1], "solid"),
)
_SHARES = (
    ("test_accuracy", "held-out accuracy", PALETTE[0], "solid"),
    ("cosine_fve", "logits: share in cos w(a+b-c)", PALETTE[2], "solid"),
    ("share_W_E", "W_E: share of the key frequencies", PALETTE[5], "solid"),
    ("gini_W_E", "W_E: Gini coefficient", PALETTE[5], "dot"),
    ("circularity", "circularity", PALETTE[3], "solid"),
    ("distance_irrelevance", "distance irrelevance", PALETTE[3], "dot"),
    ("gradient_symmetricity", "gradient symmetricity", PALETTE[1], "dot"),
)
_WEIGHTS = (("weights", "sum of squared weights", PALETTE[4], "solid"),)
_PHASES = (("memorisation", "memorisation"), ("circuit_formation", "circuit formation"), ("cleanup", "cleanup"))


def training_progress(
    rows: Sequence[Mapping[str, Any]], phases: Mapping[str, Any] | None = None, title: str | None = None
) -> Any:
    """Return the plotly figure of a run's progress measures: losses, shares and weights against the step.

    Args:
        rows: as `mi_ablate.modular.progress_row` gives them, in the order of steps.
        phases: as `mi_ablate.modular.phases` gives them; each is shaded up to its last step.
        title: one sentence above the figure.

    Raises:
        ValueError: no rows.

    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if not rows:
        raise ValueError("There is no row to draw; training_progress takes the rows of a run's checkpoints.")
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=[0.45, 0.35, 0.2])
    steps = [row["step"] for row in rows]
    for panel, (group, lines) in enumerate((("loss", _LOSSES), ("share", _SHARES), ("weights", _WEIGHTS)), 1):
        for name, label, colour, dash in lines:
            if name not in rows[0]:
                continue
            trace = go.Scatter(
                x=steps, y=[row[name] for row in rows], name=label, mode="lines+markers", marker={"size": 4},
                legendgroup=group, legendgrouptitle={"text": group},
                line={"color": colour, "width": 2, "dash": dash},
                hovertemplate=f"<b>{label}</b><br>step %{{x:,}}<br>%{{y:.4g}}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(trace, row=panel, col=1)
    start = steps[0]
    for shade, (name, label) in zip((0.05, 0.12, 0.2), _PHASES):
        end = (phases or {}).get(name)
        if end is None:
            continue
        note = {
            "annotation_text": label,
            "annotation_position": "top left",
            "annotation_font": {"size": 11, "color": GREY},
        }
        figure.add_vrect(
            x0=start, x1=end, fillcolor=faint(GREY, shade), line_width=0, layer="below", row=1, col=1, **note
        )
        figure.add_vrect(x0=start, x1=end, fillcolor=faint(GREY, shade), line_width=0, layer="below", row=2, col=1)
        start = end
    figure.update_yaxes(title="loss", type="log", exponentformat="e", row=1, col=1)
    figure.update_yaxes(title="share", range=[-0.15, 1.05], row=2, col=1)
    figure.update_yaxes(title="weights", rangemode="tozero", row=3, col=1)
    figure.update_xaxes(title="training step", row=3, col=1)
    scales = [{"label": f"steps: {kind}", "method": "relayout", "args": [_axis(kind)]} for kind in ("linear", "log")]
    figure.update_layout(hovermode="closest", updatemenus=[menu(scales)])
    figure.update_layout(legend={"xanchor": "left", "yanchor": "top", "tracegroupgap": 6, "groupclick": "toggleitem"})
    wide = {"legend.orientation": "v", "legend.x": 1.02, "legend.y": 1}
    narrow = {"legend.orientation": "h", "legend.x": 0, "legend.y": -0.1}
    return finish(figure, title, height=640, margin={"l": 65, "r": 15, "t": 45, "b": 55}, wide=wide, narrow=narrow)


def _axis(kind: str) -> dict[str, Any]:
    change: dict[str, Any] = {f"{axis}.type": kind for axis in ("xaxis", "xaxis2", "xaxis3")}
    return change | {f"{axis}.autorange": True for axis in ("xaxis", "xaxis2", "xaxis3")}
