"""Toy transformers as TransformerLens models: one state dict, the same logits on every supported version.

A state is a dict of tensors under HookedTransformer's names (``embed.W_E`` ... ``unembed.b_U``; `shapes` lists them).
`build` makes a HookedTransformer where the installed TransformerLens has that class (up to 3.9) and a native
TransformerBridge on 4.x. Architecture: learned positions, scores divided by sqrt(d_head), LayerNorm, RMSNorm or none
before attention, MLP and unembedding, W_E and W_U untied. In float64 the bridge's RMSNorm still works in float32.

Zhong et al. 2023 (arXiv 2306.17844) replace the attention pattern A by c A + (1 - c) 1, with ones, not 1/n; here a
permanent hook on every ``attn.hook_pattern`` does so (`MixPattern`). ``reset_hooks()`` keeps it,
``reset_hooks(including_permanent=True)`` removes it. The ones also stand where a causal mask has zeros.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .._types import HookedModel
from .config import ToyConfig

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
_BUFFERS = (".mask", ".IGNORE")


@dataclass(frozen=True)
class MixPattern:
    """The hook ``pattern -> c pattern + (1 - c)`` of Zhong et al."""

    c: float

    def __call__(
        self, pattern: Float[Tensor, "batch head query key"], hook: Any = None
    ) -> Float[Tensor, "batch head query key"]:
        """Return the mixed pattern; rows no longer sum to one."""
        return self.c * pattern + (1 - self.c)


def shapes(config: ToyConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by HookedTransformer name, in the order of its ``state_dict``."""
    d, h, e, m = config.d_model, config.n_heads, config.d_head, config.d_mlp
    norm: dict[str, tuple[int, ...]] = {"w": (d,)} if config.normalization else {}
    if config.normalization == "LN":
        norm["b"] = (d,)
    out: dict[str, tuple[int, ...]] = {"embed.W_E": (config.d_vocab, d), "pos_embed.W_pos": (config.n_ctx, d)}
    for i in range(config.n_layers):
        block: dict[str, tuple[int, ...]] = {f"ln1.{k}": v for k, v in norm.items()}
        block |= {f"attn.W_{k}": (h, d, e) for k in "QKV"} | {"attn.W_O": (h, e, d)}
        block |= {f"attn.b_{k}": (h, e) for k in "QKV"} | {"attn.b_O": (d,)}
        block |= {f"ln2.{k}": v for k, v in norm.items()}
        block |= {"mlp.W_in": (d, m), "mlp.b_in": (m,), "mlp.W_out": (m, d), "mlp.b_out": (d,)}
        out |= {f"blocks.{i}.{k}": v for k, v in block.items()}
    out |= {f"ln_final.{k}": v for k, v in norm.items()}
    return out | {"unembed.W_U": (d, config.n_answers), "unembed.b_U": (config.n_answers,)}


def trained_biases(config: ToyConfig) -> tuple[str, ...]:
    """Return the names of the biases (LayerNorm's included) that ``config.biases`` trains; the others stay zero."""
    biases = [n for n in shapes(config) if _is_bias(n)]
    keep = {"all": biases, "mlp": [n for n in biases if ".mlp." in n], "none": []}
    return tuple(keep[config.biases])


def initial_state(config: ToyConfig, seed: int = 0) -> dict[str, Float[Tensor, "..."]]:
    """Draw fresh weights: every ``W_`` from N(0, 0.64 / d_model), norms 1, biases 0 (TransformerLens's default scale).

    Float32 from a generator of its own, so that a seed means the same weights on every TransformerLens version and
    the global random state is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = 0.8 / config.d_model**0.5
    state = {}
    for name, shape in shapes(config).items():
        if ".W_" in name:
            state[name] = torch.randn(shape, generator=generator) * scale
        else:
            state[name] = torch.ones(shape) if name.endswith(".w") else torch.zeros(shape)
    return state


def complete(config: ToyConfig, state: dict[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
    """Return ``state`` with every parameter of `shapes`, the untrained biases filled with zeros.

    Attention buffers (``mask``, ``IGNORE``) are dropped. Raises a ValueError that lists all missing, unknown and
    wrongly shaped weights, and non-zero biases that ``config.biases`` says are not trained.
    """
    want = shapes(config)
    state = {name: t for name, t in state.items() if not name.endswith(_BUFFERS)}
    trained = set(trained_biases(config))
    required = [name for name in want if not _is_bias(name) or name in trained]
    wrong = [f"missing {name} {list(want[name])}" for name in required if name not in state]
    wrong += [f"unknown {name} {list(t.shape)}" for name, t in state.items() if name not in want]
    wrong += [
        f"{name} is {list(t.shape)}, not {list(want[name])}"
        for name, t in state.items()
        if name in want and tuple(t.shape) != want[name]
    ]
    wrong += [f"{name} is {t.dtype}, not floating" for name, t in state.items() if not t.is_floating_point()]
    if wrong:
        raise ValueError(
            f"The weights do not fit {_brief(config)}: {'; '.join(wrong)}. Pass a state under HookedTransformer's "
            "names and shapes (mi_ablate.toys.transformer.shapes(config) lists them), or the config it was made with."
        )
    stray = [name for name in state if _is_bias(name) and name not in trained and bool(state[name].any())]
    if stray:
        raise ValueError(
            f"biases={config.biases!r} says that {', '.join(stray)} stay zero, but the state has values there. "
            'Build with a config whose biases="all".'
        )
    like = state["embed.W_E"]
    return {name: state[name] if name in state else like.new_zeros(shape) for name, shape in want.items()}


def build(
    config: ToyConfig,
    state: dict[str, Shaped[Tensor, "..."]] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> HookedModel:
    """Return the model in eval mode: logits ``[batch pos config.n_answers]`` from tokens ``Int[batch pos]``.

    A HookedTransformer where TransformerLens has it, else a native TransformerBridge with the same hook names. Without
    ``state`` the weights are ``initial_state(config, seed)``. ``state`` is checked (see `complete`) before anything is
    built, and its tensors are copied. Raises ValueError for weights that do not fit, an activation that the native
    bridge lacks, and a device that this machine lacks.
    """
    if config.act_fn not in ACTIVATIONS:
        raise ValueError(f"act_fn {config.act_fn!r} must be one of {', '.join(ACTIVATIONS)}.")
    device = usable_device(device)
    full = complete(config, initial_state(config, seed) if state is None else state)
    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        model = _bridge(config, full, device, dtype)
    else:
        model = _hooked(HookedTransformer, config, full, device, dtype)
    model.eval()
    if config.attention_coefficient != 1:
        for layer in range(config.n_layers):
            hook = MixPattern(float(config.attention_coefficient))
            model.add_hook(f"blocks.{layer}.attn.hook_pattern", hook, is_permanent=True)
    return model


def usable_device(device: str | torch.device) -> torch.device:
    """Return ``device`` as a torch.device, or raise a ValueError where this machine does not have it."""
    try:
        there = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device {device!r} is no PyTorch device ({error}). Pass "cpu" or "cuda".') from None
    if there.type == "cuda" and (
        not torch.cuda.is_available() or (there.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f'device "{there}" was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA devices. Pass '
            'device="cpu", or install a PyTorch built for CUDA on a machine with such a GPU.'
        )
    if there.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device "mps" was asked for, but PyTorch sees no Apple GPU. Pass device="cpu".')
    return there


def _is_bias(name: str) -> bool:
    return ".b_" in name or name.endswith(".b")


def _brief(config: ToyConfig) -> str:
    return (
        f"a toy of modulus {config.modulus}, layout {config.layout!r}, {config.n_layers} layers, d_model "
        f"{config.d_model}, {config.n_heads} heads, d_mlp {config.d_mlp}, normalization {config.normalization}"
    )


def _arguments(config: ToyConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "n_ctx": config.n_ctx,
        "d_vocab": config.d_vocab,
        "d_vocab_out": config.n_answers,
        "act_fn": config.act_fn,
        "normalization_type": config.normalization,
        "attention_dir": config.attention,
        "init_weights": False,
        "device": str(device),
        "dtype": dtype,
    }


def _hooked(
    kind: Any, config: ToyConfig, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Any:
    """Build a HookedTransformer and copy the weights in."""
    from transformer_lens import HookedTransformerConfig

    arguments = HookedTransformerConfig(**_arguments(config, device, dtype))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HookedTransformer.*", category=DeprecationWarning)
        model = kind(arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return model


def _bridge(config: ToyConfig, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """Build a native TransformerBridge and load the weights through TransformerLens's own converter."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    arguments = TransformerBridgeConfig(**_arguments(config, device, dtype))
    model = TransformerBridge.boot_native(arguments, device=device, dtype=dtype)
    cast = {name: t.to(device=device, dtype=dtype) for name, t in state.items()}
    model.load_state_dict(convert_tl_checkpoint(cast, model.cfg), strict=True)
    return model
