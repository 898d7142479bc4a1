"""How noisy a batch's gradient is: the simple noise scale of McCandlish et al. 2018 (arXiv 1812.06162), exactly.

With g_i the gradient of example i's loss, G = mean g_i and Sigma = mean (g_i - G)(g_i - G)^T, a batch of B examples drawn with
replacement has a gradient of mean G and covariance Sigma / B, so that

    E |g_batch|^2 = |G|^2 + tr(Sigma) / B        and        B_simple = tr(Sigma) / |G|^2    (their equation 2.9)

is the batch size at which signal and noise are equal. A training set of a toy can be enumerated, so nothing is estimated:
`gradient_noise` takes every example's gradient of any loss, and `toy_noise` every training pair's, without writing them down
(`example_gradients`). `estimated_noise` is the paper's estimator from two batch sizes (their
appendix A.1), for losses that cannot be enumerated:

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)    and    tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

Both are unbiased; their quotient is not.

Misleads where: AdamW divides by the gradient's own size per weight and decays the weights, and B_simple knows neither. Near a
minimum |G| goes to zero and B_simple grows without the noise having grown, so look at both parts. In float32 the softmax of a
grokked toy rounds small gradients away (`float32_error`), so everything here is float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from . import tasks
from .evaluation import train_mask
from .example_gradients import squared_lengths
from .forward import last_logits, trained_names
from .recipes import TrainConfig

State = Mapping[str, Float[Tensor, "..."]]
Loss = Callable[[State, Int[Tensor, " b"]], Float[Tensor, ""]]
"""Mean loss of the examples with these numbers."""


@dataclass(frozen=True)
class GradientNoise:
    """The two parts of a batch's expected squared gradient, |G|^2 and tr(Sigma)."""

    squared_length: float
    """|G|^2 of the mean gradient; an estimate of it may be negative."""
    trace: float
    """tr(Sigma): the mean squared distance of an example's gradient from the mean."""

    @property
    def scale(self) -> float:
        """B_simple, in examples; infinite where the mean gradient is zero (or an estimate of it not positive)."""
        return self.trace / self.squared_length if self.squared_length > 0 else float("inf")

    def share(self, batch: int) -> float:
        """Return the part of the squared gradient of ``batch`` examples, drawn with replacement, that is noise."""
        total = self.squared_length + self.trace / batch
        return self.trace / batch / total if total > 0 else 0.0


class TrainingLoss(NamedTuple):
    """A toy's cross-entropy as a function of its weights and of which training pairs are taken."""

    loss: Loss
    params: dict[str, Float[Tensor, "..."]]
    """The trained weights."""
    examples: int
    """How many training pairs there are."""


def training_loss(settings: TrainConfig, state: State, dtype: torch.dtype = torch.float64) -> TrainingLoss:
    """Return the loss that a run with these settings trains on, at the weights ``state``; penalty and decay left out.

    Args:
        settings: of the run, which name its training pairs.
        state: weights by HookedTransformer's names, of any type.
        dtype: what is computed in; float32 is what training sees.

    """
    config, (tokens, answers) = settings.config, _pairs(settings)

    def loss(params: State, rows: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        return F.cross_entropy(last_logits(config, params, tokens[rows]), answers[rows])

    params = {name: state[name].detach().to("cpu", dtype) for name in trained_names(config)}
    return TrainingLoss(loss, params, len(answers))


def toy_noise(settings: TrainConfig, state: State) -> GradientNoise:
    """Return |G|^2 and tr(Sigma) over a run's training pairs: 2 seconds on one core for 2,822 of them at two layers, d 128."""
    loss, params, examples = training_loss(settings, state)
    length = squared_length(loss, params, torch.arange(examples))
    squares = squared_lengths(settings.config, params, *_pairs(settings))
    return GradientNoise(length, max(0.0, float(squares.mean()) - length))


def gradient_noise(loss: Loss, params: State, examples: int) -> GradientNoise:
    """Return |G|^2 and tr(Sigma) over examples 0 .. ``examples`` - 1, from the gradient of each.

    One backward pass an example, memory for two gradients.
    """
    total, squares = torch.zeros((), dtype=torch.float64), 0.0
    for i in range(examples):
        gradient = _gradient(loss, params, torch.tensor([i]))
        total, squares = total + gradient, squares + float(gradient @ gradient)
    mean = total / examples
    length = float(mean @ mean)
    return GradientNoise(length, max(0.0, squares / examples - length))


def estimated_noise(
    loss: Loss, params: State, examples: int, *, sizes: tuple[int, int] = (64, 1024), draws: int = 20, seed: int = 0
) -> GradientNoise:
    """Return the paper's unbiased estimates of |G|^2 and tr(Sigma), each the mean over ``draws`` pairs of batches.

    Args:
        loss: mean loss of the examples with these numbers.
        params: what it is differentiated by.
        examples: how many there are; batches are drawn from them with replacement.
        sizes: the small batch and the large one.
        draws: how many of each.
        seed: of the draws.

    Raises:
        ValueError: sizes that are not two growing numbers.

    """
    small, large = sizes
    if not 0 < small < large:
        raise ValueError(f"sizes {sizes} must be a small batch and a larger one, such as (64, 1024).")
    generator, lengths = torch.Generator().manual_seed(seed), {size: 0.0 for size in sizes}
    for _ in range(draws):
        for size in sizes:
            rows = torch.randint(examples, (size,), generator=generator)
            lengths[size] += squared_length(loss, params, rows) / draws
    length = (large * lengths[large] - small * lengths[small]) / (large - small)
    return GradientNoise(length, (lengths[small] - lengths[large]) / (1 / small - 1 / large))


def squared_length(loss: Loss, params: State, rows: Int[Tensor, " b"]) -> float:
    """Return the squared length of the gradient of the mean loss of these examples."""
    gradient = _gradient(loss, params, rows)
    return float(gradient @ gradient)


def float32_error(settings: TrainConfig, state: State) -> float | None:
    """Return |G_32 - G|^2 / |G|^2 of a run's mean gradient as float32 computes it; None where G is zero.

    1 where the gradient is lost altogether, more where rounding errors outweigh it. Lengths alone do not tell: errors may be
    as long as what they replace.
    """
    gradients = []
    for dtype in (torch.float64, torch.float32):
        loss, params, examples = training_loss(settings, state, dtype)
        gradients.append(_gradient(loss, params, torch.arange(examples)))
    full, single = gradients
    length = float(full @ full)
    return float((single - full).square().sum()) / length if length > 0 else None


def _pairs(settings: TrainConfig) -> tuple[Int[Tensor, "n pos"], Int[Tensor, " n"]]:
    """The training prompts of a run and their answers."""
    mask = train_mask(settings)
    return tasks.all_tokens(settings.config)[mask], tasks.answers(settings.config)[mask]


def _gradient(loss: Loss, params: State, rows: Int[Tensor, " b"]) -> Float[Tensor, " w"]:
    """The gradient by all of ``params`` in one float64 vector; zeros for those that the loss does not use."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        found = torch.autograd.grad(loss(leaves, rows), list(leaves.values()), materialize_grads=True)
    return torch.cat([each.flatten().double() for each in found])
