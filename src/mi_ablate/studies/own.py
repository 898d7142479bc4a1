"""Measurements that a study takes by itself: one JSON line each in ``own/NAME.jsonl`` beside the grids' records.

They are appended as they are taken, so a run that is stopped goes on where it was. A line of another version of the study's
measurements is refused when it is read, and taken again by the command.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mi_ablate._files import ArtefactError
from mi_ablate.measures.plain import plain
from mi_ablate.sweep.records import FORMAT, RecordFile
from mi_ablate.toys.evaluation import versions

if TYPE_CHECKING:
    from mi_ablate.studies.study import Item, Study

FOLDER = "own"


def own_file(study: "Study", results: Path | str, quick: bool = False) -> RecordFile:
    """Return the file of a study's own measurements."""
    return RecordFile(Path(results) / FOLDER / f"{study.name}{'-quick' if quick else ''}.jsonl")


def load_own(study: "Study", results: Path | str, quick: bool = False) -> dict[str, Any]:
    """Return the results of a study's own measurements by key: ``{"about": ..., "result": ...}`` each.

    Raises:
        ArtefactError: a line of another version.

    """
    file = own_file(study, results, quick)
    found = file.latest()
    old = [key for key, line in found.items() if line["version"] != study.version]
    if old:
        raise ArtefactError(
            f"{file.path} holds {len(old)} measurements of another version than {study.version} ({old[0]}); the two are not "
            f"mixed. `mi-ablate study {study.name}` takes them again."
        )
    return {key: {"about": line["about"], "result": line["result"]} for key, line in found.items()}


def take_own(
    study: "Study",
    items: "list[Item]",
    results: Path | str,
    *,
    quick: bool = False,
    command: str,
    report: Callable[[str], None],
    deadline: float | None = None,
) -> int:
    """Take the items that are not recorded yet, in order, and return how many are left undone at the deadline."""
    left = len(items)
    with own_file(study, results, quick) as file:
        known = {key for key, line in file.latest().items() if line["version"] == study.version}
        for item in items:
            if item.key in known:
                left -= 1
                continue
            if deadline is not None and time.monotonic() > deadline:
                break
            begun = time.process_time()
            line = {
                "format": FORMAT, "study": study.name, "key": item.key, "status": "done", "version": study.version,
                "about": plain(dict(item.about)), "result": plain(item.take()), "versions": versions(), "command": command,
                "run": {"cpu_seconds": round(time.process_time() - begun, 1)},
            }  # fmt: skip
            file.append(line)
            left -= 1
            report(f"{study.name}: {item.key}, {line['run']['cpu_seconds']:g} CPU seconds")
    return left
