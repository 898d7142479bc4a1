"""The logit lens of components over the number tokens: what a head's or an MLP's output says of each number.

    logits[c, v] = mean over prompts of (what c adds to the residual stream) . N W_U[:, number v]

N is the final norm at each prompt's own scale, with its centring and weights ("frozen"), or nothing at all ("skipped", as in
the public notebooks of Kantamneni and Tegmark, arXiv 2502.00873). Biases of the norm and of W_U are no component's and are
left out. The layer and the head come from the component's name (that notebook took the head's number for the layer's).

When it misleads. Later layers read, erase and turn what early ones write, so an early component's lens is no claim about
the answer. Over prompts with different answers the mean shows what they share: give the prompts of one answer to see that
answer's rhythm. A constant over all numbers moves no answer against another.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.circuit.direct import readout
from mi_ablate.arithmetic.circuit.parts import Component, What, components_of, head_writes, wide
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.model import collect, last_residual


@dataclass(frozen=True, eq=False, repr=False)
class NumberLens:
    """Logits of the numbers by component."""

    components: tuple[Component, ...]
    values: Int[Tensor, " v"]
    """The numbers, ascending."""
    logits: Float[Tensor, "c v"]
    norm: str
    n: int
    """Prompts that the mean is over."""

    def table(self, top: int = 3) -> list[dict[str, Any]]:
        """Return one row a component: the numbers that it raises most, and the spread of its logits over the numbers."""
        best = self.logits.topk(min(top, len(self.values)), dim=1).indices
        spread = self.logits.std(1)
        return [
            {"component": c.name, "layer": c.layer, "head": c.head, "spread": float(s), "top": self.values[b].tolist()}
            for c, s, b in zip(self.components, spread, best)
        ]

    def __repr__(self) -> str:
        numbers = f"numbers {int(self.values[0])} to {int(self.values[-1])}"
        return f"NumberLens({len(self.components)} components, {numbers}, norm {self.norm}, n {self.n})"


def number_lens(
    model: HookedModel, problems: Problems, what: What = "heads", *, norm: str = "frozen", batch_size: int | None = None
) -> NumberLens:
    """Return the logit lens of components at the last position, over the numbers of ``problems.numerals``.

    Args:
        model: the model.
        problems: prompts; ``problems[rows]`` chooses some.
        what: the components, as in `component_effects`.
        norm: "frozen" (each prompt's own final norm) or "skipped".
        batch_size: rows a pass.

    Raises:
        ValueError: another norm. KeyError, IndexError: a component that the model does not have.

    """
    if norm not in ("frozen", "skipped"):
        raise ValueError(f"norm={norm!r} of the lens is 'frozen' (each prompt's own final scale) or 'skipped'.")
    components, last = components_of(model, what), last_residual(model)
    acts = collect(
        model, problems.tokens, [*dict.fromkeys([last, *(c.site for c in components)])], batch_size=batch_size
    )
    reader, base = readout(model, problems.tokens, acts[last]), acts[last]
    columns = wide(reader.model.unembed.W_U.detach()[:, problems.numerals.ids.to(base.device)])
    scale = reader.scale(base) if norm == "frozen" else None
    nothing = torch.zeros_like(base)
    found = []
    for c in components:
        x = wide(acts[c.site])
        x = x if c.head is None else head_writes(model, c, x[:, c.head])
        if scale is not None:
            x = wide(reader.normed(x.to(base.dtype), scale)) - wide(reader.normed(nothing, scale))
        found.append((x.mean(0) @ columns).to("cpu", torch.float64))
    return NumberLens(components, problems.numerals.values, torch.stack(found), norm, len(problems.tokens))
