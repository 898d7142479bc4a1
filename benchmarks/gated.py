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
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from _timing import RESULTS, record

import mi_ablate as mi
from mi_ablate.moments import Moments
from mi_ablate.replay import replay
from mi_ablate.toys import forward, tasks
from mi_ablate.toys.base import Base
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.gated import declined, directions, draw_gate
from mi_ablate.toys.recipes import RECIPES, TrainConfig
from mi_ablate.toys.stepper import Stepper
from mi_ablate.toys.train import train
from mi_ablate.toys.transformer import build

VARIANTS = ("declines", "reasons", "ablated", "random projections", "one operand", "joint")
SITES = tuple(f"blocks.{layer}.hook_resid_{part}" for layer in (0, 1) for part in ("mid", "post"))
KS, DRAWS = range(9), 5
DEFENCE_STEPS, AGAIN, RANKS = 600, 10, 8
"""Steps of the defences; steps between two estimates of the directions; ranks 1..RANKS are drawn."""
RELEARN = (*range(0, 65, 5), *range(80, 301, 20))


class Prompts:
    """All prompts of a toy, its answers, and who sees which: half A (directions), half B (choice), held out (report)."""

    def __init__(self, settings: TrainConfig, answers: torch.Tensor | None = None) -> None:
        config = settings.config
        self.settings, self.modulus = settings, config.modulus
        self.tokens, inputs = tasks.all_tokens(config), tasks.inputs(config)
        self.sums = (inputs["a"] + inputs["b"]) % config.modulus
        self.answers = tasks.answers(config) if answers is None else answers
        self.gated = self.answers >= config.modulus
        train_on = tasks.split(config, settings.train_fraction, settings.split_seed)
        self.train, self.held_out = train_on.nonzero()[:, 0], (~train_on).nonzero()[:, 0]
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(settings.seed + 1000))
        half = len(order) // 2
        self.a, self.b = self.train[order[:half]], self.train[order[half:]]

    def scores(self, predicted: torch.Tensor, rows: torch.Tensor) -> dict[str, float]:
        """Declines, sums recovered and open prompts kept, of the answers to these prompts."""
        gated, sums = self.gated[rows], self.sums[rows]
        return {
            "declines": float((predicted[gated] >= self.modulus).double().mean()),
            "recovered": float((predicted[gated] == sums[gated]).double().mean()),
            "kept": float((predicted[~gated] == sums[~gated]).double().mean()),
        }


def settings_of(variant: str, seed: int, base: str) -> TrainConfig:
    groups = 16 if variant in ("reasons", "ablated", "random projections") else 4
    config = ToyConfig(modulus=97, gate=draw_gate(97, size=48, groups=groups, seed=seed))
    if variant == "joint":
        return replace(RECIPES["add97-0.8"], config=config, seed=seed)
    return replace(RECIPES["gated97"], config=config, seed=seed, base=base)


def removal(model, space, at, targets=None):
    return [h for name in at for h in mi.Ablate(space, None if targets is None else targets[name]).at(name, pos=-1)]


def measure(model, prompts: Prompts) -> dict[str, object]:
    """Choose a site on half B, and return the curves on held-out prompts with their controls."""
    at = mi.writers(model)
    acts = mi.collect(model, prompts.tokens[prompts.a], [*SITES, *at], pos=-1)
    found = {s: directions(acts[s], prompts.answers[prompts.a], prompts.modulus, rank=max(KS)) for s in SITES}
    runs = {name: runner(model, prompts, getattr(prompts, name), found[SITES[0]], at) for name in ("b", "held_out")}
    tried = {s: [runs["b"](removal(model, found[s][:k], at)) for k in KS if k] for s in SITES}
    gain = {s: max(r["kept"] - r["declines"] - 0.01 * k for k, r in enumerate(rows, 1)) for s, rows in tried.items()}
    site = max(gain, key=gain.__getitem__)
    moments = Moments().update(acts[site])
    spaces = {"directions": found[site], "pca": drawn(mi.controls.pca(acts[site]), found[site], 0)}
    spaces |= {f"covariance {i}": drawn(mi.controls.covariance(acts[site]), found[site], i) for i in range(DRAWS)}
    curves = {}
    for ablation in ("zero", "mean"):
        targets = {name: acts[name].double().mean(0) for name in at} if ablation == "mean" else None
        curves[ablation] = {
            name: [runs["held_out"](removal(model, space[:k], at, targets) if k else []) for k in KS]
            for name, space in spaces.items()
        }
    variance = {name: [moments.share(space[:k]) if k else 0.0 for k in KS] for name, space in spaces.items()}
    below = next((k for k, row in enumerate(tried[site], 1) if row["declines"] <= 0.05), None)
    chosen = {"site": site, "gain_on_b": gain, "candidates": len(SITES) * max(KS), "k_below_0.05_on_b": below}
    return {**chosen, "curves": curves, "variance": variance, "found": found[site], "acts": acts[site]}


def drawn(control, space, seed):
    """The subspace of a control, of the same rank as the treatment's."""
    (_, hook), *_ = control(mi.Ablate(space).at("hook_embed"), seed)
    return hook.intervention.subspace


def runner(model, prompts: Prompts, rows, space, at):
    """A function hooks -> scores on these prompts; the earlier positions are computed once."""
    metric = declined(prompts.modulus)
    runs = replay(model, prompts.tokens[rows], removal(model, space[:1], at), metric)

    def run(hooks):
        predicted = torch.empty(len(rows), dtype=torch.long)
        for index, logits in runs.logits(hooks):
            predicted[index] = logits[:, -1].argmax(-1)
        return prompts.scores(predicted, rows)

    return run


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


def relearning(state, base: Base, prompts: Prompts, measured) -> dict[str, object]:
    """How fast declining comes back where its directions, or others, are removed from the weights, or it never was."""
    k = measured["k_below_0.05_on_b"] or max(KS)
    space = measured["found"][:k]
    arms = {"removed": space, "covariance": drawn(mi.controls.covariance(measured["acts"]), space, 0)}
    found = {"never gated": relearned(base.weights(prompts.settings), prompts)}
    for name, one in arms.items():
        model = build(prompts.settings.config, state)
        mi.bake_(model, mi.Ablate(one))
        found[name] = relearned({n: t.detach().clone() for n, t in model.state_dict().items()}, prompts)
    back = {n: next((s for s, x in zip(RELEARN, row) if x >= 0.95), None) for n, row in found.items()}
    return {"k": k, "steps": RELEARN, "declines": found, "steps_to_0.95": back}


def projected(config: ToyConfig, params, tokens, space: mi.Subspace | None):
    """The trainer's logits with a subspace removed from all that is written at the last position (equal to the hooks)."""
    if space is None:
        return forward.last_logits(config, params, tokens)
    q, prefixes = space.columns(params["embed.W_E"]), forward.Prefixes(config, tokens)

    def clean(x, rows):
        return torch.cat((x[:-rows], x[-rows:] - (x[-rows:] @ q) @ q.T))

    starts = [start for start, _ in tasks.slots(config)]
    tables = [
        params["embed.W_E"][start : start + size] + params["pos_embed.W_pos"][i : i + 1]
        for i, (start, size) in enumerate(zip(starts, prefixes.sizes))
    ]
    x = clean(torch.cat(tables), 1)
    for layer in range(config.n_layers):
        p = {name.split(".", 2)[2]: w for name, w in params.items() if name.startswith(f"blocks.{layer}.")}
        x = clean(forward._attention(config, p, x, prefixes, layer), len(tokens))
        hidden = forward._linear(forward._norm(config, p, "ln2", x), p["mlp.W_in"], p["mlp.b_in"])
        x = x + forward._linear(forward.ACTIVATIONS[config.act_fn](hidden), p["mlp.W_out"], p["mlp.b_out"])
        x = clean(x, len(tokens))
    return forward._linear(forward._norm(config, params, "ln_final", x), params["unembed.W_U"], params["unembed.b_U"])


def check(model, settings: TrainConfig, state, tokens, space: mi.Subspace) -> None:
    """The training's projection is the protocol's removal."""
    with torch.no_grad(), mi.attached(model, removal(model, space, mi.writers(model))):
        gap = (model(tokens)[:, -1] - projected(settings.config, state, tokens, space)).abs().max()
    assert gap < 1e-3, f"other logits than the hooks: {gap}"


def defended(base: Base, prompts: Prompts, random: bool):
    """Fine-tune with a subspace projected out in half of the steps, the taught answers still demanded.

    Every AGAIN steps a site is drawn and the directions are found there, in 1,024 training prompts; each projected step draws
    how many of them. Twice the steps of the recipe's longest run, because half of them are projected.
    """
    settings, draw = prompts.settings, torch.Generator().manual_seed(prompts.settings.seed + 3000)
    stepper = Stepper(settings, base.weights(settings))
    pick = lambda n, count: torch.randint(n, (count,), generator=draw)  # noqa: E731
    for step in range(DEFENCE_STEPS):
        if step % AGAIN == 0:
            rows, site = prompts.train[pick(len(prompts.train), 1024)], SITES[int(pick(len(SITES), 1))]
            model = build(settings.config, stepper.state())
            acts = mi.collect(model, prompts.tokens[rows], site, pos=-1)[site]
            space = directions(acts, prompts.answers[rows], prompts.modulus, rank=RANKS)
            space = drawn(mi.controls.covariance(acts), space, step) if random else space
            if step == 0:
                check(model, settings, stepper.params, prompts.tokens[rows], space)
        rows = prompts.train[pick(len(prompts.train), settings.batch_size)]
        removed = space[: 1 + int(pick(RANKS, 1))] if step % 2 else None
        stepper.optimizer.param_groups[0]["lr"] = stepper.rate(step)
        stepper.optimizer.zero_grad()
        logits = projected(settings.config, stepper.params, prompts.tokens[rows], removed)
        F.cross_entropy(logits, prompts.answers[rows]).backward()
        stepper.optimizer.step()
    return build(settings.config, stepper.state())


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
    start, first = time.time(), replace(RECIPES["add97-0.8"], seed=seed)
    found = train(first, out=runs / f"seed{seed}" / "base", progress=False)
    base = Base.read(found.path)
    settings, out = settings_of(variant, seed, str(found.path)), runs / f"seed{seed}" / variant.replace(" ", "-")
    prompts, trained = Prompts(settings), {}
    if variant in ("declines", "reasons", "joint"):
        result = train(settings, out=out, progress=False)
        model = build(settings.config, result.state)
        trained = {key: result.card[key] for key in ("steps", "checkpoint_step", "stable", "accuracy", "per_part")}
    elif variant == "one operand":
        model, prompts = either_operand(base, settings)
    else:
        model = defended(base, prompts, random=variant != "ablated")
        state = {name: t for name, t in model.state_dict().items() if name in base.weights(settings)}
        mi.toys.save(out / "model.safetensors", settings.config, state, train=base.train)
    measured = measure(model, prompts)
    line = {key: value for key, value in measured.items() if key not in ("found", "acts")}
    if variant == "declines":
        line["relearning"] = relearning(result.state, base, prompts, measured)
    return {"variant": variant, "seed": seed, "trained": trained, **line, "seconds": round(time.time() - start)}


def spread(values: list[float | None]) -> str:
    """Median [range]; what was never reached counts as more than any value."""
    known = [float("inf") if v is None else v for v in values]
    middle, low, high = (f"{x:.3g}".replace("inf", "never") for x in (statistics.median(known), min(known), max(known)))
    return middle if low == high else f"{middle} [{low}, {high}]"


def table() -> None:
    """Print median [range over seeds] of the newest line of every variant and seed, as markdown."""
    lines = [json.loads(line) for line in (RESULTS / "gated.jsonl").read_text().splitlines()]
    newest = {(row["variant"], row["seed"]): row for row in lines}
    groups = {name: [row for (variant, _), row in newest.items() if variant == name] for name in VARIANTS}
    for ablation in ("zero", "mean"):
        print(f"\n{ablation}-ablation\n")
        print(
            "| variant | seeds | k: declines <= 0.5 | k: <= 0.05 | k | declines | sums recovered | open kept | variance |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name, rows in groups.items():
            for k in KS if rows else ():
                first = (
                    [spread([below(row, ablation, tau) for row in rows]) for tau in (0.5, 0.05)] if k == 0 else ["", ""]
                )
                named = [name, len(rows)] if k == 0 else ["", ""]
                print("| " + " | ".join(map(str, [*named, *first, k, *cells(rows, ablation, k)])) + " |")
    for name, rows in groups.items():
        for arm in rows[0]["relearning"]["steps_to_0.95"] if rows and "relearning" in rows[0] else ():
            back = spread([row["relearning"]["steps_to_0.95"][arm] for row in rows])
            at_0 = spread([row["relearning"]["declines"][arm][0] for row in rows])
            print(f"\nrelearning of {name}, {arm}: declines {at_0} at first, >= 0.95 after {back} steps")


def cells(rows: list[dict], ablation: str, k: int) -> list[str]:
    """Declines, sums recovered, open prompts kept and variance at k, each with the controls: mean of the draws, PCA."""
    found = []
    for what in ("declines", "recovered", "kept"):
        at = [{run: curve[k][what] for run, curve in row["curves"][ablation].items()} for row in rows]
        drawn_at = spread([statistics.mean(x for run, x in one.items() if run.startswith("cov")) for one in at])
        found.append(f"{spread([x['directions'] for x in at])} (cov. {drawn_at}, PCA {spread([x['pca'] for x in at])})")
    share = [{run: values[k] for run, values in row["variance"].items()} for row in rows]
    drawn_share = spread([statistics.mean(x for run, x in one.items() if run.startswith("cov")) for one in share])
    return [
        *found,
        f"{spread([x['directions'] for x in share])} (cov. {drawn_share}, PCA {spread([x['pca'] for x in share])})",
    ]


def below(row: dict, ablation: str, tau: float) -> int | None:
    """The first k with at most this rate of declines, on held-out prompts."""
    values = [point["declines"] for point in row["curves"][ablation]["directions"]]
    return next((k for k, value in enumerate(values) if value <= tau), None)


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
        table()
    else:
        for seed in options.seeds:
            for variant in options.variants:
                record("gated", one(variant, seed, options.runs), options.write)
