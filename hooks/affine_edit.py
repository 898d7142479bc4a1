"""Set a direction to the level that it has in a reference class, and add some of it (affine concept editing).

Equation: x' = x - r (r.x - r.m) + a v, with r = v / |v| and m the mean of the reference class; a = 0 writes that class's
    level, a = 1 the other's when v is the difference of the two means.
Paper: Marshall et al. 2024, arXiv 2411.09003.
Shapes: vector [d] at its own length, reference mean [d]; x [batch, pos, d].
Attach at: the site where the means were taken, at the same positions.
Misleads when: the reference class is not what the prompts are otherwise like (then m moves more than the concept), or when
    it is called ablation: it writes a level into every prompt, the same for all.
Compare with: zero-ablation of v (a constant more or less), and the same with a direction drawn from the covariance.
In the package: Ablate(Subspace.span(vector), to=mean).at(...) + Add(vector, amount).at(...)
"""

from collections.abc import Callable

import torch


def affine_edit(
    vector: torch.Tensor, mean: torch.Tensor, amount: float = 0.0, pos: int | None = None
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    v = vector.double()
    r = v / v.norm()
    level = r @ mean.double()

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        out = x.clone()
        for p in range(x.shape[1]) if pos is None else [pos]:
            wide = x[:, p].double()
            away = wide @ r - level
            out[:, p] = (wide - torch.outer(away, r) + amount * v).to(x.dtype)
        return out

    return hook
