"""What weight edits and hook sites get silently wrong, one test a symptom: the wrong way's size is measured, then ours.

Sizes are those of a two-layer random model (`tiny`), which exaggerates: of a trained model they are smaller, in the same
order. "off by" is the largest difference of logits over the largest logit.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Subspace
from mi_ablate._writers import parameters
from models import family, has_hooked_transformer, loaded_family, logits_with, tiny, tokens_for

D = 16
S = Subspace.random(D, 1, seed=1)
R = S.basis[:, 0]
ONES = torch.ones(D, dtype=torch.float64) / D**0.5


def off_by(got: Tensor, right: Tensor) -> float:
    return float((got - right).abs().max() / right.abs().max())


def orthogonalised(weight: Tensor, strength: float = 1.0) -> Tensor:
    """The textbook weight edit: W - s (W r) rᵀ along the last axis."""
    return weight - strength * (weight @ R.to(weight))[..., None] * R.to(weight)


def edited_by_hand(model: Any, names: list[str], biases: bool = True) -> Any:
    """A copy of the model with the named writers orthogonalised by the textbook formula."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            weight, bias = parameters(twin, name)
            weight.copy_(orthogonalised(weight))
            if bias is not None and biases:
                bias.copy_(orthogonalised(bias))
    return twin


# Which weights must be edited (5.1)


@pytest.mark.compat
@pytest.mark.parametrize(
    ("symptom", "edited", "biases", "at_least"),
    [
        ("embedding left out", lambda n: n != "hook_embed", True, 0.5),
        ("positional embedding left out", lambda n: n != "hook_pos_embed", True, 0.2),
        ("attention's output left out", lambda n: "attn_out" not in n, True, 0.5),
        ("MLP's output left out", lambda n: "mlp_out" not in n, True, 0.12),
        ("biases left out", lambda n: True, False, 0.06),
        ("attention and MLP alone, as most tools do", lambda n: n.startswith("blocks"), True, 0.5),
        ("from layer 1 on", lambda n: n.startswith("blocks.1"), True, 0.5),
    ],
)
def test_a_direction_that_comes_back_because_a_writer_was_left_out(
    model, tokens, symptom, edited, biases, at_least
) -> None:
    every = mi.writers(model)
    hooked = logits_with(model, tokens, Ablate(S).at(*every))
    assert off_by(logits_with(edited_by_hand(model, list(every)), tokens), hooked) < 1e-12, (
        "the formula itself is right"
    )
    wrong = edited_by_hand(model, [name for name in every if edited(name)], biases)
    assert off_by(logits_with(wrong, tokens), hooked) > at_least, symptom
    with mi.baked(model, Ablate(S)):
        assert off_by(logits_with(model, tokens), hooked) < 1e-12


# Which hook sites are the whole stream (5.2)


def at(model: Any, *patterns: str) -> list[str]:
    return [name for pattern in patterns for name in mi.sites(model, pattern)]


@pytest.mark.compat
def test_hook_sites_that_are_the_whole_stream_and_those_that_are_not(model, tokens) -> None:
    both = ["hook_embed", "hook_pos_embed"]
    complete = {
        "writers": [*both, *at(model, "attn_out", "mlp_out")],
        "embeddings, mid and post": [*both, *at(model, "resid_mid", "resid_post")],
        "pre and the outputs": at(model, "resid_pre", "attn_out", "mlp_out"),
    }
    part = {
        "outputs without the embedding": (at(model, "attn_out", "mlp_out"), 0.5),
        "post alone": (at(model, "resid_post"), 0.4),
        "mid alone": (at(model, "resid_mid"), 0.5),
        "pre alone: the last block's output is never cleaned": (at(model, "resid_pre"), 0.3),
        "embeddings alone": (both, 0.5),
    }
    right = logits_with(model, tokens, Ablate(S).at(*complete["writers"]))

    def logits(names: list[str]) -> Tensor:
        with mi.attached(model, Ablate(S).at(*names)), torch.no_grad():
            return model(tokens)

    for what, names in complete.items():
        assert off_by(logits(names), right) < 1e-12, what
    for what, (names, at_least) in part.items():
        assert off_by(logits(names), right) > at_least, what


@pytest.mark.skipif(not has_hooked_transformer(), reason="made from a HookedTransformer's configuration")
def test_parallel_blocks_have_no_mid_and_are_complete_with_pre_and_the_last_post() -> None:
    model = family("parallel")
    tokens = tokens_for(model)
    right = logits_with(model, tokens, Ablate(S).at(*mi.writers(model)))
    assert (
        off_by(logits_with(model, tokens, Ablate(S).at(*at(model, "resid_pre"), mi.last_residual(model))), right)
        < 1e-12
    )
    assert off_by(logits_with(model, tokens, Ablate(S).at(*at(model, "resid_pre"))), right) > 0.3
    with pytest.raises(KeyError, match="run attention and MLP in parallel have no point between them"):
        mi.sites(model, "resid_mid")


# Partial strength (5.3)


@pytest.mark.compat
def test_strength_a_half_on_the_stream_is_more_than_a_half(model, tokens) -> None:
    edit = Ablate(S, strength=0.5)
    assert mi.verify_baked(model, edit, tokens) < 1e-12
    stream = [*at(model, "resid_pre"), mi.last_residual(model)]
    with mi.baked(model, edit):
        weights = logits_with(model, tokens)
    assert off_by(logits_with(model, tokens, edit.at(*stream)), weights) > 0.05, "the removal compounds at each site"
    first, embeddings = "blocks.0.hook_resid_pre", ("hook_embed", "hook_pos_embed")

    def left(hooks: list) -> Tensor:
        return S.coords(mi.collect(model, tokens, first, hooks=hooks)[first])

    clean = left([])
    assert torch.allclose(left(edit.at(*embeddings)), 0.5 * clean, atol=1e-12)
    assert torch.allclose(left(edit.at(*embeddings, first)), 0.25 * clean, atol=1e-12), "once more on the stream"


# Precision (5.4)


def test_a_component_that_stays_because_the_edit_is_computed_in_bf16() -> None:
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    s = Subspace.random(64, 1, seed=2)
    r = s.basis[:, 0].bfloat16()
    before = (x.double() @ s.basis).norm()
    wrong = x - (x @ r)[:, None] * r
    stays = (wrong.double() @ s.basis).norm() / before
    assert stays > 2.5e-3
    ours = Ablate(s)(x)
    assert torch.equal(ours, Ablate(s)(x.float()).bfloat16()), "computed in float32 and rounded once"
    assert (ours.double() @ s.basis).norm() / before < 0.7 * stays, "what one rounding leaves"
    assert (Ablate(s)(x.float()).double() @ s.basis).norm() / before < 1e-6


def test_a_weight_edit_computed_in_bf16_leaves_more_than_one_rounding_does() -> None:
    model = tiny(dtype=torch.bfloat16)
    weight = model.blocks[0].mlp.W_out
    before = float((weight.detach().double() @ R).norm())
    wrong = orthogonalised(weight.detach())
    with mi.baked(model, Ablate(S)):
        ours = weight.detach().clone()
    once = float((ours.double() @ R).norm()) / before
    assert 0 < once < 2e-3, "storing it in bf16 leaves this much, whatever it is computed in"
    assert float((wrong.double() @ R).norm()) / before > 2 * once
    single = tiny(dtype=torch.float32)
    with mi.baked(single, Ablate(S)):
        assert float((single.blocks[0].mlp.W_out.detach().double() @ R).norm()) / before < 2e-7


def test_directions_removed_one_after_another_leave_part_of_the_first() -> None:
    """Two directions at cosine 0.8 (5.5): removing the second writes the first again."""
    a, b = torch.eye(D, dtype=torch.float64)[:2]
    b = 0.8 * a + 0.6 * b
    x = torch.randn(100, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    one_by_one = Ablate(Subspace.span(b))(Ablate(Subspace.span(a))(x))
    assert (one_by_one @ a).norm() / (x @ a).norm() > 0.3
    assert (Ablate(Subspace.span(torch.stack([a, b])))(x) @ a).abs().max() < 1e-14


# Norm-preserving edits (5.6)


@pytest.mark.parametrize(("spread", "stays"), [(0.0, 0.03), (0.2, 0.07), (0.5, 0.15)])
def test_rescaling_along_the_wrong_axis_brings_the_direction_back(spread, stays) -> None:
    """In TransformerLens's layout [in, d_model] each row is a written vector; scaling columns undoes the removal."""
    model = tiny(d_mlp=200)
    weight = model.blocks[0].mlp.W_out
    generator = torch.Generator().manual_seed(4)
    sizes = torch.exp(spread * torch.randn(D, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        weight.mul_(sizes)
    before = float((weight.detach() @ R).norm())
    u = orthogonalised(weight.detach())
    wrong = u * (weight.detach().norm(dim=0) / u.norm(dim=0))
    assert float((wrong @ R).norm()) / before > stays
    old = weight.detach().norm(dim=-1)
    with mi.baked(model, Ablate(S), norms="kept"):
        assert float((weight.detach() @ R).norm()) / before < 1e-14
        assert torch.allclose(weight.detach().norm(dim=-1), old, atol=1e-12)


def test_a_norm_preserving_edit_that_ignores_its_strength() -> None:
    """The faulty form splits w into direction and norm, removes all of r from the direction, and never asks how much."""
    model = tiny()
    weight = model.blocks[0].mlp.W_out
    old = weight.detach().clone()
    left = []
    for strength in (0.0, 0.25, 0.5, 1.0, -1.0):
        faulty = orthogonalised(old)
        faulty = faulty / faulty.norm(dim=-1, keepdim=True) * old.norm(dim=-1, keepdim=True)
        assert (faulty @ R).abs().max() < 1e-14, "gone, whatever the strength"
        with mi.baked(model, Ablate(S, strength=strength), norms="kept"):
            left.append(float((weight.detach() @ R).norm() / (old @ R).norm()))
    assert left[0] == pytest.approx(1, abs=1e-12)
    assert left[3] < 1e-14
    assert left[0] > left[1] > left[2] > left[3] < left[4]
    assert left[4] > 1


def test_a_householder_edit_that_ignores_its_scale_and_changes_no_magnitude() -> None:
    """A reflection onto -r leaves |r.x| as it was; `strength` says how far, and 2 is the reflection."""
    x = torch.randn(50, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    reflect = Ablate(S, strength=2)(x)
    assert torch.allclose((reflect @ R).abs(), (x @ R).abs(), atol=1e-13)
    for strength in (0.0, 0.3, 1.0, 1.7):
        assert torch.allclose(Ablate(S, strength=strength)(x) @ R, (1 - strength) * (x @ R), atol=1e-13)


# Normalisation layers (5.7)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_direction_with_a_share_of_all_ones_is_not_removed_for_a_layernorm(model, tokens, share) -> None:
    """What readers see of it stays to 0.45, 0.85 and 1.05 of what it was: the mean over coordinates leaks in."""
    u = Subspace.span(R - R.mean()).basis[:, 0]
    raw = Subspace.span(share * ONES + (1 - share**2) ** 0.5 * u)
    x = mi.collect(model, tokens, "blocks.1.hook_resid_pre", pos=None)["blocks.1.hook_resid_pre"].flatten(0, 1)
    x = x + 3 * ONES  # real streams have a mean over coordinates that is far from zero

    def seen(y: Tensor) -> float:
        return float(((y - y.mean(-1, keepdim=True)) @ u).norm())

    assert seen(Ablate(raw)(x)) > {0.3: 0.4, 0.6: 0.8, 0.9: 1.0}[share] * seen(x)
    assert seen(Ablate(mi.visible(model, raw))(x)) < 1e-12
    rms = tiny(norm=None)
    assert mi.visible(rms, raw) is raw, "where no mean is subtracted, the direction is right as it is"


def test_a_direction_read_after_the_gain_is_not_a_stream_direction() -> None:
    """A norm multiplies by its gain: what is measured behind it (or through folded weights) must be divided by it."""
    generator = torch.Generator().manual_seed(6)
    gain = torch.exp(torch.linspace(-1, 1, D, dtype=torch.float64))
    stream = torch.randn(200, D, dtype=torch.float64, generator=generator)
    concept = torch.arange(200) % 2 == 0
    stream[concept] += 2 * R

    def difference(x: Tensor) -> Tensor:
        return x[concept].mean(0) - x[~concept].mean(0)

    def stays(direction: Tensor) -> float:
        edited = Ablate(Subspace.span(direction))(stream)
        return float(difference(edited).norm() / difference(stream).norm())

    behind = difference(stream * gain)
    assert stays(behind) > 0.3
    assert stays(behind / gain) < 1e-12


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_folded_value_biases_are_edited_in_the_folded_model(kind) -> None:
    """Folding moves constants into b_O: the edit of one model's weights is not that of the other's, the hooks' effect is."""
    plain, folded = loaded_family(kind), loaded_family(kind, process=True)
    tokens = tokens_for(plain)
    assert mi.verify_baked(plain, Ablate(S), tokens) < 1e-12
    assert mi.verify_baked(folded, Ablate(S), tokens) < 1e-12
    here, there = plain.blocks[0].attn.b_O.detach(), folded.blocks[0].attn.b_O.detach()
    assert (here - there).abs().max() > 1e-2, "the biases differ, so editing one and exporting the other is wrong"


@pytest.mark.skipif(not has_hooked_transformer(), reason="HookedTransformer centres its writing weights")
def test_centred_writing_weights_hold_nothing_along_all_ones() -> None:
    folded = loaded_family("gpt2", process=True)
    plain = loaded_family("gpt2")
    along = [float((model.blocks[0].mlp.W_out.detach() @ ONES).abs().max()) for model in (folded, plain)]
    assert along[0] < 1e-6 < 0.1 < along[1]
    tokens = tokens_for(plain)

    def apart(subspace: Subspace) -> float:
        """The largest difference of log-probabilities between the two models, both ablated; they are processed in float32."""
        hooks = Ablate(subspace).at(*mi.writers(plain))
        a, b = (logits_with(model, tokens, hooks).log_softmax(-1) for model in (plain, folded))
        return float((a - b).abs().max())

    assert apart(mi.visible(plain, S)) < 1e-5, "a visible direction means the same in both"
    assert apart(S) > 0.05, "a raw one does not"


# Tied embeddings (5.8)


def test_a_tied_readout_changes_with_the_embedding() -> None:
    if not has_hooked_transformer():
        pytest.skip("tied by hand")
    model = tiny(seed=3)
    model.unembed.W_U.data = model.embed.W_E.data.T
    tokens = tokens_for(model)
    hooked = logits_with(model, tokens, Ablate(S).at(*mi.writers(model)))
    every = [parameters(model, name) for name in mi.writers(model)]
    before = [(w.detach().clone(), None if b is None else b.detach().clone()) for w, b in every]
    with torch.no_grad():
        for weight, bias in every:
            weight.copy_(orthogonalised(weight))
            if bias is not None:
                bias.copy_(orthogonalised(bias))
    naive = off_by(logits_with(model, tokens), hooked)
    with torch.no_grad():
        for (weight, bias), (w, b) in zip(every, before):
            weight.copy_(w)
            if bias is not None:
                bias.copy_(b)
    assert naive > 0.01
    with pytest.raises(ValueError, match="untie=True gives W_U a copy of its own"):
        mi.bake_(model, Ablate(S))
    assert mi.verify_baked(model, Ablate(S), tokens, untie=True) < 1e-12


# Faults read in other tools (section 1)


def test_an_edit_function_that_changes_its_input_in_place() -> None:
    x = torch.randn(5, D)
    kept = x.clone()

    def faulty(y: Tensor) -> Tensor:
        y -= (y @ R.float())[:, None] * R.float()
        return y

    assert not torch.equal(faulty(x.clone()), kept)
    y = x.clone()
    faulty(y)
    assert not torch.equal(y, kept), "the caller's tensor is gone"
    for edit in (Ablate(S), mi.Rotate(Subspace.random(D, 2), 1.0), mi.Erase(S.basis, S.basis), mi.Add(R)):
        edit(x)
        assert torch.equal(x, kept)


def test_an_order_for_layer_1_that_also_edits_layers_10_to_19() -> None:
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(12)]
    assert len([name for name in names if name.startswith("blocks.1")]) == 3, "a prefix without its final dot"
    model = tiny(n_layers=12, d_model=4, n_heads=1, d_mlp=4)
    s = Subspace.random(4, 1)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    hooks = mi.per_layer(model, {1: Ablate(s)})
    assert [name for name, _ in hooks] == ["blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
    assert mi.writers(model, layers=1) == ("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out")
    with mi.baked(model, hooks):
        changed = {key for key, p in model.named_parameters() if not torch.equal(before[key], p)}
    assert {key.split(".")[1] for key in changed} == {"1"}


def test_a_negative_layer_is_counted_from_the_end_and_not_silently_another() -> None:
    model = tiny(n_layers=3)
    assert [n for n, _ in mi.per_layer(model, {-1: Ablate(S)}, site="resid_post")] == ["blocks.2.hook_resid_post"]
    assert mi.writers(model, layers=-1) == mi.writers(model, layers=2)
    with pytest.raises(IndexError, match="edits names layer -4; the model has 3"):
        mi.per_layer(model, {-4: Ablate(S)})


@pytest.mark.compat
def test_a_context_manager_that_keeps_references_does_not_restore(model, tokens) -> None:
    clean = logits_with(model, tokens)
    weights = [model.embed.W_E, model.blocks[0].mlp.W_out]
    real = [w.detach().clone() for w in weights]
    references = list(weights)  # the faulty way: names for the same storage
    with torch.no_grad():
        for w in weights:
            w.copy_(orthogonalised(w))
        for w, kept in zip(weights, references):
            w.copy_(kept)
    assert not torch.equal(weights[0], real[0]), "restoring from references restores nothing"
    with torch.no_grad():
        for w, kept in zip(weights, real):
            w.copy_(kept)
    with mi.baked(model, Ablate(S)):
        assert off_by(logits_with(model, tokens), clean) > 0.05
    assert torch.equal(logits_with(model, tokens), clean)


def test_a_model_of_one_layer_has_layers_too() -> None:
    """Rules such as "drop the last fifth" or "from layer 1 on" leave a one-layer model without any (5.10)."""
    model = tiny(n_layers=1)
    assert int(0.8 * model.cfg.n_layers) == 0
    strengths = mi.layer_kernel(1, distance=0.5, position=0.8)
    hooks = mi.per_layer(model, Ablate(S), strength=strengths, embed=Ablate(S))
    assert [name for name, _ in hooks] == list(mi.writers(model))
    assert mi.verify_baked(model, hooks, tokens_for(model)) < 1e-12
