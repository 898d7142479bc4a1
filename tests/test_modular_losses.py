"""Restricted, excluded and trig loss: the published model's numbers, planted logits, and every refusal."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import attached, toys
from mi_ablate.modular import (
    FourierBasis,
    Grid,
    excluded_each,
    excluded_loss,
    full_loss,
    grid,
    progress_losses,
    restricted_loss,
    trig_loss,
)
from mi_ablate.modular.losses import LOSSES
from models import data_folder

ONCE: dict[str, Any] = {}


def small(n: int = 11, operation: str = "add") -> Grid:
    """A grid of Z_n whose model nobody trained."""
    config = toys.ToyConfig(
        n + (operation == "mul"), (operation,), "a b =", n_layers=1, d_model=16, n_heads=2, d_mlp=24, normalization=None
    )
    key = (n, operation)
    if key not in ONCE:
        ONCE[key] = grid(_toy(config))
    return ONCE[key]


def _toy(config: toys.ToyConfig) -> toys.Toy:
    from mi_ablate.toys import tasks

    return toys.Toy(
        model=toys.build(config, seed=3),
        tokens=tasks.all_tokens(config),
        answers=tasks.answers(config),
        modulus=config.modulus,
        inputs=tasks.inputs(config),
        train=None,
        card={"config": config.to_dict()},
    )


def with_logits(logits: Tensor, operation: str = "add") -> Grid:
    """A grid whose model says these logits."""
    base = small(len(logits), operation)
    made = replace(base)
    every = torch.full((*logits.shape[:2], base.modulus), -1e9, dtype=torch.float64)
    every[..., base.c] = logits
    made.__dict__["all_logits"] = every
    return made


def angles(n: int, k: int, signs: tuple[int, int, int]) -> Tensor:
    """2πk(±i ±j ±c)/n over [n n n]."""
    i = torch.arange(n, dtype=torch.float64)
    s, t, u = signs
    return 2 * math.pi * k / n * (s * i[:, None, None] + t * i[None, :, None] + u * i)


def cross_entropy(logits: Tensor) -> float:
    n = len(logits)
    i = torch.arange(n)
    answers = (i[:, None] + i).flatten() % n
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers))


def nanda() -> Grid:
    if "nanda" not in ONCE:
        ONCE["nanda"] = grid(toys.load(data_folder() / "third_party_models" / "nanda_mod113.safetensors"))
    return ONCE["nanda"]


def test_every_variant_on_the_published_model() -> None:
    found = progress_losses(nanda(), [23, 6, 39, 3, 35], which="all")
    values = {name: loss.value for name, loss in found.items()}
    expected = {
        "full": 2.888e-3,
        "restricted_nanda_text": 3.669e-2,
        "restricted_nanda_text_44": 3.972e-2,
        "restricted_nanda_colab": 3.418e-3,
        "restricted_tl_demo": 5.277e-3,
        "excluded_nanda_text": 18.72,
        "excluded_tl_demo": 17.63,
    }
    assert values == pytest.approx(expected, rel=1e-3)
    assert all(values[name] > values["full"] for name in values if name != "full"), "restricted is above full here"
    assert all(loss.split == "all" for loss in found.values())
    assert found["restricted_tl_demo"].level == "neurons"
    assert found["restricted_tl_demo"].frequencies == (3, 6, 23, 35, 39)


def test_an_energetic_frequency_can_be_inert_and_a_small_one_matter() -> None:
    each = excluded_each(nanda(), [35, 9], which="all")
    full = full_loss(nanda()).value
    assert each[35].value == pytest.approx(full, rel=0.01)
    assert each[9].value == pytest.approx(9.861e-3, rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(n=st.sampled_from([9, 10, 11, 12]), seed=st.integers(0, 10**6), data=st.data())
def test_projections_agree_with_least_squares_on_written_out_functions(n: int, seed: int, data: st.DataObject) -> None:
    ks = data.draw(st.lists(st.integers(1, n // 2), min_size=1, max_size=3, unique=True))
    logits = 3 * torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = with_logits(logits, "mul" if n in (10, 12) else "add")
    i = torch.arange(n, dtype=torch.float64)
    w = [2 * math.pi * k / n for k in ks]
    wave = {
        "sum": [f(x * (i[:, None] + i)) for x in w for f in (torch.cos, torch.sin)],
        "2x2": [
            f(x * i)[:, None] * g(x * i) for x in w for f in (torch.cos, torch.sin) for g in (torch.cos, torch.sin)
        ],
    }
    one = torch.ones(n, n, dtype=torch.float64)
    singles = [one * y for x in w for f in (torch.cos, torch.sin) for y in (f(x * i)[:, None], f(x * i))]
    wave["3x3"] = wave["2x2"] + singles

    def kept(part: str, constant: bool) -> Tensor:
        columns = torch.stack([x.flatten() for x in wave[part] + ([one] if constant else [])], 1)
        u, s, _ = torch.linalg.svd(columns, full_matrices=False)
        u = u[:, s > 1e-8 * s[0]]
        return (u @ (u.T @ logits.flatten(0, 1))).reshape(n, n, n)

    for variant, part in (("nanda_text", "2x2"), ("nanda_text_44", "3x3"), ("nanda_colab", "sum")):
        assert restricted_loss(model, ks, variant).value == pytest.approx(cross_entropy(kept(part, True)), rel=1e-9)
    assert excluded_loss(model, ks, which="all").value == pytest.approx(
        cross_entropy(logits - kept("sum", False)), rel=1e-9
    )
    assert full_loss(model).value == pytest.approx(cross_entropy(logits), rel=1e-12)


def test_what_each_variant_keeps_of_planted_logits() -> None:
    n = 11
    bias = torch.linspace(-1, 1, n, dtype=torch.float64)
    answer = 2 * angles(n, 3, (1, 1, -1)).cos()
    difference = angles(n, 3, (1, -1, -1)).cos()
    single = angles(n, 3, (1, 0, -1)).cos()
    other = angles(n, 2, (1, 1, -1)).cos()
    model = with_logits(answer + difference + single + other + bias)
    says = {name: loss.value for name, loss in _logit_losses(model).items()}
    assert says["restricted_nanda_colab"] == pytest.approx(cross_entropy(answer + bias))
    assert says["restricted_nanda_text"] == pytest.approx(cross_entropy(answer + difference + bias))
    assert says["restricted_nanda_text_44"] == pytest.approx(cross_entropy(answer + difference + single + bias))
    assert says["excluded_nanda_text"] == pytest.approx(cross_entropy(difference + single + other + bias))
    assert len({round(value, 6) for value in says.values()}) == len(says), "the variants differ"


def _logit_losses(model: Grid) -> dict[str, Any]:
    found = {f"restricted_{v}": restricted_loss(model, [3], v) for v in ("nanda_text", "nanda_text_44", "nanda_colab")}
    return found | {"excluded_nanda_text": excluded_loss(model, [3], which="all")}


def test_names_of_one_definition_agree() -> None:
    model = with_logits(torch.randn(11, 11, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert trig_loss(model, [2, 4]) == restricted_loss(model, [4, 2, 2], "nanda_colab")
    colab, arena = (excluded_each(model, variant=v, which="all") for v in ("nanda_colab", "arena"))
    assert list(colab) == [1, 2, 3, 4, 5]
    assert all(colab[k].value == arena[k].value == excluded_loss(model, [k], which="all").value for k in colab)


def test_without_its_frequencies_a_hand_built_model_knows_nothing() -> None:
    model = grid(toys.analytic(31, [3, 7, 11, 14]))
    found = progress_losses(model, [3, 7, 11, 14], which="all")
    assert found["full"].value < 1e-6
    for name, loss in found.items():
        if name.startswith("excluded"):
            assert loss.value == pytest.approx(math.log(31), rel=0.01), name
        else:
            assert loss.value == pytest.approx(found["full"].value, abs=1e-6), name
    wrong = restricted_loss(model, [1, 2, 4, 5], which="all")
    assert wrong.value == pytest.approx(math.log(31), rel=0.01)


def test_the_neuron_level_is_the_demos_formula_without_norms() -> None:
    model, ks = small(11), [2, 5]
    basis = FourierBasis(11)
    acts, w = model.acts("blocks.0.mlp.hook_post"), model.neuron_logits()
    columns = torch.cat([basis.sum_directions(k) for k in ks]).flatten(1)
    part = (columns.T @ (columns @ acts.flatten(0, 1))).reshape(acts.shape)
    kept = (acts.mean((0, 1)) + part) @ w
    kept = kept + model.logits.mean((0, 1)) - kept.mean((0, 1))
    assert restricted_loss(model, ks, "tl_demo", which="all").value == pytest.approx(cross_entropy(kept), rel=1e-5)
    excluded = cross_entropy(model.logits - part @ w)
    assert excluded_loss(model, ks, "tl_demo", which="all").value == pytest.approx(excluded, rel=1e-5)


@pytest.mark.compat
def test_the_neuron_level_is_an_edit_of_the_running_model() -> None:
    toy = toys.load("add97")
    model, ks = grid(toy), [44, 6]
    site = "blocks.1.mlp.hook_post"
    part = FourierBasis(97).component(model.acts(site), ks).flatten(0, 1).float()

    def remove(x: Tensor, hook: Any = None) -> Tensor:
        y = x.clone()
        y[:, -1] -= part
        return y

    with torch.no_grad(), attached(toy.model, [(site, remove)]):
        edited = toy.model(model.tokens)[:, -1].double().unflatten(0, (97, 97))
    found = excluded_loss(model, ks, "tl_demo", which="all")
    assert found.value == pytest.approx(cross_entropy(edited), rel=1e-4)
    assert found.value > full_loss(model).value + 0.01


def test_splits_are_the_publications_unless_another_is_asked_for() -> None:
    model = with_logits(torch.randn(11, 11, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    train = torch.zeros(11, 11, dtype=torch.bool)
    train[:4] = True
    known = replace(model, train=train)
    known.__dict__["all_logits"] = model.all_logits
    assert {name: loss.split for name, loss in progress_losses(known, [2]).items()} == {
        "full": "all",
        "restricted_nanda_text": "all",
        "restricted_nanda_text_44": "all",
        "restricted_nanda_colab": "all",
        "restricted_tl_demo": "test",
        "excluded_nanda_text": "train",
        "excluded_tl_demo": "train",
    }
    parts = [excluded_loss(known, [2], which=which).value for which in ("train", "test", "all")]
    assert (44 * parts[0] + 77 * parts[1]) / 121 == pytest.approx(parts[2])
    everything = replace(known, train=torch.ones_like(train))
    with pytest.raises(
        ValueError, match=r"The 'test' split of Grid\(add mod 11: Z_11, 121 pairs\) is empty; read another"
    ):
        full_loss(everything, "test")


def test_what_cannot_be_measured_is_refused() -> None:
    model = small(11)
    with pytest.raises(ValueError, match=r"Nobody knows which pairs .* so there is no 'train' split; use 'all'"):
        excluded_loss(model, [2])
    with pytest.raises(ValueError, match=r"There is no variant 'arena' of the restricted loss; there are nanda_text"):
        restricted_loss(model, [2], "arena")
    with pytest.raises(
        ValueError, match=r"loss of no frequencies was asked for. A run without key frequencies has its full"
    ):
        restricted_loss(model, [])
    with pytest.raises(
        ValueError, match=r"arena removes one frequency at a time, not 2; excluded_each\(grid, \[2, 3\]\) gives"
    ):
        excluded_loss(model, [3, 2], "arena", which="all")
    with pytest.raises(ValueError, match="Z_11 has the frequencies 1 to 5; \\[6\\] are none of them"):
        trig_loss(model, [6])


def test_a_loss_says_what_it_is() -> None:
    assert {v for m, v in LOSSES if m == "excluded"} == {"nanda_text", "nanda_colab", "arena", "tl_demo"}
    found = restricted_loss(small(11), [2])
    assert repr(found).startswith("Loss(restricted nanda_text: ")
    assert (found.rule, found.bias) == ("keeps the 2x2 terms", "mean logits kept")
    assert repr(full_loss(small(11))).startswith("Loss(full: ")
