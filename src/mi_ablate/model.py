"""The only core module that knows what a hooked model is: names, reading, attaching.

It speaks to HookedTransformer (TransformerLens 2.18 to 3.9) and TransformerBridge (3.x, 4.x) through what they share:
``cfg``, ``hook_dict``, the call, and TransformerLens's legacy hook names. Where they differ silently, this module does not:

- a name that does not resolve raises and lists the nearest ones (a 3.9 bridge skips it);
- a hook that did not fire raises on leaving `attached` (gated and dead hook points pass silently elsewhere);
- an edit at hook_resid_mid on a bridge is moved to hook_attn_out, since there it would reach the MLP branch only.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate import _positions
from mi_ablate._attach import Firing, Reader, attached
from mi_ablate._broadcast import per_example
from mi_ablate._names import deepest_block, last_residual, layer_of, resolve_all, sites, writers
from mi_ablate._placed import Placed
from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, Hook, HookedModel

__all__ = [
    "Firing",
    "attached",
    "check_rows",
    "check_tokens",
    "collect",
    "default_batch_size",
    "last_residual",
    "layer_of",
    "rows_of",
    "run",
    "sites",
    "split",
    "stream",
    "writers",
]

_BUDGET = 2**25
"""Floats that one forward pass may hold at once where no batch size is given."""


def rows_of(hooks: FwdHooks, index: Int[Tensor, " m"] | slice) -> FwdHooks:
    """Return the hooks for a batch of examples; functions without ``rows`` are the same for every batch."""
    return [(name, hook.rows(index) if hasattr(hook, "rows") else hook) for name, hook in hooks]


def check_rows(hooks: FwdHooks, n: int) -> None:
    """Refuse per-example values (``to``, ``strength``, ``gate``, ``vector``, ``pos``) for another number of prompts than n.

    Batches take their rows by number, so values for other prompts would be cut or shifted without a word.
    """
    for name, hook in hooks:
        if not isinstance(hook, Placed):
            continue
        values = {what: getattr(hook.intervention, what, None) for what in ("to", "strength", "gate", "vector")}
        found = {
            what: value.shape[0] for what, value in values.items() if isinstance(value, Tensor) and per_example(value)
        }
        if isinstance(hook.pos, Tensor) and hook.pos.ndim:
            found["pos"] = len(hook.pos)
        for what, count in found.items():
            if count != n:
                raise ValueError(f"{what} at {name} has one value for each of {count} examples; there are {n} prompts.")


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
    wanted = resolve_all(model, names)
    stop = deepest_block(model, [*wanted, *(name for name, _ in hooks)])
    start = 0
    for batch in batches:
        tokens, mask = batch if isinstance(batch, tuple) else (batch, None)
        rows = torch.arange(start, start + len(tokens))
        start += len(tokens)
        readers = {name: Reader(name, _positions.slice_rows(pos, rows)) for name in wanted}
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
    check_tokens(tokens)
    check_rows(list(hooks), len(tokens))
    if isinstance(pos, Tensor) and pos.ndim and len(pos) != len(tokens):
        raise ValueError(f"pos gives a position for {len(pos)} examples; there are {len(tokens)} prompts.")
    out: dict[str, Tensor] = {}
    done = 0
    for rows, acts in stream(model, split(model, tokens, attention_mask, batch_size), names, pos=pos, hooks=hooks):
        for name, value in acts.items():
            if name not in out:
                out[name] = value.new_empty(len(tokens), *value.shape[1:])
            out[name][done : done + len(rows)] = value
        done += len(rows)
    for name, value in out.items():
        sound = ~value.isnan() if name.endswith("hook_attn_scores") else torch.isfinite(value)  # masked scores are -inf
        if not sound.all():
            bad = torch.nonzero(~sound.flatten(1).all(1)).flatten().tolist()
            raise ValueError(
                f"NaN or infinite activations at {name} in {len(bad)} of {len(value)} examples (first: {bad[:5]}). "
                "Half precision overflows there, or the weights are broken."
            )
    return out


def check_tokens(tokens: Int[Tensor, "n p"], model: HookedModel | None = None) -> None:
    """Refuse what is not a matrix of tokens, or is longer than the model's position embedding."""
    if not isinstance(tokens, Tensor):
        raise ValueError(
            f"tokens are a {type(tokens).__name__}: a tensor [n, pos] is needed. torch.tensor(rows) makes one of lists of "
            "numbers of one length, model.to_tokens(text) of text."
        )
    if tokens.ndim != 2 or tokens.is_floating_point() or len(tokens) == 0:
        raise ValueError(
            f"tokens have shape {list(tokens.shape)} and {tokens.dtype}: integers [n, pos] are needed, n > 0."
        )
    n_ctx = getattr(getattr(model, "cfg", None), "n_ctx", None)
    learnt = getattr(getattr(model, "cfg", None), "positional_embedding_type", "standard") in (
        "standard",
        "shortformer",
    )
    if n_ctx and learnt and tokens.shape[1] > n_ctx:
        raise ValueError(
            f"The prompts have {tokens.shape[1]} tokens; the model has positions for {n_ctx}. Shorten them."
        )


def split(
    model: HookedModel, tokens: Int[Tensor, "n p"], mask: Tensor | None = None, batch_size: int | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield (tokens, mask) in batches; the default size keeps a pass below about 128 MiB of activations."""
    check_tokens(tokens, model)
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(f"attention_mask {list(mask.shape)} and tokens {list(tokens.shape)} must have the same shape.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least 1 row a pass, or None to choose by memory.")
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
    return model(
        tokens.to(device), **{key: value for key, value in kw.items() if key == "return_type" or value is not None}
    )
