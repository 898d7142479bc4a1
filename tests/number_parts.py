"""Problems of sums by hand, for small random models: numbers are tokens 0 to vocab - 3, then "+" and "="."""

import itertools
from typing import Any

import torch
from torch import Tensor

from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.problem_sets.single_tokens import Numerals


def sums(vocab: int = 11, below: int = 5, **other: Any) -> Problems:
    """All a + b with a and b from 0 to below - 1, written as four tokens."""
    a, b = (x.flatten() for x in torch.meshgrid(torch.arange(below), torch.arange(below), indexing="ij"))
    numbers = torch.arange(vocab - 2)
    plus, equals = torch.full_like(a, vocab - 2), torch.full_like(a, vocab - 1)
    fields: dict[str, Any] = {
        "task": "a + b",
        "template": "{a}+{b}=",
        "text": tuple(f"{x}+{y}=" for x, y in itertools.product(range(below), repeat=2)),
        "tokens": torch.stack([a, plus, b, equals], dim=1),
        "inputs": {"a": a, "b": b, "answer": a + b},
        "positions": {"a": -4, "b": -2, "answer": -1},
        "answers": a + b,
        "numerals": Numerals("bare", numbers, numbers, vocab - 2),
        "forms": dict.fromkeys(("a", "b", "answer"), "bare"),
        "bos": False,
    }
    return Problems(**{**fields, **other})


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
