"""What each neuron's pre-activation is a function of: one exact least squares for all neurons (Kantamneni & Tegmark, eq. 3).

    N(a, b) = c_a a + c_b b + sum over t in {a, b, answer} and periods T of c_tT cos(2π(t - d_tT) / T) + constant

c cos(w(t - d)) = α cos wt + β sin wt, with c² = α² + β² and d = T atan2(β, α) / 2π, so this is linear in α, β: 23
independent columns beside the constant for T in {2, 5, 10, 100} (the sine of period 2 is zero on integers, and the answer has
no linear column, being a + b). arXiv 2502.00873 (section 5.4, App. D.2) fits each neuron by gradient descent, 4,587 of
them in 6 h 25 min on a GPU.

The pre-activation is what enters the MLP's nonlinearity (mlp.hook_pre), at the answer's position. In a gated MLP (Llama) that
is the gate's side; the neuron's value is its nonlinearity times a second linear function of the stream, which is not fitted.

What it does not say: a share of variance is of the fitted prompts, and 23 columns fit noise to r2 = 23 / (n - 1) (the
shuffled column shows that). A neuron whose fit is dominated by "answer" is not thereby one that adds: cos w(a + b) is a
product of functions of a and of b, which a nonlinearity before it can have made. The fraction of the answer terms has no
meaning where r2 is near the shuffled one.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.neuron_level._neuron_sites import neurons_of, places
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.representation._periods import line_removed, on_bin_count, power_of
from mi_ablate.design import Design, helix
from mi_ablate.model import split, stream
from mi_ablate.regression import Fitter, _solve

PERIODS = (2, 5, 10, 100)
TERMS = ("a", "b", "answer")
_ROWS = 1024
_ROUNDING = 1e-12
"""Of a neuron's variance: what is less is rounding, in float32 too, and its shares and periods are NaN."""


def neuron_design(inputs: Mapping[str, Tensor], periods: Iterable[int | float] = PERIODS) -> Design:
    """Return the columns of the model in the module's docstring: helices of a and b, and the circles of the answer."""
    terms = [term for term in TERMS if term in inputs]
    if not terms:
        raise ValueError(f"inputs has {list(inputs)[:5]}; values of 'a', 'b' or 'answer' are needed, one an example.")
    listed = list(periods)
    made = helix(inputs[terms[0]], listed, terms[0])
    for term in terms[1:]:
        made = made | helix(inputs[term], listed, term)
    kept = [i for i, label in enumerate(made.labels) if label != "answer:linear"]
    return Design(made.matrix[:, kept], tuple(made.labels[i] for i in kept))


@dataclass(frozen=True, eq=False, repr=False)
class NeuronFits:
    """The least-squares fit of every neuron; results are on the CPU in float64."""

    neurons: Int[Tensor, "m 2"]
    """(layer, neuron)."""
    periods: tuple[int | float, ...]
    labels: tuple[str, ...]
    coef: Float[Tensor, "k m"]
    mean: Float[Tensor, " m"]
    centre: Float[Tensor, " k"]
    """The means of the neurons, and of the columns: both fits go through them."""
    shuffled_coef: Float[Tensor, "k m"]
    """Of the same neurons, fitted to the inputs of other prompts."""
    gram: Float[Tensor, "k k"]
    """Covariance of the columns over the prompts."""
    variance: Float[Tensor, " m"]
    spread: Float[Tensor, " m"]
    """Largest minus smallest pre-activation: what the NRMSE is relative to."""
    sums: Int[Tensor, " s"]
    """The answers that occur, in rising order."""
    counts: Int[Tensor, " s"]
    sum_means: Float[Tensor, "s m"]
    """The mean pre-activation over all prompts of each answer."""
    n: int

    @property
    def r2(self) -> Float[Tensor, " m"]:
        """The share of each neuron's variance over the prompts; NaN of one that does not vary."""
        return (self._energy(self.coef) / self._varies).clamp(max=1)

    @property
    def shuffled_r2(self) -> Float[Tensor, " m"]:
        """The same of the shuffled fit: what as many columns explain of nothing."""
        return self._energy(self.shuffled_coef) / self._varies

    @property
    def nrmse(self) -> Float[Tensor, " m"]:
        """Root mean square error over the range of the neuron (the paper's measure of fit)."""
        return (self.variance - self._energy(self.coef)).clamp(min=0).sqrt() / (0 * self._varies + self.spread)

    def answer_fraction(self, rule: str = "variance", shuffled: bool = False) -> Float[Tensor, " m"]:
        """Return the share of the answer's terms among all periodic terms of each neuron's fit; linear terms are left out.

        ``rule="variance"``: of the variances of the fitted terms over the prompts. ``"amplitude"``: of the squared
        amplitudes, sum_T c² (the published code; on a full grid the two differ in period 2, whose cosine has twice the
        variance for its amplitude). ``shuffled``: of the shuffled fit, about 0.3 by chance. NaN of a neuron without circles.
        """
        if rule not in ("variance", "amplitude"):
            raise ValueError(f"rule={rule!r} is 'variance' or 'amplitude' (squared, as in the published code).")
        coef, parts, energy = self.shuffled_coef if shuffled else self.coef, dict[str, Tensor](), 0 * self.variance
        for term in TERMS:
            columns = [i for i, x in enumerate(self.labels) if x.startswith(f"{term}:") and "linear" not in x]
            if columns:
                chosen = coef[columns]
                varied = ((self.gram[columns][:, columns] @ chosen) * chosen).sum(0)
                parts[term], energy = varied if rule == "variance" else (chosen**2).sum(0), energy + varied
        share = parts.get("answer", 0 * self.variance) / sum(parts.values())
        return torch.where(energy > _ROUNDING * self.variance, share, torch.nan)

    def circles(self, term: str) -> tuple[Float[Tensor, "T m"], Float[Tensor, "T m"]]:
        """Return amplitudes c and phases d (in units of the term, 0 <= d < T) of each period: c cos(2π(t - d) / T)."""
        if f"{term}:cos {self.periods[0]:g}" not in self.labels:
            raise ValueError(f"The fit has no term {term!r}; its columns are {list(self.labels[:4])} ...")
        pick = {part: [self.labels.index(f"{term}:{part} {T:g}") for T in self.periods] for part in ("cos", "sin")}
        cosine, sine = self.coef[pick["cos"]], self.coef[pick["sin"]]
        periods = torch.tensor(self.periods, dtype=torch.float64)[:, None]
        return torch.hypot(cosine, sine), torch.remainder(torch.atan2(sine, cosine) / (2 * math.pi) * periods, periods)

    def dominant_periods(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Return the period of most power in each neuron's mean per answer, a line removed, and its share of the power.

        The means are uniform samples over the answers; the pre-activations in the order of the prompts are not, and their
        FFT says nothing. Of the answers a stretch is used on which the fit's whole periods are bins, the one with the
        most prompts (50 to 149 of the sums of numbers below 100); all of them where there is no such stretch. NaN of a
        neuron whose means are a line, or constant.

        Raises:
            ValueError: answers with gaps, which are no uniform sampling.

        """
        first, last = int(self.sums[0]), int(self.sums[-1])
        if last - first + 1 != len(self.sums) or len(self.sums) < 4:
            raise ValueError(
                f"The answers {first} to {last} have {last - first + 1 - len(self.sums)} gaps ({len(self.sums)} there): a "
                "spectrum over them needs four or more without a gap. Give more problems."
            )
        length = on_bin_count(len(self.sums), self.periods) or len(self.sums)
        weight = self.counts.double().unfold(0, length, 1).sum(1)
        start = int(weight.argmax())
        periods, power = power_of(line_removed(self.sum_means[start : start + length])[0])
        most, total = power.max(0), power.sum(0)
        nothing = torch.where(total > _ROUNDING * length * self.variance, 0.0, torch.nan)
        return periods[most.indices] + nothing, most.values / total + nothing

    def predict(self, inputs: Mapping[str, Tensor], shuffled: bool = False) -> Float[Tensor, "n m"]:
        """Return the fitted pre-activations of any prompts, or those of the shuffled fit."""
        design = neuron_design(inputs, self.periods)
        if design.labels != self.labels:
            made = list(design.labels[:3])
            raise ValueError(f"The fit has the columns {list(self.labels[:3])} ..., these inputs make {made} ...")
        coef = self.shuffled_coef if shuffled else self.coef
        return self.mean + (design.matrix - self.centre) @ coef

    def table(self) -> list[dict[str, Any]]:
        """Return one row a neuron: fit, shuffled fit, the share of the answer's terms, the dominant period."""
        columns = {"r2": self.r2, "shuffled r2": self.shuffled_r2, "nrmse": self.nrmse}
        columns |= {"answer_fraction": self.answer_fraction(), "shuffled fraction": self.answer_fraction(shuffled=True)}
        if int(self.sums[-1] - self.sums[0]) + 1 == len(self.sums) > 3:
            columns["period"], columns["period_share"] = self.dominant_periods()
        rows = [dict(zip(columns, row)) for row in torch.stack(list(columns.values()), dim=1).tolist()]
        return [{"layer": layer, "neuron": unit, **row} for (layer, unit), row in zip(self.neurons.tolist(), rows)]

    @property
    def _varies(self) -> Float[Tensor, " m"]:
        return torch.where(self.spread > 1e-12 * (self.mean.abs() + self.spread), self.variance, torch.nan)

    def _energy(self, coef: Float[Tensor, "k m"]) -> Float[Tensor, " m"]:
        return ((self.gram @ coef) * coef).sum(0)

    def __repr__(self) -> str:
        r2, chance = (float(x.nanmedian()) for x in (self.r2, self.shuffled_r2))
        nrmse = float(self.nrmse.nanmedian())
        median = f"median r2 {r2:.3f} (shuffled {chance:.3f}), nrmse {nrmse:.3f}"
        return f"NeuronFits({len(self.neurons)} neurons, n {self.n}: {median})"


class NeuronSums:
    """What `NeuronFits` is computed from: feed rows of all neurons, in any batches; memory is (2 k + answers) x neurons."""

    def __init__(self, inputs: Mapping[str, Tensor], periods: Iterable[int | float] = PERIODS, seed: int = 0) -> None:
        self.periods = tuple(periods)
        design = neuron_design(inputs, self.periods)
        self.labels, n = design.labels, len(design)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self._both = design | Design(design.matrix[order], tuple(f"shuffled {label}" for label in self.labels))
        of = "answer" if "answer" in inputs else next(term for term in TERMS if term in inputs)
        self.sums, self._which = torch.as_tensor(inputs[of]).cpu().unique(return_inverse=True)
        self._fitter = Fitter()
        self._low = self._high = self._totals = torch.empty(0, dtype=torch.float64)

    def update(self, acts: Float[Tensor, "b m"], rows: Int[Tensor, " b"]) -> None:
        """Add the pre-activations of some prompts, by their row numbers."""
        for part, index in zip(acts.detach().to("cpu", torch.float64).split(_ROWS), rows.cpu().split(_ROWS)):
            self._fitter.update(part, self._both[index])
            low, high = part.aminmax(dim=0)
            if not len(self._low):
                self._low, self._high = low, high
                self._totals = part.new_zeros(len(self.sums), part.shape[1])
            self._totals.index_add_(0, self._which[index], part)
            self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)

    def result(self, neurons: Int[Tensor, "m 2"] | None = None) -> NeuronFits:
        """Return the fits of everything seen, which must be every prompt once."""
        fitter, k = self._fitter, len(self.labels)
        if fitter.n != len(self._both) or fitter.n < 2:
            raise ValueError(
                f"{fitter.n} rows were fed of {len(self._both)} prompts; every prompt once is needed, two at least."
            )
        counts = torch.bincount(self._which, minlength=len(self.sums))
        gram, cross, m = fitter._gram / fitter.n, fitter._cross / fitter.n, len(fitter._mean_x)
        coef, columns = _solve(gram[:k, :k], cross[:k]), int((gram.diagonal()[:k] > _ROUNDING).sum())
        if fitter.n <= columns + 1:
            warnings.warn(
                f"{fitter.n} prompts and {columns} columns beside the constant: any neuron is fitted exactly, shuffled or not. "
                "Give more problems, or fewer periods.",
                stacklevel=3,
            )
        numbered = torch.stack([torch.zeros(m, dtype=torch.int64), torch.arange(m)], dim=1)
        return NeuronFits(
            neurons=numbered if neurons is None else neurons,
            periods=self.periods,
            labels=self.labels,
            coef=coef,
            mean=fitter._mean_x,
            centre=fitter._mean_d[:k],
            shuffled_coef=_solve(gram[k:, k:], cross[k:]),
            gram=gram[:k, :k],
            variance=fitter._square / fitter.n,
            spread=self._high - self._low,
            sums=self.sums,
            counts=counts,
            sum_means=self._totals / counts[:, None],
            n=fitter.n,
        )


def fit_neurons(
    acts: Float[Tensor, "n m"], inputs: Mapping[str, Tensor], periods: Iterable[int | float] = PERIODS, seed: int = 0
) -> NeuronFits:
    """Return the fits of pre-activations from anywhere; ``inputs`` has "a", "b" and "answer" of the same n prompts."""
    sums = NeuronSums(inputs, periods, seed)
    if len(acts) != len(sums._both):
        raise ValueError(
            f"{len(acts)} rows of pre-activations, inputs of {len(sums._both)} prompts: one row a prompt is needed."
        )
    sums.update(acts, torch.arange(len(acts)))
    return sums.result()


def neuron_fits(
    model: HookedModel,
    problems: Problems,
    neurons: Int[Tensor, "m 2"] | Sequence[tuple[int, int]] | None = None,
    *,
    layers: int | Iterable[int] | None = None,
    periods: Iterable[int | float] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NeuronFits:
    """Return the fit of each neuron's pre-activation at the answer's position, from one pass over the prompts.

    Args:
        model: the model.
        problems: prompts with a, b and the answer; all of them by preference, whether answered rightly or not.
        neurons: (layer, neuron) each; None: all neurons of ``layers``.
        layers: the blocks, where no neurons are given; None for all.
        periods: of the circles; (2, 5, 10, 100) by default, all modulus / k for modular problems.
        seed: of the shuffled fit.
        batch_size: prompts a pass.
        progress: called with (prompts done, prompts in all).

    Raises:
        KeyError: a model without mlp.hook_pre. IndexError: a neuron that is not there.

    """
    chosen = neurons_of(model, neurons, layers)
    names, where = places(model, chosen, "mlp.hook_pre")
    p = problems.modulus
    if periods is None:
        periods = PERIODS if p is None else [p / k for k in range(1, p // 2 + 1)]
    inputs = {name: x.cpu() for name, x in problems.inputs.items()}
    sums, done = NeuronSums(inputs, periods, seed), 0
    batches = split(model, problems.tokens, None, batch_size)
    for rows, acts in stream(model, batches, list(names.values()), pos=problems.positions["answer"]):
        found = torch.empty(len(rows), len(chosen), dtype=torch.float64)
        for layer, name in names.items():
            found[:, where[layer]] = acts[name][:, chosen[where[layer], 1].to(acts[name].device)].double().cpu()
        sums.update(found, rows)
        done += len(rows)
        if progress is not None:
            progress(done, len(problems))
    return sums.result(chosen)
