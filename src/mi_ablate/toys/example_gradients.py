"""The length of every example's gradient from one backward pass (Goodfellow 2015, arXiv 1510.01799), for toys.

A linear map y = x W of one example with inputs x_p and gradients d_p = dL/dy_p at its positions p has the weight gradient
sum_p x_p d_p^T, whose squared length is

    sum_{p,q} (x_p . x_q) (d_p . d_q)

so no example's gradient is ever written down. The forward pass here is a plain one over all positions (`forward` shares rows
between prompts, which mixes their gradients), with a zero added to the output of every map: the gradients by these zeros are
the d_p.

Misleads where: lengths only; the gradients' directions, and so their mean, come from an ordinary backward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .config import ToyConfig
from .forward import ACTIVATIONS, EPS, check

Params = Mapping[str, Float[Tensor, "..."]]


def squared_lengths(
    config: ToyConfig, params: Params, tokens: Int[Tensor, "n pos"], answers: Int[Tensor, " n"], chunk: int = 512
) -> Float[Tensor, " n"]:
    """Return the squared length of the gradient of each prompt's cross-entropy, by all of ``params``.

    Args:
        config: shape and task.
        params: the trained weights; a bias that is absent counts as zero and has no gradient.
        tokens: prompts of the config's layout.
        answers: the right token of each.
        chunk: prompts at a time; memory grows with it.

    Raises:
        ValueError: bidirectional attention, an attention coefficient, or an unknown activation function.

    """
    check(config)
    parts = []
    for start in range(0, len(tokens), chunk):
        taps = _Taps(params)
        with torch.enable_grad():
            logits = _logits(config, taps, tokens[start : start + chunk])
            loss = F.cross_entropy(logits, answers[start : start + chunk], reduction="sum")
        parts.append(taps.squares(torch.autograd.grad(loss, taps.zeros)))
    return torch.cat(parts)


@dataclass
class _Taps:
    """The zeros added to the outputs of maps, and what each map's gradient needs of its input."""

    params: Params
    zeros: list[Float[Tensor, "n _ _"]] = field(default_factory=list)
    inputs: list[tuple[str, Tensor, bool]] = field(default_factory=list)
    """Kind of map ("linear", "norm" or "embedding"), its input, and whether it has a bias."""

    def linear(
        self, x: Float[Tensor, "n pos d_in"], weight: Float[Tensor, "d_in d_out"], bias: Float[Tensor, " d_out"] | None
    ) -> Float[Tensor, "n pos d_out"]:
        """Return x W + b."""
        return self._tapped("linear", x, x @ weight, bias)

    def norm(self, config: ToyConfig, name: str, x: Float[Tensor, "n pos d"]) -> Float[Tensor, "n pos d"]:
        """Return x normalised, times the weight, plus the bias."""
        if config.normalization is None:
            return x
        centred = x - x.mean(-1, keepdim=True) if config.normalization == "LN" else x
        unit = centred * (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
        return self._tapped("norm", unit, unit * self.params[f"{name}.w"], self.params.get(f"{name}.b"))

    def embedding(self, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n pos d"]:
        """Return the tokens' and the positions' rows."""
        return self._tapped(
            "embedding", tokens, self.params["embed.W_E"][tokens] + self.params["pos_embed.W_pos"], None
        )

    def squares(self, gradients: tuple[Float[Tensor, "n _ _"], ...]) -> Float[Tensor, " n"]:
        """Return each example's squared length, summed over the maps, given the gradients by the zeros."""
        total = torch.zeros(len(gradients[0]), dtype=torch.float64)
        for (kind, x, biased), d in zip(self.inputs, gradients):
            if kind == "norm":
                total += (x * d).sum(1).square().sum(-1)
            else:
                same = x @ x.mT if kind == "linear" else x[:, :, None] == x[:, None, :]
                total += (same * (d @ d.mT)).sum((1, 2))
            if kind == "embedding":  # the positions' own rows
                total += d.square().sum((1, 2))
            if biased:
                total += d.sum(1).square().sum(-1)
        return total

    def _tapped(
        self, kind: str, x: Tensor, y: Float[Tensor, "n pos out"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "n pos out"]:
        zero = torch.zeros_like(y, requires_grad=True)
        self.zeros.append(zero)
        self.inputs.append((kind, x.detach(), bias is not None))
        return y + zero if bias is None else y + bias + zero


def _logits(config: ToyConfig, taps: _Taps, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n answers"]:
    """Logits at the last position, from every position of every prompt."""
    x = taps.embedding(tokens)
    for layer in range(config.n_layers):
        p = {k.split(".", 2)[2]: v for k, v in taps.params.items() if k.startswith(f"blocks.{layer}.")}
        x = x + _attention(config, taps, p, taps.norm(config, f"blocks.{layer}.ln1", x))
        hidden = taps.linear(taps.norm(config, f"blocks.{layer}.ln2", x), p["mlp.W_in"], p.get("mlp.b_in"))
        x = x + taps.linear(ACTIVATIONS[config.act_fn](hidden), p["mlp.W_out"], p.get("mlp.b_out"))
    last = taps.norm(config, "ln_final", x[:, -1:])
    return taps.linear(last, taps.params["unembed.W_U"], taps.params.get("unembed.b_U"))[:, 0]


def _attention(config: ToyConfig, taps: _Taps, p: Params, x: Float[Tensor, "n pos d"]) -> Float[Tensor, "n pos d"]:
    """Causal attention of one layer."""
    q, k, v = (_per_head(config, taps, p, x, letter) for letter in "QKV")
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    bias = p.get("attn.b_O")
    return taps.linear(mixed.transpose(1, 2).flatten(2), p["attn.W_O"].flatten(0, 1), bias)


def _per_head(
    config: ToyConfig, taps: _Taps, p: Params, x: Float[Tensor, "n pos d"], letter: str
) -> Float[Tensor, "n head pos d_head"]:
    bias = p.get(f"attn.b_{letter}")
    weight = p[f"attn.W_{letter}"].transpose(0, 1).flatten(1)
    y = taps.linear(x, weight, None if bias is None else bias.flatten())
    return y.unflatten(-1, (config.n_heads, config.d_head)).transpose(1, 2)
