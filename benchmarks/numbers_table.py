"""The tables of docs/numbers.md: what the two commands find, and how long the large shapes take."""

from _tables import markdown, newest

SHORT = {
    "a helix of the answer": "helix of the answer at the last token (polynomial)",
    "heads that bring": "heads in their roles (share called mixed)",
    "MLPs whose output": "MLPs as helices (shuffled)",
    "neurons that are circles": "neurons as circles (shuffled)",
    "neurons that match": "neurons that match a rule (shuffled)",
}


def clocks() -> str:
    """One row a model: the evidence of `mi-ablate clock`, each value with its control in brackets."""
    rows, writes = [], []
    for name, found in newest("clocks", "model").items():
        row = {"model": name, "right": f"{found['accuracy']:.3f}"}
        row["periods"] = ", ".join(f"{period:.4g}" for period in found["periods"])
        for start, title in SHORT.items():
            at = next((x for what, x in found["evidence"].items() if what.startswith(start)), None)
            row[title] = "-" if at is None else pair(*at[:2])
        rows.append({**row, "verdict": found["verdict"]})
        if found["swaps"]:
            at = found["swaps"]["a"]
            writes.append({"model": name, **{method: f"{gain:.2f}" for method, gain in at.items()}})
    return (
        markdown(rows)
        + "\n\nWritten on the token of a, numbers held out in five parts: the largest mean rise of the clean answer's logit "
        "over the layers.\n\n"
        + markdown(writes)
        + "\n\n`python benchmarks/clocks.py --write`; 3,000 problems, 100 pairs, one thread. Shares of the clean vectors' "
        "effect or of the accuracy of true values, control in brackets. The rules of the verdict are on the page of `mi-ablate "
        "clock`: bounds of 0.5 and of 0.1 above the control, at least three lines."
    )


def pair(value: float | None, beside: float | None) -> str:
    return " ".join(["-" if value is None else f"{value:.2f}", "" if beside is None else f"({beside:.2f})"]).strip()


def adder() -> str:
    """Accuracy of three trainings, and what the embedding is, each number predicted by the fit without it."""
    rows = []
    for name, found in newest("adder", "model").items():
        at = next(site for site in found["sites"] if site["site"] == "W_E")
        out = [T for T, above in zip(at["periods"], at["stands_out"]) if above]
        row = {"training": name, "held-out sums": f"{found['accuracy']['held out']:.4f}"}
        row["periods of the embedding that stand out"] = ", ".join(f"{T:.4g}" for T in out) or "none"
        for method in ("helix", "polynomial", "shuffled"):
            row[f"{method}, left out"] = f"{at['loo'][method]:.2f}"
        rows.append({**row, "base 10, left out": f"{at['base 10']['loo']:.2f}"})
    return markdown(rows) + (
        "\n\n`python benchmarks/adder.py --write`; all sites are in the model's "
        "[card](../src/mi_ablate/adders/adder/README.md). Periods are chosen on the means that they are scored on, so the "
        "helix's column is its best case."
    )


def shapes() -> str:
    """Seconds of one thread at GPT-J's shapes."""
    helix, neurons = newest("helix", "what"), newest("neurons", "what")
    fits, streaming = helix["all sites"], helix["streaming"]
    shape = f"{fits['sites']} sites x {fits['numbers']} numbers x {fits['width']}"
    rows = [line(f"helix fits, {shape}", fits, "helix_fits", "the slow definition")]
    what = (
        f"per-number means, 200 prompts x 28 sites x 4096 ({streaming['megabytes']:.0f} MB kept, however many prompts)"
    )
    rows.append({"what": what, "seconds": f"{streaming['table']['200 prompts']['median_s']:.2f}", "differs by": "-"})
    exact = "4,587 neurons x 10,000 pairs, exact fits with their shuffled control"
    rows.append(line(exact, neurons["fits"], "exact, 4,587 neurons with control", "one least squares a neuron"))
    direct = neurons["direct effects"]
    text = f"direct effects of 4,587 neurons x {direct['pairs']} pairs, d 4096"
    rows.append(line(text, direct, "batched, 4,587 neurons", "the definition"))
    hours = neurons["fits"]["descent_all_s"] / 3600
    return (
        markdown(rows)
        + f"\n\nProcess CPU time, one thread. The published gradient descent would take {hours:.0f} hours here (from "
        "4 neurons, 250 epochs; its notebook says 6 h 25 min); the published direct effects took two hours. "
        "`python benchmarks/helix.py --write`, `neurons.py`."
    )


def line(what: str, found: dict, name: str, other: str) -> dict[str, str]:
    row = {"what": what, "seconds": f"{found['table'][name]['median_s']:.2f}"}
    return {**row, "differs by": f"{found['largest_difference']:.0e} from {other}"}
