"""Turn the activations in a plane: to an angle, keeping their length there (angular steering), or by an angle.

Equation: x' = x - P x + |P x| (b cos t + e sin t) to the angle t; x' = x - P x + (b, e) R(t) (b.x, e.x) by the angle t,
    with b, e orthonormal, P = b bT + e eT and R(t) the rotation.
Paper: Vu & Nguyen 2025, arXiv 2510.26243.
Shapes: first [d] (angle 0) and second [d], not parallel; x [batch, pos, d].
Attach at: the sites where the plane was found; to an angle may be repeated at each, by an angle adds up.
Misleads when: the activations circle around a mean that is not zero (subtract it first), or when P x is short: the angle of
    a short vector is noise, and is set all the same.
Compare with: the same angle in a plane drawn from the covariance, and addition of first.
In the package: Rotate(Subspace.span(torch.stack([first, second])), angle, absolute=True).at(...)
"""

import math
from collections.abc import Callable

import torch


def rotate_plane(
    first: torch.Tensor, second: torch.Tensor, angle: float, absolute: bool = True, pos: int | None = None
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    b = first.double() / first.double().norm()
    e = second.double() - (b @ second.double()) * b
    e = e / e.norm()
    projector = torch.outer(b, b) + torch.outer(e, e)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = cos * projector + sin * (torch.outer(e, b) - torch.outer(b, e))

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        wide = x.double()
        inside = wide @ projector
        there = inside.norm(dim=-1, keepdim=True) * (cos * b + sin * e) if absolute else wide @ turn.T
        out = x.clone()
        where = slice(None) if pos is None else [pos]
        out[:, where] = (wide - inside + there)[:, where].to(x.dtype)
        return out

    return hook
