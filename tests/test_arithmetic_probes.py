"""Digit-wise circular probes, sinusoidal probes, and whether a plane is one feature."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate.arithmetic.representation.digit_probes import (
    circle,
    circular_probes,
    decoded,
    hat_matrix,
    left_out_predictions,
    sinusoidal_probes,
)
from mi_ablate.arithmetic.representation.helices import helix_fits, projected
from mi_ablate.arithmetic.representation.period_search import free_periods
from mi_ablate.arithmetic.representation.reducibility import (
    irreducibility,
    mixture_index,
    plane_irreducibility,
    separability_index,
)
from mi_ablate.arithmetic.representation.states import means_of

A = torch.arange(100)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def digits_as_circles(values: Tensor, base: int = 10, d: int = 24, noise: float = 0.05) -> Tensor:
    digits = torch.stack([values % base, values // base % base, values // base**2 % base], 1)
    return circle(digits, base) @ draw(6, d) + noise * draw(len(values), d, seed=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 16), st.floats(0.1, 10), st.integers(0, 99))
def test_digits_are_read_back_across_the_wrap(base: int, size: float, seed: int) -> None:
    digits = torch.arange(base)[:, None]
    turn = 0.45 * (2 * torch.rand(base, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)
    angle = 2 * math.pi * (digits + turn) / base  # up to nearly half a digit off, either way
    assert torch.equal(decoded(size * torch.cat([angle.cos(), angle.sin()], 1), base), digits)


def test_without_the_mod_the_last_digit_wraps_to_the_base() -> None:
    just_below = torch.tensor([[math.cos(-0.1), math.sin(-0.1)]], dtype=torch.float64)
    assert decoded(just_below, 10).item() == 0
    nine = circle(torch.tensor([[9]]), 10)
    assert torch.round(10 * torch.atan2(nine[:, 1], nine[:, 0]) / (2 * math.pi)).item() == -1  # atan2 alone
    assert decoded(nine, 10).item() == 9


def test_leaving_a_number_out_of_a_ridge_probe_is_refitting_it() -> None:
    x, t = draw(15, 30), draw(15, 3, seed=1)
    hat = hat_matrix(x, 0.01)
    y = x - x.mean(0)
    level = 0.01 * y.square().sum() / 15
    fast = left_out_predictions(hat, t)
    for i in range(15):
        rest = torch.arange(15) != i
        mean = x[rest].mean(0)
        z = x[rest] - mean
        weights = torch.linalg.solve(
            z.T @ z + level * torch.eye(30, dtype=torch.float64), z.T @ (t[rest] - t[rest].mean(0))
        )
        torch.testing.assert_close(fast[i], t[rest].mean(0) + (x[i] - mean) @ weights, atol=1e-10, rtol=0)


@pytest.mark.compat
def test_digits_in_base_10_are_found_and_not_in_other_bases() -> None:
    values = torch.arange(360)
    means = means_of({"digits": digits_as_circles(values), "noise": draw(360, 24, seed=3)}, values)
    found = circular_probes(means)
    assert found.bases[0] == 10
    assert float(found.accuracy[0, 0]) > 0.99
    assert float(found.accuracy[0, 1:].max()) < 0.1
    assert float(found.accuracy[1].max()) < 0.05
    assert float(found.shuffled.max()) < 0.05
    assert found.digits[10].shape == (2, 3)
    assert float(found.digits[10][0].min()) > 0.99
    assert found.table()[0]["base"] == 10
    assert "base 10 " in repr(found)
    binary = circular_probes(means_of(torch.stack([values % 2, values // 2 % 2], 1).double()[:4], values[:4]), [2])
    assert binary.digits[2].shape == (1, 2)


def test_all_digits_must_be_right() -> None:
    values = torch.arange(100)
    units_only = circle((values % 10)[:, None], 10) @ draw(2, 16) + 0.01 * draw(100, 16, seed=1)
    found = circular_probes(means_of(units_only, values), [10])
    assert float(found.digits[10][0, 0]) == 1
    assert float(found.accuracy[0, 0]) < 0.3


def test_sinusoidal_probes_read_numbers_they_never_saw() -> None:
    helix = mi.helix(A).matrix @ draw(9, 32) + 0.02 * draw(100, 32, seed=1)
    found = sinusoidal_probes(means_of({"helix": helix, "noise": draw(100, 32, seed=2)}, A), (2, 5, 10, 100))
    assert float(found.accuracy[0]) > 0.98
    assert float(found.error[0]) < 0.1
    assert float(found.accuracy[1]) < 0.1
    assert float(found.shuffled.max()) < 0.1
    assert float(found.shuffled_error.min()) > 20
    assert found.table()[0]["accuracy"] == pytest.approx(float(found.accuracy[0]))
    assert "best accuracy" in repr(found)
    wide = sinusoidal_probes(means_of(helix, A))
    assert len(wide.periods) == 50
    assert wide.periods[0] == pytest.approx(2)
    assert wide.periods[-1] == pytest.approx(198)


def test_what_cannot_be_probed() -> None:
    with pytest.raises(
        ValueError, match=r"Digits are read of at least three numbers from 0 up; these are \[-1, 0, 1\]"
    ):
        circular_probes(means_of(draw(4, 2), [-1, 0, 1, 2]))
    with pytest.raises(ValueError, match=r"Bases \[1\]: at least 2"):
        circular_probes(means_of(draw(4, 2), [0, 1, 2, 3]), [1])
    with pytest.raises(ValueError, match="2 numbers: a probe for numbers needs at least three"):
        sinusoidal_probes(means_of(draw(2, 2), [0, 1]))
    with pytest.raises(ValueError, match="ridge=0: a positive share is needed, or as many dimensions"):
        hat_matrix(draw(4, 2), 0)


def around(n: int = 800, noise: float = 0.05) -> Tensor:
    angle = 2 * math.pi * torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1) + noise * draw(n, 2)


def test_a_circle_is_irreducible_and_a_cross_or_independent_coordinates_are_not() -> None:
    circle_, gauss = irreducibility(around()), irreducibility(draw(800, 2))
    uniform = irreducibility(torch.rand(800, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5)
    cross = draw(800, 2)
    cross[::2, 0] = 0.01 * cross[::2, 0]
    cross[1::2, 1] = 0.01 * cross[1::2, 1]
    mixed = irreducibility(cross @ torch.linalg.qr(draw(2, 2)).Q)
    assert circle_.excess > 0.6
    assert circle_.mixture < 0.25
    assert abs(gauss.excess) < 0.05  # independent in every rotation
    assert uniform.excess < 0.05  # independent in one
    assert mixed.mixture > 0.5  # half of the points on a line
    assert circle_.score > 2 * max(gauss.score, uniform.score, mixed.score)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.floats(0, 3.14), st.integers(0, 50))
def test_neither_index_depends_on_unit_place_or_rotation(scale: float, theta: float, seed: int) -> None:
    x = around(300, 0.3) * torch.tensor([1.0, 0.4]) + 0.1 * draw(300, 2, seed=seed)
    turn = torch.tensor([[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]], dtype=torch.float64)
    y = scale * (x @ turn) + 7
    assert separability_index(y, bins=10) == pytest.approx(separability_index(x, bins=10), abs=0.05)
    assert mixture_index(y) == pytest.approx(mixture_index(x), abs=0.02)


def test_dividing_by_the_mean_square_would_make_the_index_depend_on_the_unit() -> None:
    """The published demonstration divides by mean(x²) where the paper says the root mean square norm."""

    def slip(x: Tensor) -> float:
        x = (x - x.mean(0)) / x.square().mean() * math.sqrt(2)
        i, j = ((x.clamp(-3, 3) + 3) / 6 * 40).long().clamp(max=39).T
        joint = torch.bincount(i * 40 + j, minlength=1600).reshape(40, 40).double() / len(x)
        entropies = [-torch.special.xlogy(p, p).sum() / math.log(2) for p in (joint.sum(0), joint.sum(1), joint)]
        return float(entropies[0] + entropies[1] - entropies[2])

    x = around()
    assert abs(slip(x) - slip(20 * x)) > 1  # in large units everything falls into one bin
    assert separability_index(x) == pytest.approx(separability_index(20 * x), abs=1e-6)


def test_the_sweep_finds_what_gradient_ascent_looks_for() -> None:
    x = draw(200, 2) + torch.tensor([1.0, 0.0])
    x[:60, 0] = 2.5  # a line away from the middle: an offset is needed
    best = 0.0
    centred = x - x.mean(0)
    for theta in torch.linspace(0, math.pi, 181, dtype=torch.float64):
        p = theta.cos() * centred[:, 0] + theta.sin() * centred[:, 1]
        for c in torch.linspace(-4, 4, 161, dtype=torch.float64):
            z = p + c
            best = max(best, float((z.abs() < 0.1 * z.square().mean().sqrt()).double().mean()))
    found = mixture_index(x)
    assert found >= best
    assert found <= best + 0.05
    assert found >= 0.3


def test_planes_of_number_means() -> None:
    values = torch.arange(100)
    x = 3 * circle((values % 10)[:, None], 10) @ torch.linalg.qr(draw(8, 2)).Q.T + 0.1 * draw(100, 8)
    planes = plane_irreducibility(means_of(x, values))
    assert [plane.name for plane in planes] == ["PC 1-2", "PC 2-3", "PC 3-4", "PC 4-5"]
    assert planes[0].excess > max(plane.excess for plane in planes[1:])
    assert planes[0].row()["points"] == 100


def test_few_points_have_a_large_index_in_many_bins_whatever_they_are() -> None:
    fine, coarse, round_ = (
        irreducibility(draw(100, 2), bins=40),
        irreducibility(draw(100, 2)),
        irreducibility(around(100)),
    )
    assert fine.separability > 1.5
    assert coarse.bins == 5
    assert coarse.excess < 0.05 < 0.1 < round_.excess
    assert irreducibility(draw(10, 2)).bins == 2


def test_the_circles_of_a_grokked_model_are_found_without_assuming_their_periods() -> None:
    toy = mi.toys.load("add97")
    means = means_of({"W_E": toy.model.W_E[:97]}, range(97))
    keys = {round(97 / T): T for T in free_periods(means, count=5).periods}
    assert sorted(keys) == [6, 11, 16, 32, 44]  # cos and sin of 2πka/97 for these k
    assert all(abs(97 / T - k) < 0.01 for k, T in keys.items())
    assert float(sinusoidal_probes(means, list(keys.values())).accuracy[0]) == 1  # every number from the 96 others
    assert float(sinusoidal_probes(means).accuracy[0]) < 0.05  # other periods
    fit = helix_fits(means, list(keys.values()))
    planes = projected(means, fit.fit(0), 0)
    assert min(irreducibility(planes[:, [i, i + 1]]).excess for i in range(1, 11, 2)) > 0.08
    base_10 = helix_fits(means)
    assert float(base_10.loo[0]) < 0 < 0.8 < float(fit.loo[0])


def test_what_is_no_plane() -> None:
    with pytest.raises(ValueError, match="at least 10 finite ones in a plane"):
        irreducibility(draw(5, 2))
    with pytest.raises(ValueError, match="All points of the plane are the same"):
        separability_index(torch.ones(20, 2))
    with pytest.raises(ValueError, match=r"epsilon=1\.5: a share between 0 and 1"):
        mixture_index(draw(20, 2), 1.5)
