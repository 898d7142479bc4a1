"""The weight edit equals the hooks, over models and edits; and it fails where theory says that it must."""

from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch

import mi_ablate as mi
from mi_ablate import _writers
from mi_ablate._writers import fingerprint, parameters, tied, untie
from mi_ablate.weights import as_hooks
from models import family_bridge, gpt2_bridge, has_bridge, has_hooked_transformer, tiny, tokens_for

pytestmark = pytest.mark.compat

D = 16


def bakeable_edits(d: int) -> dict[str, mi.Intervention]:
    """One of each kind that declares itself bakeable, on a stream of width d."""
    s, vector = mi.Subspace.random(d, 3, seed=1), torch.linspace(-1, 1, d, dtype=torch.float64)
    return {
        "zero": mi.Ablate(s),
        "mean": mi.Ablate(s, vector),
        "half": mi.Ablate(s, strength=0.5),
        "half towards a mean": mi.Ablate(s, vector, strength=0.5),
        "reflect": mi.Ablate(s, strength=2.0),
        "keep": mi.Ablate(s, keep=True),
        "keep towards a mean": mi.Ablate(s, vector, keep=True),
        "everything towards a mean": mi.Ablate(None, vector, strength=0.3),
        "rotate": mi.Rotate(s[:2], 0.7),
        "rotate about a centre": mi.Rotate(s[:2], 0.7, centre=vector),
        "erase": mi.Erase(s.basis + 0.1, s.basis),
        "erase about a centre": mi.Erase(s.basis + 0.1, s.basis, vector),
        "erase, a gate each": mi.Erase(s.basis, s.basis, gate=torch.tensor([0.2, 1.0, 0.7])),
        "add": mi.Add(vector),
    }


EDITS = bakeable_edits(D)
S, VECTOR = mi.Subspace.random(D, 3, seed=1), torch.linspace(-1, 1, D, dtype=torch.float64)


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


AFFINE = [
    name for name in EDITS if name not in ("zero", "half", "reflect", "keep", "rotate", "erase", "erase, a gate each")
]
LEACE = mi.find.leace(
    torch.randn(60, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 1, torch.arange(60) % 2
).erase()


@pytest.mark.parametrize("name", [*EDITS, "leace"])
def test_an_edit_alone_is_the_edit_of_the_whole_stream(any_model, name):
    """The stream is the sum of what is written before the edit, under the edit; its constant is there once."""
    edit, tokens, last = EDITS.get(name, LEACE), tokens_for(any_model), mi.last_residual(any_model)
    written = {}

    def capture(x, hook):
        written[hook.name] = x.detach().clone()
        return x

    names = mi.writers(any_model)
    with torch.no_grad():
        hooks = [*[(n, capture) for n in names], *as_hooks(any_model, edit)]
        hooked = mi.collect(any_model, tokens, last, pos=None, hooks=hooks)[last]
    assert len(written) == len(names)
    assert torch.allclose(hooked, edit(sum(written.values())), atol=1e-11)
    with mi.baked(any_model, edit):
        baked = mi.collect(any_model, tokens, last, pos=None)[last]
    assert torch.allclose(baked, hooked, atol=1e-11)
    once_each = mi.collect(any_model, tokens, last, pos=None, hooks=edit.at(*names))[last]
    assert torch.allclose(once_each, hooked, atol=1e-11) == (name not in AFFINE and name != "leace")


def test_leace_alone_leaves_the_coordinates_of_its_centre(any_model):
    tokens, last = tokens_for(any_model), mi.last_residual(any_model)
    with mi.baked(any_model, LEACE):
        x = mi.collect(any_model, tokens, last, pos=None)[last]
    assert torch.allclose((x - LEACE.centre) @ LEACE.reader, torch.zeros(()).double(), atol=1e-11)


def test_an_affine_edit_of_a_users_own_is_asked_for_its_place(any_model):
    class Shift(mi.Intervention):
        laws = frozenset({"bakeable"})
        rank = 1

        def __call__(self, x, hook=None):
            return x + 1

    with pytest.raises(ValueError, match="is not linear, so written by every writer it is not the edit of the stream"):
        mi.bake_(any_model, Shift())
    assert mi.verify_baked(any_model, Shift().at("hook_embed"), tokens_for(any_model)) < 1e-12


def test_numbers_of_other_kinds_are_numbers(unchecked, any_model):
    import numpy as np

    tokens = tokens_for(any_model)
    for half in (np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)):
        edits = [mi.Ablate(S, strength=half), mi.Ablate(S, VECTOR, gate=half), mi.Add(VECTOR, half)]
        plain = [mi.Ablate(S, strength=0.5), mi.Ablate(S, VECTOR, gate=0.5), mi.Add(VECTOR, 0.5)]
        for one, other in zip(edits, plain):
            assert mi.verify_baked(any_model, one, tokens) < 1e-12
            with mi.baked(any_model, one):
                got = any_model(tokens)
            with mi.baked(any_model, other):
                assert torch.equal(got, any_model(tokens))


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
        pytest.skip("TransformerLens 2 has no bridge; a tied HookedTransformer is made by hand below")
    bridge = gpt2_bridge()
    with pytest.raises(ValueError, match="share their storage"):
        mi.bake_(bridge, mi.Ablate(S))
    hooks = mi.Ablate(S).at(*mi.writers(bridge)[1:])
    assert mi.verify_baked(bridge, hooks, tokens_for(bridge)) < 1e-4


def tied_models() -> dict[str, Callable[[], Any]]:
    """Models whose readout is their embedding, in float64."""

    def by_hand() -> Any:
        model = tiny(seed=3)
        model.unembed.W_U.data = model.embed.W_E.data.T
        return model

    models: dict[str, Callable[[], Any]] = {"by hand": by_hand} if has_hooked_transformer() else {}
    if has_bridge():
        models |= {"GPT-2": lambda: gpt2_bridge().double(), "OPT": lambda: family_bridge("opt").double()}
    return models


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("name", tied_models())
def test_untying_bakes_what_the_hooks_do_and_undo_ties_again(name):
    model = tied_models()[name]()
    tokens, before, readout = tokens_for(model), state_of(model), model.unembed.W_U.detach().clone()
    with torch.no_grad():
        clean = model(tokens)
    assert tied(model)
    assert mi.verify_baked(model, mi.Ablate(S), tokens, untie=True) < 1e-12
    assert mi.verify_baked(model, mi.Ablate(S, VECTOR), tokens, untie=True) < 1e-12
    assert tied(model), "verifying ties them again"
    undo = mi.bake_(model, mi.Ablate(S), untie=True)
    assert not tied(model)
    assert (model.embed.W_E.detach() @ S.basis).abs().max() < 1e-13
    assert torch.equal(model.unembed.W_U, readout)
    undo()
    assert tied(model)
    after = state_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        assert torch.equal(model(tokens), clean)


def test_untying_what_is_not_tied_changes_nothing(any_model):
    before = state_of(any_model)
    mi.bake_(any_model, mi.Ablate(S), untie=True)()
    assert all(torch.equal(before[k], v) for k, v in state_of(any_model).items())


def test_a_tie_of_an_unknown_kind_is_said():
    shared = torch.zeros(3, 4)

    class Unembed:
        @property
        def W_U(self):
            return shared.T

    class Model:
        cfg, hook_dict, embed, unembed = None, MappingProxyType({}), SimpleNamespace(W_E=shared), Unembed()

        def hooks(self, fwd_hooks=None): ...

        def __call__(self, *args, **kwargs): ...

    with pytest.raises(ValueError, match="tied in a way that this function does not know"):
        untie(Model())


@pytest.mark.parametrize("failing", [2, 5])
def test_a_failure_half_way_ties_again_and_restores_every_weight(failing):
    for make in tied_models().values():
        model = make()
        before = state_of(model)
        hooks = mi.Ablate(S).at(*mi.writers(model)) + mi.Rotate(S[:2], 0.3).at(mi.writers(model)[0])
        name, _ = hooks[failing]
        [bad] = mi.Erase(S.basis * 1e200, S.basis * 1e200).at(name)  # finite, but their product is not
        hooks[failing] = bad
        with pytest.raises(ValueError, match="weights that are NaN or infinite"):
            mi.bake_(model, hooks, untie=True)
        assert tied(model)
        assert all(torch.equal(before[k], v) for k, v in state_of(model).items())


# Norms kept


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.25, 2.0, 0.0])
def test_norms_kept_every_written_vector_keeps_its_length_and_loses_its_share(any_model, strength):
    direction = S[:1]
    r = direction.basis[:, 0]
    holders = [any_model.embed.W_E, any_model.pos_embed.W_pos]
    holders += [w for b in any_model.blocks for w in (b.attn.W_O, b.mlp.W_out)]
    before = [w.detach().clone() for w in holders]
    with mi.baked(any_model, mi.Ablate(direction, strength=strength), norms="kept"):
        for w, old in zip(holders, before):
            assert torch.allclose(w.norm(dim=-1), old.norm(dim=-1), atol=1e-13)
            along, u = old @ r, old - strength * (old @ r)[..., None] * r
            expected = (1 - strength) * along * old.norm(dim=-1) / u.norm(dim=-1)
            assert torch.allclose(w @ r, expected, atol=1e-13)
        bias = any_model.blocks[0].mlp.b_out.detach()
        assert (bias @ r).abs() < 1e-13 or strength != 1, "biases are edited, and not renormalised"
    assert all(torch.equal(w, old) for w, old in zip(holders, before))


def test_norms_kept_is_another_edit_than_the_hook_and_verify_says_so(any_model):
    tokens = tokens_for(any_model)
    assert mi.verify_baked(any_model, mi.Ablate(S), tokens, norms="kept") > 1e-2
    assert mi.verify_baked(any_model, mi.Ablate(S), tokens, norms="free") < 1e-12
    assert mi.verify_baked(any_model, mi.Ablate(S, strength=0), tokens, norms="kept") < 1e-12


def test_norms_kept_does_not_blow_up_vectors_that_are_removed_whole():
    model = tiny()
    with torch.no_grad():
        model.embed.W_E[3] = 5 * S.basis[:, 0] + S.basis[:, 2]
        model.embed.W_E[4] = 0
    with mi.baked(model, mi.Ablate(S), norms="kept"):
        assert not model.embed.W_E[3:5].any()
        assert torch.isfinite(model.embed.W_E).all()
    half = tiny(dtype=torch.bfloat16)
    with torch.no_grad():
        half.embed.W_E[3] = (5 * S.basis[:, 0]).bfloat16()
    with mi.baked(half, mi.Ablate(S), norms="kept"):
        assert not half.embed.W_E[3].any(), "what rounding left of it is no direction"


@pytest.mark.parametrize("name", [n for n in EDITS if n not in ("zero", "half", "reflect")])
def test_norms_kept_is_refused_where_it_means_nothing(any_model, name):
    with pytest.raises(ValueError, match="only zero-ablation of a subspace keeps the written vectors' norms"):
        mi.bake_(any_model, EDITS[name].at("hook_embed"), norms="kept")
    with pytest.raises(ValueError, match="norms='yes' must be 'free' or 'kept'"):
        mi.bake_(any_model, EDITS["zero"], norms="yes")


# What else the weights must survive


def test_padded_prompts_are_compared_on_their_real_tokens(any_model):
    tokens, mask = tokens_for(any_model), torch.ones(6, 7, dtype=torch.long)
    mask[:3, :2] = 0
    assert mi.verify_baked(any_model, mi.Ablate(S), tokens, attention_mask=mask) < 1e-12
    fewer = mi.Ablate(S).at(*mi.writers(any_model)[1:])
    assert mi.verify_baked(any_model, fewer, tokens, attention_mask=mask) < 1e-12


def test_half_precision_weights_are_edited_in_float64_and_rounded_once():
    model = tiny(dtype=torch.bfloat16)
    wide = model.blocks[0].mlp.W_out.detach().double()
    with mi.baked(model, mi.Ablate(S)):
        assert torch.equal(model.blocks[0].mlp.W_out, mi.Ablate(S)(wide).bfloat16())


def test_an_edit_that_is_not_finite_is_refused(any_model):
    before = state_of(any_model)
    too_large = mi.Add(VECTOR * 1e200, 1e200)  # finite, but their product is not
    with pytest.raises(ValueError, match="weights that are NaN or infinite"):
        mi.bake_(any_model, too_large.at("blocks.0.hook_mlp_out", "hook_embed"))
    assert all(torch.equal(before[k], v) for k, v in state_of(any_model).items())


def test_two_edits_in_a_row_are_undone_in_turn(any_model):
    before = state_of(any_model)
    first = mi.bake_(any_model, mi.Ablate(S))
    second = mi.bake_(any_model, mi.Add(VECTOR).at("hook_embed") + mi.Rotate(S[:2], 1.0).at("hook_embed"))
    second()
    first()
    assert all(torch.equal(before[k], v) for k, v in state_of(any_model).items())


@pytest.mark.parametrize("later", [mi.Ablate(mi.Subspace.random(D, 1, seed=9)), mi.Add(VECTOR).at("hook_embed")])
def test_undoing_in_the_wrong_order_is_refused_and_changes_nothing(any_model, later):
    before = state_of(any_model)
    first = mi.bake_(any_model, mi.Ablate(S))
    second = mi.bake_(any_model, later)
    both = state_of(any_model)
    with pytest.raises(RuntimeError, match="undo the later edit first"):
        first()
    assert all(torch.equal(both[k], v) for k, v in state_of(any_model).items())
    second()
    first()
    first()  # done already: nothing to do
    assert all(torch.equal(before[k], v) for k, v in state_of(any_model).items())


def test_edits_of_other_weights_are_undone_in_any_order(any_model):
    before = state_of(any_model)
    first = mi.bake_(any_model, mi.Ablate(S).at("blocks.0.hook_mlp_out"))
    second = mi.bake_(any_model, mi.Ablate(S).at("blocks.1.hook_mlp_out"))
    first()
    second()
    assert all(torch.equal(before[k], v) for k, v in state_of(any_model).items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_fingerprint_changes_with_any_coordinate_and_any_swap(dtype):
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = fingerprint(x)
    assert found == fingerprint(x.clone()) == fingerprint(x.T.contiguous().T)
    for i in range(35):
        other = x.flatten().clone()
        other[i] = -other[i]
        assert fingerprint(other.view(7, 5)) != found
    assert fingerprint(x.flip(0)) != found


def test_a_hook_that_is_attached_meanwhile_is_noticed(any_model):
    tokens = tokens_for(any_model)
    with mi.attached(any_model, mi.Ablate(S).at("blocks.0.hook_mlp_out")), torch.no_grad():
        any_model(tokens)
        with pytest.raises(ValueError, match="or a hook is attached"):
            mi.bake_(any_model, mi.Ablate(S))
    with mi.attached(any_model, mi.Ablate(None).at("blocks.1.hook_attn_out")), torch.no_grad():
        any_model(tokens)
        with pytest.raises(ValueError, match=r"What blocks\.1\.hook_attn_out sees is not what its weight writes"):
            mi.bake_(any_model, mi.Ablate(S))


def test_weights_that_write_nothing_are_no_hindrance():
    model = tiny()
    with torch.no_grad():
        for parameter in (model.blocks[0].mlp.W_out, model.blocks[0].mlp.b_out):
            parameter.zero_()
    assert mi.verify_baked(model, mi.Ablate(S), tokens_for(model)) < 1e-12
    assert mi.verify_baked(model, mi.Rotate(S[:2], 1.0, centre=VECTOR), tokens_for(model)) < 1e-12


def test_a_weight_that_is_made_anew_each_time_is_refused():
    """Some bridges build W_O from other parameters: writing to it would change nothing, and nobody would notice."""

    class Attention:
        W_O = property(lambda self: torch.ones(2, 8, D))

    class Model:
        cfg, hook_dict = SimpleNamespace(d_model=D), MappingProxyType({})
        blocks = (SimpleNamespace(attn=Attention()),)

        def hooks(self, fwd_hooks=None): ...

        def __call__(self, *args, **kwargs): ...

    with pytest.raises(
        ValueError, match=r"W_O behind blocks\.0\.hook_attn_out is made anew each time, so editing it does"
    ):
        parameters(Model(), "blocks.0.hook_attn_out")


def test_inputs_of_a_weight_that_do_not_fit_it_are_an_unknown_layout(any_model, monkeypatch):
    monkeypatch.setattr(_writers, "_entering", lambda name: "blocks.0.hook_resid_pre")
    with pytest.raises(
        ValueError, match=r"has 16 coordinates and the weight behind .* a layout that this function does"
    ):
        mi.bake_(any_model, mi.Ablate(S).at("blocks.0.hook_mlp_out"))
    monkeypatch.setattr(_writers, "_entering", lambda name: "blocks.0.hook_nowhere")
    with pytest.raises(
        ValueError, match=r"The model has no blocks\.0\.hook_nowhere, so what its weights write cannot be"
    ):
        mi.bake_(any_model, mi.Ablate(S).at("blocks.0.hook_mlp_out"))


def test_constant_target_is_one_addition():
    model = tiny()
    hooks = as_hooks(model, mi.Ablate(S, VECTOR))
    assert [name for name, hook in hooks if isinstance(hook.intervention, mi.Add)] == ["hook_embed"]
