"""Hook names: resolve them, or say which ones are near; TransformerLens's legacy names, the only ones valid everywhere."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mi_ablate._types import HookedModel, nearest

_ATTENTION = ("q", "k", "v", "z", "pattern", "attn_scores", "result", "rot_q", "rot_k")
_GATED = {
    "attn.hook_result": ("use_attn_result", "set_use_attn_result"),
    "hook_q_input": ("use_split_qkv_input", "set_use_split_qkv_input"),
    "hook_k_input": ("use_split_qkv_input", "set_use_split_qkv_input"),
    "hook_v_input": ("use_split_qkv_input", "set_use_split_qkv_input"),
    "hook_attn_in": ("use_attn_in", "set_use_attn_in"),
    "hook_mlp_in": ("use_hook_mlp_in", "set_use_hook_mlp_in"),
}


def sites(model: HookedModel, pattern: str, layers: int | Iterable[int] | None = None) -> tuple[str, ...]:
    """Return the hook names that ``pattern`` means, in layer order.

    Args:
        model: a HookedTransformer, a TransformerBridge or anything with their ``hook_dict``.
        pattern: a full name, a short one ("resid_post", "attn_out", "z", "mlp.hook_post"), or a glob ("blocks.*.hook_mlp_out").
        layers: keep these layers only; negative counts from the last.

    Raises:
        KeyError: no such name; the message lists the nearest ones.
        ValueError: the name exists but is switched off; the message says how to switch it on.

    """
    there = model.hook_dict
    found = _expand(model, pattern, there)
    if layers is not None:
        wanted = _layers(model, layers)
        found = [name for name in found if layer_of(name) in wanted]
    if not found:
        extra = ""
        if pattern.endswith("resid_mid") and getattr(model.cfg, "parallel_attn_mlp", False):
            extra = " Blocks that run attention and MLP in parallel have no point between them; use resid_pre or resid_post."
        raise KeyError(f"No hook point matches {pattern!r}{_of(layers)}.{extra} {nearest(pattern, there)}")
    for name in found:
        _refuse_gated(model, name)
    return tuple(sorted(found, key=lambda name: (layer_of(name) is None, layer_of(name) or 0)))


def writers(model: HookedModel, layers: int | Iterable[int] | None = None) -> tuple[str, ...]:
    """Return every hook point that adds to the residual stream: embeddings, then attn_out and mlp_out of each block.

    The same projection at all of them equals that projection of the whole residual stream. With ``layers``, only the
    blocks' own writers are returned. Families with a norm between the writer and the stream (Gemma 2) add the normed value.
    """
    there = model.hook_dict
    found = [] if layers is not None else [n for n in ("hook_embed", "hook_pos_embed") if n in there]
    if getattr(model.cfg, "positional_embedding_type", "standard") != "standard":
        found = [n for n in found if n != "hook_pos_embed"]  # a point that may be there but adds nothing to the stream
    for layer in sorted(_layers(model, range(model.cfg.n_layers) if layers is None else layers)):
        found.append(f"blocks.{layer}.hook_attn_out")
        if not getattr(model.cfg, "attn_only", False):
            found.append(f"blocks.{layer}.hook_mlp_out")
    missing = [name for name in found if name not in there]
    if missing:
        raise KeyError(f"The model has no {missing[0]}: its writers are not known to this function.")
    return tuple(found)


def layer_of(name: str) -> int | None:
    """Return the block that a hook name belongs to, None for embeddings and the readout."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit() else None


def last_residual(model: HookedModel) -> str:
    """Return the name of the residual stream after the last block, before the final norm."""
    return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"


def checked(model: HookedModel, name: Any, points: Mapping[str, Any]) -> str:
    if not isinstance(name, str):
        raise ValueError(f"A hook name is a string; {name!r} is not. sites(model, 'resid_post') lists names.")
    if name not in points or (name.endswith("hook_resid_mid") and getattr(model.cfg, "parallel_attn_mlp", False)):
        sites(model, name)
        raise KeyError(f"{name!r} is a pattern, not the name of one hook point: {sites(model, name)[:3]} ...")
    _refuse_gated(model, name)
    return name


def _refuse_gated(model: HookedModel, name: str) -> None:
    for ending, (flag, setter) in _GATED.items():
        if name.endswith(ending) and getattr(model.cfg, flag, None) is False:
            raise ValueError(f"{name} exists but never fires while cfg.{flag} is off. Call model.{setter}(True) first.")


def _expand(model: HookedModel, pattern: str, there: Mapping[str, Any]) -> list[str]:
    parallel = getattr(model.cfg, "parallel_attn_mlp", False)
    if "*" in pattern or "?" in pattern:
        found = [name for name in there if fnmatchcase(name, pattern)]
    elif pattern in there:
        found = [pattern]
    elif f"hook_{pattern}" in there:
        found = [f"hook_{pattern}"]
    else:
        short = pattern.removeprefix("hook_")
        part = {"pre": "mlp.hook_pre", "post": "mlp.hook_post"}.get(short, f"hook_{short}")
        part = f"attn.hook_{short}" if short in _ATTENTION else part
        found = [f"blocks.{layer}.{p}" for layer in range(model.cfg.n_layers) for p in (part, pattern)]
        found = [name for name in dict.fromkeys(found) if name in there]
    return [name for name in found if not (parallel and name.endswith("hook_resid_mid"))]


def resolve_all(model: HookedModel, names: str | Sequence[str]) -> list[str]:
    asked = [names] if isinstance(names, str) else list(names)
    if not asked:
        raise ValueError("No hook point was asked for; sites(model, 'resid_post') lists some.")
    return list(dict.fromkeys(name for pattern in asked for name in sites(model, pattern)))


def deepest_block(model: HookedModel, names: Iterable[str]) -> int | None:
    deepest = 0
    for name in names:
        layer = layer_of(name)
        if layer is None and name not in ("hook_embed", "hook_pos_embed"):
            return None
        deepest = max(deepest, 0 if layer is None else layer + 1)
    return deepest if deepest < model.cfg.n_layers else model.cfg.n_layers


def _layers(model: HookedModel, layers: int | Iterable[int]) -> set[int]:
    n = model.cfg.n_layers
    asked = [layers] if isinstance(layers, int) else list(layers)
    wrong = [layer for layer in asked if not -n <= layer < n]
    if wrong:
        raise IndexError(f"Layer {wrong[0]} is out of range: the model has {n}, so 0 to {n - 1} (or {-n} to -1).")
    return {layer % n for layer in asked}


def _of(layers: int | Iterable[int] | None) -> str:
    return "" if layers is None else f" in layers {layers}"
