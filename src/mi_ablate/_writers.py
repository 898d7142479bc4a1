"""Where a model keeps what it writes to the residual stream, and whether that is what its hooks see.

Each writer is a weight whose last axis is the stream, and mostly a bias. Its hook point need not see what they produce:
Gemma 2 and OLMo 2 put a norm after attention and MLP, BLOOM one after its embedding, Gemma multiplies the embedding by
√d, Granite every write by a constant. A list of families would miss the next one, so `scales` measures: it runs the
model once on three tokens, computes from what enters each weight what it writes, and compares that with what the hook
point sees. Equal up to one number: that number is returned. Anything else: no edit of the weight equals the hook.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mi_ablate._broadcast import working
from mi_ablate._names import layer_of
from mi_ablate._types import HookedModel
from mi_ablate.model import collect

Parameters = tuple[Tensor, Tensor | None]
_CHUNK, _STEP = 2**20, 0x5851F42D4C957F2E
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass
class Kept:
    """Weights as they were before an edit, to be put back once, and only over what the edit wrote."""

    before: list[tuple[Tensor, Tensor]]
    tie: Callable[[], None] | None
    written: list[int] = field(default_factory=list)
    done: bool = False

    def remember(self) -> None:
        """Keep a fingerprint of what the edit wrote."""
        self.written = [fingerprint(parameter) for parameter, _ in self.before]

    def undo(self) -> None:
        """Put the weights back; nothing where that is done already.

        Raises:
            RuntimeError: weights that are not what the edit wrote; nothing is changed then.

        """
        if self.done:
            return
        if [fingerprint(parameter) for parameter, _ in self.before] != self.written:
            raise RuntimeError(
                "The weights are not those that this edit wrote, so undoing it would leave parts of another one: undo the "
                "later edit first. Nothing was changed."
            )
        self.restore()

    def restore(self) -> None:
        """Put the weights back, whatever they are now."""
        with torch.no_grad():
            for parameter, values in self.before:
                parameter.copy_(values)
        if self.tie is not None:
            self.tie()
        self.done = True


def fingerprint(x: Tensor) -> int:
    """Return a number of 64 bits that another value of any coordinate changes, computed where the tensor is."""
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[x.element_size()]
    total, start = 0, 0
    for part in x.detach().reshape(-1).split(_CHUNK):
        place = torch.arange(start, start + len(part), device=x.device)
        total += int((part.contiguous().view(bits).to(torch.int64) * (_STEP * place + 1)).sum())
        start += len(part)
    return total % 2**64


def parameters(model: HookedModel, name: str) -> Parameters:
    """Return the weight whose last-axis vectors a site writes, ``[..., d]``, and its bias ``[d]`` or None.

    Raises:
        ValueError: a site that is not a writer, or a model that holds the weight in another way.

    """
    layer = layer_of(name)
    site = name.rsplit(".", 1)[-1]
    holder, weight, bias = {
        "hook_embed": ("embed", "W_E", None),
        "hook_pos_embed": ("pos_embed", "W_pos", None),
        "hook_attn_out": ("attn", "W_O", "b_O"),
        "hook_mlp_out": ("mlp", "W_out", "b_out"),
    }.get(site, ("", "", None))
    if not holder or (layer is None) != (site in ("hook_embed", "hook_pos_embed")):
        raise ValueError(
            f"{name} is not a writer, so no weight equals an edit there. Writers are hook_embed, hook_pos_embed, "
            "hook_attn_out and hook_mlp_out; writers(model) lists them."
        )
    module: Any = getattr(model if layer is None else model.blocks[layer], holder, None)  # type: ignore[attr-defined]
    found = getattr(module, weight, None)
    if not isinstance(found, Tensor) or found.shape[-1] != model.cfg.d_model or not found.is_floating_point():
        raise ValueError(
            f"The model holds no {weight} [..., {model.cfg.d_model}] behind {name} (experts and quantised weights are "
            "held in other ways). Keep the hook."
        )
    added = None if bias is None else getattr(module, bias, None)
    for what, held in ((weight, found), (str(bias), added)):
        if held is not None and held.data_ptr() != getattr(module, what).data_ptr():
            raise ValueError(f"{what} behind {name} is made anew each time, so editing it does nothing. Keep the hook.")
    return found, added


def scales(model: HookedModel, names: Iterable[str]) -> dict[str, float]:
    """Return, for each writer, the number between what its weight and bias write and what its hook point sees.

    Raises:
        ValueError: a writer whose hook point sees something else: a norm lies between, or a hook is attached.

    """
    names = list(dict.fromkeys(names))
    entering = {name: _entering(name) for name in names}
    wanted = [site for name in names for site in (name, entering[name]) if site is not None]
    points = model.hook_dict
    missing = [site for site in wanted if site not in points]
    if missing:
        raise ValueError(f"The model has no {missing[0]}, so what its weights write cannot be checked. Keep the hook.")
    tokens = torch.arange(min(3, model.cfg.n_ctx or 3)) % model.cfg.d_vocab
    tokens = tokens.to(parameters(model, names[0])[0].device)
    acts = collect(model, tokens[None], wanted, pos=None)
    found = {}
    for name in names:
        weight, bias = parameters(model, name)
        site, dtype = entering[name], weight.dtype
        if name == "hook_pos_embed":  # rows may be shifted (OPT), so they cannot be matched; the hook sees sums of them
            found[name] = 1.0
            continue
        if site is None:
            written = weight[tokens.to(weight.device)].detach().double()
        else:
            weight = working(weight.detach()).flatten(0, -2)
            read = acts[site][0].to(weight).flatten(1)
            if read.shape[-1] != len(weight):
                raise ValueError(
                    f"{site} has {read.shape[-1]} coordinates and the weight behind {name} takes {len(weight)}: a layout "
                    "that this function does not know. Keep the hook."
                )
            written = (read @ weight).double() + (0 if bias is None else bias.detach().double())
        found[name] = _ratio(acts[name][0].to(written), written, name, _TOLERANCE.get(dtype, 0.05))
    return found


def tied(model: HookedModel) -> bool:
    """Return whether the embedding and the unembedding share their storage."""
    unembed = getattr(getattr(model, "unembed", None), "W_U", None)
    embed = getattr(getattr(model, "embed", None), "W_E", None)
    if unembed is None or embed is None:
        return False
    return embed.untyped_storage().data_ptr() == unembed.untyped_storage().data_ptr()


def untie(model: HookedModel) -> Callable[[], None]:
    """Give the unembedding a copy of its own, in place, and return a function that ties the two again.

    Raises:
        ValueError: a model that ties them in a way that this function does not know.

    """
    if not tied(model):
        return lambda: None
    unembed: Any = model.unembed  # type: ignore[attr-defined]
    holder = getattr(unembed, "original_component", None)
    shared = unembed.W_U.data if holder is None else holder.weight
    config: Any = getattr(getattr(model, "original_model", None), "config", None)
    said = getattr(config, "tie_word_embeddings", None)

    def tie() -> None:
        if holder is None:
            unembed.W_U.data = shared
        else:
            holder.weight = shared
        if said is not None:
            config.tie_word_embeddings = said

    if holder is None:
        unembed.W_U.data = shared.clone()
    else:
        holder.weight = torch.nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    if said is not None:
        config.tie_word_embeddings = False
    if tied(model):
        tie()
        raise ValueError("W_E and W_U are tied in a way that this function does not know; untie them yourself.")
    return tie


def _entering(name: str) -> str | None:
    """The hook point of what a writer's weight multiplies; None for the embeddings."""
    block = name.rpartition("hook_")[0]
    if name.endswith("hook_attn_out"):
        return f"{block}attn.hook_z"
    return f"{block}mlp.hook_post" if name.endswith("hook_mlp_out") else None


def _ratio(seen: Tensor, written: Tensor, name: str, tolerance: float) -> float:
    """The number s with seen = s * written; 1 exactly where it rounds to that."""
    if not seen.any() and not written.any():
        return 1.0
    ratio = float((seen * written).sum() / written.square().sum().clamp(min=1e-300))
    error = float((seen - ratio * written).norm() / seen.norm().clamp(min=1e-300))
    if error > tolerance or ratio == 0:
        raise ValueError(
            f"What {name} sees is not what its weight writes ({error:.0%} of it is something else): a norm lies between, "
            "as in Gemma 2, OLMo 2 and after BLOOM's embedding, or a hook is attached. Weights cannot equal the hook "
            "there: keep the hook."
        )
    return 1.0 if abs(ratio - 1) <= tolerance else ratio
