"""The re-fit protocol: nested bases, each direction found with the earlier ones removed everywhere."""

import functools

import pytest
import torch

import mi_ablate as mi
from mi_ablate import Ablate, Subspace, collect, find
from models import tiny, tokens_for

FIRST, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
N = 60


@pytest.fixture(scope="module")
def prompts(model):
    return tokens_for(model, N)


@pytest.fixture(scope="module")
def labels(prompts):
    return (prompts[:, -1] + prompts[:, -2]) % 4


@pytest.mark.compat
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_each_direction_is_found_with_the_earlier_ones_removed_everywhere(
    model, prompts, labels, ablation: str
) -> None:
    found = find.refitted(model, prompts, labels, "resid_post", find.class_means, 3, ablation=ablation, batch_size=17)
    assert list(found) == [FIRST, LAST]
    clean = collect(model, prompts, "resid_post")
    for k in range(3):
        hooks = []
        for site, s in found.items():
            if k:
                hooks += Ablate(s[:k], clean[site].mean(0) if ablation == "mean" else None).at(site, pos=-1)
        acts = collect(model, prompts, "resid_post", hooks=hooks)
        for site, s in found.items():
            wanted = find.class_means(acts[site], labels, rank=1).basis[:, 0]
            assert torch.allclose(s.basis[:, k], wanted, atol=1e-8)
    fixed = find.class_means(clean[FIRST], labels)
    assert torch.allclose(found[FIRST].basis[:, 0], fixed.basis[:, 0], atol=1e-10)
    fixed = find.class_means(clean[LAST], labels)
    assert found[LAST].overlap(fixed) < 1 - 1e-3  # downstream of an edit it is not the fixed basis
    for site, s in found.items():
        assert s.rank == 3
        assert (s.source["protocol"], s.source["ablation"], s.source["site"]) == ("refitted", ablation, site)
        assert s.source["sites"] == [FIRST, LAST]
        assert s.source["method"] == "class means"


def test_at_one_site_class_means_refit_to_their_own_fixed_basis(model, prompts, labels) -> None:
    found = find.refitted(model, prompts, labels, FIRST, find.class_means, 3)[FIRST]
    fixed = find.class_means(collect(model, prompts, FIRST)[FIRST], labels, rank=3)
    assert torch.allclose((found.basis.T @ fixed.basis).abs(), torch.eye(3).double(), atol=1e-6)


def test_the_bases_go_to_a_removal_curve_and_progress_counts_directions(model, prompts, labels) -> None:
    seen = []
    found = find.refitted(
        model, prompts, labels, "resid_post", find.class_means, 2, progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(1, 2), (2, 2)]
    curve = mi.removal_curve(model, prompts, found, mi.accuracy(prompts[:, -1]), controls={})
    assert curve.ks == (0, 1, 2)


def test_other_finders_and_per_prompt_positions(model, prompts) -> None:
    binary = (prompts[:, -1] > 5).long()
    where = torch.full((N,), 6)
    one = find.refitted(model, prompts, binary, FIRST, find.difference_of_means, 1, pos=where)[FIRST]
    acts = collect(model, prompts, FIRST)[FIRST]
    assert torch.allclose(one.basis, find.difference_of_means(acts, binary).basis, atol=1e-12)
    two = find.refitted(model, prompts, binary, FIRST, functools.partial(find.logistic, C=0.1), 2)[FIRST]
    assert two.source["C"] == 0.1
    assert torch.allclose(two.basis.T @ two.basis, torch.eye(2).double(), atol=1e-12)

    def own(acts, labels) -> Subspace:
        return find.pca(acts)

    principal = find.refitted(model, prompts, binary, FIRST, own, 3, ablation="mean")[FIRST]
    assert principal.overlap(find.pca(acts, rank=3)) > 1 - 1e-9


@pytest.mark.compat
@pytest.mark.parametrize("finder", ["difference_of_means", "standardised", "class_means", "leace"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_difference_of_means_is_gone_once_removed_and_rounding_is_not_taken_for_a_direction(
    prompts, dtype, finder: str
) -> None:
    model, chosen = tiny(dtype=dtype), finder
    if finder == "standardised":
        chosen = functools.partial(find.difference_of_means, standardised=True)
    found = find.refitted(model, prompts, prompts[:, -1] > 5, LAST, chosen, 1)[LAST]
    acts = collect(model, prompts, LAST, hooks=Ablate(found).at(LAST, pos=-1))[LAST].double()
    if finder == "standardised":  # it is a reader, whose removal leaves a difference: the next one is none of rounding
        assert find.refitted(model, prompts, prompts[:, -1] > 5, LAST, chosen, 2)[LAST].rank == 2
        return
    assert float((acts[prompts[:, -1] > 5].mean(0) - acts[prompts[:, -1] <= 5].mean(0)).norm()) < 0.02
    with pytest.raises(
        ValueError, match=f"After 1 directions at {LAST} .*Ask for that rank, or use a finder that goes on"
    ):
        find.refitted(model, prompts, prompts[:, -1] > 5, LAST, chosen, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_three_classes_have_two_directions_and_half_precision_does_not_hide_a_small_second_one(dtype) -> None:
    """At the embedding, where they can be planted: the second is half a per cent of the activations' norm."""
    embedding = torch.randn(11, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.01
    embedding[:, 0], embedding[:, 1], embedding[:, 2] = 40.0, 0.0, 0.0
    embedding[torch.arange(11) % 3 == 1, 1] = 4.0
    embedding[torch.arange(11) % 3 == 2, 2] = 0.2
    model = tiny(dtype=dtype, weights={"embed.W_E": embedding})
    prompts = tokens_for(model, 400)
    labels = prompts[:, -1] % 3
    found = find.refitted(model, prompts, labels, "hook_embed", find.class_means, 2)["hook_embed"]
    assert found.rank == 2
    assert float(found.basis[2, 1].abs()) > 0.8
    with pytest.raises(ValueError, match="After 2 directions at hook_embed"):
        find.refitted(model, prompts, labels, "hook_embed", find.class_means, 3)


def test_the_advice_is_another_finder_than_the_one_that_stopped(model, prompts) -> None:
    for finder in (find.inlp, functools.partial(find.inlp, C=0.5), "inlp"):
        with pytest.raises(ValueError, match=r"After \d directions at .* Ask for that rank\.$"):
            find.refitted(model, prompts, prompts[:, -1] > 5, LAST, finder, 12)


def test_finders_go_by_name_and_what_is_none_is_refused(model, prompts) -> None:
    labels = prompts[:, -1] % 3
    named = find.refitted(model, prompts, labels, LAST, "class_means", 2)[LAST]
    assert torch.equal(named.basis, find.refitted(model, prompts, labels, LAST, find.class_means, 2)[LAST].basis)
    with pytest.raises(ValueError, match=r"finder='means' is a function finder\(acts, labels\) or one of the names"):
        find.refitted(model, prompts, labels, LAST, "means", 2)


def test_a_finder_returns_a_subspace_and_reads_one_position(unchecked, model, prompts) -> None:
    labels = prompts[:, -1] % 3
    with pytest.raises(ValueError, match="The finder returned a Leace, and a Subspace is needed"):
        find.refitted(model, prompts, labels, LAST, find.leace, 2)
    masked = find.refitted(model, prompts, labels, LAST, "class_means", 2, attention_mask=[[1] * 7] * N)[LAST]
    assert masked.overlap(find.refitted(model, prompts, labels, LAST, "class_means", 2)[LAST]) > 1 - 1e-9
    with pytest.raises(ValueError, match=r"pos=\[-1\]: one position a prompt is needed"):
        find.refitted(model, prompts, labels, LAST, find.class_means, 2, pos=[-1])


def test_directions_that_only_vary_go_on_where_the_means_are_equal(model, prompts) -> None:
    pairs = torch.arange(N) % 2 == 0
    assert find.refitted(model, prompts, pairs, LAST, find.paired_svd, 5)[LAST].rank == 5
    assert find.refitted(model, prompts, pairs, LAST, "pca", 5)[LAST].rank == 5
    with pytest.raises(ValueError, match=r"After 1[456] directions"):
        find.refitted(model, prompts, pairs, LAST, find.paired_svd, 17)


def test_a_finder_that_repeats_itself_is_refused(model, prompts) -> None:
    def same(acts, labels) -> Subspace:
        return Subspace(torch.eye(16)[:, :1])

    with pytest.raises(ValueError, match=r"After 1 directions at .* only rounding is left to find"):
        find.refitted(model, prompts, prompts[:, -1] > 5, FIRST, same, 2)


BAD = {
    "ablation": (lambda m, t: find.refitted(m, t, t[:, 0], FIRST, find.pca, 1, ablation="resample"), "ablation='resample'"),
    "rank": (lambda m, t: find.refitted(m, t, t[:, 0], FIRST, find.pca, 0), "rank=0: at least one direction a site"),
    "heads": (
        lambda m, t: find.refitted(m, t, t[:, 0] > 4, "z", find.pca, 1),
        r"blocks.0.attn.hook_z gives \[60, 2, 8\]: one vector a prompt is needed, so no heads",
    ),
    "one class": (lambda m, t: find.refitted(m, t, t[:, 0] > 99, FIRST, find.class_means, 1), "^All 60 labels are"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_says_what_to_do(model, prompts, case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(model, prompts)
