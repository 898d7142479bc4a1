"""Prompts with numbers: one length, operands of one token each at constant positions, answers of one token.

    sums = problems(model, "add", limit=1000)          # {a}+{b}= after "Output ONLY a number."
    sums.inputs["a"], sums.positions["a"]              # the values, and where their tokens stand

Everything that reads or edits a model by position relies on that, so it is verified for every prompt, and what does not
fit is an error (or left out: ``outside="drop"``) that says which prompt, which tokens, and what to do.

Two forms of a number are two tokens. Where a is written " 12" and b "34", helix(a) and helix(b) describe two different
embeddings; a UserWarning says so. A template never ends in a space: the number that follows would have lost its own.
The beginning-of-sequence token is what ``cfg.default_prepend_bos`` says, as in ``model.to_tokens``; the published work on
GPT-J and Pythia used none, and `Problems.bos` says what was done.
"""

import itertools
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.problem_sets.layouts import Slot, slots_of, written
from mi_ablate.arithmetic.problem_sets.single_tokens import FORMS, Numerals, numerals, whole_numbers
from mi_ablate.arithmetic.problem_sets.tasks import Task, task_of
from mi_ablate.prompts import tokenized


@dataclass(frozen=True, eq=False, repr=False)
class Problems:
    """Prompts of one task, all of one length and without padding."""

    task: str
    """What is calculated: "a + b"."""
    template: str
    text: tuple[str, ...]
    tokens: Int[Tensor, "n p"]
    inputs: dict[str, Int[Tensor, " n"]]
    """The values of "a", of "b" where it is an operand, and of "answer"."""
    positions: dict[str, int]
    """Where each stands, from the end: {"a": -4, "b": -2, "answer": -1}; "answer" is where it is predicted."""
    answers: Int[Tensor, " n"]
    """The token of the right answer; of the first, where several are right."""
    numerals: Numerals
    """Of the form in which answers are written: the tokens whose logits are those of numbers."""
    forms: dict[str, str]
    """"bare" or "spaced", of the operands and "answer"."""
    bos: bool
    """Whether the prompts begin with a beginning-of-sequence token."""
    modulus: int | None = None
    """Of modular addition; the periods are then modulus / k."""
    accepted: Bool[Tensor, "n v"] | None = None
    """Over ``numerals.values``, which answers are right; None where one is."""

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of the operands: ("a", "b") or ("a",)."""
        return tuple(name for name in ("a", "b") if name in self.positions)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: int | slice | list[int] | Tensor) -> "Problems":
        """Return the chosen problems: a slice, a list of rows or a mask."""
        index = torch.arange(len(self))[rows].reshape(-1)
        if not len(index):
            raise ValueError(f"None of the {len(self)} problems is chosen.")
        device = self.tokens.device
        return replace(
            self,
            text=tuple(self.text[i] for i in index.tolist()),
            tokens=self.tokens[index.to(device)],
            inputs={name: x[index.to(x.device)] for name, x in self.inputs.items()},
            answers=self.answers[index.to(self.answers.device)],
            accepted=None if self.accepted is None else self.accepted[index.to(self.accepted.device)],
        )

    def __repr__(self) -> str:
        where = ", ".join(f"{name} at {pos}" for name, pos in self.positions.items() if name != "answer")
        bos = "with BOS" if self.bos else "no BOS"
        return f"Problems({self.task}, n {len(self)}, {self.template!r}, {where}, {bos})"


def problems(
    model: HookedModel,
    task: str | Task = "add",
    a: Iterable[int] | int | None = None,
    b: Iterable[int] | int | float | None = None,
    *,
    template: str | None = None,
    answer_form: str | None = None,
    outside: str | None = None,
    bos: bool | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Problems:
    """Return the problems of all a and b, or a sample of them.

    Args:
        model: its tokenizer writes them.
        task: a name of `TASKS` ("add", "sub", "times", "floordiv", "mod", "equation", "greater"), or a `Task`.
        a: the values of a, or one; the task's own for None (0 to 99 of most).
        b: the values of b; a single number is a constant: b=23 asks a - 23, and b is then no operand.
        template: a name (see `tasks`) or a text with "{a}" and "{b}"; positions are those of the
            last occurrence of each.
        answer_form: "bare" or "spaced"; None: bare after "=", a line break, a bracket or a digit with no space before
            it, spaced after " =" and words, as the answer would be written.
        outside: "raise" or "drop": what becomes of operands that are not one token in their place, and of answers that
            are negative, not whole or not one token. None: dropped from the task's own ranges, an error for given ones.
        bos: whether a beginning-of-sequence token is written; None: as the model's own default has it.
        limit: a random sample of so many, without replacement; None for all.
        seed: of the sample.

    Raises:
        ValueError: no tokenizer; an unknown task or template; a template that ends in a space, that lacks an operand, or
            that gives an operand no token of its own; operands or answers that do not fit; nothing left.

    """
    kind, tokenizer = task_of(task), getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "The model has no tokenizer, so no problem can be written for it. Load it from a folder with its "
            "tokenizer's files; problems_of(toy) gives those of a toy."
        )
    if outside not in (None, "raise", "drop"):
        raise ValueError(f"outside={outside!r} must be 'raise', 'drop' or None.")
    text = _template(kind, template, b)
    if getattr(b, "ndim", None) == 0:
        b = b.item()  # type: ignore[union-attr]
    constant = {"b": b} if isinstance(b, (int, float)) else {}
    strict = outside == "raise" or (outside is None and not (a is None and (b is None or bool(constant))))
    ranges = {"a": kind.a if a is None else a}
    if kind.b is not None and not constant:
        ranges["b"] = kind.b if b is None else b  # type: ignore[assignment]
    operands = {name: whole_numbers(f"The values of {name}", values) for name, values in ranges.items()}
    kinds = {form: numerals(tokenizer, form, 10**kind.digits if kind.digits else 1000, kind.digits) for form in FORMS}
    slots, readout = slots_of(tokenizer, text, operands, constant, kinds), kinds[_answer_form(text, answer_form)]
    _warn_of_forms(slots, text)
    inputs = _sampled(_answered(kind, _fitting(operands, slots, strict), constant, readout, strict), limit, seed)
    return _made(model, kind, text, inputs, constant, slots, readout, bos)


def _made(
    model: HookedModel,
    kind: Task,
    template: str,
    inputs: dict[str, Tensor],
    constant: dict[str, Any],
    slots: dict[str, Slot],
    readout: Numerals,
    bos: bool | None,
) -> Problems:
    rows = zip(*(inputs[name].tolist() for name in slots))
    texts = [written(template, {**dict(zip(slots, row)), **constant}, kind.digits) for row in rows]
    tokens = _verified(model, texts, inputs, slots, bos)
    first = getattr(model.tokenizer, "bos_token_id", None)  # type: ignore[attr-defined]
    return Problems(
        task=re.sub(r"\bb\b", f"{constant['b']:g}", kind.expression) if constant else kind.expression,
        template=template,
        text=tuple(texts),
        tokens=tokens,
        inputs=inputs,
        positions={name: slot.pos for name, slot in slots.items()} | {"answer": -1},
        answers=readout.ids_of(inputs["answer"]),
        numerals=readout,
        forms={name: slot.form for name, slot in slots.items()} | {"answer": readout.form},
        bos=int(tokens[0, 0]) == first,
        accepted=readout.values[None] >= inputs["answer"][:, None] if kind.later else None,
    )


def _template(kind: Task, given: str | None, b: Any) -> str:
    text = kind.template(given)
    if text.endswith(" "):
        raise ValueError(
            f"The template {text!r} ends in a space, which would become a token of its own and take the space from the "
            "number that follows: leave it out. answer_form='spaced' reads answers that begin with a space."
        )
    strange = sorted(set(re.findall(r"\{(\w|answer)\}", text)) - {"a", "b"})
    if strange:
        raise ValueError(
            f"The template {text!r} has {{{strange[0]}}}, which nothing fills: it has the places {{a}} and {{b}} only, and the "
            "answer is what comes after its end."
        )
    takes = kind.b is not None
    if takes != ("{b}" in text):
        raise ValueError(
            f"The template {text!r} {'has no' if takes else 'has'} {{b}}, and the task {kind.expression!r} "
            f"{'has the operands a and b' if takes else 'has the operand a alone'}."
        )
    if not takes and b is not None:
        raise ValueError(f"The task {kind.expression!r} has the operand a alone; b={b!r} was given.")
    return text


def _answer_form(template: str, given: str | None) -> str:
    if given is not None:
        if given not in FORMS:
            raise ValueError(f"answer_form={given!r} must be 'bare', 'spaced' or None.")
        return given
    last, before = template[-1], template[-2:-1]
    tight = last in "\n([{" or last.isdigit() or (last == "=" and not before.isspace())
    return "bare" if tight else "spaced"


def _fitting(operands: dict[str, Tensor], slots: dict[str, Slot], strict: bool) -> dict[str, Int[Tensor, " _"]]:
    """The values of each operand that are one token in their place."""
    for name, slot in slots.items():
        if not slot.fits.all() and (strict or not slot.fits.any()):
            wrong = operands[name][~slot.fits].tolist()
            more = ", ..." if len(wrong) > 6 else ""
            raise ValueError(
                f"{len(wrong)} values of {name} do not fit the template ({', '.join(map(str, wrong[:6]))}{more}): "
                f"{slot.misfit}. Single tokens, written {slot.form}: {slot.numerals.range_text} Choose {name} among them, "
                "or outside='drop' leaves the others out."
            )
    return {name: operands[name][slot.fits] for name, slot in slots.items()}


def _answered(
    kind: Task, values: dict[str, Tensor], constant: dict[str, Any], readout: Numerals, strict: bool
) -> dict[str, Int[Tensor, " _"]]:
    """Operands and answers of all problems of these values whose answer is one token."""
    grid = dict(zip(values, (x.flatten() for x in torch.meshgrid(*values.values(), indexing="ij"))))
    a = grid["a"].double()
    b = torch.full_like(a, float(constant["b"])) if constant else grid.get("b", grid["a"]).double()
    found: Float[Tensor, " n"] = kind.compute(a, b)
    faults = {"undefined": ~found.isfinite()}
    faults["negative"] = ~faults["undefined"] & (found < 0)
    near = found.round()  # 50 * 1.1 is 55.00000000000001
    found = torch.where((found - near).abs() <= 1e-9 * near.abs(), near, found)
    faults["not whole"] = ~faults["undefined"] & ~faults["negative"] & (found != near)
    rest = ~torch.stack(list(faults.values())).any(0)
    faults[f"no single {readout.form} token"] = rest & ~torch.isin(found, readout.values.double())
    bad = torch.stack(list(faults.values())).any(0)
    if bool(bad.all()) or (strict and bool(bad.any())):
        i = int(bad.to(torch.int64).argmax())
        example = ", ".join(f"{name} = {int(x[i])}" for name, x in grid.items())
        counts = ", ".join(f"{int(where.sum())} {what}" for what, where in faults.items() if where.any())
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} answers of {kind.expression} cannot be read as one token: {counts} (such as "
            f"{float(found[i]):g}, of {example}). {readout.range_text} Choose other operands, or outside='drop' leaves those "
            "problems out."
        )
    kept = {name: x[~bad] for name, x in grid.items()}
    return kept | {"answer": found[~bad].to(torch.int64)}


def _sampled(inputs: dict[str, Tensor], limit: int | None, seed: int) -> dict[str, Int[Tensor, " _"]]:
    n = len(inputs["answer"])
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least 1 problem, or None for all {n}.")
    if limit is None or limit >= n:
        return inputs
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:limit].sort().values
    return {name: x[chosen] for name, x in inputs.items()}


def _warn_of_forms(slots: dict[str, Slot], template: str) -> None:
    for one, other in itertools.combinations(slots.values(), 2):
        if one.form != other.form:
            warnings.warn(
                f"{template!r} writes {one.name} {one.form} and {other.name} {other.form}: these are different tokens with "
                f"different embeddings, so helix({one.name}) and helix({other.name}) are not comparable. Put both after a "
                "space, or neither.",
                UserWarning,
                stacklevel=3,
            )


def _verified(
    model: HookedModel, texts: list[str], inputs: dict[str, Tensor], slots: dict[str, Slot], bos: bool | None
) -> Int[Tensor, "n p"]:
    """The tokens of all prompts, each operand's own token in its place in every one."""
    made = tokenized(model, texts, prepend_bos=bos)
    wrong = ~made.attention_mask.all(1)
    for name, slot in slots.items():
        wrong |= made.tokens[:, slot.pos] != slot.numerals.ids_of(inputs[name])
    if wrong.any():
        i = int(wrong.to(torch.int64).argmax())
        where = ", ".join(f"{name} at {slot.pos}" for name, slot in slots.items())
        raise ValueError(
            f"In {int(wrong.sum())} prompts the operands move: {texts[i]!r} is {made.str_tokens(i)}, and {where} was expected. "
            "Put something that is no digit between the operands."
        )
    return made.tokens
