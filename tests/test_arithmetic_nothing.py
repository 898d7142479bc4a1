"""Sites at which nothing depends on a number, controls of no draws, numbers that were not announced: said, never scored."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mi_ablate.arithmetic import (
    NumberSums,
    PeriodSubsets,
    baselines,
    circular_probes,
    free_periods,
    helix_fits,
    linearity,
    means_of,
    number_spectra,
    residue_separability,
    sinusoidal_probes,
    subsets,
)

A100 = torch.arange(100)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def same() -> Any:
    """A token that never changes, as "=" before the first block: the same vector for every number, up to rounding."""
    vector = 100 * draw(16)
    rounded = torch.stack([vector + 1e-14 * draw(16, seed=i) for i in range(300)])
    return means_of({"exact": vector.expand(300, 16), "rounded": rounded}, A100.repeat(3))


def test_a_site_without_any_number_has_no_perfect_left_out_score(same: Any) -> None:
    """1 - 0 / 0 was reported as a leave-one-number-out R² of 1."""
    fits = helix_fits(same)
    assert fits.r2.tolist() == fits.r2_means.tolist() == fits.loo.tolist() == [0, 0]
    found = baselines(same)
    assert all(float(found.loo[name].abs().max()) == 0 for name in ("helix", "circle", "polynomial", "shuffled"))
    assert float(torch.stack(list(found.r2.values())).abs().max()) == 0
    assert float(subsets(same).loo.abs().max()) == 0


def test_rounding_has_no_spectrum_and_no_line(same: Any) -> None:
    """The first principal component of rounding is some vector, and had an R² with the number."""
    assert linearity(same).r2.tolist() == [0, 0]
    assert float(number_spectra(same, standardise=True).power.abs().max()) == 0
    residues = residue_separability(same, (2, 5))
    assert float(residues.fisher.abs().max()) == float(residues.share.abs().max()) == 0
    assert float(circular_probes(same).accuracy.max()) <= 0.01  # a constant guess
    assert float(sinusoidal_probes(same).accuracy.max()) <= 0.01
    with pytest.raises(ValueError, match="means that differ between the numbers"):
        free_periods(same, "rounded")


def test_small_differences_on_a_large_vector_are_no_rounding() -> None:
    x = 1e4 * draw(16) + 1e-6 * A100[:, None] * draw(16, seed=1)
    assert float(helix_fits(means_of(x, A100)).loo[0]) > 0.99


def test_the_best_set_of_periods_is_not_the_first_where_one_site_has_no_left_out_error() -> None:
    nan = float("nan")
    found = PeriodSubsets(("x", "y"), ((2,), (5,)), torch.ones(2, 2), torch.tensor([[nan, 0.1], [nan, 0.9]]))
    assert found.best(1) == (5,)
    assert found.table()[1]["loo"] == pytest.approx(0.9)


def test_means_of_other_numbers_are_not_taken_for_the_next_ones() -> None:
    """The means of 3 were added to those of 5, since 3 was not announced."""
    with pytest.raises(ValueError, match="numbers that were not announced"):
        NumberSums(torch.tensor([0, 5])).merge(means_of(draw(2, 4), [0, 3]))
    with pytest.raises(ValueError, match="numbers that were not announced"):
        NumberSums(torch.tensor([0, 5])).merge(means_of(draw(2, 4), [0, 9]))


def test_a_period_of_two_steps_is_the_shortest_line() -> None:
    """Of even numbers, 2 divides the count but no line shows it."""
    means = means_of(draw(50, 4), range(0, 100, 2))
    with pytest.warns(UserWarning, match="the periods 2, 2.5 fall .* or are shorter than two steps"):
        assert number_spectra(means).off_bin == (2, 2.5)


def test_controls_of_nothing_are_refused() -> None:
    means = means_of(draw(100, 4), A100)
    for call in (number_spectra, linearity, residue_separability, baselines):
        with pytest.raises(
            ValueError, match="draws=0: at least 1 permutation, since what is found says nothing without"
        ):
            call(means, draws=0)
    for given in ({"folds": 1}, {"folds": 0}, {"moduli": ()}):
        with pytest.raises(ValueError, match="at least two parts to hold out, and at least one modulus"):
            residue_separability(means, **given)
    with pytest.raises(ValueError, match=r"Bases \[\]: at least 2"):
        circular_probes(means, ())
    with pytest.raises(KeyError, match="There is no spectrum of 'acts'"):
        number_spectra(means).peaks("acts")
