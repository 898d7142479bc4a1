"""What the measures of numbers say of a planted adder is what was planted: effects, roles, paths, circuits, written helices."""

import pytest
import torch

from mi_ablate import arithmetic
from mi_ablate.arithmetic import planted, problems
from mi_ablate.arithmetic.by_hand.planted_truth import SHARES


@pytest.fixture(scope="module")
def adder():
    return planted(seed=4)


@pytest.fixture(scope="module")
def sums(adder):
    return problems(adder.model, "add", range(100), range(100), template=adder.template, bos=False, limit=500)


@pytest.fixture(scope="module")
def pairs(sums):
    return arithmetic.pairs(sums, 12)


def place(component):
    return component.layer if component.head is None else (component.layer, component.head)


@pytest.mark.parametrize("norm", ["live", "frozen"])
def test_total_and_direct_effects_are_the_planted_ones(adder, pairs, norm):
    for what in ("heads", "mlps"):
        found = arithmetic.component_effects(adder.model, pairs, what, norm=norm, draws=0)
        for component, total, direct in zip(found.components, found.total, found.direct):
            wanted = adder.truth.effects(place(component), pairs.clean.inputs, pairs.corrupted.inputs)
            assert total == pytest.approx(wanted[0], abs=2e-5), component
            assert direct == pytest.approx(wanted[1], abs=2e-5), component
        if what == "mlps":
            gain = adder.truth.gain(pairs.clean.inputs["answer"], pairs.corrupted.inputs["answer"])
            assert found.gap == pytest.approx(gain, abs=2e-5)
            share = found.direct.mean(1) / gain.mean()
            assert share == pytest.approx(torch.tensor([0, 0, SHARES["mlp", 2], SHARES["mlp", 3]]).double(), abs=1e-6)
            assert found.total.mean(1)[1] == pytest.approx(float(gain.mean()))


def test_heads_get_the_labels_that_they_were_given(adder, sums, pairs):
    found = arithmetic.head_roles(adder.model, sums, pairs)
    wanted = {"copies a": "a,b", "copies b": "a,b", "reads a+b": "a+b", "neutral": "idle", "decoy": "idle"}
    assert len(found.heads) == 16
    for row, head in zip(found.table(), found.heads):
        role = adder.truth.role(place(head))
        assert row["label"] == wanted[role], head
        if wanted[role] != "idle":
            assert max(row["c a,b"], row["c a+b"]) == pytest.approx(1, abs=1e-6)
            at = {"copies a": "attention a", "copies b": "attention b", "reads a+b": "attention last"}[role]
            assert row[at] == pytest.approx(1, abs=1e-9)


def test_the_mlp_that_builds_and_those_that_read(adder, sums, pairs):
    found = arithmetic.mlp_roles(adder.model, sums, pairs)
    rows = {row["layer"]: row for row in found.table()}
    for layer in (1, 2, 3):
        assert rows[layer]["built"] == pytest.approx(1, abs=1e-6)
        assert rows[layer]["direct share"] == pytest.approx(float(layer > 1), abs=1e-6)
        assert abs(rows[layer]["shuffled"]) < 0.4
    assert abs(rows[0]["total"]) < 1e-6
    other = arithmetic.mlp_roles(adder.model, sums, pairs, basis="a,b")
    assert other.table()[1]["built"] < 0.5, "a sum of functions of a and b holds no angle of a + b"


def test_paths_lead_from_the_copies_through_the_adding_mlp_to_the_readers(adder, pairs):
    truth = adder.truth
    copies = [f"L1H{truth.heads[name][1]}" for name in ("a", "b", "decoy")]
    readers = [f"L2H{truth.heads['a+b 2'][1]}", "MLP 2", f"L3H{truth.heads['a+b 3'][1]}", "MLP 3"]
    found = arithmetic.path_effects(adder.model, pairs, [*copies, "MLP 1"], ["MLP 1", *readers])
    receivers = [str(component) for component in found.receivers]
    effect = {
        (str(sender), receiver): found.values[i, receivers.index(receiver)]
        for i, sender in enumerate(found.senders)
        for receiver in receivers
    }
    for name, sender in zip(("a", "b", "decoy"), copies):
        total = truth.effects(truth.heads[name], pairs.clean.inputs, pairs.corrupted.inputs)[0]
        assert effect[sender, "MLP 1"] == pytest.approx(total, abs=2e-5)
        for reader in readers:
            assert effect[sender, reader].abs().max() < 2e-5
    gain = truth.gain(pairs.clean.inputs["answer"], pairs.corrupted.inputs["answer"])
    for reader, share in zip(readers, (("head", 2), ("mlp", 2), ("head", 3), ("mlp", 3))):
        assert effect["MLP 1", reader] == pytest.approx(SHARES[share] * gain, abs=2e-5)


def test_the_smallest_circuits_are_the_planted_parts(adder, pairs):
    found = arithmetic.smallest_sets(adder.model, pairs, "mlps", (0.7, 0.99), draws=0)
    assert [str(component) for component in found[0.99]] == ["MLP 1"]
    heads = [f"L1H{adder.truth.heads[name][1]}" for name in ("a", "b")]
    both = arithmetic.joint_effect(adder.model, pairs, heads)
    gain = adder.truth.gain(pairs.clean.inputs["answer"], pairs.corrupted.inputs["answer"])
    assert both == pytest.approx(gain, abs=2e-5)


def test_a_written_helix_of_a_gives_the_whole_effect_until_a_was_read(adder, sums):
    pairs = arithmetic.pairs(sums, 24, fixed="b")
    sites = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    written = arithmetic.reconstructions(arithmetic.number_means(adder.model, sums, sites))
    found = arithmetic.swap(adder.model, pairs, written)
    gain = adder.truth.gain(pairs.clean.inputs["answer"], pairs.corrupted.inputs["answer"])
    rows = {method: found.values["gain"][i] for i, method in enumerate(found.methods)}
    for site in (0, 1):
        assert rows["full"][site] == pytest.approx(gain, abs=1e-4)
        assert rows["helix"][site] == pytest.approx(gain, abs=1e-4), "of numbers that the fit has not seen"
        assert rows["polynomial"][site].mean() < 0.5 * gain.mean()
        assert rows["shuffled"][site].mean() < 0.2 * gain.mean()
        assert rows["circle"][site].mean() > 0.9 * gain.mean(), "without the line"
    assert max(float(x[2].abs().max()) for x in rows.values()) < 1e-9


def test_the_spectrum_has_the_planted_periods_and_no_other(adder, sums):
    means = arithmetic.embedding_means(adder.model, sums.numerals)
    below = means.kept(means.values < 100)
    found = arithmetic.number_spectra(below)
    assert sorted(found.peaks()) == [2, 5, 10, 100]
    flat = planted(periods=(2, 5, 10, 25), linear=0.5, seed=4)
    other = arithmetic.embedding_means(flat.model, sums.numerals)
    sizes = flat.truth.radii
    energy = {T: r**2 for T, r in sizes.items()}  # of cos and sin together; the same for the one coordinate of period 2
    shares = arithmetic.number_spectra(other.kept(other.values < 100))
    total = sum(energy.values())
    for T, share in energy.items():
        assert shares.shares[0, shares.line(T)] == pytest.approx(share / total, abs=0.02), "the line has the rest"
    mixed = planted(shuffled=True, seed=4)
    none = arithmetic.embedding_means(mixed.model, sums.numerals)
    assert not arithmetic.number_spectra(none.kept(none.values < 100)).peaks()


def test_the_neurons_terms_come_back(adder, sums):
    neurons = adder.truth.neurons
    found = arithmetic.neuron_fits(adder.model, sums, [(n["layer"], n["neuron"]) for n in neurons])
    wanted = torch.zeros_like(found.coef)
    for i, neuron in enumerate(neurons):
        terms = dict(neuron["terms"])
        if "answer:linear" in terms:  # the line of a + b is that of a plus that of b
            terms["a:linear"] = terms["b:linear"] = terms.pop("answer:linear")
        wanted[[found.labels.index(label) for label in terms], i] = torch.tensor(list(terms.values())).double()
    assert found.coef == pytest.approx(wanted, abs=1e-6)
    assert found.r2.min() > 1 - 1e-9
    fraction = found.answer_fraction()
    for i, neuron in enumerate(neurons):
        if neuron["period"]:
            assert fraction[i] == pytest.approx(float(neuron["reads"] == "a+b"), abs=1e-6)


def test_direct_effects_of_neurons_add_up_to_their_mlps(adder, pairs):
    found = arithmetic.neuron_direct_effects(adder.model, pairs)
    gain = float(adder.truth.gain(pairs.clean.inputs["answer"], pairs.corrupted.inputs["answer"]).mean())
    for layer in range(4):
        share = SHARES.get(("mlp", layer), 0)
        assert found.mean[found.neurons[:, 0] == layer].sum() == pytest.approx(share * gain, abs=1e-4)
    alive = {(n["layer"], n["neuron"]) for n in adder.truth.neurons if n["reads"] == "a+b"}
    assert {tuple(x) for x in found.carrying(0.99).tolist()} <= alive
