"""Sufficiency: write the hand of another answer into the answer circle, and see whether the model gives that answer.

The circle is the fit of the last residual on cos and sin of some frequencies of the answer. Writing +5 moves the part of
the activations inside it to what the fit predicts for the answer plus five steps (of the exponent, for multiplication).
It shows what the model *writes*, not which algorithm wrote it. A fit to shuffled labels says what the subspace and the
size of the edit do without the right values; a covariance-drawn subspace of the same rank, what the right values do
elsewhere: with many frequencies it holds most of the circle by its size alone, and is no low bar.
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate import controls
from mi_ablate.controls import Control
from mi_ablate.design import Design
from mi_ablate.effects import Effect, effect
from mi_ablate.interventions import Ablate
from mi_ablate.measures.plain import effect_json
from mi_ablate.measures.subject import DRAWS, Operation
from mi_ablate.measures.task import Task, hours, number_embedding
from mi_ablate.metrics import accuracy
from mi_ablate.model import last_residual
from mi_ablate.modular import spectrum
from mi_ablate.regression import Fit, fit

COUNTS, SHIFT = (5, 10, 20), 5


def write(
    task: Task,
    rows: Int[Tensor, " m"],
    target: Int[Tensor, " m"],
    frequencies: list[int],
    seen: tuple[Float[Tensor, "n d"], Design],
    known: Fit,
    drawn: Control,
    draws: int,
) -> Effect:
    """Write ``target`` on the prompts ``rows`` of a task by a fit ``known`` to (activations, design) ``seen``."""
    wanted = hours(task, target, frequencies)
    edit = Ablate(known.subspace(name="answer circle"), to=known.predict(wanted))
    return effect(
        task.toy.model,
        task.tokens[rows],
        edit.at(last_residual(task.toy.model), pos=-1),
        accuracy(task.tokens_of[target]),
        controls={"shuffled labels": controls.shuffled(*seen, wanted), "covariance-drawn": drawn},
        draws=draws,
    )


def writing(one: Operation) -> dict[str, Any] | None:
    """Write the answer plus five on held-out pairs, with a circle of 5, 10, 20 and all frequencies, by energy of W_E.

    "edited" is the share that gives the written answer. "ablated" is the accuracy on the own answer with the same
    subspace set to its mean over training pairs. None for more frequencies than the group has.
    """
    if not one.measurable:
        return None
    shares = spectrum(number_embedding(one.task))
    counts = {str(count): count for count in COUNTS} | {"all": len(shares.shares)}
    return {
        name: _written(one, shares.top(count)) if count <= len(shares.shares) else None
        for name, count in counts.items()
    }


def _written(one: Operation, frequencies: list[int]) -> dict[str, Any] | None:
    task, acts = one.task, one.acts[one.last]
    design = hours(task, one.values, frequencies)
    known = fit(acts, design)
    if not known.singular_values()[0] > 0:
        return None
    target = (task.values[one.held] + SHIFT) % task.period
    drawn = one.controls["covariance"]
    circle = known.subspace(name="answer circle")
    found = write(task, one.held, target, frequencies, (acts, design), known, drawn, DRAWS)
    hooks = Ablate(circle, to=acts.double().mean(0)).at(one.last, pos=-1)
    ablated = effect(task.toy.model, one.held_tokens, hooks, one.metric, controls=one.controls, draws=DRAWS)
    return {
        "frequencies": frequencies,
        "rank": circle.rank,
        **effect_json(found),
        "ablated": effect_json(ablated),
    }
