"""A direction in words: tokens through the readout, inputs by coordinate, cosines beside what chance gives."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Add, Erase, Subspace, explain
from models import BRIDGE_FAMILIES, family_bridge, has_bridge, tiny, tokens_for

D, LAST = 16, "blocks.1.hook_resid_post"


def close(one: tuple, other: tuple) -> bool:
    return [t for t, _ in one] == [t for t, _ in other] and [v for _, v in one] == pytest.approx([v for _, v in other])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved_logits(model: Any, v: Tensor) -> Tensor:
    """How a small step along v moves the logits, measured at a point where it does not change the norm's scale."""
    x = draw(len(v), seed=31)
    x, v = x - x.mean(), v.double()
    x = x - (x @ (v - v.mean())) / ((v - v.mean()) @ (v - v.mean())) * (v - v.mean())
    x = x - (x @ v) / (v @ v) * v  # for norms that do not centre
    weight = model.unembed.W_U
    ends = [(5 * x + step * v).to(weight.dtype)[None, None] for step in (0.01, -0.01)]
    with torch.no_grad():
        up, down = (model.ln_final(end) if model.cfg.normalization_type else end for end in ends)
        return ((up - down)[0, 0].double() @ weight.double()).cpu()


def check_tokens(model: Any, tolerance: float) -> None:
    d, v = model.cfg.d_model, model.unembed.W_U.shape[1]
    s = Subspace.random(d, 1, seed=3)
    site = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    [one] = explain(s, model, site=site, top=v, text=lambda ids: str(ids[0])).directions
    z = moved_logits(model, s.basis[:, 0])
    z = (z - z.mean()) / z.std()
    said = {int(token): value for token, value in one.promotes}
    assert torch.allclose(torch.tensor([said[i] for i in range(v)]).double(), z, atol=tolerance)
    assert one.suppresses == one.promotes[::-1]


@pytest.mark.compat
@pytest.mark.parametrize("norm", ["LN", None])
def test_the_tokens_promoted_are_those_whose_logits_rise(norm: str | None) -> None:
    check_tokens(tiny(norm=norm), 1e-6)
    check_tokens(tiny(norm=norm, d_model=15, n_heads=3), 1e-6)


@pytest.mark.compat
@pytest.mark.skipif(not has_bridge(), reason="needs TransformerBridge")
@pytest.mark.parametrize("kind", BRIDGE_FAMILIES)
def test_the_final_norms_gain_is_measured_as_families_store_it_differently(kind: str) -> None:
    """Gemma's gain is 1 + w; reading w alone is off by up to 0.9 standard deviations."""
    check_tokens(family_bridge(kind), 0.02)


def test_the_mean_direction_is_invisible_to_a_layernorm_alone() -> None:
    flat = Subspace.span(torch.ones(D))
    assert explain(flat, tiny(), site=LAST).directions[0].invisible == pytest.approx(1)
    assert explain(flat, tiny(norm=None), site=LAST).directions[0].invisible is None
    assert "lies on the mean over coordinates, which LayerNorm removes" in str(explain(flat, tiny(), site=LAST))


def test_directions_of_heads_and_neurons_are_mapped_to_the_stream(model) -> None:
    s = Subspace.random(8, 1, seed=1)
    by_head = explain(Ablate(s).at("blocks.1.attn.hook_z", head=1), model).directions[0]
    row = s.basis[:, 0] @ model.blocks[1].attn.W_O[1].detach()
    assert close(by_head.promotes, explain(Subspace.span(row), model, site=LAST).directions[0].promotes)
    n = Subspace.random(24, 1, seed=1)
    by_mlp = explain(n, model, site="blocks.0.mlp.hook_post").directions[0]
    row = n.basis[:, 0] @ model.blocks[0].mlp.W_out.detach()
    assert close(by_mlp.promotes, explain(Subspace.span(row), model, site=LAST).directions[0].promotes)


def test_no_tokens_where_no_weight_leads_to_the_stream(model) -> None:
    [one] = explain(Subspace.random(8, 1), model, site="blocks.1.attn.hook_q").directions
    assert one.promotes == ()
    assert one.invisible is None


def test_the_inputs_named_hold_the_largest_coordinates(model) -> None:
    tokens = tokens_for(model, n=20)
    s = Subspace.random(D, 2, seed=5)
    found = explain(s, model, site=LAST, tokens=tokens, top=2)
    coords = s.coords(mi.collect(model, tokens, LAST)[LAST])
    for i, one in enumerate(found.directions):
        highest, lowest = coords[:, i].argmax(), coords[:, i].argmin()
        assert one.highest[0] == (
            " ".join(map(str, tokens[highest].tolist())),
            pytest.approx(float(coords[highest, i])),
        )
        assert one.lowest[0][1] == pytest.approx(float(coords[lowest, i]))


def test_inputs_are_read_where_the_edit_acts(model) -> None:
    tokens = tokens_for(model, n=20)
    s = Subspace.random(D, 1, seed=5)
    [one] = explain(Ablate(s).at(LAST, pos=2), model, tokens=tokens, top=1).directions
    assert one.highest[0][1] == pytest.approx(float(s.coords(mi.collect(model, tokens, LAST, pos=2)[LAST]).max()))


def test_cosines_stand_beside_chance(model) -> None:
    s, other = Subspace.random(D, 1, seed=1), Subspace.random(D, 4, seed=2)
    turned = Subspace(-s.basis)
    found = explain(s, model, site=LAST, against={"itself turned": turned, "four": other}).directions[0].cosines
    assert found["itself turned"] == pytest.approx((-1.0, 0.25))
    assert found["four"] == pytest.approx((float((other.basis.T @ s.basis).norm()), math.sqrt(4 / D)))


def test_one_subspace_at_many_sites_is_described_once(model) -> None:
    s = Subspace.random(D, 5)
    found = explain(Ablate(s).at(*mi.writers(model)), model, directions=2)
    assert [(len(one.sites), one.number, one.rank) for one in found.directions] == [(6, 0, 5), (6, 1, 5)]
    assert found.left_out == 3
    assert "(3 more directions; ask for them with directions=)" in str(found)
    assert len(found.table()) == 2
    assert "<table>" in found._repr_html_()


def test_additions_and_oblique_erasures_have_directions_too(model) -> None:
    v = draw(D)
    [added] = explain(Add(v).at(LAST), model).directions
    assert added.promotes == explain(Subspace.span(v), model, site=LAST).directions[0].promotes
    w, r = draw(D, 1, seed=1), draw(D, 1, seed=2)
    tokens = tokens_for(model)
    [erased] = explain(Erase(w, r).at(LAST), model, tokens=tokens, top=1).directions
    assert erased.promotes[0] == explain(Subspace.span(w.T), model, site=LAST, top=1).directions[0].promotes[0]
    read = Subspace.span(r.T).coords(mi.collect(model, tokens, LAST)[LAST])
    assert erased.highest[0][1] == pytest.approx(float(read.max()))


def test_a_negative_addition_promotes_what_the_positive_one_suppresses(model) -> None:
    up, down = (explain(Add(draw(D), s).at(LAST), model).directions[0] for s in (2.0, -2.0))
    assert [t for t, _ in up.promotes] == [t for t, _ in down.suppresses]
    with pytest.raises(ValueError, match="No hook here has a subspace to describe"):
        explain(Add(draw(D), 0.0).at(LAST), model)


def test_an_edit_of_some_neurons_is_written_by_those_alone(model) -> None:
    s = Subspace.random(2, 1, seed=4)
    tokens = tokens_for(model)
    [one] = explain(Ablate(s).at("blocks.1.mlp.hook_post", unit=[3, 17]), model, tokens=tokens, top=1).directions
    row = s.basis[:, 0] @ model.blocks[1].mlp.W_out.detach()[[3, 17]]
    assert close(one.promotes, explain(Subspace.span(row), model, site=LAST, top=1).directions[0].promotes)
    acts = mi.collect(model, tokens, "blocks.1.mlp.hook_post")["blocks.1.mlp.hook_post"][:, [3, 17]]
    assert one.highest[0][1] == pytest.approx(float((acts @ s.basis).max()))


def test_of_several_stream_sites_the_inputs_are_read_at_the_last_residual(model) -> None:
    tokens, s = tokens_for(model), Subspace.random(D, 1)
    [one] = explain(Ablate(s).at(*mi.writers(model)), model, tokens=tokens, top=1).directions
    assert one.read_at == LAST
    assert one.highest[0][1] == pytest.approx(float(s.coords(mi.collect(model, tokens, LAST)[LAST]).max()))
    assert f"largest in, read at {LAST}: " in str(explain(Ablate(s).at(*mi.writers(model)), model, tokens=tokens))


def test_edits_that_differ_in_what_they_write_or_where_are_told_apart(model) -> None:
    r = draw(D, 1)
    two = Erase(draw(D, 1, seed=1), r).at("hook_embed") + Erase(draw(D, 1, seed=2), r).at(LAST)
    assert len(explain(two, model).directions) == 2
    s = Subspace.random(D, 1)
    places = Ablate(s).at(LAST, pos=0) + Ablate(s).at("blocks.0.hook_resid_post", pos=-1)
    assert len(explain(places, model).directions) == 2


def test_what_has_no_direction_is_named(model) -> None:
    hooks = Ablate(Subspace.random(D, 1)).at(LAST) + Ablate(None).at("hook_embed")
    found = explain(hooks, model)
    assert found.without == ("hook_embed",)
    assert "(no direction to describe at hook_embed)" in str(found)


def test_subspaces_are_compared_with_edits_and_edits_with_subspaces(model) -> None:
    s = Subspace.random(D, 1)
    hooks = Ablate(s).at(LAST)
    assert explain(hooks, model, against={"s": s}).directions[0].cosines["s"][0] == pytest.approx(1)
    assert explain(s, model, site=LAST, against={"hooks": hooks}).directions[0].cosines["hooks"][0] == pytest.approx(1)


def test_chance_is_the_largest_of_as_many_gaussians(model) -> None:
    [one] = explain(Subspace.random(D, 1), model, site=LAST).directions
    draws = torch.randn(4000, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert one.chance == pytest.approx(float(draws.max(1).values.mean()), abs=0.05)
    assert f"promotes (sd over tokens; chance {one.chance:.1f}): " in str(
        explain(Subspace.random(D, 1), model, site=LAST)
    )


@pytest.mark.parametrize("site", ["blocks.1.hook_resid_pots", "blocks.9.hook_resid_post", "resid_post"])
def test_a_site_that_is_no_hook_point_is_refused(model, site: str) -> None:
    with pytest.raises(KeyError, match=r"No hook point matches|is a pattern, not the name of one hook point"):
        explain(Subspace.random(D, 1), model, site=site)


def test_padding_is_not_part_of_a_prompt(model) -> None:
    tokens = tokens_for(model, n=4)
    mask = torch.ones_like(tokens)
    mask[:, :3] = 0
    [one] = explain(Subspace.random(D, 1), model, site=LAST, tokens=tokens, attention_mask=mask, top=4).directions
    assert {text for text, _ in one.highest} == {" ".join(map(str, row[3:].tolist())) for row in tokens}


def test_a_tokenizer_writes_the_tokens(model) -> None:
    class Wrapped:
        cfg, hook_dict, unembed, ln_final, blocks = (
            model.cfg, model.hook_dict, model.unembed, model.ln_final, model.blocks,
        )  # fmt: skip
        tokenizer = SimpleNamespace(decode=lambda ids: "".join(f"<{i}>" for i in ids))
        hooks = model.hooks

        def __call__(self, *args: object, **kw: object) -> object:
            return model(*args, **kw)

    [one] = explain(Subspace.random(D, 1), Wrapped(), site=LAST, top=1).directions
    assert one.promotes[0][0].startswith("<")


WRONG = {
    "no site": (lambda m: explain(Subspace.random(D, 1), m), "does not say where it lies: give site="),
    "two sites": (lambda m: explain(Ablate(Subspace.random(D, 1)).at(LAST), m, site=LAST), "site= is for a Subspace"),
    "whole vector": (lambda m: explain(Ablate(None).at(LAST), m), "No hook here has a subspace to describe"),
    "width": (lambda m: explain(Subspace.random(9, 1), m, site=LAST), "has width 9; the model's vectors at"),
    "neurons": (lambda m: explain(Subspace.random(9, 1), m, site="blocks.0.mlp.hook_post"), "width 9; the model's"),
    "nothing to compare": (
        lambda m: explain(Subspace.random(D, 1), m, site=LAST, against={"x": Ablate(None).at(LAST)}),
        "No hook here has a subspace to compare with",
    ),
    "nothing": (lambda m: explain(Subspace.random(D, 1), m, site=LAST, top=0), "top=0 and directions=3: at least 1"),
    "other width": (
        lambda m: explain(Subspace.random(D, 1), m, site=LAST, against={"x": Subspace.random(9, 1)}),
        "x has directions of width 9; this one has width 16",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_explained_is_said(name: str, model) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call(model)


def test_an_edit_without_its_place_is_refused(unchecked, model) -> None:
    with pytest.raises(ValueError, match=r"does not say where it acts: explain\(edit\.at"):
        explain(Ablate(Subspace.random(D, 1)), model)  # type: ignore[arg-type]
