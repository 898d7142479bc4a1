"""The figures and tables of the page, from what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate import figures
from mi_ablate._shares import share_intervals
from mi_ablate.arithmetic import Swaps
from mi_ablate.arithmetic.circuit.components import EFFECTS, ComponentEffects, mean_intervals
from mi_ablate.arithmetic.circuit.paths import PathEffects
from mi_ablate.clock_analysis.circuit import LEAST, Heads, Mlps, numbered
from mi_ablate.clock_analysis.evidence import Evidence
from mi_ablate.clock_analysis.last_token import CONTROLS, LastToken
from mi_ablate.clock_analysis.neurons import Neurons
from mi_ablate.clock_analysis.readout import Readout
from mi_ablate.clock_analysis.rival import Rival

ROWS = 15
"""Of tables that list what is largest."""
_METHODS = ("live", "true", "fitted", "shuffled", "random")


def last_items(x: LastToken) -> list[Any]:
    """Return R² and gains by layer, and each method at the layer where it does most."""
    layers = [site.split(".")[1] for site in x.fits.sites]
    r2 = {f"helix({basis})": row for basis, row in zip(x.fits.bases, x.fits.r2)}
    r2 |= {f"pca {rank}": row for rank, row in sorted(dict(zip(x.fits.ranks, x.fits.pca)).items())}
    items: list[Any] = [
        figures.lines(
            layers, {**r2, "shuffled": x.shuffled}, controls=["shuffled"], axes=("layer", "R² over prompts"),
            title="How much of the last token's residual stream each fit holds",
        )
    ]  # fmt: skip
    if x.swaps is None:
        return items
    means, ends = x.swaps.mean(), x.swaps.intervals()
    rows = {name: i for i, name in enumerate(x.swaps.methods)}
    drawn = figures.lines(
        layers, {name: means[i] for name, i in rows.items()},
        bands={name: ends[:, i] for name, i in rows.items() if name not in CONTROLS},
        controls=[name for name in CONTROLS if name in rows], axes=("layer", "logit difference"),
        title="What comes back of the clean answer where each fit is written at the last token",
    )  # fmt: skip
    return [drawn, _most(x, x.swaps), *items]


def _most(x: LastToken, swaps: Swaps) -> list[dict[str, Any]]:
    found, best = [], swaps.best()
    for name, i in ((name, i) for i, name in enumerate(swaps.methods)):
        s = swaps.sites.index(best[name]["site"])
        row = {
            "written": name,
            "most behind layer": best[name]["site"].split(".")[1],
            "logit difference": best[name]["mean"],
        }
        row |= {"low": best[name]["low"], "high": best[name]["high"], "share of full": x.share(name)}
        row |= {measure: float(swaps.mean(measure)[i, s]) for measure in ("accuracy", "probability")}
        found.append(row)
    return found


def layer_items(effects: Mapping[str, ComponentEffects]) -> list[Any]:
    """Return total and direct effects by layer, and their sums."""
    first = next(iter(effects.values()))
    layers = [str(c.layer) for c in first.components]
    series, bands = {}, {}
    for kind, x in effects.items():
        for effect, values in (("total", x.total), ("direct", x.direct)):
            name = f"{'MLPs' if kind == 'mlps' else kind}, {effect}"
            series[name], bands[name] = values.mean(1), mean_intervals(values)
    drawn = figures.lines(
        layers, series, bands=bands if len(first.gap) > 1 else None, axes=("layer", "logit difference"),
        title="Effects of each layer's attention and MLP at the last token",
    )  # fmt: skip
    rows = []
    for x in effects.values():
        row = x.summed()[0]
        row = {"summed over layers": row["kind"], "norm": row["norm"]} | {
            name: f"{row[name]:.2f} [{row[f'{name} low']:.2f}, {row[f'{name} high']:.2f}]" for name in EFFECTS
        }
        rows.append({**row, "another pair's, total": f"{float(x.controls['another pair'].mean(0).sum()):.2f}"})
    return [drawn, rows]


def head_items(x: Heads) -> list[Any]:
    """Return the map of total effects, the named heads with their roles, and the share against the number of heads."""
    n_layers = 1 + max(c.layer for c in x.effects.components)
    means = x.effects.total.mean(1).reshape(n_layers, -1)
    values = means / means.abs().max()
    drawn = figures.heat(
        values[..., None], [str(i) for i in range(n_layers)], [str(i) for i in range(values.shape[1])],
        axes=("layer", "head"), label="relative effect", controls={"logit difference": means[..., None]},
        title="Total effect of each head at the last token, relative to the largest",
    )  # fmt: skip
    items: list[Any] = [drawn, *_roles(x), _share_lines(x)]
    if x.patterns is not None:
        names = [f"{numbered(c)} {_role(x, i)}".strip() for i, c in enumerate(x.named[: len(x.patterns)])]
        items += ["Attention of the first of them on one problem:", figures.attention(x.patterns, x.text, names)]
    return items


def _role(x: Heads, i: int) -> str:
    if x.roles is None:
        return ""
    return x.roles.labels[x.roles.heads.index(x.named[i])]


def _roles(x: Heads) -> list[Any]:
    if x.roles is None:
        return []
    rows = []
    for row in x.roles.table():
        shown = {"head": row["head"].removeprefix("L").replace("H", "."), "role": row["label"]}
        rows.append(shown | {k: f"{v:.2f}" for k, v in row.items() if k not in ("head", "label")})
    m, shares = x.roles.mixed, x.roles.shares.tolist()
    said = (
        f"Roles, the most confident first. Acting in their roles alone the heads keep {shares[m]:.2f} of their effect with "
        f"{m} of them called mixed ({shares[0]:.2f} with none, {shares[-1]:.2f} with all)."
    )
    return [said, rows]


def _share_lines(x: Heads) -> Any:
    curve = x.sets.shares_of_curve()
    ks = list(x.ks)
    series = {"by total effect": curve[[k - 1 for k in ks]], "random heads": x.random.mean(1)}
    low, high = (torch.tensor([_interval(x, k)[end] for k in ks], dtype=torch.float64) for end in (0, 1))
    bands = {
        "by total effect": torch.stack([low, high]),
        "random heads": torch.stack([x.random.amin(1), x.random.amax(1)]),
    }
    return figures.lines(
        ks, series, bands=bands, controls=["random heads"], axes=("heads patched together", "share of all heads' effect"),
        log=len(ks) > 6, marks=ks, title="The first k heads by total effect, beside random sets of k heads",
    )  # fmt: skip


def _interval(x: Heads, k: int) -> tuple[float, float]:
    low, high = share_intervals(x.sets.curve[k - 1][None], x.sets.whole, 0.95, 0)
    return float(low), float(high)


def mlp_items(x: Mlps) -> list[Any]:
    """Return how much of each MLP's effect is built and direct, by layer, and the smallest sets."""
    layers = [str(c.layer) for c in x.roles.mlps]
    shown = torch.tensor([c in x.named for c in x.roles.mlps])
    rows = [row for row, on in zip(x.roles.table(), shown.tolist()) if on]
    items: list[Any] = []
    if rows:
        parts = {"TE[helix(a+b)] / TE": x.roles.built, "DE / TE": x.roles.read_out}
        null = x.roles.shuffled.mean(1) / x.roles.total.mean(1)
        series = {k: torch.where(shown, v, torch.nan) for k, v in {**parts, "shuffled helix": null}.items()}
        items.append(
            figures.lines(
                layers, series, controls=["shuffled helix"], axes=("layer", "share of the total effect"),
                title="Which MLPs build a helix of the answer, and which read it out",
            )
        )  # fmt: skip
    labels = x.labels()
    items.append([{"MLP": row["layer"], "role": labels[row["component"]], **_mlp_row(row)} for row in rows])
    return [*items, "The smallest sets of MLPs for shares of the effect of all:", x.sets.table()]


def _mlp_row(row: Mapping[str, Any]) -> dict[str, Any]:
    shares = {"built": "helix of the answer", "direct share": "direct", "shuffled": "shuffled helix"}
    found: dict[str, Any] = {"total": row["total"]}
    for key, name in shares.items():
        found[f"{name}, share"] = f"{row[key]:.2f} [{row[f'{key} low']:.2f}, {row[f'{key} high']:.2f}]"
    return found


def path_items(x: PathEffects) -> list[Any]:
    """Return the matrix of paths as shares of the difference between the runs, and the largest."""
    gap = float(x.gap.mean())
    values = x.matrix / gap
    senders, receivers = ([c.name for c in parts] for parts in (x.senders, x.receivers))
    drawn = figures.heat(
        values.nan_to_num(0.0)[..., None], senders, receivers, axes=("sender", "receiver"), label="relative effect",
        controls={"logit difference": (gap * values).nan_to_num(0.0)[..., None]},
        title="What each part does to the answer through each later one, of the difference between the runs",
    )  # fmt: skip
    return [drawn, [row for row in x.table() if abs(row["effect"]) > LEAST * abs(gap)][:ROWS]]


def neuron_items(x: Neurons) -> list[Any]:
    """Return the fits by layer, and accuracy against the number of neurons kept."""
    said = (
        f"{x.count:,} of {len(x.effects.neurons):,} neurons are kept for what follows. Fitted values keep {x.worth():.2f} of "
        f"the accuracy that true ones have, fits to shuffled problems {x.worth('shuffled'):.2f}, fits of as many other periods "
        f"({', '.join(f'{T:.4g}' for T in x.other_periods)}) {x.worth('other periods'):.2f}."
    )
    ks = list(x.kept.ks)
    series: dict[str, Any] = {name: x.kept.accuracy[name].mean(1) for name in _METHODS if name in x.kept.accuracy}
    drawn = figures.lines(
        ks, series, controls=["shuffled", "random"], axes=("neurons kept (logarithmic)", "accuracy"), log=True,
        marks=ks, title="Accuracy with the first k neurons and all others at their means",
    )  # fmt: skip
    return [said, drawn, x.by_layer()]


def rival_items(x: Rival) -> list[Any]:
    """Return the rules that neurons match by kind, faithfulness, and what knocked-out rules cost."""
    said = (
        f"{x.matches.classified:.2f} of the {len(x.matches.neurons):,} largest neurons match a rule; with the prompts shuffled "
        f"{x.matches.chance:.2f} do."
    )
    ks, rows = list(x.faithful.ks), x.faithful.table()
    drawn = figures.lines(
        ks, {"largest effects": [row["faithfulness"] for row in rows], "random": [row["random"] for row in rows]},
        controls=["random"], axes=("neurons kept in each layer (logarithmic)", "faithfulness"), log=True, marks=ks,
        title="How much of the model's score the largest neurons of each layer keep",
    )  # fmt: skip
    items: list[Any] = [said, x.matches.table(), drawn]
    if x.knocked is not None:
        items += [
            "Accuracy with the neurons of a rule at their means, on its own prompts and on others:",
            x.knocked.table(),
        ]
    return items


def readout_items(x: Readout) -> list[Any]:
    """Return the periods of logits and neurons, the wrong answers and the line."""
    periods = [round(T, 6) for T in x.logits.periods.tolist()]
    series: dict[str, Float[Tensor, " k"]] = {"number logits": x.logits.power}
    if x.neurons is not None:
        series["kept neurons' logits"] = x.neurons.power
    series["shuffled numbers"] = x.logits.shuffled_power
    drawn = figures.lines(
        periods, series, controls=["shuffled numbers"], log=True, marks=_marks(periods),
        axes=("period (logarithmic)", "share of the power"), title="Periods of the logits over the numbers, a line removed",
    )  # fmt: skip
    items: list[Any] = [drawn, x.logits.table()[:6]]
    if len(x.errors.differences):
        said = f"Wrong answers: {x.errors!r}."
        if x.symmetry is not None:
            said += (
                f" As often too small as too large at every distance? Chi² {x.symmetry['chi2']:.1f}, "
                f"{x.symmetry['degrees']:.0f} degrees of freedom, p {x.symmetry['p']:.2g}."
            )
        items += [said, x.errors.table()]
    else:
        items.append("No wrong answer is a number." if x.errors.n > x.errors.n_right else "No answer is wrong.")
    if x.line is not None:
        items += ["Numbers read off a line through the states at a, added, and rounded:", x.line.table()]
    return items


def evidence_items(x: Evidence) -> list[Any]:
    """Return the paragraph, the lines and the rules, which are too long for a column."""
    rows = [{k: v for k, v in line.row().items() if k != "rule"} for line in x.lines]
    return [x.text, rows, *(f"{line.what[:1].upper()}{line.what[1:]}: {line.rule}." for line in x.lines)]


def spoken(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with lists written out."""
    return [{k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]


def _marks(periods: Sequence[float]) -> list[float]:
    marks = [T for T in (2.0, 5.0, 10.0, 100.0) if periods[-1] <= T <= periods[0]]
    return marks if len(marks) > 2 else [periods[-1], periods[0]]
