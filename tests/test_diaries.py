"""The diary model: its text and the probabilities of it, its training, and that the planted mood is one direction."""

import collections
import dataclasses
import math
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate import diaries
from mi_ablate.diaries import entries, planted, text, words

SEEDS = st.integers(0, 2**32)
MOOD_WORDS = {*diaries.GOOD_WORDS, *diaries.BAD_WORDS}


# --- the text ---------------------------------------------------------------------------------------------------------


@given(SEEDS)
def test_an_entry_is_of_the_vocabulary_and_fits(seed: int) -> None:
    e = diaries.entry(random.Random(seed))
    assert {*e.words} <= {*diaries.vocabulary()}
    assert len(e.words) == len(e.kinds) == len(e.logp) <= entries.LONGEST
    assert e.words.count(".") == 6
    assert all(p <= 0 for p in e.logp)
    assert [kind in diaries.MOOD or kind == "aside" for kind in e.kinds] == [word in MOOD_WORDS for word in e.words]
    assert diaries.entry(random.Random(seed)) == e


@given(SEEDS)
def test_a_seed_with_two_moods_is_a_matched_pair(seed: int) -> None:
    good, bad = (diaries.entry(random.Random(seed), mood) for mood in (True, False))
    assert (good.good, bad.good) == (True, False)
    assert (good.kinds, good.logp) == (bad.kinds, bad.logp)
    partner = {a: b for sides in words.MOOD.values() for a, b in zip(*sides, strict=True)}
    partner |= {a: b for sides in words.EVENTS.values() for a, b in zip(*sides, strict=True)}
    partner |= dict(zip(*words.DEEDS, strict=True))
    partner |= {b: a for a, b in partner.items()}
    for a, b, kind in zip(good.words, bad.words, good.kinds, strict=True):
        assert b == (partner[a] if kind in (*diaries.MOOD, "aside", "event") else a)


def test_no_word_has_two_roles_and_sides_are_of_one_length() -> None:
    every = diaries.vocabulary()
    assert len(every) == len({*every}) == 211
    sides = (*words.MOOD.values(), *words.EVENTS.values(), words.DEEDS)
    assert all(len(good) == len(bad) for good, bad in sides)
    assert len(diaries.GOOD_WORDS) == len(diaries.BAD_WORDS) == 28


@pytest.mark.parametrize("part", ["event", "we", "it", "i"])
def test_the_probabilities_of_a_sentence_sum_to_one(part: str) -> None:
    """Over all that it can say, each outcome once; p stands for the choice of the sentence."""
    found: dict[tuple[str, ...], float] = {}
    rng = random.Random(0)
    for _ in range(6000):
        w = entries._Writer(rng, rng.random() < 0.5)
        if part == "event":
            entries._event(w)
        else:
            w.good = True
            entries._SENTENCES[part](w, "anna", "park", 0.25)
        outcome, logp = tuple(w.words), sum(w.logp)
        assert found.setdefault(outcome, logp) == pytest.approx(logp)
    assert sum(map(math.exp, found.values())) == pytest.approx(1.0 if part == "event" else 0.25, rel=0.02)


def test_mood_words_agree_with_the_mood_as_often_as_stated() -> None:
    agree = collections.Counter()
    for e in diaries.held_out(1500):
        for word, kind in zip(e.words, e.kinds, strict=True):
            if word in MOOD_WORDS:
                agree[kind == "aside", (word in diaries.GOOD_WORDS) == e.good] += 1
    for aside in (False, True):
        share = agree[aside, True] / (agree[aside, True] + agree[aside, False])
        assert share == pytest.approx(diaries.FIDELITY, abs=0.02)


def test_tokens_are_the_tokenizers_own() -> None:
    tokenizer, some = diaries.tokenizer(), diaries.held_out(20)
    rows = diaries.tokens(some)
    assert rows.shape == (20, entries.LONGEST + 2)
    for e, row in zip(some, rows, strict=True):
        ids = tokenizer(f"{text.END}{e.text.capitalize()}{text.END}").input_ids
        assert row[: len(ids)].tolist() == ids
        assert (row[len(ids) :] == tokenizer.pad_token_id).all()
        assert tokenizer.decode(ids[1:-1]) == e.text
    assert tokenizer("anna likes cheese.").input_ids[1] == tokenizer.unk_token_id
    left, mask = text.padded(["anna", "on monday anna"])
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert (left == tokenizer.pad_token_id).tolist() == [[True, True, False, False], [False] * 4]


# --- training ---------------------------------------------------------------------------------------------------------

SMALL = diaries.Settings(steps=30, batch=8, layers=1, width=16, heads=2, lr=1e-2)


@pytest.fixture(scope="module")
def trained() -> diaries.Trained:
    return diaries.train(SMALL)


def test_training_learns_and_a_seed_repeats_it(trained: diaries.Trained) -> None:
    told: list[tuple[int, int, float]] = []
    short = dataclasses.replace(SMALL, steps=3)
    first, again = diaries.train(short, lambda *now: told.append(now)), diaries.train(short)
    assert [row[:2] for row in told] == [(1, 3), (2, 3), (3, 3)]
    assert first.losses == again.losses
    assert diaries.train(dataclasses.replace(short, seed=1)).losses != first.losses
    assert first.losses["all"][0] == pytest.approx(math.log(214), abs=0.6)  # it knows nothing yet
    assert trained.losses["all"][0] < 4.7
    own = -sum(sum(e.logp) for e in diaries.held_out(512)) / sum(len(e.words) for e in diaries.held_out(512))
    assert trained.losses["all"][1] == pytest.approx(own)


def test_a_saved_training_loads_and_its_card_says_what_it_is(trained: diaries.Trained, tmp_path: Path) -> None:
    folder = diaries.save(trained, tmp_path / "mine", command="the command")
    model = mi.load_model(folder)
    rows = diaries.tokens(diaries.held_out(3))
    with torch.no_grad():
        torch.testing.assert_close(model(rows), trained.model(rows).logits, rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "`the command`" in card
    assert f"| all | {trained.losses['all'][0]:.4f} |" in card
    assert f"{sum(p.numel() for p in trained.model.parameters()):,} parameters (1 layers, d_model 16, 2 heads" in card


# --- the shipped model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diary():
    return mi.load_model("diary")


@pytest.mark.compat
def test_the_shipped_model_loads_by_name(diary) -> None:
    from transformers import AutoModelForCausalLM

    assert diary.cfg.model_name == "diary"
    prompt = "On Monday Anna and I went to the market. We found a coin. The apples"
    tokens = diary.to_tokens(prompt)
    assert tokens[0, 0] == diary.tokenizer.bos_token_id
    assert diary.tokenizer.unk_token_id not in tokens
    published = AutoModelForCausalLM.from_pretrained(str(diaries.FOLDER))
    with torch.no_grad():
        logits = diary(tokens)
        torch.testing.assert_close(logits, published(tokens).logits, rtol=0, atol=1e-4)
    assert diary.tokenizer.decode(logits[0, -1].argmax()) == "were"
    assert mi.load_model("diary", dtype="float64").cfg.dtype == torch.float64


@pytest.mark.compat
def test_ablating_the_mood_at_every_writer_works_on_every_version(diary) -> None:
    good, bad = diaries.prompts(24, start=500)
    rows, mask = text.padded([*good, *bad])
    is_good = torch.arange(48) < 24
    _, direction = planted.mood_direction(diary, rows, mask, is_good)
    odds = [planted.log_odds(diary, rows, mask, hooks) for hooks in ([], mi.Ablate(direction).at(*mi.writers(diary)))]
    gaps = [float(x[is_good].mean() - x[~is_good].mean()) for x in odds]
    assert gaps[0] == pytest.approx(2 * planted.LOG_ODDS, abs=0.4)
    assert abs(gaps[1]) < 0.2 * gaps[0]


def test_a_revision_is_for_the_hub(diary) -> None:
    with pytest.raises(ValueError, match=r"revision='main' names a version on the Hub; .* is loaded locally"):
        mi.load_model("diary", revision="main")


def test_its_loss_is_the_entropy_of_its_text(diary) -> None:
    """Both ways: no kind of word below what its generator gives (within the sample), none far above."""
    for kind, (loss, own) in diaries.compare(diary, diaries.held_out(256)).items():
        assert -0.03 < loss - own < 0.05, kind


# --- the planted mood -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(diary):
    return planted.planted(diary, draws=2)


def run_named(measured, name):
    return next(row for row in measured["rows"] if row["run"] == name)


def gap(row) -> float:
    return row["good"] - row["bad"]


def test_a_probe_reads_the_mood_and_not_shuffled_labels(measured) -> None:
    assert measured["probe"] > 0.99
    assert 0.3 < measured["shuffled"] < 0.7


def test_removing_one_direction_removes_the_mood_and_nothing_else(measured) -> None:
    clean, ablated = run_named(measured, "clean"), run_named(measured, "ablated")
    assert clean["good"] == pytest.approx(planted.LOG_ODDS, abs=0.2)
    assert clean["bad"] == pytest.approx(-planted.LOG_ODDS, abs=0.2)
    assert abs(gap(ablated)) < 0.1 * gap(clean)
    change = {kind: ablated["loss"][kind] - clean["loss"][kind] for kind in clean["loss"]}
    assert change["mood"] > planted.UNINFORMED - 0.05
    for kind in ("noun", "number", "recall", "other"):
        assert change[kind] < 0.03, kind


def test_half_way_between_the_means_both_lists_are_alike(measured) -> None:
    centred = run_named(measured, "centred")
    assert abs(centred["good"]) < 0.5
    assert abs(centred["bad"]) < 0.5


def test_adding_the_direction_turns_the_mood_round(measured) -> None:
    assert run_named(measured, "added")["bad"] > 0.5 * planted.LOG_ODDS
    assert run_named(measured, "subtracted")["good"] < -0.5 * planted.LOG_ODDS


def test_chance_directions_leave_the_mood(measured) -> None:
    clean = run_named(measured, "clean")
    drawn = [row for row in measured["rows"] if row["run"].startswith("covariance")]
    assert len(drawn) == 2
    for row in drawn:
        assert row["cosine"] < 0.5
        assert gap(row) > 0.9 * gap(clean)
        assert abs(row["loss"]["mood"] - clean["loss"]["mood"]) < 0.1


def test_the_direction_is_of_the_mood_not_of_the_events_it_was_found_with(diary) -> None:
    """Found on days with one half of the events, removed on days with the other half."""
    pairs = list(zip(*diaries.prompts(160, start=2000), strict=True))
    told = [*(good for sides in words.EVENTS.values() for good in sides[0]), *words.DEEDS[0]]
    half = {word for i, word in enumerate(told) if i % 2}
    seen = [pair for pair in pairs if half & {*pair[0].split()}]
    unseen = [pair for pair in pairs if not half & {*pair[0].split()}]
    assert min(len(seen), len(unseen)) > 50
    odds = {}
    for name, some in (("seen", seen), ("unseen", unseen)):
        rows, mask = text.padded([prompt for side in zip(*some, strict=True) for prompt in side])
        labels = torch.arange(len(rows)) < len(some)
        if name == "seen":
            _, direction = planted.mood_direction(diary, rows, mask, labels)
        hooks = mi.Ablate(direction).at(*mi.writers(diary))
        for run, edit in (("clean", []), ("ablated", hooks)):
            x = planted.log_odds(diary, rows, mask, edit)
            odds[name, run] = float(x[labels].mean() - x[~labels].mean())
    assert abs(odds["unseen", "ablated"]) < 0.15 * odds["unseen", "clean"]


# --- where it is listed and packaged ----------------------------------------------------------------------------------


def test_the_files_are_small_and_packaged() -> None:
    files = [path for path in diaries.FOLDER.iterdir() if path.is_file()]
    assert {path.name for path in files} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert sum(path.stat().st_size for path in files) < 2_000_000
    patterns = re.findall(r'"([^"]+)"', re.search(r"mi_ablate = \[(.*)\]", PYPROJECT.read_text())[1])
    package = diaries.FOLDER.parents[1]
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert {*files} <= packed
    assert {*package.glob("contrasts/*/*.txt")} <= packed


PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_mi_ablate_models_lists_it(capsys, monkeypatch) -> None:
    from mi_ablate.cli import main

    monkeypatch.setattr("sys.argv", ["mi-ablate", "models"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == diaries.description()
    assert line.startswith("diary: GPT-2 of 2 layers")
