"""Means that a few huge activations cannot pull away.

Winsorising bounds each vector by its own quantile of |x|: x_j -> clip(x_j, -t, t) with t the quantile of |x_1| .. |x_d|.
Each vector is treated alone, so the result does not depend on the batch (one quantile over a batch does: 30 % between
batches of 32 and of 8). The geometric median minimises sum_i |x_i - m| (Weiszfeld 1937; at a data point the step of
Vardi & Zhang 2000 is taken); half of the examples may be anything before it leaves the others.

They mislead where the large coordinates are the concept: winsorising then removes what was looked for.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.regression import _activations


def winsorised(x: Float[Tensor, "*batch d"], quantile: int | float = 0.995) -> Float[Tensor, "*batch d"]:
    """Return each vector with its entries bounded by the vector's own quantile of magnitudes.

    The quantile is linearly interpolated, as torch.quantile does, without its limit of 2**24 entries. Lists and arrays
    are taken too; whole numbers become float64.

    Raises:
        ValueError: a quantile outside (0, 1].

    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile={quantile}: a share above 0 and at most 1, such as 0.995 (1 changes nothing).")
    x = torch.as_tensor(x)
    x = x if x.is_floating_point() else x.to(torch.float64)
    d = x.shape[-1]
    place = quantile * (d - 1)
    low = int(place)
    top = x.abs().topk(d - low, dim=-1).values  # descending: [-1] is entry `low` of the rising order
    at, above = top[..., -1:], top[..., -2:-1] if d - low > 1 else top[..., -1:]
    bound = at + (above - at) * (place - low)
    return x.clamp(-bound, bound)


def geometric_median(
    x: Float[Tensor, "n d"], tolerance: int | float = 1e-10, iterations: int = 1000
) -> Float[Tensor, " d"]:
    """Return the point with the smallest sum of distances to the rows, in float64.

    Args:
        x: one vector an example.
        tolerance: stop when a step is shorter than this share of the median distance to the rows at that step (a mean
            distance would be that of the outliers).
        iterations: at most so many steps; a warning says when they were not enough.

    Raises:
        ValueError: no rows, NaN.

    """
    x = _activations(x)
    if len(x) == 0:
        raise ValueError("The geometric median of no vectors was asked for: at least one is needed.")
    m = x.median(0).values  # of each coordinate: as far from the outliers as the answer is
    step = spread = 0.0
    for _ in range(iterations):
        distance = (x - m).norm(dim=1)
        spread = float(distance.median())
        here = distance <= 1e-14 * spread
        if bool(here.all()):
            return m
        weight = torch.where(here, 0.0, 1 / distance.clamp(min=1e-300))
        target = (weight[:, None] * x).sum(0) / weight.sum()
        if bool(here.any()):  # the pull of the rows at this very point: they hold it unless the others pull harder
            pull = float(((target - m) * weight.sum()).norm())
            target = m + max(0.0, 1 - float(here.sum()) / max(pull, 1e-300)) * (target - m)
        step, m = float((target - m).norm()), target
        if step <= tolerance * spread + 4 * torch.finfo(m.dtype).eps * float(m.norm()):
            return m
    share = step / max(spread, 1e-300)
    warnings.warn(
        f"The geometric median did not converge: after {iterations} steps it still moved by {share:.1e} of the median "
        "distance. Use more iterations=, or a larger tolerance=.",
        stacklevel=2,
    )
    return m
