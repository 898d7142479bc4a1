"""What the curves of a toy that declines come to: k_kill beside its controls, k@95% of its sums, and the verdicts' rules."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mi_ablate.studies.gated_toys import PLAIN
from mi_ablate.studies.removals import MOST
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Table, Verdict

ABLATIONS = ("zero", "mean", "resample")
PLACES = EVERY_WRITER, _, _ = ("every writer", "every site", "last residual")
OWN, DRAWN = "directions", "covariance"
LEFT, KEPT = 0.05, 0.95
Results = Mapping[str, Sequence[Any]]
"""Of the seeds, by method."""


def killed(one: Mapping[str, Any], place: str, ablation: str, run: str = OWN) -> Value:
    """Return the fewest directions that leave at most 5 % of the declines; a lower bound where none of the curve do."""
    rates = one["declines"][place][ablation][run]["declines"]
    k = next((k for k, rate in enumerate(rates) if rate <= LEFT), None)
    return Value(MOST, censored=True) if k is None else Value(k)


def survived(one: Mapping[str, Any], place: str, ablation: str) -> Value:
    """Return the most directions, before the first failure, that leave 95 % of the clean declines."""
    rates = one["declines"][place][ablation][OWN]["declines"]
    k = next((k for k, rate in enumerate(rates) if rate < KEPT * rates[0]), None)
    return Value(MOST, censored=True) if k is None else Value(k - 1)


def at_kill(one: Mapping[str, Any], place: str, ablation: str, score: str) -> float | None:
    """Return a score where declining has gone; None where it never has."""
    k = killed(one, place, ablation)
    return None if k.censored else float(one["declines"][place][ablation][OWN][score][int(k.number)])


def declines(by: Results) -> Table:
    """Return k_kill by training, place and ablation, beside its controls."""
    rows = []
    for method, mine in by.items():
        for place in PLACES if mine else ():
            for ablation in ABLATIONS:
                here = place, ablation
                rows.append({
                    "training": method, "seeds": len(mine), "removed": f"{place}, {ablation}",
                    "k_kill": _told(killed(one, *here) for one in mine),
                    **{name: _told(killed(one, *here, run) for one in mine)
                       for name, run in (("drawn", DRAWN), ("drawn within", "within"), ("top PCA", "pca"))},
                    "k@95%": _told(survived(one, *here) for one in mine),
                    "sums recovered": _told((at_kill(one, *here, "recovered") for one in mine), "-"),
                    "open kept": _told((at_kill(one, *here, "kept") for one in mine), "-"),
                })  # fmt: skip
    note = (
        f"Held-out prompts, {MOST}+ where {MOST} directions do not do. Resample: from another prompt, an open one. "
        "Drawn: from the covariance of all prompts' activations, the mean of 5 draws; within: about the mean of each "
        "kind. Sums recovered, open kept: at k_kill, where there is one. k@95%: the most directions that leave 95 % of"
        " the declines; the two thresholds are not comparable."
    )
    return Table("Declining: how many directions it takes", rows, note)


def in_short(by: Results) -> list[str]:
    """Return k_kill at every writer under zero-ablation beside its controls, in a sentence; nothing where nothing is run."""
    runs = {"its own directions": OWN, "covariance-drawn ones": DRAWN, "top principal components": "pca"}
    told = []
    for method, mine in by.items():
        k = {name: _told(killed(one, EVERY_WRITER, "zero", run) for one in mine) for name, run in runs.items()}
        told += [f"{method} {', '.join(f'{value} {name}' for name, value in k.items())}"] if mine else []
    words = "Zeroed at every writer, declining has gone (at most 5 %) after so many directions"
    return [f"{words}: {'; '.join(told)}."] if told else []


def sums(by: Results) -> Table:
    """Return k@95% of the sums of open prompts, at the last residual, beside its controls."""
    rows = []
    for method, mine in by.items():
        for ablation in ABLATIONS if mine else ():
            k = {run: _told(_k(one, ablation, run) for one in mine) for run in ("edited", DRAWN, "pca")}
            clean = _told(one["sums"][ablation]["edited"][0] for one in mine)
            rows.append({"training": method, "seeds": len(mine), "ablation": ablation, "open sums right": clean,
                         "k@95%": k["edited"], "covariance-drawn": k[DRAWN], "top PCA": k["pca"]})  # fmt: skip
    note = (
        "The contrastive directions of the answers, at the last residual, removed on held-out open prompts: the "
        "protocol of the weight-decay study. k is the largest of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40 that is "
        "survived."
    )
    return Table("The sums of the same toys", rows, note)


def of_r3(by: Results) -> Verdict:
    """Return whether the curves carry over: whether drawn subspaces do as well as the model's own directions."""
    rule = (
        "in modular addition covariance-drawn subspaces remove nearly as much as contrastive directions. It carries over where "
        "declining takes at least 0.8 times as many of its own directions as of covariance-drawn ones (k_kill at every writer, "
        "median over seeds, both trainings, zero and mean); not where it takes at most half as many; undecided between. An "
        "earlier table of these toys was known when this was fixed"
    )
    if not by or min(map(len, by.values())) < 2:
        return Verdict("R3", "not run" if not any(by.values()) else "undecided", "-", "-", rule)
    ratios, leading = (
        {
            f"{method}, {ablation}": statistics.median(_ratio(one, ablation, run) for one in mine)
            for method, mine in by.items()
            for ablation in ("zero", "mean")
        }
        for run in (DRAWN, "pca")
    )
    ours = (
        f"own k_kill as a share of the covariance-drawn one: {_listed(ratios)}; of that of the top principal components: "
        f"{_listed(leading)}"
    )
    verdict = "no" if max(ratios.values()) <= 0.5 else "yes" if min(ratios.values()) >= 0.8 else "undecided"
    return Verdict("R3", verdict, "-", ours, rule)


def of_c12(by: Results) -> Verdict:
    """Return what can be said of the conjecture: whether there is one direction, not why."""
    rule = (
        "refuted where plain toys need more than one direction in most seeds (k_kill, zero-ablation at every writer). "
        "One direction alone does not show why: that takes k_kill to rise with the width, or to fall with the number "
        "of objectives. Neither is varied here, so it is undecided otherwise. A wide model with few objectives and one"
        " direction speaks against capacity as the reason"
    )
    mine = by.get(PLAIN, ())
    if not mine:
        return Verdict("C12", "not run", "one direction", "-", rule)
    found = Spread.of(killed(one, EVERY_WRITER, "zero") for one in mine)
    more = sum(value.number > 1 for value in found.values)
    ours = f"k_kill of declining in two-objective toys of width 128: {found.text()}; more than one in {more} of {len(mine)}"
    refuted = len(mine) > 1 and 2 * more > len(mine)
    return Verdict("C12", "not reproduced" if refuted else "undecided", "one direction", ours, rule)


def figure(by: Results) -> Any:
    """Return declines against directions zeroed at every writer: medians and ranges over seeds, drawn subspaces in grey."""
    import torch

    from mi_ablate.figures import lines

    series, bands, grey = {}, {}, []
    for method, mine in by.items():
        for run, name in ((OWN, method), (DRAWN, f"{method}, covariance-drawn")) if mine else ():
            rates = torch.tensor(
                [one["declines"][EVERY_WRITER]["zero"][run]["declines"] for one in mine], dtype=torch.float64
            )
            series[name] = rates.quantile(0.5, 0)
            if run == OWN:
                bands[name] = torch.stack((rates.amin(0), rates.amax(0)))
            else:
                grey.append(name)
    return lines(list(range(MOST + 1)), series, bands=bands, controls=grey, axes=("directions removed", "declined"))


def _ratio(one: Mapping[str, Any], ablation: str, run: str) -> float:
    """Own k_kill over another run's; what was never reached counts as one more than the curve has."""
    own, other = (killed(one, EVERY_WRITER, ablation, name) for name in (OWN, run))
    return (own.number + own.censored) / max(1.0, other.number + other.censored)


def _listed(ratios: Mapping[str, float]) -> str:
    return "; ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())


def _k(one: Mapping[str, Any], ablation: str, run: str) -> Value | None:
    read = one["sums"][ablation]["k"][run]["0.95"]["first"]["relative"]
    return None if read is None else Value(read["k"], read["censored"])


def _told(values: Any, nothing: str = "not run") -> str:
    found = Spread.of(values)
    return found.text(count=False) if found.n else nothing
