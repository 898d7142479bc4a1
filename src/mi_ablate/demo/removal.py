"""How many directions can be removed before the model fails, at the last residual and at every site."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mi_ablate.curves import Curve, removal_curve
from mi_ablate.measures.bases import SPARSE, contrastive, every_site, planes
from mi_ablate.measures.task import Task
from mi_ablate.metrics import accuracy
from mi_ablate.model import collect, last_residual, run

Report = Callable[[str], None]


def at_last_residual(task: Task, acts: Tensor, draws: int, report: Report) -> dict[tuple[str, str], Curve]:
    """Curves at the last residual, all inputs, by direction (with controls) and by frequency plane."""
    name, metric = last_residual(task.toy.model), accuracy(task.tokens_of[task.values])
    directions = contrastive(acts, task.values, "contrastive SVD")
    by_plane = planes(acts, task.values, task.period)
    curves = {}
    for ablation in ("zero", "mean", "resample"):
        report(f"removal at the last residual, {ablation}")
        walk = partial(removal_curve, task.toy.model, task.tokens, at=name, ablation=ablation, draws=draws)
        ks = range(min(40, directions.rank) + 1)
        curves["last residual", ablation] = walk(directions, metric, ks=ks)
        ks = range(0, min(40, by_plane.rank - by_plane.rank % 2) + 1, 2)
        whole = walk(by_plane, metric, ks=ks, step=2, controls={})
        curves["last residual, by frequency plane", ablation] = _beside(whole, curves["last residual", ablation])
    return curves


def _beside(planes: Curve, directions: Curve) -> Curve:
    """The plane curve with the direction curve's controls at its k: they depend on k, seed and ablation alone."""
    ks = tuple(k for k in planes.ks if k in directions.ks)
    mine, theirs = ([c.ks.index(k) for k in ks] for c in (planes, directions))
    removed = {name: share[theirs] for name, share in directions.variance_removed.items() if name != "edited"}
    return replace(
        planes,
        ks=ks,
        values=planes.values[mine],
        controls={name: draws[:, theirs] for name, draws in directions.controls.items()},
        variance_removed={"edited": planes.variance_removed["edited"][mine], **removed},
    )


def at_every_site(task: Task, draws: int, full: bool, report: Report) -> dict[tuple[str, str], Curve]:
    """Curves at every residual site after the first attention, each with a basis of its own from training prompts."""
    model, train = task.toy.model, task.train
    acts = collect(model, task.tokens[train], every_site(model))
    basis = {name: contrastive(x, task.values[train], name) for name, x in acts.items()}
    held = torch.nonzero(~train).flatten()
    if not full:
        held = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:1000]]
    most = min(40, *(s.rank for s in basis.values()))
    ks = [k for k in (range(most + 1) if full else SPARSE) if k <= most]
    curves = {}
    if full:
        report(f"estimate for every site: {_estimate(task, held, 3 * (len(ks) - 1) * 22) / 60:.0f} minutes")
    for ablation in ("zero", "mean", "resample") if full else ("zero",):
        report(f"removal at every site, {ablation}, {len(held)} held-out inputs, {len(ks) - 1} k, {draws} draws")
        curves["every site", ablation] = removal_curve(
            model,
            task.tokens[held],
            basis,
            accuracy(task.tokens_of[task.values[held]]),
            ks=ks,
            ablation=ablation,
            draws=20 if full else draws,
        )
    return curves


def _estimate(task: Task, rows: Tensor, passes: int) -> float:
    """Seconds for ``passes`` replays of the last position of ``rows``, from one timed pass over some of them."""
    some = rows[:1000]
    start = time.perf_counter()
    with torch.no_grad():
        run(task.toy.model, task.tokens[some])
    share = 1 if task.toy.config.attention == "bidirectional" else 1 / task.tokens.shape[1]
    return (time.perf_counter() - start) * len(rows) / len(some) * passes * share
