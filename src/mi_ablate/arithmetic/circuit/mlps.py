"""Which MLPs build the answer's helix, which ones read it out (Kantamneni and Tegmark 2025, arXiv 2502.00873, figure 7).

Two curves over the layers, shares of each MLP's total effect at the last token:

    built    TE[helix(a+b)] / TE    how much of it a helix of the answer, fitted to the MLP's output, carries
    direct   DE / TE                how much of it goes straight to the logits

In GPT-J the first rises over layers 14 to 18 and falls from 19 on, where the second one rises.

When it misleads. The shares divide by the total effect; of an MLP with next to none they are noise, and the intervals show
it. TE[helix] of shuffled answers, the control, says what any fit with as many columns reaches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_ablate._shares import share_intervals
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.circuit.components import component_effects
from mi_ablate.arithmetic.circuit.heads import Steps, active
from mi_ablate.arithmetic.circuit.outputs import output_fits, outputs_of
from mi_ablate.arithmetic.circuit.parts import Component, What, components_of, pair_runs
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.representation.helices import PERIODS
from mi_ablate.metrics import PositionMetric


@dataclass(frozen=True, eq=False, repr=False)
class MlpRoles:
    """Effects of each MLP, and of helices in the place of its output."""

    mlps: tuple[Component, ...]
    total: Float[Tensor, "c n"]
    direct: Float[Tensor, "c n"]
    helix: Float[Tensor, "c n"]
    """Total effects of the helix of ``basis``."""
    shuffled: Float[Tensor, "c n"]
    """The same of a helix fitted with the problems' numbers shuffled."""
    active: Bool[Tensor, " c"]
    """Which MLPs' patches move anything at all; shares of the others are NaN."""
    basis: str
    norm: str

    @property
    def built(self) -> Float[Tensor, " c"]:
        """TE[helix] / TE, of means over the pairs."""
        return self._share(self.helix)

    @property
    def read_out(self) -> Float[Tensor, " c"]:
        """DE / TE, of means over the pairs."""
        return self._share(self.direct)

    def table(self) -> list[dict[str, Any]]:
        """Return one row an MLP: effects, and both shares with intervals over the pairs."""
        rows = []
        for i, c in enumerate(self.mlps):
            row: dict[str, Any] = {"component": c.name, "layer": c.layer}
            row |= {"total": float(self.total[i].mean()), "direct": float(self.direct[i].mean())}
            for name, x in (("built", self.helix[i]), ("direct share", self.direct[i]), ("shuffled", self.shuffled[i])):
                low, high = share_intervals(x[None], self.total[i], 0.95, 0)
                share = x.mean() / self.total[i].mean()
                row |= dict(zip((name, f"{name} low", f"{name} high"), map(float, (share, low, high))))
            if not self.active[i]:
                row |= {key: float("nan") for key in row if key.startswith(("built", "direct share", "shuffled"))}
            rows.append(row)
        return rows

    def _share(self, effects: Float[Tensor, "c n"]) -> Float[Tensor, " c"]:
        return torch.where(self.active, effects.mean(1) / self.total.mean(1), torch.nan)

    def __repr__(self) -> str:
        most = self.mlps[int(self.total.mean(1).argmax())].name
        return f"MlpRoles({len(self.mlps)} MLPs, helix({self.basis}), norm {self.norm}: largest total effect {most})"


def mlp_roles(
    model: HookedModel,
    problems: Problems,
    pairs: Pairs,
    what: What = "mlps",
    *,
    basis: str = "answer",
    periods: Sequence[int | float] = PERIODS,
    norm: str = "live",
    seed: int = 0,
    metric: PositionMetric | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MlpRoles:
    """Return how much of each MLP's effect a helix of the answer carries, and how much goes straight to the logits.

    Args:
        model: the model.
        problems: prompts that the helices are fitted on.
        pairs: clean and corrupted problems.
        what: MLPs (or "attention"), as in `component_effects`.
        basis: of the helix: "answer" for a + b, "a,b", "a,b,answer".
        periods: of the helix.
        norm: of direct effects, "live" or "frozen".
        seed: of the shuffled control.
        metric: read at the last position; by default the gain of the clean answer's logit.
        batch_size: rows a pass.
        progress: called with (passes done, passes in all).

    Raises:
        ValueError: heads, which `head_roles` is about. KeyError: a basis that the problems have no values of.

    """
    chosen, options = components_of(model, what), {"metric": metric, "batch_size": batch_size}
    heads = [c.name for c in chosen if c.kind == "head"]
    if heads:
        raise ValueError(
            f"mlp_roles is about MLPs and attention outputs, and {heads[0]} is a head: head_roles is about those."
        )
    runs, tell = pair_runs(model, pairs, chosen, **options), Steps(progress, 3 * len(chosen))  # type: ignore[arg-type]
    order = torch.randperm(len(problems.tokens), generator=torch.Generator().manual_seed(seed))
    mixed = replace(problems, inputs={name: x[order] for name, x in problems.inputs.items()})
    given: dict[str, Any] = {"norm": norm, "draws": 0, **options}
    true = component_effects(model, pairs, chosen, progress=tell.part(), **given)
    found = []
    for fitted_on in (problems, mixed):
        fits = output_fits(model, fitted_on, chosen, [basis], periods, batch_size=batch_size)
        vectors = outputs_of(fits[basis], pairs.clean.inputs, basis, periods, runs.clean)
        found.append(component_effects(model, pairs, chosen, written=vectors, progress=tell.part(), **given).total)
    return MlpRoles(chosen, true.total, true.direct, found[0], found[1], active(true), basis, norm)
