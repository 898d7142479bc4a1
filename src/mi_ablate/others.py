"""Directions that other tools found, as `Subspace`s by hook name, with what each tool means by sign, site and layer.

A vector alone does not say where it belongs: the same numbers, one layer or one site off, do something else. So every
function here returns ``{hook name: Subspace}``, and each subspace's ``source`` states the tool, the layer that the tool
counted, the sign, and whether the length means anything.

    tool                    "layer i" is                       hook name here               sign
    refusal_direction       the input of block i               blocks.i.hook_resid_pre      harmful minus harmless
    steering-vectors        output of block i, of its          blocks.i.hook_resid_post,    positive minus negative
                            attention, or of its MLP           hook_attn_out, hook_mlp_out
    repeng                  the output of block i              blocks.i.hook_resid_post     positive example larger
    SAELens                 its own hook name                  the same                     an active feature adds it
    TransformerLens 4.3     none: the caller's hook name       the same                     none (DAS), or its own

When it misleads: directions are found in a model as it was loaded. In a model with folded norms or centred writing weights
they differ, and in another model (a fine-tune of the same width) nothing here can tell.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.model import layer_of
from mi_ablate.subspace import Subspace

__all__ = ["interchange_basis", "refusal_direction", "repeng", "sae_lens", "steering_vectors"]

_LAYER_TYPES = {"decoder_block": "hook_resid_post", "self_attn": "hook_attn_out", "mlp": "hook_mlp_out"}


def refusal_direction(
    source: Any,
    *,
    layer: int | None = None,
    pos: int | None = None,
    model: HookedModel | None = None,
) -> dict[str, Subspace]:
    """Return directions of andyrdt/refusal_direction (Arditi et al. 2024): its ``direction.pt`` or ``mean_diffs.pt``.

    Args:
        source: the file, read with ``weights_only=True``, or its tensor or array: ``[d]``, or ``[pos, layer, d]`` where
            positions are the last ones of the prompt. Of these, layers whose means are equal have no direction: they are
            left out with a warning (layer 0 at a token of the template).
        layer: of a tensor ``[d]``: the block whose input it was read from (the repository writes it into
            ``direction_metadata.json``, which is read where it lies beside the file). Of ``[pos, layer, d]``: keep it alone.
        pos: of ``[pos, layer, d]``: which of the last positions, -1 by default.
        model: checks width and layers.

    """
    tensor, noted = _read(source)
    layer = noted.get("layer") if layer is None else layer
    if tensor.ndim == 1 and layer is None:
        raise ValueError("A direction [d] does not say its layer: give layer=, the block whose input it was read from.")
    if layer is not None and layer < 0:
        raise IndexError(f"layer={layer}: the tool counts blocks from 0.")
    if tensor.ndim == 1:
        found = {int(layer): tensor}  # type: ignore[arg-type]
        pos = noted.get("pos") if pos is None else pos
    elif tensor.ndim == 3:
        pos = -1 if pos is None else pos
        if not -tensor.shape[0] <= pos < 0:
            raise IndexError(
                f"pos={pos}: the tensor holds the last {tensor.shape[0]} positions, -{tensor.shape[0]} to -1."
            )
        if layer is not None and not 0 <= layer < tensor.shape[1]:
            raise IndexError(f"layer={layer} is out of range: the tensor holds layers 0 to {tensor.shape[1] - 1}.")
        layers = range(tensor.shape[1]) if layer is None else [layer]
        found = {i: tensor[pos, i] for i in layers}
    else:
        raise ValueError(f"The tensor has shape {list(tensor.shape)}; [d] or [pos, layer, d] is expected.")
    empty = [i for i, v in found.items() if not v.any()]
    if empty and len(empty) < len(found):
        warnings.warn(f"No direction at layers {empty}: the class means are equal there.", UserWarning, stacklevel=2)
        found = {i: v for i, v in found.items() if i not in empty}
    about = {"from": "refusal_direction", "layer means": "the input of the block", "pos": pos}
    about |= {"sign": "harmful minus harmless", "length": "the difference of the means"}
    return _checked(
        {f"blocks.{i}.hook_resid_pre": _one(v, "refusal direction", layer=i, **about) for i, v in found.items()}, model
    )


def steering_vectors(vector: Any, *, model: HookedModel | None = None) -> dict[str, Subspace]:
    """Return the directions of a ``steering_vectors.SteeringVector`` (its ``layer_activations`` by layer).

    Raises:
        ValueError: a layer type that is read after a norm's gain, which no hook point of the stream equals.

    """
    kind = getattr(vector, "layer_type", None)
    found = getattr(vector, "layer_activations", None)
    if not isinstance(found, Mapping):
        raise ValueError(f"{type(vector).__name__} has no layer_activations; a steering_vectors.SteeringVector has.")
    if kind not in _LAYER_TYPES:
        raise ValueError(
            f"layer_type {kind!r} is read after a norm, so it is no direction of the residual stream. "
            f"Known: {', '.join(_LAYER_TYPES)}."
        )
    about = {"from": "steering-vectors", "layer means": f"the output of the {kind}", "sign": "positive minus negative"}
    about["length"] = "as trained; its aggregator decides (mean: the difference of the means)"
    return _checked(
        {f"blocks.{i}.{_LAYER_TYPES[kind]}": _one(v, "steering vector", layer=i, **about) for i, v in found.items()},
        model,
    )


def repeng(vector: Any, *, model: HookedModel | None = None) -> dict[str, Subspace]:
    """Return the directions of a ``repeng.ControlVector`` (its ``directions`` by layer).

    A ``.gguf`` file is read by repeng itself: ``repeng.ControlVector.import_gguf(path)``. repeng reads Hugging Face's
    hidden states, of which the last is taken after the final norm: the direction of the last block is marked so.
    """
    found = getattr(vector, "directions", None)
    if not isinstance(found, Mapping):
        raise ValueError(f"{type(vector).__name__} has no directions; a repeng.ControlVector has.")
    about = {"from": "repeng", "layer means": "the output of the block", "sign": "the positive example is larger"}
    about["length"] = "1: a principal component; repeng's strengths multiply it"
    spaces = {f"blocks.{i}.hook_resid_post": _one(v, "control vector", layer=i, **about) for i, v in found.items()}
    if model is not None:
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        if last in spaces:
            s = spaces[last]
            spaces[last] = Subspace(s.basis, s.name, {**s.source, "caution": "repeng read it after the final norm"})
    return _checked(spaces, model)


def sae_lens(sae: Any, features: Any, *, model: HookedModel | None = None) -> dict[str, Subspace]:
    """Return the span of decoder rows of an SAELens SAE, in the order given, at the SAE's own hook name.

    SAELens comes with the extra: ``pip install 'mi_ablate[sae]'`` (TransformerLens below 4).

    Args:
        sae: anything with ``W_dec`` ``[feature, d]`` and ``cfg.metadata.hook_name`` (or, in older versions, ``cfg.hook_name``).
        features: which rows: a number, a list, or a tensor such as ``topk().indices``; rows that depend on earlier ones
            are an error, not a smaller rank.
        model: checks width and hook name.

    """
    cfg = getattr(sae, "cfg", None)
    site = getattr(getattr(cfg, "metadata", None), "hook_name", None) or getattr(cfg, "hook_name", None)
    rows = getattr(sae, "W_dec", None)
    if not isinstance(rows, Tensor) or rows.ndim != 2 or not isinstance(site, str):
        raise ValueError(
            f"{type(sae).__name__} is no SAELens SAE: it needs W_dec [feature, d] and a hook name in its cfg."
        )
    if site.endswith("hook_z"):
        raise ValueError(
            f"The SAE reads all heads of {site} as one vector; the hook point has one for each head. "
            "Map its rows through W_O to the residual stream, and give them to Subspace.span."
        )
    numbers = [int(f) for f in torch.as_tensor(features).flatten()]
    if not numbers or not all(0 <= f < len(rows) for f in numbers):
        raise IndexError(f"features {numbers[:4]}: choose from 0 to {len(rows) - 1}.")
    chosen = rows.detach()[numbers].double().cpu()
    span = Subspace.span(chosen, f"SAE features {numbers[:4]}")
    if span.rank < len(numbers):
        raise ValueError(f"The {len(numbers)} decoder rows span {span.rank} directions only; leave out the copies.")
    about: dict[str, Any] = {"method": "imported", "from": "SAELens", "features": numbers, "site": site}
    about |= {"sign": "an active feature adds its row", "layer": layer_of(site)}
    if len(numbers) == 1:
        about["sizes"] = chosen.norm(dim=1).tolist()
    return _checked({site: Subspace(span.basis, span.name, about)}, model)


def interchange_basis(
    basis: Any, site: str | None = None, *, name: str = "interchange basis", model: HookedModel | None = None
) -> dict[str, Subspace]:
    """Return a basis of TransformerLens 4.3's ``tools.analysis.interchange``: **columns** ``[d, rank]``, or what holds one.

    Args:
        basis: the matrix, a ``LearnedSubspace`` or a ``DASResult`` (their ``basis``). Its columns are orthonormal there.
        site: the hook name that it was found at; a ``DASResult`` says it itself.
        name: what to call it.
        model: checks width and hook name.

    """
    matrix = basis if isinstance(basis, Tensor) else getattr(basis, "basis", None)
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or matrix.shape[1] > matrix.shape[0]:
        shape = list(matrix.shape) if isinstance(matrix, Tensor) else type(basis).__name__
        raise ValueError(
            f"{shape} is no basis of columns [d, rank] with rank <= d. Rows? Subspace.span(rows) takes them."
        )
    site = site or getattr(basis, "hook_name", None)
    if site is None:
        raise ValueError("The basis does not say where it belongs: give site=, the hook name that it was found at.")
    columns = matrix.detach().double().cpu()
    error = float((columns.T @ columns - torch.eye(columns.shape[1], dtype=torch.float64)).abs().max())
    if error > 1e-3:
        raise ValueError(f"The columns are not orthonormal (error {error:.1e}). Subspace.span(basis.T) makes them so.")
    about = {"method": "imported", "from": "TransformerLens", "site": site, "layer": layer_of(site)}
    about["sign"] = "none: an interchange does not depend on it"
    return _checked({site: Subspace(Subspace.span(columns.T).basis, name, about)}, model)


def _one(vector: Any, name: str, **about: Any) -> Subspace:
    row = (
        vector.detach() if isinstance(vector, Tensor) else torch.tensor(vector)
    )  # a copy: others hold read-only arrays
    row = row.double().cpu().flatten()
    source = {"method": "imported", **about, "sizes": [float(row.norm())]}
    return Subspace(Subspace.span(row).basis, name, source)


def _read(source: Any) -> tuple[Tensor, dict[str, Any]]:
    if not isinstance(source, (str, Path)):
        return torch.as_tensor(source), {}
    import json

    path = Path(source)
    tensor = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path} holds a {type(tensor).__name__}, not a tensor.")
    noted = path.with_name("direction_metadata.json")
    return tensor, json.loads(noted.read_text()) if tensor.ndim == 1 and noted.is_file() else {}


def _checked(found: dict[str, Subspace], model: HookedModel | None) -> dict[str, Subspace]:
    """Refuse what the model has no place for."""
    if model is None:
        return found
    for site, space in found.items():
        if site not in model.hook_dict:
            raise IndexError(
                f"The model has no {site}: it has {model.cfg.n_layers} layers, 0 to {model.cfg.n_layers - 1}."
            )
        if site.rpartition(".")[2].startswith(("hook_resid", "hook_attn_out", "hook_mlp_out")) and (
            space.d != model.cfg.d_model
        ):
            raise ValueError(f"{space!r} is of another model: its vectors at {site} have width {model.cfg.d_model}.")
    return found
