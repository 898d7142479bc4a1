"""The weight edit equals the hooks, over models and edits; and it fails where theory says that it must."""

import pytest
import torch

import mi_ablate as mi
from mi_ablate.weights import as_hooks
from models import gpt2_bridge, has_bridge, tiny, tokens_for

pytestmark = pytest.mark.compat

D = 16
S = mi.Subspace.random(D, 3, seed=1)
VECTOR = torch.linspace(-1, 1, D, dtype=torch.float64)
EDITS = {
    "zero": mi.Ablate(S),
    "mean": mi.Ablate(S, VECTOR),
    "half": mi.Ablate(S, strength=0.5),
    "half towards a mean": mi.Ablate(S, VECTOR, strength=0.5),
    "reflect": mi.Ablate(S, strength=2.0),
    "keep": mi.Ablate(S, keep=True),
    "keep towards a mean": mi.Ablate(S, VECTOR, keep=True),
    "rotate": mi.Rotate(S[:2], 0.7),
    "rotate about a centre": mi.Rotate(S[:2], 0.7, centre=VECTOR),
    "erase": mi.Erase(S.basis + 0.1, S.basis, VECTOR),
    "add": mi.Add(VECTOR),
}


@pytest.fixture(scope="module", params=["LN", None])
def any_model(request):
    return tiny(norm=request.param)


@pytest.mark.parametrize("name", EDITS)
def test_baked_weights_equal_hooks(any_model, name):
    assert mi.verify_baked(any_model, EDITS[name], tokens_for(any_model)) < 1e-12


def test_baking_at_chosen_writers_equals_hooks_there(any_model):
    hooks = mi.Ablate(S, VECTOR).at("hook_embed", "blocks.1.hook_mlp_out") + mi.Rotate(S[:2], 1.0).at(
        "blocks.0.hook_attn_out"
    )
    assert mi.verify_baked(any_model, hooks, tokens_for(any_model)) < 1e-12


def test_undo_restores_every_weight_exactly(any_model):
    before = {k: v.clone() for k, v in any_model.state_dict().items()}
    undo = mi.bake_(any_model, mi.Ablate(S))
    assert any(not torch.equal(before[k], v) for k, v in any_model.state_dict().items())
    undo()
    assert all(torch.equal(before[k], v) for k, v in any_model.state_dict().items())


def test_mean_ablation_baked_equals_mean_ablation_of_the_stream(any_model):
    """A constant target is written once, at the embedding, and not once a writer."""
    tokens = tokens_for(any_model)
    stream = [n for p in ("resid_pre", "resid_mid", "resid_post") for n in mi.sites(any_model, p)]
    with torch.no_grad():
        with mi.attached(any_model, mi.Ablate(S, VECTOR).at(*stream)):
            hooked = any_model(tokens)
        with mi.baked(any_model, mi.Ablate(S, VECTOR)):
            weights = any_model(tokens)
    assert torch.allclose(hooked, weights, atol=1e-10)


@pytest.mark.parametrize("omitted", range(6))
def test_one_writer_omitted_is_another_model(any_model, omitted):
    tokens = tokens_for(any_model)
    hooks = mi.Ablate(S).at(*mi.writers(any_model))
    with torch.no_grad():
        with mi.attached(any_model, hooks):
            every = any_model(tokens)
        with mi.baked(any_model, hooks[:omitted] + hooks[omitted + 1 :]):
            fewer = any_model(tokens)
    assert (every - fewer).abs().max() > 1e-2 * every.abs().max()


def test_biases_are_part_of_the_edit(any_model):
    """Editing matrices alone, as many tools do, is not the same operation."""
    undo = mi.bake_(any_model, mi.Ablate(S))
    left = any_model.blocks[0].mlp.b_out.detach() @ S.basis
    undo()
    before = any_model.blocks[0].mlp.b_out.detach() @ S.basis
    assert left.abs().max() < 1e-14 < 1e-3 < before.abs().max()


def test_weights_come_back_when_a_block_raises(any_model):
    before = any_model.embed.W_E.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), mi.baked(any_model, mi.Ablate(S)):
        raise RuntimeError("inside")
    assert torch.equal(any_model.embed.W_E, before)


def test_nothing_changes_when_an_edit_fails_half_way(any_model):
    before = {k: v.clone() for k, v in any_model.state_dict().items()}
    wrong = mi.Ablate(S).at("hook_embed") + mi.Ablate(mi.Subspace.random(5, 2)).at("blocks.0.hook_mlp_out")
    with pytest.raises(ValueError, match="width"):
        mi.bake_(any_model, wrong)
    assert all(torch.equal(before[k], v) for k, v in any_model.state_dict().items())


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (mi.Ablate(S).at("hook_embed", pos=-1), "Keep the hook"),
        (mi.Ablate(S, torch.zeros(4, D)).at("hook_embed"), "depends on the input"),
        (mi.Ablate(S, gate=lambda x: x[..., :1]).at("hook_embed"), "depends on the input"),
        (mi.Ablate(S).at("blocks.0.hook_resid_post"), "is not a writer"),
        ([("hook_embed", lambda x, hook: x)], "only interventions can be baked"),
    ],
)
def test_what_weights_cannot_express_is_refused(any_model, hooks, message):
    with pytest.raises(ValueError, match=message):
        mi.bake_(any_model, hooks)


def test_tied_embeddings_are_refused():
    if not has_bridge():
        pytest.skip("TransformerLens 2 has no bridge, and a HookedTransformer never ties W_E and W_U")
    bridge = gpt2_bridge()
    with pytest.raises(ValueError, match="share their storage"):
        mi.bake_(bridge, mi.Ablate(S))
    hooks = mi.Ablate(S).at(*mi.writers(bridge)[1:])
    assert mi.verify_baked(bridge, hooks, tokens_for(bridge)) < 1e-4


def test_constant_target_is_one_addition():
    model = tiny()
    hooks = as_hooks(model, mi.Ablate(S, VECTOR))
    assert [name for name, hook in hooks if isinstance(hook.intervention, mi.Add)] == ["hook_embed"]
