"""Subspaces: every constructor against the laws of an orthogonal projector, and how two of them compare."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import Subspace

D = 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SUBSPACES = {
    "basis": Subspace(torch.eye(D, dtype=torch.float64)[:, [2, 0]]),
    "span": Subspace.span(draw(3, D)),
    "span of one vector": Subspace.span(draw(D)),
    "span of dependent vectors": Subspace.span(draw(4, 2, seed=1) @ draw(2, D, seed=2)),
    "span of float32": Subspace.span(draw(3, D, seed=3).float()),
    "span of bfloat16": Subspace.span(draw(3, D, seed=4).bfloat16()),
    "span of everything": Subspace.span(draw(2 * D, D, seed=5)),
    "random": Subspace.random(D, 4, seed=6),
    "complement": Subspace.span(draw(3, D, seed=7)).complement(),
    "union": Subspace.span(draw(2, D, seed=8)) | Subspace.span(draw(2, D, seed=9)),
    "leading part": Subspace.random(D, 4, seed=10)[:2],
    "chosen directions": Subspace.random(D, 4, seed=11)[[3, 1]],
    "one direction": Subspace.random(D, 4, seed=12)[-1],
    "moved": Subspace.random(D, 3, seed=13).to("cpu"),
}
RANKS = {"basis": 2, "span": 3, "span of one vector": 1, "span of dependent vectors": 2, "span of float32": 3}
RANKS |= {"span of bfloat16": 3, "span of everything": D, "random": 4, "complement": D - 3, "union": 4}
RANKS |= {"leading part": 2, "chosen directions": 2, "one direction": 1, "moved": 3}


@pytest.mark.parametrize("name", sorted(SUBSPACES))
def test_every_constructor_gives_an_orthonormal_float64_basis_of_the_right_rank(name: str) -> None:
    s = SUBSPACES[name]
    assert s.basis.dtype == torch.float64
    assert s.basis.shape == (D, RANKS[name]) == (s.d, s.rank)
    assert torch.allclose(s.basis.T @ s.basis, torch.eye(s.rank, dtype=torch.float64), atol=1e-12)
    assert len(repr(s)) < 80
    assert f"rank {s.rank} of {D}" in repr(s)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(SUBSPACES))
def test_projection_laws(name: str, dtype: torch.dtype) -> None:
    s, x = SUBSPACES[name], draw(3, 4, D, seed=20).to(dtype)
    before, inside = x.clone(), s.project(x)
    assert (inside.dtype, inside.shape) == (dtype, x.shape)
    assert s.coords(x).shape == (3, 4, s.rank)
    assert torch.equal(x, before)
    close = {"atol": 0.1} if dtype in (torch.bfloat16, torch.float16) else {"atol": 1e-5}
    assert torch.allclose(s.project(inside), inside, **close)
    if s.rank < D:
        assert torch.allclose(inside + s.complement().project(x), x, **close)
    else:
        assert torch.allclose(inside, x, **close)


def test_project_is_q_qt() -> None:
    s, x = SUBSPACES["random"], draw(5, D)
    assert torch.allclose(s.project(x), x @ (s.basis @ s.basis.T), atol=1e-14)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), scale=st.floats(1e-8, 1e8))
def test_span_contains_its_vectors_in_order_at_any_scale(seed: int, n: int, scale: float) -> None:
    rows = scale * draw(n, D, seed=seed)
    s = Subspace.span(rows)
    assert s.rank == min(n, D)
    assert torch.allclose(s.project(rows), rows, atol=1e-10 * scale)
    for k in range(1, s.rank + 1):  # the leading k directions span the first k vectors
        assert torch.allclose(s[:k].project(rows[:k]), rows[:k], atol=1e-10 * scale)


@given(seed=st.integers(0, 10_000))
def test_vectors_of_very_different_sizes_all_count(seed: int) -> None:
    rows = draw(3, D, seed=seed) * torch.tensor([1e8, 1.0, 1e-8], dtype=torch.float64)[:, None]
    assert Subspace.span(rows).rank == 3


def test_a_dependent_vector_adds_nothing_and_zero_rows_are_skipped() -> None:
    a, b = draw(2, D, seed=30)
    assert Subspace.span(torch.stack([a, 2 * a, torch.zeros(D), b, a - b])).rank == 2
    assert Subspace.span(torch.stack([a, a + 1e-7 * b]).float()).rank == 1, "float32 cannot tell these apart"
    assert Subspace.span(torch.stack([a, a + 1e-7 * b])).rank == 2


def test_removing_non_orthogonal_directions_one_after_another_leaves_much_and_span_removes_all() -> None:
    """Two directions of cosine 0.8: 47 % of the first survives the second's projection; not with span."""
    a = torch.eye(D, dtype=torch.float64)[0]
    b = 0.8 * a + 0.6 * torch.eye(D, dtype=torch.float64)[1]
    x = draw(2000, D, seed=31)
    one_by_one = x - (x @ a)[:, None] * a
    one_by_one = one_by_one - (one_by_one @ b)[:, None] * b
    assert (one_by_one @ a).norm() / (x @ a).norm() > 0.4
    rest = x - Subspace.span(torch.stack([a, b])).project(x)
    assert (rest @ a).abs().max() < 1e-14
    assert (rest @ b).abs().max() < 1e-14


def test_complement_has_nothing_in_common_and_together_they_are_everything() -> None:
    s = SUBSPACES["span"]
    c = s.complement()
    assert (s.basis.T @ c.basis).abs().max() < 1e-14
    assert (s | c).rank == D


def test_union_keeps_the_first_basis_and_ignores_what_it_already_has() -> None:
    a, b = Subspace.random(D, 2, seed=1), Subspace.random(D, 3, seed=2)
    both = a | b
    assert torch.allclose(both.basis[:, :2], a.basis, atol=1e-12)
    assert (both | a).rank == both.rank == 5
    assert (a | a).rank == 2


def test_random_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    a = Subspace.random(D, 3, seed=5)
    torch.manual_seed(2)
    assert torch.equal(a.basis, Subspace.random(D, 3, seed=5).basis)
    assert a.overlap(Subspace.random(D, 3, seed=6)) < 0.999


def test_random_is_isotropic() -> None:
    """The mean projector over seeds is rank/d times the identity."""
    mean = sum(b @ b.T for b in (Subspace.random(4, 2, seed).basis for seed in range(600))) / 600
    assert torch.allclose(mean, 0.5 * torch.eye(4, dtype=torch.float64), atol=0.07)


@given(seed=st.integers(0, 10_000), k=st.integers(1, D))
def test_a_subspace_against_itself(seed: int, k: int) -> None:
    s = Subspace.random(D, k, seed)
    turned = Subspace(s.basis @ torch.linalg.qr(draw(k, k, seed=seed)).Q)
    assert torch.allclose(s.cosines(turned), torch.ones(k, dtype=torch.float64), atol=1e-12)
    assert abs(s.overlap(turned) - 1) < 1e-12
    assert turned.angles(s).max() < 1e-12


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4), m=st.integers(1, 4))
def test_overlap_is_symmetric_and_is_the_squared_cosine(seed: int, k: int, m: int) -> None:
    a, b = Subspace.random(D, k, seed), Subspace.random(D, m, seed + 1)
    assert abs(a.overlap(b) - b.overlap(a)) < 1e-12
    assert 0 <= a.overlap(b) <= 1 + 1e-12
    projectors = ((a.basis @ a.basis.T) @ (b.basis @ b.basis.T)).trace() / min(k, m)
    assert abs(a.overlap(b) - float(projectors)) < 1e-12
    cosines = a.cosines(b)
    assert len(cosines) == min(k, m)
    assert torch.equal(cosines, cosines.sort(descending=True).values)
    assert torch.allclose(a.angles(b).cos(), cosines, atol=1e-12)


def test_random_subspaces_overlap_by_max_rank_over_d() -> None:
    found = [Subspace.random(20, 3, 2 * s).overlap(Subspace.random(20, 8, 2 * s + 1)) for s in range(200)]
    assert abs(sum(found) / 200 - 8 / 20) < 0.02


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-4, 0.3, math.pi / 4, 1.2, math.pi / 2])
def test_principal_angles_are_exact_small_ones_too(angle: float) -> None:
    """arccos of the cosine gives 0 at 1e-8; the sine does not."""
    eye = torch.eye(D, dtype=torch.float64)
    a = Subspace(eye[:, :2])
    turned = math.cos(angle) * eye[:, 1] + math.sin(angle) * eye[:, 2]
    b = Subspace(torch.stack([eye[:, 0], turned], dim=1))
    found = a.angles(b)
    assert found.tolist() == sorted(found.tolist())
    assert abs(float(found[1]) - angle) < max(1e-15, 1e-9 * angle)
    assert float(found[0]) < 1e-15
    if angle == 1e-8:
        assert float(a.cosines(b).arccos().max()) == 0, "the trap that `angles` avoids has gone"


def test_several_angles_keep_their_order() -> None:
    eye, angles = torch.eye(8, dtype=torch.float64), [1e-9, 0.2, 1.0, 1.5]
    turned = [math.cos(t) * eye[:, i] + math.sin(t) * eye[:, 4 + i] for i, t in enumerate(angles)]
    order = [2, 0, 3, 1]
    found = Subspace(eye[:, :4]).angles(Subspace(torch.stack([turned[i] for i in order], dim=1)))
    assert torch.allclose(found, torch.tensor(angles, dtype=torch.float64), atol=1e-12)


def test_columns_are_cast_once_for_each_dtype() -> None:
    s = Subspace.random(D, 2)
    x = draw(D).float()
    assert s.columns(x).dtype == torch.float32
    assert s.columns(x) is s.columns(x + 1)
    assert s.columns(x.double()).dtype == torch.float64


def test_a_basis_made_in_float32_goes_through_span() -> None:
    """Its error of 1e-8 to 1e-7 would be left in every removal, so the constructor refuses it and names the way."""
    q = torch.linalg.qr(draw(D, 3).float()).Q
    with pytest.raises(ValueError, match=r"not orthonormal .* Subspace\.span"):
        Subspace(q)
    assert Subspace.span(q.T).overlap(Subspace.span(draw(D, 3).T)) > 1 - 1e-6


def test_a_direction_keeps_its_source_and_its_size() -> None:
    s = Subspace(torch.eye(D, dtype=torch.float64)[:, :3], "s", {"method": "by hand", "sizes": [4.0, 2.0, 0.5]})
    assert s[1].source == {"method": "by hand", "sizes": [2.0]}
    assert s[1:].to("cpu").source["sizes"] == [2.0, 0.5]
    assert torch.equal(s[2].vector, 0.5 * s.basis[:, 2])


def test_any_whole_number_names_a_direction(unchecked) -> None:
    import numpy as np

    s = Subspace.random(D, 3)
    for index in (np.int64(1), torch.tensor(1)):
        assert torch.equal(s[index].basis, s[1].basis)  # type: ignore[index]
    assert torch.equal(s[torch.tensor([2, 0])].basis, s[[2, 0]].basis)  # type: ignore[index]


def test_only_one_direction_of_known_size_is_a_vector() -> None:
    with pytest.raises(ValueError, match=r"it has rank 2\. basis\[:, i\] is a unit vector; scale it yourself"):
        _ = Subspace.random(D, 2).vector
    with pytest.raises(ValueError, match="is not one vector: its source states no size"):
        _ = Subspace.random(D, 1).vector
