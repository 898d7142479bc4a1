"""How much of the logits is a sum of cos(w_k(a + b - c)), exactly and in O(n³).

Grokked models of addition have logits close to Σ_k α_k cos(2πk(i + j - c)/n) over a few key k (Nanda et al. 2023,
arXiv 2301.05217, section 4.1). The coefficient of the unit cube of frequency k is its inner product with the logits. A
cube depends on i + j - c only, so with S(d) the sum of the logits over i + j - c = d,

    coefficient_k = Σ_d S(d) cos(2πkd/n) / |cube_k|        |cube_k|² = n³/2, and n³ for k = n/2

which is one pass over the logits and one transform of length n. The TransformerLens demo builds all (n-1)/2 cubes, an
array of 56 x 113 x 113 x 113 numbers, for the same coefficients.

Shares depend on what is counted as the whole; all three are given. `cosines` divides by the norm of the uncentred
logits (tl_demo), `fve` takes the variance around the overall mean (nanda_text: "95 % of the logit variance"), `centred`
removes each prompt's mean over answers, which a softmax does not see (Chughtai et al. 2023, arXiv 2302.03025; for a
cyclic group it is their trace similarity, squared).

A large share does not say how the sum is computed (Clock and Pizza models both have it), and a small one can be enough:
what decides an answer is the margin, not the variance.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.modular.bases import FourierBasis


@dataclass(frozen=True, eq=False)
class CosineShare:
    """Coefficients of the unit cubes cos(2πk(i + j - c)/n), k = 1 .. n // 2, and the logits' energies they are shares of."""

    n: int
    coefficients: Float[Tensor, " k"]
    energy: float
    """Sum of the squared logits."""
    variance: float
    """The same around the overall mean."""
    within: float
    """The same around each pair's mean over answers."""

    @property
    def cosines(self) -> Float[Tensor, " k"]:
        """Cosine similarity of each cube with the uncentred logits (tl_demo)."""
        return self.coefficients / self._some(self.energy) ** 0.5

    @property
    def fve(self) -> Float[Tensor, " k"]:
        """Share of the variance around the overall mean (nanda_text)."""
        return self.coefficients**2 / self._some(self.variance)

    @property
    def centred(self) -> Float[Tensor, " k"]:
        """Share of the variance around each pair's mean over answers: the trace similarity squared."""
        return self.coefficients**2 / self._some(self.within)

    def residual(self, frequencies: Iterable[int]) -> float:
        """Return |logits - Σ of these cubes| / |logits|, uncentred, as the TransformerLens demo does."""
        chosen = sorted(set(frequencies))
        FourierBasis(self.n).check(chosen)
        explained = float((self.coefficients[[k - 1 for k in chosen]] ** 2).sum())
        return max(0.0, 1 - explained / self._some(self.energy)) ** 0.5

    def top(self, count: int = 5) -> list[int]:
        """Return the frequencies of the largest coefficients (in size), largest first."""
        return (self.coefficients.abs().argsort(descending=True, stable=True)[:count] + 1).tolist()

    def _some(self, energy: float) -> float:
        return energy if energy > 0 else float("nan")

    def __repr__(self) -> str:
        shares = ", ".join(f"{k} {float(self.fve[k - 1]):.3f}" for k in self.top())
        return f"CosineShare(Z_{self.n}: {shares}; all {float(self.fve.sum()):.3f} of the variance)"


def cosine_share(logits: Float[Tensor, "n n n"]) -> CosineShare:
    """Return the coefficients of cos(2πk(i + j - c)/n) in the logits ``[i, j, c]``.

    Raises:
        ValueError: logits that are not over n x n pairs and the same n answers (take ``grid.logits``).

    """
    n = len(logits)
    if logits.shape != (n, n, n) or n < 2:
        raise ValueError(f"logits have shape {list(logits.shape)}; [n, n, n], with the group's n answers, is needed.")
    basis = FourierBasis(n)
    x = logits.detach().to("cpu", torch.float64)
    by_answer = basis.diagonals(x, 1)  # [s, c], s = i + j
    by_distance = basis.diagonals(by_answer, -1)
    cosines = torch.stack([basis.cos(k) for k in basis.frequencies])
    means = x.mean(-1)
    energy, count = float((x**2).sum()), x.numel()
    variance = energy - count * float(means.mean()) ** 2
    within = energy - n * float((means**2).sum())
    return CosineShare(
        n, cosines @ by_distance / n, energy, *(v if v > 1e-12 * energy else 0.0 for v in (variance, within))
    )
