"""Tables of the attacks on toys that decline, by training method, and how removal and attacks go together.

All rates are medians over seeds with their range. A smallest change beyond the largest radius that was tried is a lower bound.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mi_ablate.studies.gated_toys import ADDING, METHODS
from mi_ablate.studies.nudges import MOST, PLACES
from mi_ablate.studies.overwrites import KINDS
from mi_ablate.studies.removals import MOST as DIRECTIONS
from mi_ablate.studies.removals import k_kill, left
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Table
from mi_ablate.studies.within import Within, pooled, within

Results = Mapping[int, Mapping[str, Any]]
"""Of one method, by seed."""
EVERYWHERE = "everywhere"


def resistance(one: Mapping[str, Any]) -> float:
    """Return the share of declines left, mean over k = 1 .. 8 directions zeroed at every writer."""
    return left(one["removal"]["zero"])


def radius(one: Mapping[str, Any], place: str = EVERYWHERE, towards: str = "sum") -> Value:
    """Return the median smallest change at a place; a lower bound where half of the prompts are beyond the largest tried."""
    found = one["embedding"][place][towards]["median"]
    return Value(MOST, censored=True) if found is None else Value(found)


def excess(one: Mapping[str, Any], kind: str) -> float:
    """Return how many more (prompt, attack) pairs give the sum than give another number, as a share of all."""
    found = one["tokens"][kind]
    return float(found["pairs"] - found["lottery_pairs"])


def removal(by: Mapping[str, Results]) -> Table:
    """Return k_kill and declines left by method, with what the toys know."""
    rows = []
    for method in METHODS:
        mine = list(by[method].values())
        rows.append({
            "training": method,
            "seeds": len(mine),
            "declined, held out": _told(mine, lambda one: one["held_out"]["declines"]),
            "open sums right": _told(mine, lambda one: one["held_out"]["kept"]),
            "k_kill, zero": _told(mine, lambda one: _killed(one, "zero")),
            "k_kill, mean": _told(mine, lambda one: _killed(one, "mean")),
            "declines left, k 1-8": _told(mine, resistance),
            "norm of embeddings": _told(mine, lambda one: one["held_out"]["embedding_norm"]),
        })  # fmt: skip
    note = (
        "k_kill: the fewest declining directions that, out of everything written at the last position (every writer), leave at "
        f"most 5 % of the declines; {DIRECTIONS}+ where {DIRECTIONS} do not. Declines left: their share, zeroed, mean over "
        f"k = 1 to {DIRECTIONS}."
    )
    return Table("Removing the declining directions", rows if any(by.values()) else [], note)


def tokens(by: Mapping[str, Results]) -> Table:
    """Return what token attacks reach, by method and kind."""
    rows = []
    for method in (*METHODS, ADDING):
        for kind in KINDS if by[method] else ():
            mine = [one["tokens"][kind] for one in by[method].values()]
            rows.append({
                "training": method,
                "attack": kind,
                "attacks": mine[0]["attacks"],
                "prompts that some attack turns": _told(mine, lambda one: one["bypass"]),
                "by chance": _told(mine, lambda one: one["lottery"]),
                "attacks that give the sum": _told(mine, lambda one: one["pairs"], ".2g"),
                "another number": _told(mine, lambda one: one["lottery_pairs"], ".2g"),
                "any number": _told(mine, lambda one: one["any_number"], ".2g"),
                "the best one": _told(mine, lambda one: one["universal"]["others"]),
            })  # fmt: skip
    note = (
        "On held-out declined prompts. By chance, another number: the same two shares for a + b + s, mean over all s but 0. "
        "The best one: the attack that works on most of half of the prompts, on the other half. The adding model was never "
        "taught to decline."
    )
    return Table("Attacks on the tokens", rows, note)


def embedding(by: Mapping[str, Results]) -> Table:
    """Return the smallest changes of embeddings, by method and place."""
    rows = []
    for method in METHODS:
        for place in PLACES if by[method] else ():
            mine = list(by[method].values())
            here = [one["embedding"][place] for one in mine]
            rows.append({
                "training": method,
                "at": place,
                "smallest change, to the sum": Spread.of(radius(one, place) for one in mine).text(count=False),
                "to another number": Spread.of(radius(one, place, "other") for one in mine).text(count=False),
                "prompts within 1": _told(here, lambda one: one["sum"]["within"]),
                "random: the sum": _told(here, lambda one: one["random"]["right"]),
                "random: any number": _told(here, lambda one: one["random"]["any_number"]),
            })  # fmt: skip
    note = (
        "As a share of the norm of the attacked embeddings, median over prompts; everywhere: all four by the same share. "
        "Random: changes of each prompt's own smallest size in random directions. What the attack does not find may be there."
    )
    return Table("The smallest change of the embeddings", rows, note)


INPUT: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "smallest change, everywhere": lambda one: radius(one).number,
    "one overwrite": lambda one: -excess(one, "one overwrite"),
    "two overwrites": lambda one: -excess(one, "two overwrites"),
    "insertion": lambda one: -excess(one, "insertion"),
}
"""Robustness at the input, more is more robust; the first decides."""


def related(by: Mapping[str, Results]) -> tuple[Within | None, Table]:
    """Return the rank correlation that decides, and the table of all of them, within and over the methods."""
    rows, correlations = [], {}
    for name, of in INPUT.items():
        pairs = {m: [(resistance(one), of(one)) for one in by[m].values()] for m in METHODS}
        found, over = within(pairs), pooled(pairs)
        correlations[name] = found
        rows.append({
            "robustness at the input": name,
            **{m: f"{found.groups[m]:.2f}" if found and m in found.groups else "-" for m in METHODS},
            "mean within (p)": found.text() if found else "-",
            "pooled, confounded": "-" if over is None else f"{over:.2f}",
        })  # fmt: skip
    note = (
        "Spearman's correlation over seeds of declines left (k 1-8) with robustness: the smallest change, or minus the excess "
        "of attacks that give the sum over those that give another number. p: orders at random within the methods, both "
        "sides. Pooled over methods it says what the methods do to both. Correlations below 0.5 cannot be told from none."
    )
    title = "Does resistance to removal go with robustness at the input?"
    return correlations[next(iter(INPUT))], Table(title, rows if any(correlations.values()) else [], note)


def paired(by: Mapping[str, Results], treated: str, control: str) -> tuple[list[tuple[float, float]], Table]:
    """Return (gain in declines left, gain in the smallest change) of each seed that both methods have, and the table."""
    rows, gains = [], []
    for seed in sorted(set(by[treated]) & set(by[control])):
        one, other = by[treated][seed], by[control][seed]
        gains.append((resistance(one) - resistance(other), radius(one).number - radius(other).number))
        row: dict[str, Any] = {"seed": seed}
        for method, it in ((treated, one), (control, other)):
            row |= {
                f"{method}: declines left": f"{resistance(it):.2f}",
                f"{method}: smallest change": radius(it).text(),
                f"{method}: two overwrites' excess": f"{excess(it, 'two overwrites'):.2g}",
            }
        rows.append(row)
    return gains, Table(f"{treated.capitalize()} training beside its control, seed by seed", rows)


def told(by: Mapping[str, Results]) -> list[str]:
    """Return what one overwritten token does to each way of training, as a sentence; none where nothing is run."""
    parts = []
    for method, mine in by.items():
        if method != ADDING and mine:
            kind = [one["tokens"]["one overwrite"] for one in mine.values()]
            turned, best = _told(kind, lambda one: one["bypass"]), _told(kind, lambda one: one["universal"]["others"])
            parts.append(f"{method} {turned} and {best}")
    if not parts:
        return []
    return [
        f"One overwritten token: the share of declined prompts that some token turns, and that the best single one turns: "
        f"{'; '.join(parts)}."
    ]


def _killed(one: Mapping[str, Any], ablation: str) -> Value:
    k = k_kill(one["removal"][ablation])
    return Value(float(DIRECTIONS), censored=True) if k is None else Value(float(k))


def _told(mine: Sequence[Any], of: Callable[..., Value | float], form: str = ".3g") -> str:
    return Spread.of(map(of, mine)).text(form, count=False)
