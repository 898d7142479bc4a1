"""Turn one direction of the activations to its opposite, as in a mirror.

Equation: x' = (1 - 2 r rT) (x - c) + c, with r of length 1; c = 0 mirrors at the origin, c = a mean at the mean.
Paper: Ravfogel et al. 2021, arXiv 2105.06965 (AlterRep, counterfactual representations, there with a size of their own).
Shapes: direction [d], centre [d]; x [batch, pos, d].
Attach at: one site of the stream, or every writer with c = 0 (a mirror at two sites of the stream undoes itself).
Misleads when: the direction's mean is large and c = 0: then the constant is flipped as well, twice the size of ablation; or
    when it is taken for removal: what a reader of |r.x| sees is unchanged.
Compare with: ablation of the same direction, and the mirror of one drawn from the covariance.
In the package: Ablate(Subspace.span(direction), to=centre, strength=2).at(...)
"""

from collections.abc import Callable

import torch


def reflect_direction(
    direction: torch.Tensor, centre: torch.Tensor | None = None, pos: int | None = None
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    r = direction.double() / direction.double().norm()
    c = torch.zeros_like(r) if centre is None else centre.double()
    mirror = torch.eye(len(r), dtype=r.dtype) - 2 * torch.outer(r, r)

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        mirrored = (x.double() - c) @ mirror + c
        out = x.clone()
        where = slice(None) if pos is None else [pos]
        out[:, where] = mirrored[:, where].to(x.dtype)
        return out

    return hook
