"""Controls are tested like the treatment: what they draw, what they keep, and what depends on the seed."""

import pytest
import torch
from torch import Tensor

from mi_ablate import Ablate, Add, Erase, Rotate, Subspace, controls, fit, fourier
from mi_ablate.controls import Moments, from_moments
from mi_ablate.moments import keyed, site_moments

D = 6
SITE = "blocks.0.hook_resid_post"
SCALE = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25, 0.1], dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TURN = torch.linalg.qr(draw(D, D, seed=1)).Q
ACTS = draw(4000, D, seed=2) @ torch.diag(SCALE) @ TURN.T + 3
COV = ACTS.T.cov()
TREATMENT = Ablate(Subspace.random(D, 2, seed=3), draw(D), strength=0.5).at(SITE, pos=-1)


def subspaces(control, rank: int, seeds: int) -> list[Tensor]:
    hooks = Ablate(Subspace.random(D, rank)).at(SITE)
    return [control(hooks, seed)[0][1].intervention.subspace.basis for seed in range(seeds)]


CONTROLS = {
    "covariance": lambda: controls.covariance(ACTS),
    "covariance by site": lambda: controls.covariance({SITE: ACTS}),
    "pca": lambda: controls.pca(ACTS),
    "isotropic": lambda: controls.isotropic(D),
}


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_a_control_keeps_everything_but_the_subspace(name: str) -> None:
    control = CONTROLS[name]()
    ((site, hook),) = control(TREATMENT, 0)
    (_, treated) = TREATMENT[0]
    assert site == SITE
    assert (hook.pos, hook.head, hook.unit, hook.when, hook.name) == (treated.pos, None, None, "all", SITE)
    edit, was = hook.intervention, treated.intervention
    assert (edit.strength, edit.keep, edit.gate) == (was.strength, was.keep, was.gate)
    assert edit.to is was.to
    assert edit.subspace.rank == 2
    assert edit.subspace.overlap(was.subspace) < 0.999
    assert repr(control) == f"controls.{name.split()[0]}"


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_the_same_seed_draws_the_same_and_another_seed_another(name: str) -> None:
    one, two = CONTROLS[name](), CONTROLS[name]()
    a, b = subspaces(one, 2, 2)
    assert torch.equal(a, subspaces(two, 2, 2)[0])
    same = torch.allclose(a @ a.T, b @ b.T)
    assert same == (name == "pca")
    assert one.random == (name != "pca")


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_the_same_seed_is_nested_over_ranks(name: str) -> None:
    control = CONTROLS[name]()
    full = subspaces(control, D, 1)[0]
    for rank in range(1, D):
        assert torch.equal(subspaces(control, rank, 1)[0], full[:, :rank])


def test_covariance_draws_have_the_covariance_of_the_activations() -> None:
    """A first direction is Sigma^(1/2) z, normalised: whitened, its directions are uniform on the sphere."""
    values, vectors = torch.linalg.eigh(COV)
    whiten = vectors @ torch.diag(values**-0.5) @ vectors.T
    first = torch.stack([b[:, 0] for b in subspaces(controls.covariance(ACTS), 1, 600)])
    white = first @ whiten
    white = white / white.norm(dim=1, keepdim=True)
    assert torch.allclose(white.T @ white / 600, torch.eye(D, dtype=torch.float64) / D, atol=0.03)
    assert not torch.allclose(first.T @ first / 600, torch.eye(D, dtype=torch.float64) / D, atol=0.2)


def test_covariance_draws_span_sigma_half_z() -> None:
    """Rank k: the span of k independent draws from N(0, Sigma), here from the definition."""
    values, vectors = torch.linalg.eigh(COV)
    root = vectors @ torch.diag(values**0.5)
    for seed, basis in enumerate(subspaces(controls.covariance(ACTS), 3, 4)):
        z = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))[:, :3]
        assert Subspace.span((root @ z).T).overlap(Subspace(basis)) > 1 - 1e-10


def share(basis: Tensor) -> float:
    return float((basis.T @ COV @ basis).trace() / COV.trace())


def test_how_much_variance_each_control_removes() -> None:
    """Isotropic: rank/d on average. PCA: the most. Covariance-drawn: in between, and far more than isotropic."""
    values = torch.linalg.eigvalsh(COV).flip(0)
    for rank in (1, 2):
        isotropic = sum(share(b) for b in subspaces(controls.isotropic(D), rank, 400)) / 400
        drawn = sum(share(b) for b in subspaces(controls.covariance(ACTS), rank, 400)) / 400
        (top,) = subspaces(controls.pca(ACTS), rank, 1)
        assert abs(isotropic - rank / D) < 0.03
        assert abs(share(top) - float(values[:rank].sum() / values.sum())) < 1e-12
        assert isotropic + 0.2 < drawn < share(top)


def test_the_expected_share_of_a_covariance_draw() -> None:
    """E[z' S^2 z / z' S z] / tr S by independent sampling."""
    z = draw(20_000, D, seed=9)
    values = torch.linalg.eigvalsh(COV)
    wanted = float(((z**2 * values**2).sum(1) / (z**2 * values).sum(1)).mean() / values.sum())
    found = sum(share(b) for b in subspaces(controls.covariance(ACTS), 1, 600)) / 600
    assert abs(found - wanted) < 0.02


def test_pca_is_the_top_eigenvectors_in_order() -> None:
    _, _, vh = torch.linalg.svd(ACTS - ACTS.mean(0), full_matrices=False)
    (basis,) = subspaces(controls.pca(ACTS), D, 1)
    assert torch.allclose((basis * vh.T).sum(0).abs(), torch.ones(D, dtype=torch.float64), atol=1e-9)


def test_a_rank_of_its_own_overrides_the_treatments() -> None:
    for control in (controls.covariance(ACTS, 3), controls.pca(ACTS, rank=3), controls.isotropic(D, 3)):
        assert subspaces(control, 1, 1)[0].shape == (D, 3)


def test_each_site_has_its_own_moments() -> None:
    other = "blocks.1.hook_resid_post"
    control = controls.pca({SITE: ACTS, other: draw(50, D, seed=5) @ torch.diag(SCALE.flip(0))})
    hooks = control(Ablate(Subspace.random(D, 1)).at(SITE, other), 0)
    a, b = (hook.intervention.subspace for _, hook in hooks)
    assert a.overlap(Subspace(TURN[:, :1])) > 0.99
    assert b.overlap(Subspace(torch.eye(D, dtype=torch.float64)[:, -1:])) > 0.9
    with pytest.raises(KeyError, match=r"The control has no activations at blocks.7.hook_resid_post; it has blocks.0"):
        control(Ablate(Subspace.random(D, 1)).at("blocks.7.hook_resid_post"), 0)


@pytest.mark.parametrize("kind", ["covariance", "pca"])
def test_two_edits_of_one_site_have_each_their_own_activations(kind: str, model, tokens) -> None:
    """Two positions, or two heads: the order of the edits does not matter, and PCA removes the most at both."""
    pre, z = "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z"
    tokens = tokens.clone()
    tokens[:, 0] = torch.arange(len(tokens)) % 2  # position 0 varies along one direction alone
    wide, head = Ablate(Subspace.random(16, 2, 1)), Ablate(Subspace.random(8, 2, 1))
    for first, second in (
        (wide.at(pre, pos=0), wide.at(pre, pos=-1)),
        (head.at(z, head=0, pos=-1), head.at(z, head=1, pos=-1)),
    ):
        drawn = []
        for hooks in (first + second, second + first):
            moments = site_moments(model, tokens, hooks, None, None, {})
            found = from_moments(kind, moments)(hooks, 0)
            for (key, hook), (_, placed) in zip(keyed(hooks), found):
                values = torch.linalg.eigvalsh(moments[key].covariance).flip(0)
                best = float(values[:2].sum() / values.sum())
                share = moments[key].share(placed.intervention.subspace)
                assert share == pytest.approx(best) if kind == "pca" else share < best - 1e-6 or best > 1 - 1e-9
                assert (placed.pos, placed.head) == (hook.pos, hook.head)
            drawn.append([hook.intervention.subspace for _, hook in found])
        for one, other in zip(drawn[0], reversed(drawn[1])):
            assert torch.equal(one.basis, other.basis)
        assert drawn[0][0].overlap(drawn[0][1]) < 0.99


def test_a_mapping_by_sites_serves_every_edit_of_a_site() -> None:
    edit = Ablate(Subspace.random(D, 1))
    one, two = controls.pca({SITE: ACTS})(edit.at(SITE, pos=0) + edit.at(SITE, pos=1), 0)
    assert torch.equal(one[1].intervention.subspace.basis, two[1].intervention.subspace.basis)


def test_activations_at_several_positions_are_flattened() -> None:
    flat, stacked = controls.pca(ACTS), controls.pca(ACTS.reshape(1000, 4, D))
    assert torch.allclose(subspaces(flat, 2, 1)[0].abs(), subspaces(stacked, 2, 1)[0].abs(), atol=1e-9)


def test_the_other_interventions_keep_their_form_too() -> None:
    control = controls.covariance(ACTS)
    rows = draw(5, D, seed=6)
    add, add_rows, rotate, erase = (
        control(edit.at(SITE), 3)[0][1].intervention
        for edit in (
            Add(draw(D), strength=2.0),
            Add(rows),
            Rotate(Subspace.random(D, 4), torch.tensor([0.25, 0.5])),
            Erase(draw(D, 2), draw(D, 2, seed=1), draw(D, seed=2), 0.5),
        )
    )
    assert add.strength == 2.0
    assert torch.allclose(add.vector.norm(), draw(D).norm())
    assert abs(torch.cosine_similarity(add.vector, draw(D), dim=0)) < 0.999
    assert torch.allclose(add_rows.vector.norm(dim=1), rows.norm(dim=1))
    assert (rotate.subspace.rank, rotate.angle.tolist()) == (4, [0.25, 0.5])
    assert (erase.strength, erase.centre.tolist()) == (0.5, draw(D, seed=2).tolist())
    assert torch.equal(erase.writer, erase.reader)
    assert torch.allclose(erase.writer.T @ erase.reader, torch.eye(2, dtype=torch.float64))


def test_keep_is_kept() -> None:
    hooks = Ablate(Subspace.random(D, 2), keep=True).at(SITE)
    assert controls.covariance(ACTS)(hooks, 0)[0][1].intervention.keep


NUMBERS = torch.arange(60)
CIRCLE = fourier(NUMBERS, 12, [1, 2])
WRITTEN = CIRCLE.matrix @ draw(4, D, seed=7) + 0.1 * draw(60, D, seed=8)


def test_shuffled_replaces_only_what_is_written() -> None:
    target = fourier(NUMBERS + 1, 12, [1, 2])
    found = fit(WRITTEN, CIRCLE)
    edit = Ablate(found.subspace(), found.predict(target), strength=0.9)
    hooks = edit.at(SITE, pos=-1)
    control = controls.shuffled(WRITTEN, CIRCLE, target)
    ((name, hook),) = control(hooks, 0)
    got = hook.intervention
    assert (name, hook.pos) == (SITE, -1)
    assert got.subspace is edit.subspace
    assert (got.strength, got.keep, got.gate) == (0.9, False, None)
    assert got.to.shape == edit.to.shape
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(got.to, fit(WRITTEN, CIRCLE[order]).predict(target))
    # A fit to nothing writes values near the mean; the treatment's are on the circle.
    spread = lambda x: float((x - x.mean(0)).pow(2).sum())  # noqa: E731
    assert spread(got.to) < 0.3 * spread(edit.to)
    assert control.random
    assert (control.name, repr(control)) == ("shuffled", "controls.shuffled")
    assert torch.equal(control(hooks, 0)[0][1].intervention.to, got.to)
    assert not torch.allclose(control(hooks, 1)[0][1].intervention.to, got.to)


def test_shuffled_refuses_what_it_cannot_stand_beside() -> None:
    control = controls.shuffled(WRITTEN, CIRCLE, CIRCLE)
    with pytest.raises(ValueError, match=r"writes no values \(Ablate with to=\); shuffled has nothing to replace"):
        control(Ablate(Subspace.random(D, 1)).at(SITE), 0)
    with pytest.raises(ValueError, match="60 activations and 12 rows of the design"):
        controls.shuffled(WRITTEN, CIRCLE[:12], CIRCLE)


def test_plain_functions_and_whole_vectors_have_no_subspace_to_replace() -> None:
    control = controls.covariance(ACTS)
    with pytest.raises(ValueError, match=r"is a plain function, so its subspace is not known; use edit.at\(name\)"):
        control([(SITE, lambda x, hook: x)], 0)
    with pytest.raises(ValueError, match=r"has no subspace to replace; pass controls=\{\} or a control of your own"):
        control(Ablate(None).at(SITE), 0)


def test_a_rank_above_the_width_raises() -> None:
    control = controls.covariance(ACTS, rank=7)
    with pytest.raises(ValueError, match=r"Rank 7 was asked of activations of width 6 at blocks.0.hook_resid_post"):
        control(TREATMENT, 0)


@pytest.mark.parametrize("sizes", [[4000], [1, 2, 3997], [1500, 2500], [1] * 5 + [3995]], ids=str)
def test_moments_do_not_depend_on_the_batches(sizes: list[int]) -> None:
    moments = Moments()
    for part in (ACTS + 1e4).split(sizes):
        moments.update(part)
    assert moments.n == 4000
    assert torch.allclose(moments.mean, (ACTS + 1e4).mean(0), rtol=1e-13)
    assert torch.allclose(moments.covariance, COV, atol=1e-8)
    s = Subspace.random(D, 2)
    assert abs(moments.share(s) - share(s.basis)) < 1e-9


def test_moments_of_one_vector_have_no_covariance() -> None:
    with pytest.raises(ValueError, match="A covariance needs at least two vectors; 1 were given"):
        _ = Moments().update(ACTS[:1]).covariance


def test_moments_that_do_not_vary_have_no_share() -> None:
    assert Moments().update(torch.ones(5, D)).share(Subspace.random(D, 2)) == 0


def test_float32_activations_are_summed_in_float64() -> None:
    acts = (ACTS + 1000).float()
    assert torch.allclose(Moments().update(acts).covariance, acts.double().T.cov(), atol=1e-9)
    assert from_moments("pca", Moments().update(acts)).name == "pca"
