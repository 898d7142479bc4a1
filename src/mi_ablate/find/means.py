"""Difference of class means: the direction of abliteration.

    r = mu+ - mu-                                            (Arditi et al. 2024, arXiv 2406.11717)

for each layer, position and site, in activation units: `Subspace.vector` is r itself, so ``Add(s.vector)`` moves one
class mean onto the other. Variants, all of them optional: paired examples; r against the mean of the reference class,
r - (r . m) m with m = mu- / |mu-|, twice (grimjim 2025); r_j / sqrt((s+_j^2 + s-_j^2) / 2), a reader rather than a
writer; robust means (see `mi_ablate.find.robust`).

It misleads where the classes differ in something else too (length, topic, punctuation): that is in r as well. One
direction is what separates two *means*; it need not be the only way in which a model represents the concept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.find._inputs import Labels, counts, in_pairs, two_classes
from mi_ablate.find.classwise import ClassMoments
from mi_ablate.find.robust import geometric_median, winsorised
from mi_ablate.regression import _activations
from mi_ablate.subspace import Subspace

ROBUST = (None, "winsor", "median")


def difference_of_means(
    acts: Float[Tensor, "n d"],
    labels: Labels,
    *,
    paired: bool = False,
    against: str | Float[Tensor, " m"] | Sequence[float] | None = None,
    standardised: bool = False,
    robust: str | None = None,
    quantile: int | float = 0.995,
    name: str = "",
) -> Subspace:
    """Return r = mu+ - mu- as a subspace of rank 1, with its size; the positive class has the larger coordinate.

    ``source["coordinates"]`` holds the mean coordinate of each class along the unit direction, which affine concept
    editing moves to (Ablate to the reference mean): of the activations as they are, also where they were bounded to find
    the direction; with the median, the medians' coordinates.

    Args:
        acts: activations, one row an example.
        labels: True where the concept is present, or two whole numbers of which the larger is the positive class.
        paired: row i of the positives belongs to row i of the negatives. The mean is the same; counts that differ are
            refused, and the robust median is taken of the differences.
        against: "reference" to remove what r has along the mean of the negative class (the robust one, where one is
            asked for), or a vector ``[d]``.
        standardised: divide each coordinate by the root of the mean of the two class variances; a coordinate that
            never varies gives 0. Not with the median, whose spread would not be robust.
        robust: None, "winsor" (bound each vector by its own quantile of magnitudes) or "median" (geometric median).
        quantile: the quantile of "winsor".
        name: what to call the result.

    Raises:
        ValueError: one class only, equal means, pairs that do not match, NaN, nothing left beside ``against``, a median
            that is to be standardised.

    """
    raw = x = _activations(acts)
    positive, values = two_classes(labels, len(x), "difference_of_means")
    if robust not in ROBUST:
        raise ValueError(f"robust={robust!r} is one of {ROBUST}.")
    if robust == "median" and standardised:
        raise ValueError(
            "robust='median' has no spread to go with it: the outliers would come back through the variances. Use "
            "robust='winsor' with standardised=True, or leave standardised out."
        )
    if robust == "winsor":
        x = winsorised(x, quantile)
    moments = ClassMoments(2).update(x, positive.long())
    r = None
    if paired:
        ups, downs = in_pairs(x, positive)
        r = geometric_median(ups - downs) if robust == "median" else (ups - downs).mean(0)
    if robust == "median":
        here = positive.to(x.device)
        moments.mean = torch.stack([geometric_median(x[~here]), geometric_median(x[here])])
    means = ClassMoments(2).update(raw, positive.long()).mean if robust == "winsor" else moments.mean
    options: dict[str, Any] = {"paired": paired, "robust": robust}
    options |= {"quantile": quantile} if robust == "winsor" else {}
    options |= {"n": counts(positive.long(), values)}
    return between_means(moments, means, against, standardised, name, options, r)


def between_means(
    moments: ClassMoments,
    means: Float[Tensor, "2 d"],
    against: str | Float[Tensor, " m"] | Sequence[float] | None,
    standardised: bool,
    name: str,
    options: dict[str, Any],
    r: Float[Tensor, " d"] | None = None,
) -> Subspace:
    """Return the direction from two classes' moments, or from a difference that is known; ``means`` of coordinates."""
    low, high = moments.mean
    raw = high - low if r is None else r
    if float(raw.norm()) <= 1e-13 * float(moments.mean.norm()):
        raise ValueError("The two class means are equal: there is no direction between them.")
    r = _standardised(raw, moments) if standardised else raw
    if against is not None:
        r = _projected(r, low, against)
    size = r.norm()
    v = r / size
    v = -v if float(v @ raw) < 0 else v
    source = {
        "method": "difference of means",
        **options,
        "against": against if against is None or isinstance(against, str) else "vector",
        "standardised": standardised,
        "sizes": [float(size)],
        "coordinates": {"negative": float(means[0] @ v), "positive": float(means[1] @ v)},
    }
    return Subspace(v[:, None], name or "difference of means", source)


def _standardised(r: Tensor, moments: ClassMoments) -> Tensor:
    spread = (moments.variance.sum(0) / 2).sqrt()
    constant = spread <= 1e-12 * moments.mean.abs().amax(0)
    apart = constant & (r.abs() > 1e-9 * moments.mean.abs().amax(0))
    if bool(apart.any()):
        raise ValueError(
            f"{int(apart.sum())} coordinates (first: {int(apart.nonzero()[0])}) do not vary within the classes and "
            "differ between them: standardised, they are infinite. Use standardised=False."
        )
    return torch.where(constant, 0.0, r / torch.where(constant, 1.0, spread))


def _projected(r: Tensor, low: Tensor, against: str | Sequence[float] | Tensor) -> Tensor:
    if isinstance(against, str) and against != "reference":
        raise ValueError(f"against={against!r} is None, 'reference' (the mean of the negative class) or a vector [d].")
    reference = low if isinstance(against, str) else torch.as_tensor(against).detach()
    if reference.shape != r.shape:
        raise ValueError(f"against has shape {list(reference.shape)}; a vector [d] = [{len(r)}] is needed.")
    reference = reference.to(r)
    if not torch.isfinite(reference).all():
        raise ValueError("The vector given as against holds NaN or infinite values.")
    if float(reference.norm()) == 0:
        return r
    unit, left = reference / reference.norm(), r
    for _ in range(2):
        left = left - (left @ unit) * unit
    if float(left.norm()) <= 1e-10 * float(r.norm()):
        raise ValueError("The difference lies along the reference: nothing is left of it once that is removed.")
    return left
