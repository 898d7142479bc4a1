"""Head and MLP roles: what was planted comes back; the published definitions by hand; and the bugs that change them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate.arithmetic as arithmetic
from mi_ablate.arithmetic.circuit.components import component_effects
from mi_ablate.arithmetic.circuit.heads import HeadRoles, head_roles
from mi_ablate.arithmetic.circuit.mlps import mlp_roles
from mi_ablate.arithmetic.circuit.outputs import output_fits, outputs_of
from mi_ablate.arithmetic.circuit.parts import Component, components_of
from mi_ablate.arithmetic.problem_sets.pairing import Pairs, pairs
from mi_ablate.model import collect
from mi_ablate.regression import fit
from models import logits_with, random_state, tiny
from number_parts import sums

BASES = ("a,b", "answer", "a,b,answer")


@pytest.fixture(scope="module")
def clock() -> Any:
    return arithmetic.planted()


@pytest.fixture(scope="module")
def asked(clock) -> Any:
    return arithmetic.problems(clock.model, "add", template=clock.template, limit=400, seed=1)


@pytest.fixture(scope="module")
def swapped(clock) -> Pairs:
    return pairs(arithmetic.problems(clock.model, "add", template=clock.template, limit=200), 30)


@pytest.fixture(scope="module")
def some() -> Pairs:
    return pairs(sums(), 8)


# What was planted


@pytest.mark.compat
def test_planted_total_and_direct_effects_come_back_with_both_norms(clock, swapped) -> None:
    """To 1e-6 of the difference between the runs: the constructed MLP's own error, and the norm's."""
    live, frozen = (
        component_effects(clock.model, swapped, ["heads", "mlps"], norm=n, draws=0) for n in ("live", "frozen")
    )
    size = float(live.gap.abs().max())
    for i, c in enumerate(live.components):
        part = c.layer if c.head is None else (c.layer, c.head)
        total, direct = clock.truth.effects(part, swapped.clean.inputs, swapped.corrupted.inputs)
        assert torch.allclose(live.total[i], total, atol=1e-6 * size), c
        assert torch.allclose(live.direct[i], direct, atol=1e-6 * size), c
        assert torch.allclose(frozen.direct[i], direct, atol=1e-6 * size), c
    heads, mlps = live.summed()
    assert mlps["direct"] == pytest.approx(3 * heads["direct"], rel=1e-5)  # 0.75 and 0.25 were planted
    assert live.ranked()[0].name == "MLP 1"
    assert live.of("MLP 1", "direct").abs().max() < 1e-6 * size


def test_planted_heads_get_their_labels_and_the_labels_keep_all_of_the_effect(clock, asked, swapped) -> None:
    found = head_roles(clock.model, asked, swapped, count=7)
    heads = {name: Component(layer, "head", head) for name, (layer, head) in clock.truth.heads.items()}
    assert set(found.of("a,b")) == {heads["a"], heads["b"]}
    assert set(found.of("a+b")) == {heads["a+b 2"], heads["a+b 3"]}
    assert len(found.of("idle")) == 3
    assert (found.mixed, found.of("mixed")) == (0, ())
    assert torch.allclose(found.confidence[:4].amax(1), torch.ones(4).double(), atol=1e-4)
    assert found.confidence[4:].abs().max() == 0
    assert torch.allclose(found.shares, torch.ones(5).double(), atol=1e-3)
    for name, token in (("a", "a"), ("b", "b"), ("a+b 2", "last"), ("a+b 3", "last")):
        assert float(found.attention[token][found.heads.index(heads[name])]) > 0.99
    rows = {row["head"]: row for row in found.table()}
    assert rows[heads["a"].name]["label"] == "a,b"
    assert "2 a,b, 2 a+b, 0 mixed, 3 idle" in repr(found)


def test_planted_mlps_build_and_read_out(clock, asked, swapped) -> None:
    found = mlp_roles(clock.model, asked, swapped)
    assert found.active.tolist() == [False, True, True, True]
    assert found.built[0].isnan()
    assert torch.allclose(found.built[1:], torch.ones(3).double(), atol=1e-4)
    assert torch.allclose(found.read_out[1:], torch.tensor([0.0, 1, 1]).double(), atol=1e-4)
    rows = found.table()
    assert all(abs(row["shuffled"]) < 0.3 for row in rows[1:])  # fitted to the wrong numbers
    assert rows[0]["built low"] != rows[0]["built low"]
    other = mlp_roles(clock.model, asked, swapped, "MLP 1", periods=(3, 7), basis="answer")
    assert float(other.built[0]) < 0.7  # periods that are not there; the line alone
    assert "largest total effect MLP 1" in repr(found)


def test_the_planted_circuit_is_the_smallest_set(clock, swapped) -> None:
    heads = arithmetic.smallest_sets(clock.model, swapped, "heads", shares=[0.9], search="pruned")
    wanted = {Component(layer, "head", h) for layer, h in (clock.truth.heads[name] for name in "ab")}
    assert set(heads[0.9]) == wanted
    assert heads.by == ("pruned",)
    assert heads.table()[0]["random"] < 0.5
    assert [c.name for c in arithmetic.smallest_sets(clock.model, swapped, "mlps")[0.99]] == ["MLP 1"]


def test_planted_paths_go_from_the_copies_to_the_adder_and_from_there_to_the_readers(clock, swapped) -> None:
    truth = clock.truth
    copies = [f"L{truth.heads[name][0]}H{truth.heads[name][1]}" for name in ("a", "b", "decoy")]
    found = arithmetic.path_effects(clock.model, swapped, [*copies, "MLP 1"], ["MLP 1", "MLP 2", "MLP 3"])
    size = float(found.gap.abs().max())
    assert found.values[2].abs().max() < 1e-6 * size  # the decoy's copy is read by nothing
    for i, name in enumerate(("a", "b")):
        total, _ = truth.effects(truth.heads[name], swapped.clean.inputs, swapped.corrupted.inputs)
        assert torch.allclose(found.values[i, 0], total, atol=1e-6 * size)
        assert found.values[i, 1:].abs().max() < 1e-6 * size
    assert torch.allclose(found.values[3, 1], 0.45 * found.gap, atol=1e-6 * size)
    assert torch.allclose(found.values[3, 2], 0.3 * found.gap, atol=1e-6 * size)
    assert found.frozen.abs().max() < 1e-6 * size


# The published definitions


def by_means(model: Any, problems: Any, given: Pairs, c: Component, periods: Any) -> tuple[float, float]:
    """Both confidences from means over the pairs, each factor cut at 1 and none at 0."""
    design = {basis: arithmetic.pair_design(problems.inputs, basis, periods) for basis in BASES}
    z = collect(model, problems.tokens, c.site)[c.site]
    clean = collect(model, given.clean.tokens, c.site)[c.site]
    effects = {"clean": component_effects(model, given, [c], draws=0)}
    for basis in BASES:
        vectors = clean.clone()
        found = fit(z[:, c.head], design[basis])
        vectors[:, c.head] = found.predict(arithmetic.pair_design(given.clean.inputs, basis, periods))
        effects[basis] = component_effects(model, given, [c], written={c.site: vectors}, draws=0)
    te = {name: float(found.total.mean()) for name, found in effects.items()}
    de = float(effects["clean"].direct.mean())
    whole = te["a,b,answer"]
    ab = min(1 - de / te["clean"], 1) * min(te["a,b"] / whole, 1)
    return ab, min(de / te["clean"], 1) * min(te["answer"] / whole, 1)


def test_confidences_are_the_published_products_of_means_cut_at_one_and_not_at_zero(model, some) -> None:
    problems, periods = sums(), (2, 5)
    found = head_roles(model, problems, some, ["L0H0", "L1H1"], periods=periods)
    assert found.confidence.max() <= 1
    assert found.confidence.min() < 0
    for i, c in enumerate(found.heads):
        wanted = by_means(model, problems, some, c, periods)
        assert torch.allclose(found.confidence[i], torch.tensor(wanted, dtype=torch.float64), atol=1e-9), c
    best = found.confidence.amax(1)
    assert (best[:-1] >= best[1:]).all()
    named = [label for label in found.labels if label != "mixed"]
    ahead = ["a,b" if x >= y else "a+b" for x, y in found.confidence.tolist()]
    assert named == ahead[: len(named)]


def share_by_hand(model: Any, problems: Any, given: Pairs, found: HeadRoles, m: int, periods: Any) -> float:
    """The test of section 5.2 for m mixed heads, with bare hooks on whole passes."""
    labels = [*("a,b" if x >= y else "a+b" for x, y in found.confidence.tolist())]
    labels[len(labels) - m :] = ["mixed"] * m
    names = sorted({c.site for c in found.heads})
    z, clean, corrupted = (collect(model, x.tokens, names) for x in (problems, given.clean, given.corrupted))
    last, new, true = 0, *({name: x.clone() for name, x in corrupted.items()} for _ in range(2))
    for c, label in zip(found.heads, labels):
        basis = {"a,b": "a,b", "a+b": "answer", "mixed": "a,b,answer"}[label]
        made = fit(z[c.site][:, c.head], arithmetic.pair_design(problems.inputs, basis, periods))
        out = made.predict(arithmetic.pair_design(given.clean.inputs, basis, periods))
        true[c.site][:, c.head] = clean[c.site][:, c.head]
        straight = (out - corrupted[c.site][:, c.head]) @ model.blocks[c.layer].attn.W_O[c.head]
        if label == "a+b":
            last = last + straight
        else:
            new[c.site][:, c.head] = out
            last = last - straight if label == "a,b" else last

    def put(name: str, values: Tensor, add: bool = False) -> Any:
        def write(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[:, -1] = x[:, -1] + values if add else values
            return x

        return name, write

    picked = given.clean.answers[:, None]

    def gain(hooks: Any) -> float:
        edited, plain = (logits_with(model, given.corrupted.tokens, h)[:, -1].gather(1, picked) for h in (hooks, []))
        return float((edited - plain).mean())

    end = [put("blocks.1.hook_resid_post", last, add=True)] if isinstance(last, Tensor) else []
    return gain([put(name, x) for name, x in new.items()] + end) / gain([put(name, x) for name, x in true.items()])


def test_the_number_of_mixed_heads_is_chosen_by_the_published_test(model, some) -> None:
    problems, periods = sums(), (2, 5)
    found = head_roles(model, problems, some, ["L0H1", "L1H0", "L1H1"], periods=periods)
    wanted = [share_by_hand(model, problems, some, found, m, periods) for m in range(4)]
    assert torch.allclose(found.shares, torch.tensor(wanted, dtype=torch.float64), atol=1e-8)
    reached = [m for m in range(4) if wanted[m] >= 0.75]
    assert found.mixed == (reached[0] if reached else int(torch.tensor(wanted).argmax()))
    assert len(found.of("mixed")) == found.mixed
    fixed = head_roles(model, problems, some, ["L0H0", "L1H1"], periods=periods, mixed=1)
    assert fixed.labels[1:] == ("mixed",)


def test_where_no_number_of_mixed_heads_is_enough_the_best_one_is_taken(model, some) -> None:
    found = head_roles(model, sums(), some, ["L0H0", "L1H1"], periods=(2, 5), share=1e9)
    assert found.mixed == int(found.shares.argmax())


def test_the_helix_of_a_and_b_design_lost_its_constant() -> None:
    """A head that puts out the same vector for every prompt is fitted by its mean; without a constant it would be 0."""
    w = random_state(2, 16, 2, 24, 12, 11, "LN", 0)
    w["blocks.0.attn.W_V"] = torch.zeros(2, 16, 8, dtype=torch.float64)
    model, problems = tiny(weights=w), sums()
    head = components_of(model, "L0H1")
    fits = output_fits(model, problems, head, BASES, (2, 5))
    site, rows = head[0].site, problems[[3, 11]]
    like = collect(model, rows.tokens, [site])
    assert like[site].abs().min() > 1e-3
    for basis in BASES:
        made = outputs_of(fits[basis], rows.inputs, basis, (2, 5), like)
        assert torch.allclose(made[site], like[site], atol=1e-10), basis


def test_attention_is_that_of_the_last_token(model, some) -> None:
    found = head_roles(model, sums(), some, ["L1H1", "L0H0"], periods=(2, 5))
    with torch.no_grad():
        cache = model.run_with_cache(sums().tokens)[1]
    for i, c in enumerate(found.heads):
        mean = cache[f"blocks.{c.layer}.attn.hook_pattern"][:, c.head, -1].mean(0)
        for name, pos in (("a", -4), ("b", -2), ("last", -1)):
            assert float(found.attention[name][i]) == pytest.approx(float(mean[pos]))


def test_roles_report_progress_and_choose_the_largest_heads(model, some) -> None:
    seen: list[tuple[int, int]] = []
    found = head_roles(model, sums(), some, count=2, periods=(2, 5), progress=lambda *x: seen.append(x))
    assert set(found.heads) == set(component_effects(model, some, "heads").ranked()[:2])
    assert seen == [(i + 1, 4 + 4 * 2) for i in range(12)]
    seen.clear()
    mlp_roles(model, sums(), some, periods=(2, 5), progress=lambda *x: seen.append(x))
    assert seen == [(i + 1, 6) for i in range(6)]


def test_what_has_no_roles_is_refused(model, some) -> None:
    with pytest.raises(ValueError, match="head_roles is about heads"):
        head_roles(model, sums(), some, ["L0H0", "MLP 1"])
    with pytest.raises(ValueError, match="mlp_roles is about MLPs and attention outputs, and L0H0 is a head"):
        mlp_roles(model, sums(), some, "heads")
    with pytest.raises(ValueError, match="share=0 of the effect of the heads' clean outputs lies above 0"):
        head_roles(model, sums(), some, ["L0H0"], share=0)
    with pytest.raises(ValueError, match="count=0: one head or more"):
        head_roles(model, sums(), some, count=0)
    with pytest.raises(ValueError, match="mixed=5: from 0 to the 2 heads"):
        head_roles(model, sums(), some, ["L0H0", "L1H0"], mixed=5)
    one = replace(sums(), inputs={name: x for name, x in sums().inputs.items() if name != "b"})
    with pytest.raises(KeyError, match="the prompts have"):
        head_roles(model, one, some, "L0H0", periods=(2, 5))
    found = head_roles(model, sums(), some, "L0H0", periods=(2, 5))
    with pytest.raises(KeyError, match="The labels are 'a,b'"):
        found.of("both")
