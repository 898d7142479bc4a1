"""Edits of activations, as frozen callable values: what to write, apart from where.

Every intervention is a TransformerLens hook, ``edit(x, hook=None) -> x'`` on vectors in the last axis, and obeys the
same laws: the input is never written to; shape, dtype and device are kept; strength 0 is the identity; a batch of rows
gives the rows of the batch (`rows`); gradients flow; half precision is computed in float32 and rounded once.

    Ablate   x' = x + s Q Qᵀ (to - x)      directional ablation (Arditi et al. 2024, arXiv 2406.11717, for rank 1 and
                                           to = 0), mean, resample and reference ablation, activation patching,
                                           writing with `Fit.predict`; s = 2 reflects
    Add      x' = x + s v                  activation addition
    Rotate   x' = x + Q (R(sθ) - I) Qᵀ (x - c)   rotation in consecutive planes of the basis; to an angle: angular steering
    Erase    x' = x - s W (g ⊙ Rᵀ (x - c)) oblique erasure, such as LEACE; gated, directional routing

Affine concept editing (arXiv 2411.09003), x' = x - Q Qᵀ (x - μ_ref) + α r, is two of them in a row:
``Ablate(s, to=reference_mean).at(site) + Add(r, alpha).at(site)``. Several directions are made orthogonal by
`Subspace.span` before they are removed; one after another they would leave part of each other.

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

from mi_ablate._broadcast import (
    Gate,
    Strength,
    aligned,
    finished,
    per_example,
    refuse_non_finite,
    scaled,
    shape_text,
    sliced,
    strength_text,
    working,
)
from mi_ablate._erase import Erase
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
        refuse_non_finite("Ablate", self.subspace is None, to=self.to)
        refuse_non_finite("Ablate", strength=self.strength, gate=self.gate)

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
        to = "" if self.to is None else f", to {shape_text(self.to)}"
        keep = ", keep" if self.keep else ""
        return f"Ablate({what}{to}{keep}{strength_text(self.strength)}{', gated' if self.gate is not None else ''})"


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
        refuse_non_finite("Add", vector=self.vector, strength=self.strength)

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
        return f"Add({shape_text(self.vector)}{strength_text(self.strength)})"


@dataclass(frozen=True, eq=False, repr=False)
class Rotate(Intervention):
    """Turn x by ``angle`` radians times ``strength`` in each plane (columns 0-1, 2-3, ...) of an even-rank subspace.

    On an answer circle with the planes of several frequencies, ``angle`` is one number a plane: 2πk δ / p turns the
    answer by δ. Activations circle around their mean, not around zero, so give it as ``centre`` ``[d]``: turned about
    zero, a model with a large mean loses it.

    ``absolute=True`` turns x *to* the angle, counted from a plane's first direction towards its second, and keeps its
    length there: angular steering (arXiv 2510.26243). Strength 0.5 goes half of the shorter way.

    Raises:
        ValueError: an odd rank, as many angles as neither one nor a plane, a centre of another width.

    """

    subspace: Subspace
    angle: Strength
    strength: int | float = 1.0
    centre: Tensor | None = None
    absolute: bool = False

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
        refuse_non_finite("Rotate", angle=self.angle, centre=self.centre, strength=self.strength)

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        """Return x turned in the planes of the subspace."""
        y = working(x)
        coords = self.subspace.coords(y if self.centre is None else y - self.centre.to(y)).unflatten(-1, (-1, 2))
        u, v = coords.unbind(-1)
        angle = self.angle.to(y.device)  # type: ignore[union-attr]
        if self.absolute:
            turn = torch.remainder(angle.to(y.dtype) - torch.atan2(v, u) + torch.pi, 2 * torch.pi) - torch.pi
            turn = turn * self.strength
        else:
            turn = angle * self.strength
        cos, sin = turn.cos().to(y.dtype), turn.sin().to(y.dtype)
        turned = torch.stack([cos * u - sin * v, sin * u + cos * v], dim=-1)
        return finished(y + (turned - coords).flatten(-2) @ self.subspace.columns(y).mT, x)

    @property
    def laws(self) -> frozenset[str]:
        """About zero it keeps norms, and by an angle it is linear; to an angle, or by nothing, it is idempotent."""
        nothing = self.strength == 0
        if not self.absolute:
            nothing = not torch.remainder(self.angle * self.strength, 2 * torch.pi).any()  # type: ignore[arg-type]
        laws = {"norm_preserving"} if nothing or self.centre is None else set()
        laws |= {"idempotent"} if nothing or (self.absolute and self.strength == 1) else set()
        laws |= {"linear"} if nothing or (self.centre is None and not self.absolute) else set()
        return frozenset(laws | ({"bakeable"} if nothing or not self.absolute else set()))

    @property
    def rank(self) -> int | None:
        """The subspace's rank."""
        return self.subspace.rank

    def __repr__(self) -> str:
        about = "" if self.centre is None else f", about {shape_text(self.centre)}"
        way = ", to an angle" if self.absolute else ""
        return (
            f"Rotate({self.subspace.rank // 2} planes of {self.subspace.d}{way}{about}{strength_text(self.strength)})"
        )
