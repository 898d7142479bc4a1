"""Gated erasure: directional routing's identities, a gate a head read from another site, and its way through a file."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Erase, Subspace, attached, collect, gated
from models import has_hooked_transformer, logits_with

D, K, N, P = 8, 3, 5, 4
Z, PRE, Z_OUT = "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"
S = Subspace.random(16, 2, seed=4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(k: int = K, d: int = D, seed: int = 1) -> Tensor:
    """Unit directions ``[d k]``, not orthogonal."""
    found = draw(d, k, seed=seed)
    return found / found.norm(dim=0)


def test_gate_0_is_the_identity_to_the_bit() -> None:
    x, d = draw(N, P, D), units()
    for gate in (0, 0.0, torch.zeros(K), torch.zeros(N, K), lambda y: torch.zeros(K)):
        assert torch.equal(Erase(d, d, gate=gate)(x), x)


def test_gate_1_of_orthonormal_directions_is_ablation() -> None:
    s, x = Subspace.random(D, K, seed=2), draw(N, P, D)
    for gate in (None, 1, torch.ones(K), torch.ones(N, P, K), lambda y: torch.ones(K)):
        assert torch.allclose(Erase(s.basis, s.basis, gate=gate)(x), Ablate(s)(x), atol=1e-14)


def test_one_direction_is_directional_ablation_of_that_strength() -> None:
    d, x, r = units(1), draw(N, P, D), draw(N, P, 1, seed=3).sigmoid()
    assert torch.allclose(Erase(d, d, gate=r)(x), Ablate(Subspace.span(d.T), strength=r)(x), atol=1e-14)


@given(seed=st.integers(0, 1000))
def test_the_sum_over_directions_as_published(seed: int) -> None:
    d, x, r = units(seed=seed), draw(N, P, D, seed=seed), draw(N, P, K, seed=seed + 1).sigmoid()
    expected = x.clone()
    for k in range(K):
        expected -= r[..., k : k + 1] * (x @ d[:, k])[..., None] * d[:, k]
    assert torch.allclose(Erase(d, d, gate=r)(x), expected, atol=1e-13)


def test_gate_1_of_directions_at_an_angle_does_not_remove_them() -> None:
    """Directional routing's directions are not orthonormal: at cosine 0.8 the sum removes each of them 1.8 times."""
    d = torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    left = Erase(d, d, gate=1)(x) @ d[:, 0]
    assert left.item() == pytest.approx(-0.64)
    assert (Ablate(Subspace.span(d.T))(x) @ d).abs().max() < 1e-14


def test_a_gate_that_does_not_fit_says_so() -> None:
    with pytest.raises(ValueError, match=r"gate of shape \[2\] does not fit activations \[5, 4, 3\]"):
        Erase(units(), units(), gate=torch.ones(2))(draw(N, P, D))


def routed(directions: Tensor, router: Tensor) -> mi._types.FwdHooks:
    """Directions ``[heads d_head K]`` gated by a linear router ``[d_model heads K]`` of the mean over positions."""
    hooks = []
    for head, d in enumerate(directions):

        def gate(x: Tensor, head: int = head) -> Tensor:
            return torch.sigmoid(torch.einsum("bd,dk->bk", x.mean(1), router[:, head]))

        hooks += gated(Erase(d, d).at(Z, head=head), PRE, gate)
    return hooks


@pytest.mark.compat
def test_a_router_a_layer_gates_each_heads_own_directions(model, tokens) -> None:
    directions = torch.stack([units(2, seed=7), units(2, seed=8)])
    router = 0.1 * draw(16, 2, 2, seed=9)
    clean = collect(model, tokens, [Z, PRE], pos=None)
    got = collect(model, tokens, Z, pos=None, hooks=routed(directions, router))[Z]
    r = torch.sigmoid(torch.einsum("bd,dhk->bhk", clean[PRE].mean(1), router))
    seen = torch.einsum("bphe,hek->bphk", clean[Z], directions) * r[:, None]
    expected = clean[Z] - torch.einsum("bphk,hek->bphe", seen, directions)
    assert torch.allclose(got, expected, atol=1e-12)
    assert (got - clean[Z]).abs().max() > 0.1
    assert 0.05 < r.min() < 0.5 < r.max(), "a router that is open or shut for all prompts tests nothing"


def test_batches_and_gradients_reach_the_router(model, tokens) -> None:
    directions, router = torch.stack([units(2), units(2, seed=2)]), (0.1 * draw(16, 2, 2, seed=9)).requires_grad_()
    with attached(model, routed(directions, router)):
        model(tokens).pow(2).sum().backward()
    assert router.grad is not None
    assert router.grad.abs().min() > 0
    model.zero_grad(set_to_none=True)
    hooks = routed(directions, router.detach())
    whole = mi.effect(model, tokens, hooks, mi.kl(), controls={})
    parts = mi.effect(model, tokens, hooks, mi.kl(), controls={}, batch_size=2)
    assert torch.allclose(whole.edited, parts.edited, atol=1e-12)


@pytest.mark.compat
def test_a_gate_of_an_earlier_pass_is_never_used(model, tokens) -> None:
    """A reader after the edited site raises in every pass, not in the first one alone."""
    late = gated(Ablate(S).at(PRE), "blocks.1.hook_resid_post", lambda x: x[..., :1])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="has not fired yet: it must lie before the edited sites"):
            logits_with(model, tokens, late)
    once = gated(Ablate(S).at(Z_OUT), PRE, lambda x: x[..., :1])
    logits_with(model, tokens, once)
    with pytest.raises(RuntimeError, match="has not fired yet"):
        logits_with(model, tokens, once[1:])


@pytest.mark.skipif(not has_hooked_transformer(), reason="HookedTransformer's generate")
def test_an_edit_of_new_tokens_alone_does_not_take_the_prompts_gate(model, tokens) -> None:
    late = gated(Ablate(S).at(PRE, when="new"), "blocks.1.hook_resid_post", lambda x: x[..., :1])
    generate = {"max_new_tokens": 3, "verbose": False, "stop_at_eos": False, "do_sample": False}
    with pytest.raises(RuntimeError, match="has not fired yet"), attached(model, late):
        model.generate(tokens[:1, :4], **generate)
    seen: list[int] = []

    def fn(x: Tensor) -> Tensor:
        seen.append(x.shape[1])
        return torch.full((len(x), 1), float(len(seen)), dtype=x.dtype)

    post = "blocks.1.hook_resid_post"
    before: list[Tensor] = []
    after: list[Tensor] = []
    early = gated(Ablate(S).at(post, when="new"), PRE, fn)
    with attached(model, [(post, lambda x, hook: before.append(x)), *early, (post, lambda x, hook: after.append(x))]):
        model.generate(tokens[:1, :4], **generate)
    assert seen[0] == 4
    assert set(seen[1:]) == {1}
    for number, (x, y) in enumerate(zip(before, after), 1):
        expected = x if number == 1 else Ablate(S, strength=float(number))(x)
        assert torch.allclose(y, expected, atol=1e-12), "each pass has its own gate"


def test_one_gate_serves_several_edited_sites(model, tokens) -> None:
    hooks = gated(Ablate(S).at(Z_OUT, "blocks.1.hook_mlp_out"), PRE, lambda x: torch.full((len(x), 1), 0.5).to(x))
    plain = Ablate(S, strength=0.5).at(Z_OUT, "blocks.1.hook_mlp_out")
    for _ in range(2):
        assert torch.allclose(logits_with(model, tokens, hooks), logits_with(model, tokens, plain), atol=1e-12)


def test_an_edit_that_has_a_gate_is_refused() -> None:
    for edit in (Ablate(S, gate=0.0), Erase(S.basis, S.basis, gate=torch.ones(2))):
        with pytest.raises(
            ValueError, match="has a gate already, which this one would replace: multiply the two in fn"
        ):
            gated(edit.at(PRE), "blocks.0.hook_resid_pre", lambda x: x[..., :1])


@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_gate_of_one_axis_is_refused(model, tokens, n: int) -> None:
    """With as many prompts as directions, [batch] would be read as one factor a direction."""
    one, two = (
        gated(Erase(S.basis, S.basis).at(PRE), "blocks.0.hook_resid_pre", fn)
        for fn in (lambda x: torch.sigmoid(x[:, -1, 0]), lambda x: torch.sigmoid(x[:, -1, :1]))
    )
    with pytest.raises(ValueError, match=rf"has shape \[{n}\], which could be one an example or one a direction"):
        logits_with(model, tokens[:n], one)
    alone = [logits_with(model, tokens[i : i + 1], two) for i in range(n)]
    assert torch.allclose(logits_with(model, tokens[:n], two), torch.cat(alone), atol=1e-12)
    number = gated(Ablate(S).at(PRE), "blocks.0.hook_resid_pre", lambda x: torch.tensor(0.25))
    quarter = Ablate(S, strength=0.25).at(PRE)
    assert torch.allclose(logits_with(model, tokens, number), logits_with(model, tokens, quarter), atol=1e-12)


def test_a_gate_of_values_is_saved_and_a_function_refused(model, tokens, tmp_path) -> None:
    d = units(2)
    hooks = Erase(d, d, gate=torch.tensor([0.3, 0.7])).at(Z, head=1)
    card = mi.Card.of(model, "routing, one gate a direction")
    back = mi.load(mi.save(tmp_path / "one.safetensors", hooks, card), model)
    assert torch.equal(back[0][1].intervention.gate, torch.tensor([0.3, 0.7]))
    rows = Erase(d, d, gate=draw(len(tokens), 2)).at(Z, head=1)
    with pytest.raises(ValueError, match="one value an example"):
        mi.save(tmp_path / "rows.safetensors", rows, card)
    path = mi.save(tmp_path / "rows.safetensors", rows, card, tokens=tokens)
    again = mi.load(path, model, tokens=tokens)
    assert torch.equal(again[0][1].intervention.gate, rows[0][1].intervention.gate)
    with pytest.raises(ValueError, match=r"gate of Erase.* is a function; a file holds values only"):
        mi.save(tmp_path / "function.safetensors", Erase(d, d, gate=torch.sigmoid).at(Z, head=1), card)


def test_an_absolute_turn_is_saved(model, tmp_path) -> None:
    hooks = mi.Rotate(Subspace.random(16, 2), 0.5, absolute=True).at(PRE)
    back = mi.load(mi.save(tmp_path / "turn.safetensors", hooks, mi.Card.of(model, "turn")), model)
    assert back[0][1].intervention.absolute is True
