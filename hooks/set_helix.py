"""Set a number: write the point of the generalized helix that another number has.

Equation: x' = x + P (t - x), t = m + (B(v) - mean B) C, with C = B+ (X - m) fitted to the numbers a of the prompts,
    B(a) = [a, cos(2 pi a / T), sin(2 pi a / T) for the periods T], and P the identity (whole=True, the whole vector is
    replaced) or the projector onto the rows of C (what the helix does not describe stays).
Paper: Kantamneni & Tegmark 2025, arXiv 2502.00873, sections 4.2 to 4.4 (whole vector, after a projection on 100 components).
Shapes: acts [n, d] and values [n] of the same n prompts; new [batch], one number a row to write; x [batch, pos, d].
Attach at: where acts were collected, at the position of the number (resid_pre of a layer, the operand's token).
Misleads when: new numbers were in the fit (hold out numbers, not prompts), or the whole vector carries more than the number
    (the other operand, at a later token): whole=True erases that. The sine of period 2 is zero and no direction.
Compare with: the whole vector of another prompt, as many principal components, a polynomial, shuffled numbers.
In the package: f = fit(acts, helix(values)); Ablate(None or f.subspace(), to=f.predict(helix(new))).at(...)
"""

import math
from collections.abc import Callable, Sequence

import torch


def set_helix(
    acts: torch.Tensor,
    values: torch.Tensor,
    new: torch.Tensor,
    periods: Sequence[float] = (2, 5, 10, 100),
    whole: bool = True,
    pos: int | None = -1,
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; the batch has the rows of ``new``."""

    def columns(a: torch.Tensor) -> torch.Tensor:
        turns = [2 * math.pi * (a.double() % T) / T for T in periods]
        out = torch.stack([a.double()] + [f(t) for t in turns for f in (torch.cos, torch.sin)], dim=1)
        return torch.where(out.abs() < 1e-9, 0.0, out)

    mean, centre = acts.double().mean(0), columns(values).mean(0)
    coef = torch.linalg.pinv(columns(values) - centre, rtol=1e-8) @ (acts.double() - mean)
    projector = torch.eye(acts.shape[1]).double() if whole else torch.linalg.pinv(coef, rtol=1e-8) @ coef
    target = (mean + (columns(new) - centre) @ coef)[:, None]

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        out, where = x.clone(), slice(None) if pos is None else [pos]
        here = x[:, where].double()
        out[:, where] = (here + (target - here) @ projector).to(x.dtype)
        return out

    return hook
