"""Tuning: a front that holds the plain edit or better, trials that can be run again, and a file to go on from."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Subspace, find, tune
from mi_ablate._tuning_space import STRONGEST, space_of
from mi_ablate.metrics import cross_entropy, refusal_score
from models import family, logits_with, tokens_for
from test_choosing import SCORE, behaving, planted

pytest.importorskip("optuna")

VALID = behaving(24, 1)
START = ("blocks.1.hook_resid_post", -1)


@pytest.fixture(scope="module")
def model():
    return planted(3)


@pytest.fixture(scope="module")
def found(model):
    return find.candidates(model, *behaving(40, 0), ("resid_post", "resid_pre"), pos=[-1, 0])


@pytest.fixture(scope="module")
def tuned(model, found):
    return tune(model, found, START, *VALID, SCORE, trials=10)


def test_the_first_trial_is_the_plain_edit_and_the_front_holds_nothing_worse(model, found, tuned) -> None:
    clean, plain = tuned.beside[:2]
    chosen = mi.choose(model, {START: found.subspace(*START)}, *VALID, SCORE).table()[0]
    first = tuned.trials[0]
    tokens, labels = VALID
    scores = SCORE(logits_with(model, tokens), None, torch.arange(24))
    low, high = scores[~labels].mean(), scores[labels].mean()
    after = SCORE(logits_with(model, tokens, tuned.hooks(0)), None, torch.arange(24))[labels]
    assert float(after.mean()) == pytest.approx(chosen["bypass"], abs=1e-10)
    for row in (plain, first):
        left = float((after - low).clamp(min=0).mean() / (high - low))
        assert (row["left"], row["kl"]) == pytest.approx((left, chosen["kl"]), abs=1e-10)
    assert clean["left"] == pytest.approx(1)
    assert plain["left"] < 0.1
    assert clean["kl"] == pytest.approx(0, abs=1e-12)
    assert [row["run"] for row in tuned.beside] == ["clean", "plain edit", *(f"covariance, draw {i}" for i in range(3))]
    assert tuned.front[0]["left"] <= plain["left"]
    best = tuned.best(kl_max=plain["kl"])
    assert best["left"] <= plain["left"]
    assert best["kl"] <= plain["kl"]


def test_the_front_is_what_nothing_beats(tuned) -> None:
    numbers = {row["trial"] for row in tuned.front}
    for row in tuned.trials:
        worse = any(
            o["left"] <= row["left"] and o["kl"] <= row["kl"] and (o["left"], o["kl"]) != (row["left"], row["kl"])
            for o in tuned.trials
        )
        assert worse == (row["trial"] not in numbers)
    assert [row["left"] for row in tuned.front] == sorted(row["left"] for row in tuned.front)
    assert [row["kl"] for row in tuned.front] == sorted((row["kl"] for row in tuned.front), reverse=True)


def test_the_hooks_of_a_trial_do_what_the_trial_did(model, tuned) -> None:
    tokens, labels = VALID
    for row in tuned.trials[-3:]:
        edited, clean = (logits_with(model, tokens[~labels], hooks) for hooks in (tuned.hooks(row["trial"]), ()))
        kl = mi.metrics.kl()(edited, clean, torch.arange(12)).mean()
        assert float(kl) == pytest.approx(row["kl"], abs=1e-10)
    with pytest.raises(KeyError, match="There is no finished trial 99; there are"):
        tuned.hooks(99)


def test_strengths_follow_the_kernels_of_each_component_and_the_direction_its_layer(model, found) -> None:
    space = space_of(model, found, START)
    chosen = {**space.plain, "layer": 0.25, "mlp peak": 0.0, "embed": 0.5}
    chosen |= {"attention peak": 1.2, "attention floor": 0.5, "attention position": 0.0, "attention distance": 1.0}
    hooks = dict(space.hooks(chosen))
    strengths = {name: hook.intervention.strength for name, hook in hooks.items()}
    assert strengths == pytest.approx(
        {"hook_embed": 0.5, "hook_pos_embed": 0.5, "blocks.0.hook_attn_out": 1.2, "blocks.1.hook_attn_out": 0.6}
    )
    below, above = (found.subspace(f"blocks.{i}.hook_resid_post").basis[:, 0] for i in (0, 1))
    mix = 0.75 * below + 0.25 * above
    assert torch.allclose(hooks["hook_embed"].intervention.subspace.basis[:, 0], mix / mix.norm(), atol=1e-12)
    each = dict(space.hooks({**space.plain, "scope": "each layer"}))
    for layer in range(3):
        own = found.subspace(f"blocks.{layer}.hook_resid_post").basis
        assert torch.equal(each[f"blocks.{layer}.hook_mlp_out"].intervention.subspace.basis, own)
    assert space.hooks({**chosen, "attention peak": 0.0, "embed": 0.0}) == []
    plain = dict(space.hooks(space.plain))
    assert list(plain) == list(mi.writers(model))
    assert all(isinstance(h.intervention, Ablate) and h.intervention.strength == 1 for h in plain.values())


def test_a_model_without_mlps_and_a_single_direction() -> None:
    model = family("attention only")
    tokens = tokens_for(model, 12)
    scores = SCORE(logits_with(model, tokens), None, torch.arange(12))
    labels = scores > scores.median()
    found = find.candidates(model, tokens, labels, "blocks.0.hook_resid_post")
    tuned = tune(model, found, ("blocks.0.hook_resid_post", -1), tokens, labels, SCORE, trials=2, draws=0)
    assert not any("mlp" in key or key in ("layer", "scope") for key in tuned.trials[0])
    assert len(tuned.beside) == 2


def test_it_goes_on_from_the_file_also_after_an_interruption(model, found, tmp_path: Path) -> None:
    given = (model, found, START, *VALID, SCORE)
    path, calls = tmp_path / "search.journal", []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(*given, trials=5, path=path, draws=0, progress=stop)
    assert calls == [(1, 5), (2, 5)]
    two = tune(*given, trials=2, path=path, draws=0, progress=lambda *at: calls.append(at))
    assert calls == [(1, 5), (2, 5)]
    five = tune(*given, trials=5, path=path, draws=0, progress=lambda *at: calls.append(at))
    assert calls[2:] == [(3, 5), (4, 5), (5, 5)]
    assert five.trials[:2] == two.trials
    assert len({json.dumps({k: v for k, v in row.items() if k != "trial"}) for row in five.trials}) == 5


def test_a_trial_that_was_cut_off_is_not_counted(model, found, tmp_path: Path) -> None:
    given = (model, found, START, *VALID, SCORE)
    broken = {"on": True}

    def other(hooks: mi._types.FwdHooks) -> float:
        if broken["on"]:
            raise KeyboardInterrupt
        return float(len(hooks))

    options = {"trials": 2, "path": tmp_path / "search.journal", "also": {"sites": other}, "draws": 0}
    with pytest.raises(KeyboardInterrupt):
        tune(*given, **options)
    broken["on"] = False
    tuned = tune(*given, **options)
    assert len(tuned.trials) == 2
    assert tuned.trials[0]["sites"] == tuned.beside[1]["sites"] == len(mi.writers(model))
    assert tuned.objectives == ("left", "kl", "sites")
    with pytest.raises(
        ValueError, match=r"holds another search: its prompts, objectives, clean scores differ\. Give another path"
    ):
        tune(*given[:3], *behaving(24, 5), SCORE, path=options["path"])
    with pytest.raises(ValueError, match="holds another search: its metric, objectives differ"):
        tune(*given[:5], lambda logits, clean, rows: SCORE(logits, clean, rows), path=options["path"])


def test_another_model_metric_or_mask_is_another_search(model, found, tmp_path: Path) -> None:
    path = tmp_path / "search.journal"
    directions = {key: found.subspace(*key) for key in found}
    given = {"model": model, "found": directions, "start": START, "tokens": VALID[0], "labels": VALID[1]}
    given |= {"metric": SCORE, "trials": 1, "path": path, "draws": 0}
    tune(**given)
    weaker = planted(3)
    weaker.blocks[0].attn.W_O.data.mul_(0.9)
    with pytest.raises(ValueError, match="holds another search: its clean scores differ"):
        tune(**given | {"model": weaker})
    with pytest.raises(ValueError, match="holds another search: its clean scores differ"):
        tune(**given | {"metric": refusal_score(torch.tensor([0, 5]))})
    with pytest.raises(ValueError, match="holds another search: its prompts differ"):
        tune(**given | {"attention_mask": torch.ones_like(VALID[0])})
    assert len(tune(**given | {"batch_size": 7}).trials) == 1


def test_a_metric_that_needs_no_clean_logits_gets_none(model, found) -> None:
    seen = []

    def own(logits: Tensor, clean: Tensor | None, rows: Tensor) -> Tensor:
        seen.append(clean is None)
        return SCORE(logits, clean, rows)

    own.needs_clean = False
    tune(model, found, START, *VALID, own, trials=1, draws=0)
    assert seen.count(True) == 2  # the trial and the plain edit beside it; the clean runs are compared with themselves


def test_of_two_sites_of_one_kind_in_a_block_the_one_named_is_taken(model) -> None:
    directions = {
        (f"blocks.1.{norm}.hook_normalized", -1): Subspace.random(16, 1, i) for i, norm in enumerate(("ln1", "ln2"))
    }
    space = space_of(model, directions, ("blocks.1.ln1.hook_normalized", -1))
    assert space.directions == {1: directions["blocks.1.ln1.hook_normalized", -1]}


@pytest.mark.parametrize("name", ["missing/search.journal", "", "other.txt"])
def test_a_path_that_is_no_journal_is_refused(model, found, tmp_path: Path, name: str) -> None:
    (tmp_path / "other.txt").write_text("something else\n[1]\n")
    with pytest.raises(ValueError, match="is no file that trials can be kept in: "):
        tune(model, found, START, *VALID, SCORE, trials=1, path=tmp_path / name)
    assert (tmp_path / "other.txt").read_text().startswith("something else")


def test_a_trial_that_breaks_is_passed_over(model, found) -> None:
    given = (model, found, START, *VALID, SCORE)
    values = iter([1.0, float("nan"), 2.0, 0.0, 0.0])
    tuned = tune(*given, trials=3, also={"odd": lambda hooks: next(values)}, draws=0)
    assert [row["odd"] for row in tuned.trials] == [1.0, 2.0]
    with pytest.raises(ValueError, match="All 2 trials failed: every edit made an objective NaN or infinite"):
        tune(*given, trials=2, also={"odd": lambda hooks: float("inf")}, draws=0)


def test_padding_and_metrics_of_ones_own() -> None:
    model = planted(1)
    tokens, labels = VALID
    padded, mask = torch.cat([tokens, torch.full((24, 2), 11)], 1), torch.ones(24, 7, dtype=torch.int64)
    mask[:, 5:] = 0
    found = find.candidates(model, tokens, labels, ("resid_post",))
    where = ("blocks.0.hook_resid_post", -1)

    def own(logits: Tensor, clean: Tensor, rows: Tensor) -> Tensor:
        assert labels[rows].all() or not labels[rows].any()
        return SCORE(logits, clean, rows)

    runs = [
        tune(model, found, where, padded, labels, SCORE, attention_mask=mask, trials=2, draws=1),
        tune(model, found, where, tokens, labels, own, trials=2, draws=1, batch_size=5),
    ]
    for a, b in zip(*(run.trials + run.beside for run in runs), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_what_it_shows(tuned) -> None:
    assert repr(tuned).startswith("Tuned(10 trials, ")
    assert len(repr(tuned)) < 120
    assert "plain edit" in tuned._repr_html_()
    assert tuned.table()[5]["run"] == f"trial {tuned.front[0]['trial']}"
    figure = tuned.plot()
    by_name = {trace.name: trace for trace in figure.data}
    assert len(by_name["trials"].x) == 10
    assert list(by_name["front"].y) == [row["left"] for row in tuned.front]
    assert len(by_name["covariance"].x) == 3
    assert by_name["clean"].y[0] == tuned.beside[0]["left"]
    with pytest.raises(ValueError, match=r"No trial has a KL of at most -1; the smallest is"):
        tuned.best(kl_max=-1)
    assert all(0 <= row["embed"] <= STRONGEST for row in tuned.trials)


def test_without_optuna_it_says_what_to_install(model, found, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"tune needs optuna: pip install 'mi_ablate\[tune\]'"):
        tune(model, found, START, *VALID, SCORE)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"trials": 0}, ValueError, "trials=0, draws=3: at least one trial, and 0 or more draws of the control."),
        ({"start": ("blocks.7.hook_resid_post", -1)}, KeyError, "is no candidate in a block; there are"),
        ({"metric": cross_entropy(torch.zeros(24, dtype=torch.int64))}, ValueError, "is a loss, lower where the model"),
        ({"also": {"kl": len}}, ValueError, "also names ['kl'], which a trial's row already has; give"),
        ({"labels": ~VALID[1]}, ValueError, "there is no behaviour to tune an edit for. Are the labels the right way"),
        ({"labels": torch.ones(24, dtype=torch.bool)}, ValueError, "All 24 labels are"),
        (
            {"found": {START: Subspace.random(16, 2)}},
            ValueError,
            "tune takes one direction of the residual stream a layer",
        ),
    ],
)
def test_bad_input(model, found, change: dict, error: type[Exception], text: str) -> None:
    given = {"found": found, "start": START, "tokens": VALID[0], "labels": VALID[1], "metric": SCORE} | change
    with pytest.raises(error) as caught:
        tune(model, **given)
    assert text in str(caught.value)
