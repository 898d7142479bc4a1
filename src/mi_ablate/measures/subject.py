"""One trained toy under measurement, with what several measures share computed once."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate import controls
from mi_ablate.controls import Control
from mi_ablate.measures.bases import contrastive, every_site, planes
from mi_ablate.measures.task import Task, task_of
from mi_ablate.metrics import PositionMetric, accuracy
from mi_ablate.model import collect, last_residual, run, split
from mi_ablate.subspace import Subspace
from mi_ablate.toys import tasks
from mi_ablate.toys.checkpoints import Toy
from mi_ablate.toys.evaluation import train_mask
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.transformer import build, complete

HELD_OUT = 1000
"""Held-out pairs that edits are scored on."""
DRAWS = 5
"""Draws of each random control."""
DIRECTIONS = 64
"""The most directions that are removed or described at the last residual."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A configuration and one state of its weights; everything else is made when first asked for."""

    config: TrainConfig
    state: dict[str, Float[Tensor, "..."]]
    step: int
    stable: bool

    @cached_property
    def weights(self) -> dict[str, Float[Tensor, "..."]]:
        """Every weight, untrained biases as zeros, in float32 on the CPU."""
        return {
            name: w.detach().to("cpu", torch.float32) for name, w in complete(self.config.config, self.state).items()
        }

    @cached_property
    def toy(self) -> Toy:
        """The model with all its prompts and the training pairs of the run."""
        shape = self.config.config
        return Toy(
            model=build(shape, self.weights),
            tokens=tasks.all_tokens(shape),
            answers=tasks.answers(shape),
            modulus=shape.modulus,
            inputs=tasks.inputs(shape),
            train=train_mask(self.config),
            card={"config": shape.to_dict(), "name": f"step {self.step}"},
        )

    @cached_property
    def logits(self) -> Float[Tensor, "n v"]:
        """Logits at the last position of every prompt."""
        with torch.no_grad():
            return torch.cat([run(self.toy.model, part)[:, -1] for part, _ in split(self.toy.model, self.toy.tokens)])

    @cached_property
    def acts(self) -> dict[str, Float[Tensor, "n d"]]:
        """Activations of every prompt at every site."""
        return collect(self.toy.model, self.toy.tokens, every_site(self.toy.model))

    @cached_property
    def finite(self) -> bool:
        """Whether weights, logits and activations are numbers that can be squared; a diverged run has nothing to measure."""
        if not all(_finite(w) for w in self.weights.values()) or not bool(self.logits.isfinite().all()):
            return False
        try:
            return all(_finite(x) for x in self.acts.values())
        except ValueError:  # infinite activations, which a norm has turned into numbers again
            return False

    @cached_property
    def operations(self) -> dict[str, "Operation"]:
        """Each operation that the model was trained on."""
        return {name: Operation(self, name) for name in self.config.config.operations}

    def __repr__(self) -> str:
        return f"Subject(step {self.step}{'' if self.stable else ', not stable'}, {self.toy!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Operation:
    """One operation of a subject: its task, its bases from training pairs, and its held-out pairs."""

    subject: Subject
    name: str

    @cached_property
    def everything(self) -> Int[Tensor, " n"]:
        """The prompts of the operation, zero operands included (a circle of multiplication leaves them out)."""
        index, pairs = self.subject.config.config.operations.index(self.name), self.subject.toy.modulus**2
        return torch.arange(index * pairs, (index + 1) * pairs)

    @cached_property
    def task(self) -> Task:
        """Prompts and answers on the group that the circle lives on."""
        return task_of(self.subject.toy, self.name)

    @property
    def last(self) -> str:
        """The site before the final norm."""
        return last_residual(self.task.toy.model)

    @cached_property
    def train(self) -> Bool[Tensor, " n"]:
        """Which prompts of the task are training pairs."""
        return self.task.train

    @cached_property
    def held(self) -> Int[Tensor, " m"]:
        """Prompts of the task that edits are scored on: a seeded draw of the held-out pairs."""
        rest = torch.nonzero(~self.train).flatten()
        return rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[:HELD_OUT]]

    @property
    def measurable(self) -> bool:
        """Whether there are pairs enough for a basis and a score."""
        return int(self.train.sum()) > 1 and len(self.held) > 1

    @property
    def held_tokens(self) -> Int[Tensor, "m p"]:
        """The prompts of `held`."""
        return self.task.tokens[self.held]

    @property
    def metric(self) -> PositionMetric:
        """Accuracy on the held-out pairs."""
        return accuracy(self.task.tokens_of[self.task.values[self.held]])

    @cached_property
    def every_acts(self) -> dict[str, Float[Tensor, "n d"]]:
        """Activations of all prompts of the task at every site."""
        return {name: x[self.task.rows] for name, x in self.subject.acts.items()}

    @cached_property
    def acts(self) -> dict[str, Float[Tensor, "n d"]]:
        """Activations of the training pairs at every site."""
        return {name: x[self.train] for name, x in self.every_acts.items()}

    @property
    def values(self) -> Int[Tensor, " n"]:
        """Answers of the training pairs as elements of the group."""
        return self.task.values[self.train]

    @cached_property
    def bases(self) -> dict[str, Subspace] | None:
        """Contrastive directions at every site; None where the answers have one mean at one of them."""
        try:
            return {name: contrastive(x, self.values, name) for name, x in self.acts.items()}
        except ValueError:  # nothing to span: a collapsed model
            return None

    @cached_property
    def planes(self) -> Subspace | None:
        """Frequency planes at the last residual."""
        try:
            return planes(self.acts[self.last], self.values, self.task.period, DIRECTIONS // 2)
        except ValueError:
            return None

    @cached_property
    def controls(self) -> dict[str, Control]:
        """What a removal is compared with, from the same training pairs as the bases, at every site."""
        return {"covariance": controls.covariance(self.acts), "pca": controls.pca(self.acts)}

    def __repr__(self) -> str:
        return f"Operation({self.name} of {self.subject!r})"


def _finite(x: Float[Tensor, "..."]) -> bool:
    """Whether the squares of all values are finite in float32, as a norm needs them."""
    return bool((x * x).sum().isfinite())
