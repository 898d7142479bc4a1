"""The main job: take a trained modular-arithmetic transformer apart, live, with a control beside every effect.

1. Accuracy. 2. Key frequencies, by energy of W_E. 3. Removal: how many directions of the answer's class means can go
before the model fails. 4. The answer circle: a fit to two thirds of the answers writes answers that it has never seen.
5. Attention of every head.

Multiplication is analysed in exponents of a primitive root (`mi_ablate.modular.discrete_log`), without the zero operand;
"+5" then means five steps of the exponent. What the page may claim: a circle that can be written says what the model
*writes*, not which algorithm wrote it; models with constant attention ("Pizza", Zhong et al. 2023) have one too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate import controls
from mi_ablate.design import Design, classes, fourier
from mi_ablate.effects import Curve, Effect, effect, removal_curve
from mi_ablate.interventions import Ablate, Intervention, Rotate
from mi_ablate.metrics import accuracy
from mi_ablate.model import collect, last_residual, run, sites, split
from mi_ablate.modular import discrete_log, spectrum
from mi_ablate.regression import Fit, fit
from mi_ablate.subspace import Subspace
from mi_ablate.toys.checkpoints import Toy

SPARSE = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
SHIFTS = (1, 5, 20)
RULE = "the last k before accuracy first falls below the threshold times the clean accuracy"
Report = Callable[[str], None]


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
    task = _task(toy, operation)
    report("accuracy")
    scores = _accuracies(toy)
    shares = spectrum(_embedding(task)).shares
    chosen = spectrum(_embedding(task)).top(min(frequencies, len(shares)))
    name = last_residual(toy.model)
    acts = collect(toy.model, task.tokens, name)[name]
    removal = _removal_last(task, acts, draws or 20, report) | _removal_every(task, draws or 5, full, report)
    report(f"answer circle on {len(chosen)} frequencies")
    circle = answer_circle(task, acts, chosen, draws or 5)
    return Demo(
        task=task,
        accuracy=scores,
        shares=shares,
        frequencies=chosen,
        removal=removal,
        answer_circle=circle,
        picture=_picture(task, acts, chosen),
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


def _constant_edits(task: Task, acts: Tensor, frequencies: list[int], draws: int) -> list[dict[str, Any]]:
    """The circle rotated (each plane of frequency k by 2πkδ/p, whatever the input), and mean-ablated."""
    found = fit(acts, _hours(task, task.values, frequencies))
    planes = Subspace.span(found.coef, "answer circle, plane by plane")
    beside = {"covariance-drawn": controls.covariance(acts), "top PCA": controls.pca(acts)}
    where, rows = last_residual(task.toy.model), []
    edits: list[tuple[str, Intervention, int]] = [("the mean (ablation): own answer", Ablate(planes, to=acts.double().mean(0)), 0)]
    if planes.rank == 2 * len(frequencies):
        angle = 2 * torch.pi * torch.tensor(frequencies, dtype=torch.float64) / task.period
        edits = [(f"turned by +{d}", Rotate(planes, angle * d), d) for d in SHIFTS] + edits
    for label, edit, shift in edits:
        answers = task.tokens_of[(task.values + shift) % task.period]
        hooks = edit.at(where, pos=-1)
        seen = effect(task.toy.model, task.tokens, hooks, accuracy(answers), controls=beside, draws=draws)
        rows.append({"write": label, **_joined([seen])})
    return rows


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
    design = _hours(task, task.values[seen], frequencies)
    known = fit(acts[seen], design)
    wanted = _hours(task, target[here], frequencies)
    edit = Ablate(known.subspace(name="answer circle"), to=known.predict(wanted))
    drawn = controls.covariance(acts)
    return effect(
        task.toy.model,
        task.tokens[here],
        edit.at(last_residual(task.toy.model), pos=-1),
        accuracy(task.tokens_of[target[here]]),
        controls={
            "shuffled labels": controls.shuffled(acts[seen], design, wanted),
            "covariance-drawn": drawn,
        },
        draws=draws,
    )


def _joined(parts: list[Effect]) -> dict[str, Any]:
    """Pool effects on disjoint examples."""
    edited = torch.cat([part.edited for part in parts])
    beside = {}
    for name in parts[0].controls:
        means = torch.cat([part.controls[name] for part in parts], dim=1).mean(1)
        beside[name] = {"mean": float(means.mean()), "low": float(means.min()), "high": float(means.max())}
    removed = {name: sum(p.variance_removed[name] for p in parts) / len(parts) for name in parts[0].variance_removed}
    return {"accuracy": float(edited.mean()), "n": len(edited), "controls": beside, "variance_removed": removed}


def _removal_last(task: Task, acts: Tensor, draws: int, report: Report) -> dict[tuple[str, str], Curve]:
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


def _removal_every(task: Task, draws: int, full: bool, report: Report) -> dict[tuple[str, str], Curve]:
    """Curves at every residual site after the first attention, each with a basis of its own from training prompts."""
    model, train = task.toy.model, task.train
    names = [n for pattern in ("resid_mid", "resid_post") for n in sites(model, pattern)]
    names = sorted(names, key=lambda n: (int(n.split(".")[1]), "post" in n))
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


def _picture(task: Task, acts: Tensor, frequencies: list[int]) -> dict[str, Any]:
    """Class means and predictions in the fit's own cos and sin of the first two frequencies; a third is unseen."""
    third = torch.randperm(task.period, generator=torch.Generator().manual_seed(0)) % 3
    seen = third[task.values] != 0
    known = fit(acts[seen], _hours(task, task.values[seen], frequencies))
    every = torch.arange(task.period)
    means = torch.stack([acts[task.values == v].double().mean(0) for v in every])
    hands = torch.linalg.pinv(known.coef)
    coords = (means - known.intercept) @ hands
    predicted = (known.predict(_hours(task, every, frequencies)) - known.intercept) @ hands
    return {
        "planes": {frequencies[i]: coords[:, 2 * i : 2 * i + 2] for i in range(min(2, len(frequencies)))},
        "predicted": {frequencies[i]: predicted[:, 2 * i : 2 * i + 2] for i in range(min(2, len(frequencies)))},
        "fitted": third != 0,
    }


def _hours(task: Task, values: Int[Tensor, " n"], frequencies: list[int]) -> Design:
    """The design of the answer circle."""
    return fourier(values, task.period, frequencies, name="answer")


def _attention(task: Task) -> dict[str, Any]:
    """Patterns of every head on one prompt, and their mean over all analysed prompts."""
    from mi_ablate.toys.tasks import labels

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


def _accuracies(toy: Toy) -> dict[str, float]:
    """Accuracy over all prompts, by train and held out where known, and by operation where several."""
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


def _task(toy: Toy, operation: str | None) -> Task:
    config, p = toy.config, toy.modulus
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


def _embedding(task: Task) -> Float[Tensor, "period d"]:
    """The number embeddings in the order of the group: residues, or powers of the root."""
    model: Any = task.toy.model
    return model.embed.W_E.detach()[task.tokens_of]


def _survivals(curve: Curve, tau: float) -> dict[str, Any]:
    found = {run: curve.k_at(tau, run=run) for run in ("edited", *curve.controls)}
    return {run: None if k is None else {"k": int(k), "censored": k.censored, "text": str(k)} for run, k in found.items()}
