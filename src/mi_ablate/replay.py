"""Run again only what an edit can change, so that a curve of many edits costs little more than one pass.

Three ways, tried in this order; each but the last is checked against an ordinary pass before it is used:

- readout: all edits are at the last residual stream (the final norm's scale may be set too). Its activations are kept,
  and only the final norm and the unembedding run again.
- last position: all edits, and the metric, are at the last position of a causal HookedTransformer without padding.
  The keys and values of the earlier positions are kept (a frozen KV cache), and one position runs again, from the block
  of the first edit on.
- whole: the whole forward pass.

`from_layer` is a fourth way, for edits inside or after one block at any positions: the residual stream before that block is
kept, and the blocks below it do not run again. Activation patching walks up the layers with it.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._attach import Reader, left_padding
from mi_ablate._positions import Window, resolve
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Placed
from mi_ablate.metrics import PositionMetric
from mi_ablate.model import (
    attached,
    check_rows,
    check_tokens,
    collect,
    default_batch_size,
    last_residual,
    layer_of,
    rows_of,
    run,
    split,
)

_SAME = 1e-4
_CACHE = 2**28
"""Floats of keys and values that may be kept (1 GiB in float32)."""

Batch = tuple[Int[Tensor, " _"], Any, Callable[[Any, FwdHooks], Tensor]]


@dataclass(frozen=True)
class Replay:
    """A model and its prompts, ready to be run under many edits of the same sites and positions."""

    kind: str
    batches: tuple[Batch, ...]
    n: int
    acts: dict[str, Float[Tensor, "n d"]] = field(default_factory=dict)
    """Clean activations at the edited position that were kept anyway, by site."""

    def logits(self, hooks: FwdHooks) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b p v"]]]:
        """Yield (rows, logits); the replayed positions end with the last one, so count from the end."""
        check_rows(hooks, self.n)
        for rows, state, forward in self.batches:
            with torch.no_grad():
                yield rows, forward(state, rows_of(hooks, rows))

    def score(self, hooks: FwdHooks, metric: Callable[..., Tensor], clean: list[Tensor] | None = None) -> Tensor:
        """Return the metric of every example under ``hooks``, ``[n]`` in float64 on the CPU."""
        scores = []
        for number, (rows, logits) in enumerate(self.logits(hooks)):
            before = None if clean is None else clean[number]
            scores.append(metric(logits, logits if before is None and not hooks else before, rows))
        out = torch.cat([s.detach().to("cpu", torch.float64) for s in scores])
        if out.shape != (self.n,):
            raise ValueError(
                f"The metric returned {list(out.shape)}; one number for each of the {self.n} examples is needed."
            )
        if not torch.isfinite(out).all():
            bad = torch.nonzero(~torch.isfinite(out)).flatten().tolist()
            raise ValueError(f"The metric is NaN or infinite for {len(bad)} examples (first: {bad[:5]}).")
        return out


def replay(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    hooks: FwdHooks,
    metric: Callable[..., Tensor],
    *,
    attention_mask: Tensor | None = None,
    batch_size: int | None = None,
) -> Replay:
    """Return the cheapest exact way to run ``model`` under ``hooks`` and others at the same sites and positions."""
    check_tokens(tokens)
    check_rows(hooks, len(tokens))
    if getattr(metric, "n", None) not in (None, len(tokens)):
        raise ValueError(f"The metric has answers for {metric.n} examples; there are {len(tokens)} prompts.")  # type: ignore[attr-defined]
    last = (
        attention_mask is None
        and bool(hooks)
        and all(isinstance(hook, Placed) and hook.when == "all" for _, hook in hooks)
        and all(isinstance(hook.pos, int) and hook.pos == -1 for _, hook in hooks)  # type: ignore[attr-defined]
        and isinstance(metric, PositionMetric)
        and metric.pos == -1
    )
    if last and all(name == last_residual(model) for name, _ in hooks):
        found = _readout(model, tokens, batch_size)
        if found is not None:
            return found
    if last and _cacheable(model, tokens):
        found = _last_position(model, tokens, batch_size)
        if found is not None:
            return found

    def whole(state: tuple[Tensor, Tensor | None], edits: FwdHooks) -> Tensor:
        with attached(model, edits):
            return where_read(run(model, *state), state[1], metric)

    batches: list[Batch] = []
    for part, mask in split(model, tokens, attention_mask, batch_size):
        batches.append((_next_rows(batches, len(part)), (part, mask), whole))
    return Replay("whole", tuple(batches), len(tokens))


def from_layer(
    model: Any,
    tokens: Int[Tensor, "n p"],
    layer: int,
    metric: Callable[..., Tensor],
    *,
    attention_mask: Tensor | None = None,
    batch_size: int | None = None,
) -> Replay | None:
    """Return how to run the blocks from ``layer`` on under edits there and above; None where the model cannot, or differs.

    The batches are those of the whole pass. A bridge has no way to start at a block.
    """
    if layer == 0 or hasattr(model, "original_model"):
        return None

    def above(state: tuple[Tensor, Tensor | None], edits: FwdHooks) -> Tensor:
        with attached(model, edits):
            return where_read(run(model, *state, start_at_layer=layer), state[1], metric)

    if attention_mask is None:
        attention_mask = left_padding(model, tokens, False)  # which the model derives itself, but not from a stream
    name = f"blocks.{layer}.hook_resid_pre"
    batches: list[Batch] = []
    for part, mask in split(model, tokens, attention_mask, batch_size):
        kept = collect(model, part, name, pos=None, attention_mask=mask, batch_size=len(part))[name]
        if not batches:
            with torch.no_grad():
                if not agree(above((kept, mask), []), where_read(run(model, part, mask), mask, metric)):
                    return None
        batches.append((_next_rows(batches, len(part)), (kept, mask), above))
    return Replay(f"from layer {layer}", tuple(batches), len(tokens))


def where_read(logits: Tensor, mask: Tensor | None, metric: Callable[..., Tensor]) -> Tensor:
    """Return the logits with those at the metric's position, which counts real tokens, wherever it will look."""
    if mask is None or not isinstance(metric, PositionMetric):
        return logits
    return resolve(metric.pos, logits, None, Window(0, mask.bool())).take(logits)[:, None].expand_as(logits)


def _next_rows(batches: list[Batch], size: int) -> Int[Tensor, " b"]:
    return torch.arange(size) + (int(batches[-1][0][-1]) + 1 if batches else 0)


def _readout(model: Any, tokens: Tensor, batch_size: int | None) -> Replay | None:
    if getattr(model.cfg, "output_logits_soft_cap", None) not in (None, 0, -1):
        return None  # the cap comes after the unembedding, and small clean logits would not show it
    name = last_residual(model)
    norm = getattr(model, "ln_final", None) if model.cfg.normalization_type is not None else None

    def logits(x: Tensor, edits: FwdHooks) -> Tensor:
        for site, hook in edits:
            if site == name:
                out = hook.edit(x, None, Window()) if isinstance(hook, Placed) else hook(x)
                x = x if out is None else out
        after = [edit for edit in edits if edit[0] != name]
        with attached(model, after) if after else nullcontext():
            return model.unembed(x if norm is None else norm(x))

    acts = collect(model, tokens, name, pos=-1, batch_size=batch_size)[name][:, None]
    probe = slice(0, min(8, len(tokens)))
    with torch.no_grad():
        if not agree(logits(acts[probe], []), run(model, tokens[probe])[:, -1:]):
            return None
    size = batch_size or min(2048, default_batch_size(model, 1))
    parts = [(rows, acts[rows], logits) for rows in torch.arange(len(tokens)).split(size)]
    return Replay("readout", tuple(parts), len(tokens), {name: acts[:, 0]})


def _cacheable(model: Any, tokens: Tensor) -> bool:
    cfg = model.cfg
    held = tokens.numel() * cfg.n_layers * 2 * cfg.d_model
    causal = getattr(cfg, "attention_dir", "causal") == "causal"
    return not hasattr(model, "original_model") and causal and tokens.shape[1] > 1 and held <= _CACHE


def _last_position(model: Any, tokens: Tensor, batch_size: int | None) -> Replay | None:
    make = _cache_class()
    if make is None:
        return None
    device = model.cfg.device

    def logits(state: tuple[Tensor, Any, dict[int, Tensor]], edits: FwdHooks) -> Tensor:
        part, cache, below = state
        first = min((_block(name) for name, _ in edits), default=0)
        with attached(model, edits):
            if first in below:
                return model(below[first], past_kv_cache=cache, start_at_layer=first)
            return model(part, past_kv_cache=cache, attention_mask=torch.ones_like(part))

    batches: list[Batch] = []
    size, whole = batch_size or default_batch_size(model, 1), False
    for rows in torch.arange(len(tokens)).split(size):
        part = tokens[rows].to(device)
        cache = make.init_cache(model.cfg, device, len(part))
        with torch.no_grad():
            model(part[:, :-1], past_kv_cache=cache, attention_mask=torch.ones_like(part[:, :-1]), return_type=None)
            cache.freeze()
            kept, last = _streams(model, part[:, -1:], cache)
            if not batches:
                probe = run(model, part[:8])[:, -1:]
                if not agree(last[:8], probe):
                    return None
                middle = model.cfg.n_layers // 2
                upper = model(kept[middle], past_kv_cache=cache, start_at_layer=middle) if middle in kept else last[:0]
                whole = not agree(upper[:8], probe)
        batches.append((rows, (part[:, -1:], cache, {} if whole else kept), logits))
    return Replay("last position", tuple(batches), len(tokens))


def _streams(model: Any, part: Int[Tensor, "b 1"], cache: Any) -> tuple[dict[int, Tensor], Tensor]:
    """The residual stream of the last position before each block but the first, and the logits.

    Where a hook of the user's own is attached already it is left out: starting there would run that hook twice.
    """
    names = {i: f"blocks.{i}.hook_resid_pre" for i in range(1, model.cfg.n_layers)}
    readers = {i: Reader(name, None) for i, name in names.items() if not model.hook_dict[name].fwd_hooks}
    reads: FwdHooks = [(reader.name, reader) for reader in readers.values()]  # type: ignore[misc]
    with attached(model, reads):
        logits = model(part, past_kv_cache=cache, attention_mask=torch.ones_like(part))
    return {i: reader.value for i, reader in readers.items()}, logits


def _block(name: str) -> int:
    """The first block that an edit changes; blocks that do not exist for those behind the last one."""
    layer = layer_of(name)
    return layer if layer is not None else 10**6 if name.startswith(("ln_final", "unembed")) else 0


def _cache_class() -> Any:
    """TransformerLens's KV cache, under the names it has had."""
    import importlib

    for module, name in (
        ("transformer_lens.cache.key_value_cache", "TransformerLensKeyValueCache"),
        ("transformer_lens", "HookedTransformerKeyValueCache"),
        ("transformer_lens.past_key_value_caching", "HookedTransformerKeyValueCache"),
    ):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    return None


def agree(a: Tensor, b: Tensor) -> bool:
    """Return whether a short way gave the logits of an ordinary pass, within what other orders of summing change."""
    return a.shape == b.shape and bool((a - b).abs().max() <= _SAME * b.abs().max().clamp(min=1e-6))
