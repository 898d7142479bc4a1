"""What is analysed: one operation of a toy, with its answers on the cyclic group that its circle lives on."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate.design import Design, fourier
from mi_ablate.model import run, split
from mi_ablate.modular import discrete_log
from mi_ablate.toys.checkpoints import Toy


@dataclass(frozen=True)
class Task:
    """One operation of a toy, with its answers on the cyclic group that its circle lives on."""

    toy: Toy
    operation: str
    rows: Int[Tensor, " n"]
    """Which of the toy's prompts are analysed."""
    values: Int[Tensor, " n"]
    """Answers as elements of Z_period."""
    period: int
    tokens_of: Int[Tensor, " period"]
    """The answer token of each element."""

    @property
    def tokens(self) -> Int[Tensor, "n p"]:
        """The prompts."""
        return self.toy.tokens[self.rows]

    @property
    def train(self) -> Bool[Tensor, " n"]:
        """The prompts that bases may be fitted on: those trained on, or a seeded half where these are unknown."""
        if self.toy.train is not None:
            return self.toy.train[self.rows]
        half = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(0))[: len(self.rows) // 2]
        mask = torch.zeros(len(self.rows), dtype=torch.bool)
        mask[half] = True
        return mask


def task_of(toy: Toy, operation: str | None = None) -> Task:
    """Return the task of one operation; multiplication runs in exponents of the smallest primitive root, zero apart.

    Raises:
        ValueError: an operation that the toy has not, or a toy that declines some prompts (`mi_ablate.toys.gated`).

    """
    config, p = toy.config, toy.modulus
    if config.gate is not None:
        raise ValueError(
            f"{toy.card.get('name', 'The toy')} declines {int(toy.inputs['gated'].sum())} of its {len(toy.tokens)} prompts, "
            "and this analysis is of a group's whole table. Take its base, or mi_ablate.toys.gated.directions."
        )
    operation = operation or config.operations[0]
    if operation not in config.operations:
        raise ValueError(f"The model was trained on {config.operations}, not on {operation!r}.")
    wanted = torch.ones(len(toy.tokens), dtype=torch.bool)
    if "operation" in toy.inputs:
        wanted = toy.inputs["operation"].cpu() == config.operations.index(operation)
    if operation != "mul":
        rows = torch.nonzero(wanted).flatten()
        return Task(toy, operation, rows, toy.answers[rows], p, torch.arange(p))
    exponent = discrete_log(p)
    rows = torch.nonzero(wanted & (toy.answers != 0)).flatten()
    return Task(toy, operation, rows, exponent[toy.answers[rows]], p - 1, torch.argsort(exponent)[1:])


def number_embedding(task: Task) -> Float[Tensor, "period d"]:
    """Return the number embeddings in the order of the group: residues, or powers of the root."""
    model: Any = task.toy.model
    return model.embed.W_E.detach()[task.tokens_of]


def hours(task: Task, values: Int[Tensor, " n"], frequencies: list[int]) -> Design:
    """Return the design of the answer circle."""
    return fourier(values, task.period, frequencies, name="answer")


def accuracies(toy: Toy) -> dict[str, float]:
    """Return accuracy over all prompts, by train and held out where known, and by operation where several."""
    right = []
    with torch.no_grad():
        for tokens, _ in split(toy.model, toy.tokens):
            right.append(run(toy.model, tokens)[:, -1, : toy.modulus].argmax(-1).cpu())
    correct = (torch.cat(right) == toy.answers.cpu()).double()
    scores = {"all": float(correct.mean())}
    if toy.train is not None:
        scores |= {"train": float(correct[toy.train].mean()), "held_out": float(correct[~toy.train].mean())}
    if "operation" in toy.inputs:
        for index, name in enumerate(toy.config.operations):
            scores[name] = float(correct[toy.inputs["operation"] == index].mean())
    return scores
