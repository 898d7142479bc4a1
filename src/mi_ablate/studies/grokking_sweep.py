"""E1: what makes grokking faster: weight decay, the share of the pairs trained on, or the size of the model.

The log compares single runs on three axes around one baseline. Here an axis is measured by how many times longer its slowest
arm takes than its fastest, with a bound where an arm does not grok in its steps. The measure depends on how far an axis is
walked: a weight decay of zero or a train fraction of 0.1 can make any ratio large, so the ends stand beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mi_ablate.studies import the_log
from mi_ablate.studies.cells import Cells
from mi_ablate.studies.groups import certain, grok_step, hours
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Findings, Study, Table, Verdict

BASELINE, COLLAPSED = 1.0, 10.0
"""Weight decays: of the arms on the other axes, and one at which the log's model never learns, left out of ratios."""
QUESTION = (
    "Addition mod 97, two layers, d 128, 30 % of the pairs for training, weight decay 1: after how many steps does held-out "
    "accuracy first reach 0.95 (evaluated every 100 steps), as weight decay, the train fraction or the model's size changes? A "
    "run that never got there counts as more than its steps (5,000+)."
)
LOG = the_log.E1["grok step at weight decay 0"] / the_log.E1["grok step at weight decay 1"]
Arms = Mapping[str, Mapping[str, Cells]]


def arms_of(cells: Cells) -> Arms:
    """Return the cells by axis and arm; the baseline is an arm of every axis."""
    decays, others = cells.where(grid="weight-decay"), cells.where(grid="grokking")
    baseline = decays.where(weight_decay=BASELINE)
    walked = {cell.config.weight_decay for cell in decays}
    base = baseline.cells[0].config
    fractions = {cell.config.train_fraction for cell in others} - {base.train_fraction}
    shapes = {(cell.config.config.n_layers, cell.config.config.d_model) for cell in others}
    home = (base.config.n_layers, base.config.d_model)
    data = {fraction: others.where(train_fraction=fraction) for fraction in fractions} | {base.train_fraction: baseline}
    sizes = {
        (n, d): others.where(train_fraction=base.train_fraction, config__n_layers=n, config__d_model=d)
        for n, d in shapes
    } | {home: baseline}
    return {
        "weight decay": {f"{decay:g}": decays.where(weight_decay=decay) for decay in sorted(walked)},
        "train fraction": {f"{fraction:g}": data[fraction] for fraction in sorted(data)},
        "size": {f"{n} layer{'s' if n > 1 else ''}, d {d}": sizes[n, d] for n, d in sorted(sizes)},
    }


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return the table of arms, the ratio of each axis, and the verdict on C1."""
    arms = arms_of(cells)
    rows = [_row(axis, name, group) for axis, every in arms.items() for name, group in every.items()]
    spent = sum(_cpu_seconds(cells)) / 3600
    log = the_log.E1
    note = (
        f"The {len(cells.done)} recorded runs of {len(cells)} took {spent:.1f} CPU hours of training; the log's 17 took "
        f"{log['cost']}. The log: weight decay 0 groks at {log['grok step at weight decay 0']:,}, 1 at "
        f"{log['grok step at weight decay 1']:,}; best train fractions {log['best train fractions']}; fastest "
        f"{log['fastest']}. Held out: accuracy at the last stable step, or where there is none at the last step."
    )
    return Findings(
        tables=[Table("Grok step on three axes around one baseline", rows, note), _ratios(arms)],
        verdicts=[_strongest(arms)],
    )


@dataclass(frozen=True)
class Lever:
    """How many times longer the slowest arm of an axis takes than the fastest."""

    ratio: Value
    low: float
    """The least that the seeds of the two arms allow; 0 where the fastest arm has a run that never grokked."""
    high: float
    """The most; infinite where the slowest arm has a run that never grokked."""
    slowest: str
    fastest: str

    def text(self) -> str:
        """Return "26.4x [16.6, 36.5]"."""
        high = "unbounded" if math.isinf(self.high) else f"{self.high:.3g}"
        return f"{self.ratio.text()}x [{self.low:.3g}, {high}]"


def lever(arms: Mapping[str, Cells]) -> Lever | None:
    """Return the ratio of an axis by its medians; a lower bound where the slowest arm never grokked.

    Arms need two seeds. The collapsed weight decay is left out. None with fewer than two arms, or where none grokked.
    """
    known = {name: Spread.of(map(grok_step, group.done)) for name, group in _walked(arms).items()}
    known = {name: one for name, one in known.items() if one.n > 1}
    grokked = [name for name, one in known.items() if not one.centre.censored]
    if len(known) < 2 or not grokked:
        return None
    fastest = min(grokked, key=lambda name: known[name].median)
    slowest = max(known, key=lambda name: (known[name].centre.censored, known[name].median))
    slow, fast = known[slowest], known[fastest]
    high = math.inf if any(value.censored for value in slow.values) else slow.high / fast.low
    low = 0.0 if any(value.censored for value in fast.values) else slow.low / fast.high
    return Lever(Value(slow.median / fast.median, slow.centre.censored), low, high, slowest, fastest)


def _walked(arms: Mapping[str, Cells]) -> dict[str, Cells]:
    return {name: group for name, group in arms.items() if name != f"{COLLAPSED:g}"}


def _row(axis: str, name: str, group: Cells) -> dict[str, Any]:
    return {
        "axis": axis,
        "arm": name,
        "run": f"{len(group.done)} of {len(group)}",
        "grokked": sum(cell.grok_step is not None for cell in group.done) if group.done else "-",
        "grok step": Spread.of(map(grok_step, group.done)).text(",.0f", count=False),
        "held out, kept weights": Spread.of(cell.held_out for cell in group.done).text(".3f", count=False),
        "CPU minutes a run": Spread.of(seconds / 60 for seconds in _cpu_seconds(group)).text(".1f", count=False),
        "left": hours(group) if group.missing else "-",
    }


def _cpu_seconds(cells: Cells) -> list[float]:
    """What each run on a CPU took; see `cost`."""
    return [c.record["run"]["cpu_seconds"] for c in cells.done if c.record and c.record["device"] == "cpu"]


def _ratios(arms: Arms) -> Table:
    rows = []
    for axis, every in arms.items():
        found, walked = lever(every), _walked(every)
        rows.append({
            "axis": axis,
            "arms with two seeds": f"{sum(len(group.done) > 1 for group in walked.values())} of {len(walked)}",
            "slowest": found.slowest if found else "-",
            "fastest": found.fastest if found else "-",
            "slowest over fastest": found.text() if found else "not run",
            "log's": f"{LOG:.0f}x (0 over 1)" if axis == "weight decay" else "-",
        })  # fmt: skip
    note = (
        f"Ratio of median grok steps [lowest seed over highest, highest over lowest]; weight decay {COLLAPSED:g}, which never "
        "grokked here or in the log, is left out."
    )
    return Table("How far each axis moves the grok step", rows, note)


def _strongest(arms: Arms) -> Verdict:
    rule = (
        "not run unless every arm of the other two axes has two seeds; reproduced where the ratio of weight decay lies above "
        f"those of the other axes for all seeds and between half and twice the log's {LOG:.0f}x, different size where outside "
        "of that; not reproduced where another axis lies above it for all seeds; otherwise, and where the ratio is a lower "
        "bound that leaves its size open, undecided. A ratio is that of an axis's arms with two seeds"
    )
    levers = {axis: lever(every) for axis, every in arms.items()}
    ours = "; ".join(
        f"{axis}: {found.slowest} over {found.fastest} {found.text()}" if found else f"{axis}: not run"
        for axis, found in levers.items()
    )
    mine = levers["weight decay"]
    others = [found for axis, found in levers.items() if axis != "weight decay" and found is not None]
    whole = all(len(g.done) > 1 for axis, every in arms.items() if axis != "weight decay" for g in every.values())
    if mine is None or not whole or len(others) + 1 < len(levers):
        verdict = "not run"
    elif any(other.low > mine.high for other in others):
        verdict = "not reproduced"
    elif mine.low > max(other.high for other in others):
        alike = certain(lambda ratio, log: log / 2 <= ratio <= log * 2, mine.ratio, Value(LOG))
        verdict = {True: "reproduced", False: "different size", None: "undecided"}[alike]
    else:
        verdict = "undecided"
    return Verdict("C1", verdict, f"0 over 1: {LOG:.0f}x", ours, rule)


STUDY = Study(
    name="grokking-sweep",
    log="E1",
    title="What makes grokking faster",
    question=QUESTION,
    grids=("weight-decay", "grokking"),
    find=find,
    decides=("C1",),
)
