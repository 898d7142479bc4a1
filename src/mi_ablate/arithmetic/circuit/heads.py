"""Which heads bring the operands, which ones bring the answer out: Kantamneni and Tegmark's head categories.

Helices are fitted to each head's z at the last token, and written in the place of the clean z (arXiv 2502.00873, section
5.2 and appendix D.1; means over the pairs, each factor at most 1, none cut below 0, as in their code):

    c_{a,b} = (1 - DE/TE) TE[helix(a,b)] / TE[helix(a,b,a+b)]
    c_{a+b} =      DE/TE  TE[helix(a+b)] / TE[helix(a,b,a+b)]

A head's label is the larger one; the m heads of least confidence are "mixed", and those whose patch moves nothing at all are
"idle". m is chosen by a test on all heads together: "a,b" heads write helix(a,b), and its direct effect is taken out of the
last residual stream; "a+b" heads stay at the corrupted run's output, and only the direct effect of their helix(a+b) is put in
there; mixed heads write helix(a,b,a+b). The share of the effect of all clean outputs is measured for every m, and the
smallest m that reaches `share` of it is taken.

A check of its own: a,b heads attend to the operands' tokens, a+b heads to the last one.

When it misleads. The ratios divide by total effects: of a head with next to none they are noise, so give heads with an effect.
Helices are fitted with a basis of many columns, which any smooth function of a and b fits well; the same test with free
periods or another basis is `component_effects(written=...)`. TE and DE are of one norm, named in the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_ablate._shares import check_gap
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.circuit.components import ComponentEffects, component_effects
from mi_ablate.arithmetic.circuit.outputs import output_fits, outputs_of
from mi_ablate.arithmetic.circuit.parts import Component, PairRuns, What, components_of, pair_runs
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.representation.helices import PERIODS
from mi_ablate.arithmetic.representation.last_token import BASES
from mi_ablate.interventions import Add
from mi_ablate.metrics import PositionMetric
from mi_ablate.model import last_residual, split, stream

OPERANDS, ANSWER, MIXED, IDLE = "a,b", "a+b", "mixed", "idle"
_NOTHING = 1e-6
"""Of the difference between the runs: a patch that moves less on every pair moves nothing."""
LABELS = (OPERANDS, ANSWER, MIXED, IDLE)


@dataclass(frozen=True, eq=False, repr=False)
class HeadRoles:
    """The label of each head, most confident first, and everything that it rests on."""

    heads: tuple[Component, ...]
    labels: tuple[str, ...]
    """"a,b", "a+b", "mixed" or "idle"."""
    confidence: Float[Tensor, "c 2"]
    """c_{a,b} and c_{a+b}."""
    total: Float[Tensor, "c n"]
    direct: Float[Tensor, "c n"]
    helices: dict[str, Float[Tensor, "c n"]]
    """Total effects of the fits, by basis: "a,b", "answer", "a,b,answer"."""
    mixed: int
    shares: Float[Tensor, " m"]
    """Of the effect of all heads' clean outputs, for m = 0, 1, ... mixed heads."""
    attention: dict[str, Float[Tensor, " c"]]
    """Mean attention of the last token to the tokens of "a", "b" and to itself ("last")."""
    norm: str

    def of(self, label: str) -> tuple[Component, ...]:
        """Return the heads of one label."""
        if label not in LABELS:
            raise KeyError(f"The labels are 'a,b', 'a+b', 'mixed' and 'idle', not {label!r}.")
        return tuple(c for c, of in zip(self.heads, self.labels) if of == label)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a head: label, confidences, mean effects, attention."""
        rows = []
        for i, head in enumerate(self.heads):
            row: dict[str, Any] = {"head": head.name, "label": self.labels[i]}
            row |= {"c a,b": float(self.confidence[i, 0]), "c a+b": float(self.confidence[i, 1])}
            row |= {"total": float(self.total[i].mean()), "direct": float(self.direct[i].mean())}
            row |= {f"helix({basis})": float(x[i].mean()) for basis, x in self.helices.items()}
            rows.append(row | {f"attention {name}": float(x[i]) for name, x in self.attention.items()})
        return rows

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.of(label))} {label}" for label in LABELS)
        return f"HeadRoles({len(self.heads)} heads: {counts}; share {float(self.shares[self.mixed]):.2f} of the effect)"


def head_roles(
    model: HookedModel,
    problems: Problems,
    pairs: Pairs,
    heads: What | None = None,
    *,
    count: int = 20,
    periods: Sequence[int | float] = PERIODS,
    mixed: int | None = None,
    share: int | float = 0.75,
    norm: str = "live",
    metric: PositionMetric | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HeadRoles:
    """Return the category of each head.

    Args:
        model: the model.
        problems: prompts that the helices are fitted on, best others than those of the pairs.
        pairs: clean and corrupted problems that differ in both operands.
        heads: which; by default the ``count`` heads of the largest total effects.
        count: how many.
        periods: of the helices.
        mixed: how many heads are called mixed; None: the smallest number that reaches ``share``, or else the best one.
        share: of the effect of the heads' clean outputs that the labelled heads must keep.
        norm: of direct effects, "live" or "frozen".
        metric: read at the last position; by default the gain of the clean answer's logit.
        batch_size: rows a pass.
        progress: called with (passes done, passes in all).

    Raises:
        ValueError: no heads, more mixed heads than heads, a share that is none, heads that together do nothing.
        KeyError: problems without the operands a and b.

    """
    options: dict[str, Any] = {"metric": metric, "batch_size": batch_size}
    given = {**options, "norm": norm, "draws": 0}
    tell = Steps(progress)
    chosen = _largest(model, pairs, count, tell, given) if heads is None else components_of(model, heads)
    tell.total = tell.done + (1 + len(BASES)) * len(chosen)
    _check(chosen, mixed, share)
    fits = output_fits(model, problems, chosen, BASES, periods, batch_size=batch_size)
    runs = pair_runs(model, pairs, chosen, **options)
    written = {basis: outputs_of(fits[basis], pairs.clean.inputs, basis, periods, runs.clean) for basis in BASES}
    true = component_effects(model, pairs, chosen, progress=tell.part(), **given)
    helices = {
        basis: component_effects(model, pairs, chosen, written=x, progress=tell.part(), **given).total
        for basis, x in written.items()
    }
    found = confidences(true, helices)
    order = torch.where(active(true), found.amax(1), -torch.inf).argsort(descending=True, stable=True)
    ranked, found = tuple(chosen[i] for i in order.tolist()), found[order]
    names = [IDLE if not on else OPERANDS if c[0] >= c[1] else ANSWER for on, c in zip(active(true)[order], found)]
    shares = _shares_of(runs, ranked, names, written)
    m = _enough(shares, share) if mixed is None else mixed
    looks = attention_to(model, problems, ranked, batch_size)
    effects = true.total[order], true.direct[order], {basis: x[order] for basis, x in helices.items()}
    return HeadRoles(ranked, _labels(names, m), found, *effects, m, shares, looks, norm)


def _largest(
    model: HookedModel, pairs: Pairs, count: int, tell: "Steps", given: dict[str, Any]
) -> tuple[Component, ...]:
    """The heads of the largest total effects."""
    if count < 1:
        raise ValueError(f"count={count}: one head or more.")
    heads = components_of(model, "heads")
    tell.total = len(heads) + (1 + len(BASES)) * min(count, len(heads))
    return component_effects(model, pairs, heads, progress=tell.part(), **given).ranked()[:count]


def _check(heads: Sequence[Component], mixed: int | None, share: int | float) -> None:
    other = [c.name for c in heads if c.kind != "head"]
    if other:
        raise ValueError(f"head_roles is about heads, and {', '.join(other[:3])} are none; mlp_roles is about MLPs.")
    if mixed is not None and not 0 <= mixed <= len(heads):
        raise ValueError(f"mixed={mixed}: from 0 to the {len(heads)} heads.")
    if not share > 0:
        raise ValueError(f"share={share} of the effect of the heads' clean outputs lies above 0.")


def confidences(true: ComponentEffects, helices: dict[str, Float[Tensor, "c n"]]) -> Float[Tensor, "c 2"]:
    """Return c_{a,b} and c_{a+b} of each head; 0 where its patch moves nothing."""
    total, direct = true.total.mean(1), true.direct.mean(1)
    means = {basis: x.mean(1) for basis, x in helices.items()}
    operands = _factor(total - direct, total) * _factor(means["a,b"], means["a,b,answer"])
    answer = _factor(direct, total) * _factor(means["answer"], means["a,b,answer"])
    return torch.where(active(true)[:, None], torch.stack([operands, answer], dim=1), 0.0)


def active(found: ComponentEffects) -> Bool[Tensor, " c"]:
    """Return which components' patches move anything, beyond rounding: ratios to the others' total effects are noise."""
    return found.total.abs().amax(1) > _NOTHING * found.gap.abs().max()


def attention_to(
    model: HookedModel, problems: Problems, heads: Sequence[Component], batch_size: int | None = None
) -> dict[str, Float[Tensor, " c"]]:
    """Return each head's mean attention from the last token to the operands' tokens and to itself."""
    sites = {c: f"blocks.{c.layer}.attn.hook_pattern" for c in heads}
    where = {name: problems.positions[name] for name in ("a", "b") if name in problems.positions} | {"last": -1}
    sums = torch.zeros(len(heads), len(where), dtype=torch.float64)
    names = list(dict.fromkeys(sites.values()))
    for _, acts in stream(model, split(model, problems.tokens, None, batch_size), names, pos=-1):
        for i, c in enumerate(heads):
            sums[i] += acts[sites[c]][:, c.head, list(where.values())].double().sum(0).cpu()
    return dict(zip(where, (sums / len(problems.tokens)).T))


@dataclass
class Steps:
    """One progress bar over calls that count by themselves."""

    progress: Callable[[int, int], None] | None
    total: int = 0
    done: int = 0

    def part(self) -> Callable[[int, int], None]:
        """Return what the next call may be given; its steps follow those of the calls before."""
        start = self.done

        def tell(done: int, _: int) -> None:
            self.done = start + done
            if self.progress is not None:
                self.progress(min(self.done, self.total), self.total)

        return tell


def _factor(part: Float[Tensor, " c"], whole: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    return (part / whole).clamp(max=1.0)


def _shares_of(
    runs: PairRuns,
    ranked: Sequence[Component],
    names: list[str],
    written: dict[str, dict[str, Tensor]],
) -> Float[Tensor, " m"]:
    """The share of all heads' effect that is left for every number of mixed heads."""
    whole = float(runs.effect(runs.hooks(ranked)).mean())
    check_gap(whole, 0.0, f"The effect of these {len(ranked)} heads together")
    found = []
    for m in range(len(ranked) - names.count(IDLE) + 1):
        vectors = {site: x.clone() for site, x in written["a,b,answer"].items()}
        last = torch.zeros_like(runs.change(ranked[0]))
        for c, name in zip(ranked, _labels(names, m)):
            if name == OPERANDS:
                vectors[c.site][:, c.head] = written["a,b"][c.site][:, c.head]
                last -= runs.change(c, written["a,b"])
            elif name in (ANSWER, IDLE):
                vectors[c.site][:, c.head] = runs.corrupted[c.site][:, c.head]
                last += runs.change(c, written["answer"]) if name == ANSWER else 0
        hooks = runs.hooks(ranked, vectors)
        hooks += Add(last.to(runs.corrupted[ranked[0].site].dtype)).at(last_residual(runs.model), pos=-1)
        found.append(float(runs.effect(hooks).mean()) / whole)
    return torch.tensor(found, dtype=torch.float64)


def _labels(names: list[str], mixed: int) -> tuple[str, ...]:
    idle = names.count(IDLE)
    return (*names[: len(names) - idle - mixed], *[MIXED] * mixed, *[IDLE] * idle)


def _enough(shares: Float[Tensor, " m"], wanted: int | float) -> int:
    reached = torch.nonzero(shares >= wanted).flatten()
    return int(reached[0]) if len(reached) else int(shares.argmax())
