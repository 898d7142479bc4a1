"""What each neuron does to the right answer's logit: by gradient, directly, and by running the model.

Everywhere the corrupted prompt runs and a neuron's post-activation n at the answer's position (mlp.hook_post, the input of
W_out) moves to its value on the clean prompt; the effect is the gain of the clean answer's logit, one token and two
runs, the mean over pairs (Kantamneni & Tegmark 2025, arXiv 2502.00873, section 5.4 and App. D.2).

    attribution   d logit / dn at the corrupted run, times (n_clean - n_corrupted): all neurons from two passes
    direct        logit(x + (n_clean - n_corrupted) w) - logit(x), x the last residual stream, w the neuron's row of W_out
    total         the model run with that neuron patched: the definition, one pass a neuron

Direct effects are batched products (`_final_norm`): the published code runs two passes for each of 4,587
neurons. norm="live" lets the final norm see the change, as published; with "frozen" effects add up over neurons.

When it misleads. Attribution is a first-order estimate: a gate (gelu below zero) or a large change bends it, so compare it with
`neuron_patching` for the neurons that matter (`NeuronEffects.correlation`). Beside every mean stands the same with clean
values of another pair's prompt ("shuffled"): a neuron that raises all number logits alike, or none in particular, has
as much there. Effects of neurons do not add up to that of their layer. center_unembed changes a one-token effect (it
subtracts the mean over the vocabulary); `load_model` leaves weights as they are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.arithmetic._scored import answer_logit
from mi_ablate.arithmetic.neuron_level._final_norm import NORMS, final_norm, gains
from mi_ablate.arithmetic.neuron_level._neuron_sites import neurons_of, places, values_at, written
from mi_ablate.arithmetic.problem_sets.pairing import Pairs
from mi_ablate.interventions import Ablate
from mi_ablate.model import attached, collect, default_batch_size, last_residual, run
from mi_ablate.replay import replay

_NORMAL = 1.959964
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, repr=False)
class NeuronEffects:
    """The effect of every neuron on the clean answer's logit; on the CPU in float64."""

    kind: str
    """"attribution", "direct" or "total"."""
    norm: str
    """Of direct effects: "frozen" or "live" final norm; of the others "live", as the model runs."""
    neurons: Int[Tensor, "m 2"]
    """(layer, neuron)."""
    mean: Float[Tensor, " m"]
    error: Float[Tensor, " m"]
    """Standard error over the pairs; NaN of one pair."""
    shuffled: Float[Tensor, " m"]
    """The mean with clean values of another pair, the one before; NaN of one pair."""
    n: int

    def top(self, k: int) -> Int[Tensor, "k 2"]:
        """Return the k neurons with the largest mean effect of either sign, largest first."""
        if not 1 <= k <= len(self.mean):
            raise ValueError(f"k={k}: there are effects of {len(self.mean)} neurons.")
        return self.neurons[self._order[:k]]

    def carrying(self, share: int | float = 0.8) -> Int[Tensor, "k 2"]:
        """Return the fewest neurons whose effects add up to a share of the sum of all effects, the most helpful first.

        Raises:
            ValueError: a sum that is not above 0, of which there are no shares.

        """
        total = float(self.mean.sum())
        if total <= 0 or not 0 < share <= 1:
            raise ValueError(f"The effects add up to {total:.3g}; a share ({share}) in (0, 1] needs a sum above 0.")
        order = self.mean.argsort(descending=True)
        enough = self.mean[order].cumsum(0) >= share * total * (1 - 1e-12)
        return self.neurons[order[: int(enough.double().argmax()) + 1]]

    def correlation(self, other: "NeuronEffects") -> float:
        """Return Pearson's correlation of the mean effects of the same neurons, in any order: total against attribution.

        Raises:
            ValueError: neurons that the other lacks.

        """
        rows = {tuple(pair): i for i, pair in enumerate(other.neurons.tolist())}
        missing = [pair for pair in self.neurons.tolist() if tuple(pair) not in rows]
        if missing or len(self.mean) < 2:
            raise ValueError(f"Two or more neurons that both have are needed; the other lacks {missing[:3]}.")
        theirs = other.mean[[rows[tuple(pair)] for pair in self.neurons.tolist()]]
        return float(torch.corrcoef(torch.stack([self.mean, theirs]))[0, 1])

    def table(self, k: int | None = None) -> list[dict[str, Any]]:
        """Return one row a neuron, the largest effect of either sign first, with a 95 % interval over the pairs."""
        rows = []
        for i in self._order[:k].tolist():
            mean, half = float(self.mean[i]), _NORMAL * float(self.error[i])
            layer, unit = self.neurons[i].tolist()
            row = {"layer": layer, "neuron": unit, "effect": mean, "low": mean - half, "high": mean + half}
            rows.append({**row, "shuffled": float(self.shuffled[i])})
        return rows

    @property
    def _order(self) -> Int[Tensor, " m"]:
        return self.mean.abs().argsort(descending=True, stable=True)

    def __repr__(self) -> str:
        best = self.table(1)[0]
        where = f"layer {best['layer']} neuron {best['neuron']} {best['effect']:.3g} (shuffled {best['shuffled']:.3g})"
        return (
            f"NeuronEffects({self.kind}, {self.norm} norm, {len(self.mean)} neurons, {self.n} pairs: most at {where})"
        )


def neuron_attribution(
    model: HookedModel,
    pairs: Pairs,
    *,
    layers: int | Iterable[int] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> NeuronEffects:
    """Return the first-order effect of all neurons of the layers (attribution patching); None for all layers."""
    chosen = neurons_of(model, None, layers)
    names, where = places(model, chosen, "mlp.hook_post")
    order = torch.cat([where[layer] for layer in names])
    totals = _Totals(len(chosen), _posts(model, pairs.clean[-1:], names))
    size = batch_size or max(1, default_batch_size(model, pairs.clean.tokens.shape[1]) // 4)
    for part in _batches(pairs, size, progress):
        clean, corrupted = (_posts(model, one, names) for one in (part.clean, part.corrupted))
        slope, other = _slopes(model, part, list(names.values())), totals.others(clean)
        totals.add(slope[:, order] * (clean - corrupted)[:, order], slope[:, order] * (other - corrupted)[:, order])
    return NeuronEffects("attribution", "live", chosen[order], *totals.result(), len(pairs))


def neuron_direct_effects(
    model: HookedModel,
    pairs: Pairs,
    neurons: Int[Tensor, "m 2"] | Sequence[tuple[int, int]] | None = None,
    *,
    norm: str = "frozen",
    layers: int | Iterable[int] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> NeuronEffects:
    """Return the direct effect of each neuron through the last residual stream alone, as batched products.

    Args:
        model: the model.
        pairs: clean and corrupted prompts.
        neurons: (layer, neuron) each; None: all of ``layers``.
        norm: "frozen": the final norm keeps the scale of the corrupted run; "live": it sees the change (as published).
        layers: the blocks, where no neurons are given.
        batch_size: pairs at a time.
        progress: called with (pairs done, pairs in all).

    Raises:
        ValueError: another ``norm``, a model whose MLP outputs or logits have no closed form (see the modules).

    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is 'frozen' (the corrupted run's scale) or 'live' (the changed stream's).")
    chosen = neurons_of(model, neurons, layers)
    names, where = places(model, chosen, "mlp.hook_post")
    rows, last = written(model, chosen), last_residual(model)
    reader, totals = None, _Totals(len(chosen), values_at(model, pairs.clean[-1:].tokens, names, chosen, where))
    for part in _batches(pairs, batch_size or 128, progress):
        final = collect(model, part.corrupted.tokens, last, pos=-1)[last]
        reader = reader or final_norm(model, part.corrupted.tokens, final)
        clean, corrupted = (values_at(model, one.tokens, names, chosen, where) for one in (part.clean, part.corrupted))
        found = [
            gains(reader, final, values - corrupted, rows, part.clean.answers.cpu(), norm)
            for values in (clean, totals.others(clean))
        ]
        totals.add(*found)
    return NeuronEffects("direct", norm, chosen, *totals.result(), len(pairs))


def neuron_patching(
    model: HookedModel,
    pairs: Pairs,
    neurons: Int[Tensor, "m 2"] | Sequence[tuple[int, int]],
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> NeuronEffects:
    """Return the total effect of each neuron by running the model twice a neuron (the second for "shuffled"): the definition.

    For some neurons. ``progress`` is called with (neurons done, neurons in all).
    """
    chosen = neurons_of(model, neurons)
    names, where = places(model, chosen, "mlp.hook_post")
    clean = values_at(model, pairs.clean.tokens, names, chosen, where, batch_size)
    metric = answer_logit(pairs.clean)

    def edit(i: int, values: Tensor) -> FwdHooks:
        return Ablate(None, values[:, i : i + 1]).at(names[int(chosen[i, 0])], pos=-1, unit=int(chosen[i, 1]))

    runs = replay(model, pairs.corrupted.tokens, edit(0, clean), metric, batch_size=batch_size)
    before = runs.score([], metric)
    return patched("total", chosen, clean, progress, lambda i, values: runs.score(edit(i, values), metric) - before)


def patched(
    kind: str,
    neurons: Int[Tensor, "m 2"],
    values: Float[Tensor, "n m"],
    progress: Progress | None,
    effect: Callable[[int, Float[Tensor, "n m"]], Float[Tensor, " n"]],
) -> NeuronEffects:
    """Return effects measured one neuron at a time, ``effect(i, values)``, and with the values of another pair."""
    n, found, other = len(values), [], []
    for i in range(len(neurons)):
        found.append(effect(i, values))
        other.append(effect(i, _others(values, values[-1:])).mean() if n > 1 else torch.tensor(torch.nan).double())
        if progress is not None:
            progress(i + 1, len(neurons))
    each = torch.stack(found)
    error = each.std(1) / n**0.5 if n > 1 else torch.full((len(each),), torch.nan).double()
    return NeuronEffects(kind, "live", neurons, each.mean(1), error, torch.stack(other), n)


class _Totals:
    """Sums over pairs: memory is that of the neurons."""

    def __init__(self, m: int, last: Float[Tensor, "1 m"]) -> None:
        self.sum, self.square, self.other = (torch.zeros(m, dtype=torch.float64) for _ in range(3))
        self.n, self.last = 0, last

    def others(self, clean: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """Return the clean values of the pair before each one, those of the last pair before the first."""
        found, self.last = _others(clean, self.last), clean[-1:]
        return found

    def add(self, effects: Float[Tensor, "b m"], shuffled: Float[Tensor, "b m"]) -> None:
        self.sum += effects.sum(0)
        self.square += (effects**2).sum(0)
        self.other += shuffled.sum(0)
        self.n += len(effects)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        mean = self.sum / self.n
        spread = (self.square / self.n - mean**2).clamp(min=0) / max(self.n - 1, 1)
        error = spread.sqrt() if self.n > 1 else torch.full_like(mean, torch.nan)
        return mean, error, self.other / self.n if self.n > 1 else torch.full_like(mean, torch.nan)


def _batches(pairs: Pairs, size: int, progress: Progress | None) -> Iterator[Pairs]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]
        if progress is not None:
            progress(min(start + size, len(pairs)), len(pairs))


def _posts(model: HookedModel, problems: Any, names: dict[int, str]) -> Float[Tensor, "n m"]:
    """Post-activations at the last position, all of the layers side by side."""
    acts = collect(model, problems.tokens, list(names.values()), pos=-1)
    return torch.cat([acts[name].double().cpu() for name in names.values()], dim=1)


def _others(values: Float[Tensor, "n m"], before: Float[Tensor, "1 m"]) -> Float[Tensor, "n m"]:
    """Each row's predecessor."""
    return torch.cat([before, values[:-1]])


def _slopes(model: Any, part: Pairs, names: list[str]) -> Float[Tensor, "n m"]:
    """The gradient of the clean answer's logit on the corrupted prompt, at the last position of each site."""
    held: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(x: Tensor, hook: Any = None) -> Tensor:
            held[name] = x if x.requires_grad else x.requires_grad_()
            return x

        return hook

    with torch.inference_mode(False), torch.enable_grad(), attached(model, [(name, keep(name)) for name in names]):
        logits = run(model, part.corrupted.tokens)[:, -1]
        total = logits.gather(1, part.clean.answers.to(logits.device)[:, None]).sum()
        slopes = torch.autograd.grad(total, [held[name] for name in names])
    return torch.cat([slope[:, -1].double().cpu() for slope in slopes], dim=1)
