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

Parameters with a leading axis ``model`` are a stack: every operation then does all models at once, each on its own
prompts (tokens ``[model batch pos]``) or all on the same ones (tokens ``[batch pos]``).

Misleads where: nothing but the last position comes out, and no hooks fire. Interventions belong to the
HookedTransformer.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ._attend import Attend, Where, rows
from .config import ToyConfig
from .tasks import slots

EPS = 1e-5
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
    come first, because longer prefixes are more numerous; the last position has one row a prompt. Where models of a
    stack have prompts of their own, an index counts through the rows of the models one after the other.
    """

    def __init__(self, config: ToyConfig, tokens: Int[Tensor, "*model batch pos"]) -> None:
        starts, self.sizes = zip(*slots(config))
        self.tokens = [tokens[..., i] - start for i, start in enumerate(starts)]
        counts, batch = [math.prod(self.sizes[: i + 1]) for i in range(len(starts))], tokens.shape[-2]
        self.is_table = [count < batch for count in counts[:-1]] + [False]
        self.n_rows = [count if table else batch for count, table in zip(counts, self.is_table)]
        self.device = tokens.device
        self.model = torch.arange(len(tokens), device=self.device)[:, None] if tokens.ndim == 3 else None

    def seen(self, i: int, by_token: bool) -> list[Where]:
        """Where each row of position i finds positions 0 .. i: an index, or a slice (as many rows, or one).

        ``by_token``: in a matrix with a row for each token that a position may hold, else in that of all
        rows.
        """
        found: list[Where] = []
        start, prefix = 0, torch.zeros((), dtype=torch.long, device=self.device)
        height = sum(self.sizes if by_token else self.n_rows)
        for j in range(i + 1):
            size = self.sizes[j] if by_token else self.n_rows[j]
            if by_token:
                found.append(self._of_model(self._token(i, j) + start, height) if size > 1 else slice(start, start + 1))
            elif j < i and self.is_table[j]:
                prefix = prefix * self.sizes[j] + self._token(i, j)
                found.append(self._of_model(prefix + start, height))
            else:
                found.append(slice(start, start + size))
            start += size
        return found

    def _of_model(self, index: Int[Tensor, "*model rows"], height: int) -> Int[Tensor, "*model rows"]:
        return index + self.model * height if self.model is not None and index.ndim == 2 else index

    def _token(self, i: int, j: int) -> Int[Tensor, "*model rows"]:
        if not self.is_table[i]:
            return self.tokens[j]
        later = math.prod(self.sizes[j + 1 : i + 1])
        return torch.arange(self.n_rows[i], device=self.device) // later % self.sizes[j]


def last_logits(
    config: ToyConfig, params: Params, tokens: Int[Tensor, "*model batch pos"]
) -> Float[Tensor, "*models batch answers"]:
    """Return the logits at the last position, those of a causal HookedTransformer with the same parameters.

    ``params`` holds the state dict's tensors; a bias that is absent counts as zero. Tokens must be prompts of
    the config's layout (`tasks.all_tokens` and rows of it). With a leading axis ``model`` on every parameter the
    logits have it too.

    Raises:
        ValueError: bidirectional attention, an attention coefficient, or an unknown activation function.

    """
    return readout(config, params, last_residual(config, params, tokens))


def readout(
    config: ToyConfig, params: Params, residual: Float[Tensor, "*models batch d_model"]
) -> Float[Tensor, "*models batch answers"]:
    """Return the logits of a last residual stream: the final norm, then the unembedding."""
    return _linear(_norm(config, params, "ln_final", residual), params["unembed.W_U"], params.get("unembed.b_U"))


def last_residual(
    config: ToyConfig, params: Params, tokens: Int[Tensor, "*model batch pos"]
) -> Float[Tensor, "*models batch d_model"]:
    """Return the residual stream after the last block at the last position; arguments and errors are `last_logits`'s."""
    check(config)
    prefixes = Prefixes(config, tokens)
    starts = [start for start, _ in slots(config)]
    tables = [
        params["embed.W_E"][..., start : start + size, :] + params["pos_embed.W_pos"][..., i : i + 1, :]
        for i, (start, size) in enumerate(zip(starts, prefixes.sizes))
    ]
    x = torch.cat(tables, -2)
    for layer in range(config.n_layers):
        p = {k.split(".", 2)[2]: v for k, v in params.items() if k.startswith(f"blocks.{layer}.")}
        x = _attention(config, p, x, prefixes, layer)
        hidden = _linear(_norm(config, p, "ln2", x), p["mlp.W_in"], p.get("mlp.b_in"))
        x = x + _linear(ACTIVATIONS[config.act_fn](hidden), p["mlp.W_out"], p.get("mlp.b_out"))
    return x


def _linear(
    x: Float[Tensor, "*model rows d_in"],
    weight: Float[Tensor, "*model d_in d_out"],
    bias: Float[Tensor, "*model d_out"] | None,
) -> Float[Tensor, "*model rows d_out"]:
    if bias is None:
        return x @ weight
    return torch.addmm(bias, x, weight) if x.ndim == 2 else torch.baddbmm(bias[:, None], x, weight)


def _norm(
    config: ToyConfig, params: Params, name: str, x: Float[Tensor, "*model rows d_model"]
) -> Float[Tensor, "*model rows d_model"]:
    if config.normalization is None:
        return x
    weight, bias = params[f"{name}.w"], params.get(f"{name}.b")
    if config.normalization == "RMS":
        return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight[..., None, :]
    if x.ndim == 2:
        return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    normed = F.layer_norm(x, x.shape[-1:], None, None, EPS) * weight[:, None]
    return normed if bias is None else normed + bias[:, None]


def _fused(
    params: Params, letters: str
) -> tuple[Float[Tensor, "*model d_model d_out"], Float[Tensor, "*model d_out"] | None]:
    """Weights and biases of several of Q, K, V in one matrix; d_out is (letter head d_head)."""
    weight = torch.cat([params[f"attn.W_{c}"] for c in letters], -3).transpose(-3, -2).flatten(-2)
    biases = [params.get(f"attn.b_{c}") for c in letters]
    if any(b is None for b in biases):
        return weight, None
    return weight, torch.cat([b.flatten(-2) for b in biases if b is not None], -1)


def _attention(
    config: ToyConfig, p: Params, x: Float[Tensor, "*model rows d_model"], prefixes: Prefixes, layer: int
) -> Float[Tensor, "*model asking d_model"]:
    """Residual rows after attention: of every position, or in the last layer of the last position only."""
    first, last = layer == 0, layer == config.n_layers - 1
    n, heads = len(prefixes.sizes), (config.n_heads, config.d_head)
    asking = range(n - 1 if last else 0, n)
    links = [prefixes.seen(i, by_token=first) for i in asking]
    normed = _norm(config, p, "ln1", x)
    if last and not first:
        kv = _linear(normed, *_fused(p, "KV")).unflatten(-1, (2, *heads))
        x, normed = (table[..., -prefixes.n_rows[-1] :, :] for table in (x, normed))
        query = _linear(normed, *_fused(p, "Q")).unflatten(-1, heads)
        asked: list[Where] = [slice(None)]
    else:
        qkv = _linear(normed, *_fused(p, "QKV")).unflatten(-1, (3, *heads))
        query, kv = qkv[..., 0, :, :], qkv[..., 1:, :, :]
        asked = [seen[-1] for seen in links]
    mixed = Attend.apply(query, kv, list(zip(asked, links)))
    if first:
        taken = [rows(x, where, 1) for where in asked]
        x = torch.cat([t.expand(*t.shape[:-2], prefixes.n_rows[i], -1) for i, t in zip(asking, taken)], -2)
    return x + _linear(mixed.flatten(-2), p["attn.W_O"].flatten(-3, -2), p.get("attn.b_O"))
