"""The results as plain numbers and words, for ``--json``: full precision, None for what is not finite."""

import math
from typing import TYPE_CHECKING, Any

from mi_ablate.arithmetic import NumberSpectra, Swaps
from mi_ablate.helix_analysis.representation import Operand, by_site

if TYPE_CHECKING:
    from mi_ablate.helix_analysis.results import HelixAnalysis


def to_json(found: "HelixAnalysis") -> dict[str, Any]:
    """Return one object that `json.dumps` writes; what was left out is under "reasons"."""
    asked, problems = found.asked, found.asked.problems
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
            "accuracy_interval": list(asked.interval),
            "chance": asked.chance,
            "probability": float(asked.probability.mean()),
            "representation_only": asked.representation_only,
            "operands": {of: _operand(x) for of, x in found.operands.items()},
            "swaps": {of: _swaps(x) for of, x in found.swaps.items()},
            "removals": {of: _swaps(x) for of, x in found.removals.items()},
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
        "numbers": x.means.values.tolist(),
        "spectrum": {"embedding": _spectra(x.embedding), "stream": _spectra(x.spectra)},
        "linearity": x.linearity.table(),
        "separability": None if x.separability is None else x.separability.table(),
        "r2": {name: by_site(fits.sites, r2) for name, r2 in x.baselines.r2.items()},
        "left_out": {name: by_site(fits.sites, r2) for name, r2 in x.baselines.loo.items()},
        "helix": {
            "rank": fits.rank,
            "expected_shuffled": x.baselines.expected,
            "r2_prompts": by_site(fits.sites, fits.r2),
            "adjusted": by_site(fits.sites, fits.adjusted),
            "delta": {part: by_site(fits.sites, fits.delta[:, i]) for i, part in enumerate(fits.parts)},
            "norms": {label: by_site(fits.sites, fits.norms[:, i]) for i, label in enumerate(fits.labels)},
        },
        "period_sets": x.subsets.table(),
        "free_periods": {free.site: {"r2": free.r2, "left_out": free.loo, "found": free.table()} for free in x.free},
        "held_out": None if x.held is None else by_site(fits.sites, x.held.r2),
        "digit_probes": x.probes.table(),
        "circles": [c.row() for c in x.circles],
    }


def _spectra(x: NumberSpectra | None) -> dict[str, Any] | None:
    if x is None:
        return None
    found: dict[str, Any] = {"periods": x.periods.tolist(), "off_bin": list(x.off_bin)}
    for name, values in (("power", x.power), ("shares", x.shares), ("shuffled", x.null)):
        found[name] = by_site(x.sites, values)
    return {**found, "peaks": {site: x.peaks(i) for i, site in enumerate(x.sites)}}


def _swaps(x: Swaps) -> dict[str, Any]:
    """The mean gains by method and site, their maxima (of a removal: minima), and every measure."""
    means = x.mean()
    ends = means.amin(1) if x.manner == "ablate" else means.amax(1)
    return {
        "at": x.at,
        "manner": x.manner,
        "pairs": len(x.before["gain"]),
        "min" if x.manner == "ablate" else "max": dict(zip(x.methods, ends.tolist())),
        "by_site": {name: by_site(x.sites, means[m]) for m, name in enumerate(x.methods)},
        "before": {name: float(values.mean()) for name, values in x.before.items()},
        "clean": {name: float(values.mean()) for name, values in x.clean.items()},
        "table": x.table(),
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
