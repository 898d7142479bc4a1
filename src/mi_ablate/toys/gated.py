"""A toy that has learnt to decline: the offline stand-in for a trained refusal.

A transformer is first **pretrained to add**, (a + b) mod p on all prompts, and then **fine-tuned** to answer one of several
DECLINE tokens where a condition holds that it has to compute: both operands belong to a random set of numbers, cut into
groups, and the token tells the group of a (`ToyConfig.gate`). All other prompts are answered (a + b) mod p as before. This
is the setting of abliteration (Arditi et al. 2024, arXiv 2406.11717): the sums of gated prompts were learnt, training put a
behaviour in front of them, and `directions` measures how few directions the behaviour hangs on.

    declines    answers among the DECLINE tokens, on gated prompts       (`declined`)
    recovered   answers (a + b) mod p, on gated prompts                  ``metrics.accuracy(toy.inputs["sum"])``
    kept        answers (a + b) mod p, on open prompts                   the same metric, on the other prompts

What makes the sums *latent*, five seeds each in `benchmarks/gated.py`: the condition first. Had one operand in the set been
enough, its number would be in no open prompt, fine-tuning would overwrite its embedding, and 0.01 to 0.05 of the sums come
back. With both needed, every number is still added in open prompts, and 0.94 [0.38, 1.00] come back where declines are gone.
The order comes second: trained on both from the start it is 0.33 [0.16, 0.91], what addition generalises to by itself.
Prompts held out are held out of both phases.

It misleads where it is read as a language model: prompts have four tokens, one position decides, and every gated prompt has
one right answer. What removes or defends this behaviour here says how the measurement works, not how a production model fares.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..metrics import PositionMetric
from ..subspace import Subspace


def draw_gate(modulus: int, *, size: int, groups: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Return ``groups`` groups of together ``size`` numbers below ``modulus``, drawn at random, for `ToyConfig.gate`.

    The share of gated prompts is (size / modulus)^2. The same seed gives the same numbers whatever the number of groups.

    Raises:
        ValueError: more numbers than there are, or more groups than numbers.

    """
    if not 0 < groups <= size < modulus:
        raise ValueError(f"{size} of {modulus} numbers in {groups} groups: 0 < groups <= size < modulus is needed.")
    numbers = torch.randperm(modulus, generator=torch.Generator().manual_seed(seed))[:size].tolist()
    return tuple(tuple(sorted(numbers[i::groups])) for i in range(groups))


def declined(modulus: int, pos: int = -1) -> PositionMetric:
    """Return the metric that is 1.0 where the largest logit is a DECLINE token's (``modulus`` or above), else 0.0."""

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        return (x.argmax(-1) >= modulus).to(x.dtype)

    return PositionMetric("declined", pos, score, ceiling=1.0, kind="rate")


def directions(
    acts: Float[Tensor, "n d"], answers: Int[Tensor, " n"], modulus: int, *, rank: int | None = None
) -> Subspace:
    """Return the directions that separate gated from open prompts, in the order in which the curves remove them.

    First r = mean of the gated - mean of the open activations. Then the singular directions of what r leaves of the
    contrasts (mean of each DECLINE token - mean of the open prompts); for D tokens that makes D directions. Beyond them,
    where ``rank`` asks for more, the singular directions of what those leave of gated activations - mean of the open ones:
    the largest, which need not have to do with declining.

    Args:
        acts: activations, one row a prompt.
        answers: what the toy was taught: DECLINE tokens are ``modulus`` and above.
        modulus: of the toy.
        rank: how many directions; as many as there are DECLINE tokens among the answers by default.

    Raises:
        ValueError: prompts that are all open or all gated; more directions than there are.

    """
    x, answers = acts.detach().double(), answers.to(acts.device)
    gated = answers >= modulus
    if not bool(gated.any()) or bool(gated.all()):
        which = "open" if not bool(gated.any()) else "gated"
        raise ValueError(f"All {len(x)} prompts are {which}: prompts of both kinds are needed for a direction.")
    zero, tokens = x[~gated].mean(0), answers[gated].unique().tolist()
    contrasts = torch.stack([x[answers == token].mean(0) for token in tokens]) - zero
    found = Subspace.span(x[gated].mean(0) - zero)
    rank = len(tokens) if rank is None else rank
    for rows in (contrasts, x[gated] - zero):
        left = rows - found.project(rows)
        _, sizes, vectors = torch.linalg.svd(left, full_matrices=False)
        real = vectors[sizes > 1e-9 * rows.norm()][: max(0, rank - found.rank)]
        found = Subspace.span(torch.cat((found.basis.T, real)))
    if found.rank < rank:
        raise ValueError(
            f"rank={rank} was asked, and {len(x)} prompts span {found.rank} directions between the classes."
        )
    source = {"method": "difference of means, then contrasts of the DECLINE tokens", "tokens": len(tokens)}
    return Subspace(found.basis[:, :rank].contiguous(), "declining", source)
