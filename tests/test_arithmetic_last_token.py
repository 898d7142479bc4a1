"""Baselines of the helix under one interface, and fits of both operands and the answer over prompts."""

from types import SimpleNamespace

import pytest
import torch
from tests.models import tiny
from torch import Tensor

import mi_ablate as mi
from mi_ablate.arithmetic.representation.comparisons import baselines, method_design, method_fits, method_subspaces
from mi_ablate.arithmetic.representation.helices import helix_fits
from mi_ablate.arithmetic.representation.last_token import pair_design, pair_fits
from mi_ablate.arithmetic.representation.products import basis_of, explained, left_out, products
from mi_ablate.arithmetic.representation.states import embedding_means, means_of, number_means

A100 = torch.arange(100)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circles(periods: tuple[int | float, ...], d: int = 256, seed: int = 0) -> Tensor:
    return mi.helix(A100, periods).matrix[:, 1:] @ draw(2 * len(periods), d, seed=seed)


def test_baselines_of_a_helix_of_a_smooth_curve_and_of_noise() -> None:
    curve = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None] ** torch.arange(1, 4) @ draw(3, 256, seed=3)
    acts = {"helix": circles((2, 5, 10, 100)) + draw(100, 256), "curve": curve, "noise": draw(100, 256, seed=4)}
    means = means_of(acts, A100)
    found = baselines(means, draws=10)
    r2 = {method: x.tolist() for method, x in found.r2.items()}
    assert found.rank == 8
    assert found.expected == pytest.approx(8 / 99)
    assert r2["helix"][0] > r2["polynomial"][0] + 0.4  # a helix is no polynomial
    assert r2["polynomial"][1] == pytest.approx(1)  # and a polynomial no helix, though a line and slow sines come near
    assert r2["helix"][1] < 0.9999
    for i in range(3):
        assert r2["shuffled"][i] == pytest.approx(8 / 99, abs=0.05)
        assert r2["pca"][i] >= max(r2["helix"][i], r2["circle"][i], r2["random"][i]) - 1e-9
        assert r2["helix"][i] >= r2["circle"][i]
    assert r2["helix"][2] == pytest.approx(8 / 99, abs=0.02)
    assert r2["random"][2] == pytest.approx(8 / 256, abs=0.02)
    assert float(found.loo["shuffled"].max()) < 0
    assert bool(found.loo["pca"].isnan().all())
    assert len(found.table()) == 18
    assert "pca" in repr(found)


def test_each_baseline_is_what_its_own_fit_says() -> None:
    values = torch.cat([A100[:40], A100[:40:3]])  # uneven counts
    acts = draw(len(values), 10) + values[:, None] / 20
    means = means_of(acts, values)
    found, weights = baselines(means, (5, 10), draws=1, seed=3), means.counts.double()
    for method in ("helix", "circle", "polynomial", "shuffled"):
        fits = method_fits(means, method, (5, 10), seed=3)
        assert fits.method == method
        torch.testing.assert_close(found.r2[method], fits.r2_means, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.loo[method], fits.loo, atol=1e-9, rtol=0)
        design = method_design(means, method, (5, 10), seed=3)
        rows = torch.searchsorted(means.values, values)
        assert fits.fit(0).r2 == pytest.approx(mi.fit(acts, design[rows]).r2, abs=1e-10)
        p, q = products(means, 0), basis_of(design.matrix, weights)
        assert explained(p, q) == pytest.approx(float(fits.r2_means[0]), abs=1e-10)
        assert left_out(p, q, weights) == pytest.approx(float(fits.loo[0]), abs=1e-9)
    y = means.centred(0)
    for method in ("pca", "random"):
        subspace = method_subspaces(means, method, found.rank, seed=3)["activations"]
        inside = (weights * subspace.project(y).square().sum(1)).sum() / (weights * y.square().sum(1)).sum()
        assert float(found.r2[method][0]) == pytest.approx(float(inside), abs=1e-10)
        assert subspace.source["method"] == method
    assert method_fits(means, "circle", (5, 10)).labels == ("a:cos 5", "a:sin 5", "a:cos 10", "a:sin 10")
    assert left_out(torch.eye(3).double(), torch.eye(3).double()[:, :1], torch.ones(3).double()) != 0
    with pytest.raises(
        KeyError, match=r"No design 'pca': helix, circle, polynomial, shuffled. Subspaces \(pca, random\)"
    ):
        method_fits(means, "pca")
    with pytest.raises(KeyError, match="No subspace 'helix': pca, random"):
        method_subspaces(means, "helix", 2)


def problems_of_tiny(n: int = 60) -> SimpleNamespace:
    """Prompts a, b, = of a model without a tokenizer: what the functions read of `Problems`."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 5, (n,), generator=generator), torch.randint(0, 6, (n,), generator=generator)
    return SimpleNamespace(
        task="a + b",
        tokens=torch.stack([a, b, torch.full_like(a, 10)], 1),
        inputs={"a": a, "b": b, "answer": a + b},
        positions={"a": -3, "b": -2, "answer": -1},
    )


@pytest.mark.compat
def test_one_pass_of_a_model_gives_the_means_of_every_site_and_head() -> None:
    model, asked = tiny(), problems_of_tiny()
    seen: list[tuple[int, int]] = []
    for of, names in (("a", "resid_pre"), ("b", ["resid_post", "mlp_out"]), ("answer", "z")):
        means = number_means(model, asked, names, of=of, batch_size=7, progress=lambda i, n: seen.append((i, n)))
        acts = mi.collect(model, asked.tokens, names, pos=asked.positions[of])
        whole = means_of(acts, asked.inputs[of], of)
        assert means.sites == whole.sites
        torch.testing.assert_close(means.means, whole.means)
        torch.testing.assert_close(means.total, whole.total)
    assert seen[:2] == [(7, 60), (14, 60)]
    assert seen[8] == (60, 60)
    assert means.sites[1] == "blocks.0.attn.hook_z[1]"
    half = number_means(model, asked, "resid_post", of="b", dtype=torch.float32)
    assert half.means.dtype == torch.float32
    with pytest.raises(KeyError, match=r"The prompts 'a \+ b' have no number 'c', only \['a', 'answer', 'b'\]"):
        number_means(model, asked, of="c")
    numbers = SimpleNamespace(ids=torch.arange(5), values=torch.arange(10, 15))
    torch.testing.assert_close(embedding_means(model, numbers).at("W_E"), model.W_E[:5].double().detach())


@pytest.mark.compat
def test_pair_fits_are_separate_fits_on_all_prompts() -> None:
    model, asked = tiny(), problems_of_tiny()
    for names in ("resid_post", "z"):
        fits = pair_fits(model, asked, names, periods=(3, 4), batch_size=11)
        acts = means_sites(mi.collect(model, asked.tokens, names))
        assert fits.sites == tuple(acts)
        assert fits.ranks == (9, 5, 13)
        for i, basis in enumerate(fits.bases):
            design = pair_design(asked.inputs, basis, (3, 4))
            for j, (site, x) in enumerate(acts.items()):
                slow = mi.fit(x, design)
                fast = fits.fit(site, basis)
                torch.testing.assert_close(fast.coef, slow.coef, atol=1e-8, rtol=1e-8)
                torch.testing.assert_close(fast.intercept, slow.intercept, atol=1e-8, rtol=1e-8)
                assert float(fits.r2[i, j]) == pytest.approx(slow.r2, abs=1e-10)
                spread = (x - x.mean(0)).double()
                variances = torch.linalg.svdvals(spread).square()
                share = float(variances[: fits.ranks[i]].sum() / variances.sum())
                assert float(fits.pca[i, j]) == pytest.approx(share, abs=1e-5)
                assert float(fits.r2[i, j]) <= share + 1e-5
    assert fits.pca_rows == 60
    assert fits.chance[0] == pytest.approx(9 / 59)
    assert {row["basis"] for row in fits.table()} == {"a,b", "answer", "a,b,answer"}
    assert "n 60" in repr(fits)
    assert pair_fits(model, asked, "resid_pre", of="a", periods=(3,), pca_rows=20).pca_rows == 20


def means_sites(acts: dict[str, Tensor]) -> dict[str, Tensor]:
    flat = {}
    for name, x in acts.items():
        flat |= {name: x} if x.ndim == 2 else {f"{name}[{h}]": x[:, h] for h in range(x.shape[1])}
    return flat


def test_pair_fits_that_cannot_be() -> None:
    model, asked = tiny(), problems_of_tiny(5)
    asked.inputs["a"] = torch.arange(5)
    with pytest.raises(ValueError, match="5 prompts for columns of rank 4 and a constant"):
        pair_fits(model, asked)
    for given in ({"of": "c"}, {"bases": ()}, {"pca_rows": 0}):
        with pytest.raises(ValueError, match="at least one basis and at least two rows are needed"):
            pair_fits(model, problems_of_tiny(), "resid_post", **given)
    fits = pair_fits(model, problems_of_tiny(), "resid_post", ("a",), (4,))
    with pytest.raises(KeyError, match=r"The basis 'answer' was not fitted\. Nearest names: a"):
        fits.fit(fits.sites[0], "answer")
    with pytest.raises(KeyError, match="The site 'resid' was not fitted"):
        fits.fit("resid", "a")


@pytest.mark.compat
def test_collinear_columns_share_the_slope_and_the_prediction_is_exact() -> None:
    """a + b linear is a linear + b linear: 24 of the 28 columns of helix(a, b, a + b) with the constant are independent."""
    a, b = A100[:20].repeat(20), A100[:20].repeat_interleave(20)
    inputs = {"a": a, "b": b, "answer": a + b}
    design = pair_design(inputs)
    acts = design.matrix @ draw(27, 6)
    fit = mi.fit(acts, design)
    torch.testing.assert_close(fit.predict(design), acts, atol=1e-7, rtol=0)
    assert float(fit.coef.abs().max()) < 100
    slopes = fit.coef[[design.labels.index(f"{name}:linear") for name in ("a", "b", "answer")]]
    torch.testing.assert_close(slopes[0] + slopes[1], slopes[2] * 1, atol=1e-6, rtol=0)  # the minimum-norm split


def test_helix_of_means_needs_no_prompts_twice() -> None:
    """The fit of every site is there after one pass, and prompts that share a number need not be kept."""
    model, asked = tiny(), problems_of_tiny(200)
    means = number_means(model, asked, "resid_post", of="b")
    acts = mi.collect(model, asked.tokens, "resid_post", pos=-2)
    fits = helix_fits(means, (4,))
    for site, x in acts.items():
        slow = mi.fit(x, mi.helix(asked.inputs["b"], (4,), "b"))
        torch.testing.assert_close(fits.fit(site).coef, slow.coef, atol=1e-9, rtol=1e-9)
        assert fits.fit(site).r2 == pytest.approx(slow.r2, abs=1e-10)
