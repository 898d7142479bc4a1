"""How the energy of a matrix over Z_n is spread over frequencies.

For rows x_a, a in Z_n, with their mean removed: the share of frequency k is (|cos_kᵀ X|² + |sin_kᵀ X|²) / |X|² in the
orthonormal real Fourier basis, which is the real DFT counted twice except at n/2. Shares add up to 1. A random matrix of
97 x 128 has 12 % in its top 5 frequencies and 23 % in its top 10 (`random_top_share`).

Over pairs (i, j) the shares are of pairs of frequencies, `Spectrum2`; a function of i + j lies on its diagonal.

The Gini coefficient (Hurley & Rickard 2009) of the N norms c_1 <= ... <= c_N is 1 - 2 Σ_i (c_i / Σc) (N - i + 1/2) / N: 0 for
equal norms, 1 - s/N for s equal ones among zeros. Random 97 x 128 matrices: 0.024 over frequencies, 0.035 over single
components on average (one draw: give or take 0.003).

A frequency with a large share need not matter: the largest line of an embedding can be causally inert, and a small one
can carry an answer (`causal_table`). Shares say where to look. They are also shares of anything, a collapsed matrix too, so
`energy` stands beside them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.modular.bases import FourierBasis
from mi_ablate.modular.grids import Grid


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Energy shares of the frequencies 1 .. n // 2 of a matrix over Z_n."""

    shares: Float[Tensor, " k"]
    n: int
    name: str = ""
    energy: float = float("nan")
    """The squared norm of the matrix, mean removed, that the shares are of."""
    row_norms: Float[Tensor, " rows"] | None = None
    """The norm of each component cos 1, sin 1, cos 2, ... (no sine for n/2)."""

    def top(self, count: int) -> list[int]:
        """Return the ``count`` frequencies of the largest share, largest first."""
        if not 1 <= count <= len(self.shares):
            raise ValueError(f"{count} frequencies were asked for; Z_{self.n} has 1 to {len(self.shares)}.")
        order = torch.argsort(self.shares, descending=True, stable=True)[:count]
        return (order + 1).tolist()

    def share(self, *frequencies: int) -> float:
        """Return the summed share of the frequencies."""
        return float(sum(self.shares[k - 1] for k in frequencies))

    @property
    def gini(self) -> float:
        """The Gini coefficient of the norms of the frequencies (cos and sin together)."""
        return gini(self.shares.sqrt())

    @property
    def gini_rows(self) -> float:
        """The Gini coefficient of the norms of the single components, cos and sin apart, as Nanda et al. take it."""
        return float("nan") if self.row_norms is None else gini(self.row_norms)

    def __repr__(self) -> str:
        top = self.top(min(5, len(self.shares)))
        name = f"{self.name}, " if self.name else ""
        return f"Spectrum({name}Z_{self.n}: " + ", ".join(f"{k} {self.share(k):.3f}" for k in top) + ", ...)"


@dataclass(frozen=True, eq=False)
class Spectrum2:
    """Energy shares of the pairs of frequencies of functions of (i, j), the overall mean removed."""

    shares: Float[Tensor, "k k"]
    """Entry (k, l): frequency k along i, l along j; (0, 0) is 0, and row and column 0 hold functions of j and of i alone."""
    sums: Float[Tensor, " f"]
    """What of the diagonal 1 .. n // 2 is a function of i + j."""
    differences: Float[Tensor, " f"]
    """What of it is a function of i - j (for n/2 the same term, counted in `sums`)."""
    n: int
    name: str = ""

    def __repr__(self) -> str:
        alone = float(self.shares[0].sum() + self.shares[:, 0].sum())
        parts = f"one operand {alone:.3f}, i+j {float(self.sums.sum()):.3f}, i-j {float(self.differences.sum()):.3f}"
        return f"Spectrum2({f'{self.name}, ' if self.name else ''}Z_{self.n}: {parts})"


def spectrum(x: Float[Tensor, "n d"], name: str = "") -> Spectrum:
    """Return the spectrum of the rows of ``x``, row a for the element a of Z_n; the mean row does not count."""
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x has shape {list(x.shape)}; rows over Z_n, [n, d] with n > 1, are needed.")
    n = len(x)
    transformed = torch.fft.rfft(x.detach().to("cpu", torch.float64), dim=0)[1:]
    parts = torch.stack([(transformed.real**2).sum(1), (transformed.imag**2).sum(1)], 1) / n
    parts[: (n - 1) // 2] *= 2
    power = parts.sum(1)
    total = power.sum()
    rows = parts.flatten()[: n - 1].sqrt()
    return Spectrum(power / total if total > 0 else power, n, name, float(total), rows)


def spectrum2(x: Float[Tensor, "n n m"], name: str = "") -> Spectrum2:
    """Return the spectrum of functions of pairs, pooled over the last axis; each unit's mean over pairs does not count."""
    if x.ndim != 3:
        raise ValueError(f"x has shape {list(x.shape)}; functions of pairs, [n, n, m], are needed.")
    n = len(x)
    basis = FourierBasis(n)
    y = x.detach().to("cpu", torch.float64)
    y = y - y.mean((0, 1))
    energy = torch.stack([basis.energies2(part).sum(-1) for part in y.split(64, dim=-1)]).sum(0)
    energy[0, 0] = 0
    total = float((y**2).sum()) or 1.0
    lines = basis.pair_energies(y)
    sums, differences = (lines[part].sum(-1) / total for part in ("sum", "difference"))
    return Spectrum2(energy / total, sums, differences, n, name)


def gini(norms: Float[Tensor, " n"]) -> float:
    """Return the Gini coefficient of norms: 0 for equal ones, near 1 when few are not zero; NaN for zeros only."""
    c = norms.abs().to(torch.float64).sort().values
    weights = (len(c) - torch.arange(len(c), dtype=torch.float64) - 0.5) / len(c)
    return float(1 - 2 * (c / c.sum() * weights).sum())


def embedding_spectrum(grid: Grid) -> Spectrum:
    """Return the spectrum of W_E over the numbers, in the order of the first operand."""
    return spectrum(grid.embedding, "W_E")


def unembedding_spectrum(grid: Grid) -> Spectrum:
    """Return the spectrum of W_U over the answers."""
    return spectrum(grid.unembedding.T, "W_U")


def neuron_logit_spectrum(grid: Grid, layer: int = -1) -> Spectrum:
    """Return the spectrum of the neuron-logit map W_out W_U over the answers (the final norm left out)."""
    return spectrum(grid.neuron_logits(layer).T, "W_out W_U")


def neuron_spectrum(grid: Grid, layer: int = -1) -> Spectrum2:
    """Return the spectrum over pairs of a layer's neurons after their nonlinearity."""
    layers: int = grid.model.cfg.n_layers
    return spectrum2(grid.acts(f"blocks.{layer % layers}.mlp.hook_post"), "neurons")


def logit_spectrum(grid: Grid) -> Spectrum2:
    """Return the spectrum over pairs of the logits of the group's answers."""
    return spectrum2(grid.logits, "logits")


def random_top_share(shape: tuple[int, int], count: int, draws: int = 20, seed: int = 0) -> float:
    """Return the mean share of the top ``count`` frequencies in Gaussian matrices [n, d]: what no structure gives."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [spectrum(torch.randn(shape, dtype=torch.float64, generator=generator)) for _ in range(draws)]
    return sum(x.share(*x.top(count)) for x in drawn) / draws
