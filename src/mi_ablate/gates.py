"""A gate at one site for an edit at another: input-dependent strength, as in directional routing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from mi_ablate._types import FwdHooks
from mi_ablate.interventions import Ablate, Intervention, Placed


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
            raise RuntimeError(
                f"The gate's reader {reader_site} has not fired yet: it must lie before the edited sites."
            )
        return cell["gate"]

    hooks: FwdHooks = [(reader_site, read)]
    for name, placed in intervention:
        if not isinstance(placed, Placed) or not isinstance(placed.intervention, Ablate):
            raise ValueError(f"The hook at {name} is not a placed Ablate; only these take a gate.")
        hooks.append((name, placed.with_intervention(replace(placed.intervention, gate=gate))))
    return hooks
