"""What all finders share: one interface, an order, signs, a source, any input dtype, and the same refusals."""

import inspect
import json

import numpy as np
import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Add, Subspace, find
from mi_ablate.find import FINDERS

D = 12
NAMES = sorted(FINDERS)
SEVERAL = ("class_means", "lda", "leace", "logistic", "inlp", "pca")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


V = draw(D, seed=1) / draw(D, seed=1).norm()


def planted(n: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    positive = torch.arange(n) % 2 == 0
    return draw(n, D, seed=seed) + 3.0 * positive[:, None] * V + 0.5 * draw(D, seed=3), positive


@pytest.mark.compat
@pytest.mark.parametrize("name", NAMES)
def test_every_finder_finds_a_planted_concept_under_isotropic_noise_with_its_sign(name: str) -> None:
    x, positive = planted(5000)
    s = FINDERS[name](x, positive)
    assert isinstance(s, Subspace)
    assert float(s.basis[:, 0] @ V) > 0.99
    assert float(FINDERS[name](x, ~positive).basis[:, 0] @ V) < -0.99


@pytest.mark.parametrize("name", NAMES)
def test_noise_alone_is_not_the_planted_direction(name: str) -> None:
    x, positive = draw(2000, D), torch.arange(2000) % 2 == 0
    if name == "inlp":
        with pytest.raises(ValueError, match="which is chance"):
            find.inlp(x, positive)
    else:
        assert abs(float(FINDERS[name](x, positive).basis[:, 0] @ V)) < 0.8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_input_dtype_is_computed_in_float64(name: str, dtype: torch.dtype) -> None:
    x, positive = planted(400)
    x = x.to(dtype)
    s, wanted = FINDERS[name](x, positive), FINDERS[name](x.double(), positive)
    assert s.basis.dtype == torch.float64
    assert torch.allclose(s.basis[:, 0], wanted.basis[:, 0], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_source_is_plain_json_and_the_name_is_kept(name: str) -> None:
    x, positive = planted(200)
    s = FINDERS[name](x, positive, name="mine")
    assert s.name == "mine"
    assert json.loads(json.dumps(s.source)) == s.source
    assert "method" in s.source
    assert "n" in s.source
    assert FINDERS[name](x, positive).name


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_changed_and_results_repeat(name: str) -> None:
    x, positive = planted(200)
    before = x.clone()
    first, second = FINDERS[name](x, positive), FINDERS[name](x.requires_grad_(True), positive)
    assert torch.equal(x, before)
    assert torch.equal(first.basis, second.basis)
    assert not second.basis.requires_grad


def test_every_finder_is_public_documented_and_listed() -> None:
    for name, finder in FINDERS.items():
        public = "leace_subspace" if name == "leace" else name
        assert getattr(find, public) is finder
        assert "Return" in (finder.__doc__ or "")
        assert list(inspect.signature(finder).parameters)[:2] == ["acts", "labels"]
    assert mi.find is find
    assert "find" in mi.__all__


@pytest.mark.parametrize("name", NAMES)
def test_bad_labels_and_activations_are_refused_by_all(name: str) -> None:
    x, positive = planted(20)
    finder = FINDERS[name]
    with pytest.raises(ValueError, match="All 20 labels are"):
        finder(x, positive & False)
    with pytest.raises(ValueError, match=r"labels of shape \[19\] for 20 activations"):
        finder(x, positive[1:])
    with pytest.raises(ValueError, match=r"labels of shape \[20, 1\] for 20 activations"):
        finder(x, positive[:, None])
    with pytest.raises(ValueError, match=r"labels hold torch.float32: Booleans"):
        finder(x, positive.float())
    x[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite activations in 1 examples \(first: \[3\]\)"):
        finder(x, positive)


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_counted_in_one_form_by_all(name: str) -> None:
    x, positive = planted(200)
    assert FINDERS[name](x, positive).source["n"] == {"0": 100, "1": 100}
    assert FINDERS[name](x, positive.long() * 7 - 3).source["n"] == {"-3": 100, "4": 100}


def test_ranks_of_other_kinds_of_integers_are_taken_and_others_refused(unchecked) -> None:
    x, positive = planted(40)
    for name in sorted(set(NAMES) - {"difference_of_means"}):
        assert (
            FINDERS[name](x, positive, rank=np.int64(1)).rank
            == FINDERS[name](x, positive, rank=torch.tensor(1)).rank
            == 1
        )
        with pytest.raises(ValueError, match=r"rank=1\.0 is a whole number of directions"):
            FINDERS[name](x, positive, rank=1.0)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "difference_of_means"])
def test_ranks_that_are_not_there_are_refused_by_all(name: str) -> None:
    x, positive = planted(40)
    for rank in (0, -1, D + 1):
        with pytest.raises(ValueError, match=rf"rank {rank} was asked for"):
            FINDERS[name](x, positive, rank=rank)


@pytest.mark.parametrize("name", SEVERAL)
def test_more_than_two_classes(name: str) -> None:
    labels = torch.arange(900) % 3
    means = Subspace.random(D, 3, seed=5).basis.T * 3.5
    x = draw(900, D) + means[labels]
    if name == "pca":
        with pytest.raises(ValueError, match="pca takes two classes"):
            find.pca(x, labels)
        return
    span = Subspace.span(means[1:] - means[0])
    assert FINDERS[name](x, labels)[:2].overlap(span) > 0.96


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SEVERAL)))
def test_two_class_finders_refuse_three(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} takes two classes; the labels hold 3 \(\[0, 1, 2\]\)"):
        FINDERS[name](draw(30, D), torch.arange(30) % 3)


# From finding to doing


@pytest.mark.compat
def test_a_candidate_to_an_ablation_to_an_effect(model) -> None:
    from models import tokens_for

    prompts = tokens_for(model, 80)
    labels = prompts[:, -1] > 5
    found = find.candidates(model, prompts, labels, ("resid_pre", "resid_post"))
    best = found.table()[0]
    assert best["layer"] == 0  # the token itself
    s = found.subspace(best["site"], best["pos"])
    hooks = Ablate(s, to=found.fit(best["site"]).mean).at(best["site"], pos=-1)
    after = find.candidates(model, prompts, labels, ("resid_pre", "resid_post"), hooks=hooks)
    assert after.fit(best["site"]).r2 < 1e-20 < found.fit(best["site"]).r2
    result = mi.effect(model, prompts, hooks, mi.cross_entropy(prompts[:, -1]), controls={})
    assert float((result.edited - result.clean).abs().max()) > 1e-3


def test_leace_to_an_erasure_and_a_mean_direction_to_an_addition(model) -> None:
    from models import tokens_for

    prompts, site = tokens_for(model, 80), "blocks.0.hook_resid_post"
    labels = prompts[:, -1] > 5
    acts = mi.collect(model, prompts, site)[site]
    eraser, s = find.leace(acts, labels), find.difference_of_means(acts, labels)
    erased = mi.collect(model, prompts, site, hooks=eraser.erase().at(site, pos=-1))[site]
    assert mi.fit(erased, mi.contrast(labels)).r2 < 1e-20
    rows = torch.nonzero(~labels).flatten()
    moved = mi.collect(model, prompts[rows], site, hooks=Add(s.vector).at(site, pos=-1))[site]
    assert torch.allclose(moved.mean(0), acts[labels].mean(0), atol=1e-10)
