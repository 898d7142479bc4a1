"""Double dissociation: does an edit for one task leave the other alone, and the other way round?

Each edit is measured on every task. The relative drop of task t under edit e, with c_t what guessing scores (0 by default), is

    drop[e, t] = (clean_t - edited_et) / (clean_t - c_t)    0: nothing happened, 1: nothing above chance is left

and the selectivity index of an edit compares its own task with the mean of the others:

    index[e] = (own - others) / (|own| + |others|)          1: its own task alone, 0: both alike, -1: the others alone

An edit that improves its own task, or leaves it alone and improves the others, harms nothing that an index could share out:
it has none (NaN). One that changes nothing anywhere has 0.

One edit that hurts one task more than another shows little: tasks differ in how fragile they are. Two edits with opposite
patterns, a double dissociation, cannot be explained that way (Teuber 1955 in neuropsychology; for language models Fartale
et al. 2025, arXiv 2510.03366). When it misleads: the index is a ratio, so an edit that does next to nothing can have an index
of 1: read the drops first, and without ``chance`` a task of two answers is never more than half lost. The default controls,
subspaces drawn from the covariance of each edit's own task and its principal components, say how much of the pattern any
subspace of that rank makes, beside the variance that each removes. The intervals resample examples, each task's by
themselves; where the prompts are the full grid of a toy there is nothing to sample, and intervals belong over training seeds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._places import check_metric
from mi_ablate._shares import percentiles, resampled_means
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.controls import from_moments
from mi_ablate.effects import Controls, clean_logits, draws_of, name_of
from mi_ablate.moments import Moments, site_moments, variance_removed
from mi_ablate.replay import Replay, replay

Task = tuple[Tensor, Callable[..., Tensor]]
Mask = Int[Tensor, "n p"] | Bool[Tensor, "n p"]
_NOTHING = 1e-12


@dataclass(frozen=True, eq=False)
class Dissociation:
    """Every edit on every task: the metric of each example, and the drops of each control ``[draws edit task]``."""

    tasks: tuple[str, ...]
    """The names of the tasks and of the edits, in the order of rows and columns."""
    metrics: tuple[str, ...]
    clean: Mapping[str, Float[Tensor, " n"]]
    """By task."""
    edited: Mapping[str, Mapping[str, Float[Tensor, " n"]]]
    """By edit, then by task."""
    controls: Mapping[str, Float[Tensor, "draws edit task"]]
    chance: Mapping[str, int | float] = field(default_factory=dict)
    """By task, what guessing scores; 0 where it is not named."""
    variance_removed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By edit, then "edited" and each control: the share of the variance of the edit's own task at the edited sites."""

    @property
    def drops(self) -> Float[Tensor, "edit task"]:
        """The relative drop of each task under each edit."""
        rows = [
            [_drop(self.clean[t], self.edited[e][t], self.chance.get(t, 0)) for t in self.tasks] for e in self.tasks
        ]
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def index(self) -> dict[str, float]:
        """The selectivity index of each edit, in [-1, 1]; 0 for an edit without effect, NaN for one that harms nothing."""
        return dict(zip(self.tasks, _index(self.drops).tolist()))

    def intervals(self, level: int | float = 0.95, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return a percentile bootstrap interval of each edit's index over the examples of every task.

        Drops are scaled by the clean mean of the whole sample, not of the resample, which may be near 0. A resample in
        which an edit has no index counts as -1, the least selective. NaN where the edit has none in the whole sample.
        """
        quantiles, generator, columns = percentiles(level), torch.Generator().manual_seed(seed), []
        for t in self.tasks:
            lost = torch.stack([self.clean[t] - self.edited[e][t] for e in self.tasks]).double()
            columns.append(resampled_means(lost, generator) / (self.clean[t].double().mean() - self.chance.get(t, 0)))
        found = _index(torch.stack(columns, dim=-1)).nan_to_num(nan=-1.0)
        low, high = torch.quantile(found, quantiles, dim=0)
        low, high = (torch.where(_index(self.drops).isnan(), torch.nan, end) for end in (low, high))
        return {task: (float(a), float(b)) for task, a, b in zip(self.tasks, low, high)}

    def table(self) -> list[dict[str, Any]]:
        """Return one row an edit: drops, index with its interval, variance removed; each control's mean and range of draws."""
        drops, intervals, index = self.drops, self.intervals(), self.index
        rows = []
        for i, edit in enumerate(self.tasks):
            row: dict[str, Any] = {"edit": edit} | {
                f"drop of {t}": float(drops[i, j]) for j, t in enumerate(self.tasks)
            }
            row |= {"index": index[edit], "low": intervals[edit][0], "high": intervals[edit][1]}
            removed = self.variance_removed.get(edit, {})
            row |= {"variance removed": removed["edited"]} if removed else {}
            for name, x in self.controls.items():
                row |= {f"{name}: drop of {t}": _spread(x[:, i, j]) for j, t in enumerate(self.tasks)}
                row[f"{name}: index"] = self._control_index(name, i)
                row |= {f"{name}: variance removed": removed[name]} if removed else {}
            rows.append(row)
        return rows

    def _control_index(self, name: str, i: int) -> dict[str, float]:
        """The index of a control's mean drops, and its range over the draws that have one."""
        x = self.controls[name]
        return {**_spread(_index(x)[:, i]), "mean": float(_index(x.mean(0))[i])}

    def plot(self, title: str | None = None) -> Any:
        """Return the heat map of the drops, edit by task."""
        from mi_ablate.figures import heat

        beside = {name: x.mean(0)[..., None] for name, x in self.controls.items()}
        rows = [f"{edit} (index {_shown(value)})" for edit, value in self.index.items()]
        title = title or f"What each edit takes from each task ({', '.join(dict.fromkeys(self.metrics))})"
        axes, label = ("edit", "task"), "share lost"
        return heat(self.drops[..., None], rows, self.tasks, axes=axes, label=label, controls=beside, title=title)

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table())

    def __repr__(self) -> str:
        drops, index, parts = self.drops, self.index, []
        for i, edit in enumerate(self.tasks):
            lost = ", ".join(f"{task} {float(drops[i, j]):.2f}" for j, task in enumerate(self.tasks))
            removed = self.variance_removed.get(edit, {})
            variance = f", {removed['edited']:.0%} of the variance" if removed else ""
            parts.append(f"{edit}: drops {lost}, index {_shown(index[edit])}{variance}")
        beside = []
        for name, x in self.controls.items():
            found = []
            for i, edit in enumerate(self.tasks):
                at, removed = self._control_index(name, i), self.variance_removed.get(edit, {})
                spread = f" [{_shown(at['low'])}, {_shown(at['high'])}]" if len(x) > 1 else ""
                found.append(f"{_shown(at['mean'])}{spread}" + (f" ({removed[name]:.0%})" if removed else ""))
            beside.append(f"{name} {', '.join(found)}")
        return f"Dissociation({'; '.join(parts)}; {'index of ' + '; '.join(beside) if beside else 'no control'})"


def double_dissociation(
    model: HookedModel,
    tasks: Mapping[str, Task],
    edits: Mapping[str, FwdHooks],
    *,
    controls: Controls | None = None,
    draws: int = 5,
    chance: int | float | Mapping[str, int | float] = 0.0,
    attention_masks: Mapping[str, Mask] | None = None,
    batch_size: int | None = None,
) -> Dissociation:
    """Return how much every edit takes from every task, and how selective each edit is.

    Args:
        model: the model.
        tasks: by name, ``(tokens [n p], metric)``; a metric that falls with damage and is positive on the clean run, such
            as accuracy (a share of a negative value means nothing).
        edits: by the name of the task that each is meant for, ``edit.at(...)``; the same values for all prompts.
        controls: by name, functions ``(hooks, seed) -> hooks``, applied to every edit. By default subspaces of the same rank
            at the same sites, drawn from the covariance of the edit's own task, and its principal components. ``{}``: none.
        draws: seeds of each random control.
        chance: what guessing scores, one number or one by task (others 0): an accuracy's is 1 / number of answers.
        attention_masks: by task, where prompts are padded.
        batch_size: rows a pass.

    Raises:
        ValueError: other names of edits than of tasks, fewer than two, a metric without a meaningful share, an edit without
            its place or that is empty, masks or chances of tasks that are not there.

    """
    masks = attention_masks or {}
    guessed = dict(chance) if isinstance(chance, Mapping) else dict.fromkeys(tasks, chance)
    _check_tasks(tasks, edits, {"attention_masks": masks, "chance": guessed})
    names, lists = tuple(tasks), {name: list(edits[name]) for name in tasks}
    every = [hook for name in names for hook in lists[name]]
    ready = {
        name: _Ready.of(model, name, *tasks[name], every, masks.get(name), batch_size, guessed.get(name, 0))
        for name in names
    }
    edited = {name: {task: ready[task].score(lists[name]) for task in names} for name in names}
    drawn: dict[str, list[Tensor]] = {}
    removed: dict[str, dict[str, float]] = {}
    for name in names:
        moments = site_moments(model, tasks[name][0], lists[name], masks.get(name), batch_size, {})
        removed[name] = {"edited": variance_removed(lists[name], moments)}
        for kind, control in _controls(controls, moments).items():
            runs = [control(lists[name], seed) for seed in range(draws_of(control, draws))]
            drops = [[ready[task].drop(hooks) for task in names] for hooks in runs]
            drawn.setdefault(kind, []).append(torch.tensor(drops, dtype=torch.float64))
            removed[name][kind] = sum(variance_removed(hooks, moments) for hooks in runs) / len(runs)
    found = {kind: torch.stack(rows, dim=1) for kind, rows in drawn.items()}
    clean = {name: ready[name].clean for name in names}
    metrics = tuple(name_of(metric) for _, metric in tasks.values())
    return Dissociation(names, metrics, clean, edited, found, guessed, removed)


def _controls(given: Controls | None, moments: dict[str, Moments]) -> Controls:
    return {kind: from_moments(kind, moments) for kind in ("covariance", "pca")} if given is None else given


def _check_tasks(tasks: Mapping[str, Any], edits: Mapping[str, Any], by_task: Mapping[str, Mapping[str, Any]]) -> None:
    if set(tasks) != set(edits) or len(tasks) < 2:
        raise ValueError(
            f"tasks {sorted(tasks)} and edits {sorted(edits)} must have the same names, two or more: one edit for each task."
        )
    for what, given in by_task.items():
        unknown = sorted(set(given) - set(tasks))
        if unknown:
            raise ValueError(f"{what} names {unknown}, and the tasks are {sorted(tasks)}.")
    for name, task in tasks.items():
        if not isinstance(task, tuple) or len(task) != 2 or not isinstance(task[0], Tensor):
            raise ValueError(
                f"Task {name!r} is a {type(task).__name__}: give (tokens [n p], metric), such as accuracy(answers)."
            )
        check_metric(task[1])
    for name, hooks in edits.items():
        if not isinstance(hooks, list) or not hooks:
            what = "is empty" if isinstance(hooks, list) else f"is of type {type(hooks).__name__}, without a place"
            raise ValueError(f"The edit for {name!r} {what}: give edit.at('blocks.0.hook_resid_post', pos=-1).")


@dataclass(frozen=True, eq=False)
class _Ready:
    """A task, ready to be run under many edits."""

    runs: Replay
    metric: Callable[..., Tensor]
    reference: list[Tensor] | None
    clean: Float[Tensor, " n"]
    chance: int | float

    @classmethod
    def of(
        cls,
        model: HookedModel,
        name: str,
        tokens: Tensor,
        metric: Callable[..., Tensor],
        hooks: FwdHooks,
        mask: Tensor | None,
        batch_size: int | None,
        chance: int | float,
    ) -> "_Ready":
        runs = replay(model, tokens, hooks, metric, attention_mask=mask, batch_size=batch_size)
        reference = clean_logits(runs, metric)
        clean = runs.score([], metric, reference)
        _check(name, metric, clean, chance)
        return cls(runs, metric, reference, clean, chance)

    def score(self, hooks: FwdHooks) -> Tensor:
        return self.runs.score(hooks, self.metric, self.reference)

    def drop(self, hooks: FwdHooks) -> float:
        return _drop(self.clean, self.score(hooks), self.chance)


def _drop(clean: Tensor, edited: Tensor, chance: int | float) -> float:
    return float((clean.mean() - edited.mean()) / (clean.mean() - chance))


def _index(drops: Float[Tensor, "*draws edit task"]) -> Float[Tensor, "*draws edit"]:
    """(own - mean of the others) / (|own| + |mean of the others|), 0 where both are nothing, NaN where neither is harmed."""
    drops = drops.double()
    own = drops.diagonal(dim1=-2, dim2=-1)
    others = (drops.sum(-1) - own) / (drops.shape[-1] - 1)
    size = own.abs() + others.abs()
    harmless = (own < -_NOTHING) | ((own <= _NOTHING) & (others < -_NOTHING))
    index = torch.where(size < _NOTHING, 0.0, (own - others) / size.clamp(min=_NOTHING))
    return torch.where(harmless, torch.nan, index)


def _spread(draws: Float[Tensor, " draws"]) -> dict[str, float]:
    """Mean and range, of the draws that have a value."""
    there = draws[~draws.isnan()]
    if len(there) == 0:
        return dict.fromkeys(("mean", "low", "high"), float("nan"))
    return {"mean": float(there.mean()), "low": float(there.min()), "high": float(there.max())}


def _shown(index: float) -> str:
    return "none" if index != index else f"{index:.2f}"


def _check(task: str, metric: Callable[..., Tensor], clean: Tensor, chance: int | float) -> None:
    if getattr(metric, "better", "higher") == "lower":
        raise ValueError(f"{name_of(metric)} of task {task!r} rises with damage: use accuracy or logit_diff for drops.")
    if float(clean.mean()) <= chance:
        above = f", not above its chance of {chance:.4g}" if chance else ""
        raise ValueError(
            f"{name_of(metric)} of task {task!r} is {float(clean.mean()):.4g} on the clean run{above}: a share of it means "
            "nothing. Use accuracy, or right and wrong tokens that the model tells apart."
        )
