"""The page of `mi-ablate helix` and its summary in the terminal; nothing is measured here."""

import importlib.metadata
from pathlib import Path
from typing import Any

from mi_ablate.helix_analysis import drawn
from mi_ablate.helix_analysis.representation import DRAWS, Operand
from mi_ablate.helix_analysis.results import HelixAnalysis
from mi_ablate.report import Section, page

SAYS = {
    "prompts": (
        "All prompts have one length and each operand is one token at a constant place; positions count from the end. A "
        "number with a space before it and one without are different tokens with different embeddings."
    ),
    "accuracy": (
        "The first token of the answer, greedily, over the whole vocabulary (of a toy: over the numbers), with its 95 % "
        "interval; chance is the best answer that is the same for all problems. Effects on answers are measured on right "
        "ones alone; what is represented, on all."
    ),
    "spectrum": (
        "Power of the mean activation of each number along the number line, by period, as shares of the variance. The "
        "grey line is the same of shuffled numbers, and peaks are above every line of every shuffle. A spike is necessary "
        "for a period to be used, and not sufficient; periods that do not divide the count of numbers leak into their "
        "neighbours, and a mere slope has power at all long periods. PC1: R² of the number against the first principal "
        "component."
    ),
    "separability": (
        "Whether the residue that a spike is about can be read off: Cohen's kappa of a linear probe on numbers it has not "
        "seen, 1 is perfect and 0 is chance. Spike: power at the period and its harmonics over that of all other lines. "
        "The Fisher ratio of any labels is large where there are more dimensions than numbers: compare the shuffled one. "
        "What can be read need not be used."
    ),
    "fits": (
        "R² of a line and a circle for each period, fitted to the mean activation of each number. pca: the most that as "
        "many dimensions hold; shuffled and random: what nothing gives. A high R² says little by itself: any smooth curve "
        "is well fitted by a line and slow circles, so compare the polynomial of as many columns. And what fits need not "
        "be used: see the causal tests."
    ),
    "periods": (
        "The helix with every set of the periods given (means over the layers), then periods searched one after another "
        "without assuming any. Something is always found: a period stands out where it adds more than the same step does "
        "in every search over shuffled numbers (by chance one in {draws}). Periods about as long as the range of the "
        "numbers trade with the line."
    ),
    "helix": (
        "Each number in the coordinates of the fit: where it would lie on the helix if the fit were perfect is the grey "
        "curve. It does not show how much of the activation lies outside the helix."
    ),
    "probes": (
        "Circular probes of the digits in several bases (Levy & Geva 2024): all digits right, of numbers the probe has "
        "not seen. Base 10 should stand above the others if digits are represented; a probe shows what can be read, not "
        "what is used. Below, whether each circle is one two-dimensional feature (Engels et al. 2024): separability beyond "
        "that of the same coordinates made independent, and low mixture. Few points bias both indices, so planes fitted to "
        "shuffled numbers stand below."
    ),
    "swaps": (
        "The token of {of} in a corrupted prompt is overwritten, at one layer, with what each method makes of the clean "
        "prompt's number. Logit difference: how much the clean answer's logit rises (one token, two runs, as in "
        "Kantamneni & Tegmark). full is the ceiling, shuffled the floor, the polynomial the fair rival; random projects "
        "on as many directions drawn from the covariance of the number means, which is all of them where the means span "
        "no more. {n} pairs{same}; bands are 95 % bootstrap intervals over them. Two tokens: clean against corrupted "
        "answer. The logit difference rises long before the answer changes: see the accuracy. After the layer where later "
        "tokens have read the number, nothing written here matters."
    ),
    "removals": (
        "The subspace of each method is removed from the token of {of} in the clean prompt, its mean kept, and the right "
        "answer's logit falls. full makes the whole vector the mean; random is drawn from the covariance of the number "
        "means ({columns} directions, as pca; the helix has rank {rank}), and where the means span no more than that it "
        "is all of them. A subspace whose removal costs no more than that of a random one is not needed, whatever it "
        "holds."
    ),
    "published": (
        "Numbers of {source}. A row that passes says that two numbers agree within the tolerance, not that the same was "
        "measured: precision, prompts and sample differ."
    ),
    "none_right": (
        "None of the problems is answered right. This is a run on representation alone: what the model holds about "
        "numbers needs no arithmetic, and effects on answers would be effects on wrong ones."
    ),
}


def write(
    found: HelixAnalysis,
    path: str | Path,
    command: str = "mi-ablate helix",
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
    asked = found.asked
    only = [SAYS["none_right"]] if asked.representation_only else []
    sections = [
        Section("In short", "\n\n".join(summary(found))),
        Section("Prompts", SAYS["prompts"], _prompts(found)),
        Section("Accuracy", SAYS["accuracy"], [asked.table(), *only]),
    ]
    for x in found.operands.values():
        sections += _representation(found, x)
    for of in found.operands:
        sections += _causal(found, of)
    if found.reasons:
        rows = [{"what": what, "why": why} for what, why in found.reasons.items()]
        sections.append(Section("Left out", "What could not be measured here, and why.", [rows]))
    if published is not None:
        sections.append(Section("Published numbers", SAYS["published"].format(source=source), [published]))
    versions = {name: importlib.metadata.version(name) for name in ("transformer-lens", "torch")}
    footer = {"command": command, "model": found.model, **versions, "seconds": f"{found.seconds:.0f}"}
    return page(path, f"{Path(found.model).name}: numbers in {asked.problems.task}", sections, footer=footer)


def _prompts(found: HelixAnalysis) -> list[Any]:
    problems = found.asked.problems
    bos = "with" if problems.bos else "without"
    said = f"{len(problems):,} problems, {bos} a beginning-of-sequence token. The first: `{problems.text[0]!r}`"
    rows = [
        {"form": form, "gapless from 0 to": x.contiguous, "first that is no token": x.first_failure, "in all": len(x)}
        for form, x in found.numerals.items()
    ]
    return [said, found.example, "Which numbers are single tokens:", rows, *found.warnings]


def _representation(found: HelixAnalysis, x: Operand) -> list[Section]:
    at = f"at {x.of}"
    parts = [
        ("Spectrum", "spectrum", drawn.spectrum_items(x)),
        ("Residues", "separability", drawn.separability_items(x)),
        ("Helix fits", "fits", drawn.fit_items(x)),
        ("Which periods", "periods", drawn.period_items(x)),
        ("The helix", "helix", drawn.held_out_items(x)),
        ("Digits and circles", "probes", drawn.probe_items(x)),
    ]
    return [
        Section(f"{name} {at}", SAYS[key].replace("{draws}", str(DRAWS + 1)), items)
        for name, key, items in parts
        if items
    ]


def _causal(found: HelixAnalysis, of: str) -> list[Section]:
    if of not in found.swaps:
        return []
    fits = found.operands[of].fits
    same = " with the same other operand" if len(found.asked.problems.operands) > 1 else ""
    said = SAYS["swaps"].format(of=of, n=len(found.swaps[of].before["gain"]), same=same)
    lost = SAYS["removals"].format(of=of, rank=fits.rank, columns=len(fits.labels))
    written = drawn.swap_items(found.swaps[of], f"The clean number written at {of}")
    removed = drawn.swap_items(found.removals[of], f"Subspaces removed at {of}")
    return [
        Section(f"Writing a number at {of}", said, written),
        Section(f"Removing the helix at {of}", lost, removed),
    ]


def summary(found: HelixAnalysis) -> list[str]:
    """Return what was found in a few sentences, each a paragraph."""
    asked, said = found.asked, []
    low, high = asked.interval
    said.append(
        f"{asked.n_correct:,} of {len(asked.problems):,} problems right ({asked.accuracy:.3f}, 95 % interval {low:.3f} to "
        f"{high:.3f}; chance {asked.chance:.3f})." + (" Representation only." if asked.representation_only else "")
    )
    for of, x in found.operands.items():
        i = x.means.index(x.best)
        r2, loo = ({k: float(v[i]) for k, v in values.items()} for values in (x.baselines.r2, x.baselines.loo))
        said.append(
            f"At {of}, {drawn.spoken(x.best)}, the helix (rank {x.fits.rank}) holds {r2['helix']:.3f} of the number means' "
            f"variance, {loo['helix']:.3f} of numbers left out; the polynomial {r2['polynomial']:.3f} "
            f"({loo['polynomial']:.3f}), pca of the same rank {r2['pca']:.3f}, shuffled numbers {r2['shuffled']:.3f}."
            + _verdict(loo["helix"], loo["polynomial"])
        )
        for free in x.free:
            out = [f"{T:.4g}" for T, there in zip(free.periods, free.stands_out) if there]
            said.append(f"Periods that stand out unasked, {drawn.spoken(free.site)}: {', '.join(out) or 'none'}.")
    for of, swaps in found.swaps.items():
        best = {name: row["mean"] for name, row in swaps.best().items()}
        listed = ", ".join(f"{name} {best[name]:.2f}" for name in swaps.methods)
        said.append(f"Largest logit difference of a number written at {of}: {listed}.")
    return said


def _verdict(helix: float, polynomial: float) -> str:
    """What the left-out numbers say, where it is against the helix."""
    if not max(helix, polynomial) > 0:
        return " No fit predicts a left-out number better than the mean does."
    if polynomial >= helix:
        return " The polynomial predicts left-out numbers at least as well, so nothing here speaks for these periods."
    return ""


def print_summary(found: HelixAnalysis) -> None:
    """Print the short summary."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(f"{Path(found.model).name}: {found.asked.problems!r}", soft_wrap=True)
    for line in [*summary(found), *found.warnings]:
        console.print(line, soft_wrap=True)
    for what, why in found.reasons.items():
        console.print(f"left out: {what}: {why}", soft_wrap=True)
    console.print(f"{found.seconds:.0f} s", style="dim")
