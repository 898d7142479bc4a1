"""Rules about numbers, each the set of prompts for which it holds: what a heuristic neuron may follow.

The kinds are those of Nikankin, Reusch, Mueller and Belinkov 2024 (arXiv 2410.21272, App. E): an operand or the result lies
in a range, is r modulo m, has certain digits (a pattern), the operands are identical; results from a small set
("multi-result") are a rule of each neuron's own and found in `mi_ablate.arithmetic.neuron_level.heuristics`.

One set of prompts may have several names ("unit digit 5" is "5 modulo 10", the tens digit 3 below 100 is "30 to 39"): each
set is one rule, of the first kind that has it, in the order range, modulo, pattern, identical.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool
from torch import Tensor

KINDS = ("range", "modulo", "pattern", "identical", "multi-result")
_TERMS = ("a", "b", "answer")


@dataclass(frozen=True, eq=False, repr=False)
class Rule:
    """One rule, and the prompts for which it holds."""

    kind: str
    of: str
    """"a", "b", "answer", or "a, b" for identical operands."""
    name: str
    prompts: Bool[Tensor, " n"]

    def __repr__(self) -> str:
        return f"Rule({self.name}, {int(self.prompts.sum())} of {len(self.prompts)} prompts)"


def heuristic_rules(
    inputs: Mapping[str, Tensor],
    *,
    widths: Sequence[int] = (10, 20, 50),
    moduli: Iterable[int] = range(2, 11),
    least: int = 5,
    most: int | float = 0.5,
) -> list[Rule]:
    """Return the rules about a, b and the answer that hold for some of the prompts.

    Args:
        inputs: values of "a", "b" and "answer", such as `Problems.inputs`.
        widths: of the ranges, which start at multiples of half a width.
        moduli: the m of "r modulo m".
        least: rules for fewer prompts are left out.
        most: and those for a larger share of the prompts: the top prompts of any neuron would overlap with them.

    Raises:
        ValueError: none of the three terms, no rule left.

    """
    terms = {term: torch.as_tensor(inputs[term]).cpu() for term in _TERMS if term in inputs}
    if not terms:
        raise ValueError(f"inputs has {list(inputs)[:5]}: rules are about 'a', 'b' and 'answer'.")
    made = [rule for term, x in terms.items() for rule in _ranges(term, x, widths)]
    made += [rule for term, x in terms.items() for rule in _residues(term, x, moduli)]
    made += [rule for term, x in terms.items() for rule in _patterns(term, x)]
    if "a" in terms and "b" in terms:
        made.append(Rule("identical", "a, b", "a = b", terms["a"] == terms["b"]))
    kept: dict[bytes, Rule] = {}
    for rule in made:
        if least <= int(rule.prompts.sum()) <= most * len(rule.prompts):
            kept.setdefault(rule.prompts.numpy().tobytes(), rule)
    if not kept:
        raise ValueError(
            f"No rule holds for {least} prompts or more and at most a share of {most}. Give more problems."
        )
    return list(kept.values())


def _ranges(term: str, x: Tensor, widths: Sequence[int]) -> Iterator[Rule]:
    for width in widths:
        step = max(1, width // 2)
        for start in range(min(0, int(x.min()) // step * step), int(x.max()) + 1, step):
            yield Rule("range", term, f"{term} in {start}..{start + width - 1}", (x >= start) & (x < start + width))


def _residues(term: str, x: Tensor, moduli: Iterable[int]) -> Iterator[Rule]:
    for m in moduli:
        for r in range(m):
            yield Rule("modulo", term, f"{term} mod {m} = {r}", x % m == r)


def _patterns(term: str, x: Tensor) -> Iterator[Rule]:
    """Every digit pattern with a digit and a free place, over the number without leading zeros; negative ones have none."""
    values, which = x.unique(return_inverse=True)
    texts = [str(v) for v in values.tolist()]
    for length in sorted({len(text) for text in texts if len(text) > 1 and text[0] != "-"}):
        alphabet = [".", *"0123456789"]
        for symbols in product(alphabet, repeat=length):
            pattern = "".join(symbols)
            if "." not in pattern or pattern == "." * length or pattern[0] == "0":
                continue
            matches = re.compile(pattern.replace(".", "[0-9]")).fullmatch
            found = torch.tensor([matches(text) is not None for text in texts])
            yield Rule("pattern", term, f"{term} is {pattern}", found[which])
