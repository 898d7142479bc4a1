"""Removal curves: a metric against the number of directions removed, beside its controls.

A removal curve at the last residual mostly says how the readout is spread; the top principal components often give the
same k. Curves need not be monotone (Zhong et al.'s Model A: 1.00, 0.57, 0.999, 0.40 for k = 0..3), so the rule is part of
`Curve.k_at`'s answer. With ``norms="frozen"`` the removal cannot act through the statistics of the norms downstream: a
curve that then falls later was partly the work of a changed scale.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._norms import frozen_norms
from mi_ablate._positions import Pos
from mi_ablate._types import HookedModel
from mi_ablate._walks import Walks, kind_of, ks_of, places_of, removal_of, targets_of
from mi_ablate.effects import Controls, clean_logits, default_controls, draws_of, name_of
from mi_ablate.moments import site_moments
from mi_ablate.replay import replay
from mi_ablate.subspace import Subspace


class Survived(int):
    """How many directions could be removed. ``censored``: the curve ended before it failed; ``upper``: untested beyond k."""

    censored: bool
    upper: int

    def __new__(cls, k: int, upper: int, censored: bool) -> "Survived":
        """Make the number with its bounds."""
        number = super().__new__(cls, k)
        number.censored, number.upper = censored, upper
        return number

    def __getnewargs__(self) -> tuple[int, int, bool]:  # type: ignore[override]
        return int(self), self.upper, self.censored

    def __repr__(self) -> str:
        if self.censored:
            return f"{int(self)}+"
        return f"{int(self)}" if self.upper == int(self) else f"{int(self)}-{self.upper}"

    __str__ = __repr__


class Killed(int):
    """How many directions had to be removed. ``censored``: more than the curve has; ``lower``: untested from there to k."""

    censored: bool
    lower: int

    def __new__(cls, k: int, lower: int, censored: bool) -> "Killed":
        """Make the number with its bounds."""
        number = super().__new__(cls, k)
        number.censored, number.lower = censored, lower
        return number

    def __getnewargs__(self) -> tuple[int, int, bool]:  # type: ignore[override]
        return int(self), self.lower, self.censored

    def __repr__(self) -> str:
        if self.censored:
            return f">{int(self)}"
        return f"{int(self)}" if self.lower == int(self) else f"{self.lower}-{int(self)}"

    __str__ = __repr__


@dataclass(frozen=True, eq=False)
class Curve:
    """Mean metric against the number of directions removed, with controls ``[draws K]`` and the variance removed ``[K]``."""

    metric: str
    ks: tuple[int, ...]
    values: Float[Tensor, " K"]
    controls: dict[str, Float[Tensor, "draws K"]]
    variance_removed: dict[str, Float[Tensor, " K"]]
    ablation: str
    sites: tuple[str, ...]
    n: int
    replay: str
    """Which part of the model ran again for each point: see `mi_ablate.replay`."""
    step: int = 1
    norms: str = "live"
    """"live", or "frozen": norms downstream of the edit kept each prompt's clean scale."""
    better: str = "higher"
    """"higher" or "lower": which way the metric goes when the model does better."""
    kind: str = "difference"
    """What a metric's numbers are (`mi_ablate.metrics`): of a function, "rate" where all values lie in 0 to 1."""

    @property
    def clean(self) -> float:
        """The metric with nothing removed."""
        return float(self.values[0])

    @property
    def has_share(self) -> bool:
        """Whether a share of the clean value means something: not of a loss, nor of log-odds, whose 0 is 50 %."""
        return self.better == "higher" and self.kind != "log-odds"

    def k_at(
        self, tau: int | float, rule: str = "first", scale: str = "relative", run: str = "edited"
    ) -> Survived | None:
        """Return how many directions can be removed with the metric still at ``tau``.

        Args:
            tau: the threshold, such as 0.95.
            rule: "first": the last k before the metric first falls below; "hull": the largest k that still reaches it
                (a curve may fall and rise again).
            scale: "relative" to the clean value, or "absolute".
            run: "edited", or a control's name (the mean over its draws is followed).

        Returns:
            An int with ``censored`` (never failed within the curve) and ``upper`` (the largest k not tested to fail, with
            gaps in ks). None where the clean value itself is below the threshold, or, with "relative", is not
            positive: a share of it means nothing then.

        Raises:
            ValueError: a metric that rises with damage (cross-entropy, KL); a share of log-odds. KeyError: an unknown run.

        """
        if scale == "relative" and self.kind == "log-odds":
            raise ValueError(
                f"A share of {self.metric} means nothing: it is 0 at 50 %. Use scale='absolute', or a rate."
            )
        if scale not in ("relative", "absolute"):
            raise ValueError(f"scale={scale!r} is 'relative' or 'absolute'.")
        values = self._run("k_at", rule, run)
        if scale == "relative" and self.clean <= 0:
            return None
        passed = (values >= tau * (self.clean if scale == "relative" else 1.0)).tolist()
        if not passed[0]:
            return None
        last = (
            passed.index(False) - 1
            if rule == "first" and False in passed
            else len(passed) - 1 - passed[::-1].index(True)
        )
        if last == len(passed) - 1:
            return Survived(self.ks[last], self.ks[last], censored=True)
        return Survived(self.ks[last], self.ks[last + 1] - self.step, censored=False)

    def k_kill(self, tau: int | float = 0.05, rule: str = "first", run: str = "edited") -> Killed | None:
        """Return how many directions must be removed for the metric, an accuracy or a rate, to be at most ``tau``.

        Args:
            tau: the threshold, absolute: not a share of the clean value.
            rule: "first": the smallest k that reaches it; "hull": the smallest k from which on the curve stays there.
            run: "edited", or a control's name (the mean over its draws is followed).

        Returns:
            An int with ``censored`` (never reached within the curve: shown as ">40") and ``lower`` (with gaps in ks the
            smallest k not tested to survive: shown as "5-9"). None where the clean value is at most ``tau`` already.

        Raises:
            ValueError: a metric that is no rate (logit difference, log-odds, loss). KeyError: an unknown run.

        """
        if self.kind != "rate" and self.better == "higher":
            raise ValueError(f"k_kill asks when a rate is at most {tau}, and {self.metric} is a {self.kind}.")
        below = (self._run("k_kill", rule, run) <= tau).tolist()
        if below[0]:
            return None
        if rule == "first":
            at = below.index(True) if True in below else len(below)
        else:
            at = len(below) - below[::-1].index(False)
        if at == len(below):
            return Killed(self.ks[-1], self.ks[-1], censored=True)
        return Killed(self.ks[at], self.ks[at - 1] + self.step, censored=False)

    def _run(self, asked: str, rule: str, run: str) -> Tensor:
        """The values of a run, where the question makes sense."""
        if rule not in ("first", "hull"):
            raise ValueError(f"rule={rule!r} is 'first' or 'hull'.")
        if run != "edited" and run not in self.controls:
            raise KeyError(f"The curve has no run {run!r}; it has 'edited' and {sorted(self.controls)}.")
        if self.better == "lower":
            raise ValueError(
                f"{asked} counts directions until a metric falls, and {self.metric} rises with damage. "
                "Measure the curve of accuracy or logit_diff, or read .table()."
            )
        return self.values if run == "edited" else self.controls[run].mean(0)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a k: the metric, mean and range of each control, the variance removed."""
        rows = []
        for i, k in enumerate(self.ks):
            row: dict[str, Any] = {"k": k, "edited": float(self.values[i])}
            row["variance_removed"] = float(self.variance_removed["edited"][i])
            for name, draws in self.controls.items():
                at = draws[:, i]
                row[name] = {
                    "mean": float(at.mean()),
                    "low": float(at.min()),
                    "high": float(at.max()),
                    "draws": len(at),
                }
                row[name]["variance_removed"] = float(self.variance_removed[name][i])
            rows.append(row)
        return rows

    def plot(self) -> Any:
        """Return the plotly figure of the curve with its controls."""
        from mi_ablate.figures import removal

        return removal({self.ablation: self})

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table())

    def __repr__(self) -> str:
        where = self.sites[0] if len(self.sites) == 1 else f"{len(self.sites)} sites"
        frozen = ", norms frozen" if self.norms == "frozen" else ""
        what = f"Curve({self.metric}, {self.ablation}{frozen}, {where}, k 0-{self.ks[-1]}"
        if not self.has_share:
            runs = {"edited": self.values, **{name: x.mean(0) for name, x in self.controls.items()}}
            last = ", ".join(f"{name} {float(x[-1]):.3g}" for name, x in runs.items())
            return f"{what}: {self.clean:.3g} to {last}{'' if self.controls else '; no control'})"
        ends = f"k@95% {self.k_at(0.95)}, k@50% {self.k_at(0.5)}"
        controls = ", ".join(f"{name} {self.k_at(0.95, run=name)}" for name in self.controls) or "no control"
        return f"{what}: {ends}; k@95% of {controls})"


def removal_curve(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    subspace: Subspace | Mapping[str, Subspace],
    metric: Callable[..., Tensor],
    *,
    at: str | Sequence[str] | None = None,
    pos: Pos = -1,
    ks: Sequence[int] | None = None,
    step: int = 1,
    ablation: str = "zero",
    norms: str = "live",
    controls: Controls | None = None,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    draws: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Return the metric against the number of leading directions removed.

    Args:
        model: the model.
        tokens: prompts ``[n p]``, best ones that the subspace was not fitted on.
        subspace: one ordered basis (``at`` says where), or one for each site of a mapping.
        metric: a factory's result, such as ``accuracy(answers)``.
        at: hook names where one subspace is removed.
        pos: the positions edited.
        ks: which k to measure; 0, step, 2 step, ... up to the rank by default. k = 0 is always added.
        step: 2 removes planes, such as the cos and sin of a frequency, whose order within the pair is arbitrary.
        ablation: "zero"; "mean" of the activations at the site; "resample" from another prompt (a seeded permutation).
        norms: "live"; "frozen": every norm downstream keeps each prompt's scale (``hook_scale``) of the clean run, under
            the controls too. LayerNorm's centring is linear and is not frozen.
        controls: as in `effect`.
        attention_mask: 1 for real tokens.
        batch_size: rows a pass.
        draws: seeds of each random control; the same seed gives nested subspaces along the curve.
        seed: of the permutation of resample-ablation.
        progress: called with (points done, points in all).

    """
    places = places_of(subspace, at)
    ks = ks_of(places, ks, step)
    smallest = removal_of(places, ks[1], pos, None)
    runs = replay(model, tokens, smallest, metric, attention_mask=attention_mask, batch_size=batch_size)
    moments = site_moments(model, tokens, smallest, attention_mask, batch_size, runs.acts)
    targets = targets_of(model, tokens, places, ablation, pos, attention_mask, batch_size, moments, seed)
    frozen = frozen_norms(norms, model, tokens, smallest, attention_mask, batch_size)
    treatment = [removal_of(places, k, pos, targets) for k in ks[1:]]
    controls = default_controls(moments) if controls is None else controls
    walks = Walks(runs, metric, clean_logits(runs, metric), moments, progress, frozen)
    walks.total = (len(ks) - 1) * (1 + sum(draws_of(c, draws) for c in controls.values()))
    values, removed = walks.walk(treatment)
    scores, shares = {}, {"edited": removed}
    for name, control in controls.items():
        scores[name], shares[name] = walks.drawn(control, treatment, draws_of(control, draws))
    what = getattr(metric, "better", "higher"), kind_of(metric, values)
    made = (tuple(ks), values, scores, shares, ablation, tuple(places), len(tokens), runs.kind, step, norms, *what)
    return Curve(name_of(metric), *made)
