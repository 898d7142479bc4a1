"""A function that other processes can import: it fits one part of some activations."""

import torch
from torch import Tensor

from mi_ablate.design import linear
from mi_ablate.regression import Fitter


def acts_of(rows: range) -> tuple[Tensor, Tensor]:
    """Activations [n 5] and values [n] of the rows, the same in every process."""
    noise = torch.randn(100, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.arange(100, dtype=torch.float64)
    return (noise + values[:, None] * torch.arange(5))[rows.start : rows.stop], values[rows.start : rows.stop]


def fit_part(rows: range) -> Fitter:
    """A fitter that has seen these rows."""
    acts, values = acts_of(rows)
    return Fitter().update(acts, linear(values))
