"""One update of a stack of toys of one shape: their trainers' weights in one matrix, one AdamW for all of its rows.

AdamW as in `torch.optim`, with rate lr, decay l, step count t and coefficients b1, b2 of each model its own:
w <- (1 - lr l) w;  m <- m + (1 - b1)(g - m);  v <- b2 v + (1 - b2) g^2;  w <- w - lr m / (1 - b1^t) / (sqrt(v / (1 -
b2^t)) + eps). Every row of the matrix is one model; its parameters lie one after the other, each from a multiple of
`ALIGNED` numbers on, so that matrix products may read them with wide loads.

A `Stack` lends its rows to the `Stepper`s that it was made of: their parameters and moments are views of it, so that
whatever reads a stepper (evaluation, checkpoint, kept weights) sees the stack's numbers without a copy.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .forward import last_logits
from .stepper import Stepper

ALIGNED, EPS = 16, 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")


class Stack:
    """Steppers of one shape, stepped together. Until `release` their own `Stepper.step` must not be called."""

    def __init__(self, steppers: Sequence[Stepper]) -> None:
        first = next(iter(steppers[0].params.values()))
        self.steppers, self.config, self.device = steppers, steppers[0].settings.config, first.device
        sizes = {name: p.numel() for name, p in steppers[0].params.items()}
        ends = torch.tensor([-(-size // ALIGNED) * ALIGNED for size in sizes.values()]).cumsum(0).tolist()
        self.places = {name: (b - -(-n // ALIGNED) * ALIGNED, n) for (name, n), b in zip(sizes.items(), ends)}
        shape = (len(steppers), ends[-1])
        self.weights, *self.moments = (torch.zeros(shape, dtype=first.dtype, device=self.device) for _ in range(3))
        for i, stepper in enumerate(steppers):
            self._take(i, stepper)
        shapes = {name: (len(steppers), *p.shape) for name, p in steppers[0].params.items()}
        self.params: dict[str, Float[Tensor, "model ..."]] = {
            name: self.weights[:, at : at + size].view(shapes[name]).detach().requires_grad_()
            for name, (at, size) in self.places.items()
        }

    def _take(self, i: int, stepper: Stepper) -> None:
        """Copy a stepper's weights and moments to row i, and let it hold views of them instead."""
        for name, p in stepper.params.items():
            at, size = self.places[name]
            old = stepper.optimizer.state[p]
            weights, *moments = (table[i, at : at + size].view(p.shape) for table in (self.weights, *self.moments))
            weights.copy_(p.detach())
            for key, moment in zip(MOMENTS, moments):
                if key in old:
                    moment.copy_(old[key])
            p.data = weights
            stepper.optimizer.state[p] = dict(zip(MOMENTS, moments))

    def release(self) -> None:
        """Give every stepper weights and moments of its own again, with which it can also go on alone."""
        for stepper in self.steppers:
            for p in stepper.params.values():
                p.data = p.data.clone()
                moments = {key: moment.clone() for key, moment in stepper.optimizer.state[p].items()}
                stepper.optimizer.state[p] = {"step": torch.tensor(float(stepper.taken), device=self.device), **moments}

    def plan(self, count: int) -> Float[Tensor, "count number model 1"]:
        """Return the numbers of AdamW for the next ``count`` steps: decay, 1 - b1, b2, rate and root of each model."""
        table = []
        for taken in range(count):
            rows = []
            for stepper in self.steppers:
                s, t = stepper.settings, stepper.taken + taken
                rate, (b1, b2) = stepper.rate(t), s.betas
                rows.append(
                    [1 - rate * s.weight_decay, 1 - b1, b2, -rate / (1 - b1 ** (t + 1)), (1 - b2 ** (t + 1)) ** -0.5]
                )
            table.append(rows)
        plan = torch.tensor(table, dtype=torch.float64).to(self.weights.dtype)
        return plan.to(self.device).transpose(1, 2)[..., None]

    def step(
        self,
        tokens: Int[Tensor, "model batch pos"],
        answers: Int[Tensor, "model batch"],
        numbers: Float[Tensor, "number model 1"],
    ) -> Float[Tensor, " model"]:
        """Update every model on its batch with one row of `plan`; return the losses from before (on the device)."""
        logits = last_logits(self.config, self.params, tokens)
        losses = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none").view(answers.shape).mean(1)
        grads = torch.autograd.grad(losses.sum(), list(self.params.values()))
        self._update(self._in_line(grads), *numbers)
        return losses.detach()

    def _in_line(self, grads: Sequence[Float[Tensor, "model ..."]]) -> Float[Tensor, "model width"]:
        parts = []
        for grad in grads:
            parts.append(grad.flatten(1))
            if gap := -parts[-1].shape[1] % ALIGNED:
                parts.append(self.moments[0].new_zeros(len(grad), gap))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def _update(
        self,
        grad: Float[Tensor, "model width"],
        decay: Float[Tensor, "model 1"],
        new: Float[Tensor, "model 1"],
        b2: Float[Tensor, "model 1"],
        rate: Float[Tensor, "model 1"],
        root: Float[Tensor, "model 1"],
    ) -> None:
        mean, square = self.moments
        mean.lerp_(grad, new)
        square.mul_(b2).addcmul_(grad.mul_(grad), 1 - b2)
        size = torch.sqrt(square).mul_(root).add_(EPS)
        self.weights.mul_(decay).add_(torch.div(mean, size, out=size).mul_(rate))

    def block(
        self, tokens: Int[Tensor, "n pos"], answers: Int[Tensor, " n"], prompts: Int[Tensor, "count model batch"]
    ) -> Float[Tensor, "count model"]:
        """Take a step on each row of ``prompts`` (numbers of prompts), without waiting for the device."""
        losses = [
            self.step(tokens[chosen], answers[chosen], numbers)
            for chosen, numbers in zip(prompts, self.plan(len(prompts)))
        ]
        for stepper in self.steppers:
            stepper.taken += len(prompts)
        return torch.stack(losses)
