"""What comes out: the periods of the number logits and of what neurons add to them, wrong answers, and addition on a line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mi_ablate import arithmetic
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic import Asked, Problems
from mi_ablate.arithmetic.neuron_level.errors import AnswerErrors, answer_errors
from mi_ablate.arithmetic.neuron_level.lines import LineAddition, line_addition
from mi_ablate.arithmetic.neuron_level.readout import NumberSpectrum, logit_spectrum, neuron_number_logits
from mi_ablate.clock_analysis.bench import FITTED, Tries
from mi_ablate.clock_analysis.neurons import Neurons

WHOLE = 100
"""Numbers are taken up to a multiple of this where there are tokens for them: then 2, 5, 10 and 100 are bins."""


NEAR = 0.02
"""Periods that differ by less than this share of each other are taken for one."""


@dataclass(frozen=True, eq=False, repr=False)
class Readout:
    """Logits and errors, of right and wrong problems alike."""

    logits: NumberSpectrum
    neurons: NumberSpectrum | None
    """Of what the kept neurons add, the final norm skipped."""
    errors: AnswerErrors
    symmetry: dict[str, float] | None
    """Chi² of errors up and down; None of fewer than ten."""
    line: LineAddition | None
    """Addition on a line through the states that leave layer 0 at the token of a."""

    def unasked(self, periods: Sequence[int | float]) -> list[float]:
        """Return the periods, strongest first, that hold more power than any that was asked for, and twice their control."""
        found: list[float] = []
        for row in self.logits.table():
            if any(abs(row["period"] / T - 1) < NEAR for T in periods):
                break
            if row["power"] > 2 * row["shuffled power"]:
                found.append(row["period"])
        return found


def readout(
    model: HookedModel,
    asked: Asked,
    neurons: Neurons | None,
    periods: tuple[int | float, ...],
    seed: int,
    batch_size: int | None,
    progress: Callable[[int, int], None],
    tries: Tries,
) -> Readout | None:
    """Return what the logits and the wrong answers look like; parts that do not apply are left out with the reason."""
    problems = asked.problems
    order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(seed))
    some, numbers = problems[order[:FITTED]], numbers_of(problems)
    given: dict[str, Any] = {"batch_size": batch_size}
    logits = tries(
        "periods of the logits",
        lambda: logit_spectrum(model, some, numbers, periods=periods, seed=seed, progress=progress, **given),
    )
    if logits is None:
        return None
    errors, by_neuron = answer_errors(asked), None
    if neurons is not None:
        chosen = neurons.fits.neurons[: neurons.count]
        by_neuron = tries(
            "periods of the neurons' logits",
            lambda: neuron_number_logits(model, some, chosen, numbers, **given).spectrum(periods, seed),
        )
    symmetry = tries("symmetry of the errors", errors.symmetry)
    line = None
    if problems.modulus is None:
        line = tries("addition on a line", lambda: _line(model, some, batch_size))
    return Readout(logits, by_neuron, errors, symmetry, line)


def numbers_of(problems: Problems) -> range:
    """Return the numbers whose logits are read: 0 to the largest answer, and on or back to a multiple of 100."""
    if problems.modulus is not None:
        return range(problems.modulus)
    most = int(problems.inputs["answer"].max()) + 1
    rounded = -(-most // WHOLE) * WHOLE
    if problems.numerals.contiguous + 1 < rounded:
        rounded -= WHOLE
    return range(rounded or most)


def strongest(
    model: HookedModel, problems: Problems, count: int, seed: int, batch_size: int | None
) -> tuple[float, ...]:
    """Return the periods of most power in the number logits, over a sample of the problems: where to look in a model."""
    order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(seed))
    some, numbers = problems[order[:FITTED]], numbers_of(problems)
    found = logit_spectrum(model, some, numbers, periods=(), seed=seed, batch_size=batch_size)
    if not 0 < count <= len(found.periods):
        raise ValueError(f"free={count}: the logits of {len(numbers)} numbers have {len(found.periods)} periods.")
    return tuple(row["period"] for row in found.table()[:count])


def _line(model: HookedModel, problems: Problems, batch_size: int | None) -> LineAddition:
    means = arithmetic.number_means(model, problems, ["blocks.0.hook_resid_post"], of="a", batch_size=batch_size)
    return line_addition(means.means[0], means.values)
