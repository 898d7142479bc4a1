"""Tune how strongly each component is edited, and in which direction: behaviour against collateral, as a Pareto front.

A trial removes s(component) times the part along a direction from what every component writes to the stream. s is one
`layer_kernel` for the attention writers and one for the MLP writers (peak, its position in depth, the floor that it falls
to, over how many layers) and a number for the embeddings. The direction is one for all layers, that of a real-valued layer
(between two layers the unit directions are mixed in proportion, and the mix made unit), or each layer's own. The idea
is heretic's, which tunes abliteration with optuna's tree-structured Parzen estimator; the embeddings are added, and optuna
(extra ``tune``) does the search here too. The objectives, all of them to be low:

    left     share of the behaviour that is left: the mean over positive prompts of max(0, m - c-) / (c+ - c-), with m the
             metric under the edit, c+ and c- its clean means on the two classes. Nothing is gained below c-: strengths
             above 1 can push a log-odds ever lower, which is another behaviour rather than less of this one
    kl       mean KL(clean || edited) of the negative prompts' next token, in nats

and any further function of the hooks. The first trial is the plain edit, strength 1 everywhere, so the front shows what
the tuning is worth. With a file every trial is kept as soon as it is done, and the same call goes on where one was stopped
(with other draws than an unbroken search; a trial that was cut off is not counted).

When it misleads: the best of many trials on few prompts is better there than elsewhere, so measure the trial that you keep
on other prompts, with `effect` and its controls; a random direction tuned for as long is the control of the tuning
itself. Little may be left because the model is broken in a way that the KL of one token on the negative prompts does not
show.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_ablate._judging import Named, Rules
from mi_ablate._search import Scorer, searched
from mi_ablate._tuning_space import Space, hashed, space_of
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.controls import from_moments
from mi_ablate.effects import clean_logits, name_of
from mi_ablate.find import Candidates
from mi_ablate.find._inputs import Labels, two_classes
from mi_ablate.metrics import PositionMetric, kl
from mi_ablate.model import check_tokens
from mi_ablate.moments import site_moments
from mi_ablate.replay import replay
from mi_ablate.subspace import Subspace


@dataclass(frozen=True, eq=False, repr=False)
class Tuned:
    """The trials of a search, what they are compared with, and the hooks of each."""

    trials: tuple[dict[str, Any], ...]
    """One row a trial: its number, the objectives, and its parameters."""
    beside: tuple[dict[str, Any], ...]
    """One row for the clean model, the plain edit, and each draw of its covariance-drawn control."""
    objectives: tuple[str, ...]
    space: Space = field(repr=False)

    @property
    def front(self) -> list[dict[str, Any]]:
        """The trials that no other trial beats in one objective without losing in another, the least left first."""

        def values(row: dict[str, Any]) -> list[float]:
            return [row[name] for name in self.objectives]

        def beaten(row: dict[str, Any]) -> bool:
            mine = values(row)
            return any(all(a <= b for a, b in zip(values(o), mine)) and values(o) != mine for o in self.trials)

        return sorted((row for row in self.trials if not beaten(row)), key=values)

    def best(self, kl_max: int | float = 0.1) -> dict[str, Any]:
        """Return the trial with the least left among those with a KL of at most ``kl_max``.

        Raises:
            ValueError: no trial has so small a KL.

        """
        within = [row for row in self.trials if row["kl"] <= kl_max]
        if not within:
            least = min(row["kl"] for row in self.trials)
            raise ValueError(f"No trial has a KL of at most {kl_max}; the smallest is {least:.3g}. Run more of them.")
        return min(within, key=lambda row: row["left"])

    def hooks(self, trial: int) -> FwdHooks:
        """Return the edit of a trial, for `effect`, `bake_` and `save`.

        Raises:
            KeyError: no such trial, or one that failed.

        """
        for row in self.trials:
            if row["trial"] == trial:
                return self.space.hooks(row)
        raise KeyError(
            f"There is no finished trial {trial}; there are {[row['trial'] for row in self.trials][:10]} ..."
        )

    def table(self) -> list[dict[str, Any]]:
        """Return what the trials are compared with, and then the front."""
        return [*self.beside, *({"run": f"trial {row['trial']}", **row} for row in self.front)]

    def plot(self) -> Any:
        """Return the figure of what is left against KL: all trials, the front, the plain edit and its control."""
        import plotly.graph_objects as go

        from mi_ablate.figures._style import GREY, PALETTE, finish

        figure, front = go.Figure(), self.front
        drawn = [("trials", self.trials, {"color": GREY, "size": 6, "opacity": 0.5}, "markers")]
        drawn += [("front", tuple(front), {"color": PALETTE[0], "size": 8}, "lines+markers")]
        drawn += [
            (name, tuple(row for row in self.beside if row["run"].split(",")[0] == name), marker, "markers")
            for name, marker in {
                "clean": {"color": "#222222", "symbol": "diamond", "size": 11},
                "plain edit": {"color": PALETTE[1], "symbol": "square", "size": 11},
                "covariance": {"color": PALETTE[2], "symbol": "x", "size": 9},
            }.items()
        ]
        for name, rows, marker, mode in drawn:
            text = [f"trial {row['trial']}" if "trial" in row else row["run"] for row in rows]
            x, y = [row["kl"] for row in rows], [row["left"] for row in rows]
            figure.add_scatter(x=x, y=y, text=text, name=name, mode=mode, marker=marker)
        figure.update_layout(xaxis_title="KL on negative prompts, nats", yaxis_title="share of the behaviour left")
        title = f"{len(self.trials)} trials, {len(front)} of them on the front: behaviour left against collateral"
        margin = {"l": 60, "r": 15, "t": 35, "b": 60}
        return finish(figure, title, height=420, margin=margin, wide={"showlegend": True}, narrow={"showlegend": False})

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table()[:20])

    def __repr__(self) -> str:
        low = self.front[0]
        scores = ", ".join(f"{name} {low[name]:.3g}" for name in self.objectives[:2])
        return f"Tuned({len(self.trials)} trials, {len(self.front)} on the front: {scores} at trial {low['trial']})"


def tune(
    model: HookedModel,
    found: Candidates | Mapping[Named, Subspace],
    start: Named,
    tokens: Int[Tensor, "n p"],
    labels: Labels,
    metric: Callable[..., Tensor],
    *,
    trials: int = 60,
    path: str | Path | None = None,
    also: Mapping[str, Scorer] | None = None,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    draws: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tuned:
    """Search over strengths by component and over the direction; the negative prompts' clean logits are kept meanwhile.

    Args:
        model: hooked.
        found: candidates of other prompts, or subspaces by (site, pos).
        start: the candidate to remove first, such as `Choice.best`; other layers' are at its position and kind of site.
        tokens: validation prompts of both classes.
        labels: True where the behaviour is there.
        metric: higher where the behaviour is there, bound to these prompts; for a function of your own the positive
            prompts' clean logits are kept too, at all positions, unless its attribute ``needs_clean`` is False.
        trials: in all, those in the file included.
        path: the journal file to keep trials in and to go on from; None keeps them in memory.
        also: further objectives, functions of the hooks; lower is better.
        attention_mask: 1 for real tokens.
        batch_size: prompts a pass.
        draws: of the covariance-drawn control of the plain edit.
        seed: of the search.
        progress: called with (trials done, trials in all).

    Raises:
        ImportError: optuna is missing. KeyError: ``start`` is no candidate. ValueError: a file of another search.

    """
    check_tokens(tokens)
    positive, _ = two_classes(labels, len(tokens), "tune")
    Rules("bypass", 0, None, None).check_metric(metric, len(tokens))
    if trials < 1 or draws < 0:
        raise ValueError(f"trials={trials}, draws={draws}: at least one trial, and 0 or more draws of the control.")
    space = space_of(model, found, start)
    given: dict[str, Any] = {"attention_mask": attention_mask, "batch_size": batch_size}
    space.check_names(also or {})
    own, levels = _scorers(model, tokens, positive.cpu(), metric, given)
    scorers, read = {**own, **(also or {})}, [] if attention_mask is None else [attention_mask.bool()]
    search: dict[str, Any] = {"prompts": hashed(tokens, positive, *read), "directions": space.hash()}
    search |= {"metric": name_of(metric), "objectives": list(scorers), "clean scores": levels}
    rows = searched(space, scorers, search, trials, path, seed, progress)
    beside = [
        {"run": run, **{name: float(score(hooks)) for name, score in scorers.items()}}
        for run, hooks in _runs(model, tokens, space, draws, given).items()
    ]
    return Tuned(tuple(rows), tuple(beside), tuple(scorers), space)


def _runs(model: HookedModel, tokens: Tensor, space: Space, draws: int, given: dict[str, Any]) -> dict[str, FwdHooks]:
    """What the trials are compared with: no edit, the plain one, and the same one in covariance-drawn directions."""
    plain = space.hooks(space.plain)
    if not draws:
        return {"clean": [], "plain edit": plain}
    control = from_moments(
        "covariance", site_moments(model, tokens, plain, given["attention_mask"], given["batch_size"], {})
    )
    return {"clean": [], "plain edit": plain, **{f"covariance, draw {i}": control(plain, i) for i in range(draws)}}


def _scorers(
    model: HookedModel, tokens: Tensor, positive: Tensor, metric: Callable[..., Tensor], given: dict[str, Any]
) -> tuple[dict[str, Scorer], list[float]]:
    """The two objectives, each with its own prompts, and the clean means of the metric, c- and c+."""

    def runs_of(chosen: Tensor, what: Callable[..., Tensor]) -> Callable[[FwdHooks], Tensor]:
        mask = None if given["attention_mask"] is None else given["attention_mask"][chosen]
        runs = replay(model, tokens[chosen], [], what, attention_mask=mask, batch_size=given["batch_size"])
        reference = clean_logits(runs, what)
        return lambda hooks: runs.score(hooks, what, reference)

    behaving = runs_of(positive, _of_rows(metric, torch.nonzero(positive).flatten()))
    low = float(runs_of(~positive, _of_rows(metric, torch.nonzero(~positive).flatten()))([]).mean())
    high, moved = float(behaving([]).mean()), runs_of(~positive, kl())
    gap = high - low
    if not gap > 0:
        raise ValueError(
            f"The clean metric is {high:.3g} on the positive prompts and {low:.3g} on the negative ones: there is no "
            "behaviour to tune an edit for. Are the labels the right way round?"
        )
    left: Scorer = lambda hooks: float((behaving(hooks) - low).clamp(min=0).mean() / gap)  # noqa: E731
    return {"left": left, "kl": lambda hooks: float(moved(hooks).mean())}, [low, high]


def _of_rows(metric: Callable[..., Tensor], index: Int[Tensor, " m"]) -> Callable[..., Tensor]:
    """The metric of some of its prompts, numbered from 0."""
    if isinstance(metric, PositionMetric):
        return replace(
            metric, n=len(index), score=lambda x, clean, rows: metric.score(x, clean, index.to(rows.device)[rows])
        )

    def picked(logits: Tensor, clean: Tensor | None, rows: Tensor) -> Tensor:
        return metric(logits, clean, index[rows])

    vars(picked)["needs_clean"] = getattr(metric, "needs_clean", True)
    return picked
