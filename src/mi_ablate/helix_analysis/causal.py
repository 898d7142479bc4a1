"""What writing numbers into the operands' tokens does to the answers, and what removing the helix does."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mi_ablate import arithmetic
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic import Asked, Swaps
from mi_ablate.helix_analysis.representation import Operand, Tries

REMOVED = ("full", "pca", "helix", "random")
"""Whose subspaces are removed."""


def causal(
    model: HookedModel,
    asked: Asked,
    operands: Mapping[str, Operand],
    periods: tuple[int | float, ...],
    n: int,
    seed: int,
    batch_size: int | None,
    progress: Callable[[str, int, int], None],
    tries: Tries,
) -> dict[str, Any]:
    """Return "swaps" and "removals" by operand, of pairs of problems that the model gets right."""
    swaps: dict[str, Swaps] = {}
    removals: dict[str, Swaps] = {}
    if asked.representation_only:
        tries.reasons["causal tests"] = (
            f"The model gets none of the {len(asked.problems)} problems right, so there is no right answer to bring back or "
            "to spoil: representation only."
        )
        return {"swaps": swaps, "removals": removals}
    for of, x in operands.items():
        fixed = next((name for name in asked.problems.operands if name != of), None)
        most = min(n, max(arithmetic.count_pairs(asked.right, fixed=fixed), 1))
        drawn = tries(f"causal tests at {of}", partial(arithmetic.pairs, asked.right, most, fixed=fixed, seed=seed))
        if drawn is None:
            continue
        written = tries(f"causal tests at {of}", partial(arithmetic.reconstructions, x.means, periods, seed=seed))
        if written is None:
            why = tries.reasons[f"causal tests at {of}"]
            tries.reasons[f"causal tests at {of}"] = f"A number is written from a fit that has not seen it. {why}"
            continue
        sites = [site for site in x.means.sites if site.endswith("resid_pre")]
        given = {"at": of, "batch_size": batch_size}
        swaps[of] = arithmetic.swap(
            model, drawn, written, sites, **given, progress=partial(progress, f"writing at {of}")
        )  # fmt: skip
        removed = {name: written[name] for name in REMOVED}
        removals[of] = arithmetic.swap(
            model, drawn, removed, sites, **given, manner="ablate", progress=partial(progress, f"removing at {of}")
        )
    return {"swaps": swaps, "removals": removals}
