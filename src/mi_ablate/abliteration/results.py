"""What an abliteration found, and what its numbers are beside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mi_ablate._types import FwdHooks
from mi_ablate.abliteration.answers import Answers
from mi_ablate.choosing import Choice
from mi_ablate.curves import Curve
from mi_ablate.effects import Effect, interval
from mi_ablate.store import Card, save
from mi_ablate.subspace import Subspace
from mi_ablate.tuning import Tuned

FEW = 8
"""Fewer test prompts of a kind than this and a bootstrap interval of their mean is clearly too narrow."""


@dataclass(frozen=True, eq=False, repr=False)
class Abliteration:
    """A direction chosen among candidates, and its removal measured on prompts that took no part in finding or choosing."""

    model: str
    answers: Answers
    choice: Choice
    directions: Subspace
    """The chosen direction, then the singular directions of the positive prompts about the negative mean."""
    effects: dict[tuple[str, str], Effect]
    """By (prompts, metric): ("positive", "preference"), ("negative", "kl"), ("negative", "preference added") ..."""
    curve: Curve | None
    generations: list[dict[str, str]]
    prompts: dict[str, dict[str, int]]
    """How many of each kind were used to find, choose and report."""
    settings: dict[str, Any]
    card: Card
    explanation: Any = None
    seconds: float = 0.0
    passes: int = 0
    """Prompts that went through the model, in all, the example generations apart."""
    search: Tuned | None = None
    """The trials of `tuned`; the effects are then those of trial ``kept``."""
    kept: int | None = None

    @property
    def hooks(self) -> FwdHooks:
        """The removal that was measured: `Ablate` of the direction at every writer, at the strengths of a trial where tuned."""
        return self.choice.hooks

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before the numbers."""
        none = "The model does not score the two kinds of test prompts apart: there is no behaviour to remove."
        turned = "The model scores positive test prompts below negative ones: swap the two sets, or the answers."
        given_up = f"Not every rule could be kept when choosing: {self.choice.relaxed}."
        empty = (
            f"Within each kind all prompts are alike at {self.choice.best.site}, so no control blind to the contrast can be "
            "drawn there. Where the read token alone tells the kinds apart, the direction is that token's."
        )
        effects = self.effects["positive", "preference"], self.effects["negative", "preference"]
        few = min(len(e.clean) for e in effects)
        rough = f"There are only {few} test prompts of a kind, so the intervals in the table are too narrow."
        said = [turned if self.gap[2] < 0 else none] * (not self.shown) + [given_up] * bool(self.choice.relaxed)
        return said + [empty] * ("within" not in effects[0].controls) + [rough] * (few < FEW)

    @property
    def gap(self) -> tuple[float, float, float]:
        """The clean score of positive minus that of negative test prompts, with its 95 % interval over prompts (Welch's t).

        A bootstrap of 2 and 2 prompts would show a gap in 17 % of cases where there is none, not in 2.5 %.
        """
        from scipy import stats

        plus, minus = (self.effects[kind, "preference"].clean for kind in ("positive", "negative"))
        mean, (a, b) = float(plus.mean() - minus.mean()), (float(x.var()) / len(x) for x in (plus, minus))
        if a + b == 0:
            return mean, mean, mean
        freedom = (a + b) ** 2 / (a**2 / (len(plus) - 1) + b**2 / (len(minus) - 1))
        half = float(stats.t.ppf(0.975, freedom)) * (a + b) ** 0.5
        return mean, mean - half, mean + half

    @property
    def shown(self) -> bool:
        """Whether the model tells the two kinds of test prompts apart at all, by the interval of `gap`."""
        return self.gap[1] > 0

    def removed(self, run: str = "edited") -> float | None:
        """Return the share of `gap` that an edit or a control takes away from the positive prompts; None without a gap.

        1: positive prompts score as negative ones did; 0: nothing changed; above 1: beyond them.
        """
        if not self.shown:
            return None
        effect = self.effects["positive", "preference"]
        after = effect.edited if run == "edited" else effect.controls[run].mean(0)
        return float(effect.clean.mean() - after.mean()) / self.gap[0]

    def left(self, run: str = "edited") -> float | None:
        """Return by how much the two kinds still differ under an edit or a control, as a share of `gap`; None without one.

        0: the model no longer tells them apart; 1: as before.
        """
        if not self.shown:
            return None
        effects = [self.effects[kind, "preference"] for kind in ("positive", "negative")]
        plus, minus = (e.edited if run == "edited" else e.controls[run].mean(0) for e in effects)
        return float(plus.mean() - minus.mean()) / self.gap[0]

    def table(self) -> list[dict[str, Any]]:
        """Return one row a measure on the test prompts: clean, edited with its interval, each control with its range."""
        rows = []
        for (prompts, metric), effect in self.effects.items():
            low, high = interval(effect.edited)
            row: dict[str, Any] = {"prompts": prompts, "measure": metric, "clean": float(effect.clean.mean())}
            row |= {"edited": float(effect.edited.mean()), "low": low, "high": high}
            for name, draws in effect.controls.items():
                means = draws.mean(1)
                row[name] = float(means.mean())
                if len(means) > 1:
                    row[f"{name} range"] = [float(means.min()), float(means.max())]
            if effect.floor is not None:
                row["rounding"] = effect.floor
            rows.append(row)
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for ``--json``."""
        gap, low, high = self.gap
        controls = self.effects["positive", "preference"].controls
        return {
            "model": self.model,
            "shown": self.shown,
            "gap": {"mean": gap, "low": low, "high": high},
            "removed": {name: self.removed(name) for name in ("edited", *controls)},
            "left": {name: self.left(name) for name in ("edited", *controls)},
            "prompts": self.prompts,
            "answers": self.answers.table(),
            "candidates": self.choice.tried,
            "chosen": self.choice.best._asdict(),
            "relaxed": self.choice.relaxed,
            "choice": self.choice.table(),
            "effects": self.table(),
            "curve": None if self.curve is None else self.curve.table(),
            "generations": self.generations,
            "warnings": self.warnings,
            "tuning": None if self.search is None else {"kept": self.kept, "trials": self.search.table()},
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "prompt_passes": self.passes,
        }

    def save(self, path: str | Path) -> Path:
        """Write the edit with its card to ``path`` (.safetensors)."""
        return save(path, self.hooks, self.card)

    def __repr__(self) -> str:
        best = self.choice.best
        if not self.shown:
            return f"Abliteration({self.model}: the two kinds of prompts score alike, nothing to remove)"
        beside = ", ".join(f"{n} {self.left(n):.2f}" for n in self.effects["positive", "preference"].controls)
        return (
            f"Abliteration({self.model}: {best.site} pos {best.pos}, 1 of {self.choice.tried} candidates; "
            f"{self.left():.2f} of the gap left ({beside}))"
        )
