"""Measure an edit beside its controls.

Every number comes with what it is compared with: the clean run, controls that have the treatment's sites, positions and
strength (`mi_ablate.controls`), and the share of the variance that each removes.

`interval` treats the examples as a sample. Over a full p x p grid there is nothing to sample: intervals belong over
training seeds there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._names import resolve_all
from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, HookedModel, nearest
from mi_ablate.controls import Control, from_moments
from mi_ablate.interventions import Ablate, Intervention, Placed
from mi_ablate.metrics import PositionMetric, noise_floor
from mi_ablate.moments import Moments, site_moments, variance_removed
from mi_ablate.replay import Replay, replay

Controls = Mapping[str, Callable[[FwdHooks, int], FwdHooks]]


@dataclass(frozen=True, eq=False)
class Effect:
    """A metric of every example: clean, edited, and under each control ``[draws n]``."""

    metric: str
    clean: Float[Tensor, " n"]
    edited: Float[Tensor, " n"]
    controls: dict[str, Float[Tensor, "draws n"]]
    variance_removed: dict[str, float]
    """By "edited" and control: share of the variance at the edited sites inside the subspace (mean over sites and draws)."""
    floor: float | None = None
    """Of a KL: what rounding the clean logits alone makes of it (`metrics.noise_floor`); smaller values say nothing."""

    def table(self) -> list[dict[str, Any]]:
        """Return one row a run: mean, its range over draws, and the variance removed."""
        rows = [
            {"run": "clean", "mean": float(self.clean.mean()), "variance_removed": 0.0},
            {
                "run": "edited",
                "mean": float(self.edited.mean()),
                "variance_removed": self.variance_removed.get("edited"),
            },
        ]
        for name, scores in self.controls.items():
            means = scores.mean(1)
            row = {"run": name, "mean": float(means.mean()), "low": float(means.min()), "high": float(means.max())}
            rows.append({**row, "draws": len(means), "variance_removed": self.variance_removed.get(name)})
        if self.floor is not None:
            rows.append({"run": "rounding of the logits", "mean": self.floor})
        return rows

    def plot(self) -> Any:
        """Return the plotly figure of the runs: clean, edited and every draw of each control."""
        from mi_ablate.figures import outcome

        return outcome(self)

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table())

    def __repr__(self) -> str:
        parts = []
        for row in self.table()[: 2 + len(self.controls)]:
            spread = f" [{_shown(row['low'])}, {_shown(row['high'])}]" if row.get("draws", 1) > 1 else ""
            parts.append(f"{row['run']} {_shown(row['mean'])}{spread}")
        bare = "" if self.controls else "; no control"
        floor = "" if self.floor is None else f"; rounding alone makes {self.floor:.1e}"
        return f"Effect({self.metric}, n {len(self.clean)}: {', '.join(parts)}{floor}{bare})"


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
    hooks = [] if isinstance(hooks, Intervention) else list(hooks)
    if not hooks:
        raise ValueError("effect needs at least one hook: edit.at('blocks.0.hook_resid_post', pos=-1).")
    runs = replay(model, tokens, hooks, metric, attention_mask=attention_mask, batch_size=batch_size)
    moments = site_moments(model, tokens, hooks, attention_mask, batch_size, runs.acts)
    if controls is None:
        plain = all(
            isinstance(h, Placed) and (not isinstance(h.intervention, Ablate) or h.intervention.subspace)
            for _, h in hooks
        )
        controls = default_controls(moments) if plain else {}
    reference = clean_logits(runs, metric)
    removed = {"edited": variance_removed(hooks, moments)}
    scores = {}
    for name, control in controls.items():
        treated = [control(hooks, seed) for seed in range(draws_of(control, draws))]
        scores[name] = torch.stack([runs.score(edits, metric, reference) for edits in treated])
        removed[name] = sum(variance_removed(edits, moments) for edits in treated) / len(treated)
    return Effect(
        metric=name_of(metric),
        clean=runs.score([], metric, reference),
        edited=runs.score(hooks, metric, reference),
        controls=scores,
        variance_removed=removed,
        floor=_floor(metric, reference),
    )


@dataclass(frozen=True, eq=False)
class Effects(Mapping[str, Effect]):
    """One `Effect` a site, in the order of the sites: the same edit at one site at a time."""

    by_site: dict[str, Effect]

    def __getitem__(self, site: str) -> Effect:
        if site not in self.by_site:
            raise KeyError(f"No effect was measured at {site!r}. {nearest(site, self.by_site)}")
        return self.by_site[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_site)

    def __len__(self) -> int:
        return len(self.by_site)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a site: clean and edited mean, each control with its range over draws, the variance removed."""
        rows = []
        for site, found in self.items():
            row: dict[str, Any] = {"site": site}
            for run in found.table():
                name, mean = run.pop("run"), run.pop("mean")
                row[name] = {"mean": mean, **run} if "low" in run else mean
            rows.append({**row, "variance_removed": found.variance_removed["edited"]})
        return rows

    def plot(self, title: str | None = None) -> Any:
        """Return the plotly figure, site by site, with the band of each control."""
        from mi_ablate.figures import by_site

        return by_site(self.by_site, title)

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table())

    def __repr__(self) -> str:
        first = next(iter(self.values()))
        far = max(self, key=lambda site: abs(float((self[site].edited - self[site].clean).mean())))
        most = f"clean {float(first.clean.mean()):.3f}, farthest {float(self[far].edited.mean()):.3f} at {far}"
        beside = ", ".join(f"{name} {float(x.mean()):.3f}" for name, x in self[far].controls.items()) or "no control"
        return f"Effects({first.metric}, {len(self)} sites: {most}; there {beside})"


def effect_by_site(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    intervention: Intervention | Mapping[str, Intervention],
    names: str | Sequence[str] | None,
    metric: Callable[..., Tensor],
    *,
    pos: Pos = -1,
    controls: Controls | None = None,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    draws: int = 5,
) -> Effects:
    """Return the effect of an edit at each site by itself: layer by layer, beside its controls.

    Args:
        model: the model.
        tokens: prompts ``[n p]``.
        intervention: one edit for all sites, or one a site (such as one direction a layer).
        names: the sites, as `sites` takes them; None: those of the mapping.
        metric: a factory's result.
        pos: the positions edited.
        controls: as in `effect`, measured at every site.
        attention_mask: 1 for real tokens.
        batch_size: rows a pass.
        draws: seeds of each random control.

    """
    if isinstance(intervention, Intervention):
        if names is None:
            raise ValueError("One intervention needs names: the sites to try, such as 'resid_post'.")
        edits = dict.fromkeys(resolve_all(model, names), intervention)
    else:
        asked = list(intervention) if names is None else resolve_all(model, names)
        missing = [name for name in asked if name not in intervention]
        if missing or not asked:
            raise ValueError(f"The mapping has no intervention for {missing[:3]}; it has {list(intervention)[:3]}.")
        edits = {name: intervention[name] for name in asked}
    options: dict[str, Any] = {"attention_mask": attention_mask, "batch_size": batch_size, "draws": draws}
    runs = {name: edit.at(name, pos=pos) for name, edit in edits.items()}
    return Effects({name: effect(model, tokens, h, metric, controls=controls, **options) for name, h in runs.items()})


def interval(
    values: Float[Tensor, " n"] | Sequence[int | float], level: int | float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return a confidence interval of the mean: Clopper-Pearson for 0/1 values, percentile bootstrap otherwise."""
    import numpy as np
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"An interval needs at least two values; these have shape {list(x.shape)}.")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{int((~np.isfinite(x)).sum())} of the {len(x)} values are NaN or infinite: they have no interval."
        )
    if np.isin(x, (0.0, 1.0)).all():
        found = stats.binomtest(int(x.sum()), len(x)).proportion_ci(level, method="exact")
        return float(found.low), float(found.high)
    if x.min() == x.max():
        return float(x[0]), float(x[0])
    found = stats.bootstrap(
        (x,), np.mean, n_resamples=2000, batch=200, confidence_level=level, method="percentile", rng=seed
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def default_controls(moments: Mapping[str, Moments]) -> dict[str, Control]:
    """Return covariance-drawn subspaces and the top principal components of the vectors that are edited."""
    few = min(moments.values(), key=lambda m: m.n)
    if few.n < 2:
        raise ValueError(
            f"The default controls are drawn from a covariance, which needs two or more vectors; {few.n} is edited. "
            "Give more prompts, or controls={} to measure without any."
        )
    return {kind: from_moments(kind, moments) for kind in ("covariance", "pca")}


def name_of(metric: Callable[..., Tensor]) -> str:
    """Return what a metric is called."""
    return getattr(metric, "name", getattr(metric, "__name__", "metric"))


def draws_of(control: Callable[..., FwdHooks], draws: int) -> int:
    """Return how many seeds a control is drawn with: one where they do not differ."""
    if draws < 1:
        raise ValueError(f"draws={draws}: at least 1; controls={{}} measures none.")
    return draws if getattr(control, "random", True) else 1


def clean_logits(runs: Replay, metric: Callable[..., Tensor]) -> list[Tensor] | None:
    """Return the clean logits of every batch, kept only for a metric that compares with them, and where it reads them."""
    if not getattr(metric, "needs_clean", True):
        return None
    if isinstance(metric, PositionMetric):
        return [logits[:, metric.pos][:, None].clone() for _, logits in runs.logits([])]
    return [logits for _, logits in runs.logits([])]


def _shown(x: float) -> str:
    """Three decimals, or two digits of what they would show as 0.000."""
    return f"{x:.1e}" if 0 < abs(x) < 5e-4 else f"{x:.3f}"


def _floor(metric: Callable[..., Tensor], reference: list[Tensor] | None) -> float | None:
    """The noise floor of a metric that compares with the clean run at one position."""
    if not isinstance(metric, PositionMetric) or reference is None:
        return None
    sums = [noise_floor(logits, -1) * len(logits) for logits in reference]
    return sum(sums) / sum(map(len, reference))
