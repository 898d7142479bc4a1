"""Edits of activations, as frozen callable values: what to write, apart from where.

Every intervention is a TransformerLens hook, ``edit(x, hook=None) -> x'`` on vectors in the last axis, and obeys the
same laws: the input is never written to; shape, dtype and device are kept; strength 0 is the identity; a batch of rows
gives the rows of the batch (`rows`); gradients flow; half precision is computed in float32 and rounded once.

    Ablate   x' = x + s Q Qᵀ (to - x)      directional ablation (Arditi et al. 2024, arXiv 2406.11717, for rank 1 and
                                           to = 0), mean, resample and reference ablation, activation patching,
                                           writing with `Fit.predict`; s = 2 reflects
    Add      x' = x + s v                  activation addition
    Rotate   x' = x + Q (R(sθ) - I) Qᵀ (x - c)   rotation in consecutive planes of the basis
    Erase    x' = x - s W Rᵀ (x - c)       oblique erasure, such as LEACE (Belrose et al. 2023, arXiv 2306.03819)

``edit.at("blocks.1.hook_resid_post", pos=-1)`` says where: a list of (name, hook) for ``fwd_hooks=``, `attached`,
`effect` and the rest. Zero-ablation moves the mean as well as removing the variation; where the activations have a large
mean, its effect is that of a lost constant, so put mean-ablation beside it. Strength other than 1 on the stream
compounds over sites and differs from the same strength on the writers.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._broadcast import Gate, Strength, aligned, finished, per_example, scaled, sliced, working
from mi_ablate._placed import Intervention, Placed
from mi_ablate.subspace import Subspace

__all__ = ["Ablate", "Add", "Erase", "Intervention", "Placed", "Rotate"]


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(Intervention):
    """Move the part of x inside ``subspace`` to that of ``to``: x' = x + s Q Qᵀ (to - x).

    Args:
        subspace: the directions; None addresses the whole vector (zero-ablation of a head, or patching from a run).
        to: None for zero; a vector ``[d]`` (mean-ablation); one row an example ``[n d]`` or ``[n p d]`` (another run's
            activations, resample-ablation, `Fit.predict`). The first axis of a matrix always counts examples.
        strength: 1 removes, 0 does nothing, 2 reflects; a tensor broadcasts against ``x[..., :1]``, examples first.
        keep: edit everything *but* the subspace.
        gate: multiplies the strength; a number, a tensor like strength, or a function of the addressed x.

    """

    subspace: Subspace | None
    to: Tensor | None = None
    strength: Strength = 1.0
    keep: bool = False
    gate: Gate = None

    def __post_init__(self) -> None:
        if self.subspace is not None and not isinstance(self.subspace, Subspace):
            raise ValueError(
                f"subspace is a {type(self.subspace).__name__}; Subspace.span(vectors) makes one from rows."
            )
        if self.subspace is None and self.keep:
            raise ValueError("keep=True needs a subspace: there is nothing to keep of the whole vector.")
        if self.to is not None:
            object.__setattr__(self, "to", torch.as_tensor(self.to))
            width = None if self.subspace is None else self.subspace.d
            if self.to.ndim == 0 or (width is not None and self.to.shape[-1] != width):
                raise ValueError(f"to has shape {list(self.to.shape)}; its last axis must be d = {width}.")

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        """Return x with its part inside the subspace moved to that of ``to``."""
        y = working(x)
        if self.subspace is not None and self._plain:
            return finished(y - self.subspace.project(y), x)
        if self.subspace is None and self._factor == 1:  # exact, also where x holds -inf (masked attention scores)
            to = y.new_zeros(()) if self.to is None else aligned(self.to, y, "to")
            return finished(torch.where(torch.ones_like(to, dtype=torch.bool), to, y), x)
        if self.to is None:
            change = y
        else:
            change = y - aligned(self.to, y, "to")
        if self.subspace is not None:
            part = self.subspace.project(change)
            change = change - part if self.keep else part
        elif self.to is None:
            change = change.expand_as(y)
        return finished(y - scaled(change, self.strength, self.gate, y), x)

    def rows(self, index: Int[Tensor, " m"] | slice) -> "Ablate":
        """Slice ``to``, ``strength`` and ``gate`` where they are per example."""
        return replace(
            self, to=sliced(self.to, index), strength=sliced(self.strength, index), gate=sliced(self.gate, index)
        )

    @property
    def laws(self) -> frozenset[str]:
        """A plain strength of 1 is idempotent; without a target and a gate function the edit is linear."""
        factor, laws = self._factor, set()
        if factor in (0, 1):
            laws.add("idempotent")
        if factor == 0 or (self.to is None and not callable(self.gate)):
            laws.add("linear")
        if factor == 0 or (factor == 2 and self.to is None):
            laws.add("norm_preserving")
        if factor is not None and self.gate is None and not per_example(self.to):
            laws.add("bakeable")
        return frozenset(laws)

    @cached_property
    def _plain(self) -> bool:
        """Whether this is zero-ablation of a subspace at full strength, the case that must be cheap."""
        return self.to is None and self._factor == 1 and not self.keep

    @property
    def _factor(self) -> int | float | None:
        """Strength times gate where both are numbers."""
        gate = 1 if self.gate is None else self.gate
        numbers = isinstance(self.strength, (int, float)) and isinstance(gate, (int, float))
        return self.strength * gate if numbers else None  # type: ignore[operator, return-value]

    @property
    def rank(self) -> int | None:
        """The subspace's rank, or that of its complement with ``keep``."""
        if self.subspace is None:
            return None
        return self.subspace.d - self.subspace.rank if self.keep else self.subspace.rank

    def __repr__(self) -> str:
        what = "whole vector" if self.subspace is None else f"rank {self.subspace.rank} of {self.subspace.d}"
        to = "" if self.to is None else f", to {_shape(self.to)}"
        keep = ", keep" if self.keep else ""
        return f"Ablate({what}{to}{keep}{_strength(self.strength)}{', gated' if self.gate is not None else ''})"


@dataclass(frozen=True, eq=False, repr=False)
class Add(Intervention):
    """Add a vector: x' = x + s v, with v ``[d]`` or one row an example ``[n d]``."""

    vector: Tensor
    strength: Strength = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", torch.as_tensor(self.vector))
        if self.vector.ndim == 0 or not self.vector.is_floating_point():
            raise ValueError(
                f"vector has shape {list(self.vector.shape)} and {self.vector.dtype}; floats [d] or [n, d]."
            )

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        """Return x with the vector added."""
        y = working(x)
        return finished(y + scaled(aligned(self.vector, y, "vector").expand_as(y), self.strength, None, y), x)

    def rows(self, index: Int[Tensor, " m"] | slice) -> "Add":
        """Slice ``vector`` and ``strength`` where they are per example."""
        return Add(sliced(self.vector, index), sliced(self.strength, index))

    @property
    def laws(self) -> frozenset[str]:
        """Adding a constant can be baked in; it is linear, idempotent or an isometry only when it adds nothing."""
        nothing = not isinstance(self.strength, Tensor) and (self.strength == 0 or not self.vector.any())
        every = {"idempotent", "linear", "norm_preserving"} if nothing else set()
        constant = not isinstance(self.strength, Tensor) and not per_example(self.vector)
        return frozenset(every | {"bakeable"} if constant else every)

    @property
    def rank(self) -> int | None:
        """1 for one vector; as many as there are rows otherwise."""
        return 1 if self.vector.ndim == 1 else min(self.vector.numel() // self.vector.shape[-1], self.vector.shape[-1])

    def __repr__(self) -> str:
        return f"Add({_shape(self.vector)}{_strength(self.strength)})"


@dataclass(frozen=True, eq=False, repr=False)
class Rotate(Intervention):
    """Turn x by ``angle`` radians times ``strength`` in each plane (columns 0-1, 2-3, ...) of an even-rank subspace.

    On an answer circle with the planes of several frequencies, ``angle`` is one number a plane: 2πk δ / p turns the
    answer by δ. Activations circle around their mean, not around zero, so give it as ``centre`` ``[d]``: turned about
    zero, a model with a large mean loses it.
    """

    subspace: Subspace
    angle: Strength
    strength: int | float = 1.0
    centre: Tensor | None = None

    def __post_init__(self) -> None:
        if self.subspace.rank % 2:
            raise ValueError(f"Rotate turns planes: {self.subspace!r} has an odd rank. Choose pairs of directions.")
        angle = torch.as_tensor(self.angle, dtype=torch.float64)
        planes = self.subspace.rank // 2
        if angle.ndim > 1 or (angle.ndim == 1 and len(angle) != planes):
            raise ValueError(
                f"angle has shape {list(angle.shape)}: one number, or one for each of the {planes} planes."
            )
        object.__setattr__(self, "angle", angle)
        if self.centre is not None:
            object.__setattr__(self, "centre", torch.as_tensor(self.centre).to(torch.float64))
            if self.centre.shape != (self.subspace.d,):
                raise ValueError(f"centre has shape {list(self.centre.shape)}; [d] = [{self.subspace.d}] is needed.")

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        """Return x turned in the planes of the subspace."""
        y = working(x)
        coords = self.subspace.coords(y if self.centre is None else y - self.centre.to(y)).unflatten(-1, (-1, 2))
        angle = (self.angle * self.strength).to(y.device)  # type: ignore[union-attr]
        cos, sin = angle.cos().to(y.dtype), angle.sin().to(y.dtype)
        u, v = coords.unbind(-1)
        turned = torch.stack([cos * u - sin * v, sin * u + cos * v], dim=-1)
        return finished(y + (turned - coords).flatten(-2) @ self.subspace.columns(y).mT, x)

    @property
    def laws(self) -> frozenset[str]:
        """About zero it is linear and keeps norms; it is idempotent only when it turns by nothing."""
        nothing = not torch.remainder(self.angle * self.strength, 2 * torch.pi).any()  # type: ignore[arg-type]
        about_zero = {"linear", "norm_preserving"} if nothing or self.centre is None else set()
        return frozenset({"bakeable"} | about_zero | ({"idempotent"} if nothing else set()))

    @property
    def rank(self) -> int | None:
        """The subspace's rank."""
        return self.subspace.rank

    def __repr__(self) -> str:
        about = "" if self.centre is None else f", about {_shape(self.centre)}"
        return f"Rotate({self.subspace.rank // 2} planes of {self.subspace.d}{about}{_strength(self.strength)})"


@dataclass(frozen=True, eq=False, repr=False)
class Erase(Intervention):
    """Oblique erasure: x' = x - s W Rᵀ (x - c), for writer W ``[d r]``, reader R ``[d r]`` and centre c ``[d]``.

    With Rᵀ W = 1 the edit is a projector along W onto the null space of Rᵀ; LEACE's factors have that form.
    """

    writer: Float[Tensor, "d r"]
    reader: Float[Tensor, "d r"]
    centre: Float[Tensor, " d"] | None = None
    strength: int | float = 1.0

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

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        """Return x without what the reader sees of it."""
        y = working(x)
        if y.shape[-1] != self.writer.shape[0]:
            raise ValueError(
                f"{self!r} acts on vectors of width {self.writer.shape[0]}; these have width {y.shape[-1]}."
            )
        centred = y if self.centre is None else y - self.centre.to(y)
        return finished(y - self.strength * ((centred @ self.reader.to(y)) @ self.writer.to(y).mT), x)

    @property
    def laws(self) -> frozenset[str]:
        """Idempotent when s Rᵀ W = 1; linear without a centre; an isometry when it reflects orthogonally."""
        w, r = self.writer, self.strength * self.reader
        identity, nothing = torch.eye(w.shape[1]).to(w), self.strength == 0
        projects = torch.allclose(r.T @ w, identity, atol=1e-9)
        reflects = torch.allclose(r.T @ w, 2 * identity, atol=1e-9) and torch.allclose(r @ (w.T @ w), 2 * w, atol=1e-9)
        laws = {"bakeable"} | ({"linear"} if self.centre is None or nothing else set())
        laws |= {"norm_preserving"} if nothing or (reflects and self.centre is None) else set()
        return frozenset(laws | ({"idempotent"} if nothing or projects else set()))

    @property
    def rank(self) -> int | None:
        """Columns of the writer."""
        return self.writer.shape[1]

    def __repr__(self) -> str:
        return f"Erase(rank {self.writer.shape[1]} of {self.writer.shape[0]}{_strength(self.strength)})"


def _shape(x: Tensor) -> str:
    return "[" + " ".join(str(s) for s in x.shape) + "]"


def _strength(strength: Strength) -> str:
    if isinstance(strength, Tensor):
        return f", strength {_shape(strength)}"
    return "" if strength == 1 else f", strength {strength:g}"
