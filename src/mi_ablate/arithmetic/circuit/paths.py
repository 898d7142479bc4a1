"""Path patching at one position: what a sender does to the answer through one receiver alone.

For each sender, as Kantamneni and Tegmark run it (arXiv 2502.00873; the technique is Wang et al.'s, arXiv 2211.00593):

1. the clean run's output of the sender is written into the corrupted run, and the attention and MLP outputs of all later
   components are kept at the corrupted run's, at the position that is patched; what each receiver would have put out is
   recorded;
2. in the corrupted run each receiver's output by itself is replaced by what was recorded, everything downstream is computed
   again, and the gain of the clean answer's logit is the effect of sender -> receiver.

One pass serves all receivers of a sender, one more each pair. The direct path, from the sender to the logits with all
others frozen, is the sender's direct effect and stands beside the matrix. No path goes back, nor between the two parts of
one block in parallel: NaN.

When it misleads. Receivers see the sender through the live norm before them, with the corrupted run around it, so the
effects of two senders on one receiver do not add up. Paths through other positions (a later query that reads the sender's
keys) are not there at the last one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._attach import Reader
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.arithmetic._scored import mean_intervals
from mi_ablate.arithmetic.circuit.parts import Component, PairRuns, What, components_of, pair_runs
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.effects import name_of
from mi_ablate.interventions import Ablate
from mi_ablate.metrics import PositionMetric
from mi_ablate.model import collect


@dataclass(frozen=True, eq=False, repr=False)
class PathEffects:
    """The effect of every sender through every receiver, on every pair."""

    senders: tuple[Component, ...]
    receivers: tuple[Component, ...]
    values: Float[Tensor, "senders receivers n"]
    """NaN where no path goes."""
    frozen: Float[Tensor, "senders n"]
    """The sender's effect with all later components frozen: straight to the logits, live final norm."""
    metric: str
    gap: Float[Tensor, " n"]

    @property
    def matrix(self) -> Float[Tensor, "senders receivers"]:
        """Mean effects; NaN where no path goes."""
        return self.values.mean(-1)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a path and one a sender's way to the logits, the largest first, with intervals over the pairs."""
        there = [(s, r) for s, r in torch.nonzero(~self.values[..., 0].isnan()).tolist()]
        values = torch.cat([self.values[[s for s, _ in there], [r for _, r in there]], self.frozen])
        names = [(self.senders[s].name, self.receivers[r].name) for s, r in there]
        names += [(s.name, "logits") for s in self.senders]
        low, high = mean_intervals(values)
        order = values.mean(1).argsort(descending=True, stable=True).tolist()
        keys = ("sender", "receiver", "effect", "low", "high")
        return [dict(zip(keys, (*names[i], float(values[i].mean()), float(low[i]), float(high[i])))) for i in order]

    def __repr__(self) -> str:
        size = f"{len(self.senders)} senders x {len(self.receivers)} receivers, {len(self.gap)} pairs"
        rows = [row for row in self.table() if row["receiver"] != "logits"]
        if not rows:
            return f"PathEffects({size}: no path)"
        row = rows[0]
        return f"PathEffects({size}: most {row['effect']:.2f} {row['sender']} -> {row['receiver']})"


def path_effects(
    model: HookedModel,
    pairs: Pairs,
    senders: What,
    receivers: What,
    *,
    metric: PositionMetric | None = None,
    pos: int = -1,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PathEffects:
    """Return what each sender does to the answer through each receiver.

    Args:
        model: the model.
        pairs: clean and corrupted problems.
        senders: components, as ``what`` of `component_effects`.
        receivers: components.
        metric: read at the last position; by default the gain of the clean answer's logit.
        pos: the position that is patched and recorded.
        batch_size: rows a pass.
        progress: called with (passes done, passes in all).

    Raises:
        ValueError: no receiver after any sender. KeyError, IndexError: a component that the model does not have.

    """
    sending, receiving = components_of(model, senders), components_of(model, receivers)
    parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
    reached = [[r for r in receiving if s.before(r, parallel)] for s in sending]
    if not any(reached):
        raise ValueError(
            f"No receiver comes after a sender ({sending[0].name}, to {receiving[0].name}). Receivers are in later layers, or "
            "the MLP of the same one (not where attention and MLP run in parallel)."
        )
    runs = pair_runs(model, pairs, [*sending, *receiving], metric=metric, pos=pos, batch_size=batch_size)
    names = [f"blocks.{i}.{part}" for i in range(model.cfg.n_layers) for part in ("hook_attn_out", "hook_mlp_out")]
    names = [name for name in names if name in model.hook_dict]
    if getattr(model.cfg, "attn_only", False):
        names = [name for name in names if not name.endswith("hook_mlp_out")]
    kept = collect(model, runs.tokens, names, pos=pos, batch_size=batch_size)
    values = torch.full((len(sending), len(receiving), len(runs.tokens)), float("nan"), dtype=torch.float64)
    frozen, done, total = torch.empty(len(sending), len(runs.tokens), dtype=torch.float64), 0, sum(map(len, reached))
    for i, sender in enumerate(sending):
        would, frozen[i] = _recorded(runs, sender, reached[i], _freeze(sender, kept, runs.pos, parallel))
        for receiver in reached[i]:
            values[i, receiving.index(receiver)] = runs.effect(runs.hooks([receiver], would))
            done += 1
            if progress is not None:
                progress(done, total)
    return PathEffects(sending, receiving, values, frozen, name_of(runs.metric), runs.gap)


def _freeze(sender: Component, kept: dict[str, Tensor], pos: int, parallel: bool) -> FwdHooks:
    """Hooks that keep every component after the sender at the corrupted run's output."""
    edits: FwdHooks = []
    for name, x in kept.items():
        kind = "attention" if name.endswith("hook_attn_out") else "MLP"
        there = Component(int(name.split(".")[1]), kind)
        if sender.before(there, parallel):
            edits += Ablate(None, x).at(name, pos=pos)
    return edits


def _recorded(
    runs: PairRuns, sender: Component, receivers: Sequence[Component], freeze: FwdHooks
) -> tuple[dict[str, Tensor], Float[Tensor, " n"]]:
    """What the receivers would put out, by hook point, and the metric's gain meanwhile."""
    readers = {name: Reader(name, runs.pos) for name in dict.fromkeys(r.site for r in receivers)}
    reads: FwdHooks = [(name, reader) for name, reader in readers.items()]  # type: ignore[misc]
    hooks = runs.hooks([sender]) + reads + freeze
    would = {name: torch.empty_like(runs.corrupted[name]) for name in readers}
    scores = []
    for number, (rows, logits) in enumerate(runs.runs.logits(hooks)):
        for name, reader in readers.items():
            would[name][rows] = reader.value
        scores.append(runs.metric(logits, None if runs.reference is None else runs.reference[number], rows))
    return would, torch.cat(scores).to("cpu", torch.float64) - runs.base
