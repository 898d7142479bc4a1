"""Gradient symmetricity: whether the two operands act on a logit in the same direction (Zhong et al. 2023, arXiv 2306.17844).

    gs = mean over triples (a, b, c) of cos(∂ logit_c / ∂E_a, ∂ logit_c / ∂E_b)

with the gradients taken at the output of the token embedding, before positions, and c any answer, right or wrong. Averaging
the two embeddings first and computing on the mean (Pizza) gives 1; multiplying them (Clock) gives less.

The published numbers (0.9937 for Model A, 0.3336 for Model B) are the mean over 100 triples of one draw: all (a, b, c) in
lexicographic order, ``random.Random(42).shuffle``, the first 100. Another draw of 100 gives 0.31 to 0.44 on Model B, all
205,379 triples give 0.3461; so the standard error stands beside the value, and "all" and larger draws are offered.

Misleading alone: it depends on the architecture before it depends on the algorithm. Untrained networks gave 0.9996 (one
layer, ``a b =``), 0.32 and 0.79 (two layers with LayerNorm, two kinds of initial weights) and 0.43 and 0.12 (``a b`` read at
b, where only b has a skip path); Model B's own weights, shuffled, give 0.34 as well. See `mi_ablate.modular.verdict`.
"""

import random
from array import array
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.model import attached, default_batch_size, run
from mi_ablate.modular.grids import Grid

PUBLISHED_SEED, PUBLISHED_COUNT = 42, 100


@dataclass(frozen=True)
class Symmetricity:
    """Gradient symmetricity over a draw of triples."""

    value: float
    """The mean cosine, from -1 to 1."""
    standard_error: float
    """Of the mean, from the draw; 0 where every triple counts."""
    spread: float
    """Standard deviation of the cosine over the triples; over sqrt(100), the standard error of the published draw."""
    triples: int
    draw: str
    """"published", "all" or "random"."""

    def __repr__(self) -> str:
        return f"Symmetricity({self.value:.4f} ± {self.standard_error:.4f}, {self.triples} triples, {self.draw})"


def published_triples(n: int, count: int = PUBLISHED_COUNT) -> Int[Tensor, "count 3"]:
    """Return the first ``count`` triples (a, b, c) of Zhong et al.'s draw for a group of n elements.

    A shuffle decides its first places last, so all n³ numbers pass through it, 4 bytes each.
    """
    if not 0 < count <= n**3:
        raise ValueError(f"{count} triples were asked for; Z_{n} has {n**3}.")
    order = array("I", range(n**3))
    random.Random(PUBLISHED_SEED).shuffle(order)
    return _triples(torch.tensor(order[:count].tolist()), n)


@torch.inference_mode(mode=False)
def gradient_symmetricity(grid: Grid, triples: str | int = "published", seed: int = 0) -> Symmetricity:
    """Return the mean cosine between a logit's gradients with respect to the two operands' embeddings.

    A gradient that is zero counts as a cosine of 0, as in the published code.

    Args:
        grid: a model on every pair; its prompts hold both operands, in any layout.
        triples: "published" (100 of the authors' draw), "all" (n³: 10 s at n = 59, minutes at n = 113), or how many to
            draw at random with replacement.
        seed: of a random draw.

    Raises:
        ValueError: prompts without the operands, a model whose logits have no gradient, an unknown draw.

    """
    n = grid.n
    if triples == "all":
        found, draw = _every(grid), "all"
    elif triples == "published":
        chosen = published_triples(n, min(PUBLISHED_COUNT, n**3))
        found, draw = cosines(grid, chosen), "published"
    elif isinstance(triples, int) and triples > 1:
        generator = torch.Generator().manual_seed(seed)
        chosen = _triples(torch.randint(n**3, (triples,), generator=generator), n)
        found, draw = cosines(grid, chosen), "random"
    else:
        raise ValueError(f"triples={triples!r} is 'published', 'all' or how many to draw at random, at least 2.")
    spread = float(found.std(correction=0))
    error = 0.0 if draw == "all" else float(found.std()) / len(found) ** 0.5
    return Symmetricity(float(found.mean()), error, spread, len(found), draw)


@torch.inference_mode(mode=False)
def cosines(grid: Grid, triples: Int[Tensor, "m 3"]) -> Float[Tensor, " m"]:
    """Return the cosine between the two gradients for each triple (a, b, c) of group elements; 0 where one is zero."""
    places, parts = operand_positions(grid), []
    for part in triples.split(_batch(grid)):
        a, b, c = part.unbind(1)
        logits, embedded = _forward(grid, grid.tokens[a * grid.n + b])
        picked = logits.gather(1, grid.c[c][:, None].to(logits.device)).sum()
        (gradient,) = torch.autograd.grad(picked, embedded)
        parts.append(_cosine(gradient, places))
    return torch.cat(parts)


def operand_positions(grid: Grid) -> tuple[int, int]:
    """Return the positions of the first and the second operand in the prompts.

    Raises:
        ValueError: no position holds an operand in every prompt.

    """
    tokens = grid.tokens.to("cpu").unflatten(0, (grid.n, grid.n))
    found = []
    for name, values in (("first", grid.a[:, None, None]), ("second", grid.b[None, :, None])):
        there = torch.nonzero((tokens == values).flatten(0, 1).all(0)).flatten()
        if not len(there):
            raise ValueError(
                f"No position of the prompts of {grid!r} holds the {name} operand; prompt 1 is {tokens[0, 1].tolist()}."
            )
        found.append(int(there[0]))
    return found[0], found[1]


def _every(grid: Grid) -> Float[Tensor, " m"]:
    """All triples: one forward pass for many pairs, one backward pass for each answer."""
    places, parts = operand_positions(grid), []
    for tokens in grid.tokens.split(_batch(grid)):
        logits, embedded = _forward(grid, tokens)
        for token in grid.c.tolist():
            (gradient,) = torch.autograd.grad(logits[:, token].sum(), embedded, retain_graph=True)
            parts.append(_cosine(gradient, places))
    return torch.cat(parts)


def _forward(grid: Grid, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the last position, and the embeddings that they can be derived by."""
    held: dict[str, Tensor] = {}

    def leaf(x: Tensor, hook: Any = None) -> Tensor:
        held["x"] = x.detach().requires_grad_()
        return held["x"]

    with torch.enable_grad(), attached(grid.model, [("hook_embed", leaf)]):
        logits = run(grid.model, tokens)[:, -1]
    if not logits.requires_grad:
        raise ValueError(
            f"The logits of {grid!r} have no gradient with respect to the embeddings: its forward pass runs under no_grad, or "
            "detaches on the way."
        )
    return logits, held["x"]


def _cosine(gradient: Tensor, places: tuple[int, int]) -> Float[Tensor, " b"]:
    x = gradient.detach().to("cpu", torch.float64)
    left, right = x[:, places[0]], x[:, places[1]]
    norms = left.norm(dim=1) * right.norm(dim=1)
    return torch.where(norms > 0, (left * right).sum(1) / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def _batch(grid: Grid) -> int:
    return max(1, default_batch_size(grid.model, grid.tokens.shape[1]) // 4)


def _triples(index: Int[Tensor, " m"], n: int) -> Int[Tensor, "m 3"]:
    return torch.stack([index // n**2, index // n % n, index % n], 1)
