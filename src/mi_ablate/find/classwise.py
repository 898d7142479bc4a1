"""Means and variances of each class, streamed in float64 for any number of sites, positions and heads at once.

    m <- m + (n_b / n) (m_b - m),   S <- S + S_b + (m_b - m)^2 n_a n_b / n        (Chan, Golub & LeVeque 1983)

for each class and each coordinate, so the result does not depend on the batch size, memory is O(classes d), and nothing
is lost where the mean is large beside the spread. `ClassMoments.fit` is the least-squares fit of the same examples.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mi_ablate.regression import Fit, _solve


class ClassMoments:
    """Counts ``[k]``, means and centred squares ``[k *rest]`` of ``classes`` classes; coordinates are independent."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.n = torch.zeros(classes, dtype=torch.float64)
        self.mean = self.square = torch.empty(0, dtype=torch.float64)

    def update(self, x: Shaped[Tensor, "b *rest"], index: Int[Tensor, " b"]) -> "ClassMoments":
        """Add activations with the class of each, and return self."""
        x, index = x.detach().to(torch.float64), index.to(x.device)
        part = ClassMoments(self.classes)
        part.n = torch.bincount(index, minlength=self.classes).to(x)
        nothing = x.new_zeros(self.classes, *x.shape[1:])
        count = part.n.reshape(-1, *[1] * (x.ndim - 1)).clamp(min=1)
        part.mean = nothing.index_add(0, index, x) / count
        part.square = nothing.index_add(0, index, (x - part.mean[index]) ** 2)
        return self.merge(part)

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Add what another has seen and return self."""
        if self.mean.numel() == 0:
            self.n, self.mean, self.square = other.n, other.mean, other.square
            return self
        n = self.n + other.n
        share = (other.n / n.clamp(min=1)).reshape(-1, *[1] * (other.mean.ndim - 1))
        delta = other.mean - self.mean
        self.square = self.square + other.square + delta**2 * share * self.n.reshape(share.shape)
        self.mean, self.n = self.mean + delta * share, n
        return self

    @property
    def variance(self) -> Float[Tensor, "k *rest"]:
        """Sample variances of each class (n - 1 in the denominator; 0 where a class has one example)."""
        return self.square / (self.n - 1).clamp(min=1).reshape(-1, *[1] * (self.square.ndim - 1))

    def __getitem__(self, at: tuple[int, ...]) -> "ClassMoments":
        """Return the moments of one candidate: the axes between the class and d are indexed by ``at``."""
        part = ClassMoments(self.classes)
        part.n, part.mean, part.square = self.n, self.mean, self.square
        for i in at:
            part.mean, part.square = part.mean[:, i], part.square[:, i]
        return part

    def shares(self) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
        """Return the mean squares between the classes and in all, summed over d: their ratio is a fit's r2."""
        weight = (self.n / self.n.sum()).reshape(-1, *[1] * (self.mean.ndim - 1))
        between = (weight * (self.mean - (weight * self.mean).sum(0)) ** 2).sum(0).sum(-1)
        return between, between + (self.square / self.n.sum()).sum(0).sum(-1)

    def fit(self, labels: tuple[str, ...]) -> Fit:
        """Return the fit of one candidate ``[k d]``: one 0/1 column for one label, else one column a class."""
        weight = self.n / self.n.sum()
        columns = torch.eye(self.classes).to(self.mean)[:, -len(labels) :]
        centre, mean = weight @ columns, weight @ self.mean
        between = columns - centre
        gram, cross = between.T @ (weight[:, None] * between), between.T @ (weight[:, None] * (self.mean - mean))
        coef = _solve(gram, cross)
        explained, total = self.shares()
        r2 = float(explained / total) if total > 0 else 0.0
        n, norm = int(self.n.sum()), float((total + (mean**2).sum()).sqrt())
        return Fit(coef, mean - centre @ coef, r2, labels, n, mean, None, gram, cross, norm)
