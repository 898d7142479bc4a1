"""Settings of training runs by one flat name each, and which of them tell runs apart.

The names are those of a grid file: `TrainConfig`'s fields ("weight_decay"), and `ToyConfig`'s after ``config.``
("config.n_layers").

>>> flat({"steps": 400, "config": {"modulus": 13, "operations": ["add", "mul"]}})
{'steps': 400, 'config.modulus': 13, 'config.operations': ['add', 'mul']}
>>> differing([{"steps": 400, "weight_decay": 1.0}, {"steps": 400, "weight_decay": 0.1}])
['weight_decay']
>>> shown(["add", "mul"]), shown(None), shown(0.1), shown(20000)
('add+mul', 'none', '0.1', '20000')
"""

from collections.abc import Mapping, Sequence
from typing import Any

UNTOLD = ("steps", "stop_when_stable_for", "stable_steps", "keep_steps")
"""Settings that say when a run ends and which of its weights stay; they tell runs apart only where nothing else does."""


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a record, or of `TrainConfig.to_dict`, with the model's beside the others."""
    model = {f"config.{key}": value for key, value in config.get("config", {}).items()}
    return {key: value for key, value in config.items() if key != "config"} | model


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names whose values are not the same in all of these flat settings, in their order."""
    names = list(dict.fromkeys(name for one in settings for name in one))
    several = [name for name in names if len({shown(one.get(name)) for one in settings}) > 1]
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
