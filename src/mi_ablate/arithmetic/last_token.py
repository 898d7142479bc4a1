"""Fits of helices of both operands and of the answer to activations of the prompts, at the last token or any other.

    helix(a,b) = helix(a) + helix(b),    helix(a+b),    helix(a,b,a+b)         (Kantamneni & Tegmark 2025, §5.1)

These depend on two numbers, so the rows are the prompts; one pass accumulates the products of the widest design, and every
basis is fitted from a part of them. The constant is part of every fit: in the published notebooks the design of helix(a,b)
repeats b's linear column in its place, which biases the comparison against it (see the regression test).

The ranks are not the numbers of columns: each number's sine of period 2 is zero on integers, and a + b is the sum of a and
b, so "a,b,answer" with the default periods has 27 columns and rank 23 (24 of 28 with the constant).

When it misleads: with 27 columns R² is high for smooth functions of any kind. PCA of the same rank is the most that any
linear subspace of that rank holds, so it is an upper bound and no null; fits to shuffled prompts are the null.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mi_ablate.arithmetic.helices import PERIODS
from mi_ablate.design import Design, helix

BASES = ("a,b", "answer", "a,b,answer")


def pair_design(
    inputs: Mapping[str, Tensor], basis: str = "a,b,answer", periods: Sequence[int | float] = PERIODS
) -> Design:
    """Return the helix columns of the numbers that ``basis`` names, labelled "a:linear", "a:cos 10", "answer:sin 2" ...

    `mi.fit` centres, so the constant is never among the columns and never lost.

    Args:
        inputs: the numbers of each prompt, as in ``Problems.inputs``.
        basis: names joined by commas: "a", "b", "a,b", "answer", "a,b,answer".
        periods: of the circles of each.

    Raises:
        KeyError: a name that the inputs do not have.

    """
    names = [name.strip() for name in basis.split(",")]
    missing = [name for name in names if name not in inputs]
    if missing:
        raise KeyError(f"The basis {basis!r} needs {missing}; the prompts have {sorted(inputs)}.")
    parts = [helix(inputs[name].cpu(), periods, name) for name in names]
    return Design(torch.cat([part.matrix for part in parts], 1), sum((part.labels for part in parts), ()))
