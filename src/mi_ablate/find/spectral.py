"""Several directions from one singular value decomposition: class means, paired differences, whitened, PCA.

    class_means    SVD of the class means minus their mean, each class counting the same (contrastive SVD)
    paired_svd     SVD of D, rows d_i = x+_i - x-_i, **not centred**: its Gram matrix is n (C_d + d d^T) with d the mean
                   difference, so the mean contrast is kept
    whitened_svd   SVD of D (S + e I)^(-1/2), S the covariance of the negative class; mapped back by (S + e I)^(1/2)
                   (writers: what the concept adds) or (S + e I)^(-1/2) (readers: what tells it apart). Different things
    pca            SVD of the activations minus their mean, no labels: the largest directions, not those of a concept

``source["rms"]`` holds the root mean square along each direction that is returned, in activation units, and
``source["explained"]`` its share of the sum of squares. whitened_svd orders by what it finds in the whitened space, whose
directions are no longer orthogonal once mapped back: their numbers, in units of the negative class's spread, are
``source["whitened_rms"]`` and ``source["whitened_explained"]``, and stay whole when a part of the subspace is taken.

They mislead in the order: singular values rank by variance, and a large direction need not be one that the model
reads. Centring paired differences throws the mean contrast away (cosine 0.07 to a planted concept, uncentred 0.98),
which is why ``centred=True`` is for studying what varies *around* it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.find._inputs import (
    Labels,
    counts,
    in_order,
    in_pairs,
    numbered,
    ordered,
    oriented,
    rounding,
    to_the_furthest,
    two_classes,
)
from mi_ablate.find.classwise import ClassMoments
from mi_ablate.regression import _activations
from mi_ablate.subspace import Subspace

FORMS = ("writer", "reader")


def class_means(acts: Float[Tensor, "n d"], labels: Labels, *, rank: int | None = None, name: str = "") -> Subspace:
    """Return the singular directions of the class means about their mean, each class counting the same.

    `fit(acts, classes(labels)).subspace()` spans the same space but orders it by the fitted values, so by how frequent
    the classes are. Of two classes it is the difference of means, towards the larger label; otherwise each direction
    points to the class that is furthest along it.

    Args:
        acts: activations, one row an example.
        labels: True and False, or any whole numbers.
        rank: how many directions; by default all, at most classes - 1.
        name: what to call the result.

    Raises:
        ValueError: one class only, means that are equal up to rounding, a rank that is not there.

    """
    x = _activations(acts)
    index, values = numbered(labels, len(x))
    moments = ClassMoments(len(values)).update(x, index)
    rows = moments.mean - moments.mean.mean(0)
    basis, s = ordered(rows, rank, "class means about their mean", rounding(torch.as_tensor(acts)))
    basis = to_the_furthest(basis, rows)
    between, total = moments.shares()
    source: dict[str, Any] = {"method": "class means", "weighting": "each class the same", "n": counts(index, values)}
    source |= {"r2": float(between / total), **_sizes(s, basis, len(values))}
    return Subspace(basis, name or "class means", source)


def paired_svd(
    acts: Float[Tensor, "n d"],
    labels: Labels,
    *,
    rank: int | None = None,
    centred: bool = False,
    name: str = "",
) -> Subspace:
    """Return the singular directions of the paired differences x+ - x-, towards the positive class.

    Args:
        acts: activations; row i of the positives belongs to row i of the negatives.
        labels: True where the concept is present, or two whole numbers.
        rank: how many directions; all by default.
        centred: subtract the mean difference first. What is left is how the difference *varies* from pair to pair; the
            mean contrast, which is what most mean by the concept, is no longer in it.
        name: what to call the result.

    Raises:
        ValueError: unequal counts, differences that are all zero, more directions than there are.

    """
    x = _activations(acts)
    positive, values = two_classes(labels, len(x), "paired_svd")
    ups, downs = in_pairs(x, positive)
    rows = ups - downs
    mean = rows.mean(0)
    basis, s = ordered(rows - mean if centred else rows, rank, "paired differences")
    basis = oriented(basis, mean)
    source = {"method": "paired SVD", "centred": centred, "pairs": len(rows), "n": counts(positive.long(), values)}
    source |= _sizes(s, basis, len(rows))
    return Subspace(basis, name or "paired SVD", source)


def whitened_svd(
    acts: Float[Tensor, "n d"],
    labels: Labels,
    *,
    rank: int | None = None,
    form: str = "writer",
    ridge: int | float = 0.01,
    paired: bool = False,
    name: str = "",
) -> Subspace:
    """Return the singular directions of the differences in the metric of the negative class's covariance S.

    Where a large direction varies in both classes alike, a plain SVD finds that one; whitened, it counts as noise. The
    directions are made orthonormal in their order, and each points to the positive class.

    Args:
        acts: activations, one row an example.
        labels: True where the concept is present, or two whole numbers.
        rank: how many directions; all by default.
        form: "writer" maps the directions back with S^(1/2): what the concept adds to the activations, what to ablate
            or add. "reader" maps with S^(-1/2): what tells the classes apart, as a linear discriminant does.
        ridge: e, as a share of the mean variance tr(S) / d, added to every eigenvalue. It is what makes fewer examples
            than dimensions possible; 0 needs a covariance of full rank.
        paired: rows are x+_i - x-_i of matching pairs; otherwise x+_i - mu-.
        name: what to call the result.

    Raises:
        ValueError: a singular covariance without a ridge, a form that is neither, a rank that is not there.

    """
    x = _activations(acts)
    found, labelled = two_classes(labels, len(x), "whitened_svd")
    positive = found.to(x.device)
    if form not in FORMS:
        raise ValueError(f"form={form!r} is 'writer' (what the concept adds) or 'reader' (what tells it apart).")
    if ridge < 0:
        raise ValueError(f"ridge={ridge}: a share of the mean variance, 0 or above.")
    ups, downs = in_pairs(x, positive) if paired else (x[positive], x[~positive])
    centred = downs - downs.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(downs) - 1))
    values = values.clamp(min=0) + ridge * values.clamp(min=0).mean()
    if float(values[0]) <= 1e-12 * float(values[-1]):
        more = "a ridge above 0, such as 0.01" if ridge == 0 else f"a ridge above {ridge}, if they vary at all"
        raise ValueError(
            f"The covariance of {len(downs)} negative examples in {x.shape[1]} dimensions is singular: "
            f"give {more}, or more examples."
        )
    root = values.sqrt()
    rows = ups - (downs if paired else downs.mean(0))
    white, s = ordered((rows @ vectors) / root, rank, "whitened differences")
    basis = vectors @ (white * root[:, None] if form == "writer" else white / root[:, None])
    basis = oriented(in_order(basis), ups.mean(0) - downs.mean(0))
    source: dict[str, Any] = {"method": "whitened SVD", "form": form, "ridge": ridge, "paired": paired}
    whitened = {f"whitened_{key}": value for key, value in _sizes(s, basis, len(rows)).items()}
    square = (rows @ basis).pow(2).sum(0)
    source |= {"n": counts(found.long(), labelled), "explained": (square / rows.pow(2).sum()).tolist()}
    source |= {"rms": (square / len(rows)).sqrt().tolist(), **whitened}
    return Subspace(basis, name or f"whitened SVD, {form}", source)


def pca(
    acts: Float[Tensor, "n d"], labels: Labels | None = None, *, rank: int | None = None, name: str = ""
) -> Subspace:
    """Return the principal components of the activations, their mean removed, the largest variance first.

    Labels play no part in the directions, only in their sign: the positive class has the larger mean coordinate. Without
    labels the entry of largest magnitude is positive, so the sign does not depend on the order of the rows or the solver.

    Raises:
        ValueError: activations that do not vary, a rank that is not there, more than two classes.

    """
    x = _activations(acts)
    towards, n = None, {"all": len(x)}
    if labels is not None:
        found, values = two_classes(labels, len(x), "pca")
        positive, n = found.to(x.device), counts(found.long(), values)
        towards = x[positive].mean(0) - x[~positive].mean(0)
    basis, s = ordered(x - x.mean(0), rank, "activations about their mean")
    basis = oriented(basis, towards)
    return Subspace(basis, name or "PCA", {"method": "PCA", "n": n, **_sizes(s, basis, len(x))})


def _sizes(s: Float[Tensor, " all"], basis: Float[Tensor, "d r"], n: int) -> dict[str, list[float]]:
    """Shares of squares, and root mean squares, of the directions that are returned."""
    kept = s[: basis.shape[1]]
    return {"explained": (kept**2 / (s**2).sum()).tolist(), "rms": (kept / n**0.5).tolist()}
