"""Activation patching: write one run's activations into another, one place at a time, and see what the metric does.

Of a pair of prompts (clean, corrupted) with metric values M, each place (site, position, head) gets

    denoise   (M(corrupted run with the clean activation) - M(corrupted)) / (M(clean) - M(corrupted))
    noise     (M(clean run with the corrupted activation) - M(clean)) / (M(corrupted) - M(clean))

0: nothing happened; 1: the place alone carries all of the difference. Denoising asks what is sufficient, noising what is
necessary, and they differ: of two parts joined by OR each is sufficient and neither necessary; of two joined by AND each
is necessary and neither sufficient. Written down by Heimersheim and Nanda 2024 (arXiv 2404.15255); the technique is older
(Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262).

When it misleads. Accuracy and probability saturate: a place that moves the logits by half of the difference may leave
them at 1.0, so `logit_diff` is the metric to begin with. The numbers of the places do not add up to 1. What is written
comes from another prompt, so a mixture may be off the model's own distribution; the same sweep with the source rows
shuffled among the prompts (the default control) says how much any other prompt's activation does at that place: just as
much, where all prompts have the same answer; about 0.5, where the metric sets the two answers of a pair against each other
and a third prompt gives neither. A subspace patch can work through directions that the model does not use:
see `mi_ablate.dormancy`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._names import layer_of, resolve_all
from mi_ablate._places import (
    Label,
    Places,
    Sweep,
    check_pairs,
    heads_of,
    lengths_of,
    parts_of,
    positions_of,
    short_names,
)
from mi_ablate._types import HookedModel
from mi_ablate.effects import Controls, clean_logits, name_of
from mi_ablate.interventions import Ablate
from mi_ablate.model import collect
from mi_ablate.replay import Replay, from_layer, replay
from mi_ablate.subspace import Subspace

MODES = ("denoise", "noise")
NO_GAP = 1e-6
"""Means of the two runs that differ by less than this share of their size (or of 1) leave nothing to explain."""
NEARLY = 0.99
_SATURATED = (
    "{} is at its ceiling on the clean prompts ({:.3f}): places that move the logits by a part of the difference may show "
    "nothing. logit_diff does not saturate."
)


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
        clean, corrupted = float(self.clean.mean()), float(self.corrupted.mean())
        _check_gap(clean, corrupted, self.metric)
        start, end = (corrupted, clean) if self.mode == "denoise" else (clean, corrupted)
        return (means - start) / (end - start)

    @property
    def saturated(self) -> bool:
        """Whether the clean run is at the metric's ceiling, so that the metric hides partial effects."""
        return self.ceiling is not None and float(self.clean.mean()) >= NEARLY * self.ceiling

    def table(self) -> list[dict[str, Any]]:
        """Return one row a place: the mean metric, the normalised effect, and that of each control over its draws."""
        shares = self.normalised
        drawn = {name: self.share(means) for name, means in self.controls.items()}
        rows = []
        for index in torch.cartesian_prod(*(torch.arange(s) for s in shares.shape)).tolist():
            i, j, h = index
            row: dict[str, Any] = {"site": self.sites[i], "pos": self.positions[j], "head": self.heads[h]}
            row |= {self.metric: float(self.values[i, j, h].mean()), "normalised": float(shares[i, j, h])}
            for name, draws in drawn.items():
                at = draws[:, i, j, h]
                row[name] = {"mean": float(at.mean()), "low": float(at.min()), "high": float(at.max())}
            rows.append({**row, "saturated": True} if self.saturated else row)
        return rows

    def top(self, n: int = 5) -> list[dict[str, Any]]:
        """Return the n rows of `table` with the largest effects of either sign."""
        return sorted(self.table(), key=lambda row: -abs(row["normalised"]))[:n]

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
        full = " (the metric is at its ceiling)" if self.saturated else ""
        title = title or f"Patching: {what}, n {len(self.clean)}{full}"
        values = grids.pop("")
        return heat(values, rows, columns, heads, tokens=tokens, axes=axes, controls=grids, title=title)

    def __repr__(self) -> str:
        grid = f"{len(self.sites)} sites x {len(self.positions)} positions"
        grid += "" if self.heads == (None,) else f" x {len(self.heads)} heads"
        ends = f"clean {float(self.clean.mean()):.3f}, corrupted {float(self.corrupted.mean()):.3f}"
        row = self.top(1)[0]
        where = row["site"] + ("" if row["pos"] is None else f" pos {row['pos']}")
        where += "" if row["head"] is None else f" head {row['head']}"
        beside = ", ".join(f"{name} {row[name]['mean']:.2f}" for name in self.controls) or "no control"
        what = f", {self.subspace}" if self.subspace else ""
        full = "; the metric is at its ceiling" if self.saturated else ""
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
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} must be 'denoise' (clean into corrupted) or 'noise' (corrupted into clean).")
    given: dict[str, Any] = {"attention_mask": attention_mask, "batch_size": batch_size}
    check_pairs(clean, corrupted)
    sites, where = resolve_all(model, names), positions_of(pos, clean, attention_mask)
    base, source = (corrupted, clean) if mode == "denoise" else (clean, corrupted)
    scores, reference = baselines(model, clean, corrupted, metric, given)
    places = _grid(model, base, source, sites, where, head, subspace, controls, given)
    sweep = Sweep(places, metric, reference, controls, draws, progress)
    values, drawn = sweep.run(_ways(model, base, metric, places, reference, given))
    grid = (places.sites, places.labels, places.heads)
    found = Patching(mode, name_of(metric), *grid, values, *scores, drawn, places.what, _ceiling(metric, scores))
    if found.saturated:
        warnings.warn(_SATURATED.format(found.metric, float(found.clean.mean())), UserWarning, stacklevel=2)
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
    shortest, longest = lengths_of(base, given["attention_mask"])
    length = base.shape[1] if given["attention_mask"] is None else 0
    aligned = where[0] is not None or shortest == longest
    return Places(tuple(sites), where, heads, acts, before, parts, length, aligned)


def baselines(
    model: HookedModel, clean: Tensor, corrupted: Tensor, metric: Callable[..., Tensor], given: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], list[Tensor] | None]:
    """Return the metric of every example on both runs, and the clean logits where the metric compares with them."""
    first, second = (replay(model, tokens, [], metric, **given) for tokens in (clean, corrupted))
    reference = clean_logits(first, metric)
    scores = first.score([], metric, reference), second.score([], metric, reference)
    _check_gap(float(scores[0].mean()), float(scores[1].mean()), name_of(metric))
    return scores, reference


def read(
    model: HookedModel, tokens: Tensor, sites: Sequence[str], where: tuple[Any, ...], given: dict[str, Any]
) -> dict[str, Tensor]:
    """Return activations ``[n m *head d]`` at the m positions, in one pass over the prompts."""
    single = where[0] if len(where) == 1 and (where[0] is None or isinstance(where[0], Tensor)) else list(where)
    acts = collect(model, tokens, sites, pos=single, **given)
    return {name: x[:, None] if isinstance(single, Tensor) else x for name, x in acts.items()}


def _ways(
    model: HookedModel,
    base: Tensor,
    metric: Callable[..., Tensor],
    places: Places,
    reference: list[Tensor] | None,
    given: dict[str, Any],
) -> Callable[[int, int], Replay]:
    """Return how the model runs for each site and position.

    Patches at the last position alone may take a shortcut of `replay`; the others start at the layer of their site where
    the model can, with the stream below it kept for one layer at a time.
    """
    whole = replay(model, base, [], metric, **given)
    last = {j for j, p in enumerate(places.pos) if isinstance(p, int) and p in (-1, places.length - 1)}
    short = None
    if last and reference is None and given["attention_mask"] is None:
        short = replay(model, base, Ablate(None).at(*places.sites, pos=-1), metric, **given)
    held: dict[int, Replay] = {}

    def way(i: int, j: int) -> Replay:
        if short is not None and j in last and short.kind != "whole":
            return short
        layer = layer_of(places.sites[i])
        if layer is None:
            return whole
        if layer not in held:
            held.clear()
            held[layer] = from_layer(model, base, layer, metric, **given) or whole
        return held[layer]

    return way


def _check_gap(clean: float, corrupted: float, metric: str) -> None:
    if abs(clean - corrupted) <= NO_GAP * max(1.0, abs(clean), abs(corrupted)):
        raise ValueError(
            f"{metric} is {clean:.6g} on the clean prompts and {corrupted:.6g} on the corrupted ones: there is no difference "
            "for a patch to explain. Give the answers of the clean prompts, and corrupted prompts that change them."
        )


def _ceiling(metric: Callable[..., Tensor], scores: tuple[Tensor, Tensor]) -> float | None:
    """The metric's own ceiling; of a function that does not say, 1 where both runs lie in [0, 1]."""
    if hasattr(metric, "ceiling"):
        return metric.ceiling
    both = torch.cat(scores)
    return 1.0 if bool((both >= 0).all() and (both <= 1).all()) else None
