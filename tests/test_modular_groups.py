"""Irreps of small groups and what a network holds of them; rank measures: theorems, planted truth, random baselines."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_ablate.modular import (
    Group,
    cosine_share,
    cyclic_group,
    dihedral_group,
    embedding_shares,
    hidden_shares,
    key_representations,
    random_baseline,
    rank_measures,
    symmetric_group,
    trace_similarities,
    trace_similarity,
)

GROUPS = {
    "Z_7": lambda: cyclic_group(7),
    "Z_8": lambda: cyclic_group(8),
    "D_5": lambda: dihedral_group(5),
    "D_6": lambda: dihedral_group(6),
    "S_3": lambda: symmetric_group(3),
    "S_4": lambda: symmetric_group(4),
    "S_5": lambda: symmetric_group(5),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=list(GROUPS))
def group(request: pytest.FixtureRequest) -> Group:
    return GROUPS[request.param]()


def test_a_group_is_a_group(group: Group) -> None:
    table, g = group.table, group.order
    every = torch.arange(g).expand(g, g)
    assert torch.equal(table.sort(1).values, every)
    assert torch.equal(table.T.sort(1).values, every)
    assert torch.equal(table[table.flatten()].reshape(g, g, g), table[:, table.flatten()].reshape(g, g, g)), (
        "associative"
    )
    assert torch.equal(table[torch.arange(g), group.inverse], table[0, group.inverse[0]].expand(g))


def test_irreps_are_homomorphisms_into_orthogonal_matrices(group: Group) -> None:
    for irrep in group.irreps:
        rho, d = irrep.matrices, irrep.dimension
        assert torch.allclose(rho[:, None] @ rho[None], rho[group.table], atol=1e-10), irrep
        assert torch.allclose(rho @ rho.mT, torch.eye(d, dtype=torch.float64).expand_as(rho), atol=1e-10), irrep
        assert torch.allclose(irrep.character[group.inverse], irrep.character, atol=1e-10)


def test_schur_orthogonality_and_completeness(group: Group) -> None:
    functions = torch.cat([irrep.functions for irrep in group.irreps], 1)
    assert functions.shape == (group.order, group.order), "every function on the group is a sum of entries"
    assert torch.allclose(functions.T @ functions, torch.eye(group.order, dtype=torch.float64), atol=1e-9)
    complex_irreducible = not group.name.startswith("Z")
    for irrep in group.irreps:
        entries = irrep.matrices.flatten(1)
        if complex_irreducible:
            wanted = torch.eye(irrep.dimension**2, dtype=torch.float64) * group.order / irrep.dimension
            assert torch.allclose(entries.T @ entries, wanted, atol=1e-9), irrep
        norm = float((irrep.character**2).sum()) / group.order
        assert norm == pytest.approx(2 if not complex_irreducible and irrep.dimension == 2 else 1)


def test_known_dimensions() -> None:
    dimensions = {name: sorted(one.dimension for one in make().irreps) for name, make in GROUPS.items()}
    assert dimensions["S_5"] == [1, 1, 4, 4, 5, 5, 6]
    assert dimensions["S_4"] == [1, 1, 2, 3, 3]
    assert dimensions["D_6"] == [1, 1, 1, 1, 2, 2]
    assert dimensions["D_5"] == [1, 1, 2, 2]
    s3 = symmetric_group(3)
    assert s3.irrep("(2, 1)").character.tolist() == pytest.approx([2, 0, 0, -1, -1, 0])
    assert s3.irrep("(1, 1, 1)").character.tolist() == pytest.approx([1, -1, -1, 1, 1, -1])
    assert repr(s3) == "Group(S_3: 6 elements, 3 irreps)"
    with pytest.raises(KeyError, match=r"S_3 has no irrep '\(4\)'; it has \(3\), \(2, 1\), \(1, 1, 1\)"):
        s3.irrep("(4)")


def planted(group: Group, name: str) -> torch.Tensor:
    rho = group.irrep(name).matrices
    return torch.einsum("aij,bjk,cik->abc", rho, rho, rho)


@pytest.mark.compat
@pytest.mark.parametrize(
    ("make", "first", "second"), [("S_4", "(3, 1)", "(2, 2)"), ("D_6", "1", "odd"), ("Z_8", "3", "4")]
)
def test_planted_logits_are_found(make: str, first: str, second: str) -> None:
    group = GROUPS[make]()
    x = sum(weight * planted(group, name) / planted(group, name).norm() for weight, name in ((4, first), (3, second)))
    per_prompt = 9 * noise(group.order, group.order, 1)
    found = trace_similarities(x + per_prompt, group)
    assert found[first] == pytest.approx(4 / 5)
    assert found[second] == pytest.approx(3 / 5)
    assert sum(value**2 for value in found.values()) == pytest.approx(1)
    assert key_representations(x, group) == [first, second]
    assert trace_similarity(-x, group.irrep(first)) == pytest.approx(-4 / 5)
    wrong = x[:, torch.randperm(group.order, generator=torch.Generator().manual_seed(0))]
    assert trace_similarity(wrong, group.irrep(first)) < 0.5, "another order of the elements"


@given(st.integers(3, 9), st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_on_a_cyclic_group_it_is_the_cosine_share(n: int, seed: int) -> None:
    x = noise(n, n, n, seed=seed)
    found, share = trace_similarities(x, cyclic_group(n)), cosine_share(x)
    assert list(found) == [str(k) for k in range(1, n // 2 + 1)]
    assert [value**2 for value in found.values()] == pytest.approx(share.centred.tolist())


def test_untrained_logits_have_almost_no_similarity() -> None:
    group = symmetric_group(4)
    found = [
        abs(value) for seed in range(5) for value in trace_similarities(noise(24, 24, 24, seed=seed), group).values()
    ]
    assert sum(found) / len(found) < 2 / 24**1.5


def test_shares_of_an_embedding_add_up_and_find_what_was_planted() -> None:
    group = symmetric_group(4)
    entries = group.irrep("(3, 1)").matrices.flatten(1)
    found = embedding_shares(entries @ noise(9, 20), group.irreps)
    assert found["(3, 1)"] == pytest.approx(1)
    blind = embedding_shares(noise(24, 200), group.irreps)
    assert sum(blind.values()) == pytest.approx(1)
    assert blind["(3, 1)"] == pytest.approx(9 / 24, abs=0.03), "a random embedding: dimension squared over the order"


def test_hidden_shares_tell_operands_from_products() -> None:
    group = symmetric_group(3)
    f = group.irrep("(2, 1)").matrices.flatten(1)
    a, b, product = f[:, None, :1] + 0 * f[None, :, :1], f[None, :, 1:2] + 0 * f[:, None, :1], f[group.table][..., 2:3]
    acts = torch.cat([a, 2 * b, 3 * product, torch.ones(6, 6, 1)], -1) + 5
    found = hidden_shares(acts, group.table, group.irreps)
    assert list(found) == ["(2, 1)", "(1, 1, 1)"]
    one = found["(2, 1)"]
    assert (one.a, one.b, one.product) == pytest.approx((1 / 14, 4 / 14, 9 / 14))
    assert one.total == pytest.approx(1)
    assert found["(1, 1, 1)"].total == pytest.approx(0, abs=1e-12)
    flipped = hidden_shares(acts, group.table.T, group.irreps)["(2, 1)"]
    assert flipped.product < 0.9 * one.product, "ba is another function than ab"


def test_groups_refuse_what_they_cannot() -> None:
    with pytest.raises(ValueError, match=r"symmetric_group\(6\): n from 2 to 5 \(120 elements\)"):
        symmetric_group(6)
    with pytest.raises(ValueError, match=r"dihedral_group\(2\): a polygon has at least 3 corners"):
        dihedral_group(2)
    group = cyclic_group(5)
    with pytest.raises(ValueError, match=r"logits have shape \[6, 6, 6\]; the group has 5 elements: \[5, 5, 5\]"):
        trace_similarities(torch.zeros(6, 6, 6), group)
    with pytest.raises(ValueError, match="The logits do not vary over the answers: there is nothing to compare"):
        trace_similarities(noise(5, 5, 1).expand(5, 5, 5), group)
    with pytest.raises(ValueError, match="is of a group with 5 elements; the rows are 6"):
        embedding_shares(torch.ones(6, 3), group.irreps)
    with pytest.raises(ValueError, match="The embedding is zero: it has no shares"):
        embedding_shares(torch.zeros(5, 3), group.irreps)
    with pytest.raises(ValueError, match="The hidden units are constant over all pairs"):
        hidden_shares(torch.ones(5, 5, 3), group.table, group.irreps)


@pytest.mark.compat
def test_random_matrices_have_the_published_ranks() -> None:
    found = random_baseline((97, 128), draws=20)
    assert 83 < found["rank99_energy"][0] < 84
    assert random_baseline((97, 128), draws=20, centre=True)["rank99_energy"][0] == pytest.approx(83, abs=0.4)
    assert found["rank99_nuclear"][0] == pytest.approx(93, abs=0.6)
    assert found["participation"][0] == pytest.approx(54.6, abs=1)
    assert 0 < found["participation"][1] < 2
    narrow = random_baseline((97, 64), draws=5)
    published = {"rank99_energy": 57, "rank99_nuclear": 62, "participation": 38}
    assert all(narrow[name][0] == pytest.approx(value, abs=1) for name, value in published.items())


@given(st.integers(1, 8), st.integers(0, 20), st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_equal_singular_values_have_the_rank_itself(rank: int, seed: int, scale: float) -> None:
    u, v = (torch.linalg.qr(noise(d, rank, seed=seed)).Q for d in (12, 9))
    found = rank_measures(scale * u @ v.T)
    assert [found[name] for name in ("rank99_energy", "rank99_nuclear")] == [rank, rank]
    assert [found[name] for name in ("participation", "effective", "stable")] == pytest.approx([rank] * 3)
    assert found["norm"] == pytest.approx(scale * rank**0.5)
    turned = rank_measures(torch.linalg.qr(noise(12, 12, seed=seed)).Q @ (scale * u @ v.T))
    assert turned == pytest.approx(found), "does not depend on the basis"


def test_the_measures_disagree_and_centring_counts() -> None:
    s = torch.tensor([10.0, 1, 1, 1, 0.1], dtype=torch.float64)
    found = rank_measures(torch.diag(s))
    assert (found["rank99_energy"], found["rank99_nuclear"]) == (3, 4)
    assert found["stable"] == pytest.approx(103.01 / 100)
    assert found["participation"] == pytest.approx(103.01**2 / (1e4 + 3 + 1e-4))
    share = s / s.sum()
    assert found["effective"] == pytest.approx(math.exp(-float((share * share.log()).sum())))
    x = noise(20, 1) @ noise(1, 6) + 5
    assert (rank_measures(x)["rank99_nuclear"], rank_measures(x, centre=True)["rank99_nuclear"]) == (2, 1)
    with pytest.raises(ValueError, match=r"The \[3, 2\] matrix less its mean row is zero: it has no rank measures"):
        rank_measures(torch.ones(3, 2), centre=True)
    with pytest.raises(ValueError, match="draws=1: a spread needs at least 2"):
        random_baseline((3, 3), draws=1)


def test_a_vector_has_no_rank(unchecked) -> None:
    with pytest.raises(ValueError, match=r"A rank is of a matrix \[n, d\]; this has shape \[3\]"):
        rank_measures(torch.ones(3))
