"""The places of a patching sweep: which positions and heads, what is written there, and the walk over them."""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mi_ablate import controls as kinds
from mi_ablate._names import layer_of
from mi_ablate._positions import plain
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.effects import Controls, draws_of
from mi_ablate.interventions import Ablate
from mi_ablate.model import check_tokens
from mi_ablate.replay import Replay, from_layer, replay
from mi_ablate.subspace import Subspace

Label = int | str | None
OWN = "own"
"""The label of a position that is given one an example."""


@dataclass(frozen=True, eq=False)
class Shuffled:
    """The control of a patch: every prompt gets the activation of another one, along one seeded cycle (none its own)."""

    name: str = "shuffled"
    random: bool = True

    def __call__(self, hooks: FwdHooks, seed: int = 0) -> FwdHooks:
        """Return the same patches with their source rows moved."""
        return [(name, hook.with_intervention(_moved(hook.intervention, seed))) for name, hook in hooks]  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return "shuffled source rows"


@dataclass(frozen=True, eq=False)
class Places:
    """A grid of sites x positions x heads, with the activations to write ``[n m *head d]`` of each site."""

    sites: tuple[str, ...]
    pos: tuple[int | Tensor | None, ...]
    heads: tuple[int | None, ...]
    source: Mapping[str, Tensor]
    base: Mapping[str, Tensor] | None
    """The activations that are overwritten, where a control needs them."""
    parts: Mapping[str, Subspace] | None
    length: int = 0
    """Of the sequences, where none is padded: the last position is then written as -1, which `replay` knows a shortcut for."""
    aligned: bool = True
    """Whether another prompt's activations belong to the same positions."""
    mask: Tensor | None = None
    """The real tokens ``[n p]``, where some are padding."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The positions as they are shown."""
        return tuple(OWN if isinstance(p, Tensor) else p for p in self.pos)

    @property
    def what(self) -> str:
        """What is patched where it is not the whole vector."""
        if self.parts is None:
            return ""
        part = max(self.parts.values(), key=lambda p: p.rank)
        return f"rank {part.rank} of {part.d}" + (f" ({part.name[:32]})" if part.name else "")

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        shape = (len(self.sites), len(self.pos), len(self.heads))
        return (tuple(index) for index in torch.cartesian_prod(*(torch.arange(s) for s in shape)).tolist())

    def vectors(self, acts: Mapping[str, Tensor], i: int, j: int, h: int) -> Tensor:
        """Return the activations of one place, ``[n d]``, ``[n head d]``, or with a position axis where all are meant."""
        x, head = acts[self.sites[i]], self.heads[h]
        x = x if self.pos[0] is None else x[:, j]
        return x if head is None else x[..., head, :]

    def hooks(self, i: int, j: int, h: int) -> FwdHooks:
        """Return the patch of one place."""
        part = None if self.parts is None else self.parts[self.sites[i]]
        pos = self.pos[j]
        pos = -1 if isinstance(pos, int) and pos == self.length - 1 else pos
        return Ablate(part, self.vectors(self.source, i, j, h)).at(self.sites[i], pos=pos, head=self.heads[h])

    def controls(self, given: Controls | None, i: int, j: int, h: int) -> Controls:
        """Return the controls of one place: those given, or shuffled rows and covariance-drawn subspaces."""
        if given is not None:
            return given
        found: dict[str, Callable[[FwdHooks, int], FwdHooks]] = {}
        if self.aligned and len(self.source[self.sites[0]]) > 1:
            found["shuffled"] = Shuffled()
        if self.base is not None:
            both = [self.vectors(acts, i, j, h) for acts in (self.source, self.base)]
            if self.pos[0] is None and self.mask is not None:
                both = [x[self.mask.bool().to(x.device)] for x in both]
            found["covariance"] = kinds.covariance(torch.cat(both))
        return found


@dataclass(frozen=True, eq=False)
class Sweep:
    """Measures a metric under the patch of one place after another."""

    places: Places
    metric: Callable[..., Tensor]
    reference: list[Tensor] | None
    controls: Controls | None
    draws: int
    progress: Callable[[int, int], None] | None

    def run(self, runs: Callable[[int, int], Replay]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the metric of every example ``[sites positions heads n]`` and control means ``[draws sites ...]``.

        ``runs`` gives the way to run the model for the numbers of a site and a position.
        """
        places = self.places
        sample = places.controls(self.controls, 0, 0, 0)
        many = {name: draws_of(control, self.draws) for name, control in sample.items()}
        shape = (len(places.sites), len(places.pos), len(places.heads))
        drawn = {name: torch.empty(d, *shape, dtype=torch.float64) for name, d in many.items()}
        total, done, values = shape[0] * shape[1] * shape[2] * (1 + sum(many.values())), 0, []
        for i, j, h in places:
            hooks, replayed = places.hooks(i, j, h), runs(i, j)
            values.append(replayed.score(hooks, self.metric, self.reference))
            done = self._tell(done, total)
            for name, control in places.controls(self.controls, i, j, h).items():
                for seed in range(many[name]):
                    score = replayed.score(control(hooks, seed), self.metric, self.reference)
                    drawn[name][seed, i, j, h] = score.mean()
                    done = self._tell(done, total)
        return torch.stack(values).reshape(*shape, -1), drawn

    def _tell(self, done: int, total: int) -> int:
        if self.progress is not None:
            self.progress(done + 1, total)
        return done + 1


def ways(
    model: HookedModel,
    base: Tensor,
    metric: Callable[..., Tensor],
    places: Places,
    reference: list[Tensor] | None,
    given: dict[str, Any],
) -> Callable[[int, int], Replay]:
    """Return how the model runs for each site and position.

    Patches at the last position alone may take a shortcut of `replay`; the others start at the layer of their site where
    the model can, with the stream below it kept for one layer at a time.
    """
    whole = replay(model, base, [], metric, **given)
    last = {j for j, p in enumerate(places.pos) if isinstance(p, int) and p in (-1, places.length - 1)}
    short = None
    if last and reference is None and given["attention_mask"] is None:
        short = replay(model, base, Ablate(None).at(*places.sites, pos=-1), metric, **given)
    held: dict[int, Replay] = {}

    def way(i: int, j: int) -> Replay:
        if short is not None and j in last and short.kind != "whole":
            return short
        layer = layer_of(places.sites[i])
        if layer is None:
            return whole
        if layer not in held:
            held.clear()
            held[layer] = from_layer(model, base, layer, metric, **given) or whole
        return held[layer]

    return way


def check_pairs(clean: Int[Tensor, "n p"], corrupted: Int[Tensor, "m q"]) -> None:
    """Refuse prompts that are not pairs row by row."""
    for tokens in (clean, corrupted):
        check_tokens(tokens)
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean {list(clean.shape)} and corrupted {list(corrupted.shape)} are not pairs: patching writes position by "
            "position, so give one corrupted prompt for each clean one, of the same length."
        )


def positions_of(
    pos: str | int | Sequence[int] | Tensor | None, tokens: Int[Tensor, "n p"], mask: Tensor | None
) -> tuple[int | Tensor | None, ...]:
    """Return the positions that are patched one by one; ``(None,)`` means all at once."""
    if pos is None or isinstance(pos, Tensor):
        return (pos,)
    if isinstance(pos, str):
        if pos != "each":
            raise ValueError(
                f"pos={pos!r}: 'each' for one position after another, an int, a list of ints, Int[n], or None."
            )
        shortest, longest = lengths_of(tokens, mask)
        if shortest == 0:
            raise ValueError("A row of attention_mask has no real token, so there is no position to patch.")
        return tuple(range(longest)) if shortest == longest else tuple(range(-shortest, 0))
    where = plain(pos)
    if isinstance(where, int):
        return (where,)
    if not isinstance(where, list):
        raise ValueError(
            f"pos={pos!r}: 'each' for one position after another, an int, a list of ints, Int[n], or None."
        )
    return tuple(where)


def lengths_of(tokens: Int[Tensor, "n p"], mask: Tensor | None) -> tuple[int, int]:
    """Return the lengths of the shortest and the longest row, in real tokens."""
    if mask is None:
        return tokens.shape[1], tokens.shape[1]
    lengths = mask.bool().sum(1)
    return int(lengths.min()), int(lengths.max())


def heads_of(head: str | int | Sequence[int] | None, acts: Mapping[str, Tensor]) -> tuple[int | None, ...]:
    """Return the heads that are patched one by one; ``(None,)`` means the whole site. ``acts`` are ``[n m *head d]``."""
    if head is None:
        return (None,)
    bare = [name for name, x in acts.items() if x.ndim != 4]
    if bare:
        raise ValueError(
            f"head={head!r} at {bare[0]}: it has no heads. Sites that have: 'z', 'q', 'k', 'v', 'pattern'."
        )
    counts = {name: x.shape[2] for name, x in acts.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"The sites have different numbers of heads ({counts}): patch them in calls of their own.")
    n = next(iter(counts.values()))
    return tuple(range(n)) if isinstance(head, str) and head == "each" else head_numbers(head, n)


def head_numbers(head: int | Sequence[int] | str, n: int) -> tuple[int, ...]:
    """Return the numbers of chosen heads of n, counted from 0; numpy's and torch's whole numbers are numbers too."""
    many = head if isinstance(head, Iterable) and getattr(head, "ndim", 1) == 1 else [head]
    try:
        bare = any(isinstance(h, bool) or getattr(h, "dtype", None) == torch.bool for h in many)
        chosen = [] if bare else [operator.index(h) for h in many]  # type: ignore[arg-type]
    except TypeError:
        bare, chosen = True, []
    if bare:
        raise ValueError(f"head={head!r}: 'each' for one head after another, an int, a list of ints, or None.")
    if not chosen or min(chosen) < -n or max(chosen) >= n:
        raise IndexError(f"head={head} is out of range: each site has {n} heads, so 0 to {n - 1}.")
    return tuple(h % n for h in chosen)


def check_metric(metric: Any) -> None:
    """Refuse what is no metric, such as the name of one."""
    if not callable(metric):
        raise ValueError(
            f"metric={metric!r} is a {type(metric).__name__}: make one with its answers, such as logit_diff(right, wrong) or "
            "accuracy(answers)."
        )


def parts_of(
    subspace: Subspace | Mapping[str, Subspace] | None, sites: Sequence[str], acts: Mapping[str, Tensor]
) -> dict[str, Subspace] | None:
    """Return the subspace of each site, of the width that the site has."""
    if subspace is None:
        return None
    if isinstance(subspace, Mapping) and set(subspace) != set(sites):
        wrong = sorted(set(subspace) ^ set(sites))
        raise ValueError(
            f"The subspaces and the sites do not match at {wrong[:3]}: give one for each of {list(sites)[:3]}."
        )
    parts = dict(subspace) if isinstance(subspace, Mapping) else dict.fromkeys(sites, subspace)
    for name, part in parts.items():
        if part.d != acts[name].shape[-1]:
            raise ValueError(
                f"{part!r} cannot be patched at {name}, whose vectors have width {acts[name].shape[-1]}: fit it there."
            )
    return parts


def short_names(sites: Sequence[str]) -> tuple[list[str], str]:
    """Return what the sites are called on an axis, and the axis's title: layers alone where the rest is the same."""
    rest = {name.split(".", 2)[2] if name.startswith("blocks.") else "" for name in sites}
    if len(rest) == 1 and rest != {""}:
        return [name.split(".")[1] for name in sites], f"layer, {rest.pop()}"
    return list(sites), "site"


def _moved(edit: Any, seed: int) -> Ablate:
    if not isinstance(edit, Ablate) or edit.to is None:
        raise ValueError(f"{edit!r} writes no other run's activations: the shuffled control is one of patches.")
    order = torch.randperm(len(edit.to), generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return replace(edit, to=edit.to[partner])
