"""Toy transformers as TransformerLens models: one state dict, the same logits on every supported version.

A state is a dict of tensors under HookedTransformer's names (`parameter_shapes` lists them). `build` makes a
HookedTransformer where the installed TransformerLens has that class (up to 3.9) and a native
TransformerBridge on 4.x. In float32 their logits agree to the bit with no normalisation or LayerNorm and
ReLU, GELU or SiLU; with RMSNorm or gelu_new they round differently (5e-7), and a bridge's RMSNorm stays in
float32 in a float64 model.

Zhong et al. 2023 (arXiv 2306.17844) replace the attention pattern A by c A + (1 - c) 1, with ones, not 1/n;
here a permanent hook on every ``attn.hook_pattern`` does so (`MixPattern`). ``reset_hooks()`` keeps it,
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
from .forward import parameter_shapes, trained_names

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
_BUFFERS = (".mask", ".IGNORE")


@dataclass(frozen=True)
class MixPattern:
    """The hook ``pattern -> c pattern + (1 - c)`` of Zhong et al."""

    c: float

    def __call__(
        self, pattern: Float[Tensor, "batch head query key"], hook: Any = None
    ) -> Float[Tensor, "batch head query key"]:
        """Return the mixed pattern; its rows sum to c + (1 - c) keys."""
        return self.c * pattern + (1 - self.c)


def complete(config: ToyConfig, state: dict[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
    """Return ``state`` with every parameter of the model, the untrained biases filled with zeros.

    Attention buffers (``mask``, ``IGNORE``) are dropped. Raises a ValueError that lists all missing, unknown
    and wrongly shaped weights, and non-zero biases that ``config.biases`` says are not trained.
    """
    want, trained = parameter_shapes(config), trained_names(config)
    state = {name: t for name, t in state.items() if not name.endswith(_BUFFERS)}
    wrong = [f"missing {name} {list(want[name])}" for name in trained if name not in state]
    wrong += [f"unknown {name} {list(t.shape)}" for name, t in state.items() if name not in want]
    for name in want:
        if name in state and tuple(state[name].shape) != want[name]:
            wrong.append(f"{name} is {list(state[name].shape)}, not {list(want[name])}")
        elif name in state and not state[name].is_floating_point():
            wrong.append(f"{name} is {state[name].dtype}, not floating")
    if wrong:
        raise ValueError(
            f"The weights do not fit {_brief(config)}: {'; '.join(wrong)}. Pass a state under "
            "HookedTransformer's names and shapes (mi_ablate.toys.forward.parameter_shapes(config)), or "
            "the config that the state was made with."
        )
    stray = [name for name in want if name in state and name not in trained and bool(state[name].any())]
    if stray:
        raise ValueError(
            f"biases={config.biases!r} says that {', '.join(stray)} stay zero, but the state has values "
            'there. Build with a config whose biases="all".'
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

    ``state`` is checked (see `complete`) before anything is built, and its tensors are copied. Without it the
    weights are those that training starts from with ``seed`` (`stepper.initial_state`, "log"), the same on
    every version; the global random state is left alone.

    Raises:
        ValueError: weights that do not fit, an activation that is not in `ACTIVATIONS`, a dtype or a device
            that this machine does not have.

    """
    if config.act_fn not in ACTIVATIONS:
        raise ValueError(f"act_fn {config.act_fn!r} must be one of {', '.join(ACTIVATIONS)}.")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype {dtype} cannot hold weights; pass torch.float32 or torch.float64.")
    device = usable_device(device)
    if state is None:
        from .stepper import initial_state

        state = initial_state(config, "log", seed)
    full = complete(config, state)
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
        asked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device {device!r} is no PyTorch device ({error}). Pass "cpu" or "cuda".') from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked.type == "cuda" and (asked.index or 0) >= count:
        raise ValueError(
            f'device "{asked}" was asked for, but PyTorch sees {count} CUDA devices. Pass device="cpu", or '
            "install a PyTorch built for CUDA on a machine with such a GPU."
        )
    if asked.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device "mps" was asked for, but PyTorch sees no Apple GPU. Pass device="cpu".')
    return asked


def _brief(config: ToyConfig) -> str:
    c = config
    return (
        f"a toy of modulus {c.modulus}, layout {c.layout!r}, {c.n_layers} layers, d_model {c.d_model}, "
        f"{c.n_heads} heads, d_mlp {c.d_mlp}, {c.n_answers} outputs, normalization {c.normalization}"
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


def _hooked(kind: Any, config: ToyConfig, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> Any:
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
    with torch.random.fork_rng(devices=[]):  # it draws weights that the state then replaces
        model = TransformerBridge.boot_native(arguments, device=device, dtype=dtype)
    cast = {name: t.to(device=device, dtype=dtype) for name, t in state.items()}
    model.load_state_dict(convert_tl_checkpoint(cast, model.cfg), strict=True)
    return model
