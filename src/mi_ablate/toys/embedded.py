"""A toy's logits from embeddings, at any positions: for attacks on the input that tokens cannot express.

`forward` shares rows between prompts and so takes prompts of the task alone. Here the input is what enters the first block,
x_i = W_E[t_i] + W_pos[i] or anything near it, and gradients flow to it. The last position is computed apart from those before
it, so that many last tokens share the keys and values of one beginning: with V last tokens on n beginnings that is n V rows of
one position instead of n V of all.

A number of positions other than the toy's is a computation that training never saw: `embed` takes a position embedding for each
token, so an inserted token borrows one. The logits are then well defined and nothing more.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .config import ToyConfig
from .forward import ACTIVATIONS, _fused, _linear, _norm, check

Past = list[tuple[Float[Tensor, "n t head d_head"], Float[Tensor, "n t head d_head"]]]
"""Keys and values of the positions before the last, by layer."""


class Embedded:
    """A causal toy's weights as functions of embeddings; gradients reach the embeddings and not the weights."""

    def __init__(self, config: ToyConfig, state: Mapping[str, Float[Tensor, "..."]]) -> None:
        """Take the weights of ``config`` in HookedTransformer's names.

        Raises:
            ValueError: bidirectional attention, an attention coefficient, or an unknown activation function.

        """
        check(config)
        self.config = config
        self.params = {name: w.detach() for name, w in state.items()}
        named = [f"blocks.{layer}." for layer in range(config.n_layers)]
        self.blocks = [{k.removeprefix(b): v for k, v in self.params.items() if k.startswith(b)} for b in named]

    def embed(
        self, tokens: Int[Tensor, "*n t"], positions: Int[Tensor, " t"] | None = None
    ) -> Float[Tensor, "*n t d_model"]:
        """Return W_E[tokens] + W_pos[positions]; the positions are 0 .. t - 1 by default."""
        where = torch.arange(tokens.shape[-1]) if positions is None else positions
        return self.params["embed.W_E"][tokens] + self.params["pos_embed.W_pos"][where]

    def logits(self, x: Float[Tensor, "n t d_model"]) -> Float[Tensor, "n answers"]:
        """Return the logits at the last of these positions."""
        return self.last(x[:, -1:], self.past(x[:, :-1]))[:, 0]

    def past(self, x: Float[Tensor, "n t d_model"]) -> Past:
        """Return keys and values of positions that see themselves and those before them."""
        t, found = x.shape[1], []
        hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
        for number, p in enumerate(self.blocks):
            q, k, v = self._qkv(p, x)
            found.append((k, v))
            if number + 1 < len(self.blocks):
                scores = torch.einsum("nqhe,nkhe->nhqk", q, k) / math.sqrt(q.shape[-1])
                pattern = scores.masked_fill(hidden, -math.inf).softmax(-1)
                x = self._after(p, x, torch.einsum("nhqk,nkhe->nqhe", pattern, v))
        return found

    def last(self, x: Float[Tensor, "n v d_model"], past: Past) -> Float[Tensor, "n v answers"]:
        """Return the logits of ``v`` last positions after each beginning, none of which sees another."""
        for p, (keys, values) in zip(self.blocks, past):
            q, k, v = self._qkv(p, x)
            before = torch.einsum("nvhe,nthe->nvht", q, keys)
            scores = torch.cat((before, (q * k).sum(-1, keepdim=True)), -1) / math.sqrt(q.shape[-1])
            pattern = scores.softmax(-1)
            x = self._after(p, x, torch.einsum("nvht,nthe->nvhe", pattern[..., :-1], values) + pattern[..., -1:] * v)
        rows = _norm(self.config, self.params, "ln_final", x.flatten(0, 1))
        return _linear(rows, self.params["unembed.W_U"], self.params.get("unembed.b_U")).unflatten(0, x.shape[:2])

    def _qkv(self, p: Mapping[str, Tensor], x: Float[Tensor, "n t d_model"]) -> tuple[Tensor, ...]:
        rows = _linear(_norm(self.config, p, "ln1", x.flatten(0, 1)), *_fused(p, "QKV"))
        return rows.view(*x.shape[:2], 3, self.config.n_heads, self.config.d_head).unbind(2)

    def _after(self, p: Mapping[str, Tensor], x: Tensor, mixed: Float[Tensor, "n t head d_head"]) -> Tensor:
        """The residual stream after a block, from what its attention mixed."""
        rows = x.flatten(0, 1) + _linear(mixed.flatten(2).flatten(0, 1), p["attn.W_O"].flatten(0, 1), p.get("attn.b_O"))
        hidden = ACTIVATIONS[self.config.act_fn](
            _linear(_norm(self.config, p, "ln2", rows), p["mlp.W_in"], p.get("mlp.b_in"))
        )
        return (rows + _linear(hidden, p["mlp.W_out"], p.get("mlp.b_out"))).view(x.shape)
