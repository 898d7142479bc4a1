"""Spectra over the integers, what stands out of them, and what a spike does not say."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate.arithmetic.representation.period_search import free_periods
from mi_ablate.arithmetic.representation.separability import cohen_kappa, residue_separability
from mi_ablate.arithmetic.representation.spectra import linearity, number_spectra, number_spectrum
from mi_ablate.arithmetic.representation.states import means_of


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def waves(count: int, *periods: float, d: int = 12, seed: int = 0) -> Tensor:
    """A circle of each period in d dimensions."""
    return mi.helix(range(count), periods).matrix[:, 1:] @ draw(2 * len(periods), d, seed=seed)


@pytest.mark.compat
@pytest.mark.parametrize("count", [100, 360, 361])
def test_the_nyquist_period_2_is_there_for_even_and_odd_counts(count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = number_spectrum(waves(count, 2), range(count))
    best = float(found.periods[found.power[0].argmax()])
    assert best == pytest.approx(2, abs=2 / count * 1.01)
    assert found.peaks(0)[0] == pytest.approx(2, abs=0.01)
    if count % 2 == 0:
        assert float(found.shares[0, -1]) == pytest.approx(1)
        masked = torch.fft.fftfreq(count) > 0  # what the public notebook keeps
        power = torch.fft.fft(waves(count, 2), dim=0).abs().square().sum(1)
        assert float(power[masked].sum() / power.sum()) < 1e-20


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 40), st.integers(0, 99))
def test_shares_are_of_the_variance_and_every_line_is_found(count: int, seed: int) -> None:
    x = draw(count, 3, seed=seed)
    found = number_spectrum(x, range(count), of_interest=())
    assert float(found.shares.sum()) == pytest.approx(1)
    assert len(found.periods) == count // 2
    for k in range(1, count // 2 + 1):  # the share is the R² of a circle of that period
        r2 = mi.fit(x, mi.fourier(range(count), count, [k])).r2
        assert float(found.shares[0, k - 1]) == pytest.approx(r2, abs=1e-9)


def test_peaks_stand_out_of_permuted_numbers_and_noise_has_none() -> None:
    x = waves(100, 2, 2.5, 5, 10, seed=3) + 0.5 * draw(100, 12, seed=4)
    means = means_of({"planted": x, "noise": draw(100, 12, seed=5)}, range(100))
    found = number_spectra(means)
    assert sorted(found.peaks("planted")) == pytest.approx([2, 2.5, 5, 10])
    assert found.peaks("noise") == []
    assert found.off_bin == ()
    flat = found.null[1] / found.null[1].mean()
    assert 0.6 < float(flat.min()) < float(flat.max()) < 1.6  # Nyquist's too
    table = found.table(4)
    assert {row["period"] for row in table[:4]} == set(found.peaks("planted"))
    assert all(row["peak"] for row in table[:4])
    assert "peaks at planted" in repr(found)


def test_the_null_is_the_spectrum_of_permuted_numbers() -> None:
    x = waves(30, 5) + draw(30, 12)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(7))
    found = number_spectrum(x, range(30), of_interest=(), draws=1, seed=7, window=True, standardise=True)
    slow = number_spectrum(x[order], range(30), of_interest=(), draws=1, window=True, standardise=True)
    torch.testing.assert_close(found.null, slow.power)
    assert float(found.ceiling[0]) == pytest.approx(float(slow.power.max()))


def test_a_window_keeps_a_slope_out_of_the_short_periods() -> None:
    slope = torch.arange(100.0)[:, None].double()
    plain, windowed = (number_spectrum(slope, range(100), window=w) for w in (False, True))
    short = plain.periods < 20
    assert float(windowed.shares[0, short].sum()) < 0.2 * float(plain.shares[0, short].sum())


def test_standardised_columns_count_alike() -> None:
    x = waves(100, 10, d=8)
    x[:, 0] += 1000 * draw(100)  # one loud dimension
    x = torch.cat([x, torch.ones(100, 1, dtype=torch.float64)], 1)  # and a dead one
    loud, alike = (number_spectrum(x, range(100), standardise=s) for s in (False, True))
    assert 10.0 not in loud.peaks()
    assert alike.peaks() == [10.0]


def test_periods_between_two_lines_are_warned_of() -> None:
    with pytest.warns(
        UserWarning, match=r"Of 361 numbers 1 apart the periods 2, 2.5, 5, 10, 100 fall between two lines"
    ):
        found = number_spectrum(waves(361, 10), range(361))
    assert found.off_bin == (2, 2.5, 5, 10, 100)
    assert float(found.shares[0, found.line(10)]) < 0.98
    with pytest.warns(UserWarning, match="the periods 100 fall"):
        number_spectrum(waves(360, 10), range(360))
    every = (5, 10, 100)
    assert number_spectrum(waves(50, 10), range(0, 100, 2), of_interest=every).periods[0] == 100  # steps of 2


def test_what_has_no_spectrum() -> None:
    with pytest.raises(ValueError, match="not equally spaced: 1 is followed by 3"):
        number_spectrum(draw(5, 2), [0, 1, 3, 4, 5])
    with pytest.raises(ValueError, match="3 numbers: a spectrum needs at least four"):
        number_spectrum(draw(3, 2), [0, 1, 2])
    with pytest.raises(ValueError, match="2 numbers: a line through two is no finding"):
        linearity(means_of(draw(2, 2), [0, 1]))


def test_linearity_of_a_number_line_and_of_noise() -> None:
    line = torch.arange(60)[:, None] * draw(1, 20) + 3 * draw(60, 20, seed=1)
    found = linearity(means_of({"line": line, "noise": draw(60, 20, seed=2)}, range(60)))
    assert float(found.r2[0]) > 0.95
    assert float(found.r2[1]) <= float(found.shuffled[:, 1].max()) + 0.05
    assert float(found.shuffled.mean()) == pytest.approx(1 / 59, abs=0.015)
    assert found.table()[0]["r2"] == pytest.approx(float(found.r2[0]))
    assert "at line" in repr(found)


def test_unequal_counts_make_no_period_stand_out() -> None:
    """Shuffles that moved the counts with the activations let 30 of 36 periods of pure noise stand out."""
    values = torch.arange(98)
    found = 0
    for seed in range(4):
        noise = torch.randn(98, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rows = values.repeat_interleave(1 + values * 60 // 98)
        found += sum(free_periods(means_of(noise[rows], rows), count=2, draws=19, seed=seed).stands_out)
    assert found <= 1


def test_free_periods_come_back_whatever_they_are() -> None:
    planted = (7.3, 13.1, 41.7)
    x = waves(100, *planted, d=30, seed=2) + torch.arange(100)[:, None] * draw(1, 30, seed=3)
    means = means_of({"exact": x, "noisy": x + 0.5 * draw(100, 30, seed=4), "noise": draw(100, 30, seed=5)}, range(100))
    exact = free_periods(means, "exact", 3)
    assert sorted(exact.periods) == pytest.approx(planted, rel=1e-5)
    assert exact.r2 == pytest.approx(1, abs=1e-9)
    noisy = free_periods(means, "noisy", 5, draws=39)
    assert sorted(noisy.periods[:3]) == pytest.approx(planted, rel=1e-2)
    assert noisy.stands_out[:3] == (True, True, True)
    assert not any(noisy.stands_out[3:])
    assert not any(free_periods(means, "noise", 2, draws=39).stands_out)
    assert noisy.r2 == pytest.approx(float(mi.arithmetic.helix_fits(means, noisy.periods).r2_means[1]), abs=1e-9)
    assert noisy.loo == pytest.approx(float(mi.arithmetic.helix_fits(means, noisy.periods).loo[1]), abs=1e-9)
    assert noisy.table()[0]["stands out"]
    assert "(no)" in repr(noisy)
    assert float(noisy.grid[noisy.curve.argmax()]) == pytest.approx(noisy.periods[0], rel=0.05)


def test_periods_of_even_numbers_and_of_base_10() -> None:
    x = waves(100, 2, 5, 10, 100, d=20, seed=6)
    assert sorted(free_periods(means_of(x, range(100)), count=4).periods) == pytest.approx([2, 5, 10, 100], rel=1e-5)
    even = means_of(x[::2], range(0, 100, 2))
    assert min(free_periods(even, count=3).periods) >= 4  # nothing shorter can be seen


def test_searches_that_cannot_be() -> None:
    means = means_of(draw(10, 4), range(10))
    with pytest.raises(ValueError, match="4 periods of 10 numbers: ask for 1 to 3, or give more numbers"):
        free_periods(means)
    with pytest.raises(ValueError, match="longest=2: numbers 1 apart show periods above 2 only"):
        free_periods(means, count=2, longest=2)
    with pytest.raises(ValueError, match="A search needs draws of at least 1, and means that differ"):
        free_periods(means_of(torch.ones(10, 4), range(10)), count=1)


@pytest.mark.parametrize(("count", "modulus"), [(100, 10), (100, 5), (60, 3), (64, 2)])
def test_the_trace_of_the_scatter_between_residues_is_phi_over_n(count: int, modulus: int) -> None:
    x = waves(count, 5, 7) + draw(count, 12)
    found = residue_separability(means_of(x, range(count)), [modulus], draws=1)
    assert float(found.phi[0, 0]) / count == pytest.approx(float(found.between[0, 0]), rel=1e-10)
    n = torch.arange(count)
    wave = torch.stack([torch.exp(-2j * torch.pi * k / modulus * n.double()) for k in range(1, modulus)])
    slow = ((wave @ x.to(torch.complex128)).abs().square().sum() / count).item()
    assert float(found.phi[0, 0]) == pytest.approx(slow, rel=1e-9)


def test_a_spike_can_be_there_and_the_residue_not_separable() -> None:
    """Spikes are necessary and not sufficient for separability (Fu et al. 2026)."""
    n = torch.arange(200)
    direction = draw(1, 1)
    spike = torch.cos(2 * torch.pi * n / 10)[:, None] * direction * 3 + 4 * draw(200, 1, seed=1) * direction
    readable = torch.nn.functional.one_hot(n % 10, 10).double() + 0.05 * draw(200, 10, seed=2)
    means = means_of({"spike": torch.nn.functional.pad(spike, (0, 9)), "readable": readable, "noise": draw(200, 10)}, n)
    found = residue_separability(means, [10])
    spikes, kappa = found.spike[:, 0].tolist(), found.kappa[:, 0].tolist()
    assert spikes[0] > 4
    assert kappa[0] < 0.25  # not sufficient
    assert spikes[1] > 50
    assert kappa[1] > 0.98
    assert spikes[2] < 2
    assert abs(kappa[2]) < 0.12  # necessary: no spike, no separability
    assert float(found.fisher[1, 0]) > 20 * float(found.fisher[0, 0])
    assert found.kappa_shuffled.abs().max() < 0.2
    row = found.table()[1]
    assert row["modulus"] == 10
    assert row["kappa"] == pytest.approx(kappa[1])
    assert "mod 10" in repr(found)


def test_separable_residues_without_a_spike_do_not_exist() -> None:
    """With the lines at period T and its harmonics removed, the residue means coincide and nothing linear is left."""
    x = torch.nn.functional.one_hot(torch.arange(100) % 5, 5).double() @ draw(5, 8) + 0.1 * draw(100, 8, seed=1)
    lines = torch.fft.fft(x, dim=0)
    lines[torch.arange(1, 5) * 20] = 0
    flat = torch.fft.ifft(lines, dim=0).real
    found = residue_separability(means_of({"with": x, "without": flat}, range(100)), [5], draws=2)
    assert float(found.kappa[0, 0]) > 0.95
    assert float(found.between[1, 0]) < 1e-12
    assert float(found.kappa[1, 0]) <= 0.05


def test_fisher_by_the_definition_and_its_inflation_in_many_dimensions() -> None:
    x = draw(40, 6) + torch.nn.functional.one_hot(torch.arange(40) % 4, 6).double()
    found = residue_separability(means_of(x, range(40)), [4], ridge=0.1, draws=1)
    y = x - x.mean(0)
    centres = torch.stack([y[r::4].mean(0) for r in range(4)])
    between = centres.T @ centres / 4
    left = y - centres[torch.arange(40) % 4]
    within = left.T @ left / 40
    within = within + 0.1 * within.trace() / 6 * torch.eye(6, dtype=torch.float64)
    slow = torch.linalg.eigvals(torch.linalg.solve(within, between)).real.max()
    assert float(found.fisher[0, 0]) == pytest.approx(float(slow), rel=1e-9)
    many = residue_separability(means_of(draw(40, 500), range(40)), [4], draws=5)
    assert float(many.fisher[0, 0]) > 1  # any labels are separable in the numbers they were fitted to
    assert float(many.fisher[0, 0]) < 1.5 * float(many.fisher_shuffled[0, 0])
    assert abs(float(many.kappa[0, 0])) < 0.3


def test_kappa_is_scikit_learns() -> None:
    from sklearn.metrics import cohen_kappa_score

    generator = torch.Generator().manual_seed(0)
    right = torch.randint(0, 4, (200,), generator=generator)
    guess = torch.where(
        torch.rand(200, generator=generator) < 0.5, right, torch.randint(0, 3, (200,), generator=generator)
    )
    assert cohen_kappa(right, guess) == pytest.approx(cohen_kappa_score(right.numpy(), guess.numpy()))
    assert cohen_kappa(torch.zeros(4).long(), torch.zeros(4).long()) == 0


def test_what_has_no_residues() -> None:
    means = means_of(draw(20, 4), range(20))
    with pytest.raises(ValueError, match="The modulus 11 needs to be at least 2, and at least 22 numbers"):
        residue_separability(means, [11])
    with pytest.raises(ValueError, match="Residues need consecutive numbers"):
        residue_separability(means.kept(means.values != 7))
    with pytest.raises(ValueError, match="ridge=0: a positive share is needed; with more dimensions"):
        residue_separability(means, [2], ridge=0)
    exact = residue_separability(means_of(torch.arange(20).double()[:, None] % 2, range(20)), [2], draws=1)
    assert float(exact.fisher[0, 0]) == float("inf")
    assert float(exact.kappa[0, 0]) == 1
