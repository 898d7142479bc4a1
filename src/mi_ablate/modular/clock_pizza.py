"""Distance irrelevance, circularity, and how Clock-like or Pizza-like a circle's logits are (Zhong et al. 2023).

    distance irrelevance  mean over d of std{L(i, j): i - j = d} / std of all L,  L the correct answer's logit
    circularity           mean over the first 4 principal components of W_E of the energy share of their largest frequency
    Q_clock               cos(w_k (i + j - c))
    Q_pizza               |cos(w_k (i - j)/2)| cos(w_k (i + j - c)),   w_k = 2πk/n

(arXiv 2306.17844; standard deviations are over the population: torch's default gives 0.8554 for Model B instead of the
published 0.8483.) A Pizza model's correct logit falls where cos(w(i - j)/2) is small, so it depends on the difference and
distance irrelevance is small (Model A 0.1717); a Clock's does not. The authors' training script logs a quantity of the same
name from the best wrong logit; this is the one of their evaluation and paper.

For even n the sum and the difference have one parity, so the mean over d takes the n pairs of each difference; for odd n
this is the arrangement by (sum, difference) of the paper.

"FVE" of a Q in their code is 1 - Var(z(logits) - z(Q)) = 2ρ - 1 with z-scores over everything and ρ the correlation, not
the fraction of variance explained ρ²; `QShare` has both. It is taken on the logits of one isolated circle: the embeddings
replaced by their projection on two principal components (`isolated_circles`). The code's form of Q_pizza,
|cos(w(i - j)/2)| (|cos θ/2| - |sin θ/2|) with θ = w(i + j - c), is there too.

Misleading: untrained networks have a distance irrelevance of 0.99 and more, so a value near 1 says nothing by itself.
Principal components of two circles of nearly one size are mixtures, and circularity falls although both are perfect circles.
A circle alone can leave what the model needs to compute (Model B's second circle alone gives a correlation of 0.53 with
either Q), so low shares of both say little. Moisescu-Pareja et al. (arXiv 2512.25060) dispute that these measures tell two
algorithms apart: both kinds of network learn the same manifolds. `mi_ablate.modular.verdict` weighs them together.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.model import attached, run, split
from mi_ablate.modular.gradients import operand_positions
from mi_ablate.modular.grids import Grid
from mi_ablate.modular.spectra import spectrum

COMPONENTS = 4
"""Principal components that circularity reads."""
SELECTORS = ("components", "frequencies")


@dataclass(frozen=True)
class Circularity:
    """How circular the first principal components of an embedding are."""

    value: float
    """The mean of ``shares``: 1 where every component is a sinusoid."""
    shares: tuple[float, ...]
    """Of each component, the energy share of its largest frequency."""
    frequencies: tuple[int, ...]
    """That frequency."""


@dataclass(frozen=True)
class QShare:
    """Correlations of logits with Zhong et al.'s formulas at one frequency."""

    frequency: int
    clock: float
    """Correlation ρ with Q_clock."""
    pizza: float
    """Correlation ρ with Q_pizza, the paper's formula."""
    pizza_code: float
    """Correlation ρ with the form that their code uses."""
    accuracy: float
    """Share of pairs that these logits answer."""

    def fve(self, which: str = "clock") -> float:
        """Return 2ρ - 1, which is published as "FVE"; ``which`` is "clock", "pizza" or "pizza_code"."""
        return 2 * self._rho(which) - 1

    def rho2(self, which: str = "clock") -> float:
        """Return ρ², the share of the variance that the formula explains."""
        return self._rho(which) ** 2

    def _rho(self, which: str) -> float:
        if which not in ("clock", "pizza", "pizza_code"):
            raise ValueError(f"which={which!r} is 'clock', 'pizza' or 'pizza_code'.")
        return float(getattr(self, which))


def distance_irrelevance(logits: Float[Tensor, "i j c"]) -> float:
    """Return how little the correct answer's logit depends on the difference of the operands; NaN if it is constant.

    Args:
        logits: of pairs (i, j) and answers c of one group, ``grid.logits``.

    Raises:
        ValueError: logits of more classes than the group has elements.

    """
    correct = _cube(logits).gather(-1, _answers(len(logits))[..., None])[..., 0]
    total = float(correct.std(correction=0))
    if total < 1e-12 * max(1.0, float(correct.abs().max())):
        return math.nan
    i = torch.arange(len(correct))
    by_difference = correct[i[None, :], (i[None, :] - i[:, None]) % len(i)]  # row d holds L(i, i - d)
    return float(by_difference.std(1, correction=0).mean()) / total


def circularity(embedding: Float[Tensor, "n d"], components: int = COMPONENTS) -> Circularity:
    """Return how circular the leading principal components of an embedding are.

    Args:
        embedding: row i for element i of the group, ``grid.embedding``; the mean row is removed.
        components: how many to read (the authors take 4); fewer where the embedding has a lower rank, and NaN where its
            rows are all the same.

    Raises:
        ValueError: not a matrix, or no components.

    """
    if embedding.ndim != 2 or len(embedding) < 2 or components < 1:
        raise ValueError(
            f"{components} components of an embedding of {list(embedding.shape)}: rows over Z_n, [n, d] with n > 1, and at "
            "least 1 component are needed."
        )
    x = _centred(embedding)
    _, s, v = torch.linalg.svd(x, full_matrices=False)
    real = int((s > 1e-10 * embedding.double().norm()).sum())
    found = [spectrum((x @ row)[:, None]) for row in v[: min(components, real)]]
    shares = tuple(float(one.shares.max()) for one in found)
    value = sum(shares) / len(shares) if shares else math.nan
    return Circularity(value, shares, tuple(one.top(1)[0] for one in found))


def q_share(logits: Float[Tensor, "i j c"], frequency: int) -> QShare:
    """Return the correlations of the logits with Q_clock and Q_pizza of one frequency, over all pairs and answers."""
    x = _cube(logits)
    n = len(x)
    if not 1 <= frequency <= n // 2:
        raise ValueError(f"Frequency {frequency} is none of Z_{n}, which has 1 to {n // 2}.")
    i = torch.arange(n)
    half = math.pi * frequency / n
    theta = half * ((i[:, None, None] + i[None, :, None] - i) % n).double()  # w (i + j - c) / 2
    distance = (half * ((i[:, None] - i) % n).double()).cos().abs()[..., None]
    clock = (2 * theta).cos()
    code = distance * (theta.cos().abs() - theta.sin().abs())
    accuracy = float((x.argmax(-1) == _answers(n)).double().mean())
    return QShare(frequency, _correlation(x, clock), _correlation(x, distance * clock), _correlation(x, code), accuracy)


def isolated_circles(grid: Grid, count: int = 3, by: str = "components") -> list[QShare]:
    """Return the shares of the logits that each of the largest circles of W_E gives alone.

    The number embeddings are replaced, at both operands, by their mean plus one circle; the model runs on all pairs.

    Args:
        grid: a model on every pair.
        count: how many circles, largest first.
        by: "components" takes the principal components 2m - 1 and 2m (as published; their frequency is the largest of the
            plane), "frequencies" the cosine and sine over the elements of each of the largest frequencies, which does not
            mix circles of nearly one size.

    Raises:
        ValueError: another ``by``, or more circles than there are.

    """
    if by not in SELECTORS:
        raise ValueError(f"by={by!r} is one of {', '.join(SELECTORS)}.")
    x = _centred(grid.embedding)
    most = min(grid.n // 2, x.shape[1] // 2)
    if not 1 <= count <= most:
        raise ValueError(f"{count} circles were asked for; {grid!r} has 1 to {most}.")
    mean = grid.embedding.mean(0)
    shares = []
    if by == "frequencies":
        transform = torch.fft.rfft(x, dim=0)
        for k in spectrum(x).top(count):
            alone = torch.zeros_like(transform)
            alone[k] = transform[k]
            shares.append(q_share(_with_embedding(grid, mean + torch.fft.irfft(alone, n=grid.n, dim=0)), k))
        return shares
    _, _, v = torch.linalg.svd(x, full_matrices=False)
    for m in range(count):
        plane = v[2 * m : 2 * m + 2]
        scores = x @ plane.T
        shares.append(q_share(_with_embedding(grid, mean + scores @ plane), spectrum(scores).top(1)[0]))
    return shares


def _with_embedding(grid: Grid, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n n n"]:
    """Logits with row i of the embedding in place of that of element i as the first operand, at both operands."""
    places = operand_positions(grid)
    rows = embedding.new_zeros(grid.modulus, embedding.shape[1]).index_copy(0, grid.a, embedding)
    parts = []
    for tokens, _ in split(grid.model, grid.tokens):

        def swap(x: Tensor, hook: Any = None, tokens: Tensor = tokens) -> Tensor:
            y = x.clone()
            for place in places:
                y[:, place] = rows[tokens[:, place].cpu()].to(x.device, x.dtype)
            return y

        with torch.no_grad(), attached(grid.model, [("hook_embed", swap)]):
            parts.append(run(grid.model, tokens)[:, -1].to("cpu", torch.float64))
    return torch.cat(parts)[:, grid.c].unflatten(0, (grid.n, grid.n))


def _cube(logits: Float[Tensor, "i j c"]) -> Float[Tensor, "n n n"]:
    n = len(logits)
    if logits.shape != (n, n, n) or n < 2:
        raise ValueError(
            f"logits have shape {list(logits.shape)}; pairs of one group and its n answers, [n, n, n], are needed: take "
            "grid.logits, which leaves other outputs out."
        )
    return logits.detach().to("cpu", torch.float64)


def _answers(n: int) -> Tensor:
    i = torch.arange(n)
    return (i[:, None] + i) % n


def _centred(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    y = x.detach().to("cpu", torch.float64)
    return y - y.mean(0)


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float((x * y).sum()) / scale if scale > 0 else 0.0
