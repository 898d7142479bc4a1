"""What speaks for the Clock and what for its rival, drawn from the numbers by rules that stand beside them.

Each line has a value, what it is compared with, and a rule; it speaks for the Clock, for heuristics, or for neither. The
verdict counts lines:

    nothing to explain    the accuracy is not above that of one constant answer
    clock                 all lines on the Clock that could be measured speak for it, but for one at most, and at least three do
    heuristics            the line on heuristics speaks for them, and at most one for the Clock
    undecided             everything else

Kantamneni and Tegmark's evidence (arXiv 2502.00873) and Nikankin et al.'s (2410.21272) do not exclude each other: a neuron that
is periodic in a + b is found by a rule "a + b modulo 10" too. So where fitted circles keep the accuracy that the neurons' true
values have, matches of rules decide nothing.

When it misleads: the bounds are conventions. All evidence is on the patched position, of problems that the model solves, and
by bases that were chosen; a verdict is a summary of the table, not a test.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mi_ablate.clock_analysis.last_token import POLYNOMIAL, helix_of

if TYPE_CHECKING:
    from mi_ablate.arithmetic import Asked
    from mi_ablate.clock_analysis.circuit import Heads, Mlps
    from mi_ablate.clock_analysis.last_token import LastToken
    from mi_ablate.clock_analysis.neurons import Neurons
    from mi_ablate.clock_analysis.rival import Rival

CLOCK, HEURISTICS, NEITHER = "clock", "heuristics", "neither"
NOTHING, UNDECIDED = "nothing to explain", "undecided"
WORDS = {CLOCK: "the Clock", HEURISTICS: "a bag of heuristics"}
ENOUGH, MARGIN = 0.5, 0.1
"""A share that counts, and how far above its control it must lie."""
CIRCLES = "neurons that are circles of a, b and the answer"


@dataclass(frozen=True)
class Line:
    """One piece of evidence."""

    what: str
    value: float
    beside: float
    """The control's value."""
    rule: str
    speaks: str

    def row(self) -> dict[str, Any]:
        """Return it as a row of the table."""
        return {"what": self.what, "value": self.value, "beside": self.beside, "for": self.speaks, "rule": self.rule}


@dataclass(frozen=True)
class Evidence:
    """All lines, the verdict, and a paragraph that says why."""

    lines: tuple[Line, ...]
    verdict: str
    text: str

    def table(self) -> list[dict[str, Any]]:
        """Return one row a line."""
        return [line.row() for line in self.lines]


def weighed(
    asked: "Asked",
    *,
    last: "LastToken | None",
    heads: "Heads | None",
    mlps: "Mlps | None",
    neurons: "Neurons | None",
    rival: "Rival | None",
    **others: Any,
) -> Evidence:
    """Return the evidence of the parts that were measured."""
    low, high = asked.interval
    if low <= asked.chance:
        text = (
            f"Nothing to explain: the model answers {asked.n_correct} of {len(asked.correct)} problems rightly "
            f"({asked.accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}), and one constant answer would give "
            f"{asked.chance:.3f}. There is no calculation whose way could be followed."
        )
        return Evidence((), NOTHING, text)
    on_clock = [line for line in (_last(last), _heads(heads), _mlps(mlps), _neurons(neurons)) if line is not None]
    other = _rival(rival, any(line.speaks == CLOCK and line.what == CIRCLES for line in on_clock))
    lines = on_clock if other is None else [*on_clock, other]
    verdict = verdict_of(on_clock, other)
    return Evidence(tuple(lines), verdict, _text(lines, verdict))


def verdict_of(on_clock: list[Line], other: Line | None) -> str:
    """Return the verdict by the rules of the module, from the lines on the Clock and the one on heuristics."""
    for_clock, rival = sum(line.speaks == CLOCK for line in on_clock), other is not None and other.speaks == HEURISTICS
    if for_clock >= 3 and for_clock >= len(on_clock) - 1 and not rival:
        return CLOCK
    return HEURISTICS if rival and for_clock <= 1 else UNDECIDED


def _side(value: float, beside: float) -> str:
    above = math.isfinite(value) and value >= ENOUGH and not value < beside + MARGIN
    return CLOCK if above else NEITHER


def _last(last: "LastToken | None") -> Line | None:
    if last is None or last.swaps is None:
        return None
    value, beside = last.share(helix_of("answer")), last.share(POLYNOMIAL)
    rule = f"at least {ENOUGH} of the clean vector's effect, and {MARGIN} above a polynomial of the answer with as many columns"
    what = "a helix of the answer, written at the last token where it does most"
    return Line(what, value, beside, rule, _side(value, beside))


def _heads(heads: "Heads | None") -> Line | None:
    if heads is None or heads.roles is None:
        return None
    roles = heads.roles
    value, mixed = float(roles.shares[roles.mixed]), roles.mixed / len(roles.heads)
    both = bool(roles.of("a,b")) and value >= ENOUGH and mixed <= ENOUGH
    rule = (
        f"in their roles alone heads keep {ENOUGH} of their effect, some bring a or b, and at most half are mixed (beside: "
        "their share)"
    )
    return Line(
        "heads that bring helices of a and b, or carry one of the answer",
        value,
        mixed,
        rule,
        CLOCK if both else NEITHER,
    )


def _mlps(mlps: "Mlps | None") -> Line | None:
    if mlps is None:
        return None
    rows = [i for i, c in enumerate(mlps.roles.mlps) if c in mlps.circuit]
    total = float(mlps.roles.total[rows].mean(1).sum())
    if not rows or total <= 0:
        return None
    value, beside = (float(x[rows].mean(1).sum()) / total for x in (mlps.roles.helix, mlps.roles.shuffled))
    rule = (
        f"helices of the answer in the place of the circuit's MLPs have {ENOUGH} of their effect, {MARGIN} above shuffled "
        "ones"
    )
    return Line("MLPs whose output is a helix of the answer", value, beside, rule, _side(value, beside))


def _neurons(neurons: "Neurons | None") -> Line | None:
    if neurons is None:
        return None
    value, beside = neurons.worth(), max(neurons.worth("shuffled"), neurons.worth("other periods"))
    rule = (
        f"circles of a, b and the answer keep {ENOUGH} of the accuracy that the neurons' true values have, {MARGIN} above "
        "shuffled ones and circles of other periods"
    )
    return Line(CIRCLES, value, beside, rule, _side(value, beside))


def _rival(rival: "Rival | None", circles: bool) -> Line | None:
    if rival is None:
        return None
    value, beside, specific = rival.matches.classified, rival.matches.chance, rival.specific()
    rule = (
        f"at least {ENOUGH} of the largest neurons match a rule, {MARGIN} above shuffled ones; those of a rule cost its own "
        f"prompts {MARGIN} more accuracy than others, beyond random neurons (here {specific:.2f}); and circles do not keep the "
        "accuracy"
    )
    there = value >= ENOUGH and value >= beside + MARGIN and specific >= MARGIN and not circles
    return Line("neurons that match simple rules", value, beside, rule, HEURISTICS if there else NEITHER)


def _text(lines: list[Line], verdict: str) -> str:
    said = {side: [line for line in lines if line.speaks == side] for side in (CLOCK, HEURISTICS, NEITHER)}
    parts = []
    for side, words in ((CLOCK, "For the Clock"), (HEURISTICS, "For a bag of heuristics"), (NEITHER, "For neither")):
        if said[side]:
            listed = "; ".join(f"{line.what} ({line.value:.2f}, beside {line.beside:.2f})" for line in said[side])
            parts.append(f"{words}: {listed}.")
    return f"Verdict: {WORDS.get(verdict, verdict)}. " + " ".join(parts or ["Nothing could be measured."])
