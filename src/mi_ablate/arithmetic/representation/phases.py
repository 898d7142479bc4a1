"""A circle's two coefficients as amplitude and phase, and back: b cos θ + c sin θ = A cos(θ - φ), dimension by dimension."""

import torch
from jaxtyping import Float
from torch import Tensor


def polar(coef: Float[Tensor, "*batch columns d"]) -> tuple[Float[Tensor, "*batch p d"], Float[Tensor, "*batch p d"]]:
    """Return amplitude and phase of coefficients in the order cos, sin, cos, sin: A cos(θ - φ)."""
    cos, sin = coef[..., 0::2, :], coef[..., 1::2, :]
    return torch.hypot(cos, sin), torch.atan2(sin, cos)


def cartesian(
    amplitude: Float[Tensor, "*batch p d"], phase: Float[Tensor, "*batch p d"]
) -> Float[Tensor, "*batch columns d"]:
    """Return the coefficients of cos, sin, cos, sin: the inverse of `polar`."""
    pairs = torch.stack([amplitude * phase.cos(), amplitude * phase.sin()], dim=-2)
    return pairs.flatten(-3, -2)
