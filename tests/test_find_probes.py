"""Probes as directions in activation coordinates, and INLP."""

import json
import warnings

import pytest
import torch
from torch import Tensor

from mi_ablate import Ablate, Subspace, find


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(n: int = 600, d: int = 10, k: int = 2, size: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """k classes with isotropic noise, means at orthonormal vectors; coordinates of very different units."""
    means = Subspace.random(d, k, seed=seed + 1).basis.T * size
    labels = torch.arange(n) % k
    units = torch.logspace(-3, 3, d, dtype=torch.float64)
    return (draw(n, d, seed=seed) + means[labels] + 7) * units, labels, units


def accuracy(x: Tensor, labels: Tensor) -> float:
    """Held-out accuracy of a fresh probe on standardised activations, half and half."""
    from sklearn.linear_model import LogisticRegression

    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6 * float(x.std(0).max()))
    train = torch.arange(len(x)) % 4 < 2
    probe = LogisticRegression(max_iter=2000).fit(x[train].numpy(), labels[train].numpy())
    return float(probe.score(x[~train].numpy(), labels[~train].numpy()))


@pytest.mark.compat
@pytest.mark.parametrize("finder", [find.logistic, find.lda], ids=["logistic", "lda"])
def test_a_probe_reads_the_planted_concept_in_the_coordinates_of_the_activations(finder) -> None:
    x, labels, units = blobs(6000, size=2.0)
    gap = x[labels == 1].mean(0) / units - x[labels == 0].mean(0) / units
    s = finder(x, labels)
    assert s.rank == 1
    weights = s.basis[:, 0] * units  # isotropic noise in these units: the discriminant there is the difference of means
    assert float(weights @ gap / weights.norm() / gap.norm()) > 0.99
    assert abs(float(s.basis[:, 0] @ gap / gap.norm())) < 0.9
    scores = s.coords(x)[:, 0]
    assert scores[labels == 1].mean() > scores[labels == 0].mean()
    assert torch.allclose(finder(x, 1 - labels).basis, -s.basis, atol=1e-6)
    assert s.source["accuracy"] > 0.9
    assert s.source["chance"] == 0.5
    assert json.loads(json.dumps(s.source)) == s.source


@pytest.mark.parametrize("finder", [find.logistic, find.lda], ids=["logistic", "lda"])
def test_more_classes_give_classes_minus_one_directions_that_hold_all_of_them(finder) -> None:
    x, labels, units = blobs(1200, k=4)
    s = finder(x / units, labels)
    means = torch.stack([(x / units)[labels == c].mean(0) for c in range(4)])
    assert s.rank == 3
    assert s.overlap(Subspace.span(means[1:] - means[0])) > 0.97
    assert torch.allclose(finder(x / units, labels, rank=2).basis, s.basis[:, :2], atol=1e-9)
    with pytest.raises(ValueError, match=r"rank 4 was asked for; the .*, so a rank from 1 to 3"):
        finder(x / units, labels, rank=4)


def test_lda_orders_its_discriminants_by_the_ratio_of_variances() -> None:
    q = Subspace.random(8, 2, seed=3).basis
    labels = torch.arange(900) % 3
    centres = torch.tensor([[0.0, 2.0], [6.0, -1.0], [-6.0, -1.0]]).double() @ q.T
    s = find.lda(draw(900, 8) + centres[labels], labels)
    assert abs(float(s.basis[:, 0] @ q[:, 0])) > 0.98
    assert abs(float(s.basis[:, 1] @ q[:, 1])) > 0.95
    assert s.source["discriminants_explained"][0] > 0.85
    assert "explained" not in s.source  # nor what a part of the subspace would take its share of


def test_a_probe_is_a_reader_and_removing_its_direction_leaves_the_information() -> None:
    d, n = 6, 4000
    labels = torch.arange(n) % 2
    noise = 2 * draw(n, 1, seed=2)
    x = draw(n, d) * 0.5
    x[:, :1] += noise + 3 * labels[:, None]  # the concept is written along e0, under noise that e1 carries too
    x[:, 1:2] += noise
    s = find.logistic(x, labels)
    assert abs(float(s.basis[1, 0])) > 0.5  # it reads e0 - e1
    assert accuracy(x, labels) > 0.95
    left = accuracy(Ablate(s)(x), labels)
    assert left > 0.62  # e0 + e1 still tells
    assert accuracy(find.leace(x, labels).erase()(x), labels) < 0.55


def test_fewer_examples_than_dimensions_work_and_a_lone_example_has_no_accuracy() -> None:
    x = draw(20, 50)
    labels = torch.arange(20) % 2
    x[:, 3] += 30 * labels
    assert int(find.logistic(x, labels).basis[:, 0].abs().argmax()) != 3  # in units of each coordinate's own spread
    assert find.lda(x, labels).rank == 1
    labels[:] = 0
    labels[4] = 1
    assert find.logistic(x, labels).source["accuracy"] is None
    with pytest.raises(ValueError, match="The within-class covariance of 20 examples in 50 dimensions is singular"):
        find.lda(x, labels, shrinkage=0.0)
    with pytest.raises(ValueError, match="if the examples vary within their classes at all"):
        find.lda(torch.ones(20, 3) * labels[:, None], labels)


def test_a_constant_coordinate_and_half_precision_are_fine() -> None:
    x, labels, _ = blobs(200)
    x = x / x.std(0)
    x[:, 4] = 0.1
    for finder in (find.logistic, find.lda):
        assert finder(x.bfloat16(), labels).source["accuracy"] > 0.9
        assert abs(float(finder(x, labels).basis[4, 0])) < 1e-6


# INLP


def several(n: int = 2000, d: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """A concept written in three directions, under noise that is correlated among them: one probe is not enough."""
    q = Subspace.random(d, 3, seed=2).basis
    labels = torch.arange(n) % 2
    mixing = torch.tensor([[2.0, 0, 0], [2.0, 0.5, 0], [2.0, 0.5, 0.5]]).double()
    inside = (labels[:, None] - 0.5) * torch.tensor([3.0, 1.0, -1.0]) + draw(n, 3, seed=5) @ mixing.T
    return draw(n, d) @ (torch.eye(d).double() - q @ q.T) + inside.double() @ q.T, labels, q


def test_inlp_removes_directions_until_a_probe_is_at_chance() -> None:
    x, labels, q = several()
    s = find.inlp(x, labels)
    assert s.source["stopped"] == "chance"
    told = s.source["balanced_accuracy"]
    assert told[0] > 0.9
    assert told[-1] <= 0.5 + 2 * (0.25 / 2000) ** 0.5
    assert len(told) == s.rank + 1
    assert len(find.inlp(x, labels, rank=1).source["balanced_accuracy"]) == 1
    assert accuracy(x, labels) > 0.9
    assert accuracy(Ablate(s)(x), labels) < 0.56
    assert abs(float((s.basis[:, 0] @ q).norm())) > 0.98
    assert torch.allclose(find.inlp(x, labels, rank=1).basis, s.basis[:, :1])
    assert torch.allclose(s.basis[:, 0], find.logistic(x, labels).basis[:, 0], atol=1e-6)


def test_inlp_of_several_classes_takes_their_directions_together() -> None:
    x, labels, units = blobs(600, k=3)
    s = find.inlp(x / units, labels)
    assert s.rank in (2, 4)
    assert find.inlp(x / units, labels, rank=1).rank == 1
    assert accuracy(Ablate(s, to=(x / units).mean(0))(x / units), labels) < 0.45


def test_inlp_does_not_take_noise_for_a_direction() -> None:
    x, labels, units = blobs(400, d=6)
    with pytest.raises(ValueError, match=r"rank 4 was asked for; after [123] directions INLP stops .chance.. Ask for"):
        find.inlp(x / units, labels, rank=4)
    with pytest.raises(
        ValueError, match=r"A probe reaches a balanced accuracy of 0\.\d+ on held-out folds, which is chance"
    ):
        find.inlp(draw(400, 4), labels)
    flat = labels[:, None] * torch.ones(1, 3).double()
    assert find.inlp(flat, labels).source["stopped"] == "nothing left"
    with pytest.raises(ValueError, match=r"rank 2 was asked for; after 1 directions INLP stops .nothing left.."):
        find.inlp(flat, labels, rank=2)


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_inlp_finds_a_concept_that_few_examples_hold(share: float) -> None:
    """Judged by plain accuracy, the share of the larger class is already above what the probe reaches."""
    from sklearn.metrics import roc_auc_score

    n, mixing = 3000, torch.eye(8).double() + 0.3 * draw(8, 8, seed=4)
    positive = torch.arange(n) < int(share * n)
    x = draw(n, 8)
    x[:, 0] += 1.5 * positive
    x[:, 1] += 0.7 * positive
    x = x @ mixing
    plain = find.logistic(x, positive).source
    assert plain["accuracy"] < plain["chance"] + 0.02
    s = find.inlp(x, positive)
    assert s.source["stopped"] == "chance"
    assert s.source["chance"] == 0.5
    assert s.source["balanced_accuracy"][0] > 0.7
    left = Ablate(s, to=x.mean(0))(x)
    assert find.logistic(left, positive).source["balanced_accuracy"] < 0.52
    means = x[positive].mean(0) - x[~positive].mean(0)
    assert roc_auc_score(positive.numpy(), (x @ means).numpy()) > 0.8
    means = left[positive].mean(0) - left[~positive].mean(0)
    assert roc_auc_score(positive.numpy(), (left @ means).numpy()) < 0.65
    with pytest.raises(ValueError, match="which is chance"):
        find.inlp(draw(n, 8, seed=9), positive)


def test_balanced_accuracy_is_the_mean_over_classes_of_what_is_right_in_each() -> None:
    positive = torch.arange(1000) < 100
    x = 3.0 * positive[:, None] + draw(1000, 2)
    for finder in (find.logistic, find.lda):
        source = finder(x, positive).source
        assert source["chance"] == 0.9
        assert 0.8 < source["balanced_accuracy"] < source["accuracy"]
        noise = finder(draw(1000, 2), positive).source
        assert noise["accuracy"] == pytest.approx(0.9, abs=0.01)
        assert noise["balanced_accuracy"] == pytest.approx(0.5, abs=0.01)


def test_directions_of_probes_point_where_they_say_after_they_were_made_orthonormal() -> None:
    from sklearn.linear_model import LogisticRegression

    labels = torch.arange(600) % 4
    for seed in range(8):
        units = torch.logspace(-1, 1, 10, dtype=torch.float64)
        x = (draw(600, 10, seed=seed) + 1.5 * draw(4, 10, seed=seed + 50)[labels]) @ (
            draw(10, 10, seed=seed + 100) * units
        )
        spread = x.std(0, correction=0)
        probe = LogisticRegression(max_iter=2000).fit(((x - x.mean(0)) / spread).numpy(), labels.numpy())
        scores = torch.tensor(probe.coef_ - probe.coef_.mean(0)) / spread
        means = torch.stack([x[labels == c].mean(0) for c in range(4)])
        for rows, s in ((scores, find.logistic(x, labels)), (means - means.mean(0), find.lda(x, labels))):
            along = rows @ s.basis
            assert torch.equal(along.abs().amax(0), along.amax(0)), (seed, s)


def test_lda_without_a_cross_validation_says_none_and_equal_means_are_refused() -> None:
    few, labels = draw(22, 20), torch.arange(22) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find.lda(few, labels, shrinkage=0.0).source  # a fold is too few for the covariance, all are not
    assert found["accuracy"] is None
    assert found["balanced_accuracy"] is None
    x = draw(40, 6)
    with pytest.raises(ValueError, match="The class means are equal up to rounding: no linear discriminant"):
        find.lda(torch.cat([x, x]), torch.arange(80) >= 40)


X, Y = draw(12, 4), torch.arange(12) % 2
BAD = {
    "C": (lambda: find.logistic(X, Y, C=0), "C=0: the inverse strength of the penalty, above 0"),
    "one class": (lambda: find.lda(X, Y * 0), r"All 12 labels are \[0\]"),
    "too few": (lambda: find.lda(X[:2], Y[:2]), "2 examples of 2 classes: a within-class covariance needs more"),
    "no folds": (lambda: find.inlp(X[:3], Y[:3]), "each class needs at least two examples"),
    "rank 0": (lambda: find.inlp(X, Y, rank=0), "rank 0 was asked for; the activations have 4 dimensions"),
    "rank above d": (lambda: find.inlp(X, Y, rank=5), "rank 5 was asked for; the activations have 4 dimensions"),
    "NaN": (lambda: find.logistic(X * float("nan"), Y), "NaN or infinite activations in 12 examples"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_says_what_to_do(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
