"""Q1 and Q2: batch size against grokking, and the noise of its gradients.

A smaller batch at the same samples takes more steps, each of which decays the weights and each with a noisier gradient. Three
arms tell the causes apart (`batch_arms`); the gradient noise scale says how much of a step is noise
(`toys.gradient_noise`). It is measured after grokking, so it says little about the noise on the way there.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mi_ablate.studies.batch_arms import (
    DECAY,
    PLAIN,
    RATE,
    Arms,
    batch_of,
    grok_samples,
    held_out_at,
    pairs,
)
from mi_ablate.studies.batch_claims import verdicts
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.groups import grok_step
from mi_ablate.studies.spread import Spread
from mi_ablate.studies.study import Findings, Item, Study, Table
from mi_ablate.toys.gradient_noise import GradientNoise, estimated_noise, float32_error, toy_noise, training_loss

QUESTION = (
    "Addition mod 97, two layers, d 128, 30 % of the pairs for training. Batches of 64 to 5,120 pairs against 512 for 6,000 "
    "steps: do small batches grok (held-out accuracy of 0.95) earlier after the same samples, and is it the number of steps, "
    "the decay that comes with each, or the noise? Three arms: nothing else changes (one run serves the comparison at the same "
    "samples and that at the same steps); weight decay in proportion to the batch, so that learning rate x weight decay x "
    "steps is equal after the same samples; the learning rate by the square root of the batch."
)
TITLES = {
    PLAIN: "Batch size alone",
    DECAY: "Weight decay in proportion to the batch",
    RATE: "Learning rate by the square root of the batch",
}
EXPONENTS = (
    "Batch^e means that the grok step goes as that power of the batch size, the slope of a line through its logarithm for each "
    "seed: e = 0 where the number of steps alone counts, -1 where the number of samples does. Samples go as batch^(e + 1)."
)
SECONDS = 0.002
"""Of a training pair, for all that is measured, two layers of width 128 on one core."""


def find(cells: Cells, own: Mapping[str, Any]) -> Findings:
    """Return a table an arm, the noise of the recorded weights, and the verdicts."""
    arms = Arms.of(cells)
    decays = cells.where(grid="weight-decay")
    by_decay = {
        f"{decay:g}": decays.where(weight_decay=decay) for decay in sorted({c.config.weight_decay for c in decays})
    }
    by_batch = {f"{size:,}": group for size, group in arms.groups[PLAIN].items()}
    noise = {what: _noise(groups, own) for what, groups in (("weight decay", by_decay), ("batch", by_batch))}
    tables = [
        Table(
            TITLES[arm],
            [_row(size, group, arms) for size, group in groups.items()],
            _note(arms) if arm == PLAIN else "",
        )
        for arm, groups in arms.groups.items()
    ]
    tables += [
        Table(
            f"Gradient noise of the last kept weights, by {what}",
            [_noise_row(what, *one) for one in rows.items()],
            NOISE,
        )
        for what, rows in noise.items()
        if sum(bool(found) for found in rows.values()) > 1
    ]
    notes = [EXPONENTS] if any(arms.exponents(arm) for arm in arms.groups) else []
    notes += _wrong(noise["weight decay"])
    return Findings(tables=tables, verdicts=verdicts(arms), figures=_figures(arms, noise["weight decay"]), notes=notes)


def _note(arms: Arms) -> str:
    size, held = arms.largest, pairs(arms.usual)
    seen = 1 - (1 - 1 / held) ** size
    every, steps = arms.usual.evaluate_every, arms.usual.steps
    return (
        f"Grok steps are evaluations, every {every} steps; {steps:,}+ means not within so many. The same samples are "
        f"{arms.samples:,}, the same steps {steps:,}; accuracy there is that of one evaluation, and may be caught in a dip. A "
        f"batch of {size:,} is more than the {held:,} training pairs: it is drawn with replacement, as all batches are, so a "
        f"step sees {seen:.0%} of the pairs, some of them several times, and is not the noiseless full batch. It is left out "
        "of the exponents that the verdicts are made of."
    )


def _row(size: int, group: Cells, arms: Arms) -> dict[str, Any]:
    config = group.cells[0].config
    left = f" (left: {sum(c.estimate for c in group.missing) / 60:.1f} core-hours)" if group.missing else ""

    def told(of: Callable[[Cell], Any], form: str) -> str:
        found = Spread.of(map(of, group.done))
        return found.text(form, count=False) if found.n or not group.done else "-"

    return {
        "batch": f"{size:,}",
        "weight decay": f"{config.weight_decay:g}",
        "learning rate": f"{config.learning_rate:.2g}",
        "run": f"{len(group.done)} of {len(group)}{left}",
        "grok step": told(grok_step, ",.0f"),
        "samples to grok": told(grok_samples, ",.0f"),
        "held out after the same samples": told(lambda cell: held_out_at(cell, arms.samples // size), ".3f"),
        "after the same steps": told(lambda cell: held_out_at(cell, arms.usual.steps), ".3f"),
    }


NOISE = (
    "The signal is the squared length of G, the mean of all training pairs' cross-entropy gradients; the noise is the trace of "
    "their covariance Sigma; both exactly, in float64. B, their quotient, is the batch at which they are equal (McCandlish et "
    "al. 2018), and the noise at 512 its share in the squared gradient of such a batch. Weight decay and AdamW's division by "
    "the gradient's size are left out. Weights are those of the last stable step, or where no seed has one those of the last "
    "step (a seed without a stable step is left out where others have one); one step a run, so the range is that of steps as "
    "much as of seeds. They are recorded in half precision: beside the unrounded ones the signal differed up to sixfold at "
    "weight decay 0.01, by half at 0.03 and by 2 % or less from 0.1 on. The last two columns: B by the paper's estimator from "
    "20 batches of 64 and 20 of 1,024, which chance may make negative; and the squared error of G in float32, in which the "
    "runs train, over the signal: at 100% the error is as long as G."
)
Noise = list[Mapping[str, Any]]


def _noise(groups: Mapping[str, Cells], own: Mapping[str, Any]) -> dict[str, Noise]:
    """The measured noise of each group: of weights from stable steps, or where there are none of all."""
    found = {}
    for name, group in groups.items():
        taken = [own[item.key] for item in items(group) if item.key in own]
        finite = [one for one in taken if None not in (one["result"]["squared_length"], one["result"]["trace"])]
        found[name] = [one for one in finite if one["about"]["stable"]] or finite
    return found


def _noise_row(what: str, name: str, taken: Noise) -> dict[str, Any]:
    def told(of: Callable[[Mapping[str, Any]], float | None], form: str = ".2g") -> str:
        return Spread.of(of(one["result"]) for one in taken).text(form, count=False)

    weights = "last step" if taken and not taken[0]["about"]["stable"] else "stable step"
    return {
        what: name,
        "runs": f"{len(taken)} ({weights})" if taken else "0",
        "training loss": told(lambda r: r["loss"]),
        "signal": told(lambda r: r["squared_length"]),
        "noise": told(lambda r: r["trace"]),
        "B": told(lambda r: _parts(r).scale, ",.0f"),
        "noise at 512": told(lambda r: _parts(r).share(512), ".0%"),
        "B estimated": told(lambda r: _parts(r["estimated"]).scale, ",.0f"),
        "error in float32": told(lambda r: r["float32_error"], ".0%"),
    }


def _wrong(noise: Mapping[str, Noise]) -> list[str]:
    """A sentence on the models whose mean gradient float32 gets wrong by a tenth or more, where there are some."""
    spreads = {name: Spread.of(one["result"]["float32_error"] for one in taken) for name, taken in noise.items()}
    told = [
        f"{s.text('.0%', count=False)} at weight decay {name}" for name, s in spreads.items() if s.n and s.median >= 0.1
    ]
    why = "Training is in float32, whose softmax rounds the gradients of sure answers"
    return (
        [f"{why}: the squared error of the mean gradient is {', '.join(told)} of its squared length."] if told else []
    )


def _parts(result: Mapping[str, Any]) -> GradientNoise:
    return GradientNoise(result["squared_length"], result["trace"])


def items(cells: Cells) -> list[Item]:
    """Return the noise of every recorded model's last kept weights, seconds each; first of one seed, then of the next."""
    found = []
    for cell in sorted(cells.done, key=lambda cell: cell.config.seed):
        kept = {entry["step"]: entry for entry in (cell.record or {})["weights"]}
        if kept:
            step = max(kept)
            about = {
                "cell": cell.label, "grid": cell.grid, "seed": cell.config.seed, "weight_decay": cell.config.weight_decay,
                "batch": batch_of(cell.config), "step": step, "stable": kept[step]["stable"],
            }  # fmt: skip
            take = functools.partial(measured, cell, step)
            found.append(Item(f"{cell.key}@{step}", about, take, round(SECONDS * pairs(cell.config), 1)))
    return found


def measured(cell: Cell, step: int) -> dict[str, Any]:
    """Return the noise of a cell's weights: exact, estimated from two batch sizes, and the error of G in float32."""
    weights = cell.subject(step).weights
    loss, params, examples = training_loss(cell.config, weights)
    exact, guess = toy_noise(cell.config, weights), estimated_noise(loss, params, examples)
    with torch.no_grad():
        mean = float(loss(params, torch.arange(examples)))
    return {
        "examples": examples, "loss": mean, "squared_length": exact.squared_length, "trace": exact.trace,
        "estimated": {"squared_length": guess.squared_length, "trace": guess.trace},
        "float32_error": float32_error(cell.config, weights),
    }  # fmt: skip


def _figures(arms: Arms, noise: Mapping[str, Noise]) -> dict[str, Callable[[], Any]]:
    figures: dict[str, Callable[[], Any]] = {}
    if any(sum(bool(group.done) for group in groups.values()) > 1 for groups in arms.groups.values()):
        figures[
            "Grok step by batch size: medians over seeds with the lowest and highest; grey, where the samples to grok would be "
            "the same at every batch size."
        ] = functools.partial(_draw_steps, arms)
    if sum(bool(taken) for taken in noise.values()) > 1:
        figures[
            "Gradient noise scale at the last kept weights by weight decay (the batch at which signal and noise are equal): "
            "medians over seeds with the lowest and highest; grey, the batch of 512 that the runs train with."
        ] = functools.partial(_draw_noise, noise)
    return figures


def _draw_steps(arms: Arms) -> Any:
    sizes = sorted({size for groups in arms.groups.values() for size, group in groups.items() if group.done})
    spreads = {
        TITLES[arm].lower(): [Spread.of(map(grok_step, groups[size].done if size in groups else ())) for size in sizes]
        for arm, groups in arms.groups.items()
        if sum(bool(group.done) for group in groups.values()) > 1
    }
    usual = Spread.of(map(grok_step, arms.groups[PLAIN][batch_of(arms.usual)].done)).median
    law = {"same samples": [usual * batch_of(arms.usual) / size for size in sizes]}
    return _drawn(sizes, spreads, law, ("batch size", "grok step"))


def _draw_noise(noise: Mapping[str, Noise]) -> Any:
    scales = {name: [_parts(one["result"]).scale for one in taken] for name, taken in noise.items() if taken}
    spreads = {"noise scale": [Spread.of(values) for values in scales.values()]}
    figure = _drawn(list(scales), spreads, {"batch of the runs": [512.0] * len(scales)}, ("weight decay", "pairs"))
    return figure.update_yaxes(dtick=1)


def _drawn(
    places: list[Any], spreads: Mapping[str, list[Spread]], law: Mapping[str, list[float]], axes: tuple[str, str]
) -> Any:
    """Lines of medians with their ranges on a logarithmic axis, and grey ones for what they are compared with."""
    from mi_ablate.figures import lines

    medians = {name: [one.median for one in values] for name, values in spreads.items()}
    ends = {
        name: torch.tensor([[one.low for one in values], [one.high for one in values]])
        for name, values in spreads.items()
    }
    figure = lines(
        places, {**medians, **law}, bands=ends, controls=list(law), axes=axes, log=not isinstance(places[0], str)
    )
    return figure.update_yaxes(type="log")


STUDY = Study(
    name="batch-size",
    log="Q1, Q2",
    title="Batch size, and the noise of its gradients",
    question=QUESTION,
    grids=("weight-decay", "batch-size"),
    find=find,
    decides=("C14", "C15", "C16", "Q1", "Q2"),
    items=items,
    version=2,
)
