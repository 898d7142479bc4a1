"""One safetensors file with a JSON card in its header: the only format that mi_ablate reads and writes.

Writes are atomic (a temporary file in the same folder, then a rename), so a killed process leaves the old file or
the new one. Reads execute nothing; whatever is wrong with a file becomes one `ArtefactError`.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

CARD = "card"


class ArtefactError(ValueError):
    """A file that cannot be used: missing, truncated, hostile, of another format, or made for another model."""


def write(path: str | Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> Path:
    """Write ``tensors`` and ``card`` atomically to ``path`` and return it. Tensors are stored contiguous, on the CPU."""
    from safetensors.torch import save

    body = save(
        {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
        metadata={CARD: json.dumps(card, sort_keys=True, allow_nan=False)},
    )
    return replace(path, body)


def replace(path: str | Path, body: bytes) -> Path:
    """Write ``body`` to ``path`` through a temporary file in the same folder, so that the old file or the new one is there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the card of ``path``; the card is empty where the header has none."""
    tensors, metadata = read_with_metadata(path)
    return tensors, _card(path, metadata)


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of ``path`` without reading a tensor."""
    _, metadata = read_with_metadata(path, tensors=False)
    return _card(path, metadata)


def _card(path: str | Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        card = json.loads(metadata.get(CARD, "{}"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ArtefactError(f"{path}: the card in its header is not JSON ({type(error).__name__}).") from None
    if not isinstance(card, dict):
        raise ArtefactError(f"{path}: the card in its header is a {type(card).__name__}, not an object.")
    return card


def read_with_metadata(path: str | Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors (none where not wanted) and the raw string metadata of the safetensors file at ``path``."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ArtefactError(f"There is no file {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            wanted = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in wanted}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(
            f"{path} is not a readable safetensors file ({error}). It may be truncated; copy or make it again."
        ) from None
