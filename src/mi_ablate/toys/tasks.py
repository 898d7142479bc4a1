"""Modular arithmetic as tokens: every prompt of a `ToyConfig`, its answers, its train split and its labels.

Prompts are in one fixed order: by operation as the config lists them, then by a, then by b (fastest). Prompt
number ``i`` therefore has ``operation, a, b = i // p**2, i // p % p, i % p``. Nothing here needs
TransformerLens.
"""

import base64
import binascii
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .config import ToyConfig

SYMBOLS = {"add": "+", "sub": "-", "mul": "*"}


def n_prompts(config: ToyConfig) -> int:
    """Number of prompts: operations times modulus squared."""
    return len(config.operations) * config.modulus**2


def slots(config: ToyConfig) -> list[tuple[int, int]]:
    """Return, for each position, its first token and how many tokens it may hold."""
    p, n = config.modulus, len(config.operations)
    of = {"a": (0, p), "b": (0, p), "op": (p, n), "=": (config.d_vocab - 1, 1)}
    return [of[word] for word in config.layout.split()]


def _grid(config: ToyConfig) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    p, index = config.modulus, torch.arange(n_prompts(config))
    return index // p**2, index // p % p, index % p


def all_tokens(config: ToyConfig) -> Int[Tensor, "n pos"]:
    """Return all prompts, operation by operation, b fastest.

    Example:
        >>> all_tokens(ToyConfig(modulus=2))
        tensor([[0, 2, 0, 3],
                [0, 2, 1, 3],
                [1, 2, 0, 3],
                [1, 2, 1, 3]])

    """
    operation, a, b = _grid(config)
    column = {"a": a, "b": b, "op": config.modulus + operation, "=": torch.full_like(a, config.d_vocab - 1)}
    return torch.stack([column[word] for word in config.layout.split()], dim=1)


def answers(config: ToyConfig) -> Int[Tensor, " n"]:
    """Return (a op b) mod p of all prompts, or the DECLINE token p + (group of a) of those that a gate closes."""
    operation, a, b = _grid(config)
    results = {"add": a + b, "sub": a - b, "mul": a * b}
    values = torch.stack([results[name] for name in config.operations])
    plain = values.gather(0, operation[None])[0] % config.modulus
    if config.gate is None:
        return plain
    return torch.where(parts(config) == 1, config.modulus + _groups(config)[a], plain)


def inputs(config: ToyConfig) -> dict[str, Int[Tensor, " n"]]:
    """Return the operands "a" and "b" of all prompts and, with several operations, the index "operation".

    With a gate also "gated" (1 where the answer is a DECLINE token) and "sum", (a + b) mod p of every prompt.
    """
    operation, a, b = _grid(config)
    named = {"a": a, "b": b}
    if config.gate is not None:
        return named | {"gated": parts(config), "sum": (a + b) % config.modulus}
    return named | ({"operation": operation} if len(config.operations) > 1 else {})


def parts(config: ToyConfig) -> Int[Tensor, " n"]:
    """Return which of ``config.parts`` each prompt belongs to: its operation, or 1 where a gate closes."""
    operation, a, b = _grid(config)
    if config.gate is None:
        return operation
    groups = _groups(config)
    return ((groups[a] >= 0) & (groups[b] >= 0)).long()


def _groups(config: ToyConfig) -> Int[Tensor, " p"]:
    """The gate's group of each number, -1 outside."""
    groups = torch.full((config.modulus,), -1)
    for index, group in enumerate(config.gate or ()):
        groups[list(group)] = index
    return groups


def split(config: ToyConfig, fraction: int | float, seed: int) -> Bool[Tensor, " n"]:
    """Return which prompts are trained on: ``int(fraction * p**2)`` pairs of each operation, drawn apart.

    Raises:
        ValueError: the fraction leaves no prompt to train on, or is above 1.

    """
    pairs = config.modulus**2
    count = int(fraction * pairs)
    if not 0 < count <= pairs:
        raise ValueError(
            f"A train fraction of {fraction} gives {count} of {pairs} pairs; use one between {1 / pairs:.2g} and 1."
        )
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(config.operations), pairs, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(pairs, generator=generator)[:count]] = True
    return mask.flatten()


def pack_mask(mask: Bool[Tensor, " n"]) -> str:
    """Return the mask as base64 text, eight prompts a byte (the first in the highest bit), for a card."""
    bits = mask.cpu().to(torch.uint8)
    bits = torch.cat((bits, bits.new_zeros(-len(bits) % 8))).reshape(-1, 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return base64.b64encode(bytes((bits * weights).sum(1).tolist())).decode("ascii")


def unpack_mask(text: str, n: int) -> Bool[Tensor, " n"]:
    """Return the mask of ``n`` prompts that `pack_mask` wrote.

    Raises:
        ValueError: the text is not base64, or holds another number of prompts.

    """
    try:
        body = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"The train mask is not base64 text ({error}); write it with pack_mask.") from None
    if len(body) != -(-n // 8):
        raise ValueError(
            f"The train mask has {len(body)} bytes, but {n} prompts need {-(-n // 8)}: it is another task's."
        )
    packed = torch.tensor(list(body), dtype=torch.int64)
    return (packed[:, None] >> torch.arange(7, -1, -1) & 1).bool().flatten()[:n]


def labels(config: ToyConfig, tokens: Int[Tensor, " pos"] | list[int]) -> list[str]:
    """Return the tokens of one prompt as text, for attention pictures.

    Raises:
        ValueError: a token is outside the vocabulary.

    Example:
        >>> labels(ToyConfig(modulus=97), [3, 97, 5, 98])
        ['3', '+', '5', '=']

    """
    ids: list[Any] = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
    outside = [t for t in ids if not 0 <= t < config.d_vocab]
    if outside:
        raise ValueError(f"Token {outside[0]} is outside this toy's vocabulary 0 .. {config.d_vocab - 1}.")
    words = [SYMBOLS[name] for name in config.operations] if "op" in config.layout else []
    words += ["="] if "=" in config.layout else []
    return [str(t) if t < config.modulus else words[t - config.modulus] for t in ids]
