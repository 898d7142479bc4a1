"""Does a model need its heuristic neurons? Faithfulness of the k largest of each layer, and what a rule's neurons carry.

    F(c) = (S(c) - S(empty)) / (S(model) - S(empty))

S is the mean score over prompts with every MLP neuron outside c at its mean over the prompts, at the answer's position
(Nikankin, Reusch, Mueller and Belinkov 2024, arXiv 2410.21272; attention stays whole here). Published is NL, the right answer's
logit over the largest logit: adding a constant to all logits, which changes no probability, changes NL, so it depends
on how a model's unembedding is centred. The default is the same ratio of probabilities, p(answer) / p(most likely), which
does not.

Knocking out: the neurons that match one rule go to their mean. If the bag is what answers, prompts of that rule suffer more
than others. As many random neurons of the same set stand beside it, and the accuracies before.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._shares import RESAMPLES, percentiles
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.arithmetic._scored import mean_interval, right, scored
from mi_ablate.arithmetic.neuron_level._neuron_sites import all_but, neurons_of, places
from mi_ablate.arithmetic.neuron_level.heuristics import Heuristics, top_per_layer
from mi_ablate.arithmetic.neuron_level.kept_neurons import mean_posts
from mi_ablate.arithmetic.neuron_level.neuron_effects import NeuronEffects
from mi_ablate.arithmetic.neuron_level.rules import KINDS
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.interventions import Ablate
from mi_ablate.metrics import PositionMetric
from mi_ablate.model import sites
from mi_ablate.replay import replay

SCORES = ("probability", "NL")


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness:
    """Scores of every prompt with k neurons a layer kept: the largest effects, and random ones."""

    score: str
    ks: tuple[int, ...]
    scores: dict[str, Float[Tensor, "ks n"]]
    """"top" and "random"."""
    accuracy: dict[str, Float[Tensor, "ks n"]]
    whole: Float[Tensor, " n"]
    empty: Float[Tensor, " n"]

    def values(self, of: str = "top") -> Float[Tensor, " ks"]:
        """Return F at each k."""
        gap = float(self.whole.mean() - self.empty.mean())
        if abs(gap) < 1e-9:
            raise ValueError(
                "The model scores the same with all MLP neurons at their means: F divides by that difference."
            )
        return (self.scores[of].mean(1) - self.empty.mean()) / gap

    def table(self) -> list[dict[str, Any]]:
        """Return one row a k: F and accuracy with its 95 % interval, and those of random neurons."""
        rows, top, other = [], self.values(), self.values("random")
        for i, k in enumerate(self.ks):
            low, high = mean_interval(self.accuracy["top"][i])
            row = {"k": k, "faithfulness": float(top[i]), "random": float(other[i])}
            row |= {"accuracy": float(self.accuracy["top"][i].mean()), "low": low, "high": high}
            rows.append({**row, "accuracy random": float(self.accuracy["random"][i].mean())})
        return rows

    def __repr__(self) -> str:
        last = self.table()[-1]
        return (
            f"Faithfulness({self.score}, {len(self.whole)} prompts: {last['faithfulness']:.3f} with {self.ks[-1]} neurons "
            f"a layer, random {last['random']:.3f})"
        )


def faithfulness(
    model: HookedModel,
    problems: Problems,
    effects: NeuronEffects,
    ks: Sequence[int] = (10, 50, 100, 200),
    *,
    score: str = "probability",
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Faithfulness:
    """Return F against the number of neurons kept in each layer, in the order of their effects.

    Args:
        model: the model.
        problems: prompts that it answers rightly, by preference.
        effects: of all neurons of the layers that are looked at; neurons of other layers stay as they are.
        ks: neurons a layer.
        score: "probability", or "NL" as published (with a warning: see the module).
        seed: of the random neurons.
        batch_size: prompts a pass.
        progress: called with (runs done, runs in all).

    Raises:
        ValueError: another score, a k below 1.

    """
    if score not in SCORES or not ks or min(ks) < 1:
        raise ValueError(f"score={score!r}, ks={list(ks)[:4]}: one of {SCORES}, and one or more neurons a layer.")
    if score == "NL":
        warnings.warn(
            "NL (answer logit / largest logit) changes when a constant is added to all logits, as centring W_U does; "
            "compare it only between models with the same processing. score='probability' does not.",
            UserWarning,
            stacklevel=2,
        )
    layers = effects.neurons[:, 0].unique().tolist()
    posts = [sites(model, "mlp.hook_post", layer)[0] for layer in layers]
    means = mean_posts(model, problems, posts, batch_size)
    metrics = {"score": _score(problems, score), "accuracy": right(problems)}
    nothing = all_but(effects.neurons[:0], means, -1)
    runs = replay(model, problems.tokens, nothing, metrics["score"], batch_size=batch_size)
    draw = torch.rand(len(effects.mean), generator=torch.Generator().manual_seed(seed)).double()
    ways = {"top": effects, "random": NeuronEffects("random", "", effects.neurons, draw, draw, draw, 0)}
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in ways}
    for i, k in enumerate(ks):
        for name, one in ways.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if name == "random" else "default", UserWarning)
                kept = top_per_layer(one, k)
            found[name].append(scored(runs, all_but(kept, means, -1), metrics))
        if progress is not None:
            progress(i + 1, len(ks))
    by = {key: {name: torch.stack([one[key] for one in each]) for name, each in found.items()} for key in metrics}
    whole, empty = (scored(runs, hooks, metrics)["score"] for hooks in ([], nothing))
    return Faithfulness(score, tuple(ks), by["score"], by["accuracy"], whole, empty)


def _score(problems: Problems, kind: str) -> PositionMetric:
    answers = problems.answers

    def score(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        answer, most = x.gather(1, answers.to(x.device)[rows][:, None])[:, 0], x.max(-1).values
        return answer / most if kind == "NL" else (answer - most).exp()

    return PositionMetric(kind, -1, score, n=len(answers))


@dataclass(frozen=True, eq=False, repr=False)
class KnockOuts:
    """What happens to the prompts of a rule, and to others, when the neurons that match it go to their means."""

    rules: list[tuple[str, str, int]]
    """Kind, name and number of neurons of each rule that was knocked out."""
    inside: Bool[Tensor, "r n"]
    """Which prompts each rule holds for."""
    accuracy: dict[str, Float[Tensor, "r n"]]
    """"knocked out", and "random": as many others (and matching ones where there are fewer)."""
    clean: Float[Tensor, " n"]

    def table(self) -> list[dict[str, Any]]:
        """Return one row a kind: mean accuracy on prompts of the rules and on others, before, after, with random neurons.

        "low" and "high" are of "specific", how much more of the accuracy on the rules' prompts is lost than of others': 95 %
        over resampled prompts.
        """
        rows = []
        for kind in [kind for kind in KINDS if any(rule[0] == kind for rule in self.rules)]:
            mine = [i for i, rule in enumerate(self.rules) if rule[0] == kind]
            row: dict[str, Any] = {"kind": kind, "rules": len(mine)}
            row["neurons"] = sum(self.rules[i][2] for i in mine) / len(mine)
            for name, values in {"clean": self.clean.expand_as(self.inside), **self.accuracy}.items():
                for where, mask in (("associated", self.inside), ("others", ~self.inside)):
                    row[f"{where} {name}"] = sum(float(values[i][mask[i]].mean()) for i in mine) / len(mine)
            row |= dict(zip(("specific", "low", "high"), self._specific(mine)))
            rows.append(row)
        return rows

    def _specific(self, mine: list[int]) -> list[float]:
        """What the rules' prompts lose beyond others, the mean over rules, and its interval."""
        lost, inside, n = self.clean - self.accuracy["knocked out"][mine], self.inside[mine].double(), len(self.clean)

        def of(counts: Float[Tensor, "s n"]) -> Float[Tensor, " s"]:
            means = [(counts @ (mask * lost).T) / (counts @ mask.T) for mask in (inside, 1 - inside)]
            return (means[0] - means[1]).mean(1)

        drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
        counts = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
        ends = torch.nanquantile(of(counts), percentiles(0.95))
        return [float(of(torch.ones(1, n, dtype=torch.float64))), *ends.tolist()]

    def __repr__(self) -> str:
        text = "; ".join(
            f"{row['kind']}: associated {row['associated knocked out']:.3f}, others {row['others knocked out']:.3f}, "
            f"random {row['associated random']:.3f}"
            for row in self.table()
        )
        return f"KnockOuts({len(self.rules)} rules, {len(self.clean)} prompts: {text})"


def knock_out(
    model: HookedModel,
    problems: Problems,
    found: Heuristics,
    kinds: Sequence[str] = KINDS[:4],
    *,
    rules_per_kind: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KnockOuts:
    """Return accuracy on the prompts of each rule and on others, with the neurons that match it at their means.

    Args:
        model: the model.
        problems: the prompts of ``found``, in the same order.
        found: from `heuristics_of`, with ``neurons``.
        kinds: of rules ("multi-result" is each neuron's own, and has no prompts in common).
        rules_per_kind: those with the most neurons.
        seed: of the random neurons, drawn from those of ``found`` that do not match the rule; where these are fewer than those
            that do, from all of them until there are as many.
        batch_size: prompts a pass.
        progress: called with (rules done, rules in all).

    Raises:
        ValueError: an unknown kind, other prompts, no rule of these kinds with a neuron.

    """
    if any(kind not in KINDS[:4] for kind in kinds) or any(len(rule.prompts) != len(problems) for rule in found.rules):
        raise ValueError(f"kinds={list(kinds)}: some of {KINDS[:4]}, and rules about these {len(problems)} prompts.")
    matches = found.overlap >= found.threshold
    chosen = []
    for kind in kinds:
        mine = [i for i, rule in enumerate(found.rules) if rule.kind == kind and matches[i].any()]
        chosen += sorted(mine, key=lambda i: -int(matches[i].sum()))[:rules_per_kind]
    if not chosen:
        raise ValueError(f"No neuron matches a rule of the kinds {list(kinds)}: there is nothing to knock out.")
    names, _ = places(model, neurons_of(model, found.neurons), "mlp.hook_post")
    means, generator = (
        mean_posts(model, problems, list(names.values()), batch_size),
        torch.Generator().manual_seed(seed),
    )
    metric = right(problems)
    runs = replay(model, problems.tokens, _gone(found.neurons, names, means), metric, batch_size=batch_size)
    scores: dict[str, list[Tensor]] = {"knocked out": [], "random": []}
    for done, i in enumerate(chosen, 1):
        mixed = torch.randperm(len(found.neurons), generator=generator)
        drawn = mixed[matches[i][mixed].int().argsort(stable=True)][: int(matches[i].sum())]
        scores["knocked out"].append(runs.score(_gone(found.neurons[matches[i]], names, means), metric))
        scores["random"].append(runs.score(_gone(found.neurons[drawn], names, means), metric))
        if progress is not None:
            progress(done, len(chosen))
    listed = [(found.rules[i].kind, found.rules[i].name, int(matches[i].sum())) for i in chosen]
    inside = torch.stack([found.rules[i].prompts for i in chosen])
    return KnockOuts(listed, inside, {name: torch.stack(x) for name, x in scores.items()}, runs.score([], metric))


def _gone(neurons: Int[Tensor, "k 2"], names: dict[int, str], means: dict[str, Tensor]) -> FwdHooks:
    """Hooks that write their means to these neurons."""
    hooks: FwdHooks = []
    for layer, name in names.items():
        units = neurons[neurons[:, 0] == layer, 1]
        if len(units):
            hooks += Ablate(None, means[name][units.to(means[name].device)]).at(name, pos=-1, unit=units.tolist())
    return hooks
