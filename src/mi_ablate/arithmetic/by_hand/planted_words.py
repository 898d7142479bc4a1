"""The tokens of a planted adder: where numbers sit in a tokenizer, and a small tokenizer for use without any.

A template is tokenised twice, with other operands each time; what differs is where the operands stand. The small tokenizer
has the numbers 0 to 520 as one token each, bare ("34") and spaced (" 34"), as GPT-2 has them bare; larger numbers fall apart
into several. It takes the words of the template and a few signs besides, so nothing has to be fetched.

Misleads where: a number counts as one token when its text becomes one id that no other number has; whether a language model
treats that token as a number is another matter.
"""

import re
from dataclasses import dataclass
from typing import Any

from mi_ablate.arithmetic.by_hand.planted_weights import N_CTX
from mi_ablate.arithmetic.problem_sets.single_tokens import FORMS, encoded, numerals

_LARGEST = 520
_NUMBER = r"(?:[1-4]\d\d|5[01]\d|520|[1-9]\d|\d)(?!\d)"
_SIGNS = (*"+-*/=.,:?x", "\n", "mod", "is")


@dataclass(frozen=True, eq=False, repr=False)
class Words:
    """What a planted model needs to know of a tokenizer: ids of numbers in both forms and where a template has them."""

    tokenizer: Any
    size: int
    bare: dict[int, int]
    """Token id of each number written without a space."""
    spaced: dict[int, int]
    offsets: dict[str, int]
    """Positions of the operands, from the end: {"a": -4, "b": -2}."""
    last: int
    """Token id of the template's last token, which asks for the answer."""
    answers: dict[int, int]
    """Token id of each number in the form that answers are written in."""


def read_words(tokenizer: Any | None, template: str) -> Words:
    """Return the numbers of a tokenizer (a small one of its own where None) and the positions of the template's operands.

    Raises:
        ValueError: a template without {a} and {b}, or one whose tokens change their number or place with the operands, or that
            ends in a number or a space, or is longer than the model's positions.

    """
    if template.count("{a}") != 1 or template.count("{b}") != 1:
        raise ValueError(f'template {template!r} must hold {{a}} and {{b}} once each, as in "{{a}}+{{b}}=".')
    tokenizer = word_level(template) if tokenizer is None else tokenizer
    found = {form: numerals(tokenizer, form) for form in FORMS}
    forms = {form: dict(zip(there.values.tolist(), there.ids.tolist())) for form, there in found.items()}
    first, second = encoded(tokenizer, [template.format(a=a, b=b) for a, b in ((12, 34), (57, 89))])
    numbers = {"a": (12, 57), "b": (34, 89)}
    places = [i - len(first) for i, pair in enumerate(zip(first, second)) if pair[0] != pair[1]]
    known = {id: number for ids in forms.values() for number, id in ids.items()}
    seen = [(known.get(first[i]), known.get(second[i])) for i in places]
    if len(first) != len(second) or sorted(seen, key=str) != sorted(numbers.values(), key=str) or -1 in places:
        raise ValueError(
            f"template {template!r} must have one token for each operand and end after them; with 12 and 34 it becomes "
            f"{[tokenizer.decode([i]) for i in first]}."
        )
    if template[-1].isspace() or len(first) > N_CTX:
        raise ValueError(
            f"template {template!r} has {len(first)} tokens: at most {N_CTX}, and no space at the end, which a tokenizer joins "
            "to the answer."
        )
    return Words(
        tokenizer=tokenizer,
        size=max(len(tokenizer), 1 + max(known)),
        bare=forms["bare"],
        spaced=forms["spaced"],
        offsets={name: places[seen.index(pair)] for name, pair in numbers.items()},
        last=first[-1],
        answers=forms[_answer_form(tokenizer, template, first)],
    )


def word_level(template: str = "{a}+{b}=") -> Any:
    """Return a tokenizer of the numbers 0 to 520 (bare and spaced), the words of a template and some signs."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pattern = rf" ?{_NUMBER}| ?\d| ?[^\W\d]+| ?[^\w\s]|\s"
    parts = re.findall(pattern, template.replace("{a}", "1").replace("{b}", "1"))
    words = ["<|endoftext|>", *map(str, range(_LARGEST + 1)), *(f" {n}" for n in range(_LARGEST + 1))]
    words += [f"{space}{sign}" for space in ("", " ") for sign in _SIGNS] + [" ", *parts]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    inner.decoder = decoders.Fuse()
    ends = {f"{kind}_token": words[0] for kind in ("bos", "eos", "unk", "pad")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **ends)


def _answer_form(tokenizer: Any, template: str, prompt: list[int]) -> str:
    """Whichever text continues the prompt's tokens: "46" after "=", " 46" after " =" or a word."""
    bare = encoded(tokenizer, [template.format(a=12, b=34) + "46"])[0]
    sign = template.rstrip()[-1:]
    spaced = len(bare) != len(prompt) + 1 or bare[:-1] != prompt or template.endswith(" " + sign) or sign.isalpha()
    return "spaced" if spaced else "bare"
