"""The page of `mi-ablate helix` and its summary in the terminal; nothing is measured here."""

import importlib.metadata
from pathlib import Path
from typing import Any

from mi_ablate.helix_analysis.drawn import fit_items, held_out_items
from mi_ablate.helix_analysis.results import HelixAnalysis
from mi_ablate.report import Section, page

SAYS = {
    "prompts": (
        "All prompts have one length and each operand is one token at a constant place; positions count from the end. A "
        "number with a space before it and one without are different tokens with different embeddings."
    ),
    "accuracy": (
        "The first token of the answer, greedily, over the whole vocabulary, with its 95 % interval; chance is the best "
        "answer that is the same for all problems."
    ),
    "fits": (
        "R² of the fit of a line and a circle for each period to the mean activation of each number. Left out: each number "
        "predicted by a fit that never saw it. A high R² says little by itself: any smooth curve is well fitted by a line and "
        "slow circles. Compare the polynomial of as many columns, and the shuffled numbers. And what fits need not be used: "
        "see the causal tests."
    ),
}


def write(found: HelixAnalysis, path: str | Path, command: str = "mi-ablate helix") -> Path:
    """Write the self-contained page and return its path."""
    problems = found.asked.problems
    sections = [
        Section("Prompts", SAYS["prompts"], _prompts(found)),
        Section("Accuracy", SAYS["accuracy"], [found.asked.table()]),
    ]
    for of, x in found.operands.items():
        sections.append(Section(f"Helix fits at {of}", SAYS["fits"], [*fit_items(x), *held_out_items(x)]))
    versions = {name: importlib.metadata.version(name) for name in ("transformer-lens", "torch")}
    footer = {"command": command, "model": found.model, **versions, "seconds": f"{found.seconds:.0f}"}
    return page(path, f"{found.model}: numbers in {problems.task}", sections, footer=footer)


def _prompts(found: HelixAnalysis) -> list[Any]:
    rows = [
        {"form": form, "gapless from 0 to": x.contiguous, "first that is no token": x.first_failure, "in all": len(x)}
        for form, x in found.numerals.items()
    ]
    return [*found.warnings, found.example, rows]


def print_summary(found: HelixAnalysis) -> None:
    """Print the short summary."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(f"{found.model}  {found.asked!r}", soft_wrap=True)
    for of, x in found.operands.items():
        console.print(f"{of}: {x.fits!r}", soft_wrap=True)
    console.print(f"{found.seconds:.0f} s", style="dim")
