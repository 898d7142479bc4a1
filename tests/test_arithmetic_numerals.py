"""Numbers as tokens: which are single, in which form, with the published tokenizers of GPT-2 and Pythia and small ones."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate import arithmetic
from models import data_folder, tiny


def published(name: str) -> Any:
    """GPT-2's or Pythia's tokenizer, read from the folder of third-party inputs."""
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    folder = data_folder() / "tokenizers" / name
    if name == "pythia":
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    return GPT2TokenizerFast(**files, vocab_file=files["vocab"], merges_file=files["merges"])


def numbers_tokenizer(upto: int = 200, words: tuple[str, ...] = ("+", "-", "="), single: int | None = None) -> Any:
    """A tokenizer of whole words: the numbers below ``upto``, and some signs; each word is one token, split at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["[bos]", "[unk]", *words, *map(str, range(upto if single is None else single))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", behavior="removed")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [made.pre_tokenizer, pre_tokenizers.Split(pattern=_signs(words), behavior="isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="[bos]", unk_token="[unk]", pad_token="[bos]")


def _signs(words: tuple[str, ...]) -> Any:
    from tokenizers import Regex

    return Regex("[" + "".join("\\" + w for w in words) + "]")


@pytest.mark.compat
@pytest.mark.parametrize(
    ("name", "form", "contiguous", "count"),
    [
        ("gpt2", "bare", 520, 819),
        ("gpt2", "spaced", 361, 505),
        ("pythia", "bare", 530, 877),
        ("pythia", "spaced", 557, 644),
    ],
)
def test_the_published_ranges(name: str, form: str, contiguous: int, count: int) -> None:
    found = arithmetic.numerals(published(name), form)
    assert (found.contiguous, found.first_failure, len(found)) == (contiguous, contiguous + 1, count)
    first = {"gpt2": {"bare": 15, "spaced": 657}, "pythia": {"bare": 17, "spaced": 470}}[name][form]
    assert int(found.ids_of([0])) == first
    with pytest.raises(
        ValueError, match=rf"^{contiguous + 1} \(1 numbers\): no single tokens of this tokenizer, written {form}"
    ):
        found.ids_of([0, contiguous + 1])
    assert f"0 to {contiguous} are, without a gap, and {count} in all" in found.range_text
    assert repr(found) == f"Numerals({form}, {count} of 0 to 999, 0 to {contiguous} without a gap)"


@given(rows=st.lists(st.integers(0, 199), min_size=1, max_size=20))
def test_numbers_to_tokens_and_back(rows: list[int]) -> None:
    found = _WORDS
    assert found.values_of(found.ids_of(rows)).tolist() == rows
    assert found.values_of([0, 1, 2]).tolist() == [-1, -1, -1]  # a mark, the unknown word, a sign


_WORDS = arithmetic.numerals(numbers_tokenizer(), upto=300)


def test_a_word_level_tokenizer_has_one_token_for_both_forms_and_unknown_words_are_no_numbers() -> None:
    bare, spaced = (arithmetic.numerals(numbers_tokenizer(50), form) for form in ("bare", "spaced"))
    assert bare.ids.tolist() == spaced.ids.tolist()
    assert (bare.contiguous, bare.first_failure, len(bare)) == (
        49,
        50,
        50,
    )  # though 50 ... 999 are one token too: [unk]
    assert arithmetic.numerals(numbers_tokenizer(50), upto=50).first_failure is None


def test_years_are_written_with_two_digits() -> None:
    years = arithmetic.numerals(published("gpt2"), "bare", 100, digits=2)
    assert len(years) == 100
    assert published("gpt2").decode(years.ids_of([7])) == "07"
    assert int(years.ids_of([7])) != int(arithmetic.numerals(published("gpt2")).ids_of([7]))


def test_what_cannot_be_asked() -> None:
    tokenizer = numbers_tokenizer(20)
    for call, text in (
        (lambda: arithmetic.numerals(None), "is the tokenizer's to say, and there is none"),
        (lambda: arithmetic.numerals(tokenizer, "plain"), "form='plain' must be 'bare' (as in '34') or 'spaced'"),
        (lambda: arithmetic.numerals(tokenizer, upto=0), "upto=0: the numbers 0 to upto - 1 are looked at"),
        (lambda: arithmetic.numerals(tokenizer).ids_of([-1]), "-1 (1 numbers): no single tokens of this tokenizer"),
        (lambda: mi.arithmetic.nothing, "module 'mi_ablate.arithmetic' has no attribute 'nothing'"),
    ):
        with pytest.raises((ValueError, AttributeError)) as caught:
            call()
        assert text in str(caught.value)


def test_numbers_are_integers(unchecked) -> None:
    with pytest.raises(
        ValueError, match=r"^Numbers of shape \[1\] and torch.float32: one integer an entry is needed\.$"
    ):
        _WORDS.ids_of(torch.tensor([0.5]))


def test_a_tokenizer_without_numbers_has_none() -> None:
    from models import word_tokenizer

    none = arithmetic.numerals(word_tokenizer(60))
    assert (len(none), none.contiguous, none.first_failure) == (0, -1, 0)
    assert none.values_of([3]).tolist() == [-1]
    assert none.range_text == "None of 0 to 999 is."
    model = tiny(vocab=60)
    model.tokenizer = word_tokenizer(60)
    with pytest.raises(ValueError, match="Fewer than two numbers are single tokens of this tokenizer"):
        arithmetic.problems(model)
