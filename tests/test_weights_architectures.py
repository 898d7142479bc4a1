"""Baked weights equal hooks to 1e-12 in float64: every bakeable edit on every architecture, hooked both ways.

Where weights cannot equal hooks (a norm between weight and stream, experts, no bias to hold a constant), `bake_` says so.
"""

from functools import cache
from typing import Any

import pytest
import torch

import mi_ablate as mi
from mi_ablate._writers import parameters, scales
from models import (
    FAMILIES,
    family,
    family_bridge,
    gpt2_bridge,
    has_bridge,
    has_hooked_transformer,
    loaded_family,
    logits_with,
    tiny,
    tokens_for,
)
from test_weights import bakeable_edits

pytestmark = pytest.mark.compat

LOADED = ("gpt2", "neox", "llama", "opt")
"""What load_model makes of a folder: a HookedTransformer up to 3.9, a bridge on 4.x."""
HOOKED = ("rotary", "alibi", "shortformer", "parallel", "attention only", "gated MLP, grouped heads", "local attention")
BRIDGES = ("gpt2", "neox", "llama")


def names() -> list[str]:
    found = ["LayerNorm, biases", "no norm, biases", "toy"]
    found += [f"folder: {kind}{how}" for kind in LOADED for how in ("", ", folded")]
    found += [f"hooked: {kind}" for kind in HOOKED] if has_hooked_transformer() else []
    return found + ([f"bridge: {kind}" for kind in BRIDGES] if has_bridge() else [])


@cache
def model_of(name: str) -> Any:
    """The named model, in float64, weights as random as they come, readout its own."""
    kind = name.partition(": ")[2]
    if name == "LayerNorm, biases":
        return tiny()
    if name == "no norm, biases":
        return tiny(norm=None)
    if name == "toy":
        return mi.load_model("add97", dtype=torch.float64)
    if name.startswith("folder"):
        return loaded_family(kind.removesuffix(", folded"), process=kind.endswith(", folded"))
    if name.startswith("hooked"):
        return family(kind)
    return (gpt2_bridge() if kind == "gpt2" else family_bridge(kind)).double()


def without_bias(model: Any) -> bool:
    """Whether some writer has no bias to hold a constant."""
    blocks = [site for site in mi.writers(model) if site.startswith("blocks")]
    return any(parameters(model, site)[1] is None for site in blocks)


@pytest.mark.parametrize("name", names())
def test_every_bakeable_edit_gives_the_same_logits_as_weights_and_as_hooks(name: str) -> None:
    model = model_of(name)
    tokens = tokens_for(model, length=min(7, model.cfg.n_ctx))
    clean = logits_with(model, tokens)
    for kind, edit in bakeable_edits(model.cfg.d_model).items():
        assert "bakeable" in edit.laws
        adds = bool(edit(torch.zeros(model.cfg.d_model, dtype=torch.float64)).any())
        if adds and without_bias(model):  # alone, an edit adds its constant once, at the embedding
            with pytest.raises(ValueError, match="adds a constant, and this model has no bias there to hold it"):
                mi.bake_(model, edit.at(*mi.writers(model, layers=range(model.cfg.n_layers))))
        assert mi.verify_baked(model, edit, tokens, untie=True) < 1e-12, kind
        changed = logits_with(model, tokens, edit.at(*mi.writers(model)))
        assert (changed - clean).abs().max() > 1e-3 * clean.abs().max(), f"{kind} changes nothing"
    assert torch.equal(logits_with(model, tokens), clean), "the weights came back"


@pytest.mark.parametrize("name", names())
def test_each_architecture_needs_every_writer(name: str) -> None:
    """Leaving one out is another model; and there is none that `writers` does not know."""
    model = model_of(name)
    tokens = tokens_for(model, length=min(7, model.cfg.n_ctx))
    edit = mi.Ablate(mi.Subspace.random(model.cfg.d_model, 3, seed=1))
    hooks = edit.at(*mi.writers(model))
    every = logits_with(model, tokens, hooks)
    last = collect_last(model, tokens, hooks)
    assert edit.subspace.coords(last).abs().max() < 1e-9 * max(1, last.abs().max()), "something else writes there"
    for i, (site, _) in enumerate(hooks):
        with mi.baked(model, hooks[:i] + hooks[i + 1 :], untie=True), torch.no_grad():
            error = (model(tokens) - every).abs().max() / every.abs().max()
        assert error > 1e-5, f"{site} could be left out"


def collect_last(model: Any, tokens: torch.Tensor, hooks: mi._types.FwdHooks) -> torch.Tensor:
    site = mi.last_residual(model)
    return mi.collect(model, tokens, site, pos=None, hooks=hooks)[site]


@pytest.mark.parametrize("name", names())
def test_one_direction_a_layer_and_kept_norms_on_every_architecture(name: str) -> None:
    model = model_of(name)
    d, tokens = model.cfg.d_model, tokens_for(model, length=min(7, model.cfg.n_ctx))
    layers = range(model.cfg.n_layers)
    edits = {layer: mi.Ablate(mi.Subspace.random(d, 1, seed=layer)) for layer in layers}
    hooks = mi.per_layer(model, edits, strength=[1 - 0.3 * layer for layer in layers], embed=edits[0])
    assert mi.verify_baked(model, hooks, tokens, untie=True) < 1e-12
    assert mi.verify_baked(model, edits[0], tokens, untie=True, norms="kept") > 1e-6
    r = edits[0].subspace
    with mi.baked(model, edits[0], untie=True, norms="kept"):
        for site in mi.writers(model):
            weight, bias = parameters(model, site)
            assert (weight.detach() @ r.basis).abs().max() < 1e-12 * weight.detach().abs().max() * d
            assert bias is None or (bias.detach() @ r.basis).abs().max() < 1e-12 * d


def test_the_families_at_hand_are_all_covered() -> None:
    covered = {name.partition(": ")[2] for name in names() if name.startswith("hooked")}
    left = {"standard", "norms after as well", "capped scores"}
    assert not has_hooked_transformer() or covered | left == set(FAMILIES)


# Where hooks see a multiple of what the weights write


@pytest.mark.skipif(not has_bridge(), reason="TransformerLens 2 has no bridge, and knows these families by name only")
@pytest.mark.parametrize(("kind", "factor"), [("gemma", 4.0), ("gemma3", 4.0), ("neox", 1.0)])
def test_a_scaled_embedding_takes_a_constant_at_its_own_scale(kind: str, factor: float) -> None:
    """Gemma multiplies the embedding by the root of d after the weight: a vector written there would be 4 times as long."""
    model = family_bridge(kind).double()
    tokens, edit = tokens_for(model), mi.Add(torch.linspace(-1, 1, 16, dtype=torch.float64))
    assert scales(model, ["hook_embed"])["hook_embed"] == pytest.approx(factor, rel=1e-6)
    assert mi.verify_baked(model, edit.at("hook_embed"), tokens, untie=True) < 1e-12
    hooked = logits_with(model, tokens, edit.at("hook_embed"))
    tied = model.embed.W_E.data_ptr() == model.unembed.W_U.data_ptr()
    with mi.baked(model, mi.Ablate(mi.Subspace.random(16, 1), strength=0).at("hook_embed"), untie=True):
        assert tied == (kind != "neox")
        with torch.no_grad():
            model.embed.W_E.add_(edit.vector)
            raw = model(tokens)
    assert ((raw - hooked).abs().max() > 0.1) == (factor != 1), "the naive way is wrong where the scale is not 1"


@pytest.mark.skipif(not has_bridge(), reason="TransformerLens 2 has no bridge, and knows these families by name only")
def test_scales_between_weight_and_stream_leave_the_removal_exact() -> None:
    """Granite halves what attention and MLP write (here), Gemma scales its embedding: the linear part does not care."""
    for kind, site, factor in (("granite", "blocks.1.hook_attn_out", 0.5), ("gemma", "blocks.1.hook_mlp_out", 1.0)):
        model = family_bridge(kind).double()
        tokens, s = tokens_for(model), mi.Subspace.random(16, 2, seed=1)
        assert scales(model, [site])[site] == pytest.approx(factor, rel=1e-6)
        assert mi.verify_baked(model, mi.Ablate(s), tokens, untie=True) < 1e-12
        mean = torch.linspace(-1, 1, 16, dtype=torch.float64)
        assert mi.verify_baked(model, mi.Ablate(s, mean), tokens, untie=True) < 1e-6, "the scale is measured in float32"


# Where weights cannot equal hooks


def refused() -> dict[str, tuple[Any, str]]:
    """Models with something between a weight and the stream, and the first site where `bake_` meets it."""
    found = {}
    if has_hooked_transformer():
        found["hooked: norms after as well"] = (lambda: family("norms after as well"), "blocks.0.hook_attn_out")
        found["folder: bloom"] = (lambda: loaded_family("bloom"), "hook_embed")
    if has_bridge():
        for kind in ("gemma2", "gemma3", "olmo2"):
            found[f"bridge: {kind}"] = (lambda kind=kind: family_bridge(kind), "blocks.0.hook_attn_out")
        found["bridge: bloom"] = (lambda: family_bridge("bloom"), "hook_embed")
    return found


@pytest.mark.parametrize("name", refused())
def test_a_norm_between_weight_and_stream_is_found_and_refused(name: str) -> None:
    make, site = refused()[name]
    model = make()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    with pytest.raises(ValueError, match=rf"What {site} sees is not what its weight writes .* keep the hook"):
        mi.bake_(model, mi.Ablate(mi.Subspace.random(16, 1)), untie=True)
    for key, p in model.named_parameters():  # TransformerLens leaves BLOOM's unused W_pos uninitialised: NaN at times
        assert torch.allclose(before[key], p, rtol=0, atol=0, equal_nan=True), key


def test_a_norm_of_gain_1_is_found_too() -> None:
    """On one position it only scales what the weight writes; on several the factors differ."""
    if not has_hooked_transformer():
        pytest.skip("made from a HookedTransformer's configuration")
    model = family("norms after as well")
    with torch.no_grad():
        for block in model.blocks:
            block.ln1_post.w.fill_(1.0)
            block.ln2_post.w.fill_(1.0)
    for site in ("blocks.0.hook_attn_out", "blocks.1.hook_mlp_out"):
        with pytest.raises(ValueError, match="a norm lies between"):
            scales(model, [site])


def test_the_writers_that_are_free_of_a_norm_are_baked_all_the_same() -> None:
    """BLOOM has a norm after its embedding alone."""
    model = loaded_family("bloom")
    hooks = mi.Ablate(mi.Subspace.random(16, 2)).at(*mi.writers(model)[1:])
    assert mi.verify_baked(model, hooks, tokens_for(model)) < 1e-12


def test_refusing_is_right_the_weights_would_differ() -> None:
    """The orthogonalised weight leaves part of the direction behind its norm."""
    if not has_hooked_transformer():
        pytest.skip("made from a HookedTransformer's configuration")
    model, s = family("norms after as well"), mi.Subspace.random(16, 1)
    with torch.no_grad():
        for block in model.blocks:
            block.ln1_post.w.copy_(1 + 0.5 * torch.randn(16, dtype=torch.float64))
            block.attn.W_O.copy_(mi.Ablate(s)(block.attn.W_O))
            block.attn.b_O.copy_(mi.Ablate(s)(block.attn.b_O))
    out = mi.collect(model, tokens_for(model), "blocks.0.hook_attn_out")["blocks.0.hook_attn_out"]
    assert s.coords(out).abs().max() > 0.05 * out.norm(dim=-1).max()


@pytest.mark.skipif(not has_bridge(), reason="TransformerLens 2 has no bridge")
def test_experts_are_an_unsupported_layout() -> None:
    model = family_bridge("mixtral")
    with pytest.raises(ValueError, match=r"The model holds no W_out .* behind blocks.0.hook_mlp_out \(experts"):
        mi.bake_(model, mi.Ablate(mi.Subspace.random(16, 1)))
    assert mi.verify_baked(model, mi.Ablate(mi.Subspace.random(16, 1)).at("hook_embed"), tokens_for(model)) < 1e-5


def test_a_direction_of_another_width_is_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="acts on vectors of width 9; these have width 16"):
        mi.bake_(model, mi.Ablate(mi.Subspace.random(9, 1)))
