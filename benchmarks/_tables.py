"""Shared by the scripts that write tables: the newest lines of a results file, and rows as markdown."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def newest(name: str, key: str) -> dict[str, dict]:
    """The last line of ``results/NAME.jsonl`` for each value of ``key``."""
    lines = (HERE / "results" / f"{name}.jsonl").read_text().splitlines()
    return {row[key]: row for row in map(json.loads, lines)}


def markdown(rows: list[dict]) -> str:
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows])
