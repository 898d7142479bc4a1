"""Keep some neurons and put the mean in place of all others: how many a task needs, and how good their fits are.

At the answer's position every MLP neuron's post-activation becomes its mean over the prompts, but for k that are kept. The
kept ones may be computed as usual ("live"), or have their pre-activation of the clean run written to them ("true"), or
their fit's ("fitted"): "fitted" beside "true" says what the fit loses, all else equal (Kantamneni & Tegmark 2025, arXiv
2502.00873, section 5.4: fitted / true accuracy .58 / .86 at 4,587 neurons of GPT-J).

Attention stays as it is, so the whole clean computation at earlier positions reaches the answer; and a mean over prompts
of one task carries that task. Both make the empty circuit better than nothing, so it stands in the table, beside as
many random neurons and fits to shuffled inputs. "true" and "fitted" write values that follow from the prompt alone, so
errors of the kept neurons do not build up over layers as they do in "live". LD is the gain of the right answer's logit
over the empty circuit: it may exceed the whole model's without the accuracy doing so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.arithmetic._scored import answer_logit, mean_interval, right, scored
from mi_ablate.arithmetic.neuron_level._neuron_sites import all_but, neurons_of, places, values_at
from mi_ablate.arithmetic.neuron_level.neurons import NeuronFits
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.interventions import Ablate
from mi_ablate.model import sites, split, stream
from mi_ablate.replay import replay

METHODS = ("live", "true", "fitted", "shuffled", "random")


def mean_posts(
    model: HookedModel, problems: Problems, names: Sequence[str], batch_size: int | None = None
) -> dict[str, Float[Tensor, " w"]]:
    """Return the mean post-activations at the answer's position of each site, from one pass."""
    sums: dict[str, Tensor] = {}
    for _, acts in stream(model, split(model, problems.tokens, None, batch_size), list(names), pos=-1):
        for name, x in acts.items():
            total = x.double().sum(0)
            sums[name] = sums[name] + total if name in sums else total
    return {name: total / len(problems) for name, total in sums.items()}


@dataclass(frozen=True, eq=False, repr=False)
class KeptNeurons:
    """Accuracy and answer logit of every prompt with k neurons kept, by method."""

    ks: tuple[int, ...]
    neurons: Int[Tensor, "m 2"]
    """In the order in which they are kept."""
    accuracy: dict[str, Float[Tensor, "ks n"]]
    """By method: "live", "true", "fitted", "shuffled" (fits to shuffled inputs), "random" (as many of all neurons, live)."""
    logit: dict[str, Float[Tensor, "ks n"]]
    """The right answer's logit."""
    intact: dict[str, Float[Tensor, " n"]]
    """"accuracy" and "logit" of the whole model,"""
    empty: dict[str, Float[Tensor, " n"]]
    """and with no neuron kept."""

    def table(self) -> list[dict[str, Any]]:
        """Return one row a method and k: accuracy with its 95 % interval, and LD against the empty circuit."""
        n_all = {"whole model": self.intact, "empty": self.empty}
        rows = [self._row(name, None, one["accuracy"], one["logit"]) for name, one in n_all.items()]
        for i, k in enumerate(self.ks):
            rows += [self._row(name, k, values[i], self.logit[name][i]) for name, values in self.accuracy.items()]
        return rows

    def _row(self, method: str, k: int | None, accuracy: Tensor, logit: Tensor) -> dict[str, Any]:
        low, high = mean_interval(accuracy)
        row = {"method": method, "k": k, "accuracy": float(accuracy.mean()), "low": low, "high": high}
        return {**row, "ld": float((logit - self.empty["logit"]).mean())}

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {float(x[-1].mean()):.3f}" for name, x in self.accuracy.items())
        ends = (
            f"whole model {float(self.intact['accuracy'].mean()):.3f}, empty {float(self.empty['accuracy'].mean()):.3f}"
        )
        return f"KeptNeurons({len(self.empty['logit'])} prompts, accuracy at k = {self.ks[-1]}: {parts}; {ends})"


def fitted_accuracy(
    model: HookedModel,
    problems: Problems,
    fits: NeuronFits,
    ks: Sequence[int] | None = None,
    *,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KeptNeurons:
    """Return accuracy against the number of kept neurons, with their fits, their true values, and controls.

    Args:
        model: the model.
        problems: prompts that it answers rightly by preference; other than those of the fits where fits are to be tested.
        fits: of neurons in the order of importance, such as ``neuron_fits(model, problems, effects.top(4587))``.
        ks: how many of the first are kept; powers of 2 and all of them by default.
        methods: which of "live", "true", "fitted", "shuffled", "random".
        seed: of the random neurons.
        batch_size: prompts a pass.
        progress: called with (runs done, runs in all).

    Raises:
        ValueError: a k that is not there, an unknown method.

    """
    m, neurons = len(fits.neurons), neurons_of(model, fits.neurons)
    counts = tuple(ks or sorted({*(2**i for i in range(m.bit_length())), m}))
    wrong = [name for name in methods if name not in METHODS]
    if min(counts) < 1 or max(counts) > m or wrong or not methods:
        raise ValueError(f"ks={list(counts)[:5]}, methods={list(methods)}: 1 to {m} neurons, and some of {METHODS}.")
    posts = sites(model, "mlp.hook_post")
    means = mean_posts(model, problems, posts, batch_size)
    values = _values(model, problems, fits, methods, batch_size)
    metrics = {"accuracy": right(problems), "logit": answer_logit(problems)}
    nothing = all_but(neurons[:0], means, -1)
    runs = replay(model, problems.tokens, nothing, metrics["logit"], batch_size=batch_size)
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in methods}
    others = _random(model, max(counts), seed) if "random" in methods else neurons
    done = 0
    for k in counts:
        for name in methods:
            kept = (others if name == "random" else neurons)[:k]
            hooks = all_but(kept, means, -1)
            if name in values:
                hooks += _written(model, neurons[:k], values[name])
            found[name].append(scored(runs, hooks, metrics))
            done += 1
            if progress is not None:
                progress(done, len(counts) * len(methods))
    by = {key: {name: torch.stack([one[key] for one in each]) for name, each in found.items()} for key in metrics}
    intact, empty = scored(runs, [], metrics), scored(runs, nothing, metrics)
    return KeptNeurons(counts, neurons, by["accuracy"], by["logit"], intact, empty)


def _values(
    model: HookedModel, problems: Problems, fits: NeuronFits, methods: Sequence[str], batch_size: int | None
) -> dict[str, Float[Tensor, "n m"]]:
    """What is written to the pre-activations of the neurons, by method."""
    found: dict[str, Tensor] = {}
    inputs = {name: x.cpu() for name, x in problems.inputs.items()}
    if "fitted" in methods:
        found["fitted"] = fits.predict(inputs)
    if "shuffled" in methods:
        found["shuffled"] = fits.predict(inputs, shuffled=True)
    if "true" in methods:
        names, where = places(model, fits.neurons, "mlp.hook_pre")
        found["true"] = values_at(model, problems.tokens, names, fits.neurons, where, batch_size)
    return found


def _written(model: HookedModel, kept: Int[Tensor, "k 2"], values: Float[Tensor, "n m"]) -> FwdHooks:
    names, where = places(model, kept, "mlp.hook_pre")
    hooks: FwdHooks = []
    for layer, name in names.items():
        units = kept[where[layer], 1].tolist()
        hooks += Ablate(None, values[:, where[layer]]).at(name, pos=-1, unit=units)
    return hooks


def _random(model: HookedModel, k: int, seed: int) -> Int[Tensor, "k 2"]:
    everything = neurons_of(model, None)
    return everything[torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))[:k]]
