"""The parts of `choose`: what it refuses, how a candidate is removed and added, its row of scores, and the rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mi_ablate._scores import Tally
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.find import Candidates
from mi_ablate.find.grid import Key, plain_key
from mi_ablate.interventions import Ablate, Add
from mi_ablate.model import layer_of, writers
from mi_ablate.subspace import Subspace

RULES = ("drop_last", "kl_max", "induce_min")
"""In the order in which they are dropped where nothing passes all of them."""
_SHARE = 0.1
"""Of the layers that COSMIC looks at."""


Named = Key | tuple[str, int] | tuple[str, int, int | None]


@dataclass(frozen=True)
class Rules:
    """What a candidate is scored by, and what it must pass; see `mi_ablate.choosing`."""

    by: str
    drop_last: int | float
    kl_max: int | float | None
    induce_min: int | float | None

    def __post_init__(self) -> None:
        if self.by not in ("bypass", "cosmic"):
            raise ValueError(f"by={self.by!r} is 'bypass' (a metric decides) or 'cosmic' (activations do).")
        if self.kl_max is not None and not self.kl_max > 0:
            raise ValueError(f"kl_max={self.kl_max}: a KL above 0, in nats, or None for no such rule.")
        if self.induce_min is not None and not abs(self.induce_min) < float("inf"):
            raise ValueError(
                f"induce_min={self.induce_min}: a share of the way to the positive prompts, or None for no such rule."
            )
        if not 0 <= self.drop_last < 1:
            raise ValueError(f"drop_last={self.drop_last}: a share of the layers from 0 to below 1.")

    @property
    def values(self) -> dict[str, int | float | None]:
        """The rules by name, for `Subspace.source`."""
        return {rule: getattr(self, rule) for rule in RULES}

    @property
    def needs_addition(self) -> bool:
        """Whether every candidate has to be added to be judged."""
        return self.induce_min is not None or self.by == "cosmic"

    def check_metric(self, metric: Any, n: int) -> None:
        """Refuse a metric of other prompts, a loss, and none where one decides."""
        if metric is None and self.by == "bypass":
            raise ValueError(
                "by='bypass' needs a metric that is higher where the behaviour is there; by='cosmic' needs none."
            )
        if getattr(metric, "better", "higher") == "lower":
            raise ValueError(
                f"The metric {metric!r} is a loss, lower where the model does better. Give one that is higher where the "
                "behaviour is there: refusal_score(tokens), logit_diff(behaving, otherwise), or a function of your own."
            )
        if getattr(metric, "n", None) not in (None, n):
            raise ValueError(f"The metric has answers for {metric.n} examples; there are {n} validation prompts.")

    def judge(self, rows: list[dict[str, Any]], clean: dict[str, Any], n_layers: int) -> str:
        """Fill in which rows are kept and why not; return which rules were dropped or could not be applied."""
        gap = None if clean["bypass"] is None else clean["bypass"] - clean["induce"]
        first = max(1, n_layers - int(self.drop_last * n_layers + 1e-9))
        applied = [rule for rule in RULES if self.values[rule] is not None and (rule != "induce_min" or (gap or 0) > 0)]
        notes = []
        if gap is not None and gap <= 0 and self.induce_min is not None:
            notes.append("induce_min does not apply (the clean metric is no higher on the positive prompts)")

        def fails(row: dict[str, Any], rule: str) -> bool:
            if rule == "drop_last":
                return row["layer"] is not None and row["layer"] >= first
            if rule == "induce_min":
                return (row["induce"] - clean["induce"]) / gap < self.induce_min
            return not row["kl"] <= self.kl_max

        failed = [[rule for rule in applied if fails(row, rule)] for row in rows]
        ways = (dropped for count in range(len(applied) + 1) for dropped in combinations(applied, count))
        dropped = next(way for way in ways if any(set(rules) <= set(way) for rules in failed))
        for row, rules in zip(rows, failed, strict=True):
            row["kept"], row["why"] = set(rules) <= set(dropped), rules[0] if rules else ""
        return "; ".join([*notes, *([f"{' and '.join(dropped)} dropped: nothing passed"] if dropped else [])])


@dataclass(frozen=True)
class Listed:
    """The candidates to be run, those that have no direction, the r2 of each, and how many there were."""

    subspaces: dict[Key, Subspace]
    equal: list[Key]
    """Their class means are equal, such as those of one token that all prompts begin with."""
    r2: dict[Key, float]
    n: int


def key_of(named: Named) -> Key:
    """Return a candidate's name as a key; numpy's integers become ints, which go into a file."""
    if isinstance(named, str) or len(named) not in (2, 3):
        raise ValueError(
            f"{named!r} names no candidate: (site, pos) is needed, such as ('blocks.0.hook_resid_post', -1)."
        )
    return plain_key(Key(*named))


def listed(found: Candidates | Mapping[Named, Subspace], limit: int | None) -> Listed:
    """Return the candidates as subspaces, at most ``limit`` of them."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least one candidate must be run, or None for all.")
    if not isinstance(found, Candidates):
        if not found:
            raise ValueError("There is no candidate to choose from: the mapping is empty.")
        if limit is not None:
            raise ValueError(
                "limit keeps the candidates with the highest r2, which a mapping of subspaces does not have."
            )
        named = {key_of(key): s for key, s in found.items()}
        if len(named) < len(found):
            raise ValueError(
                f"The mapping names a candidate twice, as (site, pos) and (site, pos, None): {list(found)[:4]}"
            )
        return Listed(named, [], {}, len(found))
    if len(found.labels) != 2:
        raise ValueError(f"choose takes candidates of two classes; these have {len(found.labels)}.")
    subspaces: dict[Key, Subspace] = {}
    equal: list[Key] = []
    r2: dict[Key, float] = {}
    for row in found.table()[:limit]:
        key = Key(row["site"], row["pos"], row["head"])
        r2[key] = row["r2"]
        try:
            subspaces[key] = found.subspace(*key)
        except ValueError:
            equal.append(key)
    if not subspaces:
        raise ValueError(f"The class means are equal at all {len(equal)} candidates: there is no direction to choose.")
    return Listed(subspaces, equal, r2, len(found))


def removal(model: HookedModel, key: Key, s: Subspace, edit: Callable[[Subspace], FwdHooks] | None) -> FwdHooks:
    """Return the edit that removes a candidate: at all writers where none is given."""
    if edit is not None:
        return list(edit(s))
    if key.head is not None or s.d != model.cfg.d_model:
        raise ValueError(
            f"The candidate at {key.site} has width {s.d}, and the residual stream, where it would be removed, "
            f"{model.cfg.d_model}. Leave it out, or say how to remove it, such as edit=lambda s: "
            "Ablate(s).at(s.source['site'], head=s.source['head'])."
        )
    return Ablate(s).at(*writers(model))


def addition(key: Key, s: Subspace, needed: bool) -> FwdHooks | None:
    """Return the raw direction added at its own site, at all positions; None where it has no size and none is asked for."""
    if s.rank == 1 and s.source.get("sizes") is not None:
        return Add(s.vector).at(key.site, head=key.head)
    if needed:
        raise ValueError(
            f"The candidate {s!r} at {key.site} is not one vector with a size, so it cannot be added to see what it brings "
            "about. Use by='bypass' and induce_min=None, or candidates of rank 1 with source['sizes']."
        )
    return None


def clean_scores(
    tallies: dict[tuple[str, int | None], Tally], metric: bool
) -> tuple[dict[str, Any], Int[Tensor, " few"]]:
    """Return the scores without an edit, and the layers that COSMIC looks at."""
    up, down = tallies["positive", None], tallies["negative", None]
    cosines = cosine_similarity(up.mean("acts"), down.mean("acts"), dim=-1)
    layers = cosines.argsort(stable=True)[: max(1, int(_SHARE * len(cosines)))].sort().values
    both = 2 * _cosine(up.mean("acts"), down.mean("acts"), layers)
    clean = {"bypass": up.mean("metric") if metric else None, "induce": down.mean("metric") if metric else None}
    return {**clean, "kl_floor": down.mean("floor"), "cosmic": both, "cosmic_layers": layers.tolist()}, layers


def _cosine(a: Tensor, b: Tensor, layers: Tensor) -> float:
    return float(cosine_similarity(a[layers].flatten(), b[layers].flatten(), dim=0))


def row_of(
    key: Key,
    r2: float | None,
    tallies: dict[tuple[str, int | None], Tally],
    i: int,
    clean: dict[str, Any],
    layers: Int[Tensor, " few"],
) -> dict[str, Any]:
    removed, added = tallies["bypass", i], tallies.get(("induce", i))
    row: dict[str, Any] = {**empty_row(key, r2), "kl": tallies["kl", i].mean("kl"), "why": ""}
    if clean["bypass"] is not None:
        row["bypass"] = removed.mean("metric")
        row["induce"] = None if added is None else added.mean("metric")
    if added is not None:
        towards = _cosine(removed.mean("acts"), tallies["negative", None].mean("acts"), layers)
        row["cosmic"] = towards + _cosine(added.mean("acts"), tallies["positive", None].mean("acts"), layers)
    return row


def empty_row(key: Key, r2: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"site": key.site, "layer": layer_of(key.site), "pos": key.pos, "head": key.head, "r2": r2}
    return {**row, **dict.fromkeys(("bypass", "induce", "kl", "cosmic")), "kept": False, "why": "equal means"}
