"""A saved intervention put to use: what a model writes with and without it, how far its logits move, and an export.

Text before and after shows what an edit does to a few prompts. The numbers beside it say how much the next token's
distribution moves at the end of each prompt: KL(before || after) with what rounding alone makes of it, and the largest
change of a logit. Neither is a measure of the behaviour: for that see the claim on the file's card, with its control.
"""

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mi_ablate._model_card import edits
from mi_ablate._prompt_files import Words, read_prompts
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.export import check_out, exported
from mi_ablate.generation import check_length, generated
from mi_ablate.interventions import Placed
from mi_ablate.loading import load_model
from mi_ablate.metrics import kl, noise_floor
from mi_ablate.model import attached, rows_of, run, split
from mi_ablate.prompts import Prompts, tokenized
from mi_ablate.store import load, read_card

_USUAL, _TOY_PROMPTS = 20, 8


@dataclass(frozen=True)
class Change:
    """How far an edit moves the logits at the last token of each prompt."""

    kl: float
    """Mean of KL(before || after) over prompts, in nats."""
    largest_kl: float
    floor: float
    """What rounding the logits alone makes of the mean KL."""
    logit: float
    """The largest change of a logit."""
    of: float
    """The largest logit before, in size."""

    def __str__(self) -> str:
        return (
            f"KL(before || after) of the next token: mean {self.kl:.3g}, largest {self.largest_kl:.3g} nats (rounding alone "
            f"makes {self.floor:.1e}); largest change of a logit {self.logit:.3g}, of logits up to {self.of:.3g}"
        )


@dataclass(frozen=True)
class Applied:
    """What a model writes before and after an edit, and how far its logits move."""

    path: Path
    title: str
    model: str
    edits: tuple[dict[str, Any], ...]
    prompts: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    change: Change | None
    """None where the edit acts on new tokens alone."""
    export: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        texts = zip(self.prompts, self.before, self.after)
        return {
            "path": str(self.path),
            "title": self.title,
            "model": self.model,
            "edits": list(self.edits),
            "prompts": [{"prompt": p, "before": b, "after": a} for p, b, a in texts],
            "change": None if self.change is None else dict(vars(self.change)),
            "export": None if self.export is None else str(self.export),
        }

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("prompt", "before", "after", show_lines=True)
        for texts in zip(self.prompts, self.before, self.after):
            table.add_row(*(Text(_shown(one)) for one in texts))
        console = Console(width=max(60, shutil.get_terminal_size((120, 24)).columns), file=io.StringIO(), no_color=True)
        console.print(table)
        lines = [f"{_shown(self.title)}, on {_shown(self.model)}"]
        for row in self.edits:
            lines.append("; ".join(f"{key}: {_shown(value)}" for key, value in row.items() if value is not None))
        lines += [console.file.getvalue().rstrip()]  # type: ignore[attr-defined]
        lines.append("It acts on new tokens alone." if self.change is None else str(self.change))
        lines += [] if self.export is None else [f"Exported: {self.export}"]
        return "\n".join(lines)


def apply(
    path: str | Path,
    model: str,
    prompts: Sequence[str] | Path | None = None,
    *,
    new: int | None = None,
    export: str | Path | None = None,
    strict: bool = True,
    chat: bool | None = None,
    dtype: str | None = None,
    device: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Applied:
    """Load a saved intervention and a model, and compare what the model writes without and with it.

    Args:
        path: the file.
        model: what `mi_ablate.load_model` takes.
        prompts: a file for `mi_ablate.read_prompts`, or prompts as text (numbers for a model without a tokenizer); a
            toy's own where None.
        new: tokens to generate, at most; as many as the context holds, up to 20, by default.
        export: a folder to write the edited model to, for transformers (`mi_ablate.exported`).
        strict: refuse other weights than those that the file was made on.
        chat: see `mi_ablate.tokenized`.
        dtype: see `mi_ablate.load_model`.
        device: see `mi_ablate.load_model`.
        report: called with a line of progress.

    Raises:
        ArtefactError: not such a file, or one of another architecture, weights or prompts.
        ValueError: no prompts, or such as the model cannot read; an export of what weights cannot express.

    """
    card = read_card(path)
    if export is not None:
        check_out(model, export)
    report(f"loading {model}")
    loaded, given = _read(model, prompts, chat, dtype, device)
    hooks = load(path, loaded, strict, tokens=given.tokens)
    room = (getattr(loaded.cfg, "n_ctx", None) or 10**9) - given.tokens.shape[1] + 1
    count = min(_USUAL, room) if new is None else new
    check_length(loaded, given.tokens.shape[1], count)
    written: Path | None = None
    if export is not None:
        report(f"exporting to {export}")
        written = exported(loaded, hooks, model, export, card=card)
    report(f"{len(given)} prompts: logits before and after")
    change = _change(loaded, given, hooks)
    texts: list[tuple[str, ...]] = []
    for name, edit in (("before", ()), ("after", hooks)):

        def said(done: int, total: int, name: str = name) -> None:
            if done % max(1, total // 4) == 0:
                report(f"generating, {name}: pass {done} of at most {total}")

        texts.append(generated(loaded, given, edit, count, progress=said).text)
    before, after = texts
    title = str(card.get("title") or path)
    return Applied(Path(path), title, model, tuple(_plain_edits(hooks)), given.text, before, after, change, written)


def _read(
    model: str, prompts: Sequence[str] | Path | None, chat: bool | None, dtype: str | None, device: str | None
) -> tuple[HookedModel, Prompts]:
    """The model and the prompts as it reads them; a toy has its own."""
    from mi_ablate import toys
    from mi_ablate.toys.tasks import labels

    if isinstance(prompts, Path) and not prompts.is_fifo():  # which can be read but once
        read_prompts(prompts)  # what is wrong with a file is said before the model is loaded
    loaded = load_model(model, dtype=dtype, device=device)
    if model in toys.names() or Path(model).is_file():
        if prompts is not None:
            raise ValueError(f"{model} is a toy, and its own prompts are used: leave out prompts.")
        toy = toys.load(model)
        some = torch.linspace(0, len(toy.tokens) - 1, _TOY_PROMPTS).long()
        rows = toy.tokens[some]
        text = tuple(" ".join(labels(toy.config, row)) for row in rows.tolist())
        return loaded, Prompts(text, rows, torch.ones_like(rows, dtype=torch.bool), Words(_Answers(toy.config)))
    if prompts is None or (not isinstance(prompts, Path) and not prompts):
        raise ValueError("There is nothing to generate from: give --prompt TEXT (may be repeated) or --prompts FILE.")
    if isinstance(prompts, Path) or getattr(loaded, "tokenizer", None) is not None:
        return loaded, tokenized(loaded, prompts, chat=chat)
    try:
        numbers = [[int(word) for word in prompt.split()] for prompt in prompts]
    except ValueError:
        raise ValueError(
            "The model has no tokenizer: write a prompt as numbers of tokens, such as '464 2068'."
        ) from None
    return loaded, tokenized(loaded, numbers, chat=chat)


@dataclass(frozen=True)
class _Answers:
    """A toy's way of writing its answers, in the form of a tokenizer: numbers, then the tokens of a gate."""

    config: Any

    def decode(self, tokens: list[int], **kw: Any) -> str:
        p = self.config.modulus
        return " ".join(str(token) if token < p else f"DECLINE {token - p}" for token in tokens)


def _change(model: HookedModel, prompts: Prompts, hooks: FwdHooks) -> Change | None:
    """Batch by batch, so that memory does not grow with the prompts."""
    hooks = [(name, hook) for name, hook in hooks if not (isinstance(hook, Placed) and hook.when == "new")]
    if not hooks:
        return None
    score, start = kl(), 0
    kls: list[float] = []
    floor = logit = of = 0.0
    for tokens, mask in split(model, prompts.tokens, prompts.attention_mask):
        rows = torch.arange(start, start + len(tokens))
        start += len(tokens)
        real = None if mask is None or bool(mask.all()) else mask.long()
        with torch.no_grad():
            clean = run(model, tokens, real)[:, -1:]
            with attached(model, rows_of(hooks, rows)):
                edited = run(model, tokens, real)[:, -1:]
        kls += score(edited, clean, rows).tolist()
        floor += len(rows) * noise_floor(clean, dtype=model.cfg.dtype) / len(prompts)
        logit = max(logit, float((edited.cpu().double() - clean.cpu().double()).abs().max()))
        of = max(of, float(clean.abs().max()))
    return Change(sum(kls) / len(kls), max(kls), floor, logit, of)


def _plain_edits(hooks: FwdHooks) -> list[dict[str, Any]]:
    return [{**row, "found by": None if row["found by"] is None else dict(row["found by"])} for row in edits(hooks)]


def _shown(value: Any) -> str:
    """A card's or a model's words on one line, with what would move the cursor or the colours written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)[:2000])
