"""A direction in words: tokens through the readout, inputs by coordinate, cosines beside what chance gives."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Add, Erase, Subspace, explain
from models import tiny, tokens_for

D, LAST = 16, "blocks.1.hook_resid_post"


def close(one: tuple, other: tuple) -> bool:
    return [t for t, _ in one] == [t for t, _ in other] and [v for _, v in one] == pytest.approx([v for _, v in other])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.compat
@pytest.mark.parametrize("norm", ["LN", None])
def test_the_tokens_promoted_are_those_whose_logits_rise(norm: str | None) -> None:
    """Against the model itself: a small step along the direction, with the norm's scale kept, moves the same logits."""
    model = tiny(norm=norm)
    s = Subspace.random(D, 1, seed=3)
    [one] = explain(s, model, site=LAST, top=11).directions
    gain = model.ln_final.w if norm else torch.ones(D)
    v = s.basis[:, 0]
    rows = (v - v.mean() if norm else v) * gain.detach().double()
    logits = rows @ model.unembed.W_U.detach().double()
    said = {int(token): value for token, value in one.promotes}
    assert [int(token) for token, _ in one.promotes] == logits.argsort(descending=True).tolist()
    z = (logits - logits.mean()) / logits.std()
    assert said == pytest.approx({i: float(z[i]) for i in range(11)}, abs=1e-5)
    assert one.suppresses == one.promotes[::-1]


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
