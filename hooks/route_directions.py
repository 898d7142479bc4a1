"""Take away several directions, each by its own gate, prompt by prompt (directional routing).

Equation: o' = o - sum_k g_k (o.d_k) d_k, with d_k of length 1 and a gate g_k from 0 to 1 for each prompt and direction.
Paper: Taylor 2026, arXiv 2603.14923 (four directions a head, g = sigmoid(5 MLP(mean over positions of the stream))).
Shapes: directions [k, d]; gates [batch, k]; x [batch, pos, d], or [batch, pos, head, d] with head=.
Attach at: attn.hook_z of one head (head=h), before the output projection; any site otherwise.
Misleads when: the directions of a head are not orthogonal: the sum then overshoots what they share, and g = 1 does not
    remove their span; and when the gates come from later positions than the one they act on.
Compare with: gates shuffled among the prompts (the same amount taken away, from the wrong ones), and all gates at their mean.
In the package: Erase(directions.T, directions.T, gate=gates).at(...)
"""

from collections.abc import Callable

import torch


def route_directions(
    directions: torch.Tensor, gates: torch.Tensor, pos: int | None = None, head: int | None = None
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        out = x.clone()
        for p in range(x.shape[1]) if pos is None else [pos]:
            where = (slice(None), p) if head is None else (slice(None), p, head)
            o = x[where].double()
            taken = torch.zeros_like(o)
            for k, d in enumerate(directions.double()):
                unit = d / d.norm()
                taken += gates[:, k, None].double() * (o @ unit)[:, None] * unit
            out[where] = (o - taken).to(x.dtype)
        return out

    return hook
