"""Differences of means, their variants, and means that outliers cannot pull away."""

import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Add, find
from mi_ablate.find.classwise import ClassMoments


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(n: int = 400, d: int = 24, size: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Activations with a mean, a concept direction (unit) at ``size`` in half of them, and their labels."""
    v = draw(d, seed=seed + 1)
    v = v / v.norm()
    positive = torch.arange(n) % 2 == 0
    return draw(n, d, seed=seed) + draw(d, seed=seed + 2) + size * positive[:, None] * v, positive, v


def mean_gap(x: Tensor, positive: Tensor) -> Tensor:
    return x[positive].mean(0) - x[~positive].mean(0)


@pytest.mark.compat
def test_it_finds_a_planted_direction_with_sign_and_size() -> None:
    x, positive, v = planted(4000)
    s = find.difference_of_means(x, positive)
    assert float(s.basis[:, 0] @ v) > 0.99
    assert s.source["sizes"][0] == pytest.approx(3.0, rel=0.05)
    assert torch.allclose(s.vector, mean_gap(x, positive), atol=1e-12)
    assert float(find.difference_of_means(x, ~positive).basis[:, 0] @ v) < -0.99


@given(seed=st.integers(0, 1000), count=st.integers(1, 19))
def test_it_is_the_slope_of_the_fit_and_moves_one_class_mean_onto_the_other(seed: int, count: int) -> None:
    x, positive = draw(20, 6, seed=seed), torch.arange(20) < count
    s = find.difference_of_means(x, positive)
    assert torch.allclose(s.vector, mi.fit(x, mi.contrast(positive)).coef[0], atol=1e-12)
    moved = Add(s.vector)(x[~positive]).mean(0)
    assert torch.allclose(moved, x[positive].mean(0), atol=1e-12)
    along = s.source["coordinates"]
    assert along["positive"] > along["negative"]
    assert along["positive"] == pytest.approx(float(s.coords(x[positive]).mean()), abs=1e-12)


def test_the_reference_coordinate_is_what_affine_editing_moves_to() -> None:
    x, positive, _ = planted()
    s = find.difference_of_means(x, positive)
    edited = Ablate(s, to=x[~positive].mean(0))(x)
    assert torch.allclose(s.coords(edited)[:, 0], torch.tensor(s.source["coordinates"]["negative"]).double(), atol=1e-9)


def test_labels_may_be_booleans_or_whole_numbers_of_which_the_larger_is_positive() -> None:
    x, positive, _ = planted(40)
    same = [positive, positive.long(), positive.long() * 7 - 3, positive.tolist(), positive.to(torch.uint8)]
    found = [find.difference_of_means(x, labels).basis for labels in same]
    assert all(torch.equal(found[0], other) for other in found)
    assert torch.equal(find.difference_of_means(x, -positive.long()).basis, -found[0])


def test_paired_means_are_the_same_and_their_median_is_of_the_differences() -> None:
    x, positive, v = planted(2000)
    x = x + 40 * draw(1000, 24, seed=9).repeat_interleave(2, 0)  # what the two of a pair share
    plain, paired = find.difference_of_means(x, positive), find.difference_of_means(x, positive, paired=True)
    assert torch.allclose(plain.vector, paired.vector, atol=1e-10)
    assert paired.source["paired"] is True
    unpaired = find.difference_of_means(x, positive, robust="median")
    median = find.difference_of_means(x, positive, robust="median", paired=True)
    assert float(median.basis[:, 0] @ v) > 0.99
    assert not torch.allclose(median.vector, unpaired.vector, atol=1e-3)
    differences = x[positive] - x[~positive]
    assert torch.allclose(median.vector, find.geometric_median(differences), atol=1e-9)
    with pytest.raises(ValueError, match="1000 positive and 999 negative examples: pairs need as many of both"):
        find.difference_of_means(x[:-1], positive[:-1], paired=True)


def test_against_the_reference_leaves_nothing_along_its_mean() -> None:
    x, positive, _ = planted(4000, size=1.0)
    x = x + 50 * draw(24, seed=5)
    reference = x[~positive].mean(0)
    plain, projected = (find.difference_of_means(x, positive, against=a) for a in (None, "reference"))
    assert abs(float(projected.basis[:, 0] @ reference / reference.norm())) < 1e-15
    assert abs(float(plain.basis[:, 0] @ reference / reference.norm())) > 1e-3
    given_vector = find.difference_of_means(x, positive, against=reference * 7)
    assert torch.allclose(projected.vector, given_vector.vector, atol=1e-12)
    assert projected.source["against"] == "reference"
    assert given_vector.source["against"] == "vector"
    assert torch.equal(find.difference_of_means(x, positive, against=torch.zeros(24)).basis, plain.basis)


def test_standardised_is_the_formula_and_a_constant_coordinate_gives_zero() -> None:
    x, positive, _ = planted(60)
    x = x * torch.logspace(-3, 3, 24, dtype=torch.float64)
    x[:, 5], x[:, 6] = 0.1, 0.0
    s = find.difference_of_means(x, positive, standardised=True)
    spread = ((x[positive].var(0) + x[~positive].var(0)) / 2).sqrt()
    wanted = torch.where(spread > 1e-9, mean_gap(x, positive) / spread.clamp(min=1e-9), 0.0)
    assert torch.allclose(s.vector, wanted, atol=1e-9)
    assert s.vector[5] == s.vector[6] == 0
    scaled = find.difference_of_means(x * 8, positive, standardised=True)
    assert torch.allclose(s.vector, scaled.vector, atol=1e-9)
    assert not torch.allclose(s.vector, find.difference_of_means(x, positive).vector, atol=1.0)
    x[:, 5] = positive.double()
    with pytest.raises(ValueError, match=r"1 coordinates \(first: 5\) do not vary within the classes and differ"):
        find.difference_of_means(x, positive, standardised=True)


def test_the_positive_class_has_the_larger_coordinate_in_every_variant() -> None:
    for seed in range(20):
        x, positive, _ = planted(30, d=5, seed=seed)
        x = x * torch.logspace(-2, 2, 5, dtype=torch.float64) + 9 * draw(5, seed=seed + 50)
        for options in ({}, {"standardised": True}, {"against": "reference"}, {"standardised": True, "against": x[0]}):
            along = find.difference_of_means(x, positive, **options).source["coordinates"]
            assert along["positive"] >= along["negative"], (seed, options)


@pytest.mark.parametrize("robust", ["winsor", "median"])
def test_robust_means_survive_what_moves_the_plain_one(robust: str) -> None:
    x, positive, v = planted(4000, d=200)
    x[0, 17] += 5e4  # one massive activation in one prompt
    if robust == "median":
        x[2:400:2] -= 1e3 * v  # and whole prompts that are something else
    plain = float(find.difference_of_means(x, positive).basis[:, 0] @ v)
    sturdy = float(find.difference_of_means(x, positive, robust=robust).basis[:, 0] @ v)
    assert plain < 0.2
    assert sturdy > 0.9


def test_winsorising_is_by_each_vectors_own_quantile() -> None:
    x = draw(7, 3, 50)
    for quantile in (0.9, 0.995, 0.5, 0.001, 1.0):
        bound = torch.quantile(x.abs(), quantile, dim=-1, keepdim=True)
        assert torch.allclose(find.winsorised(x, quantile), x.clamp(-bound, bound), atol=1e-14), quantile
    assert torch.equal(find.winsorised(x, 1), x)
    assert torch.equal(find.winsorised(x)[3:5], find.winsorised(x[3:5]))
    assert find.winsorised(torch.ones(2, 1)).tolist() == [[1.0], [1.0]]
    for quantile in (0, 1.5, -1):
        with pytest.raises(ValueError, match="a share above 0 and at most 1"):
            find.winsorised(x, quantile)


def test_the_geometric_median_is_where_the_unit_pulls_cancel() -> None:
    x = draw(31, 4)
    m = find.geometric_median(x)
    pulls = (x - m) / (x - m).norm(dim=1, keepdim=True)
    assert float(pulls.sum(0).norm()) < 1e-6
    assert float(((x - x.mean(0)) / (x - x.mean(0)).norm(dim=1, keepdim=True)).sum(0).norm()) > 0.5
    turn = torch.linalg.qr(draw(4, 4, seed=3)).Q
    assert torch.allclose(find.geometric_median(x @ turn + 5), m @ turn + 5, atol=1e-8)


def test_the_geometric_median_at_a_data_point_and_on_a_line() -> None:
    x = torch.cat([torch.zeros(6, 3), draw(5, 3) + 4]).double()  # more than half at one point hold it
    assert torch.allclose(find.geometric_median(x), torch.zeros(3).double(), atol=1e-8)
    line = torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0], [1000, 0]]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(find.geometric_median(line), torch.tensor([2.0, 0]).double(), atol=1e-3)
    cross = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]]).double()
    assert torch.equal(find.geometric_median(cross), torch.zeros(2).double())  # starts at a point, which is the median
    assert torch.equal(find.geometric_median(draw(1, 3)), draw(1, 3)[0])


def test_a_geometric_median_that_did_not_converge_says_so() -> None:
    with pytest.warns(UserWarning, match="The geometric median did not converge: after 2 steps it still moved by"):
        find.geometric_median(draw(31, 4), iterations=2)


@pytest.mark.parametrize("size", [1e4, 1e10, 1e12])
def test_the_geometric_median_holds_however_far_two_fifths_of_the_rows_are(size: float) -> None:
    """The tolerance is a share of the median distance; the mean distance is the outliers', and stops it early."""
    x = draw(1000, 8)
    x[:400] = 1e3
    wanted = find.geometric_median(x)
    x[:400] = size
    assert float((find.geometric_median(x) - wanted).norm()) < 0.02 * float(wanted.norm())
    m = find.geometric_median(x)
    pulls = (x - m) / (x - m).norm(dim=1, keepdim=True)
    assert float(pulls.sum(0).norm()) < 1e-4


def test_bounded_means_give_coordinates_of_the_activations_as_they_are() -> None:
    x, positive, _ = planted(400)
    x = 10 * x
    s = find.difference_of_means(x, positive, robust="winsor", quantile=0.5)
    for name, rows in (("positive", x[positive]), ("negative", x[~positive])):
        assert s.source["coordinates"][name] == pytest.approx(float(s.coords(rows).mean()), abs=1e-10)
        assert abs(s.source["coordinates"][name] - float(s.coords(find.winsorised(rows, 0.5)).mean())) > 0.1


def test_lists_and_arrays_are_taken_where_vectors_are(unchecked) -> None:
    x, positive, _ = planted(40, d=6)
    wanted = find.difference_of_means(x, positive, against=torch.ones(6)).basis
    for given_vector in ([1.0] * 6, np.ones(6), torch.ones(6, dtype=torch.int64)):
        assert torch.equal(find.difference_of_means(x.numpy(), positive.numpy(), against=given_vector).basis, wanted)
    for rows in (x.tolist(), x.numpy()):
        assert torch.equal(find.winsorised(rows, 0.7).double(), find.winsorised(torch.as_tensor(rows), 0.7).double())
    whole = torch.arange(12).reshape(2, 6)
    assert torch.equal(find.winsorised(whole, 0.5), find.winsorised(whole.double(), 0.5))
    for labels in (["yes", "no"] * 20, None, np.array(["yes", "no"] * 20)):
        with pytest.raises(ValueError, match=r"^labels such as .{4,15} are neither Booleans nor whole numbers"):
            find.difference_of_means(x, labels)
    for acts in (list(x), None, [["a"]]):
        with pytest.raises(ValueError, match="that is no table of numbers: a tensor or array"):
            find.difference_of_means(acts, positive)
    with pytest.raises(ValueError, match=r"Activations hold torch.complex128: real numbers are needed"):
        find.difference_of_means(x.to(torch.complex128), positive)


@given(cuts=st.lists(st.integers(1, 59), max_size=5), seed=st.integers(0, 100))
def test_class_moments_do_not_depend_on_how_the_examples_are_cut(cuts: list[int], seed: int) -> None:
    x, index = draw(60, 2, 3, seed=seed) * 0.01 + 1e4, torch.arange(60) % 3
    whole = ClassMoments(3).update(x, index)
    edges = [0, *sorted(cuts), 60]
    parts = ClassMoments(3)
    for start, stop in pairwise(edges):
        parts.update(x[start:stop], index[start:stop])
    for c in range(3):
        assert torch.allclose(whole.mean[c], x[index == c].mean(0), rtol=1e-14)
        assert torch.allclose(whole.variance[c], x[index == c].var(0), rtol=1e-8)
    assert torch.allclose(parts.mean, whole.mean, rtol=1e-14)
    assert torch.allclose(parts.variance, whole.variance, rtol=1e-8)


def test_the_source_is_plain_json_and_the_file_keeps_it(tmp_path) -> None:
    x, positive, _ = planted(40)
    s = find.difference_of_means(x, positive, robust="winsor", quantile=0.9, name="refusal")
    assert json.loads(json.dumps(s.source)) == s.source
    assert s.source["n"] == {"0": 20, "1": 20}
    assert (s.name, s.source["robust"], s.source["quantile"]) == ("refusal", "winsor", 0.9)


X, Y, _ = planted(20, d=4)
BAD = {
    "one class": (lambda: find.difference_of_means(X, Y | True), r"All 20 labels are \[True\]: a direction needs"),
    "one class, numbers": (lambda: find.difference_of_means(X, [3] * 20), r"All 20 labels are \[3\]"),
    "another length": (
        lambda: find.difference_of_means(X, Y[:7]),
        r"labels of shape \[7\] for 20 activations: one label an example",
    ),
    "floats": (lambda: find.difference_of_means(X, Y.double()), "labels hold torch.float64: Booleans"),
    "three classes": (
        lambda: find.difference_of_means(X, torch.arange(20) % 3),
        r"difference_of_means takes two classes; the labels hold 3 \(\[0, 1, 2\]\)",
    ),
    "NaN": (lambda: find.difference_of_means(X / 0 * 0, Y), "NaN or infinite activations in 20 examples"),
    "no difference": (
        lambda: find.difference_of_means(torch.ones(20, 4), Y),
        "The two class means are equal: there is no direction between them",
    ),
    "median, standardised": (
        lambda: find.difference_of_means(X, Y, robust="median", standardised=True),
        "robust='median' has no spread to go with it: the outliers would come back",
    ),
    "median of nothing": (lambda: find.geometric_median(X[:0]), "The geometric median of no vectors was asked for"),
    "against NaN": (
        lambda: find.difference_of_means(X, Y, against=torch.full((4,), float("nan"))),
        "The vector given as against holds NaN or infinite values",
    ),
    "robust": (lambda: find.difference_of_means(X, Y, robust="mode"), "robust='mode' is one of"),
    "against a word": (
        lambda: find.difference_of_means(X, Y, against="mean"),
        r"against='mean' is None, 'reference' \(the mean of the negative class\) or a vector",
    ),
    "against another width": (
        lambda: find.difference_of_means(X, Y, against=torch.ones(3)),
        r"against has shape \[3\]; a vector \[d\] = \[4\] is needed",
    ),
    "against itself": (
        lambda: find.difference_of_means(X, Y, against=mean_gap(X, Y)),
        "The difference lies along the reference: nothing is left",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_says_what_to_do(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
