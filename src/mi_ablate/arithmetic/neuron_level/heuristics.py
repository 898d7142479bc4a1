"""The rival account: a bag of heuristics. Which simple rules do the prompts obey on which each neuron writes the answer?

A neuron's contribution to a prompt is its post-activation times the logit that its row of W_out gives the right answer. It
matches a rule that holds for s prompts when at least 60 % of the s prompts with its largest contributions are among them
(Nikankin, Reusch, Mueller and Belinkov 2024, arXiv 2410.21272, sections 3 and 4: 91 % of 3,200 neurons of Llama-3-8B).

A share of classified neurons says little alone. There are hundreds of rules, and "multi-result" fits its up to four answers
to the neuron; so the same is done with every neuron's contributions shuffled among the prompts ("shuffled"). That
control is weak where contributions are smooth functions of a and b: then any large smooth set of prompts overlaps with
some range. A rule that is matched describes where a neuron is strong, not what the model needs; `knock_out` asks that.
Neurons on a Clock match "r modulo m" too.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.arithmetic._scored import scored
from mi_ablate.arithmetic.neuron_level._neuron_sites import neurons_of, places, values_at, written
from mi_ablate.arithmetic.neuron_level.neuron_effects import NeuronEffects, patched
from mi_ablate.arithmetic.neuron_level.rules import KINDS, Rule, heuristic_rules
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.interventions import Ablate
from mi_ablate.metrics import PositionMetric
from mi_ablate.model import split, stream
from mi_ablate.replay import replay

_AT_ONCE = 256
_RESULTS = (2, 3, 4)


def neuron_contributions(
    model: Any,
    problems: Problems,
    neurons: Int[Tensor, "m 2"] | Sequence[tuple[int, int]],
    *,
    batch_size: int | None = None,
) -> Float[Tensor, "n m"]:
    """Return post-activation times the right answer's logit of the neuron's row of W_out (final norm skipped), ``[n m]``."""
    chosen = neurons_of(model, neurons)
    names, where = places(model, chosen, "mlp.hook_post")
    rows_out, found = written(model, chosen).float(), torch.empty(len(problems), len(chosen))
    for rows, acts in stream(model, split(model, problems.tokens, None, batch_size), list(names.values()), pos=-1):
        columns = model.W_U.detach()[:, problems.answers[rows].to(model.W_U.device)].float().cpu()
        for layer, name in names.items():
            mine = where[layer]
            posts = acts[name][:, chosen[mine, 1].to(acts[name].device)].float().cpu()
            found[rows[:, None], mine] = posts * (columns.T @ rows_out[mine].T)
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Heuristics:
    """How much of each neuron's top prompts each rule selects, and the same for shuffled prompts."""

    neurons: Int[Tensor, "m 2"]
    rules: list[Rule]
    overlap: Float[Tensor, "r m"]
    shuffled: Float[Tensor, "r m"]
    multi: Float[Tensor, " m"]
    """The best overlap with two to four results of the neuron's own choice."""
    shuffled_multi: Float[Tensor, " m"]
    threshold: int | float = 0.6
    answers: Int[Tensor, "m 4"] = field(default_factory=lambda: torch.empty(0, 4, dtype=torch.int64))
    """The four answers to which each neuron contributes most on average."""

    def matched(self, kind: str | None = None, shuffled: bool = False) -> Bool[Tensor, " m"]:
        """Return which neurons match a rule of the kind, or of any.

        Raises:
            ValueError: an unknown kind.

        """
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind={kind!r} is one of {', '.join(KINDS)}.")
        overlap, multi = (self.shuffled, self.shuffled_multi) if shuffled else (self.overlap, self.multi)
        rows = [i for i, rule in enumerate(self.rules) if kind in (None, rule.kind)]
        found = (overlap[rows] >= self.threshold).any(0)
        return found | (multi >= self.threshold) if kind in (None, "multi-result") else found

    @property
    def classified(self) -> float:
        """The share of neurons that match some rule."""
        return float(self.matched().double().mean())

    @property
    def chance(self) -> float:
        """The same share with the prompts shuffled."""
        return float(self.matched(shuffled=True).double().mean())

    def of(self, neuron: int) -> list[str]:
        """Return the rules that one neuron (by its row) matches, the largest overlap first."""
        order = self.overlap[:, neuron].argsort(descending=True)
        return [self.rules[i].name for i in order.tolist() if self.overlap[i, neuron] >= self.threshold]

    def table(self) -> list[dict[str, Any]]:
        """Return one row a kind: rules, the share of neurons that match one, the same with shuffled prompts."""
        rows = [
            {
                "kind": kind,
                "rules": sum(rule.kind == kind for rule in self.rules),
                "neurons": float(self.matched(kind).double().mean()),
                "shuffled": float(self.matched(kind, shuffled=True).double().mean()),
            }
            for kind in KINDS
        ]
        return [*rows, {"kind": "any", "rules": len(self.rules), "neurons": self.classified, "shuffled": self.chance}]

    def __repr__(self) -> str:
        share = f"{self.classified:.3f} of them match one (shuffled {self.chance:.3f})"
        return (
            f"Heuristics({len(self.neurons)} neurons, {len(self.rules)} rules, overlap >= {self.threshold:g}: {share})"
        )


def heuristics_of(
    contributions: Float[Tensor, "n m"],
    inputs: dict[str, Tensor],
    rules: list[Rule] | None = None,
    *,
    neurons: Int[Tensor, "m 2"] | None = None,
    threshold: int | float = 0.6,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Heuristics:
    """Return which rules each neuron matches.

    Args:
        contributions: of the neurons to the right answers ``[n m]``, from `neuron_contributions`.
        inputs: "a", "b", "answer" of the n prompts.
        rules: `heuristic_rules` of the inputs by default.
        neurons: what the columns are; (0, column) by default.
        threshold: the overlap from which a rule is matched.
        seed: of the shuffled prompts, and of the order of equal contributions (zeros of a ReLU; the prompts' own is by a).
        progress: called with (neurons done, neurons in all).

    Raises:
        ValueError: rules for other prompts, a threshold outside (0, 1], contributions that are NaN, neurons for other columns.

    """
    n, m = contributions.shape
    if not torch.isfinite(contributions).all() or (neurons is not None and len(neurons) != m):
        named = m if neurons is None else len(neurons)
        raise ValueError(
            f"Contributions [n, m] of {m} columns for {named} neurons: a finite column for each is needed."
        )
    rules = heuristic_rules(inputs) if rules is None else rules
    if not 0 < threshold <= 1 or any(len(rule.prompts) != n for rule in rules):
        raise ValueError(f"threshold={threshold} is in (0, 1], and every rule needs one entry for each of {n} prompts.")
    answers, which = torch.as_tensor(inputs["answer"]).cpu().unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    order, tie = (torch.randperm(n, generator=generator) for _ in range(2))
    members = [torch.nonzero(rule.prompts).flatten() for rule in rules]
    parts: dict[str, list[Tensor]] = {name: [] for name in ("overlap", "shuffled", "multi", "other", "top")}
    for chunk in contributions.detach().cpu().split(_AT_ONCE, dim=1):
        place = torch.empty(chunk.shape, dtype=torch.int32)
        at = tie[chunk[tie].argsort(dim=0, descending=True, stable=True)]
        varies = chunk.amax(0) > chunk.amin(0)
        place.scatter_(0, at, torch.arange(n, dtype=torch.int32)[:, None].expand_as(chunk))
        for name, many, mine in (("overlap", "multi", torch.arange(n)), ("shuffled", "other", order)):
            ranks = place[mine]
            parts[name].append(torch.stack([varies * (ranks[s] < len(s)).sum(0) / len(s) for s in members]))
            best, top = _multi(chunk[mine], ranks, which, len(answers))
            parts[many].append(varies * best)
            if many == "multi":
                parts["top"].append(answers[top])
        if progress is not None:
            progress(sum(x.shape[0] for x in parts["multi"]), m)
    numbered = torch.stack([torch.zeros(m, dtype=torch.int64), torch.arange(m)], dim=1)
    overlap, shuffled = (torch.cat(parts[name], dim=1) for name in ("overlap", "shuffled"))
    multi, other, top = (torch.cat(parts[name]) for name in ("multi", "other", "top"))
    chosen = numbered if neurons is None else neurons
    return Heuristics(chosen, rules, overlap, shuffled, multi, other, threshold, top)


def _multi(
    chunk: Float[Tensor, "n m"], ranks: Int[Tensor, "n m"], which: Int[Tensor, " n"], n_answers: int
) -> tuple[Float[Tensor, " m"], Int[Tensor, "m k"]]:
    """The best overlap with the two, three or four answers that a neuron contributes most to on average."""
    counts = torch.bincount(which, minlength=n_answers)
    means = torch.zeros(n_answers, chunk.shape[1]).index_add_(0, which, chunk.float()) / counts[:, None]
    top = means.topk(min(_RESULTS[-1], n_answers), dim=0).indices
    best = torch.zeros(chunk.shape[1])
    for k in _RESULTS:
        inside = (which[:, None, None] == top[:k]).any(1)
        size = counts[top[:k]].sum(0)
        allowed = size <= len(which) // 2
        best = torch.maximum(best, torch.where(allowed, (inside & (ranks < size)).sum(0) / size, 0))
    return best, top.T


def probability_effects(
    model: HookedModel,
    pairs: Pairs,
    neurons: Int[Tensor, "m 2"] | Sequence[tuple[int, int]],
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NeuronEffects:
    """Return the published effect E of writing the corrupted prompt's neuron into the clean run, by running it (eq. 1).

    E = ½ [(P*(r') - P(r')) / P(r') + (P(r) - P*(r)) / P*(r)], P* after the patch, r the clean answer and r' the corrupted
    prompt's. To first order it is half of the change of the logit difference r' - r, so `neuron_attribution` ranks neurons
    in one pass; it is unbounded above and dominated by pairs in which P(r') is tiny. "shuffled" writes another pair's neuron.
    """
    chosen = neurons_of(model, neurons)
    names, where = places(model, chosen, "mlp.hook_post")
    values = values_at(model, pairs.corrupted.tokens, names, chosen, where, batch_size)
    logs = {name: _log_probability(x.answers) for name, x in (("r", pairs.clean), ("r'", pairs.corrupted))}

    def edit(i: int, values: Tensor) -> FwdHooks:
        return Ablate(None, values[:, i : i + 1]).at(names[int(chosen[i, 0])], pos=-1, unit=int(chosen[i, 1]))

    runs = replay(model, pairs.clean.tokens, edit(0, values), logs["r"], batch_size=batch_size)
    before = scored(runs, [], logs)

    def effect(i: int, values: Tensor) -> Tensor:
        after = scored(runs, edit(i, values), logs)
        return ((after["r'"] - before["r'"]).expm1() + (before["r"] - after["r"]).expm1()) / 2

    return patched("E", chosen, values, progress, effect)


def _log_probability(answers: Int[Tensor, " n"]) -> PositionMetric:
    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        return x.log_softmax(-1).gather(1, answers.to(x.device)[rows][:, None])[:, 0]

    return PositionMetric("log probability", -1, score, n=len(answers))


def top_per_layer(effects: NeuronEffects, k: int = 200) -> Int[Tensor, "m 2"]:
    """Return the k neurons of each layer with the largest effect of either sign; all of a layer with fewer (warned of)."""
    if k < 1:
        raise ValueError(f"k={k}: one neuron a layer or more.")
    order = effects.mean.abs().argsort(descending=True, stable=True)
    neurons, layers = effects.neurons[order], effects.neurons[:, 0].unique().tolist()
    found = {layer: neurons[neurons[:, 0] == layer][:k] for layer in layers}
    few = [layer for layer, mine in found.items() if len(mine) < k]
    if few:
        warnings.warn(f"Layers {few[:5]} have fewer than the {k} neurons asked for.", UserWarning, stacklevel=2)
    return torch.cat(list(found.values()))
