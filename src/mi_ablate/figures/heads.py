"""Attention of every head by circuitsvis: offline, safe for any token text, one bundle for many pictures.

circuitsvis writes its 1.3 MB bundle (or a link to a CDN) into each picture, takes token text into a script
unescaped, and checks neither shapes nor NaN. Here the shapes are checked, the values rounded to four
digits, every ``<`` escaped, what cannot be seen drawn, and the bundle is kept apart: `mi_ablate.report.page` writes it once.
"""

import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from jaxtyping import Float
from torch import Tensor

from mi_ablate.figures.coloured import clipped, visible

_CELLS = count(1)
"""Of a notebook: the same picture shown in two cells has an element in each."""
_CALL = re.compile(r"AttentionHeads,\s*(\{.*\})\s*\)\s*</script>", re.DOTALL)


_PAIR = """
.mi-pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.mi-pair > div { min-width: 0; overflow-x: auto; }
.mi-pair p { margin: 0 0 4px; font: 600 15px/1.4 system-ui, sans-serif; }
"""
_MIRROR = """
(() => {
  const boxes = IDS.map((id) => document.getElementById(id));
  let busy = false;
  const path = (root, node) => {
    const steps = [];
    for (; node !== root; node = node.parentNode) steps.unshift([...node.parentNode.children].indexOf(node));
    return steps;
  };
  const twin = (box, other, node) =>
    node instanceof Element && box.contains(node) ? path(box, node).reduce((at, i) => at && at.children[i], other) : null;
  boxes.forEach((box, i) => ["mouseover", "mouseout", "click"].forEach((kind) => box.addEventListener(kind, (event) => {
    const other = boxes[1 - i], to = twin(box, other, event.target);
    if (busy || !to) return;
    busy = true;
    const related = twin(box, other, event.relatedTarget);
    to.dispatchEvent(new MouseEvent(kind, {bubbles: true, cancelable: true, relatedTarget: related}));
    busy = false;
  })));
})();
"""
"""A head that is chosen on one side is chosen on the other."""


@dataclass(frozen=True)
class AttentionPicture:
    """A circuitsvis picture, or two beside each other: shows itself in a notebook without network, or in a page."""

    props: str
    """What circuitsvis draws: JSON with every ``<`` escaped."""
    label: str
    """One line for screen readers."""
    against: str | None = None
    """The same of the second picture."""
    titles: tuple[str, str] = ("clean", "edited")
    """Above each of two pictures."""
    kind = "attention"

    def fragment(self, ident: str | None = None) -> tuple[str, bool]:
        """Return the HTML of the picture and whether it needs `bundle` earlier on the page (it does).

        Args:
            ident: the id of the element; made from the content by default, so that two equal pictures on one page need
                ids of their own. Of two pictures, the second one's ends in "-against".

        """
        both = self.props + (self.against or "")
        ident = ident or "attention-" + hashlib.sha256(both.encode()).hexdigest()[:12]
        if self.against is None:
            return self._one(ident, self.props, self.label), True
        idents = (ident, f"{ident}-against")
        sides = [
            f"<div><p>{html.escape(title)}</p>{self._one(name, props, f'{title}: {self.label}')}</div>"
            for name, props, title in zip(idents, (self.props, self.against), self.titles)
        ]
        mirror = _MIRROR.replace("IDS", f"[{', '.join(map(_script_text, idents))}]")
        return f'<style>{_PAIR}</style><div class="mi-pair">\n{"".join(sides)}\n</div>\n<script>{mirror}</script>', True

    def _one(self, ident: str, props: str, label: str) -> str:
        element = (
            f'<div id="{html.escape(ident)}" class="attention" role="group" aria-label="{html.escape(label)}"></div>'
        )
        call = f"CircuitsVis.render({_script_text(ident)}, CircuitsVis.AttentionHeads, {props});"
        return f"{element}\n<script>{call}</script>"

    def _repr_html_(self) -> str:
        load = f"window.CircuitsVis ||= (() => {{{bundle()}\nreturn CircuitsVis;}})();"
        return f"<script>{load}</script>\n{self.fragment(f'attention-cell-{next(_CELLS)}')[0]}"

    def __repr__(self) -> str:
        return f"AttentionPicture({self.label})"


def attention(
    patterns: Float[Tensor, "*head query key"],
    tokens: Sequence[str],
    names: Sequence[str] | None = None,
    against: Float[Tensor, "*others query key"] | None = None,
    titles: tuple[str, str] = ("clean", "edited"),
) -> AttentionPicture:
    """Return the attention patterns of all heads as a circuitsvis picture, or two runs beside each other.

    On a narrow screen the second is below the first. A head or token that is pointed at on one side is shown on both.

    Args:
        patterns: ``[head query key]`` of one prompt, such as ``cache["pattern", 0][0]``. Values after the
            query are hidden where all are 0 (a causal model) and shown where they are not.
        tokens: the text of each position: ``model.to_str_tokens(prompt)``, or ``["5", "9", "="]`` for a toy.
            Any text is safe; spaces and what cannot be seen are drawn, as by `mi_ablate.figures.tokens`.
        names: of the heads; "head 0", "head 1", ... by default.
        against: the same heads under an edit.
        titles: of the two pictures.

    Raises:
        ValueError: shapes that do not fit each other, values that are not finite.

    """
    values = _checked(patterns, tokens)
    heads = [f"head {i}" for i in range(len(values))] if names is None else [str(name) for name in names]
    if len(heads) != len(values):
        raise ValueError(f"There are {len(values)} heads but {len(heads)} names: one name for each head.")
    causal = not values.triu(1).any()
    label = f"attention of {len(heads)} heads over {len(tokens)} tokens"
    if against is None:
        return AttentionPicture(_props(values, tokens, heads, causal), label)
    others = _checked(against, tokens)
    if others.shape != values.shape:
        raise ValueError(
            f"patterns has {len(values)} heads and against has {len(others)}: give the same heads of both runs."
        )
    causal = causal and not others.triu(1).any()
    first, second = (_props(x, tokens, heads, causal) for x in (values, others))
    return AttentionPicture(first, label, second, titles)


def _props(values: Float[Tensor, "head query key"], tokens: Sequence[str], heads: list[str], causal: bool) -> str:
    """What circuitsvis makes of the patterns, as compact JSON."""
    import circuitsvis

    rounded = [[[round(v, 4) or 0 for v in row] for row in head] for head in values.tolist()]
    texts = [clipped(visible(str(t)))[0] for t in tokens]
    drawn = circuitsvis.attention.attention_heads(rounded, texts, heads, mask_upper_tri=causal)
    props = _CALL.search(drawn.cdn_src)
    if props is None:
        raise RuntimeError(
            f"circuitsvis {circuitsvis.__version__} writes its pictures differently; mi_ablate knows 1.43.3."
        )
    return json.dumps(json.loads(props.group(1)), separators=(",", ": ")).replace("<", "\\u003c")


def bundle() -> str:
    """Return the script that circuitsvis pictures need, without tags; it defines ``CircuitsVis``."""
    from importlib import resources

    text = resources.files("circuitsvis").joinpath("dist", "cdn", "iife.js").read_text(encoding="utf-8")
    text = text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return re.sub(r"\n//# sourceMappingURL=\S*\s*$", "\n", text)


def _checked(patterns: Tensor, tokens: Sequence[str]) -> Tensor:
    shape = list(patterns.shape)
    if patterns.ndim == 4:
        raise ValueError(f"patterns has shape {shape}, with a batch axis; give one prompt: patterns[0].")
    if patterns.ndim != 3:
        raise ValueError(f"patterns has shape {shape}; attention takes [head query key]. For one head: patterns[None].")
    if isinstance(tokens, str):
        raise ValueError(f"tokens is one string; give a list with the text of each of the {shape[-1]} positions.")
    if shape[1] != shape[2] or shape[1] != len(tokens):
        raise ValueError(f"patterns has {shape[1]} queries and {shape[2]} keys, but there are {len(tokens)} tokens.")
    if not len(tokens) or not shape[0]:
        raise ValueError(f"patterns has shape {shape}: there is nothing to draw.")
    values = patterns.detach().double().cpu()
    if not values.isfinite().all():
        bad = [int(i) for i in (~values.isfinite()).flatten(1).any(1).nonzero().flatten()]
        raise ValueError(f"patterns has values that are not finite in heads {bad}. Give patterns after the softmax.")
    return values


def _script_text(text: str) -> str:
    """A JavaScript string that is safe inside a script element."""
    return json.dumps(text).replace("<", "\\u003c")
