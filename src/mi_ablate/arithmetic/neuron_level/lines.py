"""Could a model add along a line? The control of the Clock: numbers read off a line, added, and read as a number.

A line through the states (their first principal components, 50 as published) reads a number off each, l(h_a); the
sum l(h_a) + l(h_b) is right where its nearest number is a + b (Kantamneni & Tegmark 2025, arXiv 2502.00873, App. E: below 20 %
right at an R² of 0.997, where GPT-J itself is above 80 %). An R² near 1 over 0 to 99 is not enough: an error of 1.6 a number
has it, and 0.35 is needed.

50 components of 100 states fit much of what is noise, so the same is done with every number left out of the line that
reads it (in closed form, from the hat matrix); that is the fair number.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LineAddition:
    """How well numbers read off a line add up."""

    r2: float
    left_out_r2: float
    """With each number read by a line that was fitted without it."""
    values: Int[Tensor, " v"]
    read: Float[Tensor, " v"]
    left_out: Float[Tensor, " v"]
    components: int

    def accuracy(self, upto: int | None = None, left_out: bool = False) -> float:
        """Return the share of all pairs whose sum (at most ``upto``) is the nearest number to the sum of what is read."""
        read = self.left_out if left_out else self.read
        sums = self.values[:, None] + self.values
        counted = torch.ones_like(sums, dtype=torch.bool) if upto is None else sums <= upto
        if not counted.any():
            raise ValueError(f"No pair of these numbers has a sum of at most {upto}.")
        return float(((read[:, None] + read).round() == sums)[counted].double().mean())

    def table(self) -> list[dict[str, Any]]:
        """Return one row a way of reading: R² and the accuracy of sums, of all pairs and up to 100."""
        ways = {"line": (self.r2, False), "number left out": (self.left_out_r2, True)}
        upto = 100 if bool((self.values[:, None] + self.values <= 100).any()) else None
        return [
            {
                "read by": name,
                "r2": r2,
                "accuracy": self.accuracy(None, out),
                "accuracy to 100": self.accuracy(upto, out),
            }
            for name, (r2, out) in ways.items()
        ]

    def __repr__(self) -> str:
        line = f"r2 {self.r2:.4f}, sums right {self.accuracy():.3f}"
        out = f"r2 {self.left_out_r2:.4f}, {self.accuracy(left_out=True):.3f}"
        return f"LineAddition({len(self.values)} numbers, {self.components} components: {line}; left out {out})"


def line_addition(states: Float[Tensor, "v d"], values: Shaped[Tensor, " v"], components: int = 50) -> LineAddition:
    """Return how well a line reads and adds numbers.

    Args:
        states: one a number, such as the means of `number_means` at one site ``[v d]``.
        values: the numbers.
        components: principal components of the states that the line is fitted in.

    Raises:
        ValueError: as many components as numbers less one or more, which leave nothing to fit; a number twice; decimals.

    """
    v = len(values)
    if (torch.as_tensor(values) % 1 != 0).any():
        raise ValueError("Sums are rounded to the nearest whole number: whole numbers are needed, not decimals.")
    if not 1 <= components < v - 1 or len(states) != v or len(torch.as_tensor(values).unique()) < v:
        raise ValueError(
            f"{len(states)} states of {v} numbers, {components} components: different numbers, and fewer components than "
            f"numbers less one (at most {v - 2}), are needed."
        )
    x = states.detach().to("cpu", torch.float64)
    x, y = x - x.mean(0), torch.as_tensor(values).cpu().to(torch.float64)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    u = u[:, :components][:, s[:components] > 1e-10 * s[0]]
    read = y.mean() + u @ (u.T @ (y - y.mean()))
    leverage = (u**2).sum(1) + 1 / v
    left_out = y - (y - read) / (1 - leverage).clamp(min=1e-12)
    total = ((y - y.mean()) ** 2).sum()
    r2, out = (1 - float(((y - z) ** 2).sum() / total) for z in (read, left_out))
    return LineAddition(r2, out, torch.as_tensor(values).cpu().to(torch.int64), read, left_out, u.shape[1])
