"""Commands about numbers in a language model, or in a toy on modular arithmetic."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mi_ablate.cli.application import AsJson, Threads, app, command_line, progress_bar, use_threads

if TYPE_CHECKING:
    from mi_ablate._types import HookedModel
    from mi_ablate.arithmetic import Problems
    from mi_ablate.arithmetic import Task as Kind

Task = Annotated[str, typer.Option(help="add, sub, times, floordiv, mod, equation or greater.")]
Template = Annotated[
    str | None, typer.Option(help="A name (kt, 'kt space', question, bare, spaced) or a text with {a} and {b}.")
]
Upto = Annotated[int | None, typer.Option(help="Operands from 0 to this, exclusive; the task's own (100) by default.")]
Bos = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="A beginning-of-sequence token; the model's own default otherwise."),
]
Published = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Numbers to compare with, such as benchmarks/published/*.json.")
]
Periods = Annotated[
    list[float] | None,
    typer.Option(metavar="T", help="Of the helix, repeatable; 2, 5, 10 and 100 by default, of a toy its own."),
]
Limit = Annotated[int | None, typer.Option(help="A random sample of so many problems; all by default.")]
Seed = Annotated[int, typer.Option(help="Of samples and controls.")]
BatchSize = Annotated[int | None, typer.Option(help="Prompts a pass; chosen by memory.")]
Dtype = Annotated[str | None, typer.Option(help="float32 by default; bfloat16, float64.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.")]
Revision = Annotated[str | None, typer.Option(help="A branch, tag or commit on the hub.")]


@app.command()
def helix(
    model: Annotated[str, typer.Argument(help="A hub name (gpt2, pythia-70m), a folder, adder, a toy (nanda113).")],
    task: Task = "add",
    template: Template = None,
    upto: Upto = None,
    periods: Periods = None,
    layers: Annotated[str | None, typer.Option(help="Such as 0,3-5; all by default.")] = None,
    free: Annotated[int, typer.Option(help="Periods to search without assuming any; 0 for none.")] = 4,
    pairs: Annotated[int, typer.Option(help="Pairs of right problems for the causal tests, at most.")] = 100,
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="OPERAND", help="Whose token is looked at: a or b, repeatable; a by default."),
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for helix.html.")] = Path("out"),
    published: Published = None,
    as_json: AsJson = False,
    limit: Limit = None,
    seed: Seed = 0,
    bos: Bos = None,
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    threads: Threads = 1,
) -> None:
    """Show how a model represents numbers: spectra, helix fits beside baselines, and what writing them back does."""
    use_threads(threads)
    from mi_ablate.attention_view.asked import layers_of
    from mi_ablate.helix_analysis import analyse_helix
    from mi_ablate.helix_analysis.page import print_summary, write
    from mi_ablate.helix_analysis.results import check_settings
    from mi_ablate.published import compared, read_published

    check_settings(periods, free, pairs)
    source = "" if published is None else read_published(published).get("source", str(published))
    loaded, asked, own = problems_for(model, task, template, upto, limit, seed, bos, dtype, device, revision)
    where = None if layers is None else layers_of(layers, loaded.cfg.n_layers)
    with progress_bar(shown=not as_json) as progress:
        found = analyse_helix(
            loaded, asked, name=model, periods=periods or own, free=free, pairs=pairs, at=at or ("a",),
            layers=where, seed=seed, batch_size=batch_size, progress=progress,
        )  # fmt: skip
    rows = None if published is None else compared(found.to_json(), published)
    page = write(found, out / "helix.html", command=command_line(), published=rows, source=source)
    if as_json:
        typer.echo(json.dumps({**found.to_json(), **({} if rows is None else {"published": rows}), "page": str(page)}))
    else:
        print_summary(found)
        typer.echo(f"\nPage: {page}")


@app.command()
def clock(
    model: Annotated[str, typer.Argument(help="A hub name (gpt2, pythia-70m), a folder, adder, a toy (nanda113).")],
    task: Task = "add",
    template: Template = None,
    upto: Upto = None,
    periods: Periods = None,
    free: Annotated[int, typer.Option(help="Instead of --periods: so many, the strongest of the number logits.")] = 0,
    pairs: Annotated[int, typer.Option(help="Pairs of right problems, at most.")] = 100,
    heads: Annotated[int, typer.Option(help="Heads to name, at most.")] = 20,
    norm: Annotated[
        str, typer.Option(help="Of direct effects: live, or frozen at the corrupted run's scale.")
    ] = "live",
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for clock.html.")] = Path("out"),
    published: Published = None,
    as_json: AsJson = False,
    limit: Limit = None,
    seed: Seed = 0,
    bos: Bos = None,
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    threads: Threads = 1,
) -> None:
    """Show how a model adds: heads, MLPs and neurons of its way to the answer, and the Clock weighed against heuristics."""
    use_threads(threads)
    from mi_ablate.clock_analysis import analyse_clock
    from mi_ablate.clock_analysis.page import print_summary, write
    from mi_ablate.clock_analysis.results import check_settings
    from mi_ablate.published import compared, read_published

    check_settings(periods, free, pairs, heads, norm)
    source = "" if published is None else read_published(published).get("source", str(published))
    loaded, asked, own = problems_for(model, task, template, upto, limit, seed, bos, dtype, device, revision)
    with progress_bar(shown=not as_json) as progress:
        found = analyse_clock(
            loaded, asked, name=model, periods=periods or (None if free else own), free=free, pairs=pairs, heads=heads,
            norm=norm, seed=seed, batch_size=batch_size, progress=progress,
        )  # fmt: skip
    rows = None if published is None else compared(found.to_json(), published)
    page = write(found, out / "clock.html", command=command_line(), published=rows, source=source)
    if as_json:
        typer.echo(json.dumps({**found.to_json(), **({} if rows is None else {"published": rows}), "page": str(page)}))
    else:
        print_summary(found)
        typer.echo(f"\nPage: {page}")


def problems_for(
    name: str,
    task: str,
    template: str | None,
    upto: int | None,
    limit: int | None,
    seed: int,
    bos: bool | None,
    dtype: str | None,
    device: str | None,
    revision: str | None,
) -> "tuple[HookedModel, Problems, tuple[float, ...] | None]":
    """The model, its problems, and the periods of a toy (p / k of its key frequencies; None for a language model)."""
    import torch

    from mi_ablate import modular, toys
    from mi_ablate.arithmetic import problems, problems_of
    from mi_ablate.arithmetic.problem_sets.tasks import task_of
    from mi_ablate.loading import load_model, precision_of

    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: at least 1 problem; all without --limit.")
    if name in toys.names() or Path(name).is_file():
        if any(given is not None for given in (template, upto, bos, revision)):
            raise ValueError(
                f"{name} is a toy with problems of its own: leave out --template, --upto, --bos, --no-bos and --revision."
            )
        toy = toys.load(name, device=device or "cpu", dtype=precision_of(dtype))
        asked = problems_of(toy, task)
        if limit is not None:
            asked = asked[torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))[:limit]]
        if task == "mul":
            raise ValueError(
                "Products mod p turn on circles of discrete logarithms, not of numbers: mi-ablate fourier."
            )
        keys = modular.key_frequencies(modular.grid(toy, task))["energy"]
        return toy.model, asked, tuple(toy.modulus / k for k in sorted(keys.frequencies)) or None
    kind = task_of(task)  # what is wrong with the words is said before the model is loaded
    kind.template(template)
    loaded = load_model(name, dtype=dtype, device=device, revision=revision)
    a = None if upto is None else range(kind.a.start, upto)
    b = None if upto is None or kind.b != range(100) else range(upto)
    given: dict[str, Any] = {"template": template or _known(loaded, kind), "outside": "drop", "bos": bos, "seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # operands of different forms: the page says so
        if upto is not None:
            _check_single(loaded, problems(loaded, kind, a, b, **given, limit=1), upto)
        return loaded, problems(loaded, kind, a, b, **given, limit=limit), None


def _check_single(model: "HookedModel", asked: "Problems", upto: int) -> None:
    """Refuse operands that were left out because they are several tokens: the numbers would have gaps."""
    from mi_ablate.arithmetic import numerals

    there = numerals(model.tokenizer, asked.forms["a"], upto)  # type: ignore[attr-defined]
    if there.first_failure is not None:
        raise ValueError(
            f"--upto {upto}: {there.first_failure} is no single token where {asked.template!r} has a. "
            f"{there.range_text} Choose at most --upto {there.contiguous + 1}."
        )


def _known(model: "HookedModel", kind: "Kind") -> str | None:
    """The first template of a task whose words the tokenizer knows; the default where it knows all or none."""
    from mi_ablate.arithmetic.problem_sets.single_tokens import encoded

    tokenizer = getattr(model, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return None
    texts = [text for text in kind.templates.values() if not text.startswith(" ")]
    rows = encoded(tokenizer, [text.replace("{a}", "12").replace("{b}", "13") for text in texts])
    return next((text for text, row in zip(texts, rows) if unknown not in row), None)
