"""Directions found by gradient: a planted one from a random start, what each term is for, and what is left untouched."""

import json

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Add, Subspace, find
from mi_ablate.metrics import accuracy, cross_entropy
from models import logits_with, tiny
from test_choosing import LAST, SCORE, D, U, V, behaving, planted

TRAIN, HELD_OUT = behaving(40, 0), behaving(30, 1)
DIRECTION = torch.eye(16, dtype=torch.float64)[V]


@pytest.fixture(scope="module")
def model():
    return planted(2, source=V)


def found(model, **options) -> Subspace:
    return find.optimised(model, *TRAIN, SCORE, LAST, **{"start": "random", "steps": 60, "lr": 0.05} | options)


@pytest.mark.compat
def test_a_planted_direction_is_found_from_a_random_start(model) -> None:
    s = found(model)
    assert float(s.basis[:, 0] @ DIRECTION) > 0.95
    assert abs(float(Subspace.random(16, 1).basis[:, 0] @ DIRECTION)) < 0.7
    tokens, labels = HELD_OUT
    choice = mi.choose(model, {(LAST, -1): s}, tokens, labels, SCORE)
    assert choice.table()[0]["bypass"] < choice.clean["induce"] + 1
    assert choice.table()[0]["induce"] > choice.clean["bypass"] - 3
    assert choice.table()[0]["kl"] < 0.05
    history = s.source["history"]
    assert history["loss"][-1] < 0.2 < history["loss"][0]
    assert s.source["cosine_with_means"] > 0.9
    assert s.source["levels"]["positive"] > s.source["levels"]["negative"] + 5


def test_the_terms_are_those_of_naive_passes(model) -> None:
    start = Subspace.random(16, 1, seed=4)
    s = found(model, start=start, steps=1, batch_size=40, weights={"retain": 3})
    tokens, labels = TRAIN
    up, down = tokens[labels], tokens[~labels]

    def score(x: Tensor, hooks: object = ()) -> Tensor:
        logits = logits_with(model, x, hooks)
        return SCORE(logits, None, torch.arange(len(x)))

    low, high = score(down).mean(), score(up).mean()
    gone = mi.Ablate(start).at(*mi.writers(model))
    size = find.candidates(model, tokens, labels, LAST).subspace(LAST).vector.norm()
    added = Add(size * start.basis[:, 0]).at(LAST)
    kl = mi.metrics.kl()(logits_with(model, down, gone), logits_with(model, down), torch.arange(20)).mean()
    wanted = {
        "ablation": ((score(up, gone) - low) / (high - low)).clamp(min=0).mean(),
        "addition": ((high - score(down, added)) / (high - low)).clamp(min=0).mean(),
        "retain": kl,
    }
    wanted["loss"] = wanted["ablation"] + 0.2 * wanted["addition"] + 3 * wanted["retain"]
    assert {key: value[0] for key, value in s.source["history"].items()} == pytest.approx(
        {key: float(value) for key, value in wanted.items()}, abs=1e-10
    )
    assert float(s.vector.norm()) == pytest.approx(float(size))
    assert torch.allclose(s.basis, start.basis)


def test_a_term_of_weight_0_is_left_out_and_then_nothing_keeps_it(model) -> None:
    only = found(model, weights={"addition": 0, "retain": 0}, steps=3)
    assert set(only.source["history"]) == {"loss", "ablation"}
    flat = found(model, weights={"ablation": 0, "addition": 0}, steps=20)
    assert abs(float(flat.basis[:, 0] @ DIRECTION)) < 0.9
    assert flat.source["history"]["retain"][-1] < flat.source["history"]["retain"][0]


@pytest.mark.compat
def test_nothing_of_the_model_is_touched_also_where_gradients_are_off(model) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.embed.W_E.requires_grad_(False)
    with torch.no_grad():
        off = found(model, steps=5)
        assert not torch.is_grad_enabled()
    on = found(model, steps=5)
    assert torch.equal(off.basis, on.basis)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
        assert p.requires_grad == (p is not model.embed.W_E)
    model.embed.W_E.requires_grad_(True)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_the_seed_decides(model) -> None:
    one, same, other = (found(model, steps=4, batch_size=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.basis, same.basis)
    assert one.source == same.source
    assert not torch.allclose(one.basis, other.basis, atol=1e-3)


def test_it_stops_where_nothing_gets_better_and_says_so(model) -> None:
    calls: list[tuple[int, int]] = []
    start = Subspace.span(DIRECTION)
    early = found(model, steps=400, patience=3, start=start, progress=lambda *at: calls.append(at))
    assert early.source["steps_taken"] == len(calls) == len(early.source["history"]["loss"]) < 400
    assert calls[-1][1] == 400
    on = len(calls) + 2
    assert found(model, steps=on, patience=None, start=start).source["steps_taken"] == on, "where it would have stopped"


def test_a_cone_of_directions_each_of_which_does_it() -> None:
    model = planted(1, source=V)
    with torch.no_grad():  # a second coordinate that is written and read like the first
        model.blocks[0].attn.W_O[0, 0, 12] = 1.5
        model.unembed.W_U[12, D] = 6.0
    cone = find.optimised(model, *TRAIN, SCORE, LAST, rank=2, samples=1, steps=25, lr=0.1)
    assert cone.rank == 2
    assert cone.source["samples"] == 1
    assert cone.source["sizes"][0] == cone.source["sizes"][1] > 0
    assert torch.allclose(cone.basis.T @ cone.basis, torch.eye(2, dtype=torch.float64), atol=1e-10)
    history = cone.source["history"]["loss"]
    assert min(history) < 0.7 * history[0]
    assert 0 < cone.source["cosine_with_means"] <= 1


@pytest.mark.compat
def test_padding_and_half_precision() -> None:
    model = planted(1, source=V, dtype=torch.bfloat16)
    tokens, labels = TRAIN
    padded = torch.cat([tokens, torch.full((40, 2), 11)], 1)
    mask = torch.ones_like(padded)
    mask[:, 5:] = 0
    s = find.optimised(model, padded, labels, SCORE, LAST, attention_mask=mask, steps=10)
    whole = find.optimised(model, tokens, labels, SCORE, LAST, steps=10)
    assert s.basis.dtype == torch.float64
    assert float(s.basis[:, 0] @ whole.basis[:, 0]) > 0.99
    assert float(s.basis[:, 0] @ DIRECTION) > 0.9


def test_the_source_is_plain_json_and_a_start_is_taken(model) -> None:
    start = Subspace.span(torch.eye(16, dtype=torch.float64)[U], "decoy")
    s = found(model, start=start, steps=2)
    assert json.loads(json.dumps(s.source))["start"] == "decoy"
    assert s.source["n"] == {"positive": 20, "negative": 20}
    assert abs(float(s.basis[U, 0])) > 0.9
    assert float(found(model, start="means", steps=1).source["cosine_with_means"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"labels": torch.ones(40, dtype=torch.bool)}, ValueError, "All 40 labels are"),
        ({"labels": ~TRAIN[1]}, ValueError, "behaviour is not there to be found. Are the labels the right way round?"),
        ({"metric": accuracy(torch.zeros(40, dtype=torch.int64))}, ValueError, "is not differentiable"),
        (
            {"metric": cross_entropy(torch.zeros(40, dtype=torch.int64))},
            ValueError,
            "a higher one has to mean the behaviour",
        ),
        ({"metric": accuracy(torch.zeros(9, dtype=torch.int64))}, ValueError, "there are 40 prompts to optimise on"),
        ({"site": "blocks.0.mlp.hook_post"}, ValueError, "is no part of the residual stream, where the direction"),
        ({"site": "blocks.0.attn.hook_z"}, ValueError, "is no part of the residual stream, where the direction"),
        ({"site": "resid_post"}, ValueError, "the full name of one hook point is needed"),
        ({"site": "blocks.7.hook_resid_post"}, KeyError, "blocks.7.hook_resid_post"),
        ({"rank": 17}, ValueError, "rank=17: from 1 to 16 directions of the residual stream"),
        ({"start": "here"}, ValueError, "start='here' is 'means', 'random' or a Subspace."),
        ({"start": Subspace.random(9, 1)}, ValueError, "and the site has width 16"),
        ({"weights": {"keep": 1}}, ValueError, "numbers of 0 or more, not all 0, for some of"),
        ({"weights": {"ablation": 0, "addition": 0, "retain": 0}}, ValueError, "numbers of 0 or more, not all 0"),
        ({"weights": {"retain": -1}}, ValueError, "numbers of 0 or more, not all 0"),
        ({"steps": 0}, ValueError, "steps=0: a number above 0 is needed to optimise."),
        ({"lr": float("nan")}, ValueError, "lr=nan: a number above 0 is needed to optimise."),
        ({"patience": 0}, ValueError, "patience=0: a number above 0 is needed to optimise."),
        ({"rank": 2, "samples": -1}, ValueError, "samples=-1: how many directions of the cone to draw each step"),
    ],
)
def test_bad_input(model, change: dict, error: type[Exception], text: str) -> None:
    given = {"tokens": TRAIN[0], "labels": TRAIN[1], "metric": SCORE, "site": LAST} | change
    with pytest.raises(error) as caught:
        find.optimised(model, **given)
    assert text in str(caught.value)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model = tiny(n_layers=1, norm=None, vocab=12)
    score = mi.metrics.PositionMetric(
        "root", -1, lambda x, _, rows: 0 * x[:, 0].abs().sub(x[:, 0].abs()).sqrt() + labels[rows]
    )
    labels = TRAIN[1].double()
    with pytest.raises(
        ValueError, match="The gradient is NaN or infinite at step 1: a smaller lr, or a model in float32"
    ):
        find.optimised(model, *TRAIN, score, LAST)
