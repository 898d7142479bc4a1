"""Designs, and the one least-squares fit that everything rests on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import Design, Fitter, classes, contrast, fit, fourier, helix, linear, polynomial


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A = torch.arange(40) % 13
DESIGNS = {
    "contrast": contrast(A > 6),
    "classes": classes(A),
    "linear": linear(A),
    "polynomial": polynomial(A, 4),
    "fourier": fourier(A, 13, [1, 3, 6]),
    "fourier, all": fourier(A, 13, range(1, 7)),
    "fourier, even": fourier(A, 12, range(1, 7)),
    "helix": helix(A),
    "two of them": linear(A) | fourier(A, 13, [2]),
    "redundant": classes(A) | fourier(A, 13, range(1, 7)) | linear(A),
    "integers as floats": linear(A.double(), name="b"),
    "a list": contrast([True, False] * 20),
}


@pytest.mark.parametrize("name", sorted(DESIGNS))
def test_every_design_is_a_labelled_float64_matrix(name: str) -> None:
    design = DESIGNS[name]
    assert design.matrix.dtype == torch.float64
    assert design.matrix.shape == (40, len(design.labels)) == (len(design), len(set(design.labels)))
    assert torch.isfinite(design.matrix).all()
    assert "40 examples" in repr(design)
    assert "\n" not in repr(design)


def test_labels_say_what_the_columns_are() -> None:
    assert contrast(A > 6).labels == ("concept",)
    assert classes(A % 3, name="c").labels == ("c=0", "c=1", "c=2")
    assert linear(A, "x").labels == ("x:linear",)
    assert polynomial(A, 2).labels == ("a:P1", "a:P2")
    assert fourier(A, 13, [1, 6], "b").labels == ("b:cos 1", "b:sin 1", "b:cos 6", "b:sin 6")
    assert helix(A, (2, 2.5)).labels == ("a:linear", "a:cos 2", "a:sin 2", "a:cos 2.5", "a:sin 2.5")
    assert (linear(A) | linear(A, "b")).labels == ("a:linear", "b:linear")


def test_columns_are_what_the_labels_say() -> None:
    x = A.double()
    f = fourier(A, 13, [3]).matrix
    assert torch.allclose(f, torch.stack([(2 * math.pi * 3 * x / 13).cos(), (2 * math.pi * 3 * x / 13).sin()], 1))
    h = helix(A, (10,)).matrix
    assert torch.allclose(h[:, 0], x)
    assert torch.allclose(h[:, 1], (2 * math.pi * x / 10).cos())
    z = 2 * x / 12 - 1
    p = polynomial(A, 3).matrix
    assert torch.allclose(p, torch.stack([z, (3 * z**2 - 1) / 2, (5 * z**3 - 3 * z) / 2], 1))
    assert torch.equal(classes(A).matrix, torch.nn.functional.one_hot(A, 13).double())


def test_a_polynomial_on_a_domain_continues_outside_the_examples() -> None:
    low, high = polynomial([0, 1, 2], 3, domain=(0, 10)).matrix, polynomial(range(11), 3).matrix
    assert torch.allclose(low, high[:3])


def test_periods_below_one_and_between_integers() -> None:
    x = torch.tensor([0.0, 0.125, 0.25])
    assert torch.allclose(
        helix(x, (0.5,)).matrix[:, 1], torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), atol=1e-15
    )
    assert helix(x, (0.5, 2.5)).labels[1:] == ("a:cos 0.5", "a:sin 0.5", "a:cos 2.5", "a:sin 2.5")


def test_large_numbers_keep_their_phase() -> None:
    """cos(2 pi 10^9 / 10) is 1: the angle is reduced before it is multiplied by 2 pi."""
    assert torch.allclose(helix([10**9, 10**9 + 5], (10,)).matrix[:, 1], torch.tensor([1.0, -1.0], dtype=torch.float64))


def test_rows_of_a_design_by_slice_index_and_mask() -> None:
    d = DESIGNS["fourier"]
    assert torch.equal(d[5:9].matrix, d.matrix[5:9])
    assert torch.equal(d[torch.tensor([3, 3, 1])].matrix, d.matrix[[3, 3, 1]])
    assert torch.equal(d[A > 6].matrix, d.matrix[A > 6])
    assert d[A > 6].labels == d.labels


@pytest.mark.parametrize("period", [2, 4, 100])
def test_sine_at_half_the_period_is_exactly_zero_and_never_becomes_a_direction(period: int) -> None:
    """Sine of period 2 on integers is about 4e-14, which a solver would blow up into a direction of noise."""
    numbers = torch.arange(200)
    design = fourier(numbers, period, [period // 2])
    raw = (2 * math.pi * (period // 2) * numbers.double() / period).sin()
    assert 0 < raw.abs().max() < 1e-10, "the trap that `fourier` avoids has gone"
    assert not design.matrix[:, 1].any()
    acts = draw(200, 6)
    found = fit(acts, design)
    assert found.subspace().rank == 1
    assert not found.coef[1].any()
    with pytest.raises(ValueError, match="explain nothing"):
        found.subspace("a:sin*")


def test_a_helix_of_period_2_has_seven_directions_not_nine_or_eight() -> None:
    numbers = torch.arange(100)
    found = fit(draw(100, 20), helix(numbers, (2, 5, 10, 100)))
    assert found.subspace().rank == 8  # a line, cos 2, and two for each of 5, 10, 100; sin 2 is nothing


@pytest.mark.parametrize("n", [12, 13])
def test_nyquist_all_frequencies_explain_everything_on_the_full_period(n: int) -> None:
    """n values have n - 1 centred degrees of freedom; for even n the last frequency brings one, not two."""
    acts = draw(n, 20)
    found = fit(acts, fourier(range(n), n, range(1, n // 2 + 1)))
    assert abs(found.r2 - 1) < 1e-12
    assert found.subspace().rank == n - 1
    assert torch.allclose(found.predict(fourier(range(n), n, range(1, n // 2 + 1))), acts, atol=1e-12)


@pytest.mark.parametrize("name", sorted(DESIGNS))
@given(sizes=st.lists(st.integers(1, 17), min_size=1, max_size=12))
def test_a_fit_does_not_depend_on_the_batches(name: str, sizes: list[int]) -> None:
    acts, design = 1e3 + draw(40, 5), DESIGNS[name]
    whole = fit(acts, design)
    fitter, start = Fitter(covariance=True), 0
    for size in [*sizes, 40]:
        fitter.update(acts[start : start + size], design[start : start + size])
        start += size
        if start >= 40:
            break
    parts = fitter.result()
    assert parts.n == whole.n == 40
    assert torch.allclose(parts.mean, whole.mean, rtol=1e-14)
    assert torch.allclose(parts.predict(design), whole.predict(design), rtol=1e-10)
    if (
        name != "helix"
    ):  # its line and its slowest cosine are nearly collinear on 0..12: the coefficients are not pinned
        assert torch.allclose(parts.coef, whole.coef, atol=1e-9)
    assert abs(parts.r2 - whole.r2) < 1e-10
    assert torch.allclose(parts.covariance, acts.T.cov(), atol=1e-10)
    assert parts.subspace().overlap(whole.subspace()) > 1 - 1e-10


@given(cut=st.integers(1, 39))
def test_fitters_merge_to_the_whole_in_either_order(cut: int) -> None:
    acts, design = draw(40, 5), DESIGNS["two of them"]
    a = Fitter(covariance=True).update(acts[:cut], design[:cut])
    b = Fitter(covariance=True).update(acts[cut:], design[cut:])
    whole = fit(acts, design)
    forth, back = Fitter(covariance=True).merge(a).merge(b).result(), Fitter(covariance=True).merge(b).merge(a).result()
    for found in (forth, back):
        assert torch.allclose(found.coef, whole.coef, atol=1e-11)
        assert torch.allclose(found.intercept, whole.intercept, atol=1e-11)
        assert torch.allclose(found.covariance, acts.T.cov(), atol=1e-12)
    assert a.n == cut, "merging must not change what is merged in"


def test_merging_into_an_empty_fitter_leaves_the_other_alone() -> None:
    acts, design = draw(40, 5), DESIGNS["linear"]
    other = Fitter().update(acts[:20], design[:20])
    before = other.result().coef.clone()
    Fitter().merge(other).update(acts[20:], design[20:])
    assert other.n == 20
    assert torch.equal(other.result().coef, before)


def test_an_empty_batch_changes_nothing() -> None:
    acts, design = draw(40, 5), DESIGNS["linear"]
    fitter = Fitter().update(acts, design)
    fitter.update(acts[:0], design[:0])
    assert torch.equal(fitter.result().coef, fit(acts, design).coef)


def test_covariance_asked_for_is_covariance_had() -> None:
    """Merging a fitter without a covariance into one that promises it must not lose it silently."""
    acts, design = draw(40, 5), DESIGNS["linear"]
    bare = Fitter().update(acts, design)
    for first in (Fitter(covariance=True), Fitter(covariance=True).update(acts, design)):
        with pytest.raises(ValueError, match="covariance"):
            first.merge(bare)


def test_half_precision_activations_are_summed_in_float64() -> None:
    """A running mean kept in bf16 has a cosine of 0.27 to 0.89 to the true one."""
    acts = (5 + draw(4000, 4)).bfloat16()
    found = fit(acts, linear(torch.arange(4000)))
    assert torch.allclose(found.mean, acts.double().mean(0), atol=1e-12)


@given(seed=st.integers(0, 1000), low=st.floats(1e-9, 1e-3), high=st.floats(1e3, 1e9))
def test_units_of_the_columns_do_not_matter(seed: int, low: float, high: float) -> None:
    acts = draw(40, 6, seed=seed)
    design = linear(A) | fourier(A, 13, [1, 4])
    scale = torch.tensor([high, low, 1.0, high, low], dtype=torch.float64)
    other = Design(design.matrix * scale + 7 * scale, design.labels)
    a, b = fit(acts, design), fit(acts, other)
    assert torch.allclose(a.predict(design), b.predict(other), atol=1e-10)
    for k in range(1, 6):
        assert a.subspace(rank=k).angles(b.subspace(rank=k)).max() < 1e-7
    assert torch.allclose(a.singular_values(), b.singular_values(), atol=1e-11)


def test_the_subspace_is_ordered_by_the_variance_of_the_fitted_values() -> None:
    acts, design = draw(40, 6, seed=3), DESIGNS["classes"]
    found = fit(acts, design)
    values = found.predict(design)
    values = values - values.mean(0)
    _u, s, vh = torch.linalg.svd(values, full_matrices=False)
    basis = found.subspace().basis
    assert torch.allclose((basis * vh.T).sum(0).abs(), torch.ones(6, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(found.singular_values()[:6], s / 40**0.5, atol=1e-10)


def test_a_redundant_design_gives_the_minimum_norm_solution() -> None:
    acts, design = draw(40, 5), DESIGNS["redundant"]
    centred = design.matrix - design.matrix.mean(0)
    expected = torch.linalg.pinv(centred, rtol=1e-10) @ (acts - acts.mean(0))
    assert torch.allclose(fit(acts, design).coef, expected, atol=1e-9)


@pytest.mark.parametrize("name", sorted(DESIGNS))
def test_the_fit_is_ordinary_least_squares(name: str) -> None:
    acts, design = draw(40, 5), DESIGNS[name]
    found = fit(acts, design)
    with_constant = torch.cat([torch.ones(40, 1, dtype=torch.float64), design.matrix], 1)
    expected = with_constant @ torch.linalg.pinv(with_constant, rtol=1e-11) @ acts
    assert torch.allclose(found.predict(design), expected, atol=1e-9)
    residual = acts - expected
    assert abs(found.r2 - float(1 - (residual**2).sum() / ((acts - acts.mean(0)) ** 2).sum())) < 1e-10
    assert abs(found.score(acts, design) - found.r2) < 1e-10


def test_score_on_other_data_can_be_negative() -> None:
    design = DESIGNS["classes"]
    found = fit(draw(40, 5), design)
    assert found.r2 > 0.1
    assert found.score(draw(40, 5, seed=9), design) < 0


def test_predict_on_values_that_the_fit_never_saw() -> None:
    circle = fourier(range(30), 30, [1])
    seen = torch.arange(30) % 3 > 0
    acts = circle.matrix @ draw(2, 6) + 4
    found = fit(acts[seen], circle[seen])
    assert torch.allclose(found.predict(circle), acts, atol=1e-12)


def test_labels_are_chosen_by_pattern() -> None:
    design = linear(A) | fourier(A, 13, [1, 4])
    found = fit(draw(40, 6), design)
    assert found.subspace("a:*").rank == 5
    assert found.subspace("a:cos*").rank == found.subspace("a:cos 1", "a:cos 4").rank == 2
    assert found.subspace("a:cos*", "a:cos 1").rank == 2
    assert found.subspace("a:linear", rank=1).overlap(found.subspace("a:linear")) > 1 - 1e-12


def test_marginal_is_the_fit_of_the_chosen_columns_alone() -> None:
    design = linear(A) | contrast(A > 6)  # strongly correlated columns
    acts = draw(40, 6)
    found = fit(acts, design)
    alone = fit(acts, linear(A))
    assert found.subspace("a:linear", marginal=True).overlap(alone.subspace()) > 1 - 1e-10
    assert found.subspace("a:linear").overlap(alone.subspace()) < 0.99


def test_moving_a_fit_keeps_it() -> None:
    found = Fitter(covariance=True).update(draw(40, 5), DESIGNS["helix"]).result()
    moved = found.to("cpu")
    assert torch.equal(moved.subspace().basis, found.subspace().basis)
    assert torch.equal(moved.covariance, found.covariance)
    assert "columns" in repr(moved)


def test_the_share_in_a_source_is_called_that_of_the_fit_whatever_columns_are_chosen() -> None:
    design = linear(torch.arange(40)) | classes(torch.arange(40) % 3)
    found = fit(draw(40, 5), design)
    for space in (found.subspace(), found.subspace("a*"), found.subspace("class*", marginal=True)):
        assert space.source["r2_of_the_fit"] == found.r2
        assert "r2" not in space.source


def test_activations_that_do_not_vary_have_r2_0_and_no_direction() -> None:
    found = fit(torch.ones(40, 5), DESIGNS["linear"])
    assert found.r2 == 0
    with pytest.raises(ValueError, match="explain nothing"):
        found.subspace()
