"""Measurements that a study takes by itself: one JSON line each in ``own/NAME.jsonl`` beside the grids' records.

They are appended as they are taken, so a run that is stopped goes on where it was. A line of another version of the study's
measurements is refused when it is read, and taken again by the command; a line that is no measurement of the study any more
is withdrawn then.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mi_ablate._files import ArtefactError
from mi_ablate.measures.plain import plain
from mi_ablate.sweep.records import FORMAT, Record, RecordFile
from mi_ablate.toys.evaluation import versions

if TYPE_CHECKING:
    from mi_ablate.studies.study import Item, Study

FOLDER = "own"
DONE, WITHDRAWN = "done", "withdrawn"


def own_file(study: "Study", results: Path | str, quick: bool = False) -> RecordFile:
    """Return the file of a study's own measurements."""
    return RecordFile(Path(results) / FOLDER / f"{study.name}{'-quick' if quick else ''}.jsonl")


def load_own(study: "Study", results: Path | str, quick: bool = False) -> dict[str, Any]:
    """Return the results of a study's own measurements by key: ``{"about": ..., "result": ...}`` each.

    Raises:
        ArtefactError: a line of another version, or one that is no measurement of this study.

    """
    file = own_file(study, results, quick)
    found = {key: line for key, line in file.latest().items() if line.get("status") != WITHDRAWN}
    foreign = [key for key, line in found.items() if line.get("study") != study.name]
    if foreign:
        raise ArtefactError(
            f"{file.path} holds {foreign[0]!r}, no measurement of {study.name}; put the right file there."
        )
    old = [key for key, line in found.items() if line["version"] != study.version]
    if old:
        raise ArtefactError(
            f"{file.path} holds {len(old)} measurements of another version than {study.version} ({old[0]}); the two are not "
            f"mixed. `mi-ablate study {study.name}{' --quick' if quick else ''}` takes them again."
        )
    return {key: {"about": line["about"], "result": line["result"]} for key, line in found.items()}


def lacking(study: "Study", items: "Sequence[Item]", results: Path | str, quick: bool = False) -> "list[Item]":
    """Return the items that are not recorded in this version, in order.

    Raises:
        ValueError: two items with one key.

    """
    known = own_file(study, results, quick).latest()
    keys = [item.key for item in items]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"The study {study.name} has two measurements with the key {twice!r}; each needs its own.")
    return [item for item in items if not _current(known.get(item.key), study)]


def take_own(
    study: "Study",
    items: "list[Item]",
    results: Path | str,
    *,
    quick: bool = False,
    command: str,
    report: Callable[[str], None],
    deadline: int | float | None = None,
) -> int:
    """Take the items that are not recorded yet, in order, and return how many are left undone at the deadline.

    Args:
        study: whose they are.
        items: all of its measurements, `Study.items`; recorded lines of an older version that are none of them are withdrawn.
        results: the folder of the grids' records.
        quick: whether they are of the small models.
        command: for the lines.
        report: called with a line for each.
        deadline: a time of ``time.monotonic``, after which none is begun.

    Raises:
        ValueError: two items with one key.
        RuntimeError: another process writes this file.
        OSError: a full disk; nothing is lost.

    """
    with own_file(study, results, quick) as file:
        todo = lacking(study, items, results, quick)
        for number, item in enumerate(todo, 1):
            if deadline is not None and time.monotonic() > deadline:
                return len(todo) - number + 1
            begun = time.process_time()
            told = {"status": DONE, "about": plain(dict(item.about)), "result": plain(item.take())}
            seconds = round(time.process_time() - begun, 1)
            file.append(_line(study, item.key, command) | told | {"run": {"cpu_seconds": seconds}})
            report(f"{study.name}: {item.key}, {number} of {len(todo)}, {seconds:g} CPU seconds")
        for key, line in file.latest().items():
            if line["version"] != study.version:
                file.append(_line(study, key, command) | {"status": WITHDRAWN, "about": {}, "result": None})
    return 0


def _current(line: Record | None, study: "Study") -> bool:
    return line is not None and line["version"] == study.version and line["status"] == DONE


def _line(study: "Study", key: str, command: str) -> Record:
    return {
        "format": FORMAT, "study": study.name, "key": key, "version": study.version, "versions": versions(),
        "command": command,
    }  # fmt: skip
