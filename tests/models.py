"""Small offline models for the tests: the same random weights on every TransformerLens version."""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens has HookedTransformer (up to 3.9)."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def has_bridge() -> bool:
    """Whether the installed TransformerLens has TransformerBridge (from 3.0)."""
    try:
        from transformer_lens.model_bridge import TransformerBridge  # noqa: F401
    except ImportError:
        return False
    return True


def data_folder() -> Path:
    """The folder of third-party inputs; the test that asks for it is skipped where it is absent."""
    folder = Path(os.environ.get("MI_ABLATE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir() and "MI_ABLATE_DATA" in os.environ:
        pytest.fail(f"MI_ABLATE_DATA names {folder}, which is not a folder; unset it to skip these tests.")
    if not folder.is_dir():
        pytest.skip("no third-party inputs: MI_ABLATE_DATA is not set and ../shared/data is not there")
    return folder


def random_state(
    n_layers: int, d_model: int, n_heads: int, d_mlp: int, n_ctx: int, vocab: int, norm: str | None, seed: int
) -> dict[str, Tensor]:
    """Every weight and bias non-zero, under HookedTransformer's names, in float64."""
    generator = torch.Generator().manual_seed(seed)
    d_head = d_model // n_heads

    def draw(*shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def normed(name: str) -> dict[str, Tensor]:
        if norm != "LN":
            return {}
        return {f"{name}.w": 1 + draw(d_model, scale=0.1), f"{name}.b": draw(d_model, scale=0.1)}

    state = {"embed.W_E": draw(vocab, d_model, scale=1.0), "pos_embed.W_pos": draw(n_ctx, d_model, scale=0.5)}
    for i in range(n_layers):
        block = f"blocks.{i}"
        state |= normed(f"{block}.ln1")
        state |= {f"{block}.attn.W_{k}": draw(n_heads, d_model, d_head, scale=0.5) for k in "QKV"}
        state |= {f"{block}.attn.W_O": draw(n_heads, d_head, d_model, scale=0.5)}
        state |= {f"{block}.attn.b_{k}": draw(n_heads, d_head) for k in "QKV"}
        state |= {f"{block}.attn.b_O": draw(d_model)}
        state |= normed(f"{block}.ln2")
        state |= {f"{block}.mlp.W_in": draw(d_model, d_mlp), f"{block}.mlp.b_in": draw(d_mlp)}
        state |= {f"{block}.mlp.W_out": draw(d_mlp, d_model), f"{block}.mlp.b_out": draw(d_model)}
    state |= normed("ln_final")
    return state | {"unembed.W_U": draw(d_model, vocab, scale=0.5), "unembed.b_U": draw(vocab)}


def tiny(
    *,
    dtype: torch.dtype = torch.float64,
    n_layers: int = 2,
    d_model: int = 16,
    n_heads: int = 2,
    d_mlp: int = 24,
    n_ctx: int = 12,
    vocab: int = 11,
    norm: str | None = "LN",
    seed: int = 0,
    weights: dict[str, Tensor] | None = None,
    **extra: Any,
) -> Any:
    """A random transformer: a HookedTransformer where there is one, a native TransformerBridge otherwise.

    ``weights`` replace the random ones of the same names.
    """
    arguments = {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": d_model // n_heads,
        "d_mlp": d_mlp,
        "n_ctx": n_ctx,
        "d_vocab": vocab,
        "act_fn": "gelu",
        "normalization_type": norm,
        "device": "cpu",
        "dtype": dtype,
        **extra,
    }
    state = random_state(n_layers, d_model, n_heads, d_mlp, n_ctx, vocab, norm, seed)
    state = {name: tensor.to(dtype) for name, tensor in (state | (weights or {})).items()}
    if has_hooked_transformer():
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = HookedTransformer(HookedTransformerConfig(init_weights=False, **arguments))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[name])
    else:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

        model = TransformerBridge.boot_native(TransformerBridgeConfig(**arguments), device="cpu", dtype=dtype)
        model.load_state_dict(convert_tl_checkpoint(state, model.cfg), strict=True)
    return model.eval()


def random_gpt2(folder: Path, *, n_layers: int = 2, seed: int = 0) -> Any:
    """A random Hugging Face GPT-2 with non-zero biases, saved to ``folder``; 60 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=n_layers, n_head=2, n_embd=16, n_positions=32, n_ctx=32, vocab_size=60, bos_token_id=0, eos_token_id=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" not in name or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder)
    return model


def word_tokenizer(vocab: int) -> Any:
    """A stand-in tokenizer with the words w0 .. w{vocab-1}; padding is w1."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w0", pad_token="w1")


def gpt2_bridge() -> Any:
    """A TransformerBridge of a random GPT-2 with a stand-in tokenizer, made without a network."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        random_gpt2(Path(temporary))
        word_tokenizer(60).save_pretrained(temporary)
        bridge = TransformerBridge.boot_transformers(temporary, device="cpu")
    return bridge.eval()


FAMILIES: dict[str, dict[str, Any]] = {
    "standard": {},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 8},
    "alibi": {"positional_embedding_type": "alibi"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "parallel": {"parallel_attn_mlp": True},
    "attention only": {"attn_only": True},
    "norms after as well": {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
    "gated MLP, grouped heads": {"gated_mlp": True, "n_key_value_heads": 1, "normalization_type": "RMS"},
    "local attention": {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "local"]},
    "capped scores": {"attn_scores_soft_cap": 5.0},
}


def family(name: str) -> Any:
    """A random two-layer HookedTransformer of another architecture, in float64, biases not zero."""
    import transformer_lens as tl

    common = {"n_layers": 2, "d_model": 16, "n_ctx": 12, "d_head": 8, "n_heads": 2, "d_vocab": 11, "d_mlp": 24}
    common |= {"act_fn": "gelu", "dtype": torch.float64, "initializer_range": 0.5, "seed": 0, "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tl.HookedTransformer(tl.HookedTransformerConfig(**{**common, **FAMILIES[name]}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".b_" in key or key.endswith(".b"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


BRIDGE_FAMILIES = ("neox", "llama", "gemma2", "qwen2", "opt", "bloom")


def random_family(kind: str, folder: str | Path) -> None:
    """Save a random two-layer Hugging Face model of a family, no weight zero, with a stand-in tokenizer of 60 words."""
    import transformers as hf

    ends = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32, **ends}
    grouped = {**size, "num_key_value_heads": 1, "intermediate_size": 24}
    scales = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5}
    make = {
        "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**size, intermediate_size=24, rotary_pct=0.5)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**grouped, head_dim=8)),
        "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**grouped, head_dim=8)),
        "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**grouped, head_dim=8)),
        "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**grouped)),
        "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**grouped, **scales)),
        "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**grouped, num_local_experts=2)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped)),
        "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**size, ffn_dim=24, word_embed_proj_dim=16)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **ends)),
    }[kind]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        model.save_pretrained(folder)
    word_tokenizer(60).save_pretrained(folder)


def family_bridge(kind: str) -> Any:
    """A TransformerBridge of a random two-layer model of another family: rotary or ALiBi, RMSNorm, grouped heads ..."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        random_family(kind, folder)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
    return bridge.eval()


def loaded_family(kind: str, **arguments: Any) -> Any:
    """What `mi_ablate.load_model` makes of a random model of a family, or of GPT-2, in float64."""
    import mi_ablate

    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary) / "model"
        random_gpt2(folder) if kind == "gpt2" else random_family(kind, folder)
        return mi_ablate.load_model(folder, dtype=torch.float64, **arguments)


def tokens_for(model: Any, n: int = 6, length: int = 7, seed: int = 0) -> Tensor:
    """Random tokens ``[n length]``."""
    return torch.randint(0, model.cfg.d_vocab, (n, length), generator=torch.Generator().manual_seed(seed))


def logits_with(model: Any, tokens: Tensor, hooks: Any = (), **kw: Any) -> Tensor:
    """The logits under bare TransformerLens hooks."""
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=list(hooks), **kw)
