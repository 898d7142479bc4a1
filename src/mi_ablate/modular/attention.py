"""How periodic attention is: each head's pattern over pairs in frequencies of one operand, and the maps that make it.

In a grokked one-layer model the last query divides its attention between the operands by a sigmoid of a difference of
one-token functions, each nearly a wave of one frequency (Nanda et al. 2023, arXiv 2301.05217, section 4.2: in their main
model four heads on 35, 42, 52, 42 with 98 to 99 % of the variance). So the transform of a pattern over pairs is sparse,
mostly in the row and the column of the constant: functions of i alone and of j alone.

The share of a frequency here is that of the variance of a head's pattern over pairs, all keys together, that its functions
of i, of j, of i + j and of i - j explain. "one operand" is the first two.

A head that hardly looks anywhere else as the operands change has shares too; `variance` says how much it changes (a
pattern lies in 0 .. 1), and a constant pattern has no frequency. Attention that is not periodic proves nothing about the
rest: with constant attention a network can still add (the Pizza models of Zhong et al. 2023, arXiv 2306.17844).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.modular.bases import FourierBasis
from mi_ablate.modular.grids import Grid

_CONSTANT = 1e-12
"""A variance of a pattern below this is rounding."""


@dataclass(frozen=True, eq=False)
class Periodicity:
    """The shares of each head's pattern in each frequency, last query."""

    n: int
    layer: int
    operand: Float[Tensor, "head k"]
    """Functions of i alone and of j alone."""
    sums: Float[Tensor, "head k"]
    """Functions of i + j."""
    differences: Float[Tensor, "head k"]
    """Functions of i - j (for n/2 the same function, counted under `sums`)."""
    variance: Float[Tensor, " head"]
    """The variance of the pattern over pairs, summed over keys."""
    mean: Float[Tensor, "head p"]
    """The mean attention to each position."""

    @property
    def frequency(self) -> Int[Tensor, " head"]:
        """The frequency of one operand with the largest share; 0 for a constant pattern."""
        return torch.where(self.variance > _CONSTANT, self.operand.argmax(1) + 1, 0)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a head: its frequency, the shares of that one, and of all frequencies together."""
        rows = []
        for head, k in enumerate(self.frequency.tolist()):
            row: dict[str, Any] = {"layer": self.layer, "head": head, "frequency": k or None}
            for name, shares in (("one operand", self.operand), ("i+j", self.sums), ("i-j", self.differences)):
                row[name] = float(shares[head, k - 1]) if k else float("nan")
            row["one operand, any frequency"] = float(self.operand[head].sum()) if k else float("nan")
            rows.append({**row, "variance": float(self.variance[head])})
        return rows

    def __repr__(self) -> str:
        heads = ", ".join(
            f"{k or 'constant'} {float(self.operand[h, k - 1]):.2f}" for h, k in enumerate(self.frequency.tolist())
        )
        return f"Periodicity(layer {self.layer}, frequency and share a head: {heads})"


def attention_periodicity(grid: Grid, layer: int = 0) -> Periodicity:
    """Return the shares of the last query's attention pattern, head by head, in each frequency."""
    pattern = grid.patterns(layer)
    basis, mean = FourierBasis(grid.n), pattern.mean((0, 1))
    y = pattern - mean
    total = (y**2).sum((0, 1, 3))
    alive = total > _CONSTANT * grid.n**2

    def share(energy: Float[Tensor, "k head p"]) -> Float[Tensor, "head k"]:
        return torch.where(alive, energy.sum(2) / torch.where(alive, total, 1), 0).T

    found = {name: share(energy) for name, energy in basis.pair_energies(y).items()}
    operand = found["first"] + found["second"]
    return Periodicity(grid.n, layer, operand, found["sum"], found["difference"], total / grid.n**2, mean)


def effective_maps(grid: Grid) -> dict[str, Float[Tensor, "head n m"]]:
    """Return the maps from a number to what the first layer's heads do with it (ARENA 1.5.2), functions on Z_n.

    "neurons" ``[head n d_mlp]``: W_E W_V W_O W_in, what a head that attends to the number adds to each neuron's input.
    "scores" ``[head n 1]``: the last query's attention score for the number in the first operand's order, positions left out,
    the query averaged over all pairs (where the last token is always "=", it is the same for all). Their spectra are
    ``spectrum(maps["neurons"][head])``.

    Biases and the norms' scales are left out: with a norm the maps are those of its linear part up to a factor that
    differs from prompt to prompt.
    """
    block: Any = grid.model.blocks[0]  # type: ignore[attr-defined]
    names = ("W_V", "W_K", "W_O")
    w_v, w_k, w_o = (getattr(block.attn, name).detach().to("cpu", torch.float64) for name in names)
    query = grid.acts("blocks.0.attn.hook_q").mean((0, 1))
    scores = torch.einsum("nd,hde,he->hn", grid.embedding, w_k, query) / w_k.shape[-1] ** 0.5
    maps = {"scores": scores[..., None]}
    if not getattr(grid.model.cfg, "attn_only", False):
        w_in = block.mlp.W_in.detach().to("cpu", torch.float64)
        maps["neurons"] = torch.einsum("nd,hde,hef->hnf", grid.embedding, w_v, w_o) @ w_in
    return maps
