"""What a training run is judged by: loss and accuracy on all prompts, and when it has grokked and is stable.

Held-out accuracy goes on dipping for short spells after grokking, so a model is taken at a step whose
neighbourhood is known. A history row is: step, train loss, train accuracy, held-out loss, held-out accuracy,
then held-out accuracy of each operation, or with a gate of open and of gated prompts.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import tasks
from .config import ToyConfig
from .forward import Params, last_logits
from .recipes import TrainConfig

MODEL_FORMAT = "mi_ablate toy 1"
GROKKED, STABLE = 0.95, 0.99
CHUNK, HISTORY_ROWS = 2048, 200


def train_mask(settings: TrainConfig) -> Bool[Tensor, " n"]:
    """Return which prompts a run with these settings trains on."""
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    return tasks.split(settings.config, settings.train_fraction, seed)


class Data:
    """All prompts of a task on one device, and which of them are trained on."""

    def __init__(self, settings: TrainConfig, device: str) -> None:
        config = settings.config
        self.config = config
        self.mask = train_mask(settings)
        self.tokens, self.answers = tasks.all_tokens(config).to(device), tasks.answers(config).to(device)
        self.chosen = self.mask.nonzero()[:, 0].to(device)
        self.train_tokens, self.train_answers = self.tokens[self.chosen], self.answers[self.chosen]
        groups = 2 * tasks.parts(config) + self.mask
        self.members = F.one_hot(groups, 2 * len(config.parts)).T.to(device, torch.float64)
        self.sizes = self.members.sum(1).cpu().reshape(-1, 2)

    def evaluate(
        self, params: Mapping[str, Float[Tensor, "..."]]
    ) -> tuple[Float[Tensor, "op set"], Float[Tensor, "op set"]]:
        """Sums of the loss and of correct answers, held-out (0) and train (1), per operation, on the CPU."""
        sums = self.sums(scores(self.config, params, self.tokens, self.answers)).cpu()
        return sums[..., 0], sums[..., 1]

    def sums(self, scored: Float[Tensor, "n 2"]) -> Float[Tensor, "op set 2"]:
        """Loss and correctness of every prompt, added up per operation and set, on the device."""
        return (self.members @ scored.double()).reshape(-1, 2, 2)

    def row(self, step: int, params: Mapping[str, Float[Tensor, "..."]]) -> list[int | float]:
        """Step, train loss and accuracy, held-out loss and accuracy, then held-out accuracy per operation."""
        return self.row_of(step, *self.evaluate(params))

    def row_of(self, step: int, loss: Float[Tensor, "op set"], right: Float[Tensor, "op set"]) -> list[int | float]:
        """The same row from the sums that `evaluate` returns."""
        mean = [float(x.sum(0)[i] / self.sizes.sum(0)[i]) for i in (1, 0) for x in (loss, right)]
        return [step, *mean, *(right / self.sizes)[:, 0].tolist()]


def stable_rule(settings: TrainConfig) -> str:
    """Return, in words, which step's weights are kept."""
    part = "operation" if settings.config.gate is None else "part"
    return (
        f"held-out accuracy (of the worst {part}) >= {STABLE} at an evaluation and at all those of the "
        f"{settings.stable_steps} steps before it, the latest such step; the last step where there is none"
    )


def scores(
    config: ToyConfig, params: Params, tokens: Int[Tensor, "n pos"], answers: Int[Tensor, " n"]
) -> Float[Tensor, "*model n 2"]:
    """Loss of every prompt and whether it is answered right (1 or 0); of all models where ``params`` are a stack."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(tokens), CHUNK):
            logits = last_logits(config, params, tokens[start : start + CHUNK])
            right = answers[start : start + CHUNK].expand(logits.shape[:-1])
            loss = F.cross_entropy(logits.flatten(0, -2), right.flatten(), reduction="none").view(right.shape)
            parts.append(torch.stack((loss, (logits.argmax(-1) == right).to(loss.dtype)), -1))
    return torch.cat(parts, -2)


def stable(history: list[list[int | float]], steps: int) -> bool:
    """Whether the worst operation's held-out accuracy was high enough over the last ``steps`` steps."""
    window = [row for row in history if row[0] > history[-1][0] - steps]
    return history[-1][0] >= steps and all(min(row[5:]) >= STABLE for row in window)


def finished(config: TrainConfig, history: list[list[int | float]]) -> bool:
    """Whether the run may stop before ``config.steps``: stable for ``config.stop_when_stable_for`` steps."""
    wanted = config.stop_when_stable_for
    return wanted is not None and bool(history) and stable(history, wanted)


def _first(history: list[list[int | float]], column: int) -> int | None:
    return next((int(row[0]) for row in history if row[column] >= GROKKED), None)


def _sets(sums: Float[Tensor, " set"], sizes: Float[Tensor, " set"]) -> dict[str, float]:
    names = {"train": sums[1] / sizes[1], "held_out": sums[0] / sizes[0], "all": sums.sum() / sizes.sum()}
    return {name: float(value) for name, value in names.items()}


def measured(
    data: Data, params: Mapping[str, Float[Tensor, "..."]], history: list[list[int | float]]
) -> dict[str, Any]:
    """Return loss and accuracy of these parameters (per operation where several), and the run's history."""
    names = data.config.parts
    sums = dict(zip(("loss", "accuracy"), data.evaluate(params)))
    card: dict[str, Any] = {key: _sets(x.sum(0), data.sizes.sum(0)) for key, x in sums.items()}
    if len(names) > 1:
        card["per_operation" if data.config.gate is None else "per_part"] = {
            name: {key: _sets(x[i], data.sizes[i]) for key, x in sums.items()} | {"grok_step": _first(history, 5 + i)}
            for i, name in enumerate(names)
        }
    thin = max(1, -(-len(history) // (HISTORY_ROWS - 1)))
    rows = history[::thin] + ([history[-1]] if (len(history) - 1) % thin else [])
    return card | {
        "grok_step": _first(history, 4),
        "grok_rule": f"first evaluation with held-out accuracy >= {GROKKED}",
        "history": [[int(row[0]), *(round(x, 6) for x in row[1:5])] for row in rows],
    }


def versions() -> dict[str, str]:
    """Return the versions that a card records."""
    try:
        own = version("mi_ablate")
    except PackageNotFoundError:
        own = "source tree"
    return {"python": platform.python_version(), "torch": torch.__version__, "mi_ablate": own}
