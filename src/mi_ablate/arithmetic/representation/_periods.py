"""Power by period of what is known for consecutive whole numbers, after a straight line is taken away.

    y_x = slope x + level + sum_k A_k cos(2πkx/n - φ_k),   x = 0 .. n-1,   periods n / k, k = 1 .. n // 2

The bins of n numbers are the periods n / k and no others: with the 199 possible sums of two numbers below 100, a period of
10 lies between two bins (9.95 and 10.47), and its power is spread over both and their neighbours. 100 and 200 numbers
have it. The Nyquist period 2 of an even count is a bin like the others (`torch.fft.rfft` keeps it; a mask
``fftfreq > 0`` drops it).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def line_removed(y: Float[Tensor, "v *m"]) -> tuple[Float[Tensor, "v *m"], Float[Tensor, " *m"]]:
    """Return y [v ...] without its least-squares line over 0 .. v-1, and the slopes, in float64."""
    y = y.to(torch.float64)
    x = torch.arange(len(y), dtype=torch.float64, device=y.device)
    x = x - x.mean()
    centred = y - y.mean(0)
    slope = torch.tensordot(x, centred, dims=1) / (x**2).sum()
    return centred - torch.tensordot(x[:, None], slope[None], dims=1), slope


def power_of(y: Float[Tensor, "v *m"]) -> tuple[Float[Tensor, " k"], Float[Tensor, "k *m"]]:
    """Return the periods v / k, longest first, and the energy of each: they add up to that of y about its mean."""
    v = len(y)
    found = torch.fft.rfft(y.to(torch.float64), dim=0)[1:].abs() ** 2 * (2 / v)
    if v % 2 == 0:
        found[-1] /= 2
    return v / torch.arange(1, v // 2 + 1, dtype=torch.float64), found


def as_periods(periods: Sequence[int | float]) -> tuple[int | float, ...]:
    """Return periods of whole numbers, each as an int where it is one.

    Raises:
        ValueError: none, one that is given twice, is not finite or is below 2. On whole numbers cos(2πx/T) of T below 2 is
            the cosine of a longer period (of T = 1.5 that of 3), and of T = 1 the constant.

    """
    if not periods or not all(2 <= T < math.inf for T in periods) or len(set(periods)) < len(periods):
        raise ValueError(f"periods {list(periods)}: give at least one, each once, all of them finite and 2 or more.")
    return tuple(int(T) if float(T).is_integer() else float(T) for T in periods)


def off_bin(v: int, periods: Sequence[int | float]) -> list[int | float]:
    """Return the periods that are none of the bins v / k of v numbers."""
    return [
        period for period in periods if not 1 <= round(v / period) <= v // 2 or abs(v / period % 1 - 0.5) < 0.5 - 1e-9
    ]


def on_bin_count(v: int, periods: Sequence[int | float]) -> int | None:
    """Return the largest count up to v whose bins hold all whole-number periods; None where v is too small."""
    step = math.lcm(*(int(period) for period in periods if period == int(period)))
    return v // step * step or None
