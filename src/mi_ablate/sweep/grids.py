"""Grids: a base configuration, arms and axes that change it, and seeds.

The cells of a grid are arms x the product of the axes x seeds, in that order. Keys are `TrainConfig`'s, with
``config.`` before those of its `ToyConfig` ("config.n_layers") and ``penalty.`` before those of its `Penalty`
("penalty.kind", which may be "none"). A grid is named (`declared.GRIDS`) or a JSON or TOML file:

    name = "width"
    seeds = [0, 1, 2]
    base = {steps = 6000, split_seed = "seed", config = {modulus = 97}}
    axes = {"config.d_model" = [48, 128]}
    arms = [{weight_decay = 1.0}, {weight_decay = 0.1, steps = 20000, seeds = [0]}]

``split_seed = "seed"`` draws the training pairs anew for each seed (TOML has no null).
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mi_ablate._types import nearest
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.penalty import Penalty
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.settings import flat

KEYS = ("name", "seeds", "base", "arms", "axes", "keep_weights")
KEEP_WEIGHTS = ("last", "kept")


@dataclass(frozen=True)
class Grid:
    """Named cells, each one training run."""

    name: str
    cells: tuple[TrainConfig, ...]
    keep_weights: str = "last"
    """Which weights stay beside the records: "last", one stable checkpoint a cell; "kept", those near every one of
    ``keep_steps``."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"A grid named {self.name!r} makes no file name; use letters, digits and dashes.")
        if self.keep_weights not in KEEP_WEIGHTS:
            raise ValueError(f"keep_weights {self.keep_weights!r} must be one of {KEEP_WEIGHTS}.")
        if not self.cells:
            raise ValueError(f"The grid {self.name!r} has no cells; give it at least one seed and one arm.")
        seen: dict[str, TrainConfig] = {}
        for cell in self.cells:
            twin = seen.setdefault(key_of(cell), cell)
            if twin is not cell:
                raise ValueError(f"The grid {self.name!r} has the same cell twice (seed {cell.seed}): {label(cell)}.")

    @classmethod
    def product(
        cls,
        name: str,
        base: Any,
        *,
        arms: Any = ({},),
        axes: Any = None,
        seeds: Any = (0,),
        keep_weights: str = "last",
    ) -> "Grid":
        """Return arms x axes x seeds over ``base``; an arm may name ``seeds`` of its own.

        Raises:
            ValueError: a key that does not exist (with the nearest one), values that are no list, a repeated cell.

        """
        axes = {} if axes is None else axes
        if not isinstance(axes, Mapping) or not isinstance(base, Mapping):
            raise ValueError(f"base = {base!r} and axes = {axes!r} must be tables of settings.")
        if not isinstance(arms, Sequence) or not all(isinstance(arm, Mapping) for arm in arms):
            raise ValueError(f"arms = {arms!r} must be a list of tables, such as [{{weight_decay = 1.0}}].")
        for key, values in axes.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise ValueError(f"The axis {key!r} is {values!r}; a list of at least one value is needed.")
        cells = []
        for arm in arms:
            own = _seeds(arm.get("seeds", seeds))
            changes = _flat({key: value for key, value in arm.items() if key != "seeds"})
            both = sorted(set(changes) & set(axes))
            if both:
                raise ValueError(f"{', '.join(both)} is set by an arm and by an axis; leave it to one of them.")
            for point in itertools.product(*axes.values()):
                settings = _settings({**_flat(base), **changes, **dict(zip(axes, point))})
                cells += [TrainConfig.from_dict({**settings, "seed": seed}) for seed in own]
        return cls(name, tuple(cells), keep_weights)

    def quick(self) -> "Grid":
        """Return the grid with every model replaced by one that groks in about a minute, to check the machinery."""
        cells = {key_of(cell): cell for cell in map(_quick, self.cells)}
        return Grid(f"{self.name}-quick", tuple(cells.values()), self.keep_weights)

    def __repr__(self) -> str:
        steps = sum(cell.steps for cell in self.cells)
        return f"Grid({self.name}: {len(self.cells)} cells, {steps:,} steps)"


def key_of(cell: TrainConfig) -> str:
    """Return 12 hexadecimal digits that name a cell: the hash of its settings that are not the defaults."""
    return _digest({**_told(cell), "modulus": cell.config.modulus, "seed": cell.seed})


def config_hash(cell: TrainConfig) -> str:
    """Return 12 hexadecimal digits that name the configuration, the same for all of its seeds."""
    return _digest({**_told(cell), "modulus": cell.config.modulus, "seed": "any"})


def config_of(cell: TrainConfig) -> dict[str, Any]:
    """Return the settings without the seed, as a record holds them."""
    return {key: value for key, value in cell.to_dict().items() if key != "seed"}


def label(cell: TrainConfig) -> str:
    """Return what tells the cell from the defaults, for people."""
    told = _told(cell)
    for key in ("seed", "keep_steps", "split_seed"):
        told.pop(key, None)
    model = {k: v for k, v in told.pop("config", {}).items() if k != "modulus"}
    if cell.penalty is not None:
        told |= {"penalty": cell.penalty.kind} | {f"penalty.{k}": v for k, v in told["penalty"].items() if k != "kind"}
    words = [f"p={cell.config.modulus}", *(f"{k}={_brief(v)}" for k, v in {**model, **told}.items())]
    if "weight_decay" not in told:
        words.append(f"weight_decay={cell.weight_decay:g}")
    return " ".join(words)


def from_dict(data: Mapping[str, Any], default_name: str = "grid") -> Grid:
    """Return the grid that ``data`` describes (the keys of the module's example)."""
    for key in data:
        if key not in KEYS:
            raise ValueError(f"{key!r} is no key of a grid. {nearest(key, KEYS)}")
    name = data.get("name", default_name)
    if not isinstance(name, str):
        raise ValueError(f"name = {name!r} must be text.")
    return Grid.product(
        name,
        data.get("base", {}),
        arms=data.get("arms", ({},)),
        axes=data.get("axes"),
        seeds=data.get("seeds", (0,)),
        keep_weights=data.get("keep_weights", "last"),
    )


def _seeds(seeds: Any) -> Sequence[int]:
    chosen = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if not isinstance(chosen, (range, list, tuple)) or not all(
        isinstance(s, int) and not isinstance(s, bool) for s in chosen
    ):
        raise ValueError(f"seeds = {seeds!r} must be a list of whole numbers, or how many.")
    return chosen


def _flat(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by one name each, the model's as "config.NAME" whichever way they were given, and so a penalty's."""
    config = changes.get("config", {})
    if not isinstance(config, Mapping):
        raise ValueError(f"config = {config!r} must hold the model's settings, such as {{modulus = 97}}.")
    penalty = changes.get("penalty")
    if not (penalty is None or (penalty and isinstance(penalty, Mapping))):
        raise ValueError(f"penalty = {penalty!r} must hold the penalty's settings, such as {{kind = 'contrastive'}}.")
    return flat({**changes, "config": config})


def _settings(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `TrainConfig.from_dict` takes, after checking every name."""
    settings: dict[str, Any] = {"config": {}}
    names = [f.name for f in fields(TrainConfig) if f.name not in ("config", "penalty", "seed")]
    inner = [f"{table}.{f.name}" for table, kind in (("config", ToyConfig), ("penalty", Penalty)) for f in fields(kind)]
    for key, value in changes.items():
        if key in inner:
            table, name = key.split(".")
            settings.setdefault(table, {})[name] = value
        elif key in names:
            settings[key] = value
        elif key == "seed":
            raise ValueError(f"seed = {value!r}: a grid's seeds stand in its list seeds = [{value!r}].")
        else:
            raise ValueError(f"{key!r} is no setting of a training run. {nearest(key, [*names, *inner])}")
    if settings.get("split_seed") == "seed":
        settings["split_seed"] = None
    if settings.get("penalty", {}).get("kind", "") in (None, "none"):
        settings["penalty"] = None
    return settings


def _told(cell: TrainConfig) -> dict[str, Any]:
    """The settings that differ from the defaults, so that a setting added later changes no key."""
    mine, other = cell.to_dict(), TrainConfig(ToyConfig(cell.config.modulus)).to_dict()
    told = {key: value for key, value in mine.items() if key != "config" and value != other[key]}
    if cell.penalty is not None:
        usual = asdict(Penalty())
        told["penalty"] = {key: value for key, value in mine["penalty"].items() if value != usual[key]}
    model = {key: value for key, value in mine["config"].items() if value != other["config"][key]}
    return {**told, "config": model} if model else told


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _brief(value: Any) -> str:
    return (
        "+".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _quick(cell: TrainConfig) -> TrainConfig:
    """One layer, d 64, p = 29, 70 % of the pairs, full batch: groks within about 2,000 steps at weight decay 1.

    With several operations it never does, and 600 steps check the machinery as well. A batch size other than the usual one
    stays the same part of the training pairs.
    """
    shape = replace(cell.config, modulus=29, n_layers=1, d_model=64, n_heads=4, d_mlp=256)
    steps, penalty, fraction, batch = 2400 if len(shape.operations) == 1 else 600, cell.penalty, 0.7, None
    if cell.batch_size not in (None, TrainConfig.batch_size):
        share = cell.batch_size / (cell.train_fraction * cell.config.modulus**2)
        batch = max(1, round(share * fraction * shape.modulus**2))
    if penalty is not None:  # on for the same part of the steps
        start = penalty.start * steps // cell.steps
        penalty = replace(penalty, start=start, directions=min(penalty.directions, shape.modulus - 1))
    return replace(
        cell, config=shape, train_fraction=fraction, batch_size=batch, steps=steps, evaluate_every=100,
        stop_when_stable_for=None, keep_steps=(steps // 2, steps), penalty=penalty,
    )  # fmt: skip
