"""The page of `mi-ablate clock` and its summary in the terminal; nothing is measured here."""

import importlib.metadata
from pathlib import Path
from typing import Any

from mi_ablate.arithmetic.circuit.heads import LABELS
from mi_ablate.clock_analysis import drawn
from mi_ablate.clock_analysis.circuit import LEAST, numbered
from mi_ablate.clock_analysis.evidence import NOTHING
from mi_ablate.clock_analysis.results import ClockAnalysis
from mi_ablate.report import Section, page

SAYS = {
    "accuracy": (
        "The first token of the answer, greedily, over the whole vocabulary (of a toy: over the numbers), with its 95 % "
        "interval; chance is the best answer that is the same for all problems. All effects below are on problems that "
        "the model solves."
    ),
    "unsolved": (
        "The model does not solve these problems, so there is no way to an answer that could be followed: effects on "
        "its answers would be effects on wrong ones, and nothing causal was measured. What it represents can be read "
        "all the same: `mi-ablate helix` does that. Other templates (`--template question`), smaller numbers (`--upto "
        "10`) or a larger model may be solved."
    ),
    "last": (
        "Helices of the operands, of the answer and of all three are fitted to the residual stream behind each layer at "
        "the last token, and what they say for the clean problem is written over the corrupted run's. Full is the clean "
        "vector itself; pca is its projection on as many components as the widest basis has columns, or on so many as "
        "the label says. With this many columns R² is high for any smooth function; a polynomial of the answer with as many "
        "columns as its helix is the fair rival, the shuffled fit the floor, and random a subspace drawn from the "
        "covariance. {apart}"
    ),
    "layers": (
        "Each layer's attention or MLP output at the last token is taken from the clean run. Total: everything behind "
        "it is computed again. Direct: the change reaches the logits alone; norm {norm}. Indirect: the difference. Of "
        "the clean answer's logit, {gap:.2f} separate the two runs. Total effects of parts along one path count it "
        "again, so their sum says little; parts that stand in for one another look idle."
    ),
    "heads": (
        "A head is named where its patch moves the answer by more than {least:.0%} of what all heads do, in the root "
        "mean square over the pairs; the first {count} by mean effect. c(a,b) = (1 - DE/TE) TE[helix(a,b)] / "
        "TE[helix(a,b,a+b)] and c(a+b) = DE/TE TE[helix(a+b)] / TE[helix(a,b,a+b)]; the least confident are mixed. The "
        "ratios are noise for heads of next to no effect. Heads that bring operands should attend to them, and heads "
        "that bring the answer out to the last token: that is no part of the rule, so it is a check. Any k heads reach "
        "some share; random ones stand beside."
    ),
    "mlps": (
        "Built: how much of an MLP's total effect a helix of the answer, fitted to its output, has in its place. "
        "Direct: how much goes straight to the logits. An MLP that builds a + b has the first and not the second. MLPs "
        "with no effect are left out, their shares being noise. Smallest sets are as small as the search found, and "
        "need not be nested."
    ),
    "paths": (
        "The sender's clean output is written, everything between it and the receiver is kept, and only what the "
        "receiver makes of it goes on. White: no effect, or no way. Senders' effects through one receiver do not add "
        "up."
    ),
    "neurons": (
        "Each neuron's pre-activation is fitted by circles of a, b and the answer and lines of a and b. R² and the "
        "error relative to its range (NRMSE) stand beside fits to shuffled problems; the answer fraction is the share "
        "of the circles of the answer, about 1/3 of a shuffled fit. True: pre-activations of the clean run; fitted: "
        "what the fit says; random: as many other neurons. A neuron fitted by circles of a and b alone may still add: "
        "cos(a + b) is a product that its nonlinearity makes."
    ),
    "readout": (
        "Of right and wrong problems. The line is removed because it would fill the longest periods. A neuron's logits "
        "are its row of W_out through W_U, the final norm skipped. Every spectrum has a largest period: compare the "
        "shuffled one. Errors near the smallest and largest answers cannot be even on both sides."
    ),
    "rival": (
        "A neuron matches a rule (a range, a remainder, a pattern of digits, equal operands, a few results) when at least 60 % "
        "of the prompts to whose answer it contributes most obey it. There are hundreds of rules; the shuffled column says "
        "what they match by chance, but any smooth function of a and b has more in common with some range than that, and "
        "neurons on a Clock match remainders too. What a rule's neurons are worth shows when they are knocked out: a bag of "
        "heuristics loses the rule's own prompts more than others. Faithfulness is that of the ratio of probabilities, "
        "attention left whole."
    ),
    "verdict": (
        "Lines are bounds by convention; the verdict counts them. Clock: all but at most one of the lines on the Clock, "
        "at least three, and none for heuristics. Heuristics: their line, and at most one on the Clock. Undecided is an "
        "answer too. It is about the last token, the pairs and the periods that were asked for."
    ),
    "published": (
        "Numbers of {source}. A row that passes says that two numbers agree within the tolerance, not that the same was "
        "measured: precision, prompts and sample differ."
    ),
}


def write(
    found: ClockAnalysis,
    path: str | Path,
    command: str = "mi-ablate clock",
    *,
    published: list[dict[str, Any]] | None = None,
    source: str = "",
) -> Path:
    """Write the self-contained page and return its path.

    Args:
        found: the analysis.
        path: of the page.
        command: what was typed.
        published: rows of `mi_ablate.published.compared`.
        source: of those numbers.

    """
    sections = [Section("In short", "\n\n".join(summary(found))), _accuracy(found), *_causal(found)]
    if found.readout is not None:
        sections.append(Section("Logits and errors", SAYS["readout"], drawn.readout_items(found.readout)))
    if found.rival is not None:
        sections.append(Section("The rival: a bag of heuristics", SAYS["rival"], drawn.rival_items(found.rival)))
    if found.evidence.lines:
        sections.append(Section("Clock or heuristics", SAYS["verdict"], drawn.evidence_items(found.evidence)))
    if found.reasons:
        rows = [{"what": what, "why": why} for what, why in found.reasons.items()]
        sections.append(Section("Left out", "What could not be measured here, and why.", [rows]))
    if published is not None:
        sections.append(
            Section("Published numbers", SAYS["published"].format(source=source), [drawn.spoken(published)])
        )
    versions = {name: importlib.metadata.version(name) for name in ("transformer-lens", "torch")}
    footer = {"command": command, "model": found.model, **versions, "seconds": f"{found.seconds:.0f}"}
    return page(
        path, f"{Path(found.model).name}: how it calculates {found.asked.problems.task}", sections, footer=footer
    )


def _accuracy(found: ClockAnalysis) -> Section:
    problems = found.asked.problems
    whence = ", the strongest of the number logits" if found.settings["free"] else ""
    said = f"The first problem: `{problems.text[0]!r}`. Periods of all helices: {_periods(found)}{whence}."
    only = [] if found.solved else [SAYS["unsolved"]]
    return Section("Accuracy", SAYS["accuracy"], [said, found.asked.table(), *only, *found.warnings])


def _causal(found: ClockAnalysis) -> list[Section]:
    """The sections of what was measured."""
    apart = "The pairs are of other problems than the fits." if found.settings["apart"] else ""
    if found.settings["apart"] is False:
        apart = "There are too few solved problems to part them: the pairs are of problems that the fits have seen."
    sections = []
    if found.last is not None:
        sections.append(Section("The last token", SAYS["last"].format(apart=apart), drawn.last_items(found.last)))
    if found.layers:
        first = next(iter(found.layers.values()))
        said = SAYS["layers"].format(norm=first.norm, gap=float(first.gap.mean()))
        sections.append(Section("Layers", said, drawn.layer_items(found.layers)))
    if found.heads is not None:
        said = SAYS["heads"].format(least=LEAST, count=found.settings["heads"])
        sections.append(Section("Heads", said, drawn.head_items(found.heads)))
    if found.mlps is not None:
        sections.append(Section("MLPs", SAYS["mlps"], drawn.mlp_items(found.mlps)))
    if found.paths is not None:
        sections.append(Section("Paths", SAYS["paths"], drawn.path_items(found.paths)))
    if found.neurons is not None:
        sections.append(Section("Neurons", SAYS["neurons"], drawn.neuron_items(found.neurons)))
    return sections


def summary(found: ClockAnalysis) -> list[str]:
    """Return what was found in a few sentences, each a paragraph."""
    asked, evidence = found.asked, found.evidence
    low, high = asked.interval
    said = [
        f"{asked.n_correct:,} of {len(asked.problems):,} problems right ({asked.accuracy:.3f}, 95 % interval {low:.3f} to "
        f"{high:.3f}; chance {asked.chance:.3f})."
    ]
    if evidence.verdict == NOTHING:
        return [*said, evidence.text, SAYS["unsolved"]]
    if found.heads is not None and found.heads.roles is not None:
        roles = found.heads.roles
        named = [f"{label} {', '.join(numbered(c) for c in roles.of(label))}" for label in LABELS if roles.of(label)]
        said.append(f"Heads, as layer.head: {'; '.join(named)}.")
    if found.mlps is not None:
        by: dict[str, list[str]] = {}
        for name, label in found.mlps.labels().items():
            by.setdefault(label, []).append(name.removeprefix("MLP "))
        listed = "; ".join(f"{label} {', '.join(sorted(names, key=int))}" for label, names in by.items())
        said.append(f"MLPs, by layer: {listed or 'none has an effect'}.")
    said.append(f"{evidence.text} The rules stand at the end of the page.")
    unasked = [] if found.readout is None else found.readout.unasked(found.settings["periods"])
    if unasked:
        listed = ", ".join(f"{T:.4g}" for T in unasked[:4])
        said.append(
            f"All of this is about helices of periods {_periods(found)}. The logits have most power at {listed}, which was not "
            "asked for: `--free 6` takes the six strongest periods of the logits."
        )
    return said


def _periods(found: ClockAnalysis) -> str:
    return ", ".join(f"{T:.4g}" for T in found.settings["periods"])


def print_summary(found: ClockAnalysis) -> None:
    """Print the short summary."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(f"{Path(found.model).name}: {found.asked.problems!r}", soft_wrap=True)
    for line in [*summary(found), *found.warnings]:
        console.print(line, soft_wrap=True)
    for what, why in found.reasons.items():
        console.print(f"left out: {what}: {why}", soft_wrap=True)
    console.print(f"{found.seconds:.0f} s", style="dim")
