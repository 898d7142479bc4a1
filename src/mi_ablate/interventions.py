"""Edits of activations, as frozen callable values: what to write, apart from where.

Every intervention is a TransformerLens hook, ``edit(x, hook=None) -> x'`` on vectors in the last axis, and obeys the
same laws: the input is never written to; shape, dtype and device are kept; strength 0 is the identity; a batch of rows
gives the rows of the batch (`rows`); gradients flow; half precision is computed in float32 and rounded once.

    Ablate   x' = x + s Q Qᵀ (to - x)      directional ablation (Arditi et al. 2024, arXiv 2406.11717, for rank 1 and
                                           to = 0), mean, resample and reference ablation, activation patching,
                                           writing with `Fit.predict`; s = 2 reflects
    Add      x' = x + s v                  activation addition
    Rotate   x' = x + Q (R(sθ) - I) Qᵀ x   rotation in consecutive planes of the basis
    Erase    x' = x - s W Rᵀ (x - c)       oblique erasure, such as LEACE (Belrose et al. 2023, arXiv 2306.03819)

``edit.at("blocks.1.hook_resid_post", pos=-1)`` says where: a list of (name, hook) for ``fwd_hooks=``, `attached`,
`effect` and the rest. Zero-ablation moves the mean as well as removing the variation; where the activations have a large
mean, its effect is that of a lost constant, so put mean-ablation beside it. Strength other than 1 on the stream
compounds over sites and differs from the same strength on the writers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mi_ablate import _positions
from mi_ablate._positions import Pos, Window
from mi_ablate._types import FwdHooks
from mi_ablate.subspace import Subspace

Strength = int | float | Tensor
Gate = int | float | Tensor | Callable[[Tensor], Tensor] | None
_HALF = (torch.float16, torch.bfloat16)
_BARE = Window()


@dataclass(frozen=True, eq=False)
class Intervention(ABC):
    """What all edits share; see the module's docstring for the laws."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        """Return the edited activations; ``x`` itself is left as it is."""

    @property
    @abstractmethod
    def laws(self) -> frozenset[str]:
        """Which of "idempotent", "linear" (homogeneous), "norm_preserving", "bakeable" hold for this value."""

    @property
    @abstractmethod
    def rank(self) -> int | None:
        """The largest rank that the change x' - x can have over any inputs; None: no bound below d."""

    def rows(self, index: Int[Tensor, " m"] | slice) -> "Intervention":
        """Return the same edit for a batch of examples: whatever is per example is sliced."""
        return self

    def at(
        self,
        *names: str,
        pos: Pos = None,
        head: int | list[int] | None = None,
        unit: int | list[int] | None = None,
        when: str = "all",
    ) -> FwdHooks:
        """Return this edit as ``[(name, hook), ...]`` at the named hook points.

        Args:
            names: TransformerLens hook names, such as ``blocks.0.hook_resid_post``; `sites` and `writers` list them.
            pos: None for all; int, slice or list: the same in all rows, negative from the end; Int[n]: one an
                example; Bool[n, pos]: a mask; a function ``f(x, hook) -> Bool[batch, pos]``.
            head: heads at hook_z, hook_q, hook_result (axis -2) or patterns (axis 1); None for all.
            unit: coordinates of the last axis, such as neurons at hook_post; the edit sees these alone.
            when: "all", or within `attached` "prompt" or "new" (generation with a KV cache).
        """
        if not names:
            raise ValueError("at() needs at least one hook name, such as 'blocks.0.hook_resid_post'.")
        if when not in ("all", "prompt", "new"):
            raise ValueError(f"when={when!r} must be 'all', 'prompt' or 'new'.")
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"A hook name is a string; {name!r} is a {type(name).__name__}. Unpack lists: at(*names).")
        _positions.check(pos)
        return [(name, Placed(self, name, pos, head, unit, when)) for name in names]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


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
            raise ValueError(f"subspace is a {type(self.subspace).__name__}; Subspace.span(vectors) makes one from rows.")
        if self.subspace is None and self.keep:
            raise ValueError("keep=True needs a subspace: there is nothing to keep of the whole vector.")
        if self.to is not None:
            object.__setattr__(self, "to", torch.as_tensor(self.to))
            width = None if self.subspace is None else self.subspace.d
            if self.to.ndim == 0 or (width is not None and self.to.shape[-1] != width):
                raise ValueError(f"to has shape {list(self.to.shape)}; its last axis must be d = {width}.")

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        y = _working(x)
        if self.subspace is None and self._factor == 1:  # exact, also where x holds -inf (masked attention scores)
            to = y.new_zeros(()) if self.to is None else _aligned(self.to, y, "to")
            return _finished(torch.where(torch.ones_like(to, dtype=torch.bool), to, y), x)
        if self.to is None:
            change = y
        else:
            change = y - _aligned(self.to, y, "to")
        if self.subspace is not None:
            q = self.subspace.columns(y)
            if q.shape[0] != y.shape[-1]:
                self.subspace._check_width(y)
            part = (change @ q) @ q.mT
            change = change - part if self.keep else part
        elif self.to is None:
            change = change.expand_as(y)
        return _finished(y - _scaled(change, self.strength, self.gate, y), x)

    def rows(self, index: Int[Tensor, " m"] | slice) -> "Ablate":
        """Slice ``to``, ``strength`` and ``gate`` where they are per example."""
        return replace(
            self, to=_rows(self.to, index), strength=_rows(self.strength, index), gate=_rows(self.gate, index)
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
        if factor is not None and self.gate is None and not _per_example(self.to):
            laws.add("bakeable")
        return frozenset(laws)

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
            raise ValueError(f"vector has shape {list(self.vector.shape)} and {self.vector.dtype}; floats [d] or [n, d].")

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        y = _working(x)
        return _finished(y + _scaled(_aligned(self.vector, y, "vector").expand_as(y), self.strength, None, y), x)

    def rows(self, index: Int[Tensor, " m"] | slice) -> "Add":
        """Slice ``vector`` and ``strength`` where they are per example."""
        return Add(_rows(self.vector, index), _rows(self.strength, index))

    @property
    def laws(self) -> frozenset[str]:
        """Adding a constant can be baked in; it is linear, idempotent or an isometry only when it adds nothing."""
        nothing = not isinstance(self.strength, Tensor) and (self.strength == 0 or not self.vector.any())
        every = {"idempotent", "linear", "norm_preserving"} if nothing else set()
        constant = not isinstance(self.strength, Tensor) and not _per_example(self.vector)
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
    answer by δ.
    """

    subspace: Subspace
    angle: Strength
    strength: int | float = 1.0

    def __post_init__(self) -> None:
        if self.subspace.rank % 2:
            raise ValueError(f"Rotate turns planes: {self.subspace!r} has an odd rank. Choose pairs of directions.")
        angle = torch.as_tensor(self.angle, dtype=torch.float64)
        planes = self.subspace.rank // 2
        if angle.ndim > 1 or (angle.ndim == 1 and len(angle) != planes):
            raise ValueError(f"angle has shape {list(angle.shape)}: one number, or one for each of the {planes} planes.")
        object.__setattr__(self, "angle", angle)

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        y = _working(x)
        coords = self.subspace.coords(y).unflatten(-1, (-1, 2))
        angle = (self.angle * self.strength).to(y.device)  # type: ignore[union-attr]
        cos, sin = angle.cos().to(y.dtype), angle.sin().to(y.dtype)
        u, v = coords.unbind(-1)
        turned = torch.stack([cos * u - sin * v, sin * u + cos * v], dim=-1)
        return _finished(y + (turned - coords).flatten(-2) @ self.subspace.columns(y).mT, x)

    @property
    def laws(self) -> frozenset[str]:
        """A rotation is linear and keeps norms; it is idempotent only when it turns by nothing."""
        nothing = not torch.remainder(self.angle * self.strength, 2 * torch.pi).any()  # type: ignore[arg-type]
        return frozenset({"linear", "norm_preserving", "bakeable"} | ({"idempotent"} if nothing else set()))

    @property
    def rank(self) -> int | None:
        """The subspace's rank."""
        return self.subspace.rank

    def __repr__(self) -> str:
        return f"Rotate({self.subspace.rank // 2} planes of {self.subspace.d}{_strength(self.strength)})"


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
            raise ValueError(f"writer {list(self.writer.shape)} and reader {list(self.reader.shape)} must both be [d, r].")
        if self.centre is not None and self.centre.shape != self.writer.shape[:1]:
            raise ValueError(f"centre has shape {list(self.centre.shape)}; [d] = [{self.writer.shape[0]}] is needed.")

    def __call__(self, x: Float[Tensor, "*batch d"], hook: Any = None) -> Float[Tensor, "*batch d"]:
        y = _working(x)
        if y.shape[-1] != self.writer.shape[0]:
            raise ValueError(f"{self!r} acts on vectors of width {self.writer.shape[0]}; these have width {y.shape[-1]}.")
        centred = y if self.centre is None else y - self.centre.to(y)
        return _finished(y - self.strength * ((centred @ self.reader.to(y)) @ self.writer.to(y).mT), x)

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


@dataclass(frozen=True, eq=False, repr=False)
class Placed:
    """An intervention at a hook point, positions, heads and units; what `Intervention.at` returns. A plain hook."""

    intervention: Intervention
    name: str
    pos: Pos = None
    head: int | list[int] | None = None
    unit: int | list[int] | None = None
    when: str = "all"

    def __call__(self, x: Tensor, hook: Any = None) -> Tensor:
        """Edit as a bare TransformerLens hook: positions count within the tensor."""
        if self.when != "all":
            raise ValueError(f"when={self.when!r} at {self.name} needs `with attached(model, hooks):` to know the prompt.")
        seen = getattr(hook, "name", None)
        if seen and self.name.endswith("hook_resid_mid") and not seen.endswith("hook_resid_mid"):
            raise ValueError(
                f"On a TransformerBridge an edit returned from {self.name} reaches the MLP branch only. "
                "`with attached(model, hooks):` edits the residual stream there."
            )
        out = self.edit(x, hook, _BARE)
        return x if out is None else out

    def edit(self, x: Tensor, hook: Any, window: Window) -> Tensor | None:
        """Return the edited tensor, or None where this window shows none of the addressed positions."""
        if self.when != "all" and (self.when == "new") != (window.offset > 0):
            return None
        if self.everywhere and not self.pattern:
            return self.intervention(x, hook)
        y = x.transpose(1, 2) if self.pattern else x
        chosen = _positions.resolve(self.pos, y, hook, window)
        if chosen.kind == "none":
            return None
        out = chosen.put(y, self._inside(chosen.take(y), hook))
        return out.transpose(1, 2) if self.pattern else out

    @property
    def everywhere(self) -> bool:
        """Whether all positions, heads, units and passes are addressed."""
        return self.pos is None and self.head is None and self.unit is None and self.when == "all"

    @property
    def pattern(self) -> bool:
        """Whether the site has axes batch, head, query, key."""
        return self.name.endswith(("hook_pattern", "hook_attn_scores"))

    def _inside(self, x: Tensor, hook: Any) -> Tensor:
        """Apply the intervention to the chosen heads and units of already chosen positions."""
        if self.head is None and self.unit is None:
            return self.intervention(x, hook)
        where: list[Any] = [slice(None)] * x.ndim
        if self.head is not None:
            if x.ndim < 3 or ("attn." not in self.name):
                raise ValueError(f"head={self.head} at {self.name}: heads have an axis at attn.hook_z, hook_q, hook_result ...")
            where[-2] = _indices(self.head, x.shape[-2], "head", self.name)
        if self.unit is not None:
            where[-1] = _indices(self.unit, x.shape[-1], "unit", self.name)
        picked = x
        for axis in (-2, -1):
            if not isinstance(where[axis], slice):
                picked = picked.index_select(axis, where[axis].to(x.device))
        one_head = isinstance(self.head, int)
        new = self.intervention(picked.squeeze(-2) if one_head else picked, hook)
        new = new.unsqueeze(-2) if one_head else new
        for axis in (-1, -2):
            if not isinstance(where[axis], slice):
                outer = x if axis == -2 or isinstance(where[-2], slice) else x.index_select(-2, where[-2].to(x.device))
                new = outer.index_copy(axis, where[axis].to(x.device), new)
        return new

    def rows(self, index: Int[Tensor, " m"] | slice) -> "Placed":
        """Return the hook for a batch of examples."""
        return replace(self, intervention=self.intervention.rows(index), pos=_positions.slice_rows(self.pos, index))

    def with_intervention(self, intervention: Intervention) -> "Placed":
        """Return another edit at the same place; what the controls are made of."""
        return replace(self, intervention=intervention)

    def __repr__(self) -> str:
        where = "".join(
            f", {key}={_positions._short(value)[:12]}"
            for key, value in (("pos", self.pos), ("head", self.head), ("unit", self.unit))
            if value is not None
        )
        return f"{self.intervention!r}{where}"[:79]


def gated(intervention: FwdHooks, reader_site: str, fn: Callable[[Tensor], Tensor]) -> FwdHooks:
    """Return hooks whose strength is ``fn`` of the activations at another site that fires earlier.

    Args:
        intervention: an `Ablate` already placed, ``Ablate(s).at(name, ...)``.
        reader_site: hook name that the gate reads, earlier in the same forward pass.
        fn: the reader's activations to a gate that broadcasts against ``x[..., :1]`` of the addressed activations.
    """
    if isinstance(intervention, Intervention):
        raise ValueError("gated takes an edit with its place: gated(edit.at('blocks.1.hook_resid_post'), reader, fn).")
    cell: dict[str, Tensor] = {}

    def read(x: Tensor, hook: Any = None) -> Tensor:
        cell["gate"] = fn(x)
        return x

    def gate(x: Tensor) -> Tensor:
        if "gate" not in cell:
            raise RuntimeError(f"The gate's reader {reader_site} has not fired yet: it must lie before the edited sites.")
        return cell["gate"]

    hooks: FwdHooks = [(reader_site, read)]
    for name, placed in intervention:
        if not isinstance(placed, Placed) or not isinstance(placed.intervention, Ablate):
            raise ValueError(f"The hook at {name} is not a placed Ablate; only these take a gate.")
        hooks.append((name, placed.with_intervention(replace(placed.intervention, gate=gate))))
    return hooks


def _working(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


def _finished(y: Tensor, x: Tensor) -> Tensor:
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _aligned(value: Tensor, x: Tensor, what: str) -> Tensor:
    """Bring ``value`` [d] or [n, ..., d] against ``x``: examples align on the left, the vector axes on the right."""
    value = value.to(x)
    if value.ndim > 1 and value.ndim < x.ndim:
        value = value.reshape(value.shape[0], *[1] * (x.ndim - value.ndim), *value.shape[1:])
    try:
        torch.broadcast_shapes(value.shape, x.shape)
        fits = value.ndim <= x.ndim and all(v in (1, s) for v, s in zip(reversed(value.shape), reversed(x.shape)))
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{what} of shape {list(value.shape)} does not fit activations {list(x.shape)}: [d] is the same for all, "
            "and the first axis of anything larger counts the examples of the batch."
        )
    return value


def _scaled(change: Tensor, strength: Strength, gate: Gate, x: Tensor) -> Tensor:
    if callable(gate):
        gate = gate(x)
    for factor, what in ((strength, "strength"), (gate, "gate")):
        if isinstance(factor, Tensor) and factor.ndim:
            change = change * _aligned(factor, x[..., :1], what)
        elif factor is not None and not (isinstance(factor, (int, float)) and factor == 1):
            change = change * factor
    return change


def _per_example(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] > 1


def _rows(value: Any, index: Tensor | slice) -> Any:
    return value[index] if _per_example(value) else value


def _indices(index: int | list[int], size: int, what: str, name: str) -> Shaped[Tensor, " m"]:
    chosen = torch.as_tensor([index] if isinstance(index, int) else list(index))
    if len(chosen) == 0 or int(chosen.min()) < -size or int(chosen.max()) >= size:
        raise IndexError(f"{what}={index} is out of range at {name}: there are {size}, so 0 to {size - 1}.")
    return torch.where(chosen < 0, chosen + size, chosen)


def _shape(x: Tensor) -> str:
    return "[" + " ".join(str(s) for s in x.shape) + "]"


def _strength(strength: Strength) -> str:
    if isinstance(strength, Tensor):
        return f", strength {_shape(strength)}"
    return "" if strength == 1 else f", strength {strength:g}"
