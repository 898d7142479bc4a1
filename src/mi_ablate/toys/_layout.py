"""The tensors of the published layout (`published` describes it): what must be there, and HookedTransformer's form."""

import math

import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

from .._files import ArtefactError

TOP = ("embed.W_E", "pos_embed.W_pos", "unembed.W_U")
BLOCK = (*(f"attn.W_{k}" for k in "QKVO"), "mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out")
_AXES = {"W_E": "vd", "W_pos": "pd", "W_U": "dv", "W_Q": "hde", "W_K": "hde", "W_V": "hde", "W_O": "hed"}
_AXES |= {"W_in": "dm", "b_in": "m", "W_out": "md", "b_out": "d"}
_MASK = ".attn.mask"


def check_tensors(tensors: dict[str, Shaped[Tensor, "..."]], name: str) -> int:
    """Return the number of layers, or raise one ArtefactError that lists everything that is wrong."""
    found = {n: t for n, t in tensors.items() if not n.endswith(_MASK)}
    n_layers = len({n.split(".")[1] for n in found if n.startswith("blocks.")}) or 1
    expected = [*TOP, *(f"blocks.{i}.{part}" for i in range(n_layers) for part in BLOCK)]
    wrong = [f"missing {n}" for n in expected if n not in found]
    wrong += [f"unknown {n} {list(t.shape)}" for n, t in found.items() if n not in expected]
    if not wrong:
        wrong = _wrong_shapes({n: tuple(t.shape) for n, t in found.items()}, n_layers)
        wrong += [f"{n} is {t.dtype}, not floating" for n, t in found.items() if not t.is_floating_point()]
        wrong += [f"{n} has values that are not finite" for n, t in found.items() if not t.isfinite().all()]
    if wrong:
        raise ArtefactError(
            f"{name} is not in the published layout of Nanda et al. or Zhong et al.: {'; '.join(wrong)}. "
            "help(mi_ablate.toys.published) lists the names and shapes that are read."
        )
    return n_layers


def _wrong_shapes(shape: dict[str, tuple[int, ...]], n_layers: int) -> list[str]:
    """List what does not fit the sizes of W_E, W_pos, W_U and the first block's W_Q and b_in."""
    axes = {"embed.W_E": 2, "pos_embed.W_pos": 2, "unembed.W_U": 2}
    axes |= {"blocks.0.attn.W_Q": 3, "blocks.0.mlp.b_in": 1}
    wrong = [f"{n} is {list(shape[n])}, not of {k} axes" for n, k in axes.items() if len(shape[n]) != k]
    if wrong:
        return wrong
    (h, e, _), (m,), d = shape["blocks.0.attn.W_Q"], shape["blocks.0.mlp.b_in"], shape["embed.W_E"][0]
    block: dict[str, tuple[int, ...]] = {f"attn.W_{k}": (h, e, d) for k in "QKV"} | {"attn.W_O": (d, h * e)}
    block |= {"mlp.W_in": (m, d), "mlp.b_in": (m,), "mlp.W_out": (d, m), "mlp.b_out": (d,)}
    want: dict[str, tuple[int, ...]] = {"pos_embed.W_pos": (shape["pos_embed.W_pos"][0], d)}
    want["unembed.W_U"] = (d, shape["unembed.W_U"][1])
    want |= {f"blocks.{i}.{part}": s for i in range(n_layers) for part, s in block.items()}
    wrong = [f"{n} is {list(shape[n])}, not {list(s)}" for n, s in want.items() if shape[n] != s]
    return wrong + [f"{n} is empty" for n, s in shape.items() if 0 in s]


def to_state(tensors: dict[str, Shaped[Tensor, "..."]], n_layers: int) -> dict[str, Shaped[Tensor, "..."]]:
    """Return HookedTransformer's names and shapes: transpose what is stored output first, split W_O into heads.

    Where d_model is not heads times d_head, zeros are added to both until it is. No normalisation sees
    them, so they change no logit; W_Q grows by the root that the wider heads' scores are divided by.
    """
    heads, d_head, d_model = tensors["blocks.0.attn.W_Q"].shape
    state = {name: tensors[name] for name in TOP} | {"embed.W_E": tensors["embed.W_E"].T}
    for block in (f"blocks.{i}." for i in range(n_layers)):
        for part in BLOCK:
            w = tensors[block + part]
            state[block + part] = w if w.ndim == 1 else w.transpose(-1, -2)
        state[block + "attn.W_O"] = state[block + "attn.W_O"].reshape(heads, d_head, d_model)
    wide = max(d_head, math.ceil(d_model / heads))
    more = {"d": heads * wide - d_model, "e": wide - d_head}
    if any(more.values()):
        for name, w in state.items():
            axes = _AXES[name.rsplit(".", 1)[-1]]
            w = F.pad(w, [n for axis in reversed(axes) for n in (0, more.get(axis, 0))])
            state[name] = w.double() * math.sqrt(wide / d_head) if name.endswith("W_Q") else w
    return {name: t.contiguous() for name, t in state.items()}
