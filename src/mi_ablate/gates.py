"""A gate at one site for an edit at another: input-dependent strength, as in directional routing.

Directional routing (Taylor 2026, arXiv 2603.14923) subtracts, at each head's hook_z, Σ_k r_k (o·d_k) d_k for K unit
directions of that head, with r from one router a layer that reads the mean over positions of the residual stream. With
``directions [heads K d_head]`` and ``router(mean) -> [batch heads K]``:

    hooks = []
    for h, d in enumerate(directions):
        gate = lambda x, h=h: router(x.mean(1))[:, h]
        hooks += gated(Erase(d.T, d.T).at("blocks.0.attn.hook_z", head=h), "blocks.0.hook_resid_pre", gate)

A gate that reads later positions than the edited one (a mean over all of them) lets a causal model look ahead.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from mi_ablate._types import FwdHooks
from mi_ablate.interventions import Ablate, Erase, Intervention, Placed


def gated(intervention: FwdHooks, reader_site: str, fn: Callable[[Tensor], Tensor]) -> FwdHooks:
    """Return hooks whose strength is ``fn`` of the activations at another site that fires earlier.

    Args:
        intervention: an `Ablate` or `Erase` already placed, ``Ablate(s).at(name, ...)``.
        reader_site: hook name that the gate reads, earlier in the same forward pass.
        fn: the reader's activations to a gate that broadcasts, examples first, against ``x[..., :1]`` of the addressed
            activations for Ablate, and against its coordinates ``[..., r]``, one factor a direction, for Erase.

    Raises:
        ValueError: hooks that are no placed Ablate or Erase.
        RuntimeError: in the forward pass, a reader that has not fired yet.

    """
    if isinstance(intervention, Intervention):
        raise ValueError("gated takes an edit with its place: gated(edit.at('blocks.1.hook_resid_post'), reader, fn).")
    cell: dict[str, Tensor] = {}

    def read(x: Tensor, hook: Any = None) -> Tensor:
        cell["gate"] = fn(x)
        return x

    def gate(x: Tensor) -> Tensor:
        if "gate" not in cell:
            raise RuntimeError(
                f"The gate's reader {reader_site} has not fired yet: it must lie before the edited sites."
            )
        return cell["gate"]

    hooks: FwdHooks = [(reader_site, read)]
    for name, placed in intervention:
        if not isinstance(placed, Placed) or not isinstance(placed.intervention, (Ablate, Erase)):
            raise ValueError(f"The hook at {name} is not a placed Ablate or Erase; only these take a gate.")
        hooks.append((name, placed.with_intervention(replace(placed.intervention, gate=gate))))
    return hooks
