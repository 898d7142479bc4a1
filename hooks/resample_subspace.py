"""Give each prompt, inside a subspace, the coordinates of another prompt (resample-ablation).

Equation: x_i' = x_i + P (y_j(i) - x_i), with P = V+ V the projector onto the span of the rows of V, y the activations of a
    set of prompts, and j(i) the one that prompt i gets.
Paper: Chan et al. 2022, "Causal scrubbing" (Alignment Forum).
Shapes: vectors [n, d]; acts [m, d] of the other prompts; choice [batch], a row of acts for each prompt; x [batch, pos, d].
Attach at: the site and position where acts were collected.
Misleads when: the drawn prompt has the same answer (draw among all, and report how often), or when one draw is reported:
    the choice is random, so give the spread over several.
Compare with: mean-ablation, which removes the variation without writing another prompt's, and the same draws in a subspace
    drawn from the covariance.
In the package: Ablate(Subspace.span(vectors), to=acts[choice]).at(...)
"""

from collections.abc import Callable

import torch


def resample_subspace(
    vectors: torch.Tensor, acts: torch.Tensor, choice: torch.Tensor, pos: int | None = -1
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    v = vectors.double()
    projector = torch.linalg.pinv(v, rtol=1e-10) @ v

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        out = x.clone()
        for i, j in enumerate(choice.tolist()):
            for p in range(x.shape[1]) if pos is None else [pos]:
                here = x[i, p].double()
                out[i, p] = (here + projector @ (acts[j].double() - here)).to(x.dtype)
        return out

    return hook
