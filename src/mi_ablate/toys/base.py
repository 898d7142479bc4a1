"""Fine-tuning: the weights that a training starts from where they are not drawn, and what was known of them.

A base is a recipe that is trained first, or the file of a toy. It must have the shape and the task of what it is to become,
up to the answers: DECLINE tokens that it has not start with columns of zeros in W_U and b_U. And it must have held out what
the fine-tuning holds out, so that "held out" means what it says: seen in no phase.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from . import checkpoints
from .config import ToyConfig
from .evaluation import train_mask
from .forward import parameter_shapes
from .recipes import TrainConfig


@dataclass(frozen=True)
class Base:
    """The weights that a fine-tuning starts from, with what they were trained on."""

    name: str
    config: ToyConfig
    state: Mapping[str, Float[Tensor, "..."]]
    train: Bool[Tensor, " n"] | None
    card: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Base":
        """Return the base that a toy's file, or a shipped toy, holds; errors are those of ``toys.load``."""
        return cls(str(path), *checkpoints.read_toy(path))

    def weights(self, settings: TrainConfig) -> dict[str, Float[Tensor, "..."]]:
        """Return the weights to start from, the columns of answers that the base has not at zero.

        Raises:
            ValueError: a base of another shape or task, of an unknown split, or one that has trained on prompts that the
                fine-tuning holds out.

        """
        mine, own = settings.config.to_dict(), self.config.to_dict()
        differ = [key for key in mine if key not in ("gate", "d_vocab_out") and mine[key] != own[key]]
        if differ or self.config.n_answers > settings.config.n_answers:
            told = ", ".join(f"{key} {own[key]!r}, not {mine[key]!r}" for key in differ) or "more answers than the toy"
            raise ValueError(f"The base {self.name!r} has another shape or task than what it is to become: {told}.")
        held_out = ~train_mask(settings)
        seen = int(held_out.sum()) if self.train is None else int((self.train.cpu() & held_out).sum())
        if seen:
            told = (
                "nobody knows which prompts it was trained on"
                if self.train is None
                else f"it was trained on {seen} of them"
            )
            raise ValueError(
                f"The base {self.name!r} must not have seen the prompts that are held out, and {told}. Give both the same "
                "train_fraction and split_seed."
            )
        shapes = parameter_shapes(settings.config)
        state = {name: t for name, t in self.state.items()}
        for name in ("unembed.W_U", "unembed.b_U"):
            old = state[name]
            state[name] = torch.cat((old, old.new_zeros(*shapes[name][:-1], shapes[name][-1] - old.shape[-1])), -1)
        return state

    def brief(self) -> dict[str, Any]:
        """Return what the card of the fine-tuned model says of its base."""
        known = ("grok_step", "steps", "checkpoint_step", "seed", "cpu_seconds")
        told = {key: self.card[key] for key in known if key in self.card}
        accuracy = self.card.get("accuracy", {}).get("held_out")
        return {"name": self.name, **told} | ({} if accuracy is None else {"held_out_accuracy": accuracy})
