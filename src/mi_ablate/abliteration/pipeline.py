"""From two sets of prompts to a measured removal: answers, candidates, choice, effects, curve."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_ablate._judging import Rules
from mi_ablate._names import resolve_all
from mi_ablate._types import HookedModel
from mi_ablate.abliteration.answers import Answers, find_answers
from mi_ablate.abliteration.counting import Count, Progress, cost
from mi_ablate.abliteration.measuring import Measuring
from mi_ablate.abliteration.results import Abliteration
from mi_ablate.choosing import Choice, choose
from mi_ablate.explained import explain
from mi_ablate.find.grid import Candidates, candidates
from mi_ablate.model import collect
from mi_ablate.moments import Moments
from mi_ablate.prompts import Contrast, Part
from mi_ablate.store import Card
from mi_ablate.subspace import Subspace
from mi_ablate.tuning import Tuned, tune


def abliterate(
    model: HookedModel,
    contrast: Contrast,
    *,
    answers: Answers | None = None,
    names: str | Sequence[str] = ("resid_pre", "resid_post"),
    last: int = 1,
    by: str = "bypass",
    kl_max: int | float | None = 0.1,
    limit: int | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    draws: int = 5,
    new_tokens: int = 12,
    batch_size: int | None = None,
    progress: Progress | None = None,
    command: str = "mi_ablate.abliteration.abliterate",
) -> Abliteration:
    """Find, choose, remove and measure the direction that tells two kinds of prompts apart.

    Args:
        model: a hooked model.
        contrast: the prompts in three parts, `mi_ablate.prompts.contrasted`.
        answers: the tokens by which the behaviour is seen; found on the first part by default (`find_answers`).
        names: sites of the candidates, as `sites` takes them; a ``resid_post`` that the next ``resid_pre`` repeats is left out.
        last: how many of the last real tokens give candidates; with a chat template the tokens after the instruction.
        by: "bypass" or "cosmic", see `mi_ablate.choose`.
        kl_max: largest KL on negative prompts that a candidate may cause; None for no rule.
        limit: try only so many candidates, those with the largest share of variance between the classes.
        ks: how many directions the curve removes; empty for no curve.
        draws: seeds of each drawn control.
        new_tokens: length of the example generations; 0 for none.
        batch_size: prompts a pass; chosen by memory by default.
        progress: called as the prompts go through the model.
        command: for the card.

    Raises:
        ValueError: what the steps refuse.

    """
    clock = time.perf_counter()
    names = _sites(model, names)
    _check(contrast, last, by, kl_max, {"draws": draws, "new_tokens": new_tokens, "limit": limit})
    tried = len(names) * last
    costs = cost(contrast, min(limit or tried, tried), ks, draws, answers is None)
    steps = _Steps(model, contrast, batch_size, Count(progress, sum(costs.values())), costs)
    rules = {"by": by, "kl_max": kl_max, "limit": limit}
    answers = answers or steps.answers()
    choice = steps.choice(steps.grid(names, last), answers, rules)
    settings = {"sites": list(names), "last": last, **rules, "ks": list(ks), "draws": draws, "new_tokens": new_tokens}
    settings["batch_size"] = batch_size
    found = steps.measured(choice, answers, settings, Card.of(model, "", command=command))
    return replace(found, card=_card(found), seconds=time.perf_counter() - clock)


def tuned(
    model: HookedModel,
    contrast: Contrast,
    found: Abliteration,
    *,
    trials: int = 60,
    path: str | Path | None = None,
    progress: Progress | None = None,
) -> Abliteration:
    """Search strengths by component and a real-valued layer from a finished result on, and measure the best trial instead.

    The search sees validation prompts alone (`mi_ablate.tune`, extra ``tune``); of the trials within the result's ``kl_max``
    the one with the least behaviour left is measured on the test prompts, beside the same controls. The curve stays that of
    plain removals.

    Args:
        model: as for `abliterate`.
        contrast: the same prompts.
        found: what `abliterate` returned.
        trials: in all, those in the file included.
        path: a journal to keep trials in and to go on from.
        progress: called as the prompts go through the model.

    Raises:
        ImportError: optuna is missing. ValueError: a file of another search, no trial within ``kl_max``.

    """
    clock, settings = time.perf_counter(), found.settings
    draws = settings["draws"]
    costs = cost(contrast, 0, (), draws, answers=False) | {
        "choice": 0,
        "tuning": trials * len(contrast.validation.prompts),
    }
    steps = _Steps(model, contrast, settings["batch_size"], Count(progress, sum(costs.values())), costs)
    search = steps.tuned(steps.grid(settings["sites"], settings["last"]), found, trials, path)
    limit = settings["kl_max"]
    kept = search.best(float("inf") if limit is None else limit)["trial"]
    choice = replace(found.choice, hooks=search.hooks(kept))
    measuring, _ = steps.measuring(choice, found.answers, draws)
    better = replace(
        found,
        choice=choice,
        effects=measuring.effects(contrast.test, choice),
        generations=measuring.generations(contrast.test, choice.hooks, settings["new_tokens"]),
        search=search,
        kept=kept,
        settings=settings | {"trials": trials},
        passes=found.passes + steps.count.done,
    )
    return replace(better, card=_card(better), seconds=found.seconds + time.perf_counter() - clock)


@dataclass(frozen=True)
class _Steps:
    """The steps of `abliterate`, each on its own part of the prompts."""

    model: HookedModel
    contrast: Contrast
    batch_size: int | None
    count: Count
    costs: dict[str, int]

    def answers(self) -> Answers:
        part, size = self.contrast.find, self.batch_size
        return self.count.run(
            "answers",
            lambda tick: find_answers(self.model, part.prompts, part.labels, batch_size=size, tick=tick),
        )

    def grid(self, names: Sequence[str], last: int) -> Candidates:
        part, options = self.contrast.find, self._options(self.contrast.find)
        given = (self.model, part.prompts.tokens, part.labels, names)
        return self._share("candidates", lambda tick: candidates(*given, pos=range(-last, 0), progress=tick, **options))

    def choice(self, grid: Candidates, answers: Answers, rules: dict[str, Any]) -> Choice:
        part, options = self.contrast.validation, rules | self._options(self.contrast.validation)
        given = (self.model, grid, part.prompts.tokens, part.labels, answers.metric)
        return self._share("choice", lambda tick: choose(*given, progress=tick, **options))

    def measured(self, choice: Choice, answers: Answers, settings: dict[str, Any], card: Card) -> Abliteration:
        test, best, ks = self.contrast.test, choice.best, settings["ks"]
        measuring, acts = self.measuring(choice, answers, settings["draws"])
        directions = _directions(choice.subspace, acts, self.contrast.find.labels, max([1, *ks]))
        mask = test.prompts.attention_mask
        return Abliteration(
            model=str(getattr(self.model.cfg, "model_name", "model")),
            answers=answers,
            choice=choice,
            directions=directions,
            effects=measuring.effects(test, choice),
            curve=measuring.curve(test.positives, directions, ks),
            generations=measuring.generations(test, choice.hooks, settings["new_tokens"]),
            explanation=explain(
                choice.subspace, self.model, site=best.site, tokens=test.prompts.tokens, attention_mask=mask
            ),
            prompts={name: _counts(part) for name, part in vars(self.contrast).items()},
            settings=settings,
            card=card,
            passes=self.count.done,
        )

    def measuring(self, choice: Choice, answers: Answers, draws: int) -> tuple[Measuring, Tensor]:
        """What measures on test prompts, and the activations that its controls are drawn from."""
        find, best = self.contrast.find, choice.best
        acts = collect(self.model, find.prompts.tokens, best.site, pos=best.pos, **self._options(find))[best.site]
        self.count.add("directions", self.costs["directions"])
        moments, within = Moments().update(acts), Moments()
        for kind in (find.labels, ~find.labels):
            within.update(acts[kind].double() - acts[kind].double().mean(0))
        return Measuring(self.model, answers, moments, within, draws, self.batch_size, self.count), acts

    def tuned(self, grid: Candidates, found: Abliteration, trials: int, path: str | Path | None) -> Tuned:
        part, options = self.contrast.validation, self._options(self.contrast.validation)
        given = (self.model, grid, found.choice.best, part.prompts.tokens, part.labels, found.answers.metric)
        return self._share("tuning", lambda tick: tune(*given, trials=trials, path=path, progress=tick, **options))

    def _options(self, part: Part) -> dict[str, Any]:
        return {"attention_mask": part.prompts.attention_mask, "batch_size": self.batch_size}

    def _share(self, stage: str, work: Callable[[Callable[[int, int], None]], Any]) -> Any:
        return self.count.share(stage, self.costs[stage], work)


def _sites(model: HookedModel, names: str | Sequence[str]) -> tuple[str, ...]:
    asked = resolve_all(model, names)
    again = {
        f"blocks.{layer - 1}.hook_resid_post"
        for layer in range(1, model.cfg.n_layers)
        if f"blocks.{layer}.hook_resid_pre" in asked
    }
    return tuple(name for name in asked if name not in again)


def _check(contrast: Contrast, last: int, by: str, kl_max: int | float | None, counts: dict[str, int | None]) -> None:
    """Refuse before any work what a later step would."""
    Rules(by, 0, kl_max, None)
    for name, value in counts.items():
        least = 0 if name == "new_tokens" else 1
        if value is not None and value < least:
            raise ValueError(f"{name}={value}: it has to be {least} or more.")
    shortest = min(int(part.prompts.attention_mask.sum(1).min()) for part in (contrast.find, contrast.validation))
    if not 1 <= last <= shortest:
        raise ValueError(
            f"last={last}: the shortest prompt has {shortest} tokens, so 1 to {shortest} of the last ones."
        )


def _directions(chosen: Subspace, acts: Tensor, labels: Tensor, count: int) -> Subspace:
    """The chosen direction, then the singular directions of positives minus the negative mean, orthonormal in this order."""
    x = acts.to("cpu", torch.float64)
    plus = x[labels] - x[~labels].mean(0)
    joined = chosen.to("cpu") | Subspace.span(torch.linalg.svd(plus, full_matrices=False).Vh[:count])
    return Subspace(
        joined.basis[:, :count].contiguous(), "the chosen direction, then the positives' singular directions"
    )


def _counts(part: Part) -> dict[str, int]:
    return {"positive": int(part.labels.sum()), "negative": int((~part.labels).sum())}


def _card(found: Abliteration) -> Card:
    """What the saved edit carries: what is claimed, beside its controls and its cost."""
    n = found.prompts["test"]["positive"]
    said = [*found.warnings, f"1 of {found.choice.tried} candidates, chosen by {found.settings['by']}."]
    said += [f"Strengths and layer are trial {found.kept} of {found.settings['trials']}."] if found.search else []
    what = "a tuned removal" if found.search else "one direction removed"
    return replace(
        found.card,
        title=f"{found.model}: {what}, found at {found.choice.best.site}",
        description=" ".join(said),
        claim={
            "metric": f"{found.answers.formula} on {n} positive test prompts, {found.answers!r}",
            "rows": found.effects["positive", "preference"].table(),
            "collateral": {name: e.table() for (kind, name), e in found.effects.items() if kind == "negative"},
        },
        fit=dict(found.choice.subspace.source),
    )
