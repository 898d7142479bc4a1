"""The pipeline behind `mi-ablate ablate`: answers, scores, choice, effects on prompts held back, page, saved edit."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Subspace, attached, contrasts, diaries, effect, kl, writers
from mi_ablate.abliteration import Answers, abliterate, find_answers, given_answers, tuned
from mi_ablate.abliteration.answers import last_logits
from mi_ablate.abliteration.page import flat, summary, write
from mi_ablate.abliteration.scores import scored
from mi_ablate.moments import Moments
from mi_ablate.prompts import Contrast, contrasted, tokenized
from models import tiny

VOCAB = 40


@pytest.fixture(scope="module")
def model():
    return tiny(vocab=VOCAB, n_ctx=12)


def sides(n: int = 40, last: tuple[int, int] = (3, 4), seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of 4 to 6 random tokens; the last one tells the kind, so a random model tells them apart."""
    generator = torch.Generator().manual_seed(seed)

    def draw(end: int) -> list[list[int]]:
        lengths = torch.randint(4, 7, (n,), generator=generator).tolist()
        return [[*torch.randint(5, VOCAB, (m - 1,), generator=generator).tolist(), end] for m in lengths]

    return draw(last[0]), draw(last[1])


@pytest.fixture(scope="module")
def contrast(model) -> Contrast:
    return contrasted(model, *sides())


@pytest.fixture(scope="module")
def found(model, contrast):
    return abliterate(model, contrast, ks=(1, 2), draws=3, new_tokens=3)


@pytest.mark.compat
def test_answers_are_the_tokens_whose_mean_probability_differs_most(model, contrast) -> None:
    part = contrast.find
    answers = find_answers(model, part.prompts, part.labels, count=3)
    p = torch.stack([model(torch.tensor([row]))[0, -1].softmax(-1) for row in part.prompts.rows]).double().detach()
    difference = p[part.labels].mean(0) - p[~part.labels].mean(0)
    assert list(answers.more) == difference.argsort(descending=True)[:3].tolist()
    assert list(answers.less) == difference.argsort()[:3].tolist()
    first = answers.more[0]
    assert answers.shares[first] == pytest.approx(
        (float(p[part.labels].mean(0)[first]), float(p[~part.labels].mean(0)[first]))
    )
    small = find_answers(model, part.prompts, part.labels, count=3, batch_size=7)
    assert (small.more, small.less) == (answers.more, answers.less)
    assert len(repr(answers)) < 120


def test_answers_are_fewer_where_only_a_few_tokens_differ(model, contrast) -> None:
    part = contrast.find
    every = find_answers(model, part.prompts, part.labels, count=VOCAB)
    assert not set(every.more) & set(every.less)
    twice = part.prompts[torch.zeros(4, dtype=torch.int64)]
    with pytest.raises(ValueError, match="next-token probabilities are the same after all prompts"):
        find_answers(model, twice, torch.tensor([True, False, True, False]))


def test_given_answers(model) -> None:
    answers = given_answers(model, [3, "7"], [5])
    assert (answers.more, answers.less, answers.shares) == ((3, 7), (5,), None)
    logits = torch.randn(2, 1, VOCAB, dtype=torch.float64)
    wanted = logits[:, 0, [3, 7]].logsumexp(-1) - logits[:, 0, 5]
    assert torch.allclose(answers.metric(logits, None, torch.arange(2)), wanted)
    alone = given_answers(model, [3])
    inside = logits[:, 0].softmax(-1)[:, 3]
    assert torch.allclose(alone.metric(logits, None, torch.arange(2)), (inside / (1 - inside)).log())
    for given, text in (
        (([VOCAB],), "Answer 40 is no token"),
        ((["good"],), "the model has no tokenizer; give token ids"),
        (([],), "at least one answer that the behaviour"),
        (([3], [3]), "is among the answers of both kinds"),
    ):
        with pytest.raises(ValueError, match=text):
            given_answers(model, *given)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_logits_are_those_of_the_last_real_token(model, side) -> None:
    prompts = tokenized(model, sides(3)[0], padding_side=side)
    found = last_logits(model(prompts.tokens, attention_mask=prompts.attention_mask.long()), prompts.attention_mask)
    for row, logits in zip(prompts.rows, found):
        assert torch.allclose(model(torch.tensor([row]))[0, -1], logits, atol=1e-10)


@pytest.mark.compat
def test_scores_are_those_of_effect(model, contrast) -> None:
    prompts = contrast.test.prompts
    hooks = Ablate(Subspace.random(16, 1, 0)).at(*writers(model))
    metric = mi.refusal_score(torch.tensor([1, 2]))
    ours = scored(model, prompts, {"edited": hooks}, {"preference": metric, "kl": kl()}, batch_size=3)
    for name, of in (("preference", metric), ("kl", kl())):
        wanted = effect(model, prompts.tokens, hooks, of, controls={}, attention_mask=prompts.attention_mask)
        assert torch.allclose(ours[name]["clean"], wanted.clean, atol=1e-10)
        assert torch.allclose(ours[name]["edited"], wanted.edited, atol=1e-10)


@pytest.mark.compat
def test_what_is_reported_is_measured_on_prompts_that_took_no_part(model, contrast, found) -> None:
    plus = contrast.test.positives
    best = found.choice.best
    x = mi.collect(
        model,
        contrast.find.prompts.tokens,
        best.site,
        pos=best.pos,
        attention_mask=contrast.find.prompts.attention_mask,
    )[best.site].double()
    r = x[contrast.find.labels].mean(0) - x[~contrast.find.labels].mean(0)
    r = r / r.norm()
    naive = []
    for row in plus.rows:
        with attached(model, [(name, lambda y, hook: y - (y @ r)[..., None] * r) for name in writers(model)]):
            naive.append(model(torch.tensor([row]))[:, -1:])
    wanted = found.answers.metric(torch.cat(naive), None, torch.arange(len(naive)))
    assert torch.allclose(found.effects["positive", "preference"].edited, wanted, atol=1e-9)
    assert len(wanted) == 10
    assert found.prompts == {
        "find": {"positive": 20, "negative": 20},
        "validation": {"positive": 10, "negative": 10},
        "test": {"positive": 10, "negative": 10},
    }


def test_the_gap_and_its_share(found) -> None:
    plus, minus = (found.effects[kind, "preference"].clean.mean() for kind in ("positive", "negative"))
    mean, low, high = found.gap
    assert mean == pytest.approx(float(plus - minus))
    assert low < mean < high
    assert found.shown
    edited = found.effects["positive", "preference"].edited.mean()
    assert found.removed() == pytest.approx(float((plus - edited) / (plus - minus)))
    assert set(found.effects["positive", "preference"].controls) == {"within", "covariance", "pca"}
    after = (
        found.effects["positive", "preference"].edited.mean() - found.effects["negative", "preference"].edited.mean()
    )
    assert found.left() == pytest.approx(float(after / (plus - minus)))
    assert found.effects["positive", "preference"].controls["covariance"].shape == (3, 10)
    assert found.effects["negative", "kl"].floor < 1e-12
    assert found.effects["negative", "kl"].clean.abs().max() < 1e-12
    assert ("negative", "preference added") in found.effects
    assert float(found.effects["negative", "loss"].clean.mean()) > 0


def test_the_first_direction_of_the_curve_is_the_chosen_one(found) -> None:
    assert found.directions.overlap(found.choice.subspace) > 0
    assert torch.allclose(found.directions.basis[:, 0].cpu(), found.choice.subspace.basis[:, 0].cpu(), atol=1e-10)
    assert found.curve.ks == (0, 1, 2)
    preference = found.effects["positive", "preference"]
    assert float(found.curve.values[0]) == pytest.approx(float(preference.clean.mean()))
    assert float(found.curve.values[1]) == pytest.approx(float(preference.edited.mean()))


def test_where_both_kinds_are_one_the_result_says_that_there_is_nothing(model) -> None:
    plus, minus = sides(40, last=(3, 3))
    nothing = abliterate(model, contrasted(model, plus, minus), ks=(), draws=1, new_tokens=0)
    assert not nothing.shown
    assert (nothing.removed(), nothing.left()) == (None, None)
    assert "nothing to remove" in repr(nothing)
    assert "There is no behaviour to remove" in summary(nothing)
    assert any("there is no behaviour to remove" in warning for warning in nothing.warnings)
    assert nothing.curve is None
    assert nothing.generations == []


def test_progress_ends_where_it_said(model, contrast) -> None:
    seen: list[tuple[str, int, int]] = []
    abliterate(model, contrast, ks=(1,), draws=2, new_tokens=0, progress=lambda *row: seen.append(row))
    done = [row[1] for row in seen]
    assert done == sorted(done)
    assert seen[-1][1] == pytest.approx(seen[-1][2], rel=0.1)
    stages = list(dict.fromkeys(row[0] for row in seen))
    assert stages == ["answers", "candidates", "choice", "directions", "effects", "curve"]


def test_json_page_and_saved_edit(model, contrast, found, tmp_path) -> None:
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["candidates"] == found.choice.tried
    assert plain["chosen"]["site"] == found.choice.best.site
    assert not any(isinstance(v, float) and math.isnan(v) for row in plain["effects"] for v in row.values())
    page = write(found, tmp_path / "ablate.html", "mi-ablate ablate x").read_text()
    for heading in ("In short", "Which direction", "What removing it does", "How many directions", "Limits"):
        assert heading in page
    assert len({len(row) for row in flat(found.table())}) == 1
    hooks = mi.load(found.save(tmp_path / "edit.safetensors"), model)
    tokens = contrast.test.prompts.tokens
    with attached(model, hooks):
        loaded = model(tokens)
    with attached(model, found.hooks):
        assert torch.equal(model(tokens), loaded)
    assert mi.verify_baked(model, hooks, tokens) < 1e-12
    claim = mi.read_card(tmp_path / "edit.safetensors")["claim"]
    assert {row["run"]: row["mean"] for row in claim["rows"]}["edited"] == pytest.approx(
        float(found.effects["positive", "preference"].edited.mean())
    )
    assert "kl" in claim["collateral"]


def test_an_answer_set_is_a_value(found) -> None:
    assert isinstance(found.answers, Answers)
    assert {row["set"] for row in found.answers.table()} == {"T+", "T-"}


def test_nan_logits_are_refused(model, contrast) -> None:
    def broken(x: Tensor, hook) -> Tensor:
        return x * float("nan")

    with (
        attached(model, [("hook_embed", broken)]),
        pytest.raises(ValueError, match="logits are NaN or infinite on these"),
    ):
        find_answers(model, contrast.find.prompts, contrast.find.labels)


def test_the_control_within_the_kinds_is_blind_to_the_contrast(model, contrast, found) -> None:
    """Its directions are drawn about the mean of each kind, so on average they hold less of the contrast than others."""
    best, find = found.choice.best, contrast.find
    options = {"pos": best.pos, "attention_mask": find.prompts.attention_mask}
    x = mi.collect(model, find.prompts.tokens, best.site, **options)[best.site].double()
    within, every = Moments(), Moments().update(x)
    for kind in (find.labels, ~find.labels):
        within.update(x[kind] - x[kind].mean(0))
    assert within.share(found.choice.subspace) < every.share(found.choice.subspace)


def with_scores(found, plus: list[float], minus: list[float]):
    """The same result, had the clean scores of the test prompts been these."""
    effects = dict(found.effects)
    for kind, scores in (("positive", plus), ("negative", minus)):
        clean = torch.tensor(scores, dtype=torch.float64)
        drawn = {name: clean[None] for name in effects[kind, "preference"].controls}
        effects[kind, "preference"] = replace(effects[kind, "preference"], clean=clean, edited=clean, controls=drawn)
    return replace(found, effects=effects)


def test_the_interval_of_the_gap_is_as_wide_as_few_prompts_make_it(found) -> None:
    for plus, minus in (([1.0, 2.0], [0.0, 0.5]), ([1.0, 1.5, 4.0, 2.0, 3.0], [0.2, 0.1]), ([3.0, 3.1], [0.0, 0.1])):
        few = with_scores(found, plus, minus)
        wanted = stats.ttest_ind(plus, minus, equal_var=False).confidence_interval(0.95)
        assert few.gap[1:] == pytest.approx((wanted.low, wanted.high))
        assert any("There are only 2 test prompts of a kind" in warning for warning in few.warnings)
        assert few.shown == (wanted.low > 0)
    assert not with_scores(found, [1.0, 2.0], [0.0, 0.5]).shown  # 1 of 6 orders of four numbers that say nothing
    assert with_scores(found, [2.0, 2.0], [1.0, 1.0]).gap == (1.0, 1.0, 1.0)
    assert not any("test prompts of a kind" in warning for warning in found.warnings)


def test_kinds_the_other_way_round_are_not_called_alike(found) -> None:
    plus, minus = (found.effects[kind, "preference"].clean.tolist() for kind in ("positive", "negative"))
    turned = with_scores(found, minus, plus)
    assert turned.gap[2] < 0
    assert not turned.shown
    assert (turned.removed(), turned.left()) == (None, None)
    assert "swap them and run again" in summary(turned)
    assert "scores positive test prompts below negative ones" in turned.warnings[0]
    assert "no behaviour" not in summary(turned) + turned.warnings[0]


def test_a_control_that_would_be_rounding_is_left_out_and_said(model, found) -> None:
    """At the first site only the last token is seen: within a kind there is no variance to draw from."""
    plus, minus = ([row for row in side if len(row) == 5][:16] for side in sides(80))
    alike = abliterate(
        model, contrasted(model, plus, minus), names=["blocks.0.hook_resid_pre"], ks=(1,), draws=2, new_tokens=0
    )
    for effect_of in alike.effects.values():
        assert "within" not in effect_of.controls
        assert "covariance" in effect_of.controls
    assert any("no control blind to the contrast can be drawn" in warning for warning in alike.warnings)
    assert not any("blind to the contrast" in warning for warning in found.warnings)


def test_wrong_settings_are_refused_before_the_model_runs(model, contrast) -> None:
    shortest = min(map(len, contrast.find.prompts.rows + contrast.validation.prompts.rows))
    for settings, text in (
        ({"draws": 0}, "draws=0: it has to be 1 or more"),
        ({"new_tokens": -1}, "new_tokens=-1: it has to be 0 or more"),
        ({"limit": 0}, "limit=0: it has to be 1 or more"),
        ({"last": 0}, "last=0: the shortest prompt has"),
        ({"last": shortest + 1}, f"the shortest prompt has {shortest} tokens, so 1 to {shortest} of the last ones"),
        ({"by": "luck"}, "by='luck'"),
        ({"kl_max": 0}, "kl_max=0"),
    ):
        with pytest.raises(ValueError, match=text):
            abliterate(model, contrast, progress=lambda *row: pytest.fail("it ran"), **settings)


def test_the_kl_is_shown_beside_its_floor_and_the_preference_as_it_is_taken(model, found) -> None:
    floors = {(row["prompts"], row["measure"]): row.get("rounding") for row in found.to_json()["effects"]}
    assert {key for key, floor in floors.items() if floor is not None} == {("positive", "kl"), ("negative", "kl")}
    assert floors["negative", "kl"] == found.effects["negative", "kl"].floor
    assert given_answers(model, [3]).formula == "log p(T+) - log (1 - p(T+))"
    assert found.card.claim["metric"].startswith("log p(T+) - log p(T-) on 10 positive")


@pytest.mark.compat
def test_the_mood_of_the_shipped_model_is_found_and_removed() -> None:
    """Planted: log-odds of +-log 9 by the mood, which is told early. Controls as large, within a mood, leave it."""
    diary = mi.load_model("diary")
    plus, minus = contrasts.load("mood")
    mood = abliterate(diary, contrasted(diary, plus[:80], minus[:80]), ks=(), draws=3, new_tokens=0)
    assert mood.gap[0] == pytest.approx(2 * math.log(9), abs=0.4)
    words = {mood.answers.text[t] for t in mood.answers.more}
    assert words <= set(diaries.GOOD_WORDS)
    assert mood.removed() > 0.8  # where zero along the direction lies between the moods is the training's chance
    assert mood.left() < 0.1
    assert mood.left("within") > 0.5
    assert float(mood.effects["negative", "kl"].edited.mean()) < 0.05
    assert mood.effects["negative", "preference added"].edited.mean() > 1


def test_tuning_goes_on_from_a_result_and_is_measured_on_prompts_that_it_has_not_seen(
    model, contrast, found, tmp_path
) -> None:
    pytest.importorskip("optuna", reason="needs the extra tune")
    loose = replace(found, settings={**found.settings, "kl_max": None})  # random weights: every edit moves the others
    better = tuned(model, contrast, loose, trials=4, path=tmp_path / "trials.journal")
    row = next(row for row in better.search.trials if row["trial"] == better.kept)
    assert row["left"] == min(trial["left"] for trial in better.search.trials)
    plus = contrast.test.positives
    alone = effect(
        model,
        plus.tokens,
        better.search.hooks(better.kept),
        found.answers.metric,
        controls={},
        attention_mask=plus.attention_mask,
    )
    assert torch.allclose(better.effects["positive", "preference"].edited, alone.edited, atol=1e-9)
    assert (
        better.effects["positive", "preference"].controls.keys()
        == found.effects["positive", "preference"].controls.keys()
    )
    again = tuned(model, contrast, loose, trials=4, path=tmp_path / "trials.journal")
    assert again.search.trials == better.search.trials, "the file held them all"
    assert json.loads(json.dumps(better.to_json()))["tuning"]["kept"] == better.kept
    assert f"trial {better.kept} of 4" in write(better, tmp_path / "ablate.html", "x").read_text()
    assert f"trial {better.kept} of 4" in better.card.description
    assert found.search is None
    with pytest.raises(ValueError, match="No trial has a KL of at most"):
        tuned(model, contrast, replace(found, settings={**found.settings, "kl_max": 1e-12}), trials=1)
