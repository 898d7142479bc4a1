"""Keeping, removing and moving frequencies, as arrays and as hooks, and what each does beside its control."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate import toys
from mi_ablate.modular import (
    CausalTable,
    FourierBasis,
    Grid,
    causal_table,
    edit_frequencies,
    frequency_hooks,
    frequency_subspace,
    grid,
    pattern_hooks,
)
from models import data_folder

FAST = settings(max_examples=25, deadline=None)
NEURONS, RESIDUAL = "blocks.0.mlp.hook_post", "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def nanda() -> Grid:
    return grid(toys.load(data_folder() / "third_party_models" / "nanda_mod113.safetensors"))


@pytest.fixture(scope="module")
def small() -> Grid:
    return grid(toys.load("nanda113"))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(3, 12), st.sampled_from(["sum", "difference", "2x2", "3x3"]), st.data())
@FAST
def test_what_is_kept_and_what_is_removed_are_the_whole(n: int, part: str, data: st.DataObject) -> None:
    x, ks = noise(n, n, 3) + 2, data.draw(st.lists(st.integers(1, n // 2), max_size=3))
    kept, removed = (edit_frequencies(x, mode, ks, part=part) for mode in ("keep", "remove"))
    assert torch.allclose(kept + removed, x + x.mean((0, 1)), atol=1e-10)
    assert torch.allclose(edit_frequencies(removed, "remove", ks, part=part), removed, atol=1e-10)
    assert torch.allclose(FourierBasis(n).component(removed, ks, part), torch.zeros_like(x), atol=1e-10)
    delta = data.draw(st.integers(1, n - 1))
    moved = edit_frequencies(x, "move", ks, part="sum", shift=delta)
    assert torch.allclose(edit_frequencies(moved, "move", ks, shift=-delta), x, atol=1e-10), "and back"
    planted = FourierBasis(n).sum_directions(1)[0][..., None]
    assert torch.allclose(edit_frequencies(planted, "move", [1], shift=delta), planted.roll(-delta, 0), atol=1e-10)


@pytest.mark.compat
def test_hooks_make_the_edit_that_the_arrays_say(small: Grid) -> None:
    acts = small.acts(NEURONS)
    for mode, shift in (("keep", 0), ("move", 7)):
        hooks = frequency_hooks(small, NEURONS, mode, [8, 21], part="sum", shift=shift)
        seen = mi.collect(small.model, small.tokens, NEURONS, hooks=hooks)[NEURONS].double().unflatten(0, (113, 113))
        assert torch.allclose(seen, edit_frequencies(acts, mode, [8, 21], shift=shift), atol=1e-4), mode


def test_moving_the_key_frequencies_gives_the_shifted_answer(small: Grid) -> None:
    metric = mi.accuracy(small.c[(small.answers + 5) % 113].flatten())
    hooks = frequency_hooks(small, RESIDUAL, "move", [1, 8, 21], shift=5)
    found = mi.effect(small.model, small.tokens, hooks, metric, controls={})
    assert float(found.clean.mean()) < 0.01
    assert float(found.edited.mean()) > 0.97
    idle = frequency_hooks(small, RESIDUAL, "move", [5, 30, 50], shift=5)
    assert float(mi.effect(small.model, small.tokens, idle, metric, controls={}).edited.mean()) < 0.01


def test_the_directions_of_frequencies_hold_them(small: Grid) -> None:
    found, acts = frequency_subspace(small, RESIDUAL, [1, 8, 21]), small.acts(RESIDUAL)
    assert found.rank == 6
    removed = mi.Ablate(found)(acts)
    for k in (1, 8, 21):
        assert float(FourierBasis(113).component(removed, [k]).norm()) < 1e-6 * float(removed.norm())
    right = mi.accuracy(small.c[small.answers].flatten())
    edit = mi.Ablate(found, to=acts.mean((0, 1))).at(RESIDUAL, pos=-1)
    assert float(mi.effect(small.model, small.tokens, edit, right, controls={}).edited.mean()) < 0.1


def test_a_constant_pattern_is_what_the_last_query_sees(small: Grid) -> None:
    patterns = small.patterns()
    means = patterns.mean((0, 1))
    name = "blocks.0.attn.hook_pattern"
    for to, heads, wanted in (("mean", None, means), ("uniform", [2], torch.full((4, 3), 1 / 3).double())):
        hooks = pattern_hooks(small, to, heads=heads)
        seen = mi.collect(small.model, small.tokens[::97], name, hooks=hooks)[name].double()
        for h in range(4) if heads is None else heads:
            assert torch.allclose(seen[:, h], wanted[h].expand(len(seen), 3), atol=1e-5)
        if heads is not None:
            clean = patterns.flatten(0, 1)[::97]
            assert torch.allclose(seen[:, 0], clean[:, 0], atol=1e-5), "other heads look as before"
    right = mi.accuracy(small.c[small.answers].flatten())
    found = mi.effect(small.model, small.tokens, pattern_hooks(small), right, controls={})
    assert float(found.edited.mean()) < 0.9, "the pattern's dependence on the operands is used"
    with pytest.raises(ValueError, match=r"to='zero' is 'mean' .of each head, over all pairs. or 'uniform'"):
        pattern_hooks(small, "zero")
    with pytest.raises(ValueError, match=r"Layer 0 has the heads 0 to 3; \[4\] are none of them"):
        pattern_hooks(small, heads=[0, 4])


def test_energetic_but_inert_and_small_but_needed(nanda: Grid) -> None:
    """35 is the fifth line of W_E and does nothing; 9 is no line at all and triples the loss when removed."""
    tables = {level: causal_table(nanda, level=level, draws=0) for level in ("logits", "neurons")}
    for level, found in tables.items():
        assert found.frequencies[:5] == (23, 6, 39, 3, 35)
        assert 9 in found.frequencies, "the readout's list has it"
        assert found.clean["loss"] == pytest.approx(2.888e-3, rel=1e-3)
        assert found.energy[35] == pytest.approx(0.073, abs=1e-3)
        assert found.energy[9] == pytest.approx(0.0085, abs=1e-3)
        assert found.inert() == [35], level
        assert abs(found.change(35)) < 0.01
        assert found.removed[9]["loss"] == pytest.approx(9.86e-3, rel=1e-2)
        assert found.removed[23]["accuracy"] < 0.35
        assert found.removed["all"]["accuracy"] < 0.02
        assert found.kept["all"]["accuracy"] > 0.999
        assert max(found.kept[k]["accuracy"] for k in found.frequencies) < 0.15, "no frequency is enough"
    # restricted to the sum directions, with 9: below the full loss; without it, above
    assert tables["logits"].kept["all"]["loss"] == pytest.approx(1.367e-3, rel=1e-2)
    five = causal_table(nanda, [23, 6, 39, 3, 35], draws=0)
    assert five.kept["all"]["loss"] == pytest.approx(3.4e-3, rel=2e-2)


def test_each_frequency_stands_beside_drawn_subspaces_of_its_rank(small: Grid) -> None:
    found = causal_table(small, [1, 8, 21, 40], level="residual", draws=3)
    assert found.ranks == {1: 2, 8: 2, 21: 2, 40: 2, "all": 8}
    assert {rank: len(draws) for rank, draws in found.controls["removed"].items()} == {2: 3, 8: 3}
    rows = {row["frequency"]: row for row in found.table()}
    assert list(rows) == [1, 8, 21, 40, "all"]
    assert rows[40]["removed loss"] == pytest.approx(found.clean["loss"], rel=0.1)
    assert rows[8]["removed at random loss"] == rows[40]["removed at random loss"]
    assert rows[8]["removed at random loss"] > 100 * found.clean["loss"], "a drawn subspace of rank 2 holds much of all"
    variances = [draw["variance"] for draw in found.controls["kept"][2]]
    assert rows[8]["kept at random variance"] == pytest.approx(sum(variances) / 3)
    assert 0.05 < rows[8]["kept at random variance"] < 0.9
    assert not any("random" in name for name in causal_table(small, [8], draws=0).table()[0])
    # the treatment's variance is that of its component
    acts = small.acts(RESIDUAL)
    component = FourierBasis(113).component(acts, [8])
    spread = ((acts - acts.mean((0, 1))) ** 2).sum()
    assert rows[8]["variance"] == pytest.approx(float((component**2).sum() / spread))


@pytest.mark.compat
def test_levels_agree_with_hooks(small: Grid) -> None:
    """The short way through the last layer gives what a hooked run of the model gives."""
    right = mi.cross_entropy(small.c[small.answers].flatten())
    for level, site, mode in (("neurons", NEURONS, "remove"), ("residual", RESIDUAL, "keep")):
        found = causal_table(small, [8], level=level, part="3x3", draws=0)
        assert found.site == site
        hooks = frequency_hooks(small, site, mode, [8], part="3x3")
        loss = mi.effect(small.model, small.tokens, hooks, right, controls={}).edited.mean()
        assert (found.removed if mode == "remove" else found.kept)[8]["loss"] == pytest.approx(float(loss), rel=1e-3)
        acts = small.acts(site)
        component = FourierBasis(113).component(acts, [8], "3x3")
        share = float((component**2).sum() / ((acts - acts.mean((0, 1))) ** 2).sum())
        assert found.kept[8]["variance"] == pytest.approx(share)


def test_an_earlier_layer_and_an_even_group() -> None:
    mul = grid(toys.load("addmul97"), "mul")
    found = causal_table(mul, [48], level="neurons", layer=0, draws=0)
    assert (found.site, found.ranks) == (NEURONS, {48: 1, "all": 1})
    assert found.removed[48] == found.removed["all"]
    x = mul.logits
    for part, rank in (("difference", 3), ("3x3", 11)):
        table = causal_table(mul, [48, 3], part=part, draws=0)
        component = FourierBasis(96).component(x, [48, 3], part)
        share = float((component**2).sum() / ((x - x.mean((0, 1))) ** 2).sum())
        assert table.removed["all"]["variance"] == pytest.approx(share)
        assert table.ranks["all"] == rank


def test_splits_and_runs_that_never_generalised(small: Grid) -> None:
    from dataclasses import replace

    train, test = (causal_table(small, [8], which=which, draws=0) for which in ("train", "test"))
    assert train.split == "train"
    assert train.clean["loss"] < test.clean["loss"]
    found = causal_table(replace(small, c=small.c.roll(1)), draws=2)
    assert isinstance(found, CausalTable)
    assert (found.frequencies, found.removed, found.table()) == ((), {}, [])
    assert "CausalTable(logits: no frequencies; accuracy 0.000 on test pairs is below 0.9" in repr(found)
    with pytest.raises(ValueError, match="level='attention' is one of logits, neurons, residual"):
        causal_table(small, [8], "attention")
    with pytest.raises(ValueError, match=r"Z_113 has the frequencies 1 to 56; \[57\] are none of them"):
        causal_table(small, [57])


def test_edits_say_what_they_take() -> None:
    x = torch.zeros(5, 5, 2)
    with pytest.raises(ValueError, match="mode='flip' is 'keep', 'remove' or 'move'"):
        edit_frequencies(x, "flip", [1])
    with pytest.raises(ValueError, match="mode='keep' with shift=2: 'move' takes a shift, the others take none"):
        edit_frequencies(x, "keep", [1], shift=2)
    with pytest.raises(ValueError, match="mode='move' with shift=0: 'move' takes a shift"):
        edit_frequencies(x, "move", [1])
    wave = torch.cos(2 * math.pi * torch.arange(5).double() / 5)
    assert torch.allclose(edit_frequencies(wave[:, None] + wave[None], "remove", [1]), wave[:, None] + wave[None])


def test_a_site_with_heads_is_refused(small: Grid) -> None:
    with pytest.raises(ValueError, match=r"hook_z has shape \[4, 32\] a prompt; choose a site with one vector"):
        frequency_hooks(small, "blocks.0.attn.hook_z", "keep", [1])
