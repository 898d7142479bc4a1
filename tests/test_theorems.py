"""Theorems that the package rests on, each with its converse: what must *not* be equal."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import Ablate, Subspace, classes, contrast, fit, fourier, linear, writers
from models import logits_with


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 10_000), positive=st.integers(1, 29))
def test_the_slope_of_a_contrast_is_the_difference_of_means(seed: int, positive: int) -> None:
    acts, is_positive = draw(30, 6, seed=seed), torch.arange(30) < positive
    found = fit(acts, contrast(is_positive))
    difference = acts[is_positive].mean(0) - acts[~is_positive].mean(0)
    assert torch.allclose(found.coef[0], difference, atol=1e-12)
    assert torch.allclose(found.intercept, acts[~is_positive].mean(0), atol=1e-12)


@pytest.mark.parametrize("counts", [(5, 5, 5, 5), (1, 2, 30, 4), (1, 1, 1, 90)], ids=str)
def test_one_hot_coefficients_are_class_means_minus_their_mean(counts: tuple[int, ...]) -> None:
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    acts = draw(len(labels), 6) + labels[:, None]
    means = torch.stack([acts[labels == c].mean(0) for c in range(4)])
    found = fit(acts, classes(labels))
    assert torch.allclose(found.coef, means - means.mean(0), atol=1e-11)
    assert torch.allclose(found.predict(classes(range(4))), means, atol=1e-11)
    # The SVD of the centred class means gives the same span; the order is by the fitted values, so by frequency too.
    assert found.subspace().overlap(Subspace.span(means - means.mean(0))) > 1 - 1e-12
    unweighted = torch.linalg.svd(means - means.mean(0)).Vh[0]
    agrees = abs(float(found.subspace().basis[:, 0] @ unweighted)) > 1 - 1e-9
    assert agrees == (len(set(counts)) == 1)


@pytest.mark.parametrize("n", [8, 9, 16, 31])
def test_a_fourier_fit_over_the_full_period_is_the_discrete_fourier_transform(n: int) -> None:
    acts = draw(n, 5)
    frequencies = range(1, n // 2 + 1)
    coef = fit(acts, fourier(range(n), n, frequencies)).coef
    transform = torch.fft.rfft(acts, dim=0)
    for row, k in enumerate(frequencies):
        factor = 1 / n if 2 * k == n else 2 / n
        assert torch.allclose(coef[2 * row], factor * transform[k].real, atol=1e-12)
        assert torch.allclose(coef[2 * row + 1], -factor * transform[k].imag, atol=1e-12)


def test_over_part_of_the_period_it_is_not_the_transform() -> None:
    n, seen = 16, torch.arange(16) < 11
    acts = draw(n, 5)
    coef = fit(acts[seen], fourier(range(n), n, [1, 2])[seen]).coef
    assert not torch.allclose(coef[0], 2 / n * torch.fft.rfft(acts, dim=0)[1].real, atol=0.05)


def design_r2(acts: Tensor, design: object, reference: Tensor) -> float:
    """Share of ``reference``'s variance that a fresh fit of ``design`` explains in ``acts``."""
    found = fit(acts, design)
    values = found.predict(design)
    return float(((values - values.mean(0)) ** 2).sum() / ((reference - reference.mean(0)) ** 2).sum())


@given(seed=st.integers(0, 10_000))
def test_mean_ablating_the_subspace_of_all_columns_leaves_nothing_linear_for_the_design(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 13, (80,), generator=generator)
    design = linear(a) | fourier(a, 13, [1, 3])
    acts = design.matrix @ draw(5, 12, seed=seed) + draw(80, 12, seed=seed + 1)
    found = fit(acts, design)
    assert found.r2 > 0.3
    for to in (acts.mean(0), None):  # the constant that is written makes no difference to what varies
        left = Ablate(found.subspace(), to)(acts)
        assert design_r2(left, design, acts) < 1e-20


def test_partial_coefficients_of_some_columns_leave_much_of_them_and_marginal_ones_nothing() -> None:
    a = torch.arange(60) % 12
    one, other = linear(a, "a"), contrast(a > 5)  # correlation 0.87
    acts = one.matrix @ draw(1, 8) + 6 * other.matrix @ draw(1, 8, seed=1) + 0.1 * draw(60, 8, seed=2)
    found = fit(acts, one | other)
    partial = Ablate(found.subspace("a:linear"), acts.mean(0))(acts)
    marginal = Ablate(found.subspace("a:linear", marginal=True), acts.mean(0))(acts)
    assert design_r2(partial, one, acts) > 0.05
    assert design_r2(marginal, one, acts) < 1e-20
    assert design_r2(marginal, one | other, acts) > 0.01, "the other column is still there"


def test_a_random_subspace_of_the_same_rank_leaves_most() -> None:
    a = torch.arange(60) % 12
    design = fourier(a, 12, [1, 2])
    acts = design.matrix @ draw(4, 32) + 0.1 * draw(60, 32, seed=2)
    rank = fit(acts, design).subspace().rank
    left = Ablate(Subspace.random(32, rank))(acts)
    assert design_r2(left, design, acts) > 0.6


@pytest.mark.compat
@pytest.mark.parametrize("rank", [1, 3])
def test_ablating_all_writers_is_ablating_the_residual_stream_everywhere(model, tokens, rank: int) -> None:
    edit = Ablate(Subspace.random(model.cfg.d_model, rank, seed=3))
    names = writers(model)
    stream = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
    stream += [f"blocks.{layer}.hook_resid_post" for layer in range(2)]
    if not hasattr(model, "original_model"):  # on a bridge this name needs `attached`; see test_model.py
        stream += [f"blocks.{layer}.hook_resid_mid" for layer in range(2)]
    else:
        stream += [f"blocks.{layer}.hook_attn_out" for layer in range(2)]
    at_writers, at_stream = logits_with(model, tokens, edit.at(*names)), logits_with(model, tokens, edit.at(*stream))
    clean = logits_with(model, tokens)
    assert (at_writers - at_stream).abs().max() < 1e-12
    assert (at_writers - clean).abs().max() > 0.1
    for omitted in names:
        rest = logits_with(model, tokens, edit.at(*(n for n in names if n != omitted)))
        assert (rest - at_writers).abs().max() > 1e-3, f"{omitted} makes no difference"


def test_at_partial_strength_writers_and_stream_differ(model, tokens) -> None:
    """Removal compounds over the sites of the stream; the docs say so, and this holds them to it."""
    edit = Ablate(Subspace.random(model.cfg.d_model, 2, seed=3), strength=0.5)
    stream = [
        f"blocks.{layer}.hook_{point}" for layer in range(2) for point in ("resid_pre", "resid_mid", "resid_post")
    ]
    if hasattr(model, "original_model"):
        pytest.skip("resid_mid of a bridge needs `attached`")
    difference = logits_with(model, tokens, edit.at(*writers(model))) - logits_with(model, tokens, edit.at(*stream))
    assert difference.abs().max() > 1e-2


def test_layernorm_cannot_see_the_mean_so_a_raw_direction_removes_less_than_what_readers_see() -> None:
    """With a share on the all-ones direction, ablating r leaves part of the centred r that LayerNorm reads."""
    d = 16
    ones = torch.ones(d, dtype=torch.float64) / d**0.5
    planted = draw(d)
    planted = planted - (planted @ ones) * ones
    r = 0.6 * ones + 0.8 * planted / planted.norm()
    x = draw(500, d, seed=1) @ torch.diag(draw(d, seed=2).exp())
    seen = r - (r @ ones) * ones
    left = Ablate(Subspace.span(r))(x)
    centred = left - left.mean(-1, keepdim=True)
    assert (centred @ seen).std() > 0.1
    cleaned = Ablate(Subspace.span(seen))(x)
    cleaned = cleaned - cleaned.mean(-1, keepdim=True)
    assert (cleaned @ seen).abs().max() < 1e-12


def test_the_direction_of_one_column_is_its_slope_with_sign_and_size() -> None:
    x = draw(40, 6, seed=70)
    positive = torch.arange(40) < 15
    x[positive] += 2.0
    found = fit(x, contrast(positive))
    assert torch.allclose(found.subspace().vector, x[positive].mean(0) - x[~positive].mean(0), atol=1e-12)
    assert torch.allclose(fit(x, contrast(~positive)).subspace().vector, -found.subspace().vector, atol=1e-12)
    assert found.subspace().source["n"] == 40
