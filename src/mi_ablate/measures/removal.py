"""How many directions can be removed before the model fails: at the last residual, at every site, and beside others.

The curve of directions says how the answer's variance is spread. Its controls decide whether the directions are special:
covariance-drawn subspaces and the top principal components, from the same training pairs. Single directions within a
frequency are arbitrary, so frequency planes are removed whole as well.
"""

from typing import Any

from mi_ablate.curves import Curve, removal_curve
from mi_ablate.measures.bases import SPARSE
from mi_ablate.measures.plain import curves_json
from mi_ablate.measures.subject import DIRECTIONS, DRAWS, Operation
from mi_ablate.subspace import Subspace

ABLATIONS = ("zero", "mean", "resample")


def last_residual(one: Operation) -> dict[str, Any] | None:
    """Curves at the last residual: ``["directions"][norms][ablation]`` and ``["planes"][ablation]``."""
    if not one.measurable or one.bases is None:
        return None
    basis = one.bases[one.last]
    directions = _curves(one, {one.last: basis}, range(min(DIRECTIONS, basis.rank) + 1))
    whole: dict[str, Any] | None = None
    if one.planes is not None and one.planes.rank > 1:
        ks = range(0, min(DIRECTIONS, one.planes.rank) // 2 * 2 + 1, 2)
        at = {one.last: one.planes}
        whole = curves_json({a: _curve(one, at, ks, a, step=2, controls={}) for a in ABLATIONS})
    return {"directions": directions, "planes": whole}


def every_site(one: Operation) -> dict[str, Any] | None:
    """Curves with a basis of its own at each site after the first attention: ``[norms][ablation]``."""
    if not one.measurable or one.bases is None:
        return None
    most = min(basis.rank for basis in one.bases.values())
    return _curves(one, one.bases, [k for k in SPARSE if k <= most])


def collateral(one: Operation) -> dict[str, Any] | None:
    """Accuracy of each other operation while this one's leading directions are removed: ``[other][ablation]``.

    Norms are live. "mean" keeps the mean of the other operation's held-out pairs. Controls are drawn from this
    operation's activations.
    """
    others = [other for other in one.subject.operations.values() if other is not one]
    if not others or not one.measurable or one.bases is None:
        return None
    basis = {one.last: one.bases[one.last]}
    ks = range(min(DIRECTIONS, basis[one.last].rank) + 1)
    found: dict[str, Any] = {}
    for other in others:
        curves = {a: _curve(other, basis, ks, a, controls=one.controls) for a in ("zero", "mean") if other.measurable}
        found[other.name] = curves_json(curves) if curves else None
    return found


def _curves(one: Operation, bases: dict[str, Subspace], ks: Any) -> dict[str, Any]:
    """Every ablation, with live and with frozen norms; a model without norms is measured once."""
    bare = one.subject.config.config.normalization is None
    live = {a: _curve(one, bases, ks, a, controls=one.controls) for a in ABLATIONS}
    frozen = live if bare else {a: _curve(one, bases, ks, a, controls=one.controls, norms="frozen") for a in ABLATIONS}
    return {"live": curves_json(live), "frozen": curves_json(frozen)}


def _curve(one: Operation, bases: dict[str, Subspace], ks: Any, ablation: str, **kw: Any) -> Curve:
    """The curve of an operation's held-out accuracy."""
    model, tokens = one.task.toy.model, one.held_tokens
    return removal_curve(model, tokens, bases, one.metric, ks=ks, ablation=ablation, draws=DRAWS, **kw)
