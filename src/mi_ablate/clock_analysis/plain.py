"""The results as plain numbers and words, for ``--json``: full precision, None for what is not finite."""

from typing import TYPE_CHECKING, Any

from mi_ablate.arithmetic.circuit.components import ComponentEffects
from mi_ablate.clock_analysis.circuit import CIRCUIT, Heads, Mlps, numbered
from mi_ablate.clock_analysis.last_token import LastToken
from mi_ablate.clock_analysis.neurons import Neurons
from mi_ablate.clock_analysis.readout import Readout
from mi_ablate.clock_analysis.rival import Rival
from mi_ablate.helix_analysis.plain import finite

if TYPE_CHECKING:
    from mi_ablate.clock_analysis.results import ClockAnalysis

ROLES = {"a,b": "a,b", "a+b": "answer", "mixed": "mixed", "idle": "idle"}
"""The labels of heads, and what they are called in JSON."""


def to_json(found: "ClockAnalysis") -> dict[str, Any]:
    """Return one object that `json.dumps` writes; what was left out is under "reasons"."""
    asked, problems = found.asked, found.asked.problems
    return finite(
        {
            "model": found.model,
            "task": problems.task,
            "template": problems.template,
            "bos": problems.bos,
            "modulus": problems.modulus,
            "n": len(problems),
            "n_correct": asked.n_correct,
            "accuracy": asked.accuracy,
            "accuracy_interval": list(asked.interval),
            "chance": asked.chance,
            "solved": found.solved,
            "last_token": _last(found.last),
            "layers": _layers(found.layers),
            "heads": _heads(found.heads),
            "mlps": _mlps(found.mlps),
            "paths": None if found.paths is None else found.paths.table(),
            "neurons": _neurons(found.neurons),
            "heuristics": _rival(found.rival),
            "readout": _readout(found.readout),
            "errors": _errors(found.readout),
            "evidence": {
                "lines": found.evidence.table(),
                "verdict": found.evidence.verdict,
                "text": found.evidence.text,
            },
            "warnings": found.warnings,
            "reasons": found.reasons,
            "settings": found.settings,
            "seconds": round(found.seconds, 2),
        }
    )


def _last(x: LastToken | None) -> dict[str, Any] | None:
    if x is None:
        return None
    r2 = {basis: dict(zip(x.fits.sites, row.tolist())) for basis, row in zip(x.fits.bases, x.fits.r2)}
    made: dict[str, Any] = {
        "r2": r2,
        "pca": {basis: dict(zip(x.fits.sites, row.tolist())) for basis, row in zip(x.fits.bases, x.fits.pca)},
        "ranks": dict(zip(x.fits.bases, x.fits.ranks)),
        "shuffled_r2": dict(zip(x.fits.sites, x.shuffled.tolist())),
        "swaps": None,
    }
    if x.swaps is not None:
        means = x.swaps.mean()
        made["swaps"] = {
            "max": dict(zip(x.swaps.methods, means.amax(1).tolist())),
            "by_site": {m: dict(zip(x.swaps.sites, row.tolist())) for m, row in zip(x.swaps.methods, means)},
            "table": x.swaps.table(),
        }
    return made


def _layers(x: dict[str, ComponentEffects]) -> dict[str, Any] | None:
    if not x:
        return None
    summed = {kind: effects.summed()[0] for kind, effects in x.items()}
    made: dict[str, Any] = {
        effect: {kind: row[effect] for kind, row in summed.items()} for effect in ("total", "direct", "indirect")
    }
    made |= {"norm": next(iter(x.values())).norm, "gap": float(next(iter(x.values())).gap.mean())}
    return made | {"by_layer": {kind: effects.table() for kind, effects in x.items()}, "summed": list(summed.values())}


def _heads(x: Heads | None) -> dict[str, Any] | None:
    if x is None:
        return None
    roles = x.roles
    return {
        "circuit": [numbered(c) for c in x.named],
        "roles": None if roles is None else {ROLES[k]: [numbered(c) for c in roles.of(k)] for k in ROLES},
        "confidence": None if roles is None else roles.table(),
        "mixed_share": None if roles is None else {m: float(s) for m, s in enumerate(roles.shares)},
        "share_of": {k + 1: share for k, share in enumerate(x.sets.shares_of_curve().tolist())},
        "share_of_random": {k: row.tolist() for k, row in zip(x.ks, x.random)},
        "sets": {f"{share:g}": [numbered(c) for c in s] if s else None for share, s in zip(x.sets.shares, x.sets.sets)},
        "effects": x.effects.table(),
        "norm": x.effects.norm,
    }


def _mlps(x: Mlps | None) -> dict[str, Any] | None:
    if x is None:
        return None
    return {
        "sets": {f"{share:g}": [c.layer for c in s] if s else None for share, s in zip(x.sets.shares, x.sets.sets)},
        "circuit": {"share": CIRCUIT, "layers": [c.layer for c in x.circuit]},
        "labels": x.labels(),
        "by_layer": x.roles.table(),
        "search": x.sets.table(),
    }


def _neurons(x: Neurons | None) -> dict[str, Any] | None:
    if x is None:
        return None
    return {
        "kept": x.count,
        "by_layer": x.by_layer(),
        "accuracy": x.kept.table(),
        "fitted_share": x.worth(),
        "shuffled_share": x.worth("shuffled"),
        "other_periods": list(x.other_periods),
        "other_periods_share": x.worth("other periods"),
        "fits": x.fits.table()[: x.count],
    }


def _rival(x: Rival | None) -> dict[str, Any] | None:
    if x is None:
        return None
    return {
        "neurons": len(x.matches.neurons),
        "classified": x.matches.classified,
        "shuffled": x.matches.chance,
        "kinds": x.matches.table(),
        "faithfulness": x.faithful.table(),
        "knocked_out": None if x.knocked is None else x.knocked.table(),
        "specific": x.specific(),
    }


def _readout(x: Readout | None) -> dict[str, Any] | None:
    if x is None:
        return None
    made: dict[str, Any] = {"numbers": len(x.logits.numbers), "logits": x.logits.table(), "falling": x.logits.falling}
    made["neurons"] = None if x.neurons is None else x.neurons.table()
    return made | {"line": None if x.line is None else x.line.table()}


def _errors(x: Readout | None) -> dict[str, Any] | None:
    if x is None:
        return None
    e = x.errors
    return {
        "n": e.n,
        "wrong": e.n - e.n_right,
        "not_numbers": e.n_not_numbers,
        "shares": {d: e.share(d) for d in sorted(set(e.differences.tolist()))},
        "multiples_of_ten": e.multiples_of_ten,
        "too_small": e.too_small,
        "symmetry": x.symmetry,
    }
