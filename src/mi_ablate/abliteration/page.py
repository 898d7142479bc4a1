"""An abliteration as a page and as lines in the terminal; nothing is measured here."""

from pathlib import Path
from typing import Any

from mi_ablate.abliteration.results import Abliteration

SAYS = {
    "prompts": (
        'Directions were found on the first part of the prompts, chosen on the second, and everything under "What removing '
        'it does" was measured on the third, which took no part before.'
    ),
    "answers": (
        "The behaviour is what the model says next: the preference {formula} at the last token of a prompt. "
        "{how} On the test prompts the positive kind scores {gap:.2f} above the negative kind (95 % interval {low:.2f} to "
        "{high:.2f})."
    ),
    "found": "T+ and T- are the tokens whose mean probability differs most between the two kinds of the first part.",
    "given": "The answers were given.",
    "choice": (
        "{tried} candidates: differences of the class means at {sites} sites, {last} last position(s). Bypass: the mean "
        "preference of positive validation prompts with the direction removed from everything that writes to the residual "
        "stream; low is good. Induce: the preference of negative prompts with it added; high is good. KL: how far the other "
        "prompts' next token moves. Cosmic: the same question asked of activations, without outputs.\n\n{relaxed}"
    ),
    "tuning": (
        "Strengths by component and a real-valued layer, searched on the validation prompts: the share of the behaviour left "
        "against the KL on negative prompts. Trial {kept} is what is measured below; its direction may mix those of two "
        "layers, or be each layer's own, while the curve, the explanation, the variance and the addition are of the direction "
        "chosen above. The best of {n} trials is better there than elsewhere; the table below says what it is on prompts that "
        "the search has not seen."
    ),
    "effects": (
        "The chosen direction is removed from every writer at all positions (the same edit as in the weights). Controls are "
        'single directions removed in the same way: "within" is drawn from the covariance of the stream at {site} about the '
        'mean of each kind ({draws} draws), as large as activations are and blind to the contrast. "Covariance" and "pca" '
        "see both kinds together; where the contrast is what varies most they are about it too, and their effect says so. "
        "Variance: the share of the variance there that a direction holds.\n\n"
        "Kl and loss say what happens to everything else: KL(clean || edited) of the next token, and the loss over "
        "the prompts' own tokens; rounding of the logits alone makes the KL of the last column. "
        '"Preference added" adds the direction to negative prompts, at {site}, instead.'
    ),
    "curve": (
        "The positive test prompts' preference against the number of directions removed: the chosen one, then the singular "
        "directions of the positive prompts about the negative mean. Where the controls fall as early, size explains it."
    ),
    "words": (
        "The chosen direction read through the unembedding and on the test prompts. What it promotes need not be what it "
        "means: a direction is found by what differs between the prompts."
    ),
    "generations": "Greedy continuations before and after, of the first test prompts. Examples, not a measure.",
    "limits": (
        "One model, one set of prompts, linear removal. A behaviour that is gone here may return under fine-tuning or with "
        "other prompts; one that stays resists this protocol and says nothing of others. If the two sets of prompts differ in "
        "something else too (length, topic, last word), the direction is about that as well."
    ),
}


def write(found: Abliteration, path: str | Path, command: str) -> Path:
    """Write the self-contained page and return its path."""
    import importlib.metadata

    from mi_ablate.report import Section, page

    gap, low, high = found.gap
    asked = SAYS["answers"].format(
        how=SAYS["given" if found.answers.shares is None else "found"], gap=gap, low=low, high=high,
        formula=found.answers.formula,
    )  # fmt: skip
    settings = found.settings
    choice = SAYS["choice"].format(
        tried=found.choice.tried, sites=len(settings["sites"]), last=settings["last"],
        relaxed=" ".join(found.warnings[not found.shown :]),
    )  # fmt: skip
    effects = SAYS["effects"].format(site=found.choice.best.site, draws=settings["draws"])
    search = []
    if found.search is not None:
        said = SAYS["tuning"].format(kept=found.kept, n=len(found.search.trials))
        search = [Section("Tuning", said, [found.search.plot(), _rounded(found.search.table()[:15])])]
    curve = [] if found.curve is None else [Section("How many directions", SAYS["curve"], [found.curve.plot()])]
    words = [] if found.explanation is None else [Section("In words", SAYS["words"], [found.explanation])]
    texts = (
        [Section("Before and after", SAYS["generations"], [_shortened(found.generations)])] if found.generations else []
    )
    sections = [
        Section("In short", "\n\n".join([summary(found), *found.warnings[not found.shown :]])),
        Section("The prompts", SAYS["prompts"], [[{"part": k, **v} for k, v in found.prompts.items()]]),
        Section("The behaviour", asked, [found.answers.table()]),
        Section("Which direction", choice, [found.choice.plot(), _rounded(found.choice.table()[:15])]),
        *search,
        Section(
            "What removing it does", effects, [found.effects["positive", "preference"].plot(), flat(found.table())]
        ),
        *curve,
        *words,
        *texts,
        Section("Limits", SAYS["limits"]),
    ]
    versions = {name: importlib.metadata.version(name) for name in ("transformer-lens", "torch")}
    footer = {"command": command, "model": found.model, **versions, "seconds": f"{found.seconds:.0f}"}
    return page(path, f"{found.model}: one direction removed", sections, footer=footer)


def summary(found: Abliteration) -> str:
    """Return the result in two or three sentences."""
    gap, low, high = found.gap
    if not found.shown:
        what = f"the gap is {gap:.2f} (95 % interval {low:.2f} to {high:.2f})"
        if high < 0:
            return (
                f"The model scores positive test prompts below negative ones: {what}. The sets, or the answers, are the "
                "other way round: swap them and run again."
            )
        return (
            f"The model does not score the two kinds of test prompts apart: {what}. There is no behaviour to remove that "
            "these prompts show, and the numbers below are of a direction that means nothing."
        )
    best, effect = found.choice.best, found.effects["positive", "preference"]
    beside, left = (
        ", ".join(f"{name} {share(name):.2f}" for name in effect.controls) for share in (found.removed, found.left)
    )
    collateral = found.effects["negative", "kl"]
    moved = ", ".join(f"{name} {float(x.mean()):.3g}" for name, x in collateral.controls.items())
    what = "Removing one direction, found"
    if found.search is not None:
        what = (
            f"The tuned removal (trial {found.kept} of {len(found.search.trials)}), searched from the direction found"
        )
    return (
        f"{what} at {best.site} (position {best.pos}) and chosen among {found.choice.tried}, takes "
        f"positive prompts {found.removed():.2f} of the way to the negative ones (controls: {beside}). The two kinds still "
        f"differ by {found.left():.2f} of what they did ({left}). On negative prompts the next token moves by a KL of "
        f"{float(collateral.edited.mean()):.3g} nats ({moved})."
    )


def flat(rows: list[dict[str, Any]], ranges: bool = True) -> list[dict[str, Any]]:
    """Return the table of effects as text, for a reader: intervals, and the ranges of the controls where asked for."""
    shown = []
    for row in rows:
        new: dict[str, Any] = {"prompts": row["prompts"], "measure": row["measure"], "clean": _short(row["clean"])}
        new["edited"] = f"{_short(row['edited'])} [{_short(row['low'])}, {_short(row['high'])}]"
        for name in row:
            if name.endswith(" range"):
                kind = name.removesuffix(" range")
                low, high = row[name]
                new[kind] = f"{_short(row[kind])} [{_short(low)}, {_short(high)}]" if ranges else _short(row[kind])
            elif name not in ("prompts", "measure", "clean", "edited", "low", "high") and (
                ranges or name != "rounding"
            ):
                new.setdefault(name, _short(row[name]))
        shown.append(new)
    columns = list(dict.fromkeys(key for row in shown for key in row))
    return [{key: row.get(key, "") for key in columns} for row in shown]


def print_summary(found: Abliteration) -> None:
    """Print the result and its table."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for line in [summary(found), *found.warnings[not found.shown :]]:
        console.print(escape(line))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    rows = flat(found.table(), ranges=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    console.print(table)
    console.print(
        f"  {found.answers!r}; {found.passes:,} prompts through the model in {found.seconds:.0f} s",
        style="dim",
        markup=False,
    )


def _shortened(rows: list[dict[str, str]], longest: int = 60) -> list[dict[str, str]]:
    """The ends of long prompts, so that what was written stays in sight."""
    return [
        {**row, "prompt": text if len(text := row["prompt"]) <= longest else f"… {text[-longest:]}"} for row in rows
    ]


def _rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: _short(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _short(x: float) -> str:
    return f"{x:.1e}" if 0 < abs(x) < 5e-4 else f"{x:.3f}"
