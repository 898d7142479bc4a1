"""The only core module that knows what a hooked model is: names, reading, attaching.

It speaks to HookedTransformer (TransformerLens 2.18 to 3.9) and TransformerBridge (3.x, 4.x) through what they share:
``cfg``, ``hook_dict``, the call, and TransformerLens's legacy hook names. Where they differ silently, this module does not:

- a name that does not resolve raises and lists the nearest ones (a 3.9 bridge skips it);
- a hook that did not fire raises on leaving `attached` (gated and dead hook points pass silently elsewhere);
- an edit at hook_resid_mid on a bridge is moved to hook_attn_out, since there it would reach the MLP branch only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate import _positions
from mi_ablate._positions import Pos, Window
from mi_ablate._types import FwdHooks, Hook, HookedModel, nearest
from mi_ablate.interventions import Placed

_ATTENTION = ("q", "k", "v", "z", "pattern", "attn_scores", "result", "rot_q", "rot_k")
_GATED = {
    "attn.hook_result": ("use_attn_result", "set_use_attn_result"),
    "hook_q_input": ("use_split_qkv_input", "set_use_split_qkv_input"),
    "hook_k_input": ("use_split_qkv_input", "set_use_split_qkv_input"),
    "hook_v_input": ("use_split_qkv_input", "set_use_split_qkv_input"),
    "hook_attn_in": ("use_attn_in", "set_use_attn_in"),
    "hook_mlp_in": ("use_hook_mlp_in", "set_use_hook_mlp_in"),
}
_BUDGET = 2**25
"""Floats that one forward pass may hold at once where no batch size is given."""


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


@dataclass
class Firing:
    """One attached hook, and how often it had something to edit."""

    name: str
    hook: Hook
    fired: int = 0
    edited: int = 0


@contextmanager
def attached(model: HookedModel, hooks: FwdHooks) -> Iterator[list[Firing]]:
    """Attach hooks, validated and counted, and remove exactly these on leaving, whatever happens inside.

    Within the block positions count from the start of the sequence, through generation with a KV cache, and real tokens
    only where the forward call gets an ``attention_mask``.

    Raises:
        KeyError, ValueError: a name that does not resolve; nothing is attached then.
        RuntimeError: on leaving, a hook that never fired or never met a position to edit (unless an exception is
            already on its way out).
    """
    points = model.hook_dict
    firings = [Firing(_checked(model, name, points), hook) for name, hook in hooks]
    tracker = _Tracker(model)
    handles: list[tuple[Any, Any]] = []
    bridge = hasattr(model, "original_model")
    try:
        late = []
        for firing in firings:
            if bridge and firing.name.endswith("hook_resid_mid") and not isinstance(firing.hook, _Reader):
                late += _mid_on_bridge(firing, tracker)
            else:
                handles.append(_register(points[firing.name], _Counted(firing, tracker)))
        for name, hook in late:
            handles.append(_register(points[name], hook))
        with tracker:
            yield firings
        dead = [firing for firing in firings if not firing.edited]
        if dead:
            raise RuntimeError(_dead(model, dead))
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks[:] = [h for h in point.fwd_hooks if h is not handle]


def rows_of(hooks: FwdHooks, index: Int[Tensor, " m"] | slice) -> FwdHooks:
    """Return the hooks for a batch of examples; functions without ``rows`` are the same for every batch."""
    return [(name, hook.rows(index) if hasattr(hook, "rows") else hook) for name, hook in hooks]


def stream(
    model: HookedModel,
    batches: Iterable[Tensor | tuple[Tensor, Tensor | None]],
    names: str | Sequence[str],
    *,
    pos: Pos = -1,
    hooks: FwdHooks | Sequence[tuple[str, Hook]] = (),
) -> Iterator[tuple[Int[Tensor, " b"], dict[str, Tensor]]]:
    """Run batches of tokens ``[b p]`` (or pairs tokens, attention mask) once and yield (rows, activations of each site).

    ``rows`` number the examples over all batches, so one pass feeds many `Fitter`s:
    ``for rows, acts in stream(...): fitter.update(acts[name], design[rows])``. Per-example ``pos`` and hooks are sliced
    by these rows. The forward pass stops after the last layer needed.
    """
    wanted = _resolve_all(model, names)
    stop = _stop(model, [*wanted, *(name for name, _ in hooks)])
    start = 0
    for batch in batches:
        tokens, mask = batch if isinstance(batch, tuple) else (batch, None)
        rows = torch.arange(start, start + len(tokens))
        start += len(tokens)
        readers = {name: _Reader(name, _positions.slice_rows(pos, rows)) for name in wanted}
        reads: FwdHooks = [(name, reader) for name, reader in readers.items()]  # type: ignore[misc]
        with torch.no_grad(), attached(model, rows_of(list(hooks), rows) + reads):
            run(model, tokens, mask, stop_at_layer=stop, return_type=None)
        yield rows, {name: reader.value for name, reader in readers.items()}


def collect(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    names: str | Sequence[str],
    *,
    pos: Pos = -1,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    hooks: FwdHooks | Sequence[tuple[str, Hook]] = (),
) -> dict[str, Float[Tensor, "n *d"]]:
    """Return activations by hook name: ``[n d]`` for one position a row (int or Int[n]), ``[n p d]`` otherwise.

    hook_z and its like have a head axis before d; patterns give ``[n head key]``, with ``pos`` the query. Only what was
    asked is held, and the pass stops at the last layer needed. ``hooks`` are edits that stay attached meanwhile.

    Raises:
        KeyError: an unknown site. IndexError: a position out of range. ValueError: NaN or infinite activations.
    """
    out: dict[str, Tensor] = {}
    done = 0
    for rows, acts in stream(model, split(model, tokens, attention_mask, batch_size), names, pos=pos, hooks=hooks):
        for name, value in acts.items():
            if name not in out:
                out[name] = value.new_empty(len(tokens), *value.shape[1:])
            out[name][done : done + len(rows)] = value
        done += len(rows)
    for name, value in out.items():
        if not torch.isfinite(value).all():
            bad = torch.nonzero(~torch.isfinite(value).flatten(1).all(1)).flatten().tolist()
            raise ValueError(
                f"NaN or infinite activations at {name} in {len(bad)} of {len(value)} examples (first: {bad[:5]}). "
                "Half precision overflows there, or the weights are broken."
            )
    return out


def split(
    model: HookedModel, tokens: Int[Tensor, "n p"], mask: Tensor | None = None, batch_size: int | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield (tokens, mask) in batches; the default size keeps a pass below about 128 MiB of activations."""
    if tokens.ndim != 2 or tokens.is_floating_point() or len(tokens) == 0:
        raise ValueError(f"tokens have shape {list(tokens.shape)} and {tokens.dtype}: integers [n, pos] are needed, n > 0.")
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(f"attention_mask {list(mask.shape)} and tokens {list(tokens.shape)} must have the same shape.")
    size = batch_size or default_batch_size(model, tokens.shape[1])
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size], None if mask is None else mask[start : start + size]


def default_batch_size(model: HookedModel, n_pos: int) -> int:
    """Return how many rows of ``n_pos`` tokens fit the memory budget of one pass."""
    cfg = model.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    out = getattr(cfg, "d_vocab_out", None) or cfg.d_vocab
    return max(1, _BUDGET // (n_pos * (8 * cfg.d_model + 2 * d_mlp + 2 * max(out, 1))))


def run(model: HookedModel, tokens: Tensor, mask: Tensor | None = None, **kw: Any) -> Any:
    """Call the model, with the attention mask only where there is one, on the model's device."""
    device = getattr(model.cfg, "device", None) or "cpu"
    if mask is not None:
        kw["attention_mask"] = mask.to(device)
    return model(tokens.to(device), **{key: value for key, value in kw.items() if key == "return_type" or value is not None})


class _Counted:
    """What is registered at a hook point: the user's hook, the current window, and a count."""

    def __init__(self, firing: Firing, tracker: "_Tracker") -> None:
        self.firing, self.tracker = firing, tracker
        hook = firing.hook
        self.direct: Hook | None = None if isinstance(hook, (Placed, _Reader)) else hook
        if isinstance(hook, Placed) and hook.everywhere and not hook.pattern:
            self.direct = hook.intervention
        tracker.needed |= self.direct is None

    def __call__(self, x: Tensor, hook: Any = None) -> Tensor | None:
        firing = self.firing
        firing.fired += 1
        if self.direct is not None:
            out = self.direct(x, hook=hook)
        else:
            out = firing.hook.edit(x, hook, self.tracker.window)  # type: ignore[attr-defined]
            if out is None:
                return None
        firing.edited += 1
        if out is not None and out.shape != x.shape:
            raise ValueError(f"The hook at {firing.name} turned {list(x.shape)} into {list(out.shape)}; hooks keep the shape.")
        return out

    def __repr__(self) -> str:
        return repr(self.firing.hook)[:79]


class _Reader:
    """Reads one site at the given positions, and edits nothing."""

    def __init__(self, name: str, pos: Pos) -> None:
        _positions.check(pos)
        if callable(pos) or (isinstance(pos, Tensor) and pos.dtype == torch.bool):
            raise ValueError("Reading takes pos as an int, a slice, a list, Int[n] or None; index the result with a mask.")
        self.name, self.pos = name, pos
        self.value: Tensor = torch.empty(0)

    def __call__(self, x: Tensor, hook: Any = None) -> Tensor | None:
        """Read as a bare hook: positions count within the tensor."""
        return self.edit(x, hook, Window())

    def edit(self, x: Tensor, hook: Any, window: Window) -> Tensor | None:
        """Keep a copy of the chosen positions."""
        y = x.transpose(1, 2) if self.name.endswith(("hook_pattern", "hook_attn_scores")) else x
        chosen = _positions.resolve(self.pos, y, hook, window)
        if chosen.kind in ("mask", "none"):
            raise ValueError(f"pos={self.pos} reads a different number of positions in different rows; use pos=None.")
        self.value = chosen.take(y).detach().clone()
        return x

    def __repr__(self) -> str:
        return f"read {self.name}"


@dataclass
class _Tracker:
    """Follows the model's forward calls to know which part of the sequences each pass shows."""

    model: Any
    window: Window = field(default_factory=Window)
    needed: bool = False

    def __enter__(self) -> None:
        if not self.needed:
            return
        inner = self.model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.window = self._next(args[0] if args else kwargs.get("input"), kwargs)
            return inner(*args, **kwargs)

        self.outer = self.model.__dict__.get("forward")
        self.model.__dict__["forward"] = forward

    def __exit__(self, *error: object) -> None:
        if self.needed:
            del self.model.__dict__["forward"]
            if self.outer is not None:
                self.model.__dict__["forward"] = self.outer

    def _next(self, tokens: Any, kwargs: Mapping[str, Any]) -> Window:
        cache = kwargs.get("past_kv_cache")
        offset = cache[0].past_keys.shape[1] if cache is not None else _seen(kwargs.get("past_key_values"))
        growing = cache is not None or bool(kwargs.get("use_cache") or kwargs.get("use_past_kv_cache") or offset)
        before = self.window.mask if offset else None
        window = Window(offset, before, growing)
        mask = kwargs.get("attention_mask")
        if mask is None and isinstance(tokens, Tensor) and not tokens.is_floating_point() and not offset:
            mask = _left_padding(self.model, tokens)
        if isinstance(tokens, Tensor):
            window = _positions.grown(window, tokens.shape[1] if tokens.ndim > 1 else len(tokens), mask)
        if window.mask is not None and bool(window.mask.all()):
            window = Window(offset, None, growing)
        return window


def _seen(cache: Any) -> int:
    """Tokens held in a Hugging Face cache."""
    if cache is None:
        return 0
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else int(cache[0][0].shape[-2])


def _left_padding(model: Any, tokens: Tensor) -> Tensor | None:
    """The mask that a HookedTransformer derives itself from a tokenizer that pads on the left."""
    tokenizer = getattr(model, "tokenizer", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or getattr(tokenizer, "padding_side", "right") != "left" or tokens.ndim != 2:
        return None
    lead = (tokens == pad).to(torch.int8).cumprod(1).bool()
    if pad == getattr(tokenizer, "bos_token_id", None):
        lead = lead & torch.nn.functional.pad(lead[:, 1:], (0, 1))
    return ~lead if lead.any() else None


def _mid_on_bridge(firing: Firing, tracker: _Tracker) -> FwdHooks:
    """On a bridge: mid = resid_pre + attn_out; return attn_out + (f(mid) - mid) from hook_attn_out."""
    counted, block = _Counted(firing, tracker), firing.name[: -len("hook_resid_mid")]
    before: dict[str, Tensor] = {}

    def capture(x: Tensor, hook: Any = None) -> None:
        before["x"] = x

    def edit(x: Tensor, hook: Any = None) -> Tensor | None:
        mid = before["x"] + x
        out = counted(mid, hook)
        return None if out is None else x + (out - mid)

    return [(f"{block}hook_resid_pre", capture), (f"{block}hook_attn_out", edit)]  # type: ignore[list-item]


def _register(point: Any, hook: Any) -> tuple[Any, Any]:
    point.add_hook(hook)
    return point, point.fwd_hooks[-1]


def _checked(model: HookedModel, name: Any, points: Mapping[str, Any]) -> str:
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


def _dead(model: HookedModel, dead: list[Firing]) -> str:
    names = ", ".join(firing.name for firing in dead[:4]) + (", ..." if len(dead) > 4 else "")
    if any(firing.fired for firing in dead):
        return f"{len(dead)} hooks ran but never met a position to edit ({names}): check pos= and when=."
    return (
        f"{len(dead)} hooks never fired ({names}). Either no forward pass ran inside the block, or it stopped before "
        "these points, or this kind of model does not call them."
    )


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


def _resolve_all(model: HookedModel, names: str | Sequence[str]) -> list[str]:
    asked = [names] if isinstance(names, str) else list(names)
    if not asked:
        raise ValueError("No hook point was asked for; sites(model, 'resid_post') lists some.")
    return list(dict.fromkeys(name for pattern in asked for name in sites(model, pattern)))


def _stop(model: HookedModel, names: Iterable[str]) -> int | None:
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
