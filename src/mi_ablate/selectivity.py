"""Double dissociation: does an edit for one task leave the other alone, and the other way round?

Each edit is measured on every task. The relative drop of task t under edit e is

    drop[e, t] = (clean_t - edited_et) / clean_t            0: nothing happened, 1: nothing is left

and the selectivity index of an edit compares its own task with the mean of the others:

    index[e] = (own - others) / (|own| + |others|)          1: its own task alone, 0: both alike, -1: the others alone

One edit that hurts one task more than another shows little: tasks differ in how fragile they are. Two edits with opposite
patterns, a double dissociation, cannot be explained that way (Teuber 1955 in neuropsychology; for language models Fartale
et al. 2025, arXiv 2510.03366). When it misleads: the index is a ratio, so an edit that does next to nothing can have an index
of 1: read the drops first. Subspaces drawn from the covariance of each edit's own task, the default control, say how much of
the pattern any subspace of that rank makes. The intervals resample examples, each task's by themselves; where the prompts are
the full grid of a toy there is nothing to sample, and intervals belong over training seeds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.controls import from_moments
from mi_ablate.effects import Controls, clean_logits, draws_of, name_of
from mi_ablate.moments import site_moments
from mi_ablate.replay import Replay, replay

Task = tuple[Tensor, Callable[..., Tensor]]
Mask = Int[Tensor, "n p"] | Bool[Tensor, "n p"]
RESAMPLES = 2000
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

    @property
    def drops(self) -> Float[Tensor, "edit task"]:
        """The relative drop of each task under each edit."""
        rows = [[_drop(self.clean[t], self.edited[e][t]) for t in self.tasks] for e in self.tasks]
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def index(self) -> dict[str, float]:
        """The selectivity index of each edit, in [-1, 1]; 0 for an edit that changes nothing."""
        return dict(zip(self.tasks, _index(self.drops).tolist()))

    def intervals(self, level: int | float = 0.95, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return a percentile bootstrap interval of each edit's index over the examples of every task."""
        if not 0 < level < 1:
            raise ValueError(f"level={level} of an interval lies between 0 and 1.")
        generator = torch.Generator().manual_seed(seed)
        drops = torch.stack(list(self._resampled(generator)), dim=-1)
        found = _index(drops.movedim(-1, 0))
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.nanquantile(found, ends, dim=0)
        return {task: (float(a), float(b)) for task, a, b in zip(self.tasks, low, high)}

    def _resampled(self, generator: torch.Generator) -> Iterator[Float[Tensor, "edit task"]]:
        """The drops of resampled examples; the same examples of a task under all edits."""
        stacked = {t: torch.stack([self.clean[t], *(self.edited[e][t] for e in self.tasks)]) for t in self.tasks}
        for _ in range(RESAMPLES):
            columns = []
            for x in stacked.values():
                n = x.shape[1]
                weights = torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n).to(x.dtype)
                means = x @ weights
                columns.append((means[0] - means[1:]) / means[0])
            yield torch.stack(columns, dim=1)

    def table(self) -> list[dict[str, Any]]:
        """Return one row an edit: its drops, its index with the interval, and the index of each control's mean drops."""
        drops, intervals, index = self.drops, self.intervals(), self.index
        drawn = {name: _index(x.mean(0)) for name, x in self.controls.items()}
        rows = []
        for i, edit in enumerate(self.tasks):
            row: dict[str, Any] = {"edit": edit} | {
                f"drop of {t}": float(drops[i, j]) for j, t in enumerate(self.tasks)
            }
            row |= {"index": index[edit], "low": intervals[edit][0], "high": intervals[edit][1]}
            for name, x in self.controls.items():
                row |= {f"{name}: drop of {t}": float(x.mean(0)[i, j]) for j, t in enumerate(self.tasks)}
                row[f"{name}: index"] = float(drawn[name][i])
            rows.append(row)
        return rows

    def plot(self, title: str | None = None) -> Any:
        """Return the heat map of the drops, edit by task."""
        from mi_ablate.figures import heat

        beside = {name: x.mean(0)[..., None] for name, x in self.controls.items()}
        rows = [f"{edit} (index {value:.2f})" for edit, value in self.index.items()]
        title = title or f"What each edit takes from each task ({', '.join(dict.fromkeys(self.metrics))})"
        axes, label = ("edit", "task"), "share lost"
        return heat(self.drops[..., None], rows, self.tasks, axes=axes, label=label, controls=beside, title=title)

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table())

    def __repr__(self) -> str:
        drops, index = self.drops, self.index
        parts = []
        for i, edit in enumerate(self.tasks):
            lost = ", ".join(f"{task} {float(drops[i, j]):.2f}" for j, task in enumerate(self.tasks))
            parts.append(f"{edit}: drops {lost}, index {index[edit]:.2f}")
        beside = "; ".join(
            f"{name} {', '.join(f'{v:.2f}' for v in _index(x.mean(0)).tolist())}" for name, x in self.controls.items()
        )
        return f"Dissociation({'; '.join(parts)}; {'index of ' + beside if beside else 'no control'})"


def double_dissociation(
    model: HookedModel,
    tasks: Mapping[str, Task],
    edits: Mapping[str, FwdHooks],
    *,
    controls: Controls | None = None,
    draws: int = 5,
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
            at the same sites, drawn from the covariance of the edit's own task. ``{}``: none.
        draws: seeds of each random control.
        attention_masks: by task, where prompts are padded.
        batch_size: rows a pass.

    Raises:
        ValueError: other names of edits than of tasks, fewer than two, or a metric without a meaningful share.

    """
    if set(tasks) != set(edits) or len(tasks) < 2:
        raise ValueError(
            f"tasks {sorted(tasks)} and edits {sorted(edits)} must have the same names, two or more: one edit for each task."
        )
    names, masks = tuple(tasks), attention_masks or {}
    every = [hook for hooks in edits.values() for hook in hooks]
    ready = {name: _Ready.of(model, name, *tasks[name], every, masks.get(name), batch_size) for name in names}
    edited = {name: {task: ready[task].score(edits[name]) for task in names} for name in names}
    drawn: dict[str, list[Tensor]] = {}
    for name in names:
        kinds = controls
        if kinds is None:
            moments = site_moments(model, tasks[name][0], edits[name], masks.get(name), batch_size, {})
            kinds = {"covariance": from_moments("covariance", moments)}
        for kind, control in kinds.items():
            runs = [control(edits[name], seed) for seed in range(draws_of(control, draws))]
            drops = [[ready[task].drop(hooks) for task in names] for hooks in runs]
            drawn.setdefault(kind, []).append(torch.tensor(drops, dtype=torch.float64))
    found = {kind: torch.stack(rows, dim=1) for kind, rows in drawn.items()}
    clean = {name: ready[name].clean for name in names}
    return Dissociation(names, tuple(name_of(metric) for _, metric in tasks.values()), clean, edited, found)


@dataclass(frozen=True, eq=False)
class _Ready:
    """A task, ready to be run under many edits."""

    runs: Replay
    metric: Callable[..., Tensor]
    reference: list[Tensor] | None
    clean: Float[Tensor, " n"]

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
    ) -> "_Ready":
        runs = replay(model, tokens, hooks, metric, attention_mask=mask, batch_size=batch_size)
        reference = clean_logits(runs, metric)
        clean = runs.score([], metric, reference)
        _check(name, metric, clean)
        return cls(runs, metric, reference, clean)

    def score(self, hooks: FwdHooks) -> Tensor:
        return self.runs.score(hooks, self.metric, self.reference)

    def drop(self, hooks: FwdHooks) -> float:
        return _drop(self.clean, self.score(hooks))


def _drop(clean: Tensor, edited: Tensor) -> float:
    return float((clean.mean() - edited.mean()) / clean.mean())


def _index(drops: Float[Tensor, "*draws edit task"]) -> Float[Tensor, "*draws edit"]:
    """(own - mean of the others) / (|own| + |mean of the others|), 0 where both are nothing."""
    drops = drops.double()
    own = drops.diagonal(dim1=-2, dim2=-1)
    others = (drops.sum(-1) - own) / (drops.shape[-1] - 1)
    size = own.abs() + others.abs()
    return torch.where(size < _NOTHING, 0.0, (own - others) / size.clamp(min=_NOTHING))


def _check(task: str, metric: Callable[..., Tensor], clean: Tensor) -> None:
    if getattr(metric, "better", "higher") == "lower":
        raise ValueError(f"{name_of(metric)} of task {task!r} rises with damage: use accuracy or logit_diff for drops.")
    if float(clean.mean()) <= 0:
        raise ValueError(
            f"{name_of(metric)} of task {task!r} is {float(clean.mean()):.4g} on the clean run: a share of it means nothing. "
            "Use accuracy, or right and wrong tokens that the model tells apart."
        )
