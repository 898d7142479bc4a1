"""A run's numbers beside published ones: passes, differs or not measured, a row each.

A file is a JSON object: "model", "source" (the paper), and "numbers": a list of objects with

- "what": the words of the row;
- "path": where the number stands in the run's own JSON, keys joined by " > " (names of hook points have dots);
- "published": the number, or a list of names or numbers that must all be there;
- "tolerance": how far a number may be off and still pass (the papers print few digits and sample few prompts);
- "where": table, figure or notebook cell.

A row that passes says that two numbers agree within the tolerance, not that the same thing was measured: settings that differ
(prompts, precision, sample) are in "source" and in the run.
"""

import json
from pathlib import Path
from typing import Any

KEYS = {"what", "path", "published", "tolerance", "where"}


def read_published(path: str | Path) -> dict[str, Any]:
    """Return a file of published numbers, or raise a ValueError that says what is wrong with it."""
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no readable JSON of published numbers ({type(error).__name__}: {error})."
        ) from None
    rows = read.get("numbers") if isinstance(read, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and set(row) >= KEYS for row in rows):
        raise ValueError(f'{path} needs "numbers": a list of objects with {", ".join(sorted(KEYS))}.')
    return read


def compared(found: dict[str, Any], published: str | Path) -> list[dict[str, Any]]:
    """Return one row a published number: what it is, both values, and "passes", "differs" or "not measured".

    Args:
        found: the run as plain JSON, such as ``HelixAnalysis.to_json()``.
        published: the file (see the module).

    """
    rows = []
    for row in read_published(published)["numbers"]:
        here = _at(found, row["path"])
        if here is None:
            verdict = "not measured"
        elif isinstance(row["published"], list):
            verdict = "passes" if isinstance(here, list) and set(row["published"]) <= set(here) else "differs"
        else:
            off = abs(float(here) - row["published"])
            verdict = "passes" if off <= row["tolerance"] else "differs"
        rows.append(
            {"what": row["what"], "published": row["published"], "here": here, "tolerance": row["tolerance"]}
            | {"verdict": verdict, "where": row["where"]}
        )
    return rows


def _at(found: Any, path: str) -> Any:
    """What stands at a path; None where nothing does."""
    for key in path.split(" > "):
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found
