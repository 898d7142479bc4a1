"""Measure an edit beside its controls: one effect, or a curve over the number of directions removed.

Every number comes with what it is compared with: the clean run, controls that have the treatment's sites, positions and
strength (`mi_ablate.controls`), and the share of the variance that each removes. A removal curve at the last residual
mostly says how the readout is spread; the top principal components often give the same k. Curves need not be monotone
(Zhong et al.'s Model A: 1.00, 0.57, 0.999, 0.40 for k = 0..3), so the rule is part of `Curve.k_at`'s answer.

`interval` treats the examples as a sample. Over a full p x p grid there is nothing to sample: intervals belong over
training seeds there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.controls import Moments, from_moments
from mi_ablate.interventions import Ablate, Erase, Intervention, Placed, Rotate
from mi_ablate.model import collect, split, stream
from mi_ablate.replay import Replay, replay
from mi_ablate.subspace import Subspace

Controls = Mapping[str, Callable[[FwdHooks, int], FwdHooks]]
ABLATIONS = ("zero", "mean", "resample")


@dataclass(frozen=True, eq=False)
class Effect:
    """A metric of every example: clean, edited, and under each control ``[draws n]``."""

    metric: str
    clean: Float[Tensor, " n"]
    edited: Float[Tensor, " n"]
    controls: dict[str, Float[Tensor, "draws n"]]
    variance_removed: dict[str, float]
    """By "edited" and control: share of the variance at the edited sites inside the subspace (mean over sites and draws)."""

    def table(self) -> list[dict[str, Any]]:
        """Return one row a run: mean, its range over draws, and the variance removed."""
        rows = [
            {"run": "clean", "mean": float(self.clean.mean()), "variance_removed": 0.0},
            {"run": "edited", "mean": float(self.edited.mean()), "variance_removed": self.variance_removed.get("edited")},
        ]
        for name, scores in self.controls.items():
            means = scores.mean(1)
            row = {"run": name, "mean": float(means.mean()), "low": float(means.min()), "high": float(means.max())}
            rows.append({**row, "draws": len(means), "variance_removed": self.variance_removed.get(name)})
        return rows

    def __repr__(self) -> str:
        parts = []
        for row in self.table():
            spread = f" [{row['low']:.3f}, {row['high']:.3f}]" if row.get("draws", 1) > 1 else ""
            parts.append(f"{row['run']} {row['mean']:.3f}{spread}")
        bare = "" if self.controls else "; no control"
        return f"Effect({self.metric}, n {len(self.clean)}: {', '.join(parts)}{bare})"


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

    def k_at(self, tau: int | float, rule: str = "first", scale: str = "relative", run: str = "edited") -> Survived | None:
        """Return how many directions can be removed with the metric still at ``tau``.

        Args:
            tau: the threshold, such as 0.95.
            rule: "first": the last k before the metric first falls below; "hull": the largest k that still reaches it
                (a curve may fall and rise again).
            scale: "relative" to the clean value, or "absolute".
            run: "edited", or a control's name (the mean over its draws is followed).

        Returns:
            An int with ``censored`` (never failed within the curve) and ``upper`` (the largest k not tested to fail, with
            gaps in ks). None where the clean value itself is below the threshold.
        """
        if rule not in ("first", "hull") or scale not in ("relative", "absolute"):
            raise ValueError(f"rule={rule!r} is 'first' or 'hull'; scale={scale!r} is 'relative' or 'absolute'.")
        if run != "edited" and run not in self.controls:
            raise KeyError(f"The curve has no run {run!r}; it has 'edited' and {sorted(self.controls)}.")
        values = self.values if run == "edited" else self.controls[run].mean(0)
        passed = (values >= tau * (self.clean if scale == "relative" else 1.0)).tolist()
        if not passed[0]:
            return None
        last = passed.index(False) - 1 if rule == "first" and False in passed else len(passed) - 1 - passed[::-1].index(True)
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
                row[name] = {"mean": float(at.mean()), "low": float(at.min()), "high": float(at.max()), "draws": len(at)}
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


def effect(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    hooks: FwdHooks,
    metric: Callable[..., Tensor],
    *,
    controls: Controls | None = None,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    draws: int = 5,
) -> Effect:
    """Return the metric without and with the hooks, and under each control.

    Args:
        model: the model.
        tokens: prompts ``[n p]``.
        hooks: the treatment, ``edit.at(...)``.
        metric: a factory's result, such as ``accuracy(answers)``; see `mi_ablate.metrics`.
        controls: by name, functions ``(hooks, seed) -> hooks``; covariance-drawn subspaces and the top principal
            components by default. A writing wants `controls.shuffled` as well. ``{}`` measures none, and says so.
        attention_mask: 1 for real tokens; positions then count real tokens.
        batch_size: rows a pass; chosen by memory by default.
        draws: seeds 0 .. draws-1 of each random control.
    """
    hooks = list(hooks)
    if not hooks:
        raise ValueError("effect needs at least one hook: edit.at('blocks.0.hook_resid_post', pos=-1).")
    runs = replay(model, tokens, hooks, metric, attention_mask=attention_mask, batch_size=batch_size)
    moments = _site_moments(model, tokens, hooks, attention_mask, batch_size, runs.acts)
    if controls is None:
        plain = all(isinstance(h, Placed) and (not isinstance(h.intervention, Ablate) or h.intervention.subspace) for _, h in hooks)
        controls = {kind: from_moments(kind, moments) for kind in ("covariance", "pca")} if plain else {}
    reference = _clean_logits(runs, metric)
    removed = {"edited": _variance(hooks, moments)}
    scores = {}
    for name, control in controls.items():
        treated = [control(hooks, seed) for seed in range(draws if getattr(control, "random", True) else 1)]
        scores[name] = torch.stack([runs.score(edits, metric, reference) for edits in treated])
        removed[name] = sum(_variance(edits, moments) for edits in treated) / len(treated)
    return Effect(
        metric=getattr(metric, "name", getattr(metric, "__name__", "metric")),
        clean=runs.score([], metric, reference),
        edited=runs.score(hooks, metric, reference),
        controls=scores,
        variance_removed=removed,
    )


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
    moments = _site_moments(model, tokens, smallest, attention_mask, batch_size, runs.acts)
    targets = _targets(model, tokens, places, ablation, pos, attention_mask, batch_size, moments, seed)
    treatment = {k: _removal(places, k, pos, targets) for k in ks[1:]}
    if controls is None:
        controls = {kind: from_moments(kind, moments) for kind in ("covariance", "pca")}
    reference = _clean_logits(runs, metric)
    seeds = {name: range(draws if getattr(c, "random", True) else 1) for name, c in controls.items()}
    total, done = (len(ks) - 1) * (1 + sum(len(s) for s in seeds.values())), 0

    def walk(edits: Iterator[FwdHooks]) -> tuple[Tensor, Tensor]:
        nonlocal done
        values, removed = [clean], [0.0]
        for edit in edits:
            values.append(float(runs.score(edit, metric, reference).mean()))
            removed.append(_variance(edit, moments))
            done += 1
            if progress is not None:
                progress(done, total)
        return torch.tensor(values, dtype=torch.float64), torch.tensor(removed, dtype=torch.float64)

    clean = float(runs.score([], metric, reference).mean())
    values, removed = walk(iter(treatment.values()))
    curve = {"edited": removed}
    scores = {}
    for name, control in controls.items():
        walks = [walk(control(edit, s) for edit in treatment.values()) for s in seeds[name]]
        scores[name] = torch.stack([w[0] for w in walks])
        curve[name] = torch.stack([w[1] for w in walks]).mean(0)
    label = getattr(metric, "name", getattr(metric, "__name__", "metric"))
    return Curve(label, tuple(ks), values, scores, curve, ablation, tuple(places), len(tokens), runs.kind, step)


def interval(values: Float[Tensor, " n"] | Sequence[int | float], level: int | float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return a confidence interval of the mean: Clopper-Pearson for 0/1 values, percentile bootstrap otherwise."""
    import numpy as np
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"An interval needs at least two values; these have shape {list(x.shape)}.")
    if np.isin(x, (0.0, 1.0)).all():
        found = stats.binomtest(int(x.sum()), len(x)).proportion_ci(level, method="exact")
        return float(found.low), float(found.high)
    if x.min() == x.max():
        return float(x[0]), float(x[0])
    found = stats.bootstrap((x,), np.mean, n_resamples=2000, batch=200, confidence_level=level, method="percentile", rng=seed)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _places(subspace: Subspace | Mapping[str, Subspace], at: str | Sequence[str] | None) -> dict[str, Subspace]:
    if isinstance(subspace, Mapping):
        if at is not None:
            raise ValueError("A mapping names its own sites; leave at= out, or give one Subspace.")
        if not subspace:
            raise ValueError("The mapping of sites to subspaces is empty.")
        return dict(subspace)
    if at is None:
        raise ValueError("One Subspace needs at=: the hook names where it is removed, such as 'blocks.1.hook_resid_post'.")
    return dict.fromkeys([at] if isinstance(at, str) else list(at), subspace)


def _ks(places: dict[str, Subspace], ks: Sequence[int] | None, step: int) -> list[int]:
    most = max(s.rank for s in places.values())
    if step < 1:
        raise ValueError(f"step={step}: at least 1; 2 removes planes.")
    chosen = sorted({0, *(range(0, most + 1, step) if ks is None else ks)})
    if chosen[0] < 0 or chosen[-1] > most:
        raise ValueError(f"ks run from {chosen[0]} to {chosen[-1]}; the subspace has rank {most}, so 0 to {most}.")
    if any(k % step for k in chosen):
        raise ValueError(f"ks {[k for k in chosen if k % step][:4]} are not multiples of step={step}: planes stay whole.")
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


def _site_moments(
    model: HookedModel,
    tokens: Tensor,
    hooks: FwdHooks,
    mask: Tensor | None,
    batch_size: int | None,
    known: Mapping[str, Tensor],
) -> dict[str, Moments]:
    """Mean and covariance of the clean vectors that each placed hook addresses, one pass a kind of position."""
    placed: dict[str, Placed] = {}
    found: dict[str, Moments] = {}
    for name, hook in hooks:
        if not isinstance(hook, Placed):
            continue
        if name in known:
            found[name] = Moments().update(_part(known[name], hook))
        else:
            placed.setdefault(name, hook)
    groups: dict[int, list[str]] = {}
    readable: dict[int, Pos] = {}
    for name, hook in placed.items():
        pos = None if callable(hook.pos) or (isinstance(hook.pos, Tensor) and hook.pos.dtype == torch.bool) else hook.pos
        key = next((k for k, p in readable.items() if p is pos or (type(p) is type(pos) is int and p == pos)), len(readable))
        readable[key] = pos
        groups.setdefault(key, []).append(name)
    for key, names in groups.items():
        for rows, acts in stream(model, split(model, tokens, mask, batch_size), names, pos=readable[key]):
            for name in names:
                x, pos = acts[name], placed[name].pos
                if isinstance(pos, Tensor) and pos.dtype == torch.bool:
                    x = x[pos[rows]]
                elif mask is not None and readable[key] is None:
                    x = x[mask[rows].bool()]
                x = _part(x, placed[name])
                found.setdefault(name, Moments()).update(x.reshape(-1, x.shape[-1]))
    return found


def _part(x: Tensor, hook: Placed) -> Tensor:
    """The heads and units that a hook addresses."""
    if hook.head is not None:
        x = x[..., [hook.head] if isinstance(hook.head, int) else hook.head, :]
    if hook.unit is not None:
        x = x[..., [hook.unit] if isinstance(hook.unit, int) else hook.unit]
    return x


def _variance(hooks: FwdHooks, moments: dict[str, Moments]) -> float:
    """Mean over placed hooks of the share of variance that lies in what they overwrite; NaN where none is known."""
    shares = [_share(hook.intervention, moments[name]) for name, hook in hooks if isinstance(hook, Placed)]
    return sum(shares) / len(shares) if shares else float("nan")


def _share(edit: Intervention, moments: Moments) -> float:
    if isinstance(edit, Ablate):
        if edit.subspace is None:
            return 1.0
        share = moments.share(edit.subspace)
        return 1.0 - share if edit.keep else share
    if isinstance(edit, Erase):
        return moments.share(Subspace.span(edit.reader.T))
    return moments.share(edit.subspace) if isinstance(edit, Rotate) else 0.0


def _clean_logits(runs: Replay, metric: Callable[..., Tensor]) -> list[Tensor] | None:
    """The clean logits of every batch, kept only for a metric that compares with them."""
    needs = getattr(metric, "needs_clean", True)
    return [logits for _, logits in runs.logits([])] if needs else None


