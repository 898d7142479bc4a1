"""LEACE whatever the units of the coordinates, where it cannot erase, and the numbers of its directions."""

import pytest
import torch

import mi_ablate as mi
from mi_ablate import find
from test_find_leace import covariance_with, data, draw, one_hot


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e8, 1e12])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_coordinate_of_other_units_neither_hides_the_others_nor_escapes(scale: float, elsewhere: bool) -> None:
    labels, x = torch.arange(600) % 2, draw(600, 10)
    x[:, 0] += 2 * labels
    x[:, 1] += labels
    x[:, 5] = (x[:, 5] + (0 if elsewhere else 0.3 * labels)) * scale
    eraser = find.leace(x, labels)
    edited = eraser.erase()(x)
    spread = edited.std(0)
    left = (edited - edited.mean(0)).T @ (labels - labels.double().mean()) / 600 / spread
    assert float(left.abs().max()) < 1e-12
    units = torch.where(torch.arange(10) == 5, scale, 1.0).double()
    plain = find.leace(x / units, labels)
    assert torch.allclose(plain.erase()(x / units) * units / spread, edited / spread, atol=1e-9)
    assert torch.allclose(plain.correlations, eraser.correlations, atol=1e-12)


def test_labels_along_directions_that_hardly_vary_are_refused_rather_than_left() -> None:
    labels, x = torch.arange(400) % 2, draw(400, 5)
    x[:, 1] = x[:, 0] + 4e-7 * labels  # a probe reads the difference of the two off, at a size float64 cannot invert
    with pytest.raises(ValueError, match="with directions in which the activations hardly vary"):
        find.leace(x, labels)
    assert covariance_with(find.leace(x, labels, shrinkage=1e-4).erase()(x), one_hot(labels)) < 1e-12
    x[:, 1] = x[:, 0]  # a sum of others, and nothing more
    assert covariance_with(find.leace(x, labels).erase()(x), one_hot(labels)) < 1e-12
    x[:, 1] = (x[:, 0] + x[:, 2]).float().double()  # with the rounding of float32 in it
    assert covariance_with(find.leace(x, labels).erase()(x), one_hot(labels)) < 1e-8


def test_where_the_activations_do_not_vary_the_projector_is_zero() -> None:
    """As with the pseudo-inverse of the covariance: what a new example has outside the span of the old ones stays."""
    x, labels = data(n=30, d=60, k=3)
    eraser = find.leace(x, labels)
    outside = torch.linalg.svd(x - x.mean(0)).Vh[29:].T
    assert float((eraser.reader.T @ outside).abs().max()) < 1e-9 * float(eraser.reader.abs().max())
    assert eraser.rank == 2
    assert covariance_with(eraser.erase()(x), one_hot(labels)) < 1e-10


@pytest.mark.parametrize("form", ["writer", "reader", "orthogonal"])
def test_the_correlations_of_a_subspace_are_those_of_its_own_directions(form: str) -> None:
    labels = torch.arange(600) % 4
    x = (draw(600, 10) + 1.5 * draw(4, 10, seed=50)[labels]) @ (
        draw(10, 10, seed=7) * torch.logspace(-1, 1, 10).double()
    )
    eraser = find.leace(x, labels)
    s = eraser.subspace(form)
    own = [mi.fit(s.coords(x)[:, [i]], mi.classes(labels)).r2 ** 0.5 for i in range(s.rank)]
    assert s.source["correlations"] == pytest.approx(own)
    assert s[1:].source["correlations"] == pytest.approx(own[1:])
    assert s.source["canonical_correlations"] == pytest.approx(eraser.correlations.tolist())
    along = (one_hot(labels) - 0.25).T @ x @ s.basis
    assert torch.equal(along.abs().amax(0), along.amax(0))
    if form == "reader":
        assert own[0] == pytest.approx(float(eraser.correlations[0]))
    assert abs(own[1] - float(eraser.correlations[1])) > 1e-3


def test_as_a_finder_it_takes_shrinkage_and_a_design() -> None:
    x, labels = data(n=40, d=20, k=2)
    shrunk, plain = (find.leace_subspace(x, labels, form="reader", shrinkage=rho) for rho in (0.5, 0.0))
    assert shrunk.source["shrinkage"] == 0.5
    assert torch.equal(shrunk.basis, find.leace(x, labels, shrinkage=0.5).subspace("reader").basis)
    assert shrunk.overlap(plain) < 0.99
    numbers = find.leace_subspace(x, mi.linear(x[:, 0]))
    assert numbers.rank == 1
    assert numbers.source["n"] == {"all": 40}
