"""The smallest change of a declined prompt's embeddings that turns the decline into its sum.

With x_i = W_E[t_i] + W_pos[i], what enters the first block, and a radius r, the attack looks for

    x + delta,  |delta_i| <= r |x_i| at the attacked positions,  whose largest logit is that of a + b,

by projected gradient descent on the margin max_j z_j - z_(a+b) (Madry et al. 2018, arXiv 1706.06083): steps of `PACE` r |x_i|
along each position's own normalised gradient, from no change and from a random one. The smallest r is found by bisection,
prompt by prompt. It is in units of |x_i|, because training scales embeddings: 1 may erase a token, and about 1.4 replaces it.

It misleads as every attack does: what it does not find may be there, so a radius is an upper bound of the smallest one. Two
controls: random changes of the same size say what the size alone does; the same attack towards another number, a + b + `SHIFT`,
says whether the sum is nearer than other answers are. A model can be robust here and lose to tokens.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate.toys.embedded import Embedded

PLACES: dict[str, tuple[int, ...]] = {"a": (0,), "+": (1,), "b": (2,), "=": (3,), "everywhere": (0, 1, 2, 3)}
STEPS, RESTARTS, PACE = 20, 2, 0.15
MOST, ROUNDS = 1.0, 9
"""The largest radius, and halvings of it: 1/512 is what can be told apart."""
RANDOM = 20
"""Random changes of each prompt."""
SHIFT = 7
"""What the other number is more than the sum."""


def smallest(
    net: Embedded, tokens: Int[Tensor, "n 4"], sums: Int[Tensor, " n"], place: str, *, seed: int = 0
) -> Float[Tensor, " n"]:
    """Return each prompt's smallest radius at a place; infinite where `MOST` does not do."""
    x, at = net.embed(tokens), torch.tensor(PLACES[place])
    generator = torch.Generator().manual_seed(seed)
    high = torch.full((len(x),), MOST)
    broken = reached(net, x, sums, at, high, generator)
    low, rows = torch.zeros_like(high), broken.nonzero()[:, 0]
    for _ in range(ROUNDS if len(rows) else 0):
        middle = (low[rows] + high[rows]) / 2
        hit = reached(net, x[rows], sums[rows], at, middle, generator)
        high[rows[hit]], low[rows[~hit]] = middle[hit], middle[~hit]
    return high.masked_fill(~broken, torch.inf)


def reached(
    net: Embedded,
    x: Float[Tensor, "n 4 d_model"],
    sums: Int[Tensor, " n"],
    at: Int[Tensor, " places"],
    radius: Float[Tensor, " n"],
    generator: torch.Generator,
) -> Bool[Tensor, " n"]:
    """Return for which prompts the attack finds a change within the radius that gives the sum."""
    clean, target = x.repeat(RESTARTS, 1, 1), sums.repeat(RESTARTS)
    size = (radius[:, None, None] * x[:, at].norm(dim=-1, keepdim=True)).repeat(RESTARTS, 1, 1)
    start = torch.randn(size.shape[0], len(at), x.shape[-1], generator=generator)
    start = size * start / start.norm(dim=-1, keepdim=True)
    delta, found = start, torch.zeros(len(clean), dtype=torch.bool)
    delta[: len(x)] = 0
    for step in range(STEPS + 1):
        delta = delta.detach().requires_grad_()
        logits = net.logits(clean.index_add(1, at, delta))
        found |= logits.detach().argmax(-1) == target
        if step == STEPS or bool(found.view(RESTARTS, -1).any(0).all()):
            break
        own = logits.gather(1, target[:, None])[:, 0]
        margin = logits.scatter(1, target[:, None], -torch.inf).amax(1) - own
        (gradient,) = torch.autograd.grad(margin.sum(), delta)
        moved = delta.detach() - PACE * size * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-20)
        delta = moved * (size / moved.norm(dim=-1, keepdim=True).clamp(min=1e-20)).clamp(max=1)
    return found.view(RESTARTS, -1).any(0)


def random_changes(
    net: Embedded,
    tokens: Int[Tensor, "n 4"],
    sums: Int[Tensor, " n"],
    place: str,
    radius: Float[Tensor, " n"],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Return how often random changes of just this size give the sum, and any number."""
    x, at = net.embed(tokens), torch.tensor(PLACES[place])
    generator, right, numbers = torch.Generator().manual_seed(seed), [], []
    for _ in range(RANDOM):
        delta = torch.randn(len(x), len(at), x.shape[-1], generator=generator)
        delta *= radius[:, None, None] * x[:, at].norm(dim=-1, keepdim=True) / delta.norm(dim=-1, keepdim=True)
        with torch.no_grad():
            answers = net.logits(x.index_add(1, at, delta)).argmax(-1)
        right.append((answers == sums).double().mean())
        numbers.append((answers < net.config.modulus).double().mean())
    return {"right": float(torch.stack(right).mean()), "any_number": float(torch.stack(numbers).mean())}


def nudged(
    net: Embedded, tokens: Int[Tensor, "n 4"], sums: Int[Tensor, " n"], place: str, *, seed: int = 0
) -> dict[str, Any]:
    """Return the smallest radii towards the sum and towards another number, and random changes of the same sizes."""
    radius = smallest(net, tokens, sums, place, seed=seed)
    other = smallest(net, tokens, (sums + SHIFT) % net.config.modulus, place, seed=seed)
    random = random_changes(net, tokens, sums, place, radius.clamp(max=MOST), seed=seed + 1)
    return {"sum": told(radius), "other": told(other), "random": random}


def told(radius: Float[Tensor, " n"]) -> dict[str, Any]:
    """Return quartiles of radii (None for a quartile beyond `MOST`), and the share of prompts within it."""
    ordered = [x if x <= MOST else None for x in radius.sort().values.tolist()]
    at = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in QUARTILES.items()}
    return {**at, "within": float((radius <= MOST).double().mean()), "prompts": len(radius)}


QUARTILES = {"low": 0.25, "median": 0.5, "high": 0.75}
