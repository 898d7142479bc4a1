"""Attach hooks, count their firings, follow the sequences that pass, and clean up."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mi_ablate import _positions
from mi_ablate._names import checked
from mi_ablate._placed import Placed
from mi_ablate._positions import Pos, Window
from mi_ablate._types import FwdHooks, Hook, HookedModel


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
    firings = [Firing(checked(model, name, points), hook) for name, hook in hooks]
    tracker = _Tracker(model)
    handles: list[tuple[Any, Any]] = []
    bridge = hasattr(model, "original_model")
    try:
        late = []
        for firing in firings:
            if bridge and firing.name.endswith("hook_resid_mid") and not isinstance(firing.hook, Reader):
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


class _Counted:
    """What is registered at a hook point: the user's hook, the current window, and a count."""

    def __init__(self, firing: Firing, tracker: "_Tracker") -> None:
        self.firing, self.tracker = firing, tracker
        hook = firing.hook
        self.direct: Hook | None = None if isinstance(hook, (Placed, Reader)) else hook
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
            raise ValueError(
                f"The hook at {firing.name} turned {list(x.shape)} into {list(out.shape)}; hooks keep the shape."
            )
        return out

    def __repr__(self) -> str:
        return repr(self.firing.hook)[:79]


class Reader:
    """Reads one site at the given positions, and edits nothing."""

    def __init__(self, name: str, pos: Pos) -> None:
        pos = _positions.plain(pos)
        if callable(pos) or (isinstance(pos, Tensor) and pos.dtype == torch.bool):
            raise ValueError(
                "Reading takes pos as an int, a slice, a list, Int[n] or None; index the result with a mask."
            )
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
        text = isinstance(tokens, (str, list))
        if text:  # the model turns it into tokens, and masks the padding, itself
            given = {key: kwargs[key] for key in ("prepend_bos", "padding_side") if key in kwargs}
            tokens = self.model.to_tokens(tokens, **given)
        if mask is None and isinstance(tokens, Tensor) and not tokens.is_floating_point() and not offset:
            mask = left_padding(self.model, tokens, text)
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


def left_padding(model: Any, tokens: Tensor, text: bool) -> Tensor | None:
    """The mask that a model derives itself from a tokenizer that pads on the left; a bridge derives one for text only."""
    tokenizer = None if hasattr(model, "original_model") and not text else getattr(model, "tokenizer", None)
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


def _dead(model: HookedModel, dead: list[Firing]) -> str:
    names = ", ".join(firing.name for firing in dead[:4]) + (", ..." if len(dead) > 4 else "")
    if any(firing.fired for firing in dead):
        return f"{len(dead)} hooks ran but never met a position to edit ({names}): check pos= and when=."
    return (
        f"{len(dead)} hooks never fired ({names}). Either no forward pass ran inside the block, or it stopped before "
        "these points, or this kind of model does not call them."
    )
