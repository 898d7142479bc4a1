"""Tasks with numbers: what is asked, how it is written, what is right.

A task has operands a and b, or a alone with a constant b ("a - 23"). `TASKS` holds, by name, those of Kantamneni &
Tegmark 2025 (arXiv 2502.00873, Table 3) and the years of Hanna, Liu & Variengien 2023 (arXiv 2305.00586), a number task
that GPT-2 small can do. A `Task` of one's own goes wherever a name does.

Templates by name: "kt" (a sentence, a line break, the problem: what was used for GPT-J), "kt space" (a space for the
line break: for Pythia; it writes a as " 12" and b as "34", which are different tokens), "question" (Pythia's other one:
an operand occurs twice, and its position is that of the last occurrence), "bare", and "spaced", which has a space before
both operands.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mi_ablate._types import nearest


@dataclass(frozen=True)
class Task:
    """One kind of problem."""

    name: str
    expression: str
    """What is calculated, such as "a + b"."""
    compute: Callable[[Tensor, Tensor], Tensor]
    """The answers of float64 operands ``[n]``, ``[n]``; NaN or infinite where there is none."""
    templates: Mapping[str, str]
    """By name; the first is the default. "{a}" and "{b}" stand for the operands."""
    a: range = range(100)
    b: range | None = range(100)
    """None: the task has one operand."""
    digits: int = 0
    """Numbers are written with at least so many digits."""
    later: bool = field(default=False)
    """Whether every number above the operand is right (years), the answer being the first of them."""

    def template(self, given: str | None) -> str:
        """Return the template of a name, the default for None, or what was given where that is one itself.

        Raises:
            ValueError: neither a name nor a template.

        """
        if given is None:
            return next(iter(self.templates.values()))
        text = self.templates.get(given, given)
        if "{a}" not in text:
            raise ValueError(
                f"template={given!r} has no {{a}}, and is none of those by name ({', '.join(self.templates)}). "
                "Write {a} and {b} where the operands stand."
            )
        return text


def _written(operator: str) -> dict[str, str]:
    """The templates of an operator between a and b."""
    inner = f"{{a}}{operator}{{b}}"
    return {
        "kt": f"Output ONLY a number.\n{inner}=",
        "kt space": f"Output ONLY a number. {inner}=",
        "question": f"Question: What is {inner}? Answer: {inner}=",
        "bare": f"{inner}=",
        "spaced": f" {{a}} {operator.strip()} {{b}} =",
    }


_LLAMA = {"kt llama": "The following is a correct addition problem. \n{a}+{b}="}
_YEARS = {"hanna": "The war lasted from the year 17{a} to the year 17"}
_EQUATION = {
    "kt": "Output ONLY a number.\nx-{a}=0, x=",
    "kt space": "Output ONLY a number. x-{a}=0, x=",
    "bare": "x-{a}=0, x=",
}

TASKS = {
    task.name: task
    for task in (
        Task("add", "a + b", lambda a, b: a + b, _written("+") | _LLAMA),
        Task("sub", "a - b", lambda a, b: a - b, _written("-")),
        Task("times", "a * b", lambda a, b: a * b, _written("*"), b=range(10)),
        Task("floordiv", "a // b", lambda a, b: torch.floor(a / b), _written("//"), b=range(1, 10)),
        Task("mod", "a mod b", torch.remainder, _written(" modulo "), b=range(2, 10)),
        Task("equation", "x - a = 0", lambda a, b: a, _EQUATION, b=None),
        Task("greater", "year > a", lambda a, b: a + 1, _YEARS, a=range(2, 99), b=None, digits=2, later=True),
    )
}
"""By name. "greater": of the years 02 to 98 of a century, as in the paper, so that every one has a later and an earlier."""


def task_of(task: str | Task) -> Task:
    """Return the task of a name."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}. {nearest(task, TASKS)} A Task of your own can be given too.")
    return TASKS[task]
