"""The main job's results as a page and as tables in the terminal; nothing is measured here."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mi_ablate.demo.results import RULE, Demo

SAYS = {
    "accuracy": "Share of prompts on which the largest logit is the answer's.",
    "frequencies": (
        "Energy of the number embeddings W_E by frequency, mean removed. The chosen ones make up the answer circle below. "
        "A large share says where to look, not what is used."
    ),
    "removal": (
        "How many directions can be removed before the model fails? The directions are the right singular vectors of the "
        "answers' mean activations (contrastive SVD), in order. Zero-ablation also takes away the mean; mean-ablation leaves "
        "it; resample-ablation puts another prompt's value in.\n\n"
        "The controls decide what the curve says. Covariance-drawn subspaces are random directions as large as the "
        "activations are; the top principal components know nothing of the answer. Where these fail as early, the curve "
        "measures how the readout is spread, not where a circuit is. A cos and a sin of one frequency form a plane in which "
        "single directions are arbitrary, so planes are removed whole as well."
    ),
    "every site": (
        "The same at every residual site after the first attention at once, at the last position, each site with a basis of "
        "its own fitted on {bases} and scored on {n} others."
    ),
    "circle": (
        'At the last residual stream, the answer is a hand on several clocks. "+5": on every prompt the hand is replaced '
        "by the one of a + b + 5, predicted by a fit that has seen neither that answer nor any activation of it (thirds of "
        'the answers). "Turned by +5" rotates each plane of frequency k by 2πk·5/p about the mean, one '
        "constant edit for all prompts. "
        "Accuracy is on the written answer; ablation is scored on the prompt's own.\n\n"
        'Controls: "shuffled labels" writes the values of a fit to shuffled rows into the same subspace. '
        '"Covariance-drawn" writes the right values into a random subspace of the same rank: where it works too, that '
        "subspace held the circle by its size alone, and the values do the work.\n\n"
        'This shows what the model writes, not which algorithm wrote it: models with constant attention ("Pizza") have a '
        "circle that turns as well."
    ),
    "attention": "Patterns of every head on one prompt, and their mean over {n} prompts. Rows are destinations.",
}


def write(found: Demo, path: str | Path, command: str = "mi-ablate demo") -> Path:
    """Write the self-contained page and return its path."""
    import importlib.metadata

    from mi_ablate import figures
    from mi_ablate.report import Section, page

    last = {ablation: c for (where, ablation), c in found.removal.items() if where == "last residual"}
    planes = {f"{a}, planes": c for (where, a), c in found.removal.items() if where.endswith("frequency plane")}
    every = {ablation: c for (where, ablation), c in found.removal.items() if where == "every site"}
    curve = next(iter(every.values()))
    seen = found.attention
    sections = [
        Section("Accuracy", SAYS["accuracy"], [[{"prompts": k, "accuracy": v} for k, v in found.accuracy.items()]]),
        Section(
            "Key frequencies",
            SAYS["frequencies"],
            [figures.spectrum(range(1, len(found.shares) + 1), found.shares, found.frequencies), frequency_rows(found)],
        ),
        Section(
            "Removal at the last residual",
            SAYS["removal"],
            [figures.removal(last), removal_rows(found, "last residual"), f"Rule: {RULE}."],
        ),
        Section("Removal by frequency plane", "", [figures.removal(planes), removal_rows(found, "frequency plane")]),
        Section(
            "Removal at every site",
            SAYS["every site"].format(bases=found.settings["bases"], n=curve.n),
            [figures.removal(every), removal_rows(found, "every site")],
        ),
        Section(
            "The answer circle",
            SAYS["circle"],
            [picture(found), circle_rows(found)],
        ),
        Section(
            "Attention",
            SAYS["attention"].format(n=seen["n"]),
            [figures.attention(seen[key], seen["tokens"], seen["names"]) for key in ("patterns", "mean")],
        ),
    ]
    versions = {name: importlib.metadata.version(name) for name in ("transformer-lens", "torch")}
    footer = {"command": command, "model": found.settings["model"], **versions}
    title = f"{found.settings['model']}: taken apart"
    return page(path, title, sections, footer=footer)


def picture(found: Demo) -> Any:
    """Return the figure of the answer circle with the bars of the writings."""
    from mi_ablate import figures

    writes = [row for row in found.answer_circle if not row["write"].startswith("the mean")]
    drawn = found.picture
    return figures.answer_circle(drawn["planes"], drawn["predicted"], drawn["fitted"], writes)


def frequency_rows(found: Demo) -> list[dict[str, Any]]:
    """Return the chosen frequencies with their shares."""
    return [{"frequency": k, "share of W_E": float(found.shares[k - 1])} for k in found.frequencies]


def removal_rows(found: Demo, where: str) -> list[dict[str, Any]]:
    """Return k at 95 % and 50 % of every curve at ``where`` with its controls, and the variance removed at that k."""
    rows = []
    for (place, ablation), curve in found.removal.items():
        if not place.endswith(where):
            continue
        row: dict[str, Any] = {"where": place, "ablation": ablation}
        for tau in (0.95, 0.5):
            k = curve.k_at(tau)
            row[f"k@{tau:.0%}"] = "-" if k is None else str(k)
            if tau == 0.95 and k is not None:
                row["variance"] = float(curve.variance_removed["edited"][curve.ks.index(int(k))])
            for name in curve.controls:
                row[f"k@{tau:.0%} {name}"] = str(
                    curve.k_at(tau, run=name) if curve.k_at(tau, run=name) is not None else "-"
                )
        rows.append(row)
    return rows


def circle_rows(found: Demo) -> list[dict[str, Any]]:
    """Return the writings with their controls as one flat table."""
    rows = []
    for written in found.answer_circle:
        row: dict[str, Any] = {"written": written["write"], "accuracy": written["accuracy"]}
        for name, scores in written["controls"].items():
            low, high = scores["low"], scores["high"]
            spread = "" if low == high else f" ({low:.3f} to {high:.3f})"
            row[name] = f"{scores['mean']:.3f}{spread}"
        row["variance"] = written["variance_removed"]["edited"]
        rows.append(row)
    columns = sorted(dict.fromkeys(key for row in rows for key in row), key=lambda name: name == "variance")
    return [{key: row.get(key, "") for key in columns} for row in rows]


def print_tables(found: Demo) -> None:
    """Print the short tables."""
    from rich.console import Console

    console = Console()
    scores = ", ".join(f"{name} {value:.4f}" for name, value in found.accuracy.items())
    console.print(f"[bold]{found.settings['model']}[/bold]  accuracy: {scores}")
    top = ", ".join(f"{k} ({float(found.shares[k - 1]):.3f})" for k in found.frequencies)
    console.print(f"Key frequencies by energy of W_E: {top}")
    rows = [row for where in ("last residual", "frequency plane", "every site") for row in removal_rows(found, where)]
    console.print("\n[bold]Directions that can be removed[/bold] (in brackets: covariance-drawn, top PCA)")
    console.print(_table([_short_removal(row) for row in rows]))
    console.print(f"  {RULE}; '40+': never within the curve", style="dim")
    console.print("\n[bold]The answer circle[/bold]: accuracy on the written answer")
    console.print(_table([_short_circle(row) for row in found.answer_circle]))
    console.print(f"  {found.seconds:.0f} s", style="dim")


def _short_removal(row: dict[str, Any]) -> dict[str, Any]:
    short = {"removed at": row["where"], "ablation": row["ablation"]}
    for tau in ("95%", "50%"):
        beside = [row[key] for key in (f"k@{tau} covariance", f"k@{tau} pca") if key in row]
        short[f"k@{tau}"] = row[f"k@{tau}"] + (f" ({', '.join(beside)})" if beside else "")
    return short


def _short_circle(row: dict[str, Any]) -> dict[str, Any]:
    beside = ", ".join(f"{name} {scores['mean']:.3f}" for name, scores in row["controls"].items())
    return {"written": row["write"], "accuracy": row["accuracy"], "controls": beside}


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    return table


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def rows_as_markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Return a GitHub table of row dicts, for the README's results."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in rows])
