"""Hand-built networks do what their equations say: logits, attention, gradients, and what must not hold."""

import math

import pytest
import torch

from mi_ablate import attached, toys
from mi_ablate.modular import grid, spectrum
from mi_ablate.toys.handbuilt import SCALE

KS = [3, 17, 22, 31, 45]


def equation(p, ks, kind):
    """The logits that the docstring states, ``[a b c]``."""
    i = torch.arange(p, dtype=torch.float64)
    total = torch.zeros(p, p, p, dtype=torch.float64)
    for k in ks:
        w = 2 * math.pi * k / p
        line = torch.cos(w * (i[:, None, None] + i[None, :, None] - i))
        weight = 2 * torch.cos(w * (i[:, None] - i) / 2) ** 2 if kind == "pizza" else torch.ones(p, p)
        total += SCALE * weight[..., None] * line
    return total


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["clock", "pizza"])
@pytest.mark.parametrize(("p", "ks"), [(97, KS), (113, KS), (30, [1, 4, 7, 11])])
def test_logits_are_the_equation(p, ks, kind):
    found = grid(toys.analytic(p, ks, kind, seed=3))
    want = equation(p, ks, kind)
    bias = found.logits.mean((0, 1)) - want.mean((0, 1))  # what does not depend on a and b: b_U
    assert 0.003 * SCALE < bias.std() < 0.008 * SCALE
    assert (found.logits - bias - want).abs().max() < 1e-4 * want.abs().max()
    if p % 2 or kind == "clock":  # pairs half of an even p apart have no cos² but those of even frequencies
        assert found.accuracy == 1.0
    other = equation(p, ks, "clock" if kind == "pizza" else "pizza")
    assert (found.logits - bias - other).abs().max() > 0.1 * want.abs().max()


@pytest.mark.compat
def test_gromovs_network_answers_with_all_frequencies():
    toy = toys.analytic(53, range(1, 27), "gromov")
    assert grid(toy).accuracy == 1.0
    assert toy.card["analytic"]["frequencies"] == list(range(1, 27))


@pytest.mark.parametrize("kind", ["clock", "pizza", "gromov"])
def test_the_embedding_holds_the_planted_frequencies_alone(kind):
    toy = toys.analytic(97, KS, kind)
    found, radii = spectrum(grid(toy).embedding), toy.card["analytic"]["radii"]
    assert found.top(5) == KS
    assert radii[0] / radii[-1] == pytest.approx(5 / 3)
    for k, r in zip(KS, radii):
        assert found.share(k) == pytest.approx(r**2 / sum(x**2 for x in radii), abs=1e-6)


@pytest.mark.parametrize("kind", ["clock", "pizza"])
def test_attention_copies_by_position_alone(kind):
    patterns = grid(toys.analytic(29, [2, 5, 9], kind)).patterns()
    want = torch.full((2, 3), 1 / 3) if kind == "pizza" else torch.eye(2, 3)
    assert (patterns - want).abs().max() < 1e-7


def gradients(toy):
    """d logit_0 / d embedding of a and of b, for every pair ``[pairs d]``."""
    kept = []

    def leaf(x, hook=None):
        kept.append(x.detach().clone().requires_grad_())
        return kept[-1]

    with torch.enable_grad(), attached(toy.model, [("hook_embed", leaf)]):
        logits = toy.model(toy.tokens)
        logits[:, -1, 0].sum().backward()
    return kept[0].grad[:, 0].double(), kept[0].grad[:, 1].double()


@pytest.mark.compat
def test_gradients_are_those_of_a_product_or_of_a_sum():
    p, ks = 29, [2, 5, 9]
    clock, pizza = (toys.analytic(p, ks, kind) for kind in ("clock", "pizza"))
    cosine = torch.cosine_similarity(*gradients(clock)).reshape(p, p)
    i = torch.arange(p, dtype=torch.float64)
    sizes = [r**-2 for r in clock.card["analytic"]["radii"]]
    lines = [s * torch.cos(2 * math.pi * k * (i[:, None] - i) / p) for k, s in zip(ks, sizes)]
    want = sum(lines) / sum(sizes)
    assert (cosine - want).abs().max() < 1e-3
    a, b = gradients(pizza)
    assert (a - b).abs().max() < 1e-5 * a.abs().max()


def test_the_seed_draws_phases_and_nothing_that_changes_the_logits():
    one, two = (toys.analytic(29, [2, 5, 9], seed=seed) for seed in (0, 1))
    again = toys.analytic(29, [2, 5, 9], seed=0)
    assert one.card["analytic"]["phases"] != two.card["analytic"]["phases"]
    assert torch.equal(one.model(one.tokens), again.model(again.tokens))
    difference = grid(one).logits - grid(two).logits
    assert (difference - difference.mean((0, 1))).abs().max() < 0.01


@pytest.mark.parametrize(
    ("p", "ks", "kind", "text"),
    [
        (97, KS, "clocks", "kind 'clocks' must be one of clock, pizza, gromov"),
        (97, [49], "clock", "different whole numbers from 1 to 48"),
        (96, [48], "clock", "different whole numbers from 1 to 47"),
        (97, [0, 3], "clock", "different whole numbers from 1 to 48"),
        (97, [3, 3], "clock", "different whole numbers from 1 to 48"),
        (97, [], "clock", "different whole numbers from 1 to 48"),
        (30, [3, 9], "clock", "share the factor 3: answers 10 apart would be the same"),
    ],
)
def test_what_cannot_be_built_is_refused(p, ks, kind, text):
    with pytest.raises(ValueError, match=text):
        toys.analytic(p, ks, kind)
