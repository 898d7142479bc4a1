"""Remove a subspace from the activations: to zero, to a mean, or to another run's values.

Equation: x' = x + s P (t - x), with P = V+ V the projector onto the span of the rows of V (V+ is the pseudo-inverse).
Paper: Ravfogel et al. 2020, arXiv 2004.07667 (t = 0); with t = a mean or another prompt's x: mean- and resample-ablation.
Shapes: vectors [n, d], independent or not; to [d] or [batch, pos, d]; x [batch, pos, d].
Attach at: the site where the vectors were fitted.
Misleads when: the vectors are removed one after another instead (two at cosine 0.8: 47 % of the first stays), or when a
    control removes less variance: isotropic random subspaces take rank/d of it and make any effect look special.
Compare with: the same rank drawn from the activations' covariance, and the top principal components, each with its share.
In the package: Ablate(Subspace.span(vectors), to=to, strength=s).at(...)
"""

from collections.abc import Callable

import torch


def ablate_subspace(
    vectors: torch.Tensor, to: torch.Tensor | None = None, strength: float = 1.0, pos: int | None = None
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    v = vectors.double()
    projector = torch.linalg.pinv(v, rtol=1e-10) @ v

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        wide = x.double()
        target = torch.zeros_like(wide) if to is None else to.double()
        edited = wide + strength * (target - wide) @ projector
        out = x.clone()
        where = slice(None) if pos is None else [pos]
        out[:, where] = edited[:, where].to(x.dtype)
        return out

    return hook
