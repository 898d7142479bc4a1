"""Predicted removal curves: planted activations and readouts whose curves are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_ablate.curves import removal_curve
from mi_ablate.metrics import accuracy
from mi_ablate.model import collect, last_residual
from mi_ablate.studies.gaussian import ClassGaussian, readout_of, removed_curves
from mi_ablate.subspace import Subspace
from models import tiny, tokens_for

P, D = 11, 24


def circles(radii, p=P, d=D):
    """Class means on circles of given radii in planes of their own, and the readout that takes each answer's own direction."""
    angle = 2 * math.pi * torch.arange(p, dtype=torch.float64) / p
    means = torch.zeros(p, d, dtype=torch.float64)
    for i, radius in enumerate(radii):
        means[:, 2 * i] = radius * torch.cos((i + 1) * angle)
        means[:, 2 * i + 1] = radius * torch.sin((i + 1) * angle)
    weight = means.T / means.norm(dim=1)
    return means, lambda x: x.double() @ weight


def axes(rank, d=D):
    return torch.eye(d, dtype=torch.float64)[:, :rank]


def test_means_alone_survive_until_the_last_circle_is_gone():
    means, read = circles([3.0, 2.0, 1.0])
    still = ClassGaussian(means, torch.eye(D, dtype=torch.float64)).still
    x, answers = still.draw(5 * P)
    assert torch.equal(x, means[answers])
    found = removed_curves(x, answers, axes(6), read, (0, 2, 4, 6))
    for ablation in ("zero", "mean"):
        assert found[ablation][:3].tolist() == [1.0] * 3
        assert found[ablation][3] < 2.5 / P


def test_a_class_gaussian_is_what_it_was_drawn_from():
    means, _ = circles([2.0, 1.0])
    root = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 5
    true = ClassGaussian(means, root @ root.T)
    x, answers = true.draw(400 * P)
    found = ClassGaussian.of(x, answers, P)
    torch.testing.assert_close(found.means, means, rtol=0, atol=0.25)
    assert (found.within - true.within).norm() / true.within.norm() < 0.1
    assert torch.equal(true.draw(30, seed=3)[0], true.draw(30, seed=3)[0])
    assert not torch.equal(true.draw(30, seed=3)[0], true.draw(30, seed=4)[0])


def test_a_class_that_was_never_seen_is_refused():
    with pytest.raises(ValueError, match="every class needs one, and their spread needs more"):
        ClassGaussian.of(torch.randn(20, 3), torch.zeros(20, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="4 activations of 4 of 4 classes"):
        ClassGaussian.of(torch.randn(4, 3), torch.arange(4), 4)


def test_no_spread_is_means_alone():
    means, read = circles([2.0, 1.0, 0.5])
    spread = ClassGaussian(means, torch.eye(D, dtype=torch.float64) / 20)
    nothing = ClassGaussian(means, torch.zeros(D, D, dtype=torch.float64))
    curves = [removed_curves(*g.draw(10 * P), axes(6), read, range(7)) for g in (spread.still, nothing, spread)]
    assert all(torch.equal(curves[0][a], curves[1][a]) for a in curves[0])
    assert any(not torch.equal(curves[0][a], curves[2][a]) for a in curves[0])


@pytest.mark.parametrize("noise", [0.02, 0.15, 0.6])
def test_a_curve_is_predicted_from_other_draws_of_the_same_classes(noise):
    means, read = circles([3.0, 2.0, 1.0])
    root = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * noise
    x, answers = ClassGaussian(means, root @ root.T).draw(400 * P, seed=7)
    seen, rest = slice(0, 200 * P), slice(200 * P, 400 * P)
    known = ClassGaussian.of(x[seen], answers[seen], P)
    measured = removed_curves(x[rest], answers[rest], axes(6), read, range(7))
    told = removed_curves(*known.draw(200 * P), axes(6), read, range(7))
    for ablation, curve in measured.items():
        torch.testing.assert_close(told[ablation], curve, rtol=0, atol=0.05)
    if noise == 0.6:  # where there is much spread, means alone promise too much
        blind = removed_curves(*known.still.draw(10 * P), axes(6), read, range(7))
        assert (blind["mean"] - measured["mean"])[:5].max() > 0.2


def test_permuted_means_predict_nothing():
    means, read = circles([3.0, 2.0, 1.0])
    order = torch.arange(P).roll(1)
    x, answers = ClassGaussian(means[order], torch.zeros(D, D, dtype=torch.float64)).draw(10 * P)
    found = removed_curves(x, answers, axes(6), read, range(7))
    for curve in found.values():
        assert float(curve[0]) == 0
        assert float(curve.mean()) < 2 / P


@given(st.integers(0, 6), st.integers(0, 5), st.floats(0.01, 2))
def test_a_curve_starts_at_what_is_right_and_removing_all_leaves_no_answer(rank, seed, noise):
    means, read = circles([1.0, 0.7, 0.4])
    x, answers = ClassGaussian(means, noise * torch.eye(D, dtype=torch.float64)).draw(5 * P, seed)
    found = removed_curves(x, answers, axes(rank), read, [0, rank])
    right = float((read(x).argmax(-1) == answers).double().mean())
    assert all(float(curve[0]) == right and 0 <= float(curve[1]) <= 1 for curve in found.values())
    gone = removed_curves(x, answers, torch.eye(D, dtype=torch.float64), read, [D])
    assert all(float(gone[ablation][0]) < 3 / P for ablation in ("zero", "mean"))


@pytest.mark.compat
@pytest.mark.parametrize("norm", ["LN", None])
def test_activations_themselves_give_the_measured_curve(norm):
    model = tiny(norm=norm)
    tokens = tokens_for(model, 40, 3)
    site = last_residual(model)
    acts = collect(model, tokens, [site])[site]
    with torch.no_grad():
        answers = model(tokens)[:, -1].argmax(-1)
    basis = Subspace.random(16, 8, 0)
    found = removed_curves(acts.double(), answers, basis.basis, readout_of(model), range(9))
    for ablation, curve in found.items():
        real = removal_curve(model, tokens, basis, accuracy(answers), at=site, ablation=ablation, controls={})
        assert torch.equal(curve, real.values)
    assert found["zero"][-1] < 1
