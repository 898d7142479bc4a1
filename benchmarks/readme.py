"""Write the tables of the README and the docs from the newest lines in benchmarks/results/: python benchmarks/readme.py

``--figure`` also draws docs/answer_circle.png (needs Chromium).
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

from _tables import HERE, markdown, newest
from gated_table import gated
from numbers_table import adder, clocks, shapes
from study_table import resistance

README = HERE.parent / "README.md"
ABOUT = """Written by `python benchmarks/readme.py` from the cards in the files' headers.

add97 and nanda113 were trained by earlier versions of the trainer, which sums in another order (loss and gradients of a step
agree to 1e-5), and late training amplifies rounding: a rerun of add97 with the same seed grokked at step 2,000 instead of
1,800 and had no stable step within 5,000. So `mi-ablate train NAME` repeats a recipe, not these weights to the bit, and the
recipe of add97 now stops at its first stable step, 10,000 at most (step 8,700 with today's trainer, held-out 0.9997).
"""
ZOO = HERE.parent / "src" / "mi_ablate" / "toys" / "zoo"


def spread(scores: dict) -> str:
    low, high = f"{scores['low']:.3f}", f"{scores['high']:.3f}"
    return f"{scores['mean']:.3f}" + ("" if low == high else f" [{low}, {high}]")


def results() -> str:
    """Removal and writing, one row a model."""
    removal, writing = [], []
    for name, found in newest("main_job", "model").items():
        at = {(row["where"], row["ablation"]): row for row in found["removal"]}
        row = {"model": name, "accuracy": f"{found['accuracy']:.4f}"}
        row["top frequencies of W_E"] = ", ".join(str(k["frequency"]) for k in found["key_frequencies"][:5])
        for ablation in ("zero", "mean", "resample"):
            k = at["last residual", ablation]["k_at_95"]
            row[f"k@95% {ablation} (cov., PCA)"] = f"{text(k['edited'])} ({text(k['covariance'])}, {text(k['pca'])})"
        k = at["every site", "zero"]["k_at_95"]
        row["every site, zero"] = f"{text(k['edited'])} ({text(k['covariance'])}, {text(k['pca'])})"
        removal.append(row)
        circle = {row["write"]: row for row in found["answer_circle"]}
        line = {"model": name}
        for label in ("+1", "+5", "+20"):
            line[f"write {label}"] = f"{circle[label]['accuracy']:.3f}"
        line["shuffled labels (+5)"] = spread(circle["+5"]["controls"]["shuffled labels"])
        turned = circle.get("turned by +5")
        line["turned by +5"] = f"{turned['accuracy']:.3f}" if turned else "-"
        line["turned, cov.-drawn planes"] = spread(turned["controls"]["covariance-drawn"]) if turned else "-"
        ablated = circle["the mean (ablation): own answer"]
        line["mean-ablated"] = f"{ablated['accuracy']:.3f}"
        line["cov.-drawn, mean-ablated"] = spread(ablated["controls"]["covariance-drawn"])
        writing.append(line)
    return (
        "How many directions can be removed before accuracy first falls under 95 % of its clean value, beside "
        "covariance-drawn subspaces (mean of 20 draws; 5 at every site) and the top principal components. `40+`: never "
        "within the curve; `4-5`: 5 was not tested.\n\n"
        + markdown(removal)
        + "\n\nAccuracy on the written answer when the answer circle (10 frequencies, last residual, last position) is "
        "written or turned, over all prompts; no fit has seen the answers that it writes. Brackets: range over 5 draws of "
        "the control. Mean-ablation is scored on the prompt's own answer.\n\n"
        + markdown(writing)
        + "\n\nOne training run a model, so no interval over seeds; over all prompts there is no sampling error. "
        "`python benchmarks/main_job.py --write` makes these numbers (one model: `mi-ablate demo --model NAME`); models "
        "named `*_mod113` and `zhong_*` were trained and published by others."
    )


def text(k: dict | None) -> str:
    return "-" if k is None else k["text"]


def speed() -> str:
    """One row a claim."""
    rows = []
    for model, found in newest("hook_overhead", "model").items():
        table = found["table"]
        for name in ("mi_ablate.attached", "run_with_hooks, hand-written", "run_with_hooks, d x d projector"):
            at = table[name]
            what = f"{found['hooks']} rank-1 ablations, {model}, {name}"
            rows.append({"what": what, "against": "the same forward without hooks", "CPU time": ratio(at)})
    for where, found in newest("removal", "where").items():
        if "table" in found and "run_with_hooks loop" in found["table"]:
            at = found["table"]["run_with_hooks loop"]
            rows.append({"what": f"run_with_hooks loop, {where}", "against": "removal_curve", "CPU time": ratio(at)})
        else:
            what = f"run_with_hooks loop, {where} (extrapolated from 3 points)"
            value = f"{found['ratio_extrapolated']:.1f} x"
            rows.append({"what": what, "against": "removal_curve", "CPU time": value})
    for found in newest("train_step", "benchmark").values():
        at = dict(zip(("ratio", "ratio_low", "ratio_high"), (found["ratio"], *found["ratio_quartiles"])))
        what = "training step, 2 layers, d 128, batch 512: HookedTransformer with fused AdamW"
        rows.append({"what": what, "against": "`mi_ablate.toys.train`", "CPU time": ratio(at)})
    for found in newest("stacked_step", "benchmark").values():
        for name, what in (("hooked_transformer", "HookedTransformer"), ("trainer", "`mi_ablate.toys.train`")):
            at = found["times_faster_than"][name]
            what = f"a step of each of {found['models']} models, one by one: {what}"
            rows.append({"what": what, "against": "the same in one stack, on a CPU", "CPU time": ratio(at)})
    rows += abliteration()
    return (
        markdown(rows)
        + grids()
        + "\n\nOne thread, process CPU time, interleaved in shuffled order, median [quartiles] of the ratio a round; each "
        "script checks the answer before it times. `python benchmarks/hook_overhead.py --write`, `removal.py`, "
        "`train_step.py`, `stacked_step.py`, `candidates.py`, `ablate.py`, `bake.py`; the lines are in `benchmarks/results/`."
    )


def abliteration() -> list[dict]:
    """Finding candidates and baking a direction at GPT-2 small's size."""
    measured = newest("candidates", "what")
    found, grown = measured.pop("time"), next(iter(measured.values()))["grown"]
    most = max(grown["find.candidates"], key=int)
    rows = []
    for name in ("find.candidates", "cache everything, then mean"):
        memory = f"grows the process by {grown[name][most]:.0f} MiB with {most} prompts"
        what = f"{found['candidates']} candidate directions, GPT-2 small size, {name} ({memory})"
        rows.append({"what": what, "against": "the bare forward passes", "CPU time": ratio(found["table"][name])})
    whole = newest("ablate", "what")
    timed, grown = whole.pop("time"), next(iter(whole.values()))["grown"]
    few, many = sorted(grown, key=int)
    what = (
        f"the whole of `mi-ablate ablate`, GPT-2 small size, {timed['prompts']}, {timed['candidates']} candidates (grows the "
        f"process by {grown[few]:.0f} MiB with {few} prompts, {grown[many]:.0f} MiB with {many})"
    )
    against = f"ordinary forward passes of as many prompts ({timed['prompt_passes']:,})"
    rows.append({"what": what, "against": against, "CPU time": f"{timed['ratio']:.2f} x (one run)"})
    for baked in newest("bake", "benchmark").values():
        ours = baked["table"]["mi_ablate.bake_"]
        what = f"one direction baked into {baked['model']}, in float64: {ours['median_s']:.2f} s"
        rows.append({"what": what, "against": "a loop over the weights in float32", "CPU time": ratio(ours)})
    return rows


def grids() -> str:
    """Steps per second of a grid on each engine, and what kills did to one."""
    text = ""
    for found in newest("engines", "benchmark").values():
        rows = [
            {"engine": name, "steps a second": f"{at['steps_per_second']:.1f} [{at['low']:.1f}, {at['high']:.1f}]"}
            for name, at in found["engines"].items()
        ]
        text += (
            f"\n\nA grid of two such models, {found['steps']} steps each, in wall-clock time on {found['cores']} cores, median "
            f"[range] of {found['rounds']} rounds; a new local worker starts in every round, Ray's stay (stacks are for GPUs, "
            "where the speed is not measured): `python benchmarks/engines.py --write`.\n\n" + markdown(rows)
        )
    for found in newest("kills", "benchmark").values():
        hit = found["hit"]
        text += (
            f"\n\nA grid of {found['cells']} small models, killed {found['kills']} times at random moments "
            f"({hit['command']} times the command, {hit['worker']} times a worker): its records "
            f"{'equal' if found['equal'] else 'DIFFER from'} those of an uninterrupted run: "
            "`python benchmarks/kills.py --write`."
        )
    return text


def ratio(at: dict) -> str:
    return f"{at['ratio']:.2f} x [{at['ratio_low']:.2f}, {at['ratio_high']:.2f}]"


DOCS = HERE.parent / "docs"
PAGES = {
    README: {"study": resistance, "results": results, "speed": speed},
    DOCS / "language_models.md": {"gated": gated},
    DOCS / "numbers.md": {"clocks": clocks, "adder": adder, "shapes": shapes},
}
"""Which tables stand in which page."""


def rendered(page: Path) -> str:
    """Return the page with its tables written anew."""
    text = page.read_text()
    for marker, body in PAGES[page].items():
        pattern = rf"(<!-- {marker}: [^>]*-->\n).*?(<!-- end of {marker} -->)"
        table = body()
        text, count = re.subn(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"{page.name} has {count} places marked for {marker}.")
    return text


def zoo() -> str:
    """The page of the shipped models, from the cards in their headers."""
    from mi_ablate._files import read

    parts = ["# The shipped models\n", ABOUT]
    for path in sorted(ZOO.glob("*.safetensors")):
        card = read(path)[1]
        shape, training = card["config"], card["training"]
        grok = card["grok_step"]
        grok = ", ".join(f"{k} {v}" for k, v in grok.items()) if isinstance(grok, dict) else grok
        seconds = card["cpu_seconds"] + card.get("base", {}).get("cpu_seconds", 0)
        rows = {
            "task": f"{', '.join(shape['operations'])} mod {shape['modulus']}, `{shape['layout']}`" + gate(shape),
            "model": f"{shape['n_layers']} layers, d_model {shape['d_model']}, {shape['n_heads']} heads, d_mlp "
            f"{shape['d_mlp']}, {shape['act_fn']}, norm {shape['normalization']}, biases {shape['biases']}",
            "training": f"AdamW lr {training['learning_rate']}, betas {tuple(training['betas'])}, weight decay "
            f"{training['weight_decay']}, batch {training['batch_size'] or 'all'}, {training['train_fraction']:.0%} of "
            f"the pairs, init {training['init']}",
            "seeds": f"model {training['seed']}, split {training['split_seed']}",
            "steps": f"{card['steps']}; these weights are of step {card['checkpoint_step']}",
            "stable": f"{card['stable']} ({card['stable_rule']})",
            "grok step": f"{grok} ({card['grok_rule']})",
            "accuracy": ", ".join(f"{k} {v:.4f}" for k, v in flat(card["accuracy"]).items()),
            "versions": ", ".join(f"{k} {v}" for k, v in card["versions"].items()),
            "made by": f"`{card['command']}`, {seconds / 60:.0f} CPU minutes",
        }
        rows |= fine_tuned(card) if "base" in card else {}
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        parts.append(f"## {path.stem}\n\n| | |\n|---|---|\n{table}\n")
    return "\n".join(parts)


def gate(shape: dict) -> str:
    """What a gated toy declines, for the row of its task."""
    groups = shape.get("gate") or []
    numbers = sum(map(len, groups))
    return f"; both operands among {numbers} numbers: one of {len(groups)} DECLINE tokens" if groups else ""


def fine_tuned(card: dict) -> dict[str, str]:
    """Two rows of a toy that was fine-tuned from a base."""
    base, parts = card["base"], card.get("per_part", {})
    return {
        "fine-tuned from": f"{base['name']}, seed {base['seed']}, step {base['checkpoint_step']}, held-out accuracy "
        f"{base['held_out_accuracy']:.4f}; the steps above are those of the fine-tuning",
        "held-out accuracy": ", ".join(f"{name} {part['accuracy']['held_out']:.4f}" for name, part in parts.items()),
    }


def flat(scores: dict, prefix: str = "") -> dict[str, float]:
    """Nested accuracies by dotted names."""
    found = {}
    for key, value in scores.items():
        found |= flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {prefix + key: value}
    return found


def figure() -> None:
    """Draw the answer circle of add97 with headless Chromium."""
    import mi_ablate as mi
    from mi_ablate.demo import page as as_page
    from mi_ablate.demo import take_apart
    from mi_ablate.studies.pictures import draw

    found = take_apart(mi.toys.load("add97"))
    first = next(iter(found.picture["planes"]))
    drawn = {key: {first: found.picture[key][first]} for key in ("planes", "predicted")}
    picture = as_page.picture(replace(found, picture={**found.picture, **drawn})).update_layout(height=450)
    draw(picture, HERE.parent / "docs" / "answer_circle.png", width=1150, scale=1.5)


if __name__ == "__main__":
    (ZOO / "README.md").write_text(zoo())
    for page in PAGES:
        page.write_text(rendered(page))
    if "--figure" in sys.argv:
        figure()
