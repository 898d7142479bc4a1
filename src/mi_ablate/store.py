"""Save and load interventions: one safetensors file, a card in its header, nothing executed.

The file holds every tensor once, in float64 where the intervention has it so, and a JSON card with the operations, sites,
positions and conventions, what was claimed with which control, and a fingerprint of the model. Loading onto another
architecture is an error; onto other weights an error unless ``strict=False``. Values that belong to single examples carry
the hash of the tokens that they belong to.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mi_ablate import _files
from mi_ablate._files import ArtefactError
from mi_ablate._types import FwdHooks, HookedModel, nearest
from mi_ablate.interventions import Ablate, Add, Erase, Intervention, Placed, Rotate
from mi_ablate.subspace import Subspace

FORMAT = "mi_ablate interventions 1"
_FIELDS: dict[type[Intervention], tuple[str, ...]] = {
    Ablate: ("subspace", "to", "strength", "keep", "gate"),
    Add: ("vector", "strength"),
    Rotate: ("subspace", "angle", "strength", "centre", "absolute"),
    Erase: ("writer", "reader", "centre", "strength", "gate"),
}
_CLASSES = {cls.__name__: cls for cls in _FIELDS}
_ANYWAY = "Load with strict=False (mi-ablate apply --loose) to use it anyway"
_SHAPE = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn", "attn_only")


@dataclass(frozen=True)
class Card:
    """What a reader must know of a saved intervention; `Card.of` fills in the model."""

    title: str
    description: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    """`fingerprint` of the model that it was made on."""
    claim: dict[str, Any] = field(default_factory=dict)
    """The effect claimed, with its control: plain numbers and words."""
    fit: dict[str, Any] = field(default_factory=dict)
    """Where the subspace comes from: design, rows, r2."""
    seeds: dict[str, int] = field(default_factory=dict)
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: HookedModel, title: str, **fields: Any) -> "Card":
        """Return a card with the model's fingerprint and the versions in use."""
        import mi_ablate

        versions = {"mi_ablate": mi_ablate.__version__, "torch": torch.__version__}
        return cls(title, model=fingerprint(model), versions={**versions, **fields.pop("versions", {})}, **fields)


def fingerprint(model: HookedModel) -> dict[str, Any]:
    """Return the architecture and a hash of the weights that write and read the residual stream (as float32)."""
    cfg: Any = model.cfg
    shape = {key: getattr(cfg, key, None) for key in _SHAPE}
    shape["attn_only"] = bool(shape["attn_only"])
    digest = hashlib.sha256()
    for tensor in _weights(model):
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return {"architecture": shape, "weights": digest.hexdigest()[:32]}


def save(
    path: str | Path, hooks: FwdHooks, card: Card | dict[str, Any], *, tokens: Int[Tensor, "n p"] | None = None
) -> Path:
    """Write placed interventions and their card to ``path`` (.safetensors), atomically.

    Args:
        path: where to.
        hooks: ``edit.at(...)``; lists may be joined with +.
        card: `Card.of(model, title, ...)`.
        tokens: the prompts that per-example values (``to``, ``pos``, ``strength``) belong to; needed where there are any.

    Raises:
        ValueError: a hook, gate or position rule that is a function cannot be saved.

    """
    if not hooks:
        raise ValueError("There are no hooks to save.")
    pool: dict[str, Tensor] = {}
    entries = [_entry(name, hook, pool) for name, hook in hooks]
    per_example = any(entry["per_example"] for entry in entries)
    if per_example and tokens is None:
        raise ValueError(
            "These hooks hold one value an example: give save(..., tokens=) so that others are refused at load."
        )
    header = card if isinstance(card, dict) else asdict(card)
    header = {"title": "", **header, "format": FORMAT, "hooks": entries}
    header["tokens"] = _hash(tokens) if per_example and tokens is not None else None
    return _files.write(path, pool, header)


def load(
    path: str | Path,
    model: HookedModel | None = None,
    strict: bool = True,
    *,
    tokens: Int[Tensor, "n p"] | None = None,
) -> FwdHooks:
    """Return the hooks saved at ``path``, checked against ``model`` where one is given.

    Raises:
        ArtefactError: not such a file, another architecture, other weights (unless ``strict=False``), other tokens.

    """
    tensors, header = _files.read(path)
    _check_header(path, header)
    if model is not None:
        _check_model(path, header, model, strict)
    if header.get("tokens") is not None and (tokens is None or _hash(tokens) != header["tokens"]):
        raise ArtefactError(
            f"{path} holds one value for each of its own prompts; give load(..., tokens=) the same tokens."
        )
    try:
        hooks: FwdHooks = [_hook(entry, tensors) for entry in header["hooks"]]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArtefactError(f"{path}: its card does not describe usable hooks ({error}).") from None
    if model is not None:
        missing = [name for name, _ in hooks if name not in model.hook_dict]
        if missing:
            raise ArtefactError(
                f"{path} edits {missing[0]}, which the model lacks. {nearest(missing[0], model.hook_dict)}"
            )
    return hooks


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a saved file, with its hooks described, without building anything."""
    _, header = _files.read(path)
    _check_header(path, header)
    return header


def _entry(name: str, hook: Any, pool: dict[str, Tensor]) -> dict[str, Any]:
    if not isinstance(hook, Placed) or type(hook.intervention) not in _FIELDS:
        raise ValueError(f"The hook at {name} is a function; only interventions (edit.at(name)) can be saved.")
    edit = hook.intervention
    values = {key: _store(getattr(edit, key), f"{key} of {edit!r}", pool) for key in _FIELDS[type(edit)]}
    tensors = [getattr(edit, key) for key in ("to", "strength", "gate", "vector") if hasattr(edit, key)] + [hook.pos]
    per_example = any(isinstance(t, Tensor) and t.ndim > (0 if t is hook.pos else 1) for t in tensors)
    where = {key: _store(getattr(hook, key), f"{key} at {name}", pool) for key in ("pos", "head", "unit")}
    return {
        "site": name,
        "operation": type(edit).__name__,
        "values": values,
        **where,
        "when": hook.when,
        "per_example": per_example,
    }


def _store(value: Any, what: str, pool: dict[str, Tensor]) -> Any:
    """Plain JSON for plain values; tensors go to the pool, equal ones once."""
    if isinstance(value, Subspace):
        return {"subspace": _pooled(value.basis, pool), "name": value.name, "source": dict(value.source)}
    if isinstance(value, Tensor):
        return {"tensor": _pooled(value, pool)}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if callable(value):
        raise ValueError(f"{what} is a function; a file holds values only. Replace it by a tensor.")
    return value


def _pooled(tensor: Tensor, pool: dict[str, Tensor]) -> str:
    tensor = tensor.detach().cpu().contiguous()
    for key, other in pool.items():
        if other.shape == tensor.shape and other.dtype == tensor.dtype and torch.equal(other, tensor):
            return key
    key = f"tensor{len(pool)}"
    pool[key] = tensor
    return key


def _hook(entry: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[str, Placed]:
    def back(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "subspace" in value:
            return Subspace(tensors[value["subspace"]], str(value.get("name", "")), dict(value.get("source", {})))
        return slice(*value["slice"]) if "slice" in value else tensors[value["tensor"]]

    operation = entry["operation"]
    if operation not in _CLASSES:
        raise ValueError(f"unknown operation {operation!r}; known: {', '.join(_CLASSES)}")
    edit = _CLASSES[operation](**{key: back(value) for key, value in entry["values"].items()})
    where = {key: back(entry[key]) for key in ("pos", "head", "unit")}
    [(name, placed)] = edit.at(entry["site"], **where, when=entry["when"])
    return name, placed  # type: ignore[return-value]


def _check_header(path: str | Path, header: dict[str, Any]) -> None:
    if header.get("format") != FORMAT:
        raise ArtefactError(
            f"{path} is not a saved intervention: its format is {header.get('format')!r}, not {FORMAT!r}."
        )
    if not isinstance(header.get("hooks"), list) or not header["hooks"]:
        raise ArtefactError(f"{path}: its card lists no hooks.")


def _check_model(path: str | Path, header: dict[str, Any], model: HookedModel, strict: bool) -> None:
    made = header.get("model") or {}
    if not made:
        if strict:
            raise ArtefactError(f"{path} does not say which model it was made on. {_ANYWAY}.")
        return
    here = fingerprint(model)
    other = {
        k: (v, here["architecture"].get(k)) for k, v in made["architecture"].items() if v != here["architecture"].get(k)
    }
    if other:
        said = ", ".join(f"{key} {was} (this model: {now})" for key, (was, now) in list(other.items())[:4])
        raise ArtefactError(f"{path} was made on another architecture: {said}.")
    if strict and made["weights"] != here["weights"]:
        raise ArtefactError(
            f"{path} was made on the same architecture with other weights. {_ANYWAY}, and measure its effect again."
        )


def _weights(model: Any) -> list[Tensor]:
    found = [model.embed.W_E]
    for block in model.blocks:
        found.append(block.attn.W_O)
        if getattr(block, "mlp", None) is not None:
            found.append(block.mlp.W_out)
    return [*found, model.unembed.W_U]


def _hash(tokens: Tensor) -> str:
    body = json.dumps(tokens.tolist(), separators=(",", ":")).encode()
    return hashlib.sha256(body).hexdigest()[:32]
