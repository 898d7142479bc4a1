"""Which representations of a group a network uses: trace similarity, and shares of embedding, unembedding and hidden units.

With the logits L(a, b, c), centred over the answers c, and T(a, b, c) = tr(ρ(a) ρ(b) ρ(c)ᵀ),

    trace similarity of ρ = <L, T> / (|L| |T|)        key representation: above 0.005

(Chughtai, Chan & Nanda 2023, arXiv 2302.03025, and its code). The T of different irreps are orthogonal, so the squares add
up to the share of the logits that they explain. For Z_n it is the cosine of the logits with cos(2πk(a + b - c)/n)
(`cosine_share`, where one transform gives all k).

    embedding    energy of W_E in the functions of ρ over that of W_E, not centred; of W_U likewise over its answers
    hidden       of the centred hidden units: in functions of ρ(a), of ρ(b) and of ρ(ab), each with its own basis

Shares of hidden units add three bases that overlap only in the constant, which centring removes. A share says that
something varies as the representation does, not that the answer is read from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.modular.groups import Group, Irrep

KEY = 0.005


@dataclass(frozen=True)
class Hidden:
    """The shares of the hidden units' variance in functions of a, of b and of the product."""

    a: float
    b: float
    product: float

    @property
    def total(self) -> float:
        """Their sum, the published hidden share."""
        return self.a + self.b + self.product


def trace_similarity(logits: Float[Tensor, "g g g"], irrep: Irrep) -> float:
    """Return the cosine between the logits ``[a, b, c]``, centred over c, and tr(ρ(a) ρ(b) ρ(c)ᵀ).

    Raises:
        ValueError: logits over another number of elements, or that do not vary over the answers.

    """
    return _similarity(_centred(logits, len(irrep.matrices)), irrep)


def trace_similarities(logits: Float[Tensor, "g g g"], group: Group) -> dict[str, float]:
    """Return the trace similarity of every irrep but the trivial one, which centring removes."""
    x = _centred(logits, group.order)
    return {irrep.name: _similarity(x, irrep) for irrep in group.irreps[1:]}


def key_representations(logits: Float[Tensor, "g g g"], group: Group, least: int | float = KEY) -> list[str]:
    """Return the irreps with a trace similarity above ``least``, largest first (arXiv 2302.03025: 0.005).

    That is a low level: the similarity of noise is about 1/√(g³), above it for fewer than 35 elements, and a trained
    network leaves most irreps some of it. So look at the values too (`trace_similarities`).
    """
    found = trace_similarities(logits, group)
    return sorted((name for name, value in found.items() if value > least), key=lambda name: -found[name])


def embedding_shares(embedding: Float[Tensor, "g d"], irreps: Sequence[Irrep]) -> dict[str, float]:
    """Return the share of an embedding's energy in the functions of each irrep; give W_U transposed, ``[g, d]``."""
    x = embedding.detach().to("cpu", torch.float64)
    total = float((x**2).sum())
    if not total > 0:
        raise ValueError("The embedding is zero: it has no shares.")
    return {irrep.name: float(((_fitting(irrep, len(x)).T @ x) ** 2).sum()) / total for irrep in irreps}


def hidden_shares(
    acts: Float[Tensor, "g g m"], table: Int[Tensor, "g g"], irreps: Sequence[Irrep]
) -> dict[str, Hidden]:
    """Return the shares of hidden units over all pairs (a, b) in the functions of each irrep but the trivial one.

    Args:
        acts: hidden activations, a on the first axis.
        table: the group's multiplication table.
        irreps: which; those of dimension 1 that are constant are left out.

    Raises:
        ValueError: activations that do not vary, or over another number of elements.

    """
    x = acts.detach().to("cpu", torch.float64)
    g = len(x)
    x = x - x.mean((0, 1))
    total = float((x**2).sum())
    if not total > 0:
        raise ValueError("The hidden units are constant over all pairs: they have no shares.")
    products = x.new_zeros(x.shape[0], x.shape[2]).index_add(0, table.flatten(), x.flatten(0, 1))
    lines = (x.sum(1), x.sum(0), products)

    def share(irrep: Irrep, line: Tensor) -> float:
        return float(((_fitting(irrep, g).T @ line) ** 2).sum()) / g / total

    chosen = [irrep for irrep in irreps if irrep.dimension > 1 or bool((irrep.matrices != 1).any())]
    return {irrep.name: Hidden(*(share(irrep, line) for line in lines)) for irrep in chosen}


def _centred(logits: Tensor, g: int) -> Tensor:
    if logits.shape != (g, g, g):
        raise ValueError(f"logits have shape {list(logits.shape)}; the group has {g} elements: [{g}, {g}, {g}].")
    x = logits.detach().to("cpu", torch.float64)
    centred = x - x.mean(-1, keepdim=True)
    if not float(centred.abs().max()) > 1e-12 * float(x.abs().max()):
        raise ValueError("The logits do not vary over the answers: there is nothing to compare.")
    return centred


def _similarity(x: Tensor, irrep: Irrep) -> float:
    rho = irrep.matrices
    g, d = len(rho), irrep.dimension
    products = (rho[:, None] @ rho[None]).reshape(g * g, d * d)
    traces = (products @ rho.reshape(g, d * d).T).reshape(g, g, g)
    return float((x * traces).sum() / (x.norm() * traces.norm()))


def _fitting(irrep: Irrep, g: int) -> Tensor:
    if len(irrep.matrices) != g:
        raise ValueError(f"{irrep!r} is of a group with {len(irrep.matrices)} elements; the rows are {g}.")
    return irrep.functions
