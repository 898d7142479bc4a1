"""Overlaps: formulas, and the references against subspaces whose overlap is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import Subspace, classes, fit, overlaps
from mi_ablate.overlap import split_half

D = 12


def finder(acts: Tensor, labels: Tensor) -> Subspace:
    return fit(acts, classes(labels)).subspace()


def concept(noise: float, n: int = 400, k: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Subspace]:
    """Activations whose class means are k + 1 points in the first k axes, plus noise in all."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % (k + 1)
    corners = torch.cat([torch.eye(k, D, dtype=torch.float64), torch.zeros(1, D, dtype=torch.float64)])
    acts = corners[labels] + noise * torch.randn(n, D, generator=generator, dtype=torch.float64)
    return acts, labels, finder(acts, labels)


@given(seed=st.integers(0, 1000), k1=st.integers(1, 11), k2=st.integers(1, 11))
def test_the_formulas(seed: int, k1: int, k2: int) -> None:
    one, other = Subspace.random(D, k1, seed), Subspace.random(D, k2, seed + 1)
    found = overlaps(one, other)
    assert found.squared == pytest.approx(float((one.basis.T @ other.basis).square().sum()) / min(k1, k2), abs=1e-10)
    assert found.squared == pytest.approx(overlaps(other, one).squared, abs=1e-10)
    assert found.cosine >= found.squared - 1e-12
    assert found.expected == max(k1, k2) / D
    assert found.lift <= 1 + 1e-12
    assert (found.covariance, found.halves) == (None, ())


def test_the_isotropic_expectation_is_the_mean_over_random_subspaces() -> None:
    lifts = [overlaps(Subspace.random(D, 3, 2 * s), Subspace.random(D, 5, 2 * s + 1)).lift for s in range(300)]
    assert abs(sum(lifts) / len(lifts)) < 0.02
    inside = overlaps(Subspace.random(D, 5, 0), Subspace.random(D, 5, 0)[:2])
    assert inside.lift == pytest.approx(1.0)
    apart = overlaps(Subspace(torch.eye(D)[:, :3]), Subspace(torch.eye(D)[:, 6:10]))
    assert apart.squared == 0
    assert apart.lift == pytest.approx(-(4 / 12) / (1 - 4 / 12))


def test_activations_in_few_directions_make_any_two_subspaces_overlap() -> None:
    """The isotropic reference calls two unrelated draws special; the covariance-drawn one does not."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([10.0] * 3 + [0.1] * 9, dtype=torch.float64)
    acts = torch.randn(500, D, generator=generator, dtype=torch.float64) * scale
    one, other = (Subspace.span(acts[rows]) for rows in (slice(0, 2), slice(2, 4)))
    found = overlaps(one, other, acts)
    assert found.lift > 0.4
    assert found.covariance["squared"]["low"] <= found.squared <= found.covariance["squared"]["high"]
    round_ = overlaps(one, other, acts / scale)
    assert round_.covariance["squared"]["mean"] == pytest.approx(2 / 12, abs=0.08)
    assert round_.covariance["squared"]["high"] < found.squared


def test_the_null_is_drawn_from_the_activations_of_each() -> None:
    e = torch.eye(D, dtype=torch.float64)
    low, high = (torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    apart = overlaps(Subspace(e[:, :2]), Subspace(e[:, 4:6]), (low @ e[:4], high @ e[4:8]), draws=5)
    assert apart.covariance["squared"]["high"] < 1e-6
    together = overlaps(Subspace(e[:, :2]), Subspace(e[:, 4:6]), (low @ e[:4], high @ e[:4]), draws=5)
    assert together.covariance["squared"]["mean"] > 0.3
    same = overlaps(Subspace(e[:, :2]), Subspace(e[:, 4:6]), low @ e[:4], draws=5)
    assert same.covariance["squared"]["high"] < 1 - 1e-6, "the two sides use different draws"


def test_a_method_agrees_with_another_no_better_than_with_itself() -> None:
    clean, noisy = concept(0.05), concept(2.0)
    for acts, labels, space in (clean, noisy):
        found = overlaps(space, space, acts, labels=labels, finder=finder)
        assert found.squared == pytest.approx(1.0)
        assert len(found.halves) == 1
        order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(0)).chunk(2)
        by_hand = finder(acts[order[0]], labels[order[0]]).overlap(finder(acts[order[1]], labels[order[1]]))
        assert found.halves[0]["squared"] == pytest.approx(by_hand)
    high, low = (overlaps(s, s, x, labels=y, finder=finder).halves[0]["squared"] for x, y, s in (clean, noisy))
    assert high > 0.99
    assert low < 0.8
    both = overlaps(
        clean[2], noisy[2], (clean[0], noisy[0]), labels=(clean[1], noisy[1]), finder=(finder, finder), draws=2
    )
    assert [half["squared"] for half in both.halves] == pytest.approx([high, low])


def test_tables_and_reprs() -> None:
    acts, labels, space = concept(0.5)
    found = overlaps(space[:2], space, acts, labels=labels, finder=finder, draws=3)
    rows = found.table()
    assert [row[""] for row in rows] == [
        "overlap",
        "isotropic expectation",
        "covariance-drawn, 3 draws",
        "split halves of one",
        "split halves of the other",
    ]
    assert rows[1]["squared"] == 4 / D
    assert rows[2]["squared low"] <= rows[2]["squared"] <= rows[2]["squared high"]
    assert "isotropic expectation" in found._repr_html_()
    text = repr(found)
    assert text.startswith(f"Overlaps(ranks 2 and 4 of 12: 1.000, lift 1.00; isotropic {4 / D:.3f}; covariance-drawn ")
    assert "split half " in text
    assert math.isclose(found.lift, 1.0)


def test_what_cannot_be_compared_is_refused() -> None:
    acts, labels, space = concept(0.5)
    with pytest.raises(ValueError, match="Two subspaces of different spaces: d = 12 and d = 5"):
        overlaps(space, Subspace.random(5, 2))
    with pytest.raises(ValueError, match="A subspace of rank 12 is the whole space: its overlap with any other is 1"):
        overlaps(Subspace.random(D, D), space)
    with pytest.raises(ValueError, match="draws=0: at least one pair of covariance-drawn subspaces"):
        overlaps(space, space, acts, draws=0)
    for options in ({"labels": labels}, {"finder": finder}):
        with pytest.raises(ValueError, match="The split-half ceiling needs acts, labels and a finder"):
            overlaps(space, space, acts, **options)
    with pytest.raises(ValueError, match="The split-half ceiling needs acts, labels and a finder"):
        overlaps(space, space, labels=labels, finder=finder)
    with pytest.raises(ValueError, match="400 activations and 3 labels: one label an example is needed"):
        split_half(finder, acts, labels[:3], 2)
    with pytest.raises(
        ValueError, match="The finder finds 4 and 4 directions in the halves, fewer than the 6 compared"
    ):
        split_half(finder, acts, labels, 6)
