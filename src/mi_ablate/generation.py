"""Greedy generation under hooks, token by token, the same with hooks as with the weights that they are baked into.

A loop over the model's own forward pass with a KV cache: ``t_(n+1) = argmax logits(t_1 ... t_n)``. TransformerLens's
``generate`` embeds outside the forward pass of a HookedTransformer, so hook_embed never fires there; here every hook
point does. Each token passes once, so an edit at a position stays in the keys and values that later tokens read, and
``when="prompt" | "new"`` says which pass is meant; ``pos=-1`` is the newest token of each pass.

Greedy text shows what a removal does to a few prompts; it is no measure of it. Ties and rounding decide which of two
near-equal tokens comes, after which the texts part: measure on logits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mi_ablate._types import FwdHooks, Hook, HookedModel
from mi_ablate.interventions import Placed
from mi_ablate.model import attached, check_rows, default_batch_size, rows_of
from mi_ablate.prompts import Prompts, padded
from mi_ablate.replay import _cache_class


def generated(
    model: HookedModel,
    prompts: Prompts,
    hooks: FwdHooks | Sequence[tuple[str, Hook]] = (),
    max_new_tokens: int = 20,
    *,
    stop: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prompts:
    """Return what the model writes after each prompt, most probable token by most probable token.

    Args:
        model: any hooked model of text; a native TransformerBridge keeps no cache and takes edits of all positions only.
        prompts: from `mi_ablate.prompts.tokenized`; padding does not change what is written.
        hooks: edits that are attached throughout. Values for single examples belong to the prompts.
        max_new_tokens: at most so many.
        stop: tokens after which a text ends; the tokenizer's end of text by default.
        batch_size: prompts at once, by memory where None.
        progress: called with the passes done and the most that may be needed.

    Returns:
        The new tokens alone, padded on the right: ``.text``, ``.rows``. The token that ended a text is not among them.

    Raises:
        ValueError: prompts and new tokens that exceed the context; logits that are not finite; a mask of positions for
            prompts that are padded on the right.
        RuntimeError: a hook that never met a position to edit.

    """
    hooks = list(hooks)
    check_rows(hooks, len(prompts))
    tokens, mask = _left(prompts, hooks)
    check_length(model, tokens.shape[1], max_new_tokens)
    if stop is None:
        end = getattr(getattr(model, "tokenizer", None), "eos_token_id", None)
        stop = () if end is None else (end,)
    ends = torch.tensor(list(stop), dtype=torch.int64)
    size = batch_size or default_batch_size(model, tokens.shape[1] + max_new_tokens)
    batches = torch.arange(len(prompts)).split(size)
    rows: list[list[int]] = []
    for number, batch in enumerate(batches):

        def said(step: int, number: int = number) -> None:
            progress(number * max_new_tokens + step, len(batches) * max_new_tokens)

        new = _grow(model, tokens[batch], mask[batch], rows_of(hooks, batch), max_new_tokens, ends, said)
        for row in new.tolist():
            rows.append(row[: next((i for i, token in enumerate(row) if token in stop), len(row))])
    text = tuple(prompts.decode.joined(row) for row in rows)
    return Prompts(text, *padded(rows, "right"), prompts.decode, "right")


def _grow(
    model: Any, tokens: Tensor, mask: Tensor, hooks: FwdHooks, count: int, ends: Tensor, said: Callable[[int], None]
) -> Tensor:
    """The new tokens of one batch, ``[b new]``; what follows a row's end means nothing."""
    new = tokens[:, :0]
    done = torch.zeros(len(tokens), dtype=torch.bool)
    with torch.no_grad(), attached(model, hooks) as firings:
        step = _stepper(model, len(tokens), hooks if count > 1 else [])
        for i in range(count):
            logits = step(tokens, mask, 1 if i else tokens.shape[1])
            if logits.isnan().any():
                raise ValueError(
                    f"The logits of new token {i + 1} are NaN: the edit is too large for the model's dtype, or the "
                    "weights are broken."
                )
            token = logits.argmax(-1).to("cpu", torch.int64)[:, None]
            new = torch.cat([new, token], 1)
            done |= torch.isin(token[:, 0], ends)
            said(i + 1)
            if done.all():
                for firing in firings:  # the positions that a hook waits for may have been still to come
                    firing.edited += firing.fired
                break
            tokens = torch.cat([tokens, token], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return new


def _stepper(model: Any, n: int, hooks: FwdHooks) -> Callable[[Tensor, Tensor, int], Tensor]:
    """A function of all tokens so far, their mask, and how many are new; it returns the last logits ``[b v]``."""
    device = getattr(model.cfg, "device", None) or "cpu"
    cache: Any = None

    def hooked(tokens: Tensor, mask: Tensor, fresh: int) -> Tensor:
        part = {"past_kv_cache": cache, "attention_mask": mask[:, -fresh:].long().to(device)}
        return model(tokens[:, -fresh:].to(device), **part)[:, -1]

    def bridge(tokens: Tensor, mask: Tensor, fresh: int) -> Tensor:
        nonlocal cache
        known = {} if cache is None else {"past_key_values": cache}
        seen = {"attention_mask": mask.long().to(device), "use_cache": True, "return_type": "logits_and_cache", **known}
        logits, cache = model(tokens[:, -fresh:].to(device), **seen)
        return logits[:, -1]

    def whole(tokens: Tensor, mask: Tensor, fresh: int) -> Tensor:
        return model(tokens.to(device), attention_mask=mask.long().to(device))[:, -1]

    if not hasattr(model, "original_model"):
        cache = _cache_class().init_cache(model.cfg, device, n)
        return hooked
    if hasattr(model.original_model, "config"):
        return bridge
    for name, hook in hooks:  # of texts of more than one pass
        if isinstance(hook, Placed) and (hook.pos is not None or hook.when != "all"):
            raise ValueError(
                f"{hook!r} at {name} acts at some positions, and this bridge keeps no cache of what it has read. Load "
                "the model from a Hugging Face folder, or edit all positions."
            )
    return whole


def _left(prompts: Prompts, hooks: FwdHooks) -> tuple[Tensor, Tensor]:
    """Tokens and mask padded on the left, so that every row goes on in the same column."""
    if prompts.padding_side == "left":
        return prompts.tokens, prompts.attention_mask
    if bool(prompts.attention_mask.all()):
        return prompts.tokens, prompts.attention_mask
    for name, hook in hooks:
        if isinstance(getattr(hook, "pos", None), Tensor) and hook.pos.dtype == torch.bool:  # type: ignore[attr-defined]
            raise ValueError(
                f"The mask of positions at {name} counts columns, and these prompts are padded on the right, where text "
                "cannot go on. Tokenise them with padding_side='left'."
            )
    return padded(prompts.rows, "left")


def check_length(model: HookedModel, longest: int, count: int) -> None:
    """Refuse a number of new tokens below one, or more than the context holds after the longest prompt."""
    n_ctx = getattr(model.cfg, "n_ctx", None)
    if count < 1:
        raise ValueError(f"max_new_tokens={count}: at least one.")
    if n_ctx and longest + count - 1 > n_ctx:
        raise ValueError(
            f"The prompts have up to {longest} tokens and the model positions for {n_ctx}: {count} new ones do not fit, "
            f"{max(0, n_ctx - longest + 1)} do."
        )
