"""The answer circle: written by a fit that has not seen the answer, turned, and ablated, each beside its controls."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate import controls
from mi_ablate.effects import Effect, effect
from mi_ablate.interventions import Ablate, Intervention, Rotate
from mi_ablate.measures.circle import write
from mi_ablate.measures.task import Task, hours
from mi_ablate.metrics import accuracy
from mi_ablate.model import last_residual
from mi_ablate.regression import fit
from mi_ablate.subspace import Subspace

SHIFTS = (1, 5, 20)


def answer_circle(task: Task, acts: Float[Tensor, "n d"], frequencies: list[int], draws: int) -> list[dict[str, Any]]:
    """Return one row a writing: accuracy on the written answer, beside its controls.

    The answers are cut into three random thirds. Each target is written by a fit to the other two thirds of the answers,
    so no fit has seen an activation of the answer that it writes.
    """
    n, rows = len(acts), []
    third = torch.randperm(task.period, generator=torch.Generator().manual_seed(0)) % 3
    other = 1 + torch.randint(task.period - 1, (n,), generator=torch.Generator().manual_seed(1))
    writes = [("another answer", other)] + [(f"+{d}", torch.tensor(d)) for d in SHIFTS]
    for label, shift in writes:
        target = (task.values + shift) % task.period
        parts = [_write(task, acts, target, third, fold, frequencies, draws) for fold in range(3)]
        rows.append({"write": label, **_joined(parts)})
    return rows + _constant_edits(task, acts, frequencies, draws)


def _write(
    task: Task,
    acts: Tensor,
    target: Int[Tensor, " n"],
    third: Int[Tensor, " period"],
    fold: int,
    frequencies: list[int],
    draws: int,
) -> Effect:
    """Write the targets of one third of the answers, with a fit to the others."""
    seen = third[task.values] != fold
    here = third[target] == fold
    design = hours(task, task.values[seen], frequencies)
    known, rows = fit(acts[seen], design), torch.nonzero(here).flatten()
    drawn = controls.covariance(acts)
    return write(task, rows, target[here], frequencies, (acts[seen], design), known, drawn, draws)


def _constant_edits(task: Task, acts: Tensor, frequencies: list[int], draws: int) -> list[dict[str, Any]]:
    """The circle rotated (each plane of frequency k by 2πkδ/p, whatever the input), and mean-ablated."""
    found = fit(acts, hours(task, task.values, frequencies))
    planes = Subspace.span(found.coef, "answer circle, plane by plane")
    beside = {"covariance-drawn": controls.covariance(acts), "top PCA": controls.pca(acts)}
    where, rows = last_residual(task.toy.model), []
    edits: list[tuple[str, Intervention, int]] = [
        ("the mean (ablation): own answer", Ablate(planes, to=acts.double().mean(0)), 0)
    ]
    if planes.rank == 2 * len(frequencies):
        angle = 2 * torch.pi * torch.tensor(frequencies, dtype=torch.float64) / task.period
        edits = [(f"turned by +{d}", Rotate(planes, angle * d, centre=found.mean), d) for d in SHIFTS] + edits
    for label, edit, shift in edits:
        answers = task.tokens_of[(task.values + shift) % task.period]
        hooks = edit.at(where, pos=-1)
        seen = effect(task.toy.model, task.tokens, hooks, accuracy(answers), controls=beside, draws=draws)
        rows.append({"write": label, **_joined([seen])})
    return rows


def _joined(parts: list[Effect]) -> dict[str, Any]:
    """Pool effects on disjoint examples."""
    edited = torch.cat([part.edited for part in parts])
    beside = {}
    for name in parts[0].controls:
        means = torch.cat([part.controls[name] for part in parts], dim=1).mean(1)
        beside[name] = {"mean": float(means.mean()), "low": float(means.min()), "high": float(means.max())}
    removed = {name: sum(p.variance_removed[name] for p in parts) / len(parts) for name in parts[0].variance_removed}
    return {"accuracy": float(edited.mean()), "n": len(edited), "controls": beside, "variance_removed": removed}


def picture(task: Task, acts: Tensor, frequencies: list[int]) -> dict[str, Any]:
    """Class means and predictions in the fit's own cos and sin of the first two frequencies; a third is unseen."""
    third = torch.randperm(task.period, generator=torch.Generator().manual_seed(0)) % 3
    seen = third[task.values] != 0
    known = fit(acts[seen], hours(task, task.values[seen], frequencies))
    every = torch.arange(task.period)
    means = torch.stack([acts[task.values == v].double().mean(0) for v in every])
    hands = torch.linalg.pinv(known.coef)
    coords = (means - known.intercept) @ hands
    predicted = (known.predict(hours(task, every, frequencies)) - known.intercept) @ hands
    return {
        "planes": {frequencies[i]: coords[:, 2 * i : 2 * i + 2] for i in range(min(2, len(frequencies)))},
        "predicted": {frequencies[i]: predicted[:, 2 * i : 2 * i + 2] for i in range(min(2, len(frequencies)))},
        "fitted": third != 0,
    }
