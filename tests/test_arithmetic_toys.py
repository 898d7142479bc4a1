"""The measures of numbers on networks whose Clock is known: a hand-built one, and the grokked models of mod 113 and mod 97."""

import math

import pytest
import torch

import mi_ablate as mi
from mi_ablate import arithmetic
from mi_ablate.arithmetic import problems_of
from mi_ablate.modular import grid, spectrum

KNOWN = {"nanda113": (0, [8, 21, 1]), "add97": (1, [44, 6, 11, 16, 32, 9])}
"""Layer of the MLP that writes the answer, and the frequencies that hold most of the embedding, largest first."""


@pytest.fixture(scope="module", params=list(KNOWN))
def grokked(request):
    """The toy, 1,000 of its problems, the layer and the periods p / k."""
    toy = mi.toys.load(request.param)
    every = problems_of(toy)
    layer, ks = KNOWN[request.param]
    rows = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:1000]
    return toy, every[rows], layer, [every.modulus / k for k in ks]


def written(toy, some, site, basis, periods):
    """R² of helices of the problem's numbers at the last token."""
    acts = mi.collect(toy.model, some.tokens, site)[site]
    return mi.fit(acts, arithmetic.pair_design(some.inputs, basis, periods)).r2


def test_a_hand_built_clock_holds_its_phases_and_radii_and_builds_a_plus_b():
    ks = [3, 17, 22, 25]
    toy = mi.toys.analytic(59, ks, "clock", seed=2)
    every, periods = problems_of(toy), [59 / k for k in ks]
    fits = arithmetic.helix_fits(arithmetic.embedding_means(toy.model, every.numerals), periods)
    assert fits.fit(0).r2 == pytest.approx(1, abs=1e-9)
    coef, said = fits.fit(0).coef, toy.card["analytic"]
    assert coef[0].norm() < 1e-6, "no line on a circle"
    for i, (radius, phase) in enumerate(zip(said["radii"], said["phases"])):
        cos, sin = coef[1 + 2 * i], coef[2 + 2 * i]
        assert [float(cos.norm()), float(sin.norm())] == pytest.approx([radius, radius], abs=1e-6)
        assert cos[2 * i : 2 * i + 2] / radius == pytest.approx(
            torch.tensor([math.cos(phase), math.sin(phase)]).double(), abs=1e-5
        )
    mlp = "blocks.0.hook_mlp_out"
    assert written(toy, every, mlp, "answer", periods) > 1 - 1e-6
    assert written(toy, every, mlp, "a,b", periods) < 1e-2
    assert written(toy, every, "blocks.0.hook_attn_out", "a,b", periods) > 1 - 1e-6
    assert written(toy, every, "blocks.0.hook_attn_out", "answer", periods) < 1e-2


def test_the_embeddings_helix_has_the_known_periods(grokked):
    toy, some, _, periods = grokked
    p = some.modulus
    known = [round(p / T) for T in periods]
    found = spectrum(grid(toy).embedding)
    assert found.top(len(known)) == known
    means = arithmetic.embedding_means(toy.model, some.numerals)
    right = arithmetic.helix_fits(means, periods).fit(0).r2
    others = [k for k in range(2, 40) if k not in known][: len(known)]
    wrong = arithmetic.helix_fits(means, [p / k for k in others]).fit(0).r2
    assert right == pytest.approx(sum(found.share(k) for k in known), abs=0.03), "the line adds the rest"
    assert right > 0.85
    assert wrong < 0.35
    with pytest.warns(UserWarning, match="fall between two lines"):  # of the base-10 periods, which nothing here has
        peaks = arithmetic.number_spectra(means).peaks()
    assert [round(p / T) for T in peaks][:3] == known[:3]
    at_a = arithmetic.helix_fits(arithmetic.number_means(toy.model, some, "blocks.0.hook_resid_pre"), periods)
    assert at_a.fit(0).r2 == pytest.approx(right, abs=0.05)


def test_the_last_token_holds_a_plus_b_and_not_a_and_b(grokked):
    toy, some, layer, periods = grokked
    site = f"blocks.{layer}.hook_mlp_out"
    assert written(toy, some, site, "answer", periods) > 0.5
    assert written(toy, some, site, "a,b", periods) < 0.1
    mixed = {
        name: x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))] for name, x in some.inputs.items()
    }
    acts = mi.collect(toy.model, some.tokens, site)[site]
    assert mi.fit(acts, arithmetic.pair_design(mixed, "answer", periods)).r2 < 0.03


def test_heads_work_through_mlps_and_the_last_mlp_reads_out(grokked):
    toy, some, layer, periods = grokked
    pairs = arithmetic.pairs(some, 40)
    mlps = arithmetic.component_effects(toy.model, pairs, "mlps", draws=0)
    total, direct = mlps.total.mean(1), mlps.direct.mean(1)
    assert int(direct.argmax()) == layer
    assert direct[layer] == pytest.approx(float(total[layer]), rel=1e-3)
    assert total[layer] > 0.7 * float(mlps.gap.mean())
    every = arithmetic.joint_effect(toy.model, pairs, "heads").mean()
    heads = arithmetic.component_effects(toy.model, pairs, "heads", draws=0)
    assert every > 0.7 * float(mlps.gap.mean())
    assert heads.direct.mean(1).sum().abs() < 0.2 * every
    roles = arithmetic.mlp_roles(toy.model, some, pairs, periods=periods).table()[layer]
    assert roles["built"] > 0.7
    assert abs(roles["shuffled"]) < 0.4
    wrong = arithmetic.mlp_roles(toy.model, some, pairs, periods=[some.modulus / k for k in (2, 3, 5)])
    assert abs(wrong.table()[layer]["built"]) < 0.4


def test_writing_the_helix_of_a_moves_the_answer(grokked):
    toy, some, _, periods = grokked
    pairs = arithmetic.pairs(problems_of(toy), 60, fixed="b")
    means = arithmetic.number_means(toy.model, some, "blocks.0.hook_resid_pre")
    whole = arithmetic.swap(toy.model, pairs, arithmetic.reconstructions(means, periods, folds=0))
    mean = dict(zip(whole.methods, whole.mean()[:, 0].tolist()))
    assert mean["helix"] > 0.5 * mean["full"] > 1
    assert mean["helix"] > 2 * mean["shuffled"], "which still removes the corrupted number: its gain need not be 0"
    assert mean["helix"] > 2 * mean["polynomial"]
