"""Put another run's activations in place of these, whole or inside a subspace (activation patching).

Equation: x' = x + P (y - x), with y the other run's activations at the same site and P = 1, or the projector V+ V onto the
    span of the rows of V.
Paper: Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; Geiger et al. 2023, arXiv 2303.02536 (in a
    subspace).
Shapes: other [batch, pos, d], prompt by prompt; vectors [n, d] or None for the whole vector; x [batch, pos, d].
Attach at: one site and position after another; the effects of all of them are the heat map.
Misleads when: patching inside a subspace works through a direction that the model never varies (Makelov et al. 2023,
    arXiv 2311.17030): report the effect of its parts inside and outside what the model's readers see; and when prompts of
    different length are paired.
Compare with: the reverse patch (noise for denoise), and the patch from a prompt with the same answer.
In the package: Ablate(None, to=other).at(...)
"""

from collections.abc import Callable

import torch


def patch_from_run(
    other: torch.Tensor, vectors: torch.Tensor | None = None, pos: int | None = None
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    d = other.shape[-1]
    v = torch.eye(d, dtype=torch.float64) if vectors is None else vectors.double()
    projector = torch.linalg.pinv(v, rtol=1e-10) @ v

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        edited = x.double() + (other.double() - x.double()) @ projector
        out = x.clone()
        where = slice(None) if pos is None else [pos]
        out[:, where] = edited[:, where].to(x.dtype)
        return out

    return hook
