"""Attention of every head by circuitsvis: offline, safe for any token text, one bundle for many pictures.

circuitsvis writes its 1.3 MB bundle (or a link to a CDN) into each picture, takes token text into a script
unescaped, and checks neither shapes nor NaN. Here the shapes are checked, the values rounded to four
digits, every ``<`` escaped, and the bundle is kept apart: `mi_ablate.report.page` writes it once.
"""

import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_CALL = re.compile(r"AttentionHeads,\s*(\{.*\})\s*\)\s*</script>", re.DOTALL)


@dataclass(frozen=True)
class AttentionPicture:
    """A circuitsvis picture: shows itself in a notebook without network, or as a fragment of a page."""

    props: str
    """What circuitsvis draws: JSON with every ``<`` escaped."""
    label: str
    """One line for screen readers."""

    def fragment(self, ident: str | None = None) -> tuple[str, bool]:
        """Return the HTML of the picture and whether it needs `bundle` earlier on the page (it does).

        Args:
            ident: the id of the element. By default it is made from the content, so that two equal pictures
            on one
                page need ids of their own.

        """
        ident = ident or "attention-" + hashlib.sha256(self.props.encode()).hexdigest()[:12]
        label = f'role="group" aria-label="{html.escape(self.label)}"'
        element = f'<div id="{html.escape(ident)}" class="attention" {label}></div>'
        call = f"CircuitsVis.render({_script_text(ident)}, CircuitsVis.AttentionHeads, {self.props});"
        return f"{element}\n<script>{call}</script>", True

    def _repr_html_(self) -> str:
        load = f"window.CircuitsVis ||= (() => {{{bundle()}\nreturn CircuitsVis;}})();"
        return f"<script>{load}</script>\n{self.fragment()[0]}"

    def __repr__(self) -> str:
        return f"AttentionPicture({self.label})"


def attention(
    patterns: Float[Tensor, "*head query key"], tokens: Sequence[str], names: Sequence[str] | None = None
) -> AttentionPicture:
    """Return the attention patterns of all heads as a circuitsvis picture.

    Args:
        patterns: ``[head query key]`` of one prompt, such as ``cache["pattern", 0][0]``. Values after the
            query are hidden where all are 0 (a causal model) and shown where they are not.
        tokens: the text of each position: ``model.to_str_tokens(prompt)``, or ``["5", "9", "="]`` for a toy.
        names: of the heads; "head 0", "head 1", ... by default.

    """
    import circuitsvis

    values = _checked(patterns, tokens)
    heads = [f"head {i}" for i in range(len(values))] if names is None else [str(name) for name in names]
    if len(heads) != len(values):
        raise ValueError(f"There are {len(values)} heads but {len(heads)} names: one name for each head.")
    causal = not values.triu(1).any()
    rounded = [[[round(v, 4) for v in row] for row in head] for head in values.tolist()]
    drawn = circuitsvis.attention.attention_heads(rounded, [str(t) for t in tokens], heads, mask_upper_tri=causal)
    props = _CALL.search(drawn.cdn_src)
    if props is None:
        raise RuntimeError(
            f"circuitsvis {circuitsvis.__version__} writes its pictures differently; mi_ablate knows 1.43.3."
        )
    label = f"attention of {len(heads)} heads over {len(tokens)} tokens"
    return AttentionPicture(props.group(1).replace("<", "\\u003c"), label)


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
    import json

    return json.dumps(text).replace("<", "\\u003c")
