"""Entries as a model reads them: the tokenizer, tokens, held-out entries, and prompts that end before a mood word."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mi_ablate.diaries.entries import LONGEST, Entry, entry
from mi_ablate.diaries.words import MOOD, vocabulary

END, PAD, UNKNOWN = "<|endoftext|>", "<pad>", "<unk>"
CONTEXT = 64
"""Positions of the model."""
NUMBER = {word: i for i, word in enumerate((END, PAD, UNKNOWN, *vocabulary()))}
"""The token of each word."""
_HELD_OUT = 10**9
"""Seeds of held-out entries start here; a training draws all of its entries from one stream, whose seed is below."""
_PROMPTS = 10**6
"""The number of the held-out entry that `prompts` start from."""


def held_out(count: int, good: bool | None = None, start: int = 0) -> list[Entry]:
    """Return the held-out entries ``start`` and following; the same numbers with two moods are matched pairs."""
    return [entry(random.Random(_HELD_OUT + start + i), good) for i in range(count)]


def prompts(count: int, start: int = 0) -> tuple[list[str], list[str]]:
    """Return ``count`` matched pairs of held-out prompts: those of a good mood, those of a bad one.

    Each is an entry cut before one of its mood words, in turn the first, second, ... of the entry.
    """
    return _cut(count, True, start), _cut(count, False, start)


def _cut(count: int, good: bool, start: int) -> list[str]:
    texts = []
    for i, e in enumerate(held_out(count, good, _PROMPTS + start), start):
        slots = [k for k, kind in enumerate(e.kinds) if kind in MOOD]
        texts.append(" ".join(e.words[: slots[i % len(slots)]]))
    return texts


def tokenizer() -> Any:
    """Return the word-level tokenizer of `transformers`: lower case, split at spaces and punctuation."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(NUMBER, unk_token=UNKNOWN))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"bos_token": END, "eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=CONTEXT, clean_up_tokenization_spaces=False, **ends
    )


def tokens(entries: Sequence[Entry]) -> Int[Tensor, "n pos"]:
    """Return the entries between two end-of-text tokens, padded on the right to the longest that an entry can be."""
    rows = [[NUMBER[END], *(NUMBER[word] for word in e.words), NUMBER[END]] for e in entries]
    return torch.tensor([row + [NUMBER[PAD]] * (LONGEST + 2 - len(row)) for row in rows])


def padded(texts: Sequence[str]) -> tuple[Int[Tensor, "n pos"], Int[Tensor, "n pos"]]:
    """Return the tokens of prompts after an end-of-text token, padded on the left, and their attention mask."""
    rows = [[NUMBER[END], *(NUMBER[word] for word in text.split())] for text in texts]
    longest = max(len(row) for row in rows)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return torch.tensor([[NUMBER[PAD]] * (longest - len(row)) + row for row in rows]), mask
