"""Pairs of problems with different answers: a clean one and a corrupted one, for patching.

The corrupted prompt is run, and values of the clean one are written into it; what comes back of the clean answer is the
effect. For an experiment on the token of a, b is the same in both (``fixed="b"``), so nothing else has to change.

Pairs are drawn uniformly, without replacement, from all ordered pairs that qualify. The same problem occurs in many of
them, so intervals over pairs are too narrow where there are far more pairs than problems.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mi_ablate.arithmetic.problem_sets.prompting import Problems


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """Two sets of problems, row by row."""

    clean: Problems
    corrupted: Problems
    fixed: str | None = None
    """The operand that is the same in both."""

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, rows: int | slice | list[int] | Tensor) -> "Pairs":
        """Return the chosen pairs."""
        return Pairs(self.clean[rows], self.corrupted[rows], self.fixed)

    def __repr__(self) -> str:
        same = f", the same {self.fixed}" if self.fixed else ""
        return f"Pairs({self.clean.task}, n {len(self)}{same})"


def pairs(
    problems: Problems, n: int = 100, *, fixed: str | None = None, against: Problems | None = None, seed: int = 0
) -> Pairs:
    """Return n pairs with different answers, none twice.

    Args:
        problems: what clean prompts are drawn from; ``asked(...).right`` by preference.
        n: how many.
        fixed: "a" or "b": the operand that is the same in both prompts of a pair.
        against: what corrupted prompts are drawn from; the same problems by default. The baseline year 01 of Hanna et
            al. is ``against=problems(model, "greater", a=[1])``.
        seed: of the draw.

    Raises:
        ValueError: an operand that the problems do not have, prompts of another layout, fewer pairs than n.

    """
    others = problems if against is None else against
    if others.tokens.shape[1] != problems.tokens.shape[1] or others.positions != problems.positions:
        raise ValueError(
            f"{problems!r} and {others!r} are no pairs: patching needs prompts of one length with the operands at the same "
            "positions."
        )
    if fixed is not None and fixed not in problems.operands:
        raise ValueError(f"fixed={fixed!r}: the operands are {', '.join(problems.operands)}, or None for no condition.")
    first, second, there = _drawn(_keys(problems, fixed), _keys(others, fixed), n, seed)
    if there < n or n < 1:
        same = f" and the same {fixed}" if fixed else ""
        raise ValueError(f"{n} pairs were asked for; {there} have different answers{same}. Give more problems.")
    return Pairs(problems[first], others[second], fixed)


def count_pairs(problems: Problems, *, fixed: str | None = None) -> int:
    """Return how many pairs with different answers (and the same operand ``fixed``) there are to draw."""
    keys = _keys(problems, fixed)
    return _drawn(keys, keys, 0, 0)[2]


def _keys(problems: Problems, fixed: str | None) -> Int[Tensor, "n 2"]:
    answers = problems.answers.cpu()
    group = torch.zeros_like(answers) if fixed is None else problems.inputs[fixed].cpu()
    return torch.stack([group, answers], dim=1)


def _drawn(
    clean: Int[Tensor, "n 2"], corrupted: Int[Tensor, "m 2"], n: int, seed: int
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"], int]:
    """Rows of both sides, and how many pairs there are: the k-th of all, without listing them."""
    width = int(max(clean[:, 1].max(), corrupted[:, 1].max())) + 1
    keys = corrupted[:, 0] * width + corrupted[:, 1]
    order = keys.argsort(stable=True)
    keys = keys[order].contiguous()
    own = (clean[:, 0] * width + clean[:, 1]).contiguous()
    start = torch.searchsorted(keys, (clean[:, 0] * width).contiguous())
    end = torch.searchsorted(keys, ((clean[:, 0] + 1) * width).contiguous())
    low, high = torch.searchsorted(keys, own), torch.searchsorted(keys, own, right=True)
    total = ((end - start) - (high - low)).cumsum(0)
    there = int(total[-1])
    if there < n or n < 1:
        return own[:0], own[:0], there
    generator = torch.Generator().manual_seed(seed)
    if there < 10 * n or there < 10**6:
        number = torch.randperm(there, generator=generator)[:n]
    else:  # so sparse that repetitions are few: draw, keep the first of each
        number = torch.randint(there, (2 * n + 20,), generator=generator)
        seen = dict.fromkeys(number.tolist())
        number = torch.tensor(list(seen)[:n])
    first = torch.searchsorted(total, number, right=True)
    before = torch.where(first > 0, total[first - 1], 0)
    place = start[first] + number - before
    place = torch.where(place >= low[first], place + (high - low)[first], place)
    return first, order[place], there
