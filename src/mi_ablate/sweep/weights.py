"""Weights that stay beside the records: half-precision toys that `toys.load` opens, tied to their record by a hash."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_ablate import _files
from mi_ablate.sweep.records import Record
from mi_ablate.toys import tasks
from mi_ablate.toys.evaluation import MODEL_FORMAT, train_mask
from mi_ablate.toys.recipes import TrainConfig

FOLDER = "weights"


def pack(source: Path, folder: Path, key: str, target: int | None) -> dict[str, Any]:
    """Write the weights of ``source`` to ``folder`` in half precision; return what a record says of them.

    Raises:
        ValueError: a weight that half precision cannot hold.

    """
    state, card = _files.read(source)
    half = {name: tensor.to(torch.float16) for name, tensor in state.items()}
    beyond = [name for name, tensor in half.items() if not torch.isfinite(tensor).all()]
    if beyond:
        raise ValueError(f"{source}: {', '.join(beyond)} hold values beyond half precision (65,504).")
    settings = TrainConfig.from_dict(card["training"])
    step = card["step"] if "step" in card else card["checkpoint_step"]
    told = {
        "format": MODEL_FORMAT,
        "config": settings.config.to_dict(),
        "training": card["training"],
        "train_mask": tasks.pack_mask(train_mask(settings)),
        "cell": key,
        "checkpoint_step": step,
        "stable": card["stable"],
    }
    name = key if target is None else f"{key}-{target}"
    path = _files.write(folder / f"{name}.safetensors", half, told)
    return {"file": f"{folder.name}/{path.name}", "step": step, "stable": card["stable"], "sha256": _digest(path)}


def unpack(folder: Path, entry: dict[str, Any], record: Record) -> dict[str, Tensor]:
    """Return the float32 tensors of a record's weights after checking that they are the record's.

    Raises:
        ArtefactError: no such file, or one that is not what the record describes.

    """
    path = folder.parent / entry["file"]
    state, card = _files.read(path)
    if card.get("cell") != record["key"] or card.get("checkpoint_step") != entry["step"]:
        raise _files.ArtefactError(
            f"{path} holds step {card.get('checkpoint_step')} of the cell {card.get('cell')}, but the record is of step "
            f"{entry['step']} of {record['key']}; put the right file there."
        )
    if _digest(path) != entry["sha256"]:
        raise _files.ArtefactError(f"{path} has changed since its record was written; restore it.")
    return {name: tensor.float() for name, tensor in state.items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state's names and numbers, the same wherever the same weights come from."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + state[name].detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def intact(folder: Path, record: Record) -> bool:
    """Whether all weights of a record are where it says, unchanged."""
    files = [(folder.parent / entry["file"], entry["sha256"]) for entry in record["weights"]]
    return all(path.is_file() and _digest(path) == told for path, told in files)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
