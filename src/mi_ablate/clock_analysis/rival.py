"""The rival account: which simple rules the neurons match, whether few of them are enough, and what a rule's neurons carry."""

from dataclasses import dataclass
from typing import Any

from mi_ablate.arithmetic.neuron_level.bags import Faithfulness, KnockOuts, faithfulness, knock_out
from mi_ablate.arithmetic.neuron_level.heuristics import Heuristics, heuristics_of, neuron_contributions, top_per_layer
from mi_ablate.arithmetic.neuron_level.neuron_effects import NeuronEffects
from mi_ablate.clock_analysis.bench import Bench, Tries

A_LAYER = 200
"""Neurons a layer (Nikankin et al. 2024)."""
PROBLEMS, RULES = 1000, 3
"""Solved problems that neurons are matched on, and rules of a kind whose neurons are knocked out."""
KS = (5, 10, 25, 50, 100, 200)


@dataclass(frozen=True, eq=False, repr=False)
class Rival:
    """What speaks for a bag of heuristics."""

    matches: Heuristics
    faithful: Faithfulness
    knocked: KnockOuts | None
    """None where no rule has neurons and prompts enough."""

    def specific(self) -> float:
        """Return how much more knocked-out rules cost their own prompts than others.

        Falls of accuracy, beyond those of random neurons, the mean over the kinds of rules.
        """
        if self.knocked is None or not self.knocked.table():
            return float("nan")
        rows = self.knocked.table()
        return sum(loss(row, "knocked out") - loss(row, "random") for row in rows) / len(rows)


def loss(row: dict[str, Any], way: str) -> float:
    """Return the fall of accuracy on a rule's prompts less that on others."""
    own, other = (row[f"{where} clean"] - row[f"{where} {way}"] for where in ("associated", "others"))
    return own - other


def rival(bench: Bench, effects: NeuronEffects, tries: Tries) -> Rival:
    """Return the rules that the largest neurons of each layer match, and what they are worth."""
    given: dict[str, Any] = {"batch_size": bench.batch_size}
    widest = int(effects.neurons[:, 0].bincount().max())
    ks = [k for k in KS if k <= widest] or [widest]
    chosen = top_per_layer(effects, min(A_LAYER, widest))
    some = bench.fitted[:PROBLEMS]
    contributions = neuron_contributions(bench.model, some, chosen, **given)
    inputs = {name: x.cpu() for name, x in some.inputs.items()}
    matches = heuristics_of(contributions, inputs, neurons=chosen, seed=bench.seed, progress=bench.tell("heuristics"))
    faithful = faithfulness(
        bench.model, bench.judged, effects, ks, seed=bench.seed, progress=bench.tell("faithfulness"), **given
    )
    knocked = tries(
        "rules knocked out",
        lambda: knock_out(
            bench.model, some, matches, rules_per_kind=RULES, seed=bench.seed, progress=bench.tell("rules"), **given
        ),
    )
    return Rival(matches, faithful, knocked)
