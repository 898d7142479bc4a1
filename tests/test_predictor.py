"""Predicted removal curves: planted activations and readouts whose curves are known."""

import math

import pytest
import torch

from mi_ablate.studies.gaussian import ClassGaussian, removed_curves

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
