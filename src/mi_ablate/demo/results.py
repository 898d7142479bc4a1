"""Run the main job and hold its results."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.curves import Curve
from mi_ablate.demo.circle import answer_circle, picture
from mi_ablate.demo.removal import at_every_site, at_last_residual
from mi_ablate.measures.task import Task, accuracies, number_embedding, task_of
from mi_ablate.model import collect, last_residual, sites
from mi_ablate.modular import spectrum
from mi_ablate.toys.checkpoints import Toy
from mi_ablate.toys.tasks import labels

RULE = "the last k before accuracy first falls below the threshold times the clean accuracy"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Demo:
    """All results of the main job. ``removal`` is keyed by (where, ablation)."""

    task: Task
    accuracy: dict[str, float]
    shares: Float[Tensor, " k"]
    frequencies: list[int]
    removal: dict[tuple[str, str], Curve]
    answer_circle: list[dict[str, Any]]
    picture: dict[str, Any]
    attention: dict[str, Any]
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and words, for ``--json``."""
        removal = []
        for (where, ablation), curve in self.removal.items():
            row = {"where": where, "ablation": ablation, "rule": RULE, "curve": curve.table(), "n": curve.n}
            row |= {f"k_at_{int(100 * tau)}": _survivals(curve, tau) for tau in (0.95, 0.5)}
            removal.append(row)
        return {
            "model": self.settings.get("model"),
            "operation": self.task.operation,
            "accuracy": self.accuracy["all"],
            "accuracies": self.accuracy,
            "key_frequencies": [{"frequency": k, "share": float(self.shares[k - 1])} for k in self.frequencies],
            "removal": removal,
            "answer_circle": self.answer_circle,
            "seconds": round(self.seconds, 1),
            "settings": self.settings,
        }


def take_apart(
    toy: Toy,
    *,
    frequencies: int = 10,
    operation: str | None = None,
    full: bool = False,
    draws: int | None = None,
    report: Report = lambda text: None,
) -> Demo:
    """Run the main job on a toy and return its results.

    Args:
        toy: from ``toys.load``.
        frequencies: how many, by energy of W_E, make up the answer circle.
        operation: which of the toy's operations; the first by default.
        full: removal at every site on all inputs, with every ablation and every k (minutes; the estimate is reported).
        draws: seeds of random controls; 20 at the last residual and 5 elsewhere by default.
        report: called with a line before each step.

    """
    start = time.perf_counter()
    task = task_of(toy, operation)
    report("accuracy")
    scores = accuracies(toy)
    shares = spectrum(number_embedding(task)).shares
    chosen = spectrum(number_embedding(task)).top(min(frequencies, len(shares)))
    name = last_residual(toy.model)
    acts = collect(toy.model, task.tokens, name)[name]
    removal = at_last_residual(task, acts, draws or 20, report) | at_every_site(task, draws or 5, full, report)
    report(f"answer circle on {len(chosen)} frequencies")
    circle = answer_circle(task, acts, chosen, draws or 5)
    return Demo(
        task=task,
        accuracy=scores,
        shares=shares,
        frequencies=chosen,
        removal=removal,
        answer_circle=circle,
        picture=picture(task, acts, chosen),
        attention=_attention(task),
        seconds=time.perf_counter() - start,
        settings={
            "model": toy.card.get("name") or repr(toy),
            "frequencies": len(chosen),
            "draws_last_residual": draws or 20,
            "draws_elsewhere": draws or 5,
            "full": full,
            "bases": "training prompts" if toy.train is not None else "a seeded half of the prompts (split unknown)",
        },
    )


def _attention(task: Task) -> dict[str, Any]:
    """Patterns of every head on one prompt, and their mean over all analysed prompts."""
    model = task.toy.model
    names = list(sites(model, "pattern"))
    row = len(task.tokens) // 3 + 5
    shown = collect(model, task.tokens[row : row + 1], names, pos=None)
    several = task.tokens[:: max(1, len(task.tokens) // 1000)]
    mean = {n: x.mean(0) for n, x in collect(model, several, names, pos=None).items()}
    return {
        "n": len(several),
        "tokens": labels(task.toy.config, task.tokens[row]),
        "names": [f"L{layer}H{head}" for layer in range(len(names)) for head in range(model.cfg.n_heads)],
        "patterns": torch.cat([shown[n][0].transpose(0, 1) for n in names]),
        "mean": torch.cat([mean[n].transpose(0, 1) for n in names]),
    }


def _survivals(curve: Curve, tau: float) -> dict[str, Any]:
    found = {run: curve.k_at(tau, run=run) for run in ("edited", *curve.controls)}
    return {
        run: None if k is None else {"k": int(k), "censored": k.censored, "text": str(k)} for run, k in found.items()
    }
