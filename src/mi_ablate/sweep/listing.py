"""Records of grids as a table: load, select, and one flat row a cell.

A cell has one flat name for each setting and result, the same in conditions, in sorting and in the columns: settings as in
a grid file ("weight_decay", "config.n_layers"), `RESULTS`, and any other number or text of the record by its path
("versions.torch", "metrics.training.loss.held_out").

>>> record = {"key": "0a", "grid": "g", "seed": 1, "status": "failed", "error": "full", "config": {"steps": 400}}
>>> select([record], ["steps>=400", "status=failed"]) == [record]
True
"""

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mi_ablate._types import nearest
from mi_ablate.sweep.plans import RESULTS as FOLDER
from mi_ablate.sweep.records import Record, RecordFile
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.settings import differing, flat, shown

RESULTS = ("key", "grid", "seed", "status", "trained", "grok_step", "held_out", "stable_step", "cpu_minutes", "error")
"""What a cell is told by besides its settings. ``trained``: steps taken; ``held_out``: held-out accuracy of the weights that
are kept; ``stable_step``: their step, none where it is not stable; ``cpu_minutes``: of the training; ``error``: its first
line."""
_CONDITION = re.compile(r"\s*([\w.\-]+)\s*(<=|>=|!=|==?|<|>)\s*(.*?)\s*", re.S)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip
_TRAINING = tuple(field.name for field in fields(TrainConfig) if field.name not in RESULTS)
_NOTHING = ("none", "null")


def load_records(names: Sequence[str] = (), results: str | Path = FOLDER) -> list[Record]:
    """Return the latest record of every cell in the record files of these grids.

    Args:
        names: of grids, such as "weight-decay"; all files of the folder by default, in the order of their names.
        results: the folder of the record files.

    Raises:
        ValueError: no such file, or none at all.
        ArtefactError: a file with a line that is no record, or of another format.

    """
    folder = Path(results)
    there = sorted(path.stem for path in folder.glob("*.jsonl"))
    option = "" if folder == FOLDER else f" --results {folder}"
    if not there:
        raise ValueError(f"There is no record file in {folder}. `mi-ablate train weight-decay{option}` makes one.")
    for name in names:
        if name not in there:
            grid = name.removesuffix("-quick")
            quick = " --quick" if grid != name else ""
            raise ValueError(
                f"There is no record file {folder / name}.jsonl; the folder has {', '.join(there)}. "
                f"`mi-ablate train {grid}{quick}{option}` makes one where {grid} is a grid."
            )
    return [record for name in names or there for record in RecordFile(folder / f"{name}.jsonl").latest().values()]


def named(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that the record says in single values, by its flat name; None where it says nothing."""
    training = record.get("metrics", {}).get("training", {})
    seconds, error = record.get("run", {}).get("cpu_seconds"), record.get("error")
    results = {
        **{name: record.get(name) for name in ("key", "grid", "seed", "status")},
        "trained": training.get("steps"),
        "grok_step": training.get("grok_step"),
        "held_out": training.get("accuracy", {}).get("held_out"),
        "stable_step": training.get("checkpoint_step") if training.get("stable") else None,
        "cpu_minutes": None if seconds is None else round(seconds / 60, 3),
        "error": next(iter(str(error or "").strip().splitlines()), None),
    }
    rest = dict(_leaves({key: value for key, value in record.items() if key != "config"}))
    return {**rest, **flat(record.get("config", {})), **results}


def select(records: Sequence[Record], conditions: Sequence[str]) -> list[Record]:
    """Return the records that meet every condition, in their order.

    A condition is a name, one of ``= != < <= > >=``, and a value: "weight_decay=0.1", "grok_step<3000",
    "config.operations=add+mul". Numbers are compared as numbers. "none" is no value: "grok_step=none" finds runs that never
    grokked. What has no value is neither less nor greater than anything.

    Raises:
        ValueError: a condition that cannot be read, a name that no record has, a value of another kind than those there.

    """
    parsed = [_parsed(condition) for condition in conditions]
    known = [named(record) for record in records]
    for name, sign, value in parsed:
        _check(name, sign, value, known)
    met = [all(_meets(cell.get(name), sign, value) for name, sign, value in parsed) for cell in known]
    return [record for record, yes in zip(records, met) if yes]


def why_none(records: Sequence[Record], conditions: Sequence[str]) -> str:
    """Return, for conditions that no record meets, how many meet each alone and what is there instead."""
    known, parts = [named(record) for record in records], []
    if not records:
        return "There is no record yet."
    for condition in conditions:
        met, (name, _, _) = len(select(records, [condition])), _parsed(condition)
        parts.append(f"{condition}: {met} of {len(records)} (there: {_there(name, known)})")
    return "No record matches. " + "; ".join(parts) + "."


def sort(records: Sequence[Record], name: str) -> list[Record]:
    """Return the records in the order of a setting or result, largest first after a minus ("-held_out"); none comes last.

    Raises:
        ValueError: a name that no record has.

    """
    plain = name.removeprefix("-")
    pairs = [(named(record).get(plain), record) for record in records]
    _check(plain, "=", "none", [named(record) for record in records])
    number = all(is_number(value) for value, _ in pairs if value is not None)
    told = [pair for pair in pairs if pair[0] is not None]
    told.sort(key=lambda pair: (pair[0] if number else 0, "" if number else shown(pair[0])), reverse=name != plain)
    return [record for _, record in told] + [record for value, record in pairs if value is None]


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one flat row a record: its key, the settings that differ between these records, and its results.

    The columns are names of `named`. "grid" is among them where there are several, "error" where a cell failed.
    """
    known = [named(record) for record in records]
    settings = differing([flat(record["config"]) for record in records])
    left_out = {
        "grid" if len({cell["grid"] for cell in known}) < 2 else "",
        "error" if all(cell["error"] is None for cell in known) else "",
    }
    head = [name for name in RESULTS[:2] if name not in left_out]
    tail = [name for name in RESULTS[2:] if name not in left_out]
    return [{name: cell.get(name) for name in (*head, *settings, *tail)} for cell in known]


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Single values by their path; lists are left to those who read the record."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{path}{key}.")
        elif not isinstance(inner, list):
            yield f"{path}{key}", inner


def _parsed(condition: str) -> tuple[str, str, str]:
    found = _CONDITION.fullmatch(condition)
    if found is None or not found[3]:
        raise ValueError(
            f"The condition {condition!r} is no name, sign and value; write weight_decay=0.1, or 'grok_step<3000' in quotes. "
            "The signs are = != < <= > >=."
        )
    return found[1], "=" if found[2] == "==" else found[2], found[3]


def _check(name: str, sign: str, value: str, known: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless some record has the name, and values that this one can be compared with."""
    names = list(dict.fromkeys(key for cell in known for key in cell))
    if known and name not in names:
        settings = sorted(key for key in names if key.startswith(("config.", "penalty.")) or key in _TRAINING)
        raise ValueError(
            f"No record has {name!r}. {nearest(name, names)} There are {', '.join(RESULTS)}; the settings "
            f"{', '.join(settings)}; and anything else of a record by its path, such as versions.torch."
        )
    values = [cell[name] for cell in known if cell.get(name) is not None]
    if not values or (value.lower() in _NOTHING and sign not in _ORDERS):
        return
    numbers = all(is_number(there) for there in values)
    if numbers and _number(value) is None:
        raise ValueError(f"{name} holds numbers ({_there(name, known)}); {value!r} is none.")
    if sign in _ORDERS and not numbers:
        raise ValueError(f"{name} holds {_there(name, known)}, which have no order; use = or != instead of {sign}.")


def _meets(there: Any, sign: str, value: str) -> bool:
    if sign in _ORDERS:
        asked = _number(value)
        return there is not None and asked is not None and _ORDERS[sign](there, asked)
    if is_number(there) and _number(value) is not None:
        same = there == _number(value)
    else:
        same = shown(there).lower() == ("none" if value.lower() in _NOTHING else value.lower())
    return same == (sign == "=")


def is_number(value: Any) -> bool:
    """Whether the value is a number, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str) -> int | float | None:
    try:
        value = json.loads(text.replace("_", ""))
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            return None
    return value if is_number(value) and value == value else None


def _there(name: str, known: Sequence[Mapping[str, Any]], most: int = 6) -> str:
    """The values of a name, in words: all of them, or the least and the greatest of many numbers."""
    values: dict[str, Any] = {shown(cell.get(name)): cell.get(name) for cell in known}
    numbers = sorted(value for value in values.values() if is_number(value))
    if len(numbers) > most:
        none = ", none" if len(numbers) < len(values) else ""
        return f"{shown(numbers[0])} to {shown(numbers[-1])}{none}"
    texts = [*map(shown, numbers), *sorted(text for text, value in values.items() if not is_number(value))]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
