"""The modular problems of a toy in the form that everything here takes, so that the Clock is looked for where it is known."""

import torch

from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.problem_sets.single_tokens import Numerals
from mi_ablate.toys import Toy
from mi_ablate.toys.tasks import SYMBOLS


def problems_of(toy: Toy, operation: str | None = None) -> Problems:
    """Return all problems of a toy: tokens 0 to p - 1 are the numbers, and "answer" is (a op b) mod p.

    Args:
        toy: from `mi_ablate.toys.load`.
        operation: of a toy with several, which: "add", "sub" or "mul".

    Raises:
        ValueError: an operation that the toy has not, or none named of several; a toy with a gate, whose answers are not
            all numbers.

    """
    config = toy.config
    if config.gate is not None:
        raise ValueError("The toy has a gate, so some of its answers are no numbers. Give one without.")
    if operation is None and len(config.operations) == 1:
        operation = config.operations[0]
    if operation not in config.operations:
        raise ValueError(f"operation={operation!r}: this toy has {', '.join(config.operations)}. Name one of them.")
    p, words = toy.modulus, config.layout.split()
    size = p * p
    rows = slice(config.operations.index(operation) * size, (config.operations.index(operation) + 1) * size)
    symbol, numbers = SYMBOLS[operation], torch.arange(p)
    a, b = (toy.inputs[name][rows].cpu() for name in ("a", "b"))
    template = "".join({"a": "{a}", "b": "{b}", "op": f" {symbol} ", "=": " ="}[word] for word in words)
    return Problems(
        task=f"a {symbol} b mod {p}",
        template=template,
        text=tuple(f"{x} {symbol} {y} mod {p}" for x, y in zip(a.tolist(), b.tolist())),
        tokens=toy.tokens[rows],
        inputs={"a": a, "b": b, "answer": toy.answers[rows].cpu()},
        positions={"a": words.index("a") - len(words), "b": words.index("b") - len(words), "answer": -1},
        answers=toy.answers[rows].cpu(),
        numerals=Numerals("bare", numbers, numbers, p),
        forms=dict.fromkeys(("a", "b", "answer"), "bare"),
        bos=False,
        modulus=p,
    )
