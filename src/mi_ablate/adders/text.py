"""Addition as text: the tokenizer, the 10,000 problems as tokens, and which of them a training never sees."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

END, UNKNOWN = "<|endoftext|>", "<unk>"
OPERANDS, ANSWERS = 100, 199
"""Operands are 0 .. 99, answers 0 .. 198."""
CONTEXT = 8
"""Positions of the model; a prompt takes the first five."""
NUMBER = {word: i for i, word in enumerate((END, UNKNOWN, "+", "=", *map(str, range(ANSWERS))))}
"""The token of each word; that of the number n is `NUMBER["0"]` + n."""


def tokenizer() -> Any:
    """Return the tokenizer of `transformers`: the longest number first, so "199", which is no word, is "19" and "9"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(NUMBER, unk_token=UNKNOWN, continuing_subword_prefix=""))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.Fuse()
    ends = {"bos_token": END, "eos_token": END, "pad_token": END, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=CONTEXT, clean_up_tokenization_spaces=False, **ends
    )


def tokens() -> Int[Tensor, "problems 5"]:
    """Return the prompts ``<|endoftext|> a + b =`` of all a and b, row 100 a + b."""
    a, b = operands()
    zero, n = NUMBER["0"], len(a)
    columns = (torch.full((n,), NUMBER[END]), a + zero, torch.full((n,), NUMBER["+"]), b + zero)
    return torch.stack((*columns, torch.full((n,), NUMBER["="])), 1)


def answers() -> Int[Tensor, " problems"]:
    """Return the token of a + b for every row of `tokens`."""
    a, b = operands()
    return a + b + NUMBER["0"]


def operands() -> tuple[Int[Tensor, " problems"], Int[Tensor, " problems"]]:
    """Return a and b of every row of `tokens`."""
    a, b = torch.cartesian_prod(torch.arange(OPERANDS), torch.arange(OPERANDS)).T
    return a, b


def held_out(share: float, seed: int) -> Bool[Tensor, " problems"]:
    """Return which rows of `tokens` a training does not see: about ``share`` of them, drawn at random.

    Both orders of a pair are on one side, so that a + b says nothing about b + a. Every number stays in training as an
    operand and as an answer: the only pair of an answer (0 + 0, 0 + 1, 98 + 99, 99 + 99), or its last one, is not held out.
    """
    first, second = torch.triu_indices(OPERANDS, OPERANDS)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed))
    left = torch.bincount(first + second)
    rows = torch.zeros(OPERANDS, OPERANDS, dtype=torch.bool)
    wanted = round(share * rows.numel())
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if wanted <= 0:
            break
        if left[a + b] > 1:
            left[a + b] -= 1
            rows[a, b] = rows[b, a] = True
            wanted -= 1 + (a != b)
    return rows.flatten()
