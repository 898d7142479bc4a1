"""What depends on the model's layers: one edit or strength for each, and what its norms let the readers see.

`per_layer` places one direction a layer, or one direction with a strength that is a function of depth. Neither equals
one edit of the whole stream: a layer's writers are edited by its own edit alone, what earlier layers wrote stays, and
the embeddings are left as they are unless ``embed=`` says otherwise. Most tools for abliteration edit attention and MLP
only; what the embeddings wrote along the direction is then read by every layer.

`visible`: LayerNorm subtracts the mean over coordinates, so the direction of all ones, 1/√d, never reaches a reader.
Ablating a raw r = a·1/√d + √(1-a²)·u removes what is along r, and with it only 1 - a² of what is along u, the part that
readers see, while a share of the mean leaks in. Removing u itself leaves nothing. RMSNorm hides no direction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Intervention
from mi_ablate.model import sites, writers
from mi_ablate.subspace import Subspace

Strengths = int | float | Mapping[int, int | float] | Sequence[int | float] | Callable[[int], int | float]
_HIDDEN = 1e-6


def per_layer(
    model: HookedModel,
    edits: Intervention | Mapping[int, Intervention],
    *,
    strength: Strengths | None = None,
    site: str = "writers",
    embed: Intervention | None = None,
    pos: Pos = None,
    when: str = "all",
) -> FwdHooks:
    """Return hooks with one edit a layer; `bake_` takes them too where the site is "writers".

    Args:
        model: any hooked model.
        edits: by layer, or one for all; negative layers count from the last, layers not named are left alone.
        strength: multiplies the edit's own: one number for all, by layer (others are left alone), one number for each
            layer, or a function of the layer's number; `layer_kernel` gives the usual ones. Layers of strength 0 get no hook.
        site: "writers" for what the layer itself adds to the stream, else a pattern for `sites`, such as "resid_post".
        embed: the edit of the embeddings, which belong to no layer; None leaves them alone.
        pos: positions, as for ``edit.at``; None for all.
        when: "all", or within `attached` "prompt" or "new".

    Raises:
        IndexError: a layer that the model lacks.
        ValueError: edits in another form, a strength for another number of layers, a layer named twice, no layer left, a
            strength for an edit that has none.

    """
    n = model.cfg.n_layers
    if not isinstance(edits, (Intervention, Mapping)):
        raise ValueError(
            f"edits is a {type(edits).__name__}: give one edit for all layers, or {{0: edit, 5: other}} by layer."
        )
    chosen = dict.fromkeys(range(n), edits) if isinstance(edits, Intervention) else _numbered(edits, n, "edits")
    factors = _factors(strength, n)
    hooks: FwdHooks = []
    if embed is not None:
        blocks = set(writers(model, layers=range(n)))
        hooks += embed.at(*[name for name in writers(model) if name not in blocks], pos=pos, when=when)
    for layer in sorted(chosen):
        factor = factors.get(layer, 0)
        if factor == 0:
            continue
        names = writers(model, layers=layer) if site == "writers" else sites(model, site, layers=layer)
        hooks += _times(chosen[layer], factor).at(*names, pos=pos, when=when)
    if not hooks:
        raise ValueError("per_layer leaves no layer to edit: every named layer has strength 0, or none is named.")
    return hooks


def layer_kernel(
    n_layers: int,
    *,
    distance: int | float,
    peak: int | float = 1.0,
    position: int | float = 0.5,
    floor: int | float = 0.0,
) -> tuple[float, ...]:
    """Return a strength for each layer: ``peak`` at ``position``, falling in a line to ``floor`` over ``distance`` layers.

    s(l) = peak + (floor - peak) |l - c| / distance for |l - c| <= distance, else 0, with c = position (n_layers - 1):
    the parametrisation that heretic searches over, re-derived.

    Args:
        n_layers: of the model; 1 gives the peak.
        distance: layers from the peak to the floor, above 0; 0 strength, not the floor, lies beyond.
        peak: strength at the peak.
        position: of the peak, as a share of depth from 0 (first layer) to 1 (last).
        floor: strength at ``distance`` from the peak.

    Raises:
        ValueError: no layers, a distance of 0 or less, or a position outside 0 to 1.

    """
    if n_layers < 1 or distance <= 0 or not 0 <= position <= 1:
        raise ValueError(
            f"layer_kernel got n_layers={n_layers}, distance={distance}, position={position}; "
            "at least one layer, a distance above 0 and a position from 0 to 1 are needed."
        )
    away = [abs(layer - position * (n_layers - 1)) for layer in range(n_layers)]
    return tuple(float(peak + (floor - peak) * a / distance) if a <= distance else 0.0 for a in away)


def visible(model: HookedModel, subspace: Subspace) -> Subspace:
    """Return the part of a stream subspace that the model's norms let readers see.

    For LayerNorm models the directions with their mean over coordinates taken off, in their order; the subspace itself
    for RMSNorm and for models without norms. Its rank falls by one where it holds the direction of all ones.

    Raises:
        ValueError: a subspace of another width, or one that lies along the direction of all ones.

    """
    kind = getattr(model.cfg, "normalization_type", None)
    if subspace.d != model.cfg.d_model:
        raise ValueError(
            f"{subspace!r} is no subspace of the residual stream, whose width is {model.cfg.d_model}: "
            "norms read the stream alone."
        )
    if kind not in ("LN", "LNPre"):
        return subspace
    centred = subspace.basis - subspace.basis.mean(0, keepdim=True)
    sizes = centred.norm(dim=0)
    if not bool((sizes > _HIDDEN).any()):
        raise ValueError(
            f"{subspace!r} lies along the direction of all ones, which LayerNorm subtracts: no reader sees any of it."
        )
    found = Subspace.span(centred.T[sizes > _HIDDEN], subspace.name)
    source: dict[str, Any] = {**subspace.source, "visible": "mean over coordinates taken off, as LayerNorm does"}
    lengths = source.pop("sizes", None)
    if lengths is not None and subspace.rank == 1:
        source["sizes"] = [lengths[0] * float(sizes[0])]
    return replace(found, source=source)


def _numbered(by_layer: Mapping[int, Any], n: int, what: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for layer, value in by_layer.items():
        if not -n <= layer < n:
            raise IndexError(f"{what} names layer {layer}; the model has {n}, so 0 to {n - 1} (or {-n} to -1).")
        if layer % n in found:
            raise ValueError(f"{what} names layer {layer % n} twice, once counted from the end.")
        found[layer % n] = value
    return found


def _factors(strength: Strengths | None, n: int) -> dict[int, int | float]:
    if strength is None:
        return dict.fromkeys(range(n), 1)
    if isinstance(strength, Mapping):
        return {layer: _number(value) for layer, value in _numbered(strength, n, "strength").items()}
    if isinstance(strength, (int, float)) or getattr(strength, "ndim", 1) == 0:
        return dict.fromkeys(range(n), _number(strength))
    if callable(strength):
        return {layer: _number(strength(layer)) for layer in range(n)}
    if len(strength) != n:
        raise ValueError(f"strength has {len(strength)} numbers; the model has {n} layers, and each needs one.")
    return {layer: _number(value) for layer, value in enumerate(strength)}


def _number(value: Any) -> int | float:
    """A plain number of numpy's or torch's."""
    return value if isinstance(value, (int, float)) else float(value)


def _times(edit: Intervention, factor: int | float) -> Intervention:
    own = getattr(edit, "strength", None)
    if factor == 1:
        return edit
    if own is None:
        raise ValueError(f"{edit!r} has no strength to multiply.")
    if not torch.isfinite(torch.as_tensor(float(factor))):
        raise ValueError(f"A strength of {factor} is not a number to multiply by.")
    return replace(edit, strength=own * factor)  # type: ignore[call-arg]
