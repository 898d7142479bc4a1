"""Remove one direction from the activations (directional ablation, "abliteration").

Equation: x' = x - s r (r.x - r.m), with r of length 1; m = 0 removes the direction, m = a mean removes its variation.
Paper: Arditi et al. 2024, arXiv 2406.11717 (s = 1, m = 0).
Shapes: direction [d], mean [d]; x [batch, pos, d].
Attach at: every writer (hook_embed, hook_pos_embed, each hook_attn_out and hook_mlp_out), or one site of the stream.
Misleads when: the direction has a large mean (then m = 0 also takes a constant away; put m = mean beside it), or when
    LayerNorm hides a share of it. At all writers it equals editing the weights only if biases and both embeddings are in.
Compare with: a direction drawn from the activations' covariance, and their first principal component.
In the package: Ablate(Subspace.span(direction), to=mean, strength=s).at(...)
"""

from collections.abc import Callable

import torch


def ablate_direction(
    direction: torch.Tensor, mean: torch.Tensor | None = None, strength: float = 1.0, pos: int | None = None
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    r = direction.double() / direction.double().norm()
    m = torch.zeros_like(r) if mean is None else mean.double()
    projector = torch.outer(r, r)

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        wide = x.double()
        edited = wide - strength * (wide - m) @ projector
        out = x.clone()
        where = slice(None) if pos is None else [pos]
        out[:, where] = edited[:, where].to(x.dtype)
        return out

    return hook
