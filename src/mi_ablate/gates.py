"""A gate at one site for an edit at another: input-dependent strength, as in directional routing.

Directional routing (Taylor 2026, arXiv 2603.14923) subtracts, at each head's hook_z, Σ_k r_k (o·d_k) d_k for K unit
directions of that head, with r from one router a layer that reads the mean over positions of the residual stream. With
``directions [heads K d_head]`` and ``router(mean) -> [batch heads K]``:

    hooks = []
    for h, d in enumerate(directions):
        gate = lambda x, h=h: router(x.mean(1))[:, h]
        hooks += gated(Erase(d.T, d.T).at("blocks.0.attn.hook_z", head=h), "blocks.0.hook_resid_pre", gate)

A gate that reads later positions than the edited one (a mean over all of them) lets a causal model look ahead. And it
depends on what a pass shows: in generation with a KV cache the mean of the new positions alone, one token, is read, so
``router(x.mean(1))`` gives other gates than the same tokens in one pass. A gate of each position by itself does not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mi_ablate._types import FwdHooks
from mi_ablate.interventions import Ablate, Erase, Intervention, Placed


def gated(intervention: FwdHooks, reader_site: str, fn: Callable[[Tensor], Tensor]) -> FwdHooks:
    """Return hooks whose strength is ``fn`` of the activations at another site that fires earlier.

    Args:
        intervention: an `Ablate` or `Erase` without a gate, already placed: ``Ablate(s).at(name, ...)``.
        reader_site: hook name that the gate reads, earlier in the same forward pass.
        fn: the reader's activations to a gate: a number, or ``[batch, ...]``, examples first, that broadcasts against
            ``x[..., :1]`` of the addressed activations for Ablate, and against its coordinates ``[..., r]``, one factor a
            direction, for Erase.

    Raises:
        ValueError: hooks that are no placed Ablate or Erase, or have a gate already; in the forward pass, a gate of one
            axis, which could be of examples or of directions.
        RuntimeError: in the forward pass, a reader that has not fired in it when an edited site does.

    """
    if isinstance(intervention, Intervention):
        raise ValueError("gated takes an edit with its place: gated(edit.at('blocks.1.hook_resid_post'), reader, fn).")
    cells: list[_Cell] = []
    hooks: FwdHooks = []
    for name, placed in intervention:
        if not isinstance(placed, Placed) or not isinstance(placed.intervention, (Ablate, Erase)):
            raise ValueError(f"The hook at {name} is not a placed Ablate or Erase; only these take a gate.")
        if placed.intervention.gate is not None:
            raise ValueError(
                f"{placed!r} at {name} has a gate already, which this one would replace: multiply the two in fn, or put the "
                "first one into strength=."
            )
        cell = _Cell(reader_site)
        cells.append(cell)
        hooks += [(name, cell.arrive), (name, placed.with_intervention(replace(placed.intervention, gate=cell.gate)))]

    def read(x: Tensor, hook: Any = None) -> Tensor:
        gate = fn(x)
        if isinstance(gate, Tensor) and gate.ndim == 1:
            raise ValueError(
                f"The gate at {reader_site} has shape {list(gate.shape)}, which could be one an example or one a direction: "
                "return [batch, 1] or [batch, r], or a number for all."
            )
        for cell in cells:
            cell.fresh = gate
        return x

    return [(reader_site, read), *hooks]


@dataclass
class _Cell:
    """The gate on its way from the reader to one edited site, where it is taken out once in each pass."""

    reader: str
    fresh: Any = None
    taken: Any = None

    def arrive(self, x: Tensor, hook: Any = None) -> Tensor:
        """Take this pass's gate, also where the edit then meets no position; an earlier pass's is never used."""
        if self.fresh is None:
            raise RuntimeError(
                f"The gate's reader {self.reader} has not fired yet: it must lie before the edited sites."
            )
        self.taken, self.fresh = self.fresh, None
        return x

    def gate(self, x: Tensor) -> Tensor:
        """Return what was taken."""
        return self.taken
