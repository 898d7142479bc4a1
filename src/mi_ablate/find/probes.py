"""Linear probes as directions, in activation coordinates: logistic regression, discriminants, and INLP.

    logistic   weights of a regularised logistic regression (scikit-learn)
    lda        S_w^(-1) (mu+ - mu-) and its like for more classes, S_w the shrunk within-class covariance (scikit-learn)
    inlp       repeat: fit a logistic probe, add its direction, project it out (Ravfogel et al. 2020, arXiv 2004.07667)

A probe is a *reader*: it says along which direction the concept can be read off, which mixes what the concept writes
with whatever cancels correlated noise. So removing a probe's direction need not remove the information (INLP needs many
rounds; `mi_ablate.find.leace` does it in one), and adding it need not write the concept. That a probe reads a concept
does not show that the model does.

Inputs are standardised for the fit and the weights mapped back, so a direction can be used on the activations as they
are. ``source["accuracy"]`` is cross-validated, ``source["chance"]`` the share of the largest class. With unequal classes
that share is hard to beat for a probe that reads the concept well, so ``source["balanced_accuracy"]`` stands beside it:
the mean over classes of the share that is right in each, 1 / classes by chance. INLP goes by it alone.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.find._inputs import (
    Labels,
    checked_rank,
    counts,
    in_order,
    numbered,
    ordered,
    oriented,
    rounding,
    to_the_furthest,
)
from mi_ablate.regression import _activations
from mi_ablate.subspace import Subspace

_FOLDS = 5
_SEED = 0


def logistic(
    acts: Float[Tensor, "n d"], labels: Labels, *, C: int | float = 1.0, rank: int | None = None, name: str = ""
) -> Subspace:
    """Return the weight directions of a logistic probe: one of two classes, classes - 1 of more.

    Of more than two classes they are ordered by the singular values of the weights (on standardised inputs), made
    orthonormal in that order, and each points to the class whose score rises most along it.

    Args:
        acts: activations, one row an example.
        labels: True and False, or any whole numbers.
        C: inverse strength of the L2 penalty on the weights of standardised inputs.
        rank: how many directions; all by default.
        name: what to call the result.

    Raises:
        ValueError: one class only, C not positive, a rank that is not there.

    """
    x = _activations(acts)
    index, values = numbered(labels, len(x))
    make, scale = _logistic(C), _scale(x)
    scaled = (x - x.mean(0)) / scale
    source: dict[str, Any] = {"method": "logistic probe", "C": C, "n": counts(index, values)}
    basis = _directions(scaled, scale, index, make, rank)
    return Subspace(basis, name or "logistic probe", {**source, **_score(scaled, index, make)})


def lda(
    acts: Float[Tensor, "n d"],
    labels: Labels,
    *,
    shrinkage: int | float | str = "auto",
    rank: int | None = None,
    name: str = "",
) -> Subspace:
    """Return the linear discriminants, the largest ratio of between- to within-class variance first.

    They are made orthonormal in that order, and each points to the class whose mean is furthest along it; of two, to the
    larger label. ``source["discriminants_explained"]`` holds their shares of the ratio before that.

    Args:
        acts: activations, one row an example.
        labels: True and False, or any whole numbers.
        shrinkage: of the within-class covariance towards a multiple of the identity, 0 to 1; "auto" is Ledoit and
            Wolf's, which also makes fewer examples than dimensions possible.
        rank: how many directions; by default all, at most classes - 1.
        name: what to call the result.

    Raises:
        ValueError: one class only, equal means, a singular covariance (shrinkage 0 and few examples), a rank that is
            not there.

    """
    from numpy.linalg import LinAlgError
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x = _activations(acts)
    index, values = numbered(labels, len(x))
    if len(x) <= len(values):
        raise ValueError(f"{len(x)} examples of {len(values)} classes: a within-class covariance needs more examples.")

    means = torch.stack([x[(index == i).to(x.device)].mean(0) for i in range(len(values))])
    if float((means - means.mean(0)).norm(dim=1).max()) <= rounding(torch.as_tensor(acts)):
        raise ValueError("The class means are equal up to rounding: no linear discriminant tells the classes apart.")

    def make() -> Any:
        return LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ratios of eigenvalues that are zero
            probe = make().fit(x.cpu().numpy(), index.numpy())
    except LinAlgError as error:
        raise ValueError(
            f"The within-class covariance of {len(x)} examples in {x.shape[1]} dimensions is singular at "
            f'shrinkage={shrinkage!r}: use "auto" or a larger number, if the examples vary within their classes at all.'
        ) from error
    ratio = torch.tensor(probe.explained_variance_ratio_[: len(values) - 1].tolist())
    full = int((ratio > 1e-10).sum())
    kept = checked_rank(rank, full, f"classes differ along {full} discriminants")
    basis = to_the_furthest(in_order(torch.as_tensor(probe.scalings_[:, :kept].copy()).to(x)), means)
    source: dict[str, Any] = {"method": "LDA", "shrinkage": shrinkage, "n": counts(index, values)}
    source |= {"discriminants_explained": ratio[:kept].tolist(), **_score(x, index, make)}
    return Subspace(basis, name or "LDA", source)


def inlp(
    acts: Float[Tensor, "n d"], labels: Labels, *, rank: int | None = None, C: int | float = 1.0, name: str = ""
) -> Subspace:
    """Return the directions of logistic probes fitted one after another, each on what the earlier ones leave.

    Classes count the same whatever their sizes: the probe's loss weighs them so, and it is judged by its cross-validated
    balanced accuracy. It stops where that is within two standard errors of chance, 1 / classes;
    ``source["stopped"]`` says why it ended ("chance", "rank" or "nothing left"), and ``source["balanced_accuracy"]`` holds
    the balanced accuracy before each round of classes - 1 directions, and after the last one where it ended at chance.

    Args:
        acts: activations, one row an example.
        labels: True and False, or any whole numbers; a probe of k classes adds k - 1 directions.
        rank: demand so many directions; by default as many as it takes to reach chance.
        C: inverse strength of the L2 penalty on the weights of standardised inputs.
        name: what to call the result.

    Raises:
        ValueError: a first probe at chance, or chance before ``rank`` directions: the rest would be noise.

    """
    x = _activations(acts)
    index, values = numbered(labels, len(x))
    rank = None if rank is None else checked_rank(rank, x.shape[1], f"activations have {x.shape[1]} dimensions")
    sizes = torch.bincount(index)
    if int(sizes.min()) < 2:
        raise ValueError("INLP stops at chance on held-out folds: each class needs at least two examples.")
    make, scale, left = _logistic(C, "balanced"), _scale(x), x - x.mean(0)
    chance = 1 / len(values)
    error = chance * (chance * (1 - chance) * float((1 / sizes).sum())) ** 0.5
    basis, accuracy, stopped = x[:0].T, [], "rank"
    while rank is None or basis.shape[1] < rank:
        accuracy.append(_score(left / scale, index, make)["balanced_accuracy"])
        if accuracy[-1] <= chance + 2 * error:
            stopped = "chance"
            break
        new = _directions(left / scale, scale, index, make, None, beside=basis)
        basis = torch.cat([basis, new], dim=1)
        left = left - (left @ basis) @ basis.T
        if new.shape[1] == 0 or float(left.norm()) <= 1e-9 * float(x.norm()):
            stopped = "nothing left"
            break
    found = basis.shape[1]
    if found == 0:
        raise ValueError(
            f"A probe reaches a balanced accuracy of {accuracy[0]:.3f} on held-out folds, which is chance: there is "
            "nothing to remove."
        )
    if rank is not None and found < rank:
        raise ValueError(
            f"rank {rank} was asked for; after {found} directions INLP stops ({stopped}). Ask for at most {found}, or "
            "leave rank out."
        )
    source = {"method": "INLP", "C": C, "n": counts(index, values), "balanced_accuracy": accuracy, "stopped": stopped}
    return Subspace(basis[:, : rank or found].contiguous(), name or "INLP", {**source, "chance": chance})


def _logistic(C: int | float, weights: str | None = None) -> Callable[[], Any]:
    if C <= 0:
        raise ValueError(f"C={C}: the inverse strength of the penalty, above 0.")

    def make() -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=C, max_iter=2000, class_weight=weights)

    return make


def _scale(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The spread of each coordinate, 1 for those that do not vary."""
    spread = x.std(0, correction=0)
    return torch.where(spread <= 1e-12 * x.abs().amax(0), torch.ones_like(spread), spread)


def _directions(
    x: Float[Tensor, "n d"],
    scale: Float[Tensor, " d"],
    index: Int[Tensor, " n"],
    make: Callable[[], Any],
    rank: int | None,
    beside: Float[Tensor, "d b"] | None = None,
) -> Float[Tensor, "d r"]:
    """The directions of a probe's weights on scaled inputs, orthonormal in activation space, ordered and signed.

    ``beside`` is a basis that they are made orthogonal to first.
    """
    weights = torch.as_tensor(make().fit(x.cpu().numpy(), index.numpy()).coef_).to(x)
    rows = weights - weights.mean(0) if len(weights) > 1 else weights
    columns, _ = ordered(rows, rank, "weights of the probe")
    columns, rows = columns / scale[:, None], rows / scale
    if beside is not None:
        columns = in_order(torch.cat([beside, columns], dim=1))[:, beside.shape[1] :]
    else:
        columns = in_order(columns)
    return oriented(columns, rows[0]) if len(rows) == 1 else to_the_furthest(columns, rows)


def _score(x: Tensor, index: Int[Tensor, " n"], make: Callable[[], Any]) -> dict[str, Any]:
    """Cross-validated accuracies (None where a class has a single example, or a fold cannot be fitted), and chance."""
    from numpy.linalg import LinAlgError
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    sizes = torch.bincount(index)
    found: dict[str, Any] = {"accuracy": None, "balanced_accuracy": None, "chance": int(sizes.max()) / len(index)}
    folds = min(_FOLDS, int(sizes.min()))
    if folds < 2:
        return found
    splits = StratifiedKFold(folds, shuffle=True, random_state=_SEED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # eigenvalues that are zero in a fold
            told = torch.as_tensor(cross_val_predict(make(), x.cpu().numpy(), index.numpy(), cv=splits))
    except (LinAlgError, ValueError):
        return found
    right = (told == index).to(torch.float64)
    each = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, index, right) / sizes
    return {**found, "accuracy": float(right.mean()), "balanced_accuracy": float(each.mean())}
