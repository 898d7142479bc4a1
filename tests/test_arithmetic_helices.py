"""Per-number means and helix fits: planted helices come back, the equivalences hold, and the traps of the public notebooks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate.arithmetic import (
    cartesian,
    design_fits,
    held_out_fit,
    helix_fits,
    polar,
    projected,
    subsets,
)
from mi_ablate.arithmetic.representation.last_token import pair_design
from mi_ablate.arithmetic.representation.states import NumberSums, means_of

A100 = torch.arange(100)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(values: Tensor, d: int = 256, noise: float = 0.0, seed: int = 0, periods=(2, 5, 10, 100)):
    """H = B C + constant (+ noise), and C with the dead sine's row at zero."""
    design = mi.helix(values, periods)
    coef = draw(design.matrix.shape[1], d, seed=seed)
    coef[0] /= 30
    coef[2] *= 0 if 2 in periods else 1
    return design.matrix @ coef + 3 + noise * draw(len(values), d, seed=seed + 1), coef


@pytest.mark.compat
def test_a_planted_helix_comes_back_to_1e_6_with_rank_8() -> None:
    acts, coef = planted(A100)
    fits = helix_fits(means_of({"here": acts, "noise": draw(100, 256, seed=9)}, A100))
    assert fits.rank == 8
    torch.testing.assert_close(fits.coef[0], coef, atol=1e-6, rtol=0)
    torch.testing.assert_close(fits.fit("here").intercept, torch.full((256,), 3.0, dtype=torch.float64))
    assert float(fits.r2[0]) == pytest.approx(1, abs=1e-12)
    assert float(fits.loo[0]) == pytest.approx(1, abs=1e-9)
    assert float(fits.r2[1]) == pytest.approx(8 / 99, abs=0.02)  # noise: rank / (numbers - 1)
    assert float(fits.loo[1]) < 0
    assert abs(float(fits.adjusted[1])) < 0.02


@pytest.mark.parametrize("uneven", [False, True])
def test_least_squares_on_all_prompts_is_weighted_least_squares_on_the_means(uneven: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(0, 40, (700,), generator=generator) if uneven else torch.arange(40).repeat(9)
    values = torch.where(values < 30, values, values + 7)  # gaps
    acts = planted(values, d=12, noise=0.5)[0]
    slow = mi.fit(acts, mi.helix(values))
    fits = helix_fits(means_of(acts, values))
    fast = fits.fit(0)
    assert fast.labels == slow.labels
    assert fast.n == slow.n
    for ours, theirs in ((fast.coef, slow.coef), (fast.intercept, slow.intercept), (fast.mean, slow.mean)):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    assert fast.r2 == pytest.approx(slow.r2, abs=1e-10)
    torch.testing.assert_close(fast.singular_values(), slow.singular_values(), atol=1e-10, rtol=1e-10)
    assert fast.subspace("a:* 10").overlap(slow.subspace("a:* 10")) == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(fits.predicted(0), fast.predict(fits.design(fits.means.values)))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(1, 9), st.integers(0, 99), st.sampled_from([torch.float64, torch.float32]))
def test_means_do_not_depend_on_the_batches(n: int, batch: int, seed: int, dtype: torch.dtype) -> None:
    values = torch.randint(-5, 5, (n,), generator=torch.Generator().manual_seed(seed))
    acts = {"x": draw(n, 4, seed=seed) + 50, "z": draw(n, 4, seed=seed + 1)}
    whole = means_of(acts, values)
    sums = NumberSums(values, dtype=dtype)
    for i in range(0, n, batch):
        sums.update({k: v[i : i + batch] for k, v in acts.items()}, values[i : i + batch])
    parts = sums.result()
    tight = dict(atol=1e-10, rtol=1e-10) if dtype == torch.float64 else dict(atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(parts.means.double(), whole.means, **tight)
    assert parts.means.dtype == dtype
    assert parts.counts.tolist() == [int((values == v).sum()) for v in whole.values]
    total = torch.stack([(x - x.mean(0)).square().sum() for x in acts.values()])
    torch.testing.assert_close(whole.total, total, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(parts.total, total, atol=1e-2 if dtype == torch.float32 else 1e-9, rtol=1e-5)
    torch.testing.assert_close(whole.grand, torch.stack([x.mean(0) for x in acts.values()]))
    half = n // 2
    if half:
        first, second = ({k: v[s] for k, v in acts.items()} for s in (slice(half), slice(half, None)))
        both = means_of(first, values[:half]).merged(means_of(second, values[half:]))
        torch.testing.assert_close(both.means, whole.means)
        torch.testing.assert_close(both.total, total, atol=1e-9, rtol=1e-9)


def test_heads_are_sites_of_their_own() -> None:
    z = draw(20, 3, 4)
    means = means_of({"blocks.0.attn.hook_z": z}, torch.arange(20))
    assert means.sites == tuple(f"blocks.0.attn.hook_z[{h}]" for h in range(3))
    torch.testing.assert_close(means.at("blocks.0.attn.hook_z[2]"), z[:, 2])


def test_leaving_one_number_out_in_closed_form_is_refitting_without_it() -> None:
    values = torch.cat([torch.arange(25), torch.arange(0, 25, 3)])  # uneven counts
    acts = planted(values, d=6, noise=1.0)[0]
    means = means_of(acts, values)
    press = spread = 0.0
    for v in range(25):
        slow = mi.fit(acts[values != v], mi.helix(values[values != v], (5, 10)))
        error = means.at(0)[v] - slow.predict(mi.helix([v], (5, 10)))[0]
        press += float(means.counts[v] * error.square().sum())
        spread += float(means.counts[v] * means.centred(0)[v].square().sum())
    assert float(helix_fits(means, (5, 10)).loo[0]) == pytest.approx(1 - press / spread, abs=1e-10)


def test_the_sine_of_period_2_does_not_give_coefficients_of_1e13() -> None:
    acts = planted(A100, d=16, noise=0.3)[0]
    for periods in ((2, 5, 10, 100), (1, 2, 10), (2 / 3, 10)):  # 2/T is whole
        fits = helix_fits(means_of(acts, A100), periods)
        assert float(fits.coef.abs().max()) < 100
    assert helix_fits(means_of(acts, A100)).rank == 8
    assert float(fits.norms[0, 2]) == 0
    # the trap itself: with the column as computed, a solver at machine precision keeps it
    angle = torch.pi * A100.double()
    raw = torch.stack([angle.cos(), angle.sin(), torch.ones(100, dtype=torch.float64)], 1)
    assert float(torch.linalg.lstsq(raw, acts, rcond=1e-16, driver="gelsd").solution.abs().max()) > 1e9


@pytest.mark.parametrize("components", [3, 8, 15])
def test_fitting_in_the_space_of_leading_components_is_projecting_the_coefficients(components: int) -> None:
    values = torch.arange(40).repeat(3)
    acts = planted(values, d=20, noise=0.7)[0]
    means = means_of(acts, values)
    mean, x = acts.mean(0), means.centred(0)
    basis = torch.linalg.svd(x, full_matrices=False).Vh[:components].T
    reduced = (acts - mean) @ basis
    slow = mi.fit(reduced, mi.helix(values))
    fits = helix_fits(means, components=components)
    torch.testing.assert_close(fits.coef[0], slow.coef @ basis.T, atol=1e-10, rtol=0)
    torch.testing.assert_close(fits.fit(0).intercept, mean + slow.intercept @ basis.T, atol=1e-10, rtol=0)
    back = mean + slow.predict(mi.helix(values)) @ basis.T
    share = 1 - (acts - back).square().sum() / (acts - mean).square().sum()
    assert float(fits.r2[0]) == pytest.approx(float(share), abs=1e-10)


def test_subsets_and_deltas_are_those_of_separate_fits() -> None:
    means = means_of({"p": planted(A100, d=9, noise=2.0)[0], "q": draw(100, 9, seed=5)}, A100)
    found = subsets(means)
    assert len(found.periods) == 15
    for i, chosen in enumerate(found.periods):
        alone = helix_fits(means, chosen)
        torch.testing.assert_close(found.r2[i], alone.r2_means, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.loo[i], alone.loo, atol=1e-10, rtol=0)
    fits = helix_fits(means)
    assert fits.parts == ("linear", "2", "5", "10", "100")
    without = design_fits(means, mi.helix(A100, (2, 5, 100)), "helix").r2_means
    torch.testing.assert_close(fits.delta[:, 3], fits.r2_means - without, atol=1e-10, rtol=0)
    assert found.best(4) == (2, 5, 10, 100)
    with pytest.raises(ValueError, match="No set of 5 periods: 1 to 4"):
        found.best(5)


def test_amplitude_and_phase_are_the_same_helix() -> None:
    amplitude, phase = draw(3, 7, seed=1).abs(), 3 * torch.tanh(draw(3, 7, seed=2))
    theta = 2 * torch.pi * A100[:, None].double() / torch.tensor([5.0, 10, 100])
    acts = (amplitude * torch.cos(theta[:, :, None] - phase)).sum(1)
    fits = helix_fits(means_of(acts, A100), (5, 10, 100))
    found, angles = fits.polar()
    torch.testing.assert_close(found[0], amplitude)
    torch.testing.assert_close(angles[0], phase)
    torch.testing.assert_close(cartesian(found, angles), fits.coef[:, 1:])
    torch.testing.assert_close(torch.cat(polar(fits.coef[0, 1:])), torch.cat([amplitude, phase]))


def test_numbers_held_out_land_where_the_helix_continues() -> None:
    acts = planted(A100, d=30, periods=(100,))[0]
    means = means_of({"helix": acts, "not": draw(100, 30, seed=4)}, A100)
    held = held_out_fit(means, means.values % 10 == 3, (100,))
    assert held.held.values.tolist() == list(range(3, 100, 10))
    assert float(held.r2[0]) == pytest.approx(1, abs=1e-10)
    assert float(held.r2[1]) < 0.1  # noise does not continue
    coordinates = projected(held.held, held.fits.fit("helix"), "helix")
    torch.testing.assert_close(coordinates, mi.helix(held.held.values, (100,)).matrix, atol=1e-9, rtol=0)


def test_a_dead_column_has_the_coordinate_zero() -> None:
    means = means_of(planted(A100)[0], A100)
    coordinates = projected(means, helix_fits(means).fit(0), 0)
    torch.testing.assert_close(coordinates, mi.helix(A100).matrix, atol=1e-9, rtol=0)


def test_the_constant_of_every_pair_basis_is_kept() -> None:
    """The published notebooks append b's linear column where the ones should stand, for helix(a, b) only."""
    a, b = torch.arange(20).repeat(20), torch.arange(20).repeat_interleave(20)
    inputs = {"a": a, "b": b, "answer": a + b}
    for basis, columns, rank in (("a,b", 18, 16), ("answer", 9, 8), ("a,b,answer", 27, 23)):
        design = pair_design(inputs, basis)
        assert len(design.labels) == columns
        centred = design.matrix - design.matrix.mean(0)
        assert int(torch.linalg.matrix_rank(centred, rtol=1e-9)) == rank
        acts = design.matrix @ draw(columns, 5) + 1000  # far from the origin
        fit = mi.fit(acts, design)
        assert fit.r2 == pytest.approx(1, abs=1e-9)
        torch.testing.assert_close(fit.predict(design), acts, atol=1e-6, rtol=0)
    lost = torch.cat([design.matrix[:, :18], design.matrix[:, 17:18]], 1)  # what the notebooks regress on
    acts = lost[:, :18] @ draw(18, 5) + 1000
    slip = torch.linalg.lstsq(lost, acts, driver="gelsd").solution
    assert float((lost @ slip - acts).abs().max()) > 10


def test_what_cannot_be_fitted_is_said() -> None:
    means = means_of(draw(9, 4), torch.arange(9))
    with pytest.raises(
        ValueError, match=r"9 numbers leave nothing over for 9 columns of rank 8 and a constant.*at least 10"
    ):
        helix_fits(means, (2, 3, 5, 10))
    assert helix_fits(means, (2, 5)).rank == 4
    with pytest.raises(ValueError, match="2 numbers: a fit over numbers needs at least three different ones"):
        helix_fits(means_of(draw(2, 4), [4, 5]))
    with pytest.raises(ValueError, match="The design has 3 rows, the means 9 numbers"):
        design_fits(means, mi.linear([1, 2, 3]), "other")
    with pytest.raises(ValueError, match="5 principal components were asked for; means of 9 numbers have 1 to 4"):
        helix_fits(means, (5,), components=5)
    with pytest.raises(ValueError, match="The design of 'polynomial' is defined on the fitted numbers only"):
        design_fits(means, mi.polynomial(range(9), 2), "polynomial").design([1])
    with pytest.raises(KeyError, match="No means were taken at 'hook_x'"):
        means.at("hook_x")
    with pytest.raises(ValueError, match=r"NaN or infinite activations at activations in 1 examples \(first: \[1\]\)"):
        means_of(torch.tensor([[1.0], [float("nan")]]), [0, 1])
    with pytest.raises(ValueError, match="one whole number a row is needed"):
        means_of(draw(2, 2), [0.5, 1.5])
    with pytest.raises(ValueError, match="3 activations at x and 2 numbers: one an example is needed"):
        means_of({"x": draw(3, 2)}, [0, 1])
    with pytest.raises(ValueError, match="means take"):
        means_of({"x": draw(2, 2, 2, 2)}, [0, 1])
    with pytest.raises(ValueError, match=r"Sites of several widths \[2, 3\]"):
        means_of({"x": draw(2, 2), "y": draw(2, 3)}, [0, 1])
    with pytest.raises(ValueError, match="numbers that were not announced"):
        NumberSums(torch.arange(3)).update({"x": draw(2, 2)}, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="These batches are of other sites"):
        NumberSums(torch.arange(3)).update({"x": draw(2, 2)}, A100[:2]).update({"y": draw(2, 2)}, A100[:2])
    with pytest.raises(ValueError, match="No prompt was given"):
        NumberSums(torch.arange(3)).result()
    with pytest.raises(ValueError, match="Means merge only with the same sites"):
        means.merged(means_of(draw(9, 5), torch.arange(9)))
    with pytest.raises(ValueError, match="kept takes a condition on the 9 numbers"):
        means.kept(means.values > 50)
    with pytest.raises(KeyError, match=r"The basis 'a,c' needs \['c'\]; the prompts have \['a'\]"):
        pair_design({"a": A100}, "a,c")


def test_a_number_that_a_column_belongs_to_has_no_left_out_error() -> None:
    values = torch.tensor([*range(1, 20), 20])
    spike = mi.Design((values == 7)[:, None].double(), ("seven",))
    fits = design_fits(means_of(draw(20, 3), values), spike | mi.linear(values), "spike")
    assert bool(fits.loo.isnan().all())


def test_tables_and_short_names() -> None:
    means = means_of(planted(A100, d=5)[0], A100)
    row = helix_fits(means).table()[0]
    assert row["rank"] == 8
    assert row["site"] == "activations"
    assert set(row) >= {"r2", "r2_means", "adjusted", "loo", "delta linear", "delta 10"}
    assert repr(helix_fits(means)) == "HelixFits(helix, rank 8, best R² 1.000 at activations)"
    assert repr(means) == "NumberMeans(of 'a', 1 sites, 100 numbers, d 5, 100 prompts)"
    assert subsets(means).table()[14]["periods"] == "2, 5, 10, 100"
    assert "PeriodSubsets(15 sets" in repr(subsets(means))
    held = held_out_fit(means, means.values == 50)
    assert held.table()[0]["r2 held out"] == pytest.approx(1)
    assert "1 numbers held out" in repr(held)
