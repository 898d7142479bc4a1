"""What the chosen removal does to test prompts, beside its controls: effects, curve, example generations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mi_ablate import controls
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.abliteration.answers import Answers
from mi_ablate.abliteration.counting import Count
from mi_ablate.abliteration.scores import CLEAN, Scores, scored
from mi_ablate.choosing import Choice
from mi_ablate.curves import Curve, removal_curve
from mi_ablate.effects import Effect
from mi_ablate.generation import generated
from mi_ablate.interventions import Add
from mi_ablate.metrics import kl, next_token_loss, noise_floor
from mi_ablate.model import run, writers
from mi_ablate.moments import Moments
from mi_ablate.prompts import Part, Prompts
from mi_ablate.subspace import Subspace

ADDED = "added "


@dataclass(frozen=True)
class Measuring:
    """A model, the answers that are looked at, and what draws the controls."""

    model: HookedModel
    answers: Answers
    moments: Moments
    """Of the stream where the direction was found, both kinds of prompts together."""
    within: Moments
    """The same about the mean of each kind: how activations vary apart from the contrast."""
    draws: int
    batch_size: int | None
    count: Count

    @property
    def controls(self) -> dict[str, controls.Control]:
        """One direction for all writers, as the treatment is.

        "within" is drawn from the covariance within the kinds: as large as activations are, and blind to the contrast.
        "covariance" and "pca" see both kinds together: where the contrast is what varies most, they are about it too.
        Where each kind is one vector (the read token alone tells them apart), "within" is rounding, and left out.
        """
        found = {kind: controls.from_moments(kind, self.moments) for kind in ("covariance", "pca")}
        spread, of = (float(m.covariance.trace()) for m in (self.within, self.moments))
        if spread <= 1e-10 * of:
            return found
        return {"within": controls.from_moments("covariance", self.within), **found}

    def effects(self, test: Part, choice: Choice) -> dict[tuple[str, str], Effect]:
        """Return every metric on both kinds of test prompts, under the removal and, on negative ones, the addition."""
        removal = self._runs(choice.hooks, "")
        added = self._runs(Add(choice.subspace.vector).at(choice.best.site), ADDED, kinds=("within", "covariance"))
        found: dict[tuple[str, str], Effect] = {}
        for kind, prompts, runs in (
            ("positive", test.positives, removal),
            ("negative", test.negatives, removal | added),
        ):
            by_metric = self._scored(prompts, runs)
            shares = self._shares(choice.subspace)
            for metric in by_metric:
                floor = self._floor(prompts) if metric == "kl" else None
                found[kind, metric] = _effect(metric, by_metric, "", shares, floor)
            if kind == "negative":
                found[kind, "preference added"] = _effect("preference", by_metric, ADDED, {}, None)
        return found

    def curve(self, prompts: Prompts, directions: Subspace, ks: Sequence[int]) -> Curve | None:
        """Return the preference against how many directions are removed from every writer."""
        chosen = sorted({k for k in ks if 0 < k <= directions.rank})
        if not chosen:
            return None
        options: dict[str, Any] = {"attention_mask": prompts.attention_mask, "batch_size": self.batch_size}
        sites = list(writers(self.model))
        return self.count.share(
            "curve",
            (len(chosen) * (2 + 2 * self.draws) + 2) * len(prompts),
            lambda tick: removal_curve(
                self.model, prompts.tokens, directions, self.answers.metric, at=sites, pos=None, ks=chosen,
                controls=self.controls, draws=self.draws, progress=tick, **options,
            ),
        )  # fmt: skip

    def generations(self, test: Part, hooks: FwdHooks, new_tokens: int) -> list[dict[str, str]]:
        """Return what the model goes on to write after three prompts of each kind, before and after, where there is room."""
        longest = test.prompts.tokens.shape[1]
        new_tokens = min(new_tokens, (getattr(self.model.cfg, "n_ctx", None) or longest + new_tokens) - longest)
        rows = []
        for kind, all_of_them in (("positive", test.positives), ("negative", test.negatives)):
            if new_tokens < 1:
                break
            prompts = all_of_them[:3]
            before = generated(self.model, prompts, max_new_tokens=new_tokens).text
            after = generated(self.model, prompts, hooks, max_new_tokens=new_tokens).text
            for text, b, a in zip(prompts.text, before, after):
                rows.append({"prompts": kind, "prompt": text, "before": b, "after": a})
        return rows

    def _runs(
        self, hooks: FwdHooks, prefix: str, kinds: Sequence[str] = ("within", "covariance", "pca")
    ) -> dict[str, FwdHooks]:
        """The edit and every draw of its controls, by name."""
        runs = {f"{prefix}edited": hooks}
        for name, control in self.controls.items():
            draws = self.draws if control.random else 1
            runs |= {f"{prefix}{name} {seed}": control(hooks, seed) for seed in range(draws) if name in kinds}
        return runs

    def _scored(self, prompts: Prompts, runs: dict[str, FwdHooks]) -> Scores:
        metrics: dict[str, Callable[..., Tensor]] = {"preference": self.answers.metric, "kl": kl()}
        cfg = self.model.cfg
        reads_what_it_says = (getattr(cfg, "d_vocab_out", None) or cfg.d_vocab) >= cfg.d_vocab  # a toy may not
        if reads_what_it_says and int(prompts.attention_mask.sum(1).min()) > 1:
            metrics["loss"] = next_token_loss(prompts.tokens, prompts.attention_mask)
        return self.count.run(
            "effects",
            lambda tick: scored(self.model, prompts, runs, metrics, batch_size=self.batch_size, tick=tick),
        )

    def _shares(self, chosen: Subspace) -> dict[str, float]:
        """The share of the variance at the direction's own site that lies along it, and along each control."""
        found = {"edited": self.moments.share(chosen)}
        for name, control in self.controls.items():
            seeds = range(self.draws if control.random else 1)
            found[name] = sum(self.moments.share(control.draw("", chosen.rank, seed)) for seed in seeds) / len(seeds)
        return found

    def _floor(self, prompts: Prompts) -> float:
        few = prompts[: min(8, len(prompts))]
        with torch.no_grad():
            return noise_floor(run(self.model, few.tokens, few.attention_mask))


def _effect(metric: str, found: Scores, prefix: str, shares: dict[str, float], floor: float | None) -> Effect:
    """The runs of one edit, those whose names begin with ``prefix``, as an effect."""
    of = found[metric]
    names = [
        name.removeprefix(prefix)
        for name in of
        if name != CLEAN and name.startswith(prefix) and (prefix or not name.startswith(ADDED))
    ]
    kinds = dict.fromkeys(name.rsplit(" ", 1)[0] for name in names if name != "edited")
    drawn = {kind: torch.stack([of[prefix + n] for n in names if n.rsplit(" ", 1)[0] == kind]) for kind in kinds}
    return Effect(metric, of[CLEAN], of[f"{prefix}edited"], drawn, shares, floor)
