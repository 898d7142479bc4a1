"""Measured values as plain JSON: rounded to five digits, None for what is not finite, nothing but lists and dicts."""

import math
from typing import Any

from torch import Tensor

from mi_ablate.curves import Curve
from mi_ablate.effects import Effect

DIGITS = 5
TAUS, RULES, SCALES = (0.95, 0.5), ("first", "hull"), ("relative", "absolute")


def plain(value: Any) -> Any:
    """Return tensors as lists and floats with `DIGITS` significant digits; NaN and infinity become None."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def curves_json(curves: dict[str, Curve]) -> dict[str, Any]:
    """Return curves over the same subspaces: their k and the variance removed once, then each by its name."""
    first = next(iter(curves.values()))
    shared = {"ks": list(first.ks), "variance_removed": dict(first.variance_removed)}
    return shared | {name: curve_json(curve) for name, curve in curves.items()}


def curve_json(curve: Curve) -> dict[str, Any]:
    """Return a curve with its controls and every reading of k: ``["k"][run]["0.95"]["first"]["relative"]``.

    A control is its mean over the draws, with the lowest and the highest where there are several.
    """
    controls = {}
    for name, draws in curve.controls.items():
        controls[name] = {"mean": draws.mean(0)}
        if len(draws) > 1:
            controls[name] |= {"low": draws.amin(0), "high": draws.amax(0)}
    k = {run: readings(curve, run) for run in ("edited", *curve.controls)}
    return {"edited": curve.values, "controls": controls, "k": k}


def readings(curve: Curve, run: str) -> dict[str, Any]:
    """Return k at each threshold, by rule and by scale; None where the clean accuracy is below the threshold."""
    found: dict[str, Any] = {}
    for tau in TAUS:
        found[str(tau)] = {rule: {scale: _survived(curve, run, tau, rule, scale) for scale in SCALES} for rule in RULES}
    return found


def effect_json(found: Effect) -> dict[str, Any]:
    """Return an effect: mean clean and edited, and mean, low and high of each control over its draws."""
    controls = {}
    for name, scores in found.controls.items():
        means = scores.mean(1)
        controls[name] = {
            "mean": float(means.mean()),
            "low": float(means.min()),
            "high": float(means.max()),
            "variance_removed": found.variance_removed[name],
        }
    return {
        "clean": float(found.clean.mean()),
        "edited": float(found.edited.mean()),
        "variance_removed": found.variance_removed["edited"],
        "controls": controls,
    }


def _survived(curve: Curve, run: str, tau: float, rule: str, scale: str) -> dict[str, Any] | None:
    k = curve.k_at(tau, rule=rule, scale=scale, run=run)
    return None if k is None else {"k": int(k), "upper": k.upper, "censored": k.censored}
