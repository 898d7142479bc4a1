"""Total, direct and indirect effects of heads, attention outputs and MLPs on the answer, at one position.

Kantamneni and Tegmark 2025 (arXiv 2502.00873, section 5). The base is the corrupted run; the clean run's output of one
component is written into it, and the clean answer's logit is compared with that of the base (`metrics.logit_gain`):

    total      everything downstream is computed again
    direct     (clean - corrupted) is added to the last residual stream alone; final norm and unembedding follow
    indirect   total - direct: what later components make of it

Positive: the clean answer came back. The final norm is live (its scale follows the patch, as they do it) or frozen at the
corrupted run's; the result names it. Of frozen norms direct effects add up exactly: over all components they are the effect
of the whole last residual stream without the embedding's part. Total effects do not add up.

``written`` puts other vectors in the place of the clean outputs, such as a helix fitted to them: TE[helix(a, b)] and the
like are the same call. Sites of blocks in parallel (GPT-J, NeoX) are the same ones: no point between attention and MLP is
needed.

When it misleads. A patch writes one position; components that act through other positions show nothing there. Patched one
at a time, parts that stand in for each other all look idle, and an indirect effect counts for every component along its
path. The control writes the clean output of another pair: what it reaches, any other problem's output does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate._walks import another_row
from mi_ablate.arithmetic._scored import mean_intervals
from mi_ablate.arithmetic.circuit.direct import direct_effects, readout
from mi_ablate.arithmetic.circuit.parts import Component, PairRuns, What, check_writes, pair_runs
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.effects import name_of
from mi_ablate.metrics import PositionMetric
from mi_ablate.model import collect, last_residual

EFFECTS = ("total", "direct", "indirect")


@dataclass(frozen=True, eq=False, repr=False)
class ComponentEffects:
    """Effects of every component on every pair."""

    components: tuple[Component, ...]
    total: Float[Tensor, "c n"]
    direct: Float[Tensor, "c n"]
    norm: str
    """Of direct effects: "live" or "frozen" (at the corrupted run's scale)."""
    metric: str
    pos: int
    gap: Float[Tensor, " n"]
    """How much more the metric is on the clean run than on the corrupted one."""
    written: str
    """"clean", or "other" where other vectors were given."""
    controls: dict[str, Float[Tensor, "draws c"]]
    """Mean total effects of "another pair": the same vectors of another pair, none its own."""

    @property
    def indirect(self) -> Float[Tensor, "c n"]:
        """Total effects without the direct ones."""
        return self.total - self.direct

    def ranked(self, by: str = "total") -> tuple[Component, ...]:
        """Return the components by mean effect ("total", "direct" or "indirect"), the largest first."""
        order = self._effect(by).mean(1).argsort(descending=True, stable=True)
        return tuple(self.components[i] for i in order.tolist())

    def of(self, component: Component | str, effect: str = "total") -> Float[Tensor, " n"]:
        """Return the effect of one component on each pair."""
        names = [c.name for c in self.components]
        name = component if isinstance(component, str) else component.name
        if name not in names:
            raise KeyError(f"No effect was measured of {name}; there are {', '.join(names[:4])} ...")
        return self._effect(effect)[names.index(name)]

    def table(self, by: str = "total") -> list[dict[str, Any]]:
        """Return one row a component, the largest first: each effect with a bootstrap interval of 95 % over the pairs."""
        order = self._effect(by).mean(1).argsort(descending=True, stable=True).tolist()
        spans = {effect: mean_intervals(self._effect(effect)) for effect in EFFECTS}
        rows = []
        for i in order:
            c = self.components[i]
            row: dict[str, Any] = {"component": c.name, "kind": c.kind, "layer": c.layer, "head": c.head}
            for effect, (low, high) in spans.items():
                row |= {effect: float(self._effect(effect)[i].mean())}
                row |= {f"{effect} low": float(low[i]), f"{effect} high": float(high[i])}
            row |= {name: float(draws[:, i].mean()) for name, draws in self.controls.items()}
            rows.append(row)
        return rows

    def summed(self) -> list[dict[str, Any]]:
        """Return one row a kind: its components' effects added up, with intervals over the pairs (KT figure 6).

        Direct effects of a frozen norm add up to that of all together; sums of total effects count shared paths twice.
        """
        rows = []
        for kind in dict.fromkeys(c.kind for c in self.components):
            chosen = [i for i, c in enumerate(self.components) if c.kind == kind]
            row: dict[str, Any] = {"kind": kind, "components": len(chosen), "norm": self.norm}
            for effect in EFFECTS:
                values = self._effect(effect)[chosen].sum(0)
                low, high = mean_intervals(values[None])
                row |= {effect: float(values.mean()), f"{effect} low": float(low), f"{effect} high": float(high)}
            rows.append(row)
        return rows

    def _effect(self, effect: str) -> Float[Tensor, "c n"]:
        if effect not in EFFECTS:
            raise ValueError(f"An effect is 'total', 'direct' or 'indirect', not {effect!r}.")
        return {"total": self.total, "direct": self.direct, "indirect": self.indirect}[effect]

    def __repr__(self) -> str:
        most = self.ranked()[0]
        size = f"{self.of(most).mean():.2f} (direct {self.of(most, 'direct').mean():.2f})"
        what = f"{self.metric}, norm {self.norm}" + ("" if self.written == "clean" else ", other vectors")
        return f"ComponentEffects({len(self.components)} x {len(self.gap)} pairs, {what}: most {size} at {most.name})"


def component_effects(
    model: HookedModel,
    pairs: Pairs,
    what: What = "heads",
    *,
    metric: PositionMetric | None = None,
    norm: str = "live",
    written: Mapping[str, Float[Tensor, "n *d"]] | None = None,
    pos: int = -1,
    draws: int = 1,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ComponentEffects:
    """Return total, direct and indirect effects of components, one at a time.

    Args:
        model: the model.
        pairs: clean and corrupted problems, row by row.
        what: "heads", "mlps", "attention", names such as "L13H4" and "MLP 14", hook points, or a list.
        metric: read at the last position; by default the gain of the clean answer's logit over the corrupted run.
        norm: of direct effects, "live" or "frozen".
        written: vectors ``[n d]`` (``[n head d_head]`` at hook_z) by hook point, in the place of the clean run's outputs.
        pos: the position that is patched. Elsewhere than at the last one nothing is read out, so direct effects are 0.
        draws: seeds of the control, which writes another pair's vectors; 0 measures none.
        batch_size: rows a pass.
        progress: called with (passes done, passes in all).

    Raises:
        KeyError, IndexError: a component that the model does not have. ValueError: vectors of another shape, a metric read
            elsewhere, a model whose components' outputs are not what the residual stream gets.

    """
    runs = pair_runs(model, pairs, what, metric=metric, pos=pos, batch_size=batch_size)
    check_written(runs, written)
    check_writes(model, pairs, runs.pos, any(c.kind == "head" for c in runs.components))
    seeds = range(draws) if len(runs.tokens) > 1 else range(0)
    orders = [None, *(another_row(len(runs.tokens), seed) for seed in seeds)]
    done, totals = 0, torch.empty(len(orders), len(runs.components), len(runs.tokens), dtype=torch.float64)
    for i, c in enumerate(runs.components):
        for k, order in enumerate(orders):
            totals[k, i] = runs.alone(c, written=written, order=order)
            done += 1
            if progress is not None:
                progress(done, totals.shape[0] * totals.shape[1])
    direct = torch.zeros_like(totals[0])
    if runs.pos == -1:
        last = collect(model, runs.tokens, last_residual(model), batch_size=batch_size)[last_residual(model)]
        changes = (runs.change(c, written) for c in runs.components)
        read = pairs.clean.answers if metric is None else metric
        direct = direct_effects(readout(model, runs.tokens, last), last, changes, read, norm)
    kind, controls = "clean" if written is None else "other", {"another pair": totals[1:].mean(-1)} if seeds else {}
    return ComponentEffects(
        runs.components, totals[0], direct, norm, name_of(runs.metric), runs.pos, runs.gap, kind, controls
    )


def joint_effect(
    model: HookedModel,
    pairs: Pairs,
    components: What,
    *,
    metric: PositionMetric | None = None,
    written: Mapping[str, Float[Tensor, "n *d"]] | None = None,
    pos: int = -1,
    batch_size: int | None = None,
) -> Float[Tensor, " n"]:
    """Return the total effect of patching several components at once, on every pair.

    Args:
        model: the model.
        pairs: clean and corrupted problems.
        components: as ``what`` of `component_effects`.
        metric: read at the last position; by default the gain of the clean answer's logit.
        written: vectors by hook point, in the place of the clean run's outputs.
        pos: the position that is patched.
        batch_size: rows a pass.

    """
    runs = pair_runs(model, pairs, components, metric=metric, pos=pos, batch_size=batch_size)
    check_written(runs, written)
    return runs.effect(runs.hooks(runs.components, written))


def check_written(runs: PairRuns, written: Mapping[str, Tensor] | None) -> None:
    """Refuse vectors that do not replace the clean run's, site by site."""
    for name, x in runs.clean.items() if written is not None else ():
        if name not in written:  # type: ignore[operator]
            raise KeyError(f"written has no vectors for {name}; it has {list(written)[:3]}.")  # type: ignore[arg-type]
        if written[name].shape != x.shape:  # type: ignore[index]
            raise ValueError(f"written[{name!r}] has shape {list(written[name].shape)}; {list(x.shape)} is needed.")  # type: ignore[index]
