"""States of numbers that are several tokens: what is taken of their tokens, and what that puts in by itself.

    last     the state at the last token of the number          first    at the first one
    mean     the mean over its tokens

A number of several tokens has no state of its own, and the tokens repeat. Where every digit is a token, the last one is the
units digit: whatever the model makes of it, ten different vectors come round every ten numbers, and a spectrum has peaks at
10, 5, 10/3, 2.5 and 2 and nothing else. Digits that are ten random vectors, with no number in them at all, do that. The
mean over tokens halves those peaks and adds slow ones (the tens digit); it does not remove them. The first token has the
slow ones alone. (For GPT-2 and Pythia, whose numbers above 520 are two or three tokens in irregular pieces, the same holds of
pieces of the range.) So a period-10 peak of such numbers says nothing until it is compared with the same pooling of the
embeddings ("hook_embed"), which are all that the tokens give; numbers of one token (`problems`, `number_means`) have no
such trouble.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.problem_sets.single_tokens import FORMS, encoded, whole_numbers
from mi_ablate.arithmetic.representation.states import NumberMeans, NumberSums
from mi_ablate.model import split, stream
from mi_ablate.prompts import tokenized

POOLINGS = ("last", "mean", "first")


def numeral_states(
    model: HookedModel,
    values: Iterable[int],
    names: str | Sequence[str] = "resid_pre",
    *,
    pooling: str = "last",
    form: str = "bare",
    before: str = "",
    bos: bool | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NumberMeans:
    """Return one vector a number at each site, from prompts that end in the number: means for `helix_fits` and the rest.

    Args:
        model: its tokenizer writes the numbers.
        values: whole numbers from 0, of any number of tokens.
        names: sites or patterns; all of one width.
        pooling: "last", "mean" or "first" of the number's tokens (see the module).
        form: "bare" or "spaced": whether a space stands before the number.
        before: text that each prompt begins with.
        bos: whether a beginning-of-sequence token is written; None: as the model's own default has it.
        batch_size: rows a pass.
        progress: called with (numbers done, numbers in all).

    Warns:
        UserWarning: "last" of numbers of several tokens.

    Raises:
        ValueError: an unknown pooling or form, no tokenizer, no number, text before whose tokens the number changes.

    """
    listed = whole_numbers("values", values).tolist()
    if pooling not in POOLINGS or form not in FORMS:
        raise ValueError(f"pooling={pooling!r}, form={form!r}: one of {POOLINGS} and one of {FORMS}.")
    tokenizer: Any = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("The model has no tokenizer to write numbers with: load it from a folder with its files.")
    gap = " " if form == "spaced" else ""
    rows = tokenized(model, [f"{before}{gap}{v}" for v in listed], prepend_bos=bos).rows
    start = _shared(rows, tokenizer, before)
    parts = torch.tensor([len(row) - start for row in rows])
    if pooling == "last":
        _warn_of_last(listed, parts)
    numbers, sums, done = torch.tensor(listed), NumberSums(torch.tensor(listed)), 0
    for length in parts.unique().tolist():  # one length a pass: nothing is padded
        group = torch.nonzero(parts == length)[:, 0]
        tokens = torch.tensor([rows[i] for i in group.tolist()])
        for at, acts in stream(model, split(model, tokens, None, batch_size), names, pos=None):
            pooled = {name: _pooled(x[:, start:], pooling) for name, x in acts.items()}
            sums.update(pooled, numbers[group[at]])
            done += len(at)
            if progress is not None:
                progress(done, len(rows))
    return sums.result()


def _pooled(x: Tensor, pooling: str) -> Tensor:
    if pooling == "mean":
        return x.double().mean(1)
    return x[:, -1] if pooling == "last" else x[:, 0]


def _warn_of_last(values: list[int], parts: Int[Tensor, " v"]) -> None:
    several = torch.nonzero(parts > 1)[:, 0]
    if len(several):
        warnings.warn(
            f"{len(several)} of {len(values)} numbers are several tokens ({values[several[0]]} is {parts[several[0]]}), and "
            "the state at the last one has that token's periods, 10 where it is the units digit, whatever the model makes of "
            "it. Compare with the same pooling of 'hook_embed', or take numbers of one token.",
            UserWarning,
            stacklevel=3,
        )


def _shared(rows: list[list[int]], tokenizer: Any, before: str) -> int:
    """How many tokens stand before the number, the same in all rows."""
    text = encoded(tokenizer, [before])[0] if before else []
    first = [tokenizer.bos_token_id] if rows[0][:1] == [tokenizer.bos_token_id] else []
    wanted = text if text[:1] == first else [*first, *text]
    if any(row[: len(wanted)] != wanted or len(row) == len(wanted) for row in rows):
        raise ValueError(
            f"before={before!r} and the number share a token, so the number's own are not known. End it in a word, and write "
            "the space by form='spaced'."
        )
    return len(wanted)
