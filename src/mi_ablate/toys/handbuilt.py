"""Transformers whose algorithm for modular addition is written by hand: ground truth for every measure, without training.

Number a is embedded as r_k z_a, z_a = e^(i(w_k a + f_k)), for each frequency k: w_k = 2πk/p, f_k a phase drawn from the seed,
radii r_k falling from 1 to 0.6 in the order of the frequencies, so that no two circles have one size (principal components
would mix them). Attention copies z of the operands to the last position by position alone, GELU neurons compute squares,
and W_U reads the answer's angle:

- "clock" (Nanda et al. 2023, arXiv 2301.05217): head 0 copies a, head 1 copies b; the MLP computes z_a z_b exactly, so
  logit_c = S Σ_k cos w_k(a + b - c).
- "pizza" (Zhong et al. 2023, arXiv 2306.17844, with squares for their absolute values): attention is uniform;
  the MLP computes (z_a + z_b)², so logit_c = S Σ_k 2 cos²(w_k(a - b)/2) cos w_k(a + b - c).
- "gromov" (Gromov 2023, arXiv 2301.02679): copies as in the Clock, hidden units (cos(w_s a + g) + cos(w_s b + h))² with a
  random frequency s and random phases g and h each, read with cos(w_s c + g + h); all other products average out over units.

A square is four neurons: with h(x) = GELU(x) + GELU(-x) = √(2/π) (x² - x⁴/6 + ...), u² = (16 h(εu) - h(2εu)) / (12 ε² √(2/π))
up to 0.1 ε⁴ u⁶, at ε = 1/20. Logits of clock and pizza agree with the equations to 1e-4 of their largest in float32. A fixed
b_U of 0.5 % of S lets correct logits differ by the answer: without it the Clock's are all equal and distance irrelevance
would be 0/0.

Misleads where: attention is saturated and nothing is superposed. A measure that is right here can still fail on a trained
network, where components are neither exact nor apart.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import tasks
from .checkpoints import Toy
from .config import ToyConfig
from .transformer import build

KINDS = ("clock", "pizza", "gromov")
SCALE = 20.0
"""S: the size of one frequency's cosine in the logits."""
_EPSILON, _SHARP, _BIAS = 0.05, 60.0, 0.005
_SMALLEST = 0.6
"""Radius of the last frequency's circle in the embedding."""
_SIGNS = ((1, 16), (-1, 16), (2, -1), (-2, -1))
"""Input scale (in units of ε) and output weight of the four neurons of a square."""
_UNITS = 512
"""Squares of Gromov's network."""


def analytic(modulus: int, frequencies: Sequence[int], kind: str = "clock", seed: int = 0) -> Toy:
    """Return a hand-built one-layer transformer on (a + b) mod p, prompts ``a b =``, with nothing trained.

    ``card["analytic"]`` holds the kind, the frequencies, the phase f_k and the radius r_k of each, and the seed; ``train`` is
    None.

    Args:
        modulus: p, at least 3.
        frequencies: different whole numbers from 1 to (p - 1) // 2, the one with the most energy first. Four or five reach
            accuracy 1 at p = 97 and 113; Gromov's network is usually given all of them.
        kind: "clock", "pizza" or "gromov".
        seed: of the phases, of the small output bias and of Gromov's units.

    Raises:
        ValueError: an unknown kind, frequencies outside the range or twice, or frequencies that cannot tell two answers apart.

    """
    ks = _checked(modulus, frequencies, kind)
    generator = torch.Generator().manual_seed(seed)
    phases = 2 * torch.pi * torch.rand(len(ks), generator=generator, dtype=torch.float64)
    reads, writes = _squares(ks, phases, kind, generator)
    config = _config(modulus, len(ks), len(_SIGNS) * len(reads))
    radii = _SMALLEST ** torch.linspace(0, 1, len(ks), dtype=torch.float64)
    state = (
        _copies(config, _angles(modulus, ks, phases), radii.repeat_interleave(2), kind)
        | _mlp(config, reads, writes)
        | _output(config, ks, phases, generator)
    )
    what: dict[str, Any] = {"kind": kind, "frequencies": ks, "phases": phases.tolist(), "radii": radii.tolist()}
    what["seed"] = seed
    card = {"format": "analytic", "name": f"{kind}{modulus}", "config": config.to_dict(), "analytic": what}
    return Toy(
        model=build(config, {name: tensor.float() for name, tensor in state.items()}),
        tokens=tasks.all_tokens(config),
        answers=tasks.answers(config),
        modulus=modulus,
        inputs=tasks.inputs(config),
        train=None,
        card=card,
    )


def _checked(modulus: int, frequencies: Sequence[int], kind: str) -> list[int]:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} must be one of {', '.join(KINDS)}.")
    ks, highest = [int(k) for k in frequencies], (modulus - 1) // 2
    wrong = [k for k in ks if not 1 <= k <= highest]
    if wrong or not ks or len(set(ks)) < len(ks):
        raise ValueError(
            f"frequencies {ks} must be different whole numbers from 1 to {highest}, at least one, for modulus {modulus}."
        )
    common = math.gcd(modulus, *ks)
    if common > 1:
        raise ValueError(
            f"frequencies {ks} and modulus {modulus} share the factor {common}: answers {modulus // common} apart would be "
            "the same; add a frequency without it."
        )
    return ks


def _config(modulus: int, count: int, d_mlp: int) -> ToyConfig:
    """Residual stream: 2F numbers for a (and the embedding), 2F for b, 2F for the answer, 4 for positions."""
    return ToyConfig(
        modulus=modulus, layout="a b =", n_layers=1, d_model=6 * count + 4, n_heads=2, d_mlp=d_mlp, act_fn="gelu",
        normalization=None, biases="all",
    )  # fmt: skip


def _angles(modulus: int, ks: list[int], phases: Float[Tensor, " f"]) -> Float[Tensor, "p two_f"]:
    """Cos and sin of w_k a + f_k for every number, frequency by frequency."""
    angle = 2 * torch.pi * torch.arange(modulus)[:, None] * torch.tensor(ks, dtype=torch.float64) / modulus + phases
    return torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1)


def _copies(
    config: ToyConfig, circles: Float[Tensor, "p two_f"], radii: Float[Tensor, " two_f"], kind: str
) -> dict[str, Float[Tensor, "..."]]:
    """Embeddings, and heads that look at positions alone: one at a and one at b, or both everywhere (pizza)."""
    d, wide, f = config.d_model, len(radii), torch.float64
    embed = torch.zeros(config.d_vocab, d, dtype=f)
    embed[: config.modulus, :wide] = circles * radii
    position = torch.zeros(3, d, dtype=f)
    position[torch.arange(3), d - 4 + torch.arange(3)] = 1
    query, key, value = (torch.zeros(2, d, config.d_head, dtype=f) for _ in range(3))
    out = torch.zeros(2, config.d_head, d, dtype=f)
    read = torch.arange(wide)
    for head in range(2):
        value[head, read, read] = 1 / radii
        if kind == "pizza":  # a third on each of a, b and =, and the value of = is zero
            out[head, read, read] = 1.5
            continue
        query[head, d - 2, 0] = _SHARP * math.sqrt(config.d_head)
        key[head, d - 4 + head, 0] = 1
        out[head, read, read + head * wide] = 1
    weights = dict(zip(("W_Q", "W_K", "W_V", "W_O"), (query, key, value, out)))
    zeros = {f"b_{c}": torch.zeros(2, config.d_head, dtype=f) for c in "QKV"} | {"b_O": torch.zeros(d, dtype=f)}
    attention = {f"blocks.0.attn.{name}": tensor for name, tensor in (weights | zeros).items()}
    return {"embed.W_E": embed, "pos_embed.W_pos": position, **attention}


def _squares(
    ks: list[int], phases: Float[Tensor, " f"], kind: str, generator: torch.Generator
) -> tuple[Float[Tensor, "units four_f"], Float[Tensor, "units two_f"]]:
    """What each squared unit reads (of cos, sin of a, then of b) and writes (to cos, sin of a + b)."""
    wide = 2 * len(ks)
    reads: list[Tensor] = []
    writes: list[Tensor] = []

    def unit(read: dict[int, float], write: dict[int, float]) -> None:
        for rows, entries, width in ((reads, read, 2 * wide), (writes, write, wide)):
            row = torch.zeros(width, dtype=torch.float64)
            row[list(entries)] = torch.tensor(list(entries.values()), dtype=torch.float64)
            rows.append(row)

    for i in range(len(ks)) if kind != "gromov" else ():
        c, s = 2 * i, 2 * i + 1
        if kind == "pizza":  # (C + iS)² / 2 with C + iS = z_a + z_b, up to its size: 2 cos² of half the difference
            unit({c: 1.0}, {c: 0.5})
            unit({s: 1.0}, {c: -0.5})
            unit({c: 1.0, s: 1.0}, {s: 0.25})
            unit({c: 1.0, s: -1.0}, {s: -0.25})
            continue
        for x, y, to, sign in ((c, c, c, 1), (s, s, c, -1), (s, c, s, 1), (c, s, s, 1)):  # 4xy = (x + y)² - (x - y)²
            unit({x: 1.0, wide + y: 1.0}, {to: sign / 4})
            unit({x: 1.0, wide + y: -1.0}, {to: -sign / 4})
    for _ in range(_UNITS if kind == "gromov" else 0):
        i = int(torch.randint(len(ks), (1,), generator=generator))
        g, h = (2 * torch.pi * torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
        c, s, share = 2 * i, 2 * i + 1, 2 * len(ks) / _UNITS
        read = {c: math.cos(g), s: -math.sin(g), wide + c: math.cos(h), wide + s: -math.sin(h)}
        unit(read, {c: share * math.cos(g + h), s: -share * math.sin(g + h)})
    return torch.stack(reads), torch.stack(writes)


def _mlp(
    config: ToyConfig, reads: Float[Tensor, "units four_f"], writes: Float[Tensor, "units two_f"]
) -> dict[str, Float[Tensor, "..."]]:
    """Each square as four GELU neurons; the answer's numbers lie behind those of a and b."""
    d, wide = config.d_model, writes.shape[1]
    factor = 12 * _EPSILON**2 * math.sqrt(2 / math.pi)
    w_in, w_out = torch.zeros(d, config.d_mlp).double(), torch.zeros(config.d_mlp, d).double()
    w_in[: 2 * wide] = torch.cat([_EPSILON * scale * reads.T for scale, _ in _SIGNS], dim=1)
    w_out[:, 2 * wide : 3 * wide] = torch.cat([weight / factor * writes for _, weight in _SIGNS])
    biases = {"b_in": torch.zeros(config.d_mlp), "b_out": torch.zeros(d)}
    return {f"blocks.0.mlp.{name}": tensor for name, tensor in {"W_in": w_in, "W_out": w_out, **biases}.items()}


def _output(
    config: ToyConfig, ks: list[int], phases: Float[Tensor, " f"], generator: torch.Generator
) -> dict[str, Float[Tensor, "..."]]:
    """W_U at the answer's angle; its phase is that of z_a z_b, twice the embedding's."""
    wide = 2 * len(ks)
    unembed = torch.zeros(config.d_model, config.modulus, dtype=torch.float64)
    unembed[2 * wide : 3 * wide] = SCALE * _angles(config.modulus, ks, 2 * phases).T
    bias = _BIAS * SCALE * torch.randn(config.modulus, generator=generator, dtype=torch.float64)
    return {"unembed.W_U": unembed, "unembed.b_U": bias}
