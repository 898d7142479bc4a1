"""Prompts as a file holds them: text, tokens or chat messages; whatever is wrong names file and line. Tokens as text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

Prompt = str | list[int] | list[dict[str, str]]
Source = str | Path | Sequence[Any]
"""A file (text means its path), or the prompts themselves."""
_KINDS = {str: "text", int: "tokens", dict: "messages"}
_FORMS = (
    'Write "a string", {"prompt": "a string"}, {"text": "a string"}, {"tokens": [1, 2]} or '
    '{"messages": [{"role": "user", "content": "a string"}]}.'
)


@dataclass(frozen=True)
class Words:
    """Tokens as text: the tokenizer's, or numbers where there is none."""

    tokenizer: Any

    def __call__(self, tokens: list[int]) -> list[str]:
        """Return one string a token."""
        return [self.joined([token]) for token in tokens]

    def joined(self, tokens: list[int]) -> str:
        """Return the text of all of them."""
        if self.tokenizer is None:
            return " ".join(map(str, tokens))
        return self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Return the prompts of a file, all of one kind: strings, lists of tokens, or lists of messages.

    The forms are those of `mi_ablate.prompts`. A byte order mark and the line breaks are no part of a prompt.

    Raises:
        ValueError: no such file, nothing in it, not UTF-8, an empty line, an item in none of the forms, or kinds mixed;
            file and line are named.

    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ("", ".txt", ".jsonl", ".json"):
        raise ValueError(f"{path}: prompts are read from .txt (one a line) or .jsonl, not from {path.suffix}.")
    text = _read(path)
    if suffix == ".json" and text.lstrip().startswith("["):
        items = _json(text, str(path))
        if not items:
            raise ValueError(f"{path} holds no prompt: its array is empty.")
    else:
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        empty = [str(i) for i, line in enumerate(lines, 1) if not line.strip()]
        if empty:
            said = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise ValueError(f"{path} has empty lines ({len(empty)}: {said}). One prompt a line, and nothing else.")
        items = [_json(line, place(path, i)) for i, line in enumerate(lines)] if suffix.startswith(".json") else lines
    return as_prompts(items, path)


def as_prompts(items: Sequence[Any], path: str | Path | None = None) -> list[Prompt]:
    """Return the prompts in items as JSON has them, refusing what is none and what mixes kinds."""
    if not items:
        raise ValueError("There are no prompts: the list is empty.")
    prompts = [_prompt(item, place(path, i)) for i, item in enumerate(items)]
    for i, prompt in enumerate(prompts):
        if kind_of(prompt) != kind_of(prompts[0]):
            raise ValueError(
                f"{place(path, i)} is {kind_of(prompt)} and the first one is {kind_of(prompts[0])}: one kind at a time."
            )
    return prompts


def kind_of(prompt: Prompt) -> str:
    """Return what a prompt is: "text", "tokens" or "messages"."""
    return "text" if isinstance(prompt, str) else _KINDS[type(prompt[0])]


def place(path: str | Path | None, i: int) -> str:
    """Return where prompt ``i`` (from 0) stands, for messages."""
    if path is None:
        return f"Prompt {i + 1}"
    return f"{path}, {'prompt' if Path(path).suffix.lower() == '.json' else 'line'} {i + 1}"


def _read(path: Path) -> str:
    try:
        body = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        what = "is a folder" if path.is_dir() else "is not there"
        raise ValueError(
            f"The file of prompts {str(path)!r} {what}. (Prompts themselves go in a list: ['a prompt'].)"
        ) from None
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 (byte {body[error.start]:#04x}). Save it as UTF-8.") from None
    if not text.strip():
        raise ValueError(f"{path} holds no prompt: one a line.")
    return text


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: this is not readable as JSON ({error}). {_FORMS}") from None


def _prompt(item: Any, where: str) -> Prompt:
    """The prompt in one item of a file or a list, or a ValueError."""
    item = item.tolist() if isinstance(item, Tensor) else item
    expected: type = str
    if isinstance(item, dict):
        keys = [key for key in ("prompt", "text", "tokens", "messages") if key in item]
        if len(keys) != 1:
            said = ", ".join(map(repr, sorted(map(str, item))[:6])) or "none"
            raise ValueError(f"{where}: an object with {len(keys)} of the known keys (it has {said}). {_FORMS}")
        item, expected = item[keys[0]], {"tokens": int, "messages": dict}.get(keys[0], str)
    elif not isinstance(item, str):
        expected = dict if isinstance(item, (list, tuple)) and item and isinstance(item[0], dict) else int
    if expected is str:
        if not isinstance(item, str):
            raise ValueError(f"{where}: a prompt that is a {type(item).__name__}, not a string. {_FORMS}")
        if not item.strip():
            raise ValueError(f"{where}: an empty prompt.")
        return item
    if not isinstance(item, (list, tuple)):
        raise ValueError(f"{where}: a {type(item).__name__} is no prompt. {_FORMS}")
    if not item:
        raise ValueError(f"{where}: a prompt of no {_KINDS[expected]}.")
    if expected is int and not all(isinstance(token, int) and not isinstance(token, bool) for token in item):
        raise ValueError(f"{where}: tokens are integers, such as [464, 2068].")
    if expected is dict and not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in item
    ):
        raise ValueError(f'{where}: each message is an object {{"role": "user", "content": "a string"}}.')
    return list(item)
