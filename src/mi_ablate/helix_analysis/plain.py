"""The results as plain numbers and words, for ``--json``: full precision, None for what is not finite."""

import math
from typing import TYPE_CHECKING, Any

from mi_ablate.helix_analysis.representation import Operand, by_site

if TYPE_CHECKING:
    from mi_ablate.helix_analysis.results import HelixAnalysis


def to_json(found: "HelixAnalysis") -> dict[str, Any]:
    """Return one object that `json.dumps` writes; what was left out is under "reasons"."""
    asked, problems = found.asked, found.asked.problems
    low, high = asked.interval
    return finite(
        {
            "model": found.model,
            "task": problems.task,
            "template": problems.template,
            "example": found.example,
            "bos": problems.bos,
            "positions": problems.positions,
            "forms": problems.forms,
            "modulus": problems.modulus,
            "single_tokens": {
                form: {"contiguous": x.contiguous, "first_failure": x.first_failure, "count": len(x), "upto": x.upto}
                for form, x in found.numerals.items()
            },
            "n": len(problems),
            "n_correct": asked.n_correct,
            "accuracy": asked.accuracy,
            "accuracy_interval": [low, high],
            "chance": asked.chance,
            "probability": float(asked.probability.mean()),
            "representation_only": asked.representation_only,
            "operands": {of: _operand(x) for of, x in found.operands.items()},
            "warnings": found.warnings,
            "reasons": found.reasons,
            "settings": found.settings,
            "seconds": round(found.seconds, 2),
        }
    )


def _operand(x: Operand) -> dict[str, Any]:
    fits = x.fits
    return {
        "sites": list(fits.sites),
        "best": x.best,
        "numbers": len(x.means.values),
        "helix": {
            "rank": fits.rank,
            "r2_prompts": by_site(fits.sites, fits.r2),
            "adjusted": by_site(fits.sites, fits.adjusted),
            "delta": {part: by_site(fits.sites, fits.delta[:, i]) for i, part in enumerate(fits.parts)},
            "norms": {label: by_site(fits.sites, fits.norms[:, i]) for i, label in enumerate(fits.labels)},
        },
        "period_sets": x.subsets.table(),
        "held_out": None if x.held is None else by_site(fits.sites, x.held.r2),
    }


def finite(value: Any) -> Any:
    """Return the same with strings as keys, and None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
