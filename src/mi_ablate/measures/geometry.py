"""How the answers lie in the last residual stream: class means, variances, and the overlap of two operations.

None of these numbers says what the readout uses: a direction with much variance and no gain is idle, and a large mean
along a direction makes zero-ablation the loss of a constant. Overlaps of leading subspaces are high for any two sets of
vectors that share a covariance, so each stands beside a null drawn from the activations' covariance and a ceiling from
split halves of one operation (each of half the pairs, so whole sets would agree more).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.measures.bases import contrastive
from mi_ablate.measures.subject import DIRECTIONS, Operation
from mi_ablate.modular import spectrum
from mi_ablate.overlap import mean_cosines, over_draws, split_half
from mi_ablate.subspace import Subspace

OVERLAP_KS, OVERLAP_DRAWS = (5, 10, 20, 30), 20


def class_means(one: Operation) -> dict[str, Any] | None:
    """Spectrum of the class means at the last residual, over all inputs and over training pairs."""
    sets = {"all": (one.every_acts[one.last], one.task.values), "train": (one.acts[one.last], one.values)}
    return {name: _means(acts, values, one.task.period) for name, (acts, values) in sets.items()}


def variance(one: Operation) -> dict[str, Any] | None:
    """Mean, total and within-class variance at the last residual, by leading contrastive direction too.

    Variances divide by n, so total = between + within. "gain" is the norm of the readout along a direction: W_U minus
    its mean over answers, times the final norm's weight, centred over coordinates where the norm is a LayerNorm.
    """
    if int(one.train.sum()) < 2:
        return None
    x = one.acts[one.last].double()
    mean = x.mean(0)
    centred, within = x - mean, x - _per_class(x, one.values)[1]
    spread = torch.linalg.eigvalsh(within.T @ within / len(x)).flip(0).clamp(min=0)
    found: dict[str, Any] = {
        "mean_norm": float(mean.norm()),
        "total": float((centred**2).sum(1).mean()),
        "within": float((within**2).sum(1).mean()),
        "within_eigenvalues": spread[:DIRECTIONS],
        "directions": None,
        "sites": {
            name: {"mean_norm": float(a.double().mean(0).norm()), "total": float(a.double().var(0, correction=0).sum())}
            for name, a in one.acts.items()
        },
    }
    if one.bases is not None:
        q = one.bases[one.last].basis[:, :DIRECTIONS]
        found["directions"] = {
            "variance": ((centred @ q) ** 2).mean(0),
            "within": ((within @ q) ** 2).mean(0),
            "gain": (readout(one).T @ q).norm(dim=0),
            "mean": mean @ q,
        }
    return found


def readout(one: Operation) -> Float[Tensor, "d v"]:
    """Return what the answers read of the normalised stream, differences between answers only, in float64."""
    weights, norm = one.subject.weights, one.subject.config.config.normalization
    found = weights["unembed.W_U"].double()
    found = found - found.mean(1, keepdim=True)
    if norm is not None:
        found = weights["ln_final.w"].double()[:, None] * found
    return found - found.mean(0) if norm == "LN" else found


def overlap(one: Operation) -> dict[str, Any] | None:
    """Overlap of the leading contrastive subspaces with each other operation's: ``[other][k]``, with its references."""
    others = [other for other in one.subject.operations.values() if other is not one]
    if not others:
        return None
    return {other.name: {str(k): _overlap(one, other, k) for k in OVERLAP_KS} for other in others}


def _overlap(one: Operation, other: Operation, k: int) -> dict[str, Any] | None:
    if one.bases is None or other.bases is None:
        return None
    mine, theirs, d = one.bases[one.last], other.bases[other.last], one.bases[one.last].d
    if k > min(mine.rank, theirs.rank):
        return None
    names = one.subject.config.config.operations
    shifts = {o: OVERLAP_DRAWS * names.index(o.name) for o in (one, other)}  # no draw is used twice
    seeds = range(OVERLAP_DRAWS)
    drawn = [
        mean_cosines(*(o.controls["covariance"].draw(o.last, k, s + shifts[o]) for o in (one, other))) for s in seeds
    ]
    blind = [mean_cosines(*(Subspace.random(d, k, s + shifts[o]) for o in (one, other))) for s in seeds]
    return {
        **mean_cosines(mine[:k], theirs[:k]),
        "isotropic": {"squared_expected": k / d, **over_draws(blind)},
        "covariance": over_draws(drawn),
        "split_half": {o.name: _halves(o, k) for o in (one, other)},
    }


def _halves(one: Operation, k: int) -> dict[str, float] | None:
    """Overlap of the same operation's leading directions from two random halves of its training pairs."""
    try:
        return split_half(lambda x, values: contrastive(x, values, "half"), one.acts[one.last], one.values, k)
    except ValueError:  # too few pairs, nothing to span, or fewer directions than k
        return None


def _per_class(x: Float[Tensor, "n d"], values: Int[Tensor, " n"]) -> tuple[Float[Tensor, "c d"], Float[Tensor, "n d"]]:
    """Class means of the answers that occur, and the mean that belongs to each row."""
    index = torch.unique(values, return_inverse=True)[1]
    sums = x.new_zeros(int(index.max()) + 1, x.shape[1]).index_add(0, index, x)
    means = sums / torch.bincount(index)[:, None]
    return means, means[index]


def _means(acts: Tensor, values: Tensor, period: int) -> dict[str, Any] | None:
    if len(values) < 2:
        return None
    means = _per_class(acts.double(), values)[0]
    s = torch.linalg.svdvals(means - means.mean(0))
    complete = len(means) == period
    return {
        "answers": len(means),
        "singular_values": s,
        **dimensions(s),
        "shares": spectrum(means).shares if complete else None,
    }


def dimensions(s: Float[Tensor, " r"]) -> dict[str, Any]:
    """Rank99 and the 95 %-variance dimensions (singular values for that share of the energy), participation ratio."""
    energy = s**2
    total = float(energy.sum())
    if not total > 0:
        return {"rank99": None, "dims95": None, "participation": None}
    share = energy.cumsum(0) / total
    rank99, dims95 = (int((share < level - 1e-12).sum()) + 1 for level in (0.99, 0.95))
    return {"rank99": rank99, "dims95": dims95, "participation": total**2 / float((energy**2).sum())}
