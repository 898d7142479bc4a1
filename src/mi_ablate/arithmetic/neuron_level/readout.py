"""The logits of numbers at the answer: their periods over the numbers, of whole models and of single neurons.

For each prompt the logits of the numbers 0 .. v-1 lose their least-squares line; the power of what is left falls on the
periods v / k. Kantamneni & Tegmark 2025 (arXiv 2502.00873, App. F) find 10 the most common strongest period of GPT-J, and
nearly always a falling line (small answers preferred). A neuron adds n w·W_U to the logits (n its post-activation, w its
row of W_out), one curve over the numbers that only its size changes from prompt to prompt: neurons have periods too.

Where it misleads. Of 199 numbers, the possible sums, a period of 10 is no bin and its power is spread (a UserWarning;
take 200). The line is taken away because it would fill the lowest bins: without that most neurons' strongest period is
the longest one. It takes some of the longest period along; numbers of a modulus have no line, and keep it. Every
spectrum has a strongest period: the shares stand beside those of the same logits with the numbers shuffled. lm_head's
bias (GPT-J has one) is no neuron's and not part of a neuron's logits. norm="skipped" reads w·W_U as published; with
"frozen" w is centred, weighted and divided as the final norm of that prompt does it.

This is the rhythm of logits over the numbers, one curve at a time (`NumberSpectrum`); how numbers are represented, over all
dimensions of a site, is `number_spectra`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic._scored import mean_interval, mean_intervals
from mi_ablate.arithmetic.neuron_level._final_norm import final_norm
from mi_ablate.arithmetic.neuron_level._neuron_sites import neurons_of, places, written
from mi_ablate.arithmetic.neuron_level.neurons import PERIODS
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.representation._periods import line_removed, off_bin, power_of
from mi_ablate.model import collect, last_residual, run, split, stream

_ROUNDING = 1e-12
"""Of a curve's energy: what is less, beside its line, is rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class NumberSpectrum:
    """The periods of curves over consecutive numbers (one a prompt, or one a neuron), lines removed."""

    of: str
    """"prompts" or "neurons"."""
    numbers: range
    periods: Float[Tensor, " k"]
    """Longest first."""
    power: Float[Tensor, " k"]
    """The mean over curves of each period's share of a curve's power; curves that are flat, or a line, are left out."""
    interval: Float[Tensor, "2 k"]
    """Of 95 %, over resampled curves."""
    shuffled_power: Float[Tensor, " k"]
    """The same with the numbers shuffled, another way for each curve."""
    top: Float[Tensor, " n"]
    """The strongest period of each curve; NaN of a flat one (a dead neuron) or a line."""
    shuffled_top: Float[Tensor, " n"]
    slope: Float[Tensor, " n"]
    """Of each curve's line, in logits a number."""

    def shares(self) -> dict[float, tuple[float, float]]:
        """Return, by period, the share of curves whose strongest it is, and of shuffled curves; the most common first."""
        top = self.top[self.top.isfinite()]
        values, counts = top.unique(return_counts=True)
        order, n = counts.argsort(descending=True, stable=True), len(top)
        return {
            float(values[i]): (int(counts[i]) / n, float((self.shuffled_top == values[i]).double().sum()) / n)
            for i in order.tolist()
        }

    @property
    def falling(self) -> float:
        """The share of curves whose line falls: smaller numbers preferred."""
        return float((self.slope < 0).double().mean())

    def table(self) -> list[dict[str, Any]]:
        """Return one row a period, the strongest first: mean share of power and share of curves, each with its control.

        "low" and "high" are of the mean share of power, "in low" and "in high" of the share of curves: 95 % over the curves.
        """
        top, other, rows = self.top[self.top.isfinite()], self.shuffled_top[self.top.isfinite()], []
        for i in self.power.argsort(descending=True, stable=True).tolist():
            strongest, low_high = (top == self.periods[i]).double(), self.interval[:, i].tolist()
            row = {"period": float(self.periods[i]), "power": float(self.power[i])}
            row |= {"low": low_high[0], "high": low_high[1], "shuffled power": float(self.shuffled_power[i])}
            low, high = mean_interval(strongest)
            row |= {"strongest in": float(strongest.mean()), "in low": low, "in high": high}
            rows.append(row | {"shuffled in": float((other == self.periods[i]).double().mean())})
        return rows

    def __repr__(self) -> str:
        period, (share, chance) = next(iter(self.shares().items()), (float("nan"), (0.0, 0.0)))
        best = f"strongest period {period:.3g} in {share:.2f} (shuffled {chance:.2f})"
        falls = f"line falls in {self.falling:.2f}"
        return f"NumberSpectrum({len(self.top)} {self.of}, {len(self.numbers)} numbers: {best}; {falls})"


def spectrum_of(
    curves: Float[Tensor, "n v"],
    numbers: range | None = None,
    *,
    periods: Sequence[int | float] = PERIODS,
    line: bool = True,
    of: str = "prompts",
    seed: int = 0,
) -> NumberSpectrum:
    """Return the spectrum of curves over consecutive numbers, one a row.

    Args:
        curves: logits ``[n v]``, or anything else over the numbers.
        numbers: what the columns are; 0 .. v-1 by default.
        periods: those that should be bins: a warning says which are not.
        line: whether each curve loses its line first; not for the numbers of a modulus.
        of: what the rows are called.
        seed: of the shuffled numbers.

    Raises:
        ValueError: no curve, NaN in one, fewer than four numbers, or as many as the columns are not.

    """
    if curves.ndim != 2 or not len(curves) or not torch.isfinite(curves).all():
        raise ValueError(
            f"Curves are rows [n, v] over v numbers, one or more, all finite; these are {list(curves.shape)}."
        )
    n, v = curves.shape
    numbers = range(v) if numbers is None else numbers
    if v < 4 or len(numbers) != v or numbers.step != 1:
        raise ValueError(f"A spectrum takes four or more consecutive numbers; {numbers} and {v} columns were given.")
    missed = off_bin(v, [period for period in periods if period <= v])
    if missed:
        warnings.warn(
            f"{v} numbers have the periods {v} / k, and none of {', '.join(f'{T:g}' for T in missed)}: their power is spread "
            "over neighbouring bins. Give numbers=range(100) or range(200), say.",
            UserWarning,
            stacklevel=2,
        )
    curves = curves.detach().to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n, v, generator=generator).argsort(1)
    mixed, slope = curves.gather(1, order), line_removed(curves.T)[1]
    lengths, power = power_of(line_removed(curves.T)[0] if line else curves.T)
    other = power_of(line_removed(mixed.T)[0] if line else mixed.T)[1]
    varies = power.sum(0) > _ROUNDING * (curves**2).sum(1)
    shares, chance = ((x / x.sum(0).clamp(min=1e-300))[:, varies] for x in (power, other))
    ends = mean_intervals(shares) if varies.any() else torch.full((2, len(lengths)), torch.nan).double()
    top, chance_top = (torch.where(varies, lengths[x.argmax(0)], torch.nan) for x in (power, other))
    return NumberSpectrum(of, numbers, lengths, shares.mean(1), ends, chance.mean(1), top, chance_top, slope)


def number_logits(
    model: HookedModel,
    problems: Problems,
    numbers: range | None = None,
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "n v"]:
    """Return the logits of the numbers where the answer is predicted, ``[n v]`` on the CPU.

    Args:
        model: the model.
        problems: the prompts.
        numbers: which; from 0 to the largest answer by default.
        batch_size: prompts a pass.
        progress: called with (prompts done, prompts in all).

    Raises:
        ValueError: numbers that are no single tokens.

    """
    numbers = range(int(problems.inputs["answer"].max()) + 1) if numbers is None else numbers
    ids = problems.numerals.ids_of(list(numbers))
    found: list[Tensor] = []
    for tokens, _ in split(model, problems.tokens, None, batch_size):
        with torch.no_grad():
            found.append(run(model, tokens)[:, -1].cpu()[:, ids])
        if progress is not None:
            progress(sum(map(len, found)), len(problems))
    return torch.cat(found)


def logit_spectrum(
    model: HookedModel,
    problems: Problems,
    numbers: range | None = None,
    *,
    periods: Sequence[int | float] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NumberSpectrum:
    """Return the periods of the number logits at the answer; arguments as in `number_logits` and `spectrum_of`."""
    numbers = range(int(problems.inputs["answer"].max()) + 1) if numbers is None else numbers
    logits = number_logits(model, problems, numbers, batch_size=batch_size, progress=progress)
    wanted = periods if periods is not None else PERIODS if problems.modulus is None else ()
    return spectrum_of(logits, numbers, periods=wanted, line=problems.modulus is None, seed=seed)


@dataclass(frozen=True, eq=False, repr=False)
class NeuronLogits:
    """What each neuron adds to the logits of the numbers on the prompt that activates it most."""

    norm: str
    """"skipped" or "frozen"."""
    neurons: Int[Tensor, "m 2"]
    numbers: range
    logits: Float[Tensor, "m v"]
    prompt: Int[Tensor, " m"]
    """The row of that prompt."""
    activation: Float[Tensor, " m"]
    """The post-activation there."""

    def spectrum(self, periods: Sequence[int | float] = PERIODS, seed: int = 0) -> NumberSpectrum:
        """Return the periods of the neurons' logits over the numbers."""
        return spectrum_of(self.logits, self.numbers, periods=periods, of="neurons", seed=seed)

    def __repr__(self) -> str:
        return f"NeuronLogits({len(self.neurons)} neurons, {len(self.numbers)} numbers, norm {self.norm})"


def neuron_number_logits(
    model: Any,
    problems: Problems,
    neurons: Int[Tensor, "m 2"] | Sequence[tuple[int, int]],
    numbers: range | None = None,
    *,
    norm: str = "skipped",
    batch_size: int | None = None,
) -> NeuronLogits:
    """Return each neuron's contribution to the number logits, post-activation times W_out row times W_U, no bias.

    Args:
        model: the model.
        problems: the prompts among which the most activating one is looked for.
        neurons: (layer, neuron) each.
        numbers: which; from 0 to the largest answer by default.
        norm: "skipped": no final norm (as published); "frozen": its weights, its centring, and its scale on that prompt.
        batch_size: prompts a pass.

    Raises:
        ValueError: another ``norm``, numbers that are no single tokens, a readout of another kind.

    """
    if norm not in ("skipped", "frozen"):
        raise ValueError(f"norm={norm!r} is 'skipped' (w · W_U alone) or 'frozen' (as the final norm of the prompt).")
    chosen = neurons_of(model, neurons)
    numbers = range(int(problems.inputs["answer"].max()) + 1) if numbers is None else numbers
    ids = problems.numerals.ids_of(list(numbers))
    names, where = places(model, chosen, "mlp.hook_post")
    most = torch.full((len(chosen),), -torch.inf, dtype=torch.float64)
    prompt = torch.zeros(len(chosen), dtype=torch.int64)
    for rows, acts in stream(model, split(model, problems.tokens, None, batch_size), list(names.values()), pos=-1):
        for layer, name in names.items():
            high, at = acts[name][:, chosen[where[layer], 1].to(acts[name].device)].double().cpu().max(0)
            more = high > most[where[layer]]
            most[where[layer]] = torch.where(more, high, most[where[layer]])
            prompt[where[layer]] = torch.where(more, rows[at], prompt[where[layer]])
    rows_out = written(model, chosen)
    if norm == "skipped":
        columns = model.W_U.detach()[:, ids.to(model.W_U.device)].double().cpu()
        return NeuronLogits(norm, chosen, numbers, most[:, None] * (rows_out @ columns), prompt, most)
    last = last_residual(model)
    final = collect(model, problems.tokens[prompt.to(problems.tokens.device)], last, pos=-1, batch_size=batch_size)[
        last
    ]
    reader = final_norm(model, problems.tokens[prompt[:4].to(problems.tokens.device)], final)
    logits = reader.centred(rows_out) @ reader.reads(ids).T / reader.scale(final)[:, None]
    return NeuronLogits(norm, chosen, numbers, most[:, None] * logits, prompt, most)
