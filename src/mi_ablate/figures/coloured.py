"""Tokens as coloured text: a number a token, in one row or in one a layer, safe and legible for any token.

Blue is negative, orange positive, white zero (Okabe and Ito's colours, which colour-blind readers tell apart); the number
stands under each token and, in full, in its tooltip, so nothing is told by colour alone. Ink is black or white, whichever
contrasts more with the colour, hence at least 4.5 : 1. Spaces and line ends are drawn (``␣``, ``↵``), and characters
that would be invisible, or would turn the text around them, are named (``⟨U+202E⟩``).

It misleads where one token is far above the others, as the first of a language model often is: give ``limit``.
"""

import hashlib
import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

NEGATIVE, POSITIVE, MISSING = (0, 114, 178), (213, 94, 0), (224, 224, 224)
LONG = 24
"""Characters of a token that are drawn; the tooltip has more."""
_TINY = 1e-5
"""Of the full colour: what is smaller is printed as 0.00, which rounding alone makes of an exact zero."""
_NAMED = {" ": "␣", "\n": "↵", "\t": "⇥"}
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")
_STYLE = """
.mi-tokens { background: #ffffff; color: #1d1d1f; padding: 4px 6px; font: 14px/1.3 ui-monospace, Menlo, Consolas, monospace; }
.mi-tokens p { margin: 0 0 6px; max-width: none; font: 600 14px/1.4 system-ui, sans-serif; }
.mi-tokens .row { display: flex; gap: 8px; align-items: flex-start; margin: 0 0 8px; }
.mi-tokens .name { flex: 0 0 auto; min-width: 4.5em; padding-top: 4px;
  font: 600 12px/1.3 system-ui, sans-serif; color: #5c5c61; }
.mi-tokens ol { display: flex; flex-wrap: wrap; gap: 3px; margin: 0; padding: 0; list-style: none; min-width: 0; }
.mi-tokens li { display: inline-flex; flex-direction: column; align-items: center; border-radius: 3px; padding: 2px 5px;
  border: 1px solid #c9c9ce; max-width: 100%; }
.mi-tokens bdi { overflow-wrap: anywhere; white-space: pre-wrap; }
.mi-tokens small { font: 11px/1.2 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.mi-tokens .scale { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; font: 12px/1.3 system-ui, sans-serif; }
.mi-tokens .bar { width: 160px; height: 12px; border: 1px solid #c9c9ce; }
"""


@dataclass(frozen=True)
class TokenPicture:
    """Coloured tokens: shows itself in a notebook without network or script, or as a fragment of a page."""

    body: str
    """HTML, everything in it escaped."""
    label: str
    """One line for screen readers."""
    kind = "tokens"

    def fragment(self, ident: str | None = None) -> tuple[str, bool]:
        """Return the HTML of the picture, and that it needs no bundle.

        Args:
            ident: the id of the element; made from the content by default.

        """
        ident = ident or "tokens-" + hashlib.sha256(self.body.encode()).hexdigest()[:12]
        group = f'<div id="{html.escape(ident)}" class="mi-tokens" role="group" aria-label="{html.escape(self.label)}">'
        return f"<style>{_STYLE}</style>{group}\n{self.body}\n</div>", False

    def _repr_html_(self) -> str:
        return self.fragment()[0]

    def __repr__(self) -> str:
        return f"TokenPicture({self.label})"


def tokens(
    values: Float[Tensor, " p"] | Float[Tensor, "layer p"],
    tokens: Sequence[str],
    names: Sequence[str] | None = None,
    *,
    label: str = "value",
    title: str = "",
    limit: int | float | None = None,
) -> TokenPicture:
    """Return tokens coloured by a number each.

    Args:
        values: ``[p]``, or ``[layer p]`` for several rows of the same tokens; NaN has no colour (padding).
        tokens: the text of each position; anything is safe.
        names: of the rows; "layer 0", "layer 1", ... by default, and none for one row.
        label: what the numbers are, with their unit: "coordinate along the first direction (units of the stream)".
        title: one line above.
        limit: the absolute value of the full colours; the largest one by default. Values beyond it get the full colour.

    Raises:
        ValueError: shapes that do not fit, infinite values, a limit that is not positive.

    """
    if isinstance(tokens, str):
        raise ValueError("tokens is one string; give a list with the text of each position.")
    rows = values.detach().double().cpu()
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != len(tokens) or not rows.numel():
        raise ValueError(
            f"values has shape {list(values.shape)}; [p] or [layer p] for p = {len(tokens)} tokens is needed."
        )
    if rows.isinf().any():
        raise ValueError(
            f"values has {int(rows.isinf().sum())} infinite entries, which have no colour. NaN is left white."
        )
    if limit is not None and not limit > 0:
        raise ValueError(f"limit={limit} must be positive: the absolute value of the full colours.")
    if names is None:
        names = [f"layer {i}" for i in range(len(rows))] if len(rows) > 1 else [""]
    if len(names) != len(rows):
        raise ValueError(f"There are {len(rows)} rows but {len(names)} names: one name for each row.")
    full = float(limit or rows.nan_to_num(0.0).abs().max()) or 1.0
    shown = [clipped(visible(str(token))) for token in tokens]
    lines = [f"<p>{html.escape(visible(title, spaces=False))}</p>"] if title else []
    for name, row in zip(names, rows.tolist()):
        named = f'<span class="name">{html.escape(visible(str(name), spaces=False))}</span>' if str(name) else ""
        items = "".join(_token(i, shown[i], str(name), value, full) for i, value in enumerate(row))
        lines.append(f'<div class="row">{named}<ol>{items}</ol></div>')
    label = visible(label, spaces=False)
    beyond = bool((rows.nan_to_num(0.0).abs() > full).any())
    lines.append(_scale(full, label, beyond))
    return TokenPicture("\n".join(lines), f"{len(tokens)} tokens coloured by {label}")


def visible(text: str, *, spaces: bool = True) -> str:
    """Return text with whitespace drawn and characters that nobody would see, or that turn the text, named.

    Args:
        text: of a token, or any other.
        spaces: draw ordinary spaces too, as tokens need and sentences do not.

    """
    out = []
    for i, char in enumerate(text):
        kind = unicodedata.category(char)
        joins = char == "\u200d" and 0 < i < len(text) - 1 and unicodedata.category(text[i + 1]) == "So"
        if char == " " and not spaces:
            out.append(char)
        elif char in _NAMED:
            out.append(_NAMED[char])
        elif kind in _HIDDEN and not joins:
            out.append(f"⟨U+{ord(char):04X}⟩")
        else:
            out.append("◌" + char if i == 0 and kind.startswith("M") else char)
    return "".join(out) or ("⟨empty⟩" if spaces else "")


def clipped(text: str) -> tuple[str, str]:
    """Return what is drawn of a token, and what its tooltip says: long ones are cut."""
    more = f"… ({len(text)} characters)"
    return (text if len(text) <= LONG else text[: LONG - 1] + "…"), (text if len(text) <= 200 else text[:200] + more)


def _token(i: int, text: tuple[str, str], name: str, value: float, full: float) -> str:
    missing = value != value
    number = "–" if missing else _number(value if abs(value) > _TINY * full else 0.0)
    colour = MISSING if missing else colour_of(value, full)
    ink = ink_on(colour)
    where = f"{visible(name, spaces=False)}, position {i}: " if name else f"position {i}: "
    said = html.escape(f"{where}{text[1]} {'no value' if missing else f'{value:+.6g}'}")
    style = f"background:#{_hex(colour)};color:#{_hex(ink)}"
    return f'<li style="{style}" title="{said}"><bdi>{html.escape(text[0])}</bdi><small>{number}</small></li>'


def _number(value: float) -> str:
    """Three digits, so that a column of them stays narrow."""
    if value == 0:
        return "0.00"
    text = f"{value:+.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
    return text if 0.005 <= abs(value) < 1e5 else f"{value:+.0e}"


def colour_of(value: int | float, full: int | float) -> tuple[int, int, int]:
    """Return red, green and blue of a value: white at 0, a full colour from ``full`` on."""
    share = min(1.0, abs(value) / full)
    end = POSITIVE if value > 0 else NEGATIVE
    red, green, blue = (round(255 + (c - 255) * share) for c in end)
    return red, green, blue


def ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever has the higher contrast (WCAG 2) with a colour."""
    return (0, 0, 0) if (luminance(colour) + 0.05) ** 2 >= 1.05 * 0.05 else (255, 255, 255)


def luminance(colour: tuple[int, int, int]) -> float:
    """Return the relative luminance of WCAG 2, from 0 (black) to 1 (white)."""
    parts = [c / 255 for c in colour]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _hex(colour: tuple[int, int, int]) -> str:
    return "".join(f"{c:02x}" for c in colour)


def _scale(full: float, label: str, beyond: bool) -> str:
    steps = ",".join(f"#{_hex(colour_of(full * x, full))}" for x in (-1, -0.5, 0, 0.5, 1))
    said = "; values beyond the ends have the full colour" if beyond else ""
    bar = f'<span class="bar" style="background:linear-gradient(to right,{steps})"></span>'
    ends = f"<span>{_number(-full)}</span>{bar}<span>{_number(full)}</span>"
    return f'<div class="scale">{ends}<span>{html.escape(label)}{said}</span></div>'
