"""Settings of training runs by one flat name each, and which of them tell runs apart.

The names are those of a grid file: `TrainConfig`'s fields ("weight_decay"), and after ``config.`` and ``penalty.`` those of
`ToyConfig` ("config.n_layers") and of `Penalty` ("penalty.directions"; "penalty.kind" is None where there is no penalty).

>>> flat({"steps": 400, "config": {"modulus": 13, "operations": ["add", "mul"]}})
{'steps': 400, 'config.modulus': 13, 'config.operations': ['add', 'mul']}
>>> flat({"penalty": {"kind": "pca", "directions": 5}}), flat({"penalty": None})
({'penalty.kind': 'pca', 'penalty.directions': 5}, {'penalty.kind': None})
>>> differing([{"steps": 400, "weight_decay": 1.0}, {"steps": 400, "weight_decay": 0.1}])
['weight_decay']
>>> shown(["add", "mul"]), shown(None), shown(0.1), shown(20000)
('add+mul', 'none', '0.1', '20000')
"""

from collections.abc import Mapping, Sequence
from typing import Any

TABLES = ("penalty", "config")
UNTOLD = ("steps", "stop_when_stable_for", "stable_steps", "keep_steps")
"""Settings that say when a run ends and which of its weights stay; they tell runs apart only where nothing else does."""


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a record, or of `TrainConfig.to_dict`, with the model's and a penalty's beside the others."""
    told = {key: value for key, value in config.items() if key not in TABLES}
    for table in TABLES:
        inner = config.get(table, {})
        told |= {f"{table}.{key}": value for key, value in ({"kind": None} if inner is None else inner).items()}
    return told


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names whose values are not the same in all of these flat settings, in their order.

    The details of a penalty are compared among the settings that have one.
    """
    names = list(dict.fromkeys(name for one in settings for name in one))

    def values(name: str) -> set[str]:
        detail = name.startswith("penalty.") and name != "penalty.kind"
        return {shown(one.get(name)) for one in settings if name in one or not detail}

    several = [name for name in names if len(values(name)) > 1]
    told = [name for name in several if name not in UNTOLD]

    def parts(by: Sequence[str]) -> int:
        return len({tuple(shown(one.get(name)) for name in by) for one in settings})

    return told if parts(told) == parts(several) else several


def shown(value: Any) -> str:
    """Return a setting as a reader sees and types it: lists with +, no value as "none", no trailing zeros."""
    if isinstance(value, list | tuple):
        return "+".join(map(shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)
