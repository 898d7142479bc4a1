"""From a finder to an operation, end to end, on a model whose concept was planted: found, removed, proven, kept, explained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import find
from models import tiny, tokens_for

D, VOCAB, YES, NO = 16, 11, 0, 1
LAST = "blocks.1.hook_resid_post"
POSITIVE = torch.arange(VOCAB) % 2 == 0
"""Tokens that carry the concept."""


def planted() -> tuple[Any, Tensor]:
    """A random model whose even tokens write v, and whose readout answers YES or NO by the coordinate along v."""
    model = tiny(n_ctx=12, vocab=VOCAB, norm="LN")
    v = torch.randn(D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    v = (v - v.mean()) / (v - v.mean()).norm()
    with torch.no_grad():
        sign = torch.where(POSITIVE, 1.0, -1.0).double()
        model.embed.W_E.copy_(model.embed.W_E.double() + 6 * sign[:, None] * v)
        readout = model.unembed.W_U.double()
        readout[:, YES], readout[:, NO] = 2 * v, -2 * v
        model.unembed.W_U.copy_(readout)
    return model, v


@pytest.fixture(scope="module")
def toy() -> tuple[Any, Tensor, Tensor, Tensor, Any]:
    model, v = planted()
    tokens = tokens_for(model, n=240)
    concept = POSITIVE[tokens[:, -1]]
    right, wrong = torch.where(concept, YES, NO), torch.where(concept, NO, YES)
    return model, v, tokens, concept, mi.logit_diff(right, wrong)


@pytest.mark.compat
def test_from_candidates_to_weights_to_a_file_to_its_explanation(toy, tmp_path: Path) -> None:
    model, v, tokens, concept, metric = toy
    found = find.candidates(model, tokens[:120], concept[:120], ["embed", "resid_post"])
    best = found.table()[0]
    direction = found.subspace(best["site"], best["pos"])
    assert abs(float(direction.basis[:, 0] @ v)) > 0.9

    edit = mi.Ablate(direction)
    test = slice(120, 240)
    metric = mi.logit_diff(torch.where(concept[test], YES, NO), torch.where(concept[test], NO, YES))
    effect = mi.effect(model, tokens[test], edit.at(*mi.writers(model)), metric, draws=3)
    clean, edited = float(effect.clean.mean()), float(effect.edited.mean())
    assert clean > 1
    assert abs(edited) < 0.1 * clean, "the behaviour is gone on prompts that the direction was not found on"
    assert float(effect.controls["covariance"].mean()) > edited + 0.2 * clean, "and not because something large went"

    assert mi.verify_baked(model, edit, tokens) < 1e-12
    path = mi.save(tmp_path / "d.safetensors", edit.at(*mi.writers(model)), mi.Card.of(model, "planted"))
    again = mi.effect(model, tokens[test], mi.load(path, model), metric, controls={})
    assert torch.equal(again.edited, effect.edited)
    [one] = mi.explain(mi.load(path, model), model).directions
    assert (one.promotes[0][0], one.suppresses[0][0]) == (str(YES), str(NO)), "positive minus negative, in tokens"


def test_from_leace_to_a_probe_at_chance_to_affine_weights(toy) -> None:
    from sklearn.linear_model import LogisticRegression

    model, _, tokens, concept, _ = toy
    acts = mi.collect(model, tokens, LAST)[LAST]
    erase = find.leace(acts, concept).erase()
    probe = LogisticRegression(max_iter=1000)
    with mi.attached(model, erase.at(LAST, pos=-1)):
        after = mi.collect(model, tokens, LAST)[LAST]
    share = float(max(concept.double().mean(), 1 - concept.double().mean()))
    assert probe.fit(acts, concept).score(acts, concept) > 0.98
    assert probe.fit(after, concept).score(after, concept) <= share + 0.01, "nothing linear is left to read"

    site = "blocks.1.hook_mlp_out"
    outs = mi.collect(model, tokens, site)[site]
    edit = find.leace(outs, concept).erase().at(site)
    assert mi.verify_baked(model, edit, tokens) < 1e-12, "an affine edit of a writer is weights and a bias"


def test_from_class_means_to_removal_curves_fixed_and_refitted(toy) -> None:
    model, _, tokens, _, _ = toy
    classes = tokens[:, -1]
    answers = model(tokens)[:, -1].argmax(-1)
    train, test = slice(0, 160), slice(160, 240)
    acts = mi.collect(model, tokens[train], LAST)[LAST]
    fixed = find.class_means(acts, classes[train], rank=5)
    again = find.refitted(model, tokens[train], classes[train], LAST, find.class_means, 5)[LAST]
    assert fixed[:1].overlap(again[:1]) == pytest.approx(1, abs=1e-6), (
        "the first direction has nothing removed before it"
    )
    metric = mi.accuracy(answers[test])
    for basis in (fixed, again):
        curve = mi.removal_curve(model, tokens[test], basis, metric, at=LAST, draws=2)
        assert curve.clean == 1
        assert float(curve.values[-1]) < 0.5
        assert set(curve.controls) == {"covariance", "pca"}
        killed = curve.k_kill(0.5)
        assert killed is not None
        assert not killed.censored


def test_from_a_probe_to_reflection_changes_the_answer_and_partial_strength_does_not(toy) -> None:
    model, _, tokens, concept, metric = toy
    acts = mi.collect(model, tokens, LAST)[LAST]
    direction = find.difference_of_means(acts, concept)
    middle = acts.mean(0)
    flipped = mi.effect(model, tokens, mi.Ablate(direction, to=middle, strength=2).at(LAST, pos=-1), metric, draws=2)
    half = mi.effect(model, tokens, mi.Ablate(direction, to=middle, strength=0.5).at(LAST, pos=-1), metric, draws=2)
    assert float(flipped.edited.mean()) < 0 < float(half.edited.mean())
    yes, no = (torch.full((int(concept.sum()),), token) for token in (YES, NO))
    added = mi.Add(-direction.vector).at(LAST, pos=-1)
    moved = mi.effect(model, tokens[concept], added, mi.logit_diff(yes, no), draws=2)
    assert float(moved.edited.mean()) < 0 < float(moved.clean.mean()), "one class mean moves onto the other"
