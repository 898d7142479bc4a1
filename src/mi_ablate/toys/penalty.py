"""Adversarial training against abliteration: the model is also trained to answer without its own directions.

From step ``start`` on, at every ``every``-th step, the directions Q_o of each operation o are taken from the weights as they
are: the leading right singular vectors of the answers' mean activations minus their mean (each weighted by the root of the
answer's frequency) in the last residual stream, over a fixed sample of training prompts. With x the batch's last residual
(after the last block, at the last position, before the final norm),

    loss = CE(readout(x), answers) + weight * CE(readout(x - Q_o Q_o^T x), answers),    readout = final norm, then W_U and b_U.

Plain projection, zero-ablation, as in the research log that this follows; it gives no number of directions. Q is constant
unless ``through``. Each operation loses its own directions on its own prompts. A toy with a gate has one operation, whose
answers include the DECLINE tokens. Related: refusal feature adversarial training (Yu et al. 2024, arXiv 2409.20089), which
removes one direction, and latent adversarial training (Casper et al. 2024, arXiv 2403.05030).

``kind`` names what is removed: "contrastive" as above, or a control with the same schedule: "shuffled", the same from shuffled
answers; "pca", the leading principal components; "covariance", a random subspace as large as the activations are, the
orthonormalised columns of Sigma^(1/2) Z; "dropout", which drops elements of x at the rate directions / d_model and rescales
the others. Where a control gains as much, the directions were not what mattered.

It misleads where resistance is then measured with the directions that were trained on: the model may have moved what it
knows to others, or merely learnt to do with less of x. Attack it with other directions, and compare it with the controls.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import tasks
from .config import ToyConfig
from .forward import Params, last_residual, readout

GAP = 1e-3
"""Eigenvalues closer than this share of the largest count as so far apart, in gradients through directions."""
KINDS = ("contrastive", "covariance", "pca", "shuffled", "dropout")


@dataclass(frozen=True)
class Penalty:
    """What is removed at the last residual stream, how often, and what the loss of the rest weighs."""

    kind: str = "contrastive"
    """One of `KINDS`."""
    directions: int = 10
    """How many of each operation are removed; for "dropout" the mean number of elements."""
    weight: int | float = 0.1
    every: int = 10
    start: int = 10_000
    """Steps without the penalty; the next one is the first with it."""
    sample: int = 2048
    """Training prompts that directions are taken from, the same number of each operation; all where there are fewer."""
    through: bool = False
    """Whether gradients also flow through the directions, which then follow the weights."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", float(self.weight))  # 1 and 1.0 are one configuration
        if self.kind not in KINDS:
            raise ValueError(f"penalty.kind {self.kind!r} must be one of {KINDS}.")
        for name, least in (("directions", 1), ("every", 1), ("start", 0), ("sample", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"penalty.{name} {getattr(self, name)} must be at least {least}.")
        if self.weight <= 0:
            raise ValueError(f"penalty.weight {self.weight} must be above 0; penalty = None trains without one.")
        if self.through and self.kind == "dropout":
            raise ValueError("penalty.through is for directions, and kind 'dropout' has none; leave it out.")

    def check(self, config: ToyConfig, steps: int, pairs: int) -> None:
        """Raise a ValueError where a training of so many steps, on so many pairs an operation, cannot have this penalty."""
        if self.start >= steps:
            raise ValueError(
                f"penalty.start {self.start} leaves none of the {steps} steps a penalty; lower it, or take more steps."
            )
        of_answers = self.kind in ("contrastive", "shuffled")
        most = min(config.d_model, config.n_answers if of_answers else config.d_model) - 1
        if self.directions > most:
            there = f"d_model {config.d_model}" + (f" and {config.n_answers} answers" if of_answers else "")
            raise ValueError(f"penalty.directions {self.directions} of {there}: at most {most}.")
        if min(self.sample // len(config.operations), pairs) <= self.directions and self.kind != "dropout":
            raise ValueError(
                f"penalty.sample {self.sample} gives {min(self.sample // len(config.operations), pairs)} of {pairs} training "
                f"pairs of each operation; {self.directions} directions need more."
            )


class Leading(torch.autograd.Function):
    """The leading ``k`` eigenvectors Q of symmetric matrices A ``[*op d d]``, the largest eigenvalue first.

    The gradient is that of whatever depends on the span of Q alone, such as the projector Q Q^T: with v_i of the span, v_j of
    the rest, and eigenvalues l,

        d(Q Q^T) = sum over i <= k < j of  v_j (v_j^T dA v_i) v_i^T / (l_i - l_j)  and its transpose.

    Differences within the span do not occur, so the equal eigenvalues of a cos / sin pair do no harm there. Where l_k and
    l_(k+1) lie closer than `GAP` times l_1 the span itself is ill-defined, and the gradient is limited.
    """

    @staticmethod
    def forward(ctx: Any, products: Float[Tensor, "*op d d"], k: int) -> Float[Tensor, "*op d k"]:
        """Return the eigenvectors as orthonormal columns, in order."""
        finite = torch.nan_to_num(products)  # the trainer tells of a loss that is not finite
        values, vectors = torch.linalg.eigh(finite)
        ctx.save_for_backward(values, vectors)
        ctx.k = k
        return vectors[..., -k:].flip(-1)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*op d k"]) -> tuple[Float[Tensor, "*op d d"], None]:
        """Return the gradient for the matrices, itself symmetric."""
        (values, vectors), k = ctx.saved_tensors, ctx.k
        rest, span = vectors[..., :-k], vectors[..., -k:]
        gaps = values[..., None, -k:] - values[..., :-k, None]
        gaps = gaps.maximum(GAP * values[..., None, -1:]).clamp(min=torch.finfo(values.dtype).tiny)
        found = rest @ ((rest.mT @ grad.flip(-1)) / gaps) @ span.mT
        return (found + found.mT) / 2, None


class Adversary:
    """A penalty at work in one training: its sample, and the loss of what the removal leaves.

    Its random draws depend on the seed and the step alone, so a resumed run goes on as if it had never stopped. On a GPU every
    penalised step waits for the eigenvectors.
    """

    def __init__(
        self, penalty: Penalty, config: ToyConfig, train: Bool[Tensor, " n"], seed: int, device: str = "cpu"
    ) -> None:
        self.penalty, self.config, self.seed, self.device = penalty, config, seed, device
        chosen = self._sample(train)
        self.tokens = tasks.all_tokens(config)[chosen.flatten()].to(device)
        of = F.one_hot(tasks.answers(config)[chosen], config.n_answers).mT.double()
        share = of.mean(-1, keepdim=True)
        centred = of / of.sum(-1, keepdim=True).clamp(min=1) - 1 / chosen.shape[1]
        self.contrasts: Float[Tensor, "op answers sample"] = (share.sqrt() * centred).to(device)
        """Times the sample's activations: the answers' means minus their mean, weighted by the roots of their shares."""

    def due(self, taken: int) -> bool:
        """Whether the step after ``taken`` steps has the penalty."""
        return taken >= self.penalty.start and (taken - self.penalty.start) % self.penalty.every == 0

    def loss(
        self,
        params: Params,
        residual: Float[Tensor, "batch d_model"],
        tokens: Int[Tensor, "batch pos"],
        answers: Int[Tensor, " batch"],
        taken: int,
    ) -> Float[Tensor, ""]:
        """Return the weighted cross-entropy of what the removal leaves of the batch's last residual stream."""
        if self.penalty.kind == "dropout":
            left = self._dropped(residual, taken)
        else:
            left = self._removed(residual, tokens, self.directions(params, taken).to(residual.dtype))
        return self.penalty.weight * F.cross_entropy(readout(self.config, params, left), answers)

    def directions(self, params: Params, taken: int) -> Float[Tensor, "op d_model directions"]:
        """Return the orthonormal float64 directions that the step after ``taken`` steps removes, in order."""
        kind, k = self.penalty.kind, self.penalty.directions
        with torch.set_grad_enabled(self.penalty.through):
            acts = last_residual(self.config, params, self.tokens).double().unflatten(0, self._shape)
            spread = (acts - acts.mean(1, keepdim=True)) / self._shape[1] ** 0.5
            if kind == "covariance":
                return torch.linalg.qr(spread.mT @ self._random(torch.randn, (*self._shape, k), taken)).Q
            if kind == "shuffled":
                order = self._random(torch.rand, self._shape, taken).argsort(-1)
                acts = acts.gather(1, order[..., None].expand_as(acts))
            rows = spread if kind == "pca" else self.contrasts @ acts
            return Leading.apply(rows.mT @ rows, k)

    @property
    def _shape(self) -> tuple[int, int]:
        """Operations, and prompts of each in the sample."""
        return len(self.contrasts), self.contrasts.shape[-1]

    def _sample(self, train: Bool[Tensor, " n"]) -> Int[Tensor, "op sample"]:
        """Numbers of training prompts, drawn once; `tasks.split` gives every operation as many pairs."""
        n = len(self.config.operations)
        prompts = train.nonzero()[:, 0].view(n, -1)
        order = self._random(torch.rand, tuple(prompts.shape), "sample").to(prompts.device).argsort(-1)
        return prompts.gather(1, order)[:, : self.penalty.sample // n].sort(-1).values

    def _random(self, draw: Any, shape: tuple[int, ...], what: int | str) -> Float[Tensor, "..."]:
        """Random float64 numbers for a step (or the sample), the same whenever and wherever they are drawn."""
        digest = hashlib.sha256(f"penalty {self.seed} {what}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return draw(shape, generator=generator, dtype=torch.float64).to(self.device)

    def _removed(
        self,
        residual: Float[Tensor, "batch d_model"],
        tokens: Int[Tensor, "batch pos"],
        q: Float[Tensor, "op d_model directions"],
    ) -> Float[Tensor, "batch d_model"]:
        """x - Q_o Q_o^T x, with the directions of each prompt's operation o."""
        coords = torch.einsum("bd,odk->bok", residual, q)
        if len(q) > 1:
            operation = tokens[:, self.config.layout.split().index("op")] - self.config.modulus
            coords = coords * F.one_hot(operation, len(q))[..., None]
        return residual - torch.einsum("bok,odk->bd", coords, q)

    def _dropped(self, residual: Float[Tensor, "batch d_model"], taken: int) -> Float[Tensor, "batch d_model"]:
        rate = self.penalty.directions / self.config.d_model
        kept = self._random(torch.rand, tuple(residual.shape), taken) >= rate
        return residual * kept / (1 - rate)
