"""What the adder holds its numbers as: free periods and helices beside their controls, of three seeds and an untrained model.

    python benchmarks/adder.py --write       # trains the seeds that runs/adder lacks, then measures: a line a model
    python benchmarks/adder.py --card        # writes the tables of the newest lines into the shipped model's card

For each site, the periods come from `free_periods`, which assumes none; a period counts where it takes a larger share of what
the line and the earlier periods leave than any of 20 shuffles. The helix of these periods stands beside a polynomial of as
many columns, as many principal components, the helix of shuffled numbers, the line alone, and the helix of base 10.
Everything is measured on all 10,000 problems, in float64 from per-number means.
"""

import argparse
import re
import time
import warnings
from pathlib import Path

import torch
from _tables import markdown, newest
from _timing import record

import mi_ablate as mi
from mi_ablate import adders
from mi_ablate.adders.shipping import REPORT

SEEDS, COUNT, DRAWS = (0, 1, 2), 6, 20
"""Trainings; periods searched; shuffles of each control."""
SITES = (
    ("W_E", "a", "the embedding of 0 .. 99"),
    ("blocks.0.hook_resid_post", "a", "the token a, between the layers"),
    ("blocks.0.hook_resid_post", "b", "the token b, between the layers"),
    ("blocks.0.hook_resid_post", "answer", "the token =, between the layers, by a + b"),
    ("blocks.1.hook_resid_post", "answer", "the token =, at the end, by a + b"),
)
PAIRS = ("blocks.0.hook_resid_mid", "blocks.0.hook_resid_post", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post")
BASES = ("a,b", "answer", "a,b,answer")


def models(runs: Path, seeds: list[int]):
    """Yield name, hooked model and training card of each seed, and of an untrained model."""
    for seed in seeds:
        folder, settings = runs / f"seed{seed}", adders.Settings(seed=seed)
        command = f"python -m mi_ablate.adders --seed {seed} --steps {settings.steps}"
        if not (folder / "model.safetensors").is_file():
            adders.save(adders.train(settings), folder, command)
        yield f"seed {seed}", mi.load_model(folder), (folder / "README.md").read_text()
    torch.manual_seed(0)
    yield "untrained", mi.load_model(adders.save(untrained(), runs / "untrained", "untrained")), ""


def untrained():
    """A training of no steps, as one that can be saved."""
    settings = adders.Settings(steps=0)
    model, apart = adders.fresh(settings).eval(), adders.held_out(settings.share, settings.split_seed)
    return adders.Trained(model, settings, (), adders.scores_of(model, apart), 0.0)


def measure(model) -> dict[str, object]:
    """Accuracy, what each site holds, and how much of = is a, b and a + b."""
    sums = mi.arithmetic.problems(model, "add", template="{a}+{b}=")
    apart = adders.held_out(adders.Settings.share, adders.Settings.split_seed)
    order = 100 * sums.inputs["a"] + sums.inputs["b"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an untrained model gets none right, and that is what is reported
        right = mi.arithmetic.asked(model, sums).correct
    found = [site(model, sums, *where[:2]) for where in SITES]
    fits = mi.arithmetic.pair_fits(model, sums, PAIRS, BASES, found[0]["periods"])
    accuracy = {
        "held out": float(right[apart[order]].double().mean()),
        "training": float(right[~apart[order]].double().mean()),
    }
    return {"accuracy": accuracy, "sites": found, "pairs": fits.table()}


def site(model, sums, name: str, of: str) -> dict[str, object]:
    """Periods, and R² of helices and their rivals, of the means of one number at one site."""
    if name == "W_E":
        means = mi.arithmetic.embedding_means(model, sums.numerals)
        means = means.kept(means.values < adders.text.OPERANDS)
    else:
        means = mi.arithmetic.number_means(model, sums, name, of=of)
    free = mi.arithmetic.free_periods(means, count=COUNT, draws=DRAWS)
    helix = mi.arithmetic.baselines(means, free.periods, draws=DRAWS)
    ten = mi.arithmetic.helix_fits(means)
    line = mi.arithmetic.linearity(means, draws=DRAWS)
    return {
        "site": name,
        "of": of,
        "periods": free.periods,
        "gains": free.gains.tolist(),
        "stands_out": free.stands_out,
        "rank": helix.rank,
        "r2": {method: float(x[0]) for method, x in helix.r2.items()},
        "loo": {method: float(x[0]) for method, x in helix.loo.items()},
        "line": float(mi.arithmetic.design_fits(means, mi.linear(means.values), "line").r2_means[0]),
        "pc1_line": float(line.r2[0]),
        "base 10": {"r2": float(ten.r2_means[0]), "loo": float(ten.loo[0]), "rank": ten.rank},
    }


def card() -> str:
    """The tables, as markdown."""
    lines = dict(sorted(newest("adder", "model").items()))
    trainings = []
    for name, row in lines.items():
        accuracy = row["accuracy"]
        trainings.append(
            {
                "model": name,
                "steps to 0.99 of the held-out sums": row["reached"],
                "held out, right": f"{accuracy['held out']:.4f}",
                "training, right": f"{accuracy['training']:.4f}",
            }
        )
    return TEXT.format(
        count=COUNT,
        draws=DRAWS,
        trainings=markdown(trainings),
        periods=markdown([periods(name, found, i) for i in range(len(SITES)) for name, found in lines.items()]),
        fits=markdown([fitted(name, found, i) for i in range(len(SITES)) for name, found in lines.items()]),
        pairs=markdown([pair(name, row["pairs"], at) for at in PAIRS for name, row in lines.items()]),
    )


def periods(model: str, row: dict, i: int) -> dict[str, str]:
    """Periods of a site by falling gain, those that stand out."""
    found = row["sites"][i]
    rows = sorted(zip(found["gains"], found["periods"], found["stands_out"], strict=True), reverse=True)
    shown = ", ".join(f"{period:.4g} ({gain:.2f})" for gain, period, out in rows if out)
    return {"site": SITES[i][2], "model": model, "line": f"{found['line']:.2f}", "periods (R² added)": shown or "none"}


def fitted(model: str, row: dict, i: int) -> dict[str, str]:
    """R² of the helix and its rivals at a site."""
    found = row["sites"][i]
    r2, loo, ten = found["r2"], found["loo"], found["base 10"]
    line = {"site": SITES[i][2], "model": model, "helix of its periods": f"{r2['helix']:.2f} ({loo['helix']:.2f})"}
    line["polynomial"] = f"{r2['polynomial']:.2f} ({loo['polynomial']:.2f})"
    line |= {"PCA": f"{r2['pca']:.2f}", "shuffled": f"{r2['shuffled']:.2f} ({loo['shuffled']:.2f})"}
    return line | {"base 10": f"{ten['r2']:.2f} ({ten['loo']:.2f})"}


def pair(model: str, rows: list[dict], at: str) -> dict[str, str]:
    """How much of a site at = each basis explains."""
    found = {row["basis"]: row for row in rows if row["site"] == at}
    cells = {f"helix({name})": f"{found[name]['r2']:.2f} (PCA {found[name]['pca']:.2f})" for name in BASES}
    return {"site": f"`{at}`", "model": model, **cells}


TEXT = """
Measured by `python benchmarks/adder.py --write` on all 10,000 problems; three trainings that differ in their seed, and the
same model before training. The shipped model is seed 0. Not every seed generalises within the steps: those that do not know the
training problems by heart.

In short, of the shipped model: hardly a line, and circles of periods that are not those of base ten, but for 2, the parity. Two
of the embedding's periods, 3.13 and 2.00, are the strongest of a + b at the end of the token =, where a polynomial has little.
Seed 2, which also adds nearly always, has the parity and not 3.13; seed 1, which does not, has neither. At the token =
helices of a and b come first, and a helix of a + b takes their place from the first MLP on. Long periods that are closer than
1 / 100 in frequency, such as 55.9 and 53.4, are one feature that is no sine.

{trainings}

Which periods? None is assumed ({count}, one after the other, wherever they explain most of what the line and the earlier ones
leave). Listed are those that took a larger share than the best period of any of {draws} shuffles, with what each added to R²,
which is over the means of the numbers; "line" is the R² of a straight line.

{periods}

How good is a helix of all {count} periods? R² (in brackets: each number predicted by the fit without it) beside a polynomial
of as many columns, as many principal components, the helix of shuffled numbers, and the helix of base 10 (2, 5, 10, 100; 8
dimensions). The periods were chosen on the same means, so that the first column is the best case of a helix.

{fits}

At the token = the means of neighbouring sums are averages over nearly the same operands, so they lie on a smooth curve whatever
the model does: before training, too, long periods stand out there, and a polynomial does as well as a helix. So only short
periods, and what a helix has beyond the polynomial, are the trained model's own.

What is at the token `=`? R² over the prompts of helices with the periods of the embedding, beside as many principal components.

{pairs}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="append to benchmarks/results/")
    parser.add_argument("--card", action="store_true", help="write the tables into the shipped model's card")
    parser.add_argument("--runs", type=Path, default=Path("runs/adder"), help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.card:
        file = adders.FOLDER / "README.md"
        file.write_text(rendered(file.read_text()))
        return
    for name, model, said in models(options.runs, options.seeds):
        start = time.time()
        reached = next(iter(re.findall(r"after (\d+) steps", said)), "never")
        record(
            "adder",
            {"model": name, "reached": reached, **measure(model), "seconds": time.time() - start},
            options.write,
        )


def rendered(said: str) -> str:
    """The card with the tables in place of those that it has."""
    return said.split(REPORT)[0] + REPORT + card()


if __name__ == "__main__":
    main()
