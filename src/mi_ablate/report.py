"""One self-contained HTML page: text, tables, plotly figures and circuitsvis attention, readable offline.

plotly.js and the circuitsvis bundle are each written once, and only where a section needs them; a content
security policy forbids every request to the network. The same sections give the same bytes.

>>> section = Section("Removal", "One curve.", [curve.plot(), curve])   # doctest: +SKIP
>>> page("report.html", "Which directions hold the answer?", [section])   # doctest: +SKIP
"""

import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from mi_ablate._files import replace
from mi_ablate._page import DRAW, PAGE, STYLE
from mi_ablate.figures.tables import html_table, inline

CONTENTS_FROM = 4
"""A page with at least this many sections has a table of contents."""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and what they are about."""

    heading: str
    text: str = ""
    """Paragraphs, parted by empty lines; `` `code` `` is set as code, all else is shown as typed."""
    content: Sequence[Any] = ()
    """In order: plotly figures, `mi_ablate.figures.attention` and ``tokens`` pictures, tables (a list of row dicts, or an
    object with ``.table()`` such as an Effect), and strings (paragraphs like ``text``)."""


def page(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    footer: Mapping[str, Any] | str | None = None,
) -> Path:
    """Write the page atomically and return its path.

    Args:
        path: where to; ends in .html.
        title: of the page.
        sections: in order.
        footer: how the page was made, such as ``{"command": "mi-ablate demo", "torch": "2.13"}``, or a text.

    Raises:
        TypeError: content that is neither text, table nor figure.
        ValueError: a path that does not end in .html.

    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"A page is written as .html; write {str(path) + '.html'!r} instead of {str(path)!r}.")
    odd = next((s for s in sections if not isinstance(s, Section)), None)
    if odd is not None:
        raise TypeError(
            f"sections holds a {type(odd).__name__}; a page takes Section('heading', 'text', [content, ...])."
        )
    parts = _Parts()
    bodies = [_section(parts, i, section) for i, section in enumerate(sections, 1)]
    contents = ""
    if len(bodies) >= CONTENTS_FROM:
        links = "".join(
            f'<li><a href="#section-{i}">{html.escape(s.heading)}</a></li>' for i, s in enumerate(sections, 1)
        )
        contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>'
    values = {
        "title": html.escape(title),
        "style": STYLE,
        "scripts": _scripts(parts),
        "contents": contents,
        "sections": "\n".join(bodies),
        "footer": _footer(footer),
    }
    return replace(path, Template(PAGE).substitute(values).encode("utf-8", "backslashreplace"))


class _Parts:
    """Counts the figures of a page, for their ids and for the scripts that they need."""

    def __init__(self) -> None:
        self.plotly = 0
        self.pictures: Counter[str] = Counter()
        self.bundled = False


def _section(parts: _Parts, number: int, section: Section) -> str:
    if not isinstance(section.content, list | tuple):
        what = type(section.content).__name__
        raise TypeError(f"Section {section.heading!r} has a {what} as its content; give a list: [figure, rows].")
    items = [_item(parts, item, section.heading) for item in section.content]
    inside = "\n".join([_paragraphs(section.text), *items])
    return f'<section id="section-{number}">\n<h2>{html.escape(section.heading)}</h2>\n{inside}\n</section>'


def _item(parts: _Parts, item: Any, heading: str) -> str:
    if isinstance(item, str):
        return _paragraphs(item)
    if hasattr(item, "fragment"):
        parts.pictures[item.kind] += 1
        inside, bundled = item.fragment(f"{item.kind}-{parts.pictures[item.kind]}")
        parts.bundled |= bundled
        return f"<figure>{inside}</figure>"
    if hasattr(item, "to_plotly_json") and hasattr(item, "layout"):
        parts.plotly += 1
        return _plotly(item, f"figure-{parts.plotly}")
    if hasattr(item, "table"):
        item = item.table()
    if isinstance(item, Sequence) and all(isinstance(row, Mapping) for row in item):
        return html_table(item)
    what = type(item).__name__
    raise TypeError(
        f"Section {heading!r} holds a {what}. A page shows text, a list of row dicts, an object with "
        ".table(), a plotly Figure, or mi_ablate.figures.attention(...)."
    )


def _plotly(figure: Any, ident: str) -> str:
    """The figure with its title as text above it, which wraps on every screen."""
    drawn = json.loads(figure.to_json())
    title = html.escape(re.sub(r"\s*<[^>]*>\s*", " ", drawn["layout"].pop("title", {}).get("text", "")))
    caption = f"<figcaption>{title}</figcaption>" if title else ""
    data = json.dumps(drawn, sort_keys=True).replace("<", "\\u003c")
    box = f'<div id="{ident}" role="group" aria-label="{title or "figure"}"></div>'
    return f'<figure>{caption}{box}\n<script>draw("{ident}", {data});</script></figure>'


def _paragraphs(text: str) -> str:
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    return "\n".join(f"<p>{inline(block)}</p>" for block in blocks)


def _footer(footer: Mapping[str, Any] | str | None) -> str:
    if not footer:
        return ""
    if isinstance(footer, str):
        return f"<footer>{_paragraphs(footer)}</footer>"
    pairs = "".join(
        f"<dt>{html.escape(str(k))}</dt><dd><code>{html.escape(str(v))}</code></dd>" for k, v in footer.items()
    )
    return f"<footer><dl>{pairs}</dl></footer>"


def _scripts(parts: _Parts) -> str:
    """The bundles that the page needs, each once."""
    scripts = []
    if parts.plotly:
        from plotly.offline import get_plotlyjs

        scripts += [get_plotlyjs().replace("</script", "<\\/script"), DRAW]
    if parts.bundled:
        from mi_ablate.figures.heads import bundle

        scripts.append(bundle())
    return "\n".join(f"<script>{script}</script>" for script in scripts)
