"""Verdicts on adversarial training: it resists (C8), the method decides (C10), and the trilemma (C11).

The rules were written from the log's words before any adversarial record existed.
"""

from mi_ablate.studies import the_log
from mi_ablate.studies.capacity import by_shape
from mi_ablate.studies.cells import Cell, Cells, chosen
from mi_ablate.studies.penalties import (
    BASELINE,
    DRAWN,
    OPERATIONS,
    OWN,
    Arms,
    by_seed,
    differences,
    dims_of_all,
    k_of,
    k_of_all,
    name_of,
    ratios,
)
from mi_ablate.studies.selective import Corners, corners, k_alone, kills_selectively, over_seeds
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Verdict

TWICE = (1.5, 2.5)
"""What counts as about twice the dimensions."""


def resists(found: Arms) -> Verdict:
    """C8: about twice the dimensions, and more directions survived than without the penalty?"""
    rule = (
        "each seed against the model without a penalty of the same seed, k@95% by zero-ablation at the last "
        "residual, as the log has it: reproduced where in every seed k is larger for both operations and the 95 "
        "%-variance dimensions are more, "
        f"and their median ratio is {TWICE[0]} to {TWICE[1]}; different size where only the ratio is another; not "
        "reproduced "
        "where k is larger in no seed or the dimensions are more in none; undecided otherwise. The control arm's "
        "numbers stand beside: where it gains as much, the verdict holds of any such penalty and not of the model's "
        "own directions"
    )
    before, then = the_log.E6_TO_E8["baseline"], the_log.E6_TO_E8["adversarial"]
    log = (
        f"k {before['add']} / {before['mul']} -> {then['add']} / {then['mul']}; dims {before['dims add']} / "
        f"{before['dims mul']} -> {then['dims add']} / {then['dims mul']}"
    )
    dims = {arm: by_seed(found[arm], dims_of_all) for arm in (BASELINE, OWN, DRAWN)}
    ks = {arm: by_seed(found[arm], k_of_all("zero")) for arm in (BASELINE, OWN, DRAWN)}
    gains = {one: _gains(found, one) for one in OPERATIONS}
    seeds = set.intersection(*(set(gain) for gain in gains.values())) & set(dims[OWN]) & set(dims[BASELINE])
    if len(seeds) < 2:
        return Verdict("C8", "not run", log, "-", rule)
    ratio = ratios(dims[OWN], dims[BASELINE])
    more = [all(gain[seed] for gain in gains.values()) for seed in seeds]
    wider = [dims[OWN][seed].number > dims[BASELINE][seed].number for seed in seeds]
    if not any(more) or not any(wider):
        verdict = "not reproduced"
    elif not (all(more) and all(wider)):
        verdict = "undecided"
    else:
        verdict = "reproduced" if TWICE[0] <= ratio.median <= TWICE[1] else "different size"
    beside = differences(ks[DRAWN], ks[BASELINE])
    control = f"k {beside.text('+.3g')}, dims x {ratios(dims[DRAWN], dims[BASELINE]).text()}" if beside.n else "not run"
    ours = (
        f"k (mean of both operations) {Spread.of(ks[BASELINE].values()).text()} -> "
        f"{Spread.of(ks[OWN].values()).text()}, seed by seed {differences(ks[OWN], ks[BASELINE]).text('+.3g')}; dims "
        f"x {ratio.text()}; covariance-drawn control, seed by seed: {control}"
    )
    return Verdict("C8", verdict, log, ours, rule)


def _gains(found: Arms, operation: str) -> dict[int, bool]:
    """Of each seed whether k is larger with the penalty than without."""
    with_it, without = (by_seed(found[arm], k_of(operation, "zero")) for arm in (OWN, BASELINE))
    return {seed: with_it[seed].number > without[seed].number for seed in with_it if seed in without}


def separable(cell: Cell) -> bool | None:
    """Return whether every operation has a selective kill; None where one of them was not learnt."""
    found = [kills_selectively(cell, one) for one in cell.config.config.operations]
    return None if None in found else all(found)


def _said(group: Cells) -> list[bool]:
    """What the seeds say that say anything."""
    return [one for one in map(separable, group.done) if one is not None]


def method_decides(found: Arms, cells: Cells) -> Verdict:
    """C10: the penalty makes circuits inseparable, and depth and width do not?"""
    rule = (
        "separable: each operation has a selective kill (under 50 %, the other keeps 99 %; mean ablation at the last "
        "residual, more than half of the stable checkpoints). Reproduced where the model without a penalty and every "
        "other depth and width are separable in every seed and the one trained against its own directions is in "
        "none; not reproduced where that one is separable in every seed, or some other depth or width that learns "
        "both operations in none; undecided otherwise, also where no other depth or width is run; not run for fewer "
        "than two seeds with or without the penalty"
    )
    log = "separable: baseline and capacity models; not: the adversarial one"
    before, then = (_said(found[arm]) for arm in (BASELINE, OWN))
    capacity = [chosen(cell for cell in group if cell.grid == "capacity") for group in by_shape(cells).values()]
    others = [seeds for group in capacity if len(seeds := _said(group)) > 1]
    ours = (
        f"seeds that are separable: without a penalty {over_seeds(found[BASELINE], separable)}, against its own "
        f"directions {over_seeds(found[OWN], separable)}, against covariance-drawn ones "
        f"{over_seeds(found[DRAWN], separable)}; other depths and widths run: {len(others)}"
        + (f", {sum(map(sum, others))} of {sum(map(len, others))}" if others else "")
    )
    if len(before) < 2 or len(then) < 2:
        return Verdict("C10", "not run", log, ours if before or then else "-", rule)
    if all(then) or any(not any(seeds) for seeds in others):
        verdict = "not reproduced"
    elif others and all(before) and all(map(all, others)) and not any(then):
        verdict = "reproduced"
    else:
        verdict = "undecided"
    return Verdict("C10", verdict, log, ours, rule)


def trilemma(cells: Cells) -> Verdict:
    """C11: does a single run have all three corners?"""
    rule = (
        "separable, robust and capacity-efficient as in the study of capacity (a selective kill of each operation; "
        "the lower k@95% by mean ablation no smaller than that of addition trained alone; summed Rank99 at least a "
        "fifth of the width). A single run with all three refutes it: not reproduced, and the run is named. "
        "Reproduced where none has all three and each pair is had by some run; undecided where some pair was never "
        "seen; not run for runs of fewer than two kinds, or without addition alone"
    )
    lone = k_alone(cells)
    both = [(cell, corners(cell, lone)) for cell in cells.done if len(cell.config.config.operations) == 2]
    found = [(cell, corner) for cell, corner in both if corner is not None]
    kinds = {(name_of(cell.config.penalty), *_shape(cell)) for cell, _ in found}
    if lone is None or len(kinds) < 2:
        return Verdict("C11", "not run", "pick two", "-", rule)
    words = ("separable", "robust", "efficient")
    has = [[bool(getattr(corner, word)) for word in words] for _, corner in found]
    pairs = {f"{words[i]} + {words[j]}": sum(one[i] and one[j] for one in has) for i, j in ((0, 1), (0, 2), (1, 2))}
    counts = ", ".join(f"{pair} {count}" for pair, count in pairs.items())
    refuting = [_told(cell, corner, lone) for cell, corner in found if corner.held == 3]
    ours = f"of {len(found)} runs: {counts}, all three {len(refuting)}"
    if refuting:
        return Verdict("C11", "not reproduced", "pick two", f"{ours}; refuted by {refuting[0]}", rule)
    return Verdict("C11", "reproduced" if all(pairs.values()) else "undecided", "pick two", ours, rule)


def _shape(cell: Cell) -> tuple[int, int]:
    return cell.config.config.n_layers, cell.config.config.d_model


def _told(cell: Cell, corner: Corners, lone: float) -> str:
    """The run that refutes the trilemma, with its numbers."""
    layers, width = _shape(cell)
    return (
        f"seed {cell.config.seed} of {layers} layers, d {width}, {name_of(cell.config.penalty)} (k {corner.k.text()} "
        f"against {lone:.3g} alone, {corner.filled:.2f} of the width, each operation killed to {corner.least:.2f} or "
        "less)"
    )
