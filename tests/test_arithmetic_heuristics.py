"""The bag of heuristics: rules, which neurons match them, and what a model needs of them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mi_ablate import Ablate, toys
from mi_ablate.arithmetic.neuron_level.bags import faithfulness, knock_out
from mi_ablate.arithmetic.neuron_level.heuristics import (
    heuristics_of,
    neuron_contributions,
    probability_effects,
    top_per_layer,
)
from mi_ablate.arithmetic.neuron_level.neuron_effects import NeuronEffects, neuron_attribution
from mi_ablate.arithmetic.neuron_level.rules import Rule, heuristic_rules
from mi_ablate.arithmetic.problem_sets.pairing import pairs
from mi_ablate.arithmetic.problem_sets.toy_problems import problems_of
from models import logits_with, tiny
from number_parts import draw, sums

A, B = (x.flatten() for x in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
INPUTS = {"a": A, "b": B, "answer": A + B}
RULES = heuristic_rules(INPUTS)


def bumps(masks: list[Tensor], seed: int = 0) -> Tensor:
    """One neuron a set of prompts: contributions larger there, with noise that does not hide it."""
    return torch.stack([mask.double() for mask in masks], dim=1) * 3 + 0.5 * draw(1600, len(masks), seed=seed)


def test_neurons_that_follow_a_rule_match_it_and_noise_matches_nothing() -> None:
    planted = {
        "a in 10..19": (A >= 10) & (A < 20),
        "b mod 7 = 3": B % 7 == 3,
        "answer is .4": torch.tensor([len(str(v)) == 2 and str(v)[1] == "4" for v in (A + B).tolist()]),
        "a = b": A == B,
    }
    results = torch.isin(A + B, torch.tensor([12, 21, 57]))
    found = heuristics_of(torch.cat([bumps([*planted.values(), results]), draw(1600, 20, seed=9)], dim=1), INPUTS)
    for i, name in enumerate(planted):
        assert found.of(i)[0] == name, found.of(i)
    assert set(found.answers[4].tolist()) >= {12, 21, 57}
    assert found.matched("multi-result")[4]
    assert found.matched()[:5].all()
    assert not found.matched()[5:].any()
    assert not found.matched(shuffled=True).any()
    rows = {row["kind"]: row for row in found.table()}
    assert rows["any"]["neurons"] == 0.2 == found.classified
    assert rows["identical"]["neurons"] == 1 / 25
    assert "25 neurons" in repr(found)
    assert "0.200 of them match one (shuffled 0.000)" in repr(found)


def test_the_overlap_is_the_share_of_as_many_top_prompts_as_the_rule_has() -> None:
    acts = draw(1600, 3, seed=3)
    found = heuristics_of(acts, INPUTS, RULES)
    for i in (0, len(RULES) // 2, len(RULES) - 1):
        members = set(torch.nonzero(RULES[i].prompts).flatten().tolist())
        for j in range(3):
            top = set(acts[:, j].topk(len(members)).indices.tolist())
            assert float(found.overlap[i, j]) == pytest.approx(len(top & members) / len(members))
    half = heuristics_of(acts, INPUTS, RULES, threshold=0.3)
    assert half.classified >= found.classified
    assert half.chance > 0  # at a low threshold rules match by chance, and the control says so


def test_smooth_neurons_match_ranges_though_shuffled_ones_do_not() -> None:
    """The converse of the control: a straight line in a is "classified" too, at the ends of its range."""
    found = heuristics_of(A[:, None].double() + 0 * draw(1600, 1), INPUTS)
    assert found.matched("range").all()
    assert found.chance == 0


def test_each_set_of_prompts_is_one_rule_and_all_are_what_they_say() -> None:
    assert len({rule.prompts.numpy().tobytes() for rule in RULES}) == len(RULES)
    assert {rule.kind for rule in RULES} == {"range", "modulo", "pattern", "identical"}
    for rule in RULES:
        assert 5 <= int(rule.prompts.sum()) <= 800
    named = {rule.name: rule for rule in RULES}
    assert torch.equal(named["a mod 6 = 5"].prompts, A % 6 == 5)
    assert repr(named["a = b"]) == "Rule(a = b, 40 of 1600 prompts)"
    assert "answer is 4." not in named  # 40 to 49 is a range already
    with pytest.raises(ValueError, match="rules are about 'a', 'b' and 'answer'"):
        heuristic_rules({"c": A})
    with pytest.raises(ValueError, match="No rule holds for 2000 prompts or more"):
        heuristic_rules(INPUTS, least=2000)
    with pytest.raises(ValueError, match="every rule needs one entry for each of 1600 prompts"):
        heuristics_of(draw(1600, 2), INPUTS, [Rule("range", "a", "x", torch.ones(3, dtype=torch.bool))])
    with pytest.raises(ValueError, match="kind='other' is one of range, modulo"):
        heuristics_of(draw(1600, 2), INPUTS, RULES).matched("other")


def test_negative_numbers_have_ranges_and_no_digit_pattern_takes_their_sign_for_a_digit() -> None:
    values = torch.arange(-60, 60)
    named = {rule.name: rule.prompts for rule in heuristic_rules({"answer": values}, most=1)}
    assert torch.equal(values[named["answer in -30..-21"]], torch.arange(-30, -20))
    assert values[named["answer is .5"]].tolist() == [15, 25, 35, 45, 55]
    assert values[named["answer mod 7 = 3"]].remainder(7).unique().tolist() == [3]


@pytest.mark.compat
def test_contributions_are_activation_times_answer_logit() -> None:
    model, problems = tiny(), sums()
    found = neuron_contributions(model, problems, [(1, 3), (0, 7)], batch_size=4)
    with torch.no_grad():
        _, cache = model.run_with_cache(problems.tokens)
        for i, (layer, unit) in enumerate([(1, 3), (0, 7)]):
            logit = (model.blocks[layer].mlp.W_out[unit] @ model.unembed.W_U)[problems.answers]
            assert torch.allclose(
                found[:, i].double(), cache[f"blocks.{layer}.mlp.hook_post"][:, -1, unit] * logit, atol=1e-5
            )


@pytest.mark.compat
def test_the_published_effect_is_that_of_the_probabilities() -> None:
    model, pair = tiny(), pairs(sums(), 8)
    found = probability_effects(model, pair, [(0, 5), (1, 2)])
    rows = torch.arange(8)
    with torch.no_grad():
        _, cache = model.run_with_cache(pair.corrupted.tokens)
    hooks = Ablate(None, cache["blocks.0.mlp.hook_post"][:, -1, 5:6]).at("blocks.0.mlp.hook_post", pos=-1, unit=5)
    before, after = (logits_with(model, pair.clean.tokens, h)[:, -1].softmax(-1) for h in ([], hooks))
    r, other = pair.clean.answers, pair.corrupted.answers
    gained = (after[rows, other] - before[rows, other]) / before[rows, other]
    lost = (before[rows, r] - after[rows, r]) / after[rows, r]
    assert float(found.mean[0]) == pytest.approx(float((gained + lost).mean() / 2), abs=1e-9)


def test_a_few_hundred_neurons_a_layer_are_faithful_and_random_ones_less() -> None:
    toy = toys.load("add97")
    problems = problems_of(toy)[::41]
    effects = neuron_attribution(toy.model, pairs(problems, 40))
    found = faithfulness(toy.model, problems, effects, (20, 300))
    top, other = found.values(), found.values("random")
    assert top[1] > 0.9
    assert top[1] > other[1] + 0.2
    assert top[0] < 0.5
    assert [row["k"] for row in found.table()] == [20, 300]
    assert "with 300 neurons a layer" in repr(found)
    assert len(top_per_layer(effects, 7)) == 14
    with pytest.warns(UserWarning, match=r"Layers \[0, 1\] have fewer than the 600 neurons asked for"):
        top_per_layer(effects, 600)


@pytest.mark.compat
def test_faithfulness_of_all_neurons_is_1_and_nl_alone_depends_on_a_constant() -> None:
    model, problems = tiny(), sums()
    effects = neuron_attribution(model, pairs(problems, 6))
    found = faithfulness(model, problems, effects, (24,))
    assert found.values().tolist() == pytest.approx([1.0])
    with pytest.warns(UserWarning, match="NL .answer logit / largest logit. changes when a constant"):
        nl = faithfulness(model, problems, effects, (8,), score="NL")
    before = faithfulness(model, problems, effects, (8,)).scores["top"]
    model = tiny(weights={"unembed.b_U": model.unembed.b_U.detach() + 3})
    assert torch.allclose(faithfulness(model, problems, effects, (8,)).scores["top"], before)
    with pytest.warns(UserWarning, match="compare it only between models"):
        assert not torch.allclose(
            faithfulness(model, problems, effects, (8,), score="NL").values(), nl.values(), atol=1e-3
        )
    with pytest.raises(ValueError, match="and one or more neurons a layer"):
        faithfulness(model, problems, effects, (0,))
    same = type(found)("probability", (1,), found.scores, found.accuracy, found.empty, found.empty)
    with pytest.raises(ValueError, match="F divides by that difference"):
        same.values()


def test_knocking_out_a_rule_is_setting_its_neurons_to_their_means() -> None:
    model, problems = tiny(), sums()
    rules = [
        Rule("range", "a", "a in 0..1", problems.inputs["a"] < 2),
        Rule("modulo", "b", "b mod 2 = 0", problems.inputs["b"] % 2 == 0),
    ]
    in_range = 3 * rules[0].prompts.double() - 0.5 * rules[1].prompts.double()
    contributions = torch.stack([in_range, draw(25), in_range], dim=1)
    neurons = torch.tensor([[0, 3], [0, 4], [1, 5]])
    matched = heuristics_of(contributions, problems.inputs, rules, neurons=neurons)
    assert matched.of(0) == ["a in 0..1"] == matched.of(2)
    found = knock_out(model, problems, matched, ("range",))
    hooks = []
    with torch.no_grad():
        _, cache = model.run_with_cache(problems.tokens)
    for layer, unit in ((0, 3), (1, 5)):
        name = f"blocks.{layer}.mlp.hook_post"
        hooks += Ablate(None, cache[name][:, -1, unit].mean()[None]).at(name, pos=-1, unit=unit)
    right = (logits_with(model, problems.tokens, hooks)[:, -1].argmax(-1) == problems.answers).double()
    assert torch.equal(found.accuracy["knocked out"][0], right)
    assert found.rules == [("range", "a in 0..1", 2)]
    row, inside = found.table()[0], rules[0].prompts
    lost = found.clean - right
    assert row["specific"] == pytest.approx(float(lost[inside].mean() - lost[~inside].mean()))
    assert row["low"] <= row["specific"] <= row["high"]
    assert row["associated knocked out"] == pytest.approx(float(right[rules[0].prompts].mean()))
    assert row["others clean"] == pytest.approx(float(found.clean[~rules[0].prompts].mean()))
    assert "KnockOuts(1 rules, 25 prompts: range: associated" in repr(found)
    with pytest.raises(ValueError, match="No neuron matches a rule of the kinds"):
        knock_out(model, problems, heuristics_of(draw(25, 3), problems.inputs, rules, neurons=neurons, threshold=1.0))
    with pytest.raises(ValueError, match="and rules about these 25 prompts"):
        knock_out(model, problems, matched, ("multi-result",))


def test_random_neurons_of_a_knock_out_are_as_many_where_most_neurons_match() -> None:
    model = tiny()
    problems = sums(answers=logits_with(model, sums().tokens)[:, -1].argmax(-1))  # all right, so that edits show
    rule = Rule("range", "a", "a in 0..1", problems.inputs["a"] < 2)
    neurons = torch.tensor([[1, i] for i in range(24)])
    matched = heuristics_of(rule.prompts.double()[:, None].expand(-1, 24), problems.inputs, [rule], neurons=neurons)
    found = knock_out(model, problems, matched, ("range",))
    assert found.rules == [("range", "a in 0..1", 24)]
    assert torch.equal(found.accuracy["random"], found.accuracy["knocked out"])  # not the accuracy of no edit at all
    assert found.accuracy["random"].mean() < 1 == found.clean.mean()
    few = replace(matched, overlap=matched.overlap * (torch.arange(24) < 10))
    assert knock_out(model, problems, few, ("range",)).rules == [("range", "a in 0..1", 10)]


def test_a_dead_neuron_and_equal_contributions_do_not_match_the_order_of_the_prompts() -> None:
    """Prompts stand in the order of a: zeros in their place would make "a in 0..9" of any ReLU neuron that is mostly off."""
    sparse = torch.zeros(1600, 40).double()
    for j in range(40):
        sparse[torch.randperm(1600, generator=torch.Generator().manual_seed(j))[:20], j] = 1
    found = heuristics_of(torch.cat([torch.zeros(1600, 3).double(), sparse], dim=1), INPUTS)
    assert not found.matched()[:3].any()
    assert found.classified < 0.2
    with pytest.raises(ValueError, match="of 2 columns for 2 neurons: a finite column for each is needed"):
        heuristics_of(draw(1600, 2) * float("nan"), INPUTS)


def test_top_neurons_of_each_layer_are_those_of_the_largest_size() -> None:
    neurons = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    mean = torch.tensor([0.1, -0.5, 0.2, 0.3]).double()
    effects = NeuronEffects("attribution", "live", neurons, mean, mean, mean, 2)
    assert top_per_layer(effects, 1).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="k=0: one neuron a layer or more"):
        top_per_layer(effects, 0)
