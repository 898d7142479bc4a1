"""Toys on every TransformerLens version, against a transformer written out here."""

import math
import sys

import pytest
import torch

from mi_ablate import toys
from mi_ablate.toys import ToyConfig
from mi_ablate.toys.forward import is_bias, parameter_shapes, trained_names
from mi_ablate.toys.stepper import initial_state
from mi_ablate.toys.tasks import all_tokens
from mi_ablate.toys.transformer import MixPattern, complete

pytestmark = pytest.mark.compat

SMALL = {"d_model": 16, "n_heads": 2, "d_mlp": 24}
ZHONG = SMALL | {"layout": "a b", "normalization": None, "attention": "bidirectional"}
NANDA = SMALL | {"layout": "a b =", "normalization": None, "biases": "mlp", "act_fn": "relu"}
CONFIGS = {
    "layernorm": ToyConfig(7, **SMALL),
    "nanda": ToyConfig(7, d_vocab_out=9, **NANDA),
    "rms": ToyConfig(7, ("add", "mul"), normalization="RMS", biases="none", act_fn="silu", **SMALL),
    "half": ToyConfig(7, act_fn="gelu_new", attention_coefficient=0.5, **ZHONG),
    "constant": ToyConfig(7, n_layers=3, attention_coefficient=0.0, **ZHONG),
}
ACTIVATIONS = {
    "relu": torch.relu,
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def random_state(config, seed=0):
    """Return a float64 state in which every trained bias and norm differs from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    state = initial_state(config, "nanda", seed)
    for name in trained_names(config):
        if state[name].ndim < 2 or is_bias(name):
            state[name] = state[name] + torch.randn(state[name].shape, generator=generator) * 0.3
    return {name: t.double() for name, t in state.items()}


def written_out(config, state, tokens):
    """Return the logits [n pos answers] of a toy: the oracle, in einsums, float64 and one head at a time."""
    c, w = config, state

    def norm(x, name):
        if c.normalization is None:
            return x
        if c.normalization == "LN":
            x = x - x.mean(-1, keepdim=True)
            return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".w"] + w[name + ".b"]
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".w"]

    x = w["embed.W_E"][tokens] + w["pos_embed.W_pos"]
    for block in (f"blocks.{i}." for i in range(c.n_layers)):
        h, out = norm(x, block + "ln1"), w[block + "attn.b_O"]
        for i in range(c.n_heads):
            q, k, v = (h @ w[f"{block}attn.W_{n}"][i] + w[f"{block}attn.b_{n}"][i] for n in "QKV")
            scores = q @ k.transpose(1, 2) / math.sqrt(c.d_head)
            if c.attention == "causal":
                scores = scores.masked_fill(torch.ones(c.n_ctx, c.n_ctx).triu(1).bool(), -math.inf)
            pattern = c.attention_coefficient * scores.softmax(-1) + (1 - c.attention_coefficient)
            out = out + pattern @ v @ w[block + "attn.W_O"][i]
        x = x + out
        hidden = norm(x, block + "ln2") @ w[block + "mlp.W_in"] + w[block + "mlp.b_in"]
        x = x + ACTIVATIONS[c.act_fn](hidden) @ w[block + "mlp.W_out"] + w[block + "mlp.b_out"]
    return norm(x, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_logits_are_those_of_the_written_out_transformer(name, dtype):
    config = CONFIGS[name]
    state, tokens = random_state(config), all_tokens(config)
    model = toys.build(config, state, dtype=dtype)
    logits = model(tokens)
    assert logits.dtype == dtype == model.cfg.dtype
    assert logits.shape == (len(tokens), config.n_ctx, config.n_answers)
    assert not model.training
    exact = dtype == torch.float64 and config.normalization != "RMS"  # a bridge's RMSNorm works in float32
    torch.testing.assert_close(
        logits.double(), written_out(config, state, tokens), rtol=0, atol=1e-12 if exact else 3e-5
    )


@torch.no_grad()
def test_unembedding_bias_is_loaded():
    config = CONFIGS["layernorm"]
    state, shift = random_state(config), torch.arange(7.0).double()
    moved = {**state, "unembed.b_U": state["unembed.b_U"] + shift}
    tokens = all_tokens(config)
    a, b = (toys.build(config, s, dtype=torch.float64)(tokens) for s in (state, moved))
    torch.testing.assert_close(b - a, shift.expand_as(a), rtol=0, atol=1e-13)


@torch.no_grad()
def test_seed_decides_and_global_random_state_stays():
    config, tokens = CONFIGS["nanda"], all_tokens(CONFIGS["nanda"])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (toys.build(config, seed=s)(tokens) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    started = toys.build(config, initial_state(config, "log", 1))
    assert torch.equal(first, started(tokens))


@torch.no_grad()
def test_state_is_copied_and_absent_biases_are_zero():
    config, tokens = CONFIGS["nanda"], all_tokens(CONFIGS["nanda"])
    state = {n: t.float() for n, t in random_state(config).items() if n in trained_names(config)}
    model = toys.build(config, state)
    before = model(tokens)
    state["embed.W_E"].zero_()
    assert torch.equal(before, model(tokens))
    assert all(t.eq(0).all() for n, t in complete(config, state).items() if n not in trained_names(config))


@torch.no_grad()
def test_mixed_pattern_is_permanent_and_last_before_the_users_hooks():
    config = CONFIGS["half"]
    tokens, seen = all_tokens(config), []

    def record(pattern, hook):
        seen.append(pattern)
        return pattern * 0

    model = toys.build(config, random_state(config))
    before = model(tokens)
    model.reset_hooks()
    assert torch.equal(before, model(tokens))
    edited = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", record)])
    assert not torch.allclose(before, edited)
    torch.testing.assert_close(seen[0].sum(-1), torch.full_like(seen[0].sum(-1), 0.5 + 0.5 * 2))
    assert torch.equal(before, model(tokens))
    model.reset_hooks(including_permanent=True)
    assert not torch.allclose(before, model(tokens))
    assert repr(MixPattern(0.5)) == "MixPattern(c=0.5)"


def test_a_plain_softmax_has_no_hook():
    model = toys.build(CONFIGS["nanda"])
    assert not model.hook_dict["blocks.0.attn.hook_pattern"].fwd_hooks


def test_weights_that_do_not_fit_are_all_listed(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens", None)  # nothing is built: the import would fail
    config = CONFIGS["nanda"]
    state = random_state(config)
    state["extra.W"] = state.pop("blocks.1.attn.W_Q")
    state["unembed.W_U"] = state["unembed.W_U"].T
    state["embed.W_E"] = state["embed.W_E"].long()
    with pytest.raises(ValueError, match="The weights do not fit a toy of modulus 7") as error:
        toys.build(config, state)
    for part in (
        "missing blocks.1.attn.W_Q [2, 16, 8]",
        "unknown extra.W [2, 16, 8]",
        "unembed.W_U is [9, 16], not [16, 9]",
        "embed.W_E is torch.int64, not floating",
        "parameter_shapes(config)",
    ):
        assert part in str(error.value)


def test_biases_that_should_stay_zero():
    config = CONFIGS["nanda"]
    state = random_state(config)
    state["blocks.0.attn.b_Q"] += 1
    with pytest.raises(ValueError, match=r"biases='mlp' says that blocks.0.attn.b_Q stay zero.*biases=.all."):
        toys.build(config, state)


def test_buffers_of_a_state_dict_are_dropped():
    config = CONFIGS["nanda"]
    state = random_state(config) | {
        "blocks.0.attn.mask": torch.ones(3, 3),
        "blocks.0.attn.IGNORE": torch.tensor(0.0),
    }
    assert list(complete(config, state)) == list(parameter_shapes(config))


def test_device_and_activation_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r'device "cuda:0" was asked for, but PyTorch sees 0 CUDA.*device="cpu"'):
        toys.build(CONFIGS["nanda"], device="cuda:0")
    with pytest.raises(ValueError, match="'gpu' is no PyTorch device"):
        toys.build(CONFIGS["nanda"], device="gpu")
    with pytest.raises(ValueError, match=r"dtype torch\.int64 cannot hold weights"):
        toys.build(CONFIGS["nanda"], dtype=torch.int64)
    with pytest.raises(ValueError, match="act_fn 'tanh' must be one of relu, gelu"):
        toys.build(ToyConfig(7, act_fn="tanh", **SMALL))
