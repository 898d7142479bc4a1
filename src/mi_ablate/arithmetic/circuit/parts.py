"""The parts of a model that write to the residual stream, and pairs of runs between which their outputs are exchanged.

A component is an attention head (its z, which W_O takes to the stream), a block's whole attention output, or its MLP
output. One run is the base, the *corrupted* one; what is written into it are the outputs of the *clean* run of the
same pair, or other vectors in their place. Biases cancel in the differences between two runs.

Names: "L13H4", "attention 13", "MLP 14". The layer and the head are taken apart once, here, and every weight and hook
point is looked up through them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.effects import clean_logits
from mi_ablate.interventions import Ablate
from mi_ablate.metrics import PositionMetric, logit_gain
from mi_ablate.model import collect, last_residual, sites
from mi_ablate.replay import Replay, from_layer, replay

KINDS = {"heads": "head", "attention": "attention", "mlps": "MLP"}
_SITES = {"head": "attn.hook_z", "attention": "hook_attn_out", "MLP": "hook_mlp_out"}
_ORDER = {"head": 0, "attention": 0, "MLP": 1}
_WRITES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "attn.hook_z")
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True)
class Component:
    """A head, an attention output or an MLP output of one layer."""

    layer: int
    kind: str
    """"head", "attention" or "MLP"."""
    head: int | None = None

    @property
    def site(self) -> str:
        """The hook point of its output."""
        return f"blocks.{self.layer}.{_SITES[self.kind]}"

    @property
    def name(self) -> str:
        """What it is called: "L13H4", "attention 13", "MLP 14"."""
        return f"L{self.layer}H{self.head}" if self.kind == "head" else f"{self.kind} {self.layer}"

    def before(self, other: "Component", parallel: bool) -> bool:
        """Whether its output can reach the other's input; blocks in parallel feed both parts with one stream."""
        if self.layer != other.layer or parallel:
            return self.layer < other.layer
        return _ORDER[self.kind] < _ORDER[other.kind]

    def __repr__(self) -> str:
        return self.name


What = str | Component | Sequence[str | Component]


def components_of(model: HookedModel, what: What) -> tuple[Component, ...]:
    """Return the components that are meant, each once.

    Args:
        model: the model.
        what: "heads", "mlps" or "attention" for all of a kind; names ("L13H4", "MLP 14", "attention 3"); hook points
            ("blocks.14.hook_mlp_out", "blocks.13.attn.hook_z" for all of its heads); or a list of these.

    Raises:
        KeyError: a kind, name or hook point that the model does not have. IndexError: a layer or head out of range.

    """
    asked = [what] if isinstance(what, (str, Component)) else list(what)
    if not asked:
        raise ValueError(
            "No component was asked for: 'heads', 'mlps', 'attention', or names such as 'L13H4', 'MLP 14'."
        )
    found = [c for one in asked for c in ([one] if isinstance(one, Component) else _named(model, one))]
    cfg: Any = model.cfg
    for c in found:
        if not 0 <= c.layer < cfg.n_layers or not 0 <= (c.head or 0) < cfg.n_heads:
            raise IndexError(f"{c.name} is out of range: the model has {cfg.n_layers} layers of {cfg.n_heads} heads.")
        sites(model, c.site)
    return tuple(dict.fromkeys(found))


def _named(model: HookedModel, name: str) -> list[Component]:
    cfg: Any = model.cfg
    for kind, site in _SITES.items():
        match = re.fullmatch(rf"blocks\.(\d+)\.{re.escape(site)}", name)
        if match:
            layer = int(match[1])
            return (
                [Component(layer, kind, h) for h in range(cfg.n_heads)] if kind == "head" else [Component(layer, kind)]
            )
    if name in KINDS:
        if name == "mlps" and getattr(cfg, "attn_only", False):
            raise KeyError(
                "The model has no MLPs: it is of attention alone. Its components are 'heads' and 'attention'."
            )
        heads = range(cfg.n_heads) if name == "heads" else [None]
        return [Component(layer, KINDS[name], h) for layer in range(cfg.n_layers) for h in heads]
    match = re.fullmatch(r"L(\d+)H(\d+)", name)
    if match:
        return [Component(int(match[1]), "head", int(match[2]))]
    match = re.fullmatch(r"(MLP|attention) (\d+)", name)
    if match:
        return [Component(int(match[2]), match[1])]
    raise KeyError(
        f"{name!r} is no component. There are 'heads', 'mlps' and 'attention', names such as 'L13H4', 'MLP 14' and "
        "'attention 3', and hook points such as 'blocks.14.hook_mlp_out'."
    )


@dataclass(frozen=True, eq=False)
class PairRuns:
    """Pairs of runs, ready for many patches of one set of components at one position."""

    model: Any
    components: tuple[Component, ...]
    pos: int
    clean: Mapping[str, Float[Tensor, "n *d"]]
    """Outputs of the clean run by hook point; `hook_z` has a head axis."""
    corrupted: Mapping[str, Float[Tensor, "n *d"]]
    tokens: Int[Tensor, "n p"]
    """Of the corrupted prompts."""
    metric: PositionMetric
    runs: Replay
    reference: list[Tensor] | None
    base: Float[Tensor, " n"]
    """The metric of the corrupted run."""
    gap: Float[Tensor, " n"]
    """How much more the metric is on the clean run."""
    options: dict[str, Any]
    held: dict[int, Replay] = field(default_factory=dict)

    def hooks(
        self, chosen: Sequence[Component], written: Mapping[str, Tensor] | None = None, order: Tensor | None = None
    ) -> FwdHooks:
        """Return the patch of several components at once, one hook a hook point; ``order`` takes other pairs' rows."""
        source, by_site, edits = self.clean if written is None else written, dict[str, list[Any]](), []
        for c in chosen:
            by_site.setdefault(c.site, []).append(c.head)
        for site, heads in by_site.items():
            to = source[site] if order is None else source[site][order]
            some = None if heads[0] is None else heads
            edits += Ablate(None, to if some is None else to[:, some]).at(site, pos=self.pos, head=some)
        return edits

    def effect(self, hooks: FwdHooks) -> Float[Tensor, " n"]:
        """Return how much the metric of each pair moves, everything downstream recomputed."""
        return self.runs.score(hooks, self.metric, self.reference) - self.base

    def alone(self, component: Component, **which: Any) -> Float[Tensor, " n"]:
        """Return the total effect of one component; the layers below it do not run where the model allows it."""
        layer, way = component.layer, self.runs
        if way.kind == "whole":
            if layer not in self.held:
                self.held.clear()
                self.held[layer] = from_layer(self.model, self.tokens, layer, self.metric, **self.options) or way
            way = self.held[layer]
        return way.score(self.hooks([component], **which), self.metric, self.reference) - self.base

    def change(self, component: Component, written: Mapping[str, Tensor] | None = None) -> Float[Tensor, "n d_model"]:
        """Return what the patch adds to the residual stream, in float32 or better."""
        source = self.clean if written is None else written
        base = wide(self.corrupted[component.site])
        x = wide(source[component.site]).to(base.device) - base
        return x if component.head is None else head_writes(self.model, component, x[:, component.head])


def head_writes(model: Any, component: Component, z: Float[Tensor, "*n d_head"]) -> Float[Tensor, "*n d_model"]:
    """Return what a head adds to the residual stream for an output z, without the bias that all heads share."""
    return z @ wide(model.blocks[component.layer].attn.W_O.detach()[component.head]).to(z)


def pair_runs(
    model: HookedModel,
    pairs: Any,
    what: What,
    *,
    metric: PositionMetric | None = None,
    pos: int = -1,
    batch_size: int | None = None,
) -> PairRuns:
    """Return the runs of pairs with the outputs of these components kept.

    Raises:
        ValueError: pairs of different lengths, a metric that is not read at the last position.

    """
    clean, corrupted = pairs.clean.tokens, pairs.corrupted.tokens
    if clean.shape != corrupted.shape:
        raise ValueError(f"Clean prompts {list(clean.shape)} and corrupted ones {list(corrupted.shape)} are not pairs.")
    metric = metric or logit_gain(pairs.clean.answers)
    length = clean.shape[1]
    if not isinstance(metric, PositionMetric) or metric.pos not in (-1, length - 1):
        raise ValueError(
            f"Effects of components are measured at the last position, and {metric!r} is not read there: give "
            "logit_gain(answers), logit_diff(right, wrong) or another one of mi.metrics with pos=-1."
        )
    if not -length <= pos < length:
        raise IndexError(f"pos={pos} is out of range: the prompts have {length} tokens.")
    pos = pos if pos < 0 else pos - length
    components, options = components_of(model, what), {"batch_size": batch_size}
    names = list(dict.fromkeys(c.site for c in components))
    theirs, own = (collect(model, tokens, names, pos=pos, batch_size=batch_size) for tokens in (clean, corrupted))
    edits = Ablate(None).at(*dict.fromkeys([*names, last_residual(model)]), pos=pos)
    runs = replay(model, corrupted, edits, metric, batch_size=batch_size)
    reference = clean_logits(runs, metric)
    base = runs.score([], metric, reference)
    gap = _clean_score(model, clean, metric, reference, batch_size) - base
    return PairRuns(model, components, pos, theirs, own, corrupted, metric, runs, reference, base, gap, options)


def check_writes(model: HookedModel, pairs: Any, pos: int, heads: bool) -> None:
    """Refuse a model whose components' outputs are not what reaches the residual stream, on the first two pairs."""
    there = [x for x in _WRITES if not (x == "hook_mlp_out" and getattr(model.cfg, "attn_only", False))]
    names = [f"blocks.{i}.{part}" for i in range(model.cfg.n_layers) for part in there]
    clean, corrupted = (collect(model, x.tokens[:2], names, pos=pos) for x in (pairs.clean, pairs.corrupted))
    for i in range(model.cfg.n_layers):
        at = {part: f"blocks.{i}.{part}" for part in there}
        moved = {part: wide(clean[name]) - wide(corrupted[name]) for part, name in at.items()}
        size = wide(clean[at["hook_resid_post"]]).abs().max()
        allowed = size * _TOLERANCE.get(clean[at["hook_resid_post"]].dtype, 3e-2)
        missing = moved["hook_resid_post"] - moved["hook_resid_pre"] - moved["hook_attn_out"]
        if (missing - moved.get("hook_mlp_out", 0)).abs().max() > allowed:
            raise ValueError(
                f"In block {i} the residual stream does not grow by hook_attn_out and hook_mlp_out alone (a scaled write, or a "
                "norm after it), so direct effects are not defined by them. joint_effect and smallest_sets work."
            )
        if heads:
            z = moved["attn.hook_z"]
            summed = sum(head_writes(model, Component(i, "head", h), z[:, h]) for h in range(z.shape[1]))
            if (moved["hook_attn_out"] - summed).abs().max() > allowed:
                raise ValueError(
                    f"In block {i} the attention output is not the sum of z W_O over its heads (a norm lies between, as in "
                    "Gemma 2), so a head has no direct effect of its own. Ask for 'attention' and 'mlps'."
                )


def _clean_score(
    model: HookedModel, tokens: Tensor, metric: PositionMetric, reference: list[Tensor] | None, batch_size: int | None
) -> Float[Tensor, " n"]:
    """The metric of the clean prompts, compared with the corrupted run where it compares."""
    before = None if reference is None else torch.cat(reference)
    found, runs = [], replay(model, tokens, [], metric, batch_size=batch_size)
    for rows, logits in runs.logits([]):
        found.append(metric(logits, None if before is None else before[rows.to(before.device)], rows))
    return torch.cat(found).detach().to("cpu", torch.float64)


def wide(x: Tensor) -> Tensor:
    """Return half precision as float32, other tensors as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
