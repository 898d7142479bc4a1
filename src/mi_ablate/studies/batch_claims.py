"""The verdicts on batch size: C14, C15, C16, Q1 and Q2, by rules fixed before any of these runs.

Each follows from the exponents of `batch_arms`, one a seed. A verdict needs two seeds, and all of them on one side.
"""

import statistics
from collections.abc import Mapping, Sequence

from mi_ablate.studies.batch_arms import DECAY, PLAIN, RATE, Arms, shifted
from mi_ablate.studies.cells import Cells
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Verdict

FLAT = 0.25
"""An exponent this near to zero counts as none: over batches from 64 to 1,024 it is a factor of two."""
HALF = -0.5
"""An exponent of steps above this is nearer to steps (0) than to samples (-1)."""


def verdicts(arms: Arms) -> list[Verdict]:
    """Return the verdicts on C14, C15, C16, Q1 and Q2."""
    plain, decay = arms.exponents(PLAIN), arms.exponents(DECAY)
    return [
        _decay(plain, decay),
        _serial(plain),
        _noise(plain, decay),
        _earlier(plain, arms.exponents(RATE)),
        _never(arms),
    ]


def _decay(plain: Mapping[int, Value], decay: Mapping[int, Value]) -> Verdict:
    rule = (
        f"reproduced where decay in proportion to the batch lowers the exponent of samples by at least {FLAT} in every seed "
        f"and leaves it within {FLAT} of 0 (the median); different size where it lowers it and leaves more; not reproduced "
        "where it lowers it by less in every seed"
    )
    before, after = shifted(plain), shifted(decay)
    both = [seed for seed in after if seed in before]
    lowered = [Value(before[s].number - after[s].number, before[s].censored) for s in both if not after[s].censored]
    side = _side(lowered, FLAT, least=True) if len(lowered) == len(both) else 0
    ours = f"samples to grok go as batch^{_told(before)}, with decay in proportion to it as batch^{_told(after)}"
    flat = bool(both) and abs(statistics.median(after[seed].number for seed in both)) <= FLAT
    found = {1: "reproduced" if flat else "different size", 0: "undecided", -1: "not reproduced"}[side]
    return _verdict("C14", found, len(both), "samples restored by scaling decay", ours, rule)


def _serial(plain: Mapping[int, Value]) -> Verdict:
    rule = (
        f"e of grok step ~ batch^e at one learning rate and decay; reproduced where it is within {FLAT} of 0 (the median) and "
        f"above {HALF} in every seed; different size where it is above {HALF} in every seed, nearer to steps (0) than to "
        f"samples (-1); not reproduced where it is not above {HALF} in any"
    )
    values = list(plain.values())
    flat = bool(values) and abs(Spread.of(values).median) <= FLAT and not any(v.censored for v in values)
    found = {1: "reproduced" if flat else "different size", 0: "undecided", -1: "not reproduced"}[_side(values, HALF)]
    return _verdict("C15", found, len(plain), "steps alone count", f"grok step goes as batch^{_told(plain)}", rule)


def _noise(plain: Mapping[int, Value], decay: Mapping[int, Value]) -> Verdict:
    rule = (
        "reproduced where smaller batches grok at fewer steps at one learning rate and decay (same steps, same decay), and at "
        "fewer samples with decay in proportion to the batch (same samples, same decay), in every seed; not reproduced where "
        "in neither in any seed; undecided otherwise"
    )
    samples = shifted(decay)
    sides = {_side(list(plain.values()), 0.0), _side(list(samples.values()), 0.0)}
    found = {1: "reproduced", -1: "not reproduced"}.get(sides.pop(), "undecided") if len(sides) == 1 else "undecided"
    ours = f"steps go as batch^{_told(plain)}; with decay in proportion, samples go as batch^{_told(samples)}"
    return _verdict("C16", found, min(len(plain), len(samples)), "smaller batches earlier", ours, rule)


def _earlier(plain: Mapping[int, Value], rate: Mapping[int, Value]) -> Verdict:
    rule = "yes where samples to grok rise with the batch in every seed (exponent above 0); no where they do in none"
    samples = shifted(plain)
    found = {1: "yes", 0: "undecided", -1: "no"}[_side(list(samples.values()), 0.0)]
    ours = (
        f"samples to grok go as batch^{_told(samples)}; with the rate by the root of the batch, {_told(shifted(rate))}"
    )
    return _verdict("Q1", found, len(samples), "expected: yes", ours, rule)


def _never(arms: Arms) -> Verdict:
    size, within = arms.largest, arms.samples // arms.largest
    done = {arm: groups[size] for arm, groups in arms.groups.items() if size in groups}
    groks = [_by(cell.grok_step, within) for cell in done[PLAIN].done]
    found = "yes" if not any(groks) else "no" if all(groks) else "undecided"
    told = [f"{_count(group, within)} grok by step {within:,}{words}" for group, words in (
        (done[PLAIN], ""), (done.get(DECAY, Cells(())), " with decay in proportion"),
        (done.get(RATE, Cells(())), " with the learning rate by its root")) if group.done]  # fmt: skip
    if done[PLAIN].done:
        told.append(f"{_count(done[PLAIN], arms.usual.steps)} by step {arms.usual.steps:,}")
    rule = f"yes where no seed at batch {size:,} groks by step {within:,}, where it has seen the same samples; no where all do"
    return _verdict("Q2", found, len(groks), "expected: yes", "; ".join(told) or "-", rule)


def _verdict(of: str, found: str, seeds: int, log: str, ours: str, rule: str) -> Verdict:
    """The verdict, or less where there are too few seeds for one."""
    if seeds < 2:
        return Verdict(of, "undecided" if seeds else "not run", log, ours if seeds else "-", rule)
    return Verdict(of, found, log, ours, rule)


def _side(values: Sequence[Value], threshold: int | float, least: bool = False) -> int:
    """1 where all values are above the threshold (with ``least`` at it too), -1 where none is, 0 where that is not known."""
    above = [v.number > threshold or (least and v.number == threshold) for v in values]
    if values and all(above):
        return 1
    return -1 if values and not any(above) and not any(v.censored for v in values) else 0


def _told(exponents: Mapping[int, Value]) -> str:
    return Spread.of(exponents.values()).text(".2f", count=False)


def _by(step: int | None, within: int) -> bool:
    return step is not None and step <= within


def _count(group: Cells, within: int) -> str:
    return f"{sum(_by(cell.grok_step, within) for cell in group.done)} of {len(group.done)}"
