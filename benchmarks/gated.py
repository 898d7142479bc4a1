"""The gated-answer toy: what removing directions does to declining, defences, and how fast declining comes back.

    python benchmarks/gated.py --seeds 0 1 2 3 4 --write      # about 7 minutes a seed on one core
    python benchmarks/gated.py --table                        # medians and ranges of the lines that are there

Variants, all from the same base of a seed (the joint one apart): "declines" is the recipe gated97; "reasons" has 16 DECLINE
tokens instead of 4, each telling a finer reason (after extended refusals, arXiv 2505.19056); "ablated" is "reasons"
fine-tuned with 1 to 8 declining directions of the moment projected out in half of the steps, the decline still demanded;
"random projections" is its control, with covariance-drawn subspaces of the same ranks; "one operand" declines where either
operand is one of 13 numbers, so that these are in no open prompt; "joint" learns both from the start.

Protocol: one subspace at all writers, last position. Directions (`toys.gated.directions`) are found on half of the training
prompts, at the site that a second half chooses: the largest, over sites and k = 1..8, of open prompts kept - declines -
0.01 k, so that of equal ones the fewest directions win. Everything reported is on prompts held out of every phase. Controls:
five covariance-drawn subspaces and the top principal components of the same activations.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from _timing import record
from gated_table import KS, curve_table

import mi_ablate as mi
from mi_ablate.studies.gated_toys import PLAIN, Prompts, base_of, settings_of, taught
from mi_ablate.studies.removals import Found, brief, curves, found_in, runner, spaces_of, targets_of, variances
from mi_ablate.toys import tasks
from mi_ablate.toys.base import Base
from mi_ablate.toys.recipes import RECIPES, TrainConfig
from mi_ablate.toys.stepper import Stepper
from mi_ablate.toys.train import train
from mi_ablate.toys.transformer import build

METHODS = {"declines": PLAIN, "reasons": "spread", "ablated": "adversarial", "random projections": "random projections"}
"""What the studies of the research log call them."""
VARIANTS = (*METHODS, "one operand", "joint")
RELEARN = (*range(0, 65, 5), *range(80, 301, 20))


def measure(model, prompts: Prompts) -> tuple[dict[str, object], Found]:
    """Choose a site on half B, and return the curves on held-out prompts with their controls."""
    at, found = mi.writers(model), found_in(model, prompts)
    spaces = spaces_of(found, prompts, found.site, within=False)
    everywhere = {name: dict.fromkeys(at, space) for name, space in spaces.items()}
    run = runner(model, prompts, prompts.held_out, at)
    found_curves = {
        ablation: curves(run, everywhere, targets_of(ablation, model, prompts, found, prompts.held_out, at), KS)
        for ablation in ("zero", "mean")
    }
    told = {**brief(found), "candidates": len(found.directions) * max(KS), "curves": found_curves}
    return {**told, "variance": variances(found.acts[found.site], spaces, KS)}, found


def relearned(state, prompts: Prompts) -> list[float]:
    """Declines on held-out gated prompts after RELEARN steps of the recipe's optimiser, until they are back."""
    settings = prompts.settings
    stepper, generator = Stepper(settings, state), torch.Generator().manual_seed(settings.seed + 2000)
    model_rows, found = prompts.held_out[prompts.gated[prompts.held_out]], []
    for step in range(max(RELEARN) + 1):
        if step in RELEARN:
            model = build(settings.config, stepper.state())
            with torch.no_grad():
                predicted = model(prompts.tokens[model_rows])[:, -1].argmax(-1)
            found.append(float((predicted >= prompts.modulus).double().mean()))
            if len(found) > 3 and min(found[-3:]) >= 0.99:
                break
        rows = prompts.train[torch.randint(len(prompts.train), (settings.batch_size,), generator=generator)]
        stepper.step(prompts.tokens[rows], prompts.answers[rows])
    return found


def relearning(state, base: Base, prompts: Prompts, found: Found) -> dict[str, object]:
    """How fast declining comes back where its directions, or others, are removed from the weights, or it never was."""
    k = found.below_on_b or max(KS)
    arms = {name: spaces_of(found, prompts, found.site, 1, within=False)[run][:k] for name, run in ARM_RUNS.items()}
    again = {"never gated": relearned(base.weights(prompts.settings), prompts)}
    for name, one in arms.items():
        model = build(prompts.settings.config, state)
        mi.bake_(model, mi.Ablate(one))
        again[name] = relearned({n: t.detach().clone() for n, t in model.state_dict().items()}, prompts)
    back = {n: next((s for s, x in zip(RELEARN, row) if x >= 0.95), None) for n, row in again.items()}
    return {"k": k, "steps": RELEARN, "declines": again, "steps_to_0.95": back}


ARM_RUNS = {"removed": "directions", "covariance": "covariance 0"}


def either_operand(base: Base, settings: TrainConfig):
    """The recipe's fine-tuning where one operand of the gate is enough; 13 numbers close a quarter of the prompts too."""
    numbers = [number for group in settings.config.gate for number in group][:13]
    groups = torch.full((settings.config.modulus,), -1)
    groups[numbers] = torch.arange(len(numbers)) % len(settings.config.gate)
    a = tasks.inputs(settings.config)["a"]
    b = tasks.inputs(settings.config)["b"]
    first = torch.where(groups[a] >= 0, groups[a], groups[b])
    answers = torch.where(first >= 0, settings.config.modulus + first, (a + b) % settings.config.modulus)
    prompts = Prompts(settings, answers)
    stepper, generator = Stepper(settings, base.weights(settings)), torch.Generator().manual_seed(settings.seed)
    for _ in range(300):
        rows = prompts.train[torch.randint(len(prompts.train), (settings.batch_size,), generator=generator)]
        stepper.step(prompts.tokens[rows], prompts.answers[rows])
    return build(settings.config, stepper.state()), prompts


def one(variant: str, seed: int, runs: Path) -> dict[str, object]:
    """Train and measure one variant of one seed."""
    start, folder = time.time(), runs / f"seed{seed}"
    if variant in METHODS:
        toy = taught(METHODS[variant], seed, runs)
        model, prompts, base = toy.model, toy.prompts, toy.base
        card = mi.toys.load(folder / METHODS[variant].replace(" ", "-") / "model.safetensors").card
    elif variant == "joint":
        settings = replace(
            RECIPES["add97-0.8"], config=settings_of(PLAIN, seed, base_of(seed, folder)).config, seed=seed
        )
        result = train(settings, out=folder / "joint", progress=False)
        model, prompts, card = build(settings.config, result.state), Prompts(settings), result.card
    else:
        base, card = base_of(seed, folder), {}
        model, prompts = either_operand(base, settings_of(PLAIN, seed, base))
    trained = {key: card[key] for key in ("steps", "checkpoint_step", "stable", "accuracy", "per_part") if key in card}
    line, found = measure(model, prompts)
    if variant == "declines":
        line["relearning"] = relearning(toy.state, base, prompts, found)
    return {"variant": variant, "seed": seed, "trained": trained, **line, "seconds": round(time.time() - start)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="append to benchmarks/results/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/gated"), help="folder of the trained models")
    parser.add_argument("--table", action="store_true", help="print the table of the lines that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        for ablation in ("zero", "mean"):
            print(f"\n{ablation}-ablation\n\n{curve_table(ablation, KS, variance=True)}")
    else:
        for seed in options.seeds:
            for variant in options.variants:
                record("gated", one(variant, seed, options.runs), options.write)
