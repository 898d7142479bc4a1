"""What an edit does to attention, and where tokens lie along a direction: planted truth, converses, controls, errors."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate import Ablate, Add, Erase, Rotate, Subspace, along, heads_changed
from mi_ablate.looking import NotDrawn, covariance_drawn, next_token
from models import family, has_bridge, has_hooked_transformer, logits_with, tiny, tokens_for, word_tokenizer

FIRST, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
PATTERNS = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
S = Subspace.random(16, 2)


def patterns(model, tokens, hooks=()):
    """The patterns [n head query key] of both layers, read by bare hooks of our own."""
    seen = {}
    reads = [(name, lambda x, hook, name=name: seen.update({name: x.detach().clone()})) for name in PATTERNS]
    logits_with(model, tokens, [*hooks, *reads])
    return torch.stack([seen[name] for name in PATTERNS])


@pytest.mark.compat
def test_moved_is_the_total_variation_of_the_patterns(model, tokens) -> None:
    hooks = Ablate(S).at(FIRST)
    found = heads_changed(model, tokens, hooks, controls={})
    far = (patterns(model, tokens, hooks) - patterns(model, tokens)).abs().sum(-1) / 2
    assert found.heads == ((0, 0), (0, 1), (1, 0), (1, 1))
    torch.testing.assert_close(found.moved, far.mean((1, 3)).flatten().double())
    torch.testing.assert_close(found.most, far.amax((1, 3)).flatten().double())
    assert found.moved[:2].tolist() == [0, 0], "an edit after the first layer's heads cannot move them"
    assert found.top(4) == tuple(sorted([(1, 0), (1, 1)], key=lambda head: -found.moved[2 + head[1]]))
    assert found.note == ""


@pytest.mark.compat
def test_strength_0_moves_nothing_and_strength_1_moves_something(model, tokens) -> None:
    still = heads_changed(model, tokens, Ablate(S, strength=0.0).at("hook_embed"), draws=2)
    assert still.moved.abs().max() == 0
    assert still.controls["covariance"].abs().max() == 0, "a control has the strength of its treatment"
    assert still.top(4) == ()
    assert heads_changed(model, tokens, Ablate(S).at("hook_embed"), controls={}).moved.min() > 0


@pytest.mark.compat
def test_a_planted_head_is_the_one_that_moves(model, tokens) -> None:
    d_head = model.cfg.d_head
    hooks = Ablate(None).at("blocks.1.attn.hook_q", head=1)
    found = heads_changed(model, tokens, hooks)
    assert found.top(4) == ((1, 1),)
    assert found.controls == {}
    assert found.note == "No control: the edit at blocks.1.attn.hook_q has no subspace to replace."
    planted = Ablate(Subspace.random(d_head, 1)).at("blocks.0.attn.hook_k", head=0)
    moved = heads_changed(model, tokens, planted, draws=2)
    assert moved.moved[0] > 0
    assert moved.moved[1] == 0
    assert (moved.controls["covariance"][:, 0] > 0).all()
    assert (moved.controls["covariance"][:, 1] == 0).all(), "the control edits the same head alone"


def test_batches_groups_of_layers_and_masks_change_nothing(model, tokens, monkeypatch) -> None:
    hooks = Ablate(S).at(FIRST, pos=-1)
    whole = heads_changed(model, tokens, hooks, draws=2)
    monkeypatch.setattr("mi_ablate.looking._PATTERNS", 1)
    seen: list[tuple[int, int]] = []
    parts = heads_changed(model, tokens, hooks, draws=2, batch_size=4, progress=lambda *at: seen.append(at))
    torch.testing.assert_close(parts.moved, whole.moved)
    torch.testing.assert_close(parts.most, whole.most)
    torch.testing.assert_close(parts.controls["covariance"], whole.controls["covariance"])
    assert all(a[0] < b[0] for a, b in pairwise(seen))
    assert seen[-1] == (len(tokens) * 2 * 4, len(tokens) * 2 * 4), "one row and one layer a pass, clean and three edits"


@pytest.mark.compat
def test_padding_is_not_counted(model, tokens) -> None:
    short = torch.cat([tokens, torch.full((len(tokens), 3), 5)], 1)
    mask = torch.cat([torch.ones_like(tokens), torch.zeros(len(tokens), 3, dtype=torch.int64)], 1)
    hooks = Ablate(S).at(FIRST, pos=-1)
    bare, masked = (
        heads_changed(model, t, hooks, draws=2, attention_mask=m) for t, m in ((tokens, None), (short, mask))
    )
    torch.testing.assert_close(masked.moved, bare.moved)
    torch.testing.assert_close(masked.controls["covariance"], bare.controls["covariance"])
    one = along(model, short, S, "resid_post", attention_mask=mask)
    torch.testing.assert_close(one[..., :7], along(model, tokens, S, "resid_post"))
    assert one[..., 7:].isnan().all()


def test_the_controls_draws_have_the_covariance_of_the_activations(model) -> None:
    many = tokens_for(model, n=40)
    hooks = Ablate(S).at(FIRST, pos=-1)
    draws = 800
    control = covariance_drawn(model, many, hooks, draws=draws)
    assert control.name == "covariance of 40 vectors where the edit acts, 40 prompts"
    acts = mi.collect(model, many, FIRST, pos=-1)[FIRST]
    q = torch.stack([control(hooks, seed)[0][1].intervention.subspace.basis for seed in range(draws)])
    ours = (q.transpose(1, 2) @ torch.cov(acts.T) @ q).diagonal(dim1=1, dim2=2).sum(1) / torch.cov(acts.T).trace()
    theirs = mi.controls.covariance(acts)
    other = [
        mi.controls.Moments().update(acts).share(theirs(hooks, seed)[0][1].intervention.subspace) for seed in range(200)
    ]
    assert abs(float(ours.mean()) - sum(other) / len(other)) < 0.03, (
        "the same share of the variance as the package's own"
    )
    assert abs(float(ours.mean()) - 2 / 16) > 0.1, "and not that of isotropic directions"


@pytest.mark.parametrize(
    "edit",
    [Ablate(S), Add(torch.ones(16)), Rotate(S, 0.5), Erase(S.basis, S.basis)],
    ids=lambda edit: type(edit).__name__,
)
def test_every_edit_with_a_direction_has_its_control(model, tokens, edit) -> None:
    found = heads_changed(model, tokens, edit.at(FIRST), draws=3)
    assert found.controls["covariance"].shape == (3, 4)
    assert found.controls["covariance"].std(0)[2:].min() > 0, "the draws differ"
    assert found.note == "covariance of 42 vectors where the edit acts, 6 prompts"


def test_too_few_vectors_widen_to_all_positions_and_then_there_is_no_control(model, tokens) -> None:
    found = heads_changed(model, tokens[:1], Ablate(S).at(FIRST, pos=-1), draws=2)
    assert found.note == "covariance of 7 vectors at all positions, 1 prompt"
    none = heads_changed(model, tokens[:1, :2], Ablate(S).at(FIRST, pos=-1))
    assert none.controls == {}
    assert "are 2, for an edit of rank 2; give more prompts" in none.note
    same = tokens[:1, :1].repeat(4, 5)
    with pytest.raises(NotDrawn, match="the vectors at hook_embed are the same"):
        covariance_drawn(model, same, Ablate(S).at("hook_embed"))


def test_the_table_is_sorted_and_the_words_short(model, tokens) -> None:
    found = heads_changed(model, tokens, Ablate(S).at(FIRST), draws=2, layers=[0, -1])
    rows = found.table()
    assert [row["moved"] for row in rows] == sorted((row["moved"] for row in rows), reverse=True)
    assert set(rows[0]["covariance"]) == {"mean", "low", "high"}
    assert repr(found).startswith(f"HeadsChanged(4 heads, most {rows[0]['head']}: ")
    assert "<td>1.0</td>" in found._repr_html_()
    assert heads_changed(model, tokens, Ablate(S).at(FIRST), layers=1, controls={}).heads == ((1, 0), (1, 1))


@pytest.mark.compat
def test_along_is_the_coordinate_at_every_site(model, tokens) -> None:
    found = along(model, tokens, S, [FIRST, LAST], batch_size=4)
    acts = mi.collect(model, tokens, [FIRST, LAST], pos=None)
    for i, name in enumerate((FIRST, LAST)):
        torch.testing.assert_close(found[:, i], acts[name] @ S.basis[:, 0])
    torch.testing.assert_close(along(model, tokens[2], S, [FIRST, LAST]), found[2])
    torch.testing.assert_close(along(model, tokens, S[1], FIRST)[:, 0], acts[FIRST] @ S.basis[:, 1])


@given(strength=st.floats(0, 2))
def test_removing_part_of_a_direction_leaves_the_rest_of_its_coordinate(strength: float) -> None:
    model = tiny()
    tokens = tokens_for(model, n=2)
    clean = along(model, tokens, S, FIRST)
    edited = along(model, tokens, S, FIRST, hooks=Ablate(S, strength=strength).at(FIRST))
    torch.testing.assert_close(edited, (1 - strength) * clean)


@pytest.mark.compat
def test_the_next_token_is_the_models(model, tokens) -> None:
    hooks = Ablate(S).at(LAST)
    for edits in ((), hooks):
        wanted = logits_with(model, tokens[:1], edits)[0, -1].softmax(-1)
        torch.testing.assert_close(next_token(model, tokens[0], edits), wanted)
    assert not torch.equal(next_token(model, tokens[0]), next_token(model, tokens[0], hooks))


def test_bad_input(model, tokens) -> None:
    with pytest.raises(ValueError, match="heads_changed needs at least one hook"):
        heads_changed(model, tokens, [])
    with pytest.raises(IndexError, match="Layer 7 is out of range: the model has 2, so 0 to 1"):
        heads_changed(model, tokens, Ablate(S).at(FIRST), layers=[0, 7])
    with pytest.raises(ValueError, match=r"acts on vectors of width 8; these have width 16"):
        along(model, tokens, Subspace.random(8, 1))
    with pytest.raises(
        ValueError, match=r"attn.hook_z has several vectors a position; along reads the residual stream"
    ):
        along(model, tokens, Subspace.random(8, 1), "z")
    with pytest.raises(
        ValueError, match=r"to at blocks.0.hook_resid_post has one value for each of 3 examples; there are 6"
    ):
        heads_changed(model, tokens, Ablate(S, torch.zeros(3, 16)).at(FIRST))
    with pytest.raises(ValueError, match="model has positions for 12"):
        heads_changed(model, tokens.repeat(1, 2), Ablate(S).at(FIRST))


def test_broken_weights_are_named() -> None:
    broken = tiny()
    with torch.no_grad():
        broken.blocks[1].attn.W_K.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"Queries at blocks.1.attn.hook_pattern attend to nothing: their scores"):
        heads_changed(broken, tokens_for(broken), Ablate(S).at(FIRST), controls={})


def test_a_bridge_that_ignores_edits_of_patterns_is_refused() -> None:
    if not has_hooked_transformer() or not has_bridge():
        pytest.skip("only TransformerLens 3.x has a native bridge that ignores them")
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "n_ctx": 12, "d_vocab": 11}
    native = TransformerBridge.boot_native(TransformerBridgeConfig(**shape, act_fn="gelu"), device="cpu").eval()
    tokens = tokens_for(native, n=2)
    with pytest.raises(ValueError, match=r"This model ignores edits at blocks.1.attn.hook_pattern, as a native bridge"):
        heads_changed(native, tokens, Ablate(None).at("blocks.1.attn.hook_pattern"), controls={})
    assert heads_changed(native, tokens, Ablate(S).at(FIRST), controls={}).moved[2:].min() > 0


@pytest.mark.skipif(not has_hooked_transformer(), reason="families are HookedTransformers")
@pytest.mark.parametrize("name", ["rotary", "parallel", "attention only", "gated MLP, grouped heads"])
def test_other_architectures(name: str) -> None:
    model = family(name)
    tokens = tokens_for(model)
    found = heads_changed(model, tokens, Ablate(S).at("hook_embed"), draws=2)
    assert found.moved.min() > 0
    assert along(model, tokens[0], S).shape == (2, 7)
    pattern = Ablate(None).at("blocks.1.attn.hook_pattern", head=0)
    moved = heads_changed(model, tokens, pattern).moved
    torch.testing.assert_close(moved, torch.tensor([0, 0, 0.5, 0], dtype=torch.float64))


def test_padding_that_the_model_masks_itself_does_not_count() -> None:
    if not has_hooked_transformer():
        pytest.skip("a bridge derives no mask from tokens")
    model, hooks = tiny(vocab=60), Ablate(S).at("hook_embed")
    model.tokenizer = word_tokenizer(60)
    model.tokenizer.padding_side = "left"
    tokens = 2 + tokens_for(model) % 58
    tokens[2:, :3] = 1
    told = heads_changed(model, tokens, hooks, attention_mask=(tokens != 1).long(), draws=2)
    derived = heads_changed(model, tokens, hooks, draws=2)
    torch.testing.assert_close(derived.moved, told.moved)
    assert derived.note == told.note


def test_a_control_is_drawn_at_least_once(model, tokens) -> None:
    with pytest.raises(ValueError, match="draws=0: the control of an edit is drawn at least once"):
        heads_changed(model, tokens, Ablate(S).at(FIRST), draws=0)
