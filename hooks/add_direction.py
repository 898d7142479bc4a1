"""Add a vector to the activations (activation addition, steering).

Equation: x' = x + s v.
Paper: Turner et al. 2023, arXiv 2308.10248; Rimsky et al. 2023, arXiv 2312.06681 (v = a difference of means).
Shapes: vector [d], or [batch, d] with one row an example; x [batch, pos, d].
Attach at: the site where the vector was measured, mostly one hook_resid_post in the middle of the model.
Misleads when: s v is much longer than x: then anything changes the output. Report |s v| / |x|, and what else got worse.
Compare with: a random vector of the same length, drawn from the activations' covariance, and -v.
In the package: Add(vector, strength=s).at(...)
"""

from collections.abc import Callable

import torch


def add_direction(vector: torch.Tensor, strength: float = 1.0, pos: int | None = None) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        rows = vector.double().expand(x.shape[0], x.shape[-1])
        out = x.clone()
        for p in range(x.shape[1]) if pos is None else [pos]:
            out[:, p] = (x[:, p].double() + strength * rows).to(x.dtype)
        return out

    return hook
