"""Activation patching: write one run's activations into another, one place at a time, and see what the metric does.

Of a pair of prompts (clean, corrupted) with metric values M, each place (site, position, head) gets

    denoise   (M(corrupted run with the clean activation) - M(corrupted)) / (M(clean) - M(corrupted))
    noise     (M(clean run with the corrupted activation) - M(clean)) / (M(corrupted) - M(clean))

0: nothing happened; 1: the place alone carries all of the difference. Denoising asks what is sufficient, noising what is
necessary, and they differ: of two parts joined by OR each is sufficient and neither necessary; of two joined by AND each
is necessary and neither sufficient. Written down by Heimersheim and Nanda 2024 (arXiv 2404.15255); the technique is older
(Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262).

When it misleads. Accuracy and probability saturate: a place that moves the logits by half of the difference may leave
them at 1.0, or at the 0.0 from which denoising starts, so `logit_diff` is the metric to begin with. Every effect is a share
of the difference between the runs: within two standard errors of 0, shares of it are noise. Both are warned of. The numbers
of the places do not add up to 1. What is written comes from another prompt, so a mixture may be off the model's own
distribution; the same sweep with the source rows shuffled among the prompts (the default control) says how much any other
prompt's activation does at that place: just as much, where all prompts have the same answer; about 0.5, where the metric
sets the two answers of a pair against each other and a third prompt gives neither. A subspace patch can work
through directions that the model does not use: see `mi_ablate.dormancy`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._names import resolve_all
from mi_ablate._places import (
    Label,
    Places,
    Sweep,
    check_metric,
    check_pairs,
    heads_of,
    lengths_of,
    parts_of,
    positions_of,
    short_names,
    ways,
)
from mi_ablate._shares import ceiling_of, check_gap, doubts, ends, share_intervals, within_noise
from mi_ablate._types import HookedModel
from mi_ablate.effects import Controls, clean_logits, name_of
from mi_ablate.model import collect
from mi_ablate.replay import replay
from mi_ablate.subspace import Subspace

MODES = ("denoise", "noise")


@dataclass(frozen=True, eq=False)
class Patching:
    """What patching did at each place: the metric of every pair, beside both runs and the controls."""

    mode: str
    metric: str
    sites: tuple[str, ...]
    positions: tuple[Label, ...]
    """Counted over real tokens, negative from the end; None: all positions at once; "own": one an example."""
    heads: tuple[int | None, ...]
    """None: the whole site."""
    values: Float[Tensor, "sites positions heads n"]
    clean: Float[Tensor, " n"]
    corrupted: Float[Tensor, " n"]
    controls: dict[str, Float[Tensor, "draws sites positions heads"]]
    """The mean metric of the same sweep with the source rows shuffled, or with other subspaces."""
    subspace: str = ""
    """What was patched where it was not the whole vector."""
    ceiling: int | float | None = None
    """The largest value that the metric can take, where it has one."""

    @property
    def normalised(self) -> Float[Tensor, "sites positions heads"]:
        """The mean effect of each place: 0 nothing, 1 all of the difference between the runs."""
        return self.share(self.values.mean(-1))

    def share(self, means: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
        """Return mean metrics as shares of the difference between the two runs (see the module for the sign)."""
        check_gap(float(self.clean.mean()), float(self.corrupted.mean()), self.metric)
        start, end = (float(x.mean()) for x in self._ends)
        return (means - start) / (end - start)

    def intervals(self, level: int | float = 0.95, seed: int = 0) -> Float[Tensor, "2 sites positions heads"]:
        """Return the lower and upper ends of a bootstrap interval of each normalised effect over the pairs; NaN of one pair.

        Percentiles of the linearised ratio over 2000 resamples, the same pairs for all places (see `mi_ablate._shares`).
        """
        start, end = self._ends
        return share_intervals(self.values - start, end - start, level, seed)

    @property
    def saturated(self) -> bool:
        """Whether a run is at an end of a bounded metric, so that the metric hides partial effects."""
        return bool(ends({"clean": self.clean, "corrupted": self.corrupted}, self.ceiling))

    @property
    def noisy(self) -> bool:
        """Whether the difference between the runs, which all effects are shares of, is below two standard errors."""
        return within_noise(self.clean - self.corrupted)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a place: the mean metric, the normalised effect with its interval, each control over its draws."""
        return self._rows(range(self.normalised.numel()))

    def top(self, n: int = 5) -> list[dict[str, Any]]:
        """Return the n rows of `table` with the largest effects of either sign."""
        return self._rows(self.normalised.abs().flatten().argsort(descending=True, stable=True)[:n].tolist())

    def plot(self, tokens: Sequence[str] | None = None, title: str | None = None) -> Any:
        """Return the heat map, site by position with one button a head, or site by head where there is one position.

        ``tokens``: the text of the positions, such as ``model.to_str_tokens(prompt)``.
        """
        from mi_ablate.figures import heat

        grids = {"": self.normalised, **{name: self.share(means).mean(0) for name, means in self.controls.items()}}
        columns = ["all" if p is None else str(p) for p in self.positions]
        heads = None if self.heads == (None,) else [f"head {h}" for h in self.heads]
        rows, axis = short_names(self.sites)
        axes = (axis, "position")
        if heads is not None and len(columns) == 1:
            grids = {name: grid.transpose(1, 2) for name, grid in grids.items()}
            columns, heads, axes, tokens = heads, None, (axis, f"head, position {columns[0]}"), None
        what = f"{self.mode}, {self.metric}" + (f", {self.subspace}" if self.subspace else "")
        full = "".join(f" ({mark})" for mark in self._doubts)
        title = title or f"Patching: {what}, n {len(self.clean)}{full}"
        values = grids.pop("")
        return heat(values, rows, columns, heads, tokens=tokens, axes=axes, controls=grids, title=title)

    def _rows(self, places: Sequence[int]) -> list[dict[str, Any]]:
        shape, (start, end) = self.normalised.shape, self._ends
        chosen = self.values.flatten(0, 2)[list(places)]
        shares = self.share(chosen.mean(-1)).tolist()
        low, high = share_intervals(chosen - start, end - start, 0.95, 0).tolist()
        drawn = {name: self.share(means) for name, means in self.controls.items()}
        rows = []
        for k, place in enumerate(places):
            i, j, h = place // (shape[1] * shape[2]), place // shape[2] % shape[1], place % shape[2]
            row: dict[str, Any] = {"site": self.sites[i], "pos": self.positions[j], "head": self.heads[h]}
            row |= {self.metric: float(chosen[k].mean()), "normalised": shares[k], "low": low[k], "high": high[k]}
            for name, draws in drawn.items():
                at = draws[:, i, j, h]
                row[name] = {"mean": float(at.mean()), "low": float(at.min()), "high": float(at.max())}
            rows.append({**row, "saturated": True} if self.saturated else row)
        return rows

    @property
    def _ends(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The metric where nothing is patched, and where all is."""
        return (self.corrupted, self.clean) if self.mode == "denoise" else (self.clean, self.corrupted)

    @property
    def _doubts(self) -> dict[str, str]:
        return doubts(self.metric, {"clean": self.clean, "corrupted": self.corrupted}, self.ceiling)

    def __repr__(self) -> str:
        grid = f"{len(self.sites)} sites x {len(self.positions)} positions"
        grid += "" if self.heads == (None,) else f" x {len(self.heads)} heads"
        ends = f"clean {float(self.clean.mean()):.3f}, corrupted {float(self.corrupted.mean()):.3f}"
        row = self.top(1)[0]
        where = row["site"] + ("" if row["pos"] is None else f" pos {row['pos']}")
        where += "" if row["head"] is None else f" head {row['head']}"
        beside = ", ".join(f"{name} {row[name]['mean']:.2f}" for name in self.controls) or "no control"
        what = f", {self.subspace}" if self.subspace else ""
        full = "".join(f"; {mark}" for mark in self._doubts)
        most = f"most {row['normalised']:.2f} at {where} ({beside})"
        return f"Patching({self.mode}, {self.metric}{what}, {grid}, n {len(self.clean)}: {ends}; {most}{full})"


def patch(
    model: HookedModel,
    clean: Int[Tensor, "n p"],
    corrupted: Int[Tensor, "m q"],
    metric: Callable[..., Tensor],
    names: str | Sequence[str] = "resid_pre",
    *,
    mode: str = "denoise",
    pos: str | int | Sequence[int] | Int[Tensor, " n"] | None = "each",
    head: str | int | Sequence[int] | None = None,
    subspace: Subspace | Mapping[str, Subspace] | None = None,
    controls: Controls | None = None,
    draws: int = 1,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Patching:
    """Return the effect of writing the other run's activations at each site, position and head, one place at a time.

    Args:
        model: the model.
        clean: prompts ``[n p]``.
        corrupted: their counterparts, row by row, of the same shape.
        metric: a factory's result, for the answers of the clean prompts; `logit_diff` by preference (see the module).
        names: hook points, as `sites` takes them: "resid_pre", "attn_out", "z", globs, or a list.
        mode: "denoise" (clean into corrupted) or "noise" (corrupted into clean).
        pos: "each" position by itself; an int or a list of ints; Int[n]: one an example; None: all positions at once.
        head: None: the whole site; "each", an int or a list where the site has heads (z, q, k, v, pattern).
        subspace: patch this part only; one for all sites, or one a site.
        controls: by name, functions ``(hooks, seed) -> hooks``. By default the source rows shuffled among the prompts,
            and for a subspace also ones of its rank drawn from the covariance of both runs at the place. ``{}``: none.
        draws: seeds of each control; every draw is a sweep of its own.
        attention_mask: 1 for real tokens, the same for both prompts of a pair. Positions then count real tokens; rows
            of different lengths are swept from their ends, -1 the last, as far as the shortest goes.
        batch_size: rows a pass.
        progress: called with (passes done, passes in all).

    Raises:
        ValueError: prompts of different shapes, heads where there are none, a subspace of another width, runs whose
            mean metrics do not differ. KeyError: an unknown site. IndexError: a position or head out of range.

    """
    check_metric(metric)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} must be 'denoise' (clean into corrupted) or 'noise' (corrupted into clean).")
    given: dict[str, Any] = {"attention_mask": attention_mask, "batch_size": batch_size}
    check_pairs(clean, corrupted)
    sites, where = resolve_all(model, names), positions_of(pos, clean, attention_mask)
    base, source = (corrupted, clean) if mode == "denoise" else (clean, corrupted)
    scores, reference = baselines(model, clean, corrupted, metric, given)
    places = _grid(model, base, source, sites, where, head, subspace, controls, given)
    sweep = Sweep(places, metric, reference, controls, draws, progress)
    values, drawn = sweep.run(ways(model, base, metric, places, reference, given))
    grid = (places.sites, places.labels, places.heads)
    found = Patching(mode, name_of(metric), *grid, values, *scores, drawn, places.what, ceiling_of(metric, scores))
    for text in found._doubts.values():
        warnings.warn(text, UserWarning, stacklevel=2)
    return found


def _grid(
    model: HookedModel,
    base: Tensor,
    source: Tensor,
    sites: Sequence[str],
    where: tuple[Any, ...],
    head: Any,
    subspace: Subspace | Mapping[str, Subspace] | None,
    controls: Controls | None,
    given: dict[str, Any],
) -> Places:
    acts = read(model, source, sites, where, given)
    heads, parts = heads_of(head, acts), parts_of(subspace, sites, acts)
    before = None if parts is None or controls is not None else read(model, base, sites, where, given)
    mask = given["attention_mask"]
    shortest, longest = lengths_of(base, mask)
    length = base.shape[1] if mask is None else 0
    aligned = where[0] is not None or shortest == longest
    return Places(tuple(sites), where, heads, acts, before, parts, length, aligned, mask)


def baselines(
    model: HookedModel, clean: Tensor, corrupted: Tensor, metric: Callable[..., Tensor], given: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], list[Tensor] | None]:
    """Return the metric of every example on both runs, and the clean logits where the metric compares with them."""
    first, second = (replay(model, tokens, [], metric, **given) for tokens in (clean, corrupted))
    reference = clean_logits(first, metric)
    scores = first.score([], metric, reference), second.score([], metric, reference)
    check_gap(float(scores[0].mean()), float(scores[1].mean()), name_of(metric))
    return scores, reference


def read(
    model: HookedModel, tokens: Tensor, sites: Sequence[str], where: tuple[Any, ...], given: dict[str, Any]
) -> dict[str, Tensor]:
    """Return activations ``[n m *head d]`` at the m positions, in one pass over the prompts."""
    single = where[0] if len(where) == 1 and (where[0] is None or isinstance(where[0], Tensor)) else list(where)
    acts = collect(model, tokens, sites, pos=single, **given)
    return {name: x[:, None] if isinstance(single, Tensor) else x for name, x in acts.items()}
