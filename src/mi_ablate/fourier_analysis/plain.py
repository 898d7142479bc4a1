"""The results as plain numbers and words, for ``--json``: every measure under its variant's name, in full precision."""

import math
from typing import TYPE_CHECKING, Any

from mi_ablate import modular
from mi_ablate.modular.neurons import CLUSTER

if TYPE_CHECKING:
    from mi_ablate.fourier_analysis.results import FourierAnalysis


def to_json(found: "FourierAnalysis") -> dict[str, Any]:
    """Return one object that `json.dumps` writes; what could not be measured is None, with its reason under "reasons"."""
    grid, shares = found.grid, found.spectra["W_E"]
    values: dict[str, Any] = {
        "model": found.settings.get("model"),
        "operation": grid.operation,
        "modulus": grid.modulus,
        "group_order": grid.n,
        "primitive_root": grid.root,
        "accuracy": grid.accuracy,
        "loss": found.full["all"].value,
        "generalised": not found.keys["energy"].reason,
        "by_split": {name: {"loss": x.value, "accuracy": x.accuracy} for name, x in found.full.items()},
        "key_frequencies": [{"frequency": k, "share": shares.share(k)} for k in found.frequencies],
        "key_frequencies_by_rule": {rule: _keys(keys) for rule, keys in found.keys.items()},
        "character_orders": {k: modular.FourierBasis(grid.n).order(k) for k in found.frequencies},
        **_clock_pizza(found),
        **_losses(found),
        "cosines": _cosines(found),
        "spectra": {name: _spectrum(x, found) for name, x in found.spectra.items()},
        "spectra_over_pairs": {name: _pairs(x) for name, x in found.pairs.items()},
        "neurons": {variant: _neurons(x) for variant, x in found.neurons.items()},
        "trig_ratio": {"arena": found.trig_ratio},
        "representations": {"chughtai": found.representations},
        "attention": [row for layer in found.attention for row in layer.table()],
        "cyclic_geometry": {name: _cyclic(x) for name, x in found.cyclic.items()},
        "ranks": found.ranks,
        "causal": {level: _causal(x) for level, x in found.causal.items()},
        "progress": found.progress,
        "phases": found.phases,
        "reasons": found.reasons,
        "settings": found.settings,
        "seconds": round(found.seconds, 2),
    }
    return _finite(values)


def _clock_pizza(found: "FourierAnalysis") -> dict[str, Any]:
    published, every = (found.symmetricity.get(draw) for draw in ("published", "all"))
    said = found.verdict
    values: dict[str, Any] = {
        "gradient_symmetricity": None if published is None else published.value,
        "distance_irrelevance": found.distance_irrelevance,
        "circularity": None if found.circularity is None else found.circularity.value,
        "verdict": "undecided" if said is None else said.label,
        "verdict_reasons": [found.reasons.get("verdict", "")] if said is None else list(said.reasons),
    }
    draws = {"published": published, "all": every, "random": None if said is None else said.gradient_symmetricity}
    values["gradient_symmetricity_by_draw"] = {
        name: {"value": x.value, "standard_error": x.standard_error, "spread": x.spread, "triples": x.triples}
        for name, x in draws.items()
        if x is not None
    }
    if found.circularity is not None:
        values["circularity_components"] = {
            "shares": list(found.circularity.shares),
            "frequencies": list(found.circularity.frequencies),
        }
    if said is not None:
        values |= {"shuffled_weights": said.untrained, "sparsity_W_E": said.sparsity}
    names = ("clock", "pizza", "pizza_code")
    values["isolated_circles"] = [
        {"frequency": q.frequency, "accuracy": q.accuracy}
        | {f"{kind}_{name}": of(name) for name in names for kind, of in (("fve", q.fve), ("rho2", q.rho2))}
        for q in found.circles
    ]
    return values


def _losses(found: "FourierAnalysis") -> dict[str, Any]:
    details = {rule: {name: _loss(x) for name, x in losses.items()} for rule, losses in found.losses.items()}
    main = found.losses.get("energy", {})
    each = {k: x.value for k, x in found.each.items()}
    kinds = {
        kind: {n.removeprefix(f"{kind}_"): x.value for n, x in main.items() if n.startswith(kind)} for kind in _KINDS
    }
    return {
        "restricted_loss": kinds["restricted"],
        "excluded_loss": kinds["excluded"] | ({"nanda_colab": each, "arena": each} if each else {}),
        "trig_loss": kinds["restricted"].get("nanda_colab"),
        "losses_by_rule": details,
    }


_KINDS = ("restricted", "excluded")


def _loss(x: modular.Loss) -> dict[str, Any]:
    return {
        "value": x.value, "accuracy": x.accuracy, "split": x.split, "frequencies": list(x.frequencies), "level": x.level,
        "rule": x.rule, "bias": x.bias,
    }  # fmt: skip


def _keys(keys: modular.Keys) -> dict[str, Any]:
    return {
        "frequencies": list(keys.frequencies), "values": list(keys.values), "threshold": keys.threshold,
        "reason": keys.reason,
    }  # fmt: skip


def _cosines(found: "FourierAnalysis") -> dict[str, Any]:
    x, ks = found.cosines, found.frequencies
    return {
        "coefficients": x.coefficients.tolist(),
        "tl_demo_cosines": x.cosines.tolist(),
        "tl_demo_residual": x.residual(ks) if ks else None,
        "nanda_text_fve": x.fve.tolist(),
        "nanda_text_fve_of_keys": float(x.fve[[k - 1 for k in ks]].sum()) if ks else None,
        "centred_share": x.centred.tolist(),
        "trace_similarity": [float(c) / x.within**0.5 if x.within > 0 else None for c in x.coefficients],
        "top": x.top(),
    }


def _spectrum(x: modular.Spectrum, found: "FourierAnalysis") -> dict[str, Any]:
    values = {"shares": x.shares.tolist(), "energy": x.energy, "gini": x.gini, "gini_rows": x.gini_rows}
    values |= {f"top_{k}_share": x.share(*x.top(k)) for k in (5, 10) if k <= len(x.shares)}
    return values | {f"random_{name}": share for name, share in found.baselines.items()} if x.name == "W_E" else values


def _pairs(x: modular.Spectrum2) -> dict[str, Any]:
    alone = float(x.shares[0].sum() + x.shares[:, 0].sum())
    sums, differences = x.sums.tolist(), x.differences.tolist()
    return {"one_operand": alone, "sums": sums, "differences": differences, "sum_share": float(x.sums.sum())}


def _neurons(x: modular.Neurons) -> dict[str, Any]:
    return {
        "threshold": CLUSTER,
        "clusters": {k: len(members) for k, members in x.clusters().items()},
        "unassigned": len(x.unassigned()),
        "neurons": len(x.frequency),
        "frequencies": x.frequencies,
    }


def _cyclic(x: modular.CyclicGeometry) -> dict[str, Any]:
    share = x.shares.share(x.frequency)
    values = {"frequency": x.frequency, "order": x.order, "alignment": x.alignment, "share": share}
    return values | {"planar": x.planar}


def _causal(x: modular.CausalTable) -> dict[str, Any]:
    return {
        "site": x.site,
        "split": x.split,
        "part": x.part,
        "clean": x.clean,
        "frequencies": list(x.frequencies),
        "removed": x.removed,
        "kept": x.kept,
        "energy": x.energy,
        "controls": x.controls,
        "energetic_but_inert": x.inert(),
    }


def _finite(value: Any) -> Any:
    """The same with strings as keys, and None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
