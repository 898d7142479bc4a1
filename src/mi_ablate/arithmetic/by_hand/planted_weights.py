"""The weights of a planted adder, in GPT-2's form: LayerNorm, learned positions, gelu_new, causal attention.

The residual stream has one orthonormal direction for each abstract coordinate (`frame`), drawn at random; a weight is written
between coordinates and carried into the stream by these directions. What makes it exact:

- **LayerNorm with a constant scale.** The position embedding adds +K and -K (K = 2¹⁵) on two coordinates of their own. The mean
  stays 0, because all directions are orthogonal to (1, ..., 1); the variance is 2K²/d up to |rest|² / (2K²) of itself, so
  with the gain √(2K²/d + ε) the norm is the identity up to |rest|² / (4K²), below 1e-7.
- **Attention by position alone.** Positions are p → (cos 2πp/N, sin 2πp/N), and a query turned by the operand's distance scores
  60 more at the right token than at its neighbours. Tokens that do not ask attend to words, which carry no number. So it
  holds with and without a beginning-of-sequence token and behind any text.
- **Products by GELU.** With h(x) = GELU(x) + GELU(-x) (gelu_new), u² = (16 h(εu) - h(2εu)) / (12 ε² √(2/π)) up to
  0.11 ε⁴ u⁶, and 4xy = (x + y)² - (x - y)²; u is at most 2, so a product is off by less than 2 ε⁴ (ε = 0.01 in float64).
  GELU(x) - GELU(-x) = x is exact and carries lines. A bias of -7.5 that the last token alone lifts keeps these neurons
  silent elsewhere.

Misleads where: scales are far from those of a trained model. Zero-ablating what holds the constant (whole vectors, random
directions) breaks every norm, as removing the massive activations of a trained model does.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.arithmetic.by_hand.planted_truth import MLP_LAYER, N_HEADS, N_LAYERS, SCALE, SHARES, SPARE, Truth

BALANCE = 2.0**15
"""K: the size of the two constant coordinates."""
N_CTX, _NORM_EPS, GATE, _LINE = 32, 1e-5, 7.5, 0.05
_SIGNS = ((1, 16), (-1, 16), (2, -1), (-2, -1))
"""Input scale (in units of ε) and output weight of the four neurons of a square."""
_SHARP = 60 / (1 - math.cos(2 * math.pi / N_CTX))
"""Score of the right position, so that its neighbours are 60 behind."""
Terms = tuple[tuple[str, int | float], ...]
State = dict[str, Tensor]


def frame(k: int, generator: torch.Generator) -> dict[str, Float[Tensor, "d _"]]:
    """Return random orthonormal directions for each use, all orthogonal to (1, ..., 1) and to the first two axes."""
    uses = {"number": k, "copy a": k, "copy b": k, "decoy": k, "sum": k, "answer": k}
    uses |= {"asks": 1, "word": 1, "form": 1, "position": 2, "spare": SPARE}
    width = sum(uses.values())
    d = N_HEADS * math.ceil((width + 3) / N_HEADS)
    drawn = torch.randn(d - 2, width + 1, generator=generator, dtype=torch.float64)
    drawn[:, 0] = 1
    inner = torch.linalg.qr(drawn).Q[:, 1:]
    full = torch.cat([torch.zeros(2, width, dtype=torch.float64), inner])
    return dict(zip(uses, full.split(list(uses.values()), dim=1)))


def adder_units(terms: Terms, epsilon: float) -> tuple[Float[Tensor, "two_k m"], Float[Tensor, "m k"]]:
    """Return what each neuron reads (of z(a), then of z(b)) and writes (of z(a + b))."""
    k, factor = len(terms), 12 * epsilon**2 * math.sqrt(2 / math.pi)
    reads: list[Tensor] = []
    writes: list[Tensor] = []

    def unit(read: dict[int, float], write: dict[int, float]) -> None:
        for rows, entries, width in ((reads, read, 2 * k), (writes, write, k)):
            row = torch.zeros(width, dtype=torch.float64)
            row[list(entries)] = torch.tensor(list(entries.values()), dtype=torch.float64)
            rows.append(row)

    def product(x: int, y: int, to: int, sign: float) -> None:
        for other in (1, -1):
            for scale, weight in _SIGNS:
                unit({x: epsilon * scale, k + y: other * epsilon * scale}, {to: other * sign * weight / (4 * factor)})

    for i, (word, T) in enumerate(terms):
        if word == "linear":
            unit({i: _LINE, k + i: _LINE}, {i: 1 / _LINE})
            unit({i: -_LINE, k + i: -_LINE}, {i: -1 / _LINE})
        elif T == 2:
            product(i, i, i, 1.0)
        elif word == "cos":
            for x, y, to, sign in (
                (i, i, i, 1.0),
                (i + 1, i + 1, i, -1.0),
                (i + 1, i, i + 1, 1.0),
                (i, i + 1, i + 1, 1.0),
            ):
                product(x, y, to, sign)
    return torch.stack(reads, dim=1), torch.stack(writes)


def weights(
    truth: Truth, offsets: dict[str, int], epsilon: float, sizes: Float[Tensor, " k"], generator: torch.Generator
) -> State:
    """Return every weight except W_E and W_U, under transformers' GPT-2 names, in float64."""
    directions, k = truth.directions, len(truth.terms)
    d = len(directions["number"])
    reads, writes = adder_units(truth.terms, epsilon)
    m = 4 * d  # what TransformerLens expects of a GPT-2; no more than 32 neurons a circle are needed
    gain = math.sqrt(2 * BALANCE**2 / d + _NORM_EPS)
    state = {
        f"ln_f.{name}": torch.full((d,), value, dtype=torch.float64)
        for name, value in (("weight", gain), ("bias", 0.0))
    }
    place = {where: name for name, where in truth.heads.items()}
    state["wpe.weight"] = _positions(directions)
    for layer in range(N_LAYERS):
        block = f"h.{layer}"
        for norm in ("ln_1", "ln_2"):
            state |= {f"{block}.{norm}.{name}": state[f"ln_f.{name}"].clone() for name in ("weight", "bias")}
        attention = Attention(directions, offsets, sizes, generator)
        for head in range(N_HEADS):
            attention.add(head, place.get((layer, head), ""), layer)
        state |= {f"{block}.attn.{name}": tensor for name, tensor in attention.state().items()}
        mlp = {
            "c_fc.weight": torch.zeros(d, m).double(), "c_fc.bias": torch.zeros(m).double(),
            "c_proj.weight": torch.zeros(m, d).double(), "c_proj.bias": torch.zeros(d).double(),
        }  # fmt: skip
        into, out = mlp["c_fc.weight"], mlp["c_proj.weight"]
        if layer == MLP_LAYER:
            used = reads.shape[1]
            into[:, :used] = torch.cat([directions["copy a"], directions["copy b"]], dim=1) @ reads
            into[:, :used] += GATE * directions["asks"]
            mlp["c_fc.bias"][:used] = -GATE
            out[:used] = writes @ directions["sum"].T
        elif ("mlp", layer) in SHARES:
            into[:, : 2 * k] = torch.cat([directions["sum"], -directions["sum"]], dim=1)
            out[: 2 * k] = SHARES["mlp", layer] * torch.cat([directions["answer"].T, -directions["answer"].T])
        else:
            noise = torch.randn(2, SPARE, m, generator=generator, dtype=torch.float64)
            into += directions["spare"] @ noise[0] / 4
            out += noise[1].T @ directions["spare"].T / m
        state |= {f"{block}.mlp.{name}": tensor for name, tensor in mlp.items()}
    return state


class Attention:
    """One layer's heads, written one after the other."""

    def __init__(
        self, directions: dict[str, Tensor], offsets: dict[str, int], sizes: Tensor, generator: torch.Generator
    ) -> None:
        self.directions, self.offsets, self.sizes, self.generator = directions, offsets, sizes, generator
        d = len(directions["number"])
        self.wide = d // N_HEADS
        self.qkv = torch.zeros(3, d, N_HEADS, self.wide, dtype=torch.float64)
        self.bias = torch.zeros(3, N_HEADS, self.wide, dtype=torch.float64)
        self.out = torch.zeros(N_HEADS, self.wide, d, dtype=torch.float64)

    def add(self, head: int, name: str, layer: int) -> None:
        """Write one head: a copy of an operand, a move of the sum, or a neutral mean over words."""
        if name in ("a", "b", "decoy"):
            self._attend(head, self.offsets["b" if name == "b" else "a"] - self.offsets["answer"], rest=True)
            self._move(head, "number", "decoy" if name == "decoy" else f"copy {name}", 1 / self.sizes)
        elif name:
            self._attend(head, 0, rest=False)
            self._move(head, "sum", "answer", torch.full((len(self.sizes),), SHARES["head", layer]).double())
        else:
            mixed = torch.randn(SPARE, SPARE, generator=self.generator, dtype=torch.float64) / 10
            self.qkv[2, :, head, :SPARE] = self.directions["spare"]
            self.out[head, :SPARE] = mixed @ self.directions["spare"].T

    def state(self) -> State:
        """Return the layer's weights as transformers' GPT-2 has them."""
        d = len(self.directions["number"])
        return {
            "c_attn.weight": torch.cat([w.flatten(1) for w in self.qkv], dim=1), "c_attn.bias": self.bias.flatten(),
            "c_proj.weight": self.out.flatten(0, 1), "c_proj.bias": torch.zeros(d, dtype=torch.float64),
        }  # fmt: skip

    def _attend(self, head: int, offset: int, *, rest: bool) -> None:
        """Attend ``offset`` tokens away; tokens that do not ask rest on the words before them."""
        turn = 2 * math.pi * offset / N_CTX
        rotation = torch.tensor(
            [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64
        )
        scale = math.sqrt(self.wide)
        self.qkv[0, :, head, :2] = _SHARP * scale * self.directions["position"] @ rotation
        self.qkv[1, :, head, :2] = self.directions["position"]
        if rest:
            resting = (2 * _SHARP + 60) * scale
            self.qkv[0, :, head, 2] = -resting * self.directions["asks"][:, 0]
            self.bias[0, head, 2] = resting
            self.qkv[1, :, head, 2] = self.directions["word"][:, 0]

    def _move(self, head: int, source: str, to: str, sizes: Tensor) -> None:
        k = len(self.sizes)
        self.qkv[2, :, head, :k] = self.directions[source]
        self.out[head, :k] = sizes[:, None] * self.directions[to].T


def _positions(directions: dict[str, Tensor]) -> Float[Tensor, "pos d"]:
    """Return the position embedding: a circle, and the constant pair that fixes the norms' scale."""
    angle = 2 * math.pi * torch.arange(N_CTX, dtype=torch.float64) / N_CTX
    table = torch.stack([angle.cos(), angle.sin()], dim=1) @ directions["position"].T
    table[:, 0], table[:, 1] = BALANCE, -BALANCE
    return table


def readout(
    directions: dict[str, Tensor], terms: Terms, values: Tensor, sums: Float[Tensor, "v k"]
) -> Float[Tensor, "v d"]:
    """Return the rows of W_U for numbers whose z, with the sum's phases, is ``sums``."""
    line = torch.tensor([word == "linear" for word, _ in terms])
    rows = SCALE * torch.where(line, 2 * sums, sums) @ directions["answer"].T
    constant = -SCALE * bool(line.any()) * (values.double() / 100) ** 2 / (2 * BALANCE)
    rows[:, 0], rows[:, 1] = constant, -constant
    return rows


def language_model(size: int, state: State, embed: Tensor, unembed: Tensor, dtype: torch.dtype, ends: Any) -> Any:
    """Return transformers' GPT-2 with these weights, W_E and W_U untied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size, n_positions=N_CTX, n_embd=embed.shape[1], n_layer=N_LAYERS, n_head=N_HEADS,
        activation_function="gelu_new", layer_norm_epsilon=_NORM_EPS,
        tie_word_embeddings=False, bos_token_id=ends, eos_token_id=ends,
    )  # fmt: skip
    with torch.random.fork_rng():
        model: Any = GPT2LMHeadModel(config)
    model.to(dtype=dtype).eval()
    full = {f"transformer.{name}": tensor for name, tensor in state.items()} | {"lm_head.weight": unembed}
    full["transformer.wte.weight"] = embed
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(full.pop(name))
    return model
