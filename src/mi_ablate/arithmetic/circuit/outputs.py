"""Helices of the operands and the answer fitted to components' outputs, and what they write for other problems.

TE[helix(a, b)] and the like are total effects of such reconstructions in the place of the clean run's outputs
(`component_effects(written=...)`). All heads of a layer are one least squares: a fit treats each coordinate by itself. Every
basis keeps its constant; a fit of differences without it writes an output that is off by the mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.circuit.parts import Component
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.representation.helices import PERIODS
from mi_ablate.arithmetic.representation.last_token import BASES, pair_design
from mi_ablate.model import split, stream
from mi_ablate.regression import Fit, Fitter

Fits = dict[str, dict[str, Fit]]


def output_fits(
    model: HookedModel,
    problems: Problems,
    components: Sequence[Component],
    bases: Sequence[str] = BASES,
    periods: Sequence[int | float] = PERIODS,
    *,
    pos: int = -1,
    batch_size: int | None = None,
) -> Fits:
    """Return fits of components' outputs, by basis and hook point, in one pass; heads lie side by side."""
    names = list(dict.fromkeys(c.site for c in components))
    designs = {basis: pair_design(problems.inputs, basis, periods) for basis in bases}
    fitters = {basis: {name: Fitter() for name in names} for basis in bases}
    for rows, acts in stream(model, split(model, problems.tokens, None, batch_size), names, pos=pos):
        for basis, design in designs.items():
            for name in names:
                fitters[basis][name].update(acts[name].flatten(1).cpu(), design[rows])
    return {basis: {name: f.result() for name, f in by_site.items()} for basis, by_site in fitters.items()}


def outputs_of(
    fits: Mapping[str, Fit],
    inputs: Mapping[str, Int[Tensor, " n"]],
    basis: str,
    periods: Sequence[int | float],
    like: Mapping[str, Float[Tensor, "n *d"]],
) -> dict[str, Float[Tensor, "n *d"]]:
    """Return what the fits of one basis write for other problems, shaped as the outputs that they replace."""
    design: Any = pair_design(inputs, basis, periods)
    return {name: fits[name].predict(design).reshape(x.shape).to(x) for name, x in like.items()}
