"""Removal curves: a metric against the number of directions removed, beside its controls.

A removal curve at the last residual mostly says how the readout is spread; the top principal components often give the
same k. Curves need not be monotone (Zhong et al.'s Model A: 1.00, 0.57, 0.999, 0.40 for k = 0..3), so the rule is part of
`Curve.k_at`'s answer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.controls import from_moments
from mi_ablate.effects import Controls, clean_logits, draws_of, name_of
from mi_ablate.interventions import Ablate
from mi_ablate.model import collect
from mi_ablate.moments import Moments, site_moments, variance_removed
from mi_ablate.replay import Replay, replay
from mi_ablate.subspace import Subspace

ABLATIONS = ("zero", "mean", "resample")


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

    @property
    def clean(self) -> float:
        """The metric with nothing removed."""
        return float(self.values[0])

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
            positive: a share of it means nothing then (KL is 0 on the clean run).

        """
        if rule not in ("first", "hull") or scale not in ("relative", "absolute"):
            raise ValueError(f"rule={rule!r} is 'first' or 'hull'; scale={scale!r} is 'relative' or 'absolute'.")
        if run != "edited" and run not in self.controls:
            raise KeyError(f"The curve has no run {run!r}; it has 'edited' and {sorted(self.controls)}.")
        if scale == "relative" and self.clean <= 0:
            return None
        values = self.values if run == "edited" else self.controls[run].mean(0)
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

    def __repr__(self) -> str:
        ends = f"k@95% {self.k_at(0.95)}, k@50% {self.k_at(0.5)}"
        where = self.sites[0] if len(self.sites) == 1 else f"{len(self.sites)} sites"
        controls = ", ".join(f"{name} {self.k_at(0.95, run=name)}" for name in self.controls) or "no control"
        return f"Curve({self.metric}, {self.ablation}, {where}, k 0-{self.ks[-1]}: {ends}; k@95% of {controls})"


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
        controls: as in `effect`.
        attention_mask: 1 for real tokens.
        batch_size: rows a pass.
        draws: seeds of each random control; the same seed gives nested subspaces along the curve.
        seed: of the permutation of resample-ablation.
        progress: called with (points done, points in all).

    """
    places = _places(subspace, at)
    ks = _ks(places, ks, step)
    smallest = _removal(places, ks[1], pos, None)
    runs = replay(model, tokens, smallest, metric, attention_mask=attention_mask, batch_size=batch_size)
    moments = site_moments(model, tokens, smallest, attention_mask, batch_size, runs.acts)
    targets = _targets(model, tokens, places, ablation, pos, attention_mask, batch_size, moments, seed)
    treatment = {k: _removal(places, k, pos, targets) for k in ks[1:]}
    if controls is None:
        controls = {kind: from_moments(kind, moments) for kind in ("covariance", "pca")}
    reference = clean_logits(runs, metric)
    walks = _Walks(runs, metric, reference, moments, progress)
    walks.total = (len(ks) - 1) * (1 + sum(draws_of(c, draws) for c in controls.values()))
    values, removed = walks.walk(treatment.values())
    scores, shares = {}, {"edited": removed}
    for name, control in controls.items():
        drawn = [walks.walk(control(edit, s) for edit in treatment.values()) for s in range(draws_of(control, draws))]
        scores[name] = torch.stack([w[0] for w in drawn])
        shares[name] = torch.stack([w[1] for w in drawn]).mean(0)
    return Curve(
        name_of(metric), tuple(ks), values, scores, shares, ablation, tuple(places), len(tokens), runs.kind, step
    )


@dataclass
class _Walks:
    """Measures one list of edits after another, and says how far it is."""

    runs: Replay
    metric: Callable[..., Tensor]
    reference: list[Tensor] | None
    moments: dict[str, Moments]
    progress: Callable[[int, int], None] | None
    total: int = 0
    done: int = 0

    def walk(self, edits: Iterable[FwdHooks]) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """Return the mean metric and the variance removed, clean first."""
        values, removed = [self._score([])], [0.0]
        for edit in edits:
            values.append(self._score(edit))
            removed.append(variance_removed(edit, self.moments))
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        return torch.tensor(values, dtype=torch.float64), torch.tensor(removed, dtype=torch.float64)

    def _score(self, edit: FwdHooks) -> float:
        return float(self.runs.score(edit, self.metric, self.reference).mean())


def _places(subspace: Subspace | Mapping[str, Subspace], at: str | Sequence[str] | None) -> dict[str, Subspace]:
    if isinstance(subspace, Mapping):
        if at is not None:
            raise ValueError("A mapping names its own sites; leave at= out, or give one Subspace.")
        if not subspace:
            raise ValueError("The mapping of sites to subspaces is empty.")
        return dict(subspace)
    if at is None:
        raise ValueError(
            "One Subspace needs at=: the hook names where it is removed, such as 'blocks.1.hook_resid_post'."
        )
    return dict.fromkeys([at] if isinstance(at, str) else list(at), subspace)


def _ks(places: dict[str, Subspace], ks: Sequence[int] | None, step: int) -> list[int]:
    most = max(s.rank for s in places.values())
    if step < 1:
        raise ValueError(f"step={step}: at least 1; 2 removes planes.")
    chosen = sorted({0, *(range(0, most + 1, step) if ks is None else ks)})
    if chosen[0] < 0 or chosen[-1] > most:
        raise ValueError(f"ks run from {chosen[0]} to {chosen[-1]}; the subspace has rank {most}, so 0 to {most}.")
    if any(k % step for k in chosen):
        raise ValueError(
            f"ks {[k for k in chosen if k % step][:4]} are not multiples of step={step}: planes stay whole."
        )
    if len(chosen) < 2:
        raise ValueError(f"ks={ks!r} and step={step} leave no k above 0 of a subspace of rank {most}.")
    return chosen


def _removal(places: dict[str, Subspace], k: int, pos: Pos, targets: dict[str, Tensor] | None) -> FwdHooks:
    hooks: FwdHooks = []
    for name, s in places.items():
        to = None if targets is None else targets[name]
        hooks += Ablate(s[: min(k, s.rank)], to).at(name, pos=pos)
    return hooks


def _targets(
    model: HookedModel,
    tokens: Tensor,
    places: dict[str, Subspace],
    ablation: str,
    pos: Pos,
    mask: Tensor | None,
    batch_size: int | None,
    moments: dict[str, Moments],
    seed: int,
) -> dict[str, Tensor] | None:
    if ablation not in ABLATIONS:
        raise ValueError(f"ablation={ablation!r} must be one of {ABLATIONS}.")
    if ablation == "zero":
        return None
    if ablation == "mean":
        return {name: moments[name].mean for name in places}  # type: ignore[misc]
    acts = collect(model, tokens, list(places), pos=pos, attention_mask=mask, batch_size=batch_size)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    return {name: acts[name][order] for name in places}
