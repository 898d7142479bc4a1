"""The trainer's forward pass: HookedTransformer's logits at the last position, without the work that they do
not need.

Parameters are a plain dict in HookedTransformer's names and layouts. With causal attention the activations at
position i depend on the tokens up to i alone, so a batch of n prompts ``a op b =`` has p different rows at
the first position and p times the number of operations at the second: they are computed once and looked up.
Position i keeps a table of its prefixes where there are fewer of them than prompts, and one row a prompt
otherwise. Three more savings: in layer 0 queries, keys and values depend on one token each, so they are
computed for the vocabulary; the last layer needs keys and values of every position, but a query, an MLP and
logits at the last only; and the first position attends to itself alone. For two layers of width 128, p = 97
and 512 prompts that is 2.6 times fewer multiplications.

Misleads where: nothing but the last position comes out, and no hooks fire. Interventions belong to the
HookedTransformer.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .config import ToyConfig
from .tasks import slots

EPS = 1e-5
Where = Int[Tensor, " _"] | slice
Params = Mapping[str, Float[Tensor, "..."]]


def gelu_new(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GELU by its tanh approximation, TransformerLens's ``gelu_new``."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "gelu_new": gelu_new}


def check(config: ToyConfig) -> None:
    """Raise a ValueError for what this forward pass does not compute."""
    if config.attention != "causal":
        raise ValueError(
            f"attention {config.attention!r} cannot be trained here: rows are shared between prompts with "
            f"the same beginning, which needs attention='causal'."
        )
    if config.attention_coefficient != 1.0:
        raise ValueError(
            f"attention_coefficient {config.attention_coefficient} cannot be trained here; use 1.0, or load "
            f"a published model that has it."
        )
    if config.act_fn not in ACTIVATIONS:
        raise ValueError(f"act_fn {config.act_fn!r} cannot be trained here; use one of {tuple(ACTIVATIONS)}.")


def parameter_shapes(config: ToyConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the HookedTransformer's parameters (its buffers ``mask`` and ``IGNORE`` left
    out).
    """
    d, heads, d_head, d_mlp = config.d_model, config.n_heads, config.d_head, config.d_mlp
    norm = {"LN": {"w": (d,), "b": (d,)}, "RMS": {"w": (d,)}, None: {}}[config.normalization]
    block: dict[str, tuple[int, ...]] = {f"ln1.{k}": v for k, v in norm.items()}
    block |= {f"attn.W_{c}": (heads, d, d_head) for c in "QKV"} | {"attn.W_O": (heads, d_head, d)}
    block |= {f"attn.b_{c}": (heads, d_head) for c in "QKV"} | {"attn.b_O": (d,)}
    block |= {f"ln2.{k}": v for k, v in norm.items()}
    block |= {"mlp.W_in": (d, d_mlp), "mlp.b_in": (d_mlp,), "mlp.W_out": (d_mlp, d), "mlp.b_out": (d,)}
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (config.d_vocab, d),
        "pos_embed.W_pos": (config.n_ctx, d),
    }
    for layer in range(config.n_layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {f"ln_final.{k}": v for k, v in norm.items()}
    return shapes | {"unembed.W_U": (d, config.n_answers), "unembed.b_U": (config.n_answers,)}


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, the shift of a normalisation included."""
    return name.rsplit(".", 1)[-1].startswith("b")


def trained_names(config: ToyConfig) -> list[str]:
    """Parameters that are trained under ``config.biases``; the others stay zero and never enter the forward
    pass.
    """
    keep = {"all": is_bias, "mlp": lambda name: ".mlp.b_" in name, "none": lambda name: False}[config.biases]
    return [name for name in parameter_shapes(config) if not is_bias(name) or keep(name)]


class Prefixes:
    """Which row every prompt, and every row of a table, continues at the positions before it.

    Rows of all positions stand in one matrix, position by position. Tables (a row for each distinct prefix)
    come first, because longer prefixes are more numerous; the last position has one row a prompt.
    """

    def __init__(self, config: ToyConfig, tokens: Int[Tensor, "batch pos"]) -> None:
        starts, self.sizes = zip(*slots(config))
        self.tokens = [tokens[:, i] - start for i, start in enumerate(starts)]
        counts = [math.prod(self.sizes[: i + 1]) for i in range(len(starts))]
        self.is_table = [count < len(tokens) for count in counts[:-1]] + [False]
        self.n_rows = [count if table else len(tokens) for count, table in zip(counts, self.is_table)]
        self.device = tokens.device

    def seen(self, i: int, by_token: bool) -> list[Where]:
        """Where each row of position i finds positions 0 .. i: an index, or a slice (as many rows, or one).

        ``by_token``: in a matrix with a row for each token that a position may hold, else in that of all
        rows.
        """
        found: list[Where] = []
        start, prefix = 0, torch.zeros((), dtype=torch.long, device=self.device)
        for j in range(i + 1):
            size = self.sizes[j] if by_token else self.n_rows[j]
            if by_token:
                found.append(self._token(i, j) + start if size > 1 else slice(start, start + 1))
            elif j < i and self.is_table[j]:
                prefix = prefix * self.sizes[j] + self._token(i, j)
                found.append(prefix + start)
            else:
                found.append(slice(start, start + size))
            start += size
        return found

    def _token(self, i: int, j: int) -> Int[Tensor, " rows"]:
        if not self.is_table[i]:
            return self.tokens[j]
        later = math.prod(self.sizes[j + 1 : i + 1])
        return torch.arange(self.n_rows[i], device=self.device) // later % self.sizes[j]


def last_logits(config: ToyConfig, params: Params, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch answers"]:
    """Return the logits at the last position, those of a causal HookedTransformer with the same parameters.

    ``params`` holds the state dict's tensors; a bias that is absent counts as zero. Tokens must be prompts of
    the config's layout (`tasks.all_tokens` and rows of it).

    Raises:
        ValueError: bidirectional attention, an attention coefficient, or an unknown activation function.

    """
    check(config)
    prefixes = Prefixes(config, tokens)
    starts = [start for start, _ in slots(config)]
    tables = [
        params["embed.W_E"][start : start + size] + params["pos_embed.W_pos"][i]
        for i, (start, size) in enumerate(zip(starts, prefixes.sizes))
    ]
    x = torch.cat(tables)
    for layer in range(config.n_layers):
        p = {k.split(".", 2)[2]: v for k, v in params.items() if k.startswith(f"blocks.{layer}.")}
        x = _attention(config, p, x, prefixes, layer)
        hidden = _linear(_norm(config, p, "ln2", x), p["mlp.W_in"], p.get("mlp.b_in"))
        x = x + _linear(ACTIVATIONS[config.act_fn](hidden), p["mlp.W_out"], p.get("mlp.b_out"))
    return _linear(_norm(config, params, "ln_final", x), params["unembed.W_U"], params.get("unembed.b_U"))


def _linear(
    x: Float[Tensor, "rows d_in"], weight: Float[Tensor, "d_in d_out"], bias: Float[Tensor, " d_out"] | None
) -> Float[Tensor, "rows d_out"]:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _norm(
    config: ToyConfig, params: Params, name: str, x: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows d_model"]:
    if config.normalization is None:
        return x
    if config.normalization == "LN":
        return F.layer_norm(x, x.shape[-1:], params[f"{name}.w"], params.get(f"{name}.b"), EPS)
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * params[f"{name}.w"]


def _fused(params: Params, letters: str) -> tuple[Float[Tensor, "d_model d_out"], Float[Tensor, " d_out"] | None]:
    """Weights and biases of several of Q, K, V in one matrix; d_out is (letter head d_head)."""
    weight = torch.cat([params[f"attn.W_{c}"] for c in letters]).transpose(0, 1).flatten(1)
    biases = [params.get(f"attn.b_{c}") for c in letters]
    if any(b is None for b in biases):
        return weight, None
    return weight, torch.cat([b.flatten() for b in biases if b is not None])


def _attention(
    config: ToyConfig, p: Params, x: Float[Tensor, "rows d_model"], prefixes: Prefixes, layer: int
) -> Float[Tensor, "asking d_model"]:
    """Residual rows after attention: of every position, or in the last layer of the last position only."""
    first, last = layer == 0, layer == config.n_layers - 1
    n, heads = len(prefixes.sizes), (config.n_heads, config.d_head)
    asking = range(n - 1 if last else 0, n)
    links = [prefixes.seen(i, by_token=first) for i in asking]
    normed = _norm(config, p, "ln1", x)
    if last and not first:
        kv = _linear(normed, *_fused(p, "KV")).unflatten(1, (2, *heads))
        x, normed = x[-prefixes.n_rows[-1] :], normed[-prefixes.n_rows[-1] :]
        query = _linear(normed, *_fused(p, "Q")).unflatten(1, heads)
        asked: list[Where] = [slice(None)]
    else:
        qkv = _linear(normed, *_fused(p, "QKV")).unflatten(1, (3, *heads))
        query, kv = qkv[:, 0], qkv[:, 1:]
        asked = [seen[-1] for seen in links]
    mixed = _Attend.apply(query, kv, list(zip(asked, links)))
    if first:
        x = torch.cat([_rows(x, where).expand(prefixes.n_rows[i], -1) for i, where in zip(asking, asked)])
    return x + _linear(mixed.flatten(1), p["attn.W_O"].flatten(0, 1), p.get("attn.b_O"))


def _rows(table: Float[Tensor, "rows *rest"], where: Where) -> Float[Tensor, "taken *rest"]:
    if isinstance(where, slice):
        return table[where]
    return F.embedding(where, table.flatten(1)).unflatten(1, table.shape[1:])


class _Attend(torch.autograd.Function):
    """Softmax attention over a handful of positions, with the backward pass written out.

    ``query`` and ``kv`` (keys, then values) are rows of all positions; ``links`` says, for each position that
    asks, where its queries are and where the keys and values that it sees. Written out, the gradients of keys
    and values add up in place in one buffer, position by position, within the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "rows_q head d_head"],
        kv: Float[Tensor, "rows 2 head d_head"],
        links: list[tuple[Where, list[Where]]],
    ) -> Float[Tensor, "asking head d_head"]:
        ctx.links, ctx.shapes, ctx.saved, out = links, (query.shape, kv.shape), [], []
        for asked, seen in links:
            q, near = _rows(query, asked), [_rows(kv, where) for where in seen]
            scores = torch.broadcast_tensors(*[(q * each[:, 0]).sum(-1) for each in near])
            pattern = (torch.stack(scores) / math.sqrt(q.shape[-1])).softmax(0)[..., None]
            z = pattern[0] * near[0][:, 1]
            for weight, each in zip(pattern[1:], near[1:]):
                z.addcmul_(weight, each[:, 1])
            ctx.saved.append((q, near, pattern))
            out.append(z)
        return torch.cat(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Float[Tensor, "asking head d_head"]
    ) -> tuple[Float[Tensor, "rows_q head d_head"], Float[Tensor, "rows 2 head d_head"], None]:
        grad_query, grad_kv = (grad.new_zeros(shape) for shape in ctx.shapes)
        done = 0
        for (asked, seen), (q, near, pattern) in zip(ctx.links, ctx.saved):
            g = grad[done : done + pattern.shape[1]]
            done += len(g)
            weighted = pattern * torch.stack([(each[:, 1] * g).sum(-1, keepdim=True) for each in near])
            scores = (weighted - pattern * weighted.sum(0)) / math.sqrt(q.shape[-1])
            grad_q = scores[0] * near[0][:, 0]
            for score, each in zip(scores[1:], near[1:]):
                grad_q.addcmul_(score, each[:, 0])
            _add(grad_query, asked, grad_q)
            for score, weight, where in zip(scores, pattern, seen):
                rows = grad_kv[where] if isinstance(where, slice) else None
                if rows is not None and len(rows) == len(g):
                    rows[:, 0].addcmul_(score, q)
                    rows[:, 1].addcmul_(weight, g)
                else:
                    _add(grad_kv, where, torch.stack((score * q, weight * g), 1))
        return grad_query, grad_kv, None


def _add(table: Float[Tensor, "rows *rest"], where: Where, update: Float[Tensor, "taken *rest"]) -> None:
    """Add the rows of ``update`` to those of ``table`` that they came from."""
    if not isinstance(where, slice):
        table.index_add_(0, where, update)
    elif len(table[where]) == len(update):
        table[where] += update
    else:
        table[where] += update.sum(0)
