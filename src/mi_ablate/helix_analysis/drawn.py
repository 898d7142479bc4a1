"""The figures and tables of the page, from what was measured."""

from collections.abc import Sequence
from typing import Any

from mi_ablate import figures
from mi_ablate.arithmetic import NumberSpectra, Swaps
from mi_ablate.helix_analysis.representation import DEAD, Operand

LINES = 5
"""Layers whose spectrum is drawn; the table has all."""
MARKS = (2, 5, 10, 100)
METHODS = ("pca", "helix", "circle", "polynomial", "shuffled", "random")
CONTROLS = ("shuffled", "random")


def short(sites: Sequence[str]) -> list[str]:
    """Return sites as labels of an axis: the layer entered, and "out" for what leaves the last."""
    return ["out" if site.endswith("resid_post") else site.split(".")[1] for site in sites]


def spoken(site: str) -> str:
    """Return a site in words."""
    layer = site.split(".")[1]
    return f"leaving layer {layer}" if site.endswith("resid_post") else f"entering layer {layer}"


def spectrum_items(x: Operand) -> list[Any]:
    """Return the spectra of embedding and stream with their shuffled controls, and the strongest lines of each site."""
    items: list[Any] = []
    if x.embedding is not None:
        n = round(float(x.embedding.periods[0]))
        items.append(x.embedding.plot({x.embedding.sites[0]: "embedding"}, f"Embedding of the numbers 0 to {n - 1}"))
    if x.spectra is not None:
        chosen = spread(len(x.spectra.sites), LINES)
        names = {x.spectra.sites[i]: spoken(x.spectra.sites[i]) for i in chosen}
        items.append(x.spectra.plot(names, f"Residual stream at {x.of}, {len(x.means.values)} numbers"))
        items.append(spectrum_rows(x, x.spectra))
    return items


def spectrum_rows(x: Operand, spectra: NumberSpectra) -> list[dict[str, Any]]:
    """Return a row a site: periods above every shuffled line, and how linear the numbers lie."""
    most = x.linearity.shuffled.max(0).values.tolist()
    rows = []
    for i, site in enumerate(spectra.sites):
        peaks = ", ".join(f"{T:.4g}" for T in spectra.peaks(i)[:6]) or "none"
        row: dict[str, Any] = {"stream": spoken(site), "peaks": peaks}
        for T in x.fits.periods:
            row[f"share {T:.4g}"] = float(spectra.shares[i, spectra.line(T)])
        rows.append({**row, "PC1 R²": float(x.linearity.r2[i]), "shuffled": most[i]})
    return rows


def separability_items(x: Operand) -> list[Any]:
    """Return the kappa of the residues by layer, and the numbers at the best layer."""
    if x.separability is None:
        return []
    s = x.separability
    most = s.kappa_shuffled.amax((0, 2))
    series = {f"mod {T}": s.kappa[:, j] for j, T in enumerate(s.moduli)} | {"shuffled, most": most}
    drawn = figures.lines(
        short(s.sites), series, controls=["shuffled, most"], axes=("layer", "kappa of held-out numbers"),
        title="Can the residue of a number be read off by a linear probe?",
    )  # fmt: skip
    rows = [{k: v for k, v in row.items() if k != "site"} for row in s.table() if row["site"] == x.best]
    return [drawn, f"The stream {spoken(x.best)}:", rows]


def fit_items(x: Operand) -> list[Any]:
    """Return R² of helix and baselines by layer, in sample and left out, and what each period adds."""
    layers, b = short(x.fits.sites), x.baselines
    r2 = {name: b.r2[name] for name in METHODS}
    left = {name: b.loo[name] for name in METHODS if bool(b.loo[name].isfinite().any())}
    axes = ("layer", "R²")
    delta = {part if part == "linear" else f"period {part}": x.fits.delta[:, i] for i, part in enumerate(x.fits.parts)}
    return [
        figures.lines(layers, r2, controls=CONTROLS, axes=axes, title="R² of the number means, by layer"),
        figures.lines(
            layers, {k: v.clamp(min=-1) for k, v in left.items()}, controls=["shuffled"], axes=axes,
            title="Left out: R² of each number predicted by a fit that has not seen it",
        ),
        figures.lines(layers, delta, axes=("layer", "fall of R²"), title="What each part adds to the helix"),
        f"The helix has rank {x.fits.rank} of {len(x.fits.labels)} columns. Shuffled numbers are expected to give an R² of "
        f"{b.expected:.3f}. The stream {spoken(x.best)}, where a left-out number is predicted best:",
        method_rows(x),
        norm_rows(x),
    ]  # fmt: skip


def method_rows(x: Operand) -> list[dict[str, Any]]:
    """Return each method at the best site."""
    i, b = x.fits.means.index(x.best), x.baselines
    every = {"helix": float(x.fits.r2[i])}
    return [
        {
            "method": name,
            "R²": float(b.r2[name][i]),
            "left out": float(b.loo[name][i]),
            "of all prompts": every.get(name),
        }
        for name in METHODS
    ]


def norm_rows(x: Operand) -> list[dict[str, Any]]:
    """Return the length of each column's coefficient at the best site, and what its period adds."""
    i = x.fits.means.index(x.best)
    rows = []
    for part, delta in zip(x.fits.parts, x.fits.delta[i].tolist()):
        ends = (":linear",) if part == "linear" else (f":cos {part}", f":sin {part}")
        norms = [float(x.fits.norms[i, j]) for j, label in enumerate(x.fits.labels) if label.endswith(ends)]
        sine = norms[1] if len(norms) > 1 and norms[1] > DEAD * norms[0] else None
        rows.append({"part": part, "length of line or cosine": norms[0], "of sine": sine, "fall of R² without": delta})
    return rows


def period_items(x: Operand) -> list[Any]:
    """Return every set of the given periods, and the periods found without assuming any."""
    sets = [{"periods": row["periods"], "R²": row["r2"], "left out": row["loo"]} for row in x.subsets.table()]
    items: list[Any] = [sets] if len(x.fits.periods) <= 4 else []
    for free in x.free:
        curve = figures.lines(
            [round(T, 6) for T in free.grid.tolist()], {"one period beside the line": free.curve}, log=True,
            marks=[T for T in MARKS if float(free.grid.min()) <= T <= float(free.grid.max())],
            axes=("period (logarithmic)", "R² added"),
            title=f"Any single period beside the line, the stream {spoken(free.site)}",
        )  # fmt: skip
        items += [curve, [_plain(row) for row in free.table()]]
    return items


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its site, yes and no in words."""
    words = {True: "yes", False: "no"}
    return {k: words[v] if isinstance(v, bool) else v for k, v in row.items() if k != "site"}


def held_out_items(x: Operand) -> list[Any]:
    """Return the helix at the best layer, with the numbers that the fit has not seen."""
    if x.held is None or not x.held.fits.planes():
        return []
    r2 = float(x.held.r2[x.means.index(x.best)])
    title = f"Numbers on the helix, the stream {spoken(x.best)}. Those that end in 3 were held out (R² {r2:.3f})"
    return [x.held.plot(x.best, title)]


def probe_items(x: Operand) -> list[Any]:
    """Return the digit probes by layer, and the irreducibility of the circles."""
    p = x.probes
    series = {f"base {base}": p.accuracy[:, j] for j, base in enumerate(p.bases)}
    series["shuffled, most"] = p.shuffled.amax(1)
    drawn = figures.lines(
        short(p.sites), series, controls=["shuffled, most"], axes=("layer", "all digits right"),
        title="Digits read by circular probes from numbers held out",
    )  # fmt: skip
    return [drawn, *([[c.row() for c in x.circles]] if x.circles else [])]


def swap_items(swaps: Swaps, title: str) -> list[Any]:
    """Return the logit difference by layer with its intervals, and each method where it is largest."""
    return [swaps.plot(title=title), extreme_rows(swaps)]


def extreme_rows(swaps: Swaps) -> list[dict[str, Any]]:
    """Return each method at the site of its largest effect: its rise, or of a removal its fall."""
    found, means = [], {name: swaps.mean(name) for name in swaps.values}
    low, high = swaps.intervals()
    for m, name in enumerate(swaps.methods):
        gain = means["gain"][m]
        s = int(gain.argmin() if swaps.manner == "ablate" else gain.argmax())
        row: dict[str, Any] = {"method": name, "largest at layer": short([swaps.sites[s]])[0]}
        row |= {"logit difference": float(gain[s]), "low": float(low[m, s]), "high": float(high[m, s])}
        others = {"two tokens": "logit_diff", "accuracy": "accuracy", "probability": "probability"}
        found.append({**row, **{label: float(means[key][m, s]) for label, key in others.items()}})
    ends = (
        {"as it is": swaps.before, "clean run": swaps.clean} if swaps.manner != "ablate" else {"as it is": swaps.before}
    )
    for name, values in ends.items():
        row = {"method": f"({name})", "largest at layer": None, "logit difference": float(values["gain"].mean())}
        row |= {"low": None, "high": None, "two tokens": float(values["logit_diff"].mean())}
        found.append({**row, **{key: float(values[key].mean()) for key in ("accuracy", "probability")}})
    return found


def spread(n: int, most: int) -> list[int]:
    """Return at most so many of 0 to n - 1, evenly spread, both ends among them."""
    return sorted({round(i * (n - 1) / max(most - 1, 1)) for i in range(most)}) if n > most else list(range(n))
