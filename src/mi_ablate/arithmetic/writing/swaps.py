"""Causal tests of a number's representation: write what a method makes of another number, and see whether the model follows.

The corrupted prompt of a pair is run; at one token and site, values of the clean prompt are written into it. Five manners,
which the literature does not always tell apart (y is what the method writes for the clean prompt, Q its subspace, μ the mean):

    whole       x' = y                             everything else that the vector held is lost (Kantamneni & Tegmark 2025)
    subspace    x' = x + Q Qᵀ (y - x)              the rest of the corrupted prompt's vector stays
    rest mean   x' = μ + Q Qᵀ (y - μ)              the rest becomes the mean (Engels et al. 2024, arXiv 2405.14860)
    add         x' = x + y - y_corrupted           moved along the method's curve, all else kept
    ablate      x' = x - Q Qᵀ (x - μ)              on the *clean* prompt: how much its own answer suffers

A least-squares fit passes through the mean, so for whole fits "whole" and "rest mean" are one; they differ for parts of a
fit (`Written.only`: one circle of the helix), and for held-out numbers. In "ablate", "full" makes the whole vector the mean.

Measured of every pair: ``gain``, the rise of the clean answer's logit over the run without the edit (the logit difference
of Kantamneni & Tegmark: one token, two runs); ``logit_diff``, clean answer against the corrupted prompt's answer in the
edited run (two tokens, one run: a constant added to all logits leaves it alone, as ``center_unembed`` does not leave the
gain); ``accuracy`` and ``probability`` of the clean answer. Where several answers are right (years), logits are the
log-sum-exp over them, and the other side of ``logit_diff`` is every other number.

When it misleads. What a whole vector does is the ceiling, a helix of shuffled numbers the floor: a gain without both says
nothing. "random" is a subspace of the same dimension, drawn from the covariance; where the numbers fill few dimensions it
holds most of them, and does as well as PCA. The gain rises long before the answer changes (GPT-J: 7 of 8 units, with 0.2 to
0.4 correct). A polynomial of as many columns is the fair rival of a helix, since any smooth curve is well fitted by slow
sines.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._names import resolve_all
from mi_ablate._places import short_names
from mi_ablate._shares import percentiles, resampled_means, share_intervals
from mi_ablate._types import FwdHooks, HookedModel, nearest
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.writing.answering import MEASURES, answered
from mi_ablate.arithmetic.writing.written import Written
from mi_ablate.interventions import Ablate, Add
from mi_ablate.metrics import accuracy
from mi_ablate.model import collect, layer_of
from mi_ablate.replay import Replay, from_layer, replay

MANNERS = ("whole", "subspace", "rest mean", "add", "ablate")


@dataclass(frozen=True, eq=False, repr=False)
class Swaps:
    """What writing did at each site by each method: the measures of every pair."""

    at: str
    """The token: "a", "b" or "answer"."""
    manner: str
    methods: tuple[str, ...]
    sites: tuple[str, ...]
    values: dict[str, Float[Tensor, "methods sites n"]]
    """By measure: "gain", "logit_diff", "accuracy", "probability"."""
    before: dict[str, Float[Tensor, " n"]]
    """The same in the run that is edited, without the edit: the corrupted prompts, or the clean ones of "ablate"."""
    clean: dict[str, Float[Tensor, " n"]]
    """The same in the clean run; its gain is over the corrupted one."""

    def mean(self, measure: str = "gain") -> Float[Tensor, "methods sites"]:
        """Return the means over the pairs."""
        return self._of(measure).mean(-1)

    def intervals(
        self, measure: str = "gain", level: int | float = 0.95, seed: int = 0
    ) -> Float[Tensor, "2 methods sites"]:
        """Return the ends of a bootstrap interval of each mean over the pairs, the same resamples for all; NaN of one pair."""
        x, quantiles = self._of(measure), percentiles(level)
        if x.shape[-1] < 2:
            return torch.full((2, *x.shape[:-1]), float("nan"), dtype=torch.float64)
        drawn = resampled_means(x.flatten(0, 1), torch.Generator().manual_seed(seed))
        return torch.quantile(drawn, quantiles, dim=0).reshape(2, *x.shape[:-1])

    def share(self, method: str, of: str = "full", level: int | float = 0.95) -> Float[Tensor, "3 sites"]:
        """Return a method's mean gain as a share of another's at each site, with the ends of its interval."""
        part, whole = (self.values["gain"][self._row(name)] for name in (method, of))
        ends = [share_intervals(p, w, level, 0) for p, w in zip(part, whole)]
        return torch.cat([(part.mean(-1) / whole.mean(-1))[None], torch.stack(ends, dim=1)])

    def best(self, measure: str = "gain") -> dict[str, dict[str, Any]]:
        """Return, by method, the site where the mean is highest (of "ablate": lowest), and that mean with its interval.

        The most of several means is too much: with many sites and few pairs, choose the site on some, report it on others.
        """
        means, (low, high) = self.mean(measure), self.intervals(measure)
        found = {}
        for m, name in enumerate(self.methods):
            s = int((-means[m] if self.manner == "ablate" else means[m]).argmax())
            ends = {"low": float(low[m, s]), "high": float(high[m, s])}
            found[name] = {"site": self.sites[s], "mean": float(means[m, s]), **ends}
        return found

    def plot(self, measure: str = "gain", title: str | None = None) -> Any:
        """Return a line a method over the sites, with bands for the intervals; "shuffled" and "random" are grey."""
        from mi_ablate.figures import lines

        means, ends, (names, axis) = self.mean(measure), self.intervals(measure), short_names(self.sites)
        floor = [name for name in ("shuffled", "random") if name in self.methods]
        rows = {name: m for m, name in enumerate(self.methods)}
        bands = {
            name: ends[:, m] for name, m in rows.items() if name not in floor and bool(ends[:, m].isfinite().all())
        }
        said = "logit difference" if measure == "gain" else measure.replace("_", " ")
        series = {name: means[m] for name, m in rows.items()}
        return lines(names, series, bands=bands, controls=floor, axes=(axis, said), title=title)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a site and method: the mean of each measure, and the interval of the gain."""
        means = {name: self.mean(name) for name in self.values}
        low, high = self.intervals()
        rows = []
        for s, site in enumerate(self.sites):
            for m, method in enumerate(self.methods):
                row: dict[str, Any] = {"site": site, "at": self.at, "manner": self.manner, "method": method}
                row |= {name: float(x[m, s]) for name, x in means.items()}
                rows.append(
                    {**row, "low": float(low[m, s]), "high": float(high[m, s]), "n": self._of("gain").shape[-1]}
                )
        return rows

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {row['mean']:.2f}" for name, row in self.best().items())
        n = self._of("gain").shape[-1]
        return f"Swaps({self.manner} at {self.at}, {len(self.sites)} sites, n {n}: most mean gain {best})"

    def _of(self, measure: str) -> Tensor:
        if measure not in self.values:
            raise KeyError(f"There is no measure {measure!r}; there are {', '.join(self.values)}.")
        return self.values[measure]

    def _row(self, method: str) -> int:
        if method not in self.methods:
            raise KeyError(f"There is no method {method!r}. {nearest(method, self.methods)}")
        return self.methods.index(method)


def swap(
    model: HookedModel,
    pairs: Pairs,
    written: Mapping[str, Written],
    names: str | Sequence[str] | None = None,
    *,
    at: str = "a",
    manner: str = "whole",
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Swaps:
    """Return what each method's writing does to the answers, one site at a time.

    Args:
        model: the model.
        pairs: from `pairs`; for the token of a with ``fixed="b"``, so that nothing but a differs.
        written: by name, from `reconstructions` or `written_by_fits`, or both together.
        names: sites, as `mi_ablate.sites` takes them; those of ``written`` for None.
        at: the token that is written to: "a", "b" or "answer".
        manner: see the module.
        batch_size: rows a pass.
        progress: called with (passes done, passes in all).

    Raises:
        ValueError: an unknown manner or token, a method made for another token. KeyError: a site that a method was not
            made for.

    Warns:
        UserWarning: pairs that differ at another operand too.

    """
    if manner not in MANNERS:
        raise ValueError(f"manner={manner!r} must be one of {', '.join(map(repr, MANNERS))}.")
    if at not in pairs.clean.positions:
        raise ValueError(f"at={at!r}: the prompts have {', '.join(map(repr, pairs.clean.positions))}.")
    if not written:
        raise ValueError("written is empty: reconstructions(means) gives what to write.")
    _check_numbers(pairs, written, at, manner)
    made = {site for writer in written.values() for site in writer.sites}
    where = resolve_all(model, names) if names is not None else tuple(site for site in model.hook_dict if site in made)
    if not where:
        raise ValueError(f"None of the sites {sorted(made)[:3]} is a hook point of this model: give names=.")
    edited = pairs.clean if manner == "ablate" else pairs.corrupted
    given: dict[str, Any] = {"batch_size": batch_size}
    pos, metric = edited.positions[at], accuracy(pairs.clean.answers)
    acts = [_vectors(model, side, where, pos, given) for side in (pairs.clean, pairs.corrupted)]
    plain = [answered(replay(model, x.tokens, [], metric, **given), [], pairs) for x in (pairs.clean, pairs.corrupted)]
    before = plain[0] if manner == "ablate" else plain[1]
    run, found = _ways(model, edited.tokens, pos, where, metric, given), []
    for site in where:
        for writer in written.values():
            hooks = _edit(writer, manner, site, pos, pairs, [x[site] for x in acts])
            found.append(answered(run(site), hooks, pairs).measures(before))
            if progress is not None:
                progress(len(found), len(where) * len(written))
    shape = (len(where), len(written), len(pairs))
    values = {name: torch.stack([x[name] for x in found]).reshape(shape).transpose(0, 1) for name in MEASURES}
    ends = before.measures(before), plain[0].measures(plain[1])
    return Swaps(at, manner, tuple(written), tuple(where), values, *ends)


def _check_numbers(pairs: Pairs, written: Mapping[str, Written], at: str, manner: str) -> None:
    """That the methods were made for this token, and that no other token tells the two prompts apart."""
    for name, writer in written.items():
        if at != "answer" and writer.of not in ("", at):  # the last token may hold any of the numbers
            raise ValueError(
                f"{name!r} was made of the means of {writer.of!r} and cannot be written at {at!r}: "
                f"number_means(..., of={at!r}) gives those."
            )
    others = [name for name in pairs.clean.operands if name != at]
    moved = [name for name in others if not torch.equal(pairs.clean.inputs[name], pairs.corrupted.inputs[name])]
    if moved and at != "answer" and manner != "ablate":
        warnings.warn(
            f"{moved[0]} differs within the pairs too, so that even the whole vector at {at} cannot bring the clean answer "
            f"back: pairs(..., fixed={moved[0]!r}) draws pairs that differ in {at} alone.",
            UserWarning,
            stacklevel=3,
        )


def _vectors(
    model: HookedModel, problems: Problems, where: Sequence[str], pos: int, given: dict[str, Any]
) -> dict[str, Float[Tensor, "n d"]]:
    found = collect(model, problems.tokens, where, pos=pos, **given)
    heads = [site for site, x in found.items() if x.ndim != 2]
    if heads:
        raise ValueError(
            f"{heads[0]} has an axis of heads: what is written are whole vectors of the stream or a layer's output."
        )
    return found


def _edit(
    writer: Written, manner: str, site: str, pos: int, pairs: Pairs, acts: list[Float[Tensor, "n d"]]
) -> FwdHooks:
    """The hooks of one method at one site; ``acts`` of the clean and the corrupted prompts."""
    if manner == "ablate":
        return Ablate(writer.subspace(site), writer.mean(site)).at(site, pos=pos)
    new = writer.write(site, pairs.clean.inputs, acts[0])
    if manner == "add":
        return Add(new - writer.write(site, pairs.corrupted.inputs, acts[1])).at(site, pos=pos)
    part = None if manner == "whole" else writer.subspace(site)
    if manner == "rest mean" and part is not None:
        mean = writer.mean(site)
        return Ablate(None, mean + part.project(new - mean)).at(site, pos=pos)
    return Ablate(part, new).at(site, pos=pos)


def _ways(
    model: HookedModel, tokens: Tensor, pos: int, where: Sequence[str], metric: Any, given: dict[str, Any]
) -> Callable[[str], Replay]:
    """How the model runs for each site: one position alone, or from the site's layer on, where it can."""
    if pos == -1:
        short = replay(model, tokens, Ablate(None).at(*where, pos=-1), metric, **given)
        if short.kind != "whole":
            return lambda site: short
    whole = replay(model, tokens, [], metric, **given)
    held: dict[int, Replay] = {}

    def way(site: str) -> Replay:
        layer = layer_of(site)
        if layer is None:
            return whole
        if layer not in held:
            held.clear()
            held[layer] = from_layer(model, tokens, layer, metric, **given) or whole
        return held[layer]

    return way
