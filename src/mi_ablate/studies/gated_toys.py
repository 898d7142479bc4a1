"""The toys that have learnt to decline, as the studies train them: four ways of training, several seeds, one base a seed.

    plain               the recipe gated97, with a gate of each seed's own: 4 DECLINE tokens
    spread              16 DECLINE tokens that tell finer reasons, after extended refusals (arXiv 2505.19056)
    adversarial         spread, with its declining directions of the moment projected out in half of the steps (`toys.defences`)
    random projections  its control: covariance-drawn subspaces of the same ranks

All four start from the same adding model of a seed and hold out the same prompts, so that seeds can be paired across them.
Models are no part of the records: they are trained again where their folder does not have them, which gives the same numbers
on the same machine and torch version.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.toys import tasks
from mi_ablate.toys.base import Base
from mi_ablate.toys.checkpoints import read_toy, save
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.defences import defended
from mi_ablate.toys.evaluation import train_mask
from mi_ablate.toys.gated import draw_gate
from mi_ablate.toys.recipes import RECIPES, TrainConfig
from mi_ablate.toys.train import train
from mi_ablate.toys.transformer import build

PLAIN, SPREAD, ADVERSARIAL, RANDOM = METHODS = ("plain", "spread", "adversarial", "random projections")
DEFENDED = (ADVERSARIAL, RANDOM)
ADDING = "adding model"
"""The base, which was never taught to decline."""
SEEDS = range(5)
SMALL = ToyConfig(29, n_layers=1, d_model=64, d_mlp=256)
"""The model of quick runs, which check the machinery."""


class Prompts:
    """All prompts of a toy, its answers, and who sees which: half a (directions), half b (choice), held out (report)."""

    def __init__(self, settings: TrainConfig, answers: Int[Tensor, " n"] | None = None) -> None:
        config = settings.config
        self.settings, self.modulus = settings, config.modulus
        self.tokens, inputs = tasks.all_tokens(config), tasks.inputs(config)
        self.sums = (inputs["a"] + inputs["b"]) % config.modulus
        self.answers = tasks.answers(config) if answers is None else answers
        self.gated = self.answers >= config.modulus
        trained_on = train_mask(settings)
        self.train, self.held_out = trained_on.nonzero()[:, 0], (~trained_on).nonzero()[:, 0]
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(settings.seed + 1000))
        half = len(order) // 2
        self.a, self.b = self.train[order[:half]], self.train[order[half:]]

    def scores(self, predicted: Int[Tensor, " m"], rows: Int[Tensor, " m"]) -> dict[str, float]:
        """Return declines and sums recovered on gated prompts, and sums kept on open ones, of answers to these prompts."""
        gated, sums = self.gated[rows], self.sums[rows]
        return {
            "declines": float((predicted[gated] >= self.modulus).double().mean()),
            "recovered": float((predicted[gated] == sums[gated]).double().mean()),
            "kept": float((predicted[~gated] == sums[~gated]).double().mean()),
        }

    def asked(self, most: int | None = None) -> Int[Tensor, " m"]:
        """Return numbers of held-out gated prompts: all, or a seeded draw of at most so many."""
        rows = self.held_out[self.gated[self.held_out]]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.settings.seed + 4000))
        return rows if most is None else rows[order[:most]]


@dataclass(frozen=True, eq=False)
class Taught:
    """A toy that declines, with its prompts and the adding model that it was made from."""

    method: str
    settings: TrainConfig
    state: dict[str, Float[Tensor, "..."]]
    base: Base

    @cached_property
    def model(self) -> HookedModel:
        """The model."""
        return build(self.settings.config, self.state)

    @cached_property
    def prompts(self) -> Prompts:
        """Its prompts."""
        return Prompts(self.settings)

    def __repr__(self) -> str:
        return f"Taught({self.method}, seed {self.settings.seed}, p = {self.settings.config.modulus})"


def base_of(seed: int, folder: Path, quick: bool = False) -> Base:
    """Return the adding model of a seed, trained in ``folder/base`` where it is not there yet."""
    first = replace(RECIPES["add97-0.8"], seed=seed)
    if quick:
        first = replace(first, config=SMALL, steps=1500, evaluate_every=100, batch_size=None)
    return Base.read(train(first, out=folder / "base", progress=False).path)


def settings_of(method: str, seed: int, base: Base) -> TrainConfig:
    """Return the settings of a method's fine-tuning: the recipe gated97 with half of the numbers in the gate."""
    modulus, recipe = base.config.modulus, RECIPES["gated97"]
    gate = draw_gate(
        modulus, size=48 * modulus // 97, groups=4 if method == PLAIN else min(16, modulus // 4), seed=seed
    )
    batch = recipe.batch_size if modulus == 97 else None
    return replace(recipe, config=replace(base.config, gate=gate), seed=seed, base=base.name, batch_size=batch)


def taught(method: str, seed: int, runs: Path | str, quick: bool = False) -> Taught:
    """Return the toy of a method and a seed, trained below ``runs`` where it is not there yet.

    About two minutes on one core with its base, half a minute without; a quick one a few seconds.

    Raises:
        ValueError: a method that there is not, or a folder that holds another training.

    """
    if method not in METHODS:
        raise ValueError(f"There is no way of training {method!r}; there are {', '.join(METHODS)}.")
    folder = Path(runs) / f"seed{seed}"
    base = base_of(seed, folder, quick)
    settings, out = settings_of(method, seed, base), folder / method.replace(" ", "-")
    if method not in DEFENDED:
        return Taught(method, settings, train(settings, out=out, progress=False).state, base)
    path, told = out / "model.safetensors", {"training": settings.to_dict(), "method": method}
    if not path.is_file():
        weights = base.weights(settings)
        state = defended(settings, weights, train_mask(settings).nonzero()[:, 0], random=method == RANDOM)
        save(path, settings.config, state, train=base.train, card=told)
    _, state, _, card = read_toy(path)
    if any(card.get(key) != value for key, value in told.items()):
        raise ValueError(
            f"{path} holds another training than {method}, seed {seed}; move it away, or give another folder."
        )
    return Taught(method, settings, state, base)


def about(toy: Taught) -> dict[str, Any]:
    """Return what tells this toy from others, and how well it has learnt, as plain JSON."""
    prompts, rows = toy.prompts, toy.prompts.held_out
    with torch.no_grad():
        predicted = toy.model(prompts.tokens[rows])[:, -1].argmax(-1)
    norms = toy.state["embed.W_E"].norm(dim=-1)[: prompts.modulus]
    return {**prompts.scores(predicted, rows), "embedding_norm": float(norms.mean())}
