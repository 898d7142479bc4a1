"""Keep only what varies with chosen frequencies of a number, and put the mean in place of the rest.

Equation: x' = m + P (x - m), with m the mean of the activations X and P the projector onto the span of the rows of
    C = D+ (X - m); D holds the centred columns cos(2 pi k a / p) and sin(2 pi k a / p) of the frequencies k.
Paper: Nanda et al. 2023, arXiv 2301.05217 (restricted loss, there in the logits).
Shapes: acts [n, d] and values [n] of the same n prompts; freqs a list from 1 to p // 2; x [batch, pos, d].
Attach at: where acts were collected, at the same position (for modular addition: the last one, with a + b mod p).
Misleads when: accuracy stays high because the frequencies span most of the space (look at the share of variance), or
    when k and p - k are both named: they are the same pair.
Compare with: as many other frequencies, and as many directions drawn from the covariance.
In the package: Ablate(fit(acts, fourier(values, p, freqs)).subspace(), to=acts.mean(0), keep=True).at(...)
"""

import math
from collections.abc import Callable, Sequence

import torch


def keep_frequencies(
    acts: torch.Tensor, values: torch.Tensor, p: int, freqs: Sequence[int], pos: int | None = -1
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    a, mean = values.double(), acts.double().mean(0)
    angles = [2 * math.pi * ((k * a) % p) / p for k in freqs]
    design = torch.stack([f(angle) for angle in angles for f in (torch.cos, torch.sin)], dim=1)
    coef = torch.linalg.pinv(design - design.mean(0), rtol=1e-10) @ (acts.double() - mean)
    projector = torch.linalg.pinv(coef, rtol=1e-8) @ coef

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        edited = mean + (x.double() - mean) @ projector
        out = x.clone()
        where = slice(None) if pos is None else [pos]
        out[:, where] = edited[:, where].to(x.dtype)
        return out

    return hook
