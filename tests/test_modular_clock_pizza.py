"""Gradient symmetricity, distance irrelevance, circularity, Q shares and the verdict: published models and hand-built ones."""

import itertools
import math
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import toys
from mi_ablate.modular import (
    Grid,
    circularity,
    distance_irrelevance,
    gradient_symmetricity,
    grid,
    isolated_circles,
    published_triples,
    q_share,
    shuffled_measures,
    verdict,
)
from mi_ablate.modular import gradients as module
from mi_ablate.modular.gradients import cosines, operand_positions
from mi_ablate.modular.verdicts import _band
from mi_ablate.toys import ToyConfig, tasks
from mi_ablate.toys.stepper import initial_state
from models import data_folder

HELD: dict[str, Grid] = {}


def third_party(name: str) -> Grid:
    if name not in HELD:
        HELD[name] = grid(toys.load(data_folder() / "third_party_models" / f"{name}.safetensors"))
    return HELD[name]


def untrained(layout: str = "a b =", n: int = 11, seed: int = 0, **options: Any) -> Grid:
    """A small random model in float64 on every pair."""
    shape: dict[str, Any] = {
        "n_layers": 1,
        "d_model": 8,
        "n_heads": 2,
        "d_mlp": 12,
        "normalization": "LN",
        "act_fn": "gelu",
    }
    config = ToyConfig(n, options.pop("operations", ("add",)), layout, **(shape | options))
    return grid(
        toys.Toy(
            model=toys.build(config, seed=seed, dtype=torch.float64),
            tokens=tasks.all_tokens(config),
            answers=tasks.answers(config),
            modulus=n,
            inputs=tasks.inputs(config),
            train=None,
            card={"config": config.to_dict()},
        )
    )


def wave(n: int, k: int, signs: tuple[int, int, int]) -> Tensor:
    """cos 2πk(±i ±j ±c)/n over [n n n]."""
    i = torch.arange(n, dtype=torch.float64)
    return (2 * math.pi * k / n * (signs[0] * i[:, None, None] + signs[1] * i[None, :, None] + signs[2] * i)).cos()


@pytest.mark.compat
@pytest.mark.parametrize(
    ("name", "symmetricity", "irrelevance", "circles"),
    [("zhong_model_a", 0.9937, 0.1717, 0.9978), ("zhong_model_b", 0.3336, 0.8483, 0.9989)],
)
def test_the_published_numbers(name: str, symmetricity: float, irrelevance: float, circles: float) -> None:
    model = third_party(name)
    assert gradient_symmetricity(model).value == pytest.approx(symmetricity, abs=5e-5)
    assert distance_irrelevance(model.logits) == pytest.approx(irrelevance, abs=5e-5)
    assert circularity(model.embedding).value == pytest.approx(circles, abs=5e-5)


def test_draws_of_triples_agree_within_their_standard_error() -> None:
    model = third_party("zhong_model_b")
    published = gradient_symmetricity(model)
    assert (published.triples, published.draw) == (100, "published")
    assert published.standard_error == pytest.approx(0.039, abs=1e-3)
    random_draw = gradient_symmetricity(model, 5000, seed=1)
    assert random_draw.draw == "random"
    assert random_draw.value == pytest.approx(0.3461, abs=4 * random_draw.standard_error)
    assert random_draw.standard_error < 0.01


def test_the_published_draw_is_the_authors() -> None:
    every = list(itertools.product(range(7), repeat=3))
    random.Random(42).shuffle(every)
    assert published_triples(7).tolist() == [list(triple) for triple in every[:100]]
    assert len(published_triples(3, 27).unique(dim=0)) == 27
    with pytest.raises(ValueError, match="28 triples were asked for; Z_3 has 27"):
        published_triples(3, 28)


@pytest.mark.parametrize("layout", ["a b", "a b =", "a op b ="])
@pytest.mark.compat
def test_every_triple_is_the_mean_over_single_gradients(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained(layout, n=5)
    triples = torch.tensor(list(itertools.product(range(5), repeat=3)))
    monkeypatch.setattr(module, "_batch", lambda _: 7)
    single = cosines(model, triples)
    found = gradient_symmetricity(model, "all")
    assert (found.triples, found.draw, found.standard_error) == (125, "all", 0.0)
    assert found.value == pytest.approx(float(single.mean()), abs=1e-12)
    assert found.spread == pytest.approx(statistics.pstdev(single.tolist()), abs=1e-12)
    assert operand_positions(model) == (0, 2 if layout == "a op b =" else 1)


def test_gradients_are_finite_differences_at_the_embedding() -> None:
    model = untrained("a op b =", n=5, operations=("add",))
    a, b, c = 3, 1, 4
    tokens = model.tokens[a * 5 + b][None]
    step = 1e-5

    def logit(place: int, axis: int, sign: int) -> float:
        def nudge(x: Tensor, hook: Any = None) -> Tensor:
            y = x.clone()
            y[:, place, axis] += sign * step
            return y

        with torch.no_grad(), model.model.hooks(fwd_hooks=[("hook_embed", nudge)]):
            return float(model.model(tokens)[0, -1, c])

    left, right = (
        torch.tensor([(logit(place, d, 1) - logit(place, d, -1)) / (2 * step) for d in range(8)]) for place in (0, 2)
    )
    expected = float(torch.cosine_similarity(left, right, dim=0))
    assert float(cosines(model, torch.tensor([[a, b, c]]))) == pytest.approx(expected, abs=1e-6)


def test_subtraction_and_multiplication_use_the_groups_elements() -> None:
    model = untrained("a b =", n=7, operations=("mul",))
    assert model.n == 6
    direct = cosines(model, torch.tensor([[1, 2, 5]]))
    x, y, z = int(model.a[1]), int(model.b[2]), int(model.c[5])
    plain = untrained("a b =", n=7)
    plain = replace(plain, model=model.model)
    assert float(cosines(plain, torch.tensor([[x, y, z]]))) == pytest.approx(float(direct), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 12), seed=st.integers(0, 10**6))
def test_distance_irrelevance_is_its_definition(n: int, seed: int) -> None:
    logits = torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    correct = {(i, j): float(logits[i, j, (i + j) % n]) for i in range(n) for j in range(n)}
    rows = [statistics.pstdev([v for (i, j), v in correct.items() if (i - j) % n == d]) for d in range(n)]
    assert distance_irrelevance(logits) == pytest.approx(
        statistics.mean(rows) / statistics.pstdev(list(correct.values()))
    )
    assert distance_irrelevance(2.5 * logits + 7) == pytest.approx(distance_irrelevance(logits))


def test_distance_irrelevance_of_pure_dependences() -> None:
    n, i = 11, torch.arange(11)
    correct = torch.zeros(n, n, n, dtype=torch.float64)
    height = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answers = ((i[:, None] + i) % n)[..., None]
    of_difference = correct.scatter(-1, answers, height[(i[:, None] - i) % n][..., None])
    of_sum = correct.scatter(-1, answers, height[(i[:, None] + i) % n][..., None])
    assert distance_irrelevance(of_difference) == pytest.approx(0, abs=1e-12)
    assert distance_irrelevance(of_sum) == pytest.approx(1)
    assert math.isnan(distance_irrelevance(torch.ones(n, n, n)))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(5, 30), seed=st.integers(0, 10**6), shift=st.integers(0, 29))
def test_circularity_of_circles_and_of_noise(n: int, seed: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = 1 + seed % ((n - 1) // 2)
    i = torch.arange(n, dtype=torch.float64)
    circle = torch.stack([(2 * math.pi * k * i / n).cos(), (2 * math.pi * k * i / n).sin()], 1)
    into = torch.linalg.qr(torch.randn(8, 2, generator=generator, dtype=torch.float64))[0]
    found = circularity(circle @ into.T + 5)
    assert found.value == pytest.approx(1)
    assert found.frequencies == (k, k), "a circle has two components, however many are asked for"
    noise = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    value = circularity(noise).value
    assert 2 / n < value < 1
    assert circularity(noise.roll(shift, 0)).value == pytest.approx(value), "shifts change phases only"


def test_circularity_reads_four_components_and_mixes_equal_circles() -> None:
    i = torch.arange(31, dtype=torch.float64)
    columns = [f(2 * math.pi * k * i / 31) for k in (2, 5, 11) for f in (torch.cos, torch.sin)]
    size = torch.tensor([3.0, 3, 2, 2, 1, 1], dtype=torch.float64)
    ordered = circularity(torch.stack(columns, 1) * size)
    assert ordered.value == pytest.approx(1)
    assert ordered.frequencies == (2, 2, 5, 5)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    noise = 1e-6 * torch.randn(31, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert circularity(torch.stack(columns, 1) @ turn + noise).value < 0.95
    assert math.isnan(circularity(torch.ones(7, 3)).value)


@pytest.mark.parametrize(("n", "k"), [(31, 4), (30, 15), (12, 5)])
def test_q_shares_know_their_own_formulas(n: int, k: int) -> None:
    clock = wave(n, k, (1, 1, -1))
    i = torch.arange(n, dtype=torch.float64)
    distance = (math.pi * k / n * (i[:, None] - i)).cos().abs()[..., None]
    found = q_share(3 * clock + 1, k)
    assert found.clock == pytest.approx(1)
    assert found.fve("clock") == pytest.approx(1)
    assert q_share(distance * clock, k).pizza == pytest.approx(1)
    assert q_share(-clock, k).clock == pytest.approx(-1)
    assert q_share(-clock, k).fve() == pytest.approx(-3), "2ρ - 1 is no share of variance"
    assert q_share(-clock, k).rho2() == pytest.approx(1)
    other = q_share(wave(n, k - 1, (1, 1, -1)), k)
    assert abs(other.clock) < 1e-9
    half = math.pi * k / n * (i[:, None, None] + i[None, :, None] - i)
    assert q_share(distance * (half.cos().abs() - half.sin().abs()), k).pizza_code == pytest.approx(1)


@pytest.mark.compat
def test_isolated_circles_of_the_published_models() -> None:
    pizza, clock = (isolated_circles(third_party(name), 2) for name in ("zhong_model_a", "zhong_model_b"))
    assert [one.frequency for one in pizza] == [17, 3]
    assert [one.fve("pizza") for one in pizza] == pytest.approx([0.9918, 0.9918], abs=1e-4)
    assert [one.fve("clock") for one in pizza] == pytest.approx([0.7541, 0.7562], abs=1e-4)
    assert [one.frequency for one in clock] == [13, 16]
    assert clock[0].rho2("clock") == pytest.approx(0.780, abs=1e-3)
    assert all(one.clock > one.pizza for one in clock)
    by_frequency = isolated_circles(third_party("zhong_model_a"), 1, by="frequencies")
    assert by_frequency[0].frequency == 17
    assert by_frequency[0].pizza == pytest.approx(0.9983, abs=1e-4)


def test_an_isolated_circle_of_a_hand_built_clock_is_its_cosine() -> None:
    model = grid(toys.analytic(31, [3, 7, 11, 14]))
    assert [one.frequency for one in isolated_circles(model, 4, by="frequencies")] == [3, 7, 11, 14]
    assert all(one.clock > 0.999 for one in isolated_circles(model, 2))
    whole = grid(toys.analytic(13, [5]))
    (alone,) = isolated_circles(whole, 1)
    assert alone.clock == pytest.approx(q_share(whole.logits, 5).clock, abs=1e-6), "one circle alone is the whole model"


@pytest.mark.compat
def test_verdicts_on_hand_built_networks() -> None:
    frequencies = [3, 7, 11, 14]
    clock = verdict(grid(toys.analytic(31, frequencies)))
    pizza = verdict(grid(toys.analytic(31, frequencies, kind="pizza")))
    assert (clock.label, pizza.label) == ("clock", "pizza")
    assert clock.distance_irrelevance > 0.99
    assert pizza.gradient_symmetricity.value > 0.99
    assert "2512.25060" in clock.reasons[-1]
    assert repr(pizza).startswith("Verdict(pizza: symmetricity ")


TABLE = {
    "zhong_model_a": ("pizza", 0.994, 0.172, 0.998),
    "zhong_model_b": ("clock", 0.343, 0.848, 0.999),
    "nanda_mod113": ("clock", 0.152, 0.944, 0.945),
    "nanda113": ("clock", -0.051, 0.973, 0.958),
    "add97": ("clock", 0.164, 0.944, 0.947),
    "add97-wd0.1": ("undecided", 0.192, 0.698, 0.496),
    "addmul97 add": ("undecided", 0.044, 0.944, 0.881),
    "addmul97 mul": ("undecided", 0.615, 0.901, 0.125),
}
"""The verdict module's table."""


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_verdicts(name: str) -> None:
    label, symmetricity, irrelevance, circles = TABLE[name]
    if name in ("zhong_model_a", "zhong_model_b", "nanda_mod113"):
        model = third_party(name)
    else:
        zoo, _, operation = name.partition(" ")
        model = grid(toys.load(zoo), operation or None)
    found = verdict(model)
    assert found.label == label
    assert found.gradient_symmetricity.value == pytest.approx(symmetricity, abs=2e-3)
    assert found.distance_irrelevance == pytest.approx(irrelevance, abs=6e-4)
    assert found.circularity.value == pytest.approx(circles, abs=6e-4)
    assert found.untrained["distance_irrelevance"] > 0.98
    carried = any("accuracy and circles carry this verdict" in reason for reason in found.reasons)
    assert carried == (name == "zhong_model_b"), "Model B's architecture gives such numbers untrained"
    if label == "undecided":
        assert found.reasons[0].startswith("Not circular")
        assert found.reasons[1].startswith("The measures alone")


def test_untrained_networks_get_no_verdict() -> None:
    for layout in ("a b", "a b =", "a op b ="):
        for seed in range(2):
            found = verdict(untrained(layout, n=13, seed=seed))
            assert found.label == "undecided"
            assert "there is no algorithm to name below 0.9" in found.reasons[0]


def test_accuracy_is_of_the_pairs_that_were_not_trained_on() -> None:
    model = third_party("zhong_model_a")
    wrong = torch.zeros(59, 59, dtype=torch.bool)
    wrong[:8] = True
    memorised = replace(model, train=~wrong)
    memorised.__dict__["all_logits"] = torch.where(wrong[..., None], -model.all_logits, model.all_logits)
    assert memorised.accuracy > 0.8
    found = verdict(memorised)
    assert (found.label, found.split, found.accuracy) == ("undecided", "test", 0.0)
    assert found.reasons[0].startswith("It answers 0.000 of the held-out pairs")


def test_shuffling_gives_the_model_its_weights_back() -> None:
    model = untrained("a b =", n=11)
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}  # type: ignore[attr-defined]
    logits = model.logits.clone()
    found = shuffled_measures(model)
    assert found != shuffled_measures(model, seed=1)
    assert found == shuffled_measures(model)
    blind = replace(model, tokens=torch.zeros_like(model.tokens))
    with pytest.raises(ValueError, match="holds the first operand"):
        shuffled_measures(blind)
    for name, p in model.model.named_parameters():  # type: ignore[attr-defined]
        assert torch.equal(p, before[name]), name
    assert torch.equal(replace(model).logits, logits)


def test_a_collapsed_model_is_undecided_and_has_no_numbers() -> None:
    model = untrained("a b =", n=11)
    with torch.no_grad():
        for p in model.model.parameters():  # type: ignore[attr-defined]
            p.zero_()
    found = verdict(replace(model))
    assert found.label == "undecided"
    assert math.isnan(found.circularity.value)
    assert math.isnan(found.distance_irrelevance)
    assert found.gradient_symmetricity.value == 0
    assert found.sparsity == 1


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained("a b =", n=5)
    with pytest.raises(ValueError, match=r"logits have shape \[5, 5, 6\]; pairs of one group and its n answers"):
        distance_irrelevance(torch.zeros(5, 5, 6))
    with pytest.raises(ValueError, match="Frequency 3 is none of Z_5, which has 1 to 2"):
        q_share(model.logits, 3)
    with pytest.raises(ValueError, match="Z_5 is too small for a verdict: with 2 frequencies random embeddings look"):
        verdict(model)
    with pytest.raises(ValueError, match="is 'published', 'all' or how many to draw at random, at least 2"):
        gradient_symmetricity(model, 1)
    with pytest.raises(ValueError, match=r"0 components of an embedding of \[5, 8\]: rows over Z_n"):
        circularity(model.embedding, 0)
    with pytest.raises(ValueError, match="by='pca' is one of components, frequencies"):
        isolated_circles(model, 1, by="pca")
    with pytest.raises(ValueError, match=r"3 circles were asked for; Grid\(add mod 5: Z_5, 25 pairs\) has 1 to 2"):
        isolated_circles(model, 3)
    with pytest.raises(ValueError, match="which='both' is 'clock', 'pizza' or 'pizza_code'"):
        q_share(model.logits, 1).fve("both")
    swapped = replace(model, tokens=model.tokens.roll(1, 0))
    with pytest.raises(ValueError, match=r"No position of the prompts of .* holds the first operand; prompt 1 is \["):
        gradient_symmetricity(swapped)


def test_a_model_without_gradients_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained("a b =", n=5)
    with torch.inference_mode():
        assert gradient_symmetricity(model).triples == 100, "a caller's inference mode is no obstacle"
    forward = model.model.forward  # type: ignore[attr-defined]
    monkeypatch.setattr(model.model, "forward", torch.no_grad()(forward))
    with pytest.raises(ValueError, match="have no gradient with respect to the embeddings: its forward pass"):
        gradient_symmetricity(model)


@pytest.mark.parametrize(
    ("symmetricity", "irrelevance", "error", "label"),
    [
        (0.95, 0.3, 0.01, "pizza"),
        (0.95, 0.3, 0.1, "undecided"),
        (0.7, 0.7, 0.01, "clock"),
        (0.7, 0.7, 0.1, "undecided"),
        (0.95, 0.95, 0.0, "undecided"),
        (0.2, 0.2, 0.0, "undecided"),
        (0.95, 0.5, 0.0, "undecided"),
        (0.8, 0.3, 0.0, "undecided"),
        (0.8, 0.9, 0.0, "undecided"),
        (math.nan, 0.9, 0.0, "undecided"),
        (0.2, math.nan, 0.0, "undecided"),
    ],
)
def test_one_measure_alone_decides_nothing(symmetricity: float, irrelevance: float, error: float, label: str) -> None:
    found, why = _band(symmetricity, irrelevance, error)
    assert found == label
    assert ("Both measures are high" in why) == ((symmetricity, irrelevance) == (0.95, 0.95))
    assert f"gradient symmetricity {symmetricity:.3f}" in why


def test_untrained_symmetricity_is_the_architectures_and_distance_irrelevance_is_high() -> None:
    shape: dict[str, Any] = {"n_layers": 1, "d_mlp": 512, "act_fn": "relu", "normalization": None, "biases": "mlp"}
    values = []
    for layout, attention in (("a b =", "causal"), ("a b", "bidirectional")):
        config = ToyConfig(31, ("add",), layout, attention=attention, **shape)
        model = replace(untrained(layout, n=31), model=toys.build(config, initial_state(config, "nanda", 0)))
        values.append(gradient_symmetricity(model, 500).value)
        assert distance_irrelevance(model.logits) > 0.97
    assert values[0] > 0.99
    assert values[1] < 0.6, "b has a skip path that a has not"
