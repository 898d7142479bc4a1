"""How many directions can be removed before the model fails, at the last residual and at every site."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mi_ablate.curves import Curve, removal_curve
from mi_ablate.demo.task import Task
from mi_ablate.design import Design, classes, fourier
from mi_ablate.metrics import accuracy
from mi_ablate.model import collect, last_residual, layer_of, run, sites
from mi_ablate.regression import Fit, fit
from mi_ablate.subspace import Subspace

SPARSE = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
Report = Callable[[str], None]


def at_last_residual(task: Task, acts: Tensor, draws: int, report: Report) -> dict[tuple[str, str], Curve]:
    """Curves at the last residual, all inputs, by direction (with controls) and by frequency plane."""
    name, metric = last_residual(task.toy.model), accuracy(task.tokens_of[task.values])
    directions = fit(acts, classes(task.values, task.period)).subspace(name="contrastive SVD")
    planes = _planes(task, acts)
    curves = {}
    for ablation in ("zero", "mean", "resample"):
        report(f"removal at the last residual, {ablation}")
        walk = partial(removal_curve, task.toy.model, task.tokens, at=name, ablation=ablation, draws=draws)
        ks = range(min(40, directions.rank) + 1)
        curves["last residual", ablation] = walk(directions, metric, ks=ks)
        ks = range(0, min(40, planes.rank - planes.rank % 2) + 1, 2)
        whole = walk(planes, metric, ks=ks, step=2, controls={})
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
    names = [n for pattern in ("resid_mid", "resid_post") for n in sites(model, pattern)]
    names = sorted(names, key=lambda n: (layer_of(n) or 0, "post" in n))
    acts = collect(model, task.tokens[train], names)
    basis = {n: fit(acts[n], _present(task.values[train])).subspace(name=n) for n in names}
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


def _present(values: Tensor) -> Design:
    """One-hot of the answers that occur (a small training set may miss some)."""
    return classes(torch.unique(values, return_inverse=True)[1])


def _planes(task: Task, acts: Tensor) -> Subspace:
    """Frequency planes of the answer, the plane with the most variance first, as one ordered basis."""
    every = range(1, (task.period - 1) // 2 + 1)
    found: Fit = fit(acts, fourier(task.values, task.period, every, name="answer"))
    pairs = found.coef.unflatten(0, (-1, 2))
    order = torch.argsort((pairs**2).sum((1, 2)), descending=True)[:24]
    return Subspace.span(pairs[order].flatten(0, 1), "frequency planes")
