"""Load toys: a shipped one by its zoo id, a checkpoint in this package's format, or a published layout.

A checkpoint is one safetensors file: the weights under HookedTransformer's names and a card ``{"format":
"mi_ablate toy 1", "config": ToyConfig.to_dict(), "train_mask": base64 text, ...}``. Everything is checked
before a model is built; a file that does not hold exactly one toy is one `ArtefactError`.
"""

import contextlib
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from .._files import ArtefactError, read, write
from .._types import HookedModel, nearest
from . import published, tasks
from .config import ToyConfig, as_tuples
from .transformer import build, complete, usable_device

FORMAT = "mi_ablate toy 1"
_FAMILY = "mi_ablate toy"
_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")
_PROMPT_LIMIT = 100_000_000
_SUFFIX = ".safetensors"


@dataclass(frozen=True, repr=False, eq=False)
class Toy:
    """A model with its whole task: all prompts in the order of `tasks.all_tokens`."""

    model: HookedModel
    """Eval mode, logits ``[n pos config.n_answers]``; the answer is read at the last position."""
    tokens: Int[Tensor, "n pos"]
    """Every prompt."""
    answers: Int[Tensor, " n"]
    """(a op b) mod p, or what a gate says instead. Compare with the first ``modulus`` logits where there is no gate: a
    published model may have more."""
    modulus: int
    inputs: dict[str, Int[Tensor, " n"]]
    """The operands "a", "b"; with several operations, "operation"; with a gate, "gated" (0 or 1) and "sum"."""
    train: Bool[Tensor, " n"] | None
    """Which prompts were trained on; None where nobody knows."""
    card: dict[str, Any]
    """What the file says of itself; "config" is always there."""

    @property
    def config(self) -> ToyConfig:
        """The shape of the model and of its task."""
        return _from_dict(self.card["config"])

    def __repr__(self) -> str:
        c = self.config
        known = "train unknown" if self.train is None else f"{int(self.train.sum())} trained on"
        name = f"{self.card['name']}: " if "name" in self.card else ""
        gate = "" if c.gate is None else f" with {len(c.gate)} DECLINE tokens"
        return (
            f"Toy({name}{'/'.join(c.operations)} mod {self.modulus}{gate}, '{c.layout}', {c.n_layers} layers, "
            f"d_model {c.d_model}, {len(self.tokens)} prompts, {known})"
        )


def names() -> tuple[str, ...]:
    """Return the ids of the shipped toys."""
    there = resources.files(__package__).joinpath("zoo")
    if not there.is_dir():
        return ()
    files = (entry.name for entry in there.iterdir())
    return tuple(sorted(f.removesuffix(_SUFFIX) for f in files if f.endswith(_SUFFIX) and not f.startswith(".")))


def load(name_or_path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Toy:
    """Return the toy ``name_or_path``, model and tensors on ``device``, weights in ``dtype``.

    A zoo id (`names`), the path of a checkpoint of this package (`save`), or of a safetensors file in a
    published layout (`published`), with its options in a JSON of the same stem. Zoo ids win over files of the
    same name.

    Raises:
        ValueError: no such id or file (with the nearest ids), a folder, a device that this machine lacks.
        ArtefactError: (a ValueError) a file that is damaged, of another format, or not consistent.

    """
    device = usable_device(device)
    config, state, train, card = read_toy(name_or_path)
    model = build(config, state, device=device, dtype=dtype)
    return Toy(
        model=model,
        tokens=tasks.all_tokens(config).to(device),
        answers=tasks.answers(config).to(device),
        modulus=config.modulus,
        inputs={name: values.to(device) for name, values in tasks.inputs(config).items()},
        train=None if train is None else train.to(device),
        card=card,
    )


def save(
    path: str | Path,
    config: ToyConfig,
    state: dict[str, Shaped[Tensor, "..."]],
    *,
    train: Bool[Tensor, " n"] | None = None,
    card: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint that `load` reads and return its path; ``card`` takes any JSON values.

    Raises a ValueError for weights that do not fit ``config``, or a mask of another length.
    """
    path = Path(path).expanduser()
    if path.suffix != _SUFFIX:
        raise ValueError(f"A toy is saved as {_SUFFIX}; write {str(path) + _SUFFIX!r} instead of {str(path)!r}.")
    if train is not None and len(train) != tasks.n_prompts(config):
        raise ValueError(
            f"The train mask has {len(train)} entries, but the task has {tasks.n_prompts(config)} prompts."
        )
    mask = {} if train is None else {"train_mask": tasks.pack_mask(train)}
    return write(path, complete(config, state), {**(card or {}), "format": FORMAT, "config": config.to_dict(), **mask})


def read_toy(
    name_or_path: str | Path,
) -> tuple[ToyConfig, dict[str, Shaped[Tensor, "..."]], Bool[Tensor, " n"] | None, dict[str, Any]]:
    """Return config, complete weights, train mask and card of what `load` makes a toy of."""
    with locate(name_or_path) as path:
        config, state, train, card = _parse(path, *read(path))
    return config, state, train, {"name": path.name.removesuffix(_SUFFIX), **card}


@contextlib.contextmanager
def locate(name_or_path: str | Path) -> Iterator[Path]:
    """Yield the file of a zoo id or a path, or raise a ValueError that says what is there instead."""
    text = str(name_or_path)
    if isinstance(name_or_path, str) and text in names():
        with resources.as_file(resources.files(__package__).joinpath("zoo", text + _SUFFIX)) as path:
            yield path
        return
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*" + _SUFFIX))[:5]
        raise ValueError(f"{text!r} is a folder. Give one file: {', '.join(inside) or 'it holds no ' + _SUFFIX}.")
    if path.suffix in _PICKLES and path.is_file():
        raise ArtefactError(
            f"{text!r} is a pickle, which is not read here. Convert it once: "
            "mi_ablate.toys.published.convert_pickle(source, out), then load out."
        )
    if not path.is_file():
        raise ValueError(_nowhere(text, path))
    yield path


def _nowhere(text: str, path: Path) -> str:
    if Path(f"{path}{_SUFFIX}").is_file():
        return f"There is no file {text!r}, but {text + _SUFFIX!r} is there: write the suffix."
    if path.suffix or len(path.parts) > 1:
        beside = [p.name for p in path.parent.glob("*" + _SUFFIX)] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.4)
        return f"There is no file {text!r}." + (f" In its folder: {', '.join(close)}." if close else "")
    return f"{text!r} is neither a shipped toy nor a file. {nearest(text, names())} toys.names() lists the toys."


def _parse(
    path: Path, tensors: dict[str, Tensor], card: dict[str, Any]
) -> tuple[ToyConfig, dict[str, Tensor], Tensor | None, dict[str, Any]]:
    """Return config, complete state, train mask and card of a file that has been read."""
    stated = card.get("format")
    if stated == FORMAT:
        config = _config(path, card.get("config"), len(tensors))
        try:
            state = complete(config, tensors)
            text = card.get("train_mask")
            train = None if text is None else tasks.unpack_mask(text, tasks.n_prompts(config))
        except ValueError as error:
            raise ArtefactError(f"{path}: {error}") from None
        odd = [name for name, t in state.items() if not t.isfinite().all()]
        if odd:
            raise ArtefactError(f"{path}: {', '.join(odd)} have values that are not finite.")
        return config, state, train, dict(card)
    if isinstance(stated, str) and stated.startswith(_FAMILY):
        raise ArtefactError(f"{path} has the format {stated!r}; this version reads {FORMAT!r}. Update mi_ablate.")
    if stated is not None or not published.looks_published(tensors):
        some = ", ".join(list(tensors)[:4]) or "none"
        what = f"the tensors {some}" if stated is None else f"the format {stated!r}"
        raise ArtefactError(
            f"{path} has {what}: neither a toy of this package ({FORMAT!r}) nor a published layout. A "
            "HookedTransformer state becomes a toy with mi_ablate.toys.save(path, config, state)."
        )
    options = {**card, **published.read_options(path)}
    config, state = published.convert(tensors, options, name=str(path))
    _limit(path, config)
    train = published.known_split(config, options)
    return config, state, train, {"format": "published", "config": config.to_dict(), "options": options}


def _config(path: Path, stated: Any, n_tensors: int) -> ToyConfig:
    """Return the card's config after checking every type: a card is not trusted."""
    kinds: dict[str, Any] = {
        "operations": list,
        "d_vocab_out": (int, type(None)),
        "attention_coefficient": (int, float),
        "gate": (list, type(None)),
    }
    kinds |= {"normalization": (str, type(None))}
    try:
        if not isinstance(stated, dict):
            raise TypeError(f"it is a {type(stated).__name__}, not an object")
        for field in fields(ToyConfig):
            kind: Any = kinds.get(field.name, field.type)
            value = stated.get(field.name, [] if field.name == "operations" else None)
            if field.name in stated and (not isinstance(value, kind) or isinstance(value, bool)):
                raise TypeError(f"{field.name} is {value!r}")
            if value is not None and field.name in ("n_layers", "d_model", "n_heads", "d_mlp") and value < 1:
                raise ValueError(f"{field.name} is {value}")
        config = _from_dict(stated)
        if config.n_layers > n_tensors:
            raise ValueError(f"{config.n_layers} layers in a file of {n_tensors} tensors")
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ArtefactError(f"{path}: the config in its card is not a toy's ({error}).") from None
    _limit(path, config)
    return config


def _from_dict(stated: dict[str, Any]) -> ToyConfig:
    kinds: dict[str, Any] = {"operations": tuple, "attention_coefficient": float, "gate": as_tuples}
    return ToyConfig(**{key: kinds[key](value) if key in kinds else value for key, value in stated.items()})


def _limit(path: Path, config: ToyConfig) -> None:
    if tasks.n_prompts(config) > _PROMPT_LIMIT:
        raise ArtefactError(f"{path}: modulus {config.modulus} has more than {_PROMPT_LIMIT:,} prompts.")
