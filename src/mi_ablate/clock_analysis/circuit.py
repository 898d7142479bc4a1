"""Which layers, heads and MLPs carry the answer, and by which way: the parts of `mi_ablate.arithmetic` run together.

A head or an MLP is named where its patch by itself moves the answer's logit by more than `LEAST` of what all parts of its kind
together do, in the root mean square over the pairs; of these the first ``count`` by their mean total effect, as Kantamneni and
Tegmark rank them. The mean alone would not do: a head that brings a takes the answer to that of the clean a and the corrupted
b, which is as often further from the clean one as it is closer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate import arithmetic
from mi_ablate.arithmetic.circuit.circuits import SmallestSets, smallest_sets
from mi_ablate.arithmetic.circuit.components import ComponentEffects, component_effects
from mi_ablate.arithmetic.circuit.heads import HeadRoles, head_roles
from mi_ablate.arithmetic.circuit.mlps import MlpRoles, mlp_roles
from mi_ablate.arithmetic.circuit.parts import Component, pair_runs
from mi_ablate.arithmetic.circuit.paths import PathEffects, path_effects
from mi_ablate.clock_analysis.bench import Bench
from mi_ablate.model import collect

LEAST = 0.01
"""Of the effect of all heads (or MLPs): what moves less is not named."""
CIRCUIT = 0.95
"""The share whose smallest set of MLPs is called the circuit (11 of GPT-J's 28)."""
DRAWN = 6
"""Named heads whose attention is drawn."""
MLPS = 12
"""MLPs in the matrix of paths, at most."""
_POINTS, _DRAWS = 10, 5


@dataclass(frozen=True, eq=False, repr=False)
class Heads:
    """All heads' effects, and the named ones with their roles."""

    effects: ComponentEffects
    sets: SmallestSets
    named: tuple[Component, ...]
    """By total effect, the largest first."""
    roles: HeadRoles | None
    ks: tuple[int, ...]
    """Sizes of the random sets."""
    random: Float[Tensor, "ks draws"]
    """Shares of the effect of all heads that random sets of k heads reach."""
    patterns: Float[Tensor, "head q k"] | None
    """Attention of the first named heads on the first pair's clean problem."""
    text: list[str]
    """Of that problem's tokens."""


@dataclass(frozen=True, eq=False, repr=False)
class Mlps:
    """All MLPs' effects and roles, and the smallest sets."""

    effects: ComponentEffects
    roles: MlpRoles
    sets: SmallestSets
    named: tuple[Component, ...]

    @property
    def circuit(self) -> tuple[Component, ...]:
        """The smallest set that reaches `CIRCUIT`; the named ones where none was found."""
        return self.sets[CIRCUIT] or self.named

    def labels(self) -> dict[str, str]:
        """Return what each named MLP does with the answer's helix: "builds a+b", "reads out" or "other".

        It reads out where at least half of its total effect goes straight to the logits. It builds where less does, and a
        helix of the answer in the place of its output has at least half of its total effect.
        """
        found = {}
        for i, c in enumerate(self.roles.mlps):
            if c in self.named:
                direct, built = float(self.roles.read_out[i]), float(self.roles.built[i])
                found[c.name] = "reads out" if direct >= 0.5 else "builds a+b" if built >= 0.5 else "other"
        return found


def named(effects: ComponentEffects, whole: Float[Tensor, " n"], count: int | None = None) -> tuple[Component, ...]:
    """Return the components whose patch does something by itself (see the module), the largest mean effect first."""
    size = effects.total.square().mean(1).sqrt() / whole.double().square().mean().sqrt()
    there = {c for c, x in zip(effects.components, size.tolist()) if x > LEAST}
    return tuple(c for c in effects.ranked() if c in there)[:count]


def layers(bench: Bench, kind: str) -> ComponentEffects:
    """Return the effects of each layer's attention output, or MLP."""
    return component_effects(
        bench.model, bench.pairs, kind, norm=bench.norm, batch_size=bench.batch_size, progress=bench.tell(kind)
    )


def heads(bench: Bench, count: int) -> Heads:
    """Return all heads' effects and the roles of the ``count`` largest."""
    given: dict[str, Any] = {"batch_size": bench.batch_size}
    effects = component_effects(
        bench.model, bench.pairs, "heads", norm=bench.norm, progress=bench.tell("heads"), **given
    )
    sets = smallest_sets(bench.model, bench.pairs, "heads", search="rank", progress=bench.tell("head sets"), **given)
    chosen = named(effects, sets.whole, count)
    ks, random = _random_heads(bench, float(sets.whole.mean()))
    roles = None
    if chosen and {"a", "b"} <= set(bench.fitted.inputs):
        roles = head_roles(
            bench.model, bench.fitted, bench.pairs, chosen, periods=bench.periods, norm=bench.norm,
            progress=bench.tell("head roles"), **given,
        )  # fmt: skip
    patterns, text = _patterns(bench, chosen[:DRAWN]) if chosen else (None, [])
    return Heads(effects, sets, chosen, roles, ks, random, patterns, text)


def mlps(bench: Bench, effects: ComponentEffects) -> Mlps:
    """Return the roles of the MLPs, and the smallest sets."""
    roles = mlp_roles(
        bench.model, bench.fitted, bench.pairs, periods=bench.periods, norm=bench.norm, seed=bench.seed,
        batch_size=bench.batch_size, progress=bench.tell("MLP roles"),
    )  # fmt: skip
    sets = smallest_sets(bench.model, bench.pairs, "mlps", batch_size=bench.batch_size, progress=bench.tell("MLP sets"))
    return Mlps(effects, roles, sets, named(effects, sets.whole))


def paths(bench: Bench, parts: Sequence[Component]) -> PathEffects:
    """Return what each part does through each other, in the model's order."""
    ordered = sorted(parts, key=lambda c: (c.layer, c.kind != "head", c.head or 0))
    return path_effects(
        bench.model, bench.pairs, ordered, ordered, batch_size=bench.batch_size, progress=bench.tell("paths")
    )


def on_paths(heads: Heads | None, mlps: Mlps | None) -> list[Component]:
    """Return the named heads, and the named MLPs of the largest total effects."""
    some = [] if heads is None else list(heads.named)
    return some + ([] if mlps is None else list(mlps.named[:MLPS]))


def numbered(head: Component) -> str:
    """Return a head as "layer.head"."""
    return f"{head.layer}.{head.head}"


def _random_heads(bench: Bench, whole: float) -> tuple[tuple[int, ...], Float[Tensor, "ks draws"]]:
    """Shares of random sets of heads, of sizes from 1 to all."""
    runs = pair_runs(bench.model, bench.pairs, "heads", batch_size=bench.batch_size)
    n, tell = len(runs.components), bench.tell("random heads")
    ks = tuple(sorted({round(n ** (i / (_POINTS - 1))) for i in range(_POINTS)}))
    shares = torch.empty(len(ks), _DRAWS, dtype=torch.float64)
    for seed in range(_DRAWS):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
        for i, k in enumerate(ks):
            shares[i, seed] = runs.effect(runs.hooks([runs.components[j] for j in sorted(order[:k])])).mean() / whole
            tell(seed * len(ks) + i + 1, len(ks) * _DRAWS)
    return ks, shares


def _patterns(bench: Bench, chosen: Sequence[Component]) -> tuple[Float[Tensor, "head q k"], list[str]]:
    sites = {c: f"blocks.{c.layer}.attn.hook_pattern" for c in chosen}
    one = bench.pairs.clean[0]
    acts = collect(bench.model, one.tokens, list(dict.fromkeys(sites.values())), pos=None)
    drawn = torch.stack([acts[sites[c]][0, :, c.head] for c in chosen]).double().cpu()
    return drawn, tokens_of(bench.model, one)


def tokens_of(model: object, problems: arithmetic.Problems) -> list[str]:
    """Return the text of the first problem's tokens; of a toy the numbers and signs."""
    ids = problems.tokens[0].tolist()
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        return [tokenizer.decode([i]) for i in ids]
    there = {pos + len(ids): name for name, pos in problems.positions.items() if name != "answer"}
    return [str(int(problems.inputs[there[i]][0])) if i in there else f"({token})" for i, token in enumerate(ids)]
