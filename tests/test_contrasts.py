"""The shipped contrast sets: pairs of prompts, one a line, that differ in one attribute."""

import pytest

from mi_ablate import contrasts, diaries
from models import data_folder


def test_names() -> None:
    assert contrasts.names() == ["mood", "sentiment"]


def test_an_unknown_set_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"^There is no shipped contrast set 'sentiments'\. Nearest names: sentiment"):
        contrasts.load("sentiments")
    with pytest.raises(ValueError, match="There is no shipped contrast set"):
        contrasts.load("../contrasts/mood")


@pytest.mark.parametrize(("name", "count"), [("mood", 128), ("sentiment", 72)])
def test_two_lists_of_prompts(name: str, count: int) -> None:
    positive, negative = contrasts.load(name)
    assert len(positive) == len(negative) == count
    assert len({*positive, *negative}) == 2 * count, "a line is there twice"
    for line in (*positive, *negative):
        assert line == line.strip()
        assert 20 < len(line) < 400


def tokenizers():
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    folder = data_folder() / "tokenizers"
    given = {"vocab": str(folder / "gpt2" / "vocab.json"), "merges": str(folder / "gpt2" / "merges.txt")}
    old = {"vocab_file": given["vocab"], "merges_file": given["merges"]}
    yield GPT2TokenizerFast(**given, **old)
    yield PreTrainedTokenizerFast(tokenizer_file=str(folder / "pythia" / "tokenizer.json"))


def test_sentiment_has_the_same_lengths_on_both_sides() -> None:
    positive, negative = contrasts.load("sentiment")
    for tokenizer in tokenizers():
        lengths = [[len(tokenizer(line).input_ids) for line in side] for side in (positive, negative)]
        assert min(map(min, lengths)) > 9, "the real tokenizer"
        assert max(map(max, lengths)) < 32
        assert abs(sum(lengths[0]) - sum(lengths[1])) < 0.1 * len(positive)
        assert max(abs(a - b) for a, b in zip(*lengths, strict=True)) <= 3


def test_the_partners_of_sentiment_share_their_ending() -> None:
    pairs = list(zip(*contrasts.load("sentiment"), strict=True))
    endings = []
    for a, b in pairs:
        ending = a.split(". ", 1)[1]
        assert b.endswith(f". {ending}")
        same = sum(x in b.split() for x in a.split())
        assert same >= len(a.split()) / 2, (a, b)
        endings.append(ending)
    assert len(set(endings)) > 60, "the endings vary"


def test_mood_is_what_its_generator_gives() -> None:
    assert contrasts.load("mood") == diaries.prompts(128)


def test_prompts_of_the_mood_end_before_a_mood_word() -> None:
    positive, negative = contrasts.load("mood")
    for a, b in zip(positive, negative, strict=True):
        a_words, b_words = a.split(), b.split()
        assert len(a_words) == len(b_words)
        assert a_words[-1] == b_words[-1] in ("was", "were", "felt", "looked")
        changed = {word for pair in zip(a_words, b_words, strict=True) if pair[0] != pair[1] for word in pair}
        kept = {*diaries.vocabulary()} - {*diaries.GOOD_WORDS, *diaries.BAD_WORDS} - EVENT_WORDS
        assert changed
        assert not changed & kept


EVENT_WORDS = {word for sides in diaries.EVENTS.values() for side in sides for word in side} | {
    word for side in diaries.DEEDS for word in side
}
