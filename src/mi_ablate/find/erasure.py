"""LEACE: the smallest affine edit after which no linear probe does better than a constant.

    W = S_xx^(+1/2),  U = left singular vectors of W S_xz,  P = W^+ U U^T W,  x' = x - P (x - mu)

(Belrose et al. 2023, arXiv 2306.03819). S_xx is the covariance of the activations, S_xz their covariance with the labels
z (a one-hot, or any design). P has rank classes - 1. `Leace.erase` is that edit; `Leace.subspace` its writer, its reader
or the orthogonal variant, which erases as well and moves the activations further; `Leace.oracle` moves them less than
either and needs the label of every example: x' = x - S_xz S_zz^+ (z - mu_z), what the fit predicts beyond the mean.

P does not depend on the units of the coordinates, so each is divided by its spread before S_xx is inverted: a coordinate
a million times larger than the others does not hide them. Everything comes from a `Fit` with covariance, so it streams:
``Fitter(covariance=True)``. The covariance of one-hot
labels is singular; the fit's solver leaves out what is below rounding (torch.linalg.pinv at its default tolerance inverts
it in half of the draws, and leaves a covariance of up to 0.17 with five classes: tests/test_traps_estimators.py).

It misleads where the guarantee is taken for more than it is: it is about linear probes, on the data of the fit, at this
one site. A nonlinear probe, later layers, or few examples in many dimensions (shrink, and test on others) escape it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.design import Design, classes, contrast
from mi_ablate.find._inputs import Labels, checked_rank, counts, in_order, numbered, whole
from mi_ablate.interventions import Add, Erase
from mi_ablate.regression import Fit, Fitter, _activations, _root, _scale
from mi_ablate.subspace import Subspace

FORMS = ("writer", "reader", "orthogonal")
_NULL = 1e-12
"""Eigenvalues of the covariance of scaled coordinates below this share of the largest are rounding."""
_OUTSIDE = 1e-7
"""A correlation with the labels that lies along such eigenvectors and is above this (float32's eps) is not rounding."""
_COLLINEAR = 1e-5
"""A design column of which others leave less than this share counts as one of them, as in a `Fit`."""


@dataclass(frozen=True, eq=False, repr=False)
class Leace:
    """The factors of the eraser, ``P = writer readerᵀ``, and the orthogonal variant's basis, all ``[d r]`` in float64."""

    fit: Fit
    writer: Float[Tensor, "d r"]
    reader: Float[Tensor, "d r"]
    orthogonal: Float[Tensor, "d r"]
    correlations: Float[Tensor, " r"]
    """Canonical correlations with the labels, largest first: how well each direction is read off linearly."""
    source: dict[str, Any]
    values: tuple[int, ...] = ()
    """Labels of the classes, in rising order; empty for a design."""

    @property
    def rank(self) -> int:
        """How many directions are erased: classes - 1."""
        return self.writer.shape[1]

    def erase(self, strength: int | float = 1.0) -> Erase:
        """Return the edit x' = x - s P (x - mu), a hook like any other."""
        return Erase(self.writer, self.reader, self.fit.mean, strength)

    def subspace(self, form: str = "writer", *, rank: int | None = None, name: str = "") -> Subspace:
        """Return the directions made orthonormal, those best read off first; of two classes, towards the larger label.

        Each points to the column of the design with which it varies most. ``source["correlations"]`` holds the multiple
        correlation of each returned direction's coordinate with the labels; before they were made orthonormal they were
        those of the field ``correlations``, which ``source["canonical_correlations"]`` keeps.

        Args:
            form: "writer" is what `erase` takes out, "reader" what it looks at. "orthogonal" spans S_xz, as the writers
                do, in the order of the covariance: mean-ablating either (``Ablate(s, to=leace.fit.mean)``) erases too,
                with a larger change than `erase`; mean-ablating the readers does not erase.
            rank: how many; all by default.
            name: what to call the result.

        """
        if form not in FORMS:
            raise ValueError(f"form={form!r} is one of {FORMS}.")
        kept = checked_rank(rank, self.rank, f"labels are erased with {self.rank} directions")
        columns = {"writer": self.writer, "reader": self.reader, "orthogonal": self.orthogonal}[form][:, :kept]
        basis = in_order(columns)
        along = self.fit._cross @ basis
        basis = basis * torch.where(along.gather(0, along.abs().argmax(0, keepdim=True))[0] < 0, -1.0, 1.0)
        explained = ((self.fit.coef @ basis) * (self.fit._cross @ basis)).sum(0)
        total = (basis * (_covariance(self.fit) @ basis)).sum(0)
        source = {**self.source, "form": form, "correlations": (explained / total).clamp(0, 1).sqrt().tolist()}
        source |= {"canonical_correlations": self.correlations[:kept].tolist()}
        return Subspace(basis.contiguous(), name or f"LEACE, {form}", source)

    def oracle(self, labels: Labels | Design) -> Add:
        """Return the least edit that leaves no covariance with the labels, one row an example: it needs their labels.

        Args:
            labels: those of the examples that it will be applied to, of the classes (or the columns) of the fit.

        Raises:
            ValueError: a class that the fit has not seen, other columns.

        """
        design = labels if isinstance(labels, Design) else self._design(labels)
        return Add(self.fit.mean - self.fit.predict(design))

    def _design(self, labels: Labels) -> Design:
        given, known = whole(labels).to(torch.int64), torch.tensor(self.values)
        unseen = sorted(set(given.flatten().tolist()) - set(self.values))
        if unseen or given.ndim != 1:
            raise ValueError(
                f"labels of shape {list(given.shape)} with {unseen[:5]}: one an example, of the classes "
                f"{list(self.values[:6])} (a fit of a design takes a design)."
            )
        one_hot = (given[:, None] == known).to(torch.float64)
        return Design(one_hot[:, -len(self.fit.labels) :], self.fit.labels)

    def __repr__(self) -> str:
        return f"Leace(rank {self.rank} of {len(self.fit.mean)}, n {self.fit.n})"


def leace(
    acts: Float[Tensor, "n d"],
    labels: Labels | Design,
    *,
    shrinkage: int | float = 0.0,
    tolerance: int | float = 1e-5,
) -> Leace:
    """Return the least-squares eraser of the labels; see `leace_of` for the options.

    Args:
        acts: activations, one row an example.
        labels: True and False, whole numbers (classes), or a `Design` for labels that are numbers.
        shrinkage: of the covariance, 0 to 1.
        tolerance: canonical correlations below it count as rounding. Design columns are another matter: one of which
            the others leave less than 1e-5 counts as one of them, as in a fit, and is erased no further than they are.

    Raises:
        ValueError: one class only, labels that have no covariance with the activations, NaN.

    """
    x = _activations(acts)
    if isinstance(labels, Design):
        return leace_of(Fitter(covariance=True).update(x, labels).result(), shrinkage=shrinkage, tolerance=tolerance)
    index, values = numbered(labels, len(x))
    design = contrast(index == 1) if len(values) == 2 else classes(index)
    found = leace_of(Fitter(covariance=True).update(x, design).result(), shrinkage=shrinkage, tolerance=tolerance)
    source = {**found.source, "n": counts(index, values)}
    return Leace(
        found.fit, found.writer, found.reader, found.orthogonal, found.correlations, source, values=tuple(values)
    )


def leace_of(fit: Fit, *, shrinkage: int | float = 0.0, tolerance: int | float = 1e-5) -> Leace:
    """Return the eraser of a fit's design from the fit alone, which may have been streamed or merged.

    Args:
        fit: of ``Fitter(covariance=True)``.
        shrinkage: rho in (1 - rho) S + rho (tr S / d) I. The erasure stays exact on the data of the fit; with fewer
            examples than a few times d it carries over better to others.
        tolerance: canonical correlations with the labels below it count as rounding and are not erased; see `leace`
            for columns that are nearly collinear.

    Raises:
        ValueError: a fit without covariance, a shrinkage outside 0 to 1, labels without covariance with the activations,
            or with covariance where the activations hardly vary, which float64 cannot invert.

    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage={shrinkage}: 0 (none) to 1 (a multiple of the identity).")
    covariance = _covariance(fit)
    level = shrinkage * covariance.diagonal().mean()
    covariance = (1 - shrinkage) * covariance + level * torch.eye(len(covariance)).to(covariance)
    spread = _scale(covariance)
    values, vectors = torch.linalg.eigh(covariance / spread / spread[:, None])
    kept = values > _NULL * values[-1]
    root, null, vectors = values[kept].clamp(min=0).sqrt(), vectors[:, ~kept], vectors[:, kept]
    units = _scale(fit._gram)
    labels = torch.linalg.pinv(_root(fit._gram / units / units[:, None]), rtol=_COLLINEAR)
    cross = (fit._cross.T / units) @ labels
    scaled = cross / spread[:, None]
    u, s, _ = torch.linalg.svd((vectors.T @ scaled) / root[:, None], full_matrices=False)
    rank = int((s > tolerance).sum())
    outside = float((null.T @ scaled).norm())
    if outside > _OUTSIDE:
        raise ValueError(
            f"The labels have a correlation of {outside:.1e} with directions in which the activations hardly vary (a "
            f"coordinate is all but a sum of others), so it cannot be erased. Give a shrinkage, such as "
            f"{max(1e-6, 10 * shrinkage):g}, or leave that coordinate out."
        )
    if rank == 0:
        raise ValueError("The labels have no covariance with these activations: there is nothing to erase.")
    source = {"method": "LEACE", "shrinkage": float(shrinkage), "columns": list(fit.labels), "n": {"all": fit.n}}
    q = torch.linalg.svd(cross, full_matrices=False).U[:, :rank]
    writer = spread[:, None] * (vectors @ (u[:, :rank] * root[:, None]))
    reader = (vectors @ (u[:, :rank] / root[:, None])) / spread[:, None]
    if null.shape[1]:  # where the activations of the fit do not vary, P is zero, as with the pseudo-inverse of S_xx
        flat = torch.linalg.qr(null / spread[:, None]).Q
        reader = reader - flat @ (flat.T @ reader)
    return Leace(fit, writer, reader, q, s[:rank], source)


def leace_subspace(
    acts: Float[Tensor, "n d"],
    labels: Labels | Design,
    *,
    form: str = "writer",
    rank: int | None = None,
    shrinkage: int | float = 0.0,
    name: str = "",
) -> Subspace:
    """Return ``leace(acts, labels, shrinkage=...).subspace(form)``: LEACE as a finder among the others.

    Ablating it is the orthogonal variant, not LEACE, whose edit is oblique: use `Leace.erase` for that.
    """
    return leace(acts, labels, shrinkage=shrinkage).subspace(form, rank=rank, name=name)


def _covariance(fit: Fit) -> Float[Tensor, "d d"]:
    if fit.covariance is None:
        raise ValueError("LEACE needs the covariance of the activations: fit with Fitter(covariance=True).")
    return (fit.covariance + fit.covariance.T) / 2 * ((fit.n - 1) / fit.n)
