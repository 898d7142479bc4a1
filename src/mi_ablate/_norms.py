"""The norms that an edit reaches, and the hooks that keep their scale at what it is on the clean run.

A LayerNorm divides by the standard deviation of its input, an RMSNorm by the root mean square. An edit upstream changes
that scale, so it acts on every direction at once, also on those that it left alone. With the scale of the clean run
written to ``hook_scale``, each prompt's own, the norm is an affine map and the edit acts by what it removes alone.
LayerNorm also subtracts the mean over coordinates; that is linear, and is not frozen.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mi_ablate._names import layer_of
from mi_ablate._placed import Placed
from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Ablate
from mi_ablate.model import collect

NORMS = ("live", "frozen")
_PLACES = ("hook_resid_pre", "ln1", "attn", "ln1_post", "hook_resid_mid", "ln2", "mlp", "ln2_post", "hook_resid_post")
_OUTPUTS = {"hook_attn_out": "ln1_post", "hook_mlp_out": "ln2_post"}


def norms_after(model: HookedModel, names: Iterable[str]) -> list[str]:
    """Return the ``hook_scale`` of every norm that an edit at one of ``names`` can reach, in no order."""
    first = min(_place(model, name) for name in names)
    return [name for name in model.hook_dict if name.endswith("hook_scale") and _place(model, name) > first]


def frozen_norms(
    norms: str, model: HookedModel, tokens: Tensor, hooks: FwdHooks, mask: Tensor | None, batch_size: int | None
) -> FwdHooks:
    """Return hooks that write the clean scales ``[n 1]`` or ``[n p 1]`` at every norm that ``hooks`` can reach.

    An edit at the last position of a causal model changes nothing elsewhere, so its norms are frozen there alone; others
    are frozen at all positions. The list is empty with norms="live", and where the model has none.
    """
    if norms not in NORMS:
        raise ValueError(
            f"norms={norms!r} must be 'live' or 'frozen' (downstream norms keep the scale of the clean run)."
        )
    if norms == "live":
        return []
    names = norms_after(model, [name for name, _ in hooks])
    if not names:
        return []
    pos = -1 if mask is None and _only_last(model, hooks) else None
    scales = collect(model, tokens, names, pos=pos, attention_mask=mask, batch_size=batch_size)
    return [hook for name in names for hook in Ablate(None, to=scales[name]).at(name, pos=pos)]


def _only_last(model: Any, hooks: FwdHooks) -> bool:
    causal = getattr(model.cfg, "attention_dir", "causal") == "causal"
    placed: list[Pos] = [hook.pos if isinstance(hook, Placed) else None for _, hook in hooks]
    return causal and all(isinstance(pos, int) and pos == -1 for pos in placed)


def _place(model: Any, name: str) -> tuple[int, int]:
    """Where a hook point comes in the pass: (block, place in it); an unknown edit counts as early, a norm as late."""
    scale, layer = name.endswith("hook_scale"), layer_of(name)
    if layer is None:
        late = name.startswith(("ln_final", "unembed"))
        return (model.cfg.n_layers if late else -1, int(scale))
    part = _OUTPUTS.get(name.split(".")[2], name.split(".")[2])
    if part in _PLACES and not (scale and part in ("attn", "mlp")):
        return layer, _PLACES.index(part)
    return layer, len(_PLACES) if scale else -1
