"""Directions from a singular value decomposition: which of them meet a planted concept, and which must not."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Subspace, find


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(d: int, seed: int) -> Tensor:
    v = draw(d, seed=seed)
    return v / v.norm()


def cosine(s: Subspace, v: Tensor, i: int = 0) -> float:
    return float(s.basis[:, i] @ v / v.norm())


PAIRED = torch.arange(600) % 2 == 1


def pairs(noise: float = 0.2, d: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """300 pairs that share a large part; the concept is added to each positive, and one more direction varies."""
    v, w = Subspace.span(torch.stack([unit(d, 1), unit(d, 2)])).basis.T
    shared = (10 * draw(300, d, seed=3)).repeat_interleave(2, 0)
    x = shared + noise * draw(600, d, seed=4) + PAIRED[:, None] * (3 * v + 1.2 * draw(600, 1, seed=5) * w)
    return x, v, w


# Class means


def test_class_means_find_planted_class_directions_in_their_order() -> None:
    q = Subspace.random(20, 2, seed=7).basis
    angles = torch.arange(800) % 8 * (2 * torch.pi / 8)
    x = draw(800, 20) * 0.5 + 5 * angles.cos()[:, None] * q[:, 0] + 2 * angles.sin()[:, None] * q[:, 1]
    s = find.class_means(x, torch.arange(800) % 8)
    assert s.rank == 7
    assert abs(cosine(s, q[:, 0])) > 0.99
    assert abs(cosine(s, q[:, 1], 1)) > 0.99
    assert s[:2].overlap(Subspace(q)) > 0.99
    assert sum(s.source["explained"]) == pytest.approx(1)
    assert s.source["explained"][:2] == pytest.approx([25 / 29, 4 / 29], abs=0.02)
    assert s.source["rms"][0] == pytest.approx(5 / 2**0.5, rel=0.05)


@given(seed=st.integers(0, 500), uneven=st.booleans())
def test_class_means_are_the_svd_of_the_means_whatever_the_frequencies(seed: int, uneven: bool) -> None:
    sizes = torch.tensor([3, 12, 5, 30] if uneven else [6, 6, 6, 6])
    labels = torch.repeat_interleave(torch.tensor([10, 3, 4, -2]), sizes)
    x = draw(len(labels), 9, seed=seed)
    means = torch.stack([x[labels == c].mean(0) for c in (-2, 3, 4, 10)])
    _, size, vh = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    s = find.class_means(x, labels)
    assert torch.allclose((s.basis.T @ vh[:3].T).abs(), torch.eye(3).double(), atol=1e-6)
    assert s.source["rms"] == pytest.approx((size[:3] / 2).tolist())
    along = (means - means.mean(0)) @ s.basis
    assert (along.abs().amax(0) == along.amax(0)).all()  # each points to the class that is furthest along it
    fitted = mi.fit(x, mi.classes(torch.unique(labels, return_inverse=True)[1])).subspace()
    assert fitted.overlap(s) > 1 - 1e-9
    if not uneven:  # the order is that of the fit's subspace where all classes are as frequent
        assert torch.allclose((s.basis.T @ fitted.basis).abs(), torch.eye(3).double(), atol=1e-6)


def test_of_two_classes_class_means_are_the_difference_of_means() -> None:
    x = draw(50, 8)
    positive = torch.arange(50) < 11
    for labels in (positive, positive.long() * 4):
        s, r = find.class_means(x, labels), find.difference_of_means(x, labels)
        assert torch.allclose(s.basis, r.basis, atol=1e-12)


def test_class_means_of_thousands_of_classes_are_those_of_a_fit() -> None:
    labels = torch.arange(900) % 300
    x = draw(900, 12)
    s, fitted = find.class_means(x, labels), mi.fit(x, mi.classes(labels))
    assert torch.allclose((s.basis.T @ fitted.subspace().basis).abs(), torch.eye(12).double(), atol=1e-8)
    assert s.source["rms"] == pytest.approx(fitted.singular_values().tolist())
    assert s.source["r2"] == pytest.approx(fitted.r2)
    many = torch.arange(6000) % 3000  # a one-hot of these is 3000 x 3000 to decompose: 14 s, and here 0.1 s
    assert find.class_means(draw(6000, 12), many, rank=3).rank == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_class_means_that_are_equal_up_to_rounding_have_no_direction(dtype) -> None:
    x, labels = draw(400, 6) + 3, torch.arange(800) >= 400
    x[::2, 0] += 1.0
    same = torch.cat([x, x]).to(dtype)
    with pytest.raises(ValueError, match="The class means about their mean are all zero: there is no direction"):
        find.class_means(same, labels)
    with pytest.raises(ValueError, match="The chosen columns explain nothing"):
        mi.fit(same, mi.contrast(labels)).subspace()
    nearly = same + 1e-6 * labels[:, None]
    if dtype == torch.float32:  # less than rounding of float32 may leave between the means
        with pytest.raises(ValueError, match="are all zero"):
            find.class_means(nearly, labels)
    else:
        assert find.class_means(nearly, labels).rank == 1
    small = same.double() + 1e-6 * labels[:, None]
    assert find.class_means(small, labels).rank == 1
    assert mi.fit(small, mi.contrast(labels)).subspace().rank == 1
    assert find.class_means((x + 0).bfloat16(), torch.arange(400) % 2).rank == 1


# Paired differences


def test_the_uncentred_svd_of_paired_differences_keeps_the_concept_and_the_centred_one_loses_it() -> None:
    x, v, w = pairs()
    s = find.paired_svd(x, PAIRED, rank=2)
    assert cosine(s, v) > 0.99
    assert abs(cosine(s, w, 1)) > 0.99
    centred = find.paired_svd(x, PAIRED, rank=2, centred=True)
    assert abs(cosine(centred, w)) > 0.99
    assert abs(cosine(centred, v)) < 0.2
    assert (s.source["centred"], centred.source["centred"]) == (False, True)


@given(seed=st.integers(0, 500))
def test_paired_directions_are_eigenvectors_of_the_uncentred_gram_matrix_and_point_to_the_positives(seed: int) -> None:
    x, positive = draw(24, 6, seed=seed), torch.arange(24) % 2 == 0
    d = x[positive] - x[~positive]
    s = find.paired_svd(x, positive)
    scatter = 12 * (torch.cov(d.T, correction=0) + torch.outer(d.mean(0), d.mean(0)))
    values = torch.tensor(s.source["rms"]) ** 2 * 12
    assert torch.allclose(scatter @ s.basis, s.basis * values, atol=1e-8)
    assert (d.mean(0) @ s.basis >= 0).all()
    assert torch.allclose(find.paired_svd(x, ~positive).basis, -s.basis, atol=1e-9)


# Whitened


def noisy(n: int = 4000, d: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A concept ``v`` added under noise that is largest along a direction at 60 degrees to it."""
    v = torch.eye(d)[0].double()
    loud = 0.5 * v + 0.75**0.5 * torch.eye(d)[1].double()
    positive = torch.arange(n) % 2 == 0
    noise = draw(n, d, seed=1) + 10 * draw(n, 1, seed=2) * loud
    covariance = torch.eye(d).double() + 100 * torch.outer(loud, loud)
    return noise + 6.0 * positive[:, None] * v, positive, v, covariance


def test_whitened_writers_are_what_the_concept_adds_and_readers_what_tells_it_apart() -> None:
    x, positive, v, covariance = noisy()
    writer, reader = (find.whitened_svd(x, positive, rank=1, form=f, ridge=0) for f in ("writer", "reader"))
    discriminant = torch.linalg.solve(covariance, v)
    assert cosine(writer, v) > 0.99
    assert cosine(reader, discriminant) > 0.99
    assert cosine(reader, v) < 0.9
    assert abs(cosine(find.pca(x, rank=1), v)) < 0.6  # the plain decomposition finds the loud direction
    assert writer.source["form"] == "writer"
    assert reader.source["form"] == "reader"
    lda = find.lda(x, positive)
    assert float(lda.basis[:, 0] @ reader.basis[:, 0]) > 0.99


def test_whitened_svd_of_fewer_examples_than_dimensions_needs_its_ridge() -> None:
    x, positive, v, _ = noisy(n=40, d=60)
    s = find.whitened_svd(x, positive, ridge=0.01)
    assert s.rank <= 20
    assert s.source["ridge"] == 0.01
    with pytest.raises(ValueError, match="The covariance of 20 negative examples in 60 dimensions is singular"):
        find.whitened_svd(x, positive, ridge=0)
    x, v, _ = pairs(noise=1.0)
    assert abs(cosine(find.whitened_svd(x, PAIRED, rank=1, paired=True), v)) > 0.9


def test_the_whitened_writer_with_isotropic_noise_is_the_plain_svd() -> None:
    x = draw(60, 6)
    positive = torch.arange(60) % 2 == 0
    down = x[~positive] - x[~positive].mean(0)
    values, vectors = torch.linalg.eigh(down.T @ down / 29)
    white = vectors / values.sqrt() @ vectors.T
    y = x @ white
    y[positive] += unit(6, 3) * 8
    rows = y[positive] - y[~positive].mean(0)
    plain = torch.linalg.svd(rows, full_matrices=False).Vh[0]
    for form in ("writer", "reader"):
        assert abs(cosine(find.whitened_svd(y, positive, rank=1, form=form), plain)) > 1 - 1e-9


@pytest.mark.parametrize("form", ["writer", "reader"])
def test_whitened_directions_point_to_the_positives_and_their_numbers_are_their_own(form: str) -> None:
    flipped = 0
    for seed in range(10):
        units = torch.logspace(-1, 1, 10, dtype=torch.float64)
        positive = torch.arange(600) % 4 > 1
        x = (draw(600, 10, seed=seed) + 1.5 * positive[:, None] * draw(10, seed=seed + 50)) @ (
            draw(10, 10, seed=seed + 100) * units
        )
        s = find.whitened_svd(x, positive, form=form)
        assert ((x[positive].mean(0) - x[~positive].mean(0)) @ s.basis >= 0).all()
        rows = x[positive] - x[~positive].mean(0)
        rms = (rows @ s.basis).pow(2).mean(0).sqrt()
        assert s.source["rms"] == pytest.approx(rms.tolist())
        assert sum(s.source["explained"]) == pytest.approx(1)
        assert s[3:5].source["rms"] == pytest.approx(rms[3:5].tolist())
        flipped += int((torch.tensor(s.source["whitened_rms"]).argsort() != rms.argsort()).any())
    assert flipped > 2  # which is why the numbers of the whitened space go by another name


# PCA


def test_pca_finds_the_largest_directions_about_the_mean_and_not_a_concept() -> None:
    q = Subspace.random(15, 2, seed=3).basis
    x = 30 * unit(15, 5) + 6 * draw(3000, 1) * q[:, 0] + 3 * draw(3000, 1, seed=1) * q[:, 1] + draw(3000, 15, seed=2)
    concept = Subspace(q).complement().basis[:, 0]
    positive = torch.arange(3000) % 2 == 0
    x = x + positive[:, None] * concept
    s = find.pca(x, rank=2)
    assert abs(cosine(s, q[:, 0])) > 0.99
    assert abs(cosine(s, q[:, 1], 1)) > 0.99
    assert abs(cosine(s, concept)) < 0.1
    assert float(find.difference_of_means(x, positive).basis[:, 0] @ concept) > 0.9
    assert s.source["explained"][0] == pytest.approx(36 / 60.25, abs=0.03)


def test_pca_signs_are_the_same_for_any_order_of_the_rows_and_follow_labels() -> None:
    x, positive = draw(40, 6), torch.arange(40) % 2 == 0
    s = find.pca(x)
    for seed in range(5):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(find.pca(x[order]).basis, s.basis, atol=1e-9)
    assert (s.basis.gather(0, s.basis.abs().argmax(0, keepdim=True)) > 0).all()
    signed = find.pca(x, positive)
    gap = x[positive].mean(0) - x[~positive].mean(0)
    assert (gap @ signed.basis > 0).all()
    assert torch.allclose(find.pca(x, ~positive).basis, -signed.basis, atol=1e-12)
    assert not torch.allclose(signed.basis, s.basis)


# All of them

X, Y = pairs()[0][:24, :8], PAIRED[:24]
CALLS = {
    "class_means": lambda x, y, **kw: find.class_means(x, y, **kw),
    "paired_svd": lambda x, y, **kw: find.paired_svd(x, y, **kw),
    "whitened_svd": lambda x, y, **kw: find.whitened_svd(x, y, **kw),
    "pca": lambda x, y, **kw: find.pca(x, y, **kw),
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_leading_directions_do_not_depend_on_the_rank_asked_for(name: str) -> None:
    whole = CALLS[name](X, Y)
    for rank in range(1, whole.rank + 1):
        part = CALLS[name](X, Y, rank=rank)
        assert torch.allclose(part.basis, whole.basis[:, :rank], atol=1e-12)
        assert len(part.source["explained"]) == len(part.source["rms"]) == rank
    assert json.loads(json.dumps(whole.source)) == whole.source
    assert whole[-1:].source["explained"] == whole.source["explained"][-1:]
    assert whole[0].source["rms"] == whole.source["rms"][:1]
    for rank in (0, -1, whole.rank + 1):
        with pytest.raises(ValueError, match=rf"rank {rank} was asked for; the .* so a rank from 1 to {whole.rank}"):
            CALLS[name](X, Y, rank=rank)


BAD = {
    "collinear differences": (
        lambda: find.paired_svd(X[:, :1] * torch.ones(8), Y, rank=2),
        "rank 2 was asked for; the 12 paired differences span 1 directions",
    ),
    "fewer pairs than rank": (
        lambda: find.paired_svd(X[:4], Y[:4], rank=3),
        "rank 3 was asked for; the 2 paired differences span 2",
    ),
    "unequal pairs": (lambda: find.paired_svd(X[:3], Y[:3]), "1 positive and 2 negative examples: pairs need as many"),
    "no differences": (lambda: find.paired_svd(torch.ones(4, 3), Y[:4]), "The paired differences are all zero"),
    "constant": (lambda: find.pca(torch.ones(4, 3)), "The activations about their mean are all zero"),
    "singular with a ridge": (
        lambda: find.whitened_svd(torch.cat([X[:1].repeat(12, 1), X[:12]]), torch.arange(24) >= 12, ridge=0.5),
        "12 negative examples in 8 dimensions is singular: give a ridge above 0.5, if they vary at all",
    ),
    "form": (lambda: find.whitened_svd(X, Y, form="both"), r"form='both' is 'writer' \(what the concept adds\)"),
    "ridge": (lambda: find.whitened_svd(X, Y, ridge=-1), "ridge=-1: a share of the mean variance, 0 or above"),
    "three classes": (lambda: find.pca(X, torch.arange(24) % 3), "pca takes two classes; the labels hold 3"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_says_what_to_do(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
