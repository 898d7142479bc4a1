"""Commands that find and remove a behaviour of a language model."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mi_ablate.cli.application import AsJson, Threads, app, command_line, progress_bar, use_threads

if TYPE_CHECKING:
    from mi_ablate._types import HookedModel
    from mi_ablate.abliteration import Abliteration
    from mi_ablate.prompts import Contrast, Source


JOURNAL = "tuning.journal"
"""What ``--tune`` keeps its trials in, in the folder of the page, to go on from."""


@app.command()
def ablate(
    model: Annotated[
        str, typer.Argument(help="A hub name (gpt2, pythia-70m), a Hugging Face folder, a shipped model.")
    ],
    positive: Annotated[
        Path | None, typer.Option(help="Prompts with the behaviour: .txt, one a line, or .jsonl.")
    ] = None,
    negative: Annotated[Path | None, typer.Option(help="Prompts without it, otherwise alike.")] = None,
    contrast: Annotated[str | None, typer.Option(help="A shipped pair of sets instead, such as sentiment.")] = None,
    answers: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="What positive prompts make likelier (repeatable).")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="What negative prompts make likelier; with --answers.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for ablate.html and edit.safetensors.")] = Path("out"),
    export: Annotated[Path | None, typer.Option(help="Also write the edited model as a Hugging Face folder.")] = None,
    as_json: AsJson = False,
    sites: Annotated[list[str] | None, typer.Option(metavar="SITE", help="Where to look; the residual stream.")] = None,
    last: Annotated[int, typer.Option(help="How many of the last tokens give candidates.")] = 1,
    by: Annotated[str, typer.Option(help="Choose by bypass (outputs) or cosmic (activations).")] = "bypass",
    kl_max: Annotated[float, typer.Option(help="Largest KL on negative prompts.")] = 0.1,
    limit: Annotated[int | None, typer.Option(help="Try only so many candidates.")] = None,
    trials: Annotated[int | None, typer.Option("--tune", metavar="TRIALS", help="Then tune; again to go on.")] = None,
    draws: Annotated[int, typer.Option(help="Seeds of the covariance-drawn control.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the shuffle that deals the prompts into parts.")] = 0,
    chat: Annotated[bool | None, typer.Option(help="Fill prompts into the tokenizer's chat template.")] = None,
    new: Annotated[int, typer.Option(help="Tokens of the example generations.")] = 12,
    batch_size: Annotated[int | None, typer.Option(help="Prompts a pass; chosen by memory.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 by default; bfloat16, float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    threads: Threads = 1,
) -> None:
    """Find the direction that tells two sets of prompts apart, remove it, and measure that beside controls."""
    use_threads(threads)
    from mi_ablate.abliteration import abliterate, given_answers, tuned
    from mi_ablate.loading import load_model
    from mi_ablate.prompts import contrasted

    sides = _sides(positive, negative, contrast)
    _check_places(model, out, export, trials)
    loaded = load_model(model, dtype=dtype, device=device)
    prompts = contrasted(loaded, *sides, seed=seed, chat=chat)
    told = given_answers(loaded, answers or (), against or ()) if answers or against else None
    with progress_bar(shown=not as_json) as progress:
        found = abliterate(
            loaded, prompts, answers=told, names=sites or ("resid_pre", "resid_post"), last=last, by=by, kl_max=kl_max,
            limit=limit, draws=draws, new_tokens=new, batch_size=batch_size, progress=progress, command=command_line(),
        )  # fmt: skip
        if trials is not None:
            out.mkdir(parents=True, exist_ok=True)
            found = tuned(loaded, prompts, found, trials=trials, path=out / JOURNAL, progress=progress)
    places = _written(found, out)
    if export is not None:
        places["folder"] = _exported(loaded, found, model, export, prompts)
    if as_json:
        return typer.echo(json.dumps({**found.to_json(), **places}))
    _say(found, places, ["--model", model, "--prompt", prompts.test.prompts.text[0]])


def _check_places(model: str, out: Path, export: Path | None, trials: int | None) -> None:
    """Refuse what cannot be written, and a search that cannot be run, before the model is loaded."""
    import importlib.util

    from mi_ablate.export import check_out, check_writable

    if trials is not None and trials < 1:
        raise ValueError(f"--tune {trials}: at least one trial.")
    if trials is not None and importlib.util.find_spec("optuna") is None:
        raise ValueError("--tune needs optuna: pip install 'mi_ablate[tune]'.")
    check_writable(out)
    if export is not None:
        check_out(model, export)


def _written(found: "Abliteration", out: Path) -> dict[str, str]:
    """The page and the edit, in the folder ``out``."""
    from mi_ablate.abliteration import page

    written = page.write(found, out / "ablate.html", command=command_line())
    return {"page": str(written), "edit": str(found.save(out / "edit.safetensors"))}


def _exported(loaded: "HookedModel", found: "Abliteration", source: str, export: Path, prompts: "Contrast") -> str:
    """The edited model as a folder, compared with the hooks on test prompts."""
    from mi_ablate.export import exported

    tokens = prompts.test.prompts.tokens[:4]
    return str(exported(loaded, found.hooks, source, export, card=found.card, tokens=tokens))


def _say(found: "Abliteration", places: dict[str, str], on: list[str]) -> None:
    """Print the summary, where everything is, and what to try next."""
    from mi_ablate.abliteration.page import print_summary

    print_summary(found)
    typer.echo("")
    for name, place in places.items():
        typer.echo(f"{name.capitalize()}: {place}")
    typer.echo(f"Try: {shlex.join(['mi-ablate', 'apply', places['edit'], *on])}", err=True)


def _sides(positive: Path | None, negative: Path | None, contrast: str | None) -> "tuple[Source, Source]":
    """The prompts of both kinds: files, or lists of a shipped pair."""
    if contrast is not None:
        if positive is not None or negative is not None:
            raise ValueError("Give --contrast NAME, or --positive FILE and --negative FILE, not both.")
        from mi_ablate import contrasts

        return contrasts.load(contrast)
    if positive is None or negative is None:
        raise ValueError("Two sets of prompts are needed: --positive FILE and --negative FILE, or --contrast NAME.")
    from mi_ablate.prompts import read_prompts

    for file in (positive, negative):
        if not file.is_fifo():  # which can be read but once
            read_prompts(file)  # what is wrong with a file is said before the model is loaded
    if positive.samefile(negative):
        raise ValueError(f"{positive} is given for both kinds: two files are needed that differ in the behaviour.")
    return positive, negative
