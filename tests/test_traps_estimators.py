"""Numeric traps of other tools' estimators, named for the symptom: the wrong way is measured here, and ours beside it.

Every test first runs what goes wrong and says by how much, so that it stops being a test of anything when the trap is
gone; then it asserts that the package does not fall into it.
"""

import math

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Subspace, collect, find
from models import has_hooked_transformer, random_gpt2, tiny, tokens_for


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(a @ b / a.norm() / b.norm())


def contrasted(n: int, d: int, size: float, mean: float) -> tuple[Tensor, Tensor, Tensor]:
    """bfloat16 activations with a large common mean and a concept of ``size`` in half of them; its unit direction."""
    v = draw(d, seed=1)
    v = v / v.norm()
    positive = torch.arange(n) % 2 == 0
    x = draw(n, d) * 0.3 + mean * draw(d, seed=2) + size * positive[:, None] * v
    return x.bfloat16(), positive, v


# Precision of means


def test_a_running_mean_kept_in_bf16_loses_the_direction() -> None:
    x, positive, _ = contrasted(2000, 64, 1.0, 6.0)
    exact = x.double()[positive].mean(0) - x.double()[~positive].mean(0)

    def running(rows: Tensor) -> Tensor:
        mean = torch.zeros(64, dtype=torch.bfloat16)
        for i, row in enumerate(rows):
            mean = mean + (row - mean) / (i + 1)
        return mean

    wrong = cosine(running(x[positive]) - running(x[~positive]), exact)
    assert wrong < 0.9
    assert cosine(find.difference_of_means(x, positive).vector, exact) > 1 - 1e-12


def test_means_stored_in_bf16_with_one_massive_coordinate_point_nowhere() -> None:
    x, positive, v = contrasted(4000, 64, 1.0, 0.5)
    x = x.double()
    x[:, 7] = torch.where(positive, 3000.1, 2999.9)  # a massive activation; bf16 has steps of 16 there
    up, down = x[positive].mean(0), x[~positive].mean(0)
    assert abs(cosine(up.bfloat16() - down.bfloat16(), v)) < 0.3
    assert find.difference_of_means(x, positive).basis.dtype == torch.float64
    assert cosine(find.difference_of_means(x, positive).vector, v) > 0.95


def test_sums_of_squares_in_float32_lose_the_spread_beside_a_large_mean() -> None:
    x = draw(500, 3) * 0.01 + 1000
    wrong = (x.float() ** 2).mean(0) - x.float().mean(0) ** 2
    assert float((wrong / 1e-4 - 1).abs().max()) > 10
    moments = mi.find.classwise.ClassMoments(2).update(x, torch.arange(500) % 2)
    right = moments.variance.mean(0)
    assert torch.allclose(right, x.var(0), rtol=0.02)


def test_small_angles_are_zero_by_the_arccosine_in_float32() -> None:
    for angle, wrong_by in ((1e-4, 0.5), (1e-3, 0.01)):
        a = torch.tensor([1.0, 0.0])
        b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        wrong = float((a @ b.float()).clamp(max=1).arccos())
        assert abs(wrong / angle - 1) > wrong_by
        right = float(Subspace(a[:, None]).angles(Subspace(b[:, None]))[0])
        assert right == pytest.approx(angle, rel=1e-6)


def test_a_pseudo_inverse_of_one_hot_labels_leaves_covariance_at_its_default_tolerance() -> None:
    worst = 0.0
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.cat([torch.arange(5), torch.randint(0, 5, (395,), generator=generator)])
        x = draw(400, 8, seed=seed) + 10 * draw(5, 8, seed=seed + 1)[labels]
        z = torch.nn.functional.one_hot(labels).double()
        xc, zc = x - x.mean(0), z - z.mean(0)
        zz, zx = zc.T @ zc / 400, zc.T @ xc / 400
        singular = torch.linalg.eigvalsh(zz)[0]
        assert abs(float(singular)) < 1e-14  # the columns add up to one
        wrong = x - zc @ torch.linalg.pinv(zz) @ zx  # inverts a rounding error in about half of the draws
        worst = max(worst, float((zc.T @ wrong / 400).abs().max()))
        for edit in (find.leace(x, labels).oracle(labels), find.leace(x, labels).erase()):
            assert float((zc.T @ edit(x) / 400).abs().max()) < 1e-13
    assert worst > 1e-3


# Robust means


def test_torch_quantile_refuses_more_than_two_to_the_24_entries() -> None:
    x = torch.zeros(2**12 + 1, 2**12)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x.flatten(), 0.995)
    x[5, 9], x[5, 10] = 1.0, -2.0
    assert float(find.winsorised(x, 0.9999)[5, 10]) == pytest.approx(-1.59, abs=0.01)
    assert float(find.winsorised(x)[5].abs().max()) == 0.0


def test_a_quantile_over_the_batch_makes_the_mean_depend_on_the_batch_size() -> None:
    x = draw(64, 40) * torch.logspace(-1, 1, 64)[torch.randperm(64)][:, None].double()
    x[3] *= 50

    def batch_wide(size: int) -> Tensor:
        parts = []
        for part in x.split(size):
            bound = torch.quantile(part.abs(), 0.9)
            parts.append(part.clamp(-bound, bound))
        return torch.cat(parts).mean(0)

    wrong = float((batch_wide(32) - batch_wide(8)).norm() / batch_wide(32).norm())
    assert wrong > 0.2
    labels = torch.arange(64) % 2
    whole = find.difference_of_means(x, labels, robust="winsor", quantile=0.9).vector
    parts = torch.cat([find.winsorised(part, 0.9) for part in x.split(8)])
    assert torch.allclose(
        find.difference_of_means(parts, labels).vector, whole, rtol=0, atol=1e-14 * float(whole.norm())
    )


# Decompositions


def test_centred_pca_of_paired_differences_discards_the_concept() -> None:
    n, d = 400, 40
    v = draw(d, seed=1) / draw(d, seed=1).norm()
    paired = torch.arange(2 * n) % 2 == 1
    x = (5 * draw(n, d, seed=2)).repeat_interleave(2, 0) + draw(2 * n, d, seed=3) * 0.5 + 3 * paired[:, None] * v
    differences = x[paired] - x[~paired]
    wrong = torch.linalg.svd(differences - differences.mean(0)).Vh[0]
    assert abs(cosine(wrong, v)) < 0.35
    assert abs(cosine(find.paired_svd(x, paired, centred=True).basis[:, 0], v)) < 0.35
    assert cosine(find.paired_svd(x, paired).basis[:, 0], v) > 0.98
    assert cosine(find.difference_of_means(x, paired).vector, v) > 0.98


def test_signs_of_a_decomposition_are_arbitrary() -> None:
    x, positive = draw(60, 10), torch.arange(60) % 2 == 0
    x = x + 3 * positive[:, None] * torch.eye(10)[0]
    raw = [torch.linalg.svd(part - part.mean(0), full_matrices=False).Vh[0] for part in (x, x[torch.randperm(60)], -x)]
    aligned = [torch.linalg.eigh(part.T.cov()).eigenvectors[:, -1] for part in (x, -x)]
    signs = {bool(cosine(v, raw[0]) > 0) for v in [*raw, *aligned]}
    assert signs == {True, False}  # the same axis, either way round
    for finder in (find.pca, find.class_means, find.paired_svd, find.whitened_svd):
        first = finder(x, positive)
        along = first.coords(x).mean(0) if finder is find.paired_svd else first.coords(x[positive]).mean(0)
        assert float(along[0] - first.coords(x[~positive]).mean(0)[0]) > 0
        flipped = finder(-x, positive)
        assert cosine(flipped.basis[:, 0], first.basis[:, 0]) < -0.99


def test_directions_removed_one_after_another_come_back() -> None:
    d = 32
    a = torch.eye(d)[0].double()
    b = 0.8 * a + 0.6 * torch.eye(d)[1].double()
    x = draw(200, d)
    left = x
    for v in (a, b):
        left = left - (left @ v)[:, None] * v
    share = float((left @ a).norm() / (x @ a).norm())
    assert share > 0.4  # 0.8 * 0.6 of the second direction's part
    s = Subspace.span(torch.stack([a, b]))
    assert float((Ablate(s)(x) @ a).norm() / (x @ a).norm()) < 1e-14
    assert float((Ablate(s)(x) @ b).norm()) < 1e-12


# Which layers there are


@pytest.mark.compat
def test_dropping_a_share_of_the_layers_leaves_a_one_layer_model_without_candidates() -> None:
    assert len(range(int(0.8 * 1))) == 0  # one tool's rule for the last layers
    assert len(range(1, 1)) == 0  # another's, which starts at layer 1
    model = tiny(n_layers=1)
    prompts = tokens_for(model, 20)
    found = find.candidates(model, prompts, prompts[:, -1] > 5, ("resid_pre", "resid_post"))
    assert {key.site for key in found} == {"blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"}
    assert found.subspace("blocks.0.hook_resid_post").rank == 1


@pytest.mark.compat
def test_layer_zero_and_the_last_layer_are_candidates() -> None:
    model = tiny(n_layers=3)
    prompts = tokens_for(model, 20)
    prompts[:, -1] = torch.where(prompts[:, 0] > 5, 1, 2)
    found = find.candidates(model, prompts, prompts[:, 0] > 5, ("resid_pre", "resid_post"))
    assert {row["layer"] for row in found.table()} == {0, 1, 2}
    assert all(torch.isfinite(found[key].coef).all() for key in found)
    assert found.table()[0]["layer"] == 0  # here it is the best of them


@pytest.mark.compat
def test_resid_pre_of_the_next_block_is_resid_post_of_this_one_and_not_of_the_next() -> None:
    model = tiny(n_layers=3)
    prompts = tokens_for(model, 20)
    found = find.candidates(model, prompts, prompts[:, -1] > 5, ("resid_pre", "resid_post"))
    for i in range(2):
        after, before = f"blocks.{i}.hook_resid_post", f"blocks.{i + 1}.hook_resid_pre"
        assert torch.equal(found.subspace(after).vector, found.subspace(before).vector)
        shifted = found.subspace(f"blocks.{i + 1}.hook_resid_post")
        assert float(shifted.cosines(found.subspace(after))[0]) < 0.99  # an off-by-one is another direction


@pytest.mark.skipif(not has_hooked_transformer(), reason="loads into a HookedTransformer")
def test_the_last_hidden_state_is_after_the_final_norm(tmp_path) -> None:
    reference = random_gpt2(tmp_path)
    model = mi.load_model(str(tmp_path))
    prompts = tokens_for(model, 20)
    with torch.no_grad():
        hidden = reference(prompts, output_hidden_states=True).hidden_states
    ours = collect(model, prompts, ("resid_pre", "resid_post"))
    for i in range(2):  # hidden state i is the input of block i
        assert torch.allclose(hidden[i][:, -1], ours[f"blocks.{i}.hook_resid_pre"], atol=1e-4)
    last = ours["blocks.1.hook_resid_post"]
    wrong, right = hidden[2][:, -1], last
    assert float((wrong - right).norm() / right.norm()) > 0.3
    normed = torch.nn.functional.layer_norm(
        last, (16,), reference.transformer.ln_f.weight, reference.transformer.ln_f.bias
    )
    assert torch.allclose(wrong, normed, atol=1e-4)
