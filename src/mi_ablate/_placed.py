"""What an edit is, and where it acts: the abstract `Intervention`, and `Placed`, the hook that its ``at`` returns."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mi_ablate import _positions
from mi_ablate._positions import Pos, Window
from mi_ablate._types import FwdHooks

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
                raise ValueError(
                    f"A hook name is a string; {name!r} is a {type(name).__name__}. Unpack lists: at(*names)."
                )
        pos = _positions.plain(pos)
        return [(name, Placed(self, name, pos, head, unit, when)) for name in names]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


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
            raise ValueError(
                f"when={self.when!r} at {self.name} needs `with attached(model, hooks):` to know the prompt."
            )
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
                raise ValueError(
                    f"head={self.head} at {self.name}: heads have an axis at attn.hook_z, hook_q, hook_result ..."
                )
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


def _indices(index: int | list[int], size: int, what: str, name: str) -> Shaped[Tensor, " m"]:
    chosen = torch.as_tensor([index] if isinstance(index, int) else list(index))
    if len(chosen) == 0 or int(chosen.min()) < -size or int(chosen.max()) >= size:
        raise IndexError(f"{what}={index} is out of range at {name}: there are {size}, so 0 to {size - 1}.")
    return torch.where(chosen < 0, chosen + size, chosen)
