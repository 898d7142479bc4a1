"""The logits of a GPT-2 at the last position of ``<|endoftext|> a + b =``, without the work that they do not need.

With causal attention what happens at a position depends on the tokens up to it. So the first position has one row for all
prompts, "a" and "+" have one for each of the 100 numbers, and only "b" and "=" have one a prompt; the first layer's queries,
keys and values depend on one token each; and in the last layer all but keys and values is wanted at "=" alone. For two
layers and 512 prompts this is a third of the multiplications of `GPT2LMHeadModel`, whose logits these are (tested).
"""

from collections.abc import Mapping
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.adders.text import END, NUMBER, OPERANDS

_EPS = 1e-5
Rows = list[Int[Tensor, "_ _"]]
"""For each position: one line for each of its rows, which names the rows of the positions before it and its own."""


def last_logits(
    weights: Mapping[str, Float[Tensor, "..."]], heads: int, tokens: Int[Tensor, "n 5"]
) -> Float[Tensor, "n vocab"]:
    """Return the logits after the last token.

    Args:
        weights: `GPT2LMHeadModel.named_parameters`, embedding and unembedding tied.
        heads: attention heads a layer.
        tokens: rows of `text.tokens`.

    """
    w = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    layers = len([name for name in w if name.endswith("ln_1.weight")])
    numbers = torch.arange(OPERANDS) + NUMBER["0"]
    one = [torch.tensor([NUMBER[word]]) for word in (END, "+", "=")]
    words = [one[0], numbers, one[1], numbers, one[2]]
    x = torch.cat([F.embedding(ids, w["wte.weight"]) + w["wpe.weight"][i] for i, ids in enumerate(words)])
    by_word, by_prefix = _rows(tokens)
    for layer in range(layers):
        p = {name.removeprefix(f"h.{layer}."): weight for name, weight in w.items()}
        rows = by_prefix if layer else by_word
        x = _attention(p, heads, x, rows[-1:] if layer == layers - 1 else rows)
        hidden = torch.addmm(p["mlp.c_fc.bias"], _norm(p, "ln_2", x), p["mlp.c_fc.weight"])
        x = x + torch.addmm(p["mlp.c_proj.bias"], F.gelu(hidden, approximate="tanh"), p["mlp.c_proj.weight"])
    return _norm(w, "ln_f", x) @ w["wte.weight"].T


def _rows(tokens: Int[Tensor, "n 5"]) -> tuple[Rows, Rows]:
    """Return the rows where a position has one for each word it may hold, and where it has one for each prefix."""
    n, a, b = len(tokens), tokens[:, 1] - NUMBER["0"], tokens[:, 3] - NUMBER["0"]
    each, every, none = torch.arange(OPERANDS), torch.arange(n), torch.zeros(n, dtype=torch.long)
    zero = each * 0
    word = [[zero[:1]], [zero, each], [zero, each, zero], [none, a, none, b], [none, a, none, b, none]]
    prefix = [[zero[:1]], [zero, each], [zero, each, each], [none, a, a, every], [none, a, a, every, every]]
    return _stacked(word, (1, OPERANDS, 1, OPERANDS, 1)), _stacked(prefix, (1, OPERANDS, OPERANDS, n, n))


def _stacked(seen: list[list[Int[Tensor, " _"]]], sizes: tuple[int, ...]) -> Rows:
    starts = [0, *accumulate(sizes)]
    return [torch.stack([rows + start for rows, start in zip(each, starts)], 1) for each in seen]


def _attention(
    p: Mapping[str, Float[Tensor, "..."]], heads: int, x: Float[Tensor, "rows d"], asking: Rows
) -> Float[Tensor, "asking d"]:
    """Return the residual stream after attention, of the positions that ask."""
    d = x.shape[1]
    normed, weight, bias = _norm(p, "ln_1", x), p["attn.c_attn.weight"], p["attn.c_attn.bias"]
    own = torch.cat([rows[:, -1] for rows in asking])
    if len(asking) == 1:  # the other rows need no query
        query = torch.addmm(bias[:d], F.embedding(own, normed), weight[:, :d])
    else:
        query = F.embedding(own, torch.addmm(bias[:d], normed, weight[:, :d]))
    kv = torch.addmm(bias[d:], normed, weight[:, d:])
    mixed = []
    for rows, q in zip(asking, query.split([len(rows) for rows in asking])):
        k, v = F.embedding(rows, kv).unflatten(2, (2, heads, -1)).unbind(2)
        scores = (q.unflatten(1, (heads, -1))[:, None] * k).sum(-1) / k.shape[-1] ** 0.5
        mixed.append((scores.softmax(1)[..., None] * v).sum(1).flatten(1))
    written = torch.addmm(p["attn.c_proj.bias"], torch.cat(mixed), p["attn.c_proj.weight"])
    return F.embedding(own, x) + written


def _norm(p: Mapping[str, Float[Tensor, "..."]], name: str, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
    return F.layer_norm(x, x.shape[1:], p[f"{name}.weight"], p[f"{name}.bias"], _EPS)
