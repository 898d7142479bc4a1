"""The grids that come with the package, and how a grid is found by its name or read from a file.

Each belongs to a study of the research log (`mi_ablate.studies`), which says what is asked of it. A declared cell is a promise
of its settings, not of a run: what has been run is in the records.

``weight-decay``     addition mod 97 at seven weight decays, several seeds
``two-tasks``        addition and multiplication in one model
``other-moduli``     addition mod 59 and 113: what predictions fitted at 97 are tested on
``three-tasks``      addition, subtraction and multiplication in one model
``norms``            weight decay with RMSNorm and without any norm
``matched-decay``    small weight decays for as much learning rate x weight decay x steps as 0.1 has in 20,000 steps
``grokking``         train fractions and sizes around one baseline
``capacity``         two tasks in models of other depths and widths
``too-small``        two tasks in one layer of width 64, 48 and 32
``batch-size``       other batch sizes: the same samples or steps, the decay or the learning rate changed with them
``adversarial``      two tasks trained against the removal of their own directions, and of covariance-drawn ones
``adversarial-arms`` the same with other controls, other numbers of directions, and gradients through them
``late-penalty``     the same from the first step, half-way, and after grokking
"""

from pathlib import Path
from typing import Any

from mi_ablate._types import nearest
from mi_ablate.sweep.grids import KEYS, Grid, from_dict
from mi_ablate.toys.recipes import read_settings

_ADD: dict[str, Any] = {"config": {"modulus": 97}, "split_seed": None, "stable_steps": 300}
_BOTH = ("add", "mul")
_TWO: dict[str, Any] = {**_ADD, "config": {"modulus": 97, "operations": _BOTH}, "steps": 40_000,
                        "keep_steps": tuple(range(15_000, 40_001, 5_000))}  # fmt: skip
DECAYS = {
    1.0: (6_000, (2_000, 3_000, 4_000, 5_000, 6_000)),
    0.3: (12_000, (4_000, 6_700, 8_000, 10_000, 12_000)),
    0.1: (20_000, (10_000, 14_000, 16_000, 18_000, 20_000)),
    10.0: (5_000, (1_000, 2_000, 3_000, 4_000, 5_000)),
    0.03: (35_000, (15_000, 20_000, 25_000, 30_000, 35_000)),
    0.01: (50_000, (30_000, 35_000, 40_000, 45_000, 50_000)),
    0.0: (50_000, (10_000, 20_000, 30_000, 40_000, 50_000)),
}
"""Weight decay -> steps, and the steps whose neighbourhood is measured."""


def _decay(value: float, **more: Any) -> dict[str, Any]:
    steps, keep = DECAYS[value]
    return {"weight_decay": value, "steps": steps, "keep_steps": keep, **more}


def _batch(size: int, decay: int | float = 1.0, rate: int | float = 1e-3) -> dict[str, Any]:
    """The samples of 6,000 steps of 512; where nothing but the batch size changes, one run for these and for 6,000 steps."""
    ends = {_SAMPLES // size} | ({6_000} if (decay, rate) == (1.0, 1e-3) else set())
    return {"batch_size": size, "steps": max(ends), "keep_steps": tuple(sorted(ends)), "weight_decay": decay,
            "learning_rate": rate}  # fmt: skip


def _against(**changes: Any) -> dict[str, Any]:
    """The research log's adversarial training; ten directions, whose number it does not give."""
    usual = {"kind": "contrastive", "directions": 10, "weight": 0.1, "every": 10, "start": 10_000, "sample": 2_048}
    return {"penalty": {**usual, **changes}}


_SAMPLES = 512 * 6_000
_BATCHES = (64, 128, 256, 1024, 5120)
_ARMS = [
    *(_batch(b) for b in _BATCHES),
    *(_batch(b, decay=b / 512) for b in _BATCHES),
    *(_batch(b, rate=1e-3 * (b / 512) ** 0.5) for b in _BATCHES),
]
"""Batch sizes beside 512, whose runs are those of ``weight-decay`` at 1.0."""

_GRIDS = (
    Grid.product(
        "weight-decay", _ADD,
        arms=[_decay(value, seeds=5 if value in (1.0, 0.3, 0.1) else 3) for value in DECAYS],
    ),
    Grid.product("two-tasks", _TWO, seeds=3),
    Grid.product(
        "other-moduli", {**_ADD, "split_seed": None},
        arms=[_decay(value, config={"modulus": p}, train_fraction=fraction)
              for p, fraction in ((113, 0.3), (59, 0.5)) for value in (1.0, 0.3, 0.1)],
        seeds=2,
    ),
    Grid.product(
        "three-tasks", {**_TWO, "config": {"modulus": 97, "operations": ("add", "sub", "mul")}}, seeds=3
    ),
    Grid.product(
        "norms", _ADD, axes={"config.normalization": ["RMS", None]},
        arms=[_decay(value) for value in (1.0, 0.3, 0.1, 0.01)], seeds=3,
    ),
    Grid.product(
        "matched-decay", _ADD, seeds=3,
        arms=[{"weight_decay": 0.03, "steps": 66_700, "keep_steps": (66_700,)},
              {"weight_decay": 0.01, "steps": 200_000, "keep_steps": (200_000,)}],
    ),
    Grid.product(
        "grokking", {**_ADD, "steps": 10_000}, seeds=3,
        arms=[*({"train_fraction": f} for f in (0.1, 0.5, 0.7, 0.9)),
              *({"config": {"n_layers": n, "d_model": d, "d_mlp": 4 * d}}
                for n in (1, 2, 4) for d in (64, 128, 256) if (n, d) != (2, 128))],
    ),
    Grid.product(
        "capacity", _TWO, seeds=3,
        arms=[{"config": {"n_layers": n, "d_model": d, "d_mlp": 4 * d}}
              for n, d in ((1, 128), (2, 48), (2, 64), (2, 96), (2, 192), (2, 256))],
    ),
    Grid.product(
        "too-small", {**_TWO, "steps": 115_000, "keep_steps": (115_000,)}, seeds=3,
        arms=[{"config": {"n_layers": 1, "d_model": d, "d_mlp": 4 * d}} for d in (64, 48, 32)],
    ),
    Grid.product("batch-size", _ADD, arms=_ARMS, seeds=3),
    Grid.product(
        "adversarial", _TWO,
        arms=[{**_against(kind=kind), "seeds": [seed]} for seed in range(3) for kind in ("contrastive", "covariance")],
    ),
    Grid.product(
        "adversarial-arms", _TWO, seeds=3,
        arms=[*(_against(kind=kind) for kind in ("pca", "shuffled", "dropout")),
              *(_against(directions=k) for k in (5, 20)), _against(through=True)],
    ),
    Grid.product(
        "late-penalty", _TWO, seeds=3, arms=[_against(start=start) for start in (0, 20_000, 30_000)],
    ),
)  # fmt: skip
GRIDS: dict[str, Grid] = {grid.name: grid for grid in _GRIDS}
"""By name, in the order of the module's list."""


def is_grid(name_or_path: str | Path) -> bool:
    """Whether this names a grid, or a file with keys that only grids have."""
    path = Path(name_or_path)
    if path.suffix.lower() not in (".json", ".toml"):
        return str(name_or_path) in GRIDS
    return path.is_file() and any(key in KEYS for key in read_settings(path))


def load_grid(name_or_path: str | Path, quick: bool = False) -> Grid:
    """Return the grid of that name, or the one that a JSON or TOML file describes.

    Raises:
        ValueError: no such grid or file, a file that cannot be read, or one with an unknown key.

    """
    name = str(name_or_path)
    if name in GRIDS:
        grid = GRIDS[name]
    elif Path(name).suffix.lower() in (".json", ".toml"):
        grid = from_dict(read_settings(Path(name)), default_name=Path(name).stem)
    else:
        raise ValueError(f"There is no grid {name!r}. {nearest(name, GRIDS)} A file must end in .json or .toml.")
    return grid.quick() if quick else grid
