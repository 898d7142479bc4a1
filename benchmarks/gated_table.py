"""The tables of the gated-answer toy in docs/language_models.md, from benchmarks/results/gated.jsonl."""

import json
from statistics import median

from _tables import HERE, markdown

KS = range(9)
SCORES = {"declines": "declines", "recovered": "sums recovered", "kept": "open prompts kept"}


def gated() -> str:
    """What removing directions does to the gated-answer toy and its defences, and how fast declining comes back."""
    again = []
    for rows in newest_lines().values():
        for arm in rows[0].get("relearning", {}).get("steps_to_0.95", {}):
            steps = middle([row["relearning"]["steps_to_0.95"][arm] for row in rows])
            start = middle([row["relearning"]["declines"][arm][0] for row in rows])
            again.append({"fine-tuned again": ARMS[arm], "declines at first": start, "steps to 0.95": steps})
    return GATED.format(curves=curve_table("zero", (0, 1, 4)), again=markdown(again))


def newest_lines() -> dict[str, list[dict]]:
    """The newest line of each seed, by variant."""
    lines = map(json.loads, (HERE / "results" / "gated.jsonl").read_text().splitlines())
    by_variant: dict[str, list[dict]] = {}
    for (variant, _), row in {(row["variant"], row["seed"]): row for row in lines}.items():
        by_variant.setdefault(variant, []).append(row)
    return by_variant


def curve_table(ablation: str, ks, variance: bool = False) -> str:
    """Medians and ranges over seeds at these k, with the medians of the controls in brackets."""
    found = []
    for variant, rows in newest_lines().items():
        first = {"variant": variant, "seeds": len(rows)}
        for tau in (0.5, 0.05):
            first[f"k for declines at most {tau}"] = middle([fallen(row, tau, ablation) for row in rows])
        for k in ks:
            shown: dict[str, object] = first if k == 0 else dict.fromkeys(first, "")
            line = {**shown, "k": k}
            for what, name in {**SCORES, **({"variance": "variance"} if variance else {})}.items():
                own, drawn, top = (
                    [at(row, run, what, k, ablation) for row in rows] for run in ("directions", "covariance", "pca")
                )
                line[name] = f"{middle(own)} (cov. {middle(drawn, False)}, PCA {middle(top, False)})"
            found.append(line)
    return markdown(found)


ARMS = {
    "never gated": "the base, which has never declined",
    "removed": "the toy with its declining directions out of the weights",
    "covariance": "the toy with as many covariance-drawn directions out of the weights",
}
GATED = """Zero-ablation of the leading k declining directions at every writer, last position; median [range] over seeds,
held-out prompts. In brackets the medians of covariance-drawn subspaces (mean of 5 draws) and of the top principal components.
Directions are found on one half of the training prompts at the site that the other half chooses.

{curves}

`declines` is the recipe. `reasons`: 16 DECLINE tokens that tell finer reasons, after extended refusals
([2505.19056](https://arxiv.org/abs/2505.19056)). `ablated`: fine-tuned with its declining directions of the moment projected
out in half of the steps; `random projections`, its control: covariance-drawn subspaces of the same ranks instead. `one
operand`: one operand in the set is enough, so its number is in no open prompt. `joint`: both learnt from the start, without
pretraining.

How fast does declining come back under the same fine-tuning?

{again}

`python benchmarks/gated.py --write`; mean-ablation, every k and the variance removed: `python benchmarks/gated.py --table`."""


def fallen(row: dict, tau: float, ablation: str) -> float | None:
    """The first k with at most this rate of declines."""
    rates = [point["declines"] for point in row["curves"][ablation]["directions"]]
    return next((k for k, rate in enumerate(rates) if rate <= tau), None)


def at(row: dict, run: str, what: str, k: int, ablation: str) -> float:
    """A rate at k, or the variance removed; of a control the mean over its draws."""
    curves = row["variance"] if what == "variance" else row["curves"][ablation]
    mine = [curve[k] for name, curve in curves.items() if name.split(" ")[0] == run]
    found = mine if what == "variance" else [point[what] for point in mine]
    return sum(found) / len(found)


def middle(values: list[float | None], spread: bool = True) -> str:
    """Median [range]; what was never reached counts as more than any value."""
    known = sorted(float("inf") if v is None else v for v in values)
    shown = [
        "never" if x == float("inf") else f"{x:.2f}".removesuffix(".00") for x in (median(known), known[0], known[-1])
    ]
    return shown[0] if not spread or len(set(shown[1:])) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"
