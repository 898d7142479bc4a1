"""The Fourier analysis as a page and as text in the terminal; nothing is measured here."""

import importlib.metadata
from pathlib import Path
from typing import Any

from mi_ablate import figures
from mi_ablate.fourier_analysis.results import FourierAnalysis
from mi_ablate.report import Section, page

SAYS = {
    "spectra": (
        "Energy of each matrix by frequency, its mean removed. A large share says where to look, not what is used: see the "
        "causal table."
    ),
    "keys": (
        "The published rules disagree, and none has a published threshold; each stands under its name. Losses below are of the "
        "frequencies by `energy` (of W_E) and by `nanda_text` (of the neuron-logit map, the rule that the paper names)."
    ),
    "clusters": (
        "A neuron belongs to the cluster of a frequency if that frequency's linear and quadratic terms hold more than 85 % "
        "of its variance over pairs. `nanda_colab` and `arena` never look at the highest frequency."
    ),
    "attention": (
        "The last query's pattern over pairs: each head's frequency, and the share of the pattern's variance that functions of "
        "one operand, of their sum and of their difference hold in it. A constant pattern has none."
    ),
    "logits": (
        "Share of the logits in cos(w(a+b-c)). `tl_demo` is the cosine similarity with the uncentred logits, `nanda_text` the "
        "share of the variance around the overall mean, `centred` the share around each prompt's mean, which a softmax "
        "does not see (for a cyclic group the squared trace similarity of Chughtai et al.)."
    ),
    "losses": (
        "Loss with the key frequencies alone (restricted) and without them (excluded), in every published definition. A "
        "restricted loss above the full one is no error: the model uses what that variant drops."
    ),
    "verdict": (
        "Gradient symmetricity and distance irrelevance together (Zhong et al. 2023). Each alone misleads: untrained networks "
        "have a distance irrelevance near 1, and symmetricity depends on the architecture first."
    ),
    "causal": (
        "Each frequency removed alone (necessity) and kept alone (sufficiency), beside subspaces drawn from the activations' "
        "covariance, of the same rank. A frequency with energy whose removal changes nothing is inert."
    ),
    "progress": (
        "Along the weights that the run kept, with the key frequencies of the final model (where it has not generalised, the "
        "five largest of its W_E, which are no key frequencies). Phases: memorisation up to the "
        "lowest excluded loss, circuit formation until held-out loss falls below half of its highest, cleanup until held-out "
        "accuracy reaches 0.99."
    ),
}
NO_KEYS = "No key frequencies: {}."


def write(found: FourierAnalysis, path: str | Path, command: str = "mi-ablate fourier") -> Path:
    """Write the self-contained page and return its path."""
    footer = {name: importlib.metadata.version(name) for name in ("transformer-lens", "torch")}
    sections = [
        Section("Summary", "", [summary_rows(found)]),
        Section("Key frequencies", SAYS["keys"], [key_rows(found)]),
        Section("Spectra", SAYS["spectra"], [*_spectra(found), rank_rows(found)]),
        *_neurons(found),
        Section("Attention", SAYS["attention"], [[row for layer in found.attention for row in layer.table()]]),
        Section("Logits", SAYS["logits"], [cosine_rows(found)]),
        Section("Losses", SAYS["losses"], [loss_rows(found)]),
        Section("Clock or Pizza", SAYS["verdict"], [verdict_rows(found), *_reasons(found), circle_rows(found)]),
        Section("Necessity and sufficiency", SAYS["causal"], causal_items(found)),
    ]
    if found.progress:
        drawn = figures.training_progress(found.progress, found.phases)
        said = found.phases["reason"] or "; ".join(f"{_words(k)} until step {v:,}" for k, v in _phases(found))
        sections.append(Section("Progress", SAYS["progress"], [drawn, f"{said[:1].upper()}{said[1:]}."]))
    title = f"{found.settings['model']}: {found.grid.operation} mod {found.grid.modulus} in frequencies"
    return page(path, title, sections, footer={"command": command, "model": found.settings["model"], **footer})


def _phases(found: FourierAnalysis) -> list[tuple[str, int]]:
    return [(name, step) for name, step in found.phases.items() if name != "reason" and step is not None]


def _spectra(found: FourierAnalysis) -> list[Any]:
    drawn = []
    for name, x in found.spectra.items():
        title = f"{name}: Gini coefficient {x.gini:.3f}"
        drawn.append(figures.spectrum(range(1, len(x.shares) + 1), x.shares, found.frequencies, title))
    return drawn


def _neurons(found: FourierAnalysis) -> list[Section]:
    if not found.neurons:
        return []
    rows = [
        {"variant": variant, **{str(k): len(v) for k, v in x.clusters().items()}, "in none": len(x.unassigned())}
        for variant, x in found.neurons.items()
    ]
    return [Section("Neuron clusters", SAYS["clusters"], [rows])]


def _reasons(found: FourierAnalysis) -> list[str]:
    if found.verdict is not None:
        return [f"Verdict: {found.verdict.label}. " + " ".join(found.verdict.reasons)]
    return [f"Verdict: undecided. {found.reasons.get('verdict', '')}"]


def summary_rows(found: FourierAnalysis) -> list[dict[str, Any]]:
    """Return accuracy and loss of each split."""
    return [{"pairs": name, "accuracy": x.accuracy, "loss": f"{x.value:.4g}"} for name, x in found.full.items()]


def key_rows(found: FourierAnalysis) -> list[dict[str, Any]]:
    """Return the key frequencies by every rule, or why there are none."""
    return [
        {"rule": rule, "frequencies": ", ".join(map(str, keys.frequencies)) or NO_KEYS.format(keys.reason)}
        for rule, keys in found.keys.items()
    ]


def rank_rows(found: FourierAnalysis) -> list[dict[str, Any]]:
    """Return the rank measures of every matrix, random ones of W_E's shape last."""
    means = {name: x["mean"] for name, x in found.ranks["random"].items()}
    return [{"matrix": n, **x} for n, x in found.ranks.items() if n != "random"] + [
        {"matrix": "random, as W_E", **means}
    ]


def cosine_rows(found: FourierAnalysis) -> list[dict[str, Any]]:
    """Return the key frequencies, and the largest others, with their cosines and shares of the logits."""
    x = found.cosines
    ks = list(dict.fromkeys([*found.frequencies, *x.top()]))
    named = {"tl_demo": x.cosines, "nanda_text": x.fve, "centred": x.centred}
    return [{"frequency": str(k), **{name: float(v[k - 1]) for name, v in named.items()}} for k in ks]


def loss_rows(found: FourierAnalysis) -> list[dict[str, Any]]:
    """Return every loss with its variant, split and frequencies."""
    rows = [
        {"loss": "full", "value": f"{x.value:.4g}", "accuracy": x.accuracy, "pairs": name}
        for name, x in found.full.items()
    ]
    for rule, losses in found.losses.items():
        for name, x in losses.items():
            if name != "full":
                row = {"loss": _words(name, 1), "value": f"{x.value:.4g}", "accuracy": x.accuracy, "pairs": x.split}
                rows.append(row | {"level": x.level, "frequencies by": rule, "definition": x.rule, "mean": x.bias})
    for k, x in found.each.items():
        row = {
            "loss": "excluded nanda_colab, arena",
            "value": f"{x.value:.4g}",
            "accuracy": x.accuracy,
            "pairs": x.split,
        }
        rows.append(row | {"level": x.level, "frequencies by": f"{k} alone", "definition": x.rule, "mean": x.bias})
    return rows


def verdict_rows(found: FourierAnalysis) -> list[dict[str, Any]]:
    """Return the measures of Zhong et al. with their errors, beside those of the same model with shuffled weights."""
    rows: list[dict[str, Any]] = []
    shuffled = {} if found.verdict is None else found.verdict.untrained
    drawn = dict(found.symmetricity)
    if found.verdict is not None:
        drawn["random"] = found.verdict.gradient_symmetricity
    for draw, x in drawn.items():
        row = {"measure": f"gradient symmetricity, {draw} draw of {x.triples:,}", "value": x.value}
        rows.append(
            row | {"standard error": x.standard_error, "shuffled weights": shuffled.get("gradient_symmetricity")}
        )
    row = {"measure": "distance irrelevance", "value": found.distance_irrelevance, "standard error": None}
    rows.append(row | {"shuffled weights": shuffled.get("distance_irrelevance")})
    circles = None if found.circularity is None else found.circularity.value
    return [*rows, {"measure": "circularity", "value": circles, "standard error": None, "shuffled weights": None}]


def circle_rows(found: FourierAnalysis) -> list[dict[str, Any]]:
    """Return the correlations of each isolated circle's logits with Zhong et al.'s formulas."""
    return [
        {"circle alone": str(q.frequency), "rho clock": q.clock, "rho pizza": q.pizza, "rho pizza_code": q.pizza_code}
        for q in found.circles
    ]


def causal_items(found: FourierAnalysis) -> list[Any]:
    """Return the causal tables, and which frequencies are inert."""
    if not found.causal:
        return [NO_KEYS.format(found.reasons.get("key_frequencies", "none was found"))]
    items: list[Any] = []
    for level, x in found.causal.items():
        rows = [{**row, "frequency": str(row["frequency"])} for row in x.table()]
        items += [f"At the {level}; clean loss {x.clean['loss']:.4g}.", rows]
        inert = ", ".join(map(str, x.inert()))
        items += [f"Energetic but inert at the {level}: {inert}."] if inert else []
    return items


def print_summary(found: FourierAnalysis) -> None:
    """Print the short summary."""
    from rich.console import Console

    console = Console(highlight=False)
    splits = ", ".join(f"{n} {x.accuracy:.4f} (loss {x.value:.3e})" for n, x in found.full.items())
    console.print(f"[bold]{found.settings['model']}[/bold]  {found.grid!r}\naccuracy: {splits}", soft_wrap=True)
    if found.reasons.get("key_frequencies"):
        console.print(NO_KEYS.format(found.reasons["key_frequencies"]), soft_wrap=True)
    for row in key_rows(found) if found.frequencies else []:
        console.print(f"key frequencies, {row['rule']}: {row['frequencies']}", soft_wrap=True)
    for rule, losses in found.losses.items():
        words = ", ".join(f"{_words(name, 1)} {x.value:.3e}" for name, x in losses.items() if name != "full")
        console.print(f"losses, frequencies by {rule}: {words}", soft_wrap=True)
    if found.frequencies:
        share = float(found.cosines.fve[[k - 1 for k in found.frequencies]].sum())
        console.print(f"cos(w(a+b-c)) of the key frequencies: {share:.4f} of the logits' variance", soft_wrap=True)
    for row in verdict_rows(found):
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        error = f" ± {row['standard error']:.4f}" if row["standard error"] else ""
        console.print(f"{row['measure']}: {value}{error}", soft_wrap=True)
    console.print("\n".join(_reasons(found)), soft_wrap=True)
    for level, x in found.causal.items():
        inert = ", ".join(map(str, x.inert())) or "none"
        lost = ", ".join(f"{k} {x.removed[k]['loss']:.2e}" for k in x.frequencies)
        console.print(f"loss without one frequency, {level}: {lost}; energetic but inert: {inert}", soft_wrap=True)
    if found.progress:
        said = found.phases["reason"] or ", ".join(f"{_words(k)} until {v:,}" for k, v in _phases(found))
        console.print(f"phases: {said}", soft_wrap=True)


def _words(name: str, count: int = -1) -> str:
    return name.replace("_", " ", count)
