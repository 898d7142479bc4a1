"""Prompts from a file to tokens with a mask, and two sets of them split for finding, choosing and reporting.

A direction that is found, chosen and measured on the same prompts is measured too well, so `contrasted` deals each class
into three parts, and no prompt (nor two that the model cannot tell apart) is in two of them.

Files are UTF-8. ``.txt``: one prompt a line, taken as it stands: spaces stay, ``\\n`` is a backslash and an n. ``.jsonl``
(or ``.json`` with one array): a string, or an object with one of ``prompt``, ``text``, ``tokens`` (integers, the only
form for a model without a tokenizer) or ``messages`` (of role and content, for the tokenizer's chat template). A prompt
with line breaks needs JSON.

A beginning-of-sequence token is written once: never before a text or a chat template that starts with it. Prompts are
padded with the mask that says so, hence a tokenizer without a padding token will do. It misleads where the two sets
differ in more than the behaviour (length, topic, last word): then that is what the direction is about.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_ablate._prompt_files import Prompt, Source, Words, as_prompts, kind_of, place, read_prompts
from mi_ablate._types import HookedModel

__all__ = ["Contrast", "Part", "Prompt", "Prompts", "Words", "contrasted", "padded", "read_prompts", "tokenized"]


@dataclass(frozen=True, eq=False, repr=False)
class Prompts:
    """Tokenised prompts in one padded matrix; a slice, a list or a tensor of rows gives fewer, ``+`` joins two."""

    text: tuple[str, ...]
    """Each prompt as the tokenizer read it, a chat template filled in; tokens in words for prompts of tokens."""
    tokens: Int[Tensor, "n p"]
    attention_mask: Bool[Tensor, "n p"]
    """True at real tokens."""
    decode: Words
    """How tokens are shown."""
    padding_side: str = "left"

    @property
    def rows(self) -> list[list[int]]:
        """The real tokens of each prompt."""
        return [row[real].tolist() for row, real in zip(self.tokens, self.attention_mask)]

    def str_tokens(self, i: int) -> list[str]:
        """Return the real tokens of prompt ``i`` as strings."""
        return self.decode(self.tokens[i][self.attention_mask[i]].tolist())

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> "Prompts":
        """Return the chosen prompts, with the padding that they have here."""
        rows = torch.arange(len(self))[index].reshape(-1)
        if not len(rows):
            raise ValueError(f"None of the {len(self)} prompts is chosen.")
        text = tuple(self.text[i] for i in rows.tolist())
        return Prompts(text, self.tokens[rows], self.attention_mask[rows], self.decode, self.padding_side)

    def __add__(self, other: "Prompts") -> "Prompts":
        """Return both, padded anew, on the side of the first."""
        tokens, mask = padded([*self.rows, *other.rows], self.padding_side)
        return Prompts(self.text + other.text, tokens, mask, self.decode, self.padding_side)

    def __repr__(self) -> str:
        lengths = self.attention_mask.sum(1)
        return f"Prompts({len(self)} of {int(lengths.min())} to {int(lengths.max())} tokens)"


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """Prompts of both classes."""

    prompts: Prompts
    labels: Bool[Tensor, " n"]
    """True where the behaviour is there."""

    @property
    def positives(self) -> Prompts:
        """The prompts with the behaviour."""
        return self.prompts[self.labels]

    @property
    def negatives(self) -> Prompts:
        """The prompts without it."""
        return self.prompts[~self.labels]

    def __repr__(self) -> str:
        return f"{int(self.labels.sum())} + {int((~self.labels).sum())} prompts"


@dataclass(frozen=True, eq=False, repr=False)
class Contrast:
    """Two classes of prompts in three parts: to find directions, to choose among them, to report the chosen one."""

    find: Part
    validation: Part
    test: Part

    def __repr__(self) -> str:
        return f"Contrast(find {self.find!r}, validation {self.validation!r}, test {self.test!r})"


def tokenized(
    model: HookedModel,
    prompts: Source,
    *,
    chat: bool | None = None,
    padding_side: str = "left",
    prepend_bos: bool | None = None,
) -> Prompts:
    """Return the prompts as tokens ``[n p]`` with their mask.

    Args:
        model: its tokenizer reads text; without one, prompts are lists of tokens.
        prompts: a file for `read_prompts`, or what it returns.
        chat: True fills strings into the tokenizer's chat template as what the user says, up to where the answer
            begins. None: messages alone pass through the template.
        padding_side: "left" or "right".
        prepend_bos: write a beginning-of-sequence token where there is none yet. None: before plain text where
            ``cfg.default_prepend_bos`` says so, as ``model.to_tokens`` does; a template or tokens are complete.

    Raises:
        ValueError: a prompt of no token, longer than the context or outside the vocabulary (each named); text without a
            tokenizer; ``chat`` without a template.

    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side={padding_side!r} must be 'left' or 'right'.")
    path = prompts if isinstance(prompts, (str, Path)) else None
    given: list[Any] = list(read_prompts(prompts) if isinstance(prompts, (str, Path)) else as_prompts(list(prompts)))
    kind, tokenizer = kind_of(given[0]), cast(Any, getattr(model, "tokenizer", None))
    if kind != "tokens":
        given = _texts(tokenizer, given, kind, chat, path)
    elif chat:
        raise ValueError("chat=True is for text; these prompts are tokens already.")
    rows = given if kind == "tokens" else tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
    bos = getattr(tokenizer, "bos_token_id", None)
    if prepend_bos is None:
        plain = kind == "text" and not chat and bos is not None
        prepend_bos = plain and bool(getattr(model.cfg, "default_prepend_bos", True))
    elif prepend_bos and bos is None:
        raise ValueError("prepend_bos=True, and no tokenizer says which token that is. Write it into the prompts.")
    rows = [row if not prepend_bos or row[:1] == [bos] else [bos, *row] for row in rows]
    _check_rows(model, rows, path)
    words = Words(tokenizer)
    text = tuple(words.joined(row) for row in rows) if kind == "tokens" else tuple(given)
    return Prompts(text, *padded(rows, padding_side), words, padding_side)


def contrasted(
    model: HookedModel,
    positive: Source,
    negative: Source,
    *,
    shares: Sequence[int | float] = (0.5, 0.25, 0.25),
    seed: int = 0,
    chat: bool | None = None,
) -> Contrast:
    """Return prompts with (positive) and without a behaviour, each class dealt into three parts by a seeded shuffle.

    Args:
        model: see `tokenized`.
        positive: a file or a list of prompts.
        negative: a file or a list of prompts.
        shares: of each class, for finding, validation and test; they sum to 1.
        seed: of the shuffle.
        chat: see `tokenized`.

    Raises:
        ValueError: what `tokenized` and `read_prompts` refuse; two prompts of the same tokens, in one class or in
            both; fewer than two prompts of a class in a part.

    """
    if len(shares) != 3 or min(shares) < 0.01 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"shares={tuple(shares)}: three of at least 0.01 that sum to 1, for find, validation and test."
        )
    sides = [tokenized(model, positive, chat=chat), tokenized(model, negative, chat=chat)]
    _refuse_twins([("Positive", positive, sides[0]), ("Negative", negative, sides[1])])
    both = sides[0] + sides[1]
    dealt: list[list[Tensor]] = [[], [], []]
    generator = torch.Generator().manual_seed(seed)
    for name, n, start in (("positive", len(sides[0]), 0), ("negative", len(sides[1]), len(sides[0]))):
        order = start + torch.randperm(n, generator=generator)
        for part, rows in zip(dealt, order.split(_sizes(n, shares, name))):
            part.append(rows.sort().values)
    parts = [torch.cat(part) for part in dealt]
    return Contrast(*(Part(both[rows], rows < len(sides[0])) for rows in parts))


def padded(rows: Sequence[Sequence[int]], side: str = "left") -> tuple[Int[Tensor, "n p"], Bool[Tensor, "n p"]]:
    """Return rows of tokens as one matrix, padded with token 0, and the mask that is True at real tokens."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    column = torch.arange(longest)[None]
    mask = column >= longest - lengths[:, None] if side == "left" else column < lengths[:, None]
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    tokens[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    return tokens, mask


def _texts(tokenizer: Any, given: list[Any], kind: str, chat: bool | None, path: Any) -> list[str]:
    """Strings for the tokenizer: the prompts themselves, or filled into its chat template."""
    if tokenizer is None:
        raise ValueError(
            f"The model has no tokenizer, so prompts of {kind} cannot be read. Give tokens: lists of integers, or lines "
            '{"tokens": [1, 2, 3]} of a .jsonl file.'
        )
    if kind == "messages" and chat is False:
        raise ValueError("chat=False, and the prompts are messages, which need the chat template.")
    if (chat or kind == "messages") and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"The tokenizer has no chat template, which {'chat=True' if kind == 'text' else 'prompts of messages'} "
            "needs. Write the prompts as plain text, or set tokenizer.chat_template."
        )
    if chat or kind == "messages":
        given = [_filled(tokenizer, prompt, place(path, i)) for i, prompt in enumerate(given)]
    for i, text in enumerate(given):
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(
                f"{place(path, i)}: half of a surrogate pair, which is no text. Write the character itself."
            )
    return given


def _filled(tokenizer: Any, prompt: Any, where: str) -> str:
    """A chat up to where the model is to go on: after the template's opening of an answer, or within the last one."""
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    begun = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
    except (TemplateError, ValueError) as error:
        raise ValueError(f"{where}: the chat template refuses it ({error}).") from None


def _check_rows(model: Any, rows: list[list[int]], path: Any) -> None:
    """Refuse prompts of no token, of more than the context holds, and tokens that the model lacks."""
    n_ctx, vocab = getattr(model.cfg, "n_ctx", None), model.cfg.d_vocab
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"{place(path, i)}: the tokenizer makes no token of it.")
        if n_ctx and len(row) > n_ctx:
            raise ValueError(
                f"{place(path, i)} has {len(row)} tokens; the model has positions for {n_ctx}. Shorten it."
            )
        wrong = [token for token in row if not 0 <= token < vocab]
        if wrong:
            raise ValueError(
                f"{place(path, i)}: token {wrong[0]} is outside the vocabulary of {vocab} (0 to {vocab - 1})."
            )


def _refuse_twins(sides: list[tuple[str, Any, Prompts]]) -> None:
    """Refuse two prompts of the same tokens: the model cannot tell them apart, and they might land in two parts."""
    first: dict[tuple[int, ...], str] = {}
    for name, source, prompts in sides:
        for i, row in enumerate(prompts.rows):
            here = place(source, i) if isinstance(source, (str, Path)) else f"{name} prompt {i + 1}"
            if tuple(row) in first:
                raise ValueError(
                    f"{here} and {first[tuple(row)]} are the same {len(row)} tokens, one prompt to the model. Keep one."
                )
            first[tuple(row)] = here


def _sizes(n: int, shares: Sequence[int | float], name: str) -> list[int]:
    """How many of n prompts go into each part; refused where that is fewer than two."""

    def sizes(n: int) -> list[int]:
        ends = [0, round(n * shares[0]), round(n * (shares[0] + shares[1])), n]
        return [b - a for a, b in itertools.pairwise(ends)]

    if min(sizes(n)) < 2:
        needed = next(m for m in itertools.count(6) if min(sizes(m)) >= 2)
        raise ValueError(
            f"There are {n} {name} prompts; shares {tuple(shares)} with at least two in each part need {needed}."
        )
    return sizes(n)
