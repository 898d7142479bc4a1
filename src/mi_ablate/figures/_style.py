"""What the figures share: colours that colour-blind readers can tell apart, the layout, and its narrow form.

``layout.meta`` holds two sets of plotly layout changes, "wide" and "narrow"; `mi_ablate.report` applies the
one that fits the screen and sets the title as text above the figure. Elsewhere the figure shows its wide
form.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

from torch import Tensor

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours, without black and yellow."""
GREY = "#767676"
INK = "#222222"
TITLE_WIDTH = 80


def numbers(values: Tensor | Sequence[Any]) -> list[Any]:
    """Return plain Python numbers, which plotly writes as they are."""
    if isinstance(values, Tensor):
        return values.detach().cpu().tolist()
    return [v.item() if hasattr(v, "item") else v for v in values]


def faint(colour: str, alpha: float) -> str:
    """Return a ``#rrggbb`` colour as rgba with this opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def ordered(count: int) -> list[str]:
    """Return as many ``#rrggbb`` colours, from dark to light, the last still to be seen on white."""
    from plotly.colors import sample_colorscale

    rgb = sample_colorscale("Viridis", [0.9 * i / max(1, count - 1) for i in range(count)], colortype="tuple")
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in rgb]


def wrap(text: str, width: int) -> str:
    """Return ``text`` in lines of at most ``width`` characters, broken as plotly breaks lines."""
    return "<br>".join(line for part in text.split("<br>") for line in (textwrap.wrap(part, width) or [""]))


def finish(
    figure: Any,
    title: str | None,
    *,
    height: int,
    margin: dict[str, int],
    wide: dict[str, Any],
    narrow: dict[str, Any],
) -> Any:
    """Set the layout that all figures share and return the figure.

    Args:
        figure: a plotly Figure with its traces.
        title: one sentence.
        height: in pixels, without the title.
        margin: in pixels, without the title.
        wide: layout changes, as `plotly.js` ``relayout`` takes them, on a wide screen.
        narrow: the same on a screen under 700 pixels; every key of either set is in both.

    """
    wide = {"height": height, "margin": margin, **wide}
    narrow = {"height": height, "margin": margin, **narrow}
    if set(wide) != set(narrow):
        raise ValueError(f"The wide and the narrow layout change different keys: {sorted(set(wide) ^ set(narrow))}.")
    figure.update_layout(
        template="plotly_white",
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13, "color": INK},
        hoverlabel={"align": "left", "namelength": -1},
        meta={"wide": wide, "narrow": narrow},
    )
    for key, value in wide.items():
        figure.layout[key] = value
    if title:
        text = wrap(title, TITLE_WIDTH)
        room = 24 * (text.count("<br>") + 1) + 16
        place = {
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "xref": "container",
            "yref": "container",
        }
        figure.update_layout(title={"text": text, "font": {"size": 16}, "pad": {"l": 12, "t": 20}, **place})
        figure.update_layout(height=wide["height"] + room, margin={"t": wide["margin"]["t"] + room})
    return figure


def menu(buttons: list[dict[str, Any]]) -> dict[str, Any]:
    """Return buttons in a row at the top left of the plot, for ``updatemenus``."""
    place = {"x": 0, "y": 1.01, "xanchor": "left", "yanchor": "bottom", "pad": {"t": 0, "b": 4}}
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "showactive": True,
        "font": {"size": 11},
        **place,
    }
