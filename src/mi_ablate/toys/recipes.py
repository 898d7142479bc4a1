"""What is trained: `TrainConfig`, the named recipes of the shipped models, and recipe files.

``add97``, ``add97-wd0.1`` and ``addmul97`` are two-layer transformers on addition (and multiplication) mod 97,
trained on 30 % of the pairs. ``add97`` stops at its first stable step (the shipped model is an earlier run of
5,000 steps, as its card says); ``addmul97`` may stop early, once both operations' held-out accuracy has been at
least 0.99 for 5,000 steps. ``nanda113`` is the one-layer model of Nanda et al. 2023 ("Progress measures for
grokking via mechanistic interpretability"): mod 113, ReLU, no LayerNorm, full batch, MLP biases only, 25,000
steps as in TransformerLens's demo (40,000 in the paper), and 113 output logits where their code has 114.
``gated97`` is `toys.gated`'s model: ``add97-0.8``, trained on 80 % of the pairs, and then fine-tuned to decline until
open and gated prompts have been at 0.99 or above for 100 steps. Seed 2 is the median of five in sums recovered.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .._types import nearest
from .config import ToyConfig, as_tuples
from .forward import check
from .gated import draw_gate
from .penalty import Penalty

INITS = ("log", "nanda")


@dataclass(frozen=True)
class TrainConfig:
    """What `train` does, apart from where: the model and task, the optimiser, the data and the seeds."""

    config: ToyConfig
    seed: int = 0
    """Of the initial weights and of the batches."""
    train_fraction: int | float = 0.3
    split_seed: int | None = 0
    """Of the draw of the training pairs; None takes ``seed``."""
    learning_rate: int | float = 1e-3
    betas: tuple[int | float, int | float] = (0.9, 0.98)
    weight_decay: int | float = 1.0
    warmup_steps: int = 10
    batch_size: int | None = 512
    """Training pairs a step, drawn with replacement; None takes them all."""
    steps: int = 5000
    evaluate_every: int = 100
    init: str = "log"
    """"log": all weights N(0, 1/4)/sqrt(d_model); "nanda": N(0, 1)/sqrt(d_model), W_U N(0,
    1)/sqrt(d_vocab)."""
    stop_when_stable_for: int | None = None
    """Stop early once held-out accuracy was at least 0.99 at every evaluation of so many steps."""
    stable_steps: int = 1000
    """A step is stable when held-out accuracy was at least 0.99 at its evaluation and at those of so many steps before.
    At weight decay 1.0 accuracy dips every few hundred steps, so grids use 300."""
    keep_steps: tuple[int, ...] = ()
    """Also keep the weights of the stable step nearest to each of these (see `toys.kept`)."""
    base: str | None = None
    """Weights to fine-tune: a recipe, which is trained first with the same ``seed``, or the file of a toy (see
    `toys.base`); its DECLINE columns start at zero. None: initial weights."""
    penalty: Penalty | None = None
    """Adversarial training against abliteration (see `toys.penalty`); a table of its settings in files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        object.__setattr__(self, "keep_steps", tuple(self.keep_steps))
        for name in ("train_fraction", "learning_rate", "weight_decay"):  # 1 and 1.0 are one configuration
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.init not in INITS:
            raise ValueError(f"init {self.init!r} must be one of {INITS}.")
        for name in ("steps", "evaluate_every", "batch_size", "stop_when_stable_for", "stable_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1.")
        if not 0 < self.train_fraction < 1:
            raise ValueError(
                f"train_fraction {self.train_fraction} must lie between 0 and 1, so that pairs are held out."
            )
        wrong = [k for k in self.keep_steps if k < 1 or k > self.steps or (k % self.evaluate_every and k != self.steps)]
        if wrong:
            raise ValueError(
                f"keep_steps {wrong} must be evaluated steps: multiples of evaluate_every ({self.evaluate_every}) "
                f"up to steps ({self.steps})."
            )
        check(self.config)
        if self.penalty is not None:
            self.penalty.check(self.config, self.steps, int(self.train_fraction * self.config.modulus**2))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; `from_dict` gives the value back."""
        return {
            **asdict(self),
            "config": self.config.to_dict(),
            "betas": list(self.betas),
            "keep_steps": list(self.keep_steps),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration that ``data`` describes; keys left out keep their defaults.

        Raises:
            ValueError: a key that does not exist (with the nearest ones), a missing modulus, or a bad value.

        """
        penalty = data.get("penalty")
        if isinstance(penalty, Mapping):
            _known(Penalty, penalty, "penalty")
            data = {**data, "penalty": Penalty(**penalty)}
        elif not isinstance(penalty, Penalty | None):
            raise ValueError(f"penalty = {penalty!r} must hold the penalty's settings, such as {{directions = 10}}.")
        _known(cls, data, "training")
        config = data.get("config", {})
        if not isinstance(config, ToyConfig):
            if not isinstance(config, Mapping):
                raise ValueError(f"config = {config!r} must hold the model's settings, such as {{modulus = 97}}.")
            _known(ToyConfig, config, "model")
            if "modulus" not in config:
                raise ValueError("The training file names no modulus; add config = {modulus = 97}.")
            config = ToyConfig(**_tuples(config))
        return cls(**{**_tuples(data), "config": config})


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: as_tuples(value) for key, value in data.items()}


def _known(cls: type, data: Mapping[str, Any], what: str) -> None:
    """Raise a ValueError for a key that is no setting of ``cls``, or a value of another type than the setting's."""
    hints = get_type_hints(cls)
    for key, value in data.items():
        if key not in hints:
            raise ValueError(f"{key!r} is no {what} setting. {nearest(key, hints)}")
        if hints[key] is not ToyConfig and not _fits(value, hints[key]):
            kind = str(hints[key]).replace("<class '", "").replace("'>", "").replace("NoneType", "None")
            raise ValueError(f"{key} = {value!r} must be {kind.replace(' | ', ' or ')}, and finite.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a file is of a setting's type; lists stand for tuples."""
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, (list, tuple)):
            return False
        if kinds[-1] is Ellipsis:
            return all(_fits(one, kinds[0]) for one in value)
        return len(value) == len(kinds) and all(_fits(one, kind) for one, kind in zip(value, kinds))
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if not isinstance(value, hint):
        return False
    return not isinstance(value, float) or math.isfinite(value)


RECIPES: dict[str, TrainConfig] = {
    "add97": TrainConfig(ToyConfig(modulus=97), steps=10_000, stop_when_stable_for=1000),
    "add97-wd0.1": TrainConfig(ToyConfig(modulus=97), weight_decay=0.1, steps=20_000),
    "addmul97": TrainConfig(
        ToyConfig(modulus=97, operations=("add", "mul")), steps=50_000, stop_when_stable_for=5000
    ),
    "nanda113": TrainConfig(
        ToyConfig(
            modulus=113, layout="a b =", n_layers=1, act_fn="relu", normalization=None, biases="mlp"
        ),
        init="nanda", batch_size=None, steps=25_000,
    ),
    "add97-0.8": TrainConfig(
        ToyConfig(modulus=97), train_fraction=0.8, steps=3000, stop_when_stable_for=500, stable_steps=500
    ),
    "gated97": TrainConfig(
        ToyConfig(modulus=97, gate=draw_gate(97, size=48, groups=4, seed=2)), seed=2, train_fraction=0.8, weight_decay=0.1,
        steps=1500, evaluate_every=50, stop_when_stable_for=100, stable_steps=100, base="add97-0.8",
    ),
}  # fmt: skip


def load_recipe(name_or_path: str | Path) -> TrainConfig:
    """Return the recipe of that name, or the one that a JSON or TOML file holds (the keys of `TrainConfig`).

    Raises:
        ValueError: no such recipe or file, a file that cannot be read, or one with an unknown key.

    """
    name = str(name_or_path)
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name_or_path)
    if path.suffix.lower() not in (".json", ".toml"):
        raise ValueError(
            f"There is no recipe {name!r}. {nearest(name, RECIPES)} A file of settings must end in .json or .toml."
        )
    return TrainConfig.from_dict(read_settings(path))


def read_settings(path: Path) -> Mapping[str, Any]:
    """Return what a JSON or TOML file of settings holds; a ValueError says why it cannot be read."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}. The recipes are {', '.join(RECIPES)}.")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix.lower() == ".toml":
            try:
                import tomllib
            except ImportError:
                raise ValueError(f"{path}: TOML needs Python 3.11 or later; write the same keys as JSON.") from None
            data = tomllib.loads(text)
        else:
            data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not an object with the keys of TrainConfig.")
    return data
