"""Where the operands of a template stand, in which form, and which numbers fit there.

A position is found by writing two prompts that differ in one operand: the last token that differs is where it stands.
Then every number of the operand's range is written in that place, and fits where the prompt has the same length, the
number's own token at that position, and every other token as before. Positions count from the end, so a
beginning-of-sequence token does not move them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_ablate._prompt_files import Words
from mi_ablate.arithmetic.problem_sets.single_tokens import FORMS, Numerals, encoded


@dataclass(frozen=True)
class Slot:
    """The place of one operand."""

    name: str
    pos: int
    """Negative, from the end."""
    numerals: Numerals
    """Of the form that the template gives it."""
    fits: Bool[Tensor, " v"]
    """Which of the values asked for are one token there, and change nothing else."""
    misfit: str
    """Of the first value that does not fit: what is wrong, in a sentence; empty where all do."""

    @property
    def form(self) -> str:
        """ "bare" or "spaced"."""
        return self.numerals.form


def written(template: str, values: Mapping[str, Any], digits: int) -> str:
    """Return a prompt."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", f"{value:0{digits}d}" if isinstance(value, int) else f"{value:g}")
    return template


def slots_of(
    tokenizer: Any,
    template: str,
    operands: Mapping[str, Int[Tensor, " v"]],
    constants: Mapping[str, int | float],
    kinds: Mapping[str, Numerals],
) -> dict[str, Slot]:
    """Return where each operand stands.

    Args:
        tokenizer: of Hugging Face's kind.
        template: with "{a}", "{b}".
        operands: the values that each will take, each once.
        constants: what is written for the others.
        kinds: the numerals of each form.

    Raises:
        ValueError: a tokenizer of which fewer than two numbers are single tokens, or that does not know the template's
            words; an operand whose token is no number, as where it stands against another digit.

    """
    probe, digits = _probe(kinds), kinds["bare"].digits
    first = {name: probe[i % 2] for i, name in enumerate(operands)} | dict(constants)
    row = encoded(tokenizer, [written(template, first, digits)])[0]
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in row:
        raise ValueError(
            f"The tokenizer does not know all words of {template!r}: it reads {Words(tokenizer)(row)}. "
            "template='bare' ('{a}+{b}=') has none; give one in the model's own words."
        )
    return {name: _slot(tokenizer, template, name, operands[name], first, row, kinds, probe) for name in operands}


def _probe(kinds: Mapping[str, Numerals]) -> list[int]:
    """Two numbers that are single tokens, in both forms where there are such, two digits long where there are such."""
    there = [kinds[form].values.tolist() for form in FORMS if len(kinds[form]) > 1]
    if not there:
        raise ValueError(
            "Fewer than two numbers are single tokens of this tokenizer, so no prompt has operands of one token. "
            "numeral_states reads numbers of several tokens."
        )
    both = sorted(set(there[0]) & set(there[-1]))
    both = both if len(both) > 1 else sorted(there[0])
    return [v for v in both if 9 < v < 100][:2] if sum(9 < v < 100 for v in both) > 1 else both[:2]


def _slot(
    tokenizer: Any,
    template: str,
    name: str,
    values: Int[Tensor, " v"],
    first: Mapping[str, int | float],
    row: list[int],
    kinds: Mapping[str, Numerals],
    probe: list[int],
) -> Slot:
    words, digits = Words(tokenizer), kinds["bare"].digits
    other = next(v for v in probe if v != first[name])
    second = encoded(tokenizer, [written(template, {**first, name: other}, digits)])[0]
    differ = [i for i, (x, y) in enumerate(zip(row, second)) if x != y] if len(row) == len(second) else []
    own = [first[name], other]
    kind = next(
        (k for k in kinds.values() for i in differ[-1:] if k.values_of([row[i], second[i]]).tolist() == own), None
    )
    if kind is None:
        raise ValueError(
            f"{{{name}}} of {template!r} has no token of its own: the tokenizer reads {words(row)} with {first[name]}, "
            f"{words(second)} with {other}. Put something that is no digit on both sides of it."
        )
    texts = [written(template, {**first, name: v}, digits) for v in values.tolist()]
    rows = encoded(tokenizer, texts)
    ids = dict(zip(kind.values.tolist(), kind.ids.tolist()))
    fits = []
    for v, found in zip(values.tolist(), rows):
        wanted = [ids.get(v) if i in differ else token for i, token in enumerate(row)]
        wanted[differ[-1]] = ids.get(v)
        same = len(found) == len(row) and all(w == f or i in differ[:-1] for i, (w, f) in enumerate(zip(wanted, found)))
        fits.append(same)
    misfit = ""
    if not all(fits):
        i = fits.index(False)
        misfit = f"{texts[i]!r} is {words(rows[i])}, in which {values[i]} is no single token where {first[name]} is one"
    return Slot(name, differ[-1] - len(row), kind, torch.tensor(fits, dtype=torch.bool), misfit)
