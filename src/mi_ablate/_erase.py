"""Oblique erasure, with a gate for each of its directions: LEACE's form, and directional routing's.

    x' = x - s W (g ⊙ Rᵀ (x - c))      writer W and reader R [d r], centre c [d], gate g [r], strength s

With Rᵀ W = 1 and g = 1 it is a projector along W onto the null space of Rᵀ; LEACE (Belrose et al. 2023, arXiv
2306.03819) has that form. With W = R = D, unit directions as columns, it is the layer of directional routing (Taylor
2026, arXiv 2603.14923): o' = o - Σ_k g_k (o·d_k) d_k at a head's hook_z, g in [0, 1] from a router that reads the
residual stream. The directions of a head need not be orthogonal there: at g = 1 two of them at cosine c still leave the
share c of each other, so the sum removes their span only once they are orthonormal.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._broadcast import Gate, aligned, finished, per_example, refuse_non_finite, sliced, strength_text, working
from mi_ablate._placed import Intervention


@dataclass(frozen=True, eq=False, repr=False)
class Erase(Intervention):
    """Oblique erasure: x' = x - s W (g ⊙ Rᵀ (x - c)), for writer W ``[d r]``, reader R ``[d r]`` and centre c ``[d]``.

    Args:
        writer: what is subtracted, a column a direction.
        reader: what measures how much of it; the same as ``writer`` for directional routing.
        centre: zero of the measurement, ``[d]``; None for 0.
        strength: 1 erases, 0 does nothing.
        gate: one factor a direction: a number, ``[r]``, one row an example ``[n r]`` or ``[n p r]``, or a function of
            the addressed x that returns one of these; `gated` makes it a function of another site.

    Raises:
        ValueError: writer and reader of different shapes, or a centre or x of another width.

    """

    writer: Float[Tensor, "d r"]
    reader: Float[Tensor, "d r"]
    centre: Float[Tensor, " d"] | None = None
    strength: int | float = 1.0
    gate: Gate = None

    def __post_init__(self) -> None:
        for name in ("writer", "reader", "centre"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).to(torch.float64))
        if self.writer.ndim != 2 or self.writer.shape != self.reader.shape:
            raise ValueError(
                f"writer {list(self.writer.shape)} and reader {list(self.reader.shape)} must both be [d, r]."
            )
        if self.centre is not None and self.centre.shape != self.writer.shape[:1]:
            raise ValueError(f"centre has shape {list(self.centre.shape)}; [d] = [{self.writer.shape[0]}] is needed.")
        parts = {name: getattr(self, name) for name in ("writer", "reader", "centre", "strength", "gate")}
        refuse_non_finite("Erase", **parts)

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        """Return x without what the reader sees of it."""
        y = working(x)
        if y.shape[-1] != self.writer.shape[0]:
            raise ValueError(
                f"{self!r} acts on vectors of width {self.writer.shape[0]}; these have width {y.shape[-1]}."
            )
        centred = y if self.centre is None else y - self.centre.to(y)
        coords = centred @ self.reader.to(y)
        gate = self.gate(y) if callable(self.gate) else self.gate
        if gate is not None:
            coords = coords * (aligned(gate, coords, "gate") if isinstance(gate, Tensor) and gate.ndim else gate)
        return finished(y - self.strength * (coords @ self.writer.to(y).mT), x)

    def rows(self, index: Int[Tensor, " m"] | slice) -> "Erase":
        """Slice ``gate`` where it is per example."""
        return replace(self, gate=sliced(self.gate, index)) if per_example(self.gate) else self

    @property
    def laws(self) -> frozenset[str]:
        """Idempotent when s g Rᵀ W = 1; linear without a centre; an isometry when it reflects orthogonally."""
        if callable(self.gate):
            return frozenset({"idempotent", "linear", "norm_preserving"} if self.strength == 0 else set())
        gate = torch.as_tensor(1.0 if self.gate is None else self.gate).to(self.writer)
        nothing = not bool((gate * self.strength).any())
        laws = {"idempotent", "norm_preserving"} if nothing else set()
        laws |= {"linear"} if self.centre is None or nothing else set()
        if gate.ndim > 1:
            return frozenset(laws | (set() if per_example(self.gate) else {"bakeable"}))
        w, r = self.writer, self.strength * gate * self.reader
        identity = torch.eye(w.shape[1]).to(w)
        projects = torch.allclose(r.T @ w, identity, atol=1e-9)
        reflects = torch.allclose(r.T @ w, 2 * identity, atol=1e-9) and torch.allclose(r @ (w.T @ w), 2 * w, atol=1e-9)
        laws |= {"norm_preserving"} if reflects and self.centre is None else set()
        return frozenset(laws | {"bakeable"} | ({"idempotent"} if projects else set()))

    @property
    def rank(self) -> int | None:
        """Columns of the writer."""
        return self.writer.shape[1]

    def __repr__(self) -> str:
        gate = "" if self.gate is None else ", gated"
        return f"Erase(rank {self.writer.shape[1]} of {self.writer.shape[0]}{strength_text(self.strength)}{gate})"
