"""Write the notebooks of the percent-cell scripts: python examples/_notebooks.py

A cell begins at ``# %%``; ``# %% [markdown]`` and comments directly below a ``# %%`` without code are text. The scripts are
the source: a test demands that the notebooks hold what this makes of them.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = ("fourier_walkthrough", "helix_and_clock", "language_model")


def notebook(script: str) -> dict[str, Any]:
    """Return the notebook of a percent-cell script, without outputs."""
    cells = []
    for number, part in enumerate(script.split("# %%")[1:]):
        head, _, body = part.partition("\n")
        lines = body.strip("\n").split("\n")
        title = head.strip()
        if title == "[markdown]":
            cells.append(_cell("markdown", [line.removeprefix("#").removeprefix(" ") for line in lines], number))
            continue
        if title:
            text = [title]
            while lines and lines[0].startswith("# "):
                text.append(lines.pop(0).removeprefix("# "))
            cells.append(_cell("markdown", text, f"{number}-text"))
        if any(lines):
            cells.append(_cell("code", lines, number))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _cell(kind: str, lines: list[str], ident: int | str) -> dict[str, Any]:
    source = [line + "\n" for line in lines[:-1]] + lines[-1:]
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{ident}", "metadata": {}, "source": source}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


def main() -> None:
    """Write every notebook beside its script."""
    for name in SCRIPTS:
        made = notebook((HERE / f"{name}.py").read_text())
        (HERE / f"{name}.ipynb").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
