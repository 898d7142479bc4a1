"""What a user typed, as tokens, layers and heads: a prompt of words or ids, "0,3-5", "0.1,2.3"."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_ablate._types import HookedModel, nearest
from mi_ablate.loading import load_model, precision_of
from mi_ablate.model import check_tokens
from mi_ablate.prompts import tokenized
from mi_ablate.toys import checkpoints, tasks
from mi_ablate.toys.transformer import usable_device

OWN = 512
"""Of a toy's own prompts, a random sample of so many is what the table of heads is measured over."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A model and a prompt, and the prompts that heads are measured over."""

    name: str
    """Of the model, as it was typed."""
    prompt: str
    model: HookedModel
    tokens: Int[Tensor, " p"]
    strings: list[str]
    answer: Callable[[int], str]
    """An output of the model as text."""
    prompts: Int[Tensor, "n p2"]
    mask: Bool[Tensor, "n p2"] | None
    over: str
    """What ``prompts`` are, in words."""


def asked(
    name: str, prompt: str, prompts: str | Path | None = None, *, dtype: str | None = None, device: str | None = None
) -> Asked:
    """Return the model and the prompt that a user typed.

    Args:
        name: a toy, or what `load_model` takes.
        prompt: of a toy, words ("5 + 9 =") or ids with commas ("5,97,9,98"); text for a tokenizer; ids without one.
        prompts: a file of prompts that heads are measured over; a toy has its own.
        dtype: of the weights.
        device: of the model.

    Raises:
        ValueError: an empty prompt, a word that the toy does not know, a prompt that is too long, text without a
            tokenizer, text that is not UTF-8.

    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError("The prompt holds bytes that are not UTF-8; save it in a UTF-8 terminal or script.") from None
    if not prompt.strip():
        raise ValueError("The prompt is empty; for example 'The cat sat on the', or '5 + 9 =' for a toy.")
    if name in checkpoints.names() or Path(name).expanduser().is_file():
        if prompts is not None:
            raise ValueError(f"{name} is a toy, and its own prompts are used: leave out --prompts.")
        return _of_toy(name, prompt, dtype, device)
    model: Any = load_model(name, dtype=dtype, device=device)
    given: Any = prompt if getattr(model, "tokenizer", None) is not None else _ids(prompt)
    one = tokenized(model, [given], padding_side="right")
    strings = one.str_tokens(0)
    if prompts is None:
        return Asked(name, prompt, model, one.tokens[0], strings, _with(one.decode), one.tokens, None, "this prompt")
    many = tokenized(model, prompts, padding_side="right")
    said = f"{len(many)} prompts"
    return Asked(name, prompt, model, one.tokens[0], strings, _with(one.decode), many.tokens, many.attention_mask, said)


def layers_of(text: str | None, n: int) -> list[int]:
    """Return the layers in a text such as "0,3-5", all of ``n`` for None.

    Raises:
        ValueError: not of that form. IndexError: beyond the last layer.

    """
    if text is None:
        return list(range(n))
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"Layers {text!r}: write numbers and ranges with commas, such as 0,3-5.")
        last = int(match[2] or match[1])
        if last >= n:
            raise IndexError(f"Layer {last} is out of range: the model has {n}, so 0 to {n - 1}.")
        found += range(int(match[1]), last + 1)
    return sorted(set(found))


def heads_of(text: str, n_layers: int, n_heads: int) -> list[tuple[int, int]]:
    """Return (layer, head) of a text such as "0.1,2.3", in that order.

    Raises:
        ValueError: not of that form. IndexError: a head that the model lacks.

    """
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\.(\d+)\s*", part)
        if match is None:
            raise ValueError(f"Heads {text!r}: write layer.head with commas, such as 0.1,2.3.")
        layer, head = int(match[1]), int(match[2])
        if layer >= n_layers or head >= n_heads:
            raise IndexError(
                f"There is no head {layer}.{head}: layers go from 0 to {n_layers - 1}, heads from 0 to {n_heads - 1}."
            )
        found.append((layer, head))
    return list(dict.fromkeys(found))


def _of_toy(name: str, prompt: str, dtype: str | None, device: str | None) -> Asked:
    where = "cpu" if device is None else usable_device(device)
    toy = checkpoints.load(name, device=where, dtype=precision_of(dtype))
    config = toy.config
    if re.fullmatch(r"[\d\s]+(,[\d\s]+)+", prompt):
        ids = _ids(prompt)
        strings = tasks.labels(config, ids)
    else:
        words = {word: i for i, word in enumerate(tasks.labels(config, list(range(config.d_vocab))))}
        strings = re.findall(r"\d+|\S", prompt)
        unknown = next((word for word in strings if word not in words), None)
        if unknown is not None:
            raise ValueError(
                f"{name} has no token {unknown!r}. {nearest(unknown, words)} Prompts look like "
                f"'{' '.join(tasks.labels(config, toy.tokens[5].tolist()))}'; ids are written with commas."
            )
        ids = [words[word] for word in strings]
    tokens = torch.tensor(ids)
    check_tokens(tokens[None], toy.model)
    few = torch.randperm(len(toy.tokens), generator=torch.Generator().manual_seed(0))[:OWN].sort().values
    over = f"{len(few)} of the toy's own prompts"
    return Asked(
        name,
        prompt,
        toy.model,
        tokens,
        list(strings),
        _answer(config.modulus, config.gate),
        toy.tokens[few],
        None,
        over,
    )


def _answer(modulus: int, gate: Any) -> Callable[[int], str]:
    return lambda i: str(i) if i < modulus else f"output {i}" if gate is None else f"DECLINE {i - modulus}"


def _with(decode: Callable[[list[int]], Sequence[str]]) -> Callable[[int], str]:
    return lambda i: decode([i])[0]


def _ids(prompt: str) -> list[int]:
    parts = [part.strip() for part in prompt.split(",")]
    if not all(re.fullmatch(r"\d+", part) for part in parts):
        raise ValueError(
            f"The model has no tokenizer, so the prompt is token ids with commas, such as 5,97,9,98; {prompt[:40]!r} is not."
        )
    return [int(part) for part in parts]
