"""Write the hand of the clock: move x, inside the answer circle's subspace, to where another answer lies.

Equation: x' = x + P (t - x), t = m + (D(c') - mean D) C, with C = D+ (X - m) fitted to the answers c of the
    prompts, D(c) the centred columns cos(2 pi k c / p), sin(2 pi k c / p), and P the projector onto the rows of C.
Paper: the circle: Nanda et al. 2023, arXiv 2301.05217; writing a fit back: Kantamneni & Tegmark 2025, arXiv 2502.00873.
Shapes: acts [n, d], answers [n] of the prompts of the fit; new [batch], one answer a row to write; x [batch, pos, d].
Attach at: where acts were collected, at the same position (the last residual stream, last position).
Misleads when: the new answers were in the fit (hold out answers, not prompts), and when it is read as "the model computes
    by a clock": it shows what the model writes; a Pizza model turns just as well.
Compare with: a fit to shuffled answers, and held-out answers.
In the package: f = fit(acts, fourier(answers, p, freqs)); Ablate(f.subspace(), to=f.predict(fourier(new, p, freqs))).at(...)
"""

import math
from collections.abc import Callable, Sequence

import torch


def write_answer_circle(
    acts: torch.Tensor, answers: torch.Tensor, new: torch.Tensor, p: int, freqs: Sequence[int], pos: int = -1
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; the batch has the rows of ``new``."""

    def columns(c: torch.Tensor) -> torch.Tensor:
        angles = [2 * math.pi * ((k * c.double()) % p) / p for k in freqs]
        return torch.stack([f(angle) for angle in angles for f in (torch.cos, torch.sin)], dim=1)

    mean, centre = acts.double().mean(0), columns(answers).mean(0)
    coef = torch.linalg.pinv(columns(answers) - centre, rtol=1e-10) @ (acts.double() - mean)
    projector = torch.linalg.pinv(coef, rtol=1e-8) @ coef
    target = mean + (columns(new) - centre) @ coef

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        out, here = x.clone(), x[:, pos].double()
        out[:, pos] = (here + (target - here) @ projector).to(x.dtype)
        return out

    return hook
